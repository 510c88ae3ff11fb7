// The formats whose values are integers in disguise. A unit is 32 codes of 8 bits, packed four to a
// word in the order of its values, in W_RUNS runs with a scale each; a value is
//   d * (code - W_MIDDLE) + W_LEAST * m
// with the d and m that weight_unit leaves. A format that has a section here gets the shaders that
// sum products of integers: the build reads the names off this file. It defines
//   weight_word(unit, j)       word j of 8
//   W_MIDDLE, W_LEAST, W_RUNS  where they are not 0, 0 and 1
#ifndef CODES_GLSL
#define CODES_GLSL
#include "weight.glsl"

// Four codes of 4 bits, a byte each, for the values that they stand for.
uint looked_up(uint codes, uvec4 table)
{
    uint values = 0;
    [[unroll]] for (uint k = 0; k < 4; k++) {
        uint code = codes >> 8 * k;
        uvec2 words = (code & 8) != 0 ? table.zw : table.xy;
        uint word = (code & 4) != 0 ? words.y : words.x;
        values |= (word >> 8 * (code & 3) & 0xff) << 8 * k;
    }
    return values;
}

// cf_iq4_values and cf_e2m1_doubled
#define IQ4  uvec4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u)
#define E2M1 uvec4(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu)

// Word j of the unit's bytes from byte k on.
#define BYTES(k, j)                                                                                \
    ((k) % 4 == 0 ? w.q[(k) / 4 + (j)]                                                             \
                  : w.q[(k) / 4 + (j)] >> 8 * (k) % 32 |                                           \
                        w.q[(k) / 4 + (j) + 1] << (32 - 8 * (k) % 32) % 32)
// Of 16 bytes from byte k on: the low nibbles are 16 values, the high ones the other 16.
#define NIBBLES(k, j) (BYTES(k, (j) % 4) >> 4 * ((j) / 4) & 0x0f0f0f0fu)

// Bits 0 .. 3 become bit 4 of a byte each.
uint fifth_bits(uint bits)
{
    return ((bits & 15) * 0x00204081u & 0x01010101u) << 4;
}

#if WEIGHT_FMT == FMT_q8_0
uint weight_word(WUnit w, uint j)
{
    return BYTES(2, j);
}

#elif WEIGHT_FMT == FMT_q4_0
#define W_MIDDLE 8
uint weight_word(WUnit w, uint j)
{
    return NIBBLES(2, j);
}

#elif WEIGHT_FMT == FMT_q4_1
#define W_LEAST 1
uint weight_word(WUnit w, uint j)
{
    return NIBBLES(4, j);
}

#elif WEIGHT_FMT == FMT_q5_0
#define W_MIDDLE 16
uint weight_word(WUnit w, uint j)
{
    return NIBBLES(6, j) | fifth_bits(w.q[6] >> 4 * j);
}

#elif WEIGHT_FMT == FMT_q5_1
#define W_LEAST 1
uint weight_word(WUnit w, uint j)
{
    return NIBBLES(8, j) | fifth_bits(w.q[1] >> 4 * j);
}

#elif WEIGHT_FMT == FMT_q2_k || WEIGHT_FMT == FMT_q3_k || WEIGHT_FMT == FMT_q4_k || \
    WEIGHT_FMT == FMT_q5_k || WEIGHT_FMT == FMT_q6_k
#if WEIGHT_FMT == FMT_q2_k || WEIGHT_FMT == FMT_q4_k || WEIGHT_FMT == FMT_q5_k
#define W_LEAST -1
#elif WEIGHT_FMT == FMT_q3_k
#define W_MIDDLE 4
#else
#define W_MIDDLE 32
#endif
#if WEIGHT_FMT != FMT_q4_k && WEIGHT_FMT != FMT_q5_k
#define W_RUNS 2
#endif
uint weight_word(WUnit w, uint j)
{
    return w.q[j];
}

#elif WEIGHT_FMT == FMT_iq4_nl
uint weight_word(WUnit w, uint j)
{
    return looked_up(NIBBLES(2, j), IQ4);
}

#elif WEIGHT_FMT == FMT_iq4_xs
uint weight_word(WUnit w, uint j)
{
    return looked_up(NIBBLES(0, j), IQ4);
}

#elif WEIGHT_FMT == FMT_mxfp4
uint weight_word(WUnit w, uint j)
{
    return looked_up(NIBBLES(1, j), E2M1);
}

#elif WEIGHT_FMT == FMT_nvfp4
#define W_RUNS 2
uint weight_word(WUnit w, uint j)
{
    return looked_up(w.q[j / 4 * 2 + j % 2] >> 4 * (j % 4 / 2) & 0x0f0f0f0fu, E2M1);
}

#elif WEIGHT_FMT == FMT_f4_e2m1 || WEIGHT_FMT == FMT_i4
// A nibble after the other; what lies beyond the row meets activations of 0.
uint weight_word(WUnit w, uint j)
{
    uint codes = w.q[j / 2] >> 16 * (j % 2) & 0xffffu;
    codes = (codes | codes << 8) & 0x00ff00ffu;
    codes = (codes | codes << 4) & 0x0f0f0f0fu;
#if WEIGHT_FMT == FMT_i4
#define W_MIDDLE 8
    return codes;
#else
    return looked_up(codes, E2M1);
#endif
}
#define W_D (WEIGHT_FMT == FMT_i4 ? 1.0 : 0.5)
#endif

#ifndef W_MIDDLE
#define W_MIDDLE 0
#endif
#ifndef W_LEAST
#define W_LEAST 0
#endif
#ifndef W_RUNS
#define W_RUNS 1
#endif
#ifndef W_D
#define W_D (run == 0 ? w.d : w.d2)
#endif

float weight_scale(WUnit w, uint run)
{
    return W_D;
}

float weight_least(WUnit w, uint run)
{
#if W_LEAST == 0
    return 0.0;
#else
    return float(W_LEAST) * (run == 0 ? w.m : w.m2);
#endif
}
#endif
