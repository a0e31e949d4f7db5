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

	/* ksmd */
	bool ksm_mergeable;	    /* the VMM gave RAM to the kernel's scanner */
	uint64_t ksm_merging_pages; /* pages of this VM that are KSM pages now */
	uint64_t rss_anon_bytes;
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
	uint64_t mem_total_bytes, mem_available_bytes, swap_free_bytes;
	struct ksm_snapshot ksm;
	struct vm_snapshot *vms;
	size_t vm_count;
};

#endif
