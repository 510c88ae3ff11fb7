/* Fuzzes a tokenizer.json and a text for it: the input is the file up to the first zero byte, the
 * text behind it. */
#include "tests/fuzz/tokenizer_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    size_t n_json = zero ? (size_t)(zero - data) : size;
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    int rc = cf_tokenizer_parse((const char *)data, n_json, "fuzz", &tok, &err);
    tokenizer_check(tok, rc, &err, data + n_json, size - n_json);
    return 0;
}
