/* Catches: a recurrent state that outlives its session, that a failed or cancelled chunk has moved,
 * that rewinding leaves behind, that two sessions share, that the order of rows in a batch of
 * several sessions disturbs; or that the budget does not know of. On the reference device, where
 * equal inputs give equal bits. */
#include "runtime/engine.h"
#include "tests/check.h"
#include "tests/support/oracle.h"

static const char *const checkpoints[] = {"tests/fixtures/models/qwen3_next",
                                          "tests/fixtures/models/minimax"};
enum { PROMPT = 23, SESSIONS = 2 };

static cf_engine *e;
static oracle *o;

static void engine_open(const char *dir)
{
    cf_err err = {0};
    cf_options options;
    cf_options_init(&options);
    options.device = "ref";
    options.ctx = 64;
    options.chunk = 8;
    options.sessions = SESSIONS;
    options.vram_bytes = 64u << 20;
    options.ram_bytes = 64u << 20;
    options.check = true;
    e = NULL;
    o = oracle_load(dir);
    REQUIRE(o && o->n_prompt >= PROMPT);
    CHECK_INT(cf_engine_open(&e, dir, &options, &err), 0);
    CHECK_STR(err.msg, "");
}

static void engine_close(void)
{
    cf_engine_close(&e);
    oracle_free(o);
}

static cf_session *session_new(void)
{
    cf_err err = {0};
    cf_session *s = NULL;
    CHECK_INT(cf_session_create(&s, e, &err), 0);
    return s;
}

static void extend(cf_session *s, uint32_t first, uint32_t n)
{
    cf_err err = {0};
    CHECK_INT(cf_session_extend(s, o->prompt + first, n, CF_PHASE_PROMPT, NULL, &err), 0);
    CHECK_STR(err.msg, "");
}

/* The last logits after prompt ids [0, n), in a session of their own; for free(). */
static float *logits_after(uint32_t n)
{
    cf_session *s = session_new();
    extend(s, 0, n);
    float *copy = malloc(o->vocab * sizeof *copy);
    if (!copy)
        abort();
    memcpy(copy, cf_session_logits(s), o->vocab * sizeof *copy);
    cf_session_destroy(&s);
    return copy;
}

static void logits_are(cf_session *s, uint32_t n)
{
    float *want = logits_after(n);
    CHECK(cf_session_logits(s) && !memcmp(cf_session_logits(s), want, o->vocab * sizeof *want));
    free(want);
}

static void rewinds_to_the_beginning_only(void)
{
    cf_session *s = session_new();
    extend(s, 0, PROMPT);
    CHECK_INT(cf_session_rewind(s, PROMPT + 5), PROMPT); /* nothing to forget */
    CHECK_INT(cf_session_rewind(s, PROMPT - 1), 0);
    CHECK_INT(cf_session_length(s), 0);
    extend(s, 0, PROMPT - 2);
    logits_are(s, PROMPT - 2);
    cf_session_destroy(&s);
}

static void cancel_there(void *user, uint32_t layer, uint32_t position, uint32_t n,
                         const float *hidden)
{
    (void)position;
    (void)n;
    (void)hidden;
    if (layer == *(uint32_t *)user)
        cf_engine_cancel(e);
}

/* Stopped behind every layer of its second chunk in turn. */
static void a_cancelled_chunk_changes_nothing(void)
{
    for (uint32_t layer = 0; layer < o->layers; layer++) {
        cf_err err = {0};
        cf_session *s = session_new();
        cf_outputs outputs = {.layer = cancel_there, .user = &layer};
        extend(s, 0, 8);
        CHECK_INT(cf_session_extend(s, o->prompt + 8, 8, CF_PHASE_PROMPT, &outputs, &err),
                  -ECANCELED);
        cf_engine_resume(e);
        CHECK_INT(cf_session_length(s), 8);
        extend(s, 8, PROMPT - 8);
        logits_are(s, PROMPT);
        cf_session_destroy(&s);
    }
}

static void sessions_are_apart(void)
{
    cf_session *a = session_new();
    extend(a, 0, 5);
    extend(a, 5, 4);
    float *other = logits_after(3); /* in between, in the other slot */
    extend(a, 9, 6);
    free(other);
    logits_are(a, 15);
    cf_session_destroy(&a);
    cf_session *b = session_new(); /* the same slot again */
    extend(b, 0, 7);
    logits_are(b, 7);
    cf_session_destroy(&b);
}

struct row_logits {
    float *rows;
    uint32_t n;
};

static void keep_row(void *user, uint32_t position, const float *logits, const float *hidden)
{
    struct row_logits *k = user;
    (void)position;
    (void)hidden;
    memcpy(k->rows + (size_t)k->n++ * o->vocab, logits, o->vocab * sizeof *logits);
}

/* Rows of two sessions in one batch, one of them in the middle of its text. */
static void one_batch_of_two_sessions(void)
{
    cf_err err = {0};
    const float *last;
    cf_row rows[7];
    struct row_logits got = {calloc((size_t)7 * o->vocab, sizeof(float)), 0};
    cf_outputs outputs = {.row = keep_row, .user = &got};
    cf_session *a = session_new(), *b = session_new();
    extend(a, 0, 4);
    memcpy(a->ids + 4, o->prompt + 4, 3 * sizeof *a->ids);
    memcpy(b->ids, o->prompt, 4 * sizeof *b->ids);
    for (uint32_t i = 0; i < 7; i++) {
        uint32_t position = i < 3 ? 4 + i : i - 3;
        rows[i] = (cf_row){i < 3 ? a : b, position, o->prompt[position]};
    }
    cf_batch batch = {.rows = rows, .n_rows = 7, .phase = CF_PHASE_PROMPT, .outputs = &outputs};
    CHECK_INT(cf_exec_run(e->exec, &batch, &last, &err), 0);
    CHECK_INT(got.n, 7);
    cf_session_destroy(&a);
    cf_session_destroy(&b);
    for (uint32_t i = 0; i < 7; i++) {
        float *want = logits_after(rows[i].position + 1);
        CHECK(!memcmp(got.rows + (size_t)i * o->vocab, want, o->vocab * sizeof *want));
        free(want);
    }
    free(got.rows);
}

static void the_budget_knows(void)
{
    uint64_t bytes = 0, item = 0;
    for (uint32_t i = 0; i < e->model->n_states; i++)
        bytes += 2 * (uint64_t)SESSIONS * cf_state_bytes(&e->model->states[i]);
    for (uint32_t i = 0; i < e->plan.n_vram; i++)
        if (!strcmp(e->plan.vram[i].name, "recurrent state"))
            item = e->plan.vram[i].bytes;
    CHECK(bytes > 0);
    CHECK(item >= bytes && item < bytes + e->model->n_states * 4096ull);
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
        RUN(rewinds_to_the_beginning_only);
        RUN(a_cancelled_chunk_changes_nothing);
        RUN(sessions_are_apart);
        RUN(one_batch_of_two_sessions);
        RUN(the_budget_knows);
        engine_close();
    }
    return check_done();
}
