#define _LGPL_SOURCE /* inline RCU read side */
#include "ksmd/stable_index.h"

#include <errno.h>
#include <stdlib.h>
#include <urcu.h>
#include <urcu/rculfhash.h>

struct entry {
	struct cds_lfht_node node;
	struct rcu_head rcu;
	uint64_t hash;
	uint32_t refresh; /* the refresh that saw it last */
};

struct stable_index {
	struct cds_lfht *table;
	size_t entries; /* writer only */
	uint32_t refresh;
};

int stable_index_new(struct stable_index **ret_index)
{
	struct stable_index *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	x->table = cds_lfht_new(1024, 1024, 0, CDS_LFHT_AUTO_RESIZE, NULL);
	if (!x->table) {
		free(x);
		return -ENOMEM;
	}
	*ret_index = x;
	return 0;
}

static void entry_free_rcu(struct rcu_head *head)
{
	free(caa_container_of(head, struct entry, rcu));
}

/* Drops the entries that the refresh did not see; all of them when everything goes. */
static void entries_drop(struct stable_index *x, bool all)
{
	struct cds_lfht_iter iter;
	struct entry *e;

	rcu_read_lock();
	cds_lfht_for_each_entry(x->table, &iter, e, node) {
		if (!all && e->refresh == x->refresh)
			continue;
		if (cds_lfht_del(x->table, &e->node) == 0) {
			x->entries--;
			call_rcu(&e->rcu, entry_free_rcu);
		}
	}
	rcu_read_unlock();
}

struct stable_index *stable_index_free(struct stable_index *x)
{
	if (!x)
		return NULL;
	rcu_register_thread();
	entries_drop(x, true);
	rcu_unregister_thread();
	rcu_barrier();
	cds_lfht_destroy(x->table, NULL);
	free(x);
	return NULL;
}

static int entry_match(struct cds_lfht_node *node, const void *key)
{
	return caa_container_of(node, struct entry, node)->hash == *(const uint64_t *)key;
}

static struct entry *entry_find_rcu(struct stable_index *x, uint64_t hash)
{
	struct cds_lfht_iter iter;
	struct cds_lfht_node *node;

	/* The low bits are the same in every sampled hash; the table wants bits that differ. */
	cds_lfht_lookup(x->table, (unsigned long)(hash / STABLE_INDEX_SAMPLE), entry_match, &hash, &iter);
	node = cds_lfht_iter_get_node(&iter);
	return node ? caa_container_of(node, struct entry, node) : NULL;
}

bool stable_index_has_rcu(struct stable_index *x, uint64_t hash)
{
	return entry_find_rcu(x, hash) != NULL;
}

void stable_index_refresh_begin(struct stable_index *x)
{
	x->refresh++;
}

int stable_index_put(struct stable_index *x, uint64_t hash)
{
	struct entry *e;

	rcu_read_lock();
	e = entry_find_rcu(x, hash);
	if (e) {
		e->refresh = x->refresh;
		rcu_read_unlock();
		return 0;
	}
	e = calloc(1, sizeof(*e));
	if (e) {
		e->hash = hash;
		e->refresh = x->refresh;
		cds_lfht_add(x->table, (unsigned long)(hash / STABLE_INDEX_SAMPLE), &e->node);
		x->entries++;
	}
	rcu_read_unlock();
	return e ? 0 : -ENOMEM;
}

void stable_index_refresh_end(struct stable_index *x)
{
	entries_drop(x, false);
}

size_t stable_index_bytes(const struct stable_index *x)
{
	/* An entry as the allocator keeps it, and the table's bucket for it. */
	return x->entries * (sizeof(struct entry) + 2 * sizeof(void *) + sizeof(struct cds_lfht_node));
}
