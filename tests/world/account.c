#include "tests/world/account.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "tests/world/proc.h"

#define PAGE 4096u
#define STORE_PREFIX "/memfd:memvirt-store:"
#define SETTLE_SECONDS 120
#define AGENTS_CALL_SECONDS 8 /* they call again after 5 s at most; then a pass and a round */
#define FDS_OF_AGENT 11u /* it has 9 when it is connected, three of them for un-merging */
#define MAPS_OF_AGENT 24u

/* ---- stores ---- */

/* fd is taken. */
static struct account_store *store_add(struct account *a, int fd, const char *name)
{
	struct account_store *s;
	struct stat st;

	if (fstat(fd, &st) < 0 || a->count == ACCOUNT_STORES_MAX) {
		close(fd);
		return NULL;
	}
	for (unsigned i = 0; i < a->count; i++) {
		if (a->stores[i].inode == st.st_ino) {
			close(fd);
			return &a->stores[i];
		}
	}
	s = &a->stores[a->count++];
	*s = (struct account_store){ .inode = st.st_ino, .fd = fd, .pages = (uint64_t)st.st_blocks / 8,
				     .frames = (uint64_t)st.st_size / PAGE };
	snprintf(s->name, sizeof(s->name), "%s", name);
	s->used = calloc(s->frames / 64 + 1, sizeof(*s->used));
	return s;
}

static bool bit(const uint64_t *bits, uint64_t n)
{
	return bits[n / 64] >> n % 64 & 1;
}

static void stores_of_daemon(struct account *a, pid_t pid)
{
	char path[64], name[128];

	for (int fd = 3; fd < 1024; fd++) {
		struct account_store *s;
		ssize_t n;
		int own;

		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
		n = readlink(path, name, sizeof(name) - 1);
		name[n > 0 ? n : 0] = '\0';
		if (strncmp(name, STORE_PREFIX, strlen(STORE_PREFIX)) != 0)
			continue;
		own = open(path, O_RDONLY | O_CLOEXEC);
		s = own >= 0 ? store_add(a, own, name) : NULL;
		if (s)
			s->held = true;
	}
}

/* ---- what VMs map of them ---- */

struct vm_walk {
	struct account *a;
	pid_t pid;
	uint64_t ram;
	unsigned domain;
	int pagemap;
};

static void pages_see(struct vm_walk *walk, struct account_store *s, const struct proc_map *m)
{
	for (uint64_t at = m->start; at < m->end; at += PAGE) {
		uint64_t entry = 0, frame = (m->offset + (at - m->start)) / PAGE;

		if (frame >= s->frames)
			continue;
		if (!bit(s->used, frame))
			s->mapped++;
		s->used[frame / 64] |= UINT64_C(1) << frame % 64;
		if (pread(walk->pagemap, &entry, sizeof(entry), (off_t)(at / PAGE * 8)) != sizeof(entry))
			continue;
		/* Present, and of a file: not a private copy. */
		if (entry >> 63 & entry >> 61 & 1) {
			s->seen++;
			if (lseek(s->fd, (off_t)(frame * PAGE), SEEK_DATA) != (off_t)(frame * PAGE))
				s->absent++;
		}
	}
}

static void map_walk(const struct proc_map *m, void *userdata)
{
	struct vm_walk *walk = userdata;
	struct account_store *s;
	char path[96];
	int fd;

	/* The agent's own, shared mapping of the whole store, lies elsewhere. */
	if (strncmp(m->name, STORE_PREFIX, strlen(STORE_PREFIX)) != 0 || m->start < walk->ram ||
	    m->end > walk->ram + ((uint64_t)CHAOS_RAM_MIB << 20))
		return;
	snprintf(path, sizeof(path), "/proc/%d/map_files/%lx-%lx", (int)walk->pid, m->start, m->end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	s = fd >= 0 ? store_add(walk->a, fd, m->name) : NULL;
	if (!s)
		return;
	s->vm_domains |= UINT64_C(1) << walk->domain;
	pages_see(walk, s, m);
}

static void vm_walk(struct account *a, const struct world_vm *vm)
{
	struct vm_walk walk = { .a = a, .pid = vm->pid, .ram = vm->page->ram, .domain = vm->name[6] == 'b' };
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)vm->pid);
	walk.pagemap = open(path, O_RDONLY | O_CLOEXEC);
	proc_maps(vm->pid, map_walk, &walk);
	cleanup_close(&walk.pagemap);
}

static void store_reckon(struct account *a, struct account_store *s)
{
	off_t at = 0;

	while ((at = lseek(s->fd, at, SEEK_DATA)) >= 0) {
		off_t end = lseek(s->fd, at, SEEK_HOLE);

		for (; at < end; at += PAGE)
			s->leaked += !bit(s->used, (uint64_t)at / PAGE);
	}
	a->pages += s->pages;
	a->leaked += s->leaked;
	a->absent += s->absent;
}

void account_take(struct world *w, struct account *ret_account)
{
	*ret_account = (struct account){ .count = 0 };
	if (w->daemon.pid > 0)
		stores_of_daemon(ret_account, w->daemon.pid);
	for (unsigned i = 0; i < WORLD_VMS; i++)
		if (w->vms[i].pid > 0)
			vm_walk(ret_account, &w->vms[i]);
	for (unsigned i = 0; i < ret_account->count; i++)
		store_reckon(ret_account, &ret_account->stores[i]);
}

void account_print(const struct account *a)
{
	for (unsigned i = 0; i < a->count; i++) {
		const struct account_store *s = &a->stores[i];

		printf("  %s inode %lu%s: %lu pages, %lu frames mapped, seen as %lu pages of VMs; %lu of nobody, %lu "
		       "absent\n",
		       s->name + strlen(STORE_PREFIX), s->inode, s->held ? " (the daemon's)" : "", s->pages, s->mapped,
		       s->seen, s->leaked, s->absent);
	}
}

void account_free(struct account *a)
{
	for (unsigned i = 0; i < a->count; i++) {
		close(a->stores[i].fd);
		free(a->stores[i].used);
	}
	a->count = 0;
}

/* ---- the end of a world ---- */

static struct account account; /* too large for a stack */

/* Until no frame is left over (the daemon frees what two looks have found unused) and nothing changed for so long. */
static void frames_settle(struct world *w, unsigned still_seconds, bool empty, const char *when)
{
	uint64_t before = UINT64_MAX;
	unsigned still = 0;

	if (w->bad > 0)
		return;
	for (int i = 0; i < SETTLE_SECONDS && w->bad == 0; i++) {
		world_run(w, 1, NULL);
		account_free(&account);
		account_take(w, &account);
		still = account.pages == before ? still + 1 : 0;
		before = account.pages;
		if (still >= still_seconds && account.leaked == 0 && (!empty || account.pages == 0))
			break;
	}
	printf("%s:\n", when);
	account_print(&account);
	if (account.leaked > 0)
		world_wrong(w, "%lu frames are of no VM and not freed", account.leaked);
	if (account.absent > 0)
		world_wrong(w, "VMs see %lu pages that are not in the store", account.absent);
	if (empty && account.pages > 0)
		world_wrong(w, "%lu pages are left in stores", account.pages);
}

/* The daemon's own figure, in MiB with two digits. */
static void figure_check(struct world *w)
{
	double saved_mib, frames_mib;
	uint64_t pages = 0;

	for (unsigned i = 0; i < account.count; i++)
		pages += account.stores[i].held ? account.stores[i].pages : 0;
	world_saved(w, &saved_mib, &frames_mib);
	printf("  the daemon says: frames %.2f MiB, saved %.2f MiB\n", frames_mib, saved_mib);
	if (fabs(frames_mib * 256 - (double)pages) > 2)
		world_wrong(w, "the daemon's stores take %lu pages, and it says %.0f", pages, frames_mib * 256);
}

static void isolation_check(struct world *w)
{
	for (unsigned i = 0; i < account.count; i++)
		if (account.stores[i].vm_domains == 3)
			world_wrong(w, "%s is mapped by VMs of two domains", account.stores[i].name);
}

/* A VM's own budget is half of the kernel's limit. */
static void vms_check(struct world *w, bool discarded)
{
	uint32_t most_maps = 0, most_fds = 0;

	for (unsigned i = 0; i < WORLD_VMS; i++) {
		const struct world_vm *vm = &w->vms[i];
		uint32_t all, fds, in_ram, windows;

		if (vm->pid <= 0)
			continue;
		all = proc_maps_count(vm->pid) - vm->page->maps_first;
		fds = proc_fds_count(vm->pid) - vm->page->fds_first;
		proc_range(vm->pid, vm->page->ram, vm->page->ram + ((uint64_t)CHAOS_RAM_MIB << 20), &in_ram, &windows);
		most_maps = all > most_maps ? all : most_maps;
		most_fds = fds > most_fds ? fds : most_fds;
		if (windows > 0)
			world_wrong(w, "%s: %u windows are open", vm->name, windows);
		if (fds > FDS_OF_AGENT)
			world_wrong(w, "%s: %u descriptors more than without its agent", vm->name, fds);
		if (discarded ? in_ram != 1 || all > MAPS_OF_AGENT : all > 65530 / 2)
			world_wrong(w, "%s: %u mappings more than at first, %u of RAM", vm->name, all, in_ram);
	}
	printf("  over what VMs had at first: at most %u mappings, %u descriptors%s\n", most_maps, most_fds,
	       discarded ? ", when all RAM was discarded" : "");
}

static void order_all(struct world *w, enum chaos_order order)
{
	if (w->bad > 0)
		return;
	world_order(w, order);
	world_await(w);
}

/* Reading all of it is what shows frames to the VMs: a new mapping has no pages until they are touched. */
static void merged_check(struct world *w, bool isolated)
{
	frames_settle(w, AGENTS_CALL_SECONDS, false, "load stopped, the last daemon at rest");
	order_all(w, CHAOS_CHECK);
	frames_settle(w, 1, false, "every page read");
	figure_check(w);
	if (isolated)
		isolation_check(w);
	vms_check(w, false);
}

static void discarded_check(struct world *w)
{
	for (unsigned i = 0; i < WORLD_VMS && w->bad == 0; i += 2)
		if (w->vms[i].pid > 0)
			world_order_one(w, i, CHAOS_DISCARD);
	world_await(w);
	frames_settle(w, 1, false, "half of the VMs discarded");
	order_all(w, CHAOS_DISCARD);
	if (w->bad == 0)
		vms_check(w, true);
	frames_settle(w, 1, true, "all discarded");
}

void account_close(struct world *w, bool isolated)
{
	order_all(w, CHAOS_PAUSE);
	if (w->bad == 0)
		merged_check(w, isolated);
	if (w->bad == 0)
		discarded_check(w);
	for (unsigned i = 0; i < WORLD_VMS && w->bad == 0; i++)
		if (w->vms[i].pid > 0)
			world_vm_end(w, i);
	if (w->bad == 0 && daemon_stop(&w->daemon, SIGTERM) < 0)
		world_wrong(w, "the daemon did not end well");
	if (w->bad == 0 && (waitpid(-1, NULL, WNOHANG) >= 0 || errno != ECHILD))
		world_wrong(w, "a process is left");
	account_free(&account);
}
