/* Statistics: what a run counted, as a struct and as JSON. */
#include <jansson.h>
#include <stdlib.h>

#include "runtime/base/clock.h"
#include "runtime/engine.h"

void cf_engine_get_stats(const cf_engine *e, cf_stats *out)
{
    const cf_counters *c = &e->counters;
    cf_fetch_stats io;
    cf_cache_stats cache;
    cf_rows_stats rows = {0};
    cf_dense_stats dense = {0};
    cf_fetch_get_stats(e->fetch, &io);
    cf_cache_get_stats(e->cache, &cache);
    if (e->rows)
        cf_rows_get_stats(e->rows, &rows);
    if (e->dense)
        cf_dense_get_stats(e->dense, &dense);
    double io_stall = cf_seconds(cache.io_stall_ns + c->rows_stall_ns + dense.stall_ns);
    double copy_stall = cf_seconds(cache.copy_stall_ns + dense.copy_ns),
           device = cf_seconds(c->device_stall_ns + dense.device_ns);
    double busy = cf_seconds(c->prefill_ns + c->decode_ns);
    double host = busy - io_stall - copy_stall - device;
    const cf_memory_plan *p = &e->plan;
    *out = (cf_stats){
        .prompt_tokens = c->prompt_tokens,
        .generated_tokens = c->generated_tokens,
        .open_s = cf_seconds(c->open_ns),
        .prefill_s = cf_seconds(c->prefill_ns),
        .decode_s = cf_seconds(c->decode_ns),
        .total_s = cf_seconds(cf_clock_ns() - c->opened_at_ns + c->open_ns),
        .prefill = c->prefill,
        .decode = c->decode,
        .all = {c->prefill.selected + c->decode.selected, c->prefill.zero + c->decode.zero,
                c->prefill.lookups + c->decode.lookups, c->prefill.vram_hits + c->decode.vram_hits,
                c->prefill.ram_hits + c->decode.ram_hits, c->prefill.misses + c->decode.misses,
                c->prefill.evictions + c->decode.evictions},
        .prefetch_issued = cache.guesses_made,
        .prefetch_used = cache.guesses_used,
        .prefetch_late = cache.guesses_late,
        .prefetch_wasted = cache.guesses_wasted,
        .prefetch_cancelled = cache.guesses_cancelled,
        .io_reads = io.reads,
        .io_bytes = io.bytes,
        .io_busy_s = cf_seconds(io.busy_ns),
        .dense_streamed_bytes = p->dense.streamed_bytes,
        .dense_reads = dense.reads,
        .dense_bytes = dense.bytes,
        .dense_held_bytes = p->hold.bytes,
        .dense_copied_bytes = dense.copied,
        .dense_stall_s = cf_seconds(dense.stall_ns),
        .io_registered_bytes = cf_fetch_io_info(e->fetch)->registered_bytes,
        .io_unregistered_reads = io.unregistered_reads,
        .row_bytes_asked = rows.bytes_asked,
        .row_bytes_used = rows.bytes_used,
        .stall_io_s = io_stall,
        .stall_copy_s = copy_stall,
        .stall_device_s = device,
        .stall_host_s = host > 0 ? host : 0,
        .vram_budget = p->vram_budget,
        .vram_peak = cf_ledger_peak(e->ledger, CF_POOL_DEVICE),
        .ram_budget = p->ram_budget,
        .ram_peak = cf_ledger_peak(e->ledger, CF_POOL_HOST),
        .kv_bytes = cf_kv_bytes(p, e->model),
        .slot_bytes = p->shape.slot_bytes,
        .slots = p->shape.n_slots,
        .guess_slots = p->shape.n_guess,
        .slabs = p->shape.n_slabs + p->shape.n_tier,
        .slot_waste = p->shape.slot_bytes
                          ? 1 - (double)p->mean_record_bytes / (double)p->shape.slot_bytes
                          : 0,
    };
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static json_t *counts_json(const cf_expert_counts *c)
{
    return json_pack("{s:I s:I s:I s:I s:I s:I s:I s:f}", "selected", (json_int_t)c->selected,
                     "zero", (json_int_t)c->zero, "lookups", (json_int_t)c->lookups, "vram_hits",
                     (json_int_t)c->vram_hits, "ram_hits", (json_int_t)c->ram_hits, "misses",
                     (json_int_t)c->misses, "evictions", (json_int_t)c->evictions, "hit_rate",
                     ratio((double)(c->vram_hits + c->ram_hits), (double)c->lookups));
}

static json_t *experts_json(const cf_stats *s)
{
    json_t *j = counts_json(&s->all);
    json_object_set_new(j, "decode", counts_json(&s->decode));
    json_object_set_new(j, "prefill", counts_json(&s->prefill));
    return j;
}

static json_t *layers_json(const cf_engine *e)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < e->model->n_moe; i++) {
        const cf_expert_counts *c = &e->counters.layers[i];
        json_array_append_new(
            list, json_pack("{s:I s:I s:I s:I s:I s:I s:I}", "layer",
                            (json_int_t)e->model->moe[i].layer, "lookups", (json_int_t)c->lookups,
                            "vram_hits", (json_int_t)c->vram_hits, "ram_hits",
                            (json_int_t)c->ram_hits, "misses", (json_int_t)c->misses, "zero",
                            (json_int_t)c->zero, "evictions", (json_int_t)c->evictions));
    }
    return list;
}

static json_t *model_json(const cf_engine *e)
{
    cf_engine_info i;
    cf_engine_get_info(e, &i);
    return json_pack("{s:s s:s s:I s:I s:I s:I s:I s:I s:I}", "name", i.name, "family", i.family,
                     "layers", (json_int_t)i.layers, "moe_layers", (json_int_t)i.moe_layers,
                     "experts", (json_int_t)i.experts, "zero_experts", (json_int_t)i.zero_experts,
                     "top_k", (json_int_t)i.top_k, "record_bytes", (json_int_t)i.record_bytes,
                     "resident_bytes", (json_int_t)i.resident_bytes);
}

static json_t *settings_json(const cf_engine *e)
{
    const cf_memory_plan *p = &e->plan;
    const cf_gpu_info *d = cf_gpu_get_info(e->gpu);
    char device[160];
    snprintf(device, sizeof device, "%s:%d", d->backend, d->index);
    return json_pack(
        "{s:s s:I s:I s:I s:I s:I s:s s:b s:b s:s s:b s:s s:s s:i s:s}", "device", device, "vram",
        (json_int_t)p->vram_budget, "ram", (json_int_t)p->ram_budget, "ctx", (json_int_t)p->ctx,
        "chunk", (json_int_t)p->chunk, "sessions", (json_int_t)p->sessions, "policy",
        e->policy_name, "history", e->history != NULL, "prefetch", e->prefetch, "io",
        cf_fetch_io_info(e->fetch)->engine, "direct", e->files.direct, "kv",
        cf_kv_name(p->kv_dtype), "activations", e->activations_q8 ? "q8" : "f32", "threads",
        e->threads, "memory",
        p->shape.in_place ? "in place" : p->shape.staged ? "staged" : "copied");
}

char *cf_engine_stats_json(const cf_engine *e)
{
    cf_stats s;
    cf_engine_get_stats(e, &s);
    const cf_gpu_info *d = cf_gpu_get_info(e->gpu);
    json_t *j = json_object();
    json_object_set_new(j, "model", model_json(e));
    json_object_set_new(j, "device", json_pack("{s:s s:s s:b}", "backend", d->backend, "name",
                                               d->name, "unified", d->unified));
    json_object_set_new(j, "settings", settings_json(e));
    json_object_set_new(j, "tokens",
                        json_pack("{s:I s:I}", "prompt", (json_int_t)s.prompt_tokens, "generated",
                                  (json_int_t)s.generated_tokens));
    json_object_set_new(j, "seconds", json_pack("{s:f s:f s:f s:f}", "open", s.open_s, "prefill",
                                                s.prefill_s, "decode", s.decode_s, "total",
                                                s.total_s));
    json_object_set_new(j, "tok_per_s",
                        json_pack("{s:f s:f}", "prefill",
                                  ratio((double)s.prompt_tokens, s.prefill_s), "decode",
                                  ratio((double)s.generated_tokens, s.decode_s)));
    json_object_set_new(j, "experts", experts_json(&s));
    json_object_set_new(j, "prefetch",
                        json_pack("{s:I s:I s:I s:I s:I}", "issued", (json_int_t)s.prefetch_issued,
                                  "used", (json_int_t)s.prefetch_used, "late",
                                  (json_int_t)s.prefetch_late, "wasted",
                                  (json_int_t)s.prefetch_wasted, "cancelled",
                                  (json_int_t)s.prefetch_cancelled));
    json_object_set_new(
        j, "io",
        json_pack("{s:s s:b s:I s:I s:f s:f s:I s:I s:I s:I}", "engine",
                  cf_fetch_io_info(e->fetch)->engine, "direct", e->files.direct, "reads",
                  (json_int_t)s.io_reads, "bytes", (json_int_t)s.io_bytes, "busy_seconds",
                  s.io_busy_s, "gb_per_s", ratio((double)s.io_bytes * 1e-9, s.io_busy_s),
                  "registered_bytes", (json_int_t)s.io_registered_bytes, "unregistered_reads",
                  (json_int_t)s.io_unregistered_reads, "row_bytes_asked",
                  (json_int_t)s.row_bytes_asked, "row_bytes_used", (json_int_t)s.row_bytes_used));
    json_object_set_new(j, "dense",
                        json_pack("{s:I s:I s:I s:I s:I s:f}", "streamed_bytes",
                                  (json_int_t)s.dense_streamed_bytes, "held_bytes",
                                  (json_int_t)s.dense_held_bytes, "reads",
                                  (json_int_t)s.dense_reads, "bytes", (json_int_t)s.dense_bytes,
                                  "copied_bytes", (json_int_t)s.dense_copied_bytes,
                                  "stall_seconds", s.dense_stall_s));
    json_object_set_new(j, "stall_seconds",
                        json_pack("{s:f s:f s:f s:f}", "io", s.stall_io_s, "copy", s.stall_copy_s,
                                  "device", s.stall_device_s, "host", s.stall_host_s));
    double overlap = s.io_busy_s > 0 ? 1 - s.stall_io_s / s.io_busy_s : 0;
    json_object_set_new(j, "overlap", json_real(overlap > 0 ? overlap : 0));
    json_object_set_new(
        j, "memory",
        json_pack("{s:I s:I s:I s:I s:I s:I s:I s:I s:I s:f}", "vram_budget",
                  (json_int_t)s.vram_budget, "vram_peak", (json_int_t)s.vram_peak, "ram_budget",
                  (json_int_t)s.ram_budget, "ram_peak", (json_int_t)s.ram_peak, "kv_bytes",
                  (json_int_t)s.kv_bytes, "slots", (json_int_t)s.slots, "slot_bytes",
                  (json_int_t)s.slot_bytes, "guess_slots", (json_int_t)s.guess_slots, "slabs",
                  (json_int_t)s.slabs, "slot_waste", s.slot_waste));
    json_object_set_new(j, "layers", layers_json(e));
    char *text = json_dumps(j, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    json_decref(j);
    return text;
}
