/* Catches: a buffer that grows faster than the context; attention that is wrong once there are more
 * cells than a block, a workgroup or a split holds; numbers at far positions that depend on how the
 * text was cut. Small checkpoints, read as if they held a long context, at 2,200 positions: plain C
 * token by token is the definition, every device in chunks is held to it. */
#include "gpu/gpu.h"
#include "models/family.h"
#include "runtime/base/rng.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/sized.h"

#define MODELS "tests/fixtures/models/"

enum { POSITIONS = 2200, TAIL = 16, MOST_VOCAB = 512 };

static const char *const checkpoints[] = {MODELS "longcat_flash", MODELS "mixtral"};
enum { MODELS_N = sizeof checkpoints / sizeof *checkpoints };

/* ---- the memory plan ---- */

static uint64_t item_of(const cf_mem_item *items, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++)
        if (!strcmp(items[i].name, name))
            return items[i].bytes;
    return 0;
}

/* What is added from 32Ki to 64Ki positions is at most twice what is added from 16Ki to 32Ki. */
static void items_check(const cf_mem_item *a, uint32_t na, const cf_mem_item *b, uint32_t nb,
                        const cf_mem_item *c, uint32_t nc)
{
    enum { ROUNDING = 1 << 16 };
    for (uint32_t i = 0; i < nc; i++) {
        uint64_t x = item_of(a, na, c[i].name), y = item_of(b, nb, c[i].name);
        bool linear = c[i].bytes <= y || c[i].bytes - y <= 2 * (y > x ? y - x : 0) + ROUNDING;
        if (!linear)
            printf("    %s: %llu, %llu, %llu bytes\n", c[i].name, (unsigned long long)x,
                   (unsigned long long)y, (unsigned long long)c[i].bytes);
        CHECK(linear);
    }
}

static void memory_is_linear(void)
{
    static const char *const dirs[] = {"longcat_flash", "longcat_ngram", "mixtral", "deepseek_v32",
                                       "gpt_oss",       "qwen3_next",    "minimax", "llama4_scout"};
    static cf_memory_plan plans[3];
    for (size_t d = 0; d < sizeof dirs / sizeof *dirs; d++) {
        char path[200];
        sized_model m;
        snprintf(path, sizeof path, MODELS "%s", dirs[d]);
        REQUIRE(sized_plan_open(&m, path));
        m.model->spec.ctx_max = 1u << 20;
        for (int i = 0; i < 3; i++) {
            cf_err err = {0};
            cf_options o;
            cf_options_init(&o);
            o.device = "ref";
            o.ctx = 16384u << i;
            o.vram_bytes = o.ram_bytes = 1ull << 36;
            CHECK_INT(sized_plan(&m, &o, &plans[i], &err), 0);
            CHECK_STR(err.msg, "");
        }
        items_check(plans[0].vram, plans[0].n_vram, plans[1].vram, plans[1].n_vram, plans[2].vram,
                    plans[2].n_vram);
        items_check(plans[0].ram, plans[0].n_ram, plans[1].ram, plans[1].n_ram, plans[2].ram,
                    plans[2].n_ram);
        /* A chunk's activations and rows do not know the context at all. */
        for (int i = 0; i < CF_XB_COUNT; i++)
            CHECK(plans[2].exec_bytes[i] == plans[0].exec_bytes[i] || i == CF_XB_SCORES);
        sized_model_close(&m);
    }
}

/* ---- 2,200 positions ---- */

typedef struct tail {
    float logits[TAIL][MOST_VOCAB];
    uint32_t n, vocab;
} tail;

static void on_row(void *user, uint32_t position, const float *logits, const float *hidden)
{
    (void)position, (void)hidden;
    tail *t = user;
    if (t->n < TAIL)
        memcpy(t->logits[t->n++], logits, t->vocab * sizeof(float));
}

static cf_engine *engine_open(const char *dir, const char *device, uint32_t chunk, cf_err *err)
{
    cf_model *m = NULL;
    cf_engine *e = NULL;
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.ctx = POSITIONS;
    o.chunk = chunk;
    o.kv = "f32";
    o.threads = 2;
    o.vram_bytes = 256u << 20;
    o.ram_bytes = 64u << 20;
    if (cf_model_open(&m, dir, err) < 0)
        return NULL;
    m->spec.ctx_max = POSITIONS;
    if (cf_engine_create(&e, m, &o, err) < 0)
        cf_model_free(&m);
    return e;
}

/* The text in chunks, its last rows `step` at a time. CF_EDEVICE: the device lacks something. */
static int text_run(const char *dir, const char *device, uint32_t chunk, uint32_t step, tail *out)
{
    cf_err err = {0};
    cf_session *s = NULL;
    static int32_t ids[POSITIONS];
    cf_engine *e = engine_open(dir, device, chunk, &err);
    if (!e)
        return err.code;
    cf_rng rng = {.state = 5};
    cf_outputs rows = {.row = on_row, .user = out};
    out->n = 0;
    out->vocab = e->model->spec.vocab;
    for (uint32_t i = 0; i < POSITIONS; i++)
        ids[i] = (int32_t)cf_rng_below(&rng, out->vocab);
    int rc = out->vocab <= MOST_VOCAB ? cf_session_create(&s, e, &err) : -EINVAL;
    if (rc == 0)
        rc = cf_session_extend(s, ids, POSITIONS - TAIL, CF_PHASE_PROMPT, NULL, &err);
    for (uint32_t i = POSITIONS - TAIL; i < POSITIONS && rc == 0; i += step)
        rc = cf_session_extend(s, ids + i, step, CF_PHASE_DECODE, &rows, &err);
    CHECK_STR(err.msg, "");
    CHECK_INT(rc, 0);
    CHECK_INT(out->n, TAIL);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    return rc;
}

/* A choice of experts may flip where two are close: one row may differ. */
static void tails_compare(const tail *want, const tail *got)
{
    double sum = 0, squares = 0, most = 0;
    uint32_t far = 0, n = TAIL * want->vocab;
    for (uint32_t r = 0; r < TAIL; r++)
        for (uint32_t i = 0; i < want->vocab; i++) {
            sum += (double)want->logits[r][i];
            squares += (double)want->logits[r][i] * (double)want->logits[r][i];
        }
    double std = sqrt(squares / n - sum / n * (sum / n));
    for (uint32_t r = 0; r < TAIL; r++) {
        double error = 0;
        for (uint32_t i = 0; i < want->vocab; i++)
            error = fmax(error, fabs((double)want->logits[r][i] - (double)got->logits[r][i]) / std);
        most = fmax(most, error);
        far += !(error <= 2e-3);
    }
    printf("    at most %.1e x std, %u rows beyond\n", most, far);
    CHECK(far <= 1);
}

static tail definition[MODELS_N], other;

static void token_by_token(int i)
{
    CHECK_INT(text_run(checkpoints[i], "ref", 1, 1, &definition[i]), 0);
}

static void in_chunks(int i, const char *device, uint32_t chunk, uint32_t step)
{
    int rc = text_run(checkpoints[i], device, chunk, step, &other);
    if (rc == CF_EDEVICE)
        SKIP("%s cannot compute with this model", device);
    CHECK_INT(rc, 0);
    tails_compare(&definition[i], &other);
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    char name[200];
    RUN(memory_is_linear);
    for (int i = 0; i < MODELS_N; i++) {
        snprintf(name, sizeof name, "ref:0 %s token by token", strrchr(checkpoints[i], '/') + 1);
        RUN_NAMED(name, token_by_token(i));
    }
    while (devices_next(&d)) {
        for (int i = 0; i < MODELS_N; i++) {
            snprintf(name, sizeof name, "%s %s in chunks", d.name,
                     strrchr(checkpoints[i], '/') + 1);
            RUN_NAMED(name, in_chunks(i, d.name, i % 2 ? 97 : 256, i % 2 ? 1 : TAIL));
        }
    }
    return check_done();
}
