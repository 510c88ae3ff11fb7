/* A small seeded generator (splitmix64; Steele, Lea and Flood 2014): the same sequence on every
 * machine. For sampling, generated checkpoints and randomised tests; not for secrets. */
#ifndef CF_BASE_RNG_H
#define CF_BASE_RNG_H

#include <stdint.h>

typedef struct cf_rng {
    uint64_t state;
} cf_rng;

static inline uint64_t cf_rng_u64(cf_rng *r)
{
    uint64_t z = (r->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in [0, 1), 53 bits. */
static inline double cf_rng_unit(cf_rng *r)
{
    return (double)(cf_rng_u64(r) >> 11) * 0x1p-53;
}

/* Uniform in [0, n), n > 0; the bias of at most n / 2^64 does not matter here. */
static inline uint64_t cf_rng_below(cf_rng *r, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)cf_rng_u64(r) * n) >> 64);
}

#endif
