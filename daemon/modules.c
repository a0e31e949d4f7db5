#include "daemon/modules.h"

#include <stddef.h>
#include <string.h>

#include "core/cleanup.h"
#include "core/log.h"
#include "core/module.h"
#include "daemon/daemon.h"

struct module {
	const struct module_ops *ops;
	void *state;
};

/* The list, in order of the tick. */
static size_t modules_list(struct daemon *d, struct module *out)
{
	const struct module all[] = {
		{ &ksmd_ops, d->ksmd },
		{ &balloon_ops, d->balloon }, /* after ksmd: it counts resident memory and debt */
	};

	memcpy(out, all, sizeof(all));
	return ARRAY_SIZE(all);
}

#define MODULES_MAX 4

static void report(const struct module *m, const char *step, int r)
{
	if (r < 0)
		log_warning("%s: %s failed, ignoring: %s", m->ops->name, step, strerror(-r));
}

void modules_sense(struct daemon *d)
{
	struct module modules[MODULES_MAX];
	size_t count = modules_list(d, modules);

	for (size_t i = 0; i < count; i++)
		report(&modules[i], "sense", modules[i].ops->sense(modules[i].state, &d->snapshot));
}

void modules_tick(struct daemon *d)
{
	struct module modules[MODULES_MAX];
	size_t count = modules_list(d, modules);
	int sensed[MODULES_MAX];

	/* A module whose look failed neither decides nor acts in this tick; the others do. */
	for (size_t i = 0; i < count; i++) {
		sensed[i] = modules[i].ops->sense(modules[i].state, &d->snapshot);
		report(&modules[i], "sense", sensed[i]);
	}
	for (size_t i = 0; i < count; i++)
		if (sensed[i] == 0)
			report(&modules[i], "decide", modules[i].ops->decide(modules[i].state, &d->snapshot));
	for (size_t i = 0; i < count; i++)
		if (sensed[i] == 0)
			report(&modules[i], "apply", modules[i].ops->apply(modules[i].state, d->options.dry_run));
}
