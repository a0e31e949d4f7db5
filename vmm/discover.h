/* vmm/discover.h - finds QEMU processes in /proc. Private to vmm/. */
#ifndef VMM_DISCOVER_H
#define VMM_DISCOVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/fsio.h"
#include "vmm/cmdline.h"

/* Arguments behind these bytes are not seen. Room for a thousand devices of 250 bytes each. */
#define VMM_CMDLINE_MAX_BYTES 262144

struct vmm_found {
	pid_t pid;
	int pidfd; /* the taker's to close */
	uint64_t start_ticks;
	uid_t uid; /* (uid_t)-1 when unknown */
	struct vmm_cmdline cmdline;
};

struct vmm_sweep_ops {
	/* True for a process that is in the list already. */
	bool (*known)(pid_t pid, void *userdata);
	/* Takes found->pidfd, on failure too. 0, or -ENOMEM to end the sweep. */
	int (*found)(const struct vmm_found *found, void *userdata);
};

struct vmm_sweep;

/* fs and ops are borrowed and must outlive the sweep. 0 or -ENOMEM. */
int vmm_sweep_new(const struct fsio *fs, const struct vmm_sweep_ops *ops, void *userdata,
		  struct vmm_sweep **ret_sweep);
struct vmm_sweep *vmm_sweep_free(struct vmm_sweep *s); /* NULL ok; gives NULL */

/* One look at every process. 0, or -errno when /proc cannot be read, descriptors or memory ran out, or what
 * found() gave. Processes that end meanwhile or may not be looked at are passed over. */
int vmm_sweep_run(struct vmm_sweep *s);

struct vmm_stat {
	char state; /* 'Z' and 'X': dead */
	pid_t ppid;
	uint64_t start_ticks;
};

/* text is /proc/PID/stat. The process chooses the name in its second field, brackets, blanks and newlines
 * included. 0 or -EBADMSG. */
int vmm_stat_parse(const char *text, struct vmm_stat *ret_stat);

#endif
