/* Fuzzes a chat template and the values it is rendered over: the input is the template up to the
 * first zero byte, JSON variables behind it. Whatever compiles must end within its bounds, fail
 * with a sentence or give valid UTF-8, and give the same the second time. */
#include "runtime/jinja.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void render(const cf_jinja_template *tmpl, const json_t *vars)
{
    static const struct tm clock = {.tm_year = 125, .tm_mday = 14};
    cf_jinja_input input = {.vars = vars,
                            .now = &clock,
                            .steps = 50000,
                            .memory_bytes = 16 << 20,
                            .output_bytes = 1 << 20};
    cf_jinja_text a, b;
    cf_err err = {0};
    int rc = cf_jinja_render(tmpl, &input, &a, &err);
    if ((rc < 0) != (err.msg[0] != 0) || (rc < 0) != (a.text == NULL))
        abort();
    if (rc == 0 && cf_utf8_invalid(a.text, a.bytes) != a.bytes)
        abort();
    if (cf_jinja_render(tmpl, &input, &b, NULL) != rc)
        abort();
    if (rc == 0 && (a.bytes != b.bytes || memcmp(a.text, b.text, a.bytes) != 0 ||
                    memcmp(a.marks, b.marks, a.bytes) != 0))
        abort();
    cf_jinja_text_finish(&a);
    cf_jinja_text_finish(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    size_t n = zero ? (size_t)(zero - data) : size;
    cf_jinja_template *tmpl = NULL;
    cf_err err = {0};
    int rc = cf_jinja_compile((const char *)data, n, &tmpl, &err);
    if ((rc < 0) != (tmpl == NULL) || (rc < 0 && !err.msg[0]))
        abort();
    if (rc < 0)
        return 0;
    json_t *vars = zero ? json_loadb((const char *)zero + 1, size - n - 1, 0, NULL) : NULL;
    if (!json_is_object(vars)) {
        json_decref(vars);
        vars = json_pack("{s:[{s:s,s:s}],s:b}", "messages", "role", "user", "content", "Hi",
                         "add_generation_prompt", 1);
    }
    if (vars)
        render(tmpl, vars);
    json_decref(vars);
    cf_jinja_close(&tmpl);
    return 0;
}
