/* What ops are made of, shared by ocl_ops.c and ocl_experts.c: launches, layouts, units of work.
 * Pure functions of an op and the kind of device, but for what they record. */
#ifndef CF_GPU_OPENCL_OCL_OPS_H
#define CF_GPU_OPENCL_OCL_OPS_H

#include "gpu/opencl/ocl.h"
#include "runtime/base/align.h"

#define LAUNCH(g, stream, kernel, format, bufs, params)                                            \
    ocl_launch((g), (stream), OCL_KERNEL_##kernel, (format), (bufs),                               \
               (const ocl_params *)(const void *)(params), sizeof *(params))

/* From output to output, in stored rows; or transposed: from column to column, in elements. */
static inline uint32_t matrix_step(const cf_weight *w)
{
    if (w->transposed)
        return w->stride ? w->stride : w->rows;
    return w->row_step ? w->row_step : 1;
}

/* Bytes of the buffer before row 0, or before output 0 of a transposed matrix. */
static inline uint64_t weight_off(const cf_weight *w)
{
    uint64_t unit = w->transposed ? 1 : w->cols;
    return w->span.off + w->row_first * cf_format_row_bytes(w->dtype, unit);
}

static inline ocl_vector vector(const cf_weight *w)
{
    if (!w->span.buf)
        return (ocl_vector){.format = OCL_NO_VECTOR};
    return (ocl_vector){weight_off(w), (uint32_t)w->dtype, w->transposed ? matrix_step(w) : 1};
}

/* From its first to its last byte; none is fine. */
static inline void reads_weight(ocl_gpu *g, cf_stream stream, const cf_weight *w)
{
    uint64_t unit = w->transposed ? 1 : w->cols;
    uint64_t last = w->transposed ? (uint64_t)(w->cols - 1) * matrix_step(w) + w->rows
                                  : (uint64_t)(w->rows - 1) * matrix_step(w) + 1;
    if (w->span.buf)
        ocl_reads(g, stream,
                  cf_span_sub(w->span, weight_off(w) - w->span.off,
                              last * cf_format_row_bytes(w->dtype, unit)));
}

/* Of a core's cache, for the weight rows that one item takes all activation rows through. */
enum { UNIT_WEIGHT_BYTES = 256 * 1024 };

/* Weight rows of a unit, a multiple of `step`: one tile on a GPU; on a CPU what stays in a cache
 * while the activations pass, but few enough that all threads get some of `outputs`. */
static inline uint32_t unit_rows(const ocl_gpu *g, uint64_t outputs, uint64_t row_bytes,
                                 uint32_t step)
{
    if (g->groups)
        return step;
    uint64_t fit = UNIT_WEIGHT_BYTES / row_bytes, share = outputs / g->max_groups;
    return (uint32_t)cf_align_up(cf_max_u64(1, cf_min_u64(fit, share)), step);
}

/* Units that n columns of kernels/columns.cl make. */
static inline uint64_t column_units(const ocl_gpu *g, uint64_t n)
{
    uint32_t size = ocl_group_size(g);
    return cf_ceil_div(n, (uint64_t)size * OCL_T_COLUMNS(size));
}

static inline uint64_t chunks(const ocl_gpu *g, uint64_t n)
{
    return cf_ceil_div(n, OCL_CHUNK(ocl_group_size(g)));
}

#endif
