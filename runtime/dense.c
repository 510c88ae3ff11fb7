/* Streamed dense weights: see dense.h.
 *
 * Invariants
 *  1. A page is brought into its segment only when `freed` has passed the page that had it before:
 *     every use of that one was recorded, submitted and waited for.
 *  2. Entries are asked for in order, entries [0, final) are never used again in this batch.
 *  3. A part on its way (a stage that is not idle) belongs to an entry of a page that is not freed.
 *  4. Between batches no stage is busy.
 *  5. What RAM holds of an entry is written only in batches in which it is not kept, and kept only
 *     once a batch has brought all of it.
 *
 * Threads: `lock` guards all that the I/O and copy threads see; it is never held over I/O or a
 * device wait (a submit only queues). The rest is the engine thread's. */
#include "runtime/dense.h"

#include <pthread.h>
#include <stdlib.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"

enum {
    NONE = 0xffffffff,
    IN_PLACE_READS = 32,
    COPIES = 8 /* from RAM, under way: enough for the bus, and experts' copies do not wait long */
};

/* A streamed matrix, in the order of use. */
struct entry {
    cf_wid weight;
    uint32_t page, layer;
    uint32_t experts; /* EXPERTS steps before it */
    bool head;        /* skipped when nobody wants logits */
    uint64_t off;     /* of its window in the segment */
    uint64_t bytes;
    uint64_t held;       /* its first bytes, which RAM has room for */
    cf_hold_place place; /* of the blocks of the file around them */
    /* Guarded by lock. */
    bool kept;        /* RAM has them; changes between batches alone */
    uint64_t filled;  /* of them, that came in this batch */
    uint64_t unread;  /* that the drive has still to bring */
    uint64_t arrived; /* that are on the device, or on their way over the bus */
    cf_gpu_point ready;
};

struct page {
    uint32_t end;      /* one past its last entry */
    bool recorded;     /* used by work that is not submitted */
    cf_gpu_point last; /* the last submitted work that uses it */
};

/* Where bytes come from. Each source goes through the schedule by itself, so that neither the drive
 * nor the bus waits for the other. */
enum source { DRIVE, RAM, SOURCES };

/* The part that a source brings next. */
struct cursor {
    uint32_t entry;
    uint64_t off; /* in the matrix */
};

/* A part of a matrix on its way: a read and its copy, or a copy from RAM. */
struct stage {
    struct cf_dense *dense;
    struct stage *next; /* idle ones */
    uint32_t index, entry;
    uint64_t off, bytes; /* of the matrix */
    uint64_t src_off;    /* where they begin in what is read */
    bool held;           /* they lie, or are read to, where RAM keeps them */
    bool busy;
    cf_run run;
    cf_fetch_req req;
    cf_copy_job job;
};

struct cf_dense {
    cf_dense_options o;
    cf_fetch *fetch;
    cf_copier *copier;
    cf_copier_fns fns;
    cf_timeline *timeline;
    int32_t region;
    cf_pages pages_memory, stages_memory;
    cf_gpu_buf *segments, *staging;
    cf_hold hold;
    struct entry *entries;
    struct page *pages;
    uint32_t n_entries, n_pages, n_stages;
    struct stage *stages; /* those that reads go through, then those of copies alone */
    /* The engine thread's. */
    uint32_t next;    /* entry to be used next */
    uint32_t current; /* in use, or NONE */
    uint32_t final;
    uint64_t stall_ns, copy_ns, device_ns;
    /* Guarded by lock. */
    pthread_mutex_t lock;
    pthread_cond_t arrival;
    struct stage *idle, *idle_copies;
    uint32_t busy;
    struct cursor ask[SOURCES];
    uint32_t freed;   /* pages [0, freed) have given up their segments */
    uint32_t experts; /* EXPERTS steps of this batch that are over */
    bool head;
    int rc; /* the first failure of this batch */
    cf_err err;
    uint64_t reads, bytes, copied;
};

/* ---- asking; the lock is held ---- */

/* Stages that reads go through. */
static uint32_t stage_count(const cf_dense_plan *p)
{
    return p->n_stages ? p->n_stages : IN_PLACE_READS;
}

static const cf_weight_def *entry_def(const cf_dense *d, const struct entry *e)
{
    return &d->o.model->weights[e->weight];
}

/* The first byte of a segment's memory that the entry may use. */
static uint64_t entry_place(const cf_dense *d, const struct entry *e)
{
    return e->page % d->o.plan->n_segments * d->o.plan->segment_bytes + e->off;
}

/* Where the matrix begins in its place. In place: where the window has it, moved down to a multiple
 * of 16. */
static uint64_t entry_data(const cf_dense *d, const struct entry *e)
{
    uint64_t at = entry_place(d, e);
    if (d->o.shape->in_place)
        at += cf_align_down(entry_def(d, e)->extent.off % d->o.align, CF_PIECE_ALIGN);
    return at;
}

static cf_fetch_class entry_class(const cf_dense *d, const struct entry *e)
{
    return e->experts <= d->experts ? CF_FETCH_DEMAND : CF_FETCH_PREFETCH;
}

/* What a source brings of a matrix in this batch: [begin, end). */
static uint64_t source_begin(const struct entry *e, enum source source)
{
    return source == DRIVE && e->kept ? e->held : 0;
}

static uint64_t source_end(const struct entry *e, enum source source)
{
    return source == DRIVE ? e->bytes : e->kept ? e->held : 0;
}

/* What a part is copied from: memory and buffer in which the blocks of the file around it lie. */
struct window {
    uint8_t *host;
    cf_span span;
};

static struct window stage_window(const cf_dense *d, const struct stage *s, uint64_t bytes)
{
    const struct entry *e = &d->entries[s->entry];
    uint64_t off = s->index * d->o.plan->stage_bytes;
    if (d->o.shape->in_place) {
        off = entry_place(d, e);
        return (struct window){d->pages_memory.data + off, {d->segments, off, bytes}};
    }
    if (!s->held)
        return (struct window){d->stages_memory.data + off, {d->staging, off, bytes}};
    const cf_hold_block *b = &d->hold.blocks[e->place.block];
    uint64_t begin = entry_def(d, e)->extent.off;
    uint64_t at = e->place.off + cf_align_down(begin + s->off, d->o.align) -
                  cf_align_down(begin, d->o.align);
    struct window w = {b->pages.data + at, {b->buf, at, bytes}};
    if (d->o.shape->staged)
        w.span = (cf_span){d->staging, off, bytes};
    return w;
}

/* The part at the cursor: in place the whole matrix, elsewhere as much as a stage holds, up to the
 * end of a block of the file. Returns the bytes of the blocks around it. */
static uint64_t stage_part(const cf_dense *d, struct stage *s, enum source source)
{
    struct cursor c = d->ask[source];
    const struct entry *e = &d->entries[c.entry];
    uint64_t begin = entry_def(d, e)->extent.off, at = begin + c.off;
    uint64_t from = cf_align_down(at, d->o.align);
    s->held = !e->kept ? c.off < e->held : source == RAM;
    uint64_t end = begin + (s->held ? e->held : e->bytes);
    if (!d->o.shape->in_place)
        end = cf_min_u64(end, from + cf_align_down(d->o.plan->stage_bytes, d->o.align));
    s->entry = c.entry;
    s->off = c.off;
    s->src_off = at - from;
    s->bytes = end - at;
    return cf_align_up(end, d->o.align) - from;
}

static void stage_read(cf_dense *d, struct stage *s, uint64_t window_bytes)
{
    const struct entry *e = &d->entries[s->entry];
    const cf_extent *x = &entry_def(d, e)->extent;
    struct window w = stage_window(d, s, window_bytes);
    s->run = (cf_run){
        .file = x->file, .file_off = x->off + s->off - s->src_off, .bytes = window_bytes};
    s->req.runs = &s->run;
    s->req.n_runs = 1;
    s->req.slab = w.host;
    s->req.region = s->held ? -1 : d->region;
    /* The bytes change from here on: no device work may still read them. */
    if (!d->o.shape->staged)
        cf_gpu_host_write(w.span);
    d->reads++;
    d->bytes += window_bytes;
    cf_fetch_req *req = &s->req;
    cf_fetch_submit(d->fetch, &req, 1, entry_class(d, e));
}

/* What has been read, or waits in RAM, goes where it belongs; false when it is there. */
static bool stage_copy(cf_dense *d, struct stage *s, const char *name)
{
    const struct entry *e = &d->entries[s->entry];
    uint64_t to = entry_data(d, e);
    struct window w = stage_window(d, s, s->src_off + s->bytes);
    const uint8_t *source = w.host + s->src_off;
    s->job = (cf_copy_job){.other = s->index, .layer = e->layer, .expert = CF_TIMELINE_NONE,
                           .fns = &d->fns, .name = name};
    if (d->o.shape->in_place) {
        s->job.dest = d->pages_memory.data + to;
        if (source == s->job.dest)
            return false;
        s->job.kind = CF_COPY_MOVE;
        s->job.source = source;
        s->job.bytes = s->bytes;
    } else {
        s->job.kind = CF_COPY_SPAN;
        s->job.from = cf_span_sub(w.span, s->src_off, s->bytes);
        s->job.to = (cf_span){d->segments, to + s->off, s->bytes};
        if (d->o.shape->staged)
            s->job.source = source;
    }
    cf_copier_push(d->copier, &s->job);
    return true;
}

/* Moves the cursor to a part that the source has and a segment has room for; false: to none. */
static bool cursor_settle(cf_dense *d, enum source source)
{
    struct cursor *c = &d->ask[source];
    for (; c->entry < d->n_entries; *c = (struct cursor){c->entry + 1, 0}) {
        const struct entry *e = &d->entries[c->entry];
        c->off = cf_max_u64(c->off, source_begin(e, source));
        if (c->off < source_end(e, source) && (d->head || !e->head))
            return e->page < d->freed + d->o.plan->n_segments;
    }
    return false;
}

/* Copies from RAM have stages of their own, unless they go through a staging buffer as well. */
static struct stage **idle_of(cf_dense *d, enum source source)
{
    return source == RAM && !d->o.shape->staged ? &d->idle_copies : &d->idle;
}

static void source_ask(cf_dense *d, enum source source)
{
    struct stage **idle = idle_of(d, source), *s = *idle;
    *idle = s->next;
    uint64_t window_bytes = stage_part(d, s, source);
    d->ask[source].off += s->bytes;
    s->busy = true;
    d->busy++;
    if (source == DRIVE) {
        stage_read(d, s, window_bytes);
        return;
    }
    d->copied += s->bytes;
    stage_copy(d, s, "dense raise");
}

static void ask_more(cf_dense *d)
{
    while (d->rc == 0) {
        bool drive = cursor_settle(d, DRIVE) && *idle_of(d, DRIVE);
        bool ram = cursor_settle(d, RAM) && *idle_of(d, RAM);
        if (!drive && !ram)
            return;
        /* What is used first comes first: it matters where they share stages. */
        bool ram_first = ram && d->ask[RAM].entry < d->ask[DRIVE].entry;
        source_ask(d, drive && !ram_first ? DRIVE : RAM);
    }
}

/* The stage has nothing to do any more. */
static void stage_release(cf_dense *d, struct stage *s)
{
    struct stage **idle = s->index < stage_count(d->o.plan) ? &d->idle : &d->idle_copies;
    s->busy = false;
    s->next = *idle;
    *idle = s;
    d->busy--;
    ask_more(d);
    pthread_cond_signal(&d->arrival);
}

static void entry_arrive(cf_dense *d, const struct stage *s, cf_gpu_point ready)
{
    struct entry *e = &d->entries[s->entry];
    e->arrived += s->bytes;
    if (s->held && !e->kept)
        e->filled += s->bytes;
    if (ready.value > e->ready.value)
        e->ready = ready;
    pthread_cond_signal(&d->arrival);
}

/* ---- completions ---- */

/* The copy is on its way, or the move is done. */
static void on_copy_submitted(void *user, cf_copy_job *job, cf_gpu_point point)
{
    cf_dense *d = user;
    struct stage *s = &d->stages[job->other];
    pthread_mutex_lock(&d->lock);
    entry_arrive(d, s, point);
    if (job->kind == CF_COPY_MOVE)
        stage_release(d, s);
    pthread_mutex_unlock(&d->lock);
}

static void on_copy_finished(void *user, cf_copy_job *job)
{
    cf_dense *d = user;
    pthread_mutex_lock(&d->lock);
    stage_release(d, &d->stages[job->other]);
    pthread_mutex_unlock(&d->lock);
}

static void on_read(cf_fetch_req *req, void *user)
{
    struct stage *s = user;
    cf_dense *d = s->dense;
    cf_timeline_add(d->timeline, &(cf_timeline_event){.begin_ns = req->begin_ns,
                                                      .end_ns = req->end_ns,
                                                      .name = "dense",
                                                      .bytes = s->run.bytes,
                                                      .expert = CF_TIMELINE_NONE,
                                                      .layer = (uint16_t)d->entries[s->entry].layer,
                                                      .track = CF_TRACK_READS});
    if (req->status == 0) {
        pthread_mutex_lock(&d->lock);
        d->entries[s->entry].unread -= s->bytes;
        pthread_cond_signal(&d->arrival);
        pthread_mutex_unlock(&d->lock);
        if (stage_copy(d, s, "dense fill"))
            return;
    }
    pthread_mutex_lock(&d->lock);
    if (req->status < 0 && d->rc == 0) {
        d->rc = req->status;
        d->err = req->err;
    }
    if (req->status == 0)
        entry_arrive(d, s, (cf_gpu_point){CF_STREAM_TRANSFER, 0});
    stage_release(d, s);
    pthread_mutex_unlock(&d->lock);
}

/* Waits until no read and no copy is on its way; what can be called back is. The lock is held. */
static void quiesce(cf_dense *d)
{
    for (uint32_t i = 0; i < d->n_stages; i++)
        if (d->stages[i].busy && cf_fetch_cancel(d->fetch, &d->stages[i].req))
            stage_release(d, &d->stages[i]);
    while (d->busy)
        pthread_cond_wait(&d->arrival, &d->lock);
}

/* ---- a batch ---- */

void cf_dense_begin(cf_dense *d, bool head)
{
    d->next = d->final = 0;
    d->current = NONE;
    for (uint32_t i = 0; i < d->n_pages; i++)
        d->pages[i].recorded = false;
    pthread_mutex_lock(&d->lock);
    cf_assert(d->busy == 0);
    for (uint32_t i = 0; i < d->n_entries; i++) {
        struct entry *e = &d->entries[i];
        e->kept |= e->held && e->filled == e->held; /* else what came is read again */
        e->filled = e->arrived = 0;
        e->unread = e->bytes - source_begin(e, DRIVE);
        e->ready = (cf_gpu_point){CF_STREAM_TRANSFER, 0};
    }
    d->head = head;
    d->rc = 0;
    d->err = (cf_err){0};
    d->ask[DRIVE] = d->ask[RAM] = (struct cursor){0};
    d->freed = d->experts = 0;
    ask_more(d);
    pthread_mutex_unlock(&d->lock);
}

cf_dense_state cf_dense_seek(cf_dense *d, cf_wid w)
{
    uint32_t before = d->next ? d->entries[d->next - 1].page : 0;
    if (d->current == NONE || d->entries[d->current].weight != w) {
        while (d->next < d->n_entries && d->entries[d->next].head && !d->head)
            d->next++;
        cf_assert(d->next < d->n_entries && d->entries[d->next].weight == w);
        d->final = d->current = d->next++;
    }
    const struct entry *e = &d->entries[d->current];
    cf_dense_collect(d);
    pthread_mutex_lock(&d->lock);
    bool there = e->arrived == e->bytes;
    pthread_mutex_unlock(&d->lock);
    return !there ? CF_DENSE_AWAITED : e->page != before ? CF_DENSE_TURNED : CF_DENSE_THERE;
}

/* 1: there; 0: not yet, and `block` was not asked for. */
static int current_await(cf_dense *d, bool block, cf_err *err)
{
    const struct entry *e = &d->entries[d->current];
    int rc;
    uint64_t read_ns = 0; /* when the drive had brought its part */
    pthread_mutex_lock(&d->lock);
    while (block && d->rc == 0 && e->arrived < e->bytes) {
        if (!read_ns && !e->unread)
            read_ns = cf_clock_ns();
        pthread_cond_wait(&d->arrival, &d->lock);
    }
    if (read_ns)
        d->copy_ns += cf_clock_ns() - read_ns;
    if (d->rc < 0) {
        rc = CF_FAIL(err, d->rc, "%s", d->err.msg);
        quiesce(d);
    } else {
        rc = e->arrived == e->bytes;
    }
    pthread_mutex_unlock(&d->lock);
    return rc;
}

/* The device first: a segment that it gives back is read into while the matrix still arrives. */
static int pages_await(cf_dense *d, cf_err *err)
{
    int rc = current_await(d, false, err);
    while (rc == 0 && d->freed < d->entries[d->current].page) {
        const struct page *p = &d->pages[d->freed];
        cf_assert(p->end <= d->final && !p->recorded);
        uint64_t begin = cf_clock_ns();
        rc = cf_gpu_wait(d->o.gpu, p->last, err);
        d->device_ns += cf_clock_ns() - begin;
        if (rc < 0)
            return rc;
        cf_dense_collect(d);
        rc = current_await(d, false, err);
    }
    return rc;
}

int cf_dense_wait(cf_dense *d, cf_err *err)
{
    uint64_t begin = cf_clock_ns(), others_ns = d->device_ns + d->copy_ns;
    int rc = pages_await(d, err);
    if (rc == 0)
        rc = current_await(d, true, err);
    uint64_t end = cf_clock_ns();
    d->stall_ns += end - begin - (d->device_ns + d->copy_ns - others_ns);
    cf_timeline_add(d->timeline,
                    &(cf_timeline_event){.begin_ns = begin,
                                         .end_ns = end,
                                         .name = "dense",
                                         .expert = CF_TIMELINE_NONE,
                                         .layer = (uint16_t)d->entries[d->current].layer,
                                         .track = CF_TRACK_STALLS});
    return rc < 0 ? rc : 0;
}

cf_span cf_dense_use(cf_dense *d, cf_gpu_point *ready)
{
    const struct entry *e = &d->entries[d->current];
    d->pages[e->page].recorded = true;
    pthread_mutex_lock(&d->lock);
    *ready = e->ready;
    pthread_mutex_unlock(&d->lock);
    return (cf_span){d->segments, entry_data(d, e), e->bytes};
}

void cf_dense_submitted(cf_dense *d, cf_gpu_point point)
{
    for (uint32_t i = d->freed; i < d->n_pages && i < d->freed + d->o.plan->n_segments; i++)
        if (d->pages[i].recorded) {
            d->pages[i].recorded = false;
            d->pages[i].last = point;
        }
}

void cf_dense_collect(cf_dense *d)
{
    uint32_t n = d->freed;
    while (n < d->n_pages && d->pages[n].end <= d->final && !d->pages[n].recorded &&
           cf_gpu_reached(d->o.gpu, d->pages[n].last))
        n++;
    if (n == d->freed)
        return;
    pthread_mutex_lock(&d->lock);
    d->freed = n;
    ask_more(d);
    pthread_mutex_unlock(&d->lock);
}

/* Reads that are needed before the next EXPERTS no longer yield to anything. */
static void demands_raise(cf_dense *d)
{
    pthread_mutex_lock(&d->lock);
    d->experts++;
    for (uint32_t i = 0; i < d->n_stages; i++)
        if (d->stages[i].busy && entry_class(d, &d->entries[d->stages[i].entry]) == CF_FETCH_DEMAND)
            cf_fetch_raise(d->fetch, &d->stages[i].req);
    pthread_mutex_unlock(&d->lock);
}

void cf_dense_step_end(cf_dense *d, bool experts)
{
    if (d->current != NONE)
        d->final = d->current + 1;
    d->current = NONE;
    if (experts)
        demands_raise(d);
}

void cf_dense_end(cf_dense *d)
{
    pthread_mutex_lock(&d->lock);
    d->ask[DRIVE].entry = d->ask[RAM].entry = d->n_entries;
    quiesce(d);
    pthread_mutex_unlock(&d->lock);
}

void cf_dense_get_stats(const cf_dense *d, cf_dense_stats *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)(uintptr_t)&d->lock;
    pthread_mutex_lock(lock);
    *out = (cf_dense_stats){.reads = d->reads,
                            .bytes = d->bytes,
                            .copied = d->copied,
                            .stall_ns = d->stall_ns,
                            .copy_ns = d->copy_ns,
                            .device_ns = d->device_ns};
    pthread_mutex_unlock(lock);
}

/* ---- life ---- */

uint64_t cf_dense_memory(const cf_dense_plan *p)
{
    if (!p->n_streamed)
        return 0;
    uint64_t each = sizeof(struct entry) + sizeof(struct page), stages = stage_count(p);
    if (p->n_stages) {
        each += sizeof(cf_hold_block);
        stages += COPIES;
    }
    return sizeof(cf_dense) + p->n_streamed * each + stages * sizeof(struct stage);
}

/* The streamed matrices in the order of the steps, cut into pages; held: of each, in RAM. */
static void schedule(cf_dense *d, const uint64_t *held)
{
    const cf_model *m = d->o.model;
    uint32_t experts = 0;
    uint64_t used = 0;
    for (uint32_t i = 0; i < m->n_steps; i++) {
        cf_wid list[CF_STEP_WEIGHTS];
        const cf_step *step = &m->steps[i];
        uint32_t n = cf_step_weights(step, list);
        experts += step->kind == CF_STEP_EXPERTS;
        for (uint32_t j = 0; j < n; j++) {
            const cf_weight_def *w = &m->weights[list[j]];
            if (!d->o.streamed[list[j]])
                continue;
            uint64_t bytes = cf_dense_window_bytes(w, d->o.shape->in_place, d->o.align);
            if (!d->n_pages || used + bytes > d->o.plan->segment_bytes) {
                d->n_pages++;
                used = 0;
            }
            d->entries[d->n_entries] = (struct entry){.weight = list[j],
                                                      .page = d->n_pages - 1,
                                                      .layer = step->layer,
                                                      .experts = experts,
                                                      .head = step->kind == CF_STEP_HEAD,
                                                      .off = used,
                                                      .bytes = cf_weight_code_bytes(w),
                                                      .held = held[list[j]]};
            struct entry *e = &d->entries[d->n_entries];
            if (e->held)
                e->place = cf_hold_lay(&d->hold, cf_hold_place_bytes(w, d->o.align, e->held));
            d->pages[d->n_pages - 1].end = ++d->n_entries;
            used += bytes;
        }
    }
    cf_assert(d->n_entries == d->o.plan->n_streamed);
}

/* The places in RAM are laid out with the schedule. */
static int schedule_create(cf_dense *d, cf_err *err)
{
    const cf_model *m = d->o.model;
    uint64_t max_alloc = cf_gpu_get_info(d->o.gpu)->max_alloc_bytes;
    uint64_t *held = calloc(m->n_weights + 1, sizeof *held);
    if (!held)
        return CF_FAIL(err, -ENOMEM, "out of memory for a plan of %u weights", m->n_weights);
    int rc = cf_hold_init(&d->hold, d->o.shape->in_place ? 0 : d->o.plan->n_streamed, max_alloc,
                          err);
    if (rc == 0) {
        cf_hold_plan made = {0};
        if (d->o.hold->bytes)
            cf_hold_choose(m, d->o.streamed, d->o.align, max_alloc, d->o.hold->allowance, held,
                           &made);
        cf_assert(made.bytes == d->o.hold->bytes);
        schedule(d, held);
    }
    free(held);
    return rc;
}

static int memory_create(cf_dense *d, cf_err *err)
{
    const cf_dense_plan *p = d->o.plan;
    cf_gpu *gpu = d->o.gpu;
    uint64_t bytes = p->n_segments * p->segment_bytes;
    int rc;
    if (d->o.shape->in_place) {
        CF_TRY(cf_pages_init(&d->pages_memory, bytes, d->o.ledger, CF_POOL_DEVICE,
                             "segments of streamed weights", err));
        return cf_gpu_buf_import(gpu, d->pages_memory.data, d->pages_memory.bytes,
                                 "segments of streamed weights", &d->segments, err);
    }
    CF_TRY(cf_gpu_buf_create(gpu, CF_BUF_DEVICE, bytes, "segments of streamed weights",
                             &d->segments, err));
    CF_TRY(cf_pages_init(&d->stages_memory, p->host_bytes, d->o.ledger, CF_POOL_HOST,
                         "stages of streamed weights", err));
    CF_TRY(cf_hold_take(&d->hold, gpu, !d->o.shape->staged, d->o.ledger, err));
    if (d->o.shape->staged)
        return cf_gpu_buf_create(gpu, CF_BUF_UPLOAD, p->host_bytes, "stages of streamed weights",
                                 &d->staging, err);
    return cf_gpu_buf_import(gpu, d->stages_memory.data, d->stages_memory.bytes,
                             "stages of streamed weights", &d->staging, err);
fail:
    return rc;
}

int cf_dense_create(cf_dense **out, const cf_dense_options *options, cf_err *err)
{
    int rc = 0;
    cf_dense *d = calloc(1, sizeof *d);
    if (!d)
        return CF_FAIL(err, -ENOMEM, "out of memory for streamed weights");
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->arrival, NULL);
    d->o = *options;
    d->current = NONE;
    d->fns = (cf_copier_fns){on_copy_submitted, on_copy_finished, d};
    uint32_t readers = stage_count(options->plan);
    d->n_stages = readers + (options->plan->n_stages ? COPIES : 0);
    d->entries = calloc(options->plan->n_streamed + 1, sizeof *d->entries);
    d->pages = calloc(options->plan->n_streamed + 1, sizeof *d->pages);
    d->stages = calloc(d->n_stages, sizeof *d->stages);
    if (!d->entries || !d->pages || !d->stages) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for the schedule of %u streamed matrices",
                     options->plan->n_streamed);
        goto fail;
    }
    CF_TRY(schedule_create(d, err));
    for (uint32_t i = d->n_stages; i-- > 0;) {
        struct stage *s = &d->stages[i], **idle = i < readers ? &d->idle : &d->idle_copies;
        s->dense = d;
        s->index = i;
        s->req.done = on_read;
        s->req.user = s;
        s->next = *idle;
        *idle = s;
    }
    CF_TRY(memory_create(d, err));
    *out = d;
    return 0;
fail:
    cf_dense_destroy(&d);
    return rc;
}

cf_io_region cf_dense_region(const cf_dense *d)
{
    const cf_pages *p = d->o.shape->in_place ? &d->pages_memory : &d->stages_memory;
    return (cf_io_region){p->data, p->bytes};
}

void cf_dense_attach(cf_dense *d, cf_fetch *fetch, int32_t region, cf_copier *copier,
                     cf_timeline *timeline)
{
    d->fetch = fetch;
    d->region = region;
    d->copier = copier;
    d->timeline = timeline;
}

void cf_dense_destroy(cf_dense **dense)
{
    cf_dense *d = *dense;
    if (!d)
        return;
    cf_gpu_buf_destroy(&d->segments);
    cf_gpu_buf_destroy(&d->staging);
    cf_pages_finish(&d->pages_memory);
    cf_pages_finish(&d->stages_memory);
    cf_hold_finish(&d->hold);
    free(d->entries);
    free(d->pages);
    free(d->stages);
    pthread_cond_destroy(&d->arrival);
    pthread_mutex_destroy(&d->lock);
    free(d);
    *dense = NULL;
}
