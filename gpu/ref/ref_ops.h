/* The reference ops as plain functions: the definition of gpu/ops.h, run at once.
 *
 * Work is split over `pool` (NULL: the caller alone) by output elements or rows, so no result
 * depends on the number of threads. What only the device sees (cells, ids, pairs) is asserted. */
#ifndef CF_GPU_REF_OPS_H
#define CF_GPU_REF_OPS_H

#include "gpu/ops.h"
#include "runtime/base/threads.h"

#define CF_REF_OP(name) void cf_ref_##name(cf_threads *pool, const cf_op_##name *op);
CF_GPU_OPS(CF_REF_OP)
#undef CF_REF_OP

/* The host address of a span; the type is the reader's. */
static inline void *cf_ref_at(cf_span s)
{
    return s.buf->host + s.off;
}

/* Row `row` of a plain weight as stored. */
static inline const void *cf_ref_weight_row(const cf_weight *w, uint64_t row)
{
    uint64_t stored = w->row_first + row * (w->row_step ? w->row_step : 1);
    return (const uint8_t *)cf_ref_at(w->span) + stored * cf_format_row_bytes(w->dtype, w->cols);
}

#endif
