/* balloon/libvirt_domains.h - what is known of libvirt's domains: a table by uuid. Plain data, no I/O; whoever uses it holds
 * the lock that guards it (balloon/libvirt_link.h). */
#ifndef BALLOON_LIBVIRT_DOMAINS_H
#define BALLOON_LIBVIRT_DOMAINS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "balloon/port.h"
#include "core/text.h"

#define LIBVIRT_NAME_MAX 252 /* with its NUL: NAME.pid is the name of a file */

enum libvirt_set { LIBVIRT_SET_NONE, LIBVIRT_SET_WAITS, LIBVIRT_SET_OUT };

struct libvirt_domain {
	char uuid[TEXT_UUID_MAX];
	char name[LIBVIRT_NAME_MAX];
	int id;		 /* libvirt's, of this run of the domain */
	const char *how; /* it was found; static string */
	bool missing;	 /* was not seen since domains_mark() */
	pid_t pid;	 /* 0: unknown; only the loop reads libvirt's pid file */
	struct balloon_told told;

	bool described;	     /* its XML was read */
	uint64_t describe_ns; /* not before this */
	bool period_tried;   /* to have its guest asked, once */
	bool period_ours;    /* ... which must be put back */
	uint64_t busy_ns;    /* since when libvirt gets no answer from its VMM; 0: it does */

	enum libvirt_set set;
	uint64_t set_bytes;
	char set_error[120]; /* of the last; empty: it worked */
	uint64_t set_failed_ns;
};

struct libvirt_domains {
	struct libvirt_domain **sorted; /* by uuid */
	size_t count;
};

/* What a guest did not tell is BALLOON_UNTOLD, the rest 0. */
void libvirt_told_clear(struct balloon_told *told);

struct libvirt_domain *libvirt_domains_find(const struct libvirt_domains *t, const char *uuid); /* or NULL */
/* The domain is there. A known one of another id has been started anew: all that was known is forgotten. NULL when uuid or
 * name are none, there are too many, or no memory is left. */
struct libvirt_domain *libvirt_domains_see(struct libvirt_domains *t, const char *uuid, const char *name, int id,
					   const char *how);
/* All that was known of the domain is of an earlier run of it. */
void libvirt_domain_forget(struct libvirt_domain *d);
void libvirt_domains_remove(struct libvirt_domains *t, const char *uuid);
/* Between these two all domains that are there were seen: the others go. */
void libvirt_domains_mark(struct libvirt_domains *t);
void libvirt_domains_sweep(struct libvirt_domains *t);
void libvirt_domains_clear(struct libvirt_domains *t);

#endif
