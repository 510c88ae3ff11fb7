/* Flags that change nothing. Catches: a flag that is accepted and silently ignored, for this model,
 * device or budget or for good; the line about it on a run where it does take effect, or with -q; a
 * flag of the help that nobody has looked at; a run that streams nothing and does not say so.
 *
 * Runs the built binary on models it has written itself and on fixtures. */
#include "tests/check.h"

#include <jansson.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu/gpu.h"
#include "tests/support/tmpfiles.h"

static char binary[1100];
static tmp_dir dir;

/* Runs a command; its standard error (or, with `both`, both streams) in text. The exit code. */
static int cli(char *text, size_t size, bool both, const char *line)
{
    char command[4096];
    snprintf(command, sizeof command, "%s %s %s </dev/null", binary, line,
             both ? "2>&1" : "2>&1 >/dev/null");
    FILE *p = popen(command, "r");
    size_t n = p ? fread(text, 1, size - 1, p) : 0, got;
    char rest[256];
    text[n] = 0;
    while (p && (got = fread(rest, 1, sizeof rest, p)) > 0)
        ;
    int status = p ? pclose(p) : -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static char err[1 << 16];

/* A run of a few ids on `model` ("tiny": one of ours) with more flags. */
static bool run(const char *model, const char *flags)
{
    char line[3072], path[300];
    bool fixture = model[0] == '@';
    snprintf(path, sizeof path, fixture ? "tests/fixtures/models/%s" : "%s/%s",
             fixture ? model + 1 : dir.path, model);
    snprintf(line, sizeof line, "run %s --ids %s/ids --print-ids -n 4 %s", path, dir.path, flags);
    int code = cli(err, sizeof err, false, line);
    if (code != 0)
        printf("    catflap %s\n    exit code %d: %s\n", line, code, err);
    return code == 0;
}

#define SMALL "--device ref --ctx 64 --chunk 4 --vram 2200K " /* streams */

/* Each flag where it changes nothing, with its line, and where it does, without it. */
static const struct {
    const char *model, *flags, *line; /* that must come, or, behind a "!", must not */
} cases[] = {
    {"tiny", "--device ref", "every expert has a slot (64 of them)"},
    {"tiny", SMALL, "!every expert"},
    {"tiny", "--device ref --vram 1G", "of --vram 1073741824, "},
    {"tiny", SMALL, "!of --vram"},
    {"tiny", "--device ref --ram 1G", "are used: every expert has a slot in --vram"},
    {"tiny", SMALL "--ram 1G", "are used: the device computes in the host's memory"},
    {"tiny", SMALL "--ram 1G --memory discrete", "are used: every expert has a place"},
    {"tiny", SMALL "--ram 4M --memory discrete", "!of --ram"},
    {"tiny", "--device ref --vram 1G --ram 1G -q", "!catflap"},
    {"tiny", "--device ref --policy lfu", "--policy lfu has no effect"},
    {"tiny", SMALL "--policy lfu", "!--policy"},
    {"tiny", "--device ref", "!has no effect"}, /* nothing was given */
    {"tiny", "--device ref --prefetch off", "!--prefetch"}, /* it has a window */
    {"@switch_transformers", "--device ref --prefetch on", "no choice is foreseen"},
    {"@mixtral", "--device ref --prefetch off", "and every one has a slot"},
    {"@mixtral", "--device ref --ctx 64 --chunk 4 --vram 480K --prefetch off", "!--prefetch"},
    {"tiny", "--device ref --threads 2", "!--threads"},
    {"tiny", SMALL "--memory discrete", "!--memory"},
    {"linear", "--device ref --kv f16", "--kv f16 has no effect"},
    {"tiny", "--device ref --kv f16", "!--kv"},
    {"tiny", "--device ref --ctx 64 --chunk 65", "--chunk 65 is cut to the context of 64"},
    {"tiny", "--device ref --ctx 64 --chunk 64", "!--chunk"},
    {"tiny", "--device ref --top-k 4", "--top-k has no effect at --temp 0"},
    {"tiny", "--device ref --top-p 0.5", "--top-p has no effect at --temp 0"},
    {"tiny", "--device ref --min-p 0.5", "--min-p has no effect at --temp 0"},
    {"tiny", "--device ref --seed 3", "--seed has no effect at --temp 0"},
    {"tiny", "--device ref --temp 1 --top-k 4 --top-p 0.5 --min-p 0.1 --seed 3", "!has no effect"},
    {"tiny", "--device ref --temp 1 --top-k 256", "--top-k 256 has no effect"},
};

static void inert_flags(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool absent = cases[i].line[0] == '!';
        const char *line = cases[i].line + absent;
        if (!run(cases[i].model, cases[i].flags)) {
            CHECK_NEVER("a run that must succeed failed");
            continue;
        }
        bool there = strstr(err, line) != NULL;
        if (there == absent)
            printf("    %s %s:\n%s", cases[i].model, cases[i].flags, err);
        CHECK(there != absent);
    }
}

/* A history is still kept where the policy has nothing to decide. */
static void history_of_a_run_without_evictions(void)
{
    char flags[600];
    snprintf(flags, sizeof flags, "--device ref --history %s/h", dir.path);
    REQUIRE(run("tiny", flags));
    CHECK_HAS(err, "--history has no effect on this run, only on the file");
    CHECK(access(tmp_path(&dir, "h"), F_OK) == 0);
    snprintf(flags, sizeof flags, SMALL "--history %s/h", dir.path);
    REQUIRE(run("tiny", flags));
    CHECK(!strstr(err, "--history"));
}

/* Devices that compute without the host's threads, as far as this machine has any. */
static void threads_of_a_device(void)
{
    cf_gpu_info list[16];
    int n = cf_gpu_list(list, 16, NULL, 0);
    bool tried = false;
    for (int i = 0; i < n; i++) {
        char flags[100];
        if (list[i].cpu && strcmp(list[i].backend, "vulkan") != 0)
            continue;
        tried = true;
        snprintf(flags, sizeof flags, "--device %.15s:%d --threads 2", list[i].backend,
                 list[i].index);
        REQUIRE(run("tiny", flags));
        CHECK_HAS(err, "--threads 2 has no effect on device ");
        if (list[i].unified)
            continue;
        snprintf(flags, sizeof flags, "--device %.15s:%d --memory discrete", list[i].backend,
                 list[i].index);
        REQUIRE(run("tiny", flags));
        CHECK_HAS(err, "--memory discrete has no effect: ");
    }
    if (!tried)
        SKIP("every device here computes on the host's threads");
}

/* What can never mean anything is refused. */
static void without_meaning(void)
{
    static const struct {
        const char *line, *part;
    } refused[] = {
        {"run m --ids x --special --print-ids", "--special is about the text"},
        {"run m --ids x --print-ids --stop a", "--stop needs text"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        CHECK_INT(cli(err, sizeof err, true, refused[i].line), 2);
        CHECK_HAS(err, refused[i].part);
    }
}

/* info takes the flags that make the plan; the others it names. */
static void of_info(void)
{
    char line[1024];
    snprintf(line, sizeof line,
             "info %s/tiny --device ref --drive 1 --vram 3M --ram 80M --ctx 64 --chunk 4 "
             "--prefetch off --kv f16 --direct on --memory auto",
             dir.path);
    CHECK_INT(cli(err, sizeof err, false, line), 0);
    CHECK_STR(err, "");
    snprintf(line, sizeof line, "info %s/tiny --device ref --drive 1 --policy lru --stats s --io "
                                "pread --trace t", dir.path);
    CHECK_INT(cli(err, sizeof err, false, line), 0);
    CHECK_HAS(err, "--policy has no effect on info");
    CHECK_HAS(err, "--stats has no effect on info");
    CHECK_HAS(err, "--trace has no effect on info");
    CHECK_HAS(err, "--io has no effect on info");
    CHECK(!strstr(err, "--device"));
    CHECK_INT(cli(err, sizeof err, false, "info --devices --vram 4G"), 0);
    CHECK_HAS(err, "--vram has no effect on info --devices");
}

/* ---- every flag of the help ---- */

/* What a common flag changes: a setting of the statistics ("key=value" as JSON), a file (".name"),
 * or nothing that a run's answer shows ("-"). */
static const struct {
    const char *flag, *value, *shows;
} flags[] = {
    {"--device", "ref:0", "device=\"ref:0\""},
    {"--vram", "2300K", "vram=2355200"},
    {"--ram", "90M", "ram=94371840"},
    {"--ctx", "65", "ctx=65"},
    {"--chunk", "5", "chunk=5"},
    {"--policy", "lfu:0.5", "policy=\"lfu:0.5\""},
    {"--prefetch", "off", "prefetch=false"},
    {"--io", "pread", "io=\"pread\""},
    {"--direct", "off", "direct=false"},
    {"--kv", "f16", "kv=\"f16\""},
    {"--activations", "q8", "activations=\"f32\""}, /* of the weights at hand: test_activations.c */
    {"--threads", "3", "threads=3"},
    {"--memory", "discrete", "memory=\"copied\""},
    {"--history", "%s/shown.history", ".history"},
    {"--stats", "%s/shown.stats", ".stats"},
    {"--trace", "%s/shown.trace", ".trace"},
    {"--timeline", "%s/shown.timeline", ".timeline"},
    {"--check", "", "-"}, /* tests/test_hazard.c */
};

static bool setting_is(const char *key_value)
{
    char key[40], path[300];
    size_t n = strcspn(key_value, "=");
    snprintf(key, sizeof key, "%.*s", (int)n, key_value);
    snprintf(path, sizeof path, "%s/s.json", dir.path);
    json_t *stats = json_load_file(path, 0, NULL);
    json_t *want = json_loads(key_value + n + 1, JSON_DECODE_ANY, NULL);
    json_t *is = json_object_get(json_object_get(stats, "settings"), key);
    bool same = want && json_equal(want, is);
    json_decref(want);
    json_decref(stats);
    return same;
}

static void flag_shows(size_t i)
{
    char value[300], line[700], path[300];
    snprintf(value, sizeof value, flags[i].value, dir.path);
    /* Later flags win, so that the one in question comes last. */
    snprintf(line, sizeof line, SMALL "%s%s/s.json %s %s",
             strcmp(flags[i].flag, "--stats") ? "--stats " : "--history ", dir.path, flags[i].flag,
             value);
    REQUIRE(run("tiny", line));
    if (flags[i].shows[0] == '.') {
        snprintf(path, sizeof path, "%s/shown%s", dir.path, flags[i].shows);
        CHECK(access(path, F_OK) == 0);
    } else if (flags[i].shows[0] != '-') {
        bool shown = setting_is(flags[i].shows);
        if (!shown)
            printf("    %s %s does not show in the statistics\n", flags[i].flag, value);
        CHECK(shown);
    }
    remove(tmp_path(&dir, "s.json"));
}

/* A new common flag needs a line above. */
static void every_common_flag_is_known(void)
{
    CHECK_INT(cli(err, sizeof err, true, "run --help"), 0);
    const char *p = strstr(err, "common options:");
    REQUIRE(p);
    uint32_t seen = 0;
    while ((p = strstr(p, "\n  --"))) {
        char name[40];
        p += 3;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(p, " \n"), p);
        size_t i = 0, n = sizeof flags / sizeof flags[0];
        while (i < n && strcmp(flags[i].flag, name) != 0)
            i++;
        if (i == n)
            printf("    %s is in the help: what shows that it takes effect?\n", name);
        CHECK(i < n);
        seen++;
    }
    CHECK_INT(seen, sizeof flags / sizeof flags[0]);
}

static void every_common_flag_shows(void)
{
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        flag_shows(i);
}

/* chat began no timeline once, and said nothing. */
static void chat_writes_its_timeline(void)
{
    char line[1024], path[300];
    snprintf(path, sizeof path, "%s/chat.timeline", dir.path);
    snprintf(line, sizeof line, "chat models/demo --template longcat-flash --device ref "
                                "--timeline %s --trace %s/chat.trace --seed 1",
             path, dir.path);
    CHECK_INT(cli(err, sizeof err, false, line), 0);
    CHECK_HAS(err, "--seed has no effect at --temp 0");
    CHECK(access(path, F_OK) == 0);
}

int main(int argc, char **argv)
{
    (void)argc;
    snprintf(binary, sizeof binary, "%.*s/../catflap", (int)(strrchr(argv[0], '/') - argv[0]),
             argv[0]);
    tmp_dir_init(&dir);
    char line[1024];
    static const char ids[] = "3 100 17 4 4 98\n";
    tmp_write(tmp_path(&dir, "ids"), ids, sizeof ids - 1);
    snprintf(line, sizeof line, "mkmodel %s/tiny --shape longcat-flash-tiny --layers 2 --vocab 256",
             dir.path);
    bool made = cli(err, sizeof err, true, line) == 0;
    /* Linear attention only: no keys and values are kept. */
    snprintf(line, sizeof line,
             "mkmodel %s/linear --config tests/fixtures/models/minimax/config.json --set "
             "'attn_type_list=[0,0,0,0]'",
             dir.path);
    made = made && cli(err, sizeof err, true, line) == 0;
    if (!made) {
        printf("    %s", err);
        RUN_NAMED("models", CHECK_NEVER("no model could be written"));
    } else {
        RUN(inert_flags);
        RUN(history_of_a_run_without_evictions);
        RUN(threads_of_a_device);
        RUN(without_meaning);
        RUN(of_info);
        RUN(every_common_flag_is_known);
        RUN(every_common_flag_shows);
        RUN(chat_writes_its_timeline);
    }
    tmp_dir_finish(&dir);
    return check_done();
}
