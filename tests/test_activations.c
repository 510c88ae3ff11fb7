/* Catches: --activations q8 that does nothing where it should round, that rounds where weights are
 * not of 8 bits or less or where it was not asked for, that moves numbers by more than 8 bits do,
 * that is asked for, changes nothing and does not say so, or that hides a NaN or makes one out of
 * tiny values. On every device there is. */
#include <unistd.h>

#include "gpu/ops.h"
#include "runtime/engine.h"
#include "runtime/quantise.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/on_device.h"
#include "tests/support/oracle.h"

#define MODELS "tests/fixtures/models/"
#define GGUF   "../shared/fixtures/gguf/"

/* most: of the change, in standard deviations of the logits; two to three times what was seen (a
 * choice of experts flips where two are close); 0: none. */
static const struct {
    const char *path, *stem;
    double most;
} models[] = {
    {MODELS "deepseek_v3_fp8", NULL, 0.6},
    {MODELS "gpt_oss", NULL, 0.25},
    {MODELS "longcat_flash", NULL, 0},
    {MODELS "mixtral", NULL, 0},
    {GGUF "longcat_ngram-q8_0.gguf", GGUF "longcat_ngram-q8_0", 0.45},
    {GGUF "mixtral-iq4.gguf", GGUF "mixtral-iq4", 0.1},
};

static const char *device;

/* NULL: the device cannot compute with this model, or it did not run, which is reported. */
static oracle_run *run_with(const oracle *o, const char *path, const char *activations, bool *lacks)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_options p;
    cf_options_init(&p);
    p.device = device;
    p.kv = "f32";
    p.activations = activations;
    p.ctx = o->n_prompt + 1;
    p.chunk = 5;
    p.threads = 2;
    p.vram_bytes = 256u << 20;
    p.ram_bytes = 64u << 20;
    p.check = true;
    oracle_run *r = NULL;
    int rc = cf_engine_open(&e, path, &p, &err);
    *lacks = rc == CF_EDEVICE;
    if (rc == 0 && (rc = cf_session_create(&s, e, &err)) == 0) {
        r = oracle_run_new(o);
        rc = oracle_run_prompt(r, s, 5, &err);
        char *stats = cf_engine_stats_json(e);
        bool rounds = cf_model_q8_steps(e->model) > 0 && !strcmp(activations, "q8");
        CHECK_HAS(stats, rounds ? "\"activations\": \"q8\"" : "\"activations\": \"f32\"");
        free(stats);
    }
    if (rc < 0 && !*lacks) {
        printf("    %s\n", err.msg);
        CHECK_INT(rc, 0);
    }
    cf_session_destroy(&s);
    cf_engine_close(&e);
    return r;
}

/* Largest difference in standard deviations of the logits. */
static double apart(const oracle *o, const oracle_run *a, const oracle_run *b)
{
    double most = 0;
    for (size_t i = 0; i < (size_t)o->n_prompt * o->vocab; i++)
        most = fmax(most, fabs((double)a->logits[i] - (double)b->logits[i]));
    return most / o->logits_std;
}

static void model_run(int i)
{
    bool lacks;
    if (models[i].stem && access(models[i].path, R_OK) != 0)
        SKIP("%s is not there", models[i].path);
    oracle *o = models[i].stem ? oracle_load_stem(models[i].stem) : oracle_load(models[i].path);
    REQUIRE(o);
    oracle_run *exact = run_with(o, models[i].path, "f32", &lacks);
    oracle_run *rounded = lacks ? NULL : run_with(o, models[i].path, "q8", &lacks);
    if (lacks)
        printf("    skip: %s lacks one of its formats\n", device);
    check_case_skipped = lacks;
    if (exact && rounded) {
        double change = apart(o, exact, rounded), error = oracle_logits_error(o, exact);
        printf("    f32 %.1e x std from the reference, q8 %.1e from f32\n", error, change);
        CHECK(error <= 2e-3);
        CHECK(change <= models[i].most);
        CHECK(models[i].most <= 0 || change > 1e-4); /* f32's own noise is less */
    }
    oracle_run_free(exact);
    oracle_run_free(rounded);
    oracle_free(o);
}

/* ---- groups of the definition's edges ---- */

enum { ODD_COLS = 96, ODD_ROWS = 5 };

/* The sums of rows of rounded x: weights are 1, stored as asked. */
static void odd_sums(cf_gpu *gpu, cf_format format, bool transposed, const float *x, float *sums)
{
    uint64_t row_bytes = cf_format_row_bytes(format, ODD_COLS);
    cf_gpu_buf *w = make(gpu, CF_BUF_UPLOAD, row_bytes),
               *in = make(gpu, CF_BUF_UPLOAD, ODD_ROWS * ODD_COLS * 4),
               *out = make(gpu, CF_BUF_READBACK, ODD_ROWS * 4);
    float ones[ODD_COLS];
    for (int i = 0; i < ODD_COLS; i++)
        ones[i] = 1;
    CHECK_INT(cf_quantise_row(format, ones, ODD_COLS, cf_gpu_host_write(cf_span_of(w))), -1);
    memcpy(cf_gpu_host_write(cf_span_of(in)), x, ODD_ROWS * ODD_COLS * 4);
    cf_gpu_linear(gpu, CF_STREAM_COMPUTE,
                  &(cf_op_linear){.w = {.span = {w, 0, row_bytes},
                                        .dtype = format,
                                        .rows = 1,
                                        .cols = ODD_COLS,
                                        .transposed = transposed},
                                  .x = cf_span_of(in),
                                  .y = cf_span_of(out),
                                  .n_rows = ODD_ROWS,
                                  .x_stride = ODD_COLS,
                                  .y_stride = 1,
                                  .scale = 1,
                                  .x_q8 = true});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    memcpy(sums, cf_gpu_host_read(cf_span_of(out)), ODD_ROWS * 4);
    cf_gpu_buf_destroy(&w);
    cf_gpu_buf_destroy(&in);
    cf_gpu_buf_destroy(&out);
}

/* Between groups of 1 and 2: zeros; values whose scale has no inverse; the least that count; one
 * value that is not a number; one that is infinite. */
static void odd_groups(void)
{
    static const struct {
        cf_format format;
        bool transposed;
    } stored[] = {{CF_Q8_0, false}, {CF_BF16, false}, {CF_BF16, true}};
    static const float in_the_middle[ODD_ROWS] = {0, 0x1p-125f, 0x1p-100f, NAN, INFINITY};
    float x[ODD_ROWS * ODD_COLS], sums[ODD_ROWS];
    for (int i = 0; i < ODD_ROWS * ODD_COLS; i++) {
        int group = i / 32 % 3, row = i / ODD_COLS;
        bool all = row < 3 || i % 32 == 7;
        x[i] = group == 0 ? 1 : group == 2 || !all ? 2 : in_the_middle[row];
    }
    cf_err err = {0};
    cf_gpu *gpu = NULL;
    REQUIRE(cf_gpu_open(&gpu, device, &(cf_gpu_options){.threads = 2, .check = true}, &err) == 0);
    for (size_t i = 0; i < sizeof stored / sizeof *stored; i++) {
        odd_sums(gpu, stored[i].format, stored[i].transposed, x, sums);
        for (int row = 0; row < ODD_ROWS; row++) {
            if (row < 3)
                CHECK(fabsf(sums[row] - 96) < 0.1f); /* 1 is stored in 8 bits */
            else
                CHECK(!isfinite(sums[row]));
        }
    }
    CHECK_INT(cf_gpu_validation_errors(gpu), 0);
    cf_gpu_close(&gpu);
}

static void refused(void)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_options p;
    cf_options_init(&p);
    p.device = device;
    p.activations = "q4";
    CHECK_INT(cf_engine_open(&e, MODELS "longcat_flash", &p, &err), -EINVAL);
    CHECK_HAS(err.msg, "activation format \"q4\" is unknown; known: f32, q8");
    CHECK(e == NULL);
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    char name[200];
    while (devices_next(&d)) {
        device = d.name;
        snprintf(name, sizeof name, "%s odd groups", device);
        RUN_NAMED(name, odd_groups());
        for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
            snprintf(name, sizeof name, "%s %s", device, strrchr(models[m].path, '/') + 1);
            RUN_NAMED(name, model_run((int)m));
        }
    }
    device = "ref";
    RUN(refused);
    return check_done();
}
