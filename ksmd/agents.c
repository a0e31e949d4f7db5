#include "ksmd/agents.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/usock.h"

#define AGENTS_MAX 2048 /* two for each VM that the registry takes in */
/* One at work, one that is lent and over, one that begins: a process that holds more keeps others out. */
#define CONNECTIONS_MAX 4
#define BACKLOG 128
#define EVENTS_MAX 64
/* A VMM that starts is known as a VM within a few seconds, and its agent says hello as soon as it has RAM. */
#define STRANGER_NS (60 * NSEC_PER_SEC)
#define DEAF_NS NSEC_PER_SEC /* a listener that is ready and cannot be served would keep the loop busy */
#define UFFD_DEVICE "/dev/userfaultfd"

struct agent_entry {
	struct agent agent; /* first: agents_find() gives it out */
	pid_t pid;
	bool looked_for; /* its VM is being looked for */
	bool dead; /* to be freed as soon as it is not lent */
	uint64_t since_ns;
	struct agent_entry *next;
};

struct agents {
	char *path;
	int listen_fd, epoll_fd;
	struct agent_entry *first;
	unsigned count;
	bool full_logged;
	uint64_t deaf_since_ns; /* nobody can be accepted for want of descriptors or memory; 0: the listener is watched */
};

static int listener_watch(struct agents *a)
{
	struct epoll_event event = { .events = EPOLLIN }; /* data.ptr NULL: the listener */

	return epoll_ctl(a->epoll_fd, EPOLL_CTL_ADD, a->listen_fd, &event);
}

int agents_new(const char *path, const char *group, struct agents **ret_agents)
{
	struct agents *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return -ENOMEM;
	a->epoll_fd = -1;
	a->path = strdup(path);
	r = a->listen_fd = a->path ? usock_listen(path, SOCK_SEQPACKET, group, BACKLOG) : -ENOMEM;
	if (r >= 0)
		r = a->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (r >= 0)
		r = listener_watch(a);
	if (r < 0) {
		r = a->listen_fd < 0 ? a->listen_fd : -errno;
		agents_free(a);
		return r;
	}
	*ret_agents = a;
	return 0;
}

struct agents *agents_free(struct agents *a)
{
	if (!a)
		return NULL;
	for (struct agent_entry *e = a->first, *next; e; e = next) {
		next = e->next;
		agent_peer_free(e->agent.peer);
		free(e);
	}
	if (a->listen_fd >= 0) {
		unlink(a->path);
		close(a->listen_fd);
	}
	if (a->epoll_fd >= 0)
		close(a->epoll_fd);
	free(a->path);
	free(a);
	return NULL;
}

int agents_fd(const struct agents *a)
{
	return a->epoll_fd;
}

/* ---- connections come and go ---- */

static int watch(struct agents *a, struct agent_entry *e)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = e };

	return epoll_ctl(a->epoll_fd, EPOLL_CTL_ADD, agent_peer_fd(e->agent.peer), &event) < 0 ? -errno : 0;
}

static void unwatch(struct agents *a, const struct agent_entry *e)
{
	epoll_ctl(a->epoll_fd, EPOLL_CTL_DEL, agent_peer_fd(e->agent.peer), NULL);
}

/* Before the connection is given up: what its VMM's thread may have left open is finished, if that thread is dead. */
static void repair(const struct agent_entry *e)
{
	int r = agent_peer_repair(e->agent.peer);

	if (r > 0)
		log_warning("agent pid=%d: finished the exchange that its thread had left open", (int)e->pid);
	else if (r < 0)
		log_error("agent pid=%d: an exchange that its thread had left open cannot be finished, guest threads "
			  "may wait: %s", (int)e->pid, strerror(-r));
}

/* The connection is given up. Its memory goes later: an event at hand may be its own, another thread may have it. */
static void entry_end(struct agents *a, struct agent_entry *e)
{
	if (e->dead)
		return;
	e->dead = true;
	if (!e->agent.lent)
		unwatch(a, e);
}

static void dead_free(struct agents *a)
{
	for (struct agent_entry **link = &a->first; *link;) {
		struct agent_entry *e = *link;

		if (!e->dead || e->agent.lent) {
			link = &e->next;
			continue;
		}
		*link = e->next;
		a->count--;
		if (agent_peer_ready(e->agent.peer)) {
			log_info("agent gone pid=%d", (int)e->pid);
			repair(e);
		}
		agent_peer_free(e->agent.peer);
		free(e);
	}
}

static unsigned connections_of(const struct agents *a, pid_t pid)
{
	unsigned count = 0;

	for (const struct agent_entry *e = a->first; e; e = e->next)
		count += e->pid == pid;
	return count;
}

static void accept_one(struct agents *a, int fd)
{
	struct agent_entry *e;
	int r;

	if (a->count >= AGENTS_MAX) {
		if (!a->full_logged)
			log_warning("more than %d agents, turning others away", AGENTS_MAX);
		a->full_logged = true;
		close(fd);
		return;
	}
	e = calloc(1, sizeof(*e));
	if (!e) {
		close(fd);
		return;
	}
	r = agent_peer_new(fd, &e->agent.peer); /* takes fd */
	if (r == 0) {
		e->pid = agent_peer_pid(e->agent.peer);
		e->since_ns = clock_mono_ns();
		r = connections_of(a, e->pid) < CONNECTIONS_MAX ? watch(a, e) : -EUSERS;
	}
	if (r < 0) {
		agent_peer_free(e->agent.peer);
		free(e);
		return;
	}
	e->next = a->first;
	a->first = e;
	a->count++;
}

/* One connection for each process: the one that said hello last. */
static void others_drop(struct agents *a, const struct agent_entry *keep)
{
	for (struct agent_entry *e = a->first; e; e = e->next)
		if (e != keep && e->pid == keep->pid && (e->agent.lent || agent_peer_ready(e->agent.peer)))
			entry_end(a, e);
}

static void entry_read(struct agents *a, struct agent_entry *e)
{
	bool ready = agent_peer_ready(e->agent.peer);
	struct agent_answer answer;
	const char *why;
	int r;

	if (e->dead)
		return;
	r = agent_peer_take(e->agent.peer, 0, &answer);

	if (r < 0 && r != -ETIMEDOUT) {
		if (r == -EPROTONOSUPPORT)
			log_warning("agent pid=%d speaks another version of the protocol: its VM is left alone",
				    (int)e->pid);
		else if (r != -ECONNRESET)
			log_warning("agent pid=%d turned away: %s", (int)e->pid,
				    r == -EPROTO ? "what it sent is not well formed" : strerror(-r));
		entry_end(a, e);
		return;
	}
	e->agent.released |= agent_peer_released(e->agent.peer);
	if (ready || !agent_peer_ready(e->agent.peer))
		return;
	others_drop(a, e);
	e->agent.said_hello = true;
	why = agent_peer_refusal(e->agent.peer);
	log_info("agent pid=%d%s%s%s", (int)e->pid, why ? " without remap why=\"" : "", why ? why : "", why ? "\"" : "");
}

static void listener_read(struct agents *a)
{
	int fd = accept4(a->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd >= 0) {
		accept_one(a, fd);
	} else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
		log_warning("agents cannot be accepted now: %s", strerror(errno));
		epoll_ctl(a->epoll_fd, EPOLL_CTL_DEL, a->listen_fd, NULL);
		a->deaf_since_ns = clock_mono_ns();
	}
}

void agents_dispatch(struct agents *a)
{
	struct epoll_event events[EVENTS_MAX];
	int n = epoll_wait(a->epoll_fd, events, EVENTS_MAX, 0);

	for (int i = 0; i < n; i++) {
		if (events[i].data.ptr)
			entry_read(a, events[i].data.ptr);
		else
			listener_read(a);
	}
	dead_free(a);
}

/* ---- who they are ---- */

static void uffd_give(struct agents *a, struct agent_entry *e)
{
	auto_close int fd = open(UFFD_DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		log_info("agent pid=%d gets no userfaultfd: " UFFD_DEVICE ": %s", (int)e->pid, strerror(errno));
	if (agent_peer_give_uffd(e->agent.peer, fd) < 0)
		entry_end(a, e);
}

bool agents_review(struct agents *a, bool (*is_vm)(pid_t pid, void *userdata), void *userdata)
{
	uint64_t now = clock_mono_ns();
	bool unknown = false;

	if (a->deaf_since_ns && now - a->deaf_since_ns >= DEAF_NS && listener_watch(a) == 0)
		a->deaf_since_ns = 0;
	for (struct agent_entry *e = a->first; e; e = e->next) {
		bool known = is_vm(e->pid, userdata);

		if (e->agent.lent || e->dead)
			continue;
		if (known && agent_peer_wants_uffd(e->agent.peer))
			uffd_give(a, e);
		else if ((!known || !agent_peer_ready(e->agent.peer)) && now - e->since_ns > STRANGER_NS)
			entry_end(a, e);
		else if (!known && !e->looked_for)
			unknown = e->looked_for = true;
	}
	dead_free(a);
	return unknown;
}

struct agent *agents_find(const struct agents *a, pid_t pid)
{
	for (struct agent_entry *e = a->first; e; e = e->next)
		if (e->pid == pid && !e->dead && (e->agent.lent || agent_peer_ready(e->agent.peer)))
			return &e->agent;
	return NULL;
}

void agents_drop(struct agents *a, pid_t pid)
{
	for (struct agent_entry *e = a->first; e; e = e->next)
		if (e->pid == pid)
			entry_end(a, e);
	dead_free(a);
}

/* ---- lending ---- */

struct agent_peer *agent_lend(struct agents *a, struct agent *agent)
{
	unwatch(a, (struct agent_entry *)agent);
	agent->lent = true;
	return agent->peer;
}

void agent_return(struct agents *a, struct agent_peer *peer, bool broken)
{
	for (struct agent_entry *e = a->first; e; e = e->next) {
		if (e->agent.peer != peer)
			continue;
		e->agent.lent = false;
		e->agent.released |= agent_peer_released(peer);
		if (e->dead)
			break;
		if (watch(a, e) < 0 || broken)
			entry_end(a, e);
		break;
	}
	dead_free(a);
}
