/* daemon/commands.h - the answers of the control socket as JSON. Pure: from plain data to a value. */
#ifndef DAEMON_COMMANDS_H
#define DAEMON_COMMANDS_H

#include <jansson.h>

struct admit_answer;
struct daemon;
struct pass_result;
struct vm;
struct vm_snapshot;

/* NULL when out of memory. */
json_t *render_estimate(const struct pass_result *result);
json_t *render_sharing(const struct pass_result *result);
json_t *render_vms(struct daemon *d);
json_t *render_status(struct daemon *d);
json_t *render_merge_status(struct daemon *d);
json_t *render_explain(struct daemon *d, const struct vm *vm);
json_t *render_unmerge(struct daemon *d, const struct vm_snapshot *vm);
json_t *render_balloon_status(struct daemon *d);
json_t *render_doctor(struct daemon *d);
json_t *render_admit(const struct admit_answer *answer);
/* Of the last tick; NULL: the VM was not known then. */
const struct vm_snapshot *render_snapshot_of(const struct daemon *d, const struct vm *vm);

#endif
