/* Catches: an id that depends on the form a vocabulary comes in: SentencePiece models, rank files,
 * GGUF metadata and the tokenizer.json of either, against the ids of the libraries that wrote them;
 * a normaliser, a score or a byte token that is read wrongly; a text that does not come back; the
 * wrong file of a folder; a damaged file that is not refused. */
#include "runtime/tokenizer_parts.h"

#include <unistd.h>

#include "models/tokenizer_rules.h"
#include "storage/gguf.h"
#include "tests/support/tmpfiles.h"
#include "tests/tokenizer_fixtures.h"

static json_t *all_strings, *all_bytes;

/* --- opening --------------------------------------------------------------------------------- */

static cf_tokenizer *open_any(const char *path)
{
    cf_tokenizer *tok = NULL;
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_err err = {0};
    text_file f = slurp(path);
    int rc = f.data ? 0 : -ENOENT;
    const char *name = strrchr(path, '/') + 1;
    if (rc == 0 && strstr(name, ".json")) {
        rc = cf_tokenizer_parse(f.data, f.n, path, &tok, &err);
    } else if (rc == 0 && strstr(name, "tokenizer.model")) {
        rc = cf_tokenizer_parse_spm((const uint8_t *)f.data, f.n, path, &tok, &err);
    } else if (rc == 0 && strstr(name, ".gguf")) {
        rc = cf_gguf_parse(&cat, &meta, 0, path, (const uint8_t *)f.data, f.n, f.n, &err);
        if (rc == 0)
            rc = cf_tokenizer_parse_gguf(meta, &cf_tokenizer_rules_known, path, &tok, &err);
        cf_gguf_close(&meta);
        cf_catalogue_close(&cat);
    }
    if (rc < 0)
        printf("    %s: %s\n", path, f.data ? err.msg : "cannot be read");
    free(f.data);
    return tok;
}

/* --- texts ----------------------------------------------------------------------------------- */

/* As a user sees a text from its beginning. */
static text_file shown(const cf_tokenizer *tok, id_list l, bool skip_special)
{
    size_t size = 64;
    text_file f = {.data = malloc(size)};
    cf_utf8_stream s = cf_tokenizer_stream(tok);
    bool first = true;
    for (size_t i = 0; i < l.n; i++) {
        size_t bytes;
        if (skip_special && cf_tokenizer_is_special(tok, l.ids[i]))
            continue;
        const char *piece = first ? cf_tokenizer_piece_first(tok, l.ids[i], &bytes)
                                  : cf_tokenizer_piece(tok, l.ids[i], &bytes);
        first = false;
        text_reserve(&f, &size, 3 * (bytes + 4) + 9);
        f.n += cf_utf8_push(&s, piece, bytes, f.data + f.n, 3 * (bytes + 4));
    }
    f.n += cf_utf8_finish(&s, f.data + f.n, 9);
    f.data[f.n] = 0;
    return f;
}

static void shown_compare(const cf_tokenizer *tok, const json_t *row, const char *ids_key,
                          const char *key, bool skip)
{
    const json_t *want = json_object_get(row, key);
    id_list l = ids_of(json_object_get(row, ids_key));
    text_file seen = shown(tok, l, skip);
    if (want && !same_text(seen, want)) {
        printf("    %s of %s: got \"%s\", expected \"%s\"\n", key, row_id(row), seen.data,
               json_string_value(want));
        check_case_failed = true;
    }
    free(seen.data);
    free(l.ids);
}

enum {
    WITH_PREFIX = 1, /* ids_special too */
    DECODED = 2,     /* the texts of ids */
    AS_SPM = 4,      /* the ids of sentencepiece, special tokens plain text; its texts */
    NO_NFC = 8       /* not where normalising would matter */
};

/* What stands behind a text (an end of sequence) is not put: a prompt goes on. */
static void without_end(json_t *ids, const json_t *plain)
{
    size_t n = json_array_size(ids);
    if (n == json_array_size(plain) + 1 &&
        json_integer_value(json_array_get(ids, 0)) == json_integer_value(json_array_get(plain, 0)))
        json_array_remove(ids, n - 1);
    else if (n == 1)
        json_array_clear(ids);
}

static void vectors_check(const cf_tokenizer *tok, const char *folder, const char *file, int what)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    json_t *rows = rows_load(path);
    REQUIRE(rows != NULL && json_array_size(rows) >= json_array_size(all_strings));
    size_t i, n_same = 0;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        const json_t *text = json_object_get(row, "text");
        if (!text)
            text = json_object_get(row_find(all_strings, row_id(row)), "text");
        const char *t = json_string_value(text), *key = what & AS_SPM ? "spm" : "ids";
        size_t n = json_string_length(text);
        const json_t *want = json_object_get(row, key);
        REQUIRE(want != NULL);
        n_same += json_equal(want, json_object_get(row, "ids")) != 0;
        id_list got = encode(tok, t, n, what & AS_SPM ? 0 : CF_TOK_PARSE_SPECIAL);
        ids_compare(key, row_id(row), want, got);
        free(got.ids);
        if (what & WITH_PREFIX) {
            json_t *special = json_object_get(row, "ids_special");
            if (!tok->n_prefix)
                without_end(special, json_object_get(row, "ids"));
            got = encode(tok, t, n, CF_TOK_PARSE_SPECIAL | CF_TOK_ADD_PREFIX);
            ids_compare("ids_special", row_id(row), special, got);
            free(got.ids);
        }
        if ((what & DECODED) && !(what & AS_SPM)) {
            shown_compare(tok, row, "ids", "decoded", false);
            shown_compare(tok, row, "ids_special", "decoded_skip", true);
        }
        /* sentencepiece writes U+2047 for what it does not know. */
        const char *back = json_string_value(json_object_get(row, "spm_decoded"));
        if ((what & DECODED) && (what & AS_SPM) && back && !strstr(back, "\xe2\x81\x87"))
            shown_compare(tok, row, "spm", "spm_decoded", true);
    }
    CHECK(n_same > json_array_size(rows) / 2);
    json_decref(rows);
}

/* sentencepiece shows no control piece. */
static void decode_check(const cf_tokenizer *tok, const char *folder, const char *key)
{
    char path[512];
    snprintf(path, sizeof path, "%s/decode.jsonl", folder);
    json_t *rows = rows_load(path);
    REQUIRE(rows != NULL && json_array_size(rows) > 80);
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row)
    {
        const char *want = json_string_value(json_object_get(row, key));
        if (want && !strstr(want, "\xe2\x81\x87"))
            shown_compare(tok, row, "ids", key, true);
    }
    json_decref(rows);
}

static void bytes_check(const cf_tokenizer *tok, const char *folder, const char *key, int flags)
{
    char path[512];
    snprintf(path, sizeof path, "%s/bytes.jsonl", folder);
    json_t *rows = rows_load(path);
    REQUIRE(rows != NULL && json_array_size(rows) == json_array_size(all_bytes));
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row)
    {
        const json_t *text = json_object_get(row_find(all_bytes, row_id(row)), "lossy");
        const json_t *want = json_object_get(row, key);
        REQUIRE(want != NULL);
        id_list got = encode(tok, json_string_value(text), json_string_length(text), flags);
        ids_compare(key, row_id(row), want, got);
        free(got.ids);
    }
    json_decref(rows);
}

/* --- tokenizer.json of SentencePiece kinds, and their models ---------------------------------- */

static void json_check(const char *folder, const char *file, const char *vectors, bool more)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    if (!file_exists(path))
        SKIP("%s is not there", path);
    cf_tokenizer *tok = open_any(path);
    REQUIRE(tok != NULL);
    vectors_check(tok, folder, vectors, WITH_PREFIX | DECODED);
    snprintf(path, sizeof path, "%s/bytes.jsonl", folder);
    if (more && file_exists(path))
        bytes_check(tok, folder, "ids", CF_TOK_PARSE_SPECIAL);
    cf_tokenizer_close(&tok);
}

static void model_check(const char *folder, const char *file)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    if (!file_exists(path))
        SKIP("%s is not there", path);
    cf_tokenizer *tok = open_any(path);
    REQUIRE(tok != NULL);
    vectors_check(tok, folder, "vectors.jsonl", AS_SPM | DECODED);
    bytes_check(tok, folder, "spm_lossy", 0);
    snprintf(path, sizeof path, "%s/decode.jsonl", folder);
    if (file_exists(path))
        decode_check(tok, folder, "spm_text");
    cf_tokenizer_close(&tok);
}

static void test_pieces(void)
{
    static const struct {
        const char *folder, *end;
        bool metaspace, model;
    } kinds[] = {{FIXTURES "/tiny/spm-bpe", "", true, true},
                 {FIXTURES "/tiny/spm-unigram", "", false, true},
                 {FIXTURES "/tiny/spm-unigram-bytes", "", false, true},
                 {REAL "/mixtral-v1", ".zst", false, true},
                 {REAL "/mistral-v3", ".zst", true, true},
                 {REAL "/t5", ".zst", false, false}};
    char name[128], file[64];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const char *short_name = strrchr(kinds[i].folder, '/') + 1;
        snprintf(name, sizeof name, "%s, json", short_name);
        snprintf(file, sizeof file, "tokenizer.json%s", kinds[i].end);
        RUN_NAMED(name, json_check(kinds[i].folder, file, "vectors.jsonl", true));
        snprintf(name, sizeof name, "%s, Metaspace", short_name);
        snprintf(file, sizeof file, "tokenizer.metaspace.json%s", kinds[i].end);
        if (kinds[i].metaspace)
            RUN_NAMED(name, json_check(kinds[i].folder, file, "vectors.metaspace.jsonl", false));
        snprintf(name, sizeof name, "%s, model", short_name);
        snprintf(file, sizeof file, "tokenizer.model%s", kinds[i].end);
        if (kinds[i].model)
            RUN_NAMED(name, model_check(kinds[i].folder, file));
    }
}

int main(void)
{
    all_strings = rows_load(FIXTURES "/strings.jsonl");
    all_bytes = rows_load(FIXTURES "/bytes_in.jsonl");
    if (!all_strings || !all_bytes) {
        printf("tests/fixtures/tokenizers is not there: run from the repository root\n");
        return 1;
    }
    test_pieces();
    json_decref(all_strings);
    json_decref(all_bytes);
    return check_done();
}
