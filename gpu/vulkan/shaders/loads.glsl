// Loads of stored bytes at any address, and the small floats that they hold.
//
// A load is 64 bits wide where it can be: the widest that costs no more than a narrow one on every
// device, software ones included. Nothing beyond the aligned 64 bits around the last byte wanted is
// read; buffers are padded to 16 bytes, so those exist.
#ifndef LOADS_GLSL
#define LOADS_GLSL
#include "common.glsl"

layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer U64s {
    uint64_t v[];
};
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer U64x2s {
    u64vec2 v[];
};

// The 16 bytes at v[i].
uvec4 load_quad(uint64_t at, uint i)
{
    u64vec2 d = U64x2s(at).v[i];
    return uvec4(unpack32(d.x), unpack32(d.y));
}

// q[first, first + N) = the N words at `address`, made of `most` bytes of which `bytes` exist (the
// end of a row has fewer). ALIGN: a power of two that divides the address.
#define LOAD_SOME(q, first, address, N, most, bytes, ALIGN)                                        \
    {                                                                                              \
        const uint skips_ = ALIGN < 8 ? 8 - ALIGN : 0, loads_ = (most + skips_ + 7) / 8;           \
        uint v_[2 * loads_ + 3];                                                                   \
        uint64_t at_ = address;                                                                    \
        uint skip_ = uint(at_) & skips_, last_ = (skip_ + bytes - 1) / 8;                          \
        at_ -= skip_;                                                                              \
        [[unroll]] for (uint i_ = 0; i_ < loads_; i_++) {                                          \
            uvec2 d_ = unpack32(U64s(at_).v[min(i_, last_)]);                                      \
            v_[2 * i_] = d_.x;                                                                     \
            v_[2 * i_ + 1] = d_.y;                                                                 \
        }                                                                                          \
        v_[2 * loads_] = v_[2 * loads_ + 1] = v_[2 * loads_ + 2] = 0;                              \
        bool odd_ = (skip_ & 4) != 0;                                                              \
        uint shift_ = (skip_ & 3) * 8;                                                             \
        [[unroll]] for (uint i_ = 0; i_ < N; i_++) {                                               \
            uint low_ = odd_ ? v_[i_ + 1] : v_[i_], high_ = odd_ ? v_[i_ + 2] : v_[i_ + 1];        \
            q[first + i_] = (low_ >> shift_) | ((high_ << 1) << (31 - shift_));                    \
        }                                                                                          \
    }
#define LOAD_WORDS(q, first, address, N, bytes, ALIGN)                                             \
    LOAD_SOME(q, first, address, N, bytes, bytes, ALIGN)

// Bytes of the unit `w`.
#define BYTE(k) (w.q[(k) / 4] >> 8 * ((k) % 4) & 0xffu)
#define SBYTE(k) (int(w.q[(k) / 4] << 24 - 8 * ((k) % 4)) >> 24)

float half_low(uint word)
{
    return unpackHalf2x16(word & 0xffffu).x;
}

// The 16 bits at an even address.
uint load_u16(uint64_t at)
{
    return U32s(at & ~3ul).v[0] >> 8 * (uint(at) & 2) & 0xffffu;
}

uint load_u8(uint64_t at)
{
    return U32s(at & ~3ul).v[0] >> 8 * (uint(at) & 3) & 0xffu;
}

// A shorter float16: the exponent has 8 less below its middle, and there is no infinity.
float e4m3(uint code)
{
    float v = half_low((code & 0x7f) << 7 | (code & 0x80) << 8) * 256.0;
    return (code & 0x7f) == 0x7f ? uintBitsToFloat(0x7fc00000u) : v;
}

float e8m0(uint code)
{
    uint bits = code == 0 ? 0x00400000u : code << 23;
    return uintBitsToFloat(code == 0xff ? 0x7fc00000u : bits);
}

// E2M1, doubled: an integer.
float e2m1_doubled(uint code)
{
    float v = float(0xc8643210u >> 4 * (code & 7) & 15);
    return (code & 8) != 0 ? -v : v;
}
#endif
