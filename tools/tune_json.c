/* tune: the answer for programs. See tune.h. */
#include "tools/tune.h"

json_t *cf_tune_counts_json(const cf_replay_counts *c)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "lookups", (json_int_t)c->lookups,
                     "vram_hits", (json_int_t)c->vram_hits, "ram_hits", (json_int_t)c->ram_hits,
                     "misses", (json_int_t)c->misses, "evictions", (json_int_t)c->evictions,
                     "hit_rate",
                     c->lookups ? (double)(c->lookups - c->misses) / (double)c->lookups : 0.0,
                     "miss_ratio", c->lookups ? (double)c->misses / (double)c->lookups : 0.0);
}

static json_t *traces_json(const cf_tune *t)
{
    json_t *list = json_array();
    for (uint32_t k = 0; k < t->n_traces; k++) {
        const cf_routing *r = t->traces[k];
        uint32_t phase = cf_replay_headline(r);
        json_t *tokens = json_pack("{s:I, s:I, s:I}", "P", (json_int_t)r->tokens[0], "D",
                                   (json_int_t)r->tokens[1], "T", (json_int_t)r->tokens[2]);
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:o, s:s#}", "file", t->paths[k],
                            "model", r->header.model, "moe_layers", (int)r->n_moe, "experts",
                            (int)r->header.n_experts, "zero_experts", (int)r->header.zero_experts,
                            "top_k", (int)r->header.top_k, "chunk", (int)r->header.chunk, "tokens",
                            tokens, "counted_phase", &CF_TRACE_PHASES[phase], 1));
    }
    return list;
}

static json_t *rate_json(const cf_tune *t, uint32_t size, const cf_replay_counts *c)
{
    cf_tune_rate r = cf_tune_rate_of(t, size, c);
    if (!r.known)
        return json_null();
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "drive_seconds", r.drive_s, "bus_seconds",
                     r.bus_s, "compute_seconds", r.compute_s, "from", r.at_least, "to", r.at_most);
}

/* Of one size: what all traces say together, and each. */
static json_t *point_json(const cf_tune *t, uint32_t curve, uint32_t size)
{
    const cf_replay_counts *sum = cf_tune_sum(t, curve, size);
    json_t *o = cf_tune_counts_json(sum), *by_trace = json_array();
    for (uint32_t k = 0; k < t->n_traces; k++) {
        const cf_replay *r = cf_tune_replay(t, curve, k, size);
        json_t *each = cf_tune_counts_json(&r->phase[cf_replay_headline(t->traces[k])]);
        json_object_set_new(each, "slots", json_integer(r->slots));
        json_object_set_new(each, "slabs", json_integer(r->slabs));
        json_array_append_new(by_trace, each);
    }
    if (t->record_bytes && t->tokens)
        json_object_set_new(o, "read_bytes_per_token",
                            json_integer((json_int_t)cf_tune_read_bytes(t, size, sum)));
    json_object_set_new(o, "tok_per_s", rate_json(t, size, sum));
    json_object_set_new(o, "traces", by_trace);
    return o;
}

static json_t *curves_json(const cf_tune *t)
{
    json_t *list = json_array();
    for (uint32_t c = 0; c <= t->n_policies; c++) {
        json_t *points = json_array();
        for (uint32_t s = 0; s < t->n_sizes; s++)
            json_array_append_new(points, point_json(t, c, s));
        json_array_append_new(
            list, json_pack("{s:s, s:o}", "policy", cf_tune_curve_name(t, c), "points", points));
    }
    return list;
}

static json_t *sizes_json(const cf_tune *t)
{
    json_t *list = json_array();
    for (uint32_t s = 0; s < t->n_sizes; s++) {
        const cf_tune_size *size = &t->sizes[s];
        json_t *o = json_pack("{s:f}", "share", cf_tune_share(t, s) / 100);
        if (t->same_shape) {
            json_object_set_new(o, "slots",
                                json_integer(cf_tune_resolve(&size->slots, t->traces[0])));
            json_object_set_new(o, "slabs",
                                json_integer(cf_tune_resolve(&size->slabs, t->traces[0])));
        }
        if (size->vram_bytes) {
            json_object_set_new(o, "vram", json_integer((json_int_t)size->vram_bytes));
            json_object_set_new(o, "ram", json_integer((json_int_t)size->ram_bytes));
            json_object_set_new(o, "dense_bytes_per_token",
                                json_integer((json_int_t)size->dense_bytes));
        }
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *layers_json(const cf_tune *t)
{
    json_t *list = json_array();
    for (uint32_t k = 0; k < t->n_traces; k++) {
        const cf_routing *r = t->traces[k];
        size_t first = (size_t)cf_replay_headline(r) * r->n_moe;
        json_t *layers = json_array();
        for (uint32_t m = 0; m < r->n_moe; m++) {
            json_t *o = cf_tune_counts_json(
                &cf_tune_replay(t, t->best_policy, k, t->best_size)->layers[first + m]);
            json_object_set_new(o, "layer", json_integer(r->layers[m]));
            json_array_append_new(layers, o);
        }
        json_array_append_new(list, layers);
    }
    return list;
}

static json_t *more_json(const cf_tune *t, const cf_tune_more *m)
{
    if (!m->records)
        return json_null();
    json_t *o = cf_tune_counts_json(&m->counts);
    json_object_set_new(o, "records", json_integer(m->records));
    json_object_set_new(o, "tok_per_s", rate_json(t, t->best_size, &m->counts));
    return o;
}

static json_t *advice_json(const cf_tune *t)
{
    const cf_tune_size *size = &t->sizes[t->best_size];
    json_t *o = json_pack("{s:s, s:i, s:o, s:o, s:o}", "policy", t->policies[t->best_policy],
                          "size", (int)t->best_size, "layers", layers_json(t), "next_gib_vram",
                          more_json(t, &t->more_vram), "next_gib_ram", more_json(t, &t->more_ram));
    if (size->vram_bytes) {
        json_object_set_new(o, "vram", json_integer((json_int_t)size->vram_bytes));
        json_object_set_new(o, "ram", json_integer((json_int_t)size->ram_bytes));
    }
    return o;
}

static json_t *known(double v)
{
    return v > 0 ? json_real(v) : json_null();
}

json_t *cf_tune_json(const cf_tune *t)
{
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:b}", "own_run",
        cf_tune_own_json(t), "traces", traces_json(t),
        "sizes", sizes_json(t), "curves", curves_json(t), "recommended", advice_json(t),
        "counted_tokens", (json_int_t)t->tokens, "first_uses", (json_int_t)t->first_uses,
        "record_bytes", known((double)t->record_bytes), "slot_bytes", known((double)t->slot_bytes),
        "drive_bytes_per_s", known(t->drive_rate), "bus_bytes_per_s", known(t->bus_rate),
        "compute_seconds", known(t->compute_s), "drive_measured", t->drive_measured);
}
