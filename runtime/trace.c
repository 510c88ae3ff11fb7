/* Routing traces: see trace.h. */
#include "runtime/trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "gpu/ops.h"

enum { OUT_BYTES = 1 << 17, MAX_ROW = 64 + CF_ROUTE_MAX_K * 28, LEVEL = 3 };

struct cf_trace {
    FILE *file;
    char path[1024];
    ZSTD_CStream *zstd; /* NULL: plain text */
    char *out;          /* [OUT_BYTES] compressed */
};

static int bytes_out(cf_trace *t, const char *text, size_t n, cf_err *err)
{
    if (n && fwrite(text, 1, n, t->file) != n)
        return CF_FAIL(err, -EIO, "cannot write trace %s: %s", t->path, strerror(errno));
    return 0;
}

static int text_out(cf_trace *t, const char *text, size_t n, ZSTD_EndDirective end, cf_err *err)
{
    if (!t->zstd)
        return bytes_out(t, text, n, err);
    ZSTD_inBuffer in = {text, n, 0};
    size_t left;
    do {
        ZSTD_outBuffer out = {t->out, OUT_BYTES, 0};
        left = ZSTD_compressStream2(t->zstd, &out, &in, end);
        if (ZSTD_isError(left))
            return CF_FAIL(err, -EIO, "cannot compress trace %s: %s", t->path,
                           ZSTD_getErrorName(left));
        int rc = bytes_out(t, t->out, out.pos, err);
        if (rc < 0)
            return rc;
    } while (in.pos < in.size || (end == ZSTD_e_end && left));
    return 0;
}

int cf_trace_open(cf_trace **out, const char *path, const char *header, cf_err *err)
{
    int rc = 0;
    cf_trace *t = calloc(1, sizeof *t);
    if (!t)
        return CF_FAIL(err, -ENOMEM, "out of memory for a trace");
    snprintf(t->path, sizeof t->path, "%s", path);
    t->file = fopen(path, "wb");
    if (!t->file) {
        rc = CF_FAIL(err, -errno, "cannot write trace %s: %s", path, strerror(errno));
        goto fail;
    }
    size_t n = strlen(path);
    if (n > 4 && strcmp(path + n - 4, ".zst") == 0) {
        t->out = malloc(OUT_BYTES);
        t->zstd = ZSTD_createCStream();
        if (!t->out || !t->zstd) {
            rc = CF_FAIL(err, -ENOMEM, "out of memory to compress trace %s", path);
            goto fail;
        }
        ZSTD_CCtx_setParameter(t->zstd, ZSTD_c_compressionLevel, LEVEL);
    }
    static const char columns[] = "\n" CF_TRACE_COLUMNS "\n";
    CF_TRY(text_out(t, "#", 1, ZSTD_e_continue, err));
    CF_TRY(text_out(t, header, strlen(header), ZSTD_e_continue, err));
    CF_TRY(text_out(t, columns, sizeof columns - 1, ZSTD_e_continue, err));
    *out = t;
    return 0;
fail:
    cf_trace_close(&t, NULL);
    return rc;
}

int cf_trace_row(cf_trace *t, uint32_t session, uint32_t token, cf_phase phase, uint32_t layer,
                 const uint32_t *ids, const float *weights, uint32_t k, cf_err *err)
{
    uint32_t order[CF_ROUTE_MAX_K];
    for (uint32_t i = 0; i < k; i++) { /* insertion by descending weight; ties keep their order */
        uint32_t j = i;
        for (; j && weights[order[j - 1]] < weights[i]; j--)
            order[j] = order[j - 1];
        order[j] = i;
    }
    char row[MAX_ROW];
    int n =
        snprintf(row, sizeof row, "%u,%u,%c,%u,", session, token, CF_TRACE_PHASES[phase], layer);
    for (uint32_t i = 0; i < k; i++)
        n += snprintf(row + n, sizeof row - (size_t)n, "%s%u", i ? " " : "", ids[order[i]]);
    row[n++] = ',';
    for (uint32_t i = 0; i < k; i++)
        n += snprintf(row + n, sizeof row - (size_t)n, "%s%.9g", i ? " " : "",
                      (double)weights[order[i]]);
    row[n++] = '\n';
    return text_out(t, row, (size_t)n, ZSTD_e_continue, err);
}

int cf_trace_close(cf_trace **trace, cf_err *err)
{
    int rc = 0;
    cf_trace *t = *trace;
    if (!t)
        return 0;
    if (t->file && t->zstd && t->out)
        rc = text_out(t, "", 0, ZSTD_e_end, err);
    if (t->file && fclose(t->file) != 0 && rc == 0)
        rc = CF_FAIL(err, -errno, "cannot write trace %s: %s", t->path, strerror(errno));
    ZSTD_freeCStream(t->zstd);
    free(t->out);
    free(t);
    *trace = NULL;
    return rc;
}
