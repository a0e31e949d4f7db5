/* ksmd/ksmd_internal.h - the module's state, shared by ksmd.c, sense.c and apply.c. */
#ifndef KSMD_KSMD_INTERNAL_H
#define KSMD_KSMD_INTERNAL_H

#include <sys/types.h>

#include "core/clock.h"
#include "ksmd/agents.h"
#include "ksmd/debt.h"
#include "ksmd/demote.h"
#include "ksmd/ksm_kernel.h"
#include "ksmd/ksmd.h"
#include "ksmd/marking.h"
#include "ksmd/round.h"
#include "ksmd/unmerge.h"

/* Between the moment when frames may have become free, or the sweep before, and the next sweep: a look at the mappings of
 * all processes costs some milliseconds for each VM that was merged. */
#define SWEEP_REST_NS (5 * NSEC_PER_SEC)

/* Between two looks at what merged VMs map, which is where breaks show: often enough for the debt's horizon of a minute.
 * Longer where a look takes its time: it may use a thousandth of a core. */
#define LOOK_NS (15 * NSEC_PER_SEC)
#define LOOK_REST 1000

/* Why a VM gets its own memory back, in the order in which they go before each other. */
enum unmerge_reason { UNMERGE_OPERATOR, UNMERGE_DOMAIN, UNMERGE_MIGRATION, UNMERGE_WORN };

/* The VMs that may share memory, and what they do share. */
struct domain {
	char *name;
	uint64_t seed;	     /* secret, of its hashes */
	struct remap *remap; /* NULL: nothing was ever merged by agents */
	bool passed;	     /* there may be more to merge than the last round found: a pass, a VM that may be merged now */
	uint64_t rest_until_ns; /* no round before: the last one found too little for what planning cost */
	uint64_t residual_pages, residual_ns; /* what the last round could not get, and when that was */
	uint64_t sweep_ns;   /* when frames are to be looked after; 0: not */
	uint64_t look_ns;    /* when its VMs are to be looked at; 0: not */
};

/* What the module remembers of one VM from tick to tick. */
struct tracked_vm {
	pid_t pid;
	uint64_t start_ticks;
	bool seen; /* in this tick's snapshot */
	struct domain *domain;	  /* NULL: never passed over */
	struct page_table *table; /* the same */
	uint64_t passed_ns;	  /* when its last scan began; 0: never */
	uint64_t rest_until_ns;	  /* not scanned again before, for what that costs */
	bool due;		  /* to be scanned by the pass that is planned */
	bool early;		  /* for the first time, and the kernel may merge it */

	/* Sensed: */
	bool has_agent;
	char agent_why[AGENT_WHY_BYTES], slot_why[AGENT_WHY_BYTES]; /* empty: see struct engine_facts */
	const char *hazards[HAZARDS_MAX];
	size_t hazard_count;
	uint64_t hazards_ns; /* when they were looked for */
	uint64_t ksm_ns; /* when the next two were read; 0: never */
	uint64_t ksm_merging_pages;
	bool ksm_mergeable;

	char unmerge_why[AGENT_WHY_BYTES]; /* why its agent cannot give memory back; empty: it can */

	bool apart; /* un-merged by an operator: not merged until told so */
	enum { UNMERGE_NONE, UNMERGE_WANTED, UNMERGE_WORKING, UNMERGE_ENDED } unmerge_state;
	enum unmerge_reason unmerge_reason;
	struct unmerge_result unmerged;	     /* of the last time */
	const struct domain *left;	     /* un-merged from it as far as possible, to be in another */
	uint64_t migrating_ns;		     /* since when it migrates; 0: not; UINT64_MAX: seen to */
	uint64_t worn_next_ns, worn_pages;   /* when worn memory may be looked for; how many pages had been copied before */

	/* Decided, in this tick: */
	enum merge_engine engine;   /* that merges it; OFF: none */
	enum merge_engine possible; /* that could, whatever was configured and whatever else is on the host */

	uint64_t rss_then_pages;  /* resident when the last pass was taken in */
	uint64_t zero_pages;	  /* found by the last pass */
	uint64_t dropped_pages;	  /* zero pages that its agent left absent, less what came back */
	uint64_t rss_low_pages;	  /* resident when they were last counted */
	uint64_t saved_pages;	  /* saved now */

	/* Looked at now and then: */
	struct frame_user_figures figures; /* no looks: nothing was ever merged by its agent */
	struct break_rate rate;
	struct demotion demotion;
};

struct ksmd {
	const struct fsio *fs;
	const struct config *config;
	struct ksm_kernel *kernel; /* NULL: this kernel has no KSM */
	struct ksm_policy policy;
	struct ksm_plan plan;
	bool left_running; /* by an earlier daemon that was killed, or because stopping it failed */
	struct stable_index *index;

	struct tracked_vm *vms;
	size_t vm_count;
	struct domain **domains;
	size_t domain_count;
	struct agents *agents; /* NULL: nobody listens */
	uint64_t agents_called_ns; /* by then every agent has called, if it lives */

	struct pass *pass; /* in the background; NULL: none */
	struct pass *last; /* the last one that ended well, for its result */
	bool pass_planned;
	struct round *round; /* in the background; NULL: none */
	struct domain *round_domain;   /* the domain that it is about */
	struct domain *round_planned;  /* NULL: none */
	bool round_wanted;	       /* it is to merge, and not only to free frames */
	bool look_planned;	       /* it is to be only a look */
	uint64_t rounds;
	struct remap_result last_round;
	struct marking *marking; /* in the background; NULL: none */
	bool marking_planned;
	bool unmarked;		    /* a pass has ended since memory was marked */
	struct hints_totals hinted; /* of the last marking */
	struct unmerge *unmerge; /* in the background; NULL: none */
	pid_t unmerge_planned;	 /* 0: none */
	struct zero_split *split; /* at work while the scanner is; NULL: none */
	bool split_done;	  /* in this run of the scanner */
	struct ksm_snapshot seen; /* the kernel's settings in this tick, for the log */
	uint64_t passes;
	uint64_t pass_ended_ns;
	double cpu_seconds;

	/* The estimate that merging goes by: */
	uint64_t expected_pages, mergeable_pages;
	uint64_t saved_pages; /* by the kernel's scanner */
	struct debt debt;
	struct break_rate kernel_rate; /* of what its scanner has merged */
	uint64_t merged_pages;	       /* that the debt is about, and how many of them break */
	double breaks_per_s;
	bool pass_taken; /* since saved_pages was last counted */

	char logged_why[160]; /* the last refusal that was logged */
};

struct tracked_vm *ksmd_track(struct ksmd *k, const struct vm_snapshot *vm); /* NULL: unknown */
int ksmd_sense(void *m, struct host_snapshot *s);
int ksmd_apply(void *m, bool dry_run);
/* The domain of this name, made at its first use. 0 or -errno. */
int ksmd_domain(struct ksmd *k, const char *name, struct domain **ret_domain);

/* engines.c: which engine merges each VM in this tick. ksm_why: as ksmd_host_refusal() says. */
void ksmd_engines_decide(struct ksmd *k, const struct host_snapshot *s, const char *ksm_why);

/* Those that a pass was given. */
void ksmd_peers_return(struct ksmd *k, const struct pass_input *inputs, size_t count);

/* rounds.c: takes a round in that has ended; plans one; starts what was planned. */
void ksmd_round_take(struct ksmd *k, const struct host_snapshot *s);
void ksmd_round_plan(struct ksmd *k, const struct host_snapshot *s);
void ksmd_round_begin(struct ksmd *k, bool dry_run);
/* A round is at work that merges. */
bool ksmd_round_merges(const struct ksmd *k);
/* Pages of a VM that merging by its agent saves now, its share of the frames not taken off. */
uint64_t ksmd_round_vm_saved(const struct ksmd *k, struct tracked_vm *t, const struct vm_snapshot *vm);

/* debts.c: takes in what a round, sweep or look has seen of a domain's VMs; plans its next look. */
void ksmd_looks_take(struct ksmd *k, struct domain *d, const struct host_snapshot *s, const struct round_result *res);
/* Whether more may be merged; stops a round that merges if not. */
void ksmd_debt_update(struct ksmd *k, const struct host_snapshot *s);

/* hinted.c: the same for marking memory for the kernel's scanner. */
void ksmd_marking_take(struct ksmd *k);
void ksmd_marking_plan(struct ksmd *k);
void ksmd_marking_begin(struct ksmd *k, bool dry_run);

/* unmerged.c: the same for giving memory back. _first: the VM is another domain's now; true: wait with that, its memory
 * is being given back. */
void ksmd_unmerge_take(struct ksmd *k, const struct host_snapshot *s);
void ksmd_unmerge_plan(struct ksmd *k, const struct host_snapshot *s);
void ksmd_unmerge_begin(struct ksmd *k, bool dry_run);
bool ksmd_unmerge_first(struct ksmd *k, struct tracked_vm *t);

#endif
