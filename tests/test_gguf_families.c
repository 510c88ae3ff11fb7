/* Catches: a family whose GGUF keys, names, permutations or transpositions are mapped otherwise
 * than files have them. For architectures of which there is no file here: the checkpoints of
 * tests/fixtures/models are rewritten as GGUF by the tables of gguf_converters.h, which say what the
 * reference's converter does and share nothing with models/gguf*.c, and then held against their own
 * oracles. Also: a layout of LongCat that no file has, and old names of single experts.
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
#include "tests/gguf_converters.h"
#include "tests/support/gguf_write.h"
#include "tests/support/oracle.h"
#include "tests/support/tmpfiles.h"

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
