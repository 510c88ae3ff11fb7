/* What converters make of each family's checkpoint: which tensor becomes which, by what rearrangement,
 * and which keys the file has. Written down from the reference's converter, for test_gguf_families; no
 * code of models/gguf*.c is shared. */
#ifndef CF_TESTS_GGUF_CONVERTERS_H
#define CF_TESTS_GGUF_CONVERTERS_H

#include <stddef.h>

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

#endif
