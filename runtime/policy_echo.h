/* echo: how likely the next token is to use each expert, voted by the past.
 *
 * The routing of past tokens that resembled this one votes for what they used next; fast and slow
 * frequencies, and how long ago and how strongly an expert was used, have their say beside it.
 * Nothing is trained; the constants are fixed and the optimum is flat in each of them.
 *
 * Prefill. The rows of a chunk come layer by layer. What concerns one layer alone is learned row
 * by row, at once; of a chunk longer than CF_ECHO_HISTORY its last rows. Similarity runs over the
 * layers of one token and on to the next: it starts anew with the chunk's last row, and when the
 * next chunk begins, all layers being known, it is counted again over the last tokens in their
 * order, together with the values.
 *
 * Deterministic: float additions in a fixed order and polynomials of our own, no libm.
 * Thread-safety: one thread. */
#ifndef CF_RUNTIME_POLICY_ECHO_H
#define CF_RUNTIME_POLICY_ECHO_H

#include <stdint.h>

#include "runtime/base/err.h"

enum { CF_ECHO_HISTORY = 512 };

typedef struct cf_echo cf_echo;

/* value: [layers, experts], borrowed; kept up to date with the chances, 0 .. 1. */
int cf_echo_create(cf_echo **out, uint32_t layers, uint32_t experts, uint32_t top_k, double *value,
                   cf_err *err);
void cf_echo_destroy(cf_echo **echo); /* accepts NULL; leaves NULL */
uint64_t cf_echo_memory(uint32_t layers, uint32_t experts, uint32_t top_k);

/* As in policy.h. chunk: true when values changed. */
bool cf_echo_chunk(cf_echo *echo, uint32_t n_rows);
void cf_echo_choice(cf_echo *echo, uint32_t layer, uint32_t row, const uint32_t *experts,
                    uint32_t k, const float *weights);

/* As cf_policy_history: slow, the recency table and the ring; the rest begins anew from them. */
struct cf_history;
bool cf_echo_history(cf_echo *echo, struct cf_history *h);

#endif
