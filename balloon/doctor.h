/* balloon/doctor.h - what a VM lacks for its balloon to be driven well, and what to write where to have it. Pure: no I/O,
 * clock or globals. */
#ifndef BALLOON_DOCTOR_H
#define BALLOON_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balloon/policy.h"
#include "balloon/port.h"
#include "core/snapshot.h"

#define DOCTOR_FINDINGS_MAX 16

struct doctor_facts {
	const struct vm_snapshot *vm; /* with the balloon's part */
	const struct balloon_told *told; /* NULL: nothing was */
	enum balloon_block block;	 /* as decided last; BLOCK_NONE if nothing was */
	bool libvirt;			 /* VM of libvirt */
	bool has_monitor;		 /* a QMP socket is known */
	bool asks;			 /* a daemon runs, and asks guests for statistics */
	uint64_t taken_ns;		 /* of the snapshot */
	uint64_t host_bytes;
};

struct doctor_finding {
	enum doctor_severity {
		DOCTOR_NOTE,	/* as it was configured, or not known yet: nothing is missing */
		DOCTOR_WARNING, /* works, but not as well as it could */
		DOCTOR_ERROR,	/* the balloon cannot be driven, or is of no use */
	} severity;
	char what[192];
	const char *why; /* it matters; static string */
	const char *fix; /* static string; empty: there is none to be written */
};

/* Returns how many there are, those that matter most first. */
size_t balloon_doctor(const struct doctor_facts *f, struct doctor_finding ret_findings[DOCTOR_FINDINGS_MAX]);

const char *doctor_severity_name(enum doctor_severity severity);

#endif
