// Blocks of 32 values (NVFP4: 64), byte for byte as GGUF has them; see dot.cl for what a format
// defines. What comes first in a block stands in the line above its format.
#define W_16S 2

INLINE void weight_16s(bytes_in row, uint b, float16 *v)
{
    bytes_in p = row + (ulong)b * (32 * W_BYTES / W_VALUES);
#if defined(FORMAT_Q8_0) // d f16, 32 signed bytes
    float d = half_at(p);
    v[0] = convert_float16(vload16(0, (const __global char *)p + 2)) * d;
    v[1] = convert_float16(vload16(0, (const __global char *)p + 18)) * d;
#elif defined(FORMAT_Q4_0) // d f16, 16 bytes of nibbles
    uchar16 c[2];
    float d = half_at(p);
    nibbles(p + 2, c);
    v[0] = (convert_float16(c[0]) - 8.0f) * d;
    v[1] = (convert_float16(c[1]) - 8.0f) * d;
#elif defined(FORMAT_Q4_1) // d f16, m f16, nibbles
    uchar16 c[2];
    float d = half_at(p), m = half_at(p + 2);
    nibbles(p + 4, c);
    v[0] = convert_float16(c[0]) * d + m;
    v[1] = convert_float16(c[1]) * d + m;
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
    uchar16 c[2];
    float d = half_at(p);
    nibbles(p + 2, c);
    v[0] = d * iq4_codes(c[0]);
    v[1] = d * iq4_codes(c[1]);
#elif defined(FORMAT_MXFP4) // E8M0 scale (here half of it), nibbles
    uchar16 c[2];
    uint e = p[0];
    float d = as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    nibbles(p + 1, c);
    v[0] = e2m1_doubled(c[0]) * d;
    v[1] = e2m1_doubled(c[1]) * d;
#elif defined(FORMAT_NVFP4) // 4 UE4M3 scales (half of them), 4 x 8 bytes: 8 low nibbles, 8 high
    p = row + (ulong)(b / 2) * W_BYTES;
    for (uint i = 0; i < 2; i++) {
        uint k = b % 2 * 2 + i, e = p[k];
        float d = as_float(((e & 0x7fu) << 20) + 0x3b800000u);
        if ((e & 0x7fu) < 8)
            d = (float)(e & 0x7fu) * 0x1p-10f;
        d = e == 0x7fu ? 0.0f : d;
        uchar8 q = vload8(k, p + 4);
        v[i] = e2m1_doubled((uchar16)(q & (uchar)15, q >> (uchar)4)) * d;
    }
#endif
}
