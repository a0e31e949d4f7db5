/* cli/progress.h - a line on the terminal while a request is at work. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdint.h>

/* Shown only where somebody watches, and only once it takes a while. A progress_fn. */
void progress_show(uint64_t done, uint64_t total);
void progress_end(void);

#endif
