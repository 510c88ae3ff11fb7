/* Routing that depends on the other rows of a batch: see router.h. */
#include "runtime/router.h"

#include <string.h>

void cf_router_capacity(const cf_choice *c, uint32_t capacity, uint32_t *counts)
{
    memset(counts, 0, c->experts * sizeof *counts);
    for (uint64_t r = 0; r < c->rows; r++) {
        uint32_t *ids = c->ids + r * c->k, kept = 0;
        float *weights = c->weights + r * c->k;
        for (uint32_t i = 0; i < c->k; i++) {
            bool full = ids[i] == c->none || (ids[i] < c->experts && counts[ids[i]]++ >= capacity);
            if (full)
                continue;
            ids[kept] = ids[i];
            weights[kept++] = weights[i];
        }
        for (; kept < c->k; kept++) {
            ids[kept] = c->none;
            weights[kept] = 0;
        }
    }
}
