#include "tests/lib/domain.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/snapshot.h"

#define SEED 4711
#define SLOT_TIMEOUT_MS 5000

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	auto_close int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, (int)DOMAIN_VMS_MAX) < 0)
		return -errno;
	return take_fd(fd);
}

int domain_open(struct domain *d, const char *dir, uint32_t frames)
{
	int r;

	memset(d, 0, sizeof(*d));
	d->listen_fd = -1;
	if (snprintf(d->path, sizeof(d->path), "%s/agent", dir) >= (int)sizeof(d->path))
		return -ENAMETOOLONG;
	r = fsio_open_root("/", false, &d->fs);
	if (r < 0)
		return r;
	r = d->listen_fd = listen_at(d->path);
	if (r >= 0)
		r = remap_new(&d->fs, "test", frames, &d->remap);
	if (r < 0)
		domain_close(d);
	return r;
}

static void vm_close(struct domain_vm *vm)
{
	agent_peer_free(vm->peer);
	page_table_unref(vm->table);
	memset(vm, 0, sizeof(*vm));
}

void domain_close(struct domain *d)
{
	for (size_t i = 0; i < DOMAIN_VMS_MAX; i++)
		vm_close(&d->vms[i]);
	remap_free(d->remap);
	if (d->listen_fd >= 0) {
		close(d->listen_fd);
		unlink(d->path);
	}
	fsio_close(&d->fs);
}

/* ---- VMs ---- */

static int table_make(struct domain *d, struct domain_vm *vm)
{
	struct mem_region regions[AGENT_SLOTS_MAX];
	const struct agent_slot_view *slots;
	size_t count = agent_peer_slots(vm->peer, &slots);
	struct vm_snapshot snapshot = {
		.name = "vm", .uuid = "vm", .domain = "test", .pid = vm->pid, .pidfd = agent_peer_pidfd(vm->peer),
		.regions = regions, .region_count = count, .merge_allowed = true,
	};

	for (size_t i = 0; i < count; i++)
		regions[i] = (struct mem_region){ .hva = slots[i].hva, .bytes = slots[i].bytes, .backing = MEM_ANON };
	return page_table_new(&d->fs, &snapshot, SEED, &vm->table);
}

static int vm_open(struct domain *d, int fd, struct domain_vm *vm)
{
	const struct agent_slot_view *slots;
	struct agent_answer answer;
	int r = agent_peer_new(fd, &vm->peer); /* takes fd */

	if (r < 0)
		return r;
	vm->pid = agent_peer_pid(vm->peer);
	while (r >= 0 && agent_peer_slots(vm->peer, &slots) == 0)
		r = agent_peer_take(vm->peer, SLOT_TIMEOUT_MS, &answer);
	return r < 0 ? r : table_make(d, vm);
}

int domain_accept(struct domain *d, int timeout_ms, pid_t *ret_pid)
{
	struct pollfd ready = { .fd = d->listen_fd, .events = POLLIN };
	struct domain_vm *vm = d->vms;
	int fd, r;

	while (vm < d->vms + DOMAIN_VMS_MAX && vm->peer)
		vm++;
	if (vm == d->vms + DOMAIN_VMS_MAX)
		return -ENOSPC;
	r = poll(&ready, 1, timeout_ms);
	if (r <= 0)
		return r == 0 ? -ETIMEDOUT : -errno;
	fd = accept4(d->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = vm_open(d, fd, vm);
	if (r < 0)
		vm_close(vm);
	else
		*ret_pid = vm->pid;
	return r;
}

void domain_drop(struct domain *d, pid_t pid)
{
	for (size_t i = 0; i < DOMAIN_VMS_MAX; i++) {
		if (d->vms[i].peer && d->vms[i].pid == pid)
			vm_close(&d->vms[i]);
	}
}

unsigned domain_count(const struct domain *d)
{
	unsigned n = 0;

	for (size_t i = 0; i < DOMAIN_VMS_MAX; i++)
		n += d->vms[i].peer != NULL;
	return n;
}

/* ---- rounds ---- */

/* What came unasked, releases mostly: an agent that finds its socket full would take us for gone. */
static void unasked_take(struct domain *d)
{
	struct agent_answer answer;

	for (size_t i = 0; i < DOMAIN_VMS_MAX; i++) {
		while (d->vms[i].peer && agent_peer_take(d->vms[i].peer, 0, &answer) >= 0)
			;
	}
}

int domain_scan(struct domain *d)
{
	const struct pass_options options = { .across_domains = true };
	struct pass_input inputs[DOMAIN_VMS_MAX];
	struct pass *pass;
	size_t count = 0;
	int r;

	unasked_take(d);
	for (size_t i = 0; i < DOMAIN_VMS_MAX; i++) {
		if (d->vms[i].peer)
			inputs[count++] = (struct pass_input){ .table = d->vms[i].table, .rescan = true, .peer = d->vms[i].peer };
	}
	r = pass_start(inputs, count, &options, &pass);
	if (r < 0)
		return r;
	r = pass_wait(pass)->error;
	pass_free(pass);
	return r;
}

int domain_merge(struct domain *d, struct remap_result *ret_result)
{
	struct remap_vm vms[DOMAIN_VMS_MAX];
	size_t count = 0;

	unasked_take(d);
	for (size_t i = 0; i < DOMAIN_VMS_MAX; i++) {
		if (d->vms[i].peer)
			vms[count++] = (struct remap_vm){ d->vms[i].peer, d->vms[i].table };
	}
	return remap_round(d->remap, vms, count, &d->limits, NULL, ret_result);
}

int domain_round(struct domain *d, struct remap_result *ret_result)
{
	int r = domain_scan(d);

	return r < 0 ? r : domain_merge(d, ret_result);
}

int domain_sweep(struct domain *d, uint64_t *ret_pages)
{
	bool more = true;
	uint32_t freed;
	int r = 0;

	unasked_take(d);
	for (size_t i = 0; i < DOMAIN_VMS_MAX; i++)
		if (d->vms[i].peer && agent_peer_released(d->vms[i].peer))
			remap_vm_changed(d->remap, d->vms[i].pid);
	/* A frame goes when two looks in a row find nobody. */
	for (int i = 0; r == 0 && i < 3; i++)
		r = remap_sweep(d->remap, &freed, &more);
	*ret_pages = remap_memory_pages(d->remap);
	return r < 0 ? r : more ? -EAGAIN : 0;
}
