#include "ksmd/agent_journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/snapshot.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

int agent_journal_map(int fd, struct exchange_journal **ret_journal)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;
	void *map;

	if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0 || st.st_size < (off_t)PAGE_BYTES)
		return -EPROTO;
	map = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return -EPROTO;
	*ret_journal = map;
	return 0;
}

void agent_journal_unmap(struct exchange_journal *j)
{
	if (j)
		munmap(j, PAGE_BYTES);
}

int agent_journal_check_uffd(int fd)
{
	char path[64], link[64];
	ssize_t n;

	/* Our own descriptor, so not through fsio's root. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return -EPROTO;
	link[n] = '\0';
	return strcmp(link, "anon_inode:[userfaultfd]") == 0 ? 0 : -EPROTO;
}

/* The number that a thread has for its own process, which may live in a pid namespace: the last one of "NSpid". 0: not
 * to be told. */
static uint32_t own_number(const struct dirent *thread, pid_t pid)
{
	char path[64], text[4096], *line, *last;
	auto_close int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/task/%.16s/status", (int)pid, thread->d_name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	line = strstr(text, "\nNSpid:");
	if (!line)
		return 0;
	line += strlen("\nNSpid:");
	line[strcspn(line, "\n")] = '\0';
	last = strrchr(line, '\t');
	return last ? (uint32_t)strtoul(last + 1, NULL, 10) : 0;
}

/* Whether none of the process's threads has this number. When in doubt it lives: the window then stays open until
 * the VMM's own next interposed call ends it (the exchange's lock is robust). */
static bool thread_is_dead(pid_t pid, uint32_t tid)
{
	char path[64];
	struct dirent *entry;
	bool found = false;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	tasks = tid == 0 ? NULL : opendir(path);
	if (!tasks)
		return false;
	while (!found && (entry = readdir(tasks))) {
		uint32_t number = entry->d_name[0] == '.' ? UINT32_MAX : own_number(entry, pid);

		found = number == tid || number == 0;
	}
	closedir(tasks);
	return !found;
}

int agent_journal_repair(struct exchange_journal *j, pid_t pid, int pidfd, int uffd, int freezer)
{
	uint32_t step = __atomic_load_n(&j->step, __ATOMIC_ACQUIRE);
	struct exchange_journal copy;
	int r;

	if (step == STEP_IDLE || step == STEP_REPAIRED)
		return 0;
	copy = *j; /* what is looked at below cannot change any more */
	copy.step = step;
	/* Dead while its process lives. A process that is ending takes its threads away one by one: pidfd last. */
	if (!thread_is_dead(pid, copy.tid) || syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) < 0)
		return 0;
	r = exchange_repair(&copy, pid, uffd, freezer);
	if (r < 0)
		return r == -ESRCH ? 0 : r;
	j->settled = copy.settled;
	__atomic_store_n(&j->step, STEP_REPAIRED, __ATOMIC_RELEASE);
	return 1;
}

void agent_journal_drain(int freezer)
{
	struct pollfd ready = { .fd = freezer, .events = POLLIN };
	char message[64];
	int most = 64; /* faults of many threads may be in front */

	/* The flag is the VMM's to change; who does is late by his own doing. */
	while (most-- > 0 && poll(&ready, 1, 0) == 1 && (ready.revents & POLLIN) &&
	       (fcntl(freezer, F_GETFL) & O_NONBLOCK) && read(freezer, message, sizeof(message)) > 0)
		;
}
