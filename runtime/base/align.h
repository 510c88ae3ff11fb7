/* Alignment and overflow-checked arithmetic in 64 bits. */
#ifndef CF_BASE_ALIGN_H
#define CF_BASE_ALIGN_H

#include <stdbool.h>
#include <stdint.h>

/* `a` is a power of two. cf_align_up expects v <= UINT64_MAX - a. */
static inline uint64_t cf_align_up(uint64_t v, uint64_t a)
{
    return (v + (a - 1)) & ~(a - 1);
}

static inline uint64_t cf_align_down(uint64_t v, uint64_t a)
{
    return v & ~(a - 1);
}

static inline bool cf_add_u64(uint64_t a, uint64_t b, uint64_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

static inline bool cf_mul_u64(uint64_t a, uint64_t b, uint64_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}

static inline uint64_t cf_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t cf_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint64_t cf_ceil_div(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

#endif
