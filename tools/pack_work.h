/* pack: the work, on all cores, and what comes of it in order.
 *
 * The pack is cut into parts: whole records, and some MiB of rows of the other tensors. Worker
 * threads read, convert, compress and sum parts; the caller takes them in the order of the file.
 * Memory is bounded by the number of threads times the largest part, as source and as result.
 * What a pack as the source has checksums for is held against them.
 * Threads: the interface belongs to one thread. */
#ifndef CF_TOOLS_PACK_WORK_H
#define CF_TOOLS_PACK_WORK_H

#include "tools/pack_plan.h"

typedef struct cf_pack_work cf_pack_work;

typedef struct cf_pack_part {
    bool record;
    uint32_t layer, expert; /* record: index into plan->layers */
    uint32_t tensor;        /* else */
    bool last;              /* of its tensor */
    const uint8_t *data;    /* until it is given back */
    uint64_t bytes;         /* without padding */
    uint64_t sum;           /* record: of the bytes padded to whole pages */
    uint64_t source_bytes;
} cf_pack_part;

int cf_pack_work_begin(cf_pack_work **out, const cf_pack_plan *plan, uint32_t threads, cf_err *err);
/* The next part: 1, or 0 after the last one, or negative. */
int cf_pack_work_next(cf_pack_work *work, cf_pack_part *out, cf_err *err);
void cf_pack_work_give_back(cf_pack_work *work, const cf_pack_part *part);
/* Stops what is under way; accepts NULL. */
void cf_pack_work_end(cf_pack_work **work);

#endif
