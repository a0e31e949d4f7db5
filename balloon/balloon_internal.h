/* balloon/balloon_internal.h - what balloon.c, sense.c and apply.c share. Private to them. */
#ifndef BALLOON_BALLOON_INTERNAL_H
#define BALLOON_BALLOON_INTERNAL_H

#include "balloon/balloon.h"
#include "balloon/port_libvirt.h"
#include "balloon/port_qmp.h"
#include "balloon/stats.h"

/* What hangs on vm->balloon. */
struct balloon_vm {
	struct port_qmp *qmp;
	struct balloon_told libvirt; /* by libvirt, of a VM whose monitor is its; as of the last look */
	bool libvirt_known;
	struct stats_age age;
	uint64_t resident_bytes, resident_ns; /* ns 0: never counted */
	struct balloon_vm_plan plan;	      /* the last; a copy */
	bool planned;
	uint64_t asked_ns;   /* statistics */
	uint64_t logged_ns;  /* last line about a target, and whether it grew */
	bool logged_grow;
	uint64_t resets; /* of the guest, when it was last given all of its memory after one */
};

struct balloon {
	const struct fsio *fs;
	const struct config *config;
	struct vmm_registry *registry;
	sd_event *loop;
	struct port_libvirt *libvirt; /* NULL: off, or built without */
	uint64_t started_ns;
	sd_event_source *ask_timer;
	bool refreshed; /* the guests were asked, the VMMs not yet */
	bool guarding;	/* ... and only those that a balloon has taken from */
	uint64_t next_ns; /* when the next tick is due */
	void (*urgent_fn)(void *userdata);
	void *urgent_userdata;
	bool urgent, was_urgent; /* the next decision, the last one: came early, for a guest's sake */
	struct balloon_policy *policy;
	struct balloon_plan plan; /* of decided_ns */
	bool plan_is_new;
	uint64_t decided_ns; /* 0: never */
	struct admit admit;
	uint64_t promised_bytes, missing_bytes; /* as said last */
	uint64_t taken_bytes, given_bytes, vetoes;
	size_t resident_next; /* VM to be counted next */
};

/* The module's part of a VM; NULL when out of memory. */
struct balloon_vm *balloon_vm_of(struct balloon *b, struct vm *vm);

/* Reached through libvirt: the monitor is its, and the operator has not named another. */
bool balloon_by_libvirt(const struct vm *vm);
/* What is known of the VM's balloon now. v->libvirt is brought up to date. */
const struct balloon_told *balloon_told_now(struct balloon *b, const struct vm *vm, struct balloon_vm *v);

int balloon_sense(void *m, struct host_snapshot *s);
/* Has the VMs asked in time for the next tick. ask.c */
void balloon_ask_later(struct balloon *b);
/* vm has told how it is doing; userdata is the struct balloon. */
void balloon_told(struct vm *vm, void *userdata);
int balloon_apply(void *m, bool dry_run);

#endif
