/* daemon/audit.h - "audit": whether any VM maps a frame that it must not. */
#ifndef DAEMON_AUDIT_H
#define DAEMON_AUDIT_H

#include <jansson.h>
#include <stdint.h>

#include "ept/audit_host.h"

struct control_client;
struct daemon;

struct audit_answer {
	const struct audit_host *host;
	const char *const *unknown; /* names of VMs that were not looked at */
	size_t unknown_count;
	uint64_t took_ns;
};

/* Answers client. */
void audit_request(struct daemon *d, struct control_client *client);

json_t *render_audit(const struct audit_answer *answer); /* NULL: out of memory */

#endif
