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
        .q_a_norm = CF_NO_WEIGHT, .q_lat = l->q_lat, .q = l->q, .q_abs = l->q_abs, .kv = l->kv,
        .o_lat = l->o_lat, .o = l->o};
    uint32_t q_rows = l->heads * (l->nope + l->rope), kv_rows = l->heads * (l->nope + l->v);
    if (l->rank_q) {
        CF_TRY(cf_bind_weight(b, &a.q_a, 0, l->rank_q, l->hidden, err, "%sq_a_proj.weight", prefix));
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
    CF_TRY(cf_bind_weight(b, &a.kv_b, 0, kv_rows, l->rank_kv, err, "%skv_b_proj.weight", prefix));
    CF_TRY(cf_bind_weight(b, &a.out, 0, l->hidden, l->heads * l->v, err, "%so_proj.weight", prefix));
    CF_TRY(cf_build_step(b, CF_STEP_ATTN_LATENT, l->layer, l->src, l->dst, &s, err));
    s->u.latent = a;
    return 0;
fail:
    return rc;
}
