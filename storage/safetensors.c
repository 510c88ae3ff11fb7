/* Safetensors: see safetensors.h.
 *
 * Owns the reading of headers and of the index, nothing else: no tensor byte is read here. The
 * text is untrusted. Before jansson builds a tree from it, one pass bounds its depth and the
 * number of its values, so that a small file cannot ask for much memory (the parser itself
 * recurses, to the depth bounded here). Numbers are 64-bit signed in jansson: larger ones and
 * fractions are refused, negative ones by us. Runs once, at open, on the caller's thread. */
#include "storage/safetensors.h"

#include <dirent.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "runtime/base/json.h"
#include "storage/catalogue_build.h"
#include "storage/safetensors_slices.h"

enum {
    HEADER_MAX_BYTES = 100 * 1000 * 1000,
    TENSORS_MAX = 1 << 20,
    /* Header: one object of objects of lists. The index's "metadata" is free-form. */
    HEADER_MAX_DEPTH = 3,
    INDEX_MAX_DEPTH = 16,
    /* Commas and brackets: a tensor of 8 dimensions has 15. */
    VALUES_MAX = 16 << 20,
    NAME_TEXT = 128
};

#define INDEX_NAME "model.safetensors.index.json"

/* An object from untrusted text, or NULL with err set. */
static json_t *json_object_load(const char *path, const char *what, const char *json, size_t bytes,
                                uint32_t max_depth, cf_err *err)
{
    if (cf_json_check_bounds(path, json, bytes, max_depth, VALUES_MAX, err) < 0)
        return NULL;
    json_error_t e;
    json_t *root = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, &e);
    char text[JSON_ERROR_TEXT_LENGTH];
    if (!root) {
        CF_FAIL(err, CF_EFORMAT, "%s: %s is not JSON: %s (byte %d)", path, what,
                cf_text_clean(e.text, text, sizeof text), e.position);
    } else if (!json_is_object(root)) {
        CF_FAIL(err, CF_EFORMAT, "%s: %s is a JSON list, not an object", path, what);
        json_decref(root);
        root = NULL;
    }
    return root;
}

/* Everything a sentence about one tensor needs. */
typedef struct {
    const char *path;
    const char *name; /* cleaned */
    uint64_t data_off, file_bytes;
} place;

static int elem_parse(const place *at, const json_t *info, cf_format *out, cf_err *err)
{
    const json_t *dtype = json_object_get(info, "dtype");
    if (!json_is_string(dtype))
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\": no dtype, or not a string", at->path,
                       at->name);
    if (cf_format_find(json_string_value(dtype), out) && cf_formats[*out].block_values == 1)
        return 0; /* the formats of blocks are GGUF's */
    char text[40];
    return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\": unknown dtype \"%s\"", at->path, at->name,
                   cf_text_clean(json_string_value(dtype), text, sizeof text));
}

/* Number i of a list into out. */
static int number_parse(const place *at, const char *what, const json_t *list, size_t i,
                        uint64_t *out, cf_err *err)
{
    const json_t *v = json_array_get(list, i);
    if (!json_is_integer(v))
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\": %s[%zu] is not an integer", at->path,
                       at->name, what, i);
    if (json_integer_value(v) < 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\": %s[%zu] is negative: %" PRId64,
                       at->path, at->name, what, i, (int64_t)json_integer_value(v));
    *out = (uint64_t)json_integer_value(v);
    return 0;
}

static int shape_parse(const place *at, const json_t *info, cf_tensor *t, uint64_t *bytes,
                       cf_err *err)
{
    const json_t *shape = json_object_get(info, "shape");
    if (!json_is_array(shape))
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\": no shape, or not a list", at->path,
                       at->name);
    size_t n = json_array_size(shape);
    if (n > CF_MAX_DIMS)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\": %zu dimensions, at most %d are allowed",
                       at->path, at->name, n, (int)CF_MAX_DIMS);
    for (size_t i = 0; i < n; i++) {
        int rc = number_parse(at, "shape", shape, i, &t->shape[i], err);
        if (rc < 0)
            return rc;
    }
    t->n_dims = (uint32_t)n;
    char text[200];
    if (!cf_tensor_bytes(t, bytes))
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\": shape %s of %s overflows 64 bits",
                       at->path, at->name, cf_tensor_shape_text(t, text, sizeof text),
                       cf_format_name(t->format));
    return 0;
}

static int extent_parse(const place *at, const json_t *info, cf_tensor *t, uint64_t bytes,
                        cf_err *err)
{
    const json_t *range = json_object_get(info, "data_offsets");
    uint64_t begin, end, file_end;
    if (!json_is_array(range) || json_array_size(range) != 2)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor \"%s\": no data_offsets, or not a list of 2 numbers", at->path,
                       at->name);
    int rc = number_parse(at, "data_offsets", range, 0, &begin, err);
    if (rc < 0 || (rc = number_parse(at, "data_offsets", range, 1, &end, err)) < 0)
        return rc;
    if (end < begin)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor \"%s\": data_offsets end at %" PRIu64
                       ", before their begin %" PRIu64,
                       at->path, at->name, end, begin);
    if (!cf_add_u64(at->data_off, end, &file_end) || file_end > at->file_bytes)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor \"%s\" ends at data byte %" PRIu64 ", the file has %" PRIu64
                       " (truncated?)",
                       at->path, at->name, end, at->file_bytes - at->data_off);
    char text[200];
    if (end - begin != bytes)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor \"%s\": shape %s of %s takes %" PRIu64
                       " bytes, data_offsets span %" PRIu64,
                       at->path, at->name, cf_tensor_shape_text(t, text, sizeof text),
                       cf_format_name(t->format), bytes, end - begin);
    t->extent.off = at->data_off + begin;
    t->extent.bytes = bytes;
    return 0;
}

static int tensor_parse(cf_catalogue *cat, uint32_t file, const place *at, const char *name,
                        const json_t *info, cf_err *err)
{
    cf_tensor t = {.name = name, .extent = {.file = file}};
    uint64_t bytes = 0;
    int rc = 0;
    if (!json_is_object(info))
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\" is not described by an object", at->path,
                       at->name);
    CF_TRY(elem_parse(at, info, &t.format, err));
    CF_TRY(shape_parse(at, info, &t, &bytes, err));
    CF_TRY(extent_parse(at, info, &t, bytes, err));
    CF_TRY(cf_catalogue_add(cat, &t, err));
fail:
    return rc;
}

int cf_safetensors_parse(cf_catalogue **cat, uint32_t file, const char *path, const char *json,
                         size_t json_bytes, uint64_t data_off, uint64_t file_bytes, cf_err *err)
{
    cf_catalogue *created = NULL;
    json_t *root = NULL;
    int rc = 0;
    if (data_off > file_bytes)
        return CF_FAIL(err, CF_EFORMAT, "%s: data at %" PRIu64 " of a file of %" PRIu64 " bytes",
                       path, data_off, file_bytes);
    if (!*cat)
        CF_TRY(cf_catalogue_create(&created, err));
    cf_catalogue *c = created ? created : *cat;
    cf_assert(file <= cf_catalogue_file_count(c));
    if (file == cf_catalogue_file_count(c))
        CF_TRY(cf_catalogue_add_file(c, path, file_bytes, err));

    root = json_object_load(path, "the header", json, json_bytes, HEADER_MAX_DEPTH, err);
    CF_TRY(root ? 0 : CF_EFORMAT);
    if (json_object_size(root) > TENSORS_MAX)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: %zu tensors, at most %d are allowed", path,
                       json_object_size(root), (int)TENSORS_MAX));
    uint32_t first = cf_catalogue_count(c);
    char text[NAME_TEXT];
    place at = {.path = path, .name = text, .data_off = data_off, .file_bytes = file_bytes};
    for (void *it = json_object_iter(root); it; it = json_object_iter_next(root, it)) {
        const char *name = json_object_iter_key(it);
        if (strcmp(name, "__metadata__") == 0)
            continue;
        cf_text_clean(name, text, sizeof text);
        CF_TRY(tensor_parse(c, file, &at, name, json_object_iter_value(it), err));
    }
    CF_TRY(cf_catalogue_check_overlap(c, first, err));
    if (created)
        *cat = created;
    json_decref(root);
    return 0;
fail:
    json_decref(root);
    cf_catalogue_close(&created);
    return rc;
}

int cf_safetensors_load(cf_catalogue **cat, uint32_t file, const char *path, cf_err *err)
{
    uint8_t raw[8];
    uint64_t bytes = 0, header_bytes = 0;
    char *json = NULL;
    int rc = 0;
    int fd = cf_header_open(path, &bytes, err);
    if (fd < 0)
        return fd;
    if (bytes < sizeof raw)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: %" PRIu64 " bytes, too few for a header length", path,
                       bytes));
    CF_TRY(cf_header_read(fd, path, 0, raw, sizeof raw, err));
    for (int i = 7; i >= 0; i--)
        header_bytes = header_bytes << 8 | raw[i];
    if (header_bytes > HEADER_MAX_BYTES)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: header length %" PRIu64 ", at most %d are allowed",
                       path, header_bytes, (int)HEADER_MAX_BYTES));
    if (header_bytes > bytes - sizeof raw)
        CF_TRY(CF_FAIL(err, CF_EFORMAT,
                       "%s: header length %" PRIu64 ", but %" PRIu64 " bytes follow (truncated?)",
                       path, header_bytes, bytes - sizeof raw));
    json = malloc(header_bytes ? header_bytes : 1);
    if (!json)
        CF_TRY(CF_FAIL(err, -ENOMEM, "%s: out of memory for a header of %" PRIu64 " bytes", path,
                       header_bytes));
    CF_TRY(cf_header_read(fd, path, sizeof raw, json, header_bytes, err));
    CF_TRY(cf_safetensors_parse(cat, file, path, json, header_bytes, sizeof raw + header_bytes,
                                bytes, err));
fail:
    free(json);
    close(fd);
    return rc;
}

/* dir/name on the heap, or NULL with err set. */
static char *path_join(const char *dir, const char *name, cf_err *err)
{
    char *path = NULL;
    size_t n = strlen(dir);
    if (asprintf(&path, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name) < 0) {
        CF_FAIL(err, -ENOMEM, "out of memory for a path in %s", dir);
        return NULL;
    }
    return path;
}

static int text_order(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Of a shard in the folder. Sentences carry the path, so nothing in it may steer a terminal. */
static bool is_plain_name(const char *name)
{
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f || *c == '/')
            return false;
    return *name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strlen(name) <= 255;
}

/* The distinct shard names of weight_map, sorted: file numbers do not depend on its order. */
static int shards_list(const char *path, const json_t *map, const char ***out, uint32_t *count,
                       cf_err *err)
{
    uint32_t n = 0, distinct = 0;
    char text[NAME_TEXT], shard_text[NAME_TEXT];
    *out = NULL;
    const char **list = malloc((json_object_size(map) + 1) * sizeof *list);
    if (!list)
        return CF_FAIL(err, -ENOMEM, "%s: out of memory for %zu entries", path,
                       json_object_size(map));
    json_t *m = (json_t *)(uintptr_t)map; /* jansson's iterators take it without const */
    for (void *it = json_object_iter(m); it; it = json_object_iter_next(m, it)) {
        const char *shard = json_string_value(json_object_iter_value(it));
        cf_text_clean(json_object_iter_key(it), text, sizeof text);
        if (!shard || !is_plain_name(shard)) {
            int rc = CF_FAIL(
                err, CF_EFORMAT,
                "%s: tensor \"%s\" is said to be in \"%s\", which is not a plain file "
                "name",
                path, text,
                cf_text_clean(shard ? shard : "(no string)", shard_text, sizeof shard_text));
            free(list);
            return rc;
        }
        list[n++] = shard;
    }
    qsort(list, n, sizeof *list, text_order);
    for (uint32_t i = 0; i < n; i++)
        if (i == 0 || strcmp(list[i], list[distinct - 1]) != 0)
            list[distinct++] = list[i];
    *out = list;
    *count = distinct;
    return 0;
}

/* Every tensor of weight_map is in the shard that weight_map says. */
static int map_check(const char *path, json_t *map, const char *const *shards, uint32_t n_shards,
                     const cf_catalogue *cat, cf_err *err)
{
    char text[NAME_TEXT], shard_text[NAME_TEXT];
    for (void *it = json_object_iter(map); it; it = json_object_iter_next(map, it)) {
        const char *shard = json_string_value(json_object_iter_value(it));
        const char *const *at = bsearch(&shard, shards, n_shards, sizeof *shards, text_order);
        int64_t i = cf_catalogue_find(cat, json_object_iter_key(it));
        cf_text_clean(json_object_iter_key(it), text, sizeof text);
        cf_text_clean(shard, shard_text, sizeof shard_text);
        if (i < 0)
            return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\" is said to be in %s, which lacks it",
                           path, text, shard_text);
        uint32_t file = cf_catalogue_at(cat, (uint32_t)i)->extent.file;
        if (file != (uint32_t)(at - shards))
            return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\" is said to be in %s, but is in %s",
                           path, text, shard_text, shards[file]);
    }
    return 0;
}

static bool any_slice(const char *const *shards, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (cf_safetensors_rank(shards[i]) >= 0)
            return true;
    return false;
}

/* 1: it names files of slices, whose place it cannot say; nothing was read. */
static int index_load(cf_catalogue **cat, const char *dir, const char *path, cf_err *err)
{
    uint64_t bytes = 0;
    char *json = NULL, *shard_path = NULL;
    json_t *root = NULL;
    const char **shards = NULL;
    uint32_t n_shards = 0;
    int rc = 0;
    int fd = cf_header_open(path, &bytes, err);
    if (fd < 0)
        return fd;
    if (bytes > HEADER_MAX_BYTES)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: %" PRIu64 " bytes, at most %d are allowed", path,
                       bytes, (int)HEADER_MAX_BYTES));
    json = malloc(bytes + 1);
    if (!json)
        CF_TRY(CF_FAIL(err, -ENOMEM, "%s: out of memory for %" PRIu64 " bytes", path, bytes));
    CF_TRY(cf_header_read(fd, path, 0, json, bytes, err));
    root = json_object_load(path, "the index", json, bytes, INDEX_MAX_DEPTH, err);
    CF_TRY(root ? 0 : CF_EFORMAT);
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: no weight_map, or not an object with entries", path));
    CF_TRY(shards_list(path, map, &shards, &n_shards, err));
    if (any_slice(shards, n_shards)) {
        rc = 1;
        goto fail;
    }
    for (uint32_t i = 0; i < n_shards; i++) {
        free(shard_path);
        shard_path = path_join(dir, shards[i], err);
        CF_TRY(shard_path ? 0 : -ENOMEM);
        CF_TRY(cf_safetensors_load(cat, i, shard_path, err));
    }
    CF_TRY(map_check(path, map, shards, n_shards, *cat, err));
fail:
    free(shard_path);
    free(shards);
    free(json);
    json_decref(root);
    close(fd);
    return rc;
}

/* model.safetensors, or the only *.safetensors of the directory: its path in *out. 1: slices. */
static int single_find(const char *dir, char **out, cf_err *err)
{
    static const char suffix[] = ".safetensors";
    char first[256] = "";
    uint32_t count = 0;
    bool slices = false;
    DIR *d = opendir(dir);
    if (!d)
        return CF_FAIL(err, -errno, "cannot open the directory %s: %s", dir, strerror(errno));
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        size_t n = strlen(e->d_name);
        if (n < sizeof suffix || strcmp(e->d_name + n - (sizeof suffix - 1), suffix) != 0)
            continue;
        slices |= cf_safetensors_rank(e->d_name) >= 0;
        bool canonical = strcmp(e->d_name, "model.safetensors") == 0;
        if (canonical || !first[0] || strcmp(e->d_name, first) < 0)
            snprintf(first, sizeof first, "%s", e->d_name);
        if (canonical) {
            count = 1;
            slices = false;
            break;
        }
        count++;
    }
    closedir(d);
    if (count == 0)
        return CF_FAIL(err, -ENOENT, "%s holds no *.safetensors file", dir);
    if (slices)
        return 1;
    if (count > 1)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s holds %u *.safetensors files (%s, ...) but neither " INDEX_NAME
                       " nor model.safetensors",
                       dir, count, first);
    *out = path_join(dir, first, err);
    return *out ? 0 : -ENOMEM;
}

int cf_safetensors_open(const char *dir, cf_catalogue **out, cf_err *err)
{
    cf_catalogue *cat = NULL;
    char *single = NULL;
    int rc = 0;
    char *index = path_join(dir, INDEX_NAME, err);
    if (!index)
        return -ENOMEM;
    if (access(index, F_OK) == 0)
        CF_TRY(index_load(&cat, dir, index, err));
    else
        CF_TRY(single_find(dir, &single, err));
    if (rc == 1)
        CF_TRY(cf_safetensors_slices_open(&cat, dir, err));
    else if (single)
        CF_TRY(cf_safetensors_load(&cat, 0, single, err));
    cf_catalogue_trim(cat);
    *out = cat;
    cat = NULL;
fail:
    cf_catalogue_close(&cat);
    free(single);
    free(index);
    return rc;
}
