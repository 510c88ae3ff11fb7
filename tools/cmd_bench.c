/* catflap bench MODEL: prefill and decode at several context lengths, stage by stage.
 *
 * Random ids of one seeded sequence, other ones in each sample, so that the cache is as warm as a
 * long run has it and no sample profits from its own repetition. Bytes come from the plan and the
 * statistics, ceilings are measured before the engine is opened. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/rng.h"
#include "runtime/engine.h"
#include "tools/bench.h"
#include "tools/bench_device.h"
#include "tools/bench_io.h"
#include "tools/bench_profile.h"
#include "tools/progress.h"
#include "tools/stats_table.h"
#include "tools/table.h"
#include "tools/text_io.h"

static const char bench_help[] =
    "usage: catflap bench MODEL [options]\n"
    "       catflap bench io FILE [options]      (see catflap bench io --help)\n"
    "\n"
    "Measures prefill and decode at several context lengths, on random token ids. For each, the\n"
    "median of the samples, and of that sample three stages against ceilings measured before:\n"
    "  drive     bytes read, over the time with a read in flight; ceiling: a plain loop on the\n"
    "            model's largest file\n"
    "  copies    records copied into slots, over the copy thread's busy time; ceiling: uploads\n"
    "  compute   weight bytes touched, over the time not spent waiting for reads or copies;\n"
    "            ceiling: what the device copies inside its memory, reads and writes together\n"
    "Speeds are in 10^9 bytes per second.\n"
    "\n"
    "  --contexts LIST tokens of prefill; default 128,512,2048, as far as --ctx allows\n"
    "  -n N            tokens of decode behind each; default 16\n"
    "  --samples N     of each; default 3\n"
    "  --seed S        of the ids; default 0\n"
    "  --profile       instead: where the time of a decode step goes, each step of the plan by\n"
    "                  itself, what was waited for reads and copies apart, beside the time of\n"
    "                  undisturbed tokens; --json says it for every step of every layer\n"
    "  --json, --csv   machine-readable\n"
    "\n"
    "example:\n"
    "  catflap bench models/demo --vram 28M --contexts 64,256\n";

enum { OPT_CONTEXTS = CF_OPT_COMMAND, OPT_SAMPLES, OPT_SEED, OPT_PROFILE, OPT_JSON, OPT_CSV };

/* clang-format off */
static const struct option bench_options[] = {
    CF_COMMON_OPTIONS,
    {"contexts", required_argument, NULL, OPT_CONTEXTS},
    {"samples", required_argument, NULL, OPT_SAMPLES},
    {"seed", required_argument, NULL, OPT_SEED},
    {"profile", no_argument, NULL, OPT_PROFILE},
    {"json", no_argument, NULL, OPT_JSON},
    {"csv", no_argument, NULL, OPT_CSV},
    {0}};
/* clang-format on */

enum { STAGE_DRIVE, STAGE_COPIES, STAGE_COMPUTE, STAGES };
static const char *const stage_names[STAGES] = {"drive", "copies", "compute"};
static const char *const phase_names[2] = {"prefill", "decode"};

typedef struct stage {
    double seconds;
    uint64_t bytes;
} stage;

typedef struct sample {
    uint64_t tokens;
    double seconds, hit_rate; /* hit_rate < 0: no lookups */
    double stall_io, stall_copy, stall_device, stall_host;
    stage stages[STAGES];
} sample;

typedef struct result {
    uint32_t context;
    sample samples[2][CF_BENCH_SAMPLES]; /* prefill, decode */
    sample *median[2];
} result;

/* Weight bytes that a batch touches beside its experts. */
typedef struct touched {
    uint64_t batch, row, head, record;
} touched;

typedef struct bench {
    cf_common common;
    const char *model;
    uint64_t contexts[CF_BENCH_LIST], seed;
    uint32_t n_contexts, n_decode, n_samples;
    bool contexts_given, profile;
    cf_bench_form form;
    cf_bench_ceiling drive;
    cf_bench_device device;
    cf_engine *engine;
    cf_session *session;
    cf_engine_info info;
    touched touched;
    cf_rng rng;
    int32_t *ids;
    result results[CF_BENCH_LIST];
    uint64_t decoded;
} bench;

/* ---- the command line ---- */

static int bench_option(void *user, cf_args *args, int opt)
{
    bench *b = user;
    switch (opt) {
    case OPT_CONTEXTS:
        b->contexts_given = true;
        return cf_bench_list(args, cf_parse_u64, 1, 1u << 30, b->contexts, CF_BENCH_LIST,
                             &b->n_contexts);
    case 'n':
        return cf_args_u32(args, 1, 1u << 20, &b->n_decode);
    case OPT_SAMPLES:
        return cf_args_u32(args, 1, CF_BENCH_SAMPLES, &b->n_samples);
    case OPT_SEED:
        return cf_args_u64(args, 0, UINT64_MAX, &b->seed);
    case OPT_PROFILE:
        b->profile = true;
        return 0;
    default:
        return cf_bench_form_set(&b->form, opt == OPT_JSON ? CF_BENCH_JSON : CF_BENCH_CSV, args);
    }
}

int cf_bench_form_set(cf_bench_form *form, cf_bench_form given, cf_args *args)
{
    if (*form != CF_BENCH_TABLE && *form != given)
        return cf_args_usage(args, "--json and --csv exclude each other");
    *form = given;
    return 0;
}

static int bench_parse(bench *b, int argc, char **argv, int *code)
{
    b->n_decode = 16;
    b->n_samples = 3;
    cf_common_init(&b->common);
    cf_args args = {.command = "bench",
                    .help = bench_help,
                    .short_options = CF_COMMON_SHORT "n:",
                    .options = bench_options,
                    .common = &b->common,
                    .argc = argc,
                    .argv = argv};
    int opt = cf_args_parse(&args, bench_option, b, "MODEL", &b->model);
    *code = args.exit_code;
    return opt;
}

/* Of the defaults those that fit, or one that does; of those asked for, all must. */
static int contexts_resolve(bench *b, cf_err *err)
{
    static const uint64_t defaults[] = {128, 512, 2048};
    uint32_t ctx = b->info.ctx, room = ctx > b->n_decode ? ctx - b->n_decode : 0;
    if (room == 0)
        return CF_FAIL(err, CF_ELIMIT,
                       "a context of %u has no room for a prompt and %u decoded tokens (-n)", ctx,
                       b->n_decode);
    for (uint32_t i = 0; i < b->n_contexts; i++)
        if (b->contexts[i] > room)
            return CF_FAIL(err, CF_ELIMIT,
                           "%" PRIu64 " tokens and %u decoded ones exceed the context of %u (--ctx "
                           "makes it larger; the model holds %u)",
                           b->contexts[i], b->n_decode, ctx, b->info.ctx_max);
    if (b->contexts_given)
        return 0;
    for (size_t i = 0; i < sizeof defaults / sizeof *defaults; i++)
        if (defaults[i] <= room)
            b->contexts[b->n_contexts++] = defaults[i];
    if (b->n_contexts == 0)
        b->contexts[b->n_contexts++] = room;
    return 0;
}

/* ---- measuring ---- */

static void touched_count(bench *b)
{
    const cf_model *m = b->engine->model;
    uint64_t records = 0;
    for (uint32_t i = 0; i < m->n_steps; i++) {
        const cf_step *s = &m->steps[i];
        uint64_t bytes = cf_step_bytes(m, s);
        if (s->kind == CF_STEP_EMBED || s->kind == CF_STEP_ROWS)
            b->touched.row += bytes;
        else if (s->kind == CF_STEP_HEAD)
            b->touched.head += bytes;
        else if (s->kind != CF_STEP_EXPERTS)
            b->touched.batch += bytes;
    }
    for (uint32_t i = 0; i < m->n_moe; i++)
        records += cf_moe_record_bytes(&m->moe[i]);
    b->touched.record = m->n_moe ? records / m->n_moe : 0;
}

typedef struct reading {
    cf_stats stats;
    cf_cache_stats cache;
    uint64_t at_ns;
} reading;

static void reading_take(const bench *b, reading *r)
{
    cf_engine_get_stats(b->engine, &r->stats);
    cf_cache_get_stats(b->engine->cache, &r->cache);
    r->at_ns = cf_clock_ns();
}

static void sample_fill(const bench *b, sample *s, const reading *from, const reading *to,
                        uint64_t tokens, uint64_t batches, uint64_t heads)
{
    const cf_stats *x = &from->stats, *y = &to->stats;
    uint64_t lookups = y->all.lookups - x->all.lookups;
    uint64_t misses = y->all.misses - x->all.misses, raised = y->all.ram_hits - x->all.ram_hits;
    s->tokens = tokens;
    s->seconds = y->prefill_s + y->decode_s - x->prefill_s - x->decode_s;
    s->hit_rate = lookups ? 1 - (double)misses / (double)lookups : -1;
    s->stall_io = y->stall_io_s - x->stall_io_s;
    s->stall_copy = y->stall_copy_s - x->stall_copy_s;
    s->stall_device = y->stall_device_s - x->stall_device_s;
    s->stall_host = y->stall_host_s - x->stall_host_s;
    s->stages[STAGE_DRIVE] = (stage){y->io_busy_s - x->io_busy_s, y->io_bytes - x->io_bytes};
    s->stages[STAGE_COPIES] =
        (stage){cf_seconds(to->cache.copy_busy_ns - from->cache.copy_busy_ns),
                b->engine->plan.shape.in_place ? 0 : (misses + raised) * b->touched.record};
    double computing = s->seconds - s->stall_io - s->stall_copy;
    s->stages[STAGE_COMPUTE] = (stage){computing > 0 ? computing : 0,
                                       batches * b->touched.batch + tokens * b->touched.row +
                                           heads * b->touched.head + lookups * b->touched.record};
}

static void ids_draw(bench *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        b->ids[i] = (int32_t)cf_rng_below(&b->rng, b->info.vocab);
}

/* `context` tokens of prefill, then n_decode of decode; samples may be NULL (warming up). */
static int context_run(bench *b, uint32_t context, uint32_t n_decode, sample *prefill,
                       sample *decode, cf_err *err)
{
    reading before, between, after;
    cf_session_rewind(b->session, 0);
    ids_draw(b, context + n_decode);
    reading_take(b, &before);
    int rc = cf_session_extend(b->session, b->ids, context, CF_PHASE_PROMPT, NULL, err);
    reading_take(b, &between);
    for (uint32_t i = 0; rc == 0 && i < n_decode; i++)
        rc = cf_session_extend(b->session, b->ids + context + i, 1, CF_PHASE_DECODE, NULL, err);
    if (rc < 0)
        return rc;
    reading_take(b, &after);
    b->decoded += n_decode;
    if (prefill)
        sample_fill(b, prefill, &before, &between, context,
                    (context + b->info.chunk - 1) / b->info.chunk, 1);
    if (decode)
        sample_fill(b, decode, &between, &after, n_decode, n_decode, n_decode);
    return 0;
}

/* The sample whose time is the median, so that its stages belong together. */
static sample *sample_median(sample *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t before = 0;
        for (uint32_t j = 0; j < n; j++)
            before +=
                list[j].seconds < list[i].seconds || (list[j].seconds == list[i].seconds && j < i);
        if (before == n / 2)
            return &list[i];
    }
    return list;
}

static int all_run(bench *b, cf_err *err)
{
    cf_progress bar;
    int rc = 0;
    /* Pipelines are compiled at their first use. */
    uint32_t warm = (uint32_t)(b->contexts[0] < 32 ? b->contexts[0] : 32);
    CF_TRY(context_run(b, warm, 1, NULL, NULL, err));
    cf_progress_begin_count(&bar, "measuring", (uint64_t)b->n_contexts * b->n_samples, "samples",
                            b->common.quiet);
    for (uint32_t i = 0; i < b->n_contexts && rc == 0; i++) {
        result *r = &b->results[i];
        r->context = (uint32_t)b->contexts[i];
        for (uint32_t j = 0; j < b->n_samples && rc == 0; j++) {
            rc = context_run(b, r->context, b->n_decode, &r->samples[0][j], &r->samples[1][j], err);
            cf_progress_update(&bar, (uint64_t)i * b->n_samples + j + 1);
        }
        for (int p = 0; p < 2; p++)
            r->median[p] = sample_median(r->samples[p], b->n_samples);
    }
    cf_progress_end(&bar);
fail:
    return rc;
}

/* Without them the table has no ratios; no reason to refuse. */
static void drive_measure(bench *b)
{
    const cf_catalogue *cat = b->engine->model->cat;
    cf_err err = {0};
    uint32_t largest = 0;
    for (uint32_t i = 1; i < cf_catalogue_file_count(cat); i++)
        if (cf_catalogue_file_bytes(cat, i) > cf_catalogue_file_bytes(cat, largest))
            largest = i;
    if (cf_bench_ceiling_measure(&b->drive, cf_catalogue_path(cat, largest), 0.8, &err) < 0)
        cf_notice("the drive has no ceiling: %s", err.msg);
}

static int bench_open(bench *b, cf_err *err)
{
    int rc;
    cf_err device = {0};
    if (!b->profile && cf_bench_device_measure(&b->device, &b->common.engine, &device) < 0)
        cf_notice("the device has no ceiling: %s", device.msg);
    rc = cf_common_open(&b->common, b->model, &b->engine, &b->info, err);
    if (rc < 0)
        return rc;
    CF_TRY(cf_decoder_only(&b->info, b->model, "bench", err));
    CF_TRY(contexts_resolve(b, err));
    if (!b->profile)
        drive_measure(b);
    touched_count(b);
    b->ids = calloc((size_t)b->info.ctx + b->n_decode, sizeof *b->ids);
    if (!b->ids)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for %u ids", b->info.ctx));
    b->rng.state = b->seed;
    CF_TRY(cf_stats_begin_run(b->engine, &b->common, err));
    CF_TRY(cf_session_create(&b->session, b->engine, err));
fail:
    return rc;
}

static int profile_run(bench *b, cf_err *err)
{
    return cf_bench_profile_run(&(cf_bench_profile){.engine = b->engine,
                                                    .session = b->session,
                                                    .model = b->info.name,
                                                    .family = b->info.family,
                                                    .vocab = b->info.vocab,
                                                    .n_decode = b->n_decode,
                                                    .n_samples = b->n_samples,
                                                    .n_contexts = b->n_contexts,
                                                    .contexts = b->contexts,
                                                    .rng = &b->rng,
                                                    .ids = b->ids,
                                                    .decoded = &b->decoded,
                                                    .quiet = b->common.quiet,
                                                    .form = b->form},
                                err);
}

/* ---- the result ---- */

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static double stage_speed(const stage *s)
{
    return ratio((double)s->bytes * 1e-9, s->seconds);
}

static double stage_ceiling(const bench *b, int which)
{
    return which == STAGE_DRIVE    ? b->drive.best
           : which == STAGE_COPIES ? b->device.upload
                                   : b->device.memory;
}

/* A speed, or a dash where there is none. */
static void cell_speed(cf_table *t, double gb_per_s)
{
    if (gb_per_s > 0)
        cf_table_cell(t, "%.2f", gb_per_s);
    else
        cf_table_cell(t, "-");
}

static void speeds_print(const bench *b)
{
    cf_table *t = cf_table_create("rlrrrrrrrr");
    static const char *const heads[] = {"context",  "phase", "tokens", "seconds", "tokens/s",
                                        "hit rate", "reads", "copies", "device",  "host"};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        cf_table_cell(t, "%s", heads[i]);
    cf_table_end_row(t);
    cf_table_rule(t);
    for (uint32_t i = 0; i < b->n_contexts; i++)
        for (int p = 0; p < 2; p++) {
            const sample *s = b->results[i].median[p];
            const double waits[] = {s->stall_io, s->stall_copy, s->stall_device, s->stall_host};
            cf_table_cell(t, "%u", b->results[i].context);
            cf_table_cell(t, "%s", phase_names[p]);
            cf_table_cell(t, "%" PRIu64, s->tokens);
            cf_table_cell(t, "%.3f", s->seconds);
            cf_table_cell(t, "%.2f", ratio((double)s->tokens, s->seconds));
            if (s->hit_rate >= 0)
                cf_table_cell(t, "%.1f %%", 100 * s->hit_rate);
            else
                cf_table_cell(t, "-");
            for (int w = 0; w < 4; w++)
                cf_table_cell(t, "%.0f %%", 100 * ratio(waits[w], s->seconds));
            cf_table_end_row(t);
        }
    printf("\nspeed (medians of %u; the last four: where the time went)\n\n", b->n_samples);
    cf_table_print(t, stdout, 2);
    cf_table_destroy(&t);
}

static void stages_print(const bench *b)
{
    cf_table *t = cf_table_create("rllrrrrr");
    static const char *const heads[] = {"context", "phase", "stage",   "seconds",
                                        "bytes",   "GB/s",  "ceiling", "of it"};
    char text[32];
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        cf_table_cell(t, "%s", heads[i]);
    cf_table_end_row(t);
    cf_table_rule(t);
    for (uint32_t i = 0; i < b->n_contexts * 2 * STAGES; i++) {
        const result *r = &b->results[i / (2 * STAGES)];
        int p = (int)(i / STAGES % 2), k = (int)(i % STAGES);
        const stage *s = &r->median[p]->stages[k];
        double ceiling = stage_ceiling(b, k);
        cf_table_cell(t, "%u", r->context);
        cf_table_cell(t, "%s", phase_names[p]);
        cf_table_cell(t, "%s", stage_names[k]);
        cf_table_cell(t, "%.3f", s->seconds);
        cf_table_cell(t, "%s", cf_bytes_text(s->bytes, text, sizeof text));
        cell_speed(t, stage_speed(s));
        cell_speed(t, ceiling);
        if (s->bytes && ceiling > 0)
            cf_table_cell(t, "%.0f %%", 100 * ratio(stage_speed(s), ceiling));
        else
            cf_table_cell(t, "-");
        cf_table_end_row(t);
    }
    printf("\nstages (they overlap)\n\n");
    cf_table_print(t, stdout, 2);
    cf_table_destroy(&t);
}

static json_t *known(double v)
{
    return v > 0 ? json_real(v) : json_null();
}

static json_t *phase_json(const bench *b, const result *r, int p)
{
    const sample *s = r->median[p];
    json_t *speeds = json_array(), *stages = json_array();
    for (uint32_t i = 0; i < b->n_samples; i++)
        json_array_append_new(
            speeds, json_real(ratio((double)r->samples[p][i].tokens, r->samples[p][i].seconds)));
    for (int k = 0; k < STAGES; k++) {
        const stage *g = &s->stages[k];
        double ceiling = stage_ceiling(b, k);
        json_array_append_new(stages, json_pack("{s:s s:f s:I s:o s:o s:o}", "stage",
                                                stage_names[k], "seconds", g->seconds, "bytes",
                                                (json_int_t)g->bytes, "gb_per_s",
                                                known(stage_speed(g)), "ceiling", known(ceiling),
                                                "ratio", known(ratio(stage_speed(g), ceiling))));
    }
    return json_pack("{s:I s:f s:f s:o s:o s:{s:f s:f s:f s:f} s:o}", "tokens",
                     (json_int_t)s->tokens, "seconds", s->seconds, "tok_per_s",
                     ratio((double)s->tokens, s->seconds), "samples", speeds, "hit_rate",
                     s->hit_rate >= 0 ? json_real(s->hit_rate) : json_null(), "stall_seconds", "io",
                     s->stall_io, "copy", s->stall_copy, "device", s->stall_device, "host",
                     s->stall_host, "stages", stages);
}

static int bench_json(const bench *b)
{
    json_t *results = json_array();
    for (uint32_t i = 0; i < b->n_contexts; i++)
        json_array_append_new(results, json_pack("{s:I s:o s:o}", "context",
                                                 (json_int_t)b->results[i].context, "prefill",
                                                 phase_json(b, &b->results[i], 0), "decode",
                                                 phase_json(b, &b->results[i], 1)));
    const cf_gpu_info *d = cf_gpu_get_info(b->engine->gpu);
    return cf_json_print(json_pack("{s:s s:s s:s s:I s:i s:{s:o s:o s:o} s:o}", "model",
                                   b->info.name, "backend", d->backend, "device", d->name, "seed",
                                   (json_int_t)b->seed, "chunk", (int)b->info.chunk, "ceilings",
                                   "drive", known(b->drive.best), "upload", known(b->device.upload),
                                   "device_memory", known(b->device.memory), "results", results));
}

static void bench_csv(const bench *b)
{
    printf("context,phase,tokens,seconds,tok_per_s,hit_rate,stage,stage_seconds,stage_bytes,"
           "stage_gb_per_s,ceiling_gb_per_s\n");
    for (uint32_t i = 0; i < b->n_contexts * 2 * STAGES; i++) {
        const result *r = &b->results[i / (2 * STAGES)];
        int p = (int)(i / STAGES % 2), k = (int)(i % STAGES);
        const sample *s = r->median[p];
        printf("%u,%s,%" PRIu64 ",%.6f,%.4f,%.6f,%s,%.6f,%" PRIu64 ",%.4f,%.4f\n", r->context,
               phase_names[p], s->tokens, s->seconds, ratio((double)s->tokens, s->seconds),
               s->hit_rate >= 0 ? s->hit_rate : 0, stage_names[k], s->stages[k].seconds,
               s->stages[k].bytes, stage_speed(&s->stages[k]), stage_ceiling(b, k));
    }
}

static int bench_print(const bench *b)
{
    if (b->form == CF_BENCH_JSON)
        return bench_json(b);
    if (b->form == CF_BENCH_CSV) {
        bench_csv(b);
        return CF_EXIT_DONE;
    }
    const cf_gpu_info *d = cf_gpu_get_info(b->engine->gpu);
    printf("%s (%s) on %s (%s), chunk %u\n", b->info.name, b->info.family, d->name, d->backend,
           b->info.chunk);
    speeds_print(b);
    stages_print(b);
    return CF_EXIT_DONE;
}

int cmd_bench(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "io"))
        return cf_bench_io_main(argc - 1, argv + 1);
    cf_err err = {0};
    int code = CF_EXIT_DONE;
    bench *b = calloc(1, sizeof *b);
    if (!b)
        return cf_tool_fail("out of memory for the bench");
    if (bench_parse(b, argc, argv, &code) != 0)
        goto done;
    int rc = cf_stats_check_outputs(&b->common, &err);
    if (rc == 0) {
        cf_interrupt_begin(NULL, false);
        rc = bench_open(b, &err);
    }
    if (rc == 0)
        rc = b->profile ? profile_run(b, &err) : all_run(b, &err);
    if (b->session) {
        cf_err closing = {0};
        int closed = cf_stats_close_run(b->engine, &b->common, b->decoded, &closing);
        if (closed < 0 && rc == 0) {
            rc = closed;
            err = closing;
        }
    }
    if (rc == 0 && !b->profile)
        code = bench_print(b);
    else if (rc < 0)
        code = rc == -ECANCELED ? CF_EXIT_INTERRUPTED : cf_tool_fail_err(&err, rc);
    cf_interrupt_end();
    cf_session_destroy(&b->session);
    cf_engine_close(&b->engine);
done:
    free(b->ids);
    free(b);
    return code;
}
