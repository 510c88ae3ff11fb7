/* Streams: one in-order queue each. Recording fills a list of commands; submit enqueues them, since
 * what the host writes until then must be seen, and flushes.
 *
 * The list has its memory from open on, charged to the ledger: recording allocates nothing.
 *
 * A point is the event of a marker behind its batch. The events of the last OCL_RING_SIZE points
 * are kept; before one is dropped its work has been waited for. Barriers need nothing: the queue
 * is in order. Threads: see gpu/gpu.h; `lock` guards the ring against waiting threads. */
#include <stdlib.h>
#include <string.h>

#include "gpu/opencl/ocl.h"
#include "runtime/base/align.h"

enum { COMMAND_ALIGN = 16 };

/* TO_DEVICE and TO_HOST move a range between a buffer and the host's address `host`. */
typedef enum { COMMAND_LAUNCH, COMMAND_COPY, COMMAND_TO_DEVICE, COMMAND_TO_HOST } command_kind;

typedef struct launch {
    cl_kernel kernel;
    cl_mem mems[OCL_MAX_BUFS];
    int n_mems;
    uint32_t groups, group_size, param_bytes;
} launch;

typedef struct transfer {
    cl_mem mem, source; /* source: of COPY */
    uint64_t off, source_off, bytes;
    void *host;
} transfer;

/* Followed by the parameters of a launch. */
typedef struct command {
    command_kind kind;
    uint64_t bytes; /* to the next command */
    union {
        launch launch;
        transfer transfer;
    } as;
    _Alignas(COMMAND_ALIGN) uint8_t params[];
} command;

/* ---- life ---- */

/* A launch of experts takes about 1 KiB, another one or a transfer 100 to 250 bytes. */
static uint64_t batch_bytes(cf_stream id)
{
    return id == CF_STREAM_COMPUTE ? 4 << 20 : 1 << 20;
}

uint64_t ocl_stream_bytes(cf_stream id)
{
    return batch_bytes(id) + OCL_VECTOR_FLOATS * 4;
}

int ocl_stream_init(ocl_gpu *g, cf_stream id, cf_err *err)
{
    cl_int status = CL_SUCCESS;
    ocl_stream *s = &g->streams[id];
    uint64_t bytes = batch_bytes(id);
    int rc = cf_ledger_charge(g->base.ledger, CF_POOL_DEVICE, "recorded commands",
                              ocl_stream_bytes(id), err);
    if (rc < 0)
        return rc;
    s->capacity = bytes;
    s->batch = malloc(bytes);
    if (!s->batch)
        return CF_FAIL(err, -ENOMEM, "out of memory for %llu bytes of recorded commands",
                       (unsigned long long)bytes);
    s->queue = ocl_api.clCreateCommandQueue(g->context, g->device, 0, &status);
    if (status != CL_SUCCESS)
        return CF_FAIL(err, CF_EDEVICE, "clCreateCommandQueue: %s", ocl_status_name(status));
    return 0;
}

void ocl_stream_finish(ocl_gpu *g, cf_stream id)
{
    ocl_stream *s = &g->streams[id];
    if (s->queue)
        ocl_api.clFinish(s->queue);
    for (int i = 0; i < OCL_RING_SIZE; i++)
        if (s->ring[i].event)
            ocl_api.clReleaseEvent(s->ring[i].event);
    if (s->queue)
        ocl_api.clReleaseCommandQueue(s->queue);
    if (s->capacity)
        cf_ledger_refund(g->base.ledger, CF_POOL_DEVICE, ocl_stream_bytes(id));
    free(s->batch);
    s->queue = NULL;
    s->batch = NULL;
    s->capacity = 0;
}

/* ---- recording ---- */

/* NULL once the device has failed. */
static command *command_push(ocl_gpu *g, cf_stream id, command_kind kind, uint32_t param_bytes)
{
    ocl_stream *s = &g->streams[id];
    if (atomic_load(&g->failed))
        return NULL;
    uint64_t bytes = cf_align_up(sizeof(command) + param_bytes, COMMAND_ALIGN);
    if (s->capacity - s->used < bytes) {
        cf_err cause = {0};
        CF_FAIL(&cause, CF_ELIMIT, "a batch of work has more than %llu bytes of commands",
                (unsigned long long)s->capacity);
        ocl_fail(g, &cause);
        return NULL;
    }
    command *c = (command *)(void *)(s->batch + s->used);
    memset(c, 0, sizeof *c);
    c->kind = kind;
    c->bytes = bytes;
    s->used += bytes;
    return c;
}

static void transfer_push(ocl_gpu *g, cf_stream id, command_kind kind, const transfer *t)
{
    command *c = command_push(g, id, kind, 0);
    if (c)
        c->as.transfer = *t;
}

static bool host_is_source(cf_span s)
{
    return s.buf->kind == CF_BUF_UPLOAD || s.buf->kind == CF_BUF_IMPORTED;
}

static bool host_is_target(cf_span s)
{
    return s.buf->kind == CF_BUF_READBACK || s.buf->kind == CF_BUF_IMPORTED;
}

void ocl_reads(ocl_gpu *g, cf_stream id, cf_span span)
{
    if (g->model != OCL_COHERENT && span.buf && host_is_source(span))
        transfer_push(g, id, COMMAND_TO_DEVICE,
                      &(transfer){.mem = ocl_buf_of(span)->mem,
                                  .off = span.off,
                                  .bytes = span.bytes,
                                  .host = span.buf->host + span.off});
}

void ocl_writes_after(ocl_gpu *g, cf_stream id, cf_span span)
{
    if (g->model != OCL_COHERENT && host_is_target(span))
        transfer_push(g, id, COMMAND_TO_HOST,
                      &(transfer){.mem = ocl_buf_of(span)->mem,
                                  .off = span.off,
                                  .bytes = span.bytes,
                                  .host = span.buf->host + span.off});
}

void ocl_launch(ocl_gpu *g, cf_stream id, ocl_kernel kernel, cf_format format,
                cf_gpu_buf *const *bufs, const ocl_params *params, uint32_t param_bytes)
{
    cf_err cause = {0};
    cl_kernel object = NULL;
    if (params->units == 0 || atomic_load(&g->failed))
        return;
    if (ocl_kernel_get(g, id, kernel, format, &object, &cause) < 0) {
        ocl_fail(g, &cause);
        return;
    }
    command *c = command_push(g, id, COMMAND_LAUNCH, param_bytes);
    if (!c)
        return;
    launch *l = &c->as.launch;
    l->kernel = object;
    l->n_mems = ocl_kernel_bufs(kernel);
    const cf_gpu_buf *any = bufs[l->n_mems - 1]; /* the output's: an unused argument wants one */
    for (int i = 0; i < l->n_mems; i++) {
        l->mems[i] = ((const ocl_buf *)(const void *)(bufs[i] ? bufs[i] : any))->mem;
        cf_assert(l->mems[i] != NULL);
    }
    l->groups = (uint32_t)cf_min_u64(params->units, g->max_groups);
    l->group_size = ocl_group_size(g);
    l->param_bytes = param_bytes;
    memcpy(c->params, params, param_bytes);
}

void ocl_copy(cf_gpu *gpu, cf_stream stream, cf_span dst, cf_span src)
{
    ocl_gpu *g = ocl_of(gpu);
    bool separate = g->model == OCL_SEPARATE;
    transfer t = {.mem = ocl_buf_of(dst)->mem, .off = dst.off, .bytes = dst.bytes};
    if (separate && host_is_source(src)) {
        cf_assert(t.mem != NULL); /* between pages of the host nothing is a device's work */
        t.host = src.buf->host + src.off;
        transfer_push(g, stream, COMMAND_TO_DEVICE, &t);
    } else if (separate && dst.buf->kind == CF_BUF_IMPORTED) {
        t = (transfer){.mem = ocl_buf_of(src)->mem,
                       .off = src.off,
                       .bytes = src.bytes,
                       .host = dst.buf->host + dst.off};
        transfer_push(g, stream, COMMAND_TO_HOST, &t);
        return;
    } else {
        ocl_reads(g, stream, src);
        t.source = ocl_buf_of(src)->mem;
        t.source_off = src.off;
        transfer_push(g, stream, COMMAND_COPY, &t);
    }
    ocl_writes_after(g, stream, dst);
}

void ocl_barrier(cf_gpu *gpu, cf_stream stream)
{
    (void)gpu;
    (void)stream;
}

/* ---- submit ---- */

static int launch_enqueue(cl_command_queue queue, const command *c, cf_err *err)
{
    int rc = 0;
    const launch *l = &c->as.launch;
    size_t local = l->group_size, global = (size_t)l->groups * local;
    for (int i = 0; i < l->n_mems; i++)
        OCL_TRY(ocl_api.clSetKernelArg(l->kernel, (cl_uint)i, sizeof(cl_mem), &l->mems[i]));
    OCL_TRY(ocl_api.clSetKernelArg(l->kernel, (cl_uint)l->n_mems, l->param_bytes, c->params));
    OCL_TRY(
        ocl_api.clEnqueueNDRangeKernel(queue, l->kernel, 1, NULL, &global, &local, 0, NULL, NULL));
fail:
    return rc;
}

static int command_enqueue(cl_command_queue queue, const command *c, cf_err *err)
{
    int rc = 0;
    const transfer *t = &c->as.transfer;
    switch (c->kind) {
    case COMMAND_LAUNCH:
        rc = launch_enqueue(queue, c, err);
        break;
    case COMMAND_COPY:
        OCL_TRY(ocl_api.clEnqueueCopyBuffer(queue, t->source, t->mem, t->source_off, t->off,
                                            t->bytes, 0, NULL, NULL));
        break;
    case COMMAND_TO_DEVICE:
        OCL_TRY(ocl_api.clEnqueueWriteBuffer(queue, t->mem, CL_FALSE, t->off, t->bytes, t->host, 0,
                                             NULL, NULL));
        break;
    case COMMAND_TO_HOST:
        OCL_TRY(ocl_api.clEnqueueReadBuffer(queue, t->mem, CL_FALSE, t->off, t->bytes, t->host, 0,
                                            NULL, NULL));
        break;
    }
fail:
    return rc;
}

static void seen_raise(ocl_stream *s, uint64_t value)
{
    uint64_t seen = atomic_load(&s->seen);
    while (seen < value && !atomic_compare_exchange_weak(&s->seen, &seen, value))
        ;
}

/* The event of a point, to be released; NULL when it is known to be reached. */
static cl_event point_event(ocl_stream *s, uint64_t value)
{
    cl_event event = NULL;
    if (value <= atomic_load(&s->seen))
        return NULL;
    pthread_mutex_lock(&s->lock);
    const ocl_point *p = &s->ring[value % OCL_RING_SIZE];
    if (p->value == value && ocl_api.clRetainEvent(p->event) == CL_SUCCESS)
        event = p->event;
    pthread_mutex_unlock(&s->lock);
    return event;
}

static int event_wait(cl_event event, cf_err *err)
{
    int rc = 0;
    OCL_TRY(ocl_api.clWaitForEvents(1, &event));
fail:
    return rc;
}

/* Takes over the event. The point that had its place has been reached by then. */
static int point_put(ocl_stream *s, uint64_t value, cl_event event, cf_err *err)
{
    int rc = 0;
    ocl_point *p = &s->ring[value % OCL_RING_SIZE], old = *p; /* only this thread writes it */
    if (old.event) {
        rc = event_wait(old.event, err);
        seen_raise(s, old.value);
    }
    pthread_mutex_lock(&s->lock);
    *p = (ocl_point){value, event};
    pthread_mutex_unlock(&s->lock);
    if (old.event)
        ocl_api.clReleaseEvent(old.event);
    return rc;
}

/* What is enqueued from here on runs after the furthest of the points of each other stream. */
static int waits_enqueue(ocl_gpu *g, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         cf_err *err)
{
    int rc = 0;
    uint64_t furthest[CF_STREAM_COUNT] = {0};
    cl_event events[CF_STREAM_COUNT];
    cl_uint n = 0;
    for (int i = 0; i < n_waits; i++)
        furthest[waits[i].stream] = cf_max_u64(furthest[waits[i].stream], waits[i].value);
    for (int i = 0; i < CF_STREAM_COUNT; i++) {
        cl_event e = i == (int)stream ? NULL : point_event(&g->streams[i], furthest[i]);
        if (e)
            events[n++] = e;
    }
    if (n)
        OCL_TRY(ocl_api.clEnqueueBarrierWithWaitList(g->streams[stream].queue, n, events, NULL));
fail:
    for (cl_uint i = 0; i < n; i++)
        ocl_api.clReleaseEvent(events[i]);
    return rc;
}

static int batch_enqueue(ocl_gpu *g, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         cf_err *err)
{
    int rc = 0;
    ocl_stream *s = &g->streams[stream];
    cl_event event = NULL;
    CF_TRY(waits_enqueue(g, stream, waits, n_waits, err));
    for (uint64_t at = 0; at < s->used;) {
        const command *c = (const command *)(const void *)(s->batch + at);
        CF_TRY(command_enqueue(s->queue, c, err));
        at += c->bytes;
    }
    OCL_TRY(ocl_api.clEnqueueMarkerWithWaitList(s->queue, 0, NULL, &event));
    CF_TRY(point_put(s, s->submitted + 1, event, err));
    OCL_TRY(ocl_api.clFlush(s->queue));
fail:
    return rc;
}

int ocl_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
               uint64_t *value, cf_err *err)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_stream *s = &g->streams[stream];
    cf_err cause = {0};
    int rc = ocl_failed(g, err);
    if (rc == 0 && batch_enqueue(g, stream, waits, n_waits, &cause) < 0) {
        ocl_fail(g, &cause);
        rc = ocl_failed(g, err);
    }
    s->used = 0;
    if (rc == 0)
        *value = ++s->submitted;
    return rc;
}

/* ---- wait ---- */

int ocl_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_stream *s = &g->streams[point.stream];
    if (point.value <= atomic_load(&s->seen))
        return 0;
    int rc = ocl_failed(g, err);
    if (rc < 0)
        return rc;
    cl_event event = point_event(s, point.value);
    if (!event) /* its place was taken meanwhile, or it was seen */
        return ocl_failed(g, err);
    cf_err cause = {0};
    rc = event_wait(event, &cause);
    ocl_api.clReleaseEvent(event);
    if (rc == 0) {
        seen_raise(s, point.value);
        return 0;
    }
    ocl_fail(g, &cause);
    return ocl_failed(g, err);
}

/* On a failed device every point counts as reached: whoever polls goes on to the wait or submit
 * that reports the failure. */
bool ocl_reached(cf_gpu *gpu, cf_gpu_point point)
{
    ocl_gpu *g = ocl_of(gpu);
    ocl_stream *s = &g->streams[point.stream];
    if (point.value <= atomic_load(&s->seen) || atomic_load(&g->failed))
        return true;
    cl_event event = point_event(s, point.value);
    if (!event)
        return true;
    cl_int state = CL_QUEUED;
    cl_int status = ocl_api.clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state,
                                           &state, NULL);
    ocl_api.clReleaseEvent(event);
    if (status != CL_SUCCESS || state < 0) {
        cf_err cause = {0};
        CF_FAIL(&cause, CF_EDEVICE, "the device's work failed: %s",
                ocl_status_name(status != CL_SUCCESS ? status : state));
        ocl_fail(g, &cause);
        return true;
    }
    if (state == CL_COMPLETE)
        seen_raise(s, point.value);
    return state == CL_COMPLETE;
}
