/* agent/protocol.h - what agents and the daemon say to each other: the only header that both sides include.
 *
 * A SOCK_SEQPACKET Unix socket, so a message is one packet: never partial, never two. All integers little-endian
 * (only x86-64 is built). Both sides treat the other as hostile: a packet whose length does not fit its type, an
 * unknown type, a value out of bounds or a descriptor that was not announced ends the connection, and nothing else.
 *
 * The agent connects. If it may not make a userfaultfd by itself it asks with UFFD_ASK for the descriptor of
 * /dev/userfaultfd, with which an unprivileged process may, for its own memory; the daemon answers with UFFD. Then it
 * says HELLO, with its userfaultfd and its journal (a memfd of one page that holds struct exchange_journal) as
 * descriptors: with these the daemon can finish an exchange whose executor died (SAFETY.md, R5). Without them, when
 * its kernel or its VMM rules the exchange out, it can still mark memory for the kernel's scanner, and says why.
 * An agent that can give a VM its own memory back (un-merge) sends the userfaultfd that it does this with as a third
 * descriptor, for the same reason.
 *
 * HELLO says which version the agent speaks, and the daemon keeps to it: version 3 is version 2 with un-merging. A
 * daemon knows the versions from AGENT_PROTOCOL_OLDEST on and turns away others, who try again later: VMs outlive a
 * daemon, and an agent lives as long as its VM.
 *
 * SLOT names each range of guest RAM, in the same way: fit for the exchange, or only for marking and why. The daemon
 * sends STORE once, with the store's read-only descriptor, then MERGE for windows; each is answered by exactly one
 * MERGED, in order. HINT marks ranges for the kernel's scanner and is answered by HINTED, in the same order.
 * HASH asks what the pages of a range hold, and is answered by HASHED: the agent reads them where they are, which costs
 * half of reading them from outside. Hashes are hints: nothing but time depends on their being true.
 * UNMERGE gives the merged pages of a window their own memory back, and is answered by UNMERGED.
 * RELEASED comes unasked when merged pages became anonymous again (balloon, free page reporting, unmap). */
#ifndef AGENT_PROTOCOL_H
#define AGENT_PROTOCOL_H

#include <stdint.h>

#define AGENT_PROTOCOL_VERSION 3u
#define AGENT_PROTOCOL_OLDEST 2u /* that a daemon still serves */
#define AGENT_PACKET_MAX 16384u /* a full MERGE is 4,120 bytes */
#define AGENT_RUNS_MAX 512u
#define AGENT_SLOTS_MAX 64u
#define AGENT_WINDOW_PAGES 512u
#define AGENT_HINTS_MAX 512u
#define AGENT_HASH_PAGES_MAX 1024u /* 4 MiB: about half a millisecond of an agent's work */
#define AGENT_WHY_BYTES 96u /* printable ASCII, the rest NUL */
#define AGENT_ZERO UINT32_MAX /* in place of a frame: the pages are all zero, leave them absent */

enum agent_message {
	AGENT_HELLO = 1, /* agent -> daemon, 2 descriptors: userfaultfd, journal; or 3: see AGENT_CAN_UNMERGE */
	AGENT_SLOT,	 /* agent -> daemon */
	AGENT_UNSLOT,	 /* agent -> daemon */
	AGENT_STORE,	 /* daemon -> agent, 1 descriptor */
	AGENT_MERGE,	 /* daemon -> agent */
	AGENT_MERGED,	 /* agent -> daemon */
	AGENT_RELEASED,	 /* agent -> daemon */
	AGENT_UFFD_ASK,	 /* agent -> daemon, only before HELLO */
	AGENT_UFFD,	 /* daemon -> agent, 1 descriptor if granted: /dev/userfaultfd */
	AGENT_HINT,	 /* daemon -> agent */
	AGENT_HINTED,	 /* agent -> daemon */
	AGENT_HASH,	 /* daemon -> agent */
	AGENT_HASHED,	 /* agent -> daemon */
	AGENT_UNMERGE,	 /* daemon -> agent, only if it said AGENT_CAN_UNMERGE */
	AGENT_UNMERGED,	 /* agent -> daemon */
};

#define AGENT_CAN_REMAP 1u /* else only HINT */
#define AGENT_CAN_UNMERGE 2u /* of HELLO, since version 3; only with AGENT_CAN_REMAP: the third descriptor is there */
#define AGENT_TRACKED 4u   /* of a slot that can be remapped: PAGEMAP_SCAN tells what was written to it (WP_ASYNC) */

struct agent_header {
	uint16_t type; /* enum agent_message */
	uint16_t count; /* of what follows the fixed part: runs, results, hints or hashes; else 0 */
	uint32_t sequence; /* of MERGE, HINT, HASH and UNMERGE, repeated in the answer; else 0 */
};

struct agent_hello {
	struct agent_header header;
	uint32_t version; /* AGENT_PROTOCOL_VERSION of the sender */
	uint32_t flags;	  /* AGENT_CAN_REMAP: two descriptors come with it; AGENT_CAN_UNMERGE: three */
	char why[AGENT_WHY_BYTES]; /* why not, or why it cannot un-merge; empty if it can do all */
};

struct agent_uffd {
	struct agent_header header;
	uint32_t granted; /* 0 or 1 */
	uint32_t reserved;
};

struct agent_slot {
	struct agent_header header;
	uint64_t hva, bytes; /* page-aligned; slots do not overlap */
	uint32_t flags;	     /* AGENT_CAN_REMAP, AGENT_TRACKED */
	uint32_t reserved;
	char why[AGENT_WHY_BYTES]; /* why not; empty if it can */
};

struct agent_range { /* AGENT_UNSLOT: as the slot was named; AGENT_RELEASED */
	struct agent_header header;
	uint64_t hva, bytes; /* page-aligned */
};

struct agent_store {
	struct agent_header header;
	uint32_t frames; /* of the store; the file is at least so large */
	uint32_t reserved;
};

struct agent_run {
	uint16_t first, pages; /* within the window; ascending, no overlap */
	uint32_t frame;	       /* the first of as many frames, or AGENT_ZERO */
};

struct agent_merge {
	struct agent_header header; /* count: runs */
	uint64_t window;	    /* HVA, 2 MiB aligned; all runs within one slot */
	uint16_t min_pages_huge, min_pages; /* see struct exchange_options */
	uint32_t min_piece;
	struct agent_run runs[]; /* at most AGENT_RUNS_MAX */
};

/* What became of a run; the gravest of its pages. */
enum agent_outcome {
	AGENT_RUN_MERGED,  /* all of it */
	AGENT_RUN_UNEQUAL, /* pages differ from their frames */
	AGENT_RUN_BUSY,	   /* pages are pinned for I/O or shared by a fork */
	AGENT_RUN_ABSENT,  /* pages are not present, or merged already */
	AGENT_RUN_SKIPPED, /* too little to gain in its window */
	AGENT_RUN_FAILED,  /* see error */
};

struct agent_result {
	uint16_t merged; /* pages */
	uint8_t outcome; /* enum agent_outcome */
	uint8_t reserved;
	int32_t error;	 /* 0 or -errno */
};

struct agent_merged {
	struct agent_header header; /* count: results, one for each run of the MERGE */
	int32_t error;		    /* 0, or -errno: of the whole window, results may be empty then */
	uint32_t stall_us;	    /* how long guest threads could have been held up */
	uint64_t window;
	uint32_t cpu_us; /* that the agent's thread used for it */
	uint32_t reserved;
	struct agent_result results[];
};

struct agent_hint { /* a stretch to mark with MADV_MERGEABLE */
	uint64_t hva;
	uint32_t pages;
	uint32_t reserved;
};

struct agent_hints {
	struct agent_header header; /* count: hints, at most AGENT_HINTS_MAX */
	struct agent_hint hints[];
};

struct agent_hinted {
	struct agent_header header;
	int32_t error; /* 0, or -errno of the first hint that could not be marked; the others are */
	uint32_t pages; /* that were marked */
};

struct agent_hash { /* pages of one slot that can be remapped */
	struct agent_header header;
	uint64_t hva; /* page-aligned */
	uint64_t seed; /* see agent/page_hash.h */
	uint32_t pages; /* at most AGENT_HASH_PAGES_MAX */
	uint32_t reserved;
};

struct agent_hashed {
	struct agent_header header; /* count: as many pages as were asked for, or 0: none of them is there */
	int32_t error;	    /* 0, or -errno: no hashes */
	uint32_t cpu_us;    /* that it took */
	uint32_t zero_mapped, swapped, huge; /* pages; only huge ones have a hash */
	uint32_t reserved;
	uint64_t hashes[]; /* of each page: page_hash(), or PAGE_HASH_NONE */
};

#define AGENT_UNMERGE_SPLIT 1u /* see exchange_fold() */

struct agent_unmerge {
	struct agent_header header;
	uint64_t window; /* HVA, 2 MiB aligned */
	uint32_t flags;	 /* AGENT_UNMERGE_SPLIT */
	uint32_t reserved;
};

struct agent_unmerged {
	struct agent_header header;
	int32_t error;	       /* 0, or -errno: nothing was done */
	int32_t kept_error;    /* why the first page stayed merged; 0: none did */
	uint64_t window;
	uint32_t folded, kept; /* pages that are the guest's own now; that stay merged */
	uint32_t stall_us;     /* the longest that guest threads could have been held up at once */
	uint32_t cpu_us;       /* that the agent's thread used for it */
};

#endif
