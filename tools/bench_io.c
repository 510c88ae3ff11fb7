/* What a drive gives: see bench_io.h. */
#include "tools/bench_io.h"

#include <fcntl.h>
#include <inttypes.h>
#include <liburing.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/pages.h"
#include "storage/fetch.h"

enum { SPLIT_BYTES = 512 << 10 }; /* the fetcher's default */

static int double_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double cf_bench_median(const double *samples, uint32_t n)
{
    double sorted[CF_BENCH_SAMPLES];
    cf_assert(n <= CF_BENCH_SAMPLES);
    if (n == 0)
        return 0;
    memcpy(sorted, samples, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, double_compare);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

const char *cf_bench_mode_name(uint32_t mode)
{
    static const char *const names[CF_BENCH_MODES] = {"direct, registered", "direct, unregistered",
                                                      "buffered, registered",
                                                      "buffered, unregistered"};
    return names[mode];
}

/* So that buffered reads come from the drive. Pages that somebody has mapped or is writing stay. */
static void pages_drop(int fd)
{
    fdatasync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* Visits the blocks 0 .. n - 1 each once, far from one another, then anew. */
typedef struct walk {
    uint64_t n, stride, at, left;
} walk;

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static walk walk_begin(uint64_t n, bool sequential)
{
    walk w = {.n = n, .stride = 1, .left = n};
    if (!sequential && n > 2) {
        w.stride = (uint64_t)((double)n * 0.6180339887);
        while (gcd(w.stride, n) != 1)
            w.stride++;
    }
    return w;
}

static uint64_t walk_next(walk *w)
{
    uint64_t at = w->at;
    w->at = (w->at + w->stride) % w->n;
    w->left -= w->left > 0;
    return at;
}

static double gb_per_s(uint64_t bytes, uint64_t ns)
{
    return ns ? (double)bytes / (double)ns : 0;
}

/* ---- the ceiling ---- */

typedef struct loop {
    struct io_uring ring;
    int fd;
    uint8_t *buffers;
    uint64_t n_blocks;
    uint32_t block, depth;
    bool once; /* a block read twice would come from the page cache */
} loop;

static int loop_queue(loop *l, walk *w, void *buffer)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring);
    if (!sqe)
        return -EBUSY;
    io_uring_prep_read(sqe, l->fd, buffer, l->block, walk_next(w) * l->block);
    io_uring_sqe_set_data(sqe, buffer);
    return 0;
}

static int loop_sample(loop *l, bool sequential, uint64_t ns, double *out, cf_err *err)
{
    walk w = walk_begin(l->n_blocks, sequential);
    uint64_t bytes = 0, begin, now;
    uint32_t flying = 0;
    int rc = 0;
    if (l->once)
        pages_drop(l->fd);
    begin = now = cf_clock_ns();
    for (; rc == 0 && flying < l->depth && (!l->once || w.left); flying++)
        rc = loop_queue(l, &w, l->buffers + (uint64_t)flying * l->block);
    while (flying) {
        struct io_uring_cqe *cqe;
        int entered = io_uring_submit_and_wait(&l->ring, 1);
        if (entered < 0 && entered != -EINTR && entered != -EAGAIN)
            return CF_FAIL(err, entered, "io_uring failed: %s", strerror(-entered));
        now = cf_clock_ns();
        while (io_uring_peek_cqe(&l->ring, &cqe) == 0) {
            void *buffer = io_uring_cqe_get_data(cqe);
            flying--;
            if (cqe->res != (int)l->block && rc == 0)
                rc = CF_FAIL(err, cqe->res < 0 ? cqe->res : -EIO,
                             "a read of %u bytes of the file gave %d", l->block, cqe->res);
            bytes += rc == 0 ? l->block : 0u;
            io_uring_cqe_seen(&l->ring, cqe);
            if (rc == 0 && now - begin < ns && (!l->once || w.left) &&
                loop_queue(l, &w, buffer) == 0)
                flying++;
        }
    }
    *out = gb_per_s(bytes, now - begin);
    return rc;
}

static int ceiling_file_open(cf_bench_ceiling *out, const char *path, uint64_t *bytes, int *fd,
                             cf_err *err)
{
    cf_files files = {0};
    int rc = cf_files_open(&files, &path, 1, true, err);
    if (rc < 0)
        return rc;
    out->direct = files.direct;
    *bytes = files.list[0].bytes;
    *fd = dup(files.list[0].fd);
    cf_files_close(&files);
    if (*fd < 0)
        return CF_FAIL(err, -errno, "cannot open %s: %s", path, strerror(errno));
    if (*bytes < (uint64_t)CF_BENCH_FILE_BLOCKS * CF_BENCH_BLOCK) {
        close(*fd);
        return CF_FAIL(err, CF_ELIMIT,
                       "%s has %" PRIu64 " bytes, at least %d are needed to measure the drive",
                       path, *bytes, (int)CF_BENCH_FILE_BLOCKS * CF_BENCH_BLOCK);
    }
    return 0;
}

/* Median of three, in order or not. */
static int loop_measure(loop *l, bool sequential, uint64_t ns, double *out, cf_err *err)
{
    double samples[3];
    for (int i = 0; i < 3; i++) {
        int rc = loop_sample(l, sequential, ns, &samples[i], err);
        if (rc < 0)
            return rc;
    }
    *out = cf_bench_median(samples, 3);
    return 0;
}

static int ceiling_search(cf_bench_ceiling *out, loop *l, uint64_t file_bytes, double seconds,
                          cf_err *err)
{
    static const uint32_t blocks[] = {256 << 10, CF_BENCH_BLOCK}, depths[] = {16, CF_BENCH_DEPTH};
    uint64_t ns = (uint64_t)(seconds * 1e9 / 24); /* 2 blocks, 2 depths, 2 orders, 3 samples */
    for (int i = 0; i < 8; i++) {
        bool sequential = i & 1;
        double speed;
        l->block = blocks[i >> 2];
        l->depth = depths[i >> 1 & 1];
        l->n_blocks = file_bytes / l->block;
        int rc = loop_measure(l, sequential, ns, &speed, err);
        if (rc < 0)
            return rc;
        double *best = sequential ? &out->sequential : &out->random;
        *best = speed > *best ? speed : *best;
        if (speed > out->best) {
            out->best = speed;
            out->block_bytes = l->block;
            out->depth = l->depth;
        }
    }
    return 0;
}

int cf_bench_ceiling_measure(cf_bench_ceiling *out, const char *path, double seconds, cf_err *err)
{
    loop l = {0};
    cf_pages pages = {0};
    uint64_t bytes = 0;
    *out = (cf_bench_ceiling){0};
    int rc = ceiling_file_open(out, path, &bytes, &l.fd, err);
    if (rc < 0)
        return rc;
    pages_drop(l.fd); /* nothing is written back meanwhile */
    l.once = !out->direct;
    CF_TRY(cf_pages_init(&pages, (uint64_t)CF_BENCH_DEPTH * CF_BENCH_BLOCK, NULL, CF_POOL_HOST,
                         "bench", err));
    memset(pages.data, 1, pages.bytes);
    l.buffers = pages.data;
    rc = io_uring_queue_init(2 * CF_BENCH_DEPTH, &l.ring,
                             IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    if (rc == -EINVAL) /* before 6.1 */
        rc = io_uring_queue_init(2 * CF_BENCH_DEPTH, &l.ring, 0);
    if (rc < 0)
        CF_TRY(CF_FAIL(err, -ENOSYS, "io_uring refused: %s", strerror(-rc)));
    rc = ceiling_search(out, &l, bytes, seconds, err);
    io_uring_queue_exit(&l.ring);
fail:
    cf_pages_finish(&pages);
    close(l.fd);
    return rc;
}

/* ---- the engine's way ---- */

typedef struct sample {
    cf_fetch *fetch;
    cf_fetch_req reqs[CF_IO_DEPTH_MAX + 1];
    cf_run runs[CF_IO_DEPTH_MAX + 1];
    uint32_t n_reqs;
    uint64_t record_bytes;
    bool once;
    /* Guarded by lock. */
    pthread_mutex_t lock;
    pthread_cond_t idle;
    walk walk;
    uint32_t active;
    uint64_t bytes, stop_ns, end_ns;
    cf_err err;
} sample;

static void record_choose(sample *s, cf_fetch_req *req)
{
    cf_run *run = &s->runs[req - s->reqs];
    *run = (cf_run){.file_off = walk_next(&s->walk) * s->record_bytes, .bytes = s->record_bytes};
    req->status = 0;
}

/* On the I/O thread: the next record goes where this one was. */
static void record_arrived(cf_fetch_req *req, void *user)
{
    sample *s = user;
    pthread_mutex_lock(&s->lock);
    uint64_t now = cf_clock_ns();
    s->end_ns = now;
    s->bytes += req->status < 0 ? 0 : s->record_bytes;
    if (req->status < 0 && !s->err.code)
        s->err = req->err;
    bool more = !s->err.code && now < s->stop_ns && (!s->once || s->walk.left);
    if (more)
        record_choose(s, req);
    else if (--s->active == 0)
        pthread_cond_signal(&s->idle);
    pthread_mutex_unlock(&s->lock);
    if (more)
        cf_fetch_submit(s->fetch, &req, 1, CF_FETCH_DEMAND);
}

static int sample_take(sample *s, const cf_files *files, uint64_t ns, double *out, cf_err *err)
{
    uint64_t n_records = files->list[0].bytes / s->record_bytes;
    if (s->once)
        pages_drop(files->list[0].fd);
    uint64_t begin = cf_clock_ns();
    pthread_mutex_lock(&s->lock);
    s->walk = walk_begin(n_records, false);
    s->bytes = 0;
    s->stop_ns = begin + ns;
    s->err = (cf_err){0};
    cf_fetch_req *list[CF_IO_DEPTH_MAX + 1];
    uint32_t n = 0;
    for (; n < s->n_reqs && n < n_records; n++) {
        list[n] = &s->reqs[n];
        record_choose(s, list[n]);
    }
    s->active = n;
    pthread_mutex_unlock(&s->lock);
    cf_fetch_submit(s->fetch, list, n, CF_FETCH_DEMAND);
    pthread_mutex_lock(&s->lock);
    while (s->active)
        pthread_cond_wait(&s->idle, &s->lock);
    pthread_mutex_unlock(&s->lock);
    if (s->err.code)
        return CF_FAIL(err, s->err.code, "%s", s->err.msg);
    *out = gb_per_s(s->bytes, s->end_ns - begin);
    return 0;
}

/* Records under way so that `depth` reads can be: one is being finished while others begin. */
static uint32_t cell_reqs(uint64_t record_bytes, uint32_t depth)
{
    uint64_t reads = cf_align_up(record_bytes, SPLIT_BYTES) / SPLIT_BYTES;
    return (uint32_t)(depth / reads) + 1;
}

static int cell_measure(cf_bench_io *b, cf_bench_cell *c, sample *s, const cf_files *files,
                        const cf_pages *pages, uint64_t ns, cf_err *err)
{
    bool registered = !(c->mode & 1);
    s->n_reqs = cell_reqs(c->record_bytes, c->depth);
    s->record_bytes = c->record_bytes;
    s->once = !files->direct;
    cf_io_region region = {pages->data, s->n_reqs * c->record_bytes};
    cf_fetch_options o = {.io = {.kind = b->kind,
                                 .depth = c->depth,
                                 .no_register = !registered,
                                 .regions = &region,
                                 .n_regions = 1},
                          .split_bytes = SPLIT_BYTES};
    int rc = cf_fetch_open(&s->fetch, files, &o, err);
    if (rc < 0)
        return rc;
    const cf_io_info *info = cf_fetch_io_info(s->fetch);
    snprintf(b->engine, sizeof b->engine, "%s", info->engine);
    if (registered && info->notice[0])
        snprintf(b->notice, sizeof b->notice, "%s", info->notice);
    for (uint32_t i = 0; i < s->n_reqs; i++)
        s->reqs[i] = (cf_fetch_req){.runs = &s->runs[i],
                                    .n_runs = 1,
                                    .slab = pages->data + i * c->record_bytes,
                                    .region = registered ? 0 : -1,
                                    .done = record_arrived,
                                    .user = s};
    for (c->n = 0; c->n < b->samples; c->n++)
        if ((rc = sample_take(s, files, ns, &c->samples[c->n], err)) < 0)
            break;
    c->median = cf_bench_median(c->samples, c->n);
    cf_fetch_close(&s->fetch);
    return rc;
}

static int io_check(cf_bench_io *b, uint64_t *largest, cf_err *err)
{
    *largest = 0;
    for (uint32_t i = 0; i < b->n_sizes; i++) {
        if (b->sizes[i] % b->align || b->sizes[i] == 0)
            return CF_FAIL(err, -EINVAL,
                           "a record size of %" PRIu64 " is not a multiple of the alignment of %s, "
                           "%u bytes",
                           b->sizes[i], b->path, b->align);
        *largest = b->sizes[i] > *largest ? b->sizes[i] : *largest;
    }
    uint64_t least = CF_BENCH_FILE_BLOCKS * cf_max_u64(*largest, CF_BENCH_BLOCK);
    if (b->file_bytes < least)
        return CF_FAIL(err, CF_ELIMIT,
                       "%s has %" PRIu64 " bytes, at least %" PRIu64 " are needed: %d of the "
                       "largest record (--sizes chooses smaller ones)",
                       b->path, b->file_bytes, least, (int)CF_BENCH_FILE_BLOCKS);
    return 0;
}

static void cells_list(cf_bench_io *b, bool direct)
{
    b->n_cells = 0;
    for (uint32_t mode = direct ? 0 : 2; mode < CF_BENCH_MODES; mode++)
        for (uint32_t i = 0; i < b->n_sizes; i++)
            for (uint32_t j = 0; j < b->n_depths; j++)
                b->cells[b->n_cells++] = (cf_bench_cell){
                    .mode = mode, .record_bytes = b->sizes[i], .depth = b->depths[j]};
}

/* All cells, buffered ones on files[1]. `until_ns`: no cell begins later. */
static int cells_measure(cf_bench_io *b, const cf_files *files, uint64_t until_ns, cf_err *err)
{
    cf_pages pages = {0};
    uint64_t most = 0;
    int rc = 0;
    sample *s = calloc(1, sizeof *s);
    if (!s)
        return CF_FAIL(err, -ENOMEM, "out of memory for %d requests", (int)CF_IO_DEPTH_MAX);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->idle, NULL);
    for (uint32_t i = 0; i < b->n_cells; i++)
        most = cf_max_u64(most, cell_reqs(b->cells[i].record_bytes, b->cells[i].depth) *
                                    b->cells[i].record_bytes);
    CF_TRY(cf_pages_init(&pages, most, NULL, CF_POOL_HOST, "bench", err));
    memset(pages.data, 1, pages.bytes);
    for (uint32_t i = 0; i < b->n_cells; i++) {
        uint64_t now = cf_clock_ns();
        if (now >= until_ns)
            break;
        /* What is left is shared anew: cells that took longer shorten the others. A quarter is for
         * opening, dropping pages and the last reads. */
        uint64_t ns = (until_ns - now) / ((uint64_t)(b->n_cells - i) * b->samples) / 4 * 3;
        const cf_files *f = &files[b->cells[i].mode & 2 ? 1 : 0];
        CF_TRY(cell_measure(b, &b->cells[i], s, f, &pages, ns, err));
        if (b->progress)
            b->progress(b->progress_user, i + 1, b->n_cells);
    }
fail:
    cf_pages_finish(&pages);
    pthread_cond_destroy(&s->idle);
    pthread_mutex_destroy(&s->lock);
    free(s);
    return rc;
}

int cf_bench_io_run(cf_bench_io *b, cf_err *err)
{
    cf_files files[2] = {{0}, {0}};
    uint64_t largest;
    cf_err ring = {0};
    int rc = cf_files_open(&files[0], &b->path, 1, true, err);
    if (rc < 0)
        return rc;
    b->file_bytes = files[0].list[0].bytes;
    b->align = files[0].align;
    snprintf(b->direct_why, sizeof b->direct_why, "%s", files[0].direct_why);
    CF_TRY(io_check(b, &largest, err));
    CF_TRY(cf_files_open(&files[1], &b->path, 1, false, err));
    rc = cf_bench_ceiling_measure(&b->ceiling, b->path, b->seconds * 0.08, &ring);
    if (rc == -ENOSYS)
        snprintf(b->ceiling_why, sizeof b->ceiling_why, "%.250s", ring.msg);
    else if (rc < 0)
        CF_TRY(CF_FAIL(err, rc, "%s", ring.msg));
    cells_list(b, files[0].direct);
    /* From here on, whatever the ceiling took: a busy machine still measures some. */
    rc = cells_measure(b, files, cf_clock_ns() + (uint64_t)(b->seconds * 0.92e9), err);
fail:
    cf_files_close(&files[0]);
    cf_files_close(&files[1]);
    return rc;
}
