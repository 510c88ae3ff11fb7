/* Catches: a character cut in two between tokens and shown as rubbish, a byte that is lost or
 * shown twice, a bad byte that swallows the good one behind it, and bad UTF-8 that passes. */
#include "runtime/tokenizer.h"

#include <jansson.h>

#include "tests/check.h"

enum { OUT = 512 };

static size_t unhex(const char *hex, char *out)
{
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned byte;
        sscanf(hex + 2 * i, "%2x", &byte);
        out[i] = (char)byte;
    }
    return n;
}

/* The stream's output for `in` cut at the places of `cuts` (bit i: behind byte i). */
static size_t push_cut(const char *in, size_t n, uint64_t cuts, char *out)
{
    cf_utf8_stream s = {0};
    size_t at = 0, from = 0;
    for (size_t i = 0; i < n; i++) {
        if (i + 1 < n && !(cuts >> i & 1))
            continue;
        at += cf_utf8_push(&s, in + from, i + 1 - from, out + at, 3 * (i + 1 - from + 4));
        from = i + 1;
    }
    return at + cf_utf8_finish(&s, out + at, 3);
}

/* Every way to cut a short input, and every two places in a longer one. */
static void all_cuts(const char *in, size_t n, const char *want, size_t n_want, const char *id)
{
    char out[OUT];
    uint64_t last = n <= 12 ? 1u << (n ? n - 1 : 0) : n * n;
    for (uint64_t k = 0; k < last; k++) {
        uint64_t cuts = n <= 12 ? k : (uint64_t)1 << (k / n) | (uint64_t)1 << (k % n);
        size_t got = push_cut(in, n, cuts, out);
        if (got != n_want || memcmp(out, want, n_want) != 0) {
            printf("    %s cut at %llx gives other bytes\n", id, (unsigned long long)cuts);
            check_case_failed = true;
            return;
        }
    }
}

static void bad_bytes_at_all_cuts(void)
{
    FILE *f = fopen("tests/fixtures/tokenizers/bytes_in.jsonl", "r");
    char line[1024], in[64];
    size_t n_rows = 0;
    REQUIRE(f != NULL);
    while (fgets(line, sizeof line, f)) {
        json_t *row = json_loads(line, 0, NULL);
        const json_t *lossy = json_object_get(row, "lossy");
        size_t n = unhex(json_string_value(json_object_get(row, "hex")), in);
        CHECK(n > 0 && n < 64);
        all_cuts(in, n, json_string_value(lossy), json_string_length(lossy),
                 json_string_value(json_object_get(row, "id")));
        json_decref(row);
        n_rows++;
    }
    fclose(f);
    CHECK_INT(n_rows, 34);
}

static void good_text_at_all_cuts(void)
{
    static const char text[] = "a\xc3\xa9\xe5\xa5\xbd\xf0\x9f\x98\x80z";
    all_cuts(text, sizeof text - 1, text, sizeof text - 1, "good text");
    all_cuts("", 0, "", 0, "no text");
}

static void nothing_is_shown_early(void)
{
    cf_utf8_stream s = {0};
    char out[OUT];
    CHECK_INT(cf_utf8_push(&s, "\xf0", 1, out, 15), 0);
    CHECK_INT(cf_utf8_push(&s, "\x9f\x98", 2, out, 18), 0);
    CHECK_INT(s.n_held, 3);
    CHECK_INT(cf_utf8_push(&s, "\x80!", 2, out, 18), 5);
    CHECK(memcmp(out, "\xf0\x9f\x98\x80!", 5) == 0);
    CHECK_INT(s.n_held, 0);
    CHECK_INT(cf_utf8_finish(&s, out, 0), 0);
    CHECK_INT(cf_utf8_push(&s, "\xe5\xa5", 2, out, 18), 0);
    CHECK_INT(cf_utf8_finish(&s, out, 3), 3);
    CHECK(memcmp(out, "\xef\xbf\xbd", 3) == 0);
    CHECK_INT(cf_utf8_finish(&s, out, 0), 0);
}

/* By definition: a sequence is valid when it is the shortest form of a scalar value. */
static bool valid_by_definition(const unsigned char *b, size_t n)
{
    uint32_t c = n == 1 ? b[0] : b[0] & (0x7fu >> n);
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0},
                               mask[] = {0, 0x80, 0xe0, 0xf0, 0xf8};
    if ((b[0] & mask[n]) != (n == 1 ? 0 : lead[n]))
        return false;
    for (size_t i = 1; i < n; i++) {
        if ((b[i] & 0xc0) != 0x80)
            return false;
        c = c << 6 | (b[i] & 0x3fu);
    }
    return c >= least[n] && c <= 0x10ffff && !(c >= 0xd800 && c < 0xe000);
}

/* All sequences of up to three bytes, and the corners of four. */
static void invalid_by_definition(void)
{
    static const unsigned char corners[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0,
                                            0xbf, 0xc0, 0xc2, 0xed, 0xf0, 0xf4, 0xff};
    size_t wrong = 0;
    for (uint32_t v = 0; v < 1u << 24; v += v < 1u << 16 ? 1 : 7) {
        unsigned char b[3] = {(unsigned char)(v >> 16), (unsigned char)(v >> 8), (unsigned char)v};
        size_t at = 0, step;
        for (; at < 3; at += step) {
            for (step = 1; step <= 3 - at; step++)
                if (valid_by_definition(b + at, step))
                    break;
            if (step > 3 - at)
                break;
        }
        wrong += cf_utf8_invalid((const char *)b, 3) != at;
    }
    for (uint32_t v = 0; v < 256 * 14 * 14 * 14; v++) {
        unsigned char b[4] = {(unsigned char)(v & 255), corners[v / 256 % 14],
                              corners[v / 256 / 14 % 14], corners[v / 256 / 14 / 14]};
        bool four = valid_by_definition(b, 4);
        if (b[0] >= 0xf0)
            wrong += (cf_utf8_invalid((const char *)b, 4) == 4) != four;
    }
    CHECK_INT(wrong, 0);
}

static void invalid_offsets(void)
{
    char text[64];
    memset(text, 'x', sizeof text);
    for (size_t at = 0; at < sizeof text; at++) { /* behind the eight-byte strides as well */
        CHECK_INT(cf_utf8_invalid(text, at), at);
        text[at] = (char)0x80;
        CHECK_INT(cf_utf8_invalid(text, sizeof text), at);
        text[at] = 'x';
    }
    CHECK_INT(cf_utf8_invalid("ab\xe5\xa5", 4), 2);
    CHECK_INT(cf_utf8_invalid(NULL, 0), 0);
}

/* Random bytes: what comes out is UTF-8, whatever the cuts, and valid text comes out unchanged. */
static void random_bytes(void)
{
    uint64_t seed = 7;
    char in[40], out[OUT], whole[OUT];
    for (int round = 0; round < 20000; round++) {
        size_t n = (size_t)round % sizeof in;
        for (size_t i = 0; i < n; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            static const unsigned char pool[] = {0x41, 0x80, 0x9f, 0xbf, 0xc3, 0xe0,
                                                 0xa0, 0xed, 0xe5, 0xf0, 0xf4, 0x90};
            in[i] = (char)pool[(seed >> 40) % sizeof pool];
        }
        size_t n_whole = push_cut(in, n, 0, whole), n_out = push_cut(in, n, seed, out);
        CHECK(n_whole == n_out && memcmp(whole, out, n_out) == 0);
        CHECK_INT(cf_utf8_invalid(out, n_out), n_out);
        if (cf_utf8_invalid(in, n) == n)
            CHECK(n_out == n && memcmp(in, out, n) == 0);
    }
}

int main(void)
{
    RUN(bad_bytes_at_all_cuts);
    RUN(good_text_at_all_cuts);
    RUN(nothing_is_shown_early);
    RUN(invalid_by_definition);
    RUN(invalid_offsets);
    RUN(random_bytes);
    return check_done();
}
