/* Catches: a family without an oracle; a config key read wrongly, a tensor forgotten or doubled, which
 * would show in the parameter counts of the published checkpoints; one of their sizes that a limit, an
 * overflow or a quadratic loop keeps from opening.
 *
 * The counts come from the list of tensors that each family expects for the published sizes, and once
 * more from a model that was opened: a config.json and a file of the full size, of which only the
 * header is written. Expected: the published totals, and active, per-expert and resident parameters
 * computed from the shapes, in units of 10^9 (an expert: 10^6), within 1 %. Active leaves the embedding
 * out, tied or not. */
#include <dirent.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/family.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

/* ---- every family has a fixture ---- */

static json_t *config_of(const char *dir)
{
    char path[600];
    snprintf(path, sizeof path, "%s/config.json", dir);
    return json_load_file(path, 0, NULL);
}

static void every_family_has_a_fixture(void)
{
    enum { MAX = 256 };
    const cf_family *seen[MAX];
    int n = 0;
    DIR *d = opendir("tests/fixtures/models");
    REQUIRE(d);
    for (struct dirent *entry; (entry = readdir(d)) && n < MAX;) {
        char dir[400];
        snprintf(dir, sizeof dir, "tests/fixtures/models/%s", entry->d_name);
        json_t *config = config_of(dir);
        if (!config)
            continue;
        const cf_family *f = cf_family_find(config, dir, NULL);
        if (f)
            seen[n++] = f;
        json_decref(config);
    }
    closedir(d);
    for (const cf_family *const *f = cf_families; *f; f++) {
        /* That one's is another's, rewritten (test_regrouped.c). */
        bool found = strcmp((*f)->name, "qwen3.5-moe") == 0;
        for (int i = 0; i < n; i++)
            found = found || seen[i] == *f;
        if (!found)
            printf("    family %s has no fixture in tests/fixtures/models\n", (*f)->name);
        CHECK(found);
    }
}

/* ---- the published checkpoints ---- */

#define ENDS "\"bos_token_id\":1,\"eos_token_id\":2,"

#define LONGCAT(arch, layers, hidden, dense, ffn, experts, zero, heads, extra)                     \
    "{\"architectures\":[\"" arch "\"]," ENDS "\"vocab_size\":131072,\"hidden_size\":" hidden      \
    ",\"num_layers\":" layers ",\"num_attention_heads\":" heads                                    \
    ",\"q_lora_rank\":1536,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,"                         \
    "\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"ffn_hidden_size\":" dense                        \
    ",\"expert_ffn_hidden_size\":" ffn ",\"n_routed_experts\":" experts                            \
    ",\"zero_expert_num\":" zero ",\"moe_topk\":12,\"max_position_embeddings\":131072,"            \
    "\"rms_norm_eps\":1e-5,\"rope_theta\":1e7" extra "}"

#define DECODER(arch, vocab, hidden, layers, heads, kv, extra)                                     \
    "{\"architectures\":[\"" arch "\"]," ENDS "\"vocab_size\":" vocab ",\"hidden_size\":" hidden   \
    ",\"num_hidden_layers\":" layers ",\"num_attention_heads\":" heads                             \
    ",\"num_key_value_heads\":" kv ",\"max_position_embeddings\":32768,\"rms_norm_eps\":1e-5,"     \
    "\"rope_theta\":1e6," extra "}"

#define DEEPSEEK(dense, ffn, experts, shared, k, first)                                            \
    "\"intermediate_size\":" dense ",\"moe_intermediate_size\":" ffn ",\"n_routed_experts\":"      \
    experts ",\"n_shared_experts\":" shared ",\"num_experts_per_tok\":" k                          \
    ",\"first_k_dense_replace\":" first
#define LATENT(q)                                                                                  \
    ",\"q_lora_rank\":" q ",\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,"                        \
    "\"qk_rope_head_dim\":64,\"v_head_dim\":128"
#define V3 ",\"scoring_func\":\"sigmoid\",\"topk_method\":\"noaux_tc\""
#define MIXTRAL(ffn, experts, k)                                                                   \
    "\"intermediate_size\":" ffn ",\"num_local_experts\":" experts ",\"num_experts_per_tok\":" k
#define QWEN(ffn, experts, k)                                                                      \
    "\"moe_intermediate_size\":" ffn ",\"num_experts\":" experts ",\"num_experts_per_tok\":" k
#define GPT_OSS(layers, experts)                                                                   \
    DECODER("GptOssForCausalLM", "201088", "2880", layers, "64", "8",                              \
            "\"head_dim\":64," MIXTRAL("2880", experts, "4"))
#define SWITCH(hidden, heads, ffn, layers, experts, step)                                          \
    "{\"architectures\":[\"SwitchTransformersForConditionalGeneration\"],"                         \
    "\"vocab_size\":32128,\"d_model\":" hidden ",\"d_kv\":64,\"num_heads\":" heads                 \
    ",\"d_ff\":" ffn ",\"num_layers\":" layers ",\"num_experts\":" experts                         \
    ",\"expert_capacity\":64,\"encoder_sparse_step\":" step ",\"decoder_sparse_step\":" step       \
    ",\"eos_token_id\":1}"
#define EIGHT_LAYERS "0,0,0,0,0,0,0,1,"
#define LLAMA4(experts, step)                                                                      \
    "{\"architectures\":[\"Llama4ForConditionalGeneration\"],\"text_config\":{" ENDS               \
    "\"vocab_size\":202048,\"hidden_size\":5120,\"num_hidden_layers\":48,"                         \
    "\"num_attention_heads\":40,\"num_key_value_heads\":8,\"head_dim\":128,"                       \
    "\"max_position_embeddings\":32768,\"rms_norm_eps\":1e-5,\"rope_theta\":5e5,"                  \
    "\"intermediate_size\":8192,\"intermediate_size_mlp\":16384,\"num_experts_per_tok\":1,"        \
    "\"interleave_moe_layer_step\":" step ",\"num_local_experts\":" experts "}}"

static const struct row {
    const char *name, *config;
    uint32_t top_k, moe_layers, experts;
    double total, active, expert_millions, resident;
} rows[] = {
    {"LongCat-Flash",
     LONGCAT("LongcatFlashForCausalLM", "28", "6144", "12288", "2048", "512", "256", "64", ""), 12,
     28, 512, 560.7, 31.38, 37.75, 19.50},
    {"LongCat-Flash-Lite",
     LONGCAT("LongcatFlashNgramForCausalLM", "14", "3072", "6144", "1024", "256", "128", "32",
             ",\"ngram_vocab_size_ratio\":78,\"emb_neighbor_num\":4,\"emb_split_num\":4"),
     12, 14, 256, 68.56, 4.51, 9.44, 3.32},
    {"LongCat-2.0",
     "{\"architectures\":[\"LongcatCausalLM\"]," ENDS "\"vocab_size\":163840,"
     "\"hidden_size\":8192,\"num_layers\":38,\"num_attention_heads\":64,\"q_lora_rank\":1536,"
     "\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,"
     "\"ffn_hidden_size\":12288,\"expert_ffn_hidden_size\":2048,\"n_routed_experts\":768,"
     "\"zero_expert_num\":128,\"moe_topk\":12,\"max_position_embeddings\":262144,"
     "\"rms_norm_eps\":1e-5,\"rope_theta\":1e6,\"oe_vocab_size_ratio\":100.567,"
     "\"oe_neighbor_num\":5,\"oe_split_num\":4,\"index_topk\":2048}",
     12, 38, 768, 1638.6, 56.30, 50.33, 34.69},
    {"DeepSeek-V2",
     DECODER("DeepseekV2ForCausalLM", "102400", "5120", "60", "128", "128",
             DEEPSEEK("12288", "1536", "160", "2", "6", "1") LATENT("1536")),
     6, 59, 160, 235.7, 20.85, 23.59, 13.02},
    {"DeepSeek-V2-Lite",
     DECODER("DeepseekV2ForCausalLM", "102400", "2048", "27", "16", "16",
             DEEPSEEK("10944", "1408", "64", "2", "6", "1") LATENT("null")),
     6, 26, 64, 15.71, 2.45, 8.65, 1.31},
    {"DeepSeek-V3",
     DECODER("DeepseekV3ForCausalLM", "129280", "7168", "61", "128", "128",
             DEEPSEEK("18432", "2048", "256", "1", "8", "3") LATENT("1536") V3),
     8, 58, 256, 671.0, 36.63, 44.04, 17.12},
    {"DeepSeek-V3.2",
     DECODER("DeepseekV32ForCausalLM", "129280", "7168", "61", "128", "128",
             DEEPSEEK("18432", "2048", "256", "1", "8", "3") LATENT("1536") V3
             ",\"index_n_heads\":64,\"index_head_dim\":128,\"index_topk\":2048"),
     8, 58, 256, 671.9, 37.48, 44.04, 17.97},
    {"GLM-5",
     DECODER("GlmMoeDsaForCausalLM", "154880", "6144", "78", "64", "64",
             DEEPSEEK("12288", "2048", "256", "1", "8", "3") V3
             ",\"q_lora_rank\":2048,\"kv_lora_rank\":512,\"qk_nope_head_dim\":192,"
             "\"qk_rope_head_dim\":64,\"v_head_dim\":256,\"index_n_heads\":32,"
             "\"index_head_dim\":128,\"index_topk\":2048"),
     8, 75, 256, 743.9, 40.83, 37.75, 19.14},
    {"Kimi-K2",
     DECODER("DeepseekV3ForCausalLM", "163840", "7168", "61", "64", "64",
             DEEPSEEK("18432", "2048", "384", "1", "8", "1") LATENT("1536") V3),
     8, 60, 384, 1026.4, 31.69, 44.04, 11.72},
    {"GLM-4.5",
     DECODER("Glm4MoeForCausalLM", "151552", "5120", "92", "96", "8",
             DEEPSEEK("12288", "1536", "160", "1", "8",
                      "3") ",\"head_dim\":128,\"attention_bias\":true,\"use_qk_norm\":true"),
     8, 89, 160, 352.8, 32.86, 23.59, 16.83},
    {"GLM-4.5-Air",
     DECODER("Glm4MoeForCausalLM", "151552", "4096", "46", "96", "8",
             DEEPSEEK("10944", "1408", "128", "1", "8",
                      "1") ",\"head_dim\":128,\"attention_bias\":true"),
     8, 45, 128, 106.9, 12.80, 17.30, 7.20},
    {"Mixtral-8x7B",
     DECODER("MixtralForCausalLM", "32000", "4096", "32", "32", "8", MIXTRAL("14336", "8", "2")), 2,
     32, 8, 46.70, 12.75, 176.16, 1.61},
    {"Mixtral-8x22B",
     DECODER("MixtralForCausalLM", "32000", "6144", "56", "48", "8", MIXTRAL("16384", "8", "2")), 2,
     56, 8, 140.6, 38.96, 301.99, 5.33},
    {"Qwen1.5-MoE-A2.7B",
     DECODER("Qwen2MoeForCausalLM", "151936", "2048", "24", "16", "16",
             QWEN("1408", "60", "4") ",\"shared_expert_intermediate_size\":5632"),
     4, 24, 60, 14.32, 2.38, 8.65, 1.86},
    {"Qwen2-57B-A14B",
     DECODER("Qwen2MoeForCausalLM", "151936", "3584", "28", "28", "4",
             QWEN("2560", "64", "8") ",\"shared_expert_intermediate_size\":20480"),
     8, 28, 64, 57.41, 13.70, 27.53, 8.08},
    {"Qwen3-30B-A3B",
     DECODER("Qwen3MoeForCausalLM", "151936", "2048", "48", "32", "4",
             QWEN("768", "128", "8") ",\"head_dim\":128"),
     8, 48, 128, 30.53, 3.04, 4.72, 1.54},
    {"Qwen3-235B-A22B",
     DECODER("Qwen3MoeForCausalLM", "151936", "4096", "94", "64", "4",
             QWEN("1536", "128", "8") ",\"head_dim\":128"),
     8, 94, 128, 235.1, 21.57, 18.87, 8.00},
    {"Qwen3-Coder-480B",
     DECODER("Qwen3MoeForCausalLM", "151936", "6144", "62", "96", "8",
             QWEN("2560", "160", "8") ",\"head_dim\":128"),
     8, 62, 160, 480.2, 34.54, 47.19, 12.07},
    {"OLMoE-1B-7B",
     DECODER("OlmoeForCausalLM", "50304", "2048", "16", "16", "16",
             "\"intermediate_size\":1024,\"num_experts\":64,\"num_experts_per_tok\":8"),
     8, 16, 64, 6.92, 1.18, 6.29, 0.48},
    {"DBRX",
     "{\"architectures\":[\"DbrxForCausalLM\"],\"vocab_size\":100352,\"d_model\":6144,"
     "\"n_layers\":40,\"n_heads\":48,\"max_seq_len\":32768,\"attn_config\":{\"kv_n_heads\":8,"
     "\"clip_qkv\":8,\"rope_theta\":5e5},\"ffn_config\":{\"ffn_hidden_size\":10752,"
     "\"moe_num_experts\":16,\"moe_top_k\":4}}",
     4, 40, 16, 131.6, 35.85, 198.18, 4.76},
    {"gpt-oss-120b", GPT_OSS("36", "128"), 4, 36, 128, 116.8, 5.13, 24.89, 2.13},
    {"gpt-oss-20b", GPT_OSS("24", "32"), 4, 24, 32, 20.91, 3.61, 24.89, 1.80},
    {"Llama-4-Scout", LLAMA4("16", "1"), 1, 48, 16, 107.8, 16.14, 125.83, 11.13},
    {"Llama-4-Maverick", LLAMA4("128", "2"), 1, 24, 128, 400.7, 16.15, 125.83, 14.16},
    {"Phi-3.5-MoE",
     DECODER("PhiMoEForCausalLM", "32064", "4096", "32", "32", "8",
             MIXTRAL("6400", "16", "2") ",\"attention_bias\":true,\"lm_head_bias\":true"),
     2, 32, 16, 41.9, 6.51, 78.64, 1.61},
    {"Grok-1",
     DECODER("Grok1ModelForCausalLM", "131072", "6144", "64", "48", "8",
             "\"intermediate_size\":32768,\"num_experts\":8,\"num_experts_per_tok\":2,"
             "\"tie_word_embeddings\":true,\"embedding_multiplier_scale\":78.4,"
             "\"output_multiplier_scale\":0.577,\"attn_output_multiplier\":0.0884,"
             "\"max_attn_value\":30"),
     2, 64, 8, 315.7, 82.95, 603.98, 6.45},
    {"Grok-2",
     DECODER("Grok1ForCausalLM", "131072", "8192", "64", "64", "8",
             "\"head_dim\":128,\"intermediate_size\":32768,\"moe_intermediate_size\":16384,"
             "\"num_local_experts\":8,\"num_experts_per_tok\":2,\"residual_moe\":true"),
     2, 64, 8, 269.5, 113.8, 402.65, 63.36},
    {"DeepSeek-MoE-16B",
     DECODER("DeepseekForCausalLM", "102400", "2048", "28", "16", "16",
             DEEPSEEK("10944", "1408", "64", "2", "6", "1")),
     6, 27, 64, 16.38, 2.62, 8.65, 1.43},
    {"Qwen3-Next-80B-A3B",
     DECODER("Qwen3NextForCausalLM", "151936", "2048", "48", "16", "2",
             QWEN("512", "512", "10") ",\"head_dim\":256,\"shared_expert_intermediate_size\":512,"
                                      "\"full_attention_interval\":4,\"linear_num_key_heads\":16,"
                                      "\"linear_num_value_heads\":32,\"linear_key_head_dim\":128,"
                                      "\"linear_value_head_dim\":128,\"linear_conv_kernel_dim\":4"),
     10, 48, 512, 79.67, 3.56, 3.15, 2.37},
    {"Qwen3.5-35B-A3B",
     "{\"architectures\":[\"Qwen3_5MoeForConditionalGeneration\"],\"text_config\":{" ENDS
     "\"vocab_size\":248320,\"hidden_size\":2048,\"num_hidden_layers\":40,"
     "\"num_attention_heads\":16,\"num_key_value_heads\":2,\"head_dim\":256,"
     "\"max_position_embeddings\":262144,\"rms_norm_eps\":1e-6," QWEN(
         "512", "256",
         "8") ",\"shared_expert_intermediate_size\":512,\"full_attention_interval\":4,"
              "\"linear_num_key_heads\":16,\"linear_num_value_heads\":32,\"linear_key_head_dim\":"
              "128,"
              "\"linear_value_head_dim\":128,\"linear_conv_kernel_dim\":4,\"rope_parameters\":{"
              "\"rope_type\":\"default\",\"rope_theta\":1e7,\"partial_rotary_factor\":0.25}}}",
     8, 40, 256, 34.66, 2.95, 3.15, 2.45},
    {"MiniMax-Text-01",
     DECODER("MiniMaxText01ForCausalLM", "200064", "6144", "80", "64", "8",
             MIXTRAL("9216", "32",
                     "2") ",\"head_dim\":128,\"rotary_dim\":64,"
                          "\"attn_type_list\":[" EIGHT_LAYERS EIGHT_LAYERS EIGHT_LAYERS EIGHT_LAYERS
                              EIGHT_LAYERS EIGHT_LAYERS EIGHT_LAYERS EIGHT_LAYERS EIGHT_LAYERS
                          "0,0,0,0,0,0,0,1]"),
     2, 80, 32, 456.1, 47.17, 169.87, 21.22},
    {"MiniMax-M2",
     DECODER(
         "MiniMaxM2ForCausalLM", "200064", "3072", "62", "48", "8",
         MIXTRAL(
             "1536",
             "256",
             "8") ",\"head_dim\":128,\"rotary_dim\":64,"
                  "\"use_qk_norm\":true,\"use_routing_bias\":true,\"scoring_func\":\"sigmoid\""),
     8, 62, 256, 228.7, 10.41, 14.16, 4.01},
    {"Switch-base-8", SWITCH("768", "12", "3072", "12", "8", "2"), 1, 12, 8, 0.6196, 0.1982, 4.719,
     0.1663},
    {"Switch-base-128", SWITCH("768", "12", "3072", "12", "128", "2"), 1, 12, 128, 7.415, 0.1994,
     4.719, 0.1675},
    {"Switch-c-2048", SWITCH("2080", "32", "6144", "15", "2048", "1"), 1, 30, 2048, 1571.3, 1.66,
     25.56, 0.96},
    {"MiniCPM-MoE-8x2B",
     DECODER("MiniCPMForCausalLM", "122753", "2304", "40", "36", "36",
             "\"intermediate_size\":5760,\"num_experts\":8,\"num_experts_per_tok\":2,"
             "\"tie_word_embeddings\":true,\"scale_emb\":12,\"scale_depth\":1.4,"
             "\"dim_model_base\":256"),
     2, 40, 8, 13.87, 4.04, 39.81, 1.13},
};

static void near(const char *what, double got, double want)
{
    if (!(fabs(got - want) <= 0.01 * want))
        printf("    %s: %.4f, expected %.4f\n", what, got, want);
    CHECK(fabs(got - want) <= 0.01 * want);
}

static void all_near(const struct row *r, double total, double active, double expert,
                     double resident)
{
    near("total", total / 1e9, r->total);
    near("active", active / 1e9, r->active);
    near("an expert", expert / 1e6, r->expert_millions);
    near("resident", resident / 1e9, r->resident);
}

/* ---- opened ---- */

/* A file that holds the whole list, of which nothing but the header takes room. */
static bool headers_write(const char *path, const cf_expected *list, uint64_t n)
{
    char *json = NULL;
    size_t bytes = 0;
    uint64_t at = 0;
    FILE *text = open_memstream(&json, &bytes), *f = fopen(path, "wb");
    if (!text || !f)
        return false;
    for (uint64_t i = 0; i < n; i++) {
        const cf_expected *t = &list[i];
        uint64_t size = t->f32 || t->bias ? 4 : 2, first = at;
        fprintf(text, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? ',' : '{', t->name,
                size == 4 ? "F32" : "BF16");
        for (uint32_t d = 0; d < t->n_dims; d++) {
            fprintf(text, "%s%" PRIu64, d ? "," : "", t->shape[d]);
            size *= t->shape[d];
        }
        at += size;
        fprintf(text, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", first, at);
    }
    fputc('}', text);
    fclose(text);
    uint64_t header = bytes;
    bool ok = fwrite(&header, 8, 1, f) == 1 && fwrite(json, 1, bytes, f) == bytes;
    ok = fflush(f) == 0 && ftruncate(fileno(f), (off_t)(8 + bytes + at)) == 0 && ok;
    ok = fclose(f) == 0 && ok;
    free(json);
    return ok;
}

/* The same figures from a model, as `catflap info` counts them. */
static void model_counts(const struct row *r, const cf_model *m)
{
    double resident = 0, experts = 0, active, tables = 0, embedding = 0;
    for (uint32_t i = 0; i < m->n_weights; i++)
        resident += (double)m->weights[i].rows * m->weights[i].cols;
    for (uint32_t i = 0; i < m->n_tables; i++) {
        double params = (double)m->tables[i].rows * m->tables[i].cols;
        *(m->tables[i].key == CF_ROWS_TOKEN ? &embedding : &tables) += params;
    }
    active = resident;
    for (uint32_t i = 0; i < m->n_moe; i++) {
        double params = 0;
        for (int p = 0; p < CF_EXPERT_PIECES; p++)
            params += (double)m->moe[i].pieces[p].rows * m->moe[i].pieces[p].cols;
        experts += params * m->moe[i].experts;
        active += params * m->moe[i].top_k;
    }
    /* A tied embedding is no table but a weight, which the head reads. */
    active -= embedding > 0 ? 0 : (double)m->spec.vocab * m->spec.hidden;
    CHECK_INT(m->n_moe, r->moe_layers);
    CHECK_INT(m->spec.experts, r->experts);
    CHECK_INT(m->spec.top_k, r->top_k);
    all_near(r, resident + embedding + experts + tables, active,
             experts / (double)r->moe_layers / r->experts, resident + embedding);
}

static void opens(const struct row *r, const tmp_dir *tmp)
{
    cf_err err = {0};
    cf_model *m = NULL;
    cf_expected *list = NULL;
    uint64_t n = 0;
    char dir[700], path[800];
    json_t *config = json_loads(r->config, 0, NULL);
    REQUIRE(config);
    snprintf(dir, sizeof dir, "%s", tmp_path(tmp, "published"));
    mkdir(dir, 0700);
    snprintf(path, sizeof path, "%s/config.json", dir);
    CHECK_INT(json_dump_file(config, path, 0), 0);
    CHECK_INT(cf_model_expected(config, r->name, &list, &n, &err), 0);
    json_decref(config);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (!headers_write(path, list, n)) {
        cf_expected_free(list, n);
        unlink(path);
        SKIP("no file of %.0f GB here, not even an empty one", 2 * r->total);
    }
    cf_expected_free(list, n);
    CHECK_INT(cf_model_open(&m, dir, &err), 0);
    CHECK_STR(err.msg, "");
    if (m)
        model_counts(r, m);
    cf_model_free(&m);
    unlink(path);
}

static void counts(const struct row *r)
{
    cf_err err = {0};
    cf_expected *list = NULL;
    uint64_t n = 0;
    json_t *config = json_loads(r->config, 0, NULL);
    REQUIRE(config);
    int rc = cf_model_expected(config, r->name, &list, &n, &err);
    CHECK_STR(err.msg, "");
    double total = 0, experts = 0, tables = 0, embedding = 0;
    json_decref(config);
    if (rc < 0)
        return;
    for (uint64_t i = 0; i < n; i++) {
        double params = 1;
        for (uint32_t d = 0; d < list[i].n_dims; d++)
            params *= (double)list[i].shape[d];
        bool expert = strstr(list[i].name, "experts.") && !strstr(list[i].name, "shared_experts.");
        bool first = strstr(list[i].name, "embed_tokens.") || strstr(list[i].name, ".wte.") ||
                     strncmp(list[i].name, "shared.", 7) == 0;
        total += params;
        experts += expert ? params : 0;
        bool table = strstr(list[i].name, "embedders.") || strstr(list[i].name, "oe_embed_tokens");
        tables += table ? params : 0;
        embedding += first ? params : 0;
    }
    cf_expected_free(list, n);
    double each = experts / (double)r->moe_layers / r->experts;
    double resident = total - experts - tables;
    double active = resident - embedding + each * r->top_k * r->moe_layers;
    all_near(r, total, active, each, resident);
}

int main(void)
{
    tmp_dir tmp;
    tmp_dir_init(&tmp);
    RUN(every_family_has_a_fixture);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char name[100];
        RUN_NAMED(rows[i].name, counts(&rows[i]));
        snprintf(name, sizeof name, "%s, opened", rows[i].name);
        RUN_NAMED(name, opens(&rows[i], &tmp));
    }
    tmp_dir_finish(&tmp);
    return check_done();
}
