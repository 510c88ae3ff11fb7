/* Filling a catalogue: for the readers of storage/ only.
 *
 * The reader has checked shapes and offsets; the catalogue refuses a name that is empty, longer
 * than CF_MAX_NAME_BYTES, not printable or there already, and finds overlapping tensors. After a
 * failure the catalogue can only be closed. Not thread-safe. */
#ifndef CF_STORAGE_CATALOGUE_BUILD_H
#define CF_STORAGE_CATALOGUE_BUILD_H

#include "storage/catalogue.h"

enum { CF_MAX_NAME_BYTES = 1024, CF_MAX_FILES = 1 << 14 };

int cf_catalogue_create(cf_catalogue **out, cf_err *err);
int cf_catalogue_add_file(cf_catalogue *cat, const char *path, uint64_t bytes, cf_err *err);
/* Copies *t, its name and its slices; the files of its extents have been added. */
int cf_catalogue_add(cf_catalogue *cat, const cf_tensor *t, cf_err *err);
/* CF_EFORMAT when two of the tensors from index `first` on, all of one file, share a byte. */
int cf_catalogue_check_overlap(const cf_catalogue *cat, uint32_t first, cf_err *err);
/* Gives back what was allocated ahead. */
void cf_catalogue_trim(cf_catalogue *cat);

/* The header of a model file, read buffered: a descriptor of a regular file and its size; exactly
 * `bytes` bytes at `off`. Errors name the path. */
int cf_header_open(const char *path, uint64_t *bytes, cf_err *err);
int cf_header_read(int fd, const char *path, uint64_t off, void *dst, size_t bytes, cf_err *err);

#endif
