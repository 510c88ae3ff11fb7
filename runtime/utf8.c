/* UTF-8: finds what is not valid, and turns a stream of token bytes into whole characters.
 *
 * Bad bytes are replaced as Unicode recommends (section 3.9, and the WHATWG decoder): each maximal
 * part that could have begun a character becomes one U+FFFD. Overlong forms, surrogates and code
 * points above U+10FFFF are bad from the byte on that shows it.
 * No allocation, no state beyond cf_utf8_stream: one thread per stream. */
#include "runtime/tokenizer.h"

#include <string.h>

/* Bytes of the character that `lead` begins; 0 where it cannot begin one. */
static uint32_t lead_length(unsigned char lead)
{
    if (lead < 0x80)
        return 1;
    if (lead < 0xc2)
        return 0;
    if (lead < 0xe0)
        return 2;
    if (lead < 0xf0)
        return 3;
    return lead < 0xf5 ? 4 : 0;
}

/* `byte` may follow the n (1 to 3) bytes at `held`, which are a valid beginning. The second byte
 * is where overlong forms, surrogates and too large values show. */
static bool byte_continues(const unsigned char *held, uint32_t n, unsigned char byte)
{
    unsigned char low = 0x80, high = 0xbf;
    if (n == 1) {
        switch (held[0]) {
        case 0xe0:
            low = 0xa0;
            break;
        case 0xed:
            high = 0x9f;
            break;
        case 0xf0:
            low = 0x90;
            break;
        case 0xf4:
            high = 0x8f;
            break;
        default:
            break;
        }
    }
    return byte >= low && byte <= high;
}

static size_t put(char *out, size_t at, const void *bytes, size_t n)
{
    memcpy(out + at, bytes, n);
    return at + n;
}

/* As how many U+FFFD the bytes held back are shown when they come to nothing. */
static uint32_t bad_parts(const cf_utf8_stream *s)
{
    return s->each_byte ? s->n_held : s->n_held > 0;
}

size_t cf_utf8_push(cf_utf8_stream *s, const char *bytes, size_t n, char *out, size_t out_size)
{
    static const char replacement[] = "\xef\xbf\xbd";
    size_t at = 0;
    cf_assert(s->n_held < 4 && n <= SIZE_MAX / 3 - 4 && out_size >= 3 * (n + 4));
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (s->n_held > 0 && byte_continues(s->held, s->n_held, byte)) {
            s->held[s->n_held++] = byte;
        } else {
            for (uint32_t k = bad_parts(s); k > 0; k--)
                at = put(out, at, replacement, 3);
            s->held[0] = byte;
            s->n_held = 1;
        }
        uint32_t length = lead_length(s->held[0]);
        if (length == 0)
            at = put(out, at, replacement, 3);
        else if (length == s->n_held)
            at = put(out, at, s->held, length);
        else
            continue;
        s->n_held = 0;
    }
    return at;
}

size_t cf_utf8_finish(cf_utf8_stream *s, char *out, size_t out_size)
{
    size_t at = 0;
    uint32_t n = bad_parts(s);
    cf_assert(out_size >= 3 * (size_t)n);
    for (; n > 0; n--)
        at = put(out, at, "\xef\xbf\xbd", 3);
    s->n_held = 0;
    return at;
}

size_t cf_utf8_invalid(const char *text, size_t n)
{
    const unsigned char *t = (const unsigned char *)text;
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        if (n - i >= sizeof eight) {
            memcpy(&eight, t + i, sizeof eight);
            if (!(eight & 0x8080808080808080u)) {
                i += sizeof eight;
                continue;
            }
        }
        uint32_t length = lead_length(t[i]);
        if (length == 0 || length > n - i)
            return i;
        for (uint32_t k = 1; k < length; k++)
            if (!byte_continues(t + i, k, t[i + k]))
                return i;
        i += length;
    }
    return n;
}
