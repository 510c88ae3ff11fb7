/* Attention biased by distance. As vk_attention.c. */
#include "gpu/vulkan/vk_ops.h"

/* What attn_bias.comp knows as Params. */
typedef struct bias_push {
    uint64_t q, k, v, rows, y, buckets, state;
    vk_vector bias;
    uint32_t n_heads, q_stride, n_buckets, zero, span, n_span;
    float scale;
    uint32_t unused;
} bias_push;

/* Cells of a dispatch: llvmpipe ends every loop of an invocation, silently, once all of its loops
 * together have made 65,535 rounds, so a CPU device gets them in spans, with a margin. */
static uint32_t bias_span(const vk_gpu *vk, const cf_op_attn_bias *op)
{
    uint32_t wg = group_size(vk);
    uint64_t rounds = tiles(op->d, 8) + 2 * (uint64_t)wg + 1;
    return cpu_class(vk) ? (uint32_t)cf_max_u64(50000 / rounds, 1) * wg : UINT32_MAX;
}

void vk_op_attn_bias(cf_gpu *gpu, cf_stream stream, const cf_op_attn_bias *op)
{
    vk_gpu *vk = vk_of(gpu);
    uint64_t width = (uint64_t)op->n_heads * op->d;
    bias_push push = {.q = span_address(op->q),
                      .k = span_address(op->k),
                      .v = span_address(op->v),
                      .rows = span_address(op->rows),
                      .y = span_address(op->y),
                      .buckets = span_address(op->buckets),
                      .bias = vector_of_elements(&op->bias),
                      .n_heads = op->n_heads,
                      .q_stride = op->q_stride,
                      .n_buckets = op->n_buckets,
                      .zero = op->zero,
                      .n_span = bias_span(vk, op),
                      .scale = op->scale};
    uint32_t aligned = op->d % 8 == 0 && aligned16(push.q) &&
                       aligned_cache(op->kv_dtype, push.k) &&
                       aligned_cache(op->kv_dtype, push.v) && op->q_stride % 4 == 0;
    uint32_t spec[VK_MAX_SPEC] = {group_size(vk), aligned, op->d};
    uint64_t n_cells = op->k.bytes / cf_format_row_bytes(op->kv_dtype, width); /* at most */
    uint32_t step = 32768;                                                     /* rows */
    if (n_cells > push.n_span) {
        push.state = vk_stream_scratch(vk, stream);
        step = (uint32_t)cf_min_u64(step, vk_scratch_bytes(&vk->base.info) / (op->n_heads * 8));
    }
    cf_assert(step > 0);
    for (uint32_t r = 0; r < op->n_rows; r += step) {
        uint32_t n = op->n_rows - r < step ? op->n_rows - r : step;
        for (uint64_t begin = 0; begin < n_cells; begin += push.n_span) {
            if (push.state)
                vk_barrier(gpu, stream);
            push.span = (uint32_t)begin;
            vk_dispatch(vk, stream, VK_SHADER_attn_bias, op->kv_dtype, spec, &push, sizeof push,
                        op->n_heads, n, 1);
        }
        push.q += (uint64_t)n * op->q_stride * 4;
        push.y += n * width * 4;
        push.rows += (uint64_t)n * sizeof(cf_row_info);
    }
}
