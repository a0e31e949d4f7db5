#include "bench/lib/policy_run.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "balloon/balloon.h"
#include "core/text.h"

/* A record may be anybody's: sums of what it tells must not overflow. */
#define BYTES_MAX (UINT64_C(1) << 50)

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

/* a + (to - from), at least 0. */
static uint64_t moved(uint64_t a, uint64_t from, uint64_t to)
{
	return to >= from ? a + (to - from) : less(a, from - to);
}

/* For a terminal: a record may hold any name. */
static void name_copy(char *dst, size_t cap, const char *name)
{
	text_copy(dst, cap, name, strlen(name));
	for (; *dst; dst++)
		if ((unsigned char)*dst < ' ' || *dst == 0x7f)
			*dst = '?';
}

/* ---- life ---- */

static struct policy_run *run_add(struct policy_replay *r, const char *name, enum policy_run_kind kind,
				  struct config *config)
{
	struct policy_run *run = &r->runs[r->run_count++];

	run->name = name;
	run->kind = kind;
	run->config = *config;
	run->available_least_bytes = UINT64_MAX;
	*config = (struct config){ 0 };
	return run;
}

int policy_replay_new(struct policy_replay **ret_replay)
{
	struct policy_replay *r = calloc(1, sizeof(*r));
	struct config defaults;

	if (!r)
		return -ENOMEM;
	config_init(&defaults);
	run_add(r, "recorded", RUN_RECORDED, &defaults);
	config_init(&defaults);
	run_add(r, "its settings", RUN_SETTINGS, &defaults);
	*ret_replay = r;
	return 0;
}

struct policy_replay *policy_replay_free(struct policy_replay *r)
{
	if (!r)
		return NULL;
	for (size_t i = 0; i < r->run_count; i++) {
		config_free(&r->runs[i].config);
		balloon_policy_free(r->runs[i].policy);
		free(r->runs[i].vms);
		free(r->runs[i].plan);
	}
	free(r->vms);
	free(r->index);
	free(r);
	return NULL;
}

int policy_replay_add(struct policy_replay *r, const char *name, struct config *config)
{
	if (r->run_count == POLICY_RUNS_MAX)
		return -E2BIG;
	run_add(r, name, RUN_FILE, config);
	return 0;
}

/* ---- header and settings ---- */

static int settings_take(struct policy_replay *r, const char *text, char *why, size_t cap)
{
	struct policy_run *run = &r->runs[1];
	struct config_error error;
	struct config config;
	int result = config_load_text("its settings", text, strlen(text), &config, &error);

	if (result == -EINVAL) {
		snprintf(why, cap, "%s", error.text);
		return -EBADMSG;
	}
	if (result < 0)
		return result;
	config_free(&run->config);
	run->config = config;
	if (run->policy) {
		struct balloon_limits limits = balloon_limits_of(&run->config);

		balloon_policy_set_limits(run->policy, &limits);
	}
	return 0;
}

/* A daemon that starts knows nothing of what another decided. */
static int header_take(struct policy_replay *r, const struct record_line *line, char *why, size_t cap)
{
	int result = settings_take(r, line->settings, why, cap);

	for (size_t i = 1; i < r->run_count && result == 0; i++) {
		struct balloon_limits limits = balloon_limits_of(&r->runs[i].config);

		r->runs[i].policy = balloon_policy_free(r->runs[i].policy);
		result = balloon_policy_new(&limits, &r->runs[i].policy);
	}
	name_copy(r->version, sizeof(r->version), line->version);
	r->taken_ns = 0;
	return result;
}

/* ---- VMs ---- */

static int vm_find(struct policy_replay *r, const struct vm_snapshot *vm, size_t *ret_at)
{
	size_t at = 0;

	while (at < r->vm_count && (r->vms[at].pid != vm->pid || r->vms[at].start_ticks != vm->start_ticks))
		at++;
	*ret_at = at;
	if (at < r->vm_count)
		return 0;
	if (at == r->vm_cap) {
		size_t more = r->vm_cap ? r->vm_cap * 2 : 16;
		struct replay_vm *vms = reallocarray(r->vms, more, sizeof(*vms));

		if (!vms)
			return -ENOMEM;
		r->vms = vms;
		for (size_t i = 0; i < r->run_count; i++) {
			struct run_vm *run_vms = reallocarray(r->runs[i].vms, more, sizeof(*run_vms));

			if (!run_vms)
				return -ENOMEM;
			r->runs[i].vms = run_vms;
		}
		r->vm_cap = more;
	}
	r->vms[at] = (struct replay_vm){ .pid = vm->pid, .start_ticks = vm->start_ticks };
	name_copy(r->vms[at].name, sizeof(r->vms[at].name), vm->name);
	for (size_t i = 0; i < r->run_count; i++)
		r->runs[i].vms[at] = (struct run_vm){ .least_bytes = UINT64_MAX };
	r->vm_count++;
	return 0;
}

static int vms_find(struct policy_replay *r, const struct host_snapshot *s)
{
	if (r->index_cap < s->vm_count || !r->index) {
		size_t more = s->vm_count + 16;
		size_t *index = reallocarray(r->index, more, sizeof(*index));

		if (!index)
			return -ENOMEM;
		r->index = index;
		r->index_cap = 0; /* until all of them have as much room */
		for (size_t i = 0; i < r->run_count; i++) {
			struct balloon_vm_plan *plan = reallocarray(r->runs[i].plan, more, sizeof(*plan));

			if (!plan)
				return -ENOMEM;
			r->runs[i].plan = plan;
		}
		r->index_cap = more;
	}
	for (size_t i = 0; i < s->vm_count; i++) {
		int result = vm_find(r, &s->vms[i], &r->index[i]);

		if (result < 0)
			return result;
		for (size_t k = 0; k < r->run_count; k++)
			if (!r->runs[k].vms[r->index[i]].wanted_bytes)
				r->runs[k].vms[r->index[i]].wanted_bytes = s->vms[i].balloon.actual_bytes;
	}
	return 0;
}

static bool figures_possible(const struct host_snapshot *s)
{
	bool possible = s->mem_total_bytes <= BYTES_MAX && s->mem_available_bytes <= BYTES_MAX;

	for (size_t i = 0; i < s->vm_count && possible; i++) {
		const struct vm_snapshot *vm = &s->vms[i];

		possible = vm->shares > 0 && vm->shares <= BYTES_MAX && vm->balloon.max_bytes <= BYTES_MAX &&
			   vm->balloon.actual_bytes <= BYTES_MAX && vm->reservation_bytes <= BYTES_MAX &&
			   vm->ram_resident_bytes <= BYTES_MAX && vm->rss_anon_bytes <= BYTES_MAX &&
			   vm->rss_shmem_bytes <= BYTES_MAX;
	}
	return possible;
}

/* ---- the estimate ---- */

/* What the VM would be like had it been given "to" and not "from". Returns by how much more the host would have available. */
static int64_t vm_estimate(struct vm_snapshot *vm, uint64_t from, uint64_t to)
{
	struct vm_balloon *b = &vm->balloon;
	uint64_t actual = b->actual_bytes, held, then;

	if (from == to || !actual)
		return 0;
	b->actual_bytes = moved(actual, from, to);
	if (b->max_bytes)
		b->actual_bytes = least(b->actual_bytes, b->max_bytes);
	if (b->available_bytes != BALLOON_UNTOLD)
		b->available_bytes = moved(b->available_bytes, actual, b->actual_bytes);
	if (b->free_bytes != BALLOON_UNTOLD)
		b->free_bytes = moved(b->free_bytes, actual, b->actual_bytes);
	held = least(vm->ram_resident_ns ? vm->ram_resident_bytes : vm->rss_anon_bytes + vm->rss_shmem_bytes, actual);
	then = b->actual_bytes > actual ? held + (b->actual_bytes - actual) : least(held, b->actual_bytes);
	vm->ram_resident_bytes = moved(vm->ram_resident_bytes, held, then);
	vm->rss_anon_bytes = moved(vm->rss_anon_bytes, held, then);
	return (int64_t)held - (int64_t)then;
}

static void estimate(const struct policy_replay *r, const struct policy_run *run, struct host_snapshot *s)
{
	const struct policy_run *recorded = &r->runs[0];
	int64_t more = 0;

	for (size_t i = 0; i < s->vm_count; i++) {
		struct vm_snapshot *vm = &s->vms[i];
		struct config_vm settings;

		more += vm_estimate(vm, recorded->vms[r->index[i]].wanted_bytes, run->vms[r->index[i]].wanted_bytes);
		if (run->kind != RUN_FILE)
			continue;
		config_for_vm(&run->config, vm->name, &settings);
		vm->balloon_allowed = settings.balloon && run->config.balloon_control;
		vm->reservation_bytes = settings.reservation_bytes;
		vm->limit_bytes = settings.limit_bytes;
		vm->shares = settings.shares;
	}
	s->mem_available_bytes = more < 0 ? less(s->mem_available_bytes, (uint64_t)-more) :
					    least(s->mem_available_bytes + (uint64_t)more, s->mem_total_bytes);
}

/* ---- one tick ---- */

static int name_find(const char *name, const char *(*name_of)(unsigned int), unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		if (strcmp(name_of(i), name) == 0)
			return (int)i;
	return -1;
}

static const char *state_name(unsigned int i)
{
	return host_state_name((enum host_state)i);
}

static const char *block_name(unsigned int i)
{
	return balloon_block_name((enum balloon_block)i);
}

static const char *veto_name(unsigned int i)
{
	return balloon_veto_name((enum balloon_veto)i);
}

static int recorded_take(struct policy_run *run, const struct record_line *line, char *why, size_t cap)
{
	int state = name_find(line->decided.state, state_name, HOST_STATES);

	if (state < 0) {
		snprintf(why, cap, "no state is called \"%.32s\"", line->decided.state);
		return -EBADMSG;
	}
	run->state = (enum host_state)state;
	for (size_t i = 0; i < line->decided.vm_count; i++) {
		const struct record_vm *vm = &line->decided.vms[i];
		int block = name_find(vm->block, block_name, BLOCK_NO_EFFECT + 1);
		int veto = name_find(vm->veto, veto_name, VETO_OOM + 1);

		if (block < 0 || veto < 0 || vm->target_bytes > BYTES_MAX) {
			snprintf(why, cap, "what was decided for VM %zu is not understood", i);
			return -EBADMSG;
		}
		run->plan[i] = (struct balloon_vm_plan){ .target_bytes = vm->target_bytes,
							 .not_done = vm->not_done,
							 .block = (enum balloon_block)block,
							 .veto = (enum balloon_veto)veto };
	}
	return 0;
}

static int run_decide(const struct policy_replay *r, struct policy_run *run, const struct host_snapshot *recorded,
		      struct vm_snapshot *vms)
{
	struct host_snapshot s = *recorded;
	struct balloon_plan plan;
	int result;

	if (s.vm_count > 0)
		memcpy(vms, s.vms, s.vm_count * sizeof(*vms));
	s.vms = vms;
	estimate(r, run, &s);
	run->available_least_bytes = least(run->available_least_bytes, s.mem_available_bytes);
	result = balloon_policy_decide(run->policy, &s, &plan);
	if (result < 0)
		return result;
	run->state = plan.ladder->state;
	/* What could not be done then cannot now. Policy files are tried as if all could. */
	for (size_t i = 0; i < s.vm_count && run->kind == RUN_SETTINGS; i++)
		if (r->runs[0].plan[i].not_done)
			balloon_policy_not_done(run->policy, i);
	if (s.vm_count > 0)
		memcpy(run->plan, plan.vms, s.vm_count * sizeof(*run->plan));
	return 0;
}

/* Counts what the run has decided; its targets hold from the next tick on. */
static void run_count(const struct policy_replay *r, struct policy_run *run, const struct host_snapshot *s)
{
	run->state_ticks[run->state]++;
	for (size_t i = 0; i < s->vm_count; i++) {
		struct run_vm *vm = &run->vms[r->index[i]];
		uint64_t target = run->plan[i].target_bytes;

		if (target) {
			run->targets++;
			vm->targets++;
		}
		if (run->plan[i].veto != VETO_NONE) {
			run->vetoes++;
			vm->vetoes++;
		}
		if (target && !run->plan[i].not_done) {
			run->taken_bytes += less(vm->wanted_bytes, target);
			run->given_bytes += less(target, vm->wanted_bytes);
			vm->wanted_bytes = target;
		}
		if (!vm->wanted_bytes)
			continue;
		vm->least_bytes = least(vm->least_bytes, vm->wanted_bytes);
		vm->most_bytes = vm->most_bytes > vm->wanted_bytes ? vm->most_bytes : vm->wanted_bytes;
		vm->sum_bytes += (double)vm->wanted_bytes;
		vm->ticks++;
	}
}

static const char *objection(const struct balloon_vm_plan *p)
{
	return p->block != BLOCK_NONE ? balloon_block_name(p->block) :
	       p->veto != VETO_NONE   ? balloon_veto_name(p->veto) :
					"no objection";
}

static void difference_look(const struct policy_replay *r, struct policy_run *run, const struct host_snapshot *s,
			    unsigned int number)
{
	const struct policy_run *recorded = &r->runs[0];

	if (run->differs_line)
		return;
	if (run->state != recorded->state) {
		run->differs_line = number;
		snprintf(run->differs, sizeof(run->differs), "state %s, recorded %s", host_state_name(run->state),
			 host_state_name(recorded->state));
	}
	for (size_t i = 0; i < s->vm_count && !run->differs_line; i++) {
		const struct balloon_vm_plan *mine = &run->plan[i], *then = &recorded->plan[i];

		/* Of another policy only what it does counts. */
		if (mine->target_bytes == then->target_bytes &&
		    (run->kind == RUN_FILE || (mine->block == then->block && mine->veto == then->veto)))
			continue;
		run->differs_line = number;
		snprintf(run->differs, sizeof(run->differs),
			 "%.80s: target %" PRIu64 " MiB (%s), recorded %" PRIu64 " MiB (%s)",
			 r->vms[r->index[i]].name, mine->target_bytes >> 20, objection(mine), then->target_bytes >> 20,
			 objection(then));
	}
}

static int tick_run(struct policy_replay *r, const struct record_line *line, unsigned int number, char *why, size_t cap)
{
	const struct host_snapshot *s = &line->snapshot;
	struct vm_snapshot *vms;
	int result = recorded_take(&r->runs[0], line, why, cap);

	if (result < 0)
		return result;
	vms = calloc(s->vm_count + 1, sizeof(*vms));
	if (!vms)
		return -ENOMEM;
	r->runs[0].available_least_bytes = least(r->runs[0].available_least_bytes, s->mem_available_bytes);
	for (size_t i = 1; i < r->run_count && result == 0; i++)
		result = run_decide(r, &r->runs[i], s, vms);
	free(vms);
	for (size_t i = 0; i < r->run_count && result == 0; i++) {
		difference_look(r, &r->runs[i], s, number);
		run_count(r, &r->runs[i], s);
	}
	return result;
}

static int tick_take(struct policy_replay *r, const struct record_line *line, unsigned int number, char *why, size_t cap)
{
	const struct host_snapshot *s = &line->snapshot;
	int result;

	if (!figures_possible(s)) {
		snprintf(why, cap, "figures that cannot be");
		return -EBADMSG;
	}
	if (s->taken_ns <= r->taken_ns) {
		snprintf(why, cap, "time goes backwards");
		return -EBADMSG;
	}
	result = vms_find(r, s);
	if (result < 0)
		return result;
	r->tick_vms = s->vm_count;
	if (line->has_decided)
		result = tick_run(r, line, number, why, cap);
	else
		r->undecided++;
	if (result < 0)
		return result;
	r->span_ns += r->taken_ns ? s->taken_ns - r->taken_ns : 0;
	r->taken_ns = s->taken_ns;
	r->ticks++;
	return 0;
}

int policy_replay_line(struct policy_replay *r, const struct record_line *line, unsigned int number, char *ret_why,
		       size_t cap)
{
	if (line->kind == RECORD_HEADER)
		return header_take(r, line, ret_why, cap);
	if (!r->runs[1].policy) {
		snprintf(ret_why, cap, "no header before it");
		return -EBADMSG;
	}
	if (line->kind == RECORD_SETTINGS)
		return settings_take(r, line->settings, ret_why, cap);
	return tick_take(r, line, number, ret_why, cap);
}
