/* daemon/modules.h - the policy modules, and the tick: sense all, decide all, apply each. */
#ifndef DAEMON_MODULES_H
#define DAEMON_MODULES_H

#include <stdbool.h>

struct daemon;

void modules_tick(struct daemon *d);
/* Only the first third: for looking without acting. */
void modules_sense(struct daemon *d);

#endif
