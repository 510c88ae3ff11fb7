/* Ops of routed experts, as ocl_ops.c.
 *
 * Weights of several experts lie in different buffers, and a kernel sees only those it is given:
 * experts whose matrices share buffers run as one launch, up to OCL_EXPERTS_PER_LAUNCH of them. As
 * ops.h has it, all experts of an op are laid out as the first. */
#include "gpu/opencl/ocl_ops.h"

void ocl_op_route(cf_gpu *gpu, cf_stream stream, const cf_op_route *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_route_params p = {.units = op->n_rows,
                          .logits = op->logits.off,
                          .bias = op->bias.off,
                          .ids = op->ids.off,
                          .weights = op->weights.off,
                          .host_ids = op->host_ids.off,
                          .host_weights = op->host_weights.off,
                          .n = op->n,
                          .k = op->k,
                          .has_bias = op->bias.buf != NULL,
                          .sigmoid = op->score == CF_SCORE_SIGMOID,
                          .renormalise = op->renormalise,
                          .scale = op->scale,
                          .n_groups = op->n_groups,
                          .top_groups = op->top_groups,
                          .top_two = op->group_score == CF_GROUP_TOP2,
                          .mixer = op->score == CF_SCORE_SPARSEMIXER,
                          .tolerance = 2.0f * op->jitter};
    cf_gpu_buf *bufs[] = {op->logits.buf,  op->bias.buf,     op->ids.buf,
                          op->weights.buf, op->host_ids.buf, op->host_weights.buf};
    const cf_span out[] = {op->ids, op->weights, op->host_ids, op->host_weights};
    uint64_t bytes = (uint64_t)op->n_rows * op->k * 4;
    ocl_reads(g, stream, op->logits);
    ocl_reads(g, stream, op->bias);
    LAUNCH(g, stream, route, CF_F32, bufs, &p);
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        ocl_writes_after(g, stream, cf_span_sub(out[i], 0, bytes));
}

/* The weights of an expert that a launch reads; the absent ones have no buffer. */
typedef struct expert_weights {
    const cf_weight *w[2], *bias[2];
    uint32_t pair_begin, pair_count;
} expert_weights;

/* Those that a pass of gate and up reads; in mode FIRST up takes the place of gate. */
static expert_weights glu_weights(const cf_expert_work *e, uint32_t mode)
{
    static const cf_weight none;
    expert_weights w = {{&e->gate, &none}, {&e->gate_bias, &none}, e->pair_begin, e->pair_count};
    if (mode == OCL_GLU_FIRST) {
        w.w[0] = &e->up;
        w.bias[0] = &e->up_bias;
    } else if (mode == OCL_GLU_BOTH) {
        w.w[1] = &e->up;
        w.bias[1] = &e->up_bias;
    }
    return w;
}

static expert_weights down_weights(const cf_expert_work *e)
{
    static const cf_weight none;
    return (expert_weights){
        {&e->down, &none}, {&e->down_bias, &none}, e->pair_begin, e->pair_count};
}

static bool same_buffers(const expert_weights *a, const expert_weights *b)
{
    for (int m = 0; m < 2; m++)
        if (a->w[m]->span.buf != b->w[m]->span.buf || a->w[m]->scales.buf != b->w[m]->scales.buf ||
            a->bias[m]->span.buf != b->bias[m]->span.buf)
            return false;
    return true;
}

/* Experts that one launch takes: those whose vectors, if in blocks, have room. */
static uint32_t launch_limit(const expert_weights *e)
{
    uint64_t blocks = 0;
    for (int m = 0; m < 2; m++)
        if (e->bias[m]->span.buf && cf_formats[e->bias[m]->dtype].block_values > 1)
            blocks += cf_align_up(e->bias[m]->cols, 4);
    uint64_t most = blocks ? cf_max_u64(1, OCL_VECTOR_FLOATS / blocks) : OCL_EXPERTS_PER_LAUNCH;
    return (uint32_t)cf_min_u64(most, OCL_EXPERTS_PER_LAUNCH);
}

/* The experts not yet `done` that share the buffers of the first of them, up to the most of a
 * launch; marks them and reads their weights. Returns how many. */
static uint32_t experts_take(ocl_gpu *g, cf_stream stream, const expert_weights *experts,
                             uint32_t n, bool *done, const expert_weights **taken)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n && count < launch_limit(&experts[i]); i++) {
        if (done[i] || (count && !same_buffers(&experts[i], taken[0])))
            continue;
        done[i] = true;
        taken[count++] = &experts[i];
        for (int m = 0; m < 2; m++) {
            reads_weight(g, stream, experts[i].w[m]);
            reads_weight(g, stream, experts[i].bias[m]);
        }
    }
    return count;
}

/* Fills the jobs and what they share; bufs: those of the kernel `product`. */
static void product_jobs(ocl_gpu *g, cf_stream stream, ocl_product_params *p,
                         const expert_weights *const *taken, uint32_t count, cf_gpu_buf **bufs)
{
    const expert_weights *first = taken[0];
    bool up = first->w[1]->span.buf != NULL;
    uint64_t room = 0;
    product_shape(g, p, first->w[0], up ? first->w[1] : NULL, count);
    p->by_table = 1;
    for (uint32_t i = 0; i < count; i++) {
        ocl_product_job *job = &p->jobs[i];
        *job = (ocl_product_job){.begin = taken[i]->pair_begin, .count = taken[i]->pair_count};
        for (int m = 0; m <= (int)up; m++) {
            const cf_weight *w = taken[i]->w[m], *bias = taken[i]->bias[m];
            vector_at at = vector_get(g, stream, bias, &room);
            bool in_place = at.buf == bias->span.buf && at.buf;
            job->w[m] = weight_place(w);
            job->scales[m] = scales_place(w);
            job->bias[m] = place_of(in_place ? bias->span.off : at.v.at);
            p->bias[m] = in_place ? at.v.at - bias->span.off : 0;
            p->bias_format[m] = at.v.format;
            p->bias_step[m] = at.v.step;
            bufs[m] = w->span.buf;
            bufs[2 + m] = at.buf;
            bufs[4 + m] = w->scales.buf;
        }
    }
}

static void glu_columns(ocl_gpu *g, cf_stream stream, const cf_op_expert_glu *op, uint32_t mode,
                        const expert_weights *const *taken, uint32_t count)
{
    const cf_weight *gate = taken[0]->w[0];
    uint64_t room = 0;
    ocl_expert_glu_t_params p = {.units = count * column_units(g, op->ffn),
                                 .x = op->x.off,
                                 .pairs = op->pairs.off,
                                 .weights = op->weights.off,
                                 .h = op->h.off,
                                 .k = op->k,
                                 .hidden = op->hidden,
                                 .ffn = op->ffn,
                                 .mode = mode,
                                 .act = (uint32_t)op->act.act,
                                 .stride = matrix_stride(gate),
                                 .step = row_step(gate),
                                 .has_weights = op->weights.buf != NULL,
                                 .x_q8 = op->x_q8,
                                 .limit = op->act.limit,
                                 .alpha = op->act.alpha};
    cf_gpu_buf *bufs[] = {gate->span.buf,  NULL,     op->x.buf, op->pairs.buf,
                          op->weights.buf, op->h.buf};
    for (uint32_t i = 0; i < count; i++) {
        vector_at bias = vector_get(g, stream, taken[i]->bias[0], &room);
        p.experts[i] = (ocl_column_expert){weight_off(taken[i]->w[0]), bias.v.at,
                                           taken[i]->pair_begin, taken[i]->pair_count};
        p.bias_format = bias.v.format;
        p.bias_step = bias.v.step;
        bufs[1] = bias.buf;
    }
    LAUNCH(g, stream, expert_glu_t, gate->dtype, bufs, &p);
}

static void glu_products(ocl_gpu *g, cf_stream stream, const cf_op_expert_glu *op, uint32_t mode,
                         const expert_weights *const *taken, uint32_t count)
{
    ocl_product_params p = {.x = op->x.off,
                            .y = op->h.off,
                            .pairs = op->pairs.off,
                            .weights = op->weights.off,
                            .x_stride = op->hidden,
                            .y_stride = op->ffn,
                            .x_per_pair = op->k,
                            .has_weights = op->weights.buf != NULL,
                            .mode = mode,
                            .act = (uint32_t)op->act.act,
                            .x_q8 = op->x_q8,
                            .scale = 1.0f,
                            .limit = op->act.limit,
                            .alpha = op->act.alpha};
    cf_gpu_buf *bufs[] = {
        NULL, NULL, NULL, NULL, NULL, NULL, op->x.buf, op->pairs.buf, op->weights.buf, op->h.buf};
    product_jobs(g, stream, &p, taken, count, bufs);
    LAUNCH(g, stream, product, taken[0]->w[0]->dtype, bufs, &p);
}

static void glu_pass(ocl_gpu *g, cf_stream stream, const cf_op_expert_glu *op, uint32_t mode)
{
    bool done[CF_EXPERTS_PER_OP] = {false};
    expert_weights experts[CF_EXPERTS_PER_OP];
    const expert_weights *taken[OCL_EXPERTS_PER_LAUNCH];
    uint32_t count;
    for (uint32_t i = 0; i < op->n_experts; i++)
        experts[i] = glu_weights(&op->experts[i], mode);
    while ((count = experts_take(g, stream, experts, op->n_experts, done, taken)) > 0)
        if (taken[0]->w[0]->transposed)
            glu_columns(g, stream, op, mode, taken, count);
        else
            glu_products(g, stream, op, mode, taken, count);
}

/* One pass over both: the same format, and outer scales of one form. */
static bool go_together(const cf_weight *gate, const cf_weight *up)
{
    bool same_scales = gate->scale_rows == up->scale_rows;
    if (gate->scale_rows && same_scales)
        same_scales = gate->scale_cols == up->scale_cols && gate->scale_format == up->scale_format;
    return gate->dtype == up->dtype && !gate->transposed && !up->transposed && same_scales;
}

/* Gate and up together where one kernel reads both; else up goes through h. */
void ocl_op_expert_glu(cf_gpu *gpu, cf_stream stream, const cf_op_expert_glu *op)
{
    ocl_gpu *g = ocl_of(gpu);
    if (op->n_experts == 0)
        return;
    const cf_weight *gate = &op->experts[0].gate, *up = &op->experts[0].up;
    ocl_reads(g, stream, op->x);
    ocl_reads(g, stream, op->pairs);
    ocl_reads(g, stream, op->weights);
    if (!up->span.buf) {
        glu_pass(g, stream, op, OCL_GLU_ALONE);
    } else if (go_together(gate, up)) {
        glu_pass(g, stream, op, OCL_GLU_BOTH);
    } else {
        glu_pass(g, stream, op, OCL_GLU_FIRST);
        glu_pass(g, stream, op, OCL_GLU_SECOND);
    }
    for (uint32_t i = 0; i < op->n_experts; i++) {
        uint64_t row = (uint64_t)op->ffn * 4;
        ocl_writes_after(
            g, stream,
            cf_span_sub(op->h, op->experts[i].pair_begin * row, op->experts[i].pair_count * row));
    }
}

static void down_columns(ocl_gpu *g, cf_stream stream, const cf_op_expert_down *op,
                         const expert_weights *const *taken, uint32_t count)
{
    const cf_weight *down = taken[0]->w[0];
    uint64_t room = 0;
    ocl_expert_down_t_params p = {.units = count * column_units(g, op->hidden),
                                  .h = op->h.off,
                                  .pairs = op->pairs.off,
                                  .weights = op->weights.off,
                                  .y = op->out.off,
                                  .hidden = op->hidden,
                                  .ffn = op->ffn,
                                  .stride = matrix_stride(down),
                                  .step = row_step(down),
                                  .has_weights = op->weights.buf != NULL,
                                  .x_q8 = op->x_q8};
    cf_gpu_buf *bufs[] = {down->span.buf,  NULL,       op->h.buf, op->pairs.buf,
                          op->weights.buf, op->out.buf};
    for (uint32_t i = 0; i < count; i++) {
        vector_at bias = vector_get(g, stream, taken[i]->bias[0], &room);
        p.experts[i] = (ocl_column_expert){weight_off(taken[i]->w[0]), bias.v.at,
                                           taken[i]->pair_begin, taken[i]->pair_count};
        p.bias_format = bias.v.format;
        p.bias_step = bias.v.step;
        bufs[1] = bias.buf;
    }
    LAUNCH(g, stream, expert_down_t, down->dtype, bufs, &p);
}

static void down_products(ocl_gpu *g, cf_stream stream, const cf_op_expert_down *op,
                          const expert_weights *const *taken, uint32_t count)
{
    ocl_product_params p = {.x = op->h.off,
                            .y = op->out.off,
                            .pairs = op->pairs.off,
                            .weights = op->weights.off,
                            .x_stride = op->ffn,
                            .y_stride = op->hidden,
                            .y_by_pair = 1,
                            .has_weights = op->weights.buf != NULL,
                            .mode = OCL_PRODUCT_DOWN,
                            .x_q8 = op->x_q8,
                            .scale = 1.0f};
    cf_gpu_buf *bufs[] = {
        NULL, NULL, NULL, NULL, NULL, NULL, op->h.buf, op->pairs.buf, op->weights.buf, op->out.buf};
    product_jobs(g, stream, &p, taken, count, bufs);
    LAUNCH(g, stream, product, taken[0]->w[0]->dtype, bufs, &p);
}

void ocl_op_expert_down(cf_gpu *gpu, cf_stream stream, const cf_op_expert_down *op)
{
    ocl_gpu *g = ocl_of(gpu);
    bool done[CF_EXPERTS_PER_OP] = {false};
    expert_weights experts[CF_EXPERTS_PER_OP];
    const expert_weights *taken[OCL_EXPERTS_PER_LAUNCH];
    uint32_t count;
    for (uint32_t i = 0; i < op->n_experts; i++)
        experts[i] = down_weights(&op->experts[i]);
    ocl_reads(g, stream, op->h);
    ocl_reads(g, stream, op->pairs);
    ocl_reads(g, stream, op->weights);
    while ((count = experts_take(g, stream, experts, op->n_experts, done, taken)) > 0)
        if (taken[0]->w[0]->transposed)
            down_columns(g, stream, op, taken, count);
        else
            down_products(g, stream, op, taken, count);
    ocl_writes_after(g, stream, op->out);
}

void ocl_op_combine(cf_gpu *gpu, cf_stream stream, const cf_op_combine *op)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_combine_params p = {.units = op->n_rows * chunks(g, op->hidden),
                            .outs = op->out.off,
                            .ids = op->ids.off,
                            .weights = op->weights.off,
                            .x = op->x.off,
                            .y = op->y.off,
                            .k = op->k,
                            .hidden = op->hidden,
                            .n_routed = op->n_routed};
    const cf_span in[] = {op->out, op->ids, op->weights, op->x};
    cf_gpu_buf *bufs[] = {op->out.buf, op->ids.buf, op->weights.buf, op->x.buf, op->y.buf};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++)
        ocl_reads(g, stream, in[i]);
    LAUNCH(g, stream, combine, CF_F32, bufs, &p);
    ocl_writes_after(g, stream, op->y);
}
