/* Lines of a trace file: see trace_source.h. Bounded: one line, and a decompression window of at
 * most 128 MiB (what zstd itself accepts without being asked). */
#include "runtime/trace_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

enum { IN_BYTES = 1 << 17, OUT_BYTES = 1 << 17, WINDOW_LOG_MAX = 27 };

struct cf_lines {
    const char *name;
    FILE *file; /* NULL: memory */
    const uint8_t *data;
    size_t data_left;
    uint8_t *in; /* [IN_BYTES] of a file */
    ZSTD_DStream *zstd;
    ZSTD_inBuffer raw; /* not yet consumed */
    bool raw_end, frame_open;
    char *out; /* [OUT_BYTES] text */
    size_t out_at, out_n;
    char *line; /* [CF_TRACE_MAX_LINE + 1] */
    uint64_t number;
};

/* More raw bytes, once all are consumed. */
static int raw_fill(cf_lines *l, cf_err *err)
{
    size_t n;
    if (l->raw.pos < l->raw.size || l->raw_end)
        return 0;
    if (l->file) {
        n = fread(l->in, 1, IN_BYTES, l->file);
        if (ferror(l->file))
            return CF_FAIL(err, -EIO, "cannot read trace %s: %s", l->name, strerror(errno));
        l->raw = (ZSTD_inBuffer){l->in, n, 0};
    } else {
        n = l->data_left;
        l->raw = (ZSTD_inBuffer){l->data, n, 0};
        l->data_left = 0;
    }
    l->raw_end = n == 0;
    return 0;
}

static int zstd_fill(cf_lines *l, cf_err *err)
{
    ZSTD_outBuffer out = {l->out, OUT_BYTES, 0};
    while (out.pos == 0) {
        int rc = raw_fill(l, err);
        if (rc < 0)
            return rc;
        if (l->raw_end && l->frame_open) {
            /* What the decompressor still holds comes out without input. */
            size_t left = ZSTD_decompressStream(l->zstd, &out, &l->raw);
            l->frame_open = left != 0;
            if (out.pos == 0 && left != 0)
                return CF_FAIL(err, CF_EFORMAT,
                               "trace %s is cut off: its compressed data ends "
                               "after line %llu",
                               l->name, (unsigned long long)l->number);
            break;
        }
        if (l->raw_end)
            break;
        size_t left = ZSTD_decompressStream(l->zstd, &out, &l->raw);
        if (ZSTD_isError(left))
            return CF_FAIL(err, CF_EFORMAT, "trace %s cannot be decompressed after line %llu: %s",
                           l->name, (unsigned long long)l->number, ZSTD_getErrorName(left));
        l->frame_open = left != 0;
    }
    l->out_at = 0;
    l->out_n = out.pos;
    return 0;
}

static int text_fill(cf_lines *l, cf_err *err)
{
    if (l->zstd)
        return zstd_fill(l, err);
    int rc = raw_fill(l, err);
    if (rc < 0)
        return rc;
    size_t n = l->raw.size - l->raw.pos;
    n = n < OUT_BYTES ? n : OUT_BYTES;
    if (n)
        memcpy(l->out, (const char *)l->raw.src + l->raw.pos, n);
    l->raw.pos += n;
    l->out_at = 0;
    l->out_n = n;
    return 0;
}

int cf_lines_open(cf_lines **out, const char *name, const char *path, const void *data, size_t n,
                  cf_err *err)
{
    static const uint8_t magic[] = {0x28, 0xb5, 0x2f, 0xfd};
    int rc = 0;
    cf_lines *l = calloc(1, sizeof *l);
    if (!l)
        return CF_FAIL(err, -ENOMEM, "out of memory to read trace %s", name);
    l->name = name;
    l->data = data;
    l->data_left = n;
    l->in = path ? malloc(IN_BYTES) : NULL;
    l->out = malloc(OUT_BYTES);
    l->line = malloc(CF_TRACE_MAX_LINE + 1);
    if ((path && !l->in) || !l->out || !l->line)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory to read trace %s", name));
    if (path && !(l->file = fopen(path, "rb")))
        CF_TRY(CF_FAIL(err, -errno, "cannot open trace %s: %s", name, strerror(errno)));
    CF_TRY(raw_fill(l, err));
    if (l->raw.size >= sizeof magic && memcmp(l->raw.src, magic, sizeof magic) == 0) {
        l->zstd = ZSTD_createDStream();
        if (!l->zstd)
            CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory to decompress trace %s", name));
        ZSTD_DCtx_setParameter(l->zstd, ZSTD_d_windowLogMax, WINDOW_LOG_MAX);
    }
    *out = l;
    return 0;
fail:
    cf_lines_close(&l);
    return rc;
}

void cf_lines_close(cf_lines **lines)
{
    cf_lines *l = *lines;
    if (!l)
        return;
    if (l->file)
        fclose(l->file);
    ZSTD_freeDStream(l->zstd);
    free(l->in);
    free(l->out);
    free(l->line);
    free(l);
    *lines = NULL;
}

int cf_lines_next(cf_lines *l, size_t most, char **line, size_t *n, cf_err *err)
{
    size_t len = 0;
    for (;;) {
        if (l->out_at == l->out_n) {
            int rc = text_fill(l, err);
            if (rc < 0)
                return rc;
            if (l->out_n == 0 && len == 0)
                return 0;
            if (l->out_n == 0)
                break; /* the last line has no end */
        }
        const char *from = l->out + l->out_at, *end = memchr(from, '\n', l->out_n - l->out_at);
        size_t part = end ? (size_t)(end - from) : l->out_n - l->out_at;
        if (part > most - len)
            return CF_FAIL(err, CF_EFORMAT, "%s, line %llu is longer than %zu bytes", l->name,
                           (unsigned long long)l->number + 1, most);
        memcpy(l->line + len, from, part);
        len += part;
        l->out_at += part + (end ? 1 : 0);
        if (end)
            break;
    }
    if (len && l->line[len - 1] == '\r')
        len--;
    l->line[len] = 0;
    l->number++;
    *line = l->line;
    *n = len;
    return 1;
}

uint64_t cf_lines_number(const cf_lines *lines)
{
    return lines->number;
}
