/* Chat templates by name, for models whose files come without one. Static storage. */
#ifndef CF_MODELS_CHAT_TEMPLATES_H
#define CF_MODELS_CHAT_TEMPLATES_H

const char *cf_chat_template_builtin(const char *name); /* NULL: there is none */
const char *cf_chat_template_names(void);               /* for messages */

#endif
