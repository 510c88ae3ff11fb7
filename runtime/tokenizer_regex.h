/* Split patterns: the regular expressions of a tokenizer.json, run by PCRE2.
 *
 * The files are written for Oniguruma (Ruby syntax). What they use is translated where the two
 * differ (tokenizer_onig.c); what is not known is refused by name, never run with another meaning.
 * Thread-safety: a compiled pattern is immutable; a tok_scan belongs to one thread. */
#ifndef CF_RUNTIME_TOKENIZER_REGEX_H
#define CF_RUNTIME_TOKENIZER_REGEX_H

#include "runtime/tokenizer_buf.h"

typedef struct tok_regex {
    struct pcre2_real_code_8 *code; /* NULL: none, or a literal */
    bool jit;
    tok_buf literal; /* LITERAL: looked for without PCRE2 */
    uint64_t memory_bytes;
} tok_regex;

/* What matching may cost. A pattern counts its own steps (tokenizer_onig.c puts the places where):
 * one each, and one for each byte that a repeat has run over. */
typedef struct tok_steps {
    uint64_t left, granted;
    size_t start, at; /* of the attempt counted last, and how far it was */
} tok_steps;

/* What matching needs beside a pattern: buffers and limits. It stays where it was made. */
typedef struct tok_scan {
    tok_steps steps;
    struct pcre2_real_match_data_8 *data;
    struct pcre2_real_match_context_8 *context;
    struct pcre2_real_jit_stack_8 *stack; /* made when the machine stack's share does not do */
} tok_scan;

/* One pass over one text. Start with {.text = t, .bytes = n}. */
typedef struct tok_find {
    const char *text;
    size_t bytes;
    size_t at;       /* where the next search starts */
    size_t last_end; /* end of the last match */
    bool matched;    /* there was one */
} tok_find;

enum {
    TOK_REGEX_ONIG,    /* Oniguruma syntax, translated */
    TOK_REGEX_LITERAL, /* the bytes themselves */
    TOK_REGEX_CLUSTER  /* one extended grapheme cluster, whatever the pattern */
};

/* `what` names the pattern in sentences ("pre_tokenizer 2"). */
int tok_regex_compile(tok_regex *re, int syntax, const char *pattern, size_t bytes,
                      const char *what, cf_err *err);
void tok_regex_finish(tok_regex *re);

int tok_scan_init(tok_scan *scan, cf_err *err);
/* Grants the steps that a text of so many bytes may take. */
void tok_scan_grant(tok_scan *scan, size_t bytes);
void tok_scan_finish(tok_scan *scan);

/* The next match, as the reference's iterator gives them (an empty match right after a match is
 * passed over): 1 with its bounds, 0 at the end, negative on a limit. */
int tok_regex_next(const tok_regex *re, tok_scan *scan, tok_find *find, size_t *begin, size_t *end,
                   cf_err *err);

/* Translates a pattern for PCRE2 (UTF, UCP, MULTILINE) into `out`, with callouts to count steps. */
int tok_onig_translate(const char *pattern, size_t bytes, const char *what, tok_buf *out,
                       cf_err *err);

#endif
