/* What a device copies: see bench_device.h. */
#include "tools/bench_device.h"

#include <string.h>

#include "gpu/gpu.h"
#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "tools/bench_io.h"

enum { COPY_BYTES = 64 << 20, SAMPLES = 3, SAMPLE_NS = 60000000, IN_A_BATCH = 4 };

static int copies_run(cf_gpu *gpu, cf_gpu_buf *to, cf_gpu_buf *from, uint32_t n, cf_err *err)
{
    cf_gpu_point point = {.stream = CF_STREAM_TRANSFER};
    for (uint32_t i = 0; i < n; i++) {
        cf_gpu_barrier(gpu, CF_STREAM_TRANSFER);
        cf_gpu_copy(gpu, CF_STREAM_TRANSFER, cf_span_of(to), cf_span_of(from));
    }
    int rc = cf_gpu_submit(gpu, CF_STREAM_TRANSFER, NULL, 0, &point.value, err);
    return rc < 0 ? rc : cf_gpu_wait(gpu, point, err);
}

/* Bytes copied, in GB/s. */
static int copy_measure(cf_gpu *gpu, cf_gpu_buf *to, cf_gpu_buf *from, double *out, cf_err *err)
{
    double samples[SAMPLES];
    /* Once unmeasured: what was never written reads impossibly fast. */
    int rc = copies_run(gpu, to, from, 1, err);
    for (int i = 0; i < SAMPLES && rc >= 0; i++) {
        uint64_t begin = cf_clock_ns(), now = begin, bytes = 0;
        while (rc >= 0 && now - begin < SAMPLE_NS) {
            rc = copies_run(gpu, to, from, IN_A_BATCH, err);
            bytes += IN_A_BATCH * from->bytes;
            now = cf_clock_ns();
        }
        samples[i] = (double)bytes / (double)(now - begin);
    }
    if (rc >= 0)
        *out = cf_bench_median(samples, SAMPLES);
    return rc < 0 ? rc : 0;
}

int cf_bench_device_measure(cf_bench_device *out, const cf_options *options, cf_err *err)
{
    cf_gpu *gpu = NULL;
    cf_gpu_buf *host = NULL, *a = NULL, *b = NULL;
    *out = (cf_bench_device){0};
    int rc =
        cf_gpu_open(&gpu, options->device, &(cf_gpu_options){.threads = options->threads}, err);
    if (rc < 0)
        return rc;
    uint64_t most = cf_gpu_get_info(gpu)->max_alloc_bytes;
    uint64_t bytes = most ? cf_min_u64(COPY_BYTES, cf_align_down(most, 4096)) : COPY_BYTES;
    CF_TRY(cf_gpu_buf_create(gpu, CF_BUF_UPLOAD, bytes, "bench, host", &host, err));
    CF_TRY(cf_gpu_buf_create(gpu, CF_BUF_DEVICE, bytes, "bench, from", &a, err));
    CF_TRY(cf_gpu_buf_create(gpu, CF_BUF_DEVICE, bytes, "bench, to", &b, err));
    memset(cf_gpu_host_write(cf_span_of(host)), 1, bytes);
    CF_TRY(copy_measure(gpu, a, host, &out->upload, err));
    CF_TRY(copy_measure(gpu, b, a, &out->memory, err));
    out->memory *= 2;
fail:
    cf_gpu_buf_destroy(&host);
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&b);
    cf_gpu_close(&gpu);
    return rc;
}
