/* The work of pack: see pack_work.h.
 *
 * Parts are numbered in the order of the file. A worker takes the next number together with its
 * slot, number modulo the slots, and waits until the slot was given back; so at most `n_slots`
 * results exist. The first failure, in the order of the file, is what the caller learns.
 *
 * Threads: `lock` guards the cursor, the slots' states and `stop`; a slot's data belongs to its
 * worker while it is TAKEN, to the caller while it is DONE. */
#include "tools/pack_work.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "runtime/base/align.h"
#include "tools/pack_source.h"
#include "tools/text_io.h"

enum { SLICE_BYTES = 4 << 20, SLOTS_MORE = 2 };

typedef enum { FREE, TAKEN, DONE } slot_state;

struct buffer {
    uint8_t *data;
    uint64_t size;
};

struct slot {
    slot_state state;
    cf_pack_part part;
    struct buffer out;
    int status;
    cf_err err;
};

/* What one worker computes with. */
struct scratch {
    struct buffer extents[CF_RECORD_EXTENTS], unpacked, turn, image, tile;
    ZSTD_CCtx *compress;
    ZSTD_DCtx *decompress;
};

struct worker {
    struct cf_pack_work *work;
    pthread_t thread;
    struct scratch scratch;
};

/* What comes next: rows of a tensor, or a record. */
struct cursor {
    uint64_t number;
    uint32_t tensor, layer, expert;
    uint64_t row;
};

struct cf_pack_work {
    const cf_pack_plan *plan;
    int *fds;
    uint32_t n_fds;
    struct worker *workers;
    uint32_t n_workers;
    struct slot *slots;
    uint32_t n_slots;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;
    struct cursor cursor;
    uint64_t next; /* the caller's */
    uint64_t n_parts;
};

static int buffer_room(struct buffer *b, uint64_t bytes, cf_err *err)
{
    if (bytes <= b->size)
        return 0;
    free(b->data);
    b->size = 0;
    b->data = malloc(bytes);
    if (!b->data)
        return CF_FAIL(err, -ENOMEM, "out of memory for %" PRIu64 " bytes", bytes);
    b->size = bytes;
    return 0;
}

/* ---- reading ---- */

static int window_read(const cf_pack_work *w, uint32_t file, uint64_t off, uint8_t *dst,
                       uint64_t bytes, cf_err *err)
{
    return cf_read_at(w->fds[file], cf_catalogue_path(w->plan->model->cat, file), off, dst, bytes,
                      err);
}

/* The bytes of an extent; *at is valid until the buffer is used again. Of a pack whole pages are
 * read, and checked. */
static int extent_read(const cf_pack_work *w, const cf_extent *e, struct buffer *buf,
                       const uint8_t **at, cf_err *err)
{
    const cf_pack *pack = w->plan->model->pack;
    uint64_t begin = pack ? cf_align_down(e->off, CF_SUM_PAGE) : e->off;
    uint64_t end = pack ? cf_align_up(e->off + e->bytes, CF_SUM_PAGE) : e->off + e->bytes;
    int rc = buffer_room(buf, end - begin, err);
    if (rc == 0)
        rc = window_read(w, e->file, begin, buf->data, end - begin, err);
    if (rc == 0 && pack)
        rc = cf_sums_check(&pack->sums, e->file, cf_catalogue_path(w->plan->model->cat, e->file),
                           begin, buf->data, end - begin, true, err);
    /* Read once: it should not push anything else out of the page cache. */
    posix_fadvise(w->fds[e->file], (off_t)begin, (off_t)(end - begin), POSIX_FADV_DONTNEED);
    *at = buf->data + (e->off - begin);
    return rc;
}

/* A record in slices: each is read to where it belongs. */
static int slices_read(const cf_pack_work *w, struct scratch *s, const cf_moe_def *moe,
                       const cf_extent *e, const uint8_t *at[CF_RECORD_EXTENTS], cf_err *err)
{
    const cf_slices *cut = &moe->slices;
    int rc = 0;
    CF_TRY(buffer_room(&s->unpacked, moe->unpacked_bytes, err));
    CF_TRY(buffer_room(&s->turn, cf_slices_scratch(cut), err));
    for (uint32_t i = 0; i < cut->n_cuts; i++) {
        uint8_t *to = s->unpacked.data + moe->unpacked[i].off;
        at[i] = to;
        for (uint32_t k = 0; k < cut->n; k++, e++, to += cut->cuts[i].bytes) {
            CF_TRY(window_read(w, e->file, e->off, to, e->bytes, err));
            posix_fadvise(w->fds[e->file], (off_t)e->off, (off_t)e->bytes, POSIX_FADV_DONTNEED);
        }
        cf_slices_turn(&cut->cuts[i], cut->n, s->unpacked.data + moe->unpacked[i].off,
                       s->turn.data);
    }
fail:
    return rc;
}

/* Where the bytes of each extent of a record are, read and unpacked. A record of a pack lies in one
 * piece and has one sum, so it is read in one go. */
static int record_read(const cf_pack_work *w, struct scratch *s, const cf_moe_def *moe,
                       uint32_t expert, const uint8_t *at[CF_RECORD_EXTENTS], cf_err *err)
{
    const cf_extent *e = &moe->extents[(size_t)expert * moe->n_extents];
    int rc = 0;
    if (moe->slices.n)
        return slices_read(w, s, moe, e, at, err);
    if (w->plan->model->pack && moe->n_extents) {
        const uint8_t *base;
        const cf_extent *last = &e[moe->n_extents - 1];
        cf_extent all = {e->file, e->off, last->off + last->bytes - e->off};
        rc = extent_read(w, &all, &s->extents[0], &base, err);
        for (uint32_t i = 0; i < moe->n_extents; i++)
            at[i] = base + (e[i].off - e->off);
    } else {
        for (uint32_t i = 0; i < moe->n_extents && rc == 0; i++)
            rc = extent_read(w, &e[i], &s->extents[i], &at[i], err);
    }
    if (rc < 0 || !moe->unpacked_bytes)
        return rc;
    if ((rc = buffer_room(&s->unpacked, moe->unpacked_bytes, err)) < 0)
        return rc;
    size_t n = ZSTD_decompressDCtx(s->decompress, s->unpacked.data, moe->unpacked_bytes, at[0],
                                   e[0].bytes);
    if (n != moe->unpacked_bytes)
        return CF_FAIL(err, CF_EFORMAT,
                       "layer %u, expert %u: the compressed record does not unpack", moe->layer,
                       expert);
    for (uint32_t i = 0; i < moe->n_unpacked; i++)
        at[i] = s->unpacked.data + moe->unpacked[i].off;
    return 0;
}

/* ---- parts ---- */

/* Of rows [row, row + rows). */
static cf_extent scales_of(const cf_pack_tensor *t, uint64_t row, uint64_t rows)
{
    const cf_scale_def *s = &t->def.scale;
    uint64_t row_bytes = cf_format_row_bytes(s->format, cf_ceil_div(t->cols, s->cols));
    cf_extent e = t->scales->extent;
    e.off += row / s->rows * row_bytes;
    e.bytes = cf_ceil_div(rows, s->rows) * row_bytes;
    return e;
}

static int tensor_part(const cf_pack_work *w, struct scratch *s, struct slot *slot, uint64_t row,
                       uint64_t rows)
{
    const cf_pack_tensor *t = &w->plan->tensors[slot->part.tensor];
    uint64_t from_row = cf_format_row_bytes(t->def.dtype, t->cols);
    cf_extent e = t->from->extent, scales;
    e.off += row * from_row;
    e.bytes = rows * from_row;
    slot->part.bytes = rows * cf_format_row_bytes(t->format, t->cols);
    slot->part.source_bytes = e.bytes;
    slot->part.data = NULL;
    cf_pack_source source = {.def = t->def, .name = t->name};
    int rc = 0;
    source.def.rows = (uint32_t)rows;
    CF_TRY(extent_read(w, &e, &s->extents[0], &source.bytes, &slot->err));
    if (t->scales) { /* slices begin where rows of scales do */
        scales = scales_of(t, row, rows);
        slot->part.source_bytes += scales.bytes;
        CF_TRY(extent_read(w, &scales, &s->extents[1], &source.scales, &slot->err));
    }
    CF_TRY(buffer_room(&slot->out, slot->part.bytes, &slot->err));
    CF_TRY(buffer_room(&s->tile, CF_PACK_TILE_ROWS * t->cols * sizeof(float), &slot->err));
    CF_TRY(cf_pack_convert(&source, 0, rows, t->format, (float *)(void *)s->tile.data,
                           slot->out.data, &slot->err));
    slot->part.data = slot->out.data;
fail:
    return rc;
}

/* The pieces of an expert as they are in the pack, padding as zeros. */
static int image_make(const cf_pack_work *w, struct scratch *s, const struct slot *slot,
                      struct buffer *image, uint64_t room, cf_err *err)
{
    static const char *const names[CF_PACK_PIECES] = {"gate",      "up",      "down",
                                                      "gate bias", "up bias", "down bias"};
    const cf_pack_records *r = &w->plan->layers[slot->part.layer];
    const uint8_t *at[CF_RECORD_EXTENTS] = {NULL};
    int rc = 0;
    CF_TRY(record_read(w, s, r->moe, slot->part.expert, at, err));
    CF_TRY(buffer_room(image, room, err));
    memset(image->data, 0, room);
    for (uint32_t p = 0; p < CF_PACK_PIECES; p++) {
        const cf_piece_def *def = cf_pack_piece(r->moe, p);
        char name[80];
        if (!def)
            continue;
        snprintf(name, sizeof name, "layer %u, expert %u, %s", r->moe->layer, slot->part.expert,
                 names[p]);
        cf_pack_source source = {.def = *def, .name = name};
        source.bytes = at[source.def.extent];
        if (def->scale.rows)
            source.scales = at[source.def.scale_extent];
        CF_TRY(buffer_room(&s->tile, CF_PACK_TILE_ROWS * (uint64_t)source.def.cols * sizeof(float),
                           err));
        CF_TRY(cf_pack_convert(&source, 0, source.def.rows, r->formats[p],
                               (float *)(void *)s->tile.data, image->data + r->offs[p], err));
    }
fail:
    return rc;
}

static int record_part(const cf_pack_work *w, struct scratch *s, struct slot *slot)
{
    const cf_pack_records *r = &w->plan->layers[slot->part.layer];
    const cf_moe_def *moe = r->moe;
    bool zstd = w->plan->options.zstd;
    uint64_t bytes = r->image_bytes, room;
    int rc = 0;
    for (uint32_t i = 0; i < moe->n_extents; i++)
        slot->part.source_bytes +=
            moe->extents[(size_t)slot->part.expert * moe->n_extents + i].bytes;
    CF_TRY(image_make(w, s, slot, zstd ? &s->image : &slot->out, cf_align_up(bytes, CF_SUM_PAGE),
                      &slot->err));
    if (zstd) {
        room = cf_align_up(ZSTD_compressBound(bytes), CF_SUM_PAGE);
        CF_TRY(buffer_room(&slot->out, room, &slot->err));
        size_t n = ZSTD_compressCCtx(s->compress, slot->out.data, room, s->image.data, bytes,
                                     w->plan->options.level);
        if (ZSTD_isError(n))
            CF_TRY(CF_FAIL(&slot->err, -ENOMEM, "layer %u, expert %u: zstd: %s", moe->layer,
                           slot->part.expert, ZSTD_getErrorName(n)));
        memset(slot->out.data + n, 0, cf_align_up(n, CF_SUM_PAGE) - n);
        bytes = n;
    }
    slot->part.bytes = bytes;
    slot->part.data = slot->out.data;
    slot->part.sum = cf_sum_of(slot->out.data, cf_align_up(bytes, CF_SUM_PAGE));
fail:
    return rc;
}

/* ---- the order ---- */

static uint64_t slice_rows(const cf_pack_tensor *t)
{
    uint64_t row = cf_max_u64(cf_format_row_bytes(t->def.dtype, t->cols),
                              cf_format_row_bytes(t->format, t->cols));
    uint64_t step = t->scales ? t->def.scale.rows : 1;
    return cf_max_u64(SLICE_BYTES / row / step, 1) * step;
}

/* The part that the cursor is at, which moves on; false at the end. */
static bool cursor_take(const cf_pack_work *w, struct cursor *c, cf_pack_part *part, uint64_t *row,
                        uint64_t *rows)
{
    const cf_pack_plan *p = w->plan;
    *part = (cf_pack_part){0};
    *row = *rows = 0;
    if (c->tensor < p->n_tensors) {
        const cf_pack_tensor *t = &p->tensors[c->tensor];
        *row = c->row;
        *rows = cf_min_u64(slice_rows(t), t->rows - c->row);
        *part = (cf_pack_part){.tensor = c->tensor, .last = *row + *rows == t->rows};
        c->row = part->last ? 0 : *row + *rows;
        c->tensor += part->last;
    } else if (c->layer < p->model->n_moe) {
        *part = (cf_pack_part){.record = true, .layer = c->layer, .expert = c->expert++};
        if (c->expert == p->layers[c->layer].moe->experts) {
            c->expert = 0;
            c->layer++;
        }
    } else {
        return false;
    }
    c->number++;
    return true;
}

static void *worker_main(void *arg)
{
    struct worker *me = arg;
    cf_pack_work *w = me->work;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        cf_pack_part part;
        uint64_t row, rows, number = w->cursor.number;
        if (w->stop || !cursor_take(w, &w->cursor, &part, &row, &rows))
            break;
        struct slot *slot = &w->slots[number % w->n_slots];
        /* Whoever holds the slot has the number before this one of the same slot. */
        while (!w->stop && (slot->state != FREE || w->next + w->n_slots <= number))
            pthread_cond_wait(&w->changed, &w->lock);
        if (w->stop)
            break;
        slot->state = TAKEN;
        slot->part = part;
        slot->err = (cf_err){0};
        pthread_mutex_unlock(&w->lock);
        slot->status = part.record ? record_part(w, &me->scratch, slot)
                                   : tensor_part(w, &me->scratch, slot, row, rows);
        pthread_mutex_lock(&w->lock);
        slot->state = DONE;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

int cf_pack_work_next(cf_pack_work *w, cf_pack_part *out, cf_err *err)
{
    if (w->next == w->n_parts)
        return 0;
    struct slot *slot = &w->slots[w->next % w->n_slots];
    pthread_mutex_lock(&w->lock);
    while (slot->state != DONE)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
    if (slot->status < 0)
        return CF_FAIL(err, slot->status, "%s", slot->err.msg);
    *out = slot->part;
    return 1;
}

void cf_pack_work_give_back(cf_pack_work *w, const cf_pack_part *part)
{
    (void)part;
    pthread_mutex_lock(&w->lock);
    w->slots[w->next % w->n_slots].state = FREE;
    w->next++;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

/* ---- life ---- */

static int files_open(cf_pack_work *w, cf_err *err)
{
    const cf_catalogue *cat = w->plan->model->cat;
    uint32_t n = cf_catalogue_file_count(cat);
    w->fds = malloc((n + 1) * sizeof *w->fds);
    if (!w->fds)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u files", n);
    for (; w->n_fds < n; w->n_fds++) {
        const char *path = cf_catalogue_path(cat, w->n_fds);
        w->fds[w->n_fds] = open(path, O_RDONLY | O_CLOEXEC);
        if (w->fds[w->n_fds] < 0)
            return CF_FAIL(err, -errno, "cannot open %s: %s", path, cf_err_name(-errno));
    }
    return 0;
}

static int worker_start(cf_pack_work *w, cf_err *err)
{
    struct worker *one = &w->workers[w->n_workers];
    one->work = w;
    one->scratch.compress = ZSTD_createCCtx();
    one->scratch.decompress = ZSTD_createDCtx();
    int e = one->scratch.compress && one->scratch.decompress
                ? pthread_create(&one->thread, NULL, worker_main, one)
                : ENOMEM;
    if (e) {
        ZSTD_freeCCtx(one->scratch.compress);
        ZSTD_freeDCtx(one->scratch.decompress);
        return CF_FAIL(err, -e, "cannot start a thread: %s", cf_err_name(-e));
    }
    w->n_workers++;
    return 0;
}

int cf_pack_work_begin(cf_pack_work **out, const cf_pack_plan *plan, uint32_t threads, cf_err *err)
{
    int rc = 0;
    cf_pack_work *w = calloc(1, sizeof *w);
    if (!w)
        return CF_FAIL(err, -ENOMEM, "out of memory for packing");
    w->plan = plan;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    for (uint32_t i = 0; i < plan->n_tensors; i++)
        w->n_parts += cf_ceil_div(plan->tensors[i].rows, slice_rows(&plan->tensors[i]));
    w->n_parts += plan->n_records;
    w->n_slots = threads + SLOTS_MORE;
    w->slots = calloc(w->n_slots, sizeof *w->slots);
    w->workers = calloc(threads, sizeof *w->workers);
    if (!w->slots || !w->workers)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for %u threads", threads));
    CF_TRY(files_open(w, err));
    for (uint32_t i = 0; i < threads; i++)
        CF_TRY(worker_start(w, err));
    *out = w;
    return 0;
fail:
    cf_pack_work_end(&w);
    return rc;
}

static void worker_finish(struct worker *one)
{
    struct scratch *s = &one->scratch;
    pthread_join(one->thread, NULL);
    for (int i = 0; i < CF_RECORD_EXTENTS; i++)
        free(s->extents[i].data);
    free(s->unpacked.data);
    free(s->turn.data);
    free(s->image.data);
    free(s->tile.data);
    ZSTD_freeCCtx(s->compress);
    ZSTD_freeDCtx(s->decompress);
}

void cf_pack_work_end(cf_pack_work **work)
{
    cf_pack_work *w = *work;
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    for (uint32_t i = 0; i < w->n_workers; i++)
        worker_finish(&w->workers[i]);
    for (uint32_t i = 0; w->slots && i < w->n_slots; i++)
        free(w->slots[i].out.data);
    for (uint32_t i = 0; i < w->n_fds; i++)
        close(w->fds[i]);
    free(w->fds);
    free(w->slots);
    free(w->workers);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
    *work = NULL;
}
