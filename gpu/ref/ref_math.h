/* The inner loops of the reference: stored formats to float32, dot products, scaled sums.
 *
 * Element k of a dot product goes to accumulator k mod 16, and the 16 are added in a fixed tree:
 * the compiler vectorises it, and the bits depend on neither the threads, nor the other rows, nor
 * the weight's layout. */
#ifndef CF_GPU_REF_MATH_H
#define CF_GPU_REF_MATH_H

#include "gpu/ops.h"

enum {
    CF_REF_ROWS = 8,   /* rows of x that share one decoding of a weight row */
    CF_REF_OUTS = 8,   /* outputs computed together: neighbours in a transposed weight */
    CF_REF_BLOCK = 256 /* weights decoded at a time, a multiple of the 16 accumulators and of the
                        * values in a block of every format */
};

/* Elements [begin, begin + n) of a stored row, n <= CF_REF_BLOCK: a pointer into the row itself
 * when it is float32, else decoded into `scratch`. */
const float *cf_ref_decode(cf_format t, const void *row, uint64_t begin, uint32_t n,
                           float scratch[CF_REF_BLOCK]);

/* out[i] = row . x[i] over n elements, i < n_x <= CF_REF_ROWS. */
void cf_ref_dots(cf_format t, const void *row, uint32_t n, const float *const *x, uint32_t n_x,
                 float *out);

/* out[j][i] = W[o + j] . x[i] over w's columns, whatever its layout, outer scales applied, x
 * rounded when x_q8; j < n_o <= CF_REF_OUTS, i < n_x <= CF_REF_ROWS. */
void cf_ref_weight_dots(const cf_weight *w, uint64_t o, uint32_t n_o, const float *const *x,
                        uint32_t n_x, bool x_q8, float out[CF_REF_OUTS][CF_REF_ROWS]);

/* Columns [k, k + n) of output o of a plain weight, n <= CF_REF_BLOCK, outer scales applied. */
void cf_ref_weight_decode(const cf_weight *w, uint64_t o, uint32_t k, uint32_t n,
                          float out[CF_REF_BLOCK]);

/* Elements [begin, begin + n) of a vector in any layout, n <= CF_REF_BLOCK, as cf_ref_decode. */
const float *cf_ref_vector(const cf_weight *w, uint64_t begin, uint32_t n,
                           float scratch[CF_REF_BLOCK]);

/* Element i of a vector; 0 where there is none. */
float cf_ref_vector_at(const cf_weight *w, uint64_t i);

/* y[i] += a * row[begin + i], i < n. */
void cf_ref_axpy(cf_format t, const void *row, uint64_t begin, uint32_t n, float a, float *y);

/* The softmax of scores that come one by one, of what they weigh: y is the sum of rows, and `sum` of
 * their weights, relative to the largest score so far. It begins with {-INFINITY, 0} and y zero. */
typedef struct cf_ref_softmax {
    float max, sum;
} cf_ref_softmax;

/* A row of n elements, weighed by `score`. */
void cf_ref_softmax_add(cf_ref_softmax *s, float score, cf_format t, const void *row, uint32_t n,
                        float *y);
void cf_ref_softmax_end(const cf_ref_softmax *s, uint32_t n, float *y);

float cf_ref_sum(const float *x, uint32_t n);
/* Sum of (x[i] - about)^2. */
float cf_ref_sum_squares(const float *x, uint32_t n, float about);

float cf_ref_sigmoid(float v);

/* act(g) * u; u = 1 where there is none. */
float cf_ref_act(const cf_act_params *p, float g, float u);

#endif
