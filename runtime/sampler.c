/* Sampler: see sampler.h for the order of the steps.
 *
 * Candidates live in a binary heap (largest logit first, ties to the lower id), and only as many
 * are taken out, in sorted order, as the draw needs: building the heap is linear, and a peaked row
 * needs a few hundred of its 131,072 entries. exp is our own, from basic operations only, so that
 * a seed repeats whatever the C library is.
 *
 * Probabilities are those after top-k; min-p and top-p do not rescale them, the draw does. A row
 * without any number above -infinity gives id 0. With +infinity in it, only those count, equally.
 */
#include "runtime/sampler.h"

#include <math.h>
#include <stdlib.h>

#include "runtime/base/rng.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

struct cf_sampler {
    cf_sampler_params params;
    uint32_t vocab;
    cf_rng rng;
    candidate *heap; /* [vocab] while a row is sampled */
    uint32_t n_heap;
    double *weight;   /* [vocab]: weights of the candidates taken out, in order */
    candidate *taken; /* [vocab] */
    uint32_t n_taken;
};

/* e^x for x <= 0 by basic operations: x = k ln 2 + r, a polynomial in r, scaled by 2^k. Relative
 * error below 1e-15; 0 below 2^-1022. */
static double exp_fixed(double x)
{
    /* 1 / n!, n from 13 down; |r| <= ln 2 / 2, so the next term is below 1e-17. */
    static const double term[] = {1.0 / 6227020800.0,
                                  1.0 / 479001600.0,
                                  1.0 / 39916800.0,
                                  1.0 / 3628800.0,
                                  1.0 / 362880.0,
                                  1.0 / 40320.0,
                                  1.0 / 5040.0,
                                  1.0 / 720.0,
                                  1.0 / 120.0,
                                  1.0 / 24.0,
                                  1.0 / 6.0,
                                  0.5,
                                  1.0,
                                  1.0};
    if (!(x > -708.0))
        return 0.0;
    double k = floor(x * 0x1.71547652b82fep+0 + 0.5);
    double r = x - k * 0x1.62e42fee00000p-1;
    r -= k * 0x1.a39ef35793c76p-33;
    double sum = 0.0;
    for (size_t n = 0; n < sizeof term / sizeof *term; n++)
        sum = sum * r + term[n];
    union {
        uint64_t bits;
        double value;
    } scale = {.bits = (uint64_t)(1023 + (int64_t)k) << 52};
    return sum * scale.value;
}

static bool candidate_before(candidate a, candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void heap_sink(candidate *heap, uint32_t n, uint32_t at)
{
    candidate moving = heap[at];
    for (;;) {
        uint64_t child = 2 * (uint64_t)at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && candidate_before(heap[child + 1], heap[child]))
            child++;
        if (!candidate_before(heap[child], moving))
            break;
        heap[at] = heap[child];
        at = (uint32_t)child;
    }
    heap[at] = moving;
}

static candidate heap_pop(cf_sampler *s)
{
    candidate top = s->heap[0];
    s->heap[0] = s->heap[--s->n_heap];
    if (s->n_heap > 1)
        heap_sink(s->heap, s->n_heap, 0);
    return top;
}

static int params_check(const cf_sampler_params *p, uint32_t vocab, cf_err *err)
{
    if (vocab == 0 || vocab > INT32_MAX)
        return CF_FAIL(err, CF_ELIMIT, "sampler: a vocabulary of %u tokens is out of range", vocab);
    if (!(p->temperature >= 0.0f) || isinf(p->temperature))
        return CF_FAIL(err, CF_ELIMIT, "temperature %g is not a number of 0 or more",
                       (double)p->temperature);
    if (p->top_k < 0)
        return CF_FAIL(err, CF_ELIMIT, "top-k %d is below 0 (0 turns it off)", p->top_k);
    if (!(p->top_p > 0.0f && p->top_p <= 1.0f))
        return CF_FAIL(err, CF_ELIMIT, "top-p %g is not above 0 and at most 1 (1 turns it off)",
                       (double)p->top_p);
    if (!(p->min_p >= 0.0f && p->min_p < 1.0f))
        return CF_FAIL(err, CF_ELIMIT, "min-p %g is not at least 0 and below 1 (0 turns it off)",
                       (double)p->min_p);
    return 0;
}

int cf_sampler_create(cf_sampler **out, const cf_sampler_params *params, uint32_t vocab,
                      cf_err *err)
{
    *out = NULL;
    int rc = params_check(params, vocab, err);
    if (rc < 0)
        return rc;
    cf_sampler *s = calloc(1, sizeof *s);
    if (!s)
        goto no_memory;
    s->params = *params;
    s->vocab = vocab;
    s->rng.state = params->seed;
    if (params->temperature > 0.0f) {
        s->heap = malloc(vocab * sizeof *s->heap);
        s->weight = malloc(vocab * sizeof *s->weight);
        s->taken = malloc(vocab * sizeof *s->taken);
        if (!s->heap || !s->weight || !s->taken)
            goto no_memory;
    }
    *out = s;
    return 0;
no_memory:
    cf_sampler_destroy(&s);
    return CF_FAIL(err, -ENOMEM, "no memory for a sampler over %u tokens", vocab);
}

void cf_sampler_destroy(cf_sampler **sampler)
{
    if (!*sampler)
        return;
    free((*sampler)->heap);
    free((*sampler)->weight);
    free((*sampler)->taken);
    free(*sampler);
    *sampler = NULL;
}

/* Largest logit, ties to the lower id; a NaN never wins. */
static int32_t row_largest(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;
    float best_logit = -INFINITY;
    for (uint32_t i = 0; i < vocab; i++)
        if (logits[i] > best_logit) {
            best_logit = logits[i];
            best = i;
        }
    return (int32_t)best;
}

/* Relative to the largest logit, whose weight is 1. */
static double weight_of(const cf_sampler *s, float logit, float largest)
{
    if (logit == largest)
        return 1.0;
    if (isinf(logit) || isinf(largest))
        return 0.0;
    return exp_fixed(((double)logit - (double)largest) / (double)s->params.temperature);
}

/* Fills the heap with what can be drawn at all; returns the sum of the weights when top-k is off
 * (in order of id), otherwise 0. */
static double heap_fill(cf_sampler *s, const float *logits, float largest)
{
    double sum = 0.0;
    s->n_heap = 0;
    s->n_taken = 0;
    for (uint32_t i = 0; i < s->vocab; i++) {
        if (!(logits[i] > -INFINITY))
            continue;
        s->heap[s->n_heap++] = (candidate){.logit = logits[i], .id = (int32_t)i};
        if (s->params.top_k == 0)
            sum += weight_of(s, logits[i], largest);
    }
    for (uint32_t at = s->n_heap / 2; at-- > 0;)
        heap_sink(s->heap, s->n_heap, at);
    return sum;
}

static double candidate_take(cf_sampler *s, float largest)
{
    candidate c = heap_pop(s);
    double w = weight_of(s, c.logit, largest);
    s->taken[s->n_taken] = c;
    s->weight[s->n_taken++] = w;
    return w;
}

/* Cuts the taken list by min-p and top-p; takes more from the heap while `lazy`. Returns the sum
 * of what stays. */
static double candidates_cut(cf_sampler *s, double total, float largest, bool lazy)
{
    double kept = 0.0, floor_weight = (double)s->params.min_p;
    double enough = s->params.top_p < 1.0f ? (double)s->params.top_p * total : INFINITY;
    uint32_t n = 0;
    for (; kept < enough; n++) {
        if (n == s->n_taken) {
            if (!lazy || s->n_heap == 0)
                break;
            candidate_take(s, largest);
        }
        /* The largest weight is 1, so p < min_p * largest p is w < min_p. A weight of 0 cannot be
         * drawn, and neither can what follows it. */
        if (s->weight[n] < floor_weight || s->weight[n] == 0.0)
            break;
        kept += s->weight[n];
    }
    s->n_taken = n;
    return kept;
}

int32_t cf_sampler_pick(cf_sampler *s, const float *logits)
{
    int32_t best = row_largest(logits, s->vocab);
    float largest = logits[best];
    if (s->params.temperature == 0.0f)
        return best;
    double unit = cf_rng_unit(&s->rng);
    if (!(largest > -INFINITY))
        return 0;
    double total = heap_fill(s, logits, largest);
    if (s->params.top_k > 0)
        while (s->n_heap > 0 && s->n_taken < (uint32_t)s->params.top_k)
            total += candidate_take(s, largest);
    bool cuts = s->params.min_p > 0.0f || s->params.top_p < 1.0f;
    bool lazy = s->params.top_k == 0;
    if (cuts)
        total = candidates_cut(s, total, largest, lazy);
    double target = unit * total, reached = 0.0;
    int32_t drawn = best;
    for (uint32_t n = 0;; n++) {
        if (n == s->n_taken) {
            if (cuts || !lazy || s->n_heap == 0)
                break; /* rounding: the last that can be drawn */
            candidate_take(s, largest);
        }
        if (s->weight[n] == 0.0)
            break;
        drawn = s->taken[n].id;
        reached += s->weight[n];
        if (reached > target)
            break;
    }
    return drawn;
}
