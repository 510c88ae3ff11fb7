/* Seeded inputs for every op, and a runner that executes one case on any device.
 *
 * A case is an op's struct and the arrays that its spans refer to. Whatever an op must not read
 * (guards around every array, gaps between strided rows, outputs that it does not accumulate
 * into) holds NaN patterns; whatever it must not write is compared afterwards.
 *
 * Case i is the same on every machine. Threads: a case belongs to one thread. */
#ifndef CF_TESTS_OP_CASES_H
#define CF_TESTS_OP_CASES_H

#include "gpu/gpu.h"
#include "gpu/ops.h"
#include "runtime/base/rng.h"

#define OP_KIND_OF(name) OP_##name,
typedef enum { CF_GPU_OPS(OP_KIND_OF) OP_KINDS } op_kind;
#undef OP_KIND_OF

enum {
    OP_MAX_ARRAYS = 40,
    OP_MAX_EXPERTS = 8,
    OP_GUARD_BYTES = 64, /* behind every array; before it: its lead */
    OP_GUARD = 0xff
};

typedef enum { OP_IN, OP_OUT, OP_OUT_READBACK } op_role;

/* What an output's elements are. */
typedef enum { OP_F32, OP_U32, OP_F16, OP_U16 } op_element;

typedef struct op_array {
    uint8_t *data; /* before the op */
    uint64_t bytes, lead;
    op_role role;
    op_element element;
    size_t fields[2]; /* offsets in op_case of the spans that are this array */
    int n_fields;
} op_array;

typedef struct op_case {
    char name[128];
    op_kind kind;
    union {
#define OP_FIELD_OF(name) cf_op_##name name;
        CF_GPU_OPS(OP_FIELD_OF)
#undef OP_FIELD_OF
    } op;
    cf_expert_work experts[OP_MAX_EXPERTS]; /* of the expert ops */
    op_array arrays[OP_MAX_ARRAYS];
    int n_arrays;
    cf_rng rng;
} op_case;

/* What a run left in the OUT arrays (NULL for the others). */
typedef struct op_result {
    uint8_t *data[OP_MAX_ARRAYS];
    bool guards_intact;
} op_result;

int op_cases_count(void);
op_case *op_case_create(int index); /* aborts when out of memory */
void op_case_destroy(op_case **c);

/* The array that a span field of this case refers to; NULL for one left out. */
const op_array *op_case_array(const op_case *c, const cf_span *field);

/* Where element (o, k) of a weight lies in its array, in values. */
uint64_t op_weight_index(const cf_weight *w, uint64_t o, uint64_t k);

/* The device has every format that the case's weights and caches are in. */
bool op_case_supported(const op_case *c, const cf_gpu *gpu);

/* The format of the matrices of a case, F32 where it has none. */
cf_format op_case_format(const op_case *c);

/* Rows of the case when an op over them may be split in two (each row is its own), else 0. */
uint32_t op_case_rows(const op_case *c);

/* Uploads, runs (rows [0, split) and the rest as two ops when split > 0) and reads back. */
int op_case_run(const op_case *c, cf_gpu *gpu, uint32_t split, op_result *out, cf_err *err);
void op_result_free(op_result *r);

const char *op_kind_name(op_kind kind);

#endif
