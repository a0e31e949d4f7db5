/* daemon/estimate.h - estimates that were asked for: a pass over all VMs, compared across domains.
 *
 * One runs at a time. A request that comes while one runs waits for the next, so its answer is never older
 * than the question; requests that wait together share one pass. */
#ifndef DAEMON_ESTIMATE_H
#define DAEMON_ESTIMATE_H

#include <jansson.h>

struct control_client;
struct daemon;
struct estimates;

/* Makes the answer out of a finished pass; gives NULL when out of memory. */
struct pass_result;
typedef json_t *(*estimate_render_fn)(const struct pass_result *result);

int estimates_new(struct daemon *d, struct estimates **ret_estimates); /* 0 or -errno */
struct estimates *estimates_free(struct estimates *e);		       /* cancels; NULL ok; gives NULL */

/* Answers client when done, with progress before. 0 or -errno (then the caller answers). */
int estimate_request(struct daemon *d, struct control_client *client, estimate_render_fn render);
/* client is going away. */
void estimate_abandon(struct daemon *d, struct control_client *client);

#endif
