// The tile of many activation rows: WG outputs against T of them, through shared memory, DEPTH
// columns at a time. An invocation loads and decodes its own output's part of those and makes
// OUTS x TOKENS of the products. A result is the same sum as in dot_tile.glsl, to the bit: columns
// are taken part by part, the units of a part in order, and each part is added when it is whole.
const uint DEPTH = 32, OUTS = 8, TOKENS = 4; // WG = (WG / OUTS) * (T / TOKENS): T is 32
const uint CHUNK = DEPTH / W_UNIT;           // units at a time, PARTS apart
const uint X_AT = DEPTH * WG;                // activations lie behind the weights, k before rows

// Columns of the units u, u + PARTS, ... before `units`, n of them.
void many_load(uint u, uint n, uint cols)
{
    uint lid = gl_LocalInvocationID.x, token = lid % T;
    for (uint c = 0; c < n; c++) {
        uint at = u + c * PARTS;
        WUnit w = weight_unit(dot_w[0], at, cols);
        float scale = 1.0;
        if (SCALES != SCALES_NONE)
            scale = scales_value(SCALES, dot_scales[0], at * W_UNIT / dot_scale_cols);
        [[unroll]] for (uint j = 0; j < W_EIGHTS; j++) {
            WBlock eight = weight_eight(w, at, j, cols);
            if (SCALES != SCALES_NONE)
                eight = block_scaled(eight, scale);
            [[unroll]] for (uint i = 0; i < W_BLOCK; i++)
                dot_part[(c * W_UNIT + j * W_BLOCK + i) * WG + lid] = eight.v[i / 4][i % 4];
        }
    }
    for (uint b = lid / T; b < n * W_EIGHTS; b += WG / T) {
        uint at = u + b / W_EIGHTS * PARTS;
        WBlock x = float_block(dot_x[0], at * W_EIGHTS + b % W_EIGHTS, cols);
        if (Q8)
            x = block_q8(x, q8_scale(dot_x[0], at * W_UNIT, cols));
        [[unroll]] for (uint i = 0; i < W_BLOCK; i++)
            dot_part[X_AT + (b * W_BLOCK + i) * T + token] = x.v[i / 4][i % 4];
    }
}

// Leaves the sums in dot_part, T to an output.
void dot_tile_many(uint cols)
{
    uint lid = gl_LocalInvocationID.x, units = (cols + W_UNIT - 1) / W_UNIT;
    uint first = lid / (T / TOKENS) * OUTS, row = lid % (T / TOKENS) * TOKENS;
    float sum[OUTS * TOKENS];
    [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++)
        sum[i] = 0.0;
    for (uint part = 0; part < PARTS; part++) {
        float acc[OUTS * TOKENS];
        [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++)
            acc[i] = 0.0;
        for (uint u = part; u < units; u += CHUNK * PARTS) {
            uint n = min(CHUNK, (units - u + PARTS - 1) / PARTS);
            barrier(); // what is there has been used
            many_load(u, n, cols);
            barrier();
            for (uint k = 0; k < n * W_UNIT; k++) {
                float w[OUTS], x[TOKENS];
                [[unroll]] for (uint o = 0; o < OUTS; o++)
                    w[o] = dot_part[k * WG + first + o];
                [[unroll]] for (uint t = 0; t < TOKENS; t++)
                    x[t] = dot_part[X_AT + k * T + row + t];
                [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++)
                    acc[i] = fma(w[i / TOKENS], x[i % TOKENS], acc[i]);
            }
        }
        [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++)
            sum[i] += acc[i];
    }
    barrier();
    [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++)
        dot_part[(first + i / TOKENS) * T + row + i % TOKENS] = sum[i];
}
