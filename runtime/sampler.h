/* Sampler: one token id from a row of logits.
 *
 * temperature 0 is greedy (largest logit, ties to the lower id). Otherwise, in this order: logits
 * / temperature, top-k (k largest, 0 = all), softmax, min-p (drop p < min_p * largest p), top-p (the
 * smallest set of the most probable whose sum reaches p), one draw. All in float64 over a
 * sorted candidate list, ties by lower id, so that a seed repeats on every machine.
 * No allocation after create. Thread-safety: one thread per sampler. */
#ifndef CF_RUNTIME_SAMPLER_H
#define CF_RUNTIME_SAMPLER_H

#include <stdint.h>

#include "runtime/base/err.h"

typedef struct cf_sampler cf_sampler;

typedef struct cf_sampler_params {
    float temperature; /* >= 0 */
    int32_t top_k;     /* 0 = off */
    float top_p;       /* (0, 1]; 1 = off */
    float min_p;       /* [0, 1); 0 = off */
    uint64_t seed;
} cf_sampler_params;

/* Refuses parameters out of range with a sentence. */
int cf_sampler_create(cf_sampler **out, const cf_sampler_params *params, uint32_t vocab,
                      cf_err *err);
void cf_sampler_destroy(cf_sampler **sampler);
/* logits: float32 [vocab]; a NaN counts as -infinity. Returns an id in [0, vocab). */
int32_t cf_sampler_pick(cf_sampler *sampler, const float *logits);

#endif
