/* Streamed weights held in RAM: see dense_hold.h. */
#include "runtime/dense_hold.h"

#include <stdlib.h>

#include "runtime/base/align.h"

/* A read of less takes about as long: the least to split off. */
enum { PART_BYTES = 64 << 10, BLOCK_BYTES = 1 << 30 };

uint64_t cf_hold_place_bytes(const cf_weight_def *w, uint32_t align, uint64_t held)
{
    if (!held)
        return 0;
    return cf_align_up(w->extent.off + held, align) - cf_align_down(w->extent.off, align);
}

/* The most of a matrix that a place of `room` bytes holds: all, or what ends with a block of the
 * file and leaves no small rest. */
static uint64_t part_bytes(const cf_weight_def *w, uint32_t align, uint64_t room)
{
    uint64_t begin = w->extent.off, bytes = cf_weight_code_bytes(w);
    if (cf_hold_place_bytes(w, align, bytes) <= room)
        return bytes;
    if (bytes < 2 * PART_BYTES)
        return 0;
    uint64_t end = cf_min_u64(cf_align_down(begin, align) + cf_align_down(room, align),
                              cf_align_down(begin + bytes - PART_BYTES, align));
    return end >= begin + PART_BYTES ? end - begin : 0;
}

/* What is being shared out. */
struct sharing {
    const cf_model *model;
    const uint8_t *streamed;
    uint32_t align;
    uint64_t most; /* bytes of a place */
    uint64_t left;
    uint64_t *held;
};

static uint64_t place_now(const struct sharing *s, uint32_t i)
{
    return cf_hold_place_bytes(&s->model->weights[i], s->align, s->held[i]);
}

/* Its place grows to as much as `room` allows. */
static void place_grow(struct sharing *s, uint32_t i, uint64_t room)
{
    uint64_t before = place_now(s, i);
    room = cf_min_u64(cf_min_u64(room, s->most), before + s->left);
    uint64_t part = part_bytes(&s->model->weights[i], s->align, room);
    if (part <= s->held[i])
        return;
    s->held[i] = part;
    s->left -= place_now(s, i) - before;
}

/* All places as large as they can be; their sum. */
static uint64_t all_bytes(struct sharing *s)
{
    uint64_t sum = 0;
    s->left = UINT64_MAX / 2;
    for (uint32_t i = 0; i < s->model->n_weights; i++) {
        s->held[i] = 0;
        if (s->streamed[i])
            place_grow(s, i, s->most);
        sum += place_now(s, i);
    }
    return sum;
}

/* What is small whole, as far as it goes; returns the bytes that the others would take. */
static uint64_t small_first(struct sharing *s, uint64_t all)
{
    for (uint32_t i = 0; i < s->model->n_weights; i++) {
        uint64_t whole = place_now(s, i);
        s->held[i] = 0;
        if (!whole || cf_weight_code_bytes(&s->model->weights[i]) > PART_BYTES)
            continue;
        place_grow(s, i, whole);
        all -= whole;
    }
    return all;
}

/* The same share of each that is not small, as nearly as blocks allow; then what that has left. */
static void evenly(struct sharing *s, uint64_t all)
{
    const cf_model *m = s->model;
    double share = all ? (double)s->left / (double)all : 0, due = 0;
    for (uint32_t i = 0; i < m->n_weights; i++) {
        uint64_t bytes = cf_weight_code_bytes(&m->weights[i]);
        if (!s->streamed[i] || bytes <= PART_BYTES)
            continue;
        due += share * (double)cf_hold_place_bytes(&m->weights[i], s->align, bytes);
        place_grow(s, i, (uint64_t)due);
        due -= (double)place_now(s, i);
    }
    for (uint32_t i = 0; i < m->n_weights; i++)
        if (s->streamed[i])
            place_grow(s, i, s->most);
}

void cf_hold_choose(const cf_model *model, const uint8_t *streamed, uint32_t align,
                    uint64_t max_alloc_bytes, uint64_t allowance, uint64_t *held, cf_hold_plan *out)
{
    struct sharing s = {
        .model = model, .streamed = streamed, .align = align, .held = held, .most = UINT64_MAX / 2};
    if (max_alloc_bytes)
        s.most = cf_min_u64(s.most, cf_align_down(max_alloc_bytes, align));
    *out = (cf_hold_plan){.allowance = allowance, .all_bytes = all_bytes(&s)};
    s.left = allowance;
    if (allowance < out->all_bytes)
        evenly(&s, small_first(&s, out->all_bytes));
    for (uint32_t i = 0; i < model->n_weights; i++) {
        out->bytes += held[i];
        out->memory_bytes += place_now(&s, i);
    }
}

/* ---- places ---- */

int cf_hold_init(cf_hold *hold, uint32_t n, uint64_t max_alloc_bytes, cf_err *err)
{
    *hold = (cf_hold){.blocks = calloc(n + 1, sizeof *hold->blocks), .most = BLOCK_BYTES};
    if (max_alloc_bytes && max_alloc_bytes < BLOCK_BYTES)
        hold->most = max_alloc_bytes;
    if (!hold->blocks)
        return CF_FAIL(err, -ENOMEM, "out of memory for the places of %u streamed matrices", n);
    return 0;
}

cf_hold_place cf_hold_lay(cf_hold *hold, uint64_t bytes)
{
    if (!hold->n_blocks || hold->blocks[hold->n_blocks - 1].bytes + bytes > hold->most)
        hold->n_blocks++;
    cf_hold_block *b = &hold->blocks[hold->n_blocks - 1];
    cf_hold_place place = {hold->n_blocks - 1, b->bytes};
    b->bytes += bytes;
    return place;
}

int cf_hold_take(cf_hold *hold, cf_gpu *gpu, bool import, cf_ledger *ledger, cf_err *err)
{
    static const char name[] = "streamed weights in RAM";
    int rc = 0;
    for (uint32_t i = 0; i < hold->n_blocks; i++) {
        cf_hold_block *b = &hold->blocks[i];
        CF_TRY(cf_pages_init(&b->pages, b->bytes, ledger, CF_POOL_HOST, name, err));
        if (import)
            CF_TRY(cf_gpu_buf_import(gpu, b->pages.data, b->pages.bytes, name, &b->buf, err));
    }
fail:
    return rc;
}

void cf_hold_finish(cf_hold *hold)
{
    for (uint32_t i = 0; i < hold->n_blocks; i++) {
        cf_gpu_buf_destroy(&hold->blocks[i].buf);
        cf_pages_finish(&hold->blocks[i].pages);
    }
    free(hold->blocks);
    *hold = (cf_hold){0};
}
