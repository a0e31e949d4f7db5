/* daemon/recorder.h - writes what was seen and decided in each tick to a file: memvirtd --record. */
#ifndef DAEMON_RECORDER_H
#define DAEMON_RECORDER_H

#include <stdint.h>

#include "balloon/policy.h"
#include "core/config.h"
#include "core/snapshot.h"

#define RECORD_FILE_MAX_BYTES (UINT64_C(1) << 30) /* it ends there: a forgotten record is not to fill a disk */

struct recorder;

/* Opens the record at path (made with mode 0600, or gone on with) and writes a header. Stops at max_bytes. 0 or -errno,
 * after logging what was wrong; -EINVAL: the file is something else. */
int recorder_new(const char *path, uint64_t max_bytes, const struct config *c, struct recorder **ret_recorder);
struct recorder *recorder_free(struct recorder *r); /* NULL ok; gives NULL */

/* Both do nothing once the record has ended: at its limit or by an error, which is said once. */
void recorder_settings(struct recorder *r, const struct config *c);
/* plan NULL: nothing was decided. */
void recorder_tick(struct recorder *r, const struct host_snapshot *s, const struct balloon_plan *plan);

#endif
