/* Checksums (XXH3, 64 bits) of ranges of one file, checked on what reads bring.
 *
 * A region is a run of whole pages. It has one sum for all of it (a record, which is always read
 * whole), or one for each page (tensors of which parts are read). Regions ascend and share no page;
 * pages between them have no sum.
 * Thread-safety: read-only once built; cf_sums_check from any thread. */
#ifndef CF_STORAGE_SUMS_H
#define CF_STORAGE_SUMS_H

#include "runtime/base/err.h"

#include <stdint.h>

enum { CF_SUM_PAGE = 4096 };

typedef struct cf_sum_region {
    uint64_t off, bytes; /* multiples of CF_SUM_PAGE */
    uint64_t first;      /* its sum, or that of its first page, in `list` */
    bool pages;
    const char *name; /* for messages; borrowed */
} cf_sum_region;

typedef struct cf_sums {
    uint32_t file;
    cf_sum_region *regions; /* both owned */
    uint64_t n_regions;
    uint64_t *list;
    uint64_t n_list, n_records; /* n_records regions have one sum each */
} cf_sums;

void cf_sums_finish(cf_sums *sums); /* accepts a zeroed struct */
uint64_t cf_sums_memory(const cf_sums *sums);

uint64_t cf_sum_of(const void *data, uint64_t bytes);

/* The bytes [off, off + bytes) of a file, both multiples of CF_SUM_PAGE, are what was summed: every
 * page of a region with a sum for each, and with `records` every other region that lies inside
 * whole. CF_ECHANGED with a sentence that names path, tensor and offset. */
int cf_sums_check(const cf_sums *sums, uint32_t file, const char *path, uint64_t off,
                  const uint8_t *data, uint64_t bytes, bool records, cf_err *err);

/* ---- making them: tensors of which each page has its sum, in the order of the file ---- */

typedef struct cf_page_sums {
    uint64_t *list; /* borrowed; room for every page */
    uint64_t n;
    uint32_t filled;
    uint8_t page[CF_SUM_PAGE];
} cf_page_sums;

void cf_page_sums_add(cf_page_sums *s, const void *data, uint64_t bytes);
void cf_page_sums_end(cf_page_sums *s); /* of a tensor: zeros to the end of the page */

#endif
