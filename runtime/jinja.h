/* Jinja: renders a chat template over JSON values.
 *
 * The part of the language that published chat templates use, with the reference's environment
 * for them: trim_blocks, lstrip_blocks, no escaping, `break` and `continue`, `tojson` as
 * json.dumps, `raise_exception`, `strftime_now`. What is not known (include, import, call, ...) is
 * refused by name and line.
 *
 * Template and values are untrusted: size, nesting, steps, memory and output are bounded, and
 * every failure is one sentence with the line. Provenance is kept: each byte of the result carries
 * a mark that says whether it came out of a value (a user's text) or out of the template, through
 * every operation on strings, so that a caller can tell the template's control tokens from text
 * that only looks like them.
 *
 * Threads: a template is immutable once compiled; any number of threads may render it. */
#ifndef CF_RUNTIME_JINJA_H
#define CF_RUNTIME_JINJA_H

#include <jansson.h>
#include <stdint.h>
#include <time.h>

#include "runtime/base/err.h"

enum { CF_JINJA_TEMPLATE_BYTES_MAX = 1 << 20 };

typedef struct cf_jinja_template cf_jinja_template;

/* The text is copied. CF_EFORMAT with the line for a fault in it. */
int cf_jinja_compile(const char *text, size_t bytes, cf_jinja_template **out, cf_err *err);
void cf_jinja_close(cf_jinja_template **tmpl); /* accepts NULL; leaves NULL */

/* The mark of a string of `vars`: `owner` is the object it is in (NULL: an element of an array, or
 * vars itself), `key` its name there (NULL when it is the key that is asked for), `inherited` the
 * mark of what is around it. */
typedef uint8_t (*cf_jinja_mark)(const json_t *owner, const char *key, const json_t *value,
                                 uint8_t inherited);

typedef struct cf_jinja_input {
    const json_t *vars;    /* object; its strings are marked 1, or as `mark` says */
    const json_t *trusted; /* object or NULL: more variables, whose strings are not marked */
    cf_jinja_mark mark;
    const struct tm *now; /* for strftime_now; NULL = the machine's clock, local time */
    /* Limits; 0 = the default. */
    uint64_t steps, memory_bytes, output_bytes;
} cf_jinja_input;

typedef struct cf_jinja_text {
    char *text; /* NUL-terminated, valid UTF-8 */
    size_t bytes;
    uint8_t *marks; /* [bytes]; 0 = the template's own */
} cf_jinja_text;

/* CF_EFORMAT: the template or the values do not go together (for raise_exception the text follows
 * "the template refuses (line N): "); CF_ELIMIT: a bound. */
int cf_jinja_render(const cf_jinja_template *tmpl, const cf_jinja_input *input, cf_jinja_text *out,
                    cf_err *err);
void cf_jinja_text_finish(cf_jinja_text *text);

#endif
