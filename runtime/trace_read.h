/* Routing traces in memory: read, checked, and cut into the groups a run would make of them.
 *
 * Reads the form that trace.h writes, plain or zstd-compressed (told by its first bytes). Files are
 * untrusted: lines, rows, ids and the decompression window are bounded, and a malformed row is
 * refused with its line number. Zero experts (ids >= n_experts) move no bytes: they are left out.
 *
 * A group is what a run asks of the cache at once: the choices of a chunk's rows in one MoE layer.
 * Chunks: a header without "chunk" means one token at a time. With it, rows that come layer by
 * layer show the chunks by their order. Rows that come token by token are decode; in phases P and
 * T they are joined to chunks of that size, unless the header says "order": "plan" (as ours do):
 * then they were run like that.
 * Immutable after reading: any number of threads may read it. */
#ifndef CF_RUNTIME_TRACE_READ_H
#define CF_RUNTIME_TRACE_READ_H

#include "runtime/trace.h"

enum { CF_TRACE_MAX_ROWS = 1 << 26, CF_TRACE_MAX_K = 64, CF_TRACE_MAX_EXPERTS = 32768 };

typedef struct cf_trace_header {
    char model[128], policy[64]; /* policy: empty when not given */
    uint32_t n_layers;           /* 0 when not given */
    uint32_t n_experts, zero_experts;
    uint32_t top_k;        /* zero experts included; the most of any row when not given */
    uint32_t chunk;        /* 0: not given */
    uint32_t slots, slabs; /* 0 when not given */
    uint32_t guess_slots;  /* places for guesses beside the slots; 0: none were made */
    bool warm;             /* the policy began with a history */
    bool plan_order;
} cf_trace_header;

/* One (token, MoE layer). */
typedef struct cf_routed {
    uint64_t first; /* of its choices in ids and weights */
    uint32_t session, token;
    uint16_t moe, row; /* row: of its chunk */
    uint8_t phase, k;  /* k: without zero experts */
    uint8_t zero;      /* zero experts left out */
} cf_routed;

typedef struct cf_routing_group {
    uint64_t first_row;
    uint64_t first_union; /* in ids: the distinct experts, ascending */
    uint32_t n_rows, n_union, moe;
} cf_routing_group;

typedef struct cf_routing_chunk {
    uint64_t first_group;
    uint32_t n_groups, n_rows; /* n_rows: tokens */
    uint8_t phase;
} cf_routing_chunk;

typedef struct cf_routing {
    cf_trace_header header;
    uint32_t n_moe, *layers; /* [n_moe] the model's own indices, ascending */
    uint64_t n_rows, n_ids, n_groups, n_chunks;
    uint64_t tokens[3]; /* by phase */
    cf_routed *rows;    /* in the order of the plan */
    uint32_t *ids;      /* ascending within a row */
    float *weights;     /* beside ids; NULL when the trace has none */
    cf_routing_group *groups;
    cf_routing_chunk *chunks;
} cf_routing;

int cf_trace_read(cf_routing **out, const char *path, cf_err *err);
/* The same from memory; `name` is for messages. */
int cf_trace_parse(cf_routing **out, const char *name, const void *data, size_t bytes, cf_err *err);
void cf_routing_free(cf_routing **routing); /* accepts NULL; leaves NULL */

#endif
