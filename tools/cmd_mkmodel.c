/* catflap mkmodel: writes a checkpoint of random weights in a family's published layout, or copies
 * one with its data elsewhere in the files. For measuring with sizes that nobody wants to download,
 * and for tests.
 *
 * The directory appears under its name when it is complete; a killed run leaves "<name>.partial",
 * without a config, which the next one clears. */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "models/family.h"
#include "runtime/base/align.h"
#include "storage/safetensors.h"
#include "tools/mkmodel_config.h"
#include "tools/mkmodel_fill.h"
#include "tools/mkmodel_write.h"
#include "tools/options.h"
#include "tools/table.h"
#include "tools/text_io.h"

static const char mkmodel_help[] =
    "usage: catflap mkmodel OUT_DIR --shape NAME | --config FILE.json [options]\n"
    "       catflap mkmodel OUT_DIR --copy MODEL [--data-offset N] [--shard-size SIZE]\n"
    "\n"
    "Writes a checkpoint of random weights: config.json, safetensors shards and their index. The\n"
    "bytes depend on the config, the seed and the tensors' names only. The directory appears when\n"
    "it is complete. With --copy, the tensors of an existing model, a folder of safetensors files, "
    "are\n"
    "written again.\n"
    "\n"
    "  --shape NAME        one of the shapes below\n"
    "  --config FILE.json  a config of a known family\n"
    "  --layers N --hidden N --heads N --experts N --zero-experts N --top-k N\n"
    "  --ffn N --expert-ffn N --vocab N --max-ctx N --ngram-ratio R\n"
    "                      change dimensions\n"
    "  --set KEY=VALUE     change any key of the config; VALUE is JSON\n"
    "  --dtype TYPE        bf16, f16 or f32; default the config's\n"
    "  --seed S            default 0\n"
    "  --shard-size SIZE   at most this much data in a file; default 4G\n"
    "  --data-offset N     0 to 15: data begins at N modulo 16 in each file, no better aligned\n"
    "  --size-only         print what would be written, and stop\n"
    "\n"
    "shapes:\n";

static const char mkmodel_example[] =
    "\nexample:\n"
    "  catflap mkmodel /tmp/lite --shape longcat-flash-lite --layers 2 --ngram-ratio 1\n";

enum {
    OPT_SHAPE = CF_OPT_COMMAND,
    OPT_CONFIG,
    OPT_COPY,
    OPT_SET,
    OPT_DTYPE,
    OPT_SEED,
    OPT_SHARD_SIZE,
    OPT_DATA_OFFSET,
    OPT_SIZE_ONLY,
    OPT_DIMENSION,
    OPT_RATIO
};

/* clang-format off */
static const struct option mkmodel_options[] = {
    {"shape", required_argument, NULL, OPT_SHAPE},
    {"config", required_argument, NULL, OPT_CONFIG},
    {"copy", required_argument, NULL, OPT_COPY},
    {"set", required_argument, NULL, OPT_SET},
    {"dtype", required_argument, NULL, OPT_DTYPE},
    {"seed", required_argument, NULL, OPT_SEED},
    {"shard-size", required_argument, NULL, OPT_SHARD_SIZE},
    {"data-offset", required_argument, NULL, OPT_DATA_OFFSET},
    {"size-only", no_argument, NULL, OPT_SIZE_ONLY},
    {"layers", required_argument, NULL, OPT_DIMENSION},
    {"hidden", required_argument, NULL, OPT_DIMENSION},
    {"heads", required_argument, NULL, OPT_DIMENSION},
    {"experts", required_argument, NULL, OPT_DIMENSION},
    {"zero-experts", required_argument, NULL, OPT_DIMENSION},
    {"top-k", required_argument, NULL, OPT_DIMENSION},
    {"ffn", required_argument, NULL, OPT_DIMENSION},
    {"expert-ffn", required_argument, NULL, OPT_DIMENSION},
    {"vocab", required_argument, NULL, OPT_DIMENSION},
    {"max-ctx", required_argument, NULL, OPT_DIMENSION},
    {"ngram-ratio", required_argument, NULL, OPT_RATIO},
    {0}};
/* clang-format on */

enum { MAX_CHANGES = 64, MAX_SIDE_FILE_BYTES = 256 << 20 };

/* A change to the config, in the order given. */
typedef struct change {
    const char *set;    /* KEY=VALUE, or */
    char dimension[32]; /* a dimension's flag with its value */
    json_t *value;
} change;

typedef struct mkmodel {
    /* The command line. */
    const char *out, *shape, *config_path, *copy;
    change changes[MAX_CHANGES];
    uint32_t n_changes;
    bool dtype_given, size_only;
    cf_format dtype;
    uint64_t seed, shard_bytes; /* 0: the default */
    int data_offset;
    /* What is to be written. */
    json_t *config;
    cf_expected *expected;
    cf_fill *fills;
    cf_catalogue *source;
    const cf_tensor **tensors; /* of the source, in file order */
    int *fds;
    cf_tensor_spec *specs;
    uint32_t *shard_of;
    cf_checkpoint checkpoint;
    cf_partial_dir dir;
} mkmodel;

/* ---- the command line ---- */

static int change_add(mkmodel *m, cf_args *args, int opt)
{
    if (m->n_changes == MAX_CHANGES)
        return cf_args_usage(args, "more than %d changes of the config", MAX_CHANGES);
    change *c = &m->changes[m->n_changes++];
    if (opt == OPT_SET) {
        c->set = args->value;
        return 0;
    }
    uint32_t n = 0;
    double ratio = 0;
    int rc = opt == OPT_RATIO ? cf_args_double(args, 0.01, 10000, &ratio)
                              : cf_args_u32(args, args->name[2] == 'z' ? 0 : 1, 1u << 30, &n);
    snprintf(c->dimension, sizeof c->dimension, "%.30s", args->name + 2);
    c->value = opt == OPT_RATIO ? json_real(ratio) : json_integer(n);
    return rc;
}

static int dtype_set(mkmodel *m, cf_args *args)
{
    static const struct {
        const char *name;
        cf_format format;
    } types[] = {{"bf16", CF_BF16}, {"f16", CF_F16}, {"f32", CF_F32}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (!strcmp(args->value, types[i].name)) {
            m->dtype = types[i].format;
            m->dtype_given = true;
            return 0;
        }
    return cf_args_usage(args, "--dtype takes bf16, f16 or f32, not \"%.80s\"", args->value);
}

static int mkmodel_option(void *user, cf_args *args, int opt)
{
    mkmodel *m = user;
    uint32_t n = 0;
    int rc;
    switch (opt) {
    case OPT_SHAPE:
        m->shape = args->value;
        return 0;
    case OPT_CONFIG:
        m->config_path = args->value;
        return 0;
    case OPT_COPY:
        m->copy = args->value;
        return 0;
    case OPT_DTYPE:
        return dtype_set(m, args);
    case OPT_SEED:
        return cf_args_u64(args, 0, UINT64_MAX, &m->seed);
    case OPT_SHARD_SIZE:
        return cf_args_size(args, &m->shard_bytes);
    case OPT_DATA_OFFSET:
        rc = cf_args_u32(args, 0, 15, &n);
        m->data_offset = (int)n;
        return rc;
    case OPT_SIZE_ONLY:
        m->size_only = true;
        return 0;
    default:
        return change_add(m, args, opt);
    }
}

static int mkmodel_parse(mkmodel *m, int argc, char **argv, int *code)
{
    char help[4096];
    FILE *text = fmemopen(help, sizeof help, "w");
    if (text) {
        fputs(mkmodel_help, text);
        cf_shape_list(text);
        fputs(mkmodel_example, text);
        fclose(text);
    }
    cf_args args = {.command = "mkmodel",
                    .help = text ? help : mkmodel_help,
                    .short_options = "",
                    .options = mkmodel_options,
                    .argc = argc,
                    .argv = argv};
    int opt = cf_args_parse(&args, mkmodel_option, m, "OUT_DIR", &m->out);
    int sources = !!m->shape + !!m->config_path + !!m->copy;
    if (opt == 0 && sources != 1)
        opt = cf_args_usage(&args, "%s of --shape NAME, --config FILE and --copy MODEL is expected",
                            sources ? "only one" : "one");
    if (opt == 0 && m->copy && (m->n_changes || m->dtype_given || m->seed))
        opt = cf_args_usage(&args, "--copy keeps the tensors as they are: no dimensions, --set, "
                                   "--dtype or --seed with it");
    *code = args.exit_code;
    return opt;
}

/* ---- random weights: what the family expects ---- */

static int config_make(mkmodel *m, cf_err *err)
{
    int rc = 0;
    m->config = m->shape ? cf_shape_config(m->shape, err) : cf_config_read(m->config_path, err);
    if (!m->config)
        return err->code;
    for (uint32_t i = 0; i < m->n_changes; i++) {
        change *c = &m->changes[i];
        if (c->set)
            CF_TRY(cf_config_assign(m->config, c->set, err));
        else
            CF_TRY(cf_config_override(m->config, c->dimension, json_incref(c->value), err));
    }
    if (m->dtype_given)
        CF_TRY(cf_config_elem_set(m->config, m->dtype));
    else
        m->dtype = cf_config_elem(m->config);
fail:
    return rc;
}

static int random_source(void *user, uint32_t tensor, uint64_t off, void *dst, uint64_t bytes,
                         cf_err *err)
{
    (void)err;
    const cf_fill *f = &((const mkmodel *)user)->fills[tensor];
    uint32_t size = cf_format_value_bytes(f->format);
    cf_fill_run(f, off / size, bytes / size, dst);
    return 0;
}

static int random_plan(mkmodel *m, cf_err *err)
{
    uint64_t n = 0;
    int rc = config_make(m, err);
    if (rc == 0)
        rc = cf_model_expected(m->config, m->shape ? m->shape : m->config_path, &m->expected, &n,
                               err);
    if (rc < 0)
        return rc;
    m->checkpoint.n = (uint32_t)n;
    m->specs = calloc(n + 1, sizeof *m->specs);
    m->fills = calloc(n + 1, sizeof *m->fills);
    if (!m->specs || !m->fills)
        return CF_FAIL(err, -ENOMEM, "out of memory for %" PRIu64 " tensors", n);
    for (uint64_t i = 0; i < n; i++) {
        const cf_expected *e = &m->expected[i];
        cf_format format = e->f32 ? CF_F32 : m->dtype;
        m->specs[i] = (cf_tensor_spec){.name = e->name, .format = format, .n_dims = e->n_dims};
        memcpy(m->specs[i].shape, e->shape, sizeof e->shape);
        m->fills[i] = cf_fill_of(e, format, m->seed);
    }
    m->checkpoint.source = random_source;
    return 0;
}

/* ---- a copy ---- */

static int copy_source(void *user, uint32_t tensor, uint64_t off, void *dst, uint64_t bytes,
                       cf_err *err)
{
    const mkmodel *m = user;
    const cf_extent *e = &m->tensors[tensor]->extent;
    return cf_read_at(m->fds[e->file], cf_catalogue_path(m->source, e->file), e->off + off, dst,
                      bytes, err);
}

static int tensor_compare(const void *a, const void *b)
{
    const cf_extent *x = &(*(const cf_tensor *const *)a)->extent;
    const cf_extent *y = &(*(const cf_tensor *const *)b)->extent;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->off < y->off ? -1 : x->off > y->off;
}

static int copy_open_files(mkmodel *m, cf_err *err)
{
    uint32_t files = cf_catalogue_file_count(m->source);
    m->fds = malloc((files + 1) * sizeof *m->fds);
    if (!m->fds)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u files", files);
    memset(m->fds, 0xff, (files + 1) * sizeof *m->fds); /* all -1 */
    for (uint32_t i = 0; i < files; i++) {
        const char *path = cf_catalogue_path(m->source, i);
        m->fds[i] = open(path, O_RDONLY | O_CLOEXEC);
        if (m->fds[i] < 0)
            return CF_FAIL(err, -errno, "cannot open %s: %s", path, cf_err_name(-errno));
    }
    return 0;
}

static int copy_plan(mkmodel *m, cf_err *err)
{
    struct stat st;
    if (stat(m->copy, &st) < 0)
        return CF_FAIL(err, -errno, "--copy %s: %s", m->copy, cf_err_name(-errno));
    if (!S_ISDIR(st.st_mode))
        return CF_FAIL(
            err, -ENOTDIR,
            "--copy takes a folder of *.safetensors files with their config.json; %s is a "
            "file (catflap pack makes a GGUF file of such a folder, not the reverse)",
            m->copy);
    int rc = cf_safetensors_open(m->copy, &m->source, err);
    if (rc == 0)
        rc = copy_open_files(m, err);
    if (rc < 0)
        return rc;
    uint32_t n = cf_catalogue_count(m->source);
    m->checkpoint.n = n;
    m->tensors = calloc(n + 1, sizeof *m->tensors);
    m->specs = calloc(n + 1, sizeof *m->specs);
    if (!m->tensors || !m->specs)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u tensors", n);
    for (uint32_t i = 0; i < n; i++)
        m->tensors[i] = cf_catalogue_at(m->source, i);
    qsort(m->tensors, n, sizeof *m->tensors, tensor_compare);
    for (uint32_t i = 0; i < n; i++) {
        const cf_tensor *t = m->tensors[i];
        if (t->n_slices)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: tensor %s is in %u slices, which are not copied; catflap pack "
                           "joins them",
                           m->copy, t->name, t->n_slices);
        m->specs[i] = (cf_tensor_spec){.name = t->name, .format = t->format, .n_dims = t->n_dims};
        memcpy(m->specs[i].shape, t->shape, sizeof t->shape);
    }
    m->checkpoint.source = copy_source;
    return 0;
}

/* config.json, tokenizer and the like: small files beside the tensors. */
static bool is_side_file(const char *name)
{
    static const char *const ends[] = {".json", ".jinja", ".txt", ".model", ".tiktoken"};
    size_t n = strlen(name);
    if (!strcmp(name, "model.safetensors.index.json") || !strcmp(name, "config.json"))
        return false;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        size_t e = strlen(ends[i]);
        if (n > e && !strcmp(name + n - e, ends[i]))
            return true;
    }
    return false;
}

static int file_copy(const char *from_dir, const char *to_dir, const char *name, cf_err *err)
{
    char from[4200], to[4200], *text = NULL;
    struct stat st;
    size_t bytes;
    snprintf(from, sizeof from, "%s/%s", from_dir, name);
    snprintf(to, sizeof to, "%s/%s", to_dir, name);
    if (stat(from, &st) == 0 && (!S_ISREG(st.st_mode) || st.st_size > MAX_SIDE_FILE_BYTES))
        return 0;
    int rc = cf_text_read(from, &text, &bytes, err);
    if (rc == 0)
        rc = cf_file_write_whole(to, text, bytes, err);
    free(text);
    return rc;
}

static int side_files_copy(const mkmodel *m, cf_err *err)
{
    DIR *dir = opendir(m->copy);
    if (!dir)
        return CF_FAIL(err, -errno, "cannot open %s: %s", m->copy, cf_err_name(-errno));
    int rc = 0;
    struct dirent *entry;
    while (rc == 0 && (entry = readdir(dir)))
        if (is_side_file(entry->d_name))
            rc = file_copy(m->copy, m->dir.temp, entry->d_name, err);
    closedir(dir);
    return rc == 0 ? file_copy(m->copy, m->dir.temp, "config.json", err) : rc;
}

/* ---- both ---- */

static int shards_plan(mkmodel *m, cf_err *err)
{
    cf_checkpoint *c = &m->checkpoint;
    uint64_t bytes;
    m->shard_of = calloc(c->n + 1, sizeof *m->shard_of);
    if (!m->shard_of)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u tensors", c->n);
    for (uint32_t i = 0; i < c->n; i++)
        if (!cf_tensor_spec_bytes(&m->specs[i], &bytes) ||
            !cf_add_u64(c->data_bytes, bytes, &c->data_bytes))
            return CF_FAIL(err, CF_ELIMIT, "the model is too large: tensor %s", m->specs[i].name);
    if (m->copy && !m->shard_bytes) { /* as they were */
        for (uint32_t i = 1; i < c->n; i++)
            m->shard_of[i] =
                m->shard_of[i - 1] + (m->tensors[i]->extent.file != m->tensors[i - 1]->extent.file);
        c->n_shards = c->n ? m->shard_of[c->n - 1] + 1 : 0;
    } else {
        uint64_t limit = m->shard_bytes ? m->shard_bytes : (uint64_t)4 << 30;
        c->n_shards = cf_safetensors_shard(m->specs, c->n, limit, m->shard_of);
    }
    if (c->n == 0)
        return CF_FAIL(err, CF_EFORMAT, "%s holds no tensors", m->copy ? m->copy : m->out);
    c->list = m->specs;
    c->shard_of = m->shard_of;
    c->data_offset = m->data_offset;
    c->user = m;
    return 0;
}

static void size_print(const mkmodel *m, FILE *out)
{
    char text[32];
    const cf_checkpoint *c = &m->checkpoint;
    fprintf(out, "%s: %u tensors, %s (%" PRIu64 " bytes) in %u file%s\n",
            m->copy    ? m->copy
            : m->shape ? m->shape
                       : m->config_path,
            c->n, cf_bytes_text(c->data_bytes, text, sizeof text), c->data_bytes, c->n_shards,
            c->n_shards == 1 ? "" : "s");
}

static int space_check(const mkmodel *m, cf_err *err)
{
    struct statvfs fs;
    char need[32], have[32];
    if (fstatvfs(m->dir.lock, &fs) < 0)
        return CF_FAIL(err, -errno, "cannot ask for the free space of %s: %s", m->out,
                       cf_err_name(-errno));
    /* Names, headers and the index: an upper estimate of a tensor's share. */
    uint64_t want = m->checkpoint.data_bytes + (uint64_t)m->checkpoint.n * 512 + (1 << 20);
    uint64_t left;
    if (!cf_mul_u64(fs.f_bavail, fs.f_frsize, &left) || left >= want)
        return 0;
    return CF_FAIL(err, -ENOSPC,
                   "%s needs %s, its drive has %s free: choose fewer layers or "
                   "another drive",
                   m->out, cf_bytes_text(want, need, sizeof need),
                   cf_bytes_text(left, have, sizeof have));
}

static int config_write(const mkmodel *m, cf_err *err)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/config.json", m->dir.temp);
    char *text = json_dumps(m->config, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    if (!text)
        return CF_FAIL(err, -ENOMEM, "out of memory for config.json");
    int rc = cf_file_write_whole(path, text, strlen(text), err);
    free(text);
    return rc;
}

/* The config comes last: without it a directory is no model. */
static int mkmodel_write(mkmodel *m, cf_err *err)
{
    int rc;
    cf_model *check = NULL;
    cf_catalogue *cat = NULL;
    CF_TRY(cf_partial_dir_begin(&m->dir, m->out, err));
    CF_TRY(space_check(m, err));
    CF_TRY(cf_checkpoint_write(&m->checkpoint, m->dir.temp, err));
    CF_TRY(m->copy ? side_files_copy(m, err) : config_write(m, err));
    CF_TRY(m->copy ? cf_safetensors_open(m->dir.temp, &cat, err)
                   : cf_model_open(&check, m->dir.temp, err));
    CF_TRY(cf_partial_dir_commit(&m->dir, err));
fail:
    cf_catalogue_close(&cat);
    cf_model_free(&check);
    return rc;
}

static void mkmodel_finish(mkmodel *m)
{
    cf_partial_dir_finish(&m->dir);
    for (uint32_t i = 0; i < m->n_changes; i++)
        json_decref(m->changes[i].value);
    json_decref(m->config);
    cf_expected_free(m->expected, m->expected ? m->checkpoint.n : 0);
    if (m->fds)
        for (uint32_t i = 0; i < cf_catalogue_file_count(m->source); i++)
            if (m->fds[i] >= 0)
                close(m->fds[i]);
    cf_catalogue_close(&m->source);
    free(m->fds);
    free(m->fills);
    free(m->tensors);
    free(m->specs);
    free(m->shard_of);
}

int cmd_mkmodel(int argc, char **argv)
{
    mkmodel m = {.data_offset = CF_DATA_ALIGNED_8, .dir.lock = -1};
    cf_err err = {0};
    int code;
    if (mkmodel_parse(&m, argc, argv, &code) != 0) {
        mkmodel_finish(&m);
        return code;
    }
    int rc = m.copy ? copy_plan(&m, &err) : random_plan(&m, &err);
    if (rc == 0)
        rc = shards_plan(&m, &err);
    if (rc == 0)
        size_print(&m, m.size_only ? stdout : stderr);
    if (rc == 0 && !m.size_only) {
        cf_interrupt_begin(NULL, true);
        rc = mkmodel_write(&m, &err);
        cf_interrupt_end();
    }
    if (rc == -ECANCELED)
        fputs("catflap: interrupted, nothing is left\n", stderr);
    mkmodel_finish(&m);
    if (rc == -ECANCELED)
        return CF_EXIT_INTERRUPTED;
    return rc < 0 ? cf_tool_fail_err(&err, rc) : CF_EXIT_DONE;
}
