/* Threads: more of them than were asked for or than the process has processors for, drivers'
 * included, results that depend on how many there are, and an advice to compress records that
 * counts on all workers where only one has something to do.
 *
 * Threads are counted by their names in /proc. Of those that a driver starts only the number is
 * known: it is taken from a process of its own, while it decodes. */
#include <ctype.h>
#include <dirent.h>
#include <jansson.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "gpu/gpu.h"
#include "runtime/base/machine.h"
#include "runtime/catflap.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

enum { N_IDS = 6, MAX_VOCAB = 1024, POLLS = 4000 };

static char binary[1100], pack[300];
static tmp_dir dir;

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* ---- counting ---- */

/* Threads by what they do; others: the program's own and a driver's. */
typedef struct census {
    int compute, io, copy, unpack, others;
} census;

static census count(pid_t pid)
{
    census c = {0};
    char path[600];
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        char name[32] = "";
        snprintf(path, sizeof path, "/proc/%d/task/%s/comm", (int)pid, e->d_name);
        FILE *f = isdigit((unsigned char)e->d_name[0]) ? fopen(path, "r") : NULL;
        if (!f)
            continue;
        int *of = &c.others;
        if (fscanf(f, "%31s", name) == 1)
            of = strcmp(name, "cf-compute") == 0  ? &c.compute
                 : strcmp(name, "cf-io") == 0     ? &c.io
                 : strcmp(name, "cf-copy") == 0   ? &c.copy
                 : strcmp(name, "cf-unpack") == 0 ? &c.unpack
                                                  : &c.others;
        fclose(f);
        ++*of;
    }
    if (d)
        closedir(d);
    return c;
}

/* Of this process, once all that are new run: then each has named itself. */
static census count_named(int others_before)
{
    census c = count(getpid());
    for (int i = 0; i < POLLS && c.others > others_before; i++) {
        pause_ms(2);
        c = count(getpid());
    }
    CHECK_INT(c.others, others_before);
    return c;
}

/* ---- the model ---- */

static pid_t start(const char *format, ...) __attribute__((format(printf, 1, 2)));
static pid_t start(const char *format, ...)
{
    char line[2048], *words[48];
    int n = 0, at = snprintf(line, sizeof line, "%s ", binary);
    va_list args;
    va_start(args, format);
    vsnprintf(line + at, sizeof line - (size_t)at, format, args);
    va_end(args);
    fflush(stdout);
    pid_t pid = fork();
    if (pid)
        return pid;
    for (char *w = strtok(line, " "); w && n < 47; w = strtok(NULL, " "))
        words[n++] = w;
    words[n] = NULL;
    if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
        _exit(126);
    alarm(120);
    execv(words[0], words);
    _exit(127);
}

static int finish(pid_t pid)
{
    int status = 0;
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool pack_make(void)
{
    snprintf(pack, sizeof pack, "%s", tmp_path(&dir, "tiny.gguf"));
    return finish(start("mkmodel %s --shape longcat-flash-tiny --seed 3",
                        tmp_path(&dir, "tiny"))) == 0 &&
           finish(start("pack %s %s --zstd -q", tmp_path(&dir, "tiny"), pack)) == 0;
}

/* threads, unpack 0: as many as the engine chooses. */
static int engine_open(cf_engine **e, int threads, uint32_t unpack, cf_err *err)
{
    cf_options o;
    cf_options_init(&o);
    o.device = "ref";
    o.direct = false;
    o.threads = threads;
    o.unpack_threads = unpack;
    o.ctx = 32;
    o.chunk = 4;
    o.vram_bytes = o.ram_bytes = 48u << 20;
    return cf_engine_open(e, pack, &o, err);
}

/* ---- cases ---- */

static void check_counts(int threads, int compute, int unpack)
{
    cf_engine *e = NULL;
    cf_err err = {0};
    int before = count(getpid()).others;
    CHECK_INT(engine_open(&e, threads, 0, &err), 0);
    CHECK_STR(err.msg, "");
    census c = count_named(before);
    cf_engine_close(&e);
    CHECK_INT(c.compute, compute - 1); /* the caller is one of them */
    CHECK_INT(c.io, 1);
    CHECK_INT(c.copy, 1);
    CHECK_INT(c.unpack, unpack);
}

/* As many compute as were asked for, else one a processor; what unpacks is counted apart. */
static void exactly_as_many(void)
{
    int n = cf_machine_processors(""), workers = n < 16 ? n : 16;
    check_counts(0, n, workers);
    check_counts(1, 1, workers);
    check_counts(3, 3, workers);
    check_counts(n + 2, n + 2, workers);
}

static void within_the_mask(void)
{
    cpu_set_t all, one;
    size_t first = 0;
    REQUIRE(sched_getaffinity(0, sizeof all, &all) == 0);
    while (!CPU_ISSET(first, &all))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
    check_counts(0, 1, 1);
    check_counts(3, 3, 1);
    CHECK_INT(sched_setaffinity(0, sizeof all, &all), 0);
}

static void logits_of(int threads, uint32_t unpack, float logits[N_IDS][MAX_VOCAB])
{
    static const int32_t ids[N_IDS] = {7, 100, 3, 55, 8, 150};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_engine_info info;
    cf_err err = {0};
    int rc = engine_open(&e, threads, unpack, &err);
    if (rc == 0)
        rc = cf_session_create(&s, e, &err);
    if (rc == 0) {
        cf_engine_get_info(e, &info);
        if (info.vocab > MAX_VOCAB)
            rc = -E2BIG;
    }
    for (int i = 0; i < N_IDS && rc == 0; i++) {
        rc = cf_session_extend(s, &ids[i], 1, CF_PHASE_DECODE, NULL, &err);
        if (rc == 0)
            memcpy(logits[i], cf_session_logits(s), info.vocab * sizeof(float));
    }
    CHECK_INT(rc, 0);
    CHECK_STR(err.msg, "");
    cf_session_destroy(&s);
    cf_engine_close(&e);
}

static void same_bits(void)
{
    static const struct {
        int threads;
        uint32_t unpack;
    } others[] = {{1, 3}, {2, 1}, {3, 2}, {7, 5}};
    static float first[N_IDS][MAX_VOCAB], other[N_IDS][MAX_VOCAB];
    logits_of(1, 1, first);
    CHECK(first[0][0] != 0);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        memset(other, 0, sizeof other);
        logits_of(others[i].threads, others[i].unpack, other);
        CHECK(memcmp(first, other, sizeof first) == 0);
    }
}

/* The records of a layer are there when one worker has unpacked the last that was read. */
static void the_last_record_counts(void)
{
    char line[1600];
    json_error_t why;
    double drive = 0, ratio = 0, all = 0, one = 0, arrival = 0;
    int together = 0, pays = 0;
    snprintf(line, sizeof line, "%s info %s --device ref --json", binary, pack);
    FILE *f = popen(line, "r");
    REQUIRE(f);
    json_t *info = json_loadf(f, 0, &why);
    CHECK_INT(pclose(f), 0);
    int rc = json_unpack(json_object_get(info, "stored"), "{s:f,s:f,s:f,s:f,s:i,s:f,s?b}",
                         "drive_bytes_per_s", &drive, "ratio", &ratio, "unpack_bytes_per_s", &all,
                         "unpack_one_bytes_per_s", &one, "records_together", &together,
                         "arrival_bytes_per_s", &arrival, "pays", &pays);
    json_decref(info);
    REQUIRE(rc == 0 || drive == 0);
    CHECK_INT(together, 4); /* the shape's top k */
    CHECK(ratio > 0 && ratio < 1 && all > 0 && one > 0);
    if (drive == 0)
        SKIP("the drive was not measured");
    double last = 4 * ratio / drive + 1 / one, workers = 4 / all;
    CHECK(fabs(arrival * fmax(last, workers) / 4 - 1) < 1e-6);
    CHECK_INT(pays, arrival > 1.05 * drive);
}

/* Whether OpenCL is PoCL's, on the processor. */
static bool has_pocl(void)
{
    cf_gpu_info list[16];
    char why[256];
    int n = cf_gpu_list(list, 16, why, sizeof why);
    for (int i = 0; i < n; i++)
        if (strcmp(list[i].backend, "opencl") == 0 && list[i].index == 0 && list[i].cpu)
            return strncmp(list[i].name, "pthread-", 8) == 0 ||
                   strncmp(list[i].name, "cpu-", 4) == 0; /* before and since PoCL 4 */
    return false;
}

/* The most threads without a name of ours that a run has at a time while its engine is open. */
static int others_most(int threads)
{
    int most = 0, status = 0;
    pid_t pid =
        start("run models/demo -p Once -n 100 --device opencl --vram 30M -q --threads %d", threads);
    for (int i = 0; i < 30 * POLLS && waitpid(pid, &status, WNOHANG) == 0; i++) {
        census c = count(pid);
        if (c.io && c.copy && c.others > most)
            most = c.others;
        pause_ms(1);
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return most;
}

/* PoCL has threads for the whole machine unless it is told, and wakes them all for every kernel. */
static void of_the_driver(void)
{
    if (getenv("POCL_MAX_PTHREAD_COUNT") || getenv("POCL_CPU_MAX_CU_COUNT"))
        SKIP("the environment says how many threads PoCL has");
    if (!has_pocl())
        SKIP("OpenCL is not PoCL here");
    CHECK_INT(others_most(1), 2); /* and the engine's */
    CHECK_INT(others_most(3), 4);
}

static void *nothing(void *arg)
{
    return arg;
}

int main(int argc, char **argv)
{
    pthread_t first; /* with it ThreadSanitizer starts its own, which is then counted before */
    if (pthread_create(&first, NULL, nothing, NULL) == 0)
        pthread_join(first, NULL);
    char self[1024];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    for (int i = 0; i < 2; i++) { /* BUILD/tests/test_threads */
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
    if (!pack_make()) {
        printf("    no model was made\n");
        tmp_dir_finish(&dir);
        return 1;
    }
    RUN(exactly_as_many);
    RUN(within_the_mask);
    RUN(same_bits);
    RUN(the_last_record_counts);
    if (argc < 2 || strcmp(argv[1], "ref") != 0)
        RUN(of_the_driver);
    tmp_dir_finish(&dir);
    return check_done();
}
