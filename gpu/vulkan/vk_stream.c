/* Streams: what is recorded, when it is submitted, and how far the device has come.
 *
 * A batch is one command buffer out of a ring; it is recorded again once the point it signalled
 * is reached. A stream has a command pool and a timeline semaphore of its own; two streams may
 * share a queue, whose lock is held for the submit call alone, never over a wait.
 *
 * Memory: a barrier makes what the stream's earlier commands wrote visible to its later ones; a
 * semaphore signal and wait do so between streams; host writes are visible from the submit on by
 * the API's own guarantee; the end of each batch makes device writes visible to the host. */
#include <stdlib.h>
#include <string.h>

#include "gpu/vulkan/vk.h"
#include "runtime/base/align.h"

/* A buffer of the stream's own. */
static int own_buf_create(vk_gpu *vk, cf_buf_kind kind, uint64_t bytes, const char *name,
                          vk_buf **out, cf_err *err)
{
    int rc = cf_ledger_charge(vk->base.ledger, CF_POOL_DEVICE, name, bytes, err);
    if (rc < 0)
        return rc;
    cf_gpu_buf *buf = NULL;
    rc = vk_buf_create(&vk->base, kind, bytes, name, &buf, err);
    if (rc < 0)
        cf_ledger_refund(vk->base.ledger, CF_POOL_DEVICE, bytes);
    else
        *out = (vk_buf *)(void *)buf;
    return rc;
}

static void own_buf_destroy(vk_gpu *vk, vk_buf **buf)
{
    if (*buf) {
        cf_ledger_refund(vk->base.ledger, CF_POOL_DEVICE, (*buf)->base.bytes);
        vk_buf_destroy(&(*buf)->base);
    }
    *buf = NULL;
}

uint64_t vk_scratch_bytes(const cf_gpu_info *info)
{
    return info->cpu ? 256 << 10 : 8 << 20;
}

VkDeviceAddress vk_stream_scratch(const vk_gpu *vk, cf_stream id)
{
    const vk_stream *s = &vk->streams[id];
    cf_assert(s->scratch);
    return s->scratch->address;
}

VkBuffer vk_stream_scratch_buffer(const vk_gpu *vk, cf_stream id)
{
    const vk_stream *s = &vk->streams[id];
    cf_assert(s->scratch);
    return s->scratch->buffer;
}

int vk_stream_init(vk_gpu *vk, cf_stream id, vk_queue *queue, bool compute, cf_err *err)
{
    int rc = 0;
    vk_stream *s = &vk->streams[id];
    s->queue = queue;
    s->stages = VK_PIPELINE_STAGE_TRANSFER_BIT;
    s->reads = VK_ACCESS_TRANSFER_READ_BIT;
    s->writes = VK_ACCESS_TRANSFER_WRITE_BIT;
    if (compute) {
        s->stages |= VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
        s->reads |= VK_ACCESS_SHADER_READ_BIT;
        s->writes |= VK_ACCESS_SHADER_WRITE_BIT;
    }
    s->upload_used = VK_UPLOAD_BYTES; /* none current */
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = queue->family};
    VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                      .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO,
                                       .pNext = &type};
    VK_TRY(vk->fn.vkCreateCommandPool(vk->device, &pool, NULL, &s->pool));
    VK_TRY(vk->fn.vkCreateSemaphore(vk->device, &semaphore, NULL, &s->timeline));
    if (id == CF_STREAM_COMPUTE) { /* from the start, so that recording allocates nothing */
        CF_TRY(own_buf_create(vk, CF_BUF_UPLOAD, VK_UPLOAD_BLOCKS * VK_UPLOAD_BYTES, "op tables",
                              &s->upload_buf, err));
        CF_TRY(own_buf_create(vk, CF_BUF_DEVICE, vk_scratch_all_bytes(&vk->base.info), "scratch",
                              &s->scratch, err));
    }
fail:
    return rc;
}

void vk_stream_finish(vk_gpu *vk, cf_stream id)
{
    vk_stream *s = &vk->streams[id];
    own_buf_destroy(vk, &s->upload_buf);
    own_buf_destroy(vk, &s->scratch);
    vk->fn.vkDestroySemaphore(vk->device, s->timeline, NULL);
    vk->fn.vkDestroyCommandPool(vk->device, s->pool, NULL);
}

/* ---- recording ---- */

static int batch_begin(vk_gpu *vk, cf_stream id, cf_err *err)
{
    vk_stream *s = &vk->streams[id];
    vk_batch *b = &s->ring[(s->submitted + 1) % VK_RING_SIZE];
    int rc = vk_wait(&vk->base, (cf_gpu_point){id, b->value}, err);
    if (rc < 0)
        return rc;
    if (!b->cmd) {
        VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                            .commandPool = s->pool,
                                            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                            .commandBufferCount = 1};
        VK_TRY(vk->fn.vkAllocateCommandBuffers(vk->device, &info, &b->cmd));
    }
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                      .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    VK_TRY(vk->fn.vkBeginCommandBuffer(b->cmd, &begin)); /* resets it too */
    s->open = b->cmd;
    s->bound = VK_NULL_HANDLE;
fail:
    return rc;
}

VkCommandBuffer vk_stream_cmd(vk_gpu *vk, cf_stream id)
{
    vk_stream *s = &vk->streams[id];
    if (atomic_load(&vk->failed))
        return VK_NULL_HANDLE;
    if (!s->open) {
        cf_err cause = {0};
        if (batch_begin(vk, id, &cause) < 0) {
            vk_fail(vk, &cause);
            return VK_NULL_HANDLE;
        }
    }
    return s->open;
}

/* Makes the next block of the ring current, once no submitted batch reads it any more. */
static int upload_next(vk_gpu *vk, cf_stream id, cf_err *err)
{
    vk_stream *s = &vk->streams[id];
    if (!s->upload_buf)
        return CF_FAIL(err, CF_EDEVICE, "the transfer stream computes no experts");
    uint32_t next = (s->upload_block + 1) % VK_UPLOAD_BLOCKS;
    uint64_t reader = s->upload_value[next];
    if (reader > s->submitted)
        return CF_FAIL(err, CF_ELIMIT, "one batch holds more than %d bytes of op tables",
                       VK_UPLOAD_BLOCKS * VK_UPLOAD_BYTES);
    int rc = vk_wait(&vk->base, (cf_gpu_point){id, reader}, err);
    if (rc < 0)
        return rc;
    s->upload_block = next;
    s->upload_used = 0;
    return 0;
}

VkDeviceAddress vk_stream_upload(vk_gpu *vk, cf_stream id, const void *data, uint64_t bytes)
{
    vk_stream *s = &vk->streams[id];
    cf_assert(bytes <= VK_UPLOAD_BYTES);
    if (atomic_load(&vk->failed))
        return 0;
    if (bytes > VK_UPLOAD_BYTES - s->upload_used) {
        cf_err cause = {0};
        if (upload_next(vk, id, &cause) < 0) {
            vk_fail(vk, &cause);
            return 0;
        }
    }
    uint64_t off = (uint64_t)s->upload_block * VK_UPLOAD_BYTES + s->upload_used;
    if (data)
        memcpy(s->upload_buf->base.host + off, data, bytes);
    s->upload_value[s->upload_block] = s->submitted + 1;
    s->upload_used = cf_min_u64(cf_align_up(s->upload_used + bytes, 64), VK_UPLOAD_BYTES);
    return s->upload_buf->address + off;
}

void vk_copy(cf_gpu *gpu, cf_stream stream, cf_span dst, cf_span src)
{
    vk_gpu *vk = vk_of(gpu);
    VkCommandBuffer cmd = vk_stream_cmd(vk, stream);
    if (!cmd || dst.bytes == 0)
        return;
    VkBufferCopy region = {.srcOffset = src.off, .dstOffset = dst.off, .size = dst.bytes};
    vk->fn.vkCmdCopyBuffer(cmd, ((vk_buf *)(void *)src.buf)->buffer,
                           ((vk_buf *)(void *)dst.buf)->buffer, 1, &region);
}

void vk_barrier(cf_gpu *gpu, cf_stream stream)
{
    vk_gpu *vk = vk_of(gpu);
    vk_stream *s = &vk->streams[stream];
    VkCommandBuffer cmd = vk_stream_cmd(vk, stream);
    if (!cmd)
        return;
    VkMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                           .srcAccessMask = s->writes,
                           .dstAccessMask = s->reads | s->writes};
    vk->fn.vkCmdPipelineBarrier(cmd, s->stages, s->stages, 0, 1, &all, 0, NULL, 0, NULL);
}

/* ---- submit and wait ---- */

static int batch_end(vk_gpu *vk, vk_stream *s, cf_err *err)
{
    int rc = 0;
    VkMemoryBarrier to_host = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = s->writes,
                               .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
    vk->fn.vkCmdPipelineBarrier(s->open, s->stages, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &to_host, 0,
                                NULL, 0, NULL);
    VK_TRY(vk->fn.vkEndCommandBuffer(s->open));
fail:
    return rc;
}

/* The furthest point of each other stream: at most one wait a stream. */
static uint32_t gather_waits(vk_gpu *vk, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                             VkSemaphore *semaphores, uint64_t *values,
                             VkPipelineStageFlags *stages)
{
    uint64_t furthest[CF_STREAM_COUNT] = {0};
    for (int i = 0; i < n_waits; i++)
        furthest[waits[i].stream] = cf_max_u64(furthest[waits[i].stream], waits[i].value);
    uint32_t n = 0;
    for (int i = 0; i < CF_STREAM_COUNT; i++) {
        if (i == (int)stream || furthest[i] == 0)
            continue;
        semaphores[n] = vk->streams[i].timeline;
        values[n] = furthest[i];
        stages[n++] = vk->streams[stream].stages;
    }
    return n;
}

static int queue_submit(vk_gpu *vk, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                        uint64_t value, cf_err *err)
{
    int rc = 0;
    vk_stream *s = &vk->streams[stream];
    VkSemaphore semaphores[CF_STREAM_COUNT];
    uint64_t values[CF_STREAM_COUNT];
    VkPipelineStageFlags stages[CF_STREAM_COUNT];
    uint32_t n = gather_waits(vk, stream, waits, n_waits, semaphores, values, stages);
    VkTimelineSemaphoreSubmitInfo timeline = {.sType =
                                                  VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                              .waitSemaphoreValueCount = n,
                                              .pWaitSemaphoreValues = values,
                                              .signalSemaphoreValueCount = 1,
                                              .pSignalSemaphoreValues = &value};
    VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                         .pNext = &timeline,
                         .waitSemaphoreCount = n,
                         .pWaitSemaphores = semaphores,
                         .pWaitDstStageMask = stages,
                         .commandBufferCount = s->open ? 1 : 0,
                         .pCommandBuffers = &s->open,
                         .signalSemaphoreCount = 1,
                         .pSignalSemaphores = &s->timeline};
    pthread_mutex_lock(&s->queue->lock);
    VkResult r = vk->fn.vkQueueSubmit(s->queue->queue, 1, &info, VK_NULL_HANDLE);
    pthread_mutex_unlock(&s->queue->lock);
    VK_TRY(r);
fail:
    return rc;
}

int vk_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
              uint64_t *value, cf_err *err)
{
    vk_gpu *vk = vk_of(gpu);
    vk_stream *s = &vk->streams[stream];
    int rc = vk_failed(vk, err);
    if (rc < 0)
        return rc;
    cf_err cause = {0};
    uint64_t next = s->submitted + 1;
    if (s->open)
        CF_TRY(batch_end(vk, s, &cause));
    CF_TRY(queue_submit(vk, stream, waits, n_waits, next, &cause));
    if (s->open)
        s->ring[next % VK_RING_SIZE].value = next;
    s->open = VK_NULL_HANDLE;
    s->submitted = next;
    *value = next;
    return 0;
fail:
    vk_fail(vk, &cause);
    return vk_failed(vk, err);
}

static void seen_raise(vk_stream *s, uint64_t value)
{
    uint64_t seen = atomic_load(&s->seen);
    while (seen < value && !atomic_compare_exchange_weak(&s->seen, &seen, value))
        ;
}

int vk_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err)
{
    vk_gpu *vk = vk_of(gpu);
    vk_stream *s = &vk->streams[point.stream];
    if (point.value <= atomic_load(&s->seen))
        return 0;
    int rc = vk_failed(vk, err);
    if (rc < 0)
        return rc;
    cf_err cause = {0};
    VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                .semaphoreCount = 1,
                                .pSemaphores = &s->timeline,
                                .pValues = &point.value};
    VkResult r = vk->fn.vkWaitSemaphores(vk->device, &info, UINT64_MAX);
    if (r == VK_SUCCESS) {
        seen_raise(s, point.value);
        return 0;
    }
    CF_FAIL(&cause, CF_EDEVICE, "vkWaitSemaphores: %s", vk_result_name(r));
    vk_fail(vk, &cause);
    return vk_failed(vk, err);
}

/* On a failed device every point counts as reached: whoever polls goes on to the wait or submit
 * that reports the failure. */
bool vk_reached(cf_gpu *gpu, cf_gpu_point point)
{
    vk_gpu *vk = vk_of(gpu);
    vk_stream *s = &vk->streams[point.stream];
    if (point.value <= atomic_load(&s->seen) || atomic_load(&vk->failed))
        return true;
    uint64_t now = 0;
    VkResult r = vk->fn.vkGetSemaphoreCounterValue(vk->device, s->timeline, &now);
    if (r != VK_SUCCESS) {
        cf_err cause = {0};
        CF_FAIL(&cause, CF_EDEVICE, "vkGetSemaphoreCounterValue: %s", vk_result_name(r));
        vk_fail(vk, &cause);
        return true;
    }
    seen_raise(s, now);
    return point.value <= now;
}
