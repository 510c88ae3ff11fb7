// A stored vector read one element at a time (biases, gains, sinks): its format is known at run time
// and may differ from the matrix beside it; neighbours lie `step` elements apart. `vector` in
// vk_ops.c makes one. At address 0 there is none.
#ifndef VECTOR_GLSL
#define VECTOR_GLSL
#include "common.glsl"

struct Vector {
    uint64_t at;
    uint dtype, step;
};

const uint VECTOR_F32 = 0, VECTOR_F16 = 1; // cf_format; else bf16

float vector_element(Vector v, uint i)
{
    uint64_t e = uint64_t(i) * v.step;
    if (v.dtype == VECTOR_F32)
        return F32s(v.at + e * 4ul).v[0];
    uint64_t at = v.at + e * 2ul;
    uint word = U32s(at & ~3ul).v[0];
    uint bits = (at & 2ul) != 0ul ? word >> 16 : word & 0xffffu;
    return v.dtype == VECTOR_F16 ? unpackHalf2x16(bits).x : uintBitsToFloat(bits << 16);
}

float vector_or_zero(Vector v, uint i)
{
    return v.at != 0ul ? vector_element(v, i) : 0.0;
}
#endif
