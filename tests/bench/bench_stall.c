/* What the window hides. The reads of every MoE layer are held back for the same time (fault seam),
 * and the time that the engine then waits, after the device is through with what lies between ROUTE
 * and EXPERTS, is held against theory: max(0, delay - window).
 *
 *     bench_stall MODEL DEVICE [TOKENS]
 *
 * Measured: from ROUTE's ids to the end of the window's work (window), and the wait for reads that
 * is left then (stall), per MoE layer that misses. Reads come from the page cache, so that the
 * delay is what a read takes. Ratios of one process on one machine; nothing is asserted. The linker
 * routes cf_gpu_submit through a wrapper, to learn which work the window ends with. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/base/clock.h"
#include "tests/support/sized.h"

enum { WARM = 4, POKE_NS = 50 * 1000 };

static struct {
    cf_engine *engine;
    cf_gpu_point last; /* of the compute stream */
    uint64_t route_ns, window_ns;
    uint32_t groups; /* that waited */
    _Atomic uint64_t delay_ns;
    _Atomic bool routed;       /* reads are those of experts */
    _Atomic uint64_t first_ns; /* when the group's first read was submitted; 0: not yet */
    _Atomic bool stop;
} w;

int __real_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err);
int __wrap_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err);
int __wrap_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err)
{
    int rc = __real_cf_gpu_submit(gpu, stream, waits, n_waits, value, err);
    if (stream == CF_STREAM_COMPUTE)
        w.last = (cf_gpu_point){stream, *value};
    return rc;
}

static void on_route(void *user, uint32_t layer, uint32_t position, const uint32_t *ids,
                     const float *weights, uint32_t k)
{
    (void)user, (void)layer, (void)position, (void)ids, (void)weights, (void)k;
    w.route_ns = cf_clock_ns();
    w.first_ns = 0;
    w.routed = true;
}

/* The first wait of a group: everything of the window has been submitted. What the engine waits
 * from here on is counted by the cache. */
static void on_experts_wait(void *user)
{
    (void)user;
    if (!w.route_ns)
        return;
    cf_gpu_wait(w.engine->gpu, w.last, NULL);
    w.window_ns += cf_clock_ns() - w.route_ns;
    w.groups++;
    w.route_ns = 0;
}

static void on_submit(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    (void)user, (void)file, (void)off, (void)bytes;
    uint64_t none = 0;
    if (w.routed)
        atomic_compare_exchange_strong(&w.first_ns, &none, cf_clock_ns());
}

static bool withhold(void *user)
{
    (void)user;
    uint64_t first = w.first_ns;
    return w.routed && first && cf_clock_ns() < first + w.delay_ns;
}

/* Makes the I/O thread ask again. */
static void *poke_main(void *arg)
{
    struct timespec nap = {.tv_nsec = POKE_NS};
    while (!w.stop) {
        nanosleep(&nap, NULL);
        cf_fetch_poke(arg);
    }
    return NULL;
}

struct outcome {
    double window_ms, stall_ms, token_ms;
    double groups; /* of a token, that waited */
};

static int tokens_run(cf_session *s, uint32_t first, uint32_t n, cf_err *err)
{
    cf_outputs outputs = {.route = on_route};
    int rc = 0;
    for (uint32_t i = first; rc == 0 && i < first + n; i++) {
        int32_t id = (int32_t)((i * 7919u + 13u) % w.engine->model->spec.vocab);
        rc = cf_session_extend(s, &id, 1, CF_PHASE_DECODE, &outputs, err);
        w.routed = false; /* the next reads are the next token's rows */
    }
    return rc;
}

static bool run(const sized_model *m, const char *device, bool prefetch, double delay_ms,
                uint32_t tokens, struct outcome *out)
{
    cf_io_fault fault = {.eio_file = -1, .withhold = withhold, .on_submit = on_submit};
    cf_err err = {0};
    cf_options o;
    cf_session *s = NULL;
    cf_cache_stats before = {0}, after = {0};
    pthread_t poker;
    cf_options_init(&o);
    o.device = device;
    o.ctx = 512;
    o.chunk = 1;
    o.prefetch = prefetch;
    o.direct = false;
    o.fault = &fault;
    o.ram_bytes = 256u << 20;
    o.on_experts_wait = on_experts_wait;
    w.routed = w.stop = false;
    w.delay_ns = (uint64_t)(delay_ms * 1e6);
    w.engine = sized_open(m, &o, m->min_slots, false);
    if (!w.engine || cf_session_create(&s, w.engine, &err) < 0 ||
        pthread_create(&poker, NULL, poke_main, w.engine->fetch)) {
        fprintf(stderr, "bench_stall: %s\n", err.msg);
        cf_session_destroy(&s);
        cf_engine_close(&w.engine);
        return false;
    }
    int rc = tokens_run(s, 0, WARM, &err);
    w.window_ns = w.groups = 0;
    cf_cache_get_stats(w.engine->cache, &before);
    uint64_t begin = cf_clock_ns();
    if (rc == 0)
        rc = tokens_run(s, WARM, tokens, &err);
    uint64_t ns = cf_clock_ns() - begin;
    cf_cache_get_stats(w.engine->cache, &after);
    if (rc < 0)
        fprintf(stderr, "bench_stall: %s\n", err.msg);
    *out = (struct outcome){.token_ms = (double)ns / 1e6 / tokens,
                            .stall_ms =
                                (double)(after.io_stall_ns - before.io_stall_ns) / 1e6 / tokens,
                            .window_ms = w.groups ? (double)w.window_ns / 1e6 / w.groups : 0,
                            .groups = (double)w.groups / tokens};
    w.stop = true;
    pthread_join(poker, NULL);
    cf_session_destroy(&s);
    cf_engine_close(&w.engine);
    return rc == 0;
}

int main(int argc, char **argv)
{
    enum { LONG_MS = 100 }; /* longer than the window: every miss is waited for */
    sized_model m;
    struct outcome base, window, on, off;
    if (argc < 3 || !sized_plan_open(&m, argv[1])) {
        fprintf(stderr, "usage: bench_stall MODEL DEVICE [TOKENS]\n");
        return 2;
    }
    uint32_t tokens = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 24;
    /* Once for the page cache and the pipelines. */
    bool ok = run(&m, argv[2], true, 0, tokens, &base) &&
              run(&m, argv[2], true, 0, tokens, &base) &&
              run(&m, argv[2], true, LONG_MS, tokens, &window);
    if (!ok || window.groups <= 0) {
        fprintf(stderr, "bench_stall: no MoE layer waited\n");
        return 1;
    }
    printf("%s: %.1f ms a token without a delay; window %.2f ms; %.2f MoE layers of a token miss\n",
           argv[2], base.token_ms, window.window_ms, window.groups);
    printf("ms per layer that misses:   delay   stall  max(0, delay - window)   prefetch off\n");
    static const double factors[] = {0.5, 2, 4};
    for (int i = 0; i < 3 && ok; i++) {
        double delay = factors[i] * window.window_ms;
        ok = run(&m, argv[2], true, delay, tokens, &on) &&
             run(&m, argv[2], false, delay, tokens, &off);
        double theory = delay > window.window_ms ? delay - window.window_ms : 0;
        printf("                          %7.2f %7.2f %23.2f %14.2f\n", delay,
               on.stall_ms / window.groups, theory, off.stall_ms / window.groups);
    }
    sized_model_close(&m);
    return ok ? 0 : 1;
}
