/* The device seam: memory, two streams with timelines, and the ops of gpu/ops.h.
 *
 * A backend (ref, vulkan, ...) implements struct cf_gpu_fns (gpu/backend.h). The functions here
 * validate, feed the hazard tracker (gpu/hazard.h) when `check` is on, and call the backend.
 *
 * Recording: ops and copies append to a stream's open batch; nothing is ordered inside a stream
 * except by cf_gpu_barrier, and between streams except by the waits of cf_gpu_submit. A submit
 * closes the batch and returns a point on the stream's timeline, reached when the work is done.
 *
 * Failure: recording never fails by itself; a device failure is sticky and is reported by the
 * next submit or wait. Every size, offset and stride of an op is asserted against its buffer.
 *
 * Threads: each stream is recorded and submitted by one thread at a time; buffers may be created
 * and destroyed by any one thread while no other uses them; wait and reached from any thread. */
#ifndef CF_GPU_GPU_H
#define CF_GPU_GPU_H

#include <stdint.h>

#include "runtime/base/err.h"
#include "runtime/base/format.h"
#include "runtime/base/ledger.h"

typedef struct cf_gpu cf_gpu;

typedef enum { CF_STREAM_COMPUTE, CF_STREAM_TRANSFER, CF_STREAM_COUNT } cf_stream;

/* What a device is, as `info --devices` lists it. */
typedef struct cf_gpu_info {
    char backend[16]; /* "ref", "vulkan", ... */
    char name[128];
    int index;              /* of the backend's devices */
    bool cpu;               /* a software device: its memory is the host's */
    int threads;            /* of an open device: that it computes with, as the options asked; 0:
                               it takes no number */
    bool unified;           /* the device computes on host memory without a copy */
    bool imports;           /* host pages can be imported (cf_gpu_buf_import) */
    bool kv_q8;             /* a cache of keys and values may be in CF_Q8_0 (kv_dtype) */
    bool own_transfer;      /* a transfer queue of its own: copies overlap compute */
    uint32_t import_align;  /* of an imported pointer and size */
    uint64_t heap_bytes;    /* device-local memory; 0 = unknown */
    uint64_t free_bytes;    /* of it, what the driver says may still be taken; 0 = unknown */
    uint64_t max_alloc_bytes; /* largest single buffer */
    uint64_t overhead_bytes;  /* the backend's own buffers, charged at open */
} cf_gpu_info;

typedef struct cf_gpu_options {
    int threads;       /* for backends that compute on the host; 0 = all processors */
    bool check;        /* hazard tracker, and the API's validation layer where there is one */
    bool no_import;    /* behave as if host pages could not be imported (tests, work-arounds) */
    cf_ledger *ledger; /* charged with every buffer; may be NULL */
} cf_gpu_options;

/* Memory kinds. UPLOAD and READBACK are host-visible and coherent: host pointer in cf_gpu_buf. */
typedef enum {
    CF_BUF_DEVICE,   /* computed on; host pointer only on ref */
    CF_BUF_UPLOAD,   /* written by the host, read by the device */
    CF_BUF_READBACK, /* written by the device, read by the host */
    CF_BUF_IMPORTED  /* the caller's pages */
} cf_buf_kind;

/* Plain data for readers; created, owned and destroyed through the functions below. Backends
 * embed it as the first member of their own struct. */
typedef struct cf_gpu_buf {
    cf_gpu *gpu;
    cf_buf_kind kind;
    uint32_t id;    /* unique per device, for the hazard tracker */
    uint64_t bytes; /* usable size */
    uint8_t *host;  /* mapped address, or NULL */
    const char *name;
    cf_pool pool; /* where it was charged; meaningless for IMPORTED (its pages were charged) */
} cf_gpu_buf;

/* A range of a buffer. */
typedef struct cf_span {
    cf_gpu_buf *buf;
    uint64_t off;
    uint64_t bytes;
} cf_span;

static inline cf_span cf_span_of(cf_gpu_buf *buf)
{
    return (cf_span){buf, 0, buf->bytes};
}

/* A sub-range; the caller guarantees off + bytes <= s.bytes (asserted when used). */
static inline cf_span cf_span_sub(cf_span s, uint64_t off, uint64_t bytes)
{
    return (cf_span){s.buf, s.off + off, bytes};
}

/* A point on a stream's timeline. value 0 is always reached. */
typedef struct cf_gpu_point {
    cf_stream stream;
    uint64_t value;
} cf_gpu_point;

/* ---- devices ---- */

/* Every device of every backend that this build and this machine have, ref last. Returns the
 * count (at most max). Backends that cannot start are left out; `why` (may be NULL, why_size
 * bytes) then says so, a line each. */
int cf_gpu_list(cf_gpu_info *out, int max, char *why, size_t why_size);

/* `device`: "auto", "vulkan", "opencl", "ref", each but the first with an optional ":index". auto =
 * the first GPU of vulkan, else of opencl, else the CPU by opencl, else by vulkan, else ref. */
int cf_gpu_open(cf_gpu **out, const char *device, const cf_gpu_options *options, cf_err *err);
void cf_gpu_close(cf_gpu **gpu); /* waits for the device; accepts NULL; leaves NULL */
const cf_gpu_info *cf_gpu_get_info(const cf_gpu *gpu);
/* Every op on weights takes them in this format. Ops assert it: ask before loading. F32, F16 and
 * BF16 are supported everywhere; ref supports every computable format. */
bool cf_gpu_supports(const cf_gpu *gpu, cf_format format);

/* Messages of the API's validation layer since open (0 where there is none or check is off). */
int cf_gpu_validation_errors(const cf_gpu *gpu);

/* ---- memory ---- */

/* Charged to CF_POOL_DEVICE, whatever the kind. DEVICE memory has no defined content. */
int cf_gpu_buf_create(cf_gpu *gpu, cf_buf_kind kind, uint64_t bytes, const char *name,
                      cf_gpu_buf **out, cf_err *err);

/* The caller's pages (aligned to import_align, alive until destroy) as a device buffer; not
 * charged again. On a unified device ops may use it in place; elsewhere it is a copy source. */
int cf_gpu_buf_import(cf_gpu *gpu, void *pages, uint64_t bytes, const char *name,
                      cf_gpu_buf **out, cf_err *err);
void cf_gpu_buf_destroy(cf_gpu_buf **buf); /* the device must be done with it; accepts NULL */

/* The host is about to write (read) this range of a host-visible buffer: returns its address.
 * With `check` on it is a hazard when device work on the range has not been waited for. */
void *cf_gpu_host_write(cf_span span);
const void *cf_gpu_host_read(cf_span span);

/* ---- streams ---- */

void cf_gpu_copy(cf_gpu *gpu, cf_stream stream, cf_span dst, cf_span src); /* equal bytes */

/* Everything recorded before on this stream (earlier submits included) happens, and is visible,
 * before everything after. */
void cf_gpu_barrier(cf_gpu *gpu, cf_stream stream);

/* Submits the open batch, after the given points are reached on the device (points of the same
 * stream are not needed; points must have been submitted already). *value: this batch's point.
 * An empty batch is valid. */
int cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                  uint64_t *value, cf_err *err);

/* Blocks the calling thread until the point is reached. Host reads of READBACK memory written by
 * that work are then valid. */
int cf_gpu_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err);
bool cf_gpu_reached(cf_gpu *gpu, cf_gpu_point point);

/* ---- tests ---- */

/* Leaves out the n-th barrier (from 0, counted over both streams since open) from now on, for
 * the proof that the hazard tracker sees it; -1 = none. Returns barriers counted so far. */
int64_t cf_gpu_test_drop_barrier(cf_gpu *gpu, int64_t n);

/* Calls fn instead of aborting on a hazard (NULL: abort again). */
typedef void cf_hazard_fn(void *user, const char *sentence);
void cf_gpu_on_hazard(cf_gpu *gpu, cf_hazard_fn *fn, void *user);

#endif
