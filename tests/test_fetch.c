/* Catches: a record that arrives wrong, late, twice or never; one bad request that takes others
 * with it; a prefetch before a demand; a changed file that is not noticed; a lost wake-up or a race
 * between submit, raise, cancel and completion. Numbers in comments are fetch.c's invariants. */
#include "storage/fetch.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/pages.h"
#include "runtime/base/rng.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

enum { PAGE = 4096, FILE_BYTES = (2 << 20) + 777, WAIT_SECONDS = 60, LOG_MAX = 256 };

static tmp_dir dir;
static char paths[2][512];

/* ---- a fetcher with what it needs ---- */

typedef struct rig {
    cf_files files;
    cf_pages slab;
    cf_fetch *fetch;
    cf_io_fault fault;
    atomic_bool closed; /* completions are withheld while set */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int done, finished[LOG_MAX], n_submitted; /* `user` numbers in order of completion */
    uint64_t submitted[LOG_MAX];              /* offsets in order of submission */
} rig;

typedef struct record {
    cf_fetch_req req;
    cf_layout layout;
    cf_extent extents[CF_MAX_PIECES];
    rig *rig;
    int number;
    atomic_int times; /* done was called */
} record;

static bool rig_withhold(void *user)
{
    return atomic_load(&((rig *)user)->closed);
}

static void rig_on_submit(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    rig *r = user;
    (void)file, (void)bytes;
    pthread_mutex_lock(&r->lock);
    if (r->n_submitted < LOG_MAX)
        r->submitted[r->n_submitted++] = off;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void record_done(cf_fetch_req *req, void *user)
{
    record *rec = user;
    rig *r = rec->rig;
    CHECK(req == &rec->req);
    atomic_fetch_add(&rec->times, 1);
    pthread_mutex_lock(&r->lock);
    if (r->done < LOG_MAX)
        r->finished[r->done] = rec->number;
    r->done++;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* Waits until *what >= n; a test that never gets there ends the program. */
static void rig_wait(rig *r, const int *what, int n)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_SECONDS;
    pthread_mutex_lock(&r->lock);
    while (*what < n)
        if (pthread_cond_timedwait(&r->changed, &r->lock, &until)) {
            printf("    waited %d s for %d, there are %d\n", WAIT_SECONDS, n, *what);
            exit(1);
        }
    pthread_mutex_unlock(&r->lock);
}

static void rig_wait_done(rig *r, int n)
{
    rig_wait(r, &r->done, n);
}

typedef struct rig_options {
    cf_io_kind kind;
    bool direct, no_register, faulty;
    uint32_t depth, split;
} rig_options;

/* r->fault may have been filled before; `faulty` also wires the hooks. */
static bool rig_open(rig *r, rig_options o)
{
    cf_err err = {0};
    const char *list[] = {paths[0], paths[1]};
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->fault.withhold = rig_withhold;
    r->fault.on_submit = rig_on_submit;
    r->fault.withhold_user = r->fault.on_submit_user = r;
    int rc = cf_files_open(&r->files, list, 2, o.direct, &err);
    if (rc == 0)
        rc = cf_pages_init(&r->slab, 16 << 20, NULL, CF_POOL_HOST, "slab", &err);
    const cf_io_region region = {r->slab.data, r->slab.bytes};
    cf_fetch_options fo = {.io = {.kind = o.kind,
                                  .depth = o.depth,
                                  .no_register = o.no_register,
                                  .fault = o.faulty ? &r->fault : NULL,
                                  .regions = &region,
                                  .n_regions = 1},
                           .split_bytes = o.split};
    if (rc == 0)
        rc = cf_fetch_open(&r->fetch, &r->files, &fo, &err);
    CHECK_STR(err.msg, "");
    return rc == 0;
}

static void rig_close(rig *r)
{
    cf_fetch_close(&r->fetch);
    CHECK(!r->fetch);
    cf_fetch_close(&r->fetch); /* NULL: accepted */
    cf_pages_finish(&r->slab);
    cf_files_close(&r->files);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
}

static void rig_release(rig *r)
{
    atomic_store(&r->closed, false);
    cf_fetch_poke(r->fetch);
}

/* Plans a record of n extents into the slab at slab_off. */
static void record_plan(record *rec, rig *r, int number, uint64_t slab_off, uint32_t n)
{
    cf_layout_plan(&rec->layout, rec->extents, n, r->files.align);
    rec->rig = r;
    rec->number = number;
    rec->req.runs = rec->layout.runs;
    rec->req.n_runs = rec->layout.n_runs;
    rec->req.slab = r->slab.data + slab_off;
    rec->req.region = 0;
    rec->req.done = record_done;
    rec->req.user = rec;
}

static void record_one(record *rec, rig *r, int number, uint64_t slab_off, cf_extent e)
{
    *rec = (record){.extents = {e}};
    record_plan(rec, r, number, slab_off, 1);
}

static void submit(rig *r, record *rec, cf_fetch_class cls)
{
    cf_fetch_req *req = &rec->req;
    cf_fetch_submit(r->fetch, &req, 1, cls);
}

/* The record arrived well: settles it and compares every piece. File f has seed f. */
static void record_check(record *rec)
{
    CHECK_STR(rec->req.err.msg, "");
    CHECK_INT(rec->req.status, 0);
    CHECK_INT(atomic_load(&rec->times), 1);
    cf_layout_settle(&rec->layout, rec->req.slab);
    for (uint32_t i = 0; i < rec->layout.n_pieces; i++) {
        const cf_extent *e = &rec->extents[i];
        CHECK_INT(tmp_pattern_differs(rec->req.slab + rec->layout.pieces[i].off, e->bytes, e->file,
                                      e->off),
                  -1);
    }
}

/* ---- right bytes, everywhere ---- */

struct mode {
    const char *name;
    rig_options o;
};

static const struct mode modes[] = {
    {"bytes_uring_direct_registered", {.kind = CF_IO_URING, .direct = true}},
    {"bytes_uring_direct", {.kind = CF_IO_URING, .direct = true, .no_register = true}},
    {"bytes_uring_buffered_registered", {.kind = CF_IO_URING}},
    {"bytes_uring_buffered", {.kind = CF_IO_URING, .no_register = true}},
    {"bytes_pread_direct", {.kind = CF_IO_PREAD, .direct = true}},
    {"bytes_pread_buffered", {.kind = CF_IO_PREAD}},
    {"bytes_fault_uring", {.kind = CF_IO_URING, .direct = true, .faulty = true}},
    {"bytes_small_split", {.kind = CF_IO_AUTO, .direct = true, .split = PAGE, .depth = 3}},
    {"bytes_depth_one", {.kind = CF_IO_PREAD, .direct = true, .split = 4 * PAGE, .depth = 1}},
};

/* True when the ring can be had; a kernel or container without it skips. */
static bool uring_here(void)
{
    cf_io *io = NULL;
    cf_files none = {.align = PAGE};
    cf_io_options o = {.kind = CF_IO_URING, .depth = 1};
    bool here = cf_io_open(&io, &none, &o, NULL) == 0;
    cf_io_close(&io);
    return here;
}

static void bytes_right(const struct mode *m)
{
    enum { N = 12 };
    static const uint64_t mods[] = {0, 1, 2, 4, 8, 14};
    if (m->o.kind == CF_IO_URING && !uring_here())
        SKIP("io_uring cannot be had here");
    rig r = {.done = 0};
    record *recs = calloc(N, sizeof *recs);
    cf_fetch_req *reqs[N];
    REQUIRE(rig_open(&r, m->o));
    for (uint32_t i = 0; i < N; i++) {
        /* Three pieces side by side at an odd place, one elsewhere, one at the end of a file. */
        uint64_t at = 16 * 1000 * (i + 1) + mods[i % 6];
        cf_extent e[] = {{i % 2, at, 70000 + i},
                         {i % 2, at + 70000 + i, 333},
                         {i % 2, at + 70333 + i, 4096},
                         {1 - i % 2, 1300000 + mods[(i + 1) % 6], 5001},
                         {i % 2, FILE_BYTES - 1000 - i, 1000 + i}};
        memcpy(recs[i].extents, e, sizeof e);
        record_plan(&recs[i], &r, (int)i, (uint64_t)i << 20, 5);
        reqs[i] = &recs[i].req;
    }
    cf_fetch_submit(r.fetch, reqs, N / 2, CF_FETCH_DEMAND);
    cf_fetch_submit(r.fetch, reqs + N / 2, N - N / 2, CF_FETCH_PREFETCH);
    rig_wait_done(&r, N);
    uint64_t bytes = 0;
    for (int i = 0; i < N; i++) {
        record_check(&recs[i]);
        for (uint32_t k = 0; k < recs[i].req.n_runs; k++)
            bytes += recs[i].req.runs[k].bytes;
    }
    cf_fetch_stats s;
    cf_fetch_get_stats(r.fetch, &s);
    const cf_io_info *info = cf_fetch_io_info(r.fetch);
    CHECK_INT(s.bytes, bytes); /* nothing twice */
    CHECK(s.reads >= N && s.busy_ns > 0);
    CHECK_INT(s.retries + s.failures, 0);
    bool registered = info->registered_bytes == r.slab.bytes;
    CHECK(registered || info->registered_bytes == 0 || info->notice[0]);
    if (registered || !info->registered_bytes)
        CHECK_INT(s.unregistered_reads, registered ? 0 : s.reads);
    rig_close(&r);
    free(recs);
}

/* ---- order, raise, cancel ---- */

/* Depth 1, the drive held by A: what is asked next shows the order of the queues. (1, 5) */
static void order_raise_cancel(void)
{
    enum { A, P1, P2, P3, D1, D2, N };
    rig r = {.closed = true};
    record recs[N];
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_PREAD, .faulty = true, .depth = 1}));
    for (int i = 0; i < N; i++)
        record_one(&recs[i], &r, i, (uint64_t)i * PAGE, (cf_extent){0, (uint64_t)i * PAGE, PAGE});
    submit(&r, &recs[A], CF_FETCH_PREFETCH);
    rig_wait(&r, &r.n_submitted, 1);
    for (int i = P1; i <= P3; i++)
        submit(&r, &recs[i], CF_FETCH_PREFETCH);
    submit(&r, &recs[D1], CF_FETCH_DEMAND);
    cf_fetch_raise(r.fetch, &recs[P2].req); /* to the end of the demands, before D2 */
    cf_fetch_raise(r.fetch, &recs[P2].req); /* again: nothing */
    submit(&r, &recs[D2], CF_FETCH_DEMAND);
    cf_fetch_raise(r.fetch, &recs[A].req);
    CHECK(!cf_fetch_cancel(r.fetch, &recs[A].req)); /* active */
    CHECK(cf_fetch_cancel(r.fetch, &recs[P3].req));
    CHECK(!cf_fetch_cancel(r.fetch, &recs[P3].req)); /* idle */
    cf_fetch_raise(r.fetch, &recs[P3].req);
    CHECK_INT(r.n_submitted, 1);
    rig_release(&r);
    rig_wait_done(&r, 5);
    static const int want[] = {A, D1, P2, D2, P1};
    for (int i = 0; i < 5; i++) {
        CHECK_INT(r.submitted[i], want[i] * PAGE);
        CHECK_INT(r.finished[i], want[i]);
        record_check(&recs[want[i]]);
    }
    CHECK_INT(atomic_load(&recs[P3].times), 0);
    submit(&r, &recs[P3], CF_FETCH_DEMAND); /* a cancelled one can come again */
    rig_wait_done(&r, 6);
    record_check(&recs[P3]);
    rig_close(&r);
}

/* Prefetches in flight leave room for a demand; a demand overtakes the rest of a large one. */
static void demand_finds_room(void)
{
    rig r = {.closed = true};
    record prefetch, demand;
    REQUIRE(rig_open(
        &r, (rig_options){.kind = CF_IO_PREAD, .faulty = true, .depth = 4, .split = PAGE}));
    record_one(&prefetch, &r, 0, 0, (cf_extent){0, 0, 8 * PAGE});
    record_one(&demand, &r, 1, 8 * PAGE, (cf_extent){1, 64 * PAGE, 2 * PAGE});
    submit(&r, &prefetch, CF_FETCH_PREFETCH);
    rig_wait(&r, &r.n_submitted, 2);
    usleep(20000); /* time enough for a third, were it allowed */
    submit(&r, &demand, CF_FETCH_DEMAND);
    rig_wait(&r, &r.n_submitted, 4);
    CHECK_INT(r.submitted[0], 0);
    CHECK_INT(r.submitted[1], PAGE);
    CHECK_INT(r.submitted[2], 64 * PAGE);
    CHECK_INT(r.submitted[3], 65 * PAGE);
    CHECK_INT(r.done, 0);
    rig_release(&r);
    rig_wait_done(&r, 2);
    record_check(&prefetch);
    record_check(&demand);
    rig_close(&r);
}

/* A prefetch that is queued is asked for only once no demand is active, room or not; one that was
 * raised while active is a demand for what is left of it. */
static void prefetch_waits_for_idle(void)
{
    rig r = {.closed = true};
    record prefetch, demand, other;
    REQUIRE(rig_open(
        &r, (rig_options){.kind = CF_IO_PREAD, .faulty = true, .depth = 8, .split = PAGE}));
    record_one(&demand, &r, 0, 0, (cf_extent){0, 0, PAGE});
    record_one(&prefetch, &r, 1, 8 * PAGE, (cf_extent){0, 8 * PAGE, 6 * PAGE});
    record_one(&other, &r, 2, 32 * PAGE, (cf_extent){1, 64 * PAGE, PAGE});
    submit(&r, &demand, CF_FETCH_DEMAND);
    rig_wait(&r, &r.n_submitted, 1);
    submit(&r, &prefetch, CF_FETCH_PREFETCH);
    usleep(20000); /* time enough, were it allowed */
    CHECK_INT(r.n_submitted, 1);
    rig_release(&r);
    rig_wait_done(&r, 2);
    record_check(&demand);
    record_check(&prefetch);

    r.closed = true;
    int before = r.n_submitted;
    record_one(&prefetch, &r, 1, 8 * PAGE, (cf_extent){0, 8 * PAGE, 6 * PAGE});
    submit(&r, &prefetch, CF_FETCH_PREFETCH); /* four of its six reads: half of the depth */
    rig_wait(&r, &r.n_submitted, before + 4);
    submit(&r, &other, CF_FETCH_DEMAND);
    rig_wait(&r, &r.n_submitted, before + 5);
    cf_fetch_raise(r.fetch, &prefetch.req);
    rig_wait(&r, &r.n_submitted, before + 7); /* the rest, beside an active demand */
    CHECK_INT(r.submitted[before + 4], 64 * PAGE);
    CHECK_INT(r.submitted[before + 6], 13 * PAGE);
    rig_release(&r);
    rig_wait_done(&r, 4);
    record_check(&prefetch);
    record_check(&other);
    rig_close(&r);
}

/* Of a prefetch that is given up nothing more is asked for; a demand is not given up. */
static void abandoned_asks_no_more(void)
{
    rig r = {.closed = true};
    record large, queued, demand;
    REQUIRE(rig_open(
        &r, (rig_options){.kind = CF_IO_PREAD, .faulty = true, .depth = 4, .split = PAGE}));
    record_one(&large, &r, 0, 0, (cf_extent){0, 0, 8 * PAGE});
    record_one(&queued, &r, 1, 8 * PAGE, (cf_extent){0, 8 * PAGE, PAGE});
    record_one(&demand, &r, 2, 16 * PAGE, (cf_extent){1, 0, PAGE});
    submit(&r, &large, CF_FETCH_PREFETCH);
    rig_wait(&r, &r.n_submitted, 2);
    submit(&r, &queued, CF_FETCH_PREFETCH);
    CHECK(cf_fetch_abandon(r.fetch, &queued.req));
    CHECK(!cf_fetch_abandon(r.fetch, &large.req));
    submit(&r, &demand, CF_FETCH_DEMAND);
    CHECK_INT(atomic_load(&large.times), 0); /* what is in flight may still be written */
    rig_release(&r);
    rig_wait_done(&r, 2);
    CHECK_INT(r.n_submitted, 3);
    CHECK_INT(large.req.status, -ECANCELED);
    CHECK_INT(atomic_load(&large.times), 1);
    CHECK_INT(atomic_load(&queued.times), 0);
    record_check(&demand);
    cf_fetch_stats s;
    cf_fetch_get_stats(r.fetch, &s);
    CHECK_INT(s.failures, 0);
    /* A demand that is active is read to its end; what was given up can come again. */
    r.closed = true;
    record_one(&demand, &r, 2, 16 * PAGE, (cf_extent){1, 0, 6 * PAGE});
    record_one(&large, &r, 0, 0, (cf_extent){0, 0, 8 * PAGE});
    submit(&r, &demand, CF_FETCH_DEMAND);
    rig_wait(&r, &r.n_submitted, 4);
    CHECK(!cf_fetch_abandon(r.fetch, &demand.req));
    submit(&r, &large, CF_FETCH_PREFETCH);
    rig_release(&r);
    rig_wait_done(&r, 4);
    record_check(&demand);
    record_check(&large);
    rig_close(&r);
}

/* ---- failures ---- */

/* One bad block: its request fails once, with path and offset; the others and the next do not. */
static void eio_fails_only_its_request(void)
{
    enum { N = 5, BAD = 2 };
    rig r = {.fault = {.eio_file = 1, .eio_off = 21 * PAGE + 5, .eio_times = -1}};
    record recs[N];
    char want[64];
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_PREAD, .faulty = true, .split = PAGE}));
    for (int i = 0; i < N; i++)
        record_one(&recs[i], &r, i, (uint64_t)i * 8 * PAGE,
                   (cf_extent){1, (uint64_t)i * 8 * PAGE, 8 * PAGE});
    cf_fetch_req *reqs[N];
    for (int i = 0; i < N; i++)
        reqs[i] = &recs[i].req;
    cf_fetch_submit(r.fetch, reqs, N, CF_FETCH_DEMAND);
    rig_wait_done(&r, N);
    for (int i = 0; i < N; i++)
        if (i != BAD)
            record_check(&recs[i]);
    snprintf(want, sizeof want, "reading %d bytes at offset %d failed twice", PAGE, 21 * PAGE);
    CHECK_INT(recs[BAD].req.status, -EIO);
    CHECK_INT(recs[BAD].req.err.code, -EIO);
    CHECK_HAS(recs[BAD].req.err.msg, paths[1]);
    CHECK_HAS(recs[BAD].req.err.msg, want);
    CHECK_HAS(recs[BAD].req.err.msg, "Input/output error");
    CHECK_INT(atomic_load(&recs[BAD].times), 1);
    cf_fetch_stats s;
    cf_fetch_get_stats(r.fetch, &s);
    CHECK_INT(s.retries, 1);
    CHECK_INT(s.failures, 1);
    /* The same again fails again; another place of the same file works. */
    submit(&r, &recs[BAD], CF_FETCH_PREFETCH);
    rig_wait_done(&r, N + 1);
    CHECK_INT(recs[BAD].req.status, -EIO);
    record_one(&recs[0], &r, 0, 0, (cf_extent){1, 100 * PAGE + 3, 9 * PAGE});
    submit(&r, &recs[0], CF_FETCH_DEMAND);
    rig_wait_done(&r, N + 2);
    record_check(&recs[0]);
    rig_close(&r);
}

static void eio_once_is_retried(void)
{
    rig r = {.fault = {.eio_file = 0, .eio_off = 3 * PAGE, .eio_times = 1}};
    record rec;
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_PREAD, .faulty = true, .split = PAGE}));
    record_one(&rec, &r, 0, 0, (cf_extent){0, 0, 8 * PAGE});
    submit(&r, &rec, CF_FETCH_DEMAND);
    rig_wait_done(&r, 1);
    record_check(&rec);
    cf_fetch_stats s;
    cf_fetch_get_stats(r.fetch, &s);
    CHECK(s.retries == 1 && s.failures == 0 && s.reads == 9);
    rig_close(&r);
}

/* Short anywhere, not at aligned places: continued from the last aligned byte. Depth 1, so that
 * the seed decides which reads are cut, whatever the timing. */
static void short_reads_continued(cf_io_kind kind, bool direct)
{
    enum { N = 40 };
    rig r = {.fault = {.seed = 11, .short_per_million = 150000, .eio_file = -1}};
    record rec;
    REQUIRE(rig_open(
        &r, (rig_options){
                .kind = kind, .direct = direct, .faulty = true, .depth = 1, .split = 64 * PAGE}));
    uint64_t wanted = 0;
    for (int i = 0; i < N; i++) {
        uint64_t off = (uint64_t)i * 9 * PAGE + 5; /* the last ones reach the end of the file */
        record_one(&rec, &r, i, 0, (cf_extent){1, off, 150 * PAGE});
        submit(&r, &rec, CF_FETCH_DEMAND);
        rig_wait_done(&r, i + 1);
        record_check(&rec);
        wanted += cf_ceil_div(rec.req.runs[0].bytes, 64 * PAGE);
    }
    cf_fetch_stats s;
    cf_fetch_get_stats(r.fetch, &s);
    CHECK(s.reads >= wanted + 10); /* there were short reads */
    CHECK_INT(s.failures, 0);
    rig_close(&r);
}

static void short_reads_pread(void)
{
    short_reads_continued(CF_IO_PREAD, true);
}

static void short_reads_uring(void)
{
    if (!uring_here())
        SKIP("io_uring cannot be had here");
    short_reads_continued(CF_IO_URING, true);
}

/* A read that never gets anywhere is given up, not asked for ever. (8) */
static void short_for_ever_fails(void)
{
    rig r = {.fault = {.short_per_million = 1000000, .eio_file = -1}};
    record rec;
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_PREAD, .faulty = true}));
    record_one(&rec, &r, 0, 0, (cf_extent){0, 0, 64 * PAGE});
    submit(&r, &rec, CF_FETCH_DEMAND);
    rig_wait_done(&r, 1);
    CHECK_INT(rec.req.status, -EIO);
    CHECK_HAS(rec.req.err.msg, paths[0]);
    CHECK_HAS(rec.req.err.msg, "twice");
    rig_close(&r);
}

/* ---- files that change ---- */

static void file_restore(void)
{
    unlink(paths[0]);
    tmp_write_pattern(paths[0], FILE_BYTES, 0);
}

/* The change happens while the read is in flight, so that only the check at its end can see it;
 * shortening happens before, so that the read itself comes back short. */
static void file_changes(void)
{
    static const char *const want[] = {"bytes when opened, now 4096", "was replaced", "disappeared",
                                       "was rewritten"};
    for (int how = 0; how < 4; how++) {
        rig r = {.closed = how > 0};
        record rec, other;
        file_restore();
        struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
        CHECK_INT(utimensat(AT_FDCWD, paths[0], old, 0), 0);
        REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_AUTO, .direct = true, .faulty = true}));
        record_one(&rec, &r, 0, 0, (cf_extent){0, 8 * PAGE, 8 * PAGE});
        record_one(&other, &r, 1, 8 * PAGE, (cf_extent){1, 8 * PAGE, 8 * PAGE});
        if (how == 0)
            CHECK_INT(truncate(paths[0], 4096), 0);
        submit(&r, &rec, CF_FETCH_DEMAND);
        if (how > 0)
            rig_wait(&r, &r.n_submitted, 1);
        if (how == 1) {
            const char *copy = tmp_path(&dir, "copy");
            tmp_write_pattern(copy, FILE_BYTES, 0);
            CHECK_INT(rename(copy, paths[0]), 0);
        } else if (how == 2) {
            CHECK_INT(unlink(paths[0]), 0);
        } else if (how == 3) {
            int fd = open(paths[0], O_WRONLY);
            CHECK_INT(pwrite(fd, "x", 1, 0), 1);
            close(fd);
        }
        rig_release(&r);
        rig_wait_done(&r, 1);
        CHECK_INT(rec.req.status, CF_ECHANGED);
        CHECK_HAS(rec.req.err.msg, want[how]);
        CHECK_HAS(rec.req.err.msg, paths[0]);
        submit(&r, &other, CF_FETCH_DEMAND); /* other files go on */
        rig_wait_done(&r, 2);
        record_check(&other);
        rig_close(&r);
    }
    file_restore();
}

/* The catalogue was read before the file lost its end: no read beyond it. (6) */
static void run_beyond_the_file(void)
{
    rig r = {.done = 0};
    record rec;
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_PREAD, .faulty = true}));
    record_one(&rec, &r, 0, 0, (cf_extent){0, FILE_BYTES - 100, 100 + PAGE});
    submit(&r, &rec, CF_FETCH_DEMAND);
    rig_wait_done(&r, 1);
    CHECK_INT(rec.req.status, CF_ECHANGED);
    CHECK_HAS(rec.req.err.msg, "2097929"); /* FILE_BYTES */
    CHECK_INT(r.n_submitted, 0);
    rig_close(&r);
}

/* ---- the end, and the engine's end ---- */

static void close_drops_queued(void)
{
    enum { N = 6 };
    rig r = {.closed = true};
    record recs[N];
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_PREAD, .faulty = true, .depth = 1}));
    for (int i = 0; i < N; i++) {
        record_one(&recs[i], &r, i, (uint64_t)i * PAGE, (cf_extent){0, (uint64_t)i * PAGE, PAGE});
        submit(&r, &recs[i], i % 2 ? CF_FETCH_PREFETCH : CF_FETCH_DEMAND);
    }
    rig_wait(&r, &r.n_submitted, 1);
    atomic_store(&r.closed, false); /* close itself wakes */
    cf_fetch_close(&r.fetch);
    CHECK_INT(r.done, N);
    int cancelled = 0;
    for (int i = 0; i < N; i++) {
        CHECK_INT(atomic_load(&recs[i].times), 1);
        cancelled += recs[i].req.status == -ECANCELED;
        if (recs[i].req.status == 0)
            record_check(&recs[i]);
        else
            CHECK_HAS(recs[i].req.err.msg, "closed");
    }
    CHECK(cancelled < N); /* the one in flight was waited for */
    rig_close(&r);
}

static void close_when_idle(void)
{
    for (int i = 0; i < 20; i++) {
        rig r = {.done = 0};
        REQUIRE(rig_open(&r, (rig_options){.kind = i % 2 ? CF_IO_PREAD : CF_IO_AUTO}));
        rig_close(&r);
    }
}

struct chain {
    record rec;
    int left;
};

static void chain_done(cf_fetch_req *req, void *user)
{
    struct chain *c = user;
    CHECK_INT(req->status, 0);
    if (c->left-- > 0)
        submit(c->rec.rig, &c->rec, CF_FETCH_PREFETCH);
    else
        record_done(req, &c->rec);
}

/* done submits its own request again: idle by then, and the thread does not sleep on it. */
static void done_may_submit(void)
{
    rig r = {.done = 0};
    struct chain c = {.left = 500};
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_AUTO, .direct = true}));
    record_one(&c.rec, &r, 0, 0, (cf_extent){0, 100, 100});
    c.rec.req.done = chain_done;
    c.rec.req.user = &c;
    submit(&r, &c.rec, CF_FETCH_DEMAND);
    rig_wait_done(&r, 1);
    CHECK_INT(c.left, -1);
    cf_fetch_stats s;
    cf_fetch_get_stats(r.fetch, &s);
    CHECK_INT(s.reads, 501);
    rig_close(&r);
}

static void empty_request(void)
{
    rig r = {.done = 0};
    record rec = {.number = 0};
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_PREAD}));
    record_plan(&rec, &r, 0, 0, 0);
    submit(&r, &rec, CF_FETCH_DEMAND);
    rig_wait_done(&r, 1);
    record_check(&rec);
    rig_close(&r);
}

/* The ring's descriptor is taken away: everything fails with a sentence, nothing hangs. */
static void engine_failure(void)
{
    if (!uring_here())
        SKIP("io_uring cannot be had here");
    rig r = {.done = 0};
    record recs[3];
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_URING}));
    for (int i = 0; i < 3; i++)
        record_one(&recs[i], &r, i, (uint64_t)i * PAGE, (cf_extent){0, (uint64_t)i * PAGE, PAGE});
    submit(&r, &recs[0], CF_FETCH_DEMAND);
    rig_wait_done(&r, 1);
    record_check(&recs[0]);
    int null = open("/dev/null", O_RDONLY), replaced = 0;
    for (int fd = 3; fd < 256; fd++) {
        char link[64], target[64] = "";
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        if (readlink(link, target, sizeof target - 1) > 0 && strstr(target, "[io_uring]"))
            replaced += dup2(null, fd) == fd;
    }
    close(null);
    CHECK_INT(replaced, 1);
    submit(&r, &recs[1], CF_FETCH_DEMAND);
    cf_fetch_poke(r.fetch);
    /* The thread may sleep in the ring that is gone from the table; it then still serves what
     * wakes it and fails at its next call. */
    rig_wait_done(&r, 2);
    submit(&r, &recs[2], CF_FETCH_PREFETCH);
    rig_wait_done(&r, 3);
    CHECK(recs[2].req.status < 0);
    CHECK_HAS(recs[2].req.err.msg, "the uring engine failed");
    rig_close(&r);
}

static void open_failures(void)
{
    rig r = {.done = 0};
    cf_err err = {0};
    const char *list[] = {paths[0]};
    REQUIRE(cf_files_open(&r.files, list, 1, false, &err) == 0);
    cf_fetch_options o = {.split_bytes = 1000};
    CHECK_INT(cf_fetch_open(&r.fetch, &r.files, &o, &err), -EINVAL);
    CHECK_HAS(err.msg, "1000 bytes: not a multiple of the alignment 4096");
    err = (cf_err){0};
    o = (cf_fetch_options){.io = {.depth = 1u << 30}};
    CHECK_INT(cf_fetch_open(&r.fetch, &r.files, &o, &err), -EINVAL);
    CHECK_HAS(err.msg, "1073741824");
    CHECK(!r.fetch);
    cf_files_close(&r.files);
}

/* busy_ns counts while something is in flight, and only then. */
static void busy_time(void)
{
    rig r = {.closed = true};
    record rec;
    cf_fetch_stats a, b, c;
    REQUIRE(rig_open(&r, (rig_options){.kind = CF_IO_PREAD, .faulty = true}));
    cf_fetch_get_stats(r.fetch, &a);
    CHECK_INT(a.busy_ns, 0);
    record_one(&rec, &r, 0, 0, (cf_extent){0, 0, 100});
    uint64_t begin = cf_clock_ns();
    submit(&r, &rec, CF_FETCH_DEMAND);
    rig_wait(&r, &r.n_submitted, 1);
    usleep(20000);
    rig_release(&r);
    rig_wait_done(&r, 1);
    uint64_t end = cf_clock_ns();
    cf_fetch_get_stats(r.fetch, &b);
    CHECK(b.busy_ns >= 19 * 1000000 && b.busy_ns <= end - begin);
    usleep(5000);
    cf_fetch_get_stats(r.fetch, &c);
    CHECK_INT(c.busy_ns, b.busy_ns);
    rig_close(&r);
}

/* ---- everything at once ---- */

struct worker {
    rig *rig;
    pthread_t thread;
    uint64_t seed, slab_off;
    int done_calls, cancels, submits, failures;
};

enum { OPS = 400, MINE = 6 };

static void stress_done(cf_fetch_req *req, void *user)
{
    record *rec = user;
    (void)req;
    atomic_fetch_add(&rec->times, 1);
}

/* Submits, raises and cancels its own records while other threads do the same; each submit ends
 * in exactly one done or one successful cancel (7), and what is done without error is right. */
static void *stress_main(void *arg)
{
    struct worker *w = arg;
    rig *r = w->rig;
    cf_rng rng = {w->seed};
    record *recs = calloc(MINE, sizeof *recs);
    bool out[MINE] = {false};
    for (int op = 0; op < OPS || memchr(out, true, sizeof out); op++) {
        uint32_t i = (uint32_t)cf_rng_below(&rng, MINE);
        record *rec = &recs[i];
        cf_fetch_stats s;
        if (out[i] && atomic_load(&rec->times)) {
            out[i] = false;
            w->done_calls++;
            w->failures += rec->req.status != 0;
            if (rec->req.status == 0)
                record_check(rec);
        } else if (out[i] && cf_rng_below(&rng, 3) == 0) {
            cf_fetch_raise(r->fetch, &rec->req);
        } else if (out[i] && cf_fetch_cancel(r->fetch, &rec->req)) {
            out[i] = false;
            w->cancels++;
            CHECK_INT(atomic_load(&rec->times), 0);
        } else if (!out[i] && op < OPS) {
            cf_extent e = {(uint32_t)cf_rng_below(&rng, 2), cf_rng_below(&rng, FILE_BYTES - 20000),
                           1 + cf_rng_below(&rng, 20000)};
            record_one(rec, r, (int)i, w->slab_off + i * 16 * PAGE, e);
            rec->req.done = stress_done;
            submit(r, rec, cf_rng_below(&rng, 2) ? CF_FETCH_DEMAND : CF_FETCH_PREFETCH);
            out[i] = true;
            w->submits++;
        } else {
            cf_fetch_get_stats(r->fetch, &s);
            usleep(20);
        }
    }
    free(recs);
    return NULL;
}

static void stress(cf_io_kind kind, const cf_io_fault *fault, uint32_t depth)
{
    enum { THREADS = 4 };
    rig r = {.done = 0};
    struct worker w[THREADS];
    if (fault)
        r.fault = *fault;
    REQUIRE(rig_open(&r, (rig_options){.kind = kind,
                                       .direct = true,
                                       .faulty = fault != NULL,
                                       .depth = depth,
                                       .split = 2 * PAGE}));
    for (uint32_t i = 0; i < THREADS; i++) {
        w[i] = (struct worker){.rig = &r, .seed = i, .slab_off = (uint64_t)i << 20};
        REQUIRE(pthread_create(&w[i].thread, NULL, stress_main, &w[i]) == 0);
    }
    int failures = 0, cancels = 0;
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(w[i].thread, NULL);
        CHECK_INT(w[i].submits, w[i].done_calls + w[i].cancels);
        failures += w[i].failures;
        cancels += w[i].cancels;
    }
    cf_fetch_stats s;
    cf_fetch_get_stats(r.fetch, &s);
    CHECK_INT(s.failures, failures);
    CHECK(fault ? cancels > 0 : failures == 0);
    rig_close(&r);
}

static void stress_pread(void)
{
    stress(CF_IO_PREAD, NULL, 4);
}

static void stress_uring(void)
{
    if (!uring_here())
        SKIP("io_uring cannot be had here");
    stress(CF_IO_URING, NULL, 8);
}

static void stress_faulty(void)
{
    static const cf_io_fault fault = {.seed = 4,
                                      .short_per_million = 50000,
                                      .eio_per_million = 50000,
                                      .delay_per_million = 200000,
                                      .delay_us = 300,
                                      .eio_file = -1};
    static const cf_io_fault shuffled = {.reorder = true, .eio_per_million = 20000};
    stress(CF_IO_PREAD, &fault, 4);
    stress(CF_IO_PREAD, &shuffled, 8);
}

int main(void)
{
    tmp_dir_init(&dir);
    for (uint64_t i = 0; i < 2; i++) {
        snprintf(paths[i], sizeof paths[i], "%s", tmp_path(&dir, i ? "two" : "one"));
        tmp_write_pattern(paths[i], FILE_BYTES, i);
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        RUN_NAMED(modes[i].name, bytes_right(&modes[i]));
    RUN(order_raise_cancel);
    RUN(demand_finds_room);
    RUN(prefetch_waits_for_idle);
    RUN(abandoned_asks_no_more);
    RUN(eio_fails_only_its_request);
    RUN(eio_once_is_retried);
    RUN(short_reads_pread);
    RUN(short_reads_uring);
    RUN(short_for_ever_fails);
    RUN(file_changes);
    RUN(run_beyond_the_file);
    RUN(close_drops_queued);
    RUN(close_when_idle);
    RUN(done_may_submit);
    RUN(empty_request);
    RUN(engine_failure);
    RUN(open_failures);
    RUN(busy_time);
    RUN(stress_pread);
    RUN(stress_uring);
    RUN(stress_faulty);
    tmp_dir_finish(&dir);
    return check_done();
}
