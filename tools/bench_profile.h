/* Where the time of a decode step goes: each step of the plan by itself, beside the token as it
 * runs undisturbed. Threads: one. */
#ifndef CF_TOOLS_BENCH_PROFILE_H
#define CF_TOOLS_BENCH_PROFILE_H

#include "runtime/base/rng.h"
#include "tools/bench.h"
#include "tools/bench_io.h"

typedef struct cf_bench_profile {
    /* Set by the caller; borrowed. */
    cf_engine *engine;
    cf_session *session;
    const char *model, *family;
    uint32_t vocab, n_decode, n_samples, n_contexts;
    const uint64_t *contexts;
    cf_rng *rng;
    int32_t *ids;      /* room for the largest context and twice n_decode */
    uint64_t *decoded; /* counted on */
    bool quiet;
    cf_bench_form form;
} cf_bench_profile;

/* Measures and prints to stdout. 0, or negative with a sentence. */
int cf_bench_profile_run(const cf_bench_profile *p, cf_err *err);

#endif
