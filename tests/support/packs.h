/* What tests of packs share: a model's logits for some ids, whole and streamed. */
#ifndef CF_TESTS_PACKS_H
#define CF_TESTS_PACKS_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/err.h"

/* Such a build runs less. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

enum { N_IDS = 8, MAX_VOCAB = 512 };

typedef struct run {
    int rc;
    cf_err err;
    uint32_t vocab, streamed; /* matrices of the dense part */
    float logits[N_IDS][MAX_VOCAB];
} run;

/* Some ids, token by token, on the reference; discrete: another memory, and experts that are read
 * again and again. vram: 0 is plenty. */
void pack_run(run *r, const char *path, bool discrete, uint64_t vram);

/* Both ran, and computed the same bits. */
bool pack_runs_equal(const run *a, const run *b);

#endif
