/* tune: the replays, in parallel, and the choice among them. See tune.h. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/threads.h"
#include "runtime/policy.h"
#include "tools/tune.h"

enum { GIB = 1 << 30 };

uint32_t cf_tune_records(const cf_routing *trace)
{
    return trace->n_moe * trace->header.n_experts;
}

uint32_t cf_tune_resolve(const cf_tune_count *count, const cf_routing *trace)
{
    double n = count->percent ? count->value / 100 * cf_tune_records(trace) : count->value;
    return n >= UINT32_MAX - 1 ? UINT32_MAX - 1 : (uint32_t)(n + 0.5);
}

/* ---- jobs: one curve of one trace over a part of the sizes ---- */

typedef struct job {
    uint32_t curve, trace, first, n;
    int rc;
    cf_err err;
} job;

typedef struct crew {
    const cf_tune *t;
    job *jobs;
    uint32_t n;
    atomic_uint next;
} crew;

static void job_run(const cf_tune *t, job *j)
{
    cf_replay *list = cf_tune_replay(t, j->curve, j->trace, j->first);
    const cf_routing *trace = t->traces[j->trace];
    if (j->curve == t->n_policies)
        j->rc = cf_replay_min(trace, list, j->n, &j->err);
    else
        j->rc = cf_replay_run(trace, t->policies[j->curve], list, j->n, &j->err);
}

/* Each worker takes the next job that nobody has: they differ in length. */
static void crew_work(void *arg, uint64_t begin, uint64_t end)
{
    crew *c = arg;
    (void)begin;
    (void)end;
    for (uint32_t i; (i = atomic_fetch_add(&c->next, 1)) < c->n;)
        job_run(c->t, &c->jobs[i]);
}

static int crew_run(const cf_tune *t, job *jobs, uint32_t n, cf_err *err)
{
    cf_threads *threads = NULL;
    crew c = {.t = t, .jobs = jobs, .n = n};
    int rc = cf_threads_create(&threads, t->threads, err);
    if (rc < 0)
        return rc;
    cf_threads_run(threads, (uint64_t)cf_threads_count(threads), 1, crew_work, &c);
    cf_threads_destroy(&threads);
    for (uint32_t i = 0; i < n; i++)
        if (jobs[i].rc < 0)
            return CF_FAIL(err, jobs[i].rc, "%s: %s", t->paths[jobs[i].trace], jobs[i].err.msg);
    return 0;
}

/* Sizes go together as far as that leaves every worker something to do: a policy learns once for
 * all sizes of a job. */
static int replays_run(cf_tune *t, cf_err *err)
{
    enum { MOST_PARTS = 4 };
    uint32_t curves = t->n_policies + 1, n = 0;
    uint32_t parts = curves * t->n_traces >= 16 ? 1 : MOST_PARTS;
    uint32_t each = (t->n_sizes + parts - 1) / parts;
    job *jobs = calloc((size_t)curves * t->n_traces * MOST_PARTS, sizeof *jobs);
    if (!jobs)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u replays", curves * t->n_traces);
    for (uint32_t k = 0; k < t->n_traces; k++)
        for (uint32_t c = curves; c-- > 0;)
            for (uint32_t s = 0; s < t->n_sizes; s += each)
                jobs[n++] = (job){.curve = c,
                                  .trace = k,
                                  .first = s,
                                  .n = t->n_sizes - s < each ? t->n_sizes - s : each};
    int rc = crew_run(t, jobs, n, err);
    free(jobs);
    return rc;
}

/* ---- sums ---- */

static void counts_add(cf_replay_counts *to, const cf_replay_counts *c)
{
    to->lookups += c->lookups;
    to->vram_hits += c->vram_hits;
    to->ram_hits += c->ram_hits;
    to->misses += c->misses;
    to->evictions += c->evictions;
}

static int sums_fill(cf_tune *t, cf_err *err)
{
    for (uint32_t k = 0; k < t->n_traces; k++) {
        cf_phase phase = cf_replay_headline(t->traces[k]);
        uint64_t uses[3];
        int rc = cf_replay_first_uses(t->traces[k], uses, err);
        if (rc < 0)
            return rc;
        t->first_uses += uses[phase];
        t->tokens += t->traces[k]->tokens[phase];
        for (uint32_t c = 0; c <= t->n_policies; c++)
            for (uint32_t s = 0; s < t->n_sizes; s++)
                counts_add(&t->sums[(size_t)c * t->n_sizes + s],
                           &cf_tune_replay(t, c, k, s)->phase[phase]);
    }
    return 0;
}

uint64_t cf_tune_read_bytes(const cf_tune *t, uint32_t size, const cf_replay_counts *c)
{
    return t->tokens ? c->misses * t->record_bytes / t->tokens + t->sizes[size].dense_bytes : 0;
}

cf_tune_rate cf_tune_rate_of(const cf_tune *t, uint32_t size, const cf_replay_counts *c)
{
    const cf_tune_size *s = &t->sizes[size];
    cf_tune_rate r = {.known = t->drive_rate > 0 && t->record_bytes && t->tokens};
    if (!r.known)
        return r;
    double bytes = (double)t->record_bytes / (double)t->tokens;
    r.drive_s = ((double)c->misses * bytes + (double)s->dense_bytes) / t->drive_rate;
    if (t->copies && t->bus_rate > 0)
        r.bus_s = ((double)(c->misses + c->ram_hits) * bytes + (double)s->dense_copied_bytes) /
                  t->bus_rate;
    r.compute_s = t->compute_s;
    r.at_most = 1 / fmax(fmax(r.drive_s, r.bus_s), fmax(r.compute_s, 1e-9));
    r.at_least = 1 / fmax(r.drive_s + r.bus_s + r.compute_s, 1e-9);
    return r;
}

/* ---- advice ---- */

/* What is wanted more of: tokens per second where they are known, else hits. */
static double size_value(const cf_tune *t, uint32_t policy, uint32_t size)
{
    const cf_replay_counts *c = cf_tune_sum(t, policy, size);
    cf_tune_rate r = cf_tune_rate_of(t, size, c);
    return r.known ? r.at_least : cf_tune_percent(c->lookups - c->misses, c->lookups);
}

/* The policy that reads least over all sizes; of equal ones the default, which needs no flag. */
static uint32_t policy_choose(const cf_tune *t)
{
    uint64_t least = UINT64_MAX;
    uint32_t best = 0;
    for (uint32_t p = 0; p < t->n_policies; p++) {
        uint64_t misses = 0;
        for (uint32_t s = 0; s < t->n_sizes; s++)
            misses += cf_tune_sum(t, p, s)->misses;
        bool first = misses == least && !strcmp(t->policies[p], cf_policy_default);
        if (misses < least || first) {
            least = misses;
            best = p;
        }
    }
    return best;
}

/* Where the curve lies farthest below the line from its first to its last point. */
static uint32_t knee_find(const cf_tune *t, uint32_t policy)
{
    uint32_t last = t->n_sizes - 1, best = 0;
    double x0 = cf_tune_share(t, 0), x1 = cf_tune_share(t, last), most = 0;
    double y0 = (double)cf_tune_sum(t, policy, 0)->misses;
    double y1 = (double)cf_tune_sum(t, policy, last)->misses;
    for (uint32_t s = 1; s < last; s++) {
        double line = y0 + (y1 - y0) * (cf_tune_share(t, s) - x0) / (x1 - x0);
        double below = line - (double)cf_tune_sum(t, policy, s)->misses;
        if (below > most) {
            most = below;
            best = s;
        }
    }
    return best;
}

/* Of sizes that were asked for, the smallest that comes within 5 % of the best rate of all (without
 * rates: within a point of its hits). */
static uint32_t size_choose(const cf_tune *t, uint32_t policy)
{
    bool rates = cf_tune_rate_of(t, 0, cf_tune_sum(t, policy, 0)).known;
    double best = 0;
    uint32_t size = 0;
    for (uint32_t s = 0; s < t->n_sizes; s++)
        best = fmax(best, size_value(t, policy, s));
    while (size_value(t, policy, size) < (rates ? 0.95 * best : best - 1))
        size++;
    return size;
}

static int more_run(cf_tune *t, cf_tune_more *vram, cf_tune_more *ram, cf_err *err)
{
    const cf_tune_size *size = &t->sizes[t->best_size];
    uint32_t more = (uint32_t)(GIB / t->slot_bytes);
    if (size->dense_bytes) /* it would go to dense weights first */
        return 0;
    *vram = *ram = (cf_tune_more){.records = more};
    for (uint32_t k = 0; more && k < t->n_traces; k++) {
        const cf_routing *trace = t->traces[k];
        uint32_t slots = cf_tune_resolve(&size->slots, trace);
        uint32_t slabs = cf_tune_resolve(&size->slabs, trace);
        cf_replay list[2] = {{.slots = slots + more, .slabs = slabs},
                             {.slots = slots, .slabs = slabs + more}};
        int rc = cf_replay_run(trace, t->policies[t->best_policy], list, t->copies ? 2 : 1, err);
        if (rc < 0)
            return rc;
        cf_phase phase = cf_replay_headline(trace);
        counts_add(&vram->counts, &list[0].phase[phase]);
        counts_add(&ram->counts, &list[1].phase[phase]);
        cf_replay_finish(list, t->copies ? 2 : 1);
    }
    if (!t->copies)
        ram->records = 0;
    return 0;
}

int cf_tune_run(cf_tune *t, cf_err *err)
{
    size_t curves = (size_t)t->n_policies + 1;
    t->replays = calloc(curves * t->n_traces * t->n_sizes, sizeof *t->replays);
    t->sums = calloc(curves * t->n_sizes, sizeof *t->sums);
    if (!t->replays || !t->sums)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u sizes", t->n_sizes);
    for (uint32_t c = 0; c < curves; c++)
        for (uint32_t k = 0; k < t->n_traces; k++)
            for (uint32_t s = 0; s < t->n_sizes; s++) {
                cf_replay *r = cf_tune_replay(t, c, k, s);
                r->slots = cf_tune_resolve(&t->sizes[s].slots, t->traces[k]);
                r->slabs = cf_tune_resolve(&t->sizes[s].slabs, t->traces[k]);
            }
    int rc = replays_run(t, err);
    if (rc == 0)
        rc = sums_fill(t, err);
    if (rc < 0)
        return rc;
    t->best_policy = policy_choose(t);
    t->best_size = t->ladder ? knee_find(t, t->best_policy) : size_choose(t, t->best_policy);
    return t->slot_bytes && t->slot_bytes <= GIB ? more_run(t, &t->more_vram, &t->more_ram, err)
                                                 : 0;
}

void cf_tune_finish(cf_tune *t)
{
    if (t->replays)
        cf_replay_finish(t->replays, (t->n_policies + 1) * t->n_traces * t->n_sizes);
    free(t->replays);
    free(t->sums);
    for (uint32_t k = 0; k < t->n_traces; k++)
        cf_routing_free(&t->traces[k]);
}
