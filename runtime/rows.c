/* Rows of tables: see rows.h. */
#include "runtime/rows.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"

enum { NONE = 0xffffffff };

struct entry {
    uint32_t table; /* NONE: empty */
    uint64_t row;
    bool wanted;  /* by the batch being gathered: not to be replaced */
    bool recent;  /* used since the hand last passed */
    uint32_t next; /* in its bucket */
    cf_run run;
    cf_fetch_req req;
};

struct cf_rows {
    const cf_model *model;
    cf_fetch *fetch;
    cf_timeline *timeline; /* may be NULL */
    int32_t region;
    uint32_t align, n_entries, n_buckets, hand;
    uint64_t window_bytes;
    cf_pages arena;
    struct entry *entries;
    uint32_t *buckets;
    cf_fetch_req **batch; /* reads of the batch being gathered */
    uint32_t n_batch;
    uint32_t *item_entry; /* [n_entries] of the batch's items */
    cf_rows_stats stats;
    pthread_mutex_t lock;
    pthread_cond_t arrival;
    uint32_t outstanding; /* guarded by lock */
};

static uint64_t table_row_bytes(const cf_table_def *t)
{
    return cf_format_row_bytes(t->dtype, t->cols);
}

uint64_t cf_rows_window_bytes(const cf_model *model, uint32_t align)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < model->n_tables; i++)
        most = cf_max_u64(most, table_row_bytes(&model->tables[i]));
    return most ? cf_align_up(most + align - 1, align) : 0;
}

uint64_t cf_rows_memory(uint64_t window_bytes, uint32_t entries)
{
    return cf_align_up(window_bytes * entries, 4096) +
           entries *
               (uint64_t)(sizeof(struct entry) + sizeof(cf_fetch_req *) + 3 * sizeof(uint32_t));
}

uint32_t cf_rows_min_entries(const cf_model *model)
{
    uint32_t most = model->n_tables ? 1 : 0;
    for (uint32_t i = 0; i < model->n_steps; i++)
        if (model->steps[i].kind == CF_STEP_ROWS && model->steps[i].u.rows.n_tables > most)
            most = model->steps[i].u.rows.n_tables;
    return most;
}

static void row_arrived(cf_fetch_req *req, void *user)
{
    cf_rows *rows = user;
    cf_timeline_add(rows->timeline, &(cf_timeline_event){.begin_ns = req->begin_ns,
                                                         .end_ns = req->end_ns, .name = "row",
                                                         .bytes = req->runs[0].bytes,
                                                         .expert = CF_TIMELINE_NONE,
                                                         .layer = CF_TIMELINE_NONE,
                                                         .track = CF_TRACK_READS});
    pthread_mutex_lock(&rows->lock);
    if (--rows->outstanding == 0)
        pthread_cond_signal(&rows->arrival);
    pthread_mutex_unlock(&rows->lock);
}

int cf_rows_create(cf_rows **out, const cf_model *model, uint32_t entries, uint32_t align,
                   cf_ledger *ledger, cf_err *err)
{
    int rc = 0;
    cf_rows *r = calloc(1, sizeof *r);
    if (!r)
        return CF_FAIL(err, -ENOMEM, "out of memory for the row cache");
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->arrival, NULL);
    r->model = model;
    r->align = align;
    r->n_entries = entries;
    r->window_bytes = cf_rows_window_bytes(model, align);
    for (r->n_buckets = 1; r->n_buckets < entries;)
        r->n_buckets *= 2;
    CF_TRY(cf_pages_init(&r->arena, r->window_bytes * entries, ledger, CF_POOL_HOST, "row cache",
                         err));
    r->entries = calloc(entries, sizeof *r->entries);
    r->buckets = malloc(r->n_buckets * sizeof *r->buckets);
    r->batch = calloc(entries, sizeof(cf_fetch_req *));
    r->item_entry = calloc(entries, sizeof *r->item_entry);
    if (!r->entries || !r->buckets || !r->batch || !r->item_entry) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for %u cached rows", entries);
        goto fail;
    }
    memset(r->buckets, 0xff, r->n_buckets * sizeof *r->buckets);
    for (uint32_t i = 0; i < entries; i++) {
        struct entry *e = &r->entries[i];
        e->table = NONE;
        e->req.done = row_arrived;
        e->req.user = r;
        e->req.runs = &e->run;
        e->req.n_runs = 1;
        e->req.slab = r->arena.data + i * r->window_bytes;
    }
    *out = r;
    return 0;
fail:
    cf_rows_destroy(&r);
    return rc;
}

cf_io_region cf_rows_region(const cf_rows *rows)
{
    return (cf_io_region){rows->arena.data, rows->arena.bytes};
}

void cf_rows_attach(cf_rows *rows, cf_fetch *fetch, int32_t region)
{
    rows->fetch = fetch;
    for (uint32_t i = 0; i < rows->n_entries; i++)
        rows->entries[i].req.region = region;
}

void cf_rows_watch(cf_rows *rows, cf_timeline *timeline)
{
    rows->timeline = timeline;
}

void cf_rows_destroy(cf_rows **rows)
{
    cf_rows *r = *rows;
    if (!r)
        return;
    cf_pages_finish(&r->arena);
    free(r->entries);
    free(r->buckets);
    free(r->batch);
    free(r->item_entry);
    pthread_cond_destroy(&r->arrival);
    pthread_mutex_destroy(&r->lock);
    free(r);
    *rows = NULL;
}

static uint32_t *bucket_of(cf_rows *r, uint32_t table, uint64_t row)
{
    uint64_t h = (row * 0x9e3779b97f4a7c15u) ^ (table * 0xc2b2ae3d27d4eb4fu);
    return &r->buckets[(h ^ (h >> 32)) & (r->n_buckets - 1)];
}

static uint32_t entry_find(cf_rows *r, uint32_t table, uint64_t row)
{
    uint32_t i = *bucket_of(r, table, row);
    while (i != NONE && !(r->entries[i].table == table && r->entries[i].row == row))
        i = r->entries[i].next;
    return i;
}

static void entry_remove(cf_rows *r, uint32_t index)
{
    struct entry *e = &r->entries[index];
    uint32_t *p = bucket_of(r, e->table, e->row);
    while (*p != index)
        p = &r->entries[*p].next;
    *p = e->next;
    e->table = NONE;
}

/* A window for a new row, by second chance; NONE when the batch wants all of them. */
static uint32_t entry_take(cf_rows *r)
{
    for (uint32_t i = 0; i < 2 * r->n_entries; i++) {
        uint32_t at = r->hand;
        struct entry *e = &r->entries[at];
        r->hand = (r->hand + 1) % r->n_entries;
        if (e->wanted)
            continue;
        if (e->table == NONE)
            return at;
        if (!e->recent) {
            entry_remove(r, at);
            return at;
        }
        e->recent = false;
    }
    return NONE;
}

static void entry_ask(cf_rows *r, uint32_t index, uint32_t table, uint64_t row)
{
    struct entry *e = &r->entries[index];
    const cf_table_def *t = &r->model->tables[table];
    uint64_t bytes = table_row_bytes(t), off = t->extent.off + row * bytes;
    e->table = table;
    e->row = row;
    uint32_t *bucket = bucket_of(r, table, row);
    e->next = *bucket;
    *bucket = index;
    uint64_t begin = cf_align_down(off, r->align), end = cf_align_up(off + bytes, r->align);
    e->run = (cf_run){.file = t->extent.file, .file_off = begin, .bytes = end - begin};
    r->batch[r->n_batch++] = &e->req;
    r->stats.bytes_asked += end - begin;
    r->stats.bytes_used += bytes;
}

/* Reads what the batch lacks and waits for it. */
static int batch_read(cf_rows *r, cf_err *err)
{
    int rc = 0;
    uint32_t n = r->n_batch;
    if (!n)
        return 0;
    r->outstanding = n;
    cf_fetch_submit(r->fetch, r->batch, n, CF_FETCH_DEMAND);
    pthread_mutex_lock(&r->lock);
    while (r->outstanding)
        pthread_cond_wait(&r->arrival, &r->lock);
    pthread_mutex_unlock(&r->lock);
    for (uint32_t i = 0; i < n; i++) {
        cf_fetch_req *req = r->batch[i];
        if (req->status >= 0)
            continue;
        rc = CF_FAIL(err, req->status, "%s", req->err.msg);
        entry_remove(r, (uint32_t)((req->slab - r->arena.data) / (ptrdiff_t)r->window_bytes));
    }
    r->n_batch = 0;
    return rc;
}

/* Copies the items of the batch out and lets their windows go. */
static void batch_deliver(cf_rows *r, uint32_t n_items, uint64_t row_bytes, uint8_t *dst)
{
    for (uint32_t i = 0; i < n_items; i++) {
        struct entry *e = &r->entries[r->item_entry[i]];
        const cf_table_def *t = &r->model->tables[e->table];
        uint64_t in_window = t->extent.off + e->row * row_bytes - e->run.file_off;
        memcpy(dst + i * row_bytes, e->req.slab + in_window, row_bytes);
    }
    for (uint32_t i = 0; i < n_items; i++)
        r->entries[r->item_entry[i]].wanted = false;
}

int cf_rows_gather(cf_rows *r, uint32_t first_table, uint32_t n_tables, const uint64_t *ids,
                   uint32_t n_rows, uint8_t *dst, cf_err *err)
{
    uint64_t row_bytes = table_row_bytes(&r->model->tables[first_table]);
    uint64_t total = (uint64_t)n_rows * n_tables;
    for (uint64_t done = 0; done < total;) {
        uint32_t n = 0;
        for (; n < r->n_entries && done + n < total; n++) {
            uint64_t item = done + n;
            uint32_t table = first_table + (uint32_t)(item % n_tables);
            uint32_t at = entry_find(r, table, ids[item]);
            if (at == NONE) {
                at = entry_take(r);
                if (at == NONE)
                    break;
                entry_ask(r, at, table, ids[item]);
            }
            r->entries[at].wanted = r->entries[at].recent = true;
            r->item_entry[n] = at;
        }
        int rc = batch_read(r, err);
        if (rc < 0) {
            for (uint32_t i = 0; i < r->n_entries; i++)
                r->entries[i].wanted = false;
            return rc;
        }
        batch_deliver(r, n, row_bytes, dst + done * row_bytes);
        done += n;
    }
    return 0;
}

void cf_rows_get_stats(const cf_rows *rows, cf_rows_stats *out)
{
    *out = rows->stats;
}
