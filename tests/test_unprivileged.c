/* An ordinary user may lock 8 MiB, and a cache is larger than that. Catches an engine that fails
 * there, or reads wrong bytes, because a part of its slabs could not be registered with the ring:
 * root never sees it. The child becomes an ordinary user with the limit of a plain installation. */
#include <grp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/check.h"
#include "tests/support/oracle.h"
#include "tests/support/reoffset.h"
#include "tests/support/sized.h"

enum { MEMLOCK_BYTES = 8 << 20, DECODE = 8 };

/* The limit counts over all processes of a user, and pages are unpinned with a delay: each run is a
 * user of its own. */
static uid_t somebody(void)
{
    static uid_t n;
    return 1000000 + (uid_t)getpid() % 100000 * 16 + n++ % 16;
}

/* What a run hands back, in memory that both processes share. */
struct outcome {
    bool ran;
    int32_t ids[DECODE];
    uint64_t hash; /* of all logits */
    cf_stats stats;
    char message[520];
};

static void row_hash(void *user, uint32_t position, const float *logits, const float *hidden)
{
    struct outcome *o = user;
    (void)position, (void)hidden;
    const uint8_t *bytes = (const uint8_t *)logits;
    for (size_t i = 0; i < 4096 * sizeof(float); i++) /* the demo's vocabulary */
        o->hash = (o->hash ^ bytes[i]) * 0x100000001b3u;
}

static void run(const char *dir, const char *device, const char *memory, const oracle *prompt,
                struct outcome *o)
{
    cf_options options;
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_outputs out = {.row = row_hash, .user = o};
    cf_options_init(&options);
    options.device = device;
    options.io = "uring";
    options.memory = memory;
    options.ctx = 128;
    options.chunk = 32;
    options.threads = 2;
    options.vram_bytes = 64u << 20;
    options.ram_bytes = 64u << 20;
    o->ran =
        cf_engine_open(&e, dir, &options, &err) == 0 && cf_session_create(&s, e, &err) == 0 &&
        cf_session_extend(s, prompt->prompt, prompt->n_prompt, CF_PHASE_PROMPT, &out, &err) == 0;
    for (int i = 0; o->ran && i < DECODE; i++) {
        const float *logits = cf_session_logits(s);
        for (uint32_t v = 1; v < prompt->vocab; v++)
            if (logits[v] > logits[o->ids[i]])
                o->ids[i] = (int32_t)v;
        o->ran = cf_session_extend(s, &o->ids[i], 1, CF_PHASE_DECODE, &out, &err) == 0;
    }
    if (o->ran)
        cf_engine_get_stats(e, &o->stats);
    snprintf(o->message, sizeof o->message, "%s", err.msg);
    cf_session_destroy(&s);
    cf_engine_close(&e);
}

/* In a child of its own: a limit once lowered and a user once left do not come back. */
static void run_as(bool nobody, const char *dir, const char *device, const char *memory,
                   const oracle *prompt, struct outcome *shared)
{
    *shared = (struct outcome){0};
    fflush(stdout);
    uid_t user = somebody();
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit limit = {MEMLOCK_BYTES, MEMLOCK_BYTES};
        bool ready =
            !nobody || (setrlimit(RLIMIT_MEMLOCK, &limit) == 0 && setgroups(0, NULL) == 0 &&
                        setgid(user) == 0 && setuid(user) == 0 && setuid(0) < 0);
        if (!ready)
            snprintf(shared->message, sizeof shared->message, "cannot become user %u", user);
        else
            run(dir, device, memory, prompt, shared);
        fflush(stdout);
        _exit(0);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        snprintf(shared->message, sizeof shared->message, "the child ended with status %d", status);
}

static const char *model, *device;
static oracle *prompt;
static struct outcome *shared;

static void same_tokens(const char *memory)
{
    if (geteuid() != 0)
        SKIP("only root can become another user");
    run_as(false, model, device, memory, prompt, shared);
    struct outcome root = *shared;
    CHECK_STR(root.message, "");
    REQUIRE(root.ran);
    run_as(true, model, device, memory, prompt, shared);
    if (!shared->ran && strstr(shared->message, "io_uring"))
        SKIP("no ring for ordinary users here: %s", shared->message);
    CHECK_STR(shared->message, "");
    REQUIRE(shared->ran);
    CHECK(root.hash == shared->hash);
    CHECK(memcmp(root.ids, shared->ids, sizeof root.ids) == 0);
    /* It was about what it is meant to be about. */
    uint64_t landing = strcmp(memory, "discrete") == 0 ? shared->stats.slabs : shared->stats.slots;
    CHECK(root.stats.io_registered_bytes > landing * shared->stats.slot_bytes / 2);
    CHECK(shared->stats.io_registered_bytes <= MEMLOCK_BYTES);
    if (landing * shared->stats.slot_bytes > MEMLOCK_BYTES) {
        CHECK(shared->stats.io_registered_bytes > 0);
        CHECK(shared->stats.io_unregistered_reads > 0);
    }
}

int main(void)
{
    cf_gpu_info infos[16];
    char why[1024], text[32], path[300], name[100];
    tmp_dir tmp;
    tmp_dir_init(&tmp);
    snprintf(path, sizeof path, "%s", tmp_path(&tmp, "demo"));
    model_copy("models/demo", path);
    model = path;
    prompt = oracle_load("models/demo");
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (chmod(tmp.path, 0755) < 0 || !prompt || shared == MAP_FAILED) {
        printf("    cannot set the test up\n");
        return 1;
    }
    int n = cf_gpu_list(infos, 16, why, sizeof why);
    for (int i = 0; i < n; i++) {
        /* What OpenCL's drivers need (a folder of the user's, threads) is not at issue here. */
        if (strcmp(infos[i].backend, "opencl") == 0)
            continue;
        snprintf(text, sizeof text, "%.15s:%d", infos[i].backend, infos[i].index);
        device = text;
        snprintf(name, sizeof name, "%s slots in place", device);
        RUN_NAMED(name, same_tokens("auto"));
        snprintf(name, sizeof name, "%s slabs beside slots", device);
        RUN_NAMED(name, same_tokens("discrete"));
    }
    munmap(shared, sizeof *shared);
    oracle_free(prompt);
    tmp_dir_finish(&tmp);
    return check_done();
}
