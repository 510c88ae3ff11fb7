/* Git LFS pointers: what a clone without git-lfs leaves in the place of a large file.
 *
 * Such a file is a few lines of text, and every format would call it damaged in its own words,
 * which helps nobody. Thread-safety: a pure function. */
#ifndef CF_BASE_LFS_H
#define CF_BASE_LFS_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/err.h"

enum { CF_LFS_BEGIN_BYTES = 48 }; /* enough of a file's beginning to know it */

/* CF_EFORMAT with a sentence when a file of `bytes` bytes that begins with `begin` (its first n
 * bytes) is a pointer; else 0. */
int cf_lfs_refuse(const char *path, const void *begin, size_t n, uint64_t bytes, cf_err *err);

#endif
