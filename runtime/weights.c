/* Resident weights: see weights.h. */
#include "runtime/weights.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/formats.h"
#include "runtime/base/align.h"

enum { BLOCK_BYTES = 256 << 20, MAX_LANES = 8, CHUNK_ALIGN = 64 };

static uint64_t scales_bytes(const cf_weight_def *d)
{
    return cf_scale_def_bytes(&d->scale, d->rows, d->cols);
}

/* Outer scales follow the codes; of a streamed matrix only they are here. */
static uint64_t scales_place(const cf_weight_def *d, bool streamed)
{
    return streamed ? 0 : cf_align_up(cf_weight_code_bytes(d), CF_WEIGHT_ALIGN);
}

/* Where every weight lies, in order: its block and the place in it (offs and blocks may be NULL);
 * returns the number of blocks and leaves their sizes in *block_bytes (which may be NULL). */
static uint32_t weights_pack(const cf_model *model, const uint8_t *streamed, uint64_t max_alloc,
                             uint64_t *offs, uint32_t *blocks, uint64_t *block_bytes)
{
    uint64_t limit = max_alloc && max_alloc < BLOCK_BYTES ? max_alloc : BLOCK_BYTES;
    uint32_t block = 0;
    uint64_t used = 0;
    for (uint32_t i = 0; i < model->n_weights; i++) {
        const cf_weight_def *d = &model->weights[i];
        uint64_t bytes = scales_place(d, streamed && streamed[i]) +
                         cf_align_up(scales_bytes(d), CF_WEIGHT_ALIGN);
        if (!bytes)
            continue;
        if (used && used + bytes > limit) {
            if (block_bytes)
                block_bytes[block] = used;
            block++;
            used = 0;
        }
        if (offs) {
            offs[i] = used;
            blocks[i] = block;
        }
        used += bytes;
    }
    if (block_bytes)
        block_bytes[block] = used;
    return block + 1;
}

uint64_t cf_weights_bytes(const cf_model *model, const uint8_t *streamed,
                          uint64_t max_alloc_bytes)
{
    uint64_t *sizes = calloc(model->n_weights + 1, sizeof *sizes);
    if (!sizes)
        return UINT64_MAX / 4; /* refuses the plan; the allocation itself would fail too */
    uint32_t n = weights_pack(model, streamed, max_alloc_bytes, NULL, NULL, sizes);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += cf_align_up(sizes[i], 4096);
    free(sizes);
    return sum;
}

int cf_weights_create(cf_weights *weights, const cf_model *model, const uint8_t *streamed,
                      cf_gpu *gpu, cf_err *err)
{
    int rc = 0;
    uint32_t n = model->n_weights;
    *weights = (cf_weights){.streamed = streamed};
    uint64_t *offs = calloc(n + 1, sizeof *offs), *sizes = calloc(n + 1, sizeof *sizes);
    uint32_t *blocks = calloc(n + 1, sizeof *blocks);
    weights->list = calloc(n + 1, sizeof *weights->list);
    weights->blocks = calloc(n + 1, sizeof(cf_gpu_buf *));
    if (!offs || !sizes || !blocks || !weights->list || !weights->blocks) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for %u resident weights", n);
        goto fail;
    }
    weights->n_blocks =
        weights_pack(model, streamed, cf_gpu_get_info(gpu)->max_alloc_bytes, offs, blocks, sizes);
    for (uint32_t i = 0; i < weights->n_blocks && sizes[i]; i++)
        CF_TRY(cf_gpu_buf_create(gpu, CF_BUF_DEVICE, cf_align_up(sizes[i], 4096),
                                 "resident weights", &weights->blocks[i], err));
    for (uint32_t i = 0; i < n; i++) {
        const cf_weight_def *d = &model->weights[i];
        bool gone = streamed && streamed[i];
        weights->list[i] = (cf_weight){.dtype = d->dtype, .rows = d->rows, .cols = d->cols};
        if (!gone)
            weights->list[i].span =
                (cf_span){weights->blocks[blocks[i]], offs[i], cf_weight_code_bytes(d)};
        if (d->scale.rows) {
            weights->list[i].scales = (cf_span){weights->blocks[blocks[i]],
                                                offs[i] + scales_place(d, gone), scales_bytes(d)};
            weights->list[i].scale_format = d->scale.format;
            weights->list[i].scale_rows = d->scale.rows;
            weights->list[i].scale_cols = d->scale.cols;
        }
    }
fail:
    free(offs);
    free(sizes);
    free(blocks);
    if (rc < 0)
        cf_weights_finish(weights);
    return rc;
}

void cf_weights_finish(cf_weights *weights)
{
    for (uint32_t i = 0; weights->blocks && i < weights->n_blocks; i++)
        cf_gpu_buf_destroy(&weights->blocks[i]);
    free(weights->blocks);
    free(weights->list);
    *weights = (cf_weights){0};
}

/* ---- loading ---- */

/* One landing place and what is being read into it. */
struct lane {
    uint32_t landing, weight;
    bool scales; /* of the weight; else its codes */
    uint64_t dst_off, src_off, bytes;
    cf_run run;
    cf_fetch_req req;
    struct loader *loader;
    cf_gpu_point copied;
    bool busy, done; /* done is guarded by the loader's lock */
};

struct loader {
    cf_weights *weights;
    const cf_model *model;
    cf_gpu *gpu;
    cf_fetch *fetch;
    const cf_slots *slots;
    uint32_t align, n_lanes;
    uint64_t landing_bytes;
    uint32_t weight; /* next chunk to ask for */
    bool scales;
    uint64_t off;
    struct lane lanes[MAX_LANES];
    uint8_t cut[CF_FORMAT_MAX_BLOCK_BYTES]; /* lane_check: a block of which the rest is to come */
    pthread_mutex_t lock;
    pthread_cond_t arrival;
};

static void lane_arrived(cf_fetch_req *req, void *user)
{
    struct lane *l = user;
    (void)req;
    pthread_mutex_lock(&l->loader->lock);
    l->done = true;
    pthread_cond_signal(&l->loader->arrival);
    pthread_mutex_unlock(&l->loader->lock);
}

/* Asks for the next chunk; false when all weights were asked for. */
static bool lane_ask(struct loader *ld, struct lane *l)
{
    const uint8_t *streamed = ld->weights->streamed;
    while (streamed && !ld->scales && ld->weight < ld->model->n_weights && streamed[ld->weight]) {
        ld->scales = ld->model->weights[ld->weight].scale.rows > 0;
        ld->weight += !ld->scales;
    }
    if (ld->weight == ld->model->n_weights)
        return false;
    const cf_weight_def *d = &ld->model->weights[ld->weight];
    const cf_extent *extent = ld->scales ? &d->scale_extent : &d->extent;
    uint64_t total = ld->scales ? scales_bytes(d) : cf_weight_code_bytes(d);
    uint64_t at = extent->off + ld->off;
    uint64_t begin = cf_align_down(at, ld->align);
    uint64_t bytes = total - ld->off, room = ld->landing_bytes - (at - begin);
    if (bytes > room)
        bytes = cf_align_down(room, CHUNK_ALIGN);
    l->weight = ld->weight;
    l->scales = ld->scales;
    l->dst_off = ld->off;
    l->src_off = at - begin;
    l->bytes = bytes;
    l->run = (cf_run){.file = extent->file, .file_off = begin,
                      .bytes = cf_align_up(at + bytes, ld->align) - begin};
    l->req = (cf_fetch_req){.runs = &l->run, .n_runs = 1,
                            .slab = cf_landing_host(ld->slots, l->landing),
                            .region = (int32_t)cf_landing_region(ld->slots, l->landing),
                            .done = lane_arrived, .user = l};
    l->busy = true;
    l->done = false;
    cf_gpu_host_write(cf_landing_span(ld->slots, l->landing));
    cf_fetch_req *req = &l->req;
    cf_fetch_submit(ld->fetch, &req, 1, CF_FETCH_DEMAND);
    ld->off += bytes;
    if (ld->off == total) {
        ld->scales = !ld->scales && d->scale.rows;
        ld->weight += !ld->scales;
        ld->off = 0;
    }
    return true;
}

/* Checks the chunks of a weight in order: whole blocks, those cut between two chunks through a
 * copy. The rows of a weight follow each other, so its blocks are one list. */
static int lane_check(struct loader *ld, const struct lane *l, cf_err *err)
{
    const cf_weight_def *d = &ld->model->weights[l->weight];
    if (l->req.status < 0)
        return CF_FAIL(err, l->req.status, "%s", l->req.err.msg);
    cf_format format = l->scales ? d->scale.format : d->dtype;
    if (!d->must_be_finite)
        return 0;
    const cf_format_info *f = &cf_formats[format];
    const uint8_t *bytes = l->req.slab + l->src_off;
    uint64_t cut = l->dst_off % f->block_bytes, block = l->dst_off / f->block_bytes, used = 0;
    uint64_t bad = 0, n = 0;
    if (cut) {
        used = cf_min_u64(f->block_bytes - cut, l->bytes);
        memcpy(ld->cut + cut, bytes, used);
        n = cut + used == f->block_bytes ? f->block_values : 0;
        bad = cf_ref_format_not_finite(format, ld->cut, n);
    }
    if (bad == n) {
        uint64_t whole = (l->bytes - used) / f->block_bytes, left = l->bytes - used;
        block += n / f->block_values;
        n = whole * f->block_values;
        bad = cf_ref_format_not_finite(format, bytes + used, n);
        left -= whole * f->block_bytes;
        if (left)
            memcpy(ld->cut, bytes + l->bytes - left, left);
    }
    if (bad < n)
        return CF_FAIL(err, CF_EFORMAT, "tensor %s: %s %llu is not a finite number", d->name,
                       l->scales ? "outer scale" : "element",
                       (unsigned long long)(block * f->block_values + bad));
    return 0;
}

static int lane_copy(struct loader *ld, struct lane *l, cf_err *err)
{
    cf_span from = cf_landing_span(ld->slots, l->landing);
    const cf_weight *w = &ld->weights->list[l->weight];
    cf_span to = l->scales ? w->scales : w->span;
    cf_landing_publish(ld->slots, l->landing, l->src_off, l->bytes);
    cf_gpu_copy(ld->gpu, CF_STREAM_TRANSFER, cf_span_sub(to, l->dst_off, l->bytes),
                cf_span_sub(from, l->src_off, l->bytes));
    l->copied.stream = CF_STREAM_TRANSFER;
    int rc = cf_gpu_submit(ld->gpu, CF_STREAM_TRANSFER, NULL, 0, &l->copied.value, err);
    return rc < 0 ? rc : cf_gpu_wait(ld->gpu, l->copied, err);
}

static void lane_await(struct loader *ld, const struct lane *l)
{
    pthread_mutex_lock(&ld->lock);
    while (!l->done)
        pthread_cond_wait(&ld->arrival, &ld->lock);
    pthread_mutex_unlock(&ld->lock);
}

int cf_weights_load(cf_weights *weights, const cf_model *model, cf_gpu *gpu, cf_fetch *fetch,
                    uint32_t align, const cf_slots *slots, cf_progress_fn *progress, void *user,
                    cf_err *err)
{
    struct loader ld = {.weights = weights, .model = model, .gpu = gpu, .fetch = fetch,
                        .slots = slots, .align = align};
    ld.landing_bytes = slots->shape.in_place ? slots->shape.slot_bytes : slots->shape.slab_bytes;
    ld.n_lanes = (uint32_t)cf_min_u64(cf_landing_count(slots), MAX_LANES);
    pthread_mutex_init(&ld.lock, NULL);
    pthread_cond_init(&ld.arrival, NULL);
    uint64_t total = cf_model_resident_bytes(model), loaded = 0;
    int rc = 0;
    for (uint32_t i = 0; i < model->n_weights; i++)
        if (weights->streamed && weights->streamed[i])
            total -= cf_weight_code_bytes(&model->weights[i]);
    for (uint32_t i = 0; i < ld.n_lanes; i++) {
        ld.lanes[i].loader = &ld;
        ld.lanes[i].landing = i;
        lane_ask(&ld, &ld.lanes[i]);
    }
    /* Lanes are served in turn, which is the order of their chunks. */
    for (uint32_t i = 0; ld.lanes[i].busy; i = (i + 1) % ld.n_lanes) {
        struct lane *l = &ld.lanes[i];
        lane_await(&ld, l);
        l->busy = false;
        if (rc == 0)
            rc = lane_check(&ld, l, err);
        if (rc == 0)
            rc = lane_copy(&ld, l, err);
        loaded += l->bytes;
        if (rc == 0)
            lane_ask(&ld, l);
        if (progress && rc == 0)
            progress(user, "loading resident weights", loaded, total);
    }
    pthread_cond_destroy(&ld.arrival);
    pthread_mutex_destroy(&ld.lock);
    return rc;
}
