#include "vmm/link.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/text.h"

/* The first tries come fast, because a VM is often found before it has made its socket; the later ones cost
 * a VM that will not be reached next to nothing. */
#define RETRY_FIRST_S 1
#define RETRY_MAX_S 60
/* A link that was ready for this long ended by accident, not because the peer is broken. */
#define STEADY_US (60 * UINT64_C(1000000))
/* A QEMU younger than this is left alone. Its main thread and its monitor thread both wait for the first
 * client while it starts; a client that comes just then can be accepted by the one while the other goes on
 * to block in accept(2), and the guest stands still until a second client comes. Seen with QEMU 7.2 in 2 of
 * 1,500 starts on a loaded host, with a client that was there before QEMU was. */
#define YOUNG_NS (2 * NSEC_PER_SEC)
/* x86-64 has at most 52 bits of physical address: more memory than this is a lie. */
#define RAM_BYTES_MAX (UINT64_C(1) << 52)

int link_path(struct vm_entry *e, const char **ret_why)
{
	struct vm *vm = &e->vm;
	const char *path = vm->settings.qmp[0] ? vm->settings.qmp : vm->cmdline.qmp_path;
	char full[PATH_MAX + VM_PATH_MAX], cwd[PATH_MAX];
	int n;

	vm->qmp_path[0] = '\0';
	if (path[0] == '\0') {
		*ret_why = vm->cmdline.libvirt ? "monitor belongs to libvirt" : "no QMP socket on the command line";
		return -ENOENT;
	}
	if (path[0] == '/') {
		n = snprintf(full, sizeof(full), "%s", path);
	} else if (fsio_readlink(e->registry->fs, cwd, sizeof(cwd), "/proc/%d/cwd", vm->pid) == 0) {
		n = snprintf(full, sizeof(full), "%s/%s", cwd, path);
	} else {
		*ret_why = "QMP path is relative and the working directory unknown";
		return -ENOENT;
	}
	if (n < 0 || (size_t)n >= sizeof(vm->qmp_path)) {
		*ret_why = "QMP path is too long for a socket";
		return -ENOENT;
	}
	memcpy(vm->qmp_path, full, (size_t)n + 1);
	return 0;
}

static uint64_t now_us(const struct vm_entry *e)
{
	uint64_t us = 0;

	sd_event_now(e->registry->loop, CLOCK_MONOTONIC, &us);
	return us;
}

void link_close(struct vm_entry *e)
{
	e->vm.qmp = NULL;
	e->link = qmp_free(e->link);
	e->retry = sd_event_source_disable_unref(e->retry);
	e->polling = false;
	e->ready_us = 0;
}

static void link_open(struct vm_entry *e);

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct vm_entry *e = userdata;

	(void)source;
	(void)usec;
	e->retry = sd_event_source_disable_unref(e->retry);
	link_open(e);
	return 0;
}

/* Connects after so long. Without memory for a timer link_poll() does it. */
static void link_wait(struct vm_entry *e, uint64_t us)
{
	int r = sd_event_add_time_relative(e->registry->loop, &e->retry, CLOCK_MONOTONIC, us, 0, on_retry, e);

	if (r < 0)
		log_warning("vm name=%s pid=%d: no timer for the next try, ignoring: %s", e->vm.name, e->vm.pid,
			    strerror(-r));
}

/* How long to wait after a failure of this kind. */
static uint64_t retry_delay_s(const struct vm_entry *e, enum vm_state state)
{
	bool steady = e->ready_us && now_us(e) - e->ready_us > STEADY_US;
	uint64_t delay_s;

	if (state == VM_GARBAGE || state == VM_FLOOD)
		return RETRY_MAX_S;
	if (e->delay_s == 0 || steady)
		return RETRY_FIRST_S;
	delay_s = e->delay_s * 2;
	return delay_s < RETRY_MAX_S ? delay_s : RETRY_MAX_S;
}

/* The link is down: says so and waits for the next try. */
static void link_fail(struct vm_entry *e, enum vm_state state, const char *why)
{
	char kept[sizeof(e->vm.why)]; /* why may be the connection's, which ends here */

	text_copy(kept, sizeof(kept), why, strlen(why));
	e->delay_s = retry_delay_s(e, state);
	link_close(e);
	link_wait(e, e->delay_s * 1000000);
	entry_set_state(e, state, kept);
}

static void link_set_flags(struct vm_entry *e, bool running)
{
	entry_set_flags(e, running, e->incoming || e->outgoing);
}

/* True for a status of a migration that is under way. What is not known to be over counts as under way:
 * newer QEMUs have more words, and touching the memory of a migrating VM is the worse mistake. */
static bool migration_active(const char *status)
{
	static const char *const over[] = { "none", "completed", "failed", "cancelled" };

	if (!status)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(over); i++)
		if (strcmp(status, over[i]) == 0)
			return false;
	return true;
}

static const char *member_text(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

static void on_event(struct qmp *q, const char *name, const json_t *data, void *userdata)
{
	struct vm_entry *e = userdata;

	(void)q;
	if (strcmp(name, "STOP") == 0 || strcmp(name, "SHUTDOWN") == 0 || strcmp(name, "SUSPEND") == 0) {
		link_set_flags(e, false);
	} else if (strcmp(name, "RESUME") == 0 || strcmp(name, "WAKEUP") == 0) {
		e->incoming = false;
		link_set_flags(e, true);
	} else if (strcmp(name, "MIGRATION") == 0) {
		/* Sent only when some client has asked for it; it is not ours to change the VM so. */
		e->outgoing = migration_active(member_text(data, "status"));
		if (!e->outgoing)
			e->incoming = false;
		link_set_flags(e, e->vm.running);
	} else if (strcmp(name, "RESET") == 0) {
		e->vm.resets++;
		log_debug("vm name=%s uuid=%s pid=%d reset", e->vm.name, e->vm.uuid, e->vm.pid);
	}
}

/* The answers. Each takes what it can use; an error answer (an older VMM) leaves what the command line said. */

static void on_name(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct vm_entry *e = userdata;
	const char *name = member_text(reply, "name");

	(void)q;
	(void)error;
	/* A name is given once and by whoever started the VM, so that a VMM that was taken over cannot move into
	 * another's section of the configuration. */
	if (result == 0 && name && name[0] && !e->vm.cmdline.name[0] && !e->identified)
		entry_set_name(e, name);
}

static void on_uuid(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct vm_entry *e = userdata;
	const char *uuid = member_text(reply, "UUID");

	(void)q;
	(void)error;
	if (result == 0 && uuid && !e->vm.cmdline.uuid[0] && !e->identified)
		text_uuid(e->vm.uuid, uuid, strlen(uuid));
}

static void on_status(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct vm_entry *e = userdata;
	const json_t *running = json_object_get(reply, "running");
	const char *status = member_text(reply, "status");

	(void)q;
	(void)error;
	if (result < 0)
		return;
	e->incoming = status && strcmp(status, "inmigrate") == 0;
	link_set_flags(e, running ? json_is_true(running) : e->vm.running);
}

static void on_memory(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct vm_entry *e = userdata;
	const json_t *base = json_object_get(reply, "base-memory");

	(void)q;
	(void)error;
	if (result == 0 && json_is_integer(base) && json_integer_value(base) >= 0 &&
	    (uint64_t)json_integer_value(base) <= RAM_BYTES_MAX)
		e->vm.ram_bytes = (uint64_t)json_integer_value(base);
}

static void on_machine(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	static const char suffix[] = "-machine";
	struct vm_entry *e = userdata;
	const char *type = json_string_value(reply);
	size_t len;

	(void)q;
	(void)error;
	if (result < 0 || !type)
		return;
	len = strlen(type);
	if (len > sizeof(suffix) - 1 && strcmp(type + len - (sizeof(suffix) - 1), suffix) == 0)
		len -= sizeof(suffix) - 1;
	text_copy(e->vm.machine, sizeof(e->vm.machine), type, len);
}

static void on_migrate(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct vm_entry *e = userdata;

	(void)q;
	(void)error;
	if (result < 0)
		return;
	e->outgoing = migration_active(member_text(reply, "status"));
	link_set_flags(e, e->vm.running);
}

/* Behind all other questions of the handshake. */
static void on_handshake_done(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct vm_entry *e = userdata;

	on_migrate(q, result, reply, error, e);
	if (result == -ECONNRESET)
		return; /* link_ended() follows */
	e->identified = true;
	e->ready_us = now_us(e);
	e->vm.qmp = q;
	entry_set_state(e, VM_READY, "QMP answers");
}

static void on_poll_done(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct vm_entry *e = userdata;

	e->polling = false;
	on_migrate(q, result, reply, error, e);
}

struct question {
	const char *command, *path, *property; /* the last two for qom-get */
	qmp_reply_fn reply;
};

static int ask(struct vm_entry *e, const struct question *questions, size_t count)
{
	int r = 0;

	for (size_t i = 0; i < count && r == 0; i++) {
		const struct question *question = &questions[i];
		json_t *arguments = NULL;

		if (question->path) {
			arguments = json_pack("{s:s, s:s}", "path", question->path, "property", question->property);
			if (!arguments)
				return -ENOMEM;
		}
		r = qmp_command(e->link, question->command, arguments, question->reply, e);
	}
	return r;
}

static void link_ready(struct qmp *q, void *userdata)
{
	static const struct question questions[] = {
		{ .command = "query-name", .reply = on_name },
		{ .command = "query-uuid", .reply = on_uuid },
		{ .command = "query-status", .reply = on_status },
		{ .command = "query-memory-size-summary", .reply = on_memory },
		{ .command = "qom-get", .path = "/machine", .property = "type", .reply = on_machine },
		{ .command = "query-migrate", .reply = on_handshake_done },
	};
	struct vm_entry *e = userdata;
	int r = ask(e, questions, ARRAY_SIZE(questions));

	(void)q;
	if (r < 0)
		link_fail(e, VM_UNREACHABLE, strerror(-r));
}

void link_poll(struct vm_entry *e)
{
	static const struct question questions[] = {
		{ .command = "query-status", .reply = on_status },
		{ .command = "query-migrate", .reply = on_poll_done },
	};

	/* Only when the timer of link_fail() could not be had. */
	if (!e->link && !e->retry && e->vm.state != VM_NO_QMP)
		link_open(e);
	if (e->vm.qmp && !e->polling)
		/* A full queue means that others are asking: good enough, later again. */
		e->polling = ask(e, questions, ARRAY_SIZE(questions)) == 0;
}

static void link_ended(struct qmp *q, enum qmp_end end, const char *why, void *userdata)
{
	static const enum vm_state states[] = {
		[QMP_END_UNREACHABLE] = VM_UNREACHABLE, [QMP_END_CLOSED] = VM_UNREACHABLE, [QMP_END_HUNG] = VM_HUNG,
		[QMP_END_GARBAGE] = VM_GARBAGE,		[QMP_END_FLOOD] = VM_FLOOD,
	};

	(void)q;
	link_fail(userdata, states[end], why);
}

/* A command line can name any socket, another VM's too; what is asked of this VM must not reach that one.
 * When the configuration names the socket, whoever listens there is meant. */
static pid_t link_foreign_pid(const struct vm_entry *e)
{
	pid_t pid = qmp_peer_pid(e->link);

	return e->vm.settings.qmp[0] || pid == e->vm.pid ? 0 : pid;
}

static void link_open(struct vm_entry *e)
{
	static const struct qmp_ops ops = { .ready = link_ready, .event = on_event, .ended = link_ended };
	struct vmm_registry *r = e->registry;
	char why[96];
	pid_t pid;
	int result = qmp_connect(r->loop, e->vm.qmp_path, r->config->qmp_timeout_ms, &ops, e, &e->link);

	if (result < 0) {
		snprintf(why, sizeof(why), "cannot open a socket: %s", strerror(-result));
		link_fail(e, VM_UNREACHABLE, why);
		return;
	}
	pid = link_foreign_pid(e);
	if (pid) {
		snprintf(why, sizeof(why), "the socket belongs to pid %d", pid);
		link_fail(e, VM_UNREACHABLE, why);
	}
}

void link_start(struct vm_entry *e)
{
	uint64_t ticks_per_s = (uint64_t)sysconf(_SC_CLK_TCK);
	uint64_t started_ns = e->vm.start_ticks * (NSEC_PER_SEC / ticks_per_s); /* start_ticks are since boot */
	uint64_t now_ns = clock_ns(CLOCK_BOOTTIME);
	/* A start in the future, by a clock of another namespace, counts as just now. */
	uint64_t age_ns = now_ns > started_ns ? now_ns - started_ns : 0;

	if (age_ns < YOUNG_NS)
		link_wait(e, (YOUNG_NS - age_ns) / 1000 + 1);
	else
		link_open(e);
}

void link_reopen(struct vm_entry *e)
{
	char old[VM_PATH_MAX];
	const char *why = "";
	int r;

	memcpy(old, e->vm.qmp_path, sizeof(old));
	r = link_path(e, &why);
	if (r == 0 && e->link && strcmp(old, e->vm.qmp_path) == 0)
		return;
	link_close(e);
	e->delay_s = 0;
	if (r < 0) {
		entry_set_state(e, VM_NO_QMP, why);
		return;
	}
	if (strcmp(old, e->vm.qmp_path) != 0)
		entry_set_state(e, VM_FOUND, "QMP path changed");
	link_start(e);
}
