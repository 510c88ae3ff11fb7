/* Jinja's values as text: str() and repr() as Python prints them, and json.dumps.
 *
 * A buffer keeps a mark beside every byte; what a value's text becomes (escaped, quoted) keeps the
 * value's marks. */
#include "runtime/jinja_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

void jx_buf_add(jx_state *s, jx_buf *buf, const char *text, const uint8_t *marks, size_t n)
{
    size_t max = buf->max ? buf->max : UINT32_MAX / 4;
    if (n > max - buf->n)
        jx_fail(s, CF_ELIMIT, "a text of more than %zu bytes", max);
    if (buf->size - buf->n < n) {
        size_t size = buf->size ? buf->size * 2 : 64;
        while (size < buf->n + n)
            size *= 2;
        char *larger = jx_alloc(s, size, 2);
        if (buf->n) {
            memcpy(larger, buf->text, buf->n);
            memcpy(larger + size, buf->marks, buf->n);
        }
        buf->text = larger;
        buf->marks = (uint8_t *)larger + size;
        buf->size = size;
    }
    if (n == 0)
        return;
    jx_step(s, n / 256);
    memcpy(buf->text + buf->n, text, n);
    if (marks)
        memcpy(buf->marks + buf->n, marks, n);
    else
        memset(buf->marks + buf->n, 0, n);
    buf->n += n;
}

jx_value jx_buf_str(const jx_buf *buf)
{
    jx_value v = jx_str(buf->n ? buf->text : "", buf->n);
    v.marks = buf->n ? buf->marks : NULL;
    return v;
}

static void add_text(jx_state *s, jx_buf *buf, const char *text)
{
    jx_buf_add(s, buf, text, NULL, strlen(text));
}

/* Text that stands for the byte `from` of a string: with its mark. */
static void add_as(jx_state *s, jx_buf *buf, const char *text, jx_value str, size_t from)
{
    uint8_t marks[16];
    size_t n = strlen(text);
    memset(marks, str.marks ? str.marks[from] : 0, sizeof marks);
    jx_buf_add(s, buf, text, marks, n);
}

/* The shortest digits that read back as the same number, in Python's form. */
static void add_float(jx_state *s, jx_buf *buf, double f)
{
    char text[40], digits[24];
    if (!isfinite(f)) {
        add_text(s, buf, isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
        return;
    }
    int precision = 0;
    do
        snprintf(text, sizeof text, "%.*e", precision, f);
    while (precision++ < 16 && strtod(text, NULL) != f);
    int exponent = atoi(strchr(text, 'e') + 1), n = 0;
    for (const char *c = text; *c != 'e'; c++)
        if (*c >= '0' && *c <= '9')
            digits[n++] = *c;
    if (exponent >= 16 || exponent < -4) {
        add_text(s, buf, f < 0 || signbit(f) ? "-" : "");
        jx_buf_add(s, buf, digits, NULL, 1);
        if (n > 1) {
            add_text(s, buf, ".");
            jx_buf_add(s, buf, digits + 1, NULL, (size_t)n - 1);
        }
        snprintf(text, sizeof text, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else {
        int decimals = n - 1 - exponent;
        snprintf(text, sizeof text, "%.*f", decimals > 1 ? decimals : 1, f);
    }
    add_text(s, buf, text);
}

/* ---- repr ---- */

static void add_repr_str(jx_state *s, jx_buf *buf, jx_value v)
{
    bool single = v.n && memchr(v.text, '\'', v.n), dbl = v.n && memchr(v.text, '"', v.n);
    char quote = single && !dbl ? '"' : '\'', text[16];
    jx_buf_add(s, buf, &quote, NULL, 1);
    for (size_t at = 0, bytes; at < v.n; at += bytes) {
        uint32_t c = jx_char_at(v.text, v.n, at, &bytes);
        const char *known = c < 0x80 ? strchr("\nn\tt\rr\\\\", (int)c) : NULL;
        if (c == (uint32_t)quote || c == '\n' || c == '\t' || c == '\r' || c == '\\')
            snprintf(text, sizeof text, "\\%c",
                     c == (uint32_t)quote || c == '\\' ? (char)c : known[1]);
        else if (c < 0x20 || (c >= 0x7f && c < 0xa1) || c == 0xad)
            snprintf(text, sizeof text, "\\x%02x", c);
        else if (c == 0x1680 || (c >= 0x2000 && c <= 0x200f) || (c >= 0x2028 && c <= 0x202f) ||
                 (c >= 0x205f && c <= 0x206f) || c == 0x3000 || c == 0xfeff ||
                 (c >= 0xe000 && c <= 0xf8ff))
            snprintf(text, sizeof text, "\\u%04x", c);
        else
            text[0] = 0;
        if (text[0])
            add_as(s, buf, text, v, at);
        else
            jx_buf_add(s, buf, v.text + at, v.marks ? v.marks + at : NULL, bytes);
    }
    jx_buf_add(s, buf, &quote, NULL, 1);
}

static void add_repr(jx_state *s, jx_buf *buf, jx_value v)
{
    if (v.kind == JX_STR)
        add_repr_str(s, buf, v);
    else if (v.kind == JX_UNDEF)
        add_text(s, buf, "Undefined");
    else
        jx_buf_value(s, buf, v);
}

static void add_list(jx_state *s, jx_buf *buf, jx_value v)
{
    bool tuple = v.kind == JX_TUPLE;
    add_text(s, buf, tuple ? "(" : "[");
    for (uint32_t i = 0; i < v.list->n; i++) {
        add_text(s, buf, i ? ", " : "");
        add_repr(s, buf, v.list->items[i]);
    }
    add_text(s, buf, tuple ? (v.list->n == 1 ? ",)" : ")") : "]");
}

static void add_dict(jx_state *s, jx_buf *buf, const jx_dict *d)
{
    add_text(s, buf, "{");
    for (uint32_t i = 0; i < d->n; i++) {
        add_text(s, buf, i ? ", " : "");
        add_repr(s, buf, d->pairs[i].key);
        add_text(s, buf, ": ");
        add_repr(s, buf, d->pairs[i].value);
    }
    add_text(s, buf, "}");
}

void jx_buf_value(jx_state *s, jx_buf *buf, jx_value v)
{
    char text[32];
    jx_step(s, 1);
    jx_enter(s);
    switch (v.kind) {
    case JX_UNDEF:
        break;
    case JX_NONE:
        add_text(s, buf, "None");
        break;
    case JX_BOOL:
        add_text(s, buf, v.b ? "True" : "False");
        break;
    case JX_INT:
        snprintf(text, sizeof text, "%lld", (long long)v.i);
        add_text(s, buf, text);
        break;
    case JX_FLOAT:
        add_float(s, buf, v.f);
        break;
    case JX_STR:
        jx_buf_add(s, buf, v.text, v.marks, v.n);
        break;
    case JX_LIST:
    case JX_TUPLE:
        add_list(s, buf, v);
        break;
    case JX_DICT:
        add_dict(s, buf, v.dict);
        break;
    default:
        jx_fail(s, CF_EFORMAT, "%s cannot be printed", jx_kind_name(v));
    }
    jx_leave(s);
}

jx_value jx_to_str(jx_state *s, jx_value v)
{
    jx_buf buf = {0};
    if (v.kind == JX_STR)
        return v;
    jx_buf_value(s, &buf, v);
    return jx_buf_str(&buf);
}

/* ---- json.dumps ---- */

static void add_json_str(jx_state *s, jx_buf *buf, jx_value v, bool ascii)
{
    char text[16];
    jx_buf_add(s, buf, "\"", NULL, 1);
    for (size_t at = 0, bytes; at < v.n; at += bytes) {
        uint32_t c = jx_char_at(v.text, v.n, at, &bytes);
        static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
        const char *known = c && c < 0x80 ? strchr(from, (int)c) : NULL;
        text[0] = 0;
        if (known)
            snprintf(text, sizeof text, "\\%c", to[known - from]);
        else if (c < 0x20 || (ascii && c > 0x7e && c < 0x10000 && c != 0x7f))
            snprintf(text, sizeof text, "\\u%04x", c);
        else if (ascii && c >= 0x10000)
            snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                     0xdc00 + ((c - 0x10000) & 0x3ff));
        if (text[0])
            add_as(s, buf, text, v, at);
        else
            jx_buf_add(s, buf, v.text + at, v.marks ? v.marks + at : NULL, bytes);
    }
    jx_buf_add(s, buf, "\"", NULL, 1);
}

static void json_line(jx_state *s, jx_buf *buf, const jx_json_style *style, uint32_t level)
{
    if (style->indent < 0)
        return;
    add_text(s, buf, "\n");
    for (int64_t i = 0; i < style->indent * level; i++)
        add_text(s, buf, " ");
}

static void add_json(jx_state *s, jx_buf *buf, jx_value v, const jx_json_style *style,
                     uint32_t level);

static void add_json_list(jx_state *s, jx_buf *buf, const jx_list *list, const jx_json_style *style,
                          uint32_t level)
{
    add_text(s, buf, "[");
    for (uint32_t i = 0; i < list->n; i++) {
        if (i)
            jx_buf_value(s, buf, style->item);
        json_line(s, buf, style, level + 1);
        add_json(s, buf, list->items[i], style, level + 1);
    }
    if (list->n)
        json_line(s, buf, style, level);
    add_text(s, buf, "]");
}

static int pair_order(const void *a, const void *b)
{
    const jx_value *x = &((const jx_pair *)a)->key, *y = &((const jx_pair *)b)->key;
    uint32_t n = x->n < y->n ? x->n : y->n;
    int order = n ? memcmp(x->text, y->text, n) : 0;
    return order ? order : x->n < y->n ? -1 : x->n > y->n;
}

static void add_json_dict(jx_state *s, jx_buf *buf, const jx_dict *d, const jx_json_style *style,
                          uint32_t level)
{
    const jx_pair *pairs = d->pairs;
    if (style->sort_keys && d->n) {
        jx_pair *sorted = jx_alloc(s, d->n, sizeof *sorted);
        memcpy(sorted, pairs, d->n * sizeof *sorted);
        jx_step(s, d->n);
        qsort(sorted, d->n, sizeof *sorted, pair_order);
        pairs = sorted;
    }
    add_text(s, buf, "{");
    for (uint32_t i = 0; i < d->n; i++) {
        if (i)
            jx_buf_value(s, buf, style->item);
        json_line(s, buf, style, level + 1);
        add_json_str(s, buf, pairs[i].key, style->ascii);
        jx_buf_value(s, buf, style->colon);
        add_json(s, buf, pairs[i].value, style, level + 1);
    }
    if (d->n)
        json_line(s, buf, style, level);
    add_text(s, buf, "}");
}

static void add_json(jx_state *s, jx_buf *buf, jx_value v, const jx_json_style *style,
                     uint32_t level)
{
    jx_step(s, 1);
    jx_enter(s);
    switch (v.kind) {
    case JX_NONE:
        add_text(s, buf, "null");
        break;
    case JX_BOOL:
        add_text(s, buf, v.b ? "true" : "false");
        break;
    case JX_STR:
        add_json_str(s, buf, v, style->ascii);
        break;
    case JX_FLOAT:
        if (isfinite(v.f))
            jx_buf_value(s, buf, v);
        else
            add_text(s, buf, isnan(v.f) ? "NaN" : v.f > 0 ? "Infinity" : "-Infinity");
        break;
    case JX_INT:
        jx_buf_value(s, buf, v);
        break;
    case JX_LIST:
    case JX_TUPLE:
        add_json_list(s, buf, v.list, style, level);
        break;
    case JX_DICT:
        add_json_dict(s, buf, v.dict, style, level);
        break;
    default:
        jx_fail(s, CF_EFORMAT, "%s cannot be written as JSON", jx_kind_name(v));
    }
    jx_leave(s);
}

void jx_buf_json(jx_state *s, jx_buf *buf, jx_value v, const jx_json_style *style)
{
    add_json(s, buf, v, style, 0);
}
