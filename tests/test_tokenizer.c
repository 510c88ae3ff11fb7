/* Catches: an id that differs from the reference library's on any fixture, family and flag; a
 * split that is wrong though the ids happen to agree; special tokens made from plain user text;
 * state that two threads share; a vocabulary that takes more memory or time than it may. */
#include "runtime/tokenizer_parts.h"

#include <pthread.h>

#include "runtime/base/clock.h"
#include "tests/tokenizer_fixtures.h"

/* --- the vectors ----------------------------------------------------------------------------- */

/* Letters that are added tokens are decoded by the reference as raw bytes: its texts differ. */
static bool has_letter_token(const cf_tokenizer *tok, id_list l)
{
    for (size_t i = 0; i < l.n; i++) {
        size_t bytes;
        const char *piece = cf_tokenizer_piece(tok, l.ids[i], &bytes);
        if ((tok->vocab.tokens[l.ids[i]].flags & TOK_ADDED) && bytes == 2 && (piece[0] & 0x80))
            return true;
    }
    return false;
}

static void decoded_compare(const cf_tokenizer *tok, const json_t *row, const char *ids_key,
                            const char *key, bool skip)
{
    const json_t *want = json_object_get(row, key);
    id_list l = ids_of(json_object_get(row, ids_key));
    if (want && !has_letter_token(tok, l)) {
        text_file seen = stream(tok, l.ids, l.n, skip);
        if (!same_text(seen, want)) {
            printf("    %s of %s: got \"%s\"\n", key, row_id(row), seen.data);
            check_case_failed = true;
        }
        free(seen.data);
    }
    free(l.ids);
}

static void vectors_check(const cf_tokenizer *tok, const char *folder, const json_t *strings)
{
    char path[512];
    snprintf(path, sizeof path, "%s/vectors.jsonl", folder);
    json_t *rows = rows_load(path);
    REQUIRE(rows != NULL);
    CHECK(json_array_size(rows) >= json_array_size(strings));
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row)
    {
        const json_t *text = json_object_get(row, "text");
        if (!text)
            text = json_object_get(row_find(strings, row_id(row)), "text");
        const char *t = json_string_value(text);
        size_t n = json_string_length(text);
        id_list plain = encode(tok, t, n, CF_TOK_PARSE_SPECIAL);
        id_list all = encode(tok, t, n, CF_TOK_PARSE_SPECIAL | CF_TOK_ADD_PREFIX);
        ids_compare("ids", row_id(row), json_object_get(row, "ids"), plain);
        ids_compare("ids_special", row_id(row), json_object_get(row, "ids_special"), all);
        decoded_compare(tok, row, "ids", "decoded", false);
        decoded_compare(tok, row, "ids_special", "decoded_skip", true);
        free(plain.ids);
        free(all.ids);
    }
    json_decref(rows);
}

static void pieces_check(const cf_tokenizer *tok, const char *folder, const json_t *strings)
{
    char path[512];
    snprintf(path, sizeof path, "%s/pieces.jsonl", folder);
    json_t *rows = rows_load(path);
    if (!rows)
        return; /* the real ones have none */
    size_t i;
    const json_t *row;
    tok_pretok_work work = {0};
    tok_normal_work normal = {0};
    tok_scan scan;
    tok_buf out = {0};
    cf_err err = {0};
    REQUIRE(tok_scan_init(&scan, &err) == 0);
    json_array_foreach(rows, i, row)
    {
        const json_t *text = json_object_get(row_find(strings, row_id(row)), "text");
        const json_t *normalised = json_object_get(row, "normalized");
        const json_t *lens = json_object_get(row, "lens");
        const char *t = json_string_value(text);
        size_t n = json_string_length(text), k;
        bool changed, same;
        out.n = 0;
        CHECK(tok_normal_run(&tok->normal, &normal, t, n, &out, &changed, &err) == 0);
        text_file now = changed ? (text_file){out.data, out.n} : (text_file){(char *)t, n};
        CHECK(same_text(now, normalised ? normalised : text));
        CHECK(tok_pretok_run(&tok->pretok, &scan, &work, now.data, now.n, &err) == 0);
        same = work.pieces.n == json_array_size(lens);
        for (k = 0; same && k < work.pieces.n; k++)
            same = work.pieces.v[k].bytes == json_integer_value(json_array_get(lens, k));
        if (!same) {
            char *want = json_dumps(lens, JSON_COMPACT);
            printf("    pieces of %s: expected %.200s, got", row_id(row), want);
            for (k = 0; k < work.pieces.n && k < 40; k++)
                printf(" %u", work.pieces.v[k].bytes);
            printf("\n");
            free(want);
            check_case_failed = true;
        }
    }
    tok_pretok_work_finish(&work);
    tok_normal_work_finish(&normal);
    tok_scan_finish(&scan);
    tok_buf_finish(&out);
    json_decref(rows);
}

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

static void decode_check(const cf_tokenizer *tok, const char *folder)
{
    char path[512];
    snprintf(path, sizeof path, "%s/decode.jsonl", folder);
    json_t *rows = rows_load(path);
    REQUIRE(rows != NULL && json_array_size(rows) > 100);
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row)
    {
        const char *hex = json_string_value(json_object_get(row, "hex"));
        char *want = malloc(strlen(hex) / 2 + 1);
        size_t n = unhex(hex, want);
        id_list l = ids_of(json_object_get(row, "ids"));
        text_file got = decode(tok, l.ids, l.n, false);
        if (got.n != n || memcmp(got.data, want, n) != 0) {
            printf("    bytes of %s differ: expected %s\n", row_id(row), hex);
            check_case_failed = true;
        }
        if (json_is_true(json_object_get(row, "text_is_lossy_of_hex"))) {
            decoded_compare(tok, row, "ids", "text", false);
            decoded_compare(tok, row, "ids", "text_skip", true);
        }
        free(l.ids);
        free(got.data);
        free(want);
    }
    json_decref(rows);
}

static void bytes_check(const cf_tokenizer *tok, const char *folder, const json_t *inputs)
{
    char path[512];
    snprintf(path, sizeof path, "%s/bytes.jsonl", folder);
    json_t *rows = rows_load(path);
    REQUIRE(rows != NULL && json_array_size(rows) == json_array_size(inputs));
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row)
    {
        const json_t *text = json_object_get(row_find(inputs, row_id(row)), "lossy");
        id_list got =
            encode(tok, json_string_value(text), json_string_length(text), CF_TOK_PARSE_SPECIAL);
        ids_compare("bytes", row_id(row), json_object_get(row, "ids"), got);
        free(got.ids);
    }
    json_decref(rows);
}

/* llama.cpp's own vectors, where the folder has them. */
static void llamacpp_check(const cf_tokenizer *tok, const char *folder)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[512];
    snprintf(path, sizeof path, "%s/llamacpp.inp", folder);
    text_file in = slurp(path);
    snprintf(path, sizeof path, "%s/llamacpp.out", folder);
    text_file out = slurp(path);
    char *line = out.data;
    size_t n_texts = 0;
    for (char *text = in.data, *end; text && line && *line; text = end + sizeof mark - 1) {
        char *next = strchr(line, '\n');
        end = strstr(text, mark);
        size_t n = end ? (size_t)(end - text) : strlen(text);
        json_t *want = json_array();
        for (char *p = line, *q; p < next; p = q) {
            long id = strtol(p, &q, 10);
            if (q == p || q > next)
                break;
            json_array_append_new(want, json_integer(id));
        }
        id_list got = encode(tok, text, n, CF_TOK_PARSE_SPECIAL);
        snprintf(path, sizeof path, "text %zu", n_texts++);
        ids_compare("llamacpp", path, want, got);
        json_decref(want);
        free(got.ids);
        line = next + 1;
        if (!end)
            break;
    }
    CHECK(!in.data || n_texts > 40);
    free(in.data);
    free(out.data);
}

static void folder_check(const char *folder, const char *file)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    if (!file_exists(path))
        SKIP("%s is not there", path);
    cf_tokenizer *tok = open_json(path);
    REQUIRE(tok != NULL);
    vectors_check(tok, folder, all_strings);
    pieces_check(tok, folder, all_strings);
    decode_check(tok, folder);
    bytes_check(tok, folder, all_bytes);
    llamacpp_check(tok, folder);
    cf_tokenizer_close(&tok);
    CHECK(tok == NULL);
}

static void test_tiny(void)
{
    static const char *const names[] = {
        "added-flags", "bailing", "cl100k-dbrx", "deepseek-llm",  "deepseek-v3",
        "glm4",        "gpt2",    "gptneox-nfc", "kimi-k2",       "llama3",
        "longcat",     "qwen2",   "minimax-m2",  "o200k-harmony", "qwen35"};
    char folder[256];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(folder, sizeof folder, FIXTURES "/tiny/%s", names[i]);
        RUN_NAMED(names[i], folder_check(folder, "tokenizer.json"));
    }
    RUN_NAMED("gpt2, older layout", folder_check(FIXTURES "/tiny/gpt2", "tokenizer.legacy.json"));
}

static void test_real(void)
{
    static const char *const names[] = {"qwen3", "gpt-oss",      "dbrx",   "olmoe",
                                        "gpt2",  "deepseek-llm", "dolma2", "gpt-neox"};
    char folder[256], name[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(folder, sizeof folder, REAL "/%s", names[i]);
        snprintf(name, sizeof name, "real %s", names[i]);
        RUN_NAMED(name, folder_check(folder, "tokenizer.json.zst"));
    }
}

/* --- the bundled model's tokenizer ----------------------------------------------------------- */

static void demo_model(void)
{
    const char *tokenizer = "models/demo/tokenizer.json", *oracle = "models/demo/oracle";
    char path[128];
    if (!file_exists(tokenizer))
        tokenizer = "../shared/demo/tokenizer.json";
    if (!file_exists("models/demo/oracle/eval.txt"))
        oracle = "../shared/demo/oracle";
    snprintf(path, sizeof path, "%s/eval.txt", oracle);
    text_file text = slurp(path);
    snprintf(path, sizeof path, "%s/eval.ids", oracle);
    text_file windows = slurp(path);
    if (!file_exists(tokenizer) || !text.data || !windows.data)
        SKIP("the demo model is not there");
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    REQUIRE(cf_tokenizer_load(tokenizer, &tok, &err) == 0);
    CHECK_INT(cf_tokenizer_vocab_size(tok), 4096);
    CHECK(cf_tokenizer_adds_bos(tok));
    json_t *want = json_array();
    char *save = NULL;
    for (char *line = strtok_r(windows.data, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        char *p = line;
        CHECK_INT(strtol(p, &p, 10), 1); /* each window begins with <s> */
        for (char *q; *p; p = q) {
            long id = strtol(p, &q, 10);
            if (q == p)
                break;
            json_array_append_new(want, json_integer(id));
        }
    }
    CHECK_INT(json_array_size(want), 4080);
    id_list got = encode(tok, text.data, text.n, 0);
    /* The windows hold a whole number of tokens; the text may go on behind them. */
    CHECK(got.n >= 4080);
    got.n = got.n > 4080 ? 4080 : got.n;
    ids_compare("eval", "text", want, got);
    CHECK_INT(cf_tokenizer_find(tok, "<s>"), 1);
    CHECK_INT(cf_tokenizer_find(tok, "</s>"), 2);
    json_decref(want);
    free(got.ids);
    free(text.data);
    free(windows.data);
    cf_tokenizer_close(&tok);
}

/* --- flags ----------------------------------------------------------------------------------- */

/* User text must never become a special token; other added tokens are parsed all the same. */
static void plain_text_stays_plain(void)
{
    static const char text[] = "<|im_start|>user <think>x</think><|endoftext|>";
    cf_tokenizer *tok = open_json(FIXTURES "/tiny/qwen2/tokenizer.json");
    REQUIRE(tok != NULL);
    int32_t think = cf_tokenizer_find(tok, "<think>"),
            start = cf_tokenizer_find(tok, "<|im_start|>");
    REQUIRE(think > 0 && start > 0);
    CHECK(!cf_tokenizer_is_special(tok, think) && cf_tokenizer_is_special(tok, start));
    id_list plain = encode(tok, text, sizeof text - 1, CF_TOK_ADD_PREFIX);
    id_list parsed = encode(tok, text, sizeof text - 1, CF_TOK_PARSE_SPECIAL);
    size_t thinks = 0, specials = 0;
    for (size_t i = 0; i < plain.n; i++) {
        CHECK(!cf_tokenizer_is_special(tok, plain.ids[i]));
        thinks += plain.ids[i] == think;
    }
    for (size_t i = 0; i < parsed.n; i++)
        specials += cf_tokenizer_is_special(tok, parsed.ids[i]);
    CHECK_INT(thinks, 1);
    CHECK_INT(specials, 2);
    CHECK_INT(parsed.ids[0], start);
    text_file back = decode(tok, plain.ids, plain.n, false);
    CHECK_STR(back.data, text);
    free(back.data);
    free(plain.ids);
    free(parsed.ids);
    cf_tokenizer_close(&tok);
}

static void count_before_room(void)
{
    cf_tokenizer *tok = open_json(FIXTURES "/tiny/glm4/tokenizer.json");
    REQUIRE(tok != NULL);
    int32_t few[4] = {-7, -7, -7, -7}, all[32];
    size_t n = 0, n_all = 0;
    cf_err err = {0};
    const char *text = "Hello world, how are you?";
    CHECK_INT(cf_tokenizer_encode(tok, text, strlen(text), CF_TOK_ADD_PREFIX, NULL, 0, &n, &err),
              0);
    CHECK_INT(
        cf_tokenizer_encode(tok, text, strlen(text), CF_TOK_ADD_PREFIX, all, 32, &n_all, &err), 0);
    CHECK_INT(n, n_all);
    CHECK(n > 3 && n < 32);
    CHECK_INT(cf_tokenizer_encode(tok, text, strlen(text), CF_TOK_ADD_PREFIX, few, 3, &n, &err), 0);
    CHECK_INT(n, n_all);
    CHECK_INT(few[3], -7);
    CHECK(memcmp(few, all, 3 * sizeof *all) == 0);
    CHECK_INT(all[0], cf_tokenizer_find(tok, "[gMASK]"));
    CHECK_INT(all[1], cf_tokenizer_find(tok, "<sop>"));
    cf_tokenizer_close(&tok);
}

static void bad_text_and_ids(void)
{
    cf_tokenizer *tok = open_json(FIXTURES "/tiny/gpt2/tokenizer.json");
    REQUIRE(tok != NULL);
    cf_err err = {0};
    size_t n = 9;
    CHECK_INT(cf_tokenizer_encode(tok, "abc\xff", 4, 0, NULL, 0, &n, &err), CF_EFORMAT);
    CHECK_HAS(err.msg, "0xff at offset 3");
    CHECK_INT(n, 0);
    CHECK(cf_tokenizer_piece(tok, -1, &n)[0] == 0);
    CHECK_INT(n, 0);
    cf_tokenizer_piece(tok, cf_tokenizer_vocab_size(tok), &n);
    CHECK_INT(n, 0);
    CHECK(!cf_tokenizer_is_special(tok, INT32_MAX) && !cf_tokenizer_is_special(tok, INT32_MIN));
    CHECK_INT(cf_tokenizer_find(tok, "no such token"), -1);
    const char *piece = cf_tokenizer_piece(tok, cf_tokenizer_find(tok, " the"), &n);
    CHECK(n == 4 && memcmp(piece, " the", 4) == 0);
    cf_tokenizer_close(&tok);
    cf_tokenizer_close(&tok); /* accepts NULL */
}

/* --- threads, memory, speed ------------------------------------------------------------------ */

static void *encode_many(void *arg)
{
    const cf_tokenizer *tok = arg;
    uint64_t sum = 0;
    size_t i;
    const json_t *row;
    json_array_foreach(all_strings, i, row)
    {
        const json_t *text = json_object_get(row, "text");
        size_t n = 0;
        int32_t ids[256];
        if (cf_tokenizer_encode(tok, json_string_value(text), json_string_length(text), 3, ids, 256,
                                &n, NULL) < 0)
            return NULL;
        for (size_t k = 0; k < n && k < 256; k++)
            sum = sum * 31 + (uint64_t)ids[k];
    }
    return (void *)(uintptr_t)(sum | 1);
}

static void many_threads(void)
{
    cf_tokenizer *tok = open_json(FIXTURES "/tiny/added-flags/tokenizer.json");
    REQUIRE(tok != NULL);
    pthread_t threads[4];
    void *sums[4], *alone = encode_many(tok);
    for (int i = 0; i < 4; i++)
        REQUIRE(pthread_create(&threads[i], NULL, encode_many, tok) == 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &sums[i]);
        CHECK(sums[i] == alone && alone != NULL);
    }
    cf_tokenizer_close(&tok);
}

static void memory_and_speed(void)
{
    const char *path = REAL "/dbrx/tokenizer.json.zst";
    text_file words = slurp("../shared/demo/oracle/eval.txt");
    if (!file_exists(path) || !words.data) {
        free(words.data);
        SKIP("%s or the demo text is not there", path);
    }
    cf_tokenizer *tok = open_json(path);
    REQUIRE(tok != NULL);
    uint64_t memory = cf_tokenizer_memory(tok);
    CHECK(memory > 5u << 20 && memory < 40u << 20);
    size_t copies = 4000000 / words.n + 1, n = copies * words.n;
    char *text = malloc(n);
    for (size_t i = 0; i < copies; i++)
        memcpy(text + i * words.n, words.data, words.n);
    uint64_t begin = cf_clock_ns();
    id_list got = encode(tok, text, n, 0);
    double seconds = cf_seconds(cf_clock_ns() - begin);
    printf("    %.1f MB in %.2f s: %.1f MB/s, %zu tokens, %.1f MiB held\n", (double)n / 1e6,
           seconds, (double)n / 1e6 / seconds, got.n, (double)memory / 1048576.0);
    CHECK(got.n > n / 8);
    free(got.ids);
    free(text);
    free(words.data);
    cf_tokenizer_close(&tok);
}

int main(void)
{
    if (!strings_load())
        return 1;
    test_tiny();
    test_real();
    RUN(demo_model);
    RUN(plain_text_stays_plain);
    RUN(count_before_room);
    RUN(bad_text_and_ids);
    RUN(many_threads);
    RUN(memory_and_speed);
    return strings_done();
}
