/* PREDICT: a ROUTE's device work also foresees the next MoE layer's choice (predict.h), and its ids
 * come to the host with ROUTE's own: no wait is added. What they name and no tier holds is handed
 * to the cache as guesses. Nothing that is computed depends on it: it has buffers of its own.
 *
 * Prefill: the last rows of a chunk speak for it, and what most of them want is guessed, as much as
 * the cache has places for guesses. A chunk wants most of a layer, so that few of its guesses are
 * wrong, and they are read while the rest of the chunk is computed. */
#include <string.h>

#include "runtime/exec_internal.h"

typedef struct predict_spans {
    cf_span normed, logits, ids, weights, host_ids, host_weights;
} predict_spans;

static cf_span part_take(cf_span whole, uint64_t *at, uint64_t bytes)
{
    cf_span part = cf_span_sub(whole, *at, bytes);
    *at += cf_predict_part(bytes);
    return part;
}

static predict_spans spans_of(const cf_exec *x, const cf_moe_def *moe, uint32_t rows)
{
    cf_span device = cf_span_of(x->xb[CF_XB_PREDICT]), host = cf_span_of(x->xb[CF_XB_HOST_PREDICT]);
    uint64_t at = 0, host_at = 0, chosen = (uint64_t)rows * moe->top_k * 4;
    uint64_t total = (uint64_t)moe->experts + moe->zero_experts;
    predict_spans p;
    p.normed = part_take(device, &at, (uint64_t)rows * moe->hidden * 4);
    p.logits = part_take(device, &at, rows * total * 4);
    p.ids = part_take(device, &at, chosen);
    p.weights = part_take(device, &at, chosen);
    p.host_ids = part_take(host, &host_at, chosen);
    p.host_weights = part_take(host, &host_at, chosen);
    return p;
}

static uint32_t rows_of(const cf_exec *x)
{
    return x->n_rows < CF_PREDICT_ROWS ? x->n_rows : CF_PREDICT_ROWS;
}

static const cf_predict *predict_of(const cf_exec *x, uint32_t moe)
{
    const cf_predict *p = &x->predicts[moe];
    return p->route && cf_cache_guesses_max(x->e->cache) ? p : NULL;
}

void exec_predict_norm(cf_exec *x, uint32_t moe)
{
    const cf_predict *p = predict_of(x, moe);
    if (!p)
        return;
    const cf_step *s = p->norm;
    uint32_t rows = rows_of(x), width = exec_width(x, s->src);
    predict_spans spans = spans_of(x, &x->model->moe[p->route->u.route.moe], rows);
    cf_span src = exec_act(x, s->src);
    uint64_t skip = (uint64_t)(x->n_rows - rows) * width * sizeof(float);
    cf_weight w = exec_weight(x, s->u.norm.w);
    cf_gpu_norm(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_norm){.kind = s->u.norm.kind,
                              .w = w,
                              .bias = exec_weight(x, s->u.norm.bias),
                              .x = cf_span_sub(src, skip, src.bytes - skip),
                              .y = spans.normed,
                              .n_rows = rows,
                              .n_heads = 1,
                              .width = w.cols,
                              .x_stride = width,
                              .y_stride = w.cols,
                              .eps = s->u.norm.eps,
                              .scale = 1,
                              .unit_offset = s->u.norm.unit_offset});
    exec_recorded(x);
}

void exec_predict_classify(cf_exec *x, uint32_t moe)
{
    const cf_predict *p = predict_of(x, moe);
    if (!p)
        return;
    const cf_route_def *d = &p->route->u.route;
    const cf_moe_def *next = &x->model->moe[d->moe];
    uint32_t rows = rows_of(x);
    predict_spans spans = spans_of(x, next, rows);
    exec_classify(x, d, spans.normed, next->hidden, spans.logits, rows);
}

void exec_predict_choose(cf_exec *x, uint32_t moe)
{
    const cf_predict *p = predict_of(x, moe);
    if (!p)
        return;
    const cf_route_def *d = &p->route->u.route;
    uint32_t rows = rows_of(x);
    predict_spans spans = spans_of(x, &x->model->moe[d->moe], rows);
    exec_barrier(x);
    exec_choose(x, d,
                &(cf_op_route){.logits = spans.logits,
                               .ids = spans.ids,
                               .weights = spans.weights,
                               .host_ids = spans.host_ids,
                               .host_weights = spans.host_weights,
                               .n_rows = rows});
}

/* How much the rows want each expert: the sum of its weights. A device's reply is untrusted: what
 * does not exist is left out, and an odd number only makes an odd guess. */
static void wants_sum(cf_exec *x, const cf_moe_def *next, const predict_spans *spans)
{
    const uint32_t *ids = cf_gpu_host_read(spans->host_ids);
    const float *weights = cf_gpu_host_read(spans->host_weights);
    size_t n = (size_t)rows_of(x) * next->top_k;
    memset(x->wants, 0, next->experts * sizeof *x->wants);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < next->experts)
            x->wants[ids[i]] += weights[i] > 0 ? weights[i] : 1e-9f;
}

void exec_predict_guess(cf_exec *x, uint32_t moe)
{
    const cf_predict *p = predict_of(x, moe);
    if (!p)
        return;
    uint32_t index = p->route->u.route.moe, n = 0;
    const cf_moe_def *next = &x->model->moe[index];
    predict_spans spans = spans_of(x, next, rows_of(x));
    wants_sum(x, next, &spans);
    for (uint32_t e = 0; e < next->experts; e++) {
        if (!(x->wants[e] > 0))
            continue;
        uint32_t i = n++;
        for (; i && x->wants[x->guessed[i - 1]] < x->wants[e]; i--) /* ties: the lower id first */
            x->guessed[i] = x->guessed[i - 1];
        x->guessed[i] = e;
    }
    cf_cache_guess(x->e->cache, index, x->guessed, n);
}
