/* Growable arrays of the tokenizer: bounded, reused from piece to piece.
 *
 * Room is asked for before it is written; a failed request leaves the array as it was. */
#ifndef CF_RUNTIME_TOKENIZER_BUF_H
#define CF_RUNTIME_TOKENIZER_BUF_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/err.h"

typedef struct tok_buf {
    char *data;
    size_t n, size;
} tok_buf;

/* Room for `more` bytes after the n in use. 0 or -ENOMEM with a sentence. */
static inline int tok_buf_reserve(tok_buf *b, size_t more, cf_err *err)
{
    if (more <= b->size - b->n)
        return 0;
    if (more > SIZE_MAX / 4 - b->n)
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for %zu bytes more", more);
    size_t size = b->size < 32 ? 64 : b->size * 2;
    if (size < b->n + more)
        size = b->n + more;
    char *data = realloc(b->data, size);
    if (!data)
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for a buffer of %zu bytes", size);
    b->data = data;
    b->size = size;
    return 0;
}

static inline int tok_buf_add(tok_buf *b, const void *bytes, size_t n, cf_err *err)
{
    int rc = tok_buf_reserve(b, n, err);
    if (rc == 0 && n > 0) {
        memcpy(b->data + b->n, bytes, n);
        b->n += n;
    }
    return rc;
}

static inline void tok_buf_finish(tok_buf *b)
{
    free(b->data);
    *b = (tok_buf){0};
}

/* A part of a text. Texts are below 2^32 bytes (CF_TOK_TEXT_MAX, times what NFC may add). */
typedef struct tok_piece {
    uint32_t off, bytes;
} tok_piece;

typedef struct tok_pieces {
    tok_piece *v;
    size_t n, size;
} tok_pieces;

static inline int tok_pieces_add(tok_pieces *p, size_t off, size_t bytes, cf_err *err)
{
    if (p->n == p->size) {
        size_t size = p->size ? p->size * 2 : 64;
        tok_piece *v = realloc(p->v, size * sizeof *v);
        if (!v)
            return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for %zu pieces of a text", size);
        p->v = v;
        p->size = size;
    }
    p->v[p->n++] = (tok_piece){.off = (uint32_t)off, .bytes = (uint32_t)bytes};
    return 0;
}

static inline void tok_pieces_finish(tok_pieces *p)
{
    free(p->v);
    *p = (tok_pieces){0};
}

/* The code point at `t` (valid UTF-8) and its length. */
static inline uint32_t tok_char(const char *t, size_t *bytes)
{
    const unsigned char *u = (const unsigned char *)t;
    if (u[0] < 0x80) {
        *bytes = 1;
        return u[0];
    }
    if (u[0] < 0xe0) {
        *bytes = 2;
        return (u[0] & 0x1fu) << 6 | (u[1] & 0x3fu);
    }
    if (u[0] < 0xf0) {
        *bytes = 3;
        return (u[0] & 0x0fu) << 12 | (u[1] & 0x3fu) << 6 | (u[2] & 0x3fu);
    }
    *bytes = 4;
    return (u[0] & 0x07u) << 18 | (u[1] & 0x3fu) << 12 | (u[2] & 0x3fu) << 6 | (u[3] & 0x3fu);
}

/* Writes the UTF-8 of a code point (at most 4 bytes); returns their number. */
static inline size_t tok_char_put(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* Untrusted text for a sentence: printable ASCII as it is, other bytes as \xNN, cut at the size
 * of `out`. Returns out. */
enum { TOK_QUOTE_SIZE = 80 };
static inline const char *tok_quote(const char *bytes, size_t n, char out[TOK_QUOTE_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (at > TOK_QUOTE_SIZE - 8) {
            memcpy(out + at, "...", 3);
            at += 3;
            break;
        }
        if (c >= 0x20 && c < 0x7f) {
            out[at++] = (char)c;
        } else {
            out[at++] = '\\';
            out[at++] = 'x';
            out[at++] = digits[c >> 4];
            out[at++] = digits[c & 15];
        }
    }
    out[at] = 0;
    return out;
}

#endif
