// Products of activations with rows of stored matrices: linear, head_linear and the two of routed
// experts are one kernel. A job is one matrix (of an expert: gate and up) and the rows of
// activations that go through it; a unit is unit_rows outputs of one job, of all its rows.
//
// Gate and up, where both are there, are one matrix of twice the rows: 2 o is gate's, 2 o + 1 up's.
//
// A sum has one order, whatever path computes it: LANES sums, lane by lane upwards, then a tree (on
// a GPU: WG sums of blocks, added upwards).
#define DOT_R ((uint)OCL_TILE_ROWS)

typedef struct product_args {
    bytes_in w[2], bias[2], scales[2];
    const __global float *x;
    __global float *y;
    const __global uint *pairs;
    const __global float *weights;
    uint begin, count; // rows; through `pairs` where the op has them
    uint stored;       // rows of the matrix ahead of p->row_first
} product_args;

// A row of the doubled matrix: where it lies, and its first outer scale.
typedef struct weight_row {
    bytes_in at, scales;
    ulong scale;
} weight_row;

INLINE uint product_rows(const ocl_product_params *p)
{
    return p->rows << p->both;
}

INLINE weight_row row_of(const product_args *a, const ocl_product_params *p, uint v)
{
    uint m = v & p->both, o = min(v, product_rows(p) - 1) >> p->both;
    weight_row r = {a->w[m] + (ulong)o * p->w_step[m] * weight_bytes(p->cols), a->scales[m], 0};
    if (p->scale_rows) {
        uint stored = a->stored + p->row_first[m] + o * p->w_step[m];
        r.scale = (ulong)(stored / p->scale_rows) *
                  ((p->cols + p->scale_cols - 1) / p->scale_cols);
    }
    return r;
}

// Outer scales of block b of a row.
INLINE void row_scale(const ocl_product_params *p, weight_row r, uint b, vec *e)
{
#pragma unroll
    for (uint v = 0; v < W_VECS; v++) {
        uint k = b * W_BLOCK + v * LANES;
        if (k < p->cols)
            e[v] *= outer_scale(r.scales, p->scale_format, r.scale + k / p->scale_cols);
    }
}

// Block b of a row, its outer scales applied; zeros behind the row's end.
INLINE void row_block(const ocl_product_params *p, weight_row r, uint b, vec *e)
{
    if ((b + 1) * W_BLOCK <= p->cols)
        weight_block(r.at, b, e);
    else
        weight_tail(r.at, b, p->cols, e);
    if (p->scale_rows)
        row_scale(p, r, b, e);
}

INLINE const __global float *x_row(const product_args *a, const ocl_product_params *p, uint r)
{
    uint at = a->begin + min(r, a->count - 1);
    if (p->x_per_pair)
        at = a->pairs[at] / p->x_per_pair;
    return a->x + (ulong)at * p->x_stride;
}

// Output o of row r from its sum, and up's.
INLINE void product_put(const product_args *a, const ocl_product_params *p, uint o, uint r,
                        float sum, float up)
{
    if (o >= p->rows || r >= a->count)
        return;
    uint at = a->begin + r, pair = p->has_weights || p->y_by_pair ? a->pairs[at] : 0;
    __global float *out = a->y + (ulong)(p->y_by_pair ? pair : at) * p->y_stride + o;
    float weight = p->has_weights ? a->weights[pair] : p->scale;
    ocl_vector bias = {0, p->bias_format[0], p->bias_step[0]};
    float add = vector_or_zero(a->bias[0], bias, o);
    if (p->mode == OCL_PRODUCT_DOWN) {
        *out = weight * (sum + add);
        return;
    }
    float g = weight * sum + add;
    if (p->mode == OCL_PRODUCT_PLAIN) {
        *out = p->accumulate ? g + *out : g;
        return;
    }
    if (p->mode == OCL_GLU_FIRST) {
        *out = g;
        return;
    }
    float u = 1.0f;
    if (p->both) {
        ocl_vector up_bias = {0, p->bias_format[1], p->bias_step[1]};
        u = weight * up + vector_or_zero(a->bias[1], up_bias, o);
    } else if (p->mode == OCL_GLU_SECOND) {
        u = *out;
    }
    *out = activate(p->act, g, u, p->limit, p->alpha);
}

#if WG == 1
// ---- CPU ----
//
// A panel of decoded weights and a block of activations lie in the item's cache; tiles of DOT_R
// weight rows by TILE_T rows of activations run over both, their sums wait in memory meanwhile.
// Up to FEW rows of activations take the weights straight from registers; of large parts one row of
// weights at a time.
#define FEW (PART_VECS <= 2 ? 8u : 4u)
#if PART_VECS <= 4
#define FEW_UNROLL _Pragma("unroll")
#else
#define FEW_UNROLL _Pragma("nounroll")
#endif
#define FEW_T      4u
#define PANEL_VECS 512u // of weights: 32 KiB
#define X_VECS     1536u
#define X_ROWS     48u // a multiple of 3 and TILE_T
#define FEW_ROWS   12u

// What a stretch of a row is scaled with.
typedef struct stretch {
    float scales[STRETCH_SCALES], outer[(STRETCH + 31) / 32];
} stretch;

// Parts of stretch b in the row.
INLINE uint stretch_parts(const ocl_product_params *p, uint b)
{
#if W_VALUES == STRETCH
    return STRETCH_PARTS;
#else
    return min((uint)STRETCH_PARTS, p->cols / PART - b * STRETCH_PARTS);
#endif
}

// Ahead of the n parts of stretch b.
INLINE void stretch_begin(const ocl_product_params *p, weight_row r, uint b, uint n, stretch *s)
{
    weight_scales(r.at, b, n, s->scales);
    if (!p->scale_rows)
        return;
#pragma nounroll
    for (uint i = 0; i < (n * PART + 31) / 32; i++)
        s->outer[i] = outer_scale(r.scales, p->scale_format,
                                  r.scale + (b * STRETCH + i * 32) / p->scale_cols);
}

// Prefetched is the row of the next tile: short rows end before a prefetcher starts.
INLINE void stretch_values(const ocl_product_params *p, weight_row r, uint b, uint part,
                           const stretch *s, vec *e)
{
    const ulong bytes = weight_bytes(STRETCH) / STRETCH_PARTS;
    bytes_in ahead = r.at + DOT_R * weight_bytes(p->cols) + (b * STRETCH_PARTS + part) * bytes;
#pragma unroll
    for (ulong i = 0; i < bytes; i += 64)
        if (bytes > 32 || part % (64 / bytes) == 0) // once a line
            PREFETCH(ahead + i);
    weight_part(r.at, b, part, s->scales, e);
    if (p->scale_rows)
#pragma unroll
        for (uint v = 0; v < PART_VECS; v++)
            e[v] *= s->outer[(part * PART_VECS + v) / 2];
}

// Row v0 and those behind it times t rows of activations from r0 on, straight from the weights.
INLINE void product_few(const uint t, const product_args *a, const ocl_product_params *p, uint v0,
                        uint r0, vec *sums)
{
    const __global float *x[FEW_T];
    weight_row rows[DOT_R];
    stretch s[DOT_R];
    vec acc[DOT_R * FEW_T];
    uint parts = p->cols / PART;
#pragma unroll
    for (uint i = 0; i < t; i++)
        x[i] = x_row(a, p, r0 + i);
#pragma unroll
    for (uint r = 0; r < DOT_R; r++)
        rows[r] = row_of(a, p, v0 + r);
#pragma unroll
    for (uint i = 0; i < DOT_R * t; i++)
        acc[i] = 0.0f;
#pragma nounroll
    for (uint b = 0; b * STRETCH_PARTS < parts; b++) {
        uint n = stretch_parts(p, b);
#pragma nounroll
        for (uint r = 0; r < DOT_R; r++)
            stretch_begin(p, rows[r], b, n, &s[r]);
#pragma nounroll
        for (uint part = 0; part < n; part++) {
            uint k = b * STRETCH + part * PART;
            FEW_UNROLL
            for (uint r = 0; r < DOT_R; r++) {
                vec e[PART_VECS];
                stretch_values(p, rows[r], b, part, &s[r], e);
#pragma unroll
                for (uint i = 0; i < t; i++)
#pragma unroll
                    for (uint v = 0; v < PART_VECS; v++)
                        acc[i * DOT_R + r] = MULTIPLY_ADD(e[v], VEC_LOAD(x[i] + k + v * LANES),
                                                          acc[i * DOT_R + r]);
            }
        }
    }
#if W_VALUES <= 2 // rows in blocks end with one
    if (p->cols % W_BLOCK)
#pragma nounroll
        for (uint r = 0; r < DOT_R; r++) {
            vec e[W_VECS];
            row_block(p, rows[r], parts, e);
            for (uint v = 0; v < W_VECS; v++) {
                uint k = parts * W_BLOCK + v * LANES;
                for (uint i = 0; i < t && k < p->cols; i++)
                    acc[i * DOT_R + r] =
                        MULTIPLY_ADD(e[v], vec_load_n(x[i] + k, p->cols - k), acc[i * DOT_R + r]);
            }
        }
#endif
#pragma unroll
    for (uint i = 0; i < DOT_R * t; i++)
        sums[i] = acc[i];
}

INLINE void product_rows_few(const product_args *a, const ocl_product_params *p, uint first,
                             uint end, vec *sums)
{
#pragma nounroll
    for (uint v = first; v < end; v += DOT_R) {
        vec *out = sums + (v - first) * X_ROWS;
        uint r0 = 0;
#pragma nounroll
        for (; r0 + 2 < a->count; r0 += FEW_T)
            product_few(FEW_T, a, p, v, r0, out + r0 * DOT_R);
        if (r0 + 1 < a->count)
            product_few(2, a, p, v, r0, out + r0 * DOT_R);
        else if (r0 < a->count)
            product_few(1, a, p, v, r0, out + r0 * DOT_R);
    }
}

// `rows` rows of activations from k on, n of their values, zeros behind; `pitch` vectors apart.
INLINE void x_pack(const product_args *a, const ocl_product_params *p, uint r0, uint rows, uint k,
                   uint n, uint pitch, vec *to)
{
    for (uint r = 0; r < rows; r++, to += pitch) {
        const __global float *x = x_row(a, p, r0 + r) + k;
#pragma nounroll
        for (uint i = 0; i < n; i += 32) {
            float16 lo = load_16(x + i, n - i);
            float16 hi = n - i > 16 ? load_16(x + i + 16, n - i - 16) : (float16)0.0f;
            if (p->x_q8)
                q8_round(&lo, &hi);
            vecs_of_16(lo, to + i / LANES);
            vecs_of_16(hi, to + (i + 16) / LANES);
        }
    }
}

INLINE void panel_fill(const product_args *a, const ocl_product_params *p, uint v0, uint rows,
                       uint k, uint n, uint pitch, vec *to)
{
#pragma nounroll
    for (uint r = 0; r < rows; r++) {
        weight_row row = row_of(a, p, v0 + r);
        vec *out = to + r * pitch;
#pragma nounroll
        for (uint b = k / STRETCH; b * STRETCH < k + n && b * STRETCH + PART <= p->cols; b++) {
            stretch s;
            uint parts = stretch_parts(p, b);
            stretch_begin(p, row, b, parts, &s);
#pragma nounroll
            for (uint part = 0; part < parts; part++, out += PART_VECS)
                stretch_values(p, row, b, part, &s, out);
        }
#if W_VALUES <= 2
        if (k + n == p->cols && p->cols % W_BLOCK)
            row_block(p, row, p->cols / W_BLOCK, out);
#endif
    }
}

// sums[i * DOT_R + r] += row r of w . row i of x, over n vectors.
INLINE void product_tile(const uint t, const vec *w, const vec *x, uint pitch, uint n, bool begin,
                         vec *sums)
{
    vec acc[DOT_R * TILE_T];
#pragma unroll
    for (uint i = 0; i < DOT_R * t; i++)
        acc[i] = begin ? (vec)0.0f : sums[i];
#pragma nounroll
    for (uint k = 0; k < n; k++) {
#pragma unroll
        for (uint i = 0; i < t; i++)
#pragma unroll
            for (uint r = 0; r < DOT_R; r++)
                acc[i * DOT_R + r] =
                    MULTIPLY_ADD(w[r * pitch + k], x[i * pitch + k], acc[i * DOT_R + r]);
    }
#pragma unroll
    for (uint i = 0; i < DOT_R * t; i++)
        sums[i] = acc[i];
}

// The sums of `rows` rows from r0 on: of row v of the doubled matrix and row i at
// [(v - first) / DOT_R * DOT_R * X_ROWS + i * DOT_R + (v - first) % DOT_R].
INLINE void product_panels(const product_args *a, const ocl_product_params *p, uint first, uint end,
                           uint r0, uint rows, vec *sums)
{
    vec panel[PANEL_VECS], x[X_VECS];
    uint pitch = rows > FEW_ROWS ? X_VECS / X_ROWS : X_VECS / FEW_ROWS;
    uint step = pitch * LANES, panel_rows = PANEL_VECS / pitch;
#pragma nounroll
    for (uint k = 0; k < p->cols; k += step) {
        uint n = min(step, p->cols - k), vecs = (n + LANES - 1) / LANES;
        x_pack(a, p, r0, rows, k, n, pitch, x);
#pragma nounroll
        for (uint v = first; v < end; v += DOT_R) {
            uint in_panel = (v - first) % panel_rows, i = 0;
            if (in_panel == 0) {
                uint left = (end - v + DOT_R - 1) / DOT_R * DOT_R;
                panel_fill(a, p, v, min(panel_rows, left), k, n, pitch, panel);
            }
            const vec *w = panel + in_panel * pitch;
            vec *out = sums + (v - first) * X_ROWS;
#pragma nounroll
            for (; i + 3 < rows; i += TILE_T)
                product_tile(TILE_T, w, x + i * pitch, pitch, vecs, k == 0, out + i * DOT_R);
            if (i + 1 < rows)
                product_tile(3, w, x + i * pitch, pitch, vecs, k == 0, out + i * DOT_R);
            else if (i < rows)
                product_tile(1, w, x + i * pitch, pitch, vecs, k == 0, out + i * DOT_R);
        }
    }
}

// What becomes of the sums of row v of the doubled matrix and those behind it, with row r.
#if OCL_TILE_ROWS != 4
#error "the sums of a tile are four"
#endif
INLINE void product_put_tile(const product_args *a, const ocl_product_params *p, uint v, uint r,
                             const vec *sums)
{
    float sum[DOT_R];
    vstore4(vec_sum_4(sums), 0, sum);
    if (p->mode == OCL_PRODUCT_PLAIN && p->bias_format[0] == OCL_NO_VECTOR &&
        v + DOT_R <= p->rows) {
        __global float *out = a->y + (ulong)(a->begin + r) * p->y_stride + v;
        float4 g = p->scale * vload4(0, sum) + 0.0f;
        vstore4(p->accumulate ? g + vload4(0, out) : g, 0, out);
        return;
    }
#pragma nounroll
    for (uint i = 0; i < DOT_R; i += 1 + p->both)
        product_put(a, p, (v + i) >> p->both, r, sum[i], sum[i + p->both]);
}

// Outputs first .. end - 1 (at most OCL_PANEL_OUTPUTS) of the doubled matrix, of all rows.
INLINE void product_unit(const product_args *a, const ocl_product_params *p, uint first, uint end)
{
    vec sums[OCL_PANEL_OUTPUTS * X_ROWS];
#pragma nounroll
    for (uint r0 = 0; r0 < a->count; r0 += X_ROWS) {
        uint rows = min(X_ROWS, a->count - r0);
        if (a->count <= FEW && !p->x_q8)
            product_rows_few(a, p, first, end, sums);
        else
            product_panels(a, p, first, end, r0, rows, sums);
#pragma nounroll
        for (uint v = first; v < end; v += DOT_R)
#pragma nounroll
            for (uint i = 0; i < rows; i++)
                product_put_tile(a, p, v, r0 + i, sums + (v - first) * X_ROWS + i * DOT_R);
    }
}
#define PRODUCT_LOCAL
#define PRODUCT_UNIT(first, end) product_unit(&a, &p, first, end)

#else
// ---- GPU ----
//
// The items of a group take turns over the blocks of DOT_R weight rows, for up to DOT_T rows of
// activations.
#define DOT_T 4u
#define PRODUCT_LOCAL __local float sums[DOT_R * DOT_T * (WG + 1)];
#define PRODUCT_SUM(i) sums[(i) * (WG + 1)]

INLINE float dot_add(vec w, vec x, float acc)
{
    acc = fma(w.s0, x.s0, acc);
    acc = fma(w.s1, x.s1, acc);
    acc = fma(w.s2, x.s2, acc);
    acc = fma(w.s3, x.s3, acc);
    acc = fma(w.s4, x.s4, acc);
    acc = fma(w.s5, x.s5, acc);
    acc = fma(w.s6, x.s6, acc);
    return fma(w.s7, x.s7, acc);
}

// LANES activations from column k on, rounded where the op asks for it.
INLINE vec x_vec(const ocl_product_params *p, const __global float *x, uint k)
{
    if (!p->x_q8)
        return vec_load_n(x + k, p->cols - k);
    uint group = k / 32 * 32, n = p->cols - group;
    float16 lo = load_16(x + group, n);
    float16 hi = n > 16 ? load_16(x + group + 16, n - 16) : (float16)0.0f;
    q8_round(&lo, &hi);
    float16 part = k % 32 < 16 ? lo : hi;
    return k % 16 < 8 ? part.lo : part.hi;
}

INLINE void product_tile(const uint t, const product_args *a, const ocl_product_params *p, uint v0,
                         uint r0, __local float *sums)
{
    weight_row rows[DOT_R];
    const __global float *xs[DOT_T];
    float acc[DOT_R * DOT_T];
    for (uint r = 0; r < DOT_R; r++)
        rows[r] = row_of(a, p, v0 + r);
    for (uint i = 0; i < t; i++)
        xs[i] = x_row(a, p, r0 + i);
#pragma unroll
    for (uint i = 0; i < DOT_R * t; i++)
        acc[i] = 0.0f;
    for (uint b = ITEM; b * W_BLOCK < p->cols; b += WG) {
        vec e[DOT_R * W_VECS];
#pragma nounroll
        for (uint r = 0; r < DOT_R; r++)
            row_block(p, rows[r], b, e + r * W_VECS);
#pragma nounroll
        for (uint v = 0; v < W_VECS && b * W_BLOCK + v * LANES < p->cols; v++)
#pragma unroll
            for (uint i = 0; i < t; i++) {
                vec x = x_vec(p, xs[i], b * W_BLOCK + v * LANES);
#pragma unroll
                for (uint r = 0; r < DOT_R; r++)
                    acc[i * DOT_R + r] = dot_add(e[r * W_VECS + v], x, acc[i * DOT_R + r]);
            }
    }
    SYNC(); // whoever still reads the last tile's
    for (uint i = 0; i < DOT_R * t; i++)
        sums[i * (WG + 1) + ITEM] = acc[i];
    SYNC();
    for (uint i = ITEM; i < DOT_R * t; i += WG) {
        float sum = 0.0f;
#pragma nounroll
        for (uint j = 0; j < WG; j++)
            sum += sums[i * (WG + 1) + j];
        PRODUCT_SUM(i) = sum;
    }
    SYNC();
#pragma nounroll
    for (uint i = ITEM << p->both; i < DOT_R * t; i += WG << p->both)
        product_put(a, p, (v0 + i % DOT_R) >> p->both, r0 + i / DOT_R, PRODUCT_SUM(i),
                    PRODUCT_SUM(i + p->both));
}

INLINE void product_unit(const product_args *a, const ocl_product_params *p, uint first, uint end,
                         __local float *sums)
{
    uint r0 = 0;
    for (; r0 + 1 < a->count; r0 += DOT_T)
        for (uint v = first; v < end; v += DOT_R)
            product_tile(DOT_T, a, p, v, r0, sums);
    if (r0 < a->count)
        for (uint v = first; v < end; v += DOT_R)
            product_tile(1, a, p, v, r0, sums);
}
#define PRODUCT_UNIT(first, end) product_unit(&a, &p, first, end, sums)
#endif

KERNEL product(bytes_in w0, bytes_in w1, bytes_in bias0, bytes_in bias1, bytes_in scales0,
               bytes_in scales1, bytes_in x, bytes_in pairs, bytes_in weights, bytes_out y,
               const ocl_product_params p)
{
    PRODUCT_LOCAL
    uint rows = product_rows(&p), blocks = (rows + p.unit_rows - 1) / p.unit_rows;
    for (GROUP_UNITS(u, p.units)) {
        uint j = (uint)(u / blocks), first = (uint)(u % blocks) * p.unit_rows;
        ocl_product_job job = p.jobs[p.by_table ? j : 0];
        ulong move = p.by_table ? 0 : j;
        product_args a;
        a.w[0] = w0 + p.w[0] + 16 * (ulong)job.w[0] + move * p.w_job;
        a.w[1] = w1 + p.w[1] + 16 * (ulong)job.w[1];
        a.bias[0] = bias0 + p.bias[0] + 16 * (ulong)job.bias[0];
        a.bias[1] = bias1 + p.bias[1] + 16 * (ulong)job.bias[1];
        a.scales[0] = scales0 + 16 * (ulong)job.scales[0];
        a.scales[1] = scales1 + 16 * (ulong)job.scales[1];
        a.x = FLOATS(x, p.x) + move * p.x_job;
        a.y = FLOATS_OUT(y, p.y) + move * p.y_job;
        a.pairs = UINTS(pairs, p.pairs);
        a.weights = FLOATS(weights, p.weights);
        a.stored = (uint)move * p.rows_job;
        a.begin = job.begin;
        a.count = job.count;
        if (a.count)
            PRODUCT_UNIT(first, min(first + p.unit_rows, rows));
    }
}
