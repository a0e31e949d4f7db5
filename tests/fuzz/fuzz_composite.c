/* Fuzzes composites: the input is registers and all of the guest's memory, then bytes to change in it between two syncs. */
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/snapshot.h"
#include "ept/attribute.h"
#include "ept/composite.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HEAD 42 /* cr0, cr3, cr4, efer, how much to change, two bytes of model */
#define PAGES 16u
#define TABLES_MAX 12u
#define BUDGET 20000u

struct memory {
	uint8_t *bytes; /* PAGES of them */
	unsigned reads;
};

static int memory_read(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	struct memory *m = userdata;

	m->reads++;
	assert(gpa % PAGE_BYTES == 0 && n == PAGE_BYTES);
	if (gpa >= PAGES * PAGE_BYTES)
		return gpa % 7 == 0 ? -EIO : -ENXIO;
	memcpy(buf, m->bytes + gpa, n);
	return 0;
}

static int locate(void *userdata, uint64_t gpa, uint64_t *ret_index, uint64_t *ret_pages)
{
	(void)userdata;
	*ret_index = gpa / PAGE_BYTES;
	*ret_pages = gpa / PAGE_BYTES < PAGES ? PAGES - gpa / PAGE_BYTES : UINT64_MAX / PAGE_BYTES;
	return gpa / PAGE_BYTES < PAGES ? 0 : -ENXIO;
}

static void usage_check(const struct attribute_usage *u)
{
	assert(u->mapped <= PAGES && u->resident <= u->mapped && u->merged <= u->mapped && u->huge <= u->resident);
}

static void attribute_check(const struct composite *c, uint64_t cr3)
{
	uint64_t host[PAGES], budget = BUDGET;
	struct attribute_pages pages = { host, PAGES, 0 };
	struct attribute_usage user, kernel, together;
	struct attribute *a;

	for (unsigned i = 0; i < PAGES; i++)
		host[i] = (i & 1 ? ATTRIBUTE_PRESENT : 0) | (i & 2 ? ATTRIBUTE_MERGED : 0) | i;
	if (attribute_new(&pages, locate, NULL, &a) < 0)
		return;
	attribute_user(a, c, cr3, &budget, &user);
	attribute_kernel(a, c, cr3, &budget, &kernel);
	attribute_together(a, &together);
	usage_check(&user);
	usage_check(&kernel);
	assert(together.mapped == user.mapped && kernel.mapped + user.mapped <= PAGES);
	assert(budget > 0 || user.incomplete || kernel.incomplete);
	attribute_free(a);
}

static int sync_check(struct composite *c, struct memory *m)
{
	struct composite_sync s;
	int r;

	m->reads = 0;
	r = composite_sync(c, memory_read, m, NULL, &s);
	assert(r == 0 || r == -EOVERFLOW);
	assert(s.tables <= TABLES_MAX);
	assert(m->reads <= PAGES + TABLES_MAX + 1);
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct memory m = { .bytes = calloc(PAGES, PAGE_BYTES) };
	struct walk_regs regs;
	struct composite *c;
	uint64_t words[5];
	size_t n;

	if (m.bytes && size >= HEAD) {
		memcpy(words, data, sizeof(words));
		regs = (struct walk_regs){ words[0], words[1], words[2], words[3], 32 + data[40] % 21, data[41] & 1,
					   data[41] & 2 };
		n = size - HEAD < PAGES * PAGE_BYTES ? size - HEAD : PAGES * PAGE_BYTES;
		memcpy(m.bytes, data + HEAD, n);
		if (composite_new(&regs, TABLES_MAX, &c) == 0) {
			composite_root_add(c, regs.cr3);
			if (sync_check(c, &m) == 0) {
				attribute_check(c, regs.cr3);
				memmove(m.bytes + words[4] % (PAGES * PAGE_BYTES), data + HEAD,
					n < PAGE_BYTES - words[4] % PAGE_BYTES ? n : PAGE_BYTES - words[4] % PAGE_BYTES);
				if (sync_check(c, &m) == 0)
					attribute_check(c, regs.cr3);
			}
			composite_free(c);
		}
	}
	free(m.bytes);
	return 0;
}
