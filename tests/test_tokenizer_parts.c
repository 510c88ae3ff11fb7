/* Catches: a long or odd text that crashes, hangs or turns quadratic; a pattern, class or normal
 * form that differs from the reference's engine; a malformed tokenizer.json that is accepted, or
 * refused without saying what is wrong where. */
#include "runtime/tokenizer_parts.h"

#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/tokenizer_fixtures.h"

/* --- odd and long texts ---------------------------------------------------------------------- */

/* Both ways to merge give the same: every long piece is also merged by its definition. */
static void long_pieces_by_definition(void)
{
    cf_tokenizer *tok = open_json(FIXTURES "/tiny/gpt2/tokenizer.json");
    REQUIRE(tok != NULL);
    uint64_t seed = 1;
    for (int round = 0; round < 20; round++) {
        char text[400];
        int32_t want[400];
        size_t n = 30 + (size_t)round * 9;
        for (size_t i = 0; i < n; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            text[i] = "aetnhioslr"[(seed >> 40) % (round % 2 ? 10 : 3)];
            want[i] = tok->bpe.byte_id[(unsigned char)text[i]];
        }
        size_t m = n;
        for (;;) { /* the lowest rank anywhere, the leftmost of equals, one at a time */
            uint32_t best_rank = UINT32_MAX;
            size_t best = 0;
            int32_t made = -1;
            for (size_t i = 0; i + 1 < m; i++)
                for (uint32_t s = 0; s <= tok->bpe.mask; s++) {
                    const tok_merge *e = &tok->bpe.slots[s];
                    if (e->left == want[i] && e->right == want[i + 1] && e->rank < best_rank) {
                        best_rank = e->rank;
                        best = i;
                        made = e->id;
                    }
                }
            if (made < 0)
                break;
            want[best] = made;
            m--;
            memmove(want + best + 1, want + best + 2, (m - best - 1) * sizeof *want);
            if (m < 2)
                break;
        }
        id_list got = encode(tok, text, n, 0);
        CHECK(got.n == m && memcmp(got.ids, want, m * sizeof *want) == 0);
        free(got.ids);
        if (check_case_failed)
            break;
    }
    cf_tokenizer_close(&tok);
}

/* One word, one blank run, one row of marks of a megabyte: seconds would mean quadratic. */
static void long_texts_stay_fast(void)
{
    static const char *const names[] = {"gpt2",    "qwen2",       "kimi-k2",     "deepseek-llm",
                                        "longcat", "deepseek-v3", "gptneox-nfc", "o200k-harmony"};
    static const char *const units[] = {
        "a",  "A", " ", "\n", " \n", "1", "!", "\xcc\x81", "\xcc\xa3\xcc\x81", "\xe5\xa5\xbd",
        "aB", "'s"};
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    enum { BYTES = 100000 };
#else
    enum { BYTES = 1000000 };
#endif
    char *text = malloc(BYTES + 8), path[128];
    for (size_t t = 0; t < sizeof names / sizeof *names; t++) {
        snprintf(path, sizeof path, FIXTURES "/tiny/%s/tokenizer.json", names[t]);
        cf_tokenizer *tok = open_json(path);
        for (size_t u = 0; tok && u < sizeof units / sizeof *units; u++) {
            size_t n = 0, k = strlen(units[u]);
            uint64_t begin = cf_clock_ns();
            size_t bytes = t < 2 ? BYTES : BYTES / 10;
            while (n + k < bytes) {
                memcpy(text + n, units[u], k);
                n += k;
            }
            text[n++] = 'x';
            id_list got = encode(tok, text, n, 0);
            double seconds = cf_seconds(cf_clock_ns() - begin);
            if (tok->normal.n == 0) {
                text_file back = decode(tok, got.ids, got.n, false);
                CHECK(back.n == n && memcmp(back.data, text, n) == 0);
                free(back.data);
            }
            if (seconds > 8.0) {
                printf("    %s, unit %zu: %.1f s\n", names[t], u, seconds);
                check_case_failed = true;
            }
            free(got.ids);
        }
        CHECK(tok != NULL);
        cf_tokenizer_close(&tok);
    }
    free(text);
}

/* --- patterns -------------------------------------------------------------------------------- */

/* The pieces that a split makes of a text, joined with '~'. */
static void split_check(const char *pattern, tok_split_behavior behavior, bool invert,
                        const char *text, const char *want)
{
    tok_pretok pre = {0};
    tok_pretok_work work = {0};
    tok_scan scan;
    cf_err err = {0};
    char got[256] = "";
    REQUIRE(tok_scan_init(&scan, &err) == 0);
    if (tok_pretok_add(&pre, TOK_REGEX_ONIG, pattern, strlen(pattern), behavior, invert, "p",
                       &err) == 0 &&
        tok_pretok_run(&pre, &scan, &work, text, strlen(text), &err) == 0) {
        for (size_t i = 0; i < work.pieces.n; i++)
            snprintf(got + strlen(got), sizeof got - strlen(got), "%s%.*s", i ? "~" : "",
                     (int)work.pieces.v[i].bytes, text + work.pieces.v[i].off);
        if (strcmp(got, want) != 0)
            printf("    pattern %s:\n", pattern);
        CHECK_STR(got, want);
    } else {
        printf("    pattern %s: %s\n", pattern, err.msg);
        check_case_failed = true;
    }
    tok_pretok_finish(&pre);
    tok_pretok_work_finish(&work);
    tok_scan_finish(&scan);
}

/* Expected pieces are the reference library's (tokenizers 0.23.3, Oniguruma). */
static void patterns_mean_what_they_meant(void)
{
    static const struct {
        const char *pattern, *text, *want;
    } cases[] = {
        {"\\s+$", "  \n  a  \n\n  ", "  ~\n  a~  \n\n  "},
        {"^a", "a\na\n", "a~\n~a~\n"},
        {"$", "a\na\n", "a~\na~\n"},
        {"a.b", "a\nba\rb", "a\nb~a\rb"},
        {"a*", "baac", "b~aa~c"},
        {"", "abc", "a~b~c"},
        {"x{,2}", "xxxx", "xx~xx"},
        {"[a[bc]]+", "abcd", "abc~d"},
        {"[^a[bc]]+", "abcde", "abc~de"},
        {"[a-z&&[^c]]+", "abcde", "ab~c~de"},
        {"[^a-z&&[^c]]+", "abcdeX", "ab~c~de~X"},
        {"[]a]", "a]", "a~]"},
        {"[a-]+", "a-b", "a-~b"},
        {"a++", "aaa", "aaa"},
        {"a?+a", "aaa", "aa~a"},
        {"\\p{^L}", "a1", "a~1"},
        {"\\P{L}", "a1", "a~1"},
        {"\\p{Lowercase_Letter}", "aA", "a~A"},
        {"\\u4e00", "\xe4\xb8\x80\x61", "\xe4\xb8\x80~a"},
        {"\\x{4e00}", "\xe4\xb8\x80\x61", "\xe4\xb8\x80~a"},
        {"a{2", "aa{2", "a~a{2"},
        {"\\h+", "xyzabcfg", "xyz~abcf~g"},
        {"(?<=a)b", "abcb", "a~b~cb"},
        {"[\\s\\S]", "a ", "a~ "},
        {"[^\\S\\n]+", "a \n b", "a~ ~\n~ ~b"},
        {"[a-c[x-z]&&[b-y]]+", "abcxyz", "a~bcxy~z"},
        {"[(\\s|[.,])]+", "a (|.,)", "a~ (|.,)"},
        {"(?i:[sdmt]|ll)", "\xc5\xbf LL", "\xc5\xbf~ ~LL"},
        {"{", "a{b", "a~{~b"},
        {"]", "a]", "a~]"},
        {"a+?", "aaa", "a~a~a"},
        {"\\s", "a\xe1\xa0\x8e\x62 c", "a\xe1\xa0\x8e\x62~ ~c"},
        {"\\w+", "a_\xc2\xb2-\xe2\x80\x8d", "a_\xc2\xb2~-\xe2\x80\x8d"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        split_check(cases[i].pattern, TOK_SPLIT_ISOLATED, false, cases[i].text, cases[i].want);
}

static void behaviors_and_inversion(void)
{
    static const char text[] = "the-final--countdown-";
    static const struct {
        tok_split_behavior behavior;
        const char *plain, *inverted;
    } cases[] = {
        {TOK_SPLIT_REMOVED, "the~final~countdown", "-~-~-~-"},
        {TOK_SPLIT_ISOLATED, "the~-~final~-~-~countdown~-", "the~-~final~-~-~countdown~-"},
        {TOK_SPLIT_WITH_PREVIOUS, "the-~final-~-~countdown-", "the~-final~-~-countdown~-"},
        {TOK_SPLIT_WITH_NEXT, "the~-final~-~-countdown~-", "the-~final-~-~countdown-"},
        {TOK_SPLIT_CONTIGUOUS, "the~-~final~--~countdown~-", "the~-~final~--~countdown~-"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        split_check("-", cases[i].behavior, false, text, cases[i].plain);
        split_check("-", cases[i].behavior, true, text, cases[i].inverted);
    }
}

static void unknown_patterns_are_refused(void)
{
    static const struct {
        const char *pattern, *why;
    } cases[] = {
        {"a\\b", "\"\\b\" at byte 1 of the pattern is no escape that is known"},
        {"x{2,3}+", "repeat of a repeat"},
        {"a{2}?", "repeat of a repeat"},
        {"a{2000}", "out of range"},
        {"[[:alpha:]]", "POSIX set"},
        {"(?m:a)", "no group that is known"},
        {"(?x: a)", "no group that is known"},
        {"b(?i)a", "no group that is known"},
        {"(*UTF)", "no group that is known"},
        {"(a)\\1", "no escape that is known"},
        {"\\p{Klingon}", "no property that is known"},
        {"\\pL", "lacks its {name}"},
        {"\\p{L", "not closed"},
        {"[a", "not closed"},
        {"[a&&]", "empty set"},
        {"[z-a]", "ends before it begins"},
        {"[a-\\d]", "ends before it begins"},
        {"[\\w-x]", "class at the end of a range"},
        {"\\x{110000}", "is no character"},
        {"\\xff", "is no character"},
        {"\\", "ends the pattern"},
        {"[[[[[[[[[[[[a]]]]]]]]]]]]", "too deep"},
        {"a)", "does not compile"},
        {"(a", "does not compile"},
        {"+a", "does not compile"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tok_regex re;
        cf_err err = {0};
        int rc = tok_regex_compile(&re, TOK_REGEX_ONIG, cases[i].pattern, strlen(cases[i].pattern),
                                   "file: pre_tokenizer 3", &err);
        if (rc != CF_EFORMAT)
            printf("    pattern %s gives %d\n", cases[i].pattern, rc);
        CHECK_INT(rc, CF_EFORMAT);
        CHECK_HAS(err.msg, "file: pre_tokenizer 3: ");
        CHECK_HAS(err.msg, cases[i].why);
        CHECK(re.code == NULL);
        tok_regex_finish(&re);
    }
}

/* Each class of the reference's engine, code point by code point. */
static void unicode_classes(void)
{
    text_file f = slurp(FIXTURES "/unicode/classes.json");
    REQUIRE(f.data != NULL);
    json_t *root = json_loadb(f.data, f.n, 0, NULL), *value;
    const char *name;
    free(f.data);
    REQUIRE(root != NULL);
    json_object_foreach(root, name, value)
    {
        const json_t *ranges = json_object_get(value, "ranges");
        char pattern[32];
        tok_regex re;
        tok_scan scan;
        cf_err err = {0};
        size_t next = 0, wrong = 0, begin, end;
        if (!ranges)
            continue; /* ignore_case: see below */
        snprintf(pattern, sizeof pattern, strcmp(name, "space") ? "\\p{%s}" : "\\s", name);
        REQUIRE(tok_regex_compile(&re, TOK_REGEX_ONIG, pattern, strlen(pattern), name, &err) == 0);
        REQUIRE(tok_scan_init(&scan, &err) == 0);
        for (uint32_t c = 0; c < 0x110000; c++) {
            char text[4];
            const json_t *range = json_array_get(ranges, next);
            if (range && c > json_integer_value(json_array_get(range, 1)))
                range = json_array_get(ranges, ++next);
            bool want = range && c >= json_integer_value(json_array_get(range, 0));
            if (c >= 0xd800 && c < 0xe000)
                continue;
            tok_find find = {.text = text, .bytes = tok_char_put(c, text)};
            bool got = tok_regex_next(&re, &scan, &find, &begin, &end, &err) == 1;
            if (want != got && wrong++ < 5)
                printf("    U+%04X: %s is %d\n", c, pattern, got);
        }
        CHECK_INT(wrong, 0);
        tok_regex_finish(&re);
        tok_scan_finish(&scan);
    }
    json_decref(root);
}

static void unicode_ignore_case(void)
{
    text_file f = slurp(FIXTURES "/unicode/classes.json");
    REQUIRE(f.data != NULL);
    json_t *root = json_loadb(f.data, f.n, 0, NULL), *list;
    const char *letter;
    free(f.data);
    size_t n_letters = 0;
    json_object_foreach(json_object_get(root, "ignore_case"), letter, list)
    {
        char pattern[16];
        tok_regex re;
        tok_scan scan;
        cf_err err = {0};
        size_t next = 0, wrong = 0, begin, end;
        snprintf(pattern, sizeof pattern, "(?i:%s)", letter);
        REQUIRE(tok_regex_compile(&re, TOK_REGEX_ONIG, pattern, strlen(pattern), "i", &err) == 0);
        REQUIRE(tok_scan_init(&scan, &err) == 0);
        for (uint32_t c = 0; c < 0x110000; c++) {
            char text[4];
            if (c >= 0xd800 && c < 0xe000)
                continue;
            bool want =
                json_integer_value(json_array_get(list, next)) == c && next < json_array_size(list);
            next += want;
            tok_find find = {.text = text, .bytes = tok_char_put(c, text)};
            wrong += want != (tok_regex_next(&re, &scan, &find, &begin, &end, &err) == 1);
        }
        CHECK_INT(wrong, 0);
        tok_regex_finish(&re);
        tok_scan_finish(&scan);
        n_letters++;
    }
    CHECK_INT(n_letters, 8);
    json_decref(root);
}

static size_t points_read(const char *list, char *out)
{
    size_t n = 0;
    for (char *end; *list; list = end) {
        unsigned long c = strtoul(list, &end, 16);
        if (end == list)
            break;
        n += tok_char_put((uint32_t)c, out + n);
    }
    return n;
}

static void nfc_pairs(void)
{
    text_file f = slurp(FIXTURES "/unicode/nfc.txt");
    REQUIRE(f.data != NULL);
    tok_normal normal = {.n = 1, .steps = {{.kind = TOK_STEP_NFC}}};
    tok_normal_work work = {0};
    tok_buf out = {0};
    cf_err err = {0};
    size_t n_pairs = 0, wrong = 0;
    char *save = NULL;
    for (char *line = strtok_r(f.data, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *semicolon = strchr(line, ';');
        REQUIRE(semicolon != NULL && strlen(line) < 150);
        n_pairs++;
        for (int inside = 0; inside < 2; inside++) { /* alone, and in other text */
            char in[256] = "ab\xe5\xa5\xbd", want[256] = "ab\xe5\xa5\xbd";
            size_t before = inside ? 5 : 0;
            size_t n_in = before + points_read(line, in + before);
            size_t n_want = before + points_read(semicolon + 1, want + before);
            bool changed;
            in[n_in++] = want[n_want++] = 'c';
            out.n = 0;
            CHECK(tok_normal_run(&normal, &work, in, n_in, &out, &changed, &err) == 0);
            if (!changed)
                CHECK(tok_buf_add(&out, in, n_in, &err) == 0);
            wrong += out.n != n_want || memcmp(out.data, want, n_want) != 0;
        }
    }
    CHECK_INT(n_pairs, 3647);
    CHECK_INT(wrong, 0);
    tok_normal_work_finish(&work);
    tok_buf_finish(&out);
    free(f.data);
}

/* --- malformed files ------------------------------------------------------------------------- */

/* A small tokenizer with one part of it replaced. */
#define META  "{\"pre_tokenizer\":{\"type\":\"Metaspace\"},\"model\":{\"type\":\"Unigram\","
#define HEAD "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":"
#define MODEL                                                                                      \
    "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3},\"merges\":[\"a b\"]}"

static void malformed_files(void)
{
    static const struct {
        const char *json, *why;
    } cases[] = {
        {"", "f.json: line "},
        {"[1, 2", "f.json: line 1"},
        {"[]", "the file is an array, not an object"},
        {"{}", "model is missing, not an object"},
        {"{\"model\":{\"type\":7}}", "model.type is an integer, not a string"},
        {"{\"model\":{\"type\":\"Unigram\"}}", "pre_tokenizer has no ByteLevel"},
        {"{\"model\":{\"vocab\":[]},\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}",
         "a model of type \"Unigram\" with a ByteLevel"},
        {META "\"vocab\":{}}}", "model.vocab is an object, not an array"},
        {META "\"vocab\":[[\"a\"]]}}", "model.vocab[0] is not a string and a score"},
        {META "\"vocab\":[[\"a\",-1]],\"unk_id\":1}}",
         "model.unk_id 1 is outside the vocabulary of 1"},
        {META "\"vocab\":[[\"a\",1e300]]}}", "model.vocab[0]: the score is too large"},
        {"{\"model\":{\"type\":\"WordPiece\"}}", "\"WordPiece\""},
        {"{\"model\":" MODEL "}", "pre_tokenizer has no ByteLevel"},
        {"{\"model\":" MODEL ",\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}}",
         "pre_tokenizer 0 of type \"BertPreTokenizer\" is not supported yet (supported: Sequence,"},
        {"{\"model\":" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\"}}",
         "pre_tokenizer 0.replacement is not U+2581"},
        {"{\"model\":" MODEL
         ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"prepend_scheme\":\"x\"}}",
         "pre_tokenizer 0.prepend_scheme \"x\" is not known"},
        {"{\"model\":" MODEL ",\"normalizer\":{\"type\":\"Precompiled\","
         "\"precompiled_charsmap\":\"A*==\"}}",
         "precompiled_charsmap is not base64 at byte 1"},
        {"{\"model\":" MODEL ",\"normalizer\":{\"type\":\"Precompiled\","
         "\"precompiled_charsmap\":\"/////w==\"}}",
         "a trie of 4294967295 bytes does not fit its table of 4 bytes"},
        {"{\"model\":" MODEL ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{}}}",
         "normalizer 0.pattern has no string"},
        {"{\"model\":" MODEL ",\"normalizer\":{\"type\":\"Prepend\"}}",
         "normalizer 0.prepend is missing, not a string"},
        {"{\"model\":" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\"}}",
         "pre_tokenizer.pretokenizers is missing, not an array"},
        {"{\"model\":" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[7]}}",
         "pre_tokenizer is an integer, not an object"},
        {"{\"model\":" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
         "{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"}]}}",
         "pre_tokenizer 1 of type \"Digits\" comes after ByteLevel"},
        {"{\"model\":" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{}}}",
         "pre_tokenizer 0.pattern has no string"},
        {"{\"model\":" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},"
         "\"behavior\":\"Often\"}}",
         "behavior \"Often\" is not known"},
        {"{\"model\":" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},"
         "\"behavior\":\"Isolated\"}}",
         "f.json: pre_tokenizer 0: the pattern does not compile"},
        {"{\"model\":" MODEL ",\"normalizer\":{\"type\":\"NFKC\"}}",
         "normalizer 0 of type \"NFKC\" is not supported yet (supported: NFC, Prepend"},
        {HEAD MODEL ",\"decoder\":{\"type\":\"WordPiece\"}}", "decoder 0 of type \"WordPiece\""},
        {HEAD MODEL ",\"post_processor\":{\"type\":\"X\"}}", "post_processor 0 of type \"X\""},
        {HEAD "{\"merges\":[]}}", "model.vocab is missing, not an object"},
        {HEAD "{\"vocab\":{\"a\":\"x\"},\"merges\":[]}}",
         "model.vocab[\"a\"] is a string, not an id"},
        {HEAD "{\"vocab\":{\"a\":-1},\"merges\":[]}}", "model.vocab[\"a\"]: the id -1 is not in"},
        {HEAD "{\"vocab\":{\"a\":2097152},\"merges\":[]}}",
         "the id 2097152 is not in 0 to 2097151"},
        {HEAD "{\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}",
         "\"b\" has the id 1, which another token has"},
        {HEAD "{\"vocab\":{\"a\":1,\"a\":2},\"merges\":[]}}", "duplicate object key"},
        {HEAD "{\"vocab\":{\"a\":0}}}", "model.merges is missing, not an array"},
        {HEAD "{\"vocab\":{\"a\":0},\"merges\":[3]}}", "model.merges[0] is not a pair of strings"},
        {HEAD "{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "model.merges[0] is not a pair"},
        {HEAD "{\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}", "model.merges[0] is not two tokens"},
        {HEAD "{\"vocab\":{\"a\":0},\"merges\":[\"a a a\"]}}", "model.merges[0] is not two tokens"},
        {HEAD "{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}",
         "model.merges[0]: \"b\" is not in the vocabulary"},
        {HEAD "{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}}",
         "model.merges[0]: \"ab\" is not in the vocabulary"},
        {HEAD "{\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}}", "model.dropout is set"},
        {HEAD "{\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}",
         "model.end_of_word_suffix \"</w>\" is not supported"},
        {HEAD "{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"?\"}}",
         "model.unk_token \"?\" is not in the vocabulary"},
        {HEAD "{\"vocab\":{\"a\":0},\"merges\":[],\"ignore_merges\":1}}",
         "model.ignore_merges is an integer, not true or false"},
        {HEAD MODEL ",\"added_tokens\":{}}", "added_tokens is an object, not an array"},
        {HEAD MODEL ",\"added_tokens\":[{\"id\":5}]}",
         "added_tokens[0].content is missing, not a string"},
        {HEAD MODEL ",\"added_tokens\":[{\"id\":5.5,\"content\":\"x\"}]}",
         "added_tokens[0].id is a real number, not an id"},
        {HEAD MODEL ",\"added_tokens\":[{\"id\":99999999,\"content\":\"x\"}]}", "the id 99999999"},
        {HEAD MODEL ",\"added_tokens\":[{\"id\":5,\"content\":\"x\",\"special\":\"yes\"}]}",
         "added_tokens[0].special is a string, not true or false"},
        {HEAD MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\"}}",
         "post_processor 0.single is missing"},
        {HEAD MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
                    "{\"SpecialToken\":{\"id\":\"<s>\"}}]}}",
         "has no ids for \"<s>\""},
        {HEAD MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
                    "{\"SpecialToken\":{\"id\":\"<s>\"}}],\"special_tokens\":{\"<s>\":{\"ids\":"
                    "[77]}}}}",
         "the id 77 is outside the vocabulary of 4"},
        {HEAD MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}}",
         "has no Sequence"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cf_tokenizer *tok = NULL;
        cf_err err = {0};
        int rc = cf_tokenizer_parse(cases[i].json, strlen(cases[i].json), "f.json", &tok, &err);
        if (rc >= 0)
            printf("    accepted: %s\n", cases[i].json);
        CHECK(rc < 0 && tok == NULL);
        CHECK_HAS(err.msg, "f.json: ");
        CHECK_HAS(err.msg, cases[i].why);
        cf_tokenizer_close(&tok);
    }
}

/* Every proper beginning of a good file is refused; every flipped byte is refused or harmless. */
static void broken_files(void)
{
    static const char good[] =
        HEAD MODEL ",\"normalizer\":{\"type\":\"NFC\"},\"added_tokens\":[{\"id\":4,\"content\":"
                   "\"<s>\",\"special\":true},{\"id\":9,\"content\":\"w\",\"single_word\":true}],"
                   "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
                   "{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],"
                   "\"special_tokens\":{\"<s>\":{\"ids\":[4]}}}}";
    char json[sizeof good];
    int32_t ids[64];
    for (size_t n = 0; n < sizeof good; n++) {
        cf_tokenizer *tok = NULL;
        int rc = cf_tokenizer_parse(good, n, "f.json", &tok, NULL);
        CHECK(n == sizeof good - 1 ? rc == 0 : rc < 0);
        cf_tokenizer_close(&tok);
    }
    for (size_t at = 0; at < sizeof good - 1; at++)
        for (unsigned bit = 0; bit < 8; bit++) {
            cf_tokenizer *tok = NULL;
            size_t n;
            memcpy(json, good, sizeof good);
            json[at] = (char)(json[at] ^ 1 << bit);
            if (cf_tokenizer_parse(json, sizeof good - 1, "f.json", &tok, NULL) == 0)
                cf_tokenizer_encode(tok, "ab w<s> b", 9, 3, ids, 64, &n, NULL);
            cf_tokenizer_close(&tok);
        }
}

static void missing_byte(void)
{
    static const char text[] = HEAD MODEL "}";
    static const char with_unk[] =
        HEAD "{\"vocab\":{\"a\":0,\"\\u0120\":1,\"?\":2},\"merges\":[],\"unk_token\":\"?\","
             "\"fuse_unk\":true}}";
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    int32_t ids[8];
    size_t n;
    REQUIRE(cf_tokenizer_parse(text, strlen(text), "f.json", &tok, &err) == 0);
    CHECK_INT(cf_tokenizer_encode(tok, "ab", 2, 0, ids, 8, &n, &err), 0);
    CHECK_INT(n, 2); /* the prefix space is ByteLevel's default */
    CHECK_INT(ids[0], 3);
    CHECK_INT(ids[1], 2);
    CHECK_INT(cf_tokenizer_encode(tok, "az", 2, 0, ids, 8, &n, &err), CF_EFORMAT);
    CHECK_HAS(err.msg, "no token for the byte 0x7a");
    cf_tokenizer_close(&tok);
    REQUIRE(cf_tokenizer_parse(with_unk, strlen(with_unk), "f.json", &tok, NULL) == 0);
    CHECK_INT(cf_tokenizer_encode(tok, "axyza", 5, 0, ids, 8, &n, NULL), 0);
    CHECK_INT(n, 4); /* blank a ? a: one for the run */
    CHECK_INT(ids[2], 2);
    cf_tokenizer_close(&tok);
}

/* The ids of the two cases below are the reference library's (tokenizers 0.23.3). */
#define SMALL                                                                                      \
    "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3,\"\\u010a\":4,\"x\":5,"   \
    "\"1\":6,\"!\":7,\"\\u0120a\":8,\".\":9,\"\\u0120ab\":10},\"merges\":[\"a b\",\"\\u0120 a\","  \
    "\"\\u0120 ab\"]}"

static void small_check(const cf_tokenizer *tok, const char *text, const char *want)
{
    char got[256] = "";
    id_list l = encode(tok, text, strlen(text), CF_TOK_PARSE_SPECIAL);
    for (size_t i = 0; i < l.n; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%d", i ? " " : "", l.ids[i]);
    CHECK_STR(got, want);
    free(l.ids);
}

static void blanks_taken_along(void)
{
    static const char json[] =
        "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
        ","
        "\"model\":" SMALL ",\"added_tokens\":["
        "{\"id\":11,\"content\":\"\\n\",\"lstrip\":true,\"rstrip\":true,\"normalized\":false},"
        "{\"id\":12,\"content\":\"  \",\"normalized\":false},"
        "{\"id\":13,\"content\":\"<r>\",\"rstrip\":true,\"special\":true}]}";
    static const struct {
        const char *text, *want;
    } cases[] = {{"a\n\n\nb", "0 11 1"},      {"a \n     b", "0 11 12 12 3 1"},
                 {"a<r>   b", "0 13 12 3 1"}, {"a<r>  \n  b", "0 13 12 11 12 1"},
                 {"<r><r> <r>", "13 13 13"},  {"  \n  ", "12 11 12"}};
    cf_tokenizer *tok = NULL;
    REQUIRE(cf_tokenizer_parse(json, strlen(json), "f.json", &tok, NULL) == 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        small_check(tok, cases[i].text, cases[i].want);
    cf_tokenizer_close(&tok);
}

/* Where the file does not say, special tokens are looked for as given and others normalised. */
static void normalized_where_not_said(void)
{
    static const char json[] =
        "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"normalizer\":{"
        "\"type\":\"NFC\"},\"model\":" SMALL ",\"added_tokens\":["
        "{\"id\":11,\"content\":\"e\\u0301\"},"
        "{\"id\":12,\"content\":\"u\\u0301\",\"special\":true}]}";
    cf_tokenizer *tok = NULL;
    size_t n;
    REQUIRE(cf_tokenizer_parse(json, strlen(json), "f.json", &tok, NULL) == 0);
    small_check(tok, "a\xc3\xa9\x62u\xcc\x81\x61", "0 11 1 12 0");
    /* Composed, the special one is not found, and this vocabulary lacks its bytes. */
    CHECK(cf_tokenizer_encode(tok, "\xc3\xba", 2, CF_TOK_PARSE_SPECIAL, NULL, 0, &n, NULL) < 0);
    cf_tokenizer_close(&tok);
}

#define BL      ",{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define BLS     ",{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":false}"
#define BLSR    ",{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}"
#define TYPE(t) "{\"type\":\"" t "\""

static void other_pre_tokenizers(void)
{
    static const struct {
        const char *list, *want;
    } cases[] = {
        {TYPE("Punctuation") ",\"behavior\":\"MergedWithPrevious\"}" BL,
         "2 6 6 9 2 7 8 4 9 6 2 3 1"},
        {TYPE("Digits") ",\"individual_digits\":false}" BL, "2 6 6 9 2 7 8 4 9 6 2 3 1"},
        {TYPE("Digits") ",\"individual_digits\":true}" BLS, "10 3 6 3 6 3 9 2 7 8 4 9 3 6 10 3 1"},
        {TYPE("WhitespaceSplit") "}" BLS, "10 6 6 9 2 7 8 3 9 6 2 3 1"},
        {TYPE("CharDelimiterSplit") ",\"delimiter\":\".\"}" BL, "2 6 6 2 7 8 4 6 2 3 1"},
        {TYPE("Split") ",\"pattern\":{\"String\":\".\"},\"behavior\":\"MergedWithNext\"}" BLS,
         "10 6 6 3 9 2 7 8 4 3 9 6 2 3 1"},
        {TYPE("Sequence") ",\"pretokenizers\":[" TYPE("Punctuation") "}," TYPE("Digits") "}]}" BLSR,
         "10 3 6 6 3 9 10 3 7 8 4 3 9 3 6 10 3 1"},
    };
    char json[1024];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cf_tokenizer *tok = NULL;
        cf_err err = {0};
        snprintf(
            json, sizeof json,
            "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[%s]},\"model\":" SMALL
            "}",
            cases[i].list);
        if (cf_tokenizer_parse(json, strlen(json), "f.json", &tok, &err) < 0)
            printf("    %s\n", err.msg);
        REQUIRE(tok != NULL);
        small_check(tok, "ab11.ab! a\n.1ab b", cases[i].want);
        cf_tokenizer_close(&tok);
    }
}

/* --- files beside ---------------------------------------------------------------------------- */

static void write_file(const char *folder, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static void config_beside(void)
{
    static const char added[] =
        HEAD MODEL ",\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true}]";
    static const char template[] =
        ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":"
        "\"A\"}}]}";
    static const struct {
        bool template;
        const char *config; /* NULL: none */
        int bos;            /* -1: refused */
        const char *why;
    } cases[] = {
        {false, NULL, 0, NULL},
        {false, "{\"add_bos_token\":true,\"bos_token\":\"<s>\"}", 1, NULL},
        {false, "{\"add_bos_token\":true,\"bos_token\":{\"content\":\"<s>\"}}", 1, NULL},
        {false, "{\"add_bos_token\":false,\"bos_token\":\"<s>\"}", 0, NULL},
        {false, "{\"bos_token\":\"<s>\"}", 0, NULL},
        {false, "{\"add_bos_token\":true}", 0, NULL},
        {true, "{\"add_bos_token\":true,\"bos_token\":\"<s>\"}", 0, NULL},
        {false, "{\"add_bos_token\":true,\"bos_token\":\"<x>\"}", -1,
         "bos_token \"<x>\" is not in"},
        {false, "{\"add_bos_token\":3,\"bos_token\":\"<s>\"}", -1, "not true or false"},
        {false, "{", -1, "tokenizer_config.json: line 1"},
    };
    char folder[64] = "/tmp/cf-tokenizer-XXXXXX", path[128], json[1024];
    REQUIRE(mkdtemp(folder) != NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cf_tokenizer *tok = NULL;
        cf_err err = {0};
        snprintf(json, sizeof json, "%s%s}", added, cases[i].template ? template : "");
        write_file(folder, "tokenizer.json", json);
        if (cases[i].config)
            write_file(folder, "tokenizer_config.json", cases[i].config);
        snprintf(path, sizeof path, "%s/tokenizer.json", folder);
        int rc = cf_tokenizer_load(path, &tok, &err);
        CHECK_INT(rc == 0, cases[i].bos >= 0);
        if (rc == 0)
            CHECK_INT(cf_tokenizer_adds_bos(tok), cases[i].bos);
        else
            CHECK_HAS(err.msg, cases[i].why);
        cf_tokenizer_close(&tok);
        snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
        unlink(path);
    }
    cf_tokenizer *tok = NULL;
    cf_err err = {0}, err2 = {0};
    CHECK_INT(cf_tokenizer_load(folder, &tok, &err), CF_EFORMAT);
    CHECK_HAS(err.msg, "is not a file");
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    unlink(path);
    CHECK_INT(cf_tokenizer_load(path, &tok, &err2), -ENOENT);
    CHECK_HAS(err2.msg, path);
    rmdir(folder);
}

int main(void)
{
    RUN(long_pieces_by_definition);
    RUN(long_texts_stay_fast);
    RUN(patterns_mean_what_they_meant);
    RUN(behaviors_and_inversion);
    RUN(unknown_patterns_are_refused);
    RUN(unicode_classes);
    RUN(unicode_ignore_case);
    RUN(nfc_pairs);
    RUN(malformed_files);
    RUN(broken_files);
    RUN(missing_byte);
    RUN(blanks_taken_along);
    RUN(normalized_where_not_said);
    RUN(other_pre_tokenizers);
    RUN(config_beside);
    return check_done();
}
