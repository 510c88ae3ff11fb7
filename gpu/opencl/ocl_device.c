/* Devices: who is there, which one is opened, and the way down.
 *
 * Listed are GPUs first, then CPUs, of all platforms: available, with a compiler, little-endian,
 * 64 bits, OpenCL 1.2. options.threads becomes a sub-device of as many compute units, which works
 * for each open alike; an environment variable (PoCL has one) would count for the first only. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/opencl/ocl.h"
#include "runtime/base/align.h"
#include "runtime/base/log.h"

enum {
    MAX_PLATFORMS = 16,
    MAX_DEVICES = 32,
    GROUPS_PER_THREAD = 16,
    GPU_MAX_GROUPS = 65535,
    MAX_PARTS = 64
};

ocl_guise ocl_test_guise = OCL_AS_IT_IS;

/* ---- failure ---- */

int ocl_fail(ocl_gpu *g, const cf_err *cause)
{
    pthread_mutex_lock(&g->failure_lock);
    if (!atomic_load(&g->failed)) {
        g->failure = *cause;
        atomic_store(&g->failed, true);
    }
    int code = g->failure.code;
    pthread_mutex_unlock(&g->failure_lock);
    return code;
}

int ocl_failed(ocl_gpu *g, cf_err *err)
{
    if (!atomic_load(&g->failed))
        return 0;
    pthread_mutex_lock(&g->failure_lock);
    int code = g->failure.code;
    cf_err_set(err, code, "%s", g->failure.msg);
    pthread_mutex_unlock(&g->failure_lock);
    return code;
}

/* ---- what a device has ---- */

typedef struct probe {
    cl_device_id device;
    cl_uint compute_units, vector_floats; /* of the hardware's vectors */
    ocl_memory_model model;
    cf_gpu_info info;
} probe;

void ocl_device_text(cl_device_id device, cl_device_info what, char *text, size_t size)
{
    char whole[1024] = "";
    if (ocl_api.clGetDeviceInfo(device, what, sizeof whole - 1, whole, NULL) != CL_SUCCESS)
        whole[0] = '\0';
    snprintf(text, size, "%s", whole + strspn(whole, " "));
}

/* A number of 4 or 8 bytes; 0 where the device does not say. */
static uint64_t device_number(cl_device_id device, cl_device_info what, size_t size)
{
    uint64_t wide = 0;
    uint32_t narrow = 0;
    void *to = size == sizeof wide ? (void *)&wide : (void *)&narrow;
    if (ocl_api.clGetDeviceInfo(device, what, size, to, NULL) != CL_SUCCESS)
        return 0;
    return size == sizeof wide ? wide : narrow;
}

static bool device_flag(cl_device_id device, cl_device_info what)
{
    return device_number(device, what, sizeof(cl_bool)) != 0;
}

static uint64_t physical_ram_bytes(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : UINT64_MAX;
}

/* False when the device cannot run us. */
static bool probe_device(probe *p, cl_device_id device)
{
    *p = (probe){.device = device};
    char version[128];
    unsigned major = 0, minor = 0;
    ocl_device_text(device, CL_DEVICE_VERSION, version, sizeof version);
    if (sscanf(version, "OpenCL %u.%u", &major, &minor) != 2 || major * 10 + minor < 12)
        return false;
    if (!device_flag(device, CL_DEVICE_AVAILABLE) ||
        !device_flag(device, CL_DEVICE_COMPILER_AVAILABLE) ||
        !device_flag(device, CL_DEVICE_ENDIAN_LITTLE) ||
        device_number(device, CL_DEVICE_ADDRESS_BITS, sizeof(cl_uint)) != 64)
        return false;
    cf_gpu_info *i = &p->info;
    snprintf(i->backend, sizeof i->backend, "opencl");
    ocl_device_text(device, CL_DEVICE_NAME, i->name, sizeof i->name);
    i->cpu = device_number(device, CL_DEVICE_TYPE, sizeof(cl_device_type)) & CL_DEVICE_TYPE_CPU;
    i->unified = i->cpu || device_flag(device, CL_DEVICE_HOST_UNIFIED_MEMORY);
    p->model = i->cpu ? OCL_COHERENT : i->unified ? OCL_SHARED : OCL_SEPARATE;
    i->imports = true;
    i->kv_q8 = true;
    i->own_transfer = true;
    i->import_align = OCL_IMPORT_ALIGN;
    for (int s = 0; s < CF_STREAM_COUNT; s++)
        i->overhead_bytes += ocl_stream_bytes((cf_stream)s);
    /* A software device states an arbitrary size; what bounds it is the memory of the host. */
    i->heap_bytes = i->cpu ? physical_ram_bytes()
                           : device_number(device, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(cl_ulong));
    i->max_alloc_bytes = cf_align_down(
        device_number(device, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof(cl_ulong)), OCL_IMPORT_ALIGN);
    p->compute_units = (cl_uint)device_number(device, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(cl_uint));
    p->vector_floats =
        (cl_uint)device_number(device, CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, sizeof(cl_uint));
    return i->max_alloc_bytes > 0;
}

/* The usable devices of one kind; returns their number with those before. */
static int probe_platform(cl_platform_id platform, bool cpu, probe *out, int n, int max)
{
    cl_device_id devices[MAX_DEVICES];
    cl_uint found = 0;
    if (ocl_api.clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, MAX_DEVICES, devices, &found) !=
        CL_SUCCESS)
        return n;
    for (cl_uint i = 0; i < found && i < MAX_DEVICES && n < max; i++)
        if (probe_device(&out[n], devices[i]) && out[n].info.cpu == cpu) {
            out[n].info.index = n;
            n++;
        }
    return n;
}

/* Returns the number of usable devices or a negative code. */
static int probe_all(probe *out, int max, cf_err *err)
{
    cl_platform_id platforms[MAX_PLATFORMS];
    cl_uint found = 0;
    int rc = ocl_api_load(err), n = 0;
    if (rc < 0)
        return rc;
    cl_int status = ocl_api.clGetPlatformIDs(MAX_PLATFORMS, platforms, &found);
    if (status != CL_SUCCESS || found == 0)
        return CF_FAIL(err, CF_EDEVICE, "no OpenCL driver is installed (%s)",
                       status != CL_SUCCESS ? ocl_status_name(status) : "no platform");
    if (found > MAX_PLATFORMS)
        found = MAX_PLATFORMS;
    for (int cpu = 0; cpu < 2; cpu++)
        for (cl_uint i = 0; i < found; i++)
            n = probe_platform(platforms[i], cpu, out, n, max);
    if (n == 0)
        return CF_FAIL(err, CF_EDEVICE,
                       "the OpenCL drivers (%u) report no usable device: one with OpenCL 1.2, a "
                       "compiler whose cache folder can be written, and 64-bit addresses",
                       found);
    return n;
}

static int ocl_list(cf_gpu_info *out, int max, cf_err *err)
{
    probe probes[MAX_DEVICES];
    int n = probe_all(probes, max < MAX_DEVICES ? max : MAX_DEVICES, err);
    for (int i = 0; i < n; i++)
        out[i] = probes[i].info;
    return n;
}

/* ---- open and close ---- */

/* Rows of activations that a tile of products takes, by what a core's registers hold: DOT_R times
 * as many sums (see kernels/product.cl). A GPU's groups have a tile of their own. */
static uint32_t tile_rows(const probe *p)
{
    static const struct {
        uint32_t floats_per_vector, rows;
    } tiles[] = {{16, 6}, {0, 3}};
    int i = 0;
    while (p->vector_floats < tiles[i].floats_per_vector)
        i++;
    return tiles[i].rows;
}

/* Sub-devices are made once a process and never released: PoCL 3.1's threads may touch a device
 * after the last event, queue and context that hold it are gone for us (it crashed there). */
static struct {
    cl_device_id whole, part;
    cl_uint threads;
} parts[MAX_PARTS];
static pthread_mutex_t parts_lock = PTHREAD_MUTEX_INITIALIZER;

static cl_int part_make(cl_device_id whole, cl_uint threads, cl_device_id *part)
{
    const cl_device_partition_property by[] = {CL_DEVICE_PARTITION_BY_COUNTS, (intptr_t)threads,
                                               CL_DEVICE_PARTITION_BY_COUNTS_LIST_END, 0};
    cl_int status = CL_OUT_OF_RESOURCES; /* more numbers of threads than anybody tries */
    pthread_mutex_lock(&parts_lock);
    for (int i = 0; i < MAX_PARTS; i++) {
        if (!parts[i].part) {
            status = ocl_api.clCreateSubDevices(whole, by, 1, &parts[i].part, NULL);
            if (status != CL_SUCCESS)
                break;
            parts[i].whole = whole;
            parts[i].threads = threads;
        }
        if (parts[i].whole == whole && parts[i].threads == threads) {
            *part = parts[i].part;
            status = CL_SUCCESS;
            break;
        }
        status = CL_OUT_OF_RESOURCES;
    }
    pthread_mutex_unlock(&parts_lock);
    return status;
}

/* `threads` of a software device. */
static void threads_limit(ocl_gpu *g, probe *p, int threads)
{
    if (!p->info.cpu || threads <= 0 || (cl_uint)threads >= p->compute_units)
        return;
    cl_int status = part_make(p->device, (cl_uint)threads, &g->device);
    if (status != CL_SUCCESS) {
        cf_notice("opencl: %s cannot be limited to %d threads (%s)", p->info.name, threads,
                  ocl_status_name(status));
        return;
    }
    p->compute_units = (cl_uint)threads;
}

static void guise_put_on(ocl_gpu *g)
{
    if (ocl_test_guise == OCL_AS_IT_IS)
        return;
    g->groups = true;
    g->model = ocl_test_guise == OCL_AS_DISCRETE_GPU ? OCL_SEPARATE : OCL_SHARED;
    g->base.info.unified = g->model == OCL_SHARED;
}

static void ocl_close(cf_gpu *gpu)
{
    ocl_gpu *g = ocl_of(gpu);
    for (int i = 0; i < CF_STREAM_COUNT; i++) {
        if (g->streams[i].queue)
            ocl_api.clFinish(g->streams[i].queue);
        if (g->vectors[i])
            ocl_buf_destroy(g->vectors[i]);
        ocl_stream_finish(g, (cf_stream)i);
    }
    ocl_programs_finish(g);
    if (g->context)
        ocl_api.clReleaseContext(g->context);
    for (int i = 0; i < CF_STREAM_COUNT; i++)
        pthread_mutex_destroy(&g->streams[i].lock);
    pthread_mutex_destroy(&g->program_lock);
    pthread_mutex_destroy(&g->failure_lock);
    free(g);
}

static int ocl_open(cf_gpu **out, int index, const cf_gpu_options *options, cf_err *err)
{
    probe probes[MAX_DEVICES];
    int n = probe_all(probes, MAX_DEVICES, err), rc = n;
    if (n < 0)
        return n;
    if (index < 0 || index >= n)
        return CF_FAIL(err, CF_EDEVICE, "no OpenCL device %d: there are %d", index, n);
    probe *p = &probes[index];
    ocl_gpu *g = calloc(1, sizeof *g);
    if (!g)
        return CF_FAIL(err, -ENOMEM, "%zu bytes for an OpenCL device", sizeof *g);
    for (int i = 0; i < CF_STREAM_COUNT; i++)
        pthread_mutex_init(&g->streams[i].lock, NULL);
    pthread_mutex_init(&g->program_lock, NULL);
    pthread_mutex_init(&g->failure_lock, NULL);
    g->base.info = p->info;
    g->base.info.imports = !options->no_import;
    g->base.ledger = options->ledger;
    g->model = p->model;
    g->groups = !p->info.cpu;
    g->keeps_programs = !ocl_driver_keeps_programs(p->device);
    g->heap_limit = p->info.heap_bytes;
    g->device = p->device;
    threads_limit(g, p, options->threads);
    g->base.info.threads = p->info.cpu ? (int)p->compute_units : 0;
    guise_put_on(g);
    g->compute_units = p->compute_units;
    g->tile_rows = tile_rows(p);
    g->max_groups = g->groups ? GPU_MAX_GROUPS : p->compute_units * GROUPS_PER_THREAD;
    cl_int status = CL_SUCCESS;
    g->context = ocl_api.clCreateContext(NULL, 1, &g->device, NULL, NULL, &status);
    if (status != CL_SUCCESS) {
        rc = CF_FAIL(err, CF_EDEVICE, "clCreateContext for %s: %s", p->info.name,
                     ocl_status_name(status));
        goto fail;
    }
    for (int i = 0; i < CF_STREAM_COUNT; i++)
        CF_TRY(ocl_stream_init(g, (cf_stream)i, err));
    for (int i = 0; i < CF_STREAM_COUNT; i++)
        CF_TRY(ocl_buf_create(&g->base, CF_BUF_DEVICE, OCL_VECTOR_FLOATS * 4, "decoded vectors",
                              &g->vectors[i], err));
    *out = &g->base;
    return 0;
fail:
    ocl_close(&g->base);
    return rc;
}

static int ocl_validation_errors(const cf_gpu *gpu)
{
    (void)gpu;
    return 0;
}

const struct cf_gpu_fns cf_ocl_fns = {.name = "opencl",
                                      .title = "OpenCL",
                                      .list = ocl_list,
                                      .open = ocl_open,
                                      .close = ocl_close,
                                      .buf_create = ocl_buf_create,
                                      .buf_import = ocl_buf_import,
                                      .buf_destroy = ocl_buf_destroy,
                                      .copy = ocl_copy,
                                      .barrier = ocl_barrier,
                                      .submit = ocl_submit,
                                      .wait = ocl_wait,
                                      .reached = ocl_reached,
                                      .validation_errors = ocl_validation_errors,
                                      .supports = ocl_supports,
#define OCL_OP_FN(op) .op = ocl_op_##op,
                                      CF_GPU_OPS(OCL_OP_FN)
#undef OCL_OP_FN
};
