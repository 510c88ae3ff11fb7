/* The oracle decides: whole checkpoints against reference logits, hidden states, routing and greedy
 * ids, on every device there is. Catches any mistake in a family, the plan, an op or the cache that
 * moves a number by more than float32 noise; a cache size that moves any bit. One process, so that
 * pipelines compile once. The encoder with a decoder is test_encoder's. */
#include "gpu/gpu.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"

static const char *const checkpoints[] = {
    "models/demo",
    "tests/fixtures/models/longcat_flash",
    "tests/fixtures/models/longcat_flash_yarn",
    "tests/fixtures/models/longcat_ngram",
    "tests/fixtures/models/mixtral",
    "tests/fixtures/models/minimax_m2",
    "tests/fixtures/models/qwen2_moe",
    "tests/fixtures/models/qwen3_moe",
    "tests/fixtures/models/olmoe",
    "tests/fixtures/models/deepseek_v1",
    "tests/fixtures/models/deepseek_v2",
    "tests/fixtures/models/deepseek_v2_lite",
    "tests/fixtures/models/deepseek_v3",
    "tests/fixtures/models/deepseek_v3_fp8",
    "tests/fixtures/models/kimi_k2",
    "tests/fixtures/models/glm4_moe",
    "tests/fixtures/models/granitemoe",
    "tests/fixtures/models/ernie4_5_moe",
    "tests/fixtures/models/minicpm_moe",
    "tests/fixtures/models/grok1",
    "tests/fixtures/models/dbrx",
    "tests/fixtures/models/llama4_scout",
    "tests/fixtures/models/llama4_maverick",
    "tests/fixtures/models/gpt_oss",
    "tests/fixtures/models/phimoe",
    "tests/fixtures/models/qwen3_next",
    "tests/fixtures/models/minimax",
    "tests/fixtures/models/grok2",
    "tests/fixtures/models/deepseek_v32",
    "tests/fixtures/models/glm_moe_dsa",
};

static const char *device; /* "ref", "vulkan:0", ... */
static const oracle *expected;
static cf_engine *kept; /* of this checkpoint on this device; NULL: none */

static cf_options options_make(const char *kv, uint32_t chunk)
{
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.kv = kv;
    o.ctx = expected->n_prompt + expected->n_greedy + 1; /* phimoe: within its short factors */
    o.chunk = chunk;
    o.vram_bytes = 256u << 20;
    o.ram_bytes = 64u << 20;
    o.threads = 2;
    o.check = true;
    return o;
}

/* Opens it, and takes an engine along from case to case where opening takes longer than running:
 * everywhere but on ref, which cuts chunks itself and so has one engine a case. */
static cf_engine *engine_take(const char *dir, const char *kv, uint32_t step)
{
    cf_err err = {0};
    bool keep = strncmp(device, "ref", 3) != 0 && strcmp(kv, "f32") == 0;
    if (kept && keep)
        return kept;
    cf_options o = options_make(kv, keep ? 64 : step);
    cf_engine *e = NULL;
    cf_engine_close(&kept);
    if (cf_engine_open(&e, dir, &o, &err) < 0) {
        check_case_skipped = err.code == CF_EDEVICE && strstr(err.msg, "; ref can");
        printf("    %s%s\n", check_case_skipped ? "skip: " : "", err.msg);
        if (!check_case_skipped)
            CHECK_NEVER("does not open");
    }
    if (keep)
        kept = e;
    return e;
}

/* Runs the prompt `step` tokens at a time and checks everything; greedy ids where given. */
static void run_one(const char *dir, const char *kv, uint32_t step, double tolerance, bool exact)
{
    cf_err err = {0};
    cf_session *s = NULL;
    cf_engine *e = engine_take(dir, kv, step);
    if (!e)
        return;
    REQUIRE(cf_session_create(&s, e, &err) == 0);
    oracle_run *r = oracle_run_new(expected);
    int rc = oracle_run_prompt(r, s, step, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    CHECK_INT(rc, 0);
    double logits = oracle_logits_error(expected, r);
    double hidden = oracle_hidden_error(expected, r);
    printf("    logits %.1e x std, hidden %.1e x std\n", logits, hidden);
    CHECK(logits <= tolerance);
    if (exact) {
        CHECK(hidden <= tolerance);
        CHECK_INT(oracle_expert_differences(expected, r), 0);
        CHECK_INT(oracle_selection_differences(expected, r), 0);
        CHECK_INT(oracle_run_greedy(expected, s, expected->vocab, &err), expected->n_greedy);
    }
    oracle_run_free(r);
    cf_session_destroy(&s);
    if (e != kept)
        cf_engine_close(&e);
}

/* The same bits with room for every expert, for half of them, and for what one token needs. */
static void run_sizes(const char *dir)
{
    cf_err err = {0};
    sized_model m;
    oracle_run *r[3] = {0};
    cf_engine *any = NULL;
    cf_options plenty = options_make("f32", 16);
    int rc = cf_engine_open(&any, dir, &plenty, &err);
    cf_engine_close(&any);
    if (rc < 0 && err.code == CF_EDEVICE && strstr(err.msg, "; ref can"))
        SKIP("%s", err.msg);
    REQUIRE(sized_model_open(&m, dir));
    const uint32_t slots[3] = {m.all_slots, (m.min_slots + m.all_slots) / 2, m.min_slots};
    size_t bytes = (size_t)expected->n_prompt * expected->vocab * sizeof(float);
    for (int i = 0; i < 3; i++) {
        cf_session *s = NULL;
        cf_options o = options_make("f32", 16);
        o.vram_bytes = o.ram_bytes = 0; /* sized_open's to say */
        cf_engine *e = sized_open(&m, &o, slots[i], false);
        r[i] = oracle_run_new(expected);
        bool ran = e && cf_session_create(&s, e, &err) == 0 &&
                   oracle_run_prompt(r[i], s, 16, &err) == 0;
        if (!ran)
            printf("    %u slots: %s\n", slots[i], err.msg);
        CHECK(ran);
        if (ran && i == 2)
            CHECK_INT(oracle_run_greedy(expected, s, expected->vocab, &err), expected->n_greedy);
        CHECK(memcmp(r[i]->logits, r[0]->logits, bytes) == 0);
        cf_session_destroy(&s);
        cf_engine_close(&e);
    }
    for (int i = 0; i < 3; i++)
        oracle_run_free(r[i]);
    sized_model_close(&m);
}

static void run_checkpoint(const char *dir)
{
    char name[160];
    const char *tail = strrchr(dir, '/') + 1;
    expected = oracle_load(dir);
    if (!expected) {
        RUN_NAMED(dir, CHECK_NEVER("has no oracle"));
        return;
    }
    snprintf(name, sizeof name, "%s %s whole prompt", device, tail);
    RUN_NAMED(name, run_one(dir, "f32", 64, 2e-3, true));
    snprintf(name, sizeof name, "%s %s in chunks of 5", device, tail);
    RUN_NAMED(name, run_one(dir, "f32", 5, 2e-3, true));
    snprintf(name, sizeof name, "%s %s token by token", device, tail);
    RUN_NAMED(name, run_one(dir, "f32", 1, 2e-3, true));
    snprintf(name, sizeof name, "%s %s three cache sizes", device, tail);
    RUN_NAMED(name, run_sizes(dir));
    snprintf(name, sizeof name, "%s %s f16 cache", device, tail);
    RUN_NAMED(name, run_one(dir, "f16", 64, 2e-2, false));
    cf_engine_close(&kept);
    oracle_free((oracle *)expected);
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    while (devices_next(&d)) {
        device = d.name;
        for (size_t c = 0; c < sizeof checkpoints / sizeof *checkpoints; c++)
            run_checkpoint(checkpoints[c]);
    }
    return check_done();
}
