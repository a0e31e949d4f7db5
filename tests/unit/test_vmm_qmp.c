/* vmm/qmp.h against a fake server that answers, misbehaves or says nothing. */
#include <CUnit/Basic.h>
#include <errno.h>

#include "core/cleanup.h"
#include "tests/unit/fake_qmp.h"
#include "vmm/qmp.h"

#define PATIENT_MS 600000 /* longer than any test may take: these tests are not about time-outs */

enum free_in { FREE_NOWHERE, FREE_IN_READY, FREE_IN_EVENT, FREE_IN_REPLY, FREE_IN_RESET, FREE_IN_ENDED };

/* One client and what it was told. */
struct client {
	struct qmp *q;
	enum free_in free_in;
	unsigned int ready, events, replies, ended, done; /* done: any of ended, freed */
	enum qmp_end end;
	char why[256];
	char event[64], event_text[64];
	int result;	/* of the last reply */
	char text[256]; /* its value or error */
	size_t text_len;
};

static sd_event *loop;
static char dir[64];
static struct fake fake;
static struct client client;

static const struct fake_rule rules_good[] = {
	{ .command = "qmp_capabilities", .value = "{}" },
	{ .command = "query-name", .value = "{\"name\": \"vm\"}" },
	{ .command = "human-monitor-command", .value = "\"a\\r\\nb\"" },
	{ .command = "refused", .raw = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\r\n" },
	{ .command = "stop",
	  .raw = "{\"event\": \"STOP\", \"data\": {\"text\": \"x\"}}\r\n{\"event\": \"BARE\"}\r\n{\"return\": {}}\r\n" },
	{ .command = "silence" },
};

static void client_free(struct client *c)
{
	c->q = qmp_free(c->q);
	c->done = 1;
}

static void on_ready(struct qmp *q, void *userdata)
{
	struct client *c = userdata;

	CU_ASSERT_PTR_EQUAL(q, c->q);
	c->ready++;
	if (c->free_in == FREE_IN_READY)
		client_free(c);
}

static void on_event(struct qmp *q, const char *name, const json_t *data, void *userdata)
{
	struct client *c = userdata;
	const char *text = json_string_value(json_object_get(data, "text"));

	(void)q;
	c->events++;
	snprintf(c->event, sizeof(c->event), "%s", name);
	snprintf(c->event_text, sizeof(c->event_text), "%s", text ? text : "-");
	if (c->free_in == FREE_IN_EVENT)
		client_free(c);
}

static void on_ended(struct qmp *q, enum qmp_end end, const char *why, void *userdata)
{
	struct client *c = userdata;

	CU_ASSERT_EQUAL(qmp_command(q, "query-name", json_object(), NULL, NULL), -ENOTCONN);
	c->ended++;
	c->done = 1;
	c->end = end;
	snprintf(c->why, sizeof(c->why), "%s", why);
	if (c->free_in == FREE_IN_ENDED)
		client_free(c);
}

static void on_reply(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct client *c = userdata;
	const json_t *name = json_object_get(reply, "name");
	const char *text = json_string_value(name ? name : reply);

	(void)q;
	CU_ASSERT_EQUAL(result == 0, reply != NULL);
	c->replies++;
	c->result = result;
	if (error)
		text = error;
	c->text_len = text ? strlen(text) : 0;
	snprintf(c->text, sizeof(c->text), "%s", text ? text : "");
	if (c->free_in == FREE_IN_REPLY || (c->free_in == FREE_IN_RESET && result == -ECONNRESET))
		client_free(c);
}

static const struct qmp_ops ops = { .ready = on_ready, .event = on_event, .ended = on_ended };

static void start(uint64_t timeout_ms)
{
	client = (struct client){ .q = NULL };
	CU_ASSERT_EQUAL_FATAL(qmp_connect(loop, fake.path, timeout_ms, &ops, &client, &client.q), 0);
}

static bool start_ready(uint64_t timeout_ms)
{
	start(timeout_ms);
	return fake_run_until(loop, &client.ready, 1);
}

static void setup(void)
{
	snprintf(dir, sizeof(dir), "/tmp/memvirt-qmp-XXXXXX");
	fake_must(mkdtemp(dir) != NULL, "mkdtemp");
	fake_must(sd_event_new(&loop) >= 0, "sd_event_new");
	fake = (struct fake){ .greeting = FAKE_GREETING, .rules = rules_good, .rule_count = ARRAY_SIZE(rules_good) };
	fake_start(&fake, loop, dir, "s");
}

static void teardown(void)
{
	client.q = qmp_free(client.q);
	fake_stop(&fake);
	loop = sd_event_unref(loop);
	rmdir(dir);
}

static void test_qmp_command_answered(void)
{
	CU_ASSERT_TRUE_FATAL(start_ready(PATIENT_MS));
	CU_ASSERT_EQUAL(qmp_peer_pid(client.q), getpid());
	CU_ASSERT_EQUAL(qmp_command(client.q, "query-name", json_object(), on_reply, &client), 0);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.replies, 1));
	CU_ASSERT_EQUAL(client.result, 0);
	CU_ASSERT_STRING_EQUAL(client.text, "vm");
	CU_ASSERT_EQUAL(qmp_hmp(client.q, "info version", on_reply, &client), 0);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.replies, 2));
	CU_ASSERT_STRING_EQUAL(client.text, "a\r\nb");
	CU_ASSERT_EQUAL(qmp_hmp(client.q, "not UTF-8: \xff", on_reply, &client), -EINVAL);
	CU_ASSERT_EQUAL(client.ended, 0);
}

static void test_qmp_error_answer_gives_description(void)
{
	CU_ASSERT_TRUE_FATAL(start_ready(PATIENT_MS));
	CU_ASSERT_EQUAL(qmp_command(client.q, "refused", NULL, on_reply, &client), 0);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.replies, 1));
	CU_ASSERT_EQUAL(client.result, -EREMOTEIO);
	CU_ASSERT_STRING_EQUAL(client.text, "not now");
	CU_ASSERT_EQUAL(client.ended, 0);
}

static void test_qmp_events_delivered(void)
{
	CU_ASSERT_TRUE_FATAL(start_ready(PATIENT_MS));
	CU_ASSERT_EQUAL(qmp_command(client.q, "stop", NULL, NULL, NULL), 0);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.events, 1));
	CU_ASSERT_TRUE(fake_run_until(loop, &client.events, 2));
	CU_ASSERT_STRING_EQUAL(client.event, "BARE");
	CU_ASSERT_STRING_EQUAL(client.event_text, "-");
}

static void test_qmp_queue_bounded_and_in_order(void)
{
	unsigned int queued = 0;

	start(PATIENT_MS);
	CU_ASSERT_EQUAL(qmp_command(client.q, "query-name", json_object(), on_reply, &client), -ENOTCONN);
	CU_ASSERT_TRUE_FATAL(fake_run_until(loop, &client.ready, 1));
	while (qmp_command(client.q, queued % 2 ? "query-name" : "refused", NULL, on_reply, &client) == 0)
		queued++;
	CU_ASSERT_EQUAL(queued, QMP_QUEUE_MAX);
	CU_ASSERT_EQUAL(qmp_command(client.q, "query-name", NULL, on_reply, &client), -ENOBUFS);
	for (unsigned int i = 1; i <= queued; i++) {
		CU_ASSERT_TRUE_FATAL(fake_run_until(loop, &client.replies, i));
		CU_ASSERT_STRING_EQUAL(client.text, i % 2 ? "not now" : "vm");
	}
	CU_ASSERT_EQUAL(fake.commands, queued + 1);
}

static void test_qmp_long_command_sent_whole(void)
{
	size_t len = QMP_OUT_MAX_BYTES / 2;
	char *line = malloc(2 * len + 1);

	fake_must(line != NULL, "malloc");
	memset(line, 'x', 2 * len);
	line[2 * len] = '\0';
	CU_ASSERT_TRUE(start_ready(PATIENT_MS));
	CU_ASSERT_EQUAL(qmp_hmp(client.q, line, on_reply, &client), -ENOBUFS);
	line[len] = '\0';
	CU_ASSERT_EQUAL(qmp_hmp(client.q, line, on_reply, &client), 0);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.replies, 1));
	CU_ASSERT_EQUAL(client.result, 0);
	free(line);
}

static void test_qmp_byte_by_byte_answered(void)
{
	fake.piece = 1;
	test_qmp_command_answered();
}

static void test_qmp_pretty_answered(void)
{
	static const struct fake_rule rules[] = {
		{ .value = "{\r\n    \"name\": \"vm\"\r\n}", .raw = "{\r\n    \"event\": \"E\"\r\n}\r\n" },
	};

	fake.greeting = "{\r\n    \"QMP\": {\r\n        \"version\": {\r\n        }\r\n    }\r\n}\r\n";
	fake.rules = rules;
	fake.rule_count = 1;
	CU_ASSERT_TRUE_FATAL(start_ready(PATIENT_MS));
	CU_ASSERT_EQUAL(qmp_command(client.q, "query-name", NULL, on_reply, &client), 0);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.replies, 1));
	CU_ASSERT_STRING_EQUAL(client.text, "vm");
}

static void test_qmp_misbehaviour_ends_connection(void)
{
#define CAPS { .command = "qmp_capabilities", .value = "{}" }
	static const struct {
		const char *greeting;
		struct fake_rule rules[2]; /* "query-name" is asked once ready */
		enum qmp_end end;
		const char *why; /* part of it */
	} cases[] = {
		{ "SSH-2.0-OpenSSH\r\n", { { 0 } }, QMP_END_GARBAGE, "not a JSON object" },
		{ "{\"return\": {}}\r\n", { { 0 } }, QMP_END_GARBAGE, "nobody asked" },
		{ "{\"event\": \"STOP\"}\r\n", { { 0 } }, QMP_END_GARBAGE, "before the greeting" },
		{ "{\"QMP\": 1}\r\n", { { 0 } }, QMP_END_GARBAGE, "no QMP message" },
		{ FAKE_GREETING FAKE_GREETING, { { 0 } }, QMP_END_GARBAGE, "second greeting" },
		{ FAKE_GREETING, { { .raw = "{\"error\": {\"desc\": \"no\"}}" } }, QMP_END_GARBAGE, "refused: no" },
		{ FAKE_GREETING, { { .close = true } }, QMP_END_CLOSED, "closed" },
		{ FAKE_GREETING, { CAPS, { .raw = "{\"return\": {}, \"id\": 77}" } }, QMP_END_GARBAGE, "query-name" },
		{ FAKE_GREETING, { CAPS, { .raw = "{\"return\": {}, \"id\": \"2\"}" } }, QMP_END_GARBAGE, "query-name" },
		{ FAKE_GREETING, { CAPS, { .raw = "{\"return\": {}} {\"return\": {}}" } }, QMP_END_GARBAGE, "nobody" },
		{ FAKE_GREETING, { CAPS, { .raw = "{\"return\": {\"a\": 1e999}}" } }, QMP_END_GARBAGE, "not JSON" },
		{ FAKE_GREETING, { CAPS, { .raw = "{\"return\": {\"a\": }}" } }, QMP_END_GARBAGE, "not JSON" },
		{ FAKE_GREETING, { CAPS, { .raw = "{\"return\": [}" } }, QMP_END_GARBAGE, "do not match" },
		{ FAKE_GREETING, { CAPS, { .raw = "{\"hello\": 1}" } }, QMP_END_GARBAGE, "no QMP message" },
		{ FAKE_GREETING, { CAPS, { .raw = "{\"return\": {\"na", .close = true } }, QMP_END_CLOSED, "closed" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		bool has_reply = cases[i].rules[0].value != NULL;

		fake.greeting = cases[i].greeting;
		fake.rules = cases[i].rules;
		fake.rule_count = 2;
		start(PATIENT_MS);
		if (has_reply) {
			CU_ASSERT_TRUE_FATAL(fake_run_until(loop, &client.ready, 1));
			CU_ASSERT_EQUAL(qmp_command(client.q, "query-name", NULL, on_reply, &client), 0);
		}
		CU_ASSERT_TRUE(fake_run_until(loop, &client.ended, 1));
		CU_ASSERT_EQUAL(client.end, cases[i].end);
		CU_ASSERT_PTR_NOT_NULL(strstr(client.why, cases[i].why));
		CU_ASSERT_TRUE(!has_reply || client.replies == 1);
		client.q = qmp_free(client.q);
	}
}

static void test_qmp_close_resets_all_pending(void)
{
	CU_ASSERT_TRUE_FATAL(start_ready(PATIENT_MS));
	for (int i = 0; i < 5; i++)
		CU_ASSERT_EQUAL(qmp_command(client.q, "silence", NULL, on_reply, &client), 0);
	fake_hang_up(&fake);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.ended, 1));
	CU_ASSERT_EQUAL(client.replies, 5);
	CU_ASSERT_EQUAL(client.result, -ECONNRESET);
	CU_ASSERT_EQUAL(client.end, QMP_END_CLOSED);
}

static void test_qmp_ten_megabyte_line_refused(void)
{
	size_t len = 10 << 20;
	char *text = malloc(len);

	fake_must(text != NULL, "malloc");
	CU_ASSERT_TRUE(start_ready(PATIENT_MS));
	memset(text, 'x', len);
	memcpy(text, "{\"return\": \"", 12);
	fake_send(&fake, text, len);
	free(text);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.ended, 1));
	CU_ASSERT_EQUAL(client.end, QMP_END_GARBAGE);
	CU_ASSERT_PTR_NOT_NULL(strstr(client.why, "1 MiB"));
}

static void test_qmp_flood_cut_off(void)
{
	CU_ASSERT_TRUE_FATAL(start_ready(PATIENT_MS));
	fake.spout = "{\"event\": \"E\"}\r\n";
	fake_update(&fake);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.ended, 1));
	CU_ASSERT_EQUAL(client.end, QMP_END_FLOOD);
}

static void test_qmp_silence_times_out(void)
{
	fake.greeting = NULL;
	start(50);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.ended, 1));
	CU_ASSERT_EQUAL(client.end, QMP_END_HUNG);
	CU_ASSERT_PTR_NOT_NULL(strstr(client.why, "another client may hold the monitor"));
	client.q = qmp_free(client.q);
}

static void test_qmp_command_without_answer_times_out(void)
{
	static const struct fake_rule rules[] = { CAPS, { .raw = "{\"event\": \"E\"}" } };

	fake.rules = rules;
	fake.rule_count = 2;
	/* The short time-out is the handshake's, too: on a machine too slow for it that one hangs first. */
	start(500);
	while (!client.ready && !client.ended)
		sd_event_run(loop, 100000);
	if (client.ready) {
		CU_ASSERT_EQUAL(qmp_command(client.q, "query-status", NULL, on_reply, &client), 0);
		CU_ASSERT_TRUE(fake_run_until(loop, &client.ended, 1));
		CU_ASSERT_PTR_NOT_NULL(strstr(client.why, "query-status"));
		CU_ASSERT_EQUAL(client.result, -ECONNRESET);
	}
	CU_ASSERT_EQUAL(client.end, QMP_END_HUNG);
}

static void test_qmp_no_server_unreachable(void)
{
	static const char long_path[] = "/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
					"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

	client = (struct client){ .q = NULL };
	CU_ASSERT_EQUAL(qmp_connect(loop, long_path, PATIENT_MS, &ops, &client, &client.q), -ENAMETOOLONG);
	CU_ASSERT_PTR_NULL(client.q);
	CU_ASSERT_EQUAL(qmp_connect(loop, "/nonexistent/s", PATIENT_MS, &ops, &client, &client.q), 0);
	CU_ASSERT_EQUAL(client.ended, 0); /* never from inside the call */
	CU_ASSERT_EQUAL(qmp_peer_pid(client.q), 0);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.ended, 1));
	CU_ASSERT_EQUAL(client.end, QMP_END_UNREACHABLE);
}

static void test_qmp_full_backlog_is_hung(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fds[8];
	size_t count = 0;

	memcpy(addr.sun_path, fake.path, sizeof(fake.path));
	for (; count < ARRAY_SIZE(fds); count++) {
		fds[count] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (connect(fds[count], (const struct sockaddr *)&addr, sizeof(addr)) < 0)
			break;
	}
	CU_ASSERT_TRUE_FATAL(count < ARRAY_SIZE(fds));
	start(PATIENT_MS);
	CU_ASSERT_TRUE(fake_run_until(loop, &client.ended, 1));
	CU_ASSERT_EQUAL(client.end, QMP_END_HUNG);
	for (size_t i = 0; i <= count; i++)
		close(fds[i]);
}

static void test_qmp_free_in_callback_safe(void)
{
	static const enum free_in wheres[] = { FREE_IN_READY, FREE_IN_EVENT, FREE_IN_REPLY, FREE_IN_RESET, FREE_IN_ENDED };

	for (size_t i = 0; i < ARRAY_SIZE(wheres); i++) {
		start(PATIENT_MS);
		client.free_in = wheres[i];
		CU_ASSERT_TRUE_FATAL(fake_run_until(loop, &client.ready, 1));
		if (client.q) {
			CU_ASSERT_EQUAL(qmp_command(client.q, "stop", NULL, on_reply, &client), 0);
			for (int n = 0; n < 3; n++)
				CU_ASSERT_EQUAL(qmp_command(client.q, "silence", NULL, on_reply, &client), 0);
		}
		if (client.free_in == FREE_IN_RESET || client.free_in == FREE_IN_ENDED) {
			CU_ASSERT_TRUE(fake_run_until(loop, &client.replies, 1));
			fake_hang_up(&fake);
		}
		CU_ASSERT_TRUE(fake_run_until(loop, &client.done, 1));
		CU_ASSERT_PTR_NULL(client.q);
		CU_ASSERT_EQUAL(client.ended, client.free_in == FREE_IN_ENDED ? 1 : 0);
		CU_ASSERT_TRUE(client.replies <= (client.free_in == FREE_IN_ENDED ? 4 : 2));
	}
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "command", test_qmp_command_answered },
		{ "error", test_qmp_error_answer_gives_description },
		{ "events", test_qmp_events_delivered },
		{ "queue", test_qmp_queue_bounded_and_in_order },
		{ "long_command", test_qmp_long_command_sent_whole },
		{ "byte_by_byte", test_qmp_byte_by_byte_answered },
		{ "pretty", test_qmp_pretty_answered },
		{ "misbehaviour", test_qmp_misbehaviour_ends_connection },
		{ "close", test_qmp_close_resets_all_pending },
		{ "ten_megabytes", test_qmp_ten_megabyte_line_refused },
		{ "flood", test_qmp_flood_cut_off },
		{ "silence", test_qmp_silence_times_out },
		{ "no_answer", test_qmp_command_without_answer_times_out },
		{ "no_server", test_qmp_no_server_unreachable },
		{ "full_backlog", test_qmp_full_backlog_is_hung },
		{ "free_in_callback", test_qmp_free_in_callback_safe },
		CU_TEST_INFO_NULL,
	};
	static CU_SuiteInfo suites[] = { { "qmp", NULL, NULL, setup, teardown, tests }, CU_SUITE_INFO_NULL };
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
