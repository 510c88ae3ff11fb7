/* tune: a run beside the replay of its own trace. See tune.h.
 *
 * A replay decides what the run decided; a run hits more by the guesses that were in time, and may
 * have begun with a history. So the two are put side by side, and what is left over is said. */
#include <inttypes.h>
#include <jansson.h>

#include "runtime/base/json.h"
#include "tools/table.h"
#include "tools/tune.h"

enum { STATS_BYTES_MAX = 16 << 20, STATS_VALUES_MAX = 1 << 20 };

static uint64_t number(const json_t *stats, const char *group, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(json_object_get(stats, group), key));
    return v > 0 ? (uint64_t)v : 0;
}

static int stats_read(const char *path, cf_tune_own *own, cf_err *err)
{
    cf_err why = {0};
    json_t *stats = cf_json_load(path, STATS_BYTES_MAX, STATS_VALUES_MAX, &why);
    if (!stats)
        return CF_FAIL(err, why.code, "%s is not the statistics of a run: %s", path, why.msg);
    bool whole = json_is_object(json_object_get(stats, "experts")) &&
                 json_is_object(json_object_get(stats, "prefetch"));
    own->run = (cf_replay_counts){.lookups = number(stats, "experts", "lookups"),
                                  .vram_hits = number(stats, "experts", "vram_hits"),
                                  .ram_hits = number(stats, "experts", "ram_hits"),
                                  .misses = number(stats, "experts", "misses"),
                                  .evictions = number(stats, "experts", "evictions")};
    uint64_t used = number(stats, "prefetch", "used"), late = number(stats, "prefetch", "late");
    own->guesses = used > late ? used - late : 0;
    json_decref(stats);
    return whole ? 0
                 : CF_FAIL(err, CF_EFORMAT,
                           "%s is not the statistics of a run: \"experts\" or \"prefetch\" is "
                           "missing",
                           path);
}

int cf_tune_own_make(cf_tune_own *own, const cf_routing *t, const char *trace, const char *path,
                     cf_err *err)
{
    const cf_trace_header *h = &t->header;
    cf_replay replay = {.slots = h->slots, .slabs = h->slabs};
    *own = (cf_tune_own){.given = true};
    int rc = stats_read(path, own, err);
    if (rc < 0)
        return rc;
    if (!h->slots || !h->policy[0])
        return CF_FAIL(err, -EINVAL,
                       "%s does not say its slots and policy: there is no run to compare", trace);
    rc = cf_replay_run(t, h->policy, &replay, 1, err);
    if (rc < 0)
        return rc;
    own->replay = replay.all;
    cf_replay_finish(&replay, 1);
    if (own->replay.lookups != own->run.lookups)
        return CF_FAIL(err, -EINVAL,
                       "%s is of another run: it counts %" PRIu64
                       " lookups, the trace %s has %" PRIu64,
                       path, own->run.lookups, trace, own->replay.lookups);
    return 0;
}

static int64_t more_hits(const cf_tune_own *own)
{
    return (int64_t)own->replay.misses - (int64_t)own->run.misses;
}

static void row(cf_table *t, const char *name, uint64_t run, uint64_t replay)
{
    cf_table_cell(t, "%s", name);
    cf_table_cell(t, "%" PRIu64, run);
    cf_table_cell(t, "%" PRIu64, replay);
    cf_table_end_row(t);
}

void cf_tune_own_print(const cf_tune *tune, FILE *out)
{
    const cf_tune_own *own = &tune->own;
    const cf_trace_header *h = &tune->traces[0]->header;
    const cf_replay_counts *a = &own->run, *b = &own->replay;
    if (!own->given)
        return;
    fprintf(out, "\nThe run (%s, %u slots, %u slabs) beside its replay:\n\n", h->policy, h->slots,
            h->slabs);
    cf_table *t = cf_table_create("lrr");
    cf_table_cell(t, "%s", "");
    cf_table_cell(t, "run");
    cf_table_cell(t, "replay");
    cf_table_end_row(t);
    cf_table_rule(t);
    row(t, "lookups", a->lookups, b->lookups);
    row(t, "found in VRAM", a->vram_hits, b->vram_hits);
    row(t, "found in RAM", a->ram_hits, b->ram_hits);
    row(t, "missed", a->misses, b->misses);
    row(t, "evicted", a->evictions, b->evictions);
    cf_table_print(t, out, 2);
    cf_table_destroy(&t);
    int64_t left = more_hits(own) - (int64_t)own->guesses;
    fprintf(out, "\n  Guesses that were in time: %" PRIu64, own->guesses);
    if (left == 0 && a->evictions == b->evictions)
        fprintf(out, ", which is all of the difference.\n");
    else
        fprintf(out, ", which leaves %" PRId64 " hits and %" PRId64 " evictions: %s.\n", left,
                (int64_t)a->evictions - (int64_t)b->evictions,
                h->warm ? "what the run's history did" : "not explained");
}

json_t *cf_tune_own_json(const cf_tune *tune)
{
    const cf_tune_own *own = &tune->own;
    if (!own->given)
        return json_null();
    return json_pack("{s:o, s:o, s:I, s:I}", "run", cf_tune_counts_json(&own->run), "replay",
                     cf_tune_counts_json(&own->replay), "guesses_in_time",
                     (json_int_t)own->guesses, "unexplained_hits",
                     (json_int_t)(more_hits(own) - (int64_t)own->guesses));
}
