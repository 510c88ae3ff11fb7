/* The decoder that most families share: see decoder.h. */
#include "models/decoder.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_NAME = 256 };

/* Everything one build needs at hand. */
struct build {
    cf_build *b;
    const cf_decoder *d;
    cf_bufid x, n, t, y, z, g, u, q, k, v, o, q_gate, logits, gate, beside;
    uint32_t kv_layers, index_layers; /* that have a place in the cache so far */
    cf_latent latent;
    uint32_t rope_def, index_rope;
    float score_scale;
};

static void layer_name(char *out, const char *format, uint32_t layer)
{
    snprintf(out, MAX_NAME, format, layer);
}

const cf_decoder_names cf_decoder_common_names = {
    .embed = "model.embed_tokens.weight",
    .final_norm = "model.norm.weight",
    .head = "lm_head",
    .attn_norm = "model.layers.%u.input_layernorm.weight",
    .ffn_norm = "model.layers.%u.post_attention_layernorm.weight",
    .q = "model.layers.%u.self_attn.q_proj",
    .k = "model.layers.%u.self_attn.k_proj",
    .v = "model.layers.%u.self_attn.v_proj",
    .out = "model.layers.%u.self_attn.o_proj",
};

void cf_decoder_names_qk_norms(cf_decoder_names *n)
{
    n->q_norm = "model.layers.%u.self_attn.q_norm.weight";
    n->k_norm = "model.layers.%u.self_attn.k_norm.weight";
}

void cf_decoder_names_dense(cf_decoder_names *n)
{
    n->dense_gate = "model.layers.%u.mlp.gate_proj";
    n->dense_up = "model.layers.%u.mlp.up_proj";
    n->dense_down = "model.layers.%u.mlp.down_proj";
}

void cf_decoder_names_experts(cf_decoder_names *n)
{
    n->router = "model.layers.%u.mlp.gate.weight";
    n->gate = "model.layers.%u.mlp.experts.%u.gate_proj.weight";
    n->up = "model.layers.%u.mlp.experts.%u.up_proj.weight";
    n->down = "model.layers.%u.mlp.experts.%u.down_proj.weight";
}

void cf_decoder_names_shared(cf_decoder_names *n)
{
    n->shared_gate = "model.layers.%u.mlp.shared_experts.gate_proj";
    n->shared_up = "model.layers.%u.mlp.shared_experts.up_proj";
    n->shared_down = "model.layers.%u.mlp.shared_experts.down_proj";
}

static bool is_beyond(const cf_build *b, const char *name)
{
    unsigned layer;
    int end = 0;
    return sscanf(name, "model.layers.%u.%n", &layer, &end) == 1 && end &&
           layer >= b->model->spec.layers;
}

void cf_skip_layers_beyond(cf_build *b)
{
    cf_skip_tensors(b, is_beyond, "multi-token-prediction layers");
}

void cf_decoder_names_shared_switched(cf_decoder_names *n)
{
    n->shared_gate = "model.layers.%u.mlp.shared_expert.gate_proj";
    n->shared_up = "model.layers.%u.mlp.shared_expert.up_proj";
    n->shared_down = "model.layers.%u.mlp.shared_expert.down_proj";
    n->shared_switch = "model.layers.%u.mlp.shared_expert_gate.weight";
}

int cf_decoder_read(cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    cf_spec *s = &b->model->spec;
    CF_TRY(cf_config_u32(b, "vocab_size", 1, 1u << 24, &s->vocab, err));
    CF_TRY(cf_config_u32(b, "hidden_size", 1, 1u << 16, &d->hidden, err));
    CF_TRY(cf_config_u32(b, "num_hidden_layers", 1, 1024, &d->layers, err));
    CF_TRY(cf_config_u32(b, "num_attention_heads", 1, 1024, &d->heads, err));
    CF_TRY(cf_config_u32_or(b, "num_key_value_heads", 1, 1024, d->heads, &d->kv_heads, err));
    CF_TRY(cf_config_u32_or(b, "head_dim", 1, 4096, d->hidden / d->heads, &d->head, err));
    CF_TRY(cf_config_f64(b, "rms_norm_eps", 0, 1, &d->eps, err));
    CF_TRY(cf_config_bool_or(b, "tie_word_embeddings", false, &d->tied, err));
    CF_TRY(cf_config_tokens(b, err));
    if (d->heads % d->kv_heads || !d->head)
        return CF_FAIL(err, CF_EFORMAT, "%s: %u heads are not divided by %u key-value heads",
                       b->path, d->heads, d->kv_heads);
    d->rot = d->head;
    return 0;
fail:
    return rc;
}

int cf_decoder_read_experts(cf_build *b, cf_decoder *d, const char *ffn_key,
                            const char *experts_key, const char *top_k_key, cf_err *err)
{
    int rc;
    CF_TRY(cf_config_only_text(b, "hidden_act", "silu", err));
    CF_TRY(cf_config_u32(b, ffn_key, 1, 1u << 20, &d->ffn, err));
    CF_TRY(cf_config_u32(b, experts_key, 1, CF_ROUTE_MAX_EXPERTS, &d->experts, err));
    return cf_config_u32(b, top_k_key, 1, CF_ROUTE_MAX_K, &d->top_k, err);
fail:
    return rc;
}

/* ---- pieces of a layer ---- */

static double or_one(double v)
{
    return v == 0 ? 1 : v;
}

static int step_add(struct build *k, uint32_t layer, cf_bufid src, double scale, cf_err *err)
{
    cf_step *s;
    int rc = cf_build_step(k->b, CF_STEP_ADD, layer, src, k->x, &s, err);
    if (rc == 0)
        s->u.add.scale = (float)scale;
    return rc;
}

static int step_norm(struct build *k, uint32_t layer, const char *format, cf_bufid src,
                     cf_bufid dst, cf_err *err)
{
    int rc;
    cf_step *s;
    char name[MAX_NAME];
    cf_wid w, bias = CF_NO_WEIGHT;
    layer_name(name, format, layer);
    CF_TRY(cf_bind_weight(k->b, &w, CF_BIND_NORM, 0, k->d->hidden, err, "%s", name));
    if (k->d->norm_bias) {
        /* x.weight and x.bias */
        name[strlen(name) - strlen("weight")] = 0;
        CF_TRY(cf_bind_weight(k->b, &bias, CF_BIND_BIAS, 0, k->d->hidden, err, "%sbias", name));
    }
    CF_TRY(cf_build_step(k->b, CF_STEP_NORM, layer, src, dst, &s, err));
    s->u.norm.w = w;
    s->u.norm.bias = bias;
    s->u.norm.kind = k->d->norm;
    s->u.norm.eps = (float)k->d->eps;
    s->u.norm.unit_offset = k->d->norm_unit_offset;
    return 0;
fail:
    return rc;
}

/* y, normed again where the family does so, joins the residual stream. */
static int sublayer_join(struct build *k, uint32_t layer, bool ffn, const char *post_norm,
                         cf_err *err)
{
    int rc;
    cf_step *s;
    cf_bufid src = k->y;
    if (k->d->residual) {
        double alpha, beta;
        k->d->residual(k->d, layer, ffn, &alpha, &beta);
        CF_TRY(cf_build_step(k->b, CF_STEP_SCALE, layer, k->x, k->x, &s, err));
        s->u.scale.scale = (float)alpha;
        return step_add(k, layer, src, beta, err);
    }
    if (post_norm) {
        CF_TRY(step_norm(k, layer, post_norm, k->y, k->z, err));
        src = k->z;
    }
    return step_add(k, layer, src, or_one(k->d->residual_scale), err);
fail:
    return rc;
}

static int projection_bind(struct build *k, const char *format, uint32_t layer, uint32_t rows,
                           uint32_t cols, bool has_bias, cf_wid *w, cf_wid *bias, cf_err *err)
{
    int rc;
    char name[MAX_NAME];
    layer_name(name, format, layer);
    *bias = CF_NO_WEIGHT;
    CF_TRY(cf_bind_weight(k->b, w, 0, rows, cols, err, "%s.weight", name));
    if (has_bias)
        CF_TRY(cf_bind_weight(k->b, bias, CF_BIND_BIAS, 0, rows, err, "%s.bias", name));
    return 0;
fail:
    return rc;
}

static int qkv_bind(struct build *k, uint32_t layer, cf_attn_def *a, cf_err *err)
{
    int rc;
    const cf_decoder *d = k->d;
    const cf_decoder_names *n = &d->names;
    uint32_t q = d->heads * d->head, kv = d->kv_heads * d->head, all = q + 2 * kv;
    if (!n->qkv) {
        uint32_t q_rows = d->attn_gated ? 2 * q : q;
        CF_TRY(projection_bind(k, n->q, layer, q_rows, d->hidden, d->qkv_bias, &a->q, &a->q_bias,
                               err));
        CF_TRY(projection_bind(k, n->k, layer, kv, d->hidden, d->qkv_bias, &a->k, &a->k_bias, err));
        return projection_bind(k, n->v, layer, kv, d->hidden, d->qkv_bias, &a->v, &a->v_bias, err);
    }
    char name[MAX_NAME];
    layer_name(name, n->qkv, layer);
    a->q_bias = a->k_bias = a->v_bias = CF_NO_WEIGHT;
    CF_TRY(cf_bind_rows(k->b, &a->q, 0, 0, q, all, d->hidden, err, "%s.weight", name));
    CF_TRY(cf_bind_rows(k->b, &a->k, 0, q, kv, all, d->hidden, err, "%s.weight", name));
    return cf_bind_rows(k->b, &a->v, 0, q + kv, kv, all, d->hidden, err, "%s.weight", name);
fail:
    return rc;
}

static int grouped_attention(struct build *k, uint32_t layer, cf_err *err)
{
    int rc;
    cf_step *s;
    char name[MAX_NAME];
    const cf_decoder *d = k->d;
    double scale = d->attn_scale > 0 ? d->attn_scale : 1 / sqrt((double)d->head);
    cf_attn_def a = {.heads = d->heads, .kv_heads = d->kv_heads, .head = d->head, .qk = d->qk,
                     .norm_eps = (float)(d->qk_eps > 0 ? d->qk_eps : d->eps),
                     .scale = (float)(scale * (double)k->score_scale), .cap = (float)d->attn_cap,
                     .clip = (float)d->clip, .rope_def = k->rope_def, .k_slot = 2 * k->kv_layers,
                     .v_slot = 2 * k->kv_layers + 1, .q_norm = CF_NO_WEIGHT, .k_norm = CF_NO_WEIGHT,
                     .sinks = CF_NO_WEIGHT, .q_buf = k->q, .k_buf = k->k, .v_buf = k->v,
                     .o_buf = k->o, .gated = d->attn_gated, .gate_buf = k->q_gate,
                     .qk_unit_offset = d->norm_unit_offset};
    k->kv_layers++;
    CF_TRY(qkv_bind(k, layer, &a, err));
    CF_TRY(projection_bind(k, d->names.out, layer, d->hidden, d->heads * d->head, d->out_bias,
                           &a.out, &a.out_bias, err));
    if (d->names.q_norm) {
        bool whole = d->qk == CF_QK_NORM_WHOLE;
        layer_name(name, d->names.q_norm, layer);
        CF_TRY(cf_bind_weight(k->b, &a.q_norm, CF_BIND_NORM, 0,
                              whole ? d->heads * d->head : d->head, err, "%s", name));
        layer_name(name, d->names.k_norm, layer);
        CF_TRY(cf_bind_weight(k->b, &a.k_norm, CF_BIND_NORM, 0,
                              whole ? d->kv_heads * d->head : d->head, err, "%s", name));
    }
    if (d->names.sinks) {
        layer_name(name, d->names.sinks, layer);
        CF_TRY(cf_bind_weight(k->b, &a.sinks, 0, 0, d->heads, err, "%s", name));
    }
    if (d->attn_layer)
        d->attn_layer(d, layer, &a);
    CF_TRY(cf_build_step(k->b, CF_STEP_ATTN, layer, k->n, k->y, &s, err));
    s->u.attn = a;
    return 0;
fail:
    return rc;
}

static int attention(struct build *k, uint32_t layer, cf_err *err)
{
    if (k->d->mixer) {
        int rc = k->d->mixer(k->b, k->d, layer, k->n, k->y, err);
        if (rc != 0)
            return rc < 0 ? rc : 0;
    }
    if (!k->d->rank_kv)
        return grouped_attention(k, layer, err);
    char prefix[MAX_NAME];
    layer_name(prefix, k->d->names.q, layer); /* of a latent attention: the prefix of its names */
    k->latent.layer = k->latent.kv_slot = layer;
    if (k->d->index.top_k) {
        const char *type = json_string_value(json_array_get(k->d->index_types, layer));
        k->latent.indexed = !type || strcmp(type, "shared") != 0;
        k->latent.index_slot = k->index_layers;
        k->index_layers += k->latent.indexed;
    }
    return cf_latent_build(k->b, &k->latent, prefix, err);
}

/* down(act(gate src) * up src) -> dst */
static int dense(struct build *k, uint32_t layer, const char *const *formats, uint32_t ffn,
                 cf_bufid src, cf_bufid dst, cf_err *err)
{
    int rc;
    cf_step *s;
    cf_wid w[3], bias;
    uint32_t h = k->d->hidden;
    CF_TRY(projection_bind(k, formats[0], layer, ffn, h, false, &w[0], &bias, err));
    CF_TRY(projection_bind(k, formats[1], layer, ffn, h, false, &w[1], &bias, err));
    CF_TRY(projection_bind(k, formats[2], layer, h, ffn, false, &w[2], &bias, err));
    CF_TRY(cf_build_step(k->b, CF_STEP_DENSE, layer, src, dst, &s, err));
    s->u.dense.gate = w[0];
    s->u.dense.up = w[1];
    s->u.dense.down = w[2];
    s->u.dense.g = k->g;
    s->u.dense.u = k->u;
    s->u.dense.ffn = ffn;
    s->u.dense.act = k->d->act;
    return 0;
fail:
    return rc;
}

/* ---- experts ---- */

/* Where experts are one by one, though the family fuses them: the names of files that are no
 * published checkpoint. */
#define EXPERT_ALONE(piece, what) "model.layers.%u.experts.%u." piece "." what

static int experts_separate(struct build *k, uint32_t layer, uint32_t moe, cf_err *err)
{
    int rc;
    const cf_decoder *d = k->d;
    static const char *const alone[CF_EXPERT_PIECES] = {EXPERT_ALONE("gate", "weight"),
                                                        EXPERT_ALONE("up", "weight"),
                                                        EXPERT_ALONE("down", "weight")};
    const char *const own[CF_EXPERT_PIECES] = {d->names.gate, d->names.up, d->names.down};
    const char *const *formats = d->names.gate ? own : alone;
    for (uint32_t e = 0; e < d->experts; e++)
        for (uint32_t p = 0; p < CF_EXPERT_PIECES; p++) {
            char name[MAX_NAME];
            snprintf(name, sizeof name, formats[p], layer, e);
            bool down = p == CF_DOWN;
            CF_TRY(cf_bind_piece(k->b, moe, e, p, down ? d->hidden : d->ffn,
                                 down ? d->ffn : d->hidden, err, "%s", name));
        }
    return 0;
fail:
    return rc;
}

/* gate_up holds gate's rows, then up's; each is an extent of its own. */
static int experts_fused_rows(struct build *k, uint32_t layer, uint32_t moe, cf_err *err)
{
    int rc;
    const cf_decoder *d = k->d;
    char name[MAX_NAME];
    layer_name(name, d->names.fused_gate_up, layer);
    cf_piece_def *p = k->b->model->moe[moe].pieces;
    for (uint32_t i = CF_GATE; i <= CF_UP; i++) {
        cf_fused part = {.rows = 2 * d->ffn, .cols = d->hidden, .first = i * d->ffn, .n = d->ffn};
        CF_TRY(cf_bind_fused(k->b, moe, &part, &p[i], err, "%s", name));
    }
    layer_name(name, d->names.fused_down, layer);
    cf_fused down = {.rows = d->hidden, .cols = d->ffn, .n = d->hidden};
    return cf_bind_fused(k->b, moe, &down, &p[CF_DOWN], err, "%s", name);
fail:
    return rc;
}

/* A matrix [rows, cols] of every expert, stored [cols, rows]; in blocks it lies as it is. */
static int fused_transposed(struct build *k, uint32_t moe, uint32_t rows, uint32_t cols,
                            const char *format, uint32_t layer, cf_piece_def *out, cf_err *err)
{
    char name[MAX_NAME];
    layer_name(name, format, layer);
    bool blocks = cf_bind_in_blocks(k->b, name);
    cf_fused part = {.rows = blocks ? rows : cols, .cols = blocks ? cols : rows,
                     .n = blocks ? rows : cols, .transposed = !blocks};
    int rc = cf_bind_fused(k->b, moe, &part, out, err, "%s", name);
    out->rows = rows;
    out->cols = cols;
    out->transposed = !blocks;
    out->stride = blocks ? 0 : rows;
    return rc;
}

/* gate_up is one extent that holds both, one after the other or every other row. */
static int experts_fused_transposed(struct build *k, uint32_t layer, uint32_t moe, cf_err *err)
{
    int rc;
    const cf_decoder *d = k->d;
    cf_piece_def both, *p = k->b->model->moe[moe].pieces;
    CF_TRY(fused_transposed(k, moe, 2 * d->ffn, d->hidden, d->names.fused_gate_up, layer, &both,
                            err));
    for (uint32_t i = CF_GATE; i <= CF_UP; i++) {
        p[i] = both;
        p[i].rows = d->ffn;
        p[i].row_first = d->interleaved ? i : i * d->ffn;
        p[i].row_step = d->interleaved ? 2 : 1;
    }
    return fused_transposed(k, moe, d->hidden, d->ffn, d->names.fused_down, layer, &p[CF_DOWN],
                            err);
fail:
    return rc;
}

/* Vectors of every expert: gate and up in one, as their matrices are. */
static int experts_biases(struct build *k, uint32_t layer, uint32_t moe, cf_err *err)
{
    int rc;
    const cf_decoder *d = k->d;
    char name[MAX_NAME];
    cf_piece_def both, *p = k->b->model->moe[moe].biases;
    layer_name(name, d->names.fused_gate_up_bias, layer);
    cf_fused part = {.rows = 1, .cols = 2 * d->ffn, .n = 1, .flat = true, .transposed = true};
    CF_TRY(cf_bind_fused(k->b, moe, &part, &both, err, "%s", name));
    for (uint32_t i = CF_GATE; i <= CF_UP; i++) {
        p[i] = both;
        p[i].cols = d->ffn;
        p[i].row_first = i;
        /* Column j of a transposed vector is element j * stride + row_first. */
        p[i].transposed = d->interleaved;
        p[i].stride = d->interleaved ? 2 : 0;
    }
    layer_name(name, d->names.fused_down_bias, layer);
    part.cols = d->hidden;
    return cf_bind_fused(k->b, moe, &part, &p[CF_DOWN], err, "%s", name);
fail:
    return rc;
}

/* Biases of experts whose matrices are one by one: three tensors [E, n]. */
static int experts_separate_biases(struct build *k, uint32_t layer, uint32_t moe, cf_err *err)
{
    int rc = 0;
    static const char *const names[CF_EXPERT_PIECES] = {"gate", "up", "down"};
    cf_piece_def *p = k->b->model->moe[moe].biases;
    for (uint32_t i = 0; i < CF_EXPERT_PIECES && rc == 0; i++) {
        uint32_t cols = i == CF_DOWN ? k->d->hidden : k->d->ffn;
        cf_fused part = {.rows = 1, .cols = cols, .n = 1, .flat = true};
        rc = cf_bind_fused(k->b, moe, &part, &p[i], err, "model.layers.%u.experts.%s.bias", layer,
                           names[i]);
    }
    return rc;
}

/* Three tensors [E * ffn, hidden]; down is the transposed one. */
static int experts_fused_flat(struct build *k, uint32_t layer, uint32_t moe, cf_err *err)
{
    int rc;
    const cf_decoder *d = k->d;
    const char *const formats[CF_EXPERT_PIECES] = {d->names.fused_gate, d->names.fused_up,
                                                   d->names.fused_down};
    for (uint32_t i = 0; i < CF_EXPERT_PIECES; i++) {
        char name[MAX_NAME];
        layer_name(name, formats[i], layer);
        bool down = i == CF_DOWN;
        cf_piece_def *p = &k->b->model->moe[moe].pieces[i];
        cf_fused part = {
            .rows = d->ffn, .cols = d->hidden, .n = d->ffn, .flat = true, .transposed = down};
        CF_TRY(cf_bind_fused(k->b, moe, &part, p, err, "%s", name));
        if (down) {
            p->rows = p->stride = d->hidden;
            p->cols = d->ffn;
            p->transposed = true;
        }
    }
    return 0;
fail:
    return rc;
}

static int experts_bind(struct build *k, uint32_t layer, uint32_t *moe, cf_err *err)
{
    const cf_decoder *d = k->d;
    bool separate = d->names.gate || cf_bind_has(k->b, EXPERT_ALONE("gate", "weight"), layer, 0u);
    int rc = cf_build_moe(k->b, layer, d->experts, 0, d->top_k, d->hidden, d->ffn, moe, err);
    if (rc == 0 && d->names.fused_gate_up_bias)
        rc = separate ? experts_separate_biases(k, layer, *moe, err)
                      : experts_biases(k, layer, *moe, err);
    if (rc < 0)
        return rc;
    if (separate)
        return experts_separate(k, layer, *moe, err);
    switch (d->fused) {
    case CF_FUSED_ROWS:
        return experts_fused_rows(k, layer, *moe, err);
    case CF_FUSED_TRANSPOSED:
        return experts_fused_transposed(k, layer, *moe, err);
    case CF_FUSED_FLAT:
        return experts_fused_flat(k, layer, *moe, err);
    }
    return CF_FAIL(err, -EINVAL, "fused form %d is unknown", (int)d->fused);
}

static int route(struct build *k, uint32_t layer, uint32_t *moe, cf_err *err)
{
    int rc;
    cf_step *s;
    char name[MAX_NAME];
    const cf_decoder *d = k->d;
    cf_route_def r = d->router;
    r.bias = r.logit_bias = CF_NO_WEIGHT;
    r.logits = k->logits;
    r.cap = (float)d->router_cap;
    int flags = CF_BIND_FINITE | (d->router_f32 ? CF_BIND_F32 : 0);
    CF_TRY(experts_bind(k, layer, moe, err));
    layer_name(name, d->names.router, layer);
    r.classifier = CF_NO_WEIGHT;
    if (r.pick != CF_PICK_HASH)
        CF_TRY(cf_bind_weight(k->b, &r.classifier, flags, d->experts, d->hidden, err, "%s", name));
    if (d->names.router_bias && r.pick == CF_PICK_TOP) {
        layer_name(name, d->names.router_bias, layer);
        CF_TRY(cf_bind_weight(k->b, &r.bias, CF_BIND_FINITE | CF_BIND_F32 | CF_BIND_BIAS,
                              d->router_bias_row ? 1 : 0, d->experts, err, "%s", name));
    }
    if (d->names.router_logit_bias) {
        layer_name(name, d->names.router_logit_bias, layer);
        CF_TRY(cf_bind_weight(k->b, &r.logit_bias, CF_BIND_FINITE | CF_BIND_BIAS, 0, d->experts,
                              err, "%s", name));
    }
    CF_TRY(cf_build_step(k->b, CF_STEP_ROUTE, layer, k->t, k->t, &s, err));
    r.moe = *moe;
    s->u.route = r;
    return 0;
fail:
    return rc;
}

/* The shared expert, its sigmoid gate where there is one, into the residual stream. */
static int shared(struct build *k, uint32_t layer, cf_err *err)
{
    int rc;
    cf_step *s;
    char name[MAX_NAME];
    const cf_decoder_names *n = &k->d->names;
    const char *const formats[] = {n->shared_gate, n->shared_up, n->shared_down};
    CF_TRY(dense(k, layer, formats, k->d->shared_ffn, k->t, k->y, err));
    if (n->shared_switch) {
        cf_wid w;
        layer_name(name, n->shared_switch, layer);
        CF_TRY(cf_bind_weight(k->b, &w, 0, 1, k->d->hidden, err, "%s", name));
        CF_TRY(cf_build_step(k->b, CF_STEP_GATE, layer, k->t, k->y, &s, err));
        s->u.gate.w = w;
        s->u.gate.g = k->gate;
    }
    return step_add(k, layer, k->y, or_one(k->d->residual_scale), err);
fail:
    return rc;
}

static int layer_build(struct build *k, uint32_t layer, cf_err *err)
{
    int rc;
    cf_step *s;
    const cf_decoder *d = k->d;
    const cf_decoder_names *n = &d->names;
    const char *const formats[] = {n->dense_gate, n->dense_up, n->dense_down};
    CF_TRY(step_norm(k, layer, n->attn_norm, k->x, k->n, err));
    CF_TRY(attention(k, layer, err));
    CF_TRY(sublayer_join(k, layer, false, n->attn_post_norm, err));
    if (!d->is_moe || d->is_moe(d, layer)) {
        uint32_t moe;
        CF_TRY(step_norm(k, layer, n->ffn_norm, k->x, k->t, err));
        CF_TRY(route(k, layer, &moe, err));
        if (d->shared_ffn)
            CF_TRY(shared(k, layer, err));
        if (d->beside)
            CF_TRY(dense(k, layer, formats, d->dense_ffn, k->t, k->beside, err));
        CF_TRY(cf_build_step(k->b, CF_STEP_EXPERTS, layer, k->t, k->y, &s, err));
        s->u.experts.moe = moe;
        s->u.experts.act = d->act;
        s->u.experts.weight_on_input = d->weight_on_input;
        if (d->beside) {
            CF_TRY(cf_build_step(k->b, CF_STEP_ADD, layer, k->beside, k->y, &s, err));
            CF_TRY(cf_build_step(k->b, CF_STEP_SCALE, layer, k->y, k->y, &s, err));
            s->u.scale.scale = (float)d->beside_scale;
        }
    } else {
        CF_TRY(step_norm(k, layer, n->ffn_norm, k->x, k->n, err));
        CF_TRY(dense(k, layer, formats, d->dense_ffn, k->n, k->y, err));
    }
    CF_TRY(sublayer_join(k, layer, true, n->ffn_post_norm, err));
    return cf_build_step(k->b, CF_STEP_TAP, layer, k->x, k->x, &s, err);
fail:
    return rc;
}

/* ---- the whole ---- */

static int bufs_build(struct build *k, cf_err *err)
{
    int rc;
    const cf_decoder *d = k->d;
    uint32_t inner = d->dense_ffn > d->shared_ffn ? d->dense_ffn : d->shared_ffn;
    CF_TRY(cf_build_buf(k->b, "x", d->hidden, &k->x, err));
    k->n = k->t = k->x; /* with such a residual, normed in place */
    if (!d->residual) {
        CF_TRY(cf_build_buf(k->b, "n", d->hidden, &k->n, err));
        CF_TRY(cf_build_buf(k->b, "t", d->hidden, &k->t, err));
    }
    CF_TRY(cf_build_buf(k->b, "y", d->hidden, &k->y, err));
    if (d->names.attn_post_norm || d->names.ffn_post_norm)
        CF_TRY(cf_build_buf(k->b, "z", d->hidden, &k->z, err));
    if (d->beside)
        CF_TRY(cf_build_buf(k->b, "beside", d->hidden, &k->beside, err));
    if (inner) {
        CF_TRY(cf_build_buf(k->b, "g", inner, &k->g, err));
        CF_TRY(cf_build_buf(k->b, "u", inner, &k->u, err));
    }
    CF_TRY(cf_build_buf(k->b, "logits", d->experts, &k->logits, err));
    if (d->names.shared_switch)
        CF_TRY(cf_build_buf(k->b, "gate", 1, &k->gate, err));
    if (d->rank_kv) {
        k->latent = (cf_latent){.hidden = d->hidden, .heads = d->heads, .rank_q = d->rank_q,
                                .rank_kv = d->rank_kv, .nope = d->nope, .rope = d->rot, .v = d->v,
                                .q_scale = 1, .kv_scale = 1, .eps = d->eps,
                                .score_scale = (double)k->score_scale, .rope_def = k->rope_def,
                                .src = k->n, .dst = k->y, .index = d->index,
                                .index_rope = k->index_rope};
        return cf_latent_bufs(k->b, &k->latent, err);
    }
    CF_TRY(cf_build_buf(k->b, "q", d->heads * d->head, &k->q, err));
    CF_TRY(cf_build_buf(k->b, "k", d->kv_heads * d->head, &k->k, err));
    CF_TRY(cf_build_buf(k->b, "v", d->kv_heads * d->head, &k->v, err));
    CF_TRY(cf_build_buf(k->b, "o", d->heads * d->head, &k->o, err));
    if (d->attn_gated)
        CF_TRY(cf_build_buf(k->b, "q and gates", 2 * d->heads * d->head, &k->q_gate, err));
    return 0;
fail:
    return rc;
}

static int embedding_build(struct build *k, cf_wid *embedding, cf_err *err)
{
    int rc;
    cf_step *s;
    const cf_decoder *d = k->d;
    uint32_t vocab = k->b->model->spec.vocab;
    *embedding = CF_NO_WEIGHT;
    if (d->tied) {
        CF_TRY(cf_bind_weight(k->b, embedding, 0, vocab, d->hidden, err, "%s", d->names.embed));
    } else {
        cf_table_def *table;
        CF_TRY(cf_bind_table(k->b, &table, vocab, d->hidden, err, "%s", d->names.embed));
        table->key = CF_ROWS_TOKEN;
    }
    CF_TRY(cf_build_step(k->b, CF_STEP_EMBED, 0, k->x, k->x, &s, err));
    s->u.embed.resident = *embedding;
    s->u.embed.scale = (float)or_one(d->embed_scale);
    return 0;
fail:
    return rc;
}

static int head_build(struct build *k, cf_wid embedding, cf_err *err)
{
    int rc;
    cf_step *s;
    const cf_decoder *d = k->d;
    cf_wid head = embedding, bias = CF_NO_WEIGHT;
    CF_TRY(step_norm(k, d->layers, d->names.final_norm, k->x, k->n, err));
    if (!d->tied)
        CF_TRY(cf_bind_weight(k->b, &head, 0, k->b->model->spec.vocab, d->hidden, err, "%s.weight",
                              d->names.head));
    if (d->head_bias)
        CF_TRY(cf_bind_weight(k->b, &bias, CF_BIND_BIAS, 0, k->b->model->spec.vocab, err, "%s.bias",
                              d->names.head));
    CF_TRY(cf_build_step(k->b, CF_STEP_HEAD, d->layers, k->n, k->n, &s, err));
    s->u.head.w = head;
    s->u.head.bias = bias;
    s->u.head.scale = (float)or_one(d->logits_scale);
    s->u.head.cap = (float)d->logits_cap;
    return 0;
fail:
    return rc;
}

int cf_decoder_build(cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    struct build k = {.b = b, .d = d, .score_scale = 1};
    cf_spec *s = &b->model->spec;
    if ((rc = cf_decoder_read_routing(b, d, err)) < 0)
        return rc;
    if (d->top_k > d->experts)
        return CF_FAIL(err, CF_EFORMAT, "%s: %u of %u experts are not a possible choice", b->path,
                       d->top_k, d->experts);
    const cf_route_def *r = &d->router;
    if (r->n_groups > 1 && d->top_k > r->top_groups * (d->experts / r->n_groups))
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: %u experts of %u in %u of %u groups are not a possible choice", b->path,
                       d->top_k, d->experts, r->top_groups, r->n_groups);
    s->layers = d->layers;
    s->hidden = d->hidden;
    s->heads = d->heads;
    s->experts = d->experts;
    s->top_k = d->top_k;
    d->router.scale = (float)or_one((double)d->router.scale);
    const json_t *config = b->config;
    if (d->rope_config)
        b->config = d->rope_config;
    rc = cf_config_rope(b, d->rot, d->rope_layout, d->theta_absent, &k.rope_def, &k.score_scale,
                        err);
    k.index_rope = k.rope_def;
    float unused;
    if (rc == 0 && d->index.top_k && d->index.layout != d->rope_layout)
        rc = cf_config_rope(b, d->rot, d->index.layout, d->theta_absent, &k.index_rope, &unused,
                            err);
    b->config = config;
    if (rc < 0)
        return rc;
    cf_wid embedding;
    CF_TRY(bufs_build(&k, err));
    CF_TRY(embedding_build(&k, &embedding, err));
    for (uint32_t i = 0; i < d->layers; i++)
        CF_TRY(layer_build(&k, i, err));
    b->model->kv = d->rank_kv
                       ? (cf_kv_def){.slots = d->layers,
                                     .width = d->rank_kv + d->rot,
                                     .latent = true,
                                     .index_slots = k.index_layers,
                                     .index_width = d->index.head}
                       : (cf_kv_def){.slots = 2 * k.kv_layers, .width = d->kv_heads * d->head};
    return head_build(&k, embedding, err);
fail:
    return rc;
}
