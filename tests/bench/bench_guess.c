/* What guesses bring to decode: the same tokens with and without, at the same --vram, in pairs.
 *
 *     bench_guess MODEL DEVICE VRAM_MIB [PAIRS [TOKENS [DELAY_US]]]
 *
 * Each run opens the model anew, reads past the page cache, processes a short prompt and TOKENS
 * fixed ids one at a time. DELAY_US (fault seam) holds every read back that long beside what the
 * drive takes. The order within a pair turns, so that drift of the machine meets both alike.
 * Nothing is asserted but that both compute the same logits. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/engine.h"

enum { PROMPT = 16, MOST_PAIRS = 64 };

typedef struct result {
    double ms, stall_ms, hits; /* of decode, per token; percent */
    cf_stats stats;
    uint64_t sum; /* of the last logits' bits */
} result;

static int run(const char *model, const cf_options *o, uint32_t tokens, result *r, cf_err *err)
{
    int rc;
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_stats before;
    int32_t prompt[PROMPT];
    CF_TRY(cf_engine_open(&e, model, o, err));
    uint32_t vocab = e->model->spec.vocab;
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = (int32_t)(i * 7919 % vocab);
    CF_TRY(cf_session_create(&s, e, err));
    CF_TRY(cf_session_extend(s, prompt, PROMPT, CF_PHASE_PROMPT, NULL, err));
    cf_engine_get_stats(e, &before);
    for (uint32_t i = 0; i < tokens; i++) {
        int32_t id = (int32_t)((i * 104729ull + i * i) % vocab);
        CF_TRY(cf_session_extend(s, &id, 1, CF_PHASE_DECODE, NULL, err));
    }
    cf_engine_get_stats(e, &r->stats);
    r->ms = 1e3 * r->stats.decode_s / tokens;
    r->stall_ms = 1e3 * (r->stats.stall_io_s - before.stall_io_s) / tokens;
    r->hits = 100 * (double)(r->stats.decode.vram_hits + r->stats.decode.ram_hits) /
              (double)r->stats.decode.lookups;
    r->sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t bits;
        memcpy(&bits, &cf_session_logits(s)[i], sizeof bits);
        r->sum = r->sum * 31 + bits;
    }
fail:
    cf_session_destroy(&s);
    cf_engine_close(&e);
    return rc;
}

static void show(const char *name, const result *r)
{
    const cf_stats *s = &r->stats;
    printf(
        "%-4s %8.2f ms a token, %8.2f waiting for reads, %5.1f %% hits, %u + %u slots, %.1f MiB a "
        "token; guesses %llu, used %llu, late %llu, wasted %llu, cancelled %llu\n",
        name, r->ms, r->stall_ms, r->hits, (unsigned)s->slots, (unsigned)s->guess_slots,
        (double)s->io_bytes / 0x1p20 / (double)(s->generated_tokens + s->prompt_tokens),
        (unsigned long long)s->prefetch_issued, (unsigned long long)s->prefetch_used,
        (unsigned long long)s->prefetch_late, (unsigned long long)s->prefetch_wasted,
        (unsigned long long)s->prefetch_cancelled);
    fflush(stdout);
}

/* Mean, standard error and extremes of off / on, pair by pair. */
static void ratios_show(const double *ratio, uint32_t n)
{
    double mean = 0, var = 0, least = ratio[0], most = ratio[0];
    for (uint32_t i = 0; i < n; i++) {
        mean += ratio[i] / n;
        least = fmin(least, ratio[i]);
        most = fmax(most, ratio[i]);
    }
    for (uint32_t i = 0; i < n; i++)
        var += (ratio[i] - mean) * (ratio[i] - mean);
    double error = n > 1 ? sqrt(var / (n - 1) / n) : 0;
    printf("speed with guesses / without: %.3f +- %.3f (%.3f to %.3f), %u pairs\n", mean, error,
           least, most, n);
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: bench_guess MODEL DEVICE VRAM_MIB [PAIRS [TOKENS [DELAY_US]]]\n");
        return 2;
    }
    uint32_t pairs = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 6;
    uint32_t tokens = argc > 5 ? (uint32_t)strtoul(argv[5], NULL, 10) : 60;
    uint32_t delay = argc > 6 ? (uint32_t)strtoul(argv[6], NULL, 10) : 0;
    pairs = pairs < 1 ? 1 : pairs > MOST_PAIRS ? MOST_PAIRS : pairs;
    cf_io_fault fault = {.eio_file = -1, .delay_per_million = 1000000, .delay_us = delay};
    cf_options o;
    cf_options_init(&o);
    o.device = argv[2];
    o.ctx = PROMPT + tokens + 8;
    o.vram_bytes = strtoull(argv[3], NULL, 10) << 20;
    o.ram_bytes = 256u << 20;
    o.fault = delay ? &fault : NULL;
    double ratio[MOST_PAIRS];
    for (uint32_t i = 0; i < pairs; i++) {
        result r[2];
        cf_err err = {0};
        for (uint32_t k = 0; k < 2; k++) {
            uint32_t on = (i + k) % 2;
            o.prefetch = on;
            if (run(argv[1], &o, tokens, &r[on], &err) < 0) {
                fprintf(stderr, "bench_guess: %s\n", err.msg);
                return 1;
            }
        }
        show("off", &r[0]);
        show("on", &r[1]);
        if (r[0].sum != r[1].sum) {
            fprintf(stderr, "bench_guess: the logits differ\n");
            return 1;
        }
        ratio[i] = r[0].ms / r[1].ms;
    }
    ratios_show(ratio, pairs);
    return 0;
}
