/* Pieces that op cases are built of; for the op_cases*.c files only. */
#ifndef CF_TESTS_OP_BUILD_H
#define CF_TESTS_OP_BUILD_H

#include "tests/support/op_cases.h"

/* Row counts that every op is tried with. */
enum { OP_ROW_COUNTS = 4 };
extern const uint32_t op_row_counts[OP_ROW_COUNTS];

/* How a weight lies in its array; what it does not address there stays NaN. */
typedef enum {
    OP_LAY_PLAIN,
    OP_LAY_EVEN, /* rows 0, 2, .. of an interleaved pair; of vectors: elements 0, 2, .. */
    OP_LAY_ODD,
    OP_LAY_LATER, /* from the fourth stored row on */
    OP_LAY_TRANSPOSED,
    OP_LAY_TRANSPOSED_PART, /* of a wider one, not at its beginning */
    OP_LAY_TRANSPOSED_EVEN, /* outputs 0, 2, .. of an interleaved pair */
    OP_LAY_TRANSPOSED_ODD,
    OP_LAY_NONE
} op_layout;

extern const char *const op_layout_names[OP_LAY_NONE + 1]; /* for case names: with a space before */

enum { OP_ACTS = 4 };
extern const char *const op_act_names[OP_ACTS];

float op_rng_value(cf_rng *r); /* in -1 .. 1 */

/* An array of `bytes` NaN bytes for one span field. Leads differ, so that offsets do. */
uint8_t *op_array_add(op_case *c, cf_span *field, uint64_t bytes, uint64_t lead, op_role role);
/* The same array for a second field: in place. */
void op_array_share(op_case *c, const cf_span *of, cf_span *field);
/* Activations: rows of `width` values, `stride` apart, starting at an odd multiple of 4. */
float *op_rows_add(op_case *c, cf_span *field, uint32_t n_rows, uint64_t width, uint64_t stride);
/* An output that nothing is known of before the op. */
void op_out_add(op_case *c, cf_span *field, uint64_t n, op_element element, op_role role);
void op_weight_add(op_case *c, cf_weight *w, cf_format t, uint32_t rows, uint32_t cols);
void op_weight_add_as(op_case *c, cf_weight *w, cf_format t, uint32_t rows, uint32_t cols,
                      op_layout lay);
/* A matrix of outer scales for a plain weight: one per `rows` x `cols`. */
void op_scales_add(op_case *c, cf_weight *w, cf_format t, uint32_t rows, uint32_t cols);
/* A vector, unless there is none. */
void op_vector_add(op_case *c, cf_weight *w, cf_format t, uint32_t n, op_layout lay);
/* n values of a cache of keys and values: F32, F16, or as op_blocks_fill. Behind them `spare` that
 * were never written. */
void op_cache_add(op_case *c, cf_span *field, cf_format t, uint64_t n, uint64_t spare,
                  uint64_t lead);
/* n values of any computable format: finite, of about the size of 1, odd codes included. */
void op_blocks_fill(cf_rng *rng, cf_format t, uint8_t *out, uint64_t n);

/* Cases of the routed experts (op_cases_moe.c), and how many there are. */
void op_build_route(op_case *c, int i);
void op_build_expert_glu(op_case *c, int i);
void op_build_expert_down(op_case *c, int i);
void op_build_combine(op_case *c, int i);
/* Deals the (row, rank) pairs to n + 1 experts, the last of which is not of this op (its pairs
 * come first), and writes them grouped. Returns how many experts of the op got any. */
uint32_t op_pairs_deal(op_case *c, uint32_t n_pairs, uint32_t n, uint32_t *pairs);
extern const int op_route_count, op_expert_count, op_combine_count;

/* Cases of attention with a state (op_cases_state.c), and over chosen cells (op_cases_index.c). */
void op_build_conv(op_case *c, int i);
void op_build_state_gates(op_case *c, int i);
void op_build_attn_state(op_case *c, int i);
void op_build_gate(op_case *c, int i);
void op_build_index_score(op_case *c, int i);
void op_build_index_select(op_case *c, int i);
void op_build_attn_bias(op_case *c, int i);
extern const int op_index_score_count, op_index_select_count, op_attn_bias_count;
extern const int op_conv_count, op_state_gates_count, op_attn_state_count, op_gate_count;

/* Cases of the storage formats beyond F32, F16 and BF16, of outer scales and of activations in 8
 * bits (op_cases_formats.c), and how many there are. */
void op_build_format_linear(op_case *c, int i);
void op_build_format_head_linear(op_case *c, int i);
void op_build_format_norm(op_case *c, int i);
void op_build_format_attn(op_case *c, int i);
void op_build_format_expert_glu(op_case *c, int i);
void op_build_format_expert_down(op_case *c, int i);
void op_build_format_get_rows(op_case *c, int i);
extern const int op_format_linear_count, op_format_head_count, op_format_norm_count,
    op_format_attn_count, op_format_expert_count, op_format_get_rows_count;

#endif
