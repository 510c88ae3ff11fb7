/* Attention of models with an encoder: biased by distance within a stack, and across from the
 * decoder to what the encoder left.
 *
 * The encoder's plan runs once over a session's whole input (batch.encoder): there every row sees
 * every other, and the last of its steps put the keys and values of its output into slots of the
 * cache. The decoder's rows see their own past in their slots, and all of the input in those
 * (CF_XB_CROSS_INFO). Threads: the engine thread. */
#include "runtime/exec_internal.h"

int exec_attn_bias(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    const cf_attn_bias_def *a = &s->u.bias;
    uint32_t all = a->heads * a->head, width = exec_width(x, s->src);
    cf_span src = exec_act(x, s->src), o = exec_act(x, a->o_buf);
    cf_span constants = cf_span_of(x->xb[CF_XB_CONSTANTS]);
    exec_barrier(x);
    exec_linear(x, a->q, src, width, exec_act(x, a->q_buf), all, 1, false);
    exec_linear(x, a->k, src, width, exec_act(x, a->k_buf), all, 1, false);
    exec_linear(x, a->v, src, width, exec_act(x, a->v_buf), all, 1, false);
    exec_barrier(x);
    exec_kv_store(x, exec_act(x, a->k_buf), a->k_slot, all);
    exec_kv_store(x, exec_act(x, a->v_buf), a->v_slot, all);
    exec_barrier(x);
    cf_gpu_attn_bias(x->gpu, CF_STREAM_COMPUTE,
                     &(cf_op_attn_bias){
                         .bias = exec_weight(x, a->bias),
                         .buckets = cf_span_sub(constants, a->buckets * 4ull, a->n_buckets * 4ull),
                         .q = exec_act(x, a->q_buf),
                         .k = cf_span_of(x->kv[a->k_slot]),
                         .v = cf_span_of(x->kv[a->v_slot]),
                         .rows = exec_row_info(x),
                         .y = o,
                         .n_rows = x->n_rows,
                         .n_heads = a->heads,
                         .d = a->head,
                         .q_stride = all,
                         .n_buckets = a->n_buckets,
                         .zero = a->zero,
                         .scale = 1,
                         .kv_dtype = x->e->plan.kv_dtype});
    exec_recorded(x);
    exec_barrier(x);
    exec_linear(x, a->out, o, all, exec_act(x, s->dst), exec_width(x, s->dst), 1, false);
    return 0;
}

int exec_cross_kv(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    cf_span src = exec_act(x, s->src);
    cf_span k = exec_act(x, s->u.cross_kv.k_buf), v = exec_act(x, s->u.cross_kv.v_buf);
    uint32_t width = exec_width(x, s->src), all = exec_width(x, s->u.cross_kv.k_buf);
    exec_barrier(x);
    exec_linear(x, s->u.cross_kv.k, src, width, k, all, 1, false);
    exec_linear(x, s->u.cross_kv.v, src, width, v, all, 1, false);
    exec_barrier(x);
    exec_kv_store(x, k, s->u.cross_kv.k_slot, all);
    exec_kv_store(x, v, s->u.cross_kv.v_slot, all);
    return 0;
}

int exec_attn_cross(cf_exec *x, const cf_step *s, cf_err *err)
{
    (void)err;
    const cf_attn_cross_def *a = &s->u.cross;
    uint32_t all = a->heads * a->head;
    cf_span q = exec_act(x, a->q_buf), o = exec_act(x, a->o_buf);
    cf_span info =
        cf_span_sub(cf_span_of(x->xb[CF_XB_CROSS_INFO]), 0, x->n_rows * sizeof(cf_row_info));
    exec_barrier(x);
    exec_linear(x, a->q, exec_act(x, s->src), exec_width(x, s->src), q, all, 1, false);
    exec_barrier(x);
    cf_gpu_attn(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_attn){.q = q,
                              .k = cf_span_of(x->kv[a->k_slot]),
                              .v = cf_span_of(x->kv[a->v_slot]),
                              .rows = info,
                              .y = o,
                              .n_rows = x->n_rows,
                              .n_heads = a->heads,
                              .n_kv_heads = a->heads,
                              .d_k = a->head,
                              .d_v = a->head,
                              .q_stride = all,
                              .scale = 1,
                              .kv_dtype = x->e->plan.kv_dtype});
    exec_recorded(x);
    exec_barrier(x);
    exec_linear(x, a->out, o, all, exec_act(x, s->dst), exec_width(x, s->dst), 1, false);
    return 0;
}
