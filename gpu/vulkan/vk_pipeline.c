/* Pipelines: the table of compiled shaders that the build made, specialised on first use.
 *
 * All share one layout of push constants only. A driver may compile when a pipeline is made or at
 * its first dispatch; what it compiled is kept in a cache file for real GPUs (vk_cache.c).
 *
 * Threads: pipeline_lock is held while a pipeline is looked up or made. */
#include <stdlib.h>
#include <string.h>

#include "gpu/vulkan/vk_ops.h"
#include "gpu/vulkan/shaders/vk_shader_table.inc"
#include "runtime/base/log.h"

static const struct {
    const uint32_t *code;
    size_t bytes;
} shader_table[VK_SHADER_COUNT][CF_FORMAT_COMPUTABLE] = {
#define SHADER_ROW(name, fmt, id)                                                                  \
    [VK_SHADER_##name][id] = {spv_##name##_##fmt, sizeof spv_##name##_##fmt},
    VK_SHADER_TABLE(SHADER_ROW)
#undef SHADER_ROW
};

static const char *const shader_names[VK_SHADER_COUNT] = {
#define SHADER_NAME(name) [VK_SHADER_##name] = #name,
    VK_SHADER_OPS(SHADER_NAME)
#undef SHADER_NAME
};

/* ---- the cache file ---- */

static bool cache_file(const vk_gpu *vk, char *path, size_t size)
{
    return !vk->base.info.cpu && vk_cache_path(vk->uuid, vk->props.driverVersion, path, size) == 0;
}

static void cache_save(vk_gpu *vk)
{
    char path[4096];
    size_t bytes = 0;
    if (!vk->pipelines_made || !cache_file(vk, path, sizeof path) ||
        vk->fn.vkGetPipelineCacheData(vk->device, vk->cache, &bytes, NULL) != VK_SUCCESS)
        return;
    void *data = malloc(bytes + 1);
    if (data && vk->fn.vkGetPipelineCacheData(vk->device, vk->cache, &bytes, data) == VK_SUCCESS &&
        vk_cache_write(path, data, bytes) < 0)
        cf_debug("vulkan: no pipeline cache written to %s", path);
    free(data);
}

int vk_pipelines_init(vk_gpu *vk, cf_err *err)
{
    int rc = 0;
    char path[4096];
    size_t bytes = 0;
    void *data = cache_file(vk, path, sizeof path) ? vk_cache_read(path, &bytes) : NULL;
    VkPipelineCacheCreateInfo cache = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO,
                                       .initialDataSize = bytes,
                                       .pInitialData = data};
    VkPushConstantRange range = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT,
                                 .size = VK_MAX_PUSH_BYTES};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &range};
    VK_TRY(vk->fn.vkCreatePipelineCache(vk->device, &cache, NULL, &vk->cache));
    VK_TRY(vk->fn.vkCreatePipelineLayout(vk->device, &layout, NULL, &vk->layout));
fail:
    free(data);
    return rc;
}

void vk_pipelines_finish(vk_gpu *vk)
{
    if (vk->cache)
        cache_save(vk);
    for (int s = 0; s < VK_SHADER_COUNT; s++)
        for (int f = 0; f < CF_FORMAT_COMPUTABLE; f++) {
            for (vk_pipeline *p = vk->pipelines[s][f], *next; p; p = next) {
                next = p->next;
                vk->fn.vkDestroyPipeline(vk->device, p->pipeline, NULL);
                free(p);
            }
            vk->fn.vkDestroyShaderModule(vk->device, vk->modules[s][f], NULL);
        }
    vk->fn.vkDestroyPipelineLayout(vk->device, vk->layout, NULL);
    vk->fn.vkDestroyPipelineCache(vk->device, vk->cache, NULL);
}

bool vk_supports(const cf_gpu *gpu, cf_format format)
{
    static const enum vk_shader on_weights[] = {VK_SHADER_linear,        VK_SHADER_head_linear,
                                                VK_SHADER_head_linear_t, VK_SHADER_expert_glu,
                                                VK_SHADER_expert_down,   VK_SHADER_get_rows};
    (void)gpu;
    for (size_t i = 0; i < sizeof on_weights / sizeof *on_weights; i++)
        if (!shader_table[on_weights[i]][format].code)
            return false;
    return true; /* vectors: vk_vectors.c */
}

enum vk_integers vk_test_integers;

/* Integers where four products are one instruction, and on a processor, where they were measured to
 * be faster than rounded floats (tests/bench/LOG.md); on other GPUs floats. Never by the sizes: a
 * result depends on no other row. */
enum vk_shader vk_dot_shader(const vk_gpu *vk, enum vk_shader floats, enum vk_shader integers,
                             const cf_weight *w, bool x_q8)
{
    bool worth = vk->dots_fast || cpu_class(vk);
    if (vk_test_integers != VK_INTEGERS_BY_DEVICE)
        worth = vk_test_integers == VK_INTEGERS_ALWAYS;
    return x_q8 && vk->dots && worth && shader_table[integers][w->dtype].code ? integers : floats;
}

/* ---- pipelines ---- */

static int module_make(vk_gpu *vk, enum vk_shader shader, cf_format format, cf_err *err)
{
    int rc = 0;
    if (!shader_table[shader][format].code)
        return CF_FAIL(err, CF_EDEVICE, "vulkan has no %s shader for %s", shader_names[shader],
                       cf_format_name(format));
    VkShaderModuleCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                     .codeSize = shader_table[shader][format].bytes,
                                     .pCode = shader_table[shader][format].code};
    VK_TRY(vk->fn.vkCreateShaderModule(vk->device, &info, NULL, &vk->modules[shader][format]));
fail:
    return rc;
}

static int pipeline_make(vk_gpu *vk, enum vk_shader shader, cf_format format, const uint32_t *spec,
                         VkPipeline *out, cf_err *err)
{
    int rc = 0;
    vk_pipeline *p = calloc(1, sizeof *p);
    if (!p)
        return CF_FAIL(err, -ENOMEM, "%zu bytes for a pipeline", sizeof *p);
    if (!vk->modules[shader][format])
        CF_TRY(module_make(vk, shader, format, err));
    memcpy(p->spec, spec, sizeof p->spec);
    VkSpecializationMapEntry entries[VK_MAX_SPEC];
    for (uint32_t i = 0; i < VK_MAX_SPEC; i++)
        entries[i] = (VkSpecializationMapEntry){i, i * 4, 4};
    VkSpecializationInfo constants = {.mapEntryCount = VK_MAX_SPEC,
                                      .pMapEntries = entries,
                                      .dataSize = sizeof p->spec,
                                      .pData = p->spec};
    VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = vk->modules[shader][format],
                  .pName = "main",
                  .pSpecializationInfo = &constants},
        .layout = vk->layout};
    VkResult r =
        vk->fn.vkCreateComputePipelines(vk->device, vk->cache, 1, &info, NULL, &p->pipeline);
    if (r != VK_SUCCESS) {
        rc = CF_FAIL(err, CF_EDEVICE, "the device refuses the %s shader for %s: %s",
                     shader_names[shader], cf_format_name(format), vk_result_name(r));
        goto fail;
    }
    vk_name(vk, VK_OBJECT_TYPE_PIPELINE, (uint64_t)p->pipeline, shader_names[shader]);
    p->next = vk->pipelines[shader][format];
    vk->pipelines[shader][format] = p;
    vk->pipelines_made = true;
    *out = p->pipeline;
    return 0;
fail:
    free(p);
    return rc;
}

static int pipeline_get(vk_gpu *vk, enum vk_shader shader, cf_format format, const uint32_t *spec,
                        VkPipeline *out, cf_err *err)
{
    int rc = 0;
    pthread_mutex_lock(&vk->pipeline_lock);
    vk_pipeline *p = vk->pipelines[shader][format];
    while (p && memcmp(p->spec, spec, sizeof p->spec) != 0)
        p = p->next;
    if (p)
        *out = p->pipeline;
    else
        rc = pipeline_make(vk, shader, format, spec, out, err);
    pthread_mutex_unlock(&vk->pipeline_lock);
    return rc;
}

void vk_dispatch(vk_gpu *vk, cf_stream stream, enum vk_shader shader, cf_format format,
                 const uint32_t *spec, const void *push, uint32_t push_bytes, uint32_t x,
                 uint32_t y, uint32_t z)
{
    vk_stream *s = &vk->streams[stream];
    const uint32_t *most = vk->props.limits.maxComputeWorkGroupCount;
    cf_assert(s->stages & VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT); /* else: copies only */
    cf_assert(push_bytes <= VK_MAX_PUSH_BYTES && push_bytes % 4 == 0);
    VkCommandBuffer cmd = vk_stream_cmd(vk, stream);
    if (!cmd || x == 0 || y == 0 || z == 0)
        return;
    VkPipeline pipeline = VK_NULL_HANDLE;
    cf_err cause = {0};
    if (x > most[0] || y > most[1] || z > most[2])
        CF_FAIL(&cause, CF_ELIMIT, "%s: %u x %u x %u groups, the device allows %u x %u x %u",
                shader_names[shader], x, y, z, most[0], most[1], most[2]);
    else
        pipeline_get(vk, shader, format, spec, &pipeline, &cause);
    if (cause.code) {
        vk_fail(vk, &cause);
        return;
    }
    if (s->bound != pipeline)
        vk->fn.vkCmdBindPipeline(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
    s->bound = pipeline;
    vk->fn.vkCmdPushConstants(cmd, vk->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, push_bytes, push);
    vk->fn.vkCmdDispatch(cmd, x, y, z);
}
