/* The 8-bit floating-point formats to float32, by bits; every conversion is exact.
 *
 * E4M3 (OCP "FN"): no infinity, 0x7f and 0xff are NaN. E5M2: as a shortened float16. E8M0: a
 * power of two. The "half" forms give half the value, subnormal where need be: they are the block
 * scales of MXFP4 and NVFP4, whose value tables are doubled. Rounding to these formats is not
 * needed here. */
#ifndef CF_BASE_F8_H
#define CF_BASE_F8_H

#include "runtime/base/f16.h"

static inline float cf_e4m3_to_f32(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80u) << 24, rest = code & 0x7fu;
    if (rest == 0x7fu)
        return cf_f32_from_bits(sign | 0x7fc00000u);
    if (rest < 8) /* subnormal or zero: rest * 2^-9 */
        return cf_f32_from_bits(sign | cf_f32_bits((float)rest * 0x1p-9f));
    return cf_f32_from_bits(sign | ((rest << 20) + 0x3c000000u));
}

static inline float cf_e5m2_to_f32(uint8_t code)
{
    return cf_f16_to_f32((uint16_t)(code << 8));
}

/* 2^(code - 127); 255 is NaN. */
static inline float cf_e8m0_to_f32(uint8_t code)
{
    if (code == 0xff)
        return cf_f32_from_bits(0x7fc00000u);
    return cf_f32_from_bits(code ? (uint32_t)code << 23 : 0x00400000u);
}

/* 2^(code - 128), for every code. */
static inline float cf_e8m0_half_to_f32(uint8_t code)
{
    return cf_f32_from_bits(code < 2 ? 0x00200000u << code : ((uint32_t)code - 1) << 23);
}

/* Half of an unsigned E4M3; the sign bit is ignored, but that 0x7f gives 0 and 0xff is a number. */
static inline float cf_ue4m3_half_to_f32(uint8_t code)
{
    uint32_t rest = code & 0x7fu;
    if (code == 0x7fu)
        return 0;
    if (rest < 8)
        return (float)rest * 0x1p-10f;
    return cf_f32_from_bits((rest << 20) + 0x3b800000u);
}

#endif
