/* The template interpreter. Catches: a conversation rendered otherwise than the reference renders
 * it (every published template at hand, byte for byte, errors included), a template that is
 * accepted and then misread, work without a bound, and text of a user that loses its mark on its
 * way through a template. */
#include "runtime/jinja.h"

#include <glob.h>

#include "tests/check.h"

static const char fixtures[] = "tests/fixtures/chat";
static const struct tm fixed_clock = {.tm_year = 125,
                                      .tm_mon = 2,
                                      .tm_mday = 14,
                                      .tm_hour = 15,
                                      .tm_min = 9,
                                      .tm_sec = 26,
                                      .tm_wday = 5,
                                      .tm_yday = 72};

static char *file_read(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    char *text = calloc(1, 1 << 20);
    *bytes = f && text ? fread(text, 1, (1 << 20) - 1, f) : 0;
    if (f)
        fclose(f);
    return text;
}

/* ---- the fixtures ---- */

/* What the reference's caller does before it renders. */
static void reasoning_fill(json_t *message)
{
    static const char *const names[] = {"reasoning_content", "reasoning", "thinking"};
    for (size_t i = 0; i < 3; i++) {
        json_t *text = json_object_get(message, names[i]);
        if (!text)
            continue;
        json_object_set(message, "thinking", text);
        json_object_set(message, "reasoning_content", text);
        return;
    }
}

static json_t *variables(const json_t *family, const json_t *c)
{
    json_t *vars = json_object(), *value;
    const char *key;
    json_t *messages = json_deep_copy(json_object_get(c, "messages"));
    for (size_t i = 0; i < json_array_size(messages); i++)
        reasoning_fill(json_array_get(messages, i));
    json_object_set_new(vars, "messages", messages);
    json_object_set(vars, "tools", json_object_get(c, "tools"));
    json_object_set_new(vars, "documents", json_null());
    json_object_set_new(vars, "add_generation_prompt", json_false());
    json_object_foreach(json_object_get(c, "options"), key, value)
    {
        if (strcmp(key, "continue_final_message") != 0)
            json_object_set(vars, key, value);
    }
    for (size_t i = 0; i < 2; i++) {
        const char *token = i ? "eos_token" : "bos_token";
        if (json_is_string(json_object_get(family, token)))
            json_object_set(vars, token, json_object_get(family, token));
    }
    return vars;
}

/* continue_final_message: the rendering ends behind the last message's text. */
static void cut_behind(cf_jinja_text *out, const char *last)
{
    char trimmed[4096];
    const char *found = NULL;
    snprintf(trimmed, sizeof trimmed, "%s", last);
    for (size_t n = strlen(trimmed); n && strchr(" \n\t", trimmed[n - 1]); n--)
        trimmed[n - 1] = 0;
    for (const char *at = out->text; (at = strstr(at, trimmed)); at++)
        found = at;
    if (!found)
        return;
    size_t n = strlen(last), end = (size_t)(found - out->text);
    end += !strncmp(found, last, n) ? n : strlen(trimmed);
    out->text[out->bytes = end] = 0;
}

static void case_check(const cf_jinja_template *tmpl, const json_t *family, const json_t *c)
{
    json_t *vars = variables(family, c), *error = json_object_get(c, "error");
    const char *name = json_string_value(json_object_get(c, "name"));
    const json_t *expected = json_object_get(c, "expected");
    cf_jinja_input input = {.vars = vars, .now = &fixed_clock};
    cf_jinja_text out;
    cf_err err = {0};
    int rc = cf_jinja_render(tmpl, &input, &out, &err);
    if (rc == 0 &&
        json_is_true(json_object_get(json_object_get(c, "options"), "continue_final_message"))) {
        const json_t *messages = json_object_get(c, "messages");
        cut_behind(&out, json_string_value(json_object_get(
                             json_array_get(messages, json_array_size(messages) - 1), "content")));
    }
    bool wrong = error ? rc == 0
                       : rc < 0 || out.bytes != json_string_length(expected) ||
                             memcmp(out.text, json_string_value(expected), out.bytes) != 0;
    if (error && !strcmp(json_string_value(json_object_get(error, "kind")), "raise_exception")) {
        const char *text = json_string_value(json_object_get(error, "message"));
        const char *said = strstr(err.msg, "): ");
        wrong = wrong || !said || strcmp(said + 3, text) != 0;
    }
    if (wrong) {
        printf("    case %s: rc %d, %s\n--- expected\n%s\n--- got\n%s\n---\n", name, rc, err.msg,
               error ? "(an error)" : json_string_value(expected), rc == 0 ? out.text : "");
        CHECK_NEVER("the rendering is not the reference's");
    }
    cf_jinja_text_finish(&out);
    json_decref(vars);
}

static void family_check(const char *path)
{
    json_t *family = json_load_file(path, 0, NULL);
    const char *file = json_string_value(json_object_get(family, "template_file"));
    json_t *cases = json_object_get(family, "cases");
    cf_jinja_template *tmpl = NULL;
    cf_err err = {0};
    char full[256];
    size_t bytes;
    if (!file) {
        json_decref(family);
        SKIP("%s comes without its template", path);
    }
    snprintf(full, sizeof full, "%s/%s", fixtures, file);
    char *text = file_read(full, &bytes);
    CHECK(bytes > 0);
    CHECK_INT(cf_jinja_compile(text, bytes, &tmpl, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK(json_array_size(cases) > 5);
    for (size_t i = 0; tmpl && i < json_array_size(cases); i++)
        case_check(tmpl, family, json_array_get(cases, i));
    cf_jinja_close(&tmpl);
    free(text);
    json_decref(family);
}

static void families(void)
{
    char pattern[256];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*.json", fixtures);
    if (glob(pattern, 0, NULL, &found) != 0) {
        CHECK_NEVER("the fixtures are missing");
        check_case_end("families");
        return;
    }
    for (size_t i = 0; i < found.gl_pathc; i++)
        if (!strstr(found.gl_pathv[i], "features.json"))
            RUN_NAMED(found.gl_pathv[i] + sizeof fixtures, family_check(found.gl_pathv[i]));
    globfree(&found);
}

/* ---- the language, piece by piece ---- */

/* Renders over the variables in JSON; the text, or the error's sentence. Static storage. */
static const char *rendered(const char *text, const char *json)
{
    static char out[4096];
    cf_jinja_template *tmpl = NULL;
    cf_jinja_text result = {0};
    cf_err err = {0};
    json_t *vars = json_loads(json, 0, NULL);
    cf_jinja_input input = {
        .vars = vars, .now = &fixed_clock, .steps = 100000, .memory_bytes = 8 << 20};
    int rc = cf_jinja_compile(text, strlen(text), &tmpl, &err);
    if (rc == 0)
        rc = cf_jinja_render(tmpl, &input, &result, &err);
    snprintf(out, sizeof out, "%s", rc == 0 ? result.text : err.msg);
    if (rc < 0 && !err.msg[0])
        snprintf(out, sizeof out, "no sentence");
    cf_jinja_text_finish(&result);
    cf_jinja_close(&tmpl);
    json_decref(vars);
    return out;
}

static void language(void)
{
    static const char *const table[][3] = {
#include "tests/fixtures/jinja_table.inc"
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strcmp(rendered(table[i][0], table[i][1]), table[i][2]) != 0) {
            printf("    %s\n    with %s gives\n    \"%s\", expected\n    \"%s\"\n", table[i][0],
                   table[i][1], rendered(table[i][0], table[i][1]), table[i][2]);
            CHECK_NEVER("not what the reference renders");
        }
}

static void failures_name_the_line(void)
{
    static const char *const table[][2] = {
        {"a\n{{ x", "line 2: a tag is not closed"},
        {"a\n\n{# x", "line 3: a comment is not closed"},
        {"{% if a %}\n{% for b in c %}", "line 2: a block is not closed: endfor"},
        {"\n{% include 'x' %}", "line 2: the statement \"include\" is not supported"},
        {"{{ a | sort }}", "line 1: the filter \"sort\" is not supported"},
        {"{{ a is odd }}", "line 1: the test \"odd\" is not supported"},
        {"\n{{ 'abc }}", "line 2: a string is not closed"},
        {"{{ 1 + 'a' }}", "line 1: an integer + a string has no meaning"},
        {"\n\n{{ a.b.c }}", "line 3: \"b\" is undefined"},
        {"{{ f() }}", "line 1: \"f\" is undefined"},
        {"\n{{ raise_exception('No ' ~ 1) }}", "refuses (line 2): No 1"},
        {"{{ 1 // 0 }}", "line 1: division by zero"},
        {"{{ 9223372036854775807 + 1 }}", "does not fit 64 bits"},
        {"{% break %}", "\"break\" outside of a loop"},
        {"{% set a = 1 %}{% set a.b = 2 %}", "only a namespace's attributes can be set"},
        {"{{ {} | tojson | from_json | length }}{{ '[' | from_json }}", "from_json: "},
        {"{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "takes 1 arguments, not 2"},
        {"{{ 'a' | tojson(indent=900) }}", "indent"},
        {"{% endif %}", "\"endif\" is not supported or stands alone"}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        CHECK_HAS(rendered(table[i][0], "{\"a\": {}}"), table[i][1]);
}

static void work_is_bounded(void)
{
    static char deep[200001];
    CHECK_HAS(rendered("{% for a in range(100000000) %}{% endfor %}", "{}"), "steps");
    CHECK_HAS(rendered("{% set n = namespace(t='aaaaaaaaaaaaaaaa') %}{% for a in range(40) %}"
                       "{% set n.t = n.t + n.t %}{% endfor %}",
                       "{}"),
              "more than");
    CHECK_HAS(rendered("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{}"), "nesting");
    CHECK_HAS(rendered("{% set l = [] %}{% set _ = l.append(l) %}{{ l }}", "{}"), "nesting");
    CHECK_HAS(rendered("{% set l = [] %}{% set _ = l.append(l) %}{{ l | tojson }}", "{}"),
              "nesting");
    CHECK_HAS(rendered("{% set n = namespace(t='[],') %}{% for a in range(15) %}"
                       "{% set n.t = n.t + n.t %}{% endfor %}{{ ('[' + n.t) | from_json }}",
                       "{}"),
              "from_json: JSON of more than 32768 values");
    CHECK_HAS(rendered("{% set n = namespace(t='[') %}{% for a in range(12) %}"
                       "{% set n.t = n.t + n.t %}{% endfor %}{{ n.t | from_json }}",
                       "{}"),
              "from_json: JSON nested deeper than 1024 at byte 1024");
    memset(deep, '(', sizeof deep - 1);
    memset(deep + 100000, ')', 100000);
    memcpy(deep, "{{", 2);
    memcpy(deep + sizeof deep - 3, "}}", 2);
    CHECK_HAS(rendered(deep, "{}"), "nesting");
    for (size_t i = 2; i + 1 < sizeof deep; i += 2)
        memcpy(deep + i, "1+", 2);
    memcpy(deep + sizeof deep - 5, "11}}", 4);
    CHECK_HAS(rendered(deep, "{}"), "nesting");
    for (size_t i = 2; i + 4 < sizeof deep; i += 4)
        memcpy(deep + i, "not ", 4);
    CHECK_HAS(rendered(deep, "{}"), "nesting");

    cf_jinja_template *tmpl = NULL;
    cf_err err = {0};
    char *large = calloc(1, CF_JINJA_TEMPLATE_BYTES_MAX + 1);
    CHECK_INT(cf_jinja_compile(large, CF_JINJA_TEMPLATE_BYTES_MAX + 1, &tmpl, &err), CF_ELIMIT);
    free(large);
    err = (cf_err){0};
    CHECK_INT(cf_jinja_compile("a\xff", 2, &tmpl, &err), CF_EFORMAT);
    CHECK_HAS(err.msg, "byte 1");
}

/* ---- marks ---- */

/* The text with every marked byte in capitals (letters) or as '#'. */
static void marks_check(const char *text, const char *expected)
{
    cf_jinja_template *tmpl = NULL;
    cf_jinja_text out = {0};
    json_t *vars = json_pack("{s:s,s:[s,s],s:{s:s}}", "u", " user<x> ", "l", "one", "two", "d",
                             "key", "value");
    json_t *trusted = json_pack("{s:s}", "bos", "<s>");
    cf_jinja_input input = {.vars = vars, .trusted = trusted};
    REQUIRE(cf_jinja_compile(text, strlen(text), &tmpl, NULL) == 0);
    CHECK_INT(cf_jinja_render(tmpl, &input, &out, NULL), 0);
    for (size_t i = 0; i < out.bytes; i++)
        if (out.marks[i])
            out.text[i] = out.text[i] >= 'a' && out.text[i] <= 'z' ? (char)(out.text[i] - 32) : '#';
    CHECK_STR(out.text ? out.text : "(no text)", expected);
    cf_jinja_text_finish(&out);
    cf_jinja_close(&tmpl);
    json_decref(vars);
    json_decref(trusted);
}

static void marks_follow_the_text(void)
{
    marks_check("{{ bos }}<u>{{ u }}</u>", "<s><u>#USER#X##</u>");
    marks_check("a{{ u.strip() + 'b' ~ u | trim }}", "aUSER#X#bUSER#X#");
    marks_check("{{ u.split('<')[1] }}{{ u[1:3] }}{{ u[::-1] }}", "X##US##X#RESU#");
    marks_check("{{ u | replace('user', 'me') }}{{ 'a b' | replace('a', u.strip()) }}",
                "#me#X##USER#X# b");
    marks_check("{{ l | join('-') }}|{{ l }}|{{ d | tojson }}",
                "ONE-TWO|['ONE', 'TWO']|{\"KEY\": \"VALUE\"}");
    marks_check("{% for k, v in d.items() %}{{ k }}={{ v | upper }}{% endfor %}", "KEY=#####");
    marks_check("{% set t %}x{{ u.strip() }}{% endset %}{{ t }}", "xUSER#X#");
    marks_check("{% macro m(a) %}[{{ a.rstrip() }}]{% endmacro %}{{ m(u) | string | safe }}",
                "[#USER#X#]");
    marks_check("{{ (d | tojson | from_json).key }}{{ u | trim | list | first }}", "VALUEU");
}

int main(void)
{
    families();
    RUN(language);
    RUN(failures_name_the_line);
    RUN(work_is_bounded);
    RUN(marks_follow_the_text);
    return check_done();
}
