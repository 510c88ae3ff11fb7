/* Values of the source: see pack_source.h. */
#include "tools/pack_source.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "gpu/formats.h"
#include "runtime/base/align.h"
#include "runtime/base/f8.h"
#include "runtime/quantise.h"

enum { MX_GROUP = 32, MX_BYTES = 17 };

static uint64_t row_step(const cf_piece_def *d)
{
    return d->row_step ? d->row_step : 1;
}

static const uint8_t *stored_row(const cf_pack_source *s, uint64_t row)
{
    const cf_piece_def *d = &s->def;
    return s->bytes + (d->row_first + row * row_step(d)) * cf_format_row_bytes(d->dtype, d->cols);
}

/* The outer scales of a row. */
static const uint8_t *scale_row(const cf_pack_source *s, uint64_t row)
{
    const cf_piece_def *d = &s->def;
    uint64_t stored = d->row_first + row * row_step(d);
    return s->scales +
           stored / d->scale.rows *
               cf_format_row_bytes(d->scale.format, cf_ceil_div(d->cols, d->scale.cols));
}

static void row_scale(const cf_pack_source *s, uint64_t row, float *x)
{
    const cf_piece_def *d = &s->def;
    const uint8_t *scales = scale_row(s, row);
    for (uint64_t k = 0; k < d->cols; k += d->scale.cols) {
        uint64_t end = cf_min_u64(k + d->scale.cols, d->cols), at = k / d->scale.cols;
        float scale;
        if (d->scale.format == CF_F8_E8M0)
            scale = cf_e8m0_to_f32(scales[at]);
        else
            cf_ref_format_decode(d->scale.format, scales, at, 1, &scale);
        for (uint64_t i = k; i < end; i++)
            x[i] *= scale;
    }
}

/* Rows of a transposed matrix lie across: for each column, the run of the source that holds all n
 * of them is decoded at once. */
static void tile_transposed(const cf_pack_source *s, uint64_t first, uint64_t n, float *tile)
{
    const cf_piece_def *d = &s->def;
    float run[CF_PACK_TILE_ROWS * 4];
    uint64_t step = row_step(d), stride = d->stride ? d->stride : d->rows;
    uint64_t at_once = step < sizeof run / sizeof *run ? sizeof run / sizeof *run / step : 1;
    for (uint64_t k = 0; k < d->cols; k++)
        for (uint64_t i = 0; i < n; i += at_once) {
            uint64_t m = n - i < at_once ? n - i : at_once;
            uint64_t begin = k * stride + d->row_first + (first + i) * step;
            cf_ref_format_decode(d->dtype, s->bytes, begin, (m - 1) * step + 1, run);
            for (uint64_t j = 0; j < m; j++)
                tile[(i + j) * d->cols + k] = run[j * step];
        }
}

static void tile_decode(const cf_pack_source *s, uint64_t first, uint64_t n, float *tile)
{
    const cf_piece_def *d = &s->def;
    if (d->transposed) {
        tile_transposed(s, first, n, tile);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        cf_ref_format_decode(d->dtype, stored_row(s, first + i), 0, d->cols, tile + i * d->cols);
        if (d->scale.rows)
            row_scale(s, first + i, tile + i * d->cols);
    }
}

/* ---- bytes ---- */

/* Pairs of 4-bit floats with a power of two for 32 values of a row are MXFP4 in two tensors. */
bool cf_pack_repacks(const cf_piece_def *d, cf_format format)
{
    return format == CF_MXFP4 && d->dtype == CF_F4_E2M1 && !d->transposed &&
           d->scale.format == CF_F8_E8M0 && d->scale.rows == 1 && d->scale.cols == MX_GROUP &&
           d->cols % MX_GROUP == 0;
}

/* Neighbours share a byte there; here values at a distance of half a block do. */
static int row_repack(const cf_pack_source *s, uint64_t row, uint8_t *out, cf_err *err)
{
    const uint8_t *codes = stored_row(s, row), *scales = scale_row(s, row);
    for (uint64_t g = 0; g < s->def.cols / MX_GROUP; g++, codes += MX_GROUP / 2, out += MX_BYTES) {
        if (scales[g] == 0xff)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: the scale of row %" PRIu64 ", columns from %" PRIu64 " on, is NaN",
                           s->name, row, g * MX_GROUP);
        out[0] = scales[g];
        for (int i = 0; i < MX_GROUP / 2; i++) {
            uint8_t low = codes[i / 2], high = codes[i / 2 + MX_GROUP / 4];
            int shift = i % 2 * 4;
            out[1 + i] = (uint8_t)((low >> shift & 15) | (high >> shift & 15) << 4);
        }
    }
    return 0;
}

/* F16 is where a finite weight may become infinite without a word. */
static bool overflows(cf_format f, float v)
{
    return f == CF_F16 && isfinite(v) && fabsf(v) >= 65520.0f;
}

static int row_encode(const cf_pack_source *s, uint64_t row, cf_format f, const float *x,
                      uint8_t *out, cf_err *err)
{
    uint64_t cols = s->def.cols;
    int64_t bad = cf_quantise_row(f, x, cols, out);
    for (uint64_t i = 0; bad < 0 && f == CF_F16 && i < cols; i++)
        if (overflows(f, x[i]))
            bad = (int64_t)i;
    if (bad < 0)
        return 0;
    return CF_FAIL(err, CF_EFORMAT,
                   "%s: element [%" PRIu64 ", %" PRId64 "] is %g, which %s cannot hold", s->name,
                   row, bad, (double)x[bad], cf_format_name(f));
}

int cf_pack_convert(const cf_pack_source *s, uint64_t first, uint64_t n, cf_format format,
                    float *tile, uint8_t *out, cf_err *err)
{
    const cf_piece_def *d = &s->def;
    uint64_t row_bytes = cf_format_row_bytes(format, d->cols);
    int rc = 0;
    if (format == d->dtype && !d->transposed && !d->scale.rows) {
        for (uint64_t i = 0; i < n; i++)
            memcpy(out + i * row_bytes, stored_row(s, first + i), row_bytes);
        return 0;
    }
    if (cf_pack_repacks(d, format)) {
        for (uint64_t i = 0; i < n && rc == 0; i++)
            rc = row_repack(s, first + i, out + i * row_bytes, err);
        return rc;
    }
    for (uint64_t at = 0; at < n && rc == 0; at += CF_PACK_TILE_ROWS) {
        uint64_t m = n - at < CF_PACK_TILE_ROWS ? n - at : CF_PACK_TILE_ROWS;
        tile_decode(s, first + at, m, tile);
        for (uint64_t i = 0; i < m && rc == 0; i++)
            rc = row_encode(s, first + at + i, format, tile + i * d->cols,
                            out + (at + i) * row_bytes, err);
    }
    return rc;
}
