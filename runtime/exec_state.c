/* Attention that keeps a state of fixed size per session instead of a cache.
 *
 * Each state has two slots a session: a batch reads the one that holds the session and leaves the
 * other; the session turns to it when the batch has succeeded (session.c). A session that begins
 * reads neither, so nothing is ever cleared.
 * Threads: the engine thread. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/exec_internal.h"

/* ---- life and batches ---- */

int exec_states_create(cf_exec *x, cf_err *err)
{
    int rc = 0;
    const cf_model *m = x->model;
    x->states = calloc(m->n_states + 1, sizeof *x->states);
    if (!x->states)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u states", m->n_states);
    for (uint32_t i = 0; i < m->n_states; i++)
        CF_TRY(cf_gpu_buf_create(x->gpu, CF_BUF_DEVICE,
                                 cf_state_slots_bytes(&x->e->plan, &m->states[i]),
                                 "recurrent state", &x->states[i], err));
    if (m->n_constants) {
        uint64_t bytes = m->n_constants * sizeof *m->constants;
        memcpy(cf_gpu_host_write(cf_span_sub(cf_span_of(x->xb[CF_XB_CONSTANTS]), 0, bytes)),
               m->constants, bytes);
    }
fail:
    return rc;
}

void exec_states_destroy(cf_exec *x)
{
    for (uint32_t i = 0; x->states && i < x->model->n_states; i++)
        cf_gpu_buf_destroy(&x->states[i]);
    free(x->states);
}

void exec_runs_upload(cf_exec *x)
{
    x->n_runs = 0;
    if (!x->model->n_states)
        return;
    cf_state_run *runs =
        cf_gpu_host_write(cf_span_sub(cf_span_of(x->xb[CF_XB_RUNS]), 0, x->n_rows * sizeof *runs));
    const cf_session *last = NULL;
    for (uint32_t r = 0; r < x->n_rows; r++) {
        const cf_row *row = &x->batch->rows[r];
        const cf_session *s = row->session;
        if (s == last) {
            runs[x->n_runs - 1].n_rows++;
            continue;
        }
        uint32_t slot = 2 * s->index;
        runs[x->n_runs++] = (cf_state_run){.first_row = r,
                                           .n_rows = 1,
                                           .from = row->position ? slot + s->turn : CF_NO_STATE,
                                           .to = slot + (s->turn ^ 1)};
        last = s;
    }
}

static cf_span runs_span(const cf_exec *x)
{
    return cf_span_sub(cf_span_of(x->xb[CF_XB_RUNS]), 0, x->n_runs * sizeof(cf_state_run));
}

/* Behind the first `floats` of a span. */
static cf_span past(cf_span s, uint64_t floats)
{
    return cf_span_sub(s, floats * sizeof(float), s.bytes - floats * sizeof(float));
}

/* ---- the delta rule ---- */

/* Channels [first, first + heads * width) of the convolution, which lie `at` floats into each of
 * `heads` heads of the projection, or, where the gates are apart, in the channels' own order. */
static void delta_conv(cf_exec *x, const cf_attn_delta_def *d, uint32_t first, uint32_t heads,
                       uint32_t width, uint32_t at)
{
    cf_weight w = exec_weight(x, d->conv);
    bool apart = d->z != CF_NO_WEIGHT;
    uint32_t channels = w.rows, in = x->model->bufs[d->in_buf].width;
    w.row_first = first;
    w.rows = heads * width;
    cf_gpu_conv(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_conv){.w = w,
                              .x = past(exec_act(x, d->in_buf), apart ? first : at),
                              .y = past(exec_act(x, d->conv_buf), first),
                              .state = past(cf_span_of(x->states[d->conv_state]), first),
                              .runs = runs_span(x),
                              .n_rows = x->n_rows,
                              .n_runs = x->n_runs,
                              .n_slots = 2 * x->e->plan.sessions,
                              .n_heads = heads,
                              .width = width,
                              .n_taps = d->taps,
                              .x_stride = in,
                              .x_head_stride = apart ? width : in / d->k_heads,
                              .y_stride = channels,
                              .state_stride = channels,
                              .silu = true});
    exec_recorded(x);
}

/* q or k in place: x / sqrt(sum x^2 + eps) * scale, as an rms norm of `width` values. */
static void delta_l2(cf_exec *x, const cf_attn_delta_def *d, cf_span span, float scale)
{
    uint32_t stride = x->model->bufs[d->conv_buf].width;
    float width = (float)d->d_k;
    cf_gpu_norm(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_norm){.kind = CF_NORM_RMS,
                              .x = span,
                              .y = span,
                              .n_rows = x->n_rows,
                              .n_heads = d->k_heads,
                              .width = d->d_k,
                              .x_stride = stride,
                              .x_head_stride = d->d_k,
                              .y_stride = stride,
                              .y_head_stride = d->d_k,
                              .eps = d->l2_eps / width,
                              .scale = scale / sqrtf(width)});
    exec_recorded(x);
}

static void delta_project(cf_exec *x, cf_wid w, cf_bufid to, cf_span src, uint32_t width)
{
    if (w != CF_NO_WEIGHT)
        exec_linear(x, w, src, width, exec_act(x, to), exec_width(x, to), 1, false);
}

/* Decay and beta of each row and head. */
static void delta_gates(cf_exec *x, const cf_attn_delta_def *d)
{
    uint32_t per = d->heads / d->k_heads;
    bool apart = d->a != CF_NO_WEIGHT;
    cf_span gates = exec_act(x, d->gates_buf);
    cf_weight a_log = exec_weight(x, d->a_log);
    if (d->a_log == CF_NO_WEIGHT)
        a_log = (cf_weight){.span = cf_span_sub(cf_span_of(x->xb[CF_XB_CONSTANTS]),
                                                d->a_log_at * sizeof(float),
                                                d->heads * sizeof(float)),
                            .dtype = CF_F32,
                            .rows = 1,
                            .cols = d->heads};
    cf_gpu_state_gates(x->gpu, CF_STREAM_COMPUTE,
                       &(cf_op_state_gates){.a_log = a_log,
                                            .dt_bias = exec_weight(x, d->dt_bias),
                                            .a = apart ? exec_act(x, d->a_buf) : past(gates, per),
                                            .b = gates,
                                            .decay = exec_act(x, d->decay_buf),
                                            .beta = exec_act(x, d->beta_buf),
                                            .n_rows = x->n_rows,
                                            .n_heads = d->heads,
                                            .stride = apart ? d->heads : 2 * d->heads,
                                            .group = per,
                                            .group_stride = apart ? per : 2 * per});
    exec_recorded(x);
}

/* Projections, convolution and gates: conv_buf holds q | k | v, decay and beta are there. */
static void delta_prepare(cf_exec *x, const cf_attn_delta_def *d, cf_span src, uint32_t width)
{
    uint32_t per = d->heads / d->k_heads, keys = d->k_heads * d->d_k;
    cf_span conv = exec_act(x, d->conv_buf);
    exec_barrier(x);
    delta_project(x, d->in, d->in_buf, src, width);
    delta_project(x, d->z, d->z_buf, src, width);
    delta_project(x, d->gates, d->gates_buf, src, width);
    delta_project(x, d->a, d->a_buf, src, width);
    exec_barrier(x);
    delta_conv(x, d, 0, d->k_heads, d->d_k, 0);
    delta_conv(x, d, keys, d->k_heads, d->d_k, d->d_k);
    delta_conv(x, d, 2 * keys, d->k_heads, per * d->d_v, 2 * d->d_k);
    delta_gates(x, d);
    exec_barrier(x);
    delta_l2(x, d, conv, 1 / sqrtf((float)d->d_k));
    delta_l2(x, d, past(conv, keys), 1);
}

/* o = norm of each head of o, times silu of the gates: they end each key head of the projection, or
 * are apart. */
static void delta_output(cf_exec *x, const cf_attn_delta_def *d, cf_span o)
{
    uint32_t per = d->heads / d->k_heads, stride = d->heads * d->d_v;
    bool apart = d->z != CF_NO_WEIGHT;
    uint32_t in = apart ? stride : x->model->bufs[d->in_buf].width;
    exec_barrier(x);
    cf_gpu_norm(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_norm){.kind = CF_NORM_RMS,
                              .w = exec_weight(x, d->norm),
                              .x = o,
                              .y = o,
                              .n_rows = x->n_rows,
                              .n_heads = d->heads,
                              .width = d->d_v,
                              .x_stride = stride,
                              .x_head_stride = d->d_v,
                              .y_stride = stride,
                              .y_head_stride = d->d_v,
                              .eps = d->norm_eps,
                              .scale = 1});
    exec_recorded(x);
    exec_barrier(x);
    cf_gpu_gate(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_gate){.g = apart ? exec_act(x, d->z_buf)
                                         : past(exec_act(x, d->in_buf), 2 * d->d_k + per * d->d_v),
                              .y = o,
                              .n_rows = x->n_rows,
                              .n_heads = d->k_heads,
                              .width = per * d->d_v,
                              .g_stride = in,
                              .g_head_stride = in / d->k_heads,
                              .y_stride = stride,
                              .y_head_stride = per * d->d_v,
                              .silu = true});
    exec_recorded(x);
}

int exec_attn_delta(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    const cf_attn_delta_def *d = &s->u.delta;
    uint32_t keys = d->k_heads * d->d_k;
    cf_span conv = exec_act(x, d->conv_buf), o = exec_act(x, d->o_buf);
    delta_prepare(x, d, exec_act(x, s->src), exec_width(x, s->src));
    exec_barrier(x);
    cf_gpu_attn_state(x->gpu, CF_STREAM_COMPUTE,
                      &(cf_op_attn_state){.q = conv,
                                          .k = past(conv, keys),
                                          .v = past(conv, 2 * keys),
                                          .decay = exec_act(x, d->decay_buf),
                                          .beta = exec_act(x, d->beta_buf),
                                          .y = o,
                                          .state = cf_span_of(x->states[d->state]),
                                          .runs = runs_span(x),
                                          .n_rows = x->n_rows,
                                          .n_runs = x->n_runs,
                                          .n_slots = 2 * x->e->plan.sessions,
                                          .n_heads = d->heads,
                                          .n_k_heads = d->k_heads,
                                          .d_k = d->d_k,
                                          .d_v = d->d_v,
                                          .stride = x->model->bufs[d->conv_buf].width,
                                          .k_head_stride = d->d_k,
                                          .v_head_stride = d->d_v,
                                          .decay_stride = d->heads,
                                          .k_tiled = d->k_tiled});
    exec_recorded(x);
    delta_output(x, d, o);
    exec_barrier(x);
    exec_linear(x, d->out, o, d->heads * d->d_v, exec_act(x, s->dst), exec_width(x, s->dst), 1,
                false);
    return 0;
}

/* ---- a fixed decay ---- */

/* q, k and v of each head, side by side, through silu; the gates of the output. */
static void decay_prepare(cf_exec *x, const cf_attn_decay_def *d, cf_span src, uint32_t width)
{
    cf_span qkv = exec_act(x, d->qkv_buf);
    uint32_t all = d->heads * d->head;
    exec_barrier(x);
    exec_linear(x, d->qkv, src, width, qkv, 3 * all, 1, false);
    exec_linear(x, d->gate, src, width, exec_act(x, d->gate_buf), all, 1, false);
    exec_barrier(x);
    cf_gpu_glu(
        x->gpu, CF_STREAM_COMPUTE,
        &(cf_op_glu){
            .g = qkv, .y = qkv, .n = (uint64_t)x->n_rows * 3 * all, .act = {.act = CF_ACT_SILU}});
    exec_recorded(x);
}

/* o = norm over all heads of o, times the sigmoid of its gates. */
static void decay_output(cf_exec *x, const cf_attn_decay_def *d, cf_span o)
{
    uint32_t all = d->heads * d->head;
    exec_barrier(x);
    cf_gpu_norm(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_norm){.kind = CF_NORM_RMS,
                              .w = exec_weight(x, d->norm),
                              .x = o,
                              .y = o,
                              .n_rows = x->n_rows,
                              .n_heads = 1,
                              .width = all,
                              .x_stride = all,
                              .y_stride = all,
                              .eps = d->norm_eps,
                              .scale = 1});
    exec_recorded(x);
    exec_barrier(x);
    cf_gpu_gate(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_gate){.g = exec_act(x, d->gate_buf),
                              .y = o,
                              .n_rows = x->n_rows,
                              .n_heads = 1,
                              .width = all,
                              .g_stride = all,
                              .y_stride = all});
    exec_recorded(x);
}

int exec_attn_decay(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    const cf_attn_decay_def *d = &s->u.decay;
    cf_span qkv = exec_act(x, d->qkv_buf), o = exec_act(x, d->o_buf);
    cf_span constants = cf_span_of(x->xb[CF_XB_CONSTANTS]);
    decay_prepare(x, d, exec_act(x, s->src), exec_width(x, s->src));
    exec_barrier(x);
    cf_gpu_attn_state(x->gpu, CF_STREAM_COMPUTE,
                      &(cf_op_attn_state){.q = qkv,
                                          .k = past(qkv, d->head),
                                          .v = past(qkv, 2 * d->head),
                                          .decay = cf_span_sub(constants, d->decay * sizeof(float),
                                                               d->heads * sizeof(float)),
                                          .y = o,
                                          .state = cf_span_of(x->states[d->state]),
                                          .runs = runs_span(x),
                                          .n_rows = x->n_rows,
                                          .n_runs = x->n_runs,
                                          .n_slots = 2 * x->e->plan.sessions,
                                          .n_heads = d->heads,
                                          .n_k_heads = d->heads,
                                          .d_k = d->head,
                                          .d_v = d->head,
                                          .stride = 3 * d->heads * d->head,
                                          .k_head_stride = 3 * d->head,
                                          .v_head_stride = 3 * d->head});
    exec_recorded(x);
    decay_output(x, d, o);
    exec_barrier(x);
    exec_linear(x, d->out, o, d->heads * d->head, exec_act(x, s->dst), exec_width(x, s->dst), 1,
                false);
    return 0;
}
