/* GGUF: a file, or the parts of a split one -> catalogue and metadata.
 *
 * Format (version 3; 2 has the same layout): "GGUF", version, counts of tensors and of keys, the
 * keys with typed values, the tensor infos, padding to the alignment, the data. Little-endian.
 * Checked, with a sentence that names the file and the number: counts, lengths and types against
 * the bytes there are; keys printable and not twice; bools 0 or 1; no array in an array; the
 * alignment a power of two; known tensor types, at most 4 dimensions, rows of whole blocks,
 * offsets aligned and inside the file, no two tensors overlapping, no name twice over all parts;
 * parts named PREFIX-00001-of-00003.gguf that agree on their number, their count and the count of
 * tensors. Only the bytes before the data are read (buffered pread), at most 256 MiB of them.
 * Shapes in the catalogue are outermost first, the reverse of the file's.
 *
 * The metadata is one owned copy of the file's bytes; texts and arrays are views into it, valid
 * until it is closed. Of a split file it is that of part 1.
 * Thread-safety: immutable once open. */
#ifndef CF_STORAGE_GGUF_H
#define CF_STORAGE_GGUF_H

#include "storage/catalogue.h"

/* The values are the file's. */
typedef enum cf_gguf_type {
    CF_GGUF_U8, CF_GGUF_I8, CF_GGUF_U16, CF_GGUF_I16, CF_GGUF_U32, CF_GGUF_I32, CF_GGUF_F32,
    CF_GGUF_BOOL, CF_GGUF_STRING, CF_GGUF_ARRAY, CF_GGUF_U64, CF_GGUF_I64, CF_GGUF_F64,
    CF_GGUF_TYPE_COUNT
} cf_gguf_type;

enum { CF_GGUF_NAME_MAX = 63 }; /* bytes of a tensor's name that every reader takes */

const char *cf_gguf_type_name(cf_gguf_type t); /* "u32", "string", ... */

/* A text: any bytes, not terminated. */
typedef struct cf_text {
    const char *at;
    uint64_t bytes;
} cf_text;

bool cf_text_is(cf_text text, const char *word);

typedef struct cf_gguf_array {
    cf_gguf_type type; /* of the elements; never ARRAY */
    uint64_t count;
    const uint8_t *data;     /* elements as in the file, at any address; strings: see offsets */
    const uint32_t *offsets; /* STRING: where each lies in data */
} cf_gguf_array;

/* A key and its value as in the file (for STRING and ARRAY with their lengths). */
typedef struct cf_gguf_entry {
    cf_text key;
    cf_gguf_type type;
    const uint8_t *value;
    uint64_t value_bytes;
} cf_gguf_entry;

typedef struct cf_gguf cf_gguf;

/* A file, or part 1 of a split one. */
int cf_gguf_open(const char *path, cf_catalogue **cat, cf_gguf **meta, cf_err *err);
void cf_gguf_close(cf_gguf **meta); /* accepts NULL; leaves NULL */
/* Bytes of host memory it holds. */
uint64_t cf_gguf_memory(const cf_gguf *meta);

uint32_t cf_gguf_count(const cf_gguf *meta);
cf_gguf_entry cf_gguf_at(const cf_gguf *meta, uint32_t index); /* in the file's order */

/* Values by key: 1 and *out; 0 when there is no such key, *out unchanged (so: put the default
 * there before); CF_EFORMAT when the value is of another type or does not fit. The integer
 * functions take every integer type, f32 also f64. */
int cf_gguf_u32(const cf_gguf *meta, const char *key, uint32_t *out, cf_err *err);
int cf_gguf_i32(const cf_gguf *meta, const char *key, int32_t *out, cf_err *err);
int cf_gguf_u64(const cf_gguf *meta, const char *key, uint64_t *out, cf_err *err);
int cf_gguf_f32(const cf_gguf *meta, const char *key, float *out, cf_err *err);
int cf_gguf_bool(const cf_gguf *meta, const char *key, bool *out, cf_err *err);
int cf_gguf_string(const cf_gguf *meta, const char *key, cf_text *out, cf_err *err);
int cf_gguf_get_array(const cf_gguf *meta, const char *key, cf_gguf_array *out, cf_err *err);

/* Element i < count. False when the array is not of that kind, or (integers) i's value does not
 * fit. */
bool cf_gguf_array_u64(const cf_gguf_array *a, uint64_t i, uint64_t *out);
bool cf_gguf_array_i64(const cf_gguf_array *a, uint64_t i, int64_t *out);
bool cf_gguf_array_f32(const cf_gguf_array *a, uint64_t i, float *out);
bool cf_gguf_array_bool(const cf_gguf_array *a, uint64_t i, bool *out);
bool cf_gguf_array_string(const cf_gguf_array *a, uint64_t i, cf_text *out);

/* The parser alone, for the fuzzer and tests: the first `bytes` bytes of a file of file_bytes;
 * `path` is for messages. Appends to *cat (created when NULL) as file number `file`. After a
 * failure a catalogue that was given can only be closed; one that was not stays NULL. */
int cf_gguf_parse(cf_catalogue **cat, cf_gguf **meta, uint32_t file, const char *path,
                  const uint8_t *data, uint64_t bytes, uint64_t file_bytes, cf_err *err);

#endif
