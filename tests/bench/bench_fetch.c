/* Records through the fetcher, cold, as fast as they come: for tests/bench/fetch.sh, which runs fio
 * beside it over the same file, with the same read size and depth.
 *
 *     bench_fetch FILE RECORD_BYTES SECONDS [IN_FLIGHT]
 *
 * Prints megabytes per second. Records lie one behind the other and are visited far from one
 * another; IN_FLIGHT of them, 8 unless given, are asked for at a time, so that the queue stays full
 * (64 reads of 512 KiB). O_DIRECT, registered slabs. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "runtime/base/clock.h"
#include "runtime/base/pages.h"
#include "storage/fetch.h"

enum { MOST_IN_FLIGHT = 64 };

/* The loop's state: the I/O thread's from the first submit on; there a record that is done asks for
 * the next one. */
static struct loop {
    cf_fetch *fetch;
    uint64_t n_records, stride, at, record_bytes, bytes, end_ns;
    uint32_t flying;
    int status;
    cf_fetch_req reqs[MOST_IN_FLIGHT];
    cf_run runs[MOST_IN_FLIGHT];
    atomic_bool over;
} loop;

/* The next record for request i. */
static void record_choose(struct loop *l, uint32_t i)
{
    l->at = (l->at + l->stride) % l->n_records;
    l->runs[i].file_off = l->at * l->record_bytes;
}

static void on_done(cf_fetch_req *req, void *user)
{
    struct loop *l = user;
    if (req->status < 0)
        l->status = req->status;
    else
        l->bytes += l->record_bytes;
    if (l->status == 0 && cf_clock_ns() < l->end_ns) {
        record_choose(l, (uint32_t)(req - l->reqs));
        cf_fetch_submit(l->fetch, &req, 1, CF_FETCH_DEMAND);
    } else if (--l->flying == 0) {
        atomic_store(&l->over, true);
    }
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
    return b ? gcd(b, a % b) : a;
}

/* All of it in whole records, far apart, each once before any twice. */
static void records_spread(struct loop *l, uint64_t file_bytes)
{
    l->n_records = file_bytes / l->record_bytes;
    l->stride = (uint64_t)((double)l->n_records * 0.6180339887) + 1;
    while (gcd(l->stride, l->n_records) != 1)
        l->stride++;
}

/* Opens everything for n records in flight. */
static int loop_open(struct loop *l, const char *path, uint32_t n, cf_files *files, cf_pages *pages,
                     cf_err *err)
{
    int rc = cf_files_open(files, &path, 1, true, err);
    if (rc == 0 && files->list[0].bytes < 2 * n * l->record_bytes)
        rc = CF_FAIL(err, -EINVAL, "%s is too small for %u records", path, 2 * n);
    if (rc == 0)
        rc = cf_pages_init(pages, n * l->record_bytes, NULL, CF_POOL_HOST, "records", err);
    if (rc < 0)
        return rc;
    if (!files->direct)
        fprintf(stderr, "bench_fetch: not direct: %s\n", files->direct_why);
    records_spread(l, files->list[0].bytes);
    cf_io_region region = {pages->data, n * l->record_bytes};
    cf_fetch_options o = {.io = {.kind = CF_IO_URING, .regions = &region, .n_regions = 1}};
    return cf_fetch_open(&l->fetch, files, &o, err);
}

static void loop_run(struct loop *l, uint32_t n, const cf_pages *pages)
{
    cf_fetch_req *all[MOST_IN_FLIGHT];
    for (uint32_t i = 0; i < n; i++) {
        l->runs[i] = (cf_run){.bytes = l->record_bytes};
        l->reqs[i] = (cf_fetch_req){.runs = &l->runs[i],
                                    .n_runs = 1,
                                    .slab = pages->data + i * l->record_bytes,
                                    .done = on_done,
                                    .user = l};
        record_choose(l, i);
        all[i] = &l->reqs[i];
    }
    l->flying = n;
    cf_fetch_submit(l->fetch, all, n, CF_FETCH_DEMAND);
    while (!atomic_load(&l->over))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

int main(int argc, char **argv)
{
    struct loop *l = &loop;
    cf_err err = {0};
    cf_files files = {0};
    cf_pages pages = {0};
    uint32_t n = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 8;
    l->record_bytes = argc > 3 ? strtoull(argv[2], NULL, 10) : 0;
    if (n == 0 || n > MOST_IN_FLIGHT || l->record_bytes == 0 || l->record_bytes % 4096) {
        fprintf(stderr, "usage: bench_fetch FILE RECORD_BYTES SECONDS [IN_FLIGHT]\n");
        return 2;
    }
    if (loop_open(l, argv[1], n, &files, &pages, &err) == 0) {
        uint64_t begin = cf_clock_ns();
        l->end_ns = begin + (uint64_t)(strtod(argv[3], NULL) * 1e9);
        loop_run(l, n, &pages);
        printf("%.1f\n", (double)l->bytes / cf_seconds(cf_clock_ns() - begin) / 1e6);
        if (l->status < 0)
            CF_FAIL(&err, l->status, "a read of %s failed", argv[1]);
    }
    if (err.msg[0])
        fprintf(stderr, "bench_fetch: %s\n", err.msg);
    cf_fetch_close(&l->fetch);
    cf_files_close(&files);
    cf_pages_finish(&pages);
    return err.msg[0] != 0;
}
