/* Fuzzes a rank file, or a list of tokens byte by byte where it begins with a brace, and a text for it:
 * four bytes with the file's length, the file, the text. */
#include "models/tokenizer_rules.h"
#include "tests/fuzz/tokenizer_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t n = first_part(data, size);
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    if (size < 4)
        return 0;
    int rc = n && data[4] == '{'
                 ? cf_tokenizer_parse_list((const char *)data + 4, n, &cf_tokenizer_rules_known,
                                           "fuzz", &tok, &err)
                 : cf_tokenizer_parse_ranks((const char *)data + 4, n, "cl100k_base",
                                            &cf_tokenizer_rules_known, "fuzz", &tok, &err);
    tokenizer_check(tok, rc, &err, data + 4 + n, size - 4 - n);
    return 0;
}
