// A row of stored weights (or of the KV cache).
//
// WEIGHT_FMT picks the format when the shader is built. In units, every format:
//   W_UNIT                     values of a unit, a multiple of 8
//   weight_bytes(n)            bytes of n consecutive values
//   weight_unit(row, u, n)     unit u of the row of n values at address `row`, as stored
//   weight_eight(unit, u, j, n)  values 8 * j .. 8 * j + 7 of it; those from n on are 0
// and elements (W_ELEMENTS), which may lie in columns, in blocks of W_BLOCK = 8:
//   weight_block(row, b, n)    elements 8 * b .. 8 * b + 7; those from n on are 0
//   weight_element(row, i)
// ALIGNED, a specialisation constant of the including shader, promises that rows of floats and of
// F32, F16 and BF16 start at multiples of 16 and that n is a multiple of W_UNIT (of 8 for
// weight_block). Without it an element may lie at any multiple of its size and is taken from its
// aligned 32-bit word, never from beyond it. Indices are clamped rather than branched on: many
// small branches compile slowly.
#ifndef WEIGHT_GLSL
#define WEIGHT_GLSL
#include "loads.glsl"
#include "format_ids.glsl"

#define W_BLOCK 8
#define W_VECS 2

struct WBlock {
    vec4 v[W_VECS];
};

uint64_t weight_grid; // where the codebook of the format is (formats.glsl); set by main

#if WEIGHT_FMT == FMT_f32 || WEIGHT_FMT == FMT_f16 || WEIGHT_FMT == FMT_bf16
// ---- F32, F16, BF16: a unit is a block ----
#define W_ELEMENTS
#define W_UNIT 8
#define WUnit WBlock

#if WEIGHT_FMT == FMT_f32
uint64_t weight_bytes(uint64_t n)
{
    return n * 4ul;
}
float weight_element(uint64_t row, uint i)
{
    return F32s(row).v[i];
}
WBlock weight_block_aligned(uint64_t row, uint b)
{
    WBlock w;
    w.v[0] = uintBitsToFloat(load_quad(row, 2 * b));
    w.v[1] = uintBitsToFloat(load_quad(row, 2 * b + 1));
    return w;
}
#else
uint64_t weight_bytes(uint64_t n)
{
    return n * 2ul;
}
vec2 weight_pair(uint word)
{
#if WEIGHT_FMT == FMT_f16
    return unpackHalf2x16(word);
#else
    return vec2(uintBitsToFloat(word << 16), uintBitsToFloat(word & 0xffff0000u));
#endif
}
float weight_element(uint64_t row, uint i)
{
    return weight_pair(load_u16(row + uint64_t(i) * 2ul)).x;
}
WBlock weight_block_aligned(uint64_t row, uint b)
{
    uvec4 q = load_quad(row, b);
    WBlock w;
    w.v[0] = vec4(weight_pair(q.x), weight_pair(q.y));
    w.v[1] = vec4(weight_pair(q.z), weight_pair(q.w));
    return w;
}
#endif

WBlock weight_block(uint64_t row, uint b, uint n)
{
    if (ALIGNED)
        return weight_block_aligned(row, b);
    WBlock w;
    [[unroll]] for (uint j = 0; j < W_BLOCK; j++) {
        uint i = b * W_BLOCK + j;
        float e = weight_element(row, min(i, n - 1));
        w.v[j / 4][j % 4] = i < n ? e : 0.0;
    }
    return w;
}
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    return weight_block(row, u, n);
}
WBlock weight_eight(WUnit w, uint u, uint j, uint n)
{
    return w;
}

#else
#if WEIGHT_FMT == FMT_f8_e4m3
// ---- bytes ----
#define W_ELEMENTS
#define W_UNIT 32
struct WUnit {
    uint q[8];
};
uint64_t weight_bytes(uint64_t n)
{
    return n;
}
float weight_element(uint64_t row, uint i)
{
    return e4m3(load_u8(row + i));
}
WBlock weight_block(uint64_t row, uint b, uint n)
{
    WUnit w;
    WBlock block;
    LOAD_SOME(w.q, 0, row + b * 8ul, 2, 8, min(8, n - b * 8), 1)
    [[unroll]] for (uint j = 0; j < W_BLOCK; j++) {
        float e = e4m3(BYTE(j));
        block.v[j / 4][j % 4] = b * W_BLOCK + j < n ? e : 0.0;
    }
    return block;
}
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    LOAD_SOME(w.q, 0, row + u * 32ul, 8, 32, min(32, n - u * 32), 1)
    return w;
}
float weight_value(WUnit w, uint i)
{
    return e4m3(BYTE(i));
}

#elif WEIGHT_FMT == FMT_f4_e2m1 || WEIGHT_FMT == FMT_i4
// ---- pairs in a byte, the first in its low bits ----
#define W_UNIT 32
struct WUnit {
    uint q[4];
};
uint64_t weight_bytes(uint64_t n)
{
    return n / 2ul;
}
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    LOAD_SOME(w.q, 0, row + u * 16ul, 4, 16, min(32, n - u * 32) / 2, 1)
    return w;
}
float weight_value(WUnit w, uint i)
{
    uint code = w.q[i / 8] >> 4 * (i % 8) & 15u;
#if WEIGHT_FMT == FMT_i4
    return float(code) - 8.0;
#else
    return 0.5 * e2m1_doubled(code);
#endif
}
#else
#include "formats.glsl"
#endif

WBlock weight_eight(WUnit w, uint u, uint j, uint n)
{
    WBlock block;
    [[unroll]] for (uint k = 0; k < W_BLOCK; k++) {
        float e = weight_value(w, 8 * j + k);
#ifndef W_VALUES // rows need not be of whole units
        if (!ALIGNED)
            e = u * W_UNIT + 8 * j + k < n ? e : 0.0;
#endif
        block.v[k / 4][k % 4] = e;
    }
    return block;
}
#endif

const uint W_EIGHTS = W_UNIT / 8;

// The float32 activations that face a block; those from n on are 0.
WBlock float_block(uint64_t row, uint b, uint n)
{
    WBlock x;
    if (ALIGNED) {
        [[unroll]] for (uint j = 0; j < W_VECS; j++)
            x.v[j] = uintBitsToFloat(load_quad(row, b * W_VECS + j));
        return x;
    }
    [[unroll]] for (uint j = 0; j < W_BLOCK; j++) {
        uint i = b * W_BLOCK + j;
        float e = F32s(row).v[min(i, n - 1)];
        x.v[j / 4][j % 4] = i < n ? e : 0.0;
    }
    return x;
}

// acc + w . x in one order, with fma named: the same bits whatever tile the row is part of.
float block_dot(WBlock w, WBlock x, float acc)
{
    [[unroll]] for (uint j = 0; j < W_VECS; j++) {
        acc = fma(w.v[j].x, x.v[j].x, acc);
        acc = fma(w.v[j].y, x.v[j].y, acc);
        acc = fma(w.v[j].z, x.v[j].z, acc);
        acc = fma(w.v[j].w, x.v[j].w, acc);
    }
    return acc;
}
#endif
