/* Catches: a binding, budget, loader, cache or row table that counts the bytes of block formats as
 * if they were elements; a number that depends on how a weight is stored; a router whose blocks
 * hold no number; a device that lacks a format and says so only in its first op, or that computes
 * something else than ref in one that it has.
 *
 * A small checkpoint is stored anew in block formats, all roles in turn, and once more in F32 with
 * the values of those blocks: the same plan over both must give the same bits. */
#include <fcntl.h>
#include <math.h>
#include <unistd.h>

#include "gpu/formats.h"
#include "gpu/gpu.h"
#include "models/family.h"
#include "runtime/base/align.h"
#include "runtime/engine.h"
#include "runtime/quantise.h"
#include "storage/catalogue_build.h"
#include "storage/safetensors.h"
#include "tests/check.h"
#include "tests/support/oracle.h"
#include "tests/support/tmpfiles.h"

static const char checkpoint[] = "tests/fixtures/models/longcat_ngram";

/* ---- a checkpoint stored anew ---- */

/* Which format a tensor gets; the file's own for CF_FORMAT_COUNT. */
typedef cf_format choose_fn(const cf_tensor *t);

/* A catalogue being written: one file, whose bytes may be wanted too. */
struct stored {
    cf_catalogue *cat;
    uint8_t *data;
    uint64_t bytes, room;
    tmp_dir dir;
};

static uint8_t *tensor_read(const cf_catalogue *cat, const cf_tensor *t)
{
    uint8_t *raw = malloc(t->extent.bytes + 1);
    int fd = open(cf_catalogue_path(cat, t->extent.file), O_RDONLY);
    must(fd >= 0);
    must(pread(fd, raw, t->extent.bytes, (off_t)t->extent.off) == (ssize_t)t->extent.bytes);
    close(fd);
    return raw;
}

static uint64_t values_of(const cf_tensor *t)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->shape[i];
    return n;
}

/* `bytes` bytes at the end of the data, at a multiple of 2 only: records must be settled. */
static uint64_t data_grow(struct stored *s, uint64_t bytes)
{
    uint64_t off = cf_align_up(s->bytes, 2);
    s->bytes = off + bytes;
    if (s->bytes > s->room) {
        s->room = 2 * s->bytes;
        s->data = realloc(s->data, s->room);
        must(s->data);
    }
    return off;
}

/* The tensor as `choose` has it; in F32 when `plain`, with what the blocks hold. */
static void tensor_store(struct stored *s, const cf_catalogue *from, const cf_tensor *t,
                         choose_fn *choose, bool plain)
{
    uint64_t n = values_of(t);
    uint8_t *raw = tensor_read(from, t);
    float *values = malloc((n + 1) * sizeof *values);
    cf_ref_format_decode(t->format, raw, 0, n, values);
    cf_format f = choose(t);
    if (f == CF_FORMAT_COUNT)
        f = t->format;
    uint64_t bytes = cf_format_row_bytes(f, n);
    uint8_t *blocks = malloc(bytes + 1);
    must(cf_quantise_row(f, values, n, blocks) == -1);
    cf_tensor out = *t;
    out.format = plain ? CF_F32 : f;
    if (plain)
        cf_ref_format_decode(f, blocks, 0, n, values);
    out.extent = (cf_extent){.file = 0, .bytes = plain ? n * sizeof *values : bytes};
    out.extent.off = data_grow(s, out.extent.bytes);
    memcpy(s->data + out.extent.off, plain ? (uint8_t *)values : blocks, out.extent.bytes);
    cf_err err = {0};
    must(cf_catalogue_add(s->cat, &out, &err) == 0);
    free(raw);
    free(values);
    free(blocks);
}

static void stored_init(struct stored *s, const char *from, choose_fn *choose, bool plain)
{
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    *s = (struct stored){0};
    tmp_dir_init(&s->dir);
    must(cf_safetensors_open(from, &cat, &err) == 0);
    must(cf_catalogue_create(&s->cat, &err) == 0);
    uint64_t most = 0; /* the file's size, before its content is known */
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++)
        most += 4 * values_of(cf_catalogue_at(cat, i)) + 2;
    must(cf_catalogue_add_file(s->cat, tmp_path(&s->dir, "weights"), most, &err) == 0);
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++)
        tensor_store(s, cat, cf_catalogue_at(cat, i), choose, plain);
    data_grow(s, most - s->bytes);
    cf_catalogue_close(&cat);
}

static void stored_write(const struct stored *s)
{
    tmp_write(tmp_path(&s->dir, "weights"), s->data, s->bytes);
}

static void stored_finish(struct stored *s)
{
    cf_catalogue_close(&s->cat);
    free(s->data);
    tmp_dir_finish(&s->dir);
}

static json_t *config_load(const char *dir)
{
    char path[300];
    snprintf(path, sizeof path, "%s/config.json", dir);
    json_t *config = json_load_file(path, 0, NULL);
    must(config);
    return config;
}

/* The model over it, which takes its catalogue; or the refusal in err. */
static cf_model *model_bind(struct stored *s, const json_t *config, cf_err *err)
{
    cf_model *m = calloc(1, sizeof *m);
    must(m);
    m->dir = strdup("stored");
    m->cat = s->cat;
    s->cat = NULL;
    if (cf_model_bind(m, config, "config.json", err) < 0)
        cf_model_free(&m);
    return m;
}

/* Formats in turn, by role: a name's digits are layers, experts and tables. Selection biases stay.
 */
static cf_format by_role(const cf_tensor *t)
{
    static const cf_format turn[] = {CF_Q4_0, CF_Q8_0, CF_Q5_1, CF_IQ4_NL,
                                     CF_Q4_1, CF_Q5_0, CF_F16,  CF_MXFP4};
    uint32_t h = 17;
    if (t->shape[t->n_dims - 1] % 32 || strstr(t->name, "bias"))
        return CF_FORMAT_COUNT;
    for (const char *c = t->name; *c; c++)
        if (*c < '0' || *c > '9')
            h = h * 31 + (uint8_t)*c;
    return turn[h % (sizeof turn / sizeof *turn)];
}

/* The checkpoint, stored by role. */
static cf_model *model_stored(struct stored *s, bool plain)
{
    cf_err err = {0};
    json_t *config = config_load(checkpoint);
    stored_init(s, checkpoint, by_role, plain);
    stored_write(s);
    cf_model *m = model_bind(s, config, &err);
    CHECK_STR(err.msg, "");
    must(m);
    json_decref(config);
    return m;
}

static cf_format as_it_is(const cf_tensor *t)
{
    (void)t;
    return CF_FORMAT_COUNT;
}

static cf_options options_make(const char *device)
{
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.io = "pread";
    o.direct = false;
    o.threads = 2;
    o.ctx = 128;
    o.chunk = 16;
    o.vram_bytes = o.ram_bytes = 64u << 20;
    o.check = true;
    return o;
}

/* ---- cases ---- */

static oracle_run *model_run(const oracle *o, cf_model *m, const cf_options *options)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    oracle_run *r = oracle_run_new(o);
    int rc = cf_engine_create(&e, m, options, &err);
    if (rc == 0)
        rc = cf_session_create(&s, e, &err);
    if (rc == 0)
        rc = oracle_run_prompt(r, s, 16, &err);
    CHECK_STR(err.msg, "");
    CHECK_INT(rc, 0);
    cf_session_destroy(&s);
    if (!e)
        cf_model_free(&m);
    cf_engine_close(&e);
    return r;
}

/* What the roles came out as: every kind of holder has blocks, and more than two formats do. */
static void formats_seen(const cf_model *m)
{
    uint32_t seen[CF_FORMAT_COUNT] = {0}, kinds = 0, tables = 0, pieces = 0, vectors = 0,
             routers = 0;
    for (uint32_t i = 0; i < m->n_weights; i++) {
        const cf_weight_def *w = &m->weights[i];
        bool block = cf_formats[w->dtype].block_values > 1;
        seen[w->dtype]++;
        vectors += block && w->rows == 1;
        routers += block && w->must_be_finite;
    }
    for (uint32_t i = 0; i < m->n_tables; i++)
        tables += cf_formats[m->tables[i].dtype].block_values > 1;
    for (uint32_t i = 0; i < m->n_moe; i++)
        for (int p = 0; p < CF_EXPERT_PIECES; p++)
            pieces += cf_formats[m->moe[i].pieces[p].dtype].block_values > 1;
    for (cf_format f = CF_Q4_0; f < CF_FORMAT_COUNT; f++)
        kinds += seen[f] > 0;
    CHECK(kinds > 2 && tables > 0 && vectors > 0 && routers > 0);
    CHECK_INT(pieces, m->n_moe * CF_EXPERT_PIECES);
}

static void same_bits(void)
{
    oracle *o = oracle_load(checkpoint);
    must(o);
    oracle_run *runs[2];
    cf_options options = options_make("ref");
    for (int plain = 0; plain < 2; plain++) {
        struct stored s;
        cf_model *m = model_stored(&s, plain);
        if (!plain)
            formats_seen(m);
        runs[plain] = model_run(o, m, &options);
        stored_finish(&s);
    }
    const oracle_run *a = runs[0], *b = runs[1];
    size_t hidden = (size_t)o->layers * o->n_prompt * o->hidden;
    size_t routed = (size_t)o->n_moe * o->n_prompt * o->k;
    CHECK(memcmp(a->logits, b->logits, (size_t)o->n_prompt * o->vocab * sizeof(float)) == 0);
    CHECK(memcmp(a->hidden_state, b->hidden_state, hidden * sizeof(float)) == 0);
    CHECK(memcmp(a->experts, b->experts, routed * sizeof *a->experts) == 0);
    CHECK(memcmp(a->weights, b->weights, routed * sizeof(float)) == 0);
    double moved = oracle_logits_error(o, a); /* infinite where a logit is NaN */
    CHECK(moved > 1e-3 && isfinite(moved));
    oracle_run_free(runs[0]);
    oracle_run_free(runs[1]);
    oracle_free(o);
}

/* The largest difference of two runs' logits, as a share of the largest logit. */
static double logits_apart(const oracle *o, const oracle_run *a, const oracle_run *b)
{
    double apart = 0, most = 0;
    for (size_t i = 0; i < (size_t)o->n_prompt * o->vocab; i++) {
        apart = fmax(apart, fabs((double)a->logits[i] - (double)b->logits[i]));
        most = fmax(most, fabs((double)b->logits[i]));
        if (!isfinite(a->logits[i]))
            return INFINITY;
    }
    return apart / most;
}

/* Every device that has the formats computes the model in them as ref does, the choice of experts
 * included. */
static void devices_agree(void)
{
    cf_gpu_info infos[16];
    char why[1024];
    int n = cf_gpu_list(infos, 16, why, sizeof why), able = 0;
    oracle *o = oracle_load(checkpoint);
    must(o);
    struct stored s;
    cf_options options = options_make("ref");
    oracle_run *ref = model_run(o, model_stored(&s, false), &options);
    stored_finish(&s);
    for (int i = 0; i < n; i++) {
        char device[32];
        cf_gpu *gpu = NULL;
        cf_err err = {0};
        bool has = true;
        snprintf(device, sizeof device, "%.15s:%d", infos[i].backend, infos[i].index);
        if (!strcmp(infos[i].backend, "ref"))
            continue;
        must(cf_gpu_open(&gpu, device, NULL, &err) == 0);
        cf_model *m = model_stored(&s, false);
        for (uint32_t w = 0; w < m->n_weights; w++)
            has = has && cf_gpu_supports(gpu, m->weights[w].dtype);
        cf_gpu_close(&gpu);
        if (!has) {
            cf_model_free(&m);
            stored_finish(&s);
            continue;
        }
        able++;
        options = options_make(device);
        oracle_run *r = model_run(o, m, &options);
        CHECK(logits_apart(o, r, ref) < 1e-4);
        size_t routed = (size_t)o->n_moe * o->n_prompt * o->k;
        CHECK(memcmp(r->experts, ref->experts, routed * sizeof *r->experts) == 0);
        oracle_run_free(r);
        stored_finish(&s);
    }
    oracle_run_free(ref);
    oracle_free(o);
    if (!able)
        SKIP("no device beside ref has these formats");
}

/* The largest weight in blocks that begin with a float16 scale. */
static uint32_t largest_block_weight(const cf_model *m)
{
    uint32_t best = CF_NO_WEIGHT;
    for (uint32_t i = 0; i < m->n_weights; i++) {
        cf_format f = m->weights[i].dtype;
        if (cf_formats[f].block_values == 1 || f == CF_MXFP4)
            continue;
        if (best == CF_NO_WEIGHT ||
            cf_weight_def_bytes(&m->weights[i]) > cf_weight_def_bytes(&m->weights[best]))
            best = i;
    }
    return best;
}

/* Makes one block hold no number (or none of them: NO_BLOCK), and opens: the block is named.
 * Returns the block of the largest weight in which the first chunk of its load ends. */
enum { NO_BLOCK = 0xffffffff };

static uint64_t open_with_bad_block(uint64_t bad)
{
    static const uint8_t infinite[2] = {0x00, 0x7c};
    cf_options options = options_make("ref");
    struct stored s;
    cf_err err = {0};
    cf_engine *e = NULL;
    char text[160];
    uint64_t cut = 0;
    cf_model *m = model_stored(&s, false);
    uint32_t wid = largest_block_weight(m);
    must(wid != CF_NO_WEIGHT);
    cf_weight_def *w = &m->weights[wid];
    const cf_format_info *f = &cf_formats[w->dtype];
    w->must_be_finite = true;
    if (bad != NO_BLOCK)
        memcpy(s.data + w->extent.off + bad * f->block_bytes, infinite, 2);
    stored_write(&s);
    snprintf(text, sizeof text, "tensor %s: element %llu is not a finite number", w->name,
             (unsigned long long)(bad * f->block_values));
    int rc = cf_engine_create(&e, m, &options, &err);
    if (e) {
        const cf_slots_shape *shape = &e->slots.shape;
        uint64_t landing = shape->in_place ? shape->slot_bytes : shape->slab_bytes;
        uint64_t chunk = (landing - w->extent.off % e->files.align) / 64 * 64;
        CHECK(chunk < w->extent.bytes && chunk % f->block_bytes != 0);
        cut = chunk / f->block_bytes;
    }
    CHECK_STR(err.msg, bad == NO_BLOCK ? "" : text);
    CHECK_INT(rc, bad == NO_BLOCK ? 0 : CF_EFORMAT);
    if (!e)
        cf_model_free(&m);
    cf_engine_close(&e);
    stored_finish(&s);
    return cut;
}

/* A block without numbers is found wherever it lies: chunks of a load end inside blocks. */
static void not_finite(void)
{
    uint64_t cut = open_with_bad_block(NO_BLOCK);
    must(cut > 0);
    const uint64_t bad[] = {0, 1, cut - 1, cut, cut + 1, cut + 2};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        open_with_bad_block(bad[i]);
}

/* Ref has all formats; whoever lacks one refuses at open and names tensor, format and device. */
static void device_lacks_format(void)
{
    cf_gpu_info infos[16];
    char why[1024];
    int n = cf_gpu_list(infos, 16, why, sizeof why), lacking = 0;
    for (int i = 0; i < n; i++) {
        char device[32];
        cf_gpu *gpu = NULL;
        cf_engine *e = NULL;
        cf_err err = {0};
        struct stored s;
        snprintf(device, sizeof device, "%.15s:%d", infos[i].backend, infos[i].index);
        must(cf_gpu_open(&gpu, device, NULL, &err) == 0);
        bool ref = strcmp(infos[i].backend, "ref") == 0;
        for (cf_format f = CF_F32; f < CF_FORMAT_COUNT; f++) {
            CHECK(cf_gpu_supports(gpu, f) || f > CF_BF16);
            CHECK(cf_format_computable(f) || !cf_gpu_supports(gpu, f));
            CHECK(!ref || cf_gpu_supports(gpu, f) == cf_format_computable(f));
        }
        cf_model *m = model_stored(&s, false);
        uint32_t w = 0;
        while (w < m->n_weights && cf_gpu_supports(gpu, m->weights[w].dtype))
            w++;
        cf_gpu_close(&gpu);
        if (w < m->n_weights) {
            char text[200];
            snprintf(text, sizeof text, "%s is stored as %s,", m->weights[w].name,
                     cf_format_name(m->weights[w].dtype));
            cf_options options = options_make(device);
            lacking++;
            CHECK_INT(cf_engine_create(&e, m, &options, &err), CF_EDEVICE);
            CHECK_HAS(err.msg, text);
            CHECK_HAS(err.msg, device);
            CHECK_HAS(err.msg, infos[i].name);
        }
        CHECK(!e);
        cf_model_free(&m);
        stored_finish(&s);
    }
    if (!lacking)
        SKIP("every device here has every format");
}

/* ---- what no plan takes ---- */

static cf_format role_in_f8(const cf_tensor *t)
{
    return strstr(t->name, "o_proj") ? CF_F8_E4M3 : CF_FORMAT_COUNT;
}

static cf_format bias_in_bf16(const cf_tensor *t)
{
    return strstr(t->name, "layers.1.mlp.router.e_score") ? CF_BF16 : CF_FORMAT_COUNT;
}

static cf_format one_table_in_f16(const cf_tensor *t)
{
    return strstr(t->name, "embedders.2.") ? CF_F16 : CF_FORMAT_COUNT;
}

static cf_format one_expert_in_f16(const cf_tensor *t)
{
    return strstr(t->name, "experts.3.up") ? CF_F16 : CF_FORMAT_COUNT;
}

static cf_format columns_in_blocks(const cf_tensor *t)
{
    return strstr(t->name, "gate_up") && t->n_dims == 3 ? CF_Q8_0 : CF_FORMAT_COUNT;
}

/* What the config implies, in the formats of `choose` (BF16 and F32 otherwise): bound, or refused
 * with both texts. Nothing is read. */
static void binding_check(const json_t *config, choose_fn *choose, const char *a, const char *b)
{
    cf_err err = {0};
    cf_expected *list = NULL;
    uint64_t n = 0;
    struct stored s = {0};
    must(cf_model_expected(config, "config.json", &list, &n, &err) == 0);
    must(cf_catalogue_create(&s.cat, &err) == 0);
    must(cf_catalogue_add_file(s.cat, "weights", 1u << 30, &err) == 0);
    for (uint64_t i = 0; i < n; i++) {
        cf_tensor t = {.name = list[i].name,
                       .format = list[i].f32 ? CF_F32 : CF_BF16,
                       .n_dims = list[i].n_dims};
        memcpy(t.shape, list[i].shape, sizeof t.shape);
        cf_format f = choose(&t);
        t.format = f == CF_FORMAT_COUNT ? t.format : f;
        t.extent.off = s.bytes;
        must(cf_tensor_bytes(&t, &t.extent.bytes));
        s.bytes += t.extent.bytes;
        must(cf_catalogue_add(s.cat, &t, &err) == 0);
    }
    cf_expected_free(list, n);
    cf_model *m = model_bind(&s, config, &err);
    if (a) {
        CHECK(!m && err.code == CF_EFORMAT);
        CHECK_HAS(err.msg, a);
        CHECK_HAS(err.msg, b);
    } else {
        CHECK(m);
        CHECK_STR(err.msg, "");
    }
    cf_model_free(&m);
}

static void refused(void)
{
    json_t *c = config_load(checkpoint);
    binding_check(c, as_it_is, NULL, NULL);
    binding_check(c, by_role, NULL, NULL);
    binding_check(c, role_in_f8, "o_proj", "has dtype F8_E4M3; known: F32 F16 BF16");
    binding_check(c, bias_in_bf16, "layers.1.mlp.router.e_score_correction_bias has dtype BF16",
                  "must be F32");
    binding_check(c, one_table_in_f16, "embedders.2.weight has dtype F16",
                  "embedders.0.weight beside it has BF16");
    binding_check(c, one_expert_in_f16, "experts.3.up_proj.weight has dtype F16",
                  "expert 0 of its layer has BF16");
    json_decref(c);
}

static cf_format down_in_blocks(const cf_tensor *t)
{
    return strstr(t->name, "down_proj") && t->n_dims == 3 ? CF_Q8_0 : CF_FORMAT_COUNT;
}

/* Matrices that lie by columns cannot be read in blocks, which lie along them. */
static void transposed_refused(void)
{
    json_t *c = config_load("tests/fixtures/models/llama4_scout");
    json_t *text = json_object_get(c, "text_config") ? json_object_get(c, "text_config") : c;
    json_object_set_new(text, "intermediate_size", json_integer(32));
    binding_check(c, as_it_is, NULL, NULL);
    binding_check(c, columns_in_blocks, "gate_up_proj has dtype Q8_0", "read as F32, F16 or BF16");
    json_object_set_new(text, "hidden_size", json_integer(64));
    binding_check(c, as_it_is, NULL, NULL);
    binding_check(c, down_in_blocks, "down_proj has dtype Q8_0", "read as F32, F16 or BF16");
    json_decref(c);
}

int main(void)
{
    RUN(same_bits);
    RUN(devices_agree);
    RUN(not_finite);
    RUN(device_lacks_format);
    RUN(refused);
    RUN(transposed_refused);
    return check_done();
}
