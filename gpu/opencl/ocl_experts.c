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
enum { GATE, UP, GATE_BIAS, UP_BIAS, WEIGHTS };

typedef struct expert_weights {
    const cf_weight *of[WEIGHTS];
    int n;
} expert_weights;

/* In mode FIRST up takes the place of gate. */
static expert_weights glu_weights(const cf_expert_work *e, uint32_t mode)
{
    if (mode == OCL_GLU_FIRST)
        return (expert_weights){{&e->up, &e->up, &e->up_bias, &e->up_bias}, 4};
    if (mode == OCL_GLU_SECOND)
        return (expert_weights){{&e->gate, &e->gate, &e->gate_bias, &e->gate_bias}, 4};
    return (expert_weights){{&e->gate, &e->up, &e->gate_bias, &e->up_bias}, 4};
}

static expert_weights down_weights(const cf_expert_work *e)
{
    return (expert_weights){{&e->down, &e->down_bias}, 2};
}

static bool same_buffers(const expert_weights *a, const expert_weights *b)
{
    for (int i = 0; i < a->n; i++)
        if (a->of[i]->span.buf != b->of[i]->span.buf)
            return false;
    return true;
}

/* The experts not yet `done` that share the buffers of the first of them, up to the most of a
 * launch; marks them and reads their weights. Returns how many. */
static uint32_t experts_take(ocl_gpu *g, cf_stream stream, const expert_weights *experts,
                             uint32_t n, bool *done, uint32_t *taken)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n && count < OCL_EXPERTS_PER_LAUNCH; i++) {
        if (done[i] || (count && !same_buffers(&experts[i], &experts[taken[0]])))
            continue;
        done[i] = true;
        taken[count++] = i;
        for (int w = 0; w < experts[i].n; w++)
            reads_weight(g, stream, experts[i].of[w]);
    }
    return count;
}

static void glu_launch(ocl_gpu *g, cf_stream stream, const cf_op_expert_glu *op, uint32_t mode,
                       const expert_weights *experts, const uint32_t *taken, uint32_t count)
{
    const expert_weights *first = &experts[taken[0]];
    const cf_weight *gate = first->of[GATE], *up = first->of[UP];
    uint64_t row_bytes = cf_format_row_bytes(gate->dtype, op->hidden);
    uint64_t both = mode == OCL_GLU_BOTH ? 2 : 1;
    ocl_vector gate_bias = vector(first->of[GATE_BIAS]), up_bias = vector(first->of[UP_BIAS]);
    ocl_expert_glu_params p = {.x = op->x.off,
                               .pairs = op->pairs.off,
                               .weights = op->weights.off,
                               .h = op->h.off,
                               .k = op->k,
                               .hidden = op->hidden,
                               .ffn = op->ffn,
                               .tile_rows =
                                   unit_rows(g, (uint64_t)count * op->ffn, both * row_bytes,
                                             OCL_TILE_ROWS / (uint32_t)both),
                               .mode = mode,
                               .act = (uint32_t)op->act.act,
                               .gate_step = matrix_step(gate),
                               .up_step = matrix_step(up),
                               .has_weights = op->weights.buf != NULL,
                               .gate_bias_format = gate_bias.format,
                               .gate_bias_step = gate_bias.step,
                               .up_bias_format = up_bias.format,
                               .up_bias_step = up_bias.step,
                               .limit = op->act.limit,
                               .alpha = op->act.alpha};
    for (uint32_t i = 0; i < count; i++) {
        const expert_weights *w = &experts[taken[i]];
        const cf_expert_work *e = &op->experts[taken[i]];
        p.experts[i] = (ocl_glu_expert){
            weight_off(w->of[GATE]),   weight_off(w->of[UP]), vector(w->of[GATE_BIAS]).at,
            vector(w->of[UP_BIAS]).at, e->pair_begin,         e->pair_count};
    }
    cf_gpu_buf *bufs[] = {gate->span.buf,
                          up->span.buf,
                          first->of[GATE_BIAS]->span.buf,
                          first->of[UP_BIAS]->span.buf,
                          op->x.buf,
                          op->pairs.buf,
                          op->weights.buf,
                          op->h.buf};
    if (gate->transposed) {
        p.units = count * column_units(g, op->ffn);
        LAUNCH(g, stream, expert_glu_t, gate->dtype, bufs, &p);
    } else {
        p.units = count * cf_ceil_div(op->ffn, p.tile_rows);
        LAUNCH(g, stream, expert_glu, gate->dtype, bufs, &p);
    }
}

static void glu_pass(ocl_gpu *g, cf_stream stream, const cf_op_expert_glu *op, uint32_t mode)
{
    bool done[CF_EXPERTS_PER_OP] = {false};
    expert_weights experts[CF_EXPERTS_PER_OP];
    uint32_t taken[OCL_EXPERTS_PER_LAUNCH], count;
    for (uint32_t i = 0; i < op->n_experts; i++)
        experts[i] = glu_weights(&op->experts[i], mode);
    while ((count = experts_take(g, stream, experts, op->n_experts, done, taken)) > 0)
        glu_launch(g, stream, op, mode, experts, taken, count);
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
    } else if (gate->dtype == up->dtype && !gate->transposed && !up->transposed) {
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

static void down_launch(ocl_gpu *g, cf_stream stream, const cf_op_expert_down *op,
                        const uint32_t *taken, uint32_t count)
{
    const cf_weight *down = &op->experts[taken[0]].down, *bias = &op->experts[taken[0]].down_bias;
    uint64_t row_bytes = cf_format_row_bytes(down->dtype, op->ffn);
    ocl_expert_down_params p = {
        .h = op->h.off,
        .pairs = op->pairs.off,
        .weights = op->weights.off,
        .y = op->out.off,
        .hidden = op->hidden,
        .ffn = op->ffn,
        .tile_rows = unit_rows(g, (uint64_t)count * op->hidden, row_bytes, OCL_TILE_ROWS),
        .down_step = matrix_step(down),
        .has_weights = op->weights.buf != NULL,
        .bias_format = vector(bias).format,
        .bias_step = vector(bias).step};
    for (uint32_t i = 0; i < count; i++) {
        const cf_expert_work *e = &op->experts[taken[i]];
        p.experts[i] = (ocl_down_expert){weight_off(&e->down), vector(&e->down_bias).at,
                                         e->pair_begin, e->pair_count};
    }
    cf_gpu_buf *bufs[] = {down->span.buf, bias->span.buf,  op->h.buf,
                          op->pairs.buf,  op->weights.buf, op->out.buf};
    if (down->transposed) {
        p.units = count * column_units(g, op->hidden);
        LAUNCH(g, stream, expert_down_t, down->dtype, bufs, &p);
    } else {
        p.units = count * cf_ceil_div(op->hidden, p.tile_rows);
        LAUNCH(g, stream, expert_down, down->dtype, bufs, &p);
    }
}

void ocl_op_expert_down(cf_gpu *gpu, cf_stream stream, const cf_op_expert_down *op)
{
    ocl_gpu *g = ocl_of(gpu);
    bool done[CF_EXPERTS_PER_OP] = {false};
    expert_weights experts[CF_EXPERTS_PER_OP];
    uint32_t taken[OCL_EXPERTS_PER_LAUNCH], count;
    for (uint32_t i = 0; i < op->n_experts; i++)
        experts[i] = down_weights(&op->experts[i]);
    ocl_reads(g, stream, op->h);
    ocl_reads(g, stream, op->pairs);
    ocl_reads(g, stream, op->weights);
    while ((count = experts_take(g, stream, experts, op->n_experts, done, taken)) > 0)
        down_launch(g, stream, op, taken, count);
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
