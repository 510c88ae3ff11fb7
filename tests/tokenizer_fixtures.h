/* What the tokenizer's tests share: fixture files, and encoding and decoding with checks. */
#ifndef CF_TESTS_TOKENIZER_FIXTURES_H
#define CF_TESTS_TOKENIZER_FIXTURES_H

#include <jansson.h>
#include <sys/stat.h>

#include "runtime/tokenizer.h"
#include "tests/check.h"

#define FIXTURES "tests/fixtures/tokenizers"
#define REAL     "../shared/fixtures/tokenizers/real"

/* --- fixtures -------------------------------------------------------------------------------- */

typedef struct text_file {
    char *data;
    size_t n;
} text_file;

static inline bool file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

/* The whole file, or of a .zst what zstd gives; data NULL on failure. */
static inline text_file slurp(const char *path)
{
    text_file f = {0};
    char command[600];
    size_t n = strlen(path), size = 1 << 16, got;
    bool zst = n > 4 && strcmp(path + n - 4, ".zst") == 0;
    snprintf(command, sizeof command, "zstd -dcq -- '%s'", path);
    FILE *in = zst ? popen(command, "r") : fopen(path, "rb");
    if (!in)
        return f;
    f.data = malloc(size + 1);
    while (f.data && (got = fread(f.data + f.n, 1, size - f.n, in)) > 0) {
        f.n += got;
        if (f.n == size)
            f.data = realloc(f.data, (size *= 2) + 1);
    }
    f.data[f.n] = 0;
    if ((zst ? pclose(in) : fclose(in)) != 0 || f.n == 0) {
        free(f.data);
        return (text_file){0};
    }
    return f;
}

/* A .jsonl as an array, NULL when it is absent or bad. */
static inline json_t *rows_load(const char *path)
{
    text_file f = slurp(path);
    if (!f.data)
        return NULL;
    json_t *rows = json_array();
    for (char *line = f.data, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        json_t *row =
            json_loadb(line, end ? (size_t)(end - line) : strlen(line), JSON_ALLOW_NUL, NULL);
        if (!row || json_array_append_new(rows, row) != 0) {
            json_decref(rows);
            rows = NULL;
            break;
        }
        if (!end)
            break;
    }
    free(f.data);
    return rows;
}

/* The strings that every tokenizer is tried with. */
static json_t *all_strings, *all_bytes;

/* Says so where they are not there. */
static inline bool strings_load(void)
{
    all_strings = rows_load(FIXTURES "/strings.jsonl");
    all_bytes = rows_load(FIXTURES "/bytes_in.jsonl");
    if (!all_strings || !all_bytes)
        printf("tests/fixtures/tokenizers is not there: run from the repository root\n");
    return all_strings && all_bytes;
}

static inline int strings_done(void)
{
    json_decref(all_strings);
    json_decref(all_bytes);
    return check_done();
}

static inline const char *row_id(const json_t *row)
{
    return json_string_value(json_object_get(row, "id"));
}

/* The row of the same id, or NULL. */
static inline const json_t *row_find(const json_t *rows, const char *id)
{
    size_t i;
    const json_t *row;
    json_array_foreach((json_t *)rows, i, row) if (strcmp(row_id(row), id) == 0) return row;
    return NULL;
}

static inline cf_tokenizer *open_json(const char *path)
{
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    text_file f = slurp(path);
    if (!f.data || cf_tokenizer_parse(f.data, f.n, path, &tok, &err) < 0)
        printf("    %s: %s\n", path, f.data ? err.msg : "cannot be read");
    free(f.data);
    return tok;
}

typedef struct id_list {
    int32_t *ids;
    size_t n;
} id_list;

static inline id_list encode(const cf_tokenizer *tok, const char *text, size_t bytes, int flags)
{
    id_list l = {.ids = malloc((bytes + 32) * sizeof *l.ids)};
    cf_err err = {0};
    if (cf_tokenizer_encode(tok, text, bytes, flags, l.ids, bytes + 32, &l.n, &err) < 0) {
        printf("    encode: %s\n", err.msg);
        check_case_failed = true;
        l.n = 0;
    }
    CHECK(l.n <= bytes + 32);
    return l;
}

static inline bool ids_equal(const json_t *want, const int32_t *ids, size_t n)
{
    if (json_array_size(want) != n)
        return false;
    for (size_t i = 0; i < n; i++)
        if (json_integer_value(json_array_get(want, i)) != ids[i])
            return false;
    return true;
}

static inline void ids_compare(const char *what, const char *row, const json_t *want, id_list got)
{
    if (ids_equal(want, got.ids, got.n))
        return;
    check_case_failed = true;
    char *text = json_dumps(want, JSON_COMPACT);
    printf("    %s %s: expected %.300s, got", what, row, text);
    for (size_t i = 0; i < got.n && i < 60; i++)
        printf(" %d", got.ids[i]);
    printf("\n");
    free(text);
}

/* Room for n bytes more and a NUL, doubling: a realloc a token is quadratic under a sanitizer. */
static inline void text_reserve(text_file *f, size_t *size, size_t n)
{
    while (f->n + n + 1 > *size)
        f->data = realloc(f->data, *size *= 2);
}

/* Bytes of ids, special ones left out where asked for. */
static inline text_file decode(const cf_tokenizer *tok, const int32_t *ids, size_t n,
                               bool skip_special)
{
    size_t size = 64;
    text_file f = {.data = malloc(size)};
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = cf_tokenizer_piece(tok, ids[i], &bytes);
        if (skip_special && cf_tokenizer_is_special(tok, ids[i]))
            continue;
        text_reserve(&f, &size, bytes);
        memcpy(f.data + f.n, piece, bytes);
        f.n += bytes;
    }
    f.data[f.n] = 0;
    return f;
}

/* What a user sees of the ids: token by token through the stream. */
static inline text_file stream(const cf_tokenizer *tok, const int32_t *ids, size_t n,
                               bool skip_special)
{
    size_t size = 64;
    text_file f = {.data = malloc(size)};
    cf_utf8_stream s = {0};
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = cf_tokenizer_piece(tok, ids[i], &bytes);
        if (skip_special && cf_tokenizer_is_special(tok, ids[i]))
            continue;
        text_reserve(&f, &size, 3 * (bytes + 4) + 3);
        f.n += cf_utf8_push(&s, piece, bytes, f.data + f.n, 3 * (bytes + 4));
    }
    f.n += cf_utf8_finish(&s, f.data + f.n, 3);
    f.data[f.n] = 0;
    return f;
}

static inline bool same_text(text_file f, const json_t *want)
{
    return f.n == json_string_length(want) && memcmp(f.data, json_string_value(want), f.n) == 0;
}

static inline id_list ids_of(const json_t *array)
{
    id_list l = {.n = json_array_size(array)};
    l.ids = malloc((l.n + 1) * sizeof *l.ids);
    for (size_t i = 0; i < l.n; i++)
        l.ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return l;
}

#endif
