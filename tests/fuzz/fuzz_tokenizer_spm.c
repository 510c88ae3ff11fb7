/* Fuzzes a SentencePiece model and a text for it: four bytes with the model's length, the model, the
 * text. */
#include "tests/fuzz/tokenizer_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t n = first_part(data, size);
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    if (size < 4)
        return 0;
    int rc = cf_tokenizer_parse_spm(data + 4, n, "fuzz", &tok, &err);
    tokenizer_check(tok, rc, &err, data + 4 + n, size - 4 - n);
    return 0;
}
