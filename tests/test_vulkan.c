/* The Vulkan backend's own duties, which test_ops cannot see: an API used against its rules (the
 * validation layer says so and the process still exits 0), streams that run ahead of what they
 * wait for, host pages that go stale after an import, refused memory or a lost device that
 * crashes, leaks or is forgotten, a machine without any Vulkan, and a damaged cache file. */
#include <fcntl.h>
#include <libgen.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "runtime/base/log.h"
#include "runtime/base/pages.h"
#include "tests/check.h"
#include "tests/support/on_device.h"
#include "tests/support/vulkan_faults.h"

/* In a child of its own: the loader reads its environment when an instance is made. */
static void no_driver_is_a_sentence(void)
{
    fflush(stdout);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        setenv("VK_DRIVER_FILES", "/dev/null", 1);
        setenv("VK_ICD_FILENAMES", "/dev/null", 1);
        cf_gpu_info infos[8];
        char why[512] = "";
        cf_gpu *gpu = NULL;
        cf_err err = {0};
        int n = cf_gpu_list(infos, 8, why, sizeof why);
        CHECK(n >= 1 && strcmp(infos[n - 1].backend, "ref") == 0); /* always there */
        for (int i = 0; i < n; i++)
            CHECK(strcmp(infos[i].backend, "vulkan") != 0);
        CHECK_HAS(why, "Vulkan");
        CHECK_INT(cf_gpu_open(&gpu, "vulkan", NULL, &err), CF_EDEVICE);
        CHECK_HAS(err.msg, "no Vulkan device");
        CHECK(gpu == NULL);
        cf_gpu_options options = {.check = true};
        cf_err direct = {0};
        CHECK_INT(cf_vk_fns.open(&gpu, 0, &options, &direct), CF_EDEVICE);
        CHECK_HAS(direct.msg, "Vulkan");
        fflush(stdout);
        _exit(check_case_failed ? 1 : 0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void devices_are_described(void)
{
    NEED_VULKAN();
    cf_gpu_info infos[8];
    cf_err err = {0};
    int n = cf_vk_fns.list(infos, 8, &err);
    REQUIRE(n >= 1);
    for (int i = 0; i < n; i++) {
        CHECK_STR(infos[i].backend, "vulkan");
        CHECK_INT(infos[i].index, i);
        CHECK(infos[i].name[0] != 0 && infos[i].heap_bytes > 0 && infos[i].max_alloc_bytes > 0);
        CHECK(!infos[i].cpu || infos[i].unified);
        CHECK(!infos[i].imports || infos[i].import_align >= 1);
    }
    cf_gpu *gpu = NULL;
    cf_gpu_options options = {0};
    CHECK_INT(cf_vk_fns.open(&gpu, n, &options, &err), CF_EDEVICE);
    CHECK_HAS(err.msg, "no Vulkan device");
    CHECK_INT(fault.memories, 0);
}

/* A ping-pong over both streams, longer than the ring of command buffers. */
static void streams_wait_for_each_other(void)
{
    NEED_VULKAN();
    enum { N = 1024, ROUNDS = 3 * VK_RING_SIZE };
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    cf_gpu_buf *up = make(gpu, CF_BUF_UPLOAD, N * 4), *a = make(gpu, CF_BUF_DEVICE, N * 4),
               *b = make(gpu, CF_BUF_DEVICE, N * 4), *down = make(gpu, CF_BUF_READBACK, N * 4);
    REQUIRE(up && a && b && down);
    float *x = cf_gpu_host_write(cf_span_of(up));
    for (int i = 0; i < N; i++)
        x[i] = (float)i;
    cf_gpu_copy(gpu, CF_STREAM_TRANSFER, cf_span_of(a), cf_span_of(up));
    cf_gpu_point last = submit(gpu, CF_STREAM_TRANSFER, NULL);
    for (int i = 0; i < ROUNDS; i++) {
        cf_gpu_barrier(gpu, CF_STREAM_COMPUTE);
        cf_gpu_add(gpu, CF_STREAM_COMPUTE,
                   &(cf_op_add){cf_span_of(a), {0}, cf_span_of(b), N, 1.0f, 0.0f});
        cf_gpu_barrier(gpu, CF_STREAM_COMPUTE);
        cf_gpu_add(gpu, CF_STREAM_COMPUTE,
                   &(cf_op_add){cf_span_of(b), cf_span_of(a), cf_span_of(b), N, 2.0f, -1.0f});
        last = submit(gpu, CF_STREAM_COMPUTE, &last);
        cf_gpu_barrier(gpu, CF_STREAM_TRANSFER);
        cf_gpu_copy(gpu, CF_STREAM_TRANSFER, cf_span_of(a), cf_span_of(b));
        last = submit(gpu, CF_STREAM_TRANSFER, &last);
    }
    cf_gpu_barrier(gpu, CF_STREAM_TRANSFER);
    cf_gpu_copy(gpu, CF_STREAM_TRANSFER, cf_span_of(down), cf_span_of(a));
    last = submit(gpu, CF_STREAM_TRANSFER, NULL);
    cf_err err = {0};
    CHECK_INT(cf_gpu_wait(gpu, last, &err), 0);
    CHECK(cf_gpu_reached(gpu, last));
    CHECK(cf_gpu_reached(gpu, (cf_gpu_point){CF_STREAM_COMPUTE, 0}));
    const float *y = cf_gpu_host_read(cf_span_of(down));
    CHECK(memcmp(y, x, N * 4) == 0);             /* 2 x - x */
    last = submit(gpu, CF_STREAM_COMPUTE, NULL); /* an empty batch has a point too */
    CHECK_INT(cf_gpu_wait(gpu, last, &err), 0);
    cf_gpu_buf_destroy(&up);
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&b);
    cf_gpu_buf_destroy(&down);
    close_silent(&gpu);
}

/* Pages written after the import are what the device reads; as copy source and, on a unified
 * device, by an op in place. */
static void imported_pages_stay_live(void)
{
    NEED_VULKAN();
    enum { N = 3 * 4096 / 4 };
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    if (!cf_gpu_get_info(gpu)->imports) {
        close_silent(&gpu);
        SKIP("the device imports no host pages");
    }
    cf_pages pages = {0};
    cf_err err = {0};
    cf_gpu_buf *in = NULL, *down = make(gpu, CF_BUF_READBACK, N * 4);
    CHECK_INT(cf_pages_init(&pages, N * 4, NULL, CF_POOL_HOST, "a test's pages", &err), 0);
    CHECK_INT(cf_gpu_buf_import(gpu, pages.data, N * 4, "a test's pages", &in, &err), 0);
    REQUIRE(in && down);
    CHECK(in->host == pages.data);
    bool in_place = cf_gpu_get_info(gpu)->unified;
    for (int round = 0; round < 3; round++) {
        float *x = cf_gpu_host_write(cf_span_of(in));
        for (int i = 0; i < N; i++)
            x[i] = (float)(i + 1000 * round);
        if (in_place)
            cf_gpu_add(gpu, CF_STREAM_COMPUTE,
                       &(cf_op_add){cf_span_of(in), {0}, cf_span_of(down), N, 1.0f, 0.0f});
        else
            cf_gpu_copy(gpu, CF_STREAM_COMPUTE, cf_span_of(down), cf_span_of(in));
        submit_and_wait(gpu, CF_STREAM_COMPUTE);
        CHECK(memcmp(cf_gpu_host_read(cf_span_of(down)), x, N * 4) == 0);
    }
    cf_gpu_buf *odd = NULL;
    cf_err misaligned = {0};
    CHECK_INT(cf_vk_fns.buf_import(gpu, pages.data + 512, 4096, "odd pages", &odd, &misaligned),
              -EINVAL);
    CHECK_HAS(misaligned.msg, "4096 bytes");
    CHECK(odd == NULL);
    cf_gpu_buf_destroy(&in);
    cf_gpu_buf_destroy(&down);
    cf_pages_finish(&pages);
    close_silent(&gpu);
}

static void no_import_is_reported(void)
{
    NEED_VULKAN();
    cf_gpu *gpu = open_checked(NULL, true);
    REQUIRE(gpu);
    cf_err err = {0};
    cf_gpu_buf *buf = NULL;
    _Alignas(4096) static uint8_t page[4096];
    CHECK(!cf_gpu_get_info(gpu)->imports);
    CHECK_INT(cf_gpu_buf_import(gpu, page, sizeof page, "a page", &buf, &err), CF_EDEVICE);
    CHECK_HAS(err.msg, "a page");
    CHECK(buf == NULL);
    close_silent(&gpu);
}

static void refused_memory_is_a_sentence(void)
{
    NEED_VULKAN();
    cf_ledger *ledger = NULL;
    cf_err err = {0};
    CHECK_INT(cf_ledger_create(&ledger, 0, 0, &err), 0);
    cf_gpu *gpu = open_checked(ledger, false);
    REQUIRE(gpu);
    cf_gpu_buf *first = make(gpu, CF_BUF_DEVICE, 1 << 20), *buf = NULL;
    uint64_t used = cf_ledger_used(ledger, CF_POOL_DEVICE);
    int memories = fault.memories, buffers = fault.buffers;
    fault.refuse_memory_in = 0;
    CHECK_INT(cf_gpu_buf_create(gpu, CF_BUF_DEVICE, 7654320, "the expert slots", &buf, &err),
              CF_EDEVICE);
    CHECK_HAS(err.msg, "the expert slots");
    CHECK_HAS(err.msg, "7654320 bytes");
    CHECK(buf == NULL);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), used);
    CHECK_INT(fault.memories, memories);
    CHECK_INT(fault.buffers, buffers);
    buf = make(gpu, CF_BUF_DEVICE, 7654320); /* the device goes on */
    cf_gpu_buf_destroy(&buf);

    /* The device's own bounds, which a software device does not enforce. */
    const cf_gpu_info *info = cf_gpu_get_info(gpu);
    cf_err large = {0};
    CHECK(cf_vk_fns.buf_create(gpu, CF_BUF_DEVICE, info->max_alloc_bytes + 1, "all", &buf, &large) <
          0);
    CHECK_HAS(large.msg, "bytes in one buffer");
    vk_gpu *vk = vk_of(gpu);
    uint64_t limit = vk->heap_limit[0];
    for (uint32_t i = 0; i < VK_MAX_MEMORY_HEAPS; i++)
        vk->heap_limit[i] = (1 << 20) + used;
    cf_err heap = {0};
    CHECK_INT(cf_gpu_buf_create(gpu, CF_BUF_DEVICE, (1 << 20) + 16, "the rest", &buf, &heap),
              CF_EDEVICE);
    char bound[32];
    snprintf(bound, sizeof bound, "heap of %llu", (unsigned long long)(used + (1 << 20)));
    CHECK_HAS(heap.msg, "the rest: 1048592 bytes do not fit the device's");
    CHECK_HAS(heap.msg, bound);
    buf = make(gpu, CF_BUF_DEVICE, 1 << 20);
    vk->heap_limit[0] = limit;
    cf_gpu_buf_destroy(&buf);
    cf_gpu_buf_destroy(&first);
    close_silent(&gpu);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 0);
    cf_ledger_destroy(&ledger);
}

/* After the loss every submit and wait says the same; polling does not hang; close works. */
static void lost_device_is_remembered(void)
{
    NEED_VULKAN();
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    cf_gpu_buf *a = make(gpu, CF_BUF_DEVICE, 64), *b = make(gpu, CF_BUF_DEVICE, 64);
    cf_gpu_copy(gpu, CF_STREAM_COMPUTE, cf_span_of(a), cf_span_of(b));
    cf_gpu_point good = submit(gpu, CF_STREAM_COMPUTE, NULL);
    cf_err err = {0}, again = {0};
    CHECK_INT(cf_gpu_wait(gpu, good, &err), 0);
    fault.lose_at_submit = true;
    cf_gpu_copy(gpu, CF_STREAM_COMPUTE, cf_span_of(b), cf_span_of(a));
    uint64_t value = 0;
    CHECK_INT(cf_gpu_submit(gpu, CF_STREAM_COMPUTE, NULL, 0, &value, &err), CF_EDEVICE);
    CHECK_HAS(err.msg, "VK_ERROR_DEVICE_LOST");
    fault.lose_at_submit = false;
    cf_gpu_copy(gpu, CF_STREAM_TRANSFER, cf_span_of(b), cf_span_of(a));
    CHECK_INT(cf_gpu_submit(gpu, CF_STREAM_TRANSFER, NULL, 0, &value, &again), CF_EDEVICE);
    CHECK_STR(again.msg, err.msg);
    CHECK_INT(cf_gpu_wait(gpu, good, &again), 0); /* that one did happen */
    CHECK(cf_gpu_reached(gpu, good));
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&b);
    close_silent(&gpu);
}

static void refused_pipeline_reaches_submit(void)
{
    NEED_VULKAN();
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    cf_gpu_buf *a = make(gpu, CF_BUF_DEVICE, 64);
    cf_op_add op = {cf_span_of(a), {0}, cf_span_of(a), 16, 1.0f, 0.0f};
    fault.refuse_pipelines = true;
    cf_gpu_add(gpu, CF_STREAM_COMPUTE, &op); /* does not fail by itself */
    fault.refuse_pipelines = false;
    uint64_t value = 0;
    cf_err err = {0};
    CHECK_INT(cf_gpu_submit(gpu, CF_STREAM_COMPUTE, NULL, 0, &value, &err), CF_EDEVICE);
    CHECK_HAS(err.msg, "add shader");
    CHECK_HAS(err.msg, "VK_ERROR_OUT_OF_HOST_MEMORY");
    cf_gpu_buf_destroy(&a);
    close_silent(&gpu);
}

/* The counter of the cases above counts: a copy beyond its buffer's end, never submitted. */
static void validation_is_listening(void)
{
    NEED_VULKAN();
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    if (!vk_of(gpu)->messenger) {
        cf_gpu_close(&gpu);
        SKIP("the validation layer is not installed");
    }
    cf_gpu_buf *a = make(gpu, CF_BUF_DEVICE, 4096), *b = make(gpu, CF_BUF_DEVICE, 4096);
    int level = cf_log_level();
    cf_log_level_set(CF_LOG_QUIET);
    cf_vk_fns.copy(gpu, CF_STREAM_COMPUTE, (cf_span){a, 4000, 4096}, cf_span_of(b));
    cf_log_level_set(level);
    CHECK(cf_gpu_validation_errors(gpu) > 0);
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&b);
    cf_gpu_close(&gpu);
}

/* Tables of expert ops: more in one batch than a block holds, each op sees its own; over many
 * batches the blocks are used again and not more of them made. */
static void op_tables_are_recycled(void)
{
    NEED_VULKAN();
    enum { OPS = 300, EXPERTS = 64, FFN = 4, HIDDEN = 2, BATCHES = 16 };
    cf_ledger *ledger = NULL;
    cf_err err = {0};
    CHECK_INT(cf_ledger_create(&ledger, 0, 0, &err), 0);
    cf_gpu *gpu = open_checked(ledger, false);
    REQUIRE(gpu);
    cf_gpu_buf *w = make(gpu, CF_BUF_UPLOAD, OPS * 16 * 4), *ones = make(gpu, CF_BUF_UPLOAD, 1024),
               *pairs = make(gpu, CF_BUF_UPLOAD, EXPERTS * 4),
               *out = make(gpu, CF_BUF_READBACK, OPS * EXPERTS * HIDDEN * 4);
    float *wf = cf_gpu_host_write(cf_span_of(w)), *of = cf_gpu_host_write(cf_span_of(ones));
    uint32_t *pf = cf_gpu_host_write(cf_span_of(pairs));
    for (int i = 0; i < OPS * 16; i++)
        wf[i] = (float)(i / 16);
    for (int i = 0; i < 256; i++)
        of[i] = 1.0f;
    for (uint32_t i = 0; i < EXPERTS; i++)
        pf[i] = EXPERTS - 1 - i;
    uint64_t steady = 0;
    for (int batch = 0; batch < BATCHES; batch++) {
        for (uint64_t o = 0; o < OPS; o++) {
            cf_expert_work work[EXPERTS];
            memset(work, 0, sizeof work);
            for (uint32_t e = 0; e < EXPERTS; e++) {
                cf_span s = cf_span_sub(cf_span_of(w), o * 64, 64);
                work[e].down = (cf_weight){.span = s, .dtype = CF_F32, .rows = HIDDEN, .cols = FFN};
                work[e].pair_begin = e;
                work[e].pair_count = 1;
            }
            cf_span y =
                cf_span_sub(cf_span_of(out), o * EXPERTS * HIDDEN * 4, EXPERTS * HIDDEN * 4);
            /* Past the hazard tracker, whose work grows with the square of a batch. */
            cf_vk_fns.expert_down(gpu, CF_STREAM_COMPUTE,
                                  &(cf_op_expert_down){.experts = work,
                                                       .n_experts = EXPERTS,
                                                       .h = cf_span_of(ones),
                                                       .pairs = cf_span_of(pairs),
                                                       .weights = cf_span_of(ones),
                                                       .out = y,
                                                       .n_rows = EXPERTS,
                                                       .k = 1,
                                                       .hidden = HIDDEN,
                                                       .ffn = FFN});
        }
        submit_and_wait(gpu, CF_STREAM_COMPUTE);
        const float *y = cf_gpu_host_read(cf_span_of(out));
        int wrong = 0;
        for (int i = 0; i < OPS * EXPERTS * HIDDEN; i++)
            wrong += y[i] != 4.0f * (float)(i / (EXPERTS * HIDDEN));
        CHECK_INT(wrong, 0);
        if (batch == BATCHES / 2)
            steady = cf_ledger_used(ledger, CF_POOL_DEVICE);
    }
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), steady);
    cf_gpu_buf_destroy(&w);
    cf_gpu_buf_destroy(&ones);
    cf_gpu_buf_destroy(&pairs);
    cf_gpu_buf_destroy(&out);
    close_silent(&gpu);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 0);
    cf_ledger_destroy(&ledger);
}

/* ---- the cache file ---- */

static void flip(const char *path, long at)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte = 0;
    CHECK(fd >= 0 && pread(fd, &byte, 1, at) == 1);
    byte ^= 1;
    CHECK(pwrite(fd, &byte, 1, at) == 1);
    close(fd);
}

static void cache_file_is_whole_or_ignored(void)
{
    char dir[] = "/tmp/catflap-vk-XXXXXX", path[4096], deeper[4200];
    REQUIRE(mkdtemp(dir));
    const uint8_t uuid[VK_UUID_SIZE] = {0xab, 1}, data[5000] = {1, 2, 3};
    setenv("XDG_CACHE_HOME", dir, 1);
    CHECK_INT(vk_cache_path(uuid, 0x1234, path, sizeof path), 0);
    CHECK_HAS(path, dir);
    CHECK_HAS(path, "/catflap/vulkan-ab010000");
    CHECK_HAS(path, "-00001234.bin");
    CHECK_INT(vk_cache_path(uuid, 0x1234, path, 20), -ENOENT);
    CHECK_INT(vk_cache_path(uuid, 0x1234, path, sizeof path), 0);
    size_t bytes = 0;
    CHECK(vk_cache_read(path, &bytes) == NULL); /* absent */
    CHECK_INT(vk_cache_write(path, data, sizeof data), 0);
    void *back = vk_cache_read(path, &bytes);
    CHECK(back && bytes == sizeof data && memcmp(back, data, bytes) == 0);
    free(back);
    flip(path, 3000); /* content */
    CHECK(vk_cache_read(path, &bytes) == NULL);
    flip(path, 3000);
    flip(path, 15); /* length */
    CHECK(vk_cache_read(path, &bytes) == NULL);
    flip(path, 15);
    back = vk_cache_read(path, &bytes);
    CHECK(back != NULL);
    free(back);
    CHECK_INT(truncate(path, 4000), 0);
    CHECK(vk_cache_read(path, &bytes) == NULL);
    snprintf(deeper, sizeof deeper, "%s/under/a/file", path);
    CHECK(vk_cache_write(deeper, data, sizeof data) < 0);
    unsetenv("XDG_CACHE_HOME");
    CHECK_INT(unlink(path), 0); /* and no temporary file beside it: */
    CHECK_INT(rmdir(dirname(path)), 0);
    CHECK_INT(rmdir(dir), 0);
}

int main(int argc, char **argv)
{
    (void)argc;
    setvbuf(stdout, NULL, _IOLBF, 0);
    RUN(no_driver_is_a_sentence); /* first: nothing of the loader is up yet */
    vulkan_begin(argv[0]);
    RUN(devices_are_described);
    RUN(streams_wait_for_each_other);
    RUN(imported_pages_stay_live);
    RUN(no_import_is_reported);
    RUN(refused_memory_is_a_sentence);
    RUN(lost_device_is_remembered);
    RUN(refused_pipeline_reaches_submit);
    RUN(validation_is_listening);
    RUN(op_tables_are_recycled);
    RUN(cache_file_is_whole_or_ignored);
    return check_done();
}
