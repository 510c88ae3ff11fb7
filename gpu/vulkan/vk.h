/* What the files of this backend share: the device, its queues, streams, buffers and pipelines.
 *
 *   vk_context.c   instance, choice of a device, open and close, the sticky failure
 *   vk_memory.c    buffers
 *   vk_stream.c    command buffers, timelines, submit and wait, upload blocks
 *   vk_pipeline.c  shaders, pipelines, dispatch
 *   vk_cache.c     the pipeline cache file
 *   vk_ops.c       ops -> push constants and grids
 *   vk_experts.c   the same for experts
 *   vk_attention.c the same for attention
 *   vk_vectors.c   vectors stored in blocks, codebooks
 *
 * Threads: see gpu/gpu.h. Beyond it, `queue.lock` guards each VkQueue, `pipeline_lock` the
 * pipelines, `failure_lock` the sentence of the first failure. */
#ifndef CF_GPU_VULKAN_VK_H
#define CF_GPU_VULKAN_VK_H

#include <pthread.h>
#include <stdatomic.h>

#include <volk.h>

#include "gpu/backend.h"
#include "gpu/vulkan/shaders/vk_shader_ops.inc"

enum vk_shader {
#define VK_SHADER_ENUM(name) VK_SHADER_##name,
    VK_SHADER_OPS(VK_SHADER_ENUM)
#undef VK_SHADER_ENUM
        VK_SHADER_COUNT
};

enum {
    VK_RING_SIZE = 64,       /* batches of a stream in flight before recording waits */
    VK_UPLOAD_BLOCKS = 8,    /* host-visible blocks for the tables of the expert ops */
    VK_UPLOAD_BYTES = 65536, /* of one block */
    VK_MAX_SPEC = 12,        /* specialisation constants of a shader; [0] is the group size */
    VK_MAX_PUSH_BYTES = 128
};

typedef struct vk_buf {
    cf_gpu_buf base;
    VkBuffer buffer;
    VkDeviceMemory memory;
    VkDeviceAddress address;
    uint64_t heap_bytes; /* counted against the heap; 0 when imported */
    uint32_t heap;
} vk_buf;

typedef struct vk_queue {
    VkQueue queue;
    uint32_t family;
    pthread_mutex_t lock;
} vk_queue;

/* A command buffer and the point that its batch signals: free again once that is reached. */
typedef struct vk_batch {
    VkCommandBuffer cmd;
    uint64_t value;
} vk_batch;

typedef struct vk_stream {
    vk_queue *queue;
    VkCommandPool pool;
    VkSemaphore timeline;
    VkPipelineStageFlags stages; /* that this queue knows, of compute and transfer */
    VkAccessFlags reads, writes;
    vk_batch ring[VK_RING_SIZE];
    uint64_t submitted;    /* value of the last batch; the open one gets the next */
    _Atomic uint64_t seen; /* a value known to be reached: saves the driver call */
    VkCommandBuffer open;  /* NULL: nothing recorded since the last submit */
    VkPipeline bound;      /* in the open batch */
    vk_buf *upload_buf;    /* of the compute stream: blocks for the tables of its ops, in turn */
    uint64_t upload_value[VK_UPLOAD_BLOCKS]; /* the last batch that reads each */
    uint32_t upload_block;
    uint64_t upload_used; /* of the current block */
    vk_buf *scratch; /* of the compute stream: what attention leaves between its dispatches; then
                      * what vk_vectors.c keeps */
} vk_stream;

/* One specialisation of one shader. */
typedef struct vk_pipeline {
    struct vk_pipeline *next;
    uint32_t spec[VK_MAX_SPEC];
    VkPipeline pipeline;
} vk_pipeline;

typedef struct vk_gpu {
    cf_gpu base;
    VkInstance instance;
    VkDebugUtilsMessengerEXT messenger;
    PFN_vkSetDebugUtilsObjectNameEXT set_name; /* NULL unless checking */
    VkPhysicalDevice physical;
    VkPhysicalDeviceProperties props;
    VkPhysicalDeviceMemoryProperties memory;
    uint8_t uuid[VK_UUID_SIZE];
    bool dots, dots_fast; /* packed integer products: in shaders; accelerated */
    uint64_t max_alloc_bytes;
    uint64_t heap_limit[VK_MAX_MEMORY_HEAPS];
    _Atomic uint64_t heap_used[VK_MAX_MEMORY_HEAPS];
    VkDevice device;
    struct VolkDeviceTable fn;
    vk_queue queues[CF_STREAM_COUNT]; /* [1] is used with a transfer queue of its own */
    int n_queues;
    vk_stream streams[CF_STREAM_COUNT];
    VkPipelineLayout layout;
    VkPipelineCache cache;
    VkShaderModule modules[VK_SHADER_COUNT][CF_FORMAT_COMPUTABLE];
    vk_pipeline *pipelines[VK_SHADER_COUNT][CF_FORMAT_COMPUTABLE];
    pthread_mutex_t pipeline_lock;
    bool grids_written;  /* the codebooks of vk_vectors.c: by a batch of the compute stream */
    bool pipelines_made; /* since open: the cache file is worth writing */
    atomic_int messages; /* of the validation layer */
    atomic_bool failed;
    pthread_mutex_t failure_lock;
    cf_err failure;
} vk_gpu;

static inline vk_gpu *vk_of(cf_gpu *gpu)
{
    return (vk_gpu *)(void *)gpu;
}

/* For functions with `int rc`, `cf_err *err` and a label `fail:`. */
#define VK_TRY(call)                                                                               \
    do {                                                                                           \
        VkResult vk_result = (call);                                                               \
        if (vk_result != VK_SUCCESS) {                                                             \
            rc = CF_FAIL(err, CF_EDEVICE, "%s: %s", #call, vk_result_name(vk_result));             \
            goto fail;                                                                             \
        }                                                                                          \
    } while (0)

/* ---- vk_context.c ---- */
const char *vk_result_name(VkResult r);
/* Makes a failure sticky; the first one's sentence stays. Returns its code. */
int vk_fail(vk_gpu *vk, const cf_err *cause);
/* 0, or the sticky failure's code with its sentence in err. */
int vk_failed(vk_gpu *vk, cf_err *err);
void vk_name(vk_gpu *vk, VkObjectType type, uint64_t handle, const char *name);

/* ---- vk_memory.c ---- */
int vk_buf_create(cf_gpu *gpu, cf_buf_kind kind, uint64_t bytes, const char *name, cf_gpu_buf **out,
                  cf_err *err);
int vk_buf_import(cf_gpu *gpu, void *pages, uint64_t bytes, const char *name, cf_gpu_buf **out,
                  cf_err *err);
void vk_buf_destroy(cf_gpu_buf *buf);

/* ---- vk_stream.c ---- */
int vk_stream_init(vk_gpu *vk, cf_stream id, vk_queue *queue, bool compute, cf_err *err);
void vk_stream_finish(vk_gpu *vk, cf_stream id); /* the device is idle; accepts a zeroed one */
/* The command buffer of the open batch; NULL once the device has failed. */
VkCommandBuffer vk_stream_cmd(vk_gpu *vk, cf_stream id);
/* Copies `bytes` (<= VK_UPLOAD_BYTES) to where the open batch can read them; 0 on failure. */
VkDeviceAddress vk_stream_upload(vk_gpu *vk, cf_stream id, const void *data, uint64_t bytes);
/* Bytes of the scratch of a device, and where the compute stream's is: ops that use it put barriers
 * around their use. */
uint64_t vk_scratch_bytes(const cf_gpu_info *info);     /* the attention's part, at its beginning */
uint64_t vk_scratch_all_bytes(const cf_gpu_info *info); /* vk_vectors.c */
VkDeviceAddress vk_stream_scratch(const vk_gpu *vk, cf_stream id);
VkBuffer vk_stream_scratch_buffer(const vk_gpu *vk, cf_stream id);
void vk_copy(cf_gpu *gpu, cf_stream stream, cf_span dst, cf_span src);
void vk_barrier(cf_gpu *gpu, cf_stream stream);
int vk_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
              uint64_t *value, cf_err *err);
int vk_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err);
bool vk_reached(cf_gpu *gpu, cf_gpu_point point);

/* Tests: a CPU device takes the shapes of a GPU. Set before recording. llvmpipe's limit on loops
 * (vk_attention.c) then bounds the sizes that may be tried. */
extern bool vk_test_as_gpu;
/* Tests and benches: products of integers on whatever device has them, or on none. */
enum vk_integers { VK_INTEGERS_BY_DEVICE, VK_INTEGERS_ALWAYS, VK_INTEGERS_NEVER };
extern enum vk_integers vk_test_integers;

/* ---- vk_pipeline.c ---- */
int vk_pipelines_init(vk_gpu *vk, cf_err *err);
void vk_pipelines_finish(vk_gpu *vk);
/* Each shader on weights is there for the format. */
bool vk_supports(const cf_gpu *gpu, cf_format format);
/* The shader for products of w with x: `integers`, the variant of `floats` that sums integers,
 * where x is rounded (x_q8), the format has codes and the device is worth it. */
enum vk_shader vk_dot_shader(const vk_gpu *vk, enum vk_shader floats, enum vk_shader integers,
                             const cf_weight *w, bool x_q8);
/* Binds the shader, made on first use, and records x * y * z groups. spec holds VK_MAX_SPEC
 * values, unused ones 0. */
void vk_dispatch(vk_gpu *vk, cf_stream stream, enum vk_shader shader, cf_format format,
                 const uint32_t *spec, const void *push, uint32_t push_bytes, uint32_t x,
                 uint32_t y, uint32_t z);

/* ---- vk_cache.c: files of opaque bytes with a checksum; failures are not errors ---- */
/* The file for a device under $XDG_CACHE_HOME or ~/.cache; 0, or -ENOENT without a home. */
int vk_cache_path(const uint8_t uuid[VK_UUID_SIZE], uint32_t driver, char *path, size_t size);
/* The content, for free(); NULL if the file is absent, foreign or damaged. */
void *vk_cache_read(const char *path, size_t *bytes);
/* Written whole or not at all (temporary name, rename); makes the folders. */
int vk_cache_write(const char *path, const void *data, size_t bytes);

/* ---- vk_ops.c, vk_attention.c ---- */
#define VK_OP_DECLARE(name)                                                                        \
    void vk_op_##name(cf_gpu *gpu, cf_stream stream, const cf_op_##name *op);
CF_GPU_OPS(VK_OP_DECLARE)
#undef VK_OP_DECLARE

#endif
