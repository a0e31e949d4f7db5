/* Fuzzes walks: the input is registers, an address, and all of the guest's memory. And, with the same bytes as text, the
 * parser of "info registers". */
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ept/registers.h"
#include "ept/walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HEAD 42 /* cr0, cr3, cr4, efer, gva, two bytes of model */

struct memory {
	const uint8_t *bytes;
	size_t size;
	unsigned reads;
};

static int memory_read(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	struct memory *m = userdata;

	m->reads++;
	if (gpa >= m->size || m->size - gpa < n)
		return gpa % 7 == 0 ? -EIO : -ENXIO;
	memcpy(buf, m->bytes + gpa, n);
	return 0;
}

static void walk_check(const struct walk_regs *regs, const struct walk *w, int r, const struct memory *m)
{
	assert(r == 0 || r == -EFAULT);
	assert((r == 0) == (w->fault == WALK_MAPPED));
	assert(w->step_count <= walk_levels(w->mode) && m->reads == w->step_count);
	assert(w->fault_level <= walk_levels(w->mode));
	for (unsigned i = 0; i < w->step_count; i++) {
		assert(w->steps[i].level == walk_levels(w->mode) - i);
		assert(w->steps[i].index < walk_entry_count(w->mode, w->steps[i].level));
		assert(w->steps[i].table % 32 == 0);
	}
	if (w->fault == WALK_RESERVED)
		assert(w->reserved != 0);
	if (r == 0 && w->mode != WALK_FLAT) {
		assert(w->page_bytes == w->steps[w->step_count - 1].bytes);
		assert(w->gpa < UINT64_C(1) << (regs->phys_bits > 32 ? regs->phys_bits : 32));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct memory m = { 0 };
	struct walk_regs regs;
	struct walk w;
	uint64_t words[5];
	char *text;
	bool cut;
	int r;

	if (size >= HEAD) {
		memcpy(words, data, sizeof(words));
		regs = (struct walk_regs){ words[0], words[1], words[2], words[3], 32 + data[40] % 21, data[41] & 1,
					   data[41] & 2 };
		m.bytes = data + HEAD;
		m.size = size - HEAD;
		r = walk_gva(&regs, memory_read, &m, words[4], &w);
		if (r != -EINVAL)
			walk_check(&regs, &w, r, &m);
	}
	text = malloc(size + 1);
	if (!text)
		return 0;
	if (size > 0)
		memcpy(text, data, size);
	text[size] = '\0';
	r = registers_parse(text, &regs, &cut);
	assert(r == 0 || r == -EBADMSG);
	free(text);
	return 0;
}
