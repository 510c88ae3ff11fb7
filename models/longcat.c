/* LongCat-Flash, LongCat-Flash-Lite, LongCat-2.0 and Lite-Sparse: shortcut-connected MoE over
 * multi-head latent attention.
 *
 * Facts: the LongCat-Flash technical report (arXiv 2509.01322) and the published configs. A
 * checkpoint layer has two attention sub-layers and two dense MLPs; its MoE sees the input of the
 * first MLP and is added only after the second: whatever lies between hides the experts' reads.
 * Lite adds an n-gram embedding: hashed tables of which a few rows are read per token. 2.0 and
 * Lite-Sparse have it under other names, and choose index_topk positions to attend to: up to so many
 * that is all of them, and longer contexts are refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/decoder.h"

typedef struct dims {
    uint32_t hidden, layers, heads, q_rank, kv_rank, nope, rope, v, dense, ffn;
    uint32_t experts, zero, top_k;
    double eps, router_scale, q_scale, kv_scale;
    bool renormalise, tied;
    uint32_t rope_def;
    float score_scale;
    uint32_t ngram_order, ngram_splits; /* order 0: no n-gram embedding */
    double ngram_ratio;
    const char *ngram_table, *ngram_proj; /* names, over the table */
} dims;

typedef struct bufs {
    cf_bufid x, n, t, y, g, u, logits, rows;
    cf_latent latent;
} bufs;

static int dims_read_sizes(cf_build *b, dims *d, cf_err *err)
{
    int rc;
    CF_TRY(cf_config_u32(b, "vocab_size", 1, 1u << 24, &b->model->spec.vocab, err));
    CF_TRY(cf_config_u32(b, "hidden_size", 1, 1u << 16, &d->hidden, err));
    CF_TRY(cf_config_u32(b, "num_layers", 1, 1024, &d->layers, err));
    CF_TRY(cf_config_u32(b, "num_attention_heads", 1, 1024, &d->heads, err));
    CF_TRY(cf_config_u32(b, "q_lora_rank", 1, 1u << 16, &d->q_rank, err));
    CF_TRY(cf_config_u32(b, "kv_lora_rank", 1, 1u << 14, &d->kv_rank, err));
    CF_TRY(cf_config_u32(b, "qk_nope_head_dim", 1, 4096, &d->nope, err));
    CF_TRY(cf_config_u32(b, "qk_rope_head_dim", 2, CF_MAX_ROT, &d->rope, err));
    CF_TRY(cf_config_u32(b, "v_head_dim", 1, 4096, &d->v, err));
    CF_TRY(cf_config_u32(b, "ffn_hidden_size", 1, 1u << 20, &d->dense, err));
    CF_TRY(cf_config_u32(b, "expert_ffn_hidden_size", 1, 1u << 20, &d->ffn, err));
    CF_TRY(cf_config_u32(b, "n_routed_experts", 1, CF_ROUTE_MAX_EXPERTS, &d->experts, err));
    CF_TRY(cf_config_u32_or(b, "zero_expert_num", 0, CF_ROUTE_MAX_EXPERTS, 0, &d->zero, err));
    CF_TRY(cf_config_u32(b, "moe_topk", 1, CF_ROUTE_MAX_K, &d->top_k, err));
    if (d->experts + d->zero > CF_ROUTE_MAX_EXPERTS || d->top_k > d->experts)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: %u experts of %u routed and %u zero are not a possible choice", b->path,
                       d->top_k, d->experts, d->zero);
    return 0;
fail:
    return rc;
}

/* Attention over chosen positions is attention over all while there are no more than it chooses. */
static int sparse_read(cf_build *b, cf_err *err)
{
    cf_spec *s = &b->model->spec;
    uint32_t top_k;
    int rc = cf_config_u32_or(b, "index_topk", 1, 1u << 20, 0, &top_k, err);
    if (rc == 0)
        rc = cf_config_only_text(b, "attention_method", top_k ? "LSA" : "MLA", err);
    if (rc == 0 && top_k && s->ctx_max > top_k) {
        snprintf(s->ctx_why, sizeof s->ctx_why,
                 "beyond %u of its %u positions attention is sparse, which is not built", top_k,
                 s->ctx_max);
        s->ctx_max = top_k;
    }
    return rc;
}

/* The n-gram embedding, under either set of names. */
static int ngram_read(cf_build *b, dims *d, cf_err *err)
{
    int rc;
    bool oe = json_object_get(b->config, "oe_vocab_size_ratio") != NULL;
    if (!oe && !json_object_get(b->config, "ngram_vocab_size_ratio"))
        return 0;
    d->ngram_table = oe ? "model.oe_embed_tokens%u.weight"
                        : "model.ngram_embeddings.embedders.%u.weight";
    d->ngram_proj =
        oe ? "model.oe_embed_proj%u.weight" : "model.ngram_embeddings.post_projs.%u.weight";
    CF_TRY(cf_config_f64(b, oe ? "oe_vocab_size_ratio" : "ngram_vocab_size_ratio", 0.01, 1e4,
                         &d->ngram_ratio, err));
    CF_TRY(cf_config_u32(b, oe ? "oe_neighbor_num" : "emb_neighbor_num", 2, CF_MAX_NGRAM,
                         &d->ngram_order, err));
    CF_TRY(cf_config_u32(b, oe ? "oe_split_num" : "emb_split_num", 1, 64, &d->ngram_splits, err));
    uint32_t n_tables = d->ngram_splits * (d->ngram_order - 1);
    if (d->hidden % n_tables)
        return CF_FAIL(err, CF_EFORMAT, "%s: hidden_size %u is not divided by its %u n-gram tables",
                       b->path, d->hidden, n_tables);
    return 0;
fail:
    return rc;
}

static int dims_read(cf_build *b, dims *d, cf_err *err)
{
    int rc;
    CF_TRY(dims_read_sizes(b, d, err));
    CF_TRY(cf_config_tokens(b, err));
    CF_TRY(cf_config_f64(b, "rms_norm_eps", 0, 1, &d->eps, err));
    CF_TRY(cf_config_f64_or(b, "routed_scaling_factor", 1e-6, 1e6, 1, &d->router_scale, err));
    CF_TRY(cf_config_bool_or(b, "norm_topk_prob", false, &d->renormalise, err));
    CF_TRY(cf_config_bool_or(b, "tie_word_embeddings", false, &d->tied, err));
    CF_TRY(cf_config_only_text(b, "hidden_act", "silu", err));
    CF_TRY(cf_config_only_text(b, "zero_expert_type", "identity", err));
    CF_TRY(cf_config_only_bool(b, "attention_bias", false, err));
    CF_TRY(cf_config_only_bool(b, "router_bias", false, err));
    bool scale_q, scale_kv;
    CF_TRY(cf_config_bool_or(b, "mla_scale_q_lora", true, &scale_q, err));
    CF_TRY(cf_config_bool_or(b, "mla_scale_kv_lora", true, &scale_kv, err));
    d->q_scale = scale_q ? sqrt((double)d->hidden / d->q_rank) : 1;
    d->kv_scale = scale_kv ? sqrt((double)d->hidden / d->kv_rank) : 1;
    CF_TRY(cf_config_rope(b, d->rope, CF_ROPE_INTERLEAVED, 0, &d->rope_def, &d->score_scale, err));
    CF_TRY(sparse_read(b, err));
    return ngram_read(b, d, err);
fail:
    return rc;
}

static int bufs_declare(cf_build *b, const dims *d, bufs *f, cf_err *err)
{
    int rc;
    CF_TRY(cf_build_buf(b, "x", d->hidden, &f->x, err));
    CF_TRY(cf_build_buf(b, "n", d->hidden, &f->n, err));
    CF_TRY(cf_build_buf(b, "t", d->hidden, &f->t, err));
    CF_TRY(cf_build_buf(b, "y", d->hidden, &f->y, err));
    CF_TRY(cf_build_buf(b, "g", d->dense, &f->g, err));
    CF_TRY(cf_build_buf(b, "u", d->dense, &f->u, err));
    f->latent = (cf_latent){.hidden = d->hidden, .heads = d->heads, .rank_q = d->q_rank,
                            .rank_kv = d->kv_rank, .nope = d->nope, .rope = d->rope, .v = d->v,
                            .q_scale = d->q_scale, .kv_scale = d->kv_scale, .eps = d->eps,
                            .score_scale = (double)d->score_scale, .rope_def = d->rope_def,
                            .src = f->n, .dst = f->y};
    CF_TRY(cf_latent_bufs(b, &f->latent, err));
    CF_TRY(cf_build_buf(b, "logits", d->experts + d->zero, &f->logits, err));
    if (d->ngram_order)
        CF_TRY(cf_build_buf(b, "rows", d->hidden, &f->rows, err));
    return 0;
fail:
    return rc;
}

/* ---- embedding ---- */

static int ngram_build(cf_build *b, const dims *d, const bufs *f, cf_err *err)
{
    int rc;
    cf_step *s;
    char name[64];
    const cf_spec *spec = &b->model->spec;
    if (spec->n_eos != 1)
        return CF_FAIL(err, CF_EFORMAT, "%s: n-grams end at one eos_token_id, there are %u",
                       b->path, spec->n_eos);
    uint32_t n_tables = d->ngram_splits * (d->ngram_order - 1), cols = d->hidden / n_tables;
    uint64_t base = (uint64_t)(d->ngram_ratio * spec->vocab);
    uint32_t first = b->model->n_tables;
    for (uint32_t t = 0; t < n_tables; t++) {
        cf_table_def *table;
        snprintf(name, sizeof name, d->ngram_table, t);
        CF_TRY(cf_bind_table(b, &table, base + 2 * t + 1, cols, err, "%s", name));
        table->key = CF_ROWS_NGRAM;
        table->n = 2 + t / d->ngram_splits;
        table->stop = spec->eos[0];
        table->power[0] = 1 % table->rows;
        for (uint32_t i = 1; i < table->n; i++)
            table->power[i] =
                (uint64_t)((unsigned __int128)table->power[i - 1] * spec->vocab % table->rows);
    }
    CF_TRY(cf_build_step(b, CF_STEP_ROWS, 0, f->rows, f->rows, &s, err));
    s->u.rows.first_table = first;
    s->u.rows.n_tables = n_tables;
    /* All projections may be one matrix, side by side as the rows are. */
    static const char all[] = "model.ngram_embeddings.post_projs.weight";
    uint32_t parts = cf_bind_has(b, all) ? 1 : n_tables, width = d->hidden / parts;
    for (uint32_t t = 0; t < parts; t++) {
        cf_wid w;
        snprintf(name, sizeof name, d->ngram_proj, t);
        CF_TRY(cf_bind_weight(b, &w, 0, d->hidden, width, err, "%s", parts > 1 ? name : all));
        CF_TRY(cf_build_step(b, CF_STEP_LINEAR, 0, f->rows, f->x, &s, err));
        s->u.linear.w = w;
        s->u.linear.src_col = t * width;
        s->u.linear.accumulate = true;
    }
    CF_TRY(cf_build_step(b, CF_STEP_SCALE, 0, f->x, f->x, &s, err));
    s->u.scale.scale = (float)(1.0 / (1 + n_tables));
    return 0;
fail:
    return rc;
}

static int embedding_build(cf_build *b, const dims *d, const bufs *f, cf_wid *embedding,
                           cf_err *err)
{
    int rc;
    cf_step *s;
    static const char name[] = "model.embed_tokens.weight";
    *embedding = CF_NO_WEIGHT;
    uint32_t table_index = b->model->n_tables;
    if (d->tied) {
        CF_TRY(cf_bind_weight(b, embedding, 0, b->model->spec.vocab, d->hidden, err, name));
    } else {
        cf_table_def *table;
        CF_TRY(cf_bind_table(b, &table, b->model->spec.vocab, d->hidden, err, name));
        table->key = CF_ROWS_TOKEN;
    }
    CF_TRY(cf_build_step(b, CF_STEP_EMBED, 0, f->x, f->x, &s, err));
    s->u.embed.table = table_index;
    s->u.embed.resident = *embedding;
    return d->ngram_order ? ngram_build(b, d, f, err) : 0;
fail:
    return rc;
}

/* ---- one layer ---- */

static int add_build(cf_build *b, uint32_t layer, cf_bufid src, cf_bufid dst, cf_err *err)
{
    cf_step *s;
    return cf_build_step(b, CF_STEP_ADD, layer, src, dst, &s, err);
}

static int norm_build(cf_build *b, const dims *d, uint32_t layer, const char *which, uint32_t sub,
                      cf_bufid src, cf_bufid dst, cf_err *err)
{
    int rc;
    cf_step *s;
    cf_wid w;
    CF_TRY(cf_bind_weight(b, &w, CF_BIND_NORM, 0, d->hidden, err, "model.layers.%u.%s.%u.weight",
                          layer, which, sub));
    CF_TRY(cf_build_step(b, CF_STEP_NORM, layer, src, dst, &s, err));
    s->u.norm.w = w;
    s->u.norm.eps = (float)d->eps;
    return 0;
fail:
    return rc;
}

static int attention_build(cf_build *b, const bufs *f, uint32_t layer, uint32_t sub, cf_err *err)
{
    char prefix[64];
    snprintf(prefix, sizeof prefix, "model.layers.%u.self_attn.%u.", layer, sub);
    cf_latent l = f->latent;
    l.layer = layer;
    l.kv_slot = 2 * layer + sub;
    int rc = cf_latent_build(b, &l, prefix, err);
    return rc < 0 ? rc : add_build(b, layer, f->y, f->x, err);
}

static int dense_build(cf_build *b, const dims *d, const bufs *f, uint32_t layer, uint32_t sub,
                       cf_bufid src, cf_err *err)
{
    int rc;
    cf_step *s;
    cf_wid gate, up, down;
    static const char fmt[] = "model.layers.%u.mlps.%u.%s.weight";
    CF_TRY(cf_bind_weight(b, &gate, 0, d->dense, d->hidden, err, fmt, layer, sub, "gate_proj"));
    CF_TRY(cf_bind_weight(b, &up, 0, d->dense, d->hidden, err, fmt, layer, sub, "up_proj"));
    CF_TRY(cf_bind_weight(b, &down, 0, d->hidden, d->dense, err, fmt, layer, sub, "down_proj"));
    CF_TRY(cf_build_step(b, CF_STEP_DENSE, layer, src, f->y, &s, err));
    s->u.dense.gate = gate;
    s->u.dense.up = up;
    s->u.dense.down = down;
    s->u.dense.g = f->g;
    s->u.dense.u = f->u;
    s->u.dense.ffn = d->dense;
    return add_build(b, layer, f->y, f->x, err);
fail:
    return rc;
}

static int route_build(cf_build *b, const dims *d, const bufs *f, uint32_t layer, uint32_t *moe,
                       cf_err *err)
{
    int rc;
    cf_step *s;
    cf_wid classifier, bias;
    int router = CF_BIND_F32 | CF_BIND_FINITE;
    CF_TRY(cf_build_moe(b, layer, d->experts, d->zero, d->top_k, d->hidden, d->ffn,
                        moe, err));
    CF_TRY(cf_bind_weight(b, &classifier, router, d->experts + d->zero, d->hidden, err,
                          "model.layers.%u.mlp.router.classifier.weight", layer));
    CF_TRY(cf_bind_weight(b, &bias, router | CF_BIND_BIAS, 0, d->experts + d->zero, err,
                          "model.layers.%u.mlp.router.e_score_correction_bias", layer));
    static const char fmt[] = "model.layers.%u.mlp.experts.%u.%s.weight";
    for (uint32_t e = 0; e < d->experts; e++) {
        CF_TRY(cf_bind_piece(b, *moe, e, CF_GATE, d->ffn, d->hidden, err, fmt, layer, e,
                             "gate_proj"));
        CF_TRY(cf_bind_piece(b, *moe, e, CF_UP, d->ffn, d->hidden, err, fmt, layer, e, "up_proj"));
        CF_TRY(cf_bind_piece(b, *moe, e, CF_DOWN, d->hidden, d->ffn, err, fmt, layer, e,
                             "down_proj"));
    }
    CF_TRY(cf_build_step(b, CF_STEP_ROUTE, layer, f->t, f->t, &s, err));
    s->u.route = (cf_route_def){.classifier = classifier, .bias = bias,
                                .logit_bias = CF_NO_WEIGHT, .score = CF_SCORE_SOFTMAX,
                                .renormalise = d->renormalise, .scale = (float)d->router_scale,
                                .moe = *moe, .logits = f->logits};
    return 0;
fail:
    return rc;
}

static int layer_build(cf_build *b, const dims *d, const bufs *f, uint32_t layer, cf_err *err)
{
    int rc;
    cf_step *s;
    uint32_t moe;
    CF_TRY(norm_build(b, d, layer, "input_layernorm", 0, f->x, f->n, err));
    CF_TRY(attention_build(b, f, layer, 0, err));
    CF_TRY(norm_build(b, d, layer, "post_attention_layernorm", 0, f->x, f->t, err));
    CF_TRY(route_build(b, d, f, layer, &moe, err));
    /* The shortcut: from here to EXPERTS nothing needs the experts. */
    CF_TRY(dense_build(b, d, f, layer, 0, f->t, err));
    CF_TRY(norm_build(b, d, layer, "input_layernorm", 1, f->x, f->n, err));
    CF_TRY(attention_build(b, f, layer, 1, err));
    CF_TRY(norm_build(b, d, layer, "post_attention_layernorm", 1, f->x, f->n, err));
    CF_TRY(dense_build(b, d, f, layer, 1, f->n, err));
    CF_TRY(cf_build_step(b, CF_STEP_EXPERTS, layer, f->t, f->y, &s, err));
    s->u.experts.moe = moe;
    CF_TRY(add_build(b, layer, f->y, f->x, err));
    return cf_build_step(b, CF_STEP_TAP, layer, f->x, f->x, &s, err);
fail:
    return rc;
}

/* ---- what a checkpoint may hold beyond the model ---- */

static bool is_mtp(const cf_build *b, const char *name)
{
    (void)b;
    return strncmp(name, "model.mtp.", 10) == 0;
}

/* What chooses positions beyond index_topk. */
static bool is_indexer(const cf_build *b, const char *name)
{
    unsigned layer, sub;
    int end = 0;
    (void)b;
    return sscanf(name, "model.layers.%u.self_attn.%u.indexer.%n", &layer, &sub, &end) == 2 && end;
}

/* Some converters store matrices for the zero experts too; nothing reads them. */
static bool is_zero_expert(const cf_build *b, const char *name)
{
    unsigned layer, expert;
    return sscanf(name, "model.layers.%u.mlp.experts.%u.", &layer, &expert) == 2 &&
           expert >= b->model->spec.experts;
}

static int longcat_build(cf_build *b, cf_err *err)
{
    int rc;
    dims d = {0};
    bufs f = {0};
    cf_step *s;
    cf_wid embedding, norm, head;
    CF_TRY(dims_read(b, &d, err));
    cf_spec *spec = &b->model->spec;
    spec->layers = d.layers;
    spec->hidden = d.hidden;
    spec->heads = d.heads;
    spec->experts = d.experts;
    spec->zero_experts = d.zero;
    spec->top_k = d.top_k;
    b->model->kv = (cf_kv_def){.slots = 2 * d.layers, .width = d.kv_rank + d.rope, .latent = true};
    CF_TRY(bufs_declare(b, &d, &f, err));
    CF_TRY(embedding_build(b, &d, &f, &embedding, err));
    for (uint32_t i = 0; i < d.layers; i++)
        CF_TRY(layer_build(b, &d, &f, i, err));
    CF_TRY(cf_bind_weight(b, &norm, CF_BIND_NORM, 0, d.hidden, err, "model.norm.weight"));
    CF_TRY(cf_build_step(b, CF_STEP_NORM, d.layers, f.x, f.n, &s, err));
    s->u.norm.w = norm;
    s->u.norm.eps = (float)d.eps;
    head = embedding;
    if (!d.tied)
        CF_TRY(cf_bind_weight(b, &head, 0, spec->vocab, d.hidden, err, "lm_head.weight"));
    CF_TRY(cf_build_step(b, CF_STEP_HEAD, d.layers, f.n, f.n, &s, err));
    s->u.head.w = head;
    cf_skip_tensors(b, is_mtp, "multi-token-prediction module");
    cf_skip_tensors(b, is_zero_expert, "matrices of zero experts");
    cf_skip_tensors(b, is_indexer, "indexers of sparse attention");
    return 0;
fail:
    return rc;
}

const cf_family cf_family_longcat = {
    .name = "longcat",
    .architectures = (const char *const[]){
        "LongcatFlashForCausalLM", "LongcatFlashNgramForCausalLM", "LongcatCausalLM", NULL},
    .model_types = (const char *const[]){"longcat_flash", "longcat_flash_ngram", "longcat", NULL},
    .build = longcat_build,
};
