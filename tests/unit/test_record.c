/* core/record: a tick goes out and comes back the same, and what is broken is refused with its reason. */
#include "core/record.h"

#include "tests/unit/unit.h"

static char why[256];

/* Every member that is recorded has a value of its own. */
static struct vm_snapshot full_vm(void)
{
	struct vm_snapshot vm;
	uint64_t n = UINT64_C(1) << 62;

	memset(&vm, 0, sizeof(vm)); /* the padding, too: it is compared */
	vm.name = "web \"1\"\n";
	vm.uuid = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0";
	vm.domain = "=7-9";
	vm.pid = INT_MAX;
	vm.pidfd = -1;
	vm.start_ticks = ++n;
	vm.merge_allowed = vm.mem_merge = vm.mem_lock = vm.migrating = vm.running = vm.balloon_allowed = true;
	vm.engine = MERGE_ENGINE_OFF;
	vm.ram_bytes = ++n;
	vm.found_ns = ++n;
	vm.reservation_bytes = ++n;
	vm.limit_bytes = ++n;
	vm.shares = ++n;
	vm.balloon.driver = "qmp";
	vm.balloon.why = "a reason";
	vm.balloon.device = BALLOON_DEVICE_PRESENT;
	vm.balloon.max_bytes = ++n;
	vm.balloon.actual_bytes = ++n;
	vm.balloon.told_ns = ++n;
	vm.balloon.resets = ++n;
	vm.balloon.stats = GUEST_STATS_GOOD;
	vm.balloon.stats_ns = ++n;
	vm.balloon.total_bytes = BALLOON_UNTOLD;
	vm.balloon.free_bytes = BALLOON_UNTOLD - 1;
	vm.balloon.available_bytes = UINT64_C(1) << 63;
	vm.balloon.cache_bytes = INT64_MAX;
	vm.balloon.swap_in_bytes = ++n;
	vm.balloon.swap_out_bytes = ++n;
	vm.balloon.major_faults = ++n;
	vm.balloon.oom_kills = ++n;
	vm.ram_resident_bytes = ++n;
	vm.ram_resident_ns = ++n;
	vm.pressure.known = true;
	vm.pressure.some_us = ++n;
	vm.pressure.full_us = ++n;
	vm.ksm_mergeable = true;
	vm.ksm_merging_pages = ++n;
	vm.rss_anon_bytes = ++n;
	vm.rss_shmem_bytes = ++n;
	return vm;
}

static struct vm_snapshot empty_vm(void)
{
	struct vm_snapshot vm;

	memset(&vm, 0, sizeof(vm));
	vm.name = vm.uuid = vm.domain = vm.balloon.why = "";
	vm.pidfd = -1;
	return vm;
}

static struct host_snapshot full_host(void)
{
	struct host_snapshot s;
	uint64_t n = 100;

	memset(&s, 0, sizeof(s));
	s.taken_ns = ++n;
	s.mem_total_bytes = ++n;
	s.mem_available_bytes = ++n;
	s.swap_total_bytes = ++n;
	s.swap_free_bytes = ++n;
	s.pressure.known = true;
	s.pressure.some_us = ++n;
	s.pressure.full_us = ++n;
	s.ksm.present = true;
	s.ksm.run = ++n;
	s.ksm.pages_to_scan = ++n;
	s.ksm.sleep_ms = ++n;
	s.ksm.pages_shared = ++n;
	s.ksm.pages_sharing = ++n;
	s.ksm.zero_pages = ++n;
	s.ksm.pages_scanned = ++n;
	s.ksm.full_scans = ++n;
	s.ksm.cow_pages = ++n;
	s.ksm.cpu_ns = ++n;
	s.cow_debt_bytes = ++n;
	s.admitted_bytes = ++n;
	return s;
}

static int parse(const char *text, struct record_line *line)
{
	why[0] = '\0';
	return record_line_parse(text, strlen(text), line, why, sizeof(why));
}

/* Its texts are compared here, the rest as memory. */
static void check_vm(const char *what, struct vm_snapshot got, const struct vm_snapshot *want)
{
	UNIT_CASE(what, strcmp(got.name, want->name) == 0 && strcmp(got.uuid, want->uuid) == 0);
	UNIT_CASE(what, strcmp(got.domain, want->domain) == 0 && strcmp(got.balloon.why, want->balloon.why) == 0);
	UNIT_CASE(what, !got.balloon.driver == !want->balloon.driver);
	if (got.balloon.driver && want->balloon.driver)
		UNIT_CASE(what, strcmp(got.balloon.driver, want->balloon.driver) == 0);
	got.name = want->name;
	got.uuid = want->uuid;
	got.domain = want->domain;
	got.balloon.why = want->balloon.why;
	got.balloon.driver = want->balloon.driver;
	UNIT_CASE(what, memcmp(&got, want, sizeof(got)) == 0);
}

static void test_record_tick_comes_back_the_same(void)
{
	struct vm_snapshot vms[] = { full_vm(), empty_vm() };
	const struct record_vm decided_vms[] = { { 1u << 30, true, "", "guest swaps in", "give \"back\"" },
						 { 0, false, "paused", "", "" } };
	const struct record_decided decided = { "soft", decided_vms, 2 };
	struct host_snapshot s = full_host();
	struct record_line line = { 0 };
	auto_free char *text = NULL, *again = NULL;
	json_t *root;

	s.vms = vms;
	s.vm_count = ARRAY_SIZE(vms);
	root = record_tick_json(&s, &decided);
	text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	unit_must(text, "json_dumps");
	CU_ASSERT_PTR_NULL(strchr(text, '\n')); /* whatever its name: one line */
	CU_ASSERT_EQUAL(parse(text, &line), 0);
	unit_must(line.root && line.snapshot.vm_count == 2 && line.decided.vm_count == 2, why);
	CU_ASSERT_EQUAL(line.kind, RECORD_TICK);
	check_vm("full", line.snapshot.vms[0], &vms[0]);
	check_vm("empty", line.snapshot.vms[1], &vms[1]);
	CU_ASSERT_TRUE(line.has_decided);
	CU_ASSERT_STRING_EQUAL(line.decided.state, "soft");
	CU_ASSERT_EQUAL(line.decided.vms[0].target_bytes, 1u << 30);
	CU_ASSERT_TRUE(line.decided.vms[0].not_done && !line.decided.vms[1].not_done);
	CU_ASSERT_STRING_EQUAL(line.decided.vms[0].veto, "guest swaps in");
	CU_ASSERT_STRING_EQUAL(line.decided.vms[0].why, "give \"back\"");
	CU_ASSERT_STRING_EQUAL(line.decided.vms[1].block, "paused");
	root = record_tick_json(&line.snapshot, &line.decided);
	again = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	CU_ASSERT_STRING_EQUAL(text, again);
	s.vms = line.snapshot.vms;
	CU_ASSERT_EQUAL(memcmp(&s, &line.snapshot, sizeof(s)), 0);
	record_line_free(&line);
	CU_ASSERT_PTR_NULL(line.root);
}

static void test_record_undecided_tick_says_so(void)
{
	struct host_snapshot s = full_host();
	struct record_line line = { 0 };
	json_t *root = record_tick_json(&s, NULL);
	auto_free char *text = json_dumps(root, JSON_COMPACT);

	json_decref(root);
	CU_ASSERT_EQUAL(parse(text, &line), 0);
	CU_ASSERT_FALSE(line.has_decided);
	CU_ASSERT_EQUAL(line.snapshot.vm_count, 0);
	record_line_free(&line);
}

static void test_record_header_and_settings_come_back(void)
{
	static const char settings[] = "[balloon]\nstep = 5%\n";
	json_t *roots[] = { record_header_json("0.1", settings), record_settings_json(settings) };

	for (size_t i = 0; i < ARRAY_SIZE(roots); i++) {
		auto_free char *text = json_dumps(roots[i], JSON_COMPACT);
		struct record_line line = { 0 };

		json_decref(roots[i]);
		CU_ASSERT_EQUAL(strncmp(text, RECORD_BEGIN, strlen(RECORD_BEGIN)) == 0, i == 0);
		CU_ASSERT_EQUAL(parse(text, &line), 0);
		CU_ASSERT_EQUAL(line.kind, i == 0 ? RECORD_HEADER : RECORD_SETTINGS);
		CU_ASSERT_STRING_EQUAL(line.settings, settings);
		if (i == 0)
			CU_ASSERT_STRING_EQUAL(line.version, "0.1");
		record_line_free(&line);
	}
}

#define HOST "{\"host\":{},\"vms\":"

static const struct {
	const char *what, *text, *why; /* why NULL: taken */
} texts[] = {
	{ "least", HOST "[]}", NULL },
	{ "keys of a later version", "{\"host\":{\"new\":1},\"vms\":[{\"x\":[]}],\"more\":2}", NULL },
	{ "empty", "", "not whole, or no JSON" },
	{ "garbage", "\x01\xff{", "not whole, or no JSON" },
	{ "cut short", HOST "[{\"name\":\"a\"}", "not whole, or no JSON" },
	{ "more behind it", HOST "[]}x", "not whole, or no JSON" },
	{ "a number", "7", "not whole, or no JSON" },
	{ "a list", "[]", "an object was expected" },
	{ "nothing in it", "{}", "an object was expected" },
	{ "a key twice", "{\"host\":{\"taken_ns\":1,\"taken_ns\":2},\"vms\":[]}", "not whole, or no JSON" },
	{ "a NUL in a name", HOST "[{\"name\":\"a\\u0000b\"}]}", "not whole, or no JSON" },
	{ "text for a number", "{\"host\":{\"taken_ns\":\"1\"},\"vms\":[]}", "\"taken_ns\" is of the wrong type" },
	{ "a fraction", "{\"host\":{\"taken_ns\":1.5},\"vms\":[]}", "\"taken_ns\" is of the wrong type" },
	{ "beyond 64 bits", "{\"host\":{\"taken_ns\":99999999999999999999},\"vms\":[]}", "not whole, or no JSON" },
	{ "a number for a name", HOST "[{\"name\":1}]}", "\"name\" is of the wrong type" },
	{ "a number for a truth", HOST "[{\"running\":1}]}", "\"running\" is of the wrong type" },
	{ "an unknown engine", HOST "[{\"engine\":5}]}", "\"engine\" is of the wrong type or out of bounds" },
	{ "a negative choice", HOST "[{\"balloon.stats\":-1}]}", "\"balloon.stats\" is of the wrong type or out of" },
	{ "a pid too large", HOST "[{\"pid\":2147483648}]}", "\"pid\" is of the wrong type or out of bounds" },
	{ "a VM that is none", HOST "[7]}", "an object was expected" },
	{ "VMs that are none", HOST "{}}", "\"vms\" is no list" },
	{ "no VMs", "{\"host\":{}}", "\"vms\" is no list" },
	{ "decided for others", HOST "[],\"decided\":{\"state\":\"high\",\"vms\":[{}]}}", "not as many VMs as the tick" },
	{ "decided without a state", HOST "[],\"decided\":{\"vms\":[]}}", "\"decided\" has no state" },
	{ "decided nonsense", HOST "[{}],\"decided\":{\"state\":\"high\",\"vms\":[{\"veto\":3}]}}",
	  "what was decided for VM 0 is not understood" },
	{ "decided a text", HOST "[{}],\"decided\":{\"state\":\"high\",\"vms\":[{\"target_bytes\":\"3\"}]}}",
	  "what was decided for VM 0 is not understood" },
	{ "another version", "{\"memvirt_record\":2,\"version\":\"9\",\"settings\":\"\"}", "a record of another version" },
	{ "a header without settings", "{\"memvirt_record\":1,\"version\":\"9\"}", "a header without version or settings" },
	{ "settings that are none", "{\"settings\":3}", "an object was expected" },
};

static void test_record_texts_give_expected(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		struct record_line line = { .settings = "kept" };
		int r = parse(texts[i].text, &line);

		UNIT_CASE(texts[i].what, r == (texts[i].why ? -EBADMSG : 0));
		if (r < 0)
			UNIT_CASE(texts[i].what, strstr(why, texts[i].why) && strcmp(line.settings, "kept") == 0);
		else
			record_line_free(&line);
	}
}

static void test_record_too_much_refused(void)
{
	size_t len = RECORD_LINE_MAX_BYTES + 1;
	char *text = malloc(len), *vms = calloc(1, 4097 * 3 + 64), *at = vms;
	struct record_line line;

	unit_must(text && vms, "malloc");
	memset(text, ' ', len);
	why[0] = '\0';
	CU_ASSERT_EQUAL(record_line_parse(text, len, &line, why, sizeof(why)), -EBADMSG);
	CU_ASSERT_PTR_NOT_NULL(strstr(why, "longer than 8388608 bytes"));
	at = stpcpy(at, HOST "[{}");
	for (int i = 0; i < 4096; i++)
		at = stpcpy(at, ",{}");
	stpcpy(at, "]}");
	CU_ASSERT_EQUAL(parse(vms, &line), -EBADMSG);
	CU_ASSERT_PTR_NOT_NULL(strstr(why, "no list of at most 4096"));
	free(text);
	free(vms);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "tick", test_record_tick_comes_back_the_same },
		{ "undecided", test_record_undecided_tick_says_so },
		{ "header", test_record_header_and_settings_come_back },
		{ "texts", test_record_texts_give_expected },
		{ "too_much", test_record_too_much_refused },
		CU_TEST_INFO_NULL,
	};

	return unit_main("record", tests);
}
