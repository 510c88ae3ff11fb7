/* Ops that choose the cells a row looks at. As vk_ops.c. */
#include "gpu/vulkan/vk_ops.h"

enum { SELECT_GROUP = 256, MAX_GRID = 32768 }; /* rows of a dispatch */

void vk_op_index_score(cf_gpu *gpu, cf_stream stream, const cf_op_index_score *op)
{
    vk_gpu *vk = vk_of(gpu);
    struct {
        uint64_t q, w, k, rows, scores;
        uint32_t n_heads, q_stride, w_stride, score_stride;
        float scale;
        uint32_t unused;
    } push = {.q = span_address(op->q),
              .w = span_address(op->w),
              .k = span_address(op->k),
              .rows = span_address(op->rows),
              .scores = span_address(op->scores),
              .n_heads = op->n_heads,
              .q_stride = op->q_stride,
              .w_stride = op->w_stride,
              .score_stride = op->score_stride,
              .scale = op->scale};
    uint32_t aligned = op->d % 8 == 0 && aligned16(push.q) &&
                       aligned_cache(op->kv_dtype, push.k) && op->q_stride % 4 == 0;
    uint32_t spec[VK_MAX_SPEC] = {group_size(vk), aligned, op->d};
    for (uint32_t r = 0; r < op->n_rows; r += MAX_GRID) {
        uint32_t n = (uint32_t)cf_min_u64(op->n_rows - r, MAX_GRID);
        vk_dispatch(vk, stream, VK_SHADER_index_score, op->kv_dtype, spec, &push, sizeof push,
                    tiles(op->max_cells, group_size(vk)), n, 1);
        push.q += (uint64_t)n * op->q_stride * 4;
        push.w += (uint64_t)n * op->w_stride * 4;
        push.rows += (uint64_t)n * sizeof(cf_row_info);
        push.scores += (uint64_t)n * op->score_stride * 4;
    }
}

void vk_op_index_select(cf_gpu *gpu, cf_stream stream, const cf_op_index_select *op)
{
    vk_gpu *vk = vk_of(gpu);
    struct {
        uint64_t scores, rows, cells;
        uint32_t n_rows, k, score_stride;
        uint32_t unused;
    } push = {span_address(op->scores),
              span_address(op->rows),
              span_address(op->cells),
              op->n_rows,
              op->k,
              op->score_stride,
              0};
    uint32_t wg = SELECT_GROUP;
    while (wg > vk->props.limits.maxComputeWorkGroupInvocations)
        wg /= 2;
    uint32_t spec[VK_MAX_SPEC] = {wg};
    dispatch_split(gpu, stream, VK_SHADER_index_select, CF_F32, spec, &push, sizeof push,
                   op->n_rows, 1);
}
