#include "ksmd/marking.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/log.h"
#include "ksmd/pass.h"
#include "ksmd/zero_split.h"

/* 512 stretches take an agent some milliseconds, at worst (long chains of mappings) seconds. */
#define HINTED_TIMEOUT_MS 30000

struct marking {
	struct marking_vm *vms; /* tables referenced */
	size_t count;
	struct marking_result result;
	pthread_t thread;
	bool joined;
	_Atomic bool cancel;
	int done_fd;
};

/* Before marking: a stretch that begins inside a huge page takes its huge mapping apart, but not the page, and the
 * zero pages in it would stay. */
static void zeroes_split(struct marking *m)
{
	struct page_table **tables = calloc(m->count + 1, sizeof(struct page_table *));
	struct zero_split *split = NULL;

	for (size_t i = 0; tables && i < m->count; i++)
		tables[i] = m->vms[i].table;
	if (tables && zero_split_start(tables, m->count, &split) == 0)
		zero_split_wait(split);
	zero_split_free(split, &m->result.cpu_seconds, NULL);
	free(tables);
}

static int plan(const struct marking *m, struct hints **ret_hints)
{
	struct hints_vm *vms = calloc(m->count + 1, sizeof(*vms));
	int r;

	if (!vms)
		return -ENOMEM;
	for (size_t i = 0; i < m->count; i++)
		vms[i] = (struct hints_vm){ m->vms[i].table, m->vms[i].mappings_left };
	r = hints_plan(vms, m->count, NULL, ret_hints);
	free(vms);
	return r;
}

static void mark(struct marking *m, const struct hints *hints)
{
	for (size_t i = 0; i < m->count && !m->cancel; i++) {
		size_t count;
		const struct agent_hint *list = hints_of(hints, i, &count);
		int error = 0, r = agent_peer_hint_all(m->vms[i].peer, list, count, HINTED_TIMEOUT_MS, &error);

		m->result.broken[i] = r < 0;
		if (r < 0)
			log_warning("agent pid=%d does not mark its memory: %s", (int)agent_peer_pid(m->vms[i].peer),
				    strerror(-r));
		if (m->result.mark_error == 0)
			m->result.mark_error = error;
	}
}

static void *marking_main(void *arg)
{
	struct marking *m = arg;
	struct hints *hints = NULL;
	uint64_t one = 1;

	pthread_setname_np(pthread_self(), "marking");
	zeroes_split(m);
	m->result.error = plan(m, &hints);
	m->result.cpu_seconds += (double)clock_thread_cpu_ns() / (double)NSEC_PER_SEC;
	if (m->result.error == 0) {
		hints_count(hints, &m->result.totals);
		mark(m, hints);
	}
	hints_free(hints);
	if (write(m->done_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd that only this thread writes cannot be full */
	return NULL;
}

int marking_start(const struct marking_vm *vms, size_t count, struct marking **ret_marking)
{
	struct marking *m = calloc(1, sizeof(*m));
	int error = -ENOMEM;

	if (!m)
		return -ENOMEM;
	m->joined = true; /* no thread yet */
	m->done_fd = eventfd(0, EFD_CLOEXEC);
	m->vms = calloc(count + 1, sizeof(*m->vms));
	m->result.broken = calloc(count + 1, sizeof(*m->result.broken));
	if (m->done_fd < 0 || !m->vms || !m->result.broken)
		goto fail;
	for (; m->count < count; m->count++) {
		m->vms[m->count] = vms[m->count];
		page_table_ref(vms[m->count].table);
	}
	error = -pthread_create(&m->thread, NULL, marking_main, m);
	if (error < 0)
		goto fail;
	m->joined = false;
	*ret_marking = m;
	return 0;
fail:
	marking_free(m);
	return error;
}

int marking_done_fd(const struct marking *m)
{
	return m->done_fd;
}

const struct marking_result *marking_wait(struct marking *m)
{
	if (!m->joined)
		pthread_join(m->thread, NULL);
	m->joined = true;
	return &m->result;
}

const struct marking_vm *marking_vms(const struct marking *m, size_t *ret_count)
{
	*ret_count = m->count;
	return m->vms;
}

struct marking *marking_free(struct marking *m)
{
	if (!m)
		return NULL;
	m->cancel = true;
	marking_wait(m);
	for (size_t i = 0; i < m->count; i++)
		page_table_unref(m->vms[i].table);
	if (m->done_fd >= 0)
		close(m->done_fd);
	free(m->vms);
	free(m->result.broken);
	free(m);
	return NULL;
}
