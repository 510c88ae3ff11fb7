/* Dense weights that do not fit in --vram, on memory of its own: what --ram buys by holding them.
 *
 *     bench_dense MODEL DEVICE MB_PER_S [TOKENS [ROUNDS]]
 *
 * Reads are held back to MB_PER_S (megabytes), so that the drive is the slower part on any machine.
 * A third of what could be streamed stays in VRAM. Sizes of --ram: with nothing held, which is how
 * it was before anything was; with half; with all. In turn, round by round, so that a ratio is of
 * neighbours in time. Prints a line each: decode in tokens per second, the bytes of a token by
 * either way, what it waited for, and its ratio to the first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/log.h"
#include "tests/support/sized.h"

enum { PROMPT = 8, SIZES = 3, MOST_ROUNDS = 9 };

struct measured {
    double tok_per_s[MOST_ROUNDS];
    double read_mb, copied_mb, io_s, copy_s, device_s; /* of a token, in the last round */
};

static int run(cf_engine *e, uint32_t tokens, cf_stats *begin, cf_stats *end, cf_err *err)
{
    cf_session *s = NULL;
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (int32_t)((uint32_t)i * 257u % e->model->spec.vocab);
    int rc = cf_session_create(&s, e, err);
    if (rc == 0)
        rc = cf_session_extend(s, prompt, PROMPT, CF_PHASE_PROMPT, NULL, err);
    cf_engine_get_stats(e, begin);
    for (uint32_t i = 0; rc == 0 && i < tokens; i++) {
        int32_t id = (int32_t)((i * 7919u + 13u) % e->model->spec.vocab);
        rc = cf_session_extend(s, &id, 1, CF_PHASE_DECODE, NULL, err);
    }
    cf_engine_get_stats(e, end);
    cf_session_destroy(&s);
    return rc;
}

static int measure(const char *dir, const cf_options *o, uint32_t tokens, struct measured *m,
                   uint32_t round, cf_err *err)
{
    cf_engine *e = NULL;
    cf_stats a, b;
    int rc = cf_engine_open(&e, dir, o, err);
    if (rc == 0)
        rc = run(e, tokens, &a, &b, err);
    if (rc == 0) {
        double n = tokens;
        m->tok_per_s[round] = n / (b.decode_s - a.decode_s);
        m->read_mb = (double)(b.dense_bytes - a.dense_bytes) / n / 1e6;
        m->copied_mb = (double)(b.dense_copied_bytes - a.dense_copied_bytes) / n / 1e6;
        m->io_s = (b.stall_io_s - a.stall_io_s) / n;
        m->copy_s = (b.stall_copy_s - a.stall_copy_s) / n;
        m->device_s = (b.stall_device_s - a.stall_device_s) / n;
    }
    cf_engine_close(&e);
    return rc;
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* The budgets; the least --ram first, then half way to all, then all. */
static int sizes_find(const sized_model *m, cf_options *o, uint64_t *ram, cf_memory_plan *plan,
                      cf_err *err)
{
    o->vram_bytes = o->ram_bytes = 1ull << 34;
    int rc = sized_plan(m, o, plan, err);
    if (rc < 0)
        return rc;
    o->vram_bytes = plan->vram_min + (plan->vram_dense - plan->vram_min) / 3;
    if ((rc = sized_plan(m, o, plan, err)) < 0)
        return rc;
    o->ram_bytes = plan->ram_min;
    if ((rc = sized_plan(m, o, plan, err)) < 0)
        return rc;
    if (!plan->ram_dense)
        return CF_FAIL(err, CF_ELIMIT, "nothing could be held for %s", o->device);
    ram[0] = plan->ram_min;
    ram[1] = plan->ram_dense - plan->hold.all_bytes / 2;
    ram[2] = plan->ram_dense;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: bench_dense MODEL DEVICE MB_PER_S [TOKENS [ROUNDS]]\n");
        return 2;
    }
    cf_io_fault throttle = {.eio_file = -1,
                            .bytes_per_second = strtoull(argv[3], NULL, 10) * 1000000};
    uint32_t tokens = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 6;
    uint32_t rounds = argc > 5 ? (uint32_t)strtoul(argv[5], NULL, 10) : 3;
    static const char *const names[SIZES] = {"nothing", "half", "all"};
    struct measured got[SIZES] = {0};
    uint64_t ram[SIZES];
    cf_memory_plan plan;
    cf_options o;
    cf_err err = {0};
    sized_model m;
    rounds = rounds < MOST_ROUNDS ? rounds : MOST_ROUNDS;
    cf_log_level_set(CF_LOG_QUIET);
    cf_options_init(&o);
    o.device = argv[2];
    o.memory = "discrete";
    o.ctx = 128;
    o.chunk = PROMPT;
    o.fault = throttle.bytes_per_second ? &throttle : NULL;
    if (!sized_plan_open(&m, argv[1]))
        return 1;
    int rc = sizes_find(&m, &o, ram, &plan, &err);
    for (uint32_t round = 0; rc == 0 && round < rounds; round++)
        for (uint32_t i = 0; rc == 0 && i < SIZES; i++) {
            o.ram_bytes = ram[i];
            rc = measure(argv[1], &o, tokens, &got[i], round, &err);
        }
    if (rc < 0) {
        fprintf(stderr, "bench_dense: %s\n", err.msg);
        return 1;
    }
    printf("%s, --vram %.0f MB, %.0f MB streamed through %u segments, reads of %s MB/s\n", o.device,
           (double)o.vram_bytes / 1e6, (double)plan.dense.streamed_bytes / 1e6,
           plan.dense.n_segments, argv[3]);
    double first = 0;
    for (uint32_t i = 0; i < SIZES; i++) {
        qsort(got[i].tok_per_s, rounds, sizeof(double), ascending);
        double median = got[i].tok_per_s[rounds / 2];
        first = i ? first : median;
        printf("%-8s held, --ram %4.0f MB: %6.2f tokens/s (%.2f to %.2f), x %.2f; a token: %.0f MB "
               "read, %.0f MB copied, waited for reads %.3f s, copies %.3f s, device %.3f s\n",
               names[i], (double)ram[i] / 1e6, median, got[i].tok_per_s[0],
               got[i].tok_per_s[rounds - 1], median / first, got[i].read_mb, got[i].copied_mb,
               got[i].io_s, got[i].copy_s, got[i].device_s);
    }
    sized_model_close(&m);
    return 0;
}
