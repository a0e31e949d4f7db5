/* daemon/recorder: what is in the file, what it goes on with and what it leaves alone, and how it ends. */
#include "daemon/recorder.h"

#include <sys/resource.h>

#include "core/record.h"
#include "tests/unit/unit.h"

#define NO_LIMIT (UINT64_C(1) << 30)

static char dir[UNIT_DIR_MAX], path[PATH_MAX];
static struct config config;
static struct unit_stderr capture;

static void begin(void)
{
	unit_dir_new(dir);
	snprintf(path, sizeof(path), "%s/record", dir);
	config_init(&config);
	unit_stderr_begin(&capture);
}

/* What was logged must hold want (NULL: nothing was). */
static void finish(const char *want)
{
	auto_free char *text = unit_stderr_end(&capture);

	if (want)
		UNIT_CASE(text, strstr(text, want));
	else
		UNIT_CASE(text, *text == '\0');
	config_free(&config);
	unit_dir_remove(dir);
}

static void tick(struct recorder *r, uint64_t ns, const char *name)
{
	struct vm_snapshot vm = { .name = name, .uuid = "", .domain = "", .balloon = { .why = "" } };
	const struct host_snapshot s = { .taken_ns = ns, .vms = &vm, .vm_count = 1 };
	const struct balloon_vm_plan vm_plan = { .target_bytes = 5 << 20, .block = BLOCK_NONE, .veto = VETO_OOM,
						 .why = "because", .not_done = true };
	const struct ladder ladder = { .state = HOST_HARD };
	const struct balloon_plan plan = { .ladder = &ladder, .vms = &vm_plan, .vm_count = 1 };

	recorder_tick(r, &s, ns % 2 ? &plan : NULL);
}

/* Reads line number n (from 0). False: there is none. */
static bool line_at(unsigned int n, struct record_line *ret_line)
{
	auto_free char *text = unit_file_text(dir, "record");
	char *line = text, why[256];

	while (line && n-- > 0) {
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	if (!line || !*line)
		return false;
	unit_must(strchr(line, '\n'), "a whole line");
	unit_must(record_line_parse(line, strcspn(line, "\n"), ret_line, why, sizeof(why)) == 0, why);
	return true;
}

static enum record_kind kind_at(unsigned int n)
{
	struct record_line line;
	enum record_kind kind;

	unit_must(line_at(n, &line), "line");
	kind = line.kind;
	record_line_free(&line);
	return kind;
}

static void test_recorder_writes_settings_and_ticks(void)
{
	struct recorder *r = NULL;
	struct record_line line;
	struct config_error e;
	struct config c;
	struct stat st;

	begin();
	config.balloon_step_percent = 13;
	CU_ASSERT_EQUAL(recorder_new(path, NO_LIMIT, &config, &r), 0);
	tick(r, 1, "a\nb");
	config.balloon_step_percent = 14;
	recorder_settings(r, &config);
	tick(r, 2, "c");
	recorder_free(r);
	CU_ASSERT_TRUE(stat(path, &st) == 0 && (st.st_mode & 07777) == 0600);

	unit_must(line_at(0, &line), "header");
	CU_ASSERT_EQUAL(line.kind, RECORD_HEADER);
	CU_ASSERT_STRING_EQUAL(line.version, MEMVIRT_VERSION);
	CU_ASSERT_EQUAL(config_load_text("r", line.settings, strlen(line.settings), &c, &e), 0);
	CU_ASSERT_EQUAL(c.balloon_step_percent, 13);
	record_line_free(&line);
	unit_must(line_at(1, &line), "tick");
	CU_ASSERT_TRUE(line.kind == RECORD_TICK && line.has_decided && line.snapshot.taken_ns == 1);
	CU_ASSERT_STRING_EQUAL(line.decided.state, "hard");
	CU_ASSERT_STRING_EQUAL(line.decided.vms[0].veto, balloon_veto_name(VETO_OOM));
	CU_ASSERT_STRING_EQUAL(line.decided.vms[0].why, "because");
	CU_ASSERT_TRUE(line.decided.vms[0].target_bytes == 5 << 20 && line.decided.vms[0].not_done);
	CU_ASSERT_STRING_EQUAL(line.snapshot.vms[0].name, "a\nb");
	record_line_free(&line);
	CU_ASSERT_EQUAL(kind_at(2), RECORD_SETTINGS);
	unit_must(line_at(3, &line), "tick");
	CU_ASSERT_FALSE(line.has_decided);
	record_line_free(&line);
	CU_ASSERT_FALSE(line_at(4, &line));
	finish(NULL);
}

static void test_recorder_goes_on_with_a_record(void)
{
	struct recorder *r = NULL;
	struct record_line line;

	begin();
	for (int i = 0; i < 2; i++) {
		CU_ASSERT_EQUAL(recorder_new(path, NO_LIMIT, &config, &r), 0);
		tick(r, 1, "a");
		recorder_free(r);
	}
	CU_ASSERT_EQUAL(kind_at(0), RECORD_HEADER);
	CU_ASSERT_EQUAL(kind_at(2), RECORD_HEADER);
	CU_ASSERT_EQUAL(kind_at(3), RECORD_TICK);
	CU_ASSERT_FALSE(line_at(4, &line));
	finish(NULL);
}

/* Half a line, longer than what is looked at in one piece. */
static void test_recorder_cuts_half_a_line_off(void)
{
	struct recorder *r = NULL;
	struct record_line line;
	FILE *f;

	begin();
	CU_ASSERT_EQUAL(recorder_new(path, NO_LIMIT, &config, &r), 0);
	tick(r, 1, "a");
	recorder_free(r);
	f = fopen(path, "ae");
	unit_must(f && fprintf(f, "{\"host\":%9000d", 7) > 0 && fclose(f) == 0, path);
	CU_ASSERT_EQUAL(recorder_new(path, NO_LIMIT, &config, &r), 0);
	recorder_free(r);
	CU_ASSERT_EQUAL(kind_at(1), RECORD_TICK);
	CU_ASSERT_EQUAL(kind_at(2), RECORD_HEADER);
	CU_ASSERT_FALSE(line_at(3, &line));
	finish("its last line is not whole and is cut off");
}

static void test_recorder_leaves_other_files_alone(void)
{
	static const char *const texts[] = { "root:x:0:0::/root:/bin/sh\n", "\n", "{", "{\"memvirt_record\":1",
					     "{\"memvirt_recort\":1}\n" };
	struct recorder *r = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		begin();
		unit_file(dir, "record", texts[i]);
		UNIT_CASE(texts[i], recorder_new(path, NO_LIMIT, &config, &r) == -EINVAL);
		UNIT_CASE(texts[i], unit_file_is(dir, "record", texts[i]));
		CU_ASSERT_PTR_NULL(r);
		finish("the file is not empty and no record");
	}
	begin();
	unit_must(mkfifo(path, 0600) == 0, path);
	CU_ASSERT_EQUAL(recorder_new(path, NO_LIMIT, &config, &r), -EINVAL);
	finish("not a regular file");
	begin();
	snprintf(path, sizeof(path), "%s/missing/record", dir);
	CU_ASSERT_EQUAL(recorder_new(path, NO_LIMIT, &config, &r), -ENOENT);
	finish("missing/record: No such file or directory");
}

static void test_recorder_ends_at_its_limit_with_whole_lines(void)
{
	struct recorder *r = NULL;
	struct record_line line;
	struct stat st;
	unsigned int n = 0;

	begin();
	CU_ASSERT_EQUAL(recorder_new(path, 2048, &config, &r), 0);
	for (uint64_t i = 1; i < 100; i++)
		tick(r, i, "a");
	recorder_settings(r, &config);
	recorder_free(r);
	CU_ASSERT_TRUE(stat(path, &st) == 0 && st.st_size <= 2048 && st.st_size > 1500);
	for (; line_at(n, &line); n++)
		record_line_free(&line);
	CU_ASSERT_TRUE(n > 2 && n < 100);
	finish("ends here: it has reached 0 MiB");
}

/* A full disk, as far as a process without a file system of its own can have one: the limit of a file's size. */
static void test_recorder_write_error_ends_it_with_whole_lines(void)
{
	struct rlimit before, small;
	struct recorder *r = NULL;
	struct record_line line;
	unsigned int n = 0;

	begin();
	signal(SIGXFSZ, SIG_IGN);
	unit_must(getrlimit(RLIMIT_FSIZE, &before) == 0, "getrlimit");
	CU_ASSERT_EQUAL(recorder_new(path, NO_LIMIT, &config, &r), 0);
	small = (struct rlimit){ 1500, before.rlim_max };
	unit_must(setrlimit(RLIMIT_FSIZE, &small) == 0, "setrlimit");
	for (uint64_t i = 1; i < 100; i++)
		tick(r, i, "a");
	unit_must(setrlimit(RLIMIT_FSIZE, &before) == 0, "setrlimit");
	tick(r, 100, "a"); /* there is room again, but it has ended */
	recorder_free(r);
	for (; line_at(n, &line); n++)
		record_line_free(&line);
	CU_ASSERT_TRUE(n > 2 && n < 50);
	finish("ends here: ");
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "writes", test_recorder_writes_settings_and_ticks },
		{ "goes_on", test_recorder_goes_on_with_a_record },
		{ "half_line", test_recorder_cuts_half_a_line_off },
		{ "other_files", test_recorder_leaves_other_files_alone },
		{ "limit", test_recorder_ends_at_its_limit_with_whole_lines },
		{ "write_error", test_recorder_write_error_ends_it_with_whole_lines },
		CU_TEST_INFO_NULL,
	};

	return unit_main("recorder", tests);
}
