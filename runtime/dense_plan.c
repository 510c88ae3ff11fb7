/* Resident or streamed: see dense_plan.h. */
#include "runtime/dense_plan.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/weights.h"

enum {
    SMALL_BYTES = 64 << 10, /* read alone, it takes about as long as this many */
    STAGE_BYTES = 2 << 20,
    LEAST_STAGES = 2,
    MOST_STAGES = 8,
    PAGE = 4096
};

uint64_t cf_dense_window_bytes(const cf_weight_def *w, bool in_place, uint32_t align)
{
    uint64_t bytes = cf_weight_code_bytes(w);
    if (!in_place)
        return cf_align_up(bytes, CF_WEIGHT_ALIGN);
    return cf_align_up(w->extent.off + bytes, align) - cf_align_down(w->extent.off, align);
}

/* Weights of an index are not needed by every batch. */
static bool in_index(const cf_step *s, cf_wid w)
{
    return s->kind == CF_STEP_ATTN_LATENT && s->u.latent.indexed &&
           (w == s->u.latent.index.q || w == s->u.latent.index.weights);
}

/* can[i]: 1 when weight i may be streamed: a matrix with one step as its only user, at work in every
 * batch. An encoder's plan and its decoder's take turns: then there is no such schedule. */
static void streamable(const cf_model *model, uint8_t *can)
{
    memset(can, 0, model->n_weights);
    if (model->n_encoder_steps)
        return;
    for (uint32_t s = 0; s < model->n_steps; s++) {
        cf_wid used[CF_STEP_WEIGHTS];
        const cf_step *step = &model->steps[s];
        uint32_t n = cf_step_weights(step, used);
        uint8_t uses = step->kind == CF_STEP_EMBED || step->kind == CF_STEP_ROUTE ? 2 : 1;
        for (uint32_t i = 0; i < n; i++)
            can[used[i]] =
                (uint8_t)cf_min_u64(2u, can[used[i]] + (in_index(step, used[i]) ? 2u : uses));
    }
    for (uint32_t i = 0; i < model->n_weights; i++)
        can[i] = can[i] == 1 && model->weights[i].rows > 1 && !model->weights[i].must_be_finite;
}

static uint64_t packed_bytes(const cf_weight_def *w)
{
    return cf_align_up(cf_weight_code_bytes(w), CF_WEIGHT_ALIGN);
}

/* Takes a matrix off the list if its bytes are left. */
static void keep(const cf_weight_def *w, uint8_t *streamed, uint64_t *left)
{
    if (packed_bytes(w) > *left)
        return;
    *left -= packed_bytes(w);
    *streamed = 0;
}

void cf_dense_choose(const cf_model *model, uint64_t largest, uint64_t allowance, uint8_t *streamed)
{
    uint64_t left = allowance, sum = 0;
    streamable(model, streamed);
    for (uint32_t i = 0; i < model->n_weights; i++)
        if (cf_weight_code_bytes(&model->weights[i]) > largest)
            streamed[i] = 0;
    /* The small ones, for their number. */
    for (uint32_t i = 0; i < model->n_weights; i++)
        if (streamed[i] && cf_weight_code_bytes(&model->weights[i]) <= SMALL_BYTES)
            keep(&model->weights[i], &streamed[i], &left);
    for (uint32_t i = 0; i < model->n_weights; i++)
        sum += streamed[i] ? packed_bytes(&model->weights[i]) : 0;
    /* Then evenly over the layers, so that the drive has something to read in all of them. */
    double share = sum ? (double)left / (double)sum : 0, due = 0;
    for (uint32_t i = 0; i < model->n_weights && share < 1; i++) {
        const cf_weight_def *w = &model->weights[i];
        if (!streamed[i])
            continue;
        due += (double)packed_bytes(w) * share;
        if (due < (double)packed_bytes(w))
            continue;
        keep(w, &streamed[i], &left);
        due -= streamed[i] ? 0 : (double)packed_bytes(w);
    }
    for (uint32_t i = 0; i < model->n_weights; i++)
        if (streamed[i])
            keep(&model->weights[i], &streamed[i], &left);
}

/* What the list needs; allowance is only noted. */
static void measure(cf_dense_plan *p, const cf_model *model, const cf_slots_shape *shape,
                    uint32_t align, uint64_t max_alloc, const uint8_t *streamed)
{
    uint64_t window = 0, largest = 0;
    p->n_streamed = p->n_stages = 0;
    p->streamed_bytes = 0;
    p->resident_bytes = cf_weights_bytes(model, streamed, max_alloc);
    for (uint32_t i = 0; i < model->n_weights; i++) {
        const cf_weight_def *w = &model->weights[i];
        if (!streamed[i])
            continue;
        p->n_streamed++;
        p->streamed_bytes += cf_weight_code_bytes(w);
        largest = cf_max_u64(largest, cf_weight_code_bytes(w));
        window = cf_max_u64(window, cf_dense_window_bytes(w, shape->in_place, align));
    }
    p->segment_bytes = cf_align_up(window, PAGE);
    p->stage_bytes = cf_align_up(cf_min_u64(largest + 2 * (uint64_t)align, STAGE_BYTES), PAGE);
    /* No more than there is to read ahead. */
    if (!shape->in_place && p->n_streamed)
        p->n_stages = (uint32_t)cf_max_u64(
            cf_min_u64(2 * p->segment_bytes / p->stage_bytes, MOST_STAGES), LEAST_STAGES);
    p->device_bytes = p->n_streamed ? p->n_segments * p->segment_bytes : 0;
    p->host_bytes = p->n_stages * p->stage_bytes;
    if (shape->staged)
        p->device_bytes += p->host_bytes;
}

static uint64_t plan_bytes(const cf_dense_plan *p)
{
    return p->resident_bytes + p->device_bytes;
}

/* The largest size below `below` of what can be streamed; 0: none. */
static uint64_t size_next(const cf_model *model, const uint8_t *can, uint64_t below)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < model->n_weights; i++) {
        uint64_t bytes = cf_weight_code_bytes(&model->weights[i]);
        if (can[i] && bytes < below && bytes > most)
            most = bytes;
    }
    return most;
}

/* Two lists of flags, one after the other. */
static int flags_create(uint8_t **out, const cf_model *model, cf_err *err)
{
    *out = calloc(2 * (size_t)model->n_weights + 1, 1);
    if (!*out)
        return CF_FAIL(err, -ENOMEM, "out of memory for a plan of %u weights", model->n_weights);
    streamable(model, *out);
    return 0;
}

int cf_dense_bounds(const cf_model *model, const cf_slots_shape *shape, uint32_t align,
                    uint64_t max_alloc, uint64_t *all, uint64_t *least, cf_wid *widest, cf_err *err)
{
    uint8_t *can;
    int rc = flags_create(&can, model, err);
    if (rc < 0)
        return rc;
    uint8_t *streamed = can + model->n_weights;
    uint64_t best = 0;
    *all = *least = cf_weights_bytes(model, NULL, max_alloc);
    for (uint64_t size = UINT64_MAX; (size = size_next(model, can, size)) != 0;) {
        cf_dense_plan p = {.n_segments = 1};
        cf_dense_choose(model, size, 0, streamed);
        measure(&p, model, shape, align, max_alloc, streamed);
        if ((!max_alloc || p.segment_bytes <= max_alloc) && plan_bytes(&p) < *least) {
            *least = plan_bytes(&p);
            best = size;
        }
    }
    for (uint32_t i = 0; widest && i < model->n_weights; i++)
        if (can[i] && cf_weight_code_bytes(&model->weights[i]) == best) {
            *widest = i;
            break;
        }
    if (widest && !best)
        *widest = CF_NO_WEIGHT;
    free(can);
    return 0;
}

/* With nothing above `largest` streamed, and as much of the rest resident as the budget holds;
 * false when not even none of it fits. */
static bool fill(cf_dense_plan *p, const cf_model *model, const cf_slots_shape *shape,
                 uint32_t align, uint64_t max_alloc, uint64_t budget, uint8_t *streamed)
{
    cf_dense_choose(model, p->largest, 0, streamed);
    p->allowance = 0;
    measure(p, model, shape, align, max_alloc, streamed);
    if (plan_bytes(p) > budget)
        return false;
    /* Blocks are rounded up: what that takes is given back. */
    uint64_t allowance = budget - plan_bytes(p), over = 0;
    do {
        allowance -= cf_min_u64(allowance, over);
        cf_dense_choose(model, p->largest, allowance, streamed);
        p->allowance = allowance;
        measure(p, model, shape, align, max_alloc, streamed);
        over = plan_bytes(p) > budget ? plan_bytes(p) - budget : 0;
    } while (over);
    return true;
}

int cf_dense_plan_make(cf_dense_plan *out, const cf_model *model, const cf_slots_shape *shape,
                       uint32_t align, uint64_t max_alloc, uint64_t budget, cf_err *err)
{
    uint8_t *can;
    *out = (cf_dense_plan){.resident_bytes = cf_weights_bytes(model, NULL, max_alloc)};
    if (out->resident_bytes <= budget)
        return 0;
    int rc = flags_create(&can, model, err);
    if (rc < 0)
        return rc;
    bool found = false;
    for (uint32_t n = 2; n > 0 && !found; n--)
        for (uint64_t size = UINT64_MAX; (size = size_next(model, can, size)) != 0;) {
            cf_dense_plan p = {.n_segments = n, .largest = size};
            if (!fill(&p, model, shape, align, max_alloc, budget, can + model->n_weights))
                continue;
            if (max_alloc && n * p.segment_bytes > max_alloc) /* they are one buffer */
                continue;
            if (!found || p.streamed_bytes < out->streamed_bytes)
                *out = p;
            found = true;
        }
    free(can);
    if (!found)
        rc = CF_FAIL(err, CF_ELIMIT, "%llu bytes of the device do not hold the dense weights",
                     (unsigned long long)budget);
    return rc;
}
