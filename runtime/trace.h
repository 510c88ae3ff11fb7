/* Routing traces: one CSV row per (token, MoE layer), zstd-compressed when the path ends in .zst.
 *
 * Line 1: '#' and a JSON object; line 2: the column names; then
 *     session,token,phase,layer,experts,weights
 * experts separated by spaces in descending weight, weights likewise (nine digits: read back, they
 * are the same floats); zero experts have ids from n_experts on; a row that no expert serves has
 * none, and tells of its token all the same. Rows come in the order of the plan: layer by layer of a chunk, row by row of a layer. Threads: the engine thread. */
#ifndef CF_RUNTIME_TRACE_H
#define CF_RUNTIME_TRACE_H

#include "runtime/catflap.h"

/* Writer and reader (trace_read.h) alike. */
#define CF_TRACE_COLUMNS "session,token,phase,layer,experts,weights"
#define CF_TRACE_PHASES  "PDT" /* by cf_phase */

typedef struct cf_trace cf_trace;

/* header: the JSON object's text. */
int cf_trace_open(cf_trace **out, const char *path, const char *header, cf_err *err);
/* k ids (0: no expert serves the row) with their weights, any order. */
int cf_trace_row(cf_trace *trace, uint32_t session, uint32_t token, cf_phase phase, uint32_t layer,
                 const uint32_t *ids, const float *weights, uint32_t k, cf_err *err);
/* Flushes; reports a failed write. The trace is gone in every case. Accepts NULL. */
int cf_trace_close(cf_trace **trace, cf_err *err);

#endif
