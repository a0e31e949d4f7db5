/* tests/unit/table_model.h - what a second-stage table should say, kept page by page in an array, without any tree; and
 * random operations made on both. Knows of ept/table only its interface. */
#ifndef TESTS_TABLE_MODEL_H
#define TESTS_TABLE_MODEL_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ept/table.h"

#define MODEL_PAGE UINT64_C(4096)
#define MODEL_GIB (UINT64_C(1) << 30)
/* Two windows: one GiB (or less, where time is short) with 2 MiB on either side, and the last 4 MiB that a table can map. */
#ifndef MODEL_MIDDLE_PAGES
#define MODEL_MIDDLE_PAGES 262144u
#endif
#define MODEL_LOW_FIRST (MODEL_GIB - 512 * MODEL_PAGE)
#define MODEL_LOW_PAGES (512u + MODEL_MIDDLE_PAGES + 512u)
#define MODEL_HIGH_PAGES 1024u
#define MODEL_PAGES (MODEL_LOW_PAGES + MODEL_HIGH_PAGES)

struct model_page {
	uint64_t address; /* of this 4 KiB */
	uint8_t level;	  /* of the page it is part of; 0: not mapped */
	uint8_t perms, type, ignore_pat, accessed, dirty, tag;
};

struct model {
	struct ept_table *table;
	const struct table_options *options;
	struct model_page *pages; /* MODEL_PAGES */
	uint64_t high_first;	  /* guest-physical */
	uint64_t (*random)(void *userdata);
	void *userdata;
	const char *wrong; /* the first thing that differed */
	uint64_t wrong_gpa;
};

static inline void model_wrong(struct model *m, const char *what, uint64_t gpa)
{
	if (!m->wrong) {
		m->wrong = what;
		m->wrong_gpa = gpa;
	}
}

static inline uint64_t model_gpa(const struct model *m, size_t page)
{
	return page < MODEL_LOW_PAGES ? MODEL_LOW_FIRST + page * MODEL_PAGE :
					m->high_first + (page - MODEL_LOW_PAGES) * MODEL_PAGE;
}

/* MODEL_PAGES: outside of both windows. */
static inline size_t model_index(const struct model *m, uint64_t gpa)
{
	if (gpa >= MODEL_LOW_FIRST && gpa - MODEL_LOW_FIRST < MODEL_LOW_PAGES * MODEL_PAGE)
		return (size_t)((gpa - MODEL_LOW_FIRST) / MODEL_PAGE);
	if (gpa >= m->high_first && gpa - m->high_first < MODEL_HIGH_PAGES * MODEL_PAGE)
		return MODEL_LOW_PAGES + (size_t)((gpa - m->high_first) / MODEL_PAGE);
	return MODEL_PAGES;
}

static inline uint64_t model_bytes(unsigned level)
{
	return level == 1 ? MODEL_PAGE : level == 2 ? 512 * MODEL_PAGE : MODEL_GIB;
}

/* ---- the operations on the array ---- */

static inline void model_lower(struct model *m, uint64_t gpa)
{
	struct model_page *p = &m->pages[model_index(m, gpa)];
	uint64_t bytes = model_bytes(p->level), first = gpa - gpa % bytes;
	uint8_t level = (uint8_t)(p->level - 1);

	for (uint64_t at = first; at < first + bytes; at += MODEL_PAGE)
		m->pages[model_index(m, at)].level = level;
}

/* No page reaches across this address any more. */
static inline void model_boundary(struct model *m, uint64_t gpa)
{
	size_t i = model_index(m, gpa);

	while (i < MODEL_PAGES && m->pages[i].level > 1 && gpa % model_bytes(m->pages[i].level) != 0)
		model_lower(m, gpa);
}

static inline void model_map(struct model *m, uint64_t gpa, unsigned level, const struct table_leaf *leaf)
{
	size_t i = model_index(m, gpa);

	while (m->pages[i].level > level)
		model_lower(m, gpa);
	for (uint64_t k = 0; k < model_bytes(level) / MODEL_PAGE; k++)
		m->pages[i + k] = (struct model_page){
			leaf->address + k * MODEL_PAGE, (uint8_t)level, leaf->perms, leaf->memory_type,
			leaf->ignore_pat, leaf->accessed, leaf->dirty, leaf->tag,
		};
}

static inline void model_change(struct model *m, uint64_t gpa, uint64_t bytes, bool unmap, unsigned perms)
{
	model_boundary(m, gpa);
	model_boundary(m, gpa + bytes);
	for (uint64_t at = gpa; at < gpa + bytes; at += MODEL_PAGE) {
		struct model_page *p = &m->pages[model_index(m, at)];

		if (unmap)
			p->level = 0;
		else
			p->perms = (uint8_t)perms;
	}
}

static inline bool model_collapse(struct model *m, uint64_t gpa, unsigned level)
{
	uint64_t bytes = model_bytes(level), first = gpa - gpa % bytes;
	struct model_page *p, *all;
	uint8_t accessed = 0, dirty = 0;

	if (model_index(m, first) == MODEL_PAGES || model_index(m, first + bytes - MODEL_PAGE) == MODEL_PAGES)
		return false;
	p = all = &m->pages[model_index(m, first)];
	for (uint64_t k = 0; k < bytes / MODEL_PAGE; k++, p++) {
		if (p->level != level - 1 || p->address != all->address + k * MODEL_PAGE || p->perms != all->perms ||
		    p->type != all->type || p->ignore_pat != all->ignore_pat || p->tag != all->tag)
			return false;
		accessed |= p->accessed;
		dirty |= p->dirty;
	}
	if (all->address % bytes != 0)
		return false;
	for (uint64_t k = 0; k < bytes / MODEL_PAGE; k++) {
		all[k].level = (uint8_t)level;
		all[k].accessed = accessed;
		all[k].dirty = dirty;
	}
	return true;
}

static inline void model_touch(struct model *m, uint64_t gpa, unsigned access)
{
	const struct model_page *p = &m->pages[model_index(m, gpa)];
	uint64_t bytes, first;

	if (p->level == 0 || (p->perms & access) != access)
		return;
	if (m->options->format == &table_format_ept && !m->options->accessed_dirty)
		return;
	bytes = model_bytes(p->level);
	first = gpa - gpa % bytes;
	for (uint64_t at = first; at < first + bytes; at += MODEL_PAGE) {
		m->pages[model_index(m, at)].accessed = 1;
		if (access & TABLE_WRITE)
			m->pages[model_index(m, at)].dirty = 1;
	}
}

/* ---- comparing ---- */

static inline void model_check(struct model *m, uint64_t gpa, unsigned access)
{
	static const struct model_page none;
	size_t i = model_index(m, gpa);
	const struct model_page *p = i < MODEL_PAGES ? &m->pages[i] : &none;
	uint64_t offset = gpa % MODEL_PAGE;
	struct table_walk w;
	enum table_outcome got = ept_table_lookup(m->table, gpa, access, &w);

	if (got != w.outcome || w.access != access)
		model_wrong(m, "a walk that contradicts itself", gpa);
	if (p->level == 0) {
		if (got != TABLE_VIOLATION || w.perms != 0)
			model_wrong(m, "mapped, though it should not be", gpa);
		return;
	}
	if (got != ((p->perms & access) == access ? TABLE_MAPPED : TABLE_VIOLATION))
		model_wrong(m, "wrong outcome", gpa);
	if (w.perms != p->perms || w.level != p->level || w.address != p->address + offset ||
	    w.references != m->options->levels - p->level + 1)
		model_wrong(m, "wrong page, permissions or level", gpa);
	if (got == TABLE_VIOLATION && m->options->format == &table_format_ept &&
	    m->options->format->fault_code(&w) != (access | (uint64_t)p->perms << 3))
		model_wrong(m, "wrong qualification", gpa);
}

static inline int model_each_one(void *userdata, uint64_t gpa, unsigned level, const struct table_leaf *leaf)
{
	struct model *m = userdata;
	size_t i = model_index(m, gpa);

	if (i == MODEL_PAGES)
		return -ERANGE;
	for (size_t k = 0; k < model_bytes(level) / MODEL_PAGE; k++) {
		struct model_page *p = &m->pages[i + k];

		if (p->level != level || p->address != leaf->address + k * MODEL_PAGE || p->perms != leaf->perms ||
		    p->type != leaf->memory_type || p->ignore_pat != leaf->ignore_pat || p->tag != leaf->tag ||
		    p->accessed != leaf->accessed || p->dirty != leaf->dirty)
			model_wrong(m, "a page that was iterated over differs", gpa);
		p->level |= 0x80; /* seen */
	}
	return 0;
}

static inline size_t model_tables(const struct model *m)
{
	size_t tables = 1; /* the root */

	for (unsigned level = 2; level <= m->options->levels; level++) {
		uint64_t last = UINT64_MAX;

		for (size_t i = 0; i < MODEL_PAGES; i++) {
			uint64_t block = model_gpa(m, i) >> (12 + 9 * (level - 1));

			if (m->pages[i].level != 0 && m->pages[i].level < level && block != last) {
				tables++;
				last = block;
			}
		}
	}
	return tables;
}

/* Everything. */
static inline void model_check_all(struct model *m)
{
	if (ept_table_each(m->table, 0, ept_table_limit(m->table), model_each_one, m) != 0)
		model_wrong(m, "iterating failed", 0);
	for (size_t i = 0; i < MODEL_PAGES; i++) {
		struct model_page *p = &m->pages[i];

		if (p->level != 0 && !(p->level & 0x80))
			model_wrong(m, "a page was not iterated over", model_gpa(m, i));
		p->level &= 0x7f;
	}
	if (ept_table_count(m->table) != model_tables(m))
		model_wrong(m, "more or fewer tables than are needed", 0);
}

/* ---- random operations ---- */

static inline uint64_t model_random(struct model *m, uint64_t below)
{
	return m->random(m->userdata) % below;
}

static inline unsigned model_random_perms(struct model *m)
{
	static const uint8_t npt[] = { 1, 3, 5, 7 }, ept[] = { 1, 3, 5, 7, 4 };

	if (m->options->format == &table_format_npt)
		return npt[model_random(m, 4)];
	return ept[model_random(m, m->options->execute_only ? 5 : 4)];
}

/* Half of all leaves are where their neighbours' are, so that some collapse. */
static inline struct table_leaf model_random_leaf(struct model *m, uint64_t gpa, unsigned level)
{
	static const uint8_t types[] = { TABLE_UC, TABLE_WC, TABLE_WT, TABLE_WP, TABLE_WB };
	bool plain = model_random(m, 2);
	struct table_leaf leaf = { .perms = 7, .memory_type = TABLE_WB, .tag = 1 };

	leaf.address = gpa % (UINT64_C(1) << 35);
	if (plain)
		return leaf;
	leaf.address = m->random(m->userdata) % (UINT64_C(1) << m->options->phys_bits);
	leaf.address -= leaf.address % model_bytes(level);
	leaf.perms = (uint8_t)model_random_perms(m);
	leaf.memory_type = types[model_random(m, sizeof(types))];
	leaf.ignore_pat = m->options->format == &table_format_ept && model_random(m, 2);
	leaf.accessed = model_random(m, 2);
	leaf.dirty = model_random(m, 2);
	leaf.tag = (uint8_t)model_random(m, TABLE_TAG_MAX + 1);
	return leaf;
}

/* Mostly within a few blocks of 2 MiB, so that operations meet. */
static inline uint64_t model_random_gpa(struct model *m)
{
	switch (model_random(m, 8)) {
	case 0:
		return MODEL_LOW_FIRST + model_random(m, MODEL_LOW_PAGES) * MODEL_PAGE;
	case 1:
		return m->high_first + model_random(m, MODEL_HIGH_PAGES) * MODEL_PAGE;
	case 2:
		return MODEL_LOW_FIRST + (MODEL_LOW_PAGES - 1536 + model_random(m, 1536)) * MODEL_PAGE;
	default:
		return MODEL_LOW_FIRST + model_random(m, 2048) * MODEL_PAGE;
	}
}

static inline void model_random_map(struct model *m, uint64_t gpa)
{
	unsigned level = model_random(m, 64) == 0 ? 3 : model_random(m, 4) == 0 ? 2 : 1;
	struct table_leaf leaf;
	int want = 0;

	gpa -= gpa % model_bytes(level);
	leaf = model_random_leaf(m, gpa, level);
	if (level == 3 && !m->options->gib_pages)
		want = -EINVAL;
	if (model_index(m, gpa) == MODEL_PAGES || model_index(m, gpa + model_bytes(level) - MODEL_PAGE) == MODEL_PAGES)
		return; /* it would reach out of the model's windows */
	if (ept_table_map(m->table, gpa, level, &leaf) != want)
		model_wrong(m, "mapping failed", gpa);
	if (want == 0)
		model_map(m, gpa, level, &leaf);
}

/* All of a block by its small pages, as it is when they came one by one. */
static inline void model_random_fill(struct model *m, uint64_t gpa)
{
	struct table_leaf leaf;

	gpa -= gpa % model_bytes(2);
	leaf = model_random_leaf(m, gpa, 2);
	if (model_random(m, 4) == 0 && leaf.address >= MODEL_PAGE)
		leaf.address -= MODEL_PAGE; /* they follow each other, but no large page could begin there */
	for (unsigned i = 0; i < 512; i++, leaf.address += MODEL_PAGE) {
		if (ept_table_map(m->table, gpa + i * MODEL_PAGE, 1, &leaf) != 0)
			model_wrong(m, "filling failed", gpa);
		model_map(m, gpa + i * MODEL_PAGE, 1, &leaf);
	}
}

static inline void model_random_range(struct model *m, uint64_t gpa)
{
	static const uint64_t most[] = { 2, 64, 1500, 300000 };
	uint64_t left = gpa < m->high_first ? (MODEL_LOW_FIRST + MODEL_LOW_PAGES * MODEL_PAGE - gpa) :
					      (m->high_first + MODEL_HIGH_PAGES * MODEL_PAGE - gpa);
	unsigned size = model_random(m, 32) == 0 ? 3 : (unsigned)model_random(m, 3);
	uint64_t pages = model_random(m, most[size]), bytes = pages * MODEL_PAGE;
	bool unmap = model_random(m, 2);
	unsigned perms = model_random_perms(m);
	int r;

	if (bytes > left)
		bytes = left;
	r = unmap ? ept_table_unmap(m->table, gpa, bytes) : ept_table_protect(m->table, gpa, bytes, perms);
	if (r != 0)
		model_wrong(m, "changing a range failed", gpa);
	if (bytes > 0)
		model_change(m, gpa, bytes, unmap, perms);
	model_check(m, gpa + bytes, 0);
}

static inline void model_random_shape(struct model *m, uint64_t gpa, bool split)
{
	const struct model_page *p = &m->pages[model_index(m, gpa)];
	unsigned level = model_random(m, 16) == 0 ? 3 : 2;
	bool fits;

	if (split) {
		if (ept_table_split(m->table, gpa) != (p->level > 1 ? 0 : -ENOENT))
			model_wrong(m, "splitting", gpa);
		if (p->level > 1)
			model_lower(m, gpa);
		return;
	}
	if (level == 3 && !m->options->gib_pages) {
		if (ept_table_collapse(m->table, gpa, level) != -EINVAL)
			model_wrong(m, "collapsing to what there is not", gpa);
		return;
	}
	fits = model_collapse(m, gpa, level);
	if (ept_table_collapse(m->table, gpa, level) != fits)
		model_wrong(m, "collapsing", gpa);
}

/* One operation, and a look at where it was. */
static inline void model_step(struct model *m)
{
	uint64_t gpa = model_random_gpa(m), offset = model_random(m, MODEL_PAGE);
	unsigned access = (unsigned)model_random(m, 8);
	struct table_walk w;

	switch (model_random(m, 10)) {
	case 0: case 1: case 2:
		model_random_map(m, gpa);
		break;
	case 3: case 4:
		model_random_range(m, gpa);
		break;
	case 5:
		model_random_shape(m, gpa, true);
		break;
	case 6: case 7:
		model_random_shape(m, gpa, false);
		break;
	case 8:
		model_random_fill(m, gpa);
		break;
	default:
		ept_table_touch(m->table, gpa + offset, access, &w);
		model_touch(m, gpa, access);
		break;
	}
	model_check(m, gpa + offset, access);
	model_check(m, gpa - MODEL_PAGE + offset, access);
	model_check(m, model_random_gpa(m), access);
}

/* 0 or -errno. options are borrowed. */
static inline int model_init(struct model *m, const struct table_options *options, uint64_t (*random)(void *), void *userdata)
{
	int r;

	*m = (struct model){ .options = options, .random = random, .userdata = userdata };
	m->pages = calloc(MODEL_PAGES, sizeof(*m->pages));
	r = m->pages ? ept_table_new(options, &m->table) : -ENOMEM;
	if (r == 0)
		m->high_first = ept_table_limit(m->table) - MODEL_HIGH_PAGES * MODEL_PAGE;
	return r;
}

static inline void model_end(struct model *m)
{
	ept_table_free(m->table);
	free(m->pages);
}

#endif
