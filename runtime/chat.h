/* Chat: a model's own template, conversations to text and to ids.
 *
 * The template is the model's (chat_template.jinja, or chat_template in tokenizer_config.json, or
 * tokenizer.chat_template of a GGUF file) or the caller's. Text keeps its provenance through the template (runtime/jinja.h), so a control
 * token that a user has typed is tokenised as plain text, whatever the template does to it.
 *
 * Messages: a JSON array of objects with "role" and "content", as the template wants them.
 * Threads: immutable once opened. */
#ifndef CF_RUNTIME_CHAT_H
#define CF_RUNTIME_CHAT_H

#include "runtime/jinja.h"
#include "runtime/model.h"
#include "runtime/tokenizer.h"

typedef struct cf_chat cf_chat;

/* dir: a model's folder. text: a template instead of the model's own, or NULL. -ENOENT with a
 * sentence when the model has none. */
int cf_chat_open(const char *dir, const char *text, size_t bytes, cf_chat **out, cf_err *err);
/* The same for a model that is open: files may be in its pack; what they and its folder lack may be
 * in the metadata of a GGUF file (tokenizer.chat_template, and the tokens that templates name). */
int cf_chat_open_model(const cf_model *model, const char *text, size_t bytes, cf_chat **out,
                       cf_err *err);
void cf_chat_close(cf_chat **chat); /* accepts NULL; leaves NULL */

/* options: an object with further variables (tools, enable_thinking, ...) or NULL. now: NULL = the
 * machine's clock. With `generation` the text ends where the assistant's answer begins. */
int cf_chat_render(const cf_chat *chat, const json_t *messages, const json_t *options,
                   const struct tm *now, bool generation, cf_jinja_text *out, cf_err *err);

/* Nothing is added to what the template has written. The caller frees ids. */
int cf_chat_encode(const cf_tokenizer *tok, const cf_jinja_text *text, int32_t **ids, size_t *n,
                   cf_err *err);

/* The token that the template writes behind an assistant's answer, where that is a special one;
 * or tokenizer_config's eos_token; else -1. */
int32_t cf_chat_stop(const cf_chat *chat, const cf_tokenizer *tok);

#endif
