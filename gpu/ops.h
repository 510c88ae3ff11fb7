/* The ops: one parameter struct each, defined by gpu/ref/ in plain C, proven against it elsewhere.
 *
 * Activations are float32, row-major [n_rows, width]; strides are in floats (elements), from row
 * to row. A span is where the first element lies and bounds the access. Weights are read in their
 * stored format, W[rows, cols] row-major ("rows" are outputs), decoded and accumulated in float32.
 * Unless an op says so, inputs and outputs must not overlap.
 *
 * Every op is a function  void cf_gpu_<name>(cf_gpu *, cf_stream, const cf_op_<name> *)  that
 * records it; X-macro CF_GPU_OPS lists them all. The struct is copied before return. */
#ifndef CF_GPU_OPS_H
#define CF_GPU_OPS_H

#include "gpu/gpu.h"
#include "runtime/base/format.h"

/* A matrix W[rows, cols] as stored, in a computable format; "rows" are outputs. span.off a multiple
 * of 16.
 *   plain       row o begins at (row_first + o * row_step) stored rows of `cols` elements, a whole
 *               number of the format's blocks, without padding (row_step 2: every other row of an
 *               interleaved pair; 0 means 1)
 *   transposed  W[o, k] is element k * stride + row_first + o * row_step (stride 0 means rows);
 *               element formats only; row_first + (rows - 1) * row_step < stride
 * span covers what is addressed; plain weights have stride 0. A vector has rows 1: every other
 * element of an interleaved pair of vectors is a transposed one of stride 2. span.buf NULL: there
 * is none, where an op allows that. head_linear and get_rows take whole plain weights only, get_rows
 * without outer scales. A device may lack formats: cf_gpu_supports.
 *
 * Outer scales (scale_rows > 0; plain weights only) are a matrix of their own, in scale_format
 * (F32, F16, BF16 or F8_E8M0, where code e is 2^(e - 127)): the decoded W[o, k] is rounded to
 * float32 after its product with scales[s / scale_rows, k / scale_cols], s = row_first + o *
 * row_step being the stored row. Rows of scales have ceil(cols / scale_cols) elements.
 * FP8 has 128 x 128, MXFP4 in two tensors 1 x 32, NVFP4 one for all. scale_cols is a multiple of 32. */
typedef struct cf_weight {
    cf_span span;
    cf_format dtype;
    uint32_t rows, cols;
    bool transposed;
    uint32_t row_first, row_step, stride;
    cf_span scales;
    cf_format scale_format;
    uint32_t scale_rows, scale_cols;
} cf_weight;

/* Where one row of a batch lives: its position, and the cells of the KV cache that it sees,
 * itself included: first_cell .. first_cell + n_cells - 1; it writes `cell`. A cell is one
 * position of one session. An array of these is uploaded per batch. */
typedef struct cf_row_info {
    uint32_t cell, first_cell, n_cells, position;
} cf_row_info;

enum { CF_Q8_GROUP = 32 };

/* Activations in 8 bits (x_q8): each CF_Q8_GROUP consecutive values of a row of the input (the last
 * group may be short) are rounded to d * q with d = max |x| / 127 and q = round(x * (1 / d)),
 * halves away from zero; d * q then stands for x. Where max |x| < 2^-100, d = 0; a value that is
 * not finite makes a NaN of what is summed over its group.
 * Where a weight is s * c + m with an integer c, and s and m are of the whole group or of a half, a
 * device may take s * d * (sum of c q) + m * d * (sum of q) for its part of a result: sums of
 * integers, which are exact, and the rest in float32. That is the sum over w * (d * q) but for its
 * rounding; `ref`, which sums floats, judges both within what it allows any order of a sum. */

/* y[r, o] = scale * sum_k w[o, k] x[r, k]  (+ bias[o])  (+ y[r, o] when accumulate)
 * bias: [1, w.rows], or none. */
typedef struct cf_op_linear {
    cf_weight w, bias;
    cf_span x, y;
    uint32_t n_rows, x_stride, y_stride;
    float scale;
    bool accumulate;
    bool x_q8;
} cf_op_linear;

/* Per head h < n_heads, with W_h = rows [h * head_rows + row_off, + n_sub) of w:
 *   as stored:   y[r, h, i] = sum_k W_h[i, k] x[r, h, k]      x: cols wide, y: n_sub wide
 *   transposed:  y[r, h, k] = sum_i W_h[i, k] x[r, h, i]      x: n_sub wide, y: cols wide */
typedef struct cf_op_head_linear {
    cf_weight w;
    cf_span x, y;
    uint32_t n_rows, n_heads, head_rows, row_off, n_sub;
    uint32_t x_stride, x_head_stride, y_stride, y_head_stride;
    bool transposed;
} cf_op_head_linear;

typedef enum { CF_NORM_RMS, CF_NORM_LAYER } cf_norm_kind;

/* Per row and head, over `width` floats at x + r * x_stride + h * x_head_stride:
 *   RMS    y[i] = g[i] * x[i] / sqrt(mean x^2 + eps) * scale
 *   LAYER  y[i] = g[i] * (x[i] - mean x) / sqrt(var x + eps) * scale + bias[i]
 * g[i] = w[i], or 1 + w[i] when unit_offset, or 1 without w. w, bias: [1, width] or none (bias:
 * LAYER only). One serves all heads, unless its cols = n_heads * width: then each has its own part.
 * y may be x (equal spans and strides). */
typedef struct cf_op_norm {
    cf_norm_kind kind;
    cf_weight w, bias;
    cf_span x, y;
    uint32_t n_rows, n_heads, width;
    uint32_t x_stride, x_head_stride, y_stride, y_head_stride;
    float eps, scale;
    bool unit_offset;
} cf_op_norm;

typedef enum { CF_ROPE_INTERLEAVED, CF_ROPE_HALF } cf_rope_layout;

/* Rotates in place, per row and head, the n_rot floats at x + r * stride + h * head_stride:
 * pairs (2i, 2i+1) or (i, i + n_rot/2): (a, b) -> (a cos - b sin, b cos + a sin).
 * cos_sin: [n_rows, n_rot/2, 2] float32, computed on the host. */
typedef struct cf_op_rope {
    cf_span x, cos_sin;
    uint32_t n_rows, n_heads, n_rot, stride, head_stride;
    cf_rope_layout layout;
} cf_op_rope;

/* A cache of keys and values is in kv_dtype: CF_F32, CF_F16 or, where cf_gpu_info.kv_q8 says so,
 * CF_Q8_0. A cell is then whole blocks of 32, each decoded to d * q in float32, and so is the part
 * of each head: the widths that the ops name (width, d_k, d_v, rank, n_rope, d) are multiples of 32.
 * A cell of an odd number of blocks ends in the middle of a 32-bit word. */

/* cache[rows[r].cell, i] = x[r, i], i < width, in kv_dtype. rows: cf_row_info [n_rows].
 * cache: [n_cells, width].
 * CF_Q8_0, to the bit, for the 32 values of a block: m = max |x|; d = m / 127, correctly rounded, is
 * stored as float16, to nearest even; q = |x * (1 / d)| + 0.5 truncated, at most 127, with the sign
 * of x, the quotient, the product and the sum each correctly rounded (what quantising a file gives).
 * m < 2^-100: d = 0 and every q = 0. A value that is not finite: d = NaN (0x7e00), every q = 0. */
typedef struct cf_op_kv_store {
    cf_span x, cache, rows;
    uint32_t n_rows, width, x_stride;
    cf_format kv_dtype;
} cf_op_kv_store;

/* Attention over a latent cache (absorbed MLA, arXiv 2405.04434, section 2.1):
 * cell c holds [latent (rank) | rope key (n_rope)]; for row r, head h, over c of rows[r]:
 *   s_c = scale * (q_lat[r, h] . latent_c + q_rope[r, h] . rope_c),  p = softmax(s)
 *   y[r, h, i] = sum_c p_c latent_c[i]
 * q_lat and y: [n_rows, n_heads, rank] contiguous. q_rope: at q_rope + r * q_stride +
 * h * q_head_stride. No buffer quadratic in the context is used.
 * With `cells` (as cf_op_index_select leaves them, k = n_select; buf NULL: without) row r sees the
 * first min(n_select, n_cells) entries of cells[r] in place of all its cells. */
typedef struct cf_op_attn_latent {
    cf_span q_lat, q_rope, cache, rows, y, cells;
    uint32_t n_rows, n_heads, rank, n_rope, q_stride, q_head_stride, n_select;
    float scale;
    cf_format kv_dtype;
} cf_op_attn_latent;

/* Attention over cached keys and values, heads in groups that share a key head:
 *   s_c = scale * q[r, h] . k[c, h / (n_heads / n_kv_heads)]
 *   s_c = cap * tanh(s_c / cap)  if cap > 0
 *   s_c = sharpness[r] * s_c  if sharpness is given: float32 [n_rows]
 *   p = softmax over the visible cells (and sinks[h], whose share is then dropped, if given)
 *   y[r, h, i] = sum_c p_c v[c, kv head, i]
 * k: [n_cells, n_kv_heads * d_k], v: [n_cells, n_kv_heads * d_v], in kv_dtype. The cells of
 * rows[r] are consecutive positions p up to its own: the last has p = position. Visible: those with
 * position - p < window (window > 0)  and  p / chunk == position / chunk (chunk > 0).
 * y: [n_rows, n_heads * d_v] contiguous. q at q + r * q_stride + h * d_k. sinks: [1, n_heads] (as
 * they are: not scaled, capped or sharpened) or none. */
typedef struct cf_op_attn {
    cf_span q, k, v, rows, y;
    cf_span sharpness; /* or buf NULL: 1 */
    cf_weight sinks;
    uint32_t n_rows, n_heads, n_kv_heads, d_k, d_v, q_stride, window, chunk;
    float scale, cap;
    cf_format kv_dtype;
} cf_op_attn;

/* Activations. SWIGLU_CLAMPED: g = min(g, limit), u = clamp(u, -limit, limit),
 * g * sigmoid(alpha * g) * (u + 1); it needs u, and limit > 0. */
typedef enum { CF_ACT_SILU, CF_ACT_GELU_TANH, CF_ACT_RELU, CF_ACT_SWIGLU_CLAMPED } cf_act;

typedef struct cf_act_params {
    cf_act act;
    float limit, alpha; /* SWIGLU_CLAMPED only */
} cf_act_params;

/* y[i] = act(g[i]) * u[i], or act(g[i]) without u (buf NULL), i < n. y may be g.
 * silu(v) = v / (1 + exp(-v)). */
typedef struct cf_op_glu {
    cf_span g, u, y;
    uint64_t n;
    cf_act_params act;
} cf_op_glu;

typedef enum {
    CF_MAP_CLAMP,       /* min(max(a, p), q) */
    CF_MAP_SOFTCAP,     /* p * tanh(a / p) */
    CF_MAP_MUL_SIGMOID, /* a * sigmoid(b) */
    CF_MAP_MUL_ROW      /* a * b[r, 0] */
} cf_map_kind;

/* y[r, i] = map(a[r, i], b): elementwise. b (MUL_SIGMOID and MUL_ROW only): b_width 1: b[r, 0]
 * serves the row; else b_width = width: b[r, i]. y may be a (equal span and stride). */
typedef struct cf_op_map {
    cf_map_kind kind;
    cf_span a, b, y;
    uint32_t n_rows, width, a_stride, b_stride, b_width, y_stride;
    float p, q;
} cf_op_map;

/* y[i] = alpha * a[i] + beta * b[i], i < n. y may be a. b.buf NULL: y = alpha * a. */
typedef struct cf_op_add {
    cf_span a, b, y;
    uint64_t n;
    float alpha, beta;
} cf_op_add;

typedef enum { CF_SCORE_SOFTMAX, CF_SCORE_SIGMOID, CF_SCORE_SPARSEMIXER } cf_score;
typedef enum { CF_GROUP_MAX, CF_GROUP_TOP2 } cf_group_score;

/* Chooses k of n experts per row from router logits [n_rows, n] (contiguous).
 *   p = softmax or sigmoid of the logits, in float32; s = p + bias (bias: float32 [n], or buf NULL)
 *   With n_groups > 1 the experts are n_groups equal runs; a group's score is its largest s, or the
 *   sum of its two largest; only experts of the top_groups best groups (ties to the lower) remain.
 *   chosen = the k largest s of those, ties to the lower id. A NaN logit has p = 0 and is chosen
 *   last.
 *   weight = p * scale, or p / (sum of the chosen p) * scale when renormalise (a zero sum gives 0).
 *   Softmax over the selected logits is softmax with renormalise.
 *   SPARSEMIXER (no bias, groups or renormalise): the k largest logits, ties to the lower id, are
 *   chosen one after the other; with m the one being chosen, p = 1 / (sum of exp(l - m) over what
 *   is not chosen yet, itself included, with m - l <= 2 * jitter * max(|l|, m)).
 * ids [n_rows, k] uint32 in ascending order, weights [n_rows, k] likewise; the same again to
 * host_ids, host_weights (READBACK). n <= 4096, k <= 64, n_groups <= 64. */
typedef struct cf_op_route {
    cf_span logits, bias, ids, weights, host_ids, host_weights;
    uint32_t n_rows, n, k;
    cf_score score;
    uint32_t n_groups, top_groups; /* n_groups 0 or 1: no groups */
    cf_group_score group_score;
    bool renormalise;
    float scale;
    float jitter; /* SPARSEMIXER only */
} cf_op_route;

enum { CF_ROUTE_MAX_EXPERTS = 4096, CF_ROUTE_MAX_K = 64, CF_ROUTE_MAX_GROUPS = 64 };

/* One expert of a batch: where its matrices lie and which pairs it serves. */
typedef struct cf_expert_work {
    cf_weight gate, up;                      /* [ffn, hidden]; up none: not gated */
    cf_weight down;                          /* [hidden, ffn] */
    cf_weight gate_bias, up_bias, down_bias; /* [1, ...] or none; up_bias only with up */
    uint32_t pair_begin, pair_count;         /* into pairs */
} cf_expert_work;

enum { CF_EXPERTS_PER_OP = 512 }; /* most entries of one op */

/* pairs: uint32 [n_pairs_total], a (row, rank) of the batch as row * k + rank, grouped by expert.
 *   h[p, j] = act(w * (gate . x[pairs[p] / k])[j] + gate_bias[j])
 *             * (w * (up . x[pairs[p] / k])[j] + up_bias[j])
 * (without up: act(...) alone), w = weights[pairs[p]] if weights is given (a router weight on the
 * expert's input), else 1, for every p of every listed expert. x: [rows, hidden] contiguous;
 * h: [pairs, ffn] contiguous, indexed by p, so that separate ops over separate experts write
 * separate rows. All experts of one op share dtypes, shapes and layouts. `experts` is copied
 * before return. */
typedef struct cf_op_expert_glu {
    const cf_expert_work *experts;
    uint32_t n_experts;
    cf_span x, pairs, h;
    cf_span weights; /* float32 [n_rows * k], or buf NULL */
    uint32_t n_rows, k, hidden, ffn;
    cf_act_params act;
    bool x_q8;
} cf_op_expert_glu;

/* out[pairs[p], i] = weights[pairs[p]] * (sum_j down[i, j] h[p, j] + down_bias[i]): each
 * (row, rank) has its own row of out [n_rows * k, hidden]. weights: float32 [n_rows * k] as
 * cf_op_route left them, or buf NULL: 1. */
typedef struct cf_op_expert_down {
    const cf_expert_work *experts;
    uint32_t n_experts;
    cf_span h, pairs, weights, out;
    uint32_t n_rows, k, hidden, ffn;
    bool x_q8; /* of h */
} cf_op_expert_down;

/* y[r, i] = sum over rank, ascending (so: ascending expert id), of
 *   ids[r, rank] < n_routed ? out[r * k + rank, i] : weights[r, rank] * x[r, i]
 * Identity ("zero") experts have ids from n_routed on. x, y: [n_rows, hidden] contiguous. */
typedef struct cf_op_combine {
    cf_span out, ids, weights, x, y;
    uint32_t n_rows, k, hidden, n_routed;
} cf_op_combine;

/* y[r, i] = scale * table[ids[r], i]; ids uint32 [n_rows], or buf NULL: row r of the table.
 * An id >= table.rows is a caller's error (checked on the host before upload). */
typedef struct cf_op_get_rows {
    cf_weight table;
    cf_span ids, y;
    uint32_t n_rows, y_stride;
    float scale;
} cf_op_get_rows;

#include "gpu/ops_state.h"

#define CF_GPU_OPS(X)                                                                              \
    X(linear)                                                                                      \
    X(head_linear)                                                                                 \
    X(norm)                                                                                        \
    X(rope)                                                                                        \
    X(kv_store)                                                                                    \
    X(attn_latent)                                                                                 \
    X(attn)                                                                                        \
    X(glu)                                                                                         \
    X(map)                                                                                         \
    X(add)                                                                                         \
    X(route)                                                                                       \
    X(expert_glu)                                                                                  \
    X(expert_down)                                                                                 \
    X(combine)                                                                                     \
    X(get_rows)                                                                                    \
    CF_GPU_STATE_OPS(X)

#define CF_OP_DECLARE(name)                                                                        \
    void cf_gpu_##name(cf_gpu *gpu, cf_stream stream, const cf_op_##name *op);
CF_GPU_OPS(CF_OP_DECLARE)
#undef CF_OP_DECLARE

#endif
