/* chaos-vmm: a VMM as cheap as can be, with an agent preloaded: RAM and threads that use it, no guest. It is started with
 * the name and the options of a QEMU, so that the daemon takes it for one:
 *
 *	qemu-system-x86_64 -name chaos-a-7 -m 32M
 *
 * The number at the end of the name makes its own contents and random numbers, and whether it has huge pages. */
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "tests/world/load.h"

/* 32 steps, of about 1 us each, and a rest: tens of VMMs share a machine with daemons that are to be seen at work. */
#define STEPS_AT_ONCE 32
#define REST_US 20000

static atomic_bool stop;

static void *writer(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;
	uint64_t r = (uint64_t)load.vm << 32 | load.page->order << 8 | me;

	while (!stop) {
		for (int i = 0; i < STEPS_AT_ONCE; i++)
			load_write(me, &r);
		load.page->beats[me]++;
		usleep(REST_US);
	}
	return NULL;
}

static void *reader(void *arg)
{
	uint64_t r = (uint64_t)load.vm << 32 | 1u << 31;

	while (!stop) {
		for (int i = 0; i < STEPS_AT_ONCE; i++)
			load_read(&r);
		load.page->beats[WRITERS]++;
		usleep(REST_US);
	}
	return arg;
}

static pthread_t threads[CHAOS_THREADS];

static void load_start(void)
{
	stop = false;
	for (unsigned i = 0; i < CHAOS_THREADS; i++)
		if (pthread_create(&threads[i], NULL, i < WRITERS ? writer : reader, (void *)(uintptr_t)i) != 0)
			_exit(2);
}

static void load_stop(void)
{
	stop = true;
	for (unsigned i = 0; i < CHAOS_THREADS; i++)
		pthread_join(threads[i], NULL);
}

/* ---- what the process holds ---- */

static uint32_t fds_count(void)
{
	DIR *d = opendir("/proc/self/fd");
	uint32_t n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n - 3; /* itself, "." and ".." */
}

static uint32_t maps_count(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	uint32_t n = 0;
	int c;

	while (f && (c = getc(f)) != EOF)
		n += c == '\n';
	if (f)
		fclose(f);
	return n;
}

/* ---- orders ---- */

static void carry_out(enum chaos_order order)
{
	static bool runs;

	if (order == CHAOS_RUN && !runs)
		load_start();
	else if (order != CHAOS_RUN && runs)
		load_stop();
	runs = order == CHAOS_RUN;
	if (order == CHAOS_CHECK)
		load_check_all("check");
	if (order == CHAOS_DISCARD) {
		load_check_all("before the end");
		load_discard_all();
		load_check_all("discarded"); /* reading brings zero pages, which are no mappings */
		load_discard_all();
	}
}

int main(int argc, char **argv)
{
	const char *number = argc > 2 ? strrchr(argv[2], '-') : NULL;
	struct chaos_page *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, CHAOS_FD, 0);
	uint32_t order = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!number || page == MAP_FAILED || load_open((uint32_t)strtoul(number + 1, NULL, 10), page) < 0)
		return 2;
	load_fill_all();
	load_start(); /* once before counting: the C library keeps stacks */
	load_stop();
	page->maps_first = maps_count();
	page->fds_first = fds_count();
	page->ram = (uint64_t)(uintptr_t)load.ram;
	load_name_ram();
	for (;;) {
		if (page->order == order) {
			usleep(2000);
			continue;
		}
		order = page->order;
		if ((order & 0xff) == CHAOS_END)
			return page->bad != 0;
		carry_out((enum chaos_order)(order & 0xff));
		page->done = order;
	}
}
