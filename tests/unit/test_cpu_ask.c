/* ept/cpu_ask against a fake VMM: real answers, strange ones, none. */
#include "ept/cpu_ask.h"

#include "tests/unit/fake_qmp.h"
#include "tests/unit/unit.h"

#define PATIENT_MS 600000

#define CPUS                                                                                       \
	"[{\"cpu-index\": 1, \"qom-path\": \"/machine/unattached/device[2]\", \"thread-id\": 9}," \
	" {\"cpu-index\": 0, \"qom-path\": \"/machine/unattached/device[0]\"}]"
#define REGISTERS(cr3) "\"CR0=80050033 CR2=00 CR3=" cr3 " CR4=000006f0\\r\\nEFER=0000000000000d01\\r\\n\""
#define ERROR(text) "{\"error\": {\"class\": \"GenericError\", \"desc\": \"" text "\"}}\r\n"

static unsigned ready, answers;

static struct {
	int result;
	struct walk_regs regs;
	char why[256];
} got;

static void on_ready(struct qmp *q, void *userdata)
{
	(void)q;
	(void)userdata;
	ready++;
}

static void on_event(struct qmp *q, const char *name, const json_t *data, void *userdata)
{
	(void)q;
	(void)name;
	(void)data;
	(void)userdata;
}

static void on_ended(struct qmp *q, enum qmp_end end, const char *why, void *userdata)
{
	(void)q;
	(void)end;
	(void)why;
	(void)userdata;
}

static const struct qmp_ops ops = { .ready = on_ready, .event = on_event, .ended = on_ended };

static void on_answer(int result, const struct walk_regs *regs, const char *why, void *userdata)
{
	CU_ASSERT_PTR_EQUAL(userdata, &got);
	CU_ASSERT_EQUAL(result == 0, regs != NULL);
	got.result = result;
	got.regs = regs ? *regs : (struct walk_regs){ 0 };
	snprintf(got.why, sizeof(got.why), "%s", why);
	answers++;
}

static const struct ask_case {
	const char *what;
	struct fake_rule cpus, property, registers;
	unsigned cpu;
	bool low_ram;
	int want;
	const char *why;
	uint64_t cr3;
	unsigned phys_bits;
	bool flags; /* pse36 and gib_pages */
} cases[] = {
	{ .what = "real", .cpus.value = CPUS, .property.value = "46", .registers.value = REGISTERS("0000000003a1c000"), .cpu = 1,
	  .cr3 = 0x3a1c000, .phys_bits = 46, .flags = true },
	{ .what = "properties off", .cpus.value = CPUS, .property.value = "false",
	  .registers.value = REGISTERS("0000000003a1c000"), .cr3 = 0x3a1c000, .phys_bits = 52, .flags = false },
	{ .what = "properties unknown", .cpus.value = CPUS, .property.raw = ERROR("no such"),
	  .registers.value = REGISTERS("0000000003a1c000"), .cr3 = 0x3a1c000, .phys_bits = 52, .flags = true },
	{ .what = "a width that cannot be", .cpus.value = CPUS, .property.value = "4000000000",
	  .registers.value = REGISTERS("0000000003a1c000"), .cr3 = 0x3a1c000, .phys_bits = 52, .flags = true },
	{ .what = "no such CPU", .cpus.value = CPUS, .cpu = 2, .want = -ENOENT,
	  .why = "there is no CPU 2; the VM has 2, counted from 0" },
	{ .what = "no CPUs", .cpus.value = "[]", .want = -ENOENT, .why = "there is no CPU 0; the VM has 0, counted from 0" },
	{ .what = "odd CPUs", .cpus.value = "{\"cpu-index\": 0}", .want = -ENOENT },
	{ .what = "CPU without a path", .cpus.value = "[{\"cpu-index\": 0, \"qom-path\": 7}]", .want = -ENOENT },
	{ .what = "CPUs refused", .cpus.raw = ERROR("not now"), .want = -EREMOTEIO, .why = "QMP refuses query-cpus-fast: not now" },
	{ .what = "registers refused", .cpus.value = CPUS, .property.value = "46", .registers.raw = ERROR("no \\u00e4"),
	  .want = -EREMOTEIO, .why = "QMP refuses info registers: no ä" },
	{ .what = "registers of an Arm", .cpus.value = CPUS, .property.value = "46", .registers.value = "\"PC=0 X00=0\"",
	  .want = -EBADMSG },
	{ .what = "registers are no text", .cpus.value = CPUS, .property.value = "46", .registers.value = "7", .want = -EBADMSG },
	{ .what = "half of CR3", .cpus.value = CPUS, .property.value = "46", .registers.value = REGISTERS("03a1c000"),
	  .want = -ENODATA },
	{ .what = "half of CR3 is enough", .cpus.value = CPUS, .property.value = "46", .registers.value = REGISTERS("03a1c000"),
	  .low_ram = true, .cr3 = 0x3a1c000, .phys_bits = 46, .flags = true },
	{ .what = "closed at once", .cpus = { .close = true, .raw = "\r\n" }, .want = -ECONNRESET },
	{ .what = "closed at a property", .cpus.value = CPUS, .property = { .close = true, .raw = "\r\n" }, .want = -ECONNRESET },
	{ .what = "closed at the registers", .cpus.value = CPUS, .property.value = "46",
	  .registers = { .close = true, .raw = "\r\n" }, .want = -ECONNRESET },
};

/* With a connection to a VMM that has these rules. */
static struct qmp *start(sd_event **loop, struct fake *fake, const struct fake_rule *rules, size_t count, const char *dir)
{
	struct qmp *q;

	ready = answers = 0;
	unit_must(sd_event_new(loop) >= 0, "sd_event_new");
	*fake = (struct fake){ .greeting = FAKE_GREETING, .rules = rules, .rule_count = count };
	fake_start(fake, *loop, dir, "s");
	unit_must(qmp_connect(*loop, fake->path, PATIENT_MS, &ops, NULL, &q) == 0, "qmp_connect");
	unit_must(fake_run_until(*loop, &ready, 1), "ready");
	return q;
}

static void test_ask_table_gives_expected(void)
{
	char dir[UNIT_DIR_MAX];

	unit_dir_new(dir);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct ask_case *c = &cases[i];
		struct fake_rule rules[] = { { .command = "qmp_capabilities", .value = "{}" }, c->cpus, c->property, c->registers };
		struct cpu_ask *ask;
		struct fake fake;
		sd_event *loop;
		struct qmp *q;

		rules[1].command = "query-cpus-fast";
		rules[2].command = "qom-get";
		rules[3].command = "human-monitor-command";
		q = start(&loop, &fake, rules, ARRAY_SIZE(rules), dir);
		UNIT_CASE(c->what, cpu_ask_start(q, c->cpu, c->low_ram, on_answer, &got, &ask) == 0);
		UNIT_CASE(c->what, answers == 0);
		UNIT_CASE(c->what, fake_run_until(loop, &answers, 1));
		UNIT_CASE(c->what, got.result == c->want);
		UNIT_CASE(c->what, !c->why || strcmp(got.why, c->why) == 0);
		UNIT_CASE(c->what, (c->want == 0) == (got.why[0] == '\0'));
		if (c->want == 0)
			UNIT_CASE(c->what, got.regs.cr3 == c->cr3 && got.regs.cr0 == 0x80050033 && got.regs.cr4 == 0x6f0 &&
						   got.regs.efer == 0xd01 && got.regs.phys_bits == c->phys_bits &&
						   got.regs.pse36 == c->flags && got.regs.gib_pages == c->flags);
		qmp_free(q);
		fake_stop(&fake);
		sd_event_unref(loop);
	}
	unit_dir_remove(dir);
}

/* The connection is dropped by its owner: no answer comes, and nothing is left (as the sanitizer sees). */
static void test_ask_connection_freed_no_answer(void)
{
	static const struct fake_rule rules[] = { { .command = "qmp_capabilities", .value = "{}" }, { .command = NULL } };
	char dir[UNIT_DIR_MAX];
	struct cpu_ask *ask;
	struct fake fake;
	sd_event *loop;
	struct qmp *q;

	unit_dir_new(dir);
	q = start(&loop, &fake, rules, ARRAY_SIZE(rules), dir);
	CU_ASSERT_EQUAL(cpu_ask_start(q, 0, false, on_answer, &got, &ask), 0);
	while (fake.commands < 2)
		sd_event_run(loop, 100000);
	qmp_free(q);
	ask = cpu_ask_free(ask);
	CU_ASSERT_PTR_NULL(ask);
	CU_ASSERT_EQUAL(answers, 0);
	fake_stop(&fake);
	sd_event_unref(loop);
	unit_dir_remove(dir);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "ask table", test_ask_table_gives_expected },
		{ "ask freed", test_ask_connection_freed_no_answer },
		CU_TEST_INFO_NULL,
	};

	signal(SIGPIPE, SIG_IGN);
	return unit_main("cpu_ask", tests);
}
