/* Programs: the kernels of one class for one format, built on first use and kept on disk.
 *
 * The first build on a machine takes seconds. After it every kernel runs once, over no work:
 * drivers that compile for a work-group size at the first launch have the result in the binary
 * then. That is saved at close, when nobody waits and no budget counts. The key names device,
 * driver, sources and options, the file carries our own checksum (ocl_cache.c), and what fails to
 * load is built again.
 *
 * PoCL keeps what it compiles by itself, kernel by kernel as they are launched, and for a binary
 * compiles each once more, for any work-group size: there we do neither.
 *
 * Threads: any; `program_lock`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "gpu/opencl/ocl.h"
#include "runtime/base/log.h"

static const char params_h[] =
#include "gpu/opencl/kernels/ocl_params.h.inc"
    ;
static const char common_cl[] =
#include "gpu/opencl/kernels/common.cl.inc"
    ;
static const char vector_cl[] =
#include "gpu/opencl/kernels/vector.cl.inc"
    ;
static const char act_cl[] =
#include "gpu/opencl/kernels/act.cl.inc"
    ;
static const char codes_cl[] =
#include "gpu/opencl/kernels/codes.cl.inc"
    ;
static const char grids_cl[] =
#include "gpu/opencl/kernels/grids.cl.inc"
    ;
static const char format_f32_cl[] =
#include "gpu/opencl/kernels/format_f32.cl.inc"
    ;
static const char format_f16_cl[] =
#include "gpu/opencl/kernels/format_f16.cl.inc"
    ;
static const char format_bf16_cl[] =
#include "gpu/opencl/kernels/format_bf16.cl.inc"
    ;
static const char formats_small_cl[] =
#include "gpu/opencl/kernels/formats_small.cl.inc"
    ;
static const char formats_32_cl[] =
#include "gpu/opencl/kernels/formats_32.cl.inc"
    ;
static const char formats_k_cl[] =
#include "gpu/opencl/kernels/formats_k.cl.inc"
    ;
static const char formats_iq_cl[] =
#include "gpu/opencl/kernels/formats_iq.cl.inc"
    ;
static const char dot_cl[] =
#include "gpu/opencl/kernels/dot.cl.inc"
    ;
static const char product_cl[] =
#include "gpu/opencl/kernels/product.cl.inc"
    ;
static const char columns_cl[] =
#include "gpu/opencl/kernels/columns.cl.inc"
    ;
static const char linear_t_cl[] =
#include "gpu/opencl/kernels/linear_t.cl.inc"
    ;
static const char experts_t_cl[] =
#include "gpu/opencl/kernels/experts_t.cl.inc"
    ;
static const char head_linear_t_cl[] =
#include "gpu/opencl/kernels/head_linear_t.cl.inc"
    ;
static const char rows_cl[] =
#include "gpu/opencl/kernels/rows.cl.inc"
    ;
static const char tile_cl[] =
#include "gpu/opencl/kernels/tile.cl.inc"
    ;
static const char kv_cl[] =
#include "gpu/opencl/kernels/kv.cl.inc"
    ;
static const char elementwise_cl[] =
#include "gpu/opencl/kernels/elementwise.cl.inc"
    ;
static const char norm_cl[] =
#include "gpu/opencl/kernels/norm.cl.inc"
    ;
static const char route_cl[] =
#include "gpu/opencl/kernels/route.cl.inc"
    ;
static const char state_cl[] =
#include "gpu/opencl/kernels/state.cl.inc"
    ;

/* How a format is decoded: up to three sources ahead of dot.cl. */
#define ELEMENTS(source)                                                                           \
    {                                                                                              \
        source                                                                                     \
    }
#define BLOCKS(source)                                                                             \
    {                                                                                              \
        codes_cl, source                                                                           \
    }
#define CODEBOOK                                                                                   \
    {                                                                                              \
        codes_cl, grids_cl, formats_iq_cl                                                          \
    }
static const char *const formats[CF_FORMAT_COMPUTABLE][3] = {
    [CF_F32] = ELEMENTS(format_f32_cl),
    [CF_F16] = ELEMENTS(format_f16_cl),
    [CF_BF16] = ELEMENTS(format_bf16_cl),
    [CF_F8_E4M3] = BLOCKS(formats_small_cl),
    [CF_F4_E2M1] = BLOCKS(formats_small_cl),
    [CF_I4] = BLOCKS(formats_small_cl),
    [CF_Q4_0] = BLOCKS(formats_32_cl),
    [CF_Q4_1] = BLOCKS(formats_32_cl),
    [CF_Q5_0] = BLOCKS(formats_32_cl),
    [CF_Q5_1] = BLOCKS(formats_32_cl),
    [CF_Q8_0] = BLOCKS(formats_32_cl),
    [CF_IQ4_NL] = BLOCKS(formats_32_cl),
    [CF_MXFP4] = BLOCKS(formats_32_cl),
    [CF_NVFP4] = BLOCKS(formats_32_cl),
    [CF_Q2_K] = BLOCKS(formats_k_cl),
    [CF_Q3_K] = BLOCKS(formats_k_cl),
    [CF_Q4_K] = BLOCKS(formats_k_cl),
    [CF_Q5_K] = BLOCKS(formats_k_cl),
    [CF_Q6_K] = BLOCKS(formats_k_cl),
    [CF_IQ4_XS] = BLOCKS(formats_k_cl),
    [CF_IQ1_S] = CODEBOOK,
    [CF_IQ1_M] = CODEBOOK,
    [CF_IQ2_XXS] = CODEBOOK,
    [CF_IQ2_XS] = CODEBOOK,
    [CF_IQ2_S] = CODEBOOK,
    [CF_IQ3_XXS] = CODEBOOK,
    [CF_IQ3_S] = CODEBOOK,
};

/* What the kernels of a class are made of, behind the format, and their options. */
static const struct {
    const char *sources[5], *options;
    bool decodes; /* weights of a format */
} classes[OCL_CLASS_COUNT] = {
    [OCL_PRODUCT] = {{dot_cl, product_cl}, " -DSTRETCHES", true},
    [OCL_COLUMNS] = {{dot_cl, columns_cl, linear_t_cl, experts_t_cl}, "", true},
    [OCL_HEADS] = {{dot_cl, columns_cl, head_linear_t_cl}, "", true},
    [OCL_ROWS] = {{dot_cl, rows_cl}, "", true},
    [OCL_KV] = {{dot_cl, tile_cl, kv_cl}, "", true},
    [OCL_PLAIN] = {{elementwise_cl, norm_cl, route_cl, state_cl}, "", false},
};

static const struct {
    const char *name;
    ocl_kernel_class class;
    int bufs;
    uint32_t param_bytes;
} kernels[OCL_KERNEL_COUNT] = {
#define KERNEL_ROW(name, class, bufs) {#name, class, bufs, sizeof(ocl_##name##_params)},
    OCL_KERNELS(KERNEL_ROW)
#undef KERNEL_ROW
};

enum { MAX_SOURCES = 20, KEY_SIZE = 1024, LOG_SIZE = 4096, DUMMY_BYTES = 4096, PATH_SIZE = 4096 };

/* All arguments of a launch: what every device takes. */
_Static_assert(sizeof(ocl_product_params) + OCL_MAX_BUFS * sizeof(cl_mem) <= 1024, "arguments");
_Static_assert(sizeof(ocl_product_params) >= sizeof(ocl_expert_glu_t_params) &&
                   sizeof(ocl_product_params) >= sizeof(ocl_expert_down_t_params),
               "the largest parameters");

/* What a program is made of. */
typedef struct recipe {
    const char *sources[MAX_SOURCES];
    cl_uint n_sources;
    char options[256], key[KEY_SIZE];
} recipe;

int ocl_kernel_bufs(ocl_kernel kernel)
{
    return kernels[kernel].bufs;
}

bool ocl_test_keeps_programs;

bool ocl_driver_keeps_programs(cl_device_id device)
{
    char version[256];
    const char *cache = getenv("POCL_KERNEL_CACHE");
    ocl_device_text(device, CL_DEVICE_VERSION, version, sizeof version);
    return strstr(version, "PoCL") && !(cache && strcmp(cache, "0") == 0) &&
           !ocl_test_keeps_programs;
}

bool ocl_supports(const cf_gpu *gpu, cf_format format)
{
    (void)gpu;
    return cf_format_computable(format);
}

/* A kernel of this class has a variant for the format. */
static bool class_has(ocl_kernel_class class, cf_format format)
{
    switch (class) {
    case OCL_PRODUCT:
    case OCL_HEADS:
    case OCL_ROWS:
        return true;
    case OCL_COLUMNS:
        return cf_formats[format].block_values == 1;
    case OCL_KV:
        return format == CF_F32 || format == CF_F16 || format == CF_Q8_0;
    case OCL_PLAIN:
    case OCL_CLASS_COUNT:
        break;
    }
    return format == CF_F32;
}

static void source_add(recipe *r, const char *source, XXH64_hash_t *hash)
{
    if (!source)
        return;
    *hash = XXH3_64bits_withSeed(source, strlen(source), *hash);
    r->sources[r->n_sources++] = source;
}

static void recipe_make(recipe *r, const ocl_gpu *g, ocl_kernel_class class, cf_format format)
{
    const char *shared[] = {params_h, common_cl, vector_cl, act_cl};
    XXH64_hash_t hash = 0;
    r->n_sources = 0;
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
        source_add(r, shared[i], &hash);
    for (size_t i = 0; i < 3 && classes[class].decodes; i++)
        source_add(r, formats[format][i], &hash);
    for (size_t i = 0; i < sizeof classes->sources / sizeof *classes->sources; i++)
        source_add(r, classes[class].sources[i], &hash);
    snprintf(r->options, sizeof r->options,
             "-cl-std=CL1.2 -DWG=%u -DTILE_T=%u -DFORMAT_%s -DW_VALUES=%u -DW_BYTES=%u%s",
             ocl_group_size(g), g->tile_rows, cf_format_name(format),
             (unsigned)cf_formats[format].block_values, (unsigned)cf_formats[format].block_bytes,
             classes[class].options);
    char name[256], driver[128], version[256];
    ocl_device_text(g->device, CL_DEVICE_NAME, name, sizeof name);
    ocl_device_text(g->device, CL_DRIVER_VERSION, driver, sizeof driver);
    ocl_device_text(g->device, CL_DEVICE_VERSION, version, sizeof version);
    snprintf(r->key, sizeof r->key, "%s|%s|%s|%016llx|%d|%s", name, version, driver,
             (unsigned long long)hash, (int)class, r->options);
}

/* ---- building ---- */

/* Into err the first line of the compiler's log, the rest into our own. */
static int build_failed(const ocl_gpu *g, cl_program program, cl_int status, cf_format format,
                        cf_err *err)
{
    char log[LOG_SIZE] = "";
    size_t bytes = 0;
    if (ocl_api.clGetProgramBuildInfo(program, g->device, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log,
                                      &bytes) != CL_SUCCESS)
        log[0] = '\0';
    cf_verbose("opencl: %s", log);
    return CF_FAIL(err, CF_EDEVICE, "the %s kernels do not build on %s: %s%s%.*s",
                   cf_format_name(format), g->base.info.name, ocl_status_name(status),
                   log[0] ? ": " : "", (int)strcspn(log, "\n"), log);
}

static int program_build(ocl_gpu *g, const recipe *r, cf_format format, cl_program *out,
                         cf_err *err)
{
    cl_int status = CL_SUCCESS;
    cl_program p = ocl_api.clCreateProgramWithSource(
        g->context, r->n_sources, (const char **)(uintptr_t)r->sources, NULL, &status);
    if (status != CL_SUCCESS)
        return CF_FAIL(err, CF_EDEVICE, "clCreateProgramWithSource: %s", ocl_status_name(status));
    status = ocl_api.clBuildProgram(p, 1, &g->device, r->options, NULL, NULL);
    if (status != CL_SUCCESS) {
        int rc = build_failed(g, p, status, format, err);
        ocl_api.clReleaseProgram(p);
        return rc;
    }
    atomic_fetch_add(&g->builds, 1);
    *out = p;
    return 0;
}

/* NULL when there is no good file. */
static cl_program program_load(ocl_gpu *g, const recipe *r)
{
    char path[PATH_SIZE];
    ocl_cache_file file;
    cl_int status = CL_SUCCESS, binary = CL_SUCCESS;
    if (!g->keeps_programs || ocl_cache_path(r->key, path, sizeof path) < 0 ||
        !ocl_cache_open(&file, path, r->key))
        return NULL;
    cl_program p = ocl_api.clCreateProgramWithBinary(g->context, 1, &g->device, &file.bytes,
                                                     &file.data, &binary, &status);
    ocl_cache_close(&file);
    if (status != CL_SUCCESS)
        return NULL;
    if (binary != CL_SUCCESS ||
        ocl_api.clBuildProgram(p, 1, &g->device, r->options, NULL, NULL) != CL_SUCCESS) {
        ocl_api.clReleaseProgram(p);
        return NULL;
    }
    atomic_fetch_add(&g->loads, 1);
    return p;
}

static void program_save(const ocl_gpu *g, cl_program p, const recipe *r)
{
    char path[PATH_SIZE];
    size_t bytes = 0;
    if (ocl_cache_path(r->key, path, sizeof path) < 0 ||
        ocl_api.clGetProgramInfo(p, CL_PROGRAM_BINARY_SIZES, sizeof bytes, &bytes, NULL) !=
            CL_SUCCESS ||
        bytes == 0)
        return;
    unsigned char *data = malloc(bytes);
    int rc = -ENOMEM;
    if (data &&
        ocl_api.clGetProgramInfo(p, CL_PROGRAM_BINARIES, sizeof data, &data, NULL) == CL_SUCCESS)
        rc = ocl_cache_write(path, r->key, data, bytes);
    if (rc < 0)
        cf_verbose("opencl: the programs of %s are not kept in %s (%d)", g->base.info.name, path,
                   rc);
    free(data);
}

/* Every kernel once, over no work. */
static int program_warm(ocl_gpu *g, cl_kernel *objects, cf_err *err)
{
    int rc = 0;
    cl_int status = CL_SUCCESS;
    cl_command_queue queue = NULL;
    static const uint8_t no_work[sizeof(ocl_product_params)]; /* the largest */
    size_t local = ocl_group_size(g);
    cl_mem dummy =
        ocl_api.clCreateBuffer(g->context, CL_MEM_READ_WRITE, DUMMY_BYTES, NULL, &status);
    if (status == CL_SUCCESS)
        queue = ocl_api.clCreateCommandQueue(g->context, g->device, 0, &status);
    if (status != CL_SUCCESS) {
        rc = CF_FAIL(err, CF_EDEVICE, "a queue to try the kernels: %s", ocl_status_name(status));
        goto fail;
    }
    for (int k = 0; k < OCL_KERNEL_COUNT; k++) {
        if (!objects[k])
            continue;
        cf_assert(kernels[k].param_bytes <= sizeof no_work);
        for (int i = 0; i < kernels[k].bufs; i++)
            OCL_TRY(ocl_api.clSetKernelArg(objects[k], (cl_uint)i, sizeof dummy, &dummy));
        OCL_TRY(ocl_api.clSetKernelArg(objects[k], (cl_uint)kernels[k].bufs, kernels[k].param_bytes,
                                       no_work));
        OCL_TRY(ocl_api.clEnqueueNDRangeKernel(queue, objects[k], 1, NULL, &local, &local, 0, NULL,
                                               NULL));
    }
    OCL_TRY(ocl_api.clFinish(queue));
fail:
    if (queue)
        ocl_api.clReleaseCommandQueue(queue);
    if (dummy)
        ocl_api.clReleaseMemObject(dummy);
    return rc;
}

static void program_drop(ocl_program *p)
{
    for (int s = 0; s < CF_STREAM_COUNT; s++)
        for (int k = 0; k < OCL_KERNEL_COUNT; k++)
            if (p->kernels[s][k])
                ocl_api.clReleaseKernel(p->kernels[s][k]);
    if (p->program)
        ocl_api.clReleaseProgram(p->program);
    *p = (ocl_program){0};
}

static int kernels_create(ocl_program *p, ocl_kernel_class class, cf_format format, cf_err *err)
{
    for (int s = 0; s < CF_STREAM_COUNT; s++)
        for (int k = 0; k < OCL_KERNEL_COUNT; k++) {
            cl_int status = CL_SUCCESS;
            if (kernels[k].class != class)
                continue;
            p->kernels[s][k] = ocl_api.clCreateKernel(p->program, kernels[k].name, &status);
            if (status != CL_SUCCESS)
                return CF_FAIL(err, CF_EDEVICE, "the %s kernel of %s: %s", kernels[k].name,
                               cf_format_name(format), ocl_status_name(status));
        }
    return 0;
}

/* Under program_lock. */
static int program_make(ocl_gpu *g, ocl_kernel_class class, cf_format format, cf_err *err)
{
    int rc = 0;
    ocl_program *p = &g->programs[class][format];
    recipe r;
    recipe_make(&r, g, class, format);
    if ((p->program = program_load(g, &r)) != NULL) {
        if (kernels_create(p, class, format, NULL) == 0) {
            p->ready = true;
            return 0;
        }
        program_drop(p);
    }
    CF_TRY(program_build(g, &r, format, &p->program, err));
    CF_TRY(kernels_create(p, class, format, err));
    if (g->keeps_programs)
        CF_TRY(program_warm(g, p->kernels[CF_STREAM_COMPUTE], err));
    p->ready = p->fresh = true;
    return 0;
fail:
    program_drop(p);
    return rc;
}

int ocl_kernel_get(ocl_gpu *g, cf_stream id, ocl_kernel kernel, cf_format format, cl_kernel *out,
                   cf_err *err)
{
    int rc = 0;
    ocl_kernel_class class = kernels[kernel].class;
    cf_assert((unsigned)format < CF_FORMAT_COMPUTABLE && class_has(class, format));
    ocl_program *p = &g->programs[class][format];
    pthread_mutex_lock(&g->program_lock);
    if (!p->ready)
        rc = program_make(g, class, format, err);
    *out = p->kernels[id][kernel];
    pthread_mutex_unlock(&g->program_lock);
    return rc;
}

void ocl_programs_finish(ocl_gpu *g)
{
    for (int c = 0; c < OCL_CLASS_COUNT; c++)
        for (int f = 0; f < CF_FORMAT_COMPUTABLE; f++) {
            ocl_program *p = &g->programs[c][f];
            if (p->fresh && g->keeps_programs) {
                recipe r;
                recipe_make(&r, g, (ocl_kernel_class)c, (cf_format)f);
                program_save(g, p->program, &r);
            }
            program_drop(p);
        }
}
