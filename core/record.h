/* core/record.h - what was seen and decided in each tick, as lines of JSON: written by memvirtd --record, read by
 * replay-policy. Pure: no I/O, clock or globals.
 *
 * A header line ({"memvirt_record": 1, "version": ..., "settings": ...}) comes first, and again whenever the daemon starts;
 * {"settings": ...} when they change; then one line for each tick. Settings are text as memvirt.conf has it. Numbers
 * are 64 bits as two's complement, so that BALLOON_UNTOLD is -1. What is zero, false or empty is left out. */
#ifndef CORE_RECORD_H
#define CORE_RECORD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/snapshot.h"

#define RECORD_VERSION 1
#define RECORD_LINE_MAX_BYTES (8u << 20) /* 1024 VMs, the most there are, make 1 MiB */
#define RECORD_BEGIN "{\"memvirt_record\":" /* every record begins so */

/* What was decided for one VM of the snapshot, in its order. */
struct record_vm {
	uint64_t target_bytes; /* 0: none */
	bool not_done;	       /* the target was not carried out: dry run, or the VMM was not reached */
	const char *block, *veto, *why; /* names; empty: none */
};

struct record_decided {
	const char *state;
	const struct record_vm *vms;
	size_t vm_count;
};

enum record_kind { RECORD_HEADER, RECORD_SETTINGS, RECORD_TICK };

/* One line that was read; everything in it belongs to it. */
struct record_line {
	enum record_kind kind;
	const char *version, *settings; /* of a header; settings alone of RECORD_SETTINGS */
	struct host_snapshot snapshot;	/* of a tick; without regions and pidfds */
	bool has_decided;		/* else nobody decided in that tick */
	struct record_decided decided;
	json_t *root; /* owns the texts */
};

/* The caller dumps and frees these; NULL when there is no memory. decided may be NULL. */
json_t *record_header_json(const char *version, const char *settings);
json_t *record_settings_json(const char *settings);
json_t *record_tick_json(const struct host_snapshot *s, const struct record_decided *decided);

/* Reads one line of len bytes (without its newline). 0 and a line to be freed with record_line_free(); -EBADMSG with the
 * reason in ret_why, or -ENOMEM. *ret_line is written only on 0. */
int record_line_parse(const char *text, size_t len, struct record_line *ret_line, char *ret_why, size_t cap);
void record_line_free(struct record_line *line);

#endif
