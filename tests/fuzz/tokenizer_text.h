/* What the tokenizers' fuzz targets do with a vocabulary that loads: it must encode every text
 * without a fault, give ids in range, count the same with and without room, and stream valid UTF-8
 * back. */
#ifndef CF_TESTS_FUZZ_TOKENIZER_TEXT_H
#define CF_TESTS_FUZZ_TOKENIZER_TEXT_H

#include <stdlib.h>
#include <string.h>

#include "runtime/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { IDS_MAX = 1 << 16 };

static inline void text_check(const cf_tokenizer *tok, const char *text, size_t n, int flags)
{
    static int32_t ids[IDS_MAX];
    size_t n_ids, again, bytes, shown = 0;
    char out[4096];
    cf_utf8_stream stream = {0};
    if (cf_tokenizer_encode(tok, text, n, flags, ids, IDS_MAX, &n_ids, NULL) < 0)
        return;
    if (cf_tokenizer_encode(tok, text, n, flags, NULL, 0, &again, NULL) < 0 || again != n_ids)
        abort();
    for (size_t i = 0; i < n_ids && i < IDS_MAX; i++) {
        if (ids[i] < 0 || ids[i] >= cf_tokenizer_vocab_size(tok))
            abort();
        const char *piece = cf_tokenizer_piece(tok, ids[i], &bytes);
        if (3 * (bytes + 4) > sizeof out)
            continue;
        size_t first_bytes;
        cf_tokenizer_piece_first(tok, ids[i], &first_bytes);
        if (first_bytes > bytes)
            abort();
        shown = cf_utf8_push(&stream, piece, bytes, out, sizeof out);
        if (cf_utf8_invalid(out, shown) != shown)
            abort();
    }
}

/* The outcome of a reader, and the n bytes of a text (repaired to UTF-8) for it. Closes it. */
static inline void tokenizer_check(cf_tokenizer *tok, int rc, const cf_err *err,
                                   const uint8_t *data, size_t n_text)
{
    if ((rc < 0) != (tok == NULL) || (rc < 0 && !err->msg[0]))
        abort();
    if (rc < 0)
        return;
    char *text = malloc(3 * (n_text + 4) + 9);
    cf_utf8_stream stream = {0};
    if (text) {
        size_t n = cf_utf8_push(&stream, (const char *)data, n_text, text, 3 * (n_text + 4));
        text_check(tok, text, n, 0);
        text_check(tok, text, n, CF_TOK_ADD_PREFIX | CF_TOK_PARSE_SPECIAL);
        free(text);
    }
    cf_tokenizer_close(&tok);
}

/* Inputs of two parts: four bytes with the length of the first. */
static inline size_t first_part(const uint8_t *data, size_t size)
{
    uint32_t n = 0;
    if (size < 4)
        return 0;
    memcpy(&n, data, sizeof n);
    return n < size - 4 ? n : size - 4;
}

#endif
