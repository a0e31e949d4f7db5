/* cli/show.h - the daemon's answers as text for people. Missing or odd members show as empty or 0. */
#ifndef CLI_SHOW_H
#define CLI_SHOW_H

#include <jansson.h>

void show_vms(const json_t *answer);
void show_estimate(const json_t *answer);
void show_sharing(const json_t *answer);
void show_status(const json_t *answer);
void show_merge_status(const json_t *answer);
void show_balloon_status(const json_t *answer);
void show_ept(const json_t *answer);
void show_explain(const json_t *answer);
void show_reload(const json_t *answer);

#endif
