/* A small GGUF model with made-up weights: grouped-query attention, two layers of five experts of
 * which two are chosen, every matrix a whole number of blocks of 64 wide. */
#ifndef CF_TESTS_GGUF_SMALL_H
#define CF_TESTS_GGUF_SMALL_H

#include <stdbool.h>

#include "runtime/base/rng.h"
#include "tests/support/gguf_write.h"

enum { GGUF_SMALL_VOCAB = 94, GGUF_SMALL_EXPERTS = 5 };

typedef struct gguf_small {
    gguf_out out;
    cf_rng rng;
    bool fused; /* gate and up in one tensor */
    /* Puts a matrix of the model, [experts, rows, cols] where there are experts, under its name
     * without ".weight". NULL: in F32. */
    void (*matrix)(struct gguf_small *g, const char *name, uint32_t n_dims, const uint64_t *shape);
    const void *user;
} gguf_small;

/* n values of a matrix that is `cols` wide. */
void gguf_small_values(cf_rng *rng, float *out, uint64_t n, uint64_t cols);
/* Keys (but for a tokenizer's) and tensors; the caller may add more, and writes it. */
void gguf_small_put(gguf_small *g);

#endif
