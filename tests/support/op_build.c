/* Pieces that op cases are built of: see op_build.h. */
#include "tests/support/op_build.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/f16.h"

const uint32_t op_row_counts[OP_ROW_COUNTS] = {1, 2, 5, 17};
const char *const op_act_names[OP_ACTS] = {"silu", "gelu_tanh", "relu", "swiglu_clamped"};
const char *const op_layout_names[OP_LAY_NONE + 1] = {
    "", " even", " odd", " later", " transposed", " transposed part", " transposed even",
    " transposed odd", " none"};

float op_rng_value(cf_rng *r)
{
    return (float)(cf_rng_unit(r) * 2 - 1);
}

uint8_t *op_array_add(op_case *c, cf_span *field, uint64_t bytes, uint64_t lead, op_role role)
{
    cf_assert(c->n_arrays < OP_MAX_ARRAYS);
    op_array *a = &c->arrays[c->n_arrays++];
    a->data = malloc(bytes);
    cf_assert(a->data != NULL);
    memset(a->data, OP_GUARD, bytes);
    a->bytes = bytes;
    a->lead = lead;
    a->role = role;
    a->fields[0] = (size_t)((uint8_t *)field - (uint8_t *)c);
    a->n_fields = 1;
    return a->data;
}

void op_array_share(op_case *c, const cf_span *of, cf_span *field)
{
    op_array *a = (op_array *)op_case_array(c, of);
    cf_assert(a->n_fields == 1);
    a->fields[a->n_fields++] = (size_t)((uint8_t *)field - (uint8_t *)c);
    a->role = OP_OUT;
}

const op_array *op_case_array(const op_case *c, const cf_span *field)
{
    size_t at = (size_t)((const uint8_t *)field - (const uint8_t *)c);
    for (int i = 0; i < c->n_arrays; i++)
        for (int j = 0; j < c->arrays[i].n_fields; j++)
            if (c->arrays[i].fields[j] == at)
                return &c->arrays[i];
    return NULL;
}

float *op_rows_add(op_case *c, cf_span *field, uint32_t n_rows, uint64_t width, uint64_t stride)
{
    uint64_t n = (n_rows - 1) * stride + width;
    float *f =
        (float *)(void *)op_array_add(c, field, n * 4, 4 + 8 * cf_rng_below(&c->rng, 8), OP_IN);
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint64_t i = 0; i < width; i++)
            f[r * stride + i] = op_rng_value(&c->rng);
    return f;
}

void op_out_add(op_case *c, cf_span *field, uint64_t n, op_element element, op_role role)
{
    op_array_add(c, field, n * 4, 4 + 8 * cf_rng_below(&c->rng, 8), role);
    c->arrays[c->n_arrays - 1].element = element;
}

static void layout_set(cf_weight *w, op_layout lay)
{
    bool pair = lay == OP_LAY_EVEN || lay == OP_LAY_ODD, vector = w->rows == 1;
    w->transposed = lay >= OP_LAY_TRANSPOSED || (pair && vector);
    switch (lay) {
    case OP_LAY_ODD:
    case OP_LAY_EVEN:
        w->row_first = lay == OP_LAY_ODD;
        w->row_step = vector ? 0 : 2;
        w->stride = vector ? 2 : 0;
        break;
    case OP_LAY_LATER:
        w->row_first = 3;
        w->row_step = 1;
        break;
    case OP_LAY_TRANSPOSED_PART:
        w->row_first = 5;
        w->stride = w->rows + 8;
        break;
    case OP_LAY_TRANSPOSED_EVEN:
    case OP_LAY_TRANSPOSED_ODD:
        w->row_first = lay == OP_LAY_TRANSPOSED_ODD;
        w->row_step = 2;
        w->stride = 2 * w->rows;
        break;
    case OP_LAY_PLAIN:
    case OP_LAY_TRANSPOSED:
    case OP_LAY_NONE:
        break;
    }
}

uint64_t op_weight_index(const cf_weight *w, uint64_t o, uint64_t k)
{
    uint64_t stored = w->row_first + o * (w->row_step ? w->row_step : 1);
    if (w->transposed)
        return k * (w->stride ? w->stride : w->rows) + stored;
    return stored * w->cols + k;
}

static void plain_fill(cf_rng *rng, const cf_weight *w, uint8_t *data)
{
    for (uint64_t i = 0; i < (uint64_t)w->rows * w->cols; i++) {
        uint64_t at = op_weight_index(w, i / w->cols, i % w->cols);
        float v = op_rng_value(rng);
        if (i % 13 == 5)
            v *= 0x1p-16f; /* an F16 subnormal */
        if (w->dtype == CF_F32)
            ((float *)(void *)data)[at] = v;
        else
            ((uint16_t *)(void *)data)[at] =
                w->dtype == CF_F16 ? cf_f32_to_f16(v) : cf_f32_to_bf16(v);
    }
}

void op_weight_add_as(op_case *c, cf_weight *w, cf_format t, uint32_t rows, uint32_t cols,
                      op_layout lay)
{
    w->dtype = t;
    w->rows = rows;
    w->cols = cols;
    layout_set(w, lay);
    uint64_t n = op_weight_index(w, rows - 1, cols - 1) + 1;
    uint8_t *data =
        op_array_add(c, &w->span, cf_format_row_bytes(t, n), 16 * cf_rng_below(&c->rng, 5), OP_IN);
    if (t <= CF_BF16) {
        plain_fill(&c->rng, w, data);
        return;
    }
    uint64_t run = w->transposed ? 1 : cols; /* neighbours in the array */
    for (uint64_t i = 0; i < (uint64_t)rows * cols; i += run) {
        uint64_t at = op_weight_index(w, i / cols, i % cols);
        op_blocks_fill(&c->rng, t, data + cf_format_row_bytes(t, at), run);
    }
}

void op_weight_add(op_case *c, cf_weight *w, cf_format t, uint32_t rows, uint32_t cols)
{
    op_weight_add_as(c, w, t, rows, cols, OP_LAY_PLAIN);
}

void op_cache_add(op_case *c, cf_span *field, cf_format t, uint64_t n, uint64_t spare,
                  uint64_t lead)
{
    uint8_t *cache = op_array_add(c, field, cf_format_row_bytes(t, n + spare), lead, OP_IN);
    if (t > CF_BF16) {
        op_blocks_fill(&c->rng, t, cache, n);
        return;
    }
    for (uint64_t j = 0; j < n; j++) {
        float v = op_rng_value(&c->rng);
        if (t == CF_F32)
            ((float *)(void *)cache)[j] = v;
        else
            ((uint16_t *)(void *)cache)[j] = cf_f32_to_f16(v);
    }
}

void op_vector_add(op_case *c, cf_weight *w, cf_format t, uint32_t n, op_layout lay)
{
    if (lay != OP_LAY_NONE)
        op_weight_add_as(c, w, t, 1, n, lay);
}
