/* Switch Transformers (arXiv 2101.03961): an encoder and a decoder in the shape of T5 (arXiv
 * 1910.10683). Two plans: the encoder's runs once over the whole input and leaves keys and values
 * of its output for each of the decoder's layers. Pre-norm layers, attention biased by distance and
 * not scaled, ungated relu feed-forwards, every few of them routed: top 1, an expert serves the
 * first expert_capacity rows of a call. The head is the embedding, its input scaled by 1 /
 * sqrt(d_model). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/build.h"

enum { MAX_NAME = 160, MAX_DISTANCE = 1 << 16 };

typedef struct sizes {
    uint32_t hidden, heads, head, ffn, experts, capacity, max_distance, buckets;
    uint32_t layers[2], every[2]; /* of encoder and decoder; every so many layers are routed */
    double eps;
    cf_bufid x, n, y, g, q, k, v, o, logits;
    cf_wid bias;      /* of the stack being built */
    uint32_t map;     /* its distances' rows of bias, among the constants */
    uint32_t kv_slot; /* the next */
} sizes;

enum { ENCODER, DECODER };
static const char *const stack_names[] = {"encoder", "decoder"};

static int sizes_read(cf_build *b, sizes *s, cf_err *err)
{
    int rc;
    cf_spec *spec = &b->model->spec;
    uint32_t start;
    CF_TRY(cf_config_u32(b, "vocab_size", 1, 1u << 24, &spec->vocab, err));
    CF_TRY(cf_config_u32(b, "d_model", 1, 1u << 16, &s->hidden, err));
    CF_TRY(cf_config_u32(b, "num_heads", 1, 1024, &s->heads, err));
    CF_TRY(cf_config_u32(b, "d_kv", 1, 4096, &s->head, err));
    CF_TRY(cf_config_u32(b, "d_ff", 1, 1u << 20, &s->ffn, err));
    CF_TRY(cf_config_u32(b, "num_layers", 1, 512, &s->layers[ENCODER], err));
    CF_TRY(cf_config_u32_or(b, "num_decoder_layers", 1, 512, s->layers[ENCODER],
                            &s->layers[DECODER], err));
    CF_TRY(cf_config_u32(b, "num_experts", 1, CF_ROUTE_MAX_EXPERTS, &s->experts, err));
    CF_TRY(cf_config_u32(b, "expert_capacity", 1, 1u << 20, &s->capacity, err));
    CF_TRY(cf_config_u32_or(b, "encoder_sparse_step", 1, 1024, 2, &s->every[ENCODER], err));
    CF_TRY(cf_config_u32_or(b, "decoder_sparse_step", 1, 1024, 2, &s->every[DECODER], err));
    CF_TRY(cf_config_u32_or(b, "relative_attention_num_buckets", 4, 4096, 32, &s->buckets, err));
    CF_TRY(cf_config_u32_or(b, "relative_attention_max_distance", 2, MAX_DISTANCE, 128,
                            &s->max_distance, err));
    CF_TRY(cf_config_f64_or(b, "layer_norm_epsilon", 0, 1, 1e-6, &s->eps, err));
    CF_TRY(cf_config_u32_or(b, "n_positions", 1, 8192, 8192, &spec->ctx_max, err));
    CF_TRY(cf_config_u32_or(b, "decoder_start_token_id", 0, spec->vocab - 1, 0, &start, err));
    CF_TRY(cf_config_ends(b, err));
    CF_TRY(cf_config_only_text(b, "dense_act_fn", "relu", err));
    CF_TRY(cf_config_only_bool(b, "is_gated_act", false, err));
    CF_TRY(cf_config_only_bool(b, "router_bias", false, err));
    CF_TRY(cf_config_only_bool(b, "tie_word_embeddings", true, err));
    if (s->buckets % 4 || s->max_distance <= s->buckets / 2)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: %u buckets up to a distance of %u are not a possible "
                       "division",
                       b->path, s->buckets, s->max_distance);
    spec->decoder_start = (int32_t)start;
    spec->hidden = s->hidden;
    spec->heads = s->heads;
    spec->layers = s->layers[ENCODER] + s->layers[DECODER];
    spec->experts = s->experts;
    spec->top_k = 1;
    return 0;
fail:
    return rc;
}

/* ---- distances ---- */

/* The bucket of one distance >= 0 among n: half of them exact, then ever wider ones. In float32, as
 * the vendor's code has it. */
static uint32_t bucket_of(uint32_t distance, uint32_t n, uint32_t max_distance)
{
    uint32_t exact = n / 2;
    if (distance < exact)
        return distance;
    float share =
        logf((float)distance / (float)exact) / (float)log((double)max_distance / (double)exact);
    uint32_t bucket = exact + (uint32_t)(share * (float)(n - exact));
    return bucket < n ? bucket : n - 1;
}

/* The rows of bias for distances -max_distance .. max_distance; beyond it nothing changes. The
 * encoder tells ahead from behind, by half of the buckets each. */
static int map_build(cf_build *b, sizes *s, int stack, cf_err *err)
{
    int64_t most = s->max_distance;
    uint32_t n = stack == ENCODER ? s->buckets / 2 : s->buckets;
    for (int64_t d = -most; d <= most; d++) {
        uint32_t ahead = d > 0, at, bucket = 0;
        if (stack == ENCODER)
            bucket = ahead * n + bucket_of((uint32_t)(ahead ? d : -d), n, s->max_distance);
        else if (!ahead)
            bucket = bucket_of((uint32_t)-d, n, s->max_distance);
        int rc = cf_build_constants(b, &bucket, 1, &at, err);
        if (rc < 0)
            return rc;
        s->map = d == -most ? at : s->map;
    }
    return 0;
}

/* ---- pieces of a layer ---- */

/* Functions below take the beginning of a sub-layer's names, "encoder.block.3.layer.1.". */
static int norm(cf_build *b, const sizes *s, uint32_t layer, const char *prefix, const char *name,
                cf_err *err)
{
    cf_wid w;
    cf_step *step;
    int rc = cf_bind_weight(b, &w, CF_BIND_NORM, 0, s->hidden, err, "%s%s.weight", prefix, name);
    if (rc < 0 || (rc = cf_build_step(b, CF_STEP_NORM, layer, s->x, s->n, &step, err)) < 0)
        return rc;
    step->u.norm.w = w;
    step->u.norm.kind = CF_NORM_RMS;
    step->u.norm.eps = (float)s->eps;
    return 0;
}

static int join(cf_build *b, const sizes *s, uint32_t layer, cf_err *err)
{
    cf_step *step;
    return cf_build_step(b, CF_STEP_ADD, layer, s->y, s->x, &step, err);
}

static int self_attention(cf_build *b, sizes *s, uint32_t layer, const char *prefix, cf_err *err)
{
    int rc;
    cf_step *step;
    uint32_t all = s->heads * s->head;
    cf_attn_bias_def a = {.heads = s->heads,
                          .head = s->head,
                          .k_slot = s->kv_slot,
                          .v_slot = s->kv_slot + 1,
                          .bias = s->bias,
                          .buckets = s->map,
                          .n_buckets = 2 * s->max_distance + 1,
                          .zero = s->max_distance,
                          .q_buf = s->q,
                          .k_buf = s->k,
                          .v_buf = s->v,
                          .o_buf = s->o};
    CF_TRY(norm(b, s, layer, prefix, "layer_norm", err));
    CF_TRY(cf_bind_weight(b, &a.q, 0, all, s->hidden, err, "%sSelfAttention.q.weight", prefix));
    CF_TRY(cf_bind_weight(b, &a.k, 0, all, s->hidden, err, "%sSelfAttention.k.weight", prefix));
    CF_TRY(cf_bind_weight(b, &a.v, 0, all, s->hidden, err, "%sSelfAttention.v.weight", prefix));
    CF_TRY(cf_bind_weight(b, &a.out, 0, s->hidden, all, err, "%sSelfAttention.o.weight", prefix));
    CF_TRY(cf_build_step(b, CF_STEP_ATTN_BIAS, layer, s->n, s->y, &step, err));
    step->u.bias = a;
    return join(b, s, layer, err);
fail:
    return rc;
}

/* The decoder's half; the encoder's plan ends in the other, cross_kv. */
static int cross_attention(cf_build *b, const sizes *s, uint32_t layer, const char *prefix,
                           uint32_t slot, cf_err *err)
{
    int rc;
    cf_step *step;
    uint32_t all = s->heads * s->head;
    cf_attn_cross_def a = {.heads = s->heads,
                           .head = s->head,
                           .k_slot = slot,
                           .v_slot = slot + 1,
                           .q_buf = s->q,
                           .o_buf = s->o};
    CF_TRY(norm(b, s, layer, prefix, "layer_norm", err));
    CF_TRY(cf_bind_weight(b, &a.q, 0, all, s->hidden, err, "%sEncDecAttention.q.weight", prefix));
    CF_TRY(cf_bind_weight(b, &a.out, 0, s->hidden, all, err, "%sEncDecAttention.o.weight", prefix));
    CF_TRY(cf_build_step(b, CF_STEP_ATTN_CROSS, layer, s->n, s->y, &step, err));
    step->u.cross = a;
    return join(b, s, layer, err);
fail:
    return rc;
}

static int cross_kv(cf_build *b, const sizes *s, uint32_t slot, cf_err *err)
{
    int rc = 0;
    uint32_t all = s->heads * s->head;
    for (uint32_t i = 0; i < s->layers[DECODER]; i++) {
        cf_wid k, v;
        cf_step *step;
        const char *const format = "decoder.block.%u.layer.1.EncDecAttention.%s.weight";
        CF_TRY(cf_bind_weight(b, &k, 0, all, s->hidden, err, format, i, "k"));
        CF_TRY(cf_bind_weight(b, &v, 0, all, s->hidden, err, format, i, "v"));
        CF_TRY(cf_build_step(b, CF_STEP_CROSS_KV, s->layers[ENCODER] + i, s->n, s->n, &step, err));
        step->u.cross_kv.k = k;
        step->u.cross_kv.v = v;
        step->u.cross_kv.k_slot = slot + 2 * i;
        step->u.cross_kv.v_slot = slot + 2 * i + 1;
        step->u.cross_kv.k_buf = s->k;
        step->u.cross_kv.v_buf = s->v;
    }
fail:
    return rc;
}

static int dense(cf_build *b, const sizes *s, uint32_t layer, const char *prefix, cf_err *err)
{
    int rc;
    cf_wid in, out;
    cf_step *step;
    CF_TRY(cf_bind_weight(b, &in, 0, s->ffn, s->hidden, err, "%smlp.wi.weight", prefix));
    CF_TRY(cf_bind_weight(b, &out, 0, s->hidden, s->ffn, err, "%smlp.wo.weight", prefix));
    CF_TRY(cf_build_step(b, CF_STEP_DENSE, layer, s->n, s->y, &step, err));
    step->u.dense.gate = in;
    step->u.dense.up = CF_NO_WEIGHT;
    step->u.dense.down = out;
    step->u.dense.g = s->g;
    step->u.dense.ffn = s->ffn;
    step->u.dense.act.act = CF_ACT_RELU;
    return 0;
fail:
    return rc;
}

static int experts(cf_build *b, const sizes *s, uint32_t layer, const char *prefix, cf_err *err)
{
    int rc;
    uint32_t moe;
    cf_step *step;
    cf_route_def r = {.bias = CF_NO_WEIGHT,
                      .logit_bias = CF_NO_WEIGHT,
                      .score = CF_SCORE_SOFTMAX,
                      .scale = 1,
                      .capacity = s->capacity,
                      .logits = s->logits};
    CF_TRY(cf_build_moe(b, layer, s->experts, 0, 1, s->hidden, s->ffn, &moe, err));
    for (uint32_t e = 0; e < s->experts; e++) {
        const char *const format = "%smlp.experts.expert_%u.%s.weight";
        CF_TRY(cf_bind_piece(b, moe, e, CF_GATE, s->ffn, s->hidden, err, format, prefix, e, "wi"));
        CF_TRY(cf_bind_piece(b, moe, e, CF_DOWN, s->hidden, s->ffn, err, format, prefix, e, "wo"));
    }
    CF_TRY(cf_bind_weight(b, &r.classifier, CF_BIND_FINITE | CF_BIND_F32, s->experts, s->hidden,
                          err, "%smlp.router.classifier.weight", prefix));
    r.moe = moe;
    CF_TRY(cf_build_step(b, CF_STEP_ROUTE, layer, s->n, s->n, &step, err));
    step->u.route = r;
    CF_TRY(cf_build_step(b, CF_STEP_EXPERTS, layer, s->n, s->y, &step, err));
    step->u.experts.moe = moe;
    step->u.experts.act.act = CF_ACT_RELU;
    return 0;
fail:
    return rc;
}

/* The feed-forward of layer i of a stack. */
static int feed_forward(cf_build *b, const sizes *s, int stack, uint32_t i, uint32_t layer,
                        const char *prefix, cf_err *err)
{
    int rc;
    bool routed = s->every[stack] == 1 || i % s->every[stack] == 1;
    CF_TRY(norm(b, s, layer, prefix, "layer_norm", err));
    CF_TRY(routed ? experts(b, s, layer, prefix, err) : dense(b, s, layer, prefix, err));
    return join(b, s, layer, err);
fail:
    return rc;
}

/* ---- stacks ---- */

/* Layers are counted through, the decoder's after the encoder's. The encoder keeps nothing: its
 * layers share two slots. cross: the first slot of what the encoder leaves. */
static int stack_build(cf_build *b, sizes *s, int stack, cf_wid embedding, uint32_t cross,
                       cf_err *err)
{
    int rc;
    cf_step *step;
    char name[MAX_NAME];
    const char *of = stack_names[stack];
    uint32_t first = stack == ENCODER ? 0 : s->layers[ENCODER];
    CF_TRY(map_build(b, s, stack, err));
    CF_TRY(cf_bind_weight(b, &s->bias, 0, s->buckets, s->heads, err,
                          "%s.block.0.layer.0.SelfAttention.relative_attention_bias.weight", of));
    CF_TRY(cf_build_step(b, CF_STEP_EMBED, first, s->x, s->x, &step, err));
    step->u.embed.resident = embedding;
    for (uint32_t i = 0; i < s->layers[stack]; i++) {
        uint32_t layer = first + i, part = 0;
        snprintf(name, sizeof name, "%s.block.%u.layer.%u.", of, i, part++);
        CF_TRY(self_attention(b, s, layer, name, err));
        if (stack == DECODER) {
            snprintf(name, sizeof name, "%s.block.%u.layer.%u.", of, i, part++);
            CF_TRY(cross_attention(b, s, layer, name, cross + 2 * i, err));
            s->kv_slot += 2;
        }
        snprintf(name, sizeof name, "%s.block.%u.layer.%u.", of, i, part);
        CF_TRY(feed_forward(b, s, stack, i, layer, name, err));
        CF_TRY(cf_build_step(b, CF_STEP_TAP, layer, s->x, s->x, &step, err));
    }
    return norm(b, s, first + s->layers[stack] - 1, of, ".final_layer_norm", err);
fail:
    return rc;
}

static int bufs_build(cf_build *b, sizes *s, cf_err *err)
{
    int rc;
    uint32_t all = s->heads * s->head;
    CF_TRY(cf_build_buf(b, "x", s->hidden, &s->x, err));
    CF_TRY(cf_build_buf(b, "n", s->hidden, &s->n, err));
    CF_TRY(cf_build_buf(b, "y", s->hidden, &s->y, err));
    CF_TRY(cf_build_buf(b, "g", s->ffn, &s->g, err));
    CF_TRY(cf_build_buf(b, "q", all, &s->q, err));
    CF_TRY(cf_build_buf(b, "k", all, &s->k, err));
    CF_TRY(cf_build_buf(b, "v", all, &s->v, err));
    CF_TRY(cf_build_buf(b, "o", all, &s->o, err));
    return cf_build_buf(b, "logits", s->experts, &s->logits, err);
fail:
    return rc;
}

static int switch_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_wid embedding;
    cf_step *step;
    sizes s = {0};
    CF_TRY(sizes_read(b, &s, err));
    CF_TRY(bufs_build(b, &s, err));
    uint32_t cross = 2,
             decoder = cross + 2 * s.layers[DECODER]; /* slots, behind the encoder's two */
    b->model->kv = (cf_kv_def){.slots = decoder + 2 * s.layers[DECODER], .width = s.heads * s.head};
    CF_TRY(cf_bind_weight(b, &embedding, 0, b->model->spec.vocab, s.hidden, err, "shared.weight"));
    CF_TRY(stack_build(b, &s, ENCODER, embedding, cross, err));
    CF_TRY(cf_build_step(b, CF_STEP_TAP, s.layers[ENCODER], s.n, s.n, &step, err));
    CF_TRY(cross_kv(b, &s, cross, err));
    b->model->n_encoder_steps = b->model->n_steps;
    s.kv_slot = decoder;
    CF_TRY(stack_build(b, &s, DECODER, embedding, cross, err));
    CF_TRY(cf_build_step(b, CF_STEP_HEAD, b->model->spec.layers, s.n, s.n, &step, err));
    step->u.head.w = embedding;
    step->u.head.scale = (float)(1 / sqrt((double)s.hidden));
    return 0;
fail:
    return rc;
}

const cf_family cf_family_switch = {
    .name = "switch",
    .architectures = (const char *const[]){"SwitchTransformersForConditionalGeneration", NULL},
    .model_types = (const char *const[]){"switch_transformers", NULL},
    .build = switch_build,
};
