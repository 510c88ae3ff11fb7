/* Writing safetensors: see safetensors_write.h. */
#include "storage/safetensors_write.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "storage/part_file.h"

enum { HEADER_MAX_BYTES = 100000000 /* readers refuse more */ };

bool cf_tensor_spec_bytes(const cf_tensor_spec *spec, uint64_t *bytes)
{
    uint64_t product = cf_format_value_bytes(spec->format);
    for (uint32_t d = 0; d < spec->n_dims; d++)
        if (!cf_mul_u64(product, spec->shape[d], &product))
            return false;
    *bytes = product;
    return true;
}

/* ---- growing text, for headers ---- */

typedef struct text {
    char *data;
    size_t len, size;
    bool failed; /* out of memory: sticky, checked once at the end */
} text;

static void text_put(text *t, const char *s, size_t n)
{
    if (t->failed)
        return;
    if (t->size - t->len < n) {
        size_t size = t->size ? t->size * 2 : 65536;
        while (size - t->len < n)
            size *= 2;
        char *data = realloc(t->data, size);
        if (!data) {
            t->failed = true;
            return;
        }
        t->data = data;
        t->size = size;
    }
    memcpy(t->data + t->len, s, n);
    t->len += n;
}

static void text_puts(text *t, const char *s)
{
    text_put(t, s, strlen(s));
}

static void text_u64(text *t, uint64_t v)
{
    char buf[24];
    text_put(t, buf, (size_t)snprintf(buf, sizeof buf, "%" PRIu64, v));
}

/* A JSON string; names come from files and may hold anything. */
static void text_quoted(text *t, const char *s)
{
    text_puts(t, "\"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        char buf[8];
        if (c == '"' || c == '\\')
            text_put(t, buf, (size_t)snprintf(buf, sizeof buf, "\\%c", c));
        else if (c < 0x20)
            text_put(t, buf, (size_t)snprintf(buf, sizeof buf, "\\u%04x", c));
        else
            text_put(t, s, 1);
    }
    text_puts(t, "\"");
}

/* ---- one file ---- */

struct cf_safetensors_writer {
    cf_part_file file;
    uint64_t data_bytes, appended;
};

/* "name":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]} */
static int header_entry(text *t, const cf_tensor_spec *spec, uint64_t *off, cf_err *err)
{
    uint64_t bytes, end;
    if (spec->n_dims > CF_MAX_DIMS || !cf_tensor_spec_bytes(spec, &bytes) ||
        !cf_add_u64(*off, bytes, &end))
        return CF_FAIL(err, CF_ELIMIT, "tensor %s is too large to be written", spec->name);
    text_puts(t, ",");
    text_quoted(t, spec->name);
    text_puts(t, ":{\"dtype\":\"");
    text_puts(t, cf_format_name(spec->format));
    text_puts(t, "\",\"shape\":[");
    for (uint32_t d = 0; d < spec->n_dims; d++) {
        text_puts(t, d ? "," : "");
        text_u64(t, spec->shape[d]);
    }
    text_puts(t, "],\"data_offsets\":[");
    text_u64(t, *off);
    text_puts(t, ",");
    text_u64(t, end);
    text_puts(t, "]}");
    *off = end;
    return 0;
}

/* Spaces behind the JSON put the data section where it was asked for. */
static void header_pad(text *t, int data_offset)
{
    uint64_t modulus = data_offset < 0 ? 8 : 32;
    uint64_t want = data_offset < 0 ? 0 : (uint64_t)data_offset + 16;
    while (!t->failed && (8 + t->len) % modulus != want)
        text_puts(t, " ");
}

static int header_build(text *t, const cf_tensor_spec *list, uint32_t n, int data_offset,
                        uint64_t *data_bytes, const char *path, cf_err *err)
{
    uint64_t off = 0;
    text_puts(t, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint32_t i = 0; i < n; i++) {
        int rc = header_entry(t, &list[i], &off, err);
        if (rc < 0)
            return rc;
    }
    text_puts(t, "}");
    header_pad(t, data_offset);
    if (t->failed)
        return CF_FAIL(err, -ENOMEM, "out of memory for the header of %s (%u tensors)", path, n);
    if (t->len > HEADER_MAX_BYTES)
        return CF_FAIL(err, CF_ELIMIT,
                       "the header of %s would take %zu bytes, at most %d are allowed: use smaller "
                       "shards",
                       path, t->len, HEADER_MAX_BYTES);
    *data_bytes = off;
    return 0;
}

int cf_safetensors_create(cf_safetensors_writer **out, const char *path, const cf_tensor_spec *list,
                          uint32_t n, int data_offset, cf_err *err)
{
    int rc = 0;
    text header = {0};
    cf_assert(data_offset >= CF_DATA_ALIGNED_8 && data_offset < 16);
    cf_safetensors_writer *w = calloc(1, sizeof *w);
    if (!w)
        return CF_FAIL(err, -ENOMEM, "out of memory for writing %s", path);
    w->file.fd = -1;
    CF_TRY(header_build(&header, list, n, data_offset, &w->data_bytes, path, err));
    CF_TRY(cf_part_open(&w->file, path, err));
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)header.len >> (8 * i));
    CF_TRY(cf_part_write(&w->file, length, sizeof length, err));
    CF_TRY(cf_part_write(&w->file, header.data, header.len, err));
    free(header.data);
    *out = w;
    return 0;
fail:
    free(header.data);
    cf_safetensors_abandon(&w);
    return rc;
}

int cf_safetensors_append(cf_safetensors_writer *w, const void *data, uint64_t bytes, cf_err *err)
{
    if (bytes > w->data_bytes - w->appended)
        return CF_FAIL(err, -EINVAL, "%s: %" PRIu64 " bytes too many for its header", w->file.path,
                       bytes - (w->data_bytes - w->appended));
    int rc = cf_part_write(&w->file, data, bytes, err);
    if (rc == 0)
        w->appended += bytes;
    return rc;
}

int cf_safetensors_commit(cf_safetensors_writer **writer, cf_err *err)
{
    cf_safetensors_writer *w = *writer;
    if (w->appended != w->data_bytes) {
        int rc = CF_FAIL(err, -EINVAL, "%s: %" PRIu64 " of %" PRIu64 " data bytes are missing",
                         w->file.path, w->data_bytes - w->appended, w->data_bytes);
        cf_safetensors_abandon(writer);
        return rc;
    }
    int rc = cf_part_commit(&w->file, err);
    free(w);
    *writer = NULL;
    return rc;
}

void cf_safetensors_abandon(cf_safetensors_writer **writer)
{
    if (!*writer)
        return;
    cf_part_discard(&(*writer)->file);
    free(*writer);
    *writer = NULL;
}

/* ---- many shards ---- */

uint32_t cf_safetensors_shard(const cf_tensor_spec *list, uint32_t n, uint64_t shard_bytes,
                              uint32_t *shard_of)
{
    uint32_t shard = 0;
    uint64_t used = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t bytes;
        if (!cf_tensor_spec_bytes(&list[i], &bytes))
            bytes = UINT64_MAX; /* refused when its shard is created */
        bool full = bytes > shard_bytes || used > shard_bytes - bytes;
        if (full && used) {
            shard++;
            used = 0;
        }
        shard_of[i] = shard;
        used = bytes > UINT64_MAX - used ? UINT64_MAX : used + bytes;
    }
    return n ? shard + 1 : 0;
}

void cf_safetensors_shard_name(uint32_t shard, uint32_t n_shards, char *buf, size_t size)
{
    if (n_shards <= 1)
        snprintf(buf, size, "model.safetensors");
    else
        snprintf(buf, size, "model-%05u-of-%05u.safetensors", shard + 1, n_shards);
}

int cf_safetensors_write_index(const char *dir, const cf_tensor_spec *list, uint32_t n,
                               const uint32_t *shard_of, uint32_t n_shards, cf_err *err)
{
    int rc = 0;
    text t = {0};
    uint64_t total = 0, bytes;
    for (uint32_t i = 0; i < n; i++)
        if (!cf_tensor_spec_bytes(&list[i], &bytes) || !cf_add_u64(total, bytes, &total))
            return CF_FAIL(err, CF_ELIMIT, "tensor %s is too large to be written", list[i].name);
    text_puts(&t, "{\n  \"metadata\": {\"total_size\": ");
    text_u64(&t, total);
    text_puts(&t, "},\n  \"weight_map\": {");
    for (uint32_t i = 0; i < n; i++) {
        char file[64];
        cf_safetensors_shard_name(shard_of[i], n_shards, file, sizeof file);
        text_puts(&t, i ? ",\n    " : "\n    ");
        text_quoted(&t, list[i].name);
        text_puts(&t, ": \"");
        text_puts(&t, file);
        text_puts(&t, "\"");
    }
    text_puts(&t, "\n  }\n}\n");
    size_t size = strlen(dir) + sizeof "/model.safetensors.index.json";
    char *path = malloc(size);
    if (!path || t.failed) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for the index of %u tensors", n);
    } else {
        snprintf(path, size, "%s/model.safetensors.index.json", dir);
        rc = cf_file_write_whole(path, t.data, t.len, err);
    }
    free(path);
    free(t.data);
    return rc;
}
