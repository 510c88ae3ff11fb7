/* Tokenizer: text <-> token ids, from the files a model comes with.
 *
 * A vocabulary comes as tokenizer.json (Hugging Face), tokenizer.model (SentencePiece), a rank file
 * (tiktoken), a list of tokens byte by byte (tokenizer.tok.json) or in the metadata of a GGUF file;
 * its model is byte-level BPE, BPE over characters with a token for each byte as a fallback, or
 * unigram. Added and special tokens are cut out first,
 * the rest is normalised, split by patterns (PCRE2, Unicode) and encoded piece by piece. The files
 * are untrusted: bounded, and every malformed part is an error that names it.
 * Thread-safety: immutable after load; any number of threads may encode and decode. */
#ifndef CF_RUNTIME_TOKENIZER_H
#define CF_RUNTIME_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/err.h"

typedef struct cf_tokenizer cf_tokenizer;

/* How texts are split, where a vocabulary's file only has a name for it. */
typedef struct cf_tokenizer_rule {
    const char *names;       /* with a space between two */
    const char *patterns[6]; /* in order, up to the first NULL; none: GPT-2's */
    bool nfc;                /* normalise first */
    bool whole;              /* a piece that is a token is that token, whatever merges say */
    bool adds_bos;           /* where the file does not say */
} cf_tokenizer_rule;

/* And what a GGUF file calls the three models. */
typedef struct cf_tokenizer_rules {
    const cf_tokenizer_rule *rules;
    uint32_t n;
    const char *merges, *pieces, *unigram; /* byte-level BPE; BPE by score; unigram */
} cf_tokenizer_rules;

struct cf_gguf;

/* Where a model's tokenizer may be: a folder, and a GGUF file's metadata (or NULL). */
typedef struct cf_tokenizer_place {
    const char *dir;
    const struct cf_gguf *gguf;
    const char *gguf_path; /* for sentences */
    const cf_tokenizer_rules *rules;
} cf_tokenizer_place;

/* Opens the first there is: tokenizer.json; tokenizer.model; tiktoken.model; tokenizer.tok.json;
 * the one *.tiktoken; the metadata. *out NULL where there is none. `name` (or NULL) gets what was
 * taken, for sentences. */
enum { CF_TOKENIZER_NAME_BYTES = 512 };
int cf_tokenizer_open(const cf_tokenizer_place *place, cf_tokenizer **out,
                      char name[CF_TOKENIZER_NAME_BYTES], cf_err *err);
/* Whether there is one, without opening it. */
bool cf_tokenizer_exists(const cf_tokenizer_place *place);

/* `path`: a tokenizer.json; tokenizer_config.json beside it is read when present: its add_bos_token
 * counts where the post-processor has no template. Ends of sequence are the caller's
 * (generation_config.json names them by id). */
int cf_tokenizer_load(const char *path, cf_tokenizer **out, cf_err *err);
/* The forms from memory, for tests and the fuzzers; no files beside them. */
int cf_tokenizer_parse(const char *json, size_t json_bytes, const char *path, cf_tokenizer **out,
                       cf_err *err);
int cf_tokenizer_parse_spm(const uint8_t *data, size_t bytes, const char *path, cf_tokenizer **out,
                           cf_err *err);
/* rule: by name; a rank file has none. */
int cf_tokenizer_parse_ranks(const char *text, size_t bytes, const char *rule,
                             const cf_tokenizer_rules *rules, const char *path, cf_tokenizer **out,
                             cf_err *err);
int cf_tokenizer_parse_list(const char *json, size_t json_bytes, const cf_tokenizer_rules *rules,
                            const char *path, cf_tokenizer **out, cf_err *err);
int cf_tokenizer_parse_gguf(const struct cf_gguf *meta, const cf_tokenizer_rules *rules,
                            const char *path, cf_tokenizer **out, cf_err *err);
void cf_tokenizer_close(cf_tokenizer **tok); /* accepts NULL; leaves NULL */

int32_t cf_tokenizer_vocab_size(const cf_tokenizer *tok); /* highest id + 1; 0: none was read */
/* Why no text can be encoded, one sentence, or NULL: a file may name a way to split texts, or a model,
 * that is not known. Encoding fails with it; all else, ids to text where there are tokens
 * included, does not need to know. */
const char *cf_tokenizer_refusal(const cf_tokenizer *tok);
bool cf_tokenizer_adds_bos(const cf_tokenizer *tok);
uint64_t cf_tokenizer_memory(const cf_tokenizer *tok); /* bytes of host memory it holds */

enum {
    CF_TOK_ADD_PREFIX = 1,   /* what the tokenizer's post-processor puts before a text (BOS) */
    CF_TOK_PARSE_SPECIAL = 2 /* special tokens written out in the text become those tokens; without
                                it they stay plain text, which is what user text must be */
};

/* Text must be valid UTF-8 (else CF_EFORMAT with the byte offset). Writes at most max ids;
 * *n is the count needed, so a caller may ask again. ids may be NULL when max is 0. */
int cf_tokenizer_encode(const cf_tokenizer *tok, const char *text, size_t text_bytes, int flags,
                        int32_t *ids, size_t max, size_t *n, cf_err *err);

/* For text that was put together from several hands: marks [text_bytes] say whose each byte is. A
 * special token counts only where every byte of it has mark 0. A mark of CF_TOK_MARK_USER hides
 * also the added tokens in <angle brackets> that the model's files do not call special, but which
 * are control tokens all the same in some families. */
enum { CF_TOK_MARK_MODEL = 1, CF_TOK_MARK_USER = 2 };
int cf_tokenizer_encode_marked(const cf_tokenizer *tok, const char *text, size_t text_bytes,
                               const uint8_t *marks, int flags, int32_t *ids, size_t max, size_t *n,
                               cf_err *err);

/* The bytes of one token (not NUL-terminated, owned by the tokenizer; possibly part of a UTF-8
 * character). Special tokens give their text. An id out of range gives 0 bytes. */
const char *cf_tokenizer_piece(const cf_tokenizer *tok, int32_t id, size_t *bytes);
/* The same where a text begins: without the space that encoding puts before a text. */
const char *cf_tokenizer_piece_first(const cf_tokenizer *tok, int32_t id, size_t *bytes);
bool cf_tokenizer_is_special(const cf_tokenizer *tok, int32_t id);
/* Id of a token by its content (added tokens first; a model's token by its bytes: " the"), or
 * -1. */
int32_t cf_tokenizer_find(const cf_tokenizer *tok, const char *content);

/* Streams bytes out as whole UTF-8 characters: an incomplete tail is kept back until it is
 * complete; a byte that can never become valid comes out as U+FFFD. */
typedef struct cf_utf8_stream {
    unsigned char held[4];
    uint32_t n_held;
    bool each_byte; /* every bad byte is one U+FFFD; else every part of a broken character */
} cf_utf8_stream;

/* As the tokenizer's reference shows bad bytes. */
cf_utf8_stream cf_tokenizer_stream(const cf_tokenizer *tok);

/* Appends what can be shown to out (out_size >= 3 * (bytes + 4)); returns bytes written. */
size_t cf_utf8_push(cf_utf8_stream *s, const char *bytes, size_t n, char *out, size_t out_size);
/* The rest at the end of a text: U+FFFD for an incomplete tail (out_size >= 9). */
size_t cf_utf8_finish(cf_utf8_stream *s, char *out, size_t out_size);
/* Offset of the first byte that is not valid UTF-8, or n. */
size_t cf_utf8_invalid(const char *text, size_t n);

#endif
