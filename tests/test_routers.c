/* Catches: a router that chooses something else than its direct definition, told here in the
 * plainest way; one that the executor hands other rows, tokens or scores, or whose choice does not
 * reach the experts; a config that selects it wrongly.
 *
 * The choices of an engine are held to definitions over the scores that the same checkpoint reports
 * when every row takes all experts. */
#include <stdint.h>
#include <unistd.h>

#include "runtime/base/rng.h"
#include "runtime/engine.h"
#include "runtime/replay.h"
#include "runtime/router.h"
#include "tests/check.h"
#include "tests/support/badmodel.h"
#include "tests/support/oracle.h"
#include "tests/support/tmpfiles.h"

enum { EXPERTS = 5, MAX_ROWS = 64, NONE = EXPERTS };

static float logits[MAX_ROWS * EXPERTS], weights[MAX_ROWS * EXPERTS];
static uint32_t ids[MAX_ROWS * EXPERTS];
static _Alignas(16) uint8_t scratch[65536];

static void logits_draw(cf_rng *rng, uint32_t rows)
{
    for (uint32_t i = 0; i < rows * EXPERTS; i++)
        logits[i] = (float)(cf_rng_unit(rng) * 6 - 3);
}

static cf_choice choice(uint32_t rows, uint32_t k)
{
    return (cf_choice){ids, weights, rows, k, EXPERTS, NONE};
}

static bool has(uint32_t k, uint32_t r, uint32_t e, float *weight)
{
    for (uint32_t i = 0; i < k; i++)
        if (ids[r * k + i] == e) {
            *weight = weights[r * k + i];
            return true;
        }
    return false;
}

/* Ascending, and behind what is chosen nothing but none. */
static void choice_in_order(uint32_t rows, uint32_t k)
{
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 1; i < k; i++) {
            uint32_t before = ids[r * k + i - 1], id = ids[r * k + i];
            CHECK(id == NONE ? weights[r * k + i] == 0 : before < id);
        }
}

/* ---- definitions ---- */

static void capacity_drops_what_comes_late(void)
{
    cf_rng rng = {.state = 5};
    uint32_t before[MAX_ROWS * 2];
    for (uint32_t round = 0; round < 200; round++) {
        uint32_t rows = 1 + (uint32_t)cf_rng_below(&rng, 20);
        uint32_t capacity = 1 + (uint32_t)cf_rng_below(&rng, 6);
        for (uint32_t r = 0; r < rows; r++) {
            ids[2 * r] = (uint32_t)cf_rng_below(&rng, EXPERTS - 1);
            ids[2 * r + 1] =
                ids[2 * r] + 1 + (uint32_t)cf_rng_below(&rng, EXPERTS - 1 - ids[2 * r]);
            weights[2 * r] = (float)r + 1;
            weights[2 * r + 1] = -(float)r - 1;
        }
        memcpy(before, ids, sizeof before);
        cf_choice c = choice(rows, 2);
        cf_router_capacity(&c, capacity, scratch);
        choice_in_order(rows, 2);
        for (uint32_t i = 0; i < 2 * rows; i++) {
            uint32_t earlier = 0;
            float weight = 0, want = i % 2 ? -(float)(i / 2) - 1 : (float)(i / 2) + 1;
            for (uint32_t j = 0; j < i; j++)
                earlier += before[j] == before[i];
            bool kept = has(2, i / 2, before[i], &weight);
            CHECK(kept == (earlier < capacity));
            CHECK(!kept || weight == want);
        }
    }
}

static void hash_is_the_tokens_own(void)
{
    int32_t tokens[MAX_ROWS];
    uint32_t used[EXPERTS] = {0};
    for (uint32_t r = 0; r < MAX_ROWS; r++)
        tokens[r] = (int32_t)(r * r % 37);
    for (uint32_t k = 1; k <= EXPERTS; k++) {
        cf_choice c = choice(MAX_ROWS, k);
        cf_router_hash(&c, tokens, 7, 2);
        choice_in_order(MAX_ROWS, k);
        for (uint32_t r = 0; r < MAX_ROWS; r++) {
            bool want[EXPERTS] = {false};
            cf_rng rng = {.state = 7 + (uint64_t)tokens[r]};
            for (uint32_t n = 0; n < k;) {
                uint64_t e = cf_rng_below(&rng, EXPERTS);
                n += !want[e];
                want[e] = true;
            }
            for (uint32_t e = 0; e < EXPERTS; e++) {
                float weight = 0;
                CHECK(has(k, r, e, &weight) == want[e]);
                CHECK(!want[e] || fabsf(weight - 2.0f / (float)k) < 1e-6f);
                used[e] += k == 1 && want[e];
            }
        }
    }
    for (uint32_t e = 0; e < EXPERTS; e++)
        CHECK(used[e] > 0);
}

static double share(const float *row, uint32_t e)
{
    double sum = 0;
    for (uint32_t i = 0; i < EXPERTS; i++)
        sum += exp((double)row[i]);
    return exp((double)row[e]) / sum;
}

/* An expert takes a row when fewer than `capacity` others go before it. */
static void experts_choose_direct(uint32_t rows, uint32_t capacity)
{
    choice_in_order(rows, EXPERTS);
    for (uint32_t e = 0; e < EXPERTS; e++)
        for (uint32_t r = 0; r < rows; r++) {
            uint32_t better = 0;
            double mine = share(logits + r * EXPERTS, e);
            float weight = 0;
            for (uint32_t o = 0; o < rows; o++)
                better += o != r && share(logits + o * EXPERTS, e) > mine;
            bool kept = has(EXPERTS, r, e, &weight);
            CHECK(kept == (better < capacity));
            CHECK(!kept || fabs((double)weight - mine) < 1e-5);
        }
}

static void experts_choose_their_best_rows(void)
{
    cf_rng rng = {.state = 9};
    for (uint32_t round = 0; round < 50; round++) {
        uint32_t rows = 1 + (uint32_t)cf_rng_below(&rng, 30);
        uint32_t capacity = 1 + (uint32_t)cf_rng_below(&rng, 12);
        logits_draw(&rng, rows);
        cf_choice c = choice(rows, EXPERTS);
        cf_router_experts_choose(&c, logits, capacity, 1, scratch);
        experts_choose_direct(rows, capacity);
    }
    /* Equal scores: the lower rows. */
    memset(logits, 0, sizeof logits);
    cf_choice c = choice(10, EXPERTS);
    cf_router_experts_choose(&c, logits, 3, 1, scratch);
    for (uint32_t i = 0; i < 10 * EXPERTS; i++)
        CHECK_INT(ids[i], i < 3 * EXPERTS ? i % EXPERTS : NONE);
}

/* The best sum over all assignments of rows from `r` on. */
static double best_sum(uint32_t rows, uint32_t r, uint32_t most, uint32_t *count)
{
    double best = -INFINITY;
    if (r == rows)
        return 0;
    for (uint32_t e = 0; e < EXPERTS; e++) {
        if (count[e] == most)
            continue;
        count[e]++;
        best = fmax(best, (double)logits[r * EXPERTS + e] + best_sum(rows, r + 1, most, count));
        count[e]--;
    }
    return best;
}

/* The sum of what was chosen; checks that no expert serves too many. */
static double balanced_sum(uint32_t rows)
{
    double sum = 0;
    uint32_t count[EXPERTS] = {0}, most = (rows + EXPERTS - 1) / EXPERTS;
    for (uint32_t r = 0; r < rows; r++) {
        CHECK(ids[r] < EXPERTS);
        if (ids[r] >= EXPERTS)
            return NAN;
        float logit = logits[r * EXPERTS + ids[r]];
        CHECK(++count[ids[r]] <= most);
        CHECK(fabs((double)weights[r] - 1 / (1 + exp(-(double)logit))) < 1e-5);
        sum += (double)logit;
    }
    return sum;
}

static void balanced_is_the_best_assignment(void)
{
    cf_rng rng = {.state = 11};
    for (uint32_t round = 0; round < 100; round++) {
        uint32_t rows = 1 + (uint32_t)cf_rng_below(&rng, 8), count[EXPERTS] = {0};
        logits_draw(&rng, rows);
        for (uint32_t r = 0; round % 3 == 0 && r < rows; r++) /* all want the same */
            logits[r * EXPERTS] += 5;
        cf_choice c = choice(rows, 1);
        cf_router_balanced(&c, logits, 1, scratch);
        double best = best_sum(rows, 0, (rows + EXPERTS - 1) / EXPERTS, count);
        CHECK(fabs(balanced_sum(rows) - best) < 1e-4);
    }
}

/* What is no number is nobody's favourite, and nobody hangs on it. */
static void scores_that_are_no_numbers(void)
{
    for (uint32_t i = 0; i < 12 * EXPERTS; i++)
        logits[i] = i % 7 == 0 ? NAN : i % 5 == 0 ? INFINITY : i % 3 == 0 ? -INFINITY : 1;
    cf_choice c = choice(12, EXPERTS);
    cf_router_experts_choose(&c, logits, 3, 1, scratch);
    choice_in_order(12, EXPERTS);
    c = choice(12, 1);
    cf_router_balanced(&c, logits, 1, scratch);
    uint32_t count[EXPERTS] = {0};
    for (uint32_t r = 0; r < 12; r++) {
        CHECK(ids[r] < EXPERTS);
        CHECK(ids[r] >= EXPERTS || ++count[ids[r]] <= 3);
    }
}

/* ---- in an engine ---- */

static const char checkpoint[] = "tests/fixtures/models/minimax";
/* Of a family that leaves out what belongs to layers beyond its own. */
static const char no_classifier[] = "tests/fixtures/models/minimax_m2";
static oracle *o;

/* What the first layer reports of the prompt: chosen and weights as above, none filled in. */
static uint32_t seen_k, seen_rows;

static void on_route(void *user, uint32_t layer, uint32_t position, const uint32_t *chosen,
                     const float *w, uint32_t n)
{
    (void)user;
    if (layer != 0)
        return;
    seen_rows++;
    for (uint32_t i = 0; i < seen_k; i++) {
        ids[position * seen_k + i] = i < n ? chosen[i] : NONE;
        weights[position * seen_k + i] = i < n ? w[i] : 0;
    }
}

/* Gives the routers' tensors names that the family leaves out. */
static void classifiers_remove(const bad_model *m)
{
    static const char *const names[] = {"gate.weight", "e_score_correction_bias"};
    json_t *header = bad_header_load(m, "model.safetensors");
    for (int i = 0; i < 4; i++) {
        char name[96], other[96];
        snprintf(name, sizeof name, "model.layers.%d.block_sparse_moe.%s", i / 2, names[i % 2]);
        snprintf(other, sizeof other, "model.layers.%d.left_out", 100 + i);
        json_object_set(header, other, json_object_get(header, name));
        json_object_del(header, name);
    }
    bad_header_store(m, "model.safetensors", header, 0);
    json_decref(header);
}

/* Of the runs that follow. */
static const char *history, *trace; /* NULL: none */
static uint32_t chunk = MAX_ROWS;

/* The trace, replayed, gives the run's counts, layer by layer. */
static int trace_check(cf_engine *e, cf_err *err)
{
    int rc;
    cf_routing *t = NULL;
    cf_replay r = {.slots = e->plan.shape.n_slots, .slabs = e->plan.shape.n_tier};
    CF_TRY(cf_engine_trace(e, NULL, err));
    CF_TRY(cf_trace_read(&t, trace, err));
    CF_TRY(cf_replay_run(t, e->policy_name, &r, 1, err));
    CHECK_INT(t->n_moe, e->model->n_moe);
    CHECK_INT(t->tokens[CF_PHASE_PROMPT], o->n_prompt);
    CHECK_INT(t->n_chunks, (o->n_prompt + chunk - 1) / chunk);
    for (uint32_t l = 0; l < t->n_moe; l++) {
        const cf_replay_counts *c = &r.layers[CF_PHASE_PROMPT * t->n_moe + l];
        CHECK_INT(c->lookups, e->counters.layers[l].lookups);
        CHECK_INT(c->misses, e->counters.layers[l].misses);
        CHECK_INT(c->evictions, e->counters.layers[l].evictions);
    }
fail:
    cf_replay_finish(&r, 1);
    cf_routing_free(&t);
    return rc;
}

/* Runs the prompt with this routing and k; 0, or what opening or running said. */
static int routed_run(const char *from, const char *routing, const char *k, uint32_t reported_k,
                      cf_err *err)
{
    bad_model m;
    cf_options options;
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_outputs outputs = {.route = on_route};
    bad_model_init(&m, from);
    bad_json_set(&m, "config.json", "routing", routing);
    bad_json_set(&m, "config.json", "num_experts_per_tok", k);
    if (from == no_classifier)
        classifiers_remove(&m);
    cf_options_init(&options);
    options.device = "ref";
    options.ctx = MAX_ROWS;
    options.chunk = chunk;
    options.prefetch = !trace;
    options.vram_bytes = options.ram_bytes = 64u << 20;
    options.check = true;
    options.history = history;
    seen_k = reported_k;
    seen_rows = 0;
    int rc = cf_engine_open(&e, m.dir, &options, err);
    if (rc == 0)
        rc = cf_session_create(&s, e, err);
    if (rc == 0 && trace)
        rc = cf_engine_trace(e, trace, err);
    if (rc == 0)
        rc = cf_session_extend(s, o->prompt, o->n_prompt, CF_PHASE_PROMPT, &outputs, err);
    for (uint32_t v = 0; rc == 0 && v < o->vocab; v++)
        CHECK(isfinite(cf_session_logits(s)[v]));
    if (rc == 0)
        rc = cf_engine_save_history(e, err);
    if (rc == 0 && trace)
        rc = trace_check(e, err);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    bad_model_finish(&m);
    return rc;
}

/* Of the first layer: logits up to a constant of each row, from the shares of all experts. */
static void scores_learn(void)
{
    cf_err err = {0};
    CHECK_INT(routed_run(checkpoint, NULL, "5", EXPERTS, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK_INT(seen_rows, o->n_prompt);
    for (uint32_t i = 0; i < o->n_prompt * EXPERTS; i++)
        logits[i] = logf(weights[i]);
}

static void engine_capacity(void)
{
    cf_err err = {0};
    uint32_t before[MAX_ROWS * 2], count[EXPERTS] = {0}, dropped = 0;
    CHECK_INT(routed_run(checkpoint, NULL, "2", 2, &err), 0);
    memcpy(before, ids, sizeof before);
    CHECK_INT(routed_run(checkpoint, "{\"kind\": \"capacity\", \"capacity\": 7}", "2", 2, &err), 0);
    CHECK_STR(err.msg, "");
    for (uint32_t i = 0; i < 2 * o->n_prompt; i++) {
        float weight;
        bool kept = count[before[i]]++ < 7;
        CHECK(has(2, i / 2, before[i], &weight) == kept);
        dropped += !kept;
    }
    CHECK(dropped > 10);
}

static void engine_hash(void)
{
    cf_err err = {0};
    uint32_t got[MAX_ROWS * 2], n_experts = 0;
    json_t *config = json_load_file("tests/fixtures/models/minimax_m2/config.json", 0, NULL);
    n_experts = (uint32_t)json_integer_value(json_object_get(config, "num_local_experts"));
    json_decref(config);
    CHECK_INT(routed_run(no_classifier, "{\"kind\": \"hash\", \"seed\": 3}", "2", 2, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK_INT(seen_rows, o->n_prompt);
    memcpy(got, ids, sizeof got);
    cf_choice c = {ids, weights, o->n_prompt, 2, n_experts, n_experts};
    cf_router_hash(&c, o->prompt, 3, 1);
    CHECK(!memcmp(got, ids, (size_t)o->n_prompt * 2 * sizeof *ids));
}

/* A model is told from another by its classifiers, or, where it has none, by its hash. */
static void histories_of_hashes(void)
{
    tmp_dir dir;
    cf_err err = {0};
    char path[512]; /* tmp_path's own is used again */
    tmp_dir_init(&dir);
    snprintf(path, sizeof path, "%s", tmp_path(&dir, "history"));
    history = path;
    for (int i = 0; i < 2; i++)
        CHECK_INT(routed_run(no_classifier, "{\"kind\": \"hash\", \"seed\": 3}", "2", 2, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK_INT(routed_run(no_classifier, "{\"kind\": \"hash\", \"seed\": 4}", "2", 2, &err),
              CF_EFORMAT);
    CHECK_HAS(err.msg, "is of another model");
    unlink(history);
    history = NULL;
    tmp_dir_finish(&dir);
}

static void engine_experts_choose(void)
{
    cf_err err = {0};
    scores_learn();
    CHECK_INT(routed_run(checkpoint, "{\"kind\": \"experts_choose\", \"capacity_factor\": 1.5}",
                         "2", EXPERTS, &err),
              0);
    CHECK_STR(err.msg, "");
    CHECK_INT(seen_rows, o->n_prompt);
    experts_choose_direct(o->n_prompt, (uint32_t)ceil(1.5 * o->n_prompt / EXPERTS));
}

/* A constant of each row does not change which assignment is the best. */
static void engine_balanced(void)
{
    cf_err err = {0};
    uint32_t got[MAX_ROWS], count[EXPERTS] = {0};
    double sum = 0, best = 0;
    scores_learn();
    CHECK_INT(routed_run(checkpoint, "{\"kind\": \"balanced\"}", "1", 1, &err), 0);
    CHECK_STR(err.msg, "");
    memcpy(got, ids, sizeof got);
    cf_choice c = choice(o->n_prompt, 1);
    cf_router_balanced(&c, logits, 1, scratch);
    for (uint32_t r = 0; r < o->n_prompt; r++) {
        REQUIRE(got[r] < EXPERTS);
        CHECK(++count[got[r]] <= (o->n_prompt + EXPERTS - 1) / EXPERTS);
        sum += (double)logits[r * EXPERTS + got[r]];
        best += (double)logits[r * EXPERTS + ids[r]];
    }
    CHECK(fabs(sum - best) < 1e-3);
}

/* Also where rows are left without an expert, in the first layer or a later one. */
static void traces_tell_all(void)
{
    static const char *const routing[][2] = {
        {"{\"kind\": \"capacity\", \"capacity\": 1}", "1"},
        {"{\"kind\": \"capacity\", \"capacity\": 2}", "2"},
        {"{\"kind\": \"experts_choose\", \"capacity_factor\": 0.5}", "2"},
        {"{\"kind\": \"balanced\"}", "1"},
    };
    tmp_dir dir;
    char path[512];
    tmp_dir_init(&dir);
    snprintf(path, sizeof path, "%s", tmp_path(&dir, "trace"));
    trace = path;
    chunk = 7;
    for (size_t i = 0; i < sizeof routing / sizeof *routing; i++) {
        cf_err err = {0};
        CHECK_INT(routed_run(checkpoint, routing[i][0], routing[i][1], 1, &err), 0);
        CHECK_STR(err.msg, "");
    }
    unlink(path);
    trace = NULL;
    chunk = MAX_ROWS;
    tmp_dir_finish(&dir);
}

static void configs_are_refused(void)
{
    static const char *const bad[][3] = {
        {"{\"kind\": \"nobody\"}", "2", "\"nobody\""},
        {"{}", "2", "\"kind\""},
        {"{\"kind\": \"capacity\", \"capacity\": 0}", "2", "capacity"},
        {"{\"kind\": \"balanced\"}", "2", "2 of 5"},
        {"{\"kind\": \"experts_choose\", \"capacity_factor\": -1}", "2", "capacity_factor"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cf_err err = {0};
        CHECK_INT(routed_run(checkpoint, bad[i][0], bad[i][1], 2, &err), CF_EFORMAT);
        CHECK_HAS(err.msg, bad[i][2]);
    }
}

int main(void)
{
    RUN(capacity_drops_what_comes_late);
    RUN(hash_is_the_tokens_own);
    RUN(experts_choose_their_best_rows);
    RUN(balanced_is_the_best_assignment);
    RUN(scores_that_are_no_numbers);
    o = oracle_load(checkpoint);
    if (!o || o->n_prompt > MAX_ROWS)
        return 1;
    RUN(engine_capacity);
    RUN(engine_hash);
    RUN(histories_of_hashes);
    RUN(engine_experts_choose);
    RUN(engine_balanced);
    RUN(traces_tell_all);
    RUN(configs_are_refused);
    oracle_free(o);
    return check_done();
}
