/* tests/world/account.h - where every frame and every mapping is, by the kernel's word. */
#ifndef TESTS_WORLD_ACCOUNT_H
#define TESTS_WORLD_ACCOUNT_H

#include "tests/world/world.h"

#define ACCOUNT_STORES_MAX 256u

struct account_store {
	uint64_t inode;
	char name[128];
	int fd;
	bool held;	   /* by the daemon */
	uint64_t pages;	   /* memory of the file */
	uint64_t mapped;   /* frames that lie in a mapping of some VM .. */
	uint64_t seen;	   /* .. and file pages that VMs see there, by pagemap */
	uint64_t leaked;   /* frames with memory that no VM maps */
	uint64_t absent;   /* pages that a VM sees and the file does not have */
	uint64_t vm_domains; /* bit 0: VMs named chaos-a-* map it; bit 1: chaos-b-* */
	uint64_t *used;	   /* bits */
	uint64_t frames;
};

struct account {
	struct account_store stores[ACCOUNT_STORES_MAX];
	unsigned count;
	uint64_t pages, leaked, absent; /* of all */
};

/* While nothing changes. */
void account_take(struct world *w, struct account *ret_account);
void account_print(const struct account *a);
void account_free(struct account *a);

/* The whole reckoning of a world at its end: every byte, frame, mapping, descriptor and process. isolated: no VM was ever
 * moved to another domain. Ends VMs and daemon. */
void account_close(struct world *w, bool isolated);

#endif
