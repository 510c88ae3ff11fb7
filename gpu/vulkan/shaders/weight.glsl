// A row of stored weights (or of the KV cache), decoded by blocks of W_BLOCK elements.
//
// WEIGHT_FMT picks the format when the shader is built; a new format is one more section here
// and one more word in shaders.mk. A format defines
//   W_BLOCK           elements decoded at once, a multiple of 4; W_VECS = W_BLOCK / 4
//   weight_bytes(n)   bytes of n consecutive elements
//   weight_block(row, b, n)  elements b * W_BLOCK .. + W_BLOCK - 1 of the row of n at address
//                     `row`; those from n on are 0.
// ALIGNED, a specialisation constant of the including shader, promises that every row starts at
// a multiple of 16 and that n is a multiple of W_BLOCK. Without it a 16-bit row may start at any
// multiple of 2: each element is taken from its aligned 32-bit word, never from beyond it
// (buffers are padded to 16 bytes, so the word of the last element exists). Indices are clamped
// rather than branched on: many small branches compile slowly.
#ifndef WEIGHT_GLSL
#define WEIGHT_GLSL
#include "common.glsl"

#define FMT_f32 0
#define FMT_f16 1
#define FMT_bf16 2

#define W_BLOCK 8
#define W_VECS 2

struct WBlock {
    vec4 v[W_VECS];
};

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
    w.v[0] = F32x4s(row).v[2 * b];
    w.v[1] = F32x4s(row).v[2 * b + 1];
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
    uint64_t at = row + uint64_t(i) * 2ul;
    vec2 pair = weight_pair(U32s(at & ~3ul).v[0]);
    return (at & 2ul) != 0ul ? pair.y : pair.x;
}
WBlock weight_block_aligned(uint64_t row, uint b)
{
    uvec4 q = U32x4s(row).v[b];
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

// The float32 activations that face a block; those from n on are 0.
WBlock float_block(uint64_t row, uint b, uint n)
{
    WBlock x;
    if (ALIGNED) {
        [[unroll]] for (uint j = 0; j < W_VECS; j++)
            x.v[j] = F32x4s(row).v[b * W_VECS + j];
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
