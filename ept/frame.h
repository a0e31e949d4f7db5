/* ept/frame.h - from an address of a VMM to the host's frame, from outside and without touching the page.
 *
 * Frame numbers and kinds need CAP_SYS_ADMIN. */
#ifndef EPT_FRAME_H
#define EPT_FRAME_H

#include <stdbool.h>
#include <stdint.h>

struct ept_target;

/* An entry of /proc/PID/pagemap. */
#define FRAME_ENTRY_PRESENT (UINT64_C(1) << 63)
#define FRAME_ENTRY_SWAPPED (UINT64_C(1) << 62)
#define FRAME_ENTRY_FILE (UINT64_C(1) << 61)
#define FRAME_ENTRY_EXCLUSIVE (UINT64_C(1) << 56)
#define FRAME_ENTRY_NUMBER ((UINT64_C(1) << 55) - 1)

/* Reads the entry of the page that holds hva. 0; -ESRCH: the process is gone; -errno. */
int frame_entry(int pagemap_fd, uint64_t hva, uint64_t *ret_entry);

enum frame_state { FRAME_ABSENT, FRAME_SWAPPED, FRAME_PRESENT };

enum frame_kind {
	FRAME_OWN,   /* anonymous: the process's, or shared with a forked child */
	FRAME_ZERO,  /* the kernel's zero page */
	FRAME_KSM,   /* merged by the kernel's scanner */
	FRAME_STORE, /* of a store that the process was merged with */
	FRAME_FILE,  /* of any other file, memory files included */
};

struct frame {
	enum frame_state state;
	/* FRAME_PRESENT: */
	enum frame_kind kind;
	bool hpa_known;
	bool exclusive;	     /* mapped here and nowhere else */
	bool hugetlb;
	uint64_t hpa;	     /* of the byte that was asked for */
	uint64_t page_bytes; /* of the mapping: 4 KiB, 2 MiB or 1 GiB. Before Linux 6.7 a huge mapping shows as 4 KiB */
	int node;	     /* of the host; -1: not told (the zero page has none) */
};

/* The frame behind hva now. 0; -EAGAIN: the page moves all the time; -ESRCH; -errno. */
int frame_look(const struct ept_target *t, uint64_t hva, struct frame *ret_frame);

const char *frame_state_name(enum frame_state state);
const char *frame_kind_name(enum frame_kind kind);

#endif
