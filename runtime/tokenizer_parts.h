/* The parts of a tokenizer, and how a tokenizer.json fills them. Private to tokenizer*.c.
 *
 * A further kind (another model, normaliser or pre-tokeniser) is a further part: its reader in
 * tokenizer_json.c, its own file for what it does, one case in text_encode (tokenizer.c). */
#ifndef CF_RUNTIME_TOKENIZER_PARTS_H
#define CF_RUNTIME_TOKENIZER_PARTS_H

#include <jansson.h>

#include "runtime/tokenizer.h"
#include "runtime/tokenizer_added.h"
#include "runtime/tokenizer_bpe.h"
#include "runtime/tokenizer_normal.h"
#include "runtime/tokenizer_pretok.h"
#include "runtime/tokenizer_vocab.h"

enum {
    TOK_FILE_BYTES_MAX = 256 * 1024 * 1024,
    TOK_TEXT_BYTES_MAX = 256 * 1024 * 1024, /* so that positions fit 32 bits after NFC */
    TOK_PREFIX_MAX = 16
};

struct cf_tokenizer {
    tok_vocab vocab;
    tok_bpe bpe;
    tok_normal normal;
    tok_pretok pretok;
    tok_added added;            /* looked for in the text as given */
    tok_added added_normalized; /* and in what is left, normalised */
    int32_t prefix[TOK_PREFIX_MAX];
    uint32_t n_prefix;
    bool has_template; /* the post-processor decides on the prefix */
};

/* Fills a zeroed tokenizer from a parsed tokenizer.json; `path` is for sentences. */
int tok_json_read(cf_tokenizer *tok, const json_t *root, const char *path, cf_err *err);
/* What tokenizer_config.json says where the post-processor says nothing: add_bos_token. */
int tok_json_read_config(cf_tokenizer *tok, const json_t *root, const char *path, cf_err *err);

#endif
