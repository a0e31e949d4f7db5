/* cli/connection.h - a connection to the daemon's control socket, or to a daemon of our own. */
#ifndef CLI_CONNECTION_H
#define CLI_CONNECTION_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct connection;

struct connection_options {
	const char *socket;	 /* NULL: the standard one */
	const char *config_file; /* for a daemon of our own; NULL: the standard one */
	bool private_daemon;	 /* when none is running, start one that only looks and ends with us */
};

/* Called now and then while a request is at work. */
typedef void (*progress_fn)(uint64_t done, uint64_t total);

/* 0 or -errno, after saying why on standard error. */
int connection_open(const struct connection_options *options, struct connection **ret_connection);
struct connection *connection_close(struct connection *c); /* NULL ok; gives NULL */

/* Sends a command and waits for its answer, which the caller decrefs. arguments is taken and may be NULL.
 * 0; -EREMOTEIO when the daemon answered with an error; -errno. Errors were said on standard error. */
int connection_request(struct connection *c, const char *command, json_t *arguments, progress_fn progress,
		       json_t **ret_result);

#endif
