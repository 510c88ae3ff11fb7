/* `catflap bench`. Catches: tables that lack a cell or are not what --json and --csv say, medians
 * that are not of their samples, a file that is too small or missing and yet measured, contexts
 * that do not fit, and a bench that takes longer than it was given. No timing is judged.
 *
 * Runs the built binary (support/cli.h). */
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/check.h"
#include "tests/support/cli.h"

enum { FILE_BYTES = 24 << 20, MAX_ARGS = 32 };

static char data[300];
static tmp_dir dir;

static double number(const json_t *v, const char *key)
{
    return json_number_value(json_object_get(v, key));
}

static size_t lines_count(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += *text == '\n';
    return n;
}

/* ---- bench io ---- */

/* The median is one of three samples, the ratio is to the ceiling. */
static void cell_check(const json_t *c, double ceiling)
{
    const json_t *samples = json_object_get(c, "samples");
    double median = number(c, "gb_per_s");
    int below = 0, above = 0, equal = 0;
    CHECK_INT(json_array_size(samples), 3);
    for (size_t i = 0; i < json_array_size(samples); i++) {
        double v = json_number_value(json_array_get(samples, i));
        CHECK(v > 0);
        below += v < median;
        above += v > median;
        equal += v == median;
    }
    CHECK(equal >= 1 && below <= 1 && above <= 1);
    CHECK(fabs(number(c, "ratio") - median / ceiling) < 1e-6 * (1 + median / ceiling));
}

static bool cell_is(const json_t *c, bool direct, bool registered, int record, int depth)
{
    return json_is_true(json_object_get(c, "direct")) == direct &&
           json_is_true(json_object_get(c, "registered")) == registered &&
           number(c, "record_bytes") == record && number(c, "depth") == depth;
}

static void io_cells(void)
{
    static const int records[] = {65536, 1 << 20, 3 << 20}, depths[] = {1, 16};
    cli_result r;
    cli(&r, "bench io %s --seconds 1.2 --sizes 64K,1M,3M --depths 1,16 --json", data);
    CHECK_INT(r.code, 0);
    json_t *v = cli_json(r.out);
    REQUIRE(v);
    const json_t *cells = json_object_get(v, "cells"), *top = json_object_get(v, "ceiling");
    double ceiling = number(top, "gb_per_s");
    CHECK_INT(number(v, "bytes"), FILE_BYTES);
    CHECK(ceiling > 0);
    CHECK(!strcmp(json_string_value(json_object_get(top, "method")), "best cell") ||
          ceiling == fmax(number(top, "sequential"), number(top, "random")));
    bool direct = !*json_string_value(json_object_get(v, "direct_refused"));
    size_t expected = (direct ? 4 : 2) * 6;
    REQUIRE(json_array_size(cells) == expected);
    for (size_t i = 0; i < expected; i++) {
        const json_t *c = json_array_get(cells, i);
        size_t mode = i / 6 + (direct ? 0 : 2);
        CHECK(cell_is(c, mode < 2, mode % 2 == 0, records[i / 2 % 3], depths[i % 2]));
        /* A slow machine leaves cells out, and says so. */
        if (json_array_size(json_object_get(c, "samples")))
            cell_check(c, ceiling);
        else
            CHECK(json_is_null(json_object_get(c, "gb_per_s")));
    }
    CHECK_INT(json_array_size(json_object_get(json_array_get(cells, 0), "samples")), 3);
    json_decref(v);
}

static void io_table_and_csv(void)
{
    cli_result r;
    cli(&r, "bench io %s --seconds 0.6 --sizes 256K,1M --depths 2,4,8 --io pread", data);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "ceiling: ");
    CHECK_HAS(r.out, "buffered, unregistered (GB/s, of the ceiling)");
    CHECK_HAS(r.out, "depth 8");
    CHECK_HAS(r.out, "256.00 KiB");
    CHECK_HAS(r.out, "read with pread");
    /* A table's lines end in the same column. */
    size_t width = 0, rows = 0;
    for (const char *line = r.out, *end; (end = strchr(line, '\n')); line = end + 1) {
        if (strstr(line, "GB/s") && strstr(line, "GB/s") < end)
            width = 0; /* the next table */
        if (strncmp(line, "  256.00 KiB", 12) != 0 && strncmp(line, "    1.00 MiB", 12) != 0)
            continue;
        rows++;
        CHECK(!width || (size_t)(end - line) == width);
        width = (size_t)(end - line);
    }
    CHECK(rows == 8 || rows == 4);
    cli(&r, "bench io %s --seconds 0.4 --sizes 1M --depths 2,4 --samples 1 --csv", data);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "direct,registered,record_bytes,depth,samples,gb_per_s,ratio\n");
    CHECK_HAS(r.out, "0,0,1048576,4,");
    size_t lines = lines_count(r.out);
    CHECK(lines == 9 || lines == 5);
}

/* As long as it was given, and the last reads. */
static void io_is_bounded(void)
{
    cli_result r;
    cli(&r, "bench io %s --seconds 0.5 --sizes 64K,256K,1M --json", data);
    CHECK_INT(r.code, 0);
    CHECK(r.seconds < 20);
}

static void io_refusals(void)
{
    static const struct {
        const char *line, *part;
        int code;
    } list[] = {
        {"bench io", "FILE is missing", 2},
        {"bench io f --sizes 1X", "--sizes takes values from 4096", 2},
        {"bench io f --sizes 64K,", "\"64K,\"", 2},
        {"bench io f --sizes 1G", "\"1G\"", 2},
        {"bench io f --depths 0", "--depths", 2},
        {"bench io f --depths 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", "at most 16 values", 2},
        {"bench io f --seconds 0", "--seconds", 2},
        {"bench io f --io mmap", "\"mmap\"", 2},
        {"bench io f --vram 1G", "unknown option --vram", 2},
        {"bench io /nonexistent/f", "/nonexistent/f", 1},
        {"bench io /dev/null", "not a regular file", 1},
    };
    cli_result r;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        cli(&r, "%s", list[i].line);
        CHECK_INT(r.code, list[i].code);
        CHECK_HAS(r.err, list[i].part);
        CHECK_STR(r.out, "");
    }
    cli(&r, "bench io %s", data);
    CHECK_INT(r.code, 1);
    CHECK_HAS(r.err, "has 25165824 bytes, at least 268435456 are needed");
    cli(&r, "bench io %s --sizes 6K", data);
    CHECK_INT(r.code, 1);
    CHECK_HAS(r.err, "a record size of 6144 is not a multiple of the alignment");
}

/* ---- bench MODEL ---- */

#define MODEL "tests/fixtures/models/longcat_flash"

static void phase_check(const json_t *p, int tokens, int samples)
{
    static const char *const names[] = {"drive", "copies", "compute"};
    const json_t *stages = json_object_get(p, "stages"), *stalls;
    CHECK_INT(number(p, "tokens"), tokens);
    CHECK(number(p, "seconds") > 0);
    CHECK(fabs(number(p, "tok_per_s") * number(p, "seconds") - tokens) < 1e-3);
    CHECK_INT(json_array_size(json_object_get(p, "samples")), samples);
    stalls = json_object_get(p, "stall_seconds");
    double sum = number(stalls, "io") + number(stalls, "copy") + number(stalls, "device") +
                 number(stalls, "host");
    CHECK(fabs(sum - number(p, "seconds")) < 1e-6 + 1e-3 * sum);
    REQUIRE(json_array_size(stages) == 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *s = json_array_get(stages, i);
        CHECK_STR(json_string_value(json_object_get(s, "stage")), names[i]);
        double seconds = number(s, "seconds"), bytes = number(s, "bytes");
        CHECK(fabs(number(s, "gb_per_s") * seconds - bytes * 1e-9) < 1e-6 * bytes * 1e-9 + 1e-15);
    }
    CHECK(number(json_array_get(stages, 2), "bytes") > 0);
}

static void model_json(void)
{
    static const int contexts[] = {7, 20};
    cli_result r;
    cli(&r,
        "bench " MODEL " --device ref --contexts 7,20 -n 3 --samples 2 --ctx 32 --chunk 8 --json "
        "--memory discrete --timeline %s --stats %s",
        tmp_path(&dir, "t.json"), tmp_path(&dir, "s.json"));
    CHECK_INT(r.code, 0);
    json_t *v = cli_json(r.out);
    REQUIRE(v);
    const json_t *results = json_object_get(v, "results");
    CHECK_STR(json_string_value(json_object_get(v, "backend")), "ref");
    CHECK(number(json_object_get(v, "ceilings"), "upload") > 0);
    CHECK(number(json_object_get(v, "ceilings"), "device_memory") > 0);
    REQUIRE(json_array_size(results) == 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *x = json_array_get(results, i);
        CHECK_INT(number(x, "context"), contexts[i]);
        phase_check(json_object_get(x, "prefill"), contexts[i], 2);
        phase_check(json_object_get(x, "decode"), 3, 2);
    }
    json_decref(v);
    static const char *const files[] = {"t.json", "s.json"};
    for (int i = 0; i < 2; i++) {
        v = json_load_file(tmp_path(&dir, files[i]), 0, NULL);
        CHECK(v != NULL);
        json_decref(v);
    }
}

static void model_table_and_csv(void)
{
    cli_result r;
    cli(&r, "bench " MODEL " --device ref -n 2 --samples 1 --ctx 32");
    CHECK_INT(r.code, 0);
    /* No default context fits: the one that does. */
    CHECK_HAS(r.out, "     30  prefill  compute");
    CHECK_HAS(r.out, "     30  decode   drive");
    cli(&r, "bench " MODEL " --device ref -n 2 --samples 3 --ctx 32 --contexts 4,5 --csv");
    CHECK_INT(r.code, 0);
    CHECK_INT(lines_count(r.out), 1 + 2 * 2 * 3);
    CHECK_HAS(r.out, "\n5,decode,2,");
}

/* Parts of a whole: what is not named is what is left, and layers add up to kinds. */
static void profile_check(const json_t *x, int tokens)
{
    const json_t *kinds = json_object_get(x, "kinds"), *steps = json_object_get(x, "steps"), *k, *s;
    double total = number(x, "seconds"), named = 0, reads = 0, copies = 0;
    size_t i, j, n = 0;
    CHECK_INT(number(x, "tokens"), tokens);
    CHECK(total > 0 && number(x, "undisturbed_seconds") > 0);
    json_array_foreach (kinds, i, k) {
        double seconds = 0, of = number(k, "seconds");
        size_t count = 0;
        json_array_foreach (steps, j, s)
            if (!strcmp(json_string_value(json_object_get(s, "step")),
                        json_string_value(json_object_get(k, "step")))) {
                seconds += number(s, "seconds");
                count++;
            }
        CHECK_INT(count, number(k, "steps"));
        CHECK(fabs(seconds - of) < 1e-8 + 1e-6 * of);
        CHECK(fabs(number(k, "share") * total - of) < 1e-8 + 1e-6 * total);
        named += of;
        n += count;
    }
    CHECK_INT(n, json_array_size(steps));
    json_array_foreach (steps, j, s) {
        reads += number(s, "reads");
        copies += number(s, "copies");
    }
    CHECK(fabs(reads - number(x, "reads")) < 1e-8 + 1e-6 * reads);
    CHECK(fabs(copies - number(x, "copies")) < 1e-8 + 1e-6 * copies);
    double sum = named + reads + copies + number(x, "other");
    CHECK(fabs(sum - total) < 1e-8 + 1e-6 * total);
    CHECK(number(x, "named_share") >= 0.95);
}

static void model_profile(void)
{
    static const int contexts[] = {5, 40};
    cli_result r;
    cli(&r, "bench models/demo --device ref --profile --contexts 5,40 -n 4 --samples 3 --json "
            "--memory discrete");
    CHECK_INT(r.code, 0);
    json_t *v = cli_json(r.out);
    REQUIRE(v);
    const json_t *results = json_object_get(v, "results");
    REQUIRE(json_array_size(results) == 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *x = json_array_get(results, i);
        CHECK_INT(number(x, "context"), contexts[i]);
        profile_check(x, 4);
    }
    json_decref(v);
    cli(&r, "bench " MODEL " --device ref -n 2 --samples 1 --ctx 32 --profile");
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "a token of decode behind 30 (");
    CHECK_HAS(r.out, "  EXPERTS ");
    CHECK_HAS(r.out, "  reads waited for ");
    CHECK_HAS(r.out, "  undisturbed ");
    cli(&r, "bench " MODEL " --device ref -n 2 --samples 1 --ctx 32 --profile --csv");
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "context,part,steps,seconds_per_token,share,weight_bytes_per_token\n");
    CHECK_HAS(r.out, "\n30,EXPERTS,");
    CHECK_HAS(r.out, "\n30,undisturbed,0,");
}

static void model_refusals(void)
{
    cli_result r;
    cli(&r, "bench");
    CHECK_INT(r.code, 2);
    CHECK_HAS(r.err, "MODEL is missing");
    cli(&r, "bench m --contexts 1,x");
    CHECK_INT(r.code, 2);
    CHECK_HAS(r.err, "--contexts");
    cli(&r, "bench m --samples 10");
    CHECK_INT(r.code, 2);
    cli(&r, "bench %s/none --device ref", dir.path);
    CHECK_INT(r.code, 1);
    CHECK_HAS(r.err, "none");
    cli(&r, "bench " MODEL " --device ref --ctx 32 --contexts 30 -n 3");
    CHECK_INT(r.code, 1);
    CHECK_HAS(r.err, "30 tokens and 3 decoded ones exceed the context of 32");
    cli(&r, "bench " MODEL " --device ref --ctx 16");
    CHECK_INT(r.code, 1);
    CHECK_HAS(r.err, "a context of 16 has no room");
    CHECK_STR(r.out, "");
}

/* ---- the status line of run -v ---- */

/* Everything that `line` writes to a terminal that is its stderr, and its stdout too if asked. */
static bool terminal_run(const char *line, bool both, char *text, size_t size)
{
    char copy[1024], *words[MAX_ARGS] = {(char *)cli_binary()};
    size_t have = 0;
    ssize_t got;
    int n = 1, status, master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0)
        return false;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *w = strtok(copy, " "); w && n < MAX_ARGS - 1; w = strtok(NULL, " "))
        words[n++] = w;
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(both ? slave : null, 1);
        dup2(slave, 2);
        setenv("TERM", "xterm", 1);
        alarm(CLI_TIMEOUT_S);
        execv(cli_binary(), words);
        _exit(127);
    }
    close(slave);
    while (have + 1 < size && (got = read(master, text + have, size - 1 - have)) > 0)
        have += (size_t)got;
    text[have] = 0;
    close(master);
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void status_line(void)
{
    static char text[1 << 16];
    char line[600];
    snprintf(line, sizeof line,
             "run models/demo -p Once -n 300 --device ref --threads 1 -v --stats %s",
             tmp_path(&dir, "status.json"));
    if (!terminal_run(line, false, text, sizeof text))
        SKIP("no terminal could be had");
    json_t *v = json_load_file(tmp_path(&dir, "status.json"), 0, NULL);
    REQUIRE(v);
    /* Drawn every half second: a faster machine is through before. */
    if (number(json_object_get(v, "seconds"), "decode") > 0.6) {
        CHECK_HAS(text, "tokens/s  hits ");
        CHECK_HAS(text, "waiting for reads ");
    }
    /* Erased: what follows begins on an empty line. */
    const char *last = NULL;
    for (const char *p = text; (p = strstr(p, "waiting for reads ")); p++)
        last = p;
    if (last)
        CHECK_HAS(last, "\r\x1b[Kcatflap: stopped");
    json_decref(v);
    /* On the same screen as the text it would garble it. */
    CHECK(terminal_run(line, true, text, sizeof text));
    CHECK(strstr(text, "tokens/s  hits ") == NULL);
    CHECK_HAS(text, "catflap: stopped");
}

int main(void)
{
    if (!cli_begin(&dir))
        return 77;
    snprintf(data, sizeof data, "%s", tmp_path(&dir, "data"));
    tmp_write_pattern(data, FILE_BYTES, 1);
    RUN(io_cells);
    RUN(io_table_and_csv);
    RUN(io_is_bounded);
    RUN(io_refusals);
    RUN(model_json);
    RUN(model_table_and_csv);
    RUN(model_profile);
    RUN(model_refusals);
    RUN(status_line);
    tmp_dir_finish(&dir);
    return check_done();
}
