/* Routing that depends on more than a row's own scores: see router.h. */
#include "runtime/router.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/rng.h"

typedef struct scored {
    float score;
    uint32_t row;
} scored;

/* The best move of a row from one expert to another. */
typedef struct move {
    double gain;
    uint32_t row;
} move;

uint64_t cf_router_scratch(uint32_t rows, uint32_t experts, bool balanced)
{
    uint64_t n = experts, choose = rows * (sizeof(scored) + 2 * sizeof(float));
    uint64_t assign = n * n * sizeof(move) + n * (sizeof(double) + 2 * sizeof(uint32_t));
    return cf_max_u64(cf_max_u64(choose, n * sizeof(uint32_t)), balanced ? assign : 0);
}

static void choice_clear(const cf_choice *c)
{
    for (uint64_t i = 0; i < (uint64_t)c->rows * c->k; i++) {
        c->ids[i] = c->none;
        c->weights[i] = 0;
    }
}

void cf_router_capacity(const cf_choice *c, uint32_t capacity, void *scratch)
{
    uint32_t *counts = scratch;
    memset(counts, 0, c->experts * sizeof *counts);
    for (uint64_t r = 0; r < c->rows; r++) {
        uint32_t *ids = c->ids + r * c->k, kept = 0;
        float *weights = c->weights + r * c->k;
        for (uint32_t i = 0; i < c->k; i++) {
            bool full = ids[i] == c->none || (ids[i] < c->experts && counts[ids[i]]++ >= capacity);
            if (full)
                continue;
            ids[kept] = ids[i];
            weights[kept++] = weights[i];
        }
        for (; kept < c->k; kept++) {
            ids[kept] = c->none;
            weights[kept] = 0;
        }
    }
}

void cf_router_hash(const cf_choice *c, const int32_t *tokens, uint64_t seed, float scale)
{
    for (uint64_t r = 0; r < c->rows; r++) {
        uint32_t *ids = c->ids + r * c->k;
        cf_rng rng = {.state = seed + (uint64_t)tokens[r]};
        for (uint32_t n = 0; n < c->k;) {
            uint32_t id = (uint32_t)cf_rng_below(&rng, c->experts), at = 0;
            while (at < n && ids[at] < id)
                at++;
            if (at < n && ids[at] == id)
                continue;
            memmove(ids + at + 1, ids + at, (n - at) * sizeof *ids);
            ids[at] = id;
            n++;
        }
        for (uint32_t i = 0; i < c->k; i++)
            c->weights[r * c->k + i] = scale / (float)c->k;
    }
}

/* ---- experts choose ---- */

static int scored_before(const void *a, const void *b)
{
    const scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

static float logit_of(float v)
{
    return isnan(v) ? -INFINITY : v;
}

/* The largest logit of a row, and the sum of exp(logit - largest). */
static void softmax_of(const float *logits, uint32_t n, float *most, float *sum)
{
    *most = -INFINITY;
    *sum = 0;
    for (uint32_t e = 0; e < n; e++)
        *most = fmaxf(*most, logit_of(logits[e]));
    for (uint32_t e = 0; e<n && * most> - INFINITY; e++)
        *sum += expf(logit_of(logits[e]) - *most);
}

void cf_router_experts_choose(const cf_choice *c, const float *logits, uint32_t capacity,
                              float scale, void *scratch)
{
    scored *list = scratch;
    float *most = (float *)(void *)(list + c->rows), *sum = most + c->rows;
    choice_clear(c);
    for (uint64_t r = 0; r < c->rows; r++)
        softmax_of(logits + r * c->experts, c->experts, &most[r], &sum[r]);
    for (uint32_t e = 0; e < c->experts; e++) { /* ascending: so are the ids of each row */
        for (uint32_t r = 0; r < c->rows; r++) {
            float logit = logit_of(logits[(uint64_t)r * c->experts + e]);
            list[r] = (scored){sum[r] > 0 ? expf(logit - most[r]) / sum[r] : 0, r};
        }
        qsort(list, c->rows, sizeof *list, scored_before);
        for (uint32_t i = 0; i < capacity && i < c->rows; i++) {
            uint64_t at = (uint64_t)list[i].row * c->k;
            while (c->ids[at] != c->none)
                at++;
            c->ids[at] = e;
            c->weights[at] = list[i].score * scale;
        }
    }
}

/* ---- balanced ---- */

/* An assignment being made, row by row; it is the best of the rows so far all along. */
struct assignment {
    const cf_choice *c;
    const float *logits;
    move *moves;     /* [experts, experts]: the best row to take from one to the other */
    double *gain;    /* [experts] of the new row, through moves, to a place there */
    uint32_t *from;  /* [experts] where the last of those moves starts; none: the new row itself */
    uint32_t *count; /* [experts] rows there */
};

static double logit_at(const struct assignment *a, uint64_t row, uint32_t expert)
{
    float v = logit_of(a->logits[row * a->c->experts + expert]);
    return fmax(-1e30, fmin(1e30, (double)v));
}

static void moves_find(const struct assignment *a, uint32_t rows)
{
    uint32_t n = a->c->experts;
    for (uint64_t i = 0; i < (uint64_t)n * n; i++)
        a->moves[i] = (move){-INFINITY, 0};
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t e = a->c->ids[r];
        for (uint32_t f = 0; f < n; f++) {
            double gain = logit_at(a, r, f) - logit_at(a, r, e);
            move *m = &a->moves[(uint64_t)e * n + f];
            if (f != e && gain > m->gain)
                *m = (move){gain, r};
        }
    }
}

/* Longest paths from the new row; there is no cycle that gains, or the rows so far were not at
 * best. Rounding may pretend one: so at most `experts` rounds. */
static void gains_find(const struct assignment *a, uint32_t row)
{
    uint32_t n = a->c->experts;
    bool better = true;
    for (uint32_t e = 0; e < n; e++) {
        a->gain[e] = logit_at(a, row, e);
        a->from[e] = a->c->none;
    }
    for (uint32_t round = 1; round < n && better; round++) {
        better = false;
        for (uint32_t e = 0; e < n; e++)
            for (uint32_t f = 0; f < n; f++) {
                double gain = a->gain[e] + a->moves[(uint64_t)e * n + f].gain;
                if (gain > a->gain[f] + 1e-9 * (1 + fabs(a->gain[f]))) {
                    a->gain[f] = gain;
                    a->from[f] = e;
                    better = true;
                }
            }
    }
}

void cf_router_balanced(const cf_choice *c, const float *logits, float scale, void *scratch)
{
    uint32_t n = c->experts, most = (uint32_t)cf_ceil_div(c->rows, n);
    struct assignment a = {.c = c, .logits = logits, .moves = scratch};
    a.gain = (double *)(void *)(a.moves + (uint64_t)n * n);
    a.from = (uint32_t *)(void *)(a.gain + n);
    a.count = a.from + n;
    memset(a.count, 0, n * sizeof *a.count);
    for (uint32_t r = 0; r < c->rows; r++) {
        uint32_t end = c->none;
        moves_find(&a, r);
        gains_find(&a, r);
        for (uint32_t e = 0; e < n; e++)
            if (a.count[e] < most && (end == c->none || a.gain[e] > a.gain[end]))
                end = e;
        a.count[end]++;
        uint32_t steps = 0; /* a path has no expert twice */
        for (; a.from[end] != c->none && steps < n; end = a.from[end], steps++)
            c->ids[a.moves[(uint64_t)a.from[end] * n + end].row] = end;
        c->ids[r] = end;
    }
    for (uint64_t r = 0; r < c->rows; r++)
        c->weights[r] = scale / (1 + expf(-logits[r * n + c->ids[r]]));
}
