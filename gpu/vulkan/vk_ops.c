/* Ops: each becomes push constants (the Params block of its shader, same members in the same
 * order), specialisation constants and a grid. Nothing here waits or fails: see vk_fail().
 * Attention is in vk_attention.c.
 *
 * Determinism: group sizes and tiles depend on the kind of device and on the op's shape alone;
 * how many rows share a tile changes which work-group computes a result, never its bits. */
#include "gpu/vulkan/vk_ops.h"

/* ---- matrices ---- */

static void linear_dispatch(cf_gpu *gpu, cf_stream stream, const cf_op_linear *op)
{
    vk_gpu *vk = vk_of(gpu);
    vk_decoded vectors = {gpu, stream, 0};
    struct {
        uint64_t w, x, y, grid;
        vk_vector bias;
        vk_scales scales;
        uint32_t w_step, w_gap, rows, cols, n_rows, x_stride, y_stride, accumulate;
        float scale;
        uint32_t unused;
    } push = {.w = weight_address(&op->w),
              .x = span_address(op->x),
              .y = span_address(op->y),
              .grid = vk_grid(vk, stream, op->w.dtype),
              .bias = vk_vector_plain(&vectors, &op->bias),
              .scales = outer_scales(&op->w),
              .w_step = matrix_step(&op->w),
              .w_gap = matrix_gap(&op->w),
              .rows = op->w.rows,
              .cols = op->w.cols,
              .n_rows = op->n_rows,
              .x_stride = op->x_stride,
              .y_stride = op->y_stride,
              .accumulate = op->accumulate,
              .scale = op->scale};
    vk_tile t = tile_of(vk, &op->w, op->n_rows);
    uint32_t aligned = aligned_rows(&op->w, push.x, op->x_stride, 0, op->x_q8);
    uint32_t spec[VK_MAX_SPEC] = {tile_class(vk)->group, aligned, t.outputs,           t.rows,
                                  op->w.transposed,      t.parts, scales_kind(&op->w), op->x_q8,
                                  matrix_gap(&op->w) > 1, 0,     0,                   t.many};
    vk_vectors_ready(&vectors);
    enum vk_shader shader =
        vk_dot_shader(vk, VK_SHADER_linear, VK_SHADER_linear_i8, &op->w, op->x_q8);
    dispatch_split(gpu, stream, shader, op->w.dtype, spec, &push, sizeof push,
                   tiles(op->w.rows, t.outputs), tiles(op->n_rows, t.rows));
}

/* A bias in blocks that is larger than the room for it goes in runs of outputs. */
void vk_op_linear(cf_gpu *gpu, cf_stream stream, const cf_op_linear *op)
{
    uint32_t most = (uint32_t)(vk_vectors_bytes(&gpu->info) / 4), rows = op->w.rows;
    if (!vk_vector_in_blocks(&op->bias) || rows <= most) {
        linear_dispatch(gpu, stream, op);
        return;
    }
    for (uint32_t o = 0; o < rows; o += most) {
        cf_op_linear part = *op;
        part.w.rows = part.bias.cols = rows - o < most ? rows - o : most;
        part.w.row_first += o * (op->w.row_step ? op->w.row_step : 1);
        if (op->w.transposed)
            part.w.stride = matrix_step(&op->w);
        part.bias.span.off += cf_format_row_bytes(op->bias.dtype, o);
        part.y.off += (uint64_t)o * 4;
        linear_dispatch(gpu, stream, &part);
    }
}

void vk_op_head_linear(cf_gpu *gpu, cf_stream stream, const cf_op_head_linear *op)
{
    vk_gpu *vk = vk_of(gpu);
    struct {
        uint64_t w, x, y, grid;
        vk_scales scales;
        uint32_t cols, n_rows, head_rows, row_off, n_sub;
        uint32_t x_stride, x_head_stride, y_stride, y_head_stride, unused;
    } push = {weight_address(&op->w),
              span_address(op->x),
              span_address(op->y),
              vk_grid(vk, stream, op->w.dtype),
              outer_scales(&op->w),
              op->w.cols,
              op->n_rows,
              op->head_rows,
              op->row_off,
              op->n_sub,
              op->x_stride,
              op->x_head_stride,
              op->y_stride,
              op->y_head_stride,
              0};
    if (op->transposed) {
        uint32_t unit = format_unit(op->w.dtype), wg = group_size(vk);
        uint32_t t = tile_rows(vk, op->n_rows), most = 64 / unit; /* sums of an invocation */
        t = t < most ? t : most;
        uint32_t spec[VK_MAX_SPEC] = {wg, aligned_matrix(&op->w), t, scales_kind(&op->w)};
        vk_dispatch(vk, stream, VK_SHADER_head_linear_t, op->w.dtype, spec, &push, sizeof push,
                    tiles(op->w.cols, wg * unit), op->n_heads, tiles(op->n_rows, t));
        return;
    }
    vk_tile t = tile_of(vk, &op->w, op->n_rows);
    uint32_t aligned = aligned_rows(&op->w, push.x, op->x_stride, op->x_head_stride, false);
    uint32_t spec[VK_MAX_SPEC] = {tile_class(vk)->group, aligned, t.outputs, t.rows, 0, t.parts,
                                  scales_kind(&op->w), 0, 0, 0, 0, t.many};
    vk_dispatch(vk, stream, VK_SHADER_head_linear, op->w.dtype, spec, &push, sizeof push,
                tiles(op->n_sub, t.outputs), op->n_heads, tiles(op->n_rows, t.rows));
}

/* ids 0: row r of the table. */
static void get_rows_dispatch(cf_gpu *gpu, cf_stream stream, const cf_weight *table, uint64_t ids,
                              uint64_t y, uint32_t n_rows, uint32_t y_stride, float scale)
{
    struct {
        uint64_t table, ids, y, grid;
        uint32_t n_rows, cols, y_stride, row_step;
        float scale;
        uint32_t unused;
    } push = {weight_address(table),
              ids,
              y,
              vk_grid(vk_of(gpu), stream, table->dtype),
              n_rows,
              table->cols,
              y_stride,
              matrix_step(table),
              scale,
              0};
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP, aligned_matrix(table)};
    uint64_t units = (uint64_t)n_rows * tiles(table->cols, format_unit(table->dtype));
    cf_assert(units <= UINT32_MAX);
    dispatch_split(gpu, stream, VK_SHADER_get_rows, table->dtype, spec, &push, sizeof push,
                   tiles(units, FLAT_GROUP), 1);
}

void vk_op_get_rows(cf_gpu *gpu, cf_stream stream, const cf_op_get_rows *op)
{
    get_rows_dispatch(gpu, stream, &op->table, span_address(op->ids), span_address(op->y),
                      op->n_rows, op->y_stride, op->scale);
}

void vk_rows_decode(cf_gpu *gpu, cf_stream stream, const cf_weight *w, VkDeviceAddress y)
{
    get_rows_dispatch(gpu, stream, w, 0, y, w->rows, w->cols, 1.0f);
}

/* ---- rows ---- */

/* Enough invocations for a whole row at once, as far as the device has them. */
static uint32_t norm_group(const vk_gpu *vk, uint32_t width)
{
    if (cpu_class(vk))
        return CPU_GROUP;
    uint32_t most = vk->props.limits.maxComputeWorkGroupInvocations, wg = GPU_GROUP;
    while (wg < 256 && wg < width && wg * 2 <= most)
        wg *= 2;
    return wg;
}

void vk_op_norm(cf_gpu *gpu, cf_stream stream, const cf_op_norm *op)
{
    vk_decoded vectors = {gpu, stream, 0};
    struct {
        uint64_t x, y;
        vk_vector w, bias;
        uint32_t n_rows, n_heads, width, x_stride, x_head_stride, y_stride, y_head_stride;
        uint32_t w_head_step, bias_head_step;
        float eps, scale, offset;
    } push = {.x = span_address(op->x),
              .y = span_address(op->y),
              .w = vk_vector_plain(&vectors, &op->w),
              .bias = vk_vector_plain(&vectors, &op->bias),
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
    vk_vectors_ready(&vectors);
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
