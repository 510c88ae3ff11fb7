/* The quantisers of single blocks that search for their scales (quantise_block.c), for
 * quantise.c only. x: finite values; out: the block. Pure functions. */
#ifndef CF_QUANTISE_BLOCK_H
#define CF_QUANTISE_BLOCK_H

#include <stdint.h>

void cf_quantise_iq4_nl(const float x[32], uint8_t out[18]);
void cf_quantise_q4_k(const float x[256], uint8_t out[144]);
void cf_quantise_q5_k(const float x[256], uint8_t out[176]);
void cf_quantise_q6_k(const float x[256], uint8_t out[210]);

static inline void cf_put_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

#endif
