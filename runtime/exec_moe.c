/* Routing and experts.
 *
 * ROUTE reads the chosen ids back and opens a group in the expert cache (and foresees the next one:
 * exec_predict.c); EXPERTS computes the
 * group: residents in one go, the others as they land. Each (row, rank) has its own row of output,
 * summed at the end in ascending expert id, so that no sum depends on what arrived when. */
#include <string.h>

#include "runtime/exec_internal.h"

static cf_expert_counts *phase_counts(cf_exec *x)
{
    return x->batch->phase == CF_PHASE_DECODE ? &x->e->counters.decode : &x->e->counters.prefill;
}

/* Device replies are untrusted: ids ascend and exist. */
static int choice_read(cf_exec *x, const cf_moe_def *moe, cf_err *err)
{
    uint32_t k = moe->top_k, total = moe->experts + moe->zero_experts;
    size_t n = (size_t)x->n_rows * k;
    memcpy(x->chosen, cf_gpu_host_read(exec_ids_span(x, CF_XB_HOST_IDS, k)), n * sizeof *x->chosen);
    memcpy(x->weights, cf_gpu_host_read(exec_ids_span(x, CF_XB_HOST_CHOICE, k)),
           n * sizeof *x->weights);
    for (size_t i = 0; i < n; i++)
        if (x->chosen[i] >= total || (i % k && x->chosen[i] <= x->chosen[i - 1]))
            return CF_FAIL(err, CF_EDEVICE, "the device chose expert %u of %u in layer %u",
                           x->chosen[i], total, moe->layer);
    return 0;
}

/* How many of a row's k choices there are. */
static uint32_t choices_of(const cf_exec *x, const cf_moe_def *moe, uint32_t r)
{
    uint32_t n = 0, none = moe->experts + moe->zero_experts;
    while (n < moe->top_k && x->chosen[(size_t)r * moe->top_k + n] != none)
        n++;
    return n;
}

/* Distinct routed experts, how many rows chose each; the counts and the policy's history. */
static void choice_count(cf_exec *x, const cf_moe_def *moe)
{
    uint32_t k = moe->top_k;
    cf_expert_counts *phase = phase_counts(x), *layer = &x->e->counters.layers[x->moe];
    memset(x->expert_rows, 0, moe->experts * sizeof *x->expert_rows);
    for (uint32_t r = 0; r < x->n_rows; r++) {
        const uint32_t *ids = x->chosen + (size_t)r * k;
        uint32_t routed = 0, n = choices_of(x, moe, r);
        while (routed < n && ids[routed] < moe->experts)
            x->expert_rows[ids[routed++]]++;
        cf_policy_choice(x->e->policy, x->moe, r, ids, routed, x->weights + (size_t)r * k);
        phase->selected += n;
        phase->zero += n - routed;
        layer->selected += n;
        layer->zero += n - routed;
    }
    x->n_experts = 0;
    for (uint32_t e = 0; e < moe->experts; e++)
        if (x->expert_rows[e])
            x->expert_list[x->n_experts++] = e;
}

static int choice_report(cf_exec *x, const cf_moe_def *moe, cf_err *err)
{
    uint32_t k = moe->top_k;
    const cf_outputs *o = x->batch->outputs;
    for (uint32_t r = 0; r < x->n_rows; r++) {
        const cf_row *row = &x->batch->rows[r];
        const uint32_t *ids = x->chosen + (size_t)r * k;
        const float *weights = x->weights + (size_t)r * k;
        uint32_t n = choices_of(x, moe, r);
        if (o && o->route)
            o->route(o->user, moe->layer, row->position, ids, weights, n);
        if (x->e->trace) {
            int rc = cf_trace_row(x->e->trace, row->session->number, row->position,
                                  x->batch->phase, moe->layer, ids, weights, n, err);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

void exec_classify(cf_exec *x, const cf_route_def *d, cf_span src, uint32_t stride, cf_span logits,
                   uint32_t n_rows)
{
    const cf_moe_def *moe = &x->model->moe[d->moe];
    uint32_t total = moe->experts + moe->zero_experts;
    cf_gpu_linear(x->gpu, CF_STREAM_COMPUTE,
                  &(cf_op_linear){.w = exec_weight(x, d->classifier),
                                  .bias = exec_weight(x, d->logit_bias), .x = src, .y = logits,
                                  .n_rows = n_rows, .x_stride = stride, .y_stride = total,
                                  .scale = 1});
    exec_recorded(x);
    if (d->cap <= 0)
        return;
    exec_barrier(x);
    cf_gpu_map(x->gpu, CF_STREAM_COMPUTE,
               &(cf_op_map){.kind = CF_MAP_SOFTCAP, .a = logits, .y = logits, .n_rows = n_rows,
                            .width = total, .a_stride = total, .y_stride = total, .p = d->cap});
    exec_recorded(x);
}

void exec_choose(cf_exec *x, const cf_route_def *d, cf_op_route *op)
{
    const cf_moe_def *moe = &x->model->moe[d->moe];
    op->n = moe->experts + moe->zero_experts;
    op->k = moe->top_k;
    op->score = d->score;
    op->n_groups = d->n_groups;
    op->top_groups = d->top_groups;
    op->group_score = d->group_score;
    op->renormalise = d->renormalise;
    op->scale = d->scale;
    op->jitter = d->jitter;
    if (d->bias != CF_NO_WEIGHT)
        op->bias = exec_weight(x, d->bias).span;
    cf_gpu_route(x->gpu, CF_STREAM_COMPUTE, op);
    exec_recorded(x);
}

/* The device's choice: each row by its own scores. */
static int choice_make(cf_exec *x, const cf_route_def *d, cf_span src, uint32_t width, cf_err *err)
{
    const cf_moe_def *moe = &x->model->moe[d->moe];
    uint32_t k = moe->top_k;
    cf_span logits = exec_act(x, d->logits);
    exec_barrier(x);
    exec_classify(x, d, src, width, logits, x->n_rows);
    exec_predict_norm(x, d->moe);
    exec_barrier(x);
    exec_choose(x, d,
                &(cf_op_route){.logits = logits, .ids = exec_ids_span(x, CF_XB_IDS, k),
                               .weights = exec_ids_span(x, CF_XB_CHOICE, k),
                               .host_ids = exec_ids_span(x, CF_XB_HOST_IDS, k),
                               .host_weights = exec_ids_span(x, CF_XB_HOST_CHOICE, k),
                               .n_rows = x->n_rows});
    exec_predict_classify(x, d->moe);
    exec_predict_choose(x, d->moe);
    int rc = exec_finish(x, err);
    return rc < 0 ? rc : choice_read(x, moe, err);
}

int exec_route(cf_exec *x, const cf_step *s, cf_err *err)
{
    const cf_route_def *d = &s->u.route;
    const cf_moe_def *moe = &x->model->moe[d->moe];
    cf_span src = exec_act(x, s->src);
    uint32_t width = exec_width(x, s->src);
    int rc = d->pick == CF_PICK_TOP ? choice_make(x, d, src, width, err)
                                    : exec_pick(x, d, src, width, err);
    if (rc < 0)
        return rc;
    x->moe = d->moe;
    x->picked = d->pick != CF_PICK_TOP || d->capacity;
    if (d->pick == CF_PICK_TOP && d->capacity)
        exec_pick_limit(x, d);
    choice_count(x, moe);
    if ((rc = choice_report(x, moe, err)) < 0)
        return rc;
    cf_group_counts c;
    cf_cache_route(x->e->cache, d->moe, x->expert_list, x->n_experts, &c);
    cf_expert_counts *to[] = {phase_counts(x), &x->e->counters.layers[d->moe]};
    for (int i = 0; i < 2; i++) {
        to[i]->lookups += c.lookups;
        to[i]->vram_hits += c.hits;
        to[i]->ram_hits += c.ram_hits;
        to[i]->misses += c.misses;
        to[i]->evictions += c.evictions;
    }
    exec_predict_guess(x, d->moe);
    return 0;
}

/* Groups the (row, rank) pairs by expert, experts in the cache's order of processing. */
static void pairs_upload(cf_exec *x, const cf_moe_def *moe)
{
    uint32_t k = moe->top_k, at = 0;
    /* expert_rows becomes each expert's write position. */
    uint32_t *count_at = x->pair_begin; /* by order of processing, first as counts */
    for (uint32_t i = 0; i < x->n_experts; i++)
        count_at[cf_cache_order(x->e->cache, i)] = x->expert_rows[x->expert_list[i]];
    for (uint32_t i = 0; i < x->n_experts; i++) {
        uint32_t n = count_at[i];
        x->pair_begin[i] = at;
        at += n;
    }
    for (uint32_t i = 0; i < x->n_experts; i++)
        x->expert_rows[x->expert_list[i]] = x->pair_begin[cf_cache_order(x->e->cache, i)];
    if (!at)
        return;
    uint32_t *pairs = cf_gpu_host_write(
        cf_span_sub(cf_span_of(x->xb[CF_XB_PAIRS]), 0, at * sizeof *pairs));
    for (uint32_t p = 0; p < x->n_rows * k; p++)
        if (x->chosen[p] < moe->experts)
            pairs[x->expert_rows[x->chosen[p]]++] = p;
}

/* Computes n entries of the group; after this expert_rows holds each expert's end of pairs. */
static int entries_compute(cf_exec *x, const cf_moe_def *moe, const cf_step *s, uint32_t n,
                           cf_err *err)
{
    cf_gpu_point ready = {CF_STREAM_TRANSFER, 0}, done;
    for (uint32_t i = 0; i < n; i++) {
        const cf_cache_entry *e = &x->taken[i];
        uint32_t begin = x->pair_begin[e->index];
        x->work[i] = (cf_expert_work){.gate = e->pieces[CF_GATE], .up = e->pieces[CF_UP],
                                      .down = e->pieces[CF_DOWN],
                                      .gate_bias = e->biases[CF_GATE],
                                      .up_bias = e->biases[CF_UP],
                                      .down_bias = e->biases[CF_DOWN], .pair_begin = begin,
                                      .pair_count = x->expert_rows[e->expert] - begin};
        if (e->ready.value > ready.value)
            ready = e->ready;
    }
    uint32_t k = moe->top_k;
    cf_span pairs = cf_span_of(x->xb[CF_XB_PAIRS]), h = cf_span_of(x->xb[CF_XB_EXPERT_H]);
    cf_span weights = exec_ids_span(x, x->picked ? CF_XB_PICKED_CHOICE : CF_XB_CHOICE, k),
            none = {0};
    bool on_input = s->u.experts.weight_on_input;
    const cf_expert_work *w = x->work;
    bool q8 = exec_q8(x, &w->gate) && (!w->up.span.buf || exec_q8(x, &w->up));
    cf_gpu_expert_glu(x->gpu, CF_STREAM_COMPUTE,
                      &(cf_op_expert_glu){.experts = x->work, .n_experts = n,
                                          .x = exec_act(x, s->src), .pairs = pairs, .h = h,
                                          .weights = on_input ? weights : none,
                                          .n_rows = x->n_rows, .k = k, .hidden = moe->hidden,
                                          .ffn = moe->ffn, .act = s->u.experts.act,
                                          .x_q8 = q8});
    exec_recorded(x);
    exec_barrier(x);
    cf_gpu_expert_down(x->gpu, CF_STREAM_COMPUTE,
                       &(cf_op_expert_down){.experts = x->work, .n_experts = n, .h = h,
                                            .pairs = pairs, .weights = on_input ? none : weights,
                                            .out = cf_span_of(x->xb[CF_XB_EXPERT_OUT]),
                                            .n_rows = x->n_rows, .k = k, .hidden = moe->hidden,
                                            .ffn = moe->ffn,
                                            .x_q8 = exec_q8(x, &w->down)});
    exec_recorded(x);
    int rc = exec_submit(x, ready, &done, err);
    if (rc < 0)
        return rc;
    cf_cache_used(x->e->cache, x->taken, n, done);
    return 0;
}

int exec_experts(cf_exec *x, const cf_step *s, cf_err *err)
{
    const cf_moe_def *moe = &x->model->moe[s->u.experts.moe];
    cf_gpu_point window;
    int rc = 0;
    /* The window runs while we wait. */
    if (x->open && (rc = exec_submit(x, (cf_gpu_point){CF_STREAM_TRANSFER, 0}, &window, err)) < 0)
        return rc;
    cf_cache_start(x->e->cache);
    pairs_upload(x, moe);
    while ((rc = cf_cache_take(x->e->cache, x->taken, CF_EXPERTS_PER_OP, err)) > 0)
        if ((rc = entries_compute(x, moe, s, (uint32_t)rc, err)) < 0)
            return rc;
    if (rc < 0)
        return rc;
    cf_cache_end(x->e->cache);
    exec_barrier(x);
    cf_gpu_combine(
        x->gpu, CF_STREAM_COMPUTE,
        &(cf_op_combine){
            .out = cf_span_of(x->xb[CF_XB_EXPERT_OUT]),
            .ids = exec_ids_span(x, x->picked ? CF_XB_PICKED_IDS : CF_XB_IDS, moe->top_k),
            .weights = exec_ids_span(x, x->picked ? CF_XB_PICKED_CHOICE : CF_XB_CHOICE, moe->top_k),
            .x = exec_act(x, s->src),
            .y = exec_act(x, s->dst),
            .n_rows = x->n_rows,
            .k = moe->top_k,
            .hidden = moe->hidden,
            .n_routed = moe->experts});
    exec_recorded(x);
    return 0;
}
