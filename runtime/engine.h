/* The engine from inside: what an opened model consists of. For runtime/ files only (and
 * models/open.c, which hands a model over). */
#ifndef CF_RUNTIME_ENGINE_H
#define CF_RUNTIME_ENGINE_H

#include <stdatomic.h>

#include "runtime/budget.h"
#include "runtime/catflap.h"
#include "runtime/dense.h"
#include "runtime/exec.h"
#include "runtime/expert_cache.h"
#include "runtime/rows.h"
#include "runtime/trace.h"
#include "runtime/weights.h"

/* Everything a run counts, beyond what fetch, cache and rows count themselves. */
typedef struct cf_counters {
    cf_expert_counts prefill, decode;
    cf_expert_counts *layers; /* [n_moe] */
    uint64_t prompt_tokens, generated_tokens;
    uint64_t open_ns, prefill_ns, decode_ns, opened_at_ns;
    uint64_t device_stall_ns, rows_stall_ns;
} cf_counters;

struct cf_engine {
    /* Settings as resolved. */
    char policy_name[64];
    bool prefetch, direct_asked;
    bool activations_q8; /* asked for, and the plan has matrices for it; may change between batches */
    char *history; /* path, or NULL */
    uint64_t history_identity;
    bool warm; /* the policy began with it */
    int threads; /* that the device computes with; 0: it has its own */
    void (*on_experts_wait)(void *user);
    void *on_experts_wait_user;

    cf_model *model;
    cf_tokenizer *tokenizer; /* may be NULL */
    uint32_t n_eos;
    int32_t eos[CF_MAX_EOS + 1];
    cf_memory_plan plan;
    cf_ledger *ledger;
    cf_gpu *gpu;
    cf_files files;
    cf_slots slots;
    cf_rows *rows; /* NULL when the model has no tables */
    cf_fetch *fetch;
    uint32_t n_regions; /* of the fetcher */
    cf_weights weights;
    uint8_t *streamed; /* [n_weights] 1: not resident */
    cf_dense *dense;   /* NULL when all weights are resident */
    cf_policy *policy;
    cf_cache *cache;
    cf_exec *exec;
    cf_trace *trace; /* may be NULL */
    cf_timeline *timeline;
    cf_counters counters;
    uint64_t host_charged; /* heap tables, by estimate */
    uint8_t *session_used; /* [plan.sessions] */
    cf_row *batch_rows;    /* [plan.chunk] */
    uint32_t n_sessions_made;
    atomic_int cancelled;
};

struct cf_session {
    cf_engine *engine;
    uint32_t index;  /* of its cells in the KV cache */
    uint32_t number; /* in traces: counted from 0 */
    uint32_t length;
    uint32_t encoded; /* positions of the encoder's input; 0: none yet */
    uint32_t turn; /* which of its two slots of every state holds it: 0 or 1 */
    int32_t *ids; /* [ctx] the tokens so far */
    const float *logits;
};

/* Opens an engine over a model. On success the model belongs to the engine; on failure it stays
 * the caller's. */
int cf_engine_create(cf_engine **out, cf_model *model, const cf_options *options, cf_err *err);

#endif
