/* core/snapshot.h - the one picture of host and VMs that the policy modules share.
 *
 * The daemon fills identity and memory layout, each module's sense() its own part. Everything is plain
 * data, borrowed for the tick and never kept: decide() may look only here and at its own state, which is
 * what makes a decision repeatable from a record. */
#ifndef CORE_SNAPSHOT_H
#define CORE_SNAPSHOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/config.h"

#define PAGE_BYTES 4096u
#define PAGE_SHIFT 12

/* What backs a piece of guest RAM in the VMM. Only private anonymous memory can be merged. MEM_SHARED: memory
 * files only; any other file is MEM_FILE and never read, as its file system may make a reader wait for ever. */
enum mem_backing { MEM_ANON, MEM_SHARED, MEM_HUGETLB, MEM_FILE };

/* Guest RAM in the VMM's address space; page-aligned. */
struct mem_region {
	uint64_t hva;
	uint64_t bytes;
	enum mem_backing backing;
};

/* Time in which tasks stood still for want of memory, in microseconds since boot (or since the cgroup was made);
 * Documentation/accounting/psi.rst. */
struct pressure {
	bool known;
	uint64_t some_us, full_us; /* some tasks, all tasks that had something to do */
};

/* How far the counters that a guest gives are to be believed. */
enum guest_stats {
	GUEST_STATS_NONE,   /* never came: no device, no driver, or nobody asks */
	GUEST_STATS_STALE,  /* came, but too long ago */
	GUEST_STATS_ABSURD, /* contradict themselves or the VM's size */
	GUEST_STATS_GOOD,   /* possible; still the guest's word */
};

enum balloon_device { BALLOON_DEVICE_UNKNOWN, BALLOON_DEVICE_ABSENT, BALLOON_DEVICE_PRESENT };

/* A VM's balloon as its VMM tells it, and memory as the guest sees it. The figures of a guest are valid only while
 * stats is GUEST_STATS_GOOD; what it did not tell is BALLOON_UNTOLD. */
#define BALLOON_UNTOLD UINT64_MAX
struct vm_balloon {
	const char *driver; /* "qmp" or "libvirt"; NULL: nobody reaches the balloon, "why" says the reason */
	const char *why;    /* of no driver, no device, or no good stats; else "". Borrowed for the tick */
	enum balloon_device device;
	uint64_t max_bytes;    /* guest memory with the balloon empty; 0: unknown */
	uint64_t actual_bytes; /* guest memory now: max_bytes less the balloon, by the VMM's word; 0: unknown */
	uint64_t told_ns;      /* when actual_bytes was told, CLOCK_MONOTONIC */
	uint64_t resets;       /* how often the guest was reset since the daemon knows it */

	enum guest_stats stats;
	uint64_t stats_ns; /* when the guest made them, CLOCK_MONOTONIC; 0: never */
	/* stat-total-memory, -free-memory, -available-memory (without swapping), -disk-caches */
	uint64_t total_bytes, free_bytes, available_bytes, cache_bytes;
	/* since the guest's boot */
	uint64_t swap_in_bytes, swap_out_bytes, major_faults, oom_kills;
};

struct vm_snapshot {
	const char *name, *uuid;
	const char *domain; /* never NULL; when none is configured, "=..." that no other VM and no section has */
	pid_t pid;
	int pidfd;
	uint64_t start_ticks;
	const struct mem_region *regions;
	size_t region_count;
	bool merge_allowed; /* configuration: merge = on */
	enum merge_engine engine; /* configuration, AUTO: the host's */
	bool mem_merge;	    /* the command line lets the VMM give its RAM to KSM; QEMU's default */
	bool mem_lock;	    /* the command line locks RAM in memory */
	bool migrating;
	uint64_t ram_bytes; /* at its boot, by QMP or the command line */
	uint64_t found_ns;  /* CLOCK_MONOTONIC */
	bool running;	    /* false: paused or shut down, as far as QMP says */

	/* configuration: entitlement */
	bool balloon_allowed;
	uint64_t reservation_bytes;
	uint64_t limit_bytes; /* 0: none but its size */
	uint64_t shares;

	/* balloon */
	struct vm_balloon balloon;
	/* Guest RAM that is resident, as last counted or estimated from samples, and when; 0 ns: never. */
	uint64_t ram_resident_bytes, ram_resident_ns;
	struct pressure pressure; /* of the VM's own cgroup; unknown if it shares one with the rest of the host */

	/* ksmd */
	bool ksm_mergeable;	    /* the VMM gave RAM to the kernel's scanner */
	uint64_t ksm_merging_pages; /* pages of this VM that are KSM pages now */
	uint64_t rss_anon_bytes, rss_shmem_bytes;
};

/* Kernel KSM: its settings and counters. */
struct ksm_snapshot {
	bool present;	   /* the kernel has it */
	uint64_t run;	   /* 0 stopped, 1 running, 2 unmerging */
	uint64_t pages_to_scan, sleep_ms;
	uint64_t pages_shared, pages_sharing, zero_pages;
	uint64_t pages_scanned, full_scans;
	uint64_t cow_pages; /* copied on write since boot; 0: unknown, or nothing is merged */
	uint64_t cpu_ns; /* used by the kernel's scanner thread since boot; 0: unknown */
};

struct host_snapshot {
	uint64_t taken_ns; /* CLOCK_MONOTONIC */
	/* Of the host, or of the cgroup that the configuration names. */
	uint64_t mem_total_bytes, mem_available_bytes, swap_total_bytes, swap_free_bytes;
	struct pressure pressure;
	struct ksm_snapshot ksm;
	uint64_t cow_debt_bytes;     /* ksmd's: what merged memory may come back at once; of the last tick */
	uint64_t admitted_bytes;     /* balloon's: promised to VMs that have not shown up yet */
	struct vm_snapshot *vms;
	size_t vm_count;
};

#endif
