/* tests/world/proc.h - what the kernel says of a process. */
#ifndef TESTS_WORLD_PROC_H
#define TESTS_WORLD_PROC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct proc_map {
	uint64_t start, end, offset, inode;
	char name[128];
};

/* Calls back for each mapping, in order. False: the process is not there any more. */
bool proc_maps(pid_t pid, void (*one)(const struct proc_map *m, void *userdata), void *userdata);
uint32_t proc_maps_count(pid_t pid);
uint32_t proc_fds_count(pid_t pid);
/* Resident memory of its own (frames are not, which it maps as well), and CPU time used. */
uint64_t proc_anon_kib(pid_t pid);
double proc_cpu_seconds(pid_t pid);
/* Mappings in [start, end), and how many of them have threads wait for missing pages. */
void proc_range(pid_t pid, uint64_t start, uint64_t end, uint32_t *ret_maps, uint32_t *ret_windows);
/* Where each of its threads is, to standard output. */
void proc_print_threads(pid_t pid);

#endif
