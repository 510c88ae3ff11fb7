/* Catches: a record that is read twice for one chunk and layer, in a prefill whose set of experts
 * is many times the slots; a guess that is read, and then read again as a demand.
 *
 * Every read that the drive is asked for is told apart by where it begins; chunk after chunk each
 * may be asked for once, at the fewest slots (twice top-k) and with room for guesses. */
#include <pthread.h>

#include "runtime/engine.h"
#include "tests/check.h"

enum { CTX = 128, MOST = 4096 };

/* All records' runs; small enough not to be split. A window of table rows may begin where one does,
 * and is of another size. */
static struct place {
    uint32_t file;
    uint64_t off, bytes;
    uint32_t moe, expert, reads;
} places[MOST];
static uint32_t n_places;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void on_submit(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    (void)user;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < n_places; i++)
        places[i].reads +=
            places[i].file == file && places[i].off == off && places[i].bytes == bytes;
    pthread_mutex_unlock(&lock);
}

/* False when two records' reads could not be told apart. */
static bool places_list(const cf_engine *e)
{
    const cf_model *m = e->model;
    n_places = 0;
    for (uint32_t i = 0; i < m->n_moe; i++)
        for (uint32_t x = 0; x < m->moe[i].experts; x++) {
            const cf_moe_def *d = &m->moe[i];
            cf_layout layout;
            cf_layout_plan(&layout, &d->extents[(size_t)x * d->n_extents], d->n_extents,
                           e->files.align);
            for (uint32_t k = 0; k < layout.n_runs; k++) {
                struct place p = {
                    layout.runs[k].file, layout.runs[k].file_off, layout.runs[k].bytes, i, x, 0};
                for (uint32_t j = 0; j < n_places; j++)
                    if (places[j].file == p.file && places[j].off == p.off)
                        return false;
                cf_assert(n_places < MOST);
                places[n_places++] = p;
            }
        }
    return true;
}

/* Reads since the last call, of all places; each at most once. */
static uint32_t reads_check(const char *model, uint32_t chunk)
{
    uint32_t sum = 0;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < n_places; i++) {
        if (places[i].reads > 1) {
            printf("    %s, chunk %u: MoE layer %u, expert %u was read %u times\n", model, chunk,
                   places[i].moe, places[i].expert, places[i].reads);
            check_case_failed = true;
        }
        sum += places[i].reads;
        places[i].reads = 0;
    }
    pthread_mutex_unlock(&lock);
    return sum;
}

typedef struct way {
    const char *model, *memory;
    bool prefetch;
    uint32_t extra; /* slots beyond the fewest */
    bool all;       /* a chunk's set is every expert of every layer */
} way;

static int way_open(const way *w, cf_engine **e, cf_err *err)
{
    cf_options o;
    static cf_io_fault fault;
    fault = (cf_io_fault){.eio_file = -1, .on_submit = on_submit};
    cf_options_init(&o);
    o.device = "ref";
    o.ctx = CTX;
    o.chunk = CTX / 2;
    o.threads = 2;
    o.memory = w->memory;
    o.prefetch = w->prefetch;
    o.no_tier = true;
    o.fault = &fault;
    o.vram_bytes = 256u << 20;
    o.ram_bytes = 64u << 20;
    int rc = cf_engine_open(e, w->model, &o, err);
    if (rc < 0)
        return rc;
    o.vram_bytes = (*e)->plan.vram_dense + w->extra * (*e)->plan.shape.slot_bytes;
    cf_engine_close(e);
    return cf_engine_open(e, w->model, &o, err);
}

static void chunks_run(const way *w, cf_engine *e)
{
    cf_err err = {0};
    cf_session *s = NULL;
    uint64_t reads = 0, vocab = e->model->spec.vocab;
    REQUIRE(cf_session_create(&s, e, &err) == 0);
    REQUIRE(places_list(e));
    for (uint32_t chunk = 0; chunk < 2; chunk++) {
        int32_t ids[CTX / 2];
        for (uint32_t i = 0; i < CTX / 2; i++)
            ids[i] = (int32_t)((chunk * 977 + i * 31 + i * i) % vocab);
        CHECK_INT(cf_session_extend(s, ids, CTX / 2, CF_PHASE_PROMPT, NULL, &err), 0);
        reads += reads_check(w->model, chunk);
    }
    const cf_expert_counts *c = &e->counters.prefill;
    uint64_t records = 0;
    for (uint32_t i = 0; i < e->model->n_moe; i++)
        records += e->model->moe[i].experts;
    CHECK(!w->all || c->lookups == 2 * records);
    CHECK(c->misses > 2 * e->plan.shape.n_slots && reads >= c->misses);
    CHECK_INT(e->plan.shape.n_slots + e->plan.shape.n_guess, 2 * e->model->spec.top_k + w->extra);
    cf_session_destroy(&s);
}

static void test_each_record_once(void)
{
    static const way ways[] = {
        {"tests/fixtures/models/mixtral", "auto", true, 0, true},
        {"tests/fixtures/models/mixtral", "auto", false, 0, true},
        {"tests/fixtures/models/mixtral", "discrete", true, 0, true},
        {"tests/fixtures/models/mixtral", "discrete", false, 0, true},
        {"tests/fixtures/models/mixtral", "auto", true, 2, true},
        {"tests/fixtures/models/mixtral", "discrete", true, 2, true},
        {"models/demo", "auto", true, 0, false},
        {"models/demo", "auto", false, 0, false},
    };
    bool guessed = false;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        cf_err err = {0};
        cf_engine *e = NULL;
        int rc = way_open(&ways[i], &e, &err);
        if (rc < 0)
            printf("    %s\n", err.msg);
        CHECK_INT(rc, 0);
        if (rc == 0) {
            cf_stats s;
            chunks_run(&ways[i], e);
            cf_engine_get_stats(e, &s);
            guessed = guessed || s.prefetch_issued;
            CHECK(ways[i].prefetch || !s.prefetch_issued);
        }
        cf_engine_close(&e);
    }
    CHECK(guessed);
}

int main(void)
{
    RUN(test_each_record_once);
    return check_done();
}
