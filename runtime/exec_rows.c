/* Embeddings: rows of tables, read through the ring, decoded on the device. */
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/exec_internal.h"

/* A batch starts on an idle device, and what its first steps read comes from the host: as long as
 * each writes a buffer of its own, nothing needs to be ordered. */
static void rows_barrier(cf_exec *x, const cf_step *s)
{
    for (const cf_step *p = x->model->steps; p < s; p++)
        if ((p->kind != CF_STEP_EMBED && p->kind != CF_STEP_ROWS) || p->dst == s->dst) {
            exec_barrier(x);
            return;
        }
}

/* Reads one row of each of n tables for every row of the batch, and decodes them into dst, side by
 * side. */
static int tables_read(cf_exec *x, const cf_step *s, uint32_t first, uint32_t n, float scale,
                       cf_err *err)
{
    const cf_table_def *t = &x->model->tables[first];
    uint64_t row_bytes = cf_format_row_bytes(t->dtype, t->cols), items = (uint64_t)x->n_rows * n;
    for (uint32_t r = 0; r < x->n_rows; r++) {
        const cf_row *row = &x->batch->rows[r];
        for (uint32_t i = 0; i < n; i++)
            x->row_ids[r * n + i] =
                cf_table_row(&x->model->tables[first + i], row->session->ids, row->position + 1);
    }
    cf_span raw = cf_span_sub(cf_span_of(x->xb[CF_XB_RAW_ROWS]), x->raw_off, items * row_bytes);
    x->raw_off += cf_align_up(raw.bytes, CF_RAW_ALIGN);
    uint64_t begin = cf_clock_ns();
    int rc = cf_rows_gather(x->e->rows, first, n, x->row_ids, x->n_rows, cf_gpu_host_write(raw),
                            err);
    uint64_t end = cf_clock_ns();
    x->e->counters.rows_stall_ns += end - begin;
    cf_timeline_add(x->e->timeline,
                    &(cf_timeline_event){.begin_ns = begin, .end_ns = end, .name = "rows",
                                         .expert = CF_TIMELINE_NONE, .layer = CF_TIMELINE_NONE,
                                         .track = CF_TRACK_STALLS});
    if (rc < 0)
        return rc;
    rows_barrier(x, s);
    cf_gpu_get_rows(x->gpu, CF_STREAM_COMPUTE,
                    &(cf_op_get_rows){.table = {.span = raw, .dtype = t->dtype,
                                                .rows = (uint32_t)items, .cols = t->cols},
                                      .y = exec_act(x, s->dst), .n_rows = (uint32_t)items,
                                      .y_stride = t->cols, .scale = scale});
    exec_recorded(x);
    return 0;
}

int exec_embed(cf_exec *x, const cf_step *s, cf_err *err)
{
    if (s->u.embed.resident == CF_NO_WEIGHT)
        return tables_read(x, s, s->u.embed.table, 1, s->u.embed.scale, err);
    cf_span ids = cf_span_sub(cf_span_of(x->xb[CF_XB_TOKENS]), 0, x->n_rows * sizeof(uint32_t));
    uint32_t *id = cf_gpu_host_write(ids);
    for (uint32_t r = 0; r < x->n_rows; r++)
        id[r] = (uint32_t)x->batch->rows[r].token;
    rows_barrier(x, s);
    cf_gpu_get_rows(x->gpu, CF_STREAM_COMPUTE,
                    &(cf_op_get_rows){.table = exec_weight(x, s->u.embed.resident), .ids = ids,
                                      .y = exec_act(x, s->dst), .n_rows = x->n_rows,
                                      .y_stride = exec_width(x, s->dst),
                                      .scale = s->u.embed.scale});
    exec_recorded(x);
    return 0;
}

int exec_rows(cf_exec *x, const cf_step *s, cf_err *err)
{
    return tables_read(x, s, s->u.rows.first_table, s->u.rows.n_tables, 1, err);
}
