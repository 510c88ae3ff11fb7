/* The memory of the expert cache: see slots.h. */
#include "runtime/slots.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"

enum { MAX_BLOCK_BYTES = 1 << 30, PAGE = 4096 };

static uint32_t per_block(uint64_t max_alloc_bytes, uint64_t each)
{
    uint64_t most = MAX_BLOCK_BYTES;
    if (max_alloc_bytes && max_alloc_bytes < most)
        most = cf_align_down(max_alloc_bytes, PAGE);
    return (uint32_t)(most / each);
}

static uint64_t block_bytes(uint32_t total, uint32_t per, uint32_t block, uint64_t each)
{
    uint32_t left = total - block * per;
    return cf_align_up((left < per ? left : per) * each, PAGE);
}

/* All blocks of `total` places. */
static uint64_t blocks_bytes(uint32_t total, uint64_t max_alloc_bytes, uint64_t each)
{
    uint32_t per = per_block(max_alloc_bytes, each);
    if (!total || !per) /* a record larger than any buffer: refused by init */
        return total * each;
    uint32_t full = total / per, rest = total % per;
    return full * block_bytes(per, per, 0, each) + (rest ? block_bytes(rest, per, 0, each) : 0);
}

void cf_slots_memory(const cf_slots_shape *s, uint64_t max_alloc_bytes, uint64_t *device_bytes,
                     uint64_t *host_bytes)
{
    uint64_t slabs = s->in_place ? 0 : blocks_bytes(s->n_slabs, max_alloc_bytes, s->slab_bytes);
    *device_bytes = blocks_bytes(s->n_slots + s->n_guess, max_alloc_bytes, s->slot_bytes) +
                    (s->staged ? slabs : 0);
    *host_bytes = slabs + blocks_bytes(s->n_tier, max_alloc_bytes, s->slot_bytes);
}

static int slot_block_init(cf_slots *s, cf_gpu *gpu, cf_ledger *ledger, uint32_t i, cf_err *err)
{
    cf_slot_block *b = &s->slot_blocks[i];
    uint64_t bytes = block_bytes(s->shape.n_slots + s->shape.n_guess, s->slots_per_block, i,
                                 s->shape.slot_bytes);
    if (!s->shape.in_place)
        return cf_gpu_buf_create(gpu, CF_BUF_DEVICE, bytes, "expert slots", &b->buf, err);
    int rc = cf_pages_init(&b->pages, bytes, ledger, CF_POOL_DEVICE, "expert slots", err);
    if (rc < 0)
        return rc;
    return cf_gpu_buf_import(gpu, b->pages.data, b->pages.bytes, "expert slots", &b->buf, err);
}

static int slab_block_init(cf_slots *s, cf_gpu *gpu, cf_ledger *ledger, uint32_t i, cf_err *err)
{
    cf_slot_block *b = &s->slab_blocks[i];
    uint64_t bytes = block_bytes(s->shape.n_slabs, s->slabs_per_block, i, s->shape.slab_bytes);
    int rc = cf_pages_init(&b->pages, bytes, ledger, CF_POOL_HOST, "staging slabs", err);
    if (rc < 0)
        return rc;
    if (s->shape.staged)
        return cf_gpu_buf_create(gpu, CF_BUF_UPLOAD, bytes, "staging copies", &b->buf, err);
    return cf_gpu_buf_import(gpu, b->pages.data, b->pages.bytes, "staging slabs", &b->buf, err);
}

static int tier_block_init(cf_slots *s, cf_gpu *gpu, cf_ledger *ledger, uint32_t i, cf_err *err)
{
    cf_slot_block *b = &s->tier_blocks[i];
    uint64_t bytes = block_bytes(s->shape.n_tier, s->slots_per_block, i, s->shape.slot_bytes);
    int rc = cf_pages_init(&b->pages, bytes, ledger, CF_POOL_HOST, "RAM tier", err);
    if (rc < 0)
        return rc;
    return cf_gpu_buf_import(gpu, b->pages.data, b->pages.bytes, "RAM tier", &b->buf, err);
}

int cf_slots_init(cf_slots *slots, cf_gpu *gpu, cf_ledger *ledger, const cf_slots_shape *shape,
                  cf_err *err)
{
    int rc = 0;
    *slots = (cf_slots){.shape = *shape};
    uint64_t max_alloc = cf_gpu_get_info(gpu)->max_alloc_bytes;
    slots->slots_per_block = per_block(max_alloc, shape->slot_bytes);
    slots->slabs_per_block = shape->in_place ? 1 : per_block(max_alloc, shape->slab_bytes);
    if (!slots->slots_per_block || !slots->slabs_per_block)
        return CF_FAIL(err, CF_ELIMIT,
                       "an expert record of %llu bytes exceeds the largest device buffer",
                       (unsigned long long)shape->slot_bytes);
    slots->n_slot_blocks =
        (uint32_t)cf_ceil_div(shape->n_slots + shape->n_guess, slots->slots_per_block);
    slots->slot_blocks = calloc(slots->n_slot_blocks + 1, sizeof *slots->slot_blocks);
    if (!shape->in_place)
        slots->n_slab_blocks = (uint32_t)cf_ceil_div(shape->n_slabs, slots->slabs_per_block);
    slots->slab_blocks = calloc(slots->n_slab_blocks + 1, sizeof *slots->slab_blocks);
    slots->n_tier_blocks = (uint32_t)cf_ceil_div(shape->n_tier, slots->slots_per_block);
    slots->tier_blocks = calloc(slots->n_tier_blocks + 1, sizeof *slots->tier_blocks);
    if (!slots->slot_blocks || !slots->slab_blocks || !slots->tier_blocks) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for %u slot blocks", slots->n_slot_blocks);
        goto fail;
    }
    for (uint32_t i = 0; i < slots->n_slot_blocks; i++)
        CF_TRY(slot_block_init(slots, gpu, ledger, i, err));
    for (uint32_t i = 0; i < slots->n_slab_blocks; i++)
        CF_TRY(slab_block_init(slots, gpu, ledger, i, err));
    for (uint32_t i = 0; i < slots->n_tier_blocks; i++)
        CF_TRY(tier_block_init(slots, gpu, ledger, i, err));
    return 0;
fail:
    cf_slots_finish(slots);
    return rc;
}

static void blocks_free(cf_slot_block *blocks, uint32_t n)
{
    for (uint32_t i = 0; blocks && i < n; i++) {
        cf_gpu_buf_destroy(&blocks[i].buf);
        cf_pages_finish(&blocks[i].pages);
    }
    free(blocks);
}

void cf_slots_finish(cf_slots *slots)
{
    blocks_free(slots->slot_blocks, slots->n_slot_blocks);
    blocks_free(slots->slab_blocks, slots->n_slab_blocks);
    blocks_free(slots->tier_blocks, slots->n_tier_blocks);
    *slots = (cf_slots){0};
}

static cf_span place_span(const cf_slots *slots, const cf_slot_block *blocks, uint32_t i)
{
    uint64_t each = slots->shape.slot_bytes;
    cf_gpu_buf *buf = blocks[i / slots->slots_per_block].buf;
    return (cf_span){buf, i % slots->slots_per_block * each, each};
}

cf_span cf_slots_span(const cf_slots *slots, uint32_t slot)
{
    return place_span(slots, slots->slot_blocks, slot);
}

cf_span cf_slots_tier_span(const cf_slots *slots, uint32_t i)
{
    return place_span(slots, slots->tier_blocks, i);
}

uint32_t cf_landing_count(const cf_slots *slots)
{
    return slots->shape.in_place ? slots->shape.n_slots + slots->shape.n_guess
                                 : slots->shape.n_slabs;
}

/* The block of landing place i, and where the place begins in it. */
static const cf_slot_block *landing_block(const cf_slots *slots, uint32_t i, uint64_t *off)
{
    bool in_place = slots->shape.in_place;
    uint32_t per = in_place ? slots->slots_per_block : slots->slabs_per_block;
    *off = i % per * (in_place ? slots->shape.slot_bytes : slots->shape.slab_bytes);
    return &(in_place ? slots->slot_blocks : slots->slab_blocks)[i / per];
}

uint8_t *cf_landing_host(const cf_slots *slots, uint32_t i)
{
    uint64_t off;
    return landing_block(slots, i, &off)->pages.data + off;
}

uint32_t cf_landing_region(const cf_slots *slots, uint32_t i)
{
    return i / (slots->shape.in_place ? slots->slots_per_block : slots->slabs_per_block);
}

cf_span cf_landing_span(const cf_slots *slots, uint32_t i)
{
    uint64_t off;
    const cf_slot_block *b = landing_block(slots, i, &off);
    return (cf_span){b->buf, off,
                     slots->shape.in_place ? slots->shape.slot_bytes : slots->shape.slab_bytes};
}

void cf_landing_publish(const cf_slots *slots, uint32_t i, uint64_t off, uint64_t bytes)
{
    if (!slots->shape.staged)
        return;
    cf_span span = cf_landing_span(slots, i);
    memcpy(cf_gpu_host_write(cf_span_sub(span, off, bytes)), cf_landing_host(slots, i) + off,
           bytes);
}

uint32_t cf_slots_regions(const cf_slots *slots, cf_io_region *out, uint32_t max)
{
    bool in_place = slots->shape.in_place;
    const cf_slot_block *blocks = in_place ? slots->slot_blocks : slots->slab_blocks;
    uint32_t n = in_place ? slots->n_slot_blocks : slots->n_slab_blocks;
    for (uint32_t i = 0; i < n && i < max; i++)
        out[i] = (cf_io_region){blocks[i].pages.data, blocks[i].pages.bytes};
    return n < max ? n : max;
}
