/* Catches: a broken checkpoint that crashes, hangs or opens; a refusal that does not say what and
 * how much; a failure while running that takes the engine with it.
 *
 * Every case damages a copy of a small checkpoint, or asks for something impossible, and expects a
 * sentence that names the thing and the number; where the cause goes away, the same engine must
 * then give the reference logits. Nothing may leak (AddressSanitizer). */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/family.h"
#include "runtime/base/align.h"
#include "runtime/base/log.h"
#include "runtime/engine.h"
#include "tests/check.h"
#include "tests/support/badmodel.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"

static const char two_shards[] = "tests/fixtures/models/longcat_flash";
static const char one_shard[] = "tests/fixtures/models/longcat_flash_yarn";
static const char ngram[] = "tests/fixtures/models/longcat_ngram";
#define SHARD   "model.safetensors"
#define SHARD_1 "model-00001-of-00002.safetensors"
#define SHARD_2 "model-00002-of-00002.safetensors"
#define INDEX   "model.safetensors.index.json"

/* ---- opening what cannot be opened ---- */

static bool sentence_whole(const char *msg)
{
    for (const char *c = msg; *c; c++)
        if ((unsigned char)*c < ' ')
            return false;
    return *msg && strlen(msg) < 500;
}

/* The model is refused with a sentence that has all these parts (NULL-terminated). */
static void model_refused(const char *dir, int code, ...)
{
    cf_model *m = NULL;
    cf_err err = {0};
    va_list parts;
    int rc = cf_model_open(&m, dir, &err);
    CHECK_INT(rc, code);
    CHECK_INT(err.code, code);
    CHECK(!m);
    CHECK(sentence_whole(err.msg));
    va_start(parts, code);
    for (const char *part; (part = va_arg(parts, const char *)) != NULL;)
        CHECK_HAS(err.msg, part);
    va_end(parts);
    cf_model_free(&m);
}

static cf_options options_plain(void)
{
    cf_options o;
    cf_options_init(&o);
    o.device = "ref";
    o.io = "pread";
    o.direct = false;
    o.threads = 1;
    o.ctx = 64;
    o.chunk = 8;
    o.vram_bytes = o.ram_bytes = 64u << 20;
    o.check = true;
    return o;
}

static void engine_refused(const char *dir, const cf_options *o, int code, ...)
{
    cf_engine *e = NULL;
    cf_err err = {0};
    va_list parts;
    CHECK_INT(cf_engine_open(&e, dir, o, &err), code);
    CHECK(!e);
    CHECK(sentence_whole(err.msg));
    va_start(parts, code);
    for (const char *part; (part = va_arg(parts, const char *)) != NULL;)
        CHECK_HAS(err.msg, part);
    va_end(parts);
    cf_engine_close(&e);
}

static void untouched_copy_opens(void)
{
    static const char *const from[] = {two_shards, one_shard, ngram};
    for (int i = 0; i < 3; i++) {
        bad_model b;
        cf_model *m = NULL;
        cf_err err = {0};
        bad_model_init(&b, from[i]);
        CHECK_INT(cf_model_open(&m, b.dir, &err), 0);
        CHECK_STR(err.msg, "");
        cf_model_free(&m);
        bad_model_finish(&b);
    }
}

static void no_model(void)
{
    bad_model b;
    bad_model_init(&b, one_shard);
    model_refused("/nonexistent/model", -ENOENT, "/nonexistent/model", "No such file", NULL);
    model_refused(bad_path(&b, SHARD), CF_EFORMAT, SHARD, "not a directory", NULL);
    unlink(bad_path(&b, SHARD));
    model_refused(b.dir, -ENOENT, b.dir, "no *.safetensors", NULL);
    unlink(bad_path(&b, "config.json"));
    model_refused(b.dir, -ENOENT, b.dir, "neither a config.json nor a GGUF file", NULL);
    char *long_path = malloc(6000);
    memset(long_path, 'x', 5999);
    long_path[5999] = 0;
    model_refused(long_path, -ENAMETOOLONG, "the model's path has 5999 bytes", "at most 3000",
                  NULL);
    free(long_path);
    bad_model_finish(&b);
}

/* ---- config.json ---- */

static void config_not_json(void)
{
    static const struct {
        const char *text, *part;
    } cases[] = {{"", "line 1"},
                 {"{\"architectures\": [", "line 1"},
                 {"{\n\n\"a\": nope}", "line 3"},
                 {"[]", "is not a JSON object"},
                 {"{\"vocab_size\": 1, \"vocab_size\": 2}", "duplicate"},
                 {"{\"vocab_size\": 1e999}", "overflow"},
                 {"{\"vocab_size\": 99999999999999999999}", "too big"},
                 {"{\"a\": \"\xff\xfe\"}", "decode byte 0xff"},
                 {"{}", "names neither"},
                 {"{\"architectures\": 5, \"model_type\": []}", "names neither"}};
    bad_model b;
    bad_model_init(&b, one_shard);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bad_file_write(&b, "config.json", cases[i].text);
        model_refused(b.dir, CF_EFORMAT, "config.json", cases[i].part, NULL);
    }
    char *deep = malloc(200001);
    memset(deep, '[', 200000);
    deep[200000] = 0;
    bad_file_write(&b, "config.json", deep);
    model_refused(b.dir, CF_EFORMAT, "config.json", "nested deeper than 1024", NULL);
    free(deep);
    CHECK_INT(truncate(bad_path(&b, "config.json"), (16 << 20) + 1), 0);
    model_refused(b.dir, CF_EFORMAT, "config.json", "16777217 bytes", "16777216", NULL);
    unlink(bad_path(&b, "config.json"));
    CHECK_INT(mkfifo(bad_path(&b, "config.json"), 0600), 0);
    model_refused(b.dir, CF_EFORMAT, "config.json", "not a regular file", NULL);
    bad_model_finish(&b);
}

/* Each number that a family reads: missing, of another type, out of range on both sides. */
static void number_refused(const bad_model *b, const char *key, double min, double max, bool whole,
                           bool required)
{
    static const char *const no_numbers[] = {"\"1\"", "true", "[1]", "{}"};
    char quoted[80], text[64], lower[32], upper[32];
    json_t *config = json_load_file(bad_path(b, "config.json"), 0, NULL);
    char *before = json_dumps(config, 0);
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    snprintf(lower, sizeof lower, "%.17g", min);
    snprintf(upper, sizeof upper, "%.17g", max);
    if (required)
        for (int i = 0; i < 2; i++) {
            bad_json_set(b, "config.json", key, i ? "null" : NULL);
            model_refused(b->dir, CF_EFORMAT, "config.json", quoted, "is missing", NULL);
        }
    for (size_t i = 0; i < sizeof no_numbers / sizeof *no_numbers; i++) {
        bad_json_set(b, "config.json", key, no_numbers[i]);
        model_refused(b->dir, CF_EFORMAT, "config.json", quoted, "is not a number", NULL);
    }
    const double numbers[] = {min - 1, -9007199254740993.0, 2 * max + 1, 1e300, -1e300};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char said[32];
        snprintf(text, sizeof text, "%.17g", numbers[i]);
        snprintf(said, sizeof said, "is %.17g", numbers[i]);
        bad_json_set(b, "config.json", key, text);
        model_refused(b->dir, CF_EFORMAT, "config.json", quoted, said, lower, upper, NULL);
    }
    if (whole) {
        snprintf(text, sizeof text, "%.17g", min + 0.5);
        bad_json_set(b, "config.json", key, text);
        model_refused(b->dir, CF_EFORMAT, quoted, text, "must be a whole number", NULL);
    }
    bad_file_write(b, "config.json", before);
    free(before);
    json_decref(config);
}

static const struct {
    const char *key;
    double min, max;
    bool whole, required;
} numbers[] = {
    {"vocab_size", 1, 1 << 24, true, true},
    {"hidden_size", 1, 1 << 16, true, true},
    {"num_layers", 1, 1024, true, true},
    {"num_attention_heads", 1, 1024, true, true},
    {"q_lora_rank", 1, 1 << 16, true, true},
    {"kv_lora_rank", 1, 1 << 14, true, true},
    {"qk_nope_head_dim", 1, 4096, true, true},
    {"qk_rope_head_dim", 2, CF_MAX_ROT, true, true},
    {"v_head_dim", 1, 4096, true, true},
    {"ffn_hidden_size", 1, 1 << 20, true, true},
    {"expert_ffn_hidden_size", 1, 1 << 20, true, true},
    {"n_routed_experts", 1, CF_ROUTE_MAX_EXPERTS, true, true},
    {"zero_expert_num", 0, CF_ROUTE_MAX_EXPERTS, true, false},
    {"moe_topk", 1, CF_ROUTE_MAX_K, true, true},
    {"max_position_embeddings", 1, 1 << 30, true, true},
    {"rms_norm_eps", 0, 1, false, true},
    {"rope_theta", 1.0001, 1e12, false, true},
    {"routed_scaling_factor", 1e-6, 1e6, false, false},
};

static void config_numbers(void)
{
    bad_model b;
    bad_model_init(&b, two_shards);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && !check_case_failed; i++)
        number_refused(&b, numbers[i].key, numbers[i].min, numbers[i].max, numbers[i].whole,
                       numbers[i].required);
    bad_model_finish(&b);
    bad_model_init(&b, one_shard);
    const char *const factor = "rope_scaling/factor";
    bad_json_set(&b, "config.json", factor, NULL);
    model_refused(b.dir, CF_EFORMAT, "\"factor\" is missing", NULL);
    bad_json_set(&b, "config.json", factor, "0.5");
    model_refused(b.dir, CF_EFORMAT, "\"factor\" is 0.5, must be 1 to 1000000", NULL);
    bad_model_finish(&b);
    bad_model_init(&b, ngram);
    number_refused(&b, "ngram_vocab_size_ratio", 0.01, 1e4, false, false);
    number_refused(&b, "emb_neighbor_num", 2, CF_MAX_NGRAM, true, false);
    number_refused(&b, "emb_split_num", 1, 64, true, false);
    bad_model_finish(&b);
}

/* In range, but not what the tensors are: the sentence names a tensor and both shapes, or the key.
 */
static void config_contradicts_tensors(void)
{
    static const struct {
        const char *from, *key, *value, *part, *number;
    } cases[] = {
        {two_shards, "vocab_size", "204", "model.embed_tokens.weight", "[204, 72]"},
        {two_shards, "hidden_size", "71", "has shape [203, 72]", "[203, 71]"},
        {two_shards, "num_layers", "3", "model.layers.2.", "is missing"},
        {two_shards, "num_layers", "1", "does not know tensor", "model.layers.1."},
        {two_shards, "num_attention_heads", "4", "q_b_proj", "[80, 36]"},
        {two_shards, "q_lora_rank", "35", "q_a_proj", "[35, 72]"},
        {two_shards, "kv_lora_rank", "23", "kv_a_proj", "[31, 72]"},
        {two_shards, "qk_nope_head_dim", "13", "q_b_proj", "[63, 36]"},
        {two_shards, "v_head_dim", "9", "kv_b_proj", "[63, 24]"},
        {two_shards, "qk_rope_head_dim", "7", "7 rotary dimensions", "even"},
        {two_shards, "ffn_hidden_size", "47", "mlps.0.gate_proj", "[47, 72]"},
        {two_shards, "expert_ffn_hidden_size", "17", "experts.0.gate_proj", "[17, 72]"},
        {two_shards, "n_routed_experts", "11", "router.classifier", "[17, 72]"},
        {two_shards, "n_routed_experts", "4095", "4095 routed", "6 zero"},
        {two_shards, "zero_expert_num", "5", "router.classifier", "[15, 72]"},
        {two_shards, "moe_topk", "11", "11 experts of 10 routed", ""},
        {two_shards, "tie_word_embeddings", "true", "does not know tensor", "lm_head.weight"},
        {two_shards, "tie_word_embeddings", "1", "tie_word_embeddings", "neither true nor false"},
        {two_shards, "bos_token_id", "203", "\"bos_token_id\" is 203", "0 to 202"},
        {two_shards, "eos_token_id", "-1", "\"eos_token_id\" is -1", "0 to 202"},
        {two_shards, "eos_token_id", "[1, \"x\"]", "\"eos_token_id\"", "is not a number"},
        {two_shards, "eos_token_id", "[1,2,3,4,5,6,7,8,9]", "lists 9 ids", "at most 8"},
        {two_shards, "hidden_act", "\"gelu\"", "\"hidden_act\" is \"gelu\"", "only \"silu\""},
        {two_shards, "hidden_act", "3", "\"hidden_act\" is not a text", "only \"silu\""},
        {two_shards, "attention_method", "\"MHA\"", "\"attention_method\"", "only \"MLA\""},
        {two_shards, "zero_expert_type", "\"copy\"", "\"zero_expert_type\"", "only \"identity\""},
        {two_shards, "attention_bias", "true", "\"attention_bias\" is true", "only false"},
        {two_shards, "router_bias", "true", "\"router_bias\" is true", "only false"},
        {two_shards, "norm_topk_prob", "\"no\"", "\"norm_topk_prob\"", "neither true nor false"},
        {two_shards, "rope_scaling", "5", "\"rope_scaling\"", "is not an object"},
        {two_shards, "rope_scaling", "{\"factor\": 2}", "\"rope_scaling\"", "no \"rope_type\""},
        {two_shards, "rope_scaling", "{\"type\": \"su\\u001b[2Jper\"}", "\"su?[2Jper\"",
         "known: default, linear, yarn"},
        {two_shards, "rope_parameters", "{\"rope_theta\": \"x\"}", "\"rope_theta\"",
         "is not a number"},
        {ngram, "ngram_vocab_size_ratio", "6", "ngram_embeddings.embedders.0.weight", "[1267, 8]"},
        {ngram, "emb_neighbor_num", "3", "embedders.0.weight", "[1056, 12]"},
        {ngram, "emb_split_num", "7", "hidden_size 96", "21 n-gram tables"},
        {ngram, "eos_token_id", "[1, 2]", "n-grams end at one eos_token_id", "there are 2"},
        {ngram, "eos_token_id", "null", "n-grams end at one eos_token_id", "there are 0"},
    };
    bad_model b;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bad_model_init(&b, cases[i].from);
        bad_json_set(&b, "config.json", cases[i].key, cases[i].value);
        model_refused(b.dir, CF_EFORMAT, cases[i].part, cases[i].number, NULL);
        bad_model_finish(&b);
    }
}

static void config_unknown_family(void)
{
    bad_model b;
    bad_model_init(&b, two_shards);
    bad_json_set(&b, "config.json", "architectures", "[\"Nobody\\nForCausalLM\"]");
    model_refused(b.dir, CF_EFORMAT, "architecture \"Nobody?ForCausalLM\" is unknown",
                  "known are longcat, mixtral,", NULL);
    bad_json_set(&b, "config.json", "architectures", NULL);
    bad_json_set(&b, "config.json", "model_type", "\"nobody\"");
    model_refused(b.dir, CF_EFORMAT, "model_type \"nobody\" is unknown", NULL);
    /* An unknown family is a better answer than a defect of its shards. */
    unlink(bad_path(&b, SHARD_1));
    model_refused(b.dir, CF_EFORMAT, "model_type \"nobody\" is unknown", NULL);
    bad_model_finish(&b);
}

/* Few bytes of config that describe a model beyond all bounds: refused soon, in little memory. */
static void config_absurd_size(void)
{
    json_t *config = json_load_file("tests/fixtures/models/longcat_flash/config.json", 0, NULL);
    cf_expected *list = NULL;
    uint64_t n = 0;
    cf_err err = {0};
    json_object_set_new(config, "num_layers", json_integer(1024));
    json_object_set_new(config, "n_routed_experts", json_integer(4090));
    CHECK_INT(cf_model_expected(config, "config.json", &list, &n, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "69530 expert records");
    CHECK_HAS(err.msg, "at most 65536");
    CHECK(!list);
    json_decref(config);
}

/* ---- shards ---- */

static void shard_truncated(void)
{
    bad_model b;
    struct stat st;
    char has[64];
    bad_model_init(&b, one_shard);
    CHECK_INT(stat(bad_path(&b, SHARD), &st), 0);
    CHECK_INT(truncate(bad_path(&b, SHARD), st.st_size - 1), 0);
    model_refused(b.dir, CF_EFORMAT, SHARD, "tensor \"", "ends at data byte", "truncated?", NULL);
    CHECK_INT(truncate(bad_path(&b, SHARD), 100), 0);
    snprintf(has, sizeof has, "but %d bytes follow", 92);
    model_refused(b.dir, CF_EFORMAT, SHARD, "header length", has, NULL);
    CHECK_INT(truncate(bad_path(&b, SHARD), 7), 0);
    model_refused(b.dir, CF_EFORMAT, SHARD, "7 bytes, too few", NULL);
    CHECK_INT(truncate(bad_path(&b, SHARD), 0), 0);
    model_refused(b.dir, CF_EFORMAT, SHARD, "0 bytes, too few", NULL);
    bad_model_finish(&b);
}

static void header_length_wrong(void)
{
    static const struct {
        int64_t more;
        const char *part;
    } cases[] = {{10000000, "bytes follow (truncated?)"},
                 {INT64_MAX / 2, "at most 100000000 are allowed"},
                 {-1, "header"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bad_model b;
        bad_model_init(&b, one_shard);
        json_t *header = bad_header_load(&b, SHARD);
        bad_header_store(&b, SHARD, header, cases[i].more);
        model_refused(b.dir, CF_EFORMAT, SHARD, cases[i].part, NULL);
        json_decref(header);
        bad_model_finish(&b);
    }
}

/* One field of one tensor's header entry replaced. */
static void header_case(const char *tensor, const char *field, const char *value, int code,
                        const char *part, const char *number)
{
    bad_model b;
    bad_model_init(&b, one_shard);
    json_t *header = bad_header_load(&b, SHARD);
    json_t *entry = json_object_get(header, tensor);
    CHECK(json_is_object(entry));
    if (value)
        json_object_set_new(entry, field, json_loads(value, JSON_DECODE_ANY, NULL));
    else
        json_object_del(entry, field);
    bad_header_store(&b, SHARD, header, 0);
    model_refused(b.dir, code, tensor, part, number, NULL);
    json_decref(header);
    bad_model_finish(&b);
}

static void header_entries(void)
{
    static const char norm[] = "model.norm.weight",
                      gate[] = "model.layers.0.mlp.experts.3.gate_proj.weight";
    header_case(norm, "dtype", "\"I16\"", CF_EFORMAT, "has dtype I16", "known: F32 F16 BF16");
    header_case(norm, "dtype", "\"Q9\"", CF_EFORMAT, "Q9", "");
    header_case(norm, "dtype", NULL, CF_EFORMAT, "dtype", "");
    header_case(norm, "dtype", "\"F32\"", CF_EFORMAT, "takes 288 bytes", "span 144");
    header_case(gate, "dtype", "\"F16\"", CF_EFORMAT, "has dtype F16",
                "expert 0 of its layer has BF16");
    header_case(gate, "shape", "[72, 16]", CF_EFORMAT, "has shape [72, 16]", "implies [16, 72]");
    header_case(gate, "shape", "[1152]", CF_EFORMAT, "has shape [1152]", "implies [16, 72]");
    header_case(gate, "shape", "[1, 16, 72]", CF_EFORMAT, "has shape [1, 16, 72]", "");
    header_case(gate, "shape", "[16, -72]", CF_EFORMAT, "shape", "-72");
    header_case(gate, "shape", "[4294967296, 4294967296, 4294967296]", CF_EFORMAT, "overflows", "");
    header_case(gate, "data_offsets", "[0, 4611686018427387904]", CF_EFORMAT, "ends at data byte",
                "4611686018427387904");
    header_case(gate, "data_offsets", "[2304, 0]", CF_EFORMAT, "before their begin 2304", "");
    header_case(gate, "data_offsets", "[0]", CF_EFORMAT, "data_offsets", "");
    header_case(gate, "data_offsets", "[0, 2304]", CF_EFORMAT, "overlap", "");
}

static void tensor_missing_or_unknown(void)
{
    static const char gate[] = "model.layers.1.mlp.experts.9.gate_proj.weight";
    bad_model b;
    bad_model_init(&b, one_shard);
    json_t *header = bad_header_load(&b, SHARD);
    json_t *entry = json_incref(json_object_get(header, gate));
    json_object_del(header, gate);
    bad_header_store(&b, SHARD, header, 0);
    model_refused(b.dir, CF_EFORMAT, b.dir, "tensor", gate, "is missing", NULL);
    json_object_set(header, gate, entry);
    json_object_del(header, "model.norm.weight");
    bad_header_store(&b, SHARD, header, 0);
    model_refused(b.dir, CF_EFORMAT, "tensor model.norm.weight is missing", NULL);
    bad_model_finish(&b);

    bad_model_init(&b, one_shard);
    json_decref(header);
    header = bad_header_load(&b, SHARD);
    json_object_set_new(
        header, "model.surprise",
        json_pack("{s:s s:[i] s:[i,i]}", "dtype", "F32", "shape", 0, "data_offsets", 0, 0));
    bad_header_store(&b, SHARD, header, 0);
    model_refused(b.dir, CF_EFORMAT, "does not know tensor model.surprise", NULL);
    json_decref(entry);
    json_decref(header);
    bad_model_finish(&b);
}

static void shards_and_index(void)
{
    bad_model b;
    bad_model_init(&b, two_shards);
    CHECK_INT(unlink(bad_path(&b, SHARD_2)), 0);
    model_refused(b.dir, -ENOENT, SHARD_2, "No such file", NULL);
    CHECK_INT(mkdir(bad_path(&b, SHARD_2), 0755), 0);
    model_refused(b.dir, CF_EFORMAT, SHARD_2, "not a regular file", NULL);
    bad_model_finish(&b);

    bad_model_init(&b, two_shards);
    bad_json_set(&b, INDEX, "weight_map/model.norm.weight", "\"../" SHARD_1 "\"");
    model_refused(b.dir, CF_EFORMAT, INDEX, "model.norm.weight", "not a plain file name", NULL);
    bad_json_set(&b, INDEX, "weight_map/model.norm.weight", "7");
    model_refused(b.dir, CF_EFORMAT, INDEX, "model.norm.weight", NULL);
    bad_json_set(&b, INDEX, "weight_map/model.norm.weight", "\"" SHARD_1 "\"");
    bad_json_set(&b, INDEX, "weight_map/lm_head.weight", "\"" SHARD_2 "\"");
    model_refused(b.dir, CF_EFORMAT, INDEX, "is said to be in", "but is in", NULL);
    bad_json_set(&b, INDEX, "weight_map", "{}");
    model_refused(b.dir, CF_EFORMAT, INDEX, "weight_map", NULL);
    bad_file_write(&b, INDEX, "{");
    model_refused(b.dir, CF_EFORMAT, INDEX, NULL);
    unlink(bad_path(&b, INDEX));
    model_refused(b.dir, CF_EFORMAT, b.dir, "holds 2 *.safetensors files", NULL);
    bad_model_finish(&b);
}

/* Routers decide which bytes are read: they must be numbers. The rest may be anything. */
static void router_not_finite(void)
{
    static const char weight[] = "model.layers.1.mlp.router.classifier.weight";
    static const char bias[] = "model.layers.0.mlp.router.e_score_correction_bias";
    const float bad[] = {NAN, INFINITY, -INFINITY};
    cf_options o = options_plain();
    for (int i = 0; i < 3; i++) {
        bad_model b;
        bad_model_init(&b, two_shards);
        bad_tensor_poke(&b, bias, 4 * 15, &bad[i], 4);
        engine_refused(b.dir, &o, CF_EFORMAT, bias, "element 15 is not a finite number", NULL);
        bad_model_finish(&b);
        bad_model_init(&b, two_shards);
        bad_tensor_poke(&b, weight, 4 * 777, &bad[i], 4);
        engine_refused(b.dir, &o, CF_EFORMAT, weight, "element 777 is not a finite number", NULL);
        bad_model_finish(&b);
    }
    bad_model b; /* stored in bfloat16 */
    const uint16_t nan = 0x7fc0;
    bad_model_init(&b, one_shard);
    bad_tensor_poke(&b, weight, 2 * 3, &nan, 2);
    engine_refused(b.dir, &o, CF_EFORMAT, weight, "element 3 is not a finite number", NULL);
    bad_model_finish(&b);
}

static void tokenizer_bad(void)
{
    cf_options o = options_plain();
    bad_model b;
    bad_model_init(&b, two_shards);
    bad_file_write(&b, "tokenizer.json", "{\"model\":");
    engine_refused(b.dir, &o, CF_EFORMAT, "tokenizer.json", NULL);
    bad_file_write(&b, "tokenizer.json", "{\"model\": {\"type\": \"Unigram\", \"vocab\": []}}");
    engine_refused(b.dir, &o, CF_EFORMAT, "tokenizer.json", NULL);
    unlink(bad_path(&b, "tokenizer.json"));
    CHECK_INT(symlink("/proc/self/cwd/models/demo/tokenizer.json", bad_path(&b, "tokenizer.json")),
              0);
    engine_refused(b.dir, &o, CF_EFORMAT, "tokenizer.json", "has 4096 entries", "has 203", NULL);
    bad_model_finish(&b);
}

static void options_unknown(void)
{
    cf_options o = options_plain();
    o.device = "abacus";
    engine_refused(two_shards, &o, -EINVAL, "abacus", NULL);
    o.device = "ref:1";
    engine_refused(two_shards, &o, CF_EDEVICE, "ref:1", NULL);
    o = options_plain();
    o.policy = "fifo";
    engine_refused(two_shards, &o, -EINVAL, "policy \"fifo\" is unknown", NULL);
    o = options_plain();
    o.io = "smoke";
    engine_refused(two_shards, &o, -EINVAL, "\"smoke\" is unknown", NULL);
    o = options_plain();
    o.kv = "f8";
    engine_refused(two_shards, &o, -EINVAL, "\"f8\" is unknown", NULL);
    o = options_plain();
    o.memory = "vast";
    engine_refused(two_shards, &o, -EINVAL, "\"vast\" is unknown", NULL);
    o = options_plain();
    o.ctx = 131073;
    engine_refused(two_shards, &o, CF_ELIMIT, "--ctx 131073", "131072 positions", NULL);
    o = options_plain();
    o.chunk = 65537;
    engine_refused(two_shards, &o, CF_ELIMIT, "--chunk 65537", "65536", NULL);
}

/* The smallest budget that would do is named, does, and one byte less does not. */
static void budget_too_small(void)
{
    for (int ram = 0; ram < 2; ram++) {
        cf_options o = options_plain();
        uint64_t *budget = ram ? &o.ram_bytes : &o.vram_bytes;
        const char *name = ram ? "--ram 1 is too small" : "--vram 1 is too small";
        cf_engine *e = NULL;
        cf_err err = {0};
        unsigned long long needed = 0;
        *budget = 1;
        CHECK_INT(cf_engine_open(&e, two_shards, &o, &err), CF_ELIMIT);
        CHECK_HAS(err.msg, name);
        const char *said = strchr(err.msg, ':');
        CHECK(said && sscanf(said, ": %llu bytes are needed", &needed) == 1);
        *budget = needed;
        err = (cf_err){0};
        CHECK_INT(cf_engine_open(&e, two_shards, &o, &err), 0);
        CHECK_STR(err.msg, "");
        if (e) {
            cf_stats stats;
            cf_engine_get_stats(e, &stats);
            CHECK(ram ? stats.ram_peak <= needed : stats.vram_peak <= needed);
            CHECK(stats.slots >= 8);
        }
        cf_engine_close(&e);
        *budget = needed - 1;
        char number[32];
        snprintf(number, sizeof number, "%llu", needed);
        engine_refused(two_shards, &o, CF_ELIMIT, "is too small", number, NULL);
    }
}

/* ---- while running ---- */

typedef struct running {
    bad_model model;
    sized_model sized;
    const oracle *expected;
    cf_engine *engine;
    cf_session *session;
} running;

/* A copy of a checkpoint, opened with the fewest slots: every pass reads experts. */
static bool running_open(running *r, cf_options o)
{
    cf_err err = {0};
    *r = (running){.expected = oracle_load(two_shards)};
    bad_model_init(&r->model, two_shards);
    if (r->expected && sized_model_open(&r->sized, r->model.dir))
        r->engine = sized_open(&r->sized, &o, r->sized.min_slots, false);
    if (r->engine && cf_session_create(&r->session, r->engine, &err) < 0)
        printf("    %s\n", err.msg);
    CHECK(r->session);
    return r->session != NULL;
}

static void running_close(running *r)
{
    cf_session_destroy(&r->session);
    cf_engine_close(&r->engine);
    sized_model_close(&r->sized);
    bad_model_finish(&r->model);
    oracle_free((oracle *)(uintptr_t)r->expected);
}

/* From whatever state the session is in: the prompt gives the reference logits. */
static void running_works(running *r)
{
    cf_err err = {0};
    cf_session_rewind(r->session, 0);
    oracle_run *run = oracle_run_new(r->expected);
    CHECK_INT(oracle_run_prompt(run, r->session, 64, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK(oracle_logits_error(r->expected, run) <= 2e-3);
    CHECK_INT(oracle_expert_differences(r->expected, run), 0);
    oracle_run_free(run);
    cf_stats stats;
    cf_engine_get_stats(r->engine, &stats);
    CHECK(stats.all.misses > 0); /* else nothing was read */
}

/* From the beginning: the prompt fails with this. */
static void running_fails(running *r, int code, const char *part, const char *number)
{
    cf_err err = {0};
    cf_session_rewind(r->session, 0);
    CHECK_INT(cf_session_extend(r->session, r->expected->prompt, r->expected->n_prompt,
                                CF_PHASE_PROMPT, NULL, &err),
              code);
    CHECK_INT(err.code, code);
    CHECK_HAS(err.msg, part);
    CHECK_HAS(err.msg, number);
    CHECK(sentence_whole(err.msg));
    CHECK(!cf_session_logits(r->session));
    CHECK_INT(cf_session_length(r->session) % 8, 0); /* whole chunks only */
}

static void shard_truncated_while_running(void)
{
    running r;
    struct stat st;
    char text[64];
    if (running_open(&r, options_plain())) {
        running_works(&r);
        const char *path = bad_path(&r.model, SHARD_1);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        CHECK_INT(fstat(fd, &st), 0);
        size_t bytes = (size_t)st.st_size;
        char *data = malloc(bytes);
        CHECK(pread(fd, data, bytes, 0) == (ssize_t)bytes);
        CHECK_INT(ftruncate(fd, st.st_size / 2), 0);
        snprintf(text, sizeof text, "%zu bytes when opened, now %zu", bytes, bytes / 2);
        running_fails(&r, CF_ECHANGED, SHARD_1, text);
        running_fails(&r, CF_ECHANGED, SHARD_1, text); /* it stays so */
        /* Restored, but rewritten: nobody can know that it is the same. */
        CHECK(pwrite(fd, data, bytes, 0) == (ssize_t)bytes);
        running_fails(&r, CF_ECHANGED, SHARD_1, "rewritten while in use");
        /* Restored as it was, modification time and all. */
        CHECK_INT(futimens(fd, (const struct timespec[]){st.st_atim, st.st_mtim}), 0);
        running_works(&r);
        free(data);
        close(fd);
    }
    running_close(&r);
}

static void shard_replaced_while_running(void)
{
    running r;
    if (running_open(&r, options_plain())) {
        char path[320], aside[320];
        snprintf(path, sizeof path, "%s", bad_path(&r.model, SHARD_2));
        snprintf(aside, sizeof aside, "%s", bad_path(&r.model, "aside"));
        CHECK_INT(rename(path, aside), 0);
        running_fails(&r, CF_ECHANGED, SHARD_2, "disappeared while in use");
        bad_file_write(&r.model, SHARD_2, "something else");
        running_fails(&r, CF_ECHANGED, SHARD_2, "was replaced while in use");
        CHECK_INT(rename(aside, path), 0);
        running_works(&r);
    }
    running_close(&r);
}

/* A byte of an expert that the prompt chooses, in a page that nothing resident shares. */
static bool expert_byte_find(const oracle *o, uint32_t *file, uint64_t *off)
{
    cf_model *m = NULL;
    bool found = false;
    if (cf_model_open(&m, two_shards, NULL) < 0)
        return false;
    for (uint32_t i = 0; i < o->n_prompt * o->k && !found; i++) {
        if (o->experts[i] >= m->moe[0].experts)
            continue;
        const cf_extent *x = &m->moe[0].extents[o->experts[i] * CF_EXPERT_PIECES + CF_UP];
        *file = x->file;
        *off = x->off + x->bytes / 2;
        uint64_t page = cf_align_down(*off, 4096);
        found = true;
        for (uint32_t w = 0; w < m->n_weights; w++) {
            const cf_extent *y = &m->weights[w].extent;
            found = found && (y->file != x->file || cf_align_up(y->off + y->bytes, 4096) <= page ||
                              cf_align_down(y->off, 4096) > page);
        }
    }
    cf_model_free(&m);
    return found;
}

static void record_unreadable_once(void)
{
    const oracle *o = oracle_load(two_shards);
    uint32_t file = 0;
    uint64_t off = 0;
    REQUIRE(o && expert_byte_find(o, &file, &off));
    oracle_free((oracle *)(uintptr_t)o);
    cf_io_fault fault = {.eio_file = file, .eio_off = (int64_t)off, .eio_times = 2};
    cf_options options = options_plain();
    options.fault = &fault;
    running r;
    if (running_open(&r, options)) {
        running_fails(&r, -EIO, file ? SHARD_2 : SHARD_1, "offset");
        running_works(&r);
    }
    running_close(&r);
}

/* ---- O_DIRECT refused: open() of storage/files.c goes through here ---- */

static bool direct_refused;
int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);

int __wrap_open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int mode = flags & O_CREAT ? va_arg(args, int) : 0;
    va_end(args);
    if (direct_refused && (flags & O_DIRECT)) {
        errno = EINVAL;
        return -1;
    }
    return __real_open(path, flags, mode);
}

static void o_direct_refused(void)
{
    running r;
    cf_options o = options_plain();
    tmp_dir dir;
    char log[4096] = "";
    o.direct = true;
    tmp_dir_init(&dir);
    int file = open(tmp_path(&dir, "log"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int keep = dup(STDERR_FILENO);
    fflush(stderr);
    dup2(file, STDERR_FILENO);
    direct_refused = true;
    bool opened = running_open(&r, o);
    direct_refused = false;
    dup2(keep, STDERR_FILENO);
    close(keep);
    CHECK(pread(file, log, sizeof log - 1, 0) > 0);
    close(file);
    tmp_dir_finish(&dir);
    CHECK(opened);
    if (opened) {
        CHECK(!r.engine->files.direct);
        CHECK_HAS(log, "O_DIRECT is not available");
        CHECK_HAS(log, SHARD_1);
        running_works(&r);
    }
    running_close(&r);
}

/* ---- requests that cannot be served ---- */

static void ids_out_of_range(void)
{
    running r;
    if (running_open(&r, options_plain())) {
        const int32_t ids[] = {1, 2, 203}, negative[] = {-1};
        cf_err err = {0};
        CHECK_INT(cf_session_extend(r.session, ids, 3, CF_PHASE_PROMPT, NULL, &err), -EINVAL);
        CHECK_HAS(err.msg, "token id 203 (number 2) is outside the vocabulary of 203");
        err = (cf_err){0};
        CHECK_INT(cf_session_extend(r.session, negative, 1, CF_PHASE_PROMPT, NULL, &err), -EINVAL);
        CHECK_HAS(err.msg, "token id -1");
        err = (cf_err){0};
        CHECK_INT(cf_session_extend(r.session, ids, 0, CF_PHASE_PROMPT, NULL, &err), -EINVAL);
        CHECK_HAS(err.msg, "at least one token");
        CHECK_INT(cf_session_length(r.session), 0);
        running_works(&r);
    }
    running_close(&r);
}

static void context_exceeded(void)
{
    running r;
    cf_options o = options_plain();
    o.ctx = 40;
    if (running_open(&r, o)) {
        cf_err err = {0};
        int32_t ids[41] = {0};
        CHECK_INT(cf_session_extend(r.session, ids, 41, CF_PHASE_PROMPT, NULL, &err), CF_ELIMIT);
        CHECK_HAS(err.msg, "41 tokens after 0 exceed the context of 40");
        CHECK_INT(cf_session_length(r.session), 0);
        CHECK_INT(cf_session_extend(r.session, ids, 40, CF_PHASE_PROMPT, NULL, NULL), 0);
        err = (cf_err){0};
        CHECK_INT(cf_session_extend(r.session, ids, 1, CF_PHASE_DECODE, NULL, &err), CF_ELIMIT);
        CHECK_HAS(err.msg, "1 tokens after 40 exceed the context of 40");
        CHECK_INT(cf_session_length(r.session), 40);
        running_works(&r);
    }
    running_close(&r);
}

static void sessions_exhausted(void)
{
    running r;
    cf_options o = options_plain();
    o.sessions = 2;
    if (running_open(&r, o)) {
        cf_session *second = NULL, *third = NULL;
        cf_err err = {0};
        CHECK_INT(cf_session_create(&second, r.engine, &err), 0);
        CHECK_INT(cf_session_create(&third, r.engine, &err), CF_ELIMIT);
        CHECK_HAS(err.msg, "opened for 2 sessions, all are in use");
        CHECK(!third);
        cf_session_destroy(&second);
        CHECK_INT(cf_session_create(&third, r.engine, NULL), 0);
        cf_session_destroy(&third);
        running_works(&r);
    }
    running_close(&r);
}

/* What was rewound and given again, in the same parts, is the same to the bit. */
static void rewind_and_again(void)
{
    running r;
    if (running_open(&r, options_plain())) {
        const oracle *o = r.expected;
        float *first = malloc(o->vocab * sizeof *first);
        CHECK_INT(cf_session_extend(r.session, o->prompt, 11, CF_PHASE_PROMPT, NULL, NULL), 0);
        CHECK_INT(cf_session_extend(r.session, o->prompt + 11, 9, CF_PHASE_PROMPT, NULL, NULL), 0);
        memcpy(first, cf_session_logits(r.session), o->vocab * sizeof *first);
        CHECK_INT(cf_session_rewind(r.session, 99), 20); /* beyond the end: stays */
        CHECK(!cf_session_logits(r.session));
        CHECK_INT(cf_session_extend(r.session, o->prompt, 13, CF_PHASE_PROMPT, NULL, NULL), 0);
        CHECK_INT(cf_session_rewind(r.session, 11), 11);
        CHECK_INT(cf_session_extend(r.session, o->prompt + 11, 9, CF_PHASE_PROMPT, NULL, NULL), 0);
        const float *again = cf_session_logits(r.session);
        CHECK(again && memcmp(first, again, o->vocab * sizeof *first) == 0);
        free(first);
        running_works(&r);
    }
    running_close(&r);
}

static void cancel_at_second_chunk(void *user, uint32_t layer, uint32_t position,
                                   const uint32_t *ids, const float *weights, uint32_t k)
{
    (void)ids, (void)weights, (void)k;
    if (layer == 1 && position == 8)
        cf_engine_cancel(user);
}

/* Interrupted in the middle of a chunk, with reads on their way; then from there on. */
static void cancelled_in_prefill(void)
{
    running r;
    if (running_open(&r, options_plain())) {
        const oracle *o = r.expected;
        cf_err err = {0};
        cf_outputs out = {.route = cancel_at_second_chunk, .user = r.engine};
        CHECK_INT(cf_session_extend(r.session, o->prompt, 30, CF_PHASE_PROMPT, &out, &err),
                  -ECANCELED);
        CHECK_STR(err.msg, "interrupted");
        CHECK_INT(cf_session_length(r.session), 8);
        CHECK_STR(cf_cache_verify(r.engine->cache) ? "broken" : "whole", "whole");
        err = (cf_err){0};
        CHECK_INT(cf_session_extend(r.session, o->prompt + 8, 1, CF_PHASE_PROMPT, NULL, &err),
                  -ECANCELED); /* stays set */
        cf_engine_resume(r.engine);
        CHECK_INT(cf_session_extend(r.session, o->prompt + 8, o->n_prompt - 8, CF_PHASE_PROMPT,
                                    NULL, NULL),
                  0);
        const float *logits = cf_session_logits(r.session);
        const float *want = o->logits + (size_t)(o->n_prompt - 1) * o->vocab;
        for (uint32_t v = 0; logits && v < o->vocab; v++)
            CHECK(fabs((double)logits[v] - (double)want[v]) <= 2e-3 * o->logits_std);
        CHECK(logits);
        running_works(&r);
    }
    running_close(&r);
}

int main(void)
{
    RUN(untouched_copy_opens);
    RUN(no_model);
    RUN(config_not_json);
    RUN(config_numbers);
    RUN(config_contradicts_tensors);
    RUN(config_unknown_family);
    RUN(config_absurd_size);
    RUN(shard_truncated);
    RUN(header_length_wrong);
    RUN(header_entries);
    RUN(tensor_missing_or_unknown);
    RUN(shards_and_index);
    RUN(router_not_finite);
    RUN(tokenizer_bad);
    RUN(options_unknown);
    RUN(budget_too_small);
    RUN(shard_truncated_while_running);
    RUN(shard_replaced_while_running);
    RUN(record_unreadable_once);
    RUN(o_direct_refused);
    RUN(ids_out_of_range);
    RUN(context_exceeded);
    RUN(sessions_exhausted);
    RUN(rewind_and_again);
    RUN(cancelled_in_prefill);
    return check_done();
}
