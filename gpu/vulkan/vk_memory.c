/* Buffers: one VkBuffer and one allocation each (the callers' arenas are few and large).
 *
 * Sizes, heaps and the alignment of imports are checked here, since a software device enforces
 * none of them. Host-visible memory is coherent and stays mapped. With a transfer queue of its
 * own, buffers are shared by both families: no ownership is handed over. */
#include <stdlib.h>
#include <string.h>

#include "gpu/vulkan/vk.h"
#include "runtime/base/align.h"

/* Shaders read the aligned 128 bits around the last element of a buffer. */
enum { PAD_BYTES = 16 };

static const VkExternalMemoryHandleTypeFlagBits host_pages =
    VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT;

static int buffer_create(vk_gpu *vk, vk_buf *b, uint64_t bytes, bool import, cf_err *err)
{
    int rc = 0;
    uint32_t families[CF_STREAM_COUNT] = {vk->queues[0].family, vk->queues[1].family};
    VkExternalMemoryBufferCreateInfo external = {
        .sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO, .handleTypes = host_pages};
    VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .pNext = import ? &external : NULL,
        .size = bytes,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT |
                 VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    if (vk->n_queues > 1) {
        info.sharingMode = VK_SHARING_MODE_CONCURRENT;
        info.queueFamilyIndexCount = CF_STREAM_COUNT;
        info.pQueueFamilyIndices = families;
    }
    VK_TRY(vk->fn.vkCreateBuffer(vk->device, &info, NULL, &b->buffer));
fail:
    return rc;
}

/* The first allowed type with all of `want`; UINT32_MAX if none. */
static uint32_t type_with(const vk_gpu *vk, uint32_t allowed, VkMemoryPropertyFlags want)
{
    for (uint32_t i = 0; i < vk->memory.memoryTypeCount; i++)
        if (allowed >> i & 1 && (vk->memory.memoryTypes[i].propertyFlags & want) == want)
            return i;
    return UINT32_MAX;
}

static uint32_t type_for(const vk_gpu *vk, uint32_t allowed, cf_buf_kind kind)
{
    const VkMemoryPropertyFlags host =
        VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    uint32_t t = UINT32_MAX;
    switch (kind) {
    case CF_BUF_DEVICE:
        t = type_with(vk, allowed, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
        return t != UINT32_MAX ? t : type_with(vk, allowed, 0);
    case CF_BUF_READBACK: /* uncached memory is read by the host at a crawl */
        t = type_with(vk, allowed, host | VK_MEMORY_PROPERTY_HOST_CACHED_BIT);
        return t != UINT32_MAX ? t : type_with(vk, allowed, host);
    case CF_BUF_UPLOAD:
        return type_with(vk, allowed, host);
    case CF_BUF_IMPORTED:
        return type_with(vk, allowed, 0);
    }
    return t;
}

static int heap_take(vk_gpu *vk, vk_buf *b, uint32_t type, uint64_t bytes, cf_err *err)
{
    uint32_t heap = vk->memory.memoryTypes[type].heapIndex;
    uint64_t used = atomic_fetch_add(&vk->heap_used[heap], bytes), limit = vk->heap_limit[heap];
    if (bytes > limit || used > limit - bytes) {
        atomic_fetch_sub(&vk->heap_used[heap], bytes);
        return CF_FAIL(err, CF_EDEVICE,
                       "%s: %llu bytes do not fit the device's heap of %llu, %llu of it in use",
                       b->base.name, (unsigned long long)bytes, (unsigned long long)limit,
                       (unsigned long long)used);
    }
    b->heap = heap;
    b->heap_bytes = bytes;
    return 0;
}

/* The one way to memory: `pages` NULL, or what to import. */
static int memory_bind(vk_gpu *vk, vk_buf *b, uint32_t type, uint64_t bytes, void *pages,
                       cf_err *err)
{
    int rc = 0;
    VkImportMemoryHostPointerInfoEXT import = {
        .sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT,
        .handleType = host_pages,
        .pHostPointer = pages};
    VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                       .pNext = pages ? &import : NULL,
                                       .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                 .pNext = &flags,
                                 .allocationSize = bytes,
                                 .memoryTypeIndex = type};
    VkResult r = vk->fn.vkAllocateMemory(vk->device, &info, NULL, &b->memory);
    if (r != VK_SUCCESS)
        return CF_FAIL(err, CF_EDEVICE, "%s: the device refuses %s%llu bytes: %s", b->base.name,
                       pages ? "to import " : "", (unsigned long long)bytes, vk_result_name(r));
    VK_TRY(vk->fn.vkBindBufferMemory(vk->device, b->buffer, b->memory, 0));
    VkBufferDeviceAddressInfo at = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
                                    .buffer = b->buffer};
    b->address = vk->fn.vkGetBufferDeviceAddress(vk->device, &at);
    if (b->address == 0 || b->address % PAD_BYTES != 0) {
        rc = CF_FAIL(err, CF_EDEVICE, "%s: the device gave a buffer the address %#llx",
                     b->base.name, (unsigned long long)b->address);
        goto fail;
    }
    vk_name(vk, VK_OBJECT_TYPE_BUFFER, (uint64_t)b->buffer, b->base.name);
fail:
    return rc;
}

static void buf_free(vk_gpu *vk, vk_buf *b)
{
    vk->fn.vkDestroyBuffer(vk->device, b->buffer, NULL);
    vk->fn.vkFreeMemory(vk->device, b->memory, NULL); /* unmaps */
    atomic_fetch_sub(&vk->heap_used[b->heap], b->heap_bytes);
    free(b);
}

static int buf_alloc(vk_gpu *vk, uint64_t bytes, cf_buf_kind kind, const char *name, vk_buf **out,
                     cf_err *err)
{
    if (bytes == 0 || bytes > vk->max_alloc_bytes)
        return CF_FAIL(err, bytes ? CF_EDEVICE : -EINVAL,
                       "%s: %llu bytes in one buffer, the device allows 1 to %llu", name,
                       (unsigned long long)bytes, (unsigned long long)vk->max_alloc_bytes);
    vk_buf *b = calloc(1, sizeof *b);
    if (!b)
        return CF_FAIL(err, -ENOMEM, "%s: %zu bytes for a buffer's description", name, sizeof *b);
    b->base.gpu = &vk->base;
    b->base.kind = kind;
    b->base.bytes = bytes;
    b->base.name = name;
    *out = b;
    return 0;
}

int vk_buf_create(cf_gpu *gpu, cf_buf_kind kind, uint64_t bytes, const char *name, cf_gpu_buf **out,
                  cf_err *err)
{
    vk_gpu *vk = vk_of(gpu);
    vk_buf *b = NULL;
    int rc = buf_alloc(vk, bytes, kind, name, &b, err);
    if (rc < 0)
        return rc;
    CF_TRY(buffer_create(vk, b, cf_align_up(bytes, PAD_BYTES), false, err));
    VkMemoryRequirements need;
    vk->fn.vkGetBufferMemoryRequirements(vk->device, b->buffer, &need);
    uint32_t type = type_for(vk, need.memoryTypeBits, kind);
    if (type == UINT32_MAX) {
        rc = CF_FAIL(err, CF_EDEVICE, "%s: the device has no memory for a buffer of this kind",
                     name);
        goto fail;
    }
    CF_TRY(heap_take(vk, b, type, need.size, err));
    CF_TRY(memory_bind(vk, b, type, need.size, NULL, err));
    if (kind != CF_BUF_DEVICE) {
        void *host = NULL;
        VK_TRY(vk->fn.vkMapMemory(vk->device, b->memory, 0, VK_WHOLE_SIZE, 0, &host));
        b->base.host = host;
    }
    *out = &b->base;
    return 0;
fail:
    buf_free(vk, b);
    return rc;
}

int vk_buf_import(cf_gpu *gpu, void *pages, uint64_t bytes, const char *name, cf_gpu_buf **out,
                  cf_err *err)
{
    vk_gpu *vk = vk_of(gpu);
    if (!gpu->info.imports)
        return CF_FAIL(err, CF_EDEVICE, "%s: the device cannot import host pages", name);
    uint32_t align = gpu->info.import_align;
    if (!pages || (uintptr_t)pages % align != 0 || bytes % align != 0)
        return CF_FAIL(err, -EINVAL, "%s: pages at %p, %llu bytes: not in units of %u", name, pages,
                       (unsigned long long)bytes, align);
    vk_buf *b = NULL;
    int rc = buf_alloc(vk, bytes, CF_BUF_IMPORTED, name, &b, err);
    if (rc < 0)
        return rc;
    b->base.host = pages;
    CF_TRY(buffer_create(vk, b, bytes, true, err));
    VkMemoryRequirements need;
    vk->fn.vkGetBufferMemoryRequirements(vk->device, b->buffer, &need);
    VkMemoryHostPointerPropertiesEXT props = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT};
    VK_TRY(vk->fn.vkGetMemoryHostPointerPropertiesEXT(vk->device, host_pages, pages, &props));
    uint32_t type = type_for(vk, need.memoryTypeBits & props.memoryTypeBits, CF_BUF_IMPORTED);
    if (type == UINT32_MAX || need.size > bytes) {
        rc = CF_FAIL(err, CF_EDEVICE, "%s: the device cannot use these %llu bytes as a buffer",
                     name, (unsigned long long)bytes);
        goto fail;
    }
    CF_TRY(memory_bind(vk, b, type, bytes, pages, err));
    *out = &b->base;
    return 0;
fail:
    buf_free(vk, b);
    return rc;
}

void vk_buf_destroy(cf_gpu_buf *buf)
{
    /* After a failure nobody waited for what had been submitted; it may still be running. */
    vk_gpu *vk = vk_of(buf->gpu);
    if (atomic_load(&vk->failed))
        vk->fn.vkDeviceWaitIdle(vk->device);
    buf_free(vk_of(buf->gpu), (vk_buf *)(void *)buf);
}
