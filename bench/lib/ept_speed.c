#include "bench/lib/ept_speed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench/lib/sim_random.h"
#include "core/clock.h"
#include "core/fsio.h"
#include "ept/audit_host.h"
#include "ept/build.h"
#include "ept/target.h"
#include "vmm/registry.h"

#define GIB (UINT64_C(1) << 30)
#define ROUNDS 5
#define LOOKUPS 4000000u
/* Where QEMU's PC has the memory above the hole for devices. */
#define SPLIT (UINT64_C(640) << 20)
#define HIGH_GPA (UINT64_C(4) << 30)

struct gib {
	struct fsio fs;
	char *map, *ram;
	struct vm vm;
	struct ept_target *target;
	struct ept_build build;
	struct table_options options;
};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values)
{
	qsort(values, ROUNDS, sizeof(*values), by_value);
	return values[ROUNDS / 2];
}

static int gib_new(bool huge, struct gib *g)
{
	struct ept_slot slots[2];
	struct mem_region region;
	struct ept_view view = { .fs = &g->fs, .vm = &g->vm, .source = EPT_FROM_QMP, .slots = slots, .slot_count = 2,
				 .regions = &region, .region_count = 1 };
	int r = fsio_open_root("/", false, &g->fs);

	if (r < 0)
		return r;
	g->map = mmap(NULL, 2 * GIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (g->map == MAP_FAILED)
		return -errno;
	g->ram = (char *)(((uintptr_t)g->map + GIB - 1) & ~(GIB - 1));
	madvise(g->ram, GIB, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (uint64_t at = 0; at < GIB; at += PAGE_BYTES)
		g->ram[at] = 1;
	g->vm.pid = getpid();
	g->vm.pidfd = (int)syscall(SYS_pidfd_open, g->vm.pid, 0);
	slots[0] = (struct ept_slot){ .gpa = 0, .hva = (uintptr_t)g->ram, .bytes = SPLIT };
	slots[1] = (struct ept_slot){ .gpa = HIGH_GPA, .hva = (uintptr_t)g->ram + SPLIT, .bytes = GIB - SPLIT };
	region = (struct mem_region){ (uintptr_t)g->ram, GIB, MEM_ANON };
	ept_build_host_options(&g->options);
	return ept_target_new(&view, &g->target);
}

static void gib_end(struct gib *g)
{
	ept_build_end(&g->build);
	ept_target_free(g->target);
	if (g->vm.pidfd > 0)
		close(g->vm.pidfd);
	if (g->map && g->map != MAP_FAILED)
		munmap(g->map, 2 * GIB);
	fsio_close(&g->fs);
}

static uint64_t peak_bytes(const struct gib *g)
{
	char text[16384];
	uint64_t kib = 0;

	if (fsio_read(&g->fs, text, sizeof(text), "/proc/self/status") > 0)
		fsio_field_u64(text, "VmHWM", &kib);
	return kib << 10;
}

static int build_measure(struct gib *g, struct ept_speed *speed)
{
	double build[ROUNDS], update[ROUNDS];
	uint64_t before, start;
	int r = 0;

	for (unsigned i = 0; i < ROUNDS && r == 0; i++) {
		ept_build_end(&g->build);
		r = fsio_write(&g->fs, "5", "/proc/self/clear_refs"); /* the peak is now what there is now */
		before = peak_bytes(g);
		if (r == 0)
			r = ept_build_init(&g->build, g->target, &g->options);
		start = clock_mono_ns();
		if (r == 0)
			r = ept_build_update(&g->build);
		build[i] = (double)(clock_mono_ns() - start) / 1e6;
		speed->memory_share = (double)(peak_bytes(g) - before) / (double)GIB;
		start = clock_mono_ns();
		if (r == 0)
			r = ept_build_update(&g->build);
		update[i] = (double)(clock_mono_ns() - start) / 1e6;
		if (r == 0 && g->build.changed_pages != 0)
			return -EIO; /* this memory stands still: an entry that changed is a fault of ours */
	}
	if (r < 0)
		return r;
	speed->build_ms_per_gib = median(build);
	speed->update_ms_per_gib = median(update);
	return 0;
}

static int audit_measure(struct gib *g, struct ept_speed *speed)
{
	const struct audit_target target = { g->target, "domain" };
	double rates[ROUNDS];
	int r = 0;

	for (unsigned i = 0; i < ROUNDS && r == 0; i++) {
		struct audit_host h = { .fs = &g->fs, .targets = &target, .target_count = 1 };
		uint64_t start = clock_mono_ns();

		r = audit_host_run(&h);
		rates[i] = 1 / ((double)(clock_mono_ns() - start) / 1e9);
		if (r == 0 && (h.counts.pages != GIB / PAGE_BYTES || h.violation_count != 0))
			r = -EIO;
		audit_host_end(&h);
	}
	if (r == 0)
		speed->audit_gib_s = median(rates);
	return r;
}

static int lookups_measure(struct gib *g, struct ept_speed *speed)
{
	double rates[ROUNDS];

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t random = i, sum = 0, start = clock_thread_cpu_ns(); /* others may have the core in between */

		for (unsigned k = 0; k < LOOKUPS; k++) {
			uint64_t offset = sim_random(&random) % GIB;
			struct table_walk w;

			if (ept_table_lookup(g->build.table, offset < SPLIT ? offset : HIGH_GPA + offset - SPLIT, TABLE_WRITE,
					     &w) != TABLE_MAPPED)
				return -EIO;
			sum += w.address;
		}
		rates[i] = LOOKUPS / ((double)(clock_thread_cpu_ns() - start) / 1e9);
		if (sum == 0)
			return -EIO;
	}
	speed->lookups_per_s = median(rates);
	return 0;
}

int ept_speed_measure(bool huge, struct ept_speed *ret_speed)
{
	struct gib g = { .fs = { .root_fd = -1 } };
	struct ept_speed speed = { 0 };
	int r = gib_new(huge, &g);

	if (r == 0)
		r = build_measure(&g, &speed);
	if (r == 0)
		r = lookups_measure(&g, &speed);
	if (r == 0)
		r = audit_measure(&g, &speed);
	gib_end(&g);
	if (r == 0)
		*ret_speed = speed;
	return r;
}
