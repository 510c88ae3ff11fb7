/* The engine: opening a model within its budget, and closing it. See catflap.h. */
#include "runtime/engine.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/machine.h"
#include "runtime/history.h"

enum { MAX_REGIONS = 1024 };

void cf_options_init(cf_options *options)
{
    *options = (cf_options){.device = "auto", .prefetch = true, .io = "auto", .direct = true,
                            .kv = "auto", .activations = "f32", .memory = "auto"};
}

static int io_kind(const char *name, cf_io_kind *out, cf_err *err)
{
    static const char *const names[] = {[CF_IO_AUTO] = "auto", [CF_IO_URING] = "uring",
                                        [CF_IO_PREAD] = "pread"};
    for (int i = 0; i < 3; i++)
        if (!name || strcmp(name, names[i]) == 0) {
            *out = (cf_io_kind)i;
            return 0;
        }
    return CF_FAIL(err, -EINVAL, "I/O engine \"%s\" is unknown; known: auto, uring, pread", name);
}

/* ---- parts of opening ---- */

/* A number of threads that the device does not take has no effect, which is said. */
static void threads_note(cf_engine *e, const cf_options *options)
{
    const cf_gpu_info *d = cf_gpu_get_info(e->gpu);
    e->threads = d->threads;
    if (options->threads <= 0 || d->threads == options->threads)
        return;
    if (d->threads)
        cf_notice("--threads %d: device %s:%d (%s) computes with %d", options->threads, d->backend,
                  d->index, d->name, d->threads);
    else
        cf_notice(
            "--threads %d has no effect on device %s:%d (%s)%s", options->threads, d->backend,
            d->index, d->name,
            d->cpu ? ", which has its own setting in the environment (LP_NUM_THREADS of llvmpipe)"
                   : ": nothing is computed on the host");
}

static int activations_choose(cf_engine *e, const char *name, cf_err *err)
{
    if (!name || strcmp(name, "f32") == 0)
        return 0;
    if (strcmp(name, "q8") != 0)
        return CF_FAIL(err, -EINVAL, "activation format \"%s\" is unknown; known: f32, q8", name);
    e->activations_q8 = cf_model_q8_steps(e->model) > 0;
    if (!e->activations_q8)
        cf_notice("--activations q8 changes nothing: no weights of %s are stored in 8 bits or less",
                  e->model->spec.name);
    return 0;
}

static int tokenizer_open(cf_engine *e, cf_err *err)
{
    char name[CF_TOKENIZER_NAME_BYTES];
    const cf_tokenizer_place place = cf_model_tokenizer_place(e->model);
    int rc = cf_tokenizer_open(&place, &e->tokenizer, name, err);
    if (rc < 0 || !e->tokenizer)
        return rc; /* a model without one works with ids */
    int64_t size = cf_tokenizer_vocab_size(e->tokenizer);
    /* Embeddings may be padded beyond the tokenizer, never the other way round. */
    if (size > e->model->spec.vocab)
        return CF_FAIL(err, CF_EFORMAT, "%s has %lld entries, the model's vocabulary has %u", name,
                       (long long)size, e->model->spec.vocab);
    return 0;
}

static void eos_collect(cf_engine *e)
{
    e->n_eos = e->model->spec.n_eos;
    memcpy(e->eos, e->model->spec.eos, sizeof e->model->spec.eos);
}

static int format_check(const cf_engine *e, cf_format format, const char *what, cf_err *err)
{
    if (cf_gpu_supports(e->gpu, format))
        return 0;
    const cf_gpu_info *device = cf_gpu_get_info(e->gpu);
    return CF_FAIL(err, CF_EDEVICE,
                   "%s is stored as %s, which device %s:%d (%s) cannot compute with; ref can", what,
                   cf_format_name(format), device->backend, device->index, device->name);
}

/* A device that lacks a format refuses here, not in the first op on it. */
static int formats_check(const cf_engine *e, cf_err *err)
{
    const cf_model *m = e->model;
    int rc = 0;
    for (uint32_t i = 0; i < m->n_weights; i++)
        CF_TRY(format_check(e, m->weights[i].dtype, m->weights[i].name, err));
    for (uint32_t i = 0; i < m->n_tables; i++)
        CF_TRY(format_check(e, m->tables[i].dtype, m->tables[i].name, err));
    for (uint32_t i = 0; i < m->n_moe; i++)
        for (int p = 0; p < CF_EXPERT_PIECES; p++) {
            static const char *const names[CF_EXPERT_PIECES] = {"gate", "up", "down"};
            char what[64];
            snprintf(what, sizeof what, "the %s of layer %u's experts", names[p], m->moe[i].layer);
            CF_TRY(format_check(e, m->moe[i].pieces[p].dtype, what, err));
            CF_TRY(format_check(e, m->moe[i].biases[p].dtype, what, err));
        }
fail:
    return rc;
}

static int files_open(cf_engine *e, bool direct, cf_err *err)
{
    uint32_t n = cf_catalogue_file_count(e->model->cat);
    const char **paths = calloc(n + 1, sizeof *paths);
    if (!paths)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u file names", n);
    for (uint32_t i = 0; i < n; i++)
        paths[i] = cf_catalogue_path(e->model->cat, i);
    int rc = cf_files_open(&e->files, paths, n, direct, err);
    free(paths);
    if (rc == 0 && e->files.direct_why[0])
        cf_notice("O_DIRECT is not available, reads go through the page cache: %s",
                  e->files.direct_why);
    return rc;
}

/* Tables on the heap are charged by estimate, so that --ram covers them too. */
static int host_charge(cf_engine *e, cf_err *err)
{
    uint64_t bytes = cf_cache_memory(
        e->model, e->plan.shape.n_slots + e->plan.shape.n_guess, e->plan.shape.n_tier);
    for (uint32_t i = 0; i < e->plan.n_ram; i++)
        bytes += e->plan.ram[i].bytes;
    if (e->plan.row_entries)
        bytes += cf_rows_memory(0, e->plan.row_entries);
    int rc = cf_ledger_charge(e->ledger, CF_POOL_HOST, "tokenizer, catalogue and tables", bytes,
                              err);
    if (rc == 0)
        e->host_charged = bytes;
    return rc;
}

static int fetch_open(cf_engine *e, const cf_options *o, cf_err *err)
{
    cf_io_region regions[MAX_REGIONS];
    cf_fetch_options f = {.io = {.no_register = o->no_register, .fault = o->fault},
                          .sums = e->model->pack ? &e->model->pack->sums : NULL};
    int rc = io_kind(o->io, &f.io.kind, err);
    if (rc < 0)
        return rc;
    uint32_t n = cf_slots_regions(&e->slots, regions, MAX_REGIONS - 2);
    f.io.regions = regions;
    f.io.n_regions = n;
    if (e->rows)
        regions[f.io.n_regions++] = cf_rows_region(e->rows);
    if (e->dense)
        regions[f.io.n_regions++] = cf_dense_region(e->dense);
    e->n_regions = f.io.n_regions;
    rc = cf_fetch_open(&e->fetch, &e->files, &f, err);
    if (rc < 0)
        return rc;
    if (e->rows) {
        cf_rows_attach(e->rows, e->fetch, (int32_t)n);
        cf_rows_watch(e->rows, e->timeline);
    }
    const cf_io_info *info = cf_fetch_io_info(e->fetch);
    if (info->notice[0])
        cf_notice("%s", info->notice);
    return 0;
}

/* The policy begins with what an earlier run has learned. */
static int history_open(cf_engine *e, const char *path, cf_err *err)
{
    if (!path)
        return 0;
    e->history = strdup(path);
    if (!e->history)
        return CF_FAIL(err, -ENOMEM, "out of memory for the name of a history");
    int rc = cf_history_identity(e->model, &e->history_identity, err);
    if (rc == 0)
        rc = cf_history_load(path, e->history_identity, e->policy_name, e->policy, err);
    e->warm = rc == 0;
    return rc < 0 ? rc : 0;
}

int cf_engine_save_history(cf_engine *e, cf_err *err)
{
    if (!e->history)
        return 0;
    return cf_history_save(e->history, e->history_identity, e->policy_name, e->policy, err);
}

static int cache_open(cf_engine *e, const cf_options *options, cf_err *err)
{
    uint32_t experts = 1, top_k = 1;
    for (uint32_t i = 0; i < e->model->n_moe; i++) {
        const cf_moe_def *moe = &e->model->moe[i];
        experts = moe->experts > experts ? moe->experts : experts;
        top_k = moe->top_k > top_k ? moe->top_k : top_k;
    }
    int rc = cf_policy_create(&e->policy, e->policy_name, e->model->n_moe, experts, top_k, err);
    if (rc < 0)
        return rc;
    rc = cf_cache_create(&e->cache,
                           &(cf_cache_options){.gpu = e->gpu, .fetch = e->fetch,
                                               .files = &e->files, .model = e->model,
                                               .slots = &e->slots, .policy = e->policy,
                                               .prefetch = e->prefetch,
                                               .unpack_threads = options->unpack_threads,
                                               .timeline = e->timeline,
                                               .on_wait = e->on_experts_wait,
                                               .on_wait_user = e->on_experts_wait_user},
                           err);
    if (rc == 0 && e->dense) /* its region is the last one */
        cf_dense_attach(e->dense, e->fetch, (int32_t)e->n_regions - 1,
                        cf_cache_copier(e->cache), e->timeline);
    return rc;
}

/* Dense weights that come again and again: how many, from where, and what would spare that. */
static void streaming_note(const cf_engine *e)
{
    const cf_memory_plan *p = &e->plan;
    const double mib = 1 << 20;
    char how[160] = "are read again", slow[160] = ", which is slow", spare[80] = "";
    if (p->hold.bytes == p->dense.streamed_bytes) {
        snprintf(how, sizeof how, "are read once and copied from RAM again");
        slow[0] = 0;
    } else if (p->hold.bytes) {
        snprintf(how, sizeof how, "are brought again");
        snprintf(slow, sizeof slow,
                 ", %.1f of them from RAM, the others from the drive, which is slow",
                 (double)p->hold.bytes / mib);
    }
    if (p->ram_dense > p->ram_budget)
        snprintf(spare, sizeof spare, ", --ram %llu would keep them in RAM",
                 (unsigned long long)p->ram_dense);
    cf_notice("the dense weights do not all fit in --vram %llu: %.1f of their %.1f MiB %s for each "
              "token (of a prompt: for each chunk)%s; --vram %llu would hold them%s",
              (unsigned long long)p->vram_budget, (double)p->dense.streamed_bytes / mib,
              (double)cf_model_resident_bytes(e->model) / mib, how, slow,
              (unsigned long long)p->vram_dense, spare);
}

/* The weights that stay, and the way through for those that do not. */
static int weights_create(cf_engine *e, cf_err *err)
{
    const cf_memory_plan *p = &e->plan;
    e->streamed = calloc(e->model->n_weights + 1, 1);
    if (!e->streamed)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u weights", e->model->n_weights);
    if (p->dense.n_streamed)
        cf_dense_choose(e->model, p->dense.largest, p->dense.allowance, e->streamed);
    int rc = cf_weights_create(&e->weights, e->model, e->streamed, e->gpu, err);
    if (rc < 0 || !p->dense.n_streamed)
        return rc;
    streaming_note(e);
    return cf_dense_create(&e->dense,
                           &(cf_dense_options){.model = e->model, .gpu = e->gpu,
                                               .ledger = e->ledger, .plan = &e->plan.dense,
                                               .hold = &e->plan.hold,
                                               .shape = &e->plan.shape, .streamed = e->streamed,
                                               .align = e->files.align},
                           err);
}

static int tables_create(cf_engine *e, cf_err *err)
{
    e->counters.layers = calloc(e->model->n_moe + 1, sizeof *e->counters.layers);
    e->session_used = calloc(e->plan.sessions, 1);
    e->batch_rows = calloc(e->plan.chunk, sizeof *e->batch_rows);
    if (!e->counters.layers || !e->session_used || !e->batch_rows)
        return CF_FAIL(err, -ENOMEM, "out of memory for the tables of %u sessions",
                       e->plan.sessions);
    return 0;
}

static int memory_open(cf_engine *e, const cf_options *o, cf_err *err)
{
    int rc = 0;
    const cf_gpu_info *device = cf_gpu_get_info(e->gpu);
    uint64_t tok = e->tokenizer ? cf_tokenizer_memory(e->tokenizer) : 0;
    CF_TRY(cf_memory_plan_make(&e->plan, e->model, device, o, e->files.align, tok, err));
    cf_ledger_limit_set(e->ledger, CF_POOL_DEVICE, e->plan.vram_budget);
    cf_ledger_limit_set(e->ledger, CF_POOL_HOST, e->plan.ram_budget);
    CF_TRY(host_charge(e, err));
    CF_TRY(tables_create(e, err));
    CF_TRY(weights_create(e, err));
    CF_TRY(cf_exec_create(&e->exec, e, err));
    CF_TRY(cf_slots_init(&e->slots, e->gpu, e->ledger, &e->plan.shape, err));
    if (e->plan.row_entries)
        CF_TRY(cf_rows_create(&e->rows, e->model, e->plan.row_entries, e->files.align, e->ledger,
                              err));
fail:
    return rc;
}

int cf_engine_create(cf_engine **out, cf_model *model, const cf_options *options, cf_err *err)
{
    int rc = 0;
    uint64_t begin = cf_clock_ns();
    cf_engine *e = calloc(1, sizeof *e);
    if (!e)
        return CF_FAIL(err, -ENOMEM, "out of memory for an engine");
    e->model = model;
    e->prefetch = options->prefetch;
    e->threads = options->threads > 0 ? options->threads : cf_machine_processors("");
    e->on_experts_wait = options->on_experts_wait;
    e->on_experts_wait_user = options->on_experts_wait_user;
    snprintf(e->policy_name, sizeof e->policy_name, "%s",
             options->policy ? options->policy : cf_policy_default);
    CF_TRY(cf_timeline_create(&e->timeline, err));
    CF_TRY(cf_ledger_create(&e->ledger, 0, 0, err));
    CF_TRY(tokenizer_open(e, err));
    eos_collect(e);
    CF_TRY(cf_gpu_open(&e->gpu, options->device,
                       &(cf_gpu_options){.threads = e->threads, .check = options->check,
                                         .no_import = options->no_import, .ledger = e->ledger},
                       err));
    threads_note(e, options);
    CF_TRY(formats_check(e, err));
    CF_TRY(activations_choose(e, options->activations, err));
    CF_TRY(files_open(e, options->direct, err));
    CF_TRY(memory_open(e, options, err));
    CF_TRY(fetch_open(e, options, err));
    CF_TRY(cf_weights_load(&e->weights, model, e->gpu, e->fetch, e->files.align, &e->slots,
                           options->progress, options->progress_user, err));
    CF_TRY(cache_open(e, options, err));
    CF_TRY(history_open(e, options->history, err));
    e->counters.opened_at_ns = cf_clock_ns();
    e->counters.open_ns = e->counters.opened_at_ns - begin;
    *out = e;
    return 0;
fail:
    e->model = NULL; /* stays the caller's */
    cf_engine_close(&e);
    return rc;
}

void cf_engine_close(cf_engine **engine)
{
    cf_engine *e = *engine;
    if (!e)
        return;
    cf_trace_close(&e->trace, NULL);
    if (e->timeline)
        cf_timeline_end(e->timeline, NULL);
    cf_cache_destroy(&e->cache);
    cf_policy_destroy(&e->policy);
    cf_fetch_close(&e->fetch);
    cf_rows_destroy(&e->rows);
    cf_slots_finish(&e->slots);
    cf_exec_destroy(&e->exec);
    cf_dense_destroy(&e->dense);
    cf_weights_finish(&e->weights);
    free(e->streamed);
    cf_files_close(&e->files);
    cf_gpu_close(&e->gpu);
    cf_tokenizer_close(&e->tokenizer);
    cf_ledger_refund(e->ledger, CF_POOL_HOST, e->host_charged);
    cf_ledger_destroy(&e->ledger);
    cf_model_free(&e->model);
    free(e->counters.layers);
    free(e->session_used);
    free(e->batch_rows);
    free(e->history);
    cf_timeline_destroy(&e->timeline);
    free(e);
    *engine = NULL;
}

/* ---- questions ---- */

void cf_engine_get_info(const cf_engine *e, cf_engine_info *out)
{
    const cf_spec *s = &e->model->spec;
    *out = (cf_engine_info){
        .name = s->name, .family = s->family, .layers = s->layers, .moe_layers = e->model->n_moe,
        .experts = s->experts, .zero_experts = s->zero_experts, .top_k = s->top_k,
        .vocab = s->vocab, .hidden = s->hidden, .ctx = e->plan.ctx, .ctx_max = s->ctx_max,
        .chunk = e->plan.chunk, .bos = s->bos, .encoder = e->model->n_encoder_steps > 0,
        .decoder_start = s->decoder_start,
        .record_bytes = e->model->n_moe ? cf_moe_record_bytes(&e->model->moe[0]) : 0,
        .resident_bytes = cf_model_resident_bytes(e->model)};
}

const cf_model *cf_engine_model(const cf_engine *engine)
{
    return engine->model;
}

const cf_tokenizer *cf_engine_tokenizer(const cf_engine *engine)
{
    return engine->tokenizer;
}

bool cf_engine_is_eos(const cf_engine *engine, int32_t id)
{
    for (uint32_t i = 0; i < engine->n_eos; i++)
        if (engine->eos[i] == id)
            return true;
    return false;
}

void cf_engine_cancel(cf_engine *engine)
{
    atomic_store(&engine->cancelled, 1);
}

void cf_engine_resume(cf_engine *engine)
{
    atomic_store(&engine->cancelled, 0);
}

int cf_engine_trace(cf_engine *e, const char *path, cf_err *err)
{
    int rc = cf_trace_close(&e->trace, err);
    if (rc < 0 || !path)
        return rc;
    const cf_spec *s = &e->model->spec;
    const cf_memory_plan *p = &e->plan;
    json_t *j = json_pack(
        "{s:s s:I s:I s:I s:I s:I s:I s:I s:I s:s s:b s:b s:s}", "model", s->name, "n_layers",
        (json_int_t)s->layers, "n_experts", (json_int_t)s->experts, "zero_experts",
        (json_int_t)s->zero_experts, "top_k", (json_int_t)s->top_k, "chunk", (json_int_t)p->chunk,
        "slots", (json_int_t)p->shape.n_slots, "slabs", (json_int_t)p->shape.n_tier, "guess_slots",
        (json_int_t)p->shape.n_guess, "policy",
        e->policy_name, "prefetch", e->prefetch, "history", e->warm, "order", "plan");
    char *header = json_dumps(j, JSON_COMPACT);
    rc = header ? cf_trace_open(&e->trace, path, header, err)
                : CF_FAIL(err, -ENOMEM, "out of memory for a trace header");
    free(header);
    json_decref(j);
    return rc;
}

int cf_engine_timeline(cf_engine *e, const char *path, cf_err *err)
{
    int rc = cf_timeline_end(e->timeline, err);
    if (rc < 0 || !path)
        return rc;
    return cf_timeline_begin(e->timeline, path, CF_TIMELINE_EVENTS, err);
}
