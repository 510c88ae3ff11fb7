/* Binding experts' matrices in slices: see slices.h.
 *
 * A record's extents are the slices of its first matrix, then those of the second, and so on;
 * unpacked, the matrices lie one behind the other. */
#include "models/slices.h"

#include <string.h>

#include "runtime/base/align.h"

_Static_assert((int)CF_EXPERT_PIECES <= (int)CF_MAX_CUTS, "a cut for each matrix of an expert");

const cf_tensor *cf_slices_find(const cf_build *b, const char *name)
{
    int64_t at = cf_catalogue_find(b->model->cat, name);
    const cf_tensor *t = at < 0 ? NULL : cf_catalogue_at(b->model->cat, (uint32_t)at);
    return t && t->n_slices ? t : NULL;
}

/* How the slices make a matrix [rows, cols]. */
static int cut_find(const cf_build *b, const cf_tensor *t, uint32_t rows, uint32_t cols,
                    cf_cut *out, cf_err *err)
{
    uint32_t n = t->n_slices;
    char shape[200];
    *out = (cf_cut){.bytes = t->extent.bytes};
    if (t->n_dims == 2 && rows % n == 0 && t->shape[0] == rows / n && t->shape[1] == cols)
        return 0;
    out->rows = rows;
    if (t->n_dims == 2 && cols % n == 0 && t->shape[0] == rows && t->shape[1] == cols / n)
        return 0;
    return CF_FAIL(
        err, CF_EFORMAT,
        "%s: the %u slices of tensor %s, each %s, do not make the [%u, %u] that the config "
        "implies, neither one below the other nor side by side",
        b->model->dir, n, t->name, cf_tensor_shape_text(t, shape, sizeof shape), rows, cols);
}

/* One more matrix of every record. */
static int matrix_add(const cf_build *b, cf_moe_def *d, const cf_tensor *t, const cf_cut *cut,
                      cf_piece_def *p, cf_err *err)
{
    uint32_t n = t->n_slices, first;
    uint64_t at = cf_align_up(d->unpacked_bytes, CF_PIECE_ALIGN);
    if (d->n_extents && d->slices.n != n)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s is in %u slices, others of its layer's experts are whole",
                       b->model->dir, t->name, n);
    if (d->n_extents + n > CF_MAX_RUNS)
        return CF_FAIL(
            err, CF_ELIMIT,
            "%s: with the %u slices of tensor %s an expert is in %u parts, at most %d are "
            "read",
            b->model->dir, n, t->name, d->n_extents + n, (int)CF_MAX_RUNS);
    int rc = cf_build_extents(d, n, &first, err);
    if (rc < 0)
        return rc;
    p->extent = d->n_unpacked++;
    d->unpacked[p->extent] = (cf_piece){.read_off = at, .off = at, .bytes = n * cut->bytes};
    d->unpacked_bytes = at + n * cut->bytes;
    d->slices.n = n;
    d->slices.cuts[d->slices.n_cuts++] = *cut;
    return 0;
}

int cf_slices_bind(cf_build *b, cf_moe_def *d, uint32_t expert, cf_piece_def *p, uint32_t rows,
                   uint32_t cols, const cf_tensor *t, cf_err *err)
{
    int rc = 0;
    cf_cut cut;
    int64_t at = cf_catalogue_find(b->model->cat, t->name);
    if (b->bound[at])
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has two roles", b->model->dir, t->name));
    if (!cf_build_can_bind(t->format) || cf_formats[t->format].block_values != 1)
        CF_TRY(CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s has dtype %s; what is in slices must be F32, F16 or BF16",
                       b->model->dir, t->name, cf_format_name(t->format)));
    CF_TRY(cut_find(b, t, rows, cols, &cut, err));
    if (expert == 0) {
        *p = (cf_piece_def){.dtype = t->format, .rows = rows, .cols = cols};
        CF_TRY(matrix_add(b, d, t, &cut, p, err));
    }
    if (!d->slices.n || p->dtype != t->format || cut.rows != d->slices.cuts[p->extent].rows)
        CF_TRY(
            CF_FAIL(err, CF_EFORMAT,
                    "%s: tensor %s is in %u slices of %s, %s, other than expert 0's of its layer",
                    b->model->dir, t->name, t->n_slices, cut.rows ? "columns" : "rows",
                    cf_format_name(t->format)));
    memcpy(&d->extents[(size_t)expert * d->n_extents + p->extent * t->n_slices], t->slices,
           t->n_slices * sizeof *t->slices);
    b->bound[at] = 1;
    return 0;
fail:
    return rc;
}
