/* See cache_rig.h. */
#include "tests/support/cache_rig.h"

#include "runtime/base/align.h"
#include "runtime/copier.h"
#include "tests/check.h"

char rig_paths[FILES][300];
cf_extent rig_extents[LAYERS][EXPERTS][CF_EXPERT_PIECES];
cf_moe_def rig_moes[LAYERS];
static cf_model model = {.moe = rig_moes, .n_moe = LAYERS};

/* ---- the checkpoint ---- */

void rig_files_make(const tmp_dir *dir)
{
    cf_rng rng = {7};
    uint64_t at[FILES] = {13, 4096};
    for (uint32_t l = 0; l < LAYERS; l++) {
        uint32_t rows = ROWS * (l + 1);
        rig_moes[l] = (cf_moe_def){.layer = l,
                                   .experts = EXPERTS - 3 * l,
                                   .top_k = TOP_K,
                                   .n_extents = CF_EXPERT_PIECES,
                                   .extents = &rig_extents[l][0][0]};
        for (int p = 0; p < CF_EXPERT_PIECES; p++)
            rig_moes[l].pieces[p] =
                (cf_piece_def){.dtype = CF_BF16, .rows = rows, .cols = COLS, .extent = (uint32_t)p};
        for (uint32_t e = 0; e < rig_moes[l].experts; e++)
            for (int p = 0; p < CF_EXPERT_PIECES; p++) {
                uint32_t file = (uint32_t)cf_rng_below(&rng, 8) == 0 ? 1 : e % FILES;
                uint64_t bytes = (uint64_t)rows * COLS * 2;
                switch (cf_rng_below(&rng, 4)) {
                case 0:
                    at[file] = cf_align_up(at[file], 4096);
                    break;
                case 1:
                    at[file] += cf_rng_below(&rng, 9000);
                    break;
                default:
                    break; /* adjacent */
                }
                rig_extents[l][e][p] = (cf_extent){.file = file, .off = at[file], .bytes = bytes};
                at[file] += bytes;
                cf_assert(at[file] <= FILE_BYTES);
            }
    }
    for (uint32_t f = 0; f < FILES; f++) {
        snprintf(rig_paths[f], sizeof rig_paths[f], "%s/shard%u", dir->path, f);
        tmp_write_pattern(rig_paths[f], FILE_BYTES, f);
    }
}

/* ---- a device that is done only when it is waited for ---- */

static _Atomic uint64_t waited[CF_STREAM_COUNT];
static struct cf_gpu_fns lazy_fns;

static bool lazy_reached(cf_gpu *gpu, cf_gpu_point point)
{
    (void)gpu;
    return point.value <= atomic_load(&waited[point.stream]);
}

static int lazy_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err)
{
    uint64_t before = atomic_load(&waited[point.stream]);
    while (before < point.value &&
           !atomic_compare_exchange_weak(&waited[point.stream], &before, point.value))
        ;
    return cf_ref_fns.wait(gpu, point, err);
}

/* ---- opening and closing ---- */

static void on_submit(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    rig *r = user;
    (void)file, (void)off;
    atomic_fetch_add(&r->read_bytes, bytes);
    atomic_fetch_add(&r->all_read_bytes, bytes);
}

static bool on_withhold(void *user)
{
    return atomic_load(&((rig *)user)->closed);
}

void rig_reads_released(void *user)
{
    rig *r = user;
    atomic_fetch_add(&r->waits, 1);
    atomic_store(&r->closed, false);
    cf_fetch_poke(r->fetch);
}

static void on_hazard(void *user, const char *sentence)
{
    rig *r = user;
    if (atomic_fetch_add(&r->hazards, 1) == 0)
        printf("    %s\n", sentence);
}

static cf_slots_shape shape_make(const setup *how, uint32_t align)
{
    cf_slots_shape shape = {.in_place = how->memory == IN_PLACE,
                            .staged = how->memory == STAGED,
                            .n_slots = how->slots,
                            .n_slabs = how->slabs,
                            .n_tier = how->tier,
                            .n_guess = how->guess};
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < rig_moes[l].experts; e++) {
            cf_layout layout;
            uint64_t offs[CF_MAX_PIECES];
            cf_layout_plan(&layout, rig_extents[l][e], CF_EXPERT_PIECES, align);
            shape.slab_bytes = cf_max_u64(shape.slab_bytes, layout.bytes);
            shape.slot_bytes = cf_max_u64(shape.slot_bytes, cf_copy_place(&layout, offs));
        }
    if (shape.in_place)
        shape.slot_bytes = shape.slab_bytes;
    return shape;
}

static int rig_try_open(rig *r, const setup *how, uint64_t seed, cf_err *err)
{
    int rc;
    const char *list[FILES] = {rig_paths[0], rig_paths[1]};
    *r = (rig){.how = how, .plan = {seed}, .rng = {~seed}};
    CF_TRY(cf_gpu_open(&r->gpu, "ref", &(cf_gpu_options){.threads = 1, .check = true}, err));
    for (uint32_t l = 0; l < LAYERS; l++)
        r->n_at[NOWHERE] += rig_moes[l].experts;
    cf_gpu_on_hazard(r->gpu, on_hazard, r);
    for (int i = 0; i < CF_STREAM_COUNT; i++)
        atomic_store(&waited[i], 0);
    lazy_fns = *r->gpu->fns;
    lazy_fns.reached = lazy_reached;
    lazy_fns.wait = lazy_wait;
    r->gpu->fns = &lazy_fns;
    CF_TRY(cf_files_open(&r->files, list, FILES, false, err));
    cf_slots_shape shape = shape_make(how, r->files.align);
    CF_TRY(cf_slots_init(&r->slots, r->gpu, NULL, &shape, err));
    cf_io_fault fault = how->fault;
    fault.seed = seed;
    fault.on_submit = on_submit;
    fault.withhold = on_withhold;
    fault.on_submit_user = fault.withhold_user = r;
    if (!fault.eio_times)
        fault.eio_file = -1;
    cf_io_region regions[8];
    uint32_t n = cf_slots_regions(&r->slots, regions, 8);
    CF_TRY(cf_fetch_open(&r->fetch, &r->files,
                         &(cf_fetch_options){.io = {.kind = CF_IO_PREAD,
                                                    .depth = 8,
                                                    .fault = &fault,
                                                    .regions = regions,
                                                    .n_regions = n},
                                             .split_bytes = 4096},
                         err));
    CF_TRY(cf_policy_create(&r->policy, how->policy ? how->policy : "lfu:0.9", LAYERS, EXPERTS,
                            EXPERTS, err));
    CF_TRY(cf_gpu_buf_create(r->gpu, CF_BUF_READBACK, EXPERTS * MAX_RECORD, "seen", &r->seen, err));
    CF_TRY(cf_cache_create(&r->cache,
                           &(cf_cache_options){.gpu = r->gpu,
                                               .fetch = r->fetch,
                                               .files = &r->files,
                                               .model = &model,
                                               .slots = &r->slots,
                                               .policy = r->policy,
                                               .prefetch = how->prefetch,
                                               .on_wait = rig_reads_released,
                                               .on_wait_user = r},
                           err));
    return 0;
fail:
    return rc;
}

bool rig_open(rig *r, const setup *how, uint64_t seed)
{
    cf_err err = {0};
    int rc = rig_try_open(r, how, seed, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    CHECK_INT(rc, 0);
    return rc == 0;
}

void rig_close(rig *r)
{
    CHECK_INT(atomic_load(&r->hazards), 0);
    cf_cache_destroy(&r->cache);
    cf_policy_destroy(&r->policy);
    cf_fetch_close(&r->fetch);
    cf_gpu_buf_destroy(&r->seen);
    cf_slots_finish(&r->slots);
    cf_files_close(&r->files);
    cf_gpu_close(&r->gpu);
}

void rig_verify(rig *r)
{
    const char *verdict = cf_cache_verify(r->cache);
    if (verdict)
        printf("    %s\n", verdict);
    CHECK(!verdict);
}

/* ---- serving a group ---- */

uint64_t rig_record_bytes(const rig *r, uint32_t moe, uint32_t expert)
{
    cf_layout layout;
    uint64_t bytes = 0;
    cf_layout_plan(&layout, rig_extents[moe][expert], CF_EXPERT_PIECES, r->files.align);
    for (uint32_t k = 0; k < layout.n_runs; k++)
        bytes += layout.runs[k].bytes;
    return bytes;
}

static cf_span seen_span(const rig *r, uint32_t index, int piece)
{
    uint64_t bytes = rig_extents[0][0][0].bytes * LAYERS;
    return cf_span_sub(cf_span_of(r->seen), index * (uint64_t)MAX_RECORD + (uint64_t)piece * bytes,
                       bytes);
}

void rig_use(rig *r, const group *g, const cf_cache_entry *entries, uint32_t n, cf_gpu_point *done)
{
    cf_gpu_point ready = {CF_STREAM_TRANSFER, 0};
    for (uint32_t i = 0; i < n; i++) {
        const cf_cache_entry *e = &entries[i];
        CHECK(e->index < g->n && e->expert == g->order[e->index]);
        CHECK_INT(e->ready.stream, CF_STREAM_TRANSFER);
        if (e->ready.value > ready.value)
            ready = e->ready;
        for (int p = 0; p < CF_EXPERT_PIECES; p++) {
            const cf_piece_def *def = &rig_moes[g->moe].pieces[p];
            const cf_weight *w = &e->pieces[p];
            CHECK_INT(w->span.bytes, rig_extents[g->moe][e->expert][p].bytes);
            CHECK_INT(w->span.off % CF_PIECE_ALIGN, 0);
            CHECK(w->dtype == def->dtype && w->rows == def->rows && w->cols == def->cols);
            cf_gpu_copy(r->gpu, CF_STREAM_COMPUTE,
                        cf_span_sub(seen_span(r, e->index, p), 0, w->span.bytes), w->span);
        }
    }
    done->stream = CF_STREAM_COMPUTE;
    CHECK_INT(
        cf_gpu_submit(r->gpu, CF_STREAM_COMPUTE, &ready, ready.value ? 1 : 0, &done->value, NULL),
        0);
    cf_cache_used(r->cache, entries, n, *done);
}

void rig_compare(const rig *r, const group *g, const bool *taken)
{
    for (uint32_t i = 0; i < g->n; i++)
        for (int p = 0; taken[i] && p < CF_EXPERT_PIECES; p++) {
            const cf_extent *x = &rig_extents[g->moe][g->order[i]][p];
            const uint8_t *got = cf_gpu_host_read(cf_span_sub(seen_span(r, i, p), 0, x->bytes));
            CHECK_INT(tmp_pattern_differs(got, x->bytes, x->file, x->off), -1);
        }
}

int rig_serve(rig *r, const group *g, bool *taken, uint32_t stop_after, cf_err *err)
{
    cf_cache_entry entries[EXPERTS];
    cf_gpu_point done = {CF_STREAM_COMPUTE, 0};
    uint32_t n_taken = 0;
    int n = 0;
    while (n_taken < stop_after) {
        uint32_t max = 1 + (uint32_t)cf_rng_below(&r->rng, 5);
        n = cf_cache_take(r->cache, entries, max, err);
        if (n <= 0)
            break;
        CHECK((uint32_t)n <= max);
        for (int i = 0; i < n; i++) {
            CHECK(entries[i].index < g->n && !taken[entries[i].index]); /* handed out once */
            taken[entries[i].index] = true;
            /* Hits first: they never wait for a read. */
            CHECK(entries[i].index < g->hits || n_taken + (uint32_t)i >= g->hits);
        }
        rig_use(r, g, entries, (uint32_t)n, &done);
        n_taken += (uint32_t)n;
        if (cf_rng_below(&r->rng, 3) == 0)
            CHECK_INT(cf_gpu_wait(r->gpu, done, NULL), 0);
        rig_verify(r);
    }
    if (n == 0 && stop_after > g->n)
        CHECK_INT(n_taken, g->n);
    CHECK_INT(cf_gpu_wait(r->gpu, done, NULL), 0);
    return n < 0 ? n : 0;
}
