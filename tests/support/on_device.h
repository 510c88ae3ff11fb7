/* What tests of one backend do with a device: buffers, submits and waits that must succeed. Included
 * by test programs, after check.h. */
#ifndef CF_TESTS_ON_DEVICE_H
#define CF_TESTS_ON_DEVICE_H

#include "gpu/gpu.h"

static inline cf_gpu_buf *make(cf_gpu *gpu, cf_buf_kind kind, uint64_t bytes)
{
    cf_gpu_buf *buf = NULL;
    cf_err err = {0};
    CHECK_INT(cf_gpu_buf_create(gpu, kind, bytes, "a test's buffer", &buf, &err), 0);
    CHECK_STR(err.msg, "");
    return buf;
}

static inline cf_gpu_point submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *wait)
{
    cf_gpu_point p = {stream, 0};
    cf_err err = {0};
    CHECK_INT(cf_gpu_submit(gpu, stream, wait, wait ? 1 : 0, &p.value, &err), 0);
    CHECK_STR(err.msg, "");
    return p;
}

static inline void submit_and_wait(cf_gpu *gpu, cf_stream stream)
{
    cf_err err = {0};
    CHECK_INT(cf_gpu_wait(gpu, submit(gpu, stream, NULL), &err), 0);
}

#endif
