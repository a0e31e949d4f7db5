/* ept/target.h - what a thread needs of a VM to look at its memory, apart from everything that the loop owns.
 *
 * Descriptors belong to the process on which they were opened: when that is gone they give nothing, even if its pid is
 * used again. Immutable after it was made: any number of threads may use one. */
#ifndef EPT_TARGET_H
#define EPT_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "ept/slots.h"
#include "vmm/cmdline.h"

struct vma;

struct ept_target {
	const struct fsio *fs; /* borrowed */
	char name[VM_NAME_MAX], uuid[VM_UUID_MAX];
	pid_t pid;
	int pidfd, mem_fd, pagemap_fd;
	struct ept_slot *slots; /* ascending by GPA */
	size_t slot_count;
	struct mem_region *regions; /* the same memory ascending by HVA, none twice */
	size_t region_count;
	bool gpa_known;
};

/* Of the VM as it is known now. Loop thread. 0; -ENODATA: where its memory lies is not known; -ESRCH; -errno. */
int ept_target_new(const struct ept_view *view, struct ept_target **ret_target);
struct ept_target *ept_target_free(struct ept_target *t); /* NULL ok; gives NULL */

/* Whether its process is still there. What was looked up by pid counts only if it is afterwards. */
bool ept_target_alive(const struct ept_target *t);

/* The slot that holds the address; NULL outside of RAM. */
const struct ept_slot *ept_target_slot(const struct ept_target *t, uint64_t gpa);
/* Whether the guest has none above 4 GiB. Guest-physical addresses are known. */
bool ept_target_low_ram(const struct ept_target *t);
/* Where the guest sees this byte of its VMM. *next is where to look from, 0 at first: aliases make several. 0, or -ENXIO:
 * nowhere (else). */
int ept_target_gpa(const struct ept_target *t, uint64_t hva, size_t *next, uint64_t *ret_gpa);

/* The mapping that holds the address. 0; -ENXIO: there is none; -ESRCH; -errno. */
int ept_target_vma(const struct ept_target *t, uint64_t hva, struct vma *ret_vma);

/* Guest-physical memory as it is now, within one page; t is a struct ept_target (this is a walk_read_fn). Absent private
 * memory reads as zeroes and is not touched. What the host has swapped out is read back. 0; -ENXIO outside of RAM; -ENODATA:
 * a file's page that the VMM has not mapped in, or any of a file on a disk; -errno. */
int ept_target_read(void *t, uint64_t gpa, void *buf, size_t n);

#endif
