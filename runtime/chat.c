/* Chat: see chat.h. Files beside the model are untrusted: bounded, and a fault is a sentence. */
#include "runtime/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/json.h"
#include "runtime/model_file.h"

enum { CONFIG_BYTES_MAX = 16 << 20, CONFIG_VALUES_MAX = 1 << 20 };

struct cf_chat {
    cf_jinja_template *tmpl;
    json_t *tokens; /* bos_token and the like: variables the template may trust */
};

/* ---- files ---- */

/* tokenizer_config.json; *config stays NULL where there is none. */
static int config_read(const char *dir, const cf_gguf *meta, json_t **config, cf_err *err)
{
    static const char name[] = "tokenizer_config.json";
    char *text = NULL;
    size_t bytes;
    char path[4096];
    int rc = cf_model_file_read(dir, meta, name, CONFIG_BYTES_MAX, &text, &bytes, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    *config = cf_json_parse(path, text, bytes, JSON_REJECT_DUPLICATES, CONFIG_VALUES_MAX, err);
    free(text);
    if (!*config)
        return CF_EFORMAT;
    if (!json_is_object(*config))
        return CF_FAIL(err, CF_EFORMAT, "%s/%s is not an object", dir, name);
    return 0;
}

/* bos_token, eos_token ...: a string, or an object with its content. */
static int tokens_read(cf_chat *chat, const json_t *config, cf_err *err)
{
    static const char *const names[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
    chat->tokens = json_object();
    for (size_t i = 0; chat->tokens && i < sizeof names / sizeof names[0]; i++) {
        json_t *token = json_object_get(config, names[i]);
        if (json_is_object(token))
            token = json_object_get(token, "content");
        if (json_is_string(token))
            json_object_set(chat->tokens, names[i], token);
    }
    return chat->tokens ? 0 : CF_FAIL(err, -ENOMEM, "out of memory for a chat template");
}

/* The same from a GGUF file, as far as the folder has not said: texts of ids. */
static int metadata_tokens_read(cf_chat *chat, const cf_gguf *meta, cf_err *err)
{
    static const struct {
        const char *name, *key;
    } keys[] = {{"bos_token", "tokenizer.ggml.bos_token_id"},
                {"eos_token", "tokenizer.ggml.eos_token_id"},
                {"pad_token", "tokenizer.ggml.padding_token_id"},
                {"unk_token", "tokenizer.ggml.unknown_token_id"}};
    cf_gguf_array tokens;
    cf_text text;
    int rc = cf_gguf_get_array(meta, "tokenizer.ggml.tokens", &tokens, err);
    for (size_t i = 0; rc == 1 && i < sizeof keys / sizeof keys[0]; i++) {
        uint32_t id = UINT32_MAX;
        cf_err none = {0}; /* a file may write -1 for none */
        if (json_object_get(chat->tokens, keys[i].name) ||
            cf_gguf_u32(meta, keys[i].key, &id, &none) != 1 ||
            !cf_gguf_array_string(&tokens, id, &text))
            continue;
        json_t *value = json_stringn(text.at, (size_t)text.bytes); /* NULL: not UTF-8 */
        if (value)
            json_object_set_new(chat->tokens, keys[i].name, value);
    }
    return rc < 0 ? rc : 0;
}

/* The template in tokenizer_config.json: a string, or the one called "default" of a list. */
static const json_t *config_template(const json_t *config)
{
    const json_t *t = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(t); i++) {
        const json_t *one = json_array_get(t, i);
        const char *name = json_string_value(json_object_get(one, "name"));
        if (name && !strcmp(name, "default"))
            return json_object_get(one, "template");
    }
    return t;
}

static int template_load(cf_chat *chat, const char *dir, const json_t *config, const cf_gguf *meta,
                         const char *name, cf_err *err)
{
    cf_text written;
    char *text = NULL;
    size_t bytes;
    int rc = cf_model_file_read(dir, meta, "chat_template.jinja", CONFIG_BYTES_MAX, &text, &bytes,
                                err);
    if (rc < 0)
        return rc;
    if (rc == 0) {
        rc = cf_jinja_compile(text, bytes, &chat->tmpl, err);
        free(text);
        return rc;
    }
    const json_t *own = config_template(config);
    if (json_is_string(own))
        return cf_jinja_compile(json_string_value(own), json_string_length(own), &chat->tmpl, err);
    if (json_is_array(own))
        return CF_FAIL(err, CF_EFORMAT, "%s: none of the %zu chat templates is called \"default\"",
                       dir, json_array_size(own));
    rc = meta ? cf_gguf_string(meta, "tokenizer.chat_template", &written, err) : 0;
    if (rc < 0)
        return rc;
    if (rc == 1)
        return cf_jinja_compile(written.at, (size_t)written.bytes, &chat->tmpl, err);
    return CF_FAIL(err, -ENOENT, "%s has no chat template: name one with --template", name);
}

/* name: of the model, for sentences. */
static int chat_open(const char *dir, const cf_gguf *meta, const char *name, const char *text,
                     size_t bytes, cf_chat **out, cf_err *err)
{
    json_t *config = NULL;
    cf_chat *chat = calloc(1, sizeof *chat);
    int rc;
    *out = NULL;
    if (!chat)
        return CF_FAIL(err, -ENOMEM, "out of memory for a chat template");
    CF_TRY(config_read(dir, meta, &config, err));
    CF_TRY(tokens_read(chat, config, err));
    if (meta)
        CF_TRY(metadata_tokens_read(chat, meta, err));
    if (text)
        CF_TRY(cf_jinja_compile(text, bytes, &chat->tmpl, err));
    else
        CF_TRY(template_load(chat, dir, config, meta, name, err));
    *out = chat;
    chat = NULL;
fail:
    json_decref(config);
    cf_chat_close(&chat);
    return rc;
}

int cf_chat_open(const char *dir, const char *text, size_t bytes, cf_chat **out, cf_err *err)
{
    return chat_open(dir, NULL, dir, text, bytes, out, err);
}

int cf_chat_open_model(const cf_model *model, const char *text, size_t bytes, cf_chat **out,
                       cf_err *err)
{
    return chat_open(model->dir, model->gguf, cf_model_path(model), text, bytes, out, err);
}

void cf_chat_close(cf_chat **chat)
{
    if (!*chat)
        return;
    cf_jinja_close(&(*chat)->tmpl);
    json_decref((*chat)->tokens);
    free(*chat);
    *chat = NULL;
}

/* ---- rendering ---- */

/* A role is a word that templates build markup from; any other text under that name is the user's
 * like all else. */
static bool is_role(const json_t *value)
{
    const char *c = json_string_value(value);
    if (!c || !*c)
        return false;
    for (; *c; c++)
        if (!(*c >= 'a' && *c <= 'z') && *c != '_')
            return false;
    return true;
}

static uint8_t mark_of(const json_t *owner, const char *key, const json_t *value, uint8_t inherited)
{
    const char *role = json_string_value(json_object_get(owner, "role"));
    if (json_is_array(json_object_get(owner, "messages")))
        return CF_TOK_MARK_USER; /* the variables themselves */
    if (key && !strcmp(key, "role") && is_role(value))
        return 0;
    if (role)
        return strcmp(role, "assistant") ? CF_TOK_MARK_USER : CF_TOK_MARK_MODEL;
    return inherited;
}

int cf_chat_render(const cf_chat *chat, const json_t *messages, const json_t *options,
                   const struct tm *now, bool generation, cf_jinja_text *out, cf_err *err)
{
    json_t *vars = json_object();
    int rc = 0;
    *out = (cf_jinja_text){0};
    if (json_object_set_new(vars, "tools", json_null()) != 0 ||
        json_object_set_new(vars, "documents", json_null()) != 0 ||
        (options && json_object_update(vars, (json_t *)options) != 0) ||
        json_object_set(vars, "messages", (json_t *)messages) != 0 ||
        json_object_set_new(vars, "add_generation_prompt", json_boolean(generation)) != 0)
        rc = CF_FAIL(err, -ENOMEM, "out of memory for a conversation");
    cf_jinja_input input = {.vars = vars, .trusted = chat->tokens, .mark = mark_of, .now = now};
    if (rc == 0)
        rc = cf_jinja_render(chat->tmpl, &input, out, err);
    json_decref(vars);
    return rc;
}

int cf_chat_encode(const cf_tokenizer *tok, const cf_jinja_text *text, int32_t **ids, size_t *n,
                   cf_err *err)
{
    size_t max = text->bytes + 1; /* a token is a byte at least */
    *ids = NULL;
    for (;;) {
        int32_t *larger = realloc(*ids, max * sizeof *larger);
        int rc = larger ? 0 : CF_FAIL(err, -ENOMEM, "out of memory for %zu ids", max);
        if (rc == 0) {
            *ids = larger;
            rc = cf_tokenizer_encode_marked(tok, text->text, text->bytes, text->marks,
                                            CF_TOK_PARSE_SPECIAL, *ids, max, n, err);
        }
        if (rc < 0) {
            free(*ids);
            *ids = NULL;
            return rc;
        }
        if (*n <= max)
            return 0;
        max = *n;
    }
}

/* The id of the first token of text[from ...), when it is a special one; else -1. */
static int32_t special_at(const cf_tokenizer *tok, const cf_jinja_text *text, size_t from)
{
    cf_jinja_text rest = {text->text + from, text->bytes - from, text->marks + from};
    int32_t *ids = NULL, id = -1;
    size_t n;
    if (cf_chat_encode(tok, &rest, &ids, &n, NULL) == 0 && n > 0 &&
        cf_tokenizer_is_special(tok, ids[0]))
        id = ids[0];
    free(ids);
    return id;
}

int32_t cf_chat_stop(const cf_chat *chat, const cf_tokenizer *tok)
{
    static const char answer[] = "an answer";
    json_t *messages = json_pack("[{s:s,s:s},{s:s,s:s}]", "role", "user", "content", "a question",
                                 "role", "assistant", "content", answer);
    cf_jinja_text text = {0};
    int32_t id = -1;
    /* A template that refuses so small a conversation has no stop to show. */
    if (messages && cf_chat_render(chat, messages, NULL, NULL, false, &text, NULL) == 0) {
        const char *at = strstr(text.text, answer);
        if (at)
            id = special_at(tok, &text, (size_t)(at - text.text) + sizeof answer - 1);
    }
    cf_jinja_text_finish(&text);
    json_decref(messages);
    const char *eos = json_string_value(json_object_get(chat->tokens, "eos_token"));
    return id >= 0 || !eos ? id : cf_tokenizer_find(tok, eos);
}
