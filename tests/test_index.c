/* Catches: a choice of cells that depends on how many rows are scored at a time, on what a session
 * held before it was rewound, or on the session beside it; index keys that the budget does not know
 * of. On the reference device, where equal inputs give equal bits. */
#include "runtime/engine.h"
#include "tests/check.h"
#include "tests/support/oracle.h"

static const char *const checkpoints[] = {"tests/fixtures/models/deepseek_v32",
                                          "tests/fixtures/models/glm_moe_dsa"};

static cf_engine *e;
static oracle *o;

static void engine_open(const char *dir)
{
    cf_err err = {0};
    cf_options options;
    cf_options_init(&options);
    options.device = "ref";
    options.ctx = 64;
    options.chunk = 16;
    options.sessions = 2;
    options.vram_bytes = 64u << 20;
    options.ram_bytes = 64u << 20;
    options.check = true;
    e = NULL;
    o = oracle_load(dir);
    CHECK(o != NULL);
    CHECK_INT(o ? cf_engine_open(&e, dir, &options, &err) : -1, 0);
    CHECK_STR(err.msg, "");
}

static cf_session *session_of(uint32_t n)
{
    cf_err err = {0};
    cf_session *s = NULL;
    CHECK_INT(cf_session_create(&s, e, &err), 0);
    CHECK_INT(cf_session_extend(s, o->prompt, n, CF_PHASE_PROMPT, NULL, &err), 0);
    CHECK_STR(err.msg, "");
    return s;
}

static void logits_equal(const cf_session *a, const float *b)
{
    CHECK(!memcmp(cf_session_logits(a), b, o->vocab * sizeof *b));
}

static float *logits_copy(const cf_session *s)
{
    float *copy = malloc(o->vocab * sizeof *copy);
    if (!copy)
        abort();
    memcpy(copy, cf_session_logits(s), o->vocab * sizeof *copy);
    return copy;
}

static void rows_are_scored_in_any_number(void)
{
    uint32_t usual = e->plan.index_rows;
    CHECK_INT(usual, 16);
    cf_session *s = session_of(o->n_prompt);
    float *want = logits_copy(s);
    cf_session_destroy(&s);
    for (uint32_t n = 1; n < usual; n += 4) {
        e->plan.index_rows = n;
        s = session_of(o->n_prompt);
        logits_equal(s, want);
        cf_session_destroy(&s);
    }
    e->plan.index_rows = usual;
    free(want);
}

static void sessions_rewind_and_are_apart(void)
{
    cf_err err = {0};
    cf_session *a = session_of(o->n_prompt), *b = session_of(o->n_prompt - 5);
    float *want = logits_copy(b);
    CHECK_INT(cf_session_rewind(a, o->n_prompt - 9), o->n_prompt - 9);
    CHECK_INT(cf_session_extend(a, o->prompt + o->n_prompt - 9, 4, CF_PHASE_PROMPT, NULL, &err), 0);
    logits_equal(a, want);
    free(want);
    cf_session_destroy(&a);
    cf_session_destroy(&b);
}

static void the_budget_knows(void)
{
    const cf_kv_def *kv = &e->model->kv;
    uint64_t keys = 2ull * 64 * kv->index_width * 4, latents = 2ull * 64 * kv->width * 4;
    uint64_t want = kv->slots * latents + kv->index_slots * keys, got = 0;
    for (uint32_t i = 0; i < e->plan.n_vram; i++)
        if (!strcmp(e->plan.vram[i].name, "KV cache"))
            got = e->plan.vram[i].bytes;
    CHECK(kv->index_slots > 0);
    CHECK(got >= want && got < want + 4096ull * (kv->slots + kv->index_slots));
}

int main(void)
{
    for (size_t i = 0; i < sizeof checkpoints / sizeof *checkpoints; i++) {
        printf("  %s\n", strrchr(checkpoints[i], '/') + 1);
        engine_open(checkpoints[i]);
        if (!e) {
            check_case_end("opens");
            continue;
        }
        RUN(rows_are_scored_in_any_number);
        RUN(sessions_rewind_and_are_apart);
        RUN(the_budget_knows);
        cf_engine_close(&e);
        oracle_free(o);
    }
    return check_done();
}
