/* The catalogue: what tensors a checkpoint holds and where their bytes lie. Knows no model.
 *
 * Readers (storage/safetensors.c) fill it from untrusted files: every offset, length, shape and
 * name is checked, in 64 bits, before it is stored here; afterwards it is immutable.
 * Thread-safety: reading from any thread. */
#ifndef CF_STORAGE_CATALOGUE_H
#define CF_STORAGE_CATALOGUE_H

#include <stdint.h>

#include "runtime/base/err.h"
#include "runtime/base/format.h"

enum { CF_MAX_DIMS = 8 };

/* A range of a file: `file` indexes cf_catalogue.paths. */
typedef struct cf_extent {
    uint32_t file;
    uint64_t off, bytes;
} cf_extent;

typedef struct cf_tensor {
    const char *name; /* owned by the catalogue */
    cf_format format;
    uint32_t n_dims;
    uint64_t shape[CF_MAX_DIMS]; /* outermost first */
    cf_extent extent;
    /* A tensor that is stored in slices (storage/safetensors_slices.h): format, shape and extent
     * are the first one's, and all of them, alike, lie here in order. n_slices 0: it is whole. */
    uint32_t n_slices;
    const cf_extent *slices; /* owned by the catalogue */
} cf_tensor;

typedef struct cf_catalogue cf_catalogue;

void cf_catalogue_close(cf_catalogue **cat); /* accepts NULL; leaves NULL */
uint32_t cf_catalogue_count(const cf_catalogue *cat);
const cf_tensor *cf_catalogue_at(const cf_catalogue *cat, uint32_t index);
/* Index of a name, or -1. Constant time (hashed). */
int64_t cf_catalogue_find(const cf_catalogue *cat, const char *name);
uint32_t cf_catalogue_file_count(const cf_catalogue *cat);
const char *cf_catalogue_path(const cf_catalogue *cat, uint32_t file);
uint64_t cf_catalogue_file_bytes(const cf_catalogue *cat, uint32_t file);
/* Bytes of host memory it holds. */
uint64_t cf_catalogue_memory(const cf_catalogue *cat);

/* Where its bytes lie, all of them: returns how many ranges *list has. */
uint32_t cf_tensor_extents(const cf_tensor *t, const cf_extent **list);

/* What shape and format take. False where that overflows 64 bits or the innermost dimension is
 * not a whole number of the format's blocks. */
bool cf_tensor_bytes(const cf_tensor *t, uint64_t *bytes);

/* "[4096, 256]" into buf; returns buf. */
const char *cf_tensor_shape_text(const cf_tensor *t, char *buf, size_t size);

/* Untrusted text for a message: control bytes become '?', what does not fit "..."; returns buf. */
const char *cf_text_clean(const char *text, char *buf, size_t size);

#endif
