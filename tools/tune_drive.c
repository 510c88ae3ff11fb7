/* tune: how fast this drive delivers this model's expert records. See tune.h.
 *
 * Random records, as a run reads them: through the fetcher, past the page cache, 16 at a time, or
 * fewer large ones (256 MiB together, but one at least). What the drive holds in its own cache is
 * no lie: a run finds it there as well. */
#include <stdlib.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/pages.h"
#include "runtime/base/rng.h"
#include "storage/fetch.h"
#include "tools/gather.h"
#include "tools/tune.h"

enum { REQUESTS = 16, MOST_BYTES = 1 << 30, MOST_PAGES = 256 << 20 };
#define TIME_NS 500000000ull

typedef struct gauge {
    const cf_model *model;
    cf_files files;
    cf_fetch *fetch;
    cf_pages pages;
    uint64_t slab_bytes;
    uint32_t n_reqs; /* together */
    cf_layout layouts[REQUESTS];
    cf_fetch_req reqs[REQUESTS];
    cf_rng rng;
    cf_gather jobs;
} gauge;

static void request_done(cf_fetch_req *req, void *user)
{
    cf_gather_done(&((gauge *)user)->jobs, req->status, &req->err);
}

static void record_any(gauge *g, cf_layout *out)
{
    const cf_moe_def *moe = &g->model->moe[cf_rng_below(&g->rng, g->model->n_moe)];
    cf_moe_layout(moe, (uint32_t)cf_rng_below(&g->rng, moe->experts), g->files.align, out);
}

static uint64_t slab_most(const cf_model *model, uint32_t align)
{
    uint64_t most = 0;
    for (uint32_t m = 0; m < model->n_moe; m++)
        for (uint32_t e = 0; e < model->moe[m].experts; e++) {
            cf_layout l;
            cf_moe_layout(&model->moe[m], e, align, &l);
            most = cf_max_u64(most, l.bytes);
        }
    return most;
}

static int gauge_open(gauge *g, cf_err *err)
{
    uint32_t n = cf_catalogue_file_count(g->model->cat);
    const char **paths = calloc(n + 1, sizeof *paths);
    if (!paths)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u file names", n);
    for (uint32_t i = 0; i < n; i++)
        paths[i] = cf_catalogue_path(g->model->cat, i);
    int rc = cf_files_open(&g->files, paths, n, true, err);
    free(paths);
    if (rc < 0 || !g->files.direct)
        return rc;
    g->slab_bytes = slab_most(g->model, g->files.align);
    g->n_reqs = (uint32_t)cf_max_u64(cf_min_u64(MOST_PAGES / g->slab_bytes, REQUESTS), 1);
    rc = cf_pages_init(&g->pages, g->n_reqs * g->slab_bytes, NULL, CF_POOL_HOST, "drive test", err);
    if (rc < 0)
        return rc;
    cf_io_region region = {g->pages.data, g->pages.bytes};
    return cf_fetch_open(&g->fetch, &g->files,
                         &(cf_fetch_options){.io = {.regions = &region, .n_regions = 1}}, err);
}

/* One round: n_reqs records together. */
static int round_run(gauge *g)
{
    cf_fetch_req *list[REQUESTS];
    for (uint32_t i = 0; i < g->n_reqs; i++) {
        record_any(g, &g->layouts[i]);
        g->reqs[i] = (cf_fetch_req){.runs = g->layouts[i].runs,
                                    .n_runs = g->layouts[i].n_runs,
                                    .slab = g->pages.data + i * g->slab_bytes,
                                    .done = request_done,
                                    .user = g};
        list[i] = &g->reqs[i];
    }
    cf_gather_expect(&g->jobs, g->n_reqs);
    cf_fetch_submit(g->fetch, list, g->n_reqs, CF_FETCH_DEMAND);
    return cf_gather_wait(&g->jobs);
}

static int gauge_run(gauge *g, double *rate, cf_err *err)
{
    cf_fetch_stats stats = {0};
    uint64_t begin = cf_clock_ns();
    while (cf_clock_ns() - begin < TIME_NS && stats.bytes < MOST_BYTES) {
        int rc = round_run(g);
        if (rc < 0)
            return CF_FAIL(err, rc, "%s", g->jobs.err.msg);
        cf_fetch_get_stats(g->fetch, &stats);
    }
    if (stats.busy_ns)
        *rate = (double)stats.bytes / cf_seconds(stats.busy_ns);
    return 0;
}

int cf_tune_drive_measure(const cf_model *model, double *rate, char *why, size_t why_size,
                          cf_err *err)
{
    int rc = 0;
    *rate = 0;
    if (!model->n_moe) {
        snprintf(why, why_size, "the model has no experts");
        return 0;
    }
    gauge *g = calloc(1, sizeof *g);
    if (!g)
        return CF_FAIL(err, -ENOMEM, "out of memory for the drive test");
    g->model = model;
    g->rng.state = 1;
    cf_gather_init(&g->jobs);
    CF_TRY(gauge_open(g, err));
    if (g->files.direct)
        CF_TRY(gauge_run(g, rate, err));
    else
        snprintf(why, why_size, "reads would come from the page cache: %s", g->files.direct_why);
fail:
    cf_fetch_close(&g->fetch);
    cf_pages_finish(&g->pages);
    cf_files_close(&g->files);
    cf_gather_finish(&g->jobs);
    free(g);
    return rc;
}
