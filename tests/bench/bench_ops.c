/* How fast the ops of gpu/ops.h are on a device, beside what its memory delivers and, on a CPU,
 * what its cores compute.
 *
 *   bench_ops [--device NAME[:INDEX]] [--threads N] [--pool MIB] [--seconds S] [--op TEXT] [--csv]
 *             [--floats]
 *
 * One line a case: the median and the best time of an op over batches of them; from the best, the
 * bytes that it must read at least per second and its arithmetic, which bounds ops over many rows,
 * each also as a share of a ceiling (a best as well: other work on the machine falsifies medians).
 * Ops of a batch go round a pool of weights that no cache holds, with a barrier after each.
 *
 * Ceilings: on a CPU its threads sum up as many bytes as the pool has, and multiply and add in
 * registers; on a GPU it copies the pool. They are measured between the batches of each case, so
 * that both see the same load of the machine. Beside products of many rows stands what OpenBLAS
 * makes of them, where it is installed. linear_q8: with activations in 8 bits (--floats: which Vulkan
 * then never multiplies as integers); linear_t: of weights that are stored transposed. */
#include <dlfcn.h>
#include <getopt.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "gpu/gpu.h"
#include "gpu/ops.h"
#include "gpu/vulkan/vk.h"
#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/f16.h"
#include "runtime/base/pages.h"
#include "runtime/base/rng.h"
#include "runtime/base/threads.h"

enum {
    STAGING_BYTES = 16 << 20, /* of random weights, repeated over the pool */
    ACTIVATION_FLOATS = 16 << 20,
    MAX_SAMPLES = 1000,
    N_EXPERTS = 12,
    CEILINGS = 15, /* ahead of all cases */
    FMA_ROUNDS = 1 << 16, /* of a share: some hundred microseconds */
    FMA_SHARES = 8        /* of a thread */
};

static struct {
    cf_gpu *gpu;
    const char *only;
    bool csv;
    int threads;
    double seconds;
    cf_format filled;        /* what the pool's weights are */
    uint64_t pool_bytes, at; /* at: where the next op's weights begin */
    cf_gpu_buf *staging, *pool, *x, *y, *small, *readback;
    cf_threads *cores; /* CPU: what computes the ceilings */
    cf_pages pages;    /* CPU: what they read */
} bench;

static void die(const cf_err *err)
{
    fprintf(stderr, "bench_ops: %s\n", err->msg);
    exit(1);
}

static void point_wait(cf_stream stream)
{
    cf_err err = {0};
    cf_gpu_point p = {stream, 0};
    if (cf_gpu_submit(bench.gpu, stream, NULL, 0, &p.value, &err) < 0 ||
        cf_gpu_wait(bench.gpu, p, &err) < 0)
        die(&err);
}

static cf_gpu_buf *buf_make(cf_buf_kind kind, uint64_t bytes, const char *name)
{
    cf_err err = {0};
    cf_gpu_buf *b = NULL;
    if (cf_gpu_buf_create(bench.gpu, kind, bytes, name, &b, &err) < 0)
        die(&err);
    return b;
}

/* Random weights of a format all over the pool. */
static void pool_fill(cf_format t)
{
    cf_rng rng = {.state = 1};
    uint8_t *to = cf_gpu_host_write(cf_span_of(bench.staging));
    if (t > CF_BF16) { /* bytes whose scales are numbers of a usual size in every format */
        for (uint64_t i = 0; i < STAGING_BYTES; i++)
            to[i] = (uint8_t)(0x20 + cf_rng_below(&rng, 0x50));
    } else {
        uint64_t n = STAGING_BYTES / cf_format_row_bytes(t, 1);
        for (uint64_t i = 0; i < n; i++) {
            float v = (float)(cf_rng_unit(&rng) * 2 - 1);
            if (t == CF_F32)
                ((float *)(void *)to)[i] = v;
            else
                ((uint16_t *)(void *)to)[i] = t == CF_F16 ? cf_f32_to_f16(v) : cf_f32_to_bf16(v);
        }
    }
    for (uint64_t at = 0; at < bench.pool_bytes; at += STAGING_BYTES)
        cf_gpu_copy(bench.gpu, CF_STREAM_TRANSFER, (cf_span){bench.pool, at, STAGING_BYTES},
                    cf_span_of(bench.staging));
    point_wait(CF_STREAM_TRANSFER);
}

static void activations_fill(void)
{
    cf_rng rng = {.state = 2};
    float *to = cf_gpu_host_write(cf_span_of(bench.staging));
    uint64_t n = STAGING_BYTES / 4, bytes = (uint64_t)ACTIVATION_FLOATS * 4;
    for (uint64_t i = 0; i < n; i++)
        to[i] = (float)(cf_rng_unit(&rng) * 2 - 1);
    for (uint64_t at = 0; at < bytes; at += STAGING_BYTES) {
        cf_gpu_copy(bench.gpu, CF_STREAM_TRANSFER, (cf_span){bench.x, at, STAGING_BYTES},
                    cf_span_of(bench.staging));
        cf_gpu_copy(bench.gpu, CF_STREAM_TRANSFER, (cf_span){bench.y, at, STAGING_BYTES},
                    cf_span_of(bench.staging));
    }
    point_wait(CF_STREAM_TRANSFER);
}

/* The next rows x cols of the pool, beginning again at its end. */
static cf_weight weight_next(cf_format t, uint32_t rows, uint32_t cols)
{
    uint64_t bytes = rows * cf_format_row_bytes(t, cols);
    if (bench.at + bytes > bench.pool_bytes)
        bench.at = 0;
    cf_weight w = {.span = {bench.pool, bench.at, bytes}, .dtype = t, .rows = rows, .cols = cols};
    bench.at += cf_align_up(bytes, 256);
    return w;
}

/* ---- ceiling ---- */

static void sum_part(void *arg, uint64_t begin, uint64_t end)
{
    /* Independent sums, so that loads and not additions are waited for. */
    const uint64_t *p = (const uint64_t *)arg + begin * 512;
    uint64_t sum[16] = {0};
    for (uint64_t i = 0; i < (end - begin) * 512; i += 16)
        for (int l = 0; l < 16; l++)
            sum[l] += p[i + (uint64_t)l];
    volatile uint64_t sink = 0;
    for (int l = 0; l < 16; l++)
        sink = sink + sum[l];
}

static int double_compare(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return d < 0 ? -1 : d > 0;
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, double_compare);
    return v[n / 2];
}

/* What a device can do, per nanosecond: bytes (read, or on a GPU read and written) and, on a CPU,
 * additions and multiplications. */
typedef struct ceiling {
    double bytes, flops;
} ceiling;

/* FMA_ROUNDS of twelve sums that do not wait for each other, in vectors; *out takes them, so that
 * they are computed. Returns the operations of a round. One register each: as an array they would
 * lie in memory. */
#define FMA_TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define FMA_SET(i)    s##i = FMA_ALL((float)i),
#define FMA_STEP(i)   s##i = FMA_ADD(s##i);
#define FMA_SUM(i)    sum = sum + s##i;
#define FMA_FUNCTION(name, isa, vec)                                                               \
    isa static int name(float *out)                                                                \
    {                                                                                              \
        vec FMA_TWELVE(FMA_SET) a = FMA_ALL(0.999f), b = FMA_ALL(0.001f), sum = b;                 \
        for (int r = 0; r < FMA_ROUNDS; r++) {                                                     \
            FMA_TWELVE(FMA_STEP)                                                                   \
        }                                                                                          \
        FMA_TWELVE(FMA_SUM)                                                                        \
        memcpy(out, &sum, sizeof *out);                                                            \
        return 2 * 12 * (int)(sizeof sum / sizeof *out);                                           \
    }

#if defined(__x86_64__)
#define FMA_ALL    _mm512_set1_ps
#define FMA_ADD(s) _mm512_fmadd_ps(s, a, b)
FMA_FUNCTION(fma_avx512, __attribute__((target("avx512f"))), __m512)
#undef FMA_ALL
#undef FMA_ADD
#define FMA_ALL    _mm256_set1_ps
#define FMA_ADD(s) _mm256_fmadd_ps(s, a, b)
FMA_FUNCTION(fma_avx2, __attribute__((target("avx2,fma"))), __m256)
#undef FMA_ALL
#undef FMA_ADD
#endif

/* Four at once in what every compiler knows as vectors: fused only where the target says so. */
typedef float floats4 __attribute__((vector_size(16)));
#define FMA_ALL(v) ((floats4){(v), (v), (v), (v)})
#define FMA_ADD(s) ((s) * a + b)
FMA_FUNCTION(fma_plain, , floats4)

static int fma_rounds(float *out)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return fma_avx512(out);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return fma_avx2(out);
#endif
    return fma_plain(out);
}

static void fma_part(void *arg, uint64_t begin, uint64_t end)
{
    _Atomic uint64_t *flops = arg;
    for (uint64_t i = begin; i < end; i++) {
        volatile float sink;
        float out;
        uint64_t per_round = (uint64_t)fma_rounds(&out);
        sink = out;
        (void)sink;
        atomic_fetch_add(flops, per_round * FMA_ROUNDS);
    }
}

static ceiling ceiling_of_cpu(void)
{
    _Atomic uint64_t flops = 0;
    uint64_t begin = cf_clock_ns();
    cf_threads_run(bench.cores, bench.pages.bytes / 4096, 64, sum_part, bench.pages.data);
    uint64_t read = cf_clock_ns();
    cf_threads_run(bench.cores, (uint64_t)cf_threads_count(bench.cores) * FMA_SHARES, 1, fma_part,
                   &flops);
    return (ceiling){(double)bench.pages.bytes / (double)(read - begin),
                     (double)flops / (double)(cf_clock_ns() - read)};
}

/* Half of the pool onto the other half: read and written. */
static ceiling ceiling_of_gpu(void)
{
    uint64_t half = bench.pool_bytes / 2, begin = cf_clock_ns();
    cf_gpu_copy(bench.gpu, CF_STREAM_COMPUTE, (cf_span){bench.pool, half, half},
                (cf_span){bench.pool, 0, half});
    point_wait(CF_STREAM_COMPUTE);
    return (ceiling){.bytes = (double)half * 2 / (double)(cf_clock_ns() - begin)};
}

/* Measured once more: *best keeps the best of all times. */
static void ceiling_raise(ceiling *best)
{
    ceiling c = bench.cores ? ceiling_of_cpu() : ceiling_of_gpu();
    best->bytes = fmax(best->bytes, c.bytes);
    best->flops = fmax(best->flops, c.flops);
}

static void ceilings_begin(void)
{
    cf_err err = {0};
    ceiling best = {0};
    const cf_gpu_info *info = cf_gpu_get_info(bench.gpu);
    if (info->cpu) {
        if (cf_pages_init(&bench.pages, bench.pool_bytes, NULL, CF_POOL_HOST, "ceiling", &err) <
                0 ||
            cf_threads_create(&bench.cores, bench.threads, &err) < 0)
            die(&err);
        memset(bench.pages.data, 1, bench.pages.bytes);
    }
    for (int i = 0; i < CEILINGS; i++)
        ceiling_raise(&best);
    if (bench.csv) {
        printf("op,format,rows,cols,n,median_us,best_us,gb_per_s,of_ceiling,gflop_per_s,"
               "of_fma_ceiling,ceiling_gb_per_s,fma_ceiling_gflop_per_s\n");
        return;
    }
    printf("%s:%d %s, %.0f MiB of weights; ceiling %.1f GB/s", info->backend, info->index,
           info->name, (double)bench.pool_bytes / 1048576, best.bytes);
    if (best.flops > 0)
        printf(", %.0f GFLOP/s", best.flops);
    printf("\n");
}

static void ceilings_finish(void)
{
    cf_threads_destroy(&bench.cores);
    cf_pages_finish(&bench.pages);
}

/* ---- a line of the table ---- */

/* Records one op and says what it reads and computes. */
typedef struct work {
    double bytes, flops;
} work;

typedef struct bench_case {
    const char *op;
    cf_format t;
    uint32_t rows, cols, n;
    work (*record)(const struct bench_case *c);
} bench_case;

static void report(const bench_case *c, const char *name, double *samples, int n, work w,
                   ceiling of)
{
    double ns = median(samples, n), best = samples[0]; /* sorted by now */
    double bytes = w.bytes / best, flops = w.flops / best;
    double of_bytes = 100 * bytes / of.bytes, of_flops = of.flops > 0 ? 100 * flops / of.flops : 0;
    if (bench.csv) {
        printf("%s,%s,%u,%u,%u,%.1f,%.1f,%.2f,%.3f,%.1f,%.3f,%.2f,%.1f\n", c->op,
               cf_format_name(c->t), c->rows, c->cols, c->n, ns / 1e3, best / 1e3, bytes,
               of_bytes / 100, flops, of_flops / 100, of.bytes, of.flops);
    } else {
        printf("%-36s %10.1f us, best %10.1f: %8.2f GB/s %4.0f %% %9.1f GFLOP/s", name, ns / 1e3,
               best / 1e3, bytes, of_bytes, flops);
        if (of.flops > 0)
            printf(" %4.0f %%  (of %.1f, %.0f)", of_flops, of.bytes, of.flops);
        else
            printf("  (of %.1f)", of.bytes);
        printf("\n");
    }
    fflush(stdout);
}

/* ---- peer ---- */

typedef void sgemm_fn(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                      const float *a, int lda, const float *b, int ldb, float beta, float *c,
                      int ldc);

/* What OpenBLAS makes of the same product with float32 weights on as many threads, where it is
 * installed: the practical ceiling of arithmetic. */
static void sgemm_measure(uint32_t rows, uint32_t cols, uint32_t n)
{
    enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };
    static void *lib;
    char name[80];
    snprintf(name, sizeof name, "sgemm F32 %ux%u x %u ", rows, cols, n);
    if (bench.only && !strstr(name, bench.only))
        return;
    if (!lib)
        lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        if (!bench.csv)
            printf("%-36s OpenBLAS is not installed\n", name);
        return;
    }
    sgemm_fn *sgemm = (sgemm_fn *)(uintptr_t)dlsym(lib, "cblas_sgemm");
    void (*threads)(int) = (void (*)(int))(uintptr_t)dlsym(lib, "openblas_set_num_threads");
    uint64_t w_floats = (uint64_t)rows * cols, x_floats = (uint64_t)n * cols,
             y_floats = (uint64_t)n * rows;
    float *w = malloc((w_floats + x_floats + y_floats) * sizeof *w);
    if (!sgemm || !threads || !w) {
        free(w);
        return;
    }
    for (uint64_t i = 0; i < w_floats + x_floats; i++)
        w[i] = (float)(i % 31) * 0.0625f - 1.0f;
    threads(bench.threads > 0 ? bench.threads : (int)sysconf(_SC_NPROCESSORS_ONLN));
    double samples[MAX_SAMPLES];
    int done = 0;
    ceiling best = {0};
    for (uint64_t begin = cf_clock_ns();
         done < 3 ||
         (done < MAX_SAMPLES && (double)(cf_clock_ns() - begin) < bench.seconds * 1e9);) {
        uint64_t start = cf_clock_ns();
        sgemm(ROW_MAJOR, NO_TRANS, TRANS, (int)n, (int)rows, (int)cols, 1.0f, w + w_floats,
              (int)cols, w, (int)cols, 0.0f, w + w_floats + x_floats, (int)rows);
        samples[done++] = (double)(cf_clock_ns() - start);
        ceiling_raise(&best);
    }
    report(&(bench_case){"sgemm", CF_F32, rows, cols, n, NULL}, name, samples, done,
           (work){(double)w_floats * sizeof *w, 2.0 * rows * cols * n}, best);
    free(w);
}

/* ---- cases ---- */

static void measure(const bench_case *c)
{
    char name[80];
    snprintf(name, sizeof name, "%s %s %ux%u x %u ", c->op, cf_format_name(c->t), c->rows, c->cols,
             c->n);
    if (bench.only && !strstr(name, bench.only))
        return;
    if (bench.filled != c->t) {
        pool_fill(c->t);
        bench.filled = c->t;
    }
    double samples[MAX_SAMPLES];
    int n = 0, per_batch = 1;
    ceiling best = {0};
    work w = c->record(c); /* compiles */
    point_wait(CF_STREAM_COMPUTE);
    uint64_t begin = cf_clock_ns(), one;
    w = c->record(c);
    point_wait(CF_STREAM_COMPUTE);
    one = cf_clock_ns() - begin;
    while (per_batch < 64 && (double)one * per_batch < bench.seconds * 1e9 / 20)
        per_batch *= 2;
    for (begin = cf_clock_ns();
         n < 3 || (n < MAX_SAMPLES && (double)(cf_clock_ns() - begin) < bench.seconds * 1e9);) {
        uint64_t start = cf_clock_ns();
        for (int i = 0; i < per_batch; i++) {
            w = c->record(c);
            cf_gpu_barrier(bench.gpu, CF_STREAM_COMPUTE);
        }
        point_wait(CF_STREAM_COMPUTE);
        samples[n++] = (double)(cf_clock_ns() - start) / per_batch;
        ceiling_raise(&best);
    }
    report(c, name, samples, n, w, best);
}

static work linear_record_as(const bench_case *c, bool x_q8, bool transposed)
{
    cf_weight w = weight_next(c->t, c->rows, c->cols);
    w.transposed = transposed;
    cf_gpu_linear(bench.gpu, CF_STREAM_COMPUTE,
                  &(cf_op_linear){.w = w,
                                  .x = cf_span_of(bench.x),
                                  .y = cf_span_of(bench.y),
                                  .n_rows = c->n,
                                  .x_stride = c->cols,
                                  .y_stride = c->rows,
                                  .scale = 1.0f,
                                  .x_q8 = x_q8});
    return (work){(double)w.span.bytes, 2.0 * c->rows * c->cols * c->n};
}

static work linear_record(const bench_case *c)
{
    return linear_record_as(c, false, false);
}

static work linear_q8_record(const bench_case *c)
{
    return linear_record_as(c, true, false);
}

static work linear_t_record(const bench_case *c)
{
    return linear_record_as(c, false, true);
}

/* n rows, each of which goes to all N_EXPERTS experts: rows = hidden, cols = ffn. */
static work experts_record(const bench_case *c)
{
    cf_expert_work experts[N_EXPERTS] = {0};
    uint32_t hidden = c->rows, ffn = c->cols;
    double bytes = 0;
    for (uint32_t i = 0; i < N_EXPERTS; i++) {
        experts[i].gate = weight_next(c->t, ffn, hidden);
        experts[i].up = weight_next(c->t, ffn, hidden);
        experts[i].down = weight_next(c->t, hidden, ffn);
        experts[i].pair_begin = i * c->n;
        experts[i].pair_count = c->n;
        bytes += 3.0 * (double)experts[i].down.span.bytes;
    }
    cf_span small = cf_span_of(bench.small);
    uint64_t n_pairs = (uint64_t)N_EXPERTS * c->n, h_bytes = n_pairs * ffn * 4;
    cf_span h = {bench.y, 0, h_bytes};
    cf_gpu_expert_glu(bench.gpu, CF_STREAM_COMPUTE,
                      &(cf_op_expert_glu){.experts = experts,
                                          .n_experts = N_EXPERTS,
                                          .x = cf_span_of(bench.x),
                                          .pairs = small,
                                          .h = h,
                                          .n_rows = c->n,
                                          .k = N_EXPERTS,
                                          .hidden = hidden,
                                          .ffn = ffn});
    cf_gpu_barrier(bench.gpu, CF_STREAM_COMPUTE);
    cf_gpu_expert_down(bench.gpu, CF_STREAM_COMPUTE,
                       &(cf_op_expert_down){.experts = experts,
                                            .n_experts = N_EXPERTS,
                                            .h = h,
                                            .pairs = small,
                                            .weights = cf_span_of(bench.x),
                                            .out = {bench.y, h_bytes, n_pairs * hidden * 4},
                                            .n_rows = c->n,
                                            .k = N_EXPERTS,
                                            .hidden = hidden,
                                            .ffn = ffn});
    return (work){bytes, 6.0 * hidden * ffn * (double)n_pairs};
}

/* One row, `rows` heads of rank 512 + 64 over n cells. */
static work attention_record(const bench_case *c)
{
    enum { RANK = 512, ROPE = 64 };
    cf_weight cache = weight_next(c->t, c->n, RANK + ROPE);
    cf_row_info info = {c->n - 1, 0, c->n, c->n - 1};
    memcpy(cf_gpu_host_write((cf_span){bench.readback, 0, sizeof info}), &info, sizeof info);
    cf_gpu_attn_latent(bench.gpu, CF_STREAM_COMPUTE,
                       &(cf_op_attn_latent){.q_lat = cf_span_of(bench.x),
                                            .q_rope = cf_span_of(bench.x),
                                            .cache = cache.span,
                                            .rows = {bench.readback, 0, sizeof info},
                                            .y = cf_span_of(bench.y),
                                            .n_rows = 1,
                                            .n_heads = c->rows,
                                            .rank = RANK,
                                            .n_rope = ROPE,
                                            .q_stride = c->rows * ROPE,
                                            .q_head_stride = ROPE,
                                            .scale = 0.01f,
                                            .kv_dtype = c->t});
    return (work){(double)cache.span.bytes, 2.0 * c->rows * c->n * (2 * RANK + ROPE)};
}

/* kv_b of absorbed attention: 64 heads of `rows` outputs (or, transposed, inputs). */
static work heads_record_as(const bench_case *c, bool transposed)
{
    enum { HEADS = 64 };
    cf_weight w = weight_next(c->t, HEADS * c->rows, c->cols);
    uint32_t in = transposed ? c->rows : c->cols, out = transposed ? c->cols : c->rows;
    cf_gpu_head_linear(bench.gpu, CF_STREAM_COMPUTE,
                       &(cf_op_head_linear){.w = w,
                                            .x = cf_span_of(bench.x),
                                            .y = cf_span_of(bench.y),
                                            .n_rows = c->n,
                                            .n_heads = HEADS,
                                            .head_rows = c->rows,
                                            .n_sub = c->rows,
                                            .x_stride = HEADS * in,
                                            .x_head_stride = in,
                                            .y_stride = HEADS * out,
                                            .y_head_stride = out,
                                            .transposed = transposed});
    return (work){(double)w.span.bytes, 2.0 * HEADS * c->rows * c->cols * c->n};
}

static work heads_record(const bench_case *c)
{
    return heads_record_as(c, false);
}

static work heads_t_record(const bench_case *c)
{
    return heads_record_as(c, true);
}

static void cases_run(void)
{
    static const uint32_t shapes[][2] = {{3072, 1024}, {6144, 2048}, {4096, 14336},
                                         {1024, 3072}, {2048, 6144}, {14336, 4096}};
    static const uint32_t n_rows[] = {1, 2, 4, 8, 32, 128, 512};
    static const struct {
        const char *name;
        work (*record)(const bench_case *c);
        bool elements; /* of those formats only */
    } linears[] = {{"linear", linear_record, false},
                   {"linear_q8", linear_q8_record, false},
                   {"linear_t", linear_t_record, true}};
    for (size_t n = 4; n < sizeof n_rows / sizeof *n_rows; n++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            sgemm_measure(shapes[s][0], shapes[s][1], n_rows[n]);
    for (cf_format t = CF_F32; (int)t < CF_FORMAT_COMPUTABLE; t = (cf_format)(t + 1)) {
        if (!cf_gpu_supports(bench.gpu, t))
            continue;
        for (size_t o = 0; o < sizeof linears / sizeof *linears; o++)
            for (size_t n = 0; n < sizeof n_rows / sizeof *n_rows; n++)
                for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                    if (!linears[o].elements || cf_formats[t].block_values == 1)
                        measure(&(bench_case){linears[o].name, t, shapes[s][0], shapes[s][1],
                                              n_rows[n], linears[o].record});
        measure(&(bench_case){"experts", t, 3072, 1024, 1, experts_record});
        measure(&(bench_case){"experts", t, 3072, 1024, 8, experts_record});
        measure(&(bench_case){"heads", t, 128, 512, 1, heads_record});
        measure(&(bench_case){"heads_t", t, 128, 512, 1, heads_t_record});
        if (t == CF_F32 || t == CF_F16) {
            measure(&(bench_case){"attention", t, 64, 576, 256, attention_record});
            measure(&(bench_case){"attention", t, 64, 576, 4096, attention_record});
        }
    }
}

/* ---- main ---- */

static void buffers_make(void)
{
    uint64_t activations = (uint64_t)ACTIVATION_FLOATS * 4, most;
    most = cf_gpu_get_info(bench.gpu)->max_alloc_bytes;
    if (most && bench.pool_bytes > most)
        bench.pool_bytes = most / STAGING_BYTES * STAGING_BYTES;
    bench.staging = buf_make(CF_BUF_UPLOAD, STAGING_BYTES, "staging");
    bench.pool = buf_make(CF_BUF_DEVICE, bench.pool_bytes, "weights");
    bench.x = buf_make(CF_BUF_DEVICE, activations, "inputs");
    bench.y = buf_make(CF_BUF_DEVICE, activations, "outputs");
    bench.small = buf_make(CF_BUF_UPLOAD, 65536, "pairs");
    bench.readback = buf_make(CF_BUF_UPLOAD, 4096, "rows");
    /* Pair p of the batch is row p % n, rank p / n, so that each expert sees every row; the value
     * only has to lie in bounds for the times to be right. */
    uint32_t *pairs = cf_gpu_host_write(cf_span_of(bench.small));
    for (uint32_t i = 0; i < 65536 / 4; i++)
        pairs[i] = i;
}

static int usage(void)
{
    fprintf(stderr, "usage: bench_ops [--device NAME[:INDEX]] [--threads N] [--pool MIB] "
                    "[--seconds S] [--op TEXT] [--csv] [--floats]\n");
    return 2;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"device", required_argument, NULL, 'd'}, {"threads", required_argument, NULL, 't'},
        {"pool", required_argument, NULL, 'p'},   {"seconds", required_argument, NULL, 's'},
        {"op", required_argument, NULL, 'o'},     {"csv", no_argument, NULL, 'c'},
        {"floats", no_argument, NULL, 'f'},
        {NULL, 0, NULL, 0}};
    const char *device = "auto";
    cf_err err = {0};
    bench.pool_bytes = 1024ull << 20;
    bench.seconds = 0.5;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'd')
            device = optarg;
        else if (c == 't')
            bench.threads = atoi(optarg);
        else if (c == 'p')
            bench.pool_bytes = strtoull(optarg, NULL, 10) << 20;
        else if (c == 's')
            bench.seconds = strtod(optarg, NULL);
        else if (c == 'o')
            bench.only = optarg;
        else if (c == 'f')
            vk_test_integers = VK_INTEGERS_NEVER;
        else if (c == 'c')
            bench.csv = true;
        else
            return usage();
    }
    if (optind < argc || bench.pool_bytes < 256ull << 20 || bench.pool_bytes % STAGING_BYTES ||
        bench.seconds <= 0 || bench.threads < 0)
        return usage();
    if (cf_gpu_open(&bench.gpu, device, &(cf_gpu_options){.threads = bench.threads}, &err) < 0)
        die(&err);
    buffers_make();
    pool_fill(CF_F32);
    activations_fill();
    ceilings_begin();
    cases_run();
    ceilings_finish();
    cf_gpu_buf *all[] = {bench.staging, bench.pool, bench.x, bench.y, bench.small, bench.readback};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cf_gpu_buf_destroy(&all[i]);
    cf_gpu_close(&bench.gpu);
    return 0;
}
