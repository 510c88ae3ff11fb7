/* Copies of a small checkpoint that can be damaged: in config, header, tensors, files.
 *
 * Helpers print and end the program when the disk fails them. Thread-safety: one copy, one
 * thread. */
#ifndef CF_TESTS_BADMODEL_H
#define CF_TESTS_BADMODEL_H

#include <jansson.h>

#include "runtime/base/err.h"
#include "tests/support/tmpfiles.h"

typedef struct bad_model {
    tmp_dir tmp;
    char dir[300]; /* the copy */
} bad_model;

void bad_model_init(bad_model *m, const char *from);
void bad_model_finish(bad_model *m);

/* dir/name, valid until eight calls of tmp_path later. */
const char *bad_path(const bad_model *m, const char *name);
void bad_file_write(const bad_model *m, const char *name, const char *text);

/* A key of a JSON file (config.json, the index): set to a JSON text, or removed when NULL. A path
 * of two keys is written "outer/inner". */
void bad_json_set(const bad_model *m, const char *name, const char *key, const char *value);

/* The header of a shard, and the same shard with another header (data untouched). The header's
 * length field is the text's, plus `more`. */
json_t *bad_header_load(const bad_model *m, const char *shard);
void bad_header_store(const bad_model *m, const char *shard, json_t *header, int64_t more);

/* Writes `bytes` bytes at byte `off` of a tensor's data. */
void bad_tensor_poke(const bad_model *m, const char *tensor, uint64_t off, const void *data,
                     size_t bytes);

#endif
