// Blocks of 32 values (NVFP4: 64), byte for byte as GGUF has them; see dot.cl for what a format
// defines. What comes first in a block stands in the line above its format.
#define W_16S 2

#if defined(FORMAT_MXFP4)
// Half of what an E8M0 stands for.
INLINE float mxfp4_half(uint e)
{
    return as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}
#elif defined(FORMAT_NVFP4)
// Half of what an unsigned E4M3 stands for; 0x7f is no number, and counts as 0.
INLINE float ue4m3_half(uint code)
{
    uint rest = code & 0x7fu;
    float few = (float)rest * 0x1p-10f, d = as_float((rest << 20) + 0x3b800000u);
    return rest < 8 ? few : code == 0x7fu ? 0.0f : d;
}
#endif

#if !defined(FORMAT_NVFP4)
// The block at p, of scale d and (Q4_1, Q5_1) min m.
INLINE void block_values(bytes_in p, float d, float m, float16 *v)
{
#if defined(FORMAT_Q8_0) // d f16, 32 signed bytes
    v[0] = convert_float16(vload16(0, (const __global char *)p + 2)) * d;
    v[1] = convert_float16(vload16(0, (const __global char *)p + 18)) * d;
#elif defined(FORMAT_Q4_0) // d f16, 16 bytes of nibbles
    uint16 code = convert_uint16(vload16(0, p + 2));
#define Q4_0_VALUE(c) (((c) - 8.0f) * d)
    v[0] = OF_CODES(Q4_0_VALUE, code, 15u);
    v[1] = OF_CODES(Q4_0_VALUE, code >> 4u, 15u);
#elif defined(FORMAT_Q4_1) // d f16, m f16, nibbles
    uint16 code = convert_uint16(vload16(0, p + 4));
#define Q4_1_VALUE(c) ((c) * d + m)
    v[0] = OF_CODES(Q4_1_VALUE, code, 15u);
    v[1] = OF_CODES(Q4_1_VALUE, code >> 4u, 15u);
#elif defined(FORMAT_Q5_0) || defined(FORMAT_Q5_1) // d f16, (m f16,) 32 high bits, nibbles
    const uint at = W_BYTES - 20;
    const uint16 bit = (uint16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uchar16 c[2];
    uint low = u16_at(p + at), high = u16_at(p + at + 2);
    nibbles(p + at + 4, c);
    v[0] = convert_float16(convert_uint16(c[0]) | ((uint16)low >> bit & 1u) << 4);
    v[1] = convert_float16(convert_uint16(c[1]) | ((uint16)high >> bit & 1u) << 4);
#if defined(FORMAT_Q5_0)
    v[0] = (v[0] - 16.0f) * d;
    v[1] = (v[1] - 16.0f) * d;
#else
    v[0] = v[0] * d + m;
    v[1] = v[1] * d + m;
#endif
#elif defined(FORMAT_IQ4_NL) // d f16, nibbles
    values_of_nibbles(iq4_values, p + 2, d, v);
#elif defined(FORMAT_MXFP4) // E8M0 scale (d: half of it), nibbles
    values_of_nibbles(e2m1_values, p + 1, d, v);
#endif
}
#endif

INLINE void weight_16s(bytes_in row, uint b, float16 *v)
{
#if defined(FORMAT_NVFP4) // 4 UE4M3 scales (half of them), 4 x 8 bytes: 8 low nibbles, 8 high
    bytes_in p = row + (ulong)(b / 2) * W_BYTES + 4;
    uchar16 q = vload16(b % 2, p);
    for (uint i = 0; i < 2; i++) {
        float d = ue4m3_half((p - 4)[b % 2 * 2 + i]);
#ifdef HAS_LOOK_UP
        uint8 code = convert_uint8(i ? q.hi : q.lo);
        v[i] = look_up(convert_float16(vload16(0, e2m1_values)) * d, (uint16)(code, code >> 4u));
#else
        uchar8 code = i ? q.hi : q.lo;
        v[i] = e2m1_doubled((uchar16)(code & (uchar)15, code >> (uchar)4)) * d;
#endif
    }
#else
    bytes_in p = row + (ulong)b * W_BYTES;
#if defined(FORMAT_MXFP4)
    block_values(p, mxfp4_half(p[0]), 0.0f, v);
#else
    block_values(p, half_at(p), half_at(p + 2), v);
#endif
#endif
}

#if defined(STRETCHES) && !defined(FORMAT_NVFP4)
// A stretch is eight blocks, a part each.
#define STRETCH_PARTS 8
#define STRETCH_BYTES (8 * W_BYTES)
#if defined(FORMAT_Q4_1) || defined(FORMAT_Q5_1)
#define STRETCH_SCALES 16 // scales, then mins
#else
#define STRETCH_SCALES 8
#endif

// What stands at p in each of n blocks.
INLINE void halves_of_blocks(bytes_in p, uint n, float *s)
{
    if (n == 8) {
        ushort8 h;
        h.s0 = u16_at(p), h.s1 = u16_at(p + W_BYTES);
        h.s2 = u16_at(p + 2 * W_BYTES), h.s3 = u16_at(p + 3 * W_BYTES);
        h.s4 = u16_at(p + 4 * W_BYTES), h.s5 = u16_at(p + 5 * W_BYTES);
        h.s6 = u16_at(p + 6 * W_BYTES), h.s7 = u16_at(p + 7 * W_BYTES);
        vstore8(half_of_bits_8(h), 0, s);
        return;
    }
#pragma nounroll
    for (uint i = 0; i < n; i++)
        s[i] = half_at(p + i * W_BYTES);
}

INLINE void stretch_scales(bytes_in p, uint n, float *s)
{
#if defined(FORMAT_MXFP4)
    if (n == 8) {
        uint8 e = (uint8)(p[0], p[W_BYTES], p[2 * W_BYTES], p[3 * W_BYTES], p[4 * W_BYTES],
                          p[5 * W_BYTES], p[6 * W_BYTES], p[7 * W_BYTES]);
        vstore8(as_float8(select((e - 1u) << 23u, (uint8)0x00200000u << e, e < 2u)), 0, s);
        return;
    }
#pragma nounroll
    for (uint i = 0; i < n; i++)
        s[i] = mxfp4_half(p[i * W_BYTES]);
#else
    halves_of_blocks(p, n, s);
#if STRETCH_SCALES == 16
    halves_of_blocks(p + 2, n, s + 8);
#endif
#endif
}

INLINE void stretch_part(bytes_in p, uint part, const float *s, float16 *v)
{
    block_values(p + part * W_BYTES, s[part], s[STRETCH_SCALES - 8 + part], v);
}
#endif
