/* ksmd/activity: how much of a process's memory can have changed. */
#include "ksmd/activity.h"
#include "tests/unit/unit.h"

static void test_activity_parse_takes_only_what_is_whole(void)
{
	static const struct {
		const char *what, *text;
		int r;
		uint64_t faults, resident;
	} cases[] = {
		{ "real", "12 (qemu) S 1 2 3 0 -1 4194560 100 200 7 8 1 2 3 4 20 0 5 0 99 4096000 321 18446744073709551615 1", 0,
		  107, 321 },
		{ "a name like the rest", "12 (a) S 1) (b) S 1 2 3 0 -1 4194560 5 0 0 0 1 2 3 4 20 0 5 0 99 4096 7 1", 0, 5, 7 },
		{ "negative", "12 (q) S 1 2 3 0 -1 4 5 0 0 0 1 2 3 4 20 0 5 0 99 4096 -7 1", 0, 5, 0 },
		{ "cut", "12 (qemu) S 1 2 3 0 -1 4194560 100 200 7 8 1 2", -EBADMSG, 0, 0 },
		{ "no name", "12 qemu S 1 2 3 0 -1 4194560 100", -EBADMSG, 0, 0 },
		{ "letters", "12 (q) S 1 2 3 0 -1 4 x 0 0 0 1 2 3 4 20 0 5 0 99 4096 7 1", -EBADMSG, 0, 0 },
		{ "empty", "", -EBADMSG, 0, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct activity a = { 0, 0 };

		UNIT_CASE(cases[i].what, activity_parse(cases[i].text, &a) == cases[i].r);
		UNIT_CASE(cases[i].what, a.faults == cases[i].faults && a.resident_pages == cases[i].resident);
	}
}

static void test_activity_pages_bound_what_was_touched(void)
{
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	struct activity before, after;
	const size_t pages = 1000;
	char *map = unit_map(pages);

	unit_must(fd >= 0, "stat");
	CU_ASSERT_EQUAL(activity_read(fd, &before), 0);
	for (size_t p = 0; p < pages; p++)
		map[p * PAGE_BYTES] = 1;
	CU_ASSERT_EQUAL(activity_read(fd, &after), 0);
	CU_ASSERT_TRUE(activity_pages(&before, &after) >= pages);
	CU_ASSERT_EQUAL(activity_pages(&after, &after), 0);
	/* Counters that run backwards say nothing: everything can have changed. */
	CU_ASSERT_TRUE(activity_pages(&after, &before) > UINT32_MAX);
	munmap(map, pages * PAGE_BYTES);
	close(fd);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "parse", test_activity_parse_takes_only_what_is_whole },
		{ "pages", test_activity_pages_bound_what_was_touched },
		CU_TEST_INFO_NULL,
	};

	return unit_main("activity", tests);
}
