/* Routing that depends on the other rows of a batch: on the host, over what the device chose.
 *
 * A choice is [rows, k] ids and weights of each row, ids ascending; `none` stands for no choice,
 * with weight 0, behind those that are. Pure functions. */
#ifndef CF_RUNTIME_ROUTER_H
#define CF_RUNTIME_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct cf_choice {
    uint32_t *ids;
    float *weights;
    uint32_t rows, k, experts, none;
} cf_choice;

/* Each expert serves its first `capacity` rows, in order; later ones lose it. counts: [experts]
 * scratch. Rows are those of one session and call: capacity does not count further back. */
void cf_router_capacity(const cf_choice *c, uint32_t capacity, uint32_t *counts);

#endif
