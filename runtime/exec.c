/* The executor: see exec.h. Steps that are more than a few ops have files of their own. */
#include "runtime/exec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/exec_internal.h"

/* ---- recording ---- */

void exec_barrier(cf_exec *x)
{
    if (x->recorded)
        cf_gpu_barrier(x->gpu, CF_STREAM_COMPUTE);
    x->recorded = false;
}

int exec_submit(cf_exec *x, cf_gpu_point wait, cf_gpu_point *point, cf_err *err)
{
    point->stream = CF_STREAM_COMPUTE;
    x->open = false;
    if (x->dense_ready.value > wait.value)
        wait = x->dense_ready;
    x->dense_ready = (cf_gpu_point){CF_STREAM_TRANSFER, 0};
    int rc = x->times && wait.value ? exec_profile_copies(x, wait, err) : 0;
    if (rc >= 0)
        rc = cf_gpu_submit(x->gpu, CF_STREAM_COMPUTE, &wait, wait.value ? 1 : 0, &point->value,
                           err);
    if (x->e->dense && rc >= 0)
        cf_dense_submitted(x->e->dense, *point);
    return rc;
}

int exec_finish(cf_exec *x, cf_err *err)
{
    cf_gpu_point point;
    int rc = exec_submit(x, (cf_gpu_point){CF_STREAM_TRANSFER, 0}, &point, err);
    uint64_t begin = cf_clock_ns();
    if (rc >= 0)
        rc = cf_gpu_wait(x->gpu, point, err);
    uint64_t end = cf_clock_ns();
    x->e->counters.device_stall_ns += end - begin;
    cf_timeline_add(x->e->timeline,
                    &(cf_timeline_event){.begin_ns = begin, .end_ns = end, .name = "device",
                                         .expert = CF_TIMELINE_NONE, .layer = CF_TIMELINE_NONE,
                                         .track = CF_TRACK_DEVICE_WAITS});
    x->recorded = false;
    if (x->e->dense && rc >= 0)
        cf_dense_collect(x->e->dense);
    return rc;
}

static void linear(cf_exec *x, const cf_weight *w, cf_span src, uint32_t src_stride, cf_span dst,
                   uint32_t dst_stride, float scale, bool accumulate, bool q8)
{
    cf_gpu_linear(x->gpu, CF_STREAM_COMPUTE,
                  &(cf_op_linear){.w = *w, .x = src, .y = dst, .n_rows = x->n_rows,
                                  .x_stride = src_stride, .y_stride = dst_stride, .scale = scale,
                                  .accumulate = accumulate, .x_q8 = q8});
    exec_recorded(x);
}

void exec_linear(cf_exec *x, cf_wid w, cf_span src, uint32_t src_stride, cf_span dst,
                 uint32_t dst_stride, float scale, bool accumulate)
{
    cf_weight m = exec_weight(x, w);
    linear(x, &m, src, src_stride, dst, dst_stride, scale, accumulate, exec_q8(x, &m));
}

void exec_linear_exact(cf_exec *x, cf_wid w, cf_span src, uint32_t src_stride, cf_span dst,
                       uint32_t dst_stride, float scale, bool accumulate)
{
    cf_weight m = exec_weight(x, w);
    linear(x, &m, src, src_stride, dst, dst_stride, scale, accumulate, false);
}

void exec_rotate(cf_exec *x, uint32_t rope_def, cf_span span, uint32_t skip, uint32_t heads,
                 uint32_t stride, uint32_t head_stride)
{
    const cf_rope_def *rope = &x->model->ropes[rope_def];
    uint64_t off = 0, skip_bytes = skip * sizeof(float);
    for (uint32_t i = 0; i < rope_def; i++)
        off += (uint64_t)x->e->plan.chunk * x->model->ropes[i].n_rot * sizeof(float);
    cf_span cos_sin = cf_span_sub(cf_span_of(x->xb[CF_XB_COS_SIN]), off,
                                  (uint64_t)x->n_rows * rope->n_rot * sizeof(float));
    cf_gpu_rope(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_rope){.x = cf_span_sub(span, skip_bytes, span.bytes - skip_bytes),
                              .cos_sin = cos_sin, .n_rows = x->n_rows, .n_heads = heads,
                              .n_rot = rope->n_rot, .stride = stride, .head_stride = head_stride,
                              .layout = rope->layout});
    exec_recorded(x);
}

/* ---- small steps ---- */

static int step_linear(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    exec_barrier(x);
    cf_span src = exec_act(x, s->src);
    uint64_t skip = s->u.linear.src_col * sizeof(float);
    exec_linear(x, s->u.linear.w, cf_span_sub(src, skip, src.bytes - skip), exec_width(x, s->src),
                exec_act(x, s->dst), exec_width(x, s->dst), s->u.linear.scale,
                s->u.linear.accumulate);
    return 0;
}

static int step_norm(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    exec_barrier(x);
    cf_weight w = exec_weight(x, s->u.norm.w);
    cf_gpu_norm(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_norm){.kind = s->u.norm.kind, .w = w,
                              .bias = exec_weight(x, s->u.norm.bias), .x = exec_act(x, s->src),
                              .y = exec_act(x, s->dst), .n_rows = x->n_rows, .n_heads = 1,
                              .width = w.cols, .x_stride = exec_width(x, s->src),
                              .y_stride = exec_width(x, s->dst), .eps = s->u.norm.eps, .scale = 1,
                              .unit_offset = s->u.norm.unit_offset});
    exec_recorded(x);
    return 0;
}

static int step_dense(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    bool gated = s->u.dense.up != CF_NO_WEIGHT;
    cf_span src = exec_act(x, s->src), g = exec_act(x, s->u.dense.g), u = {0};
    uint32_t width = exec_width(x, s->src), inner = s->u.dense.ffn;
    exec_barrier(x);
    exec_linear(x, s->u.dense.gate, src, width, g, inner, 1, false);
    if (gated) {
        u = exec_act(x, s->u.dense.u);
        exec_linear(x, s->u.dense.up, src, width, u, inner, 1, false);
    }
    exec_barrier(x);
    cf_gpu_glu(x->gpu, CF_STREAM_COMPUTE,
               &(cf_op_glu){.g = g, .u = u, .y = g, .n = (uint64_t)x->n_rows * inner,
                            .act = s->u.dense.act});
    exec_recorded(x);
    exec_barrier(x);
    exec_linear(x, s->u.dense.down, g, inner, exec_act(x, s->dst), exec_width(x, s->dst), 1, false);
    return 0;
}

static int step_gate(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    cf_span y = exec_act(x, s->dst), g = exec_act(x, s->u.gate.g);
    uint32_t width = exec_width(x, s->dst);
    exec_linear(x, s->u.gate.w, exec_act(x, s->src), exec_width(x, s->src), g, 1, 1, false);
    exec_barrier(x);
    cf_gpu_map(x->gpu, CF_STREAM_COMPUTE,
               &(cf_op_map){.kind = CF_MAP_MUL_SIGMOID, .a = y, .b = g, .y = y,
                            .n_rows = x->n_rows, .width = width, .a_stride = width, .b_stride = 1,
                            .b_width = 1, .y_stride = width});
    exec_recorded(x);
    return 0;
}

static int step_add(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    exec_barrier(x);
    cf_gpu_add(x->gpu, CF_STREAM_COMPUTE,
               &(cf_op_add){.a = exec_act(x, s->dst), .b = exec_act(x, s->src),
                            .y = exec_act(x, s->dst),
                            .n = (uint64_t)x->n_rows * exec_width(x, s->dst), .alpha = 1,
                            .beta = s->u.add.scale});
    exec_recorded(x);
    return 0;
}

static int step_scale(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    exec_barrier(x);
    cf_gpu_add(x->gpu, CF_STREAM_COMPUTE,
               &(cf_op_add){.a = exec_act(x, s->dst), .y = exec_act(x, s->dst),
                            .n = (uint64_t)x->n_rows * exec_width(x, s->dst),
                            .alpha = s->u.scale.scale});
    exec_recorded(x);
    return 0;
}

/* Brings rows [first, first + n) of an activation to CF_XB_HIDDEN and waits for them. */
static int hidden_read(cf_exec *x, cf_bufid buf, uint32_t first, uint32_t n, const float **out,
                       cf_err *err)
{
    uint64_t row_bytes = exec_width(x, buf) * sizeof(float);
    cf_span to = cf_span_sub(cf_span_of(x->xb[CF_XB_HIDDEN]), 0, n * row_bytes);
    cf_gpu_copy(x->gpu, CF_STREAM_COMPUTE, to,
                cf_span_sub(exec_act(x, buf), first * row_bytes, n * row_bytes));
    exec_recorded(x);
    int rc = exec_finish(x, err);
    *out = rc < 0 ? NULL : cf_gpu_host_read(to);
    return rc;
}

static int step_tap(cf_exec *x, const cf_step *s, cf_err *err)
{
    const cf_outputs *o = x->batch->outputs;
    if (!o || !o->layer)
        return 0;
    exec_barrier(x);
    for (uint32_t i = 0; i < x->n_rows; i += CF_HEAD_ROWS) {
        uint32_t n = (uint32_t)cf_min_u64(x->n_rows - i, CF_HEAD_ROWS);
        const float *hidden;
        int rc = hidden_read(x, s->src, i, n, &hidden, err);
        if (rc < 0)
            return rc;
        o->layer(o->user, s->layer, x->batch->rows[i].position, n, hidden);
    }
    return 0;
}

/* Logits, and the final hidden state, of rows [first, first + n). */
static int head_rows(cf_exec *x, const cf_step *s, uint32_t first, uint32_t n, cf_err *err)
{
    uint32_t width = exec_width(x, s->src), vocab = x->model->spec.vocab;
    cf_span src = exec_act(x, s->src);
    uint64_t skip = (uint64_t)first * width * sizeof(float);
    cf_span logits = cf_span_of(x->xb[CF_XB_LOGITS]);
    cf_gpu_linear(x->gpu, CF_STREAM_COMPUTE,
                  &(cf_op_linear){.w = exec_weight(x, s->u.head.w),
                                  .bias = exec_weight(x, s->u.head.bias),
                                  .x = cf_span_sub(src, skip, src.bytes - skip), .y = logits,
                                  .n_rows = n, .x_stride = width, .y_stride = vocab,
                                  .scale = s->u.head.scale});
    exec_recorded(x);
    if (s->u.head.cap > 0) {
        exec_barrier(x);
        cf_gpu_map(x->gpu, CF_STREAM_COMPUTE,
                   &(cf_op_map){.kind = CF_MAP_SOFTCAP, .a = logits, .y = logits, .n_rows = n,
                                .width = vocab, .a_stride = vocab, .y_stride = vocab,
                                .p = s->u.head.cap});
    }
    const float *hidden;
    int rc = hidden_read(x, s->src, first, n, &hidden, err);
    if (rc < 0 || x->dense_rc < 0) /* no one is told what bytes that did not come have made */
        return rc < 0 ? rc : x->dense_rc;
    const float *values = cf_gpu_host_read(logits);
    const cf_outputs *o = x->batch->outputs;
    for (uint32_t i = 0; o && o->row && i < n; i++)
        o->row(o->user, x->batch->rows[first + i].position, values + (size_t)i * vocab,
               hidden + (size_t)i * width);
    x->logits = values + (size_t)(n - 1) * vocab;
    return 0;
}

static bool head_is_wanted(const cf_exec *x)
{
    const cf_outputs *o = x->batch->outputs;
    return (o && o->row) || x->batch->last_logits;
}

static int step_head(cf_exec *x, const cf_step *s, cf_err *err)
{
    const cf_outputs *o = x->batch->outputs;
    bool all = o && o->row;
    if (!head_is_wanted(x))
        return 0;
    exec_barrier(x);
    for (uint32_t i = all ? 0 : x->n_rows - 1; i < x->n_rows; i += CF_HEAD_ROWS) {
        int rc = head_rows(x, s, i, (uint32_t)cf_min_u64(x->n_rows - i, CF_HEAD_ROWS), err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- a batch ---- */

/* Positions and rotations of the batch's rows. Computed on the host: device sines are not exact
 * enough for large angles, and every backend then rotates by the same numbers. */
static void rows_upload(cf_exec *x)
{
    uint32_t n = x->n_rows, ctx = x->e->plan.ctx;
    cf_row_info *info = cf_gpu_host_write(
        cf_span_sub(cf_span_of(x->xb[CF_XB_ROW_INFO]), 0, n * sizeof *info));
    cf_row_info *cross = NULL;
    if (x->model->n_encoder_steps && !x->batch->encoder)
        cross = cf_gpu_host_write(
            cf_span_sub(cf_span_of(x->xb[CF_XB_CROSS_INFO]), 0, n * sizeof *cross));
    x->most_cells = 0;
    for (uint32_t r = 0; r < n; r++) {
        const cf_row *row = &x->batch->rows[r];
        if (row->position >= x->most_cells)
            x->most_cells = row->position + 1;
        uint32_t first = row->session->index * ctx;
        info[r] = (cf_row_info){.cell = first + row->position, .first_cell = first,
                                .n_cells = x->batch->encoder ? n : row->position + 1,
                                .position = row->position};
        if (cross)
            cross[r] = (cf_row_info){.first_cell = first, .n_cells = row->session->encoded,
                                     .position = row->session->encoded - 1};
    }
    if (x->tune_floor) {
        float *scale = cf_gpu_host_write(
            cf_span_sub(cf_span_of(x->xb[CF_XB_ROW_SCALE]), 0, n * sizeof *scale));
        for (uint32_t r = 0; r < n; r++) {
            uint32_t steps = (x->batch->rows[r].position + 1) / x->tune_floor;
            scale[r] = 1 + x->tune_scale * logf(1 + (float)steps);
        }
    }
    if (x->sharp_from) {
        float *sharp = cf_gpu_host_write(
            cf_span_sub(cf_span_of(x->xb[CF_XB_ROW_SCALE]), 0, n * sizeof *sharp));
        for (uint32_t r = 0; r < n; r++) {
            uint32_t position = x->batch->rows[r].position;
            bool far = position > x->sharp_from;
            sharp[r] = far ? log2f((float)position) / log2f((float)x->sharp_from) : 1;
        }
    }
    uint64_t off = 0;
    for (uint32_t i = 0; i < x->model->n_ropes; i++) {
        const cf_rope_def *rope = &x->model->ropes[i];
        uint64_t bytes = (uint64_t)n * rope->n_rot * sizeof(float);
        bool far = rope->near_ctx && ctx > rope->near_ctx;
        const float *inv_freq = far ? rope->far_inv_freq : rope->inv_freq;
        float amplitude = far ? rope->far_amplitude : rope->amplitude;
        float *cs = cf_gpu_host_write(cf_span_sub(cf_span_of(x->xb[CF_XB_COS_SIN]), off, bytes));
        for (uint32_t r = 0; r < n; r++)
            for (uint32_t j = 0; j < rope->n_rot / 2; j++) {
                float angle = (float)x->batch->rows[r].position * inv_freq[j];
                *cs++ = cosf(angle) * amplitude;
                *cs++ = sinf(angle) * amplitude;
            }
        off += (uint64_t)x->e->plan.chunk * rope->n_rot * sizeof(float);
    }
}

int exec_step(cf_exec *x, const cf_step *s, cf_err *err)
{
    switch (s->kind) {
    case CF_STEP_EMBED:
        return exec_embed(x, s, err);
    case CF_STEP_ROWS:
        return exec_rows(x, s, err);
    case CF_STEP_LINEAR:
        return step_linear(x, s, err);
    case CF_STEP_NORM:
        return step_norm(x, s, err);
    case CF_STEP_ATTN_LATENT:
        return exec_attn_latent(x, s, err);
    case CF_STEP_ATTN:
        return exec_attn(x, s, err);
    case CF_STEP_ATTN_DELTA:
        return exec_attn_delta(x, s, err);
    case CF_STEP_ATTN_DECAY:
        return exec_attn_decay(x, s, err);
    case CF_STEP_ATTN_BIAS:
        return exec_attn_bias(x, s, err);
    case CF_STEP_CROSS_KV:
        return exec_cross_kv(x, s, err);
    case CF_STEP_ATTN_CROSS:
        return exec_attn_cross(x, s, err);
    case CF_STEP_DENSE:
        return step_dense(x, s, err);
    case CF_STEP_GATE:
        return step_gate(x, s, err);
    case CF_STEP_ROUTE:
        return exec_route(x, s, err);
    case CF_STEP_EXPERTS:
        return exec_experts(x, s, err);
    case CF_STEP_ADD:
        return step_add(x, s, err);
    case CF_STEP_SCALE:
        return step_scale(x, s, err);
    case CF_STEP_TAP:
        return step_tap(x, s, err);
    case CF_STEP_HEAD:
        return step_head(x, s, err);
    }
    return CF_FAIL(err, -EINVAL, "step kind %d is unknown", (int)s->kind);
}

static int step_run(cf_exec *x, const cf_step *s, cf_err *err)
{
    uint64_t begin = cf_timeline_now(x->e->timeline);
    int rc = x->times ? exec_profile_step(x, s, err) : exec_step(x, s, err);
    if (x->dense_rc < 0) /* the cause of whatever else went wrong */
        rc = x->dense_rc;
    else if (x->e->dense)
        cf_dense_step_end(x->e->dense, s->kind == CF_STEP_EXPERTS);
    cf_timeline_mark(x->e->timeline, CF_TRACK_STEPS, cf_step_name(s->kind), s->layer,
                     CF_TIMELINE_NONE, begin);
    return rc;
}

int cf_exec_run(cf_exec *x, const cf_batch *batch, const float **logits, cf_err *err)
{
    static const char *const phases[] = {[CF_PHASE_PROMPT] = "prefill",
                                         [CF_PHASE_DECODE] = "decode", [CF_PHASE_TEXT] = "text"};
    uint64_t begin = cf_timeline_now(x->e->timeline);
    int rc = 0;
    x->batch = batch;
    x->n_rows = batch->n_rows;
    x->raw_off = 0;
    x->logits = NULL;
    x->recorded = false;
    x->dense_ready = (cf_gpu_point){CF_STREAM_TRANSFER, 0};
    x->dense_rc = 0;
    x->err = err;
    if (x->e->dense)
        cf_dense_begin(x->e->dense, head_is_wanted(x));
    rows_upload(x);
    exec_runs_upload(x);
    cf_policy_chunk(x->e->policy, batch->n_rows);
    const cf_model *m = x->model;
    uint32_t begin_step = batch->encoder ? 0 : m->n_encoder_steps;
    uint32_t end_step = batch->encoder ? m->n_encoder_steps : m->n_steps;
    for (uint32_t i = begin_step; i < end_step && rc == 0; i++) {
        if (atomic_load_explicit(&x->e->cancelled, memory_order_relaxed))
            rc = CF_FAIL(err, -ECANCELED, "interrupted");
        else
            rc = step_run(x, &m->steps[i], err);
    }
    if (rc < 0)
        cf_cache_abort(x->e->cache);
    /* The next batch writes where this one reads. */
    if (rc < 0 || x->open || x->recorded) {
        int end = exec_finish(x, rc < 0 ? NULL : err);
        rc = rc < 0 ? rc : end;
    }
    if (x->e->dense)
        cf_dense_end(x->e->dense);
    *logits = rc < 0 ? NULL : x->logits;
    cf_timeline_mark(x->e->timeline, CF_TRACK_STEPS, phases[batch->phase], CF_TIMELINE_NONE,
                     batch->n_rows, begin);
    return rc;
}

/* ---- life ---- */

static int device_buffers_create(cf_exec *x, cf_err *err)
{
    static const char *const names[CF_XB_COUNT] = {
        "expert ids", "expert weights", "expert ids for the host", "expert weights for the host",
        "expert pairs", "expert inner rows", "expert rows", "logits", "hidden states", "row info",
        "token ids", "raw rows", "rotations", "row factors",
        "runs of rows", "constants", "ids as picked",
        "weights as picked", "logits for the host", "encoder info", "scores of cells",
        "foreseen choice", "foreseen choice for the host"};
    static const cf_buf_kind kinds[CF_XB_COUNT] = {
        CF_BUF_DEVICE, CF_BUF_DEVICE, CF_BUF_READBACK, CF_BUF_READBACK, CF_BUF_UPLOAD,
        CF_BUF_DEVICE, CF_BUF_DEVICE, CF_BUF_READBACK, CF_BUF_READBACK, CF_BUF_UPLOAD,
        CF_BUF_UPLOAD, CF_BUF_UPLOAD, CF_BUF_UPLOAD, CF_BUF_UPLOAD, CF_BUF_UPLOAD,
        CF_BUF_UPLOAD, CF_BUF_UPLOAD, CF_BUF_UPLOAD, CF_BUF_READBACK, CF_BUF_UPLOAD, CF_BUF_DEVICE,
        CF_BUF_DEVICE, CF_BUF_READBACK};
    int rc = 0;
    const cf_memory_plan *p = &x->e->plan;
    for (uint32_t i = 0; i < x->model->n_bufs; i++) {
        uint64_t bytes = (uint64_t)p->chunk * x->model->bufs[i].width * sizeof(float);
        CF_TRY(cf_gpu_buf_create(x->gpu, CF_BUF_DEVICE, cf_align_up(bytes, 4096),
                                 x->model->bufs[i].name, &x->acts[i], err));
    }
    const cf_kv_def *kv = &x->model->kv;
    for (uint32_t i = 0; i < kv->slots + kv->index_slots; i++)
        CF_TRY(cf_gpu_buf_create(x->gpu, CF_BUF_DEVICE,
                                 i < kv->slots ? p->kv_slot_bytes : p->index_slot_bytes,
                                 i < kv->slots ? "KV cache" : "index keys", &x->kv[i], err));
    for (int i = 0; i < CF_XB_COUNT; i++)
        CF_TRY(cf_gpu_buf_create(x->gpu, kinds[i], p->exec_bytes[i], names[i], &x->xb[i], err));
fail:
    return rc;
}

int cf_exec_create(cf_exec **out, cf_engine *engine, cf_err *err)
{
    const cf_model *m = engine->model;
    uint32_t k = 1, experts = 1, tables = m->n_tables + 1, chunk = engine->plan.chunk;
    for (uint32_t i = 0; i < m->n_moe; i++) {
        k = m->moe[i].top_k > k ? m->moe[i].top_k : k;
        experts = m->moe[i].experts > experts ? m->moe[i].experts : experts;
    }
    cf_exec *x = calloc(1, sizeof *x);
    if (!x)
        return CF_FAIL(err, -ENOMEM, "out of memory for the executor");
    int rc = 0;
    x->e = engine;
    x->gpu = engine->gpu;
    x->model = m;
    x->acts = calloc(m->n_bufs + 1, sizeof(cf_gpu_buf *));
    x->kv = calloc(m->kv.slots + m->kv.index_slots + 1, sizeof(cf_gpu_buf *));
    x->chosen = calloc((size_t)chunk * k, sizeof *x->chosen);
    x->weights = calloc((size_t)chunk * k, sizeof *x->weights);
    x->expert_list = calloc(experts, sizeof *x->expert_list);
    x->expert_rows = calloc(experts, sizeof *x->expert_rows);
    x->pair_begin = calloc(experts, sizeof *x->pair_begin);
    x->taken = calloc(CF_EXPERTS_PER_OP, sizeof *x->taken);
    x->work = calloc(CF_EXPERTS_PER_OP, sizeof *x->work);
    x->row_ids = calloc((size_t)chunk * tables, sizeof *x->row_ids);
    x->predicts = calloc((size_t)m->n_moe + 1, sizeof *x->predicts);
    x->wants = calloc(experts, sizeof *x->wants);
    x->guessed = calloc(experts, sizeof *x->guessed);
    if (engine->plan.router_bytes) {
        x->router_tokens = malloc(engine->plan.router_bytes);
        x->router_scratch = x->router_tokens ? x->router_tokens + chunk + chunk % 2 : NULL;
    }
    if (engine->plan.router_bytes && !x->router_tokens) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for the routing of a chunk of %u", chunk);
        goto fail;
    }
    if (!x->acts || !x->kv || !x->chosen || !x->weights || !x->expert_list || !x->expert_rows ||
        !x->pair_begin || !x->taken || !x->work || !x->row_ids || !x->predicts || !x->wants ||
        !x->guessed) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for the tables of a chunk of %u", chunk);
        goto fail;
    }
    CF_TRY(device_buffers_create(x, err));
    CF_TRY(exec_states_create(x, err));
    for (uint32_t i = 0; i < m->n_steps; i++)
        if (m->steps[i].kind == CF_STEP_ROUTE)
            x->predicts[m->steps[i].u.route.moe] = cf_predict_find(m, i);
    /* One tuning serves all layers that have it. */
    for (uint32_t i = 0; i < m->n_steps; i++)
        if (m->steps[i].kind == CF_STEP_ATTN && m->steps[i].u.attn.tune_floor) {
            x->tune_floor = m->steps[i].u.attn.tune_floor;
            x->tune_scale = m->steps[i].u.attn.tune_scale;
        }
    for (uint32_t i = 0; i < m->n_steps; i++)
        if (m->steps[i].kind == CF_STEP_ATTN && m->steps[i].u.attn.sharp_from)
            x->sharp_from = m->steps[i].u.attn.sharp_from;
    cf_assert(!x->tune_floor || !x->sharp_from); /* they share a buffer */
    *out = x;
    return 0;
fail:
    cf_exec_destroy(&x);
    return rc;
}

void cf_exec_destroy(cf_exec **exec)
{
    cf_exec *x = *exec;
    if (!x)
        return;
    for (uint32_t i = 0; x->acts && i < x->model->n_bufs; i++)
        cf_gpu_buf_destroy(&x->acts[i]);
    for (uint32_t i = 0; x->kv && i < x->model->kv.slots + x->model->kv.index_slots; i++)
        cf_gpu_buf_destroy(&x->kv[i]);
    for (int i = 0; i < CF_XB_COUNT; i++)
        cf_gpu_buf_destroy(&x->xb[i]);
    exec_states_destroy(x);
    free(x->acts);
    free(x->kv);
    free(x->chosen);
    free(x->weights);
    free(x->expert_list);
    free(x->expert_rows);
    free(x->pair_begin);
    free(x->taken);
    free(x->work);
    free(x->row_ids);
    free(x->router_tokens);
    free(x->predicts);
    free(x->wants);
    free(x->guessed);
    free(x);
    *exec = NULL;
}
