/* Runs one op case on a device: see op_cases.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "tests/support/op_cases.h"

static void span_advance(cf_span *s, uint64_t bytes)
{
    s->off += bytes;
    s->bytes -= bytes;
}

uint32_t op_case_rows(const op_case *c)
{
    switch (c->kind) {
    case OP_linear:
        return c->op.linear.n_rows;
    case OP_head_linear:
        return c->op.head_linear.n_rows;
    case OP_norm:
        return c->op.norm.n_rows;
    case OP_rope:
        return c->op.rope.n_rows;
    case OP_attn_latent:
        return c->op.attn_latent.n_rows;
    case OP_attn:
        return c->op.attn.n_rows;
    case OP_map:
        return c->op.map.n_rows;
    case OP_route:
        return c->op.route.n_rows;
    case OP_combine:
        return c->op.combine.n_rows;
    case OP_state_gates:
        return c->op.state_gates.n_rows;
    case OP_gate:
        return c->op.gate.n_rows;
    case OP_index_score:
        return c->op.index_score.n_rows;
    case OP_index_select:
        return c->op.index_select.n_rows;
    case OP_attn_bias:
        return c->op.attn_bias.n_rows;
    case OP_get_rows:
        return op_case_array(c, &c->op.get_rows.ids) ? c->op.get_rows.n_rows : 0;
    default:
        return 0;
    }
}

/* Makes the bound op the one over rows [begin, begin + n). */
static void rows_select(op_case *c, uint32_t begin, uint32_t n)
{
    uint64_t b = (uint64_t)begin * 4;
    switch (c->kind) {
    case OP_linear:
        span_advance(&c->op.linear.x, b * c->op.linear.x_stride);
        span_advance(&c->op.linear.y, b * c->op.linear.y_stride);
        c->op.linear.n_rows = n;
        break;
    case OP_head_linear:
        span_advance(&c->op.head_linear.x, b * c->op.head_linear.x_stride);
        span_advance(&c->op.head_linear.y, b * c->op.head_linear.y_stride);
        c->op.head_linear.n_rows = n;
        break;
    case OP_norm:
        span_advance(&c->op.norm.x, b * c->op.norm.x_stride);
        span_advance(&c->op.norm.y, b * c->op.norm.y_stride);
        c->op.norm.n_rows = n;
        break;
    case OP_rope:
        span_advance(&c->op.rope.x, b * c->op.rope.stride);
        span_advance(&c->op.rope.cos_sin, b * c->op.rope.n_rot);
        c->op.rope.n_rows = n;
        break;
    case OP_attn_latent: {
        cf_op_attn_latent *op = &c->op.attn_latent;
        span_advance(&op->q_lat, b * op->n_heads * op->rank);
        span_advance(&op->q_rope, b * op->q_stride);
        span_advance(&op->rows, begin * sizeof(cf_row_info));
        span_advance(&op->y, b * op->n_heads * op->rank);
        if (op->cells.buf)
            span_advance(&op->cells, b * op->n_select);
        op->n_rows = n;
        break;
    }
    case OP_attn: {
        cf_op_attn *op = &c->op.attn;
        span_advance(&op->q, b * op->q_stride);
        span_advance(&op->rows, begin * sizeof(cf_row_info));
        span_advance(&op->y, b * op->n_heads * op->d_v);
        if (op->sharpness.buf)
            span_advance(&op->sharpness, b);
        op->n_rows = n;
        break;
    }
    case OP_map: {
        cf_op_map *op = &c->op.map;
        span_advance(&op->a, b * op->a_stride);
        span_advance(&op->y, b * op->y_stride);
        if (op->b.buf)
            span_advance(&op->b, b * op->b_stride);
        op->n_rows = n;
        break;
    }
    case OP_route: {
        cf_op_route *op = &c->op.route;
        span_advance(&op->logits, b * op->n);
        span_advance(&op->ids, b * op->k);
        span_advance(&op->weights, b * op->k);
        span_advance(&op->host_ids, b * op->k);
        span_advance(&op->host_weights, b * op->k);
        op->n_rows = n;
        break;
    }
    case OP_combine: {
        cf_op_combine *op = &c->op.combine;
        span_advance(&op->out, b * op->k * op->hidden);
        span_advance(&op->ids, b * op->k);
        span_advance(&op->weights, b * op->k);
        span_advance(&op->x, b * op->hidden);
        span_advance(&op->y, b * op->hidden);
        op->n_rows = n;
        break;
    }
    case OP_get_rows:
        span_advance(&c->op.get_rows.ids, b);
        span_advance(&c->op.get_rows.y, b * c->op.get_rows.y_stride);
        c->op.get_rows.n_rows = n;
        break;
    case OP_state_gates: {
        cf_op_state_gates *op = &c->op.state_gates;
        span_advance(&op->a, b * op->stride);
        span_advance(&op->b, b * op->stride);
        span_advance(&op->decay, b * op->n_heads);
        span_advance(&op->beta, b * op->n_heads);
        op->n_rows = n;
        break;
    }
    case OP_gate:
        span_advance(&c->op.gate.g, b * c->op.gate.g_stride);
        span_advance(&c->op.gate.y, b * c->op.gate.y_stride);
        c->op.gate.n_rows = n;
        break;
    case OP_index_score: {
        cf_op_index_score *op = &c->op.index_score;
        span_advance(&op->q, b * op->q_stride);
        span_advance(&op->w, b * op->w_stride);
        span_advance(&op->rows, begin * sizeof(cf_row_info));
        span_advance(&op->scores, b * op->score_stride);
        op->n_rows = n;
        break;
    }
    case OP_index_select: {
        cf_op_index_select *op = &c->op.index_select;
        span_advance(&op->scores, b * op->score_stride);
        span_advance(&op->rows, begin * sizeof(cf_row_info));
        span_advance(&op->cells, b * op->k);
        op->n_rows = n;
        break;
    }
    case OP_attn_bias: {
        cf_op_attn_bias *op = &c->op.attn_bias;
        span_advance(&op->q, b * op->q_stride);
        span_advance(&op->rows, begin * sizeof(cf_row_info));
        span_advance(&op->y, b * op->n_heads * op->d);
        op->n_rows = n;
        break;
    }
    default:
        cf_assert_failed("an op that can be split", __FILE__, __LINE__);
    }
}

static void op_record(cf_gpu *gpu, op_case *c)
{
    if (c->kind == OP_expert_glu)
        c->op.expert_glu.experts = c->experts;
    if (c->kind == OP_expert_down)
        c->op.expert_down.experts = c->experts;
    switch (c->kind) {
#define RECORD_OP(name)                                                                            \
    case OP_##name:                                                                                \
        cf_gpu_##name(gpu, CF_STREAM_COMPUTE, &c->op.name);                                        \
        break;
        CF_GPU_OPS(RECORD_OP)
#undef RECORD_OP
    case OP_KINDS:
        break;
    }
}

static uint64_t array_room(const op_array *a)
{
    return cf_align_up(a->lead + a->bytes + OP_GUARD_BYTES, 16);
}

/* The device's buffers of one run. */
struct run {
    cf_gpu_buf *staging, *readback, *bufs[OP_MAX_ARRAYS];
};

static void run_finish(struct run *run)
{
    cf_gpu_buf_destroy(&run->staging);
    cf_gpu_buf_destroy(&run->readback);
    for (int i = 0; i < OP_MAX_ARRAYS; i++)
        cf_gpu_buf_destroy(&run->bufs[i]);
}

/* Creates every buffer, records the uploads and binds the spans of `c`. */
static int run_begin(struct run *run, cf_gpu *gpu, op_case *c, cf_err *err)
{
    int rc = 0;
    uint64_t total = 0;
    for (int i = 0; i < c->n_arrays; i++)
        total += array_room(&c->arrays[i]);
    CF_TRY(cf_gpu_buf_create(gpu, CF_BUF_UPLOAD, total, "case staging", &run->staging, err));
    CF_TRY(cf_gpu_buf_create(gpu, CF_BUF_READBACK, total, "case results", &run->readback, err));
    uint8_t *host = cf_gpu_host_write(cf_span_of(run->staging));
    memset(host, OP_GUARD, total);
    uint64_t at = 0;
    for (int i = 0; i < c->n_arrays; i++) {
        const op_array *a = &c->arrays[i];
        uint64_t room = array_room(a);
        char name[32];
        snprintf(name, sizeof name, "%s array %d", op_kind_name(c->kind), i);
        cf_buf_kind kind = a->role == OP_OUT_READBACK ? CF_BUF_READBACK : CF_BUF_DEVICE;
        CF_TRY(cf_gpu_buf_create(gpu, kind, room, name, &run->bufs[i], err));
        memcpy(host + at + a->lead, a->data, a->bytes);
        cf_gpu_copy(gpu, CF_STREAM_COMPUTE, cf_span_of(run->bufs[i]),
                    (cf_span){run->staging, at, room});
        for (int f = 0; f < a->n_fields; f++)
            *(cf_span *)(void *)((uint8_t *)c + a->fields[f]) =
                (cf_span){run->bufs[i], a->lead, a->bytes};
        at += room;
    }
fail:
    return rc;
}

/* Takes the outputs; checks every byte around them and every input. */
static void run_collect(const struct run *run, const op_case *c, op_result *out)
{
    const uint8_t *results = cf_gpu_host_read(cf_span_of(run->readback));
    out->guards_intact = true;
    for (int i = 0; i < c->n_arrays; i++) {
        const op_array *a = &c->arrays[i];
        uint64_t room = array_room(a);
        const uint8_t *host = results;
        if (a->role == OP_OUT_READBACK)
            host = cf_gpu_host_read(cf_span_of(run->bufs[i]));
        for (uint64_t j = 0; j < room; j++)
            if ((j < a->lead || j >= a->lead + a->bytes) && host[j] != OP_GUARD)
                out->guards_intact = false;
        if (a->role == OP_IN) {
            out->guards_intact &= !memcmp(host + a->lead, a->data, a->bytes);
        } else {
            out->data[i] = malloc(a->bytes);
            cf_assert(out->data[i] != NULL);
            memcpy(out->data[i], host + a->lead, a->bytes);
        }
        results += room;
    }
}

int op_case_run(const op_case *original, cf_gpu *gpu, uint32_t split, op_result *out, cf_err *err)
{
    int rc = 0;
    uint64_t value, at = 0;
    struct run run = {0};
    op_case c = *original; /* spans and experts are bound in the copy; arrays are shared */
    *out = (op_result){0};
    CF_TRY(run_begin(&run, gpu, &c, err));
    cf_gpu_barrier(gpu, CF_STREAM_COMPUTE);
    if (split) {
        op_case first = c;
        rows_select(&first, 0, split);
        op_record(gpu, &first);
        rows_select(&c, split, op_case_rows(&c) - split);
    }
    op_record(gpu, &c);
    cf_gpu_barrier(gpu, CF_STREAM_COMPUTE);
    for (int i = 0; i < c.n_arrays; i++) {
        uint64_t room = array_room(&c.arrays[i]);
        if (c.arrays[i].role != OP_OUT_READBACK)
            cf_gpu_copy(gpu, CF_STREAM_COMPUTE, (cf_span){run.readback, at, room},
                        cf_span_of(run.bufs[i]));
        at += room;
    }
    CF_TRY(cf_gpu_submit(gpu, CF_STREAM_COMPUTE, NULL, 0, &value, err));
    CF_TRY(cf_gpu_wait(gpu, (cf_gpu_point){CF_STREAM_COMPUTE, value}, err));
    run_collect(&run, &c, out);
fail:
    run_finish(&run);
    return rc;
}

void op_result_free(op_result *r)
{
    for (int i = 0; i < OP_MAX_ARRAYS; i++)
        free(r->data[i]);
    *r = (op_result){0};
}
