/* The calls of agent/memvirt-agent.h: attach, slots, fork, detach. */
#include "agent/client_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/cleanup.h"

#define PAGE WINDOW_PAGE_BYTES
#define STACK_BYTES (256u * 1024) /* exchange_merge() needs a few KiB; mlockall would lock all of it */

_Static_assert(AGENT_SLOTS_MAX == EXCHANGE_SLOTS_MAX, "slots");
_Static_assert(AGENT_WINDOW_PAGES == WINDOW_PAGES, "windows");
_Static_assert(sizeof(struct exchange_journal) <= PAGE, "the journal is one page");

/* ---- the guard ---- */

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static sigset_t guard_mask; /* of its holder: a handler that forks or discards would wait for itself */
static int guard_cancel;
static struct memvirt_agent *active; /* the agent of this process */

void client_guard_lock(void)
{
	sigset_t all, old;
	int cancel;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	pthread_mutex_lock(&guard);
	guard_mask = old;
	guard_cancel = cancel;
}

void client_guard_unlock(void)
{
	sigset_t old = guard_mask;
	int cancel = guard_cancel;

	pthread_mutex_unlock(&guard);
	pthread_setcancelstate(cancel, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

struct memvirt_agent *client_agent(void)
{
	return active;
}

/* The exchange's lock fails only when nothing can be merged any more; the call goes ahead without it then. */
static struct exchange *ram_locked; /* with the guard held: which lock is */

struct memvirt_agent *client_ram_lock(void)
{
	client_guard_lock();
	ram_locked = active && active->x && exchange_lock(active->x) == 0 ? active->x : NULL;
	return active;
}

void client_ram_unlock(struct memvirt_agent *a)
{
	(void)a;
	if (ram_locked)
		exchange_unlock(ram_locked);
	ram_locked = NULL;
	client_guard_unlock();
}

void client_wake(struct memvirt_agent *a)
{
	const uint64_t one = 1;

	/* Cannot block: the counter would have to be near 2^64. A forked child has no thread to wake. */
	if (a->wake >= 0)
		(void)!write(a->wake, &one, sizeof(one));
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
		err = pthread_create(&a->thread, &attr, client_thread, a);
	pthread_attr_destroy(&attr);
	a->thread_runs = err == 0;
	return -err;
}

/* ---- fork ---- */

/* The guard first: no descriptor or slot is half made. Then the exchange: no window is open while memory is copied (R6). */
static void fork_prepare(void)
{
	client_guard_lock();
	if (active && active->x)
		exchange_fork_prepare(active->x);
}

static void fork_parent(void)
{
	if (active && active->x)
		exchange_fork_parent(active->x);
	client_guard_unlock();
}

/* The connection, the userfaultfd and the journal are the parent's. Only close() is called: a shutdown would end
 * the parent's connection too. The journal and the store are not in the child's memory (DONTFORK). */
static void fork_child(void)
{
	struct memvirt_agent *a = active;

	if (a) {
		if (a->x)
			exchange_fork_child(a->x);
		atomic_store(&a->ended, "this is a forked child");
		a->child = true;
		a->thread_runs = false;
		a->journal = NULL;
		a->store.map = NULL;
		a->freezer = freezer_forget(a->freezer);
		cleanup_close(&a->sock);
		cleanup_close(&a->uffd);
		cleanup_close(&a->journal_fd);
		cleanup_close(&a->wake);
		cleanup_close(&a->store.fd);
		a->sock = a->uffd = a->journal_fd = a->wake = a->store.fd = -1;
		client_ram_untold(a);
		client_ram_inherited(a); /* other memory may come to be where RAM is not */
	}
	client_guard_unlock();
}

static int fork_watch(void)
{
	static bool watched; /* under the guard; handlers cannot be taken away again */
	int err = watched ? 0 : pthread_atfork(fork_prepare, fork_parent, fork_child);

	watched = err == 0;
	return -err;
}

/* ---- attach and detach ---- */

/* Takes agents that are half built, without a thread. What is merged stays so. */
static void agent_free(struct memvirt_agent *a)
{
	client_store_drop(a);
	exchange_free(a->x);
	freezer_free(a->freezer);
	if (a->journal)
		munmap(a->journal, PAGE);
	cleanup_close(&a->journal_fd);
	cleanup_close(&a->uffd);
	cleanup_close(&a->sock);
	cleanup_close(&a->wake);
	free(a->path);
	free(a);
}

static int agent_new(const char *path, struct memvirt_agent **ret_agent, const char **ret_why)
{
	struct memvirt_agent *a;
	int err;

	*ret_why = "this process has an agent already";
	if (active && active->own && active->child && !client_ram_inherited(active)) {
		agent_free(active); /* a child that becomes a VMM itself, with RAM of its own */
		active = NULL;
		client_touched_clear();
	}
	if (active)
		return -EBUSY;
	*ret_why = "fork() cannot be watched";
	err = fork_watch();
	if (err < 0)
		return err;
	*ret_why = "no memory";
	a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->sock = a->uffd = a->journal_fd = a->store.fd = -1;
	a->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	a->path = strdup(path);
	if (a->wake < 0 || !a->path) {
		agent_free(a);
		return -ENOMEM;
	}
	*ret_agent = a;
	return 0;
}

static int attach_guarded(const char *path, struct memvirt_agent **ret_agent, const char **ret_why)
{
	struct memvirt_agent *a;
	const char *why;
	int err = agent_new(path, &a, ret_why);

	if (err < 0)
		return err;
	err = client_connect(a, true, &why);
	if (err == 0) {
		*ret_why = "no thread can be started";
		err = thread_start(a);
	} else {
		*ret_why = why;
	}
	if (err < 0) {
		agent_free(a);
		return err;
	}
	*ret_why = why;
	*ret_agent = active = a;
	return 0;
}

int memvirt_agent_attach(const char *socket_path, struct memvirt_agent **ret_agent, const char **ret_why)
{
	int err;

	client_guard_lock();
	err = attach_guarded(socket_path, ret_agent, ret_why);
	client_guard_unlock();
	return err;
}

int client_start(const char *path, struct memvirt_agent **ret_agent)
{
	struct memvirt_agent *a;
	const char *why;
	int err = agent_new(path, &a, &why);

	if (err < 0)
		return err;
	a->own = a->prints = true;
	atomic_store(&a->ended, "not connected yet");
	err = thread_start(a);
	if (err < 0) {
		agent_free(a);
		return err;
	}
	*ret_agent = active = a;
	return 0;
}

struct memvirt_agent *memvirt_agent_detach(struct memvirt_agent *a)
{
	bool runs;

	if (!a)
		return NULL;
	client_guard_lock();
	runs = a->thread_runs;
	atomic_store(&a->stop, true);
	if (runs && a->sock >= 0)
		shutdown(a->sock, SHUT_RDWR); /* it may be sending */
	client_wake(a);
	client_guard_unlock();
	/* Without the guard, for the thread takes it. Still the active one: a fork waits for its window to end. */
	if (runs)
		pthread_join(a->thread, NULL);
	client_fold_all(a);
	client_guard_lock();
	active = NULL;
	client_touched_clear();
	agent_free(a);
	client_guard_unlock();
	return NULL;
}

const char *memvirt_agent_ended(const struct memvirt_agent *a)
{
	return atomic_load(&a->ended);
}

/* ---- slots ---- */

static int add_slot_guarded(struct memvirt_agent *a, void *addr, size_t len, const char **ret_why)
{
	struct ram *r;
	int err;

	*ret_why = "this is a forked child";
	if (a->child)
		return -ENOTCONN;
	err = client_ram_add(a, (uint64_t)(uintptr_t)addr, len, 0, &r, ret_why);
	if (err < 0)
		return err;
	err = client_ram_judge(a, r, ret_why);
	if (err == 0)
		client_wake(a);
	return err;
}

int memvirt_agent_add_slot(struct memvirt_agent *a, void *addr, size_t len, const char **ret_why)
{
	int err;

	client_guard_lock();
	err = add_slot_guarded(a, addr, len, ret_why);
	client_guard_unlock();
	return err;
}

int memvirt_agent_remove_slot(struct memvirt_agent *a, void *addr)
{
	uint64_t at = (uint64_t)(uintptr_t)addr;
	struct ram *r;

	client_ram_lock(); /* waits for the window that may be open in it */
	r = client_ram_at(a, at);
	if (r && r->start != at)
		r = NULL;
	if (r && r->exchanged)
		exchange_slot_track(a->x, addr, false);
	if (r)
		client_ram_remove(a, r);
	client_ram_unlock(a);
	return r ? 0 : -ENOENT;
}

/* ---- discarding ---- */

int memvirt_agent_discard(struct memvirt_agent *a, void *addr, size_t len)
{
	int err;

	client_ram_lock();
	err = client_ram_discard(a, (uint64_t)(uintptr_t)addr, len, MADV_DONTNEED);
	client_ram_unlock(a);
	return err;
}
