/* daemon/census.h - "ept": what a VM's second-stage table is like, built when it is asked for. */
#ifndef DAEMON_CENSUS_H
#define DAEMON_CENSUS_H

#include <jansson.h>
#include <stdint.h>

#include "ept/build.h"

struct control_client;
struct daemon;
struct vm;

struct census_answer {
	const struct ept_target *target;
	const struct ept_build *build;
	uint64_t build_ns;
	uint64_t moved_pages; /* entries that a second look found to be others */
};

/* Answers client. */
void census_request(struct daemon *d, struct control_client *client, const struct vm *vm);

json_t *render_census(const struct census_answer *answer); /* NULL: out of memory */

#endif
