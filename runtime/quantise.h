/* float32 rows to stored formats: F32 F16 BF16, Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 MXFP4, IQ4_NL Q4_K Q5_K
 * Q6_K.
 *
 * F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and MXFP4 give the bits of the formats' reference
 * quantisers. IQ4_NL, Q4_K, Q5_K and Q6_K are ours: they minimise the squared error of each
 * block, every value alike.
 * Refused: a NaN or an infinity in a block format (F16 and BF16 round as f16.h says). A scale
 * beyond the largest float16 becomes infinite in Q8_0, Q4_x and Q5_x, as in the reference; the
 * last four stay near the largest they can hold. Weights are nowhere near.
 * No allocation; the result depends on nothing but the row. Thread-safety: pure functions. */
#ifndef CF_QUANTISE_H
#define CF_QUANTISE_H

#include "runtime/base/format.h"

bool cf_quantise_can(cf_format f);

/* n values, a whole number of blocks, to cf_format_row_bytes(f, n) bytes at any address. Returns
 * -1, or the index of the first value that is not finite: `out` is then undefined. */
int64_t cf_quantise_row(cf_format f, const float *x, uint64_t n, void *out);

#endif
