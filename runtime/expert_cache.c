/* The expert cache, written like a pager.
 *
 *             start_read            on_read             on_copy
 *    EMPTY ------------> READING ------------> COPYING ----------> READY
 *      ^                    |  (in place: on_read goes to READY)     |
 *      |<---- read_failed --+                                        |
 *      |<------------------------- evict (pins == 0) ----------------+
 *
 * slot_start, slot_on_read, slot_on_copy_submitted, slot_on_copy_finished, slot_read_failed and
 * slot_evict perform these transitions, and nothing else does. A record that comes from the RAM
 * tier goes from EMPTY to COPYING at once. A record that goes to the RAM tier is copied there
 * before its slot is filled again; the copy thread keeps the order.
 *
 * Invariants (tests cite the numbers; cf_cache_verify checks 2, 3, 4 and 7):
 *  1. A READY slot holds exactly the bytes of its record.
 *  2. At most one place of either tier holds a record; map and key are inverse (residency.c).
 *  3. A pinned slot is neither evicted nor written.
 *  4. Device work reads a slot only after the slot's ready point; a pin falls only when the point
 *     of that work is reached.
 *  5. (Guessed prefetch: none is made here yet; reads of a group are all demands.)
 *  6. A failed read returns the slot to EMPTY and reaches the waiter once.
 *  7. slots >= 2 x top-k.
 *  8. What is in which place is a function of the plan: lookups and victims are decided in
 *     cf_cache_route, in plan order, by residency.c, which knows neither clock nor file.
 *
 * A group's decisions are carried out in its order of processing. An entry that takes over the slot
 * of an earlier entry of the same group (residency.h: `after`) waits until the device is done with
 * that entry: never for another one, however late it is.
 *
 * Locking: `lock` guards slot states, the arrival list, the landing places and the stall clocks.
 * The group and the directory belong to the engine thread. */
#include "runtime/expert_cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/copier.h"

enum { NONE = CF_NO_PLACE };

typedef enum { EMPTY, READING, COPYING, READY } slot_state;

struct slot {
    slot_state state;
    uint32_t moe, expert; /* the key, unless EMPTY */
    uint32_t pins;
    uint32_t entry;   /* of the group that awaits it, or NONE */
    uint32_t landing; /* where it is read to, or NONE */
    uint32_t copies;  /* jobs that the copy thread has not finished */
    uint64_t piece_off[CF_RECORD_EXTENTS]; /* of each extent of the record */
    cf_gpu_point ready;
    cf_layout layout;
    cf_fetch_req req;
    cf_copy_job fill, save;
    cf_cache *cache;
    struct slot *next; /* in the arrival list or the list that waits for a landing place */
};

/* One expert of the current group, in order of processing. */
struct entry {
    bool started, taken, used;
    cf_gpu_point done; /* of the work that used it */
};

struct list {
    struct slot *head, **tail;
};

struct cf_cache {
    cf_cache_options o;
    uint32_t n_slots, n_moe, experts;
    struct slot *slots;
    cf_residency *residency;
    cf_copier *copier;

    /* The group, of the engine thread. */
    uint32_t moe, n_entries, n_hits, n_taken, n_started;
    cf_placing *placing;   /* [experts] decisions, in order of processing */
    struct entry *entries; /* [experts] likewise */
    uint32_t *order;       /* [experts] of route's list -> entry */

    pthread_mutex_t lock;
    pthread_cond_t arrival;
    struct list arrived; /* usable (or failed), not yet taken by the engine */
    struct list waiting; /* reads that wait for a landing place */
    uint32_t *free_landings, n_free_landings;
    uint32_t in_flight; /* reads and copies */
    cf_cache_stats stats;
};

static void list_init(struct list *l)
{
    l->head = NULL;
    l->tail = &l->head;
}

static void list_push(struct list *l, struct slot *s)
{
    s->next = NULL;
    *l->tail = s;
    l->tail = &s->next;
}

static struct slot *list_pop(struct list *l)
{
    struct slot *s = l->head;
    if (s) {
        l->head = s->next;
        if (!l->head)
            l->tail = &l->head;
    }
    return s;
}

static uint32_t slot_index(const cf_cache *c, const struct slot *s)
{
    return (uint32_t)(s - c->slots);
}

/* ---- transitions ---- */

/* Hands a read to the fetcher. The lock is held. */
static void read_submit(cf_cache *c, struct slot *s, uint32_t landing)
{
    s->landing = landing;
    s->req.slab = cf_landing_host(c->o.slots, landing);
    s->req.region = (int32_t)cf_landing_region(c->o.slots, landing);
    /* The bytes of the landing place change from here on: no device work may still read them. */
    cf_gpu_host_write(cf_landing_span(c->o.slots, landing));
    cf_fetch_req *req = &s->req;
    cf_fetch_submit(c->o.fetch, &req, 1, CF_FETCH_DEMAND);
}

/* Where the record's pieces are read to, and where they belong in the slot. */
static void slot_lay_out(const cf_cache *c, struct slot *s)
{
    const cf_moe_def *def = &c->o.model->moe[s->moe];
    cf_layout_plan(&s->layout, &def->extents[(size_t)s->expert * def->n_extents], def->n_extents,
                   c->o.files->align);
    if (c->o.slots->shape.in_place)
        for (uint32_t i = 0; i < def->n_extents; i++)
            s->piece_off[i] = s->layout.pieces[i].off;
    else
        cf_copy_place(&s->layout, s->piece_off);
    s->req.runs = s->layout.runs;
    s->req.n_runs = s->layout.n_runs;
}

static void copy_push(cf_cache *c, cf_copy_job *job, cf_copy_kind kind, struct slot *s,
                      uint32_t other)
{
    *job = (cf_copy_job){.kind = kind, .slot = slot_index(c, s), .other = other,
                         .layout = &s->layout, .piece_off = s->piece_off,
                         .layer = c->o.model->moe[s->moe].layer, .expert = s->expert};
    s->copies++;
    c->in_flight++;
    cf_copier_push(c->copier, job);
}

/* The slot is usable: whoever waits for it learns of it. The lock is held. */
static void slot_arrive(cf_cache *c, struct slot *s)
{
    list_push(&c->arrived, s);
    pthread_cond_signal(&c->arrival);
}

static void landing_free(cf_cache *c, uint32_t landing)
{
    if (c->o.slots->shape.in_place)
        return;
    struct slot *s = list_pop(&c->waiting);
    if (s)
        read_submit(c, s, landing);
    else
        c->free_landings[c->n_free_landings++] = landing;
}

/* READING -> EMPTY, reported through the request's status. The lock is held; the directory learns
 * of it on the engine thread. */
static void slot_read_failed(cf_cache *c, struct slot *s)
{
    s->state = EMPTY;
    s->pins = 0;
    landing_free(c, s->landing);
    slot_arrive(c, s);
}

static void slot_show_read(cf_cache *c, const struct slot *s)
{
    if (!cf_timeline_on(c->o.timeline))
        return;
    cf_timeline_event e = {.begin_ns = s->req.begin_ns, .end_ns = s->req.end_ns, .name = "record",
                           .expert = s->expert, .layer = (uint16_t)c->o.model->moe[s->moe].layer,
                           .track = CF_TRACK_READS};
    for (uint32_t i = 0; i < s->layout.n_runs; i++)
        e.bytes += s->layout.runs[i].bytes;
    cf_timeline_add(c->o.timeline, &e);
}

/* READING -> COPYING, or READY in place. On the I/O thread. */
static void slot_on_read(cf_fetch_req *req, void *user)
{
    struct slot *s = user;
    cf_cache *c = s->cache;
    bool in_place = c->o.slots->shape.in_place;
    pthread_mutex_lock(&c->lock);
    c->in_flight--;
    slot_show_read(c, s);
    if (req->status < 0) {
        slot_read_failed(c, s);
    } else if (in_place && !cf_layout_unsettled(&s->layout)) {
        s->state = READY;
        s->ready = (cf_gpu_point){CF_STREAM_TRANSFER, 0};
        slot_arrive(c, s);
    } else {
        s->state = COPYING;
        copy_push(c, &s->fill, in_place ? CF_COPY_SETTLE : CF_COPY_FILL, s, s->landing);
    }
    pthread_mutex_unlock(&c->lock);
}

/* COPYING, but usable by work that waits for `point`; READY when settled. On the copy thread. */
static void slot_on_copy_submitted(void *user, cf_copy_job *job, cf_gpu_point point)
{
    cf_cache *c = user;
    struct slot *s = &c->slots[job->slot];
    if (job->kind == CF_COPY_SAVE)
        return;
    pthread_mutex_lock(&c->lock);
    s->ready = point;
    if (job->kind == CF_COPY_SETTLE) {
        s->state = READY;
        s->copies--;
        c->in_flight--;
    }
    slot_arrive(c, s);
    pthread_mutex_unlock(&c->lock);
}

/* COPYING -> READY, or a save is done. On the copy thread. A device failure is sticky and stops the
 * engine. */
static void slot_on_copy_finished(void *user, cf_copy_job *job)
{
    cf_cache *c = user;
    struct slot *s = &c->slots[job->slot];
    pthread_mutex_lock(&c->lock);
    s->copies--;
    c->in_flight--;
    if (job->kind != CF_COPY_SAVE)
        s->state = READY;
    if (job->kind == CF_COPY_FILL)
        landing_free(c, job->other);
    pthread_cond_signal(&c->arrival);
    pthread_mutex_unlock(&c->lock);
}

/* READY -> EMPTY; its bytes go to the RAM tier first if they were given a place there. The lock is
 * held, and left while an earlier copy of this slot is on its way. */
static void slot_evict(cf_cache *c, struct slot *s, uint32_t demote_slab)
{
    while (s->copies)
        pthread_cond_wait(&c->arrival, &c->lock);
    cf_assert(s->pins == 0 && s->state == READY);
    s->state = EMPTY;
    if (demote_slab != NONE)
        copy_push(c, &s->save, CF_COPY_SAVE, s, demote_slab);
}

/* EMPTY -> READING, or COPYING from the RAM tier: carries out the decision for one entry, whose
 * slot nobody uses any more. The lock is held. */
static void slot_start(cf_cache *c, uint32_t index)
{
    const cf_placing *p = &c->placing[index];
    struct slot *s = &c->slots[p->slot];
    if (p->evicted_moe != NONE)
        slot_evict(c, s, p->demote_slab);
    cf_assert(s->state == EMPTY && !s->pins);
    s->moe = c->moe;
    s->expert = p->expert;
    s->pins = 1;
    s->entry = index;
    slot_lay_out(c, s);
    c->entries[index].started = true;
    if (p->source == CF_FROM_RAM) {
        s->state = COPYING;
        copy_push(c, &s->fill, CF_COPY_RAISE, s, p->slab);
        return;
    }
    s->state = READING;
    c->in_flight++;
    if (c->o.slots->shape.in_place)
        read_submit(c, s, p->slot);
    else if (c->n_free_landings)
        read_submit(c, s, c->free_landings[--c->n_free_landings]);
    else
        list_push(&c->waiting, s);
}

/* ---- a group ---- */

void cf_cache_route(cf_cache *c, uint32_t moe, const uint32_t *experts, uint32_t n,
                    cf_group_counts *counts)
{
    *counts = (cf_group_counts){.lookups = n};
    c->moe = moe;
    c->n_entries = n;
    c->n_taken = 0;
    cf_residency_route(c->residency, c->o.policy, moe, experts, n, c->placing, c->order);
    pthread_mutex_lock(&c->lock);
    for (uint32_t i = 0; i < n; i++) {
        const cf_placing *p = &c->placing[i];
        c->entries[i] = (struct entry){.started = p->source == CF_FROM_VRAM};
        counts->hits += p->source == CF_FROM_VRAM;
        counts->ram_hits += p->source == CF_FROM_RAM;
        counts->misses += p->source == CF_FROM_DRIVE;
        if (p->source == CF_FROM_VRAM)
            c->slots[p->slot].pins++;
    }
    pthread_mutex_unlock(&c->lock);
    c->n_hits = c->n_started = counts->hits;
    if (c->o.prefetch)
        cf_cache_start(c);
}

uint32_t cf_cache_order(const cf_cache *c, uint32_t i)
{
    return c->order[i];
}

void cf_cache_start(cf_cache *c)
{
    pthread_mutex_lock(&c->lock);
    /* Entries that take over a slot of the group come last; cf_cache_take starts them. */
    while (c->n_started < c->n_entries && c->placing[c->n_started].after == NONE)
        slot_start(c, c->n_started++);
    pthread_mutex_unlock(&c->lock);
}

/* ---- handing out ---- */

static cf_span extent_span(const cf_cache *c, const struct slot *s, uint32_t extent)
{
    return cf_span_sub(cf_slots_span(c->o.slots, slot_index(c, s)), s->piece_off[extent],
                       s->layout.pieces[extent].bytes);
}

/* A piece as it lies in the slot. */
static cf_weight piece_weight(const cf_cache *c, const struct slot *s, const cf_piece_def *p)
{
    if (!p->cols)
        return (cf_weight){0};
    cf_weight w = {.span = extent_span(c, s, p->extent), .dtype = p->dtype, .rows = p->rows,
                   .cols = p->cols, .transposed = p->transposed, .row_first = p->row_first,
                   .row_step = p->row_step, .stride = p->stride};
    if (p->scale.rows) {
        w.scales = extent_span(c, s, p->scale_extent);
        w.scale_format = p->scale.format;
        w.scale_rows = p->scale.rows;
        w.scale_cols = p->scale.cols;
    }
    return w;
}

static void entry_hand_out(cf_cache *c, uint32_t index, cf_cache_entry *out)
{
    struct entry *e = &c->entries[index];
    const cf_placing *placing = &c->placing[index];
    const struct slot *s = &c->slots[placing->slot];
    const cf_moe_def *def = &c->o.model->moe[c->moe];
    *out = (cf_cache_entry){.index = index, .expert = placing->expert, .ready = s->ready};
    for (int i = 0; i < CF_EXPERT_PIECES; i++) {
        out->pieces[i] = piece_weight(c, s, &def->pieces[i]);
        out->biases[i] = piece_weight(c, s, &def->biases[i]);
    }
    e->taken = true;
    c->n_taken++;
}

/* Starts entries whose slot an earlier entry of the group gives up, in order. With `wait` at least
 * one is started, if only the device's work is missing. The lock is held, and left for the wait. */
static int overflow_advance(cf_cache *c, bool wait, cf_err *err)
{
    while (c->n_started < c->n_entries) {
        const struct entry *giver = &c->entries[c->placing[c->n_started].after];
        if (!giver->used)
            return 0;
        if (!cf_gpu_reached(c->o.gpu, giver->done)) {
            if (!wait)
                return 0;
            pthread_mutex_unlock(&c->lock);
            uint64_t begin = cf_timeline_now(c->o.timeline);
            int rc = cf_gpu_wait(c->o.gpu, giver->done, err);
            cf_timeline_mark(c->o.timeline, CF_TRACK_DEVICE_WAITS, "slot in use",
                             c->o.model->moe[c->moe].layer, CF_TIMELINE_NONE, begin);
            pthread_mutex_lock(&c->lock);
            if (rc < 0)
                return rc;
        }
        wait = false;
        c->slots[c->placing[c->n_started].slot].pins--;
        slot_start(c, c->n_started++);
    }
    return 0;
}

/* Blocks until something arrived. The lock is held. */
static void arrival_wait(cf_cache *c)
{
    pthread_mutex_unlock(&c->lock);
    if (c->o.on_wait)
        c->o.on_wait(c->o.on_wait_user);
    pthread_mutex_lock(&c->lock);
    uint64_t begin = cf_clock_ns();
    bool reading = true;
    while (!c->arrived.head) {
        reading = false;
        for (uint32_t i = 0; i < c->n_entries && !reading; i++) {
            const struct entry *e = &c->entries[i];
            reading = e->started && !e->taken &&
                      c->slots[c->placing[i].slot].state == READING;
        }
        pthread_cond_wait(&c->arrival, &c->lock);
    }
    uint64_t end = cf_clock_ns();
    *(reading ? &c->stats.io_stall_ns : &c->stats.copy_stall_ns) += end - begin;
    cf_timeline_add(c->o.timeline,
                    &(cf_timeline_event){.begin_ns = begin, .end_ns = end,
                                         .name = reading ? "read" : "copy",
                                         .expert = CF_TIMELINE_NONE,
                                         .layer = (uint16_t)c->o.model->moe[c->moe].layer,
                                         .track = CF_TRACK_STALLS});
}

int cf_cache_take(cf_cache *c, cf_cache_entry *out, uint32_t max, cf_err *err)
{
    uint32_t n = 0;
    int rc = 0;
    pthread_mutex_lock(&c->lock);
    /* Hits are the first entries and never arrive. */
    while (n < max && c->n_taken < c->n_hits)
        entry_hand_out(c, c->n_taken, &out[n++]);
    while (n == 0 && c->n_taken < c->n_entries && rc == 0) {
        rc = overflow_advance(c, !c->arrived.head, err);
        if (rc == 0 && !c->arrived.head)
            arrival_wait(c);
        struct slot *s;
        while (rc == 0 && n < max && (s = list_pop(&c->arrived))) {
            if (s->state == EMPTY) {
                cf_residency_drop(c->residency, s->moe, s->expert);
                rc = CF_FAIL(err, s->req.status, "%s", s->req.err.msg);
            } else {
                entry_hand_out(c, s->entry, &out[n++]);
            }
            s->entry = NONE;
        }
    }
    pthread_mutex_unlock(&c->lock);
    if (rc < 0) {
        cf_cache_abort(c);
        return rc;
    }
    return (int)n;
}

void cf_cache_used(cf_cache *c, const cf_cache_entry *entries, uint32_t n, cf_gpu_point point)
{
    for (uint32_t i = 0; i < n; i++) {
        struct entry *e = &c->entries[entries[i].index];
        e->used = true;
        e->done = point;
    }
}

/* Whether entry `index` still holds its slot: nobody of the group has taken it over. */
static bool entry_holds_slot(const cf_cache *c, uint32_t index)
{
    return c->slots[c->placing[index].slot].expert == c->placing[index].expert &&
           c->slots[c->placing[index].slot].moe == c->moe;
}

void cf_cache_end(cf_cache *c)
{
    pthread_mutex_lock(&c->lock);
    cf_assert(c->n_taken == c->n_entries);
    for (uint32_t i = 0; i < c->n_entries; i++) {
        cf_assert(c->entries[i].used);
        if (entry_holds_slot(c, i))
            c->slots[c->placing[i].slot].pins--;
    }
    c->n_entries = 0;
    pthread_mutex_unlock(&c->lock);
}

/* Takes back the decisions that were not carried out: those records are nowhere, and neither is
 * what they were to replace (the directory has already forgotten it). The lock is held. */
static void unstarted_drop(cf_cache *c)
{
    for (uint32_t i = c->n_started; i < c->n_entries; i++) {
        const cf_placing *p = &c->placing[i];
        struct slot *s = &c->slots[p->slot];
        cf_residency_drop(c->residency, c->moe, p->expert);
        if (p->demote_slab != NONE)
            cf_residency_drop(c->residency, p->evicted_moe, p->evicted_expert);
        while (s->copies || s->state == READING)
            pthread_cond_wait(&c->arrival, &c->lock);
        s->state = EMPTY;
        s->pins = 0;
    }
}

void cf_cache_abort(cf_cache *c)
{
    pthread_mutex_lock(&c->lock);
    while (c->in_flight)
        pthread_cond_wait(&c->arrival, &c->lock);
    struct slot *s;
    while ((s = list_pop(&c->arrived))) {
        if (s->state == EMPTY)
            cf_residency_drop(c->residency, s->moe, s->expert);
        s->entry = NONE;
    }
    unstarted_drop(c);
    cf_gpu_point last = {CF_STREAM_COMPUTE, 0};
    for (uint32_t i = 0; i < c->n_entries; i++) {
        const struct entry *e = &c->entries[i];
        if (e->used && e->done.value > last.value)
            last = e->done;
        c->slots[c->placing[i].slot].entry = NONE;
        c->slots[c->placing[i].slot].pins = 0;
    }
    c->n_entries = 0;
    pthread_mutex_unlock(&c->lock);
    cf_gpu_wait(c->o.gpu, last, NULL);
}

/* ---- life ---- */

static uint32_t experts_most(const cf_model *model)
{
    uint32_t experts = 0;
    for (uint32_t i = 0; i < model->n_moe; i++)
        experts = model->moe[i].experts > experts ? model->moe[i].experts : experts;
    return experts;
}

uint64_t cf_cache_memory(const cf_model *model, uint32_t n_slots, uint32_t n_tier)
{
    uint32_t experts = experts_most(model);
    return n_slots * (uint64_t)sizeof(struct slot) +
           experts * (uint64_t)(sizeof(struct entry) + sizeof(cf_placing) + sizeof(uint32_t)) +
           cf_residency_memory(model->n_moe, experts, n_slots, n_tier);
}

int cf_cache_create(cf_cache **out, const cf_cache_options *options, cf_err *err)
{
    cf_cache *c = calloc(1, sizeof *c);
    if (!c)
        return CF_FAIL(err, -ENOMEM, "out of memory for the expert cache");
    c->o = *options;
    c->n_slots = options->slots->shape.n_slots;
    c->n_moe = options->model->n_moe;
    c->experts = experts_most(options->model);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->arrival, NULL);
    list_init(&c->arrived);
    list_init(&c->waiting);
    int rc = 0;
    uint32_t landings = cf_landing_count(options->slots);
    c->slots = calloc(c->n_slots, sizeof *c->slots);
    c->placing = calloc(c->experts + 1, sizeof *c->placing);
    c->entries = calloc(c->experts + 1, sizeof *c->entries);
    c->order = calloc(c->experts + 1, sizeof *c->order);
    c->free_landings = calloc(landings + 1, sizeof *c->free_landings);
    if (!c->slots || !c->placing || !c->entries || !c->order || !c->free_landings) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for the tables of %u slots", c->n_slots);
        goto fail;
    }
    CF_TRY(cf_residency_create(&c->residency, c->n_moe, c->experts, c->n_slots,
                               options->slots->shape.n_tier, err));
    for (uint32_t i = 0; i < c->n_slots; i++) {
        struct slot *s = &c->slots[i];
        s->cache = c;
        s->entry = s->landing = NONE;
        s->req.done = slot_on_read;
        s->req.user = s;
    }
    for (uint32_t i = landings; i-- > 0 && !options->slots->shape.in_place;)
        c->free_landings[c->n_free_landings++] = i;
    cf_copier_fns fns = {slot_on_copy_submitted, slot_on_copy_finished, c};
    CF_TRY(cf_copier_create(&c->copier, options->gpu, options->slots, &fns,
                            options->timeline, err));
    *out = c;
    return 0;
fail:
    cf_cache_destroy(&c);
    return rc;
}

void cf_cache_destroy(cf_cache **cache)
{
    cf_cache *c = *cache;
    if (!c)
        return;
    cf_cache_abort(c);
    cf_copier_destroy(&c->copier);
    pthread_cond_destroy(&c->arrival);
    pthread_mutex_destroy(&c->lock);
    free(c->slots);
    free(c->placing);
    cf_residency_destroy(&c->residency);
    free(c->entries);
    free(c->order);
    free(c->free_landings);
    free(c);
    *cache = NULL;
}

void cf_cache_get_stats(const cf_cache *c, cf_cache_stats *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&c->lock;
    pthread_mutex_lock(lock);
    *out = c->stats;
    pthread_mutex_unlock(lock);
    out->copy_busy_ns = cf_copier_busy_ns(c->copier);
    out->evictions = cf_residency_evictions(c->residency);
}

bool cf_cache_holds(const cf_cache *c, uint32_t moe, uint32_t expert)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&c->lock;
    pthread_mutex_lock(lock);
    uint32_t slot = cf_residency_slot(c->residency, moe, expert);
    bool holds = slot != NONE && c->slots[slot].state == READY;
    pthread_mutex_unlock(lock);
    return holds;
}

bool cf_cache_holds_ram(const cf_cache *c, uint32_t moe, uint32_t expert)
{
    return cf_residency_slab(c->residency, moe, expert) != NONE;
}

/* The slots are as the directory says; between groups only. */
static const char *slots_verify(const cf_cache *c)
{
    for (uint32_t i = 0; i < c->n_slots; i++) {
        const struct slot *s = &c->slots[i];
        if (s->state == EMPTY && s->pins)
            return "invariant 3: an EMPTY slot is pinned";
        if (s->pins)
            return "invariant 4: a pin outlives its group";
        if (s->state != EMPTY && cf_residency_slot(c->residency, s->moe, s->expert) != i)
            return "invariant 2: a slot's record is elsewhere in the directory";
    }
    for (uint32_t m = 0; m < c->n_moe; m++)
        for (uint32_t e = 0; e < c->experts; e++) {
            uint32_t at = cf_residency_slot(c->residency, m, e);
            if (at != NONE && c->slots[at].state == EMPTY)
                return "invariant 2: the directory has a record in an EMPTY slot";
        }
    return NULL;
}

const char *cf_cache_verify(cf_cache *c)
{
    const char *verdict = cf_residency_verify(c->residency);
    pthread_mutex_lock(&c->lock);
    if (!verdict && !c->n_entries)
        verdict = slots_verify(c);
    pthread_mutex_unlock(&c->lock);
    for (uint32_t i = 0; i < c->n_moe && !verdict; i++)
        if (c->n_slots < 2 * c->o.model->moe[i].top_k)
            verdict = "invariant 7: fewer slots than 2 x top-k";
    return verdict;
}
