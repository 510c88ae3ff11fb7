/* What a backend implements. Included by gpu/gpu.c, gpu/hazard.c and the backends only.
 *
 * A backend's device struct starts with cf_gpu; its buffer struct starts with cf_gpu_buf. The
 * functions get validated arguments (spans in bounds, waits already submitted). */
#ifndef CF_GPU_BACKEND_H
#define CF_GPU_BACKEND_H

#include <stdatomic.h>

#include "gpu/gpu.h"
#include "gpu/ops.h"

struct cf_hazards; /* gpu/hazard.h */

struct cf_gpu_fns {
    const char *name;  /* as on the command line */
    const char *title; /* as in sentences */
    /* Fills at most max infos, returns the count, or negative with the reason in err. Must not
     * keep anything open. */
    int (*list)(cf_gpu_info *out, int max, cf_err *err);
    /* Opens the index-th device; fills info and its own fields, gpu.c the rest of cf_gpu. */
    int (*open)(cf_gpu **out, int index, const cf_gpu_options *options, cf_err *err);
    void (*close)(cf_gpu *gpu);
    /* cf_gpu_buf.{gpu,kind,bytes,name,id,pool} are set by the caller; the backend sets host. */
    int (*buf_create)(cf_gpu *gpu, cf_buf_kind kind, uint64_t bytes, const char *name,
                      cf_gpu_buf **out, cf_err *err);
    int (*buf_import)(cf_gpu *gpu, void *pages, uint64_t bytes, const char *name, cf_gpu_buf **out,
                      cf_err *err);
    void (*buf_destroy)(cf_gpu_buf *buf);
    void (*copy)(cf_gpu *gpu, cf_stream stream, cf_span dst, cf_span src);
    void (*barrier)(cf_gpu *gpu, cf_stream stream);
    int (*submit)(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                  uint64_t *value, cf_err *err);
    int (*wait)(cf_gpu *gpu, cf_gpu_point point, cf_err *err);
    bool (*reached)(cf_gpu *gpu, cf_gpu_point point);
    int (*validation_errors)(const cf_gpu *gpu);
    /* Of a computable format: see cf_gpu_supports. */
    bool (*supports)(const cf_gpu *gpu, cf_format format);
#define CF_OP_FN(name) void (*name)(cf_gpu * gpu, cf_stream stream, const cf_op_##name *op);
    CF_GPU_OPS(CF_OP_FN)
#undef CF_OP_FN
};

struct cf_gpu {
    const struct cf_gpu_fns *fns;
    cf_gpu_info info;
    cf_ledger *ledger; /* borrowed; may be NULL */
    struct cf_hazards *hazards; /* NULL unless check */
    uint32_t next_buf_id;
    _Atomic uint64_t submitted[CF_STREAM_COUNT]; /* last point of each stream */
    _Atomic int64_t barriers, drop_barrier;      /* tests: counted, and the one to leave out */
};

extern const struct cf_gpu_fns cf_ref_fns;
extern const struct cf_gpu_fns cf_vk_fns;
extern const struct cf_gpu_fns cf_ocl_fns;

#endif
