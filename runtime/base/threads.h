/* A fixed pool of worker threads that run one loop at a time.
 *
 * cf_threads_run splits [0, n) into contiguous parts of at least `grain`, one call each, and returns
 * when all are done. How the range is split never changes a result: each index is computed by one
 * thread, in its own fixed order. The caller is one of the workers.
 *
 * Thread-safety: one cf_threads_run at a time per pool. */
#ifndef CF_BASE_THREADS_H
#define CF_BASE_THREADS_H

#include <stdint.h>

#include "runtime/base/err.h"

typedef struct cf_threads cf_threads;
typedef void cf_threads_fn(void *arg, uint64_t begin, uint64_t end);

/* count: threads including the caller; 0 = one for each processor that may be used. */
int cf_threads_create(cf_threads **out, int count, cf_err *err);
void cf_threads_destroy(cf_threads **threads); /* accepts NULL; leaves NULL */
int cf_threads_count(const cf_threads *threads);
void cf_threads_run(cf_threads *threads, uint64_t n, uint64_t grain, cf_threads_fn *fn, void *arg);

/* Names the calling thread for `top -H`, perf and /proc/PID/task; at most 15 characters. */
void cf_thread_name(const char *name);

#endif
