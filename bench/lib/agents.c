#include "bench/lib/agents.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/cleanup.h"

#define SEED 4711
#define SLOT_TIMEOUT_MS 5000

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

static int peer_attach(struct bench_agents *agents, int listen_fd, const char *path, size_t i)
{
	struct accepting a = { listen_fd, &agents->peers[i], 0 };
	struct replay_proc *p = (struct replay_proc *)&agents->c->group->proc[i];
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
	while (r >= 0 && agent_peer_slots(agents->peers[i], &slots) == 0)
		r = agent_peer_take(agents->peers[i], SLOT_TIMEOUT_MS, &answer);
	return r < 0 ? r : 0;
}

static int table_make(struct bench_agents *a, size_t i)
{
	const struct replay_proc *p = &a->c->group->proc[i];
	struct mem_region region = { .hva = p->hva, .bytes = p->bytes, .backing = MEM_ANON };
	const struct vm_snapshot vm = {
		.name = p->name, .uuid = p->name, .domain = "bench", .pid = p->pid, .pidfd = p->pidfd,
		.start_ticks = p->start_ticks, .regions = &region, .region_count = 1, .merge_allowed = true,
	};

	return page_table_new(a->c->fs, &vm, SEED, &a->tables[i]);
}

int bench_agents_attach(const struct engine_context *c, struct bench_agents *ret_agents)
{
	struct bench_agents *a = ret_agents;
	auto_close int listen_fd = -1;
	char path[100];
	int r;

	*a = (struct bench_agents){ .c = c };
	snprintf(path, sizeof(path), "%s/agent", c->dir);
	r = listen_fd = listen_at(path);
	for (; r >= 0 && a->count < c->group->count; a->count++) {
		r = peer_attach(a, listen_fd, path, a->count);
		if (r == 0)
			r = table_make(a, a->count);
	}
	unlink(path);
	return r < 0 ? r : 0;
}

void bench_agents_end(struct bench_agents *a)
{
	for (size_t i = 0; i < a->count; i++) {
		agent_peer_free(a->peers[i]);
		page_table_unref(a->tables[i]);
	}
	a->count = 0;
}

static int pass_run(struct bench_agents *a, const struct pass_options *options, uint64_t *ret_metadata_bytes,
		    bool *ret_joined)
{
	struct pass_input inputs[CAPTURES_MAX] = { 0 };
	const struct pass_result *result;
	struct pass *pass;
	int r;

	for (size_t i = 0; i < a->count; i++)
		inputs[i] = (struct pass_input){ .table = a->tables[i], .rescan = true, .peer = a->peers[i] };
	r = pass_start(inputs, a->count, options, &pass);
	if (r < 0)
		return r;
	result = pass_wait(pass);
	r = result->error;
	*ret_metadata_bytes = result->metadata_bytes;
	*ret_joined = result->joined;
	pass_free(pass);
	return r;
}

int bench_agents_look(struct bench_agents *a, uint64_t join_least_pages, bool *ret_joined)
{
	const struct pass_options options = { .join_least_pages = join_least_pages };
	uint64_t metadata_bytes;

	return pass_run(a, &options, &metadata_bytes, ret_joined);
}

int bench_agents_scan(struct bench_agents *a, uint64_t *ret_metadata_bytes)
{
	const struct pass_options options = { .across_domains = true };
	bool joined;

	return pass_run(a, &options, ret_metadata_bytes, &joined);
}
