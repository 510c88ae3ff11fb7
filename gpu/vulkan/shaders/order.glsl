// Floats as integers of the same order. What is not finite is decided by bits.
#ifndef ORDER_GLSL
#define ORDER_GLSL
#include "common.glsl"

const uint MINUS_INFINITY = 0xff800000u, ORDER_LEAST = ~MINUS_INFINITY; // the key of -infinity

// NaN as -infinity, -0 as +0. Never 0.
uint order_key(float v)
{
    uint u = floatBitsToUint(v == 0.0 ? 0.0 : v);
    if (is_nan(v))
        u = MINUS_INFINITY;
    return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}

float order_value(uint key)
{
    return uintBitsToFloat((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
#endif
