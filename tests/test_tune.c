/* Catches: `catflap tune` saying anything else than the replay does, flags that are accepted and
 * ignored, figures of a prediction that do not follow from what was given, a refused trace or
 * option without its sentence and exit code, and a plot that is not well-formed.
 *
 * Runs the built binary (beside this program's folder) on traces it has written itself. */
#include "tests/check.h"

#include <jansson.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/rng.h"
#include "runtime/replay.h"
#include "tests/support/tmpfiles.h"

enum { LAYERS = 4, EXPERTS = 48, K = 3, TOKENS = 90, RECORDS = LAYERS * EXPERTS };

static char binary[1100];
static tmp_dir dir;
static const char *trace_path;

/* Habits, so that policies differ; as many layers and experts as the demo model has. */
static void trace_write(const char *path, uint64_t seed, uint32_t layers)
{
    FILE *f = fopen(path, "w");
    cf_rng rng = {seed};
    if (!f)
        exit(1);
    fprintf(f, "#{\"model\":\"m <&>\",\"n_layers\":%u,\"n_experts\":%d,\"top_k\":%d}\n%s\n", layers,
            EXPERTS, K, CF_TRACE_COLUMNS);
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t l = 0; l < layers; l++) {
            uint32_t ids[K];
            for (uint32_t i = 0; i < K; i++) {
                uint64_t hot = (t / 4 % 5) * 6 + cf_rng_below(&rng, 6);
                ids[i] = (uint32_t)((cf_rng_below(&rng, 10) < 8 ? hot : cf_rng_below(&rng, 48)));
                for (uint32_t j = 0; j < i; j++)
                    if (ids[i] == ids[j]) {
                        ids[i] = (ids[i] + 1) % EXPERTS;
                        j = UINT32_MAX; /* from the start */
                    }
            }
            fprintf(f, "0,%u,%c,%u,%u %u %u,\n", t, t < 8 ? 'P' : 'D', l, ids[0], ids[1], ids[2]);
        }
    fclose(f);
}

/* Runs `catflap tune ARGUMENTS`; the output of both streams. Returns the exit code. */
static int tune(const char *arguments, char **out)
{
    char line[4096];
    size_t n = 0, size = 1 << 20;
    snprintf(line, sizeof line, "%s tune %s 2>&1 </dev/null", binary, arguments);
    *out = calloc(size, 1);
    FILE *p = popen(line, "r");
    if (!p || !*out)
        exit(1);
    size_t got;
    while (n + 1 < size && (got = fread(*out + n, 1, size - 1 - n, p)) > 0)
        n += got;
    int status = pclose(p);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void fails(const char *arguments, int code, const char *sentence)
{
    char *out;
    CHECK_INT(tune(arguments, &out), code);
    CHECK_HAS(out, sentence);
    CHECK(strncmp(out, "catflap: ", 9) == 0);
    free(out);
}

static void with_trace(const char *format, int code, const char *sentence)
{
    char line[1024];
    snprintf(line, sizeof line, "%s %s", trace_path, format);
    fails(line, code, sentence);
}

static json_t *json_of(const char *options)
{
    char line[2048], *out;
    snprintf(line, sizeof line, "%s --json %s", trace_path, options);
    int code = tune(line, &out);
    json_error_t why;
    json_t *o = json_loads(out, 0, &why);
    if (code != 0 || !o)
        printf("    exit %d: %.300s\n", code, out);
    CHECK_INT(code, 0);
    CHECK(o != NULL);
    free(out);
    return o;
}

static const json_t *point(const json_t *o, size_t curve, size_t size)
{
    const json_t *c = json_array_get(json_object_get(o, "curves"), curve);
    return json_array_get(json_object_get(c, "points"), size);
}

static long long number(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static double real(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* ---- cases ---- */

static void test_refusals(void)
{
    char line[1024];
    const char *bad = tmp_path(&dir, "bad.csv"), *other = tmp_path(&dir, "other.csv");
    static const char text[] = "#{\"n_experts\":4}\n" CF_TRACE_COLUMNS "\n0,0,D,0,1 1,\n";
    tmp_write(bad, text, sizeof text - 1);
    trace_write(other, 1, LAYERS + 1);
    fails("", 2, "TRACE is missing");
    fails("--slots 5 nowhere.csv", 1, "cannot open trace nowhere.csv");
    fails(bad, 1, "line 3: expert 1 is chosen twice");
    with_trace("--slots 5", 1, "5 slots are too few: 6");
    with_trace("--slots 5x", 2, "--slots: \"5x\" is neither");
    with_trace("--slots 101%", 2, "--slots: \"101%\" is neither");
    with_trace("--slots 10,,20", 2, "--slots takes a list");
    with_trace("--slabs 5", 2, "--slabs needs --slots");
    with_trace("--slots 10,20,30 --slabs 1,2", 2, "--slabs has 2 sizes and --slots 3");
    with_trace("--policy lru,best", 2, "policy \"best\" is unknown");
    with_trace("--vram-from 1M", 2, "--vram-from, --to and --model go together");
    with_trace("--vram-from 2M --to 1M --model models/demo", 2, "--vram-from is larger than --to");
    with_trace("--slots 9 --vram-from 1M --to 2M --model models/demo", 2, "exclude each other");
    with_trace("--model models/demo --record 1M", 2, "exclude each other");
    with_trace("--drive 0", 2, "--drive takes a number");
    with_trace("--svg nowhere/a.svg", 1, "cannot write nowhere/a.svg");
    with_trace("--model models/demo --vram-from 1M --to 2M --device ref", 1, "is too small");
    snprintf(line, sizeof line, "%s --model models/demo", other);
    fails(line, 1, "has 5 MoE layers of 48 experts, model demo has 4 of 48");
}

static void counts_equal(const json_t *got, const cf_replay_counts *want)
{
    CHECK_INT(number(got, "lookups"), want->lookups);
    CHECK_INT(number(got, "vram_hits"), want->vram_hits);
    CHECK_INT(number(got, "ram_hits"), want->ram_hits);
    CHECK_INT(number(got, "misses"), want->misses);
    CHECK_INT(number(got, "evictions"), want->evictions);
}

/* Each figure of the JSON is the replay's; sizes come out ascending whatever their order was. */
static void test_json_is_the_replay(void)
{
    cf_err err = {0};
    cf_routing *t = NULL;
    static const char *const names[] = {"lru", "phase:0.5", "echo"};
    json_t *o =
        json_of("--slots 96,10%,25% --slabs 20,0,5% --policy lru,phase:0.5,echo --threads 3");
    REQUIRE(o != NULL && cf_trace_read(&t, trace_path, &err) == 0);
    CHECK_INT(json_array_size(json_object_get(o, "curves")), 4);
    CHECK_INT(number(o, "counted_tokens"), TOKENS - 8);
    for (size_t c = 0; c < 4; c++) {
        cf_replay list[] = {{.slots = 19}, {.slots = 48, .slabs = 10}, {.slots = 96, .slabs = 20}};
        int rc =
            c == 3 ? cf_replay_min(t, list, 3, &err) : cf_replay_run(t, names[c], list, 3, &err);
        CHECK_INT(rc, 0);
        for (size_t s = 0; s < 3 && rc == 0; s++)
            counts_equal(point(o, c, s), &list[s].phase[CF_PHASE_DECODE]);
        cf_replay_finish(list, 3);
    }
    const json_t *size = json_array_get(json_object_get(o, "sizes"), 1);
    CHECK_INT(number(size, "slots"), 48);
    CHECK_INT(number(size, "slabs"), 10);
    CHECK(fabs(real(size, "share") - 58.0 / RECORDS) < 1e-6);
    CHECK(json_is_null(json_object_get(point(o, 0, 0), "tok_per_s")));
    cf_routing_free(&t);
    json_decref(o);
}

/* Rates follow from the figures given, and the advice from the rates. */
static void test_prediction(void)
{
    json_t *o = json_of("--slots 20,40,80,160 --record 2M --drive 2 --bus 8 --compute 3");
    REQUIRE(o != NULL);
    double tokens = TOKENS - 8, record = 2 << 20;
    for (size_t c = 0; c < 5; c++)
        for (size_t s = 0; s < 4; s++) {
            const json_t *p = point(o, c, s), *r = json_object_get(p, "tok_per_s");
            double drive = real(p, "misses") * record / tokens / 2e9;
            double bus = (real(p, "misses") + real(p, "ram_hits")) * record / tokens / 8e9;
            CHECK(fabs(real(r, "drive_seconds") / drive - 1) < 1e-6);
            CHECK(fabs(real(r, "bus_seconds") / bus - 1) < 1e-6);
            CHECK(fabs(real(r, "from") * (drive + bus + 3e-3) - 1) < 1e-6);
            CHECK(fabs(real(r, "to") * fmax(drive, 3e-3) - 1) < 1e-6);
        }
    const json_t *advice = json_object_get(o, "recommended");
    size_t size = (size_t)number(advice, "size"), best = 0;
    const char *policy = json_string_value(json_object_get(advice, "policy"));
    double rate[4], most = 0;
    while (best < 4 && strcmp(policy, (const char *[]){"lru", "lfu", "phase", "echo"}[best]) != 0)
        best++;
    REQUIRE(best < 4 && size < 4);
    for (size_t s = 0; s < 4; s++) {
        rate[s] = real(json_object_get(point(o, best, s), "tok_per_s"), "from");
        most = fmax(most, rate[s]);
    }
    CHECK(rate[size] >= 0.95 * most && (size == 0 || rate[size - 1] < 0.95 * most));
    const json_t *more = json_object_get(advice, "next_gib_vram");
    CHECK_INT(number(more, "records"), 512);
    CHECK(number(more, "misses") <= number(point(o, best, size), "misses"));
    json_decref(o);
}

/* Budgets become the slots that the engine would have; no drive is measured when one is given. */
static void test_model_budgets(void)
{
    json_t *o =
        json_of("--model models/demo --vram-from 16M --to 40M --steps 5 --ctx 128 --chunk 16 "
                "--device ref --drive 1 --policy echo");
    REQUIRE(o != NULL);
    const json_t *sizes = json_object_get(o, "sizes");
    CHECK(json_array_size(sizes) >= 2);
    CHECK_INT(number(json_array_get(sizes, 0), "vram"), 16 << 20);
    for (size_t s = 1; s < json_array_size(sizes); s++)
        CHECK(number(json_array_get(sizes, s), "slots") >
              number(json_array_get(sizes, s - 1), "slots"));
    CHECK(json_is_false(json_object_get(o, "drive_measured")));
    const json_t *advice = json_object_get(o, "recommended");
    CHECK_INT(number(advice, "vram"),
              number(json_array_get(sizes, (size_t)number(advice, "size")), "vram"));
    CHECK(real(o, "record_bytes") > 1000);
    json_decref(o);
}

/* Below what the dense weights take, the same slots at another budget read less of them: such sizes
 * are rows of their own, and the rates count it. */
static void test_dense_budgets(void)
{
    json_t *o = json_of("--model models/demo --vram-from 5M --to 16M --steps 5 --ctx 128 "
                        "--chunk 16 --device ref --drive 1 --policy echo");
    REQUIRE(o != NULL);
    const json_t *sizes = json_object_get(o, "sizes");
    long long dense = 10662016, tokens = number(o, "counted_tokens");
    uint32_t streamed = 0, resident = 0;
    for (size_t s = 0; s < json_array_size(sizes); s++) {
        const json_t *size = json_array_get(sizes, s), *p = point(o, 0, s);
        long long bytes = number(size, "dense_bytes_per_token");
        streamed += bytes > 0;
        resident += bytes == 0;
        CHECK(bytes < dense || (s && bytes == 0));
        dense = bytes;
        double read = real(p, "misses") * real(o, "record_bytes") / (double)tokens + (double)bytes;
        CHECK(fabs(real(p, "read_bytes_per_token") - read) < 1);
        CHECK(fabs(real(json_object_get(p, "tok_per_s"), "from") * read / 1e9 - 1) < 1e-6);
    }
    CHECK(streamed >= 2 && resident >= 1);
    json_decref(o);
    o = json_of("--model models/demo --vram-from 5M --to 6M --steps 2 --ctx 128 --chunk 16 "
                "--device ref --drive 1 --policy echo");
    REQUIRE(o != NULL);
    CHECK(json_is_null(json_object_get(json_object_get(o, "recommended"), "next_gib_vram")));
    json_decref(o);
    char line[1024], *out;
    snprintf(line, sizeof line,
             "%s --model models/demo --vram-from 5M --to 6M --steps 2 --ctx 128 --chunk 16 "
             "--device ref --drive 1",
             trace_path);
    CHECK_INT(tune(line, &out), 0);
    CHECK_HAS(out, "are dense weights that do not fit");
    free(out);
}

/* Every element that is opened is closed, in order; attributes are quoted; one line per curve. */
static void xml_check(const char *text, uint32_t lines)
{
    char open[16][16];
    uint32_t depth = 0, polylines = 0;
    for (const char *p = text; (p = strchr(p, '<')); p++) {
        char name[16] = "";
        const char *end = strchr(p, '>');
        REQUIRE(end != NULL);
        bool close = p[1] == '/', empty = end[-1] == '/';
        sscanf(p + 1 + close, "%15[a-z]", name);
        CHECK(name[0]);
        polylines += strcmp(name, "polyline") == 0;
        uint32_t quotes = 0;
        for (const char *c = p; c < end; c++)
            quotes += *c == '"';
        CHECK_INT(quotes % 2, 0);
        if (close) {
            REQUIRE(depth > 0);
            CHECK_STR(name, open[--depth]);
        } else if (!empty) {
            REQUIRE(depth < 16);
            strcpy(open[depth++], name);
        }
    }
    CHECK_INT(depth, 0);
    CHECK_INT(polylines, lines);
    CHECK(!strstr(text, "nan") && !strstr(text, "inf"));
}

static void test_plot_and_text(void)
{
    char line[2048], *out, svg[1 << 16] = "";
    const char *path = tmp_path(&dir, "plot.svg"), *second = tmp_path(&dir, "second.csv");
    trace_write(second, 9, LAYERS);
    snprintf(line, sizeof line, "%s %s --svg %s --record 1M --drive 1", trace_path, second, path);
    CHECK_INT(tune(line, &out), 0);
    CHECK_HAS(out, "MIN");
    CHECK_HAS(out, "What counts below: 164 decoded tokens");
    CHECK_HAS(out, "second.csv");
    CHECK_HAS(out, "Recommended: --policy ");
    CHECK_HAS(out, "One more GiB of VRAM");
    CHECK_HAS(out, "tok/s from");
    free(out);
    FILE *f = fopen(path, "r");
    REQUIRE(f != NULL);
    svg[fread(svg, 1, sizeof svg - 1, f)] = 0;
    fclose(f);
    xml_check(svg, 5);
    /* One trace: its model's name is the title, whatever is in it. */
    snprintf(line, sizeof line, "%s --svg %s --policy lru", trace_path, path);
    CHECK_INT(tune(line, &out), 0);
    CHECK_HAS(out, "No tokens per second are predicted");
    free(out);
    f = fopen(path, "r");
    REQUIRE(f != NULL);
    svg[fread(svg, 1, sizeof svg - 1, f)] = 0;
    fclose(f);
    xml_check(svg, 2);
    CHECK_HAS(svg, "m &lt;&amp;>");
}

/* A run's own statistics beside the replay: the guesses that were in time are all of the difference,
 * a history's part is named, and statistics of another run are refused. */
static void test_own_run(void)
{
    static const char flags[] = "run tests/fixtures/models/mixtral --device ref --vram 400K --ctx "
                                "64 --chunk 4 --print-ids -q";
    char line[4096], ids[300], stats[300], trace[300], other[300], history[300], *out;
    snprintf(ids, sizeof ids, "%s", tmp_path(&dir, "ids"));
    snprintf(stats, sizeof stats, "%s", tmp_path(&dir, "own.json"));
    snprintf(other, sizeof other, "%s", tmp_path(&dir, "other.json"));
    snprintf(trace, sizeof trace, "%s", tmp_path(&dir, "own.csv"));
    snprintf(history, sizeof history, "%s", tmp_path(&dir, "own.history"));
    tmp_write(ids, "3 100 17 4 4 98 7", 17);
    for (int warm = 0; warm < 2; warm++) {
        snprintf(line, sizeof line,
                 "%s %s --ids %s -n 40 --stats %s --trace %s --history %s >/dev/null", binary,
                 flags, ids, stats, trace, history);
        REQUIRE(system(line) == 0);
        snprintf(line, sizeof line, "%s --stats %s --slots 6", trace, stats);
        CHECK_INT(tune(line, &out), 0);
        CHECK_HAS(out, "The run (echo, 6 slots, 0 slabs) beside its replay:");
        if (warm)
            CHECK_HAS(out, "what the run's history did");
        else
            CHECK_HAS(out, ", which is all of the difference.");
        free(out);
    }
    snprintf(line, sizeof line, "%s %s --ids %s -n 9 --stats %s >/dev/null", binary, flags, ids,
             other);
    REQUIRE(system(line) == 0);
    snprintf(line, sizeof line, "%s --stats %s --slots 6", trace, other);
    fails(line, 1, "is of another run: it counts ");
    snprintf(line, sizeof line, "%s --stats %s --slots 6", trace, trace);
    fails(line, 1, "is not the statistics of a run");
    snprintf(line, sizeof line, "%s %s --stats %s", trace, trace, stats);
    fails(line, 2, "--stats is of one run, and there are 2 traces");
    with_trace("--ctx 5", 2, "--ctx is of the memory plan");
    with_trace("--slots 10% --steps 5", 2, "--steps needs --vram-from");
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    (void)argc;
    snprintf(binary, sizeof binary, "%.*s/../catflap", slash ? (int)(slash - argv[0]) : 1,
             slash ? argv[0] : ".");
    tmp_dir_init(&dir);
    static char kept[300];
    snprintf(kept, sizeof kept, "%s", tmp_path(&dir, "trace.csv"));
    trace_path = kept;
    trace_write(trace_path, 4, LAYERS);
    RUN(test_refusals);
    RUN(test_json_is_the_replay);
    RUN(test_prediction);
    RUN(test_model_budgets);
    RUN(test_dense_budgets);
    RUN(test_plot_and_text);
    RUN(test_own_run);
    tmp_dir_finish(&dir);
    return check_done();
}
