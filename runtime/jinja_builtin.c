/* Jinja's built-in names: filters, tests, functions, methods of lists and mappings, look-up of
 * attributes and items. A wrong argument is a failure with the line; a missing item is undefined,
 * as in the reference. */
#include "runtime/jinja_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/base/json.h"

const jx_value *jx_arg(const jx_args *args, uint32_t i, const char *name)
{
    uint32_t positional = args->n - args->n_named;
    if (i < positional)
        return &args->values[i];
    for (uint32_t k = 0; k < args->n_named; k++)
        if (!strcmp(args->names[k], name))
            return &args->values[positional + k];
    return NULL;
}

static jx_value need_str(jx_state *s, const char *who, jx_value v)
{
    if (v.kind != JX_STR)
        jx_fail(s, CF_EFORMAT, "%s needs a string, not %s", who, jx_kind_name(v));
    return v;
}

static jx_value need_arg(jx_state *s, const char *who, const jx_args *args, uint32_t i,
                         const char *name)
{
    const jx_value *v = jx_arg(args, i, name);
    if (!v)
        jx_fail(s, CF_EFORMAT, "%s lacks its argument number %u", who, i + 1);
    return *v;
}

static int64_t length(jx_state *s, jx_value v)
{
    switch (v.kind) {
    case JX_UNDEF:
        return 0;
    case JX_STR:
        jx_step(s, v.n / 64);
        return jx_chars(v);
    case JX_LIST:
    case JX_TUPLE:
        return v.list->n;
    case JX_DICT:
        return v.dict->n;
    default:
        jx_fail(s, CF_EFORMAT, "%s has no length", jx_kind_name(v));
    }
}

/* ---- filters ---- */

static jx_value filter_length(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    return jx_int(length(s, v));
}

static jx_value filter_string(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    return jx_to_str(s, v);
}

static jx_value filter_trim(jx_state *s, jx_value v, const jx_args *args)
{
    return jx_strip(s, jx_to_str(s, v), jx_arg(args, 0, "chars"), true, true);
}

static jx_value filter_upper(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    return jx_case(s, jx_to_str(s, v), "upper");
}

static jx_value filter_lower(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    return jx_case(s, jx_to_str(s, v), "lower");
}

static jx_value filter_capitalize(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    return jx_case(s, jx_to_str(s, v), "capitalize");
}

static jx_value filter_default(jx_state *s, jx_value v, const jx_args *args)
{
    const jx_value *other = jx_arg(args, 0, "default_value"), *all = jx_arg(args, 1, "boolean");
    (void)s;
    if (v.kind == JX_UNDEF || (all && jx_truth(*all) && !jx_truth(v)))
        return other ? *other : jx_str("", 0);
    return v;
}

static jx_value filter_replace(jx_state *s, jx_value v, const jx_args *args)
{
    const jx_value *count = jx_arg(args, 2, "count");
    return jx_replace(s, jx_to_str(s, v), jx_to_str(s, need_arg(s, "replace", args, 0, "old")),
                      jx_to_str(s, need_arg(s, "replace", args, 1, "new")),
                      count && count->kind == JX_INT ? count->i : -1);
}

/* The item `path` ("a.b.0") of v. */
static jx_value by_path(jx_state *s, jx_value v, jx_value path)
{
    size_t at = 0;
    while (at <= path.n) {
        const char *dot = at < path.n ? memchr(path.text + at, '.', path.n - at) : NULL;
        size_t end = dot ? (size_t)(dot - path.text) : path.n;
        jx_value key = jx_slice_bytes(path, at, end);
        bool digits = key.n > 0 && key.n < 9;
        for (uint32_t i = 0; i < key.n; i++)
            digits = digits && key.text[i] >= '0' && key.text[i] <= '9';
        v = jx_item(s, v, digits ? jx_int(atoi(jx_text_copy(s, key.text, key.n))) : key);
        jx_step(s, 1);
        at = end + 1;
    }
    return v;
}

static jx_value filter_join(jx_state *s, jx_value v, const jx_args *args)
{
    const jx_value *between = jx_arg(args, 0, "d"), *attribute = jx_arg(args, 1, "attribute");
    jx_list *list = jx_iterate(s, v);
    jx_buf buf = {0};
    for (uint32_t i = 0; i < list->n; i++) {
        jx_value item = list->items[i];
        if (i && between)
            jx_buf_value(s, &buf, *between);
        if (attribute && attribute->kind == JX_STR)
            item = by_path(s, item, *attribute);
        jx_buf_value(s, &buf, item);
    }
    return jx_buf_str(&buf);
}

static jx_value pair_new(jx_state *s, jx_pair pair)
{
    jx_value v = jx_list_new(s, JX_TUPLE, 2);
    jx_list_add(s, v.list, pair.key);
    jx_list_add(s, v.list, pair.value);
    return v;
}

static jx_value dict_items(jx_state *s, const jx_dict *d)
{
    jx_value out = jx_list_new(s, JX_LIST, d->n);
    for (uint32_t i = 0; i < d->n; i++)
        jx_list_add(s, out.list, pair_new(s, d->pairs[i]));
    return out;
}

static jx_value filter_items(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    if (v.kind == JX_UNDEF)
        return jx_list_new(s, JX_LIST, 0);
    if (v.kind != JX_DICT)
        jx_fail(s, CF_EFORMAT, "items needs a mapping, not %s", jx_kind_name(v));
    return dict_items(s, v.dict);
}

/* Without regard to case, as the reference's default; equal ones in their order. */
static int order_by_key(jx_value a, jx_value b)
{
    for (uint32_t i = 0; i < a.n && i < b.n; i++) {
        int x = (unsigned char)a.text[i], y = (unsigned char)b.text[i];
        x += x >= 'A' && x <= 'Z' ? 32 : 0;
        y += y >= 'A' && y <= 'Z' ? 32 : 0;
        if (x != y)
            return x - y;
    }
    return a.n < b.n ? -1 : a.n > b.n;
}

static jx_value filter_dictsort(jx_state *s, jx_value v, const jx_args *args)
{
    if (v.kind != JX_DICT)
        jx_fail(s, CF_EFORMAT, "dictsort needs a mapping, not %s", jx_kind_name(v));
    if (args->n)
        jx_fail(s, CF_EFORMAT, "arguments of dictsort are not supported");
    jx_value out = dict_items(s, v.dict);
    jx_value *items = out.list->items;
    for (uint32_t i = 1; i < out.list->n; i++)
        for (uint32_t k = i;
             k > 0 && order_by_key(items[k - 1].list->items[0], items[k].list->items[0]) > 0; k--) {
            jx_value moved = items[k];
            jx_step(s, 1);
            items[k] = items[k - 1];
            items[k - 1] = moved;
        }
    return out;
}

static jx_value end_item(jx_state *s, jx_value v, bool last)
{
    jx_list *list = jx_iterate(s, v);
    return list->n ? list->items[last ? list->n - 1 : 0] : jx_undef("the first item of nothing");
}

static jx_value filter_first(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    return end_item(s, v, false);
}

static jx_value filter_last(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    return end_item(s, v, true);
}

static jx_value filter_list(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    return (jx_value){.kind = JX_LIST, .list = jx_iterate(s, v)};
}

static jx_value filter_reverse(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    jx_list *list = jx_iterate(s, v);
    jx_buf buf = {0};
    for (uint32_t i = 0; i < list->n / 2; i++) {
        jx_value t = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = t;
    }
    if (v.kind != JX_STR)
        return (jx_value){.kind = JX_LIST, .list = list};
    for (uint32_t i = 0; i < list->n; i++)
        jx_buf_value(s, &buf, list->items[i]);
    return jx_buf_str(&buf);
}

/* The items whose attribute passes a test (or is true, where none is named). */
static jx_value select_items(jx_state *s, jx_value v, const jx_args *args, bool wanted)
{
    jx_value path = need_str(s, "selectattr", need_arg(s, "selectattr", args, 0, ""));
    jx_value out = jx_list_new(s, JX_LIST, 0);
    jx_list *list = jx_iterate(s, v);
    jx_args rest = {0};
    const char *test = NULL;
    if (args->n > 1) {
        jx_value name = need_str(s, "selectattr", args->values[1]);
        test = jx_text_copy(s, name.text, name.n);
        rest = (jx_args){.values = args->values + 2, .n = args->n - 2};
    }
    for (uint32_t i = 0; i < list->n; i++) {
        jx_value attribute = by_path(s, list->items[i], path);
        if ((test ? jx_test(s, test, attribute, &rest) : jx_truth(attribute)) == wanted)
            jx_list_add(s, out.list, list->items[i]);
    }
    return out;
}

static jx_value filter_selectattr(jx_state *s, jx_value v, const jx_args *args)
{
    return select_items(s, v, args, true);
}

static jx_value filter_rejectattr(jx_state *s, jx_value v, const jx_args *args)
{
    return select_items(s, v, args, false);
}

static jx_value filter_map(jx_state *s, jx_value v, const jx_args *args)
{
    jx_list *list = jx_iterate(s, v);
    jx_value out = jx_list_new(s, JX_LIST, list->n);
    const jx_value *attribute = args->n_named ? jx_arg(args, UINT32_MAX, "attribute") : NULL;
    jx_args none = {0};
    for (uint32_t i = 0; i < list->n; i++) {
        jx_value item = list->items[i];
        if (attribute) {
            item = by_path(s, item, need_str(s, "map", *attribute));
        } else {
            jx_value name = need_str(s, "map", need_arg(s, "map", args, 0, ""));
            item = jx_filter(s, jx_text_copy(s, name.text, name.n), item, &none);
        }
        jx_list_add(s, out.list, item);
    }
    return out;
}

static jx_value filter_int(jx_state *s, jx_value v, const jx_args *args)
{
    const jx_value *other = jx_arg(args, 0, "default");
    if (v.kind == JX_INT || v.kind == JX_BOOL)
        return jx_int(v.kind == JX_BOOL ? v.b : v.i);
    if (v.kind == JX_FLOAT && fabs(v.f) < 9e18)
        return jx_int((int64_t)v.f);
    if (v.kind == JX_STR && v.n) {
        jx_value digits = jx_strip(s, v, NULL, true, true);
        char *text = jx_text_copy(s, digits.text, digits.n), *end;
        errno = 0;
        long long i = strtoll(text, &end, 10);
        if (*text && !*end && !errno)
            return jx_int(i);
    }
    return other ? *other : jx_int(0);
}

static jx_value filter_float(jx_state *s, jx_value v, const jx_args *args)
{
    const jx_value *other = jx_arg(args, 0, "default");
    if (v.kind == JX_FLOAT)
        return v;
    if (v.kind == JX_INT || v.kind == JX_BOOL)
        return jx_float(v.kind == JX_BOOL ? (double)v.b : (double)v.i);
    if (v.kind == JX_STR && v.n) {
        char *text = jx_text_copy(s, v.text, v.n), *end;
        double f = strtod(text, &end);
        if (!*end)
            return jx_float(f);
    }
    return other ? *other : jx_float(0);
}

static jx_value filter_safe(jx_state *s, jx_value v, const jx_args *args)
{
    (void)args;
    return v.kind == JX_STR ? v : jx_to_str(s, v);
}

static jx_value filter_tojson(jx_state *s, jx_value v, const jx_args *args)
{
    const jx_value *ascii = jx_arg(args, 0, "ensure_ascii"), *indent = jx_arg(args, 1, "indent"),
                   *separators = jx_arg(args, 2, "separators"),
                   *sort = jx_arg(args, 3, "sort_keys");
    jx_json_style style = {.ascii = ascii && jx_truth(*ascii),
                           .sort_keys = sort && jx_truth(*sort),
                           .indent = -1,
                           .colon = jx_str(": ", 2)};
    if (indent && indent->kind != JX_NONE) {
        if (indent->kind != JX_INT || indent->i < 0 || indent->i > 64)
            jx_fail(s, CF_EFORMAT, "tojson: an indent that is not a number from 0 to 64");
        style.indent = indent->i;
    }
    style.item = style.indent < 0 ? jx_str(", ", 2) : jx_str(",", 1);
    if (separators && separators->kind != JX_NONE) {
        if ((separators->kind != JX_TUPLE && separators->kind != JX_LIST) ||
            separators->list->n != 2)
            jx_fail(s, CF_EFORMAT, "tojson: separators are two strings");
        style.item = need_str(s, "tojson", separators->list->items[0]);
        style.colon = need_str(s, "tojson", separators->list->items[1]);
    }
    jx_buf buf = {0};
    jx_buf_json(s, &buf, v, &style);
    return jx_buf_str(&buf);
}

enum { FROM_JSON_VALUE_BYTES = 256, FROM_JSON_DEPTH_MAX = 1024 };

/* What comes out of a text is marked where any of it was. */
static jx_value filter_from_json(jx_state *s, jx_value v, const jx_args *args)
{
    json_error_t e;
    uint8_t mark = 0;
    (void)args;
    need_str(s, "from_json", v);
    for (uint32_t i = 0; v.marks && i < v.n; i++)
        mark = v.marks[i] > mark ? v.marks[i] : mark;
    jx_step(s, v.n / 16);
    /* What the parser builds is not the arena's: its values are bounded before it does. */
    cf_err why = {0};
    uint64_t most = s->arena.max_bytes / FROM_JSON_VALUE_BYTES;
    if (cf_json_check_bounds("from_json", v.text, v.n, FROM_JSON_DEPTH_MAX,
                             (uint32_t)(most < UINT32_MAX ? most : UINT32_MAX), &why) < 0)
        jx_fail(s, why.code, "%s", why.msg);
    s->held = json_loadb(v.text, v.n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);
    if (!s->held)
        jx_fail(s, CF_EFORMAT, "from_json: %.120s at byte %d", e.text, e.position);
    jx_value out = jx_from_json(s, s->held, mark, NULL);
    json_decref(s->held);
    s->held = NULL;
    return out;
}

jx_value jx_filter(jx_state *s, const char *name, jx_value v, const jx_args *args)
{
    static const struct {
        const char *name;
        jx_value (*filter)(jx_state *, jx_value, const jx_args *);
    } filters[] = {{"capitalize", filter_capitalize},
                   {"count", filter_length},
                   {"d", filter_default},
                   {"default", filter_default},
                   {"dictsort", filter_dictsort},
                   {"first", filter_first},
                   {"float", filter_float},
                   {"from_json", filter_from_json},
                   {"int", filter_int},
                   {"items", filter_items},
                   {"join", filter_join},
                   {"last", filter_last},
                   {"length", filter_length},
                   {"list", filter_list},
                   {"lower", filter_lower},
                   {"map", filter_map},
                   {"rejectattr", filter_rejectattr},
                   {"replace", filter_replace},
                   {"reverse", filter_reverse},
                   {"safe", filter_safe},
                   {"selectattr", filter_selectattr},
                   {"string", filter_string},
                   {"tojson", filter_tojson},
                   {"trim", filter_trim},
                   {"upper", filter_upper}};
    for (size_t i = 0; i < sizeof filters / sizeof filters[0]; i++)
        if (!strcmp(filters[i].name, name)) {
            jx_enter(s); /* map calls filters */
            jx_value out = filters[i].filter(s, v, args);
            jx_leave(s);
            return out;
        }
    jx_fail(s, CF_EFORMAT, "the filter \"%.60s\" is not supported", name);
}

/* ---- tests ---- */

static bool test_kind(const char *name, jx_value v, bool *known)
{
    jx_kind k = v.kind;
    *known = true;
    if (!strcmp(name, "defined"))
        return k != JX_UNDEF;
    if (!strcmp(name, "undefined"))
        return k == JX_UNDEF;
    if (!strcmp(name, "none"))
        return k == JX_NONE;
    if (!strcmp(name, "string"))
        return k == JX_STR;
    if (!strcmp(name, "mapping"))
        return k == JX_DICT;
    if (!strcmp(name, "boolean"))
        return k == JX_BOOL;
    if (!strcmp(name, "integer"))
        return k == JX_INT;
    if (!strcmp(name, "float"))
        return k == JX_FLOAT;
    if (!strcmp(name, "number"))
        return k == JX_INT || k == JX_FLOAT || k == JX_BOOL;
    if (!strcmp(name, "true") || !strcmp(name, "false"))
        return k == JX_BOOL && v.b == (name[0] == 't');
    /* Undefined has a length and can be iterated over. */
    if (!strcmp(name, "iterable") || !strcmp(name, "sequence"))
        return k == JX_UNDEF || k == JX_STR || k == JX_LIST || k == JX_TUPLE || k == JX_DICT;
    *known = false;
    return false;
}

bool jx_test(jx_state *s, const char *name, jx_value v, const jx_args *args)
{
    bool is_known, yes = test_kind(name, v, &is_known);
    if (is_known)
        return yes;
    if (!strcmp(name, "eq") || !strcmp(name, "equalto") || !strcmp(name, "=="))
        return jx_equal(s, v, need_arg(s, name, args, 0, ""));
    if (!strcmp(name, "ne") || !strcmp(name, "!="))
        return !jx_equal(s, v, need_arg(s, name, args, 0, ""));
    if (!strcmp(name, "in"))
        return jx_contains(s, need_arg(s, name, args, 0, ""), v);
    jx_fail(s, CF_EFORMAT, "the test \"%.60s\" is not supported", name);
}

/* ---- functions ---- */

static jx_value function_range(jx_state *s, const jx_args *args)
{
    int64_t v[3] = {0, 0, 1};
    if (args->n < 1 || args->n > 3)
        jx_fail(s, CF_EFORMAT, "range takes 1 to 3 numbers, not %u", args->n);
    for (uint32_t i = 0; i < args->n; i++) {
        if (args->values[i].kind != JX_INT)
            jx_fail(s, CF_EFORMAT, "range takes integers, not %s", jx_kind_name(args->values[i]));
        v[args->n == 1 ? 1 : i] = args->values[i].i;
    }
    if (v[2] == 0 || v[2] < -(1 << 30) || v[2] > 1 << 30)
        jx_fail(s, CF_EFORMAT, "range: a step of %lld", (long long)v[2]);
    if (v[0] < -(1ll << 60) || v[0] > 1ll << 60 || v[1] < -(1ll << 60) || v[1] > 1ll << 60)
        jx_fail(s, CF_ELIMIT, "range: a bound is too large");
    jx_value out = jx_list_new(s, JX_LIST, 0);
    for (int64_t i = v[0]; v[2] > 0 ? i < v[1] : i > v[1]; i += v[2]) {
        jx_step(s, 1);
        jx_list_add(s, out.list, jx_int(i));
    }
    return out;
}

static jx_value function_namespace(jx_state *s, const jx_args *args, jx_kind kind)
{
    jx_value out = jx_dict_new(s, kind);
    uint32_t positional = args->n - args->n_named;
    for (uint32_t i = 0; i < positional; i++) {
        jx_value from = args->values[i];
        if (from.kind != JX_DICT)
            jx_fail(s, CF_EFORMAT, "namespace takes names and values, not %s", jx_kind_name(from));
        for (uint32_t k = 0; k < from.dict->n; k++)
            jx_dict_put(s, out.dict, from.dict->pairs[k].key, from.dict->pairs[k].value);
    }
    for (uint32_t i = 0; i < args->n_named; i++)
        jx_dict_put(s, out.dict, jx_str(args->names[i], strlen(args->names[i])),
                    args->values[positional + i]);
    return out;
}

static jx_value function_strftime_now(jx_state *s, const jx_args *args)
{
    jx_value format = need_str(s, "strftime_now", need_arg(s, "strftime_now", args, 0, "format"));
    time_t now = time(NULL);
    struct tm clock;
    char text[512];
    if (s->input->now)
        clock = *s->input->now;
    else
        localtime_r(&now, &clock);
    if (format.n > 128)
        jx_fail(s, CF_ELIMIT, "strftime_now: a format of %u bytes", format.n);
    if (format.n == 0)
        return jx_str("", 0);
    size_t n = strftime(text, sizeof text, jx_text_copy(s, format.text, format.n), &clock);
    return jx_str(jx_text_copy(s, text, n), n);
}

_Noreturn static void function_raise(jx_state *s, const jx_args *args)
{
    jx_value text = args->n ? jx_to_str(s, args->values[0]) : jx_str("", 0);
    s->rc = CF_FAIL(s->err, CF_EFORMAT, "the chat template refuses (line %u): %.*s", s->line,
                    (int)text.n, text.n ? text.text : "");
    longjmp(s->exit, 1);
}

static const char *const functions[] = {"dict",  "namespace",    "raise_exception",
                                        "range", "strftime_now", NULL};

bool jx_function_exists(const char *name)
{
    for (const char *const *f = functions; *f; f++)
        if (!strcmp(*f, name))
            return true;
    return false;
}

jx_value jx_call_function(jx_state *s, jx_value f, const jx_args *args)
{
    if (jx_is((jx_value){.kind = JX_STR, .text = f.text, .n = f.n}, "raise_exception"))
        function_raise(s, args);
    if (!strncmp(f.text, "range", f.n))
        return function_range(s, args);
    if (!strncmp(f.text, "strftime_now", f.n))
        return function_strftime_now(s, args);
    return function_namespace(s, args, f.text[0] == 'd' ? JX_DICT : JX_NAMESPACE);
}

/* ---- methods of lists and mappings ---- */

static jx_value list_pop(jx_state *s, jx_list *list, const jx_args *args)
{
    const jx_value *at = jx_arg(args, 0, "");
    int64_t i = at && at->kind == JX_INT ? at->i : -1;
    i += i < 0 ? list->n : 0;
    if (i < 0 || i >= list->n)
        jx_fail(s, CF_EFORMAT, "pop: a list of %u has no such item", list->n);
    jx_value v = list->items[i];
    jx_step(s, (list->n - (uint64_t)i) / 8);
    memmove(list->items + i, list->items + i + 1, (list->n - (size_t)i - 1) * sizeof v);
    list->n--;
    return v;
}

static jx_value dict_keys_or_values(jx_state *s, const jx_dict *d, bool keys)
{
    jx_value out = jx_list_new(s, JX_LIST, d->n);
    for (uint32_t i = 0; i < d->n; i++)
        jx_list_add(s, out.list, keys ? d->pairs[i].key : d->pairs[i].value);
    return out;
}

static jx_value dict_get(jx_state *s, const jx_dict *d, const jx_args *args)
{
    jx_value key = need_arg(s, "get", args, 0, "");
    const jx_value *other = jx_arg(args, 1, ""), *v = NULL;
    if (key.kind == JX_STR)
        v = jx_dict_get(s, d, key.text, key.n);
    return v ? *v : other ? *other : jx_none();
}

static bool dict_has_method(const char *name)
{
    return !strcmp(name, "get") || !strcmp(name, "items") || !strcmp(name, "keys") ||
           !strcmp(name, "values");
}

static bool has_method(jx_value v, const char *name)
{
    if (v.kind == JX_STR)
        return jx_str_has_method(name);
    if (v.kind == JX_LIST)
        return !strcmp(name, "append") || !strcmp(name, "pop");
    return v.kind == JX_DICT && dict_has_method(name);
}

jx_value jx_call_method(jx_state *s, const jx_method *m, const jx_args *args)
{
    jx_value self = m->self;
    if (self.kind == JX_STR)
        return jx_str_method(s, self, m->name, args);
    if (self.kind == JX_DICT) {
        if (!strcmp(m->name, "get"))
            return dict_get(s, self.dict, args);
        if (!strcmp(m->name, "items"))
            return dict_items(s, self.dict);
        return dict_keys_or_values(s, self.dict, m->name[0] == 'k');
    }
    if (!strcmp(m->name, "pop"))
        return list_pop(s, self.list, args);
    jx_list_add(s, self.list, need_arg(s, "append", args, 0, ""));
    return jx_none();
}

/* ---- attributes and items ---- */

static jx_value loop_attr(const jx_loop *l, const char *name)
{
    const jx_list *items = l->items;
    uint32_t i = l->index, n = items->n;
    if (!strcmp(name, "index"))
        return jx_int((int64_t)i + 1);
    if (!strcmp(name, "index0"))
        return jx_int(i);
    if (!strcmp(name, "first"))
        return jx_bool(i == 0);
    if (!strcmp(name, "last"))
        return jx_bool(i + 1 == n);
    if (!strcmp(name, "length"))
        return jx_int(n);
    if (!strcmp(name, "revindex"))
        return jx_int((int64_t)n - i);
    if (!strcmp(name, "revindex0"))
        return jx_int((int64_t)n - i - 1);
    if (!strcmp(name, "depth"))
        return jx_int(1); /* what counts is recursion, and loops have none */
    if (!strcmp(name, "depth0"))
        return jx_int(0);
    if (!strcmp(name, "previtem") && i > 0)
        return items->items[i - 1];
    if (!strcmp(name, "nextitem") && i + 1 < n)
        return items->items[i + 1];
    return jx_undef(name);
}

static void refuse_undefined(jx_state *s, jx_value v)
{
    if (v.kind == JX_UNDEF)
        jx_fail(s, CF_EFORMAT, "\"%.*s\" is undefined", (int)(v.n < 80 ? v.n : 80), v.text);
}

static jx_value method_new(jx_state *s, jx_value self, const char *name)
{
    jx_method *m = jx_alloc(s, 1, sizeof *m);
    *m = (jx_method){self, name};
    return (jx_value){.kind = JX_METHOD, .method = m};
}

jx_value jx_attr(jx_state *s, jx_value v, const char *name)
{
    refuse_undefined(s, v);
    if (v.kind == JX_LOOP)
        return loop_attr(v.loop, name);
    if (has_method(v, name))
        return method_new(s, v, name);
    if (v.kind == JX_DICT || v.kind == JX_NAMESPACE) {
        const jx_value *found = jx_dict_get(s, v.dict, name, strlen(name));
        if (found)
            return *found;
    }
    return jx_undef(name);
}

static jx_value char_item(jx_state *s, jx_value str, int64_t i)
{
    int64_t n = jx_chars(str);
    size_t at = 0, bytes;
    jx_step(s, str.n / 64);
    i += i < 0 ? n : 0;
    if (i < 0 || i >= n)
        return jx_undef("a character of a string");
    for (; i > 0; i--, at += bytes)
        jx_char_at(str.text, str.n, at, &bytes);
    jx_char_at(str.text, str.n, at, &bytes);
    return jx_slice_bytes(str, at, at + bytes);
}

jx_value jx_item(jx_state *s, jx_value v, jx_value key)
{
    refuse_undefined(s, v);
    if (v.kind == JX_DICT && key.kind == JX_STR) {
        const jx_value *found = jx_dict_get(s, v.dict, key.text, key.n);
        if (found)
            return *found;
    }
    if (key.kind == JX_INT || key.kind == JX_BOOL) {
        int64_t i = key.kind == JX_INT ? key.i : key.b;
        if (v.kind == JX_STR)
            return char_item(s, v, i);
        if (v.kind == JX_LIST || v.kind == JX_TUPLE) {
            i += i < 0 ? v.list->n : 0;
            return i >= 0 && i < v.list->n ? v.list->items[i] : jx_undef("an item of a list");
        }
    }
    if (key.kind == JX_STR) /* what is no item may be an attribute */
        return jx_attr(s, v, jx_text_copy(s, key.text, key.n));
    return jx_undef("an item");
}
