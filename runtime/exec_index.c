/* Which cells latent attention looks at: an index of small keys beside the cache.
 *
 *     q = index.q q_lat, k = layer norm(index.k src), both rotated; k goes to the cache
 *     score of a cell = sum_h w_h max(q_h . k, 0) / sqrt(heads * head), w = index.weights src
 *     selected = the select_k cells with the largest scores, ties to the lower
 *
 * As long as no row of a batch has more cells than that, all are seen and nothing is scored. Scores
 * are made for a few rows at a time (cf_memory_plan.index_rows): they are what grows with rows x
 * context. Threads: the engine thread. */
#include <math.h>
#include <stdlib.h>

#include "runtime/base/align.h"
#include "runtime/exec_internal.h"

/* The rows [first, first + n) of [n_rows, width] elements of `bytes`. */
static cf_span rows_of(cf_span s, uint32_t first, uint32_t n, uint64_t row_bytes)
{
    return cf_span_sub(s, first * row_bytes, n * row_bytes);
}

/* Scores and choice of rows [first, first + n). */
static void rows_select(cf_exec *x, const cf_attn_latent_def *a, uint32_t first, uint32_t n)
{
    const cf_index_def *d = &a->index;
    cf_span rows = rows_of(exec_row_info(x), first, n, sizeof(cf_row_info));
    cf_span scores = cf_span_of(x->xb[CF_XB_SCORES]);
    uint32_t q_width = d->heads * d->head;
    exec_barrier(x);
    cf_gpu_index_score(x->gpu, CF_STREAM_COMPUTE,
                       &(cf_op_index_score){
                           .q = rows_of(exec_act(x, d->q_buf), first, n, q_width * sizeof(float)),
                           .w = rows_of(exec_act(x, d->w_buf), first, n, d->heads * sizeof(float)),
                           .k = cf_span_of(x->kv[x->model->kv.slots + d->slot]),
                           .rows = rows,
                           .scores = scores,
                           .n_rows = n,
                           .n_heads = d->heads,
                           .d = d->head,
                           .max_cells = x->most_cells,
                           .q_stride = q_width,
                           .w_stride = d->heads,
                           .score_stride = x->e->plan.ctx,
                           .scale = (float)(1 / sqrt((double)d->heads * d->head)),
                           .kv_dtype = x->e->plan.kv_dtype});
    exec_recorded(x);
    exec_barrier(x);
    cf_gpu_index_select(x->gpu, CF_STREAM_COMPUTE,
                        &(cf_op_index_select){.scores = scores,
                                              .rows = rows,
                                              .cells = rows_of(exec_act(x, a->selected), first, n,
                                                               a->select_k * sizeof(uint32_t)),
                                              .n_rows = n,
                                              .k = a->select_k,
                                              .max_cells = x->most_cells,
                                              .score_stride = x->e->plan.ctx});
    exec_recorded(x);
}

/* Tells whoever wants to know what each row looks at. */
static int select_report(cf_exec *x, const cf_attn_latent_def *a, uint32_t layer, bool chosen,
                         cf_err *err)
{
    int rc = 0;
    const cf_outputs *o = x->batch->outputs;
    if (!o || !o->select || x->dense_rc < 0)
        return 0;
    uint32_t *positions = malloc(a->select_k * sizeof *positions);
    if (!positions)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u positions", a->select_k);
    for (uint32_t r = 0; r < x->n_rows && rc == 0; r++) {
        const cf_row *row = &x->batch->rows[r];
        uint32_t n = (uint32_t)cf_min_u64(row->position + 1ull, a->select_k);
        uint64_t bytes = n * sizeof *positions;
        cf_span to = cf_span_sub(cf_span_of(x->xb[CF_XB_HIDDEN]), 0, bytes);
        for (uint32_t i = 0; i < n; i++)
            positions[i] = i;
        if (chosen) {
            exec_barrier(x);
            cf_gpu_copy(x->gpu, CF_STREAM_COMPUTE, to,
                        cf_span_sub(exec_act(x, a->selected),
                                    (uint64_t)r * a->select_k * sizeof *positions, bytes));
            exec_recorded(x);
            if ((rc = exec_finish(x, err)) < 0)
                break;
            const uint32_t *cells = cf_gpu_host_read(to);
            for (uint32_t i = 0; i < n; i++)
                positions[i] = cells[i] - row->session->index * x->e->plan.ctx;
        }
        o->select(o->user, layer, row->position, positions, n);
    }
    free(positions);
    return rc;
}

int exec_index(cf_exec *x, const cf_attn_latent_def *a, uint32_t layer, cf_span src, uint32_t width,
               cf_err *err)
{
    const cf_index_def *d = &a->index;
    bool chosen = x->most_cells > a->select_k;
    cf_span q = exec_act(x, d->q_buf), k = exec_act(x, d->k_buf);
    uint32_t q_width = d->heads * d->head;
    exec_linear_exact(x, d->k, src, width, k, d->head, 1, false);
    if (chosen) {
        exec_linear_exact(x, d->q, exec_act(x, a->q_lat), a->rank_q, q, q_width, 1, false);
        exec_linear_exact(x, d->weights, src, width, exec_act(x, d->w_buf), d->heads, 1, false);
    }
    exec_barrier(x);
    cf_gpu_norm(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_norm){.kind = CF_NORM_LAYER,
                              .w = exec_weight(x, d->k_norm),
                              .bias = exec_weight(x, d->k_norm_bias),
                              .x = k,
                              .y = k,
                              .n_rows = x->n_rows,
                              .n_heads = 1,
                              .width = d->head,
                              .x_stride = d->head,
                              .y_stride = d->head,
                              .eps = d->norm_eps,
                              .scale = 1});
    exec_recorded(x);
    if (chosen)
        exec_rotate(x, d->rope_def, q, 0, d->heads, q_width, d->head);
    exec_barrier(x);
    exec_rotate(x, d->rope_def, k, 0, 1, d->head, d->head);
    exec_barrier(x);
    exec_kv_store(x, k, x->model->kv.slots + d->slot, d->head);
    uint32_t step = x->e->plan.index_rows;
    for (uint32_t r = 0; chosen && r < x->n_rows; r += step)
        rows_select(x, a, r, x->n_rows - r < step ? x->n_rows - r : step);
    return select_report(x, a, layer, chosen, err);
}
