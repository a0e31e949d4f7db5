/* Answers about balloons. */
#include "core/clock.h"

#include "daemon/commands.h"
#include "daemon/daemon.h"

#define MIB 1048576.0

/* Null for what is not known. */
static json_t *mib(uint64_t bytes)
{
	return bytes && bytes != BALLOON_UNTOLD ? json_real((double)bytes / MIB) : json_null();
}

static json_t *render_host(struct daemon *d)
{
	const struct host_snapshot *s = &d->snapshot;
	struct balloon_status st;
	const struct ladder *l;

	balloon_status(d->balloon, &st);
	l = st.ladder;
	if (!l)
		return json_object(); /* before the first tick */
	return json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:b}", "state",
			 host_state_name(l->state), "state_why", l->why, "total_mib", (double)s->mem_total_bytes / MIB,
			 "available_mib", (double)s->mem_available_bytes / MIB, "free_mib", (double)l->free_bytes / MIB,
			 "min_free_mib", (double)l->min_free_bytes / MIB, "debt_mib", (double)s->cow_debt_bytes / MIB,
			 "promised_mib", (double)st.promised_bytes / MIB, "idle_mib", (double)st.idle_bytes / MIB,
			 "budget_mib", (double)st.budget_bytes / MIB, "missing_mib", (double)st.missing_bytes / MIB,
			 "stalled_some_percent", l->some_permille / 10.0, "stalled_full_percent", l->full_permille / 10.0, "taken_mib", (double)st.taken_bytes / MIB,
			 "given_mib", (double)st.given_bytes / MIB, "vetoes", (json_int_t)st.vetoes, "admits",
			 ladder_rows[l->state].admit);
}

static const char *stats_name(enum guest_stats stats)
{
	static const char *const names[] = { "none", "stale", "absurd", "good" };

	return names[stats];
}

/* Why its balloon is not moved, or why it was, or nothing. */
static const char *why_of(const struct vm_snapshot *s, const struct balloon_vm_plan *plan)
{
	if (plan && plan->block == BLOCK_NONE)
		return plan->why;
	if (*s->balloon.why && (!plan || plan->block == BLOCK_NO_DRIVER || plan->block == BLOCK_NO_DEVICE ||
				plan->block == BLOCK_NO_STATS))
		return s->balloon.why;
	return plan ? plan->why : "";
}

static json_t *render_vm(const struct vm *vm, const struct vm_snapshot *s)
{
	const struct balloon_vm_plan *plan = balloon_vm_plan(vm);
	const struct vm_balloon *b = &s->balloon;
	bool good = b->stats == GUEST_STATS_GOOD;
	double age_s = b->stats_ns ? (double)(int64_t)(clock_mono_ns() - b->stats_ns) / 1e9 : -1;

	return json_pack("{s:s, s:s, s:i, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:f, s:o, s:f, s:I, s:s, s:s}",
			 "name", vm->name, "uuid", vm->uuid, "pid", (int)vm->pid, "driver", b->driver ? b->driver : "",
			 "stats", stats_name(b->stats), "stats_age_seconds", age_s >= 0 ? json_real(age_s) : json_null(),
			 "max_mib", mib(b->max_bytes), "actual_mib", mib(b->actual_bytes), "target_mib",
			 mib(plan ? plan->target_bytes : 0), "demand_mib", mib(plan ? plan->demand_bytes : 0),
			 "available_mib", good ? json_real((double)b->available_bytes / MIB) : json_null(), "resident_mib",
			 mib(s->ram_resident_ns ? s->ram_resident_bytes : s->rss_anon_bytes + s->rss_shmem_bytes),
			 "entitled_mib", mib(plan ? plan->entitled_bytes : 0), "reservation_mib",
			 (double)s->reservation_bytes / MIB, "limit_mib", mib(s->limit_bytes), "stalled_seconds",
			 (double)s->pressure.some_us / 1e6, "shares", (json_int_t)s->shares, "veto",
			 plan ? balloon_veto_name(plan->veto) : "", "why", why_of(s, plan));
}

json_t *render_balloon_status(struct daemon *d)
{
	json_t *vms = json_array();

	for (struct vm *vm = vmm_registry_first(d->registry); vms && vm; vm = vm->next) {
		const struct vm_snapshot *s = render_snapshot_of(d, vm);

		if (s)
			json_array_append_new(vms, render_vm(vm, s));
	}
	return json_pack("{s:o, s:o}", "host", render_host(d), "vms", vms);
}

json_t *render_admit(const struct admit_answer *answer)
{
	return json_pack("{s:b, s:b, s:f, s:s}", "granted", answer->granted, "later", answer->later, "short_mib",
			 (double)answer->short_bytes / MIB, "why", answer->why);
}
