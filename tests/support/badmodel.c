/* Damaged checkpoints: see badmodel.h. */
#include "tests/support/badmodel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/safetensors.h"
#include "tests/support/reoffset.h"

static _Noreturn void give_up(const char *what, const char *path)
{
    fprintf(stderr, "badmodel: cannot %s %s: %s\n", what, path, strerror(errno));
    exit(1);
}

void bad_model_init(bad_model *m, const char *from)
{
    tmp_dir_init(&m->tmp);
    snprintf(m->dir, sizeof m->dir, "%s/model", m->tmp.path);
    model_copy(from, m->dir);
}

void bad_model_finish(bad_model *m)
{
    tmp_dir_finish(&m->tmp);
}

const char *bad_path(const bad_model *m, const char *name)
{
    char inner[512];
    snprintf(inner, sizeof inner, "model/%s", name);
    return tmp_path(&m->tmp, inner);
}

void bad_file_write(const bad_model *m, const char *name, const char *text)
{
    tmp_write(bad_path(m, name), text, strlen(text));
}

void bad_json_set(const bad_model *m, const char *name, const char *key, const char *value)
{
    const char *path = bad_path(m, name), *inner = strchr(key, '/');
    json_t *root = json_load_file(path, 0, NULL), *at = root;
    char outer[128];
    if (!root)
        give_up("parse", path);
    if (inner) {
        snprintf(outer, sizeof outer, "%.*s", (int)(inner - key), key);
        at = json_object_get(root, outer);
        key = inner + 1;
    }
    json_t *v = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    if ((value && !v) || !json_is_object(at))
        give_up("edit", path);
    if (v)
        json_object_set_new(at, key, v);
    else
        json_object_del(at, key);
    if (json_dump_file(root, path, JSON_INDENT(1)) < 0)
        give_up("write", path);
    json_decref(root);
}

static char *shard_load(const char *path, size_t *bytes, uint64_t *header_bytes)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) < 0)
        give_up("open", path);
    char *data = malloc((size_t)st.st_size);
    if (!data || fread(data, 1, (size_t)st.st_size, f) != (size_t)st.st_size)
        give_up("read", path);
    fclose(f);
    *bytes = (size_t)st.st_size;
    memcpy(header_bytes, data, 8);
    return data;
}

json_t *bad_header_load(const bad_model *m, const char *shard)
{
    const char *path = bad_path(m, shard);
    size_t bytes;
    uint64_t header_bytes;
    char *data = shard_load(path, &bytes, &header_bytes);
    json_t *header = json_loadb(data + 8, header_bytes, 0, NULL);
    free(data);
    if (!header)
        give_up("parse the header of", path);
    return header;
}

void bad_header_store(const bad_model *m, const char *shard, json_t *header, int64_t more)
{
    const char *path = bad_path(m, shard);
    size_t bytes;
    uint64_t old_bytes;
    char *data = shard_load(path, &bytes, &old_bytes);
    char *text = json_dumps(header, JSON_COMPACT);
    size_t n = strlen(text), payload = bytes - 8 - old_bytes;
    char *out = malloc(8 + n + payload);
    uint64_t field = n + (uint64_t)more;
    if (!out)
        give_up("hold", path);
    memcpy(out, &field, 8);
    memcpy(out + 8, text, n);
    memcpy(out + 8 + n, data + 8 + old_bytes, payload);
    tmp_write(path, out, 8 + n + payload);
    free(out);
    free(text);
    free(data);
}

void bad_tensor_poke(const bad_model *m, const char *tensor, uint64_t off, const void *data,
                     size_t bytes)
{
    cf_catalogue *cat = NULL;
    if (cf_safetensors_open(m->dir, &cat, NULL) < 0)
        give_up("catalogue", m->dir);
    int64_t at = cf_catalogue_find(cat, tensor);
    if (at < 0)
        give_up("find a tensor in", m->dir);
    const cf_extent *x = &cf_catalogue_at(cat, (uint32_t)at)->extent;
    const char *path = cf_catalogue_path(cat, x->file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (off + bytes > x->bytes || fd < 0 ||
        pwrite(fd, data, bytes, (off_t)(x->off + off)) != (ssize_t)bytes || fdatasync(fd) < 0)
        give_up("poke", path);
    close(fd);
    cf_catalogue_close(&cat);
}
