/* What ops are made of, shared by vk_ops.c and vk_attention.c: addresses, layouts, group sizes,
 * tiles and grids. Pure functions of an op and the kind of device. */
#ifndef CF_GPU_VULKAN_VK_OPS_H
#define CF_GPU_VULKAN_VK_OPS_H

#include "gpu/vulkan/vk.h"
#include "runtime/base/align.h"

static inline VkDeviceAddress span_address(cf_span s)
{
    return s.buf ? ((const vk_buf *)(const void *)s.buf)->address + s.off : 0;
}

/* Address of row 0, or of output 0 of a transposed matrix; 0 without one. */
static inline VkDeviceAddress weight_address(const cf_weight *w)
{
    uint64_t unit = w->transposed ? 1 : w->cols;
    return w->span.buf ? span_address(w->span) + w->row_first * cf_format_row_bytes(w->dtype, unit)
                       : 0;
}

/* From output to output, in stored rows; or transposed: from column to column, in elements. */
static inline uint32_t matrix_step(const cf_weight *w)
{
    if (w->transposed)
        return w->stride ? w->stride : w->rows;
    return w->row_step ? w->row_step : 1;
}

/* What vector.glsl knows as Vector. */
typedef struct vk_vector {
    uint64_t at;
    uint32_t dtype, step;
} vk_vector;

static inline vk_vector vector(const cf_weight *w)
{
    return (vk_vector){weight_address(w), w->dtype, w->transposed ? matrix_step(w) : 1};
}

/* Group sizes. A GPU wants whole subgroups of any width in use (64); a CPU runs a group on one
 * core, a few lanes at a time, pays for each group, and gains from larger tiles: a lane's load
 * costs it more than arithmetic does. */
enum { FLAT_GROUP = 64, GPU_GROUP = 64, CPU_GROUP = 16 };

static inline uint32_t group_size(const vk_gpu *vk)
{
    return vk->base.info.cpu ? CPU_GROUP : GPU_GROUP;
}

/* Outputs of a work-group of dot_tile.glsl (a multiple of 16 when transposed: gate and up take half
 * each), and rows. */
static inline uint32_t tile_outputs(const vk_gpu *vk, bool transposed)
{
    if (transposed)
        return vk->base.info.cpu ? 16 : 64;
    return vk->base.info.cpu ? 8 : 4;
}

static inline uint32_t tile_rows(const vk_gpu *vk, uint32_t n_rows)
{
    if (n_rows == 1)
        return 1;
    return vk->base.info.cpu ? 8 : 4;
}

static inline uint32_t tiles(uint64_t n, uint32_t size)
{
    uint64_t count = cf_ceil_div(n, size);
    cf_assert(count <= UINT32_MAX);
    return (uint32_t)count;
}

/* A count of groups beyond what one dimension surely takes goes over x and y; the shaders put
 * it together again (group_index) and ignore the surplus. */
static inline void grid_split(uint32_t groups, uint32_t *x, uint32_t *y)
{
    const uint32_t most = 32768;
    *x = groups < most ? groups : most;
    *y = groups ? tiles(groups, most) : 0;
}

/* What a 128-bit load needs: see ALIGNED in weight.glsl. */
static inline bool aligned16(VkDeviceAddress address)
{
    return address % 16 == 0;
}

/* Every row of W starts at 16 bytes and is of whole blocks; transposed, every column of outputs. */
static inline bool aligned_matrix(const cf_weight *w)
{
    uint32_t step = w->transposed ? matrix_step(w) : 8, n = w->transposed ? w->rows : w->cols;
    return aligned16(weight_address(w)) && n % 8 == 0 && step % 8 == 0;
}

/* The same of W and of x, which transposed weights meet one element at a time. */
static inline uint32_t aligned_rows(const cf_weight *w, VkDeviceAddress x, uint64_t x_stride,
                                    uint64_t x_head_stride)
{
    return aligned_matrix(w) &&
           (w->transposed || (aligned16(x) && x_stride % 4 == 0 && x_head_stride % 4 == 0));
}

static inline void dispatch_split(cf_gpu *gpu, cf_stream stream, enum vk_shader shader,
                                  cf_format format, const uint32_t *spec, const void *push,
                                  uint32_t push_bytes, uint32_t groups, uint32_t z)
{
    uint32_t x, y;
    grid_split(groups, &x, &y);
    vk_dispatch(vk_of(gpu), stream, shader, format, spec, push, push_bytes, x, y, z);
}

#endif
