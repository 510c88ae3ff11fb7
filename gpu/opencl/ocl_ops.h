/* What ops are made of, shared by ocl_ops.c and ocl_experts.c: launches, layouts, units of work.
 * Pure functions of an op and the kind of device, but for what they record. */
#ifndef CF_GPU_OPENCL_OCL_OPS_H
#define CF_GPU_OPENCL_OCL_OPS_H

#include "gpu/opencl/ocl.h"
#include "runtime/base/align.h"

#define LAUNCH(g, stream, kernel, format, bufs, params)                                            \
    ocl_launch((g), (stream), OCL_KERNEL_##kernel, (format), (bufs),                               \
               (const ocl_params *)(const void *)(params), sizeof *(params))

/* Of a transposed matrix: elements from column to column. */
static inline uint32_t matrix_stride(const cf_weight *w)
{
    return w->stride ? w->stride : w->rows;
}

/* From output to output, in stored rows; transposed: in elements. */
static inline uint32_t row_step(const cf_weight *w)
{
    return w->row_step ? w->row_step : 1;
}

/* Bytes of the buffer before row 0, or before output 0 of a transposed matrix. */
static inline uint64_t weight_off(const cf_weight *w)
{
    uint64_t unit = w->transposed ? 1 : w->cols;
    return w->span.off + w->row_first * cf_format_row_bytes(w->dtype, unit);
}

/* An offset in the units of a job's table. */
static inline uint32_t place_of(uint64_t off)
{
    cf_assert(off % 16 == 0 && off / 16 <= UINT32_MAX);
    return (uint32_t)(off / 16);
}

static inline uint32_t weight_place(const cf_weight *w)
{
    return place_of(w->span.off);
}

static inline uint32_t scales_place(const cf_weight *w)
{
    return w->scale_rows ? place_of(w->scales.off) : 0;
}

/* A bias, gain or sink for a launch: in formats of elements where it is, in blocks decoded ahead of
 * it. `room`: floats so taken by this launch, 0 at first. */
typedef struct vector_at {
    ocl_vector v;
    cf_gpu_buf *buf;
} vector_at;
vector_at vector_get(ocl_gpu *g, cf_stream stream, const cf_weight *w, uint64_t *room);

/* Shape, layout, outer scales and units of the products of `jobs` matrices like w (and, beside
 * each, one like up, or NULL). */
void product_shape(const ocl_gpu *g, ocl_product_params *p, const cf_weight *w, const cf_weight *up,
                   uint32_t jobs);

/* From its first to its last byte, outer scales as well; none is fine. */
static inline void reads_weight(ocl_gpu *g, cf_stream stream, const cf_weight *w)
{
    if (!w->span.buf)
        return;
    uint64_t unit = w->transposed ? 1 : w->cols, rows = w->rows - 1;
    uint64_t last = w->transposed
                        ? (uint64_t)(w->cols - 1) * matrix_stride(w) + rows * row_step(w) + 1
                        : rows * row_step(w) + 1;
    ocl_reads(g, stream,
              cf_span_sub(w->span, weight_off(w) - w->span.off,
                          last * cf_format_row_bytes(w->dtype, unit)));
    if (w->scale_rows)
        ocl_reads(g, stream, w->scales);
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
