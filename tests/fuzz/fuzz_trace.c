/* Catches: any trace, plain or compressed, that makes the reader crash, leak, overflow or accept an
 * id, a layer or a group outside its bounds; and a replay that such a trace can break.
 *
 * Input: the file. Small routings that are accepted are replayed as well. */
#include <stdlib.h>
#include <string.h>

#include "runtime/replay.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void rows_check(const cf_routing *t)
{
    for (uint64_t i = 0; i < t->n_rows; i++) {
        const cf_routed *r = &t->rows[i];
        check(r->moe < t->n_moe && r->phase < 3 && r->k + r->zero <= t->header.top_k);
        check(r->first + r->k <= t->n_ids);
        for (uint32_t j = 0; j < r->k; j++)
            check(t->ids[r->first + j] < t->header.n_experts &&
                  (j == 0 || t->ids[r->first + j] > t->ids[r->first + j - 1]));
    }
}

/* Groups partition the rows, chunks the groups, in order. */
static void groups_check(const cf_routing *t)
{
    uint64_t row = 0, group = 0, tokens[3] = {0};
    for (uint64_t c = 0; c < t->n_chunks; c++) {
        const cf_routing_chunk *k = &t->chunks[c];
        check(k->first_group == group && k->n_groups && k->n_rows);
        check(k->n_rows <= (t->header.chunk ? t->header.chunk : 1));
        tokens[k->phase] += k->n_rows;
        for (uint32_t g = 0; g < k->n_groups; g++) {
            const cf_routing_group *o = &t->groups[group++];
            check(o->first_row == row && o->n_rows && o->n_rows <= k->n_rows);
            check(o->first_union + o->n_union <= t->n_ids);
            for (uint32_t i = 0; i < o->n_rows; i++, row++)
                check(t->rows[row].moe == o->moe && t->rows[row].row < k->n_rows &&
                      (i == 0 || t->rows[row].row > t->rows[row - 1].row));
            check(g == 0 || o->moe > o[-1].moe);
        }
    }
    check(row == t->n_rows && group == t->n_groups && memcmp(tokens, t->tokens, 24) == 0);
}

static void replay_check(const cf_routing *t)
{
    cf_err err = {0};
    cf_replay min = {.slots = cf_replay_min_slots(t), .slabs = 1}, echo = min;
    if ((uint64_t)t->n_moe * t->header.n_experts > 4096 || t->n_rows > 512)
        return;
    check(cf_replay_min(t, &min, 1, &err) == 0 && cf_replay_run(t, "echo", &echo, 1, &err) == 0);
    check(min.all.lookups == echo.all.lookups);
    check(echo.all.vram_hits + echo.all.ram_hits + echo.all.misses == echo.all.lookups);
    cf_replay_finish(&min, 1);
    cf_replay_finish(&echo, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cf_routing *t = NULL;
    cf_err err = {0};
    int rc = cf_trace_parse(&t, "fuzz", data, size, &err);
    check((rc < 0) == (err.code != 0) && (rc < 0) == (t == NULL));
    if (rc < 0) {
        check(strstr(err.msg, "fuzz") != NULL || rc == -ENOMEM);
        return 0;
    }
    rows_check(t);
    groups_check(t);
    replay_check(t);
    cf_routing_free(&t);
    return 0;
}
