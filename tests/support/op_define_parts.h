/* What definitions of ops are made of; for the op_define*.c files only. */
#ifndef CF_TESTS_OP_DEFINE_PARTS_H
#define CF_TESTS_OP_DEFINE_PARTS_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/formats.h"
#include "tests/support/op_define.h"

/* Of the sum of |terms|: float32 sums of up to some thousand terms, in any order; and results
 * behind an exp. */
#define TOLERANCE_SUM 4e-6
#define TOLERANCE_EXP 1e-5

#define OP_DEFINITION_OF(name) void define_##name(const op_case *c, op_expect *e);
CF_GPU_OPS(OP_DEFINITION_OF)
#undef OP_DEFINITION_OF

/* Element `at` of an output is `want`, give or take the tolerance times `mag`. */
void def_put(op_expect *e, const op_case *c, const cf_span *field, uint64_t at, double want,
             double mag);

/* An input's elements; NULL for one left out. */
const float *def_floats(const op_case *c, const cf_span *field);
const uint32_t *def_uints(const op_case *c, const cf_span *field);

/* All values of a stored array; the caller frees. What blocks hold is gpu/formats.h, which
 * test_quants holds to their definitions. */
double *def_decoded(const op_case *c, const cf_span *field, cf_format t);

struct sum {
    double value, mag;
};

struct sum def_dot(const double *w, const float *x, uint64_t n);

/* The values of a weight's array (NULL where there is none), outer scales applied: for free(). */
struct matrix {
    const cf_weight *w;
    double *values;
};

struct matrix def_matrix(const op_case *c, const cf_weight *w);
struct sum def_matrix_dot(const struct matrix *m, uint64_t o, const float *x); /* output o */
/* Element i of a vector, or what stands for it. */
double def_vector_at(const struct matrix *m, uint64_t i, double none);

/* n activations as they are, or rounded to 8 bits; the caller frees. */
float *def_activations(const float *x, uint32_t n, bool q8);

#endif
