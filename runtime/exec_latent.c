/* Multi-head latent attention in absorbed form (arXiv 2405.04434, section 2.1).
 *
 *     q_lat = norm(q_a src)            kv = kv_a src = [latent | rope key]
 *     q     = q_b q_lat                latent = norm(latent); the rope key is rotated
 *     q_abs = q's nope part through the key half of kv_b, transposed, head by head, or through k_b,
 *             which is stored so
 *     o_lat = attention of (q_abs | rotated q) over the cached [latent | rope key]
 *     o     = o_lat through the value half of kv_b, or v_b;   dst = out o
 *
 * Only latents are cached: rank_kv + rope values a position, whatever the number of heads. An index
 * (exec_index.c) may narrow attention down to the cells that matter most to each row. */
#include "runtime/exec_internal.h"

static void norm_in_place(cf_exec *x, cf_wid w, cf_span span, uint32_t stride, float eps,
                          float scale)
{
    cf_weight weight = exec_weight(x, w);
    cf_gpu_norm(x->gpu, CF_STREAM_COMPUTE,
                &(cf_op_norm){.kind = CF_NORM_RMS, .w = weight, .x = span, .y = span,
                              .n_rows = x->n_rows, .n_heads = 1, .width = weight.cols,
                              .x_stride = stride, .y_stride = stride, .eps = eps, .scale = scale});
    exec_recorded(x);
}

/* The part of the queries without positions, into the latent space. */
static void absorb(cf_exec *x, const cf_attn_latent_def *a, cf_span q, cf_span q_abs)
{
    uint32_t head = a->nope + a->rope;
    bool apart = a->kv_b == CF_NO_WEIGHT;
    cf_gpu_head_linear(x->gpu, CF_STREAM_COMPUTE,
                       &(cf_op_head_linear){.w = exec_weight(x, apart ? a->k_b : a->kv_b), .x = q,
                                            .y = q_abs, .n_rows = x->n_rows, .n_heads = a->heads,
                                            .head_rows = apart ? a->rank_kv : a->nope + a->v,
                                            .n_sub = apart ? a->rank_kv : a->nope,
                                            .x_stride = a->heads * head, .x_head_stride = head,
                                            .y_stride = a->heads * a->rank_kv,
                                            .y_head_stride = a->rank_kv, .transposed = !apart});
    exec_recorded(x);
}

/* What the heads saw, from the latent space. */
static void values(cf_exec *x, const cf_attn_latent_def *a, cf_span o_lat, cf_span o)
{
    bool apart = a->kv_b == CF_NO_WEIGHT;
    cf_gpu_head_linear(x->gpu, CF_STREAM_COMPUTE,
                       &(cf_op_head_linear){.w = exec_weight(x, apart ? a->v_b : a->kv_b),
                                            .x = o_lat, .y = o, .n_rows = x->n_rows,
                                            .n_heads = a->heads,
                                            .head_rows = apart ? a->v : a->nope + a->v,
                                            .row_off = apart ? 0 : a->nope, .n_sub = a->v,
                                            .x_stride = a->heads * a->rank_kv,
                                            .x_head_stride = a->rank_kv,
                                            .y_stride = a->heads * a->v, .y_head_stride = a->v});
    exec_recorded(x);
}

/* The queries: through q_a, norm and q_b, rotated, and absorbed into the latent space. The latent
 * of the batch goes to the cache on the way. */
static int project(cf_exec *x, const cf_attn_latent_def *a, uint32_t layer, cf_span src,
                   uint32_t width, cf_err *err)
{
    uint32_t head = a->nope + a->rope, q_width = a->heads * head, kv_width = a->rank_kv + a->rope;
    cf_span q_lat = exec_act(x, a->q_lat), q = exec_act(x, a->q), kv = exec_act(x, a->kv);
    bool compressed = a->q_a != CF_NO_WEIGHT;
    exec_barrier(x);
    if (compressed)
        exec_linear(x, a->q_a, src, width, q_lat, a->rank_q, 1, false);
    exec_linear(x, a->kv_a, src, width, kv, kv_width, 1, false);
    exec_barrier(x);
    if (compressed)
        norm_in_place(x, a->q_a_norm, q_lat, a->rank_q, a->norm_eps, a->q_norm_scale);
    norm_in_place(x, a->kv_a_norm, kv, kv_width, a->norm_eps, a->kv_norm_scale);
    exec_rotate(x, a->rope_def, kv, a->rank_kv, 1, kv_width, a->rope);
    exec_barrier(x);
    if (compressed)
        exec_linear(x, a->q_b, q_lat, a->rank_q, q, q_width, 1, false);
    else
        exec_linear(x, a->q_b, src, width, q, q_width, 1, false);
    exec_kv_store(x, kv, a->kv_slot, kv_width);
    if (a->indexed) {
        int rc = exec_index(x, a, layer, src, width, err);
        if (rc < 0)
            return rc;
    }
    exec_barrier(x);
    exec_rotate(x, a->rope_def, q, a->nope, a->heads, q_width, head);
    absorb(x, a, q, exec_act(x, a->q_abs));
    return 0;
}

int exec_attn_latent(cf_exec *x, const cf_step *s, cf_err *err)
{
    const cf_attn_latent_def *a = &s->u.latent;
    uint32_t head = a->nope + a->rope, q_width = a->heads * head;
    cf_span q = exec_act(x, a->q), o_lat = exec_act(x, a->o_lat), o = exec_act(x, a->o);
    int rc = project(x, a, s->layer, exec_act(x, s->src), exec_width(x, s->src), err);
    if (rc < 0)
        return rc;
    bool selects = a->select_k && x->most_cells > a->select_k;
    exec_barrier(x);
    uint64_t skip = a->nope * sizeof(float);
    cf_gpu_attn_latent(
        x->gpu, CF_STREAM_COMPUTE,
        &(cf_op_attn_latent){.q_lat = exec_act(x, a->q_abs),
                             .q_rope = cf_span_sub(q, skip, q.bytes - skip),
                             .cache = cf_span_of(x->kv[a->kv_slot]),
                             .rows = exec_row_info(x),
                             .cells = selects ? exec_act(x, a->selected) : (cf_span){0},
                             .n_select = a->select_k,
                             .y = o_lat,
                             .n_rows = x->n_rows,
                             .n_heads = a->heads,
                             .rank = a->rank_kv,
                             .n_rope = a->rope,
                             .q_stride = q_width,
                             .q_head_stride = head,
                             .scale = a->scale,
                             .kv_dtype = x->e->plan.kv_dtype});
    exec_recorded(x);
    exec_barrier(x);
    values(x, a, o_lat, o);
    exec_barrier(x);
    exec_linear(x, a->out, o, a->heads * a->v, exec_act(x, s->dst), exec_width(x, s->dst), 1,
                false);
    return 0;
}
