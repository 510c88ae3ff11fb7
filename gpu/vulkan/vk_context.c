/* Instance and device: who is there, which one is opened with what, and the way down.
 *
 * Refuses devices without Vulkan 1.2, buffer device addresses, timeline semaphores or 64-bit
 * integers in shaders; they are not listed. volk's instance functions are globals of the process,
 * so everything that calls them (list, open, close) holds `instance_lock`.
 *
 * With `check`, the validation layer is enabled if it is installed and its messages are counted:
 * a process may exit 0 after one. Its synchronisation checks stay off: they do not see accesses
 * by address (gpu/hazard.c does) and leak with each command buffer (1.3.239). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/vulkan/vk.h"
#include "runtime/base/align.h"
#include "runtime/base/log.h"

static const char *const validation_layer = "VK_LAYER_KHRONOS_validation";
enum { MAX_DEVICES = 32, MAX_FAMILIES = 32 };

static pthread_mutex_t instance_lock = PTHREAD_MUTEX_INITIALIZER;
static bool loader_ready; /* under instance_lock */

const char *vk_result_name(VkResult r)
{
    switch (r) {
#define NAME(x)                                                                                    \
    case x:                                                                                        \
        return #x
        NAME(VK_NOT_READY);
        NAME(VK_TIMEOUT);
        NAME(VK_INCOMPLETE);
        NAME(VK_ERROR_OUT_OF_HOST_MEMORY);
        NAME(VK_ERROR_OUT_OF_DEVICE_MEMORY);
        NAME(VK_ERROR_INITIALIZATION_FAILED);
        NAME(VK_ERROR_DEVICE_LOST);
        NAME(VK_ERROR_MEMORY_MAP_FAILED);
        NAME(VK_ERROR_LAYER_NOT_PRESENT);
        NAME(VK_ERROR_EXTENSION_NOT_PRESENT);
        NAME(VK_ERROR_FEATURE_NOT_PRESENT);
        NAME(VK_ERROR_INCOMPATIBLE_DRIVER);
        NAME(VK_ERROR_TOO_MANY_OBJECTS);
        NAME(VK_ERROR_INVALID_EXTERNAL_HANDLE);
        NAME(VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS);
        NAME(VK_ERROR_UNKNOWN);
#undef NAME
    default:
        return "an unnamed Vulkan error";
    }
}

int vk_fail(vk_gpu *vk, const cf_err *cause)
{
    pthread_mutex_lock(&vk->failure_lock);
    if (!atomic_load(&vk->failed)) {
        vk->failure = *cause;
        atomic_store(&vk->failed, true);
    }
    int code = vk->failure.code;
    pthread_mutex_unlock(&vk->failure_lock);
    return code;
}

int vk_failed(vk_gpu *vk, cf_err *err)
{
    if (!atomic_load(&vk->failed))
        return 0;
    pthread_mutex_lock(&vk->failure_lock);
    int code = vk->failure.code;
    cf_err_set(err, code, "%s", vk->failure.msg);
    pthread_mutex_unlock(&vk->failure_lock);
    return code;
}

void vk_name(vk_gpu *vk, VkObjectType type, uint64_t handle, const char *name)
{
    if (!vk->set_name)
        return;
    VkDebugUtilsObjectNameInfoEXT info = {.sType =
                                              VK_STRUCTURE_TYPE_DEBUG_UTILS_OBJECT_NAME_INFO_EXT,
                                          .objectType = type,
                                          .objectHandle = handle,
                                          .pObjectName = name};
    vk->set_name(vk->device, &info); /* a name that is refused costs nothing but the name */
}

/* ---- instance ---- */

static VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                 VkDebugUtilsMessageTypeFlagsEXT type,
                                                 const VkDebugUtilsMessengerCallbackDataEXT *data,
                                                 void *user)
{
    vk_gpu *vk = user;
    (void)severity;
    (void)type;
    if (atomic_fetch_add(&vk->messages, 1) < 10)
        cf_notice("vulkan validation: %s", data->pMessage);
    return VK_FALSE;
}

static bool layer_present(const char *name)
{
    uint32_t n = 0;
    if (vkEnumerateInstanceLayerProperties(&n, NULL) != VK_SUCCESS || n == 0)
        return false;
    VkLayerProperties *layers = calloc(n, sizeof *layers);
    bool found = false;
    if (layers && vkEnumerateInstanceLayerProperties(&n, layers) >= 0)
        for (uint32_t i = 0; i < n; i++)
            found = found || strcmp(layers[i].layerName, name) == 0;
    free(layers);
    return found;
}

static int loader_init(cf_err *err)
{
    if (!loader_ready && volkInitialize() != VK_SUCCESS)
        return CF_FAIL(err, CF_EDEVICE, "there is no Vulkan loader (libvulkan.so.1)");
    loader_ready = true;
    uint32_t v = volkGetInstanceVersion();
    if (v < VK_API_VERSION_1_2)
        return CF_FAIL(err, CF_EDEVICE, "the Vulkan loader is version %u.%u, 1.2 is needed",
                       VK_API_VERSION_MAJOR(v), VK_API_VERSION_MINOR(v));
    return 0;
}

/* `messages`: the device whose on_message counts, or NULL for a plain instance. */
static int instance_create(VkInstance *out, vk_gpu *messages, cf_err *err)
{
    int rc = loader_init(err);
    if (rc < 0)
        return rc;
    static const char *const debug_utils = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
    VkDebugUtilsMessengerCreateInfoEXT messenger = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT |
                           VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT,
        .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,
        .pfnUserCallback = on_message,
        .pUserData = messages};
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                             .pApplicationName = "catflap",
                             .apiVersion = VK_API_VERSION_1_2};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                 .pApplicationInfo = &app};
    if (messages) {
        info.pNext = &messenger; /* hears of the instance's own making too */
        info.enabledLayerCount = 1;
        info.ppEnabledLayerNames = &validation_layer;
        info.enabledExtensionCount = 1;
        info.ppEnabledExtensionNames = &debug_utils;
    }
    VkResult r = vkCreateInstance(&info, NULL, out);
    if (r == VK_ERROR_INCOMPATIBLE_DRIVER)
        return CF_FAIL(err, CF_EDEVICE, "no Vulkan driver is installed");
    if (r != VK_SUCCESS)
        return CF_FAIL(err, CF_EDEVICE, "vkCreateInstance: %s", vk_result_name(r));
    volkLoadInstanceOnly(*out);
    if (messages) {
        vkCreateDebugUtilsMessengerEXT(*out, &messenger, NULL, &messages->messenger);
        messages->set_name = vkSetDebugUtilsObjectNameEXT;
    }
    return 0;
}

/* ---- what a device has ---- */

typedef struct probe {
    VkPhysicalDevice device;
    VkPhysicalDeviceProperties props;
    VkPhysicalDeviceMemoryProperties memory;
    uint8_t uuid[VK_UUID_SIZE];
    uint32_t compute_family, transfer_family; /* equal: one queue serves both */
    bool instrumentable; /* has what GPU-assisted validation writes its findings with */
    bool dots, dots_fast; /* integer dot products: in shaders; four of 8 bits accelerated */
    cf_gpu_info info;
} probe;

static bool has_extension(VkPhysicalDevice device, const char *name)
{
    uint32_t n = 0;
    if (vkEnumerateDeviceExtensionProperties(device, NULL, &n, NULL) != VK_SUCCESS || n == 0)
        return false;
    VkExtensionProperties *list = calloc(n, sizeof *list);
    bool found = false;
    if (list && vkEnumerateDeviceExtensionProperties(device, NULL, &n, list) >= 0)
        for (uint32_t i = 0; i < n; i++)
            found = found || strcmp(list[i].extensionName, name) == 0;
    free(list);
    return found;
}

static bool probe_queues(probe *p)
{
    VkQueueFamilyProperties families[MAX_FAMILIES];
    uint32_t n = MAX_FAMILIES;
    vkGetPhysicalDeviceQueueFamilyProperties(p->device, &n, families);
    uint32_t compute = UINT32_MAX, transfer = UINT32_MAX;
    bool alone = false; /* `compute` is a family without graphics: not shared with the desktop */
    for (uint32_t i = 0; i < n; i++) {
        VkQueueFlags f = families[i].queueFlags;
        bool graphics = f & VK_QUEUE_GRAPHICS_BIT;
        if (f & VK_QUEUE_COMPUTE_BIT) {
            if (compute == UINT32_MAX || (!graphics && !alone)) {
                compute = i;
                alone = !graphics;
            }
        } else if (f & VK_QUEUE_TRANSFER_BIT && !graphics && transfer == UINT32_MAX) {
            transfer = i;
        }
    }
    if (compute == UINT32_MAX)
        return false;
    p->compute_family = compute;
    p->transfer_family = transfer == UINT32_MAX ? compute : transfer;
    return true;
}

static uint64_t device_heap_bytes(const VkPhysicalDeviceMemoryProperties *m)
{
    uint64_t largest = 0;
    for (uint32_t i = 0; i < m->memoryHeapCount; i++)
        if (m->memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT &&
            m->memoryHeaps[i].size > largest)
            largest = m->memoryHeaps[i].size;
    return largest;
}

/* What other programs leave of the largest device-local heap; 0 where the driver does not say. */
static uint64_t device_free_bytes(VkPhysicalDevice device, uint64_t heap_bytes)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 m = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2, .pNext = &budget};
    if (!has_extension(device, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME))
        return 0;
    vkGetPhysicalDeviceMemoryProperties2(device, &m);
    const VkPhysicalDeviceMemoryProperties *p = &m.memoryProperties;
    for (uint32_t i = 0; i < p->memoryHeapCount; i++)
        if (p->memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT &&
            p->memoryHeaps[i].size == heap_bytes && budget.heapBudget[i] > budget.heapUsage[i])
            return cf_min_u64(budget.heapBudget[i] - budget.heapUsage[i], heap_bytes);
    return 0;
}

static uint64_t physical_ram_bytes(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : UINT64_MAX;
}

/* Products of four packed signed bytes in shaders, and what the driver says of their speed. */
static void probe_dots(probe *p)
{
    if (!has_extension(p->device, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME))
        return;
    VkPhysicalDeviceShaderIntegerDotProductFeaturesKHR dots = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES_KHR};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &dots};
    VkPhysicalDeviceShaderIntegerDotProductPropertiesKHR speed = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES_KHR};
    VkPhysicalDeviceProperties2 props = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                         .pNext = &speed};
    vkGetPhysicalDeviceFeatures2(p->device, &features);
    vkGetPhysicalDeviceProperties2(p->device, &props);
    p->dots = dots.shaderIntegerDotProduct;
    p->dots_fast = p->dots && speed.integerDotProduct4x8BitPackedSignedAccelerated;
}

static void probe_info(probe *p, const VkPhysicalDeviceMaintenance3Properties *limits,
                       const VkPhysicalDeviceExternalMemoryHostPropertiesEXT *host)
{
    cf_gpu_info *i = &p->info;
    snprintf(i->backend, sizeof i->backend, "vulkan");
    snprintf(i->name, sizeof i->name, "%.*s", (int)sizeof i->name - 1, p->props.deviceName);
    i->cpu = p->props.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    i->unified = i->cpu || p->props.deviceType == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU;
    i->kv_q8 = true;
    i->imports = has_extension(p->device, VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME);
    i->import_align = i->imports ? (uint32_t)host->minImportedHostPointerAlignment : 0;
    i->own_transfer = p->transfer_family != p->compute_family;
    /* A software device states an arbitrary heap; what bounds it is the memory of the host. */
    i->heap_bytes = i->cpu ? physical_ram_bytes() : device_heap_bytes(&p->memory);
    i->free_bytes = i->cpu ? 0 : device_free_bytes(p->device, i->heap_bytes);
    i->max_alloc_bytes = limits->maxMemoryAllocationSize & ~(uint64_t)4095;
    i->overhead_bytes = VK_UPLOAD_BLOCKS * VK_UPLOAD_BYTES + vk_scratch_all_bytes(i);
}

/* False when the device cannot run us. */
static bool probe_device(probe *p, VkPhysicalDevice device)
{
    memset(p, 0, sizeof *p);
    p->device = device;
    vkGetPhysicalDeviceProperties(device, &p->props);
    if (p->props.apiVersion < VK_API_VERSION_1_2 || !probe_queues(p))
        return false;
    VkPhysicalDeviceVulkan12Features v12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &v12};
    vkGetPhysicalDeviceFeatures2(device, &features);
    if (!v12.bufferDeviceAddress || !v12.timelineSemaphore || !features.features.shaderInt64)
        return false;
    p->instrumentable = features.features.fragmentStoresAndAtomics &&
                        features.features.vertexPipelineStoresAndAtomics;
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT};
    VkPhysicalDeviceMaintenance3Properties limits = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES, .pNext = &host};
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES,
                                       .pNext = &limits};
    VkPhysicalDeviceProperties2 props = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                         .pNext = &id};
    vkGetPhysicalDeviceProperties2(device, &props);
    vkGetPhysicalDeviceMemoryProperties(device, &p->memory);
    memcpy(p->uuid, id.deviceUUID, sizeof p->uuid);
    probe_dots(p);
    probe_info(p, &limits, &host);
    return true;
}

/* The usable devices in the loader's order; returns their number or a negative code. */
static int probe_all(VkInstance instance, probe *out, int max, cf_err *err)
{
    VkPhysicalDevice devices[MAX_DEVICES];
    uint32_t n = MAX_DEVICES;
    VkResult r = vkEnumeratePhysicalDevices(instance, &n, devices);
    if (r < 0)
        return CF_FAIL(err, CF_EDEVICE, "vkEnumeratePhysicalDevices: %s", vk_result_name(r));
    int count = 0;
    for (uint32_t i = 0; i < n && count < max; i++)
        if (probe_device(&out[count], devices[i])) {
            out[count].info.index = count;
            count++;
        }
    if (count == 0 && n > 0)
        return CF_FAIL(err, CF_EDEVICE,
                       "none of %u devices has Vulkan 1.2, buffer addresses, timeline "
                       "semaphores and 64-bit integers",
                       n);
    if (count == 0)
        return CF_FAIL(err, CF_EDEVICE, "the Vulkan drivers report no device");
    return count;
}

static int vk_list(cf_gpu_info *out, int max, cf_err *err)
{
    probe *probes = calloc(MAX_DEVICES, sizeof *probes);
    if (!probes)
        return CF_FAIL(err, -ENOMEM, "%zu bytes for the list of Vulkan devices",
                       MAX_DEVICES * sizeof *probes);
    VkInstance instance = VK_NULL_HANDLE;
    pthread_mutex_lock(&instance_lock);
    int rc = instance_create(&instance, NULL, err);
    if (rc == 0) {
        rc = probe_all(instance, probes, MAX_DEVICES, err);
        vkDestroyInstance(instance, NULL);
    }
    pthread_mutex_unlock(&instance_lock);
    if (rc > max)
        rc = max;
    for (int i = 0; i < rc; i++)
        out[i] = probes[i].info;
    free(probes);
    return rc;
}

/* ---- open and close ---- */

static int device_create(vk_gpu *vk, const probe *p, bool check, cf_err *err)
{
    int rc = 0;
    float priority = 1.0f;
    VkDeviceQueueCreateInfo queues[2] = {{.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                          .queueFamilyIndex = p->compute_family,
                                          .queueCount = 1,
                                          .pQueuePriorities = &priority}};
    queues[1] = queues[0];
    queues[1].queueFamilyIndex = p->transfer_family;
    const char *extensions[2];
    uint32_t n_extensions = 0;
    if (vk->base.info.imports)
        extensions[n_extensions++] = VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME;
    if (p->dots)
        extensions[n_extensions++] = VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME;
    VkPhysicalDeviceShaderIntegerDotProductFeaturesKHR dots = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES_KHR,
        .shaderIntegerDotProduct = VK_TRUE};
    VkPhysicalDeviceVulkan12Features v12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
        .pNext = p->dots ? &dots : NULL,
        .bufferDeviceAddress = VK_TRUE,
        .timelineSemaphore = VK_TRUE};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &v12,
                                          .features = {.shaderInt64 = VK_TRUE}};
    if (check && p->instrumentable) {
        features.features.fragmentStoresAndAtomics = VK_TRUE;
        features.features.vertexPipelineStoresAndAtomics = VK_TRUE;
    }
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &features,
                               .queueCreateInfoCount = p->info.own_transfer ? 2 : 1,
                               .pQueueCreateInfos = queues,
                               .enabledExtensionCount = n_extensions,
                               .ppEnabledExtensionNames = extensions};
    VK_TRY(vkCreateDevice(vk->physical, &info, NULL, &vk->device));
    volkLoadDeviceTable(&vk->fn, vk->device);
    vk->n_queues = (int)info.queueCreateInfoCount;
    for (int i = 0; i < vk->n_queues; i++) {
        vk->queues[i].family = queues[i].queueFamilyIndex;
        vk->fn.vkGetDeviceQueue(vk->device, vk->queues[i].family, 0, &vk->queues[i].queue);
    }
fail:
    return rc;
}

static void vk_close(cf_gpu *gpu)
{
    vk_gpu *vk = vk_of(gpu);
    if (vk->device) {
        vk->fn.vkDeviceWaitIdle(vk->device);
        for (int i = 0; i < CF_STREAM_COUNT; i++)
            vk_stream_finish(vk, (cf_stream)i);
        vk_pipelines_finish(vk);
        vk->fn.vkDestroyDevice(vk->device, NULL);
    }
    if (vk->instance) {
        pthread_mutex_lock(&instance_lock);
        if (vk->messenger)
            vkDestroyDebugUtilsMessengerEXT(vk->instance, vk->messenger, NULL);
        vkDestroyInstance(vk->instance, NULL);
        pthread_mutex_unlock(&instance_lock);
    }
    for (int i = 0; i < CF_STREAM_COUNT; i++)
        pthread_mutex_destroy(&vk->queues[i].lock);
    pthread_mutex_destroy(&vk->pipeline_lock);
    pthread_mutex_destroy(&vk->failure_lock);
    free(vk);
}

static void take_probe(vk_gpu *vk, const probe *p, const cf_gpu_options *options)
{
    vk->physical = p->device;
    vk->props = p->props;
    vk->memory = p->memory;
    memcpy(vk->uuid, p->uuid, sizeof vk->uuid);
    vk->dots = p->dots;
    vk->dots_fast = p->dots_fast;
    vk->max_alloc_bytes = p->info.max_alloc_bytes;
    for (uint32_t i = 0; i < p->memory.memoryHeapCount; i++)
        vk->heap_limit[i] = p->info.cpu ? p->info.heap_bytes : p->memory.memoryHeaps[i].size;
    vk->base.info = p->info;
    if (options->no_import)
        vk->base.info.imports = false;
}

/* Under instance_lock. */
static int open_device(vk_gpu *vk, int index, const cf_gpu_options *options, cf_err *err)
{
    int rc = loader_init(err);
    if (rc < 0)
        return rc;
    bool validate = options->check && layer_present(validation_layer);
    if (options->check && !validate)
        cf_notice("vulkan: %s is not installed: nothing validates the API's use", validation_layer);
    probe *probes = calloc(MAX_DEVICES, sizeof *probes);
    if (!probes)
        return CF_FAIL(err, -ENOMEM, "%zu bytes for the list of Vulkan devices",
                       MAX_DEVICES * sizeof *probes);
    CF_TRY(instance_create(&vk->instance, validate ? vk : NULL, err));
    CF_TRY(probe_all(vk->instance, probes, MAX_DEVICES, err));
    if (index < 0 || index >= rc) {
        rc = CF_FAIL(err, CF_EDEVICE, "no Vulkan device %d: there are %d", index, rc);
        goto fail;
    }
    take_probe(vk, &probes[index], options);
    CF_TRY(device_create(vk, &probes[index], options->check, err));
fail:
    free(probes);
    return rc < 0 ? rc : 0;
}

static int vk_open(cf_gpu **out, int index, const cf_gpu_options *options, cf_err *err)
{
    int rc = 0;
    vk_gpu *vk = calloc(1, sizeof *vk);
    if (!vk)
        return CF_FAIL(err, -ENOMEM, "%zu bytes for a Vulkan device", sizeof *vk);
    vk->base.fns = &cf_vk_fns;
    vk->base.ledger = options->ledger;
    for (int i = 0; i < CF_STREAM_COUNT; i++)
        pthread_mutex_init(&vk->queues[i].lock, NULL);
    pthread_mutex_init(&vk->pipeline_lock, NULL);
    pthread_mutex_init(&vk->failure_lock, NULL);

    pthread_mutex_lock(&instance_lock);
    rc = open_device(vk, index, options, err);
    pthread_mutex_unlock(&instance_lock);
    if (rc < 0)
        goto fail;
    vk_queue *transfer = &vk->queues[vk->n_queues - 1];
    CF_TRY(vk_stream_init(vk, CF_STREAM_COMPUTE, &vk->queues[0], true, err));
    CF_TRY(vk_stream_init(vk, CF_STREAM_TRANSFER, transfer, vk->n_queues == 1, err));
    CF_TRY(vk_pipelines_init(vk, err));
    *out = &vk->base;
    return 0;
fail:
    vk_close(&vk->base);
    return rc;
}

static int vk_validation_errors(const cf_gpu *gpu)
{
    const vk_gpu *vk = (const vk_gpu *)(const void *)gpu;
    return atomic_load(&vk->messages);
}

const struct cf_gpu_fns cf_vk_fns = {.name = "vulkan",
                                     .title = "Vulkan",
                                     .list = vk_list,
                                     .open = vk_open,
                                     .close = vk_close,
                                     .buf_create = vk_buf_create,
                                     .buf_import = vk_buf_import,
                                     .buf_destroy = vk_buf_destroy,
                                     .copy = vk_copy,
                                     .barrier = vk_barrier,
                                     .submit = vk_submit,
                                     .wait = vk_wait,
                                     .reached = vk_reached,
                                     .validation_errors = vk_validation_errors,
                                     .supports = vk_supports,
#define VK_OP_FN(op) .op = vk_op_##op,
                                     CF_GPU_OPS(VK_OP_FN)
#undef VK_OP_FN
};
