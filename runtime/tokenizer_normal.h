/* Normalisers: what is done to a text before it is split: a list of steps, in order.
 *
 * NFC, replacing, stripping, a text in front, and the compiled table of character sequences that
 * SentencePiece models carry, in two readings: the one of the tokenizers library, cluster by
 * cluster, and SentencePiece's own, which also looks after spaces. Spaces may come out as such or
 * as U+2581: the pre-tokeniser makes them one. */
#ifndef CF_RUNTIME_TOKENIZER_NORMAL_H
#define CF_RUNTIME_TOKENIZER_NORMAL_H

#include "runtime/tokenizer_regex.h"

enum {
    TOK_STEPS_MAX = 16,
    /* What a step may make of a text. In Unicode's own tables a character of 3 bytes becomes 33. */
    TOK_GROWTH_MAX = 16,
    TOK_GROWTH_FREE = 1024,
    TOK_NORMAL_BYTES_MAX = 512 * 1024 * 1024
};

/* The table: a double array of units (offset, label, leaf) and the replacements, each ended by a
 * zero byte. */
typedef struct tok_charsmap {
    uint32_t *units;
    uint32_t n_units;
    char *texts; /* ends in a zero byte */
    uint32_t text_bytes;
} tok_charsmap;

/* `what` names the table in sentences. */
int tok_charsmap_parse(tok_charsmap *m, const uint8_t *data, size_t bytes, const char *what,
                       cf_err *err);
void tok_charsmap_finish(tok_charsmap *m);
/* What the longest (the shortest) sequence at the beginning of `text` becomes, and its length; *to
 * NULL when none does. Negative where the table has sequences without an end. */
int tok_charsmap_find(const tok_charsmap *m, const char *text, size_t bytes, bool longest,
                      const char **to, size_t *used, cf_err *err);

typedef enum {
    TOK_STEP_NFC,
    TOK_STEP_PREPEND,
    TOK_STEP_REPLACE,  /* what the pattern matches, by the text */
    TOK_STEP_STRIP,    /* white space */
    TOK_STEP_CLUSTERS, /* the charsmap, by clusters */
    TOK_STEP_SPACES    /* SentencePiece: the charsmap, a space in front, extra spaces */
} tok_step_kind;

typedef struct tok_step {
    tok_step_kind kind;
    tok_regex regex; /* REPLACE; CLUSTERS: one cluster */
    tok_buf text;    /* PREPEND, REPLACE */
    bool left, right;               /* STRIP */
    bool space_first, spaces_apart; /* SPACES: one in front; more than one is one, none at an end */
} tok_step;

typedef struct tok_normal {
    tok_step steps[TOK_STEPS_MAX];
    uint32_t n;
    tok_charsmap map;
} tok_normal;

/* Working memory of one thread, kept between texts. */
typedef struct tok_normal_work {
    uint32_t *chars; /* code point | class << 24 */
    size_t n_chars, size_chars;
    uint32_t *sorted;
    size_t size_sorted;
    tok_buf other; /* the text between two steps */
    size_t given, end; /* bytes of the text given; where what a step makes of it must end */
    tok_scan scan; /* made when a step matches patterns */
} tok_normal_work;

/* A new step, zeroed but for its kind; NULL with a sentence when there are too many. */
tok_step *tok_normal_add(tok_normal *normal, tok_step_kind kind, const char *what, cf_err *err);
void tok_normal_finish(tok_normal *normal);
uint64_t tok_normal_memory(const tok_normal *normal);
void tok_normal_work_finish(tok_normal_work *work);

/* Appends the normal form of a valid UTF-8 text to `out`, and sets *changed; where it is seen at
 * once that nothing changes, `out` is left alone and *changed false. */
int tok_normal_run(const tok_normal *normal, tok_normal_work *work, const char *text, size_t bytes,
                   tok_buf *out, bool *changed, cf_err *err);

/* One step: NFC, by the same rules. */
int tok_nfc_run(tok_normal_work *work, const char *text, size_t bytes, tok_buf *out, bool *changed,
                cf_err *err);

/* Unicode White_Space. */
static inline bool tok_char_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

#endif
