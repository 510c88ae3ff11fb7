/* What a drive gives: a plain loop for its ceiling, and the engine's own way of reading (fetch on
 * its I/O thread) for every record size and queue depth.
 *
 * Reads only; the file's cached pages are dropped before each buffered sample. Bounded in time:
 * samples share what was given, and cells that no time is left for have no samples.
 * Threads: one; fetch has its own. */
#ifndef CF_TOOLS_BENCH_IO_H
#define CF_TOOLS_BENCH_IO_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/err.h"
#include "storage/io.h"

enum {
    CF_BENCH_LIST = 16,            /* record sizes, queue depths */
    CF_BENCH_SAMPLES = 9,          /* at most */
    CF_BENCH_MODES = 4,            /* direct or buffered, registered or not */
    CF_BENCH_BLOCK = 1 << 20,      /* of the plain loop, the largest */
    CF_BENCH_DEPTH = 64,           /* likewise */
    CF_BENCH_FILE_BLOCKS = 8,      /* a file holds so many of the largest record */
    CF_BENCH_RECORD_MAX = 64 << 20 /* bytes */
};

/* GB/s (10^9) of a plain io_uring loop: the best of 256 KiB and 1 MiB reads, 16 and 64 at a time
 * (what lies in the processor's caches while it is read is read faster on some machines). */
typedef struct cf_bench_ceiling {
    double sequential, random, best;
    uint32_t block_bytes, depth; /* of the best */
    bool direct; /* O_DIRECT; else it was refused, and the page cache was emptied before */
} cf_bench_ceiling;

/* About `seconds` in all, medians of three. The file holds at least 8 MiB. */
int cf_bench_ceiling_measure(cf_bench_ceiling *out, const char *path, double seconds, cf_err *err);

typedef struct cf_bench_cell {
    uint32_t mode; /* bit 0: unregistered, bit 1: buffered */
    uint64_t record_bytes;
    uint32_t depth;
    uint32_t n;                               /* samples taken */
    double samples[CF_BENCH_SAMPLES], median; /* GB/s */
} cf_bench_cell;

typedef struct cf_bench_io {
    /* Set by the caller. */
    const char *path;
    uint64_t sizes[CF_BENCH_LIST];
    uint32_t depths[CF_BENCH_LIST], n_sizes, n_depths, samples;
    double seconds;
    cf_io_kind kind;
    void (*progress)(void *user, uint32_t done, uint32_t total); /* may be NULL */
    void *progress_user;
    /* The outcome. */
    uint64_t file_bytes;
    uint32_t align;
    char engine[32], notice[256], direct_why[256], ceiling_why[256];
    cf_bench_ceiling ceiling; /* best 0: no ring for it, ceiling_why says why */
    cf_bench_cell cells[CF_BENCH_MODES * CF_BENCH_LIST * CF_BENCH_LIST];
    uint32_t n_cells; /* modes that the file refuses are left out */
} cf_bench_io;

int cf_bench_io_run(cf_bench_io *b, cf_err *err);

double cf_bench_median(const double *samples, uint32_t n); /* 0 of none */
const char *cf_bench_mode_name(uint32_t mode);

#endif
