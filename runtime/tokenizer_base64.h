/* Base64, as rank files and compiled tables are written. */
#ifndef CF_RUNTIME_TOKENIZER_BASE64_H
#define CF_RUNTIME_TOKENIZER_BASE64_H

#include "runtime/tokenizer_buf.h"

/* Appends what `text` stands for: 0; 1 with *bad, the place of the first character that does not
 * belong there; negative on failure. */
int tok_base64_decode(const char *text, size_t n, tok_buf *out, size_t *bad, cf_err *err);

#endif
