#include "bench/lib/replay_proc.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/lib/progress.h"
#include "core/cleanup.h"
#include "core/clock.h"

#define ANSWER_MAX_BYTES (1u << 20)
#define ANSWER_TIMEOUT_NS (300 * NSEC_PER_SEC)

/* ---- talking ---- */

/* Reads up to the end of the line; the other side sends nothing unasked. */
static int read_line(int fd, char *line, size_t cap)
{
	uint64_t deadline_ns = clock_mono_ns() + ANSWER_TIMEOUT_NS;
	size_t len = 0;

	while (len + 1 < cap) {
		struct pollfd wait = { .fd = fd, .events = POLLIN };
		uint64_t now_ns = clock_mono_ns();
		ssize_t n;

		if (now_ns >= deadline_ns)
			return -ETIMEDOUT;
		if (poll(&wait, 1, (int)((deadline_ns - now_ns) / NSEC_PER_MSEC) + 1) < 0)
			return -errno;
		if (wait.revents == 0)
			continue;
		n = read(fd, line + len, cap - 1 - len);
		if (n <= 0)
			return n < 0 && errno != ECONNRESET ? -errno : -EPIPE;
		len += (size_t)n;
		if (line[len - 1] == '\n') {
			line[len] = '\0';
			return 0;
		}
	}
	return -EMSGSIZE;
}

static int read_answer(struct replay_proc *p, json_t **ret_answer)
{
	auto_free char *line = malloc(ANSWER_MAX_BYTES);
	json_t *answer;
	int r;

	if (!line)
		return -ENOMEM;
	r = read_line(p->socket_fd, line, ANSWER_MAX_BYTES);
	if (r < 0)
		return r;
	answer = json_loads(line, 0, NULL);
	if (json_is_true(json_object_get(answer, "ok"))) {
		*ret_answer = answer;
		return 0;
	}
	progress("%s: %s", p->name, json_string_value(json_object_get(answer, "why")) ?: "no answer");
	json_decref(answer);
	return -EPROTO;
}

static int send_line(struct replay_proc *p, const char *command)
{
	char line[128];
	int len = snprintf(line, sizeof(line), "%s\n", command);

	if (len < 0 || len >= (int)sizeof(line))
		return -EINVAL;
	return send(p->socket_fd, line, (size_t)len, MSG_NOSIGNAL) == len ? 0 : -EPIPE;
}

int replay_command(struct replay_proc *p, const char *command, json_t **ret_answer)
{
	int r = send_line(p, command);

	return r < 0 ? r : read_answer(p, ret_answer);
}

/* ---- starting and ending ---- */

/* In the child; does not return. */
static void become_replay(const char *program, const char *json_path, const struct replay_options *o, int socket_fd,
			  pid_t parent)
{
	const char *argv[] = { program, "--thp", o->thp ? "on" : "off", json_path, o->mergeable ? "--mergeable" : NULL,
			       NULL };
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
		_exit(127);
	if (dup2(socket_fd, STDIN_FILENO) < 0 || dup2(socket_fd, STDOUT_FILENO) < 0)
		_exit(127);
	execv(program, (char *const *)argv);
	_exit(127);
}

static int start_one(const char *program, const char *json_path, const struct replay_options *o,
		     struct replay_proc *p)
{
	pid_t parent = getpid();
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	p->pid = fork();
	if (p->pid == 0)
		become_replay(program, json_path, o, pair[1], parent);
	r = p->pid < 0 ? -errno : 0;
	close(pair[1]);
	if (r < 0) {
		close(pair[0]);
		return r;
	}
	p->socket_fd = pair[0];
	p->pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
	return p->pidfd < 0 ? -errno : 0;
}

/* Field 22 of /proc/PID/stat, counted from behind the name, which may hold blanks. */
static int read_start_ticks(const struct fsio *fs, pid_t pid, uint64_t *ret_ticks)
{
	char stat[1024], *at;
	ssize_t n = fsio_read(fs, stat, sizeof(stat), "proc/%d/stat", (int)pid);

	if (n < 0)
		return (int)n;
	at = strrchr(stat, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	if (!at)
		return -EBADMSG;
	*ret_ticks = strtoull(at + 1, NULL, 10);
	return 0;
}

static int wait_ready(const struct fsio *fs, struct replay_proc *p)
{
	json_int_t hva, bytes, present, huge;
	const char *name;
	json_t *ready;
	int r = read_answer(p, &ready);

	if (r < 0)
		return r;
	r = json_unpack(ready, "{s:s, s:I, s:I, s:I, s:{s:I}}", "name", &name, "hva", &hva, "bytes", &bytes,
			"present_pages", &present, "stats", "anon_huge_kib", &huge);
	if (r == 0) {
		snprintf(p->name, sizeof(p->name), "%s", name);
		p->hva = (uint64_t)hva;
		p->bytes = (uint64_t)bytes;
		p->present_pages = (uint64_t)present;
		p->huge_kib = (uint64_t)huge;
	}
	json_decref(ready);
	return r < 0 ? -EPROTO : read_start_ticks(fs, p->pid, &p->start_ticks);
}

int replay_group_start(const struct fsio *fs, const char *program, char *const *json_paths, size_t count,
		       const struct replay_options *options, struct replay_group *ret_group)
{
	struct replay_group *g = ret_group;
	int r = 0;

	*g = (struct replay_group){ 0 };
	for (size_t i = 0; i < count && r == 0; i++) {
		struct replay_proc *p = &g->proc[i];

		*p = (struct replay_proc){ .pidfd = -1, .socket_fd = -1, .pid = -1 };
		snprintf(p->name, sizeof(p->name), "replay %zu", i);
		r = start_one(program, json_paths[i], options, p);
		g->count++;
	}
	for (size_t i = 0; i < g->count && r == 0; i++)
		r = wait_ready(fs, &g->proc[i]);
	if (r < 0)
		replay_group_end(g);
	return r;
}

void replay_group_end(struct replay_group *g)
{
	for (size_t i = 0; i < g->count; i++) {
		if (g->proc[i].pid > 0)
			kill(g->proc[i].pid, SIGKILL);
		if (g->proc[i].socket_fd >= 0)
			close(g->proc[i].socket_fd);
		if (g->proc[i].pidfd >= 0)
			close(g->proc[i].pidfd);
	}
	for (size_t i = 0; i < g->count; i++) {
		if (g->proc[i].pid > 0)
			waitpid(g->proc[i].pid, NULL, 0);
	}
	g->count = 0;
}

/* ---- all together ---- */

int replay_group_victims_start(struct replay_group *g)
{
	int r = 0;

	for (size_t i = 0; i < g->count && r == 0; i++) {
		json_t *answer = NULL;

		r = replay_command(&g->proc[i], "victim start", &answer);
		json_decref(answer);
	}
	return r;
}

int replay_group_victims_stop(struct replay_group *g, struct hist *hist, uint64_t *ret_lost_writes)
{
	uint64_t lost = 0;
	int r = 0;

	for (size_t i = 0; i < g->count && r == 0; i++) {
		json_t *answer = NULL;

		r = replay_command(&g->proc[i], "victim stop", &answer);
		if (r == 0)
			r = hist_add_json(hist, json_object_get(answer, "latency"));
		lost += (uint64_t)json_integer_value(json_object_get(answer, "lost_writes"));
		json_decref(answer);
	}
	if (r == 0)
		*ret_lost_writes = lost;
	return r;
}

int replay_group_rewrite(struct replay_group *g, struct replay_rewritten *ret_rewritten)
{
	struct replay_rewritten sum = { 0 };
	int r = 0;

	for (size_t i = 0; i < g->count && r == 0; i++)
		r = send_line(&g->proc[i], "rewrite");
	for (size_t i = 0; i < g->count && r == 0; i++) {
		json_t *answer = NULL;
		uint64_t ns, longest_ns;

		r = read_answer(&g->proc[i], &answer);
		ns = (uint64_t)json_integer_value(json_object_get(answer, "ns"));
		longest_ns = (uint64_t)json_integer_value(json_object_get(answer, "longest_ns"));
		sum.pages += (uint64_t)json_integer_value(json_object_get(answer, "pages"));
		sum.ns = ns > sum.ns ? ns : sum.ns;
		sum.longest_ns = longest_ns > sum.longest_ns ? longest_ns : sum.longest_ns;
		json_decref(answer);
	}
	if (r == 0)
		*ret_rewritten = sum;
	return r;
}

int replay_group_check(struct replay_group *g, uint64_t *ret_wrong_pages)
{
	uint64_t wrong = 0;
	int r = 0;

	for (size_t i = 0; i < g->count && r == 0; i++)
		r = send_line(&g->proc[i], "checksum");
	for (size_t i = 0; i < g->count && r == 0; i++) {
		json_t *answer = NULL;

		r = read_answer(&g->proc[i], &answer);
		wrong += (uint64_t)json_integer_value(json_object_get(answer, "wrong_pages"));
		json_decref(answer);
	}
	if (r == 0)
		*ret_wrong_pages = wrong;
	return r;
}

uint64_t replay_group_pages(const struct replay_group *g)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < g->count; i++)
		pages += g->proc[i].present_pages;
	return pages;
}
