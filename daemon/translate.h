/* daemon/translate.h - addresses that are asked for: one guest address on its way to the host's frame, or a frame on its way
 * back to the VMs that have it mapped. QMP is asked on the loop; memory is looked at on a thread per request. */
#ifndef DAEMON_TRANSLATE_H
#define DAEMON_TRANSLATE_H

#include <jansson.h>
#include <stdint.h>

#include "ept/search.h"
#include "ept/translate.h"

struct control_client;
struct daemon;
struct translations;
struct vm;

int translations_new(struct daemon *d, struct translations **ret_translations); /* 0 or -ENOMEM */
struct translations *translations_free(struct translations *t); /* waits for threads; NULL ok; gives NULL */

/* Answer the client, now or later. arguments are the request's: one of gva, gpa, hva, and for gva cpu and cr3; or hpa.
 * Numbers are text, decimal or hexadecimal with 0x. */
void translate_request(struct daemon *d, struct control_client *client, const struct vm *vm, const json_t *arguments);
void translate_search_request(struct daemon *d, struct control_client *client, const json_t *arguments);
/* client is going away. */
void translate_abandon(struct daemon *d, struct control_client *client);
/* The VM's QMP connection is gone: what was asked of it will not be answered. */
void translate_vm_lost(struct daemon *d, const struct vm *vm);

/* What a request came to. */
struct translate_answer {
	const struct ept_target *target;
	const struct translation *translation;
	const struct walk_regs *regs; /* if the translation began with a GVA */
	unsigned cpu;
	bool fault; /* it ends before the frame: why */
	const char *why;
};

struct translate_found {
	const struct search *search;
	const struct frame *frame; /* as the first VM has it; NULL: nobody has */
	const char *const *unknown; /* names of VMs of which no memory is known */
	size_t unknown_count;
};

/* NULL when out of memory. */
json_t *render_translation(const struct translate_answer *answer);
json_t *render_found(const struct translate_found *found);

#endif
