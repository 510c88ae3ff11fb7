/* Catches: a release in slices of which a slice is taken for another, or columns for rows; that
 * computes other than the same model with its slices joined, at some cache size, in some memory or
 * on some device; whose pack is another; that is half there, or does not add up, and opens all the
 * same.
 *
 * The fixture of one model is cut as its release is: experts in files of ranks, all else in files
 * that are common to them.
 *
 *     test_slices [BACKEND] */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "models/family.h"
#include "runtime/base/align.h"
#include "runtime/base/rng.h"
#include "runtime/engine.h"
#include "runtime/unpack.h"
#include "storage/layout.h"
#include "storage/safetensors.h"
#include "storage/safetensors_slices.h"
#include "tests/check.h"
#include "tests/support/cli.h"
#include "tests/support/devices.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"

static const char fixture[] = "tests/fixtures/models/grok2";

enum { RANKS = 8, MAX_ITEMS = 600, MAX_FILES = 48, FILE_TEXT = 64 };

static tmp_dir tmp;

/* ---- turning and joining, by themselves ---- */

static void turned(void)
{
    cf_rng rng = {.state = 11};
    for (int i = 0; i < 3000; i++) {
        uint32_t n = 1 + (uint32_t)cf_rng_below(&rng, 9),
                 rows = 1 + (uint32_t)cf_rng_below(&rng, 40);
        uint32_t width = 1 + (uint32_t)cf_rng_below(&rng, 11);
        cf_slices s = {
            .n = n, .n_cuts = 1, .cuts = {{.bytes = (uint64_t)rows * width, .rows = rows}}};
        size_t bytes = (size_t)n * rows * width;
        uint8_t *was = malloc(bytes), *is = malloc(bytes), *scratch = malloc(cf_slices_scratch(&s));
        must(was && is && scratch);
        for (size_t k = 0; k < bytes; k++)
            was[k] = is[k] = (uint8_t)cf_rng_below(&rng, 256);
        cf_slices_turn(&s.cuts[0], n, is, scratch);
        bool right = true;
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t k = 0; k < n; k++)
                right = right && memcmp(is + ((size_t)r * n + k) * width,
                                        was + ((size_t)k * rows + r) * width, width) == 0;
        CHECK(right);
        if (!right)
            printf("    %u slices of %u rows of %u bytes\n", n, rows, width);
        free(was);
        free(is);
        free(scratch);
    }
}

/* What the runs of a layout read, of files that are patterns. */
static void runs_read(const cf_layout *l, uint8_t *slab)
{
    memset(slab, 0xee, l->bytes);
    for (uint32_t i = 0; i < l->n_runs; i++) {
        const cf_run *r = &l->runs[i];
        CHECK(r->file_off % 512 == 0 && r->bytes % 512 == 0 && r->slab_off % 512 == 0);
        CHECK(r->slab_off + r->bytes <= l->bytes);
        for (uint64_t k = 0; k < r->bytes; k++)
            slab[r->slab_off + k] = tmp_pattern(r->file, r->file_off + k);
    }
}

/* Byte `at` of a whole matrix. */
static uint8_t byte_of(const cf_slices *s, uint32_t cut, const cf_extent *e, uint64_t at)
{
    const cf_cut *c = &s->cuts[cut];
    uint64_t slice = at / c->bytes, off = at % c->bytes;
    if (c->rows) {
        uint64_t width = c->bytes / c->rows, row = at / (width * s->n);
        slice = at % (width * s->n) / width;
        off = row * width + at % width;
    }
    e += cut * s->n + slice;
    return tmp_pattern(e->file, e->off + off);
}

static void joined(void)
{
    cf_rng rng = {.state = 5};
    for (int i = 0; i < 600; i++) {
        cf_slices s = {.n = 2 + (uint32_t)cf_rng_below(&rng, 7),
                       .n_cuts = 1 + (uint32_t)cf_rng_below(&rng, 3)};
        cf_extent extents[CF_MAX_RUNS];
        cf_piece pieces[CF_MAX_CUTS] = {0};
        cf_layout l;
        uint64_t end = 0;
        for (uint32_t k = 0; k < s.n_cuts; k++) {
            uint32_t rows = 1 + (uint32_t)cf_rng_below(&rng, 20);
            uint64_t width = 1 + cf_rng_below(&rng, i % 2 ? 400 : 9);
            s.cuts[k] = (cf_cut){.bytes = rows * width, .rows = cf_rng_below(&rng, 2) ? rows : 0};
            end = cf_align_up(end, CF_PIECE_ALIGN);
            pieces[k] = (cf_piece){.read_off = end, .off = end, .bytes = s.n * rows * width};
            end += pieces[k].bytes;
            for (uint32_t n = 0; n < s.n; n++)
                extents[k * s.n + n] = (cf_extent){.file = (uint32_t)cf_rng_below(&rng, 4),
                                                   .off = cf_rng_below(&rng, 20000),
                                                   .bytes = rows * width};
        }
        cf_layout_plan_slices(&l, extents, &s, pieces, i % 3 ? 4096 : 512);
        CHECK(end <= l.bytes && !cf_layout_unsettled(&l));
        uint8_t *slab = malloc(l.bytes), *scratch = malloc(cf_slices_scratch(&s) + 1);
        must(slab && scratch);
        runs_read(&l, slab);
        cf_layout_join(&l, slab, scratch);
        uint64_t wrong = 0;
        for (uint32_t k = 0; k < s.n_cuts; k++)
            for (uint64_t at = 0; at < pieces[k].bytes; at++)
                wrong += slab[l.pieces[k].off + at] != byte_of(&s, k, extents, at);
        CHECK_INT(wrong, 0);
        free(slab);
        free(scratch);
    }
}

static void ranks_by_name(void)
{
    static const struct {
        const char *name;
        int rank;
    } names[] = {{"pytorch_model-00006-TP-000.safetensors", 0},
                 {"pytorch_model-00006-TP-017.safetensors", 17},
                 {"a-TP-000-TP-2.safetensors", 2},
                 {"pytorch_model-00000-TP-common.safetensors", -1},
                 {"model-TP-.safetensors", -2},
                 {"model-TP-+1.safetensors", -2},
                 {"model-TP-1", -2},
                 {"model-TP-1.safetensors.index.json", -2},
                 {"model-TP-99999999999999999999.safetensors", -2},
                 {"model-TP-commons.safetensors", -2},
                 {"model.safetensors", -2},
                 {"", -2}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        CHECK_INT(cf_safetensors_rank(names[i].name), names[i].rank);
}

/* ---- the fixture, cut ---- */

/* A tensor, or a slice of one, on its way into a file. */
typedef struct item {
    char file[FILE_TEXT], name[128];
    cf_format format;
    uint32_t n_dims;
    uint64_t shape[2], bytes;
    uint8_t *data;
} item;

static item items[MAX_ITEMS];
static uint32_t n_items;

static item *item_add(const cf_tensor *t, uint64_t rows, uint64_t cols)
{
    item *it = &items[n_items++];
    must(n_items <= MAX_ITEMS && t->n_dims <= 2);
    *it = (item){.format = t->format, .n_dims = t->n_dims, .shape = {rows, cols}};
    it->bytes = (t->n_dims == 2 ? rows * cols : rows) * 2;
    must(t->format == CF_BF16 && (it->data = malloc(it->bytes)));
    snprintf(it->name, sizeof it->name, "%s", t->name);
    return it;
}

static void items_free(void)
{
    while (n_items)
        free(items[--n_items].data);
}

/* The matrix in n slices: of columns, or of rows. */
static void matrix_cut(const cf_tensor *t, const uint8_t *data, uint32_t n, bool columns,
                       unsigned file)
{
    uint64_t rows = t->shape[0], cols = t->shape[1];
    must((columns ? cols : rows) % n == 0);
    for (uint32_t k = 0; k < n; k++) {
        item *it = columns ? item_add(t, rows, cols / n) : item_add(t, rows / n, cols);
        uint64_t width = it->shape[1] * 2;
        for (uint64_t r = 0; r < it->shape[0]; r++)
            memcpy(it->data + r * width,
                   columns ? data + r * cols * 2 + k * width : data + k * it->bytes + r * width,
                   width);
        if (n == 1)
            snprintf(it->file, FILE_TEXT, "model-%05u-of-00005.safetensors", file - 3);
        else
            snprintf(it->file, FILE_TEXT, "pytorch_model-%05u-TP-%03u.safetensors", file, k);
    }
}

/* n 1: whole tensors in numbered shards, in the order in which the slices are found. */
static void items_make(uint32_t n)
{
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    must(cf_safetensors_open(fixture, &cat, &err) == 0);
    FILE *f = fopen(cf_catalogue_path(cat, 0), "rb");
    items_free();
    must(f);
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++) {
        const cf_tensor *t = cf_catalogue_at(cat, i);
        uint8_t *data = malloc(t->extent.bytes);
        must(data && fseek(f, (long)t->extent.off, SEEK_SET) == 0 &&
             fread(data, t->extent.bytes, 1, f) == 1);
        const char *w = strstr(t->name, ".experts.") ? strstr(t->name, ".w") : NULL;
        if (w) {
            matrix_cut(t, data, n, w[2] == '2', w[2] == '1' ? 6 : w[2] == '2' ? 7 : 8);
        } else {
            item *it = item_add(t, t->shape[0], t->n_dims > 1 ? t->shape[1] : 0);
            bool early = !strstr(t->name, "layers");
            memcpy(it->data, data, it->bytes);
            if (n == 1)
                snprintf(it->file, FILE_TEXT, "model-%05u-of-00005.safetensors", early ? 1 : 2);
            else
                snprintf(it->file, FILE_TEXT, "pytorch_model-%05u-TP-common.safetensors",
                         early ? 0 : 9);
        }
        free(data);
    }
    fclose(f);
    cf_catalogue_close(&cat);
}

/* The items of one file, at an offset that no other file has. */
static void file_write(const char *dir, const char *file, unsigned padding)
{
    char path[400];
    json_t *header = json_object();
    uint64_t end = 0, at;
    for (uint32_t i = 0; i < n_items; i++) {
        const item *it = &items[i];
        if (strcmp(it->file, file) != 0)
            continue;
        json_t *shape = it->n_dims == 2 ? json_pack("[I, I]", (json_int_t)it->shape[0],
                                                    (json_int_t)it->shape[1])
                                        : json_pack("[I]", (json_int_t)it->shape[0]);
        must(json_object_set_new(header, it->name,
                                 json_pack("{s:s, s:o, s:[I, I]}", "dtype",
                                           cf_format_name(it->format), "shape", shape,
                                           "data_offsets", (json_int_t)end,
                                           (json_int_t)(end + it->bytes))) == 0);
        end += it->bytes;
    }
    char *text = json_dumps(header, JSON_COMPACT);
    must(text);
    uint64_t bytes = strlen(text) + padding;
    uint8_t *all = malloc(8 + bytes + end);
    must(all);
    for (int k = 0; k < 8; k++)
        all[k] = (uint8_t)(bytes >> 8 * k);
    memset(all + 8, ' ', bytes);
    memcpy(all + 8, text, strlen(text));
    at = 8 + bytes;
    for (uint32_t i = 0; i < n_items; i++)
        if (strcmp(items[i].file, file) == 0) {
            memcpy(all + at, items[i].data, items[i].bytes);
            at += items[i].bytes;
        }
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "wb"); /* many small files: not one by one to the drive */
    must(f && fwrite(all, at, 1, f) == 1 && fclose(f) == 0);
    free(all);
    free(text);
    json_decref(header);
}

static void index_write(const char *dir)
{
    char path[400];
    json_t *map = json_object();
    for (uint32_t i = 0; i < n_items; i++)
        must(json_object_set_new(map, items[i].name, json_string(items[i].file)) == 0);
    json_t *index = json_pack("{s:o}", "weight_map", map);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    must(index && json_dump_file(index, path, 0) == 0);
    json_decref(index);
}

/* Returns the folder: tmp/PARENT/grok2, its name is the model's. */
static const char *items_write(const char *parent)
{
    static char dir[300];
    char path[400];
    const char *files[MAX_FILES];
    uint32_t n = 0;
    snprintf(dir, sizeof dir, "%s", tmp_path(&tmp, parent));
    must(mkdir(dir, 0700) == 0);
    snprintf(dir, sizeof dir, "%s/%s/grok2", tmp.path, parent);
    must(mkdir(dir, 0700) == 0);
    for (uint32_t i = 0; i < n_items; i++) {
        uint32_t k = 0;
        while (k < n && strcmp(files[k], items[i].file) != 0)
            k++;
        must(k < MAX_FILES);
        if (k == n && items[i].file[0])
            files[n++] = items[i].file;
    }
    for (uint32_t k = 0; k < n; k++)
        file_write(dir, files[k], k * 37 % 23);
    if (n && strncmp(files[0], "model-0", 7) == 0)
        index_write(dir);
    snprintf(path, sizeof path, "%s/config.json", fixture);
    json_t *config = json_load_file(path, 0, NULL);
    snprintf(path, sizeof path, "%s/config.json", dir);
    must(config && json_dump_file(config, path, 0) == 0);
    json_decref(config);
    return dir;
}

/* ---- what it computes ---- */

typedef struct how {
    const char *device, *memory;
    bool direct, prefetch;
    uint32_t slots;
} how;

/* The oracle's prompt at exactly so many slots; NULL when that fails. */
static oracle_run *run(const oracle *o, const char *dir, const how *h, cf_stats *stats)
{
    cf_err err = {0};
    cf_session *s = NULL;
    sized_model m;
    oracle_run *r = oracle_run_new(o);
    cf_options options;
    cf_options_init(&options);
    options.device = h->device;
    options.memory = h->memory;
    options.direct = h->direct;
    options.prefetch = h->prefetch;
    options.kv = "f32";
    options.ctx = 64;
    options.chunk = 5;
    options.threads = 2;
    options.check = true;
    must(sized_model_open(&m, dir));
    cf_engine *e = sized_open(&m, &options, h->slots, false);
    bool ok = e && cf_session_create(&s, e, &err) == 0 && oracle_run_prompt(r, s, 5, &err) == 0 &&
              oracle_run_greedy(o, s, o->vocab, &err) == o->n_greedy;
    CHECK_STR(err.msg, "");
    if (e)
        cf_engine_get_stats(e, stats);
    if (e && cf_cache_verify(e->cache))
        ok = false;
    cf_session_destroy(&s);
    cf_engine_close(&e);
    sized_model_close(&m);
    if (!ok) {
        oracle_run_free(r);
        return NULL;
    }
    return r;
}

static void same_as_joined(const oracle *o, const char *dir, const how *h)
{
    cf_stats was = {0}, is = {0};
    oracle_run *want = run(o, fixture, h, &was), *have = run(o, dir, h, &is);
    CHECK(want && have);
    if (want && have) {
        CHECK(memcmp(want->logits, have->logits, sizeof(float) * o->n_prompt * o->vocab) == 0);
        CHECK(memcmp(want->hidden_state, have->hidden_state,
                     sizeof(float) * o->layers * o->n_prompt * o->hidden) == 0);
    }
    CHECK_INT(is.slots, was.slots);
    CHECK_INT(is.all.lookups, was.all.lookups);
    if (!h->prefetch) { /* one expert is one record */
        CHECK(was.all.misses > 0);
        CHECK_INT(is.all.misses, was.all.misses);
        CHECK_INT(is.all.vram_hits, was.all.vram_hits);
        CHECK_INT(is.all.ram_hits, was.all.ram_hits);
    }
    CHECK(is.ram_peak <= is.ram_budget && is.vram_peak <= is.vram_budget);
    if (want)
        oracle_run_free(want);
    if (have)
        oracle_run_free(have);
}

static void on_device(const oracle *o, const char *dir, const char *device, bool all)
{
    static const uint32_t slots[] = {4, 7, 12};
    char name[96];
    for (int k = 0; k < 3; k++)
        for (int discrete = 0; discrete < 2; discrete++) {
            how h = {.device = device,
                     .memory = discrete ? "discrete" : "auto",
                     .direct = (k + discrete) % 2,
                     .prefetch = k > 0,
                     .slots = slots[k]};
            snprintf(name, sizeof name, "%s %u slots, memory %s", device, h.slots, h.memory);
            if (all || (k == 0 && !discrete))
                RUN_NAMED(name, same_as_joined(o, dir, &h));
        }
}

/* Where a layer's experts and its streamed weights meet: in one memory, in two, through staging
 * buffers; with RAM that holds none of the streamed weights, some or all (share: of that RAM). */
typedef struct meeting {
    const char *memory;
    bool no_import;
    double share;
    bool fails; /* some slices cannot be read at first */
} meeting;

/* Within the least of --vram, where dense weights are streamed too; false where that is not so. */
static bool meeting_options(const sized_model *m, const meeting *way, cf_options *o)
{
    cf_err err = {0};
    cf_memory_plan plan;
    cf_options_init(o);
    o->device = "ref";
    o->memory = way->memory;
    o->no_import = way->no_import;
    o->ctx = 64;
    o->chunk = 5;
    o->threads = 2;
    o->kv = "f32";
    o->check = true;
    o->vram_bytes = o->ram_bytes = 64u << 20;
    must(sized_plan(m, o, &plan, &err) == 0);
    o->vram_bytes = plan.vram_min;
    must(sized_plan(m, o, &plan, &err) == 0);
    o->ram_bytes = plan.ram_min;
    must(sized_plan(m, o, &plan, &err) == 0);
    if (plan.ram_dense)
        o->ram_bytes += (uint64_t)((double)(plan.ram_dense - plan.ram_min) * way->share);
    must(sized_plan(m, o, &plan, &err) == 0);
    bool discrete = strcmp(way->memory, "discrete") == 0;
    CHECK_INT(plan.hold.bytes > 0, discrete && way->share > 0);
    return plan.dense.n_streamed > 0;
}

/* Sessions end in a sentence until the fault has passed; its page is one of several slices. */
static void fail_first(const oracle *o, cf_engine *e)
{
    int failed = 0, rc = -EIO;
    for (int i = 0; i < 30 && rc < 0; i++) {
        cf_err err = {0};
        cf_session *s = NULL;
        must(cf_session_create(&s, e, &err) == 0);
        rc = cf_session_extend(s, o->prompt, o->n_prompt, CF_PHASE_PROMPT, NULL, &err);
        CHECK(rc == 0 || rc == -EIO);
        if (rc < 0)
            CHECK_HAS(err.msg, "failed twice");
        failed += rc < 0;
        cf_session_destroy(&s);
    }
    CHECK_INT(rc, 0);
    CHECK(failed > 0);
}

/* The prompt's logits. */
static float *meeting_run(const oracle *o, const char *dir, const meeting *way)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_stats stats;
    cf_options options;
    sized_model m;
    cf_io_fault fault = {.eio_times = 20};
    must(sized_model_open(&m, dir));
    CHECK(meeting_options(&m, way, &options));
    const cf_moe_def *d = &m.model->moe[0];
    const cf_extent *x = &d->extents[d->n_extents / 2];
    fault.eio_file = x->file;
    fault.eio_off = (int64_t)(x->off + x->bytes / 2);
    if (way->fails)
        options.fault = &fault;
    oracle_run *r = oracle_run_new(o);
    int rc = cf_engine_open(&e, dir, &options, &err);
    if (rc == 0 && way->fails)
        fail_first(o, e);
    if (rc == 0)
        rc = cf_session_create(&s, e, &err);
    if (rc == 0)
        rc = oracle_run_prompt(r, s, 5, &err);
    CHECK_STR(err.msg, "");
    size_t bytes = sizeof(float) * o->n_prompt * o->vocab;
    float *logits = rc == 0 ? malloc(bytes) : NULL;
    if (logits)
        memcpy(logits, r->logits, bytes);
    if (e) {
        cf_engine_get_stats(e, &stats);
        CHECK(stats.ram_peak <= options.ram_bytes && stats.vram_peak <= options.vram_bytes);
        CHECK(!cf_cache_verify(e->cache));
    }
    cf_session_destroy(&s);
    cf_engine_close(&e);
    oracle_run_free(r);
    sized_model_close(&m);
    return logits;
}

static void dense_streamed_beside(const oracle *o, const char *dir)
{
    static const meeting ways[] = {{"auto", false, 0, false},     {"auto", false, 0, true},
                                   {"discrete", false, 0, false}, {"discrete", false, 0.5, true},
                                   {"discrete", false, 1, false}, {"discrete", false, 1, true},
                                   {"discrete", true, 0.5, true}, {"discrete", true, 1, false}};
    float *want = meeting_run(o, fixture, &ways[0]);
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        float *have = meeting_run(o, dir, &ways[i]);
        CHECK(want && have && memcmp(want, have, sizeof(float) * o->n_prompt * o->vocab) == 0);
        free(have);
    }
    free(want);
}

/* Few slices, and the down projection cut into rows: the shape says which. */
static void other_cuts(const oracle *o)
{
    how h = {.device = "ref", .memory = "auto", .slots = 4};
    items_make(3);
    same_as_joined(o, items_write("three"), &h);
    items_make(2);
    same_as_joined(o, items_write("two"), &h);
    items_make(1);
    uint32_t whole = n_items;
    for (uint32_t i = 0; i < whole; i++) {
        const item it = items[i];
        cf_tensor t = {
            .name = it.name, .format = it.format, .n_dims = 2, .shape = {it.shape[0], it.shape[1]}};
        if (!strstr(it.name, ".experts."))
            snprintf(items[i].file, FILE_TEXT, "a-TP-common.safetensors");
        else
            matrix_cut(&t, it.data, 4, !strstr(it.name, ".w2"), 6);
        if (strstr(it.name, ".experts."))
            items[i].file[0] = 0;
    }
    same_as_joined(o, items_write("turned"), &h);
}

/* A rank alone has whole tensors. */
static void one_rank(const oracle *o)
{
    cf_err err = {0};
    cf_model *m = NULL;
    how h = {.device = "ref", .memory = "auto", .slots = 4};
    items_make(1);
    for (uint32_t i = 0; i < n_items; i++)
        snprintf(items[i].file, FILE_TEXT, "a-TP-%s.safetensors",
                 strstr(items[i].name, ".experts.") ? "000" : "common");
    const char *dir = items_write("alone");
    CHECK_INT(cf_model_open(&m, dir, &err), 0);
    REQUIRE(m);
    CHECK_INT(m->moe[0].slices.n, 0);
    cf_model_free(&m);
    same_as_joined(o, dir, &h);
}

/* ---- the program on it ---- */

static void packs(const char *sliced)
{
    static const char *const ways[] = {"", "--zstd", "--experts q8_0 --resident q8_0"};
    char dir[300], a[300], b[300];
    items_make(1);
    snprintf(dir, sizeof dir, "%s", items_write("whole"));
    snprintf(a, sizeof a, "%s/a.gguf", tmp.path);
    snprintf(b, sizeof b, "%s/b.gguf", tmp.path);
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        CHECK_INT(cli_run("pack %s %s --force -q %s", dir, a, ways[i]), 0);
        CHECK_INT(cli_run("pack %s %s --force -q %s", sliced, b, ways[i]), 0);
        CHECK(tmp_files_equal(a, b));
        CHECK_INT(cli_run("verify -q %s", b), 0);
    }
}

static void it_is_said(const char *dir)
{
    CHECK_INT(cli_run("info %s --device ref --vram 16M --ram 64M --drive 1", dir), 0);
    CHECK_HAS(cli_said("stdout"), "each matrix of an expert is in 8 of them");
    CHECK_HAS(cli_said("stdout"), "26 with tensors");
    CHECK_INT(cli_run("info %s --device ref --vram 16M --ram 64M --drive 1 --json", dir), 0);
    CHECK_HAS(cli_said("stdout"), "\"slices\": 8");
    CHECK_INT(cli_run("verify %s -q", dir), 0);
    CHECK_HAS(cli_said("stdout"), "no defect found");
    CHECK_HAS(cli_said("stdout"), "in slices       36  all slices are there");
    CHECK(!strstr(cli_said("stdout"), "belong to no tensor"));
    CHECK_INT(cli_run("verify %s --json -q", dir), 0);
    CHECK_HAS(cli_said("stdout"), "\"tensors_in_slices\": 36");
    char path[400];
    snprintf(path, sizeof path, "%s/pytorch_model-00007-TP-005.safetensors", dir);
    FILE *f = fopen(path, "ab"); /* bytes of no slice, in the file of a later rank */
    must(f && fwrite("unknown", 7, 1, f) == 1 && fclose(f) == 0);
    CHECK_INT(cli_run("verify %s -q", dir), 0);
    CHECK_HAS(cli_said("stdout"), "7 B belong to no tensor");
    CHECK_INT(cli_run("mkmodel %s/copy --copy %s", tmp.path, dir), 1);
    CHECK_HAS(cli_said("stderr"), "is in 8 slices");
    CHECK_INT(cli_run("info %s --device ref --drive 1", fixture), 0);
    CHECK(!strstr(cli_said("stdout"), "slices"));
}

/* What the workers need is the host's, and counted. */
static void scratch_is_counted(const char *dir)
{
    cf_err err = {0};
    cf_model *sliced = NULL, *whole = NULL;
    CHECK_INT(cf_model_open(&sliced, dir, &err), 0);
    CHECK_INT(cf_model_open(&whole, fixture, &err), 0);
    if (sliced && whole) {
        uint64_t scratch = cf_slices_scratch(&sliced->moe[0].slices);
        CHECK_INT(scratch, 48 * 8 / 8 + 6); /* a bit for each block, and a block */
        CHECK_INT(cf_cache_memory(sliced, 4, 0) - cf_cache_memory(whole, 4, 0),
                  cf_unpack_memory(0, scratch));
        CHECK_INT(cf_moe_record_bytes(&sliced->moe[0]), cf_moe_record_bytes(&whole->moe[0]));
        CHECK_INT(cf_moe_stored_bytes(&sliced->moe[0]), cf_moe_stored_bytes(&whole->moe[0]));
    }
    cf_model_free(&sliced);
    cf_model_free(&whole);
}

/* Records of 96 MiB, beside streamed weights that RAM holds: while one is joined the drive reads
 * the next, so there is a slab for each, up to two sets of a layer's choice. Nothing is read. */
static void slabs_while_joining(const char *dir)
{
    enum { SLICE = 4 << 20 };
    cf_err err = {0};
    cf_memory_plan plan;
    sized_model m;
    cf_options o;
    REQUIRE(sized_model_open(&m, dir));
    for (uint32_t i = 0; i < m.model->n_moe; i++) {
        cf_moe_def *d = &m.model->moe[i];
        for (uint32_t k = 0; k < d->slices.n_cuts; k++) {
            uint64_t bytes = (uint64_t)d->slices.n * SLICE;
            d->slices.cuts[k].bytes = SLICE;
            d->unpacked[k] = (cf_piece){.read_off = k * bytes, .off = k * bytes, .bytes = bytes};
        }
        d->unpacked_bytes = (uint64_t)d->n_extents * SLICE;
        for (uint64_t k = 0; k < (uint64_t)d->experts * d->n_extents; k++)
            d->extents[k] = (cf_extent){.off = k * SLICE, .bytes = SLICE};
    }
    cf_options_init(&o);
    o.device = "ref";
    o.memory = "discrete";
    o.ctx = 64;
    o.chunk = 16;
    o.vram_bytes = o.ram_bytes = 8ull << 30;
    REQUIRE(sized_plan(&m, &o, &plan, &err) == 0);
    CHECK_INT(plan.hold.all_bytes, 0);
    o.vram_bytes = plan.vram_min;
    REQUIRE(sized_plan(&m, &o, &plan, &err) == 0);
    CHECK(plan.hold.bytes > 0 && plan.hold.bytes == plan.dense.streamed_bytes);
    CHECK_INT(plan.shape.n_slabs, 2 * m.model->moe[0].top_k);
    sized_model_close(&m);
}

/* An index has one place for each name: files of slices are taken as they are. */
static void index_gives_way(void)
{
    cf_err err = {0};
    cf_model *m = NULL;
    char path[400];
    items_make(RANKS);
    const char *dir = items_write("indexed");
    index_write(dir);
    CHECK_INT(cf_model_open(&m, dir, &err), 0);
    CHECK_STR(err.msg, "");
    if (m)
        CHECK_INT(m->moe[0].slices.n, RANKS);
    cf_model_free(&m);
    for (uint32_t i = 0; i < n_items; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, items[i].file);
        unlink(path);
    }
    CHECK_INT(cf_model_open(&m, dir, &err), CF_EFORMAT);
    CHECK_HAS(err.msg, "holds no file *-TP-000.safetensors");
}

/* ---- refusals ---- */

static bool is_of(const item *it, const char *file, const char *name)
{
    return strstr(it->file, file) && strstr(it->name, name);
}

/* Items of such files and names go into another file; "" is none. */
static void move(const char *file, const char *name, const char *to)
{
    bool any = false;
    for (uint32_t i = 0; i < n_items; i++)
        if (is_of(&items[i], file, name)) {
            snprintf(items[i].file, FILE_TEXT, "%s", to);
            any = true;
        }
    must(any);
}

static item *item_of(const char *file, const char *name)
{
    for (uint32_t i = 0; i < n_items; i++)
        if (is_of(&items[i], file, name))
            return &items[i];
    must(false);
    return NULL;
}

static void refused(const char *parent, const char *why)
{
    cf_err err = {0};
    cf_model *m = NULL;
    CHECK_INT(cf_model_open(&m, items_write(parent), &err) < 0, 1);
    CHECK_HAS(err.msg, why);
    CHECK(err.code < 0 && strlen(err.msg) < sizeof err.msg - 1);
    cf_model_free(&m);
}

static void missing_slices(void)
{
    items_make(RANKS);
    move("00006-TP-003", "", "");
    refused("m1", "none in a file *-TP-003.safetensors");
    items_make(RANKS);
    move("TP-003", "", "");
    refused("m2", "holds slices up to *-TP-007.safetensors, and none in a file *-TP-003");
    items_make(RANKS);
    move("TP-007", "", "");
    refused("m3",
            "the 7 slices of tensor model.layers.0.block_sparse_moe.experts.0.w1.weight, each "
            "[3, 48], do not make the [24, 48]");
    items_make(RANKS);
    move("00007-TP-000", "", "");
    refused("m4", "none in a file *-TP-000.safetensors");
    items_make(RANKS);
    move("TP-000", "", "");
    refused("m5", "none in a file *-TP-000.safetensors");
    items_make(RANKS);
    move("TP-005", "layers.1.block_sparse_moe.experts.2.w2", "");
    refused("m6", "experts.2.w2.weight\" has a slice in");
    items_make(RANKS);
    move("TP-common", "q_proj", "");
    refused("m7", "q_proj.weight is missing");
}

static void slices_that_differ(void)
{
    items_make(RANKS);
    item *it = item_of("TP-004", "layers.0.block_sparse_moe.experts.1.w1");
    it->shape[0] = 2;
    it->bytes = it->shape[0] * it->shape[1] * 2;
    refused("d1", "BF16 [2, 48]");
    items_make(RANKS);
    item_of("TP-004", "layers.0.block_sparse_moe.experts.1.w2")->format = CF_F16;
    refused("d2", "F16 [48, 3]");
    items_make(RANKS);
    for (uint32_t i = 0; i < n_items; i++)
        if (is_of(&items[i], "TP-0", "layers.1.block_sparse_moe.experts.3.w3"))
            items[i].format = CF_F16;
    refused("d3", "F16, other than expert 0's of its layer");
    items_make(RANKS);
    for (uint32_t i = 0; i < n_items; i++)
        if (is_of(&items[i], "TP-0", ".w1"))
            items[i].format = CF_I16;
    refused("d4", "has dtype I16; what is in slices must be F32, F16 or BF16");
    items_make(RANKS);
    for (uint32_t i = 0; i < n_items; i++)
        if (is_of(&items[i], "TP-0", ".w2")) {
            items[i].shape[0] = 3;
            items[i].shape[1] = 48;
        }
    refused("d5", "each [3, 48], do not make the [48, 24]");
}

static void mixed(void)
{
    items_make(RANKS);
    move("TP-007", "layers.0.block_sparse_moe.experts.0.w2",
         "pytorch_model-1-TP-common.safetensors");
    refused("x1", "none in a file *-TP-007.safetensors");
    /* Whole beside slices: before them, behind them, in another expert. */
    for (int k = 0; k < 3; k++) {
        static const char *const whole[] = {"layers.0.block_sparse_moe.experts.0.w1",
                                            "layers.0.block_sparse_moe.experts.0.w2",
                                            "layers.0.block_sparse_moe.experts.4.w3"};
        static const char *const why[] = {
            "others of its layer's experts are whole",
            "is whole, others of its layer's experts are in 8 slices",
            "is whole, others of its layer's experts are in 8 slices"};
        char parent[16];
        items_make(RANKS);
        item *it = item_of("TP-000", whole[k]);
        char name[128];
        snprintf(name, sizeof name, "%s", it->name);
        move("TP-0", name, "");
        snprintf(it->file, FILE_TEXT, "pytorch_model-1-TP-common.safetensors");
        bool columns = it->shape[0] == 48;
        it->shape[0] = columns ? 48 : 24;
        it->shape[1] = columns ? 24 : 48;
        it->bytes *= RANKS;
        must(it->data = realloc(it->data, it->bytes));
        memset(it->data, 0, it->bytes);
        snprintf(parent, sizeof parent, "w%d", k);
        refused(parent, why[k]);
    }
    items_make(RANKS); /* twice */
    item *again = item_of("TP-000", "layers.0.block_sparse_moe.experts.0.w1");
    cf_tensor t = {.name = again->name, .format = CF_BF16, .n_dims = 2, .shape = {3, 48}};
    item *other = item_add(&t, 3, 48);
    memset(other->data, 0, other->bytes);
    snprintf(other->file, FILE_TEXT, "pytorch_model-00009-TP-common.safetensors");
    refused("x2", "is both in");
}

static void what_is_not_joined(void)
{
    items_make(RANKS);
    item *it = item_of("TP-common", "layers.0.self_attn.q_proj");
    cf_tensor t = {
        .name = it->name, .format = CF_BF16, .n_dims = 2, .shape = {it->shape[0], it->shape[1]}};
    it->file[0] = 0;
    matrix_cut(&t, it->data, RANKS, false, 11);
    refused("n1", "q_proj.weight is in 8 slices; only the matrices of single experts are joined");
    items_make(12);
    refused("n2", "an expert is in 36 parts, at most 24 are read");
    items_make(RANKS);
    move("00006-TP-002", "", "model-extra.safetensors");
    refused("n3", "model-extra.safetensors, which is no file of theirs");
    items_make(RANKS);
    move("00006-TP-002", "", "pytorch_model-00006-TP-064.safetensors");
    refused("n4", "rank 64, at most 64 ranks are read");
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    char dir[300];
    if (!cli_begin(&tmp))
        return 77;
    oracle *o = oracle_load(fixture);
    must(o);
    items_make(RANKS);
    snprintf(dir, sizeof dir, "%s", items_write("sliced"));
    RUN(turned);
    RUN(joined);
    RUN(ranks_by_name);
    while (devices_next(&d))
        on_device(o, dir, d.name, d.ref);
    RUN_NAMED("dense_streamed_beside", dense_streamed_beside(o, dir));
    RUN_NAMED("other_cuts", other_cuts(o));
    RUN_NAMED("one_rank", one_rank(o));
    RUN_NAMED("packs", packs(dir));
    RUN_NAMED("scratch_is_counted", scratch_is_counted(dir));
    RUN_NAMED("slabs_while_joining", slabs_while_joining(dir));
    RUN_NAMED("it_is_said", it_is_said(dir));
    RUN(index_gives_way);
    RUN(missing_slices);
    RUN(slices_that_differ);
    RUN(mixed);
    RUN(what_is_not_joined);
    items_free();
    oracle_free(o);
    tmp_dir_finish(&tmp);
    return check_done();
}
