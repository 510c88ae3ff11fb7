/* Ops: each becomes push constants (the Params block of its shader, same members in the same
 * order), specialisation constants and a grid. Nothing here waits or fails: see vk_fail().
 * Attention is in vk_attention.c.
 *
 * Determinism: group sizes and tiles depend on the kind of device and on the op's shape alone;
 * how many rows share a tile changes which work-group computes a result, never its bits. */
#include "gpu/vulkan/vk_ops.h"

/* ---- matrices ---- */

void vk_op_linear(cf_gpu *gpu, cf_stream stream, const cf_op_linear *op)
{
    struct {
        uint64_t w, x, y;
        vk_vector bias;
        uint32_t w_step, rows, cols, n_rows, x_stride, y_stride, accumulate;
        float scale;
    } push = {.w = weight_address(&op->w),
              .x = span_address(op->x),
              .y = span_address(op->y),
              .bias = vector(&op->bias),
              .w_step = matrix_step(&op->w),
              .rows = op->w.rows,
              .cols = op->w.cols,
              .n_rows = op->n_rows,
              .x_stride = op->x_stride,
              .y_stride = op->y_stride,
              .accumulate = op->accumulate,
              .scale = op->scale};
    uint32_t t = tile_rows(vk_of(gpu), op->n_rows);
    uint32_t outputs = tile_outputs(vk_of(gpu), op->w.transposed);
    uint32_t spec[VK_MAX_SPEC] = {group_size(vk_of(gpu)),
                                  aligned_rows(&op->w, push.x, op->x_stride, 0), outputs, t,
                                  op->w.transposed};
    dispatch_split(gpu, stream, VK_SHADER_linear, op->w.dtype, spec, &push, sizeof push,
                   tiles(op->w.rows, outputs), tiles(op->n_rows, t));
}

void vk_op_head_linear(cf_gpu *gpu, cf_stream stream, const cf_op_head_linear *op)
{
    struct {
        uint64_t w, x, y;
        uint32_t w_step, cols, n_rows, head_rows, row_off, n_sub;
        uint32_t x_stride, x_head_stride, y_stride, y_head_stride;
    } push = {weight_address(&op->w), span_address(op->x), span_address(op->y),
              matrix_step(&op->w),    op->w.cols,          op->n_rows,
              op->head_rows,          op->row_off,         op->n_sub,
              op->x_stride,           op->x_head_stride,   op->y_stride,
              op->y_head_stride};
    uint32_t t = tile_rows(vk_of(gpu), op->n_rows), wg = group_size(vk_of(gpu));
    if (op->transposed) {
        uint32_t spec[VK_MAX_SPEC] = {wg, aligned_matrix(&op->w), t};
        vk_dispatch(vk_of(gpu), stream, VK_SHADER_head_linear_t, op->w.dtype, spec, &push,
                    sizeof push, tiles(op->w.cols, wg * 8), op->n_heads, tiles(op->n_rows, t));
        return;
    }
    uint32_t aligned = aligned_rows(&op->w, push.x, op->x_stride, op->x_head_stride);
    uint32_t outputs = tile_outputs(vk_of(gpu), false);
    uint32_t spec[VK_MAX_SPEC] = {wg, aligned, outputs, t};
    vk_dispatch(vk_of(gpu), stream, VK_SHADER_head_linear, op->w.dtype, spec, &push, sizeof push,
                tiles(op->n_sub, outputs), op->n_heads, tiles(op->n_rows, t));
}

void vk_op_get_rows(cf_gpu *gpu, cf_stream stream, const cf_op_get_rows *op)
{
    struct {
        uint64_t table, ids, y;
        uint32_t n_rows, cols, y_stride, row_step;
        float scale;
        uint32_t unused;
    } push = {weight_address(&op->table),
              span_address(op->ids),
              span_address(op->y),
              op->n_rows,
              op->table.cols,
              op->y_stride,
              matrix_step(&op->table),
              op->scale,
              0};
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP, aligned_matrix(&op->table)};
    uint64_t blocks = (uint64_t)op->n_rows * tiles(op->table.cols, 8);
    cf_assert(blocks <= UINT32_MAX);
    dispatch_split(gpu, stream, VK_SHADER_get_rows, op->table.dtype, spec, &push, sizeof push,
                   tiles(blocks, FLAT_GROUP), 1);
}

/* ---- rows ---- */

/* Enough invocations for a whole row at once, as far as the device has them. */
static uint32_t norm_group(const vk_gpu *vk, uint32_t width)
{
    if (vk->base.info.cpu)
        return CPU_GROUP;
    uint32_t most = vk->props.limits.maxComputeWorkGroupInvocations, wg = GPU_GROUP;
    while (wg < 256 && wg < width && wg * 2 <= most)
        wg *= 2;
    return wg;
}

void vk_op_norm(cf_gpu *gpu, cf_stream stream, const cf_op_norm *op)
{
    struct {
        uint64_t x, y;
        vk_vector w, bias;
        uint32_t n_rows, n_heads, width, x_stride, x_head_stride, y_stride, y_head_stride;
        uint32_t w_head_step, bias_head_step;
        float eps, scale, offset;
    } push = {.x = span_address(op->x),
              .y = span_address(op->y),
              .w = vector(&op->w),
              .bias = vector(&op->bias),
              .n_rows = op->n_rows,
              .n_heads = op->n_heads,
              .width = op->width,
              .x_stride = op->x_stride,
              .x_head_stride = op->x_head_stride,
              .y_stride = op->y_stride,
              .y_head_stride = op->y_head_stride,
              .w_head_step = op->w.cols == op->width ? 0 : op->width,
              .bias_head_step = op->bias.cols == op->width ? 0 : op->width,
              .eps = op->eps,
              .scale = op->scale,
              .offset = op->unit_offset ? 1.0f : 0.0f};
    uint32_t spec[VK_MAX_SPEC] = {norm_group(vk_of(gpu), op->width), op->kind == CF_NORM_LAYER};
    dispatch_split(gpu, stream, VK_SHADER_norm, CF_F32, spec, &push, sizeof push,
                   tiles((uint64_t)op->n_rows * op->n_heads, 1), 1);
}

void vk_op_rope(cf_gpu *gpu, cf_stream stream, const cf_op_rope *op)
{
    struct {
        uint64_t x, cos_sin;
        uint32_t n_rows, n_heads, n_pairs, stride, head_stride;
        uint32_t unused;
    } push = {
        span_address(op->x), span_address(op->cos_sin), op->n_rows, op->n_heads, op->n_rot / 2,
        op->stride,          op->head_stride,           0};
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP, op->layout == CF_ROPE_HALF};
    uint64_t pairs = (uint64_t)op->n_rows * op->n_heads * push.n_pairs;
    cf_assert(pairs <= UINT32_MAX);
    dispatch_split(gpu, stream, VK_SHADER_rope, CF_F32, spec, &push, sizeof push,
                   tiles(pairs, FLAT_GROUP), 1);
}

/* ---- elements ---- */

enum { FLAT_MAX = 1 << 30 }; /* elements of a dispatch: indices stay in 32 bits */

void vk_op_glu(cf_gpu *gpu, cf_stream stream, const cf_op_glu *op)
{
    for (uint64_t done = 0; done < op->n; done += FLAT_MAX) {
        struct {
            uint64_t g, u, y;
            uint32_t n;
            float limit, alpha;
            uint32_t unused;
        } push = {span_address(op->g) + done * 4,
                  op->u.buf ? span_address(op->u) + done * 4 : 0,
                  span_address(op->y) + done * 4,
                  (uint32_t)cf_min_u64(op->n - done, FLAT_MAX),
                  op->act.limit,
                  op->act.alpha,
                  0};
        uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP, op->act.act};
        dispatch_split(gpu, stream, VK_SHADER_glu, CF_F32, spec, &push, sizeof push,
                       tiles(push.n, FLAT_GROUP), 1);
    }
}

void vk_op_map(cf_gpu *gpu, cf_stream stream, const cf_op_map *op)
{
    struct {
        uint64_t a, b, y;
        uint32_t n_rows, width, a_stride, b_stride, b_step, y_stride;
        float p, q;
    } push = {span_address(op->a),
              span_address(op->b),
              span_address(op->y),
              op->n_rows,
              op->width,
              op->a_stride,
              op->b_stride,
              op->b_width != 1,
              op->y_stride,
              op->p,
              op->q};
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP, op->kind};
    uint64_t n = (uint64_t)op->n_rows * op->width;
    cf_assert(n <= UINT32_MAX);
    dispatch_split(gpu, stream, VK_SHADER_map, CF_F32, spec, &push, sizeof push,
                   tiles(n, FLAT_GROUP), 1);
}

void vk_op_add(cf_gpu *gpu, cf_stream stream, const cf_op_add *op)
{
    for (uint64_t done = 0; done < op->n; done += FLAT_MAX) {
        struct {
            uint64_t a, b, y;
            uint32_t n;
            float alpha, beta;
            uint32_t unused;
        } push = {span_address(op->a) + done * 4,
                  op->b.buf ? span_address(op->b) + done * 4 : 0,
                  span_address(op->y) + done * 4,
                  (uint32_t)cf_min_u64(op->n - done, FLAT_MAX),
                  op->alpha,
                  op->beta,
                  0};
        uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP};
        dispatch_split(gpu, stream, VK_SHADER_add, CF_F32, spec, &push, sizeof push,
                       tiles(push.n, FLAT_GROUP), 1);
    }
}

/* ---- experts ---- */

void vk_op_route(cf_gpu *gpu, cf_stream stream, const cf_op_route *op)
{
    vk_gpu *vk = vk_of(gpu);
    struct {
        uint64_t logits, bias, ids, weights, host_ids, host_weights;
        uint32_t n_rows, k, renormalise, n_groups, top_groups, top_two;
        float scale, tolerance;
    } push = {span_address(op->logits),
              span_address(op->bias),
              span_address(op->ids),
              span_address(op->weights),
              span_address(op->host_ids),
              span_address(op->host_weights),
              op->n_rows,
              op->k,
              op->renormalise,
              op->n_groups,
              op->top_groups,
              op->group_score == CF_GROUP_TOP2,
              op->scale,
              2.0f * op->jitter};
    uint32_t wg = group_size(vk);
    uint32_t shared_bytes = 4 * (op->n + 3 * wg + 2 * CF_ROUTE_MAX_K + CF_ROUTE_MAX_GROUPS);
    if (shared_bytes > vk->props.limits.maxComputeSharedMemorySize) {
        cf_err cause = {0};
        CF_FAIL(&cause, CF_ELIMIT,
                "routing over %u experts needs %u bytes of the device's shared memory, it has %u",
                op->n, shared_bytes, vk->props.limits.maxComputeSharedMemorySize);
        vk_fail(vk, &cause);
        return;
    }
    uint32_t spec[VK_MAX_SPEC] = {wg, op->n, op->score == CF_SCORE_SIGMOID,
                                   op->score == CF_SCORE_SPARSEMIXER};
    dispatch_split(gpu, stream, VK_SHADER_route, CF_F32, spec, &push, sizeof push, op->n_rows, 1);
}

static uint32_t most_pairs(const cf_expert_work *experts, uint32_t n)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = experts[i].pair_count > most ? experts[i].pair_count : most;
    return most;
}

/* MODE of expert_glu.comp. */
typedef enum { GLU_BOTH, GLU_ALONE, GLU_FIRST, GLU_SECOND } glu_mode;

/* As ops.h has it, all experts of an op are laid out as the first. */
static void glu_dispatch(cf_gpu *gpu, cf_stream stream, const cf_op_expert_glu *op, glu_mode mode)
{
    struct {
        uint64_t gate, up, gate_bias, up_bias;
        uint32_t pair_begin, pair_count;
    } table[CF_EXPERTS_PER_OP];
    struct {
        uint64_t table, x, pairs, h, weights;
        uint32_t k, hidden, ffn, gate_step, up_step;
        uint32_t gate_bias_dtype, gate_bias_step, up_bias_dtype, up_bias_step;
        float limit, alpha;
        uint32_t unused;
    } push = {.x = span_address(op->x),
              .pairs = span_address(op->pairs),
              .h = span_address(op->h),
              .weights = span_address(op->weights),
              .k = op->k,
              .hidden = op->hidden,
              .ffn = op->ffn,
              .limit = op->act.limit,
              .alpha = op->act.alpha};
    vk_gpu *vk = vk_of(gpu);
    uint32_t aligned = 1;
    const cf_weight *gate = NULL;
    for (uint32_t i = op->n_experts; i-- > 0;) { /* ends with the first, whose layout is kept */
        const cf_expert_work *e = &op->experts[i];
        gate = mode == GLU_FIRST ? &e->up : &e->gate;
        vk_vector gate_bias = vector(mode == GLU_FIRST ? &e->up_bias : &e->gate_bias);
        vk_vector up_bias = vector(&e->up_bias);
        table[i].gate = weight_address(gate);
        table[i].up = weight_address(&e->up);
        table[i].gate_bias = gate_bias.at;
        table[i].up_bias = up_bias.at;
        table[i].pair_begin = e->pair_begin;
        table[i].pair_count = e->pair_count;
        push.gate_step = matrix_step(gate);
        push.up_step = matrix_step(&e->up);
        push.gate_bias_dtype = gate_bias.dtype;
        push.gate_bias_step = gate_bias.step;
        push.up_bias_dtype = up_bias.dtype;
        push.up_bias_step = up_bias.step;
        aligned = aligned && aligned_rows(gate, push.x, op->hidden, 0) &&
                  (mode != GLU_BOTH || aligned_matrix(&e->up));
    }
    push.table = vk_stream_upload(vk, stream, table, op->n_experts * (uint64_t)sizeof table[0]);
    if (push.table == 0)
        return;
    uint32_t most = most_pairs(op->experts, op->n_experts), t = tile_rows(vk, most);
    uint32_t slots = tile_outputs(vk, gate->transposed);
    uint32_t spec[VK_MAX_SPEC] = {group_size(vk),   aligned, slots,      t,
                                  gate->transposed, mode,    op->act.act};
    vk_dispatch(vk, stream, VK_SHADER_expert_glu, gate->dtype, spec, &push, sizeof push,
                tiles(op->ffn, mode == GLU_BOTH ? slots / 2 : slots), op->n_experts,
                tiles(most, t));
}

/* Gate and up together where one shader reads both; else up goes through h. */
void vk_op_expert_glu(cf_gpu *gpu, cf_stream stream, const cf_op_expert_glu *op)
{
    if (op->n_experts == 0)
        return;
    const cf_weight *gate = &op->experts[0].gate, *up = &op->experts[0].up;
    if (!up->span.buf) {
        glu_dispatch(gpu, stream, op, GLU_ALONE);
    } else if (gate->dtype == up->dtype && gate->transposed == up->transposed) {
        glu_dispatch(gpu, stream, op, GLU_BOTH);
    } else {
        glu_dispatch(gpu, stream, op, GLU_FIRST);
        vk_barrier(gpu, stream);
        glu_dispatch(gpu, stream, op, GLU_SECOND);
    }
}

void vk_op_expert_down(cf_gpu *gpu, cf_stream stream, const cf_op_expert_down *op)
{
    struct {
        uint64_t down, bias;
        uint32_t pair_begin, pair_count;
    } table[CF_EXPERTS_PER_OP];
    struct {
        uint64_t table, h, pairs, weights, y;
        uint32_t hidden, ffn, down_step, bias_dtype, bias_step;
        uint32_t unused;
    } push = {.h = span_address(op->h),
              .pairs = span_address(op->pairs),
              .weights = span_address(op->weights),
              .y = span_address(op->out),
              .hidden = op->hidden,
              .ffn = op->ffn};
    if (op->n_experts == 0)
        return;
    const cf_expert_work *first = &op->experts[0];
    uint32_t aligned = 1;
    for (uint32_t i = 0; i < op->n_experts; i++) {
        const cf_expert_work *e = &op->experts[i];
        table[i].down = weight_address(&e->down);
        table[i].bias = vector(&e->down_bias).at;
        table[i].pair_begin = e->pair_begin;
        table[i].pair_count = e->pair_count;
        aligned = aligned && aligned_rows(&e->down, push.h, op->ffn, 0);
    }
    push.down_step = matrix_step(&first->down);
    push.bias_dtype = vector(&first->down_bias).dtype;
    push.bias_step = vector(&first->down_bias).step;
    push.table =
        vk_stream_upload(vk_of(gpu), stream, table, op->n_experts * (uint64_t)sizeof table[0]);
    if (push.table == 0)
        return;
    uint32_t most = most_pairs(op->experts, op->n_experts), t = tile_rows(vk_of(gpu), most);
    uint32_t outputs = tile_outputs(vk_of(gpu), first->down.transposed);
    uint32_t spec[VK_MAX_SPEC] = {group_size(vk_of(gpu)), aligned, outputs, t,
                                  first->down.transposed};
    vk_dispatch(vk_of(gpu), stream, VK_SHADER_expert_down, first->down.dtype, spec, &push,
                sizeof push, tiles(op->hidden, outputs), op->n_experts, tiles(most, t));
}

void vk_op_combine(cf_gpu *gpu, cf_stream stream, const cf_op_combine *op)
{
    struct {
        uint64_t outs, ids, weights, x, y;
        uint32_t n_rows, k, hidden, n_routed;
    } push = {span_address(op->out),
              span_address(op->ids),
              span_address(op->weights),
              span_address(op->x),
              span_address(op->y),
              op->n_rows,
              op->k,
              op->hidden,
              op->n_routed};
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP};
    uint64_t items = (uint64_t)op->n_rows * op->hidden;
    cf_assert(items <= UINT32_MAX);
    dispatch_split(gpu, stream, VK_SHADER_combine, CF_F32, spec, &push, sizeof push,
                   tiles(items, FLAT_GROUP), 1);
}
