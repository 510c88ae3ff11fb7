/* What the parts of `catflap tune` share: traces, sizes and policies in, counts and advice out. */
#ifndef CF_TOOLS_TUNE_H
#define CF_TOOLS_TUNE_H

#include <jansson.h>

#include "runtime/model.h"
#include "runtime/replay.h"
#include "tools/options.h"

enum { CF_TUNE_MAX_SIZES = 64, CF_TUNE_MAX_POLICIES = 8, CF_TUNE_MAX_TRACES = 256 };

/* A number of records, or percent of all. */
typedef struct cf_tune_count {
    double value;
    bool percent;
} cf_tune_count;

typedef struct cf_tune_size {
    cf_tune_count slots, slabs;
    uint64_t vram_bytes, ram_bytes; /* budgets that give this size; 0: not known */
    /* Of dense weights that such budgets do not hold, for each token: read; copied over a bus. */
    uint64_t dense_bytes, dense_copied_bytes;
} cf_tune_size;

/* "One more GiB" of a tier at the recommended size. */
typedef struct cf_tune_more {
    uint32_t records; /* 0: not computed */
    cf_replay_counts counts;
} cf_tune_more;

/* A run's own counts beside those of the replay of its trace. */
typedef struct cf_tune_own {
    bool given;
    cf_replay_counts run, replay;
    uint64_t guesses; /* that were in time: hits of the run's alone */
} cf_tune_own;

typedef struct cf_tune {
    uint32_t n_traces, n_policies, n_sizes;
    const char *paths[CF_TUNE_MAX_TRACES];
    cf_routing *traces[CF_TUNE_MAX_TRACES];
    char policies[CF_TUNE_MAX_POLICIES][32];
    cf_tune_size sizes[CF_TUNE_MAX_SIZES];
    bool ladder; /* sizes were not asked for: all of the curve, to find its knee */
    int threads;

    bool same_shape;       /* all traces have as many layers and experts */
    uint64_t record_bytes; /* read per miss; 0: not known */
    uint64_t slot_bytes;   /* kept per record; 0: not known */
    bool copies;           /* records cross a bus to the device */
    uint64_t vram_all_dense; /* --vram that holds all dense weights; 0: not known */
    /* Bytes per second and seconds per token; 0: not known. */
    double drive_rate, bus_rate, compute_s;
    bool drive_measured;

    /* Results: of the phase that counts, see cf_replay_headline. Curve n_policies is MIN. */
    cf_replay *replays;     /* [n_policies + 1, n_traces, n_sizes] */
    cf_replay_counts *sums; /* [n_policies + 1, n_sizes] over the traces */
    uint64_t tokens, first_uses;
    uint32_t best_policy, best_size;
    cf_tune_more more_vram, more_ram;
    cf_tune_own own;
} cf_tune;

/* How long a token takes by each resource, and the rates that follow. */
typedef struct cf_tune_rate {
    bool known;
    double drive_s, bus_s, compute_s;
    double at_most;  /* tokens per second when all of it overlaps */
    double at_least; /* and when nothing does */
} cf_tune_rate;

static inline cf_replay *cf_tune_replay(const cf_tune *t, uint32_t curve, uint32_t trace,
                                        uint32_t size)
{
    return &t->replays[((size_t)curve * t->n_traces + trace) * t->n_sizes + size];
}

static inline const cf_replay_counts *cf_tune_sum(const cf_tune *t, uint32_t curve, uint32_t size)
{
    return &t->sums[(size_t)curve * t->n_sizes + size];
}

static inline const char *cf_tune_curve_name(const cf_tune *t, uint32_t curve)
{
    return curve == t->n_policies ? "MIN" : t->policies[curve];
}

/* ---- tune_run.c ---- */

uint32_t cf_tune_records(const cf_routing *trace); /* of all layers */
uint32_t cf_tune_resolve(const cf_tune_count *count, const cf_routing *trace);
/* Replays everything, in parallel, and chooses. Results are freed by cf_tune_finish. */
int cf_tune_run(cf_tune *t, cf_err *err);
void cf_tune_finish(cf_tune *t); /* traces too */
/* At the dense weights that this size reads. */
cf_tune_rate cf_tune_rate_of(const cf_tune *t, uint32_t size, const cf_replay_counts *counts);
uint64_t cf_tune_read_bytes(const cf_tune *t, uint32_t size, const cf_replay_counts *counts);

/* ---- tune_drive.c ---- */

/* Reads random expert records of the model past the page cache for half a second. *rate stays 0
 * where that cannot be had, and `why` says why. */
int cf_tune_drive_measure(const cf_model *model, double *rate, char *why, size_t why_size,
                          cf_err *err);

/* ---- tune_own.c ---- */

/* path: of the run's --stats. Refuses statistics of another run, and traces that do not say their
 * slots. */
int cf_tune_own_make(cf_tune_own *own, const cf_routing *trace, const char *trace_path,
                     const char *path, cf_err *err);
void cf_tune_own_print(const cf_tune *t, FILE *out);
json_t *cf_tune_own_json(const cf_tune *t); /* null when there is none */

/* ---- tune_report.c, tune_json.c, tune_svg.c ---- */

void cf_tune_print(const cf_tune *t, FILE *out);
json_t *cf_tune_json(const cf_tune *t);
json_t *cf_tune_counts_json(const cf_replay_counts *c);
/* Share of all records that a size holds, in percent (of the first trace). */
double cf_tune_share(const cf_tune *t, uint32_t size);
int cf_tune_svg(const cf_tune *t, const char *path, cf_err *err);

static inline double cf_tune_percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

#endif
