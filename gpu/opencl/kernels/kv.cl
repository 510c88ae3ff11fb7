// The KV cache in the format of the program: F32, F16 (FORMAT_F16) or blocks of 32 in 8 bits
// (FORMAT_Q8_0). A row's cf_row_info is cell, first_cell, n_cells, position.

#if defined(FORMAT_Q8_0)
// a / b as the host rounds it, also where a device's division does not: a step from the remainder.
INLINE float divide_exactly(float a, float b)
{
    float q = a / b;
    return fma(fma(-q, b, a), 1.0f / b, q);
}

// One block, to the bit what ops.h says.
INLINE void kv_put(const __global float *x, bytes_out out)
{
    float most = 0.0f;
    bool finite = true;
    for (uint i = 0; i < 32; i++) {
        float v = fabs(x[i]);
        finite = finite && as_uint(v) < 0x7f800000u;
        most = v > most ? v : most;
    }
    bool zero = finite && most < 0x1p-100f;
    float d = finite && !zero ? divide_exactly(most, 127.0f) : 0.0f;
    float inverse = d > 0.0f ? divide_exactly(1.0f, d) : 0.0f;
    vstore_half_rte(d, 0, (__global half *)out);
    if (!finite)
        *(__global ushort *)out = 0x7e00;
    for (uint i = 0; i < 32; i++) {
        int code = 0;
        if (finite)
            code = min((int)(fabs(x[i] * inverse) + 0.5f), 127);
        out[2 + i] = (uchar)(x[i] < 0.0f ? -code : code);
    }
}
#define KV_VALUES 32u
#elif defined(FORMAT_F16)
INLINE void kv_put(const __global float *x, bytes_out out)
{
    vstore_half_rte(*x, 0, (__global half *)out);
}
#define KV_VALUES 1u
#else
INLINE void kv_put(const __global float *x, bytes_out out)
{
    *(__global float *)out = *x;
}
#define KV_VALUES 1u
#endif

// cache[rows[u].cell] = x[u]. A unit is a row.
KERNEL kv_store(bytes_in x, bytes_out cache, bytes_in rows, const ocl_kv_store_params p)
{
    for (GROUP_UNITS(u, p.units)) {
        const __global float *in = FLOATS(x, p.x) + u * p.x_stride;
        ulong cell = UINTS(rows, p.rows)[4 * u];
        bytes_out out = cache + p.cache + cell * weight_bytes(p.width);
        for (uint i = ITEM * KV_VALUES; i < p.width; i += WG * KV_VALUES)
            kv_put(in + i, out + weight_bytes(i));
    }
}

// Attention of up to ATTN_HEADS heads of a row over its cells, ATTN_CELLS at a time, with a running
// maximum and sum (online softmax): nothing grows with the context. Scores are tiles of dot.cl,
// cells against heads; y holds the running weighted sum, each item its own columns of it. `t`, how
// many heads a tile has room for, is a constant.
#define ATTN_HEADS ((uint)OCL_TILE_HEADS) // at most DOT_T
#define ATTN_CELLS 16u

// What a unit keeps of its heads.
typedef struct attn_heads {
    __global float *y[OCL_TILE_HEADS];
    float top[OCL_TILE_HEADS], total[OCL_TILE_HEADS], rescale[OCL_TILE_HEADS];
} attn_heads;

// s[h, c] = scale * sum for the tile's DOT_R cells from c0 on that are below n.
INLINE void attn_scores_keep(const uint t, const dot_acc *acc, uint c0, uint n, float scale,
                             float cap, float sharpness, SHARED float *s, dot_sums sums)
{
    dot_finish(DOT_R * t, acc, sums);
    for (uint i = ITEM; i < DOT_R * t; i += WG) {
        uint c = c0 + i / t;
        float v = scale * DOT_SUM(sums, i);
        if (cap > 0.0f)
            v = cap * tanh(v / cap);
        v *= sharpness;
        if (c < n)
            s[i % t * ATTN_CELLS + c] = v;
    }
}

// Scores of n cells into shares of the sum so far; top, total and rescale go along.
INLINE void attn_weigh(const uint t, uint n, attn_heads *a, SHARED float *s)
{
    SYNC();
    for (uint h = 0; h < t; h++) {
        float most = a->top[h];
        for (uint c = 0; c < n; c++)
            most = fmax(most, s[h * ATTN_CELLS + c]);
        a->rescale[h] = exp(a->top[h] - most);
        a->top[h] = most;
    }
    SYNC();
    for (uint i = ITEM; i < t * ATTN_CELLS; i += WG)
        if (i % ATTN_CELLS < n)
            s[i] = exp(s[i] - a->top[i / ATTN_CELLS]);
    SYNC();
    for (uint h = 0; h < t; h++) {
        a->total[h] *= a->rescale[h];
        for (uint c = 0; c < n; c++)
            a->total[h] += s[h * ATTN_CELLS + c];
    }
}

// y[h] = y[h] * rescale[h] + sum_c s[h, c] * values_c; nothing is read of y at the first cells. The
// n cells follow each other, or are those that `list` names.
INLINE void attn_add(const uint t, bytes_in values, const __global uint *list, ulong cell_bytes,
                     uint width, uint n, uint heads, bool first, attn_heads *a, const SHARED float *s)
{
    uint blocks = (width + W_BLOCK - 1) / W_BLOCK;
    for (uint b = ITEM; b < blocks; b += WG) {
        uint k = b * W_BLOCK;
        bool whole = k + W_BLOCK <= width;
        vec acc[ATTN_HEADS * W_VECS], e[W_VECS];
        for (uint h = 0; h < t; h++)
#pragma unroll
            for (uint v = 0; v < W_VECS; v++) {
                uint at = k + v * LANES;
                acc[h * W_VECS + v] = 0.0f;
                if (!first && h < heads && at < width)
                    acc[h * W_VECS + v] = vec_load_n(a->y[h] + at, width - at) * a->rescale[h];
            }
        for (uint c = 0; c < n; c++) {
            bytes_in cell = values + (list ? list[c] : c) * cell_bytes;
            if (whole)
                weight_block(cell, b, e);
            else
                weight_tail(cell, b, width, e);
#pragma unroll
            for (uint h = 0; h < t; h++)
#pragma unroll
                for (uint v = 0; v < W_VECS; v++)
                    acc[h * W_VECS + v] = MULTIPLY_ADD(e[v], (vec)s[h * ATTN_CELLS + c],
                                                       acc[h * W_VECS + v]);
        }
        for (uint h = 0; h < heads; h++)
#pragma unroll
            for (uint v = 0; v < W_VECS; v++)
                if (k + v * LANES < width)
                    vec_store_n(acc[h * W_VECS + v], a->y[h] + k + v * LANES,
                                width - k - v * LANES);
    }
    SYNC();
}

// Each item its own columns again: those of attn_add.
INLINE void attn_divide(uint width, uint heads, attn_heads *a)
{
    for (uint b = ITEM; b * W_BLOCK < width; b += WG)
        for (uint h = 0; h < heads; h++)
            for (uint k = b * W_BLOCK; k < min((b + 1) * W_BLOCK, width); k++)
                a->y[h][k] /= a->total[h];
}

// Scores q_lat[h] . latent + q_rope[h] . rope of the n cells from `cells` on, or of
// those that `list` names.
INLINE void latent_scores(bytes_in cells, const __global uint *list, uint n, const __global float *const *q_lat,
                          const __global float *const *q_rope, const ocl_attn_latent_params *p,
                          SHARED float *s, dot_sums sums)
{
    ulong cell_bytes = weight_bytes(p->rank + p->n_rope);
    for (uint c0 = 0; c0 < n; c0 += DOT_R) {
        bytes_in rows[DOT_R];
        dot_acc acc[DOT_R * ATTN_HEADS];
        for (uint i = 0; i < DOT_R; i++)
            rows[i] = cells + (list ? list[min(c0 + i, n - 1)] : min(c0 + i, n - 1)) * cell_bytes;
#pragma unroll
        for (uint i = 0; i < DOT_R * ATTN_HEADS; i++)
            acc[i] = 0.0f;
        dot_tile(ATTN_HEADS, rows, q_lat, p->rank, acc);
        for (uint i = 0; i < DOT_R; i++)
            rows[i] += weight_bytes(p->rank);
        dot_tile(ATTN_HEADS, rows, q_rope, p->n_rope, acc);
        attn_scores_keep(ATTN_HEADS, acc, c0, n, p->scale, 0.0f, 1.0f, s, sums);
    }
}

// One unit: heads [h0, h0 + heads) of row r.
INLINE void latent_unit(bytes_in q_lat, bytes_in q_rope, bytes_in cache, bytes_in rows,
                        bytes_in chosen, bytes_out y, const ocl_attn_latent_params *p, ulong r, uint h0, SHARED float *s,
                        dot_sums sums)
{
    uint heads = min(ATTN_HEADS, p->n_heads - h0);
    uint first = UINTS(rows, p->rows)[4 * r + 1], n = UINTS(rows, p->rows)[4 * r + 2];
    ulong cell_bytes = weight_bytes(p->rank + p->n_rope);
    bytes_in base = cache + p->cache + first * cell_bytes;
    const __global uint *list = NULL;
    if (p->n_select) {
        base = cache + p->cache;
        list = UINTS(chosen, p->cells) + r * p->n_select;
        n = min(n, p->n_select);
    }
    const __global float *ql[ATTN_HEADS], *qr[ATTN_HEADS];
    attn_heads a;
    for (uint i = 0; i < ATTN_HEADS; i++) {
        ulong h = min(h0 + i, p->n_heads - 1);
        ql[i] = FLOATS(q_lat, p->q_lat) + (r * p->n_heads + h) * p->rank;
        qr[i] = FLOATS(q_rope, p->q_rope) + r * p->q_stride + h * p->q_head_stride;
        a.y[i] = FLOATS_OUT(y, p->y) + (r * p->n_heads + h) * p->rank;
        a.top[i] = -INFINITY;
        a.total[i] = 0.0f;
    }
    for (uint c0 = 0; c0 < n; c0 += ATTN_CELLS) {
        uint count = min(ATTN_CELLS, n - c0);
        bytes_in cells = list ? base : base + c0 * cell_bytes;
        const __global uint *part = list ? list + c0 : NULL;
        latent_scores(cells, part, count, ql, qr, p, s, sums);
        attn_weigh(ATTN_HEADS, count, &a, s);
        attn_add(ATTN_HEADS, cells, part, cell_bytes, p->rank, count, heads, c0 == 0, &a, s);
    }
    attn_divide(p->rank, heads, &a);
}

KERNEL attn_latent(bytes_in q_lat, bytes_in q_rope, bytes_in cache, bytes_in rows, bytes_in cells,
                   bytes_out y, const ocl_attn_latent_params p)
{
    SHARED float s[ATTN_HEADS * ATTN_CELLS];
    DOT_SUMS(sums)
    uint groups = (p.n_heads + ATTN_HEADS - 1) / ATTN_HEADS;
    for (GROUP_UNITS(u, p.units))
        latent_unit(q_lat, q_rope, cache, rows, cells, y, &p, u / groups, (uint)(u % groups) * ATTN_HEADS,
                    s, sums);
}

// One unit: heads [h0, h0 + heads) of row r, all of key head kv. The visible cells are the last of
// the row's and those just before it.
INLINE void attn_unit(const uint t, bytes_in q, bytes_in k, bytes_in v, bytes_in rows,
                      bytes_in sinks, bytes_in sharp, bytes_out y, const ocl_attn_params *p,
                      ulong r, uint kv,
                      uint h0, uint heads, SHARED float *s, dot_sums sums)
{
    const __global uint *row = UINTS(rows, p->rows) + 4 * r;
    uint n = row[2], end = row[1] + row[2];
    float sharpness = p->has_sharpness ? FLOATS(sharp, p->sharpness)[r] : 1.0f;
    if (p->window)
        n = min(n, p->window);
    if (p->chunk)
        n = min(n, row[3] % p->chunk + 1);
    ulong k_head = weight_bytes(p->d_k), v_head = weight_bytes(p->d_v);
    const __global float *qs[ATTN_HEADS];
    attn_heads a;
    for (uint i = 0; i < t; i++) {
        ulong h = h0 + min(i, heads - 1);
        qs[i] = FLOATS(q, p->q) + r * p->q_stride + h * p->d_k;
        a.y[i] = FLOATS_OUT(y, p->y) + (r * p->n_heads + h) * p->d_v;
        a.top[i] = vector_is(p->sinks) ? vector_element(sinks, p->sinks, h) : -INFINITY;
        a.total[i] = a.top[i] > -INFINITY ? 1.0f : 0.0f; // the sink has no value to add
    }
    for (uint c0 = 0; c0 < n; c0 += ATTN_CELLS) {
        uint count = min(ATTN_CELLS, n - c0);
        ulong at = (ulong)(end - n + c0) * p->n_kv_heads + kv;
        bytes_in keys = k + p->k + at * k_head;
        for (uint c = 0; c < count; c += DOT_R) {
            bytes_in cells[DOT_R];
            dot_acc acc[DOT_R * ATTN_HEADS];
            for (uint i = 0; i < DOT_R; i++)
                cells[i] = keys + min(c + i, count - 1) * p->n_kv_heads * k_head;
#pragma unroll
            for (uint i = 0; i < DOT_R * t; i++)
                acc[i] = 0.0f;
            dot_tile(t, cells, qs, p->d_k, acc);
            attn_scores_keep(t, acc, c, count, p->scale, p->cap, sharpness, s, sums);
        }
        attn_weigh(t, count, &a, s);
        attn_add(t, v + p->v + at * v_head, NULL, p->n_kv_heads * v_head, p->d_v, count, heads, c0 == 0,
                 &a, s);
    }
    attn_divide(p->d_v, heads, &a);
}

KERNEL attn(bytes_in q, bytes_in k, bytes_in v, bytes_in rows, bytes_in sinks, bytes_in sharp,
            bytes_out y, const ocl_attn_params p)
{
    SHARED float s[ATTN_HEADS * ATTN_CELLS];
    DOT_SUMS(sums)
    uint per_kv = p.n_heads / p.n_kv_heads, groups = (per_kv + ATTN_HEADS - 1) / ATTN_HEADS;
    for (GROUP_UNITS(u, p.units)) {
        uint group = (uint)(u % groups), kv = (uint)(u / groups % p.n_kv_heads);
        uint heads = min(ATTN_HEADS, per_kv - group * ATTN_HEADS);
        uint h0 = kv * per_kv + group * ATTN_HEADS;
        ulong r = u / groups / p.n_kv_heads;
        if (heads == 1)
            attn_unit(1, q, k, v, rows, sinks, sharp, y, &p, r, kv, h0, 1, s, sums);
        else
            attn_unit(ATTN_HEADS, q, k, v, rows, sinks, sharp, y, &p, r, kv, h0, heads, s,
                      sums);
    }
}

// scores[r, i] = scale * sum_h w[r, h] * max(q[r, h] . k_i, 0). A unit is INDEX_CELLS cells of a row.
KERNEL index_score(bytes_in q, bytes_in w, bytes_in k, bytes_in rows, bytes_out scores,
                   const ocl_index_score_params p)
{
    DOT_SUMS(sums)
    uint tiles = (p.max_cells + OCL_INDEX_CELLS - 1) / OCL_INDEX_CELLS;
    for (GROUP_UNITS(u, p.units)) {
        ulong r = u / tiles;
        uint begin = (uint)(u % tiles) * OCL_INDEX_CELLS;
        uint first = UINTS(rows, p.rows)[4 * r + 1], n = UINTS(rows, p.rows)[4 * r + 2];
        uint end = min(n, begin + OCL_INDEX_CELLS);
        for (uint c0 = begin; c0 < end; c0 += DOT_R) {
            bytes_in cells[DOT_R];
            float total[DOT_R];
            for (uint i = 0; i < DOT_R; i++) {
                cells[i] = k + p.k + (ulong)(first + min(c0 + i, n - 1)) * weight_bytes(p.d);
                total[i] = 0.0f;
            }
            for (uint h = 0; h < p.n_heads; h += ATTN_HEADS) {
                const __global float *qs[ATTN_HEADS];
                dot_acc acc[DOT_R * ATTN_HEADS];
                for (uint i = 0; i < ATTN_HEADS; i++)
                    qs[i] = FLOATS(q, p.q) + r * p.q_stride + (ulong)min(h + i, p.n_heads - 1) * p.d;
#pragma unroll
                for (uint i = 0; i < DOT_R * ATTN_HEADS; i++)
                    acc[i] = 0.0f;
                dot_tile(ATTN_HEADS, cells, qs, p.d, acc);
                dot_finish(DOT_R * ATTN_HEADS, acc, sums);
                for (uint i = 0; i < DOT_R; i++)
                    for (uint j = 0; j < ATTN_HEADS && h + j < p.n_heads; j++) {
                        float s = DOT_SUM(sums, i * ATTN_HEADS + j);
                        total[i] += FLOATS(w, p.w)[r * p.w_stride + h + j] * (s < 0.0f ? 0.0f : s);
                    }
                SYNC();
            }
            for (uint i = ITEM; i < DOT_R && c0 + i < end; i += WG)
                FLOATS_OUT(scores, p.scores)[r * p.score_stride + c0 + i] = p.scale * total[i];
        }
    }
}

// One unit: head h of row r, over all cells, before the row's position or behind it.
INLINE void bias_unit(bytes_in bias, bytes_in buckets, bytes_in q, bytes_in k, bytes_in v,
                      bytes_in rows, bytes_out y, const ocl_attn_bias_params *p, ulong r, uint h,
                      SHARED float *s, dot_sums sums)
{
    const __global uint *row = UINTS(rows, p->rows) + 4 * r;
    ulong head = weight_bytes(p->d), cell_bytes = p->n_heads * head;
    ulong at = row[1] * cell_bytes + h * head;
    const __global float *qs[1] = {FLOATS(q, p->q) + r * p->q_stride + (ulong)h * p->d};
    attn_heads a;
    a.y[0] = FLOATS_OUT(y, p->y) + (r * p->n_heads + h) * p->d;
    a.top[0] = -INFINITY;
    a.total[0] = 0.0f;
    for (uint c0 = 0; c0 < row[2]; c0 += ATTN_CELLS) {
        uint count = min(ATTN_CELLS, row[2] - c0);
        for (uint c = 0; c < count; c += DOT_R) {
            bytes_in cells[DOT_R];
            dot_acc acc[DOT_R];
            for (uint i = 0; i < DOT_R; i++) {
                cells[i] = k + p->k + at + (c0 + min(c + i, count - 1)) * cell_bytes;
                acc[i] = 0.0f;
            }
            dot_tile(1, cells, qs, p->d, acc);
            attn_scores_keep(1, acc, c, count, p->scale, 0.0f, 1.0f, s, sums);
        }
        SYNC();
        for (uint i = ITEM; i < count; i += WG) {
            long to = (long)(c0 + i) - row[3] + p->zero;
            uint bucket = UINTS(buckets, p->buckets)[clamp(to, 0l, (long)p->n_buckets - 1)];
            s[i] += vector_element(bias, p->bias, (ulong)bucket * p->n_heads + h);
        }
        attn_weigh(1, count, &a, s);
        attn_add(1, v + p->v + at + c0 * cell_bytes, NULL, cell_bytes, p->d, count, 1, c0 == 0, &a,
                 s);
    }
    attn_divide(p->d, 1, &a);
}

KERNEL attn_bias(bytes_in bias, bytes_in buckets, bytes_in q, bytes_in k, bytes_in v, bytes_in rows,
                 bytes_out y, const ocl_attn_bias_params p)
{
    SHARED float s[ATTN_HEADS * ATTN_CELLS];
    DOT_SUMS(sums)
    for (GROUP_UNITS(u, p.units))
        bias_unit(bias, buckets, q, k, v, rows, y, &p, u / p.n_heads, (uint)(u % p.n_heads), s,
                  sums);
}
