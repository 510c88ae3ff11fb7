// Weights as vectors, with their outer scales; activations rounded where an op asks for it.
//
// A format (format_*.cl, or formats_*.cl by W_16S and weight_16s) defines
//   W_VECS                   vectors of LANES elements that are decoded at once
//   weight_bytes(n)          bytes of n consecutive elements
//   weight_block(row, b, w)  elements b * W_BLOCK .. + W_BLOCK - 1 of the row into w[W_VECS]
//   weight_element(row, i)   one element: the end of a row that is no multiple of W_BLOCK, and
//                            neighbours that do not lie side by side
#ifdef W_16S
#define W_VECS (W_16S * 16 / LANES)

INLINE void weight_block(bytes_in row, uint b, vec *w)
{
    float16 v[W_16S];
    weight_16s(row, b, v);
#pragma unroll
    for (uint i = 0; i < W_16S; i++)
        vecs_of_16(v[i], w + i * (16 / LANES));
}
#endif
#define W_BLOCK (W_VECS * LANES)

#ifdef STRETCHES
// Products on a CPU take a stretch of a row, 256 values, in parts:
//   STRETCH_PARTS            parts of a stretch; STRETCH_BYTES of it, STRETCH_SCALES floats ahead
//   stretch_scales(p, n, s)  the scales of the first n parts of the stretch at p
//   stretch_part(p, i, s, v) part i, with those
// Of a format that defines nothing of this, a part is a block.
#ifdef STRETCH_PARTS
#define PART_VECS (16 / STRETCH_PARTS)
INLINE void weight_scales(bytes_in row, uint b, uint n, float *s)
{
    stretch_scales(row + (ulong)b * STRETCH_BYTES, n, s);
}

INLINE void weight_part(bytes_in row, uint b, uint part, const float *s, vec *w)
{
    stretch_part(row + (ulong)b * STRETCH_BYTES, part, s, w);
}
#else
#define STRETCH_PARTS  (16 / W_VECS)
#define STRETCH_SCALES 1
#define PART_VECS      W_VECS
INLINE void weight_scales(bytes_in row, uint b, uint n, float *s)
{
}

INLINE void weight_part(bytes_in row, uint b, uint part, const float *s, vec *w)
{
    weight_block(row, b * STRETCH_PARTS + part, w);
}
#endif
#define PART    (PART_VECS * LANES)
#define STRETCH (STRETCH_PARTS * PART)
#endif

// The elements from block b on, zeros behind the n-th: rows in blocks end with one.
INLINE void weight_tail(bytes_in row, uint b, uint n, vec *w)
{
#if W_VALUES <= 2
    float e[W_BLOCK];
#pragma nounroll
    for (uint i = 0; i < W_BLOCK; i++)
        e[i] = b * W_BLOCK + i < n ? weight_element(row, b * W_BLOCK + i) : 0.0f;
    for (uint v = 0; v < W_VECS; v++)
        w[v] = VEC_LOAD(e + v * LANES);
#else
    for (uint v = 0; v < W_VECS; v++)
        w[v] = 0.0f;
#endif
}

// The i-th of outer scales (ops.h).
INLINE float outer_scale(bytes_in scales, uint format, ulong i)
{
    if (format == OCL_F32)
        return ((const __global float *)scales)[i];
    if (format == OCL_F16)
        return half_at(scales + 2 * i);
    if (format == OCL_BF16)
        return as_float(u16_at(scales + 2 * i) << 16);
    uint e = scales[i];
    return as_float(e == 0xff ? 0x7fc00000u : e ? e << 23 : 0x00400000u);
}
