/* balloon/libvirt_figures.h - a domain's figures as libvirt gives them. Pure. */
#ifndef BALLOON_LIBVIRT_FIGURES_H
#define BALLOON_LIBVIRT_FIGURES_H

#include <libvirt/libvirt.h>
#include <stdbool.h>
#include <stdint.h>

#include "balloon/port.h"

enum libvirt_answer {
	LIBVIRT_ANSWER_NONE, /* libvirt has no figures of a balloon */
	LIBVIRT_ANSWER_BUSY, /* libvirt's own only: another call has the domain's monitor */
	LIBVIRT_ANSWER_VMM,  /* the VMM's */
};

/* Takes in what VIR_DOMAIN_STATS_BALLOON gave at now_ns. Fields that were not told keep what they are, but for the guest's
 * when its VMM answered. */
enum libvirt_answer libvirt_figures_take(const virTypedParameter *params, int count, uint64_t now_ns,
					 struct balloon_told *told);

#endif
