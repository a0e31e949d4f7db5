/* The remap engine: agents in the replay processes, a store and the planner here. One pass, one round, end. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bench/lib/engine.h"
#include "bench/lib/progress.h"
#include "core/cleanup.h"
#include "ksmd/pass.h"
#include "ksmd/remap.h"

#define SEED 4711
#define STORE_FRAMES (1u << 20) /* 4 GiB of room */
#define SLOT_TIMEOUT_MS 5000

struct remap_engine {
	const struct engine_context *c;
	struct remap *remap;
	struct agent_peer *peers[CAPTURES_MAX];
	struct page_table *tables[CAPTURES_MAX];
	pthread_t thread;
	bool started;
	_Atomic bool done;
	int error;
	struct remap_result result;
	uint64_t metadata_bytes;
	char why[ENGINE_WHY_MAX];
};

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	auto_close int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path));
	unlink(path);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, CAPTURES_MAX) < 0)
		return -errno;
	return take_fd(fd);
}

/* What an agent waits for when it attaches: somebody who accepts. */
struct accepting {
	int listen_fd;
	struct agent_peer **ret_peer;
	int error;
};

static void *accept_main(void *arg)
{
	struct accepting *a = arg;
	int fd = accept4(a->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	a->error = fd < 0 ? -errno : agent_peer_new(fd, a->ret_peer);
	return NULL;
}

static int peer_attach(struct remap_engine *e, int listen_fd, const char *path, size_t i)
{
	struct accepting a = { .listen_fd = listen_fd, .ret_peer = &e->peers[i] };
	struct replay_proc *p = (struct replay_proc *)&e->c->group->proc[i];
	const struct agent_slot_view *slots;
	struct agent_answer answer;
	char command[256];
	json_t *reply = NULL;
	pthread_t thread;
	int r;

	snprintf(command, sizeof(command), "attach %s", path);
	if (pthread_create(&thread, NULL, accept_main, &a) != 0)
		return -EAGAIN;
	r = replay_command(p, command, &reply);
	json_decref(reply);
	if (r < 0)
		shutdown(listen_fd, SHUT_RDWR); /* nobody will come */
	pthread_join(thread, NULL);
	if (r == 0)
		r = a.error;
	while (r >= 0 && agent_peer_slots(e->peers[i], &slots) == 0)
		r = agent_peer_take(e->peers[i], SLOT_TIMEOUT_MS, &answer);
	return r < 0 ? r : 0;
}

static int table_make(struct remap_engine *e, size_t i)
{
	const struct replay_proc *p = &e->c->group->proc[i];
	struct mem_region region = { .hva = p->hva, .bytes = p->bytes, .backing = MEM_ANON };
	const struct vm_snapshot vm = {
		.name = p->name, .uuid = p->name, .domain = "bench", .pid = p->pid, .pidfd = p->pidfd,
		.start_ticks = p->start_ticks, .regions = &region, .region_count = 1, .merge_allowed = true,
	};

	return page_table_new(e->c->fs, &vm, SEED, &e->tables[i]);
}

static void remap_stop(void *userdata)
{
	struct remap_engine *e = userdata;

	if (e->started)
		pthread_join(e->thread, NULL);
	for (size_t i = 0; i < CAPTURES_MAX; i++) {
		agent_peer_free(e->peers[i]);
		page_table_unref(e->tables[i]);
	}
	remap_free(e->remap);
	free(e);
}

static int scan(struct remap_engine *e)
{
	const struct pass_options options = { .across_domains = true };
	struct pass_input inputs[CAPTURES_MAX] = { 0 };
	const struct pass_result *result;
	struct pass *pass;
	int r;

	for (size_t i = 0; i < e->c->group->count; i++)
		inputs[i] = (struct pass_input){ .table = e->tables[i], .rescan = true };
	r = pass_start(inputs, e->c->group->count, &options, &pass);
	if (r < 0)
		return r;
	result = pass_wait(pass);
	r = result->error;
	e->metadata_bytes = result->metadata_bytes;
	pass_free(pass);
	return r;
}

static void *engine_main(void *arg)
{
	struct remap_engine *e = arg;
	struct remap_vm vms[CAPTURES_MAX];

	e->error = scan(e);
	for (size_t i = 0; i < e->c->group->count; i++)
		vms[i] = (struct remap_vm){ e->peers[i], e->tables[i] };
	if (e->error == 0)
		e->error = remap_round(e->remap, vms, e->c->group->count, 0, NULL, &e->result);
	snprintf(e->why, sizeof(e->why),
		 "%llu windows, %llu runs, %llu + %llu zero pages, %llu frames; unequal %llu busy %llu skipped %llu "
		 "failed %llu; plan %.3f of %.3f s; longest stall %llu us",
		 (unsigned long long)e->result.windows, (unsigned long long)e->result.runs,
		 (unsigned long long)e->result.merged_pages, (unsigned long long)e->result.zero_pages,
		 (unsigned long long)e->result.filled_frames, (unsigned long long)e->result.unequal_runs,
		 (unsigned long long)e->result.busy_runs, (unsigned long long)e->result.skipped_runs,
		 (unsigned long long)e->result.failed_runs, e->result.plan_seconds, e->result.seconds,
		 (unsigned long long)e->result.stall_us_max);
	e->metadata_bytes += e->result.metadata_bytes;
	e->done = true;
	return NULL;
}

static int remap_start(const struct engine_context *c, void **ret_e, char *ret_why)
{
	struct remap_engine *e = calloc(1, sizeof(*e));
	auto_close int listen_fd = -1;
	char path[100];
	int r;

	if (!e)
		return -ENOMEM;
	e->c = c;
	snprintf(path, sizeof(path), "%s/agent", c->dir);
	r = listen_fd = listen_at(path);
	if (r >= 0)
		r = remap_new(c->fs, "bench", STORE_FRAMES, &e->remap);
	for (size_t i = 0; r == 0 && i < c->group->count; i++) {
		r = peer_attach(e, listen_fd, path, i);
		if (r == 0)
			r = table_make(e, i);
	}
	unlink(path);
	if (r == 0)
		r = -pthread_create(&e->thread, NULL, engine_main, e);
	if (r < 0) {
		snprintf(ret_why, ENGINE_WHY_MAX, "no agent: %s", strerror(-r));
		remap_stop(e);
		return r;
	}
	e->started = true;
	*ret_e = e;
	return 0;
}

static int remap_step(void *userdata, const struct meter_sample *s)
{
	const struct remap_engine *e = userdata;

	(void)s;
	if (!e->done)
		return 0;
	return e->error < 0 ? e->error : 1;
}

static uint64_t remap_metadata_bytes(const void *userdata)
{
	return ((const struct remap_engine *)userdata)->metadata_bytes;
}

static uint64_t remap_held_pages(const void *userdata)
{
	return remap_memory_pages(((const struct remap_engine *)userdata)->remap);
}

static const char *remap_why(const void *userdata)
{
	return ((const struct remap_engine *)userdata)->why;
}

const struct engine engine_remap = {
	.name = "remap",
	.help = "memvirtd's own merging, by agents in the processes; no kernel scanner",
	.uses_ksm = false,
	.cap_seconds = 120,
	.start = remap_start,
	.step = remap_step,
	.metadata_bytes = remap_metadata_bytes,
	.held_pages = remap_held_pages,
	.why = remap_why,
	.stop = remap_stop,
};
