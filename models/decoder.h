/* The decoder that most families share: pre-norm layers of attention and a dense or MoE
 * feed-forward. A family fills in sizes, kinds and names; cf_decoder_build binds the tensors and
 * emits the plan:
 *
 *     EMBED
 *     per layer:  NORM ATTN [NORM] ADD  NORM->t  ROUTE(t) [DENSE(shared) [GATE] ADD] EXPERTS [NORM] ADD
 *             or  NORM ATTN [NORM] ADD  NORM     DENSE [NORM] ADD
 *     NORM HEAD
 *
 * With `beside` a dense feed-forward runs beside the experts of each MoE layer, and the two are summed
 * and scaled.
 *
 * Names are printf formats over the layer (%u), experts over layer and expert. A NULL name: there is
 * no such tensor. */
#ifndef CF_MODELS_DECODER_H
#define CF_MODELS_DECODER_H

#include "models/build.h"

typedef struct cf_decoder_names {
    const char *embed, *final_norm, *head;
    const char *attn_norm, *ffn_norm;           /* before the sub-layer */
    const char *attn_post_norm, *ffn_post_norm; /* of its output, before the addition */
    const char *q, *k, *v, *out;                /* without .weight or .bias */
    const char *qkv;                            /* fused: rows q, then k, then v */
    const char *q_norm, *k_norm, *sinks;
    const char *dense_gate, *dense_up, *dense_down;    /* of a dense layer */
    const char *shared_gate, *shared_up, *shared_down; /* of the shared expert */
    const char *shared_switch;                         /* its sigmoid gate */
    const char *router, *router_bias;                  /* router_bias: of the selection */
    const char *router_logit_bias;
    const char *gate, *up, *down;                      /* of an expert: layer, expert */
    const char *fused_gate_up, *fused_gate, *fused_up, *fused_down; /* of all experts of a layer */
    const char *fused_gate_up_bias, *fused_down_bias;
} cf_decoder_names;

/* How fused expert tensors lie. */
typedef enum {
    CF_FUSED_ROWS,       /* gate_up [E, 2 ffn, hidden]: gate then up; down [E, hidden, ffn] */
    CF_FUSED_TRANSPOSED, /* gate_up [E, hidden, 2 ffn]; down [E, ffn, hidden]; or in blocks, not so */
    CF_FUSED_FLAT        /* gate, up and transposed down, each [E * ffn, hidden] */
} cf_fused_form;

/* An index beside latent attention; top_k 0: none. */
typedef struct cf_index_sizes {
    uint32_t heads, head, top_k;
    cf_rope_layout layout;
} cf_index_sizes;

typedef struct cf_decoder cf_decoder;
struct cf_decoder {
    cf_decoder_names names;
    uint32_t hidden, layers, heads, kv_heads, head, rot; /* head: width of a head; rot: rotated part */
    uint32_t dense_ffn, ffn, shared_ffn;                  /* shared_ffn 0: no shared expert */
    uint32_t experts, top_k;
    double eps;
    cf_norm_kind norm;
    bool norm_bias, norm_unit_offset, tied; /* unit offset: norms scale by 1 + w */
    bool qkv_bias, out_bias, head_bias;
    cf_qk qk;
    double qk_eps; /* 0: eps */
    cf_rope_layout rope_layout;
    double theta_absent;       /* rope_theta when the config has none; 0: it must have one */
    const json_t *rope_config; /* where its keys are; NULL: in the config */
    double clip, attn_scale, attn_cap; /* attn_scale 0: 1 / sqrt(head) */
    double embed_scale, residual_scale, logits_scale, logits_cap; /* scales 0: 1 */
    cf_act_params act;
    cf_route_def router; /* score, groups, renormalise, scale; the rest is filled in */
    double router_cap;   /* of its logits; 0: none */
    bool router_f32;     /* its matrix is stored in float32 */
    bool router_bias_row; /* its bias is stored as [1, experts] */
    bool weight_on_input;
    bool beside;
    double beside_scale;
    cf_fused_form fused;
    bool interleaved; /* TRANSPOSED: gate and up every other row, biases too; else gate then up */
    /* Latent attention instead of grouped-query attention when rank_kv > 0. */
    uint32_t rank_q, rank_kv, nope, v;
    cf_index_sizes index;
    const json_t *index_types; /* per layer "full": an index of its own, or "shared"; NULL: all full */
    /* Per layer; NULL: all layers are MoE, attention is full and rotated everywhere. */
    bool (*is_moe)(const cf_decoder *d, uint32_t layer);
    void (*attn_layer)(const cf_decoder *d, uint32_t layer, cf_attn_def *attn);
    bool attn_gated; /* q's projection holds the gates of the output */
    /* Another kind of attention in some layers, src -> dst: returns 1 where it emitted that, 0 for
     * the usual one. It finds what it needs through `user`. */
    int (*mixer)(cf_build *b, const cf_decoder *d, uint32_t layer, cf_bufid src, cf_bufid dst,
                 cf_err *err);
    /* The residual is the normed stream, x = alpha * norm(x) + beta * sublayer(norm(x)), with these
     * factors of a layer's attention or feed-forward. NULL: x = x + sublayer(norm(x)). */
    void (*residual)(const cf_decoder *d, uint32_t layer, bool ffn, double *alpha, double *beta);
    void *user;
    uint32_t first_moe, moe_step; /* for is_moe functions */
    uint32_t aux[4];              /* for attn_layer functions, like tune_scale */
    double tune_scale;
};

/* Leaves out the tensors of "model.layers.N.", N >= layers: multi-token-prediction modules that some
 * checkpoints hold beyond the model. */
void cf_skip_layers_beyond(cf_build *b);

/* The usual keys: hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim,
 * vocab_size, rms_norm_eps, tie_word_embeddings, and cf_config_tokens. */
int cf_decoder_read(cf_build *b, cf_decoder *d, cf_err *err);
/* hidden_act (silu), and sizes of the experts under the family's own keys. */
int cf_decoder_read_experts(cf_build *b, cf_decoder *d, const char *ffn_key,
                            const char *experts_key, const char *top_k_key, cf_err *err);
/* All of that under Mixtral's keys and names. */
int cf_decoder_read_mixtral(cf_build *b, cf_decoder *d, cf_err *err);
/* The config's "routing" (routing.c): another router than the family's. cf_decoder_build reads it. */
int cf_decoder_read_routing(cf_build *b, cf_decoder *d, cf_err *err);
int cf_decoder_build(cf_build *b, cf_decoder *d, cf_err *err);

/* The names that most checkpoints share: embedding, norms, attention, head; the q and k norms and
 * dense layers of those that have them go by _qk_norms and _dense. */
extern const cf_decoder_names cf_decoder_common_names;
void cf_decoder_names_qk_norms(cf_decoder_names *n);
void cf_decoder_names_dense(cf_decoder_names *n);
/* mlp.<part>.{gate,up,down}_proj */
void cf_decoder_names_experts(cf_decoder_names *n);
void cf_decoder_names_shared(cf_decoder_names *n);
/* One shared expert behind a sigmoid. */
void cf_decoder_names_shared_switched(cf_decoder_names *n);

/* Latent attention of one sub-layer from its tensors `fmt` (over the layer and a name): appends the
 * step, src -> dst. */
typedef struct cf_latent {
    uint32_t hidden, heads, rank_q, rank_kv, nope, rope, v;
    double q_scale, kv_scale, eps, score_scale;
    uint32_t rope_def, kv_slot, layer;
    cf_bufid src, dst, q_lat, q, q_abs, kv, o_lat, o;
    cf_index_sizes index;
    bool indexed; /* this layer has an index of its own; index.top_k > 0 without one: the last's */
    uint32_t index_slot, index_rope;
    cf_bufid selected, index_q, index_k, index_w;
} cf_latent;
int cf_latent_bufs(cf_build *b, cf_latent *l, cf_err *err);
/* prefix: the printed beginning of its tensors' names, "model.layers.3.self_attn." */
int cf_latent_build(cf_build *b, const cf_latent *l, const char *prefix, cf_err *err);

#endif
