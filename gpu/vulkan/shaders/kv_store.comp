#version 460
// cache[rows[r].cell, i] = x[r, i]. For f16 an invocation writes a whole 32-bit word where cells
// start on one (PAIRS); otherwise its half of a word, whose other half may belong to another
// cell: cleared and set atomically, so that neighbours do not lose each other's write. For q8_0 it
// writes a block: eight words and half of one.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool PAIRS = false;
#include "common.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t x, cache, rows;
    uint n_rows, width, x_stride;
} p;

#include "format_ids.glsl"

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

void store_half(uint64_t at, uint bits)
{
    uint shift = (at & 2ul) != 0ul ? 16 : 0;
    U32s word = U32s(at & ~3ul);
    atomicAnd(word.v[0], ~(0xffffu << shift));
    atomicOr(word.v[0], bits << shift);
}

#if WEIGHT_FMT == FMT_q8_0
const uint Q8_VALUES = 32;

// The float32 nearest to q * 2^exponent, ties to even, for q from 2^24 to 2^26; `more`: q is a little
// too small.
float rounded_up_from(uint q, bool more, int exponent)
{
    uint s = q >= 1u << 25 ? 2 : 1, rest = q & (1u << s) - 1, middle = 1u << s - 1;
    uint mantissa = q >> s;
    if (rest > middle || (rest == middle && (more || (mantissa & 1u) != 0)))
        mantissa++;
    return uintBitsToFloat((uint(exponent + int(s) + 149) << 23) + mantissa);
}

// m / 127 and 1 / d by integers: a device's own division may be off in the last bits. Both are normal
// numbers, far from the ends of their range.
float divided_by_127(float m)
{
    uint u = floatBitsToUint(m), n = (u & 0x7fffffu | 0x800000u) << 8;
    return rounded_up_from(n / 127, n % 127 != 0, int(u >> 23) - 158);
}

float inverse_of(float d)
{
    uint u = floatBitsToUint(d);
    uint64_t divisor = uint64_t(u & 0x7fffffu | 0x800000u), one = 1ul << 48;
    return rounded_up_from(uint(one / divisor), one % divisor != 0ul, 102 - int(u >> 23));
}

uint q8_code(float x, float inverse)
{
    precise float v = abs(x) * inverse; // two roundings: no fma
    precise float whole = v + 0.5;
    int code = min(int(whole), 127);
    return uint(x < 0.0 ? -code : code) & 0xffu;
}

void main()
{
    uint per_row = p.width / Q8_VALUES;
    uint i = flat_index(), r = i / per_row, c = i % per_row;
    if (r >= p.n_rows)
        return;
    F32s x = F32s(p.x + (uint64_t(r) * p.x_stride + c * Q8_VALUES) * 4ul);
    uint64_t cell = U32s(p.rows + uint64_t(r) * 16ul).v[0];
    uint64_t at = p.cache + (cell * per_row + c) * 34ul;
    uint most = 0, half_word[17]; // of floats that are not negative, the larger has the larger bits
    for (uint j = 0; j < Q8_VALUES; j++)
        most = max(most, floatBitsToUint(x.v[j]) & 0x7fffffffu);
    bool finite = most < 0x7f800000u, some = finite && most >= 27u << 23; // 2^-100
    float d = some ? divided_by_127(uintBitsToFloat(most)) : 1.0, inverse = inverse_of(d);
    half_word[0] = some ? half_bits(d) : finite ? 0 : 0x7e00;
    [[unroll]] for (uint j = 0; j < Q8_VALUES / 2; j++)
        half_word[1 + j] = some ? q8_code(x.v[2 * j], inverse) | q8_code(x.v[2 * j + 1], inverse) << 8 : 0;
    uint odd = (at & 2ul) != 0ul ? 1 : 0; // the block begins in the middle of a word
    U32s words = U32s(at + odd * 2ul);
    [[unroll]] for (uint j = 0; j < 8; j++) {
        uint a = half_word[2 * j] | half_word[2 * j + 1] << 16;
        uint b = half_word[2 * j + 1] | half_word[2 * j + 2] << 16;
        words.v[j] = odd != 0 ? b : a;
    }
    store_half(odd != 0 ? at : at + 32ul, half_word[odd != 0 ? 0 : 16]);
}
#else
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
    store_half(p.cache + (cell * p.width + c) * 2ul, half_bits(x.v[c]));
#endif
}
#endif
