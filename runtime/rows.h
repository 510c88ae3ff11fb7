/* Rows of tables that are never loaded whole: the input embedding, n-gram embeddings.
 *
 * A few rows per token are read through the same ring as expert records, as aligned windows into an
 * arena of equal windows, which is also their cache (second chance). All rows of a gather that are
 * not cached are submitted together, as many as the arena holds at a time; a row wanted twice is
 * read once.
 * Threads: the engine thread; completions arrive on the I/O thread. */
#ifndef CF_RUNTIME_ROWS_H
#define CF_RUNTIME_ROWS_H

#include "runtime/base/pages.h"
#include "runtime/model.h"
#include "runtime/timeline.h"
#include "storage/fetch.h"

typedef struct cf_rows cf_rows;

typedef struct cf_rows_stats {
    uint64_t bytes_asked, bytes_used; /* of the kernel; of them, the rows themselves */
} cf_rows_stats;

/* Bytes of one window: the largest row at the worst offset. 0 when the model has no tables. */
uint64_t cf_rows_window_bytes(const cf_model *model, uint32_t align);
uint64_t cf_rows_memory(uint64_t window_bytes, uint32_t entries); /* host bytes in all */
/* The fewest entries that work: one ROWS step of one token. */
uint32_t cf_rows_min_entries(const cf_model *model);

/* Allocates the arena; rows can be gathered once a fetcher is attached. The arena is one region. */
int cf_rows_create(cf_rows **out, const cf_model *model, uint32_t entries, uint32_t align,
                   cf_ledger *ledger, cf_err *err);
cf_io_region cf_rows_region(const cf_rows *rows);
void cf_rows_attach(cf_rows *rows, cf_fetch *fetch, int32_t region);
void cf_rows_watch(cf_rows *rows, cf_timeline *timeline); /* reads are shown there */
void cf_rows_destroy(cf_rows **rows); /* no gather is running; accepts NULL */

/* dst[(r * n_tables + t) * row_bytes ..] = row ids[r * n_tables + t] of table first + t, as stored.
 * All n_tables tables have the same row_bytes. Blocks until everything is there. */
int cf_rows_gather(cf_rows *rows, uint32_t first_table, uint32_t n_tables, const uint64_t *ids,
                   uint32_t n_rows, uint8_t *dst, cf_err *err);
void cf_rows_get_stats(const cf_rows *rows, cf_rows_stats *out);

#endif
