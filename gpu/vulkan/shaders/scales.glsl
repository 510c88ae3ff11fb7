// Outer scales of weights, and activations rounded to 8 bits (both: gpu/ops.h).
#ifndef SCALES_GLSL
#define SCALES_GLSL
#include "weight.glsl"

// The matrix of scales of a weight: one for `rows` x `cols` values, `first` being the weight's first
// stored row; `step`: see matrix_step in vk_ops.c.
struct Scales {
    uint64_t at;
    uint rows, cols, first;
};

const uint SCALES_NONE = 0, SCALES_F32 = 1, SCALES_F16 = 2, SCALES_BF16 = 3; // else E8M0

// Where the scales of output o begin.
uint64_t scales_row(uint kind, Scales s, uint o, uint step, uint cols)
{
    uint64_t row = (s.first + o * step) / s.rows;
    uint64_t i = row * ((cols + s.cols - 1) / s.cols);
    return s.at + (kind == SCALES_F32 ? i * 4ul : kind <= SCALES_BF16 ? i * 2ul : i);
}

float scales_value(uint kind, uint64_t row, uint i)
{
    if (kind == SCALES_F32)
        return F32s(row).v[i];
    if (kind == SCALES_F16)
        return half_low(load_u16(row + i * 2ul));
    if (kind == SCALES_BF16)
        return uintBitsToFloat(load_u16(row + i * 2ul) << 16);
    return e8m0(load_u8(row + i));
}

// w * scale, rounded.
WBlock block_scaled(WBlock w, float scale)
{
    WBlock scaled;
    [[unroll]] for (uint j = 0; j < W_VECS; j++)
        scaled.v[j] = w.v[j] * scale;
    return scaled;
}

// a / b to the last bit, whatever the device's division is worth.
float divided(float a, float b)
{
    precise float inverse = 1.0 / b;
    precise float better = fma(fma(-b, inverse, 1.0), inverse, inverse);
    precise float q = a * better;
    precise float exact = fma(fma(-b, q, a), better, q);
    return exact;
}

const uint Q8_GROUP = 32; // CF_Q8_GROUP

const float Q8_LEAST = 7.888609052210118e-31; // 2^-100

// (d, 1 / d) of a group whose largest |x| this is.
vec2 q8_scale_of(float largest)
{
    float d = largest >= Q8_LEAST ? divided(largest, 127.0) : 0.0;
    return vec2(d, largest >= Q8_LEAST ? divided(1.0, d) : 0.0);
}

// The same of the group that value i of the row of n floats is in.
vec2 q8_scale(uint64_t row, uint i, uint n)
{
    vec4 most = vec4(0.0);
    uint first = i / Q8_GROUP * (Q8_GROUP / W_BLOCK);
    [[unroll]] for (uint b = 0; b < Q8_GROUP / W_BLOCK; b++) {
        WBlock x = float_block(row, ALIGNED ? min(first + b, n / W_BLOCK - 1) : first + b, n);
        most = max(most, max(abs(x.v[0]), abs(x.v[1])));
    }
    return q8_scale_of(max(max(most.x, most.y), max(most.z, most.w)));
}

float q8_rounded(float x, vec2 scale)
{
    precise float v = x * scale.y; // not part of an fma with what follows
    precise float whole = trunc(v); // halves go away from zero
    if (abs(v - whole) >= 0.5)
        whole += v < 0.0 ? -1.0 : 1.0;
    return scale.x * whole;
}

WBlock block_q8(WBlock x, vec2 scale)
{
    [[unroll]] for (uint j = 0; j < W_BLOCK; j++)
        x.v[j / 4][j % 4] = q8_rounded(x.v[j / 4][j % 4], scale);
    return x;
}
#endif
