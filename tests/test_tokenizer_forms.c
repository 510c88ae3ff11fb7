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
    USER_FIRST = 8,
    AS_SPM = 4 /* the ids of sentencepiece, special tokens plain text; its texts */
};

/* What stands behind a text (an end of sequence) is not put: a prompt goes on. */
static void without_end(json_t *ids, const json_t *plain)
{
    size_t n = json_array_size(plain);
    bool begins = json_array_size(ids) == n + 1;
    for (size_t i = 0; begins && i < n; i++)
        begins = json_equal(json_array_get(ids, i), json_array_get(plain, i));
    if (begins)
        json_array_remove(ids, n);
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
        /* A user's piece in the text: sentencepiece cuts it out of the normalised text, readers of
         * GGUF files before, as the tokenizers library does. */
        if ((what & USER_FIRST) && strstr(t, "<extra_id_"))
            want = json_object_get(row, "ids");
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

/* --- GGUF ------------------------------------------------------------------------------------- */

/* llama.cpp's own vectors. */
static void llamacpp_check(const cf_tokenizer *tok, const char *folder)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[512];
    size_t n_texts = 0;
    snprintf(path, sizeof path, "%s/llamacpp.inp", folder);
    text_file in = slurp(path);
    snprintf(path, sizeof path, "%s/llamacpp.out", folder);
    text_file out = slurp(path);
    REQUIRE(in.data != NULL && out.data != NULL);
    char *line = out.data;
    for (char *text = in.data, *end; *line; text = end + sizeof mark - 1) {
        char *next = strchr(line, '\n');
        json_t *want = json_array();
        end = strstr(text, mark);
        for (char *p = line, *q; p < next; p = q) {
            long id = strtol(p, &q, 10);
            if (q == p || q > next)
                break;
            json_array_append_new(want, json_integer(id));
        }
        id_list got =
            encode(tok, text, end ? (size_t)(end - text) : strlen(text), CF_TOK_PARSE_SPECIAL);
        snprintf(path, sizeof path, "text %zu", n_texts++);
        ids_compare("llamacpp", path, want, got);
        json_decref(want);
        free(got.ids);
        line = next + 1;
        if (!end)
            break;
    }
    CHECK(n_texts > 40);
    free(in.data);
    free(out.data);
}

static void gguf_check(const char *folder, const char *file, int what)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    if (!file_exists(path))
        SKIP("%s is not there", path);
    cf_tokenizer *tok = open_any(path);
    REQUIRE(tok != NULL);
    snprintf(path, sizeof path, "%s/llamacpp.inp", folder);
    if (file_exists(path))
        llamacpp_check(tok, folder);
    snprintf(path, sizeof path, "%s/vectors.jsonl", folder);
    if (file_exists(path))
        vectors_check(tok, folder, "vectors.jsonl", what);
    if (what & AS_SPM)
        bytes_check(tok, folder, "spm_lossy", 0);
    cf_tokenizer_close(&tok);
}

#define TINY "../shared/fixtures/tokenizers/tiny"

static void test_gguf(void)
{
    static const struct {
        const char *folder, *file;
        int what;
    } kinds[] = {
        {TINY "/bailing", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/cl100k-dbrx", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/deepseek-llm", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/deepseek-v3", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/glm4", "vocab.gguf", DECODED}, /* two tokens in front: no key says so */
        {TINY "/gpt2", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/gptneox-nfc", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/kimi-k2", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/llama3", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/longcat", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/minimax-m2", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/o200k-harmony", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/qwen2", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/qwen35", "vocab.gguf", WITH_PREFIX | DECODED},
        {TINY "/spm-bpe", "vocab.gguf", AS_SPM | DECODED},
        {TINY "/spm-unigram", "vocab.gguf", AS_SPM | USER_FIRST | DECODED},
        {TINY "/spm-unigram-bytes", "vocab.gguf", AS_SPM | DECODED},
        {REAL "/deepseek-llm", "ggml-vocab-deepseek-llm.gguf.zst", WITH_PREFIX},
        {REAL "/gpt-neox", "ggml-vocab-gpt-neox.gguf.zst", WITH_PREFIX | DECODED},
        {REAL "/gpt2", "ggml-vocab-gpt-2.gguf.zst", WITH_PREFIX | DECODED},
        {REAL "/phi-3", "ggml-vocab-phi-3.gguf.zst", 0},
    };
    char name[128];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(name, sizeof name, "%s, gguf", strrchr(kinds[i].folder, '/') + 1);
        RUN_NAMED(name, gguf_check(kinds[i].folder, kinds[i].file, kinds[i].what));
    }
}

/* The toy vocabularies of the model fixtures, beside their models. */
static void toy_check(const char *model)
{
    char path[256];
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    snprintf(path, sizeof path, "../shared/fixtures/gguf/%s.json", model);
    json_t *about = json_load_file(path, 0, NULL);
    if (!about)
        SKIP("%s is not there", path);
    snprintf(path, sizeof path, "../shared/fixtures/gguf/%s.gguf", model);
    const json_t *cases = json_object_get(about, "tokenize"), *one;
    size_t i;
    CHECK_INT(cf_gguf_open(path, &cat, &meta, &err), 0);
    CHECK_INT(cf_tokenizer_parse_gguf(meta, &cf_tokenizer_rules_known, path, &tok, &err), 0);
    CHECK_STR(err.msg, "");
    if (tok) {
        CHECK(!cases || json_array_size(cases) > 5); /* one model has the vocabulary of another */
        CHECK_INT(cf_tokenizer_adds_bos(tok), json_is_true(json_object_get(about, "add_bos")));
        json_array_foreach((json_t *)cases, i, one)
        {
            const json_t *text = json_object_get(one, "text");
            id_list got = encode(tok, json_string_value(text), json_string_length(text), 0);
            ids_compare("tokenize", json_string_value(text), json_object_get(one, "ids"), got);
            text_file back = shown(tok, got, false);
            CHECK(same_text(back, text));
            free(back.data);
            free(got.ids);
        }
    }
    cf_tokenizer_close(&tok);
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
    json_decref(about);
}

static void test_toys(void)
{
    static const char *const names[] = {"longcat_flash-f32",  "longcat_flash-q8_0-q4_k",
                                        "longcat_ngram-q8_0", "longcat_ngram-tables-q8_0",
                                        "qwen3_moe-q4_k_m",   "olmoe-q2_k-q3_k",
                                        "mixtral-iq4"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        RUN_NAMED(names[i], toy_check(names[i]));
}

/* --- rank files: in a folder, with the special tokens of tokenizer_config.json ---------------- */

/* The added tokens of a tokenizer.json as tokenizer_config.json has them. */
static void config_write(const tmp_dir *dir, const char *json_path, const char *class)
{
    text_file f = slurp(json_path);
    json_t *root = json_loadb(f.data, f.n, 0, NULL), *table = json_object(), *item;
    size_t i;
    json_array_foreach(json_object_get(root, "added_tokens"), i, item)
    {
        char id[24];
        snprintf(id, sizeof id, "%lld", (long long)json_integer_value(json_object_get(item, "id")));
        json_object_set(table, id, item);
    }
    json_t *config =
        json_pack("{s:o,s:s}", "added_tokens_decoder", table, "tokenizer_class", class);
    char *text = json_dumps(config, 0);
    tmp_write(tmp_path(dir, "tokenizer_config.json"), text, strlen(text));
    free(text);
    json_decref(config);
    json_decref(root);
    free(f.data);
}

static void ranks_check(const char *folder, const char *json, const char *file, const char *as)
{
    char path[512], name[CF_TOKENIZER_NAME_BYTES];
    tmp_dir dir;
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, file);
    if (!file_exists(path))
        SKIP("%s is not there", path);
    tmp_dir_init(&dir);
    text_file f = slurp(path);
    tmp_write(tmp_path(&dir, as), f.data, f.n);
    snprintf(path, sizeof path, "%s/%s", folder, json);
    config_write(&dir, path, "TikTokenTokenizer");
    const cf_tokenizer_place place = {.dir = dir.path, .rules = &cf_tokenizer_rules_known};
    CHECK(cf_tokenizer_exists(&place));
    CHECK_INT(cf_tokenizer_open(&place, &tok, name, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK_HAS(name, as);
    if (tok)
        vectors_check(tok, folder, "vectors.jsonl", DECODED);
    cf_tokenizer_close(&tok);
    free(f.data);
    tmp_dir_finish(&dir);
}

static void test_ranks(void)
{
    static const struct {
        const char *folder, *json, *file, *as;
    } kinds[] = {
        {FIXTURES "/tiny/kimi-k2", "tokenizer.json", "tiktoken.model", "tiktoken.model"},
        {REAL "/qwen3", "tokenizer.json.zst", "qwen.tiktoken.zst", "qwen.tiktoken"},
        {REAL "/gpt-oss", "tokenizer.json.zst", "o200k_base.tiktoken.zst", "o200k_base.tiktoken"},
        {REAL "/dbrx", "tokenizer.json.zst", "cl100k_base.tiktoken.zst", "cl100k_base.tiktoken"}};
    char name[128];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(name, sizeof name, "%s, ranks", strrchr(kinds[i].folder, '/') + 1);
        RUN_NAMED(name, ranks_check(kinds[i].folder, kinds[i].json, kinds[i].file, kinds[i].as));
    }
}

/* --- tokens in a list, byte by byte ------------------------------------------------------------ */

static json_t *bytes_json(const char *bytes, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer((unsigned char)bytes[i]));
    return list;
}

/* The tokens of a rank file, and added tokens, as such a list. */
static json_t *list_make(const cf_tokenizer *ranks, const json_t *added)
{
    json_t *regular = json_array(), *special = json_array(), *item;
    size_t i, n;
    for (int32_t id = 0; id < ranks->vocab.n; id++) {
        const char *bytes = tok_vocab_bytes(&ranks->vocab, id, &n);
        if (ranks->vocab.tokens[id].flags & TOK_USED)
            json_array_append_new(regular, json_pack("{s:o, s:i}", "bytes", bytes_json(bytes, n),
                                                     "token", (int)id));
    }
    json_array_foreach((json_t *)added, i, item)
    {
        const json_t *text = json_object_get(item, "content");
        json_t *bytes = bytes_json(json_string_value(text), json_string_length(text));
        json_array_append_new(special, json_pack("{s:o, s:O}", "bytes", bytes, "token",
                                                 json_object_get(item, "id")));
    }
    return json_pack("{s:o, s:o, s:s}", "regular_tokens", regular, "special_tokens", special,
                     "word_split", "V1");
}

static cf_tokenizer *list_open(const json_t *list, const char *why)
{
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    char *text = json_dumps(list, JSON_COMPACT);
    int rc = cf_tokenizer_parse_list(text, strlen(text), &cf_tokenizer_rules_known, "l", &tok,
                                     &err);
    CHECK_INT(rc < 0, why[0] != 0);
    CHECK_HAS(err.msg, why);
    CHECK(rc == 0 || (!tok && err.code == rc));
    free(text);
    return tok;
}

/* With the pattern in the file: the ids of the library. With the name of one: those of the same
 * tokens in a rank file, split by that rule. */
static void lists_and_ranks(void)
{
    const char *folder = FIXTURES "/tiny/kimi-k2";
    const cf_tokenizer_rule *rule = tok_rule_find(&cf_tokenizer_rules_known, "kimi-k2", 7);
    cf_tokenizer *ranks = NULL, *tok = NULL;
    cf_err err = {0};
    text_file f = slurp(FIXTURES "/tiny/kimi-k2/tiktoken.model");
    text_file j = slurp(FIXTURES "/tiny/kimi-k2/tokenizer.json");
    REQUIRE(f.data && j.data && rule);
    CHECK_INT(cf_tokenizer_parse_ranks(f.data, f.n, "word-split-V1", &cf_tokenizer_rules_known, "r",
                                       &ranks, &err),
              0);
    json_t *root = json_loadb(j.data, j.n, 0, NULL);
    REQUIRE(ranks && root);
    json_t *list = list_make(ranks, json_object_get(root, "added_tokens"));
    tok = list_open(list, "");
    REQUIRE(tok);
    size_t i;
    json_t *row;
    json_array_foreach(all_strings, i, row)
    {
        const json_t *text = json_object_get(row, "text");
        size_t n = json_string_length(text);
        id_list want = encode(ranks, json_string_value(text), n, 0);
        id_list got = encode(tok, json_string_value(text), n, 0);
        CHECK(want.n == got.n && memcmp(want.ids, got.ids, want.n * sizeof *want.ids) == 0);
        free(want.ids);
        free(got.ids);
    }
    cf_tokenizer_close(&tok);
    json_object_set_new(list, "word_split", json_string("V9"));
    tok = list_open(list, "");
    REQUIRE(tok);
    CHECK_HAS(cf_tokenizer_refusal(tok),
              "word_split \"V9\" is not known, so no text can be encoded");
    CHECK_HAS(cf_tokenizer_refusal(tok), "known are V1"); /* and no rule of another kind of file */
    CHECK(!strstr(cf_tokenizer_refusal(tok), "gpt"));
    cf_tokenizer_close(&tok);
    json_object_set_new(list, "pat_str", json_string(rule->patterns[0]));
    json_object_set_new(list, "vocab_size", json_integer(1412));
    tmp_dir dir;
    tmp_dir_init(&dir);
    char *text = json_dumps(list, 0), name[CF_TOKENIZER_NAME_BYTES];
    tmp_write(tmp_path(&dir, "tokenizer.tok.json"), text, strlen(text));
    const cf_tokenizer_place place = {.dir = dir.path, .rules = &cf_tokenizer_rules_known};
    CHECK(cf_tokenizer_exists(&place));
    CHECK_INT(cf_tokenizer_open(&place, &tok, name, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK_HAS(name, "tokenizer.tok.json");
    if (tok)
        vectors_check(tok, folder, "vectors.jsonl", DECODED);
    cf_tokenizer_close(&tok);
    cf_tokenizer_close(&ranks);
    tmp_dir_finish(&dir);
    free(text);
    free(f.data);
    free(j.data);
    json_decref(list);
    json_decref(root);
}

static void damaged_lists(void)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"[]", "word_split is not a name"},
        {"{'word_split':7}", "word_split is not a name"},
        {"{'word_split':'V1'}", "regular_tokens is not a list"},
        {"{'word_split':'V1','regular_tokens':[]}", "l has no token"},
        {"{'word_split':'V1','regular_tokens':[7]}", "regular_tokens[0].token is not an id"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':[1],'token':2097152}]}", "is not an id"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':[1],'token':-1}]}", "is not an id"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':[],'token':0}]}", "not a list of bytes"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':7,'token':0}]}", "not a list of bytes"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':[1,256],'token':0}]}",
         "regular_tokens[0].bytes[1] is not a byte"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':[1],'token':0},{'bytes':[2],'token':0}]}",
         "regular_tokens[1] has id 0, which another token has"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':[1],'token':0}]}",
         "special_tokens is not a list"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':[1],'token':0}],"
         "'special_tokens':[{'bytes':[255],'token':1}]}",
         "special_tokens[0].bytes is not UTF-8"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':[1],'token':0}],"
         "'special_tokens':[{'bytes':[65],'token':0}]}",
         "special_tokens[0] has id 0"},
        {"{'word_split':'V1','regular_tokens':[{'bytes':[1],'token':0}],'special_tokens':[],"
         "'vocab_size':9}",
         "vocab_size is 9, the highest id is 0"},
        {"{'word_split':'V1','pat_str':'(','regular_tokens':[{'bytes':[1],'token':0}]}", "l: "}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[300];
        snprintf(text, sizeof text, "%s", cases[i].text);
        for (char *c = text; *c; c++)
            *c = *c == '\'' ? '"' : *c;
        json_t *list = json_loads(text, 0, NULL);
        REQUIRE(list != NULL);
        CHECK(list_open(list, cases[i].why) == NULL);
        json_decref(list);
    }
}

/* --- a folder --------------------------------------------------------------------------------- */

static void put_fixture(const tmp_dir *dir, const char *from, const char *name)
{
    text_file f = slurp(from);
    if (f.data)
        tmp_write(tmp_path(dir, name), f.data, f.n);
    CHECK(f.data != NULL);
    free(f.data);
}

/* The size of the vocabulary that is taken; -1: there is none, -2: it is refused. */
static int64_t taken(const tmp_dir *dir, const char *name_part, cf_err *err)
{
    char name[CF_TOKENIZER_NAME_BYTES];
    cf_tokenizer *tok = NULL;
    size_t none;
    const cf_tokenizer_place place = {.dir = dir->path, .rules = &cf_tokenizer_rules_known};
    *err = (cf_err){0};
    int rc = cf_tokenizer_open(&place, &tok, name, err);
    int64_t n = rc < 0 ? -2 : tok ? cf_tokenizer_vocab_size(tok) : -1;
    if (n >= 0)
        CHECK_HAS(name, name_part);
    if (n >= 0 && cf_tokenizer_refusal(tok)) /* which is what encoding says */
        CHECK_INT(cf_tokenizer_encode(tok, "x", 1, 0, NULL, 0, &none, err), CF_EFORMAT);
    CHECK(cf_tokenizer_exists(&place) == (n != -1));
    cf_tokenizer_close(&tok);
    return n;
}

static void first_there_is(void)
{
    tmp_dir dir;
    cf_err err;
    tmp_dir_init(&dir);
    CHECK_INT(taken(&dir, "", &err), -1);
    put_fixture(&dir, FIXTURES "/tiny/kimi-k2/tiktoken.model", "a.tiktoken");
    CHECK_INT(taken(&dir, "a.tiktoken", &err), 1400);
    CHECK_HAS(err.msg,
              "\"a\" is not known, so no text can be encoded: give token ids (--ids); known "
              "are gpt-2, olmo, ");
    put_fixture(&dir, FIXTURES "/tiny/kimi-k2/tiktoken.model", "o200k_base.tiktoken");
    CHECK_INT(taken(&dir, "", &err), -2);
    CHECK_HAS(err.msg, "more than one rank file");
    unlink(tmp_path(&dir, "a.tiktoken"));
    CHECK_INT(taken(&dir, "o200k_base.tiktoken", &err), 1400);
    put_fixture(&dir, FIXTURES "/tiny/spm-bpe/tokenizer.model", "tokenizer.model");
    CHECK_INT(taken(&dir, "tokenizer.model", &err), 2000);
    put_fixture(&dir, FIXTURES "/tiny/gpt2/tokenizer.json", "tokenizer.json");
    CHECK_INT(taken(&dir, "tokenizer.json", &err), 1401);
    tmp_write(tmp_path(&dir, "tokenizer.json"), "{", 1);
    CHECK_INT(taken(&dir, "", &err), -2); /* what is there first and bad is not passed over */
    CHECK_HAS(err.msg, "tokenizer.json: line 1");
    tmp_dir_finish(&dir);
}

/* <s> in front is the model's own custom, unless the configuration says otherwise. */
static void config_decides_on_bos(void)
{
    tmp_dir dir;
    cf_err err = {0};
    cf_tokenizer *tok = NULL;
    tmp_dir_init(&dir);
    put_fixture(&dir, FIXTURES "/tiny/spm-bpe/tokenizer.model", "tokenizer.model");
    const cf_tokenizer_place place = {.dir = dir.path, .rules = &cf_tokenizer_rules_known};
    static const struct {
        const char *config;
        bool adds;
    } cases[] = {{"{}", true},
                 {"{\"add_bos_token\":false}", false},
                 {"{\"add_bos_token\":true,\"bos_token\":\"<s>\"}", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tmp_write(tmp_path(&dir, "tokenizer_config.json"), cases[i].config,
                  strlen(cases[i].config));
        CHECK_INT(cf_tokenizer_open(&place, &tok, NULL, &err), 0);
        CHECK(tok && cf_tokenizer_adds_bos(tok) == cases[i].adds);
        cf_tokenizer_close(&tok);
    }
    tmp_dir_finish(&dir);
}

/* A text of a user's never becomes a control token, in no form. */
static void plain_text_stays_plain(void)
{
    static const char *const paths[] = {
        FIXTURES "/tiny/spm-bpe/tokenizer.json", FIXTURES "/tiny/spm-bpe/tokenizer.model",
        FIXTURES "/tiny/spm-unigram/tokenizer.json", FIXTURES "/tiny/spm-unigram/tokenizer.model"};
    /* The last in letters that the normaliser makes plain ones of. */
    static const char text[] = "<s>a</s> <unk><pad> \xef\xbc\x9c/s\xef\xbc\x9e";
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        cf_tokenizer *tok = open_any(paths[i]);
        REQUIRE(tok != NULL);
        int32_t end = cf_tokenizer_find(tok, "</s>");
        CHECK(end > 0 && cf_tokenizer_is_special(tok, end));
        id_list got = encode(tok, text, sizeof text - 1, 0);
        for (size_t k = 0; k < got.n; k++)
            CHECK(got.ids[k] != end && got.ids[k] != cf_tokenizer_find(tok, "<s>"));
        free(got.ids);
        cf_tokenizer_close(&tok);
    }
}

/* --- damaged files -----------------------------------------------------------------------------
 */

static void spm_refused(const char *bytes, size_t n, const char *part)
{
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    CHECK_INT(cf_tokenizer_parse_spm((const uint8_t *)bytes, n, "m", &tok, &err), CF_EFORMAT);
    CHECK(tok == NULL);
    CHECK_HAS(err.msg, part);
}

static void damaged_models(void)
{
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    spm_refused("", 0, "m is not a SentencePiece model: it has no pieces");
    spm_refused("\x0a\x05\x0a", 3, "m: the field at byte 0 is cut off");
    spm_refused("\x0a\x03\x0a\x07x", 5, "the piece at byte 2 is cut off");
    spm_refused("\x0a\x05\x0a\x01x\x18\x09", 7, "piece 0 is of type 9");
    spm_refused("\x0a\x05\x0a\x01x\x18\x06", 7, "token 0 (\"x\") is a byte");
    spm_refused("\x0a\x03\x0a\x01\xff", 5, "token 0 (\"\\xff\") is not UTF-8");
    spm_refused("\x0a\x03\x0a\x01x\x12\x02\x18\x04", 9, "a model of type 4 is not supported");
    spm_refused("\x0a\x03\x0a\x01x\x12\x02\x18\x01", 9, "bos_id 1 is not one of 1 pieces");
    spm_refused("\x0a\x08\x0a\x01x\x15\x00\x00\xc0\x7f", 10,
                "the score of piece 0 is not a number");
    /* Every beginning of a good one is refused, or is a smaller model. */
    text_file f = slurp(FIXTURES "/tiny/spm-bpe/tokenizer.model");
    REQUIRE(f.data != NULL);
    for (size_t n = 0; n < f.n; n += 1 + n / 64) {
        int rc = cf_tokenizer_parse_spm((const uint8_t *)f.data, n, "m", &tok, &err);
        CHECK((rc == 0) == (tok != NULL));
        cf_tokenizer_close(&tok);
    }
    free(f.data);
}

static void ranks_refused(const char *text, const char *part)
{
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    CHECK_INT(cf_tokenizer_parse_ranks(text, strlen(text), "gpt-2", &cf_tokenizer_rules_known, "r",
                                       &tok, &err),
              CF_EFORMAT);
    CHECK(tok == NULL);
    CHECK_HAS(err.msg, part);
}

static void damaged_ranks(void)
{
    ranks_refused("", "r has no token");
    ranks_refused("IQ== 0\nIg== ", "r: line 2 is not base64, a space and a rank");
    ranks_refused("IQ== 0x", "line 1 does not end in a rank");
    ranks_refused("IQ== 99999999999999999999", "line 1 does not end in a rank");
    ranks_refused("IQ== 2097152", "a rank below 2097152");
    ranks_refused("I*== 0", "line 1 does not begin with a token in base64");
    ranks_refused("IQ 0", "line 1 does not begin with a token in base64");
    ranks_refused(" 0", "line 1 does not begin with a token in base64");
    ranks_refused("IQ== 0\nIg== 0", "line 2 has a rank that another line has");
}

/* Small files with a token that is too long, or with too many characters that are no tokens:
 * refused at once, not after hours or by the end of the program. */
static void long_tokens(void)
{
    enum { LETTERS = 200000, PIECES = 60000, BYTES = 40 };
    static const uint8_t unknown[] = {0x0a, 0x05, 0x0a, 0x01, '?', 0x18, 0x02},
                         piece[] = {0x0a, BYTES + 2, 0x0a, BYTES}, by_score[] = {0x12, 2, 0x18, 2};
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    char *text = calloc(PIECES + 1, BYTES + sizeof piece);
    REQUIRE(text);
    size_t n = (size_t)sprintf(text, "YQ== 0\n"); /* a token of "a", and one of many */
    for (size_t i = 0; i < LETTERS; i++)
        text[n++] = "YWFh"[i % 4];
    n += (size_t)sprintf(text + n, " 1\n");
    int rc =
        cf_tokenizer_parse_ranks(text, n, "gpt-2", &cf_tokenizer_rules_known, "r", &tok, &err);
    CHECK_INT(rc, CF_ELIMIT);
    CHECK_HAS(err.msg, "the tokens up to 1, of 150000 bytes, are too long");
    err = (cf_err){0};
    memcpy(text, unknown, sizeof unknown);
    n = sizeof unknown;
    for (int i = 0; i < PIECES; i++) {
        memcpy(text + n, piece, sizeof piece);
        n += sizeof piece;
        n += (size_t)sprintf(text + n, "%0*d", BYTES, i);
    }
    memcpy(text + n, by_score, sizeof by_score);
    n += sizeof by_score;
    CHECK_INT(cf_tokenizer_parse_spm((uint8_t *)text, n, "m", &tok, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "more than 2097152 characters of tokens are not tokens");
    CHECK(tok == NULL);
    free(text);
}

int main(void)
{
    if (!strings_load())
        return 1;
    test_pieces();
    test_gguf();
    test_toys();
    test_ranks();
    RUN(first_there_is);
    RUN(config_decides_on_bos);
    RUN(plain_text_stays_plain);
    RUN(damaged_models);
    RUN(damaged_ranks);
    RUN(lists_and_ranks);
    RUN(damaged_lists);
    RUN(long_tokens);
    return strings_done();
}
