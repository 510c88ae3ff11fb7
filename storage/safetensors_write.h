/* Writing safetensors: the header first, from a list of tensors, then their bytes in that order.
 *
 * A file is written under a temporary name ("<path>.part") and gets its own name only when it is
 * complete and on the drive: a process killed at any moment leaves no file that opens. Memory is
 * bounded by the header; data passes through without a copy, and what is dirty in the page cache
 * is kept to some 64 MiB, so that writing a checkpoint larger than memory disturbs nobody.
 * Refused: more or fewer bytes than the header promises, a header beyond 100 MB, an existing
 * directory in place of the file.
 * Thread-safety: one thread at a time per writer. */
#ifndef CF_STORAGE_SAFETENSORS_WRITE_H
#define CF_STORAGE_SAFETENSORS_WRITE_H

#include "storage/catalogue.h"
#include "storage/part_file.h"

/* A tensor to be written. The name is borrowed while the writer lives. */
typedef struct cf_tensor_spec {
    const char *name;
    cf_format format;
    uint32_t n_dims;
    uint64_t shape[CF_MAX_DIMS]; /* outermost first */
} cf_tensor_spec;

/* Bytes of its data; false when they exceed 64 bits. */
bool cf_tensor_spec_bytes(const cf_tensor_spec *spec, uint64_t *bytes);

/* ---- one file ---- */

typedef struct cf_safetensors_writer cf_safetensors_writer;

enum { CF_DATA_ALIGNED_8 = -1 };

/* data_offset: CF_DATA_ALIGNED_8 (the usual padding), or 0 to 15: the data section then starts at
 * data_offset + 16 modulo 32, hence at data_offset modulo 16 and at no larger alignment. */
int cf_safetensors_create(cf_safetensors_writer **out, const char *path, const cf_tensor_spec *list,
                          uint32_t n, int data_offset, cf_err *err);
int cf_safetensors_append(cf_safetensors_writer *w, const void *data, uint64_t bytes, cf_err *err);
/* Syncs, renames, closes; *w becomes NULL in every case, and on failure no file is left. */
int cf_safetensors_commit(cf_safetensors_writer **w, cf_err *err);
/* Closes and removes what was written; accepts NULL; leaves NULL. */
void cf_safetensors_abandon(cf_safetensors_writer **w);

/* ---- many shards ---- */

/* Assigns tensors, in order, to shards whose data is at most shard_bytes (a larger tensor gets a
 * shard of its own): shard_of[i] ascending from 0. Returns the number of shards. */
uint32_t cf_safetensors_shard(const cf_tensor_spec *list, uint32_t n, uint64_t shard_bytes,
                              uint32_t *shard_of);

/* "model.safetensors", or "model-00001-of-00003.safetensors". */
void cf_safetensors_shard_name(uint32_t shard, uint32_t n_shards, char *buf, size_t size);

/* model.safetensors.index.json in `dir`. */
int cf_safetensors_write_index(const char *dir, const cf_tensor_spec *list, uint32_t n,
                               const uint32_t *shard_of, uint32_t n_shards, cf_err *err);

#endif
