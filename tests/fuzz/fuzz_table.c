/* Fuzzes second-stage tables: operations chosen by the input, on a table and on the model of it, then entries overwritten
 * with the input's bytes and looked at. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MODEL_MIDDLE_PAGES 4096u
#include "tests/unit/table_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define STEPS_MAX 200

struct input {
	const uint8_t *data;
	size_t size;
};

/* Three bytes a number; zeroes when there are no more. */
static uint64_t take(void *userdata)
{
	struct input *in = userdata;
	uint64_t value = 0;

	for (unsigned i = 0; i < 3 && in->size > 0; i++, in->size--)
		value = value << 8 | *in->data++;
	return value * UINT64_C(0x9e3779b97f4a7c15) >> 8; /* spread over an address */
}

static int count_one(void *userdata, uint64_t gpa, unsigned level, const struct table_leaf *leaf)
{
	assert(gpa % table_level_bytes(level) == 0 && leaf->address % table_level_bytes(level) == 0);
	return ++*(unsigned *)userdata > 2000;
}

/* Whatever an entry says, a walk ends within its levels and says how. */
static void spoil(struct model *m, struct input *in)
{
	while (in->size > 0) {
		uint64_t gpa = model_random_gpa(m), value = take(in) ^ take(in) << 40, old;
		unsigned level = 1 + (unsigned)model_random(m, m->options->levels), leaves = 0;
		uint64_t *entry = ept_table_entry(m->table, gpa, level);
		struct table_walk w;

		if (!entry)
			continue;
		old = *entry;
		*entry = value;
		ept_table_lookup(m->table, gpa, (unsigned)(value & 7), &w);
		assert(w.references <= m->options->levels && w.level >= 1);
		assert(w.outcome != TABLE_MISCONFIGURED || w.reserved != 0);
		ept_table_each(m->table, gpa & ~UINT64_C(0x1fffff), (gpa & ~UINT64_C(0x1fffff)) + (2u << 20), count_one, &leaves);
		entry = ept_table_entry(m->table, gpa, level);
		assert(entry);
		*entry = old;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	uint64_t choice = take(&in);
	const struct table_options options = {
		.format = choice & 1 ? &table_format_npt : &table_format_ept,
		.levels = choice & 2 ? 5 : 4,
		.phys_bits = choice & 4 ? 52 : 46,
		.gib_pages = choice & 8,
		.execute_only = choice & 16,
		.accessed_dirty = choice & 32,
	};
	struct model m;

	if (model_init(&m, &options, take, &in) < 0)
		abort();
	for (unsigned i = 0; i < STEPS_MAX && in.size > 64; i++)
		model_step(&m);
	model_check_all(&m);
	if (m.wrong) {
		fprintf(stderr, "%s at 0x%llx\n", m.wrong, (unsigned long long)m.wrong_gpa);
		abort();
	}
	spoil(&m, &in);
	model_end(&m);
	return 0;
}
