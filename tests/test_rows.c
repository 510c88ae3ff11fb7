/* Catches: a table row from the wrong place, table or window; a row read twice; an arena that is
 * too small for a batch and then delivers stale bytes; a failed row that stays cached; n-gram ids
 * that differ from the published ones by an off-by-one, an overflow or the wrong end of look-back.
 */
#include "runtime/rows.h"

#include <jansson.h>
#include <stdatomic.h>

#include "models/build.h"
#include "runtime/base/align.h"
#include "runtime/base/rng.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

enum { TABLES = 4, COLS = 33, ROW_BYTES = 2 * COLS, FILE_BYTES = 61440 + 77, MAX_ITEMS = 256 };

static tmp_dir dir;
static char path[300];

/* Rows of 66 bytes: every offset mod 16, rows across pages, the last row at the end of the file. */
static cf_table_def tables[TABLES] = {
    {.name = "a", .extent = {.off = 13}, .dtype = CF_BF16, .rows = 300, .cols = COLS},
    {.name = "b", .extent = {.off = 20000}, .dtype = CF_F16, .rows = 200, .cols = COLS},
    {.name = "c", .extent = {.off = 36864}, .dtype = CF_BF16, .rows = 150, .cols = COLS},
    {.name = "d",
     .extent = {.off = FILE_BYTES - 100 * ROW_BYTES},
     .dtype = CF_BF16,
     .rows = 100,
     .cols = COLS},
};
static cf_step steps[] = {
    {.kind = CF_STEP_EMBED, .u.embed = {.table = 0, .resident = CF_NO_WEIGHT}},
    {.kind = CF_STEP_ROWS, .u.rows = {.first_table = 1, .n_tables = 3}}};
static const cf_model model = {.tables = tables, .n_tables = TABLES, .steps = steps, .n_steps = 2};

typedef struct rig {
    cf_files files;
    cf_fetch *fetch;
    cf_rows *rows;
    atomic_uint reads;
    atomic_ullong read_bytes;
} rig;

static void on_submit(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    rig *r = user;
    CHECK(file == 0 && off % 4096 == 0);
    atomic_fetch_add(&r->reads, 1);
    atomic_fetch_add(&r->read_bytes, bytes);
}

static bool rig_open(rig *r, uint32_t entries, cf_io_fault fault)
{
    cf_err err = {0};
    const char *list[] = {path};
    *r = (rig){0};
    fault.seed = entries;
    fault.on_submit = on_submit;
    fault.on_submit_user = r;
    if (!fault.eio_times)
        fault.eio_file = -1;
    int rc = cf_files_open(&r->files, list, 1, false, &err);
    if (rc == 0)
        rc = cf_rows_create(&r->rows, &model, entries, r->files.align, NULL, &err);
    if (rc == 0) {
        cf_io_region region = cf_rows_region(r->rows);
        rc = cf_fetch_open(
            &r->fetch, &r->files,
            &(cf_fetch_options){
                .io = {.kind = CF_IO_PREAD, .fault = &fault, .regions = &region, .n_regions = 1}},
            &err);
    }
    if (rc == 0)
        cf_rows_attach(r->rows, r->fetch, 0);
    else
        printf("    %s\n", err.msg);
    CHECK_INT(rc, 0);
    return rc == 0;
}

static void rig_close(rig *r)
{
    cf_fetch_close(&r->fetch);
    cf_rows_destroy(&r->rows);
    cf_files_close(&r->files);
}

/* Gathers and compares with the file; returns the gather's result. */
static int gather(rig *r, uint32_t first, uint32_t n_tables, const uint64_t *ids, uint32_t n_rows,
                  cf_err *err)
{
    uint32_t items = n_rows * n_tables;
    uint8_t *dst = malloc((size_t)items * ROW_BYTES + 1); /* exact: ASan guards both ends */
    dst[(size_t)items * ROW_BYTES] = 0x5a;
    int rc = cf_rows_gather(r->rows, first, n_tables, ids, n_rows, dst, err);
    for (uint32_t i = 0; rc == 0 && i < items; i++) {
        uint64_t off = tables[first + i % n_tables].extent.off + ids[i] * ROW_BYTES;
        CHECK_INT(tmp_pattern_differs(dst + (size_t)i * ROW_BYTES, ROW_BYTES, 0, off), -1);
    }
    CHECK_INT(dst[(size_t)items * ROW_BYTES], 0x5a);
    free(dst);
    return rc;
}

static uint64_t id_draw(cf_rng *rng, uint32_t table)
{
    uint64_t n = tables[table].rows;
    switch (cf_rng_below(rng, 4)) {
    case 0:
        return n - 1; /* of the last table: the file's last bytes */
    case 1:
        return cf_rng_below(rng, 5);
    default:
        return cf_rng_below(rng, n);
    }
}

/* ---- cases ---- */

/* Random gathers of one table and of three, through arenas from the smallest to ample. */
static void random_gathers(void)
{
    static const uint32_t sizes[] = {3, 4, 7, 40, 600};
    CHECK_INT(cf_rows_min_entries(&model), 3);
    CHECK_INT(cf_rows_window_bytes(&model, 4096), 8192);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        rig r;
        cf_rng rng = {s};
        if (rig_open(&r, sizes[s], (cf_io_fault){.reorder = true, .short_per_million = 1000})) {
            for (int i = 0; i < 60 && !check_case_failed; i++) {
                uint64_t ids[MAX_ITEMS];
                uint32_t n = 1 + (uint32_t)cf_rng_below(&rng, 60);
                bool three = i % 2;
                for (uint32_t k = 0; k < n * (three ? 3 : 1); k++)
                    ids[k] = id_draw(&rng, three ? 1 + k % 3 : 0);
                CHECK_INT(gather(&r, three ? 1 : 0, three ? 3 : 1, ids, n, NULL), 0);
            }
            cf_rows_stats stats;
            cf_rows_get_stats(r.rows, &stats);
            CHECK(stats.bytes_asked <=
                  atomic_load(&r.read_bytes)); /* a short read is asked again */
            CHECK(stats.bytes_used > 0 && stats.bytes_used % ROW_BYTES == 0);
            CHECK(stats.bytes_used < stats.bytes_asked);
        }
        rig_close(&r);
    }
}

/* Wanted twice, read once: within a gather, and by the next. All rows there are, once each. */
static void read_once(void)
{
    rig r;
    if (rig_open(&r, 64, (cf_io_fault){0})) {
        uint64_t ids[50], all[60];
        for (int i = 0; i < 50; i++)
            ids[i] = (uint64_t)i % 3 * 7;
        CHECK_INT(gather(&r, 0, 1, ids, 50, NULL), 0);
        CHECK_INT(atomic_load(&r.reads), 3);
        CHECK_INT(gather(&r, 0, 1, ids, 50, NULL), 0);
        CHECK_INT(atomic_load(&r.reads), 3);
        /* The same row number of another table is another row. */
        CHECK_INT(gather(&r, 1, 1, ids, 50, NULL), 0);
        CHECK_INT(atomic_load(&r.reads), 6);
        for (uint64_t i = 0; i < 60; i++)
            all[i] = 100 + i;
        CHECK_INT(gather(&r, 0, 1, all, 60, NULL), 0);
        CHECK_INT(atomic_load(&r.reads), 66);
        cf_rows_stats stats;
        cf_rows_get_stats(r.rows, &stats);
        CHECK_INT(stats.bytes_used, 66 * ROW_BYTES);
        CHECK_INT(stats.bytes_asked, atomic_load(&r.read_bytes));
    }
    rig_close(&r);
}

/* Second chance, against its definition: the hand goes round, spares once what was used since it
 * last passed, and takes the first that was not. */
static void second_chance(void)
{
    enum { ENTRIES = 5 };
    uint64_t held[ENTRIES];
    bool used[ENTRIES] = {false}, full[ENTRIES] = {false};
    uint32_t hand = 0, reads = 0;
    cf_rng rng = {21};
    rig r;
    if (rig_open(&r, ENTRIES, (cf_io_fault){0}))
        for (int i = 0; i < 400 && !check_case_failed; i++) {
            uint64_t a = cf_rng_below(&rng, 12), b = cf_rng_below(&rng, 12), id = a < b ? a : b;
            uint32_t at = 0;
            while (at < ENTRIES && !(full[at] && held[at] == id))
                at++;
            if (at == ENTRIES) {
                while (full[hand] && used[hand]) {
                    used[hand] = false;
                    hand = (hand + 1) % ENTRIES;
                }
                at = hand;
                hand = (hand + 1) % ENTRIES;
                held[at] = id;
                full[at] = true;
                reads++;
            }
            used[at] = true;
            CHECK_INT(gather(&r, 0, 1, &id, 1, NULL), 0);
            CHECK_INT(atomic_load(&r.reads), reads);
        }
    CHECK(reads > 40 && reads < 360);
    rig_close(&r);
}

/* One row of a batch fails: the gather says which, the others stay, the next gather reads it. */
static void failed_row(void)
{
    const uint64_t bad = 250, off = tables[0].extent.off + bad * ROW_BYTES;
    rig r;
    if (rig_open(&r, 64,
                 (cf_io_fault){
                     .eio_file = 0, .eio_off = (int64_t)off, .eio_times = 2, .reorder = true})) {
        const uint64_t ids[] = {1, 2, bad, 3, bad, 100};
        char where[64];
        cf_err err = {0};
        CHECK_INT(gather(&r, 0, 1, ids, 6, &err), -EIO);
        snprintf(where, sizeof where, "offset %llu", (unsigned long long)cf_align_down(off, 4096));
        CHECK_HAS(err.msg, path);
        CHECK_HAS(err.msg, where);
        uint32_t before = atomic_load(&r.reads);
        CHECK_INT(gather(&r, 0, 1, ids, 6, NULL), 0);
        CHECK_INT(atomic_load(&r.reads), before + 1);
    }
    rig_close(&r);
}

/* A row that always fails, in arenas smaller than the batch: nothing leaks, nothing sticks. */
static void failing_row_small_arena(void)
{
    const uint64_t bad = 120, off = tables[0].extent.off + bad * ROW_BYTES;
    rig r;
    if (rig_open(&r, 3, (cf_io_fault){.eio_file = 0, .eio_off = (int64_t)off, .eio_times = -1}))
        for (int i = 0; i < 20 && !check_case_failed; i++) {
            const uint64_t with[] = {1, 2, 3, 4, bad, 5, 6}, without[] = {9, 8, 7, 6, 5, 4, 3};
            CHECK_INT(gather(&r, 0, 1, with, 7, NULL), -EIO);
            CHECK_INT(gather(&r, 0, 1, without, 7, NULL), 0);
        }
    rig_close(&r);
}

/* ---- which row: against the reference's n-gram cases ---- */

/* The tables that the family makes of a config. */
static cf_model *family_model(json_t *config)
{
    cf_err err = {0};
    cf_model *m = calloc(1, sizeof *m);
    cf_build b = {.config = config, .path = "config.json", .model = m};
    const cf_family *f = cf_family_find(config, b.path, &err);
    if (f && f->build(&b, &err) == 0) {
        cf_expected_free(b.expected, b.n_expected);
        return m;
    }
    printf("    %s\n", err.msg);
    cf_expected_free(b.expected, b.n_expected);
    cf_model_free(&m);
    return NULL;
}

static void rows_compare(const cf_model *m, const json_t *ids, const json_t *moduli,
                         const json_t *rows)
{
    size_t n = json_array_size(ids), n_tables = json_array_size(moduli);
    int32_t list[256];
    CHECK(n > 0 && n <= 256 && json_array_size(rows) == n);
    CHECK_INT(m->n_tables, n_tables + 1); /* and the token embedding */
    for (size_t i = 0; i < n && i < 256; i++)
        list[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    for (size_t t = 0; t < n_tables && t + 1 < m->n_tables; t++) {
        const cf_table_def *table = &m->tables[t + 1];
        CHECK_INT(table->rows, json_integer_value(json_array_get(moduli, t)));
        for (size_t i = 0; i < n && i < 256; i++) {
            const json_t *row = json_array_get(json_array_get(rows, i), t);
            CHECK_INT(cf_table_row(table, list, (uint32_t)i + 1), json_integer_value(row));
        }
    }
    for (size_t i = 0; i < n && i < 256; i++)
        CHECK_INT(cf_table_row(&m->tables[0], list, (uint32_t)i + 1), list[i]);
}

static void ngram_ids(void)
{
    static const char fixture[] = "tests/fixtures/models/longcat_ngram";
    json_t *config = json_load_file("tests/fixtures/models/longcat_ngram/config.json", 0, NULL);
    json_t *expected = json_load_file("tests/fixtures/models/longcat_ngram/expected.json", 0, NULL);
    size_t i;
    json_t *c;
    uint64_t largest = 0;
    if (!config || !expected) {
        printf("    %s cannot be read\n", fixture);
        CHECK(config && expected);
        return;
    }
    cf_model *m = family_model(config);
    if (m)
        rows_compare(m, json_object_get(expected, "prompt_ids"),
                     json_object_get(expected, "moduli"), json_object_get(expected, "ngram_rows"));
    CHECK(m);
    cf_model_free(&m);
    CHECK(json_array_size(json_object_get(expected, "ngram_cases")) > 5);
    json_array_foreach(json_object_get(expected, "ngram_cases"), i, c)
    {
        static const char *const keys[] = {"vocab_size", "ngram_vocab_size_ratio",
                                           "emb_neighbor_num", "emb_split_num", "eos_token_id"};
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            json_object_set(config, keys[k], json_object_get(c, keys[k]));
        size_t n_tables = json_array_size(json_object_get(c, "moduli"));
        json_object_set_new(config, "hidden_size", json_integer((json_int_t)n_tables * 8));
        m = family_model(config);
        CHECK(m);
        if (m) {
            rows_compare(m, json_object_get(c, "ids"), json_object_get(c, "moduli"),
                         json_object_get(c, "rows"));
            largest = cf_max_u64(largest, m->tables[m->n_tables - 1].rows);
        }
        cf_model_free(&m);
    }
    CHECK(largest > 1000000); /* the published sizes are among the cases */
    json_decref(config);
    json_decref(expected);
}

int main(void)
{
    tmp_dir_init(&dir);
    snprintf(path, sizeof path, "%s/tables", dir.path);
    tmp_write_pattern(path, FILE_BYTES, 0);
    for (int i = 0; i < TABLES; i++)
        tables[i].extent.bytes = tables[i].rows * ROW_BYTES;
    RUN(random_gathers);
    RUN(read_once);
    RUN(second_chance);
    RUN(failed_row);
    RUN(failing_row_small_arena);
    RUN(ngram_ids);
    tmp_dir_finish(&dir);
    return check_done();
}
