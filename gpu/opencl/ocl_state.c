/* Ops of attention with a state of fixed size, over a choice of cells, and biased by distance. As
 * ocl_ops.c. */
#include "gpu/opencl/ocl_ops.h"

void ocl_op_conv(cf_gpu *gpu, cf_stream stream, const cf_op_conv *op)
{
    ocl_gpu *g = ocl_of(gpu);
    uint64_t rows = cf_max_u64(op->n_rows, op->n_taps - 1); /* of outputs, and of the state */
    uint64_t room = 0;
    reads_weight(g, stream, &op->w);
    vector_at w = vector_get(g, stream, &op->w, &room);
    ocl_conv_params p = {.units = rows * op->n_runs,
                         .run_units = rows,
                         .x = op->x.off,
                         .y = op->y.off,
                         .state = op->state.off,
                         .runs = op->runs.off,
                         .w = w.v,
                         .n_channels = op->n_heads * op->width,
                         .width = op->width,
                         .n_taps = op->n_taps,
                         .x_stride = op->x_stride,
                         .x_head_stride = op->x_head_stride,
                         .y_stride = op->y_stride,
                         .state_stride = op->state_stride,
                         .silu = op->silu};
    cf_gpu_buf *bufs[] = {w.buf, op->x.buf, op->y.buf, op->state.buf, op->runs.buf};
    ocl_reads(g, stream, op->x);
    ocl_reads(g, stream, op->state);
    ocl_reads(g, stream, op->runs);
    LAUNCH(g, stream, conv, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->y);
    ocl_writes_after(g, stream, op->state);
}

void ocl_op_state_gates(cf_gpu *gpu, cf_stream stream, const cf_op_state_gates *op)
{
    ocl_gpu *g = ocl_of(gpu);
    uint64_t room = 0;
    reads_weight(g, stream, &op->a_log);
    reads_weight(g, stream, &op->dt_bias);
    vector_at a_log = vector_get(g, stream, &op->a_log, &room);
    vector_at dt_bias = vector_get(g, stream, &op->dt_bias, &room);
    ocl_state_gates_params p = {.units = op->n_rows,
                                .a = op->a.off,
                                .b = op->b.off,
                                .decay = op->decay.off,
                                .beta = op->beta.off,
                                .a_log = a_log.v,
                                .dt_bias = dt_bias.v,
                                .n_heads = op->n_heads,
                                .stride = op->stride,
                                .group = op->group,
                                .group_stride = op->group_stride};
    cf_gpu_buf *bufs[] = {a_log.buf, dt_bias.buf,   op->a.buf,
                          op->b.buf, op->decay.buf, op->beta.buf};
    ocl_reads(g, stream, op->a);
    ocl_reads(g, stream, op->b);
    LAUNCH(g, stream, state_gates, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->decay);
    ocl_writes_after(g, stream, op->beta);
}

void ocl_op_attn_state(cf_gpu *gpu, cf_stream stream, const cf_op_attn_state *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_attn_state_params p = {.units = (uint64_t)op->n_runs * op->n_heads,
                               .q = op->q.off,
                               .k = op->k.off,
                               .v = op->v.off,
                               .decay = op->decay.off,
                               .beta = op->beta.off,
                               .y = op->y.off,
                               .state = op->state.off,
                               .runs = op->runs.off,
                               .n_heads = op->n_heads,
                               .per_k_head = op->k_tiled ? 1 : op->n_heads / op->n_k_heads,
                               .d_k = op->d_k,
                               .d_v = op->d_v,
                               .stride = op->stride,
                               .k_head_stride = op->k_head_stride,
                               .v_head_stride = op->v_head_stride,
                               .decay_stride = op->decay_stride,
                               .delta = op->beta.buf != NULL,
                               .n_k_heads = op->n_k_heads};
    const cf_span in[] = {op->q, op->k, op->v, op->decay, op->beta, op->state, op->runs};
    cf_gpu_buf *bufs[] = {op->q.buf,    op->k.buf, op->v.buf,     op->decay.buf,
                          op->beta.buf, op->y.buf, op->state.buf, op->runs.buf};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++)
        if (in[i].buf)
            ocl_reads(g, stream, in[i]);
    LAUNCH(g, stream, attn_state, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->y);
    ocl_writes_after(g, stream, op->state);
}

void ocl_op_gate(cf_gpu *gpu, cf_stream stream, const cf_op_gate *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_gate_params p = {.units = (uint64_t)op->n_rows * op->n_heads,
                         .g = op->g.off,
                         .y = op->y.off,
                         .n_heads = op->n_heads,
                         .width = op->width,
                         .g_stride = op->g_stride,
                         .g_head_stride = op->g_head_stride,
                         .y_stride = op->y_stride,
                         .y_head_stride = op->y_head_stride,
                         .silu = op->silu};
    cf_gpu_buf *bufs[] = {op->g.buf, op->y.buf};
    ocl_reads(g, stream, op->g);
    ocl_reads(g, stream, op->y);
    LAUNCH(g, stream, gate, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}

void ocl_op_index_score(cf_gpu *gpu, cf_stream stream, const cf_op_index_score *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_index_score_params p = {.units = op->n_rows * cf_ceil_div(op->max_cells, OCL_INDEX_CELLS),
                                .q = op->q.off,
                                .w = op->w.off,
                                .k = op->k.off,
                                .rows = op->rows.off,
                                .scores = op->scores.off,
                                .n_heads = op->n_heads,
                                .d = op->d,
                                .max_cells = op->max_cells,
                                .q_stride = op->q_stride,
                                .w_stride = op->w_stride,
                                .score_stride = op->score_stride,
                                .scale = op->scale};
    const cf_span in[] = {op->q, op->w, op->k, op->rows};
    cf_gpu_buf *bufs[] = {op->q.buf, op->w.buf, op->k.buf, op->rows.buf, op->scores.buf};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++)
        ocl_reads(g, stream, in[i]);
    LAUNCH(g, stream, index_score, op->kv_dtype, bufs, &p);
    ocl_writes_after(g, stream, op->scores);
}

void ocl_op_index_select(cf_gpu *gpu, cf_stream stream, const cf_op_index_select *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_index_select_params p = {.units = op->n_rows,
                                 .scores = op->scores.off,
                                 .rows = op->rows.off,
                                 .cells = op->cells.off,
                                 .k = op->k,
                                 .score_stride = op->score_stride};
    cf_gpu_buf *bufs[] = {op->scores.buf, op->rows.buf, op->cells.buf};
    ocl_reads(g, stream, op->scores);
    ocl_reads(g, stream, op->rows);
    LAUNCH(g, stream, index_select, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->cells);
}

void ocl_op_attn_bias(cf_gpu *gpu, cf_stream stream, const cf_op_attn_bias *op)
{
    ocl_gpu *g = ocl_of(gpu);
    uint64_t room = 0;
    reads_weight(g, stream, &op->bias);
    vector_at bias = vector_get(g, stream, &op->bias, &room);
    ocl_attn_bias_params p = {.units = (uint64_t)op->n_rows * op->n_heads,
                              .buckets = op->buckets.off,
                              .q = op->q.off,
                              .k = op->k.off,
                              .v = op->v.off,
                              .rows = op->rows.off,
                              .y = op->y.off,
                              .bias = bias.v,
                              .n_heads = op->n_heads,
                              .d = op->d,
                              .q_stride = op->q_stride,
                              .n_buckets = op->n_buckets,
                              .zero = op->zero,
                              .scale = op->scale};
    const cf_span in[] = {op->buckets, op->q, op->k, op->v, op->rows};
    cf_gpu_buf *bufs[] = {bias.buf, op->buckets.buf, op->q.buf, op->k.buf,
                          op->v.buf,         op->rows.buf,    op->y.buf};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++)
        ocl_reads(g, stream, in[i]);
    LAUNCH(g, stream, attn_bias, op->kv_dtype, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}
