/* vmm/qmp_frame.h: messages out of bytes, what a message is, what a flood is. No sockets. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"
#include "vmm/qmp_frame.h"

/* Feeds text in pieces and counts messages; -EBADMSG as soon as the framer says so. */
static int frame_count(const char *text, size_t len, size_t piece)
{
	struct qmp_frame f = { .buf = NULL };
	const char *message, *why = NULL;
	size_t message_len;
	int count = 0, r = 0;

	for (size_t at = 0; at < len && r >= 0; at += piece) {
		qmp_frame_append(&f, text + at, len - at < piece ? len - at : piece);
		while ((r = qmp_frame_next(&f, &message, &message_len, &why)) > 0)
			count++;
	}
	CU_ASSERT_TRUE(r >= 0 || why);
	qmp_frame_clear(&f);
	return r < 0 ? r : count;
}

static void test_frame_table_gives_expected(void)
{
	static const struct {
		const char *text;
		int want;
	} cases[] = {
		{ "", 0 },
		{ " \r\n\t", 0 },
		{ "{}", 1 },
		{ "{\"a\": [1, {\"b\": \"}]\\\"{\\\\\"}]}\r\n{}{}", 3 },
		{ "{\n    \"return\": {\n    }\n}\n", 1 }, /* pretty=on */
		{ "{\"return\": ", 0 },
		{ "{\"a\": [}", -EBADMSG },
		{ "{\"a\": \"b\n", -EBADMSG },
		{ "{}]", -EBADMSG },
		{ "[]", -EBADMSG },
		{ "HTTP/1.1 400 Bad Request", -EBADMSG },
		{ "{}\xff", -EBADMSG },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		size_t len = strlen(cases[i].text);

		CU_ASSERT_EQUAL(frame_count(cases[i].text, len, len ? len : 1), cases[i].want);
		CU_ASSERT_EQUAL(frame_count(cases[i].text, len, 1), cases[i].want);
	}
}

static void test_frame_length_and_depth_bounded(void)
{
	char *text = malloc(QMP_LINE_MAX_BYTES + 1);
	char deep[3 * QMP_DEPTH_MAX];

	if (!text)
		abort();
	memset(text, ' ', QMP_LINE_MAX_BYTES + 1);
	text[0] = '{';
	text[QMP_LINE_MAX_BYTES - 1] = '}';
	CU_ASSERT_EQUAL(frame_count(text, QMP_LINE_MAX_BYTES, 4096), 1);
	text[QMP_LINE_MAX_BYTES - 1] = ' ';
	text[QMP_LINE_MAX_BYTES] = '}';
	CU_ASSERT_EQUAL(frame_count(text, QMP_LINE_MAX_BYTES + 1, 4096), -EBADMSG);
	free(text);

	deep[0] = '{';
	memset(deep + 1, '[', QMP_DEPTH_MAX - 1);
	memset(deep + QMP_DEPTH_MAX, ']', QMP_DEPTH_MAX - 1);
	deep[2 * QMP_DEPTH_MAX - 1] = '}';
	CU_ASSERT_EQUAL(frame_count(deep, 2 * QMP_DEPTH_MAX, 7), 1);
	memset(deep + 1, '[', QMP_DEPTH_MAX);
	CU_ASSERT_EQUAL(frame_count(deep, 2 * QMP_DEPTH_MAX, 7), -EBADMSG);
}

static void test_message_table_classified(void)
{
	static const struct {
		const char *text;
		int want; /* kind or -EBADMSG */
	} cases[] = {
		{ "{\"QMP\": {\"version\": {\"qemu\": {}}, \"capabilities\": []}}", QMP_MESSAGE_GREETING },
		{ "{\"QMP\": {}}", -EBADMSG },
		{ "{\"return\": {}}", QMP_MESSAGE_RETURN },
		{ "{\"return\": null, \"id\": 4}", QMP_MESSAGE_RETURN },
		{ "{\"return\": 18446744073709551615}", QMP_MESSAGE_RETURN },
		{ "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}", QMP_MESSAGE_ERROR },
		{ "{\"error\": {\"class\": \"GenericError\"}}", -EBADMSG },
		{ "{\"error\": \"no\"}", -EBADMSG },
		{ "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1}}", QMP_MESSAGE_EVENT },
		{ "{\"event\": \"X\", \"data\": {\"a\": 1}}", QMP_MESSAGE_EVENT },
		{ "{\"event\": \"X\", \"data\": 5}", -EBADMSG },
		{ "{\"event\": 5}", -EBADMSG },
		{ "{}", -EBADMSG },
		{ "{\"execute\": \"quit\"}", -EBADMSG },
		{ "{\"return\": \"\\u0000\"}", -EBADMSG },
		{ "{\"return\": \"\xff\"}", -EBADMSG },
		{ "{\"return\": 1e999}", -EBADMSG },
		{ "{\"return\" 1}", -EBADMSG },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct qmp_message m = { .kind = QMP_MESSAGE_EVENT };
		const char *why = NULL;
		int r = qmp_message_parse(cases[i].text, strlen(cases[i].text), &m, &why);

		CU_ASSERT_EQUAL(r < 0 ? r : (int)m.kind, cases[i].want);
		if (r == 0)
			qmp_message_clear(&m);
		CU_ASSERT_TRUE(r == 0 || why);
	}
}

static void test_rate_floods_told_apart(void)
{
	static const struct {
		uint64_t now_us, events, bytes;
		bool ok;
	} steps[] = {
		{ 5000000, QMP_EVENTS_MAX_PER_S, QMP_BYTES_MAX_PER_S, true }, /* the first second starts here */
		{ 5999999, 0, 0, true },
		{ 5999999, 1, 0, false },
		{ 6000000, QMP_EVENTS_MAX_PER_S, 0, true },
		{ 6000001, 0, QMP_BYTES_MAX_PER_S, true },
		{ 6000002, 0, 1, false },
		{ 9000000, 1, 1, true },
	};
	struct qmp_rate rate = { .since_us = 0 };

	for (size_t i = 0; i < ARRAY_SIZE(steps); i++)
		CU_ASSERT_EQUAL(qmp_rate_count(&rate, steps[i].now_us, steps[i].events, steps[i].bytes), steps[i].ok);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "frame_table", test_frame_table_gives_expected },
		{ "frame_bounds", test_frame_length_and_depth_bounded },
		{ "rate", test_rate_floods_told_apart },
		{ "message_table", test_message_table_classified },
		CU_TEST_INFO_NULL,
	};
	static CU_SuiteInfo suites[] = { { "frame", NULL, NULL, NULL, NULL, tests }, CU_SUITE_INFO_NULL };
	unsigned int failed, run;

	if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS)
		return 1;
	CU_basic_set_mode(CU_BRM_NORMAL);
	CU_basic_run_tests();
	failed = CU_get_number_of_failures() + CU_get_number_of_suites_failed();
	run = CU_get_number_of_tests_run();
	CU_cleanup_registry();
	return failed > 0 || run == 0;
}
