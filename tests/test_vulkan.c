/* The Vulkan backend's own duties, which test_ops cannot see: an API used against its rules (the
 * validation layer says so and the process still exits 0), streams that run ahead of what they
 * wait for, host pages that go stale after an import, refused memory or a lost device that
 * crashes, leaks or is forgotten, a machine without any Vulkan, and a damaged cache file.
 *
 * Faults are injected at the device's function table: the linker routes volkLoadDeviceTable
 * through __wrap_volkLoadDeviceTable (tests.mk). */
#include <fcntl.h>
#include <libgen.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu/formats.h"
#include "gpu/vulkan/vk.h"
#include "runtime/base/align.h"
#include "runtime/base/f16.h"
#include "runtime/base/log.h"
#include "runtime/base/pages.h"
#include "runtime/base/rng.h"
#include "tests/check.h"
#include "tests/support/on_device.h"
#include "tests/support/op_build.h"

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

/* ---- helpers ---- */

static const char *no_vulkan; /* why, when there is none */

/* NULL without a device: the case is to be skipped. */
static cf_gpu *open_checked(cf_ledger *ledger, bool no_import)
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
static void close_silent(cf_gpu **gpu)
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

/* ---- cases ---- */

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

static void fill(cf_rng *rng, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(cf_rng_unit(rng) * 2.0 - 1.0);
}

/* Whatever rows stand beside it, a row's result has the same bits. */
static void rows_do_not_see_each_other(void)
{
    NEED_VULKAN();
    enum { ROWS = 37, COLS = 203, N = 6 };
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    cf_rng rng = {7};
    cf_gpu_buf *w = make(gpu, CF_BUF_UPLOAD, ROWS * COLS * 4),
               *x = make(gpu, CF_BUF_UPLOAD, N * COLS * 4),
               *all = make(gpu, CF_BUF_READBACK, N * ROWS * 4),
               *one = make(gpu, CF_BUF_READBACK, N * ROWS * 4);
    fill(&rng, cf_gpu_host_write(cf_span_of(w)), ROWS * COLS);
    fill(&rng, cf_gpu_host_write(cf_span_of(x)), N * COLS);
    cf_op_linear op = {.w = {.span = cf_span_of(w), .dtype = CF_F32, .rows = ROWS, .cols = COLS},
                       .x = cf_span_of(x),
                       .y = cf_span_of(all),
                       .n_rows = N,
                       .x_stride = COLS,
                       .y_stride = ROWS,
                       .scale = 0.5f};
    cf_gpu_linear(gpu, CF_STREAM_COMPUTE, &op);
    for (uint64_t r = 0; r < N; r++) {
        op.x = cf_span_sub(cf_span_of(x), r * COLS * 4, COLS * 4);
        op.y = cf_span_sub(cf_span_of(one), r * ROWS * 4, ROWS * 4);
        op.n_rows = 1;
        cf_gpu_linear(gpu, CF_STREAM_COMPUTE, &op);
    }
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    CHECK(memcmp(cf_gpu_host_read(cf_span_of(all)), cf_gpu_host_read(cf_span_of(one)),
                 N * ROWS * 4) == 0);
    cf_gpu_buf_destroy(&w);
    cf_gpu_buf_destroy(&x);
    cf_gpu_buf_destroy(&all);
    cf_gpu_buf_destroy(&one);
    close_silent(&gpu);
}

/* The 128-bit loads of aligned arrays give the bits of the element-wise loads of the others:
 * test_ops places activations at odd multiples of 4 only. All of it under the validation layer,
 * one device for all, so that its silence covers every op in every format. */
static void aligned_loads_change_no_bit(void)
{
    enum { ALIGNED_STEP = 5 }; /* prime to the periods of the case tables */
    NEED_VULKAN();
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    cf_err err = {0};
    for (int i = 0; i < op_cases_count() && !check_case_failed; i += ALIGNED_STEP) {
        op_case *c = op_case_create(i);
        op_result plain = {0}, aligned = {0};
        CHECK_INT(op_case_run(c, gpu, 0, &plain, &err), 0);
        for (int a = 0; a < c->n_arrays; a++)
            c->arrays[a].lead = cf_align_up(c->arrays[a].lead, 16);
        CHECK_INT(op_case_run(c, gpu, 0, &aligned, &err), 0);
        CHECK(plain.guards_intact && aligned.guards_intact);
        for (int a = 0; a < c->n_arrays && !check_case_failed; a++)
            if (plain.data[a] && memcmp(plain.data[a], aligned.data[a], c->arrays[a].bytes) != 0) {
                printf("    %s: array %d differs\n", c->name, a);
                check_case_failed = true;
            }
        op_result_free(&plain);
        op_result_free(&aligned);
        op_case_destroy(&c);
    }
    CHECK_STR(err.msg, "");
    close_silent(&gpu);
}

enum { LONG_CELLS = 70000, LONG_RANK = 12, LONG_ROPE = 4, LONG_HEADS = 3, LONG_ROWS = 3 };

/* y of the long attention on one device: for free(). */
static float *long_attention(cf_gpu *gpu)
{
    enum { WIDTH = LONG_RANK + LONG_ROPE, Y = LONG_ROWS * LONG_HEADS * LONG_RANK };
    static const cf_row_info rows[LONG_ROWS] = {{LONG_CELLS - 1, 0, LONG_CELLS, 0},
                                                {100, 1, 100, 0},
                                                {LONG_CELLS - 2, 7, LONG_CELLS - 8, 0}};
    cf_rng rng = {11};
    cf_gpu_buf *cache = make(gpu, CF_BUF_UPLOAD, LONG_CELLS * WIDTH * 4),
               *q = make(gpu, CF_BUF_UPLOAD, LONG_ROWS * LONG_HEADS * WIDTH * 4),
               *info = make(gpu, CF_BUF_UPLOAD, sizeof rows),
               *y = make(gpu, CF_BUF_READBACK, Y * 4);
    float *c = cf_gpu_host_write(cf_span_of(cache));
    fill(&rng, c, LONG_CELLS * WIDTH);
    for (int i = 0; i < LONG_CELLS; i++) /* scores and values drift: no part stands for all */
        for (int j = 0; j < WIDTH; j++)
            c[i * WIDTH + j] += (float)i / LONG_CELLS;
    fill(&rng, cf_gpu_host_write(cf_span_of(q)), LONG_ROWS * LONG_HEADS * WIDTH);
    memcpy(cf_gpu_host_write(cf_span_of(info)), rows, sizeof rows);
    uint64_t lat_bytes = LONG_ROWS * LONG_HEADS * LONG_RANK * 4;
    cf_gpu_attn_latent(
        gpu, CF_STREAM_COMPUTE,
        &(cf_op_attn_latent){.q_lat = cf_span_sub(cf_span_of(q), 0, lat_bytes),
                             .q_rope = cf_span_sub(cf_span_of(q), lat_bytes, q->bytes - lat_bytes),
                             .cache = cf_span_of(cache),
                             .rows = cf_span_of(info),
                             .y = cf_span_of(y),
                             .n_rows = LONG_ROWS,
                             .n_heads = LONG_HEADS,
                             .rank = LONG_RANK,
                             .n_rope = LONG_ROPE,
                             .q_stride = LONG_HEADS * LONG_ROPE,
                             .q_head_stride = LONG_ROPE,
                             .scale = 0.7f});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    float *out = malloc(Y * 4);
    if (out)
        memcpy(out, cf_gpu_host_read(cf_span_of(y)), Y * 4);
    cf_gpu_buf_destroy(&cache);
    cf_gpu_buf_destroy(&q);
    cf_gpu_buf_destroy(&info);
    cf_gpu_buf_destroy(&y);
    return out;
}

/* A software device stops a shader's loops at 65,535 rounds without a word: the tail of a long
 * context would be left out. */
static void long_contexts_are_walked_to_the_end(void)
{
    NEED_VULKAN();
    cf_gpu *gpu = open_checked(NULL, false), *ref = NULL;
    cf_err err = {0};
    REQUIRE(gpu && cf_gpu_open(&ref, "ref", NULL, &err) == 0);
    float *got = long_attention(gpu), *want = long_attention(ref);
    REQUIRE(got && want);
    double worst = 0;
    for (int i = 0; i < LONG_ROWS * LONG_HEADS * LONG_RANK; i++)
        worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
    CHECK(worst < 1e-4);
    free(got);
    free(want);
    cf_gpu_close(&ref);
    close_silent(&gpu);
}

struct long_kv {
    uint32_t n_cells, n_heads, n_kv_heads, d_k, d_v, window, chunk;
    float cap;
    cf_format dtype;
};

/* y of attention over keys and values, one long row among others: for free(). */
static float *long_kv_attention(cf_gpu *gpu, const struct long_kv *l)
{
    const cf_row_info rows[] = {{100, 1, 100, 99},
                                {l->n_cells - 1, 0, l->n_cells, l->n_cells + 5},
                                {l->n_cells - 2, l->n_cells - 9, 8, 7},
                                {l->n_cells / 2, 3, l->n_cells - 3, l->n_cells}};
    enum { ROWS = sizeof rows / sizeof rows[0] };
    uint32_t k_width = l->n_kv_heads * l->d_k, v_width = l->n_kv_heads * l->d_v;
    uint64_t n_q = (uint64_t)ROWS * l->n_heads * l->d_k, n_y = (uint64_t)ROWS * l->n_heads * l->d_v;
    cf_gpu_buf *k = make(gpu, CF_BUF_UPLOAD, l->n_cells * cf_format_row_bytes(l->dtype, k_width)),
               *v = make(gpu, CF_BUF_UPLOAD, l->n_cells * cf_format_row_bytes(l->dtype, v_width)),
               *q = make(gpu, CF_BUF_UPLOAD, n_q * 4),
               *info = make(gpu, CF_BUF_UPLOAD, sizeof rows),
               *sinks = make(gpu, CF_BUF_UPLOAD, l->n_heads * 4),
               *y = make(gpu, CF_BUF_READBACK, n_y * 4);
    cf_gpu_buf *both[2] = {k, v};
    const uint32_t widths[2] = {k_width, v_width};
    cf_rng rng = {12};
    for (int b = 0; b < 2; b++)
        for (uint64_t i = 0; i < (uint64_t)l->n_cells * widths[b]; i++) {
            /* drifts: no part stands for all */
            float value = (float)(cf_rng_unit(&rng) + (double)(i / widths[b]) / l->n_cells);
            void *at = cf_gpu_host_write(cf_span_of(both[b]));
            if (l->dtype == CF_F32)
                ((float *)at)[i] = value;
            else
                ((uint16_t *)at)[i] = cf_f32_to_f16(value);
        }
    fill(&rng, cf_gpu_host_write(cf_span_of(q)), n_q);
    fill(&rng, cf_gpu_host_write(cf_span_of(sinks)), l->n_heads);
    memcpy(cf_gpu_host_write(cf_span_of(info)), rows, sizeof rows);
    cf_gpu_attn(
        gpu, CF_STREAM_COMPUTE,
        &(cf_op_attn){
            .q = cf_span_of(q),
            .k = cf_span_of(k),
            .v = cf_span_of(v),
            .rows = cf_span_of(info),
            .y = cf_span_of(y),
            .sinks = {.span = cf_span_of(sinks), .dtype = CF_F32, .rows = 1, .cols = l->n_heads},
            .n_rows = ROWS,
            .n_heads = l->n_heads,
            .n_kv_heads = l->n_kv_heads,
            .d_k = l->d_k,
            .d_v = l->d_v,
            .q_stride = l->n_heads * l->d_k,
            .window = l->window,
            .chunk = l->chunk,
            .scale = 0.7f,
            .cap = l->cap,
            .kv_dtype = l->dtype});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    float *out = malloc(n_y * 4);
    if (out)
        memcpy(out, cf_gpu_host_read(cf_span_of(y)), n_y * 4);
    cf_gpu_buf **bufs[] = {&k, &v, &q, &info, &sinks, &y};
    for (size_t i = 0; i < sizeof bufs / sizeof bufs[0]; i++)
        cf_gpu_buf_destroy(bufs[i]);
    return out;
}

/* Spans of a long context, added up again; in the second case the scratch takes one row of one key
 * head at a time. */
static void spans_add_up(void)
{
    NEED_VULKAN();
    static const struct long_kv cases[] = {
        {120000, 6, 2, 12, 20, 0, 0, 3.0f, CF_F32},
        {30000, 128, 2, 4, 256, 29500, 0, 0, CF_F16},
        {110000, 3, 1, 16, 7, 0, 105000, 0, CF_F16},
    };
    cf_gpu *gpu = open_checked(NULL, false), *ref = NULL;
    cf_err err = {0};
    REQUIRE(gpu && cf_gpu_open(&ref, "ref", NULL, &err) == 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float *got = long_kv_attention(gpu, &cases[i]), *want = long_kv_attention(ref, &cases[i]);
        REQUIRE(got && want);
        double worst = 0;
        for (uint32_t j = 0; j < 4 * cases[i].n_heads * cases[i].d_v; j++)
            worst = fmax(worst, fabs((double)got[j] - (double)want[j]));
        CHECK(worst < 1e-4);
        free(got);
        free(want);
    }
    cf_gpu_close(&ref);
    close_silent(&gpu);
}

/* One row of a long context and one of few cells, of a latent cache: y, for free(). */
static float *long_latent_attention(cf_gpu *gpu, uint32_t n_cells, cf_format dtype, uint32_t n_rows)
{
    enum { HEADS = 3, RANK = 32, ROPE = 32, WIDTH = RANK + ROPE };
    const cf_row_info rows[] = {{n_cells - 1, 0, n_cells, n_cells - 1}, {40, 7, 34, 33}};
    uint64_t cache_bytes = n_cells * cf_format_row_bytes(dtype, WIDTH);
    cf_gpu_buf *x = make(gpu, CF_BUF_UPLOAD, (uint64_t)n_cells * WIDTH * 4),
               *cells = make(gpu, CF_BUF_UPLOAD, n_cells * sizeof(cf_row_info)),
               *cache = make(gpu, CF_BUF_DEVICE, cache_bytes),
               *q = make(gpu, CF_BUF_UPLOAD, 2 * HEADS * WIDTH * 4),
               *info = make(gpu, CF_BUF_UPLOAD, sizeof rows),
               *y = make(gpu, CF_BUF_READBACK, 2 * HEADS * RANK * 4);
    cf_rng rng = {13};
    float *values = cf_gpu_host_write(cf_span_of(x));
    cf_row_info *at = cf_gpu_host_write(cf_span_of(cells));
    for (uint64_t i = 0; i < (uint64_t)n_cells * WIDTH; i++)
        values[i] = (float)(cf_rng_unit(&rng) + (double)(i / WIDTH) / n_cells);
    for (uint32_t i = 0; i < n_cells; i++)
        at[i] = (cf_row_info){i, 0, i + 1, i};
    fill(&rng, cf_gpu_host_write(cf_span_of(q)), 2 * HEADS * WIDTH);
    memcpy(cf_gpu_host_write(cf_span_of(info)), rows, sizeof rows);
    cf_gpu_kv_store(gpu, CF_STREAM_COMPUTE,
                    &(cf_op_kv_store){.x = cf_span_of(x),
                                      .cache = cf_span_of(cache),
                                      .rows = cf_span_of(cells),
                                      .n_rows = n_cells,
                                      .width = WIDTH,
                                      .x_stride = WIDTH,
                                      .kv_dtype = dtype});
    cf_gpu_barrier(gpu, CF_STREAM_COMPUTE);
    cf_gpu_attn_latent(
        gpu, CF_STREAM_COMPUTE,
        &(cf_op_attn_latent){.q_lat = cf_span_of(q),
                             .q_rope = {q, 2 * HEADS * RANK * 4, 2 * HEADS * ROPE * 4},
                             .cache = cf_span_of(cache),
                             .rows = cf_span_of(info),
                             .y = cf_span_of(y),
                             .n_rows = n_rows,
                             .n_heads = HEADS,
                             .rank = RANK,
                             .n_rope = ROPE,
                             .q_stride = HEADS * ROPE,
                             .q_head_stride = ROPE,
                             .scale = 0.7f,
                             .kv_dtype = dtype});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    float *out = malloc(n_rows * HEADS * RANK * 4);
    if (out)
        memcpy(out, cf_gpu_host_read(cf_span_of(y)), n_rows * HEADS * RANK * 4);
    cf_gpu_buf **bufs[] = {&x, &cells, &cache, &q, &info, &y};
    for (size_t i = 0; i < sizeof bufs / sizeof bufs[0]; i++)
        cf_gpu_buf_destroy(bufs[i]);
    return out;
}

/* On a GPU a row of 32k cells is cut into spans that work-groups take side by side, in a latent
 * cache and in one of keys and values; another row beside it changes no bit. */
static void spans_of_a_gpu_add_up(void)
{
    NEED_VULKAN();
    enum { CELLS = 32768, Y = 3 * 32 };
    static const cf_format formats[] = {CF_F32, CF_F16, CF_Q8_0};
    static const struct long_kv kv = {CELLS, 4, 2, 8, 16, 0, 0, 0, CF_F16};
    cf_gpu *gpu = open_checked(NULL, false), *ref = NULL;
    cf_err err = {0};
    REQUIRE(gpu && cf_gpu_open(&ref, "ref", NULL, &err) == 0);
    vk_test_as_gpu = true;
    for (int i = 0; i < 3; i++) {
        float *one = long_latent_attention(gpu, CELLS, formats[i], 1);
        float *two = long_latent_attention(gpu, CELLS, formats[i], 2);
        float *want = long_latent_attention(ref, CELLS, formats[i], 2);
        REQUIRE(one && two && want);
        CHECK(memcmp(one, two, Y * 4) == 0);
        double worst = 0;
        for (int j = 0; j < 2 * Y; j++)
            worst = fmax(worst, fabs((double)two[j] - (double)want[j]));
        CHECK(worst < 1e-4);
        free(one);
        free(two);
        free(want);
    }
    float *got = long_kv_attention(gpu, &kv), *want = long_kv_attention(ref, &kv);
    REQUIRE(got && want);
    for (uint32_t j = 0; j < 4 * kv.n_heads * kv.d_v; j++)
        CHECK(fabs((double)got[j] - (double)want[j]) < 1e-4);
    free(got);
    free(want);
    vk_test_as_gpu = false;
    cf_gpu_close(&ref);
    close_silent(&gpu);
}

/* Scores travel as integers of the same order: sums of negative ones must come back as such. */
static void groups_of_negative_scores_are_ordered(void)
{
    NEED_VULKAN();
    enum { N = 8, K = 3 };
    /* p is 0.5 throughout; sums of the groups: -5, -3, -1, -9 */
    static const float bias[N] = {-1, -5, -2, -2, -3, 1, -9, -1};
    static const uint32_t want[K] = {2, 3, 5};
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    cf_gpu_buf *in = make(gpu, CF_BUF_UPLOAD, 2 * N * 4),
               *out = make(gpu, CF_BUF_DEVICE, 2 * K * 4),
               *host = make(gpu, CF_BUF_READBACK, 2 * K * 4);
    memset(cf_gpu_host_write(cf_span_of(in)), 0, N * 4);
    memcpy(cf_gpu_host_write(cf_span_sub(cf_span_of(in), N * 4, N * 4)), bias, sizeof bias);
    cf_gpu_route(gpu, CF_STREAM_COMPUTE,
                 &(cf_op_route){.logits = cf_span_sub(cf_span_of(in), 0, N * 4),
                                .bias = cf_span_sub(cf_span_of(in), N * 4, N * 4),
                                .ids = cf_span_sub(cf_span_of(out), 0, K * 4),
                                .weights = cf_span_sub(cf_span_of(out), K * 4, K * 4),
                                .host_ids = cf_span_sub(cf_span_of(host), 0, K * 4),
                                .host_weights = cf_span_sub(cf_span_of(host), K * 4, K * 4),
                                .n_rows = 1,
                                .n = N,
                                .k = K,
                                .score = CF_SCORE_SIGMOID,
                                .n_groups = 4,
                                .top_groups = 2,
                                .group_score = CF_GROUP_TOP2,
                                .scale = 1.0f});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    const uint32_t *ids = cf_gpu_host_read(cf_span_of(host));
    for (int i = 0; i < K; i++)
        CHECK_INT(ids[i], want[i]);
    cf_gpu_buf_destroy(&in);
    cf_gpu_buf_destroy(&out);
    cf_gpu_buf_destroy(&host);
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
/* The device computes in every format, and a bias in blocks may be larger than the room in which
 * such vectors are decoded. */
static void every_format_is_there(void)
{
    enum { OUTPUTS = 70400 }; /* room: 32,768 on a CPU device, 262,144 elsewhere */
    cf_rng rng = {.state = 3};
    cf_gpu *gpu = open_checked(NULL, false);
    REQUIRE(gpu);
    for (cf_format f = CF_F32; f < CF_FORMAT_COUNT; f = (cf_format)(f + 1))
        CHECK_INT(cf_gpu_supports(gpu, f), cf_format_computable(f));
    uint64_t bias_bytes = cf_format_row_bytes(CF_Q8_0, OUTPUTS);
    cf_gpu_buf *w = make(gpu, CF_BUF_UPLOAD, OUTPUTS * 4), *x = make(gpu, CF_BUF_UPLOAD, 16),
               *bias = make(gpu, CF_BUF_UPLOAD, bias_bytes),
               *y = make(gpu, CF_BUF_READBACK, OUTPUTS * 4);
    float *weights = cf_gpu_host_write(cf_span_of(w)), *want = malloc(OUTPUTS * sizeof *want);
    uint8_t *blocks = cf_gpu_host_write(cf_span_of(bias));
    *(float *)cf_gpu_host_write(cf_span_of(x)) = 2.0f;
    op_blocks_fill(&rng, CF_Q8_0, blocks, OUTPUTS);
    cf_ref_format_decode(CF_Q8_0, blocks, 0, OUTPUTS, want);
    for (int i = 0; i < OUTPUTS; i++) {
        weights[i] = (float)(i % 64);
        want[i] += 2.0f * weights[i];
    }
    cf_gpu_linear(
        gpu, CF_STREAM_COMPUTE,
        &(cf_op_linear){
            .w = {.span = cf_span_of(w), .dtype = CF_F32, .rows = OUTPUTS, .cols = 1},
            .bias = {.span = cf_span_of(bias), .dtype = CF_Q8_0, .rows = 1, .cols = OUTPUTS},
            .x = {x, 0, 4},
            .y = cf_span_of(y),
            .n_rows = 1,
            .x_stride = 1,
            .y_stride = OUTPUTS,
            .scale = 1.0f});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    const float *got = cf_gpu_host_read(cf_span_of(y));
    int wrong = 0;
    for (int i = 0; i < OUTPUTS; i++)
        wrong += fabsf(got[i] - want[i]) > 1e-4f;
    CHECK_INT(wrong, 0);
    CHECK_INT(cf_gpu_validation_errors(gpu), 0);
    free(want);
    cf_gpu_buf_destroy(&w);
    cf_gpu_buf_destroy(&x);
    cf_gpu_buf_destroy(&bias);
    cf_gpu_buf_destroy(&y);
    cf_gpu_close(&gpu);
}

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
    char cache[4096]; /* lavapipe compiles each shader once a build, not once a run */
    snprintf(cache, sizeof cache, "%s-mesa-cache", argv[0]);
    setenv("MESA_SHADER_CACHE_DIR", cache, 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    RUN(no_driver_is_a_sentence); /* first: nothing of the loader is up yet */
    cf_gpu_info infos[8];
    cf_err err = {0};
    if (cf_vk_fns.list(infos, 8, &err) < 0)
        no_vulkan = err.msg;
    RUN(devices_are_described);
    RUN(streams_wait_for_each_other);
    RUN(imported_pages_stay_live);
    RUN(no_import_is_reported);
    RUN(refused_memory_is_a_sentence);
    RUN(lost_device_is_remembered);
    RUN(refused_pipeline_reaches_submit);
    RUN(rows_do_not_see_each_other);
    RUN(aligned_loads_change_no_bit);
    RUN(long_contexts_are_walked_to_the_end);
    RUN(spans_add_up);
    RUN(spans_of_a_gpu_add_up);
    RUN(groups_of_negative_scores_are_ordered);
    RUN(validation_is_listening);
    RUN(every_format_is_there);
    RUN(op_tables_are_recycled);
    RUN(cache_file_is_whole_or_ignored);
    return check_done();
}
