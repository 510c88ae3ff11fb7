/* Chat templates that come with the program: see chat_templates.h. */
#include "models/chat_templates.h"

#include <string.h>

/* Written from the prompt format in the model card of LongCat-Flash-Chat; not the vendor's text.
 * tests/fixtures/chat/templates/longcat-flash.documented.jinja is the same with its origin. */
/* clang-format off */
static const char longcat_flash[] =
    "{%- set think = think_suffix | default('') -%}\n"
    "{%- if tools -%}\n"
    "{{- '## Tools\\nYou have access to the following tools: \\n\\n### Tool namespace: funct"
    "ion\\n\\n' -}}\n"
    "{%- for tool in tools -%}\n"
    "{{- '#### Tool name: ' + tool.function.name + '\\n\\nDescription: ' + tool.function.de"
    "scription + '\\n\\nInputSchema: \\n' + (tool.function.parameters | tojson(indent=2)) + "
    "'\\n\\n' -}}\n"
    "{%- endfor -%}\n"
    "{{- '**Note**: For each function call, return a json object with function name and a"
    "rguments within <longcat_tool_call></longcat_tool_call> XML tags as follows:\\n<longc"
    "at_tool_call>\\n{\"name\": <function-name>, \"arguments\": <args-dict>}\\n</longcat_tool_c"
    "all>\\nWhen multiple functions need to be called simultaneously, each function call s"
    "hould be wrapped in its own <longcat_tool_call> tag and placed consecutively. For ex"
    "ample:\\n<longcat_tool_call>\\n{\"name\": <function-name>, \"arguments\": <args-dict>}\\n</"
    "longcat_tool_call><longcat_tool_call>\\n{\"name\": <function-name>, \"arguments\": <args-"
    "dict>}\\n</longcat_tool_call>\\n\\n## Messages\\n' -}}\n"
    "{%- endif -%}\n"
    "{%- set ns = namespace(round=0, sep='') -%}\n"
    "{%- for m in messages -%}\n"
    "{%- if m.role == 'system' -%}\n"
    "{{- 'SYSTEM:' + m.content -}}{%- set ns.sep = ' ' -%}\n"
    "{%- elif m.role == 'user' -%}\n"
    "{{- ns.sep + '[Round ' ~ ns.round ~ '] USER:' + m.content + think + ' ASSISTANT:' -}"
    "}{%- set ns.round = ns.round + 1 -%}{%- set ns.sep = ' ' -%}\n"
    "{%- elif m.role == 'assistant' -%}\n"
    "{{- m.content + '</longcat_s>' -}}\n"
    "{%- else -%}\n"
    "{{- raise_exception('role not documented: ' + m.role) -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n";
/* clang-format on */

static const struct {
    const char *name, *text;
} templates[] = {{"longcat-flash", longcat_flash}};

const char *cf_chat_template_builtin(const char *name)
{
    for (size_t i = 0; i < sizeof templates / sizeof templates[0]; i++)
        if (!strcmp(templates[i].name, name))
            return templates[i].text;
    return NULL;
}

const char *cf_chat_template_names(void)
{
    return "longcat-flash";
}
