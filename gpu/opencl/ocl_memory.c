/* Buffers, in the three models of memory that ocl.h tells apart.
 *
 * Host-visible buffers, and all buffers of a software device, lie in pages of our own, which are
 * aligned and huge where the kernel can: the device is given them, it does not choose. Sizes and
 * the heap are checked here: a software device enforces neither. */
#include <stdlib.h>

#include "gpu/opencl/ocl.h"
#include "runtime/base/align.h"

enum { PAD_BYTES = 16 };

static int heap_take(ocl_gpu *g, const ocl_buf *b, cf_err *err)
{
    uint64_t bytes = b->base.bytes, limit = g->heap_limit;
    uint64_t used = atomic_fetch_add(&g->heap_used, bytes);
    if (bytes <= limit && used <= limit - bytes)
        return 0;
    atomic_fetch_sub(&g->heap_used, bytes);
    return CF_FAIL(err, CF_EDEVICE,
                   "%s: %llu bytes do not fit the device's memory of %llu, %llu of it in use",
                   b->base.name, (unsigned long long)bytes, (unsigned long long)limit,
                   (unsigned long long)used);
}

/* Drivers allocate at first use; asking for the memory now is what makes a refusal show here. */
static cl_int mem_commit(ocl_gpu *g, cl_mem mem)
{
    cl_event event = NULL;
    cl_command_queue queue = g->streams[CF_STREAM_TRANSFER].queue;
    cl_int status = ocl_api.clEnqueueMigrateMemObjects(
        queue, 1, &mem, CL_MIGRATE_MEM_OBJECT_CONTENT_UNDEFINED, 0, NULL, &event);
    if (status == CL_SUCCESS) {
        status = ocl_api.clWaitForEvents(1, &event);
        ocl_api.clReleaseEvent(event);
    }
    return status;
}

static int mem_create(ocl_gpu *g, ocl_buf *b, uint64_t bytes, void *pages, cf_err *err)
{
    cl_int status = CL_SUCCESS;
    cl_mem_flags flags = CL_MEM_READ_WRITE | (pages ? CL_MEM_USE_HOST_PTR : 0);
    b->mem = ocl_api.clCreateBuffer(g->context, flags, bytes, pages, &status);
    if (status == CL_SUCCESS && !pages)
        status = mem_commit(g, b->mem);
    if (status != CL_SUCCESS)
        return CF_FAIL(err, CF_EDEVICE, "%s: the device refuses %llu bytes: %s", b->base.name,
                       (unsigned long long)bytes, ocl_status_name(status));
    return 0;
}

static int buf_alloc(ocl_gpu *g, uint64_t bytes, cf_buf_kind kind, const char *name, ocl_buf **out,
                     cf_err *err)
{
    if (bytes == 0 || bytes > g->base.info.max_alloc_bytes)
        return CF_FAIL(err, bytes ? CF_EDEVICE : -EINVAL,
                       "%s: %llu bytes in one buffer, the device allows 1 to %llu", name,
                       (unsigned long long)bytes, (unsigned long long)g->base.info.max_alloc_bytes);
    ocl_buf *b = calloc(1, sizeof *b);
    if (!b)
        return CF_FAIL(err, -ENOMEM, "%s: %zu bytes for a buffer's description", name, sizeof *b);
    b->base.gpu = &g->base;
    b->base.kind = kind;
    b->base.bytes = bytes;
    b->base.name = name;
    *out = b;
    return 0;
}

static void buf_free(ocl_buf *b)
{
    if (b->mem)
        ocl_api.clReleaseMemObject(b->mem);
    cf_pages_finish(&b->pages);
    free(b);
}

int ocl_buf_create(cf_gpu *gpu, cf_buf_kind kind, uint64_t bytes, const char *name,
                   cf_gpu_buf **out, cf_err *err)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_buf *b = NULL;
    int rc = buf_alloc(g, bytes, kind, name, &b, err);
    if (rc < 0)
        return rc;
    rc = heap_take(g, b, err);
    if (rc < 0) {
        buf_free(b);
        return rc;
    }
    bool host = kind != CF_BUF_DEVICE, ours = host || g->model == OCL_COHERENT;
    if (ours)
        CF_TRY(cf_pages_init(&b->pages, bytes, NULL, CF_POOL_DEVICE, name, err));
    bool in_place = ours && g->model != OCL_SEPARATE;
    CF_TRY(mem_create(g, b, in_place ? b->pages.bytes : cf_align_up(bytes, PAD_BYTES),
                      in_place ? b->pages.data : NULL, err));
    b->base.host = host ? b->pages.data : NULL;
    *out = &b->base;
    return 0;
fail:
    atomic_fetch_sub(&g->heap_used, bytes);
    buf_free(b);
    return rc;
}

int ocl_buf_import(cf_gpu *gpu, void *pages, uint64_t bytes, const char *name, cf_gpu_buf **out,
                   cf_err *err)
{
    ocl_gpu *g = ocl_of(gpu);
    if (!pages || (uintptr_t)pages % OCL_IMPORT_ALIGN != 0 || bytes % OCL_IMPORT_ALIGN != 0)
        return CF_FAIL(err, -EINVAL, "%s: pages at %p, %llu bytes: not in units of %u", name, pages,
                       (unsigned long long)bytes, OCL_IMPORT_ALIGN);
    ocl_buf *b = NULL;
    int rc = buf_alloc(g, bytes, CF_BUF_IMPORTED, name, &b, err);
    if (rc < 0)
        return rc;
    b->base.host = pages;
    if (g->model != OCL_SEPARATE)
        CF_TRY(mem_create(g, b, bytes, pages, err));
    *out = &b->base;
    return 0;
fail:
    buf_free(b);
    return rc;
}

void ocl_buf_destroy(cf_gpu_buf *buf)
{
    if (buf->kind != CF_BUF_IMPORTED)
        atomic_fetch_sub(&ocl_of(buf->gpu)->heap_used, buf->bytes);
    buf_free((ocl_buf *)(void *)buf);
}
