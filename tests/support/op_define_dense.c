/* Products, norms, rotations and element by element: gpu/ops.h in double precision. */
#include "tests/support/op_define_parts.h"

void define_linear(const op_case *c, op_expect *e)
{
    const cf_op_linear *op = &c->op.linear;
    struct matrix w = def_matrix(c, &op->w), bias = def_matrix(c, &op->bias);
    const float *x = def_floats(c, &op->x), *y = def_floats(c, &op->y);
    for (uint32_t r = 0; r < op->n_rows; r++) {
        float *row = def_activations(x + (uint64_t)r * op->x_stride, op->w.cols, op->x_q8);
        for (uint32_t o = 0; o < op->w.rows; o++) {
            struct sum s = def_matrix_dot(&w, o, row);
            uint64_t at = (uint64_t)r * op->y_stride + o;
            double old = op->accumulate ? (double)y[at] : 0.0, scale = (double)op->scale;
            double add = def_vector_at(&bias, o, 0);
            def_put(e, c, &op->y, at, scale * s.value + add + old,
                    fabs(scale) * s.mag + fabs(add) + fabs(old));
        }
        free(row);
    }
    free(w.values);
    free(bias.values);
}

void define_head_linear(const op_case *c, op_expect *e)
{
    const cf_op_head_linear *op = &c->op.head_linear;
    double *w = def_matrix(c, &op->w).values;
    const float *x = def_floats(c, &op->x);
    uint32_t n_out = op->transposed ? op->w.cols : op->n_sub;
    uint32_t n_in = op->transposed ? op->n_sub : op->w.cols;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            for (uint32_t o = 0; o < n_out; o++) {
                struct sum s = {0, 0};
                for (uint32_t k = 0; k < n_in; k++) {
                    uint32_t row = h * op->head_rows + op->row_off + (op->transposed ? k : o);
                    double v = w[(uint64_t)row * op->w.cols + (op->transposed ? o : k)] *
                               (double)x[r * op->x_stride + h * op->x_head_stride + k];
                    s.value += v;
                    s.mag += fabs(v);
                }
                def_put(e, c, &op->y, r * op->y_stride + h * op->y_head_stride + o, s.value, s.mag);
            }
    free(w);
}

/* One head of one row, from x[x_at] to y[y_at]; v_at: its part of the vectors. */
static void define_norm_head(const op_case *c, op_expect *e, const struct matrix *w,
                             const struct matrix *bias, uint64_t v_at, uint64_t x_at, uint64_t y_at)
{
    const cf_op_norm *op = &c->op.norm;
    const float *x = def_floats(c, &op->x) + x_at;
    double mean = 0, squares = 0, largest = 0;
    for (uint32_t i = 0; i < op->width; i++) {
        mean += (double)x[i] / op->width;
        largest = fmax(largest, fabs((double)x[i]));
    }
    if (op->kind == CF_NORM_RMS)
        mean = 0;
    for (uint32_t i = 0; i < op->width; i++)
        squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    double factor = (double)op->scale / sqrt(squares / op->width + (double)op->eps);
    for (uint32_t i = 0; i < op->width; i++) {
        double offset = op->unit_offset && w->values ? 1 : 0;
        double gain = def_vector_at(w, v_at + i, 1) + offset,
               add = def_vector_at(bias, v_at + i, 0);
        double v = gain * ((double)x[i] - mean) * factor;
        /* The mean is off by a rounding of the largest x. */
        double room = op->kind == CF_NORM_LAYER ? fabs(gain) * factor * 0.25 * largest : 0;
        def_put(e, c, &op->y, y_at + i, v + add, fabs(v) + fabs(add) + room);
    }
}

void define_norm(const op_case *c, op_expect *e)
{
    const cf_op_norm *op = &c->op.norm;
    struct matrix w = def_matrix(c, &op->w), bias = def_matrix(c, &op->bias);
    bool apart = fmax(op->w.cols, op->bias.cols) > op->width;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            define_norm_head(c, e, &w, &bias, apart ? (uint64_t)h * op->width : 0,
                             (uint64_t)r * op->x_stride + (uint64_t)h * op->x_head_stride,
                             (uint64_t)r * op->y_stride + (uint64_t)h * op->y_head_stride);
    free(w.values);
    free(bias.values);
}

void define_rope(const op_case *c, op_expect *e)
{
    const cf_op_rope *op = &c->op.rope;
    const float *x = def_floats(c, &op->x), *t = def_floats(c, &op->cos_sin);
    bool half = op->layout == CF_ROPE_HALF;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            for (uint32_t i = 0; i < op->n_rot / 2; i++) {
                uint64_t at = (uint64_t)r * op->stride + (uint64_t)h * op->head_stride;
                uint64_t ia = at + (half ? i : 2 * i),
                         ib = at + (half ? i + op->n_rot / 2 : 2 * i + 1);
                double co = (double)t[r * op->n_rot + 2 * i];
                double si = (double)t[r * op->n_rot + 2 * i + 1];
                double a = (double)x[ia], b = (double)x[ib];
                def_put(e, c, &op->x, ia, a * co - b * si, fabs(a * co) + fabs(b * si));
                def_put(e, c, &op->x, ib, b * co + a * si, fabs(b * co) + fabs(a * si));
            }
}

void define_map(const op_case *c, op_expect *e)
{
    const cf_op_map *op = &c->op.map;
    const float *as = def_floats(c, &op->a), *bs = def_floats(c, &op->b);
    double p = (double)op->p, q = (double)op->q;
    e->tolerance = op->kind == CF_MAP_CLAMP ? 0 : TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t i = 0; i < op->width; i++) {
            double a = (double)as[(uint64_t)r * op->a_stride + i], room = 0, v = 0;
            uint64_t b_at = (uint64_t)r * op->b_stride + (op->b_width == 1 ? 0 : i);
            double b = bs ? (double)bs[b_at] : 0;
            switch (op->kind) {
            case CF_MAP_CLAMP:
                v = fmin(fmax(a, p), q);
                break;
            case CF_MAP_SOFTCAP: /* a small tanh may be made of exps near 1 */
                v = p * tanh(a / p);
                room = 0.1 * p;
                break;
            case CF_MAP_MUL_SIGMOID:
                v = a / (1 + exp(-b));
                room = 1e-25;
                break;
            case CF_MAP_MUL_ROW:
                v = a * b;
            }
            def_put(e, c, &op->y, (uint64_t)r * op->y_stride + i, v, fabs(v) + room);
        }
}

void define_add(const op_case *c, op_expect *e)
{
    const cf_op_add *op = &c->op.add;
    const float *a = def_floats(c, &op->a), *b = def_floats(c, &op->b);
    for (uint64_t i = 0; i < op->n; i++) {
        double va = (double)op->alpha * (double)a[i], vb = b ? (double)op->beta * (double)b[i] : 0;
        def_put(e, c, &op->y, i, va + vb, fabs(va) + fabs(vb));
    }
}

void define_get_rows(const op_case *c, op_expect *e)
{
    const cf_op_get_rows *op = &c->op.get_rows;
    double *table = def_decoded(c, &op->table.span, op->table.dtype);
    const uint32_t *ids = def_uints(c, &op->ids);
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t i = 0; i < op->table.cols; i++) {
            double v = (double)op->scale * table[(uint64_t)(ids ? ids[r] : r) * op->table.cols + i];
            def_put(e, c, &op->y, (uint64_t)r * op->y_stride + i, v, fabs(v));
        }
    free(table);
}
