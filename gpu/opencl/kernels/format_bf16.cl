// BF16 as stored: the upper half of a float. See dot.cl for what a format defines.
#define W_VECS 1

INLINE ulong weight_bytes(ulong n)
{
    return n * 2;
}

INLINE void weight_block(bytes_in row, uint b, vec *w)
{
    w[0] = VEC_OF_BITS(LOAD_U16S((const __global ushort *)row + b * LANES) << 16);
}

INLINE float weight_element(bytes_in row, uint i)
{
    return as_float((uint)((const __global ushort *)row)[i] << 16);
}
