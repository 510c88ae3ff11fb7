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

INLINE void weight_16s(bytes_in row, uint b, float16 *v)
{
    bytes_in p = row + (ulong)b * (32 * W_BYTES / W_VALUES);
#if defined(FORMAT_Q8_0) // d f16, 32 signed bytes
    float d = half_at(p);
    v[0] = convert_float16(vload16(0, (const __global char *)p + 2)) * d;
    v[1] = convert_float16(vload16(0, (const __global char *)p + 18)) * d;
#elif defined(FORMAT_Q4_0) // d f16, 16 bytes of nibbles
    float d = half_at(p);
    uint16 code = convert_uint16(vload16(0, p + 2));
#define Q4_0_VALUE(c) (((c) - 8.0f) * d)
    v[0] = OF_CODES(Q4_0_VALUE, code, 15u);
    v[1] = OF_CODES(Q4_0_VALUE, code >> 4u, 15u);
#elif defined(FORMAT_Q4_1) // d f16, m f16, nibbles
    float d = half_at(p), m = half_at(p + 2);
    uint16 code = convert_uint16(vload16(0, p + 4));
#define Q4_1_VALUE(c) ((c) * d + m)
    v[0] = OF_CODES(Q4_1_VALUE, code, 15u);
    v[1] = OF_CODES(Q4_1_VALUE, code >> 4u, 15u);
#elif defined(FORMAT_Q5_0) || defined(FORMAT_Q5_1) // d f16, (m f16,) 32 high bits, nibbles
    const uint at = W_BYTES - 20;
    const uint16 bit = (uint16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uchar16 c[2];
    float d = half_at(p);
    uint low = u16_at(p + at), high = u16_at(p + at + 2);
    nibbles(p + at + 4, c);
    v[0] = convert_float16(convert_uint16(c[0]) | ((uint16)low >> bit & 1u) << 4);
    v[1] = convert_float16(convert_uint16(c[1]) | ((uint16)high >> bit & 1u) << 4);
#if defined(FORMAT_Q5_0)
    v[0] = (v[0] - 16.0f) * d;
    v[1] = (v[1] - 16.0f) * d;
#else
    float m = half_at(p + 2);
    v[0] = v[0] * d + m;
    v[1] = v[1] * d + m;
#endif
#elif defined(FORMAT_IQ4_NL) // d f16, nibbles
    values_of_nibbles(iq4_values, p + 2, half_at(p), v);
#elif defined(FORMAT_MXFP4) // E8M0 scale (here half of it), nibbles
    values_of_nibbles(e2m1_values, p + 1, mxfp4_half(p[0]), v);
#elif defined(FORMAT_NVFP4) // 4 UE4M3 scales (half of them), 4 x 8 bytes: 8 low nibbles, 8 high
    p = row + (ulong)(b / 2) * W_BYTES + 4;
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
#endif
}
