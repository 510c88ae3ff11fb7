/* Checksums of ranges of a file: see sums.h. */
#include "storage/sums.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/align.h"

void cf_sums_finish(cf_sums *sums)
{
    free(sums->regions);
    free(sums->list);
    *sums = (cf_sums){0};
}

uint64_t cf_sums_memory(const cf_sums *sums)
{
    return sums->n_regions * sizeof *sums->regions + sums->n_list * sizeof *sums->list;
}

uint64_t cf_sum_of(const void *data, uint64_t bytes)
{
    return XXH3_64bits(data, bytes);
}

/* The first region that ends behind `off`. */
static uint64_t region_find(const cf_sums *s, uint64_t off)
{
    uint64_t low = 0, high = s->n_regions;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (s->regions[middle].off + s->regions[middle].bytes > off)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static int mismatch(const char *path, const cf_sum_region *r, uint64_t off, uint64_t bytes,
                    cf_err *err)
{
    return CF_FAIL(err, CF_ECHANGED,
                   "%s: %s is damaged: %" PRIu64 " bytes at offset %" PRIu64
                   " do not have the checksum they were written with",
                   path, r->name, bytes, off);
}

static int pages_check(const cf_sums *s, const cf_sum_region *r, const char *path, uint64_t off,
                       const uint8_t *data, uint64_t bytes, cf_err *err)
{
    uint64_t begin = cf_max_u64(off, r->off), end = cf_min_u64(off + bytes, r->off + r->bytes);
    for (uint64_t at = begin; at < end; at += CF_SUM_PAGE) {
        uint64_t sum = s->list[r->first + (at - r->off) / CF_SUM_PAGE];
        if (cf_sum_of(data + (at - off), CF_SUM_PAGE) != sum)
            return mismatch(path, r, at, CF_SUM_PAGE, err);
    }
    return 0;
}

int cf_sums_check(const cf_sums *s, uint32_t file, const char *path, uint64_t off,
                  const uint8_t *data, uint64_t bytes, bool records, cf_err *err)
{
    int rc = 0;
    if (file != s->file)
        return 0;
    cf_assert((off | bytes) % CF_SUM_PAGE == 0);
    for (uint64_t i = region_find(s, off);
         rc == 0 && i < s->n_regions && s->regions[i].off < off + bytes; i++) {
        const cf_sum_region *r = &s->regions[i];
        bool whole = records && r->off >= off && r->off + r->bytes <= off + bytes;
        if (r->pages)
            rc = pages_check(s, r, path, off, data, bytes, err);
        else if (whole && cf_sum_of(data + (r->off - off), r->bytes) != s->list[r->first])
            rc = mismatch(path, r, r->off, r->bytes, err);
    }
    return rc;
}

/* ---- making them ---- */

void cf_page_sums_add(cf_page_sums *s, const void *data, uint64_t bytes)
{
    const uint8_t *p = data;
    while (bytes) {
        if (s->filled == 0 && bytes >= CF_SUM_PAGE) {
            s->list[s->n++] = cf_sum_of(p, CF_SUM_PAGE);
            p += CF_SUM_PAGE;
            bytes -= CF_SUM_PAGE;
            continue;
        }
        uint64_t step = cf_min_u64(bytes, CF_SUM_PAGE - s->filled);
        memcpy(s->page + s->filled, p, step);
        s->filled += (uint32_t)step;
        p += step;
        bytes -= step;
        if (s->filled == CF_SUM_PAGE) {
            s->list[s->n++] = cf_sum_of(s->page, CF_SUM_PAGE);
            s->filled = 0;
        }
    }
}

void cf_page_sums_end(cf_page_sums *s)
{
    if (!s->filled)
        return;
    memset(s->page + s->filled, 0, CF_SUM_PAGE - s->filled);
    s->list[s->n++] = cf_sum_of(s->page, CF_SUM_PAGE);
    s->filled = 0;
}
