/* Choices of experts in which the host has a say (runtime/router.h): session by session of a batch,
 * then handed to the device again. Threads: the engine thread. */
#include <math.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/exec_internal.h"
#include "runtime/router.h"

/* The rows of the session that row `begin` belongs to. */
static uint32_t part_rows(const cf_exec *x, uint32_t begin)
{
    uint32_t end = begin + 1;
    while (end < x->n_rows && x->batch->rows[end].session == x->batch->rows[begin].session)
        end++;
    return end - begin;
}

static cf_choice part_choice(const cf_exec *x, const cf_moe_def *moe, uint32_t begin, uint32_t n)
{
    return (cf_choice){.ids = x->chosen + (size_t)begin * moe->top_k,
                       .weights = x->weights + (size_t)begin * moe->top_k,
                       .rows = n,
                       .k = moe->top_k,
                       .experts = moe->experts,
                       .none = moe->experts + moe->zero_experts};
}

static void choice_upload(cf_exec *x, uint32_t k)
{
    size_t n = (size_t)x->n_rows * k;
    memcpy(cf_gpu_host_write(exec_ids_span(x, CF_XB_PICKED_IDS, k)), x->chosen,
           n * sizeof *x->chosen);
    memcpy(cf_gpu_host_write(exec_ids_span(x, CF_XB_PICKED_CHOICE, k)), x->weights,
           n * sizeof *x->weights);
}

void exec_pick_limit(cf_exec *x, const cf_route_def *d)
{
    const cf_moe_def *moe = &x->model->moe[d->moe];
    for (uint32_t r = 0, n; r < x->n_rows; r += n) {
        n = part_rows(x, r);
        cf_choice c = part_choice(x, moe, r, n);
        cf_router_capacity(&c, d->capacity, x->router_scratch);
    }
    choice_upload(x, moe->top_k);
}

/* One session's part. logits: of its first row. */
static int part_pick(cf_exec *x, const cf_route_def *d, const cf_choice *c, const float *logits,
                     const int32_t *tokens, cf_err *err)
{
    uint32_t capacity =
        (uint32_t)fmin(c->rows, ceil((double)d->capacity_factor * c->rows / c->experts));
    switch (d->pick) {
    case CF_PICK_HASH:
        cf_router_hash(c, tokens, d->seed, d->scale);
        return 0;
    case CF_PICK_EXPERTS_CHOOSE:
        cf_router_experts_choose(c, logits, capacity, d->scale, x->router_scratch);
        return 0;
    case CF_PICK_BALANCED:
        if (c->rows > CF_ROUTER_BALANCED_ROWS)
            return CF_FAIL(err, CF_ELIMIT,
                           "balanced routing assigns at most %d tokens at a time, not %u: --chunk "
                           "%d would do",
                           (int)CF_ROUTER_BALANCED_ROWS, c->rows, (int)CF_ROUTER_BALANCED_ROWS);
        cf_router_balanced(c, logits, d->scale, x->router_scratch);
        return 0;
    case CF_PICK_TOP:
        break;
    }
    return CF_FAIL(err, -EINVAL, "router kind %d is unknown", (int)d->pick);
}

int exec_pick(cf_exec *x, const cf_route_def *d, cf_span src, uint32_t width, cf_err *err)
{
    int rc;
    const cf_moe_def *moe = &x->model->moe[d->moe];
    const float *logits = NULL;
    cf_span host = cf_span_of(x->xb[CF_XB_HOST_LOGITS]);
    if (d->pick != CF_PICK_HASH) {
        exec_barrier(x);
        exec_classify(x, d, src, width, exec_act(x, d->logits), x->n_rows);
        host = cf_span_sub(host, 0, (uint64_t)x->n_rows * moe->experts * sizeof *logits);
        exec_barrier(x);
        cf_gpu_copy(x->gpu, CF_STREAM_COMPUTE, host,
                    cf_span_sub(exec_act(x, d->logits), 0, host.bytes));
        exec_recorded(x);
    }
    /* Also where nothing is read back: at a ROUTE all earlier work is done. */
    if ((rc = exec_finish(x, err)) < 0)
        return rc;
    if (d->pick != CF_PICK_HASH)
        logits = cf_gpu_host_read(host);
    for (uint32_t r = 0, n; r < x->n_rows; r += n) {
        n = part_rows(x, r);
        cf_choice c = part_choice(x, moe, r, n);
        for (uint32_t i = 0; i < n; i++)
            x->router_tokens[i] = x->batch->rows[r + i].token;
        rc = part_pick(x, d, &c, logits ? logits + (size_t)r * moe->experts : NULL,
                       x->router_tokens, err);
        if (rc < 0)
            return rc;
    }
    choice_upload(x, moe->top_k);
    return 0;
}
