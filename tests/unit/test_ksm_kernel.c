/* ksmd/ksm_kernel's control over the settings: taken, kept on disk, given back, never taken from others. */
#include "ksmd/ksm_kernel.h"

#include "core/log.h"
#include "tests/unit/ksm_tree.h"

static bool knobs_are(const char *run, const char *pages_to_scan, const char *sleep)
{
	return unit_file_is(dir, KSM "run", run) && unit_file_is(dir, KSM "pages_to_scan", pages_to_scan) &&
	       unit_file_is(dir, KSM "sleep_millisecs", sleep);
}

static bool changed(struct ksm_kernel *k)
{
	struct ksm_snapshot s;

	CU_ASSERT_EQUAL(ksm_kernel_read(k, &s), 0);
	return ksm_kernel_was_changed(k, &s);
}

/* ---- control ---- */

#define FOUND_TEXT "run 0\npages_to_scan 100\nsleep_millisecs 20\nadvisor_mode -\n"

/* What was found comes first in the file; what was written last stands behind it. */
static bool found_begins(const char *want)
{
	char path[PATH_MAX], text[512] = "";
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, FOUND);
	f = fopen(path, "re");
	if (!f)
		return false;
	text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
	fclose(f);
	return strncmp(text, want, strlen(want)) == 0;
}

static void test_ksm_kernel_set_then_restore_puts_back(void)
{
	struct ksm_kernel *k;

	tree_begin("0\n", "100\n", "20\n", false);
	k = kernel_new();
	CU_ASSERT_FALSE(ksm_kernel_is_controlled(k));
	CU_ASSERT_FALSE(changed(k));
	CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0); /* nothing to do */
	CU_ASSERT_TRUE(knobs_are("0\n", "100\n", "20\n"));
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), 0);
	CU_ASSERT_TRUE(knobs_are("1", "5000", "0"));
	CU_ASSERT_TRUE(found_begins(FOUND_TEXT));
	CU_ASSERT_TRUE(ksm_kernel_is_controlled(k));
	CU_ASSERT_FALSE(changed(k));
	CU_ASSERT_EQUAL(ksm_kernel_set(k, false, 4000, 10), 0);
	CU_ASSERT_TRUE(knobs_are("0", "4000", "10"));
	CU_ASSERT_TRUE(found_begins(FOUND_TEXT)); /* still what was found, not what was set */
	CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
	CU_ASSERT_TRUE(knobs_are("0", "100", "20"));
	CU_ASSERT_TRUE(unit_file_is(dir, FOUND, NULL));
	CU_ASSERT_FALSE(ksm_kernel_is_controlled(k));
	ksm_kernel_free(k);
	tree_end();
}

/* Without a place to keep what was found nothing may be changed. */
static void test_ksm_kernel_found_not_saved_changes_nothing(void)
{
	struct ksm_kernel *k;

	tree_begin("0\n", "100\n", "20\n", false);
	CU_ASSERT_EQUAL(ksm_kernel_new(&fs, "/run/missing", &k), 0);
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), -ENOENT);
	CU_ASSERT_TRUE(knobs_are("0\n", "100\n", "20\n"));
	CU_ASSERT_FALSE(ksm_kernel_is_controlled(k));
	ksm_kernel_free(k);
	k = kernel_new();
	knob("sleep_millisecs", "garbage\n"); /* nor when it cannot be read */
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), -EBADMSG);
	CU_ASSERT_TRUE(knobs_are("0\n", "100\n", "garbage\n"));
	CU_ASSERT_TRUE(unit_file_is(dir, FOUND, NULL));
	ksm_kernel_free(k);
	tree_end();
}

static void test_ksm_kernel_unmerge_found_never_written(void)
{
	struct unit_stderr capture;
	auto_free char *text = NULL;
	struct ksm_kernel *k;

	tree_begin("2\n", "100\n", "20\n", false);
	k = kernel_new();
	log_set_level(LOG_LEVEL_DEBUG);
	unit_stderr_begin(&capture);
	CU_ASSERT_EQUAL(ksm_kernel_set(k, false, 5000, 0), 0);
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), 0);
	CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
	text = unit_stderr_end(&capture);
	log_set_level(LOG_LEVEL_INFO);
	CU_ASSERT_TRUE(knobs_are("0", "100", "20"));
	CU_ASSERT_PTR_NULL(strstr(text, "ksm/run: \"2"));
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "ksm/run: \"1"));
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "restoring 0"));
	ksm_kernel_free(k);

	unit_file(dir, FOUND, "run 2\npages_to_scan 7\nsleep_millisecs 8\n"); /* nor from an earlier daemon */
	k = kernel_new();
	CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
	CU_ASSERT_TRUE(knobs_are("0", "7", "8"));
	ksm_kernel_free(k);
	tree_end();
}

static void test_ksm_kernel_write_order_is_safe(void)
{
	struct unit_stderr capture;
	struct ksm_kernel *k;

	tree_begin("0\n", "100\n", "20\n", false);
	k = kernel_new();
	log_set_level(LOG_LEVEL_DEBUG);
	for (int run = 0; run < 2; run++) {
		auto_free char *text = NULL;
		const char *at_run, *at_rate;

		unit_stderr_begin(&capture);
		CU_ASSERT_EQUAL(ksm_kernel_set(k, run, 5000, 0), 0);
		text = unit_stderr_end(&capture);
		at_run = strstr(text, "ksm/run: ");
		at_rate = strstr(text, "ksm/sleep_millisecs: ");
		CU_ASSERT_TRUE(at_run && at_rate && (run ? at_run > at_rate : at_run < at_rate));
	}
	log_set_level(LOG_LEVEL_INFO);
	ksm_kernel_free(k);
	tree_end();
}

static void test_ksm_kernel_advisor_off_and_back(void)
{
	struct ksm_kernel *k;

	tree_begin("1\n", "100\n", "20\n", false);
	knob("advisor_mode", "none [scan-time]\n");
	k = kernel_new();
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), 0);
	CU_ASSERT_TRUE(unit_file_is(dir, KSM "advisor_mode", "none"));
	CU_ASSERT_TRUE(found_begins(
				    "run 1\npages_to_scan 100\nsleep_millisecs 20\nadvisor_mode scan-time\n"));
	CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
	CU_ASSERT_TRUE(unit_file_is(dir, KSM "advisor_mode", "scan-time"));
	CU_ASSERT_TRUE(knobs_are("1", "100", "20"));
	ksm_kernel_free(k);
	tree_end();
}

static void test_ksm_kernel_smart_scan_off_and_back(void)
{
	static const struct {
		const char *found, *merging, *after; /* NULL: this kernel has no such file */
	} cases[] = { { "1\n", "0", "1" }, { "0\n", "0\n", "0" }, { NULL, NULL, NULL } };

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct ksm_kernel *k;

		tree_begin("0\n", "100\n", "20\n", false);
		if (cases[i].found)
			knob("smart_scan", cases[i].found);
		k = kernel_new();
		CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), 0);
		CU_ASSERT_TRUE(unit_file_is(dir, KSM "smart_scan", cases[i].merging));
		ksm_kernel_free(k); /* killed: the next one puts it back */
		k = kernel_new();
		CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
		CU_ASSERT_TRUE(unit_file_is(dir, KSM "smart_scan", cases[i].after));
		ksm_kernel_free(k);
		tree_end();
	}
}

/* ---- killed daemons ---- */

static void test_ksm_kernel_predecessor_killed_restored(void)
{
	struct ksm_kernel *k;

	tree_begin("0\n", "100\n", "20\n", false);
	k = kernel_new();
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), 0);
	ksm_kernel_free(k); /* restores nothing, as a kill would not */
	CU_ASSERT_TRUE(knobs_are("1", "5000", "0"));
	k = kernel_new();
	CU_ASSERT_TRUE(ksm_kernel_is_controlled(k));
	CU_ASSERT_FALSE(changed(k)); /* it wrote nothing itself */
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 6000, 1), 0);
	CU_ASSERT_TRUE(found_begins(FOUND_TEXT)); /* not what the predecessor had set */
	ksm_kernel_free(k);
	k = kernel_new();
	CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
	CU_ASSERT_TRUE(knobs_are("0", "100", "20"));
	CU_ASSERT_TRUE(unit_file_is(dir, FOUND, NULL));
	ksm_kernel_free(k);
	tree_end();
}

static void test_ksm_kernel_state_file_table_gives_expected(void)
{
	static const struct {
		const char *what, *text;
		bool controlled;
		const char *advisor; /* after restoring */
	} cases[] = {
		{ "whole", "run 0\npages_to_scan 7\nsleep_millisecs 8\nadvisor_mode none\n", true, "none" },
		{ "advisor", "run 0\npages_to_scan 7\nsleep_millisecs 8\nadvisor_mode scan-time\n", true, "scan-time" },
		{ "no advisor", "run 0\npages_to_scan 7\nsleep_millisecs 8\nadvisor_mode -\n", true, "[none] scan-time" },
		{ "other advisor", "run 0\npages_to_scan 7\nsleep_millisecs 8\nadvisor_mode evil\n", true,
		  "[none] scan-time" },
		{ "long advisor", "run 0\npages_to_scan 7\nsleep_millisecs 8\nadvisor_mode nonenonenonenonenonenone\n", true,
		  "[none] scan-time" },
		{ "empty", "", false, NULL },
		{ "garbage", "\x01\xff\n\n", false, NULL },
		{ "cut short", "run 0\npages_to_scan 7\nsleep_mil", false, NULL },
		{ "cut in a key", "run 0\npages_to_scan", false, NULL },
		{ "negative", "run -1\npages_to_scan 7\nsleep_millisecs 8\n", false, NULL },
		{ "too large a number", "run 0\npages_to_scan 99999999999999999999\nsleep_millisecs 8\n", false, NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct unit_stderr capture;
		struct ksm_kernel *k;
		char *text;

		tree_begin("1\n", "100\n", "20\n", false);
		knob("advisor_mode", "[none] scan-time");
		unit_file(dir, FOUND, cases[i].text);
		unit_stderr_begin(&capture);
		k = kernel_new();
		UNIT_CASE(cases[i].what, ksm_kernel_is_controlled(k) == cases[i].controlled);
		CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
		text = unit_stderr_end(&capture);
		UNIT_CASE(cases[i].what, strstr(text, cases[i].controlled ? "will restore" : "not readable"));
		UNIT_CASE(cases[i].what, cases[i].controlled ? knobs_are("0", "7", "8") : knobs_are("1\n", "100\n", "20\n"));
		if (cases[i].advisor)
			UNIT_CASE(cases[i].what, unit_file_is(dir, KSM "advisor_mode", cases[i].advisor));
		free(text);
		ksm_kernel_free(k);
		tree_end();
	}
}

static void test_ksm_kernel_state_file_huge_ignored(void)
{
	char huge[5000];
	struct ksm_kernel *k;
	struct unit_stderr capture;

	tree_begin("0\n", "100\n", "20\n", false);
	memset(huge, '1', sizeof(huge));
	unit_file_bytes(dir, FOUND, huge, sizeof(huge));
	unit_stderr_begin(&capture);
	k = kernel_new();
	free(unit_stderr_end(&capture));
	CU_ASSERT_FALSE(ksm_kernel_is_controlled(k));
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), 0); /* and replaced by what is found now */
	CU_ASSERT_TRUE(found_begins(FOUND_TEXT));
	ksm_kernel_free(k);
	tree_end();
}

/* ---- somebody else ---- */

static void test_ksm_kernel_foreign_change_detected_and_left(void)
{
	static const struct {
		const char *name, *value;
	} cases[] = { { "run", "0\n" }, { "run", "2\n" }, { "pages_to_scan", "1250\n" }, { "sleep_millisecs", "10\n" } };

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char path[64];
		struct ksm_kernel *k;

		snprintf(path, sizeof(path), KSM "%s", cases[i].name);
		tree_begin("0\n", "100\n", "20\n", false);
		k = kernel_new();
		CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), 0);
		CU_ASSERT_FALSE(changed(k));
		knob(cases[i].name, cases[i].value);
		UNIT_CASE(cases[i].name, changed(k));
		CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0); /* at the end: hands off */
		UNIT_CASE(cases[i].name, unit_file_is(dir, path, cases[i].value));
		CU_ASSERT_TRUE(unit_file_is(dir, FOUND, NULL));
		CU_ASSERT_FALSE(ksm_kernel_is_controlled(k));
		ksm_kernel_free(k);
		tree_end();
	}
}

static void test_ksm_kernel_yield_then_set_finds_anew(void)
{
	struct ksm_kernel *k;

	tree_begin("0\n", "100\n", "20\n", false);
	k = kernel_new();
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), 0);
	knob("pages_to_scan", "1250");
	ksm_kernel_yield(k);
	CU_ASSERT_FALSE(ksm_kernel_is_controlled(k));
	CU_ASSERT_FALSE(changed(k));
	CU_ASSERT_TRUE(unit_file_is(dir, FOUND, NULL));
	CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
	CU_ASSERT_TRUE(knobs_are("0", "1250", "20"));
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 7000, 5), 0);
	CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
	CU_ASSERT_TRUE(knobs_are("0", "1250", "20"));
	ksm_kernel_free(k);
	tree_end();
}

static void test_ksm_kernel_dry_run_writes_nothing(void)
{
	struct unit_stderr capture;
	auto_free char *text = NULL;
	struct ksm_kernel *k;

	tree_begin("0\n", "100\n", "20\n", true);
	knob("advisor_mode", "none [scan-time]\n");
	k = kernel_new();
	log_set_level(LOG_LEVEL_DEBUG);
	unit_stderr_begin(&capture);
	CU_ASSERT_EQUAL(ksm_kernel_set(k, true, 5000, 0), 0);
	CU_ASSERT_FALSE(changed(k));
	CU_ASSERT_EQUAL(ksm_kernel_restore(k), 0);
	text = unit_stderr_end(&capture);
	log_set_level(LOG_LEVEL_INFO);
	CU_ASSERT_TRUE(knobs_are("0\n", "100\n", "20\n"));
	CU_ASSERT_TRUE(unit_file_is(dir, KSM "advisor_mode", "none [scan-time]\n"));
	CU_ASSERT_TRUE(unit_file_is(dir, FOUND, NULL));
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "ksm/pages_to_scan: \"5000\" (dry run, not done)"));
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "ksm/run: \"1\" (dry run, not done)"));
	ksm_kernel_free(k);
	tree_end();
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "set_restore", test_ksm_kernel_set_then_restore_puts_back },
		{ "not_saved", test_ksm_kernel_found_not_saved_changes_nothing },
		{ "unmerge", test_ksm_kernel_unmerge_found_never_written },
		{ "write_order", test_ksm_kernel_write_order_is_safe },
		{ "advisor", test_ksm_kernel_advisor_off_and_back },
		{ "smart_scan", test_ksm_kernel_smart_scan_off_and_back },
		{ "predecessor", test_ksm_kernel_predecessor_killed_restored },
		{ "state_file", test_ksm_kernel_state_file_table_gives_expected },
		{ "state_file_huge", test_ksm_kernel_state_file_huge_ignored },
		{ "foreign", test_ksm_kernel_foreign_change_detected_and_left },
		{ "yield", test_ksm_kernel_yield_then_set_finds_anew },
		{ "dry_run", test_ksm_kernel_dry_run_writes_nothing },
		CU_TEST_INFO_NULL,
	};

	return unit_main("ksm_kernel", tests);
}
