/* Quantisers that search: see quantise_block.h. Every one of them minimises the sum of squared
 * errors of what its block will decode to.
 *
 * In a sub-block a number of scales are tried; the codes that a scale gives have a best scale of
 * their own by least squares, and the pair with the least error is kept. The super-scale is then
 * rounded to float16, the sub-block scales to integers of it, and around each rounded scale the
 * neighbours are tried with the codes that they give, so the error counted is that of the bits
 * written. Sums run in LANES accumulators: the compiler vectorises them, the order is fixed.
 *
 * d f16 subnormal or zero: where a super-scale rounds to zero the least one is taken; blocks of
 * tiny values keep what can be kept. */
#include "runtime/quantise_block.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "runtime/base/f16.h"
#include "runtime/base/format.h"

enum { LANES = 8, SUB = 32 };

#define TINY 0x1p-100f /* searches divide by what is above it */

/* v to the nearest integer, for |v| < 2^22; in plain arithmetic, so that it vectorises. */
static inline float nearest(float v)
{
    return (v + 0x1.8p23f) - 0x1.8p23f;
}

/* A NaN gives `low`. */
static inline float clamp(float v, float low, float high)
{
    v = v > low ? v : low;
    return v < high ? v : high;
}

static float lanes_sum(const float lanes[LANES])
{
    float a = (lanes[0] + lanes[4]) + (lanes[2] + lanes[6]);
    float b = (lanes[1] + lanes[5]) + (lanes[3] + lanes[7]);
    return a + b;
}

/* A super-scale that serves scales up to `max` > 0 as integers up to `steps`: its float16 bits,
 * and its value in *d. */
static uint16_t super_scale(float max, float steps, float *d)
{
    uint16_t half = cf_f32_to_f16(max / steps);
    if ((half & 0x7fffu) == 0)
        half |= 1;
    else if ((half & 0x7fffu) >= 0x7c00u)
        half = (uint16_t)((half & 0x8000u) | 0x7bffu);
    *d = cf_f16_to_f32(half);
    return half;
}

/* ---- Q4_K, Q5_K: x is about scale * code - min, scale and min at least 0 ---- */

/* Codes of x for one scale and min, and the squared error of what they decode to. */
static float affine_codes(const float *x, float scale, float min, float max_code, float code[SUB])
{
    float miss[LANES] = {0}, inverse = scale > 0 ? 1.0f / scale : 0;
    if (!(inverse <= FLT_MAX))
        inverse = 0;
    for (int i = 0; i < SUB; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float c = nearest(clamp((x[i + l] + min) * inverse, 0, max_code));
            float e = (scale * c - min) - x[i + l];
            code[i + l] = c;
            miss[l] += e * e;
        }
    return lanes_sum(miss);
}

/* The scale and min of least squares for the codes that `inverse` gives. */
static void affine_fit(const float *x, float low, float inverse, float max_code, float *scale,
                       float *min)
{
    float s1[LANES] = {0}, s2[LANES] = {0}, sx[LANES] = {0}, sxc[LANES] = {0};
    for (int i = 0; i < SUB; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float v = x[i + l], c = nearest(clamp((v - low) * inverse, 0, max_code));
            s1[l] += c;
            s2[l] += c * c;
            sx[l] += v;
            sxc[l] += v * c;
        }
    double c1 = lanes_sum(s1), c2 = lanes_sum(s2), v1 = lanes_sum(sx), vc = lanes_sum(sxc);
    double det = SUB * c2 - c1 * c1, slope = 0, offset = 0;
    if (det > 0) {
        slope = (SUB * vc - v1 * c1) / det;
        offset = (c2 * v1 - c1 * vc) / det;
    }
    if (offset > 0 || det <= 0) { /* min cannot be negative */
        offset = 0;
        slope = c2 > 0 ? vc / c2 : 0;
    }
    *scale = slope > 0 ? (float)slope : 0;
    *min = (float)-offset;
}

/* The best scale and min of a sub-block of 32. */
static void affine_search(const float *x, float max_code, float *scale, float *min)
{
    enum { STEPS = 11 };
    float low = 0, high = 0, code[SUB];
    for (int i = 0; i < SUB; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float width = high - low;
    *scale = width / max_code;
    *min = -low;
    float best = affine_codes(x, *scale, *min, max_code, code);
    if (!(width > TINY) || !(width <= FLT_MAX))
        return; /* nothing to divide by; what it decodes to is all but exact or out of range */
    for (int i = 0; i < STEPS; i++) {
        float s, m, inverse = (max_code - 1.0f + 0.2f * (float)i) / width;
        affine_fit(x, low, inverse, max_code, &s, &m);
        float miss = affine_codes(x, s, m, max_code, code);
        if (miss < best) {
            best = miss;
            *scale = s;
            *min = m;
        }
    }
}

/* The 6-bit scales and mins of 8 sub-blocks as Q4_K and Q5_K pack them. */
static void scale_min_put(const uint8_t scale[8], const uint8_t min[8], uint8_t out[12])
{
    for (int s = 0; s < 4; s++) {
        out[s] = (uint8_t)(scale[s] | scale[s + 4] >> 4 << 6);
        out[s + 4] = (uint8_t)(min[s] | min[s + 4] >> 4 << 6);
        out[s + 8] = (uint8_t)((scale[s + 4] & 15) | (min[s + 4] & 15) << 4);
    }
}

/* Integer scale and min of one sub-block: the rounded ones or neighbours, by error. */
static void affine_round(const float *x, float d, float dmin, float max_code, float scale,
                         float min, uint8_t *scale_out, uint8_t *min_out, float code[SUB])
{
    float sc = d > 0 ? nearest(clamp(scale / d, 0, 63)) : 0;
    float mc = dmin > 0 ? nearest(clamp(min / dmin, 0, 63)) : 0;
    float best = -1, trial[SUB]; /* the first is taken, even if its error overflows */
    for (int i = 0; i < 9; i++) {
        float s = sc + (float)(i % 3 - 1), m = mc + (float)(i / 3 - 1);
        if (s < 0 || s > 63 || m < 0 || m > 63 || (dmin == 0 && m > 0))
            continue;
        float miss = affine_codes(x, d * s, dmin * m, max_code, trial);
        if (best < 0 || miss < best) {
            best = miss;
            *scale_out = (uint8_t)s;
            *min_out = (uint8_t)m;
            memcpy(code, trial, sizeof trial);
        }
    }
}

/* d, dmin and the 12 bytes of scales to out, the codes to `code`. */
static void affine_block(const float *x, float max_code, uint8_t out[16], uint8_t code[256])
{
    float scale[8], min[8], max_scale = 0, max_min = 0, d = 0, dmin = 0;
    uint8_t scale_code[8] = {0}, min_code[8] = {0};
    for (int s = 0; s < 8; s++) {
        affine_search(x + SUB * s, max_code, &scale[s], &min[s]);
        max_scale = scale[s] > max_scale ? scale[s] : max_scale;
        max_min = min[s] > max_min ? min[s] : max_min;
    }
    cf_put_u16(out, max_scale > 0 ? super_scale(max_scale, 63, &d) : 0);
    cf_put_u16(out + 2, max_min > 0 ? super_scale(max_min, 63, &dmin) : 0);
    for (int s = 0; s < 8; s++) {
        float best[SUB] = {0};
        affine_round(x + SUB * s, d, dmin, max_code, scale[s], min[s], &scale_code[s], &min_code[s],
                     best);
        for (int i = 0; i < SUB; i++)
            code[SUB * s + i] = (uint8_t)best[i];
    }
    scale_min_put(scale_code, min_code, out + 4);
}

/* Nibbles of sub-blocks 2k (low) and 2k + 1 (high) side by side. */
static void k_nibbles_put(const uint8_t code[256], uint8_t out[128])
{
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < SUB; i++)
            out[SUB * k + i] =
                (uint8_t)((code[64 * k + i] & 15) | (code[64 * k + SUB + i] & 15) << 4);
}

void cf_quantise_q4_k(const float x[256], uint8_t out[144])
{
    uint8_t code[256];
    affine_block(x, 15, out, code);
    k_nibbles_put(code, out + 16);
}

void cf_quantise_q5_k(const float x[256], uint8_t out[176])
{
    uint8_t code[256];
    affine_block(x, 31, out, code);
    for (int i = 0; i < SUB; i++) {
        unsigned bits = 0;
        for (int s = 0; s < 8; s++)
            bits |= (code[SUB * s + i] >> 4 & 1u) << s;
        out[16 + i] = (uint8_t)bits;
    }
    k_nibbles_put(code, out + 48);
}

/* ---- Q6_K: x is about scale * code, code -32..31, 16 values to a scale ---- */

enum { SIX = 16 };

static float signed_codes(const float *x, float scale, float code[SIX])
{
    float miss[LANES] = {0}, inverse = scale != 0 ? 1.0f / scale : 0;
    if (!(fabsf(inverse) <= FLT_MAX))
        inverse = 0;
    for (int i = 0; i < SIX; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float c = nearest(clamp(x[i + l] * inverse, -32, 31));
            float e = scale * c - x[i + l];
            code[i + l] = c;
            miss[l] += e * e;
        }
    return lanes_sum(miss);
}

/* The best scale of a sub-block of 16; it may be negative: the largest value then takes -32. */
static float signed_search(const float *x)
{
    enum { STEPS = 13 };
    float max = 0, code[SIX];
    for (int i = 0; i < SIX; i++)
        max = fabsf(x[i]) > fabsf(max) ? x[i] : max;
    if (!(fabsf(max) > TINY))
        return 0;
    float scale = max / -32, best = signed_codes(x, scale, code);
    for (int k = 0; k < STEPS; k++) {
        float inverse = -(31.0f + 0.2f * (float)k) / max;
        float cc[LANES] = {0}, xc[LANES] = {0};
        for (int i = 0; i < SIX; i += LANES)
            for (int l = 0; l < LANES; l++) {
                float c = nearest(clamp(x[i + l] * inverse, -32, 31));
                cc[l] += c * c;
                xc[l] += x[i + l] * c;
            }
        float fit = lanes_sum(xc) / lanes_sum(cc), miss = signed_codes(x, fit, code);
        if (miss < best) {
            best = miss;
            scale = fit;
        }
    }
    return scale;
}

/* Integer scale of one sub-block: the rounded one or a neighbour, by error; its codes, 0..63. */
static int8_t signed_round(const float *x, float d, float scale, uint8_t code[SIX])
{
    float middle = d != 0 ? nearest(clamp(scale / d, -128, 127)) : 0;
    float best = -1, trial[SIX];
    int8_t kept = 0;
    for (int k = -1; k <= 1; k++) {
        float s = middle + (float)k;
        if (s < -128 || s > 127)
            continue;
        float miss = signed_codes(x, d * s, trial);
        if (best < 0 || miss < best) {
            best = miss;
            kept = (int8_t)s;
            for (int i = 0; i < SIX; i++)
                code[i] = (uint8_t)(trial[i] + 32);
        }
    }
    return kept;
}

void cf_quantise_q6_k(const float x[256], uint8_t out[210])
{
    float scale[16], max = 0, d = 0;
    uint8_t code[256];
    for (int s = 0; s < 16; s++) {
        scale[s] = signed_search(x + SIX * s);
        max = fabsf(scale[s]) > fabsf(max) ? scale[s] : max;
    }
    /* The largest scale takes -128. */
    cf_put_u16(out + 208, max != 0 ? super_scale(max, -128, &d) : 0);
    for (int s = 0; s < 16; s++) {
        memset(code + SIX * s, 32, SIX);
        out[192 + s] = (uint8_t)signed_round(x + SIX * s, d, scale[s], code + SIX * s);
    }
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *c = code + 128 * half + i;
            out[64 * half + i] = (uint8_t)((c[0] & 15) | (c[64] & 15) << 4);
            out[64 * half + 32 + i] = (uint8_t)((c[32] & 15) | (c[96] & 15) << 4);
            out[128 + 32 * half + i] =
                (uint8_t)(c[0] >> 4 | c[32] >> 4 << 2 | c[64] >> 4 << 4 | c[96] >> 4 << 6);
        }
}

/* ---- IQ4_NL: x is about scale * value[code], one scale to 32 values ---- */

/* The code of the nearest value: how many of the midpoints lie below. */
static void curve_codes(const float *x, float inverse, int32_t code[SUB])
{
    memset(code, 0, SUB * sizeof *code);
    for (int k = 0; k < 15; k++) {
        float middle = 0.5f * (float)(cf_iq4_values[k] + cf_iq4_values[k + 1]);
        for (int i = 0; i < SUB; i++)
            code[i] += x[i] * inverse > middle;
    }
}

static float curve_miss(const float *x, float scale, const int32_t code[SUB])
{
    float miss = 0;
    for (int i = 0; i < SUB; i++) {
        float e = scale * (float)cf_iq4_values[code[i]] - x[i];
        miss += e * e;
    }
    return miss;
}

/* The best scale, for `max` the value of largest magnitude: it is tried around either end of the
 * values, which are not symmetric. */
static float curve_search(const float *x, float max)
{
    static const float ends[2] = {-127, 113};
    enum { AROUND = 4 };
    float best = INFINITY, scale = max / ends[0];
    int32_t code[SUB];
    for (int k = 0; k < 2 * (2 * AROUND + 1); k++) {
        float end = ends[k % 2] + 3.0f * (float)(k / 2 - AROUND), vv = 0, xv = 0;
        curve_codes(x, end / max, code);
        for (int i = 0; i < SUB; i++) {
            float v = (float)cf_iq4_values[code[i]];
            vv += v * v;
            xv += x[i] * v;
        }
        float miss = curve_miss(x, xv / vv, code);
        if (miss < best) {
            best = miss;
            scale = xv / vv;
        }
    }
    return scale;
}

void cf_quantise_iq4_nl(const float x[32], uint8_t out[18])
{
    float max = 0, d = 0, scale = 0;
    int32_t code[SUB];
    for (int i = 0; i < SUB; i++)
        max = fabsf(x[i]) > fabsf(max) ? x[i] : max;
    if (fabsf(max) > TINY)
        scale = curve_search(x, max);
    cf_put_u16(out, scale != 0 ? super_scale(scale, 1, &d) : 0);
    curve_codes(x, d != 0 ? 1.0f / d : 0, code); /* all zero: code 8 */
    for (int i = 0; i < 16; i++)
        out[2 + i] = (uint8_t)(code[i] | code[i + 16] << 4);
}
