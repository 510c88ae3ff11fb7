/* Writing GGUF: see gguf_write.h.
 *
 * Keys are kept as the bytes of the file. Tensor infos are written anew for each header, since
 * lengths and with them offsets may become known late; their own length never changes. */
#include "storage/gguf_write.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "storage/gguf_meta.h"
#include "storage/part_file.h"

enum { VERSION = 3, HEAD_BYTES = 4 + 4 + 8 + 8, DIMS_MAX = 4 };

struct bytes {
    uint8_t *data;
    uint64_t n, size;
    bool failed; /* out of memory: sticky */
};

struct info {
    char *name;
    cf_format format;
    uint32_t n_dims;
    uint64_t shape[DIMS_MAX]; /* outermost first */
    uint64_t bytes;
};

struct cf_gguf_writer {
    cf_part_file file;
    char *path;
    uint32_t alignment;
    struct bytes keys, header;
    uint64_t n_keys;
    struct info *infos;
    uint64_t n_infos, room_infos;
    const char *refused; /* the first declaration that cannot be written */
    uint64_t header_bytes;
    uint64_t current, appended; /* tensor, and bytes of it */
};

static void bytes_put(struct bytes *b, const void *data, uint64_t n)
{
    if (b->failed || !n)
        return;
    if (b->size - b->n < n) {
        uint64_t size = cf_max_u64(b->size * 2, b->n + n + 4096);
        uint8_t *grown = realloc(b->data, size);
        if (!grown) {
            b->failed = true;
            return;
        }
        b->data = grown;
        b->size = size;
    }
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

static void number_put(struct bytes *b, uint64_t v, uint32_t n)
{
    uint8_t little[8];
    for (uint32_t i = 0; i < n; i++)
        little[i] = (uint8_t)(v >> (8 * i));
    bytes_put(b, little, n);
}

static void text_put(struct bytes *b, const char *text, uint64_t n)
{
    number_put(b, n, 8);
    bytes_put(b, text, n);
}

static void key_put(cf_gguf_writer *w, const char *key, cf_gguf_type type)
{
    text_put(&w->keys, key, strlen(key));
    number_put(&w->keys, (uint64_t)type, 4);
    w->n_keys++;
}

int cf_gguf_create(cf_gguf_writer **out, const char *path, uint32_t alignment, cf_err *err)
{
    cf_assert(alignment >= 32 && (alignment & (alignment - 1)) == 0);
    cf_gguf_writer *w = calloc(1, sizeof *w);
    if (!w || !(w->path = strdup(path))) {
        free(w);
        return CF_FAIL(err, -ENOMEM, "out of memory for writing %s", path);
    }
    w->file.fd = -1;
    w->alignment = alignment;
    cf_gguf_put_u32(w, "general.alignment", alignment);
    *out = w;
    return 0;
}

void cf_gguf_put_u32(cf_gguf_writer *w, const char *key, uint32_t value)
{
    key_put(w, key, CF_GGUF_U32);
    number_put(&w->keys, value, 4);
}

void cf_gguf_put_u64(cf_gguf_writer *w, const char *key, uint64_t value)
{
    key_put(w, key, CF_GGUF_U64);
    number_put(&w->keys, value, 8);
}

void cf_gguf_put_string(cf_gguf_writer *w, const char *key, const char *text, uint64_t bytes)
{
    key_put(w, key, CF_GGUF_STRING);
    text_put(&w->keys, text, bytes);
}

static void array_head(cf_gguf_writer *w, const char *key, cf_gguf_type type, uint64_t count)
{
    key_put(w, key, CF_GGUF_ARRAY);
    number_put(&w->keys, (uint64_t)type, 4);
    number_put(&w->keys, count, 8);
}

void cf_gguf_put_array(cf_gguf_writer *w, const char *key, cf_gguf_type type, const void *data,
                       uint64_t count)
{
    uint32_t each = cf_gguf_type_bytes(type);
    cf_assert(each);
    array_head(w, key, type, count);
    bytes_put(&w->keys, data, count * each);
}

void cf_gguf_put_strings(cf_gguf_writer *w, const char *key, const char *const *list,
                         uint64_t count)
{
    array_head(w, key, CF_GGUF_STRING, count);
    for (uint64_t i = 0; i < count; i++)
        text_put(&w->keys, list[i], strlen(list[i]));
}

void cf_gguf_put_entry(cf_gguf_writer *w, const cf_gguf_entry *e)
{
    text_put(&w->keys, e->key.at, e->key.bytes);
    number_put(&w->keys, (uint64_t)e->type, 4);
    bytes_put(&w->keys, e->value, e->value_bytes);
    w->n_keys++;
}

static bool info_bytes(struct info *t)
{
    cf_tensor c = {.format = t->format, .n_dims = t->n_dims};
    memcpy(c.shape, t->shape, t->n_dims * sizeof *t->shape);
    return cf_tensor_bytes(&c, &t->bytes) && t->bytes <= INT64_MAX;
}

void cf_gguf_put_tensor(cf_gguf_writer *w, const char *name, cf_format format, uint32_t n_dims,
                        const uint64_t *shape)
{
    struct info t = {.format = format, .n_dims = n_dims};
    cf_assert(n_dims >= 1 && n_dims <= DIMS_MAX && cf_formats[format].gguf >= 0);
    memcpy(t.shape, shape, n_dims * sizeof *shape);
    if (!w->refused && strlen(name) > CF_GGUF_NAME_MAX)
        w->refused = "a tensor's name is too long";
    if (!w->refused && !info_bytes(&t))
        w->refused = "a tensor is too large, or its rows are no whole blocks";
    if (w->n_infos == w->room_infos) {
        uint64_t room = w->room_infos ? 2 * w->room_infos : 256;
        struct info *grown = realloc(w->infos, room * sizeof *grown);
        if (!grown) {
            w->keys.failed = true;
            return;
        }
        w->infos = grown;
        w->room_infos = room;
    }
    t.name = strdup(name);
    w->keys.failed |= !t.name;
    if (t.name)
        w->infos[w->n_infos++] = t;
}

/* ---- the header ---- */

static void info_put(struct bytes *b, const struct info *t, uint64_t off)
{
    text_put(b, t->name, strlen(t->name));
    number_put(b, t->n_dims, 4);
    for (uint32_t i = t->n_dims; i--;) /* innermost first */
        number_put(b, t->shape[i], 8);
    number_put(b, (uint64_t)cf_formats[t->format].gguf, 4);
    number_put(b, off, 8);
}

int cf_gguf_header(cf_gguf_writer *w, const uint8_t **data, cf_err *err)
{
    struct bytes *b = &w->header;
    uint64_t off = 0;
    b->n = 0;
    bytes_put(b, "GGUF", 4);
    number_put(b, VERSION, 4);
    number_put(b, w->n_infos, 8);
    number_put(b, w->n_keys, 8);
    bytes_put(b, w->keys.data, w->keys.n);
    for (uint64_t i = 0; i < w->n_infos; i++) {
        info_put(b, &w->infos[i], off);
        if (!cf_add_u64(off, cf_align_up(w->infos[i].bytes, w->alignment), &off) || off > INT64_MAX)
            return CF_FAIL(err, CF_ELIMIT, "%s would exceed 2^63 bytes", w->path);
    }
    static const uint8_t zeros[64];
    while (!b->failed && b->n % w->alignment)
        bytes_put(b, zeros, cf_min_u64(sizeof zeros, w->alignment - b->n % w->alignment));
    if (b->failed || w->keys.failed)
        return CF_FAIL(err, -ENOMEM, "out of memory for the header of %s (%" PRIu64 " tensors)",
                       w->path, w->n_infos);
    *data = b->data;
    return 0;
}

static int name_order(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* No reader takes two tensors of one name. */
static int names_check(const cf_gguf_writer *w, cf_err *err)
{
    int rc = 0;
    const char **names = malloc((w->n_infos + 1) * sizeof *names);
    if (!names)
        return CF_FAIL(err, -ENOMEM, "out of memory for the names of %" PRIu64 " tensors",
                       w->n_infos);
    for (uint64_t i = 0; i < w->n_infos; i++)
        names[i] = w->infos[i].name;
    qsort(names, w->n_infos, sizeof *names, name_order);
    for (uint64_t i = 1; i < w->n_infos && rc == 0; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            rc = CF_FAIL(err, CF_EFORMAT, "%s: two tensors would be named %s", w->path, names[i]);
    free(names);
    return rc;
}

int cf_gguf_begin(cf_gguf_writer *w, cf_err *err)
{
    const uint8_t *header;
    if (w->refused)
        return CF_FAIL(err, CF_EFORMAT, "%s cannot be written: %s", w->path, w->refused);
    int rc = cf_gguf_header(w, &header, err);
    if (rc < 0 || (rc = names_check(w, err)) < 0)
        return rc;
    w->header_bytes = w->header.n;
    if ((rc = cf_part_open(&w->file, w->path, err)) < 0)
        return rc;
    return cf_part_skip(&w->file, w->header_bytes, err);
}

uint64_t cf_gguf_header_bytes(const cf_gguf_writer *w)
{
    return w->header_bytes;
}

/* ---- data ---- */

/* The current tensor is complete: what follows begins at the next multiple of the alignment. */
static int tensor_end(cf_gguf_writer *w, cf_err *err)
{
    static const uint8_t zeros[4096];
    int rc = 0;
    uint64_t pad = cf_align_up(w->appended, w->alignment) - w->appended;
    while (pad && rc == 0) {
        uint64_t step = cf_min_u64(pad, sizeof zeros);
        rc = cf_part_write(&w->file, zeros, step, err);
        pad -= step;
    }
    w->current++;
    w->appended = 0;
    return rc;
}

int cf_gguf_append(cf_gguf_writer *w, const void *data, uint64_t bytes, cf_err *err)
{
    cf_assert(w->current < w->n_infos);
    const struct info *t = &w->infos[w->current];
    cf_assert(bytes <= t->bytes - w->appended);
    int rc = cf_part_write(&w->file, data, bytes, err);
    if (rc < 0)
        return rc;
    w->appended += bytes;
    return w->appended == t->bytes ? tensor_end(w, err) : 0;
}

int cf_gguf_append_whole(cf_gguf_writer *w, const void *data, uint64_t bytes, cf_err *err)
{
    cf_assert(w->current < w->n_infos && w->infos[w->current].bytes == 0);
    struct info *t = &w->infos[w->current];
    const cf_format_info *f = &cf_formats[t->format];
    cf_assert(f->block_values == 1 && t->n_dims == 1 && bytes % f->block_bytes == 0);
    t->shape[0] = bytes / f->block_bytes;
    t->bytes = bytes;
    return cf_gguf_append(w, data, bytes, err);
}

void cf_gguf_set_u64(cf_gguf_writer *w, const char *key, uint64_t value)
{
    uint64_t n = strlen(key);
    bool found = false;
    cf_assert(!w->keys.failed);
    /* The key's bytes, with its length before and its type behind, occur once. */
    for (uint64_t at = 0; !found && at + 8 + n + 4 + 8 <= w->keys.n; at++) {
        uint8_t *p = w->keys.data + at;
        if (cf_gguf_read(p, 8) != n || memcmp(p + 8, key, n) != 0 ||
            cf_gguf_read(p + 8 + n, 4) != CF_GGUF_U64)
            continue;
        for (int i = 0; i < 8; i++)
            p[8 + n + 4 + (uint64_t)i] = (uint8_t)(value >> (8 * i));
        found = true;
    }
    cf_assert(found);
}

int cf_gguf_commit(cf_gguf_writer **writer, cf_err *err)
{
    cf_gguf_writer *w = *writer;
    const uint8_t *header;
    int rc = 0;
    cf_assert(w->current == w->n_infos);
    CF_TRY(cf_gguf_header(w, &header, err));
    cf_assert(w->header.n == w->header_bytes);
    CF_TRY(cf_part_patch(&w->file, 0, header, w->header.n, err));
    rc = cf_part_commit(&w->file, err);
fail:
    cf_gguf_abandon(writer);
    return rc;
}

void cf_gguf_abandon(cf_gguf_writer **writer)
{
    cf_gguf_writer *w = *writer;
    if (!w)
        return;
    cf_part_discard(&w->file);
    for (uint64_t i = 0; i < w->n_infos; i++)
        free(w->infos[i].name);
    free(w->infos);
    free(w->keys.data);
    free(w->header.data);
    free(w->path);
    free(w);
    *writer = NULL;
}
