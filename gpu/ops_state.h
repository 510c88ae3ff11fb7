/* Ops of attention that keeps a state of fixed size instead of a cache, looks at a choice of cells,
 * or weighs them by distance: part of gpu/ops.h, which includes this and says what holds for all
 * ops. Defined by gpu/ref/ref_state.c, ref_index.c and ref_bias.c. */
#ifndef CF_GPU_OPS_STATE_H
#define CF_GPU_OPS_STATE_H

/* A run: rows [first_row, first_row + n_rows) of a batch are consecutive positions of one session.
 * What the session was left with is in slot `from` of a state (CF_NO_STATE: all zeros, its
 * beginning); what this batch leaves goes to slot `to`, a different one, so that a batch that fails
 * has changed nothing. The runs of a batch have slots of their own. An array is uploaded per batch.
 */
typedef struct cf_state_run {
    uint32_t first_row, n_rows, from, to;
} cf_state_run;

enum { CF_NO_STATE = 0xffffffff };

/* Causal convolution of each channel (h, i) over its last n_taps inputs:
 *   y[r, h * width + i] = sum_j w[h * width + i, j] * in(r - n_taps + 1 + j)   (then silu, if set)
 * in(r') = x[r', h, i] within the run, before it the state's. A slot of the state has n_taps - 1
 * rows, state_stride apart, oldest position first, channels side by side; slots follow each other.
 * w: [n_heads * width, n_taps] in a format of single values, plain. */
typedef struct cf_op_conv {
    cf_weight w;
    cf_span x, y, state, runs;
    uint32_t n_rows, n_runs, n_slots, n_heads, width, n_taps;
    uint32_t x_stride, x_head_stride, y_stride, state_stride;
    bool silu;
} cf_op_conv;

/* decay[r, h] = exp(-exp(a_log[h]) * softplus(a[r, h] + dt_bias[h])),  beta[r, h] = sigmoid(b[r,
 * h]) Element (r, h) of a and b: r * stride + (h / group) * group_stride + h % group. Both results
 * are [n_rows, n_heads]. */
typedef struct cf_op_state_gates {
    cf_weight a_log, dt_bias; /* [1, n_heads] */
    cf_span a, b, decay, beta;
    uint32_t n_rows, n_heads, stride, group, group_stride;
} cf_op_state_gates;

/* Linear attention with a matrix S [d_k, d_v] of state per head, over each run's rows in order:
 *   S = decay[r, h] * S;  u = v[r, h];  u = beta[r, h] * (u - S^T k[r, h'])  if there is a beta
 *   S = S + k[r, h'] u^T;  y[r, h] = S^T q[r, h'],  h' = h / (n_heads / n_k_heads), so that a key head
 * has neighbours, or h' = h % n_k_heads with k_tiled
 * decay: [n_rows, n_heads], or with decay_stride 0 the same [n_heads] for all rows. Rows of q, k, v
 * are `stride` apart, their heads k_head_stride and v_head_stride. y: [n_rows, n_heads * d_v].
 * state: [n_slots, n_heads, d_k, d_v]. */
typedef struct cf_op_attn_state {
    cf_span q, k, v, decay, beta, y, state, runs;
    uint32_t n_rows, n_runs, n_slots, n_heads, n_k_heads, d_k, d_v;
    uint32_t stride, k_head_stride, v_head_stride, decay_stride;
    bool k_tiled;
} cf_op_attn_state;

/* y[r, h, i] = y[r, h, i] * f(g[r, h, i]), f being silu or sigmoid. */
typedef struct cf_op_gate {
    cf_span g, y;
    uint32_t n_rows, n_heads, width, g_stride, g_head_stride, y_stride, y_head_stride;
    bool silu;
} cf_op_gate;

/* How much each cell matters to each row (arXiv 2512.02556):
 *   scores[r, i] = scale * sum_h w[r, h] * max(q[r, h] . k[first_cell + i], 0),  i < n_cells of
 * rows[r] k: [cells, d] in kv_dtype. Rows of q are q_stride apart, heads d; w and scores by their
 * strides. No row has more than max_cells cells; of a row of scores n_cells are written. */
typedef struct cf_op_index_score {
    cf_span q, w, k, rows, scores;
    uint32_t n_rows, n_heads, d, max_cells, q_stride, w_stride, score_stride;
    float scale;
    cf_format kv_dtype;
} cf_op_index_score;

/* cells[r]: of the cells of rows[r] the min(k, n_cells) with the largest scores, ties to the lower
 * one, ascending, as cells of the cache; uint32 [n_rows, k], of which so many are written. A NaN
 * counts as -infinity. */
typedef struct cf_op_index_select {
    cf_span scores, rows, cells;
    uint32_t n_rows, k, max_cells, score_stride;
} cf_op_index_select;

/* Attention over cached keys and values of every head, biased by distance (arXiv 1910.10683):
 *   s_c = scale * q[r, h] . k[c, h] + bias[buckets[clamp(p - position + zero, 0, n_buckets - 1)], h]
 *   y[r, h] = sum_c softmax(s)_c v[c, h]
 * over all cells c of rows[r]; cell first_cell + p is position p, before the row's own or behind
 * it. k, v: [cells, n_heads * d] in kv_dtype. buckets: uint32 [n_buckets], rows of bias
 * [.., n_heads], plain, in a format of single values; one >= bias.rows is a caller's error.
 * y: [n_rows, n_heads * d]; q by its stride. */
typedef struct cf_op_attn_bias {
    cf_weight bias;
    cf_span buckets, q, k, v, rows, y;
    uint32_t n_rows, n_heads, d, q_stride, n_buckets, zero;
    float scale;
    cf_format kv_dtype;
} cf_op_attn_bias;

#define CF_GPU_STATE_OPS(X)                                                                        \
    X(conv)                                                                                        \
    X(state_gates)                                                                                 \
    X(attn_state)                                                                                  \
    X(gate)                                                                                        \
    X(index_score)                                                                                 \
    X(index_select)                                                                                \
    X(attn_bias)

#endif
