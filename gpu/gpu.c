/* Devices, memory and streams: validates, keeps the ledger and the hazard tracker, then calls the
 * backend. Owns the table of backends; the ops are in ops.c.
 *
 * Untrusted: the device's name on the command line. All else is asserted. Threads: see gpu.h. */
#include "gpu/gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/backend.h"
#include "gpu/hazard.h"

/* In the order of the list; ref is last. */
static const struct cf_gpu_fns *const backends[] = {
    &cf_vk_fns,
    &cf_ocl_fns,
    &cf_ref_fns,
};
enum { BACKENDS = sizeof backends / sizeof backends[0], MAX_DEVICES = 16 };

/* ---- devices ---- */

static void why_add(char *why, size_t why_size, const char *backend, const cf_err *e)
{
    size_t used = why ? strlen(why) : 0;
    if (why && used < why_size)
        snprintf(why + used, why_size - used, "%s%s: %s", used ? "\n" : "", backend, e->msg);
}

int cf_gpu_list(cf_gpu_info *out, int max, char *why, size_t why_size)
{
    int n = 0;
    if (!why_size)
        why = NULL;
    if (why)
        why[0] = '\0';
    for (int b = 0; b < BACKENDS; b++) {
        cf_err e = {0};
        int got = backends[b]->list(out + n, max - n, &e);
        if (got < 0)
            why_add(why, why_size, backends[b]->name, &e);
        else
            n += got;
    }
    return n;
}

/* "name" or "name:index" into the backend and the index. */
static int device_parse(const char *device, const struct cf_gpu_fns **fns, int *index, cf_err *err)
{
    size_t name_len = strcspn(device, ":");
    *fns = NULL;
    for (int b = 0; b < BACKENDS; b++)
        if (strlen(backends[b]->name) == name_len && !memcmp(backends[b]->name, device, name_len))
            *fns = backends[b];
    if (!*fns) {
        char known[128] = "auto";
        for (int b = 0; b < BACKENDS; b++)
            snprintf(known + strlen(known), sizeof known - strlen(known), ", %s",
                     backends[b]->name);
        return CF_FAIL(err, -EINVAL,
                       "there is no device '%s': known are %s, a backend with an optional :index",
                       device, known);
    }
    *index = 0;
    if (device[name_len] == '\0')
        return 0;
    char *end;
    errno = 0;
    long v = strtol(device + name_len + 1, &end, 10);
    if (end == device + name_len + 1 || *end || errno || v < 0 || v >= MAX_DEVICES ||
        device[name_len + 1] < '0' || device[name_len + 1] > '9')
        return CF_FAIL(err, -EINVAL, "device '%s': '%s' is not an index from 0 to %d", device,
                       device + name_len + 1, MAX_DEVICES - 1);
    *index = (int)v;
    return 0;
}

/* What "auto" takes: the first kind of which there is a device, the first such device. */
static const struct {
    const struct cf_gpu_fns *fns;
    bool cpu;
} preferred[] = {
    {&cf_vk_fns, false}, {&cf_ocl_fns, false}, {&cf_ocl_fns, true},
    {&cf_vk_fns, true},  {&cf_ref_fns, true},
};
enum { PREFERRED = sizeof preferred / sizeof preferred[0] };

static int device_auto(const struct cf_gpu_fns **fns, int *index, cf_err *err)
{
    cf_gpu_info infos[MAX_DEVICES];
    char why[256];
    int n = cf_gpu_list(infos, MAX_DEVICES, why, sizeof why);
    for (int p = 0; p < PREFERRED; p++)
        for (int i = 0; i < n; i++)
            if (infos[i].cpu == preferred[p].cpu &&
                !strcmp(infos[i].backend, preferred[p].fns->name)) {
                *fns = preferred[p].fns;
                *index = infos[i].index;
                return 0;
            }
    return CF_FAIL(err, CF_EDEVICE, "no device at all: %s", why);
}

/* The device is there, or a sentence says what is. */
static int device_check(const struct cf_gpu_fns *fns, int index, cf_err *err)
{
    cf_gpu_info infos[MAX_DEVICES];
    cf_err e = {0};
    int n = fns->list(infos, MAX_DEVICES, &e);
    if (n <= 0)
        return CF_FAIL(err, CF_EDEVICE, "no %s device%s%s", fns->title, e.msg[0] ? ": " : "",
                       e.msg);
    if (index >= n)
        return CF_FAIL(err, CF_EDEVICE, "there is no device %s:%d: %s has %d (index 0 to %d)",
                       fns->name, index, fns->title, n, n - 1);
    return 0;
}

int cf_gpu_open(cf_gpu **out, const char *device, const cf_gpu_options *options, cf_err *err)
{
    const cf_gpu_options defaults = {0};
    const struct cf_gpu_fns *fns = NULL;
    cf_gpu *gpu = NULL;
    int rc = 0, index = 0;
    if (!options)
        options = &defaults;
    if (!device || !strcmp(device, "auto")) {
        CF_TRY(device_auto(&fns, &index, err));
    } else {
        CF_TRY(device_parse(device, &fns, &index, err));
        CF_TRY(device_check(fns, index, err));
    }
    CF_TRY(fns->open(&gpu, index, options, err));
    gpu->fns = fns;
    gpu->ledger = options->ledger;
    gpu->hazards = NULL;
    gpu->next_buf_id = 1;
    for (int s = 0; s < CF_STREAM_COUNT; s++)
        gpu->submitted[s] = 0;
    gpu->barriers = 0;
    gpu->drop_barrier = -1;
    if (options->no_import)
        gpu->info.imports = false;
    if (options->check)
        CF_TRY(cf_hazards_create(&gpu->hazards, err));
    *out = gpu;
    return 0;
fail:
    cf_gpu_close(&gpu);
    return rc;
}

void cf_gpu_close(cf_gpu **gpu)
{
    if (!*gpu)
        return;
    struct cf_hazards *hazards = (*gpu)->hazards;
    (*gpu)->fns->close(*gpu);
    cf_hazards_destroy(&hazards);
    *gpu = NULL;
}

const cf_gpu_info *cf_gpu_get_info(const cf_gpu *gpu)
{
    return &gpu->info;
}

bool cf_gpu_supports(const cf_gpu *gpu, cf_format format)
{
    return cf_format_computable(format) && gpu->fns->supports(gpu, format);
}

int cf_gpu_validation_errors(const cf_gpu *gpu)
{
    return gpu->fns->validation_errors(gpu);
}

/* ---- memory ---- */

static void buf_fill(cf_gpu *gpu, cf_gpu_buf *b, cf_buf_kind kind, uint64_t bytes, char *name)
{
    b->gpu = gpu;
    b->kind = kind;
    b->id = gpu->next_buf_id++;
    b->bytes = bytes;
    b->name = name;
    b->pool = CF_POOL_DEVICE;
}

int cf_gpu_buf_create(cf_gpu *gpu, cf_buf_kind kind, uint64_t bytes, const char *name,
                      cf_gpu_buf **out, cf_err *err)
{
    cf_assert(kind != CF_BUF_IMPORTED && bytes > 0);
    int rc = 0;
    cf_gpu_buf *b = NULL;
    if (gpu->info.max_alloc_bytes && bytes > gpu->info.max_alloc_bytes)
        return CF_FAIL(err, CF_ELIMIT, "%s: %llu bytes, but a buffer of %s holds at most %llu",
                       name, (unsigned long long)bytes, gpu->info.name,
                       (unsigned long long)gpu->info.max_alloc_bytes);
    char *copy = strdup(name);
    if (!copy)
        return CF_FAIL(err, -ENOMEM, "out of memory for the name of %s", name);
    rc = cf_ledger_charge(gpu->ledger, CF_POOL_DEVICE, name, bytes, err);
    if (rc < 0) {
        free(copy);
        return rc;
    }
    rc = gpu->fns->buf_create(gpu, kind, bytes, copy, &b, err);
    if (rc < 0) {
        cf_ledger_refund(gpu->ledger, CF_POOL_DEVICE, bytes);
        free(copy);
        return rc;
    }
    buf_fill(gpu, b, kind, bytes, copy);
    *out = b;
    return 0;
}

int cf_gpu_buf_import(cf_gpu *gpu, void *pages, uint64_t bytes, const char *name, cf_gpu_buf **out,
                      cf_err *err)
{
    uint64_t align = gpu->info.import_align;
    if (!gpu->info.imports)
        return CF_FAIL(err, CF_EDEVICE, "%s: %s cannot import host pages", name, gpu->info.name);
    if (!bytes || bytes % align || (uintptr_t)pages % align)
        return CF_FAIL(err, -EINVAL,
                       "%s: %llu bytes at %p, but imported pages are multiples of %llu", name,
                       (unsigned long long)bytes, pages, (unsigned long long)align);
    char *copy = strdup(name);
    if (!copy)
        return CF_FAIL(err, -ENOMEM, "out of memory for the name of %s", name);
    cf_gpu_buf *b = NULL;
    int rc = gpu->fns->buf_import(gpu, pages, bytes, copy, &b, err);
    if (rc < 0) {
        free(copy);
        return rc;
    }
    buf_fill(gpu, b, CF_BUF_IMPORTED, bytes, copy);
    *out = b;
    return 0;
}

void cf_gpu_buf_destroy(cf_gpu_buf **buf)
{
    cf_gpu_buf *b = *buf;
    if (!b)
        return;
    cf_gpu *gpu = b->gpu;
    char *name = (char *)b->name;
    if (gpu->hazards)
        cf_hazards_forget(gpu->hazards, b);
    if (b->kind != CF_BUF_IMPORTED)
        cf_ledger_refund(gpu->ledger, b->pool, b->bytes);
    gpu->fns->buf_destroy(b);
    free(name);
    *buf = NULL;
}

static void span_assert(const cf_gpu *gpu, cf_span s)
{
    cf_assert(s.buf && s.buf->gpu == gpu && s.bytes > 0);
    cf_assert(s.off <= s.buf->bytes && s.bytes <= s.buf->bytes - s.off);
}

/* DEVICE memory has an address on ref only: using it there would break elsewhere. */
static uint8_t *host_access(cf_span s, bool write)
{
    span_assert(s.buf->gpu, s);
    cf_assert(s.buf->host && s.buf->kind != CF_BUF_DEVICE);
    if (s.buf->gpu->hazards)
        cf_hazards_host(s.buf->gpu->hazards, s.buf, s.off, s.bytes, write);
    return s.buf->host + s.off;
}

void *cf_gpu_host_write(cf_span span)
{
    return host_access(span, true);
}

const void *cf_gpu_host_read(cf_span span)
{
    return host_access(span, false);
}

/* ---- streams ---- */

void cf_gpu_copy(cf_gpu *gpu, cf_stream stream, cf_span dst, cf_span src)
{
    span_assert(gpu, dst);
    span_assert(gpu, src);
    cf_assert(dst.bytes == src.bytes);
    cf_assert(dst.buf != src.buf || dst.off + dst.bytes <= src.off ||
              src.off + src.bytes <= dst.off);
    if (gpu->hazards) {
        cf_range from = cf_range_plain(src.off, src.bytes);
        cf_range to = cf_range_plain(dst.off, dst.bytes);
        cf_hazards_op(gpu->hazards, stream, "copy");
        cf_hazards_access(gpu->hazards, stream, src.buf, &from, CF_ACCESS_READ);
        cf_hazards_access(gpu->hazards, stream, dst.buf, &to, CF_ACCESS_WRITE);
    }
    gpu->fns->copy(gpu, stream, dst, src);
}

void cf_gpu_barrier(cf_gpu *gpu, cf_stream stream)
{
    int64_t index = gpu->barriers++;
    if (index == gpu->drop_barrier)
        return;
    if (gpu->hazards)
        cf_hazards_barrier(gpu->hazards, stream);
    gpu->fns->barrier(gpu, stream);
}

int cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                  uint64_t *value, cf_err *err)
{
    for (int i = 0; i < n_waits; i++)
        cf_assert(waits[i].value <= gpu->submitted[waits[i].stream]);
    int rc = gpu->fns->submit(gpu, stream, waits, n_waits, value, err);
    if (rc >= 0)
        gpu->submitted[stream] = *value;
    if (gpu->hazards)
        cf_hazards_submit(gpu->hazards, stream, waits, n_waits, rc < 0 ? 0 : *value);
    return rc;
}

int cf_gpu_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err)
{
    cf_assert(point.value <= gpu->submitted[point.stream]);
    int rc = gpu->fns->wait(gpu, point, err);
    if (gpu->hazards && rc >= 0)
        cf_hazards_waited(gpu->hazards, point);
    /* A failed device runs nothing any more: its buffers may go. */
    for (int s = 0; gpu->hazards && rc < 0 && s < CF_STREAM_COUNT; s++)
        cf_hazards_waited(gpu->hazards, (cf_gpu_point){(cf_stream)s, gpu->submitted[s]});
    return rc;
}

bool cf_gpu_reached(cf_gpu *gpu, cf_gpu_point point)
{
    cf_assert(point.value <= gpu->submitted[point.stream]);
    bool reached = gpu->fns->reached(gpu, point);
    if (gpu->hazards && reached)
        cf_hazards_waited(gpu->hazards, point);
    return reached;
}

/* ---- tests ---- */

int64_t cf_gpu_test_drop_barrier(cf_gpu *gpu, int64_t n)
{
    gpu->drop_barrier = n;
    return gpu->barriers;
}

void cf_gpu_on_hazard(cf_gpu *gpu, cf_hazard_fn *fn, void *user)
{
    if (gpu->hazards)
        cf_hazards_handler(gpu->hazards, fn, user);
}
