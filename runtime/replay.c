/* Replay: see replay.h. */
#include "runtime/replay.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/residency.h"

enum { NONE = CF_NO_PLACE };

cf_phase cf_replay_headline(const cf_routing *t)
{
    if (t->tokens[CF_PHASE_DECODE])
        return CF_PHASE_DECODE;
    return t->tokens[CF_PHASE_TEXT] ? CF_PHASE_TEXT : CF_PHASE_PROMPT;
}

/* ---- counts ---- */

static int counts_init(const cf_routing *t, cf_replay *list, uint32_t n, cf_err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        list[i] = (cf_replay){.slots = list[i].slots, .slabs = list[i].slabs};
        list[i].layers = calloc(3 * (size_t)t->n_moe, sizeof *list[i].layers);
        if (!list[i].layers)
            return CF_FAIL(err, -ENOMEM, "out of memory for the counts of %u layers", t->n_moe);
        if (list[i].slots < cf_replay_min_slots(t))
            return CF_FAIL(err, CF_ELIMIT,
                           "%u slots are too few: %u, twice the %u experts chosen "
                           "per token, are the least",
                           list[i].slots, cf_replay_min_slots(t), t->header.top_k);
    }
    return 0;
}

static void counts_add(cf_replay_counts *to, const cf_replay_counts *c)
{
    to->lookups += c->lookups;
    to->vram_hits += c->vram_hits;
    to->ram_hits += c->ram_hits;
    to->misses += c->misses;
    to->evictions += c->evictions;
}

static void group_count(cf_replay *r, uint32_t n_moe, uint8_t phase, uint32_t moe,
                        const cf_replay_counts *c)
{
    counts_add(&r->phase[phase], c);
    counts_add(&r->all, c);
    counts_add(&r->layers[(size_t)phase * n_moe + moe], c);
}

void cf_replay_finish(cf_replay *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        free(list[i].layers);
        list[i].layers = NULL;
    }
}

/* ---- policies ---- */

typedef struct player {
    const cf_routing *t;
    cf_policy *policy;
    cf_residency **tiers; /* [n] */
    cf_replay *list;
    uint32_t n;
    cf_placing *placings; /* [n_experts] */
} player;

static int player_open(player *p, const char *policy, cf_err *err)
{
    const cf_routing *t = p->t;
    uint32_t experts = t->header.n_experts;
    int rc;
    p->placings = calloc(experts, sizeof *p->placings);
    p->tiers = calloc(p->n + 1, sizeof *p->tiers);
    if (!p->placings || !p->tiers)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory to replay %u sizes", p->n));
    CF_TRY(cf_policy_create(&p->policy, policy, t->n_moe, experts, t->header.top_k, err));
    for (uint32_t i = 0; i < p->n; i++) {
        /* More places than records are never filled. */
        uint64_t records = (uint64_t)t->n_moe * experts;
        uint32_t most = (uint32_t)records;
        uint32_t slots = p->list[i].slots, slabs = p->list[i].slabs;
        CF_TRY(cf_residency_create(&p->tiers[i], t->n_moe, experts, slots < most ? slots : most,
                                   slabs < most ? slabs : most, err));
    }
fail:
    return rc;
}

static void player_close(player *p)
{
    for (uint32_t i = 0; p->tiers && i < p->n; i++)
        cf_residency_destroy(&p->tiers[i]);
    cf_policy_destroy(&p->policy);
    free(p->tiers);
    free(p->placings);
}

static void group_play(player *p, const cf_routing_group *g, uint8_t phase)
{
    const cf_routing *t = p->t;
    for (uint32_t i = 0; i < g->n_rows; i++) {
        const cf_routed *r = &t->rows[g->first_row + i];
        cf_policy_choice(p->policy, g->moe, r->row, t->ids + r->first, r->k,
                         t->weights ? t->weights + r->first : NULL);
    }
    for (uint32_t i = 0; i < p->n; i++) {
        cf_replay_counts c = {.lookups = g->n_union};
        uint64_t before = cf_residency_evictions(p->tiers[i]);
        cf_residency_route(p->tiers[i], p->policy, g->moe, t->ids + g->first_union, g->n_union,
                           p->placings, NULL);
        for (uint32_t e = 0; e < g->n_union; e++) {
            c.vram_hits += p->placings[e].source == CF_FROM_VRAM;
            c.ram_hits += p->placings[e].source == CF_FROM_RAM;
        }
        c.misses = c.lookups - c.vram_hits - c.ram_hits;
        c.evictions = cf_residency_evictions(p->tiers[i]) - before;
        group_count(&p->list[i], t->n_moe, phase, g->moe, &c);
    }
}

int cf_replay_run(const cf_routing *t, const char *policy, cf_replay *list, uint32_t n, cf_err *err)
{
    int rc;
    player p = {.t = t, .list = list, .n = n};
    CF_TRY(counts_init(t, list, n, err));
    CF_TRY(player_open(&p, policy, err));
    for (uint64_t c = 0; c < t->n_chunks; c++) {
        const cf_routing_chunk *chunk = &t->chunks[c];
        cf_policy_chunk(p.policy, chunk->n_rows);
        for (uint32_t g = 0; g < chunk->n_groups; g++)
            group_play(&p, &t->groups[chunk->first_group + g], chunk->phase);
    }
fail:
    player_close(&p);
    if (rc < 0)
        cf_replay_finish(list, n);
    return rc;
}

/* ---- MIN ---- */

/* A resident and the access (number of a union's entry) that uses it next. */
struct due {
    uint64_t next;
    uint32_t key;
};

/* Residents by farthest next use. Entries are not taken out when a record is used or given up:
 * one is valid while resident[key] names its next use. */
struct heap {
    struct due *list;
    uint64_t n, size;
};

static int heap_push(struct heap *h, struct due d, cf_err *err)
{
    if (h->n == h->size) {
        uint64_t size = h->size ? 2 * h->size : 4096;
        struct due *grown = realloc(h->list, size * sizeof *grown);
        if (!grown)
            return CF_FAIL(err, -ENOMEM, "out of memory for MIN over %llu accesses",
                           (unsigned long long)size);
        h->list = grown;
        h->size = size;
    }
    uint64_t i = h->n++;
    for (; i && h->list[(i - 1) / 2].next < d.next; i = (i - 1) / 2)
        h->list[i] = h->list[(i - 1) / 2];
    h->list[i] = d;
    return 0;
}

static struct due heap_pop(struct heap *h)
{
    struct due top = h->list[0], last = h->list[--h->n];
    uint64_t i = 0;
    for (;;) {
        uint64_t child = 2 * i + 1;
        if (child >= h->n)
            break;
        if (child + 1 < h->n && h->list[child + 1].next > h->list[child].next)
            child++;
        if (h->list[child].next <= last.next)
            break;
        h->list[i] = h->list[child];
        i = child;
    }
    h->list[i] = last;
    return top;
}

/* next[i] for each entry i of all unions, in order of access: the entry that uses its record next;
 * never: n_accesses + its key, so that all are distinct. */
static int next_uses(const cf_routing *t, uint64_t **out, uint64_t *n, cf_err *err)
{
    uint64_t keys = (uint64_t)t->n_moe * t->header.n_experts, at = 0;
    for (uint64_t g = 0; g < t->n_groups; g++)
        at += t->groups[g].n_union;
    *n = at;
    uint64_t *next = malloc((at + 1) * sizeof *next), *coming = malloc(keys * sizeof *coming);
    if (!next || !coming) {
        free(next);
        free(coming);
        return CF_FAIL(err, -ENOMEM, "out of memory for MIN over %llu accesses",
                       (unsigned long long)at);
    }
    for (uint64_t k = 0; k < keys; k++)
        coming[k] = *n + k;
    for (uint64_t g = t->n_groups; g-- > 0;) {
        const cf_routing_group *group = &t->groups[g];
        for (uint32_t i = group->n_union; i-- > 0;) {
            uint64_t key =
                (uint64_t)group->moe * t->header.n_experts + t->ids[group->first_union + i];
            next[--at] = coming[key];
            coming[key] = at;
        }
    }
    free(coming);
    *out = next;
    return 0;
}

typedef struct min_sim {
    const cf_routing *t;
    const uint64_t *next; /* [accesses] */
    uint64_t *resident;   /* [keys] next use, or UINT64_MAX: not resident */
    uint64_t held, size;
    struct heap heap;
} min_sim;

/* Takes one record out. The current group's records are not in the heap yet; when they alone fill
 * the cache, the group's earlier ones give way in order. */
static bool min_evict(min_sim *s)
{
    while (s->heap.n) {
        struct due d = heap_pop(&s->heap);
        if (s->resident[d.key] != d.next)
            continue;
        s->resident[d.key] = UINT64_MAX;
        s->held--;
        return true;
    }
    return false;
}

/* at: number of the group's first access. */
static int min_group(min_sim *s, const cf_routing_group *g, uint64_t at, cf_replay_counts *c,
                     cf_err *err)
{
    const uint32_t *ids = s->t->ids + g->first_union;
    uint64_t base = (uint64_t)g->moe * s->t->header.n_experts;
    uint32_t giver = 0;
    *c = (cf_replay_counts){.lookups = g->n_union};
    for (int pass = 0; pass < 2; pass++) /* residents first, so that they are out of reach */
        for (uint32_t i = 0; i < g->n_union; i++) {
            uint64_t key = base + ids[i], next = s->next[at + i];
            bool hit = s->resident[key] == at + i;
            if (pass == 0 && hit) {
                s->resident[key] = next;
                c->vram_hits++;
            }
            if (pass == 0 || s->resident[key] != UINT64_MAX)
                continue;
            if (s->held == s->size && min_evict(s)) {
                c->evictions++;
            } else if (s->held == s->size) {
                while (s->resident[base + ids[giver]] == UINT64_MAX)
                    giver++;
                s->resident[base + ids[giver++]] = UINT64_MAX;
                s->held--;
                c->evictions++;
            }
            s->resident[key] = next;
            s->held++;
        }
    c->misses = c->lookups - c->vram_hits;
    for (uint32_t i = 0; i < g->n_union; i++) {
        uint64_t next = s->resident[base + ids[i]];
        int rc = next == UINT64_MAX
                     ? 0
                     : heap_push(&s->heap, (struct due){next, (uint32_t)(base + ids[i])}, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int min_play(min_sim *s, cf_replay *r, cf_err *err)
{
    const cf_routing *t = s->t;
    uint64_t keys = (uint64_t)t->n_moe * t->header.n_experts, at = 0;
    s->size = (uint64_t)r->slots + r->slabs;
    s->held = s->heap.n = 0;
    for (uint64_t k = 0; k < keys; k++)
        s->resident[k] = UINT64_MAX;
    for (uint64_t i = 0; i < t->n_chunks; i++) {
        const cf_routing_chunk *chunk = &t->chunks[i];
        for (uint32_t j = 0; j < chunk->n_groups; j++) {
            const cf_routing_group *g = &t->groups[chunk->first_group + j];
            cf_replay_counts c;
            int rc = min_group(s, g, at, &c, err);
            if (rc < 0)
                return rc;
            group_count(r, t->n_moe, chunk->phase, g->moe, &c);
            at += g->n_union;
        }
    }
    return 0;
}

int cf_replay_min(const cf_routing *t, cf_replay *list, uint32_t n, cf_err *err)
{
    uint64_t *next = NULL, accesses;
    min_sim s = {.t = t};
    int rc;
    CF_TRY(counts_init(t, list, n, err));
    CF_TRY(next_uses(t, &next, &accesses, err));
    s.next = next;
    s.resident = malloc((size_t)t->n_moe * t->header.n_experts * sizeof *s.resident);
    if (!s.resident)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for MIN over %u layers", t->n_moe));
    for (uint32_t i = 0; i < n; i++)
        CF_TRY(min_play(&s, &list[i], err));
fail:
    free(next);
    free(s.resident);
    free(s.heap.list);
    if (rc < 0)
        cf_replay_finish(list, n);
    return rc;
}

int cf_replay_first_uses(const cf_routing *t, uint64_t uses[3], cf_err *err)
{
    uint8_t *seen = calloc((size_t)t->n_moe * t->header.n_experts, 1);
    if (!seen)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u layers", t->n_moe);
    memset(uses, 0, 3 * sizeof *uses);
    for (uint64_t i = 0; i < t->n_rows; i++) {
        const cf_routed *r = &t->rows[i];
        for (uint32_t j = 0; j < r->k; j++) {
            uint8_t *s = &seen[(size_t)r->moe * t->header.n_experts + t->ids[r->first + j]];
            uses[r->phase] += !*s;
            *s = 1;
        }
    }
    free(seen);
    return 0;
}
