/* What Vulkan's shaders make of sizes and places that test_ops has not. Catches: a row that sees the
 * rows beside it, a load of aligned data that reads something else, the tail of a long context that
 * is left out or weighed wrongly, scores that lose their order as integers, a format or a large
 * vector that a shader cannot take. All of it under the validation layer, which must be silent. */
#include "gpu/formats.h"
#include "runtime/base/align.h"
#include "runtime/base/f16.h"
#include "runtime/base/rng.h"
#include "tests/check.h"
#include "tests/support/on_device.h"
#include "tests/support/op_build.h"
#include "tests/support/vulkan_faults.h"

static void fill(cf_rng *rng, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(cf_rng_unit(rng) * 2.0 - 1.0);
}

/* Whatever rows stand beside it, a row's result has the same bits. */
static void rows_do_not_see_each_other(void)
{
    NEED_VULKAN();
    enum { ROWS = 37, COLS = 203, N = 6 };
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    cf_rng rng = {7};
    cf_gpu_buf *w = make(gpu, CF_BUF_UPLOAD, ROWS * COLS * 4),
               *x = make(gpu, CF_BUF_UPLOAD, N * COLS * 4),
               *all = make(gpu, CF_BUF_READBACK, N * ROWS * 4),
               *one = make(gpu, CF_BUF_READBACK, N * ROWS * 4);
    fill(&rng, cf_gpu_host_write(cf_span_of(w)), ROWS * COLS);
    fill(&rng, cf_gpu_host_write(cf_span_of(x)), N * COLS);
    cf_op_linear op = {.w = {.span = cf_span_of(w), .dtype = CF_F32, .rows = ROWS, .cols = COLS},
                       .x = cf_span_of(x),
                       .y = cf_span_of(all),
                       .n_rows = N,
                       .x_stride = COLS,
                       .y_stride = ROWS,
                       .scale = 0.5f};
    cf_gpu_linear(gpu, CF_STREAM_COMPUTE, &op);
    for (uint64_t r = 0; r < N; r++) {
        op.x = cf_span_sub(cf_span_of(x), r * COLS * 4, COLS * 4);
        op.y = cf_span_sub(cf_span_of(one), r * ROWS * 4, ROWS * 4);
        op.n_rows = 1;
        cf_gpu_linear(gpu, CF_STREAM_COMPUTE, &op);
    }
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    CHECK(memcmp(cf_gpu_host_read(cf_span_of(all)), cf_gpu_host_read(cf_span_of(one)),
                 N * ROWS * 4) == 0);
    cf_gpu_buf_destroy(&w);
    cf_gpu_buf_destroy(&x);
    cf_gpu_buf_destroy(&all);
    cf_gpu_buf_destroy(&one);
    close_silent(&gpu);
}

/* The 128-bit loads of aligned arrays give the bits of the element-wise loads of the others:
 * test_ops places activations at odd multiples of 4 only. All of it under the validation layer,
 * one device for all, so that its silence covers every op in every format. */
static void aligned_loads_change_no_bit(void)
{
    enum { ALIGNED_STEP = 5 }; /* prime to the periods of the case tables */
    NEED_VULKAN();
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    cf_err err = {0};
    for (int i = 0; i < op_cases_count() && !check_case_failed; i += ALIGNED_STEP) {
        op_case *c = op_case_create(i);
        op_result plain = {0}, aligned = {0};
        CHECK_INT(op_case_run(c, gpu, 0, &plain, &err), 0);
        for (int a = 0; a < c->n_arrays; a++)
            c->arrays[a].lead = cf_align_up(c->arrays[a].lead, 16);
        CHECK_INT(op_case_run(c, gpu, 0, &aligned, &err), 0);
        CHECK(plain.guards_intact && aligned.guards_intact);
        for (int a = 0; a < c->n_arrays && !check_case_failed; a++)
            if (plain.data[a] && memcmp(plain.data[a], aligned.data[a], c->arrays[a].bytes) != 0) {
                printf("    %s: array %d differs\n", c->name, a);
                check_case_failed = true;
            }
        op_result_free(&plain);
        op_result_free(&aligned);
        op_case_destroy(&c);
    }
    CHECK_STR(err.msg, "");
    close_silent(&gpu);
}

enum { LONG_CELLS = 70000, LONG_RANK = 12, LONG_ROPE = 4, LONG_HEADS = 3, LONG_ROWS = 3 };

/* y of the long attention on one device: for free(). */
static float *long_attention(cf_gpu *gpu)
{
    enum { WIDTH = LONG_RANK + LONG_ROPE, Y = LONG_ROWS * LONG_HEADS * LONG_RANK };
    static const cf_row_info rows[LONG_ROWS] = {{LONG_CELLS - 1, 0, LONG_CELLS, 0},
                                                {100, 1, 100, 0},
                                                {LONG_CELLS - 2, 7, LONG_CELLS - 8, 0}};
    cf_rng rng = {11};
    cf_gpu_buf *cache = make(gpu, CF_BUF_UPLOAD, LONG_CELLS * WIDTH * 4),
               *q = make(gpu, CF_BUF_UPLOAD, LONG_ROWS * LONG_HEADS * WIDTH * 4),
               *info = make(gpu, CF_BUF_UPLOAD, sizeof rows),
               *y = make(gpu, CF_BUF_READBACK, Y * 4);
    float *c = cf_gpu_host_write(cf_span_of(cache));
    fill(&rng, c, LONG_CELLS * WIDTH);
    for (int i = 0; i < LONG_CELLS; i++) /* scores and values drift: no part stands for all */
        for (int j = 0; j < WIDTH; j++)
            c[i * WIDTH + j] += (float)i / LONG_CELLS;
    fill(&rng, cf_gpu_host_write(cf_span_of(q)), LONG_ROWS * LONG_HEADS * WIDTH);
    memcpy(cf_gpu_host_write(cf_span_of(info)), rows, sizeof rows);
    uint64_t lat_bytes = LONG_ROWS * LONG_HEADS * LONG_RANK * 4;
    cf_gpu_attn_latent(
        gpu, CF_STREAM_COMPUTE,
        &(cf_op_attn_latent){.q_lat = cf_span_sub(cf_span_of(q), 0, lat_bytes),
                             .q_rope = cf_span_sub(cf_span_of(q), lat_bytes, q->bytes - lat_bytes),
                             .cache = cf_span_of(cache),
                             .rows = cf_span_of(info),
                             .y = cf_span_of(y),
                             .n_rows = LONG_ROWS,
                             .n_heads = LONG_HEADS,
                             .rank = LONG_RANK,
                             .n_rope = LONG_ROPE,
                             .q_stride = LONG_HEADS * LONG_ROPE,
                             .q_head_stride = LONG_ROPE,
                             .scale = 0.7f});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    float *out = malloc(Y * 4);
    if (out)
        memcpy(out, cf_gpu_host_read(cf_span_of(y)), Y * 4);
    cf_gpu_buf_destroy(&cache);
    cf_gpu_buf_destroy(&q);
    cf_gpu_buf_destroy(&info);
    cf_gpu_buf_destroy(&y);
    return out;
}

/* A software device stops a shader's loops at 65,535 rounds without a word: the tail of a long
 * context would be left out. */
static void long_contexts_are_walked_to_the_end(void)
{
    NEED_VULKAN();
    cf_gpu *gpu = open_checked(NULL, false), *ref = NULL;
    cf_err err = {0};
    REQUIRE(gpu && cf_gpu_open(&ref, "ref", NULL, &err) == 0);
    float *got = long_attention(gpu), *want = long_attention(ref);
    REQUIRE(got && want);
    double worst = 0;
    for (int i = 0; i < LONG_ROWS * LONG_HEADS * LONG_RANK; i++)
        worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
    CHECK(worst < 1e-4);
    free(got);
    free(want);
    cf_gpu_close(&ref);
    close_silent(&gpu);
}

struct long_kv {
    uint32_t n_cells, n_heads, n_kv_heads, d_k, d_v, window, chunk;
    float cap;
    cf_format dtype;
};

/* y of attention over keys and values, one long row among others: for free(). */
static float *long_kv_attention(cf_gpu *gpu, const struct long_kv *l)
{
    const cf_row_info rows[] = {{100, 1, 100, 99},
                                {l->n_cells - 1, 0, l->n_cells, l->n_cells + 5},
                                {l->n_cells - 2, l->n_cells - 9, 8, 7},
                                {l->n_cells / 2, 3, l->n_cells - 3, l->n_cells}};
    enum { ROWS = sizeof rows / sizeof rows[0] };
    uint32_t k_width = l->n_kv_heads * l->d_k, v_width = l->n_kv_heads * l->d_v;
    uint64_t n_q = (uint64_t)ROWS * l->n_heads * l->d_k, n_y = (uint64_t)ROWS * l->n_heads * l->d_v;
    cf_gpu_buf *k = make(gpu, CF_BUF_UPLOAD, l->n_cells * cf_format_row_bytes(l->dtype, k_width)),
               *v = make(gpu, CF_BUF_UPLOAD, l->n_cells * cf_format_row_bytes(l->dtype, v_width)),
               *q = make(gpu, CF_BUF_UPLOAD, n_q * 4),
               *info = make(gpu, CF_BUF_UPLOAD, sizeof rows),
               *sinks = make(gpu, CF_BUF_UPLOAD, l->n_heads * 4),
               *y = make(gpu, CF_BUF_READBACK, n_y * 4);
    cf_gpu_buf *both[2] = {k, v};
    const uint32_t widths[2] = {k_width, v_width};
    cf_rng rng = {12};
    for (int b = 0; b < 2; b++)
        for (uint64_t i = 0; i < (uint64_t)l->n_cells * widths[b]; i++) {
            /* drifts: no part stands for all */
            float value = (float)(cf_rng_unit(&rng) + (double)(i / widths[b]) / l->n_cells);
            void *at = cf_gpu_host_write(cf_span_of(both[b]));
            if (l->dtype == CF_F32)
                ((float *)at)[i] = value;
            else
                ((uint16_t *)at)[i] = cf_f32_to_f16(value);
        }
    fill(&rng, cf_gpu_host_write(cf_span_of(q)), n_q);
    fill(&rng, cf_gpu_host_write(cf_span_of(sinks)), l->n_heads);
    memcpy(cf_gpu_host_write(cf_span_of(info)), rows, sizeof rows);
    cf_gpu_attn(
        gpu, CF_STREAM_COMPUTE,
        &(cf_op_attn){
            .q = cf_span_of(q),
            .k = cf_span_of(k),
            .v = cf_span_of(v),
            .rows = cf_span_of(info),
            .y = cf_span_of(y),
            .sinks = {.span = cf_span_of(sinks), .dtype = CF_F32, .rows = 1, .cols = l->n_heads},
            .n_rows = ROWS,
            .n_heads = l->n_heads,
            .n_kv_heads = l->n_kv_heads,
            .d_k = l->d_k,
            .d_v = l->d_v,
            .q_stride = l->n_heads * l->d_k,
            .window = l->window,
            .chunk = l->chunk,
            .scale = 0.7f,
            .cap = l->cap,
            .kv_dtype = l->dtype});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    float *out = malloc(n_y * 4);
    if (out)
        memcpy(out, cf_gpu_host_read(cf_span_of(y)), n_y * 4);
    cf_gpu_buf **bufs[] = {&k, &v, &q, &info, &sinks, &y};
    for (size_t i = 0; i < sizeof bufs / sizeof bufs[0]; i++)
        cf_gpu_buf_destroy(bufs[i]);
    return out;
}

/* Spans of a long context, added up again; in the second case the scratch takes one row of one key
 * head at a time. */
static void spans_add_up(void)
{
    NEED_VULKAN();
    static const struct long_kv cases[] = {
        {120000, 6, 2, 12, 20, 0, 0, 3.0f, CF_F32},
        {30000, 128, 2, 4, 256, 29500, 0, 0, CF_F16},
        {110000, 3, 1, 16, 7, 0, 105000, 0, CF_F16},
    };
    cf_gpu *gpu = open_checked(NULL, false), *ref = NULL;
    cf_err err = {0};
    REQUIRE(gpu && cf_gpu_open(&ref, "ref", NULL, &err) == 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float *got = long_kv_attention(gpu, &cases[i]), *want = long_kv_attention(ref, &cases[i]);
        REQUIRE(got && want);
        double worst = 0;
        for (uint32_t j = 0; j < 4 * cases[i].n_heads * cases[i].d_v; j++)
            worst = fmax(worst, fabs((double)got[j] - (double)want[j]));
        CHECK(worst < 1e-4);
        free(got);
        free(want);
    }
    cf_gpu_close(&ref);
    close_silent(&gpu);
}

/* One row of a long context and one of few cells, of a latent cache: y, for free(). */
static float *long_latent_attention(cf_gpu *gpu, uint32_t n_cells, cf_format dtype, uint32_t n_rows)
{
    enum { HEADS = 3, RANK = 32, ROPE = 32, WIDTH = RANK + ROPE };
    const cf_row_info rows[] = {{n_cells - 1, 0, n_cells, n_cells - 1}, {40, 7, 34, 33}};
    uint64_t cache_bytes = n_cells * cf_format_row_bytes(dtype, WIDTH);
    cf_gpu_buf *x = make(gpu, CF_BUF_UPLOAD, (uint64_t)n_cells * WIDTH * 4),
               *cells = make(gpu, CF_BUF_UPLOAD, n_cells * sizeof(cf_row_info)),
               *cache = make(gpu, CF_BUF_DEVICE, cache_bytes),
               *q = make(gpu, CF_BUF_UPLOAD, 2 * HEADS * WIDTH * 4),
               *info = make(gpu, CF_BUF_UPLOAD, sizeof rows),
               *y = make(gpu, CF_BUF_READBACK, 2 * HEADS * RANK * 4);
    cf_rng rng = {13};
    float *values = cf_gpu_host_write(cf_span_of(x));
    cf_row_info *at = cf_gpu_host_write(cf_span_of(cells));
    for (uint64_t i = 0; i < (uint64_t)n_cells * WIDTH; i++)
        values[i] = (float)(cf_rng_unit(&rng) + (double)(i / WIDTH) / n_cells);
    for (uint32_t i = 0; i < n_cells; i++)
        at[i] = (cf_row_info){i, 0, i + 1, i};
    fill(&rng, cf_gpu_host_write(cf_span_of(q)), 2 * HEADS * WIDTH);
    memcpy(cf_gpu_host_write(cf_span_of(info)), rows, sizeof rows);
    cf_gpu_kv_store(gpu, CF_STREAM_COMPUTE,
                    &(cf_op_kv_store){.x = cf_span_of(x),
                                      .cache = cf_span_of(cache),
                                      .rows = cf_span_of(cells),
                                      .n_rows = n_cells,
                                      .width = WIDTH,
                                      .x_stride = WIDTH,
                                      .kv_dtype = dtype});
    cf_gpu_barrier(gpu, CF_STREAM_COMPUTE);
    cf_gpu_attn_latent(
        gpu, CF_STREAM_COMPUTE,
        &(cf_op_attn_latent){.q_lat = cf_span_of(q),
                             .q_rope = {q, 2 * HEADS * RANK * 4, 2 * HEADS * ROPE * 4},
                             .cache = cf_span_of(cache),
                             .rows = cf_span_of(info),
                             .y = cf_span_of(y),
                             .n_rows = n_rows,
                             .n_heads = HEADS,
                             .rank = RANK,
                             .n_rope = ROPE,
                             .q_stride = HEADS * ROPE,
                             .q_head_stride = ROPE,
                             .scale = 0.7f,
                             .kv_dtype = dtype});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    float *out = malloc(n_rows * HEADS * RANK * 4);
    if (out)
        memcpy(out, cf_gpu_host_read(cf_span_of(y)), n_rows * HEADS * RANK * 4);
    cf_gpu_buf **bufs[] = {&x, &cells, &cache, &q, &info, &y};
    for (size_t i = 0; i < sizeof bufs / sizeof bufs[0]; i++)
        cf_gpu_buf_destroy(bufs[i]);
    return out;
}

/* On a GPU a row of 32k cells is cut into spans that work-groups take side by side, in a latent
 * cache and in one of keys and values; another row beside it changes no bit. */
static void spans_of_a_gpu_add_up(void)
{
    NEED_VULKAN();
    enum { CELLS = 32768, Y = 3 * 32 };
    static const cf_format formats[] = {CF_F32, CF_F16, CF_Q8_0};
    static const struct long_kv kv = {CELLS, 4, 2, 8, 16, 0, 0, 0, CF_F16};
    cf_gpu *gpu = open_checked(NULL, false), *ref = NULL;
    cf_err err = {0};
    REQUIRE(gpu && cf_gpu_open(&ref, "ref", NULL, &err) == 0);
    vk_test_as_gpu = true;
    for (int i = 0; i < 3; i++) {
        float *one = long_latent_attention(gpu, CELLS, formats[i], 1);
        float *two = long_latent_attention(gpu, CELLS, formats[i], 2);
        float *want = long_latent_attention(ref, CELLS, formats[i], 2);
        REQUIRE(one && two && want);
        CHECK(memcmp(one, two, Y * 4) == 0);
        double worst = 0;
        for (int j = 0; j < 2 * Y; j++)
            worst = fmax(worst, fabs((double)two[j] - (double)want[j]));
        CHECK(worst < 1e-4);
        free(one);
        free(two);
        free(want);
    }
    float *got = long_kv_attention(gpu, &kv), *want = long_kv_attention(ref, &kv);
    REQUIRE(got && want);
    for (uint32_t j = 0; j < 4 * kv.n_heads * kv.d_v; j++)
        CHECK(fabs((double)got[j] - (double)want[j]) < 1e-4);
    free(got);
    free(want);
    vk_test_as_gpu = false;
    cf_gpu_close(&ref);
    close_silent(&gpu);
}

/* Scores travel as integers of the same order: sums of negative ones must come back as such. */
static void groups_of_negative_scores_are_ordered(void)
{
    NEED_VULKAN();
    enum { N = 8, K = 3 };
    /* p is 0.5 throughout; sums of the groups: -5, -3, -1, -9 */
    static const float bias[N] = {-1, -5, -2, -2, -3, 1, -9, -1};
    static const uint32_t want[K] = {2, 3, 5};
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    cf_gpu_buf *in = make(gpu, CF_BUF_UPLOAD, 2 * N * 4),
               *out = make(gpu, CF_BUF_DEVICE, 2 * K * 4),
               *host = make(gpu, CF_BUF_READBACK, 2 * K * 4);
    memset(cf_gpu_host_write(cf_span_of(in)), 0, N * 4);
    memcpy(cf_gpu_host_write(cf_span_sub(cf_span_of(in), N * 4, N * 4)), bias, sizeof bias);
    cf_gpu_route(gpu, CF_STREAM_COMPUTE,
                 &(cf_op_route){.logits = cf_span_sub(cf_span_of(in), 0, N * 4),
                                .bias = cf_span_sub(cf_span_of(in), N * 4, N * 4),
                                .ids = cf_span_sub(cf_span_of(out), 0, K * 4),
                                .weights = cf_span_sub(cf_span_of(out), K * 4, K * 4),
                                .host_ids = cf_span_sub(cf_span_of(host), 0, K * 4),
                                .host_weights = cf_span_sub(cf_span_of(host), K * 4, K * 4),
                                .n_rows = 1,
                                .n = N,
                                .k = K,
                                .score = CF_SCORE_SIGMOID,
                                .n_groups = 4,
                                .top_groups = 2,
                                .group_score = CF_GROUP_TOP2,
                                .scale = 1.0f});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    const uint32_t *ids = cf_gpu_host_read(cf_span_of(host));
    for (int i = 0; i < K; i++)
        CHECK_INT(ids[i], want[i]);
    cf_gpu_buf_destroy(&in);
    cf_gpu_buf_destroy(&out);
    cf_gpu_buf_destroy(&host);
    close_silent(&gpu);
}

/* The device computes in every format, and a bias in blocks may be larger than the room in which
 * such vectors are decoded. */
static void every_format_is_there(void)
{
    NEED_VULKAN();
    enum { OUTPUTS = 70400 }; /* room: 32,768 on a CPU device, 262,144 elsewhere */
    cf_rng rng = {.state = 3};
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    for (cf_format f = CF_F32; f < CF_FORMAT_COUNT; f = (cf_format)(f + 1))
        CHECK_INT(cf_gpu_supports(gpu, f), cf_format_computable(f));
    uint64_t bias_bytes = cf_format_row_bytes(CF_Q8_0, OUTPUTS);
    cf_gpu_buf *w = make(gpu, CF_BUF_UPLOAD, OUTPUTS * 4), *x = make(gpu, CF_BUF_UPLOAD, 16),
               *bias = make(gpu, CF_BUF_UPLOAD, bias_bytes),
               *y = make(gpu, CF_BUF_READBACK, OUTPUTS * 4);
    float *weights = cf_gpu_host_write(cf_span_of(w)), *want = malloc(OUTPUTS * sizeof *want);
    uint8_t *blocks = cf_gpu_host_write(cf_span_of(bias));
    *(float *)cf_gpu_host_write(cf_span_of(x)) = 2.0f;
    op_blocks_fill(&rng, CF_Q8_0, blocks, OUTPUTS);
    cf_ref_format_decode(CF_Q8_0, blocks, 0, OUTPUTS, want);
    for (int i = 0; i < OUTPUTS; i++) {
        weights[i] = (float)(i % 64);
        want[i] += 2.0f * weights[i];
    }
    cf_gpu_linear(
        gpu, CF_STREAM_COMPUTE,
        &(cf_op_linear){
            .w = {.span = cf_span_of(w), .dtype = CF_F32, .rows = OUTPUTS, .cols = 1},
            .bias = {.span = cf_span_of(bias), .dtype = CF_Q8_0, .rows = 1, .cols = OUTPUTS},
            .x = {x, 0, 4},
            .y = cf_span_of(y),
            .n_rows = 1,
            .x_stride = 1,
            .y_stride = OUTPUTS,
            .scale = 1.0f});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    const float *got = cf_gpu_host_read(cf_span_of(y));
    int wrong = 0;
    for (int i = 0; i < OUTPUTS; i++)
        wrong += fabsf(got[i] - want[i]) > 1e-4f;
    CHECK_INT(wrong, 0);
    CHECK_INT(cf_gpu_validation_errors(gpu), 0);
    free(want);
    cf_gpu_buf_destroy(&w);
    cf_gpu_buf_destroy(&x);
    cf_gpu_buf_destroy(&bias);
    cf_gpu_buf_destroy(&y);
    cf_gpu_close(&gpu);
}

int main(int argc, char **argv)
{
    (void)argc;
    setvbuf(stdout, NULL, _IOLBF, 0);
    vulkan_begin(argv[0]);
    RUN(rows_do_not_see_each_other);
    RUN(aligned_loads_change_no_bit);
    RUN(long_contexts_are_walked_to_the_end);
    RUN(spans_add_up);
    RUN(spans_of_a_gpu_add_up);
    RUN(groups_of_negative_scores_are_ordered);
    RUN(every_format_is_there);
    return check_done();
}
