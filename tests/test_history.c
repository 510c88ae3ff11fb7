/* Catches: a policy that forgets or distorts what it saved; a history of another model, policy or
 * shape that is taken, a damaged one that is; a crash or numbers out of bounds from a crafted one;
 * a save that spoils the old file or leaves its temporary one. */
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/rng.h"
#include "runtime/engine.h"
#include "runtime/history.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

enum { L = 3, E = 20, K = 3, TOKENS = 700, IDENTITY = 77 };

static tmp_dir dir;
static const char *const policies[] = {"lru", "lfu:0.9", "phase", "echo"};
enum { POLICIES = sizeof policies / sizeof *policies };

/* Each layer has favourites. */
static void tokens_play(cf_policy *p, cf_rng *rng, uint32_t n)
{
    for (uint32_t t = 0; t < n; t++) {
        cf_policy_chunk(p, 1);
        for (uint32_t l = 0; l < L; l++) {
            uint32_t ids[K], first = (uint32_t)cf_rng_below(rng, 3) ? 2 * l : 10;
            static const float weights[K] = {0.5f, 0.3f, 0.2f};
            for (uint32_t i = 0; i < K; i++)
                ids[i] = first + 3 * i + (uint32_t)cf_rng_below(rng, 2);
            cf_policy_choice(p, l, 0, ids, K, weights);
        }
    }
}

static cf_policy *policy_make(const char *name)
{
    cf_policy *p = NULL;
    CHECK_INT(cf_policy_create(&p, name, L, E, K, NULL), 0);
    return p;
}

static int saved(const char *path, const char *name, uint64_t identity)
{
    cf_err err = {0};
    cf_rng rng = {5};
    cf_policy *p = policy_make(name);
    tokens_play(p, &rng, TOKENS);
    int rc = cf_history_save(path, identity, name, p, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    cf_policy_destroy(&p);
    return rc;
}

/* ---- a policy, saved and loaded ---- */

/* Counts and last choices come back as they were: the order of worth is the same, and stays so. */
static void comes_back(const char *name)
{
    const char *path = tmp_path(&dir, "history");
    cf_rng rng = {9}, same = {9};
    cf_policy *a = policy_make(name), *b = policy_make(name);
    tokens_play(a, &rng, TOKENS);
    CHECK_INT(cf_history_save(path, IDENTITY, name, a, NULL), 0);
    CHECK_INT(cf_history_load(path, IDENTITY, name, b, NULL), 0);
    same = rng;
    tokens_play(a, &rng, 60);
    tokens_play(b, &same, 60);
    bool echo = strcmp(name, "echo") == 0;
    double apart = 0, spread = 0;
    uint32_t turned = 0;
    for (uint32_t i = 0; i < L * E; i++)
        for (uint32_t j = 0; j < L * E; j++) {
            cf_worth ai = cf_policy_worth(a, 0, i / E, i % E),
                     bi = cf_policy_worth(b, 0, i / E, i % E);
            cf_worth aj = cf_policy_worth(a, 0, j / E, j % E),
                     bj = cf_policy_worth(b, 0, j / E, j % E);
            turned += cf_worth_less(ai, aj) != cf_worth_less(bi, bj);
            apart = fmax(apart, fabs(ai.score - bi.score));
            spread = fmax(spread, ai.score);
        }
    if (!echo)
        CHECK_INT(turned, 0);
    else /* similarity and recency begin anew, and are soon the same */
        CHECK(apart < 0.05 * spread);
    cf_policy_destroy(&a);
    cf_policy_destroy(&b);
    unlink(path);
}

static void test_comes_back(void)
{
    for (int i = 0; i < POLICIES; i++)
        comes_back(policies[i]);
}

/* With a history, echo knows a token's favourites before it has seen one. */
static void test_echo_begins_warm(void)
{
    const char *path = tmp_path(&dir, "history");
    cf_policy *p = policy_make("echo");
    REQUIRE(saved(path, "echo", IDENTITY) == 0);
    CHECK_INT(cf_history_load(path, IDENTITY, "echo", p, NULL), 0);
    double favourite = cf_policy_worth(p, 0, 1, 2).score,
           never = cf_policy_worth(p, 0, 1, 19).score;
    CHECK(favourite > 5 * never);
    cf_policy_destroy(&p);
    unlink(path);
}

/* ---- files that are not taken ---- */

static void refused(const char *path, const char *policy, uint64_t identity, const char *sentence)
{
    cf_err err = {0};
    cf_policy *p = policy_make(policy);
    CHECK(cf_history_load(path, identity, policy, p, &err) < 0);
    CHECK_HAS(err.msg, sentence);
    CHECK_HAS(err.msg, path);
    cf_policy_destroy(&p);
}

static uint8_t *file_read(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(1 << 20);
    *n = f && data ? fread(data, 1, 1 << 20, f) : 0;
    if (f)
        fclose(f);
    return data;
}

static void test_refused(void)
{
    const char *path = tmp_path(&dir, "history");
    REQUIRE(saved(path, "echo", IDENTITY) == 0);
    refused(path, "echo", IDENTITY + 1, "is of another model");
    refused(path, "lru", IDENTITY, "is of policy \"echo\", this run has \"lru\"");
    size_t n;
    uint8_t *data = file_read(path, &n);
    REQUIRE(n > 1000);
    for (size_t cut = 0; cut < n; cut += cut < 200 ? 7 : 501) {
        tmp_write(path, data, cut);
        refused(path, "echo", IDENTITY, cut < 8 ? "is not a policy history" : "is cut off");
    }
    for (size_t at = 88; at < n; at += 97) {
        data[at] ^= 0x10;
        tmp_write(path, data, n);
        data[at] ^= 0x10;
        refused(path, "echo", IDENTITY, "history");
    }
    data[n] = 0;
    tmp_write(path, data, n + 1);
    refused(path, "echo", IDENTITY, "is longer than it should be");
    tmp_write(path, "gguf file, certainly", 20);
    refused(path, "echo", IDENTITY, "is not a policy history");
    refused(dir.path, "echo", IDENTITY, "history");
    free(data);
    unlink(path);
    cf_policy *p = policy_make("echo");
    CHECK_INT(cf_history_load(path, IDENTITY, "echo", p, NULL), 1); /* none yet */
    cf_policy_destroy(&p);
}

static uint64_t checksum(const uint8_t *data, size_t n)
{
    uint64_t sum = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        sum = (sum ^ data[i]) * 0x100000001b3u;
    return sum;
}

/* The checksum is right, a number is not: each place is given numbers that would lead out of the
 * tables, NaN among them. What is accepted must rank like any policy (ASan sees the rest). */
static void test_crafted(void)
{
    const char *path = tmp_path(&dir, "history");
    uint32_t taken = 0, told = 0;
    for (int i = 0; i < POLICIES; i++) {
        size_t n;
        REQUIRE(saved(path, policies[i], IDENTITY) == 0);
        uint8_t *data = file_read(path, &n);
        for (size_t at = 88; at + 12 < n; at += 31) {
            uint8_t old[4];
            memcpy(old, data + at, sizeof old);
            memset(data + at, 0xff, sizeof old);
            uint64_t sum = checksum(data, n - 8);
            memcpy(data + n - 8, &sum, sizeof sum);
            tmp_write(path, data, n);
            memcpy(data + at, old, sizeof old);
            cf_err err = {0};
            cf_rng rng = {1};
            cf_policy *p = policy_make(policies[i]);
            int rc = cf_history_load(path, IDENTITY, policies[i], p, &err);
            told += rc < 0;
            taken += rc == 0;
            if (rc == 0) {
                tokens_play(p, &rng, 3);
                for (uint32_t e = 0; e < E; e++)
                    CHECK(cf_policy_worth(p, 0, 1, e).score >= 0);
            }
            cf_policy_destroy(&p);
        }
        free(data);
    }
    printf("    %u refused, %u taken\n", told, taken);
    CHECK(told > 100);
    unlink(path);
}

static uint32_t files_in(const char *path)
{
    uint32_t n = 0;
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));)
        n += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

/* A save that cannot be carried out says so, keeps the old file and leaves nothing behind. */
static void test_save_fails(void)
{
    cf_err err = {0};
    char path[400];
    cf_policy *p = policy_make("lru");
    snprintf(path, sizeof path, "%s/no such folder/history", dir.path);
    CHECK(cf_history_save(path, IDENTITY, "lru", p, &err) < 0);
    CHECK_HAS(err.msg, "cannot write history");
    snprintf(path, sizeof path, "%s/folder", dir.path);
    REQUIRE(mkdir(path, 0700) == 0);
    uint32_t before = files_in(dir.path);
    err = (cf_err){0};
    CHECK(cf_history_save(path, IDENTITY, "lru", p, &err) < 0); /* a folder is in the way */
    CHECK_HAS(err.msg, "cannot write history");
    CHECK_INT(files_in(dir.path), before);
    rmdir(path);
    cf_policy_destroy(&p);
}

/* ---- an engine ---- */

static int engine_run(const char *model, const char *history, cf_stats *stats, cf_err *err)
{
    int rc;
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_options o;
    cf_options_init(&o);
    o.device = "ref";
    o.ctx = 64;
    o.threads = 1;
    o.history = history;
    o.vram_bytes = 64u << 20;
    o.ram_bytes = 64u << 20;
    CF_TRY(cf_engine_open(&e, model, &o, err));
    CF_TRY(cf_session_create(&s, e, err));
    for (int32_t i = 0; i < 20; i++) {
        int32_t id = i * i % 50;
        CF_TRY(cf_session_extend(s, &id, 1, CF_PHASE_DECODE, NULL, err));
    }
    cf_engine_get_stats(e, stats);
    CF_TRY(cf_engine_save_history(e, err));
fail:
    cf_session_destroy(&s);
    cf_engine_close(&e);
    return rc;
}

/* Saved by one run, taken by the next; another model's is refused at open. */
static void test_engine(void)
{
    static const char mixtral[] = "tests/fixtures/models/mixtral",
                      olmoe[] = "tests/fixtures/models/olmoe";
    const char *path = tmp_path(&dir, "engine.history");
    cf_stats first, second;
    cf_err err = {0};
    struct stat a, b;
    CHECK_INT(engine_run(mixtral, path, &first, &err), 0);
    REQUIRE(stat(path, &a) == 0);
    CHECK_INT(engine_run(mixtral, path, &second, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK(stat(path, &b) == 0 && b.st_size > a.st_size); /* twice the tokens are remembered */
    CHECK_INT(first.all.lookups, second.all.lookups);
    CHECK(engine_run(olmoe, path, &second, &err) < 0);
    CHECK_HAS(err.msg, "is of another model");
    CHECK_INT(engine_run(mixtral, NULL, &second, &err), 0);
    unlink(path);
}

int main(void)
{
    tmp_dir_init(&dir);
    RUN(test_comes_back);
    RUN(test_echo_begins_warm);
    RUN(test_refused);
    RUN(test_crafted);
    RUN(test_save_fails);
    RUN(test_engine);
    tmp_dir_finish(&dir);
    return check_done();
}
