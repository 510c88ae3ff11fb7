/* Ops of attention with a state of fixed size. As vk_ops.c. */
#include "gpu/vulkan/vk_ops.h"

static uint32_t items(uint64_t n)
{
    cf_assert(n <= UINT32_MAX);
    return (uint32_t)n;
}

void vk_op_conv(cf_gpu *gpu, cf_stream stream, const cf_op_conv *op)
{
    uint64_t rows = cf_max_u64(op->n_rows, op->n_taps - 1); /* of outputs, and of the state */
    struct {
        uint64_t x, y, state, runs;
        vk_vector w;
        uint32_t n_channels, n_items, width, n_taps, x_stride, x_head_stride, y_stride;
        uint32_t state_stride;
    } push = {.x = span_address(op->x),
              .y = span_address(op->y),
              .state = span_address(op->state),
              .runs = span_address(op->runs),
              .w = vector_of_elements(&op->w),
              .n_channels = op->n_heads * op->width,
              .n_items = items(rows * op->n_heads * op->width),
              .width = op->width,
              .n_taps = op->n_taps,
              .x_stride = op->x_stride,
              .x_head_stride = op->x_head_stride,
              .y_stride = op->y_stride,
              .state_stride = op->state_stride};
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP, op->silu};
    dispatch_split(gpu, stream, VK_SHADER_conv, CF_F32, spec, &push, sizeof push,
                   tiles(push.n_items, FLAT_GROUP), op->n_runs);
}

void vk_op_state_gates(cf_gpu *gpu, cf_stream stream, const cf_op_state_gates *op)
{
    vk_decoded vectors = {gpu, stream, 0};
    struct {
        uint64_t a, b, decay, beta;
        vk_vector a_log, dt_bias;
        uint32_t n_items, n_heads, stride, group, group_stride;
        uint32_t unused;
    } push = {.a = span_address(op->a),
              .b = span_address(op->b),
              .decay = span_address(op->decay),
              .beta = span_address(op->beta),
              .a_log = vk_vector_plain(&vectors, &op->a_log),
              .dt_bias = vk_vector_plain(&vectors, &op->dt_bias),
              .n_items = items((uint64_t)op->n_rows * op->n_heads),
              .n_heads = op->n_heads,
              .stride = op->stride,
              .group = op->group,
              .group_stride = op->group_stride};
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP};
    vk_vectors_ready(&vectors);
    dispatch_split(gpu, stream, VK_SHADER_state_gates, CF_F32, spec, &push, sizeof push,
                   tiles(push.n_items, FLAT_GROUP), 1);
}

/* Rows of a run that a dispatch may walk: llvmpipe ends every loop of an invocation, silently, once
 * all of its loops together have made 65,535 rounds; so a CPU device gets them in spans, with a
 * margin. */
static uint32_t state_span(const vk_gpu *vk, const cf_op_attn_state *op)
{
    uint64_t rows = 50000 / (2 * (uint64_t)op->d_k + 1);
    return vk->base.info.cpu ? (uint32_t)cf_max_u64(rows, 1) : UINT32_MAX;
}

void vk_op_attn_state(cf_gpu *gpu, cf_stream stream, const cf_op_attn_state *op)
{
    vk_gpu *vk = vk_of(gpu);
    struct {
        uint64_t q, k, v, decay, beta, y, state, runs;
        uint32_t n_heads, per_k_head, d_v, stride, k_head_stride, v_head_stride, decay_stride;
        uint32_t span, n_span;
        uint32_t n_k_heads;
    } push = {.q = span_address(op->q),
              .k = span_address(op->k),
              .v = span_address(op->v),
              .decay = span_address(op->decay),
              .beta = span_address(op->beta),
              .y = span_address(op->y),
              .state = span_address(op->state),
              .runs = span_address(op->runs),
              .n_heads = op->n_heads,
              .per_k_head = op->k_tiled ? 1 : op->n_heads / op->n_k_heads,
              .d_v = op->d_v,
              .stride = op->stride,
              .k_head_stride = op->k_head_stride,
              .v_head_stride = op->v_head_stride,
              .decay_stride = op->decay_stride,
              .n_span = state_span(vk, op),
              .n_k_heads = op->n_k_heads};
    uint32_t spec[VK_MAX_SPEC] = {group_size(vk), op->d_k, op->beta.buf != NULL};
    for (uint64_t begin = 0; begin < op->n_rows; begin += push.n_span) {
        if (begin)
            vk_barrier(gpu, stream);
        push.span = (uint32_t)begin;
        vk_dispatch(vk, stream, VK_SHADER_attn_state, CF_F32, spec, &push, sizeof push,
                    tiles(op->d_v, group_size(vk)), op->n_heads, op->n_runs);
    }
}

void vk_op_gate(cf_gpu *gpu, cf_stream stream, const cf_op_gate *op)
{
    struct {
        uint64_t g, y;
        uint32_t n_items, n_heads, width, g_stride, g_head_stride, y_stride, y_head_stride;
        uint32_t unused;
    } push = {.g = span_address(op->g),
              .y = span_address(op->y),
              .n_items = items((uint64_t)op->n_rows * op->n_heads * op->width),
              .n_heads = op->n_heads,
              .width = op->width,
              .g_stride = op->g_stride,
              .g_head_stride = op->g_head_stride,
              .y_stride = op->y_stride,
              .y_head_stride = op->y_head_stride};
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP, op->silu};
    dispatch_split(gpu, stream, VK_SHADER_gate, CF_F32, spec, &push, sizeof push,
                   tiles(push.n_items, FLAT_GROUP), 1);
}
