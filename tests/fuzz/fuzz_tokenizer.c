/* Fuzzes a tokenizer.json and a text for it: the input is the file up to the first zero byte, the
 * text behind it (repaired to UTF-8). Whatever loads must encode every text without a fault, give
 * ids in range, count the same with and without room, and stream valid UTF-8 back. */
#include "runtime/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { IDS_MAX = 1 << 16 };

static void text_check(const cf_tokenizer *tok, const char *text, size_t n, int flags)
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
        shown = cf_utf8_push(&stream, piece, bytes, out, sizeof out);
        if (cf_utf8_invalid(out, shown) != shown)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    size_t n_json = zero ? (size_t)(zero - data) : size, n_text = size - n_json;
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    int rc = cf_tokenizer_parse((const char *)data, n_json, "fuzz", &tok, &err);
    if ((rc < 0) != (tok == NULL) || (rc < 0 && !err.msg[0]))
        abort();
    if (rc < 0)
        return 0;
    char *text = malloc(3 * (n_text + 4));
    cf_utf8_stream stream = {0};
    if (text) {
        size_t n =
            cf_utf8_push(&stream, (const char *)data + n_json, n_text, text, 3 * (n_text + 4));
        text_check(tok, text, n, 0);
        text_check(tok, text, n, CF_TOK_ADD_PREFIX | CF_TOK_PARSE_SPECIAL);
        free(text);
    }
    cf_tokenizer_close(&tok);
    return 0;
}
