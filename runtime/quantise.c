/* float32 rows to stored formats: see quantise.h. Here are the formats whose bits are prescribed;
 * quantise_block.c has those that search. Blocks are written byte by byte, little-endian.
 *
 * A code is clamped before it becomes an integer, so that a scale that over- or underflows gives
 * some code and not undefined behaviour. */
#include "runtime/quantise.h"

#include <math.h>
#include <string.h>

#include "runtime/base/err.h"
#include "runtime/base/f8.h"
#include "runtime/quantise_block.h"

/* v truncated, within 0..max; a NaN gives 0. */
static int code_of(float v, int max)
{
    return v > 0 ? v < (float)max ? (int)v : max : 0;
}

static float inverse(float d)
{
    return d != 0 ? 1.0f / d : 0;
}

/* The first value of largest magnitude, with its sign. */
static float extreme(const float *x)
{
    float amax = 0, max = 0;
    for (int i = 0; i < 32; i++)
        if (amax < fabsf(x[i])) {
            amax = fabsf(x[i]);
            max = x[i];
        }
    return max;
}

static void range_of(const float *x, float *min, float *max)
{
    *min = *max = x[0];
    for (int i = 1; i < 32; i++) {
        *min = x[i] < *min ? x[i] : *min;
        *max = x[i] > *max ? x[i] : *max;
    }
}

/* Codes 0..15 to nibbles: value i low, value 16 + i high. */
static void nibbles_put(const uint8_t code[32], uint8_t out[16])
{
    for (int i = 0; i < 16; i++)
        out[i] = (uint8_t)((code[i] & 15) | (code[i + 16] & 15) << 4);
}

/* The fifth bits of 32 codes. */
static void high_bits_put(const uint8_t code[32], uint8_t out[4])
{
    for (int i = 0; i < 4; i++) {
        unsigned bits = 0;
        for (int k = 0; k < 8; k++)
            bits |= (code[8 * i + k] >> 4 & 1u) << k;
        out[i] = (uint8_t)bits;
    }
}

static void f32_block(const float *x, uint8_t *out)
{
    memcpy(out, x, sizeof *x);
}

static void f16_block(const float *x, uint8_t *out)
{
    cf_put_u16(out, cf_f32_to_f16(*x));
}

static void bf16_block(const float *x, uint8_t *out)
{
    cf_put_u16(out, cf_f32_to_bf16(*x));
}

static void q8_0_block(const float *x, uint8_t *out)
{
    float d = fabsf(extreme(x)) / 127.0f, id = inverse(d);
    cf_put_u16(out, cf_f32_to_f16(d));
    for (int i = 0; i < 32; i++) {
        float v = x[i] * id;
        int code = code_of(fabsf(v) + 0.5f, 127); /* half away from zero */
        out[2 + i] = (uint8_t)(v < 0 ? -code : code);
    }
}

static void q4_0_block(const float *x, uint8_t *out)
{
    float d = extreme(x) / -8.0f, id = inverse(d);
    uint8_t code[32];
    cf_put_u16(out, cf_f32_to_f16(d));
    for (int i = 0; i < 32; i++)
        code[i] = (uint8_t)code_of(x[i] * id + 8.5f, 15);
    nibbles_put(code, out + 2);
}

static void q4_1_block(const float *x, uint8_t *out)
{
    float min, max;
    range_of(x, &min, &max);
    float d = (max - min) / 15.0f, id = inverse(d);
    uint8_t code[32];
    cf_put_u16(out, cf_f32_to_f16(d));
    cf_put_u16(out + 2, cf_f32_to_f16(min));
    for (int i = 0; i < 32; i++)
        code[i] = (uint8_t)code_of((x[i] - min) * id + 0.5f, 15);
    nibbles_put(code, out + 4);
}

static void q5_0_block(const float *x, uint8_t *out)
{
    float d = extreme(x) / -16.0f, id = inverse(d);
    uint8_t code[32];
    cf_put_u16(out, cf_f32_to_f16(d));
    for (int i = 0; i < 32; i++)
        code[i] = (uint8_t)code_of(x[i] * id + 16.5f, 31);
    high_bits_put(code, out + 2);
    nibbles_put(code, out + 6);
}

static void q5_1_block(const float *x, uint8_t *out)
{
    float min, max;
    range_of(x, &min, &max);
    float d = (max - min) / 31.0f, id = inverse(d);
    uint8_t code[32];
    cf_put_u16(out, cf_f32_to_f16(d));
    cf_put_u16(out + 2, cf_f32_to_f16(min));
    for (int i = 0; i < 32; i++)
        code[i] = (uint8_t)code_of((x[i] - min) * id + 0.5f, 31);
    high_bits_put(code, out + 4);
    nibbles_put(code, out + 8);
}

static void mxfp4_block(const float *x, uint8_t *out)
{
    float amax = fabsf(extreme(x));
    uint32_t exponent = cf_f32_bits(amax) >> 23; /* of amax, biased; 0: zero or subnormal */
    uint8_t e = exponent > 2 ? (uint8_t)(exponent - 2) : 0, code[32];
    float d = cf_e8m0_half_to_f32(e);
    out[0] = e;
    for (int i = 0; i < 32; i++) {
        float best = INFINITY;
        for (int k = 0; k < 16; k++) { /* the first of the nearest, so +0 before -0 */
            float miss = fabsf((float)cf_e2m1_doubled[k] * d - x[i]);
            if (miss < best) {
                best = miss;
                code[i] = (uint8_t)k;
            }
        }
    }
    nibbles_put(code, out + 1);
}

/* ---- rows ---- */

static void (*const block_quantise[CF_FORMAT_COUNT])(const float *x, uint8_t *out) = {
    [CF_F32] = f32_block,         [CF_F16] = f16_block,
    [CF_BF16] = bf16_block,       [CF_Q4_0] = q4_0_block,
    [CF_Q4_1] = q4_1_block,       [CF_Q5_0] = q5_0_block,
    [CF_Q5_1] = q5_1_block,       [CF_Q8_0] = q8_0_block,
    [CF_MXFP4] = mxfp4_block,     [CF_IQ4_NL] = cf_quantise_iq4_nl,
    [CF_Q4_K] = cf_quantise_q4_k, [CF_Q5_K] = cf_quantise_q5_k,
    [CF_Q6_K] = cf_quantise_q6_k,
};

bool cf_quantise_can(cf_format f)
{
    return (unsigned)f < CF_FORMAT_COUNT && block_quantise[f] != NULL;
}

int64_t cf_quantise_row(cf_format f, const float *x, uint64_t n, void *out)
{
    cf_assert(cf_quantise_can(f) && n % cf_formats[f].block_values == 0);
    if (cf_formats[f].block_values > 1)
        for (uint64_t i = 0; i < n; i++)
            if (!isfinite(x[i]))
                return (int64_t)i;
    uint8_t *at = out;
    for (uint64_t i = 0; i < n; i += cf_formats[f].block_values) {
        block_quantise[f](x + i, at);
        at += cf_formats[f].block_bytes;
    }
    return -1;
}
