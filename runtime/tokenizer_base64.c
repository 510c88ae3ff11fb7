/* Base64: see tokenizer_base64.h. Whole groups of four, padded; nothing else. */
#include "runtime/tokenizer_base64.h"

static int value_of(unsigned char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

int tok_base64_decode(const char *text, size_t n, tok_buf *out, size_t *bad, cf_err *err)
{
    size_t n_pad = 0;
    while (n_pad < 2 && n_pad < n && text[n - 1 - n_pad] == '=')
        n_pad++;
    int rc = tok_buf_reserve(out, n / 4 * 3 + 1, err);
    if (rc < 0)
        return rc;
    *bad = n;
    if (n % 4)
        return 1;
    for (size_t i = 0; i < n; i += 4) {
        uint32_t group = 0;
        size_t n_bytes = i + 4 == n ? 3 - n_pad : 3;
        for (size_t k = 0; k < 4; k++) {
            int value = k <= n_bytes ? value_of((unsigned char)text[i + k]) : 0;
            if (value < 0) {
                *bad = i + k;
                return 1;
            }
            group = group << 6 | (uint32_t)value;
        }
        for (size_t k = 0; k < n_bytes; k++)
            out->data[out->n++] = (char)(group >> (16 - 8 * k));
    }
    return 0;
}
