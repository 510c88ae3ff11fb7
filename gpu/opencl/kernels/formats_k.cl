// Blocks of 256 values with scales of their own for runs of 16 or 32, byte for byte as GGUF has
// them; see dot.cl for what a format defines. sub_block decodes values 32 s .. 32 s + 31: a GPU's
// items share a block, and columns of one are shared out. Products on a CPU take stretches.
#define W_16S 2

#if defined(FORMAT_Q4_K) || defined(FORMAT_Q5_K)
// 6-bit scale and min of run s from 12 bytes.
INLINE float2 scale_min(bytes_in p, uint s)
{
    if (s < 4)
        return (float2)(p[s] & 63, p[s + 4] & 63);
    return (float2)((p[s + 4] & 15) | p[s - 4] >> 6 << 4, p[s + 4] >> 4 | p[s] >> 6 << 4);
}
#endif

INLINE void sub_block(bytes_in p, uint s, float16 *v)
{
#if defined(FORMAT_Q2_K) // 16 bytes of (scale, min) nibbles, 64 of 2-bit codes, d f16, dmin f16
    float d = half_at(p + 80), dmin = half_at(p + 82);
    for (uint i = 0; i < 2; i++) {
        uchar16 q = vload16(0, p + 16 + 32 * (s / 4) + 16 * i) >> (uchar)(2 * (s % 4));
        uint code = p[2 * s + i];
        float scale = d * (float)(code & 15), low = dmin * (float)(code >> 4);
        v[i] = scale * convert_float16(q & (uchar)3) - low;
    }
#elif defined(FORMAT_Q3_K) // 32 bytes of high bits, 64 of 2-bit codes, 12 of 6-bit scales, d f16
    float d = half_at(p + 108);
    for (uint i = 0; i < 2; i++) {
        uint k = 2 * s + i;
        uchar16 q = vload16(0, p + 32 + 32 * (s / 4) + 16 * i) >> (uchar)(2 * (s % 4));
        uchar16 high = vload16(i, p) >> (uchar)s & (uchar)1;
        uint code = (p[96 + k % 8] >> 4 * (k / 8) & 15) |
                    (p[104 + k % 4] >> 2 * (k / 4) & 3) << 4;
        float scale = d * (float)((int)code - 32);
        v[i] = scale * (convert_float16((q & (uchar)3) | high << (uchar)2) - 4.0f);
    }
#elif defined(FORMAT_Q4_K) // d f16, dmin f16, 12 bytes of scales, 4 x 32 bytes: low, high nibbles
    float2 sm = scale_min(p + 4, s);
    float scale = half_at(p) * sm.x, low = half_at(p + 2) * sm.y;
    for (uint i = 0; i < 2; i++) {
        uchar16 q = vload16(0, p + 16 + 32 * (s / 2) + 16 * i) >> (uchar)(4 * (s % 2));
        v[i] = scale * convert_float16(q & (uchar)15) - low;
    }
#elif defined(FORMAT_Q5_K) // as Q4_K, with 32 bytes of high bits ahead of the nibbles
    float2 sm = scale_min(p + 4, s);
    float scale = half_at(p) * sm.x, low = half_at(p + 2) * sm.y;
    for (uint i = 0; i < 2; i++) {
        uchar16 q = vload16(0, p + 48 + 32 * (s / 2) + 16 * i) >> (uchar)(4 * (s % 2));
        uchar16 high = vload16(i, p + 16) >> (uchar)s & (uchar)1;
        v[i] = scale * convert_float16((q & (uchar)15) | high << (uchar)4) - low;
    }
#elif defined(FORMAT_Q6_K) // 128 bytes of nibbles, 64 of 2 high bits, 16 signed scales, d f16
    float d = half_at(p + 208);
    uint quarter = s % 4;
    for (uint i = 0; i < 2; i++) {
        uchar16 q = vload16(0, p + 64 * (s / 4) + 32 * (quarter % 2) + 16 * i);
        uchar16 high = vload16(0, p + 128 + 32 * (s / 4) + 16 * i) >> (uchar)(2 * quarter);
        q = q >> (uchar)(4 * (quarter / 2)) & (uchar)15;
        float scale = d * (float)((const __global char *)p)[192 + 2 * s + i];
        v[i] = scale * (convert_float16(q | (high & (uchar)3) << (uchar)4) - 32.0f);
    }
#elif defined(FORMAT_IQ4_XS) // d f16, 16 high scale bits, 4 bytes of low ones, 8 x 16 nibbles
    uchar16 c[2];
    uint code = (p[4 + s / 2] >> 4 * (s % 2) & 15) | (u16_at(p + 2) >> 2 * s & 3) << 4;
    float scale = half_at(p) * (float)((int)code - 32);
    nibbles(p + 8 + 16 * s, c);
    v[0] = scale * iq4_codes(c[0]);
    v[1] = scale * iq4_codes(c[1]);
#endif
}

INLINE void weight_16s(bytes_in row, uint b, float16 *v)
{
    sub_block(row + (ulong)(b / 8) * W_BYTES, b % 8, v);
}

#ifdef STRETCHES
// A stretch is a block: the scales of all its runs are unpacked together, and a part is what shares
// bytes, each of which is widened once.
#define STRETCH_BYTES W_BYTES

#if defined(FORMAT_Q4_K) || defined(FORMAT_Q5_K)
#define STRETCH_PARTS  4
#define STRETCH_SCALES 16 // scales, then lows

INLINE void stretch_scales(bytes_in p, uint n, float *s)
{
    const __global uint *packed = (const __global uint *)(p + 4);
    uint2 codes = (uint2)(packed[0] & 0x3f3f3f3fu,
                          (packed[2] & 0x0f0f0f0fu) | (packed[0] >> 6 & 0x03030303u) << 4);
    uint2 low_codes = (uint2)(packed[1] & 0x3f3f3f3fu,
                              (packed[2] >> 4 & 0x0f0f0f0fu) | (packed[1] >> 6 & 0x03030303u) << 4);
    float2 d = halves_at(p);
    vstore8(d.x * convert_float8(as_uchar8(codes)), 0, s);
    vstore8(d.y * convert_float8(as_uchar8(low_codes)), 1, s);
}

INLINE void stretch_part(bytes_in p, uint part, const float *s, float16 *v)
{
#pragma unroll
    for (uint i = 0; i < 2; i++) {
        uint16 q = convert_uint16(vload16(2 * part + i, p + W_BYTES - 128));
#pragma unroll
        for (uint n = 0; n < 2; n++) {
            uint16 code = n ? q >> 4u : q;
#define K45_VALUE(c) (s[2 * part + n] * (c) - s[8 + 2 * part + n])
#if defined(FORMAT_Q5_K)
            uint16 high = convert_uint16(vload16(i, p + 16)) << 4u >> (2 * part + n);
            v[2 * n + i] = K45_VALUE(convert_float16((code & 15u) | (high & 16u)));
#else
            v[2 * n + i] = OF_CODES(K45_VALUE, code, 15u);
#endif
        }
    }
}
#elif defined(FORMAT_Q2_K)
#define STRETCH_PARTS  1
#define STRETCH_SCALES 32 // scales, then lows

INLINE void stretch_scales(bytes_in p, uint n, float *s)
{
    uchar16 codes = vload16(0, p);
    float2 d = halves_at(p + 80);
    vstore16(d.x * convert_float16(codes & (uchar)15), 0, s);
    vstore16(d.y * convert_float16(codes >> (uchar)4), 1, s);
}

INLINE void half_block(bytes_in p, uint h, const float *s, float16 *v)
{
#pragma unroll
    for (uint i = 0; i < 2; i++) {
        uint16 q = convert_uint16(vload16(2 * h + i, p + 16));
#pragma unroll
        for (uint n = 0; n < 4; n++) {
            uint at = 8 * h + 2 * n + i;
#define Q2_K_VALUE(c) (s[at] * (c) - s[16 + at])
            v[2 * n + i] = OF_CODES(Q2_K_VALUE, q >> (2 * n), 3u);
        }
    }
}
#elif defined(FORMAT_Q3_K)
#define STRETCH_PARTS  1
#define STRETCH_SCALES 16

INLINE void stretch_scales(bytes_in p, uint n, float *s)
{
    uint a = as_uint(vload4(24, p)), c = as_uint(vload4(25, p)), high = as_uint(vload4(26, p));
    uint4 codes = ((uint4)(a, c, a >> 4, c >> 4) & 0x0f0f0f0fu) |
                  ((uint4)(high, high >> 2, high >> 4, high >> 6) & 0x03030303u) << 4u;
    vstore16(half_at(p + 108) * (convert_float16(as_uchar16(codes)) - 32.0f), 0, s);
}

INLINE void half_block(bytes_in p, uint h, const float *s, float16 *v)
{
#pragma unroll
    for (uint i = 0; i < 2; i++) {
        uint16 q = convert_uint16(vload16(2 * h + i, p + 32));
        uint16 bits = convert_uint16(vload16(i, p)) << 2u >> (4 * h);
#pragma unroll
        for (uint n = 0; n < 4; n++) {
#define Q3_K_VALUE(c) (s[8 * h + 2 * n + i] * ((c) - 4.0f))
            v[2 * n + i] = OF_CODES(Q3_K_VALUE, (q >> (2 * n) & 3u) | (bits >> n & 4u), 7u);
        }
    }
}
#elif defined(FORMAT_Q6_K)
#define STRETCH_PARTS  1
#define STRETCH_SCALES 16

INLINE void stretch_scales(bytes_in p, uint n, float *s)
{
    vstore16(half_at(p + 208) * convert_float16(vload16(12, (const __global char *)p)), 0, s);
}

INLINE void half_block(bytes_in p, uint h, const float *s, float16 *v)
{
#pragma unroll
    for (uint i = 0; i < 4; i++) { // 16 bytes of nibbles, which are of runs i and i + 4
        uint16 q = convert_uint16(vload16(4 * h + i, p));
        uint16 high = convert_uint16(vload16(2 * h + i % 2, p + 128));
#pragma unroll
        for (uint n = 0; n < 2; n++) {
            uint quarter = i / 2 + 2 * n, at = 2 * quarter + i % 2;
            uint16 two = quarter < 2 ? high << (4 - 2 * quarter) : high >> (2 * quarter - 4);
            uint16 code = ((n ? q >> 4u : q) & 15u) | (two & 48u);
            v[at] = s[8 * h + at] * (convert_float16(code) - 32.0f);
        }
    }
}
#elif defined(FORMAT_IQ4_XS)
#define STRETCH_PARTS  4
#define STRETCH_SCALES 8

INLINE void stretch_scales(bytes_in p, uint n, float *s)
{
    const uint8 step = (uint8)(0, 1, 2, 3, 4, 5, 6, 7);
    uint8 codes = (uint8)as_uint(vload4(1, p)) >> 4u * step & 15u;
    codes |= ((uint8)u16_at(p + 2) >> 2u * step & 3u) << 4u;
    vstore8(half_at(p) * convert_float8(convert_int8(codes) - 32), 0, s);
}

INLINE void stretch_part(bytes_in p, uint part, const float *s, float16 *v)
{
#pragma unroll
    for (uint n = 0; n < 2; n++)
        values_of_nibbles(iq4_values, p + 8 + 32 * part + 16 * n, s[2 * part + n], v + 2 * n);
}
#endif

#if STRETCH_PARTS == 1 // the same shifts of the same bytes, if a whole block is decoded at once
INLINE void stretch_part(bytes_in p, uint part, const float *s, float16 *v)
{
    half_block(p, 0, s, v);
    half_block(p, 1, s, v + 8);
}
#endif
#endif
