/* Fetch: records from files into slabs, asynchronously, on one I/O thread.
 *
 * A request is one record: a list of runs (storage/layout.h) read to `slab`. Requests are served
 * demand first, then prefetch, each in order of submission; a prefetch's reads are asked for only
 * while no demand is active, so that they cost a demand nothing but what is already in flight. Large
 * runs are split into reads of at most `split_bytes` so that the queue stays deep; reads of many
 * requests are in flight together.
 *
 * States of a request:  IDLE -> QUEUED -> ACTIVE -> IDLE (done called)
 *                              |  cancel
 *                              +--------> IDLE (done not called)
 * A short read before the end of the file is continued; a failed read is tried once more; then the
 * request fails with a sentence that names the file, the offset and the error. On every completed
 * request the identity of its files is checked (cf_files_check), and its pages against the
 * file's checksums, where it has some. After a failure the fetcher is as usable as before.
 *
 * Threads: submit, raise and cancel from any thread; done is called on the I/O thread, without
 * locks held, and may submit. The request and the slab belong to the fetcher from submit until
 * done (or a successful cancel). */
#ifndef CF_STORAGE_FETCH_H
#define CF_STORAGE_FETCH_H

#include "storage/io.h"
#include "storage/layout.h"
#include "storage/sums.h"

typedef struct cf_fetch cf_fetch;
typedef struct cf_fetch_req cf_fetch_req;

typedef enum { CF_FETCH_DEMAND, CF_FETCH_PREFETCH } cf_fetch_class;

/* Zeroed before its first submit. */
struct cf_fetch_req {
    /* Set by the caller. runs are copied by submit only as a pointer: they stay valid. */
    const cf_run *runs;
    uint32_t n_runs;
    uint8_t *slab;
    int32_t region; /* registered region index of the slab, or -1 */
    void (*done)(cf_fetch_req *req, void *user);
    void *user;
    /* The outcome, valid in done and after. */
    int status; /* 0 or negative */
    cf_err err;
    uint64_t begin_ns, end_ns; /* its first read was handed out; its last one was in */
    /* Private to fetch.c. */
    cf_fetch_req *next;
    int state;
    cf_fetch_class cls;
    bool raised, abandoned; /* while active */
    uint32_t run, outstanding;
    uint64_t run_off;
};

typedef struct cf_fetch_stats {
    uint64_t reads, bytes;       /* as asked of the kernel */
    uint64_t busy_ns;            /* wall time with at least one read in flight */
    uint64_t unregistered_reads; /* into memory that is not registered */
    uint64_t retries, failures;
} cf_fetch_stats;

typedef struct cf_fetch_options {
    cf_io_options io;
    uint32_t split_bytes; /* 0 = 512 KiB; a multiple of the alignment */
    const cf_sums *sums;  /* pages are held against them before done; may be NULL. Records are not:
                             whoever reads them checks them, off the I/O thread */
} cf_fetch_options;

/* Starts the I/O thread, which opens the engine; returns after that succeeded. `files` is borrowed
 * and outlives the fetcher. */
int cf_fetch_open(cf_fetch **out, const cf_files *files, const cf_fetch_options *options,
                  cf_err *err);
/* Waits for active requests, drops queued ones (done is called with -ECANCELED). */
void cf_fetch_close(cf_fetch **fetch);
const cf_io_info *cf_fetch_io_info(const cf_fetch *fetch);
void cf_fetch_get_stats(const cf_fetch *fetch, cf_fetch_stats *out);

/* All n together, in order: none starts before all are queued. */
void cf_fetch_submit(cf_fetch *fetch, cf_fetch_req *const *reqs, uint32_t n, cf_fetch_class cls);
/* A prefetch becomes a demand: queued, it moves to the end of the demands; active, what is left of
 * it comes first; idle: nothing. */
void cf_fetch_raise(cf_fetch *fetch, cf_fetch_req *req);
/* True when the request was still queued: it is idle again and done is not called. */
bool cf_fetch_cancel(cf_fetch *fetch, cf_fetch_req *req);
/* The same; and of an active prefetch nothing more is asked for: done comes when what is in flight
 * is in, with -ECANCELED unless that was all of it. */
bool cf_fetch_abandon(cf_fetch *fetch, cf_fetch_req *req);
/* Makes the I/O thread look again (a fault engine's `withhold` has changed its mind). */
void cf_fetch_poke(cf_fetch *fetch);

#endif
