/* Stored weights to float32: the definition of every computable format (gpu/ref/ref_formats.c), for
 * the reference device and for whoever checks stored values on the host.
 *
 * The arithmetic is exact to the bit: scale times integer in float32; where there is a minimum,
 * the product is rounded before it is subtracted (no fused multiply-add, -ffp-contract=off).
 * Rows may lie at any address. Outer scales that are tensors of their own (see format.h) are not
 * applied. Thread-safety: pure functions. */
#ifndef CF_GPU_FORMATS_H
#define CF_GPU_FORMATS_H

#include "runtime/base/format.h"

/* Values [begin, begin + n) of a stored row to out; they need not be whole blocks. */
void cf_ref_format_decode(cf_format f, const void *row, uint64_t begin, uint64_t n, float *out);

/* Whole blocks: values [block * block_values, (block + n_blocks) * block_values). */
void cf_ref_format_decode_blocks(cf_format f, const void *row, uint64_t block, uint64_t n_blocks,
                                 float *out);

/* The first of n values, a whole number of blocks, that is not finite; n when all are. Of a
 * computable format, or F8_E8M0. */
uint64_t cf_ref_format_not_finite(cf_format f, const void *blocks, uint64_t n);

#endif
