/* Page-aligned memory of our own: what the ring reads into and what a device may import.
 *
 * Anonymous mmap aligned to 2 MiB and advised for transparent huge pages before the first touch
 * (twice the read speed of 4 KiB pages). Charged to a ledger pool under a name. Zero-filled. */
#ifndef CF_BASE_PAGES_H
#define CF_BASE_PAGES_H

#include <stdint.h>

#include "runtime/base/ledger.h"

typedef struct cf_pages {
    uint8_t *data;  /* 4096-aligned; 2 MiB-aligned when bytes >= 2 MiB */
    uint64_t bytes; /* a multiple of 4096, at least what was asked for */
    cf_ledger *ledger;
    cf_pool pool;
} cf_pages;

int cf_pages_init(cf_pages *pages, uint64_t bytes, cf_ledger *ledger, cf_pool pool,
                  const char *name, cf_err *err);
void cf_pages_finish(cf_pages *pages); /* accepts a zeroed struct */

#endif
