/* cli/translate.h - memvirtctl translate: one guest address on its way to the host's frame, or a frame on its way back. */
#ifndef CLI_TRANSLATE_H
#define CLI_TRANSLATE_H

#include <stdbool.h>

#include "cli/connection.h"

/* Words of the command line, as typed; NULL: not given. */
struct translate_words {
	const char *gva, *gpa, *hva, *hpa, *cpu, *cr3;
};

bool translate_words_any(const struct translate_words *words);
/* vm NULL: none was named. Returns the exit status: 0, or 1 also when the address leads nowhere. */
int translate_command(const struct connection_options *options, const char *vm, const struct translate_words *words,
		      progress_fn progress, bool as_json);

#endif
