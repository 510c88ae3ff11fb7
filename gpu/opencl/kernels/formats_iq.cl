// The codebook formats, byte for byte as GGUF has them: 256 values in entries of 8 (IQ2, IQ1) or 4
// (IQ3) whose digits stand for values; the grids are those of the reference (grids.cl). See dot.cl
// for what a format defines: here runs of 32 values.
#define W_16S 2
#define CODEBOOK // decoding is long

#define DIGITS2 (uint8)(0, 2, 4, 6, 8, 10, 12, 14)
#define DIGITS3 (uint4)(0, 3, 6, 9)
#define BITS8   (uint8)(0, 1, 2, 3, 4, 5, 6, 7)

// v, negative where the bit of `signs` is set.
INLINE float8 signed_8(float8 v, uint signs)
{
    return as_float8(as_uint8(v) ^ ((uint8)signs >> BITS8 & 1u) << 31);
}

// 7 stored signs; the eighth makes their number even.
INLINE uint signs7(uint code)
{
    return code | (popcount(code) & 1u) << 7;
}

// Digits 0, 1, 2: 8, 25, 43.
INLINE float8 iq2_values(uint entry)
{
    uint8 d = (uint8)entry >> DIGITS2 & 3u;
    return convert_float8(8u + 17u * d + (d >> 1));
}

#if defined(FORMAT_IQ3_XXS) || defined(FORMAT_IQ3_S)
INLINE float8 iq3_values(uint first, uint second)
{
    uint8 d = (uint8)((uint4)first >> DIGITS3, (uint4)second >> DIGITS3) & 7u;
#if defined(FORMAT_IQ3_XXS) // 4, 12, .. 52, 62
    return convert_float8(4u + 8u * d + ((d + 1u) >> 3 << 1));
#else // 1, 3, .. 15
    return convert_float8(1u + 2u * d);
#endif
}
#endif

// 8 values: -1, 0 or 1, moved by delta.
INLINE float8 iq1_values(uint entry, float delta)
{
    uint8 d = (uint8)entry >> DIGITS2 & 3u;
    return convert_float8(convert_int8(d) - 1) + delta;
}

INLINE void weight_16s(bytes_in row, uint b, float16 *v)
{
    bytes_in p = row + (ulong)(b / 8) * W_BYTES;
    uint s = b % 8;
    float8 e[4];
#if defined(FORMAT_IQ2_XXS) // d f16, 8 x (4 bytes of indices, 4 x 7 signs and a 4-bit scale)
    bytes_in q = p + 2 + 8 * s;
    uint word = u16_at(q + 4) | u16_at(q + 6) << 16;
    float scale = half_at(p) * (0.5f + (float)(word >> 28)) * 0.25f;
    for (uint k = 0; k < 4; k++)
        e[k] = signed_8(scale * iq2_values(grid_iq2_xxs[q[k]]), signs7(word >> 7 * k & 127));
#elif defined(FORMAT_IQ2_XS) // d f16, 32 x (9-bit index, 7 signs), 8 bytes of scale nibbles
    for (uint k = 0; k < 4; k++) {
        uint q = u16_at(p + 2 + 8 * s + 2 * k), code = p[66 + s] >> 4 * (k / 2) & 15;
        float scale = half_at(p) * (0.5f + (float)code) * 0.25f;
        e[k] = signed_8(scale * iq2_values(grid_iq2_xs[q & 511]), signs7(q >> 9));
    }
#elif defined(FORMAT_IQ2_S) // d f16, 32 low index bytes, 32 of signs, 8 of high bits, 8 of scales
    for (uint k = 0; k < 4; k++) {
        uint index = p[2 + 4 * s + k] | (p[66 + s] >> 2 * k & 3) << 8;
        uint code = p[74 + s] >> 4 * (k / 2) & 15;
        float scale = half_at(p) * (0.5f + (float)code) * 0.25f;
        e[k] = signed_8(scale * iq2_values(grid_iq2_s[index]), p[34 + 4 * s + k]);
    }
#elif defined(FORMAT_IQ3_XXS) // d f16, 64 bytes of indices, 8 x (4 x 7 signs and a 4-bit scale)
    bytes_in q = p + 2 + 8 * s;
    uint word = u16_at(p + 66 + 4 * s) | u16_at(p + 68 + 4 * s) << 16;
    float scale = half_at(p) * (0.5f + (float)(word >> 28)) * 0.5f;
    for (uint k = 0; k < 4; k++)
        e[k] = signed_8(scale * iq3_values(grid_iq3_xxs[q[2 * k]], grid_iq3_xxs[q[2 * k + 1]]),
                        signs7(word >> 7 * k & 127));
#elif defined(FORMAT_IQ3_S) // d f16, 64 low index bytes, 8 of high bits, 32 of signs, 4 of scales
    uint high = p[66 + s], code = p[106 + s / 2] >> 4 * (s % 2) & 15;
    float scale = half_at(p) * (float)(1 + 2 * code);
    for (uint k = 0; k < 4; k++) {
        uint first = p[2 + 8 * s + 2 * k] | (high >> 2 * k & 1) << 8;
        uint second = p[3 + 8 * s + 2 * k] | (high >> (2 * k + 1) & 1) << 8;
        e[k] = signed_8(scale * iq3_values(grid_iq3_s[first], grid_iq3_s[second]),
                        p[74 + 4 * s + k]);
    }
#elif defined(FORMAT_IQ1_S) // d f16, 32 low index bytes, 8 x (4 x 3 index bits, 3 of scale, sign)
    uint word = u16_at(p + 34 + 2 * s);
    float scale = half_at(p) * (float)(2 * (word >> 12 & 7) + 1);
    for (uint k = 0; k < 4; k++) {
        uint index = p[2 + 4 * s + k] | (word >> 3 * k & 7) << 8;
        e[k] = scale * iq1_values(grid_iq1[index], word & 0x8000 ? -0.125f : 0.125f);
    }
#elif defined(FORMAT_IQ1_M) // 32 low index bytes, 32 nibbles (3 index bits, sign), 4 x 16 bits:
                            // four 3-bit scales and four bits of d
    uint bits = u16_at(p + 48) >> 12 | u16_at(p + 50) >> 12 << 4 | u16_at(p + 52) >> 12 << 8 |
                u16_at(p + 54) >> 12 << 12;
    uint scales = u16_at(p + 48 + 2 * (s / 2));
    float d = half_of_bits(bits);
    for (uint k = 0; k < 4; k++) {
        uint nibble = p[32 + 2 * s + k / 2] >> 4 * (k % 2) & 15;
        uint index = p[4 * s + k] | (nibble & 7) << 8, run = (2 * s + k / 2) % 4;
        float scale = d * (float)(2 * (scales >> 3 * run & 7) + 1);
        e[k] = scale * iq1_values(grid_iq1[index], nibble & 8 ? -0.125f : 0.125f);
    }
#endif
    v[0] = (float16)(e[0], e[1]);
    v[1] = (float16)(e[2], e[3]);
}
