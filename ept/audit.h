/* ept/audit.h - which host frames the VMs have mapped, and whether any is shared that must not be. Pure.
 *
 * A frame that two VMs map must be the zero page, or one of KSM or of a store while both are of one domain. The pages of all
 * VMs are numbered through, and a table indexed by frame number remembers who had a frame first: 5 bytes for each frame
 * of a stretch of 128 MiB in which any is mapped. What comes twice is judged at once. */
#ifndef EPT_AUDIT_H
#define EPT_AUDIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AUDIT_PAGES_MAX (UINT32_MAX - 1) /* of all VMs: 16 TiB */
#define AUDIT_FINDINGS_MAX 65536 /* more are only counted */

/* What is known of a mapped page without looking at its frame. */
enum audit_page { AUDIT_ANON, AUDIT_STORE, AUDIT_FILE };

enum audit_why {
	AUDIT_SHARED,	    /* two VMs map a frame that is nobody's to share */
	AUDIT_OTHER_DOMAIN, /* a merged frame, in two domains */
	AUDIT_STORE_TWICE,  /* VMs of two domains map one store, if no frame of it in common */
	AUDIT_WRITABLE,	    /* a store is mapped so that writes go to its frames */
	AUDIT_BACKING,	    /* memory behind a slot is not what the VM's RAM is made of */
};
#define AUDIT_WHYS (AUDIT_BACKING + 1)

struct audit_finding {
	enum audit_why why;
	uint64_t frame;	    /* number; 0: it is not about one */
	uint32_t page, other; /* numbers of pages; other: the one that was there first, AUDIT_NONE: none */
};
#define AUDIT_NONE UINT32_MAX

/* What the kernel says of a frame. */
#define AUDIT_FRAME_KSM 1u
#define AUDIT_FRAME_ZERO 2u
typedef unsigned (*audit_frame_fn)(void *userdata, uint64_t frame);

struct audit_counts {
	uint64_t pages;	 /* mapped */
	uint64_t frames; /* in which they lie */
	uint64_t zero, ksm, store; /* pages beyond the first of a frame, rightly shared by VMs */
	uint64_t within;	   /* or by one VM with itself */
	uint64_t more;		   /* findings that were not kept */
};

struct audit;

/* frame is asked once for each frame that comes twice. 0 or -ENOMEM. */
int audit_new(audit_frame_fn frame, void *userdata, struct audit **ret_audit);
struct audit *audit_free(struct audit *a); /* NULL ok; gives NULL */
/* The next VM; domain: equal texts are one domain; borrowed. Its pages are numbered from *ret_first on. 0; -E2BIG; -ENOMEM. */
int audit_vm(struct audit *a, const char *domain, uint64_t pages, uint32_t *ret_first);
/* A page of the last VM that is mapped to this frame. 0 or -ENOMEM. */
int audit_page(struct audit *a, uint32_t page, uint64_t frame, enum audit_page kind);
/* The last VM has this store mapped, by the number of its file; page: one of those it is mapped at. 0 or -ENOMEM. */
int audit_store(struct audit *a, uint64_t inode, uint32_t page);
/* Something about a page of the last VM alone. 0 or -ENOMEM. */
int audit_add(struct audit *a, enum audit_why why, uint32_t page, uint64_t frame);

/* The VM of a page, in the order of audit_vm(); *ret_page: its number there. */
size_t audit_vm_of(const struct audit *a, uint32_t page, uint64_t *ret_page);
const struct audit_counts *audit_counts(const struct audit *a);
/* In the order in which they came. Guests run while they are looked at: a frame may have gone from one to the other in
 * between, so each is to be looked at again before it is believed. */
const struct audit_finding *audit_findings(const struct audit *a, size_t *ret_count);
size_t audit_bytes(const struct audit *a); /* of memory */
const char *audit_why_text(enum audit_why why);

#endif
