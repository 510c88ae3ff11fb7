/* What the readers of a tokenizer.json share: checks and sentences. Private to tokenizer_json*.c.
 */
#ifndef CF_RUNTIME_TOKENIZER_JSON_H
#define CF_RUNTIME_TOKENIZER_JSON_H

#include "runtime/tokenizer_parts.h"

enum { TOK_JSON_NESTING_MAX = 4 };

typedef struct tok_reader {
    cf_tokenizer *tok;
    const char *path;
    cf_err *err;
    tok_buf work;
    tok_normal_work normal; /* of added tokens: one for all, or each would have its own steps */
    bool byte_level;   /* else characters, with U+2581 for spaces */
    bool decode_bytes; /* byte tokens are decoded as bytes */
    bool has_spaces;   /* a normaliser replaces spaces by U+2581: this step */
    uint32_t spaces_step;
    float *scores; /* of a unigram model, until it takes them */
    int32_t n_scores, unk_id;
} tok_reader;

#define TOK_BAD(r, ...) tok_json_bad((r)->path, (r)->err, __VA_ARGS__)

__attribute__((format(printf, 3, 4))) int tok_json_bad(const char *path, cf_err *err,
                                                       const char *format, ...);
const char *tok_json_type(const json_t *value); /* "an object", "missing" */
/* A string, quoted for a sentence. */
const char *tok_json_quoted(const json_t *string, char out[TOK_QUOTE_SIZE]);
/* The "type" of a part: its string in `type`, or a failure. */
int tok_json_part_type(tok_reader *r, const json_t *part, const char *where, const char **type);
int tok_json_part_unknown(tok_reader *r, const char *where, const char *type, const char *known);
/* An optional boolean. */
int tok_json_flag(tok_reader *r, const json_t *part, const char *where, const char *key,
                  bool missing, bool *value);
int tok_json_id(tok_reader *r, const json_t *value, const char *where, int32_t *id);

/* Walks the parts of `part` in order, Sequences opened (their list is under `key`). */
typedef struct tok_walk {
    const char *key, *where;
    const json_t *single; /* not a Sequence: given out once */
    const json_t *list[TOK_JSON_NESTING_MAX];
    size_t at[TOK_JSON_NESTING_MAX];
    uint32_t depth;
    uint32_t n; /* parts given out */
    char name[64];
} tok_walk;

int tok_walk_begin(tok_reader *r, tok_walk *w, const json_t *part, const char *where,
                   const char *key);
/* 1 with the next part and its name for sentences (in w->name), 0 at the end. */
int tok_walk_next(tok_reader *r, tok_walk *w, const json_t **part, const char **type);

/* tokenizer_json_text.c */
int tok_json_normalizer(tok_reader *r, const json_t *root);
int tok_json_metaspace(tok_reader *r, const json_t *part, const char *where,
                       tok_meta_scheme *scheme, bool *split);
int tok_json_decoder(tok_reader *r, const json_t *root);
int tok_json_post_processor(tok_reader *r, const json_t *root);
/* tokenizer_json_model.c: the kind; the model; what needs the added tokens. */
int tok_json_model_check(tok_reader *r, const json_t *model);
int tok_json_model(tok_reader *r, const json_t *model);
int tok_json_model_finish(tok_reader *r);

#endif
