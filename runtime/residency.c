/* Residency: see residency.h. */
#include "runtime/residency.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = CF_NO_PLACE };

/* One slot or slab. */
struct place {
    uint32_t moe, expert; /* NONE while empty */
    uint64_t pinned;      /* by this group: of it, or about to leave for a slot; 0 = by none */
};

/* The least worthy of a layer's records in a tier that are not pinned. */
struct least {
    uint32_t expert; /* NONE: there is none */
    bool known;
    uint64_t version; /* of the policy's order, when it was found */
};

struct tier {
    struct place *places;
    uint32_t n, n_held, first_empty; /* no place before first_empty is empty */
    uint32_t *map;                   /* [n_moe, experts] -> place or NONE */
    struct least *least;             /* [n_moe] */
};

struct cf_residency {
    uint32_t n_moe, experts;
    struct tier vram, ram;
    uint32_t moe;   /* of the current group */
    uint64_t group; /* its number, from 1 */
    uint64_t evictions;
};

static size_t key_of(const cf_residency *r, uint32_t moe, uint32_t expert)
{
    return (size_t)moe * r->experts + expert;
}

/* `pinned`: 0 or the current group. */
static void place_fill(const cf_residency *r, struct tier *t, uint32_t at, uint32_t moe,
                       uint32_t expert, uint64_t pinned)
{
    t->places[at] = (struct place){moe, expert, pinned};
    t->map[key_of(r, moe, expert)] = at;
    t->n_held++;
    if (!pinned)
        t->least[moe].known = false;
}

static void place_empty(const cf_residency *r, struct tier *t, uint32_t at)
{
    struct place *p = &t->places[at];
    t->map[key_of(r, p->moe, p->expert)] = NONE;
    if (t->least[p->moe].expert == p->expert)
        t->least[p->moe].known = false;
    *p = (struct place){NONE, NONE, 0};
    t->n_held--;
    t->first_empty = at < t->first_empty ? at : t->first_empty;
}

static uint32_t empty_choose(struct tier *t)
{
    while (t->places[t->first_empty].moe != NONE)
        t->first_empty++;
    return t->first_empty;
}

static void least_find(const cf_residency *r, struct tier *t, const cf_policy_view *v, uint32_t moe)
{
    struct least *l = &t->least[moe];
    const uint32_t *map = t->map + key_of(r, moe, 0);
    const double *value = v->value + key_of(r, moe, 0);
    const uint64_t *last = v->last + key_of(r, moe, 0);
    *l = (struct least){.expert = NONE, .known = true, .version = v->version[moe]};
    cf_worth least = {0, 0};
    bool pins = moe == r->moe; /* only this layer's are */
    for (uint32_t e = 0; e < r->experts; e++) {
        if (map[e] == NONE || (pins && t->places[map[e]].pinned == r->group))
            continue;
        cf_worth w = {value[e], last[e]};
        if (l->expert == NONE || cf_worth_less(w, least)) {
            l->expert = e;
            least = w;
        }
    }
}

/* An empty place (lowest first), else the least worthy that is not pinned, else NONE. */
static uint32_t place_choose(const cf_residency *r, struct tier *t, const cf_policy *policy,
                             uint32_t now)
{
    const cf_policy_view *v = cf_policy_get_view(policy);
    uint32_t best = NONE;
    cf_worth least = {0, 0};
    if (t->n_held < t->n)
        return empty_choose(t);
    for (uint32_t m = 0; t->n && m < r->n_moe; m++) {
        struct least *l = &t->least[m];
        if (!l->known || l->version != v->version[m])
            least_find(r, t, v, m);
        if (l->expert == NONE)
            continue;
        size_t key = key_of(r, m, l->expert);
        uint32_t d = v->cyclic ? cf_policy_distance(v->layers, now, m) : 1;
        cf_worth w = {v->value[key] / d, v->last[key]};
        if (best == NONE || cf_worth_less(w, least)) {
            best = t->map[key];
            least = w;
        }
    }
    return best;
}

/* Where a record that loses its slot goes: a slab, or NONE. */
static uint32_t slab_choose(cf_residency *r, const cf_policy *policy, uint32_t now, uint32_t moe,
                            uint32_t expert)
{
    uint32_t at = place_choose(r, &r->ram, policy, now);
    if (at == NONE)
        return NONE;
    const struct place *p = &r->ram.places[at];
    if (p->moe == NONE)
        return at;
    cf_worth held = cf_policy_worth(policy, now, p->moe, p->expert);
    if (!cf_worth_less(held, cf_policy_worth(policy, now, moe, expert)))
        return NONE;
    place_empty(r, &r->ram, at);
    return at;
}

static void slot_vacate(cf_residency *r, const cf_policy *policy, uint32_t now, cf_placing *out)
{
    struct place *p = &r->vram.places[out->slot];
    if (p->moe == NONE)
        return;
    out->evicted_moe = p->moe;
    out->evicted_expert = p->expert;
    r->evictions++;
    place_empty(r, &r->vram, out->slot);
    out->demote_slab = slab_choose(r, policy, now, out->evicted_moe, out->evicted_expert);
    if (out->demote_slab != NONE)
        place_fill(r, &r->ram, out->demote_slab, out->evicted_moe, out->evicted_expert, 0);
}

/* Gives entry `at` of the group a slot. *next_giver: the group's entry that gives its own up next.
 */
static void entry_place(cf_residency *r, const cf_policy *policy, uint32_t moe, cf_placing *out,
                        uint32_t at, uint32_t *next_giver)
{
    cf_placing *e = &out[at];
    e->slot = place_choose(r, &r->vram, policy, moe);
    if (e->slot == NONE) {
        e->after = (*next_giver)++;
        e->slot = out[e->after].slot;
    }
    slot_vacate(r, policy, moe, e);
    if (e->source == CF_FROM_RAM)
        place_empty(r, &r->ram, e->slab);
    place_fill(r, &r->vram, e->slot, moe, e->expert, r->group);
}

static cf_source source_of(const cf_residency *r, size_t key)
{
    if (r->vram.map[key] != NONE)
        return CF_FROM_VRAM;
    return r->ram.n && r->ram.map[key] != NONE ? CF_FROM_RAM : CF_FROM_DRIVE;
}

/* Opens a group: the pins of the one before fall. */
static void group_begin(cf_residency *r, uint32_t moe)
{
    r->vram.least[r->moe].known = r->ram.least[r->moe].known = false;
    r->vram.least[moe].known = r->ram.least[moe].known = false;
    r->moe = moe;
    r->group++;
}

void cf_residency_route(cf_residency *r, const cf_policy *policy, uint32_t moe,
                        const uint32_t *experts, uint32_t n, cf_placing *out, uint32_t *order)
{
    const cf_policy_view *v = cf_policy_get_view(policy);
    cf_assert(v->layers == r->n_moe && v->experts == r->experts && moe < r->n_moe);
    group_begin(r, moe);
    uint32_t at = 0, first = 0;
    for (int source = CF_FROM_VRAM; source <= CF_FROM_DRIVE; source++) {
        for (uint32_t i = 0; i < n; i++) {
            size_t key = key_of(r, moe, experts[i]);
            if (source_of(r, key) != (cf_source)source)
                continue;
            cf_placing *e = &out[at];
            *e = (cf_placing){.expert = experts[i],
                              .source = (cf_source)source,
                              .slot = NONE,
                              .slab = NONE,
                              .after = NONE,
                              .evicted_moe = NONE,
                              .evicted_expert = NONE,
                              .demote_slab = NONE};
            if (source == CF_FROM_VRAM) {
                e->slot = r->vram.map[key];
                r->vram.places[e->slot].pinned = r->group;
            } else if (source == CF_FROM_RAM) {
                e->slab = r->ram.map[key];
                r->ram.places[e->slab].pinned = r->group;
            }
            if (order)
                order[i] = at;
            at++;
        }
        if (source == CF_FROM_VRAM)
            first = at;
    }
    uint32_t giver = 0;
    for (uint32_t i = first; i < n; i++)
        entry_place(r, policy, moe, out, i, &giver);
}

void cf_residency_drop(cf_residency *r, uint32_t moe, uint32_t expert)
{
    size_t key = key_of(r, moe, expert);
    if (r->vram.map[key] != NONE)
        place_empty(r, &r->vram, r->vram.map[key]);
    if (r->ram.n && r->ram.map[key] != NONE)
        place_empty(r, &r->ram, r->ram.map[key]);
}

uint32_t cf_residency_slot(const cf_residency *r, uint32_t moe, uint32_t expert)
{
    return r->vram.map[key_of(r, moe, expert)];
}

uint32_t cf_residency_slab(const cf_residency *r, uint32_t moe, uint32_t expert)
{
    return r->ram.n ? r->ram.map[key_of(r, moe, expert)] : NONE;
}

uint64_t cf_residency_evictions(const cf_residency *r)
{
    return r->evictions;
}

/* ---- life ---- */

static int tier_init(struct tier *t, uint32_t n_moe, uint32_t experts, uint32_t n)
{
    size_t keys = (size_t)n_moe * experts + 1;
    t->n = n;
    t->least = calloc((size_t)n_moe + 1, sizeof *t->least);
    if (!t->least)
        return -ENOMEM;
    if (!n)
        return 0;
    t->places = malloc(n * sizeof *t->places);
    t->map = malloc(keys * sizeof *t->map);
    if (!t->places || !t->map)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        t->places[i] = (struct place){NONE, NONE, 0};
    memset(t->map, 0xff, keys * sizeof *t->map);
    return 0;
}

static void tier_finish(struct tier *t)
{
    free(t->places);
    free(t->map);
    free(t->least);
}

uint64_t cf_residency_memory(uint32_t n_moe, uint32_t experts, uint32_t n_slots, uint32_t n_slabs)
{
    uint64_t maps = ((uint64_t)n_moe * experts + 1) * sizeof(uint32_t);
    return sizeof(cf_residency) + (n_slabs ? 2 : 1) * maps +
           2 * ((uint64_t)n_moe + 1) * sizeof(struct least) +
           ((uint64_t)n_slots + n_slabs) * sizeof(struct place);
}

int cf_residency_create(cf_residency **out, uint32_t n_moe, uint32_t experts, uint32_t n_slots,
                        uint32_t n_slabs, cf_err *err)
{
    cf_residency *r = calloc(1, sizeof *r);
    if (!r)
        return CF_FAIL(err, -ENOMEM, "out of memory for the cache's directory");
    r->n_moe = n_moe;
    r->experts = experts;
    if (tier_init(&r->vram, n_moe, experts, n_slots) < 0 ||
        tier_init(&r->ram, n_moe, experts, n_slabs) < 0) {
        cf_residency_destroy(&r);
        return CF_FAIL(err, -ENOMEM, "out of memory for a directory of %u slots and %u slabs",
                       n_slots, n_slabs);
    }
    *out = r;
    return 0;
}

void cf_residency_destroy(cf_residency **residency)
{
    cf_residency *r = *residency;
    if (!r)
        return;
    tier_finish(&r->vram);
    tier_finish(&r->ram);
    free(r);
    *residency = NULL;
}

static const char *tier_verify(const cf_residency *r, const struct tier *t)
{
    uint32_t held = 0, mapped = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        const struct place *p = &t->places[i];
        held += p->moe != NONE;
        if (p->moe == NONE && p->pinned != 0)
            return "invariant 3: an empty place is pinned";
        if (p->moe != NONE && t->map[key_of(r, p->moe, p->expert)] != i)
            return "invariant 2: a place's record is not mapped to it";
    }
    for (size_t k = 0; t->n && k < (size_t)r->n_moe * r->experts; k++)
        mapped += t->map[k] != NONE;
    if (held != t->n_held || (t->n_held < t->n && t->n && t->first_empty >= t->n))
        return "invariant 2: the count of records is wrong";
    return held == mapped ? NULL : "invariant 2: map and places disagree in number";
}

const char *cf_residency_verify(const cf_residency *r)
{
    const char *verdict = tier_verify(r, &r->vram);
    if (!verdict)
        verdict = tier_verify(r, &r->ram);
    for (size_t k = 0; !verdict && r->ram.n && k < (size_t)r->n_moe * r->experts; k++)
        if (r->vram.map[k] != NONE && r->ram.map[k] != NONE)
            verdict = "invariant 2: a record is in both tiers";
    return verdict;
}
