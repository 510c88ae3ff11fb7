/* Guesses: records that the next layer will probably choose, read while the drive is idle.
 *
 * A guess is read to a place that no slot of the directory has (slots.h: n_guess of them), so that
 * it evicts nothing, and what is resident is the same with guesses and without: a function of the
 * plan alone. When the next group shows a guess to be right, its place and the slot that the
 * group's entry was given change roles (guess_adopt): READY, it is a hit; still being read, its
 * read is raised to a demand. A wrong guess is given up: at once when it was not asked of the drive
 * yet, and of one in flight nothing more is asked. Never in the way (invariant 5): the fetcher
 * serves guesses only while no demand is active; they leave CF_MIN_SLABS landing places to demands;
 * nobody waits for them. A layer whose guesses are wrong more often than right makes none. They are
 * still counted, against what is resident and what is then chosen, so that it begins again: by
 * counts, not by the clock, so that runs repeat.
 *
 * Threads: as expert_cache.c. */
#include <stdlib.h>

#include "runtime/expert_cache_internal.h"

/* Guesses before a layer's share is judged, and of how many it is the share. */
enum { SHARE_FEW = 16, SHARE_MANY = 64 };

int guesses_init(cf_cache *c, uint32_t max, cf_err *err)
{
    struct guesses *g = &c->guesses;
    uint32_t landings = cf_landing_count(c->o.slots);
    g->max = max;
    g->most_landings = landings > CF_MIN_SLABS ? landings - CF_MIN_SLABS : 0;
    g->list = calloc((size_t)max + 1, sizeof *g->list);
    g->free = calloc((size_t)max + 1, sizeof(struct slot *));
    g->share = calloc((size_t)c->n_moe + 1, sizeof *g->share);
    if (!g->list || !g->free || !g->share)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u guesses", max);
    while (g->n_free < max) {
        g->free[g->n_free] = &c->slots[c->n_slots + g->n_free];
        g->n_free++;
    }
    return 0;
}

void guesses_finish(cf_cache *c)
{
    free(c->guesses.list);
    free(c->guesses.free);
    free(c->guesses.share);
}

uint32_t cf_cache_guesses_max(const cf_cache *c)
{
    return c->o.prefetch ? c->guesses.max : 0;
}

/* ---- places ---- */

void slot_retire_when_idle(cf_cache *c, struct slot *s)
{
    if (!s->out || s->copies || s->state == READING || s->state == COPYING)
        return;
    s->out = false;
    s->state = EMPTY;
    c->guesses.free[c->guesses.n_free++] = s;
    guesses_start(c);
}

/* A place that no slot has any more. */
static void slot_retire(cf_cache *c, struct slot *s)
{
    s->out = true;
    slot_retire_when_idle(c, s);
}

static bool landing_take(cf_cache *c, uint32_t *landing)
{
    struct guesses *g = &c->guesses;
    if (c->waiting.head || !c->n_free_landings || g->n_landings >= g->most_landings)
        return false;
    *landing = c->free_landings[--c->n_free_landings];
    g->n_landings++;
    return true;
}

void guesses_start(cf_cache *c)
{
    struct guesses *g = &c->guesses;
    bool in_place = c->o.slots->shape.in_place;
    while (g->n_started < g->n && g->n_free) {
        struct slot *s = g->free[g->n_free - 1];
        uint32_t landing = (uint32_t)(s - c->slots);
        if (!in_place && !landing_take(c, &landing))
            return;
        g->n_free--;
        slot_key(c, s, g->moe, g->list[g->n_started].expert);
        s->guessed = true;
        s->guess_landing = !in_place;
        s->entry = NONE;
        s->state = READING;
        c->in_flight++;
        g->list[g->n_started++].place = s;
        cache_read_submit(c, s, landing, CF_FETCH_PREFETCH);
    }
}

/* ---- from guess to entry ---- */

bool guess_adopt(cf_cache *c, uint32_t index)
{
    struct entry *e = &c->entries[index];
    struct slot *s = e->guess, **slot = &c->at[c->placing[index].slot];
    e->guess = NULL;
    if (s->state == EMPTY) { /* it failed; as a demand it may not */
        slot_retire(c, s);
        return false;
    }
    struct slot *old = *slot;
    *slot = s;
    s->pins = 1;
    s->entry = index;
    c->guesses.n_landings -= s->guess_landing; /* a demand's from now on */
    s->guess_landing = false;
    if (s->usable)
        cache_arrive(c, s);
    else if (s->state == READING)
        cf_fetch_raise(c->o.fetch, &s->req);
    slot_retire(c, old);
    return true;
}

/* A guess that nobody wants. True: no byte of it was read. */
static bool guess_give_up(cf_cache *c, struct slot *s)
{
    bool unread = s->state == READING && cf_fetch_abandon(c->o.fetch, &s->req);
    if (unread) {
        c->in_flight--;
        s->state = EMPTY;
        cache_landing_free(c, s);
    }
    slot_retire(c, s);
    return unread;
}

void guesses_drop(cf_cache *c)
{
    struct guesses *g = &c->guesses;
    uint32_t n = g->n_started;
    c->stats.guesses_cancelled += g->on ? g->n - n : 0;
    g->n = g->n_started = 0;
    for (uint32_t i = 0; g->on && i < n; i++)
        *(guess_give_up(c, g->list[i].place) ? &c->stats.guesses_cancelled
                                             : &c->stats.guesses_wasted) += 1;
    for (uint32_t i = 0; i < c->n_entries; i++)
        if (c->entries[i].guess) {
            guess_give_up(c, c->entries[i].guess);
            c->entries[i].guess = NULL;
        }
}

static uint32_t entry_find(const cf_cache *c, uint32_t expert)
{
    for (uint32_t i = c->n_hits; i < c->n_entries; i++)
        if (c->placing[i].expert == expert)
            return i;
    return NONE;
}

static void share_count(struct guess_share *s, bool right)
{
    if (s->made == SHARE_MANY) {
        s->made /= 2;
        s->right /= 2;
    }
    s->made++;
    s->right += right;
}

static bool share_pays(const struct guess_share *s)
{
    return s->made < SHARE_FEW || 2 * s->right >= s->made;
}

uint32_t guesses_resolve(cf_cache *c)
{
    struct guesses *g = &c->guesses;
    cf_cache_stats *stats = &c->stats;
    uint32_t n = g->n, ready = 0;
    if (g->moe != c->moe) {
        guesses_drop(c);
        return 0;
    }
    g->n = g->n_started = 0; /* no more are started */
    for (uint32_t i = 0; i < n; i++) {
        struct slot *place = g->list[i].place;
        uint32_t entry = entry_find(c, g->list[i].expert);
        share_count(&g->share[c->moe], entry != NONE);
        if (!g->on)
            continue;
        if (entry == NONE) {
            bool unread = !place || guess_give_up(c, place);
            *(unread ? &stats->guesses_cancelled : &stats->guesses_wasted) += 1;
            continue;
        }
        cf_assert(c->placing[entry].source == CF_FROM_DRIVE);
        c->entries[entry].guess = place;
        bool is_ready = place && place->state == READY;
        stats->guesses_used++;
        stats->guesses_late += !is_ready;
        ready += is_ready;
    }
    return ready;
}

void cf_cache_guess(cf_cache *c, uint32_t moe, const uint32_t *experts, uint32_t n)
{
    struct guesses *g = &c->guesses;
    cf_assert(g->n == 0);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n && kept < cf_cache_guesses_max(c); i++)
        if (cf_residency_slot(c->residency, moe, experts[i]) == NONE &&
            cf_residency_slab(c->residency, moe, experts[i]) == NONE)
            g->list[kept++] = (struct guess){.expert = experts[i]};
    pthread_mutex_lock(&c->lock);
    g->moe = moe;
    g->on = share_pays(&g->share[moe]);
    g->n = kept;
    g->n_started = g->on ? 0 : kept;
    c->stats.guesses_made += g->on ? kept : 0;
    guesses_start(c);
    pthread_mutex_unlock(&c->lock);
}

/* Places are a slot's, a guess's, free, or on their way to be free; none is two of these. */
const char *guesses_verify(const cf_cache *c)
{
    const struct guesses *g = &c->guesses;
    uint32_t of_slots = 0, others = 0, free_ones = 0, guessed = 0;
    for (uint32_t i = 0; i < c->n_slots + g->max; i++) {
        const struct slot *s = &c->slots[i];
        uint32_t uses = 0;
        for (uint32_t j = 0; j < c->n_slots; j++)
            uses += c->at[j] == s;
        of_slots += uses;
        others += s->out;
        for (uint32_t j = 0; j < g->n_free; j++)
            uses += g->free[j] == s;
        for (uint32_t j = 0; g->on && j < g->n_started; j++)
            uses += g->list[j].place == s;
        if (uses + s->out != 1)
            return "invariant 5: a place has two uses, or none";
        if (s->pins && s->out)
            return "invariant 5: a place that is given up is pinned";
    }
    free_ones = g->n_free;
    guessed = g->on ? g->n_started : 0;
    if (of_slots != c->n_slots || of_slots + others + free_ones + guessed != c->n_slots + g->max)
        return "invariant 5: the count of places is wrong";
    return NULL;
}
