/* Layout of a record in its slab: see layout.h.
 *
 * Invariants of a plan: 1. Runs lie in the slab one after the other, in the order of the first
 * extent they serve, and never share a byte. 2. Pieces' final places never share a byte. 3. Among
 * pieces with final places before the end of the runs, sources share no byte and final places
 * have the order of the sources. Settling depends on 3: a piece that moves down can only hit
 * sources before its own, one that moves up only sources behind it, so there is an order in which
 * nothing unread is overwritten. Extents that themselves overlap (a tensor used twice) break 3, so
 * the later one is placed behind the runs, where it hits no source at all. */
#include "storage/layout.h"

#include <string.h>

#include "runtime/base/align.h"

/* order[] such that keys rise; equal keys keep their order. */
static void order_sort(uint32_t *order, uint32_t n, const uint64_t *keys)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = i;
        for (; j > 0 && keys[order[j - 1]] > keys[i]; j--)
            order[j] = order[j - 1];
        order[j] = i;
    }
}

/* Merges windows that touch or overlap into runs; run_of[i] is the run of extent i. */
static void runs_merge(cf_layout *l, const cf_extent *extents, uint32_t n, uint32_t align,
                       uint32_t *run_of)
{
    uint32_t order[CF_MAX_PIECES];
    uint64_t offs[CF_MAX_PIECES] = {0};
    for (uint32_t i = 0; i < n; i++)
        offs[i] = extents[i].off;
    order_sort(order, n, offs);
    for (uint32_t k = 0; k < n; k++) {
        const cf_extent *e = &extents[order[k]];
        uint64_t begin = cf_align_down(e->off, align);
        uint64_t end = cf_align_up(e->off + e->bytes, align);
        uint32_t r = l->n_runs;
        /* Offsets rise, so only the last run of the same file can touch this window. */
        while (r > 0 && l->runs[r - 1].file != e->file)
            r--;
        cf_run *run = r ? &l->runs[r - 1] : NULL;
        if (run && begin <= run->file_off + run->bytes) {
            run->bytes = cf_max_u64(run->file_off + run->bytes, end) - run->file_off;
            run_of[order[k]] = r - 1;
        } else {
            l->runs[l->n_runs] = (cf_run){.file = e->file, .file_off = begin, .bytes = end - begin};
            run_of[order[k]] = l->n_runs++;
        }
    }
}

/* Runs take the order of the first extent they serve, and their places in the slab. */
static uint64_t runs_place(cf_layout *l, uint32_t n, uint32_t *run_of)
{
    cf_run placed[CF_MAX_PIECES];
    uint32_t new_of[CF_MAX_PIECES];
    bool seen[CF_MAX_PIECES] = {false};
    uint32_t count = 0;
    uint64_t end = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t r = run_of[i];
        if (!seen[r]) {
            seen[r] = true;
            new_of[r] = count;
            placed[count] = l->runs[r];
            placed[count].slab_off = end;
            end += placed[count++].bytes;
        }
        run_of[i] = new_of[r];
    }
    memcpy(l->runs, placed, count * sizeof *placed);
    return end;
}

void cf_layout_plan(cf_layout *l, const cf_extent *extents, uint32_t n, uint32_t align)
{
    uint32_t run_of[CF_MAX_PIECES], order[CF_MAX_PIECES];
    uint64_t read_offs[CF_MAX_PIECES] = {0};
    cf_assert(n <= CF_MAX_PIECES && align >= 512 && (align & (align - 1)) == 0);
    *l = (cf_layout){.n_pieces = n};
    for (uint32_t i = 0; i < n; i++) {
        uint64_t end;
        cf_assert(extents[i].bytes && cf_add_u64(extents[i].off, extents[i].bytes, &end) &&
                  end <= UINT64_MAX / 2);
    }
    runs_merge(l, extents, n, align, run_of);
    uint64_t runs_end = runs_place(l, n, run_of);
    for (uint32_t i = 0; i < n; i++) {
        const cf_run *run = &l->runs[run_of[i]];
        read_offs[i] = run->slab_off + (extents[i].off - run->file_off);
        l->pieces[i] = (cf_piece){.read_off = read_offs[i], .bytes = extents[i].bytes};
    }
    order_sort(order, n, read_offs);
    uint64_t source_end = 0, free_off = 0, behind = runs_end;
    bool late[CF_MAX_PIECES] = {false};
    for (uint32_t k = 0; k < n; k++) {
        cf_piece *p = &l->pieces[order[k]];
        if (p->read_off < source_end) {
            late[order[k]] = true; /* shares bytes with an earlier piece */
            continue;
        }
        source_end = p->read_off + p->bytes;
        p->off = cf_max_u64(cf_align_down(p->read_off, CF_PIECE_ALIGN), free_off);
        free_off = cf_align_up(p->off + p->bytes, CF_PIECE_ALIGN);
    }
    behind = cf_max_u64(behind, free_off);
    for (uint32_t k = 0; k < n; k++) {
        cf_piece *p = &l->pieces[order[k]];
        if (late[order[k]]) {
            p->off = behind;
            behind = cf_align_up(p->off + p->bytes, CF_PIECE_ALIGN);
        }
    }
    l->bytes = cf_align_up(behind, align);
}

/* What a zstd frame can be ahead of its own input while it is decoded into the buffer that ends
 * with it: a block, the header and the checksum, 3 bytes a block (zstd.h, in-place decompression).
 * A block has at most 128 KiB, and no more than the frame. */
static uint64_t unpack_margin(uint64_t bytes)
{
    const uint64_t block = 128 << 10;
    return 18 + 4 + 3 * (cf_ceil_div(bytes, block) + 1) + cf_min_u64(block, bytes);
}

void cf_layout_plan_packed(cf_layout *l, const cf_extent *extent, uint64_t unpacked_bytes,
                           const cf_piece *pieces, uint32_t n, uint32_t align)
{
    cf_assert(n <= CF_MAX_PIECES && align >= 512 && (align & (align - 1)) == 0);
    cf_assert(extent->bytes && extent->bytes <= INT64_MAX / 4 && unpacked_bytes <= INT64_MAX / 4);
    uint64_t begin = cf_align_down(extent->off, align);
    uint64_t end = cf_align_up(extent->off + extent->bytes, align);
    uint64_t least = unpacked_bytes + unpack_margin(unpacked_bytes), before = extent->off - begin;
    uint64_t stored = before + extent->bytes;
    *l = (cf_layout){.n_runs = 1, .n_pieces = n, .packed_bytes = extent->bytes,
                     .unpacked_bytes = unpacked_bytes};
    l->runs[0] = (cf_run){.file = extent->file, .file_off = begin, .bytes = end - begin,
                          .slab_off = least > stored ? cf_align_up(least - stored, align) : 0};
    l->packed_off = l->runs[0].slab_off + before;
    l->bytes = l->runs[0].slab_off + l->runs[0].bytes;
    for (uint32_t i = 0; i < n; i++) {
        cf_assert(pieces[i].off % CF_PIECE_ALIGN == 0);
        l->pieces[i] = (cf_piece){.read_off = pieces[i].off, .off = pieces[i].off,
                                  .bytes = pieces[i].bytes};
    }
}

void cf_layout_plan_slices(cf_layout *l, const cf_extent *extents, const cf_slices *slices,
                           const cf_piece *pieces, uint32_t align)
{
    const uint32_t n = slices->n * slices->n_cuts;
    uint64_t end = 0, place = 0;
    cf_assert(n <= CF_MAX_RUNS && align >= 512 && (align & (align - 1)) == 0);
    *l = (cf_layout){.n_runs = n, .n_pieces = slices->n_cuts, .slices = slices};
    for (uint32_t i = 0; i < n; i++) {
        const cf_extent *e = &extents[i];
        const cf_piece *p = &pieces[i / slices->n];
        uint64_t begin = cf_align_down(e->off, align);
        cf_assert(e->bytes && e->bytes == slices->cuts[i / slices->n].bytes);
        cf_assert(e->off <= INT64_MAX && e->bytes <= INT64_MAX / 4 / CF_MAX_RUNS);
        if (i % slices->n == 0) {
            cf_assert(p->off >= place && p->off % CF_PIECE_ALIGN == 0);
            place = p->off;
        }
        /* A window holds its slice, so joining only ever moves bytes down, to unread ones never. */
        cf_assert(place <= end);
        l->runs[i] = (cf_run){.file = e->file, .head = (uint32_t)(e->off - begin),
                              .file_off = begin, .slab_off = end,
                              .bytes = cf_align_up(e->off + e->bytes, align) - begin};
        end += l->runs[i].bytes;
        place += e->bytes;
    }
    for (uint32_t i = 0; i < slices->n_cuts; i++)
        l->pieces[i] = (cf_piece){.read_off = pieces[i].off, .off = pieces[i].off,
                                  .bytes = pieces[i].bytes};
    l->bytes = end;
}

void cf_layout_join(const cf_layout *l, uint8_t *slab, uint8_t *scratch)
{
    const cf_run *run = l->runs;
    for (uint32_t i = 0; i < l->n_pieces; i++) {
        const cf_cut *cut = &l->slices->cuts[i];
        uint8_t *to = slab + l->pieces[i].off;
        for (uint32_t k = 0; k < l->slices->n; k++, run++, to += cut->bytes) {
            const uint8_t *from = slab + run->slab_off + run->head;
            if (from != to)
                memmove(to, from, cut->bytes);
        }
        cf_slices_turn(cut, l->slices->n, slab + l->pieces[i].off, scratch);
    }
}

bool cf_layout_unsettled(const cf_layout *l)
{
    for (uint32_t i = 0; i < l->n_pieces; i++)
        if (l->pieces[i].off != l->pieces[i].read_off)
            return true;
    return false;
}

void cf_layout_settle(const cf_layout *l, uint8_t *slab)
{
    uint32_t order[CF_MAX_PIECES];
    uint64_t read_offs[CF_MAX_PIECES] = {0}, runs_end = 0;
    for (uint32_t i = 0; i < l->n_runs; i++)
        runs_end = cf_max_u64(runs_end, l->runs[i].slab_off + l->runs[i].bytes);
    for (uint32_t i = 0; i < l->n_pieces; i++)
        read_offs[i] = l->pieces[i].read_off;
    order_sort(order, l->n_pieces, read_offs);
    /* Behind the runs first, while all sources are whole; then down by rising and up by falling
     * source (invariant 3). */
    for (uint32_t i = 0; i < l->n_pieces; i++) {
        const cf_piece *p = &l->pieces[i];
        if (p->off >= runs_end)
            memcpy(slab + p->off, slab + p->read_off, p->bytes);
    }
    for (uint32_t k = 0; k < l->n_pieces; k++) {
        const cf_piece *p = &l->pieces[order[k]];
        if (p->off < p->read_off)
            memmove(slab + p->off, slab + p->read_off, p->bytes);
    }
    for (uint32_t k = l->n_pieces; k-- > 0;) {
        const cf_piece *p = &l->pieces[order[k]];
        if (p->off > p->read_off && p->off < runs_end)
            memmove(slab + p->off, slab + p->read_off, p->bytes);
    }
}
