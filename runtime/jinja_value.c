/* Jinja's values: making them, and truth, equality, order, membership, iteration as Python has
 * them. Lists are shared and may be changed (append), so they may contain themselves: everything
 * that descends into values counts its depth. */
#include "runtime/jinja_internal.h"

jx_value jx_undef(const char *name)
{
    return (jx_value){.kind = JX_UNDEF, .text = name, .n = (uint32_t)strlen(name)};
}

const char *jx_kind_name(jx_value v)
{
    static const char *const names[] = {
        [JX_UNDEF] = "undefined",       [JX_NONE] = "none",           [JX_BOOL] = "a boolean",
        [JX_INT] = "an integer",        [JX_FLOAT] = "a real number", [JX_STR] = "a string",
        [JX_LIST] = "a list",           [JX_TUPLE] = "a tuple",       [JX_DICT] = "a mapping",
        [JX_NAMESPACE] = "a namespace", [JX_MACRO] = "a macro",       [JX_METHOD] = "a method",
        [JX_FUNCTION] = "a function",   [JX_LOOP] = "a loop"};
    return names[v.kind];
}

jx_value jx_slice_bytes(jx_value str, size_t begin, size_t end)
{
    jx_value v = jx_str(str.text + begin, end - begin);
    v.marks = str.marks ? str.marks + begin : NULL;
    return v;
}

jx_value jx_list_new(jx_state *s, jx_kind kind, uint32_t size)
{
    jx_list *list = jx_alloc(s, 1, sizeof *list);
    *list = (jx_list){.size = size};
    if (size)
        list->items = jx_alloc(s, size, sizeof *list->items);
    return (jx_value){.kind = kind, .list = list};
}

void jx_list_add(jx_state *s, jx_list *list, jx_value v)
{
    if (list->n == list->size)
        list->items = jx_grow(s, list->items, list->n, &list->size, sizeof *list->items);
    list->items[list->n++] = v;
}

jx_value jx_dict_new(jx_state *s, jx_kind kind)
{
    jx_dict *dict = jx_alloc(s, 1, sizeof *dict);
    *dict = (jx_dict){0};
    return (jx_value){.kind = kind, .dict = dict};
}

const jx_value *jx_dict_get(jx_state *s, const jx_dict *dict, const char *key, size_t n)
{
    jx_step(s, dict->n / 16);
    for (uint32_t i = 0; i < dict->n; i++)
        if (dict->pairs[i].key.n == n && memcmp(dict->pairs[i].key.text, key, n) == 0)
            return &dict->pairs[i].value;
    return NULL;
}

void jx_dict_put(jx_state *s, jx_dict *dict, jx_value key, jx_value v)
{
    if (key.kind != JX_STR)
        jx_fail(s, CF_EFORMAT, "%s cannot be a key: only strings can", jx_kind_name(key));
    jx_value *old = (jx_value *)jx_dict_get(s, dict, key.text, key.n);
    if (old) {
        *old = v;
        return;
    }
    if (dict->n == dict->size)
        dict->pairs = jx_grow(s, dict->pairs, dict->n, &dict->size, sizeof *dict->pairs);
    dict->pairs[dict->n++] = (jx_pair){key, v};
}

/* ---- from JSON ---- */

static jx_value marked_str(jx_state *s, const char *text, size_t n, uint8_t mark)
{
    if (n > UINT32_MAX / 4)
        jx_fail(s, CF_ELIMIT, "a text of %zu bytes is too long", n);
    jx_value v = jx_str(jx_text_copy(s, text, n), n);
    if (mark && n) {
        uint8_t *marks = jx_alloc(s, n, 1);
        memset(marks, mark, n);
        v.marks = marks;
    }
    return v;
}

static jx_value object_from_json(jx_state *s, const json_t *json, uint8_t mark, cf_jinja_mark how)
{
    jx_value v = jx_dict_new(s, JX_DICT);
    jx_dict *d = v.dict;
    size_t n = json_object_size(json);
    const char *key;
    json_t *value;
    if (n > UINT32_MAX / 4)
        jx_fail(s, CF_ELIMIT, "an object has %zu members", n);
    d->size = (uint32_t)n;
    d->pairs = jx_alloc(s, n, sizeof *d->pairs);
    /* Keys of a JSON object differ: no look-up. */
    json_object_foreach((json_t *)json, key, value)
    {
        uint8_t of_key = mark && how ? how(json, NULL, value, mark) : mark;
        uint8_t own = mark && how ? how(json, key, value, mark) : mark;
        d->pairs[d->n++] =
            (jx_pair){marked_str(s, key, strlen(key), of_key), jx_from_json(s, value, own, how)};
    }
    return v;
}

jx_value jx_from_json(jx_state *s, const json_t *json, uint8_t mark, cf_jinja_mark how)
{
    jx_value v = jx_none();
    jx_enter(s);
    if (s->depth > JX_JSON_DEPTH_MAX)
        jx_fail(s, CF_ELIMIT, "a value is nested deeper than %d levels", JX_JSON_DEPTH_MAX);
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        v = object_from_json(s, json, mark, how);
        break;
    case JSON_ARRAY:
        v = jx_list_new(s, JX_LIST, 0);
        for (size_t i = 0; i < json_array_size(json); i++)
            jx_list_add(s, v.list, jx_from_json(s, json_array_get(json, i), mark, how));
        break;
    case JSON_STRING:
        v = marked_str(s, json_string_value(json), json_string_length(json), mark);
        break;
    case JSON_INTEGER:
        v = jx_int(json_integer_value(json));
        break;
    case JSON_REAL:
        v = jx_float(json_real_value(json));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        v = jx_bool(json_is_true(json));
        break;
    default:
        break;
    }
    jx_leave(s);
    return v;
}

/* ---- what Python does with any value ---- */

bool jx_is(jx_value v, const char *text)
{
    return v.kind == JX_STR && v.n == strlen(text) && memcmp(v.text, text, v.n) == 0;
}

uint32_t jx_chars(jx_value str)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < str.n; i++)
        n += ((unsigned char)str.text[i] & 0xc0) != 0x80;
    return n;
}

bool jx_truth(jx_value v)
{
    switch (v.kind) {
    case JX_UNDEF:
    case JX_NONE:
        return false;
    case JX_BOOL:
        return v.b;
    case JX_INT:
        return v.i != 0;
    case JX_FLOAT:
        return v.f != 0;
    case JX_STR:
        return v.n > 0;
    case JX_LIST:
    case JX_TUPLE:
        return v.list->n > 0;
    case JX_DICT:
        return v.dict->n > 0;
    default:
        return true;
    }
}

static bool is_number(jx_value v)
{
    return v.kind == JX_BOOL || v.kind == JX_INT || v.kind == JX_FLOAT;
}

static double as_float(jx_value v)
{
    return v.kind == JX_FLOAT ? v.f : v.kind == JX_BOOL ? (double)v.b : (double)v.i;
}

static int64_t as_int(jx_value v)
{
    return v.kind == JX_BOOL ? v.b : v.i;
}

static int numbers_compare(jx_value a, jx_value b)
{
    if (a.kind == JX_FLOAT || b.kind == JX_FLOAT) {
        double x = as_float(a), y = as_float(b);
        return x < y ? -1 : x > y;
    }
    int64_t x = as_int(a), y = as_int(b);
    return x < y ? -1 : x > y;
}

static bool strings_equal(jx_value a, jx_value b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.text, b.text, a.n) == 0);
}

static bool lists_equal(jx_state *s, const jx_list *a, const jx_list *b)
{
    if (a->n != b->n)
        return false;
    for (uint32_t i = 0; i < a->n; i++)
        if (!jx_equal(s, a->items[i], b->items[i]))
            return false;
    return true;
}

static bool dicts_equal(jx_state *s, const jx_dict *a, const jx_dict *b)
{
    if (a->n != b->n)
        return false;
    for (uint32_t i = 0; i < a->n; i++) {
        const jx_value *other = jx_dict_get(s, b, a->pairs[i].key.text, a->pairs[i].key.n);
        if (!other || !jx_equal(s, a->pairs[i].value, *other))
            return false;
    }
    return true;
}

bool jx_equal(jx_state *s, jx_value a, jx_value b)
{
    bool equal;
    jx_step(s, 1);
    if (is_number(a) && is_number(b))
        return a.kind == JX_FLOAT || b.kind == JX_FLOAT ? as_float(a) == as_float(b)
                                                        : as_int(a) == as_int(b);
    if (a.kind != b.kind)
        return false;
    jx_enter(s);
    switch (a.kind) {
    case JX_UNDEF:
    case JX_NONE:
        equal = true;
        break;
    case JX_STR:
        jx_step(s, a.n / 256);
        equal = strings_equal(a, b);
        break;
    case JX_LIST:
    case JX_TUPLE:
        equal = lists_equal(s, a.list, b.list);
        break;
    case JX_DICT:
        equal = dicts_equal(s, a.dict, b.dict);
        break;
    case JX_FUNCTION:
        equal = strings_equal(a, b);
        break;
    default:
        equal = a.list == b.list; /* the same object */
        break;
    }
    jx_leave(s);
    return equal;
}

int jx_compare(jx_state *s, jx_value a, jx_value b)
{
    if (is_number(a) && is_number(b))
        return numbers_compare(a, b);
    if (a.kind != JX_STR || b.kind != JX_STR)
        jx_fail(s, CF_EFORMAT, "%s and %s have no order", jx_kind_name(a), jx_kind_name(b));
    uint32_t n = a.n < b.n ? a.n : b.n;
    jx_step(s, n / 256);
    /* The order of UTF-8 is that of the characters. */
    int order = n ? memcmp(a.text, b.text, n) : 0;
    return order ? order : a.n < b.n ? -1 : a.n > b.n;
}

bool jx_contains(jx_state *s, jx_value where, jx_value what)
{
    switch (where.kind) {
    case JX_UNDEF:
        return false;
    case JX_STR:
        if (what.kind != JX_STR)
            jx_fail(s, CF_EFORMAT, "%s cannot be looked for in a string", jx_kind_name(what));
        jx_step(s, where.n / 64);
        return what.n == 0 || memmem(where.text, where.n, what.text, what.n);
    case JX_DICT:
        return what.kind == JX_STR && jx_dict_get(s, where.dict, what.text, what.n);
    case JX_LIST:
    case JX_TUPLE:
        for (uint32_t i = 0; i < where.list->n; i++)
            if (jx_equal(s, where.list->items[i], what))
                return true;
        return false;
    default:
        jx_fail(s, CF_EFORMAT, "nothing can be looked for in %s", jx_kind_name(where));
    }
}

static jx_list *characters(jx_state *s, jx_value str)
{
    jx_list *list = jx_list_new(s, JX_LIST, jx_chars(str)).list;
    jx_step(s, list->size / 4);
    for (size_t at = 0, bytes; at < str.n; at += bytes) {
        jx_char_at(str.text, str.n, at, &bytes);
        list->items[list->n++] = jx_slice_bytes(str, at, at + bytes);
    }
    return list;
}

jx_list *jx_iterate(jx_state *s, jx_value v)
{
    jx_list *list;
    switch (v.kind) {
    case JX_UNDEF:
        return jx_list_new(s, JX_LIST, 0).list;
    case JX_STR:
        return characters(s, v);
    case JX_LIST:
    case JX_TUPLE: /* a copy: the body may change it */
        list = jx_list_new(s, JX_LIST, v.list->n).list;
        jx_step(s, v.list->n / 8);
        list->n = v.list->n;
        if (list->n)
            memcpy(list->items, v.list->items, list->n * sizeof *list->items);
        return list;
    case JX_DICT:
        list = jx_list_new(s, JX_LIST, v.dict->n).list;
        for (uint32_t i = 0; i < v.dict->n; i++)
            list->items[list->n++] = v.dict->pairs[i].key;
        return list;
    default:
        jx_fail(s, CF_EFORMAT, "%s cannot be iterated over", jx_kind_name(v));
    }
}
