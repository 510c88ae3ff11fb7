// Formats of a byte and of half a byte: see dot.cl for what a format defines. W_16S: sixteens of
// values that are decoded at once; weight_16s decodes those of block b of a row.
#define W_16S 1

#if defined(FORMAT_F8_E4M3)
// Subnormals apart: as subnormal floats they would cost hundreds of cycles each.
INLINE float16 e4m3(uint16 code)
{
    uint16 rest = code & 0x7fu;
    uint16 few = as_uint16(convert_float16(rest) * 0x1p-9f);
    uint16 bits = select((rest << 20) + 0x3c000000u, few, rest < 8u);
    bits = select(bits, (uint16)0x7fc00000u, rest == 0x7fu);
    return as_float16(bits | (code & 0x80u) << 24);
}

INLINE void weight_16s(bytes_in row, uint b, float16 *v)
{
    v[0] = e4m3(convert_uint16(vload16(b, row)));
}

INLINE float weight_element(bytes_in row, ulong i)
{
    return e4m3((uint16)row[i]).s0;
}
#else
// Two in a byte, the first in the low bits.
INLINE float16 pairs_of(uchar8 q)
{
    uchar16 c;
    c.even = q & (uchar)15;
    c.odd = q >> (uchar)4;
#if defined(FORMAT_I4)
    return convert_float16(c) - 8.0f;
#else
    return 0.5f * e2m1_doubled(c);
#endif
}

INLINE void weight_16s(bytes_in row, uint b, float16 *v)
{
    v[0] = pairs_of(vload8(b, row));
}

INLINE float weight_element(bytes_in row, ulong i)
{
    float16 v = pairs_of((uchar8)row[i / 2]);
    return i % 2 ? v.s1 : v.s0;
}
#endif
