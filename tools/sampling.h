/* The flags of every command that samples: --temp, --top-k, --top-p, --min-p, --seed. */
#ifndef CF_TOOLS_SAMPLING_H
#define CF_TOOLS_SAMPLING_H

#include "tools/options.h"

enum {
    CF_OPT_TEMP = CF_OPT_COMMAND,
    CF_OPT_TOP_K,
    CF_OPT_TOP_P,
    CF_OPT_MIN_P,
    CF_OPT_SEED,
    CF_OPT_AFTER_SAMPLING /* a command's own options from here on */
};

/* clang-format off */
#define CF_SAMPLING_OPTIONS                                                                        \
    {"temp", required_argument, NULL, CF_OPT_TEMP},                                                \
    {"top-k", required_argument, NULL, CF_OPT_TOP_K},                                              \
    {"top-p", required_argument, NULL, CF_OPT_TOP_P},                                              \
    {"min-p", required_argument, NULL, CF_OPT_MIN_P},                                              \
    {"seed", required_argument, NULL, CF_OPT_SEED}
/* clang-format on */

/* Takes one of these; 0, or CF_ARGS_STOP after reporting. */
int cf_sampling_option(cf_sampler_params *sampling, cf_args *args, int opt);

#endif
