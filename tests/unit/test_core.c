/* core/fsio on a tree of its own, and core/log by what arrives on standard error. */
#include "core/fsio.h"

#include "core/log.h"
#include "tests/unit/unit.h"

static char dir[UNIT_DIR_MAX];
static struct fsio fs;

static void tree_begin(bool dry_run)
{
	unit_dir_new(dir);
	unit_must(fsio_open_root(dir, dry_run, &fs) == 0, dir);
}

static void tree_end(void)
{
	fsio_close(&fs);
	unit_dir_remove(dir);
}

/* ---- fsio ---- */

static void test_fsio_root_bad_refused(void)
{
	struct fsio none = { .root_fd = -5 };

	CU_ASSERT_EQUAL(fsio_open_root("/nonexistent/x", false, &none), -ENOENT);
	CU_ASSERT_EQUAL(fsio_open_root("/proc/self/status", false, &none), -ENOTDIR);
	CU_ASSERT_EQUAL(none.root_fd, -5);
}

static void test_fsio_paths_stay_below_root(void)
{
	char text[16], long_name[PATH_MAX + 8];
	uint64_t value;
	DIR *root;

	tree_begin(false);
	unit_file(dir, "a/b", "7\n");
	CU_ASSERT_EQUAL(fsio_read_u64(&fs, &value, "a/b"), 0);
	CU_ASSERT_EQUAL(fsio_read_u64(&fs, &value, "/a/b"), 0);
	CU_ASSERT_EQUAL(fsio_read_u64(&fs, &value, "///%s/%c", "a", 'b'), 0);
	CU_ASSERT_EQUAL(value, 7);
	memset(long_name, 'x', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = '\0';
	CU_ASSERT_EQUAL(fsio_read(&fs, text, sizeof(text), "%s", long_name), -ENAMETOOLONG);
	CU_ASSERT_EQUAL(fsio_write(&fs, "", "%s", long_name), -ENAMETOOLONG);
	CU_ASSERT_EQUAL(fsio_replace(&fs, "", "%s", long_name), -ENAMETOOLONG);
	root = fsio_opendir(&fs, "/");
	CU_ASSERT_PTR_NOT_NULL(root);
	if (root)
		closedir(root);
	errno = 0;
	CU_ASSERT_PTR_NULL(fsio_opendir(&fs, "a/b"));
	CU_ASSERT_EQUAL(errno, ENOTDIR);
	tree_end();
}

static void test_fsio_read_bounds_kept(void)
{
	char text[9], *all = NULL, big[10000];

	tree_begin(false);
	unit_file(dir, "empty", "");
	unit_file(dir, "seven", "1234567");
	unit_file(dir, "eight", "12345678");
	unit_file(dir, "nine", "123456789");
	CU_ASSERT_EQUAL(fsio_read(&fs, text, sizeof(text), "missing"), -ENOENT);
	CU_ASSERT_EQUAL(fsio_read(&fs, text, sizeof(text), "."), -EISDIR);
	CU_ASSERT_EQUAL(fsio_read(&fs, text, sizeof(text), "empty"), 0);
	CU_ASSERT_STRING_EQUAL(text, "");
	CU_ASSERT_EQUAL(fsio_read(&fs, text, sizeof(text), "eight"), 8);
	CU_ASSERT_STRING_EQUAL(text, "12345678");
	CU_ASSERT_EQUAL(fsio_read(&fs, text, sizeof(text), "nine"), -EFBIG);

	CU_ASSERT_EQUAL(fsio_read_alloc(&fs, 7, &all, "eight"), -EFBIG);
	CU_ASSERT_PTR_NULL(all);
	CU_ASSERT_EQUAL(fsio_read_alloc(&fs, 7, &all, "seven"), 7);
	CU_ASSERT_STRING_EQUAL(all, "1234567");
	free(all);
	CU_ASSERT_EQUAL(fsio_read_alloc(&fs, 7, &all, "empty"), 0);
	CU_ASSERT_STRING_EQUAL(all, "");
	free(all);
	memset(big, 'y', sizeof(big));
	for (size_t len = 4094; len <= 8194; len += len == 4098 ? 4092 : 1) { /* around the buffer's sizes */
		unit_file_bytes(dir, "big", big, len);
		CU_ASSERT_EQUAL(fsio_read_alloc(&fs, sizeof(big), &all, "big"), (ssize_t)len);
		CU_ASSERT_EQUAL(strlen(all), len);
		free(all);
	}
	all = NULL;
	CU_ASSERT_EQUAL(fsio_read_alloc(&fs, 1 << 20, &all, "missing"), -ENOENT);
	CU_ASSERT_PTR_NULL(all);
	tree_end();
}

static void test_fsio_read_u64_table_gives_expected(void)
{
	static const struct {
		const char *text;
		int want;
		uint64_t value;
	} cases[] = {
		{ "0", 0, 0 },
		{ "0\n", 0, 0 },
		{ "42\n", 0, 42 },
		{ "18446744073709551615\n", 0, UINT64_MAX },
		{ "18446744073709551616\n", -EBADMSG, 0 },
		{ "00000000000000000000000000000000000001", -EBADMSG, 0 },
		{ "", -EBADMSG, 0 },
		{ "\n", -EBADMSG, 0 },
		{ "-1\n", -EBADMSG, 0 },
		{ "+1\n", -EBADMSG, 0 },
		{ " 1\n", -EBADMSG, 0 },
		{ "1\n\n", -EBADMSG, 0 },
		{ "1 2\n", -EBADMSG, 0 },
		{ "0x10\n", -EBADMSG, 0 },
		{ "max\n", -EBADMSG, 0 },
	};

	tree_begin(false);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t value = 77;

		unit_file(dir, "n", cases[i].text);
		UNIT_CASE(cases[i].text, fsio_read_u64(&fs, &value, "n") == cases[i].want);
		UNIT_CASE(cases[i].text, value == (cases[i].want ? 77 : cases[i].value));
	}
	tree_end();
}

static void test_fsio_field_table_gives_expected(void)
{
	static const char status[] = "Name:\tVmRSS: 1\nVmRSSx:\t5 kB\nRss 6\nVmRSS:\t  123 kB\nRssAnon:\t7 kB\n"
				     "Neg:\t-4\nWord:\tx\nHuge:\t99999999999999999999\nEmpty:\nLast:\t9";
	static const struct {
		const char *key;
		int want;
		uint64_t value;
	} cases[] = {
		{ "VmRSS", 0, 123 },	 { "RssAnon", 0, 7 },	  { "Rss", 0, 6 },	    { "Last", 0, 9 },
		{ "Vm", -ENOENT, 0 },	 { "Missing", -ENOENT, 0 }, { "Neg", -EBADMSG, 0 }, { "Word", -EBADMSG, 0 },
		{ "Huge", -EBADMSG, 0 }, { "Empty", -EBADMSG, 0 },
	};
	uint64_t value = 77;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		value = 77;
		UNIT_CASE(cases[i].key, fsio_field_u64(status, cases[i].key, &value) == cases[i].want);
		UNIT_CASE(cases[i].key, value == (cases[i].want ? 77 : cases[i].value));
	}
	CU_ASSERT_EQUAL(fsio_field_u64("", "a", &value), -ENOENT);
	CU_ASSERT_EQUAL(fsio_field_u64("\n\n", "a", &value), -ENOENT);
	CU_ASSERT_TRUE(fsio_field_u64("a\nab", "ab", &value) < 0); /* cut short behind the key */
}

static void test_fsio_readlink_bounds_kept(void)
{
	char buf[8];

	tree_begin(false);
	unit_must(symlinkat("1234567", fs.root_fd, "seven") == 0 && symlinkat("12345678", fs.root_fd, "eight") == 0,
		  "symlink");
	CU_ASSERT_EQUAL(fsio_readlink(&fs, buf, sizeof(buf), "/seven"), 0);
	CU_ASSERT_STRING_EQUAL(buf, "1234567");
	CU_ASSERT_EQUAL(fsio_readlink(&fs, buf, sizeof(buf), "eight"), -ENAMETOOLONG);
	CU_ASSERT_EQUAL(fsio_readlink(&fs, buf, sizeof(buf), "none"), -ENOENT);
	tree_end();
}

static void test_fsio_write_changes_existing_only(void)
{
	tree_begin(false);
	unit_file(dir, "knob", "12345\n");
	CU_ASSERT_EQUAL(fsio_write(&fs, "7", "/knob"), 0);
	CU_ASSERT_TRUE(unit_file_is(dir, "knob", "7"));
	CU_ASSERT_EQUAL(fsio_write(&fs, "7", "/new"), -ENOENT);
	CU_ASSERT_TRUE(unit_file_is(dir, "new", NULL));
	tree_end();
}

/* A reader that opened the file before sees the old content to its end; nothing is left beside it. */
static void test_fsio_replace_is_whole(void)
{
	char old[8] = { 0 };
	int fd;

	tree_begin(false);
	unit_file(dir, "state/found", "old");
	fd = fsio_open(&fs, O_RDONLY, "state/found");
	CU_ASSERT_EQUAL(fsio_replace(&fs, "new content", "/state/found"), 0);
	CU_ASSERT_EQUAL(read(fd, old, sizeof(old)), 3);
	CU_ASSERT_STRING_EQUAL(old, "old");
	close(fd);
	CU_ASSERT_TRUE(unit_file_is(dir, "state/found", "new content"));
	CU_ASSERT_TRUE(unit_file_is(dir, "state/found.new", NULL));
	CU_ASSERT_EQUAL(fsio_replace(&fs, "made", "state/fresh"), 0);
	CU_ASSERT_TRUE(unit_file_is(dir, "state/fresh", "made"));
	unit_file(dir, "state/folder/x", ""); /* cannot be replaced by a file: fails at the last step */
	CU_ASSERT_TRUE(fsio_replace(&fs, "x", "state/folder") < 0);
	CU_ASSERT_TRUE(unit_file_is(dir, "state/folder.new", NULL));
	CU_ASSERT_EQUAL(fsio_replace(&fs, "x", "none/found"), -ENOENT);
	CU_ASSERT_EQUAL(fsio_unlink(&fs, "state/fresh"), 0);
	CU_ASSERT_EQUAL(fsio_unlink(&fs, "state/fresh"), -ENOENT);
	CU_ASSERT_EQUAL(fsio_mkdir(&fs, 0700, "made"), 0);
	CU_ASSERT_EQUAL(fsio_mkdir(&fs, 0700, "made"), -EEXIST);
	tree_end();
}

static void test_fsio_dry_run_logs_writes_nothing(void)
{
	struct unit_stderr capture;
	auto_free char *text = NULL;

	tree_begin(true);
	unit_file(dir, "knob", "old");
	log_set_level(LOG_LEVEL_DEBUG);
	unit_stderr_begin(&capture);
	CU_ASSERT_EQUAL(fsio_write(&fs, "new", "/knob"), 0);
	CU_ASSERT_EQUAL(fsio_replace(&fs, "new", "/knob"), 0);
	CU_ASSERT_EQUAL(fsio_replace(&fs, "new", "/fresh"), 0);
	CU_ASSERT_EQUAL(fsio_unlink(&fs, "/knob"), 0);
	text = unit_stderr_end(&capture);
	log_set_level(LOG_LEVEL_INFO);
	CU_ASSERT_TRUE(unit_file_is(dir, "knob", "old"));
	CU_ASSERT_TRUE(unit_file_is(dir, "knob.new", NULL));
	CU_ASSERT_TRUE(unit_file_is(dir, "fresh", NULL));
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "write /knob: \"new\" (dry run, not done)\n"));
	tree_end();
}

/* ---- log ---- */

/* What log_line() writes for text, without the time in front; the caller frees it. */
static char *logged(enum log_level level, const char *text)
{
	struct unit_stderr capture;

	setenv("JOURNAL_STREAM", "1:2", 1);
	unit_stderr_begin(&capture);
	log_line(level, "%s", text);
	unsetenv("JOURNAL_STREAM");
	return unit_stderr_end(&capture);
}

static void test_log_text_table_escaped(void)
{
	static const struct {
		const char *text, *want;
	} cases[] = {
		{ "plain", "<6>plain\n" },
		{ "", "<6>\n" },
		{ "a\nksm: forged", "<6>a\\x0aksm: forged\n" },
		{ "\r\t\x1b[31m\x7f", "<6>\\x0d\\x09\\x1b[31m\\x7f\n" },
		{ "d\xc3\xbc" "nn %s %n", "<6>d\xc3\xbc" "nn %s %n\n" },
		{ "\x01", "<6>\\x01\n" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		auto_free char *text = logged(LOG_LEVEL_INFO, cases[i].text);

		UNIT_CASE(cases[i].want, strcmp(text, cases[i].want) == 0);
	}
}

/* Cut to one line that a pipe takes whole; also when every byte grows to four. */
static void test_log_long_line_cut(void)
{
	static const char bytes[] = { 'x', '\n' };

	for (size_t i = 0; i < sizeof(bytes); i++) {
		char input[20000];
		auto_free char *text = NULL;

		memset(input, bytes[i], sizeof(input) - 1);
		input[sizeof(input) - 1] = '\0';
		text = logged(LOG_LEVEL_INFO, input);
		CU_ASSERT_TRUE(strlen(text) > 2000 && strlen(text) <= 4096);
		CU_ASSERT_PTR_EQUAL(strchr(text, '\n'), text + strlen(text) - 1);
	}
}

static void test_log_levels_filtered(void)
{
	static const char *const prefix[] = { "<3>", "<4>", "<6>", "<7>" };

	for (int max = LOG_LEVEL_ERROR; max <= LOG_LEVEL_DEBUG; max++) {
		log_set_level((enum log_level)max);
		for (int level = LOG_LEVEL_ERROR; level <= LOG_LEVEL_DEBUG; level++) {
			auto_free char *text = logged((enum log_level)level, "x");

			CU_ASSERT_EQUAL(*text != '\0', level <= max);
			CU_ASSERT_TRUE(level > max || strncmp(text, prefix[level], 3) == 0);
		}
	}
	log_set_level(LOG_LEVEL_INFO);
}

static void test_log_without_journal_shows_time(void)
{
	struct unit_stderr capture;
	auto_free char *text = NULL;
	unsigned hour, minute, second, ms;
	char level[16] = "";

	unsetenv("JOURNAL_STREAM");
	unit_stderr_begin(&capture);
	log_warning("x=%d", 1);
	text = unit_stderr_end(&capture);
	CU_ASSERT_EQUAL(sscanf(text, "%2u:%2u:%2u.%3u %15s x=1", &hour, &minute, &second, &ms, level), 5);
	CU_ASSERT_STRING_EQUAL(level, "warning:");
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "fsio_root", test_fsio_root_bad_refused },
		{ "fsio_paths", test_fsio_paths_stay_below_root },
		{ "fsio_read", test_fsio_read_bounds_kept },
		{ "fsio_read_u64", test_fsio_read_u64_table_gives_expected },
		{ "fsio_field", test_fsio_field_table_gives_expected },
		{ "fsio_readlink", test_fsio_readlink_bounds_kept },
		{ "fsio_write", test_fsio_write_changes_existing_only },
		{ "fsio_replace", test_fsio_replace_is_whole },
		{ "fsio_dry_run", test_fsio_dry_run_logs_writes_nothing },
		{ "log_escape", test_log_text_table_escaped },
		{ "log_long", test_log_long_line_cut },
		{ "log_levels", test_log_levels_filtered },
		{ "log_time", test_log_without_journal_shows_time },
		CU_TEST_INFO_NULL,
	};

	return unit_main("core", tests);
}
