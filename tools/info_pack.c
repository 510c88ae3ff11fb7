/* How a model is stored: see info_pack.h.
 *
 * Compression pays where a layer's records are there sooner. What a token misses in a layer is
 * asked for together, and the next layer's only after it: the drive brings fewer bytes and the
 * workers unpack beside it, but the last record is unpacked, by one of them, when the drive has
 * nothing left to do. The fewer records a layer misses, the more that counts. */
#include "tools/info_pack.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/machine.h"
#include "runtime/base/rng.h"
#include "runtime/unpack.h"
#include "storage/files.h"
#include "tools/gather.h"
#include "tools/text_io.h"
#include "tools/tune.h"

enum { SAMPLES = 16, MOST_BYTES = 512 << 20 };
#define TIME_NS 300000000ull

/* ---- formats ---- */

static void formats_text(uint64_t bytes[CF_FORMAT_COUNT], char *buf, size_t size)
{
    size_t at = 0;
    buf[0] = 0;
    for (;;) {
        int best = 0;
        for (int f = 1; f < CF_FORMAT_COUNT; f++)
            if (bytes[f] > bytes[best])
                best = f;
        if (!bytes[best] || at + 16 > size)
            return;
        bytes[best] = 0;
        at += (size_t)snprintf(buf + at, size - at, "%s%s", at ? ", " : "",
                               cf_format_name((cf_format)best));
    }
}

static void formats_find(cf_info_pack *p, const cf_model *m)
{
    uint64_t experts[CF_FORMAT_COUNT] = {0}, others[CF_FORMAT_COUNT] = {0};
    for (uint32_t i = 0; i < m->n_moe; i++)
        for (int k = 0; k < CF_EXPERT_PIECES; k++) {
            const cf_piece_def *d = &m->moe[i].pieces[k];
            experts[d->dtype] += m->moe[i].experts * (uint64_t)d->rows * d->cols;
        }
    for (uint32_t i = 0; i < m->n_weights; i++)
        others[m->weights[i].dtype] += (uint64_t)m->weights[i].rows * m->weights[i].cols;
    for (uint32_t i = 0; i < m->n_tables; i++)
        others[m->tables[i].dtype] += m->tables[i].rows * m->tables[i].cols;
    formats_text(experts, p->experts, sizeof p->experts);
    formats_text(others, p->others, sizeof p->others);
}

/* ---- how fast records unpack ---- */

typedef struct sample {
    cf_layout layout;
    uint8_t *slab, *stored;
    cf_unpack_job job;
} sample;

typedef struct gauge {
    sample samples[SAMPLES];
    uint32_t n;
    cf_gather jobs;
} gauge;

static void sample_done(cf_unpack_job *job, void *user)
{
    cf_gather_done(&((gauge *)user)->jobs, job->status, &job->err);
}

static int sample_read(gauge *g, sample *s, const cf_model *m, const cf_files *files, cf_rng *rng,
                       cf_err *err)
{
    const cf_moe_def *moe = &m->moe[cf_rng_below(rng, m->n_moe)];
    cf_moe_layout(moe, (uint32_t)cf_rng_below(rng, moe->experts), files->align, &s->layout);
    const cf_run *r = &s->layout.runs[0];
    s->slab = malloc(s->layout.bytes);
    s->stored = malloc(r->bytes);
    if (!s->slab || !s->stored)
        return CF_FAIL(err, -ENOMEM, "out of memory for a record");
    uint64_t want = s->layout.packed_off - r->slab_off + s->layout.packed_bytes;
    const cf_file *f = &files->list[r->file];
    int rc = cf_read_at(f->fd, f->path, r->file_off, s->stored, want, err);
    if (rc < 0)
        return rc;
    s->job = (cf_unpack_job){.layout = &s->layout, .slab = s->slab, .done = sample_done, .user = g};
    g->n++;
    return 0;
}

/* All samples once: unpacking consumes its input, which is put back first, outside the clock. */
static uint64_t round_run(gauge *g, cf_unpack *unpack)
{
    for (uint32_t i = 0; i < g->n; i++) {
        sample *s = &g->samples[i];
        uint64_t from = s->layout.packed_off - s->layout.runs[0].slab_off;
        memcpy(s->slab + s->layout.packed_off, s->stored + from, s->layout.packed_bytes);
    }
    uint64_t begin = cf_clock_ns();
    cf_gather_expect(&g->jobs, g->n);
    for (uint32_t i = 0; i < g->n; i++)
        cf_unpack_push(unpack, &g->samples[i].job);
    cf_gather_wait(&g->jobs);
    return cf_clock_ns() - begin;
}

/* Unpacked bytes per second of all samples by so many workers. */
static int rate_measure(gauge *g, uint32_t threads, const char *path, double *rate, cf_err *err)
{
    uint64_t bytes = 0, ns = 0;
    cf_unpack *unpack = NULL;
    int rc = cf_unpack_create(&unpack, threads, 0, err);
    while (rc == 0 && ns < TIME_NS) {
        ns += round_run(g, unpack);
        for (uint32_t i = 0; i < g->n; i++)
            bytes += g->samples[i].layout.unpacked_bytes;
        if (g->jobs.status < 0)
            rc = CF_FAIL(err, g->jobs.status, "%s: %s", path, g->jobs.err.msg);
    }
    if (rc == 0)
        *rate = (double)bytes / cf_seconds(ns);
    cf_unpack_destroy(&unpack);
    return rc;
}

static int unpack_measure(const cf_model *m, const cf_files *files, cf_info_pack *p, cf_err *err)
{
    int rc = 0;
    uint64_t held = 0;
    cf_rng rng = {.state = 1};
    gauge *g = calloc(1, sizeof *g);
    if (!g)
        return CF_FAIL(err, -ENOMEM, "out of memory for a measurement");
    cf_gather_init(&g->jobs);
    while (g->n < SAMPLES && held < MOST_BYTES) {
        CF_TRY(sample_read(g, &g->samples[g->n], m, files, &rng, err));
        held += g->samples[g->n - 1].layout.bytes;
    }
    CF_TRY(rate_measure(g, 0, cf_model_path(m), &p->unpack, err));
    CF_TRY(rate_measure(g, 1, cf_model_path(m), &p->unpack_one, err));
fail:
    for (uint32_t i = 0; i < SAMPLES; i++) {
        free(g->samples[i].slab);
        free(g->samples[i].stored);
    }
    cf_gather_finish(&g->jobs);
    free(g);
    return rc;
}

/* ---- the whole ---- */

/* Bytes per second, once unpacked, at which the records of a layer are there. */
static double arrival(const cf_info_pack *p)
{
    double n = p->n_group; /* below, seconds for a byte of each */
    double in_turn = n * p->ratio / p->drive + 1 / p->unpack_one, by_workers = n / p->unpack;
    return n / (in_turn > by_workers ? in_turn : by_workers);
}

static int zstd_measure(cf_info_pack *p, const cf_model *m, cf_err *err)
{
    uint64_t unpacked = 0;
    const char *path = cf_catalogue_path(m->cat, 0);
    cf_files files = {0};
    for (uint32_t i = 0; i < m->n_moe; i++) {
        const cf_moe_def *moe = &m->moe[i];
        uint32_t most = moe->top_k < moe->experts ? moe->top_k : moe->experts;
        unpacked += moe->experts * cf_moe_record_bytes(moe);
        p->n_group = most > p->n_group ? most : p->n_group;
    }
    if (unpacked)
        p->ratio = (double)m->pack->stored_record_bytes / (double)unpacked;
    int rc = cf_files_open(&files, &path, 1, false, err);
    if (rc == 0)
        rc = unpack_measure(m, &files, p, err);
    cf_files_close(&files);
    if (rc == 0)
        rc = cf_tune_drive_measure(m, &p->drive, p->why, sizeof p->why, err);
    p->plain = p->drive;
    if (p->drive > 0)
        p->compressed = arrival(p);
    return rc;
}

int cf_info_pack_make(cf_info_pack *p, const cf_model *m, cf_err *err)
{
    *p = (cf_info_pack){.ratio = 1};
    p->threads = (uint32_t)cf_machine_processors("");
    formats_find(p, m);
    for (uint32_t i = 0; i < m->n_moe; i++)
        p->slices = m->moe[i].slices.n > p->slices ? m->moe[i].slices.n : p->slices;
    if (m->pack) {
        p->n_sums = m->pack->sums.n_list;
        p->n_records = m->pack->sums.n_records;
        p->zstd = m->pack->layers != NULL && m->n_moe;
    }
    return p->zstd ? zstd_measure(p, m, err) : 0;
}

/* What differs by less is the noise of two short measurements. */
static int verdict(const cf_info_pack *p)
{
    return p->compressed > p->plain * 1.05 ? 1 : p->compressed < p->plain * 0.95 ? -1 : 0;
}

void cf_info_pack_rows(const cf_info_pack *p, cf_table *t)
{
    cf_table_cell(t, "formats");
    if (p->experts[0])
        cf_table_cell(t, "experts %s; the rest %s", p->experts, p->others);
    else
        cf_table_cell(t, "%s", p->others);
    cf_table_end_row(t);
    if (p->slices) {
        cf_table_cell(t, "slices");
        cf_table_cell(t,
                      "each matrix of an expert is in %u of them, joined whenever it is read; "
                      "catflap pack joins them for good",
                      p->slices);
        cf_table_end_row(t);
    }
    cf_table_cell(t, "integrity");
    if (p->n_sums)
        cf_table_cell(t,
                      "checksums of %" PRIu64 " records and %" PRIu64 " pages, held against "
                      "every read",
                      p->n_records, p->n_sums - p->n_records);
    else
        cf_table_cell(t, "no checksums");
    cf_table_end_row(t);
    if (!p->zstd)
        return;
    static const char *const verdicts[] = {"does not pay here", "makes no difference here",
                                           "pays here"};
    cf_table_cell(t, "zstd");
    if (p->drive <= 0)
        cf_table_cell(t,
                      "records are stored in %.1f %% of their bytes; %.2f GB/s unpacked by %u "
                      "threads, %.2f by one; the drive was not measured: %s",
                      100 * p->ratio, p->unpack / 1e9, p->threads, p->unpack_one / 1e9, p->why);
    else
        cf_table_cell(t,
                      "%s: the %u records of a layer that a token misses at most are there at "
                      "%.2f GB/s, uncompressed at %.2f (stored in %.1f %%, drive %.2f GB/s, "
                      "%u threads unpack %.2f GB/s, one %.2f)",
                      verdicts[verdict(p) + 1], p->n_group, p->compressed / 1e9, p->plain / 1e9,
                      100 * p->ratio, p->drive / 1e9, p->threads, p->unpack / 1e9,
                      p->unpack_one / 1e9);
    cf_table_end_row(t);
}

json_t *cf_info_pack_json(const cf_info_pack *p)
{
    json_t *value =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:b}", "expert_formats", p->experts, "other_formats",
                  p->others, "slices", (json_int_t)p->slices, "checksums", (json_int_t)p->n_sums,
                  "record_checksums", (json_int_t)p->n_records, "zstd", p->zstd);
    if (p->zstd)
        json_object_update_new(
            value, json_pack("{s:f, s:f, s:f, s:f, s:i, s:f, s:o}", "ratio", p->ratio,
                             "drive_bytes_per_s", p->drive, "unpack_bytes_per_s", p->unpack,
                             "unpack_one_bytes_per_s", p->unpack_one, "records_together",
                             (int)p->n_group, "arrival_bytes_per_s", p->compressed, "pays",
                             p->drive > 0 ? json_boolean(verdict(p) > 0) : json_null()));
    return value;
}
