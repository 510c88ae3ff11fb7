// F16 as stored: see dot.cl for what a format defines. On a CPU decoded by bits, since PoCL
// converts element by element: exponent and fraction, moved into place, are a float 2^112 times
// too small, also for subnormals; infinities and NaNs get their exponent back.
#define W_VECS 1

INLINE ulong weight_bytes(ulong n)
{
    return n * 2;
}

INLINE void weight_block(bytes_in row, uint b, vec *w)
{
#if WG == 1
    uvec h = LOAD_U16S((const __global ushort *)row + b * LANES), rest = h & 0x7fffu;
    uvec bits = BITS_OF_VEC(VEC_OF_BITS(rest << 13) * 0x1p112f);
    bits |= select((uvec)0, (uvec)0x7f800000u, rest >= 0x7c00u);
    w[0] = VEC_OF_BITS(bits | (h & 0x8000u) << 16);
#else
    w[0] = vload_half8(b, (const __global half *)row);
#endif
}

INLINE float weight_element(bytes_in row, uint i)
{
    return vload_half(i, (const __global half *)row);
}
