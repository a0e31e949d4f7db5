/* daemon/control.h - the control socket: one JSON object per line in each direction.
 *
 * Request: {"command": NAME, "arguments": {...}}. Answer: any number of {"progress": {"done": N, "total": N}},
 * then {"result": ...} or {"error": TEXT}. Requests of one client are answered one after the other.
 * Lines are bounded (CONTROL_LINE_MAX_BYTES), clients and their unread answers too. */
#ifndef DAEMON_CONTROL_H
#define DAEMON_CONTROL_H

#include <jansson.h>
#include <stdint.h>

#define CONTROL_LINE_MAX_BYTES 65536

struct control;
struct control_client;
struct daemon;

/* Listens on the configured socket; a stale one is replaced, one that answers is -EADDRINUSE. */
int control_listen(struct daemon *d, struct control **ret_control);
/* Serves one connection, which is taken; the loop ends with it. */
int control_serve_one(struct daemon *d, int fd, struct control **ret_control);
struct control *control_free(struct control *c); /* NULL ok; gives NULL */

/* Ends the request that client waits for. value is taken; NULL counts as out of memory. */
void control_reply(struct control_client *client, json_t *value);
void control_fail(struct control_client *client, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void control_progress(struct control_client *client, uint64_t done, uint64_t total);

/* Called by control.c: answers now, or later with the functions above. daemon/commands.c */
void command_run(struct daemon *d, struct control_client *client, const char *name, const json_t *arguments);
/* client is going away; nothing may answer it any more. */
void command_abandon(struct daemon *d, struct control_client *client);

#endif
