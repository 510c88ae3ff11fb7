// A stored vector read where its format is known at run time only (biases, gains, sinks): formats
// of elements; vectors in blocks are decoded before.
INLINE bool vector_is(ocl_vector v)
{
    return v.format != OCL_NO_VECTOR;
}

INLINE float vector_element(bytes_in buf, ocl_vector v, ulong i)
{
    bytes_in at = buf + v.at;
    ulong e = i * v.step;
    if (v.format == OCL_F32)
        return ((const __global float *)at)[e];
    if (v.format == OCL_F16)
        return vload_half(e, (const __global half *)at);
    if (v.format == OCL_F8_E4M3) {
        uint c = at[e], rest = c & 0x7fu;
        float f = rest == 0x7fu ? as_float(0x7fc00000u) : as_float(rest << 20) * 0x1p120f;
        return as_float(as_uint(f) | (c & 0x80u) << 24);
    }
    return as_float((uint)((const __global ushort *)at)[e] << 16);
}

INLINE float vector_or_zero(bytes_in buf, ocl_vector v, ulong i)
{
    return vector_is(v) ? vector_element(buf, v, i) : 0.0f;
}

// LANES elements from i on, zeros from the n-th on.
INLINE vec vector_vec(bytes_in buf, ocl_vector v, ulong i, ulong n)
{
    float e[LANES];
    if (v.step == 1 && v.format == OCL_F32)
        return vec_load_n((const __global float *)(buf + v.at) + i, n - i);
    if (v.step == 1 && v.format == OCL_BF16 && n - i >= LANES)
        return VEC_OF_BITS(LOAD_U16S((const __global ushort *)(buf + v.at) + i) << 16);
    for (uint l = 0; l < LANES; l++)
        e[l] = i + l < n ? vector_element(buf, v, i + l) : 0.0f;
    return VEC_LOAD(e);
}
