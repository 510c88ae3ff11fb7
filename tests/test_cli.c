/* The command line. Catches: a flag that is accepted and ignored, a wrong exit code, a failure
 * without its sentence, output that depends on cache settings, text cut inside a character or after
 * a stop text, an interrupted or killed process that leaves something half done, and a written
 * checkpoint whose bytes are not what seed and name say.
 *
 * Runs the built binary (beside this program's folder) on models it has written itself. */
#include "tests/check.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/tmpfiles.h"

static char binary[1100];
static tmp_dir dir;

/* ---- running it ---- */

typedef struct result {
    int code; /* exit code, or -signal */
    char out[1 << 16], err[1 << 16];
} result;

enum { MAX_ARGS = 48, TIMEOUT_S = 120 };

/* The words of a line; '...' keeps blanks. Pieces of `line` are cut out in place. */
static int words_split(char *line, char **words)
{
    int n = 0;
    for (char *p = line; *p && n < MAX_ARGS - 1;) {
        char end = ' ';
        if (*p == ' ') {
            p++;
            continue;
        }
        if (*p == '\'') {
            end = '\'';
            p++;
        }
        words[n++] = p;
        while (*p && *p != end)
            p++;
        if (*p)
            *p++ = 0;
    }
    words[n] = NULL;
    return n;
}

static void fd_to_text(int fd, char *text, size_t size)
{
    size_t n = 0;
    ssize_t got;
    lseek(fd, 0, SEEK_SET);
    while (n + 1 < size && (got = read(fd, text + n, size - 1 - n)) > 0)
        n += (size_t)got;
    text[n] = 0;
    close(fd);
}

static int scratch_fd(const char *name)
{
    return open(tmp_path(&dir, name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

/* Starts the binary with its outputs on these descriptors. fsize: RLIMIT_FSIZE, or 0. */
static pid_t child_start(const char *line, int out, int err, uint64_t fsize)
{
    char copy[4096], *words[MAX_ARGS];
    snprintf(copy, sizeof copy, "%s %s", binary, line);
    words_split(copy, words);
    fflush(stdout);
    pid_t pid = fork();
    if (pid)
        return pid;
    int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    dup2(out, 1);
    dup2(err, 2);
    if (fsize)
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){fsize, fsize});
    alarm(TIMEOUT_S);
    execv(words[0], words);
    _exit(127);
}

static int child_wait(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid)
        return -999;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void cli_limited(result *r, uint64_t fsize, const char *line)
{
    int out = scratch_fd("stdout"), err = scratch_fd("stderr");
    r->code = child_wait(child_start(line, out, err, fsize));
    fd_to_text(out, r->out, sizeof r->out);
    fd_to_text(err, r->err, sizeof r->err);
}

static void cli(result *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void cli(result *r, const char *format, ...)
{
    char line[3072];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    cli_limited(r, 0, line);
}

/* Exit 1 and one sentence that begins with the program's name. */
static void check_failed_with(const result *r, const char *part)
{
    CHECK_INT(r->code, 1);
    const char *line = strstr(r->err, "catflap: ");
    CHECK_HAS(r->err, part);
    CHECK(line != NULL);
}

static bool exists(const char *name)
{
    struct stat st;
    return stat(tmp_path(&dir, name), &st) == 0;
}

static const char tiny[] = "--shape longcat-flash-tiny --layers 2 --vocab 256";

/* A model and a list of ids, once for all. */
static bool models_made(void)
{
    static int made = -1;
    if (made >= 0)
        return made;
    result r;
    cli(&r, "mkmodel %s/tiny %s", dir.path, tiny);
    static const char ids[] = "3 200 17 4 4\n98 255 0 31 7 8 9 120 77\n";
    tmp_write(tmp_path(&dir, "ids"), ids, sizeof ids - 1);
    made = r.code == 0;
    if (!made)
        printf("    %s", r.err);
    return made;
}

static json_t *json_of(const char *text)
{
    json_error_t e;
    json_t *v = json_loads(text, JSON_DISABLE_EOF_CHECK, &e);
    if (!v)
        printf("    not JSON: %s\n", e.text);
    return v;
}

static json_int_t json_at(const json_t *v, const char *a, const char *b)
{
    return json_integer_value(json_object_get(json_object_get(v, a), b));
}

/* ---- usage ---- */

static const struct {
    const char *line, *part;
} misuse[] = {
    {"", "usage: catflap"},
    {"frobnicate", "\"frobnicate\""},
    {"serve m", "\"serve\""},
    {"run", "MODEL is missing"},
    {"run m", "-p TEXT"},
    {"run m -p x -f y", "only one"},
    {"run m n -p x", "\"n\""},
    {"run m -p x --vram 4X", "--vram takes a size in bytes or with K, M or G, such as 4G, not "
                             "\"4X\""},
    {"run m -p x --vram 0", "--vram 0"},
    {"run m -p x --vram ''", "--vram"},
    {"run m -p x --ram 18446744073709551616", "--ram"},
    {"run m -p x --ram 17179869184G", "\"17179869184G\""},
    {"run m -p x --ram -1", "\"-1\""},
    {"run m -p x --ctx 0", "--ctx takes a whole number from 1"},
    {"run m -p x --ctx 4294967296", "\"4294967296\""},
    {"run m -p x --chunk 1K", "--chunk"},
    {"run m -p x --threads 0", "--threads"},
    {"run m -p x --prefetch yes", "--prefetch takes on or off, not \"yes\""},
    {"run m -p x --direct 1", "--direct takes on or off"},
    {"run m -p x --io aio", "--io takes auto, uring or pread, not \"aio\""},
    {"run m -p x --kv f64", "--kv"},
    {"run m -p x --activations q4", "--activations takes f32 or q8, not \"q4\""},
    {"run m -p x --device cuda", "--device takes auto, vulkan, opencl or ref"},
    {"run m -p x --device ref:x", "\"ref:x\""},
    {"run m -p x --memory shared", "--memory"},
    {"run m -p x --policy fifo", "\"fifo\""},
    {"run m -p x --policy lfu:2", "\"lfu:2\""},
    {"run m -p x --temp -1", "--temp takes a number from 0"},
    {"run m -p x --temp nan", "\"nan\""},
    {"run m -p x --top-p 0", "--top-p must be above 0"},
    {"run m -p x --min-p 1", "--min-p must be below 1"},
    {"run m -p x --top-k 1.5", "\"1.5\""},
    {"run m -p x --seed 0x10", "--seed"},
    {"run m -p x -n ten", "-n takes a whole number"},
    {"run m -p x --stop ''", "--stop"},
    {"run m --ids x --print-ids --stop a", "--stop needs text"},
    {"run m -p x --stats a --trace a", "same file"},
    {"run m -p x --stats ''", "--stats"},
    {"run m -p x -v -q", "exclude each other"},
    {"run m -p x --stats a --timeline a", "same file"},
    {"run m -p x --timelin t", "unknown option --timelin "},
    {"run m -p x --pref off", "unknown option --pref "},
    {"run m -p x -z", "unknown option -z"},
    {"run m -p x --check=1", "takes no value"},
    {"run m -p x --vram", "--vram needs a value"},
    {"run m -p", "-p needs a value"},
    {"eval m", "--text FILE"},
    {"eval m --text a --ids b", "only one"},
    {"eval m --ids a --logits b --hidden b", "same file"},
    {"info", "MODEL is missing"},
    {"info m --devices", "--devices takes no MODEL"},
    {"verify", "MODEL is missing"},
    {"verify m --vram 1G", "unknown option --vram"},
    {"pack m", "MODEL and OUT.gguf are needed"},
    {"pack m o p", "nothing else"},
    {"pack m o", "does not end in .gguf"},
    {"pack m o --experts q9", "--experts: \"q9\" is no type; known: keep q8_0"},
    {"pack m o --resident Q8_0", "--resident"},
    {"pack m o --zstd=20", "--zstd takes a whole number from 1 to 19"},
    {"pack m o --jobs 0", "--jobs"},
    {"mkmodel --shape longcat-flash-tiny", "OUT_DIR is missing"},
    {"mkmodel o", "--shape NAME"},
    {"mkmodel o --shape a --copy b", "only one"},
    {"mkmodel o --copy b --layers 2", "--copy keeps"},
    {"mkmodel o --shape a --data-offset 16", "--data-offset"},
    {"mkmodel o --shape a --dtype q4", "--dtype takes bf16, f16 or f32"},
};

static void usage_errors(void)
{
    result r;
    for (size_t i = 0; i < sizeof misuse / sizeof misuse[0]; i++) {
        cli(&r, "%s", misuse[i].line);
        if (r.code != 2)
            printf("    catflap %s\n", misuse[i].line);
        CHECK_INT(r.code, 2);
        CHECK_HAS(r.err, misuse[i].part);
        CHECK_STR(r.out, "");
    }
}

static void help_everywhere(void)
{
    static const char *const commands[] = {"run",    "chat", "eval",  "info",
                                           "verify", "tune", "bench", "pack", "mkmodel"};
    result r;
    cli(&r, "--help");
    CHECK_INT(r.code, 0);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        result c;
        CHECK_HAS(r.out, commands[i]);
        cli(&c, "%s --help", commands[i]);
        CHECK_INT(c.code, 0);
        CHECK_HAS(c.out, "example:");
        CHECK_STR(c.err, "");
    }
    cli(&r, "--version");
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "catflap ");
}

/* ---- failures ---- */

static void failures_say_why(void)
{
    if (!models_made())
        SKIP("no model could be written");
    result r;
    const char *d = dir.path;
    cli(&r, "run %s/nothing -p x", d);
    check_failed_with(&r, "nothing");
    cli(&r, "run %s/tiny -p x --device ref", d);
    check_failed_with(&r, "no tokenizer");
    cli(&r, "run %s/tiny --ids %s/ids --device ref", d, d);
    check_failed_with(&r, "--print-ids");
    cli(&r, "run %s/tiny --ids %s/missing --print-ids", d, d);
    check_failed_with(&r, "missing");
    tmp_write(tmp_path(&dir, "high"), "1 2 256", 7);
    cli(&r, "run %s/tiny --ids %s/high --print-ids --device ref", d, d);
    check_failed_with(&r, "token id 256 (number 3 of the list) is outside the vocabulary of 256");
    tmp_write(tmp_path(&dir, "words"), "1 2\n3 4x", 8);
    cli(&r, "run %s/tiny --ids %s/words --print-ids --device ref", d, d);
    check_failed_with(&r, "line 2: \"4x\"");
    tmp_write(tmp_path(&dir, "huge"), "99999999999999999999999", 23);
    cli(&r, "run %s/tiny --ids %s/huge --print-ids --device ref", d, d);
    check_failed_with(&r, "not a token id");
    tmp_write(tmp_path(&dir, "empty"), "\n", 1);
    cli(&r, "run %s/tiny --ids %s/empty --print-ids --device ref", d, d);
    check_failed_with(&r, "no tokens");
    tmp_write(tmp_path(&dir, "bad"), "ab\xc3(", 4);
    cli(&r, "run %s/tiny -f %s/bad", d, d);
    check_failed_with(&r, "not valid UTF-8 at byte 2");
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref --ctx 13", d, d);
    check_failed_with(&r, "14 tokens, the context holds 13");
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref --stats %s/no/s", d, d, d);
    check_failed_with(&r, "/no/s");
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref --trace %s", d, d, d);
    check_failed_with(&r, "is a directory");
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref --vram 64K", d, d);
    check_failed_with(&r, "--vram 65536 is too small");
    cli(&r, "eval %s/tiny --ids %s/empty --device ref", d, d);
    check_failed_with(&r, "nothing to predict");
    cli(&r, "mkmodel %s/x --shape huge", d);
    check_failed_with(&r, "longcat-flash-lite");
    cli(&r, "mkmodel %s/x --shape longcat-flash-tiny --set nothing", d);
    check_failed_with(&r, "KEY=VALUE");
    cli(&r, "mkmodel %s/x --shape longcat-flash-tiny --ngram-ratio 2", d);
    check_failed_with(&r, "--ngram-ratio");
    CHECK(!exists("x") && !exists("x.partial"));
}

/* ---- run ---- */

static void same_ids_at_every_setting(void)
{
    if (!models_made())
        SKIP("no model could be written");
    static const char *const settings[] = {
        "--vram 2200K --ctx 64 --chunk 4",
        "--vram 2200K --ctx 64 --chunk 4 --prefetch off",
        "--vram 2500K --ctx 64 --chunk 4 --io pread --policy lru",
        "--ctx 64 --chunk 4 --memory discrete --direct off --policy lfu:1 --threads 1",
    };
    result first, r;
    cli(&first, "run %s/tiny --ids %s/ids --print-ids -n 24 --device ref --ctx 64 --chunk 4 -q",
        dir.path, dir.path);
    CHECK_INT(first.code, 0);
    CHECK_STR(first.err, "");
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        cli(&r, "run %s/tiny --ids %s/ids --print-ids -n 24 --device ref -q %s", dir.path, dir.path,
            settings[i]);
        CHECK_INT(r.code, 0);
        CHECK_STR(r.out, first.out);
        CHECK_STR(r.err, "");
    }
    cli(&r, "run %s/tiny --ids %s/ids --print-ids -n 24 --device ref --temp 2 --seed 5", dir.path,
        dir.path);
    CHECK_INT(r.code, 0);
    CHECK(strcmp(r.out, first.out) != 0);
    CHECK_HAS(r.err, "seed 5");
}

static void statistics_and_trace(void)
{
    if (!models_made())
        SKIP("no model could be written");
    result r;
    cli(&r,
        "run %s/tiny --ids %s/ids --print-ids -n 9 --device ref -v --stats %s/s.json --trace "
        "%s/t.csv",
        dir.path, dir.path, dir.path, dir.path);
    REQUIRE(r.code == 0);
    CHECK_HAS(r.err, "hit rate");
    int ids = 0;
    for (char *p = r.out; *p; p++)
        ids += *p == ' ' || *p == '\n';
    json_t *s = json_load_file(tmp_path(&dir, "s.json"), 0, NULL);
    REQUIRE(s != NULL);
    CHECK_INT(json_at(s, "tokens", "prompt"), 14);
    CHECK_INT(json_at(s, "tokens", "generated"), ids);
    json_t *decode = json_object_get(json_object_get(s, "experts"), "decode");
    json_int_t lookups = json_integer_value(json_object_get(decode, "lookups"));
    CHECK_INT(json_integer_value(json_object_get(decode, "selected")),
              json_integer_value(json_object_get(decode, "zero")) + lookups);
    CHECK(lookups > 0);
    json_decref(s);
    FILE *f = fopen(tmp_path(&dir, "t.csv"), "r");
    REQUIRE(f != NULL);
    char line[512];
    int prompt_rows = 0;
    CHECK(fgets(line, sizeof line, f) && line[0] == '#');
    CHECK(fgets(line, sizeof line, f) && !strncmp(line, "session,token,phase", 19));
    while (fgets(line, sizeof line, f))
        prompt_rows += strstr(line, ",P,") != NULL;
    fclose(f);
    CHECK_INT(prompt_rows, 14 * 2);
}

static void context_full_is_no_failure(void)
{
    if (!models_made())
        SKIP("no model could be written");
    result r;
    cli(&r, "run %s/tiny --ids %s/ids --print-ids -n 50 --device ref --ctx 16", dir.path, dir.path);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.err, "the context of 16 is full");
    int ids = 0;
    for (char *p = r.out; *p; p++)
        ids += *p == ' ' || *p == '\n';
    CHECK_INT(ids, 3); /* after 14, 15 and 16 tokens */
}

static void unwritable_output_ends_the_run(void)
{
    if (!models_made())
        SKIP("no model could be written");
    result r;
    char line[1200];
    snprintf(line, sizeof line, "run %s/tiny --ids %s/ids --print-ids -n 200 --device ref",
             dir.path, dir.path);
    int pipes[2], err = scratch_fd("stderr");
    REQUIRE(pipe(pipes) == 0);
    close(pipes[0]); /* nobody reads */
    r.code = child_wait(child_start(line, pipes[1], err, 0));
    close(pipes[1]);
    fd_to_text(err, r.err, sizeof r.err);
    check_failed_with(&r, "cannot write to standard output");
    int full = open("/dev/full", O_WRONLY);
    if (full < 0)
        return;
    err = scratch_fd("stderr");
    r.code = child_wait(child_start("--help", full, err, 0));
    fd_to_text(err, r.err, sizeof r.err);
    check_failed_with(&r, "No space left");
    close(full);
}

/* Waits until the child has written something to the pipe; the rest is left in it. */
static bool output_begins(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, TIMEOUT_S * 1000) == 1;
}

static void interrupt_closes_with_statistics(void)
{
    if (!models_made())
        SKIP("no model could be written");
    char line[1200];
    result r;
    snprintf(line, sizeof line,
             "run %s/tiny --ids %s/ids --print-ids -n 100000 --device ref --ctx 2000 --stats "
             "%s/int.json -v",
             dir.path, dir.path, dir.path);
    int pipes[2], err = scratch_fd("stderr");
    REQUIRE(pipe(pipes) == 0);
    pid_t pid = child_start(line, pipes[1], err, 0);
    close(pipes[1]);
    CHECK(output_begins(pipes[0]));
    kill(pid, SIGINT);
    char sink[4096];
    while (read(pipes[0], sink, sizeof sink) > 0)
        ;
    close(pipes[0]);
    r.code = child_wait(pid);
    fd_to_text(err, r.err, sizeof r.err);
    CHECK_INT(r.code, 130);
    CHECK_HAS(r.err, "interrupted after");
    CHECK_HAS(r.err, "hit rate");
    json_t *s = json_load_file(tmp_path(&dir, "int.json"), 0, NULL);
    CHECK(json_at(s, "tokens", "generated") > 0);
    json_decref(s);
}

/* ---- text: with the bundled model ---- */

static const char king[] = "Once upon a time there was a king who";
static const char king_text[] = " was a beautiful and beautiful and beautiful and beautiful. And "
                                "when the King saw that he was not at all afraid, he said, \"";

static void text_stops_where_it_should(void)
{
    if (access("models/demo/config.json", R_OK) != 0)
        SKIP("models/demo is not here");
    static const struct {
        const char *stops, *text;
    } cases[] = {
        /* inside tokens and over their borders */
        {"--stop 'ul and beautiful a'", " was a beautif"},
        {"--stop 'King saw'", " was a beautiful and beautiful and beautiful and beautiful. And "
                              "when the "},
        /* the one that is complete first wins, wherever it began */
        {"--stop 'beautiful and beautiful' --stop 'utiful'", " was a bea"},
        /* of two that end together, the longer */
        {"--stop 'iful' --stop 'beautiful'", " was a "},
        /* the beginning of a stop at the very end is text */
        {"--stop 'a beautiful and beautiful and beautiful and beautiful. And when the King saw "
         "that he was not at all afraid, he said,#'",
         king_text},
        {"--stop nowhere", king_text},
    };
    result r;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char want[512];
        snprintf(want, sizeof want, "%s\n", cases[i].text);
        cli(&r, "run models/demo -p '%s' -n 27 --device ref -q %s", king, cases[i].stops);
        CHECK_INT(r.code, 0);
        CHECK_STR(r.out, want);
    }
}

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
    if (!models_made())
        SKIP("no model could be written");
    static const int ids[] = {3, 200, 17, 4, 4, 98, 255, 0, 31, 7, 8, 9, 120, 77};
    enum { N = sizeof ids / sizeof ids[0], VOCAB = 256, HIDDEN = 128, LAYERS = 2, WINDOW = 6 };
    static float logits[N + 1][VOCAB], hidden[LAYERS * N + 1][HIDDEN];
    result r;
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
    json_t *v = json_of(r.out);
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
    if (!models_made())
        SKIP("no model could be written");
    static const char fp8[] = "tests/fixtures/models/deepseek_v3_fp8";
    static const char ids[] = "3 20 17 4 4 38 25 0 31 7 8 9 12 47";
    result r;
    tmp_write(tmp_path(&dir, "small"), ids, strlen(ids));
    cli(&r, "eval %s --ids %s/small --ctx 6 --device ref --json --activations q8", fp8, dir.path);
    REQUIRE(r.code == 0);
    json_t *v = json_of(r.out);
    double rounded = json_real_value(json_object_get(v, "perplexity"));
    double exact = json_real_value(json_object_get(v, "perplexity_f32_activations"));
    CHECK_STR(json_string_value(json_object_get(v, "activations")), "q8");
    json_decref(v);
    CHECK(!strstr(r.err, "changes nothing"));
    cli(&r, "eval %s --ids %s/small --ctx 6 --device ref --json", fp8, dir.path);
    REQUIRE(r.code == 0);
    v = json_of(r.out);
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

/* ---- info and verify ---- */

static void info_describes(void)
{
    if (!models_made())
        SKIP("no model could be written");
    result r;
    cli(&r, "info %s/tiny --device ref --json --plan", dir.path);
    REQUIRE(r.code == 0);
    json_t *v = json_of(r.out);
    CHECK_INT(json_at(v, "model", "layers"), 2);
    CHECK_INT(json_at(v, "model", "experts"), 32);
    CHECK_INT(json_at(v, "bytes", "experts"), 2 * 32 * 3 * 128 * 96 * 2);
    CHECK_INT(json_at(v, "memory", "records"), 64);
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
    check_failed_with(&r, "--vram 1048576 is too small");
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
        result r;
        cli(&r, "info tests/fixtures/models/%s --device ref --json", models[i][0]);
        REQUIRE(r.code == 0);
        json_t *v = json_of(r.out);
        CHECK_INT(json_at(v, "tensors", "experts"), atoi(models[i][1]));
        CHECK_INT(json_at(v, "tensors", "resident") + json_at(v, "tensors", "experts") +
                      json_at(v, "tensors", "tables") + json_at(v, "tensors", "left_out"),
                  json_at(v, "tensors", "total"));
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
    if (!models_made())
        SKIP("no model could be written");
    result r;
    cli(&r, "info models/demo --device ref --vram 13M --ram 8M --drive 2.5 --json");
    REQUIRE(r.code == 0);
    json_t *v = json_of(r.out), *p = json_object_get(v, "prediction");
    json_int_t dense = json_at(json_object_get(v, "memory"), "dense", "streamed_bytes");
    CHECK(dense > 0);
    CHECK_INT(json_at(v, "prediction", "dense_bytes"), dense);
    CHECK_INT(json_at(v, "prediction", "expert_bytes"), 4 * 6 * 96 << 10); /* layers, top-k, a record */
    CHECK(json_is_false(json_object_get(p, "drive_measured")));
    const json_t *c, *cases = json_object_get(p, "cases");
    double slots = (double)json_at(v, "memory", "slots"), last = -1, uniform = 0;
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
    v = json_of(r.out);
    p = json_object_get(v, "prediction");
    CHECK(real_of(p, "drive_bytes_per_s") > 0 ||
          json_string_length(json_object_get(p, "why_not")) > 0);
    json_decref(v);
    /* An encoder's experts have been read when decode begins. */
    cli(&r, "info tests/fixtures/models/switch_transformers --device ref --drive 1 --json");
    REQUIRE(r.code == 0);
    v = json_of(r.out);
    CHECK_INT(json_at(v, "prediction", "expert_bytes"), 15 << 10); /* one layer, one record */
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
        {"models/demo --vram 13M --prefetch off", "when the experts are needed (--prefetch", "window:"},
        {"models/demo", "nothing is streamed after that", "Reads start"},
        {"tests/fixtures/models/mixtral --vram 480K --ctx 64 --chunk 4",
         "no step lies between that and the experts", "window:"},
        {"tests/fixtures/models/mixtral --vram 480K --ctx 64 --chunk 4",
         "1 place for a guess of 24.00 KiB", "leaves no place"},
        {"tests/fixtures/models/mixtral --vram 280K --ctx 64 --chunk 4", "leaves no place for guesses",
         "Choices are foreseen"},
        {"tests/fixtures/models/qwen3_next --ctx 64 --chunk 4", "recurrent state", "streamed weights"},
    };
    result r;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        cli(&r, "info %s --device ref --drive 1", table[i].args);
        CHECK_INT(r.code, 0);
        CHECK_HAS(r.out, table[i].says);
        CHECK(!strstr(r.out, table[i].says_not));
    }
}

/* The README's program is the library's user: it says what `run` says. */
static void the_readme_example(void)
{
    result r;
    char command[1300], text[4096] = "";
    cli(&r, "run models/demo -p 'Once upon a time' -n 24 -q");
    REQUIRE(r.code == 0);
    snprintf(command, sizeof command, "%.*sexample models/demo 'Once upon a time'",
             (int)(strrchr(binary, '/') + 1 - binary), binary);
    FILE *p = popen(command, "r");
    REQUIRE(p);
    size_t n = fread(text, 1, sizeof text - 1, p);
    text[n] = 0;
    CHECK_INT(pclose(p), 0);
    CHECK_STR(text, r.out);
}

/* A run whose dense weights do not fit says so, and how much would do; its text is the same. */
static void run_streams_dense_weights(void)
{
    result want, r;
    static char text[sizeof want.out];
    cli(&want, "run models/demo -p 'Once upon a time' -n 12 --device ref -q");
    REQUIRE(want.code == 0);
    snprintf(text, sizeof text, "%s", want.out);
    cli(&r, "run models/demo -p 'Once upon a time' -n 12 --device ref --vram 13M --stats %s/s.json",
        dir.path);
    CHECK_INT(r.code, 0);
    CHECK_STR(r.out, text);
    CHECK_HAS(r.err, "the dense weights do not all fit in --vram 13631488: 6.0 of their 10.2 MiB");
    const char *would = strstr(r.err, "slow; --vram ");
    REQUIRE(would);
    char path[400];
    snprintf(path, sizeof path, "%s/s.json", dir.path);
    json_t *v = json_load_file(path, 0, NULL);
    CHECK_INT(json_at(v, "dense", "streamed_bytes"), 6 << 20);
    CHECK(json_at(v, "dense", "bytes") >= 12 * (6 << 20)); /* a prompt of one chunk, and eleven tokens */
    CHECK(json_at(v, "dense", "bytes") <= json_at(v, "io", "bytes"));
    json_decref(v);
    cli(&r, "run models/demo -p 'Once upon a time' -n 12 --device ref --vram %llu",
        strtoull(would + strlen("slow; --vram "), NULL, 10));
    CHECK_INT(r.code, 0);
    CHECK_STR(r.out, text);
    CHECK(!strstr(r.err, "dense weights"));
}

static void file_patch(const char *path, off_t at, const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY);
    if (pwrite(fd, data, bytes, at) != (ssize_t)bytes)
        printf("    cannot patch %s\n", path);
    close(fd);
}

/* Where a tensor's data lies in a safetensors file, or -1. */
static off_t tensor_at(const char *path, const char *name)
{
    static char header[1 << 20];
    uint64_t n = 0;
    FILE *f = fopen(path, "rb");
    if (!f)
        return -1;
    size_t got = fread(&n, 8, 1, f) == 1 && n < sizeof header ? fread(header, 1, n, f) : 0;
    fclose(f);
    header[got] = 0;
    json_t *v = json_of(header);
    json_t *offsets = json_object_get(json_object_get(v, name), "data_offsets");
    off_t at =
        offsets ? (off_t)(8 + n) + (off_t)json_integer_value(json_array_get(offsets, 0)) : -1;
    json_decref(v);
    return at;
}

static void verify_finds_defects(void)
{
    if (!models_made())
        SKIP("no model could be written");
    result r;
    cli(&r, "verify %s/tiny", dir.path);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "no defect found");
    CHECK_HAS(r.out, "checksums");
    cli(&r, "verify %s/tiny --json", dir.path);
    json_t *v = json_of(r.out);
    CHECK(json_is_true(json_object_get(v, "ok")));
    json_decref(v);

    cli(&r, "mkmodel %s/hurt --copy %s/tiny", dir.path, dir.path);
    REQUIRE(r.code == 0);
    const char *path = tmp_path(&dir, "hurt/model.safetensors");
    static const char name[] = "model.layers.1.mlp.router.classifier.weight";
    off_t at = tensor_at(path, name);
    REQUIRE(at > 0);
    file_patch(path, at + 4 * 130, "\x00\x00\xc0\x7f", 4);
    cli(&r, "verify %s/hurt", dir.path);
    check_failed_with(&r, "element 130 of model.layers.1.mlp.router.classifier.weight is not a "
                          "number");
    struct stat st;
    CHECK(stat(path, &st) == 0 && truncate(path, st.st_size - 1) == 0);
    cli(&r, "verify %s/hurt", dir.path);
    check_failed_with(&r, "model.safetensors");
}

/* ---- mkmodel ---- */

static bool files_equal(const char *a, const char *b)
{
    FILE *f = fopen(a, "rb"), *g = fopen(b, "rb");
    static char x[1 << 16], y[1 << 16];
    size_t n = 1;
    bool same = f && g;
    while (same && n) {
        n = fread(x, 1, sizeof x, f);
        same = fread(y, 1, sizeof y, g) == n && memcmp(x, y, n) == 0;
    }
    if (f)
        fclose(f);
    if (g)
        fclose(g);
    return same;
}

static void bytes_are_a_function_of_the_seed(void)
{
    if (!models_made())
        SKIP("no model could be written");
    result r;
    cli(&r, "mkmodel %s/again %s", dir.path, tiny);
    CHECK_INT(r.code, 0);
    CHECK(files_equal(tmp_path(&dir, "tiny/model.safetensors"),
                      tmp_path(&dir, "again/model.safetensors")));
    cli(&r, "mkmodel %s/other %s --seed 1", dir.path, tiny);
    CHECK(!files_equal(tmp_path(&dir, "tiny/model.safetensors"),
                       tmp_path(&dir, "other/model.safetensors")));
    /* Shards and offsets move bytes and change none: copied back together they are the same. */
    cli(&r, "mkmodel %s/shards %s --shard-size 300K --data-offset 5", dir.path, tiny);
    CHECK_INT(r.code, 0);
    CHECK(exists("shards/model.safetensors.index.json"));
    cli(&r, "mkmodel %s/joined --copy %s/shards --shard-size 1G", dir.path, dir.path);
    CHECK_INT(r.code, 0);
    CHECK(files_equal(tmp_path(&dir, "tiny/model.safetensors"),
                      tmp_path(&dir, "joined/model.safetensors")));
    cli(&r, "mkmodel %s/tiny %s", dir.path, tiny);
    check_failed_with(&r, "exists");
    cli(&r, "mkmodel %s/none --shape longcat-flash --size-only", dir.path);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "1121594245120 bytes");
    CHECK(!exists("none"));
}

static void data_offsets_do_not_matter(void)
{
    if (!models_made())
        SKIP("no model could be written");
    static const int offsets[] = {0, 1, 2, 4, 8, 14};
    result first, r;
    cli(&first, "run %s/tiny --ids %s/ids --print-ids -n 12 --device ref -q", dir.path, dir.path);
    CHECK_INT(first.code, 0);
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "at%d", offsets[i]);
        cli(&r, "mkmodel %s/%s --copy %s/tiny --data-offset %d", dir.path, name, dir.path,
            offsets[i]);
        CHECK_INT(r.code, 0);
        snprintf(name, sizeof name, "at%d/model.safetensors", offsets[i]);
        off_t at = tensor_at(tmp_path(&dir, name), "model.embed_tokens.weight");
        CHECK(at > 0);
        cli(&r, "run %s/at%d --ids %s/ids --print-ids -n 12 --device ref -q", dir.path, offsets[i],
            dir.path);
        CHECK_INT(r.code, 0);
        CHECK_STR(r.out, first.out);
        uint64_t header = 0;
        FILE *f = fopen(tmp_path(&dir, name), "rb");
        CHECK(f && fread(&header, 8, 1, f) == 1);
        if (f)
            fclose(f);
        CHECK_INT((8 + header) % 16, offsets[i]);
        CHECK_INT((8 + header) % 32, offsets[i] + 16);
    }
}

static void a_full_drive_leaves_nothing(void)
{
    result r;
    char line[1200];
    snprintf(line, sizeof line, "mkmodel %s/full --shape longcat-flash-tiny", dir.path);
    cli_limited(&r, 1 << 20, line);
    check_failed_with(&r, "failed after");
    CHECK(!exists("full") && !exists("full.partial"));
}

/* Big enough to be caught in the act on any machine. */
static const char slow[] = "--shape longcat-flash-lite --layers 1 --ngram-ratio 0.5 --shard-size "
                           "200M";

static pid_t mkmodel_caught(const char *out)
{
    char line[1200], partial[64];
    int null = open("/dev/null", O_WRONLY);
    snprintf(line, sizeof line, "mkmodel %s/%s %s", dir.path, out, slow);
    snprintf(partial, sizeof partial, "%s.partial/model-00001-of-00030.safetensors.part", out);
    pid_t pid = child_start(line, null, null, 0);
    close(null);
    snprintf(partial, sizeof partial, "%s.partial", out);
    for (int i = 0; i < 5000 && !exists(partial); i++)
        usleep(1000);
    usleep(50000);
    return pid;
}

static void killed_or_interrupted_leaves_no_model(void)
{
    result r;
    pid_t pid = mkmodel_caught("caught");
    kill(pid, SIGINT);
    CHECK_INT(child_wait(pid), 130);
    CHECK(!exists("caught") && !exists("caught.partial"));

    pid = mkmodel_caught("caught");
    kill(pid, SIGKILL);
    CHECK_INT(child_wait(pid), -SIGKILL);
    CHECK(!exists("caught"));
    CHECK(exists("caught.partial"));
    cli(&r, "info %s/caught.partial", dir.path);
    CHECK_INT(r.code, 1);
    /* The next run takes its place. */
    cli(&r, "mkmodel %s/caught %s", dir.path, tiny);
    CHECK_INT(r.code, 0);
    CHECK(exists("caught/config.json") && !exists("caught.partial"));
}

int main(void)
{
    char self[1024];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(self, '/');
        if (slash)
            *slash = 0;
    }
    snprintf(binary, sizeof binary, "%s/catflap", self);
    if (access(binary, X_OK) != 0) {
        printf("    skip: %s is not built (make all)\n", binary);
        return 77;
    }
    tmp_dir_init(&dir);
    RUN(usage_errors);
    RUN(help_everywhere);
    RUN(failures_say_why);
    RUN(same_ids_at_every_setting);
    RUN(statistics_and_trace);
    RUN(context_full_is_no_failure);
    RUN(unwritable_output_ends_the_run);
    RUN(interrupt_closes_with_statistics);
    RUN(text_stops_where_it_should);
    RUN(eval_agrees_with_its_logits);
    RUN(eval_says_what_q8_costs);
    RUN(info_describes);
    RUN(info_counts_tensors);
    RUN(info_predicts);
    RUN(info_says_what_hides_reads);
    RUN(run_streams_dense_weights);
    RUN(the_readme_example);
    RUN(verify_finds_defects);
    RUN(bytes_are_a_function_of_the_seed);
    RUN(data_offsets_do_not_matter);
    RUN(a_full_drive_leaves_nothing);
    RUN(killed_or_interrupted_leaves_no_model);
    tmp_dir_finish(&dir);
    return check_done();
}
