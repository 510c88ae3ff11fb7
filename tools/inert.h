/* Flags that were given and change nothing in this run: one line each on stderr (not with -q).
 *
 * A flag that is accepted and silently ignored makes a user believe in a setting. What is always
 * without meaning is a usage error; what is so only for this model, device or budget is said here,
 * once the engine is open and knows. Defaults are never commented on. */
#ifndef CF_TOOLS_INERT_H
#define CF_TOOLS_INERT_H

#include "tools/options.h"

/* Of the common flags; and that nothing is streamed, where every expert has a slot. */
void cf_inert_say(const cf_common *common, const cf_engine *engine);
/* Of the sampling flags, for a vocabulary of so many. */
void cf_inert_sampling_say(const cf_common *common, const cf_sampler_params *sampling,
                           uint32_t vocab);
/* Of a command that opens no engine and reads only the flags in `used` (options; ends in 0). */
void cf_inert_others_say(const cf_common *common, const char *command, const int *used);

#endif
