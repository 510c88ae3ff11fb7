/* Catches: a stored format that is decoded to other bits than its definition, a quantiser that
 * writes other bits or loses more than it must, and a reference op that computes something else
 * from stored blocks than from the values they stand for.
 *
 * The fixtures (tests/fixtures/quants) hold blocks and their values for every format. */
#include <math.h>

#include "gpu/formats.h"
#include "gpu/ref/ref_math.h"
#include "gpu/ref/ref_ops.h"
#include "runtime/base/f8.h"
#include "runtime/base/rng.h"
#include "runtime/quantise.h"
#include "tests/check.h"

#define DIR "tests/fixtures/quants/"

enum { ROWS = 6, COLS = 512 };

/* A whole file on the heap; exits when the fixture is missing: nothing could be said without. */
static void *file_load(const char *name, const char *suffix, size_t *bytes)
{
    char path[128];
    snprintf(path, sizeof path, DIR "%s%s", name, suffix);
    FILE *f = fopen(path, "rb");
    long size = -1;
    if (f && fseek(f, 0, SEEK_END) == 0 && (size = ftell(f)) > 0)
        rewind(f);
    char *data = size > 0 ? malloc((size_t)size) : NULL;
    if (!data || fread(data, 1, (size_t)size, f) != (size_t)size) {
        printf("cannot read %s\n", path);
        exit(1);
    }
    fclose(f);
    *bytes = (size_t)size;
    return data;
}

/* The format's name as the fixtures spell it. */
static const char *lower(cf_format f, char out[16])
{
    size_t i = 0;
    for (const char *s = cf_format_name(f); *s; s++)
        out[i++] = (char)(*s >= 'A' && *s <= 'Z' ? *s + 'a' - 'A' : *s);
    out[i] = 0;
    return out;
}

static uint64_t bits_differ(const float *a, const float *b, uint64_t n)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < n; i++)
        count += cf_f32_bits(a[i]) != cf_f32_bits(b[i]);
    return count;
}

/* ---- the table ---- */

static void table(void)
{
    cf_format f;
    CHECK(CF_F32 == 0 && CF_F16 == 1 && CF_BF16 == 2); /* shader tables count on it */
    for (int i = 0; i < CF_FORMAT_COUNT; i++) {
        const cf_format_info *info = &cf_formats[i];
        REQUIRE(info->name && info->block_bytes > 0);
        CHECK(info->block_values <= 2 || info->block_values % 32 == 0);
        CHECK_INT(CF_FORMAT_MAX_BLOCK % info->block_values, 0);
        CHECK(info->block_bytes <= CF_FORMAT_MAX_BLOCK_BYTES);
        CHECK(cf_format_find(info->name, &f) && f == (cf_format)i);
        if (info->gguf >= 0)
            CHECK(cf_format_find_gguf((uint32_t)info->gguf, &f) && f == (cf_format)i);
        CHECK(cf_format_row_bytes((cf_format)i, 512) ==
              512u / info->block_values * info->block_bytes);
    }
    CHECK(!cf_format_find("F4", &f) && !cf_format_find_gguf(4, &f));
    CHECK(!cf_format_find_gguf(UINT32_MAX, &f));
    CHECK_STR(cf_format_name((cf_format)999), "?");
    CHECK(cf_format_computable(CF_F8_E4M3) && !cf_format_computable(CF_F8_E5M2));
}

/* ---- number formats ---- */

typedef float (*code_value)(uint16_t code);
static float value_e4m3(uint16_t c)
{
    return cf_e4m3_to_f32((uint8_t)c);
}
static float value_e5m2(uint16_t c)
{
    return cf_e5m2_to_f32((uint8_t)c);
}
static float value_e8m0(uint16_t c)
{
    return cf_e8m0_to_f32((uint8_t)c);
}
static float value_e8m0_half(uint16_t c)
{
    return cf_e8m0_half_to_f32((uint8_t)c);
}
static float value_ue4m3_half(uint16_t c)
{
    return cf_ue4m3_half_to_f32((uint8_t)c);
}

static void numbers_check(const char *name, code_value value)
{
    size_t bytes;
    float *want = file_load(name, "_all.f32", &bytes);
    for (uint32_t c = 0; c < bytes / 4; c++) {
        float got = value((uint16_t)c);
        if (isnan(want[c]) ? !isnan(got) : cf_f32_bits(got) != cf_f32_bits(want[c])) {
            printf("    %s code %u is %g, expected %g\n", name, c, (double)got, (double)want[c]);
            check_case_failed = true;
        }
    }
    free(want);
}

static void number_tables(void)
{
    numbers_check("e4m3fn", value_e4m3);
    numbers_check("e5m2", value_e5m2);
    numbers_check("e8m0", value_e8m0);
    numbers_check("e8m0_half", value_e8m0_half);
    numbers_check("ue4m3_half", value_ue4m3_half);
    numbers_check("f16", cf_f16_to_f32);
    for (unsigned c = 0; c < 256; c++) { /* the stored format, through the table of decoders */
        uint8_t code = (uint8_t)c;
        float got;
        cf_ref_format_decode(CF_F8_E4M3, &code, 0, 1, &got);
        CHECK(isnan(got) || cf_f32_bits(got) == cf_f32_bits(value_e4m3((uint16_t)c)));
        CHECK(isnan(got) == ((c & 127) == 127));
        float pair[2], small[2]; /* two codes of 4 bits in a byte, the first in its low bits */
        cf_ref_format_decode(CF_I4, &code, 0, 2, pair);
        CHECK(pair[0] == (float)(c % 16) - 8 && pair[1] == (float)(c / 16) - 8);
        cf_ref_format_decode(CF_F4_E2M1, &code, 0, 2, small);
        for (int i = 0; i < 2; i++) {
            unsigned n = i ? c / 16 : c % 16, exponent = n >> 1 & 3;
            float mantissa = exponent ? 1 + 0.5f * (float)(n & 1) : 0.5f * (float)(n & 1);
            float value = ldexpf(mantissa, exponent ? (int)exponent - 1 : 0);
            CHECK(small[i] == (n & 8 ? -value : value));
        }
    }
}

/* ---- decoding ---- */

/* Every format with a fixture. F8_E4M3 and the pairs of 4 bits have none. */
#define EACH_FIXTURE(f) for (cf_format f = CF_F32; f < CF_F4_E2M1; f++)

static void decode_rows(void)
{
    EACH_FIXTURE(f)
    {
        char name[16];
        size_t bytes, value_bytes;
        uint8_t *blocks = file_load(lower(f, name), ".bin", &bytes);
        float *want = file_load(name, ".f32", &value_bytes), got[COLS];
        uint64_t row_bytes = cf_format_row_bytes(f, COLS);
        CHECK_INT(bytes, ROWS * row_bytes);
        REQUIRE(value_bytes == ROWS * COLS * sizeof *want);
        for (int r = 0; r < ROWS; r++) {
            cf_ref_format_decode(f, blocks + (uint64_t)r * row_bytes, 0, COLS, got);
            uint64_t n = bits_differ(got, want + r * COLS, COLS);
            if (n) {
                printf("    %s row %d: %llu values differ\n", name, r, (unsigned long long)n);
                check_case_failed = true;
            }
        }
        free(blocks);
        free(want);
    }
}

/* Any range of a row, from any address, equals the same range of the whole row. */
static void decode_ranges(void)
{
    cf_rng rng = {7};
    EACH_FIXTURE(f)
    {
        char name[16];
        size_t bytes, value_bytes;
        uint8_t *blocks = file_load(lower(f, name), ".bin", &bytes);
        float *want = file_load(name, ".f32", &value_bytes), got[COLS];
        uint8_t *moved = malloc(bytes + 1);
        memcpy(moved + 1, blocks, bytes);
        for (int k = 0; k < 60; k++) {
            uint64_t begin = cf_rng_below(&rng, COLS), n = cf_rng_below(&rng, COLS - begin) + 1;
            got[n - 1] = -1;
            cf_ref_format_decode(f, moved + 1, begin, n, got);
            CHECK_INT(bits_differ(got, want + begin, n), 0);
        }
        uint64_t values = cf_formats[f].block_values, last = COLS / values - 1;
        cf_ref_format_decode_blocks(f, blocks, last, 1, got);
        CHECK_INT(bits_differ(got, want + last * values, values), 0);
        free(moved);
        free(blocks);
        free(want);
    }
}

/* ---- ops on stored blocks ---- */

static cf_gpu_buf buffers[8];
static int n_buffers;

static cf_span span_of(void *host, uint64_t bytes)
{
    cf_gpu_buf *b = &buffers[n_buffers++ % 8];
    *b = (cf_gpu_buf){.bytes = bytes, .host = host};
    return cf_span_of(b);
}

/* The fixture's matrix, as stored and as float32, and the values that go through it. */
struct matrix {
    cf_weight stored, plain;
    float x[7 * COLS], y_stored[7 * COLS], y_plain[7 * COLS];
    cf_span in, out_stored, out_plain;
};

static void matrix_load(struct matrix *m, cf_format f)
{
    char name[16];
    size_t bytes, value_bytes;
    cf_rng rng = {(uint64_t)f + 1};
    uint8_t *blocks = file_load(lower(f, name), ".bin", &bytes);
    float *values = file_load(name, ".f32", &value_bytes);
    n_buffers = 0;
    m->stored = (cf_weight){.span = span_of(blocks, bytes), .dtype = f, .rows = ROWS, .cols = COLS};
    m->plain = (cf_weight){
        .span = span_of(values, value_bytes), .dtype = CF_F32, .rows = ROWS, .cols = COLS};
    for (int i = 0; i < 7 * COLS; i++) {
        m->x[i] = (float)(cf_rng_unit(&rng) * 2 - 1);
        m->y_stored[i] = m->y_plain[i] = 0.5f;
    }
    m->in = span_of(m->x, sizeof m->x);
    m->out_stored = span_of(m->y_stored, sizeof m->y_stored);
    m->out_plain = span_of(m->y_plain, sizeof m->y_plain);
}

static void matrix_check(struct matrix *m, const char *op)
{
    uint64_t n = bits_differ(m->y_stored, m->y_plain, 7 * COLS), moved = 0;
    for (int i = 0; i < 7 * COLS; i++)
        moved += m->y_stored[i] != 0.5f;
    if (n || !moved) {
        printf("    %s of %s: %llu of %llu results differ\n", op, cf_format_name(m->stored.dtype),
               (unsigned long long)n, (unsigned long long)moved);
        check_case_failed = true;
    }
    for (int i = 0; i < 7 * COLS; i++)
        m->y_stored[i] = m->y_plain[i] = 0.5f;
}

#define BOTH(m, name, op, weight, out)                                                             \
    do {                                                                                           \
        (op).weight = (m)->stored;                                                                 \
        (op).out = (m)->out_stored;                                                                \
        cf_ref_##name(NULL, &(op));                                                                \
        (op).weight = (m)->plain;                                                                  \
        (op).out = (m)->out_plain;                                                                 \
        cf_ref_##name(NULL, &(op));                                                                \
        matrix_check((m), #name);                                                                  \
    } while (0)

static void dense_ops(struct matrix *m)
{
    cf_op_linear linear = {.x = m->in,
                           .n_rows = 7,
                           .x_stride = COLS,
                           .y_stride = COLS,
                           .scale = 0.75f,
                           .accumulate = true};
    BOTH(m, linear, linear, w, y);
    cf_op_linear parts = linear; /* every other row from the second on; another as the bias */
    for (int plain = 0; plain < 2; plain++) {
        parts.w = plain ? m->plain : m->stored;
        parts.w.rows = 2;
        parts.w.row_first = 1;
        parts.w.row_step = 2;
        parts.bias = plain ? m->plain : m->stored;
        parts.bias.rows = 1;
        parts.bias.row_first = 3;
        parts.bias.cols = cf_formats[m->stored.dtype].block_values > 1
                              ? cf_formats[m->stored.dtype].block_values
                              : parts.w.rows;
        parts.y = plain ? m->out_plain : m->out_stored;
        cf_ref_linear(NULL, &parts);
    }
    matrix_check(m, "linear of every other row");
    for (int heads = 1; heads <= 2; heads++) { /* one vector for all heads, or a part for each */
        for (int plain = 0; plain < 2; plain++) {
            cf_weight v = plain ? m->plain : m->stored;
            v.rows = 1;
            cf_op_norm norm = {.kind = CF_NORM_LAYER,
                               .w = v,
                               .bias = v,
                               .x = m->in,
                               .y = plain ? m->out_plain : m->out_stored,
                               .n_rows = 3,
                               .n_heads = (uint32_t)heads,
                               .width = COLS / (uint32_t)heads,
                               .x_stride = COLS,
                               .x_head_stride = COLS / (uint32_t)heads,
                               .y_stride = COLS,
                               .y_head_stride = COLS / (uint32_t)heads,
                               .eps = 1e-5f,
                               .scale = 1,
                               .unit_offset = true};
            cf_ref_norm(NULL, &norm);
        }
        matrix_check(m, "norm");
    }
    cf_op_head_linear head = {.x = m->in,
                              .n_rows = 2,
                              .n_heads = 2,
                              .head_rows = 3,
                              .row_off = 1,
                              .n_sub = 2,
                              .x_stride = 2 * COLS,
                              .x_head_stride = COLS,
                              .y_stride = 2 * COLS,
                              .y_head_stride = COLS};
    BOTH(m, head_linear, head, w, y);
    head.transposed = true;
    BOTH(m, head_linear, head, w, y);
    uint32_t ids[3] = {5, 0, 3};
    cf_op_get_rows rows = {
        .ids = span_of(ids, sizeof ids), .n_rows = 3, .y_stride = COLS, .scale = 1.5f};
    BOTH(m, get_rows, rows, table, y);
}

static void expert_ops(struct matrix *m)
{
    uint32_t pairs[2] = {1, 2};
    float weights[4] = {1, 0.3f, 0.6f, 1}; /* 2 rows of 2 ranks */
    cf_span pair_span = span_of(pairs, sizeof pairs);
    cf_span weight_span = span_of(weights, sizeof weights);
    for (int plain = 0; plain < 2; plain++) {
        const cf_weight *w = plain ? &m->plain : &m->stored;
        cf_expert_work e = {.gate = *w, .up = *w, .down = *w, .pair_begin = 0, .pair_count = 2};
        cf_op_expert_glu glu = {.experts = &e,
                                .n_experts = 1,
                                .x = m->in,
                                .pairs = pair_span,
                                .h = plain ? m->out_plain : m->out_stored,
                                .n_rows = 2,
                                .k = 2,
                                .hidden = COLS,
                                .ffn = ROWS};
        cf_ref_expert_glu(NULL, &glu);
    }
    matrix_check(m, "expert_glu");
    for (int plain = 0; plain < 2; plain++) {
        const cf_weight *w = plain ? &m->plain : &m->stored;
        cf_expert_work e = {.gate = *w, .up = *w, .down = *w, .pair_begin = 0, .pair_count = 2};
        cf_op_expert_down down = {.experts = &e,
                                  .n_experts = 1,
                                  .h = m->in,
                                  .pairs = pair_span,
                                  .weights = weight_span,
                                  .out = plain ? m->out_plain : m->out_stored,
                                  .n_rows = 2,
                                  .k = 2,
                                  .hidden = ROWS,
                                  .ffn = COLS};
        cf_ref_expert_down(NULL, &down);
    }
    matrix_check(m, "expert_down");
}

/* What an op computes from blocks equals, bit for bit, what it computes from their values. */
static void ops(void)
{
    static struct matrix m;
    EACH_FIXTURE(f)
    {
        matrix_load(&m, f);
        uint8_t *blocks = m.stored.span.buf->host, *values = m.plain.span.buf->host;
        dense_ops(&m);
        n_buffers = 5;
        expert_ops(&m);
        free(blocks);
        free(values);
    }
}

/* The fixtures' own products, summed in float64: within 1e-6 of the sum of magnitudes. */
static void products(void)
{
    size_t bytes;
    float *x = file_load("x", ".f32", &bytes);
    EACH_FIXTURE(f)
    {
        char name[16];
        uint8_t *blocks = file_load(lower(f, name), ".bin", &bytes);
        float *values = file_load(name, ".f32", &bytes), *want = file_load(name, "_y.f32", &bytes);
        for (int r = 0; r < ROWS; r++) {
            const float *rows[1] = {x};
            float got;
            double size = 0;
            cf_ref_dots(f, blocks + (uint64_t)r * cf_format_row_bytes(f, COLS), COLS, rows, 1,
                        &got);
            for (int i = 0; i < COLS; i++)
                size += fabs((double)values[r * COLS + i] * (double)x[i]);
            CHECK(fabs((double)got - (double)want[r]) <= 1e-6 * size);
        }
        free(blocks);
        free(values);
        free(want);
    }
    free(x);
}

/* ---- quantisers ---- */

static const cf_format exact[] = {CF_Q8_0, CF_Q4_0,  CF_Q4_1, CF_Q5_0,
                                  CF_Q5_1, CF_MXFP4, CF_BF16, CF_F16};

static void exact_check(cf_format f, const char *in, const char *out_prefix, uint64_t cols)
{
    char name[16], path[40];
    size_t in_bytes, want_bytes;
    float *x = file_load(in, ".f32", &in_bytes);
    snprintf(path, sizeof path, "%s%s", out_prefix, lower(f, name));
    uint8_t *want = file_load(path, ".bin", &want_bytes), *got = malloc(want_bytes);
    uint64_t rows = in_bytes / 4 / cols, row_bytes = cf_format_row_bytes(f, cols), bad = 0;
    REQUIRE(want_bytes == rows * row_bytes);
    for (uint64_t r = 0; r < rows; r++) {
        CHECK_INT(cf_quantise_row(f, x + r * cols, cols, got + r * row_bytes), -1);
        if (memcmp(got + r * row_bytes, want + r * row_bytes, row_bytes) != 0) {
            printf("    %s row %llu differs\n", path, (unsigned long long)r);
            bad++;
        }
    }
    CHECK_INT(bad, 0);
    free(x);
    free(want);
    free(got);
}

static void quantise_exact(void)
{
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        exact_check(exact[i], "w", "", COLS);
        exact_check(exact[i], "edge", "edge_", 32);
    }
    exact_check(CF_F32, "w", "", COLS);
}

/* Rounding to 16 bits; element 13 is a NaN and stays one. */
static void rounding(void)
{
    size_t bytes, want_bytes;
    float *x = file_load("cvt_in", ".f32", &bytes);
    uint64_t n = bytes / 4;
    uint16_t *got = malloc(n * 2);
    for (int half = 0; half < 2; half++) {
        uint16_t *want = file_load(half ? "cvt_f16" : "cvt_bf16", ".u16", &want_bytes);
        REQUIRE(want_bytes == 2 * n);
        CHECK_INT(cf_quantise_row(half ? CF_F16 : CF_BF16, x, n, got), -1);
        for (uint64_t i = 0; i < n; i++)
            if (i == 13)
                CHECK(isnan(half ? cf_f16_to_f32(got[i]) : cf_bf16_to_f32(got[i])));
            else
                CHECK_INT(got[i], want[i]);
        free(want);
    }
    free(x);
    free(got);
}

/* Relative root mean square error of a row. */
static double row_error(const float *x, const float *y, uint64_t n)
{
    double miss = 0, size = 0;
    for (uint64_t i = 0; i < n; i++) {
        miss += ((double)y[i] - (double)x[i]) * ((double)y[i] - (double)x[i]);
        size += (double)x[i] * (double)x[i];
    }
    return sqrt(miss / size);
}

/* The searching quantisers lose no more than the reference quantiser of the format. */
static void quantise_search(void)
{
    static const cf_format searched[] = {CF_Q4_K, CF_Q5_K, CF_Q6_K, CF_IQ4_NL};
    size_t bytes;
    float *x = file_load("w", ".f32", &bytes), got[COLS], want[COLS];
    for (size_t i = 0; i < sizeof searched / sizeof *searched; i++) {
        cf_format f = searched[i];
        char name[24];
        uint64_t row_bytes = cf_format_row_bytes(f, COLS);
        snprintf(name, sizeof name, "%s_ref", lower(f, (char[16]){0}));
        uint8_t *ref = file_load(name, ".bin", &bytes), out[COLS * 4];
        REQUIRE(bytes == ROWS * row_bytes);
        for (uint64_t r = 0; r < ROWS; r++) {
            CHECK_INT(cf_quantise_row(f, x + r * COLS, COLS, out), -1);
            cf_ref_format_decode(f, out, 0, COLS, got);
            cf_ref_format_decode(f, ref + r * row_bytes, 0, COLS, want);
            double ours = row_error(x + r * COLS, got, COLS);
            double theirs = row_error(x + r * COLS, want, COLS);
            if (getenv("CHECK_VERBOSE"))
                printf("    %s row %d: %.6f, reference %.6f\n", name, (int)r, ours, theirs);
            CHECK(ours <= theirs);
        }
        free(ref);
    }
    free(x);
}

#define EACH_QUANTISED(f)                                                                          \
    for (cf_format f = CF_Q4_0; f < CF_FORMAT_COUNT; f++)                                          \
        if (cf_quantise_can(f))

/* A value that is not finite is refused by its index, wherever it lies. */
static void quantise_not_finite(void)
{
    float x[COLS] = {1, -2, 3};
    uint8_t out[COLS * 4];
    CHECK(cf_quantise_can(CF_F32) && !cf_quantise_can(CF_IQ1_S) && !cf_quantise_can(CF_I8));
    EACH_QUANTISED(f)
    {
        static const int at[] = {0, 31, 32, 300, COLS - 1};
        for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
            float before = x[at[i]];
            x[at[i]] = i % 2 ? NAN : -INFINITY;
            CHECK_INT(cf_quantise_row(f, x, COLS, out), at[i]);
            x[at[i]] = before;
        }
        CHECK_INT(cf_quantise_row(f, x, COLS, out), -1);
    }
}

/* Rows at the ends of float32: no undefined behaviour, zeros stay zeros, values that a format
 * can hold come back, and those beyond are held near its largest by the searching quantisers. */
static void quantise_extremes(void)
{
    static const float sizes[] = {0, 1e-45f, 1e-38f, 1e-30f, 1e-7f, 1e-3f, 1, 1e4f, 1e10f, 3e38f};
    float x[256], y[256];
    uint8_t out[256 * 4];
    EACH_QUANTISED(f)
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (int shape = 0; shape < 4; shape++) {
            cf_rng rng = {k};
            for (int i = 0; i < 256; i++) {
                float unit = (float)(cf_rng_unit(&rng) * 2 - 1);
                float pick[4] = {1, -1, unit, i == 77 ? 1.0f : 0.0f};
                x[i] = sizes[k] * pick[shape];
            }
            CHECK_INT(cf_quantise_row(f, x, 256, out), -1);
            cf_ref_format_decode(f, out, 0, 256, y);
            bool searched = f == CF_Q4_K || f == CF_Q5_K || f == CF_Q6_K || f == CF_IQ4_NL;
            for (int i = 0; i < 256; i++) {
                CHECK(!searched || isfinite(y[i]));
                CHECK(sizes[k] != 0 || y[i] == 0);
            }
            if (sizes[k] >= 1e-3f && sizes[k] <= 1e4f) {
                double limit = f == CF_MXFP4 ? 0.2 : 0.13;
                CHECK(row_error(x, y, 256) < limit);
            }
            CHECK(!searched || sizes[k] < 1e10f || shape == 3 || fabsf(y[0]) > 1e6f);
        }
}

int main(void)
{
    RUN(table);
    RUN(number_tables);
    RUN(decode_rows);
    RUN(decode_ranges);
    RUN(ops);
    RUN(products);
    RUN(quantise_exact);
    RUN(rounding);
    RUN(quantise_search);
    RUN(quantise_not_finite);
    RUN(quantise_extremes);
    return check_done();
}
