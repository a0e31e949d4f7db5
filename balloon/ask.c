/* When guests and VMMs are asked. A decision is to be made on what guests say now, and a guest that runs short between two
 * decisions is not to wait for the next: what it cannot have it swaps out meanwhile. */
#include "balloon/balloon_internal.h"
#include "core/clock.h"

/* What a guest tells at a tick was asked of it so long before, and of its VMM that much: a guest answers in milliseconds. */
#define REFRESH_AHEAD_NS (150 * NSEC_PER_MSEC)
#define ASK_AHEAD_NS (50 * NSEC_PER_MSEC)

/* Guests that a balloon has taken from are looked after that often between ticks: at 500 MiB/s one gets through the 64 MiB
 * that it keeps in half of this. While the host is short all are, for a guest that is given memory gets that of one which
 * has just become idle. It costs a VMM five messages, and its guest one. */
#define GUARD_NS (250 * NSEC_PER_MSEC)

/* While the host has room and the balloon is empty, a guest is asked this often: its demand is known when it is needed. */
#define CALM_PERIOD_S 10
/* A balloon that is let go keeps what is not worth a command. */
#define NEARLY_EMPTY_BYTES (UINT64_C(4) << 20)

static bool is_empty(const struct balloon_told *told)
{
	return told->actual_bytes + NEARLY_EMPTY_BYTES >= told->max_bytes;
}

static bool is_calm(const struct balloon *b, const struct balloon_told *told)
{
	return (!b->plan.ladder || b->plan.ladder->state < HOST_SOFT) && is_empty(told);
}

static bool is_due(const struct balloon *b, const struct vm *vm, uint64_t now_ns)
{
	const struct balloon_told *told = balloon_vm_told(vm);
	const struct balloon_vm *v = vm->balloon;

	if (b->guarding)
		return told->told_ns && (!is_empty(told) || !is_calm(b, told));
	return !is_calm(b, told) || !told->stats_told_ns ||
	       now_ns - v->asked_ns >= CALM_PERIOD_S * NSEC_PER_SEC - REFRESH_AHEAD_NS;
}

static void timer_set(struct balloon *b, uint64_t at_ns)
{
	sd_event_source_set_time(b->ask_timer, at_ns / 1000);
	sd_event_source_set_enabled(b->ask_timer, SD_EVENT_ONESHOT);
}

static void refresh(struct balloon *b, uint64_t now_ns)
{
	bool libvirt_due = false;

	b->guarding = now_ns + REFRESH_AHEAD_NS + GUARD_NS / 2 < b->next_ns;
	for (struct vm *vm = vmm_registry_first(b->registry); vm; vm = vm->next) {
		struct balloon_vm *v = vm->balloon;

		if (!v || !is_due(b, vm, now_ns))
			continue;
		libvirt_due |= balloon_by_libvirt(vm);
		/* How often it is asked is a setting of the VM: a dry run sees what is told anyway. */
		if (!b->fs->dry_run)
			port_qmp_refresh(v->qmp, is_calm(b, balloon_vm_told(vm)) ? CALM_PERIOD_S : 1);
	}
	/* libvirt asks guests by itself, once a second; what it knows takes one call for all. */
	if (b->libvirt && libvirt_due && !b->guarding)
		port_libvirt_ask(b->libvirt);
}

static void ask(struct balloon *b, uint64_t now_ns)
{
	for (struct vm *vm = vmm_registry_first(b->registry); vm; vm = vm->next) {
		struct balloon_vm *v = vm->balloon;

		if (!v || !is_due(b, vm, now_ns))
			continue;
		port_qmp_ask(v->qmp);
		v->asked_ns = now_ns;
	}
}

static int on_ask_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct balloon *b = userdata;
	uint64_t now_ns = clock_mono_ns();

	(void)source;
	(void)usec;
	b->refreshed = !b->refreshed;
	if (b->refreshed) {
		refresh(b, now_ns);
		timer_set(b, now_ns + REFRESH_AHEAD_NS - ASK_AHEAD_NS);
	} else {
		ask(b, now_ns);
		if (b->guarding)
			timer_set(b, now_ns - (REFRESH_AHEAD_NS - ASK_AHEAD_NS) + GUARD_NS);
	}
	return 0;
}

void balloon_ask_later(struct balloon *b)
{
	uint64_t tick_ns = b->config->tick_ms * NSEC_PER_MSEC, now_ns = clock_mono_ns(), wait_ns;

	wait_ns = tick_ns > REFRESH_AHEAD_NS ? tick_ns - REFRESH_AHEAD_NS : 0;
	b->next_ns = now_ns + tick_ns;
	/* Ticks may be shorter than it takes a guest to answer. */
	if (b->refreshed)
		return;
	if (!b->ask_timer)
		sd_event_add_time(b->loop, &b->ask_timer, CLOCK_MONOTONIC, UINT64_MAX, 1, on_ask_timer, b);
	timer_set(b, now_ns + wait_ns % GUARD_NS);
}

void balloon_told(struct vm *vm, void *userdata)
{
	struct balloon *b = userdata;
	const struct balloon_told *told = balloon_vm_told(vm);
	const struct balloon_limits limits = balloon_limits_of(b->config);

	/* One early decision for each that comes in its time. */
	if (!b->urgent_fn || !b->decided_ns || b->was_urgent || b->urgent || !b->config->balloon_control ||
	    !vm->settings.balloon || clock_mono_ns() - b->decided_ns < GUARD_NS / 2)
		return;
	if (told->available_bytes == BALLOON_UNTOLD || is_empty(told) ||
	    !balloon_guest_is_short(&limits, told->max_bytes, told->actual_bytes, told->available_bytes))
		return;
	b->urgent = true;
	b->urgent_fn(b->urgent_userdata);
}

void balloon_on_urgent(struct balloon *b, void (*urgent)(void *userdata), void *userdata)
{
	b->urgent_fn = urgent;
	b->urgent_userdata = userdata;
}
