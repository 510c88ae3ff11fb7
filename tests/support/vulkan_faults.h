/* A checked Vulkan device whose functions can be made to fail, and whose allocations are counted.
 * For programs that are linked with --wrap=volkLoadDeviceTable (tests.mk), which routes the filling
 * of the device's function table through here; after check.h. */
#ifndef CF_TESTS_VULKAN_FAULTS_H
#define CF_TESTS_VULKAN_FAULTS_H

#include <stdatomic.h>
#include <unistd.h>

#include "gpu/vulkan/vk.h"

/* ---- injected faults ---- */

static struct {
    struct VolkDeviceTable real;
    atomic_int memories, buffers; /* alive */
    int refuse_memory_in;         /* allocations until one is refused; -1: never */
    bool lose_at_submit, refuse_pipelines;
} fault = {.refuse_memory_in = -1};

static VKAPI_ATTR VkResult VKAPI_CALL fault_allocate(VkDevice d, const VkMemoryAllocateInfo *info,
                                                     const VkAllocationCallbacks *a,
                                                     VkDeviceMemory *out)
{
    if (fault.refuse_memory_in >= 0 && fault.refuse_memory_in-- == 0)
        return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    VkResult r = fault.real.vkAllocateMemory(d, info, a, out);
    fault.memories += r == VK_SUCCESS;
    return r;
}

static VKAPI_ATTR void VKAPI_CALL fault_free(VkDevice d, VkDeviceMemory m,
                                             const VkAllocationCallbacks *a)
{
    fault.memories -= m != VK_NULL_HANDLE;
    fault.real.vkFreeMemory(d, m, a);
}

static VKAPI_ATTR VkResult VKAPI_CALL fault_buffer(VkDevice d, const VkBufferCreateInfo *info,
                                                   const VkAllocationCallbacks *a, VkBuffer *out)
{
    VkResult r = fault.real.vkCreateBuffer(d, info, a, out);
    fault.buffers += r == VK_SUCCESS;
    return r;
}

static VKAPI_ATTR void VKAPI_CALL fault_unbuffer(VkDevice d, VkBuffer b,
                                                 const VkAllocationCallbacks *a)
{
    fault.buffers -= b != VK_NULL_HANDLE;
    fault.real.vkDestroyBuffer(d, b, a);
}

static VKAPI_ATTR VkResult VKAPI_CALL fault_submit(VkQueue q, uint32_t n, const VkSubmitInfo *info,
                                                   VkFence f)
{
    return fault.lose_at_submit ? VK_ERROR_DEVICE_LOST : fault.real.vkQueueSubmit(q, n, info, f);
}

static VKAPI_ATTR VkResult VKAPI_CALL fault_pipelines(VkDevice d, VkPipelineCache c, uint32_t n,
                                                      const VkComputePipelineCreateInfo *info,
                                                      const VkAllocationCallbacks *a,
                                                      VkPipeline *out)
{
    if (fault.refuse_pipelines)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    return fault.real.vkCreateComputePipelines(d, c, n, info, a, out);
}

void __real_volkLoadDeviceTable(struct VolkDeviceTable *table, VkDevice device);
void __wrap_volkLoadDeviceTable(struct VolkDeviceTable *table, VkDevice device);
void __wrap_volkLoadDeviceTable(struct VolkDeviceTable *table, VkDevice device)
{
    __real_volkLoadDeviceTable(table, device);
    fault.real = *table;
    table->vkAllocateMemory = fault_allocate;
    table->vkFreeMemory = fault_free;
    table->vkCreateBuffer = fault_buffer;
    table->vkDestroyBuffer = fault_unbuffer;
    table->vkQueueSubmit = fault_submit;
    table->vkCreateComputePipelines = fault_pipelines;
}

/* ---- the device ---- */

static const char *no_vulkan; /* why, when there is none */

/* NULL without a device: the case is to be skipped. */
static inline cf_gpu *open_checked(cf_ledger *ledger, bool no_import)
{
    cf_gpu *gpu = NULL;
    cf_err err = {0};
    cf_gpu_options options = {.check = true, .no_import = no_import, .ledger = ledger};
    if (no_vulkan)
        return NULL;
    CHECK_INT(cf_gpu_open(&gpu, "vulkan", &options, &err), 0);
    CHECK_STR(err.msg, "");
    return gpu;
}

/* Nothing to complain about, nothing left. What the layer says of objects that outlive the device
 * comes while that closes, when nobody can ask for the count any more: read from stderr. */
static inline void close_silent(cf_gpu **gpu)
{
    CHECK_INT(cf_gpu_validation_errors(*gpu), 0);
    FILE *said = tmpfile();
    int keep = dup(STDERR_FILENO);
    CHECK(said && keep >= 0 && dup2(fileno(said), STDERR_FILENO) >= 0);
    cf_gpu_close(gpu);
    CHECK(dup2(keep, STDERR_FILENO) >= 0);
    close(keep);
    char text[4096] = "";
    rewind(said);
    text[fread(text, 1, sizeof text - 1, said)] = 0;
    fclose(said);
    CHECK_STR(text, "");
    CHECK_INT(fault.memories, 0);
    CHECK_INT(fault.buffers, 0);
}

#define NEED_VULKAN()                                                                              \
    do {                                                                                           \
        if (no_vulkan)                                                                             \
            SKIP("%s", no_vulkan);                                                                 \
    } while (0)

/* To be called once the loader may be up: is there a device? `program`: its path; lavapipe
 * compiles each shader once a build, not once a run, and keeps them beside it. */
static inline void vulkan_begin(const char *program)
{
    static cf_err err;
    char cache[4096];
    cf_gpu_info infos[8];
    snprintf(cache, sizeof cache, "%s-mesa-cache", program);
    setenv("MESA_SHADER_CACHE_DIR", cache, 0);
    if (cf_vk_fns.list(infos, 8, &err) < 0)
        no_vulkan = err.msg;
}

#endif
