/* Catches: a family whose GGUF keys, names, permutations or transpositions are mapped otherwise
 * than files have them. For architectures of which there is no file here: the checkpoints of
 * tests/fixtures/models are rewritten as GGUF by a table of this test, which says what the
 * reference's converter does and shares nothing with models/gguf*.c, and then held against their
 * own oracles. Also: a layout of LongCat that no file has, and old names of single experts.
 *
 *     test_gguf_families [BACKEND] */
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "models/family.h"
#include "storage/safetensors.h"
#include "tests/check.h"
#include "tests/support/gguf_write.h"
#include "tests/support/oracle.h"
#include "tests/support/tmpfiles.h"

/* ---- what a converter does ---- */

typedef enum {
    COPY,
    EVEN,      /* of two blocks that are a layer, in the first */
    PERMUTE_Q, /* rows of each head: halves interleaved */
    PERMUTE_K,
    VECTOR, /* [1, n] as [n] */
    STACK,  /* the experts' matrices on each other */
    SINGLE, /* one expert each, by name */
    FIRST,  /* of [E, 2 n, h] the first n rows of each */
    SECOND,
    CUBE,       /* [E * n, h] as [E, n, h] */
    CUBE_T,     /* the same, each transposed */
    TURN,       /* [E, a, b] each transposed */
    TURN_FIRST, /* [E, a, 2 b] transposed, the first b rows of it */
    TURN_SECOND,
    ONE_MORE, /* 1 + w, in F32 */
    DECAY,    /* -exp(w), in F32 */
    FLOATS,   /* in F32 */
    DOUBLED,  /* 2 w, in F32 */
    HALF,     /* the scale that goes with it */
    SQUEEZE,  /* [n, 1, m] as [n, m], in F32 */
    QKV,      /* key head by key head q, k, v, z: all q, all k, all v */
    GATES,    /* all z */
    /* The same with value heads in another order: the first of each key head, then the second. */
    TILED_QKV,
    TILED_GATES,
    TILED_BETA, /* of key head by key head beta, decay: all beta */
    TILED_RATE, /* all decay */
    TILED_TAPS,
    TILED_DECAY,
    TILED_FLOATS,
    TILED_COLUMNS,
    GATE_UP,  /* the experts' gates and ups, which are named alike, in turn on each other */
    KEYS_B,   /* [heads * (nope + v), rank]: each head's first rows, transposed */
    VALUES_B  /* its last rows */
} action;

typedef struct name {
    const char *to, *from; /* %u: layer, and of SINGLE and STACK the expert */
    action how;
} name;

typedef struct key {
    const char *to;
    char type;        /* u: u32, f: f32, b: bool */
    const char *from; /* of the config; "=2": the number */
} key;

enum { SETS = 6 };

typedef struct family {
    const char *fixture, *arch;
    const key *keys[SETS];
    const name *names[SETS];
    int flags;
} family;

enum {
    PAIRED = 1,    /* two blocks are a layer */
    EVERYWHERE = 2, /* computed otherwise than the published form: on every device */
    PADDED = 4,     /* 128 experts: what the file has no key for follows from that number */
    NO_JITTER = 8,  /* the router's noise has no key: compared with the checkpoint at the default */
    BEYOND = 16,    /* has blocks of multi-token prediction */
    GROUPED = 32    /* value heads stay in their order, and a key says so */
};

#define L "model.layers.%u."
#define B "blk.%u."

static const key common_keys[] = {{"block_count", 'u', "num_hidden_layers"},
                                  {"context_length", 'u', "max_position_embeddings"},
                                  {"embedding_length", 'u', "hidden_size"},
                                  {"attention.head_count", 'u', "num_attention_heads"},
                                  {"attention.head_count_kv", 'u', "num_key_value_heads"},
                                  {"attention.key_length", 'u', "head_dim"},
                                  {"attention.value_length", 'u', "head_dim"},
                                  {"attention.layer_norm_rms_epsilon", 'f', "rms_norm_eps"},
                                  {"rope.freq_base", 'f', "rope_theta"},
                                  {"expert_used_count", 'u', "num_experts_per_tok"},
                                  {"vocab_size", 'u', "vocab_size"},
                                  {0}};
static const key local_keys[] = {{"expert_count", 'u', "num_local_experts"},
                                 {"feed_forward_length", 'u', "intermediate_size"},
                                 {0}};
static const key qwen2_keys[] = {
    {"expert_count", 'u', "num_experts"},
    {"expert_feed_forward_length", 'u', "moe_intermediate_size"},
    {"expert_shared_feed_forward_length", 'u', "shared_expert_intermediate_size"},
    {"feed_forward_length", 'u', "intermediate_size"},
    {0}};
static const key deepseek_keys[] = {{"expert_count", 'u', "n_routed_experts"},
                                    {"feed_forward_length", 'u', "intermediate_size"},
                                    {"expert_feed_forward_length", 'u', "moe_intermediate_size"},
                                    {"expert_shared_count", 'u', "n_shared_experts"},
                                    {"expert_weights_scale", 'f', "routed_scaling_factor"},
                                    {"leading_dense_block_count", 'u', "first_k_dense_replace"},
                                    {0}};
/* Without keys of their own for latent heads: the oldest files. */
static const key v2_keys[] = {{"attention.kv_lora_rank", 'u', "kv_lora_rank"},
                              {"rope.dimension_count", 'u', "qk_rope_head_dim"},
                              {"attention.key_length", 'u', "=20"},
                              {"attention.value_length", 'u', "=10"},
                              {"rope.scaling.type", 's', "yarn"},
                              {"rope.scaling.factor", 'f', "=40"},
                              {"rope.scaling.original_context_length", 'u', "=64"},
                              {"rope.scaling.yarn_log_multiplier", 'f', "=0.0707"},
                              {0}};
static const key glm4_keys[] = {{"expert_group_count", 'u', "n_group"},
                                {"expert_group_used_count", 'u', "topk_group"},
                                {"expert_gating_func", 'u', "=2"},
                                {"expert_weights_norm", 'b', "norm_topk_prob"},
                                {"rope.dimension_count", 'u', "=8"},
                                {"nextn_predict_layers", 'u', "num_nextn_predict_layers"},
                                {"block_count", 'u', "=4"},
                                {0}};
static const key granite_keys[] = {{"attention.scale", 'f', "attention_multiplier"},
                                   {"embedding_scale", 'f', "embedding_multiplier"},
                                   {"residual_scale", 'f', "residual_multiplier"},
                                   {"logit_scale", 'f', "logits_scaling"},
                                   {0}};
static const key ernie_keys[] = {{"expert_count", 'u', "moe_num_experts"},
                                 {"expert_used_count", 'u', "moe_k"},
                                 {"feed_forward_length", 'u', "intermediate_size"},
                                 {"expert_feed_forward_length", 'u', "moe_intermediate_size"},
                                 {"expert_shared_count", 'u', "moe_num_shared_experts"},
                                 {"leading_dense_block_count", 'u', "moe_layer_start_index"},
                                 {"interleave_moe_layer_step", 'u', "moe_layer_interval"},
                                 {0}};
static const key minicpm_keys[] = {{"expert_count", 'u', "num_experts"},
                                   {"feed_forward_length", 'u', "intermediate_size"},
                                   {"embedding_scale", 'f', "scale_emb"},
                                   {"residual_scale", 'f', "=2.88675134594812882"},
                                   {"logit_scale", 'f', "=2"},
                                   {0}};
static const key grok_keys[] = {{"expert_count", 'u', "num_experts"},
                                {"feed_forward_length", 'u', "intermediate_size"},
                                {"embedding_scale", 'f', "embedding_multiplier_scale"},
                                {"logit_scale", 'f', "output_multiplier_scale"},
                                {"rope.freq_base", 'f', "=10000"},
                                {"attention.output_scale", 'f', "attn_output_multiplier"},
                                {"attn_logit_softcapping", 'f', "max_attn_value"},
                                {"router_logit_softcapping", 'f', "=30"},
                                {0}};
static const key grok2_keys[] = {{"expert_count", 'u', "num_local_experts"},
                                 {"feed_forward_length", 'u', "intermediate_size"},
                                 {"expert_feed_forward_length", 'u', "moe_intermediate_size"},
                                 {"embedding_scale", 'f', "embedding_multiplier_scale"},
                                 {"logit_scale", 'f', "output_multiplier_scale"},
                                 {"attention.output_scale", 'f', "=0.25"},
                                 {"attn_logit_softcapping", 'f', "attn_logit_softcapping"},
                                 {"router_logit_softcapping", 'f', "router_logit_softcapping"},
                                 {"final_logit_softcapping", 'f', "final_logit_softcapping"},
                                 {"attention.temperature_length", 'u', "attn_temperature_len"},
                                 /* As the converter writes what the release calls "original". */
                                 {"rope.scaling.type", 's', "yarn"},
                                 {"rope.scaling.factor", 'f', "scaling_factor"},
                                 {"rope.scaling.original_context_length", 'u', "=8192"},
                                 {"rope.scaling.yarn_ext_factor", 'f', "extrapolation_factor"},
                                 {"rope.scaling.yarn_attn_factor", 'f', "attn_factor"},
                                 {"rope.scaling.yarn_beta_fast", 'f', "beta_fast"},
                                 {"rope.scaling.yarn_beta_slow", 'f', "beta_slow"},
                                 {0}};
static const key dbrx_keys[] = {{"block_count", 'u', "n_layers"},
                                {"context_length", 'u', "max_seq_len"},
                                {"embedding_length", 'u', "d_model"},
                                {"attention.head_count", 'u', "n_heads"},
                                {"attention.head_count_kv", 'u', "=2"},
                                {"attention.layer_norm_epsilon", 'f', "=1e-5"},
                                {"attention.clamp_kqv", 'f', "=2"},
                                {"rope.freq_base", 'f', "=500000"},
                                {"feed_forward_length", 'u', "=28"},
                                {"expert_count", 'u', "=7"},
                                {"expert_used_count", 'u', "=3"},
                                {"vocab_size", 'u', "vocab_size"},
                                {0}};
static const key llama4_keys[] = {{"expert_count", 'u', "num_local_experts"},
                                  {"feed_forward_length", 'u', "intermediate_size_mlp"},
                                  {"expert_feed_forward_length", 'u', "intermediate_size"},
                                  {"interleave_moe_layer_step", 'u', "interleave_moe_layer_step"},
                                  {"attention.sliding_window", 'u', "attention_chunk_size"},
                                  {"attention.temperature_length", 'u', "floor_scale"},
                                  {"attention.temperature_scale", 'f', "attn_scale"},
                                  {"rope.dimension_count", 'u', "head_dim"},
                                  {"expert_gating_func", 'u', "=2"},
                                  {0}};
static const key minimax_keys[] = {
    {"rope.dimension_count", 'u', "rotary_dim"}, {"expert_gating_func", 'u', "=2"}, {0}};
static const key dsa_keys[] = {{"attention.key_length", 'u', "=32"},
                               {"attention.value_length", 'u', "=24"},
                               {"attention.key_length_mla", 'u', "=20"},
                               {"attention.value_length_mla", 'u', "v_head_dim"},
                               {"attention.q_lora_rank", 'u', "q_lora_rank"},
                               {"attention.kv_lora_rank", 'u', "kv_lora_rank"},
                               {"attention.indexer.head_count", 'u', "index_n_heads"},
                               {"attention.indexer.key_length", 'u', "index_head_dim"},
                               {"attention.indexer.top_k", 'u', "index_topk"},
                               {"rope.dimension_count", 'u', "qk_rope_head_dim"},
                               {"expert_gating_func", 'u', "=2"},
                               {"expert_weights_norm", 'b', "norm_topk_prob"},
                               {"expert_group_count", 'u', "n_group"},
                               {"expert_group_used_count", 'u', "topk_group"},
                               {0}};
static const key yarn_keys[] = {{"rope.scaling.type", 's', "yarn"},
                                {"rope.scaling.factor", 'f', "=40"},
                                {"rope.scaling.original_context_length", 'u', "=64"},
                                {"rope.scaling.yarn_log_multiplier", 'f', "=0.1"},
                                {0}};
static const key phimoe_keys[] = {
    {"attention.layer_norm_epsilon", 'f', "rms_norm_eps"},
    {"rope.scaling.original_context_length", 'u', "original_max_position_embeddings"},
    {"rope.scaling.attn_factor", 'f', "=1.243163121016122"},
    {"rope.dimension_count", 'u', "=12"},
    {0}};
static const key sparse_keys[] = {{"block_count", 'u', "=7"},
                                  {"mtp.num_layers", 'u', "=1"},
                                  {"attention.indexer.head_count", 'u', "=2"},
                                  {"attention.indexer.key_length", 'u', "=8"},
                                  {"attention.indexer.top_k", 'u', "=64"},
                                  {0}};
static const key linear_keys[] = {{"rope.scaling.factor", 'f', "=4"}, {0}};
static const key padded_keys[] = {{"expert_count", 'u', "=128"}, {0}};
static const key next_keys[] = {{"ssm.conv_kernel", 'u', "linear_conv_kernel_dim"},
                                {"ssm.state_size", 'u', "linear_key_head_dim"},
                                {"ssm.group_count", 'u', "linear_num_key_heads"},
                                {"ssm.time_step_rank", 'u', "linear_num_value_heads"},
                                {"ssm.inner_size", 'u', "=40"},
                                {"full_attention_interval", 'u', "=4"}, /* whatever layers have */
                                {"rope.dimension_count", 'u', "=4"},
                                {0}};
static const key beyond_keys[] = {
    {"block_count", 'u', "=4"}, {"nextn_predict_layers", 'u', "=1"}, {0}};
static const key grouped_keys[] = {{"ssm.v_head_reordered", 'b', "=0"}, {0}};
static const key sections_keys[] = {{"n_deepstack_layers", 'u', "=3"}, {0}};
static const key longcat_keys[] = {{"block_count", 'u', "=6"},
                                   {"context_length", 'u', "max_position_embeddings"},
                                   {"embedding_length", 'u', "hidden_size"},
                                   {"attention.head_count", 'u', "num_attention_heads"},
                                   {"attention.head_count_kv", 'u', "=1"},
                                   {"attention.layer_norm_rms_epsilon", 'f', "rms_norm_eps"},
                                   {"rope.freq_base", 'f', "rope_theta"},
                                   {"vocab_size", 'u', "vocab_size"},
                                   {"feed_forward_length", 'u', "ffn_hidden_size"},
                                   {"expert_feed_forward_length", 'u', "expert_ffn_hidden_size"},
                                   {"attention.q_lora_rank", 'u', "q_lora_rank"},
                                   {"attention.kv_lora_rank", 'u', "kv_lora_rank"},
                                   {"attention.key_length_mla", 'u', "=24"},
                                   {"attention.value_length_mla", 'u', "v_head_dim"},
                                   {"rope.dimension_count", 'u', "qk_rope_head_dim"},
                                   {"expert_count", 'u', "n_routed_experts"},
                                   {"expert_used_count", 'u', "moe_topk"},
                                   {"expert_zero_count", 'u', "zero_expert_num"},
                                   {"expert_weights_scale", 'f', "routed_scaling_factor"},
                                   {"ngram.neighbor_count", 'u', "emb_neighbor_num"},
                                   {"ngram.split_count", 'u', "emb_split_num"},
                                   {"rope.scaling.type", 's', "yarn"},
                                   {"rope.scaling.factor", 'f', "=10"},
                                   {"rope.scaling.original_context_length", 'u', "=64"},
                                   {"rope.scaling.yarn_log_multiplier", 'f', "=0.1"},
                                   {"tokenizer.ggml.eos_token_id", 'u', "eos_token_id"},
                                   {0}};

static const name common_names[] = {{"token_embd.weight", "model.embed_tokens.weight", COPY},
                                    {"output.weight", "lm_head.weight", COPY},
                                    {"output_norm.weight", "model.norm.weight", COPY},
                                    {B "attn_norm.weight", L "input_layernorm.weight", COPY},
                                    {B "attn_v.weight", L "self_attn.v_proj.weight", COPY},
                                    {B "attn_v.bias", L "self_attn.v_proj.bias", COPY},
                                    {B "attn_output.weight", L "self_attn.o_proj.weight", COPY},
                                    {B "attn_q_norm.weight", L "self_attn.q_norm.weight", COPY},
                                    {B "attn_k_norm.weight", L "self_attn.k_norm.weight", COPY},
                                    {0}};
static const name ffn_norm[] = {{B "ffn_norm.weight", L "post_attention_layernorm.weight", COPY},
                                {0}};
static const name plain_qk[] = {{B "attn_q.weight", L "self_attn.q_proj.weight", COPY},
                                {B "attn_k.weight", L "self_attn.k_proj.weight", COPY},
                                {B "attn_q.bias", L "self_attn.q_proj.bias", COPY},
                                {B "attn_k.bias", L "self_attn.k_proj.bias", COPY},
                                {0}};
static const name permuted_qk[] = {{B "attn_q.weight", L "self_attn.q_proj.weight", PERMUTE_Q},
                                   {B "attn_k.weight", L "self_attn.k_proj.weight", PERMUTE_K},
                                   {0}};
static const name mlp_names[] = {
    {B "ffn_gate.weight", L "mlp.gate_proj.weight", COPY},
    {B "ffn_up.weight", L "mlp.up_proj.weight", COPY},
    {B "ffn_down.weight", L "mlp.down_proj.weight", COPY},
    {B "ffn_gate_inp.weight", L "mlp.gate.weight", COPY},
    {B "exp_probs_b.bias", L "mlp.gate.e_score_correction_bias", COPY},
    {B "ffn_gate_exps.weight", L "mlp.experts.%u.gate_proj.weight", STACK},
    {B "ffn_up_exps.weight", L "mlp.experts.%u.up_proj.weight", STACK},
    {B "ffn_down_exps.weight", L "mlp.experts.%u.down_proj.weight", STACK},
    {B "ffn_gate_shexp.weight", L "mlp.shared_experts.gate_proj.weight", COPY},
    {B "ffn_up_shexp.weight", L "mlp.shared_experts.up_proj.weight", COPY},
    {B "ffn_down_shexp.weight", L "mlp.shared_experts.down_proj.weight", COPY},
    {0}};
static const name qwen2_names[] = {
    {B "ffn_gate_inp_shexp.weight", L "mlp.shared_expert_gate.weight", COPY},
    {B "ffn_gate_shexp.weight", L "mlp.shared_expert.gate_proj.weight", COPY},
    {B "ffn_up_shexp.weight", L "mlp.shared_expert.up_proj.weight", COPY},
    {B "ffn_down_shexp.weight", L "mlp.shared_expert.down_proj.weight", COPY},
    {0}};
static const name dsa_names[] = {
    {B "attn_q_a.weight", L "self_attn.q_a_proj.weight", COPY},
    {B "attn_q_a_norm.weight", L "self_attn.q_a_layernorm.weight", FLOATS},
    {B "attn_q_b.weight", L "self_attn.q_b_proj.weight", COPY},
    {B "attn_kv_a_mqa.weight", L "self_attn.kv_a_proj_with_mqa.weight", COPY},
    {B "attn_kv_a_norm.weight", L "self_attn.kv_a_layernorm.weight", FLOATS},
    {B "attn_k_b.weight", L "self_attn.kv_b_proj.weight", KEYS_B},
    {B "attn_v_b.weight", L "self_attn.kv_b_proj.weight", VALUES_B},
    {B "indexer.k_norm.weight", L "self_attn.indexer.k_norm.weight", FLOATS},
    {B "indexer.k_norm.bias", L "self_attn.indexer.k_norm.bias", FLOATS},
    {B "indexer.proj.weight", L "self_attn.indexer.weights_proj.weight", COPY},
    {B "indexer.attn_k.weight", L "self_attn.indexer.wk.weight", COPY},
    {B "indexer.attn_q_b.weight", L "self_attn.indexer.wq_b.weight", COPY},
    {0}};
static const name next_names[] = {
    {"token_embd.weight", "model.embed_tokens.weight", COPY},
    {"output.weight", "lm_head.weight", COPY},
    {"output_norm.weight", "model.norm.weight", ONE_MORE},
    {B "attn_norm.weight", L "input_layernorm.weight", ONE_MORE},
    {B "post_attention_norm.weight", L "post_attention_layernorm.weight", ONE_MORE},
    {B "attn_q_norm.weight", L "self_attn.q_norm.weight", ONE_MORE},
    {B "attn_k_norm.weight", L "self_attn.k_norm.weight", ONE_MORE},
    {B "attn_v.weight", L "self_attn.v_proj.weight", COPY},
    {B "attn_output.weight", L "self_attn.o_proj.weight", COPY},
    {0}};
static const name next_delta[] = {
    {B "ssm_ba.weight", L "linear_attn.in_proj_ba.weight", COPY},
    {B "ssm_conv1d.weight", L "linear_attn.conv1d.weight", SQUEEZE},
    {B "ssm_a", L "linear_attn.A_log", DECAY},
    {B "ssm_dt.bias", L "linear_attn.dt_bias", FLOATS},
    {B "ssm_norm.weight", L "linear_attn.norm.weight", FLOATS},
    {B "ssm_out.weight", L "linear_attn.out_proj.weight", COPY},
    {0}};
static const name next_apart[] = {
    {B "attn_qkv.weight", L "linear_attn.in_proj_qkvz.weight", QKV},
    {B "attn_gate.weight", L "linear_attn.in_proj_qkvz.weight", GATES},
    {0}};
static const name next_older[] = {{B "ssm_in.weight", L "linear_attn.in_proj_qkvz.weight", COPY},
                                  {0}};
static const name tiled_names[] = {
    {B "attn_qkv.weight", L "linear_attn.in_proj_qkvz.weight", TILED_QKV},
    {B "attn_gate.weight", L "linear_attn.in_proj_qkvz.weight", TILED_GATES},
    {B "ssm_beta.weight", L "linear_attn.in_proj_ba.weight", TILED_BETA},
    {B "ssm_alpha.weight", L "linear_attn.in_proj_ba.weight", TILED_RATE},
    {B "ssm_conv1d.weight", L "linear_attn.conv1d.weight", TILED_TAPS},
    {B "ssm_a", L "linear_attn.A_log", TILED_DECAY},
    {B "ssm_dt.bias", L "linear_attn.dt_bias", TILED_FLOATS},
    {B "ssm_norm.weight", L "linear_attn.norm.weight", FLOATS},
    {B "ssm_out.weight", L "linear_attn.out_proj.weight", TILED_COLUMNS},
    {B "ffn_gate_inp.weight", L "mlp.gate.weight", FLOATS},
    {B "ffn_gate_up_exps.weight", L "mlp.experts.%u.gate_proj.weight", GATE_UP},
    {B "ffn_down_exps.weight", L "mlp.experts.%u.down_proj.weight", STACK},
    {"blk.3.nextn.eh_proj.weight", "model.layers.2.self_attn.o_proj.weight", COPY},
    {"blk.3.nextn.enorm.weight", "model.norm.weight", ONE_MORE},
    {"blk.3.attn_norm.weight", "model.norm.weight", ONE_MORE},
    {0}};
static const name v2_names[] = {
    {B "attn_q.weight", L "self_attn.q_proj.weight", COPY},
    {B "attn_kv_a_mqa.weight", L "self_attn.kv_a_proj_with_mqa.weight", COPY},
    {B "attn_kv_a_norm.weight", L "self_attn.kv_a_layernorm.weight", COPY},
    {B "attn_kv_b.weight", L "self_attn.kv_b_proj.weight", COPY},
    {0}};
static const name glm4_names[] = {
    {B "post_attention_norm.weight", L "post_attention_layernorm.weight", COPY},
    {B "nextn.eh_proj.weight", L "eh_proj.weight", COPY},
    {B "nextn.enorm.weight", L "enorm.weight", COPY},
    {0}};
static const name granite_names[] = {
    {B "ffn_gate_inp.weight", L "block_sparse_moe.router.layer.weight", COPY},
    {B "ffn_gate_exps.weight", L "block_sparse_moe.input_linear.weight", FIRST},
    {B "ffn_up_exps.weight", L "block_sparse_moe.input_linear.weight", SECOND},
    {B "ffn_down_exps.weight", L "block_sparse_moe.output_linear.weight", COPY},
    {0}};
static const name ernie_names[] = {
    {B "exp_probs_b.bias", L "mlp.moe_statics.e_score_correction_bias", VECTOR}, {0}};
static const name minicpm_names[] = {{B "ffn_gate_inp.weight", L "mlp.gate.weight", COPY},
                                     {B "ffn_gate.%u.weight", L "mlp.experts.%u.w1.weight", SINGLE},
                                     {B "ffn_up.%u.weight", L "mlp.experts.%u.w3.weight", SINGLE},
                                     {B "ffn_down.%u.weight", L "mlp.experts.%u.w2.weight", SINGLE},
                                     {0}};
static const name grok_names[] = {
    {"token_embd.weight", "model.embed_tokens.weight", COPY},
    {"output_norm.weight", "model.norm.scale", COPY},
    {B "attn_norm.weight", L "pre_attn_norm.scale", COPY},
    {B "attn_output_norm.weight", L "post_attn_norm.scale", COPY},
    {B "ffn_norm.weight", L "pre_moe_norm.scale", COPY},
    {B "layer_output_norm.weight", L "post_moe_norm.scale", COPY},
    {B "attn_q.weight", L "attn.q_proj.weight", COPY},
    {B "attn_k.weight", L "attn.k_proj.weight", COPY},
    {B "attn_v.weight", L "attn.v_proj.weight", COPY},
    {B "attn_output.weight", L "attn.o_proj.weight", COPY},
    {B "ffn_gate_inp.weight", L "moe_block.gate.weight", COPY},
    {B "ffn_gate_exps.weight", L "moe_block.experts.%u.linear.weight", STACK},
    {B "ffn_up_exps.weight", L "moe_block.experts.%u.linear_v.weight", STACK},
    {B "ffn_down_exps.weight", L "moe_block.experts.%u.linear_1.weight", STACK},
    {0}};
static const name grok2_names[] = {
    {"token_embd.weight", "model.embed_tokens.weight", COPY},
    {"output.weight", "lm_head.weight", COPY},
    {"output_norm.weight", "model.norm.weight", COPY},
    {B "attn_norm.weight", L "pre_attn_norm.weight", COPY},
    {B "attn_output_norm.weight", L "post_attn_norm.weight", COPY},
    {B "ffn_norm.weight", L "pre_moe_norm.weight", COPY},
    {B "post_ffw_norm.weight", L "post_moe_norm.weight", COPY},
    {B "attn_v.weight", L "self_attn.v_proj.weight", COPY},
    {B "attn_output.weight", L "self_attn.o_proj.weight", COPY},
    {B "ffn_gate.weight", L "mlp.gate_proj.weight", COPY},
    {B "ffn_up.weight", L "mlp.up_proj.weight", COPY},
    {B "ffn_down.weight", L "mlp.down_proj.weight", COPY},
    {0}};
#define D "transformer.blocks.%u."
static const name dbrx_names[] = {
    {"token_embd.weight", "transformer.wte.weight", COPY},
    {"output.weight", "lm_head.weight", COPY},
    {"output_norm.weight", "transformer.norm_f.weight", COPY},
    {B "attn_norm.weight", D "norm_attn_norm.norm_1.weight", COPY},
    {B "attn_output_norm.weight", D "norm_attn_norm.norm_2.weight", COPY},
    {B "attn_qkv.weight", D "norm_attn_norm.attn.Wqkv.weight", DOUBLED},
    {B "attn_qkv.scale", D "norm_attn_norm.attn.Wqkv.weight", HALF},
    {B "attn_output.weight", D "norm_attn_norm.attn.out_proj.weight", COPY},
    {B "ffn_gate_inp.weight", D "ffn.router.layer.weight", COPY},
    {B "ffn_gate_exps.weight", D "ffn.experts.mlp.w1", CUBE},
    {B "ffn_up_exps.weight", D "ffn.experts.mlp.v1", CUBE},
    {B "ffn_down_exps.weight", D "ffn.experts.mlp.w2", CUBE_T},
    {0}};
#define T "language_model.model.layers.%u."
static const name llama4_names[] = {
    {"token_embd.weight", "language_model.model.embed_tokens.weight", COPY},
    {"output.weight", "language_model.lm_head.weight", COPY},
    {"output_norm.weight", "language_model.model.norm.weight", COPY},
    {B "attn_norm.weight", T "input_layernorm.weight", COPY},
    {B "ffn_norm.weight", T "post_attention_layernorm.weight", COPY},
    {B "attn_q.weight", T "self_attn.q_proj.weight", COPY},
    {B "attn_k.weight", T "self_attn.k_proj.weight", COPY},
    {B "attn_v.weight", T "self_attn.v_proj.weight", COPY},
    {B "attn_output.weight", T "self_attn.o_proj.weight", COPY},
    {B "ffn_gate.weight", T "feed_forward.gate_proj.weight", COPY},
    {B "ffn_up.weight", T "feed_forward.up_proj.weight", COPY},
    {B "ffn_down.weight", T "feed_forward.down_proj.weight", COPY},
    {B "ffn_gate_shexp.weight", T "feed_forward.shared_expert.gate_proj.weight", COPY},
    {B "ffn_up_shexp.weight", T "feed_forward.shared_expert.up_proj.weight", COPY},
    {B "ffn_down_shexp.weight", T "feed_forward.shared_expert.down_proj.weight", COPY},
    {B "ffn_gate_inp.weight", T "feed_forward.router.weight", COPY},
    {B "ffn_gate_exps.weight", T "feed_forward.experts.gate_up_proj", TURN_FIRST},
    {B "ffn_up_exps.weight", T "feed_forward.experts.gate_up_proj", TURN_SECOND},
    {B "ffn_down_exps.weight", T "feed_forward.experts.down_proj", TURN},
    {0}};
static const name minimax_names[] = {
    {B "ffn_gate_inp.weight", L "block_sparse_moe.gate.weight", COPY},
    {B "exp_probs_b.bias", L "block_sparse_moe.e_score_correction_bias", COPY},
    {B "ffn_gate_exps.weight", L "block_sparse_moe.experts.%u.w1.weight", STACK},
    {B "ffn_up_exps.weight", L "block_sparse_moe.experts.%u.w3.weight", STACK},
    {B "ffn_down_exps.weight", L "block_sparse_moe.experts.%u.w2.weight", STACK},
    {0}};

static const name phimoe_names[] = {
    {"output.bias", "lm_head.bias", FLOATS},
    {"output_norm.bias", "model.norm.bias", FLOATS},
    {B "attn_norm.bias", L "input_layernorm.bias", FLOATS},
    {B "ffn_norm.bias", L "post_attention_layernorm.bias", FLOATS},
    {B "attn_output.bias", L "self_attn.o_proj.bias", FLOATS},
    {0}};

#define S L "self_attn.%u."
static const name longcat_names[] = {
    {"token_embd.weight", "model.embed_tokens.weight", COPY},
    {"output.weight", "lm_head.weight", COPY},
    {"output_norm.weight", "model.norm.weight", COPY},
    {"ngram_embd.%u.weight", "model.ngram_embeddings.embedders.%u.weight", COPY},
    {"ngram_proj.%u.weight", "model.ngram_embeddings.post_projs.%u.weight", COPY},
    {B "attn_norm.weight", L "input_layernorm.%u.weight", COPY},
    {B "ffn_norm.weight", L "post_attention_layernorm.%u.weight", COPY},
    {B "attn_q_a.weight", S "q_a_proj.weight", COPY},
    {B "attn_q_a_norm.weight", S "q_a_layernorm.weight", COPY},
    {B "attn_q_b.weight", S "q_b_proj.weight", COPY},
    {B "attn_kv_a_mqa.weight", S "kv_a_proj_with_mqa.weight", COPY},
    {B "attn_kv_a_norm.weight", S "kv_a_layernorm.weight", COPY},
    {B "attn_kv_b.weight", S "kv_b_proj.weight", COPY},
    {B "attn_output.weight", S "o_proj.weight", COPY},
    {B "ffn_gate.weight", L "mlps.%u.gate_proj.weight", COPY},
    {B "ffn_up.weight", L "mlps.%u.up_proj.weight", COPY},
    {B "ffn_down.weight", L "mlps.%u.down_proj.weight", COPY},
    {B "ffn_gate_inp.weight", L "mlp.router.classifier.weight", EVEN},
    {B "exp_probs_b.bias", L "mlp.router.e_score_correction_bias", EVEN},
    {B "ffn_gate_exps.weight", L "mlp.experts.%u.gate_proj.weight", STACK},
    {B "ffn_up_exps.weight", L "mlp.experts.%u.up_proj.weight", STACK},
    {B "ffn_down_exps.weight", L "mlp.experts.%u.down_proj.weight", STACK},
    {0}};

/* What is there in place of an index only has to be left out. */
static const name sparse_names[] = {
    {B "indexer.k_norm.weight", L "mlp.router.e_score_correction_bias", EVEN},
    {B "indexer.attn_k.weight", L "mlp.router.classifier.weight", EVEN},
    {0}};

static const family families[] = {
    {"qwen2_moe",
     "qwen2moe",
     {common_keys, qwen2_keys},
     {common_names, ffn_norm, plain_qk, qwen2_names, mlp_names},
     0},
    {"qwen3_moe",
     "qwen3vlmoe",
     {sections_keys, common_keys, qwen2_keys},
     {common_names, ffn_norm, plain_qk, mlp_names},
     0},
    {"qwen3_next",
     "qwen3next",
     {common_keys, qwen2_keys, next_keys},
     {next_names, next_delta, next_apart, plain_qk, qwen2_names, mlp_names},
     EVERYWHERE},
    {"qwen3_next",
     "qwen3next",
     {common_keys, qwen2_keys, next_keys},
     {next_names, next_delta, next_older, plain_qk, qwen2_names, mlp_names},
     0},
    {"qwen3_next",
     "qwen35moe",
     {beyond_keys, common_keys, qwen2_keys, next_keys},
     {next_names, plain_qk, qwen2_names, tiled_names},
     EVERYWHERE | BEYOND},
    {"qwen3_next",
     "qwen35moe",
     {grouped_keys, beyond_keys, common_keys, qwen2_keys, next_keys},
     {next_names, plain_qk, qwen2_names, tiled_names},
     BEYOND | GROUPED},
    {"deepseek_v1",
     "deepseek",
     {common_keys, deepseek_keys},
     {common_names, ffn_norm, permuted_qk, mlp_names},
     0},
    {"deepseek_v2_lite",
     "deepseek2",
     {v2_keys, common_keys, deepseek_keys},
     {common_names, ffn_norm, v2_names, mlp_names},
     0},
    {"deepseek_v32",
     "deepseek32",
     {dsa_keys, yarn_keys, common_keys, deepseek_keys},
     {common_names, ffn_norm, dsa_names, mlp_names},
     0},
    /* Layers without an index of their own share the one before. */
    {"glm_moe_dsa",
     "glm-dsa",
     {dsa_keys, common_keys, deepseek_keys},
     {common_names, ffn_norm, dsa_names, mlp_names},
     0},
    {"glm4_moe",
     "glm4moe",
     {glm4_keys, common_keys, deepseek_keys},
     {common_names, plain_qk, glm4_names, mlp_names},
     BEYOND},
    {"granitemoe",
     "granitemoe",
     {common_keys, local_keys, granite_keys},
     {common_names, ffn_norm, permuted_qk, granite_names},
     0},
    {"ernie4_5_moe",
     "ernie4_5-moe",
     {ernie_keys, common_keys},
     {common_names, ffn_norm, plain_qk, ernie_names, mlp_names},
     0},
    {"minicpm_moe",
     "minicpm",
     {common_keys, minicpm_keys},
     {common_names, ffn_norm, permuted_qk, minicpm_names},
     0},
    {"grok1", "grok", {grok_keys, common_keys}, {grok_names}, 0},
    {"grok2",
     "grok",
     {grok2_keys, common_keys},
     {grok2_names, plain_qk, minimax_names},
     0},
    {"dbrx", "dbrx", {dbrx_keys}, {dbrx_names}, 0},
    {"llama4_scout", "llama4", {common_keys, llama4_keys}, {llama4_names}, 0},
    {"llama4_maverick", "llama4", {padded_keys, common_keys, llama4_keys}, {llama4_names}, PADDED},
    {"phimoe",
     "phimoe",
     {phimoe_keys, common_keys, local_keys},
     {common_names, ffn_norm, plain_qk, minimax_names, phimoe_names},
     NO_JITTER},
    {"minimax_m2",
     "minimax-m2",
     {common_keys, local_keys, minimax_keys},
     {common_names, ffn_norm, plain_qk, minimax_names},
     0},
    {"longcat_ngram", "longcat-flash", {longcat_keys}, {longcat_names}, PAIRED},
    {"longcat_ngram",
     "longcat-flash-sparse",
     {sparse_keys, longcat_keys},
     {longcat_names, sparse_names},
     PAIRED},
};

typedef gguf_bytes bytes;

typedef struct writer {
    gguf_out out;
    const cf_catalogue *cat;
    const json_t *config;
    uint32_t heads, kv_heads, experts;
    bool paired, padded, grouped;
} writer;

static void tensor_put(writer *w, const char *to, cf_format f, uint32_t n_dims,
                       const uint64_t *shape, const bytes *data)
{
    gguf_put_tensor(&w->out, to, f, n_dims, shape, data->at, data->n);
}

/* ---- converting ---- */

static uint8_t *tensor_read(const writer *w, const cf_tensor *t)
{
    uint8_t *data = malloc(t->extent.bytes + 1);
    int fd = open(cf_catalogue_path(w->cat, t->extent.file), O_RDONLY);
    if (!data || fd < 0 ||
        pread(fd, data, t->extent.bytes, (off_t)t->extent.off) != (ssize_t)t->extent.bytes)
        exit(1);
    close(fd);
    return data;
}

/* [a, b] at `from`, rows of `stride` elements: columns [first, first + n) as rows. */
static void turn(bytes *out, const uint8_t *from, uint64_t a, uint64_t stride, uint64_t first,
                 uint64_t n, size_t size)
{
    for (uint64_t c = first; c < first + n; c++)
        for (uint64_t r = 0; r < a; r++)
            put(out, from + (r * stride + c) * size, size);
}

static void permute(bytes *out, const uint8_t *from, uint64_t rows, size_t row, uint32_t heads)
{
    uint64_t d = rows / heads;
    for (uint64_t r = 0; r < rows; r++) {
        uint64_t h = r / d, i = r % d;
        put(out, from + (h * d + i / 2 + i % 2 * (d / 2)) * row, row);
    }
}

static uint32_t number_of(const json_t *config, const char *a, const char *b)
{
    const json_t *v = json_object_get(config, a);
    return (uint32_t)json_integer_value(v ? v : json_object_get(config, b));
}

/* Values in F32, and what `how` makes of them. */
static void floats(bytes *out, const uint8_t *data, const cf_tensor *t, action how)
{
    size_t size = cf_format_value_bytes(t->format);
    for (size_t i = 0; i < t->extent.bytes / size; i++) {
        uint8_t word[4] = {0};
        float v;
        memcpy(word + 4 - size, data + i * size, size);
        memcpy(&v, word, 4);
        v = how == ONE_MORE ? 1 + v : how == DECAY ? -expf(v) : how == DOUBLED ? 2 * v : v;
        put(out, &v, 4);
    }
}

/* Rows of what lies key head by key head as q, k, v, z; returns how many. */
static uint64_t regroup(bytes *out, const uint8_t *data, const writer *w, size_t row, action how)
{
    uint32_t heads = number_of(w->config, "linear_num_key_heads", "");
    uint32_t per = number_of(w->config, "linear_num_value_heads", "") / heads;
    uint32_t d_k = number_of(w->config, "linear_key_head_dim", "");
    uint32_t v = per * number_of(w->config, "linear_value_head_dim", "");
    const uint32_t first[4] = {0, d_k, 2 * d_k, 2 * d_k + v}, n[4] = {d_k, d_k, v, v};
    uint64_t rows = 0;
    for (int part = how == GATES ? 3 : 0; part < (how == GATES ? 4 : 3); part++)
        for (uint32_t h = 0; h < heads; h++, rows += n[part])
            put(out, data + (h * (2 * d_k + 2 * v) + first[part]) * row, n[part] * row);
    return rows;
}

/* Value heads of `each` bytes, key head by key head: the first of all key heads, then the next. */
static void tile(const writer *w, uint8_t *heads, size_t each)
{
    uint32_t keys = number_of(w->config, "linear_num_key_heads", "");
    uint32_t per = number_of(w->config, "linear_num_value_heads", "") / keys;
    if (w->grouped)
        return;
    uint8_t *copy = malloc(keys * per * each);
    memcpy(copy, heads, keys * per * each);
    for (uint32_t i = 0; i < keys * per; i++)
        memcpy(heads + i * each, copy + (i % keys * per + i / keys) * each, each);
    free(copy);
}

/* Parts of the delta rule's layers, with their value heads so. */
static void tiled(bytes *out, const uint8_t *data, const writer *w, const cf_tensor *t,
                  uint64_t *shape, action how)
{
    uint32_t keys = number_of(w->config, "linear_num_key_heads", "");
    uint32_t values = number_of(w->config, "linear_num_value_heads", "");
    uint32_t d_k = number_of(w->config, "linear_key_head_dim", "");
    uint32_t d_v = number_of(w->config, "linear_value_head_dim", "");
    size_t row = t->extent.bytes / t->shape[0], at = 0, head = d_v * row;
    if (how == TILED_QKV || how == TILED_GATES) {
        shape[0] = regroup(out, data, w, row, how == TILED_QKV ? QKV : GATES);
        at = how == TILED_QKV ? 2 * keys * d_k * row : 0;
    } else if (how == TILED_BETA || how == TILED_RATE) {
        uint32_t per = values / keys;
        for (uint32_t k = 0; k < keys; k++)
            put(out, data + (2 * k + (how == TILED_RATE)) * per * row, per * row);
        shape[0] = values;
        head = row;
    } else if (how == TILED_TAPS) {
        floats(out, data, t, SQUEEZE);
        row = out->n / t->shape[0];
        at = 2 * keys * d_k * row;
        head = d_v * row;
    } else if (how == TILED_COLUMNS) {
        put(out, data, t->extent.bytes);
        for (uint64_t r = 0; r < t->shape[0]; r++)
            tile(w, out->at + r * row, row / values);
        return;
    } else {
        floats(out, data, t, how == TILED_DECAY ? DECAY : FLOATS);
        head = sizeof(float);
    }
    tile(w, out->at + at, head);
}

/* Each head's rows of kv_b that make keys, turned, or those that make values. */
static void kv_b_split(bytes *out, const uint8_t *data, const writer *w, uint64_t *shape,
                       size_t size, action how)
{
    uint64_t nope = number_of(w->config, "qk_nope_head_dim", ""), rank = shape[1];
    uint64_t v = number_of(w->config, "v_head_dim", "");
    for (uint64_t h = 0; h < w->heads; h++) {
        const uint8_t *head = data + h * (nope + v) * rank * size;
        if (how == KEYS_B)
            turn(out, head, nope, rank, 0, rank, size);
        else
            put(out, head + nope * rank * size, v * rank * size);
    }
    shape[0] = w->heads;
    shape[1] = how == KEYS_B ? rank : v;
    shape[2] = how == KEYS_B ? nope : rank;
}

/* As many experts as 128: those beyond are like the first, which comes first where they tie. */
static void experts_pad(bytes *out, uint64_t *shape)
{
    size_t each = out->n / shape[0];
    uint8_t *first = malloc(each);
    memcpy(first, out->at, each);
    for (; shape[0] < 128; shape[0]++)
        put(out, first, each);
    free(first);
}

/* What `how` makes of a tensor; the shape is changed along. */
static void convert(const writer *w, const cf_tensor *t, action how, bytes *out, uint64_t *shape,
                    uint32_t *n_dims)
{
    uint8_t *data = tensor_read(w, t);
    size_t size = cf_format_value_bytes(t->format);
    uint64_t e = w->experts, a = t->shape[0], b = t->n_dims > 1 ? t->shape[1] : 1;
    uint64_t c = t->n_dims > 2 ? t->shape[2] : 1;
    bool second = how == SECOND || how == TURN_SECOND;
    memcpy(shape, t->shape, sizeof t->shape);
    *n_dims = t->n_dims;
    if (how == COPY || how == EVEN || how == SINGLE || how == STACK || how == GATE_UP ||
        how == VECTOR || how == CUBE)
        put(out, data, t->extent.bytes);
    if (how == PERMUTE_Q || how == PERMUTE_K)
        permute(out, data, a, b * size, how == PERMUTE_Q ? w->heads : w->kv_heads);
    if (how == ONE_MORE || how == DECAY || how == FLOATS || how == DOUBLED || how == SQUEEZE)
        floats(out, data, t, how);
    if (how == HALF) {
        put(out, (const float[1]){0.5f}, sizeof(float));
        shape[0] = *n_dims = 1;
    }
    if (how >= TILED_QKV && how <= TILED_COLUMNS)
        tiled(out, data, w, t, shape, how);
    if (how == SQUEEZE || how == TILED_TAPS) {
        shape[1] = c;
        *n_dims = 2;
    }
    if (how == QKV || how == GATES)
        shape[0] = regroup(out, data, w, b * size, how);
    if (how == KEYS_B || how == VALUES_B) {
        kv_b_split(out, data, w, shape, size, how);
        *n_dims = 3;
    }
    if (how == VECTOR) {
        shape[0] = b;
        *n_dims = 1;
    }
    if (how == FIRST || how == SECOND) {
        for (uint64_t i = 0; i < a; i++)
            put(out, data + (i * b + (second ? b / 2 : 0)) * c * size, b / 2 * c * size);
        shape[1] = b / 2;
    }
    if (how == CUBE || how == CUBE_T) {
        shape[0] = e;
        shape[1] = how == CUBE ? a / e : b;
        shape[2] = how == CUBE ? b : a / e;
        *n_dims = 3;
        for (uint64_t i = 0; i < e && how == CUBE_T; i++)
            turn(out, data + i * (a / e) * b * size, a / e, b, 0, b, size);
    }
    if (how == TURN || how == TURN_FIRST || how == TURN_SECOND) {
        uint64_t n = how == TURN ? c : c / 2;
        for (uint64_t i = 0; i < a; i++)
            turn(out, data + i * b * c * size, b, c, second ? n : 0, n, size);
        shape[1] = n;
        shape[2] = b;
    }
    free(data);
}

/* BF16 to F32: the same values in another format. */
static void widen(bytes *b)
{
    bytes out = {0};
    for (size_t i = 0; i < b->n; i += 2) {
        put_u(&out, 0, 2);
        put(&out, b->at + i, 2);
    }
    free(b->at);
    *b = out;
}

static const cf_tensor *tensor_find(const writer *w, const char *from, uint32_t x, uint32_t y)
{
    char full[256];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(full, sizeof full, from, x, y);
#pragma GCC diagnostic pop
    int64_t at = cf_catalogue_find(w->cat, full);
    return at < 0 ? NULL : cf_catalogue_at(w->cat, (uint32_t)at);
}

/* Behind an expert's gate its up. */
static void up_add(const writer *w, const name *n, uint32_t layer, uint32_t expert, bytes *out,
                   uint64_t *shape)
{
    char from[128];
    uint32_t n_dims;
    const char *gate = strstr(n->from, "gate_proj");
    snprintf(from, sizeof from, "%.*sup_proj%s", (int)(gate - n->from), n->from, gate + 9);
    convert(w, tensor_find(w, from, layer, expert), n->how, out, shape, &n_dims);
    shape[0] *= 2;
}

static void name_write(writer *w, const name *n, uint32_t layer)
{
    char to[256];
    bool stack = n->how == STACK || n->how == GATE_UP;
    uint32_t experts = stack || n->how == SINGLE ? w->experts : 1;
    bytes out = {0};
    uint64_t shape[CF_MAX_DIMS + 1] = {w->experts};
    uint32_t n_dims = 0;
    const cf_tensor *t = NULL;
    bool pair = w->paired && strncmp(n->to, "blk.", 4) == 0;
    if (pair && layer % 2 && (stack || n->how == EVEN))
        return;
    for (uint32_t e = 0; e < experts; e++) {
        uint32_t second = pair && !stack ? layer % 2 : e;
        if (!(t = tensor_find(w, n->from, pair ? layer / 2 : layer, second)))
            break;
        convert(w, t, n->how, &out, stack ? shape + 1 : shape, &n_dims);
        if (n->how == GATE_UP)
            up_add(w, n, layer, e, &out, shape + 1);
        snprintf(to, sizeof to, "%s", n->to);
        char *mark = strstr(n->to, "%u");
        if (mark) {
            snprintf(to, sizeof to, "%.*s%u%s", (int)(mark - n->to), n->to, layer, mark + 2);
            char *again = strstr(mark + 2, "%u");
            if (again)
                snprintf(to, sizeof to, "%.*s%u%.*s%u%s", (int)(mark - n->to), n->to, layer,
                         (int)(again - mark - 2), mark + 2, e, again + 2);
        }
        if (n->how == SINGLE) {
            tensor_put(w, to, t->format, n_dims, shape, &out);
            out.n = 0;
        }
    }
    if (t && w->padded && (strstr(to, "_exps.") || strstr(to, "ffn_gate_inp.")))
        experts_pad(&out, shape);
    /* Formats differ from layer to layer, within an expert too. */
    bool wide = t && layer % 2 && t->format == CF_BF16 &&
                (strstr(to, "ffn_down_exps") || strstr(to, "attn_v"));
    if (wide)
        widen(&out);
    bool in_f32 = wide || (n->how >= ONE_MORE && n->how <= SQUEEZE) || n->how == TILED_TAPS ||
                  n->how == TILED_DECAY || n->how == TILED_FLOATS;
    if (t && n->how != SINGLE)
        tensor_put(w, to, in_f32 ? CF_F32 : t->format, stack ? n_dims + 1 : n_dims, shape, &out);
    free(out.at);
}

static bool key_seen(const writer *w, const char *full)
{
    return w->out.keys.n && memmem(w->out.keys.at, w->out.keys.n, full, strlen(full));
}

static void key_write(writer *w, const char *arch, const key *k)
{
    char full[200];
    const json_t *v = json_object_get(w->config, k->from);
    double d = k->from[0] == '=' ? atof(k->from + 1) : json_number_value(v);
    bool whole = strncmp(k->to, "tokenizer.", 10) == 0;
    snprintf(full, sizeof full, "%s%s%s", whole ? "" : arch, whole ? "" : ".", k->to);
    if (key_seen(w, full) || (k->from[0] != '=' && k->type != 's' && (!v || json_is_null(v))))
        return;
    if (k->type == 'u')
        gguf_put_u32(&w->out, full, (uint32_t)d);
    else if (k->type == 'f')
        gguf_put_f32(&w->out, full, (float)d);
    else if (k->type == 'b')
        gguf_put_bool(&w->out, full, json_is_true(v));
    else
        gguf_put_string(&w->out, full, k->from);
}

/* Llama 3's scaling, as divisors of each frequency. */
static void divisors_write(writer *w)
{
    const json_t *s = json_object_get(w->config, "rope_scaling");
    const char *type = json_string_value(json_object_get(s, "rope_type"));
    if (!type || strcmp(type, "llama3") != 0)
        return;
    double base = json_number_value(json_object_get(w->config, "rope_theta"));
    double factor = json_number_value(json_object_get(s, "factor"));
    double original = json_number_value(json_object_get(s, "original_max_position_embeddings"));
    uint64_t head = (uint64_t)json_integer_value(json_object_get(w->config, "head_dim")),
             n = head / 2;
    bytes out = {0};
    for (uint64_t i = 0; i < n; i++) { /* both of its limits are 1: there is nothing between them */
        double wave = 2 * M_PI * pow(base, 2.0 * (double)i / (double)head);
        float f = wave > original ? (float)factor : 1;
        put(&out, &f, 4);
    }
    tensor_put(w, "rope_freqs.weight", CF_F32, 1, &n, &out);
    free(out.at);
}

/* LongRoPE's two lists. */
static void factors_write(writer *w)
{
    static const char *const names[][2] = {{"rope_factors_short.weight", "short_factor"},
                                           {"rope_factors_long.weight", "long_factor"}};
    const json_t *scaling = json_object_get(w->config, "rope_scaling");
    for (int i = 0; i < 2; i++) {
        const json_t *list = json_object_get(scaling, names[i][1]);
        uint64_t n = json_array_size(list);
        bytes out = {0};
        for (size_t k = 0; k < n; k++) {
            float f = (float)json_number_value(json_array_get(list, k));
            put(&out, &f, 4);
        }
        if (n)
            tensor_put(w, names[i][0], CF_F32, 1, &n, &out);
        free(out.at);
    }
}

static void file_write(const family *f, const char *dir, const char *path)
{
    char text[300];
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    writer w = {0};
    snprintf(text, sizeof text, "%s/config.json", dir);
    json_t *config = json_load_file(text, 0, NULL);
    REQUIRE(config && cf_safetensors_open(dir, &cat, &err) == 0);
    const json_t *inner = json_object_get(config, "text_config");
    w.cat = cat;
    w.paired = f->flags & PAIRED;
    w.padded = f->flags & PADDED;
    w.grouped = f->flags & GROUPED;
    w.config = inner ? inner : config;
    w.heads = number_of(w.config, "num_attention_heads", "n_heads");
    w.kv_heads = number_of(w.config, "num_key_value_heads", "");
    w.experts = number_of(w.config, "num_experts", "num_local_experts");
    if (!w.experts)
        w.experts = number_of(w.config, "n_routed_experts", "moe_num_experts");
    if (!w.experts)
        w.experts = 7; /* DBRX, whose config is nested */
    gguf_put_string(&w.out, "general.architecture", f->arch);
    for (int i = 0; i < SETS && f->keys[i]; i++)
        for (const key *k = f->keys[i]; k->to; k++)
            key_write(&w, f->arch, k);
    for (int i = 0; i < SETS && f->names[i]; i++)
        for (const name *n = f->names[i]; n->to; n++)
            for (uint32_t layer = 0; layer < (strstr(n->to, "%u") ? 16u : 1u); layer++)
                name_write(&w, n, layer);
    divisors_write(&w);
    factors_write(&w);
    gguf_write(&w.out, path);
    json_decref(config);
    cf_catalogue_close(&cat);
}

/* ---- cases ---- */

/* The oracle's prompt through a model; NULL with a failed check. `greedy`: its ids too. */
static oracle_run *prompt_run(const oracle *o, const char *model, const char *device, bool greedy)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_options options;
    oracle_run *r = oracle_run_new(o);
    cf_options_init(&options);
    options.device = device;
    options.kv = "f32";
    options.ctx = o->n_prompt + o->n_greedy + 1; /* LongRoPE: within its short factors */
    options.chunk = 16;
    options.vram_bytes = options.ram_bytes = 64u << 20;
    options.threads = 2;
    options.check = true;
    if (cf_engine_open(&e, model, &options, &err) < 0 || cf_session_create(&s, e, &err) < 0 ||
        oracle_run_prompt(r, s, 16, &err) < 0) {
        printf("    %s\n", err.msg);
        CHECK_NEVER("does not run");
        oracle_run_free(r);
        r = NULL;
    }
    if (r && greedy)
        CHECK_INT(oracle_run_greedy(o, s, o->vocab, &err), o->n_greedy);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    return r;
}

static void numbers(const char *dir, const char *path, const char *device)
{
    oracle *o = oracle_load(dir);
    REQUIRE(o);
    oracle_run *r = prompt_run(o, path, device, true);
    if (r) {
        double logits = oracle_logits_error(o, r), hidden = oracle_hidden_error(o, r);
        printf("    logits %.1e x std, hidden %.1e x std\n", logits, hidden);
        CHECK(logits <= 2e-3 && hidden <= 2e-3);
        CHECK_INT(oracle_expert_differences(o, r), 0);
        CHECK_INT(oracle_selection_differences(o, r), 0);
        oracle_run_free(r);
    }
    oracle_free(o);
}

/* The checkpoint itself with the published noise, which is what a file without the key means. */
static void numbers_without_jitter(const char *dir, const char *path, const tmp_dir *tmp)
{
    char real[4096], text[700], there[600];
    snprintf(there, sizeof there, "%s", tmp_path(tmp, "published"));
    snprintf(text, sizeof text, "%s/config.json", dir);
    json_t *config = json_load_file(text, 0, NULL);
    REQUIRE(config && mkdir(there, 0700) == 0);
    json_object_set_new(config, "router_jitter_noise", json_real(0.01));
    snprintf(text, sizeof text, "%s/config.json", there);
    CHECK_INT(json_dump_file(config, text, 0), 0);
    json_decref(config);
    snprintf(text, sizeof text, "%s/model.safetensors", dir);
    REQUIRE(realpath(text, real));
    snprintf(text, sizeof text, "%s/model.safetensors", there);
    REQUIRE(symlink(real, text) == 0);
    oracle *o = oracle_load(dir);
    REQUIRE(o);
    oracle_run *want = prompt_run(o, there, "ref", false), *got = prompt_run(o, path, "ref", false);
    double most = 0;
    for (size_t i = 0; want && got && i < (size_t)o->n_prompt * o->vocab; i++)
        most = fmax(most, fabs((double)want->logits[i] - (double)got->logits[i]));
    printf("    logits %.1e x std from the checkpoint's\n", most / o->logits_std);
    CHECK(want && got && most <= 1e-4 * o->logits_std);
    oracle_run_free(want);
    oracle_run_free(got);
    oracle_free(o);
}

static const char *only; /* a backend beside the reference's; NULL: all */

static void family_check(const family *f, const tmp_dir *tmp)
{
    char dir[200];
    cf_err err = {0};
    cf_model *m = NULL;
    const char *path = tmp_path(tmp, "converted.gguf");
    snprintf(dir, sizeof dir, "tests/fixtures/models/%s", f->fixture);
    file_write(f, dir, path);
    CHECK_INT(cf_model_open(&m, path, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(m);
    if (f->flags & BEYOND) {
        CHECK(m->n_skipped > 2 && m->skipped_bytes > 0);
        CHECK_STR(m->skipped_what, "multi-token-prediction blocks");
    } else if (strcmp(f->arch, "longcat-flash-sparse") == 0) {
        CHECK_STR(m->skipped_what, "indexers of sparse attention");
        CHECK_INT(m->spec.ctx_max, 64); /* up to there all positions are looked at */
        CHECK_HAS(m->spec.ctx_why, "sparse");
    } else {
        CHECK_INT(m->n_skipped, 0);
    }
    cf_model_free(&m);
    if (f->flags & NO_JITTER) {
        numbers_without_jitter(dir, path, tmp);
        return;
    }
    numbers(dir, path, "ref");
    cf_gpu_info infos[16];
    int n = f->flags & EVERYWHERE ? cf_gpu_list(infos, 16, NULL, 0) : 0;
    for (int i = 0; i < n; i++) {
        char device[32];
        snprintf(device, sizeof device, "%.15s:%d", infos[i].backend, infos[i].index);
        if (strcmp(infos[i].backend, "ref") != 0 && (!only || !strcmp(only, infos[i].backend)))
            numbers(dir, path, device);
    }
}

/* Positions in steps of a quarter. */
static void linear_factor(const tmp_dir *tmp)
{
    static const family plain = {"qwen2_moe", "qwen2moe", {common_keys, qwen2_keys},
                                 {common_names, ffn_norm, plain_qk, qwen2_names, mlp_names}, 0};
    family slow = plain;
    cf_err err = {0};
    cf_model *m[2] = {NULL, NULL};
    slow.keys[2] = linear_keys;
    for (int i = 0; i < 2; i++) {
        const char *path = tmp_path(tmp, i ? "slow.gguf" : "plain.gguf");
        file_write(i ? &slow : &plain, "tests/fixtures/models/qwen2_moe", path);
        CHECK_INT(cf_model_open(&m[i], path, &err), 0);
        CHECK_STR(err.msg, "");
        REQUIRE(m[i]);
    }
    CHECK_INT(m[1]->n_ropes, 1);
    for (uint32_t i = 0; i < m[0]->ropes[0].n_rot / 2; i++)
        CHECK(m[1]->ropes[0].inv_freq[i] == m[0]->ropes[0].inv_freq[i] / 4);
    cf_model_free(&m[0]);
    cf_model_free(&m[1]);
}

/* Keys that would only move numbers, of models not known; what would be of another block. */
static void refused(const tmp_dir *tmp)
{
    static const key warm[] = {{"attention.temperature_scale", 'f', "=0.1"}, {0}};
    static const key scaled[] = {{"attention.output_scale", 'f', "=0.5"}, {0}};
    static const name odd_scale[] = {{"blk.1.ffn_gate_exps.scale", "model.norm.weight", FLOATS},
                                     {0}};
    static const name odd_both[] = {{"blk.1.ffn_gate_up_exps.weight", "lm_head.weight", COPY}, {0}};
    static const family cases[] = {
        {"longcat_ngram", "longcat-flash", {longcat_keys}, {longcat_names, odd_scale}, PAIRED},
        {"longcat_ngram", "longcat-flash", {longcat_keys}, {longcat_names, odd_both}, PAIRED},
        {"deepseek_v2_lite",
         "deepseek2",
         {warm, v2_keys, common_keys, deepseek_keys},
         {common_names, ffn_norm, v2_names, mlp_names},
         0},
        {"grok2",
         "grok",
         {scaled, grok2_keys, common_keys},
         {grok2_names, plain_qk, minimax_names},
         0}};
    static const char *const why[] = {
        "tensor blk.1.ffn_gate_exps.scale: odd blocks have no experts",
        "tensor blk.1.ffn_gate_up_exps.weight: odd blocks have no experts",
        "\"deepseek2.attention.temperature_scale\" is 0.1, only 0 is known",
        "\"grok.attention.output_scale\" is 0.5, only 0.25 is known"};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char dir[200];
        cf_err err = {0};
        cf_model *m = NULL;
        const char *path = tmp_path(tmp, "refused.gguf");
        snprintf(dir, sizeof dir, "tests/fixtures/models/%s", cases[i].fixture);
        file_write(&cases[i], dir, path);
        CHECK_INT(cf_model_open(&m, path, &err), CF_EFORMAT);
        CHECK_HAS(err.msg, why[i]);
        cf_model_free(&m);
    }
}

int main(int argc, char **argv)
{
    tmp_dir tmp;
    only = argc > 1 ? argv[1] : NULL;
    tmp_dir_init(&tmp);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        char text[80];
        snprintf(text, sizeof text, "%s as %s", families[i].fixture, families[i].arch);
        RUN_NAMED(text, family_check(&families[i], &tmp));
    }
    RUN_NAMED("linear factor", linear_factor(&tmp));
    RUN_NAMED("refused", refused(&tmp));
    tmp_dir_finish(&tmp);
    return check_done();
}
