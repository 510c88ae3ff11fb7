/* Catches: a record whose bytes end up in the wrong place (windows merged wrongly, a piece moved
 * over one not yet moved), or that is read twice or beyond what its extents touch.
 *
 * A plan is checked against its rules one by one, then carried out on a model file, byte by
 * byte, and settled. */
#include "storage/layout.h"

#include "runtime/base/align.h"
#include "runtime/base/rng.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

enum { SLAB_MAX = 4 << 20 };

static uint8_t slab[SLAB_MAX];

/* The piece is one that a run serves in full. */
static bool run_holds(const cf_layout *l, const cf_extent *e, const cf_piece *p)
{
    for (uint32_t r = 0; r < l->n_runs; r++) {
        const cf_run *run = &l->runs[r];
        if (run->file == e->file && e->off >= run->file_off &&
            e->off + e->bytes <= run->file_off + run->bytes &&
            p->read_off == run->slab_off + (e->off - run->file_off))
            return true;
    }
    return false;
}

/* Every aligned block that a run reads is one that an extent touches. */
static bool run_wanted(const cf_run *run, const cf_extent *extents, uint32_t n, uint32_t align)
{
    for (uint64_t b = run->file_off; b < run->file_off + run->bytes; b += align) {
        bool touched = false;
        for (uint32_t i = 0; i < n && !touched; i++)
            touched = extents[i].file == run->file && extents[i].off < b + align &&
                      extents[i].off + extents[i].bytes > b;
        if (!touched)
            return false;
    }
    return true;
}

static void plan_check_runs(const cf_layout *l, const cf_extent *extents, uint32_t n,
                            uint32_t align)
{
    CHECK(l->bytes % align == 0);
    for (uint32_t r = 0; r < l->n_runs; r++) {
        const cf_run *a = &l->runs[r];
        CHECK(a->bytes && (a->file_off | a->bytes | a->slab_off) % align == 0);
        CHECK(a->slab_off + a->bytes <= l->bytes);
        CHECK(run_wanted(a, extents, n, align));
        for (uint32_t s = 0; s < r; s++) {
            const cf_run *b = &l->runs[s];
            CHECK(a->slab_off >= b->slab_off + b->bytes || b->slab_off >= a->slab_off + a->bytes);
            /* Not even touching in the file: they would be one run. */
            CHECK(a->file != b->file || a->file_off > b->file_off + b->bytes ||
                  b->file_off > a->file_off + a->bytes);
        }
    }
}

static void plan_check_pieces(const cf_layout *l, const cf_extent *extents, uint32_t n)
{
    CHECK_INT(l->n_pieces, n);
    for (uint32_t i = 0; i < n; i++) {
        const cf_piece *p = &l->pieces[i];
        CHECK_INT(p->bytes, extents[i].bytes);
        CHECK(p->off % CF_PIECE_ALIGN == 0 && p->off + p->bytes <= l->bytes);
        CHECK(run_holds(l, &extents[i], p));
        for (uint32_t j = 0; j < i; j++) {
            const cf_piece *q = &l->pieces[j];
            CHECK(p->off >= q->off + q->bytes || q->off >= p->off + p->bytes);
        }
    }
}

/* Plans, reads from the pattern (file f has seed f), settles, compares. */
static void plan_check(const cf_extent *extents, uint32_t n, uint32_t align, cf_layout *l)
{
    cf_layout_plan(l, extents, n, align);
    REQUIRE(l->bytes <= SLAB_MAX);
    plan_check_runs(l, extents, n, align);
    plan_check_pieces(l, extents, n);
    memset(slab, 0xcd, l->bytes);
    for (uint32_t r = 0; r < l->n_runs; r++)
        for (uint64_t i = 0; i < l->runs[r].bytes; i++)
            slab[l->runs[r].slab_off + i] = tmp_pattern(l->runs[r].file, l->runs[r].file_off + i);
    cf_layout_settle(l, slab);
    for (uint32_t i = 0; i < n; i++)
        CHECK_INT(tmp_pattern_differs(slab + l->pieces[i].off, l->pieces[i].bytes, extents[i].file,
                                      extents[i].off),
                  -1);
}

static void aligned_needs_no_move(void)
{
    cf_layout l;
    const cf_extent e[] = {{0, 8192, 4096}, {0, 12288, 64}, {0, 12352, 1000}, {1, 4096, 100}};
    plan_check(e, 4, 4096, &l);
    CHECK_INT(l.n_runs, 2);
    CHECK_INT(l.bytes, 12288);
    CHECK(!cf_layout_unsettled(&l));
}

/* A shard whose data begins at 8 mod 16: one read, every piece eight bytes down. */
static void shifted_shard_moves_down(void)
{
    cf_layout l;
    const cf_extent e[] = {{0, 1000 * 16 + 8, 4096}, {0, 1256 * 16 + 8, 4096}};
    plan_check(e, 2, 4096, &l);
    CHECK_INT(l.n_runs, 1);
    CHECK(cf_layout_unsettled(&l));
    CHECK_INT(l.pieces[0].read_off - l.pieces[0].off, 8);
    CHECK_INT(l.pieces[1].read_off - l.pieces[1].off, 8);
}

/* Adjacent odd sizes leave no room below: later pieces have to move up. */
static void odd_neighbours_move_up(void)
{
    cf_layout l;
    cf_extent e[CF_MAX_PIECES];
    uint64_t off = 3;
    for (uint32_t i = 0; i < CF_MAX_PIECES; i++) {
        e[i] = (cf_extent){0, off, 17 + i % 2};
        off += e[i].bytes;
    }
    plan_check(e, CF_MAX_PIECES, 512, &l);
    CHECK(l.pieces[0].off < l.pieces[0].read_off);
    CHECK(l.pieces[15].off > l.pieces[15].read_off);
    CHECK_INT(l.n_runs, 1);
}

static void order_does_not_split_runs(void)
{
    cf_layout l;
    /* Given last first; windows touch at 8192, and the middle one joins the others. */
    const cf_extent e[] = {{0, 8192, 10}, {0, 0, 10}, {1, 4096, 10}, {0, 5000, 10}};
    plan_check(e, 4, 4096, &l);
    CHECK_INT(l.n_runs, 2);
    CHECK_INT(l.runs[0].file_off, 0);
    CHECK_INT(l.runs[0].bytes, 12288);
    const cf_extent apart[] = {{0, 8192, 10}, {0, 0, 10}};
    plan_check(apart, 2, 4096, &l);
    CHECK_INT(l.n_runs, 2);
    CHECK_INT(l.runs[0].file_off, 8192); /* first extent first */
}

/* One tensor in two roles: read once, two copies in place. */
static void shared_bytes_get_two_places(void)
{
    cf_layout l;
    const cf_extent same[] = {{0, 100, 5000}, {0, 100, 5000}, {0, 5100, 3092}};
    plan_check(same, 3, 4096, &l);
    CHECK_INT(l.n_runs, 1);
    const cf_extent part[] = {{0, 100, 1000}, {0, 600, 1000}, {0, 1300, 9}, {0, 1, 8000}};
    plan_check(part, 4, 512, &l);
}

/* A window at the end of a file never reaches beyond the last block of the extent. */
static void end_of_file_window(void)
{
    cf_layout l;
    const cf_extent e[] = {{0, 4096 * 3 + 5, 11}};
    plan_check(e, 1, 4096, &l);
    CHECK_INT(l.runs[0].file_off + l.runs[0].bytes, 4096 * 4);
}

/* Offsets beyond 32 bits, and as far as the format allows. */
static void far_offsets(void)
{
    cf_layout l;
    const uint64_t far = UINT64_C(1) << 62;
    const cf_extent e[] = {{0, far + 3, 100}, {0, UINT32_MAX, 2}, {0, far + 103, 5}};
    plan_check(e, 3, 4096, &l);
    CHECK_INT(l.n_runs, 2);
    CHECK(l.runs[0].file_off == far);
}

/* Disjoint or overlapping extents at any offset modulo the alignment, in any order. */
static void random_plans(void)
{
    cf_rng rng = {7};
    cf_layout l;
    uint32_t unsettled = 0, up = 0;
    for (int round = 0; round < 3000 && !check_case_failed; round++) {
        cf_extent e[CF_MAX_PIECES];
        uint32_t n = 1 + (uint32_t)cf_rng_below(&rng, CF_MAX_PIECES);
        uint32_t align = 512u << cf_rng_below(&rng, 4);
        bool overlap = cf_rng_below(&rng, 4) == 0;
        uint64_t next[2] = {cf_rng_below(&rng, 5000), cf_rng_below(&rng, 5000)};
        for (uint32_t i = 0; i < n; i++) {
            uint32_t file = (uint32_t)cf_rng_below(&rng, 2);
            uint64_t gap[] = {0, 0, 1, 15, align - 1, align, 3 * align + 7};
            uint64_t sizes[] = {1, 15, 16, 17, 1 + cf_rng_below(&rng, 64), align, 5000};
            next[file] += gap[cf_rng_below(&rng, 7)];
            e[i] = (cf_extent){file, next[file], sizes[cf_rng_below(&rng, 7)]};
            next[file] += e[i].bytes;
            if (overlap && i)
                e[i].off -= cf_min_u64(e[i].off, cf_rng_below(&rng, 40));
        }
        for (uint32_t i = n; i > 1; i--) {
            uint32_t j = (uint32_t)cf_rng_below(&rng, i);
            cf_extent t = e[i - 1];
            e[i - 1] = e[j];
            e[j] = t;
        }
        plan_check(e, n, align, &l);
        unsettled += cf_layout_unsettled(&l);
        for (uint32_t i = 0; i < n; i++)
            up += l.pieces[i].off > l.pieces[i].read_off;
    }
    CHECK(unsettled > 1000 && up > 1000); /* the rounds did reach what they are for */
}

int main(void)
{
    RUN(aligned_needs_no_move);
    RUN(shifted_shard_moves_down);
    RUN(odd_neighbours_move_up);
    RUN(order_does_not_split_runs);
    RUN(shared_bytes_get_two_places);
    RUN(end_of_file_window);
    RUN(far_offsets);
    RUN(random_plans);
    return check_done();
}
