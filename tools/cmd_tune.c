/* catflap tune: replays routing traces through the cache's own decisions, over sizes and policies,
 * and says which setting to run with. Reads traces and, with --model, the headers of a model's
 * files; computes nothing on a device. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/family.h"
#include "runtime/policy.h"
#include "tools/info_memory.h"
#include "tools/text_io.h"
#include "tools/tune.h"

static const char tune_help[] =
    "usage: catflap tune TRACE... [--slots LIST [--slabs LIST]] [options]\n"
    "       catflap tune TRACE... --model MODEL --vram-from SIZE --to SIZE [options]\n"
    "\n"
    "Replays recorded routing (run --trace) over cache sizes and policies: misses beside Belady's\n"
    "MIN, per layer too, predicted tokens per second, and a recommended setting.\n"
    "\n"
    "  --slots LIST       expert slots in VRAM: numbers, or percent of all records (10%,25%)\n"
    "  --slabs LIST       records kept in RAM below them: as many as --slots, or one for all\n"
    "  --policy LIST      lru, lfu[:D], phase[:D], echo; all four by default\n"
    "  --model MODEL      record size and memory plan of this model; its drive is measured\n"
    "  --vram-from SIZE --to SIZE   budgets instead of slots, in --steps N steps (12)\n"
    "  --ram SIZE, --ctx N, --chunk N, --device NAME   of the memory plan, as for run\n"
    "  --record SIZE      bytes of an expert record, where there is no --model\n"
    "  --drive GB/S, --bus GB/S, --compute MS   for the prediction: what the drive and the bus\n"
    "                     give, and how long computing a token takes\n"
    "  --threads N        replays at a time (all processors)\n"
    "  --stats FILE       the statistics of the run that wrote the (one) trace: its hits beside "
    "the\n"
    "                     replay's at its own size, and what its guesses explain\n"
    "  --json             everything as JSON\n"
    "  --svg FILE         the miss ratio curves as a plot\n"
    "\n"
    "example:\n"
    "  catflap run models/demo -p \"Once upon a time\" --trace run.csv.zst\n"
    "  catflap tune run.csv.zst --slots 10%,25%,50% --svg curves.svg\n";

enum {
    OPT_SLOTS = CF_OPT_COMMAND,
    OPT_SLABS,
    OPT_MODEL,
    OPT_VRAM_FROM,
    OPT_TO,
    OPT_STEPS,
    OPT_RECORD,
    OPT_DRIVE,
    OPT_BUS,
    OPT_COMPUTE,
    OPT_JSON,
    OPT_SVG
};

/* clang-format off */
static const struct option tune_options[] = {
    {"slots", required_argument, NULL, OPT_SLOTS},
    {"slabs", required_argument, NULL, OPT_SLABS},
    {"policy", required_argument, NULL, CF_OPT_POLICY},
    {"model", required_argument, NULL, OPT_MODEL},
    {"vram-from", required_argument, NULL, OPT_VRAM_FROM},
    {"to", required_argument, NULL, OPT_TO},
    {"steps", required_argument, NULL, OPT_STEPS},
    {"ram", required_argument, NULL, CF_OPT_RAM},
    {"ctx", required_argument, NULL, CF_OPT_CTX},
    {"chunk", required_argument, NULL, CF_OPT_CHUNK},
    {"device", required_argument, NULL, CF_OPT_DEVICE},
    {"threads", required_argument, NULL, CF_OPT_THREADS},
    {"record", required_argument, NULL, OPT_RECORD},
    {"drive", required_argument, NULL, OPT_DRIVE},
    {"bus", required_argument, NULL, OPT_BUS},
    {"compute", required_argument, NULL, OPT_COMPUTE},
    {"stats", required_argument, NULL, CF_OPT_STATS},
    {"json", no_argument, NULL, OPT_JSON},
    {"svg", required_argument, NULL, OPT_SVG},
    {0}};
/* clang-format on */

typedef struct tune_args {
    cf_tune tune;
    cf_options engine; /* of the memory plan */
    uint32_t n_slots, n_slabs, steps;
    cf_tune_count slots[CF_TUNE_MAX_SIZES], slabs[CF_TUNE_MAX_SIZES];
    uint64_t vram_from, vram_to;
    double drive_gb, bus_gb, compute_ms;
    const char *model, *svg, *stats;
    const char *of_plan; /* a flag of the memory plan that was given */
    bool json, steps_given;
} tune_args;

/* ---- lists ---- */

/* Calls `take` for each item of a comma-separated list. */
static int list_each(cf_args *args, tune_args *o, int (*take)(cf_args *, tune_args *, const char *))
{
    const char *p = args->value;
    for (;;) {
        char item[64];
        size_t n = strcspn(p, ",");
        if (n == 0 || n >= sizeof item)
            return cf_args_usage(args, "%s takes a list such as 10,20,30, not \"%.80s\"",
                                 args->name, args->value);
        memcpy(item, p, n);
        item[n] = 0;
        int rc = take(args, o, item);
        if (rc < 0 || !p[n])
            return rc;
        p += n + 1;
    }
}

static int count_take(cf_args *args, const char *item, cf_tune_count *list, uint32_t *n)
{
    char digits[64];
    size_t len = strlen(item);
    char *end;
    if (*n == CF_TUNE_MAX_SIZES)
        return cf_args_usage(args, "%s: at most %d sizes", args->name, CF_TUNE_MAX_SIZES);
    cf_tune_count *c = &list[*n];
    c->percent = item[len - 1] == '%';
    memcpy(digits, item, len + 1);
    digits[len - c->percent] = 0;
    bool plain =
        *digits && strspn(digits, c->percent ? "0123456789." : "0123456789") == strlen(digits);
    c->value = plain ? strtod(digits, &end) : -1;
    if (!plain || *end || c->value > (c->percent ? 100 : 4e9))
        return cf_args_usage(args, "%s: \"%.60s\" is neither a number of records nor percent",
                             args->name, item);
    ++*n;
    return 0;
}

static int slots_take(cf_args *args, tune_args *o, const char *item)
{
    return count_take(args, item, o->slots, &o->n_slots);
}

static int slabs_take(cf_args *args, tune_args *o, const char *item)
{
    return count_take(args, item, o->slabs, &o->n_slabs);
}

static int policy_take(cf_args *args, tune_args *o, const char *item)
{
    cf_tune *t = &o->tune;
    cf_err err = {0};
    cf_policy *policy = NULL;
    int rc = cf_policy_create(&policy, item, 1, 1, 1, &err);
    cf_policy_destroy(&policy);
    if (rc < 0)
        return cf_args_usage(args, "%s: %s", args->name, err.msg);
    if (t->n_policies == CF_TUNE_MAX_POLICIES || strlen(item) >= sizeof t->policies[0])
        return cf_args_usage(args, "%s: at most %d policies with names below %zu bytes", args->name,
                             CF_TUNE_MAX_POLICIES, sizeof t->policies[0]);
    strcpy(t->policies[t->n_policies++], item);
    return 0;
}

/* ---- the command line ---- */

static int text_take(cf_args *args, const char **out)
{
    if (!*args->value)
        return cf_args_usage(args, "%s takes a name, not \"\"", args->name);
    *out = args->value;
    return 0;
}

static int plan_option(cf_args *args, tune_args *o, int opt)
{
    uint32_t threads;
    int rc;
    switch (opt) {
    case OPT_VRAM_FROM:
        return cf_args_size(args, &o->vram_from);
    case OPT_TO:
        return cf_args_size(args, &o->vram_to);
    case OPT_STEPS:
        o->steps_given = true;
        return cf_args_u32(args, 2, CF_TUNE_MAX_SIZES, &o->steps);
    case CF_OPT_RAM:
        o->of_plan = "--ram";
        return cf_args_size(args, &o->engine.ram_bytes);
    case CF_OPT_CTX:
        o->of_plan = "--ctx";
        return cf_args_u32(args, 1, UINT32_MAX, &o->engine.ctx);
    case CF_OPT_CHUNK:
        o->of_plan = "--chunk";
        return cf_args_u32(args, 1, 1 << 16, &o->engine.chunk);
    case CF_OPT_THREADS:
        rc = cf_args_u32(args, 1, 1024, &threads);
        o->tune.threads = rc == 0 ? (int)threads : 0;
        return rc;
    default:
        o->of_plan = "--device";
        return text_take(args, &o->engine.device);
    }
}

static int own_option(cf_args *args, tune_args *o, int opt)
{
    switch (opt) {
    case OPT_SLOTS:
        return list_each(args, o, slots_take);
    case OPT_SLABS:
        return list_each(args, o, slabs_take);
    case CF_OPT_POLICY:
        return list_each(args, o, policy_take);
    case OPT_MODEL:
        return text_take(args, &o->model);
    case OPT_RECORD:
        return cf_args_size(args, &o->tune.record_bytes);
    case OPT_DRIVE:
        return cf_args_double(args, 1e-6, 1e6, &o->drive_gb);
    case OPT_BUS:
        return cf_args_double(args, 1e-6, 1e6, &o->bus_gb);
    case OPT_COMPUTE:
        return cf_args_double(args, 0, 1e9, &o->compute_ms);
    case OPT_JSON:
        o->json = true;
        return 0;
    case CF_OPT_STATS:
        return text_take(args, &o->stats);
    case OPT_SVG:
        return text_take(args, &o->svg);
    default:
        return plan_option(args, o, opt);
    }
}

/* What holds between the options. */
static int options_check(cf_args *args, tune_args *o)
{
    bool budgets = o->vram_from || o->vram_to;
    if (budgets && !(o->vram_from && o->vram_to && o->model))
        return cf_args_usage(args, "--vram-from, --to and --model go together");
    if (budgets && o->n_slots)
        return cf_args_usage(args, "--slots and --vram-from exclude each other");
    if (budgets && o->vram_from > o->vram_to)
        return cf_args_usage(args, "--vram-from is larger than --to");
    if (o->n_slabs && !o->n_slots)
        return cf_args_usage(args, "--slabs needs --slots");
    if (o->n_slabs > 1 && o->n_slabs != o->n_slots)
        return cf_args_usage(args, "--slabs has %u sizes and --slots %u: as many, or one for all",
                             o->n_slabs, o->n_slots);
    if (o->of_plan && !o->model)
        return cf_args_usage(args, "%s is of the memory plan of a --model, and there is none",
                             o->of_plan);
    if (o->steps_given && !budgets)
        return cf_args_usage(args, "--steps needs --vram-from and --to");
    if (o->model && o->tune.record_bytes)
        return cf_args_usage(args, "--record and --model exclude each other");
    int left = args->argc - optind;
    if (left < 1)
        return cf_args_usage(args, "TRACE is missing");
    for (int i = optind; o->svg && i < args->argc; i++)
        if (!strcmp(o->svg, args->argv[i]))
            return cf_args_usage(args, "--svg would write over the trace %.200s", o->svg);
    if (left > CF_TUNE_MAX_TRACES)
        return cf_args_usage(args, "%d traces are more than the %d that are read at most", left,
                             CF_TUNE_MAX_TRACES);
    if (o->stats && left > 1)
        return cf_args_usage(args, "--stats is of one run, and there are %d traces", left);
    for (int i = 0; i < left; i++)
        o->tune.paths[o->tune.n_traces++] = args->argv[optind + i];
    return 0;
}

static int tune_parse(tune_args *o, int argc, char **argv, int *code)
{
    cf_args args = {.command = "tune",
                    .help = tune_help,
                    .short_options = "",
                    .options = tune_options,
                    .argc = argc,
                    .argv = argv};
    cf_options_init(&o->engine);
    o->steps = 12;
    cf_args_begin(&args);
    int opt, rc = 0;
    while ((opt = cf_args_next(&args)) >= 0)
        if ((rc = own_option(&args, o, opt)) < 0)
            break;
    if (opt == CF_ARGS_END)
        rc = options_check(&args, o);
    else if (opt == CF_ARGS_STOP)
        rc = CF_ARGS_STOP;
    *code = args.exit_code;
    return rc;
}

/* ---- sizes ---- */

static bool fits_all(const cf_tune *t, const cf_tune_count *slots)
{
    for (uint32_t k = 0; k < t->n_traces; k++)
        if (cf_tune_resolve(slots, t->traces[k]) < cf_replay_min_slots(t->traces[k]))
            return false;
    return true;
}

static void sizes_default(cf_tune *t)
{
    t->ladder = true;
    static const double ladder[] = {2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100};
    for (size_t i = 0; i < sizeof ladder / sizeof *ladder; i++) {
        cf_tune_size size = {.slots = {ladder[i], true}};
        if (fits_all(t, &size.slots))
            t->sizes[t->n_sizes++] = size;
    }
}

static int sizes_given(tune_args *o, cf_err *err)
{
    cf_tune *t = &o->tune;
    for (uint32_t i = 0; i < o->n_slots; i++) {
        cf_tune_size size = {.slots = o->slots[i]};
        if (o->n_slabs)
            size.slabs = o->slabs[o->n_slabs == 1 ? 0 : i];
        t->sizes[t->n_sizes++] = size;
        for (uint32_t k = 0; k < t->n_traces; k++) {
            uint32_t n = cf_tune_resolve(&size.slots, t->traces[k]);
            if (n < cf_replay_min_slots(t->traces[k]))
                return CF_FAIL(err, CF_ELIMIT,
                               "%s: %u slots are too few: %u, twice the %u experts chosen per "
                               "token, are the least",
                               t->paths[k], n, cf_replay_min_slots(t->traces[k]),
                               t->traces[k]->header.top_k);
        }
    }
    return 0;
}

/* The plan that the engine would make of each budget. */
static int sizes_planned(tune_args *o, const cf_model *model, cf_info_memory *memory, cf_err *err)
{
    cf_tune *t = &o->tune;
    uint64_t tokenizer = 0;
    for (uint32_t i = 0; i < memory->plan.n_ram; i++)
        if (strcmp(memory->plan.ram[i].name, "tokenizer") == 0)
            tokenizer = memory->plan.ram[i].bytes;
    for (uint32_t i = 0; i < o->steps; i++) {
        cf_memory_plan p;
        cf_options options = o->engine;
        options.vram_bytes = o->vram_from + (o->vram_to - o->vram_from) / (o->steps - 1) * i;
        if (i + 1 == o->steps)
            options.vram_bytes = o->vram_to;
        int rc = cf_memory_plan_make(&p, model, &memory->device, &options, memory->plan.align,
                                     tokenizer, err);
        if (rc < 0)
            return rc;
        uint32_t slabs = p.shape.n_tier;
        const cf_tune_size *last = t->n_sizes ? &t->sizes[t->n_sizes - 1] : NULL;
        uint64_t dense = p.dense.streamed_bytes - p.hold.bytes;
        if (last && last->slots.value >= p.shape.n_slots && last->slabs.value >= slabs &&
            last->dense_bytes <= dense)
            continue; /* buys nothing */
        t->vram_all_dense = p.vram_dense;
        t->sizes[t->n_sizes++] = (cf_tune_size){.slots = {p.shape.n_slots, false},
                                                .slabs = {slabs, false},
                                                .vram_bytes = p.vram_budget,
                                                .ram_bytes = p.ram_budget,
                                                .dense_bytes = dense,
                                                .dense_copied_bytes = p.dense.streamed_bytes};
    }
    return 0;
}

static const cf_routing *sort_trace; /* qsort has no argument of its own */

static int size_compare(const void *a, const void *b)
{
    const cf_tune_size *x = a, *y = b;
    uint64_t n =
        (uint64_t)cf_tune_resolve(&x->slots, sort_trace) + cf_tune_resolve(&x->slabs, sort_trace);
    uint64_t m =
        (uint64_t)cf_tune_resolve(&y->slots, sort_trace) + cf_tune_resolve(&y->slabs, sort_trace);
    if (n == m) /* the same cache, beside more dense weights that stay */
        return (x->vram_bytes > y->vram_bytes) - (x->vram_bytes < y->vram_bytes);
    return n > m ? 1 : -1;
}

/* ---- the model ---- */

static int model_matches(const cf_tune *t, const cf_model *m, cf_err *err)
{
    for (uint32_t k = 0; k < t->n_traces; k++)
        if (t->traces[k]->n_moe != m->n_moe || t->traces[k]->header.n_experts != m->spec.experts)
            return CF_FAIL(err, -EINVAL,
                           "%s has %u MoE layers of %u experts, model %s has %u of %u", t->paths[k],
                           t->traces[k]->n_moe, t->traces[k]->header.n_experts, m->spec.name,
                           m->n_moe, m->spec.experts);
    return 0;
}

/* What a miss reads on average: compressed records take less in the file than in a slot. */
static uint64_t stored_record_bytes(const cf_model *m, uint64_t records)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < m->n_moe; i++)
        sum += cf_moe_stored_bytes(&m->moe[i]);
    return records ? sum / records : 0;
}

static int model_use(tune_args *o, cf_err *err)
{
    cf_tune *t = &o->tune;
    cf_model *m = NULL;
    cf_info_memory memory;
    int rc;
    CF_TRY(cf_model_open(&m, o->model, err));
    CF_TRY(model_matches(t, m, err));
    o->engine.vram_bytes = o->vram_to;
    CF_TRY(cf_info_memory_make(&memory, m, &o->engine, err));
    t->record_bytes = stored_record_bytes(m, memory.plan.total_records);
    t->slot_bytes = memory.plan.shape.slot_bytes;
    t->copies = !memory.plan.shape.in_place;
    if (o->vram_to)
        CF_TRY(sizes_planned(o, m, &memory, err));
    if (t->drive_rate <= 0) {
        char why[256] = "";
        CF_TRY(cf_tune_drive_measure(m, &t->drive_rate, why, sizeof why, err));
        t->drive_measured = t->drive_rate > 0;
        if (!t->drive_measured)
            fprintf(stderr, "catflap: the drive is not measured: %s\n", why);
    }
fail:
    cf_model_free(&m);
    return rc;
}

/* ---- all of it ---- */

static int tune_prepare(tune_args *o, cf_err *err)
{
    static const char *const all[] = {"lru", "lfu", "phase", "echo"};
    cf_tune *t = &o->tune;
    int rc = 0;
    if (o->svg)
        CF_TRY(cf_output_check(o->svg, err));
    if (!t->n_policies)
        for (; t->n_policies < sizeof all / sizeof *all; t->n_policies++)
            strcpy(t->policies[t->n_policies], all[t->n_policies]);
    t->same_shape = true;
    for (uint32_t k = 0; k < t->n_traces; k++) {
        CF_TRY(cf_trace_read(&t->traces[k], t->paths[k], err));
        t->same_shape &= t->traces[k]->n_moe == t->traces[0]->n_moe &&
                         t->traces[k]->header.n_experts == t->traces[0]->header.n_experts;
    }
    t->drive_rate = o->drive_gb * 1e9;
    t->bus_rate = o->bus_gb * 1e9;
    t->compute_s = o->compute_ms * 1e-3;
    t->copies = true;
    t->slot_bytes = t->record_bytes;
    if (o->model)
        CF_TRY(model_use(o, err));
    if (o->n_slots)
        CF_TRY(sizes_given(o, err));
    else if (!t->n_sizes)
        sizes_default(t);
    sort_trace = t->traces[0];
    qsort(t->sizes, t->n_sizes, sizeof *t->sizes, size_compare);
fail:
    return rc;
}

int cmd_tune(int argc, char **argv)
{
    tune_args *o = calloc(1, sizeof *o);
    cf_err err = {0};
    int code = CF_EXIT_FAILED, rc;
    if (!o)
        return cf_tool_fail("out of memory");
    if (tune_parse(o, argc, argv, &code) != 0) {
        free(o);
        return code;
    }
    cf_tune *t = &o->tune;
    CF_TRY(tune_prepare(o, &err));
    CF_TRY(cf_tune_run(t, &err));
    if (o->stats)
        CF_TRY(cf_tune_own_make(&t->own, t->traces[0], t->paths[0], o->stats, &err));
    if (o->svg)
        CF_TRY(cf_tune_svg(t, o->svg, &err));
    code = CF_EXIT_DONE;
    if (o->json)
        code = cf_json_print(cf_tune_json(t));
    else
        cf_tune_print(t, stdout);
fail:
    cf_tune_finish(t);
    free(o);
    return rc < 0 ? cf_tool_fail_err(&err, rc) : code;
}
