/* Stored forms of a matrix: see stored.h. */
#include "models/stored.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "storage/catalogue_build.h"

enum { MAX_NAME = 512, MX_GROUP = 32, MX_BYTES = 16, WORD_CODES = 8 };

/* ---- quantization_config ---- */

/* A whole number of an object's member, or 0. */
static uint32_t member_u32(const json_t *object, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(object, key));
    return v > 0 && v <= 1 << 20 ? (uint32_t)v : 0;
}

static int block_size_set(cf_build *b, uint32_t rows, uint32_t cols, cf_err *err)
{
    if (!rows || !cols || cols % CF_Q8_GROUP)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"quantization_config\" has a scale for each %u x %u values; known are "
                       "blocks of at least one row and a multiple of %d columns",
                       b->path, rows, cols, (int)CF_Q8_GROUP);
    b->quant.rows = rows;
    b->quant.cols = cols;
    return 0;
}

/* Every group of weights: 4-bit integers, symmetric, one scale for group_size values of a row. */
static int packed_read(cf_build *b, const json_t *q, cf_err *err)
{
    const json_t *groups = json_object_get(q, "config_groups");
    const char *format = json_string_value(json_object_get(q, "format")), *key;
    json_t *group;
    if (!format || strcmp(format, "pack-quantized") != 0 || !json_object_size(groups))
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: of compressed-tensors only the format pack-quantized with its "
                       "\"config_groups\" is known",
                       b->path);
    json_object_foreach((json_t *)groups, key, group)
    {
        const json_t *w = json_object_get(group, "weights");
        const char *type = json_string_value(json_object_get(w, "type"));
        uint32_t size = member_u32(w, "group_size");
        if (member_u32(w, "num_bits") != 4 || !type || strcmp(type, "int") != 0 ||
            !json_is_true(json_object_get(w, "symmetric")) ||
            (b->quant.packed && size != b->quant.cols))
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: of pack-quantized weights only symmetric 4-bit integers of one "
                           "group size are known",
                           b->path);
        int rc = block_size_set(b, 1, size, err);
        if (rc < 0)
            return rc;
        b->quant.packed = true;
    }
    return 0;
}

int cf_quant_read(cf_build *b, cf_err *err)
{
    const json_t *q = json_object_get(b->config, "quantization_config");
    if (!q || json_is_null(q))
        return 0;
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    if (method && strcmp(method, "mxfp4") == 0)
        return 0; /* its blocks are what they are */
    if (method && strcmp(method, "compressed-tensors") == 0)
        return packed_read(b, q, err);
    if (!method || strcmp(method, "fp8") != 0) {
        char clean[100];
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: quantisation \"%s\" is unknown; known: fp8, mxfp4, compressed-tensors",
                       b->path, cf_text_clean(method ? method : "", clean, sizeof clean));
    }
    const json_t *size = json_object_get(q, "weight_block_size");
    json_int_t rows = json_integer_value(json_array_get(size, 0));
    json_int_t cols = json_integer_value(json_array_get(size, 1));
    bool possible = rows > 0 && rows <= 1 << 20 && cols > 0 && cols <= 1 << 20;
    return block_size_set(b, possible ? (uint32_t)rows : 0, possible ? (uint32_t)cols : 0, err);
}

/* ---- finding ---- */

static void shape_text(char *out, size_t size, const uint64_t *shape, uint32_t n)
{
    cf_tensor t = {.n_dims = n};
    memcpy(t.shape, shape, n * sizeof *shape);
    cf_tensor_shape_text(&t, out, size);
}

/* The tensor name + suffix, or -1. */
static int64_t find(const cf_build *b, const char *name, const char *suffix)
{
    char full[MAX_NAME + 16];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    return cf_catalogue_find(b->model->cat, full);
}

bool cf_stored_in_blocks(const cf_build *b, const char *name)
{
    return find(b, name, "_blocks") >= 0;
}

/* Takes a tensor: it is there, has this shape, and no role yet (unless `again`). */
static int take(cf_build *b, const char *name, const char *suffix, const uint64_t *shape,
                uint32_t n_dims, bool again, const cf_tensor **out, cf_err *err)
{
    int64_t at = find(b, name, suffix);
    if (at < 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s%s is missing", b->model->dir, name, suffix);
    const cf_tensor *t = cf_catalogue_at(b->model->cat, (uint32_t)at);
    if (b->bound[at] && !again)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has two roles", b->model->dir, t->name);
    if (t->n_slices)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s is in %u slices; only the matrices of single experts are "
                       "joined",
                       b->model->dir, t->name, t->n_slices);
    if (t->n_dims != n_dims || memcmp(t->shape, shape, n_dims * sizeof *shape) != 0) {
        char have[128], want[128];
        shape_text(want, sizeof want, shape, n_dims);
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has shape %s, the config implies %s",
                       b->model->dir, t->name, cf_tensor_shape_text(t, have, sizeof have), want);
    }
    b->bound[at] = 1;
    *out = t;
    return 0;
}

static int format_demand(const cf_build *b, const cf_tensor *t, cf_format format, cf_err *err)
{
    if (t->format == format)
        return 0;
    return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has dtype %s, must be %s", b->model->dir,
                   t->name, cf_format_name(t->format), cf_format_name(format));
}

/* Scales in a float format, one for each scale.rows x scale.cols values. */
static int scales_take(cf_build *b, const char *name, const char *suffix, const uint64_t *shape,
                       uint32_t n_dims, bool again, cf_stored *out, cf_err *err)
{
    uint64_t of[CF_MAX_DIMS];
    memcpy(of, shape, n_dims * sizeof *of);
    out->scale.rows = b->quant.rows;
    out->scale.cols = b->quant.cols;
    of[n_dims - 2] = cf_ceil_div(out->rows, out->scale.rows);
    of[n_dims - 1] = cf_ceil_div(out->cols, out->scale.cols);
    int rc = take(b, name, suffix, of, n_dims, again, &out->scales, err);
    if (rc < 0)
        return rc;
    out->scale.format = out->scales->format;
    if (out->scale.format > CF_BF16 && out->scale.format != CF_F8_E8M0)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s has dtype %s; scales are F32, F16, BF16 or F8_E8M0",
                       b->model->dir, out->scales->name, cf_format_name(out->scale.format));
    return 0;
}

/* ---- the forms ---- */

static int blocks_bind(cf_build *b, const char *name, const uint64_t *shape, uint32_t n_dims,
                       bool again, cf_stored *out, cf_err *err)
{
    int rc;
    uint64_t of[CF_MAX_DIMS];
    if (n_dims >= CF_MAX_DIMS || out->cols % MX_GROUP)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s_blocks: %llu columns are not a multiple of %d", b->model->dir,
                       name, (unsigned long long)out->cols, (int)MX_GROUP);
    memcpy(of, shape, n_dims * sizeof *of);
    of[n_dims - 1] = out->cols / MX_GROUP;
    of[n_dims] = MX_BYTES;
    CF_TRY(take(b, name, "_blocks", of, n_dims + 1, again, &out->codes, err));
    CF_TRY(format_demand(b, out->codes, CF_U8, err));
    CF_TRY(take(b, name, "_scales", of, n_dims, again, &out->scales, err));
    CF_TRY(format_demand(b, out->scales, CF_U8, err));
    out->dtype = CF_F4_E2M1;
    out->scale = (cf_scale_def){.format = CF_F8_E8M0, .rows = 1, .cols = MX_GROUP};
    return 0;
fail:
    return rc;
}

static int packed_bind(cf_build *b, const char *name, const uint64_t *shape, bool again,
                       cf_stored *out, cf_err *err)
{
    int rc;
    const cf_tensor *t;
    const uint64_t of[2] = {shape[0], shape[1] / WORD_CODES}, pair = 2;
    if (!b->quant.packed || shape[1] % WORD_CODES)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s_packed: %llu columns of a %s form; known are multiples of %d "
                       "in pack-quantized",
                       b->model->dir, name, (unsigned long long)shape[1],
                       b->quant.packed ? "packed" : "unnamed", (int)WORD_CODES);
    CF_TRY(take(b, name, "_packed", of, 2, again, &out->codes, err));
    CF_TRY(format_demand(b, out->codes, CF_I32, err));
    CF_TRY(scales_take(b, name, "_scale", shape, 2, again, out, err));
    /* Says again what the config implies. */
    if (find(b, name, "_shape") >= 0)
        CF_TRY(take(b, name, "_shape", &pair, 1, again, &t, err));
    out->dtype = CF_I4;
    return 0;
fail:
    return rc;
}

/* One scale for the whole matrix. */
static int whole_scale_take(cf_build *b, const char *name, bool again, cf_stored *out, cf_err *err)
{
    const uint64_t one = 1;
    int rc;
    CF_TRY(take(b, name, "_scale_2", &one, 1, again, &out->scales, err));
    CF_TRY(format_demand(b, out->scales, CF_F32, err));
    uint64_t cols = cf_align_up(out->cols, CF_Q8_GROUP);
    if (out->rows > UINT32_MAX || cols > UINT32_MAX)
        return CF_FAIL(err, CF_ELIMIT, "%s: tensor %s is too large for one scale", b->model->dir,
                       name);
    out->scale = (cf_scale_def){.format = CF_F32, .rows = (uint32_t)out->rows,
                                .cols = (uint32_t)cols};
    return 0;
fail:
    return rc;
}

static int plain_bind(cf_build *b, const char *name, const uint64_t *shape, uint32_t n_dims,
                      bool again, cf_stored *out, cf_err *err)
{
    int rc = take(b, name, "", shape, n_dims, again, &out->codes, err);
    if (rc < 0)
        return rc;
    out->dtype = out->codes->format;
    if (out->dtype == CF_F8_E4M3 && n_dims >= 2 && b->quant.rows && !b->quant.packed)
        return scales_take(b, name, "_scale_inv", shape, n_dims, again, out, err);
    /* Pairs of 4 bits and FP8 are nothing without their scales. */
    if (!cf_format_computable(out->dtype) || out->dtype == CF_F8_E4M3 || out->dtype == CF_F4_E2M1 ||
        out->dtype == CF_I4)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s has dtype %s; known: F32 F16 BF16, GGUF's block formats, and "
                       "matrices in F8_E4M3 with a \"weight_block_size\" in the config",
                       b->model->dir, name, cf_format_name(out->dtype));
    if (n_dims == 2 && b->model->gguf && find(b, name, "_scale_2") >= 0)
        return whole_scale_take(b, name, again, out, err);
    return 0;
}

int cf_stored_bind(cf_build *b, const char *name, const uint64_t *shape, uint32_t n_dims,
                   bool again, cf_stored *out, cf_err *err)
{
    *out = (cf_stored){.rows = n_dims > 1 ? shape[n_dims - 2] : 1, .cols = shape[n_dims - 1]};
    if (n_dims > 1 && find(b, name, "") < 0) {
        if (cf_stored_in_blocks(b, name))
            return blocks_bind(b, name, shape, n_dims, again, out, err);
        if (n_dims == 2 && find(b, name, "_packed") >= 0)
            return packed_bind(b, name, shape, again, out, err);
    }
    return plain_bind(b, name, shape, n_dims, again, out, err);
}

int cf_stored_part(const cf_build *b, const cf_stored *s, uint64_t matrix, uint64_t first,
                   uint64_t n, cf_extent *codes, cf_extent *scales, cf_err *err)
{
    uint64_t row_bytes = cf_format_row_bytes(s->dtype, s->cols);
    *codes =
        (cf_extent){s->codes->extent.file,
                    s->codes->extent.off + (matrix * s->rows + first) * row_bytes, n * row_bytes};
    if (!s->scales)
        return 0;
    bool within = n && first / s->scale.rows == (first + n - 1) / s->scale.rows;
    if (first % s->scale.rows && !within) /* within one row of them they all have the same */
        return CF_FAIL(
            err, CF_EFORMAT,
            "%s: tensor %s: rows from %llu on share their scales with those before them, "
            "%u rows to a scale",
            b->model->dir, s->codes->name, (unsigned long long)first, s->scale.rows);
    row_bytes = cf_format_row_bytes(s->scale.format, cf_ceil_div(s->cols, s->scale.cols));
    uint64_t row = matrix * cf_ceil_div(s->rows, s->scale.rows) + first / s->scale.rows;
    *scales = (cf_extent){s->scales->extent.file, s->scales->extent.off + row * row_bytes,
                          cf_ceil_div(n, s->scale.rows) * row_bytes};
    return 0;
}

int cf_stored_values(const cf_catalogue *cat, const cf_tensor *t, float *out, cf_err *err)
{
    uint64_t file_bytes;
    const char *path = cf_catalogue_path(cat, t->extent.file);
    if (t->format != CF_F32)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has dtype %s, must be F32", path, t->name,
                       cf_format_name(t->format));
    int fd = cf_header_open(path, &file_bytes, err);
    if (fd < 0)
        return fd;
    int rc = cf_header_read(fd, path, t->extent.off, out, t->extent.bytes, err);
    close(fd);
    for (uint64_t i = 0; i < t->extent.bytes / sizeof *out && rc == 0; i++)
        if (!isfinite(out[i]))
            return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s: element %llu is %g", path, t->name,
                           (unsigned long long)i, (double)out[i]);
    return rc;
}
