/* The parameters of the kernels, one struct each, passed by value: compiled by the host (ocl_ops.c)
 * and by the device, as the first source of every program. Offsets are in bytes from the start of
 * the buffer argument of the same name. 64-bit members come first: no padding on either side. */
#ifndef OCL_PARAMS_H
#define OCL_PARAMS_H
#ifdef __OPENCL_VERSION__
typedef ulong ocl_u64;
typedef uint ocl_u32;
#else
#include <stdint.h>
typedef uint64_t ocl_u64;
typedef uint32_t ocl_u32;
#endif

#define OCL_EXPERTS_PER_LAUNCH 20 /* the tables below stay under the 1,024 bytes of arguments */
#define OCL_TILE_ROWS          4  /* weight rows that a tile of product.cl works on */
#define OCL_PANEL_OUTPUTS      64 /* most of a unit of product.cl with several rows */
#define OCL_INDEX_CELLS        64 /* cells of a unit of index_score */
#define OCL_TILE_HEADS         4  /* heads that share a pass of attention over the cells */
/* By work-group size: elements of a unit of elementwise work; columns of an item of
 * head_linear_t, a multiple of what a format decodes at once. */
#define OCL_CHUNK(group_size)     ((group_size) == 1 ? 1024u : 512u)
#define OCL_T_COLUMNS(group_size) ((group_size) == 1 ? 64u : 32u)

/* Formats of a vector or of outer scales, as cf_format has them, and none. */
#define OCL_F32       0
#define OCL_F16       1
#define OCL_BF16      2
#define OCL_F8_E4M3   26
#define OCL_F8_E8M0   28
#define OCL_NO_VECTOR 0xffffffffu

/* Activations, as cf_act has them. */
#define OCL_ACT_GELU_TANH      1
#define OCL_ACT_RELU           2
#define OCL_ACT_SWIGLU_CLAMPED 3

/* Maps, as cf_map_kind has them. */
#define OCL_MAP_CLAMP       0
#define OCL_MAP_SOFTCAP     1
#define OCL_MAP_MUL_SIGMOID 2

/* What becomes of products. Those of a gate: activated, with those of `up` beside them or alone;
 * kept in h, being up's; activated with those kept in h. */
#define OCL_GLU_BOTH      0
#define OCL_GLU_ALONE     1
#define OCL_GLU_FIRST     2
#define OCL_GLU_SECOND    3
#define OCL_PRODUCT_PLAIN 4
#define OCL_PRODUCT_DOWN  5 /* the weight comes behind the bias */

/* What every kernel has: how many units of work its groups share out (see common.cl). */
typedef struct ocl_params {
    ocl_u64 units;
} ocl_params;

/* A bias, gain or sink: its format is known at run time; neighbours lie `step` elements apart. */
typedef struct ocl_vector {
    ocl_u64 at;
    ocl_u32 format, step;
} ocl_vector;

/* One matrix, or an expert's gate and up, and its rows of activations. Offsets in units of 16 bytes:
 * the table stays small. */
typedef struct ocl_product_job {
    ocl_u32 w[2], bias[2], scales[2];
    ocl_u32 begin, count;
} ocl_product_job;

/* Without by_table all jobs are the first, moved by the *_job steps (w_job in bytes, x_job and y_job
 * in floats, rows_job in stored rows). both: 1 where gate and up go together. x_per_pair: a row of x serves so many pairs; 0:
 * it is the pair's own. w, bias: bytes ahead of every job's. Outer scales as in cf_weight. */
typedef struct ocl_product_params {
    ocl_u64 units, w[2], bias[2], x, y, pairs, weights, w_job, x_job, y_job;
    ocl_u32 rows, cols, unit_rows, w_step[2], both, by_table;
    ocl_u32 x_stride, y_stride, x_per_pair, y_by_pair, has_weights, mode, act, accumulate, x_q8;
    ocl_u32 bias_format[2], bias_step[2];
    ocl_u32 scale_rows, scale_cols, scale_format, row_first[2], rows_job;
    float scale, limit, alpha;
    ocl_product_job jobs[OCL_EXPERTS_PER_LAUNCH];
} ocl_product_params;

/* Of a transposed matrix: elements from column to column, and from output to output. */
typedef struct ocl_linear_t_params {
    ocl_u64 units, w, x, y;
    ocl_vector bias;
    ocl_u32 stride, step, rows, cols, n_rows, x_stride, y_stride, accumulate, x_q8;
    float scale;
} ocl_linear_t_params;

typedef struct ocl_head_linear_t_params {
    ocl_u64 units, w, scales, x, y;
    ocl_u32 cols, n_rows, head_rows, row_off, n_sub;
    ocl_u32 x_stride, x_head_stride, y_stride, y_head_stride;
    ocl_u32 scale_rows, scale_cols, scale_format;
} ocl_head_linear_t_params;

/* w_head_step, bias_head_step: 0, or width: a part for each head. */
typedef struct ocl_norm_params {
    ocl_u64 units, x, y;
    ocl_vector w, bias;
    ocl_u32 n_heads, width, x_stride, x_head_stride, y_stride, y_head_stride;
    ocl_u32 w_head_step, bias_head_step, layer;
    float eps, scale, offset;
} ocl_norm_params;

typedef struct ocl_rope_params {
    ocl_u64 units, x, cos_sin;
    ocl_u32 n_heads, n_pairs, stride, head_stride, half_apart;
    ocl_u32 unused;
} ocl_rope_params;

typedef struct ocl_kv_store_params {
    ocl_u64 units, x, cache, rows;
    ocl_u32 width, x_stride;
} ocl_kv_store_params;

typedef struct ocl_attn_latent_params {
    ocl_u64 units, q_lat, q_rope, cache, rows, y, cells;
    ocl_u32 n_heads, rank, n_rope, q_stride, q_head_stride, n_select; /* n_select 0: all cells */
    float scale;
    ocl_u32 unused;
} ocl_attn_latent_params;

typedef struct ocl_attn_params {
    ocl_u64 units, q, k, v, rows, y, sharpness;
    ocl_vector sinks;
    ocl_u32 n_heads, n_kv_heads, d_k, d_v, q_stride, window, chunk;
    float scale, cap;
    ocl_u32 has_sharpness;
} ocl_attn_params;

typedef struct ocl_glu_params {
    ocl_u64 units, g, u, y, n;
    ocl_u32 has_u, act;
    float limit, alpha;
} ocl_glu_params;

/* b_step: 0: b[r, 0] serves the row. */
typedef struct ocl_map_params {
    ocl_u64 units, a, b, y;
    ocl_u32 kind, width, a_stride, b_stride, b_step, y_stride;
    float p, q;
} ocl_map_params;

typedef struct ocl_add_params {
    ocl_u64 units, a, b, y, n;
    float alpha, beta;
    ocl_u32 has_b, unused;
} ocl_add_params;

typedef struct ocl_route_params {
    ocl_u64 units, logits, bias, ids, weights, host_ids, host_weights;
    ocl_u32 n, k, has_bias, sigmoid, renormalise;
    float scale;
    ocl_u32 n_groups, top_groups, top_two, mixer;
    float tolerance;
    ocl_u32 unused;
} ocl_route_params;

typedef struct ocl_column_expert {
    ocl_u64 w, bias;
    ocl_u32 pair_begin, pair_count;
} ocl_column_expert;

/* stride, step: as those of linear_t. */
typedef struct ocl_expert_glu_t_params {
    ocl_u64 units, x, pairs, weights, h;
    ocl_u32 k, hidden, ffn, mode, act, stride, step, has_weights, bias_format, bias_step, x_q8;
    float limit, alpha;
    ocl_u32 unused;
    ocl_column_expert experts[OCL_EXPERTS_PER_LAUNCH];
} ocl_expert_glu_t_params;

typedef struct ocl_expert_down_t_params {
    ocl_u64 units, h, pairs, weights, y;
    ocl_u32 hidden, ffn, stride, step, has_weights, bias_format, bias_step, x_q8;
    ocl_column_expert experts[OCL_EXPERTS_PER_LAUNCH];
} ocl_expert_down_t_params;

typedef struct ocl_combine_params {
    ocl_u64 units, outs, ids, weights, x, y;
    ocl_u32 k, hidden, n_routed, unused;
} ocl_combine_params;

typedef struct ocl_get_rows_params {
    ocl_u64 units, table, ids, y;
    ocl_u32 cols, y_stride, has_ids;
    float scale;
} ocl_get_rows_params;

/* run_units: of each run. */
typedef struct ocl_conv_params {
    ocl_u64 units, run_units, x, y, state, runs;
    ocl_vector w;
    ocl_u32 n_channels, width, n_taps, x_stride, x_head_stride, y_stride, state_stride, silu;
} ocl_conv_params;

typedef struct ocl_state_gates_params {
    ocl_u64 units, a, b, decay, beta;
    ocl_vector a_log, dt_bias;
    ocl_u32 n_heads, stride, group, group_stride;
} ocl_state_gates_params;

typedef struct ocl_attn_state_params {
    ocl_u64 units, q, k, v, decay, beta, y, state, runs;
    ocl_u32 n_heads, per_k_head, d_k, d_v, stride, k_head_stride, v_head_stride, decay_stride;
    ocl_u32 delta, n_k_heads;
} ocl_attn_state_params;

typedef struct ocl_index_score_params {
    ocl_u64 units, q, w, k, rows, scores;
    ocl_u32 n_heads, d, max_cells, q_stride, w_stride, score_stride;
    float scale;
    ocl_u32 unused;
} ocl_index_score_params;

typedef struct ocl_index_select_params {
    ocl_u64 units, scores, rows, cells;
    ocl_u32 k, score_stride;
} ocl_index_select_params;

typedef struct ocl_attn_bias_params {
    ocl_u64 units, buckets, q, k, v, rows, y;
    ocl_vector bias;
    ocl_u32 n_heads, d, q_stride, n_buckets, zero;
    float scale;
} ocl_attn_bias_params;

typedef struct ocl_gate_params {
    ocl_u64 units, g, y;
    ocl_u32 n_heads, width, g_stride, g_head_stride, y_stride, y_head_stride, silu, unused;
} ocl_gate_params;
#endif
