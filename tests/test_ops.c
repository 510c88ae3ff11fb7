/* Catches: an op that computes something else than gpu/ops.h says, on any device, any odd size,
 * stride or format; one that writes a byte it must not; results that depend on threads, on a
 * repetition or on the other rows of a batch.
 *
 * ref is held to definitions in double precision (support/op_define.h) that know nothing of its
 * code; every other device that cf_gpu_list reports is held to the same and to ref's results. */
#include "gpu/formats.h"
#include "gpu/opencl/ocl.h"
#include "gpu/vulkan/vk.h"
#include "runtime/quantise.h"
#include "tests/check.h"
#include "tests/support/op_define.h"

/* ---- devices ---- */

static cf_gpu *gpu, *judge; /* the device under test, and ref with one thread */
static int hazards;
static int unequal_repeats, unequal_splits, lacking; /* cases in formats that it lacks */

static void hazard_count(void *user, const char *sentence)
{
    (void)user;
    printf("    %s\n", sentence);
    hazards++;
}

static cf_gpu *device_open(const char *name, int threads)
{
    cf_err err = {0};
    cf_gpu *g = NULL;
    cf_gpu_options options = {.threads = threads, .check = true};
    if (cf_gpu_open(&g, name, &options, &err) < 0) {
        printf("    %s\n", err.msg);
        return NULL;
    }
    cf_gpu_on_hazard(g, hazard_count, NULL);
    return g;
}

static void case_check(const op_case *c, bool is_ref)
{
    cf_err err = {0};
    op_expect e;
    op_result got, again, split, ref;
    uint32_t rows = op_case_rows(c);
    op_expect_init(&e, c);
    CHECK(!e.ambiguous);
    CHECK_INT(op_case_run(c, judge, 0, &ref, &err), 0);
    CHECK_INT(op_case_run(c, gpu, 0, &got, &err), 0);
    CHECK_INT(op_case_run(c, gpu, 0, &again, &err), 0);
    CHECK_INT(rows > 1 ? op_case_run(c, gpu, rows / 2, &split, &err) : 0, 0);
    CHECK_STR(err.msg, "");
    if (!err.code) {
        CHECK(got.guards_intact);
        CHECK(op_expect_holds(c, &e, &got, is_ref ? NULL : &ref));
        bool same = op_results_equal(c, &got, &again);
        bool same_split = rows < 2 || op_results_equal(c, &got, &split);
        unequal_repeats += !same;
        unequal_splits += !same_split;
        if (is_ref) {
            CHECK(same);
            CHECK(same_split);
            CHECK(op_results_equal(c, &got, &ref)); /* one thread or three */
        }
        if (rows > 1)
            CHECK(split.guards_intact);
    }
    if (check_case_failed)
        printf("    in %s\n", c->name);
    op_result_free(&ref);
    op_result_free(&got);
    op_result_free(&again);
    if (rows > 1)
        op_result_free(&split);
    op_expect_finish(&e);
}

/* The same weight, one row after the other. */
static void weight_flatten(op_case *c, cf_weight *w)
{
    op_array *a = (op_array *)op_case_array(c, &w->span);
    uint64_t size = cf_format_row_bytes(w->dtype, 1), n = (uint64_t)w->rows * w->cols;
    uint8_t *flat = malloc(n * size);
    if (!flat)
        abort();
    for (uint64_t i = 0; i < n; i++)
        memcpy(flat + i * size, a->data + op_weight_index(w, i / w->cols, i % w->cols) * size,
               size);
    free(a->data);
    a->data = flat;
    a->bytes = n * size;
    *w = (cf_weight){.dtype = w->dtype, .rows = w->rows, .cols = w->cols};
}

/* A promise of ref: how a weight is stored does not change a bit of the result. */
static void ref_ignores_layouts(void)
{
    cf_err err = {0};
    int changed = 0;
    REQUIRE(judge);
    for (int i = 0; i < op_cases_count() && !check_case_failed; i++) {
        op_case *c = op_case_create(i);
        cf_weight *w = c->kind == OP_linear ? &c->op.linear.w : &c->experts[0].down;
        bool of_kind =
            c->kind == OP_linear || (c->kind == OP_expert_down && c->op.expert_down.n_experts == 1);
        of_kind = of_kind && w->dtype <= CF_BF16 && !w->scale_rows;
        if (of_kind && (w->transposed || w->row_first || w->row_step)) {
            op_result stored, flat;
            CHECK_INT(op_case_run(c, judge, 0, &stored, &err), 0);
            weight_flatten(c, w);
            CHECK_INT(op_case_run(c, judge, 0, &flat, &err), 0);
            CHECK(op_results_equal(c, &stored, &flat));
            op_result_free(&stored);
            op_result_free(&flat);
            changed++;
        }
        op_case_destroy(&c);
    }
    CHECK(changed > 50);
    CHECK_STR(err.msg, "");
}

/* A cell in 8 bits is what a file of Q8_0 would hold. */
static void cells_are_as_in_files(void)
{
    int same = 0;
    for (int i = 0; i < op_cases_count(); i++) {
        op_case *c = op_case_create(i);
        const cf_op_kv_store *op = &c->op.kv_store;
        for (uint32_t b = 0;
             c->kind == OP_kv_store && op->kv_dtype == CF_Q8_0 && b < op->n_rows * op->width / 32;
             b++) {
            uint32_t per_row = op->width / 32;
            const float *x = (const float *)(const void *)op_case_array(c, &op->x)->data;
            unsigned word[17];
            uint8_t stored[34];
            float most = 0;
            x += b / per_row * op->x_stride + b % per_row * 32;
            op_define_q8(x, word);
            for (int j = 0; j < 32; j++)
                most = fmaxf(most, fabsf(x[j]));
            if ((most > 0 && most < 0x1p-100f) || cf_quantise_row(CF_Q8_0, x, 32, stored) >= 0)
                continue;
            for (int j = 0; j < 17; j++)
                CHECK_INT(stored[2 * j] | stored[2 * j + 1] << 8, word[j]);
            same++;
        }
        op_case_destroy(&c);
    }
    CHECK(same > 100);
}

/* What a GPU computes in another shape than a CPU device does: products, of few rows and of many, and
 * attention over spans. Formats of one value, of blocks and of outer scales stand for all. */
static bool kind_of_gpus(op_kind k)
{
    return k == OP_linear || k == OP_head_linear || k == OP_expert_glu || k == OP_expert_down ||
           k == OP_attn_latent || k == OP_attn || k == OP_attn_bias || k == OP_norm;
}

static bool kind_of_integers(op_kind k)
{
    return k == OP_linear || k == OP_expert_glu || k == OP_expert_down;
}

static bool case_of_gpus(const op_case *c)
{
    uint32_t rows = op_case_rows(c);
    switch (c->kind) {
    case OP_linear:
        return rows >= 9 || (rows == 2 && c->op.linear.w.dtype <= CF_F16);
    case OP_head_linear:
    case OP_norm:
        return rows == 17;
    case OP_expert_glu:
        return c->op.expert_glu.n_rows == 17;
    case OP_expert_down:
        return c->op.expert_down.n_rows == 17;
    default:
        return rows == 5;
    }
}

/* A guise has the kernels of another shape; formats that are decoded alike are one in it. */
static bool case_of_guises(const op_case *c)
{
    switch (op_case_format(c)) {
    case CF_F32:
    case CF_F16:
    case CF_BF16:
    case CF_Q8_0:
    case CF_Q4_K:
    case CF_IQ3_S:
    case CF_F8_E4M3:
        return true;
    default:
        return false;
    }
}

/* Products that the device takes as integers. */
static bool case_of_integers(const op_case *c)
{
    const vk_gpu *vk = (const vk_gpu *)(const void *)gpu;
    const cf_op_linear *linear = &c->op.linear;
    switch (c->kind) {
    case OP_linear:
        return vk_dot_shader(vk, VK_SHADER_linear, VK_SHADER_linear_i8, &linear->w, linear->x_q8) ==
               VK_SHADER_linear_i8;
    case OP_expert_glu:
        return vk_dot_shader(vk, VK_SHADER_expert_glu, VK_SHADER_expert_glu_i8, &c->experts[0].gate,
                             c->op.expert_glu.x_q8) == VK_SHADER_expert_glu_i8;
    case OP_expert_down:
        return vk_dot_shader(vk, VK_SHADER_expert_down, VK_SHADER_expert_down_i8,
                             &c->experts[0].down,
                             c->op.expert_down.x_q8) == VK_SHADER_expert_down_i8;
    default:
        return false;
    }
}

static void op_check(op_kind kind, bool is_ref)
{
    REQUIRE(gpu && judge);
    hazards = 0;
    int cases = 0;
    for (int i = 0; i < op_cases_count() && !check_case_failed; i++) {
        op_case *c = op_case_create(i);
        bool by_integers = vk_test_integers != VK_INTEGERS_BY_DEVICE;
        if ((by_integers && (!case_of_integers(c) || !case_of_guises(c))) ||
            (vk_test_as_gpu && !by_integers && !case_of_gpus(c)) ||
            (ocl_test_guise != OCL_AS_IT_IS && !case_of_guises(c))) {
            /* the CPU's shapes tell as much */
        } else if (c->kind == kind && !op_case_supported(c, gpu)) {
            lacking++;
        } else if (c->kind == kind) {
            case_check(c, is_ref);
            cases++;
        }
        op_case_destroy(&c);
    }
    /* None: a Vulkan device without products of integers, asked for them. */
    bool none = vk_test_integers != VK_INTEGERS_BY_DEVICE &&
                !((const vk_gpu *)(const void *)gpu)->dots;
    CHECK(cases > 0 || none);
    CHECK_INT(hazards, 0);
    CHECK_INT(cf_gpu_validation_errors(gpu), 0);
}

/* Ops named on the command line; none: all. */
static bool wanted[OP_KINDS], any_wanted;

static bool op_wanted(op_kind k)
{
    return wanted[k] || !any_wanted;
}

static void device_check(const cf_gpu_info *info, const char *as)
{
    char device[32], line[96];
    bool is_ref = !strcmp(info->backend, "ref");
    snprintf(device, sizeof device, "%s:%d", info->backend, info->index);
    printf("  %s%s: %s\n", device, as, info->name);
    unequal_repeats = unequal_splits = lacking = 0;
    gpu = device_open(device, 3);
    for (int k = 0; k < OP_KINDS; k++) {
        if (!op_wanted((op_kind)k) || (vk_test_as_gpu && !kind_of_gpus((op_kind)k)) ||
            (vk_test_integers != VK_INTEGERS_BY_DEVICE && !kind_of_integers((op_kind)k)))
            continue;
        snprintf(line, sizeof line, "%s%s_%s", device, as, op_kind_name((op_kind)k));
        RUN_NAMED(line, op_check((op_kind)k, is_ref));
    }
    printf("  %s%s: %d cases differ in bits when repeated, %d when their rows are split\n", device,
           as, unequal_repeats, unequal_splits);
    if (lacking)
        printf("  %s%s: %d cases are in formats that the device lacks\n", device, as, lacking);
    cf_gpu_close(&gpu);
}

/* Other shapes of the kernels, products of floats or integers, and other models of memory, where no
 * such GPU is. */
static void guises_check(const cf_gpu_info *info)
{
    if (!strcmp(info->backend, "vulkan") && info->cpu) {
        vk_test_as_gpu = true;
        device_check(info, " as GPU");
        vk_test_integers = VK_INTEGERS_ALWAYS;
        device_check(info, " as GPU with integers");
        vk_test_as_gpu = false;
        vk_test_integers = VK_INTEGERS_BY_DEVICE;
    }
    if (strcmp(info->backend, "opencl") || !info->cpu)
        return;
    ocl_test_guise = OCL_AS_INTEGRATED_GPU;
    device_check(info, " as integrated GPU");
    ocl_test_guise = OCL_AS_DISCRETE_GPU;
    device_check(info, " as discrete GPU");
    ocl_test_guise = OCL_AS_IT_IS;
}

/* ---- the seam ---- */

static void opening_names_what_is_known(void)
{
    cf_gpu *g = NULL;
    cf_err err = {0};
    CHECK(cf_gpu_open(&g, "cuda", NULL, &err) < 0);
    CHECK_HAS(err.msg, "'cuda'");
    CHECK_HAS(err.msg, "auto");
    CHECK_HAS(err.msg, "ref");
    static const char *const bad[] = {"ref:1",           "ref:x", "ref:", "ref:-1",
                                      "ref:99999999999", "re",    "",     ":0"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        err = (cf_err){0};
        CHECK(cf_gpu_open(&g, bad[i], NULL, &err) < 0);
        CHECK(err.msg[0] != '\0');
        CHECK(g == NULL);
    }
    err = (cf_err){0};
    CHECK_INT(cf_gpu_open(&g, "auto", NULL, &err), 0);
    cf_gpu_close(&g);
    CHECK(g == NULL);
    cf_gpu_close(&g);
    cf_gpu_info infos[16];
    char why[256];
    int n = cf_gpu_list(infos, 16, why, sizeof why);
    CHECK(n >= 1 && !strcmp(infos[n - 1].backend, "ref"));
}

static void buffers_are_charged_and_bounded(void)
{
    cf_err err = {0};
    cf_ledger *ledger = NULL;
    cf_gpu *g = NULL;
    cf_gpu_buf *a = NULL, *b = NULL;
    CHECK_INT(cf_ledger_create(&ledger, 100000, 0, &err), 0);
    cf_gpu_options options = {.threads = 1, .ledger = ledger};
    REQUIRE(cf_gpu_open(&g, "ref", &options, &err) == 0);
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_UPLOAD, 60000, "first", &a, &err), 0);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 60000);
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_DEVICE, 60000, "second", &b, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "second");
    CHECK(b == NULL);
    err = (cf_err){0};
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_DEVICE, UINT64_MAX / 2, "huge", &b, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "huge");
    err = (cf_err){0};
    static _Alignas(4096) uint8_t page[8192];
    CHECK(cf_gpu_buf_import(g, page + 512, 4096, "pages", &b, &err) < 0);
    CHECK_HAS(err.msg, "pages");
    CHECK(cf_gpu_buf_import(g, page, 1000, "pages", &b, &err) < 0);
    err = (cf_err){0};
    CHECK_INT(cf_gpu_buf_import(g, page, 8192, "pages", &b, &err), 0);
    CHECK(b->host == page);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 60000);
    cf_gpu_buf_destroy(&b);
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&a);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 0);
    cf_gpu_close(&g);
    options.no_import = true;
    REQUIRE(cf_gpu_open(&g, "ref", &options, &err) == 0);
    CHECK(!cf_gpu_get_info(g)->imports);
    CHECK_INT(cf_gpu_buf_import(g, page, 8192, "pages", &b, &err), CF_EDEVICE);
    cf_gpu_close(&g);
    cf_ledger_destroy(&ledger);
}

/* What the host writes between recording and submit is what the work sees. */
static void work_sees_writes_until_submit(void)
{
    cf_err err = {0};
    cf_gpu_buf *up = NULL, *down = NULL;
    uint64_t value = 0;
    cf_gpu *g = device_open("auto", 2);
    REQUIRE(g);
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_UPLOAD, 16, "up", &up, &err), 0);
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_READBACK, 16, "down", &down, &err), 0);
    memset(cf_gpu_host_write(cf_span_of(up)), 1, 16);
    cf_gpu_copy(g, CF_STREAM_TRANSFER, cf_span_of(down), cf_span_of(up));
    memset(cf_gpu_host_write(cf_span_of(up)), 2, 16);
    CHECK_INT(cf_gpu_submit(g, CF_STREAM_TRANSFER, NULL, 0, &value, &err), 0);
    CHECK_INT(cf_gpu_wait(g, (cf_gpu_point){CF_STREAM_TRANSFER, value}, &err), 0);
    CHECK(cf_gpu_reached(g, (cf_gpu_point){CF_STREAM_TRANSFER, value}));
    CHECK_INT(((const uint8_t *)cf_gpu_host_read(cf_span_of(down)))[15], 2);
    CHECK_INT(cf_gpu_submit(g, CF_STREAM_COMPUTE, NULL, 0, &value, &err), 0); /* empty */
    CHECK(value > 0);
    cf_gpu_buf_destroy(&up);
    cf_gpu_buf_destroy(&down);
    cf_gpu_close(&g);
}

static bool op_name(const char *name)
{
    for (int k = 0; k < OP_KINDS; k++)
        if (!strcmp(name, op_kind_name((op_kind)k)))
            return true;
    return false;
}

static void ops_want(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        for (int k = 0; k < OP_KINDS; k++)
            if (!strcmp(argv[i], op_kind_name((op_kind)k)))
                wanted[k] = any_wanted = true;
}

/* Arguments: the devices to look at ("vulkan:0" or "vulkan"), and the ops ("attn"); none: all. */
static bool device_wanted(const cf_gpu_info *info, int argc, char **argv)
{
    char device[32];
    bool any = false;
    snprintf(device, sizeof device, "%.15s:%d", info->backend, info->index);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], device) || !strcmp(argv[i], info->backend))
            return true;
        any = any || !op_name(argv[i]);
    }
    return !any;
}

int main(int argc, char **argv)
{
    cf_gpu_info infos[16];
    int n = cf_gpu_list(infos, 16, NULL, 0);
    ops_want(argc, argv);
    RUN(opening_names_what_is_known);
    RUN(buffers_are_charged_and_bounded);
    RUN(work_sees_writes_until_submit);
    judge = device_open("ref", 1);
    RUN(ref_ignores_layouts);
    RUN(cells_are_as_in_files);
    for (int i = n; i-- > 0;) { /* ref first */
        if (!device_wanted(&infos[i], argc, argv))
            continue;
        device_check(&infos[i], "");
        guises_check(&infos[i]);
    }
    cf_gpu_close(&judge);
    return check_done();
}
