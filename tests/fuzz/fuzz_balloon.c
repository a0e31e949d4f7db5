/* Fuzzes what a VMM and its guest say of a balloon: each line of the input is the value of one answer (no JSON: an error),
 * given to whatever the port asked next; then statistics are judged and a target is decided. Whatever was said, none is
 * taken below its least size or given more than its limit. */
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/snapshot.h"
#include "vmm/qmp.h"

static int fuzz_command(struct qmp *q, const char *command, json_t *arguments, qmp_reply_fn reply, void *userdata);
#define qmp_command fuzz_command
#include "balloon/port_qmp.c"
#undef qmp_command

#include "balloon/policy_internal.h"
#include "balloon/stats.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TICKS 8
#define ASKED_MAX 16

static struct asked {
	qmp_reply_fn reply;
	void *userdata;
} asked[ASKED_MAX];
static size_t asked_count;
static int qmp_stand_in; /* never looked into */

static int fuzz_command(struct qmp *q, const char *command, json_t *arguments, qmp_reply_fn reply, void *userdata)
{
	(void)q;
	assert(command);
	json_decref(arguments);
	if (asked_count == ASKED_MAX)
		return -ENOBUFS;
	if (reply)
		asked[asked_count++] = (struct asked){ reply, userdata };
	return 0;
}

struct lines {
	const char *at, *end;
};

/* NULL: an error, or there is no more. */
static json_t *line_next(struct lines *l)
{
	const char *newline = l->at < l->end ? memchr(l->at, '\n', (size_t)(l->end - l->at)) : NULL;
	size_t len = newline ? (size_t)(newline - l->at) : (size_t)(l->end - l->at);
	json_t *value = json_loadb(l->at, len, JSON_DECODE_ANY, NULL);

	/* As the connection does with numbers that no integer holds. */
	if (!value)
		value = json_loadb(l->at, len, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
	l->at += newline ? len + 1 : len;
	return value;
}

static void answer_all(struct lines *l)
{
	while (asked_count > 0) {
		struct asked a = asked[0];
		json_t *value = line_next(l);

		memmove(asked, asked + 1, --asked_count * sizeof(*asked));
		a.reply((struct qmp *)(void *)&qmp_stand_in, value ? 0 : -EREMOTEIO, value, value ? NULL : "refused",
			a.userdata);
		json_decref(value);
	}
}

static void told_check(const struct balloon_told *t)
{
	assert(memchr(t->why, '\0', sizeof(t->why)));
	assert(t->actual_bytes <= BYTES_MAX && t->max_bytes < 2 * BYTES_MAX);
	assert((t->device == BALLOON_DEVICE_ABSENT) == (*t->why != '\0'));
}

static void stats_check(const struct vm_balloon *b)
{
	assert(b->why);
	if (b->stats != GUEST_STATS_GOOD)
		return;
	assert(b->total_bytes > 0 && b->total_bytes <= BYTES_MAX);
	assert(b->free_bytes <= b->total_bytes && b->available_bytes <= b->total_bytes);
}

static void plan_check(const struct balloon_plan *plan, const struct vm_snapshot *vm, const struct balloon_limits *limits)
{
	const struct balloon_vm_plan *p = &plan->vms[0];

	assert(plan->vm_count == 1 && p->why);
	if (!p->target_bytes || p->target_bytes == p->actual_bytes)
		return;
	assert(p->block != BLOCK_OFF && p->block != BLOCK_NO_DRIVER && p->block != BLOCK_NO_DEVICE);
	assert(p->target_bytes <= vm_limit_bytes(vm));
	if (p->target_bytes < p->actual_bytes)
		assert(p->target_bytes >= vm_min_bytes(vm, limits));
}

static void tick(struct port_qmp *port, struct stats_age *age, struct balloon_policy *policy,
		 const struct balloon_limits *limits, uint8_t host, uint64_t now_ns)
{
	const struct balloon_told *told = port_qmp_told(port);
	struct vm_snapshot vm = { .name = "", .uuid = "", .domain = "", .pid = 1, .running = true, .balloon_allowed = true,
				  .shares = 1000, .ram_bytes = 512 * MIB, .rss_anon_bytes = (uint64_t)host << 22,
				  .limit_bytes = host & 1 ? 300 * MIB : 0, .reservation_bytes = host & 2 ? 200 * MIB : 0 };
	struct host_snapshot s = { .taken_ns = now_ns, .mem_total_bytes = 1024 * MIB,
				   .mem_available_bytes = (uint64_t)host * MIB, .vms = &vm, .vm_count = 1 };
	struct balloon_plan plan;

	told_check(told);
	vm.balloon = (struct vm_balloon){ .why = "", .driver = "qmp", .device = told->device,
					  .actual_bytes = told->actual_bytes, .told_ns = told->told_ns,
					  .max_bytes = told->max_bytes ? told->max_bytes : vm.ram_bytes };
	stats_take(age, told, now_ns, (int64_t)(now_ns / NSEC_PER_SEC), &vm.balloon);
	stats_check(&vm.balloon);
	if (balloon_policy_decide(policy, &s, &plan) == 0)
		plan_check(&plan, &vm, limits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct balloon_limits limits = { .min_free_bytes = 100 * MIB, .idle_tax_percent = 75, .max_percent = 65,
					       .step_percent = 20, .keep_percent = 20, .hold_ns = NSEC_PER_SEC,
					       .stall_ns = 2 * NSEC_PER_SEC };
	struct vm vm = { .qmp = (struct qmp *)(void *)&qmp_stand_in };
	struct lines lines;
	struct stats_age age = { 0 };
	struct balloon_policy *policy;
	struct port_qmp *port;

	if (size < TICKS)
		return 0;
	lines = (struct lines){ (const char *)data + TICKS, (const char *)data + size };
	asked_count = 0;
	if (port_qmp_new(&vm, &port) < 0)
		return 0;
	if (balloon_policy_new(&limits, &policy) < 0) {
		port_qmp_free(port);
		return 0;
	}
	port_qmp_connected(port);
	answer_all(&lines);
	for (size_t i = 0; i < TICKS; i++) {
		port_qmp_ask(port);
		answer_all(&lines);
		tick(port, &age, policy, &limits, data[i], clock_mono_ns() + i * NSEC_PER_SEC);
	}
	balloon_policy_free(policy);
	port_qmp_free(port);
	return 0;
}
