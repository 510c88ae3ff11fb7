/* The inner loops of the reference: see ref_math.h. */
#include "gpu/ref/ref_math.h"

#include <math.h>
#include <string.h>

#include "gpu/formats.h"
#include "gpu/ref/ref_ops.h"
#include "runtime/base/f8.h"

enum { LANES = 16 };

/* cf_f16_to_f32 without branches and in plain loops, so that it vectorises: the value as a
 * subnormal and as a normal number are computed, one is kept. */
static void f16_decode(const uint16_t *h, uint32_t n, float out[CF_REF_BLOCK])
{
    uint32_t bits[CF_REF_BLOCK];
    for (uint32_t i = 0; i < n; i++)
        out[i] = (float)(int32_t)(h[i] & 0x7fff) * 0x1p-24f;
    memcpy(bits, out, n * sizeof *bits);
    for (uint32_t i = 0; i < n; i++) {
        int32_t rest = h[i] & 0x7fff;
        uint32_t sign = (uint32_t)(h[i] & 0x8000) << 16;
        uint32_t exponent = rest >= 0x7c00 ? 0x70000000u : 0x38000000u; /* all ones stay so */
        uint32_t normal = ((uint32_t)rest << 13) + exponent;
        bits[i] = sign | (rest >= 0x400 ? normal : bits[i]);
    }
    memcpy(out, bits, n * sizeof *bits);
}

const float *cf_ref_decode(cf_format t, const void *row, uint64_t begin, uint32_t n,
                           float scratch[CF_REF_BLOCK])
{
    if (t == CF_F32)
        return (const float *)row + begin;
    const uint16_t *h = row;
    if (t == CF_F16)
        f16_decode(h + begin, n, scratch);
    else if (t == CF_BF16)
        for (uint32_t i = 0; i < n; i++)
            scratch[i] = cf_bf16_to_f32(h[begin + i]);
    else
        cf_ref_format_decode(t, row, begin, n, scratch);
    return scratch;
}

/* Pointers that advance, not indices: gcc 12 then keeps the 16 sums in vector registers. */
static void lanes_add(float lanes[LANES], const float *a, const float *b, uint32_t n)
{
    float sum[LANES];
    for (int l = 0; l < LANES; l++)
        sum[l] = lanes[l];
    const float *end = a + n / LANES * LANES;
    for (; a < end; a += LANES, b += LANES)
        for (int l = 0; l < LANES; l++)
            sum[l] += a[l] * b[l];
    for (int l = 0; l < LANES; l++)
        lanes[l] = sum[l];
    for (uint32_t l = 0; l < n % LANES; l++)
        lanes[l] += a[l] * b[l];
}

static float lanes_sum(float lanes[LANES])
{
    for (int width = LANES / 2; width; width /= 2)
        for (int l = 0; l < width; l++)
            lanes[l] += lanes[l + width];
    return lanes[0];
}

void cf_ref_dots(cf_format t, const void *row, uint32_t n, const float *const *x, uint32_t n_x,
                 float *out)
{
    float lanes[CF_REF_ROWS][LANES] = {{0}}, scratch[CF_REF_BLOCK];
    for (uint32_t k = 0; k < n; k += CF_REF_BLOCK) {
        uint32_t len = n - k < CF_REF_BLOCK ? n - k : CF_REF_BLOCK;
        const float *w = cf_ref_decode(t, row, k, len, scratch);
        for (uint32_t i = 0; i < n_x; i++)
            lanes_add(lanes[i], w, x[i] + k, len);
    }
    for (uint32_t i = 0; i < n_x; i++)
        out[i] = lanes_sum(lanes[i]);
}

void cf_ref_axpy(cf_format t, const void *row, uint64_t begin, uint32_t n, float a, float *y)
{
    float scratch[CF_REF_BLOCK];
    for (uint32_t k = 0; k < n; k += CF_REF_BLOCK) {
        uint32_t len = n - k < CF_REF_BLOCK ? n - k : CF_REF_BLOCK;
        const float *w = cf_ref_decode(t, row, begin + k, len, scratch);
        for (uint32_t i = 0; i < len; i++)
            y[k + i] += a * w[i];
    }
}

/* Columns [k, k + len) of n_o outputs of a transposed weight, one output after the other. Read by
 * columns: there the outputs are neighbours, or every row_step-th is one. */
static void tile_gather(const cf_weight *w, uint64_t o, uint32_t n_o, uint64_t k, uint32_t len,
                        float tile[CF_REF_OUTS][CF_REF_BLOCK])
{
    float scratch[CF_REF_BLOCK];
    uint64_t stride = w->stride ? w->stride : w->rows, step = w->row_step ? w->row_step : 1;
    for (uint32_t c = 0; c < len; c++) {
        uint64_t first = (k + c) * stride + w->row_first + o * step;
        uint32_t n = (uint32_t)((n_o - 1) * step + 1);
        if (n > CF_REF_BLOCK) {
            for (uint32_t j = 0; j < n_o; j++)
                tile[j][c] =
                    *cf_ref_decode(w->dtype, cf_ref_at(w->span), first + j * step, 1, scratch);
            continue;
        }
        const float *v = cf_ref_decode(w->dtype, cf_ref_at(w->span), first, n, scratch);
        for (uint32_t j = 0; j < n_o; j++)
            tile[j][c] = v[j * step];
    }
}

static float outer_scale(const cf_weight *w, uint64_t index)
{
    float scratch[CF_REF_BLOCK];
    if (w->scale_format == CF_F8_E8M0)
        return cf_e8m0_to_f32(((const uint8_t *)cf_ref_at(w->scales))[index]);
    return *cf_ref_decode(w->scale_format, cf_ref_at(w->scales), index, 1, scratch);
}

void cf_ref_weight_decode(const cf_weight *w, uint64_t o, uint32_t k, uint32_t len,
                          float row[CF_REF_BLOCK])
{
    float scratch[CF_REF_BLOCK];
    const float *v = cf_ref_decode(w->dtype, cf_ref_weight_row(w, o), k, len, scratch);
    memcpy(row, v, len * sizeof *row);
    if (!w->scale_rows)
        return;
    uint64_t stored = w->row_first + o * (w->row_step ? w->row_step : 1);
    uint64_t per_row = (w->cols + w->scale_cols - 1) / w->scale_cols;
    uint64_t scales = stored / w->scale_rows * per_row;
    for (uint32_t i = 0; i < len;) {
        uint32_t left = w->scale_cols - (k + i) % w->scale_cols;
        uint32_t n = left < len - i ? left : len - i;
        float scale = outer_scale(w, scales + (k + i) / w->scale_cols);
        for (uint32_t j = i; j < i + n; j++)
            row[j] *= scale;
        i += n;
    }
}

#define Q8_LEAST 0x1p-100f /* groups of less are 0: d has an inverse */

/* x rounded to 8 bits: see ops.h. Groups begin at x. */
static void round_q8(const float *x, uint32_t n, float *out)
{
    for (uint32_t g = 0; g < n; g += CF_Q8_GROUP) {
        uint32_t end = n - g < CF_Q8_GROUP ? n : g + CF_Q8_GROUP;
        float most = 0;
        for (uint32_t i = g; i < end; i++)
            most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        float d = most < Q8_LEAST ? 0 : most / 127.0f, inverse = most < Q8_LEAST ? 0 : 1.0f / d;
        for (uint32_t i = g; i < end; i++)
            out[i] = d * roundf(x[i] * inverse);
    }
}

void cf_ref_weight_dots(const cf_weight *w, uint64_t o, uint32_t n_o, const float *const *x,
                        uint32_t n_x, bool x_q8, float out[CF_REF_OUTS][CF_REF_ROWS])
{
    if (!w->transposed && !w->scale_rows && !x_q8) {
        for (uint32_t j = 0; j < n_o; j++)
            cf_ref_dots(w->dtype, cf_ref_weight_row(w, o + j), w->cols, x, n_x, out[j]);
        return;
    }
    float lanes[CF_REF_OUTS][CF_REF_ROWS][LANES] = {{{0}}}, tile[CF_REF_OUTS][CF_REF_BLOCK];
    float rounded[CF_REF_BLOCK];
    for (uint32_t k = 0; k < w->cols; k += CF_REF_BLOCK) {
        uint32_t len = w->cols - k < CF_REF_BLOCK ? w->cols - k : CF_REF_BLOCK;
        if (w->transposed)
            tile_gather(w, o, n_o, k, len, tile);
        else
            for (uint32_t j = 0; j < n_o; j++)
                cf_ref_weight_decode(w, o + j, k, len, tile[j]);
        for (uint32_t i = 0; i < n_x; i++) {
            if (x_q8)
                round_q8(x[i] + k, len, rounded);
            for (uint32_t j = 0; j < n_o; j++)
                lanes_add(lanes[j][i], tile[j], x_q8 ? rounded : x[i] + k, len);
        }
    }
    for (uint32_t j = 0; j < n_o; j++)
        for (uint32_t i = 0; i < n_x; i++)
            out[j][i] = lanes_sum(lanes[j][i]);
}

const float *cf_ref_vector(const cf_weight *w, uint64_t begin, uint32_t n,
                           float scratch[CF_REF_BLOCK])
{
    if (!w->transposed)
        return cf_ref_decode(w->dtype, cf_ref_weight_row(w, 0), begin, n, scratch);
    uint64_t stride = w->stride ? w->stride : w->rows;
    for (uint32_t i = 0; i < n; i++) {
        float one[CF_REF_BLOCK];
        scratch[i] = *cf_ref_decode(w->dtype, cf_ref_at(w->span),
                                    (begin + i) * stride + w->row_first, 1, one);
    }
    return scratch;
}

float cf_ref_vector_at(const cf_weight *w, uint64_t i)
{
    float scratch[CF_REF_BLOCK];
    return w->span.buf ? *cf_ref_vector(w, i, 1, scratch) : 0;
}

void cf_ref_softmax_add(cf_ref_softmax *s, float score, cf_format t, const void *row, uint32_t n,
                        float *y)
{
    if (score > s->max) { /* what was summed so far was relative to the old maximum */
        float rescale = expf(s->max - score);
        for (uint32_t i = 0; i < n; i++)
            y[i] *= rescale;
        s->sum *= rescale;
        s->max = score;
    }
    float p = expf(score - s->max);
    s->sum += p;
    cf_ref_axpy(t, row, 0, n, p, y);
}

void cf_ref_softmax_end(const cf_ref_softmax *s, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] /= s->sum;
}

float cf_ref_sum(const float *x, uint32_t n)
{
    float lanes[LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lanes[i % LANES] += x[i];
    return lanes_sum(lanes);
}

float cf_ref_sum_squares(const float *x, uint32_t n, float about)
{
    float lanes[LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lanes[i % LANES] += (x[i] - about) * (x[i] - about);
    return lanes_sum(lanes);
}

float cf_ref_sigmoid(float v)
{
    return 1.0f / (1.0f + expf(-v));
}

float cf_ref_act(const cf_act_params *p, float g, float u)
{
    switch (p->act) {
    case CF_ACT_SILU:
        break;
    case CF_ACT_GELU_TANH: /* sqrt(2 / pi) */
        return 0.5f * g * (1.0f + tanhf(0.7978845608f * (g + 0.044715f * g * g * g))) * u;
    case CF_ACT_RELU: /* a NaN stays one */
        return (g < 0 ? 0 : g) * u;
    case CF_ACT_SWIGLU_CLAMPED:
        g = g > p->limit ? p->limit : g;
        u = u > p->limit ? p->limit : u < -p->limit ? -p->limit : u;
        return g * cf_ref_sigmoid(p->alpha * g) * (u + 1.0f);
    }
    return g / (1.0f + expf(-g)) * u;
}
