/* Encoding and decoding speed of a tokenizer on a text, one thread: MB/s of text, best of three.
 *
 *   bench_tokenizer TEXT PLACE...    PLACE: a model's folder, tokenizer.json, tokenizer.model, or a
 *                                    .gguf file; .zst files are read through zstd
 *
 * The text is repeated until it has 8 MB. */
#include "models/tokenizer_rules.h"
#include "runtime/base/clock.h"
#include "storage/gguf.h"
#include "tests/tokenizer_fixtures.h"

enum { TEXT_BYTES = 8000000, ROUNDS = 3 };

static cf_tokenizer *place_open(const char *path)
{
    cf_tokenizer *tok = NULL;
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_err err = {0};
    struct stat st;
    const cf_tokenizer_place folder = {.dir = path, .rules = &cf_tokenizer_rules_known};
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        if (cf_tokenizer_open(&folder, &tok, NULL, &err) < 0 || !tok)
            printf("%s: %s\n", path, err.msg[0] ? err.msg : "no tokenizer");
        return tok;
    }
    text_file f = slurp(path);
    int rc = f.data ? 0 : -ENOENT;
    if (rc == 0 && strstr(path, ".gguf")) {
        rc = cf_gguf_parse(&cat, &meta, 0, path, (const uint8_t *)f.data, f.n, f.n, &err);
        if (rc == 0)
            rc = cf_tokenizer_parse_gguf(meta, &cf_tokenizer_rules_known, path, &tok, &err);
    } else if (rc == 0 && strstr(path, ".model")) {
        rc = cf_tokenizer_parse_spm((const uint8_t *)f.data, f.n, path, &tok, &err);
    } else if (rc == 0) {
        rc = cf_tokenizer_parse(f.data, f.n, path, &tok, &err);
    }
    if (rc < 0)
        printf("%s: %s\n", path, f.data ? err.msg : "cannot be read");
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
    free(f.data);
    return tok;
}

/* MB/s of text, and the ids. */
static double encode_time(const cf_tokenizer *tok, const char *text, size_t bytes, int32_t *ids,
                          size_t *n)
{
    cf_err err = {0};
    uint64_t best = UINT64_MAX;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t begin = cf_clock_ns();
        if (cf_tokenizer_encode(tok, text, bytes, 0, ids, bytes + 16, n, &err) < 0) {
            printf("%s\n", err.msg);
            return 0;
        }
        uint64_t ns = cf_clock_ns() - begin;
        best = ns < best ? ns : best;
    }
    return (double)bytes / 1e6 / cf_seconds(best);
}

static double decode_time(const cf_tokenizer *tok, const int32_t *ids, size_t n, char *out,
                          size_t *shown)
{
    uint64_t best = UINT64_MAX;
    for (int round = 0; round < ROUNDS; round++) {
        cf_utf8_stream stream = cf_tokenizer_stream(tok);
        uint64_t begin = cf_clock_ns();
        *shown = 0;
        for (size_t i = 0; i < n; i++) {
            size_t bytes;
            const char *piece = cf_tokenizer_piece(tok, ids[i], &bytes);
            *shown += cf_utf8_push(&stream, piece, bytes, out, 3 * (bytes + 4));
        }
        uint64_t ns = cf_clock_ns() - begin;
        best = ns < best ? ns : best;
    }
    return (double)*shown / 1e6 / cf_seconds(best);
}

int main(int argc, char **argv)
{
    text_file words = argc > 2 ? slurp(argv[1]) : (text_file){0};
    if (!words.data) {
        printf("usage: bench_tokenizer TEXT PLACE...\n");
        return 2;
    }
    size_t n = 0, n_ids = 0, shown = 0;
    char *text = malloc(TEXT_BYTES + words.n), *out = malloc(1 << 20);
    int32_t *ids = malloc((TEXT_BYTES + words.n + 16) * sizeof *ids);
    for (; n < TEXT_BYTES; n += words.n)
        memcpy(text + n, words.data, words.n);
    printf("%zu bytes of %s\n", n, argv[1]);
    for (int i = 2; i < argc; i++) {
        uint64_t begin = cf_clock_ns();
        cf_tokenizer *tok = place_open(argv[i]);
        double opened = cf_seconds(cf_clock_ns() - begin);
        if (!tok)
            continue;
        double encoded = encode_time(tok, text, n, ids, &n_ids);
        double decoded = decode_time(tok, ids, n_ids, out, &shown);
        printf("%-72s encode %6.1f MB/s, decode %6.1f MB/s, %.2f bytes a token, opened in %.2f s, "
               "%.1f MiB\n",
               argv[i], encoded, decoded, (double)n / (double)n_ids, opened,
               (double)cf_tokenizer_memory(tok) / 1048576.0);
        cf_tokenizer_close(&tok);
    }
    free(words.data);
    free(text);
    free(out);
    free(ids);
    return 0;
}
