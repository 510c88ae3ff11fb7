// The block formats: W_UNIT = 32 consecutive values of a row at a time, kept as stored until each is
// needed. gpu/ref/ref_formats.c defines them; every number here is exact to its bits.
//
// WEIGHT_FMT picks one when the shader is built. A format defines
//   W_VALUES, W_BYTES  of a block: from the table of runtime/base/format.c, by the build
//   weight_unit(row, u, n)  unit u of the row of n values at address `row`
//   weight_value(unit, i)   value i of it, i a constant once loops are unrolled
// Blocks lie at multiples of the largest power of two in W_BYTES, no more (ALIGN of LOAD_WORDS).
#ifndef FORMATS_GLSL
#define FORMATS_GLSL
#define W_UNIT 32

// cf_iq4_values
float iq4_value(uint code)
{
    uint low = (code & 4) != 0 ? 0xf6eaddcfu : 0xbfad9881u;
    uint high = (code & 4) != 0 ? 0x71594535u : 0x26190d01u;
    uint word = (code & 8) != 0 ? high : low;
    return float(int(word << 24 - 8 * (code & 3)) >> 24);
}

float ue4m3_half(uint code)
{
    return code == 0x7f ? 0.0 : half_low((code & 0x7f) << 7) * 128.0;
}

float e8m0_half(uint code)
{
    return uintBitsToFloat(code < 2 ? 0x00200000u << code : (code - 1) << 23);
}

// Value i of 32: low nibbles of the bytes from k on, then high ones.
#define NIBBLE(k, i) (BYTE((k) + (i) % 16) >> 4 * ((i) / 16) & 15u)

struct WUnit {
    uint q[9];
    float d, m; // scales; those of the second 16 values in d2, m2
    float d2, m2;
};

uint64_t weight_bytes(uint64_t n)
{
    return n / W_VALUES * W_BYTES;
}

// ---- blocks of 32 ----

#if WEIGHT_FMT == FMT_q4_0
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    LOAD_WORDS(w.q, 0, row + u * 18ul, 5, 18, 2)
    w.d = half_low(w.q[0]);
    return w;
}
float weight_value(WUnit w, uint i)
{
    return (float(NIBBLE(2, i)) - 8.0) * w.d;
}

#elif WEIGHT_FMT == FMT_q4_1
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    LOAD_WORDS(w.q, 0, row + u * 20ul, 5, 20, 4)
    w.d = half_low(w.q[0]);
    w.m = half_low(w.q[0] >> 16);
    return w;
}
float weight_value(WUnit w, uint i)
{
    precise float v = float(NIBBLE(4, i)) * w.d + w.m;
    return v;
}

#elif WEIGHT_FMT == FMT_q5_0
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    LOAD_WORDS(w.q, 0, row + u * 22ul, 6, 22, 2)
    w.d = half_low(w.q[0]);
    w.q[6] = w.q[0] >> 16 | w.q[1] << 16;
    return w;
}
float weight_value(WUnit w, uint i)
{
    return (float(NIBBLE(6, i) | (w.q[6] >> i & 1) << 4) - 16.0) * w.d;
}

#elif WEIGHT_FMT == FMT_q5_1
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    LOAD_WORDS(w.q, 0, row + u * 24ul, 6, 24, 8)
    w.d = half_low(w.q[0]);
    w.m = half_low(w.q[0] >> 16);
    return w;
}
float weight_value(WUnit w, uint i)
{
    precise float v = float(NIBBLE(8, i) | (w.q[1] >> i & 1) << 4) * w.d + w.m;
    return v;
}

#elif WEIGHT_FMT == FMT_q8_0
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    LOAD_WORDS(w.q, 0, row + u * 34ul, 9, 34, 2)
    w.d = half_low(w.q[0]);
    return w;
}
float weight_value(WUnit w, uint i)
{
    return float(SBYTE(2 + i)) * w.d;
}
// Of a cache, too: an eighth of two words and the scale.
WBlock weight_block(uint64_t row, uint b, uint n)
{
    WUnit w;
    WBlock block;
    uint64_t at = row + b / 4 * 34ul;
    float d = half_low(load_u16(at));
    LOAD_SOME(w.q, 0, at + 2ul + b % 4 * 8ul, 2, 8, 8, 2)
    [[unroll]] for (uint j = 0; j < W_BLOCK; j++)
        block.v[j / 4][j % 4] = float(SBYTE(j)) * d;
    return block;
}
float weight_element(uint64_t row, uint i)
{
    uint64_t at = row + i / 32 * 34ul;
    return float(int(load_u8(at + 2ul + i % 32) << 24) >> 24) * half_low(load_u16(at));
}

#elif WEIGHT_FMT == FMT_iq4_nl
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    LOAD_WORDS(w.q, 0, row + u * 18ul, 5, 18, 2)
    w.d = half_low(w.q[0]);
    return w;
}
float weight_value(WUnit w, uint i)
{
    return w.d * iq4_value(NIBBLE(2, i));
}

#elif WEIGHT_FMT == FMT_mxfp4
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    LOAD_WORDS(w.q, 0, row + u * 17ul, 5, 17, 1)
    w.d = e8m0_half(w.q[0] & 0xff);
    return w;
}
float weight_value(WUnit w, uint i)
{
    return e2m1_doubled(NIBBLE(1, i)) * w.d;
}

// ---- a block of 64: four scales, four times 8 bytes of 16 values; half of it is a unit ----

#elif WEIGHT_FMT == FMT_nvfp4
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint64_t b = row + (u >> 1) * 36ul;
    uint scales = U32s(b).v[0] >> 16 * (u & 1);
    LOAD_WORDS(w.q, 0, b + 4ul + (u & 1) * 16ul, 4, 16, 4)
    w.d = ue4m3_half(scales & 0xff);
    w.d2 = ue4m3_half(scales >> 8 & 0xff);
    return w;
}
float weight_value(WUnit w, uint i)
{
    uint code = BYTE(8 * (i / 16) + i % 8) >> 4 * (i % 16 / 8) & 15;
    return e2m1_doubled(code) * (i < 16 ? w.d : w.d2);
}

// ---- blocks of 256: unit s of 8 ----

#elif WEIGHT_FMT == FMT_q2_k
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7;
    uint64_t b = row + (u >> 3) * 84ul;
    uint scales = U32s(b).v[s >> 1] >> 16 * (s & 1), halves = U32s(b).v[20];
    LOAD_WORDS(w.q, 0, b + 16ul + 32 * (s >> 2), 8, 32, 4)
    [[unroll]] for (uint i = 0; i < 8; i++)
        w.q[i] = w.q[i] >> 2 * (s & 3) & 0x03030303u;
    float d = half_low(halves), m = half_low(halves >> 16);
    w.d = d * float(scales & 15);
    w.m = m * float(scales >> 4 & 15);
    w.d2 = d * float(scales >> 8 & 15);
    w.m2 = m * float(scales >> 12 & 15);
    return w;
}
float weight_value(WUnit w, uint i)
{
    precise float v = (i < 16 ? w.d : w.d2) * float(BYTE(i)) - (i < 16 ? w.m : w.m2);
    return v;
}

#elif WEIGHT_FMT == FMT_q3_k
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, high[8], packed[4];
    uint64_t b = row + (u >> 3) * 110ul;
    LOAD_WORDS(w.q, 0, b + 32ul + 32 * (s >> 2), 8, 32, 2)
    LOAD_WORDS(high, 0, b, 8, 32, 2)
    LOAD_WORDS(packed, 0, b + 96ul, 4, 14, 2)
    [[unroll]] for (uint i = 0; i < 8; i++) // codes 0 .. 7 of -4 .. 3
        w.q[i] = (w.q[i] >> 2 * (s & 3) & 0x03030303u) | (high[i] >> s & 0x01010101u) << 2;
    // Scales 2s and 2s + 1: low nibbles in bytes 0 .. 7, two high bits in bytes 8 .. 11.
    uint low = ((s & 2) != 0 ? packed[1] : packed[0]) >> 16 * (s & 1) >> 4 * (s >> 2);
    uint top = packed[2] >> 16 * (s & 1) >> 2 * (s >> 1);
    float d = half_low(packed[3]);
    w.d = d * (float((low & 15) | (top & 3) << 4) - 32.0);
    w.d2 = d * (float((low >> 8 & 15) | (top >> 8 & 3) << 4) - 32.0);
    return w;
}
float weight_value(WUnit w, uint i)
{
    return (i < 16 ? w.d : w.d2) * (float(BYTE(i)) - 4.0);
}

#elif WEIGHT_FMT == FMT_q4_k || WEIGHT_FMT == FMT_q5_k
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, head[4];
    uint64_t b = row + (u >> 3) * uint64_t(W_BYTES);
    LOAD_WORDS(head, 0, b, 4, 16, 16)
    LOAD_WORDS(w.q, 0, b + uint64_t(W_BYTES - 128) + 32 * (s >> 1), 8, 32, 16)
    [[unroll]] for (uint i = 0; i < 8; i++)
        w.q[i] = w.q[i] >> 4 * (s & 1) & 0x0f0f0f0fu;
#if WEIGHT_FMT == FMT_q5_k
    uint high[8];
    LOAD_WORDS(high, 0, b + 16ul, 8, 32, 16)
    [[unroll]] for (uint i = 0; i < 8; i++)
        w.q[i] |= (high[i] >> s & 0x01010101u) << 4;
#endif
    // 6 bits of scale and of min: those of 0 .. 3 in bytes of their own, the rest on top of them.
    uint at = 8 * (s & 3), low = head[1] >> at, min_low = head[2] >> at, more = head[3] >> at;
    uint scale = s < 4 ? low & 63 : (more & 15) | (low >> 6 & 3) << 4;
    uint least = s < 4 ? min_low & 63 : (more >> 4 & 15) | (min_low >> 6 & 3) << 4;
    w.d = float(scale) * half_low(head[0]);
    w.m = float(least) * half_low(head[0] >> 16);
    return w;
}
float weight_value(WUnit w, uint i)
{
    precise float v = w.d * float(BYTE(i)) - w.m;
    return v;
}

#elif WEIGHT_FMT == FMT_q6_k
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, quarter = s & 3, high[8], scales[1], half_d[1];
    uint64_t b = row + (u >> 3) * 210ul;
    LOAD_WORDS(w.q, 0, b + 64 * (s >> 2) + 32 * (quarter & 1), 8, 32, 2)
    LOAD_WORDS(high, 0, b + 128ul + 32 * (s >> 2), 8, 32, 2)
    LOAD_WORDS(scales, 0, b + 192ul + 2 * s, 1, 2, 2)
    LOAD_WORDS(half_d, 0, b + 208ul, 1, 2, 2)
    [[unroll]] for (uint i = 0; i < 8; i++)
        w.q[i] = (w.q[i] >> 4 * (quarter >> 1) & 0x0f0f0f0fu) |
                 (high[i] >> 2 * quarter & 0x03030303u) << 4;
    float d = half_low(half_d[0]);
    w.d = d * float(int(scales[0] << 24) >> 24);
    w.d2 = d * float(int(scales[0] << 16) >> 24);
    return w;
}
float weight_value(WUnit w, uint i)
{
    return (i < 16 ? w.d : w.d2) * (float(BYTE(i)) - 32.0);
}

#elif WEIGHT_FMT == FMT_iq4_xs
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, head[2];
    uint64_t b = row + (u >> 3) * 136ul;
    LOAD_WORDS(head, 0, b, 2, 8, 8)
    LOAD_WORDS(w.q, 0, b + 8ul + 16 * s, 4, 16, 8)
    uint code = (head[1] >> 4 * s & 15) | (head[0] >> 16 >> 2 * s & 3) << 4;
    w.d = half_low(head[0]) * (float(code) - 32.0);
    return w;
}
float weight_value(WUnit w, uint i)
{
    return w.d * iq4_value(NIBBLE(0, i));
}

// ---- codebooks (vk_grids.c): 16-bit entries, a digit a value ----

#else

uint grid_entry(uint i)
{
    return U32s(weight_grid).v[i >> 1] >> 16 * (i & 1) & 0xffffu;
}

// 7 stored signs; the eighth makes their number even.
uint signs7(uint code)
{
    uint parity = code ^ code >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return code | (parity & 1) << 7;
}

float signed_by(float v, uint signs, uint i)
{
    return uintBitsToFloat(floatBitsToUint(v) ^ (signs >> i & 1) << 31);
}

#if WEIGHT_FMT == FMT_iq2_xxs || WEIGHT_FMT == FMT_iq2_xs || WEIGHT_FMT == FMT_iq2_s
// q[0 .. 3]: entry and signs << 16 of 8 values each
float weight_value(WUnit w, uint i)
{
    float v = (i < 16 ? w.d : w.d2) *
              float(0x002b1908u >> 8 * (w.q[i / 8] >> 2 * (i % 8) & 3) & 0xff);
    return signed_by(v, w.q[i / 8], 16 + i % 8);
}
#endif

#if WEIGHT_FMT == FMT_iq2_xxs
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint words[2], d[1];
    uint64_t b = row + (u >> 3) * 66ul;
    LOAD_WORDS(d, 0, b, 1, 2, 2)
    LOAD_WORDS(words, 0, b + 2ul + 8 * (u & 7), 2, 8, 2)
    [[unroll]] for (uint k = 0; k < 4; k++)
        w.q[k] = grid_entry(words[0] >> 8 * k & 0xff) | signs7(words[1] >> 7 * k & 127) << 16;
    w.d = w.d2 = half_low(d[0]) * (0.5 + float(words[1] >> 28)) * 0.25;
    return w;
}

#elif WEIGHT_FMT == FMT_iq2_xs
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, words[2], d[1], scale[1];
    uint64_t b = row + (u >> 3) * 74ul;
    LOAD_WORDS(d, 0, b, 1, 2, 2)
    LOAD_WORDS(words, 0, b + 2ul + 8 * s, 2, 8, 2)
    LOAD_WORDS(scale, 0, b + 66ul + s, 1, 1, 1)
    [[unroll]] for (uint k = 0; k < 4; k++) {
        uint q = words[k / 2] >> 16 * (k % 2) & 0xffff;
        w.q[k] = grid_entry(q & 511) | signs7(q >> 9) << 16;
    }
    w.d = half_low(d[0]) * (0.5 + float(scale[0] & 15)) * 0.25;
    w.d2 = half_low(d[0]) * (0.5 + float(scale[0] >> 4 & 15)) * 0.25;
    return w;
}

#elif WEIGHT_FMT == FMT_iq2_s
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, low[1], signs[1], d[1], high[1], scale[1];
    uint64_t b = row + (u >> 3) * 82ul;
    LOAD_WORDS(d, 0, b, 1, 2, 2)
    LOAD_WORDS(low, 0, b + 2ul + 4 * s, 1, 4, 2)
    LOAD_WORDS(signs, 0, b + 34ul + 4 * s, 1, 4, 2)
    LOAD_WORDS(high, 0, b + 66ul + s, 1, 1, 1)
    LOAD_WORDS(scale, 0, b + 74ul + s, 1, 1, 1)
    [[unroll]] for (uint k = 0; k < 4; k++)
        w.q[k] = grid_entry((low[0] >> 8 * k & 0xff) | (high[0] >> 2 * k & 3) << 8) |
                 (signs[0] >> 8 * k & 0xff) << 16;
    w.d = half_low(d[0]) * (0.5 + float(scale[0] & 15)) * 0.25;
    w.d2 = half_low(d[0]) * (0.5 + float(scale[0] >> 4 & 15)) * 0.25;
    return w;
}

#elif WEIGHT_FMT == FMT_iq3_xxs
// q[0 .. 7]: entry and signs << 16 of 4 values each
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, index[2], word[1], d[1];
    uint64_t b = row + (u >> 3) * 98ul;
    LOAD_WORDS(d, 0, b, 1, 2, 2)
    LOAD_WORDS(index, 0, b + 2ul + 8 * s, 2, 8, 2)
    LOAD_WORDS(word, 0, b + 66ul + 4 * s, 1, 4, 2)
    [[unroll]] for (uint k = 0; k < 8; k++)
        w.q[k] = grid_entry(index[k / 4] >> 8 * (k % 4) & 0xff) |
                 signs7(word[0] >> 7 * (k / 2) & 127) >> 4 * (k % 2) << 16;
    w.d = half_low(d[0]) * (0.5 + float(word[0] >> 28)) * 0.5;
    return w;
}
float weight_value(WUnit w, uint i)
{
    uint digit = w.q[i / 4] >> 3 * (i % 4) & 7;
    float v = w.d * float(4 + 8 * digit + (digit == 7 ? 2 : 0));
    return signed_by(v, w.q[i / 4], 16 + i % 4);
}

#elif WEIGHT_FMT == FMT_iq3_s
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, index[2], signs[1], d[1], high[1], scale[1];
    uint64_t b = row + (u >> 3) * 110ul;
    LOAD_WORDS(d, 0, b, 1, 2, 2)
    LOAD_WORDS(index, 0, b + 2ul + 8 * s, 2, 8, 2)
    LOAD_WORDS(high, 0, b + 66ul + s, 1, 1, 1)
    LOAD_WORDS(signs, 0, b + 74ul + 4 * s, 1, 4, 2)
    LOAD_WORDS(scale, 0, b + 106ul + (s >> 1), 1, 1, 1)
    [[unroll]] for (uint k = 0; k < 8; k++)
        w.q[k] = grid_entry((index[k / 4] >> 8 * (k % 4) & 0xff) | (high[0] >> k & 1) << 8) |
                 (signs[0] >> 4 * k & 15) << 16;
    w.d = half_low(d[0]) * float(1 + 2 * (scale[0] >> 4 * (s & 1) & 15));
    return w;
}
float weight_value(WUnit w, uint i)
{
    float v = w.d * float(1 + 2 * (w.q[i / 4] >> 3 * (i % 4) & 7));
    return signed_by(v, w.q[i / 4], 16 + i % 4);
}

#else // IQ1: q[0 .. 3]: entry and the sign of delta << 16 of 8 values each
float weight_value(WUnit w, uint i)
{
    float delta = (w.q[i / 8] & 0x10000u) != 0 ? -1.125 : -0.875;
    return (i < 16 ? w.d : w.d2) * (float(w.q[i / 8] >> 2 * (i % 8) & 3) + delta);
}

#if WEIGHT_FMT == FMT_iq1_s
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, low[1], word[1], d[1];
    uint64_t b = row + (u >> 3) * 50ul;
    LOAD_WORDS(d, 0, b, 1, 2, 2)
    LOAD_WORDS(low, 0, b + 2ul + 4 * s, 1, 4, 2)
    LOAD_WORDS(word, 0, b + 34ul + 2 * s, 1, 2, 2)
    [[unroll]] for (uint k = 0; k < 4; k++)
        w.q[k] = grid_entry((low[0] >> 8 * k & 0xff) | (word[0] >> 3 * k & 7) << 8) |
                 (word[0] >> 15 & 1) << 16;
    w.d = w.d2 = half_low(d[0]) * float(2 * (word[0] >> 12 & 7) + 1);
    return w;
}

#elif WEIGHT_FMT == FMT_iq1_m
WUnit weight_unit(uint64_t row, uint u, uint n)
{
    WUnit w;
    uint s = u & 7, low[1], nibbles[1], last[2];
    uint64_t b = row + (u >> 3) * 56ul;
    LOAD_WORDS(low, 0, b + 4 * s, 1, 4, 4)
    LOAD_WORDS(nibbles, 0, b + 32ul + 2 * s, 1, 2, 2)
    LOAD_WORDS(last, 0, b + 48ul, 2, 8, 8)
    [[unroll]] for (uint k = 0; k < 4; k++)
        w.q[k] = grid_entry((low[0] >> 8 * k & 0xff) | (nibbles[0] >> 4 * k & 7) << 8) |
                 (nibbles[0] >> 4 * k + 3 & 1) << 16;
    float d = half_low((last[0] >> 12 & 15) | (last[0] >> 28) << 4 | (last[1] >> 12 & 15) << 8 |
                       (last[1] >> 28) << 12);
    uint scales = ((s & 4) != 0 ? last[1] : last[0]) >> 16 * (s >> 1 & 1) >> 6 * (s & 1);
    w.d = d * float(2 * (scales & 7) + 1);
    w.d2 = d * float(2 * (scales >> 3 & 7) + 1);
    return w;
}
#endif
#endif
#endif
#endif
