/* Conversions between float32 and the 16-bit formats, by bits.
 *
 * To f16 and bf16: round to nearest, ties to even; overflow to infinity; subnormals kept; a NaN
 * stays a (quiet) NaN. From 16 bits: exact. */
#ifndef CF_BASE_F16_H
#define CF_BASE_F16_H

#include <stdint.h>
#include <string.h>

static inline uint32_t cf_f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float cf_f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float cf_bf16_to_f32(uint16_t h)
{
    return cf_f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t cf_f32_to_bf16(float f)
{
    uint32_t u = cf_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float cf_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t rest = (uint32_t)(h & 0x7fffu);
    if (rest >= 0x7c00u) /* infinity or NaN: the exponent becomes all ones */
        return cf_f32_from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x400u)
        return cf_f32_from_bits(sign | ((rest << 13) + 0x38000000u));
    /* Subnormal or zero: rest * 2^-24, exact in float32. */
    return cf_f32_from_bits(sign | cf_f32_bits((float)rest * 0x1p-24f));
}

static inline uint16_t cf_f32_to_f16(float f)
{
    uint32_t u = cf_f32_bits(f);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((mag >> 13) & 0x3ffu));
    if (mag >= 0x477ff000u) /* rounds to 65536 or above */
        return (uint16_t)(sign | 0x7c00u);
    if (mag < 0x38800000u) { /* below 2^-14: the sum with 0.5 rounds at 2^-24 */
        float r = cf_f32_from_bits(mag) + 0.5f;
        return (uint16_t)(sign | (cf_f32_bits(r) - 0x3f000000u));
    }
    uint32_t odd = (mag >> 13) & 1u;
    return (uint16_t)(sign | ((mag - 0x38000000u + 0xfffu + odd) >> 13));
}

#endif
