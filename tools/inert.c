/* Flags that change nothing: see inert.h. */
#include "tools/inert.h"

#include <inttypes.h>
#include <string.h>

#include "runtime/base/log.h"
#include "runtime/engine.h"
#include "runtime/predict.h"
#include "tools/sampling.h"
#include "tools/table.h"

/* Left over of a budget: no more than rounding, the places of a slot or a slab included. */
static bool is_rest(uint64_t left, uint64_t budget, uint64_t place)
{
    return left <= budget / 16 || left <= 2 * place;
}

/* A record in every slot that it could have: nothing is ever evicted from VRAM. */
static bool all_kept(const cf_memory_plan *p)
{
    return p->shape.n_slots >= p->total_records;
}

/* Some MoE layer has steps between the choice of its experts and their use. */
static bool has_window(const cf_model *m)
{
    for (uint32_t i = 0; i + 1 < m->n_steps; i++)
        if (m->steps[i].kind == CF_STEP_ROUTE && m->steps[i + 1].kind != CF_STEP_EXPERTS)
            return true;
    return false;
}

/* What unified memory without --memory discrete would be. */
static bool could_be_in_place(const cf_memory_plan *p, const cf_gpu_info *d)
{
    return d->unified && d->imports && p->align >= 512 && d->import_align <= 4096;
}

/* ---- budgets ---- */

static void vram_say(const cf_engine *e)
{
    const cf_memory_plan *p = &e->plan;
    uint64_t used = cf_ledger_used(e->ledger, CF_POOL_DEVICE);
    if (is_rest(p->vram_budget - used, p->vram_budget, p->shape.slot_bytes))
        return;
    cf_notice("of --vram %" PRIu64 ", %" PRIu64 " are used: %s", p->vram_budget, used,
              all_kept(p) ? "every expert has a slot and all dense weights stay"
                          : "--ram leaves no room for the tables of more slots");
}

static void ram_say(const cf_engine *e)
{
    const cf_memory_plan *p = &e->plan;
    const cf_slots_shape *s = &p->shape;
    uint64_t used = cf_ledger_used(e->ledger, CF_POOL_HOST);
    if (is_rest(p->ram_budget - used, p->ram_budget, s->slab_bytes))
        return;
    const char *why = "every expert has a place";
    if (all_kept(p))
        why = "every expert has a slot in --vram";
    else if (s->in_place)
        why = "the device computes in the host's memory, where --vram is the whole cache";
    else if (s->staged)
        why = "the device cannot read host pages, so there is no tier of experts in RAM";
    cf_notice("of --ram %" PRIu64 ", %" PRIu64 " are used: %s", p->ram_budget, used, why);
}

/* ---- the cache ---- */

static void policy_say(const cf_common *c, const cf_engine *e)
{
    if (!all_kept(&e->plan))
        return;
    if (cf_common_given(c, CF_OPT_POLICY))
        cf_notice("--policy %s has no effect: every expert has a slot, none is evicted",
                  e->policy_name);
    if (cf_common_given(c, CF_OPT_HISTORY))
        cf_notice("--history has no effect on this run, only on the file: every expert has a slot, "
                  "none is evicted");
}

static void prefetch_say(const cf_common *c, const cf_engine *e)
{
    const cf_memory_plan *p = &e->plan;
    const cf_model *m = e->model;
    bool foreseen = cf_predict_any(m);
    if (!cf_common_given(c, CF_OPT_PREFETCH) || has_window(m))
        return;
    if (!foreseen || all_kept(p))
        cf_notice("--prefetch %s has no effect: experts are computed right after their choice, "
                  "and %s",
                  e->prefetch ? "on" : "off",
                  foreseen ? "every one has a slot" : "no choice is foreseen");
    else if (e->prefetch && !p->shape.n_guess)
        cf_notice("--prefetch on has no effect: experts are computed right after their choice, "
                  "and --vram has no place for guesses");
}

static void streaming_say(const cf_engine *e)
{
    const cf_memory_plan *p = &e->plan;
    if (!p->total_records)
        cf_notice("this model has no experts: none are streamed");
    else if (all_kept(p))
        cf_notice("every expert has a slot (%" PRIu64 " of them): each is read when it is first "
                  "needed, and none is streamed after that",
                  p->total_records);
}

/* ---- the rest ---- */

static void device_say(const cf_common *c, const cf_engine *e)
{
    const cf_gpu_info *d = cf_gpu_get_info(e->gpu);
    if (cf_common_given(c, CF_OPT_MEMORY) && strcmp(c->engine.memory, "discrete") == 0 &&
        !could_be_in_place(&e->plan, d))
        cf_notice("--memory discrete has no effect: records are copied into slots on %s:%d (%s) "
                  "anyway",
                  d->backend, d->index, d->name);
    if (cf_common_given(c, CF_OPT_KV) && !e->model->kv.slots && !e->model->kv.index_slots)
        cf_notice("--kv %s has no effect: this model keeps a state, and no keys and values",
                  c->engine.kv);
    if (cf_common_given(c, CF_OPT_CHUNK) && c->engine.chunk > e->plan.chunk)
        cf_notice("--chunk %u is cut to the context of %u", c->engine.chunk, e->plan.chunk);
}

void cf_inert_say(const cf_common *common, const cf_engine *engine)
{
    streaming_say(engine);
    if (cf_common_given(common, CF_OPT_VRAM))
        vram_say(engine);
    if (cf_common_given(common, CF_OPT_RAM))
        ram_say(engine);
    policy_say(common, engine);
    prefetch_say(common, engine);
    device_say(common, engine);
}

void cf_inert_sampling_say(const cf_common *common, const cf_sampler_params *sampling,
                           uint32_t vocab)
{
    static const struct {
        int opt;
        const char *flag;
    } flags[] = {{CF_OPT_TOP_K, "--top-k"},
                 {CF_OPT_TOP_P, "--top-p"},
                 {CF_OPT_MIN_P, "--min-p"},
                 {CF_OPT_SEED, "--seed"}};
    bool greedy = !(sampling->temperature > 0);
    for (size_t i = 0; i < sizeof flags / sizeof flags[0] && greedy; i++)
        if (cf_common_given(common, flags[i].opt))
            cf_notice("%s has no effect at --temp 0, which always takes the most likely token",
                      flags[i].flag);
    if (!greedy && cf_common_given(common, CF_OPT_TOP_K) && sampling->top_k >= 0 &&
        (uint32_t)sampling->top_k >= vocab)
        cf_notice("--top-k %d has no effect: the vocabulary has %u tokens", sampling->top_k, vocab);
}

void cf_inert_others_say(const cf_common *common, const char *command, const int *used)
{
    static const struct option all[] = {CF_COMMON_OPTIONS, {0}};
    for (const struct option *o = all; o->name; o++) {
        const int *u = used;
        while (*u && *u != o->val)
            u++;
        if (!*u && cf_common_given(common, o->val))
            cf_notice("--%s has no effect on %s", o->name, command);
    }
}
