/* The ops' front: each op's arguments are asserted, its accesses declared to the hazard tracker
 * (gpu/hazard.h), and it is handed to the backend. What an op computes stands in ops.h.
 *
 * A declaration bounds what the op touches; where ops that the executor runs side by side share a
 * buffer (column slices, pair ranges, expert rows) it is exact, so that no false hazard arises.
 * Threads: as the stream's. */
#include "gpu/ops.h"

#include "gpu/backend.h"
#include "gpu/hazard.h"
#include "runtime/base/align.h"

/* One op being recorded. */
struct call {
    cf_gpu *gpu;
    cf_stream stream;
};

/* ---- ranges ---- */

static struct call call_begin(cf_gpu *gpu, cf_stream stream, const char *name)
{
    cf_assert((unsigned)stream < CF_STREAM_COUNT);
    if (gpu->hazards)
        cf_hazards_op(gpu->hazards, stream, name);
    return (struct call){gpu, stream};
}

/* Asserts that the range (relative to the span) lies in the span and the span in its buffer. */
static void range_assert(const struct call *c, cf_span s, const cf_range *r)
{
    cf_assert(s.buf && s.buf->gpu == c->gpu);
    cf_assert(s.off <= s.buf->bytes && s.bytes <= s.buf->bytes - s.off);
    cf_assert(r->n > 0 && r->outer_n > 0 && r->bytes > 0);
    uint64_t inner, outer, end;
    cf_assert(cf_mul_u64(r->n - 1, r->stride, &inner));
    cf_assert(cf_mul_u64(r->outer_n - 1, r->outer_stride, &outer));
    cf_assert(cf_add_u64(inner, outer, &end) && cf_add_u64(end, r->bytes, &end));
    cf_assert(end <= s.bytes);
}

/* Checks and declares; returns the range with its offset in the buffer. */
static cf_range touch(const struct call *c, cf_span s, cf_range r, cf_access access)
{
    range_assert(c, s, &r);
    r.off += s.off;
    if (c->gpu->hazards)
        cf_hazards_access(c->gpu->hazards, c->stream, s.buf, &r, access);
    return r;
}

/* `rows` rows of `width` 4-byte elements, `stride` elements apart. */
static cf_range touch_rows(const struct call *c, cf_span s, uint32_t rows, uint64_t width,
                           uint64_t stride, cf_access access)
{
    cf_assert(s.off % 4 == 0 && (rows == 1 || stride >= width));
    return touch(c, s, (cf_range){0, width * 4, stride * 4, 0, rows, 1}, access);
}

static cf_range touch_flat(const struct call *c, cf_span s, uint64_t rows, uint64_t width,
                           cf_access access)
{
    uint64_t n;
    cf_assert(s.off % 4 == 0 && cf_mul_u64(rows, width, &n) && n <= UINT64_MAX / 4);
    return touch(c, s, cf_range_plain(0, n * 4), access);
}

/* Rows of heads. What is written must not overlap itself, whichever of the two is outside. */
static cf_range touch_heads(const struct call *c, cf_span s, uint32_t rows, uint32_t heads,
                            uint64_t width, uint64_t stride, uint64_t head_stride, cf_access access)
{
    cf_assert(s.off % 4 == 0 && rows > 0 && heads > 0);
    bool heads_inside = (heads == 1 || head_stride >= width) &&
                        (rows == 1 || stride >= (heads - 1) * head_stride + width);
    bool rows_inside = (rows == 1 || stride >= width) &&
                       (heads == 1 || head_stride >= (rows - 1) * stride + width);
    cf_assert(access == CF_ACCESS_READ || heads_inside || rows_inside);
    return touch(c, s, (cf_range){0, width * 4, head_stride * 4, stride * 4, heads, rows}, access);
}

/* Checks a weight's shape and layout; returns the bytes that it addresses, from the first to the
 * last, relative to its span. Interleaved matrices share what lies between: it is only read. */
static cf_range weight_check(const cf_weight *w)
{
    cf_assert(cf_format_computable(w->dtype) && w->rows > 0 && w->cols > 0);
    cf_assert(w->span.off % 16 == 0);
    uint64_t first = w->row_first, step = w->row_step ? w->row_step : 1, unit, last, begin, end;
    if (w->transposed) {
        uint64_t stride = w->stride ? w->stride : w->rows;
        uint64_t extent = first + (w->rows - 1) * step + 1;
        cf_assert(extent <= stride);
        unit = cf_format_row_bytes(w->dtype, 1);
        cf_assert(cf_mul_u64(w->cols - 1, stride, &last) && cf_add_u64(last, extent, &last));
    } else {
        cf_assert(w->stride == 0);
        unit = cf_format_row_bytes(w->dtype, w->cols);
        cf_assert(cf_mul_u64(w->rows - 1, step, &last));
        cf_assert(cf_add_u64(last, first + 1, &last));
    }
    cf_assert(cf_mul_u64(last, unit, &end) && end <= w->span.bytes);
    begin = first * unit; /* first < last */
    return cf_range_plain(begin, end - begin);
}

/* The outer scales of a weight: the rows of them that its rows need, from the first stored row on.
 */
static void touch_scales(const struct call *c, const cf_weight *w)
{
    cf_format f = w->scale_format;
    cf_assert(f == CF_F32 || f == CF_F16 || f == CF_BF16 || f == CF_F8_E8M0);
    cf_assert(!w->transposed && w->scale_cols > 0 && w->scale_cols % CF_Q8_GROUP == 0);
    cf_assert(w->scales.off % 16 == 0);
    uint64_t step = w->row_step ? w->row_step : 1;
    uint64_t last = (w->row_first + (w->rows - 1) * step) / w->scale_rows;
    uint64_t per_row = ((uint64_t)w->cols + w->scale_cols - 1) / w->scale_cols, values, bytes;
    cf_assert(cf_mul_u64(last + 1, per_row, &values));
    cf_assert(cf_mul_u64(values, cf_format_value_bytes(f), &bytes));
    touch(c, w->scales, cf_range_plain(0, bytes), CF_ACCESS_READ);
}

static void touch_weight(const struct call *c, const cf_weight *w)
{
    cf_assert(cf_gpu_supports(c->gpu, w->dtype));
    touch(c, w->span, weight_check(w), CF_ACCESS_READ);
    if (w->scale_rows)
        touch_scales(c, w);
}

/* A weight that is all that is stored, row by row. */
static void touch_whole(const struct call *c, const cf_weight *w)
{
    cf_assert(!w->transposed && !w->row_first && w->row_step <= 1);
    touch_weight(c, w);
}

/* A vector of `n` elements, in any layout; none if the op has none. */
static void touch_vector(const struct call *c, const cf_weight *w, uint64_t n)
{
    if (!w->span.buf)
        return;
    cf_assert(w->rows == 1 && w->cols == n && !w->scale_rows);
    touch_weight(c, w);
}

/* Inputs and outputs of one op must not overlap (the tracker does not look inside an op). */
static void apart(cf_span a, cf_range ra, cf_span b, cf_range rb)
{
    cf_assert(a.buf != b.buf || !cf_range_overlap(&ra, &rb));
}

static bool same_place(cf_span a, cf_span b)
{
    return a.buf == b.buf && a.off == b.off;
}

/* ---- dense ---- */

void cf_gpu_linear(cf_gpu *gpu, cf_stream stream, const cf_op_linear *op)
{
    struct call c = call_begin(gpu, stream, "linear");
    touch_weight(&c, &op->w);
    touch_vector(&c, &op->bias, op->w.rows);
    cf_range x = touch_rows(&c, op->x, op->n_rows, op->w.cols, op->x_stride, CF_ACCESS_READ);
    cf_range y = touch_rows(&c, op->y, op->n_rows, op->w.rows, op->y_stride, CF_ACCESS_WRITE);
    apart(op->x, x, op->y, y);
    gpu->fns->linear(gpu, stream, op);
}

void cf_gpu_head_linear(cf_gpu *gpu, cf_stream stream, const cf_op_head_linear *op)
{
    struct call c = call_begin(gpu, stream, "head_linear");
    cf_assert(op->n_heads > 0 && op->n_sub > 0);
    cf_assert(op->row_off <= op->head_rows && op->n_sub <= op->head_rows - op->row_off);
    cf_assert((uint64_t)op->n_heads * op->head_rows <= op->w.rows);
    touch_whole(&c, &op->w);
    uint32_t x_width = op->transposed ? op->n_sub : op->w.cols;
    uint32_t y_width = op->transposed ? op->w.cols : op->n_sub;
    cf_range x = touch_heads(&c, op->x, op->n_rows, op->n_heads, x_width, op->x_stride,
                             op->x_head_stride, CF_ACCESS_READ);
    cf_range y = touch_heads(&c, op->y, op->n_rows, op->n_heads, y_width, op->y_stride,
                             op->y_head_stride, CF_ACCESS_WRITE);
    apart(op->x, x, op->y, y);
    gpu->fns->head_linear(gpu, stream, op);
}

/* One vector for all heads, or a part for each. */
static void touch_norm_vector(const struct call *c, const cf_weight *w, const cf_op_norm *op)
{
    uint64_t all = (uint64_t)op->n_heads * op->width;
    touch_vector(c, w, w->cols == op->width ? op->width : all);
}

void cf_gpu_norm(cf_gpu *gpu, cf_stream stream, const cf_op_norm *op)
{
    struct call c = call_begin(gpu, stream, "norm");
    cf_assert(op->kind == CF_NORM_RMS || op->kind == CF_NORM_LAYER);
    cf_assert(op->kind == CF_NORM_LAYER || !op->bias.span.buf);
    cf_assert(op->width > 0);
    touch_norm_vector(&c, &op->w, op);
    touch_norm_vector(&c, &op->bias, op);
    cf_range x = touch_heads(&c, op->x, op->n_rows, op->n_heads, op->width, op->x_stride,
                             op->x_head_stride, CF_ACCESS_READ);
    cf_range y = touch_heads(&c, op->y, op->n_rows, op->n_heads, op->width, op->y_stride,
                             op->y_head_stride, CF_ACCESS_WRITE);
    if (same_place(op->x, op->y)) {
        cf_assert(op->n_rows == 1 || op->x_stride == op->y_stride);
        cf_assert(op->n_heads == 1 || op->x_head_stride == op->y_head_stride);
    } else {
        apart(op->x, x, op->y, y);
    }
    gpu->fns->norm(gpu, stream, op);
}

void cf_gpu_rope(cf_gpu *gpu, cf_stream stream, const cf_op_rope *op)
{
    struct call c = call_begin(gpu, stream, "rope");
    cf_assert(op->n_rot > 0 && op->n_rot % 2 == 0);
    cf_assert(op->layout == CF_ROPE_INTERLEAVED || op->layout == CF_ROPE_HALF);
    cf_range t = touch_flat(&c, op->cos_sin, op->n_rows, op->n_rot, CF_ACCESS_READ);
    cf_range x = touch_heads(&c, op->x, op->n_rows, op->n_heads, op->n_rot, op->stride,
                             op->head_stride, CF_ACCESS_WRITE);
    apart(op->cos_sin, t, op->x, x);
    gpu->fns->rope(gpu, stream, op);
}

/* ---- attention ---- */

/* The format of a cache, and the widths that its blocks must divide. */
static void kv_dtype_assert(const cf_gpu *gpu, cf_format t, uint32_t width, uint32_t other)
{
    cf_assert(t == CF_F32 || t == CF_F16 || (t == CF_Q8_0 && gpu->info.kv_q8));
    cf_assert(width % cf_formats[t].block_values == 0 && other % cf_formats[t].block_values == 0);
}

void cf_gpu_kv_store(cf_gpu *gpu, cf_stream stream, const cf_op_kv_store *op)
{
    struct call c = call_begin(gpu, stream, "kv_store");
    kv_dtype_assert(gpu, op->kv_dtype, op->width, 0);
    cf_assert(op->width > 0 && op->cache.off % 4 == 0);
    cf_assert(op->cache.bytes >= cf_format_row_bytes(op->kv_dtype, op->width));
    cf_range x = touch_rows(&c, op->x, op->n_rows, op->width, op->x_stride, CF_ACCESS_READ);
    cf_range rows = touch_flat(&c, op->rows, op->n_rows, 4, CF_ACCESS_READ);
    cf_range cache = touch(&c, op->cache, cf_range_plain(0, op->cache.bytes), CF_ACCESS_WRITE);
    apart(op->x, x, op->cache, cache);
    apart(op->rows, rows, op->cache, cache);
    gpu->fns->kv_store(gpu, stream, op);
}

void cf_gpu_attn_latent(cf_gpu *gpu, cf_stream stream, const cf_op_attn_latent *op)
{
    struct call c = call_begin(gpu, stream, "attn_latent");
    kv_dtype_assert(gpu, op->kv_dtype, op->rank, op->n_rope);
    cf_assert(op->rank > 0 && op->n_rope > 0 && op->n_heads > 0 && op->cache.off % 4 == 0);
    cf_assert(op->cache.bytes >=
              cf_format_row_bytes(op->kv_dtype, (uint64_t)op->rank + op->n_rope));
    uint64_t width = (uint64_t)op->n_heads * op->rank;
    cf_range in[4] = {
        touch_flat(&c, op->q_lat, op->n_rows, width, CF_ACCESS_READ),
        touch_heads(&c, op->q_rope, op->n_rows, op->n_heads, op->n_rope, op->q_stride,
                    op->q_head_stride, CF_ACCESS_READ),
        touch(&c, op->cache, cf_range_plain(0, op->cache.bytes), CF_ACCESS_READ),
        touch_flat(&c, op->rows, op->n_rows, 4, CF_ACCESS_READ),
    };
    cf_range y = touch_flat(&c, op->y, op->n_rows, width, CF_ACCESS_WRITE);
    const cf_span spans[4] = {op->q_lat, op->q_rope, op->cache, op->rows};
    for (int i = 0; i < 4; i++)
        apart(spans[i], in[i], op->y, y);
    if (op->cells.buf) {
        cf_assert(op->n_select > 0);
        cf_range cells = touch_flat(&c, op->cells, op->n_rows, op->n_select, CF_ACCESS_READ);
        apart(op->cells, cells, op->y, y);
    }
    gpu->fns->attn_latent(gpu, stream, op);
}

void cf_gpu_attn(cf_gpu *gpu, cf_stream stream, const cf_op_attn *op)
{
    struct call c = call_begin(gpu, stream, "attn");
    kv_dtype_assert(gpu, op->kv_dtype, op->d_k, op->d_v);
    cf_assert(op->d_k > 0 && op->d_v > 0 && op->n_heads > 0 && op->n_kv_heads > 0);
    cf_assert(op->n_heads % op->n_kv_heads == 0);
    cf_assert(op->k.off % 4 == 0 && op->v.off % 4 == 0 && op->cap >= 0);
    uint64_t k_width = (uint64_t)op->n_kv_heads * op->d_k;
    uint64_t v_width = (uint64_t)op->n_kv_heads * op->d_v;
    cf_assert(op->k.bytes >= cf_format_row_bytes(op->kv_dtype, k_width));
    cf_assert(op->v.bytes >= cf_format_row_bytes(op->kv_dtype, v_width));
    touch_vector(&c, &op->sinks, op->n_heads);
    const cf_span in[4] = {op->q, op->k, op->v, op->rows};
    cf_range r[4] = {
        touch_rows(&c, op->q, op->n_rows, (uint64_t)op->n_heads * op->d_k, op->q_stride,
                   CF_ACCESS_READ),
        touch(&c, op->k, cf_range_plain(0, op->k.bytes), CF_ACCESS_READ),
        touch(&c, op->v, cf_range_plain(0, op->v.bytes), CF_ACCESS_READ),
        touch_flat(&c, op->rows, op->n_rows, 4, CF_ACCESS_READ),
    };
    cf_range y =
        touch_flat(&c, op->y, op->n_rows, (uint64_t)op->n_heads * op->d_v, CF_ACCESS_WRITE);
    for (int i = 0; i < 4; i++)
        apart(in[i], r[i], op->y, y);
    if (op->sharpness.buf) {
        cf_range sharpness = touch_flat(&c, op->sharpness, op->n_rows, 1, CF_ACCESS_READ);
        apart(op->sharpness, sharpness, op->y, y);
    }
    gpu->fns->attn(gpu, stream, op);
}

/* ---- elementwise ---- */

static void act_assert(const cf_act_params *p, bool gated)
{
    cf_assert((unsigned)p->act <= CF_ACT_SWIGLU_CLAMPED);
    cf_assert(p->act != CF_ACT_SWIGLU_CLAMPED || (gated && p->limit > 0));
}

/* y of a, in place or apart, and of b, apart, where there is one: element by element. */
static void touch_elements(const struct call *c, cf_span a, cf_span b, cf_span y, uint64_t n)
{
    cf_range of_a = touch_flat(c, a, 1, n, CF_ACCESS_READ);
    cf_range of_y = touch_flat(c, y, 1, n, CF_ACCESS_WRITE);
    if (!same_place(a, y))
        apart(a, of_a, y, of_y);
    if (b.buf)
        apart(b, touch_flat(c, b, 1, n, CF_ACCESS_READ), y, of_y);
}

void cf_gpu_glu(cf_gpu *gpu, cf_stream stream, const cf_op_glu *op)
{
    struct call c = call_begin(gpu, stream, "glu");
    act_assert(&op->act, op->u.buf != NULL);
    touch_elements(&c, op->g, op->u, op->y, op->n);
    gpu->fns->glu(gpu, stream, op);
}

void cf_gpu_map(cf_gpu *gpu, cf_stream stream, const cf_op_map *op)
{
    struct call c = call_begin(gpu, stream, "map");
    bool two = op->kind == CF_MAP_MUL_SIGMOID || op->kind == CF_MAP_MUL_ROW;
    cf_assert((unsigned)op->kind <= CF_MAP_MUL_ROW && op->width > 0);
    cf_assert(op->kind != CF_MAP_CLAMP || op->p <= op->q);
    cf_assert(op->kind != CF_MAP_SOFTCAP || op->p > 0);
    cf_range a = touch_rows(&c, op->a, op->n_rows, op->width, op->a_stride, CF_ACCESS_READ);
    cf_range y = touch_rows(&c, op->y, op->n_rows, op->width, op->y_stride, CF_ACCESS_WRITE);
    if (same_place(op->a, op->y))
        cf_assert(op->n_rows == 1 || op->a_stride == op->y_stride);
    else
        apart(op->a, a, op->y, y);
    if (two) {
        cf_assert(op->b_width == 1 || (op->b_width == op->width && op->kind == CF_MAP_MUL_SIGMOID));
        cf_range b = touch_rows(&c, op->b, op->n_rows, op->b_width, op->b_stride, CF_ACCESS_READ);
        apart(op->b, b, op->y, y);
    }
    gpu->fns->map(gpu, stream, op);
}

void cf_gpu_add(cf_gpu *gpu, cf_stream stream, const cf_op_add *op)
{
    struct call c = call_begin(gpu, stream, "add");
    touch_elements(&c, op->a, op->b, op->y, op->n);
    gpu->fns->add(gpu, stream, op);
}

void cf_gpu_get_rows(cf_gpu *gpu, cf_stream stream, const cf_op_get_rows *op)
{
    struct call c = call_begin(gpu, stream, "get_rows");
    cf_assert(!op->table.scale_rows);
    touch_whole(&c, &op->table);
    cf_range y = touch_rows(&c, op->y, op->n_rows, op->table.cols, op->y_stride, CF_ACCESS_WRITE);
    cf_assert(op->table.span.buf != op->y.buf ||
              op->table.span.off + op->table.span.bytes <= y.off ||
              op->y.off + op->y.bytes <= op->table.span.off);
    if (op->ids.buf) {
        cf_range ids = touch_flat(&c, op->ids, 1, op->n_rows, CF_ACCESS_READ);
        apart(op->ids, ids, op->y, y);
    } else {
        cf_assert(op->n_rows <= op->table.rows);
    }
    gpu->fns->get_rows(gpu, stream, op);
}

/* ---- experts ---- */

static void groups_assert(const cf_op_route *op)
{
    if (op->n_groups <= 1)
        return;
    uint32_t size = op->n / op->n_groups;
    cf_assert(op->n_groups <= CF_ROUTE_MAX_GROUPS && op->n % op->n_groups == 0);
    cf_assert(op->group_score == CF_GROUP_MAX || (op->group_score == CF_GROUP_TOP2 && size >= 2));
    cf_assert(op->top_groups > 0 && op->top_groups <= op->n_groups);
    cf_assert(op->k <= op->top_groups * size);
}

void cf_gpu_route(cf_gpu *gpu, cf_stream stream, const cf_op_route *op)
{
    struct call c = call_begin(gpu, stream, "route");
    cf_assert(op->n > 0 && op->n <= CF_ROUTE_MAX_EXPERTS);
    cf_assert(op->k > 0 && op->k <= CF_ROUTE_MAX_K && op->k <= op->n);
    cf_assert((unsigned)op->score <= CF_SCORE_SPARSEMIXER);
    cf_assert(op->score != CF_SCORE_SPARSEMIXER ||
              (!op->bias.buf && op->n_groups <= 1 && !op->renormalise && op->jitter >= 0));
    groups_assert(op);
    cf_assert(op->host_ids.buf && op->host_ids.buf->kind == CF_BUF_READBACK);
    cf_assert(op->host_weights.buf && op->host_weights.buf->kind == CF_BUF_READBACK);
    cf_range logits = touch_flat(&c, op->logits, op->n_rows, op->n, CF_ACCESS_READ);
    cf_range bias = {0};
    if (op->bias.buf)
        bias = touch_flat(&c, op->bias, 1, op->n, CF_ACCESS_READ);
    const cf_span out[4] = {op->ids, op->weights, op->host_ids, op->host_weights};
    cf_range r[4];
    for (int i = 0; i < 4; i++) {
        r[i] = touch_flat(&c, out[i], op->n_rows, op->k, CF_ACCESS_WRITE);
        apart(op->logits, logits, out[i], r[i]);
        if (op->bias.buf)
            apart(op->bias, bias, out[i], r[i]);
        for (int j = 0; j < i; j++)
            apart(out[i], r[i], out[j], r[j]);
    }
    gpu->fns->route(gpu, stream, op);
}

/* Alike in format, shape and layout, or both none. */
static bool weight_like(const cf_weight *a, const cf_weight *b)
{
    if (!a->span.buf || !b->span.buf)
        return !a->span.buf && !b->span.buf;
    return a->dtype == b->dtype && a->rows == b->rows && a->cols == b->cols &&
           a->transposed == b->transposed && a->row_first == b->row_first &&
           a->row_step == b->row_step && a->stride == b->stride && a->scale_rows == b->scale_rows &&
           (!a->scale_rows ||
            (a->scale_cols == b->scale_cols && a->scale_format == b->scale_format));
}

/* A matrix [rows, cols] of an expert, and its bias if it has one; like those of the first. */
static void touch_piece(const struct call *c, const cf_weight *w, const cf_weight *bias,
                        const cf_weight *first, const cf_weight *first_bias, uint32_t rows,
                        uint32_t cols)
{
    cf_assert(w->rows == rows && w->cols == cols);
    cf_assert(weight_like(w, first) && weight_like(bias, first_bias));
    touch_weight(c, w);
    touch_vector(c, bias, rows);
}

/* The rows of h of every expert, declared one by one: separate ops serve separate experts. */
static void touch_pairs(const struct call *c, const cf_expert_work *experts, uint32_t n_experts,
                        cf_span pairs, cf_span h, uint32_t ffn, cf_access access)
{
    for (uint32_t i = 0; i < n_experts; i++) {
        uint64_t begin = experts[i].pair_begin, count = experts[i].pair_count, end;
        uint64_t h_row = (uint64_t)ffn * 4;
        cf_assert(count > 0);
        touch(c, pairs, cf_range_plain(begin * 4, count * 4), CF_ACCESS_READ);
        cf_assert(cf_mul_u64(begin + count, h_row, &end) && end <= h.bytes);
        touch(c, h, cf_range_plain(begin * h_row, count * h_row), access);
        /* A run may ask for hundreds of experts: look at all pairs of them only when checking. */
        for (uint32_t j = 0; c->gpu->hazards && j < i; j++)
            cf_assert(begin + count <= experts[j].pair_begin ||
                      (uint64_t)experts[j].pair_begin + experts[j].pair_count <= begin);
    }
}

void cf_gpu_expert_glu(cf_gpu *gpu, cf_stream stream, const cf_op_expert_glu *op)
{
    struct call c = call_begin(gpu, stream, "expert_glu");
    cf_assert(op->n_experts > 0 && op->n_experts <= CF_EXPERTS_PER_OP && op->k > 0);
    cf_assert(op->pairs.off % 4 == 0 && op->h.off % 4 == 0 && op->pairs.buf != op->h.buf);
    const cf_expert_work *first = &op->experts[0];
    bool gated = first->up.span.buf != NULL;
    act_assert(&op->act, gated);
    for (uint32_t i = 0; i < op->n_experts; i++) {
        const cf_expert_work *e = &op->experts[i];
        touch_piece(&c, &e->gate, &e->gate_bias, &first->gate, &first->gate_bias, op->ffn,
                    op->hidden);
        if (gated)
            touch_piece(&c, &e->up, &e->up_bias, &first->up, &first->up_bias, op->ffn, op->hidden);
        else
            cf_assert(!e->up.span.buf && !e->up_bias.span.buf);
    }
    if (op->weights.buf) {
        cf_range w = touch_flat(&c, op->weights, op->n_rows, op->k, CF_ACCESS_READ);
        apart(op->weights, w, op->h, cf_range_plain(op->h.off, op->h.bytes));
    }
    touch_flat(&c, op->x, op->n_rows, op->hidden, CF_ACCESS_READ);
    cf_assert(op->x.buf != op->h.buf || op->x.off + op->x.bytes <= op->h.off ||
              op->h.off + op->h.bytes <= op->x.off);
    touch_pairs(&c, op->experts, op->n_experts, op->pairs, op->h, op->ffn, CF_ACCESS_WRITE);
    gpu->fns->expert_glu(gpu, stream, op);
}

void cf_gpu_expert_down(cf_gpu *gpu, cf_stream stream, const cf_op_expert_down *op)
{
    struct call c = call_begin(gpu, stream, "expert_down");
    cf_assert(op->n_experts > 0 && op->n_experts <= CF_EXPERTS_PER_OP && op->k > 0);
    cf_assert(op->pairs.off % 4 == 0 && op->h.off % 4 == 0);
    const cf_expert_work *first = &op->experts[0];
    for (uint32_t i = 0; i < op->n_experts; i++) {
        const cf_expert_work *e = &op->experts[i];
        touch_piece(&c, &e->down, &e->down_bias, &first->down, &first->down_bias, op->hidden,
                    op->ffn);
    }
    uint64_t rows = (uint64_t)op->n_rows * op->k;
    if (op->weights.buf)
        touch_flat(&c, op->weights, 1, rows, CF_ACCESS_READ);
    touch_pairs(&c, op->experts, op->n_experts, op->pairs, op->h, op->ffn, CF_ACCESS_READ);
    cf_range out = touch_flat(&c, op->out, rows, op->hidden, CF_ACCESS_SCATTER);
    const cf_span in[3] = {op->weights, op->pairs, op->h};
    for (int i = 0; i < 3; i++)
        if (in[i].buf)
            apart(in[i], cf_range_plain(in[i].off, in[i].bytes), op->out, out);
    gpu->fns->expert_down(gpu, stream, op);
}

void cf_gpu_combine(cf_gpu *gpu, cf_stream stream, const cf_op_combine *op)
{
    struct call c = call_begin(gpu, stream, "combine");
    uint64_t rows = (uint64_t)op->n_rows * op->k;
    const cf_span in[4] = {op->out, op->ids, op->weights, op->x};
    cf_range r[4] = {
        touch_flat(&c, op->out, rows, op->hidden, CF_ACCESS_READ),
        touch_flat(&c, op->ids, 1, rows, CF_ACCESS_READ),
        touch_flat(&c, op->weights, 1, rows, CF_ACCESS_READ),
        touch_flat(&c, op->x, op->n_rows, op->hidden, CF_ACCESS_READ),
    };
    cf_range y = touch_flat(&c, op->y, op->n_rows, op->hidden, CF_ACCESS_WRITE);
    for (int i = 0; i < 4; i++)
        apart(in[i], r[i], op->y, y);
    gpu->fns->combine(gpu, stream, op);
}

/* ---- state ---- */

/* The columns [0, width) of every row of a state: `slots` times `rows`, stride apart. */
static cf_range touch_state(const struct call *c, cf_span s, uint64_t rows, uint64_t width,
                            uint64_t stride)
{
    cf_assert(rows > 0 && rows <= UINT32_MAX);
    return touch_rows(c, s, (uint32_t)rows, width, stride, CF_ACCESS_WRITE);
}

static cf_range touch_runs(const struct call *c, cf_span runs, uint32_t n_runs)
{
    return touch_flat(c, runs, n_runs, sizeof(cf_state_run) / 4, CF_ACCESS_READ);
}

void cf_gpu_conv(cf_gpu *gpu, cf_stream stream, const cf_op_conv *op)
{
    struct call c = call_begin(gpu, stream, "conv");
    cf_assert(op->n_taps >= 2 && op->n_heads > 0 && op->width > 0);
    uint64_t channels = (uint64_t)op->n_heads * op->width;
    cf_assert(op->w.rows == channels && op->w.cols == op->n_taps && !op->w.scale_rows);
    cf_assert(!op->w.transposed && op->w.row_step <= 1);
    cf_assert(op->w.dtype == CF_F32 || op->w.dtype == CF_F16 || op->w.dtype == CF_BF16);
    touch_weight(&c, &op->w);
    const cf_span in[2] = {op->x, op->runs};
    cf_range r[2] = {touch_heads(&c, op->x, op->n_rows, op->n_heads, op->width, op->x_stride,
                                 op->x_head_stride, CF_ACCESS_READ),
                     touch_runs(&c, op->runs, op->n_runs)};
    cf_range y = touch_rows(&c, op->y, op->n_rows, channels, op->y_stride, CF_ACCESS_WRITE);
    cf_range state = touch_state(&c, op->state, (uint64_t)op->n_slots * (op->n_taps - 1), channels,
                                 op->state_stride);
    apart(op->state, state, op->y, y);
    for (int i = 0; i < 2; i++) {
        apart(in[i], r[i], op->y, y);
        apart(in[i], r[i], op->state, state);
    }
    gpu->fns->conv(gpu, stream, op);
}

void cf_gpu_state_gates(cf_gpu *gpu, cf_stream stream, const cf_op_state_gates *op)
{
    struct call c = call_begin(gpu, stream, "state_gates");
    cf_assert(op->n_heads > 0 && op->group > 0 && op->n_heads % op->group == 0);
    touch_vector(&c, &op->a_log, op->n_heads);
    touch_vector(&c, &op->dt_bias, op->n_heads);
    cf_assert(op->a_log.span.buf && op->dt_bias.span.buf);
    const cf_span in[2] = {op->a, op->b}, out[2] = {op->decay, op->beta};
    cf_range r[2], w[2];
    for (int i = 0; i < 2; i++) {
        r[i] = touch_heads(&c, in[i], op->n_rows, op->n_heads / op->group, op->group, op->stride,
                           op->group_stride, CF_ACCESS_READ);
        w[i] = touch_flat(&c, out[i], op->n_rows, op->n_heads, CF_ACCESS_WRITE);
    }
    for (int i = 0; i < 4; i++)
        apart(in[i / 2], r[i / 2], out[i % 2], w[i % 2]);
    apart(out[0], w[0], out[1], w[1]);
    gpu->fns->state_gates(gpu, stream, op);
}

void cf_gpu_attn_state(cf_gpu *gpu, cf_stream stream, const cf_op_attn_state *op)
{
    struct call c = call_begin(gpu, stream, "attn_state");
    cf_assert(op->d_k > 0 && op->d_v > 0 && op->n_heads > 0 && op->n_k_heads > 0);
    cf_assert(op->n_heads % op->n_k_heads == 0);
    cf_assert(op->decay_stride == 0 || op->decay_stride == op->n_heads);
    bool delta = op->beta.buf != NULL;
    const cf_span in[6] = {op->q, op->k, op->v, op->decay, op->runs, op->beta};
    cf_range r[6] = {
        touch_heads(&c, op->q, op->n_rows, op->n_k_heads, op->d_k, op->stride, op->k_head_stride,
                    CF_ACCESS_READ),
        touch_heads(&c, op->k, op->n_rows, op->n_k_heads, op->d_k, op->stride, op->k_head_stride,
                    CF_ACCESS_READ),
        touch_heads(&c, op->v, op->n_rows, op->n_heads, op->d_v, op->stride, op->v_head_stride,
                    CF_ACCESS_READ),
        touch_flat(&c, op->decay, op->decay_stride ? op->n_rows : 1, op->n_heads, CF_ACCESS_READ),
        touch_runs(&c, op->runs, op->n_runs),
    };
    if (delta)
        r[5] = touch_flat(&c, op->beta, op->n_rows, op->n_heads, CF_ACCESS_READ);
    cf_range y =
        touch_flat(&c, op->y, op->n_rows, (uint64_t)op->n_heads * op->d_v, CF_ACCESS_WRITE);
    cf_range state = touch_flat(&c, op->state, op->n_slots,
                                (uint64_t)op->n_heads * op->d_k * op->d_v, CF_ACCESS_WRITE);
    apart(op->state, state, op->y, y);
    for (int i = 0; i < (delta ? 6 : 5); i++) {
        apart(in[i], r[i], op->y, y);
        apart(in[i], r[i], op->state, state);
    }
    gpu->fns->attn_state(gpu, stream, op);
}

void cf_gpu_gate(cf_gpu *gpu, cf_stream stream, const cf_op_gate *op)
{
    struct call c = call_begin(gpu, stream, "gate");
    cf_range g = touch_heads(&c, op->g, op->n_rows, op->n_heads, op->width, op->g_stride,
                             op->g_head_stride, CF_ACCESS_READ);
    cf_range y = touch_heads(&c, op->y, op->n_rows, op->n_heads, op->width, op->y_stride,
                             op->y_head_stride, CF_ACCESS_WRITE);
    apart(op->g, g, op->y, y);
    gpu->fns->gate(gpu, stream, op);
}

/* ---- index ---- */

void cf_gpu_index_score(cf_gpu *gpu, cf_stream stream, const cf_op_index_score *op)
{
    struct call c = call_begin(gpu, stream, "index_score");
    kv_dtype_assert(gpu, op->kv_dtype, op->d, 0);
    cf_assert(op->d > 0 && op->n_heads > 0 && op->k.off % 4 == 0);
    cf_assert(op->k.bytes >= cf_format_row_bytes(op->kv_dtype, op->d));
    const cf_span in[4] = {op->q, op->w, op->k, op->rows};
    cf_range r[4] = {
        touch_rows(&c, op->q, op->n_rows, (uint64_t)op->n_heads * op->d, op->q_stride,
                   CF_ACCESS_READ),
        touch_rows(&c, op->w, op->n_rows, op->n_heads, op->w_stride, CF_ACCESS_READ),
        touch(&c, op->k, cf_range_plain(0, op->k.bytes), CF_ACCESS_READ),
        touch_flat(&c, op->rows, op->n_rows, 4, CF_ACCESS_READ),
    };
    cf_range scores =
        touch_rows(&c, op->scores, op->n_rows, op->max_cells, op->score_stride, CF_ACCESS_WRITE);
    for (int i = 0; i < 4; i++)
        apart(in[i], r[i], op->scores, scores);
    gpu->fns->index_score(gpu, stream, op);
}

void cf_gpu_index_select(cf_gpu *gpu, cf_stream stream, const cf_op_index_select *op)
{
    struct call c = call_begin(gpu, stream, "index_select");
    cf_assert(op->k > 0);
    const cf_span in[2] = {op->scores, op->rows};
    cf_range r[2] = {
        touch_rows(&c, op->scores, op->n_rows, op->max_cells, op->score_stride, CF_ACCESS_READ),
        touch_flat(&c, op->rows, op->n_rows, 4, CF_ACCESS_READ)};
    cf_range cells = touch_flat(&c, op->cells, op->n_rows, op->k, CF_ACCESS_WRITE);
    for (int i = 0; i < 2; i++)
        apart(in[i], r[i], op->cells, cells);
    gpu->fns->index_select(gpu, stream, op);
}

/* ---- distance ---- */

void cf_gpu_attn_bias(cf_gpu *gpu, cf_stream stream, const cf_op_attn_bias *op)
{
    struct call c = call_begin(gpu, stream, "attn_bias");
    kv_dtype_assert(gpu, op->kv_dtype, op->d, 0);
    uint64_t width = (uint64_t)op->n_heads * op->d;
    cf_assert(width > 0 && op->n_buckets > 0 && op->zero < op->n_buckets);
    cf_assert(op->k.off % 4 == 0 && op->v.off % 4 == 0);
    cf_assert(op->k.bytes >= cf_format_row_bytes(op->kv_dtype, width));
    cf_assert(op->v.bytes >= cf_format_row_bytes(op->kv_dtype, width));
    cf_assert(op->bias.cols == op->n_heads && op->bias.dtype < (cf_format)CF_FORMAT_PLAIN);
    touch_whole(&c, &op->bias);
    const cf_span in[5] = {op->q, op->k, op->v, op->rows, op->buckets};
    cf_range r[5] = {
        touch_rows(&c, op->q, op->n_rows, width, op->q_stride, CF_ACCESS_READ),
        touch(&c, op->k, cf_range_plain(0, op->k.bytes), CF_ACCESS_READ),
        touch(&c, op->v, cf_range_plain(0, op->v.bytes), CF_ACCESS_READ),
        touch_flat(&c, op->rows, op->n_rows, 4, CF_ACCESS_READ),
        touch_flat(&c, op->buckets, 1, op->n_buckets, CF_ACCESS_READ),
    };
    cf_range y = touch_flat(&c, op->y, op->n_rows, width, CF_ACCESS_WRITE);
    for (int i = 0; i < 5; i++)
        apart(in[i], r[i], op->y, y);
    gpu->fns->attn_bias(gpu, stream, op);
}
