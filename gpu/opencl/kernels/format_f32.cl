// F32 as stored: see dot.cl for what a format defines.
#define W_VECS 1

INLINE ulong weight_bytes(ulong n)
{
    return n * 4;
}

INLINE void weight_block(bytes_in row, uint b, vec *w)
{
    w[0] = VEC_LOAD((const __global float *)row + b * LANES);
}

INLINE float weight_element(bytes_in row, uint i)
{
    return ((const __global float *)row)[i];
}
