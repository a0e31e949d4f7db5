/* tests/unit/balloon_host.h - a made-up host (fake_host.h) whose one VM has a balloon: answers to change, commands that were
 * heard, and a monotonic clock that can be moved on. */
#ifndef TESTS_BALLOON_HOST_H
#define TESTS_BALLOON_HOST_H

#include "tests/unit/unit.h" /* before: it has parameters of the same names */

#include "tests/unit/fake_host.h"

#include <sys/syscall.h>
#include <time.h>

#define MIB (UINT64_C(1) << 20)
#define GUEST_MIB 512

static uint64_t clock_ahead_ns;

/* The program's own: the port waits for a minute, and no test should. */
int clock_gettime(clockid_t id, struct timespec *t)
{
	long r = syscall(SYS_clock_gettime, id, t);

	if (r == 0 && id == CLOCK_MONOTONIC) {
		uint64_t ns = (uint64_t)t->tv_sec * NSEC_PER_SEC + (uint64_t)t->tv_nsec + clock_ahead_ns;

		t->tv_sec = (time_t)(ns / NSEC_PER_SEC);
		t->tv_nsec = (long)(ns % NSEC_PER_SEC);
	}
	return (int)r;
}

#define SHELF "/machine/peripheral\""
#define SHELF_ANON "/machine/peripheral-anon\""
#define HMP_NONE "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\r\n"
#define NO_ANSWER ((const char *)-1)

/* What the VMM says; NULL: an error, NO_ANSWER: nothing at all. */
static struct {
	const char *peripheral, *anonymous; /* qom-list */
	const char *summary, *balloon, *stats, *period, *reporting, *deflate, *set, *set_period;
} told_by_vmm;

static char stats_text[1024];

/* All that was asked, and what was asked for. */
static struct {
	unsigned int balloons, periods, stats, searches;
	uint64_t balloon_bytes, period_s;
	char path[256]; /* of the device, as asked last */
} heard;

static void stats_say(int64_t update_s, const char *total, const char *free_bytes, const char *available)
{
	snprintf(stats_text, sizeof(stats_text),
		 "{\"stats\": {\"stat-total-memory\": %s, \"stat-free-memory\": %s, \"stat-available-memory\": %s, "
		 "\"stat-disk-caches\": 104857600, \"stat-swap-in\": 1, \"stat-swap-out\": 2, \"stat-major-faults\": 3, "
		 "\"stat-minor-faults\": 4, \"stat-htlb-pgalloc\": 18446744073709551615}, \"last-update\": %lld}",
		 total, free_bytes, available, (long long)update_s);
}

static void balloon_say_good(void)
{
	told_by_vmm.peripheral = "[{\"name\": \"type\", \"type\": \"string\"}, "
				 "{\"name\": \"balloon7\", \"type\": \"child<virtio-balloon-pci>\"}]";
	told_by_vmm.anonymous = "[]";
	told_by_vmm.summary = "{\"base-memory\": 536870912, \"plugged-memory\": 0}";
	told_by_vmm.balloon = "{\"actual\": 536870912}";
	told_by_vmm.stats = stats_text;
	told_by_vmm.period = "2";
	told_by_vmm.reporting = "true";
	told_by_vmm.deflate = "true";
	told_by_vmm.set = told_by_vmm.set_period = "{}";
	stats_say(time(NULL), "503316480", "209715200", "314572800");
	memset(&heard, 0, sizeof(heard));
}

static void on_heard(const char *line, size_t len)
{
	json_t *root = json_loadb(line, len, 0, NULL), *arguments = json_object_get(root, "arguments");
	const char *command = json_string_value(json_object_get(root, "execute"));
	const char *path = json_string_value(json_object_get(arguments, "path"));
	uint64_t value = (uint64_t)json_integer_value(json_object_get(arguments, "value"));

	if (strcmp(command, "balloon") == 0) {
		heard.balloons++;
		heard.balloon_bytes = value;
	} else if (strcmp(command, "qom-set") == 0) {
		heard.periods++;
		heard.period_s = value;
	} else if (strcmp(command, "qom-list") == 0) {
		heard.searches++;
	} else if (strcmp(command, "qom-get") == 0 && memmem(line, len, "\"guest-stats\"", 13)) {
		heard.stats++;
		snprintf(heard.path, sizeof(heard.path), "%s", path ? path : "");
	}
	json_decref(root);
}

static struct fake_rule rules[16];

/* After every change of told_by_vmm. */
static void balloon_say(void)
{
	const struct fake_rule all[] = {
		{ .command = "qom-list", .with = SHELF, .value = told_by_vmm.peripheral },
		{ .command = "qom-list", .with = SHELF_ANON, .value = told_by_vmm.anonymous },
		{ .command = "query-memory-size-summary", .value = told_by_vmm.summary },
		{ .command = "query-balloon", .value = told_by_vmm.balloon },
		{ .command = "qom-get", .with = "\"guest-stats\"", .value = told_by_vmm.stats },
		{ .command = "qom-get", .with = "guest-stats-polling-interval", .value = told_by_vmm.period },
		{ .command = "qom-get", .with = "free-page-reporting", .value = told_by_vmm.reporting },
		{ .command = "qom-get", .with = "deflate-on-oom", .value = told_by_vmm.deflate },
		{ .command = "balloon", .value = told_by_vmm.set },
		{ .command = "qom-set", .value = told_by_vmm.set_period },
		{ .command = "query-uuid", .value = "{\"UUID\": \"" UUID "\"}" },
		{ .command = "query-status", .value = "{\"status\": \"running\", \"running\": true}" },
		{ .command = "qom-get", .value = "\"pc-q35-7.2-machine\"" },
		{ .value = "{}" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		rules[i] = all[i];
		if (rules[i].value == NO_ANSWER)
			rules[i].value = NULL;
		else if (!rules[i].value)
			rules[i].raw = HMP_NONE;
	}
	fake.rules = rules;
	fake.rule_count = ARRAY_SIZE(all);
}

static void on_all_answered(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	(void)q;
	(void)result;
	(void)reply;
	(void)error;
	*(unsigned int *)userdata = 1;
}

/* Until all that was asked so far is answered. */
static inline void balloon_settle(struct vm *vm)
{
	unsigned int done = 0;

	if (vm->qmp && qmp_command(vm->qmp, "query-version", NULL, on_all_answered, &done) == 0)
		CU_ASSERT_TRUE(fake_run_until(loop, &done, 1));
}

/* A VM that is reached, and says what told_by_vmm has. */
static inline struct vm *balloon_vm_start(void)
{
	struct vm *vm;

	fake.heard = on_heard;
	balloon_say();
	vm = start_configured(ARGS(QEMU "-name\0guest\0-m\0" "512"));
	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	return vm;
}

#endif
