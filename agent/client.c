/* The calls of agent/memvirt-agent.h: attach, slots, fork, detach. */
#include "agent/client_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/uffd.h"
#include "core/cleanup.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3 */
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define PAGE WINDOW_PAGE_BYTES
#define SEND_TIMEOUT_S 1 /* a daemon that does not read for so long is as good as gone */
#define STACK_BYTES (256u * 1024) /* exchange_merge() needs a few KiB; mlockall would lock all of it */

_Static_assert(AGENT_SLOTS_MAX == EXCHANGE_SLOTS_MAX, "slots");
_Static_assert(AGENT_WINDOW_PAGES == WINDOW_PAGES, "windows");
_Static_assert(sizeof(struct exchange_journal) <= PAGE, "the journal is one page");

/* The agent of this process, for fork(). The guard is held for attach, detach, slots and fork; never by the thread. */
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static sigset_t guard_mask; /* of its holder: a handler that forks would wait for itself */
static struct memvirt_agent *active;

static void guard_lock(void)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_mutex_lock(&guard);
	guard_mask = old;
}

static void guard_unlock(void)
{
	sigset_t old = guard_mask;

	pthread_mutex_unlock(&guard);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* ---- the thread ---- */

/* With the guard held, and so with all signals blocked: no handler of the VMM ever runs on this thread. */
static int thread_start(struct memvirt_agent *a)
{
	pthread_attr_t attr;
	int err = pthread_attr_init(&attr);

	if (err != 0)
		return -err;
	err = pthread_attr_setstacksize(&attr, STACK_BYTES);
	if (err == 0)
		err = pthread_create(&a->thread, &attr, client_serve, a);
	pthread_attr_destroy(&attr);
	a->thread_runs = err == 0;
	return -err;
}

/* ---- fork ---- */

static void fork_prepare(void)
{
	guard_lock();
	if (active)
		exchange_fork_prepare(active->x); /* no window is open while memory is copied (R6) */
}

static void fork_parent(void)
{
	if (active)
		exchange_fork_parent(active->x);
	guard_unlock();
}

/* The connection, the userfaultfd and the journal are the parent's. Only close() is called: a shutdown would end
 * the parent's connection too. The journal and the store are not in the child's memory (DONTFORK). */
static void fork_child(void)
{
	struct memvirt_agent *a = active;

	if (a) {
		exchange_fork_child(a->x);
		atomic_store(&a->ended, "this is a forked child");
		a->child = true;
		a->thread_runs = false;
		a->journal = NULL;
		a->store.map = NULL;
		cleanup_close(&a->sock);
		cleanup_close(&a->uffd);
		cleanup_close(&a->journal_fd);
		cleanup_close(&a->store.fd);
		a->sock = a->uffd = a->journal_fd = a->store.fd = -1;
	}
	guard_unlock();
}

static int fork_watch(void)
{
	static bool watched; /* under the guard; handlers cannot be taken away again */
	int err = watched ? 0 : pthread_atfork(fork_prepare, fork_parent, fork_child);

	watched = err == 0;
	return -err;
}

/* ---- attach and detach ---- */

/* Who gets our userfaultfd has power over our memory: only root, or ourselves, who have it anyway. */
static int peer_check(int sock)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return -errno;
	return peer.uid == 0 || peer.uid == geteuid() ? 0 : -EPERM;
}

static int daemon_connect(const char *path, const char **ret_why)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct timeval timeout = { .tv_sec = SEND_TIMEOUT_S };
	auto_close int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	size_t len = strlen(path);
	int err;

	*ret_why = "there is no socket to be had";
	if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0)
		return -errno;
	*ret_why = "the path of the daemon's socket is empty or too long";
	if (len == 0 || len >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, len);
	*ret_why = "the daemon cannot be reached";
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return -errno;
	*ret_why = "the daemon's socket belongs to another user";
	err = peer_check(sock);
	return err < 0 ? err : take_fd(sock);
}

/* Sealed, or the daemon could make it shorter and the next step of an exchange end in SIGBUS. */
static int journal_open(struct memvirt_agent *a)
{
	void *map;

	a->journal_fd = memfd_create("memvirt-journal", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (a->journal_fd < 0 || ftruncate(a->journal_fd, (off_t)PAGE) < 0 ||
	    fcntl(a->journal_fd, F_ADD_SEALS, CLIENT_SEALS | F_SEAL_SEAL) < 0)
		return -errno;
	map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, a->journal_fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	a->journal = map;
	return madvise(map, PAGE, MADV_DONTFORK) < 0 ? -errno : 0;
}

static int hello(const struct memvirt_agent *a)
{
	const struct agent_hello h = { .header.type = AGENT_HELLO,
				       .version = AGENT_PROTOCOL_VERSION,
				       .flags = AGENT_CAN_REMAP };
	const int fds[] = { a->uffd, a->journal_fd };

	return packet_send(a->sock, &h, sizeof(h), fds, ARRAY_SIZE(fds));
}

/* Takes agents that are half built. Merged memory stays as it is. */
static void agent_free(struct memvirt_agent *a)
{
	if (a->thread_runs) {
		client_end(a, "detached");
		pthread_join(a->thread, NULL);
	}
	exchange_free(a->x);
	if (a->store.map)
		munmap((void *)(uintptr_t)a->store.map, a->store.frames * PAGE);
	if (a->journal)
		munmap(a->journal, PAGE);
	cleanup_close(&a->store.fd);
	cleanup_close(&a->journal_fd);
	cleanup_close(&a->uffd);
	cleanup_close(&a->sock);
	free(a);
}

static int agent_open(struct memvirt_agent *a, const char *path, const char **ret_why)
{
	int err = fork_watch();

	*ret_why = "fork() cannot be watched";
	if (err < 0)
		return err;
	a->sock = daemon_connect(path, ret_why);
	if (a->sock < 0)
		return a->sock;
	*ret_why = "userfaultfd is not allowed (access to /dev/userfaultfd or CAP_SYS_PTRACE), or too old (Linux 6.8)";
	a->uffd = uffd_open();
	if (a->uffd < 0)
		return a->uffd;
	err = uffd_probe(a->uffd, ret_why);
	if (err < 0)
		return err;
	*ret_why = "the journal cannot be made";
	err = journal_open(a);
	if (err < 0)
		return err;
	*ret_why = "the exchange cannot be set up";
	err = exchange_new(a->uffd, a->journal, &a->x);
	if (err < 0)
		return err;
	*ret_why = "the daemon does not answer";
	err = hello(a);
	if (err < 0)
		return err;
	*ret_why = "no thread can be started";
	return thread_start(a);
}

static int attach_guarded(const char *path, struct memvirt_agent **ret_agent, const char **ret_why)
{
	struct memvirt_agent *a;
	int err;

	*ret_why = "this process has an agent already";
	if (active)
		return -EBUSY;
	*ret_why = "no memory";
	a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->sock = a->uffd = a->journal_fd = a->store.fd = -1;
	err = agent_open(a, path, ret_why);
	if (err < 0) {
		agent_free(a);
		return err;
	}
	*ret_why = "";
	*ret_agent = active = a;
	return 0;
}

int memvirt_agent_attach(const char *socket_path, struct memvirt_agent **ret_agent, const char **ret_why)
{
	int err;

	guard_lock();
	err = attach_guarded(socket_path, ret_agent, ret_why);
	guard_unlock();
	return err;
}

struct memvirt_agent *memvirt_agent_detach(struct memvirt_agent *a)
{
	if (!a)
		return NULL;
	/* A fork waits for the guard, so the thread has ended its window, and itself, before any memory is copied. */
	guard_lock();
	active = NULL;
	agent_free(a);
	guard_unlock();
	return NULL;
}

const char *memvirt_agent_ended(const struct memvirt_agent *a)
{
	return atomic_load(&a->ended);
}

/* ---- slots ---- */

static struct agent_slot *slot_at(struct memvirt_agent *a, uint64_t hva, uint64_t bytes)
{
	for (unsigned i = 0; i < AGENT_SLOTS_MAX; i++) {
		struct agent_slot *s = &a->slots[i];

		if (bytes == 0 ? s->bytes == 0 : s->bytes != 0 && s->hva == hva)
			return s;
	}
	return NULL;
}

static int slot_send(struct memvirt_agent *a, uint16_t type, const struct agent_slot *s)
{
	const struct agent_slot slot = { .header.type = type, .hva = s->hva, .bytes = s->bytes, .flags = AGENT_CAN_REMAP };
	const struct agent_range range = { .header.type = type, .hva = s->hva, .bytes = s->bytes };
	int err = type == AGENT_SLOT ? packet_send(a->sock, &slot, sizeof(slot), NULL, 0) :
				       packet_send(a->sock, &range, sizeof(range), NULL, 0);

	if (err < 0)
		client_end(a, "the daemon is gone");
	return err;
}

static int add_slot_guarded(struct memvirt_agent *a, void *addr, size_t len, const char **ret_why)
{
	struct agent_slot slot = { .hva = (uint64_t)(uintptr_t)addr, .bytes = len };
	struct agent_slot *room;
	int err;

	*ret_why = memvirt_agent_ended(a);
	if (*ret_why)
		return -ENOTCONN;
	err = exchange_slot_add(a->x, addr, len, false, ret_why);
	if (err < 0)
		return err;
	room = slot_at(a, 0, 0); /* as many as the exchange has */
	*ret_why = "the daemon is gone";
	if (!room || slot_send(a, AGENT_SLOT, &slot) < 0) {
		exchange_slot_remove(a->x, addr);
		return -ENOTCONN;
	}
	*room = slot;
	*ret_why = "";
	return 0;
}

int memvirt_agent_add_slot(struct memvirt_agent *a, void *addr, size_t len, const char **ret_why)
{
	int err;

	guard_lock();
	err = add_slot_guarded(a, addr, len, ret_why);
	guard_unlock();
	return err;
}

static int remove_slot_guarded(struct memvirt_agent *a, void *addr)
{
	struct agent_slot *s = slot_at(a, (uint64_t)(uintptr_t)addr, 1);
	int err;

	if (!s)
		return -ENOENT;
	err = exchange_slot_remove(a->x, addr); /* waits for the window that may be open in it */
	if (err < 0)
		return err;
	if (!memvirt_agent_ended(a))
		slot_send(a, AGENT_UNSLOT, s);
	memset(s, 0, sizeof(*s));
	return 0;
}

int memvirt_agent_remove_slot(struct memvirt_agent *a, void *addr)
{
	int err;

	guard_lock();
	err = remove_slot_guarded(a, addr);
	guard_unlock();
	return err;
}

/* ---- discarding ---- */

int memvirt_agent_discard(struct memvirt_agent *a, void *addr, size_t len)
{
	struct agent_range released = { .header.type = AGENT_RELEASED,
					   .hva = (uint64_t)(uintptr_t)addr,
					   .bytes = len };
	size_t merged;
	int err = exchange_lock(a->x);

	if (err < 0)
		return err;
	merged = exchange_merged_pages(a->x, addr, len);
	err = exchange_discard(a->x, addr, len); /* nothing of it is needed: one mapping again, not pieces */
	/* The real call under the same lock: in a window it would discard nothing, and the old bytes come back. */
	if (err == 0 && syscall(SYS_madvise, addr, len, MADV_DONTNEED) < 0)
		err = -errno;
	exchange_unlock(a->x);
	if (merged > 0 && err == 0 && !memvirt_agent_ended(a) &&
	    packet_send(a->sock, &released, sizeof(released), NULL, 0) < 0)
		client_end(a, "the daemon is gone");
	return err;
}
