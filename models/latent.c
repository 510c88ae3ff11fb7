/* Multi-head latent attention for families: buffers, tensors and the step. See decoder.h. */
#include <math.h>

#include "models/decoder.h"

int cf_latent_bufs(cf_build *b, cf_latent *l, cf_err *err)
{
    int rc;
    l->q_lat = 0;
    if (l->rank_q)
        CF_TRY(cf_build_buf(b, "q_lat", l->rank_q, &l->q_lat, err));
    CF_TRY(cf_build_buf(b, "q", l->heads * (l->nope + l->rope), &l->q, err));
    CF_TRY(cf_build_buf(b, "q_abs", l->heads * l->rank_kv, &l->q_abs, err));
    CF_TRY(cf_build_buf(b, "kv", l->rank_kv + l->rope, &l->kv, err));
    CF_TRY(cf_build_buf(b, "o_lat", l->heads * l->rank_kv, &l->o_lat, err));
    CF_TRY(cf_build_buf(b, "o", l->heads * l->v, &l->o, err));
    if (!l->index.top_k)
        return 0;
    CF_TRY(cf_build_buf(b, "selected", l->index.top_k, &l->selected, err));
    CF_TRY(cf_build_buf(b, "index q", l->index.heads * l->index.head, &l->index_q, err));
    CF_TRY(cf_build_buf(b, "index k", l->index.head, &l->index_k, err));
    CF_TRY(cf_build_buf(b, "index w", l->index.heads, &l->index_w, err));
    return 0;
fail:
    return rc;
}

static int index_build(cf_build *b, const cf_latent *l, const char *prefix, cf_index_def *out,
                       cf_err *err)
{
    int rc;
    cf_index_def d = {.heads = l->index.heads, .head = l->index.head, .rope_def = l->index_rope,
                      .slot = l->index_slot, .norm_eps = 1e-6f, .q_buf = l->index_q,
                      .k_buf = l->index_k, .w_buf = l->index_w};
    CF_TRY(cf_bind_weight(b, &d.q, 0, d.heads * d.head, l->rank_q, err, "%sindexer.wq_b.weight",
                          prefix));
    CF_TRY(cf_bind_weight(b, &d.k, 0, d.head, l->hidden, err, "%sindexer.wk.weight", prefix));
    CF_TRY(cf_bind_weight(b, &d.k_norm, CF_BIND_NORM, 0, d.head, err, "%sindexer.k_norm.weight",
                          prefix));
    CF_TRY(cf_bind_weight(b, &d.k_norm_bias, CF_BIND_BIAS, 0, d.head, err,
                          "%sindexer.k_norm.bias", prefix));
    CF_TRY(cf_bind_weight(b, &d.weights, 0, d.heads, l->hidden, err,
                          "%sindexer.weights_proj.weight", prefix));
    *out = d;
    return 0;
fail:
    return rc;
}

int cf_latent_build(cf_build *b, const cf_latent *l, const char *prefix, cf_err *err)
{
    int rc;
    cf_step *s;
    cf_attn_latent_def a = {
        .heads = l->heads, .rank_q = l->rank_q, .rank_kv = l->rank_kv, .nope = l->nope,
        .rope = l->rope, .v = l->v, .q_norm_scale = (float)l->q_scale,
        .kv_norm_scale = (float)l->kv_scale, .norm_eps = (float)l->eps,
        .scale = (float)(l->score_scale / sqrt((double)(l->nope + l->rope))),
        .rope_def = l->rope_def, .kv_slot = l->kv_slot, .q_a = CF_NO_WEIGHT,
        .q_a_norm = CF_NO_WEIGHT, .kv_b = CF_NO_WEIGHT, .k_b = CF_NO_WEIGHT,
        .v_b = CF_NO_WEIGHT, .q_lat = l->q_lat, .q = l->q, .q_abs = l->q_abs, .kv = l->kv,
        .o_lat = l->o_lat, .o = l->o, .select_k = l->index.top_k, .selected = l->selected,
        .indexed = l->indexed};
    uint32_t q_rows = l->heads * (l->nope + l->rope), kv_rows = l->heads * (l->nope + l->v);
    if (l->rank_q) {
        CF_TRY(
            cf_bind_weight(b, &a.q_a, 0, l->rank_q, l->hidden, err, "%sq_a_proj.weight", prefix));
        CF_TRY(cf_bind_weight(b, &a.q_a_norm, CF_BIND_NORM, 0, l->rank_q, err,
                              "%sq_a_layernorm.weight", prefix));
        CF_TRY(cf_bind_weight(b, &a.q_b, 0, q_rows, l->rank_q, err, "%sq_b_proj.weight", prefix));
    } else {
        CF_TRY(cf_bind_weight(b, &a.q_b, 0, q_rows, l->hidden, err, "%sq_proj.weight", prefix));
    }
    CF_TRY(cf_bind_weight(b, &a.kv_a, 0, l->rank_kv + l->rope, l->hidden, err,
                          "%skv_a_proj_with_mqa.weight", prefix));
    CF_TRY(cf_bind_weight(b, &a.kv_a_norm, CF_BIND_NORM, 0, l->rank_kv, err,
                          "%skv_a_layernorm.weight", prefix));
    /* Its two halves may lie apart, the one for keys transposed head by head. */
    if (cf_bind_has(b, "%sk_b_proj.weight", prefix)) {
        CF_TRY(cf_bind_weight(b, &a.k_b, 0, l->heads * l->rank_kv, l->nope, err,
                              "%sk_b_proj.weight", prefix));
        CF_TRY(cf_bind_weight(b, &a.v_b, 0, l->heads * l->v, l->rank_kv, err, "%sv_b_proj.weight",
                              prefix));
    } else {
        CF_TRY(cf_bind_weight(b, &a.kv_b, 0, kv_rows, l->rank_kv, err, "%skv_b_proj.weight",
                              prefix));
    }
    CF_TRY(
        cf_bind_weight(b, &a.out, 0, l->hidden, l->heads * l->v, err, "%so_proj.weight", prefix));
    if (l->indexed)
        CF_TRY(index_build(b, l, prefix, &a.index, err));
    CF_TRY(cf_build_step(b, CF_STEP_ATTN_LATENT, l->layer, l->src, l->dst, &s, err));
    s->u.latent = a;
    return 0;
fail:
    return rc;
}
