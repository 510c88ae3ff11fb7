/* Which key of a GGUF file's metadata is which key of the published config. Data; see gguf.h. */
#include "models/gguf_tables.h"

const cf_gguf_key cf_keys_common[] = {
    {"max_position_embeddings", "context_length", CF_KEY_U32, false, 0},
    {"hidden_size", "embedding_length", CF_KEY_U32, false, 0},
    {"num_hidden_layers", "block_count", CF_KEY_LAYERS, false, 0},
    {"num_attention_heads", "attention.head_count", CF_KEY_U32, false, 0},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", CF_KEY_F64, false, 0},
    {"num_experts_per_tok", "expert_used_count", CF_KEY_U32, false, 0},
    {0}};

const cf_gguf_key cf_keys_grouped[] = {
    {"num_key_value_heads", "attention.head_count_kv", CF_KEY_U32, false, 0},
    {"head_dim", "attention.key_length", CF_KEY_U32, true, 0},
    {0}};

const cf_gguf_key cf_keys_latent[] = {
    {"q_lora_rank", "attention.q_lora_rank", CF_KEY_U32, true, 0},
    {"kv_lora_rank", "attention.kv_lora_rank", CF_KEY_U32, false, 0},
    {"qk_rope_head_dim", "rope.dimension_count", CF_KEY_U32, false, 0},
    {"qk_nope_head_dim", "attention.key_length_mla", CF_KEY_ALIAS, false, 0},
    {"v_head_dim", "attention.value_length_mla", CF_KEY_ALIAS, false, 0},
    {0}};

const cf_gguf_key cf_keys_mixtral[] = {
    {"intermediate_size", "feed_forward_length", CF_KEY_U32, true, 0},
    {"intermediate_size", "expert_feed_forward_length", CF_KEY_U32, false, 0},
    {"num_local_experts", "expert_count", CF_KEY_U32, false, 0},
    {0}};

const cf_gguf_key cf_keys_minimax[] = {
    {"rotary_dim", "rope.dimension_count", CF_KEY_U32, true, 0},
    {"use_qk_norm", "attn_q_norm.weight", CF_KEY_HAS, false, 0},
    {"use_routing_bias", "exp_probs_b.bias", CF_KEY_HAS, false, 0},
    {0}};

const cf_gguf_key cf_keys_qwen[] = {
    {"num_experts", "expert_count", CF_KEY_U32, false, 0},
    {"moe_intermediate_size", "expert_feed_forward_length", CF_KEY_U32, true, 0},
    {0}};

const cf_gguf_key cf_keys_qwen2[] = {
    {"shared_expert_intermediate_size", "expert_shared_feed_forward_length", CF_KEY_U32, true, 0},
    {"shared_expert_intermediate_size", "feed_forward_length", CF_KEY_U32, false, 0},
    {"qkv_bias", "attn_q.bias", CF_KEY_HAS, false, 0},
    {0}};

/* A file's norms hold 1 + w, and its convolution, state and heads have a state-space model's keys. */
const cf_gguf_key cf_keys_delta[] = {
    {"linear_conv_kernel_dim", "ssm.conv_kernel", CF_KEY_U32, false, 0},
    {"linear_key_head_dim", "ssm.state_size", CF_KEY_U32, false, 0},
    {"linear_num_key_heads", "ssm.group_count", CF_KEY_U32, false, 0},
    {"linear_num_value_heads", "ssm.time_step_rank", CF_KEY_U32, false, 0},
    {"linear_value_head_dim", "ssm.inner_size", CF_KEY_ALIAS, false, 0},
    {"partial_rotary_factor", "rope.dimension_count", CF_KEY_ALIAS, false, 0},
    {"norms_hold_one", NULL, CF_KEY_TRUE, false, 0},
    {0}};

/* Value heads lie across those of keys; some writers say so. */
const cf_gguf_key cf_keys_delta_tiled[] = {
    {"linear_value_heads_tiled", "ssm.v_head_reordered", CF_KEY_BOOL, false, 0},
    {"linear_value_heads_tiled", NULL, CF_KEY_TRUE, false, 0},
    {0}};

const cf_gguf_key cf_keys_renormalise[] = {{"norm_topk_prob", NULL, CF_KEY_TRUE, false, 0}, {0}};

const cf_gguf_key cf_keys_olmoe[] = {
    {"intermediate_size", "feed_forward_length", CF_KEY_U32, false, 0},
    {"clip_qkv", "attention.clamp_kqv", CF_KEY_F64, true, 0},
    {"num_experts", "expert_count", CF_KEY_U32, false, 0},
    {0}};

const cf_gguf_key cf_keys_dbrx[] = {
    {"d_model", "embedding_length", CF_KEY_U32, false, 0},
    {"n_layers", "block_count", CF_KEY_LAYERS, false, 0},
    {"n_heads", "attention.head_count", CF_KEY_U32, false, 0},
    {"max_seq_len", "context_length", CF_KEY_U32, false, 0},
    {"attn_config.kv_n_heads", "attention.head_count_kv", CF_KEY_U32, false, 0},
    {"attn_config.clip_qkv", "attention.clamp_kqv", CF_KEY_F64, true, 0},
    {"ffn_config.ffn_hidden_size", "feed_forward_length", CF_KEY_U32, false, 0},
    {"ffn_config.moe_num_experts", "expert_count", CF_KEY_U32, false, 0},
    {"ffn_config.moe_top_k", "expert_used_count", CF_KEY_U32, false, 0},
    {0}};

const cf_gguf_key cf_keys_deepseek[] = {
    {"intermediate_size", "feed_forward_length", CF_KEY_U32, false, 0},
    {"moe_intermediate_size", "expert_feed_forward_length", CF_KEY_U32, false, 0},
    {"n_routed_experts", "expert_count", CF_KEY_U32, false, 0},
    {"n_shared_experts", "expert_shared_count", CF_KEY_U32, false, 0},
    {"first_k_dense_replace", "leading_dense_block_count", CF_KEY_U32, false, 0},
    {"routed_scaling_factor", "expert_weights_scale", CF_KEY_F64, true, 0},
    {"norm_topk_prob", "expert_weights_norm", CF_KEY_BOOL, false, 0},
    {"n_group", "expert_group_count", CF_KEY_U32, true, 0},
    {"topk_group", "expert_group_used_count", CF_KEY_U32, true, 0},
    {0}};

const cf_gguf_key cf_keys_indexer[] = {
    {"index_n_heads", "attention.indexer.head_count", CF_KEY_U32, false, 0},
    {"index_head_dim", "attention.indexer.key_length", CF_KEY_U32, false, 0},
    {"index_topk", "attention.indexer.top_k", CF_KEY_U32, false, 0},
    {0}};

const cf_gguf_key cf_keys_glm4[] = {
    {"attention_bias", "attn_q.bias", CF_KEY_HAS, false, 0},
    {"use_qk_norm", "attn_q_norm.weight", CF_KEY_HAS, false, 0},
    {"partial_rotary_factor", "rope.dimension_count", CF_KEY_ALIAS, false, 0},
    {0}};

const cf_gguf_key cf_keys_granite[] = {
    {"attention_multiplier", "attention.scale", CF_KEY_F64, true, 0},
    {"embedding_multiplier", "embedding_scale", CF_KEY_F64, true, 0},
    {"residual_multiplier", "residual_scale", CF_KEY_F64, true, 0},
    {"logits_scaling", "logit_scale", CF_KEY_F64, true, 0},
    {0}};

const cf_gguf_key cf_keys_ernie[] = {
    {"intermediate_size", "feed_forward_length", CF_KEY_U32, false, 0},
    {"moe_intermediate_size", "expert_feed_forward_length", CF_KEY_U32, false, 0},
    {"moe_num_experts", "expert_count", CF_KEY_U32, false, 0},
    {"moe_k", "expert_used_count", CF_KEY_U32, false, 0},
    {"moe_num_shared_experts", "expert_shared_count", CF_KEY_U32, false, 0},
    {"moe_layer_start_index", "leading_dense_block_count", CF_KEY_U32, false, 0},
    {"moe_layer_interval", "interleave_moe_layer_step", CF_KEY_U32, true, 0},
    {0}};

const cf_gguf_key cf_keys_minicpm[] = {
    {"intermediate_size", "feed_forward_length", CF_KEY_U32, false, 0},
    {"num_experts", "expert_count", CF_KEY_U32, false, 0},
    {"scale_emb", "embedding_scale", CF_KEY_F64, true, 12},
    {"scale_depth", "residual_scale", CF_KEY_ALIAS, false, 0},
    {"dim_model_base", "logit_scale", CF_KEY_ALIAS, false, 0},
    {0}};

/* With a dense feed-forward beside the experts. */
const cf_gguf_key cf_keys_grok_beside[] = {
    {"intermediate_size", "feed_forward_length", CF_KEY_U32, false, 0},
    {"moe_intermediate_size", "expert_feed_forward_length", CF_KEY_U32, false, 0},
    {"num_local_experts", "expert_count", CF_KEY_U32, false, 0},
    {"residual_moe", NULL, CF_KEY_TRUE, false, 0},
    {"attn_logit_softcapping", "attn_logit_softcapping", CF_KEY_F64, true, 30},
    {"router_logit_softcapping", "router_logit_softcapping", CF_KEY_F64, true, 30},
    {"final_logit_softcapping", "final_logit_softcapping", CF_KEY_F64, true, 0},
    {"attn_temperature_len", "attention.temperature_length", CF_KEY_U32, true, 0},
    {0}};

const cf_gguf_key cf_keys_grok[] = {
    {"intermediate_size", "expert_feed_forward_length", CF_KEY_U32, true, 0},
    {"intermediate_size", "feed_forward_length", CF_KEY_U32, false, 0},
    {"num_experts", "expert_count", CF_KEY_U32, false, 0},
    {"embedding_multiplier_scale", "embedding_scale", CF_KEY_F64, true, 78.38367176906169},
    {"output_multiplier_scale", "logit_scale", CF_KEY_F64, true, 0.5773502691896257},
    {"attn_output_multiplier", "attention.output_scale", CF_KEY_F64, true, 0.08838834764831845},
    {"max_attn_value", "attn_logit_softcapping", CF_KEY_F64, true, 30},
    {0}};

const cf_gguf_key cf_keys_llama4[] = {
    {"intermediate_size", "expert_feed_forward_length", CF_KEY_U32, false, 0},
    {"intermediate_size_mlp", "feed_forward_length", CF_KEY_U32, true, 0},
    {"num_local_experts", "expert_count", CF_KEY_U32, false, 0},
    {"interleave_moe_layer_step", "interleave_moe_layer_step", CF_KEY_U32, false, 0},
    {"attention_chunk_size", "attention.sliding_window", CF_KEY_U32, false, 0},
    {"floor_scale", "attention.temperature_length", CF_KEY_U32, true, 0},
    {"attn_scale", "attention.temperature_scale", CF_KEY_F64, true, 0},
    {0}};

const cf_gguf_key cf_keys_longcat[] = {
    {"max_position_embeddings", "context_length", CF_KEY_U32, false, 0},
    {"hidden_size", "embedding_length", CF_KEY_U32, false, 0},
    {"num_layers", "block_count", CF_KEY_LAYERS, false, 0},
    {"num_attention_heads", "attention.head_count", CF_KEY_U32, false, 0},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", CF_KEY_F64, false, 0},
    {"ffn_hidden_size", "feed_forward_length", CF_KEY_U32, false, 0},
    {"expert_ffn_hidden_size", "expert_feed_forward_length", CF_KEY_U32, false, 0},
    {"n_routed_experts", "expert_count", CF_KEY_U32, false, 0},
    {"zero_expert_num", "n_zero_experts", CF_KEY_U32, false, 0},
    {"zero_expert_num", "expert_zero_count", CF_KEY_U32, false, 0},
    {"moe_topk", "expert_used_count", CF_KEY_U32, false, 0},
    {"routed_scaling_factor", "expert_weights_scale", CF_KEY_F64, true, 0},
    {"norm_topk_prob", "expert_weights_norm", CF_KEY_BOOL, false, 0},
    {"emb_neighbor_num", "ngram.neighbor_count", CF_KEY_U32, false, 0},
    {"emb_neighbor_num", "ngram.neighbor_num", CF_KEY_U32, false, 0},
    {"emb_split_num", "ngram.split_count", CF_KEY_U32, false, 0},
    {"emb_split_num", "ngram.split_num", CF_KEY_U32, false, 0},
    {"ngram_vocab_size_ratio", "ngram.vocab_size_ratio", CF_KEY_ALIAS, false, 0},
    {0}};

const cf_gguf_key cf_keys_gpt_oss[] = {
    {"intermediate_size", "expert_feed_forward_length", CF_KEY_U32, false, 0},
    {"num_local_experts", "expert_count", CF_KEY_U32, false, 0},
    {"sliding_window", "attention.sliding_window", CF_KEY_U32, false, 0},
    {0}};

const cf_gguf_key cf_keys_phimoe[] = {
    {"rms_norm_eps", "attention.layer_norm_epsilon", CF_KEY_F64, false, 0},
    {"attention_bias", "attn_q.bias", CF_KEY_HAS, false, 0},
    {"lm_head_bias", "output.bias", CF_KEY_HAS, false, 0},
    {0}};
