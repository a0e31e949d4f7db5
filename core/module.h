/* core/module.h - what each policy module (ksmd, balloon, hugepage, numa) gives the daemon.
 *
 * One const instance per folder, listed by hand in daemon/modules.c. A tick is: sense all, decide all, apply
 * each. All calls on the loop thread; none may block. */
#ifndef CORE_MODULE_H
#define CORE_MODULE_H

#include <stdbool.h>

struct host_snapshot;

struct module_ops {
	const char *name;
	/* Fills this module's part of the snapshot; it is borrowed for the call. 0 or -errno. */
	int (*sense)(void *m, struct host_snapshot *s);
	/* No I/O; the plan is kept in m. 0 or -errno. */
	int (*decide)(void *m, const struct host_snapshot *s);
	/* Does what decide() planned; with dry_run only logs it. 0 or -errno. */
	int (*apply)(void *m, bool dry_run);
};

#endif
