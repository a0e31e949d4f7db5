/* bench/lib/policy_run: a made-up host is recorded while the policy drives it; the record gives the same decisions again,
 * and what it does not settle is estimated as it says. */
#include "bench/lib/policy_run.h"

#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB UINT64_C(1048576)
#define GIB (MIB * 1024)
#define VMS 3
#define TICKS 240

static const char settings[] = "[host]\nmin_free = 512MiB\n[balloon]\nstep = 5%\n";

/* ---- a host that is recorded ---- */

struct world {
	struct balloon_policy *policy;
	struct vm_snapshot vms[VMS];
	struct host_snapshot s;
	uint64_t used[VMS];
	char *lines[TICKS + 8];
	unsigned int line_count, not_done;
	bool unreliable; /* one VMM is not reached now and then */
};

static void line_add(struct world *w, json_t *root)
{
	unit_must(root && w->line_count < ARRAY_SIZE(w->lines), "line");
	w->lines[w->line_count] = json_dumps(root, JSON_COMPACT);
	unit_must(w->lines[w->line_count++], "json_dumps");
	json_decref(root);
}

static struct balloon_limits limits_5(void)
{
	return (struct balloon_limits){ .min_free_bytes = 512 * MIB, .idle_tax_percent = 75, .max_percent = 65,
					.step_percent = 5, .keep_percent = 20, .hold_ns = 10 * NSEC_PER_SEC,
					.stall_ns = 10 * NSEC_PER_SEC };
}

static void world_begin(struct world *w)
{
	static const char *const names[VMS] = { "web", "db", "idle" };
	const struct balloon_limits limits = limits_5();

	memset(w, 0, sizeof(*w));
	unit_must(balloon_policy_new(&limits, &w->policy) == 0, "policy");
	w->s.taken_ns = 50 * NSEC_PER_SEC;
	w->s.mem_total_bytes = 8 * GIB;
	w->s.vms = w->vms;
	w->s.vm_count = VMS;
	for (size_t i = 0; i < VMS; i++) {
		w->vms[i] = (struct vm_snapshot){ .name = names[i], .uuid = names[i], .domain = "x", .pid = (pid_t)(100 + i),
						  .start_ticks = 7, .running = true, .balloon_allowed = true,
						  .shares = 1000 };
		w->vms[i].balloon = (struct vm_balloon){ .driver = "qmp", .why = "", .device = BALLOON_DEVICE_PRESENT,
							 .max_bytes = 4 * GIB, .actual_bytes = 4 * GIB,
							 .stats = GUEST_STATS_GOOD };
		w->used[i] = GIB;
	}
}

static void world_end(struct world *w)
{
	balloon_policy_free(w->policy);
	for (unsigned int i = 0; i < w->line_count; i++)
		free(w->lines[i]);
}

/* Guests use more and less over time; what they used once stays resident until a balloon takes it. */
static void guests_go_on(struct world *w, unsigned int tick)
{
	uint64_t held = 0;

	w->used[0] = GIB + (tick / 60 % 2) * GIB;
	w->used[1] = GIB + (tick > 40 && tick < 150 ? 3 * GIB / 2 : 0);
	for (size_t i = 0; i < VMS; i++) {
		struct vm_snapshot *vm = &w->vms[i];
		struct vm_balloon *b = &vm->balloon;
		uint64_t grown = vm->ram_resident_bytes + 96 * MIB;

		vm->ram_resident_bytes = grown < b->actual_bytes ? grown : b->actual_bytes;
		vm->ram_resident_ns = b->told_ns = b->stats_ns = w->s.taken_ns;
		b->available_bytes = b->actual_bytes > w->used[i] ? b->actual_bytes - w->used[i] : 0;
		b->free_bytes = b->available_bytes / 2;
		held += vm->ram_resident_bytes;
	}
	w->s.mem_available_bytes = held + 256 * MIB < 8 * GIB ? 8 * GIB - 256 * MIB - held : 0;
}

/* What is decided is recorded, and carried out by the guests at once. */
static unsigned int world_decide(struct world *w)
{
	struct record_vm vms[VMS];
	struct balloon_plan plan;
	unsigned int targets = 0;
	struct record_decided decided = { .vms = vms, .vm_count = VMS };

	CU_ASSERT_EQUAL(balloon_policy_decide(w->policy, &w->s, &plan), 0);
	decided.state = host_state_name(plan.ladder->state);
	for (size_t i = 0; i < VMS; i++) {
		if (w->unreliable && i == 1 && plan.vms[i].target_bytes && w->line_count % 3 == 0)
			balloon_policy_not_done(w->policy, i);
		vms[i] = (struct record_vm){ plan.vms[i].target_bytes, plan.vms[i].not_done,
					     balloon_block_name(plan.vms[i].block), balloon_veto_name(plan.vms[i].veto),
					     plan.vms[i].why };
		w->not_done += plan.vms[i].not_done;
	}
	line_add(w, record_tick_json(&w->s, &decided));
	for (size_t i = 0; i < VMS; i++) {
		if (!plan.vms[i].target_bytes)
			continue;
		targets++;
		if (plan.vms[i].not_done)
			continue;
		w->vms[i].balloon.actual_bytes = plan.vms[i].target_bytes;
	}
	return targets;
}

static unsigned int world_run(struct world *w, unsigned int from, unsigned int to)
{
	unsigned int targets = 0;

	for (unsigned int tick = from; tick < to; tick++) {
		w->s.taken_ns += NSEC_PER_SEC;
		guests_go_on(w, tick);
		targets += world_decide(w);
	}
	return targets;
}

/* ---- replaying it ---- */

static char why[512];

static int run_line(struct policy_replay *r, const char *text, unsigned int number)
{
	struct record_line line;
	int result = record_line_parse(text, strlen(text), &line, why, sizeof(why));

	if (result < 0)
		return result;
	result = policy_replay_line(r, &line, number, why, sizeof(why));
	record_line_free(&line);
	return result;
}

static struct policy_replay *replay(const struct world *w, const char *const *policies, size_t count)
{
	struct policy_replay *r = NULL;

	unit_must(policy_replay_new(&r) == 0, "replay");
	for (size_t i = 0; i < count; i++) {
		struct config_error e;
		struct config c;

		unit_must(config_load_text("p", policies[i], strlen(policies[i]), &c, &e) == 0, "policy");
		CU_ASSERT_EQUAL(policy_replay_add(r, policies[i], &c), 0);
	}
	for (unsigned int i = 0; i < w->line_count; i++)
		UNIT_CASE(why, run_line(r, w->lines[i], i + 1) == 0);
	return r;
}

static void test_replay_same_settings_reproduce(void)
{
	struct policy_replay *r;
	unsigned int targets;
	uint64_t ticks = 0;
	struct world w;

	world_begin(&w);
	line_add(&w, record_header_json("0.1", settings));
	targets = world_run(&w, 0, TICKS);
	CU_ASSERT_TRUE(targets > 20); /* there is something to reproduce */
	r = replay(&w, (const char *const[]){ settings }, 1);
	for (size_t k = 0; k < r->run_count; k++) {
		UNIT_CASE(r->runs[k].differs, r->runs[k].differs_line == 0);
		CU_ASSERT_EQUAL(r->runs[k].targets, targets);
		CU_ASSERT_EQUAL(r->runs[k].taken_bytes, r->runs[0].taken_bytes);
		CU_ASSERT_EQUAL(r->runs[k].given_bytes, r->runs[0].given_bytes);
		CU_ASSERT_EQUAL(r->runs[k].vetoes, r->runs[0].vetoes);
		CU_ASSERT_EQUAL(r->runs[k].available_least_bytes, r->runs[0].available_least_bytes);
		CU_ASSERT_EQUAL(memcmp(r->runs[k].state_ticks, r->runs[0].state_ticks, sizeof(r->runs[0].state_ticks)), 0);
	}
	for (size_t i = 0; i < HOST_STATES; i++)
		ticks += r->runs[0].state_ticks[i];
	CU_ASSERT_EQUAL(ticks, TICKS);
	CU_ASSERT_TRUE(r->runs[0].taken_bytes > GIB && r->runs[0].given_bytes > 0);
	CU_ASSERT_EQUAL(r->runs[0].vms[0].wanted_bytes, w.vms[0].balloon.actual_bytes);
	CU_ASSERT_EQUAL(r->vm_count, VMS);
	CU_ASSERT_EQUAL(r->span_ns, (TICKS - 1) * NSEC_PER_SEC);
	policy_replay_free(r);
	world_end(&w);
}

/* What was not carried out was not asked: by the record's settings all is the same, and a policy file has it done. */
static void test_replay_not_done_reproduces(void)
{
	struct policy_replay *r;
	struct world w;

	world_begin(&w);
	w.unreliable = true;
	line_add(&w, record_header_json("0.1", settings));
	world_run(&w, 0, TICKS);
	CU_ASSERT_TRUE(w.not_done > 0);
	r = replay(&w, (const char *const[]){ settings }, 1);
	UNIT_CASE(r->runs[1].differs, r->runs[1].differs_line == 0);
	CU_ASSERT_EQUAL(r->runs[1].vms[1].wanted_bytes, w.vms[1].balloon.actual_bytes);
	CU_ASSERT_TRUE(r->runs[2].differs_line > 0);
	policy_replay_free(r);
	world_end(&w);
}

/* One target is not what the policy decides: that line is named, and what is wrong. */
static void test_replay_changed_record_is_noticed(void)
{
	struct policy_replay *r;
	struct world w;
	json_t *root, *vm;

	world_begin(&w);
	line_add(&w, record_header_json("0.1", settings));
	world_run(&w, 0, 30);
	root = json_loads(w.lines[20], 0, NULL);
	unit_must(root, w.lines[20]);
	vm = json_array_get(json_object_get(json_object_get(root, "decided"), "vms"), 2);
	json_object_set_new(vm, "target_bytes", json_integer(77 << 20));
	free(w.lines[20]);
	w.lines[20] = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	r = replay(&w, NULL, 0);
	CU_ASSERT_EQUAL(r->runs[1].differs_line, 21);
	UNIT_CASE(r->runs[1].differs, strstr(r->runs[1].differs, "idle: target "));
	UNIT_CASE(r->runs[1].differs, strstr(r->runs[1].differs, "recorded 77 MiB"));
	policy_replay_free(r);
	world_end(&w);
}

/* A daemon was restarted, then its settings changed, and a look failed in between. */
static void test_replay_restart_and_reload_reproduce(void)
{
	static const char settings_20[] = "[host]\nmin_free = 1GiB\n[balloon]\nstep = 20%\n";
	struct balloon_limits limits = limits_5();
	struct policy_replay *r;
	struct world w;

	world_begin(&w);
	line_add(&w, record_header_json("0.1", settings));
	world_run(&w, 0, 45);
	balloon_policy_free(w.policy);
	unit_must(balloon_policy_new(&limits, &w.policy) == 0, "policy");
	w.s.taken_ns = 3 * NSEC_PER_SEC; /* the host as well */
	line_add(&w, record_header_json("0.1", settings));
	world_run(&w, 45, 90);
	w.s.taken_ns += NSEC_PER_SEC;
	line_add(&w, record_tick_json(&w.s, NULL));
	limits.min_free_bytes = GIB;
	limits.step_percent = 20;
	balloon_policy_set_limits(w.policy, &limits);
	line_add(&w, record_settings_json(settings_20));
	world_run(&w, 90, 150);
	r = replay(&w, NULL, 0);
	UNIT_CASE(r->runs[1].differs, r->runs[1].differs_line == 0);
	CU_ASSERT_EQUAL(r->undecided, 1);
	CU_ASSERT_EQUAL(r->ticks, 151);
	CU_ASSERT_TRUE(r->runs[0].targets > 10);
	policy_replay_free(r);
	world_end(&w);
}

static void test_replay_other_policies_differ_as_they_should(void)
{
	static const char *const policies[] = {
		"[host]\nmin_free = 512MiB\n[balloon]\nstep = 5%\n[vm idle]\nballoon = off\n",
		"[host]\nmin_free = 512MiB\n[balloon]\nstep = 5%\n[vm db]\nreservation = 4GiB\n",
		"[host]\nmin_free = 2GiB\n",
		"[host]\nmin_free = 512MiB\n[balloon]\ncontrol = off\n",
	};
	struct policy_replay *r;
	struct world w;

	world_begin(&w);
	line_add(&w, record_header_json("0.1", settings));
	world_run(&w, 0, TICKS);
	r = replay(&w, policies, ARRAY_SIZE(policies));
	CU_ASSERT_EQUAL(r->runs[1].differs_line, 0);
	for (size_t k = 2; k < r->run_count; k++)
		UNIT_CASE(r->runs[k].name, r->runs[k].differs_line > 1 && *r->runs[k].differs);
	CU_ASSERT_TRUE(r->runs[0].vms[2].targets > 0);
	CU_ASSERT_EQUAL(r->runs[2].vms[2].targets, 0);
	CU_ASSERT_EQUAL(r->runs[2].vms[2].least_bytes, 4 * GIB);
	CU_ASSERT_TRUE(r->runs[0].vms[1].least_bytes < 4 * GIB);
	CU_ASSERT_EQUAL(r->runs[3].vms[1].least_bytes, 4 * GIB);
	/* Who wants more free takes more, and has more. */
	CU_ASSERT_TRUE(r->runs[4].available_least_bytes > r->runs[0].available_least_bytes ||
		       r->runs[4].taken_bytes > r->runs[0].taken_bytes);
	CU_ASSERT_TRUE(r->runs[4].vms[2].sum_bytes < r->runs[0].vms[2].sum_bytes);
	/* Nothing is carried out: every VM keeps its memory, and the host has less than it had. */
	for (size_t i = 0; i < VMS; i++)
		CU_ASSERT_EQUAL(r->runs[5].vms[i].least_bytes, 4 * GIB);
	CU_ASSERT_TRUE(r->runs[5].state_ticks[HOST_LOW] > r->runs[0].state_ticks[HOST_LOW]);
	policy_replay_free(r);
	world_end(&w);
}

#define HEADER "{\"memvirt_record\":1,\"version\":\"1\",\"settings\":\"\"}"
#define TICK(ns, vm) "{\"host\":{\"taken_ns\":" ns "},\"vms\":[" vm "]"

static const struct {
	const char *what, *first, *second, *why;
} broken[] = {
	{ "no header", TICK("1", "") "}", NULL, "no header before it" },
	{ "settings first", "{\"settings\":\"\"}", NULL, "no header before it" },
	{ "broken settings", "{\"memvirt_record\":1,\"version\":\"1\",\"settings\":\"[balloon]\\nstep = 0%\"}", NULL,
	  "its settings:2: step = 0%: out of bounds" },
	{ "time stands still", HEADER, TICK("0", "") "}", "time goes backwards" },
	{ "no shares", HEADER, TICK("1", "{\"name\":\"a\"}") "}", "figures that cannot be" },
	{ "too much memory", HEADER, TICK("1", "{\"shares\":1,\"balloon.actual_bytes\":-1}") "}", "figures that cannot be" },
	{ "an unknown state", HEADER, TICK("1", "") ",\"decided\":{\"state\":\"calm\",\"vms\":[]}}",
	  "no state is called \"calm\"" },
	{ "an unknown veto", HEADER,
	  TICK("1", "{\"shares\":1}") ",\"decided\":{\"state\":\"high\",\"vms\":[{\"veto\":\"no\"}]}}",
	  "what was decided for VM 0 is not understood" },
};

static void test_replay_broken_lines_are_named(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(broken); i++) {
		struct policy_replay *r = NULL;
		int result;

		unit_must(policy_replay_new(&r) == 0, "replay");
		result = run_line(r, broken[i].first, 1);
		if (broken[i].second) {
			UNIT_CASE(broken[i].what, result == 0);
			result = run_line(r, broken[i].second, 2);
		}
		UNIT_CASE(broken[i].what, result == -EBADMSG);
		UNIT_CASE(why, strstr(why, broken[i].why));
		UNIT_CASE(broken[i].what, r->ticks == 0);
		policy_replay_free(r);
	}
}

static void test_replay_too_many_policies_refused(void)
{
	struct policy_replay *r = NULL;
	struct config c;

	unit_must(policy_replay_new(&r) == 0, "replay");
	for (size_t i = 2; i < POLICY_RUNS_MAX; i++) {
		config_init(&c);
		CU_ASSERT_EQUAL(policy_replay_add(r, "p", &c), 0);
	}
	config_init(&c);
	CU_ASSERT_EQUAL(policy_replay_add(r, "p", &c), -E2BIG);
	config_free(&c);
	policy_replay_free(r);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "reproduce", test_replay_same_settings_reproduce },
		{ "not_done", test_replay_not_done_reproduces },
		{ "changed", test_replay_changed_record_is_noticed },
		{ "restart_reload", test_replay_restart_and_reload_reproduce },
		{ "others", test_replay_other_policies_differ_as_they_should },
		{ "broken", test_replay_broken_lines_are_named },
		{ "too_many", test_replay_too_many_policies_refused },
		CU_TEST_INFO_NULL,
	};

	return unit_main("policy_run", tests);
}
