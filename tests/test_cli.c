/* The command line, and `run` through it. Catches: a flag that is accepted and ignored, a wrong
 * exit code, a failure without its sentence, output that depends on cache settings, text cut inside
 * a character or after a stop text, an interrupted run that does not close its books.
 *
 * Runs the built binary (support/cli.h) on a model it has written, and on the bundled one. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "tests/check.h"
#include "tests/support/cli.h"
#include "tests/support/gguf_small.h"

static tmp_dir dir;

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
    {"run m -p x --trace t.csv.gz", "--trace writes CSV, compressed where the name ends in .zst"},
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
    cli_result r;
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
    cli_result r;
    cli(&r, "--help");
    CHECK_INT(r.code, 0);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        cli_result c;
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

/* ---- a vocabulary that is not known ---- */

/* A GGUF file whose tokens are the printable ones of ASCII, split as `model` and `pre` say. */
static void letters_write(const char *name, const char *model, const char *pre)
{
    char texts[GGUF_SMALL_VOCAB][2];
    const char *tokens[GGUF_SMALL_VOCAB];
    gguf_small g = {.rng = {5}};
    for (int i = 0; i < GGUF_SMALL_VOCAB; i++) {
        snprintf(texts[i], sizeof texts[i], "%c", '!' + i);
        tokens[i] = texts[i];
    }
    gguf_small_put(&g);
    gguf_put_string(&g.out, "tokenizer.ggml.model", model);
    gguf_put_string(&g.out, "tokenizer.ggml.pre", pre);
    gguf_put_strings(&g.out, "tokenizer.ggml.tokens", tokens, GGUF_SMALL_VOCAB);
    gguf_put_strings(&g.out, "tokenizer.ggml.merges", NULL, 0);
    gguf_write(&g.out, tmp_path(&dir, name));
}

/* What needs no text works on `name`, and gives what the known vocabulary gives; what needs it ends
 * in a sentence that names `what`. decodes: its tokens can be printed. */
static void without_text(const char *name, const char *what, bool decodes)
{
    static cli_result r, known;
    const char *d = dir.path;
    cli(&known, "run %s/known.gguf --ids %s/few --device ref -n 8 %s", d, d,
        decodes ? "" : "--print-ids");
    CHECK_INT(known.code, 0);
    CHECK(strlen(known.out) > 8);
    cli(&r, "run %s/%s --ids %s/few --device ref -n 8 %s --trace %s/few.csv", d, name, d,
        decodes ? "" : "--print-ids", d);
    CHECK_INT(r.code, 0);
    CHECK_STR(r.out, known.out);
    cli(&r, "info %s/%s --device ref", d, name);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "a tokenizer that cannot encode (use --ids)");
    CHECK_HAS(r.err, what);
    CHECK_HAS(r.err, "token ids (--ids)");
    cli(&r, "info %s/%s --device ref --json", d, name);
    CHECK_HAS(r.out, "\"tokenizer\": false");
    cli(&r, "verify %s/%s", d, name);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "it cannot encode (use --ids)");
    cli(&r, "tune %s/few.csv --slots 4,6 --model %s/%s --device ref", d, d, name);
    CHECK_INT(r.code, 0);
    cli(&r, "bench %s/%s --device ref --contexts 4 -n 2 --samples 1", d, name);
    CHECK_INT(r.code, 0);
    cli(&r, "eval %s/%s --ids %s/few --device ref", d, name, d);
    CHECK_INT(r.code, 0);
    cli(&r, "pack %s/%s %s/packed.gguf", d, name, d);
    CHECK_INT(r.code, 0);
    cli(&r, "run %s/packed.gguf --ids %s/few --device ref -n 8 %s", d, d,
        decodes ? "" : "--print-ids");
    CHECK_STR(r.out, known.out);
    cli(&r, "run %s/%s -p abc --device ref %s", d, name, decodes ? "" : "--print-ids");
    cli_failed_with(&r, what);
    CHECK_HAS(r.err, "token ids (--ids)");
    cli(&r, "eval %s/%s --text %s/few --device ref", d, name, d);
    cli_failed_with(&r, what);
    cli(&r, "chat %s/%s --device ref", d, name);
    cli_failed_with(&r, what);
    unlink(tmp_path(&dir, "packed.gguf"));
}

static void an_unknown_vocabulary_refuses_text_only(void)
{
    cli_result r;
    letters_write("known.gguf", "gpt2", "gpt-2");
    letters_write("pre.gguf", "gpt2", "martian");
    letters_write("model.gguf", "wordpiece", "gpt-2");
    tmp_write(tmp_path(&dir, "few"), "1 2 3 40 7", 10);
    without_text("pre.gguf", "tokenizer.ggml.pre \"martian\" is not known", true);
    without_text("model.gguf", "tokenizer.ggml.model \"wordpiece\" is not known", false);
    cli(&r, "run %s/model.gguf --ids %s/few --device ref", dir.path, dir.path);
    cli_failed_with(&r, "no tokenizer that is known");
    CHECK_HAS(r.err, "--print-ids");
}

/* ---- failures ---- */

static void failures_say_why(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    cli_result r;
    const char *d = dir.path;
    cli(&r, "run %s/nothing -p x", d);
    cli_failed_with(&r, "nothing");
    cli(&r, "run %s/tiny -p x --device ref", d);
    cli_failed_with(&r, "no tokenizer");
    cli(&r, "run %s/tiny --ids %s/ids --device ref", d, d);
    cli_failed_with(&r, "--print-ids");
    cli(&r, "run %s/tiny --ids %s/missing --print-ids", d, d);
    cli_failed_with(&r, "missing");
    tmp_write(tmp_path(&dir, "high"), "1 2 256", 7);
    cli(&r, "run %s/tiny --ids %s/high --print-ids --device ref", d, d);
    cli_failed_with(&r, "token id 256 (number 3 of the list) is outside the vocabulary of 256");
    tmp_write(tmp_path(&dir, "words"), "1 2\n3 4x", 8);
    cli(&r, "run %s/tiny --ids %s/words --print-ids --device ref", d, d);
    cli_failed_with(&r, "line 2: \"4x\"");
    tmp_write(tmp_path(&dir, "huge"), "99999999999999999999999", 23);
    cli(&r, "run %s/tiny --ids %s/huge --print-ids --device ref", d, d);
    cli_failed_with(&r, "not a token id");
    tmp_write(tmp_path(&dir, "empty"), "\n", 1);
    cli(&r, "run %s/tiny --ids %s/empty --print-ids --device ref", d, d);
    cli_failed_with(&r, "no tokens");
    tmp_write(tmp_path(&dir, "bad"), "ab\xc3(", 4);
    cli(&r, "run %s/tiny -f %s/bad", d, d);
    cli_failed_with(&r, "not valid UTF-8 at byte 2");
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref --ctx 13", d, d);
    cli_failed_with(&r, "14 tokens, the context holds 13");
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref --stats %s/no/s", d, d, d);
    cli_failed_with(&r, "/no/s");
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref --trace %s", d, d, d);
    cli_failed_with(&r, "is a directory");
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref --vram 64K", d, d);
    cli_failed_with(&r, "--vram 65536 is too small");
    cli(&r, "eval %s/tiny --ids %s/empty --device ref", d, d);
    cli_failed_with(&r, "nothing to predict");
    cli(&r, "mkmodel %s/x --shape huge", d);
    cli_failed_with(&r, "longcat-flash-lite");
    cli(&r, "mkmodel %s/x --shape longcat-flash-tiny --set nothing", d);
    cli_failed_with(&r, "KEY=VALUE");
    cli(&r, "mkmodel %s/x --shape longcat-flash-tiny --ngram-ratio 2", d);
    cli_failed_with(&r, "--ngram-ratio");
    cli(&r, "mkmodel %s/x --copy %s/ids", d, d);
    cli_failed_with(&r, "--copy takes a folder of *.safetensors files");
    cli(&r, "mkmodel %s/x --copy %s/nothing", d, d);
    cli_failed_with(&r, "/nothing: No such file or directory");
    CHECK(!cli_exists("x") && !cli_exists("x.partial"));
}

/* ---- run ---- */

static void same_ids_at_every_setting(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    static const char *const settings[] = {
        "--vram 2200K --ctx 64 --chunk 4",
        "--vram 2200K --ctx 64 --chunk 4 --prefetch off",
        "--vram 2500K --ctx 64 --chunk 4 --io pread --policy lru",
        "--ctx 64 --chunk 4 --memory discrete --direct off --policy lfu:1 --threads 1",
    };
    cli_result first, r;
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
    if (!cli_models_made())
        SKIP("no model could be written");
    cli_result r;
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
    CHECK_INT(cli_json_at(s, "tokens", "prompt"), 14);
    CHECK_INT(cli_json_at(s, "tokens", "generated"), ids);
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
    if (!cli_models_made())
        SKIP("no model could be written");
    cli_result r;
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
    if (!cli_models_made())
        SKIP("no model could be written");
    cli_result r;
    char line[1200];
    snprintf(line, sizeof line, "run %s/tiny --ids %s/ids --print-ids -n 200 --device ref",
             dir.path, dir.path);
    int pipes[2], err = cli_scratch("stderr");
    REQUIRE(pipe(pipes) == 0);
    close(pipes[0]); /* nobody reads */
    r.code = cli_wait(cli_start(line, pipes[1], err, 0));
    close(pipes[1]);
    cli_read_back(err, r.err, sizeof r.err);
    cli_failed_with(&r, "cannot write to standard output");
    int full = open("/dev/full", O_WRONLY);
    if (full < 0)
        return;
    err = cli_scratch("stderr");
    r.code = cli_wait(cli_start("--help", full, err, 0));
    cli_read_back(err, r.err, sizeof r.err);
    cli_failed_with(&r, "No space left");
    close(full);
}

/* Waits until the child has written something to the pipe; the rest is left in it. */
static bool output_begins(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, CLI_TIMEOUT_S * 1000) == 1;
}

static void interrupt_closes_with_statistics(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    char line[1200];
    cli_result r;
    snprintf(line, sizeof line,
             "run %s/tiny --ids %s/ids --print-ids -n 100000 --device ref --ctx 2000 --stats "
             "%s/int.json -v",
             dir.path, dir.path, dir.path);
    int pipes[2], err = cli_scratch("stderr");
    REQUIRE(pipe(pipes) == 0);
    pid_t pid = cli_start(line, pipes[1], err, 0);
    close(pipes[1]);
    CHECK(output_begins(pipes[0]));
    kill(pid, SIGINT);
    char sink[4096];
    while (read(pipes[0], sink, sizeof sink) > 0)
        ;
    close(pipes[0]);
    r.code = cli_wait(pid);
    cli_read_back(err, r.err, sizeof r.err);
    CHECK_INT(r.code, 130);
    CHECK_HAS(r.err, "interrupted after");
    CHECK_HAS(r.err, "hit rate");
    json_t *s = json_load_file(tmp_path(&dir, "int.json"), 0, NULL);
    CHECK(cli_json_at(s, "tokens", "generated") > 0);
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
    cli_result r;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char want[512];
        snprintf(want, sizeof want, "%s\n", cases[i].text);
        cli(&r, "run models/demo -p '%s' -n 27 --device ref -q %s", king, cases[i].stops);
        CHECK_INT(r.code, 0);
        CHECK_STR(r.out, want);
    }
}

/* The README's program is the library's user: it says what `run` says. */
static void the_readme_example(void)
{
    cli_result r;
    char command[1300], text[4096] = "";
    cli(&r, "run models/demo -p 'Once upon a time' -n 24 -q");
    REQUIRE(r.code == 0);
    snprintf(command, sizeof command, "%.*sexample models/demo 'Once upon a time'",
             (int)(strrchr(cli_binary(), '/') + 1 - cli_binary()), cli_binary());
    FILE *p = popen(command, "r");
    REQUIRE(p);
    size_t n = fread(text, 1, sizeof text - 1, p);
    text[n] = 0;
    CHECK_INT(pclose(p), 0);
    CHECK_STR(text, r.out);
    /* Without a prompt, a model or a tokenizer it says so. */
    static const char *const wrong[] = {"models/demo", "models x", "tests/fixtures/models/olmoe x"};
    static const char *const said[] = {"usage: example MODEL PROMPT", "models holds no model",
                                       "tests/fixtures/models/olmoe has no tokenizer"};
    for (int i = 0; i < 3; i++) {
        snprintf(command, sizeof command, "%.*sexample %s 2>&1",
                 (int)(strrchr(cli_binary(), '/') + 1 - cli_binary()), cli_binary(), wrong[i]);
        p = popen(command, "r");
        REQUIRE(p);
        n = fread(text, 1, sizeof text - 1, p);
        text[n] = 0;
        CHECK(pclose(p) != 0);
        CHECK_HAS(text, said[i]);
    }
}

/* A run whose dense weights do not fit says so, and how much would do; its text is the same. */
static void run_streams_dense_weights(void)
{
    cli_result want, r;
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
    CHECK_INT(cli_json_at(v, "dense", "streamed_bytes"), 6 << 20);
    /* a prompt of one chunk, and eleven tokens */
    CHECK(cli_json_at(v, "dense", "bytes") >= 12 * (6 << 20));
    CHECK(cli_json_at(v, "dense", "bytes") <= cli_json_at(v, "io", "bytes"));
    json_decref(v);
    cli(&r, "run models/demo -p 'Once upon a time' -n 12 --device ref --vram %llu",
        strtoull(would + strlen("slow; --vram "), NULL, 10));
    CHECK_INT(r.code, 0);
    CHECK_STR(r.out, text);
    CHECK(!strstr(r.err, "dense weights"));
}

/* Where memory is discrete, RAM holds what --vram does not: as much as --ram leaves, and `info`, the run
 * and its statistics say the same. */
static void ram_holds_dense_weights(void)
{
    cli_result want, r;
    static char text[sizeof want.out];
    static const char *const flags = "--device ref --memory discrete --vram 13M";
    cli(&want, "run models/demo -p 'Once upon a time' -n 12 --device ref -q");
    REQUIRE(want.code == 0);
    snprintf(text, sizeof text, "%s", want.out);
    cli(&r, "info models/demo %s --ram 8M --drive 1", flags);
    CHECK_HAS(r.out, "are held in RAM and copied from there, the same share of each");
    CHECK_HAS(r.out, "RAM goes to it first, beside 12 slabs");
    CHECK_HAS(r.out, "; the drive brings ");
    const char *would = strstr(r.out, "All of it would be held with --ram ");
    REQUIRE(would);
    unsigned long long all =
        strtoull(would + strlen("All of it would be held with --ram "), NULL, 10);
    const char *least = strstr(r.out, "), --ram "); /* that works */
    REQUIRE(least);
    cli(&r, "info models/demo %s --ram %llu --drive 1", flags, strtoull(least + 9, NULL, 10));
    CHECK_HAS(r.out, "None of what is streamed is held in RAM: --ram leaves no room.");
    cli(&r, "info models/demo %s --ram %llu --drive 1 --json", flags, all);
    json_t *v = cli_json(r.out), *memory = json_object_get(v, "memory");
    CHECK_INT(cli_json_at(memory, "dense", "held_bytes"), 6 << 20);
    CHECK_INT(cli_json_at(memory, "dense", "streamed_bytes"), 6 << 20);
    CHECK(cli_json_at(memory, "dense", "ram_all_dense") <= (json_int_t)all);
    CHECK_INT(cli_json_at(v, "prediction", "dense_bytes"), 0);
    json_decref(v);
    cli(&r, "info models/demo %s --ram %llu --drive 1", flags, all);
    CHECK_HAS(r.out, "All that is streamed is held in RAM: once read, it is copied from there.");
    cli(&r, "run models/demo -p 'Once upon a time' -n 12 %s --ram %llu -v --stats %s/s.json", flags,
        all, dir.path);
    CHECK_INT(r.code, 0);
    CHECK_STR(r.out, text);
    CHECK_HAS(r.err,
              "6.0 of their 10.2 MiB are read once and copied from RAM again for each token");
    CHECK_HAS(r.err, "0 B read again for each token (of a prompt: each chunk), 6.09 MiB in all");
    CHECK_HAS(r.err, "6.00 MiB copied instead, 66.00 MiB in all");
    char path[400];
    snprintf(path, sizeof path, "%s/s.json", dir.path);
    v = json_load_file(path, 0, NULL);
    CHECK_INT(cli_json_at(v, "dense", "held_bytes"), 6 << 20);
    CHECK_INT(cli_json_at(v, "dense", "copied_bytes"), 11 * (6 << 20)); /* a prompt of one chunk is read */
    CHECK(cli_json_at(v, "dense", "bytes") < 7 << 20);
    json_decref(v);
    cli(&r, "run models/demo -p 'Once upon a time' -n 12 %s --ram 8M", flags);
    CHECK_STR(r.out, text);
    CHECK_HAS(r.err, "of them from RAM, the others from the drive, which is slow; --vram ");
    CHECK_HAS(r.err, "would keep them in RAM");
}

int main(void)
{
    if (!cli_begin(&dir))
        return 77;
    RUN(usage_errors);
    RUN(help_everywhere);
    RUN(an_unknown_vocabulary_refuses_text_only);
    RUN(failures_say_why);
    RUN(same_ids_at_every_setting);
    RUN(statistics_and_trace);
    RUN(context_full_is_no_failure);
    RUN(unwritable_output_ends_the_run);
    RUN(interrupt_closes_with_statistics);
    RUN(text_stops_where_it_should);
    RUN(run_streams_dense_weights);
    RUN(ram_holds_dense_weights);
    RUN(the_readme_example);
    tmp_dir_finish(&dir);
    return check_done();
}
