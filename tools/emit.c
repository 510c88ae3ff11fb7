/* Generated text on its way out: see emit.h. */
#include "tools/emit.h"

#include <stdlib.h>
#include <string.h>

#include "tools/text_io.h"

enum { MAX_PIECE_BYTES = 4096 };

struct cf_emit {
    int fd;
    bool stopped;
    const char *const *stops;
    uint32_t n_stops;
    size_t stop_bytes[CF_MAX_STOPS];
    cf_utf8_stream utf8;
    /* Text that has not gone out: always shorter than the longest stop between pushes. */
    char held[CF_MAX_STOP_BYTES + 3 * (MAX_PIECE_BYTES + 8)];
    size_t n_held;
    char shown[3 * (MAX_PIECE_BYTES + 8)];
};

int cf_emit_create(cf_emit **out, int fd, const char *const *stops, uint32_t n, cf_err *err)
{
    cf_emit *e = calloc(1, sizeof *e);
    if (!e)
        return CF_FAIL(err, -ENOMEM, "out of memory for the output");
    cf_assert(n <= CF_MAX_STOPS);
    e->fd = fd;
    e->stops = stops;
    e->n_stops = n;
    for (uint32_t i = 0; i < n; i++) {
        e->stop_bytes[i] = strlen(stops[i]);
        cf_assert(e->stop_bytes[i] > 0 && e->stop_bytes[i] <= CF_MAX_STOP_BYTES);
    }
    *out = e;
    return 0;
}

void cf_emit_destroy(cf_emit **emit)
{
    free(*emit);
    *emit = NULL;
}

static int held_write(cf_emit *e, size_t n, cf_err *err)
{
    if (n == 0)
        return 0;
    int rc = cf_write_all(e->fd, e->held, n);
    if (rc < 0)
        return CF_FAIL(err, rc, "cannot write to standard output: %s", cf_err_name(rc));
    memmove(e->held, e->held + n, e->n_held - n);
    e->n_held -= n;
    return 0;
}

/* Where the longest stop begins that ends at held[end), or end where none does. */
static size_t stop_begin(const cf_emit *e, size_t end)
{
    size_t begin = end;
    for (uint32_t i = 0; i < e->n_stops; i++) {
        size_t n = e->stop_bytes[i];
        if (n <= end && memcmp(e->held + end - n, e->stops[i], n) == 0 && end - n < begin)
            begin = end - n;
    }
    return begin;
}

/* How many bytes at the end of what is held could be the beginning of a stop. */
static size_t stop_prefix(const cf_emit *e)
{
    size_t longest = 0;
    for (uint32_t i = 0; i < e->n_stops; i++) {
        size_t n = e->stop_bytes[i] - 1;
        for (n = n < e->n_held ? n : e->n_held; n > longest; n--)
            if (memcmp(e->held + e->n_held - n, e->stops[i], n) == 0)
                longest = n;
    }
    return longest;
}

/* `n` more bytes of e->shown. */
static int shown_take(cf_emit *e, size_t n, cf_err *err)
{
    size_t from = e->n_held;
    memcpy(e->held + e->n_held, e->shown, n);
    e->n_held += n;
    for (size_t end = from + 1; end <= e->n_held; end++) {
        size_t begin = stop_begin(e, end);
        if (begin < end) {
            e->stopped = true;
            int rc = held_write(e, begin, err);
            e->n_held = 0;
            return rc < 0 ? rc : 1;
        }
    }
    return held_write(e, e->n_held - stop_prefix(e), err);
}

int cf_emit_push(cf_emit *e, const char *bytes, size_t n, cf_err *err)
{
    while (n && !e->stopped) {
        size_t step = n < MAX_PIECE_BYTES ? n : MAX_PIECE_BYTES;
        size_t shown = cf_utf8_push(&e->utf8, bytes, step, e->shown, sizeof e->shown);
        int rc = shown_take(e, shown, err);
        if (rc)
            return rc;
        bytes += step;
        n -= step;
    }
    return e->stopped;
}

int cf_emit_finish(cf_emit *e, cf_err *err)
{
    if (e->stopped)
        return 1;
    int rc = shown_take(e, cf_utf8_finish(&e->utf8, e->shown, sizeof e->shown), err);
    return rc ? rc : held_write(e, e->n_held, err);
}
