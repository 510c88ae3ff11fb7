/* Jinja's strings: Python's methods of str over valid UTF-8; positions and lengths are characters.
 * Every result is a part of the old string or carries its marks along. Case is changed in ASCII
 * only: other letters stay as they are. */
#include "runtime/jinja_internal.h"

/* What str.isspace says. */
bool jx_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

/* The character at `at` < n of valid UTF-8. */
uint32_t jx_char_at(const char *text, size_t n, size_t at, size_t *bytes)
{
    const unsigned char *t = (const unsigned char *)text + at;
    size_t want = t[0] < 0x80 ? 1 : t[0] < 0xe0 ? 2 : t[0] < 0xf0 ? 3 : 4;
    uint32_t c = want == 1 ? t[0] : want == 2 ? t[0] & 31u : want == 3 ? t[0] & 15u : t[0] & 7u;
    if (want > n - at)
        want = n - at;
    for (size_t i = 1; i < want; i++)
        c = c << 6 | (t[i] & 63u);
    *bytes = want;
    return c;
}

static size_t char_before(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

/* Is the character at `at` one that strip takes? */
static bool strippable(jx_value str, size_t at, const jx_value *chars, size_t *bytes)
{
    uint32_t c = jx_char_at(str.text, str.n, at, bytes);
    return chars ? chars->n && memmem(chars->text, chars->n, str.text + at, *bytes)
                 : jx_is_space(c);
}

jx_value jx_strip(jx_state *s, jx_value str, const jx_value *chars, bool left, bool right)
{
    size_t begin = 0, end = str.n, bytes;
    if (chars && chars->kind == JX_NONE)
        chars = NULL;
    if (chars && chars->kind != JX_STR)
        jx_fail(s, CF_EFORMAT, "the characters to strip are %s, not a string",
                jx_kind_name(*chars));
    jx_step(s, chars ? chars->n / 16 : 0);
    while (left && begin < end && strippable(str, begin, chars, &bytes))
        begin += bytes;
    while (right && end > begin) {
        size_t last = char_before(str.text, end);
        if (!strippable(str, last, chars, &bytes))
            break;
        end = last;
    }
    return jx_slice_bytes(str, begin, end);
}

static size_t find(jx_value str, size_t from, jx_value what)
{
    const char *at = memmem(str.text + from, str.n - from, what.text, what.n);
    return at ? (size_t)(at - str.text) : SIZE_MAX;
}

jx_value jx_replace(jx_state *s, jx_value str, jx_value from, jx_value to, int64_t max)
{
    jx_buf buf = {0};
    size_t at = 0, hit;
    if (from.n == 0)
        jx_fail(s, CF_EFORMAT, "replacing nothing by something is not supported");
    while (max != 0 && at <= str.n && (hit = find(str, at, from)) != SIZE_MAX) {
        jx_step(s, 1);
        jx_buf_value(s, &buf, jx_slice_bytes(str, at, hit));
        jx_buf_value(s, &buf, to);
        at = hit + from.n;
        max -= max > 0;
    }
    jx_buf_value(s, &buf, jx_slice_bytes(str, at, str.n));
    return jx_buf_str(&buf);
}

static char upper(char c)
{
    return c >= 'a' && c <= 'z' ? (char)(c - 32) : c;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

jx_value jx_case(jx_state *s, jx_value str, const char *how)
{
    char *text = jx_text_copy(s, str.text, str.n);
    bool word = false;
    for (uint32_t i = 0; i < str.n; i++) {
        char c = text[i];
        bool up = how[0] == 'u' || (how[0] == 'c' && i == 0) || (how[0] == 't' && !word);
        word = upper(c) != lower(c) || (unsigned char)c >= 0x80;
        text[i] = up ? upper(c) : lower(c);
    }
    jx_value v = jx_str(text, str.n);
    v.marks = str.marks;
    return v;
}

/* ---- methods ---- */

/* The string argument i; fails when it is missing or something else. */
static jx_value str_arg(jx_state *s, const jx_args *args, uint32_t i, const char *method)
{
    const jx_value *v = jx_arg(args, i, "");
    if (!v || v->kind != JX_STR)
        jx_fail(s, CF_EFORMAT, "%s() needs a string, not %s", method,
                v ? jx_kind_name(*v) : "nothing");
    return *v;
}

static int64_t int_arg(jx_state *s, const jx_args *args, uint32_t i, const char *name, int64_t none)
{
    const jx_value *v = jx_arg(args, i, name);
    if (!v)
        return none;
    if (v->kind != JX_INT)
        jx_fail(s, CF_EFORMAT, "\"%s\" is %s, not an integer", name, jx_kind_name(*v));
    return v->i;
}

static void split_words(jx_state *s, jx_list *list, jx_value str, int64_t max)
{
    size_t at = 0, bytes;
    for (;;) {
        while (at < str.n && strippable(str, at, NULL, &bytes))
            at += bytes;
        if (at >= str.n)
            return;
        if (max == 0) {
            jx_list_add(s, list, jx_slice_bytes(str, at, str.n));
            return;
        }
        size_t begin = at;
        while (at < str.n && !strippable(str, at, NULL, &bytes))
            at += bytes;
        jx_list_add(s, list, jx_slice_bytes(str, begin, at));
        jx_step(s, 1);
        max -= max > 0;
    }
}

static jx_value split(jx_state *s, jx_value str, const jx_args *args)
{
    const jx_value *separator = jx_arg(args, 0, "sep");
    int64_t max = int_arg(s, args, 1, "maxsplit", -1);
    jx_value out = jx_list_new(s, JX_LIST, 0);
    if (!separator || separator->kind == JX_NONE) {
        split_words(s, out.list, str, max);
        return out;
    }
    if (separator->kind != JX_STR || separator->n == 0)
        jx_fail(s, CF_EFORMAT, "split() needs a separator that is a string and not empty");
    size_t at = 0, hit;
    while (max != 0 && (hit = find(str, at, *separator)) != SIZE_MAX) {
        jx_list_add(s, out.list, jx_slice_bytes(str, at, hit));
        jx_step(s, 1);
        at = hit + separator->n;
        max -= max > 0;
    }
    jx_list_add(s, out.list, jx_slice_bytes(str, at, str.n));
    return out;
}

static bool has_affix(jx_value str, jx_value affix, bool at_end)
{
    return affix.n <= str.n &&
           memcmp(str.text + (at_end ? str.n - affix.n : 0), affix.text, affix.n) == 0;
}

static jx_value affix(jx_state *s, jx_value str, const jx_args *args, bool at_end)
{
    const jx_value *v = jx_arg(args, 0, "");
    if (!v || v->kind != JX_TUPLE)
        return jx_bool(
            has_affix(str, str_arg(s, args, 0, at_end ? "endswith" : "startswith"), at_end));
    for (uint32_t i = 0; i < v->list->n; i++) {
        if (v->list->items[i].kind != JX_STR)
            jx_fail(s, CF_EFORMAT, "a tuple of affixes holds %s", jx_kind_name(v->list->items[i]));
        if (has_affix(str, v->list->items[i], at_end))
            return jx_bool(true);
    }
    return jx_bool(false);
}

static const char *const methods[] = {"capitalize", "endswith", "lower", "lstrip",
                                      "replace",    "rstrip",   "split", "startswith",
                                      "strip",      "title",    "upper", NULL};

bool jx_str_has_method(const char *name)
{
    for (const char *const *m = methods; *m; m++)
        if (!strcmp(*m, name))
            return true;
    return false;
}

jx_value jx_str_method(jx_state *s, jx_value str, const char *name, const jx_args *args)
{
    jx_step(s, str.n / 64);
    if (!strcmp(name, "strip") || !strcmp(name, "lstrip") || !strcmp(name, "rstrip"))
        return jx_strip(s, str, jx_arg(args, 0, ""), name[0] != 'r', name[0] != 'l');
    if (!strcmp(name, "split"))
        return split(s, str, args);
    if (!strcmp(name, "startswith") || !strcmp(name, "endswith"))
        return affix(s, str, args, name[0] == 'e');
    if (!strcmp(name, "replace"))
        return jx_replace(s, str, str_arg(s, args, 0, name), str_arg(s, args, 1, name),
                          int_arg(s, args, 2, "count", -1));
    return jx_case(s, str, name);
}
