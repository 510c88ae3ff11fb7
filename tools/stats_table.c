/* The statistics at the end of a run: see stats_table.h. */
#include "tools/stats_table.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/log.h"
#include "tools/table.h"
#include "tools/text_io.h"

static void cell_share(cf_table *t, uint64_t part, uint64_t whole)
{
    if (whole)
        cf_table_cell(t, "%.1f %%", 100.0 * (double)part / (double)whole);
    else
        cf_table_cell(t, "-");
}

static void cell_rate(cf_table *t, uint64_t tokens, double seconds)
{
    if (tokens && seconds > 0)
        cf_table_cell(t, "%.2f", (double)tokens / seconds);
    else
        cf_table_cell(t, "-");
}

/* Prompt, decode and total side by side. */
static void phases_print(const cf_stats *s, uint64_t generated, FILE *out)
{
    cf_table *t = cf_table_create("lrrr");
    cf_table_cell(t, "%s", "");
    cf_table_cell(t, "prompt");
    cf_table_cell(t, "decode");
    cf_table_cell(t, "total");
    cf_table_end_row(t);
    cf_table_rule(t);

    cf_table_cell(t, "tokens");
    cf_table_cell(t, "%" PRIu64, s->prompt_tokens);
    cf_table_cell(t, "%" PRIu64, generated);
    cf_table_cell(t, "%" PRIu64, s->prompt_tokens + generated);
    cf_table_end_row(t);
    cf_table_cell(t, "seconds");
    cf_table_cell(t, "%.3f", s->prefill_s);
    cf_table_cell(t, "%.3f", s->decode_s);
    cf_table_cell(t, "%.3f", s->prefill_s + s->decode_s);
    cf_table_end_row(t);
    cf_table_cell(t, "tokens per second");
    cell_rate(t, s->prompt_tokens, s->prefill_s);
    cell_rate(t, s->generated_tokens, s->decode_s);
    cf_table_end_row(t);

    const cf_expert_counts *c[] = {&s->prefill, &s->decode, &s->all};
    static const struct {
        const char *name;
        size_t off;
    } counts[] = {{"experts selected", offsetof(cf_expert_counts, selected)},
                  {"  of them zero", offsetof(cf_expert_counts, zero)},
                  {"lookups", offsetof(cf_expert_counts, lookups)},
                  {"  found in VRAM", offsetof(cf_expert_counts, vram_hits)},
                  {"  found in RAM", offsetof(cf_expert_counts, ram_hits)},
                  {"  missed", offsetof(cf_expert_counts, misses)}};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        cf_table_cell(t, "%s", counts[i].name);
        for (int p = 0; p < 3; p++) {
            uint64_t v;
            memcpy(&v, (const char *)c[p] + counts[i].off, sizeof v);
            cf_table_cell(t, "%" PRIu64, v);
        }
        cf_table_end_row(t);
    }
    cf_table_cell(t, "hit rate");
    for (int p = 0; p < 3; p++)
        cell_share(t, c[p]->vram_hits + c[p]->ram_hits, c[p]->lookups);
    cf_table_end_row(t);
    cf_table_print(t, out, 2);
    cf_table_destroy(&t);
}

static void io_print(const cf_stats *s, FILE *out)
{
    char a[32], b[32];
    double gb_s = s->io_busy_s > 0 ? (double)s->io_bytes / s->io_busy_s / 1e9 : 0;
    cf_table *t = cf_table_create("ll");
    cf_table_cell(t, "reads");
    cf_table_cell(t, "%" PRIu64 " of %s together, %.2f GB/s while busy (%.3f s)", s->io_reads,
                  cf_bytes_text(s->io_bytes, a, sizeof a), gb_s, s->io_busy_s);
    cf_table_end_row(t);
    if (s->dense_streamed_bytes) {
        cf_table_cell(t, "dense weights");
        cf_table_cell(t, "%s read again for each token (of a prompt: each chunk), %s in all",
                      cf_bytes_text(s->dense_streamed_bytes - s->dense_held_bytes, a, sizeof a),
                      cf_bytes_text(s->dense_bytes, b, sizeof b));
        cf_table_end_row(t);
    }
    if (s->dense_held_bytes) {
        cf_table_cell(t, "  held in RAM");
        cf_table_cell(t, "%s copied instead, %s in all",
                      cf_bytes_text(s->dense_held_bytes, a, sizeof a),
                      cf_bytes_text(s->dense_copied_bytes, b, sizeof b));
        cf_table_end_row(t);
    }
    uint64_t tokens = s->generated_tokens;
    if (tokens && s->decode.lookups) {
        cf_table_cell(t, "misses per token");
        cf_table_cell(t, "%.2f of %.2f lookups in decode",
                      (double)s->decode.misses / (double)tokens,
                      (double)s->decode.lookups / (double)tokens);
        cf_table_end_row(t);
    }
    cf_table_cell(t, "guesses");
    cf_table_cell(t,
                  "%" PRIu64 " issued, %" PRIu64 " used, %" PRIu64 " late, %" PRIu64
                  " wasted, %" PRIu64 " cancelled",
                  s->prefetch_issued, s->prefetch_used, s->prefetch_late, s->prefetch_wasted,
                  s->prefetch_cancelled);
    cf_table_end_row(t);
    cf_table_cell(t, "waited for");
    cf_table_cell(t, "reads %.3f s, copies %.3f s, device %.3f s, host %.3f s", s->stall_io_s,
                  s->stall_copy_s, s->stall_device_s, s->stall_host_s);
    cf_table_end_row(t);
    cf_table_cell(t, "overlap");
    if (s->io_busy_s > 0) /* waking up after a read counts as waiting for it: can exceed it */
        cf_table_cell(t, "%.1f %% of the time spent reading was hidden",
                      s->stall_io_s < s->io_busy_s ? 100 * (1 - s->stall_io_s / s->io_busy_s) : 0);
    else
        cf_table_cell(t, "nothing was read");
    cf_table_end_row(t);
    cf_table_cell(t, "VRAM");
    cf_table_cell(t, "%s at the peak, of %s", cf_bytes_text(s->vram_peak, a, sizeof a),
                  cf_bytes_text(s->vram_budget, b, sizeof b));
    cf_table_end_row(t);
    cf_table_cell(t, "RAM");
    cf_table_cell(t, "%s at the peak, of %s", cf_bytes_text(s->ram_peak, a, sizeof a),
                  cf_bytes_text(s->ram_budget, b, sizeof b));
    cf_table_end_row(t);
    cf_table_cell(t, "cache");
    cf_table_cell(t, "%" PRIu64 " slots of %s, %" PRIu64 " slabs", s->slots,
                  cf_bytes_text(s->slot_bytes, a, sizeof a), s->slabs);
    cf_table_end_row(t);
    cf_table_print(t, out, 2);
    cf_table_destroy(&t);
}

void cf_stats_print(const cf_engine *engine, uint64_t generated, FILE *out)
{
    cf_stats s;
    cf_engine_info info;
    cf_engine_get_stats(engine, &s);
    cf_engine_get_info(engine, &info);
    fprintf(out, "\n%s (%s): %u layers, %u experts a layer, top %u; opened in %.3f s\n\n",
            info.name, info.family, info.layers, info.experts, info.top_k, s.open_s);
    phases_print(&s, generated, out);
    fputc('\n', out);
    io_print(&s, out);
}

int cf_stats_check_outputs(const cf_common *common, cf_err *err)
{
    int rc = common->stats_path ? cf_output_check(common->stats_path, err) : 0;
    if (rc == 0 && common->trace_path)
        rc = cf_output_check(common->trace_path, err);
    if (rc == 0 && common->timeline_path)
        rc = cf_output_check(common->timeline_path, err);
    /* One that exists is read when the engine opens, and replaced at the end. */
    const char *history = common->engine.history;
    if (rc == 0 && history && access(history, F_OK) < 0)
        rc = cf_output_check(history, err);
    return rc;
}

int cf_stats_begin_run(cf_engine *engine, const cf_common *common, cf_err *err)
{
    int rc = common->trace_path ? cf_engine_trace(engine, common->trace_path, err) : 0;
    if (rc == 0 && common->timeline_path)
        rc = cf_engine_timeline(engine, common->timeline_path, err);
    return rc;
}

/* The engine's JSON with the tokens that came out in the place of its decode steps. */
static char *stats_json(const cf_engine *engine, uint64_t generated)
{
    char *text = cf_engine_stats_json(engine);
    json_t *value = text ? json_loads(text, 0, NULL) : NULL;
    json_t *tokens = json_object_get(value, "tokens");
    free(text);
    text = NULL;
    if (tokens &&
        json_object_set_new(tokens, "generated", json_integer((json_int_t)generated)) == 0)
        text = json_dumps(value, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(value);
    return text;
}

int cf_stats_close_run(cf_engine *engine, const cf_common *common, uint64_t generated, cf_err *err)
{
    int rc = 0;
    if (common->verbose)
        cf_stats_print(engine, generated, stderr);
    if (common->trace_path)
        rc = cf_engine_trace(engine, NULL, err);
    int kept = cf_engine_save_history(engine, rc < 0 ? NULL : err);
    rc = rc < 0 ? rc : kept;
    if (common->timeline_path) {
        int shown = cf_engine_timeline(engine, NULL, rc < 0 ? NULL : err);
        rc = rc < 0 ? rc : shown;
    }
    if (common->stats_path) {
        char *json = stats_json(engine, generated);
        int written = json ? cf_output_write(common->stats_path, json, strlen(json), err)
                           : CF_FAIL(err, -ENOMEM, "out of memory for the statistics");
        rc = rc < 0 ? rc : written;
        free(json);
    }
    return rc;
}
