/* Fetch: see fetch.h.
 *
 * Owns the I/O thread, which owns the engine, and a fixed set of read slots, one for each read
 * that may be in flight. Requests are the callers' memory, linked into two queues.
 *
 *              submit            first read             last read
 *     IDLE ------------> QUEUED ------------> ACTIVE ------------> IDLE, then done
 *       ^  request_queue   | |  current_take         request_finish  ^
 *       +------------------+ +---------------------------------------+
 *         cancel                close: done with -ECANCELED
 *
 * Invariants
 *  1. A request is in a queue exactly while it is QUEUED; `raise` moves it between them.
 *  2. `outstanding` of an ACTIVE request counts its slots, in flight or waiting to be asked again;
 *     (run, run_off) is the first byte not yet given to a slot. It is finished when outstanding is
 *     0 and run == n_runs, and only then: until then the slab may still be written.
 *  3. A slot is free, in flight or in the retry list; in flight ones number in_flight <= depth.
 *  4. The first failure of a request decides its sentence; it takes no new slots afterwards, and
 *     fails no other request.
 *  5. At each moment a class has at most one request that is partly given to slots (`current`).
 *     Prefetches hold at most half of the slots, so that a demand finds room at once.
 *  6. No read asks for bytes at or beyond align_up(file size): the kernel would clear them.
 *  7. done is called once for each submit that is not cancelled, without the lock.
 *  8. Progress: a read that is asked again has either got further or used its one retry at that
 *     place.
 *
 * Threads: `lock` guards the queues, the states, the statistics and the engine pointer; all else
 * is the I/O thread's. The engine's own lock is below it (wake is called under `lock`, so that the
 * engine cannot go away meanwhile). When the engine itself fails, it is closed, every request
 * fails with its sentence, and so does each later one. */
#include "storage/fetch.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/threads.h"

enum { SPLIT_DEFAULT = 512 << 10, BATCH = 64 };

enum { IDLE, QUEUED, ACTIVE };

typedef struct read_slot {
    struct read_slot *next; /* in the free or the retry list */
    cf_fetch_req *req;      /* NULL when free */
    cf_io_read read;        /* what is asked of the engine now */
    bool retried;
} read_slot;

struct req_queue {
    cf_fetch_req *head, *tail;
};

struct cf_fetch {
    const cf_files *files;
    cf_fetch_options options;
    cf_io_info info;
    pthread_t thread;
    /* Guarded by lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* opened; or, without an engine, queue or stop */
    struct req_queue queues[2];
    cf_io *io; /* NULL after the engine failed */
    bool stop, opened;
    int open_rc;
    cf_err open_err;
    cf_fetch_stats stats;
    uint64_t busy_since_ns; /* 0: nothing in flight */
    uint32_t demands_active; /* raised prefetches included */
    /* The I/O thread's. */
    read_slot *slots, *free_slots, *retry_head, *retry_tail;
    uint32_t in_flight, prefetch_slots, n_active;
    cf_fetch_req *current[2];
    cf_err broken; /* code 0 while the engine works */
};

/* ---- queues (called with the lock) ---- */

static void queue_push(struct req_queue *q, cf_fetch_req *req)
{
    req->next = NULL;
    if (q->tail)
        q->tail->next = req;
    else
        q->head = req;
    q->tail = req;
}

static cf_fetch_req *queue_pop(struct req_queue *q)
{
    cf_fetch_req *req = q->head;
    if (req) {
        q->head = req->next;
        if (!q->head)
            q->tail = NULL;
        req->next = NULL;
    }
    return req;
}

static void queue_remove(struct req_queue *q, cf_fetch_req *req)
{
    cf_fetch_req *before = NULL, *at = q->head;
    for (; at != req; before = at, at = at->next)
        cf_assert(at);
    if (before)
        before->next = req->next;
    else
        q->head = req->next;
    if (q->tail == req)
        q->tail = before;
    req->next = NULL;
}

/* Makes the I/O thread look. */
static void thread_wake(cf_fetch *f)
{
    if (f->io)
        f->io->fns->wake(f->io);
    else
        pthread_cond_broadcast(&f->changed);
}

/* ---- the end of requests ---- */

static bool request_over(const cf_fetch_req *req)
{
    return req->outstanding == 0 && req->run == req->n_runs;
}

/* Invariant 4. The caller finishes the request once it is over. */
static void request_fail(cf_fetch *f, cf_fetch_req *req, const cf_err *why)
{
    if (req->status == 0) {
        req->status = why->code;
        req->err = *why;
    }
    req->run = req->n_runs;
    if (f->current[req->cls] == req)
        f->current[req->cls] = NULL;
}

/* The files of a request are still those that were opened. */
static int request_check_files(const cf_fetch *f, const cf_fetch_req *req, cf_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; i < req->n_runs && rc == 0; i++) {
        bool seen = false;
        for (uint32_t j = 0; j < i && !seen; j++)
            seen = req->runs[j].file == req->runs[i].file;
        if (!seen)
            rc = cf_files_check(f->files, req->runs[i].file, err);
    }
    return rc;
}

static int request_check_sums(const cf_fetch *f, const cf_fetch_req *req, cf_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; f->options.sums && i < req->n_runs && rc == 0; i++) {
        const cf_run *r = &req->runs[i];
        rc = cf_sums_check(f->options.sums, r->file, f->files->list[r->file].path, r->file_off,
                           req->slab + r->slab_off, r->bytes, false, err);
    }
    return rc;
}

/* A file that was changed is a better answer than a sum that does not hold. */
static void request_finish(cf_fetch *f, cf_fetch_req *req)
{
    cf_err err = {0};
    if (req->status == 0 && (request_check_files(f, req, &err) < 0 ||
                             request_check_sums(f, req, &err) < 0))
        request_fail(f, req, &err);
    req->end_ns = cf_clock_ns();
    pthread_mutex_lock(&f->lock);
    req->state = IDLE;
    f->stats.failures += req->status < 0 && !req->abandoned;
    f->demands_active -= req->cls == CF_FETCH_DEMAND || req->raised;
    pthread_mutex_unlock(&f->lock);
    f->n_active--;
    req->done(req, req->user); /* the request may be gone or submitted again from here on */
}

/* Drops everything queued: at close. done may submit again; that is dropped as well. */
static void queued_cancel(cf_fetch *f)
{
    for (;;) {
        pthread_mutex_lock(&f->lock);
        cf_fetch_req *req = queue_pop(&f->queues[CF_FETCH_DEMAND]);
        if (!req)
            req = queue_pop(&f->queues[CF_FETCH_PREFETCH]);
        if (req)
            req->state = IDLE;
        pthread_mutex_unlock(&f->lock);
        if (!req)
            return;
        req->status = CF_FAIL(&req->err, -ECANCELED, "the fetcher was closed before the read");
        req->done(req, req->user);
    }
}

/* ---- from requests to reads ---- */

/* Invariant 6, for a file that is shorter than the catalogue says. */
static int request_check_runs(const cf_fetch *f, const cf_fetch_req *req, cf_err *err)
{
    for (uint32_t i = 0; i < req->n_runs; i++) {
        const cf_run *r = &req->runs[i];
        const cf_file *file = &f->files->list[r->file];
        uint64_t limit = cf_align_up(file->bytes, f->files->align);
        if (r->file_off > limit || r->bytes > limit - r->file_off)
            return CF_FAIL(err, CF_ECHANGED,
                           "%s: %" PRIu64 " bytes at offset %" PRIu64
                           " are wanted, but it had only %" PRIu64 " when opened for streaming",
                           file->path, r->bytes, r->file_off, file->bytes);
    }
    return 0;
}

/* The next request of a class that is queued, now active; NULL: none. */
static cf_fetch_req *queued_take(cf_fetch *f, cf_fetch_class cls)
{
    pthread_mutex_lock(&f->lock);
    cf_fetch_req *req = queue_pop(&f->queues[cls]);
    if (req) {
        req->state = ACTIVE;
        f->demands_active += cls == CF_FETCH_DEMAND;
    }
    pthread_mutex_unlock(&f->lock);
    f->n_active += req != NULL;
    f->current[cls] = req;
    return req;
}

/* A prefetch that was given up asks for nothing more. */
static void abandoned_drop(cf_fetch *f)
{
    cf_fetch_req *req = f->current[CF_FETCH_PREFETCH];
    pthread_mutex_lock(&f->lock);
    bool abandoned = req && req->abandoned;
    pthread_mutex_unlock(&f->lock);
    if (!abandoned)
        return;
    cf_err err = {0};
    CF_FAIL(&err, -ECANCELED, "the prefetch was given up");
    request_fail(f, req, &err);
    if (request_over(req)) /* else its last read finishes it */
        request_finish(f, req);
}

/* The request whose bytes are to be asked for next: demand first, and a prefetch only while no
 * demand is active; NULL: none, or no room. */
static cf_fetch_req *current_take(cf_fetch *f)
{
    uint32_t prefetch_max = f->options.io.depth > 1 ? f->options.io.depth / 2 : 1;
    cf_fetch_req *prefetch = f->current[CF_FETCH_PREFETCH];
    pthread_mutex_lock(&f->lock);
    bool raised = prefetch && prefetch->raised, idle = f->demands_active == 0;
    pthread_mutex_unlock(&f->lock);
    if (raised)
        return prefetch;
    if (f->current[CF_FETCH_DEMAND] || queued_take(f, CF_FETCH_DEMAND))
        return f->current[CF_FETCH_DEMAND];
    if (!idle || f->prefetch_slots >= prefetch_max)
        return NULL;
    return prefetch ? prefetch : queued_take(f, CF_FETCH_PREFETCH);
}

/* Gives the next part of a request to a free slot. */
static read_slot *slot_fill(cf_fetch *f, cf_fetch_req *req)
{
    const cf_run *run = &req->runs[req->run];
    read_slot *s = f->free_slots;
    f->free_slots = s->next;
    uint32_t bytes = (uint32_t)cf_min_u64(f->options.split_bytes, run->bytes - req->run_off);
    *s = (read_slot){
        .req = req,
        .read = {.file = run->file,
                 .bytes = bytes,
                 .off = run->file_off + req->run_off,
                 .dst = req->slab + run->slab_off + req->run_off,
                 .region = req->region,
                 .user = s},
    };
    req->outstanding++;
    req->run_off += bytes;
    if (req->run_off == run->bytes) {
        req->run++;
        req->run_off = 0;
    }
    if (req->run == req->n_runs)
        f->current[req->cls] = NULL;
    f->prefetch_slots += req->cls == CF_FETCH_PREFETCH;
    return s;
}

static void slot_free(cf_fetch *f, read_slot *s)
{
    cf_fetch_req *req = s->req;
    f->prefetch_slots -= req->cls == CF_FETCH_PREFETCH;
    req->outstanding--;
    s->req = NULL;
    s->next = f->free_slots;
    f->free_slots = s;
    if (request_over(req))
        request_finish(f, req);
}

static void retry_push(cf_fetch *f, read_slot *s)
{
    s->next = NULL;
    if (f->retry_tail)
        f->retry_tail->next = s;
    else
        f->retry_head = s;
    f->retry_tail = s;
}

static read_slot *retry_pop(cf_fetch *f)
{
    read_slot *s = f->retry_head;
    if (s) {
        f->retry_head = s->next;
        if (!s->next)
            f->retry_tail = NULL;
    }
    return s;
}

/* The next read to ask for: what has to be asked again first (its request is the oldest). Requests
 * that need no read, or can have none, end here. */
static read_slot *slot_next(cf_fetch *f)
{
    for (read_slot *s; (s = retry_pop(f)) != NULL;) {
        if (s->req->status == 0)
            return s;
        slot_free(f, s);
    }
    while (f->free_slots) {
        cf_err err = f->broken;
        abandoned_drop(f);
        cf_fetch_req *req = current_take(f);
        if (!req)
            return NULL;
        bool fresh = req->run == 0 && req->run_off == 0;
        if (fresh)
            req->begin_ns = cf_clock_ns();
        if (fresh && (err.code || request_check_runs(f, req, &err) < 0))
            request_fail(f, req, &err);
        if (req->run < req->n_runs)
            return slot_fill(f, req);
        f->current[req->cls] = NULL;
        request_finish(f, req);
    }
    return NULL;
}

/* Whether a read goes into registered memory: engines register a prefix of the regions. */
static bool read_registered(const cf_fetch *f, const cf_io_read *r)
{
    uint64_t left = f->info.registered_bytes;
    if (r->region < 0 || (uint32_t)r->region >= f->options.io.n_regions)
        return false;
    for (int32_t i = 0; i < r->region; i++)
        left -= cf_min_u64(left, f->options.io.regions[i].bytes);
    uint64_t end = (uint64_t)((const uint8_t *)r->dst -
                              (const uint8_t *)f->options.io.regions[r->region].data) +
                   r->bytes;
    return end <= left;
}

static void read_count(cf_fetch *f, const cf_io_read *r)
{
    pthread_mutex_lock(&f->lock);
    f->stats.reads++;
    f->stats.bytes += r->bytes;
    f->stats.unregistered_reads += !read_registered(f, r);
    if (f->in_flight++ == 0)
        f->busy_since_ns = cf_clock_ns();
    pthread_mutex_unlock(&f->lock);
}

/* Hands reads to the engine until it is full or there are none. Returns -errno when it failed. */
static int reads_issue(cf_fetch *f)
{
    for (read_slot *s; (s = slot_next(f)) != NULL;) {
        if (f->io->fns->queue(f->io, &s->read, 1) != 1) {
            s->next = f->retry_head; /* BUSY: first in line once there is room */
            f->retry_head = s;
            if (!f->retry_tail)
                f->retry_tail = s;
            break;
        }
        read_count(f, &s->read);
    }
    return f->io->fns->submit(f->io);
}

/* ---- from completions to requests ---- */

/* A read came back with less than it should have: asks again, or fails the request. */
static void read_incomplete(cf_fetch *f, read_slot *s, int64_t result, uint64_t expected)
{
    const cf_file *file = &f->files->list[s->read.file];
    cf_fetch_req *req = s->req;
    cf_err err = {0};
    /* What has arrived up to the last aligned byte stays; the rest is asked for again. */
    uint64_t got = result > 0 ? cf_align_down((uint64_t)result, f->files->align) : 0;
    if (req->status == 0 && cf_files_check(f->files, s->read.file, &err) < 0) {
        request_fail(f, req, &err);
    } else if (req->status == 0 && (got || !s->retried)) {
        s->retried = !got;
        s->read.off += got;
        s->read.bytes -= (uint32_t)got;
        s->read.dst = (uint8_t *)s->read.dst + got;
        pthread_mutex_lock(&f->lock);
        f->stats.retries += !got;
        pthread_mutex_unlock(&f->lock);
        retry_push(f, s);
        return;
    } else if (req->status == 0 && result < 0) {
        CF_FAIL(&err, (int)result, "%s: reading %u bytes at offset %" PRIu64 " failed twice: %s",
                file->path, s->read.bytes, s->read.off, cf_err_name((int)result));
        request_fail(f, req, &err);
    } else if (req->status == 0) {
        CF_FAIL(&err, -EIO,
                "%s: reading at offset %" PRIu64 " gave %" PRId64 " of %" PRIu64 " bytes, twice",
                file->path, s->read.off, result, expected);
        request_fail(f, req, &err);
    }
    slot_free(f, s);
}

static void read_completed(cf_fetch *f, const cf_io_done *done)
{
    read_slot *s = done->user;
    uint64_t left = f->files->list[s->read.file].bytes - s->read.off;
    uint64_t expected = cf_min_u64(s->read.bytes, left); /* short at the end of the file: whole */
    if (done->result >= 0 && (uint64_t)done->result >= expected)
        slot_free(f, s);
    else
        read_incomplete(f, s, done->result, expected);
}

/* ---- the I/O thread ---- */

static void reads_left(cf_fetch *f, uint32_t n)
{
    pthread_mutex_lock(&f->lock);
    f->in_flight -= n;
    if (n && f->in_flight == 0) {
        f->stats.busy_ns += cf_clock_ns() - f->busy_since_ns;
        f->busy_since_ns = 0;
    }
    pthread_mutex_unlock(&f->lock);
}

/* The engine failed: closes it, so that the kernel lets go of the slabs, and fails what was
 * active. Queued and later requests fail as they are taken. */
static void engine_failed(cf_fetch *f, int rc)
{
    CF_FAIL(&f->broken, rc, "the %s engine failed: %s", f->info.engine, cf_err_name(rc));
    pthread_mutex_lock(&f->lock);
    cf_io *io = f->io;
    f->io = NULL;
    pthread_mutex_unlock(&f->lock);
    cf_io_close(&io);
    reads_left(f, f->in_flight);
    f->retry_head = f->retry_tail = NULL;
    for (int cls = 0; cls < 2; cls++) {
        cf_fetch_req *req = f->current[cls];
        if (!req)
            continue;
        request_fail(f, req, &f->broken);
        if (request_over(req)) /* else its last slot, below, finishes it */
            request_finish(f, req);
    }
    for (uint32_t i = 0; i < f->options.io.depth; i++)
        if (f->slots[i].req) {
            request_fail(f, f->slots[i].req, &f->broken);
            slot_free(f, &f->slots[i]);
        }
}

static bool thread_stopping(cf_fetch *f)
{
    pthread_mutex_lock(&f->lock);
    bool stop = f->stop;
    pthread_mutex_unlock(&f->lock);
    return stop;
}

/* One round without an engine: fails what is queued, then waits for more. */
static void broken_round(cf_fetch *f)
{
    read_slot *s = slot_next(f);
    cf_assert(!s);
    pthread_mutex_lock(&f->lock);
    while (!f->stop && !f->queues[0].head && !f->queues[1].head)
        pthread_cond_wait(&f->changed, &f->lock);
    pthread_mutex_unlock(&f->lock);
}

static void thread_loop(cf_fetch *f)
{
    cf_io_done done[BATCH];
    for (;;) {
        if (thread_stopping(f)) {
            queued_cancel(f);
            if (!f->n_active)
                return;
        }
        if (!f->io) {
            broken_round(f);
            continue;
        }
        int n = reads_issue(f);
        /* All active requests may just have ended; then look at `stop` again before sleeping. A
         * submit from done has rung the bell, and does not let us sleep. */
        if (n == 0 && (f->n_active || !thread_stopping(f)))
            n = f->io->fns->reap(f->io, done, BATCH, true);
        if (n < 0) {
            engine_failed(f, n);
            continue;
        }
        reads_left(f, (uint32_t)n);
        for (int i = 0; i < n; i++)
            read_completed(f, &done[i]);
    }
}

static void *thread_main(void *arg)
{
    cf_fetch *f = arg;
    cf_io *io = NULL;
    cf_thread_name("cf-io");
    int rc = cf_io_open(&io, f->files, &f->options.io, &f->open_err);
    pthread_mutex_lock(&f->lock);
    f->io = io;
    f->open_rc = rc;
    f->opened = true;
    if (rc == 0)
        f->info = io->info;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    if (rc < 0)
        return NULL;
    thread_loop(f);
    pthread_mutex_lock(&f->lock);
    io = f->io;
    f->io = NULL;
    pthread_mutex_unlock(&f->lock);
    cf_io_close(&io);
    return NULL;
}

/* ---- the interface ---- */

static void fetch_free(cf_fetch *f)
{
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->changed);
    free((void *)(uintptr_t)f->options.io.regions);
    free(f->slots);
    free(f);
}

/* The options with their defaults, and a copy of the regions. */
static int options_normalise(cf_fetch *f, const cf_fetch_options *options, cf_err *err)
{
    cf_fetch_options *o = &f->options;
    *o = *options;
    o->io.regions = NULL;
    if (!o->io.depth)
        o->io.depth = CF_IO_DEPTH_DEFAULT;
    if (o->io.depth > CF_IO_DEPTH_MAX)
        return CF_FAIL(err, -EINVAL, "an I/O depth of %u, at most %d are allowed", o->io.depth,
                       (int)CF_IO_DEPTH_MAX);
    if (!o->split_bytes)
        o->split_bytes = (uint32_t)cf_align_up(SPLIT_DEFAULT, f->files->align);
    if (o->split_bytes % f->files->align)
        return CF_FAIL(err, -EINVAL, "reads of %u bytes: not a multiple of the alignment %u",
                       o->split_bytes, f->files->align);
    if (o->io.n_regions) {
        cf_io_region *regions = calloc(o->io.n_regions, sizeof *regions);
        if (!regions)
            return CF_FAIL(err, -ENOMEM, "out of memory for %u regions", o->io.n_regions);
        memcpy(regions, options->io.regions, o->io.n_regions * sizeof *regions);
        o->io.regions = regions;
    }
    f->slots = calloc(o->io.depth, sizeof *f->slots);
    if (!f->slots)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u reads", o->io.depth);
    for (uint32_t i = o->io.depth; i-- > 0;) {
        f->slots[i].next = f->free_slots;
        f->free_slots = &f->slots[i];
    }
    return 0;
}

int cf_fetch_open(cf_fetch **out, const cf_files *files, const cf_fetch_options *options,
                  cf_err *err)
{
    int rc = 0;
    cf_fetch *f = calloc(1, sizeof *f);
    if (!f)
        return CF_FAIL(err, -ENOMEM, "out of memory for the fetcher");
    f->files = files;
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    CF_TRY(options_normalise(f, options, err));
    rc = -pthread_create(&f->thread, NULL, thread_main, f);
    if (rc < 0)
        CF_TRY(CF_FAIL(err, rc, "cannot start the I/O thread: %s", strerror(-rc)));
    pthread_mutex_lock(&f->lock);
    while (!f->opened)
        pthread_cond_wait(&f->changed, &f->lock);
    rc = f->open_rc;
    pthread_mutex_unlock(&f->lock);
    if (rc < 0) {
        pthread_join(f->thread, NULL);
        CF_TRY(CF_FAIL(err, rc, "%s", f->open_err.msg));
    }
    *out = f;
    return 0;
fail:
    fetch_free(f);
    return rc;
}

void cf_fetch_close(cf_fetch **fetch)
{
    cf_fetch *f = *fetch;
    if (!f)
        return;
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    thread_wake(f);
    pthread_mutex_unlock(&f->lock);
    pthread_join(f->thread, NULL);
    fetch_free(f);
    *fetch = NULL;
}

const cf_io_info *cf_fetch_io_info(const cf_fetch *f)
{
    return &f->info;
}

void cf_fetch_get_stats(const cf_fetch *fetch, cf_fetch_stats *out)
{
    cf_fetch *f = (cf_fetch *)(uintptr_t)fetch; /* only to lock */
    pthread_mutex_lock(&f->lock);
    *out = f->stats;
    if (f->busy_since_ns)
        out->busy_ns += cf_clock_ns() - f->busy_since_ns;
    pthread_mutex_unlock(&f->lock);
}

static void request_queue(cf_fetch *f, cf_fetch_req *req, cf_fetch_class cls)
{
    cf_assert(req->state == IDLE && req->done);
    cf_assert((uintptr_t)req->slab % f->files->align == 0 || !f->files->direct);
    for (uint32_t i = 0; i < req->n_runs; i++) {
        const cf_run *r = &req->runs[i];
        cf_assert(r->file < f->files->count && r->bytes);
        cf_assert((r->file_off | r->bytes | r->slab_off) % f->files->align == 0);
    }
    req->status = 0;
    req->err = (cf_err){0};
    req->run = req->outstanding = 0;
    req->run_off = 0;
    req->cls = cls;
    req->raised = req->abandoned = false;
    req->state = QUEUED;
    queue_push(&f->queues[cls], req);
}

void cf_fetch_submit(cf_fetch *f, cf_fetch_req *const *reqs, uint32_t n, cf_fetch_class cls)
{
    pthread_mutex_lock(&f->lock);
    for (uint32_t i = 0; i < n; i++)
        request_queue(f, reqs[i], cls);
    if (n)
        thread_wake(f);
    pthread_mutex_unlock(&f->lock);
}

void cf_fetch_raise(cf_fetch *f, cf_fetch_req *req)
{
    pthread_mutex_lock(&f->lock);
    if (req->state == QUEUED && req->cls == CF_FETCH_PREFETCH) {
        queue_remove(&f->queues[CF_FETCH_PREFETCH], req);
        req->cls = CF_FETCH_DEMAND;
        queue_push(&f->queues[CF_FETCH_DEMAND], req);
        thread_wake(f);
    } else if (req->state == ACTIVE && req->cls == CF_FETCH_PREFETCH && !req->raised) {
        req->raised = true;
        f->demands_active++;
        thread_wake(f);
    }
    pthread_mutex_unlock(&f->lock);
}

/* What is queued leaves its queue. The lock is held. */
static bool request_unqueue(cf_fetch *f, cf_fetch_req *req)
{
    if (req->state != QUEUED)
        return false;
    queue_remove(&f->queues[req->cls], req);
    req->state = IDLE;
    return true;
}

bool cf_fetch_cancel(cf_fetch *f, cf_fetch_req *req)
{
    pthread_mutex_lock(&f->lock);
    bool queued = request_unqueue(f, req);
    pthread_mutex_unlock(&f->lock);
    return queued;
}

bool cf_fetch_abandon(cf_fetch *f, cf_fetch_req *req)
{
    pthread_mutex_lock(&f->lock);
    bool queued = request_unqueue(f, req);
    if (req->state == ACTIVE && req->cls == CF_FETCH_PREFETCH && !req->raised) {
        req->abandoned = true;
        thread_wake(f);
    }
    pthread_mutex_unlock(&f->lock);
    return queued;
}

void cf_fetch_poke(cf_fetch *f)
{
    pthread_mutex_lock(&f->lock);
    thread_wake(f);
    pthread_mutex_unlock(&f->lock);
}
