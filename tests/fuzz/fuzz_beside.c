/* Catches: the files beside a model, tokenizer_config.json (as the tokenizer and as the chat
 * template read it) and the index of its shards, that make opening it crash, leak or hang, that
 * lead outside of the folder, or fail without a sentence.
 *
 * Input: a byte that says which (0: the config, beside a tokenizer.json; 1: beside a rank file; 2:
 * the index, beside two shards), then the file. */
#include <string.h>
#include <sys/stat.h>

#include "models/tokenizer_rules.h"
#include "runtime/chat.h"
#include "storage/safetensors.h"
#include "tests/fuzz/memory_file.h"

enum { KINDS = 3, PATH_SIZE = 128 };

static char folders[KINDS][PATH_SIZE - 64];
static const char *const names[KINDS] = {"tokenizer_config.json", "tokenizer_config.json",
                                         "model.safetensors.index.json"};
static const struct {
    int kind;
    const char *name, *text;
} others[] = {
    {0, "tokenizer.json",
     "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,"
     "\"\\u0120\":3},\"merges\":[\"a b\"]},\"added_tokens\":[{\"id\":4,\"content\":\"<s>\","
     "\"special\":true}]}"},
    {1, "cl100k_base.tiktoken", "YQ== 0\nYg== 1\nYWI= 2\nIA== 3\n"},
    {2, "a.safetensors",
     "\x38\0\0\0\0\0\0\0{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}  data"},
    {2, "b.safetensors",
     "\x38\0\0\0\0\0\0\0{\"u\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}  data"},
};

static void path_put(char path[PATH_SIZE], int kind, const char *name)
{
    snprintf(path, PATH_SIZE, "%s/%s", folders[kind], name);
}

static void file_write(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    check(f && fwrite(data, 1, n, f) == n && fclose(f) == 0);
}

static void folders_remove(void)
{
    char path[PATH_SIZE];
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        path_put(path, others[i].kind, others[i].name);
        unlink(path);
    }
    for (int i = 0; i < KINDS; i++) {
        path_put(path, i, names[i]);
        unlink(path);
        rmdir(folders[i]);
    }
}

static void folders_make(void)
{
    char path[PATH_SIZE];
    for (int i = 0; i < KINDS; i++) {
        snprintf(folders[i], sizeof folders[i], "/tmp/catflap-fuzz-%ld-%d", (long)getpid(), i);
        check(mkdir(folders[i], 0700) == 0);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        size_t n = others[i].kind == 2 ? 8 + 0x38 + 4 : strlen(others[i].text);
        path_put(path, others[i].kind, others[i].name);
        file_write(path, others[i].text, n);
    }
    atexit(folders_remove);
}

static void tokenizer_open(int kind)
{
    const cf_tokenizer_place place = {.dir = folders[kind], .rules = &cf_tokenizer_rules_known};
    cf_tokenizer *tok = NULL;
    cf_chat *chat = NULL;
    cf_err err = {0}, why = {0};
    int32_t ids[64];
    size_t n;
    int rc = cf_tokenizer_open(&place, &tok, NULL, &err);
    sentence_check(rc, err.msg);
    check((rc < 0) == (tok == NULL));
    if (tok && cf_tokenizer_encode(tok, "ab<s> a", 7, CF_TOK_ADD_PREFIX | CF_TOK_PARSE_SPECIAL, ids,
                                   64, &n, NULL) == 0)
        for (size_t i = 0; i < n && i < 64; i++)
            check(ids[i] >= 0 && ids[i] < cf_tokenizer_vocab_size(tok));
    rc = cf_chat_open(folders[kind], NULL, 0, &chat, &why);
    sentence_check(rc, why.msg);
    if (chat && tok)
        check(cf_chat_stop(chat, tok) < cf_tokenizer_vocab_size(tok));
    cf_chat_close(&chat);
    cf_tokenizer_close(&tok);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[PATH_SIZE];
    cf_catalogue *cat = NULL;
    cf_err err = {0};
    if (!size)
        return 0;
    if (!folders[0][0])
        folders_make();
    int kind = data[0] % KINDS;
    path_put(path, kind, names[kind]);
    file_write(path, data + 1, size - 1);
    if (kind < 2) {
        tokenizer_open(kind);
        return 0;
    }
    int rc = cf_safetensors_open(folders[kind], &cat, &err);
    sentence_check(rc, err.msg);
    check((rc < 0) == (cat == NULL));
    for (uint32_t i = 0; cat && i < cf_catalogue_count(cat); i++)
        check(strncmp(cf_catalogue_path(cat, cf_catalogue_at(cat, i)->extent.file), folders[kind],
                      strlen(folders[kind])) == 0);
    cf_catalogue_close(&cat);
    return 0;
}
