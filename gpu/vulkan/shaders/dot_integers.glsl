// The products of dot_tile.glsl as integers, where an op asks for activations in 8 bits (Q8): the
// codes of a unit (codes.glsl) against those of a group of activations, four products an
// instruction. The sum over a run is exact, as float32 too (below 2^24); run_dot scales it.
// The order of runs in a result is that of units in dot_tile.glsl and dot_many.glsl, the same in
// both tiles: the same bits.
#extension GL_EXT_spirv_intrinsics : require
#include "codes.glsl"

// OpSDot of two words of four signed bytes, with the capabilities DotProduct and
// DotProductInput4x8BitPacked; the last operand is PackedVectorFormat4x8Bit. glslang 11 has no
// GL_EXT_integer_dot_product.
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018],
                  id = 4450)
int packed_dot(uint a, uint b, spirv_literal int format);
#define DOT4(a, b) packed_dot(a, b, 0)

const uint RUN_WORDS = 8 / W_RUNS;

struct Rounded {
    uint q[8];
    float d;
    int sum[W_RUNS]; // of the codes of a run
};

// round(v): halves go away from zero.
int nearest(float v)
{
    int whole = int(v);
    return whole + int(2.0 * (v - float(whole)));
}

// Group u of the row of n floats.
Rounded rounded_group(uint64_t row, uint u, uint n)
{
    WBlock x[4];
    Rounded r;
    uint most = 0; // bits of |x|, in the order of |x|, NaN last
    [[unroll]] for (uint b = 0; b < 4; b++) {
        x[b] = float_block(row, u * 4 + b, n);
        [[unroll]] for (uint i = 0; i < W_BLOCK; i++)
            most = max(most, floatBitsToUint(x[b].v[i / 4][i % 4]) & 0x7fffffffu);
    }
    vec2 scale = q8_scale_of(uintBitsToFloat(most));
    r.d = most >= 0x7f800000u ? uintBitsToFloat(0x7fc00000u) : scale.x;
    [[unroll]] for (uint j = 0; j < 8; j++) {
        r.q[j] = 0;
        [[unroll]] for (uint k = 0; k < 4; k++) {
            precise float v = x[j / 2].v[j % 2][k] * scale.y;
            r.q[j] |= uint(nearest(v) & 0xff) << 8 * k;
        }
    }
    [[unroll]] for (uint run = 0; run < W_RUNS; run++) {
        r.sum[run] = 0;
#if W_MIDDLE != 0 || W_LEAST != 0
        [[unroll]] for (uint j = 0; j < RUN_WORDS; j++)
            r.sum[run] += DOT4(r.q[run * RUN_WORDS + j], 0x01010101u);
#endif
    }
    return r;
}

// acc + the products of a run: `sum` of codes times codes, `x_sum` of those of x.
float run_dot(float acc, int sum, int x_sum, float d, float least, float x_d)
{
    precise float scale = d * x_d;
    acc = fma(float(sum - W_MIDDLE * x_sum), scale, acc);
#if W_LEAST != 0
    precise float offset = least * x_d;
    acc = fma(float(x_sum), offset, acc);
#endif
    return acc;
}

void dot_tile_plain(uint cols)
{
    uint lid = gl_LocalInvocationID.x, part = lid % PARTS;
    uint units = (cols + W_UNIT - 1) / W_UNIT;
    float acc[ROWS * T];
    [[unroll]] for (uint i = 0; i < ROWS * T; i++)
        acc[i] = 0.0;
    for (uint u = part; u < units; u += PARTS) {
        WUnit w[ROWS];
        float outer[ROWS];
        Rounded x[T];
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            w[r] = weight_unit(dot_w[r], u, cols);
            outer[r] = 1.0;
            if (SCALES != SCALES_NONE)
                outer[r] = scales_value(SCALES, dot_scales[r], u * W_UNIT / dot_scale_cols);
        }
        [[unroll]] for (uint t = 0; t < T; t++)
            x[t] = rounded_group(dot_x[t % DOT_X], u, cols);
        [[unroll]] for (uint r = 0; r < ROWS; r++)
            [[unroll]] for (uint run = 0; run < W_RUNS; run++) {
                uint words[RUN_WORDS];
                precise float d = weight_scale(w[r], run) * outer[r];
                precise float least = weight_least(w[r], run) * outer[r];
                [[unroll]] for (uint j = 0; j < RUN_WORDS; j++)
                    words[j] = weight_word(w[r], run * RUN_WORDS + j);
                [[unroll]] for (uint t = 0; t < T; t++) {
                    int sum = 0;
                    [[unroll]] for (uint j = 0; j < RUN_WORDS; j++)
                        sum += DOT4(words[j], x[t].q[run * RUN_WORDS + j]);
                    acc[r * T + t] = run_dot(acc[r * T + t], sum, x[t].sum[run], d, least, x[t].d);
                }
            }
    }
    uint first = lid / PARTS * ROWS * T;
    [[unroll]] for (uint i = 0; i < ROWS * T; i++)
        dot_part[(first + i) * (PARTS + 1) + part] = acc[i];
}

// ---- many rows: see dot_many.glsl; UNITS units at a time, so that all fits into 16 KiB ----

const uint UNITS = 2 / W_RUNS, OUTS = 8, TOKENS = 4; // WG = (WG / OUTS) * (T / TOKENS): T is 32

shared uint many_w[MANY ? UNITS * 8 * WG : 1], many_x[MANY ? UNITS * 8 * T : 1];
shared float many_d[MANY ? UNITS * W_RUNS * WG : 1], many_least[MANY ? UNITS * W_RUNS * WG : 1];
shared float many_x_d[MANY ? UNITS * T : 1];
shared int many_x_sum[MANY ? UNITS * W_RUNS * T : 1];

// The units u, u + PARTS, ..., n of them.
void many_load(uint u, uint n, uint cols)
{
    uint lid = gl_LocalInvocationID.x, token = lid % T;
    for (uint c = 0; c < n; c++) {
        uint at = u + c * PARTS;
        WUnit w = weight_unit(dot_w[0], at, cols);
        float outer = 1.0;
        if (SCALES != SCALES_NONE)
            outer = scales_value(SCALES, dot_scales[0], at * W_UNIT / dot_scale_cols);
        [[unroll]] for (uint j = 0; j < 8; j++)
            many_w[(c * 8 + j) * WG + lid] = weight_word(w, j);
        [[unroll]] for (uint run = 0; run < W_RUNS; run++) {
            precise float d = weight_scale(w, run) * outer, least = weight_least(w, run) * outer;
            many_d[(c * W_RUNS + run) * WG + lid] = d;
            many_least[(c * W_RUNS + run) * WG + lid] = least;
        }
    }
    for (uint c = lid / T; c < n; c += WG / T) {
        Rounded x = rounded_group(dot_x[0], u + c * PARTS, cols);
        many_x_d[c * T + token] = x.d;
        [[unroll]] for (uint j = 0; j < 8; j++)
            many_x[(c * 8 + j) * T + token] = x.q[j];
        [[unroll]] for (uint run = 0; run < W_RUNS; run++)
            many_x_sum[(c * W_RUNS + run) * T + token] = x.sum[run];
    }
}

// Run `run` (of all units that are loaded) of the outputs from `first` and the rows from `row` on.
void many_run(uint run, uint first, uint row, inout float acc[OUTS * TOKENS])
{
    int sum[OUTS * TOKENS];
    [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++)
        sum[i] = 0;
    [[unroll]] for (uint j = 0; j < RUN_WORDS; j++) {
        uint w[OUTS], x[TOKENS], word = run * RUN_WORDS + j;
        [[unroll]] for (uint o = 0; o < OUTS; o++)
            w[o] = many_w[word * WG + first + o];
        [[unroll]] for (uint t = 0; t < TOKENS; t++)
            x[t] = many_x[word * T + row + t];
        [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++)
            sum[i] += DOT4(w[i / TOKENS], x[i % TOKENS]);
    }
    [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++) {
        uint o = run * WG + first + i / TOKENS, t = row + i % TOKENS;
        acc[i] = run_dot(acc[i], sum[i], many_x_sum[run * T + t], many_d[o], many_least[o],
                         many_x_d[run / W_RUNS * T + t]);
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
        for (uint u = part; u < units; u += UNITS * PARTS) {
            uint n = min(UNITS, (units - u + PARTS - 1) / PARTS);
            barrier(); // what is there has been used
            many_load(u, n, cols);
            barrier();
            for (uint run = 0; run < n * W_RUNS; run++)
                many_run(run, first, row, acc);
        }
        [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++)
            sum[i] += acc[i];
    }
    [[unroll]] for (uint i = 0; i < OUTS * TOKENS; i++)
        dot_part[(first + i / TOKENS) * T + row + i % TOKENS] = sum[i];
}
