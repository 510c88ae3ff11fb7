/* catflap verify: what can be known about a model's files without computing with them.
 *
 * Opening the model checks the config, the index, every header, and each tensor's name, type,
 * shape and offsets. Here, beside that: that every file can be read to its last byte, that no bytes
 * lie unclaimed between tensors, that router weights are finite, that the tokenizer fits. A pack is
 * read to its end and held against its checksums. Other files have none, and the report says so. */
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gpu/formats.h"
#include "models/family.h"
#include "runtime/base/align.h"
#include "runtime/base/log.h"
#include "runtime/tokenizer.h"
#include "storage/gguf.h"
#include "tools/options.h"
#include "tools/progress.h"
#include "tools/table.h"
#include "tools/text_io.h"

static const char verify_help[] =
    "usage: catflap verify MODEL [--json]\n"
    "\n"
    "Checks a model's files without a run: config, index, the header of every file, name, type,\n"
    "shape and offsets of every tensor, that each file can be read to its end, that the router's\n"
    "weights are finite, and that the tokenizer fits. A pack (see catflap pack) is read whole and\n"
    "held against its checksums. Other files carry none: a changed byte inside a weight cannot be\n"
    "noticed.\n"
    "\n"
    "  --json          the report as JSON\n"
    "  -q              no progress bar\n"
    "\n"
    "example:\n"
    "  catflap verify models/demo\n";

enum { OPT_JSON = CF_OPT_COMMAND };

static const struct option verify_options[] = {{"json", no_argument, NULL, OPT_JSON}, {0}};

enum { SCAN_BYTES = 1 << 20 };

typedef struct report {
    cf_model *model;
    const cf_catalogue *cat; /* the tensors of the files */
    cf_catalogue *stored;    /* that, where the model's own are parts of them */
    uint64_t finite_tensors, finite_bytes, unclaimed_bytes;
    int32_t tokens; /* of the tokenizer; -1: there is none */
    bool no_text;   /* it cannot encode */
    bool quiet;
} report;

/* ---- files ---- */

/* The model, and its files' tensors as they are stored. */
static int model_open(report *r, const char *dir, cf_err *err)
{
    cf_gguf *meta = NULL;
    int rc = cf_model_open(&r->model, dir, err);
    if (rc < 0)
        return rc;
    r->cat = r->model->cat;
    if (!r->model->gguf)
        return 0;
    rc = cf_gguf_open(r->model->file, &r->stored, &meta, err);
    cf_gguf_close(&meta);
    r->cat = r->stored;
    return rc;
}

static int file_open(const cf_catalogue *cat, uint32_t file, cf_err *err)
{
    const char *path = cf_catalogue_path(cat, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return CF_FAIL(err, -errno, "cannot open %s: %s", path, cf_err_name(-errno));
    return fd;
}

/* Drives report a bad sector only when it is read, file systems a hole not at all; the last byte
 * at least tells a file that was cut or never completely copied. */
static int file_check(report *r, uint32_t file, cf_err *err)
{
    const cf_catalogue *cat = r->cat;
    const char *path = cf_catalogue_path(cat, file);
    uint64_t bytes = cf_catalogue_file_bytes(cat, file), claimed = 0, first = bytes;
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++) {
        const cf_extent *parts;
        uint32_t n = cf_tensor_extents(cf_catalogue_at(cat, i), &parts);
        for (uint32_t k = 0; k < n; k++) {
            if (parts[k].file != file)
                continue;
            claimed += parts[k].bytes;
            first = cf_min_u64(first, parts[k].off);
        }
    }
    /* Extents do not overlap (the reader's promise), so what is left over is a hole. */
    r->unclaimed_bytes += bytes - first - claimed;
    int rc = 0, fd = file_open(cat, file, err);
    if (fd < 0)
        return fd;
    uint8_t last;
    struct stat st;
    if (fstat(fd, &st) < 0)
        rc = CF_FAIL(err, -errno, "cannot stat %s: %s", path, cf_err_name(-errno));
    else if ((uint64_t)st.st_size != bytes)
        rc = CF_FAIL(err, CF_ECHANGED, "%s has changed: %lld bytes now, %" PRIu64 " when opened",
                     path, (long long)st.st_size, bytes);
    else if (bytes)
        rc = cf_read_at(fd, path, bytes - 1, &last, 1, err);
    close(fd);
    return rc;
}

/* ---- values ---- */

/* The values of a router's weight that stand in `x`: its own (what: "element") or the outer scales
 * of those. */
static int values_check(report *r, const cf_weight_def *w, const char *what, cf_format format,
                        const cf_extent *x, uint8_t *buf, cf_err *err)
{
    const cf_catalogue *cat = r->model->cat;
    int rc = 0, fd = file_open(cat, x->file, err);
    if (fd < 0)
        return fd;
    const char *path = cf_catalogue_path(cat, x->file);
    const cf_format_info *f = &cf_formats[format];
    uint64_t step = SCAN_BYTES / (uint64_t)f->block_bytes * f->block_bytes;
    for (uint64_t off = 0; off < x->bytes && rc == 0; off += step) {
        uint64_t bytes = cf_min_u64(step, x->bytes - off);
        rc = cf_read_at(fd, path, x->off + off, buf, bytes, err);
        uint64_t n = rc < 0 ? 0 : bytes / f->block_bytes * f->block_values;
        uint64_t bad = cf_ref_format_not_finite(format, buf, n);
        if (bad < n) {
            float v = NAN;
            if (cf_format_computable(format))
                cf_ref_format_decode(format, buf, bad, 1, &v);
            rc = CF_FAIL(err, CF_EFORMAT,
                         "%s: %s %" PRIu64 " of %s is %s: router weights must be finite", path,
                         what, off / f->block_bytes * f->block_values + bad, w->name,
                         isnan(v) ? "not a number" : "infinite");
        }
    }
    r->finite_tensors++;
    r->finite_bytes += x->bytes;
    close(fd);
    return rc;
}

static int weight_check(report *r, const cf_weight_def *w, uint8_t *buf, cf_err *err)
{
    int rc = values_check(r, w, "element", w->dtype, &w->extent, buf, err);
    if (rc == 0 && w->scale.rows)
        rc = values_check(r, w, "outer scale", w->scale.format, &w->scale_extent, buf, err);
    return rc;
}

static int weights_check(report *r, cf_err *err)
{
    int rc = 0;
    uint8_t *buf = malloc(SCAN_BYTES);
    if (!buf)
        return CF_FAIL(err, -ENOMEM, "out of memory for %d bytes", SCAN_BYTES);
    for (uint32_t i = 0; i < r->model->n_weights && rc == 0; i++)
        if (r->model->weights[i].must_be_finite)
            rc = weight_check(r, &r->model->weights[i], buf, err);
    free(buf);
    return rc;
}

static int tokenizer_check(report *r, cf_err *err)
{
    char name[CF_TOKENIZER_NAME_BYTES];
    const cf_tokenizer_place place = cf_model_tokenizer_place(r->model);
    cf_tokenizer *tok = NULL;
    r->tokens = -1;
    int rc = cf_tokenizer_open(&place, &tok, name, err);
    if (rc < 0 || !tok)
        return rc;
    r->tokens = cf_tokenizer_vocab_size(tok);
    r->no_text = cf_tokenizer_refusal(tok) != NULL;
    if (r->no_text)
        cf_notice("%s", cf_tokenizer_refusal(tok));
    cf_tokenizer_close(&tok);
    if (r->tokens > 0 && (uint32_t)r->tokens > r->model->spec.vocab)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s has ids up to %" PRId32 ", the model's vocabulary is %u", name,
                       r->tokens - 1, r->model->spec.vocab);
    return 0;
}

/* ---- checksums ---- */

static uint64_t sums_of(const report *r)
{
    return r->model->pack ? r->model->pack->sums.n_list : 0;
}

static void sums_progress(void *user, uint64_t done_bytes)
{
    cf_progress_update(user, done_bytes);
}

static int sums_verify(report *r, cf_err *err)
{
    const cf_pack *pack = r->model->pack;
    cf_progress bar = {0};
    if (!pack)
        return 0;
    cf_progress_begin(&bar, "verifying", cf_pack_summed_bytes(pack), r->quiet);
    int rc = cf_pack_verify(pack, cf_model_path(r->model), sums_progress, &bar, err);
    cf_progress_end(&bar);
    return rc;
}

/* ---- the report ---- */

/* Tensors that are stored in slices. */
static uint64_t sliced_of(const report *r)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < cf_catalogue_count(r->cat); i++)
        n += cf_catalogue_at(r->cat, i)->n_slices > 0;
    return n;
}

static void report_print(const report *r)
{
    const cf_model *m = r->model;
    char a[32];
    cf_table *t = cf_table_create("lrl");
    cf_table_cell(t, "config");
    cf_table_cell(t, "1");
    cf_table_cell(t, "%s (%s)", m->spec.family, m->spec.architecture);
    cf_table_end_row(t);
    cf_table_cell(t, "tensors");
    cf_table_cell(t, "%u", cf_catalogue_count(r->cat));
    cf_table_cell(t, "names, types, shapes and offsets are right");
    cf_table_end_row(t);
    if (sliced_of(r)) {
        cf_table_cell(t, "in slices");
        cf_table_cell(t, "%" PRIu64, sliced_of(r));
        cf_table_cell(t, "all slices are there, alike, and make the whole");
        cf_table_end_row(t);
    }
    cf_table_cell(t, "files");
    cf_table_cell(t, "%u", cf_catalogue_file_count(r->cat));
    if (r->unclaimed_bytes)
        cf_table_cell(t, "readable to the last byte; %s belong to no tensor",
                      cf_bytes_text(r->unclaimed_bytes, a, sizeof a));
    else
        cf_table_cell(t, "readable to the last byte");
    cf_table_end_row(t);
    cf_table_cell(t, "router weights");
    cf_table_cell(t, "%" PRIu64, r->finite_tensors);
    cf_table_cell(t, "finite (%s)", cf_bytes_text(r->finite_bytes, a, sizeof a));
    cf_table_end_row(t);
    cf_table_cell(t, "tokenizer");
    cf_table_cell(t, "%d", r->tokens >= 0);
    if (r->tokens >= 0)
        cf_table_cell(t, "%" PRId32 " ids for a vocabulary of %u%s", r->tokens, m->spec.vocab,
                      r->no_text ? "; it cannot encode (use --ids)" : "");
    else
        cf_table_cell(t, "none: the model runs on token ids (--ids)");
    cf_table_end_row(t);
    cf_table_cell(t, "checksums");
    cf_table_cell(t, "%" PRIu64, sums_of(r));
    if (sums_of(r))
        cf_table_cell(t, "hold (%" PRIu64 " of records; %s)", r->model->pack->sums.n_records,
                      cf_bytes_text(cf_pack_summed_bytes(r->model->pack), a, sizeof a));
    else
        cf_table_cell(t, "this format has none: a changed byte inside a weight goes unnoticed");
    cf_table_end_row(t);
    printf("%s: no defect found\n\n", cf_model_path(m));
    cf_table_print(t, stdout, 2);
    cf_table_destroy(&t);
}

static int report_json(const report *r)
{
    const cf_model *m = r->model;
    return cf_json_print(
        json_pack("{s:s, s:b, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "model", cf_model_path(m),
                  "ok", 1, "family", m->spec.family, "tensors",
                  (json_int_t)cf_catalogue_count(r->cat), "tensors_in_slices",
                  (json_int_t)sliced_of(r), "files", (json_int_t)cf_catalogue_file_count(r->cat),
                  "unclaimed_bytes", (json_int_t)r->unclaimed_bytes, "finite_tensors",
                  (json_int_t)r->finite_tensors, "tokenizer_ids",
                  (json_int_t)(r->tokens < 0 ? 0 : r->tokens), "checksums",
                  (json_int_t)sums_of(r)));
}

int cmd_verify(int argc, char **argv)
{
    cf_err err = {0};
    report r = {0};
    bool json = false;
    cf_args args = {.command = "verify",
                    .help = verify_help,
                    .short_options = "q",
                    .options = verify_options,
                    .argc = argc,
                    .argv = argv};
    cf_args_begin(&args);
    int opt;
    while ((opt = cf_args_next(&args)) >= 0)
        *(opt == OPT_JSON ? &json : &r.quiet) = true;
    const char *dir = opt == CF_ARGS_END ? cf_args_operand(&args, "MODEL") : NULL;
    if (!dir)
        return args.exit_code;

    int rc = model_open(&r, dir, &err);
    for (uint32_t i = 0; rc == 0 && i < cf_catalogue_file_count(r.cat); i++)
        rc = file_check(&r, i, &err);
    if (rc == 0)
        rc = weights_check(&r, &err);
    if (rc == 0)
        rc = tokenizer_check(&r, &err);
    if (rc == 0)
        rc = sums_verify(&r, &err);
    int code = CF_EXIT_DONE;
    if (rc < 0)
        code = cf_tool_fail_err(&err, rc);
    else if (json)
        code = report_json(&r);
    else
        report_print(&r);
    cf_model_free(&r.model);
    cf_catalogue_close(&r.stored);
    return code;
}
