/* Grouped-query attention over cached keys and values.
 *
 *     q, k, v = projections of src (+ biases), clamped; q and k normed and rotated as cf_qk says
 *     k and v go to the cache; attention over what each row may see; dst = out o
 *
 * Gated: q's projection holds gates behind the queries of each head; o is multiplied by their sigmoid.
 * Queries (tune_floor) or scores (sharp_from) may be sharpened with the position: a factor of each
 * row, from the host. */
#include <math.h>

#include "runtime/exec_internal.h"

static void project(cf_exec *x, cf_wid w, cf_wid bias, cf_span src, uint32_t width, cf_span dst)
{
    cf_weight m = exec_weight(x, w);
    cf_gpu_linear(x->gpu, CF_STREAM_COMPUTE,
                  &(cf_op_linear){.w = m, .bias = exec_weight(x, bias), .x = src, .y = dst,
                                  .n_rows = x->n_rows, .x_stride = width, .y_stride = m.rows,
                                  .scale = 1, .x_q8 = exec_q8(x, &m)});
    exec_recorded(x);
}

static void clamp(cf_exec *x, cf_span span, uint32_t width, float limit)
{
    cf_gpu_map(x->gpu, CF_STREAM_COMPUTE,
               &(cf_op_map){.kind = CF_MAP_CLAMP, .a = span, .y = span, .n_rows = x->n_rows,
                            .width = width, .a_stride = width, .y_stride = width, .p = -limit,
                            .q = limit});
    exec_recorded(x);
}

/* Rms norm of `heads` heads of `head` floats each, `apart` floats apart in `from`. */
static void norm_heads(cf_exec *x, const cf_attn_def *a, cf_wid w, cf_span from, uint32_t apart,
                       cf_span span, uint32_t heads, uint32_t head)
{
    cf_gpu_norm(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_norm){.kind = CF_NORM_RMS, .w = exec_weight(x, w), .x = from, .y = span,
                              .n_rows = x->n_rows, .n_heads = heads, .width = head,
                              .x_stride = heads * apart, .x_head_stride = apart,
                              .y_stride = heads * head, .y_head_stride = head,
                              .eps = a->norm_eps, .scale = 1,
                              .unit_offset = a->qk_unit_offset});
    exec_recorded(x);
}

static void norms(cf_exec *x, const cf_attn_def *a, cf_span q, cf_span k)
{
    uint32_t q_width = a->heads * a->head, k_width = a->kv_heads * a->head;
    bool whole = a->qk == CF_QK_NORM_WHOLE;
    uint32_t q_head = whole ? q_width : a->head, k_head = whole ? k_width : a->head;
    exec_barrier(x);
    if (a->gated)
        norm_heads(x, a, a->q_norm, exec_act(x, a->gate_buf), 2 * a->head, q, a->heads, a->head);
    else
        norm_heads(x, a, a->q_norm, q, q_head, q, whole ? 1 : a->heads, q_head);
    norm_heads(x, a, a->k_norm, k, k_head, k, whole ? 1 : a->kv_heads, k_head);
}

/* The factors of tune_floor for each row, through the upload buffer, and q times them. */
static void queries_tune(cf_exec *x, const cf_attn_def *a, cf_span q)
{
    uint32_t width = a->heads * a->head;
    cf_span factors = cf_span_sub(cf_span_of(x->xb[CF_XB_ROW_SCALE]), 0, x->n_rows * sizeof(float));
    exec_barrier(x);
    cf_gpu_map(x->gpu, CF_STREAM_COMPUTE,
               &(cf_op_map){.kind = CF_MAP_MUL_ROW, .a = q, .b = factors, .y = q,
                            .n_rows = x->n_rows, .width = width, .a_stride = width, .b_stride = 1,
                            .b_width = 1, .y_stride = width});
    exec_recorded(x);
}

void exec_kv_store(cf_exec *x, cf_span src, uint32_t slot, uint32_t width)
{
    cf_gpu_kv_store(x->gpu, CF_STREAM_COMPUTE,
                    &(cf_op_kv_store){.x = src, .cache = cf_span_of(x->kv[slot]),
                                      .rows = exec_row_info(x), .n_rows = x->n_rows, .width = width,
                                      .x_stride = width, .kv_dtype = x->e->plan.kv_dtype});
    exec_recorded(x);
}

/* o times the sigmoid of the gates that lie behind each head's queries. */
static void output_gate(cf_exec *x, const cf_attn_def *a, cf_span o)
{
    cf_span g = exec_act(x, a->gate_buf);
    uint64_t skip = a->head * sizeof(float);
    exec_barrier(x);
    cf_gpu_gate(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_gate){.g = cf_span_sub(g, skip, g.bytes - skip), .y = o,
                              .n_rows = x->n_rows, .n_heads = a->heads, .width = a->head,
                              .g_stride = 2 * a->heads * a->head, .g_head_stride = 2 * a->head,
                              .y_stride = a->heads * a->head, .y_head_stride = a->head});
    exec_recorded(x);
}

/* q, k and v as attention wants them, k and v in the cache. */
static void prepare(cf_exec *x, const cf_attn_def *a, cf_span src, uint32_t width)
{
    uint32_t q_width = a->heads * a->head, k_width = a->kv_heads * a->head;
    cf_span q = exec_act(x, a->q_buf), k = exec_act(x, a->k_buf), v = exec_act(x, a->v_buf);
    exec_barrier(x);
    project(x, a->q, a->q_bias, src, width, a->gated ? exec_act(x, a->gate_buf) : q);
    project(x, a->k, a->k_bias, src, width, k);
    project(x, a->v, a->v_bias, src, width, v);
    if (a->clip > 0) {
        exec_barrier(x);
        clamp(x, q, q_width, a->clip);
        clamp(x, k, k_width, a->clip);
        clamp(x, v, k_width, a->clip);
    }
    if (a->qk == CF_QK_NORM_HEAD || a->qk == CF_QK_NORM_WHOLE)
        norms(x, a, q, k);
    if (a->rope_def != CF_NO_ROPE) {
        exec_barrier(x);
        exec_rotate(x, a->rope_def, q, 0, a->heads, q_width, a->head);
        exec_rotate(x, a->rope_def, k, 0, a->kv_heads, k_width, a->head);
    }
    if (a->qk == CF_QK_ROTATE_NORM)
        norms(x, a, q, k);
    if (a->tune_floor)
        queries_tune(x, a, q);
    exec_barrier(x);
    exec_kv_store(x, k, a->k_slot, k_width);
    exec_kv_store(x, v, a->v_slot, k_width);
}

int exec_attn(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    const cf_attn_def *a = &s->u.attn;
    uint32_t q_width = a->heads * a->head;
    cf_span o = exec_act(x, a->o_buf), sharpness = {0};
    if (a->sharp_from)
        sharpness =
            cf_span_sub(cf_span_of(x->xb[CF_XB_ROW_SCALE]), 0, x->n_rows * sizeof(float));
    prepare(x, a, exec_act(x, s->src), exec_width(x, s->src));
    exec_barrier(x);
    cf_gpu_attn(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_attn){.q = exec_act(x, a->q_buf),
                              .k = cf_span_of(x->kv[a->k_slot]),
                              .v = cf_span_of(x->kv[a->v_slot]),
                              .rows = exec_row_info(x),
                              .y = o,
                              .sharpness = sharpness,
                              .sinks = exec_weight(x, a->sinks),
                              .n_rows = x->n_rows,
                              .n_heads = a->heads,
                              .n_kv_heads = a->kv_heads,
                              .d_k = a->head,
                              .d_v = a->head,
                              .q_stride = q_width,
                              .window = a->window,
                              .chunk = a->chunk,
                              .scale = a->scale,
                              .cap = a->cap,
                              .kv_dtype = x->e->plan.kv_dtype});
    exec_recorded(x);
    if (a->gated)
        output_gate(x, a, o);
    exec_barrier(x);
    project(x, a->out, a->out_bias, o, q_width, exec_act(x, s->dst));
    return 0;
}
