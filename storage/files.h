/* The model's files, open for streaming: descriptors, O_DIRECT, alignment, identity.
 *
 * direct: files are opened with O_DIRECT; where the file system refuses it, every file is opened
 * buffered instead, `direct` is false and direct_why says which file and why: the caller
 * announces it, once. The alignment is 4096, more where STATX_DIOALIGN asks for it; the same in
 * either mode, so that record layouts do not depend on it.
 * A file that is replaced, truncated or rewritten while in use is noticed by cf_files_check.
 * Thread-safety: read-only after open; cf_files_check from any thread. */
#ifndef CF_STORAGE_FILES_H
#define CF_STORAGE_FILES_H

#include <stdint.h>
#include <sys/types.h>

#include "runtime/base/err.h"

typedef struct cf_file {
    char *path;
    int fd;
    uint64_t bytes;
    dev_t dev; /* identity at open */
    ino_t ino;
    int64_t mtime_ns;
} cf_file;

typedef struct cf_files {
    cf_file *list;
    uint32_t count;
    uint32_t align; /* offsets, lengths and addresses of reads: a power of two */
    bool direct;
    char direct_why[256]; /* empty unless direct was asked for and refused */
} cf_files;

int cf_files_open(cf_files *files, const char *const *paths, uint32_t count, bool direct,
                  cf_err *err);
void cf_files_close(cf_files *files); /* accepts a zeroed struct */

/* 0, or CF_ECHANGED with a sentence: path and descriptor are no longer the file that was opened. */
int cf_files_check(const cf_files *files, uint32_t file, cf_err *err);

#endif
