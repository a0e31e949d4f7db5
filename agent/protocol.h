/* agent/protocol.h - what agents and the daemon say to each other: the only header that both sides include.
 *
 * A SOCK_SEQPACKET Unix socket, so a message is one packet: never partial, never two. All integers little-endian
 * (only x86-64 is built). Both sides treat the other as hostile: a packet whose length does not fit its type, an
 * unknown type, a value out of bounds or a descriptor that was not announced ends the connection, and nothing else.
 *
 * The agent connects and says HELLO, with its userfaultfd and its journal (a memfd of one page that holds struct
 * exchange_journal) as descriptors: with these the daemon can finish an exchange whose executor died (SAFETY.md, R5).
 * Then SLOT for each range of guest RAM. The daemon sends STORE once, with the store's read-only descriptor, then
 * MERGE for windows; each is answered by exactly one MERGED, in order. RELEASED comes unasked when merged pages
 * became anonymous again (balloon, free page reporting, unmap). */
#ifndef AGENT_PROTOCOL_H
#define AGENT_PROTOCOL_H

#include <stdint.h>

#define AGENT_PROTOCOL_VERSION 1u
#define AGENT_PACKET_MAX 16384u /* a full MERGE is 4,120 bytes */
#define AGENT_RUNS_MAX 512u
#define AGENT_SLOTS_MAX 64u
#define AGENT_WINDOW_PAGES 512u
#define AGENT_ZERO UINT32_MAX /* in place of a frame: the pages are all zero, leave them absent */

enum agent_message {
	AGENT_HELLO = 1, /* agent -> daemon, 2 descriptors: userfaultfd, journal */
	AGENT_SLOT,	 /* agent -> daemon */
	AGENT_UNSLOT,	 /* agent -> daemon */
	AGENT_STORE,	 /* daemon -> agent, 1 descriptor */
	AGENT_MERGE,	 /* daemon -> agent */
	AGENT_MERGED,	 /* agent -> daemon */
	AGENT_RELEASED,	 /* agent -> daemon */
};

struct agent_header {
	uint16_t type; /* enum agent_message */
	uint16_t count; /* of what follows the fixed part: runs or results; else 0 */
	uint32_t sequence; /* of MERGE, repeated in its MERGED; else 0 */
};

struct agent_hello {
	struct agent_header header;
	uint32_t version; /* AGENT_PROTOCOL_VERSION of the sender */
	uint32_t reserved;
};

struct agent_slot { /* also AGENT_UNSLOT */
	struct agent_header header;
	uint64_t hva, bytes; /* page-aligned; slots do not overlap */
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
	struct agent_result results[];
};

struct agent_released {
	struct agent_header header;
	uint64_t hva, bytes;
};

#endif
