/* The catalogue: see catalogue.h and catalogue_build.h.
 *
 * Owns the names (in chunks, so that their addresses stay), the tensors and a hash table of
 * indices with open addressing, at most half full. The hash is seeded at random: a file cannot
 * be made so that its names collide. The order of the tensors is the order of appending and
 * never depends on the hash.
 *
 * Invariants: 1. table slots hold index + 1, 0 is empty. 2. every tensor is in the table exactly
 * once, and no two have one name. */
#include "storage/catalogue_build.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/align.h"
#include "runtime/base/lfs.h"

enum { CHUNK_BYTES = 1 << 16, TABLE_MIN = 64 };

struct chunk {
    struct chunk *next;
    size_t used, size;
    char text[];
};

struct file {
    char *path;
    uint64_t bytes;
};

struct cf_catalogue {
    cf_tensor *tensors;
    uint32_t count, capacity;
    struct file *files;
    uint32_t n_files;
    uint32_t *table;
    uint32_t table_size; /* a power of two */
    struct chunk *chunks;
    uint64_t seed, text_bytes, slice_bytes;
};

const char *cf_text_clean(const char *text, char *buf, size_t size)
{
    size_t n = strnlen(text, size);
    bool cut = n == size;
    if (cut)
        n = size - 1;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        buf[i] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    buf[n] = 0;
    if (cut && size > 4)
        memcpy(buf + size - 4, "...", 4);
    return buf;
}

int cf_catalogue_create(cf_catalogue **out, cf_err *err)
{
    cf_catalogue *c = calloc(1, sizeof *c);
    if (!c)
        return CF_FAIL(err, -ENOMEM, "out of memory for a catalogue");
    if (getrandom(&c->seed, sizeof c->seed, GRND_NONBLOCK) < 0)
        c->seed = (uint64_t)(uintptr_t)c; /* early boot: the address must do */
    *out = c;
    return 0;
}

void cf_catalogue_close(cf_catalogue **cat)
{
    cf_catalogue *c = *cat;
    if (!c)
        return;
    for (uint32_t i = 0; i < c->n_files; i++)
        free(c->files[i].path);
    while (c->chunks) {
        struct chunk *next = c->chunks->next;
        free(c->chunks);
        c->chunks = next;
    }
    for (uint32_t i = 0; i < c->count; i++)
        free((cf_extent *)(uintptr_t)c->tensors[i].slices);
    free(c->files);
    free(c->tensors);
    free(c->table);
    free(c);
    *cat = NULL;
}

int cf_catalogue_add_file(cf_catalogue *c, const char *path, uint64_t bytes, cf_err *err)
{
    if (c->n_files == CF_MAX_FILES)
        return CF_FAIL(err, CF_ELIMIT, "%s: more than %d files", path, (int)CF_MAX_FILES);
    struct file *files = realloc(c->files, (c->n_files + 1) * sizeof *files);
    if (!files)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u files", c->n_files + 1);
    c->files = files;
    char *copy = strdup(path);
    if (!copy)
        return CF_FAIL(err, -ENOMEM, "out of memory for the name of %s", path);
    files[c->n_files++] = (struct file){.path = copy, .bytes = bytes};
    c->text_bytes += strlen(path) + 1;
    return 0;
}

static char *name_store(cf_catalogue *c, const char *name, size_t size)
{
    if (!c->chunks || c->chunks->size - c->chunks->used < size) {
        struct chunk *k = malloc(sizeof *k + CHUNK_BYTES);
        if (!k)
            return NULL;
        *k = (struct chunk){.next = c->chunks, .size = CHUNK_BYTES};
        c->chunks = k;
        c->text_bytes += sizeof *k + CHUNK_BYTES;
    }
    char *p = c->chunks->text + c->chunks->used;
    memcpy(p, name, size);
    c->chunks->used += size;
    return p;
}

/* The table slot that holds the name, or the empty one where it belongs. */
static uint32_t *slot_find(const cf_catalogue *c, const char *name)
{
    uint64_t h = XXH3_64bits_withSeed(name, strlen(name), c->seed);
    for (;; h++) {
        uint32_t *slot = &c->table[h & (c->table_size - 1)];
        if (!*slot || strcmp(c->tensors[*slot - 1].name, name) == 0)
            return slot;
    }
}

/* Makes room for one more tensor, in the list and in the table. */
static int catalogue_grow(cf_catalogue *c, cf_err *err)
{
    if (c->count == c->capacity) {
        uint32_t n = c->capacity ? c->capacity * 2 : TABLE_MIN / 2;
        cf_tensor *t = n <= INT32_MAX / 2 ? realloc(c->tensors, n * sizeof *t) : NULL;
        if (!t)
            return CF_FAIL(err, -ENOMEM, "out of memory for a catalogue of %u tensors", n);
        c->tensors = t;
        c->capacity = n;
    }
    if (2 * (c->count + 1) <= c->table_size)
        return 0;
    uint32_t size = c->table_size ? c->table_size * 2 : TABLE_MIN;
    uint32_t *table = calloc(size, sizeof *table);
    if (!table)
        return CF_FAIL(err, -ENOMEM, "out of memory for a table of %u names", size);
    free(c->table);
    c->table = table;
    c->table_size = size;
    for (uint32_t i = 0; i < c->count; i++)
        *slot_find(c, c->tensors[i].name) = i + 1;
    return 0;
}

int cf_catalogue_add(cf_catalogue *c, const cf_tensor *t, cf_err *err)
{
    char text[128];
    cf_assert(t->extent.file < c->n_files);
    const char *path = c->files[t->extent.file].path;
    size_t bytes = strlen(t->name);
    if (bytes == 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: a tensor without a name", path);
    if (bytes > CF_MAX_NAME_BYTES)
        return CF_FAIL(err, CF_EFORMAT, "%s: a tensor name of %zu bytes, at most %d are allowed",
                       path, bytes, (int)CF_MAX_NAME_BYTES);
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)t->name[i] < 0x20 || t->name[i] == 0x7f)
            return CF_FAIL(err, CF_EFORMAT, "%s: tensor \"%s\": control byte 0x%02x in the name",
                           path, cf_text_clean(t->name, text, sizeof text),
                           (unsigned)(unsigned char)t->name[i]);
    int rc = catalogue_grow(c, err);
    if (rc < 0)
        return rc;
    uint32_t *slot = slot_find(c, t->name);
    if (*slot)
        return CF_FAIL(err, CF_EFORMAT, "tensor \"%s\" is both in %s and in %s",
                       cf_text_clean(t->name, text, sizeof text),
                       c->files[c->tensors[*slot - 1].extent.file].path, path);
    char *name = name_store(c, t->name, bytes + 1);
    if (!name)
        return CF_FAIL(err, -ENOMEM, "out of memory for the names of %u tensors", c->count + 1);
    cf_extent *slices = NULL;
    size_t slice_bytes = t->n_slices * sizeof *slices;
    if (slice_bytes) {
        slices = malloc(slice_bytes);
        if (!slices)
            return CF_FAIL(err, -ENOMEM, "out of memory for %u slices", t->n_slices);
        memcpy(slices, t->slices, slice_bytes);
        c->slice_bytes += slice_bytes;
    }
    c->tensors[c->count] = *t;
    c->tensors[c->count].name = name;
    c->tensors[c->count].slices = slices;
    *slot = ++c->count;
    return 0;
}

static int extent_order(const void *a, const void *b)
{
    const cf_tensor *x = *(const cf_tensor *const *)a, *y = *(const cf_tensor *const *)b;
    if (x->extent.off != y->extent.off)
        return x->extent.off < y->extent.off ? -1 : 1;
    return 0;
}

int cf_catalogue_check_overlap(const cf_catalogue *c, uint32_t first, cf_err *err)
{
    uint32_t n = 0;
    if (first >= c->count)
        return 0;
    const cf_tensor **list = malloc((c->count - first) * sizeof *list);
    if (!list)
        return CF_FAIL(err, -ENOMEM, "out of memory to compare %u tensors", c->count - first);
    for (uint32_t i = first; i < c->count; i++)
        if (c->tensors[i].extent.bytes) /* an empty tensor overlaps nothing */
            list[n++] = &c->tensors[i];
    qsort(list, n, sizeof *list, extent_order);
    int rc = 0;
    for (uint32_t i = 1; i < n && rc == 0; i++) {
        const cf_tensor *a = list[i - 1], *b = list[i];
        char name_a[100], name_b[100];
        if (a->extent.off + a->extent.bytes > b->extent.off)
            rc = CF_FAIL(err, CF_EFORMAT,
                         "%s: tensors \"%s\" and \"%s\" overlap: bytes %" PRIu64 " to %" PRIu64
                         " and from %" PRIu64,
                         c->files[a->extent.file].path, cf_text_clean(a->name, name_a, 100),
                         cf_text_clean(b->name, name_b, 100), a->extent.off,
                         a->extent.off + a->extent.bytes, b->extent.off);
    }
    free(list);
    return rc;
}

void cf_catalogue_trim(cf_catalogue *c)
{
    cf_tensor *t = c->count ? realloc(c->tensors, c->count * sizeof *t) : NULL;
    if (t) {
        c->tensors = t;
        c->capacity = c->count;
    }
}

uint32_t cf_catalogue_count(const cf_catalogue *c)
{
    return c->count;
}

const cf_tensor *cf_catalogue_at(const cf_catalogue *c, uint32_t index)
{
    cf_assert(index < c->count);
    return &c->tensors[index];
}

int64_t cf_catalogue_find(const cf_catalogue *c, const char *name)
{
    if (!c->count)
        return -1;
    return (int64_t)*slot_find(c, name) - 1;
}

uint32_t cf_catalogue_file_count(const cf_catalogue *c)
{
    return c->n_files;
}

const char *cf_catalogue_path(const cf_catalogue *c, uint32_t file)
{
    cf_assert(file < c->n_files);
    return c->files[file].path;
}

uint64_t cf_catalogue_file_bytes(const cf_catalogue *c, uint32_t file)
{
    cf_assert(file < c->n_files);
    return c->files[file].bytes;
}

uint64_t cf_catalogue_memory(const cf_catalogue *c)
{
    return sizeof *c + c->capacity * sizeof *c->tensors + c->n_files * sizeof *c->files +
           c->table_size * sizeof *c->table + c->text_bytes + c->slice_bytes;
}

uint32_t cf_tensor_extents(const cf_tensor *t, const cf_extent **list)
{
    *list = t->n_slices ? t->slices : &t->extent;
    return t->n_slices ? t->n_slices : 1;
}

bool cf_tensor_bytes(const cf_tensor *t, uint64_t *bytes)
{
    const cf_format_info *f = &cf_formats[t->format];
    uint64_t inner = t->n_dims ? t->shape[t->n_dims - 1] : 1;
    /* A zero anywhere makes the product zero, wherever an overflow would come before it. */
    for (uint32_t i = 0; i < t->n_dims; i++)
        if (t->shape[i] == 0) {
            *bytes = 0;
            return true;
        }
    if (inner % f->block_values)
        return false;
    uint64_t product = f->block_bytes;
    bool fits = cf_mul_u64(product, inner / f->block_values, &product);
    for (uint32_t i = 0; i + 1 < t->n_dims; i++)
        fits = fits && cf_mul_u64(product, t->shape[i], &product);
    *bytes = product;
    return fits;
}

const char *cf_tensor_shape_text(const cf_tensor *t, char *buf, size_t size)
{
    size_t used = 0;
    int n = snprintf(buf, size, "[");
    for (uint32_t i = 0; i <= t->n_dims && n >= 0 && (used += (size_t)n) < size; i++) {
        if (i < t->n_dims)
            n = snprintf(buf + used, size - used, "%s%" PRIu64, i ? ", " : "", t->shape[i]);
        else
            n = snprintf(buf + used, size - used, "]");
    }
    return buf;
}

/* ---- reading headers ---- */

int cf_header_read(int fd, const char *path, uint64_t off, void *dst, size_t bytes, cf_err *err)
{
    size_t got = 0;
    while (got < bytes) {
        ssize_t n = pread(fd, (char *)dst + got, bytes - got, (off_t)(off + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return CF_FAIL(err, -errno, "%s: cannot read at %" PRIu64 ": %s", path, off + got,
                           strerror(errno));
        if (n == 0)
            return CF_FAIL(err, CF_ECHANGED, "%s: ends at byte %" PRIu64 " while it is read", path,
                           off + got);
        got += (size_t)n;
    }
    return 0;
}

static int pointer_check(int fd, const char *path, uint64_t bytes, cf_err *err)
{
    char begin[CF_LFS_BEGIN_BYTES];
    ssize_t n = pread(fd, begin, sizeof begin, 0);
    return n < 0 ? 0 : cf_lfs_refuse(path, begin, (size_t)n, bytes, err); /* readers say why not */
}

/* Returns a descriptor of a regular file. O_NONBLOCK: a pipe in its place must not hang us. */
int cf_header_open(const char *path, uint64_t *bytes, cf_err *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return CF_FAIL(err, -errno, "cannot open %s: %s", path, strerror(errno));
    int rc = fstat(fd, &st) < 0 ? -errno : 0;
    if (rc < 0)
        CF_FAIL(err, rc, "cannot stat %s: %s", path, strerror(-rc));
    else if (!S_ISREG(st.st_mode))
        rc = CF_FAIL(err, CF_EFORMAT, "%s is not a regular file", path);
    else
        rc = pointer_check(fd, path, (uint64_t)st.st_size, err);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    *bytes = (uint64_t)st.st_size;
    return fd;
}
