#include "daemon/daemon.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/log.h"
#include "daemon/control.h"
#include "daemon/estimate.h"
#include "daemon/guest_processes.h"
#include "daemon/job.h"
#include "daemon/modules.h"
#include "daemon/recorder.h"
#include "daemon/translate.h"
#include "ept/slots.h"

/* A oneshot daemon answers once its VMs are known, and at the latest after this time. */
#define SETTLE_MAX_NS (10 * NSEC_PER_SEC)
#define SETTLE_POLL_NS (20 * NSEC_PER_MSEC)

/* ---- VMs come and go ---- */

static void on_vm_added(struct vm *vm, void *userdata)
{
	struct daemon *d = userdata;
	struct ept_view *view;

	if (ept_view_new(&d->fs, vm, &view) < 0)
		return; /* an unknown layout, as any VM has at first */
	vm->ept = view;
	/* With QMP to come, the answer is worth waiting for. */
	if (vm->state == VM_NO_QMP)
		ept_view_refresh(view);
}

static void on_vm_ready(struct vm *vm, void *userdata)
{
	struct daemon *d = userdata;

	if (vm->ept)
		ept_view_refresh(vm->ept);
	balloon_vm_ready(d->balloon, vm);
}

static void on_vm_changed(struct vm *vm, void *userdata)
{
	struct ept_view *view = vm->ept;

	if (!vm->qmp) {
		translate_vm_lost(userdata, vm);
		guest_processes_vm_lost(userdata, vm);
	}
	if (view && !vm->qmp)
		ept_view_abandon(view);
	/* QMP failed before it told the layout: the mappings do. */
	if (view && view->source == EPT_NOT_KNOWN && vm->state != VM_FOUND && vm->state != VM_READY)
		ept_view_refresh(view);
}

static void on_vm_gone(struct vm *vm, void *userdata)
{
	struct daemon *d = userdata;

	translate_vm_lost(d, vm);
	guest_processes_vm_lost(d, vm);
	snapshot_drop_vm(&d->snapshot, vm);
	vm->ept = ept_view_free(vm->ept);
	balloon_vm_gone(d->balloon, vm);
}

static const struct vmm_registry_ops registry_ops = {
	.added = on_vm_added,
	.ready = on_vm_ready,
	.changed = on_vm_changed,
	.gone = on_vm_gone,
};

bool daemon_settled(const struct daemon *d)
{
	if (vmm_registry_settling(d->registry))
		return false;
	for (struct vm *vm = vmm_registry_first(d->registry); vm; vm = vm->next) {
		const struct ept_view *view = vm->ept;

		if (view && view->asked_of)
			return false;
	}
	return balloon_settled(d->balloon);
}

/* ---- the tick ---- */

static void discover_if_due(struct daemon *d, uint64_t now)
{
	int r;

	if (d->discovered_ns && now - d->discovered_ns < d->config.discover_ms * NSEC_PER_MSEC)
		return;
	d->discovered_ns = now;
	r = vmm_registry_discover(d->registry);
	if (r < 0)
		log_warning("cannot look for VMs, ignoring: %s", strerror(-r));
}

static int on_work_ready(sd_event_source *source, int fd, uint32_t events, void *userdata);

static void end_watch(struct daemon *d, sd_event_source **source, int fd)
{
	struct pollfd ended = { .fd = fd, .events = POLLIN };

	*source = sd_event_source_disable_unref(*source);
	/* What has ended and was not taken in (a look failed) waits for the next tick, not in a busy loop. */
	if (fd >= 0 && poll(&ended, 1, 0) == 0)
		sd_event_add_io(d->loop, source, fd, EPOLLIN, on_work_ready, d);
}

/* A pass or a round that ends is taken in at once, not at the next tick. */
static void work_watch(struct daemon *d)
{
	end_watch(d, &d->pass_ready, ksmd_pass_fd(d->ksmd));
	end_watch(d, &d->round_ready, ksmd_round_fd(d->ksmd));
}

static void tick(struct daemon *d)
{
	int r;

	discover_if_due(d, clock_mono_ns());
	snapshot_free(&d->snapshot);
	r = snapshot_take(d, &d->snapshot);
	if (r < 0) {
		log_warning("cannot look at the host, skipping a tick: %s", strerror(-r));
		work_watch(d);
		return;
	}
	if (ksmd_agents_fd(d->ksmd) >= 0 && ksmd_agents_dispatch(d->ksmd))
		d->discovered_ns = 0;
	modules_tick(d);
	if (d->recorder)
		recorder_tick(d->recorder, &d->snapshot, balloon_plan_of(d->balloon, d->snapshot.taken_ns));
	d->ticks++;
	work_watch(d);
}

static int on_work_ready(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	(void)source;
	(void)fd;
	(void)events;
	tick(userdata);
	return 0;
}

/* A VM that starts is looked for as soon as its agent calls: its RAM waits to be merged. */
static int on_agents(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct daemon *d = userdata;

	(void)source;
	(void)fd;
	(void)events;
	if (ksmd_agents_dispatch(d->ksmd))
		d->discovered_ns = 0;
	return 0;
}

static int timer_rearm(struct daemon *d, uint64_t after_ns)
{
	int r = sd_event_source_set_time(d->tick_timer, (clock_mono_ns() + after_ns) / 1000);

	if (r < 0)
		return r;
	return sd_event_source_set_enabled(d->tick_timer, SD_EVENT_ONESHOT);
}

static int on_tick(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct daemon *d = userdata;

	(void)source;
	(void)usec;
	tick(d);
	return timer_rearm(d, d->config.tick_ms * NSEC_PER_MSEC);
}

static void on_urgent(void *userdata)
{
	timer_rearm(userdata, 0);
}

/* Oneshot: look until all VMs are known, then serve. */
static int on_settle(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct daemon *d = userdata;
	int r;

	(void)source;
	(void)usec;
	if (!daemon_settled(d) && clock_mono_ns() - d->started_ns < SETTLE_MAX_NS)
		return timer_rearm(d, SETTLE_POLL_NS);
	r = snapshot_take(d, &d->snapshot);
	if (r < 0)
		return r;
	modules_sense(d);
	return control_serve_one(d, d->options.oneshot_fd, &d->control);
}

/* ---- signals ---- */

static int on_terminate(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata)
{
	struct daemon *d = userdata;

	(void)source;
	if (d->options.oneshot_fd < 0)
		log_info("ending on signal %u", si->ssi_signo);
	return sd_event_exit(d->loop, 0);
}

int daemon_config_load(const struct daemon_options *options, struct config *ret_config,
		       struct config_error *ret_error)
{
	bool none = options->config_optional && access(options->config_file, F_OK) < 0;
	int r = config_load(none ? NULL : options->config_file, options->policy_dir, ret_config, ret_error);

	if (r < 0)
		return r;
	if (options->verbose)
		ret_config->log_level = LOG_LEVEL_DEBUG;
	else if (options->oneshot_fd >= 0 && ret_config->log_level > LOG_LEVEL_WARNING)
		ret_config->log_level = LOG_LEVEL_WARNING; /* it speaks on its caller's terminal */
	return 0;
}

static void reservations_check(struct daemon *d)
{
	struct host_snapshot s = { 0 };
	const char *glob = NULL;
	uint64_t most = config_reservation_max(&d->config, &glob);

	if (!glob || snapshot_host(d, &s) < 0 || most <= s.mem_total_bytes)
		return;
	log_warning("[vm %s] reservation = %" PRIu64 " MiB is more than the host has, ignoring: %" PRIu64 " MiB", glob,
		    most >> 20, s.mem_total_bytes >> 20);
}

int daemon_reload(struct daemon *d, struct config_error *ret_error)
{
	struct config fresh;
	char skipped[512];
	int r = daemon_config_load(&d->options, &fresh, ret_error);

	if (r < 0) {
		log_error("reload: nothing was changed: %s", ret_error->text);
		return r;
	}
	config_adopt(&d->config, &fresh, skipped, sizeof(skipped));
	config_free(&fresh);
	log_set_level((enum log_level)d->config.log_level);
	vmm_registry_reconfigure(d->registry);
	reservations_check(d);
	if (d->recorder)
		recorder_settings(d->recorder, &d->config);
	log_info("reload: done%s%s", *skipped ? "; these changes need a restart: " : "", skipped);
	return 0;
}

static int on_reload(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata)
{
	struct daemon *d = userdata;
	struct config_error error;

	(void)source;
	(void)si;
	sd_notify(0, "RELOADING=1");
	daemon_reload(d, &error);
	sd_notify(0, "READY=1");
	return 0;
}

/* ---- life ---- */

static int signals_add(struct daemon *d)
{
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	/* Before any thread is started, so that all of them leave these to the loop. */
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	r = sd_event_add_signal(d->loop, NULL, SIGTERM, on_terminate, d);
	if (r >= 0)
		r = sd_event_add_signal(d->loop, NULL, SIGINT, on_terminate, d);
	if (r >= 0)
		r = sd_event_add_signal(d->loop, NULL, SIGHUP, on_reload, d);
	return r < 0 ? r : 0;
}

static int state_dir_make(struct daemon *d)
{
	int r = fsio_mkdir(&d->fs, 0755, "%s", d->config.state_dir);

	return r == -EEXIST ? 0 : r;
}

static int parts_make(struct daemon *d)
{
	bool oneshot = d->options.oneshot_fd >= 0;
	int r;

	r = fsio_open_root("/", d->options.dry_run || oneshot, &d->fs);
	if (r == 0 && !oneshot)
		r = state_dir_make(d);
	if (r == 0)
		r = sd_event_new(&d->loop);
	if (r >= 0)
		r = signals_add(d);
	if (r == 0)
		r = vmm_registry_new(d->loop, &d->fs, &d->config, &registry_ops, d, &d->registry);
	if (r == 0)
		r = balloon_new(d->loop, &d->fs, &d->config, d->registry, &d->balloon);
	if (r == 0)
		balloon_on_urgent(d->balloon, on_urgent, d);
	if (r == 0)
		r = estimates_new(d, &d->estimates);
	if (r == 0)
		r = translations_new(d, &d->translations);
	if (r == 0)
		r = guest_processes_new(d, &d->guest_processes);
	/* Whoever has the socket is the daemon of this host. Only then may KSM's settings be touched. */
	if (r == 0 && !oneshot)
		r = control_listen(d, &d->control);
	if (r == 0 && !oneshot && d->options.record_file)
		r = recorder_new(d->options.record_file, RECORD_FILE_MAX_BYTES, &d->config, &d->recorder);
	if (r == 0)
		r = ksmd_new(&d->fs, &d->config, &d->ksmd);
	if (r == 0 && !oneshot && ksmd_listen(d->ksmd) == 0)
		r = sd_event_add_io(d->loop, &d->agents_ready, ksmd_agents_fd(d->ksmd), EPOLLIN, on_agents, d);
	if (r >= 0)
		r = sd_event_add_time(d->loop, &d->tick_timer, CLOCK_MONOTONIC, 0, 0, oneshot ? on_settle : on_tick,
				      d);
	return r < 0 ? r : 0;
}

int daemon_new(const struct daemon_options *options, struct config *config, struct daemon **ret_daemon)
{
	struct daemon *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return -ENOMEM;
	d->options = *options;
	d->config = *config;
	*config = (struct config){ 0 };
	d->fs.root_fd = -1;
	d->started_ns = clock_mono_ns();
	log_set_level((enum log_level)d->config.log_level);
	r = parts_make(d);
	if (r < 0) {
		log_error("cannot start: %s", strerror(-r));
		daemon_free(d);
		return r;
	}
	*ret_daemon = d;
	return 0;
}

int daemon_run(struct daemon *d)
{
	int r;

	if (d->options.oneshot_fd < 0) {
		reservations_check(d);
		log_info("ready: engine=%s%s", config_engine_name(d->config.merge_engine),
			 d->options.dry_run ? ", dry run: nothing will be changed" : "");
		r = sd_event_set_watchdog(d->loop, true);
		if (r < 0)
			log_warning("no watchdog, ignoring: %s", strerror(-r));
		sd_notify(0, "READY=1");
	} else {
		/* All VMs are asked before the first look at whether they have answered. */
		r = vmm_registry_discover(d->registry);
		if (r < 0)
			return r;
	}
	r = sd_event_loop(d->loop);
	sd_notify(0, "STOPPING=1");
	return r;
}

struct daemon *daemon_free(struct daemon *d)
{
	if (!d)
		return NULL;
	sd_event_source_disable_unref(d->pass_ready);
	sd_event_source_disable_unref(d->round_ready);
	sd_event_source_disable_unref(d->agents_ready);
	sd_event_source_disable_unref(d->tick_timer);
	ksmd_free(d->ksmd); /* puts KSM's settings back before anything that may take time */
	d->control = control_free(d->control); /* now that nothing is at work any more, there may be another daemon */
	d->estimates = estimates_free(d->estimates);
	jobs_end(d);
	d->balloon = balloon_free(d->balloon);
	d->recorder = recorder_free(d->recorder);
	d->translations = translations_free(d->translations);
	d->guest_processes = guest_processes_free(d->guest_processes);
	if (d->registry) {
		for (struct vm *vm = vmm_registry_first(d->registry); vm; vm = vm->next)
			vm->ept = ept_view_free(vm->ept);
		vmm_registry_free(d->registry);
	}
	snapshot_free(&d->snapshot);
	sd_event_unref(d->loop);
	config_free(&d->config);
	fsio_close(&d->fs);
	free(d);
	return NULL;
}
