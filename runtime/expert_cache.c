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
 *  5. A guess (expert_guess.c) is read to a place of its own: it evicts nothing and delays no demand.
 *  6. A failed read returns the slot to EMPTY and reaches the waiter once.
 *  7. slots >= 2 x top-k.
 *  8. What is in which place is a function of the plan: lookups and victims are decided in
 *     cf_cache_route, in plan order, by residency.c, which knows neither clock nor file.
 *
 * A group's decisions are carried out in its order of processing. An entry that takes over the slot
 * of an earlier entry of the same group (residency.h: `after`) waits until the device is done with
 * that entry: never for another one, however late it is.
 *
 * The directory's slots are places in memory by way of `at`: when a record that was guessed is wanted,
 * its place becomes the slot's, and what was the slot's place is free for the next guess.
 *
 * Locking: `lock` guards slot states, the arrival list, the landing places and the stall clocks.
 * The group and the directory belong to the engine thread. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/expert_cache_internal.h"

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

void cache_read_submit(cf_cache *c, struct slot *s, uint32_t landing, cf_fetch_class cls)
{
    s->landing = landing;
    s->req.slab = cf_landing_host(c->o.slots, landing);
    s->req.region = (int32_t)cf_landing_region(c->o.slots, landing);
    /* The bytes of the landing place change from here on: no device work may still read them. */
    cf_gpu_host_write(cf_landing_span(c->o.slots, landing));
    cf_fetch_req *req = &s->req;
    cf_fetch_submit(c->o.fetch, &req, 1, cls);
}

static void slot_lay_out(const cf_cache *c, struct slot *s)
{
    const cf_moe_def *def = &c->o.model->moe[s->moe];
    cf_moe_layout(def, s->expert, c->o.files->align, &s->layout);
    if (c->o.slots->shape.in_place)
        for (uint32_t i = 0; i < s->layout.n_pieces; i++)
            s->piece_off[i] = s->layout.pieces[i].off;
    else
        cf_copy_place(&s->layout, s->piece_off);
    s->req.runs = s->layout.runs;
    s->req.n_runs = s->layout.n_runs;
}

void slot_key(cf_cache *c, struct slot *s, uint32_t moe, uint32_t expert)
{
    s->moe = moe;
    s->expert = expert;
    s->guessed = s->usable = false;
    slot_lay_out(c, s);
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

/* Whoever waits for anything to change looks again, also when the slot was nobody's. */
void cache_arrive(cf_cache *c, struct slot *s)
{
    if (s->entry != NONE)
        list_push(&c->arrived, s);
    pthread_cond_signal(&c->arrival);
}

void cache_landing_free(cf_cache *c, struct slot *s)
{
    if (c->o.slots->shape.in_place)
        return;
    c->guesses.n_landings -= s->guess_landing;
    s->guess_landing = false;
    struct slot *next = list_pop(&c->waiting);
    if (next)
        cache_read_submit(c, next, s->landing, CF_FETCH_DEMAND);
    else
        c->free_landings[c->n_free_landings++] = s->landing;
    s->landing = NONE;
    guesses_start(c);
}

/* READING (or COPYING, where its check or unpacking failed) -> EMPTY, reported through the request's
 * status. The lock is held; the directory learns of it on the engine thread. */
static void slot_read_failed(cf_cache *c, struct slot *s)
{
    s->state = EMPTY;
    s->pins = 0;
    cache_landing_free(c, s);
    cache_arrive(c, s);
    slot_retire_when_idle(c, s);
}

static void slot_show_read(cf_cache *c, const struct slot *s)
{
    if (!cf_timeline_on(c->o.timeline))
        return;
    cf_timeline_event e = {.begin_ns = s->req.begin_ns,
                           .end_ns = s->req.end_ns,
                           .name = s->guessed ? "guess" : "record",
                           .expert = s->expert,
                           .layer = (uint16_t)c->o.model->moe[s->moe].layer,
                           .track = CF_TRACK_READS};
    for (uint32_t i = 0; i < s->layout.n_runs; i++)
        e.bytes += s->layout.runs[i].bytes;
    cf_timeline_add(c->o.timeline, &e);
}

/* The landing place holds the record's pieces: COPYING, or READY in place. The lock is held. */
static void slot_landed(cf_cache *c, struct slot *s)
{
    bool in_place = c->o.slots->shape.in_place;
    if (in_place && !cf_layout_unsettled(&s->layout)) {
        s->state = READY;
        s->usable = true;
        s->ready = (cf_gpu_point){CF_STREAM_TRANSFER, 0};
        cache_arrive(c, s);
        slot_retire_when_idle(c, s);
    } else {
        s->state = COPYING;
        copy_push(c, &s->fill, in_place ? CF_COPY_SETTLE : CF_COPY_FILL, s, s->landing);
    }
}

/* A record is checked, and unpacked in its landing place. On a worker. */
static void slot_on_unpacked(cf_unpack_job *job, void *user)
{
    struct slot *s = user;
    cf_cache *c = s->cache;
    pthread_mutex_lock(&c->lock);
    c->in_flight--;
    s->copies--;
    if (job->status < 0) {
        s->req.status = CF_FAIL(&s->req.err, job->status, "layer %u, expert %u: %s",
                                c->o.model->moe[s->moe].layer, s->expert, job->err.msg);
        slot_read_failed(c, s);
    } else {
        slot_landed(c, s);
    }
    pthread_cond_signal(&c->arrival);
    pthread_mutex_unlock(&c->lock);
}

/* READING -> COPYING, or READY in place. On the I/O thread. */
static void slot_on_read(cf_fetch_req *req, void *user)
{
    struct slot *s = user;
    cf_cache *c = s->cache;
    const cf_pack *pack = c->o.model->pack;
    pthread_mutex_lock(&c->lock);
    c->in_flight--;
    slot_show_read(c, s);
    if (req->status < 0) {
        slot_read_failed(c, s);
    } else if (c->unpack) {
        s->state = COPYING;
        s->copies++;
        c->in_flight++;
        s->unpack = (cf_unpack_job){.layout = &s->layout, .slab = req->slab,
                                    .sums = pack ? &pack->sums : NULL, .files = c->o.files,
                                    .done = slot_on_unpacked, .user = s};
        cf_unpack_push(c->unpack, &s->unpack);
    } else {
        slot_landed(c, s);
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
    s->usable = true;
    if (job->kind == CF_COPY_SETTLE) {
        s->state = READY;
        s->copies--;
        c->in_flight--;
    }
    cache_arrive(c, s);
    slot_retire_when_idle(c, s);
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
        cache_landing_free(c, s);
    slot_retire_when_idle(c, s);
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
    struct slot *s = c->at[p->slot];
    c->entries[index].started = true;
    if (p->evicted_moe != NONE)
        slot_evict(c, s, p->demote_slab);
    cf_assert(s->state == EMPTY && !s->pins);
    if (c->entries[index].guess && guess_adopt(c, index))
        return;
    slot_key(c, s, c->moe, p->expert);
    s->pins = 1;
    s->entry = index;
    if (p->source == CF_FROM_RAM) {
        s->state = COPYING;
        copy_push(c, &s->fill, CF_COPY_RAISE, s, p->slab);
        return;
    }
    s->state = READING;
    c->in_flight++;
    if (c->o.slots->shape.in_place)
        cache_read_submit(c, s, slot_index(c, s), CF_FETCH_DEMAND);
    else if (c->n_free_landings)
        cache_read_submit(c, s, c->free_landings[--c->n_free_landings], CF_FETCH_DEMAND);
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
        counts->evictions += p->evicted_moe != NONE;
        if (p->source == CF_FROM_VRAM)
            c->at[p->slot]->pins++;
    }
    c->n_hits = c->n_started = counts->hits;
    uint32_t ready = guesses_resolve(c);
    counts->hits += ready;
    counts->misses -= ready;
    pthread_mutex_unlock(&c->lock);
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
    const struct slot *s = c->at[placing->slot];
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
        c->at[c->placing[c->n_started].slot]->pins--;
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
                      c->at[c->placing[i].slot]->state == READING;
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
    const struct slot *s = c->at[c->placing[index].slot];
    return s->expert == c->placing[index].expert && s->moe == c->moe;
}

void cf_cache_end(cf_cache *c)
{
    pthread_mutex_lock(&c->lock);
    cf_assert(c->n_taken == c->n_entries);
    for (uint32_t i = 0; i < c->n_entries; i++) {
        cf_assert(c->entries[i].used);
        if (entry_holds_slot(c, i))
            c->at[c->placing[i].slot]->pins--;
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
        struct slot *s = c->at[p->slot];
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
    guesses_drop(c);
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
        c->at[c->placing[i].slot]->entry = NONE;
        c->at[c->placing[i].slot]->pins = 0;
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

bool cf_cache_unpacks(const cf_model *model)
{
    bool packed = model->pack != NULL;
    for (uint32_t i = 0; i < model->n_moe; i++)
        packed |= model->moe[i].unpacked_bytes > 0;
    return packed;
}

/* What joining any record takes. */
static uint64_t unpack_scratch(const cf_model *model)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < model->n_moe; i++)
        most = cf_max_u64(most, cf_slices_scratch(&model->moe[i].slices));
    return most;
}

uint64_t cf_cache_memory(const cf_model *model, uint32_t n_slots, uint32_t n_tier)
{
    uint32_t experts = experts_most(model);
    return (cf_cache_unpacks(model) ? cf_unpack_memory(0, unpack_scratch(model)) : 0) +
           n_slots * (uint64_t)(sizeof(struct slot) + 2 * sizeof(struct slot *)) +
           model->n_moe * (uint64_t)sizeof(struct guess_share) +
           2 * CF_ROUTE_MAX_K * sizeof(struct guess) +
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
    uint32_t n_guess = options->slots->shape.n_guess, n_places = c->n_slots + n_guess;
    c->slots = calloc(n_places, sizeof *c->slots);
    c->at = calloc(c->n_slots, sizeof(struct slot *));
    c->placing = calloc(c->experts + 1, sizeof *c->placing);
    c->entries = calloc(c->experts + 1, sizeof *c->entries);
    c->order = calloc(c->experts + 1, sizeof *c->order);
    c->free_landings = calloc(landings + 1, sizeof *c->free_landings);
    if (!c->slots || !c->at || !c->placing || !c->entries || !c->order || !c->free_landings) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for the tables of %u slots", c->n_slots);
        goto fail;
    }
    CF_TRY(cf_residency_create(&c->residency, c->n_moe, c->experts, c->n_slots,
                               options->slots->shape.n_tier, err));
    CF_TRY(guesses_init(c, n_guess, err));
    for (uint32_t i = 0; i < n_places; i++) {
        struct slot *s = &c->slots[i];
        if (i < c->n_slots)
            c->at[i] = s;
        s->cache = c;
        s->entry = s->landing = NONE;
        s->req.done = slot_on_read;
        s->req.user = s;
    }
    for (uint32_t i = landings; i-- > 0 && !options->slots->shape.in_place;)
        c->free_landings[c->n_free_landings++] = i;
    if (cf_cache_unpacks(options->model))
        CF_TRY(cf_unpack_create(&c->unpack, options->unpack_threads,
                                unpack_scratch(options->model), err));
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
    cf_unpack_destroy(&c->unpack);
    cf_copier_destroy(&c->copier);
    pthread_cond_destroy(&c->arrival);
    pthread_mutex_destroy(&c->lock);
    guesses_finish(c);
    free(c->slots);
    free(c->at);
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

cf_copier *cf_cache_copier(cf_cache *c)
{
    return c->copier;
}

bool cf_cache_holds(const cf_cache *c, uint32_t moe, uint32_t expert)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&c->lock;
    pthread_mutex_lock(lock);
    uint32_t slot = cf_residency_slot(c->residency, moe, expert);
    bool holds = slot != NONE && c->at[slot]->state == READY;
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
        const struct slot *s = c->at[i];
        if (s->state == EMPTY && s->pins)
            return "invariant 3: an EMPTY slot is pinned";
        if (s->pins)
            return "invariant 4: a pin outlives its group";
        if (s->out)
            return "invariant 5: a slot's place is given up";
        if (s->state != EMPTY && cf_residency_slot(c->residency, s->moe, s->expert) != i)
            return "invariant 2: a slot's record is elsewhere in the directory";
    }
    for (uint32_t m = 0; m < c->n_moe; m++)
        for (uint32_t e = 0; e < c->experts; e++) {
            uint32_t at = cf_residency_slot(c->residency, m, e);
            if (at != NONE && c->at[at]->state == EMPTY)
                return "invariant 2: the directory has a record in an EMPTY slot";
        }
    return guesses_verify(c);
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
