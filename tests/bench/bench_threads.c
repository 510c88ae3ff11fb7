/* Threads beside one another: decode with so many that compute and so many that unpack records.
 *
 *     bench_threads MODEL DEVICE VRAM_MIB ROUNDS TOKENS DIRECT CONFIG...
 *
 * CONFIG is COMPUTE[:UNPACK], 0 for what the engine chooses. DIRECT 1 reads past the page cache, 0
 * through it. All configurations are open at a time and idle but for the one whose turn it is: in
 * every round each decodes the same TOKENS ids, beginning with another configuration each time, so
 * that what else the machine does meets all alike.
 *
 * Reported are medians with quartiles, and the median of a configuration's speed over the first
 * one's of the same round, with the interval that holds it with 95 % (of ranks: no distribution is
 * assumed). "others" is what the rest of the machine computed meanwhile, in processors. The second
 * line is a token's time on a processor and, after the plus, time ready to run but without one, of
 * the kinds of threads; the engine's own is among those that compute. Nothing is asserted but that
 * all compute the same logits. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/engine.h"

enum { PROMPT = 8, CONTEXT = 128, MOST_ROUNDS = 1000, MOST_CONFIGS = 8 };

enum { COMPUTE, IO, COPY, UNPACK, KINDS };

typedef struct config {
    const char *name;
    int threads;
    uint32_t unpack;
    cf_engine *engine;
    cf_session *session;
    double speed[MOST_ROUNDS], stall[MOST_ROUNDS], own[MOST_ROUNDS], others[MOST_ROUNDS];
    double ran_s[KINDS], waited_s[KINDS]; /* of all rounds */
} config;

/* Seconds of processor that the machine and that this process have used. */
static double machine_s(void)
{
    unsigned long long v[8] = {0};
    FILE *f = fopen("/proc/stat", "r");
    int n = f ? fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3],
                       &v[4], &v[5], &v[6], &v[7])
              : 0;
    if (f)
        fclose(f);
    return n == 8 ? (double)(v[0] + v[1] + v[2] + v[5] + v[6] + v[7]) / (double)sysconf(_SC_CLK_TCK)
                  : 0;
}

static double own_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* Adds, times `sign`, what the threads of each kind have run and waited for a processor. */
static void kinds_add(config *c, double sign)
{
    static const char *const names[KINDS] = {"", "cf-io", "cf-copy", "cf-unpack"};
    DIR *d = opendir("/proc/self/task");
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        char path[300], name[32] = "";
        unsigned long long ran = 0, waited = 0;
        int kind = COMPUTE;
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", e->d_name);
        FILE *f = fopen(path, "r");
        if (!f)
            continue;
        if (fscanf(f, "%31s", name) != 1)
            name[0] = 0;
        fclose(f);
        for (int k = 1; k < KINDS; k++)
            if (strcmp(name, names[k]) == 0)
                kind = k;
        snprintf(path, sizeof path, "/proc/self/task/%s/schedstat", e->d_name);
        if ((f = fopen(path, "r")) != NULL) {
            if (fscanf(f, "%llu %llu", &ran, &waited) == 2) {
                c->ran_s[kind] += sign * 1e-9 * (double)ran;
                c->waited_s[kind] += sign * 1e-9 * (double)waited;
            }
            fclose(f);
        }
    }
    if (d)
        closedir(d);
}

static int config_open(config *c, const char *model, cf_options o, cf_err *err)
{
    int rc;
    int32_t prompt[PROMPT];
    o.threads = c->threads;
    o.unpack_threads = c->unpack;
    CF_TRY(cf_engine_open(&c->engine, model, &o, err));
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = (int32_t)(i * 7919 % c->engine->model->spec.vocab);
    CF_TRY(cf_session_create(&c->session, c->engine, err));
    CF_TRY(cf_session_extend(c->session, prompt, PROMPT, CF_PHASE_PROMPT, NULL, err));
fail:
    return rc;
}

/* One round of one configuration; sum: of the last logits' bits. */
static int turn(config *c, uint32_t round, uint32_t tokens, uint64_t *sum, cf_err *err)
{
    int rc;
    cf_stats before, after;
    uint32_t vocab = c->engine->model->spec.vocab;
    if (cf_session_length(c->session) + tokens > CONTEXT)
        cf_session_rewind(c->session, PROMPT);
    kinds_add(c, -1);
    cf_engine_get_stats(c->engine, &before);
    double machine = machine_s(), own = own_s();
    uint64_t begin = cf_clock_ns();
    for (uint32_t i = 0; i < tokens; i++) {
        uint64_t n = (uint64_t)round * tokens + i;
        int32_t id = (int32_t)((n * 104729 + n * n) % vocab);
        CF_TRY(cf_session_extend(c->session, &id, 1, CF_PHASE_DECODE, NULL, err));
    }
    double seconds = 1e-9 * (double)(cf_clock_ns() - begin);
    own = own_s() - own;
    machine = machine_s() - machine;
    cf_engine_get_stats(c->engine, &after);
    kinds_add(c, 1);
    c->speed[round] = tokens / seconds;
    c->stall[round] =
        1e3 * (after.stall_io_s - before.stall_io_s + after.stall_copy_s - before.stall_copy_s) /
        tokens;
    c->own[round] = own / seconds;
    c->others[round] = machine > own ? (machine - own) / seconds : 0;
    *sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t bits;
        memcpy(&bits, &cf_session_logits(c->session)[i], sizeof bits);
        *sum = *sum * 31 + bits;
    }
fail:
    return rc;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value below which a share of n values lies. */
static double quantile(const double *values, uint32_t n, double share)
{
    double v[MOST_ROUNDS];
    memcpy(v, values, n * sizeof *v);
    qsort(v, n, sizeof *v, by_value);
    double at = share * (n - 1);
    uint32_t i = (uint32_t)at;
    return i + 1 < n ? v[i] + (at - i) * (v[i + 1] - v[i]) : v[i];
}

/* Ranks from either end that hold the median with 95 %: the most k with P(Binomial(n, 1/2) < k)
 * at most 2.5 %. */
static uint32_t rank_95(uint32_t n)
{
    double term = 1, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        term /= 2;
    for (uint32_t k = 0; k < n; k++) {
        sum += term;
        if (sum > 0.025)
            return k;
        term *= (double)(n - k) / (k + 1);
    }
    return 0;
}

static void show(const config *c, const config *first, uint32_t n, uint32_t tokens)
{
    static const char *const names[KINDS] = {"compute", "I/O", "copy", "unpack"};
    double ratio[MOST_ROUNDS] = {0};
    for (uint32_t i = 0; i < n; i++)
        ratio[i] = c->speed[i] / first->speed[i];
    double middle = quantile(ratio, n, 0.5);
    qsort(ratio, n, sizeof *ratio, by_value);
    uint32_t k = rank_95(n);
    double low = k ? ratio[k - 1] : 0, high = k ? ratio[n - k] : 0;
    printf("%-8s %7.2f tokens/s (%.2f to %.2f), waits %6.2f ms a token, uses %.2f, others %.2f; "
           "ratio %.3f (%.3f to %.3f)\n",
           c->name, quantile(c->speed, n, 0.5), quantile(c->speed, n, 0.25),
           quantile(c->speed, n, 0.75), quantile(c->stall, n, 0.5), quantile(c->own, n, 0.5),
           quantile(c->others, n, 0.5), middle, low, high);
    printf("        ");
    for (int i = 0; i < KINDS; i++)
        printf(" %s %.2f + %.2f ms%s", names[i], 1e3 * c->ran_s[i] / n / tokens,
               1e3 * c->waited_s[i] / n / tokens, i + 1 < KINDS ? "," : "\n");
}

int main(int argc, char **argv)
{
    static config configs[MOST_CONFIGS];
    int rc = 1;
    uint32_t n = argc > 7 ? (uint32_t)argc - 7 : 0;
    uint32_t rounds = n ? (uint32_t)strtoul(argv[4], NULL, 10) : 0;
    uint32_t tokens = n ? (uint32_t)strtoul(argv[5], NULL, 10) : 0;
    if (n > MOST_CONFIGS || rounds - 1 >= MOST_ROUNDS || tokens - 1 >= CONTEXT - PROMPT) {
        fprintf(stderr, "usage: bench_threads MODEL DEVICE VRAM_MIB ROUNDS TOKENS DIRECT "
                        "COMPUTE[:UNPACK]...\n");
        return 2;
    }
    cf_options o;
    cf_options_init(&o);
    o.device = argv[2];
    o.ctx = CONTEXT;
    o.chunk = PROMPT;
    o.vram_bytes = strtoull(argv[3], NULL, 10) << 20;
    o.ram_bytes = 256u << 20;
    o.direct = strtoul(argv[6], NULL, 10) != 0;
    cf_err err = {0};
    for (uint32_t i = 0; i < n; i++) {
        char *end;
        configs[i].name = argv[7 + i];
        configs[i].threads = (int)strtol(argv[7 + i], &end, 10);
        configs[i].unpack = *end == ':' ? (uint32_t)strtoul(end + 1, NULL, 10) : 0;
        if (config_open(&configs[i], argv[1], o, &err) < 0)
            goto fail;
    }
    for (uint32_t round = 0; round < rounds; round++) {
        uint64_t sum = 0, other = 0;
        for (uint32_t k = 0; k < n; k++) {
            config *c = &configs[(round + k) % n];
            if (turn(c, round, tokens, k ? &other : &sum, &err) < 0)
                goto fail;
            if (k && other != sum) {
                fprintf(stderr, "bench_threads: the logits differ\n");
                return 1;
            }
        }
    }
    for (uint32_t i = 0; i < n; i++)
        show(&configs[i], &configs[0], rounds, tokens);
    rc = 0;
fail:
    if (rc)
        fprintf(stderr, "bench_threads: %s\n", err.msg);
    for (uint32_t i = 0; i < n; i++) {
        cf_session_destroy(&configs[i].session);
        cf_engine_close(&configs[i].engine);
    }
    return rc;
}
