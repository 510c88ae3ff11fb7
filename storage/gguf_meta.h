/* The metadata of a GGUF file from the inside: filled by gguf.c, looked up by gguf_meta.c. */
#ifndef CF_STORAGE_GGUF_META_H
#define CF_STORAGE_GGUF_META_H

#include "storage/gguf.h"

struct cf_gguf_pair {
    uint64_t key_off, key_bytes, value_off, value_bytes; /* in data */
    cf_gguf_type type;
    cf_gguf_type element; /* ARRAY */
    uint64_t count;       /* ARRAY */
    uint32_t *offsets;    /* ARRAY of STRING: from value_off + 12, owned */
};

struct cf_gguf {
    char *path;
    uint8_t *data; /* the file's first data_bytes bytes */
    uint64_t data_bytes;
    struct cf_gguf_pair *pairs; /* in the file's order */
    uint32_t *sorted;           /* indices of pairs, by key */
    uint32_t count;
};

enum { CF_GGUF_ARRAY_HEAD = 12 }; /* bytes of an array before its elements: type, count */

/* Bytes of a value of fixed size; 0 for STRING and ARRAY. */
uint32_t cf_gguf_type_bytes(cf_gguf_type t);
/* Little-endian, at any address. */
uint64_t cf_gguf_read(const uint8_t *p, uint32_t bytes);
/* Fills `sorted`; CF_EFORMAT when a key occurs twice. */
int cf_gguf_sort(cf_gguf *g, cf_err *err);

#endif
