/* tune: the answer for people. See tune.h. */
#include <inttypes.h>
#include <string.h>

#include "tools/table.h"
#include "tools/tune.h"

static const char *const phase_names[] = {"prompt", "decoded", "teacher-forced"};

static void heads_print(cf_table *table, const char *const *heads, size_t n)
{
    for (size_t i = 0; i < n; i++)
        cf_table_cell(table, "%s", heads[i]);
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* ---- the traces ---- */

static void traces_print(const cf_tune *t, FILE *out)
{
    static const char *const heads[] = {"trace",  "layers x experts", "top",  "chunk",
                                        "prompt", "decoded",          "text", "of"};
    cf_table *table = cf_table_create("lrrrrrrl");
    heads_print(table, heads, sizeof heads / sizeof *heads);
    cf_table_end_row(table);
    cf_table_rule(table);
    for (uint32_t k = 0; k < t->n_traces; k++) {
        const cf_routing *r = t->traces[k];
        cf_table_cell(table, "%s", file_name(t->paths[k]));
        cf_table_cell(table, "%u x %u", r->n_moe, r->header.n_experts);
        cf_table_cell(table, "%u", r->header.top_k);
        cf_table_cell(table, r->header.chunk ? "%u" : "-", r->header.chunk);
        for (int p = 0; p < 3; p++)
            cf_table_cell(table, "%" PRIu64, r->tokens[p]);
        cf_table_cell(table, "%s", r->header.model);
        cf_table_end_row(table);
    }
    cf_table_print(table, out, 0);
    cf_table_destroy(&table);
    bool same = true;
    for (uint32_t k = 1; k < t->n_traces; k++)
        same &= cf_replay_headline(t->traces[k]) == cf_replay_headline(t->traces[0]);
    fprintf(out,
            "\nWhat counts below: %" PRIu64 " %s tokens. Each trace begins with an empty cache.\n",
            t->tokens, same ? phase_names[cf_replay_headline(t->traces[0])] : "decoded or text");
    for (uint32_t k = 0; k < t->n_traces; k++) {
        const cf_trace_header *h = &t->traces[k]->header;
        if (h->guess_slots)
            fprintf(
                out,
                "%s was run with guesses (places for %u beside %u slots): its own hits exceed a "
                "replay's\nby those that were in time (--stats FILE, its statistics, compares).\n",
                file_name(t->paths[k]), h->guess_slots, h->slots);
        if (h->warm)
            fprintf(out, "%s was run with --history: its policy knew more than a replay's does.\n",
                    file_name(t->paths[k]));
    }
}

/* ---- misses by size ---- */

static void count_cell(cf_table *table, const cf_tune *t, const cf_tune_count *c)
{
    if (t->same_shape)
        cf_table_cell(table, "%u", cf_tune_resolve(c, t->traces[0]));
    else
        cf_table_cell(table, c->percent ? "%g %%" : "%g", c->value);
}

static bool any_slabs(const cf_tune *t)
{
    for (uint32_t s = 0; s < t->n_sizes; s++)
        if (t->sizes[s].slabs.value > 0)
            return true;
    return false;
}

static bool any_budget(const cf_tune *t)
{
    return t->sizes[0].vram_bytes != 0;
}

static bool rates_known(const cf_tune *t)
{
    return cf_tune_rate_of(t, 0, cf_tune_sum(t, 0, 0)).known;
}

/* Columns beside the policies: which there are. */
typedef struct columns {
    bool budget, slabs, bytes, rates;
} columns;

static cf_table *sizes_head(const cf_tune *t, const columns *c)
{
    char align[16] = "";
    uint32_t n = 3 + t->n_policies;
    n += (c->budget ? 1u : 0) + (c->slabs ? 1u : 0) + (c->bytes ? 1u : 0) + (c->rates ? 2u : 0);
    for (uint32_t i = 0; i < n; i++)
        strcat(align, "r");
    cf_table *table = cf_table_create(align);
    if (c->budget)
        cf_table_cell(table, "--vram");
    cf_table_cell(table, "slots");
    if (c->slabs)
        cf_table_cell(table, "slabs");
    cf_table_cell(table, "of all");
    for (uint32_t p = 0; p <= t->n_policies; p++)
        cf_table_cell(table, "%s", cf_tune_curve_name(t, p));
    if (c->bytes)
        cf_table_cell(table, "read a token");
    if (c->rates) {
        cf_table_cell(table, "tok/s from");
        cf_table_cell(table, "to");
    }
    cf_table_end_row(table);
    cf_table_rule(table);
    return table;
}

static void size_row(cf_table *table, const cf_tune *t, const columns *c, uint32_t s)
{
    char text[32];
    const cf_tune_size *size = &t->sizes[s];
    const cf_replay_counts *best = cf_tune_sum(t, t->best_policy, s);
    if (c->budget)
        cf_table_cell(table, "%s", cf_bytes_text(size->vram_bytes, text, sizeof text));
    count_cell(table, t, &size->slots);
    if (c->slabs)
        count_cell(table, t, &size->slabs);
    cf_table_cell(table, "%.1f %%", cf_tune_share(t, s));
    for (uint32_t p = 0; p <= t->n_policies; p++) {
        const cf_replay_counts *sum = cf_tune_sum(t, p, s);
        cf_table_cell(table, "%.2f", cf_tune_percent(sum->misses, sum->lookups));
    }
    if (c->bytes)
        cf_table_cell(table, "%s",
                      cf_bytes_text(cf_tune_read_bytes(t, s, best), text, sizeof text));
    if (c->rates) {
        cf_tune_rate rate = cf_tune_rate_of(t, s, best);
        cf_table_cell(table, "%.2f", rate.at_least);
        cf_table_cell(table, "%.2f", rate.at_most);
    }
    cf_table_end_row(table);
}

static void sizes_print(const cf_tune *t, FILE *out)
{
    columns c = {any_budget(t), any_slabs(t), t->record_bytes != 0, rates_known(t)};
    const cf_replay_counts *any = cf_tune_sum(t, 0, 0);
    fprintf(out, "\nMisses by cache size and policy, percent of lookups%s.\n",
            c.slabs ? " (in neither tier: read from the drive)" : "");
    fprintf(out,
            "MIN knows the future: no policy misses less. Its own floor, first uses: %.2f.\n\n",
            cf_tune_percent(t->first_uses, any->lookups));
    cf_table *table = sizes_head(t, &c);
    for (uint32_t s = 0; s < t->n_sizes; s++)
        size_row(table, t, &c, s);
    cf_table_print(table, out, 2);
    cf_table_destroy(&table);
    if (c.bytes)
        fprintf(out, "\n  Reads%s by %s.\n", c.rates ? " and rates" : "",
                t->policies[t->best_policy]);
}

/* ---- the recommended size by trace and by layer ---- */

static void by_trace_print(const cf_tune *t, FILE *out)
{
    char align[16] = "l";
    if (t->n_traces < 2)
        return;
    for (uint32_t p = 0; p <= t->n_policies; p++)
        strcat(align, "r");
    fprintf(out, "\nMisses by trace at the recommended size, percent:\n\n");
    cf_table *table = cf_table_create(align);
    cf_table_cell(table, "trace");
    for (uint32_t p = 0; p <= t->n_policies; p++)
        cf_table_cell(table, "%s", cf_tune_curve_name(t, p));
    cf_table_end_row(table);
    cf_table_rule(table);
    for (uint32_t k = 0; k < t->n_traces; k++) {
        cf_table_cell(table, "%s", file_name(t->paths[k]));
        for (uint32_t p = 0; p <= t->n_policies; p++) {
            const cf_replay *r = cf_tune_replay(t, p, k, t->best_size);
            const cf_replay_counts *c = &r->phase[cf_replay_headline(t->traces[k])];
            cf_table_cell(table, "%.2f", cf_tune_percent(c->misses, c->lookups));
        }
        cf_table_end_row(table);
    }
    cf_table_print(table, out, 2);
    cf_table_destroy(&table);
}

static void layer_row(cf_table *table, const cf_tune *t, uint32_t moe, bool slabs)
{
    cf_replay_counts sum = {0};
    uint64_t floor = 0;
    for (uint32_t k = 0; k < t->n_traces; k++) {
        size_t at = (size_t)cf_replay_headline(t->traces[k]) * t->traces[k]->n_moe + moe;
        const cf_replay_counts *c = &cf_tune_replay(t, t->best_policy, k, t->best_size)->layers[at];
        sum.lookups += c->lookups;
        sum.vram_hits += c->vram_hits;
        sum.ram_hits += c->ram_hits;
        sum.misses += c->misses;
        floor += cf_tune_replay(t, t->n_policies, k, t->best_size)->layers[at].misses;
    }
    cf_table_cell(table, "%u", t->traces[0]->layers[moe]);
    cf_table_cell(table, "%" PRIu64, sum.lookups);
    cf_table_cell(table, "%.2f", cf_tune_percent(sum.vram_hits, sum.lookups));
    if (slabs)
        cf_table_cell(table, "%.2f", cf_tune_percent(sum.ram_hits, sum.lookups));
    cf_table_cell(table, "%.2f", cf_tune_percent(sum.misses, sum.lookups));
    cf_table_cell(table, "%.2f", cf_tune_percent(floor, sum.lookups));
    cf_table_end_row(table);
}

static void layers_print(const cf_tune *t, FILE *out)
{
    bool slabs = any_slabs(t);
    if (!t->same_shape)
        return;
    fprintf(out, "\nBy layer at the recommended size, policy %s, percent of lookups:\n\n",
            t->policies[t->best_policy]);
    cf_table *table = cf_table_create(slabs ? "rrrrrr" : "rrrrr");
    cf_table_cell(table, "layer");
    cf_table_cell(table, "lookups");
    cf_table_cell(table, "VRAM hits");
    if (slabs)
        cf_table_cell(table, "RAM hits");
    cf_table_cell(table, "misses");
    cf_table_cell(table, "MIN's");
    cf_table_end_row(table);
    cf_table_rule(table);
    for (uint32_t m = 0; m < t->traces[0]->n_moe; m++)
        layer_row(table, t, m, slabs);
    cf_table_print(table, out, 2);
    cf_table_destroy(&table);
}

/* ---- advice ---- */

static void rates_explain(const cf_tune *t, FILE *out)
{
    if (!rates_known(t)) {
        fprintf(out, "\nNo tokens per second are predicted: that takes the bytes of a record "
                     "(--model or --record) and the\ndrive's bandwidth (--drive, or --model on a "
                     "drive that takes direct reads).\n");
        return;
    }
    fprintf(out, "\nPredicted rates: the drive gives %.2f GB/s (%s)", t->drive_rate / 1e9,
            t->drive_measured ? "measured now, on random records" : "--drive");
    if (t->copies && t->bus_rate > 0)
        fprintf(out, ", the bus %.2f GB/s", t->bus_rate / 1e9);
    if (t->compute_s > 0)
        fprintf(out, ", computing takes %.2f ms a token", t->compute_s * 1e3);
    fprintf(out, ".\nFrom: nothing overlaps; to: everything does.");
    if (t->copies && t->bus_rate <= 0)
        fprintf(out, " Copies to the device are not counted: --bus GB/s.");
    if (t->compute_s <= 0)
        fprintf(out, " Computing is not counted: --compute MS.");
    fputc('\n', out);
}

static void more_print(const cf_tune *t, const cf_tune_more *m, const char *tier, FILE *out)
{
    const cf_replay_counts *now = cf_tune_sum(t, t->best_policy, t->best_size);
    if (!m->records)
        return;
    if (m->counts.misses >= now->misses) {
        fprintf(out, "  One more GiB of %s spares no miss.\n", tier);
        return;
    }
    fprintf(out, "  One more GiB of %s (%u records): %.2f -> %.2f %% misses", tier, m->records,
            cf_tune_percent(now->misses, now->lookups),
            cf_tune_percent(m->counts.misses, m->counts.lookups));
    cf_tune_rate before = cf_tune_rate_of(t, t->best_size, now);
    cf_tune_rate after = cf_tune_rate_of(t, t->best_size, &m->counts);
    if (before.known)
        fprintf(out, ", %.2f -> %.2f tokens per second (nothing overlapping)", before.at_least,
                after.at_least);
    fputs(".\n", out);
}

static void advice_print(const cf_tune *t, FILE *out)
{
    const cf_tune_size *size = &t->sizes[t->best_size];
    const cf_replay_counts *c = cf_tune_sum(t, t->best_policy, t->best_size);
    fprintf(out, "\nRecommended:");
    if (size->vram_bytes)
        fprintf(out, " --vram %" PRIu64, size->vram_bytes);
    if (size->ram_bytes)
        fprintf(out, " --ram %" PRIu64, size->ram_bytes);
    fprintf(out, " --policy %s (", t->policies[t->best_policy]);
    if (t->same_shape)
        fprintf(out, "%u slots, %u slabs, ", cf_tune_resolve(&size->slots, t->traces[0]),
                cf_tune_resolve(&size->slabs, t->traces[0]));
    else
        fprintf(out, size->slots.percent ? "slots for %g %% of the records, " : "%g slots, ",
                size->slots.value);
    fprintf(out, "%.2f %% hits): the policy that\nreads least over these sizes, and the ",
            cf_tune_percent(c->lookups - c->misses, c->lookups));
    if (t->ladder)
        fprintf(out, "knee of its curve; say with --slots or --vram-from what you can spare.\n");
    else
        fprintf(out, "smallest size that comes within %s of the best.\n",
                rates_known(t) ? "5 % of the rate" : "one point of the hits");
    if (cf_tune_share(t, t->best_size) >= 100) {
        fprintf(out, "  Every record has its place: more memory buys nothing.\n");
        return;
    }
    if (size->dense_bytes) {
        char text[32];
        fprintf(out,
                "  Of its reads %s a token are dense weights that do not fit: more --vram goes to "
                "them first.\n  All stay with --vram %" PRIu64 ".\n",
                cf_bytes_text(size->dense_bytes, text, sizeof text), t->vram_all_dense);
    }
    more_print(t, &t->more_vram, "VRAM", out);
    more_print(t, &t->more_ram, "RAM", out);
}

void cf_tune_print(const cf_tune *t, FILE *out)
{
    traces_print(t, out);
    sizes_print(t, out);
    by_trace_print(t, out);
    layers_print(t, out);
    rates_explain(t, out);
    cf_tune_own_print(t, out);
    advice_print(t, out);
}
