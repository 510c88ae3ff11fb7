/* Resident weights: where they lie on the device, and their loading through the ring.
 *
 * All matrices and vectors that are not streamed (dense.h) are packed, 256-aligned, into few device
 * buffers, and read
 * once at open through the landing places of the expert cache, which nobody else uses yet.
 * Weights that must be finite (routers) are checked on the way.
 * Threads: the opening thread; afterwards read-only. */
#ifndef CF_RUNTIME_WEIGHTS_H
#define CF_RUNTIME_WEIGHTS_H

#include "runtime/model.h"
#include "runtime/slots.h"
#include "storage/fetch.h"

enum { CF_WEIGHT_ALIGN = 256 };

typedef struct cf_weights {
    cf_weight *list;         /* [model->n_weights]; without a place when streamed */
    const uint8_t *streamed; /* [model->n_weights] borrowed; NULL: none is */
    cf_gpu_buf **blocks;
    uint32_t n_blocks;
} cf_weights;

typedef void cf_progress_fn(void *user, const char *what, uint64_t done_bytes,
                            uint64_t total_bytes);

/* Bytes of device memory they take. */
uint64_t cf_weights_bytes(const cf_model *model, const uint8_t *streamed,
                          uint64_t max_alloc_bytes);

int cf_weights_create(cf_weights *weights, const cf_model *model, const uint8_t *streamed,
                      cf_gpu *gpu, cf_err *err);
int cf_weights_load(cf_weights *weights, const cf_model *model, cf_gpu *gpu, cf_fetch *fetch,
                    uint32_t align, const cf_slots *slots, cf_progress_fn *progress, void *user,
                    cf_err *err);
void cf_weights_finish(cf_weights *weights); /* accepts a zeroed struct */

#endif
