/* rope, kv_store, attn_latent and attn. Attention keeps a running maximum and sum over the cells
 * (online softmax), so nothing grows with the context. */
#include <math.h>
#include <string.h>

#include "gpu/ref/ref_math.h"
#include "gpu/ref/ref_ops.h"
#include "runtime/base/align.h"
#include "runtime/base/f16.h"

/* Index: row. */
static void rope_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_rope *op = arg;
    uint32_t half = op->n_rot / 2;
    bool interleaved = op->layout == CF_ROPE_INTERLEAVED;
    for (uint64_t r = begin; r < end; r++) {
        const float *cos_sin = (const float *)cf_ref_at(op->cos_sin) + r * op->n_rot;
        for (uint32_t h = 0; h < op->n_heads; h++) {
            float *x = (float *)cf_ref_at(op->x) + r * op->stride + (uint64_t)h * op->head_stride;
            for (uint32_t i = 0; i < half; i++) {
                float *pa = interleaved ? x + 2 * i : x + i;
                float *pb = interleaved ? x + 2 * i + 1 : x + i + half;
                float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a = *pa, b = *pb;
                *pa = a * c - b * s;
                *pb = b * c + a * s;
            }
        }
    }
}

void cf_ref_rope(cf_threads *pool, const cf_op_rope *op)
{
    cf_op_rope copy = *op;
    cf_threads_run(pool, op->n_rows, 4, rope_part, &copy);
}

enum { Q8_VALUES = 32, Q8_BYTES = 34 };

/* One block of CF_Q8_0: see ops.h. */
static void q8_block_put(const float x[Q8_VALUES], uint8_t out[Q8_BYTES])
{
    float most = 0;
    bool finite = true;
    for (int i = 0; i < Q8_VALUES; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        finite = finite && isfinite(x[i]);
    }
    memset(out, 0, Q8_BYTES);
    if (finite && most < 0x1p-100f)
        return;
    float d = most / 127.0f, inverse = 1.0f / d;
    uint16_t half = finite ? cf_f32_to_f16(d) : 0x7e00;
    out[0] = (uint8_t)half;
    out[1] = (uint8_t)(half >> 8);
    for (int i = 0; finite && i < Q8_VALUES; i++) {
        int code = (int)(fabsf(x[i] * inverse) + 0.5f);
        code = code < 127 ? code : 127;
        out[2 + i] = (uint8_t)(x[i] < 0 ? -code : code);
    }
}

void cf_ref_kv_store(cf_threads *pool, const cf_op_kv_store *op)
{
    (void)pool; /* a few rows: rows of one cell, if ever, are stored in order */
    const cf_row_info *rows = cf_ref_at(op->rows);
    uint64_t cell_bytes = cf_format_row_bytes(op->kv_dtype, op->width);
    uint64_t n_cells = op->cache.bytes / cell_bytes;
    for (uint32_t r = 0; r < op->n_rows; r++) {
        cf_assert(rows[r].cell < n_cells);
        const float *x = (const float *)cf_ref_at(op->x) + (uint64_t)r * op->x_stride;
        uint8_t *cell = (uint8_t *)cf_ref_at(op->cache) + rows[r].cell * cell_bytes;
        if (op->kv_dtype == CF_F32) {
            memcpy(cell, x, cell_bytes);
            continue;
        }
        for (uint32_t i = 0; op->kv_dtype == CF_Q8_0 && i < op->width; i += Q8_VALUES)
            q8_block_put(x + i, cell + i / Q8_VALUES * Q8_BYTES);
        if (op->kv_dtype == CF_Q8_0)
            continue;
        uint16_t *half = (uint16_t *)(void *)cell;
        for (uint32_t i = 0; i < op->width; i++)
            half[i] = cf_f32_to_f16(x[i]);
    }
}

/* Index: row * n_heads + head. */
static void attn_latent_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_attn_latent *op = arg;
    const cf_row_info *rows = cf_ref_at(op->rows);
    uint64_t latent_bytes = cf_format_row_bytes(op->kv_dtype, op->rank);
    uint64_t cell_bytes = latent_bytes + cf_format_row_bytes(op->kv_dtype, op->n_rope);
    uint64_t n_cells = op->cache.bytes / cell_bytes;
    for (uint64_t index = begin; index < end; index++) {
        uint64_t r = index / op->n_heads, h = index % op->n_heads;
        uint64_t first = rows[r].first_cell, n = rows[r].n_cells;
        cf_assert(n > 0 && first + n <= n_cells);
        const uint32_t *list = NULL;
        if (op->cells.buf) {
            list = (const uint32_t *)cf_ref_at(op->cells) + r * op->n_select;
            n = cf_min_u64(n, op->n_select);
        }
        const float *q_lat = (const float *)cf_ref_at(op->q_lat) + index * op->rank;
        const float *q_rope =
            (const float *)cf_ref_at(op->q_rope) + r * op->q_stride + h * op->q_head_stride;
        float *y = (float *)cf_ref_at(op->y) + index * op->rank;
        memset(y, 0, op->rank * sizeof *y);
        cf_ref_softmax softmax = {-INFINITY, 0};
        for (uint64_t i = 0; i < n; i++) {
            uint64_t c = list ? list[i] : first + i;
            cf_assert(c < n_cells);
            const uint8_t *cell = (const uint8_t *)cf_ref_at(op->cache) + c * cell_bytes;
            float lat, rope;
            cf_ref_dots(op->kv_dtype, cell, op->rank, &q_lat, 1, &lat);
            cf_ref_dots(op->kv_dtype, cell + latent_bytes, op->n_rope, &q_rope, 1, &rope);
            cf_ref_softmax_add(&softmax, op->scale * (lat + rope), op->kv_dtype, cell, op->rank, y);
        }
        cf_ref_softmax_end(&softmax, op->rank, y);
    }
}

void cf_ref_attn_latent(cf_threads *pool, const cf_op_attn_latent *op)
{
    cf_op_attn_latent copy = *op;
    cf_threads_run(pool, (uint64_t)op->n_rows * op->n_heads, 1, attn_latent_part, &copy);
}

/* What one head of one row reads and writes. */
struct attn_head {
    const float *q;
    const uint8_t *k, *v; /* of cell 0 */
    uint64_t k_cell_bytes, v_cell_bytes;
    float sink, sharpness, *y;
};

static bool cell_visible(const cf_op_attn *op, const cf_row_info *row, uint64_t c)
{
    uint64_t back = row->first_cell + (uint64_t)row->n_cells - 1 - c;
    return (!op->window || back < op->window) &&
           (!op->chunk || (row->position - back) / op->chunk == row->position / op->chunk);
}

static void attn_head_run(const cf_op_attn *op, const cf_row_info *row, const struct attn_head *a)
{
    /* The sink is a score that has no value to add. */
    cf_ref_softmax softmax = {a->sink, a->sink > -INFINITY ? 1 : 0};
    uint64_t end = (uint64_t)row->first_cell + row->n_cells;
    memset(a->y, 0, op->d_v * sizeof *a->y);
    for (uint64_t c = row->first_cell; c < end; c++) {
        if (!cell_visible(op, row, c))
            continue;
        float score;
        cf_ref_dots(op->kv_dtype, a->k + c * a->k_cell_bytes, op->d_k, &a->q, 1, &score);
        score *= op->scale;
        if (op->cap > 0)
            score = op->cap * tanhf(score / op->cap);
        score *= a->sharpness;
        cf_ref_softmax_add(&softmax, score, op->kv_dtype, a->v + c * a->v_cell_bytes, op->d_v,
                           a->y);
    }
    cf_ref_softmax_end(&softmax, op->d_v, a->y);
}

/* Index: row * n_heads + head. */
static void attn_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_attn *op = arg;
    uint64_t k_head = cf_format_row_bytes(op->kv_dtype, op->d_k);
    uint64_t v_head = cf_format_row_bytes(op->kv_dtype, op->d_v);
    struct attn_head a = {.k_cell_bytes = op->n_kv_heads * k_head,
                          .v_cell_bytes = op->n_kv_heads * v_head};
    uint64_t n_cells = cf_min_u64(op->k.bytes / a.k_cell_bytes, op->v.bytes / a.v_cell_bytes);
    for (uint64_t index = begin; index < end; index++) {
        uint64_t r = index / op->n_heads, h = index % op->n_heads;
        uint64_t kv = h / (op->n_heads / op->n_kv_heads);
        const cf_row_info *row = (const cf_row_info *)cf_ref_at(op->rows) + r;
        uint64_t first = row->first_cell, n = row->n_cells;
        cf_assert(n > 0 && first + n <= n_cells);
        cf_assert(row->position >= n - 1);
        a.q = (const float *)cf_ref_at(op->q) + r * op->q_stride + h * op->d_k;
        a.k = (const uint8_t *)cf_ref_at(op->k) + kv * k_head;
        a.v = (const uint8_t *)cf_ref_at(op->v) + kv * v_head;
        a.sink = op->sinks.span.buf ? cf_ref_vector_at(&op->sinks, h) : -INFINITY;
        a.sharpness = op->sharpness.buf ? ((const float *)cf_ref_at(op->sharpness))[r] : 1;
        a.y = (float *)cf_ref_at(op->y) + index * op->d_v;
        attn_head_run(op, row, &a);
    }
}

void cf_ref_attn(cf_threads *pool, const cf_op_attn *op)
{
    cf_op_attn copy = *op;
    cf_threads_run(pool, (uint64_t)op->n_rows * op->n_heads, 1, attn_part, &copy);
}
