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

/* Transposed: from output to output, in elements. */
static inline uint32_t matrix_gap(const cf_weight *w)
{
    return w->transposed && w->row_step ? w->row_step : 1;
}

/* What vector.glsl knows as Vector. */
typedef struct vk_vector {
    uint64_t at;
    uint32_t dtype, step;
} vk_vector;

/* What scales.glsl knows as Scales, and SCALES. */
typedef struct vk_scales {
    uint64_t at;
    uint32_t rows, cols, first;
} vk_scales;

static inline vk_scales outer_scales(const cf_weight *w)
{
    if (!w->scale_rows)
        return (vk_scales){0, 1, CF_Q8_GROUP, 0};
    return (vk_scales){span_address(w->scales), w->scale_rows, w->scale_cols, w->row_first};
}

static inline uint32_t scales_kind(const cf_weight *w)
{
    if (!w->scale_rows)
        return 0;
    return w->scale_format == CF_F32    ? 1
           : w->scale_format == CF_F16  ? 2
           : w->scale_format == CF_BF16 ? 3
                                        : 4;
}

/* ---- vk_vectors.c ---- */

/* The vectors that an op has had decoded to F32. */
typedef struct vk_decoded {
    cf_gpu *gpu;
    cf_stream stream;
    uint64_t used; /* of vk_vectors_bytes */
} vk_decoded;

uint64_t vk_vectors_bytes(const cf_gpu_info *info);
bool vk_vector_in_blocks(const cf_weight *w);
/* The vector as vector.glsl reads it, decoded where it is in blocks: call vk_vectors_ready after
 * the last one, before the op's dispatch. */
vk_vector vk_vector_plain(vk_decoded *d, const cf_weight *w);
/* One that an op takes in F32, F16 or BF16 only. */
static inline vk_vector vector_of_elements(const cf_weight *w)
{
    return (vk_vector){weight_address(w), w->dtype, w->transposed ? matrix_step(w) : 1};
}
void vk_vectors_ready(const vk_decoded *d);
/* The codebook of a format, 0 where it has none. */
VkDeviceAddress vk_grid(vk_gpu *vk, cf_stream stream, cf_format format);
/* Rows of a whole weight as F32 to `y` (vk_ops.c). */
void vk_rows_decode(cf_gpu *gpu, cf_stream stream, const cf_weight *w, VkDeviceAddress y);

/* ---- tiles ---- */

/* Group sizes. A GPU wants whole subgroups of any width in use (64); a CPU runs a group on one
 * core, a few lanes at a time, pays for each group, and gains from larger tiles: a lane's load
 * costs it more than arithmetic does. */
enum { FLAT_GROUP = 64, GPU_GROUP = 64, CPU_GROUP = 16 };

/* Whether ops are shaped for a CPU. */
static inline bool cpu_class(const vk_gpu *vk)
{
    return vk->base.info.cpu && !vk_test_as_gpu;
}

static inline uint32_t group_size(const vk_gpu *vk)
{
    return cpu_class(vk) ? CPU_GROUP : GPU_GROUP;
}

/* How dot_tile.glsl is shaped on a kind of device. */
typedef struct vk_tile_class {
    uint32_t group;     /* invocations of a work-group, a power of two */
    uint32_t parts;     /* most of them that share a row */
    uint32_t rows;      /* outputs of an invocation, for few activation rows */
    uint32_t rows_many; /* for four of them and more: code that is not too large to compile */
    uint32_t tokens;    /* most activation rows of a tile, a power of two */
    uint32_t blocks;    /* of 8 outputs of an invocation, on transposed weights */
    uint32_t many;      /* activation rows from which dot_many.glsl pays; 0: never */
} vk_tile_class;

static inline const vk_tile_class *tile_class(const vk_gpu *vk)
{
    static const vk_tile_class gpu = {GPU_GROUP, 64, 4, 4, 8, 1, 17},
                               cpu = {CPU_GROUP, 16, 8, 4, 8, 4, 0};
    return cpu_class(vk) ? &cpu : &gpu;
}

/* Values that a shader takes of a row at once: W_UNIT of weight.glsl. */
static inline uint32_t format_unit(cf_format f)
{
    return f <= CF_BF16 ? 8 : 32;
}

/* R, T, PARTS and MANY of dot_tile.glsl. PARTS depends on the columns, never on the rows of an op. */
typedef struct vk_tile {
    uint32_t outputs, rows, parts, many;
} vk_tile;

enum { MANY_ROWS = 32 };

static inline uint32_t tile_rows(const vk_gpu *vk, uint32_t n_rows)
{
    uint32_t t = 1;
    while (t < n_rows && t < tile_class(vk)->tokens)
        t *= 2;
    return t;
}

/* Transposed: the parts that leave a GPU's neighbours whole lines, and a CPU long runs of a column,
 * which lie in pages of their own. */
static inline vk_tile tile_transposed(const vk_gpu *vk, const cf_weight *w, uint32_t n_rows)
{
    const vk_tile_class *c = tile_class(vk);
    vk_tile t = {0, tile_rows(vk, n_rows), 8, false};
    uint32_t blocks = 1;
    if (cpu_class(vk) && w->rows >= 16 * c->group)
        t.parts = 1;
    while (blocks < c->blocks && blocks * t.rows < 8 && w->rows >= blocks * 64 * c->group)
        blocks *= 2;
    t.outputs = blocks * 8 * c->group / t.parts;
    return t;
}

static inline vk_tile tile_of(const vk_gpu *vk, const cf_weight *w, uint32_t n_rows)
{
    const vk_tile_class *c = tile_class(vk);
    vk_tile t = {0, tile_rows(vk, n_rows), 1, false};
    if (w->transposed)
        return tile_transposed(vk, w, n_rows);
    while (t.parts < c->parts && t.parts * 2 * format_unit(w->dtype) <= w->cols)
        t.parts *= 2;
    t.outputs = (t.rows < 4 ? c->rows : c->rows_many) * c->group / t.parts;
    t.many = c->many && n_rows >= c->many;
    if (t.many) {
        t.outputs = c->group;
        t.rows = MANY_ROWS;
    }
    return t;
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

/* The same of cells; blocks may lie anywhere. */
static inline bool aligned_cache(cf_format t, VkDeviceAddress address)
{
    return t == CF_Q8_0 || aligned16(address);
}

/* Every row is of whole units, and starts at 16 bytes where the format promises that; transposed,
 * every column of outputs. */
static inline bool aligned_matrix(const cf_weight *w)
{
    if (w->transposed)
        return aligned16(weight_address(w)) && w->rows % 8 == 0 && matrix_step(w) % 8 == 0;
    return w->cols % format_unit(w->dtype) == 0 &&
           (w->dtype > CF_BF16 || aligned16(weight_address(w)));
}

/* The same of W and of x, which transposed weights meet one element at a time unless they round it
 * (q8). */
static inline uint32_t aligned_rows(const cf_weight *w, VkDeviceAddress x, uint64_t x_stride,
                                    uint64_t x_head_stride, bool q8)
{
    bool x_met = !w->transposed || q8;
    return aligned_matrix(w) && (!x_met || (aligned16(x) && w->cols % 8 == 0 && x_stride % 4 == 0 &&
                                            x_head_stride % 4 == 0));
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
