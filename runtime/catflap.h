/* catflap: run Mixture-of-Experts models several times larger than the memory of the device.
 *
 * Two types carry everything. A cf_engine is an opened model: its resident weights, its expert
 * cache and its threads, within a memory budget in bytes. A cf_session is one mutable timeline of
 * tokens over it. A caller opens an engine, creates a session, extends it by token ids, and reads
 * logits:
 *
 *     cf_options o;  cf_options_init(&o);  o.vram_bytes = 4ull << 30;
 *     cf_engine *e;  cf_session *s;  cf_err err = {0};
 *     cf_engine_open(&e, "models/demo", &o, &err);
 *     cf_session_create(&s, e, &err);
 *     cf_session_extend(s, ids, n, CF_PHASE_PROMPT, NULL, &err);
 *     const float *logits = cf_session_logits(s);
 *
 * Errors: 0 or a negative code, and one sentence in err->msg (runtime/base/err.h). After a failed
 * extend the session stands where its last whole chunk ended, and the engine stays usable.
 *
 * Output is a function of model, prompt, seed, device and chunk size; never of cache size, policy,
 * prefetch, I/O engine or timing.
 *
 * Threads: one thread at a time per engine and its sessions; cf_engine_cancel from anywhere. */
#ifndef CF_CATFLAP_H
#define CF_CATFLAP_H

#include <stdint.h>

#include "runtime/base/err.h"
#include "runtime/sampler.h"
#include "runtime/tokenizer.h"

#define CF_VERSION "0.1.0"

typedef struct cf_engine cf_engine;
typedef struct cf_session cf_session;

struct cf_io_fault; /* storage/io.h */

typedef struct cf_options {
    const char *device;  /* "auto", "vulkan[:i]", "ref" */
    uint64_t vram_bytes; /* what the device may use; 0 = chosen from the machine */
    uint64_t ram_bytes;  /* what the host may use beside it; 0 = chosen from the machine */
    uint32_t ctx;        /* positions per session; 0 = min(model, 4096) */
    uint32_t chunk;      /* prefill tokens at a time; 0 = min(256, ctx) */
    uint32_t sessions;   /* sessions that may exist at a time; 0 = 1 */
    const char *policy;  /* "lru", "lfu[:D]", "phase[:D]", "echo"; NULL = echo */
    const char *history; /* file of what the policy has learned; NULL: none. See save_history */
    bool prefetch;       /* reads start at ROUTE, and guesses are made; else at EXPERTS */
    const char *io;      /* "auto", "uring", "pread" */
    bool direct;         /* O_DIRECT */
    const char *kv;      /* "auto", "f32", "f16", "q8" */
    const char *activations; /* "f32", "q8": rounded to 8 bits before weights of 8 bits or less */
    int threads;         /* of host computation; 0 = all processors that the process may use */
    const char *memory;  /* "auto"; "discrete": copy into slots even where memory is unified */
    bool check;          /* hazard tracker and validation layer */
    /* Long work at open; may be NULL. */
    void (*progress)(void *user, const char *what, uint64_t done_bytes, uint64_t total_bytes);
    void *progress_user;
    /* For tests. */
    bool no_register; /* do not register slabs with the ring */
    bool no_import;   /* do not import host pages into the device */
    bool no_tier;     /* no RAM tier of experts: what leaves a slot is dropped */
    uint32_t unpack_threads; /* that check, decode and join records; 0 = one a processor */
    const struct cf_io_fault *fault;
    void (*on_experts_wait)(void *user); /* the engine thread is about to wait for a read */
    void *on_experts_wait_user;
} cf_options;

void cf_options_init(cf_options *options);

/* model: a directory with config.json and safetensors, a GGUF file (of a split one the first part),
 * or a directory with one. Implemented in models/, which knows the families. */
int cf_engine_open(cf_engine **out, const char *model, const cf_options *options, cf_err *err);
void cf_engine_close(cf_engine **engine); /* sessions first; accepts NULL; leaves NULL */

typedef struct cf_engine_info {
    const char *name, *family;
    uint32_t layers, moe_layers, experts, zero_experts, top_k;
    uint32_t vocab, hidden, ctx, ctx_max, chunk;
    int32_t bos; /* -1 = none */
    bool encoder; /* sessions read an input first: cf_session_encode */
    int32_t decoder_start; /* what their text begins with */
    uint64_t record_bytes, resident_bytes;
} cf_engine_info;

void cf_engine_get_info(const cf_engine *engine, cf_engine_info *out);
/* NULL when the model has none; one that cannot encode says why (cf_tokenizer_refusal). Owned by the
 * engine. */
const cf_tokenizer *cf_engine_tokenizer(const cf_engine *engine);
/* What was opened (runtime/model.h). */
const struct cf_model *cf_engine_model(const cf_engine *engine);
bool cf_engine_is_eos(const cf_engine *engine, int32_t id);

/* Async-signal-safe: a running extend stops after the current step with -ECANCELED. Stays set
 * until cf_engine_resume. */
void cf_engine_cancel(cf_engine *engine);
void cf_engine_resume(cf_engine *engine);

/* ---- sessions ---- */

typedef enum { CF_PHASE_PROMPT, CF_PHASE_DECODE, CF_PHASE_TEXT } cf_phase; /* trace: P, D, T */

/* What extend hands over on the way; any may be NULL. Pointers are valid during the call only. */
typedef struct cf_outputs {
    /* Every new row in order: its logits [vocab] and the final normed hidden state [hidden]. */
    void (*row)(void *user, uint32_t position, const float *logits, const float *final_hidden);
    /* The residual stream as it leaves each checkpoint layer, n rows [n, hidden] from position. */
    void (*layer)(void *user, uint32_t layer, uint32_t position, uint32_t n, const float *hidden);
    /* Which experts one row chose in one MoE layer (the model's own layer index): ids ascending,
     * ids >= n_experts are zero experts; combine weights likewise. */
    void (*route)(void *user, uint32_t layer, uint32_t position, const uint32_t *ids,
                  const float *weights, uint32_t k);
    /* Which positions one row looks at in one layer that chooses them, ascending. */
    void (*select)(void *user, uint32_t layer, uint32_t position, const uint32_t *positions,
                   uint32_t n);
    void *user;
} cf_outputs;

int cf_session_create(cf_session **out, cf_engine *engine, cf_err *err);
void cf_session_destroy(cf_session **session);
uint32_t cf_session_length(const cf_session *session); /* tokens processed */

/* Of a model with an encoder: reads the whole input, n >= 1 ids, in one call, whose rows see all of it;
 * the session's text begins anew behind it. CF_ELIMIT when a chunk or the context does not hold n. */
int cf_session_encode(cf_session *session, const int32_t *ids, uint32_t n,
                      const cf_outputs *outputs, cf_err *err);

/* Processes n >= 1 more ids, in chunks. CF_ELIMIT when the context would be exceeded (nothing is
 * processed then), -EINVAL for an id out of range. */
int cf_session_extend(cf_session *session, const int32_t *ids, uint32_t n, cf_phase phase,
                      const cf_outputs *outputs, cf_err *err);

/* Logits [vocab] of the last row, until the next call on the engine; NULL at length 0 and after a
 * rewind. */
const float *cf_session_logits(const cf_session *session);

/* Forgets what is beyond `length`; returns the length reached, at most the one asked for: 0 where a
 * model keeps a recurrent state, which has no positions to return to. */
uint32_t cf_session_rewind(cf_session *session, uint32_t length);

/* ---- measuring ---- */

typedef struct cf_expert_counts {
    uint64_t selected, zero, lookups, vram_hits, ram_hits, misses;
    uint64_t evictions; /* from slots, for records of this layer or phase */
} cf_expert_counts;

typedef struct cf_stats {
    uint64_t prompt_tokens, generated_tokens;
    double open_s, prefill_s, decode_s, total_s;
    cf_expert_counts all, prefill, decode;
    /* Guesses only: issued = used + wasted + cancelled; late ones are among the used. */
    uint64_t prefetch_issued, prefetch_used, prefetch_late, prefetch_wasted, prefetch_cancelled;
    uint64_t io_reads, io_bytes;
    double io_busy_s;
    /* Dense weights that are not resident: of the reads above, theirs. */
    uint64_t dense_streamed_bytes; /* that each batch (a token; of a prompt, a chunk) brings again */
    uint64_t dense_held_bytes;     /* of them, in RAM once they have been read */
    uint64_t dense_reads, dense_bytes;
    uint64_t dense_copied_bytes; /* from RAM, in all */
    double dense_stall_s; /* part of stall_io_s */
    uint64_t io_registered_bytes, io_unregistered_reads, row_bytes_asked, row_bytes_used;
    double stall_io_s, stall_copy_s, stall_device_s, stall_host_s;
    uint64_t vram_budget, vram_peak, ram_budget, ram_peak;
    uint64_t kv_bytes, slot_bytes, slots, guess_slots, slabs;
    double slot_waste; /* share of a slot that the mean record leaves unused */
} cf_stats;

void cf_engine_get_stats(const cf_engine *engine, cf_stats *out);

/* All statistics as JSON text, in the form of the command line's --stats. The caller frees it. */
char *cf_engine_stats_json(const cf_engine *engine);

/* Writes what the cache policy has learned to the file that options.history named, for the next run
 * with the same model and policy, which begins with it. Nothing to do when it named none. */
int cf_engine_save_history(cf_engine *engine, cf_err *err);

/* Writes a trace row per (token, MoE layer) from now on; zstd-compressed when the path ends in
 * .zst. NULL path: closes it, and reports a failed write. */
int cf_engine_trace(cf_engine *engine, const char *path, cf_err *err);

/* Records what each thread does from now on, for Perfetto (runtime/timeline.h). NULL path: ends
 * it, writes the file, and reports a failed write; so does closing the engine, without a report.
 * The events, 40 MiB at most, are kept outside the budgets. */
int cf_engine_timeline(cf_engine *engine, const char *path, cf_err *err);

#endif
