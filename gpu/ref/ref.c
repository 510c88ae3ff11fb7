/* The reference device: memory is host memory, a batch is a list of commands, and submit runs it
 * on the calling thread (and the pool), so a point is reached when submit returns.
 *
 * Work runs at submit and not when recorded because the contract promises it: what the host
 * writes, or the other stream completes, between the two is seen. Barriers need nothing.
 *
 * Threads: one per stream at a time, as in gpu.h. The pool serves the compute stream only: it
 * runs one loop at a time. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/backend.h"
#include "gpu/ref/ref_ops.h"
#include "runtime/base/align.h"
#include "runtime/base/machine.h"
#include "runtime/base/pages.h"

#define COMMAND_OF(name) COMMAND_##name,
enum command_kind { CF_GPU_OPS(COMMAND_OF) COMMAND_copy };
#undef COMMAND_OF

enum { COMMAND_ALIGN = 16, IMPORT_ALIGN = 4096 };

struct op_copy {
    cf_span dst, src;
};

/* Followed in the batch by the op's struct, and that by its experts if it has any. */
struct command {
    enum command_kind kind;
    uint64_t bytes; /* to the next command */
    _Alignas(COMMAND_ALIGN) uint8_t op[];
};

struct ref_stream {
    uint8_t *batch; /* commands recorded; grows, and is reused */
    uint64_t used, capacity;
    bool failed; /* a command could not be recorded: sticky */
    _Atomic uint64_t reached;
};

struct ref_gpu {
    cf_gpu base;
    cf_threads *pool;
    bool poison; /* fill new DEVICE memory with NaN: nothing may count on its content */
    struct ref_stream streams[CF_STREAM_COUNT];
};

struct ref_buf {
    cf_gpu_buf base;
    cf_pages pages; /* empty when imported */
};

static struct ref_gpu *ref_of(cf_gpu *gpu)
{
    return (struct ref_gpu *)gpu;
}

/* ---- device ---- */

static void info_fill(cf_gpu_info *info, int threads)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    *info = (cf_gpu_info){.backend = "ref",
                          .cpu = true,
                          .threads = threads,
                          .unified = true,
                          .kv_q8 = true,
                          .imports = true,
                          .own_transfer = true,
                          .import_align = IMPORT_ALIGN};
    info->heap_bytes = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
    info->max_alloc_bytes = info->heap_bytes ? info->heap_bytes : UINT64_MAX / 4;
    snprintf(info->name, sizeof info->name, "plain C, %d thread%s", threads,
             threads == 1 ? "" : "s");
}

static int ref_list(cf_gpu_info *out, int max, cf_err *err)
{
    (void)err;
    if (max < 1)
        return 0;
    info_fill(out, cf_machine_processors(""));
    return 1;
}

static void ref_close(cf_gpu *gpu)
{
    struct ref_gpu *g = ref_of(gpu);
    cf_threads_destroy(&g->pool);
    for (int s = 0; s < CF_STREAM_COUNT; s++)
        free(g->streams[s].batch);
    free(g);
}

static int ref_open(cf_gpu **out, int index, const cf_gpu_options *options, cf_err *err)
{
    if (index != 0)
        return CF_FAIL(err, CF_EDEVICE, "ref has one device, there is no ref:%d", index);
    struct ref_gpu *g = calloc(1, sizeof *g);
    if (!g)
        return CF_FAIL(err, -ENOMEM, "out of memory for the reference device");
    int rc = cf_threads_create(&g->pool, options->threads, err);
    if (rc < 0) {
        free(g);
        return rc;
    }
    g->poison = options->check;
    info_fill(&g->base.info, cf_threads_count(g->pool));
    *out = &g->base;
    return 0;
}

static int ref_validation_errors(const cf_gpu *gpu)
{
    (void)gpu;
    return 0;
}

/* ---- memory ---- */

static int ref_buf_create(cf_gpu *gpu, cf_buf_kind kind, uint64_t bytes, const char *name,
                          cf_gpu_buf **out, cf_err *err)
{
    struct ref_buf *b = calloc(1, sizeof *b);
    if (!b)
        return CF_FAIL(err, -ENOMEM, "out of memory for buffer %s", name);
    int rc = cf_pages_init(&b->pages, bytes, NULL, CF_POOL_DEVICE, name, err);
    if (rc < 0) {
        free(b);
        return rc;
    }
    b->base.host = b->pages.data;
    if (kind == CF_BUF_DEVICE && ref_of(gpu)->poison)
        memset(b->pages.data, 0xff, b->pages.bytes);
    *out = &b->base;
    return 0;
}

static int ref_buf_import(cf_gpu *gpu, void *pages, uint64_t bytes, const char *name,
                          cf_gpu_buf **out, cf_err *err)
{
    (void)gpu;
    (void)bytes;
    struct ref_buf *b = calloc(1, sizeof *b);
    if (!b)
        return CF_FAIL(err, -ENOMEM, "out of memory for buffer %s", name);
    b->base.host = pages;
    *out = &b->base;
    return 0;
}

static void ref_buf_destroy(cf_gpu_buf *buf)
{
    struct ref_buf *b = (struct ref_buf *)buf;
    cf_pages_finish(&b->pages);
    free(b);
}

/* ---- recording ---- */

static void command_push(struct ref_stream *st, enum command_kind kind, const void *op,
                         size_t op_bytes, const void *tail, size_t tail_bytes)
{
    uint64_t tail_off = cf_align_up(op_bytes, COMMAND_ALIGN);
    uint64_t bytes = sizeof(struct command) + tail_off + cf_align_up(tail_bytes, COMMAND_ALIGN);
    if (st->failed)
        return;
    if (st->capacity - st->used < bytes) {
        uint64_t capacity = cf_max_u64(st->capacity * 2, st->used + bytes + 65536);
        uint8_t *batch = realloc(st->batch, capacity);
        if (!batch) {
            st->failed = true;
            return;
        }
        st->batch = batch;
        st->capacity = capacity;
    }
    struct command *c = (struct command *)(void *)(st->batch + st->used);
    c->kind = kind;
    c->bytes = bytes;
    memcpy(c->op, op, op_bytes);
    if (tail_bytes)
        memcpy(c->op + tail_off, tail, tail_bytes);
    st->used += bytes;
}

#define EXPERTS_OF(command, op_type)                                                               \
    ((const cf_expert_work *)(const void *)((command)->op +                                        \
                                            cf_align_up(sizeof(op_type), COMMAND_ALIGN)))

#define RECORD(name)                                                                               \
    static void ref_record_##name(cf_gpu *gpu, cf_stream stream, const cf_op_##name *op)           \
    {                                                                                              \
        command_push(&ref_of(gpu)->streams[stream], COMMAND_##name, op, sizeof *op, NULL, 0);      \
    }
#define RECORD_EXPERTS(name)                                                                       \
    static void ref_record_##name(cf_gpu *gpu, cf_stream stream, const cf_op_##name *op)           \
    {                                                                                              \
        command_push(&ref_of(gpu)->streams[stream], COMMAND_##name, op, sizeof *op, op->experts,   \
                     op->n_experts * sizeof *op->experts);                                         \
    }
RECORD(linear)
RECORD(head_linear)
RECORD(norm)
RECORD(rope)
RECORD(kv_store)
RECORD(attn_latent)
RECORD(attn)
RECORD(glu)
RECORD(map)
RECORD(add)
RECORD(route)
RECORD_EXPERTS(expert_glu)
RECORD_EXPERTS(expert_down)
RECORD(combine)
RECORD(get_rows)
CF_GPU_STATE_OPS(RECORD)

static void ref_copy(cf_gpu *gpu, cf_stream stream, cf_span dst, cf_span src)
{
    struct op_copy op = {dst, src};
    command_push(&ref_of(gpu)->streams[stream], COMMAND_copy, &op, sizeof op, NULL, 0);
}

static void ref_barrier(cf_gpu *gpu, cf_stream stream)
{
    (void)gpu;
    (void)stream;
}

/* ---- running ---- */

static void command_run(cf_threads *pool, const struct command *c)
{
    switch (c->kind) {
#define RUN_OP(name)                                                                               \
    case COMMAND_##name:                                                                           \
        cf_ref_##name(pool, (const cf_op_##name *)(const void *)c->op);                            \
        break;
        RUN_OP(linear)
        RUN_OP(head_linear)
        RUN_OP(norm)
        RUN_OP(rope)
        RUN_OP(kv_store)
        RUN_OP(attn_latent)
        RUN_OP(attn)
        RUN_OP(glu)
        RUN_OP(map)
        RUN_OP(add)
        RUN_OP(route)
        RUN_OP(combine)
        RUN_OP(get_rows)
        CF_GPU_STATE_OPS(RUN_OP)
#undef RUN_OP
    case COMMAND_expert_glu: {
        cf_op_expert_glu op = *(const cf_op_expert_glu *)(const void *)c->op;
        op.experts = EXPERTS_OF(c, cf_op_expert_glu);
        cf_ref_expert_glu(pool, &op);
        break;
    }
    case COMMAND_expert_down: {
        cf_op_expert_down op = *(const cf_op_expert_down *)(const void *)c->op;
        op.experts = EXPERTS_OF(c, cf_op_expert_down);
        cf_ref_expert_down(pool, &op);
        break;
    }
    case COMMAND_copy: {
        const struct op_copy *op = (const struct op_copy *)(const void *)c->op;
        memcpy(cf_ref_at(op->dst), cf_ref_at(op->src), op->dst.bytes);
        break;
    }
    }
}

static int ref_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                      uint64_t *value, cf_err *err)
{
    (void)waits; /* submitted already, so reached already */
    (void)n_waits;
    struct ref_gpu *g = ref_of(gpu);
    struct ref_stream *st = &g->streams[stream];
    if (st->failed)
        return CF_FAIL(err, -ENOMEM, "out of memory for a batch of the reference device");
    cf_threads *pool = stream == CF_STREAM_COMPUTE ? g->pool : NULL;
    for (uint64_t at = 0; at < st->used;) {
        const struct command *c = (const struct command *)(const void *)(st->batch + at);
        command_run(pool, c);
        at += c->bytes;
    }
    st->used = 0;
    *value = st->reached + 1;
    st->reached = *value;
    return 0;
}

static bool ref_reached(cf_gpu *gpu, cf_gpu_point point)
{
    return point.value <= ref_of(gpu)->streams[point.stream].reached;
}

static int ref_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err)
{
    (void)err;
    cf_assert(ref_reached(gpu, point));
    return 0;
}

static bool ref_supports(const cf_gpu *gpu, cf_format format)
{
    (void)gpu;
    return cf_format_computable(format);
}

const struct cf_gpu_fns cf_ref_fns = {.name = "ref",
                                      .title = "ref",
                                      .list = ref_list,
                                      .open = ref_open,
                                      .close = ref_close,
                                      .buf_create = ref_buf_create,
                                      .buf_import = ref_buf_import,
                                      .buf_destroy = ref_buf_destroy,
                                      .copy = ref_copy,
                                      .barrier = ref_barrier,
                                      .submit = ref_submit,
                                      .wait = ref_wait,
                                      .reached = ref_reached,
                                      .validation_errors = ref_validation_errors,
                                      .supports = ref_supports,
#define OP_FN(name) .name = ref_record_##name,
                                      CF_GPU_OPS(OP_FN)
#undef OP_FN
};
