/* What the files of this backend share: the device, its two queues, buffers and programs.
 *
 *   ocl_api.c       libOpenCL, opened at run time
 *   ocl_device.c    devices, open and close, the sticky failure
 *   ocl_memory.c    buffers, in three models of memory
 *   ocl_stream.c    recording, submit and wait
 *   ocl_program.c   programs: built, warmed up, kept on disk
 *   ocl_cache.c     the files of those
 *   ocl_ops.c       ops -> kernels and their parameters
 *   ocl_experts.c   the same, of routed experts
 *   ocl_state.c     the same, of attention with a state, over chosen cells, by distance
 *
 * Threads: see gpu/gpu.h. Beyond it, `program_lock` guards the programs, `failure_lock` the
 * sentence of the first failure, a stream's `lock` the events of its points. */
#ifndef CF_GPU_OPENCL_OCL_H
#define CF_GPU_OPENCL_OCL_H

#include <pthread.h>
#include <stdatomic.h>

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include "gpu/backend.h"
#include "gpu/opencl/kernels/ocl_params.h"
#include "runtime/base/pages.h"

/* ---- ocl_api.c ---- */

#define OCL_FUNCTIONS(X)                                                                           \
    X(clBuildProgram)                                                                              \
    X(clCreateBuffer)                                                                              \
    X(clCreateCommandQueue)                                                                        \
    X(clCreateContext)                                                                             \
    X(clCreateKernel)                                                                              \
    X(clCreateProgramWithBinary)                                                                   \
    X(clCreateProgramWithSource)                                                                   \
    X(clCreateSubDevices)                                                                          \
    X(clEnqueueBarrierWithWaitList)                                                                \
    X(clEnqueueCopyBuffer)                                                                         \
    X(clEnqueueMarkerWithWaitList)                                                                 \
    X(clEnqueueMigrateMemObjects)                                                                  \
    X(clEnqueueNDRangeKernel)                                                                      \
    X(clEnqueueReadBuffer)                                                                         \
    X(clEnqueueWriteBuffer)                                                                        \
    X(clFinish)                                                                                    \
    X(clFlush)                                                                                     \
    X(clGetDeviceIDs)                                                                              \
    X(clGetDeviceInfo)                                                                             \
    X(clGetEventInfo)                                                                              \
    X(clGetPlatformIDs)                                                                            \
    X(clGetProgramBuildInfo)                                                                       \
    X(clGetProgramInfo)                                                                            \
    X(clReleaseCommandQueue)                                                                       \
    X(clReleaseContext)                                                                            \
    X(clReleaseEvent)                                                                              \
    X(clReleaseKernel)                                                                             \
    X(clReleaseMemObject)                                                                          \
    X(clReleaseProgram)                                                                            \
    X(clRetainEvent)                                                                               \
    X(clSetKernelArg)                                                                              \
    X(clWaitForEvents)

/* The functions of libOpenCL, filled once by ocl_api_load; tests put faults here. */
struct ocl_api {
#define OCL_MEMBER(f) __typeof__(&f) f;
    OCL_FUNCTIONS(OCL_MEMBER)
#undef OCL_MEMBER
};
extern struct ocl_api ocl_api;

int ocl_api_load(cf_err *err); /* once a process; any thread */
const char *ocl_status_name(cl_int status);

/* ---- kernels ---- */

/* Kernels that are built together, for one format at a time: what a model does not use is not
 * compiled. */
typedef enum {
    OCL_PRODUCT, /* weights in any format */
    OCL_COLUMNS, /* transposed weights: formats of elements */
    OCL_HEADS,   /* transposed heads: any format */
    OCL_ROWS,
    OCL_KV,    /* formats of caches */
    OCL_PLAIN, /* no format but F32 */
    OCL_CLASS_COUNT
} ocl_kernel_class;

/* name, class, buffers (arguments ahead of the parameters) */
#define OCL_KERNELS(X)                                                                             \
    X(product, OCL_PRODUCT, 10)                                                                    \
    X(linear_t, OCL_COLUMNS, 4)                                                                    \
    X(expert_glu_t, OCL_COLUMNS, 6)                                                                \
    X(expert_down_t, OCL_COLUMNS, 6)                                                               \
    X(head_linear_t, OCL_HEADS, 4)                                                                 \
    X(get_rows, OCL_ROWS, 3)                                                                       \
    X(kv_store, OCL_KV, 3)                                                                         \
    X(attn_latent, OCL_KV, 6)                                                                      \
    X(attn, OCL_KV, 7)                                                                             \
    X(index_score, OCL_KV, 5)                                                                      \
    X(attn_bias, OCL_KV, 7)                                                                        \
    X(norm, OCL_PLAIN, 4)                                                                          \
    X(rope, OCL_PLAIN, 2)                                                                          \
    X(glu, OCL_PLAIN, 3)                                                                           \
    X(map, OCL_PLAIN, 3)                                                                           \
    X(add, OCL_PLAIN, 3)                                                                           \
    X(combine, OCL_PLAIN, 5)                                                                       \
    X(route, OCL_PLAIN, 6)                                                                         \
    X(conv, OCL_PLAIN, 5)                                                                          \
    X(state_gates, OCL_PLAIN, 6)                                                                   \
    X(attn_state, OCL_PLAIN, 8)                                                                    \
    X(gate, OCL_PLAIN, 2)                                                                          \
    X(index_select, OCL_PLAIN, 3)

typedef enum ocl_kernel {
#define OCL_KERNEL_ENUM(name, class, bufs) OCL_KERNEL_##name,
    OCL_KERNELS(OCL_KERNEL_ENUM)
#undef OCL_KERNEL_ENUM
        OCL_KERNEL_COUNT
} ocl_kernel;

enum {
    OCL_RING_SIZE = 64, /* points of a stream whose events are kept; older ones are reached */
    OCL_MAX_BUFS = 10,  /* buffer arguments of a kernel */
    OCL_IMPORT_ALIGN = 4096,
    OCL_VECTOR_FLOATS = 1 << 17 /* room for the vectors in blocks of one launch */
};

/* ---- state ---- */

/* Where a kernel finds what the host wrote. A software device computes on the host's pages and
 * both see every store (COHERENT). An integrated GPU uses them as well, but what the host wrote
 * is handed over by a write of the range onto itself, which OpenCL defines for this and drivers
 * that share memory do not copy for (SHARED). A discrete GPU has memory of its own: host-visible
 * buffers have a copy there, imported pages are a source or target of copies only (SEPARATE). */
typedef enum { OCL_COHERENT, OCL_SHARED, OCL_SEPARATE } ocl_memory_model;

typedef struct ocl_buf {
    cf_gpu_buf base;
    cl_mem mem;     /* NULL: imported pages of a discrete GPU */
    cf_pages pages; /* ours, if any */
} ocl_buf;

typedef struct ocl_point {
    uint64_t value;
    cl_event event;
} ocl_point;

typedef struct ocl_stream {
    cl_command_queue queue;
    uint8_t *batch; /* commands recorded, until their submit */
    uint64_t used, capacity;
    uint64_t submitted;
    _Atomic uint64_t seen; /* a value known to be reached */
    pthread_mutex_t lock;  /* of the ring */
    ocl_point ring[OCL_RING_SIZE];
} ocl_stream;

/* All kernels of one class and format. A kernel object carries its arguments, so each stream has
 * its own. */
typedef struct ocl_program {
    cl_program program;
    cl_kernel kernels[CF_STREAM_COUNT][OCL_KERNEL_COUNT];
    bool ready;
    bool fresh; /* built, and not yet on disk */
} ocl_program;

typedef struct ocl_gpu {
    cf_gpu base;
    cl_device_id device;
    uint32_t compute_units;
    cl_context context;
    ocl_memory_model model;
    bool groups;         /* kernels in the shape for GPUs */
    uint32_t tile_rows;  /* rows of activations of a tile: see kernels/product.cl */
    bool keeps_programs; /* on disk, where the driver does not do so by itself */
    uint32_t max_groups;
    uint64_t heap_limit;
    _Atomic uint64_t heap_used;
    ocl_stream streams[CF_STREAM_COUNT];
    pthread_mutex_t program_lock;
    ocl_program programs[OCL_CLASS_COUNT][CF_FORMAT_COMPUTABLE];
    cf_gpu_buf *vectors[CF_STREAM_COUNT]; /* those in blocks, decoded for the launch behind */
    atomic_int builds, loads; /* programs compiled, and taken from the disk (tests) */
    atomic_bool failed;
    pthread_mutex_t failure_lock;
    cf_err failure;
} ocl_gpu;

static inline ocl_gpu *ocl_of(cf_gpu *gpu)
{
    return (ocl_gpu *)(void *)gpu;
}

/* Items of a work-group: see kernels/common.cl. */
static inline uint32_t ocl_group_size(const ocl_gpu *g)
{
    return g->groups ? 64 : 1;
}

static inline ocl_buf *ocl_buf_of(cf_span s)
{
    return (ocl_buf *)(void *)s.buf;
}

/* For functions with `int rc`, `cf_err *err` and a label `fail:`. */
#define OCL_TRY(call)                                                                              \
    do {                                                                                           \
        cl_int ocl_status = (call);                                                                \
        if (ocl_status != CL_SUCCESS) {                                                            \
            rc = CF_FAIL(err, CF_EDEVICE, "%s: %s", #call, ocl_status_name(ocl_status));           \
            goto fail;                                                                             \
        }                                                                                          \
    } while (0)

/* ---- ocl_device.c ---- */

/* Tests: what a software device is treated as when it is opened next. */
typedef enum { OCL_AS_IT_IS, OCL_AS_INTEGRATED_GPU, OCL_AS_DISCRETE_GPU } ocl_guise;
extern ocl_guise ocl_test_guise;

/* Makes a failure sticky; the first one's sentence stays. Returns its code. */
int ocl_fail(ocl_gpu *g, const cf_err *cause);
/* 0, or the sticky failure's code with its sentence in err. */
int ocl_failed(ocl_gpu *g, cf_err *err);
/* A device's property as text, cut to size; "" where it has none. */
void ocl_device_text(cl_device_id device, cl_device_info what, char *text, size_t size);

/* ---- ocl_memory.c ---- */
int ocl_buf_create(cf_gpu *gpu, cf_buf_kind kind, uint64_t bytes, const char *name,
                   cf_gpu_buf **out, cf_err *err);
int ocl_buf_import(cf_gpu *gpu, void *pages, uint64_t bytes, const char *name, cf_gpu_buf **out,
                   cf_err *err);
void ocl_buf_destroy(cf_gpu_buf *buf);

/* ---- ocl_stream.c ---- */
uint64_t ocl_stream_bytes(cf_stream id); /* taken at open: commands, and decoded vectors */
int ocl_stream_init(ocl_gpu *g, cf_stream id, cf_err *err);
void ocl_stream_finish(ocl_gpu *g, cf_stream id); /* waits; accepts a zeroed one */
/* What a launch reads and writes, declared before it: where the host and the device do not see
 * each other's stores, they are handed over around the launch. */
void ocl_reads(ocl_gpu *g, cf_stream id, cf_span span);
void ocl_writes_after(ocl_gpu *g, cf_stream id, cf_span span);
/* Records a kernel over params->units; bufs as many as OCL_KERNELS says, a NULL one unused. */
void ocl_launch(ocl_gpu *g, cf_stream id, ocl_kernel kernel, cf_format format,
                cf_gpu_buf *const *bufs, const ocl_params *params, uint32_t param_bytes);
void ocl_copy(cf_gpu *gpu, cf_stream stream, cf_span dst, cf_span src);
void ocl_barrier(cf_gpu *gpu, cf_stream stream);
int ocl_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
               uint64_t *value, cf_err *err);
int ocl_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err);
bool ocl_reached(cf_gpu *gpu, cf_gpu_point point);

/* ---- ocl_program.c ---- */
/* The kernel's object for one stream; its program is made on first use. */
int ocl_kernel_get(ocl_gpu *g, cf_stream id, ocl_kernel kernel, cf_format format, cl_kernel *out,
                   cf_err *err);
int ocl_kernel_bufs(ocl_kernel kernel);
/* The driver finds again what it compiled before: PoCL, unless its environment says otherwise. */
bool ocl_driver_keeps_programs(cl_device_id device);
extern bool ocl_test_keeps_programs; /* tests: we do, as if no driver did */
bool ocl_supports(const cf_gpu *gpu, cf_format format);
void ocl_programs_finish(ocl_gpu *g); /* keeps what was built */

/* ---- ocl_cache.c: files of opaque bytes with a checksum; failures are not errors ---- */
/* The file for a key under $XDG_CACHE_HOME or ~/.cache; 0, or -ENOENT without a home. */
int ocl_cache_path(const char *key, char *path, size_t size);
/* A file mapped, not copied: what loads it counts every byte of its memory. */
typedef struct ocl_cache_file {
    void *map;
    size_t map_bytes;
    const uint8_t *data; /* the content */
    size_t bytes;
} ocl_cache_file;
/* False if the file is absent, of another key or damaged. */
bool ocl_cache_open(ocl_cache_file *file, const char *path, const char *key);
void ocl_cache_close(ocl_cache_file *file); /* accepts a zeroed one */
/* Written whole or not at all (temporary name, rename); makes the folders. */
int ocl_cache_write(const char *path, const char *key, const void *data, size_t bytes);

/* ---- ocl_ops.c, ocl_experts.c ---- */
#define OCL_OP_DECLARE(name)                                                                       \
    void ocl_op_##name(cf_gpu *gpu, cf_stream stream, const cf_op_##name *op);
CF_GPU_OPS(OCL_OP_DECLARE)
#undef OCL_OP_DECLARE

#endif
