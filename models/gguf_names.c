/* Which tensor of a GGUF file is which of the published checkpoint. Data; see gguf.h. Of several
 * sets the first that has the name counts.
 *
 * A family that fuses the experts of a layer in a form of its own finds them one by one instead, as
 * model.layers.N.experts.E.{gate,up,down} (decoder.c), behind the prefix of its names. */
#include "models/gguf_tables.h"

#define L "model.layers.%u."

const cf_gguf_name cf_names_common[] = {
    {"token_embd", "model.embed_tokens", CF_NAME_WHOLE},
    {"output_norm", "model.norm", CF_NAME_WHOLE},
    {"output", "lm_head", CF_NAME_WHOLE},
    {"blk.attn_norm", L "input_layernorm", CF_NAME_WHOLE},
    {"blk.ffn_norm", L "post_attention_layernorm", CF_NAME_WHOLE},
    {"blk.attn_q", L "self_attn.q_proj", CF_NAME_WHOLE},
    {"blk.attn_k", L "self_attn.k_proj", CF_NAME_WHOLE},
    {"blk.attn_v", L "self_attn.v_proj", CF_NAME_WHOLE},
    {"blk.attn_output", L "self_attn.o_proj", CF_NAME_WHOLE},
    {"blk.attn_q_norm", L "self_attn.q_norm", CF_NAME_WHOLE},
    {"blk.attn_k_norm", L "self_attn.k_norm", CF_NAME_WHOLE},
    {0}};

const cf_gguf_name cf_names_latent[] = {
    {"blk.attn_q_a", L "self_attn.q_a_proj", CF_NAME_WHOLE},
    {"blk.attn_q_a_norm", L "self_attn.q_a_layernorm", CF_NAME_WHOLE},
    {"blk.attn_q_b", L "self_attn.q_b_proj", CF_NAME_WHOLE},
    {"blk.attn_kv_a_mqa", L "self_attn.kv_a_proj_with_mqa", CF_NAME_WHOLE},
    {"blk.attn_kv_a_norm", L "self_attn.kv_a_layernorm", CF_NAME_WHOLE},
    {"blk.attn_kv_b", L "self_attn.kv_b_proj", CF_NAME_WHOLE},
    {"blk.attn_k_b", L "self_attn.k_b_proj", CF_NAME_HEADS},
    {"blk.attn_v_b", L "self_attn.v_b_proj", CF_NAME_HEADS},
    {0}};

const cf_gguf_name cf_names_mlp[] = {
    {"blk.ffn_gate", L "mlp.gate_proj", CF_NAME_WHOLE},
    {"blk.ffn_up", L "mlp.up_proj", CF_NAME_WHOLE},
    {"blk.ffn_down", L "mlp.down_proj", CF_NAME_WHOLE},
    {"blk.ffn_gate_inp", L "mlp.gate", CF_NAME_WHOLE},
    {"blk.ffn_gate_exps", L "mlp.experts.%u.gate_proj", CF_NAME_EXPERTS},
    {"blk.ffn_up_exps", L "mlp.experts.%u.up_proj", CF_NAME_EXPERTS},
    {"blk.ffn_down_exps", L "mlp.experts.%u.down_proj", CF_NAME_EXPERTS},
    {"blk.ffn_gate_up_exps", NULL, CF_NAME_GATE_UP},
    {0}};

const cf_gguf_name cf_names_shared[] = {
    {"blk.ffn_gate_shexp", L "mlp.shared_experts.gate_proj", CF_NAME_WHOLE},
    {"blk.ffn_up_shexp", L "mlp.shared_experts.up_proj", CF_NAME_WHOLE},
    {"blk.ffn_down_shexp", L "mlp.shared_experts.down_proj", CF_NAME_WHOLE},
    {"blk.exp_probs_b", L "mlp.gate.e_score_correction_bias", CF_NAME_FULL},
    {0}};

const cf_gguf_name cf_names_mixtral[] = {
    {"blk.ffn_gate_inp", L "block_sparse_moe.gate", CF_NAME_WHOLE},
    {"blk.exp_probs_b", L "block_sparse_moe.e_score_correction_bias", CF_NAME_FULL},
    {"blk.ffn_gate_exps", L "block_sparse_moe.experts.%u.w1", CF_NAME_EXPERTS},
    {"blk.ffn_up_exps", L "block_sparse_moe.experts.%u.w3", CF_NAME_EXPERTS},
    {"blk.ffn_down_exps", L "block_sparse_moe.experts.%u.w2", CF_NAME_EXPERTS},
    {"blk.ffn_gate_up_exps", NULL, CF_NAME_GATE_UP},
    {0}};

const cf_gguf_name cf_names_qwen2[] = {
    {"blk.ffn_gate_inp_shexp", L "mlp.shared_expert_gate.weight", CF_NAME_ROW},
    {"blk.ffn_gate_shexp", L "mlp.shared_expert.gate_proj", CF_NAME_WHOLE},
    {"blk.ffn_up_shexp", L "mlp.shared_expert.up_proj", CF_NAME_WHOLE},
    {"blk.ffn_down_shexp", L "mlp.shared_expert.down_proj", CF_NAME_WHOLE},
    {0}};

const cf_gguf_name cf_names_experts[] = {
    {"blk.ffn_gate_exps", L "experts.%u.gate", CF_NAME_EXPERTS},
    {"blk.ffn_up_exps", L "experts.%u.up", CF_NAME_EXPERTS},
    {"blk.ffn_down_exps", L "experts.%u.down", CF_NAME_EXPERTS},
    {"blk.ffn_gate_up_exps", NULL, CF_NAME_GATE_UP},
    {0}};

const cf_gguf_name cf_names_granite[] = {
    {"blk.ffn_gate_inp", L "block_sparse_moe.router.layer", CF_NAME_WHOLE}, {0}};

const cf_gguf_name cf_names_ernie[] = {
    {"blk.exp_probs_b", L "mlp.moe_statics.e_score_correction_bias", CF_NAME_ROW}, {0}};

const cf_gguf_name cf_names_minicpm[] = {
    {"blk.ffn_gate_exps", L "mlp.experts.%u.w1", CF_NAME_EXPERTS},
    {"blk.ffn_up_exps", L "mlp.experts.%u.w3", CF_NAME_EXPERTS},
    {"blk.ffn_down_exps", L "mlp.experts.%u.w2", CF_NAME_EXPERTS},
    {0}};

/* Of two norms before the feed-forward the second has this name. */
const cf_gguf_name cf_names_second_norm[] = {
    {"blk.post_attention_norm", L "post_attention_layernorm", CF_NAME_WHOLE}, {0}};

const cf_gguf_name cf_names_longrope[] = {{"rope_factors_long", NULL, CF_NAME_READ},
                                          {"rope_factors_short", NULL, CF_NAME_READ},
                                          {0}};

const cf_gguf_name cf_names_indexer[] = {
    {"blk.indexer.k_norm", L "self_attn.indexer.k_norm", CF_NAME_WHOLE},
    {"blk.indexer.proj", L "self_attn.indexer.weights_proj", CF_NAME_WHOLE},
    {"blk.indexer.attn_k", L "self_attn.indexer.wk", CF_NAME_WHOLE},
    {"blk.indexer.attn_q_b", L "self_attn.indexer.wq_b", CF_NAME_WHOLE},
    {0}};

/* Of the layers with a state; ssm_in is the older form, with the gates in it. */
const cf_gguf_name cf_names_delta[] = {
    {"blk.attn_qkv", L "linear_attn.in_proj_qkv", CF_NAME_WHOLE},
    {"blk.attn_gate", L "linear_attn.in_proj_z", CF_NAME_WHOLE},
    {"blk.ssm_in", L "linear_attn.in_proj_qkvz", CF_NAME_WHOLE},
    {"blk.ssm_ba", L "linear_attn.in_proj_ba", CF_NAME_WHOLE},
    {"blk.ssm_conv1d", L "linear_attn.conv1d", CF_NAME_TAPS},
    {"blk.ssm_a", L "linear_attn.A", CF_NAME_FULL},
    {"blk.ssm_dt", L "linear_attn.dt_bias", CF_NAME_FULL},
    {"blk.ssm_norm", L "linear_attn.norm", CF_NAME_WHOLE},
    {"blk.ssm_out", L "linear_attn.out_proj", CF_NAME_WHOLE},
    {0}};

/* Beta and decay, each by itself. */
const cf_gguf_name cf_names_delta_gates[] = {
    {"blk.ssm_beta", L "linear_attn.in_proj_b", CF_NAME_WHOLE},
    {"blk.ssm_alpha", L "linear_attn.in_proj_a", CF_NAME_WHOLE},
    {0}};

const cf_gguf_name cf_names_gpt_oss[] = {{"blk.attn_sinks", L "self_attn.sinks", CF_NAME_FULL},
                                         {"blk.ffn_gate_inp", L "mlp.router", CF_NAME_WHOLE},
                                         {0}};

const cf_gguf_name cf_names_grok[] = {
    {"output_norm", "model.norm.scale", CF_NAME_FULL},
    {"blk.attn_norm", L "pre_attn_norm.scale", CF_NAME_FULL},
    {"blk.attn_output_norm", L "post_attn_norm.scale", CF_NAME_FULL},
    {"blk.ffn_norm", L "pre_moe_norm.scale", CF_NAME_FULL},
    {"blk.layer_output_norm", L "post_moe_norm.scale", CF_NAME_FULL},
    {"blk.post_ffw_norm", L "post_moe_norm.scale", CF_NAME_FULL},
    {"blk.attn_q", L "attn.q_proj", CF_NAME_WHOLE},
    {"blk.attn_k", L "attn.k_proj", CF_NAME_WHOLE},
    {"blk.attn_v", L "attn.v_proj", CF_NAME_WHOLE},
    {"blk.attn_output", L "attn.o_proj", CF_NAME_WHOLE},
    {"blk.ffn_gate_inp", L "moe_block.gate", CF_NAME_WHOLE},
    {"blk.ffn_gate_exps", L "moe_block.experts.%u.linear", CF_NAME_EXPERTS},
    {"blk.ffn_up_exps", L "moe_block.experts.%u.linear_v", CF_NAME_EXPERTS},
    {"blk.ffn_down_exps", L "moe_block.experts.%u.linear_1", CF_NAME_EXPERTS},
    {0}};

const cf_gguf_name cf_names_grok_beside[] = {
    {"blk.attn_norm", L "pre_attn_norm", CF_NAME_WHOLE},
    {"blk.attn_output_norm", L "post_attn_norm", CF_NAME_WHOLE},
    {"blk.ffn_norm", L "pre_moe_norm", CF_NAME_WHOLE},
    {"blk.layer_output_norm", L "post_moe_norm", CF_NAME_WHOLE},
    {"blk.post_ffw_norm", L "post_moe_norm", CF_NAME_WHOLE},
    {"blk.ffn_gate_inp", L "block_sparse_moe.gate", CF_NAME_WHOLE},
    {"blk.ffn_gate_exps", L "block_sparse_moe.experts.%u.w1", CF_NAME_EXPERTS},
    {"blk.ffn_up_exps", L "block_sparse_moe.experts.%u.w3", CF_NAME_EXPERTS},
    {"blk.ffn_down_exps", L "block_sparse_moe.experts.%u.w2", CF_NAME_EXPERTS},
    {0}};

#define B "transformer.blocks.%u."

const cf_gguf_name cf_names_dbrx[] = {
    {"token_embd", "transformer.wte", CF_NAME_WHOLE},
    {"output_norm", "transformer.norm_f", CF_NAME_WHOLE},
    {"output", "lm_head", CF_NAME_WHOLE},
    {"blk.attn_norm", B "norm_attn_norm.norm_1", CF_NAME_WHOLE},
    {"blk.attn_output_norm", B "norm_attn_norm.norm_2", CF_NAME_WHOLE},
    {"blk.attn_qkv", B "norm_attn_norm.attn.Wqkv", CF_NAME_WHOLE},
    {"blk.attn_output", B "norm_attn_norm.attn.out_proj", CF_NAME_WHOLE},
    {"blk.ffn_gate_inp", B "ffn.router.layer", CF_NAME_WHOLE},
    {0}};

#define T "language_model.model.layers.%u."

const cf_gguf_name cf_names_llama4[] = {
    {"token_embd", "language_model.model.embed_tokens", CF_NAME_WHOLE},
    {"output_norm", "language_model.model.norm", CF_NAME_WHOLE},
    {"output", "language_model.lm_head", CF_NAME_WHOLE},
    {"rope_freqs", NULL, CF_NAME_DIVISORS},
    {"blk.attn_norm", T "input_layernorm", CF_NAME_WHOLE},
    {"blk.ffn_norm", T "post_attention_layernorm", CF_NAME_WHOLE},
    {"blk.attn_q", T "self_attn.q_proj", CF_NAME_WHOLE},
    {"blk.attn_k", T "self_attn.k_proj", CF_NAME_WHOLE},
    {"blk.attn_v", T "self_attn.v_proj", CF_NAME_WHOLE},
    {"blk.attn_output", T "self_attn.o_proj", CF_NAME_WHOLE},
    {"blk.ffn_gate", T "feed_forward.gate_proj", CF_NAME_WHOLE},
    {"blk.ffn_up", T "feed_forward.up_proj", CF_NAME_WHOLE},
    {"blk.ffn_down", T "feed_forward.down_proj", CF_NAME_WHOLE},
    {"blk.ffn_gate_shexp", T "feed_forward.shared_expert.gate_proj", CF_NAME_WHOLE},
    {"blk.ffn_up_shexp", T "feed_forward.shared_expert.up_proj", CF_NAME_WHOLE},
    {"blk.ffn_down_shexp", T "feed_forward.shared_expert.down_proj", CF_NAME_WHOLE},
    {"blk.ffn_gate_inp", T "feed_forward.router", CF_NAME_WHOLE},
    {"blk.ffn_gate_exps", T "experts.%u.gate", CF_NAME_EXPERTS},
    {"blk.ffn_up_exps", T "experts.%u.up", CF_NAME_EXPERTS},
    {"blk.ffn_down_exps", T "experts.%u.down", CF_NAME_EXPERTS},
    {"blk.ffn_gate_up_exps", NULL, CF_NAME_GATE_UP},
    {0}};

#define S "model.layers.%u.self_attn.%u."

/* Two blocks a layer: the second %u is the sub-layer, of experts the expert. The first of two dense
 * feed-forwards is either that of its block or, in another layout, its shared expert. */
const cf_gguf_name cf_names_longcat[] = {
    {"token_embd", "model.embed_tokens", CF_NAME_WHOLE},
    {"output_norm", "model.norm", CF_NAME_WHOLE},
    {"output", "lm_head", CF_NAME_WHOLE},
    {"ngram_embd", "model.ngram_embeddings.embedders.%u.weight", CF_NAME_TABLES},
    {"ngram_embd.", "model.ngram_embeddings.embedders.%u.weight", CF_NAME_TABLE},
    {"ngram_proj", "model.ngram_embeddings.post_projs.weight", CF_NAME_FULL},
    {"ngram_proj.", "model.ngram_embeddings.post_projs.%u.weight", CF_NAME_TABLE},
    {"blk.attn_norm", L "input_layernorm.%u", CF_NAME_WHOLE},
    {"blk.ffn_norm", L "post_attention_layernorm.%u", CF_NAME_WHOLE},
    {"blk.attn_q_a", S "q_a_proj", CF_NAME_WHOLE},
    {"blk.attn_q_a_norm", S "q_a_layernorm", CF_NAME_WHOLE},
    {"blk.attn_q_b", S "q_b_proj", CF_NAME_WHOLE},
    {"blk.attn_kv_a_mqa", S "kv_a_proj_with_mqa", CF_NAME_WHOLE},
    {"blk.attn_kv_a_norm", S "kv_a_layernorm", CF_NAME_WHOLE},
    {"blk.attn_kv_b", S "kv_b_proj", CF_NAME_WHOLE},
    {"blk.attn_k_b", S "k_b_proj", CF_NAME_HEADS},
    {"blk.attn_v_b", S "v_b_proj", CF_NAME_HEADS},
    {"blk.attn_output", S "o_proj", CF_NAME_WHOLE},
    {"blk.ffn_gate", L "mlps.%u.gate_proj", CF_NAME_WHOLE},
    {"blk.ffn_up", L "mlps.%u.up_proj", CF_NAME_WHOLE},
    {"blk.ffn_down", L "mlps.%u.down_proj", CF_NAME_WHOLE},
    {"blk.ffn_gate_shexp", L "mlps.%u.gate_proj", CF_NAME_WHOLE},
    {"blk.ffn_up_shexp", L "mlps.%u.up_proj", CF_NAME_WHOLE},
    {"blk.ffn_down_shexp", L "mlps.%u.down_proj", CF_NAME_WHOLE},
    {"blk.ffn_gate_inp", L "mlp.router.classifier", CF_NAME_WHOLE},
    {"blk.exp_probs_b", L "mlp.router.e_score_correction_bias", CF_NAME_FULL},
    {"blk.ffn_gate_exps", L "mlp.experts.%u.gate_proj", CF_NAME_EXPERTS},
    {"blk.ffn_up_exps", L "mlp.experts.%u.up_proj", CF_NAME_EXPERTS},
    {"blk.ffn_down_exps", L "mlp.experts.%u.down_proj", CF_NAME_EXPERTS},
    {"blk.ffn_gate_up_exps", NULL, CF_NAME_GATE_UP},
    {0}};

const cf_gguf_name cf_names_sub_indexer[] = {
    {"blk.indexer.k_norm", S "indexer.k_norm", CF_NAME_WHOLE},
    {"blk.indexer.proj", S "indexer.weights_proj", CF_NAME_WHOLE},
    {"blk.indexer.attn_k", S "indexer.wk", CF_NAME_WHOLE},
    {"blk.indexer.attn_q_b", S "indexer.wq_b", CF_NAME_WHOLE},
    {0}};

#undef L
#undef B
#undef T
#undef S
