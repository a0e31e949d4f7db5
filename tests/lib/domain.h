/* tests/lib/domain.h - the daemon's side of merging, played by a test: VMs of one domain attach, rounds merge them.
 *
 * The one place in tests/ that knows ksmd/remap.h and ksmd/agent_peer.h for VMs that are processes of their own.
 * Functions return 0 or -errno. One thread. */
#ifndef TESTS_LIB_DOMAIN_H
#define TESTS_LIB_DOMAIN_H

#include <sys/types.h>

#include "ksmd/pass.h"
#include "ksmd/remap.h"

#define DOMAIN_VMS_MAX 128u

struct domain_vm {
	struct agent_peer *peer; /* NULL: free */
	struct page_table *table;
	pid_t pid;
};

struct domain {
	struct fsio fs;
	int listen_fd;
	char path[108]; /* of the socket */
	struct remap *remap;
	struct remap_limits limits; /* of rounds; none at first */
	struct domain_vm vms[DOMAIN_VMS_MAX];
};

/* dir: where the socket is made; frames: room of the store. */
int domain_open(struct domain *d, const char *dir, uint32_t frames);
void domain_close(struct domain *d);

/* Waits for an agent, its HELLO and its first slot. *ret_pid: whose it is. */
int domain_accept(struct domain *d, int timeout_ms, pid_t *ret_pid);
void domain_drop(struct domain *d, pid_t pid);
unsigned domain_count(const struct domain *d);

/* Looks at all memory of all VMs; one round of merging by what was seen; both. VMs that have ended cost only their
 * own part. */
int domain_scan(struct domain *d);
int domain_merge(struct domain *d, struct remap_result *ret_result);
int domain_round(struct domain *d, struct remap_result *ret_result);

/* Frees the frames that no process maps any more, and says how many pages the store takes then. */
int domain_sweep(struct domain *d, uint64_t *ret_pages);

#endif
