/* GGUF: see gguf.h.
 *
 * Owns the reading of everything before the data: no tensor byte is read here. The bytes are
 * untrusted. They are read front to back into one buffer that grows as far as what has been
 * checked says it must; `need` is the only place that lets a position advance, and it bounds
 * it by the file. A count is believed only as far as the file could hold that many. No recursion.
 * Runs once, at open, on the caller's thread. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "storage/catalogue_build.h"
#include "storage/gguf_meta.h"

enum {
    HEADER_MAX_BYTES = 256 << 20,
    READ_STEP_BYTES = 1 << 18,
    TENSORS_MAX = 1 << 20,
    KEYS_MAX = 1 << 16,
    KEY_MAX_BYTES = 65535,
    DIMS_MAX = 4,
    ALIGN_DEFAULT = 32,
    ALIGN_MAX = 1 << 20,
    PAIR_MIN_BYTES = 8 + 1 + 4 + 1,       /* key, type, value */
    TENSOR_MIN_BYTES = 8 + 1 + 4 + 4 + 8, /* name, dimensions, type, offset */
    NAME_TEXT = 128
};

/* The file read so far, and the position. fd is -1 where `data` is all there is. */
struct reader {
    const char *path;
    int fd;
    uint64_t file_bytes, at;
    uint8_t *data;
    uint64_t loaded;
    const char *part;     /* what is being read, for messages: "the header", "key" ... */
    char name[NAME_TEXT]; /* its name, cleaned; empty where it has none */
    cf_err *err;
};

static int truncated(const struct reader *r)
{
    return CF_FAIL(r->err, CF_EFORMAT, "%s: ends at byte %" PRIu64 " inside %s%s%s%s (truncated?)",
                   r->path, r->file_bytes, r->part, r->name[0] ? " \"" : "", r->name,
                   r->name[0] ? "\"" : "");
}

/* The next n bytes are in `data`. */
static int need(struct reader *r, uint64_t n)
{
    uint64_t end;
    if (!cf_add_u64(r->at, n, &end) || end > r->file_bytes)
        return truncated(r);
    if (end <= r->loaded)
        return 0;
    if (r->fd < 0)
        return truncated(r);
    if (end > HEADER_MAX_BYTES)
        return CF_FAIL(r->err, CF_ELIMIT, "%s: more than %d bytes before the data", r->path,
                       (int)HEADER_MAX_BYTES);
    uint64_t want = cf_max_u64(end, cf_max_u64(r->loaded * 2, READ_STEP_BYTES));
    want = cf_min_u64(want, cf_min_u64(r->file_bytes, HEADER_MAX_BYTES));
    uint8_t *data = realloc(r->data, want);
    if (!data)
        return CF_FAIL(r->err, -ENOMEM, "%s: out of memory for a header of %" PRIu64 " bytes",
                       r->path, want);
    r->data = data;
    int rc = cf_header_read(r->fd, r->path, r->loaded, data + r->loaded, want - r->loaded, r->err);
    if (rc == 0)
        r->loaded = want;
    return rc;
}

static int skip(struct reader *r, uint64_t n)
{
    int rc = need(r, n);
    if (rc == 0)
        r->at += n;
    return rc;
}

static int number_read(struct reader *r, uint32_t bytes, uint64_t *out)
{
    *out = 0;
    int rc = need(r, bytes);
    if (rc == 0) {
        *out = cf_gguf_read(r->data + r->at, bytes);
        r->at += bytes;
    }
    return rc;
}

/* A length and as many bytes: where these lie. */
static int text_read(struct reader *r, uint64_t *off, uint64_t *bytes)
{
    int rc = number_read(r, 8, bytes);
    if (rc == 0) {
        *off = r->at;
        rc = skip(r, *bytes);
    }
    return rc;
}

/* What is read next, for messages; its name is in `data`, or there is none (bytes 0). */
static void part_set(struct reader *r, const char *part, uint64_t off, uint64_t bytes)
{
    char text[NAME_TEXT + 1];
    uint64_t n = cf_min_u64(bytes, NAME_TEXT);
    r->part = part;
    if (n)
        memcpy(text, r->data + off, n);
    text[n] = 0;
    cf_text_clean(text, r->name, sizeof r->name);
}

/* ---- keys ---- */

static int bools_check(const struct reader *r, uint64_t off, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (r->data[off + i] > 1)
            return CF_FAIL(r->err, CF_EFORMAT, "%s: key \"%s\": a bool of %u at byte %" PRIu64,
                           r->path, r->name, (unsigned)r->data[off + i], off + i);
    return 0;
}

static int type_read(struct reader *r, cf_gguf_type *out)
{
    uint64_t type;
    int rc = number_read(r, 4, &type);
    if (rc == 0 && type >= CF_GGUF_TYPE_COUNT)
        rc = CF_FAIL(r->err, CF_EFORMAT, "%s: key \"%s\" has the unknown type %" PRIu64, r->path,
                     r->name, type);
    *out = rc == 0 ? (cf_gguf_type)type : CF_GGUF_U8;
    return rc;
}

/* The strings of an array, and where they lie. */
static int strings_read(struct reader *r, struct cf_gguf_pair *p)
{
    uint64_t base = r->at, off, bytes;
    p->offsets = malloc((p->count ? p->count : 1) * sizeof *p->offsets);
    if (!p->offsets)
        return CF_FAIL(r->err, -ENOMEM, "%s: key \"%s\": out of memory for %" PRIu64 " strings",
                       r->path, r->name, p->count);
    for (uint64_t i = 0; i < p->count; i++) {
        p->offsets[i] = (uint32_t)(r->at - base); /* below HEADER_MAX_BYTES */
        int rc = text_read(r, &off, &bytes);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int array_read(struct reader *r, struct cf_gguf_pair *p)
{
    uint64_t bytes;
    int rc = type_read(r, &p->element);
    if (rc < 0 || (rc = number_read(r, 8, &p->count)) < 0)
        return rc;
    if (p->element == CF_GGUF_ARRAY)
        return CF_FAIL(r->err, CF_EFORMAT, "%s: key \"%s\" is an array of arrays", r->path,
                       r->name);
    uint32_t least = p->element == CF_GGUF_STRING ? 8 : cf_gguf_type_bytes(p->element);
    if (!cf_mul_u64(p->count, least, &bytes) || bytes > r->file_bytes - r->at)
        return CF_FAIL(r->err, CF_EFORMAT,
                       "%s: key \"%s\" is said to have %" PRIu64
                       " elements of type %s, but %" PRIu64 " bytes follow (truncated?)",
                       r->path, r->name, p->count, cf_gguf_type_name(p->element),
                       r->file_bytes - r->at);
    if (p->element == CF_GGUF_STRING) {
        /* Offsets are kept for as many as there can be: not for more than can be read. */
        if (bytes > HEADER_MAX_BYTES)
            return CF_FAIL(r->err, CF_ELIMIT, "%s: more than %d bytes before the data", r->path,
                           (int)HEADER_MAX_BYTES);
        return strings_read(r, p);
    }
    uint64_t off = r->at;
    rc = skip(r, bytes);
    if (rc == 0 && p->element == CF_GGUF_BOOL)
        rc = bools_check(r, off, p->count);
    return rc;
}

static int key_check(const struct reader *r, uint64_t off, uint64_t bytes, uint64_t index)
{
    if (bytes == 0 || bytes > KEY_MAX_BYTES)
        return CF_FAIL(r->err, CF_EFORMAT,
                       "%s: key %" PRIu64 " has a name of %" PRIu64 " bytes, 1 to %d are allowed",
                       r->path, index, bytes, (int)KEY_MAX_BYTES);
    for (uint64_t i = 0; i < bytes; i++)
        if (r->data[off + i] < 0x20 || r->data[off + i] == 0x7f)
            return CF_FAIL(r->err, CF_EFORMAT, "%s: key \"%s\": control byte 0x%02x in the name",
                           r->path, r->name, (unsigned)r->data[off + i]);
    return 0;
}

static int pair_read(struct reader *r, struct cf_gguf_pair *p, uint64_t index)
{
    uint64_t off, bytes;
    int rc = 0;
    part_set(r, "a key", 0, 0);
    CF_TRY(text_read(r, &p->key_off, &p->key_bytes));
    part_set(r, "key", p->key_off, p->key_bytes);
    CF_TRY(key_check(r, p->key_off, p->key_bytes, index));
    CF_TRY(type_read(r, &p->type));
    p->value_off = r->at;
    if (p->type == CF_GGUF_ARRAY)
        CF_TRY(array_read(r, p));
    else if (p->type == CF_GGUF_STRING)
        CF_TRY(text_read(r, &off, &bytes));
    else
        CF_TRY(skip(r, cf_gguf_type_bytes(p->type)));
    if (p->type == CF_GGUF_BOOL)
        CF_TRY(bools_check(r, p->value_off, 1));
    p->value_bytes = r->at - p->value_off;
fail:
    return rc;
}

/* ---- the header ---- */

static int magic_check(struct reader *r)
{
    uint64_t magic, version;
    int rc = number_read(r, 4, &magic);
    if (rc < 0)
        return rc;
    if (magic != 0x46554747u) /* "GGUF" */
        return CF_FAIL(r->err, CF_EFORMAT, "%s does not begin with \"GGUF\"", r->path);
    if ((rc = number_read(r, 4, &version)) < 0)
        return rc;
    if (version == 0x03000000u || version == 0x02000000u)
        return CF_FAIL(r->err, CF_EFORMAT, "%s is a big-endian GGUF file; little-endian is read",
                       r->path);
    if (version != 3 && version != 2)
        return CF_FAIL(r->err, CF_EFORMAT, "%s has GGUF version %" PRIu64 "; 2 and 3 are read",
                       r->path, version);
    return 0;
}

static int count_read(struct reader *r, const char *what, uint64_t max, uint64_t least_bytes,
                      uint64_t *out)
{
    int rc = number_read(r, 8, out);
    if (rc < 0)
        return rc;
    if (*out > max)
        return CF_FAIL(r->err, CF_EFORMAT, "%s: %" PRIu64 " %s, at most %" PRIu64 " are allowed",
                       r->path, *out, what, max);
    if (*out * least_bytes > r->file_bytes)
        return CF_FAIL(r->err, CF_EFORMAT,
                       "%s: said to hold %" PRIu64 " %s in %" PRIu64 " bytes (truncated?)", r->path,
                       *out, what, r->file_bytes);
    return 0;
}

static int alignment_read(const struct reader *r, const cf_gguf *g, uint64_t *out)
{
    *out = ALIGN_DEFAULT;
    int rc = cf_gguf_u64(g, "general.alignment", out, r->err);
    if (rc < 0)
        return rc;
    if (*out == 0 || *out > ALIGN_MAX || (*out & (*out - 1)))
        return CF_FAIL(r->err, CF_EFORMAT,
                       "%s: general.alignment is %" PRIu64
                       ", a power of two of at most %d is allowed",
                       r->path, *out, (int)ALIGN_MAX);
    return 0;
}

/* ---- tensors ---- */

/* A tensor info, before it is known where the data begins: extent.off is relative. */
struct info {
    uint64_t name_off, name_bytes;
    cf_tensor tensor;
};

static int shape_read(struct reader *r, cf_tensor *t)
{
    uint64_t n, type, ne[DIMS_MAX] = {0};
    int rc = number_read(r, 4, &n);
    if (rc < 0)
        return rc;
    if (n > DIMS_MAX)
        return CF_FAIL(r->err, CF_EFORMAT,
                       "%s: tensor \"%s\": %" PRIu64 " dimensions, at most %d are allowed", r->path,
                       r->name, n, (int)DIMS_MAX);
    for (uint64_t i = 0; i < n; i++)
        if ((rc = number_read(r, 8, &ne[i])) < 0)
            return rc;
    t->n_dims = (uint32_t)n;
    for (uint32_t i = 0; i < t->n_dims; i++)
        t->shape[i] = ne[t->n_dims - 1 - i];
    if ((rc = number_read(r, 4, &type)) < 0)
        return rc;
    if (!cf_format_find_gguf((uint32_t)type, &t->format))
        return CF_FAIL(r->err, CF_EFORMAT, "%s: tensor \"%s\" has the unknown type %" PRIu64,
                       r->path, r->name, type);
    uint64_t inner = n ? ne[0] : 1;
    const cf_format_info *f = &cf_formats[t->format];
    if (inner % f->block_values)
        return CF_FAIL(r->err, CF_EFORMAT,
                       "%s: tensor \"%s\": rows of %" PRIu64 " values are no whole number of %s "
                       "blocks of %u",
                       r->path, r->name, inner, f->name, (unsigned)f->block_values);
    char text[200];
    if (!cf_tensor_bytes(t, &t->extent.bytes))
        return CF_FAIL(r->err, CF_EFORMAT, "%s: tensor \"%s\": shape %s of %s overflows 64 bits",
                       r->path, r->name, cf_tensor_shape_text(t, text, sizeof text), f->name);
    return 0;
}

static int info_read(struct reader *r, struct info *info, uint64_t align)
{
    part_set(r, "the tensor infos", 0, 0);
    int rc = text_read(r, &info->name_off, &info->name_bytes);
    if (rc < 0)
        return rc;
    part_set(r, "tensor", info->name_off, info->name_bytes);
    if (info->name_bytes > CF_MAX_NAME_BYTES)
        return CF_FAIL(r->err, CF_EFORMAT,
                       "%s: a tensor name of %" PRIu64 " bytes, at most %d are allowed", r->path,
                       info->name_bytes, (int)CF_MAX_NAME_BYTES);
    if (memchr(r->data + info->name_off, 0, info->name_bytes))
        return CF_FAIL(r->err, CF_EFORMAT, "%s: tensor \"%s\": control byte 0x00 in the name",
                       r->path, r->name);
    if ((rc = shape_read(r, &info->tensor)) < 0)
        return rc;
    if ((rc = number_read(r, 8, &info->tensor.extent.off)) < 0)
        return rc;
    if (info->tensor.extent.off % align)
        return CF_FAIL(r->err, CF_EFORMAT,
                       "%s: tensor \"%s\" at data byte %" PRIu64 ", not a multiple of the "
                       "alignment %" PRIu64,
                       r->path, r->name, info->tensor.extent.off, align);
    return 0;
}

static int tensor_add(const struct reader *r, const struct info *info, uint32_t file,
                      uint64_t data_off, cf_catalogue *cat)
{
    cf_tensor t = info->tensor;
    char name[CF_MAX_NAME_BYTES + 1], text[NAME_TEXT];
    uint64_t begin, end;
    memcpy(name, r->data + info->name_off, info->name_bytes);
    name[info->name_bytes] = 0;
    if (!cf_add_u64(data_off, t.extent.off, &begin) || !cf_add_u64(begin, t.extent.bytes, &end) ||
        end > r->file_bytes)
        return CF_FAIL(r->err, CF_EFORMAT,
                       "%s: tensor \"%s\" takes %" PRIu64 " bytes at data byte %" PRIu64
                       ", the file has %" PRIu64 " (truncated?)",
                       r->path, cf_text_clean(name, text, sizeof text), t.extent.bytes,
                       t.extent.off, r->file_bytes > data_off ? r->file_bytes - data_off : 0);
    t.name = name;
    t.extent.off = begin;
    t.extent.file = file;
    return cf_catalogue_add(cat, &t, r->err);
}

static int tensors_read(struct reader *r, uint64_t n, uint64_t align, uint32_t file,
                        cf_catalogue *cat)
{
    int rc = 0;
    uint32_t first = cf_catalogue_count(cat);
    struct info *infos = calloc(n ? n : 1, sizeof *infos);
    if (!infos)
        return CF_FAIL(r->err, -ENOMEM, "%s: out of memory for %" PRIu64 " tensors", r->path, n);
    for (uint64_t i = 0; i < n; i++)
        CF_TRY(info_read(r, &infos[i], align));
    uint64_t data_off = cf_align_up(r->at, align);
    for (uint64_t i = 0; i < n; i++)
        CF_TRY(tensor_add(r, &infos[i], file, data_off, cat));
    CF_TRY(cf_catalogue_check_overlap(cat, first, r->err));
fail:
    free(infos);
    return rc;
}

/* ---- files ---- */

/* Everything before the data. Takes r->data over. */
static int file_parse(struct reader *r, cf_catalogue *cat, uint32_t file, cf_gguf **out)
{
    uint64_t n_tensors, n_keys, align;
    int rc = 0;
    cf_gguf *g = calloc(1, sizeof *g);
    if (!g || !(g->path = strdup(r->path)))
        CF_TRY(CF_FAIL(r->err, -ENOMEM, "%s: out of memory for the metadata", r->path));
    part_set(r, "the header", 0, 0);
    CF_TRY(magic_check(r));
    CF_TRY(count_read(r, "tensors", TENSORS_MAX, TENSOR_MIN_BYTES, &n_tensors));
    CF_TRY(count_read(r, "keys", KEYS_MAX, PAIR_MIN_BYTES, &n_keys));
    g->pairs = calloc(n_keys ? n_keys : 1, sizeof *g->pairs);
    if (!g->pairs)
        CF_TRY(CF_FAIL(r->err, -ENOMEM, "%s: out of memory for %" PRIu64 " keys", r->path, n_keys));
    while (g->count < n_keys) {
        g->count++; /* counted first: what it owns is freed in any case */
        CF_TRY(pair_read(r, &g->pairs[g->count - 1], g->count - 1));
    }
    uint64_t meta_bytes = r->at;
    g->data = r->data; /* lent to the lookups */
    CF_TRY(cf_gguf_sort(g, r->err));
    CF_TRY(alignment_read(r, g, &align));
    g->data = NULL;
    CF_TRY(tensors_read(r, n_tensors, align, file, cat));
    g->data = realloc(r->data, meta_bytes); /* the infos have served */
    if (!g->data)
        g->data = r->data;
    g->data_bytes = meta_bytes;
    r->data = NULL;
    *out = g;
    return 0;
fail:
    if (g) {
        g->data = NULL;
        cf_gguf_close(&g);
    }
    return rc;
}

int cf_gguf_parse(cf_catalogue **cat, cf_gguf **meta, uint32_t file, const char *path,
                  const uint8_t *data, uint64_t bytes, uint64_t file_bytes, cf_err *err)
{
    cf_catalogue *created = NULL;
    struct reader r = {
        .path = path, .fd = -1, .file_bytes = file_bytes, .loaded = bytes, .err = err};
    int rc = 0;
    cf_assert(bytes <= file_bytes);
    r.data = malloc(bytes ? bytes : 1);
    if (!r.data)
        CF_TRY(CF_FAIL(err, -ENOMEM, "%s: out of memory for %" PRIu64 " bytes", path, bytes));
    if (bytes)
        memcpy(r.data, data, bytes);
    if (!*cat)
        CF_TRY(cf_catalogue_create(&created, err));
    cf_catalogue *c = created ? created : *cat;
    cf_assert(file == cf_catalogue_file_count(c));
    CF_TRY(cf_catalogue_add_file(c, path, file_bytes, err));
    CF_TRY(file_parse(&r, c, file, meta));
    if (created)
        *cat = created;
    free(r.data);
    return 0;
fail:
    free(r.data);
    cf_catalogue_close(&created);
    return rc;
}

static int file_load(cf_catalogue *cat, uint32_t file, const char *path, cf_gguf **meta,
                     cf_err *err)
{
    struct reader r = {.path = path, .err = err};
    int rc = 0;
    r.fd = cf_header_open(path, &r.file_bytes, err);
    if (r.fd < 0)
        return r.fd;
    CF_TRY(cf_catalogue_add_file(cat, path, r.file_bytes, err));
    CF_TRY(file_parse(&r, cat, file, meta));
fail:
    free(r.data);
    close(r.fd);
    return rc;
}

/* ---- split files ---- */

/* What a part says of itself; count 1: the file is whole. */
struct split {
    uint32_t no, count;
    uint64_t tensors;
    bool has_tensors;
};

static int split_read(const cf_gguf *g, struct split *s, cf_err *err)
{
    *s = (struct split){.count = 1};
    int rc = cf_gguf_u32(g, "split.count", &s->count, err);
    if (rc < 0 || (rc = cf_gguf_u32(g, "split.no", &s->no, err)) < 0 ||
        (rc = cf_gguf_u64(g, "split.tensors.count", &s->tensors, err)) < 0)
        return rc;
    s->has_tensors = rc == 1;
    if (s->count == 0) /* written by some for a file that is whole */
        s->count = 1;
    if (s->count > CF_MAX_FILES || s->no >= s->count)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: split.no is %u and split.count %u, at most %d parts "
                       "counted from 0 are allowed",
                       g->path, s->no, s->count, (int)CF_MAX_FILES);
    return 0;
}

/* "PREFIX-00002-of-00003.gguf" for part 1 (from 0) of 3. */
static int part_path(const char *path, size_t prefix, uint32_t no, uint32_t count, char **out,
                     cf_err *err)
{
    if (asprintf(out, "%.*s-%05u-of-%05u.gguf", (int)prefix, path, no + 1, count) < 0) {
        *out = NULL;
        return CF_FAIL(err, -ENOMEM, "%s: out of memory for the names of its parts", path);
    }
    return 0;
}

/* The length of the prefix of a part's path. */
static int prefix_find(const char *path, const struct split *s, size_t *prefix, cf_err *err)
{
    char suffix[48];
    int n = snprintf(suffix, sizeof suffix, "-%05u-of-%05u.gguf", s->no + 1, s->count);
    size_t bytes = strlen(path), tail = (size_t)n;
    if (bytes < tail || bytes > INT32_MAX || strcmp(path + bytes - tail, suffix) != 0)
        return CF_FAIL(err, CF_EFORMAT, "%s is part %u of %u, but its name does not end in %s",
                       path, s->no + 1, s->count, suffix);
    *prefix = bytes - tail;
    return 0;
}

/* Part `no`, which must agree with part 1. */
static int part_load(cf_catalogue *cat, const char *path, uint32_t no, const struct split *first,
                     cf_err *err)
{
    cf_gguf *meta = NULL;
    struct split s;
    int rc = file_load(cat, no, path, &meta, err);
    if (rc == 0)
        rc = split_read(meta, &s, err);
    cf_gguf_close(&meta);
    if (rc < 0)
        return rc;
    if (s.no != no || s.count != first->count)
        return CF_FAIL(err, CF_EFORMAT, "%s says it is part %u of %u, part %u of %u was expected",
                       path, s.no + 1, s.count, no + 1, first->count);
    if (s.has_tensors && first->has_tensors && s.tensors != first->tensors)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: split.tensors.count is %" PRIu64 ", part 1 says %" PRIu64, path,
                       s.tensors, first->tensors);
    return 0;
}

static int parts_load(cf_catalogue *cat, const char *path, const struct split *first, cf_err *err)
{
    char *part = NULL;
    size_t prefix = 0;
    int rc = prefix_find(path, first, &prefix, err);
    if (rc < 0)
        return rc;
    if (first->no != 0) {
        CF_TRY(part_path(path, prefix, 0, first->count, &part, err));
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s is part %u of %u: open %s", path, first->no + 1,
                       first->count, part));
    }
    for (uint32_t i = 1; i < first->count; i++) {
        free(part);
        CF_TRY(part_path(path, prefix, i, first->count, &part, err));
        CF_TRY(part_load(cat, part, i, first, err));
    }
    if (first->has_tensors && first->tensors != cf_catalogue_count(cat))
        CF_TRY(CF_FAIL(err, CF_EFORMAT,
                       "%s: split.tensors.count is %" PRIu64 ", the %u parts hold %u", path,
                       first->tensors, first->count, cf_catalogue_count(cat)));
fail:
    free(part);
    return rc;
}

int cf_gguf_open(const char *path, cf_catalogue **out, cf_gguf **meta_out, cf_err *err)
{
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    struct split split;
    int rc = 0;
    CF_TRY(cf_catalogue_create(&cat, err));
    CF_TRY(file_load(cat, 0, path, &meta, err));
    CF_TRY(split_read(meta, &split, err));
    if (split.count > 1)
        CF_TRY(parts_load(cat, path, &split, err));
    cf_catalogue_trim(cat);
    *out = cat;
    *meta_out = meta;
    return 0;
fail:
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
    return rc;
}
