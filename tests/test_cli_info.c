/* `eval` and `info`: what the command line says of a model. Catches: a perplexity that is not that
 * of the logits beside it, a cost of rounding that is left out or made up, a count of tensors or
 * bytes that does not add up, a prediction that is not what the plan's bytes and the drive's rate
 * come to.
 *
 * Runs the built binary (support/cli.h) on a model it has written, the bundled one and fixtures. */
#include "tests/check.h"
#include "tests/support/cli.h"

static tmp_dir dir;

/* ---- eval ---- */

static double nll_from_logits(const float *logits, uint32_t vocab, int id)
{
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i]);
    return log(sum) - (double)logits[id];
}

static void eval_agrees_with_its_logits(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    static const int ids[] = {3, 200, 17, 4, 4, 98, 255, 0, 31, 7, 8, 9, 120, 77};
    enum { N = sizeof ids / sizeof ids[0], VOCAB = 256, HIDDEN = 128, LAYERS = 2, WINDOW = 6 };
    static float logits[N + 1][VOCAB], hidden[LAYERS * N + 1][HIDDEN];
    cli_result r;
    cli(&r,
        "eval %s/tiny --ids %s/ids --ctx %d --device ref --json --logits %s/l.f32 --hidden "
        "%s/h.f32",
        dir.path, dir.path, WINDOW, dir.path, dir.path);
    REQUIRE(r.code == 0);
    FILE *f = fopen(tmp_path(&dir, "l.f32"), "rb");
    REQUIRE(f != NULL);
    CHECK_INT(fread(logits, sizeof logits[0], N + 1, f), N);
    fclose(f);
    double nll = 0;
    for (int i = 0; i + 1 < N; i++)
        if ((i + 1) % WINDOW)
            nll += nll_from_logits(logits[i], VOCAB, ids[i + 1]);
    json_t *v = cli_json(r.out);
    CHECK_INT(json_integer_value(json_object_get(v, "windows")), 3);
    CHECK_INT(json_integer_value(json_object_get(v, "predicted")), N - 3);
    CHECK(fabs(json_real_value(json_object_get(v, "nll")) - nll) < 1e-5);
    CHECK(fabs(json_real_value(json_object_get(v, "perplexity")) - exp(nll / (N - 3))) < 1e-3);
    json_decref(v);
    f = fopen(tmp_path(&dir, "h.f32"), "rb");
    REQUIRE(f != NULL);
    CHECK_INT(fread(hidden, sizeof hidden[0], LAYERS * N + 1, f), LAYERS * N);
    fclose(f);
    /* Token 4 twice in a row, in one window: layer by layer the rows must differ and none be
     * missing. */
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < N; i++) {
            double norm = 0;
            for (int c = 0; c < HIDDEN; c++)
                norm += fabs((double)hidden[l * N + i][c]);
            CHECK(norm > 1);
        }
    CHECK(memcmp(hidden[3], hidden[4], sizeof hidden[0]) != 0);
    CHECK(memcmp(hidden[0], hidden[N], sizeof hidden[0]) != 0);
    /* One window gives the first rows again. */
    cli(&r, "eval %s/tiny --ids %s/ids --device ref", dir.path, dir.path);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "perplexity");
}

/* What rounding costs is said where it rounds, and that it does not where it does not. */
static void eval_says_what_q8_costs(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    static const char fp8[] = "tests/fixtures/models/deepseek_v3_fp8";
    static const char ids[] = "3 20 17 4 4 38 25 0 31 7 8 9 12 47";
    cli_result r;
    tmp_write(tmp_path(&dir, "small"), ids, strlen(ids));
    cli(&r, "eval %s --ids %s/small --ctx 6 --device ref --json --activations q8", fp8, dir.path);
    REQUIRE(r.code == 0);
    json_t *v = cli_json(r.out);
    double rounded = json_real_value(json_object_get(v, "perplexity"));
    double exact = json_real_value(json_object_get(v, "perplexity_f32_activations"));
    CHECK_STR(json_string_value(json_object_get(v, "activations")), "q8");
    json_decref(v);
    CHECK(!strstr(r.err, "changes nothing"));
    cli(&r, "eval %s --ids %s/small --ctx 6 --device ref --json", fp8, dir.path);
    REQUIRE(r.code == 0);
    v = cli_json(r.out);
    CHECK(json_real_value(json_object_get(v, "perplexity")) == exact && exact != rounded);
    CHECK(json_is_null(json_object_get(v, "perplexity_f32_activations")));
    json_decref(v);
    cli(&r, "eval %s --ids %s/small --ctx 6 --device ref --activations q8", fp8, dir.path);
    CHECK_HAS(r.out, "activations of 8 bits cost");
    cli(&r, "eval %s/tiny --ids %s/small --device ref --activations q8", dir.path, dir.path);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.err, "--activations q8 changes nothing");
    CHECK(!strstr(r.out, "cost"));
    cli(&r, "info %s --device ref --activations q8", fp8);
    CHECK_HAS(r.out, "Activations are rounded to 8 bits in ");
}

/* ---- info ---- */

static void info_describes(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    cli_result r;
    cli(&r, "info %s/tiny --device ref --json --plan", dir.path);
    REQUIRE(r.code == 0);
    json_t *v = cli_json(r.out);
    CHECK_INT(cli_json_at(v, "model", "layers"), 2);
    CHECK_INT(cli_json_at(v, "model", "experts"), 32);
    CHECK_INT(cli_json_at(v, "bytes", "experts"), 2 * 32 * 3 * 128 * 96 * 2);
    CHECK_INT(cli_json_at(v, "memory", "records"), 64);
    json_t *step, *plan = json_object_get(v, "plan");
    size_t i, windows = 0;
    json_array_foreach(plan, i, step)
    {
        const json_t *w = json_object_get(step, "window");
        if (!w)
            continue;
        windows++;
        CHECK_INT(json_integer_value(json_object_get(w, "steps")), 8);
        CHECK(json_integer_value(json_object_get(w, "weight_bytes")) > 2 * 3 * 128 * 256 * 2);
    }
    CHECK_INT(windows, 2);
    json_decref(v);
    cli(&r, "info %s/tiny --device ref --plan", dir.path);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "prefetch window");
    CHECK_HAS(r.out, "together");
    cli(&r, "info %s/tiny --device ref --vram 1M", dir.path);
    cli_failed_with(&r, "--vram 1048576 is too small");
    CHECK_HAS(r.out, "experts");
    cli(&r, "info --devices --json");
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "\"ref:0\"");
}

/* A layer's experts in a few fused tensors are that many, and all roles make the total. */
static void info_counts_tensors(void)
{
    static const char *const models[][2] = {{"gpt_oss", "18"}, {"dbrx", "6"}, {"mixtral", "36"}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        cli_result r;
        cli(&r, "info tests/fixtures/models/%s --device ref --json", models[i][0]);
        REQUIRE(r.code == 0);
        json_t *v = cli_json(r.out);
        CHECK_INT(cli_json_at(v, "tensors", "experts"), atoi(models[i][1]));
        CHECK_INT(cli_json_at(v, "tensors", "resident") + cli_json_at(v, "tensors", "experts") +
                      cli_json_at(v, "tensors", "tables") + cli_json_at(v, "tensors", "left_out"),
                  cli_json_at(v, "tensors", "total"));
        json_decref(v);
    }
}

static double real_of(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* The prediction is what the plan's bytes and the drive's rate come to. */
static void info_predicts(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    cli_result r;
    cli(&r, "info models/demo --device ref --vram 13M --ram 8M --drive 2.5 --json");
    REQUIRE(r.code == 0);
    json_t *v = cli_json(r.out), *p = json_object_get(v, "prediction");
    json_int_t dense = cli_json_at(json_object_get(v, "memory"), "dense", "streamed_bytes");
    CHECK(dense > 0);
    CHECK_INT(cli_json_at(v, "prediction", "dense_bytes"), dense);
    /* layers, top-k, a record */
    CHECK_INT(cli_json_at(v, "prediction", "expert_bytes"), 4 * 6 * 96 << 10);
    CHECK(json_is_false(json_object_get(p, "drive_measured")));
    const json_t *c, *cases = json_object_get(p, "cases");
    double slots = (double)cli_json_at(v, "memory", "slots"), last = -1, uniform = 0;
    size_t i;
    json_array_foreach(cases, i, c)
    {
        double hit = real_of(c, "hit_rate"), bytes = real_of(c, "bytes_per_token");
        double want = (double)dense + (1 - hit) * (4 * 6 * 96 << 10) + real_of(p, "row_bytes");
        CHECK(hit > last);
        CHECK(fabs(bytes - want) <= 1);
        CHECK(fabs(real_of(c, "tok_per_s") / (2.5e9 / bytes) - 1) < 1e-6);
        uniform += fabs(hit - slots / (4 * 48)) < 1e-9;
        last = hit;
    }
    CHECK_INT(json_array_size(cases), 4);
    CHECK(uniform > 0);
    json_decref(v);
    /* Measured, also where a record has fewer extents than pieces; or it says why not. */
    cli(&r, "info tests/fixtures/models/granitemoe --device ref --ctx 64 --chunk 4 --json");
    REQUIRE(r.code == 0);
    v = cli_json(r.out);
    p = json_object_get(v, "prediction");
    CHECK(real_of(p, "drive_bytes_per_s") > 0 ||
          json_string_length(json_object_get(p, "why_not")) > 0);
    json_decref(v);
    /* An encoder's experts have been read when decode begins. */
    cli(&r, "info tests/fixtures/models/switch_transformers --device ref --drive 1 --json");
    REQUIRE(r.code == 0);
    v = cli_json(r.out);
    CHECK_INT(cli_json_at(v, "prediction", "expert_bytes"), 15 << 10); /* one layer, one record */
    json_decref(v);
    cli(&r, "info models/demo --device ref --vram 13M --drive 1");
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "for a drive of 1.00 GB/s (as given)");
    CHECK_HAS(r.out, "Dense weights are streamed: 24 matrices, 6.00 MiB");
    CHECK_HAS(r.out, "0.0 %, the worst case");
    CHECK_HAS(r.out, "All dense weights would stay with --vram ");
}

/* What hides reads: a window, guesses, nothing; and that there are none. */
static void info_says_what_hides_reads(void)
{
    static const struct {
        const char *args, *says, *says_not;
    } table[] = {
        {"models/demo --vram 13M", "8 steps (1.74 MiB of weights) before the experts", "foreseen"},
        {"models/demo --vram 13M --prefetch off", "when the experts are needed (--prefetch",
         "window:"},
        {"models/demo", "nothing is streamed after that", "Reads start"},
        {"tests/fixtures/models/mixtral --vram 480K --ctx 64 --chunk 4",
         "no step lies between that and the experts", "window:"},
        {"tests/fixtures/models/mixtral --vram 480K --ctx 64 --chunk 4",
         "1 place for a guess of 24.00 KiB", "leaves no place"},
        {"tests/fixtures/models/mixtral --vram 280K --ctx 64 --chunk 4",
         "leaves no place for guesses", "Choices are foreseen"},
        {"tests/fixtures/models/qwen3_next --ctx 64 --chunk 4", "recurrent state",
         "streamed weights"},
    };
    cli_result r;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        cli(&r, "info %s --device ref --drive 1", table[i].args);
        CHECK_INT(r.code, 0);
        CHECK_HAS(r.out, table[i].says);
        CHECK(!strstr(r.out, table[i].says_not));
    }
}

int main(void)
{
    if (!cli_begin(&dir))
        return 77;
    RUN(eval_agrees_with_its_logits);
    RUN(eval_says_what_q8_costs);
    RUN(info_describes);
    RUN(info_counts_tensors);
    RUN(info_predicts);
    RUN(info_says_what_hides_reads);
    tmp_dir_finish(&dir);
    return check_done();
}
