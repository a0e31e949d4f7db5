/* core/config: values, sections, files, rules, adoption, and the printed forms. */
#include "core/config.h"

#include <stddef.h>

#include "core/log.h"
#include "tests/unit/unit.h"

#define GIB (UINT64_C(1) << 30)

static int load(const char *text, struct config *c, struct config_error *e)
{
	memset(e, 0, sizeof(*e));
	return config_load_text("test.conf", text, strlen(text), c, e);
}

static int try_load(const char *text, struct config_error *e)
{
	struct config c;
	int r = load(text, &c, e);

	if (r == 0)
		config_free(&c);
	return r;
}

/* ---- values ---- */

#define OUT_OF "out of bounds; expected "
#define K(section, name, field) section, name, offsetof(struct config, field)

static const struct value_case {
	const char *section, *name;
	size_t offset;
	const char *text;
	bool ok;
	uint64_t want;
	const char *error; /* part of the message */
} value_cases[] = {
	/* number */
	{ K("scan", "workers", scan_workers), "0", true, 0, NULL },
	{ K("scan", "workers", scan_workers), "256", true, 256, NULL },
	{ K("scan", "workers", scan_workers), "257", false, 0, OUT_OF "0 to 256" },
	{ K("scan", "workers", scan_workers), "-1", false, 0, "expected a whole number" },
	{ K("scan", "workers", scan_workers), "+1", false, 0, "expected a whole number" },
	{ K("scan", "workers", scan_workers), "", false, 0, "expected a whole number" },
	{ K("scan", "workers", scan_workers), "0x10", false, 0, "bad unit \"x10\"" },
	{ K("scan", "workers", scan_workers), "1 %", false, 0, "bad unit \"%\"" },
	{ K("scan", "workers", scan_workers), "99999999999999999999", false, 0, "expected a whole number" },
	{ K("scan", "rest_permille", scan_rest_permille), "0", false, 0, OUT_OF "1 to 1000" },
	{ K("scan", "rest_permille", scan_rest_permille), "1000", true, 1000, NULL },
	/* percent */
	{ K("merge", "cpu_percent", merge_cpu_percent), "1", true, 1, NULL },
	{ K("merge", "cpu_percent", merge_cpu_percent), "25600%", true, 25600, NULL },
	{ K("merge", "cpu_percent", merge_cpu_percent), "7 %", true, 7, NULL },
	{ K("merge", "cpu_percent", merge_cpu_percent), "0%", false, 0, OUT_OF "1 to 25600" },
	{ K("merge", "cpu_percent", merge_cpu_percent), "25601", false, 0, OUT_OF "1 to 25600" },
	{ K("merge", "cpu_percent", merge_cpu_percent), "half", false, 0, "expected a percentage" },
	{ K("merge", "cpu_percent", merge_cpu_percent), "20 percent", false, 0, "expected a percentage" },
	/* duration */
	{ K("merge", "target", merge_target_ms), "1000ms", true, 1000, NULL },
	{ K("merge", "target", merge_target_ms), "999ms", false, 0, OUT_OF "1000 to 3600000 ms" },
	{ K("merge", "target", merge_target_ms), "90 s", true, 90000, NULL },
	{ K("merge", "target", merge_target_ms), "5min", true, 300000, NULL },
	{ K("merge", "target", merge_target_ms), "1h", true, 3600000, NULL },
	{ K("merge", "target", merge_target_ms), "61min", false, 0, OUT_OF },
	{ K("merge", "target", merge_target_ms), "5124095576030432h", false, 0, OUT_OF }, /* times an hour: wraps */
	{ K("merge", "target", merge_target_ms), "30", false, 0, "bad unit \"\"; expected a number with a unit of ms" },
	{ K("merge", "target", merge_target_ms), "30S", false, 0, "bad unit \"S\"" },
	{ K("merge", "target", merge_target_ms), "1.5s", false, 0, "bad unit \".5s\"" },
	/* size */
	{ K("merge", "min_gain", merge_min_gain_bytes), "0", true, 0, NULL },
	{ K("merge", "min_gain", merge_min_gain_bytes), "0MiB", true, 0, NULL },
	{ K("merge", "min_gain", merge_min_gain_bytes), "1KiB", true, 1024, NULL },
	{ K("merge", "min_gain", merge_min_gain_bytes), "3 MiB", true, 3 << 20, NULL },
	{ K("merge", "min_gain", merge_min_gain_bytes), "1024GiB", true, 1024 * GIB, NULL },
	{ K("merge", "min_gain", merge_min_gain_bytes), "1025GiB", false, 0, OUT_OF },
	{ K("merge", "min_gain", merge_min_gain_bytes), "17179869184GiB", false, 0, OUT_OF }, /* 2^64 bytes */
	{ K("merge", "min_gain", merge_min_gain_bytes), "64", false, 0, "expected a number with a unit of KiB" },
	{ K("merge", "min_gain", merge_min_gain_bytes), "64MB", false, 0, "bad unit \"MB\"" },
	{ K("merge", "min_gain", merge_min_gain_bytes), "64M", false, 0, "bad unit \"M\"" },
	/* choice */
	{ K("merge", "engine", merge_engine), "auto", true, MERGE_ENGINE_AUTO, NULL },
	{ K("merge", "engine", merge_engine), "kernel", true, MERGE_ENGINE_KERNEL, NULL },
	{ K("merge", "engine", merge_engine), "off", true, MERGE_ENGINE_OFF, NULL },
	{ K("merge", "engine", merge_engine), "OFF", false, 0, "expected one of: auto remap hinted kernel off" },
	{ K("merge", "engine", merge_engine), "", false, 0, "expected one of: auto remap hinted kernel off" },
	{ K("daemon", "log_level", log_level), "debug", true, LOG_LEVEL_DEBUG, NULL },
};

static void test_config_value_table_gives_expected(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(value_cases); i++) {
		const struct value_case *v = &value_cases[i];
		struct config_error e;
		struct config c;
		char text[160], what[64];
		int r;

		snprintf(text, sizeof(text), "[%s]\n%s = %s\n", v->section, v->name, v->text);
		snprintf(what, sizeof(what), "%s = %s", v->name, v->text);
		r = load(text, &c, &e);
		UNIT_CASE(what, r == (v->ok ? 0 : -EINVAL));
		if (r < 0) {
			UNIT_CASE(what, !v->ok && strncmp(e.text, "test.conf:2: ", 13) == 0);
			UNIT_CASE(what, v->error && strstr(e.text, v->error));
			continue;
		}
		UNIT_CASE(what, memcmp((char *)&c + v->offset, &v->want, sizeof(v->want)) == 0);
		config_free(&c);
	}
}

static void test_config_bool_words_read(void)
{
	static const struct {
		const char *text;
		int want; /* -1: refused */
	} cases[] = { { "on", 1 }, { "yes", 1 }, { "TRUE", 1 }, { "off", 0 }, { "No", 0 },
		      { "false", 0 }, { "1", -1 }, { "", -1 }, { "onn", -1 } };

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct config_error e;
		struct config_vm vm;
		struct config c;
		char text[64];
		int r;

		snprintf(text, sizeof(text), "[vm a]\nmerge = %s\n", cases[i].text);
		r = load(text, &c, &e);
		UNIT_CASE(cases[i].text, (r == 0) == (cases[i].want >= 0));
		if (r < 0) {
			UNIT_CASE(cases[i].text, strstr(e.text, "test.conf:2: ") && strstr(e.text, "expected on or off"));
			continue;
		}
		config_for_vm(&c, "a", &vm);
		UNIT_CASE(cases[i].text, vm.merge == cases[i].want);
		config_free(&c);
	}
}

/* ---- sections and lines ---- */

static void test_config_text_table_gives_expected(void)
{
	static const struct {
		const char *what, *text, *error; /* error NULL: loads */
	} cases[] = {
		{ "empty", "", NULL },
		{ "blank and comments", "\n  \n# a\n; b\n  # c\n", NULL },
		{ "no newline at the end", "[daemon]\ntick = 2s", NULL },
		{ "CRLF", "[daemon]\r\ntick = 2s\r\n", NULL },
		{ "byte order mark", "\xef\xbb\xbf[daemon]\ntick = 2s\n", NULL },
		{ "colon, comment behind a value", "[daemon]\ntick: 2s ; why\n", NULL },
		{ "indented", "  [daemon]\n\ttick = 2s\n\t log_level = debug\n", NULL },
		{ "section twice", "[daemon]\ntick = 2s\n[scan]\nworkers = 1\n[daemon]\nlog_level = debug\n", NULL },
		{ "unknown key", "[daemon]\ntock = 2s\n", "test.conf:2: unknown key \"tock\" in section [daemon]" },
		{ "key of another section", "[scan]\ntick = 2s\n", "test.conf:2: unknown key \"tick\" in section [scan]" },
		{ "unknown section", "\n[deamon]\ntick = 2s\n", "test.conf:2: unknown section [deamon]; expected [daemon]" },
		{ "unknown section without keys", "\n[deamon]\n", "test.conf:2: unknown section [deamon]" },
		{ "unknown section between", "[deamon]\n[scan]\nworkers = 1\n", "test.conf:1: unknown section [deamon]" },
		{ "vm without a pattern", "[vm]\nmerge = on\n", "section [vm] has no name pattern" },
		{ "vm with a blank pattern", "[vm ]\nmerge = on\n", "section [vm" },
		{ "duplicate key", "[daemon]\ntick = 2s\n\ntick = 3s\n", "test.conf:4: key \"tick\" given twice" },
		{ "duplicate key, section twice", "[daemon]\ntick = 2s\n[daemon]\ntick = 2s\n",
		  "test.conf:4: key \"tick\" given twice" },
		{ "duplicate key in a rule", "[vm a]\nmerge = on\nmerge = off\n", "test.conf:3: key \"merge\" given twice" },
		{ "key before any section", "tick = 2s\n", "test.conf:1: a key before the first [section]" },
		{ "empty section name", "[]\ntick = 2s\n", "test.conf:1: unknown section []" },
		{ "no value", "[daemon]\ntick\n", "test.conf:2: neither a [section], nor key = value" },
		{ "section cut short", "[daemon\ntick = 2s\n", "test.conf:1: section name has no closing bracket" },
		{ "prose", "[daemon]\nplease be quick\n", "test.conf:2: neither" },
		{ "indented section is a section", "[vm a]\ndomain = x\n [vm b]\n merge = off\n", NULL },
		{ "indented key is a key", "[vm a]\ndomain = x\n  merge = maybe\n", "test.conf:3: merge = maybe: expected on" },
		{ "first error wins", "[daemon]\ntick = 1\nlog_level = loud\n", "test.conf:2: tick = 1: bad unit" },
		{ "relative socket", "[daemon]\ncontrol_socket = run/x\n", "control_socket: expected an absolute path" },
		{ "empty state_dir", "[daemon]\nstate_dir =\n", "state_dir: expected an absolute path" },
		{ "limit below reservation", "[vm a]\nreservation = 2GiB\nlimit = 1GiB\n",
		  "test.conf:3: limit is less than reservation in section [vm a]" },
		{ "reservation above limit", "[vm a]\nlimit = 1GiB\nshares = 7\nreservation = 1048577KiB\n",
		  "test.conf:4: limit is less than reservation in section [vm a]" },
		{ "limit as large as reservation", "[vm a]\nlimit = 1GiB\nreservation = 1GiB\n", NULL },
		{ "no limit", "[vm a]\nlimit = 0\nreservation = 1GiB\n", NULL },
		{ "limit below another section's reservation",
		  "[vm *]\nreservation = 2GiB\n[vm a]\nlimit = 1GiB\n", NULL },
		{ "relative cgroup", "[host]\ncgroup = machine.slice\n", "cgroup: expected a path as in /proc/PID/cgroup" },
		{ "cgroup", "[host]\ncgroup = /machine.slice\n", NULL },
		{ "scan faster than the tick", "[daemon]\ntick = 10s\n[scan]\ninterval = 9s\n[vmm]\ndiscover = 10s\n",
		  "test.conf: [scan] interval is shorter than [daemon] tick" },
		{ "discover faster than the tick", "[daemon]\ntick = 6s\n",
		  "test.conf: [vmm] discover is shorter than [daemon] tick" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct config_error e;
		int r = try_load(cases[i].text, &e);

		UNIT_CASE(cases[i].what, r == (cases[i].error ? -EINVAL : 0));
		if (cases[i].error)
			UNIT_CASE(cases[i].what, strstr(e.text, cases[i].error));
		if (cases[i].error && !strstr(e.text, cases[i].error))
			printf("    got \"%s\"\n", e.text);
	}
}

/* Lines, sections, values and files of just the longest length and one more. */
static void test_config_lengths_at_limit_taken_beyond_refused(void)
{
	char text[1024], fill[512];
	struct config_error e;

	memset(fill, 'a', sizeof(fill));
	for (int len = 197; len <= 199; len++) {
		snprintf(text, sizeof(text), "[daemon]\n#%.*s\n", len - 1, fill);
		CU_ASSERT_EQUAL(try_load(text, &e), len <= 198 ? 0 : -EINVAL);
		CU_ASSERT_TRUE(len <= 198 || strstr(e.text, "test.conf:2: line is longer than 198 bytes or holds a NUL"));
	}
	for (int len = 46; len <= 49; len++) {
		snprintf(text, sizeof(text), "[vm %.*s]\nmerge = on\n", len - 3, fill);
		CU_ASSERT_EQUAL(try_load(text, &e), len <= 47 ? 0 : -EINVAL);
		CU_ASSERT_TRUE(len <= 47 || strstr(e.text, "test.conf:1: section name is longer than 47 bytes"));
	}
	for (int len = 107; len <= 108; len++) {
		snprintf(text, sizeof(text), "[daemon]\ncontrol_socket = /%.*s\n", len - 1, fill);
		CU_ASSERT_EQUAL(try_load(text, &e), len == 107 ? 0 : -EINVAL);
	}
}

static void test_config_binary_text_refused(void)
{
	static const char nul_first[] = "[daemon]\n\0tick = 2s\n", nul_inside[] = "[daemon]\ntick\0 = 2s\n";
	char garbage[4096];
	uint64_t state = 1;
	struct config_error e;
	struct config c;

	CU_ASSERT_EQUAL(config_load_text("t", nul_first, sizeof(nul_first) - 1, &c, &e), -EINVAL);
	CU_ASSERT_EQUAL(config_load_text("t", nul_inside, sizeof(nul_inside) - 1, &c, &e), -EINVAL);
	for (int round = 0; round < 20; round++) {
		for (size_t i = 0; i < sizeof(garbage); i++)
			garbage[i] = (char)unit_random(&state);
		CU_ASSERT_EQUAL(config_load_text("t", garbage, sizeof(garbage), &c, &e), -EINVAL);
	}
}

/* ---- rules ---- */

static void test_config_rules_later_match_wins(void)
{
	static const char text[] = "[vm *]\nmerge = off\ndomain = all\n"
				   "[vm web-*]\nmerge = on\n"
				   "[vm web-1]\ndomain = one\nqmp = /run/web 1.qmp\n"
				   "[vm web-*]\ndomain = web\n"
				   "[vm my guest]\nmerge = yes\n"
				   "[vm db[0-9]]\ndomain = db\n";
	static const struct {
		const char *name, *domain, *qmp;
		bool merge;
	} cases[] = {
		{ "x", "all", "", false },	    { "web-1", "web", "/run/web 1.qmp", true },
		{ "web-2", "web", "", true },	    { "web-", "web", "", true },
		{ "my guest", "all", "", true },    { "", "all", "", false },
		{ "db[0-9]", "all", "", false },
	};
	struct config_error e;
	struct config c;

	if (load(text, &c, &e) < 0) {
		CU_FAIL("rules do not load");
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct config_vm vm;

		config_for_vm(&c, cases[i].name, &vm);
		UNIT_CASE(cases[i].name, strcmp(vm.domain, cases[i].domain) == 0);
		UNIT_CASE(cases[i].name, strcmp(vm.qmp, cases[i].qmp) == 0);
		UNIT_CASE(cases[i].name, vm.merge == cases[i].merge);
	}
	config_free(&c);
}

static void test_config_reservation_max_names_its_section(void)
{
	struct config_error e;
	struct config c;
	const char *glob = "untouched";

	config_init(&c);
	CU_ASSERT_EQUAL(config_reservation_max(&c, &glob), 0);
	CU_ASSERT_STRING_EQUAL(glob, "untouched");
	if (load("[vm *]\nreservation = 2GiB\n[vm big-*]\nreservation = 6GiB\n[vm x]\nreservation = 1GiB\n", &c, &e) < 0) {
		CU_FAIL("does not load");
		return;
	}
	CU_ASSERT_EQUAL(config_reservation_max(&c, &glob), 6 * GIB);
	CU_ASSERT_STRING_EQUAL(glob, "big-*");
	config_free(&c);
}

static void test_config_no_rules_gives_defaults(void)
{
	struct config_vm vm;
	struct config c;

	config_init(&c);
	config_for_vm(&c, "any", &vm);
	CU_ASSERT_STRING_EQUAL(vm.domain, "");
	CU_ASSERT_STRING_EQUAL(vm.qmp, "");
	CU_ASSERT_TRUE(vm.merge);
	CU_ASSERT_EQUAL(c.tick_ms, 1000);
	CU_ASSERT_EQUAL(c.merge_engine, MERGE_ENGINE_AUTO);
	config_free(&c);
}

static void test_config_rules_too_many_refused(void)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);
	struct config_error e;

	for (int i = 0; f && i < 4097; i++)
		fputs("[vm a]\nmerge = on\n", f);
	fclose(f);
	CU_ASSERT_EQUAL(try_load(text, &e), -EINVAL);
	CU_ASSERT_PTR_NOT_NULL(strstr(e.text, "more than 4096 [vm] sections"));
	free(text);
}

/* ---- adoption ---- */

static void test_config_adopt_takes_reloadable_names_rest(void)
{
	char skipped[256], tiny[8];
	struct config mine, fresh, again;
	struct config_error e;
	struct config_vm vm;

	if (load("[vm old]\nmerge = off\n", &mine, &e) < 0 ||
	    load("[daemon]\ncontrol_socket = /x\nstate_dir = /y\ntick = 3s\n[merge]\nmin_gain = 1GiB\nengine = off\n"
		 "[vm new]\nmerge = off\n",
		 &fresh, &e) < 0) {
		CU_FAIL("does not load");
		return;
	}
	config_adopt(&mine, &fresh, skipped, sizeof(skipped));
	CU_ASSERT_STRING_EQUAL(skipped, "daemon.control_socket daemon.state_dir");
	CU_ASSERT_STRING_EQUAL(mine.control_socket, "/run/memvirt/control");
	CU_ASSERT_STRING_EQUAL(mine.state_dir, "/run/memvirt");
	CU_ASSERT_EQUAL(mine.tick_ms, 3000);
	CU_ASSERT_EQUAL(mine.merge_min_gain_bytes, GIB);
	CU_ASSERT_EQUAL(mine.merge_engine, MERGE_ENGINE_OFF);
	config_for_vm(&mine, "old", &vm);
	CU_ASSERT_TRUE(vm.merge);
	config_for_vm(&mine, "new", &vm);
	CU_ASSERT_FALSE(vm.merge);
	CU_ASSERT_PTR_NULL(fresh.rules);
	config_free(&fresh);

	config_init(&again); /* back to defaults: nothing that needs a restart differs now */
	config_adopt(&mine, &again, skipped, sizeof(skipped));
	CU_ASSERT_STRING_EQUAL(skipped, "");
	CU_ASSERT_EQUAL(mine.tick_ms, 1000);
	if (load("[daemon]\ncontrol_socket = /x\nstate_dir = /y\n", &fresh, &e) == 0) {
		config_adopt(&mine, &fresh, tiny, sizeof(tiny)); /* no room: cut, not overrun */
		CU_ASSERT_STRING_EQUAL(tiny, "daemon.");
		config_free(&fresh);
	}
	config_free(&mine);
}

/* ---- files ---- */

static char dir[UNIT_DIR_MAX];

static int load_dir(const char *file, const char *policy, struct config *c, struct config_error *e)
{
	char file_path[PATH_MAX], policy_path[PATH_MAX];

	memset(e, 0, sizeof(*e));
	snprintf(file_path, sizeof(file_path), "%s/%s", dir, file ? file : "");
	snprintf(policy_path, sizeof(policy_path), "%s/%s", dir, policy ? policy : "");
	return config_load(file ? file_path : NULL, policy ? policy_path : NULL, c, e);
}

static void test_config_policy_dir_read_in_name_order(void)
{
	struct config_error e;
	struct config_vm vm;
	struct config c;

	unit_dir_new(dir);
	unit_file(dir, "memvirt.conf", "[daemon]\ntick = 2s\n[vm a]\ndomain = main\n");
	unit_file(dir, "policy.d/20-b.conf", "[daemon]\ntick = 5s\n[vm a]\ndomain = b\n");
	unit_file(dir, "policy.d/10-a.conf", "[daemon]\ntick = 4s\n[scan]\nworkers = 3\n[vm a]\nmerge = off\n");
	unit_file(dir, "policy.d/30-c.conf.off", "garbage that is not read\n");
	CU_ASSERT_EQUAL(load_dir("memvirt.conf", "policy.d", &c, &e), 0);
	CU_ASSERT_EQUAL(c.tick_ms, 5000);
	CU_ASSERT_EQUAL(c.scan_workers, 3);
	config_for_vm(&c, "a", &vm);
	CU_ASSERT_STRING_EQUAL(vm.domain, "b");
	CU_ASSERT_FALSE(vm.merge);
	config_free(&c);
	CU_ASSERT_EQUAL(load_dir(NULL, "policy.d", &c, &e), 0);
	config_free(&c);
	CU_ASSERT_EQUAL(load_dir("memvirt.conf", "missing.d", &c, &e), 0);
	CU_ASSERT_EQUAL(c.tick_ms, 2000);
	config_free(&c);
	unit_dir_remove(dir);
}

static void test_config_bad_file_leaves_target_untouched(void)
{
	struct config_error e;
	struct config c, before;

	unit_dir_new(dir);
	unit_file(dir, "memvirt.conf", "[daemon]\ntick = 2s\n[vm a]\nmerge = off\n");
	unit_file(dir, "policy.d/10-good.conf", "[scan]\nworkers = 3\n");
	unit_file(dir, "policy.d/20-bad.conf", "[scan]\n\nworkers = many\n");
	memset(&before, 0x5a, sizeof(before));
	memcpy(&c, &before, sizeof(c));
	CU_ASSERT_EQUAL(load_dir("memvirt.conf", "policy.d", &c, &e), -EINVAL);
	CU_ASSERT_PTR_NOT_NULL(strstr(e.text, "policy.d/20-bad.conf:3: workers = many: expected a whole number"));
	CU_ASSERT_EQUAL(memcmp(&c, &before, sizeof(c)), 0);
	CU_ASSERT_EQUAL(load_dir("missing.conf", NULL, &c, &e), -ENOENT);
	CU_ASSERT_PTR_NOT_NULL(strstr(e.text, "missing.conf: No such file"));
	CU_ASSERT_TRUE(load_dir("policy.d", NULL, &c, &e) < 0); /* a folder */
	CU_ASSERT_PTR_NOT_NULL(strstr(e.text, "policy.d"));
	unit_file(dir, "slow.conf", "[daemon]\ntick = 50s\n"); /* a contradiction of two files */
	CU_ASSERT_EQUAL(load_dir("slow.conf", NULL, &c, &e), -EINVAL);
	CU_ASSERT_EQUAL(memcmp(&c, &before, sizeof(c)), 0);
	unit_dir_remove(dir);
}

/* ---- printed forms ---- */

static char *printed(void (*print)(FILE *))
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	unit_must(f, "open_memstream");
	print(f);
	fclose(f);
	return text;
}

/* Takes the '#' off the lines that set something or begin a section. */
static void uncomment(char *text)
{
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (*line == '#' && line[1] != ' ' && line[1] != '\n' && line[1] != '\0')
			*line = ' ';
	}
}

static void test_config_printed_file_loads_to_defaults(void)
{
	auto_free char *text = printed(config_print_file);
	struct config c, defaults;
	struct config_error e;
	struct config_vm vm;

	config_init(&defaults);
	CU_ASSERT_EQUAL(load(text, &c, &e), 0);
	CU_ASSERT_EQUAL(memcmp(&c, &defaults, sizeof(c)), 0);
	config_free(&c);
	uncomment(text);
	CU_ASSERT_EQUAL(load(text, &c, &e), 0);
	CU_ASSERT_EQUAL(c.rule_count, 1);
	config_for_vm(&c, "web-1", &vm);
	CU_ASSERT_TRUE(vm.merge && !*vm.domain && !*vm.qmp);
	config_free(&c);
	CU_ASSERT_EQUAL(memcmp(&c, &defaults, sizeof(c)), 0);
	config_free(&defaults);
}

static void test_config_printed_file_is_the_shipped_one(void)
{
	auto_free char *text = printed(config_print_file);
	auto_free char *shipped = unit_file_text("conf", "memvirt.conf");

	if (!shipped)
		UNIT_SKIP("conf/memvirt.conf is not there");
	CU_ASSERT_STRING_EQUAL(text, shipped);
}

/* Values of every type, and one in each unit. */
static void test_config_printed_section_loads_to_the_same(void)
{
	static const char *const sections[] = { "daemon", "vmm", "host", "balloon", "scan", "merge" };
	static const char text[] = "[daemon]\ntick = 1500ms\nlog_level = debug\n[vmm]\ndiscover = 1h\nlibvirt =\n"
				   "[host]\nmin_free = 3145729KiB\ncgroup = /machine.slice\n[balloon]\ncontrol = off\n"
				   "step = 7%\nhold = 90s\n[scan]\nworkers = 5\n[merge]\nengine = hinted\nmin_gain = 3GiB\n";
	struct config_error e;
	struct config c, again;
	char *out = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&out, &len);

	CU_ASSERT_EQUAL(load(text, &c, &e), 0);
	unit_must(f, "open_memstream");
	for (size_t i = 0; i < ARRAY_SIZE(sections); i++)
		config_print_section(f, &c, sections[i]);
	fclose(f);
	CU_ASSERT_PTR_NOT_NULL(strstr(out, "min_free = 3145729KiB\n"));
	CU_ASSERT_PTR_NOT_NULL(strstr(out, "hold = 90s\n"));
	CU_ASSERT_PTR_NOT_NULL(strstr(out, "min_gain = 3GiB\n"));
	CU_ASSERT_EQUAL(load(out, &again, &e), 0);
	CU_ASSERT_EQUAL(memcmp(&c, &again, sizeof(c)), 0);
	free(out);
	config_free(&c);
	config_free(&again);
}

static void test_config_help_and_man_name_every_key(void)
{
	auto_free char *help = printed(config_print_help);
	auto_free char *man = printed(config_print_man);

	for (size_t i = 0; i < ARRAY_SIZE(value_cases); i++) {
		UNIT_CASE(value_cases[i].name, strstr(help, value_cases[i].name));
		UNIT_CASE(value_cases[i].name, strstr(man, value_cases[i].name));
	}
	CU_ASSERT_PTR_NOT_NULL(strstr(help, "needs a restart"));
	CU_ASSERT_PTR_NOT_NULL(strstr(help, "auto | remap | hinted | kernel | off"));
	CU_ASSERT_STRING_EQUAL(config_engine_name(MERGE_ENGINE_KERNEL), "kernel");
	CU_ASSERT_STRING_EQUAL(config_engine_name(99), "?");
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "value_table", test_config_value_table_gives_expected },
		{ "bool_words", test_config_bool_words_read },
		{ "text_table", test_config_text_table_gives_expected },
		{ "lengths", test_config_lengths_at_limit_taken_beyond_refused },
		{ "binary", test_config_binary_text_refused },
		{ "rules_order", test_config_rules_later_match_wins },
		{ "rules_none", test_config_no_rules_gives_defaults },
		{ "reservation_max", test_config_reservation_max_names_its_section },
		{ "rules_many", test_config_rules_too_many_refused },
		{ "adopt", test_config_adopt_takes_reloadable_names_rest },
		{ "policy_dir", test_config_policy_dir_read_in_name_order },
		{ "bad_file", test_config_bad_file_leaves_target_untouched },
		{ "printed_loads", test_config_printed_file_loads_to_defaults },
		{ "printed_shipped", test_config_printed_file_is_the_shipped_one },
		{ "printed_section", test_config_printed_section_loads_to_the_same },
		{ "help_man", test_config_help_and_man_name_every_key },
		CU_TEST_INFO_NULL,
	};

	return unit_main("config", tests);
}
