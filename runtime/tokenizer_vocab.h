/* Vocabulary: token ids and their bytes, both ways. Built once, then immutable.
 *
 * A byte-level vocabulary writes each byte as one printable character (the table of GPT-2); tokens
 * are kept here as the bytes that they stand for. A token with any other character is its own
 * UTF-8 text, as the reference decodes it. */
#ifndef CF_RUNTIME_TOKENIZER_VOCAB_H
#define CF_RUNTIME_TOKENIZER_VOCAB_H

#include "runtime/tokenizer_buf.h"

enum { TOK_VOCAB_MAX = 1 << 21 };

typedef struct tok_token {
    uint32_t off, bytes;
    uint8_t flags;
} tok_token;

enum {
    TOK_USED = 1,    /* the id has a token */
    TOK_ADDED = 2,   /* from added_tokens */
    TOK_SPECIAL = 4, /* special: true */
    TOK_RAW = 8,     /* not written in byte-level characters */
    TOK_BYTE = 16,   /* stands for one byte: never found by its bytes */
    TOK_UNUSED = 32  /* of no use but in merges */
};

typedef struct tok_vocab {
    tok_buf text;
    tok_token *tokens; /* [n] by id */
    int32_t n;         /* highest id + 1 */
    int32_t size;
    int32_t *slots; /* id by bytes: open addressing, -1 empty */
    uint32_t mask;
    uint64_t seed; /* at random: a file cannot be made so that its tokens collide */
} tok_vocab;

/* A number that no file knows. */
uint64_t tok_seed(void);

void tok_vocab_finish(tok_vocab *v);
/* Gives an id its bytes and flags, over what it had. The id is in [0, TOK_VOCAB_MAX). */
int tok_vocab_set(tok_vocab *v, int32_t id, const char *bytes, size_t n, uint8_t flags,
                  cf_err *err);
/* Makes the model's tokens findable (not the added ones, nor bytes); call once, after them all. */
int tok_vocab_index(tok_vocab *v, cf_err *err);
int32_t tok_vocab_find(const tok_vocab *v, const char *bytes, size_t n); /* id or -1 */
uint64_t tok_vocab_memory(const tok_vocab *v);

static inline const char *tok_vocab_bytes(const tok_vocab *v, int32_t id, size_t *n)
{
    *n = v->tokens[id].bytes;
    return v->text.data + v->tokens[id].off;
}

/* Byte-level text to bytes, appended to `out` (at most n bytes): true, or false where a character
 * stands for no byte (then `out` is as it was). */
bool tok_byte_level_decode(const char *text, size_t n, char *out, size_t *out_bytes);

/* U+2581, which stands for a space in a SentencePiece vocabulary; one that has it is kept, and
 * matched, with spaces. */
#define TOK_META "\xe2\x96\x81"
enum { TOK_META_BYTES = 3 };
/* Appends a text with spaces for U+2581. */
int tok_meta_add(tok_buf *out, const char *text, size_t n, cf_err *err);
/* The byte of a text "<0x41>", or -1. */
int tok_byte_token(const char *text, size_t n);

#endif
