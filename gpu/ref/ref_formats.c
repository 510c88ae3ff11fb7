/* Stored weights to float32: see gpu/formats.h. One function per format decodes one block.
 *
 * Blocks are read byte by byte (little-endian, no alignment): in a file a row may start anywhere.
 * The functions follow the byte layout of GGUF; each states it in one line. */
#include "gpu/formats.h"

#include <math.h>
#include <string.h>

#include "gpu/ref/ref_grids.inc"
#include "runtime/base/err.h"
#include "runtime/base/f8.h"

static uint16_t u16_at(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t u32_at(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static float f16_at(const uint8_t *p)
{
    return cf_f16_to_f32(u16_at(p));
}

/* ---- elements ---- */

static void f32_decode(const uint8_t *b, float *y)
{
    memcpy(y, b, sizeof *y);
}

static void f16_decode(const uint8_t *b, float *y)
{
    *y = f16_at(b);
}

static void bf16_decode(const uint8_t *b, float *y)
{
    *y = cf_bf16_to_f32(u16_at(b));
}

static void e2m1_pair_decode(const uint8_t *b, float *y)
{
    y[0] = 0.5f * (float)cf_e2m1_doubled[*b & 15];
    y[1] = 0.5f * (float)cf_e2m1_doubled[*b >> 4];
}

static void i4_pair_decode(const uint8_t *b, float *y)
{
    y[0] = (float)((*b & 15) - 8);
    y[1] = (float)((*b >> 4) - 8);
}

static void e4m3_decode(const uint8_t *b, float *y)
{
    *y = cf_e4m3_to_f32(*b);
}

/* ---- blocks of 32: value i < 16 in the low nibble of byte i, value 16 + i in the high one ---- */

/* d f16, 16 bytes of nibbles */
static void q4_0_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((b[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((b[2 + i] >> 4) - 8) * d;
    }
}

/* d f16, m f16, 16 bytes of nibbles */
static void q4_1_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b), m = f16_at(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)(b[4 + i] & 15) * d + m;
        y[i + 16] = (float)(b[4 + i] >> 4) * d + m;
    }
}

/* The 5-bit code i of a block: nibbles at q, bit i of `high` above them. */
static int code5(const uint8_t *q, uint32_t high, int i)
{
    int low = i < 16 ? q[i] & 15 : q[i - 16] >> 4;
    return low | (int)(high >> i & 1) << 4;
}

/* d f16, 32 high bits, 16 bytes of nibbles */
static void q5_0_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    uint32_t high = u32_at(b + 2);
    for (int i = 0; i < 32; i++)
        y[i] = (float)(code5(b + 6, high, i) - 16) * d;
}

/* d f16, m f16, 32 high bits, 16 bytes of nibbles */
static void q5_1_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b), m = f16_at(b + 2);
    uint32_t high = u32_at(b + 4);
    for (int i = 0; i < 32; i++)
        y[i] = (float)code5(b + 8, high, i) * d + m;
}

/* d f16, 32 signed bytes */
static void q8_0_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    for (int i = 0; i < 32; i++)
        y[i] = (float)(int8_t)b[2 + i] * d;
}

/* d f16, 16 bytes of nibbles */
static void iq4_nl_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)cf_iq4_values[b[2 + i] & 15];
        y[i + 16] = d * (float)cf_iq4_values[b[2 + i] >> 4];
    }
}

/* E8M0 scale, 16 bytes of nibbles */
static void mxfp4_decode(const uint8_t *b, float *y)
{
    float d = cf_e8m0_half_to_f32(b[0]);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)cf_e2m1_doubled[b[1 + i] & 15] * d;
        y[i + 16] = (float)cf_e2m1_doubled[b[1 + i] >> 4] * d;
    }
}

/* 4 UE4M3 scales, 4 x 8 bytes of nibbles, each 8 bytes 16 values: low nibbles, high nibbles */
static void nvfp4_decode(const uint8_t *b, float *y)
{
    for (int k = 0; k < 4; k++, y += 16) {
        const uint8_t *q = b + 4 + 8 * k;
        float d = cf_ue4m3_half_to_f32(b[k]);
        for (int i = 0; i < 8; i++) {
            y[i] = (float)cf_e2m1_doubled[q[i] & 15] * d;
            y[i + 8] = (float)cf_e2m1_doubled[q[i] >> 4] * d;
        }
    }
}

/* ---- blocks of 256 with scales of their own for 16 or 32 values ---- */

/* 16 bytes of (scale, min) nibbles, 64 bytes of 2-bit codes, d f16, dmin f16 */
static void q2_k_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b + 80), dmin = f16_at(b + 82);
    for (int s = 0; s < 16; s++, y += 16) { /* 16 values; 8 runs of them share 32 bytes */
        const uint8_t *q = b + 16 + 32 * (s / 8) + 16 * (s % 2);
        int shift = 2 * (s % 8 / 2);
        float scale = d * (float)(b[s] & 15), min = dmin * (float)(b[s] >> 4);
        for (int i = 0; i < 16; i++)
            y[i] = scale * (float)(q[i] >> shift & 3) - min;
    }
}

/* 32 bytes of high bits, 64 bytes of 2-bit codes, 12 bytes of 6-bit scales, d f16 */
static void q3_k_decode(const uint8_t *b, float *y)
{
    const uint8_t *packed = b + 96;
    float d = f16_at(b + 108);
    for (int s = 0; s < 16; s++, y += 16) {
        const uint8_t *q = b + 32 + 32 * (s / 8) + 16 * (s % 2), *high = b + 16 * (s % 2);
        int shift = 2 * (s % 8 / 2), bit = s / 2;
        int low = packed[s % 8] >> 4 * (s / 8) & 15;
        int code = low | (packed[8 + s % 4] >> 2 * (s / 4) & 3) << 4;
        float scale = d * (float)(code - 32);
        for (int i = 0; i < 16; i++)
            y[i] = scale * (float)((q[i] >> shift & 3) - (high[i] >> bit & 1 ? 0 : 4));
    }
}

/* 6-bit scale and min of sub-block s < 8 from the 12 bytes of Q4_K and Q5_K. */
static void scale_min(const uint8_t *p, int s, float *scale, float *min)
{
    if (s < 4) {
        *scale = (float)(p[s] & 63);
        *min = (float)(p[s + 4] & 63);
    } else {
        *scale = (float)((p[s + 4] & 15) | p[s - 4] >> 6 << 4);
        *min = (float)(p[s + 4] >> 4 | p[s] >> 6 << 4);
    }
}

/* d f16, dmin f16, 12 bytes of scales, 4 x 32 bytes: 32 low nibbles, 32 high nibbles */
static void q4_k_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b), dmin = f16_at(b + 2), scale, min;
    for (int s = 0; s < 8; s++, y += 32) {
        const uint8_t *q = b + 16 + 32 * (s / 2);
        scale_min(b + 4, s, &scale, &min);
        scale *= d;
        min *= dmin;
        for (int i = 0; i < 32; i++)
            y[i] = scale * (float)(q[i] >> 4 * (s % 2) & 15) - min;
    }
}

/* d f16, dmin f16, 12 bytes of scales, 32 bytes of high bits, nibbles as in Q4_K */
static void q5_k_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b), dmin = f16_at(b + 2), scale, min;
    for (int s = 0; s < 8; s++, y += 32) {
        const uint8_t *q = b + 48 + 32 * (s / 2), *high = b + 16;
        scale_min(b + 4, s, &scale, &min);
        scale *= d;
        min *= dmin;
        for (int i = 0; i < 32; i++) {
            int code = (q[i] >> 4 * (s % 2) & 15) + ((high[i] >> s & 1) << 4);
            y[i] = scale * (float)code - min;
        }
    }
}

/* 128 bytes of nibbles, 64 bytes of 2 high bits, 16 signed scales, d f16 */
static void q6_k_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b + 208);
    for (int s = 0; s < 16; s++, y += 16) {
        int quarter = s % 8 / 2; /* 32 values of a half of 128 */
        const uint8_t *low = b + 64 * (s / 8) + 32 * (quarter % 2) + 16 * (s % 2);
        const uint8_t *high = b + 128 + 32 * (s / 8) + 16 * (s % 2);
        float scale = d * (float)(int8_t)b[192 + s];
        for (int i = 0; i < 16; i++) {
            int code = (low[i] >> 4 * (quarter / 2) & 15) | (high[i] >> 2 * quarter & 3) << 4;
            y[i] = scale * (float)(code - 32);
        }
    }
}

/* d f16, 16 bits of high scale bits, 4 bytes of low scale nibbles, 8 x 16 bytes as IQ4_NL */
static void iq4_xs_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    uint32_t high = u16_at(b + 2);
    for (int s = 0; s < 8; s++, y += 32) {
        const uint8_t *q = b + 8 + 16 * s;
        int code = (b[4 + s / 2] >> 4 * (s % 2) & 15) | (int)(high >> 2 * s & 3) << 4;
        float scale = d * (float)(code - 32);
        for (int i = 0; i < 16; i++) {
            y[i] = scale * (float)cf_iq4_values[q[i] & 15];
            y[i + 16] = scale * (float)cf_iq4_values[q[i] >> 4];
        }
    }
}

/* ---- codebooks ---- */

static const float iq2_values[4] = {8, 25, 43, 0}; /* the digit 3 does not occur */
static const float iq3_xxs_values[8] = {4, 12, 20, 28, 36, 44, 52, 62};
static const float iq3_s_values[8] = {1, 3, 5, 7, 9, 11, 13, 15};

/* 8 values of an IQ2 grid entry; bit i of `signs` negates value i. */
static void iq2_put(uint16_t entry, uint32_t signs, float scale, float *y)
{
    for (int i = 0; i < 8; i++) {
        float v = scale * iq2_values[entry >> 2 * i & 3];
        y[i] = signs >> i & 1 ? -v : v;
    }
}

/* 4 values of an IQ3 grid entry. */
static void iq3_put(uint16_t entry, const float values[8], uint32_t signs, float scale, float *y)
{
    for (int i = 0; i < 4; i++) {
        float v = scale * values[entry >> 3 * i & 7];
        y[i] = signs >> i & 1 ? -v : v;
    }
}

/* 7 stored signs; the eighth makes their number even. */
static uint32_t signs7(uint32_t code)
{
    uint32_t parity = code ^ code >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return code | (parity & 1) << 7;
}

/* d f16, 8 x (4 bytes of indices, 4 x 7 signs and a 4-bit scale) */
static void iq2_xxs_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    for (int s = 0; s < 8; s++) {
        const uint8_t *q = b + 2 + 8 * s;
        uint32_t word = u32_at(q + 4);
        float scale = d * (0.5f + (float)(word >> 28)) * 0.25f;
        for (int k = 0; k < 4; k++, y += 8)
            iq2_put(grid_iq2_xxs[q[k]], signs7(word >> 7 * k & 127), scale, y);
    }
}

/* d f16, 32 x (9-bit index, 7 signs), 8 bytes of scale nibbles */
static void iq2_xs_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    for (int k = 0; k < 32; k++, y += 8) {
        uint32_t q = u16_at(b + 2 + 2 * k);
        int code = b[66 + k / 4] >> 4 * (k % 4 / 2) & 15;
        float scale = d * (0.5f + (float)code) * 0.25f;
        iq2_put(grid_iq2_xs[q & 511], signs7(q >> 9), scale, y);
    }
}

/* d f16, 32 bytes of low index bits, 32 bytes of signs, 8 of high index bits, 8 of scales */
static void iq2_s_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    for (int k = 0; k < 32; k++, y += 8) {
        int index = b[2 + k] | (b[66 + k / 4] >> 2 * (k % 4) & 3) << 8;
        int code = b[74 + k / 4] >> 4 * (k % 4 / 2) & 15;
        float scale = d * (0.5f + (float)code) * 0.25f;
        iq2_put(grid_iq2_s[index], b[34 + k], scale, y);
    }
}

/* d f16, 64 bytes of indices, 8 x (4 x 7 signs and a 4-bit scale) */
static void iq3_xxs_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    for (int s = 0; s < 8; s++) {
        uint32_t word = u32_at(b + 66 + 4 * s);
        float scale = d * (0.5f + (float)(word >> 28)) * 0.5f;
        for (int k = 0; k < 4; k++, y += 8) {
            const uint8_t *q = b + 2 + 8 * s + 2 * k;
            uint32_t signs = signs7(word >> 7 * k & 127);
            iq3_put(grid_iq3_xxs[q[0]], iq3_xxs_values, signs, scale, y);
            iq3_put(grid_iq3_xxs[q[1]], iq3_xxs_values, signs >> 4, scale, y + 4);
        }
    }
}

/* d f16, 64 bytes of low index bits, 8 of high index bits, 32 of signs, 4 of scale nibbles */
static void iq3_s_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    for (int k = 0; k < 64; k++, y += 4) {
        int s = k / 8, code = b[106 + s / 2] >> 4 * (s % 2) & 15;
        int index = b[2 + k] | (b[66 + s] >> k % 8 & 1) << 8;
        uint32_t signs = (uint32_t)b[74 + k / 2] >> 4 * (k % 2);
        iq3_put(grid_iq3_s[index], iq3_s_values, signs, d * (float)(1 + 2 * code), y);
    }
}

/* 8 values of an IQ1 grid entry: -1, 0 or 1, moved by delta. */
static void iq1_put(uint16_t entry, float delta, float scale, float *y)
{
    for (int i = 0; i < 8; i++)
        y[i] = scale * ((float)((int)(entry >> 2 * i & 3) - 1) + delta);
}

/* d f16, 32 bytes of low index bits, 8 x 16 bits: 4 x 3 index bits, 3 of scale, sign of delta */
static void iq1_s_decode(const uint8_t *b, float *y)
{
    float d = f16_at(b);
    for (int k = 0; k < 32; k++, y += 8) {
        int word = u16_at(b + 34 + 2 * (k / 4));
        int index = b[2 + k] | (word >> 3 * (k % 4) & 7) << 8;
        float scale = d * (float)(2 * (word >> 12 & 7) + 1);
        iq1_put(grid_iq1[index], word & 0x8000 ? -0.125f : 0.125f, scale, y);
    }
}

/* 32 bytes of low index bits, 32 nibbles (3 index bits, sign of delta), 4 x 16 bits: four 3-bit
 * scales and four bits of d, a f16 */
static void iq1_m_decode(const uint8_t *b, float *y)
{
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++)
        bits |= (uint32_t)u16_at(b + 48 + 2 * i) >> 12 << 4 * i;
    float d = cf_f16_to_f32((uint16_t)bits);
    for (int k = 0; k < 32; k++, y += 8) {
        int nibble = b[32 + k / 2] >> 4 * (k % 2) & 15, s = k / 2;
        int code = u16_at(b + 48 + 2 * (s / 4)) >> 3 * (s % 4) & 7;
        int index = b[k] | (nibble & 7) << 8;
        iq1_put(grid_iq1[index], nibble & 8 ? -0.125f : 0.125f, d * (float)(2 * code + 1), y);
    }
}

/* ---- rows ---- */

static void (*const block_decode[CF_FORMAT_COMPUTABLE])(const uint8_t *block, float *y) = {
    [CF_F32] = f32_decode,           [CF_F16] = f16_decode,       [CF_BF16] = bf16_decode,
    [CF_Q4_0] = q4_0_decode,         [CF_Q4_1] = q4_1_decode,     [CF_Q5_0] = q5_0_decode,
    [CF_Q5_1] = q5_1_decode,         [CF_Q8_0] = q8_0_decode,     [CF_Q2_K] = q2_k_decode,
    [CF_Q3_K] = q3_k_decode,         [CF_Q4_K] = q4_k_decode,     [CF_Q5_K] = q5_k_decode,
    [CF_Q6_K] = q6_k_decode,         [CF_IQ1_S] = iq1_s_decode,   [CF_IQ1_M] = iq1_m_decode,
    [CF_IQ2_XXS] = iq2_xxs_decode,   [CF_IQ2_XS] = iq2_xs_decode, [CF_IQ2_S] = iq2_s_decode,
    [CF_IQ3_XXS] = iq3_xxs_decode,   [CF_IQ3_S] = iq3_s_decode,   [CF_IQ4_NL] = iq4_nl_decode,
    [CF_IQ4_XS] = iq4_xs_decode,     [CF_MXFP4] = mxfp4_decode,   [CF_NVFP4] = nvfp4_decode,
    [CF_F4_E2M1] = e2m1_pair_decode, [CF_I4] = i4_pair_decode,    [CF_F8_E4M3] = e4m3_decode,
};

void cf_ref_format_decode_blocks(cf_format f, const void *row, uint64_t block, uint64_t n_blocks,
                                 float *out)
{
    cf_assert(cf_format_computable(f));
    const uint8_t *b = (const uint8_t *)row + block * cf_formats[f].block_bytes;
    for (uint64_t i = 0; i < n_blocks; i++) {
        block_decode[f](b, out);
        b += cf_formats[f].block_bytes;
        out += cf_formats[f].block_values;
    }
}

void cf_ref_format_decode(cf_format f, const void *row, uint64_t begin, uint64_t n, float *out)
{
    cf_assert(cf_format_computable(f));
    uint64_t values = cf_formats[f].block_values;
    while (n) {
        uint64_t block = begin / values, skip = begin % values;
        uint64_t done = (n / values) * values; /* whole blocks */
        if (skip || done == 0) {
            float whole[CF_FORMAT_MAX_BLOCK];
            done = values - skip < n ? values - skip : n;
            cf_ref_format_decode_blocks(f, row, block, 1, whole);
            memcpy(out, whole + skip, done * sizeof *out);
        } else {
            cf_ref_format_decode_blocks(f, row, block, done / values, out);
        }
        begin += done;
        out += done;
        n -= done;
    }
}

uint64_t cf_ref_format_not_finite(cf_format f, const void *blocks, uint64_t n)
{
    uint64_t values = cf_formats[f].block_values;
    cf_assert(n % values == 0);
    if (f == CF_F8_E8M0) { /* powers of two, and one code that is no number */
        const uint8_t *codes = blocks, *bad = n ? memchr(codes, 0xff, n) : NULL;
        return bad ? (uint64_t)(bad - codes) : n;
    }
    for (uint64_t i = 0; i < n; i += values) {
        float v[CF_FORMAT_MAX_BLOCK];
        cf_ref_format_decode_blocks(f, blocks, i / values, 1, v);
        for (uint64_t j = 0; j < values; j++)
            if (!isfinite(v[j]))
                return i + j;
    }
    return n;
}
