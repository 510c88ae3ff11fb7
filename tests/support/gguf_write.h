/* GGUF v3 files, put together in memory: keys, tensors, and the whole at the end. For tests whose
 * files nobody else writes; what they say is not checked. One thread; out of memory ends the test.
 */
#ifndef CF_TESTS_GGUF_WRITE_H
#define CF_TESTS_GGUF_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/format.h"

typedef struct gguf_bytes {
    uint8_t *at;
    size_t n, room;
} gguf_bytes;

void put(gguf_bytes *b, const void *data, size_t n);
void put_u(gguf_bytes *b, uint64_t v, size_t n); /* little-endian, as the machines are */
void put_text(gguf_bytes *b, const char *text);  /* length and bytes */

typedef struct gguf_out {
    gguf_bytes keys, infos, data;
    uint64_t n_keys, n_tensors;
} gguf_out;

/* Metadata: each adds one key. */
void gguf_put_u32(gguf_out *g, const char *key, uint32_t v);
void gguf_put_f32(gguf_out *g, const char *key, float v);
void gguf_put_bool(gguf_out *g, const char *key, int v);
void gguf_put_string(gguf_out *g, const char *key, const char *text);
void gguf_put_strings(gguf_out *g, const char *key, const char *const *texts, uint32_t n);
/* Shapes as everywhere here: outermost first. */
void gguf_put_tensor(gguf_out *g, const char *name, cf_format f, uint32_t n_dims,
                     const uint64_t *shape, const void *data, size_t n);
/* The file; what was put is free again. */
void gguf_write(gguf_out *g, const char *path);

#endif
