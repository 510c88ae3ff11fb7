/* Catches: a missing barrier or wait that the tracker does not see, and legal orders that it
 * calls hazards (a tracker that cries wolf is switched off).
 *
 * Runs on ref; the tracker sits above the backends. */
#include "tests/check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu/gpu.h"
#include "gpu/hazard.h"
#include "gpu/ops.h"
#include "runtime/base/rng.h"

/* ---- a device, a few buffers, the hazards heard ---- */

static cf_gpu *gpu;
static cf_gpu_buf *a, *b, *d, *up, *down; /* a, b, d: DEVICE */
static int heard;
static char last[512];

static void hazard_hear(void *user, const char *sentence)
{
    (void)user;
    heard++;
    snprintf(last, sizeof last, "%s", sentence);
}

static void buf_make(cf_gpu_buf **buf, cf_buf_kind kind, const char *name)
{
    cf_err err = {0};
    if (cf_gpu_buf_create(gpu, kind, 4096, name, buf, &err) < 0) {
        printf("    %s\n", err.msg);
        exit(1);
    }
}

static void scene_begin(void)
{
    cf_err err = {0};
    cf_gpu_options options = {.threads = 1, .check = true};
    if (cf_gpu_open(&gpu, "ref", &options, &err) < 0) {
        printf("    %s\n", err.msg);
        exit(1);
    }
    buf_make(&a, CF_BUF_DEVICE, "buffer a");
    buf_make(&b, CF_BUF_DEVICE, "buffer b");
    buf_make(&d, CF_BUF_DEVICE, "buffer d");
    buf_make(&up, CF_BUF_UPLOAD, "upload");
    buf_make(&down, CF_BUF_READBACK, "readback");
    heard = 0;
    last[0] = '\0';
    cf_gpu_on_hazard(gpu, hazard_hear, NULL);
}

static void scene_end(void)
{
    cf_gpu_on_hazard(gpu, hazard_hear, NULL);
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&b);
    cf_gpu_buf_destroy(&d);
    cf_gpu_buf_destroy(&up);
    cf_gpu_buf_destroy(&down);
    cf_gpu_close(&gpu);
}

static cf_span part(cf_gpu_buf *buf, uint64_t off, uint64_t bytes)
{
    return (cf_span){buf, off, bytes};
}

/* y = x on 64 bytes at the offsets. */
static void copy64(cf_stream s, cf_gpu_buf *dst, uint64_t dst_off, cf_gpu_buf *src,
                   uint64_t src_off)
{
    cf_gpu_copy(gpu, s, part(dst, dst_off, 64), part(src, src_off, 64));
}

static void op_add64(cf_stream s, cf_gpu_buf *y, cf_gpu_buf *x)
{
    cf_op_add op = {.a = part(x, 0, 64), .y = part(y, 0, 64), .n = 16, .alpha = 1};
    cf_gpu_add(gpu, s, &op);
}

static cf_gpu_point submit(cf_stream s, const cf_gpu_point *waits, int n)
{
    cf_err err = {0};
    cf_gpu_point p = {s, 0};
    CHECK_INT(cf_gpu_submit(gpu, s, waits, n, &p.value, &err), 0);
    return p;
}

static void wait_for(cf_gpu_point p)
{
    cf_err err = {0};
    CHECK_INT(cf_gpu_wait(gpu, p, &err), 0);
}

/* `n` hazards since the last look. */
#define HEARD(n)                                                                                   \
    do {                                                                                           \
        CHECK_INT(heard, n);                                                                       \
        heard = 0;                                                                                 \
    } while (0)

static const cf_stream C = CF_STREAM_COMPUTE, T = CF_STREAM_TRANSFER;

/* ---- one stream ---- */

static void same_stream_needs_a_barrier(void)
{
    scene_begin();
    op_add64(C, b, a);
    op_add64(C, d, b); /* read after write */
    HEARD(1);
    CHECK_HAS(last, "add (compute) reads 'buffer b' [0, 64) after add (compute) wrote");
    CHECK_HAS(last, "without a barrier");
    cf_gpu_barrier(gpu, C);
    op_add64(C, d, b);
    HEARD(0);
    copy64(C, b, 0, a, 0); /* write after read */
    HEARD(1);
    CHECK_HAS(last, "copy (compute) writes 'buffer b'");
    CHECK_HAS(last, "read [0, 64)");
    cf_gpu_barrier(gpu, C);
    copy64(C, d, 0, a, 0);
    copy64(C, d, 32, a, 64); /* write after write */
    HEARD(1);
    cf_gpu_barrier(gpu, C);
    copy64(C, d, 0, a, 0); /* neighbours and shared reads are fine */
    copy64(C, d, 64, a, 0);
    copy64(C, b, 0, a, 32);
    HEARD(0);
    scene_end();
}

static void a_submit_is_no_barrier(void)
{
    scene_begin();
    op_add64(C, b, a);
    submit(C, NULL, 0);
    op_add64(C, d, b);
    HEARD(0); /* what it waits for is not known yet */
    cf_gpu_barrier(gpu, C);
    submit(C, NULL, 0);
    HEARD(1);
    CHECK_HAS(last, "without a barrier");
    op_add64(C, a, d); /* the barrier of the earlier batch orders it */
    cf_gpu_point c = submit(C, NULL, 0);
    HEARD(0);
    wait_for(c);
    op_add64(C, d, a); /* and so does a wait of the host */
    submit(C, NULL, 0);
    HEARD(0);
    scene_end();
}

static void in_place_is_one_op(void)
{
    scene_begin();
    op_add64(C, a, a);
    HEARD(0);
    op_add64(C, a, a);
    CHECK(heard > 0);
    heard = 0;
    scene_end();
}

/* ---- two streams ---- */

static void streams_need_a_wait(void)
{
    scene_begin();
    copy64(T, a, 0, up, 0);
    cf_gpu_point t = submit(T, NULL, 0);
    op_add64(C, b, a);
    HEARD(0); /* its waits are not known yet */
    cf_gpu_point c = submit(C, NULL, 0);
    HEARD(1);
    CHECK_HAS(last, "add (compute) reads 'buffer a'");
    CHECK_HAS(last, "copy (transfer) wrote");
    cf_gpu_barrier(gpu, C);
    op_add64(C, b, a);
    c = submit(C, &t, 1);
    HEARD(0);
    cf_gpu_barrier(gpu, T);
    copy64(T, a, 0, up, 0); /* overwrites what compute reads */
    submit(T, NULL, 0);
    HEARD(1);
    CHECK_HAS(last, "copy (transfer) writes 'buffer a'");
    wait_for(c);
    cf_gpu_barrier(gpu, T);
    copy64(T, a, 0, up, 0);
    submit(T, NULL, 0);
    HEARD(0);
    scene_end();
}

/* A slot is filled, used and filled again: no barrier is needed on the filling stream. */
static void a_round_trip_orders_a_stream(void)
{
    scene_begin();
    cf_gpu_point c = {C, 0};
    for (int i = 0; i < 5; i++) {
        copy64(T, a, 0, up, 0);
        cf_gpu_point t = submit(T, &c, 1);
        cf_gpu_barrier(gpu, C);
        op_add64(C, b, a);
        c = submit(C, &t, 1);
    }
    HEARD(0);
    copy64(T, a, 0, up, 0);
    cf_gpu_point old = submit(T, NULL, 0); /* and without the wait it is two hazards: one is told */
    HEARD(1);
    cf_gpu_barrier(gpu, T);
    copy64(T, d, 0, up, 0);
    cf_gpu_point t = submit(T, NULL, 0);
    op_add64(C, d, d);
    c = submit(C, &old, 1); /* too old a point */
    HEARD(1);
    copy64(T, d, 0, up, 0);
    submit(T, &c, 1); /* c had waited for `old` only, so it orders no later copy */
    HEARD(1);
    CHECK(t.value > old.value);
    scene_end();
}

static void an_older_point_does_not_do(void)
{
    scene_begin();
    copy64(T, a, 0, up, 0);
    cf_gpu_point old = submit(T, NULL, 0);
    copy64(T, b, 0, up, 0);
    cf_gpu_point new = submit(T, NULL, 0);
    op_add64(C, d, b);
    submit(C, &old, 1);
    HEARD(1);
    cf_gpu_barrier(gpu, C);
    op_add64(C, d, b);
    submit(C, &new, 1);
    HEARD(0);
    cf_gpu_barrier(gpu, C);
    op_add64(C, d, a); /* later batches run after what an earlier one waited for */
    submit(C, NULL, 0);
    HEARD(0);
    scene_end();
}

static void an_open_batch_is_checked_when_it_follows(void)
{
    scene_begin();
    op_add64(C, b, a); /* recorded first, submitted last */
    copy64(T, a, 0, up, 0);
    cf_gpu_point t = submit(T, NULL, 0);
    HEARD(0);
    submit(C, &t, 1);
    HEARD(0);
    cf_gpu_barrier(gpu, C);
    op_add64(C, b, a);
    cf_gpu_barrier(gpu, T);
    copy64(T, a, 0, up, 0);
    cf_gpu_point c = submit(C, NULL, 0);
    submit(T, &c, 1);
    HEARD(0);
    op_add64(C, d, a);
    submit(C, NULL, 0); /* nobody waited for the second copy */
    HEARD(1);
    scene_end();
}

/* ---- the host ---- */

static void the_host_must_wait(void)
{
    scene_begin();
    cf_gpu_host_write(cf_span_of(up));
    copy64(T, a, 0, up, 0);
    cf_gpu_host_write(cf_span_of(up)); /* not submitted: it will see this */
    HEARD(0);
    cf_gpu_point t = submit(T, NULL, 0);
    cf_gpu_host_read(part(up, 0, 64)); /* two readers */
    cf_gpu_host_write(part(up, 64, 64));
    HEARD(0);
    cf_gpu_host_write(part(up, 32, 64));
    HEARD(1);
    CHECK_HAS(last, "cf_gpu_host_write (host) writes 'upload'");
    CHECK_HAS(last, "has not waited");
    wait_for(t);
    cf_gpu_host_write(cf_span_of(up));
    HEARD(0);
    op_add64(C, b, a);
    cf_gpu_barrier(gpu, C);
    copy64(C, down, 0, b, 0);
    cf_gpu_host_read(cf_span_of(down));
    HEARD(1);
    CHECK_HAS(last, "not submitted");
    cf_gpu_point c = submit(C, NULL, 0);
    cf_gpu_host_read(cf_span_of(down));
    HEARD(1);
    CHECK(cf_gpu_reached(gpu, c)); /* asking counts as knowing */
    cf_gpu_host_read(cf_span_of(down));
    HEARD(0);
    scene_end();
}

/* The host waits for compute, which had waited for the transfer. */
static void waits_are_transitive_for_the_host(void)
{
    scene_begin();
    copy64(T, a, 0, up, 0);
    cf_gpu_point t = submit(T, NULL, 0);
    op_add64(C, b, a);
    cf_gpu_point c = submit(C, &t, 1);
    copy64(T, d, 0, up, 64);
    submit(T, NULL, 0);
    wait_for(c);
    cf_gpu_host_write(part(up, 0, 64));
    HEARD(0);
    cf_gpu_host_write(part(up, 64, 64)); /* the second copy is still unknown */
    HEARD(1);
    scene_end();
}

static void destruction_waits_for_work(void)
{
    scene_begin();
    op_add64(C, b, a);
    cf_gpu_point c = submit(C, NULL, 0);
    cf_gpu_buf_destroy(&a);
    HEARD(1);
    CHECK_HAS(last, "'buffer a' is destroyed");
    wait_for(c);
    cf_gpu_buf_destroy(&b);
    HEARD(0);
    scene_end();
}

/* ---- shapes of ranges ---- */

static void column_slices_do_not_meet(void)
{
    scene_begin();
    /* Rows of 40 floats: rope turns columns 32..39, norm works on columns 0..31. */
    cf_op_rope rope = {.x = part(a, 32 * 4, 4096 - 32 * 4),
                       .cos_sin = part(b, 0, 4096),
                       .n_rows = 20,
                       .n_heads = 1,
                       .n_rot = 8,
                       .stride = 40,
                       .head_stride = 8};
    cf_op_norm norm = {.w = {.span = part(d, 0, 4096), .dtype = CF_F32, .rows = 1, .cols = 32},
                       .x = part(a, 0, 4096),
                       .y = part(a, 0, 4096),
                       .n_rows = 20,
                       .n_heads = 1,
                       .width = 32,
                       .x_stride = 40,
                       .y_stride = 40,
                       .eps = 1e-5f,
                       .scale = 1};
    cf_gpu_rope(gpu, C, &rope);
    cf_gpu_norm(gpu, C, &norm);
    HEARD(0);
    cf_gpu_barrier(gpu, C);
    cf_gpu_rope(gpu, C, &rope);
    norm.w.cols = norm.width = 33; /* one column too many */
    cf_gpu_norm(gpu, C, &norm);
    CHECK(heard > 0);
    CHECK_HAS(last, "norm (compute) ");
    CHECK_HAS(last, "rope (compute) wrote");
    heard = 0;
    scene_end();
}

/* y = W x over one row, W at d + 1024. */
static void linear_record(cf_weight w, cf_weight bias)
{
    cf_op_linear op = {.w = w,
                       .bias = bias,
                       .x = part(b, 0, 64),
                       .y = part(a, 0, 64),
                       .n_rows = 1,
                       .x_stride = w.cols,
                       .y_stride = w.rows,
                       .scale = 1};
    cf_gpu_linear(gpu, C, &op);
}

/* Layouts of W, and the bytes that each addresses, from its span's begin. */
static const struct {
    cf_weight w;
    uint64_t begin, end;
} layouts[] = {
    {{.rows = 4, .cols = 4}, 0, 64},
    {{.rows = 4, .cols = 4, .row_first = 4}, 64, 128},
    {{.rows = 4, .cols = 4, .row_step = 2}, 0, 112},
    {{.rows = 4, .cols = 4, .row_first = 1, .row_step = 2}, 16, 128},
    {{.rows = 4, .cols = 4, .transposed = true}, 0, 64},
    {{.rows = 4, .cols = 4, .transposed = true, .row_first = 4, .stride = 8}, 16, 128},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

/* A copy to `at` of d beside the op: is it in its way? */
static void probe(cf_weight w, cf_weight bias, uint64_t at, bool expected)
{
    cf_gpu_barrier(gpu, C);
    linear_record(w, bias);
    copy64(C, d, at, b, 2048);
    HEARD(expected);
}

/* What lies before the first and behind the last element that a weight addresses is not read. */
static void weights_declare_what_they_address(void)
{
    const cf_weight none = {0};
    scene_begin();
    for (int i = 0; i < LAYOUTS; i++) {
        cf_weight w = layouts[i].w;
        w.span = part(d, 1024, layouts[i].end);
        probe(w, none, 1024 + layouts[i].begin - 64, false);
        probe(w, none, 1024 + layouts[i].begin - 60, true);
        probe(w, none, 1024 + layouts[i].end, false);
        probe(w, none, 1024 + layouts[i].end - 4, true);
    }
    cf_weight w = {.span = part(d, 1024, 64), .rows = 4, .cols = 4};
    cf_weight bias = {.span = part(d, 512, 32),
                      .rows = 1,
                      .cols = 4,
                      .transposed = true,
                      .row_first = 1,
                      .stride = 2};
    probe(w, bias, 512 - 60, false);
    probe(w, bias, 512 - 56, true);
    probe(w, bias, 512 + 32, false);
    probe(w, bias, 512 + 28, true);
    scene_end();
}

/* Recording the op aborts. */
static bool refused(cf_weight w, cf_weight bias)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        fclose(stderr);
        linear_record(w, bias);
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void weights_stay_in_their_span(void)
{
    const cf_weight none = {0};
    scene_begin();
    for (int i = 0; i < LAYOUTS; i++) {
        cf_weight w = layouts[i].w;
        w.span = part(d, 1024, layouts[i].end);
        CHECK(!refused(w, none));
        w.span.bytes--;
        CHECK(refused(w, none));
        w.span.bytes = UINT64_MAX;
        CHECK(refused(w, none));
    }
    cf_weight w = {.span = part(d, 1024, 64), .rows = 4, .cols = 4};
    cf_weight bias = {.span = part(d, 512, 32), .rows = 1, .cols = 4};
    CHECK(!refused(w, bias));
    bias.cols = 3;
    CHECK(refused(w, bias));
    w.stride = 4; /* means something transposed only */
    CHECK(refused(w, none));
    w.transposed = true;
    CHECK(!refused(w, none));
    w.span.bytes = 128;
    w.row_first = 1; /* its last output would be the next column's first */
    CHECK(refused(w, none));
    scene_end();
}

static void expert_record(const cf_expert_work *e, bool downward)
{
    if (downward) {
        cf_op_expert_down op = {.experts = e,
                                .n_experts = 1,
                                .h = part(a, 0, 256),
                                .pairs = part(b, 0, 16),
                                .weights = part(b, 64, 16),
                                .out = part(a, 1024, 4 * 16 * 4),
                                .n_rows = 4,
                                .k = 1,
                                .hidden = 16,
                                .ffn = 16};
        cf_gpu_expert_down(gpu, C, &op);
        return;
    }
    cf_op_expert_glu op = {.experts = e,
                           .n_experts = 1,
                           .x = part(b, 512, 4 * 16 * 4),
                           .pairs = part(b, 0, 16),
                           .h = part(a, 0, 256),
                           .n_rows = 4,
                           .k = 1,
                           .hidden = 16,
                           .ffn = 16};
    cf_gpu_expert_glu(gpu, C, &op);
}

static void experts_run_side_by_side(void)
{
    scene_begin();
    cf_weight w = {.span = part(d, 0, 1024), .dtype = CF_F32, .rows = 16, .cols = 16};
    cf_expert_work first = {.gate = w, .up = w, .down = w, .pair_begin = 0, .pair_count = 3};
    cf_expert_work second = first, both = first;
    second.pair_begin = 3;
    second.pair_count = 1;
    both.pair_begin = both.pair_count = 2;
    expert_record(&first, false);
    expert_record(&second, false);
    HEARD(0);
    expert_record(&both, false); /* pair 2 belongs to the first, 3 to the second */
    HEARD(1);
    cf_gpu_barrier(gpu, C);
    expert_record(&first, true);
    expert_record(&second, true); /* scattered writes of one buffer */
    HEARD(0);
    copy64(C, b, 2048, a, 1024 + 64); /* but a plain read of it is none */
    HEARD(1);
    CHECK_HAS(last, "copy (compute) reads 'buffer a'");
    CHECK_HAS(last, "expert_down (compute) wrote");
    copy64(C, a, 1024, d, 2048);
    HEARD(1);
    cf_gpu_barrier(gpu, C);
    copy64(C, b, 2048, a, 1024 + 64);
    HEARD(0);
    scene_end();
}

/* Without a handler: the sentence on stderr, then abort. */
static void a_hazard_aborts(void)
{
    scene_begin();
    int ends[2], status = 0;
    REQUIRE(pipe(ends) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        cf_gpu_on_hazard(gpu, NULL, NULL);
        op_add64(C, b, a);
        op_add64(C, b, a);
        _exit(0);
    }
    close(ends[1]);
    char text[1024] = {0};
    size_t used = 0;
    for (ssize_t n;
         used < sizeof text - 1 && (n = read(ends[0], text + used, sizeof text - 1 - used)) > 0;)
        used += (size_t)n;
    close(ends[0]);
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    CHECK_HAS(text, "add (compute) writes 'buffer b'");
    scene_end();
}

/* Marks the bytes of a range one by one. */
static void range_mark(const cf_range *r, uint8_t *bytes)
{
    for (uint32_t o = 0; o < r->outer_n; o++)
        for (uint32_t i = 0; i < r->n; i++)
            memset(bytes + r->off + o * r->outer_stride + i * r->stride, 1, r->bytes);
}

static cf_range range_random(cf_rng *rng)
{
    cf_range r = {.off = cf_rng_below(rng, 60),
                  .bytes = 1 + cf_rng_below(rng, 6),
                  .stride = cf_rng_below(rng, 4) ? 12 : cf_rng_below(rng, 20),
                  .n = 1 + (uint32_t)cf_rng_below(rng, 4),
                  .outer_n = 1 + (uint32_t)cf_rng_below(rng, 3)};
    r.outer_stride = cf_rng_below(rng, 2) ? r.stride * r.n : cf_rng_below(rng, 70);
    return r;
}

/* Against marking every byte. */
static void overlap_is_exact(void)
{
    cf_rng rng = {7};
    int overlaps = 0, wrong = 0;
    for (int i = 0; i < 200000; i++) {
        uint8_t x[512] = {0}, y[512] = {0};
        cf_range p = range_random(&rng), q = range_random(&rng);
        bool meet = false;
        range_mark(&p, x);
        range_mark(&q, y);
        for (int j = 0; j < 512; j++)
            meet |= x[j] && y[j];
        overlaps += meet;
        wrong += cf_range_overlap(&p, &q) != meet;
    }
    CHECK_INT(wrong, 0);
    CHECK(overlaps > 20000 && overlaps < 180000);
}

/* ---- dropped barriers, memory, threads ---- */

/* A small pipeline in which every barrier matters; returns barriers counted. */
static int64_t pipeline(int64_t drop)
{
    int64_t begin = cf_gpu_test_drop_barrier(gpu, -1);
    cf_gpu_test_drop_barrier(gpu, drop < 0 ? -1 : begin + drop);
    copy64(C, a, 0, up, 0);
    cf_gpu_barrier(gpu, C);
    op_add64(C, b, a);
    cf_gpu_barrier(gpu, C);
    submit(C, NULL, 0);
    op_add64(C, d, b);
    cf_gpu_barrier(gpu, C);
    copy64(C, down, 0, d, 0);
    wait_for(submit(C, NULL, 0));
    return cf_gpu_test_drop_barrier(gpu, -1) - begin;
}

static void every_dropped_barrier_is_heard(void)
{
    scene_begin();
    int64_t n = pipeline(-1);
    CHECK_INT(n, 3);
    HEARD(0);
    for (int64_t i = 0; i < n; i++) {
        pipeline(i);
        HEARD(1);
    }
    pipeline(-1);
    HEARD(0);
    scene_end();
}

static void memory_stays_bounded(void)
{
    cf_err err = {0};
    cf_hazards *h = NULL;
    REQUIRE(cf_hazards_create(&h, &err) == 0);
    cf_gpu_buf buf = {.kind = CF_BUF_DEVICE, .id = 1, .bytes = 1 << 20, .name = "buf"};
    cf_range r = cf_range_plain(0, 64);
    uint64_t most = 0;
    for (uint64_t v = 1; v <= 5000; v++) { /* the host waits for every tenth compute point only */
        cf_hazards_op(h, C, "op");
        cf_hazards_access(h, C, &buf, &r, CF_ACCESS_WRITE);
        cf_hazards_barrier(h, C);
        cf_gpu_point after = {T, v - 1};
        cf_hazards_submit(h, C, &after, 1, v);
        cf_hazards_op(h, T, "op");
        cf_hazards_access(h, T, &buf, &r, CF_ACCESS_WRITE);
        cf_hazards_barrier(h, T);
        after = (cf_gpu_point){C, v};
        cf_hazards_submit(h, T, &after, 1, v);
        if (v % 10 == 0)
            cf_hazards_waited(h, (cf_gpu_point){C, v});
        most = cf_hazards_count(h) > most ? cf_hazards_count(h) : most;
    }
    CHECK(most < 64);
    /* No host wait at all: what both streams are past is forgotten nevertheless. */
    for (uint64_t v = 5001; v <= 20000; v++) {
        cf_gpu_point after = {T, v - 1};
        cf_hazards_op(h, C, "op");
        cf_hazards_access(h, C, &buf, &r, CF_ACCESS_WRITE);
        cf_hazards_barrier(h, C);
        cf_hazards_submit(h, C, &after, 1, v);
        after = (cf_gpu_point){C, v};
        cf_hazards_submit(h, T, &after, 1, v);
    }
    CHECK(cf_hazards_count(h) < 1000);
    cf_hazards_destroy(&h);
    CHECK(h == NULL);
}

static void *transfer_main(void *arg)
{
    (void)arg;
    for (int i = 0; i < 500; i++) {
        copy64(T, a, 0, up, 0);
        cf_gpu_barrier(gpu, T);
        copy64(T, a, 64, up, 64);
        wait_for(submit(T, NULL, 0));
    }
    return NULL;
}

static void two_threads_drive_two_streams(void)
{
    scene_begin();
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, transfer_main, NULL) == 0);
    for (int i = 0; i < 500; i++) {
        op_add64(C, d, b);
        cf_gpu_barrier(gpu, C);
        op_add64(C, b, d);
        wait_for(submit(C, NULL, 0));
    }
    pthread_join(thread, NULL);
    HEARD(0);
    CHECK_INT(cf_gpu_test_drop_barrier(gpu, -1), 1000);
    scene_end();
}

int main(void)
{
    RUN(same_stream_needs_a_barrier);
    RUN(a_submit_is_no_barrier);
    RUN(in_place_is_one_op);
    RUN(streams_need_a_wait);
    RUN(a_round_trip_orders_a_stream);
    RUN(an_older_point_does_not_do);
    RUN(an_open_batch_is_checked_when_it_follows);
    RUN(the_host_must_wait);
    RUN(waits_are_transitive_for_the_host);
    RUN(destruction_waits_for_work);
    RUN(column_slices_do_not_meet);
    RUN(weights_declare_what_they_address);
    RUN(weights_stay_in_their_span);
    RUN(experts_run_side_by_side);
    RUN(a_hazard_aborts);
    RUN(overlap_is_exact);
    RUN(every_dropped_barrier_is_heard);
    RUN(memory_stays_bounded);
    RUN(two_threads_drive_two_streams);
    return check_done();
}
