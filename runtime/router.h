/* Routing that depends on more than a row's own scores: on the host, where whole batches are seen.
 *
 * A choice is [rows, k] ids and weights of each row, ids ascending; `none` stands for no choice,
 * with weight 0, behind those that are. Rows are those of one session and call, in order: nothing
 * counts further back. Pure functions; `scratch` has cf_router_scratch bytes. */
#ifndef CF_RUNTIME_ROUTER_H
#define CF_RUNTIME_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct cf_choice {
    uint32_t *ids;
    float *weights;
    uint32_t rows, k, experts, none;
} cf_choice;

enum {
    CF_ROUTER_BALANCED_ROWS = 4096, /* at most, of one call */
    CF_ROUTER_BALANCED_EXPERTS = 256
};

/* Enough for every function below; balanced: for that one, too. */
uint64_t cf_router_scratch(uint32_t rows, uint32_t experts, bool balanced);

/* Each expert serves its first `capacity` rows, in order; later ones lose it. */
void cf_router_capacity(const cf_choice *c, uint32_t capacity, void *scratch);

/* k distinct experts by a hash of the row's token, each with weight scale / k (arXiv 2106.04426):
 * those of the first k different values of cf_rng_below(experts), seeded with seed + token. */
void cf_router_hash(const cf_choice *c, const int32_t *tokens, uint64_t seed, float scale);

/* Each expert chooses the min(capacity, rows) rows with the largest softmax over experts, ties to
 * the lower row; weight: that share * scale (arXiv 2202.09368). k = experts: a row has from none to
 * all. logits: [rows, experts]; a NaN counts as -infinity. */
void cf_router_experts_choose(const cf_choice *c, const float *logits, uint32_t capacity,
                              float scale, void *scratch);

/* One expert for each row, none for more than ceil(rows / experts) rows, such that the sum of the
 * chosen logits is largest; weight: sigmoid of the logit * scale (arXiv 2103.16716). k = 1. A NaN
 * or infinite logit counts as +-1e30. */
void cf_router_balanced(const cf_choice *c, const float *logits, float scale, void *scratch);

#endif
