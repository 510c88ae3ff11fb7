/* Writing a whole checkpoint directory: shards from a source of bytes, made by all processors while
 * one thread writes; then the index.
 *
 * Bounded: two buffers of a few MiB, whatever the size of the checkpoint. */
#ifndef CF_TOOLS_MKMODEL_WRITE_H
#define CF_TOOLS_MKMODEL_WRITE_H

#include "storage/safetensors_write.h"

/* Bytes [off, off + bytes) of a tensor, whole elements, to dst. Called from many threads. */
typedef int cf_checkpoint_source(void *user, uint32_t tensor, uint64_t off, void *dst,
                                 uint64_t bytes, cf_err *err);

typedef struct cf_checkpoint {
    const cf_tensor_spec *list; /* in file order */
    uint32_t n;
    const uint32_t *shard_of; /* ascending from 0 */
    uint32_t n_shards;
    uint64_t data_bytes; /* of all tensors */
    int data_offset;     /* see cf_safetensors_create */
    cf_checkpoint_source *source;
    void *user;
} cf_checkpoint;

/* Shards and, where there are several, their index, into an existing directory. Ends with
 * -ECANCELED when cf_interrupted(). What was written stays: the caller owns the directory. */
int cf_checkpoint_write(const cf_checkpoint *checkpoint, const char *dir, cf_err *err);

/* ---- the directory ---- */

/* A directory that becomes visible under its name only when it is complete: its files are written
 * to "<path>.partial", which is locked against a second writer and emptied of what a killed one
 * left behind. Refuses a path that exists, unless it is an empty directory. */
typedef struct cf_partial_dir {
    char *path, *temp; /* temp: where to write */
    int lock;
} cf_partial_dir;

int cf_partial_dir_begin(cf_partial_dir *d, const char *path, cf_err *err);
/* Syncs and renames. */
int cf_partial_dir_commit(cf_partial_dir *d, cf_err *err);
/* Removes what was written; after a commit, nothing. Accepts a zeroed struct with lock -1. */
void cf_partial_dir_finish(cf_partial_dir *d);

#endif
