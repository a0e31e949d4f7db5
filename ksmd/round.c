#include "ksmd/round.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/clock.h"
#include "ksmd/pass.h"

struct round {
	struct remap *remap;
	struct remap_vm *vms; /* tables referenced */
	size_t count;
	struct remap_limits limits;
	struct round_result result;
	_Atomic bool cancel, stop;
	_Atomic uint64_t merged_pages;
	pthread_t thread;
	bool joined;
	int done_fd;
};

static void *round_main(void *arg)
{
	struct round *r = arg;
	struct round_result *res = &r->result;
	uint64_t one = 1;

	pthread_setname_np(pthread_self(), "remap");
	if (res->look)
		res->error = remap_look(r->remap);
	res->look_cpu_ns = clock_thread_cpu_ns();
	if (r->count > 0)
		res->error = remap_round(r->remap, r->vms, r->count, &r->limits, res->vms, &res->merged);
	res->stopped = r->stop;
	if (!r->cancel && !res->look)
		res->sweep_error = remap_sweep(r->remap, &res->freed_frames, &res->sweep_more);
	if (write(r->done_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd that only this thread writes cannot be full */
	return NULL;
}

static int start(struct remap *remap, const struct remap_vm *vms, size_t count, const struct remap_limits *limits,
		 bool look, struct round **ret_round)
{
	struct round *r = calloc(1, sizeof(*r));
	int error = -ENOMEM;

	if (!r)
		return -ENOMEM;
	r->remap = remap;
	r->limits = *limits;
	r->limits.cancel = &r->cancel;
	r->limits.stop = &r->stop;
	r->limits.merged_pages = &r->merged_pages;
	r->result.look = look;
	r->joined = true; /* no thread yet */
	r->done_fd = eventfd(0, EFD_CLOEXEC);
	r->vms = calloc(count + 1, sizeof(*r->vms));
	r->result.vms = calloc(count + 1, sizeof(*r->result.vms));
	if (r->done_fd < 0 || !r->vms || !r->result.vms)
		goto fail;
	for (; r->count < count; r->count++) {
		r->vms[r->count] = vms[r->count];
		page_table_ref(vms[r->count].table);
	}
	error = -pthread_create(&r->thread, NULL, round_main, r);
	if (error < 0)
		goto fail;
	r->joined = false;
	*ret_round = r;
	return 0;
fail:
	round_free(r);
	return error;
}

int round_start(struct remap *remap, const struct remap_vm *vms, size_t count, const struct remap_limits *limits,
		struct round **ret_round)
{
	return start(remap, vms, count, limits, false, ret_round);
}

int round_look(struct remap *remap, struct round **ret_round)
{
	return start(remap, NULL, 0, &(struct remap_limits){ 0 }, true, ret_round);
}

void round_stop(struct round *r)
{
	r->stop = true;
}

uint64_t round_merged_pages(const struct round *r)
{
	return r->merged_pages;
}

int round_done_fd(const struct round *r)
{
	return r->done_fd;
}

const struct round_result *round_wait(struct round *r)
{
	if (!r->joined)
		pthread_join(r->thread, NULL);
	r->joined = true;
	return &r->result;
}

const struct remap_vm *round_vms(const struct round *r, size_t *ret_count)
{
	*ret_count = r->count;
	return r->vms;
}

struct round *round_free(struct round *r)
{
	if (!r)
		return NULL;
	r->cancel = true;
	round_wait(r);
	for (size_t i = 0; i < r->count; i++)
		page_table_unref(r->vms[i].table);
	if (r->done_fd >= 0)
		close(r->done_fd);
	free(r->vms);
	free(r->result.vms);
	free(r);
	return NULL;
}
