// R weight rows ("outputs") against T activation rows: what is stored of them is loaded once for all
// T and decoded in registers, and the PARTS partial sums of a result are added in shared memory in
// the order of the parts.
//
//   plain       an invocation takes every PARTS-th unit of the columns, of ROWS outputs
//   TRANSPOSED  outputs are neighbours in memory: an invocation takes ROWS blocks of W_BLOCK of the R
//               outputs, WG / PARTS blocks apart, and every PARTS-th column; R and what dot_outputs
//               is given are multiples of W_BLOCK
//   MANY        plain, R = WG outputs of T = 32 rows: see dot_many.glsl
//
// Callers clamp row addresses at the edge, so that all of a work-group runs the same loop, and
// skip the store instead.
#ifndef DOT_TILE_GLSL
#define DOT_TILE_GLSL
layout(constant_id = 1) const bool ALIGNED = false;
layout(constant_id = 2) const uint R = 4;
layout(constant_id = 3) const uint T = 1;
layout(constant_id = 4) const bool TRANSPOSED = false;
layout(constant_id = 5) const uint PARTS = 64;
layout(constant_id = 6) const uint SCALES = 0; // scales.glsl
layout(constant_id = 7) const bool Q8 = false; // the activations are rounded
layout(constant_id = 8) const bool GAPS = false; // transposed: outputs are no neighbours
layout(constant_id = 11) const bool MANY = false;
#include "weight.glsl"
#include "scales.glsl"

const uint ROWS = MANY ? 1 : R * PARTS / WG / (TRANSPOSED ? W_BLOCK : 1); // of an invocation
const uint DOT_X = MANY ? 1 : T; // activation rows that an invocation loads of

// + 1: the columns fall on different banks. MANY: the results; before them, as floats, 32 columns of
// outputs and rows.
#ifdef INTEGERS
#define MANY_PART R * T
#else
#define MANY_PART 32 * (R + T)
#endif
shared float dot_part[MANY ? MANY_PART : R * T * (PARTS + 1)];

uint64_t dot_w[ROWS];      // where each output's row begins; transposed: each block in column 0
uint64_t dot_scales[ROWS]; // and its outer scales
uint dot_scale_cols;
uint64_t dot_step;             // transposed: from column to column
uint dot_valid[ROWS], dot_gap; // how many outputs of a block exist; elements from one to the next
uint64_t dot_x[DOT_X];

// Which of the tile's T rows dot_x[i] is.
uint dot_row(uint i)
{
    return MANY ? gl_LocalInvocationID.x % T : i;
}

// Slots [slot, slot + n) become outputs o, o + 1, ... of the matrix [rows, cols] at w. `step`: see
// matrix_step in vk_ops.c; `gap`: transposed, from output to output.
void dot_outputs(uint slot, uint n, uint64_t w, uint step, uint gap, Scales scales, uint o,
                 uint rows, uint cols)
{
    if (!TRANSPOSED) {
        uint group = gl_LocalInvocationID.x / (MANY ? 1 : PARTS);
        [[unroll]] for (uint i = 0; i < ROWS; i++) {
            uint s = group * ROWS + i, out_row = min(o + s - slot, rows - 1);
            if (s < slot || s >= slot + n)
                continue;
            dot_w[i] = w + uint64_t(out_row) * step * weight_bytes(cols);
            if (SCALES != SCALES_NONE)
                dot_scales[i] = scales_row(SCALES, scales, out_row, step, cols);
        }
        dot_scale_cols = scales.cols;
        return;
    }
    [[unroll]] for (uint i = 0; i < ROWS; i++) {
        uint s = (gl_LocalInvocationID.x / PARTS + i * (WG / PARTS)) * W_BLOCK;
        uint first = min(o + s - slot, (rows - 1) / W_BLOCK * W_BLOCK);
        if (s < slot || s >= slot + n)
            continue;
        dot_w[i] = w + weight_bytes(uint64_t(first) * gap);
        dot_valid[i] = rows - first;
        dot_step = weight_bytes(step);
        dot_gap = gap;
    }
}

#ifdef INTEGERS
#include "dot_integers.glsl"
#else
#include "dot_many.glsl"

void dot_tile_plain(uint cols)
{
    uint lid = gl_LocalInvocationID.x, part = lid % PARTS;
    uint units = (cols + W_UNIT - 1) / W_UNIT;
    float acc[ROWS * T];
    [[unroll]] for (uint i = 0; i < ROWS * T; i++)
        acc[i] = 0.0;
    for (uint u = part; u < units; u += PARTS) {
        WUnit w[ROWS];
        float scale[ROWS];
        vec2 q8[DOT_X];
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            w[r] = weight_unit(dot_w[r], u, cols);
            if (SCALES != SCALES_NONE)
                scale[r] = scales_value(SCALES, dot_scales[r], u * W_UNIT / dot_scale_cols);
        }
        if (Q8)
            [[unroll]] for (uint t = 0; t < T; t++)
                q8[t % DOT_X] = q8_scale(dot_x[t % DOT_X], u * W_UNIT, cols);
        [[unroll]] for (uint j = 0; j < W_EIGHTS; j++) {
            WBlock x[T];
            [[unroll]] for (uint t = 0; t < T; t++) {
                x[t] = float_block(dot_x[t % DOT_X], u * W_EIGHTS + j, cols);
                if (Q8)
                    x[t] = block_q8(x[t], q8[t % DOT_X]);
            }
            [[unroll]] for (uint r = 0; r < ROWS; r++) {
                WBlock eight = weight_eight(w[r], u, j, cols);
                if (SCALES != SCALES_NONE)
                    eight = block_scaled(eight, scale[r]);
                [[unroll]] for (uint t = 0; t < T; t++)
                    acc[r * T + t] = block_dot(eight, x[t], acc[r * T + t]);
            }
        }
    }
    uint first = lid / PARTS * ROWS * T;
    [[unroll]] for (uint i = 0; i < ROWS * T; i++)
        dot_part[(first + i) * (PARTS + 1) + part] = acc[i];
}
#endif

#ifdef W_ELEMENTS
// Neighbours, or every dot_gap-th element.
WBlock dot_column(uint r, uint k)
{
    uint64_t at = dot_w[r] + k * dot_step;
    if (!GAPS)
        return weight_block(at, 0, dot_valid[r]);
    WBlock w;
    [[unroll]] for (uint j = 0; j < W_BLOCK; j++)
        w.v[j / 4][j % 4] = weight_element(at, min(j, dot_valid[r] - 1) * dot_gap);
    return w;
}

void dot_tile_transposed(uint cols)
{
    uint lid = gl_LocalInvocationID.x, part = lid % PARTS;
    WBlock acc[ROWS * T];
    [[unroll]] for (uint i = 0; i < ROWS * T * W_VECS; i++)
        acc[i / W_VECS].v[i % W_VECS] = vec4(0.0);
    for (uint k = part; k < cols; k += PARTS) {
        vec4 x[T];
        [[unroll]] for (uint t = 0; t < T; t++) {
            float value = F32s(dot_x[t % DOT_X]).v[k];
            x[t] = vec4(Q8 ? q8_rounded(value, q8_scale(dot_x[t % DOT_X], k, cols)) : value);
        }
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            WBlock w = dot_column(r, k);
            [[unroll]] for (uint t = 0; t < T; t++)
                [[unroll]] for (uint j = 0; j < W_VECS; j++)
                    acc[r * T + t].v[j] = fma(w.v[j], x[t], acc[r * T + t].v[j]);
        }
    }
    [[unroll]] for (uint i = 0; i < ROWS * T * W_BLOCK; i++) {
        uint r = i / W_BLOCK / T, t = i / W_BLOCK % T, j = i % W_BLOCK;
        uint s = (lid / PARTS + r * (WG / PARTS)) * W_BLOCK + j;
        dot_part[(s * T + t) * (PARTS + 1) + part] = acc[r * T + t].v[j / 4][j % 4];
    }
}
#endif

// After this, dot_sum(r, t) may be called by any invocation.
void dot_tile(uint cols)
{
#ifdef W_ELEMENTS
    if (TRANSPOSED)
        dot_tile_transposed(cols);
    else
#endif
    if (MANY)
        dot_tile_many(cols);
    else
        dot_tile_plain(cols);
    barrier();
}

float dot_sum(uint r, uint t)
{
    float sum = 0.0;
    if (MANY)
        return dot_part[r * T + t];
    uint first = (r * T + t) * (PARTS + 1);
    for (uint i = 0; i < PARTS; i++)
        sum += dot_part[first + i];
    return sum;
}
#endif
