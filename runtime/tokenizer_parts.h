/* The parts of a tokenizer, and the readers that fill them. Private to tokenizer*.c.
 *
 * A reader for each form a vocabulary comes in: tokenizer_json*.c, tokenizer_spm.c,
 * tokenizer_tiktoken.c, tokenizer_list.c, tokenizer_gguf.c. A further kind (another model, normaliser or
 * pre-tokeniser) is a further part: its own file for what it does, one case in text_encode
 * (tokenizer.c), and its name in the readers that may meet it. */
#ifndef CF_RUNTIME_TOKENIZER_PARTS_H
#define CF_RUNTIME_TOKENIZER_PARTS_H

#include <jansson.h>

#include "runtime/tokenizer.h"
#include "runtime/tokenizer_added.h"
#include "runtime/tokenizer_bpe.h"
#include "runtime/tokenizer_normal.h"
#include "runtime/tokenizer_pretok.h"
#include "runtime/tokenizer_unigram.h"
#include "runtime/tokenizer_vocab.h"

enum {
    TOK_FILE_BYTES_MAX = 256 * 1024 * 1024,
    TOK_JSON_VALUES_MAX = 8 << 20, /* four times those of the largest file known */
    TOK_TEXT_BYTES_MAX = 256 * 1024 * 1024, /* so that positions fit 32 bits after NFC */
    TOK_PREFIX_MAX = 16
};

/* What decoding leaves away where a text begins: the space that encoding has put there. */
typedef enum { TOK_LEAD_KEEP, TOK_LEAD_ONE, TOK_LEAD_ALL } tok_lead;

struct cf_tokenizer {
    tok_vocab vocab;
    bool is_unigram; /* the model is `unigram`, otherwise `bpe` */
    tok_bpe bpe;
    tok_unigram unigram;
    tok_lead lead;
    bool each_byte; /* a bad byte is shown for itself (cf_utf8_stream) */
    tok_normal normal;
    tok_pretok pretok;
    tok_added added;            /* looked for in the text as given */
    tok_added added_normalized; /* and in what is left, normalised */
    int32_t prefix[TOK_PREFIX_MAX];
    uint32_t n_prefix;
    bool has_template; /* the post-processor decides on the prefix */
    cf_err refusal;    /* why it cannot encode; code 0: it can */
};

/* Each fills a zeroed tokenizer; `path` is for sentences. After a failure it can only be closed. */
int tok_json_read(cf_tokenizer *tok, const json_t *root, const char *path, cf_err *err);
int tok_spm_read(cf_tokenizer *tok, const uint8_t *data, size_t bytes, const char *path,
                 cf_err *err);
/* rule: how texts are split; a rank file does not say. */
int tok_tiktoken_read(cf_tokenizer *tok, const char *text, size_t bytes,
                      const cf_tokenizer_rule *rule, const char *path, cf_err *err);
/* tokenizer.tok.json. */
int tok_list_read(cf_tokenizer *tok, const json_t *root, const cf_tokenizer_rules *rules,
                  const char *path, cf_err *err);
int tok_gguf_read(cf_tokenizer *tok, const struct cf_gguf *meta, const cf_tokenizer_rules *rules,
                  const char *path, cf_err *err);
/* What tokenizer_config.json says: add_bos_token, where nothing else decides on the prefix, and
 * with `added` (vocabularies that name no special tokens themselves) added_tokens_decoder. */
int tok_json_read_config(cf_tokenizer *tok, const json_t *root, bool added, const char *path,
                         cf_err *err);

/* --- shared by the readers ------------------------------------------------------------------- */

/* Gives an id its text as an added token, to be looked for in texts as given, or, normalized (with
 * this working memory, else NULL), in what is left of them; its flags as tokenizer_added.h has
 * them. */
int tok_added_define(cf_tokenizer *tok, const char *text, size_t n, int32_t id, uint8_t flags,
                     tok_normal_work *normalized, cf_err *err);
/* After the last of them. */
int tok_added_seal_all(cf_tokenizer *tok, cf_err *err);
/* A token of a SentencePiece vocabulary: kept with spaces for U+2581, "<0x41>" as that byte. */
int tok_piece_define(cf_tokenizer *tok, const char *text, size_t n, int32_t id, bool byte,
                     tok_fallback *bytes, cf_err *err);
/* BPE over the tokens there are, whose ids are their ranks; and the splits of a rule. */
int tok_ranks_finish(cf_tokenizer *tok, const cf_tokenizer_rule *rule, const char *path,
                     cf_err *err);
/* Puts the splits of a rule in place. */
int tok_rule_apply(cf_tokenizer *tok, const cf_tokenizer_rule *rule, const char *path,
                   cf_err *err);
/* The rule of this name, or NULL. */
const cf_tokenizer_rule *tok_rule_find(const cf_tokenizer_rules *rules, const char *name,
                                       size_t n);

/* No such rule: the tokenizer will not encode, and says why. prefix: of the names that rules have
 * for what `name` is one of; the file's own are without it. Returns the rule that splits nothing. */
const cf_tokenizer_rule *tok_rule_refuse(cf_tokenizer *tok, const cf_tokenizer_rules *rules,
                                         const char *path, const char *what, const char *prefix,
                                         const char *name, size_t n);
/* How SentencePiece normalises; map: its table, or no bytes. */
int tok_spaces_set(cf_tokenizer *tok, const uint8_t *map, size_t map_bytes, bool space_first,
                   bool spaces_apart, const char *path, cf_err *err);
/* BPE over characters by the scores [vocab.n] of an indexed vocabulary, the highest first. */
int tok_bpe_by_score(cf_tokenizer *tok, const float *scores, int32_t unk_id,
                     const tok_fallback *bytes, cf_err *err);

#endif
