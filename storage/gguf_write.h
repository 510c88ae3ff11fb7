/* Writing GGUF version 3: keys and tensors are declared, then the data follows in that order.
 *
 *     cf_gguf_put_*       keys, tensors
 *     cf_gguf_begin       the header's length is fixed from here on
 *     cf_gguf_append      bytes of the tensors, one after the other; padding is added
 *     cf_gguf_set_*       values that were not known before, of the same length
 *     cf_gguf_commit      the header is written, then the file gets its name
 *
 * The header comes last and the file has a temporary name until then (storage/part_file.h): a
 * process killed at any moment leaves nothing that opens. Tensors lie in the order of their infos
 * without gaps, at multiples of the alignment, as readers demand.
 * Memory: the header, several times; data passes through. A failed put is reported by begin.
 * Thread-safety: one thread at a time per writer. */
#ifndef CF_STORAGE_GGUF_WRITE_H
#define CF_STORAGE_GGUF_WRITE_H

#include "storage/gguf.h"

typedef struct cf_gguf_writer cf_gguf_writer;

/* alignment: a power of two >= 32, written as general.alignment. */
int cf_gguf_create(cf_gguf_writer **out, const char *path, uint32_t alignment, cf_err *err);

void cf_gguf_put_u32(cf_gguf_writer *w, const char *key, uint32_t value);
void cf_gguf_put_u64(cf_gguf_writer *w, const char *key, uint64_t value);
void cf_gguf_put_string(cf_gguf_writer *w, const char *key, const char *text, uint64_t bytes);
/* Elements of a fixed size, as in memory. */
void cf_gguf_put_array(cf_gguf_writer *w, const char *key, cf_gguf_type type, const void *data,
                       uint64_t count);
void cf_gguf_put_strings(cf_gguf_writer *w, const char *key, const char *const *list,
                         uint64_t count);
/* A key of another file, as it is there. */
void cf_gguf_put_entry(cf_gguf_writer *w, const cf_gguf_entry *entry);
/* shape: outermost first. Where the first extent is 0, append_whole says how long it is. The name
 * is copied. */
void cf_gguf_put_tensor(cf_gguf_writer *w, const char *name, cf_format format, uint32_t n_dims,
                        const uint64_t *shape);

/* Opens the file. */
int cf_gguf_begin(cf_gguf_writer *w, cf_err *err);
/* Bytes of the current tensor, not beyond its end. */
int cf_gguf_append(cf_gguf_writer *w, const void *data, uint64_t bytes, cf_err *err);
/* All of the current tensor, whose first extent was 0. */
int cf_gguf_append_whole(cf_gguf_writer *w, const void *data, uint64_t bytes, cf_err *err);
/* A key that was put as u64, by its new value. */
void cf_gguf_set_u64(cf_gguf_writer *w, const char *key, uint64_t value);
/* Bytes before the data, the padding included: known from begin on. */
uint64_t cf_gguf_header_bytes(const cf_gguf_writer *w);
/* The header as it would be written now: valid until the next call. Once all data is appended. */
int cf_gguf_header(cf_gguf_writer *w, const uint8_t **data, cf_err *err);

/* *w becomes NULL in every case, and on failure no file is left. */
int cf_gguf_commit(cf_gguf_writer **w, cf_err *err);
/* Closes and removes what was written; accepts NULL; leaves NULL. */
void cf_gguf_abandon(cf_gguf_writer **w);

#endif
