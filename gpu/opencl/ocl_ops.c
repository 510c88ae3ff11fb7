/* Ops: each becomes a kernel, its buffers and its parameters (kernels/ocl_params.h). Nothing here
 * waits or fails: see ocl_fail(). Experts are in ocl_experts.c.
 *
 * Determinism: how the work is shared out changes which item computes a result, never its bits. */
#include "gpu/opencl/ocl_ops.h"

_Static_assert(OCL_F32 == CF_F32 && OCL_F16 == CF_F16 && OCL_BF16 == CF_BF16 &&
                   OCL_F8_E4M3 == CF_F8_E4M3 && OCL_F8_E8M0 == CF_F8_E8M0,
               "one numbering");
_Static_assert(OCL_ACT_GELU_TANH == CF_ACT_GELU_TANH && OCL_ACT_RELU == CF_ACT_RELU &&
                   OCL_ACT_SWIGLU_CLAMPED == CF_ACT_SWIGLU_CLAMPED,
               "one numbering");
_Static_assert(OCL_MAP_CLAMP == CF_MAP_CLAMP && OCL_MAP_SOFTCAP == CF_MAP_SOFTCAP &&
                   OCL_MAP_MUL_SIGMOID == CF_MAP_MUL_SIGMOID,
               "one numbering");

/* ---- weights ---- */

vector_at vector_get(ocl_gpu *g, cf_stream stream, const cf_weight *w, uint64_t *room)
{
    if (!w->span.buf)
        return (vector_at){.v = {.format = OCL_NO_VECTOR}};
    if (cf_formats[w->dtype].block_values == 1)
        return (vector_at){
            {weight_off(w), (uint32_t)w->dtype, w->transposed ? matrix_stride(w) : 1}, w->span.buf};
    uint64_t at = *room;
    *room += cf_align_up(w->cols, 4);
    if (*room > OCL_VECTOR_FLOATS) {
        cf_err cause = {0};
        CF_FAIL(&cause, CF_ELIMIT,
                "vectors of %llu values in blocks in one op, at most %u are taken",
                (unsigned long long)*room, OCL_VECTOR_FLOATS);
        ocl_fail(g, &cause);
        return (vector_at){.v = {.format = OCL_NO_VECTOR}};
    }
    ocl_get_rows_params p = {
        .units = 1, .table = weight_off(w), .y = at * 4, .cols = w->cols, .scale = 1.0f};
    cf_gpu_buf *bufs[] = {w->span.buf, NULL, g->vectors[stream]};
    LAUNCH(g, stream, get_rows, w->dtype, bufs, &p);
    return (vector_at){{at * 4, OCL_F32, 1}, g->vectors[stream]};
}

void product_shape(const ocl_gpu *g, ocl_product_params *p, const cf_weight *w, const cf_weight *up,
                   uint32_t jobs)
{
    uint64_t row_bytes = cf_format_row_bytes(w->dtype, w->cols);
    p->both = up != NULL;
    uint64_t outputs = (uint64_t)w->rows << p->both;
    uint64_t share = jobs * outputs / g->max_groups;
    p->unit_rows = g->groups
                       ? OCL_TILE_ROWS
                       : (uint32_t)cf_align_up(cf_max_u64(1, cf_min_u64(OCL_PANEL_OUTPUTS, share)),
                                               OCL_TILE_ROWS);
    p->units = jobs * cf_ceil_div(outputs, p->unit_rows);
    p->rows = w->rows;
    p->cols = w->cols;
    for (int m = 0; m <= (int)p->both; m++) {
        const cf_weight *one = m ? up : w;
        p->w[m] = one->row_first * row_bytes;
        p->w_step[m] = row_step(one);
        p->row_first[m] = one->row_first;
    }
    p->scale_rows = w->scale_rows;
    p->scale_cols = w->scale_cols;
    p->scale_format = (uint32_t)w->scale_format;
}

/* ---- matrices ---- */

static void linear_transposed(ocl_gpu *g, cf_stream stream, const cf_op_linear *op)
{
    uint64_t room = 0;
    vector_at bias = vector_get(g, stream, &op->bias, &room);
    ocl_linear_t_params p = {.units = column_units(g, op->w.rows),
                             .w = weight_off(&op->w),
                             .x = op->x.off,
                             .y = op->y.off,
                             .bias = bias.v,
                             .stride = matrix_stride(&op->w),
                             .step = row_step(&op->w),
                             .rows = op->w.rows,
                             .cols = op->w.cols,
                             .n_rows = op->n_rows,
                             .x_stride = op->x_stride,
                             .y_stride = op->y_stride,
                             .accumulate = op->accumulate,
                             .x_q8 = op->x_q8,
                             .scale = op->scale};
    cf_gpu_buf *bufs[] = {op->w.span.buf, bias.buf, op->x.buf, op->y.buf};
    LAUNCH(g, stream, linear_t, op->w.dtype, bufs, &p);
}

static void linear_plain(ocl_gpu *g, cf_stream stream, const cf_op_linear *op)
{
    uint64_t room = 0;
    vector_at bias = vector_get(g, stream, &op->bias, &room);
    ocl_product_params p = {.bias = {bias.v.at},
                            .x = op->x.off,
                            .y = op->y.off,
                            .x_stride = op->x_stride,
                            .y_stride = op->y_stride,
                            .mode = OCL_PRODUCT_PLAIN,
                            .accumulate = op->accumulate,
                            .x_q8 = op->x_q8,
                            .bias_format = {bias.v.format},
                            .bias_step = {bias.v.step},
                            .scale = op->scale};
    product_shape(g, &p, &op->w, NULL, 1);
    p.jobs[0] = (ocl_product_job){
        .w = {weight_place(&op->w)}, .scales = {scales_place(&op->w)}, .count = op->n_rows};
    cf_gpu_buf *bufs[] = {op->w.span.buf, NULL,      bias.buf, NULL, op->w.scales.buf,
                          NULL,           op->x.buf, NULL,     NULL, op->y.buf};
    LAUNCH(g, stream, product, op->w.dtype, bufs, &p);
}

void ocl_op_linear(cf_gpu *gpu, cf_stream stream, const cf_op_linear *op)
{
    ocl_gpu *g = ocl_of(gpu);
    reads_weight(g, stream, &op->w);
    reads_weight(g, stream, &op->bias);
    ocl_reads(g, stream, op->x);
    if (op->accumulate)
        ocl_reads(g, stream, op->y);
    if (op->w.transposed)
        linear_transposed(g, stream, op);
    else
        linear_plain(g, stream, op);
    ocl_writes_after(g, stream, op->y);
}

static void heads_transposed(ocl_gpu *g, cf_stream stream, const cf_op_head_linear *op)
{
    ocl_head_linear_t_params p = {.units = op->n_heads * column_units(g, op->w.cols),
                                  .w = op->w.span.off,
                                  .scales = op->w.scales.off,
                                  .x = op->x.off,
                                  .y = op->y.off,
                                  .cols = op->w.cols,
                                  .n_rows = op->n_rows,
                                  .head_rows = op->head_rows,
                                  .row_off = op->row_off,
                                  .n_sub = op->n_sub,
                                  .x_stride = op->x_stride,
                                  .x_head_stride = op->x_head_stride,
                                  .y_stride = op->y_stride,
                                  .y_head_stride = op->y_head_stride,
                                  .scale_rows = op->w.scale_rows,
                                  .scale_cols = op->w.scale_cols,
                                  .scale_format = (uint32_t)op->w.scale_format};
    cf_gpu_buf *bufs[] = {op->w.span.buf, op->w.scales.buf, op->x.buf, op->y.buf};
    LAUNCH(g, stream, head_linear_t, op->w.dtype, bufs, &p);
}

/* A job for each head, at even distances. */
static void heads_plain(ocl_gpu *g, cf_stream stream, const cf_op_head_linear *op)
{
    uint64_t row_bytes = cf_format_row_bytes(op->w.dtype, op->w.cols);
    cf_weight head = op->w;
    head.rows = op->n_sub;
    head.row_first = op->row_off;
    ocl_product_params p = {.x = op->x.off,
                            .y = op->y.off,
                            .w_job = op->head_rows * row_bytes,
                            .x_job = op->x_head_stride,
                            .y_job = op->y_head_stride,
                            .x_stride = op->x_stride,
                            .y_stride = op->y_stride,
                            .mode = OCL_PRODUCT_PLAIN,
                            .bias_format = {OCL_NO_VECTOR},
                            .rows_job = op->head_rows,
                            .scale = 1.0f};
    product_shape(g, &p, &head, NULL, op->n_heads);
    p.jobs[0] = (ocl_product_job){
        .w = {weight_place(&op->w)}, .scales = {scales_place(&op->w)}, .count = op->n_rows};
    cf_gpu_buf *bufs[] = {op->w.span.buf, NULL,      NULL, NULL, op->w.scales.buf,
                          NULL,           op->x.buf, NULL, NULL, op->y.buf};
    LAUNCH(g, stream, product, op->w.dtype, bufs, &p);
}

void ocl_op_head_linear(cf_gpu *gpu, cf_stream stream, const cf_op_head_linear *op)
{
    ocl_gpu *g = ocl_of(gpu);
    reads_weight(g, stream, &op->w);
    ocl_reads(g, stream, op->x);
    if (op->transposed)
        heads_transposed(g, stream, op);
    else
        heads_plain(g, stream, op);
    ocl_writes_after(g, stream, op->y);
}

/* ---- rows ---- */

void ocl_op_get_rows(cf_gpu *gpu, cf_stream stream, const cf_op_get_rows *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_get_rows_params p = {.units = op->n_rows,
                             .table = op->table.span.off,
                             .ids = op->ids.off,
                             .y = op->y.off,
                             .cols = op->table.cols,
                             .y_stride = op->y_stride,
                             .has_ids = op->ids.buf != NULL,
                             .scale = op->scale};
    cf_gpu_buf *bufs[] = {op->table.span.buf, op->ids.buf, op->y.buf};
    reads_weight(g, stream, &op->table);
    ocl_reads(g, stream, op->ids);
    LAUNCH(g, stream, get_rows, op->table.dtype, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}

void ocl_op_norm(cf_gpu *gpu, cf_stream stream, const cf_op_norm *op)
{
    ocl_gpu *g = ocl_of(gpu);
    uint64_t room = 0;
    reads_weight(g, stream, &op->w);
    reads_weight(g, stream, &op->bias);
    vector_at w = vector_get(g, stream, &op->w, &room);
    vector_at bias = vector_get(g, stream, &op->bias, &room);
    ocl_norm_params p = {.units = (uint64_t)op->n_rows * op->n_heads,
                         .x = op->x.off,
                         .y = op->y.off,
                         .w = w.v,
                         .bias = bias.v,
                         .n_heads = op->n_heads,
                         .width = op->width,
                         .x_stride = op->x_stride,
                         .x_head_stride = op->x_head_stride,
                         .y_stride = op->y_stride,
                         .y_head_stride = op->y_head_stride,
                         .w_head_step = op->w.cols == op->width ? 0 : op->width,
                         .bias_head_step = op->bias.cols == op->width ? 0 : op->width,
                         .layer = op->kind == CF_NORM_LAYER,
                         .eps = op->eps,
                         .scale = op->scale,
                         .offset = op->unit_offset ? 1.0f : 0.0f};
    cf_gpu_buf *bufs[] = {w.buf, bias.buf, op->x.buf, op->y.buf};
    ocl_reads(g, stream, op->x);
    LAUNCH(g, stream, norm, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}

void ocl_op_rope(cf_gpu *gpu, cf_stream stream, const cf_op_rope *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_rope_params p = {.units = (uint64_t)op->n_rows * op->n_heads,
                         .x = op->x.off,
                         .cos_sin = op->cos_sin.off,
                         .n_heads = op->n_heads,
                         .n_pairs = op->n_rot / 2,
                         .stride = op->stride,
                         .head_stride = op->head_stride,
                         .half_apart = op->layout == CF_ROPE_HALF};
    cf_gpu_buf *bufs[] = {op->x.buf, op->cos_sin.buf};
    ocl_reads(g, stream, op->x);
    ocl_reads(g, stream, op->cos_sin);
    LAUNCH(g, stream, rope, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->x);
}

void ocl_op_kv_store(cf_gpu *gpu, cf_stream stream, const cf_op_kv_store *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_kv_store_params p = {.units = op->n_rows,
                             .x = op->x.off,
                             .cache = op->cache.off,
                             .rows = op->rows.off,
                             .width = op->width,
                             .x_stride = op->x_stride};
    cf_gpu_buf *bufs[] = {op->x.buf, op->cache.buf, op->rows.buf};
    ocl_reads(g, stream, op->x);
    ocl_reads(g, stream, op->rows);
    LAUNCH(g, stream, kv_store, op->kv_dtype, bufs, &p);
    ocl_writes_after(g, stream, op->cache);
}

void ocl_op_attn_latent(cf_gpu *gpu, cf_stream stream, const cf_op_attn_latent *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_attn_latent_params p = {.units =
                                    (uint64_t)op->n_rows * cf_ceil_div(op->n_heads, OCL_TILE_HEADS),
                                .q_lat = op->q_lat.off,
                                .q_rope = op->q_rope.off,
                                .cache = op->cache.off,
                                .rows = op->rows.off,
                                .y = op->y.off,
                                .cells = op->cells.off,
                                .n_select = op->cells.buf ? op->n_select : 0,
                                .n_heads = op->n_heads,
                                .rank = op->rank,
                                .n_rope = op->n_rope,
                                .q_stride = op->q_stride,
                                .q_head_stride = op->q_head_stride,
                                .scale = op->scale};
    const cf_span in[] = {op->q_lat, op->q_rope, op->cache, op->rows, op->cells};
    cf_gpu_buf *bufs[] = {op->q_lat.buf, op->q_rope.buf, op->cache.buf,
                          op->rows.buf,  op->cells.buf,  op->y.buf};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++)
        ocl_reads(g, stream, in[i]);
    LAUNCH(g, stream, attn_latent, op->kv_dtype, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}

void ocl_op_attn(cf_gpu *gpu, cf_stream stream, const cf_op_attn *op)
{
    ocl_gpu *g = ocl_of(gpu);
    uint64_t groups = cf_ceil_div(op->n_heads / op->n_kv_heads, OCL_TILE_HEADS);
    uint64_t room = 0;
    reads_weight(g, stream, &op->sinks);
    vector_at sinks = vector_get(g, stream, &op->sinks, &room);
    ocl_attn_params p = {.units = op->n_rows * groups * op->n_kv_heads,
                         .q = op->q.off,
                         .k = op->k.off,
                         .v = op->v.off,
                         .rows = op->rows.off,
                         .y = op->y.off,
                         .sharpness = op->sharpness.off,
                         .has_sharpness = op->sharpness.buf != NULL,
                         .sinks = sinks.v,
                         .n_heads = op->n_heads,
                         .n_kv_heads = op->n_kv_heads,
                         .d_k = op->d_k,
                         .d_v = op->d_v,
                         .q_stride = op->q_stride,
                         .window = op->window,
                         .chunk = op->chunk,
                         .scale = op->scale,
                         .cap = op->cap};
    const cf_span in[] = {op->q, op->k, op->v, op->rows, op->sharpness};
    cf_gpu_buf *bufs[] = {op->q.buf, op->k.buf,         op->v.buf, op->rows.buf,
                          sinks.buf, op->sharpness.buf, op->y.buf};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++)
        ocl_reads(g, stream, in[i]);
    LAUNCH(g, stream, attn, op->kv_dtype, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}

/* ---- elements ---- */

void ocl_op_glu(cf_gpu *gpu, cf_stream stream, const cf_op_glu *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_glu_params p = {.units = chunks(g, op->n),
                        .g = op->g.off,
                        .u = op->u.off,
                        .y = op->y.off,
                        .n = op->n,
                        .has_u = op->u.buf != NULL,
                        .act = (uint32_t)op->act.act,
                        .limit = op->act.limit,
                        .alpha = op->act.alpha};
    cf_gpu_buf *bufs[] = {op->g.buf, op->u.buf, op->y.buf};
    ocl_reads(g, stream, op->g);
    ocl_reads(g, stream, op->u);
    LAUNCH(g, stream, glu, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}

void ocl_op_map(cf_gpu *gpu, cf_stream stream, const cf_op_map *op)
{
    ocl_gpu *g = ocl_of(gpu);
    bool two = op->kind == CF_MAP_MUL_SIGMOID || op->kind == CF_MAP_MUL_ROW;
    ocl_map_params p = {.units = op->n_rows * chunks(g, op->width),
                        .a = op->a.off,
                        .b = op->b.off,
                        .y = op->y.off,
                        .kind = (uint32_t)op->kind,
                        .width = op->width,
                        .a_stride = op->a_stride,
                        .b_stride = op->b_stride,
                        .b_step = op->b_width != 1,
                        .y_stride = op->y_stride,
                        .p = op->p,
                        .q = op->q};
    cf_gpu_buf *bufs[] = {op->a.buf, two ? op->b.buf : NULL, op->y.buf};
    ocl_reads(g, stream, op->a);
    if (two)
        ocl_reads(g, stream, op->b);
    LAUNCH(g, stream, map, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}

void ocl_op_add(cf_gpu *gpu, cf_stream stream, const cf_op_add *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_add_params p = {.units = chunks(g, op->n),
                        .a = op->a.off,
                        .b = op->b.off,
                        .y = op->y.off,
                        .n = op->n,
                        .alpha = op->alpha,
                        .beta = op->beta,
                        .has_b = op->b.buf != NULL};
    cf_gpu_buf *bufs[] = {op->a.buf, op->b.buf, op->y.buf};
    ocl_reads(g, stream, op->a);
    ocl_reads(g, stream, op->b);
    LAUNCH(g, stream, add, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}
