/* Streamed dense weights that are held in RAM: which bytes, and their places.
 *
 * Where the device's memory is not the host's, a byte that is held is read once and copied over the
 * bus from then on. A byte is used once a batch and in an order that never changes, so what was
 * used last is needed last: a cache of the recently used would miss every time. What is held is
 * fixed by the plan instead: of each matrix its first bytes, the same share of all. Reads and
 * copies then run side by side all along the schedule. Were whole layers held, the drive would idle
 * while they pass (it runs ahead by the segments and no further), and the bus while the others are
 * read. What is small is held whole first: a read of it takes as long as one of many more bytes.
 *
 * Places hold whole blocks of the file, so that reads go there directly; they end where the file's
 * blocks do, so that no block is both held and read again. Their memory is imported by the device
 * where it can be, and not registered with the ring: each byte is read into it once.
 * Thread-safety: cf_hold_choose is pure; a cf_hold is immutable once taken. */
#ifndef CF_RUNTIME_DENSE_HOLD_H
#define CF_RUNTIME_DENSE_HOLD_H

#include "gpu/gpu.h"
#include "runtime/base/pages.h"
#include "runtime/model.h"

typedef struct cf_hold_plan {
    uint64_t allowance;    /* for cf_hold_choose */
    uint64_t bytes;        /* of streamed weights: read once, copied in every other batch */
    uint64_t memory_bytes; /* of the host: the places, to the byte; at most the allowance */
    uint64_t all_bytes;    /* with all that can be held; 0: nothing can */
} cf_hold_plan;

/* What `allowance` host bytes hold of the streamed weights; held[i] (of model->n_weights): the
 * bytes of weight i, from its first. max_alloc_bytes: of a device buffer; 0: any. */
void cf_hold_choose(const cf_model *model, const uint8_t *streamed, uint32_t align,
                    uint64_t max_alloc_bytes, uint64_t allowance, uint64_t *held,
                    cf_hold_plan *out);

/* The blocks of the file around the first `held` bytes of a matrix. */
uint64_t cf_hold_place_bytes(const cf_weight_def *w, uint32_t align, uint64_t held);

/* ---- places ---- */

typedef struct cf_hold_block {
    uint64_t bytes;
    cf_pages pages;
    cf_gpu_buf *buf; /* its pages, where they are imported */
} cf_hold_block;

typedef struct cf_hold_place {
    uint32_t block;
    uint64_t off;
} cf_hold_place;

typedef struct cf_hold {
    cf_hold_block *blocks;
    uint32_t n_blocks;
    uint64_t most; /* bytes of a block, unless one place alone is larger */
} cf_hold;

/* Places are laid out one after the other, at most n of them, and then taken together. */
int cf_hold_init(cf_hold *hold, uint32_t n, uint64_t max_alloc_bytes, cf_err *err);
cf_hold_place cf_hold_lay(cf_hold *hold, uint64_t bytes);
int cf_hold_take(cf_hold *hold, cf_gpu *gpu, bool import, cf_ledger *ledger, cf_err *err);
void cf_hold_finish(cf_hold *hold); /* accepts a zeroed struct */

#endif
