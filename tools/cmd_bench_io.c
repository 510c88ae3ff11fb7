/* catflap bench io: the drive as the engine reads it, against what the drive can give. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/log.h"
#include "tools/bench.h"
#include "tools/bench_io.h"
#include "tools/progress.h"
#include "tools/table.h"
#include "tools/text_io.h"

static const char bench_io_help[] =
    "usage: catflap bench io FILE [options]\n"
    "\n"
    "Reads FILE (nothing is written) in records of several sizes at several queue depths, the way\n"
    "the engine reads experts: past the page cache (direct) and through it (buffered, its pages\n"
    "dropped first), into registered memory and not. Records are visited out of order; those "
    "larger\n"
    "than 512 KiB are split, and the depth counts these reads. The ceiling is a plain io_uring "
    "loop\n"
    "over the same file, the best of 256 KiB and 1 MiB reads at depths 16 and 64, in order or "
    "not.\n"
    "Speeds are medians, in 10^9 bytes per second. Use a large file that nobody writes to.\n"
    "\n"
    "  --sizes LIST    of records; default 64K,256K,1M,4M,16M,32M\n"
    "  --depths LIST   reads in flight; default 1,4,16,32,64\n"
    "  --seconds S     for everything; default 50\n"
    "  --samples N     of each cell; default 3\n"
    "  --io NAME       auto, uring or pread\n"
    "  --json, --csv   machine-readable\n"
    "\n"
    "example:\n"
    "  catflap bench io model-00001-of-00075.safetensors --seconds 20\n";

enum {
    OPT_SIZES = CF_OPT_COMMAND,
    OPT_DEPTHS,
    OPT_SECONDS,
    OPT_SAMPLES,
    OPT_IO,
    OPT_JSON,
    OPT_CSV
};

/* clang-format off */
static const struct option bench_io_options[] = {
    {"sizes", required_argument, NULL, OPT_SIZES},
    {"depths", required_argument, NULL, OPT_DEPTHS},
    {"seconds", required_argument, NULL, OPT_SECONDS},
    {"samples", required_argument, NULL, OPT_SAMPLES},
    {"io", required_argument, NULL, OPT_IO},
    {"json", no_argument, NULL, OPT_JSON},
    {"csv", no_argument, NULL, OPT_CSV},
    {0}};
/* clang-format on */

/* ---- the command line ---- */

int cf_bench_list(cf_args *args, bool (*parse)(const char *text, uint64_t *out), uint64_t low,
                  uint64_t high, uint64_t *out, uint32_t max, uint32_t *n)
{
    const char *p = args->value;
    *n = 0;
    for (;;) {
        char word[32];
        size_t len = strcspn(p, ",");
        if (*n == max)
            return cf_args_usage(args, "%s takes at most %u values", args->name, max);
        bool ok = len < sizeof word;
        if (ok) {
            memcpy(word, p, len);
            word[len] = 0;
            ok = parse(word, &out[*n]) && out[*n] >= low && out[*n] <= high;
        }
        if (!ok)
            return cf_args_usage(args,
                                 "%s takes values from %" PRIu64 " to %" PRIu64
                                 " separated by commas, not \"%.80s\"",
                                 args->name, low, high, args->value);
        ++*n;
        if (!p[len])
            return 0;
        p += len + 1;
    }
}

static int io_option(cf_bench_io *b, cf_bench_form *form, cf_args *args, int opt)
{
    uint64_t depths[CF_BENCH_LIST];
    int rc;
    switch (opt) {
    case OPT_SIZES:
        return cf_bench_list(args, cf_parse_size, 4096, CF_BENCH_RECORD_MAX, b->sizes,
                             CF_BENCH_LIST, &b->n_sizes);
    case OPT_DEPTHS:
        rc = cf_bench_list(args, cf_parse_u64, 1, 1024, depths, CF_BENCH_LIST, &b->n_depths);
        for (uint32_t i = 0; rc == 0 && i < b->n_depths; i++)
            b->depths[i] = (uint32_t)depths[i];
        return rc;
    case OPT_SECONDS:
        return cf_args_double(args, 0.1, 3600, &b->seconds);
    case OPT_SAMPLES:
        return cf_args_u32(args, 1, CF_BENCH_SAMPLES, &b->samples);
    case OPT_IO:
        b->kind = !strcmp(args->value, "uring")   ? CF_IO_URING
                  : !strcmp(args->value, "pread") ? CF_IO_PREAD
                                                  : CF_IO_AUTO;
        if (b->kind == CF_IO_AUTO && strcmp(args->value, "auto") != 0)
            return cf_args_usage(args, "--io takes auto, uring or pread, not \"%.80s\"",
                                 args->value);
        return 0;
    default:
        return cf_bench_form_set(form, opt == OPT_JSON ? CF_BENCH_JSON : CF_BENCH_CSV, args);
    }
}

static int io_parse(cf_bench_io *b, cf_bench_form *form, int argc, char **argv, int *code)
{
    static const uint64_t sizes[] = {64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 32 << 20};
    static const uint32_t depths[] = {1, 4, 16, 32, 64};
    memcpy(b->sizes, sizes, sizeof sizes);
    memcpy(b->depths, depths, sizeof depths);
    b->n_sizes = sizeof sizes / sizeof *sizes;
    b->n_depths = sizeof depths / sizeof *depths;
    b->seconds = 50;
    b->samples = 3;
    cf_args args = {.command = "bench io",
                    .help = bench_io_help,
                    .short_options = "",
                    .options = bench_io_options,
                    .argc = argc,
                    .argv = argv};
    cf_args_begin(&args);
    int opt;
    while ((opt = cf_args_next(&args)) >= 0)
        if (io_option(b, form, &args, opt) < 0) {
            opt = CF_ARGS_STOP;
            break;
        }
    if (opt == CF_ARGS_END) {
        b->path = cf_args_operand(&args, "FILE");
        opt = b->path ? 0 : CF_ARGS_STOP;
    }
    *code = args.exit_code;
    return opt;
}

/* ---- the result ---- */

/* Of the best plain loop; of the best cell where there was no ring for it. */
static double ceiling_of(const cf_bench_io *b)
{
    double best = b->ceiling.best;
    for (uint32_t i = 0; i < b->n_cells && !(b->ceiling.best > 0); i++)
        best = b->cells[i].median > best ? b->cells[i].median : best;
    return best;
}

static void mode_print(const cf_bench_io *b, const cf_bench_cell *cells, double ceiling)
{
    char align[CF_BENCH_LIST + 2] = "r", text[32];
    memset(align + 1, 'r', b->n_depths);
    cf_table *t = cf_table_create(align);
    cf_table_cell(t, "record");
    for (uint32_t j = 0; j < b->n_depths; j++)
        cf_table_cell(t, "depth %u", b->depths[j]);
    cf_table_end_row(t);
    cf_table_rule(t);
    for (uint32_t i = 0; i < b->n_sizes; i++) {
        cf_table_cell(t, "%s", cf_bytes_text(b->sizes[i], text, sizeof text));
        for (uint32_t j = 0; j < b->n_depths; j++) {
            const cf_bench_cell *c = &cells[i * b->n_depths + j];
            if (c->n && ceiling > 0)
                cf_table_cell(t, "%.2f %4.0f %%", c->median, 100 * c->median / ceiling);
            else
                cf_table_cell(t, "-");
        }
        cf_table_end_row(t);
    }
    printf("\n%s (GB/s, of the ceiling)\n\n", cf_bench_mode_name(cells->mode));
    cf_table_print(t, stdout, 2);
    cf_table_destroy(&t);
}

static void io_print(const cf_bench_io *b)
{
    char text[32];
    printf("%s: %s, read with %s, alignment %u\n", b->path,
           cf_bytes_text(b->file_bytes, text, sizeof text), b->engine, b->align);
    if (b->ceiling.best > 0)
        printf("ceiling: %.2f GB/s (plain loop%s, %u KiB reads at depth %u; in order %.2f, out of "
               "order %.2f)\n",
               b->ceiling.best, b->ceiling.direct ? ", O_DIRECT" : "", b->ceiling.block_bytes >> 10,
               b->ceiling.depth, b->ceiling.sequential, b->ceiling.random);
    else
        printf("ceiling: %.2f GB/s (the best cell, since %s)\n", ceiling_of(b), b->ceiling_why);
    uint32_t a_mode = b->n_sizes * b->n_depths, missing = 0;
    for (uint32_t i = 0; i < b->n_cells; i += a_mode)
        mode_print(b, &b->cells[i], ceiling_of(b));
    for (uint32_t i = 0; i < b->n_cells; i++)
        missing += b->cells[i].n < b->samples;
    if (missing)
        cf_notice("no time was left for %u of %u cells: --seconds gives more", missing, b->n_cells);
}

static json_t *cell_json(const cf_bench_cell *c, double ceiling)
{
    json_t *samples = json_array();
    for (uint32_t i = 0; i < c->n; i++)
        json_array_append_new(samples, json_real(c->samples[i]));
    json_t *j = json_pack("{s:b s:b s:I s:I s:o}", "direct", !(c->mode & 2), "registered",
                          !(c->mode & 1), "record_bytes", (json_int_t)c->record_bytes, "depth",
                          (json_int_t)c->depth, "samples", samples);
    bool known = c->n && ceiling > 0;
    json_object_set_new(j, "gb_per_s", known ? json_real(c->median) : json_null());
    json_object_set_new(j, "ratio", known ? json_real(c->median / ceiling) : json_null());
    return j;
}

static int io_json(const cf_bench_io *b)
{
    double ceiling = ceiling_of(b);
    json_t *cells = json_array();
    for (uint32_t i = 0; i < b->n_cells; i++)
        json_array_append_new(cells, cell_json(&b->cells[i], ceiling));
    json_t *top =
        json_pack("{s:f s:b s:f s:f s:i s:i s:s}", "gb_per_s", ceiling, "direct", b->ceiling.direct,
                  "sequential", b->ceiling.sequential, "random", b->ceiling.random, "block_bytes",
                  (int)b->ceiling.block_bytes, "depth", (int)b->ceiling.depth, "method",
                  b->ceiling.best > 0 ? "plain loop" : "best cell");
    return cf_json_print(json_pack("{s:s s:I s:i s:s s:s s:s s:o s:o}", "file", b->path, "bytes",
                                   (json_int_t)b->file_bytes, "align", (int)b->align, "engine",
                                   b->engine, "notice", b->notice, "direct_refused", b->direct_why,
                                   "ceiling", top, "cells", cells));
}

static void io_csv(const cf_bench_io *b)
{
    double ceiling = ceiling_of(b);
    printf("direct,registered,record_bytes,depth,samples,gb_per_s,ratio\n");
    for (uint32_t i = 0; i < b->n_cells; i++) {
        const cf_bench_cell *c = &b->cells[i];
        printf("%d,%d,%" PRIu64 ",%u,%u,", !(c->mode & 2), !(c->mode & 1), c->record_bytes,
               c->depth, c->n);
        if (c->n && ceiling > 0)
            printf("%.4f,%.4f\n", c->median, c->median / ceiling);
        else
            printf(",\n");
    }
}

static void progress(void *user, uint32_t done, uint32_t total)
{
    cf_progress *p = user;
    if (!p->begin_ns)
        cf_progress_begin_count(p, "measuring", total, "cells", false);
    cf_progress_update(p, done);
}

int cf_bench_io_main(int argc, char **argv)
{
    cf_bench_form form = CF_BENCH_TABLE;
    cf_progress bar = {0};
    cf_err err = {0};
    int code = CF_EXIT_DONE;
    cf_bench_io *b = calloc(1, sizeof *b);
    if (!b)
        return cf_tool_fail("out of memory for the bench");
    if (io_parse(b, &form, argc, argv, &code) != 0)
        goto done;
    cf_interrupt_begin(NULL, false);
    b->progress = progress;
    b->progress_user = &bar;
    int rc = cf_bench_io_run(b, &err);
    cf_progress_end(&bar);
    if (rc < 0) {
        code = cf_tool_fail_err(&err, rc);
        goto done;
    }
    if (b->direct_why[0])
        cf_notice("O_DIRECT is not available, direct cells are left out: %s", b->direct_why);
    if (b->notice[0])
        cf_notice("%s", b->notice);
    if (form == CF_BENCH_JSON)
        code = io_json(b);
    else if (form == CF_BENCH_CSV)
        io_csv(b);
    else
        io_print(b);
done:
    free(b);
    return code;
}
