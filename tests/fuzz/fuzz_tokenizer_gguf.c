/* Fuzzes the vocabulary of a GGUF file and a text for it: four bytes with the file's length, the
 * file, the text. Files that the GGUF reader refuses are fuzz_gguf's. */
#include "models/tokenizer_rules.h"
#include "storage/gguf.h"
#include "tests/fuzz/tokenizer_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t n = first_part(data, size);
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    if (size < 4)
        return 0;
    if (cf_gguf_parse(&cat, &meta, 0, "fuzz", data + 4, n, n, &err) == 0) {
        int rc = cf_tokenizer_parse_gguf(meta, &cf_tokenizer_rules_known, "fuzz", &tok, &err);
        tokenizer_check(tok, rc, &err, data + 4 + n, size - 4 - n);
    }
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
    return 0;
}
