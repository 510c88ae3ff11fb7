/* The OpenCL backend's own duties, which test_ops cannot see: streams that run ahead of what they
 * wait for, host pages that go stale after an import, refused memory or a failing driver that
 * crashes, leaks or is forgotten, a machine without any OpenCL, results that depend on the number
 * of threads, experts spread over buffers, and compiled programs that are damaged on disk.
 *
 * Faults are put into the table of libOpenCL's functions (ocl_api). What depends on the model of
 * memory runs in each guise of the software device. */
#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu/opencl/ocl.h"
#include "runtime/base/rng.h"
#include "tests/check.h"
#include "tests/support/on_device.h"
#include "tests/support/tmpfiles.h"

/* ---- injected faults ---- */

static struct {
    struct ocl_api real;
    atomic_int mems, events; /* alive */
    int refuse_memory_in;    /* buffers until one is refused; -1: never */
    bool refuse_launches, refuse_builds;
} fault = {.refuse_memory_in = -1};

static cl_mem CL_API_CALL fault_buffer(cl_context c, cl_mem_flags flags, size_t bytes, void *host,
                                       cl_int *status)
{
    if (fault.refuse_memory_in >= 0 && fault.refuse_memory_in-- == 0) {
        *status = CL_MEM_OBJECT_ALLOCATION_FAILURE;
        return NULL;
    }
    cl_mem m = fault.real.clCreateBuffer(c, flags, bytes, host, status);
    fault.mems += m != NULL;
    return m;
}

static cl_int CL_API_CALL fault_unbuffer(cl_mem m)
{
    fault.mems--;
    return fault.real.clReleaseMemObject(m);
}

static cl_int CL_API_CALL fault_marker(cl_command_queue q, cl_uint n, const cl_event *waits,
                                       cl_event *out)
{
    cl_int status = fault.real.clEnqueueMarkerWithWaitList(q, n, waits, out);
    fault.events += status == CL_SUCCESS;
    return status;
}

static cl_int CL_API_CALL fault_migrate(cl_command_queue q, cl_uint n, const cl_mem *mems,
                                        cl_mem_migration_flags flags, cl_uint n_waits,
                                        const cl_event *waits, cl_event *out)
{
    cl_int status = fault.real.clEnqueueMigrateMemObjects(q, n, mems, flags, n_waits, waits, out);
    fault.events += status == CL_SUCCESS;
    return status;
}

static cl_int CL_API_CALL fault_retain(cl_event e)
{
    fault.events++;
    return fault.real.clRetainEvent(e);
}

static cl_int CL_API_CALL fault_release(cl_event e)
{
    fault.events--;
    return fault.real.clReleaseEvent(e);
}

static cl_int CL_API_CALL fault_launch(cl_command_queue q, cl_kernel k, cl_uint dim,
                                       const size_t *off, const size_t *global, const size_t *local,
                                       cl_uint n, const cl_event *waits, cl_event *out)
{
    if (fault.refuse_launches)
        return CL_OUT_OF_RESOURCES;
    return fault.real.clEnqueueNDRangeKernel(q, k, dim, off, global, local, n, waits, out);
}

static cl_int CL_API_CALL fault_build(cl_program p, cl_uint n, const cl_device_id *devices,
                                      const char *options,
                                      void(CL_CALLBACK *done)(cl_program, void *), void *user)
{
    if (fault.refuse_builds)
        return CL_BUILD_PROGRAM_FAILURE;
    return fault.real.clBuildProgram(p, n, devices, options, done, user);
}

static void faults_install(void)
{
    fault.real = ocl_api;
    ocl_api.clCreateBuffer = fault_buffer;
    ocl_api.clReleaseMemObject = fault_unbuffer;
    ocl_api.clEnqueueMarkerWithWaitList = fault_marker;
    ocl_api.clEnqueueMigrateMemObjects = fault_migrate;
    ocl_api.clRetainEvent = fault_retain;
    ocl_api.clReleaseEvent = fault_release;
    ocl_api.clEnqueueNDRangeKernel = fault_launch;
    ocl_api.clBuildProgram = fault_build;
}

/* ---- helpers ---- */

static const char *no_opencl; /* why, when there is none */
static bool software;         /* device 0 is one, so guises work */

#define NEED_OPENCL()                                                                              \
    do {                                                                                           \
        if (no_opencl)                                                                             \
            SKIP("%s", no_opencl);                                                                 \
    } while (0)

static cf_gpu *open_as(ocl_guise guise, int threads, cf_ledger *ledger)
{
    cf_gpu *gpu = NULL;
    cf_err err = {0};
    cf_gpu_options options = {.check = true, .threads = threads, .ledger = ledger};
    ocl_test_guise = guise;
    CHECK_INT(cf_gpu_open(&gpu, "opencl", &options, &err), 0);
    CHECK_STR(err.msg, "");
    ocl_test_guise = OCL_AS_IT_IS;
    return gpu;
}

static cf_gpu *open_checked(void)
{
    return open_as(OCL_AS_IT_IS, 2, NULL);
}

static void close_clean(cf_gpu **gpu)
{
    cf_gpu_close(gpu);
    CHECK_INT(fault.mems, 0);
    CHECK_INT(fault.events, 0);
}

static void fill(float *x, size_t n, uint64_t seed)
{
    cf_rng rng = {seed};
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(cf_rng_unit(&rng) * 2.0 - 1.0);
}

/* ---- a machine without ---- */

/* Runs in a child of its own: drivers read their environment once. */
static void in_child(void (*body)(void))
{
    fflush(stdout);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        body();
        fflush(stdout);
        _exit(check_case_failed ? 1 : 0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The list goes on without, auto finds another, and asking for opencl is a sentence. */
static void without_opencl(void)
{
    cf_gpu_info infos[16];
    char why[512] = "";
    cf_gpu *gpu = NULL;
    cf_err err = {0};
    int n = cf_gpu_list(infos, 16, why, sizeof why);
    CHECK(n >= 1 && strcmp(infos[n - 1].backend, "ref") == 0);
    for (int i = 0; i < n; i++)
        CHECK(strcmp(infos[i].backend, "opencl") != 0);
    CHECK_HAS(why, "opencl: ");
    CHECK_INT(cf_gpu_open(&gpu, "opencl", NULL, &err), CF_EDEVICE);
    CHECK_HAS(err.msg, "OpenCL");
    CHECK(gpu == NULL);
    cf_err direct = {0};
    CHECK_INT(cf_ocl_fns.open(&gpu, 0, &(cf_gpu_options){0}, &direct), CF_EDEVICE);
    CHECK_HAS(direct.msg, "OpenCL");
    cf_err none = {0};
    CHECK_INT(cf_gpu_open(&gpu, "auto", NULL, &none), 0);
    CHECK(gpu && strcmp(cf_gpu_get_info(gpu)->backend, "opencl") != 0);
    cf_gpu_close(&gpu);
}

static void without_drivers(void)
{
    setenv("OCL_ICD_VENDORS", "/dev/null/none", 1);
    without_opencl();
}

static void without_pocl_cache(void)
{
    setenv("POCL_CACHE_DIR", "/dev/null/none", 1);
    cf_gpu_info infos[16];
    cf_err err = {0};
    int n = cf_ocl_fns.list(infos, 16, &err);
    if (n < 0) /* where PoCL is the only driver */
        without_opencl();
}

static void no_driver_is_a_sentence(void)
{
    in_child(without_drivers);
}

static void unusable_pocl_cache_is_a_sentence(void)
{
    in_child(without_pocl_cache);
}

/* The child has the library, but none of its threads: it must not wait for them. */
static void forked(void)
{
    cf_gpu_info infos[16];
    cf_gpu *gpu = NULL;
    cf_err listing = {0}, opening = {0};
    CHECK(cf_ocl_fns.list(infos, 16, &listing) < 0);
    CHECK_HAS(listing.msg, "forked");
    CHECK_INT(cf_gpu_open(&gpu, "opencl", NULL, &opening), CF_EDEVICE);
    CHECK_HAS(opening.msg, "forked");
}

static void forked_child_is_told(void)
{
    NEED_OPENCL();
    in_child(forked);
}

static void devices_are_described(void)
{
    NEED_OPENCL();
    cf_gpu_info infos[16];
    cf_err err = {0};
    int n = cf_ocl_fns.list(infos, 16, &err);
    REQUIRE(n >= 1);
    for (int i = 0; i < n; i++) {
        CHECK_STR(infos[i].backend, "opencl");
        CHECK_INT(infos[i].index, i);
        CHECK(infos[i].name[0] != 0 && infos[i].heap_bytes > 0 && infos[i].max_alloc_bytes > 0);
        CHECK(!infos[i].cpu || infos[i].unified);
        CHECK(i == 0 || infos[i - 1].cpu <= infos[i].cpu); /* GPUs first */
    }
    cf_gpu *gpu = NULL;
    CHECK_INT(cf_ocl_fns.open(&gpu, n, &(cf_gpu_options){0}, &err), CF_EDEVICE);
    CHECK_HAS(err.msg, "no OpenCL device");
}

/* ---- streams and memory, in every guise ---- */

/* A ping-pong over both streams, longer than the ring of points. */
static void ping_pong(ocl_guise guise)
{
    enum { N = 1024, ROUNDS = 3 * OCL_RING_SIZE };
    cf_gpu *gpu = open_as(guise, 2, NULL);
    REQUIRE(gpu);
    cf_gpu_buf *up = make(gpu, CF_BUF_UPLOAD, N * 4), *a = make(gpu, CF_BUF_DEVICE, N * 4),
               *b = make(gpu, CF_BUF_DEVICE, N * 4), *down = make(gpu, CF_BUF_READBACK, N * 4);
    REQUIRE(up && a && b && down);
    float *x = cf_gpu_host_write(cf_span_of(up));
    for (int i = 0; i < N; i++)
        x[i] = (float)i;
    cf_gpu_copy(gpu, CF_STREAM_TRANSFER, cf_span_of(a), cf_span_of(up));
    cf_gpu_point first = submit(gpu, CF_STREAM_TRANSFER, NULL), last = first;
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
    CHECK(cf_gpu_reached(gpu, first)); /* its place in the ring is long taken */
    CHECK_INT(cf_gpu_wait(gpu, first, &err), 0);
    CHECK(cf_gpu_reached(gpu, (cf_gpu_point){CF_STREAM_COMPUTE, 0}));
    const float *y = cf_gpu_host_read(cf_span_of(down));
    CHECK(memcmp(y, x, N * 4) == 0);             /* 2 x - x */
    last = submit(gpu, CF_STREAM_COMPUTE, NULL); /* an empty batch has a point too */
    CHECK_INT(cf_gpu_wait(gpu, last, &err), 0);
    cf_gpu_buf_destroy(&up);
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&b);
    cf_gpu_buf_destroy(&down);
    close_clean(&gpu);
}

/* What the host writes after recording, up to the submit, is what ops of both streams see. */
static void late_writes(ocl_guise guise)
{
    enum { N = 100 };
    cf_gpu *gpu = open_as(guise, 2, NULL);
    REQUIRE(gpu);
    cf_gpu_buf *up = make(gpu, CF_BUF_UPLOAD, N * 4), *down = make(gpu, CF_BUF_READBACK, N * 4);
    for (int s = 0; s < CF_STREAM_COUNT; s++) {
        memset(cf_gpu_host_write(cf_span_of(up)), 0, N * 4);
        cf_gpu_add(gpu, (cf_stream)s,
                   &(cf_op_add){cf_span_of(up), {0}, cf_span_of(down), N, 2.0f, 0.0f});
        float *x = cf_gpu_host_write(cf_span_of(up));
        for (int i = 0; i < N; i++)
            x[i] = (float)(i + s);
        submit_and_wait(gpu, (cf_stream)s);
        const float *y = cf_gpu_host_read(cf_span_of(down));
        int wrong = 0;
        for (int i = 0; i < N; i++)
            wrong += y[i] != 2.0f * (float)(i + s);
        CHECK_INT(wrong, 0);
    }
    cf_gpu_buf_destroy(&up);
    cf_gpu_buf_destroy(&down);
    close_clean(&gpu);
}

/* Pages written after the import are what the device reads: in place at an odd offset where memory
 * is shared, as the source of a copy everywhere; and a copy into pages arrives. */
static void live_pages(ocl_guise guise)
{
    enum { N = 3 * 4096 / 4, OFF = 36 };
    cf_gpu *gpu = open_as(guise, 2, NULL);
    REQUIRE(gpu);
    cf_pages pages = {0}, back = {0};
    cf_err err = {0};
    cf_gpu_buf *in = NULL, *out = NULL, *mid = make(gpu, CF_BUF_DEVICE, N * 4),
               *down = make(gpu, CF_BUF_READBACK, N * 4);
    CHECK_INT(cf_pages_init(&pages, N * 4, NULL, CF_POOL_HOST, "a test's pages", &err), 0);
    CHECK_INT(cf_pages_init(&back, N * 4, NULL, CF_POOL_HOST, "more pages", &err), 0);
    CHECK_INT(cf_gpu_buf_import(gpu, pages.data, N * 4, "a test's pages", &in, &err), 0);
    CHECK_INT(cf_gpu_buf_import(gpu, back.data, N * 4, "more pages", &out, &err), 0);
    REQUIRE(in && out && mid && down);
    CHECK(in->host == pages.data);
    for (int round = 0; round < 3; round++) {
        float *x = cf_gpu_host_write(cf_span_of(in));
        for (int i = 0; i < N; i++)
            x[i] = (float)(i + 1000 * round);
        cf_span from = cf_span_sub(cf_span_of(in), OFF, N * 4 - OFF);
        cf_span to = cf_span_sub(cf_span_of(down), 0, N * 4 - OFF);
        if (cf_gpu_get_info(gpu)->unified)
            cf_gpu_add(gpu, CF_STREAM_COMPUTE,
                       &(cf_op_add){from, {0}, to, N - OFF / 4, 1.0f, 0.0f});
        else
            cf_gpu_copy(gpu, CF_STREAM_COMPUTE, to, from);
        cf_gpu_copy(gpu, CF_STREAM_COMPUTE, cf_span_of(mid), cf_span_of(in));
        cf_gpu_barrier(gpu, CF_STREAM_COMPUTE);
        cf_gpu_copy(gpu, CF_STREAM_COMPUTE, cf_span_of(out), cf_span_of(mid));
        submit_and_wait(gpu, CF_STREAM_COMPUTE);
        CHECK(memcmp(cf_gpu_host_read(to), (uint8_t *)x + OFF, N * 4 - OFF) == 0);
        CHECK(memcmp(cf_gpu_host_read(cf_span_of(out)), x, N * 4) == 0);
    }
    cf_gpu_buf *odd = NULL;
    cf_err misaligned = {0};
    CHECK_INT(cf_ocl_fns.buf_import(gpu, pages.data + 512, 4096, "odd pages", &odd, &misaligned),
              -EINVAL);
    CHECK_HAS(misaligned.msg, "4096 bytes");
    CHECK(odd == NULL);
    cf_gpu_buf_destroy(&in);
    cf_gpu_buf_destroy(&out);
    cf_gpu_buf_destroy(&mid);
    cf_gpu_buf_destroy(&down);
    cf_pages_finish(&pages);
    cf_pages_finish(&back);
    close_clean(&gpu);
}

static void each_guise(void (*body)(ocl_guise))
{
    NEED_OPENCL();
    for (int g = OCL_AS_IT_IS; g <= (software ? OCL_AS_DISCRETE_GPU : OCL_AS_IT_IS); g++)
        body((ocl_guise)g);
}

static void streams_wait_for_each_other(void)
{
    each_guise(ping_pong);
}

static void writes_until_submit_are_seen(void)
{
    each_guise(late_writes);
}

static void imported_pages_stay_live(void)
{
    each_guise(live_pages);
}

static void no_import_is_reported(void)
{
    NEED_OPENCL();
    cf_gpu *gpu = NULL;
    cf_err err = {0};
    cf_gpu_buf *buf = NULL;
    _Alignas(4096) static uint8_t page[4096];
    CHECK_INT(cf_gpu_open(&gpu, "opencl", &(cf_gpu_options){.no_import = true}, &err), 0);
    REQUIRE(gpu);
    CHECK(!cf_gpu_get_info(gpu)->imports);
    CHECK_INT(cf_gpu_buf_import(gpu, page, sizeof page, "a page", &buf, &err), CF_EDEVICE);
    CHECK_HAS(err.msg, "a page");
    close_clean(&gpu);
}

/* ---- failures ---- */

static void memory_refused(ocl_guise guise)
{
    cf_ledger *ledger = NULL;
    cf_err err = {0};
    CHECK_INT(cf_ledger_create(&ledger, 0, 0, &err), 0);
    cf_gpu *gpu = open_as(guise, 2, ledger);
    REQUIRE(gpu);
    cf_gpu_buf *first = make(gpu, CF_BUF_DEVICE, 1 << 20), *buf = NULL;
    uint64_t used = cf_ledger_used(ledger, CF_POOL_DEVICE), heap_used = ocl_of(gpu)->heap_used;
    int mems = fault.mems; /* the backend has some of its own */
    fault.refuse_memory_in = 0;
    CHECK_INT(cf_gpu_buf_create(gpu, CF_BUF_DEVICE, 7654320, "the expert slots", &buf, &err),
              CF_EDEVICE);
    CHECK_HAS(err.msg, "the expert slots");
    CHECK_HAS(err.msg, "CL_MEM_OBJECT_ALLOCATION_FAILURE");
    CHECK(buf == NULL);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), used);
    CHECK_INT(fault.mems, mems);
    buf = make(gpu, CF_BUF_DEVICE, 7654320); /* the device goes on */
    cf_gpu_buf_destroy(&buf);

    /* The device's own bounds, which a software device does not enforce. */
    cf_err large = {0}, heap = {0};
    CHECK(cf_ocl_fns.buf_create(gpu, CF_BUF_DEVICE, cf_gpu_get_info(gpu)->max_alloc_bytes + 1,
                                "all", &buf, &large) < 0);
    CHECK_HAS(large.msg, "bytes in one buffer");
    ocl_of(gpu)->heap_limit = heap_used + (1 << 20);
    CHECK_INT(cf_gpu_buf_create(gpu, CF_BUF_DEVICE, (1 << 20) + 16, "the rest", &buf, &heap),
              CF_EDEVICE);
    CHECK_HAS(heap.msg, "the rest: 1048592 bytes do not fit the device's memory of ");
    buf = make(gpu, CF_BUF_DEVICE, 1 << 20);
    cf_gpu_buf_destroy(&buf);
    cf_gpu_buf_destroy(&first);
    close_clean(&gpu);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 0);
    cf_ledger_destroy(&ledger);
}

static void refused_memory_is_a_sentence(void)
{
    each_guise(memory_refused);
}

/* After a failure every submit and wait says the same; polling does not hang; close works. */
static void failed_device_is_remembered(void)
{
    NEED_OPENCL();
    cf_gpu *gpu = open_checked();
    REQUIRE(gpu);
    cf_gpu_buf *a = make(gpu, CF_BUF_DEVICE, 64), *b = make(gpu, CF_BUF_DEVICE, 64);
    cf_op_add op = {cf_span_of(a), {0}, cf_span_of(b), 16, 1.0f, 0.0f};
    cf_gpu_copy(gpu, CF_STREAM_COMPUTE, cf_span_of(a), cf_span_of(b));
    cf_gpu_point good = submit(gpu, CF_STREAM_COMPUTE, NULL);
    cf_err err = {0}, again = {0};
    CHECK_INT(cf_gpu_wait(gpu, good, &err), 0);
    cf_gpu_add(gpu, CF_STREAM_COMPUTE, &op);
    fault.refuse_launches = true;
    uint64_t value = 0;
    CHECK_INT(cf_gpu_submit(gpu, CF_STREAM_COMPUTE, NULL, 0, &value, &err), CF_EDEVICE);
    CHECK_HAS(err.msg, "CL_OUT_OF_RESOURCES");
    fault.refuse_launches = false;
    cf_gpu_copy(gpu, CF_STREAM_TRANSFER, cf_span_of(b), cf_span_of(a));
    CHECK_INT(cf_gpu_submit(gpu, CF_STREAM_TRANSFER, NULL, 0, &value, &again), CF_EDEVICE);
    CHECK_STR(again.msg, err.msg);
    CHECK_INT(cf_gpu_wait(gpu, good, &again), 0); /* that one did happen */
    CHECK(cf_gpu_reached(gpu, good));
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&b);
    close_clean(&gpu);
}

/* Recorded commands have their room from open on, which the ledger knows; more are refused. */
static void commands_have_their_room(void)
{
    NEED_OPENCL();
    cf_ledger *ledger = NULL;
    cf_gpu *gpu = NULL;
    cf_err err = {0}, early = {0};
    uint64_t room = ocl_stream_bytes(CF_STREAM_COMPUTE) + ocl_stream_bytes(CF_STREAM_TRANSFER);
    CHECK_INT(cf_ledger_create(&ledger, room - 1, 0, &err), 0);
    cf_gpu_options options = {.threads = 2, .ledger = ledger};
    CHECK_INT(cf_gpu_open(&gpu, "opencl", &options, &early), CF_ELIMIT);
    CHECK_HAS(early.msg, "recorded commands");
    CHECK(gpu == NULL);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 0);
    cf_ledger_destroy(&ledger);
    CHECK_INT(cf_ledger_create(&ledger, room + 128, 0, &err), 0);
    options.ledger = ledger;
    REQUIRE(cf_gpu_open(&gpu, "opencl", &options, &err) == 0);
    CHECK_INT(cf_gpu_get_info(gpu)->overhead_bytes, room);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), room);
    cf_gpu_buf *a = make(gpu, CF_BUF_DEVICE, 64), *b = make(gpu, CF_BUF_DEVICE, 64);
    cf_op_add op = {cf_span_of(a), {0}, cf_span_of(b), 16, 1.0f, 0.0f};
    const uint8_t *batch = ocl_of(gpu)->streams[CF_STREAM_COMPUTE].batch;
    for (int i = 0; i < 5000; i++)
        cf_gpu_add(gpu, CF_STREAM_COMPUTE, &op);
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    CHECK(ocl_of(gpu)->streams[CF_STREAM_COMPUTE].batch == batch);
    for (uint64_t i = 0; i < room / sizeof(ocl_add_params); i++)
        cf_gpu_add(gpu, CF_STREAM_COMPUTE, &op);
    uint64_t value = 0;
    CHECK_INT(cf_gpu_submit(gpu, CF_STREAM_COMPUTE, NULL, 0, &value, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "4194304 bytes of commands");
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&b);
    close_clean(&gpu);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 0);
    cf_ledger_destroy(&ledger);
}

static void refused_build_reaches_submit(void)
{
    NEED_OPENCL();
    cf_gpu *gpu = open_checked();
    REQUIRE(gpu);
    cf_gpu_buf *a = make(gpu, CF_BUF_DEVICE, 64);
    cf_op_add op = {cf_span_of(a), {0}, cf_span_of(a), 16, 1.0f, 0.0f};
    fault.refuse_builds = true;
    cf_gpu_add(gpu, CF_STREAM_COMPUTE, &op); /* does not fail by itself */
    fault.refuse_builds = false;
    uint64_t value = 0;
    cf_err err = {0};
    CHECK_INT(cf_gpu_submit(gpu, CF_STREAM_COMPUTE, NULL, 0, &value, &err), CF_EDEVICE);
    CHECK_HAS(err.msg, "the F32 kernels do not build");
    CHECK_HAS(err.msg, "CL_BUILD_PROGRAM_FAILURE");
    cf_gpu_buf_destroy(&a);
    close_clean(&gpu);
}

/* ---- results ---- */

enum { ROWS = 137, COLS = 203, N_X = 7 };

/* y of one op over all rows, or of one op a row. */
static void linear_run(ocl_guise guise, int threads, bool by_row, float *y)
{
    cf_gpu *gpu = open_as(guise, threads, NULL);
    REQUIRE(gpu);
    if (software && sysconf(_SC_NPROCESSORS_ONLN) > 1)
        CHECK_INT(ocl_of(gpu)->compute_units == 1, threads == 1);
    cf_gpu_buf *w = make(gpu, CF_BUF_UPLOAD, ROWS * COLS * 4),
               *x = make(gpu, CF_BUF_UPLOAD, N_X * COLS * 4),
               *out = make(gpu, CF_BUF_READBACK, N_X * ROWS * 4);
    fill(cf_gpu_host_write(cf_span_of(w)), ROWS * COLS, 7);
    fill(cf_gpu_host_write(cf_span_of(x)), N_X * COLS, 8);
    uint32_t step = by_row ? 1 : N_X;
    for (uint64_t r = 0; r < N_X; r += step) {
        cf_op_linear op = {
            .w = {.span = cf_span_of(w), .dtype = CF_F32, .rows = ROWS, .cols = COLS},
            .x = cf_span_sub(cf_span_of(x), r * COLS * 4, step * COLS * 4),
            .y = cf_span_sub(cf_span_of(out), r * ROWS * 4, step * ROWS * 4),
            .n_rows = step,
            .x_stride = COLS,
            .y_stride = ROWS,
            .scale = 0.5f};
        cf_gpu_linear(gpu, CF_STREAM_COMPUTE, &op);
    }
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    memcpy(y, cf_gpu_host_read(cf_span_of(out)), N_X * ROWS * 4);
    cf_gpu_buf_destroy(&w);
    cf_gpu_buf_destroy(&x);
    cf_gpu_buf_destroy(&out);
    close_clean(&gpu);
}

static void bits_stay(ocl_guise guise)
{
    static float all[N_X * ROWS], other[N_X * ROWS];
    linear_run(guise, 0, false, all);
    linear_run(guise, 0, true, other);
    CHECK(memcmp(all, other, sizeof all) == 0);
    linear_run(guise, 1, false, other);
    CHECK(memcmp(all, other, sizeof all) == 0);
}

/* Whatever rows stand beside it, and however many threads, a row's result has the same bits. */
static void bits_depend_on_nothing_else(void)
{
    each_guise(bits_stay);
}

/* More experts than a launch takes, over buffers that alternate; gate and up apart. */
static void experts_lie_anywhere(void)
{
    NEED_OPENCL();
    enum { BUFS = 3, EXPERTS = 3 * OCL_EXPERTS_PER_LAUNCH + 5, FFN = 6, HIDDEN = 5, ONE = 32 };
    cf_gpu *gpu = open_checked();
    REQUIRE(gpu);
    uint64_t room = EXPERTS * ONE * 4;
    cf_gpu_buf *w[BUFS], *ones = make(gpu, CF_BUF_UPLOAD, EXPERTS * HIDDEN * 4),
                         *pairs = make(gpu, CF_BUF_UPLOAD, EXPERTS * 4),
                         *h = make(gpu, CF_BUF_READBACK, EXPERTS * FFN * 4),
                         *out = make(gpu, CF_BUF_READBACK, EXPERTS * HIDDEN * 4);
    for (int b = 0; b < BUFS; b++) {
        w[b] = make(gpu, CF_BUF_UPLOAD, room);
        float *f = cf_gpu_host_write(cf_span_of(w[b]));
        for (int i = 0; i < EXPERTS * ONE; i++) /* expert e of buffer b: (e + b) / 64 */
            f[i] = (float)(i / ONE + b) / 64.0f;
    }
    float *of = cf_gpu_host_write(cf_span_of(ones));
    uint32_t *pf = cf_gpu_host_write(cf_span_of(pairs));
    for (int i = 0; i < EXPERTS * HIDDEN; i++)
        of[i] = 1.0f;
    for (uint32_t i = 0; i < EXPERTS; i++)
        pf[i] = EXPERTS - 1 - i;
    cf_expert_work work[EXPERTS];
    for (uint32_t e = 0; e < EXPERTS; e++) {
        cf_span at = {w[e % 5 ? 0 : 1], e * ONE * 4, FFN * HIDDEN * 4}, up = at, down = at;
        up.buf = w[e % 3];
        down.buf = w[e % 2 ? 2 : 1];
        work[e] =
            (cf_expert_work){.gate = {.span = at, .dtype = CF_F32, .rows = FFN, .cols = HIDDEN},
                             .up = {.span = up, .dtype = CF_F32, .rows = FFN, .cols = HIDDEN},
                             .down = {.span = down, .dtype = CF_F32, .rows = HIDDEN, .cols = FFN},
                             .pair_begin = e,
                             .pair_count = 1};
    }
    cf_gpu_expert_glu(gpu, CF_STREAM_COMPUTE,
                      &(cf_op_expert_glu){.experts = work,
                                          .n_experts = EXPERTS,
                                          .x = cf_span_of(ones),
                                          .pairs = cf_span_of(pairs),
                                          .h = cf_span_of(h),
                                          .n_rows = EXPERTS,
                                          .k = 1,
                                          .hidden = HIDDEN,
                                          .ffn = FFN});
    cf_gpu_barrier(gpu, CF_STREAM_COMPUTE);
    cf_gpu_expert_down(gpu, CF_STREAM_COMPUTE,
                       &(cf_op_expert_down){work, EXPERTS, cf_span_of(h), cf_span_of(pairs),
                                            cf_span_of(ones), cf_span_of(out), EXPERTS, 1, HIDDEN,
                                            FFN, false});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    const float *y = cf_gpu_host_read(cf_span_of(out));
    int wrong = 0;
    for (int e = 0; e < EXPERTS; e++)
        for (int i = 0; i < HIDDEN; i++) {
            double g = HIDDEN * (e + (e % 5 ? 0 : 1)) / 64.0, u = HIDDEN * (e + e % 3) / 64.0;
            double want = FFN * (e + (e % 2 ? 2 : 1)) / 64.0 * (g / (1 + exp(-g)) * u);
            double got = (double)y[(EXPERTS - 1 - e) * HIDDEN + i];
            wrong += fabs(got - want) > 1e-5 * fabs(want);
        }
    CHECK_INT(wrong, 0);
    for (int b = 0; b < BUFS; b++)
        cf_gpu_buf_destroy(&w[b]);
    cf_gpu_buf_destroy(&ones);
    cf_gpu_buf_destroy(&pairs);
    cf_gpu_buf_destroy(&h);
    cf_gpu_buf_destroy(&out);
    close_clean(&gpu);
}

/* ---- programs on disk ---- */

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
    tmp_dir dir;
    char path[4096], deeper[4200];
    const uint8_t data[5000] = {1, 2, 3};
    tmp_dir_init(&dir);
    char *saved = getenv("XDG_CACHE_HOME"), before[4096] = "";
    if (saved)
        snprintf(before, sizeof before, "%s", saved);
    setenv("XDG_CACHE_HOME", dir.path, 1);
    CHECK_INT(ocl_cache_path("a key", path, sizeof path), 0);
    CHECK_HAS(path, dir.path);
    CHECK_HAS(path, "/catflap/opencl-");
    CHECK_INT(ocl_cache_path("a key", deeper, 20), -ENOENT);
    ocl_cache_file file;
    CHECK(!ocl_cache_open(&file, path, "a key")); /* absent */
    CHECK_INT(ocl_cache_write(path, "a key", data, sizeof data), 0);
    REQUIRE(ocl_cache_open(&file, path, "a key"));
    CHECK(file.bytes == sizeof data && memcmp(file.data, data, sizeof data) == 0);
    ocl_cache_close(&file);
    CHECK(!ocl_cache_open(&file, path, "another key"));
    struct stat st;
    REQUIRE(stat(path, &st) == 0);
    const long spots[] = {0, 8, 16, 24, 900, (long)st.st_size - 5000, (long)st.st_size - 1};
    for (size_t i = 0; i < sizeof spots / sizeof *spots; i++) {
        flip(path, spots[i]);
        CHECK(!ocl_cache_open(&file, path, "a key"));
        flip(path, spots[i]);
    }
    CHECK(ocl_cache_open(&file, path, "a key"));
    ocl_cache_close(&file);
    CHECK_INT(truncate(path, st.st_size - 1), 0);
    CHECK(!ocl_cache_open(&file, path, "a key"));
    CHECK_INT(truncate(path, st.st_size + 1), 0);
    CHECK(!ocl_cache_open(&file, path, "a key"));
    snprintf(deeper, sizeof deeper, "%s/under/a/file", path);
    CHECK(ocl_cache_write(deeper, "a key", data, sizeof data) < 0);
    char pattern[4200];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/catflap/*", dir.path);
    CHECK_INT(glob(pattern, 0, NULL, &found), 0);
    CHECK_INT(found.gl_pathc, 1); /* no temporary file left */
    globfree(&found);
    if (saved)
        setenv("XDG_CACHE_HOME", before, 1);
    else
        unsetenv("XDG_CACHE_HOME");
    tmp_dir_finish(&dir);
}

/* Opens, adds, and says where the program came from. */
static void add_once(int *builds, int *loads)
{
    cf_gpu *gpu = open_checked();
    REQUIRE(gpu);
    cf_gpu_buf *up = make(gpu, CF_BUF_UPLOAD, 64), *down = make(gpu, CF_BUF_READBACK, 64);
    float *x = cf_gpu_host_write(cf_span_of(up));
    for (int i = 0; i < 16; i++)
        x[i] = (float)i;
    cf_gpu_add(gpu, CF_STREAM_COMPUTE,
               &(cf_op_add){cf_span_of(up), cf_span_of(up), cf_span_of(down), 16, 1.0f, 2.0f});
    submit_and_wait(gpu, CF_STREAM_COMPUTE);
    CHECK(((const float *)cf_gpu_host_read(cf_span_of(down)))[15] == 45.0f);
    *builds = ocl_of(gpu)->builds;
    *loads = ocl_of(gpu)->loads;
    cf_gpu_buf_destroy(&up);
    cf_gpu_buf_destroy(&down);
    close_clean(&gpu);
}

static void programs_are_kept_and_verified(void)
{
    NEED_OPENCL();
    int builds = 0, loads = 0;
    ocl_test_keeps_programs = true;
    add_once(&builds, &loads); /* leaves a file, if there was none */
    add_once(&builds, &loads);
    CHECK_INT(builds, 0);
    CHECK_INT(loads, 1);
    char pattern[4200];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/catflap/opencl-*", getenv("XDG_CACHE_HOME"));
    REQUIRE(glob(pattern, 0, NULL, &found) == 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct stat st;
        CHECK(stat(found.gl_pathv[i], &st) == 0);
        flip(found.gl_pathv[i], (long)st.st_size / 2);
    }
    globfree(&found);
    add_once(&builds, &loads);
    CHECK_INT(builds, 1);
    CHECK_INT(loads, 0);
    add_once(&builds, &loads); /* and the file is good again */
    CHECK_INT(builds, 0);
    CHECK_INT(loads, 1);
    ocl_test_keeps_programs = false;
}

/* A driver that keeps what it compiled is asked for no binary, for which PoCL compiles every kernel
 * once more. */
static void what_the_driver_keeps_is_not_kept_twice(void)
{
    NEED_OPENCL();
    cf_gpu *gpu = open_checked();
    REQUIRE(gpu);
    bool keeps = ocl_driver_keeps_programs(ocl_of(gpu)->device);
    close_clean(&gpu);
    if (!keeps)
        SKIP("the driver is not PoCL");
    char dir[4200], before[4096];
    tmp_dir own;
    tmp_dir_init(&own);
    snprintf(before, sizeof before, "%s", getenv("XDG_CACHE_HOME"));
    setenv("XDG_CACHE_HOME", own.path, 1);
    int builds = 0, loads = 0;
    add_once(&builds, &loads);
    CHECK_INT(builds, 1);
    CHECK_INT(loads, 0);
    snprintf(dir, sizeof dir, "%s/catflap", own.path);
    CHECK(access(dir, F_OK) != 0);
    setenv("XDG_CACHE_HOME", before, 1);
    tmp_dir_finish(&own);
}

int main(int argc, char **argv)
{
    (void)argc;
    char cache[4096], here[2048] = "";
    if (argv[0][0] != '/' && !getcwd(here, sizeof here - 1))
        return 1;
    /* Beside the program, so that the second run of a build need not compile. */
    snprintf(cache, sizeof cache, "%s%s%s-cache", here, here[0] ? "/" : "", argv[0]);
    setenv("XDG_CACHE_HOME", cache, 1);
    setenv("POCL_CACHE_DIR", cache, 1);
    mkdir(cache, 0700);
    setvbuf(stdout, NULL, _IOLBF, 0);
    RUN(no_driver_is_a_sentence); /* first: nothing of the loader is up yet */
    RUN(unusable_pocl_cache_is_a_sentence);
    cf_gpu_info infos[16];
    cf_err err = {0};
    if (cf_ocl_fns.list(infos, 16, &err) < 0)
        no_opencl = err.msg;
    else
        software = infos[0].cpu;
    faults_install();
    RUN(forked_child_is_told);
    RUN(devices_are_described);
    RUN(cache_file_is_whole_or_ignored);
    RUN(refused_build_reaches_submit); /* before a file is there */
    RUN(programs_are_kept_and_verified);
    RUN(what_the_driver_keeps_is_not_kept_twice);
    RUN(streams_wait_for_each_other);
    RUN(writes_until_submit_are_seen);
    RUN(imported_pages_stay_live);
    RUN(no_import_is_reported);
    RUN(refused_memory_is_a_sentence);
    RUN(failed_device_is_remembered);
    RUN(commands_have_their_room);
    RUN(bits_depend_on_nothing_else);
    RUN(experts_lie_anywhere);
    return check_done();
}
