/* Temporary folders and files for tests: made under $TMPDIR or /tmp, removed at the end.
 *
 * The pattern makes each byte of a file a function of its offset and a seed, so that a reader can
 * check any range without keeping the file. Helpers print and exit(1) when the disk fails them:
 * a test without its files has nothing to say. Thread-safety: one folder, one thread. */
#ifndef CF_TESTS_TMPFILES_H
#define CF_TESTS_TMPFILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tmp_dir {
    char path[256];
} tmp_dir;

void tmp_dir_init(tmp_dir *dir);
void tmp_dir_finish(tmp_dir *dir); /* removes it with everything inside */

/* dir/name, valid until eight calls later. */
const char *tmp_path(const tmp_dir *dir, const char *name);
void tmp_write(const char *path, const void *data, size_t bytes);
/* A file of `bytes` bytes of the pattern, on disk (synced, so that direct reads find it). */
void tmp_write_pattern(const char *path, uint64_t bytes, uint64_t seed);
/* A shard: header length, header, then data_bytes of the pattern of seed 0 (by file offset). */
void tmp_write_safetensors(const char *path, const char *header, uint64_t data_bytes);

uint8_t tmp_pattern(uint64_t seed, uint64_t off);
/* The first index at which data differs from the pattern from `off` on, or -1. */
int64_t tmp_pattern_differs(const uint8_t *data, uint64_t bytes, uint64_t seed, uint64_t off);

/* Both are there, and the same. */
bool tmp_files_equal(const char *a, const char *b);

#endif
