/* The agent's thread: connects, says hello, serves, and when the connection has ended, waits and does it again.
 *
 * What survives a connection is the userfaultfd, the journal, the exchange and all that is merged. What does not is the
 * daemon's store, as far as the thread has it mapped (merged memory keeps its frames), and everything the daemon was
 * told. A packet of an earlier connection cannot be executed later: packets are read one by one from the connection's
 * own socket, which is closed before the next is opened. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/client_internal.h"
#include "agent/uffd.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "core/kernel_abi.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3 */
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define PAGE WINDOW_PAGE_BYTES
#define SEND_TIMEOUT_S 1 /* a daemon that does not read for so long is as good as gone */
#define ASK_TIMEOUT_MS 1000 /* in attach(), where the VMM waits */
#define ASK_PATIENT_MS 10000 /* in the thread: a daemon may be at work on something long */
/* A daemon that is being restarted is back within a second; one that is not there costs a connect() each 5 s: ksmd
 * waits a little longer than that for agents to call before it takes another engine. */
#define PAUSE_FIRST_MS 1000
#define PAUSE_MOST_MS 5000
#define LASTED_NS (30 * NSEC_PER_SEC) /* a connection that lived so long was a good one: begin with short pauses again */

/* ---- waiting ---- */

bool client_wait(struct memvirt_agent *a, int fd, int timeout_ms)
{
	struct pollfd fds[] = { { .fd = a->wake, .events = POLLIN }, { .fd = fd, .events = POLLIN } };
	uint64_t count;

	if (poll(fds, ARRAY_SIZE(fds), timeout_ms) <= 0)
		return false;
	if (fds[0].revents != 0 && read(a->wake, &count, sizeof(count)) < 0 && errno == EBADF)
		poll(NULL, 0, PAUSE_FIRST_MS); /* the VMM has closed what is ours: at least do not spin */
	return fds[1].revents != 0;
}

/* Wake-ups are for a thread that has a daemon to talk to; here only the end of the agent counts. */
static void client_pause(struct memvirt_agent *a, uint64_t ms)
{
	uint64_t end = clock_mono_ns() + ms * NSEC_PER_MSEC, now;

	while (!atomic_load(&a->stop) && (now = clock_mono_ns()) < end)
		client_wait(a, -1, (int)((end - now) / NSEC_PER_MSEC) + 1);
}

/* ---- the socket ---- */

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

/* ---- the userfaultfd ---- */

static int freezer_ask(int device)
{
	int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK), err;

	if (fd < 0)
		return -errno;
	err = uffd_setup_freezer(fd);
	if (err < 0)
		close(fd);
	return err < 0 ? err : fd;
}

/* /dev/userfaultfd as root has it open; what is made with it is for our own memory, and needs no privilege. Returns a
 * userfaultfd, -EPERM: the daemon has none to give; other: the connection is no good. */
static int uffd_ask(struct memvirt_agent *a, int sock, int timeout_ms)
{
	const struct agent_header ask = { .type = AGENT_UFFD_ASK };
	uint64_t end = clock_mono_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC, now;
	int err = packet_send(sock, &ask, sizeof(ask), NULL, 0), fd = -EPERM;

	while (err == 0 && (now = clock_mono_ns()) < end && !atomic_load(&a->stop) &&
	       !client_wait(a, sock, (int)((end - now) / NSEC_PER_MSEC) + 1))
		;
	if (err == 0)
		err = packet_receive(sock, &a->in, MSG_DONTWAIT);
	if (err < 0)
		return err == -EPERM ? -ECONNRESET : err;
	if (a->in.header.type != AGENT_UFFD) {
		packet_close(&a->in);
		return -EPROTO;
	}
	if (a->in.uffd.granted) {
		fd = ioctl(a->in.fds[0], USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		if (fd >= 0 && uffd_setup(fd) < 0) {
			close(fd);
			fd = -1;
		}
		if (fd >= 0)
			client_fold_freezer(a, freezer_ask(a->in.fds[0]));
		fd = fd < 0 ? -EPERM : fd;
	}
	packet_close(&a->in);
	return fd;
}

/* *ret_no_x: why there is none, if the connection is good for hints all the same (returns 0). */
static int uffd_get(struct memvirt_agent *a, int sock, int timeout_ms, const char **ret_no_x, const char **ret_why)
{
	int fd = uffd_open();

	if (fd >= 0 && !a->freezer)
		client_fold_freezer(a, uffd_open_freezer());
	if (fd == -EPERM || fd == -EACCES) {
		fd = uffd_ask(a, sock, timeout_ms);
		*ret_why = "the daemon does not answer";
		if (fd < 0 && fd != -EPERM)
			return fd == -EAGAIN ? -ETIMEDOUT : fd;
	}
	*ret_no_x = "userfaultfd is not allowed here, and the daemon gives none";
	if (fd == -ENOSYS || fd == -EINVAL || fd == -EOPNOTSUPP)
		*ret_no_x = "the kernel is too old (Linux 6.8 is needed)";
	if (fd < 0)
		return 0;
	if (uffd_probe(fd, ret_no_x) < 0) {
		close(fd);
		return 0;
	}
	*ret_no_x = NULL;
	a->uffd = fd;
	return 0;
}

/* ---- the exchange ---- */

/* Sealed, or the daemon could make it shorter and the next step of an exchange end in SIGBUS. */
static int journal_open(struct memvirt_agent *a)
{
	void *map;

	a->journal_fd = memfd_create("memvirt-journal", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (a->journal_fd < 0 && errno == EINVAL)
		a->journal_fd = memfd_create("memvirt-journal", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (a->journal_fd < 0 || ftruncate(a->journal_fd, (off_t)PAGE) < 0 ||
	    fcntl(a->journal_fd, F_ADD_SEALS, CLIENT_SEALS | F_SEAL_SEAL) < 0)
		return -errno;
	map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, a->journal_fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	a->journal = map;
	return madvise(map, PAGE, MADV_DONTFORK) < 0 ? -errno : 0;
}

const char client_unfinished[] = "an exchange could not be finished";

static uint32_t journal_step_now(const struct memvirt_agent *a)
{
	return __atomic_load_n(&a->journal->step, __ATOMIC_ACQUIRE);
}

bool client_settled(const struct memvirt_agent *a)
{
	return journal_step_now(a) == STEP_IDLE;
}

/* With the guard held. NULL, or why there is no exchange. */
static const char *exchange_open(struct memvirt_agent *a)
{
	if (a->x) /* left by an earlier connection: a window that is open must be settled before the next */
		return exchange_resume(a->x) < 0 ? client_unfinished : NULL;
	if (!a->journal && journal_open(a) < 0)
		return "the journal cannot be made";
	if (exchange_new(a->uffd, a->journal, &a->x) < 0)
		return "the exchange cannot be set up (mlockall?)";
	exchange_use_freezer(a->x, a->freezer);
	return NULL;
}

static int hello(const struct memvirt_agent *a, int sock)
{
	struct agent_hello h = { .header.type = AGENT_HELLO,
				 .version = AGENT_PROTOCOL_VERSION,
				 .flags = AGENT_CAN_REMAP };
	const int fds[] = { a->uffd, a->journal_fd, a->freezer ? freezer_fd(a->freezer) : -1 };

	if (a->no_x)
		h.flags = 0;
	else if (a->freezer)
		h.flags |= AGENT_CAN_UNMERGE;
	if (a->no_x || a->no_freezer)
		snprintf(h.why, sizeof(h.why), "%s", a->no_x ? a->no_x : a->no_freezer);
	return packet_send(sock, &h, sizeof(h), fds, a->no_x ? 0 : a->freezer ? 3 : 2);
}

/* Pages that are neither in their place nor known to be: guest threads may wait for them. */
static bool exchange_is_open(const struct memvirt_agent *a)
{
	uint32_t step = a->x ? journal_step_now(a) : STEP_IDLE;

	return exchange_step_is_open(step);
}

int client_connect(struct memvirt_agent *a, bool guarded, const char **ret_why)
{
	auto_close int sock = daemon_connect(a->path, ret_why);
	const char *no_x = NULL;
	int err = sock < 0 ? sock : 0;

	if (err == 0 && a->uffd < 0)
		err = uffd_get(a, sock, guarded ? ASK_TIMEOUT_MS : ASK_PATIENT_MS, &no_x, ret_why);
	if (err < 0)
		return err;
	if (!guarded)
		client_guard_lock();
	a->no_x = no_x ? no_x : exchange_open(a);
	err = exchange_is_open(a) ? -EIO : 0;
	client_ram_untold(a);
	if (!guarded)
		client_guard_unlock();
	*ret_why = a->no_x;
	if (err < 0) /* nothing matters more than to try that again, and soon */
		return err;
	*ret_why = "the daemon does not answer";
	err = hello(a, sock);
	if (err < 0)
		return err;
	if (!guarded)
		client_guard_lock();
	a->sock = take_fd(sock);
	if (!guarded)
		client_guard_unlock();
	*ret_why = a->no_x ? a->no_x : "";
	return 0;
}

static void client_disconnect(struct memvirt_agent *a)
{
	client_guard_lock();
	cleanup_close(&a->sock);
	a->sock = -1;
	client_store_drop(a);
	client_ram_untold(a);
	client_guard_unlock();
}

/* ---- the thread ---- */

/* NULL: all is told. *ret_due: when there will be something else to look at; 0: nothing is known of. */
static const char *tell(struct memvirt_agent *a, uint64_t *ret_due)
{
	while (!atomic_load(&a->stop)) {
		bool resync;
		size_t len;

		client_guard_lock();
		*ret_due = client_ram_due(a);
		resync = a->resync;
		len = client_ram_next(a, &a->out);
		client_guard_unlock();
		if (resync)
			return "too much has changed to be told";
		if (len == 0)
			return NULL;
		if (packet_send(a->sock, a->out.bytes, len, NULL, 0) < 0)
			return "the daemon is gone";
	}
	return "detached";
}

static int timeout_until(uint64_t due_ns)
{
	uint64_t now = clock_mono_ns(), ms;

	if (due_ns == 0)
		return -1;
	ms = due_ns > now ? (due_ns - now) / NSEC_PER_MSEC + 1 : 0;
	return ms > INT_MAX ? INT_MAX : (int)ms;
}

static const char *serve(struct memvirt_agent *a)
{
	const char *why = NULL;
	uint64_t due = 0;

	while (!why) {
		why = tell(a, &due);
		if (!why && client_wait(a, a->sock, timeout_until(due)))
			why = client_serve_one(a);
	}
	return why;
}

/* One line, whatever else happens: stderr is the VMM's. */
static void complain_once(struct memvirt_agent *a, const char *why)
{
	if (a->prints && *why != '\0')
		dprintf(STDERR_FILENO, "memvirt-agent: memory is not merged by remap: %s\n", why);
	a->prints = false;
}

void *client_thread(void *arg)
{
	struct memvirt_agent *a = arg;
	uint64_t pause_ms = PAUSE_FIRST_MS;

	prctl(PR_SET_NAME, "memvirt-agent");
	while (!atomic_load(&a->stop)) {
		uint64_t since = clock_mono_ns();
		const char *why = "";
		int err = a->sock < 0 ? client_connect(a, false, &why) : 0;

		complain_once(a, why);
		if (err == 0) {
			atomic_store(&a->ended, NULL);
			why = serve(a);
			client_disconnect(a);
		}
		atomic_store(&a->ended, why);
		if (clock_mono_ns() - since > LASTED_NS)
			pause_ms = PAUSE_FIRST_MS;
		client_pause(a, pause_ms);
		pause_ms = pause_ms * 2 < PAUSE_MOST_MS ? pause_ms * 2 : PAUSE_MOST_MS;
	}
	return NULL;
}
