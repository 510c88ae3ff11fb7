/* A file under a temporary name ("<path>.part") that gets its own name only when it is complete and
 * on the drive: a process killed at any moment leaves nothing under the name itself.
 *
 * What is dirty in the page cache is kept to some 64 MiB, so that writing a file larger than memory
 * disturbs nobody. The temporary file is locked: two writers of one path do not mix, and what a
 * killed one left is written over by the next.
 * Thread-safety: one thread at a time per file. */
#ifndef CF_STORAGE_PART_FILE_H
#define CF_STORAGE_PART_FILE_H

#include <stdint.h>

#include "runtime/base/err.h"

typedef struct cf_part_file {
    int fd;
    char *path, *temp;
    uint64_t written, flushed; /* offsets */
} cf_part_file;

/* Refuses a path that another process is writing. */
int cf_part_open(cf_part_file *f, const char *path, cf_err *err);
/* The first `bytes` bytes come later, by cf_part_patch; before any cf_part_write. */
int cf_part_skip(cf_part_file *f, uint64_t bytes, cf_err *err);
int cf_part_write(cf_part_file *f, const void *data, uint64_t bytes, cf_err *err);
int cf_part_patch(cf_part_file *f, uint64_t off, const void *data, uint64_t bytes, cf_err *err);
/* Syncs, renames, closes; on failure no file is left. */
int cf_part_commit(cf_part_file *f, cf_err *err);
void cf_part_discard(cf_part_file *f); /* accepts what was committed or discarded */

/* A small file in one go: temporary name, sync, rename. */
int cf_file_write_whole(const char *path, const void *data, uint64_t bytes, cf_err *err);

#endif
