/* What every op must compute: gpu/ops.h in double precision, written independently of any device's
 * code, and the comparison of a result with it.
 *
 * A definition says of each element of each output what it is, how far off it may be, and that the
 * rest keeps its bits. Aborts when out of memory. A case and its expectation belong to one thread. */
#ifndef CF_TESTS_OP_DEFINE_H
#define CF_TESTS_OP_DEFINE_H

#include "tests/support/op_cases.h"

/* What each element of each output should be; `set` false: it must keep its bits. */
typedef struct op_expect {
    double *want[OP_MAX_ARRAYS], *mag[OP_MAX_ARRAYS];
    bool *set[OP_MAX_ARRAYS];
    double tolerance;
    bool ambiguous; /* a case whose ids depend on rounding: a mistake in op_cases.c */
} op_expect;

/* What the case's op must leave; op_expect_finish is due. */
void op_expect_init(op_expect *e, const op_case *c);
void op_expect_finish(op_expect *e);

/* Prints the first element that is off; returns whether all are right. `ref`: results that these
 * are compared with as well, or NULL. */
bool op_expect_holds(const op_case *c, const op_expect *e, const op_result *got,
                     const op_result *ref);
bool op_results_equal(const op_case *c, const op_result *a, const op_result *b);

/* The 17 words of a block of 32 values in 8 bits. */
void op_define_q8(const float x[32], unsigned word[17]);

#endif
