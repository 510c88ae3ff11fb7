/* Attention: storing keys and values, and both kinds of reading them. As vk_ops.c.
 *
 * A long context is cut into spans that several dispatches or work-groups walk; what they leave for
 * each other lies in the stream's scratch. Where a row's spans are cut depends on the device and
 * the sizes of the op, never on the other rows. */
#include "gpu/vulkan/vk_ops.h"

void vk_op_kv_store(cf_gpu *gpu, cf_stream stream, const cf_op_kv_store *op)
{
    struct {
        uint64_t x, cache, rows;
        uint32_t n_rows, width, x_stride;
        uint32_t unused;
    } push = {span_address(op->x),
              span_address(op->cache),
              span_address(op->rows),
              op->n_rows,
              op->width,
              op->x_stride,
              0};
    bool pairs = op->kv_dtype == CF_F16 && op->width % 2 == 0 && push.cache % 4 == 0;
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP, pairs};
    uint32_t per = op->kv_dtype == CF_Q8_0 ? cf_formats[CF_Q8_0].block_values : pairs ? 2 : 1;
    uint64_t items = (uint64_t)op->n_rows * (op->width / per);
    cf_assert(items <= UINT32_MAX);
    dispatch_split(gpu, stream, VK_SHADER_kv_store, op->kv_dtype, spec, &push, sizeof push,
                   tiles(items, FLAT_GROUP), 1);
}

/* llvmpipe ends every loop of an invocation, silently, once all of its loops together have made
 * 65,535 rounds. The cells that it may walk, with a margin, at `rounds` for a tile of them. */
static uint32_t walk_cells(uint64_t rounds, uint32_t tile)
{
    uint64_t n = 50000 / rounds;
    return (uint32_t)(n ? n : 1) * tile;
}

bool vk_test_as_gpu;

/* A GPU wants many short spans, so that one row fills it: as many as there is room for. */
enum { SPAN_CELLS = 512, SPANS_WANTED = 64 };

static uint64_t gpu_span(uint64_t n_cells, uint64_t part_bytes, uint64_t room, uint32_t tile)
{
    uint64_t spans = cf_min_u64(SPANS_WANTED, room / part_bytes);
    uint64_t span = cf_ceil_div(n_cells, spans ? spans : 1);
    return cf_align_up(span > SPAN_CELLS ? span : SPAN_CELLS, tile);
}

/* What attn.glsl knows as Params. */
typedef struct kv_push {
    uint64_t q, k, v, rows, y, parts, sharpness;
    vk_vector sinks;
    uint32_t n_heads, n_kv_heads, kv_first, kv_count;
    uint32_t q_stride, window, chunk, span, n_spans;
    float scale, cap;
    uint32_t unused;
} kv_push;

/* Adds up the parts that the spans of n rows left. */
static void parts_merge(cf_gpu *gpu, cf_stream stream, const kv_push *push, uint32_t d_v,
                        uint32_t heads, uint32_t n)
{
    uint32_t spec[VK_MAX_SPEC] = {FLAT_GROUP, d_v};
    vk_barrier(gpu, stream);
    vk_dispatch(vk_of(gpu), stream, VK_SHADER_attn_merge, CF_F32, spec, push, sizeof *push,
                tiles((uint64_t)heads * d_v, FLAT_GROUP), n, 1);
}

/* ---- a latent cache ---- */

/* What attn_latent.comp knows as Params. */
typedef struct attn_push {
    uint64_t q_lat, q_rope, cache, rows, y, state, cells;
    uint32_t n_heads, q_stride, q_head_stride, span, n_span;
    float scale;
    uint32_t n_select, n_spans;
} attn_push;

/* Cells of a span. A CPU device: what one dispatch may walk, spans going one after the other. A GPU:
 * spans side by side, each with a part of its own. */
static uint32_t attn_span(const vk_gpu *vk, const cf_op_attn_latent *op, uint32_t tile_cells,
                          uint64_t n_cells)
{
    uint32_t group = group_size(vk), tile = group * tile_cells;
    uint64_t rounds = (uint64_t)tiles(op->rank, 8) + tiles(op->n_rope, 8) + 2 * tile + tile_cells +
                      tiles(op->rank, 8 * group) + 1;
    if (cpu_class(vk))
        return walk_cells(rounds, tile);
    uint64_t part_bytes = (op->rank + 2) * (uint64_t)4 * op->n_heads;
    return (uint32_t)gpu_span(n_cells, part_bytes, vk_scratch_bytes(&vk->base.info), tile);
}

/* All cells of n_rows rows. In turn: spans in order, a barrier between them; and one before, where
 * another op may still be at the scratch. Else all at once. */
static void attn_rows(cf_gpu *gpu, cf_stream stream, const cf_op_attn_latent *op,
                      const uint32_t *spec, attn_push *push, uint32_t n_rows, uint64_t n_cells)
{
    uint32_t groups = tiles(op->n_heads, spec[4]);
    bool spread = spec[7] != 0;
    for (uint64_t begin = 0; begin < n_cells; begin += push->n_span) {
        if (push->state)
            vk_barrier(gpu, stream);
        push->span = (uint32_t)begin;
        vk_dispatch(vk_of(gpu), stream, VK_SHADER_attn_latent, op->kv_dtype, spec, push,
                    sizeof *push, groups, n_rows, push->n_spans);
        if (spread)
            break;
    }
    if (!spread)
        return;
    kv_push merge = {.rows = push->rows,
                     .y = push->y,
                     .parts = push->state,
                     .n_heads = op->n_heads,
                     .n_kv_heads = 1,
                     .kv_count = 1,
                     .window = op->cells.buf ? op->n_select : 0,
                     .span = push->n_span,
                     .n_spans = push->n_spans};
    parts_merge(gpu, stream, &merge, op->rank, op->n_heads, n_rows);
}

void vk_op_attn_latent(cf_gpu *gpu, cf_stream stream, const cf_op_attn_latent *op)
{
    vk_gpu *vk = vk_of(gpu);
    uint64_t cell_bytes = cf_format_row_bytes(op->kv_dtype, (uint64_t)op->rank + op->n_rope);
    uint64_t n_cells = op->cache.bytes / cell_bytes; /* at most: the rows' own are on the device */
    if (op->cells.buf)
        n_cells = cf_min_u64(n_cells, op->n_select);
    uint32_t heads = cpu_class(vk) ? 4 : 2, cells = cpu_class(vk) ? 4 : 1;
    if (heads > op->n_heads)
        heads = op->n_heads;
    attn_push push = {.q_lat = span_address(op->q_lat),
                      .q_rope = span_address(op->q_rope),
                      .cache = span_address(op->cache),
                      .rows = span_address(op->rows),
                      .y = span_address(op->y),
                      .cells = span_address(op->cells),
                      .n_select = op->n_select,
                      .n_heads = op->n_heads,
                      .q_stride = op->q_stride,
                      .q_head_stride = op->q_head_stride,
                      .n_span = attn_span(vk, op, cells, n_cells),
                      .n_spans = 1,
                      .scale = op->scale};
    uint32_t aligned = op->rank % 8 == 0 && op->n_rope % 8 == 0 && aligned16(push.q_lat) &&
                       aligned16(push.q_rope) && aligned_cache(op->kv_dtype, push.cache) &&
                       op->q_stride % 4 == 0 && op->q_head_stride % 4 == 0;
    bool spread = !cpu_class(vk) && n_cells > push.n_span;
    uint32_t spec[VK_MAX_SPEC] = {group_size(vk), aligned, op->rank,               op->n_rope,
                                  heads,          cells,   op->cells.buf != NULL, spread};
    uint64_t row_bytes = op->n_heads * (uint64_t)8; /* of scratch */
    uint32_t step = 32768;                          /* rows of a dispatch */
    if (spread) {
        push.n_spans = tiles(n_cells, push.n_span);
        row_bytes = (op->rank + 2) * (uint64_t)4 * op->n_heads * push.n_spans;
    }
    if (n_cells > push.n_span) {
        push.state = vk_stream_scratch(vk, stream);
        step = (uint32_t)cf_min_u64(step, vk_scratch_bytes(&vk->base.info) / row_bytes);
    }
    cf_assert(step > 0);
    for (uint32_t r = 0; r < op->n_rows; r += step) {
        uint32_t n = op->n_rows - r < step ? op->n_rows - r : step;
        attn_rows(gpu, stream, op, spec, &push, n, n_cells);
        uint64_t y_bytes = (uint64_t)n * op->n_heads * op->rank * 4;
        push.q_lat += y_bytes;
        push.y += y_bytes;
        push.q_rope += (uint64_t)n * op->q_stride * 4;
        push.rows += (uint64_t)n * sizeof(cf_row_info);
        push.cells += (uint64_t)n * op->n_select * 4;
    }
}

/* ---- keys and values ---- */

/* How the work is cut: `cells` of an invocation in a tile, `heads` of a work-group, rows and key
 * heads of a dispatch. */
typedef struct kv_cut {
    uint32_t group, cells, heads, rows, kv_heads;
} kv_cut;

/* Cells of a span where the cache holds n_cells: `walk` where a loop must end, else a length that
 * yields many, but not more parts than the scratch takes for one key head. */
static uint32_t kv_span(const vk_gpu *vk, const cf_op_attn *op, const kv_cut *cut, uint64_t n_cells)
{
    uint32_t tile = cut->group * cut->cells, v_blocks = tiles(op->d_v, 8);
    uint32_t slices = v_blocks < cut->group ? cut->group / v_blocks : 1;
    if (cpu_class(vk))
        return walk_cells((uint64_t)tiles(op->d_k, 8) + tile + cut->cells + tiles(tile, slices) + 1,
                          tile);
    uint64_t part_bytes = (op->d_v + 2) * (uint64_t)4 * (op->n_heads / op->n_kv_heads);
    return (uint32_t)gpu_span(n_cells, part_bytes, vk_scratch_bytes(&vk->base.info), tile);
}

/* Dispatches for rows [0, n) and key heads [kv_first, + kv_count) of push. */
static void kv_dispatch(cf_gpu *gpu, cf_stream stream, const cf_op_attn *op, const kv_push *push,
                        const kv_cut *cut, uint32_t aligned, uint32_t n)
{
    vk_gpu *vk = vk_of(gpu);
    uint32_t per_kv = op->n_heads / op->n_kv_heads;
    uint32_t spec[VK_MAX_SPEC] = {cut->group, aligned, op->d_k, op->d_v, cut->heads, cut->cells};
    if (push->parts)
        vk_barrier(gpu, stream); /* the scratch may still be read */
    vk_dispatch(vk, stream, VK_SHADER_attn, op->kv_dtype, spec, push, sizeof *push,
                push->kv_count * tiles(per_kv, cut->heads), n, push->n_spans);
    if (push->parts)
        parts_merge(gpu, stream, push, op->d_v, push->kv_count * per_kv, n);
}

/* Sets spans, parts and what a dispatch takes; -1 with a sticky failure where nothing fits. */
static int kv_plan(vk_gpu *vk, cf_stream stream, const cf_op_attn *op, kv_push *push, kv_cut *cut)
{
    uint32_t per_kv = op->n_heads / op->n_kv_heads;
    uint64_t k_bytes = cf_format_row_bytes(op->kv_dtype, (uint64_t)op->n_kv_heads * op->d_k);
    uint64_t v_bytes = cf_format_row_bytes(op->kv_dtype, (uint64_t)op->n_kv_heads * op->d_v);
    uint64_t n_cells = cf_min_u64(op->k.bytes / k_bytes, op->v.bytes / v_bytes); /* at most */
    if (op->window)
        n_cells = cf_min_u64(n_cells, op->window);
    if (op->chunk)
        n_cells = cf_min_u64(n_cells, op->chunk);
    push->span = kv_span(vk, op, cut, n_cells);
    push->n_spans = tiles(n_cells, push->span);
    if (push->n_spans == 1)
        return 0;
    uint64_t kv_bytes = (uint64_t)push->n_spans * per_kv * (op->d_v + 2) * 4;
    uint64_t fit = vk_scratch_bytes(&vk->base.info) / kv_bytes;
    if (fit == 0) {
        cf_err cause = {0};
        CF_FAIL(
            &cause, CF_ELIMIT,
            "attention over %llu cells by %u heads of %u needs %llu bytes of scratch, there are "
            "%llu",
            (unsigned long long)n_cells, per_kv, op->d_v, (unsigned long long)kv_bytes,
            (unsigned long long)vk_scratch_bytes(&vk->base.info));
        return vk_fail(vk, &cause);
    }
    push->parts = vk_stream_scratch(vk, stream);
    cut->kv_heads = (uint32_t)cf_min_u64(fit, op->n_kv_heads);
    cut->rows = (uint32_t)cf_min_u64(fit / cut->kv_heads, cut->rows);
    return 0;
}

void vk_op_attn(cf_gpu *gpu, cf_stream stream, const cf_op_attn *op)
{
    vk_gpu *vk = vk_of(gpu);
    uint32_t per_kv = op->n_heads / op->n_kv_heads;
    vk_decoded vectors = {gpu, stream, 0};
    kv_push push = {.q = span_address(op->q),
                    .k = span_address(op->k),
                    .v = span_address(op->v),
                    .rows = span_address(op->rows),
                    .y = span_address(op->y),
                    .sharpness = span_address(op->sharpness),
                    .sinks = vk_vector_plain(&vectors, &op->sinks),
                    .n_heads = op->n_heads,
                    .n_kv_heads = op->n_kv_heads,
                    .q_stride = op->q_stride,
                    .window = op->window,
                    .chunk = op->chunk,
                    .scale = op->scale,
                    .cap = op->cap};
    kv_cut cut = {.group = group_size(vk),
                  .cells = cpu_class(vk) ? 4 : 1,
                  .heads = tiles(per_kv, tiles(per_kv, 4)), /* alike, at most 4 */
                  .rows = 32768,
                  .kv_heads = op->n_kv_heads};
    if (kv_plan(vk, stream, op, &push, &cut) < 0)
        return;
    vk_vectors_ready(&vectors);
    uint32_t aligned = op->d_k % 8 == 0 && op->d_v % 8 == 0 && aligned16(push.q) &&
                       aligned_cache(op->kv_dtype, push.k) &&
                       aligned_cache(op->kv_dtype, push.v) && op->q_stride % 4 == 0;
    for (uint32_t r = 0; r < op->n_rows; r += cut.rows) {
        uint32_t n = (uint32_t)cf_min_u64(op->n_rows - r, cut.rows);
        for (uint32_t kv = 0; kv < op->n_kv_heads; kv += cut.kv_heads) {
            push.kv_first = kv;
            push.kv_count = (uint32_t)cf_min_u64(op->n_kv_heads - kv, cut.kv_heads);
            kv_dispatch(gpu, stream, op, &push, &cut, aligned, n);
        }
        push.q += (uint64_t)n * op->q_stride * 4;
        push.sharpness += push.sharpness ? (uint64_t)n * 4 : 0;
        push.y += (uint64_t)n * op->n_heads * op->d_v * 4;
        push.rows += (uint64_t)n * sizeof(cf_row_info);
    }
}
