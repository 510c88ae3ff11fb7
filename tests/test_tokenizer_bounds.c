/* Catches: a small vocabulary's file that makes opening it or encoding a text take hours, or all of
 * memory; a limit that is met without its sentence; the error paths that no damaged fixture meets.
 *
 * Each case that is about time took minutes or had no end without its bound; here all of them
 * together take a second. */
#include <fcntl.h>
#include <unistd.h>

#include "models/tokenizer_rules.h"
#include "runtime/base/clock.h"
#include "runtime/tokenizer_parts.h"
#include "storage/gguf.h"
#include "tests/support/tmpfiles.h"
#include "tests/tokenizer_fixtures.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { TEXT_BYTES = 20000 };
#else
enum { TEXT_BYTES = 200000 };
#endif

/* --- files put together here ----------------------------------------------------------------- */

static void put(tok_buf *b, const char *text)
{
    if (tok_buf_add(b, text, strlen(text), NULL) < 0)
        exit(1);
}

static void put_times(tok_buf *b, const char *text, size_t times)
{
    for (size_t i = 0; i < times; i++)
        put(b, text);
}

#define VOCAB      "{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3}"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define MODEL      ",\"model\":{\"vocab\":" VOCAB ",\"merges\":[\"a b\"]}"
#define FILE_OF(x) "{\"pre_tokenizer\":" BYTE_LEVEL MODEL x "}"
#define SPLIT(p)                                                                                   \
    "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","            \
    "\"pattern\":" p ",\"behavior\":\"Isolated\"}," BYTE_LEVEL "]}" MODEL "}"
#define REGEX(p) SPLIT("{\"Regex\":\"" p "\"}")

static cf_tokenizer *opened(const char *json, size_t n)
{
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    if (cf_tokenizer_parse(json, n, "f", &tok, &err) < 0) {
        printf("    %s\n", err.msg);
        check_case_failed = true;
    }
    return tok;
}

static void refused(const char *json, size_t n, const char *sentence)
{
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    CHECK(cf_tokenizer_parse(json, n, "f", &tok, &err) < 0);
    CHECK_HAS(err.msg, sentence);
    CHECK(tok == NULL);
    cf_tokenizer_close(&tok);
}

/* What encoding `times` of a unit says, or how many ids it gives where `sentence` is NULL. */
static size_t encoded(const cf_tokenizer *tok, const char *unit, size_t times, const char *sentence)
{
    tok_buf text = {0};
    cf_err err = {0};
    size_t n = 0;
    put_times(&text, unit, times);
    uint64_t begin = cf_clock_ns();
    int rc = cf_tokenizer_encode(tok, text.data, text.n, 0, NULL, 0, &n, &err);
    double seconds = cf_seconds(cf_clock_ns() - begin);
    if (sentence) {
        CHECK_INT(rc, CF_ELIMIT);
        CHECK_HAS(err.msg, sentence);
    } else {
        CHECK_INT(rc, 0);
    }
    if (seconds > 10) {
        printf("    %zu bytes took %.1f s\n", text.n, seconds);
        check_case_failed = true;
    }
    tok_buf_finish(&text);
    return n;
}

/* --- patterns -------------------------------------------------------------------------------- */

static void patterns_count_their_steps(void)
{
    /* On one letter, many times: quadratic by what a repeat runs over, cubic, at each match,
     * exponential within the limit for one place. */
    static const char *const hostile[] = {REGEX("(?>a*)[bc]"), REGEX("a*a*[bc]"),
                                          REGEX("a(?=[\\\\s\\\\S]*)"), REGEX("(?:a|a){15}[bc]"),
                                          REGEX("(?:a?){15}a{15}[bc]")};
    static const char *const fine[] = {REGEX("\\\\s+(?!\\\\S)|\\\\s*[\\\\r\\\\n]+|\\\\p{L}++"),
                                       REGEX("a*+b?"), REGEX("(?:ab|a)+?"),
                                       REGEX("(?<=a{2})a|(?<!b|\\\\s)\\\\s|(?i:a)|.")};
    char sentence[64];
    snprintf(sentence, sizeof sentence, "its matches take more than %d steps",
             (64 << 20) + 256 * TEXT_BYTES);
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        cf_tokenizer *tok = opened(hostile[i], strlen(hostile[i]));
        REQUIRE(tok != NULL);
        encoded(tok, "a", TEXT_BYTES, sentence);
        cf_tokenizer_close(&tok);
    }
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        cf_tokenizer *tok = opened(fine[i], strlen(fine[i]));
        REQUIRE(tok != NULL);
        CHECK_INT(encoded(tok, "a", TEXT_BYTES, NULL), TEXT_BYTES);
        CHECK_INT(encoded(tok, " ", TEXT_BYTES, NULL), TEXT_BYTES);
        cf_tokenizer_close(&tok);
    }
}

/* A text of the length of a literal costs no more than any. */
static void literals_are_linear(void)
{
    tok_buf json = {0};
    put(&json, "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
               "\"pattern\":{\"String\":\"");
    put_times(&json, "a", 60000);
    put(&json, "b\"},\"behavior\":\"Isolated\"}," BYTE_LEVEL "]}" MODEL "}");
    cf_tokenizer *tok = opened(json.data, json.n);
    if (tok)
        CHECK_INT(encoded(tok, "a", TEXT_BYTES, NULL), TEXT_BYTES);
    cf_tokenizer_close(&tok);
    tok_buf_finish(&json);
}

static void patterns_that_are_refused(void)
{
    static const struct {
        const char *json, *why;
    } cases[] = {
        {REGEX("(?i:[\\\\x{1}-\\\\x{10FFFF}][\\\\x{1}-\\\\x{10FFFF}][\\\\x{1}-\\\\x{10FFFF}]"
               "[\\\\x{1}-\\\\x{10FFFF}][\\\\x{1}-\\\\x{10FFFF}])"),
         "ranges of more than 4456448 characters"},
        {REGEX("[[[[[[[[[a]]]]]]]]]"), "opens a set too deep in other sets"},
        {REGEX("[a&&]"), "ends an empty set"},
        {REGEX("a**"), "does not compile"},
        {REGEX("a{1,2}*?+"), "does not compile"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(cases[i].json, strlen(cases[i].json), cases[i].why);
    tok_buf json = {0};
    put(&json, "{\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{"
               "\"Regex\":\"");
    put_times(&json, "(?:", 101);
    put(&json, "\"}}" MODEL "}");
    refused(json.data, json.n, "opens a group too deep in other groups");
    tok_buf_finish(&json);
}

/* --- normalisers ----------------------------------------------------------------------------- */

static void texts_do_not_grow_without_end(void)
{
#define FOUR "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aaaa\"}"
    static const char json[] = FILE_OF(
        ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[" FOUR "," FOUR "," FOUR "]}");
    static const char added[] =
        FILE_OF(",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[" FOUR "," FOUR "," FOUR
                "," FOUR "," FOUR "," FOUR "]},\"added_tokens\":[{\"id\":4,\"content\":\"aa\","
                "\"normalized\":true}]");
    cf_tokenizer *tok = opened(json, strlen(json));
    REQUIRE(tok != NULL);
    CHECK_INT(encoded(tok, "a", 20, NULL), 20 * 64); /* small ones may */
    encoded(tok, "a", 1000, "the normalizer makes more than 16 times a text of 1000 bytes");
    cf_tokenizer_close(&tok);
    refused(added, strlen(added), "the normalizer makes more than 16 times a text of 2 bytes");
}

static void put_field(tok_buf *b, int number, const void *bytes, size_t n)
{
    char head[4] = {(char)(number << 3 | 2), (char)((n & 0x7f) | 0x80), (char)(n >> 7 & 0x7f)};
    if (tok_buf_add(b, head, 3, NULL) < 0 || tok_buf_add(b, bytes, n, NULL) < 0)
        exit(1);
}

/* A SentencePiece model of one letter, with a table of 256 units. */
static cf_tokenizer *opened_spm(const uint32_t units[256], const char *texts, size_t n_texts)
{
    static const uint8_t unk[] = {0x0a, 1, '?', 0x18, 2}, a[] = {0x0a, 1, 'a'},
                         bpe[] = {0x18, 2}; /* the model */
    const uint32_t size = 1024;
    tok_buf map = {0}, spec = {0}, file = {0};
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    if (tok_buf_add(&map, &size, 4, NULL) < 0 || tok_buf_add(&map, units, size, NULL) < 0 ||
        tok_buf_add(&map, texts, n_texts, NULL) < 0)
        exit(1);
    put_field(&spec, 2, map.data, map.n);
    put_field(&file, 1, unk, sizeof unk);
    put_field(&file, 1, a, sizeof a);
    put_field(&file, 2, bpe, sizeof bpe);
    put_field(&file, 3, spec.data, spec.n);
    if (cf_tokenizer_parse_spm((const uint8_t *)file.data, file.n, "m", &tok, &err) < 0) {
        printf("    %s\n", err.msg);
        check_case_failed = true;
    }
    tok_buf_finish(&map);
    tok_buf_finish(&spec);
    tok_buf_finish(&file);
    return tok;
}

/* Units: offset << 10 | ends << 8 | label. */
static void tables_that_lead_round(void)
{
    uint32_t round[256] = {0}, long_one[256] = {0};
    round['a'] = 'a' << 10 | 'a'; /* its children are those of the root */
    cf_tokenizer *tok = opened_spm(round, "x", 2);
    REQUIRE(tok != NULL);
    CHECK_INT(encoded(tok, "a", 200, NULL), 201);
    encoded(tok, "a", TEXT_BYTES, "precompiled_charsmap has a sequence of more than 256 bytes");
    cf_tokenizer_close(&tok);
    char *text = malloc(8000);
    REQUIRE(text);
    memset(text, 'x', 7999);
    text[7999] = 0;
    long_one['a'] = ('a' ^ 0x80) << 10 | 1 << 8 | 'a';
    long_one[0x80] = 0x80000000u;
    tok = opened_spm(long_one, text, 8000);
    free(text);
    REQUIRE(tok != NULL);
    encoded(tok, "a", 1000, "the normalizer makes more than 16 times a text of 1000 bytes");
    cf_tokenizer_close(&tok);
}

/* Each cluster of two flags was found by counting all flags before it. */
static void many_flags(void)
{
    static const char json[] =
        "{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"BAAAAAAAAAAAAA==\"},"
        "\"pre_tokenizer\":{\"type\":\"Metaspace\"},\"model\":{\"type\":\"Unigram\",\"unk_id\":0,"
        "\"vocab\":[[\"?\",0],[\"\xf0\x9f\x87\xa6\xf0\x9f\x87\xa7\",-1]]}}";
    cf_tokenizer *tok = opened(json, strlen(json));
    REQUIRE(tok != NULL);
    size_t times = TEXT_BYTES / 4;
    CHECK_INT(encoded(tok, "\xf0\x9f\x87\xa6\xf0\x9f\x87\xa7", times, NULL), times + 1);
    cf_tokenizer_close(&tok);
}

/* --- added tokens ---------------------------------------------------------------------------- */

static void added_tokens_are_bounded(void)
{
    static const char blanks[] =
        FILE_OF(",\"added_tokens\":[{\"id\":4,\"content\":\" \",\"rstrip\":true,"
                "\"normalized\":false},{\"id\":5,\"content\":\"\\n\",\"normalized\":false,"
                "\"lstrip\":true,\"rstrip\":true}]");
    cf_tokenizer *tok = opened(blanks, strlen(blanks));
    REQUIRE(tok != NULL);
    CHECK_INT(encoded(tok, " ", TEXT_BYTES, NULL), TEXT_BYTES);
    /* One that takes the blanks before it is passed over among those taken along. */
    CHECK_INT(encoded(tok, " \n", TEXT_BYTES, NULL), TEXT_BYTES);
    cf_tokenizer_close(&tok);
    tok_buf json = {0};
    char item[1200];
    put(&json, "{\"pre_tokenizer\":" BYTE_LEVEL MODEL ",\"added_tokens\":[");
    size_t head = json.n;
    for (int i = 0; i <= 4096; i++) { /* texts of 1024 bytes */
        snprintf(item, sizeof item, "%s{\"id\":%d,\"content\":\"%01024d\",\"special\":true}",
                 i ? "," : "", 4 + i, i);
        put(&json, item);
    }
    put(&json, "]}");
    refused(json.data, json.n, "the added tokens up to 4100 have more than 4194304 bytes together");
    json.n = head;
    put(&json, "0");
    put_times(&json, ",0", TOK_ADDED_MAX);
    put(&json, "]}");
    refused(json.data, json.n, "added_tokens has 131073 entries, the limit is 131072");
    json.n = head;
    snprintf(item, sizeof item, "{\"id\":4,\"content\":\"%01025d\"}]}", 0);
    put(&json, item);
    refused(json.data, json.n, "added_tokens[0].content has 1025 bytes, the limit is 1024");
    tok_buf_finish(&json);
}

/* Tokens that share all but their end, or their beginning with many others: found, and the longest
 * of those that match. */
static void added_tokens_are_found(void)
{
    enum { N = 3000 };
    tok_buf json = {0};
    char item[80], text[64];
    int32_t ids[4];
    size_t n;
    put(&json, "{\"pre_tokenizer\":" BYTE_LEVEL MODEL ",\"added_tokens\":[");
    for (int i = 0; i < N; i++) {
        snprintf(item, sizeof item, "%s{\"id\":%d,\"content\":\"<reserved_%d>\",\"special\":%s}",
                 i ? "," : "", 10 + i, i, i % 2 ? "true" : "false");
        put(&json, item);
    }
    for (int i = 0; i < N; i++) {
        snprintf(item, sizeof item, ",{\"id\":%d,\"content\":\"\\u%04x%s\",\"normalized\":%s}",
                 10 + N + i, 0x4e00 + i / 2, i % 2 ? "b" : "", i % 3 ? "true" : "false");
        put(&json, item);
    }
    put(&json, "]}");
    cf_tokenizer *tok = opened(json.data, json.n);
    tok_buf_finish(&json);
    REQUIRE(tok != NULL);
    for (int i = 0; i < N; i++) {
        int length = snprintf(text, sizeof text, "a<reserved_%d>b", i);
        CHECK_INT(
            cf_tokenizer_encode(tok, text, (size_t)length, CF_TOK_PARSE_SPECIAL, ids, 4, &n, NULL),
            0);
        CHECK(n == 3 && ids[0] == 0 && ids[1] == 10 + i && ids[2] == 1);
        length = (int)tok_char_put(0x4e00 + (uint32_t)i / 2, text);
        text[length++] = 'b';
        CHECK_INT(cf_tokenizer_encode(tok, text, (size_t)length, 0, ids, 4, &n, NULL), 0);
        /* What is looked for in the text as given comes first, were it shorter. */
        int32_t one = 10 + N + i / 2 * 2;
        bool one_first = (i / 2 * 2) % 3 == 0, two_first = (i / 2 * 2 + 1) % 3 == 0;
        bool two = two_first || !one_first;
        CHECK(two ? n == 1 && ids[0] == one + 1 : n == 2 && ids[0] == one && ids[1] == 1);
    }
    cf_tokenizer_close(&tok);
}

/* --- models ---------------------------------------------------------------------------------- */

static void models_are_bounded(void)
{
    static const char empty[] =
        "{\"pre_tokenizer\":{\"type\":\"Metaspace\"},\"model\":{\"unk_token\":\"\",\"vocab\":"
        "{\"\":0,\"a\":1,\"b\":2,\"ab\":3},\"merges\":[[\"\",\"a\"],[\"a\",\"\"],[\"\",\"\"],"
        "[\"a\",\"b\"]]}}";
    static const char none[] = FILE_OF("");
    tok_buf json = {0};
    put(&json, "{\"pre_tokenizer\":{\"type\":\"Metaspace\"},\"model\":{\"type\":\"Unigram\","
               "\"unk_id\":0,\"vocab\":[[\"?\",0],[\"");
    size_t head = json.n;
    put_times(&json, "\xc3\xa9", 512);
    put(&json, "\",-1]]}}");
    cf_tokenizer *tok = opened(json.data, json.n);
    if (tok)
        CHECK_INT(encoded(tok, "\xc3\xa9", 1024, NULL), 3); /* an unknown space in front */
    cf_tokenizer_close(&tok);
    json.n = head;
    put_times(&json, "\xc3\xa9", 513);
    put(&json, "\",-1]]}}");
    refused(json.data, json.n, "token 1 has 513 characters, the limit of a unigram model is 512");
    tok_buf_finish(&json);
    tok = opened(empty, strlen(empty)); /* read what is before the token's text */
    if (tok)
        CHECK_INT(encoded(tok, "ab", 3, NULL), 4);
    cf_tokenizer_close(&tok);
    tok = opened(none, strlen(none));
    if (tok)
        encoded(tok, "a", TOK_PART_BYTES_MAX + 1,
                "8388609 bytes of the text without a place to cut them: the limit is 8388608");
    cf_tokenizer_close(&tok);
}

/* Nodes that fit nowhere but at the end, behind a stretch of the trie that is full: found all the
 * same, and soon. */
static void crowded_tries(void)
{
    tok_vocab v = {0};
    tok_trie t = {0};
    int32_t *ids = malloc(sizeof *ids << 17);
    int32_t n = 0;
    char text[4];
    REQUIRE(ids);
    for (int i = 0; i < 256; i++) /* full blocks with a hole here and there */
        for (int k = 1; k < 256; k++) {
            text[0] = 1;
            text[1] = (char)i;
            text[2] = (char)k;
            ids[n] = n;
            REQUIRE(k == 7 || tok_vocab_set(&v, n++, text, 3, 0, NULL) == 0);
        }
    for (int i = 0; i < 65536; i++) { /* pairs, now far apart, now near */
        text[0] = 2;
        text[1] = (char)(i >> 8);
        text[2] = (char)(i & 0xff);
        text[3] = (char)(i % 128 == 0 ? 0xff : 1);
        ids[n] = n;
        REQUIRE(tok_vocab_set(&v, n++, text, 4, 0, NULL) == 0);
    }
    CHECK_INT(tok_trie_build(&t, &v, ids, (size_t)n, NULL), 0);
    for (int32_t id = 0; id < n; id++) {
        size_t bytes;
        uint32_t node = 0;
        const char *at = tok_vocab_bytes(&v, id, &bytes);
        for (size_t i = 0; i < bytes; i++)
            node = tok_trie_step(&t, node, (uint8_t)at[i]);
        CHECK(node && t.nodes[node].id == id);
    }
    CHECK(t.n < 4 * (uint32_t)n);
    tok_trie_finish(&t);
    tok_vocab_finish(&v);
    free(ids);
}

/* The same tokens lie elsewhere in every process, and are found. */
static void hashes_are_not_known(void)
{
    CHECK(tok_seed() != tok_seed());
    cf_tokenizer *a = open_json(FIXTURES "/tiny/gpt2/tokenizer.json");
    cf_tokenizer *b = open_json(FIXTURES "/tiny/gpt2/tokenizer.json");
    REQUIRE(a && b);
    CHECK(a->vocab.seed != b->vocab.seed && a->bpe.seed != b->bpe.seed);
    CHECK(memcmp(a->vocab.slots, b->vocab.slots, (a->vocab.mask + 1) * sizeof *a->vocab.slots) !=
          0);
    for (int32_t id = 0; id < a->vocab.n; id++) {
        size_t n;
        const char *text = tok_vocab_bytes(&a->vocab, id, &n);
        CHECK_INT(tok_vocab_find(&a->vocab, text, n), tok_vocab_find(&b->vocab, text, n));
    }
    cf_tokenizer_close(&a);
    cf_tokenizer_close(&b);
}

/* --- what is said ---------------------------------------------------------------------------- */

static void sentences(void)
{
#define TEMPLATE(single) "{\"type\":\"TemplateProcessing\",\"single\":[" single "]}"
    static const struct {
        const char *json, *why;
    } cases[] = {
        {"{\"model\":{\"vocab\":{},\"merges\":[],\"dropout\":0.1}}",
         "model.dropout is set: ids would be random"},
        {"{\"model\":{\"type\":\"WordPiece\"}}", "(supported: BPE, Unigram)"},
        {FILE_OF(",\"normalizer\":{\"type\":\"Lowercase\"}"),
         "(supported: NFC, Prepend, Replace, Strip, Precompiled)"},
        {FILE_OF(",\"decoder\":{\"type\":\"CTC\"}"),
         "(supported: ByteLevel, Fuse, ByteFallback, Replace, Strip, Metaspace)"},
        {"{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}" MODEL "}",
         "(supported: Sequence, Split, Digits"},
        {FILE_OF(",\"post_processor\":" TEMPLATE("{\"Token\":1}")),
         "post_processor 0.single[0] is neither a SpecialToken nor a Sequence"},
        {FILE_OF(",\"post_processor\":{\"type\":\"Other\"}"), "BertProcessing)"},
        {FILE_OF(",\"post_processor\":{\"type\":\"Sequence\",\"processors\":[" TEMPLATE(
             "{\"Sequence\":1}") "," TEMPLATE("{\"Sequence\":1}") "]}"),
         "post_processor 1: a second post-processor that adds tokens"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(cases[i].json, strlen(cases[i].json), cases[i].why);
    refused("{}", TOK_FILE_BYTES_MAX + (size_t)1,
            "f: 268435457 bytes, the limit for a tokenizer is 268435456");
    tok_buf json = {0};
    put(&json, "[0");
    put_times(&json, ",[]", TOK_JSON_VALUES_MAX / 2);
    put(&json, "]");
    refused(json.data, json.n, "f: JSON of more than 8388608 values");
    json.n = 0;
    put_times(&json, "[", 2000);
    refused(json.data, json.n, "f: JSON nested deeper than 1024 at byte 1024");
    tok_buf_finish(&json);
    refused("{\"a\":\x1b}", 7, "near '?'"); /* nothing of it steers a terminal */
}

static void files_beside(void)
{
    tmp_dir dir;
    tok_buf json = {0};
    char item[32];
    cf_tokenizer *tok = NULL;
    cf_err err = {0}, too_long = {0};
    tmp_dir_init(&dir);
    const cf_tokenizer_place place = {.dir = dir.path, .rules = &cf_tokenizer_rules_known};
    tmp_write(tmp_path(&dir, "cl100k_base.tiktoken"), "YQ== 0\n", 7);
    put(&json, "{\"added_tokens_decoder\":{\"0\":0");
    for (int i = 1; i <= TOK_ADDED_MAX; i++) {
        snprintf(item, sizeof item, ",\"%d\":0", i);
        put(&json, item);
    }
    put(&json, "}}");
    tmp_write(tmp_path(&dir, "tokenizer_config.json"), json.data, json.n);
    tok_buf_finish(&json);
    CHECK(cf_tokenizer_open(&place, &tok, NULL, &err) < 0);
    CHECK_HAS(err.msg, "added_tokens_decoder has 131073 entries, the limit is 131072");
    const char *path = tmp_path(&dir, "tokenizer.json"); /* all of it a hole */
    tmp_write(path, "{", 1);
    CHECK_INT(truncate(path, TOK_FILE_BYTES_MAX + 1L), 0);
    tmp_write(tmp_path(&dir, "tokenizer_config.json"), "{}", 2);
    CHECK(cf_tokenizer_open(&place, &tok, NULL, &too_long) < 0);
    CHECK_HAS(too_long.msg, "tokenizer.json: 268435457 bytes, the limit for a tokenizer is");
    CHECK(tok == NULL);
    tmp_dir_finish(&dir);
}

static void put_number(tok_buf *b, uint64_t v, size_t bytes)
{
    if (tok_buf_add(b, &v, bytes, NULL) < 0)
        exit(1);
}

static void put_string(tok_buf *b, const char *text)
{
    put_number(b, strlen(text), 8);
    put(b, text);
}

static void put_texts(tok_buf *b, const char *key, const char *const *texts, size_t n)
{
    put_string(b, key);
    put_number(b, 9, 4);
    put_number(b, 8, 4);
    put_number(b, n, 8);
    for (size_t i = 0; i < n; i++)
        put_string(b, texts[i]);
}

/* A list of n numbers of 4 bytes. */
static void put_words(tok_buf *b, const char *key, uint32_t type, const void *words, size_t n)
{
    put_string(b, key);
    put_number(b, 9, 4);
    put_number(b, type, 4);
    put_number(b, n, 8);
    if (tok_buf_add(b, words, 4 * n, NULL) < 0)
        exit(1);
}

/* A GGUF file of no tensors and n_keys keys, of which the first is said: the vocabulary's model. */
static void vocabulary_begin(tok_buf *file, uint64_t n_keys, const char *model)
{
    put(file, "GGUF");
    put_number(file, 3, 4);
    put_number(file, 0, 8); /* tensors */
    put_number(file, n_keys, 8);
    put_string(file, "tokenizer.ggml.model");
    put_number(file, 8, 4);
    put_string(file, model);
}

/* A user-defined token that is a part of a character, the last byte of all texts: nothing is read
 * behind it (the sanitizer sees it), and no character is cut in two. */
static void half_a_character(void)
{
    static const char *const tokens[] = {"<unk>", "0123456789abcdefghij", "0123456789ABCDEFGHIJKL",
                                         "0123456789abcdef", "\xf0"};
    static const uint32_t types[] = {2, 1, 1, 1, 4};
    static const float scores[] = {0, -1, -2, -3, -4};
    tok_buf file = {0};
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    vocabulary_begin(&file, 4, "t5");
    put_texts(&file, "tokenizer.ggml.tokens", tokens, 5);
    put_words(&file, "tokenizer.ggml.token_type", 5, types, 5);
    put_words(&file, "tokenizer.ggml.scores", 6, scores, 5);
    CHECK_INT(cf_gguf_parse(&cat, &meta, 0, "g", (const uint8_t *)file.data, file.n, file.n, &err),
              0);
    if (meta) {
        CHECK_INT(cf_tokenizer_parse_gguf(meta, &cf_tokenizer_rules_known, "g", &tok, &err), 0);
        CHECK_STR(err.msg, "");
    }
    if (tok) {
        int32_t ids[8];
        size_t n = 0, bytes = 0;
        CHECK_INT(tok->vocab.text.n, tok->vocab.text.size);
        CHECK_INT(cf_tokenizer_encode(tok, "\xf0\x9f\x98\x80", 4, 0, ids, 8, &n, &err), 0);
        for (size_t i = 0; i < n; i++)
            CHECK(ids[i] != 4);
        CHECK(n > 0 && memcmp(cf_tokenizer_piece(tok, 4, &bytes), "\xf0", 1) == 0 && bytes == 1);
    }
    cf_tokenizer_close(&tok);
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
    tok_buf_finish(&file);
}

static void merges_of_a_gguf(void)
{
    static const char *const tokens[] = {"a", "b", "ab"}, *const merges[] = {"a b", "a ab"};
    tok_buf file = {0};
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    vocabulary_begin(&file, 3, "gpt2");
    put_texts(&file, "tokenizer.ggml.tokens", tokens, 3);
    put_texts(&file, "tokenizer.ggml.merges", merges, 2);
    int rc = cf_gguf_parse(&cat, &meta, 0, "g", (const uint8_t *)file.data, file.n, file.n, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    CHECK_INT(rc, 0);
    if (meta) {
        CHECK(cf_tokenizer_parse_gguf(meta, &cf_tokenizer_rules_known, "g", &tok, &err) < 0);
        CHECK_HAS(err.msg, "\"tokenizer.ggml.merges\" 1: \"aab\" is not among the tokens");
    }
    CHECK(tok == NULL);
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
    tok_buf_finish(&file);
}

int main(void)
{
    RUN(patterns_count_their_steps);
    RUN(literals_are_linear);
    RUN(patterns_that_are_refused);
    RUN(texts_do_not_grow_without_end);
    RUN(tables_that_lead_round);
    RUN(many_flags);
    RUN(added_tokens_are_bounded);
    RUN(added_tokens_are_found);
    RUN(models_are_bounded);
    RUN(crowded_tries);
    RUN(hashes_are_not_known);
    RUN(sentences);
    RUN(files_beside);
    RUN(half_a_character);
    RUN(merges_of_a_gguf);
    return check_done();
}
