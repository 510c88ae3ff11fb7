/* The memory of the expert cache: slots that the device computes on, what reads go into, and the
 * RAM tier below the slots.
 *
 * In place (unified memory, host pages importable): a slot is a slab: the ring reads into it and
 * the device computes on it. Otherwise a slot is device memory, and reads go to slabs (host
 * memory) from which the copy thread fills slots; where host pages cannot be imported, each slab
 * has a mapped staging buffer of the device beside it. All blocks are at most 1 GiB (the largest
 * iovec) and at most the device's largest buffer, and hold whole slots.
 * Immutable after init. Thread-safety: reading from any thread. */
#ifndef CF_RUNTIME_SLOTS_H
#define CF_RUNTIME_SLOTS_H

#include "gpu/gpu.h"
#include "runtime/base/pages.h"
#include "storage/io.h"

enum { CF_MIN_SLABS = 2 }; /* that demands can always read to */

typedef struct cf_slots_shape {
    bool in_place;
    bool staged; /* !in_place, and slabs need a mapped staging buffer */
    uint32_t n_slots;
    uint32_t n_guess;                /* places of slots' size beside them, for guesses */
    uint32_t n_slabs;                /* what reads go into; 0 in place */
    uint32_t n_tier;                 /* places of the RAM tier, each a slot's copy */
    uint64_t slot_bytes, slab_bytes; /* slab_bytes = slot_bytes in place */
} cf_slots_shape;

typedef struct cf_slot_block {
    cf_pages pages;  /* of slots in place, and of slabs; empty for device slots */
    cf_gpu_buf *buf; /* slots; imported slabs; staging */
} cf_slot_block;

typedef struct cf_slots {
    cf_slots_shape shape;
    cf_slot_block *slot_blocks, *slab_blocks, *tier_blocks;
    uint32_t n_slot_blocks, n_slab_blocks, n_tier_blocks;
    uint32_t slots_per_block, slabs_per_block;
} cf_slots;

/* What init takes of either pool, to the byte. */
void cf_slots_memory(const cf_slots_shape *shape, uint64_t max_alloc_bytes, uint64_t *device_bytes,
                     uint64_t *host_bytes);

int cf_slots_init(cf_slots *slots, cf_gpu *gpu, cf_ledger *ledger, const cf_slots_shape *shape,
                  cf_err *err);
void cf_slots_finish(cf_slots *slots); /* accepts a zeroed struct */

/* The slot's device memory. */
cf_span cf_slots_span(const cf_slots *slots, uint32_t slot);

/* Host memory, visible to the device, of place i of the RAM tier. */
cf_span cf_slots_tier_span(const cf_slots *slots, uint32_t i);

/* Landing places for reads: the slots in place, else the slabs. Count, host address, number of the
 * region (as cf_slots_regions lists them), and the device-visible bytes to copy from. */
uint32_t cf_landing_count(const cf_slots *slots);
uint8_t *cf_landing_host(const cf_slots *slots, uint32_t i);
uint32_t cf_landing_region(const cf_slots *slots, uint32_t i);
cf_span cf_landing_span(const cf_slots *slots, uint32_t i);
/* Makes [off, off + bytes) of a landing place visible to the device: a memcpy into the staging
 * buffer where there is one, else nothing. */
void cf_landing_publish(const cf_slots *slots, uint32_t i, uint64_t off, uint64_t bytes);

/* Memory that reads go to, one region a block; returns the count (at most max). */
uint32_t cf_slots_regions(const cf_slots *slots, cf_io_region *out, uint32_t max);

#endif
