/* Catches: a GGUF file whose weights, keys or layout catflap reads otherwise than they were written
 * (a permutation, a transposed half, a slice beside its expert, a default, a scaling), so that a
 * number moves; a cache size that moves one; a command that does not take the path; a file with a
 * mistake that crashes, or ends without a sentence.
 *
 * The files are only read from ../shared/fixtures/gguf; without it everything is skipped. */
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/family.h"
#include "storage/gguf.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"
#include "tests/support/tmpfiles.h"

#define FIXTURES "../shared/fixtures/gguf/"
#define SPLIT    "split/deepseek_v3-fused-f16"

static const struct file {
    const char *stem, *part; /* part: what of the path follows the stem */
} files[] = {
    {"longcat_flash-f32", ".gguf"},  {"longcat_flash-q8_0-q4_k", ".gguf"},
    {"longcat_ngram-q8_0", ".gguf"}, {"longcat_ngram-tables-q8_0", ".gguf"},
    {"qwen3_moe-q4_k_m", ".gguf"},   {"olmoe-q2_k-q3_k", ".gguf"},
    {"mixtral-iq4", ".gguf"},        {"deepseek_v2-q4_0", ".gguf"},
    {"deepseek_v3-bf16", ".gguf"},   {"gpt_oss-mxfp4", ".gguf"},
    {SPLIT, "-00001-of-00003.gguf"},
};
enum { N_FILES = sizeof files / sizeof *files };

static const char *path_of(const struct file *f)
{
    static char path[256];
    snprintf(path, sizeof path, FIXTURES "%s%s", f->stem, f->part);
    return path;
}

static bool fixtures_there(void)
{
    return access(FIXTURES "README.md", R_OK) == 0;
}

/* ---- numbers ---- */

/* The first format of the model that the device lacks, or CF_FORMAT_COUNT. */
static cf_format format_lacking(const cf_model *m, const char *device)
{
    cf_gpu *gpu = NULL;
    cf_err err = {0};
    cf_format lacking = CF_FORMAT_COUNT;
    if (cf_gpu_open(&gpu, device, NULL, &err) < 0) {
        CHECK_STR(err.msg, "");
        return lacking;
    }
    for (uint32_t i = 0; i < m->n_weights; i++)
        if (!cf_gpu_supports(gpu, m->weights[i].dtype))
            lacking = m->weights[i].dtype;
    for (uint32_t i = 0; i < m->n_tables; i++)
        if (!cf_gpu_supports(gpu, m->tables[i].dtype))
            lacking = m->tables[i].dtype;
    for (uint32_t i = 0; i < m->n_moe; i++)
        for (int p = 0; p < CF_EXPERT_PIECES; p++)
            if (!cf_gpu_supports(gpu, m->moe[i].pieces[p].dtype))
                lacking = m->moe[i].pieces[p].dtype;
    cf_gpu_close(&gpu);
    return lacking;
}

static cf_options options_make(const char *device)
{
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.kv = "f32";
    o.ctx = 128;
    o.chunk = 64;
    o.threads = 2;
    o.direct = false;
    o.check = true;
    return o;
}

/* One engine of `slots` slots against the oracle; what it computed, or NULL. */
static oracle_run *run_sized(const sized_model *m, const oracle *o, const char *device,
                             uint32_t slots, uint32_t step, bool first)
{
    cf_err err = {0};
    cf_session *s = NULL;
    cf_options options = options_make(device);
    cf_engine *e = sized_open(m, &options, slots, false);
    oracle_run *r = oracle_run_new(o);
    if (!e || cf_session_create(&s, e, &err) < 0 || oracle_run_prompt(r, s, step, &err) < 0) {
        printf("    %s\n", err.msg);
        CHECK_NEVER("does not run");
    } else {
        double logits = oracle_logits_error(o, r) * o->logits_std;
        double hidden = oracle_hidden_error(o, r);
        if (first)
            printf("    logits %.1e, hidden %.1e x std\n", logits, hidden);
        CHECK(logits <= 1e-3);
        CHECK(hidden <= 1e-3);
        CHECK_INT(oracle_expert_differences(o, r), 0);
        double weights = 0;
        for (size_t i = 0; i < (size_t)o->n_moe * o->n_prompt * o->k; i++)
            weights = fmax(weights, fabs((double)o->weights[i] - (double)r->weights[i]));
        CHECK(weights <= 1e-3);
        if (first)
            CHECK_INT(oracle_run_greedy(o, s, o->vocab, &err), o->n_greedy);
    }
    cf_session_destroy(&s);
    cf_engine_close(&e);
    return r;
}

/* Three cache sizes, the same bits; decoding follows from these and is held to the oracle once. */
static void numbers(const struct file *f, const char *device)
{
    sized_model m;
    cf_err err = {0};
    cf_model *opened = NULL;
    if (!fixtures_there())
        SKIP("%s is not there", FIXTURES);
    if (cf_model_open(&opened, path_of(f), &err) < 0) {
        CHECK(strstr(err.msg, "is unknown; known: "));
        SKIP("no family yet: %.120s", err.msg);
    }
    cf_format lacking = format_lacking(opened, device);
    cf_model_free(&opened);
    if (lacking != CF_FORMAT_COUNT)
        SKIP("%s does not compute with %s", device, cf_format_name(lacking));
    char stem[200];
    snprintf(stem, sizeof stem, FIXTURES "%s", f->stem);
    oracle *o = oracle_load_stem(stem);
    REQUIRE(o);
    REQUIRE(sized_model_open(&m, path_of(f)));
    const uint32_t slots[3] = {m.min_slots, (m.min_slots + m.all_slots) / 2, m.all_slots};
    const uint32_t steps[3] = {5, 5, 64}; /* the last: the whole prompt */
    oracle_run *runs[3] = {0};
    for (int i = 0; i < 3; i++)
        runs[i] = run_sized(&m, o, device, slots[i], steps[i], i == 0);
    size_t logits = (size_t)o->n_prompt * o->vocab * sizeof(float);
    size_t hidden = (size_t)o->layers * o->n_prompt * o->hidden * sizeof(float);
    for (int i = 1; i < 3; i++) {
        REQUIRE(runs[0] && runs[i]);
        CHECK(memcmp(runs[0]->logits, runs[i]->logits, logits) == 0);
        CHECK(memcmp(runs[0]->hidden_state, runs[i]->hidden_state, hidden) == 0);
    }
    for (int i = 0; i < 3; i++)
        oracle_run_free(runs[i]);
    sized_model_close(&m);
    oracle_free(o);
}

/* ---- files with a mistake ---- */

/* A copy of a file, to be changed and put back. */
typedef struct copy {
    uint8_t *data;
    size_t bytes, header; /* header: what is before the first tensor's data */
    const char *path;
} copy;

static void copy_make(copy *c, const char *from, const tmp_dir *dir)
{
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_err err = {0};
    struct stat st;
    FILE *f = fopen(from, "rb");
    if (!f || fstat(fileno(f), &st) < 0 || !(c->data = malloc((size_t)st.st_size)) ||
        fread(c->data, 1, (size_t)st.st_size, f) != (size_t)st.st_size ||
        cf_gguf_parse(&cat, &meta, 0, from, c->data, (uint64_t)st.st_size, (uint64_t)st.st_size,
                      &err) < 0) {
        printf("cannot copy %s %s\n", from, err.msg);
        exit(1);
    }
    fclose(f);
    c->bytes = c->header = (size_t)st.st_size;
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++)
        if (cf_catalogue_at(cat, i)->extent.off < c->header)
            c->header = (size_t)cf_catalogue_at(cat, i)->extent.off;
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
    c->path = tmp_path(dir, "mutant.gguf");
    tmp_write(c->path, c->data, c->bytes);
}

static unsigned mutants_opened, mutants_refused, mutants_ran;

/* The file with n bytes at off changed: refused with a sentence that names it, or a model. That one
 * runs on two tokens, or is refused with a sentence then. */
static void mutant(const copy *c, size_t off, const void *bytes, size_t n, bool run)
{
    cf_err err = {0};
    cf_model *m = NULL;
    cf_engine *e = NULL;
    cf_session *s = NULL;
    FILE *f = fopen(c->path, "r+b");
    REQUIRE(f);
    fseek(f, (long)off, SEEK_SET);
    fwrite(bytes, 1, n, f);
    fflush(f);
    int rc = cf_model_open(&m, c->path, &err);
    CHECK((rc < 0) == (err.code != 0) && (rc < 0) == (m == NULL));
    if (rc < 0 && (!strstr(err.msg, "mutant.gguf") || strlen(err.msg) < 30))
        CHECK_STR(err.msg, "a sentence that names the file");
    mutants_opened += rc == 0;
    mutants_refused += rc < 0;
    if (rc == 0 && run) {
        cf_options o = options_make("ref");
        const int32_t ids[2] = {3, 5};
        o.io = "pread";
        o.vram_bytes = o.ram_bytes = 64u << 20;
        rc = cf_engine_create(&e, m, &o, &err);
        if (rc == 0)
            rc = cf_session_create(&s, e, &err);
        if (rc == 0)
            rc = cf_session_extend(s, ids, 2, CF_PHASE_PROMPT, NULL, &err);
        CHECK((rc < 0) == (err.code != 0) && (rc == 0 || strlen(err.msg) > 20));
        mutants_ran += rc == 0;
        cf_session_destroy(&s);
        if (e)
            m = NULL; /* the engine has taken it */
        cf_engine_close(&e);
    }
    cf_model_free(&m);
    fseek(f, (long)off, SEEK_SET);
    fwrite(c->data + off, 1, n, f);
    fclose(f);
}

/* Every key: renamed (so: missing, and an unknown one there), and with extreme values of its type.
 */
static void mutate_keys(const copy *c)
{
    static const uint8_t values[][8] = {{0},
                                        {1},
                                        {3},
                                        {255, 255, 255, 255, 255, 255, 255, 255},
                                        {0, 0, 0, 128},
                                        {0, 0, 192, 127},
                                        {0, 0, 128, 127},
                                        {255, 255, 255, 127},
                                        {0, 64}};
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_err err = {0};
    REQUIRE(cf_gguf_parse(&cat, &meta, 0, "f", c->data, c->bytes, c->bytes, &err) == 0);
    const uint8_t *base = (const uint8_t *)cf_gguf_at(meta, 0).key.at - 32;
    for (uint32_t i = 0; i < cf_gguf_count(meta); i++) {
        cf_gguf_entry e = cf_gguf_at(meta, i);
        size_t key = (size_t)((const uint8_t *)e.key.at - base), value = (size_t)(e.value - base);
        mutant(c, key + e.key.bytes - 1, "~", 1, true);
        mutant(c, key + e.key.bytes, "\x08\0\0\0", 4, false); /* a text, by its type */
        for (size_t k = 0; k < sizeof values / sizeof *values && e.value_bytes <= 8; k++)
            mutant(c, value, values[k], (size_t)e.value_bytes, (i + k) % 3 == 0);
    }
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
}

/* Bytes anywhere in the header, and above all among the names and shapes of tensors behind it. */
static void mutate_bytes(const copy *c, uint32_t seed, int n)
{
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        size_t span = i % 2 ? c->header : c->header / 3;
        size_t off = c->header - 1 - (seed >> 8) % span;
        uint8_t byte = (uint8_t)(c->data[off] ^ (1u << (seed >> 5 & 7)));
        mutant(c, off, &byte, 1, i % 4 == 0);
    }
}

/* keys: one after the other, not only bytes here and there. */
static void mutations(const struct file *f, bool keys)
{
    if (!fixtures_there())
        SKIP("%s is not there", FIXTURES);
    tmp_dir dir;
    copy c;
    mutants_opened = mutants_refused = mutants_ran = 0;
    tmp_dir_init(&dir);
    copy_make(&c, path_of(f), &dir);
    if (keys)
        mutate_keys(&c);
    mutate_bytes(&c, 7, 120);
    printf("    %u refused, %u opened, %u of them ran\n", mutants_refused, mutants_opened,
           mutants_ran);
    CHECK(mutants_refused > (keys ? 100 : 20));
    free(c.data);
    tmp_dir_finish(&dir);
}

/* A sentence in the file's own words: its keys, its tensors, its numbers. */
static void sentences(void)
{
    static const struct {
        const char *file, *find, *say[3];
        int at; /* bytes behind the found text */
        uint8_t put[4];
        size_t n;
    } cases[] = {
        {"mixtral-iq4",
         "llama.attention.head_count",
         {"\"llama.attention.head_count\" is 0", "must be 1 to 1024", NULL},
         4,
         {0, 0, 0, 0},
         4},
        {"mixtral-iq4",
         "llama.block_count",
         {"\"llama.block_count\" is 65535", "1 to 2048", NULL},
         4,
         {255, 255, 0, 0},
         4},
        {"mixtral-iq4",
         "llama.block_count",
         {"tensor blk.1.", "\"llama.block_count\" is 1", NULL},
         4,
         {1, 0, 0, 0},
         4},
        {"mixtral-iq4",
         "llama.block_count",
         {"tensor blk.2.attn_norm.weight is missing", NULL},
         4,
         {3, 0, 0, 0},
         4},
        {"mixtral-iq4",
         "llama.expert_count",
         {"blk.0.ffn_", "[4, 256, 256]", "7 experts"},
         4,
         {7, 0, 0, 0},
         4},
        {"mixtral-iq4", "llama.expert_used_count", {"5 of 4 experts", NULL}, 4, {5, 0, 0, 0}, 4},
        {"mixtral-iq4",
         "blk.1.attn_v",
         {"tensor blk.1.attn_x.weight is unknown to architecture "
          "\"llama\"",
          NULL},
         -1,
         {'x'},
         1},
        {"mixtral-iq4",
         "llama.rope.dimension_count",
         {"\"llama.rope.dimension_count\" is 32 of a "
          "head of 64",
          NULL},
         4,
         {32, 0, 0, 0},
         4},
        {"mixtral-iq4",
         "tokenizer.ggml.eos_token_id",
         {"\"eos_token_id\" is 999", NULL},
         4,
         {0xe7, 3, 0, 0},
         4},
        {"qwen3_moe-q4_k_m",
         "qwen3moe.attention.value_length",
         {"value_length\" is 63", "keys have 64", NULL},
         4,
         {63, 0, 0, 0},
         4},
        {"deepseek_v3-bf16",
         "deepseek2.expert_gating_func",
         {"expert_gating_func\" is 4", NULL},
         4,
         {4, 0, 0, 0},
         4},
        {"deepseek_v3-bf16",
         "deepseek2.rope.scaling.type",
         {"rope.scaling.type\" is \"xarn\"", "yarn", NULL},
         12,
         {'x'},
         1},
        {"longcat_flash-f32",
         "longcat-flash.attention.q_lora_scale",
         {"q_lora_scale\" is 2", "1.41421 and 1", NULL},
         4,
         {0, 0, 0, 0x40},
         4},
        {"longcat_ngram-q8_0", "ngram.vocab_sizes", {"element 0", NULL}, 16, {0, 0, 0, 0}, 4},
        {"longcat_ngram-q8_0",
         "ngram.neighbor_count",
         {"lists 4 tables, there are 6", NULL},
         4,
         {4, 0, 0, 0},
         4},
        {"longcat_flash-f32",
         "general.architecture",
         {"\"general.architecture\" is \"xongcat-flash"
          "\"",
          "known: llama", NULL},
         12,
         {'x'},
         1},
    };
    if (!fixtures_there())
        SKIP("%s is not there", FIXTURES);
    tmp_dir dir;
    tmp_dir_init(&dir);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char from[256];
        copy c;
        cf_err err = {0};
        cf_model *m = NULL;
        snprintf(from, sizeof from, FIXTURES "%s.gguf", cases[i].file);
        copy_make(&c, from, &dir);
        size_t length = strlen(cases[i].find);
        uint8_t *at = memmem(c.data, c.header, cases[i].find, length);
        REQUIRE(at);
        memcpy(at + (ptrdiff_t)length + cases[i].at, cases[i].put, cases[i].n);
        tmp_write(c.path, c.data, c.bytes);
        CHECK_INT(cf_model_open(&m, c.path, &err), CF_EFORMAT);
        for (int k = 0; k < 3 && cases[i].say[k]; k++)
            CHECK_HAS(err.msg, cases[i].say[k]);
        CHECK_HAS(err.msg, "mutant.gguf");
        cf_model_free(&m);
        free(c.data);
    }
    tmp_dir_finish(&dir);
}

/* ---- paths and commands ---- */

static void link_file(const tmp_dir *dir, const char *name, const char *target)
{
    char cwd[1024], full[2048];
    REQUIRE(getcwd(cwd, sizeof cwd));
    snprintf(full, sizeof full, "%s/%s", cwd, target);
    CHECK_INT(symlink(full, tmp_path(dir, name)), 0);
}

static void refused(const char *path, const char *a, const char *b)
{
    cf_err err = {0};
    cf_model *m = NULL;
    CHECK(cf_model_open(&m, path, &err) < 0 && !m);
    CHECK_HAS(err.msg, a);
    CHECK_HAS(err.msg, b);
}

/* A file, part 1, a directory; parts that are missing or not the first; two models; none. */
static void paths(void)
{
    static const char part[] = "d-0000%d-of-00003.gguf";
    char name[64], from[200];
    cf_err err = {0};
    cf_model *m = NULL;
    tmp_dir dir;
    if (!fixtures_there())
        SKIP("%s is not there", FIXTURES);
    tmp_dir_init(&dir);
    refused(dir.path, "holds no model", "config.json");
    for (int i = 1; i <= 3; i++) {
        snprintf(name, sizeof name, part, i);
        snprintf(from, sizeof from, FIXTURES SPLIT "-0000%d-of-00003.gguf", i);
        link_file(&dir, name, from);
        if (i == 2)
            refused(dir.path, "00003-of-00003.gguf", "No such file");
    }
    link_file(&dir, "mmproj-x.gguf", FIXTURES "mixtral-iq4.gguf");
    CHECK_INT(cf_model_open(&m, dir.path, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(m);
    CHECK_STR(m->spec.name, "d");
    CHECK_STR(m->spec.architecture, "deepseek2, GGUF");
    CHECK_STR(m->dir, dir.path);
    CHECK_HAS(cf_model_path(m), "/d-00001-of-00003.gguf");
    cf_text text = {0};
    CHECK_INT(cf_gguf_string(m->gguf, "tokenizer.ggml.model", &text, &err), 1);
    CHECK(cf_text_is(text, "gpt2"));
    cf_model_free(&m);
    snprintf(name, sizeof name, part, 2);
    refused(tmp_path(&dir, name), "is part 2 of 3", "00001-of-00003.gguf");
    link_file(&dir, "e.gguf", FIXTURES "mixtral-iq4.gguf");
    refused(dir.path, "2 GGUF models", "name one file");
    link_file(&dir, "f.bin", FIXTURES "mixtral-iq4.gguf");
    refused(tmp_path(&dir, "f.bin"), "f.bin is not a directory", "not a GGUF file");
    tmp_write(tmp_path(&dir, "g.gguf"), "GGUX", 4);
    refused(tmp_path(&dir, "g.gguf"), "g.gguf", "");
    tmp_dir_finish(&dir);
}

/* The commands take the path of a file. */
static void commands(const char *self)
{
    static const struct {
        const char *line, *say[3];
    } cases[] = {
        {"info --device ref",
         {"longcat (longcat-flash, GGUF)", "multi-token-prediction blocks",
          "5 and 3 zero experts a layer"}},
        /* Also the tensors that are left out belong to somebody. */
        {"verify",
         {"longcat_flash-f32.gguf: no defect found", "readable to the last byte\n  router", NULL}},
        {"run --device ref --ids IDS --print-ids -n 8 --temp 0 -q", {"179 111 97 79 286", NULL}},
    };
    char command[1024], out[8192];
    const char *slash = strrchr(self, '/');
    if (!fixtures_there())
        SKIP("%s is not there", FIXTURES);
    snprintf(command, sizeof command, "%.*s/../catflap", (int)(slash - self), self);
    if (access(command, X_OK) != 0)
        SKIP("%s is not built", command);
    tmp_dir dir;
    tmp_dir_init(&dir);
    oracle *o = oracle_load_stem(FIXTURES "longcat_flash-f32");
    REQUIRE(o);
    FILE *ids = fopen(tmp_path(&dir, "ids"), "w");
    for (uint32_t i = 0; i < o->n_prompt; i++)
        fprintf(ids, "%d\n", o->prompt[i]);
    fclose(ids);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[400] = "";
        const char *at = strstr(cases[i].line, "IDS");
        if (at)
            snprintf(line, sizeof line, "%.*s%s%s", (int)(at - cases[i].line), cases[i].line,
                     tmp_path(&dir, "ids"), at + 3);
        snprintf(command, sizeof command, "%.*s/../catflap %s %s 2>&1", (int)(slash - self), self,
                 at ? line : cases[i].line, FIXTURES "longcat_flash-f32.gguf");
        FILE *p = popen(command, "r");
        REQUIRE(p);
        out[fread(out, 1, sizeof out - 1, p)] = 0;
        CHECK_INT(pclose(p), 0);
        for (int k = 0; k < 3 && cases[i].say[k]; k++)
            CHECK_HAS(out, cases[i].say[k]);
    }
    oracle_free(o);
    tmp_dir_finish(&dir);
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    while (devices_next(&d)) {
        char name[160];
        for (int k = 0; k < N_FILES; k++) {
            snprintf(name, sizeof name, "%s %s", d.name, files[k].stem);
            RUN_NAMED(name, numbers(&files[k], d.name));
        }
    }
    for (int k = 0; k < N_FILES - 1; k++) { /* but the split one: its parts name each other */
        char name[160];
        snprintf(name, sizeof name, "mutations of %s", files[k].stem);
        RUN_NAMED(name, mutations(&files[k], k % 3 == 2));
    }
    RUN(sentences);
    RUN(paths);
    RUN_NAMED("commands", commands(argv[0]));
    return check_done();
}
