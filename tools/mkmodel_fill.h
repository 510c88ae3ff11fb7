/* Random weights that mean nothing and behave: a pure function of seed, tensor name and element
 * index, so that neither threads nor buffers nor shards change a byte.
 *
 * Values are nearly normal (the sum of four uniforms, cut off at 3.46 deviations); float32
 * arithmetic without library calls makes them equal on every machine. Matrices are scaled by
 * 1 / sqrt(fan-in) so that activations keep their size, norms lie near 1, selection biases are
 * small beside the scores they are added to. Thread-safety: pure functions. */
#ifndef CF_TOOLS_MKMODEL_FILL_H
#define CF_TOOLS_MKMODEL_FILL_H

#include "models/family.h"

typedef struct cf_fill {
    uint64_t key;
    cf_format format; /* F32, F16 or BF16 */
    float mean, scale;
} cf_fill;

cf_fill cf_fill_of(const cf_expected *tensor, cf_format format, uint64_t seed);
/* Elements [first, first + n) to dst, which need not be aligned. */
void cf_fill_run(const cf_fill *fill, uint64_t first, uint64_t n, void *dst);

#endif
