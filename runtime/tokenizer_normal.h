/* Normalisers: what a tokenizer.json may do to a text before it is split. NFC so far; the others
 * are refused by name when the file is read. */
#ifndef CF_RUNTIME_TOKENIZER_NORMAL_H
#define CF_RUNTIME_TOKENIZER_NORMAL_H

#include "runtime/tokenizer_buf.h"

typedef struct tok_normal {
    bool nfc;
} tok_normal;

/* Working memory of one thread, kept between texts. */
typedef struct tok_normal_work {
    uint32_t *chars; /* code point | class << 24 */
    size_t n_chars, size_chars;
    uint32_t *sorted;
    size_t size_sorted;
} tok_normal_work;

void tok_normal_work_finish(tok_normal_work *work);

/* Appends the normal form of a valid UTF-8 text to `out`, and sets *changed; where nothing
 * changes at once to see (no character above U+02FF), `out` is left alone and *changed false. */
int tok_normal_run(const tok_normal *normal, tok_normal_work *work, const char *text, size_t bytes,
                   tok_buf *out, bool *changed, cf_err *err);

#endif
