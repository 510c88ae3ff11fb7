/* Which resident expert is worth least: pure functions over the history of choices.
 *
 * A policy sees every choice the router makes, in plan order, and ranks residents. It knows no
 * slot, no file and no clock, so that a replay of the same choices ranks the same way.
 *   lru       least recently chosen
 *   lfu[:D]   least often chosen, counts decayed by D per token (default 0.98; 1 = all-time); ties
 *             to the least recently chosen
 *   phase[:D] lfu's counts (default 0.9) divided by the number of MoE layers until the record's
 *             layer is visited again: layers come round in turn, and one just passed comes last
 *   echo      the chance that the next token uses the record, voted by what followed past tokens
 *             that were routed like this one (policy_echo.h), divided like phase
 * Within one layer the order of worth is the same wherever the load is: value(layer, expert) by
 * distance(now, layer). So a layer's least worthy resident stays so until its version changes.
 * Thread-safety: one thread. */
#ifndef CF_RUNTIME_POLICY_H
#define CF_RUNTIME_POLICY_H

#include <stdint.h>

#include "runtime/base/err.h"

typedef struct cf_policy cf_policy;

/* Worth of a resident: the smaller is the better victim; `last` decides ties. */
typedef struct cf_worth {
    double score;
    uint64_t last;
} cf_worth;

extern const char cf_policy_default[];

/* top_k: experts chosen per token and layer, at most. Unknown names are refused with the list of
 * known ones. */
int cf_policy_create(cf_policy **out, const char *name, uint32_t layers, uint32_t experts,
                     uint32_t top_k, cf_err *err);
void cf_policy_destroy(cf_policy **policy);
/* Bytes of the policy that needs most. */
uint64_t cf_policy_memory(uint32_t layers, uint32_t experts, uint32_t top_k);

/* A chunk of n rows (decode: 1) begins; its rows' choices follow, layer by layer, row by row. */
void cf_policy_chunk(cf_policy *p, uint32_t n_rows);
/* Row `row` of the chunk chose these k experts (ascending, at most top_k) in MoE layer `layer`,
 * with these combine weights (NULL: not known). */
void cf_policy_choice(cf_policy *p, uint32_t layer, uint32_t row, const uint32_t *experts,
                      uint32_t k, const float *weights);
/* Of a resident of MoE layer `layer`, for a load at MoE layer `now`. */
cf_worth cf_policy_worth(const cf_policy *p, uint32_t now, uint32_t layer, uint32_t expert);

static inline bool cf_worth_less(cf_worth a, cf_worth b)
{
    return a.score != b.score ? a.score < b.score : a.last < b.last;
}

/* All that is kept from run to run, to a file or from it (history.h); the counts' last choices, and
 * of echo the slow frequencies, the recency table and the last tokens' choices. False: what was read
 * cannot be (the policy is then unfit for use). Between chunks. */
struct cf_history;
bool cf_policy_history(cf_policy *p, struct cf_history *h);

/* ---- the same by its parts, for searches over many residents ---- */

typedef struct cf_policy_view {
    uint32_t layers, experts;
    bool cyclic;             /* worth is value / distance; else value */
    const double *value;     /* [layers, experts] */
    const uint64_t *last;    /* [layers, experts]; 0 = never chosen */
    const uint64_t *version; /* [layers]; changes whenever the layer's order may have */
} cf_policy_view;

/* Valid as long as the policy; what the pointers show is always current. */
const cf_policy_view *cf_policy_get_view(const cf_policy *p);

/* MoE layers until `layer` is visited next, seen from `now`: 1 .. layers. */
static inline uint32_t cf_policy_distance(uint32_t layers, uint32_t now, uint32_t layer)
{
    return layer > now ? layer - now : layer + layers - now;
}

#endif
