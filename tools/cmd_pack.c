/* catflap pack: a model as one GGUF file that streams well: quantised, each expert's matrices side
 * by side at page boundaries, a checksum for everything that is read, and if wanted compressed.
 *
 * The file has the name OUT.part until it is complete and on the drive. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "models/family.h"
#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/machine.h"
#include "tools/options.h"
#include "tools/pack_plan.h"
#include "tools/pack_work.h"
#include "tools/progress.h"
#include "tools/table.h"
#include "tools/text_io.h"

static const char pack_help[] =
    "usage: catflap pack MODEL OUT.gguf [options]\n"
    "\n"
    "Writes a model as one GGUF file that this program opens in place of MODEL: the matrices of "
    "an\n"
    "expert side by side at multiples of 4096 bytes, so that a record is one read, and a checksum\n"
    "(XXH3) for everything that is read later. Norms, biases and routers are stored as f32.\n"
    "Other programs can list the file, not run it.\n"
    "\n"
    "  --experts TYPE   of the experts' matrices; default keep\n"
    "  --resident TYPE  of the other matrices and the embeddings; default keep\n"
    "                   TYPE: keep, q8_0, q6_k, q5_k, q4_k, q4_0, iq4_nl, mxfp4, bf16, f16\n"
    "\n"
    "keep loses nothing: formats stay as they are. Matrices whose scales are tensors of their own\n"
    "(FP8, NVFP4, packed INT4) become f32, which is larger: name a type for them. MXFP4 stays "
    "MXFP4.\n"
    "\n"
    "  --zstd[=LEVEL]   compress each record (1 to 19, default 3); `catflap info` says whether "
    "that\n"
    "                   pays on this drive\n"
    "  --jobs N         threads; default one for each processor\n"
    "  --force          replace OUT.gguf if it exists\n"
    "  --json           the summary as JSON\n"
    "  -q               no progress bar\n"
    "\n"
    "Rows that are no whole number of a type's blocks get another type: q8_0 for q6_k, q5_1 for\n"
    "q5_k, q5_0 for q4_k, f16 where 32 does not divide them. The summary counts them.\n"
    "\n"
    "example:\n"
    "  catflap pack models/demo /tmp/demo.gguf --experts q8_0\n";

enum { OPT_EXPERTS = CF_OPT_COMMAND, OPT_RESIDENT, OPT_ZSTD, OPT_JOBS, OPT_FORCE, OPT_JSON };

static const struct option pack_flags[] = {{"experts", required_argument, NULL, OPT_EXPERTS},
                                           {"resident", required_argument, NULL, OPT_RESIDENT},
                                           {"zstd", optional_argument, NULL, OPT_ZSTD},
                                           {"jobs", required_argument, NULL, OPT_JOBS},
                                           {"force", no_argument, NULL, OPT_FORCE},
                                           {"json", no_argument, NULL, OPT_JSON},
                                           {0}};

enum { MAX_JOBS = 256, DEFAULT_LEVEL = 3, MAX_LEVEL = 19 };

typedef struct pack {
    const char *from, *out;
    cf_pack_options options;
    uint32_t jobs;
    bool force, json, quiet;
    cf_model *model;
    cf_pack_plan plan;
    cf_pack_work *work;
    cf_gguf_writer *writer;
    uint64_t *sums;
    cf_page_sums pages;
    uint64_t records;      /* written so far */
    uint64_t record_bytes; /* of them, padded */
    uint64_t plain_bytes;  /* of them before compression */
    uint64_t source_bytes, bytes, ns;
} pack;

/* ---- before anything is written ---- */

static int target_check(const pack *k, cf_err *err)
{
    struct stat st;
    if (stat(k->out, &st) < 0)
        return errno == ENOENT
                   ? 0
                   : CF_FAIL(err, -errno, "cannot write %s: %s", k->out, cf_err_name(-errno));
    if (!S_ISREG(st.st_mode))
        return CF_FAIL(err, -EEXIST, "%s exists and is no regular file", k->out);
    if (!k->force)
        return CF_FAIL(err, -EEXIST, "%s exists: add --force to replace it", k->out);
    return 0;
}

/* An hour of work should not end in "no space left". Compressed sizes are not known before. */
static int space_check(const pack *k, cf_err *err)
{
    struct statvfs fs;
    char *dir = strdup(k->out), a[32], b[32];
    if (!dir)
        return CF_FAIL(err, -ENOMEM, "out of memory for a path");
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = 0;
    int bad = statvfs(slash ? dir : ".", &fs);
    free(dir);
    uint64_t room = bad ? 0 : (uint64_t)fs.f_bavail * fs.f_frsize;
    if (!bad && !k->options.zstd && room < k->plan.out_bytes)
        return CF_FAIL(err, -ENOSPC, "%s needs %s, its file system has %s left", k->out,
                       cf_bytes_text(k->plan.out_bytes, a, sizeof a),
                       cf_bytes_text(room, b, sizeof b));
    return 0;
}

/* ---- writing ---- */

static int record_write(pack *k, const cf_pack_part *part, cf_err *err)
{
    const cf_pack_records *r = &k->plan.layers[part->layer];
    int rc = 0;
    if (k->options.zstd)
        rc = cf_gguf_append_whole(k->writer, part->data, part->bytes, err);
    for (int p = 0; p < CF_PACK_PIECES && !k->options.zstd && rc == 0; p++)
        rc =
            !r->bytes[p] ? 0 : cf_gguf_append(k->writer, part->data + r->offs[p], r->bytes[p], err);
    k->sums[k->records++] = part->sum;
    k->record_bytes += cf_align_up(part->bytes, CF_PACK_ALIGN);
    k->plain_bytes += r->image_bytes;
    return rc;
}

static int tensor_write(pack *k, const cf_pack_part *part, cf_err *err)
{
    cf_page_sums_add(&k->pages, part->data, part->bytes);
    if (part->last)
        cf_page_sums_end(&k->pages);
    return cf_gguf_append(k->writer, part->data, part->bytes, err);
}

static int parts_write(pack *k, cf_err *err)
{
    cf_progress bar = {0};
    cf_pack_part part;
    int rc;
    cf_progress_begin(&bar, "packing", k->plan.source_bytes, k->quiet);
    while ((rc = cf_pack_work_next(k->work, &part, err)) == 1) {
        rc = part.record ? record_write(k, &part, err) : tensor_write(k, &part, err);
        k->source_bytes += part.source_bytes;
        cf_pack_work_give_back(k->work, &part);
        if (rc == 0 && cf_interrupted())
            rc = CF_FAIL(err, -EINTR, "interrupted: %s was not written", k->out);
        if (rc < 0)
            break;
        cf_progress_update(&bar, k->source_bytes);
    }
    cf_progress_end(&bar);
    return rc;
}

/* The sums, the header that vouches for them and for itself. */
static int pack_seal(pack *k, cf_err *err)
{
    const uint8_t *header;
    uint64_t bytes = k->plan.n_sums * sizeof *k->sums;
    cf_assert(k->records == k->plan.n_records && k->records + k->pages.n == k->plan.n_sums);
    int rc = cf_gguf_append(k->writer, k->sums, bytes, err);
    if (rc < 0)
        return rc;
    cf_gguf_set_u64(k->writer, "catflap.pack.sums_xxh3", cf_sum_of(k->sums, bytes));
    cf_gguf_set_u64(k->writer, "catflap.pack.header_bytes", cf_gguf_header_bytes(k->writer));
    if ((rc = cf_gguf_header(k->writer, &header, err)) < 0)
        return rc;
    cf_gguf_set_u64(k->writer, "catflap.pack.header_xxh3",
                    cf_sum_of(header, cf_gguf_header_bytes(k->writer)));
    return cf_gguf_commit(&k->writer, err);
}

static int pack_write(pack *k, cf_err *err)
{
    struct stat st;
    int rc = 0;
    uint64_t begin = cf_clock_ns();
    CF_TRY(target_check(k, err));
    CF_TRY(cf_model_open(&k->model, k->from, err));
    CF_TRY(cf_pack_plan_make(&k->plan, k->model, &k->options, err));
    CF_TRY(space_check(k, err));
    k->sums = calloc(k->plan.n_sums + 1, sizeof *k->sums);
    if (!k->sums)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for %" PRIu64 " checksums", k->plan.n_sums));
    k->pages.list = k->sums + k->plan.first_page_sum;
    CF_TRY(cf_gguf_create(&k->writer, k->out, CF_PACK_ALIGN, err));
    CF_TRY(cf_pack_declare(&k->plan, k->writer, err));
    CF_TRY(cf_gguf_begin(k->writer, err));
    CF_TRY(cf_pack_work_begin(&k->work, &k->plan, k->jobs, err));
    CF_TRY(parts_write(k, err));
    CF_TRY(pack_seal(k, err));
    k->ns = cf_clock_ns() - begin;
    k->bytes = stat(k->out, &st) == 0 ? (uint64_t)st.st_size : 0;
fail:
    cf_pack_work_end(&k->work);
    cf_gguf_abandon(&k->writer);
    return rc;
}

static void pack_finish(pack *k)
{
    free(k->sums);
    cf_pack_plan_finish(&k->plan);
    cf_model_free(&k->model);
}

/* ---- the summary ---- */

typedef struct role {
    uint64_t tensors, from, to;
    cf_format format; /* of most bytes */
    uint64_t of_format[CF_FORMAT_COUNT];
} role;

static void role_add(role *r, cf_format f, uint64_t tensors, uint64_t from, uint64_t to)
{
    r->tensors += tensors;
    r->from += from;
    r->to += to;
    r->of_format[f] += to;
    if (r->of_format[f] > r->of_format[r->format])
        r->format = f;
}

static void roles_add(const pack *k, role *vectors, role *matrices, role *experts)
{
    for (uint32_t i = 0; i < k->plan.n_tensors; i++) {
        const cf_pack_tensor *t = &k->plan.tensors[i];
        bool small = t->format == CF_F32 && t->n_dims == 1;
        role_add(small ? vectors : matrices, t->format, 1, cf_pack_tensor_source_bytes(t),
                 t->bytes);
    }
    for (uint32_t i = 0; i < k->model->n_moe; i++) {
        const cf_pack_records *r = &k->plan.layers[i];
        for (int p = 0; p < CF_PACK_PIECES; p++)
            role_add(experts, r->formats[p], r->bytes[p] ? r->moe->experts : 0, 0,
                     r->moe->experts * r->bytes[p]);
        experts->from += cf_moe_stored_bytes(r->moe);
    }
}

static void role_print(cf_table *t, const char *name, const role *r)
{
    char a[32], b[32];
    cf_table_cell(t, "%s", name);
    cf_table_cell(t, "%" PRIu64, r->tensors);
    cf_table_cell(t, "%s", cf_bytes_text(r->from, a, sizeof a));
    cf_table_cell(t, "%s", cf_bytes_text(r->to, b, sizeof b));
    cf_table_cell(t, "%s", r->tensors ? cf_format_name(r->format) : "");
    cf_table_end_row(t);
}

static double rate(const pack *k)
{
    return k->ns ? (double)k->source_bytes / cf_seconds(k->ns) : 0;
}

static void summary_print(const pack *k)
{
    role vectors = {0}, matrices = {0}, experts = {0};
    char a[32], b[32];
    static const char *const heads[] = {"role", "tensors", "from", "to", "mostly"};
    roles_add(k, &vectors, &matrices, &experts);
    printf("%s: %s of %s\n\n", k->out, cf_bytes_text(k->bytes, a, sizeof a), k->model->spec.name);
    cf_table *t = cf_table_create("lrrrl");
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++)
        cf_table_cell(t, "%s", heads[i]);
    cf_table_end_row(t);
    cf_table_rule(t);
    role_print(t, "experts", &experts);
    role_print(t, "matrices, tables", &matrices);
    role_print(t, "vectors", &vectors);
    cf_table_print(t, stdout, 2);
    cf_table_destroy(&t);
    fputc('\n', stdout);
    if (k->plan.n_fallbacks)
        printf("  %u of another type than asked for, such as: %s\n", k->plan.n_fallbacks,
               k->plan.fallback);
    if (k->plan.n_scaled)
        printf("  %" PRIu64 " matrices whose scales are tensors of their own became f32\n",
               k->plan.n_scaled);
    if (k->options.zstd && k->plain_bytes)
        printf("  zstd: records shrank to %.1f %%\n",
               100.0 * (double)k->record_bytes / (double)k->plain_bytes);
    if (k->model->n_skipped)
        printf("  left out: %s (%s)\n", k->model->skipped_what,
               cf_bytes_text(k->model->skipped_bytes, b, sizeof b));
    printf("  %" PRIu64 " records and %" PRIu64 " pages have a checksum; %.1f s, %.0f MB/s read\n",
           k->plan.n_records, k->plan.n_sums - k->plan.n_records, cf_seconds(k->ns), rate(k) / 1e6);
}

static int summary_json(const pack *k)
{
    role vectors = {0}, matrices = {0}, experts = {0};
    roles_add(k, &vectors, &matrices, &experts);
    return cf_json_print(json_pack(
        "{s:s, s:I, s:I, s:I, s:s, s:s, s:i, s:b, s:f, s:I, s:I, s:f, s:f}", "pack", k->out,
        "bytes", (json_int_t)k->bytes, "source_bytes", (json_int_t)k->source_bytes, "expert_bytes",
        (json_int_t)k->record_bytes, "experts", cf_format_name(experts.format), "resident",
        cf_format_name(matrices.format), "other_types", (int)k->plan.n_fallbacks, "zstd",
        k->options.zstd, "ratio",
        k->plain_bytes ? (double)k->record_bytes / (double)k->plain_bytes : 1.0, "records",
        (json_int_t)k->plan.n_records, "pages", (json_int_t)(k->plan.n_sums - k->plan.n_records),
        "seconds", cf_seconds(k->ns), "bytes_per_s", rate(k)));
}

/* ---- the command line ---- */

static int type_take(cf_args *args, cf_pack_type *out)
{
    if (cf_pack_type_parse(args->value, out))
        return 0;
    return cf_args_usage(args, "%s: \"%.32s\" is no type; known: %s", args->name, args->value,
                         cf_pack_types);
}

static int option_take(pack *k, cf_args *args, int opt)
{
    uint32_t level = DEFAULT_LEVEL;
    int rc = 0;
    switch (opt) {
    case OPT_EXPERTS:
        return type_take(args, &k->options.experts);
    case OPT_RESIDENT:
        return type_take(args, &k->options.resident);
    case OPT_ZSTD:
        if (args->value)
            rc = cf_args_u32(args, 1, MAX_LEVEL, &level);
        k->options.zstd = true;
        k->options.level = (int)level;
        return rc;
    case OPT_JOBS:
        return cf_args_u32(args, 1, MAX_JOBS, &k->jobs);
    case OPT_FORCE:
        k->force = true;
        return 0;
    case OPT_JSON:
        k->json = true;
        return 0;
    default:
        k->quiet = true;
        return 0;
    }
}

static bool ends_in(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n > k && strcmp(text + n - k, end) == 0;
}

static int pack_parse(pack *k, int argc, char **argv, int *code)
{
    cf_args args = {.command = "pack",
                    .help = pack_help,
                    .short_options = "q",
                    .options = pack_flags,
                    .argc = argc,
                    .argv = argv};
    int opt;
    cf_args_begin(&args);
    while ((opt = cf_args_next(&args)) >= 0)
        if (option_take(k, &args, opt) != 0) {
            opt = CF_ARGS_STOP;
            break;
        }
    if (opt == CF_ARGS_END && optind + 2 != argc)
        opt = cf_args_usage(&args, "MODEL and OUT.gguf are needed, and nothing else");
    /* That is how models are known. */
    if (opt == CF_ARGS_END && !ends_in(argv[optind + 1], ".gguf"))
        opt = cf_args_usage(&args, "OUT.gguf: \"%.200s\" does not end in .gguf", argv[optind + 1]);
    if (opt == CF_ARGS_END) {
        k->from = argv[optind];
        k->out = argv[optind + 1];
        opt = 0;
    }
    *code = args.exit_code;
    return opt;
}

int cmd_pack(int argc, char **argv)
{
    cf_err err = {0};
    pack k = {
        .options = {.experts = {.keep = true}, .resident = {.keep = true}, .level = DEFAULT_LEVEL},
        .jobs = (uint32_t)cf_min_u64((uint64_t)cf_machine_processors(""), MAX_JOBS)};
    int code;
    if (pack_parse(&k, argc, argv, &code) != 0)
        return code;
    cf_interrupt_begin(NULL, true);
    int rc = pack_write(&k, &err);
    code = CF_EXIT_DONE;
    if (rc < 0) {
        code = cf_tool_fail_err(&err, rc);
        if (cf_interrupted())
            code = CF_EXIT_INTERRUPTED;
    } else if (k.json) {
        code = summary_json(&k);
    } else {
        summary_print(&k);
    }
    cf_interrupt_end();
    pack_finish(&k);
    return code;
}
