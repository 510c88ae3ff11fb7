// R weight rows ("outputs") against T activation rows: a block of weights is decoded once for all T,
// and the PARTS partial sums of a result are added in shared memory in the order of the invocations.
//
//   plain       each invocation takes every WG-th block of the columns, of all R outputs
//   TRANSPOSED  outputs are neighbours in memory: each invocation takes W_BLOCK of the R outputs
//               and every PARTS-th column; R and what dot_outputs is given are multiples of W_BLOCK
//
// Callers clamp row addresses at the edge, so that all of a work-group runs the same loop, and
// skip the store instead.
#ifndef DOT_TILE_GLSL
#define DOT_TILE_GLSL
layout(constant_id = 1) const bool ALIGNED = false;
layout(constant_id = 2) const uint R = 4;
layout(constant_id = 3) const uint T = 1;
layout(constant_id = 4) const bool TRANSPOSED = false;
#include "weight.glsl"

const uint PARTS = TRANSPOSED ? WG * W_BLOCK / R : WG;

shared float dot_part[R * T * (PARTS + 1)]; // + 1: the columns fall on different banks

uint64_t dot_w[R]; // plain: where each output's row begins
uint64_t dot_block, dot_step; // transposed: this invocation's outputs in column 0; to the next
uint dot_valid;    // how many of those exist
uint64_t dot_x[T];

// Slots [slot, slot + n) become outputs o, o + 1, ... of the matrix [rows, cols] at w. `step`: see
// matrix_step in vk_ops.c.
void dot_outputs(uint slot, uint n, uint64_t w, uint step, uint o, uint rows, uint cols)
{
    if (!TRANSPOSED) {
        [[unroll]] for (uint i = 0; i < n; i++)
            dot_w[slot + i] = w + uint64_t(min(o + i, rows - 1)) * step * weight_bytes(cols);
        return;
    }
    uint mine = gl_LocalInvocationID.x % (R / W_BLOCK) * W_BLOCK;
    if (mine >= slot && mine < slot + n) {
        uint first = min(o + mine - slot, (rows - 1) / W_BLOCK * W_BLOCK);
        dot_block = w + weight_bytes(first);
        dot_step = weight_bytes(step);
        dot_valid = rows - first;
    }
}

void dot_tile_plain(uint cols)
{
    uint lid = gl_LocalInvocationID.x;
    uint blocks = (cols + W_BLOCK - 1) / W_BLOCK;
    float acc[R * T];
    [[unroll]] for (uint i = 0; i < R * T; i++)
        acc[i] = 0.0;
    for (uint b = lid; b < blocks; b += WG) {
        WBlock x[T];
        [[unroll]] for (uint t = 0; t < T; t++)
            x[t] = float_block(dot_x[t], b, cols);
        [[unroll]] for (uint r = 0; r < R; r++) {
            WBlock w = weight_block(dot_w[r], b, cols);
            [[unroll]] for (uint t = 0; t < T; t++)
                acc[r * T + t] = block_dot(w, x[t], acc[r * T + t]);
        }
    }
    [[unroll]] for (uint i = 0; i < R * T; i++)
        dot_part[i * (PARTS + 1) + lid] = acc[i];
}

void dot_tile_transposed(uint cols)
{
    const uint blocks = R / W_BLOCK;
    uint lid = gl_LocalInvocationID.x, part = lid / blocks, r0 = lid % blocks * W_BLOCK;
    WBlock acc[T];
    [[unroll]] for (uint i = 0; i < T * W_VECS; i++)
        acc[i / W_VECS].v[i % W_VECS] = vec4(0.0);
    for (uint k = part; k < cols; k += PARTS) {
        WBlock w = weight_block(dot_block + k * dot_step, 0, dot_valid);
        [[unroll]] for (uint t = 0; t < T; t++) {
            vec4 x = vec4(F32s(dot_x[t]).v[k]);
            [[unroll]] for (uint j = 0; j < W_VECS; j++)
                acc[t].v[j] = fma(w.v[j], x, acc[t].v[j]);
        }
    }
    [[unroll]] for (uint t = 0; t < T; t++)
        [[unroll]] for (uint j = 0; j < W_BLOCK; j++)
            dot_part[((r0 + j) * T + t) * (PARTS + 1) + part] = acc[t].v[j / 4][j % 4];
}

// After this, dot_sum(r, t) may be called by any invocation.
void dot_tile(uint cols)
{
    if (TRANSPOSED)
        dot_tile_transposed(cols);
    else
        dot_tile_plain(cols);
    barrier();
}

float dot_sum(uint r, uint t)
{
    float sum = 0.0;
    uint first = (r * T + t) * (PARTS + 1);
    for (uint i = 0; i < PARTS; i++)
        sum += dot_part[first + i];
    return sum;
}
#endif
