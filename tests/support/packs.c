/* See packs.h. */
#include "tests/support/packs.h"

#include "runtime/engine.h"
#include "tests/check.h"

void pack_run(run *r, const char *path, bool discrete, uint64_t vram)
{
    static const int32_t ids[N_IDS] = {7, 60, 3, 55, 8, 8, 90, 21};
    cf_options o;
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_engine_info info;
    *r = (run){0};
    cf_options_init(&o);
    o.device = "ref";
    o.io = "pread";
    o.direct = false;
    o.threads = 1;
    o.ctx = 32;
    o.chunk = 8;
    o.memory = discrete ? "discrete" : "auto";
    o.ram_bytes = 64u << 20;
    o.vram_bytes = vram ? vram : o.ram_bytes;
    r->rc = cf_engine_open(&e, path, &o, &r->err);
    if (r->rc == 0)
        r->rc = cf_session_create(&s, e, &r->err);
    if (r->rc == 0) {
        cf_engine_get_info(e, &info);
        must(info.vocab <= MAX_VOCAB);
        r->vocab = info.vocab;
        r->streamed = e->plan.dense.n_streamed;
    }
    for (int i = 0; i < N_IDS && r->rc == 0; i++) {
        r->rc = cf_session_extend(s, &ids[i], 1, CF_PHASE_PROMPT, NULL, &r->err);
        if (r->rc == 0)
            memcpy(r->logits[i], cf_session_logits(s), r->vocab * sizeof(float));
    }
    cf_session_destroy(&s);
    cf_engine_close(&e);
}

bool pack_runs_equal(const run *a, const run *b)
{
    return a->rc == 0 && b->rc == 0 && a->vocab == b->vocab &&
           memcmp(a->logits, b->logits, sizeof a->logits) == 0;
}
