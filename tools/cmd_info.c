/* catflap info: what a model is and what it needs; which devices there are. Reads the headers of
 * the model's files, asks the device for its sizes, and measures the drive; computes nothing. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/family.h"
#include "runtime/base/log.h"
#include "tools/inert.h"
#include "tools/info_memory.h"
#include "tools/info_pack.h"
#include "tools/info_plan.h"
#include "tools/info_speed.h"
#include "tools/options.h"
#include "tools/table.h"
#include "tools/text_io.h"

static const char info_help[] =
    "usage: catflap info MODEL [--plan] [--json] [common options]\n"
    "       catflap info --devices [--json]\n"
    "\n"
    "What a model is, how it is stored, its bytes by role, the memory plan for the given budgets,\n"
    "and the tokens per second that the drive allows with it. Of a pack with compressed records:\n"
    "whether that pays on this drive, measured.\n"
    "\n"
    "  --plan          the model as a flat list of steps, with the windows that hide reads\n"
    "  --drive GB/S    predict for a drive that gives this much; else it is measured, which takes\n"
    "                  half a second\n"
    "  --devices       the devices that --device can choose\n"
    "  --json          the same as JSON\n"
    "\n"
    "example:\n"
    "  catflap info models/demo --vram 28M --plan\n";

enum { OPT_PLAN = CF_OPT_COMMAND, OPT_DEVICES, OPT_JSON, OPT_DRIVE };

/* clang-format off */
static const struct option info_options[] = {
    CF_COMMON_OPTIONS,
    {"plan", no_argument, NULL, OPT_PLAN},
    {"devices", no_argument, NULL, OPT_DEVICES},
    {"json", no_argument, NULL, OPT_JSON},
    {"drive", required_argument, NULL, OPT_DRIVE},
    {0}};
/* clang-format on */

typedef struct info {
    cf_common common;
    const char *model;
    bool plan, devices, json;
    double drive_gb; /* 0: to be measured */
} info;

/* ---- devices ---- */

enum { MAX_DEVICES = 32 };

static int devices_json(const cf_gpu_info *list, int n, const char *why)
{
    json_t *devices = json_array();
    for (int i = 0; i < n; i++) {
        const cf_gpu_info *d = &list[i];
        json_array_append_new(
            devices, json_pack("{s:o, s:s, s:s, s:i, s:b, s:b, s:b, s:b, s:I, s:I}", "device",
                               json_sprintf("%s:%d", d->backend, d->index), "name", d->name,
                               "backend", d->backend, "index", d->index, "cpu", d->cpu, "unified",
                               d->unified, "imports", d->imports, "own_transfer", d->own_transfer,
                               "heap_bytes", (json_int_t)d->heap_bytes, "max_alloc_bytes",
                               (json_int_t)d->max_alloc_bytes));
    }
    return cf_json_print(json_pack("{s:o, s:s}", "devices", devices, "refused", why));
}

static void device_row(cf_table *t, const cf_gpu_info *d)
{
    char heap[32];
    cf_table_cell(t, "%s:%d", d->backend, d->index);
    cf_table_cell(t, "%s", d->name);
    cf_table_cell(t, "%s", d->cpu ? "CPU" : "GPU");
    cf_table_cell(t, "%s", d->heap_bytes ? cf_bytes_text(d->heap_bytes, heap, sizeof heap) : "-");
    cf_table_cell(t, "%s", d->unified ? "the host's" : "its own");
    cf_table_cell(t, "%s", d->imports ? "in place" : d->unified ? "copied" : "staged");
    cf_table_cell(t, "%s", d->own_transfer ? "beside compute" : "in turn");
    cf_table_end_row(t);
}

static int devices_print(const info *o)
{
    cf_gpu_info list[MAX_DEVICES];
    char why[2048] = "";
    int n = cf_gpu_list(list, MAX_DEVICES, why, sizeof why);
    if (n < 0)
        return cf_tool_fail("the devices cannot be listed: %s", cf_err_name(n));
    if (o->json)
        return devices_json(list, n, why);
    cf_table *t = cf_table_create("lllrlll");
    static const char *const heads[] = {"--device", "name",       "kind",  "memory",
                                        "which is", "host pages", "copies"};
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++)
        cf_table_cell(t, "%s", heads[i]);
    cf_table_end_row(t);
    cf_table_rule(t);
    for (int i = 0; i < n; i++)
        device_row(t, &list[i]);
    cf_table_print(t, stdout, 0);
    cf_table_destroy(&t);
    if (why[0])
        printf("\nnot available:\n%s%s", why, why[strlen(why) - 1] == '\n' ? "" : "\n");
    return CF_EXIT_DONE;
}

/* ---- a model ---- */

/* Sizes by role, in bytes and in parameters. */
typedef struct roles {
    uint64_t resident_bytes, expert_bytes, table_bytes, skipped_bytes;
    uint64_t resident_params, expert_params, table_params;
    uint64_t resident_tensors, expert_tensors;
    uint64_t active_params; /* at most, for one token: what is multiplied with */
    uint64_t record_bytes;  /* the largest */
    uint64_t token_bytes;   /* expert bytes that one token needs, at most */
} roles;

static bool extent_in(const cf_extent *e, const cf_extent *tensor)
{
    return e->bytes && e->file == tensor->file && e->off >= tensor->off &&
           e->off - tensor->off < tensor->bytes;
}

static int extent_order(const void *a, const void *b)
{
    const cf_extent *x = a, *y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return (x->off > y->off) - (x->off < y->off);
}

/* How many tensors of the catalogue parts of a role lie in: several parts may share one. Sorts. */
static uint64_t tensors_of(const cf_model *m, cf_extent *parts, uint64_t n)
{
    uint64_t found = 0;
    qsort(parts, n, sizeof *parts, extent_order);
    for (uint32_t i = 0; i < cf_catalogue_count(m->cat); i++) {
        const cf_extent *t = &cf_catalogue_at(m->cat, i)->extent;
        uint64_t low = 0, high = n; /* the first part that begins at the tensor or behind */
        while (low < high) {
            uint64_t mid = low + (high - low) / 2;
            if (extent_order(&parts[mid], t) < 0)
                low = mid + 1;
            else
                high = mid;
        }
        found += low < n && extent_in(&parts[low], t);
    }
    return found;
}

static uint64_t expert_tensors(const cf_model *m)
{
    uint64_t n = 0, at = 0;
    for (uint32_t i = 0; i < m->n_moe; i++)
        n += (uint64_t)m->moe[i].experts * m->moe[i].n_extents;
    cf_extent *parts = calloc(n + 1, sizeof *parts);
    for (uint32_t i = 0; parts && i < m->n_moe; i++) {
        uint64_t some = (uint64_t)m->moe[i].experts * m->moe[i].n_extents;
        memcpy(parts + at, m->moe[i].extents, some * sizeof *parts);
        at += some;
    }
    uint64_t found = tensors_of(m, parts, at);
    free(parts);
    return found;
}

static uint64_t resident_tensors(const cf_model *m)
{
    uint64_t n = 0;
    cf_extent *parts = calloc(2 * (size_t)m->n_weights + 1, sizeof *parts);
    for (uint32_t i = 0; parts && i < m->n_weights; i++) {
        parts[n++] = m->weights[i].extent;
        if (m->weights[i].scale.rows)
            parts[n++] = m->weights[i].scale_extent;
    }
    uint64_t found = tensors_of(m, parts, n);
    free(parts);
    return found;
}

static void roles_count(const cf_model *m, roles *r)
{
    *r = (roles){.skipped_bytes = m->skipped_bytes,
                 .resident_tensors = resident_tensors(m),
                 .expert_tensors = expert_tensors(m)};
    for (uint32_t i = 0; i < m->n_weights; i++) {
        r->resident_bytes += cf_weight_def_bytes(&m->weights[i]);
        r->resident_params += (uint64_t)m->weights[i].rows * m->weights[i].cols;
    }
    r->active_params = r->resident_params;
    for (uint32_t i = 0; i < m->n_moe; i++) {
        const cf_moe_def *moe = &m->moe[i];
        uint64_t params = 0, bytes = cf_moe_record_bytes(moe), stored = cf_moe_stored_bytes(moe);
        for (int p = 0; p < CF_EXPERT_PIECES; p++)
            params += (uint64_t)moe->pieces[p].rows * moe->pieces[p].cols;
        r->expert_params += params * moe->experts;
        r->expert_bytes += stored;
        r->active_params += params * moe->top_k;
        r->token_bytes += stored / moe->experts * moe->top_k; /* on average, where compressed */
        r->record_bytes = bytes > r->record_bytes ? bytes : r->record_bytes;
    }
    for (uint32_t i = 0; i < m->n_tables; i++) {
        r->table_params += m->tables[i].rows * m->tables[i].cols;
        r->table_bytes += m->tables[i].extent.bytes;
    }
}

/* memory: NULL when it could not be planned. */
static bool has_tokenizer(const cf_model *m, const cf_info_memory *memory)
{
    const cf_tokenizer_place place = cf_model_tokenizer_place(m);
    return cf_tokenizer_exists(&place) && !(memory && memory->no_text[0]);
}

static void role_row(cf_table *t, const char *role, uint64_t tensors, uint64_t bytes,
                     uint64_t all_bytes, const char *what)
{
    char text[32];
    cf_table_cell(t, "%s", role);
    cf_table_cell(t, "%" PRIu64, tensors);
    cf_table_cell(t, "%s", cf_bytes_text(bytes, text, sizeof text));
    cf_table_cell(t, "%.1f %%", all_bytes ? 100.0 * (double)bytes / (double)all_bytes : 0);
    cf_table_cell(t, "%s", what);
    cf_table_end_row(t);
}

/* memory: NULL when there is no plan. */
static void roles_print(const cf_model *m, const roles *r, const cf_info_memory *memory)
{
    char text[128], a[32], b[32];
    uint64_t all = r->resident_bytes + r->expert_bytes + r->table_bytes + r->skipped_bytes;
    cf_table *t = cf_table_create("lrrrl");
    static const char *const heads[] = {"role", "tensors", "bytes", "share", ""};
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++)
        cf_table_cell(t, "%s", heads[i]);
    cf_table_end_row(t);
    cf_table_rule(t);
    snprintf(text, sizeof text, "read once, at open");
    if (memory && memory->plan.dense.n_streamed)
        snprintf(text, sizeof text, "dense: %s of it streamed, the rest read once, at open",
                 cf_bytes_text(memory->plan.dense.streamed_bytes, a, sizeof a));
    role_row(t, "resident", r->resident_tensors, r->resident_bytes, all, text);
    snprintf(text, sizeof text, "streamed: records of %s, at most %s a token",
             cf_bytes_text(r->record_bytes, a, sizeof a),
             cf_bytes_text(r->token_bytes, b, sizeof b));
    role_row(t, "experts", r->expert_tensors, r->expert_bytes, all, text);
    if (m->n_tables)
        role_row(t, "row tables", m->n_tables, r->table_bytes, all, "a few rows read a token");
    if (m->n_skipped) {
        snprintf(text, sizeof text, "not used: %s", m->skipped_what);
        role_row(t, "left out", m->n_skipped, r->skipped_bytes, all, text);
    }
    cf_table_rule(t);
    role_row(t, "total", cf_catalogue_count(m->cat), all, all, "");
    cf_table_print(t, stdout, 2);
    cf_table_destroy(&t);
}

static void model_print(const cf_model *m, const roles *r, const cf_info_pack *stored,
                        const cf_info_memory *memory)
{
    const cf_spec *s = &m->spec;
    char a[32], b[32];
    printf("%s: %s (%s)\n\n", s->name, s->family, s->architecture);
    cf_table *t = cf_table_create("ll");
    cf_table_cell(t, "layers");
    cf_table_cell(t, "%u, %u of them with experts", s->layers, m->n_moe);
    cf_table_end_row(t);
    cf_table_cell(t, "experts");
    if (s->zero_experts)
        cf_table_cell(t, "%u and %u zero experts a layer, top %u", s->experts, s->zero_experts,
                      s->top_k);
    else
        cf_table_cell(t, "%u a layer, top %u", s->experts, s->top_k);
    cf_table_end_row(t);
    cf_table_cell(t, "sizes");
    cf_table_cell(t, "hidden %u, vocabulary %u, context up to %u", s->hidden, s->vocab, s->ctx_max);
    cf_table_end_row(t);
    cf_table_cell(t, "parameters");
    cf_table_cell(
        t, "%s, at most %s at work on a token",
        cf_count_text(r->resident_params + r->expert_params + r->table_params, a, sizeof a),
        cf_count_text(r->active_params, b, sizeof b));
    cf_table_end_row(t);
    cf_table_cell(t, "files");
    cf_table_cell(t, "%u with tensors, %s", cf_catalogue_file_count(m->cat),
                  has_tokenizer(m, memory)       ? "and a tokenizer"
                  : memory && memory->no_text[0] ? "a tokenizer that cannot encode (use --ids)"
                                                 : "no tokenizer (use --ids)");
    cf_table_end_row(t);
    cf_info_pack_rows(stored, t);
    cf_table_print(t, stdout, 2);
    cf_table_destroy(&t);
    fputc('\n', stdout);
    roles_print(m, r, memory);
}

static json_t *model_json(const cf_model *m, const roles *r, const cf_info_memory *memory)
{
    const cf_spec *s = &m->spec;
    json_t *model =
        json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:I, s:b}", "name",
                  s->name, "family", s->family, "architecture", s->architecture, "layers",
                  (int)s->layers, "moe_layers", (int)m->n_moe, "experts", (int)s->experts,
                  "zero_experts", (int)s->zero_experts, "top_k", (int)s->top_k, "hidden",
                  (int)s->hidden, "vocab", (int)s->vocab, "ctx_max", (json_int_t)s->ctx_max,
                  "record_bytes", (json_int_t)r->record_bytes, "tokenizer",
                  has_tokenizer(m, memory));
    json_t *bytes =
        json_pack("{s:I, s:I, s:I, s:I, s:s}", "resident", (json_int_t)r->resident_bytes, "experts",
                  (json_int_t)r->expert_bytes, "tables", (json_int_t)r->table_bytes, "left_out",
                  (json_int_t)r->skipped_bytes, "left_out_what", m->skipped_what);
    json_t *params =
        json_pack("{s:I, s:I}", "total",
                  (json_int_t)(r->resident_params + r->expert_params + r->table_params), "active",
                  (json_int_t)r->active_params);
    json_t *tensors =
        json_pack("{s:I, s:I, s:I, s:I, s:I}", "resident", (json_int_t)r->resident_tensors,
                  "experts", (json_int_t)r->expert_tensors, "tables", (json_int_t)m->n_tables,
                  "left_out", (json_int_t)m->n_skipped, "total",
                  (json_int_t)cf_catalogue_count(m->cat));
    return json_pack("{s:o, s:o, s:o, s:o}", "model", model, "bytes", bytes, "tensors", tensors,
                     "parameters", params);
}

/* The description comes out even where the memory plan is refused: it says what to change. */
static int model_info(const info *o)
{
    cf_err err = {0};
    cf_model *m = NULL;
    cf_info_memory memory;
    cf_info_pack stored;
    cf_info_speed speed;
    roles r;
    int rc = cf_model_open(&m, o->model, &err), code = CF_EXIT_DONE;
    if (rc == 0 && (rc = cf_info_pack_make(&stored, m, &err)) < 0)
        cf_model_free(&m);
    if (rc < 0)
        return cf_tool_fail_err(&err, rc);
    roles_count(m, &r);
    rc = cf_info_memory_make(&memory, m, &o->common.engine, &err);
    bool planned = rc == 0;
    if (planned && memory.no_text[0])
        cf_notice("%s", memory.no_text);
    if (planned)
        rc = cf_info_speed_make(&speed, &memory, m, o->drive_gb * 1e9, &err);
    if (o->json && rc == 0) {
        json_t *value = model_json(m, &r, &memory);
        json_object_set_new(value, "stored", cf_info_pack_json(&stored));
        json_object_set_new(value, "memory", cf_info_memory_json(&memory, m));
        json_object_set_new(value, "prediction", cf_info_speed_json(&speed));
        if (o->plan)
            json_object_set_new(value, "plan", cf_info_plan_json(m));
        code = cf_json_print(value);
    } else if (!o->json) {
        model_print(m, &r, &stored, planned ? &memory : NULL);
        if (planned)
            cf_info_memory_print(&memory, m, stdout);
        if (rc == 0)
            cf_info_speed_print(&speed, stdout);
        if (o->plan)
            cf_info_plan_print(m, stdout);
    }
    cf_model_free(&m);
    return rc < 0 ? cf_tool_fail_err(&err, rc) : code;
}

/* ---- the command line ---- */

static int info_parse(info *o, int argc, char **argv, int *code)
{
    cf_common_init(&o->common);
    cf_args args = {.command = "info",
                    .help = info_help,
                    .short_options = CF_COMMON_SHORT,
                    .options = info_options,
                    .common = &o->common,
                    .argc = argc,
                    .argv = argv};
    cf_args_begin(&args);
    int opt;
    while ((opt = cf_args_next(&args)) >= 0) {
        o->plan |= opt == OPT_PLAN;
        o->devices |= opt == OPT_DEVICES;
        o->json |= opt == OPT_JSON;
        if (opt == OPT_DRIVE && cf_args_double(&args, 1e-6, 1e6, &o->drive_gb) < 0) {
            opt = CF_ARGS_STOP;
            break;
        }
    }
    if (opt == CF_ARGS_END && o->devices && optind == argc && !o->plan)
        opt = 0;
    else if (opt == CF_ARGS_END && o->devices)
        opt = cf_args_usage(&args, "--devices takes no MODEL and no --plan");
    else if (opt == CF_ARGS_END)
        opt = (o->model = cf_args_operand(&args, "MODEL")) ? 0 : CF_ARGS_STOP;
    *code = args.exit_code;
    return opt;
}

int cmd_info(int argc, char **argv)
{
    info o = {0};
    int code;
    if (info_parse(&o, argc, argv, &code) != 0)
        return code;
    static const int for_devices[] = {0};
    static const int for_models[] = {CF_OPT_DEVICE,   CF_OPT_VRAM,   CF_OPT_RAM, CF_OPT_CTX,
                                     CF_OPT_PREFETCH, CF_OPT_DIRECT, CF_OPT_KV,  CF_OPT_CHUNK,
                                     CF_OPT_MEMORY,   0};
    cf_inert_others_say(&o.common, o.devices ? "info --devices" : "info, which runs nothing",
                        o.devices ? for_devices : for_models);
    return o.devices ? devices_print(&o) : model_info(&o);
}
