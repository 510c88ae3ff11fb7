#version 460
// cache[rows[r].cell, i] = x[r, i]. For f16 an invocation writes a whole 32-bit word where cells
// start on one (PAIRS); otherwise its half of a word, whose other half may belong to another
// cell: cleared and set atomically, so that neighbours do not lose each other's write.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool PAIRS = false;
#include "common.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t x, cache, rows;
    uint n_rows, width, x_stride;
} p;

#define FMT_f32 0
#define FMT_f16 1

// To nearest, ties to even, subnormals kept: packHalf2x16 leaves the rounding to the driver.
uint half_bits(float f)
{
    uint u = floatBitsToUint(f), sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u)
        return sign | 0x7e00u | ((mag >> 13) & 0x3ffu);
    if (mag >= 0x477ff000u)
        return sign | 0x7c00u;
    if (mag < 0x38800000u)
        return sign | (floatBitsToUint(uintBitsToFloat(mag) + 0.5) - 0x3f000000u);
    return sign | ((mag - 0x38000000u + 0xfffu + ((mag >> 13) & 1u)) >> 13);
}

void main()
{
    uint per_row = PAIRS ? p.width / 2 : p.width;
    uint i = flat_index(), r = i / per_row, c = i % per_row;
    if (r >= p.n_rows)
        return;
    F32s x = F32s(p.x + uint64_t(r) * p.x_stride * 4ul);
    uint64_t cell = U32s(p.rows + uint64_t(r) * 16ul).v[0];
#if WEIGHT_FMT == FMT_f32
    F32s(p.cache + cell * p.width * 4ul).v[c] = x.v[c];
#else
    if (PAIRS) {
        U32s(p.cache + cell * p.width * 2ul).v[c] =
            half_bits(x.v[2 * c]) | half_bits(x.v[2 * c + 1]) << 16;
        return;
    }
    uint64_t at = p.cache + (cell * p.width + c) * 2ul;
    uint shift = (at & 2ul) != 0ul ? 16 : 0;
    U32s word = U32s(at & ~3ul);
    atomicAnd(word.v[0], ~(0xffffu << shift));
    atomicOr(word.v[0], half_bits(x.v[c]) << shift);
#endif
}
