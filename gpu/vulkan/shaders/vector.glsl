// A stored vector read one element at a time (biases, gains, sinks): its format is known at run time
// and may differ from the matrix beside it; neighbours lie `step` elements apart. Only formats of
// elements: those of blocks are decoded to F32 before (vk_vectors.c). At address 0 there is none.
#ifndef VECTOR_GLSL
#define VECTOR_GLSL
#include "loads.glsl"
#include "format_ids.glsl"

struct Vector {
    uint64_t at;
    uint dtype, step;
};

float vector_element(Vector v, uint i)
{
    uint64_t e = uint64_t(i) * v.step;
    if (v.dtype == FMT_f32)
        return F32s(v.at + e * 4ul).v[0];
    if (v.dtype == FMT_f8_e4m3)
        return e4m3(load_u8(v.at + e));
    uint bits = load_u16(v.at + e * 2ul);
    return v.dtype == FMT_f16 ? half_low(bits) : uintBitsToFloat(bits << 16);
}

float vector_or_zero(Vector v, uint i)
{
    return v.at != 0ul ? vector_element(v, i) : 0.0;
}
#endif
