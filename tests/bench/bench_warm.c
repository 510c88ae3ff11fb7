/* What a history brings to the first tokens of the next run, on recorded traces.
 *
 *     bench_warm TRACE...
 *
 * Each trace is cut in two. What echo has learned of the first half (through a history file, as
 * --history keeps it) meets the second half with empty slots: not at all ("cold"), as it is
 * ("warm"), and with the likeliest records read into the slots before the first token ("filled"),
 * all slots or half of them. Printed: hit rates over the first 100 tokens of the second half and
 * over all of it, for slots for 5, 10, 25 and 50 % of the records, and how many records were read
 * ahead for how many misses less than warm. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/history.h"
#include "runtime/replay.h"
#include "runtime/residency.h"

enum { COLD, WARM, HALF_FILLED, FILLED, WAYS, FIRST_TOKENS = 100 };

static const char *const way_names[WAYS] = {"cold", "warm", "half filled", "filled"};

typedef struct score {
    uint64_t lookups[2], hits[2]; /* of the first tokens, of all */
    uint64_t filled;
} score;

typedef struct player {
    const cf_routing *t;
    cf_policy *policy;
    cf_residency *tier; /* NULL: learns only */
    cf_placing *placings;
    score *score;
} player;

static void die(const cf_err *err)
{
    fprintf(stderr, "bench_warm: %s\n", err->msg);
    exit(1);
}

static void chunks_play(player *p, uint64_t first, uint64_t end)
{
    const cf_routing *t = p->t;
    uint64_t tokens = 0;
    for (uint64_t c = first; c < end; c++) {
        const cf_routing_chunk *chunk = &t->chunks[c];
        cf_policy_chunk(p->policy, chunk->n_rows);
        for (uint32_t i = 0; i < chunk->n_groups; i++) {
            const cf_routing_group *g = &t->groups[chunk->first_group + i];
            for (uint32_t r = 0; r < g->n_rows; r++) {
                const cf_routed *row = &t->rows[g->first_row + r];
                cf_policy_choice(p->policy, g->moe, row->row, t->ids + row->first, row->k,
                                 t->weights ? t->weights + row->first : NULL);
            }
            if (!p->tier)
                continue;
            cf_residency_route(p->tier, p->policy, g->moe, t->ids + g->first_union, g->n_union,
                               p->placings, NULL);
            uint64_t hits = 0;
            for (uint32_t e = 0; e < g->n_union; e++)
                hits += p->placings[e].source == CF_FROM_VRAM;
            for (int k = tokens < FIRST_TOKENS ? 0 : 1; k < 2; k++) {
                p->score->lookups[k] += g->n_union;
                p->score->hits[k] += hits;
            }
        }
        tokens += chunk->n_rows;
    }
}

typedef struct record {
    double value;
    uint32_t moe, expert;
} record;

static int by_value(const void *a, const void *b)
{
    const record *x = a, *y = b;
    return x->value > y->value ? -1 : x->value < y->value;
}

/* The n likeliest records into empty slots. */
static void slots_fill(player *p, uint32_t n)
{
    const cf_routing *t = p->t;
    const cf_policy_view *v = cf_policy_get_view(p->policy);
    uint32_t experts = t->header.n_experts, total = t->n_moe * experts;
    record *list = calloc(total, sizeof *list);
    uint32_t *set = calloc(experts, sizeof *set);
    if (!list || !set)
        exit(1);
    for (uint32_t i = 0; i < total; i++)
        list[i] = (record){v->value[i], i / experts, i % experts};
    qsort(list, total, sizeof *list, by_value);
    for (uint32_t m = 0; m < t->n_moe; m++) {
        uint32_t k = 0;
        uint8_t in[CF_TRACE_MAX_EXPERTS] = {0};
        for (uint32_t i = 0; i < n; i++)
            if (list[i].moe == m)
                in[list[i].expert] = 1;
        for (uint32_t e = 0; e < experts; e++)
            if (in[e])
                set[k++] = e;
        if (k)
            cf_residency_route(p->tier, p->policy, m, set, k, p->placings, NULL);
    }
    p->score->filled = n;
    free(list);
    free(set);
}

static void second_half(const cf_routing *t, int way, const char *history, uint64_t half,
                        uint32_t slots, score *out)
{
    cf_err err = {0};
    uint32_t experts = t->header.n_experts;
    player p = {.t = t, .score = out, .placings = calloc(experts, sizeof(cf_placing))};
    *out = (score){0};
    if (!p.placings ||
        cf_policy_create(&p.policy, "echo", t->n_moe, experts, t->header.top_k, &err) < 0 ||
        cf_residency_create(&p.tier, t->n_moe, experts, slots, 0, &err) < 0)
        die(&err);
    if (way != COLD && cf_history_load(history, 1, "echo", p.policy, &err) != 0)
        die(&err);
    if (way >= HALF_FILLED)
        slots_fill(&p, way == FILLED ? slots : slots / 2);
    chunks_play(&p, half, t->n_chunks);
    cf_residency_destroy(&p.tier);
    cf_policy_destroy(&p.policy);
    free(p.placings);
}

static double percent(uint64_t a, uint64_t b)
{
    return b ? 100.0 * (double)a / (double)b : 0;
}

static void trace_run(const char *path, const char *history, double sums[4][WAYS][2])
{
    static const uint32_t shares[] = {5, 10, 25, 50};
    cf_err err = {0};
    cf_routing *t = NULL;
    player p = {0};
    if (cf_trace_read(&t, path, &err) < 0 ||
        cf_policy_create(&p.policy, "echo", t->n_moe, t->header.n_experts, t->header.top_k, &err) <
            0)
        die(&err);
    uint64_t half = t->n_chunks / 2;
    p.t = t;
    chunks_play(&p, 0, half);
    if (cf_history_save(history, 1, "echo", p.policy, &err) < 0)
        die(&err);
    cf_policy_destroy(&p.policy);
    printf("%s: %llu tokens learned from\n", path, (unsigned long long)half);
    for (int s = 0; s < 4; s++) {
        uint32_t slots = t->n_moe * t->header.n_experts * shares[s] / 100;
        score warm = {0};
        if (slots < cf_replay_min_slots(t))
            slots = cf_replay_min_slots(t);
        printf("  %2u %% (%5u slots):", shares[s], slots);
        for (int way = 0; way < WAYS; way++) {
            score r;
            second_half(t, way, history, half, slots, &r);
            if (way == WARM)
                warm = r;
            double first = percent(r.hits[0], r.lookups[0]), all = percent(r.hits[1], r.lookups[1]);
            printf("  %s %.2f %.2f", way_names[way], first, all);
            if (way >= HALF_FILLED)
                printf(" (%llu read, %lld misses less)", (unsigned long long)r.filled,
                       (long long)(r.hits[1] - warm.hits[1]));
            sums[s][way][0] += first;
            sums[s][way][1] += all;
        }
        printf("\n");
    }
    cf_routing_free(&t);
}

int main(int argc, char **argv)
{
    static double sums[4][WAYS][2];
    char history[] = "/tmp/bench_warm.XXXXXX";
    int fd = mkstemp(history);
    if (argc < 2 || fd < 0) {
        fprintf(stderr, "usage: bench_warm TRACE...\n");
        return 2;
    }
    close(fd);
    for (int i = 1; i < argc; i++)
        trace_run(argv[i], history, sums);
    printf("mean of the traces, first %d tokens / all:\n", FIRST_TOKENS);
    for (int s = 0; s < 4; s++) {
        for (int way = 0; way < WAYS; way++)
            printf("  %s %.2f / %.2f", way_names[way], sums[s][way][0] / (argc - 1),
                   sums[s][way][1] / (argc - 1));
        printf("\n");
    }
    unlink(history);
    return 0;
}
