/* Jinja's evaluator: walks the tree, with scopes and an output.
 *
 * Scopes: a loop's body and a macro's body have their own, per iteration and per call; `if` has
 * none. A macro sees the scope it was defined in, as it is when the macro is called. Every node
 * costs a step; nesting is counted. */
#include "runtime/jinja_internal.h"

#include <math.h>

typedef enum { GO_ON, BREAK, CONTINUE } flow;

static jx_value eval(jx_state *s, jx_scope *scope, const jx_node *n);
static flow exec(jx_state *s, jx_scope *scope, const jx_node *n);

/* ---- variables ---- */

static jx_scope *scope_new(jx_state *s, jx_scope *parent)
{
    jx_scope *scope = jx_alloc(s, 1, sizeof *scope);
    *scope = (jx_scope){.parent = parent};
    return scope;
}

static void var_set(jx_state *s, jx_scope *scope, const char *name, jx_value v)
{
    for (uint32_t i = 0; i < scope->n; i++)
        if (!strcmp(scope->vars[i].name, name)) {
            scope->vars[i].value = v;
            return;
        }
    if (scope->n == scope->size)
        scope->vars = jx_grow(s, scope->vars, scope->n, &scope->size, sizeof *scope->vars);
    scope->vars[scope->n++] = (jx_var){name, v};
}

static jx_value var_get(jx_state *s, const jx_scope *scope, const char *name)
{
    for (; scope; scope = scope->parent) {
        jx_step(s, scope->n / 8);
        for (uint32_t i = 0; i < scope->n; i++)
            if (!strcmp(scope->vars[i].name, name))
                return scope->vars[i].value;
    }
    if (jx_function_exists(name))
        return (jx_value){.kind = JX_FUNCTION, .text = name, .n = (uint32_t)strlen(name)};
    return jx_undef(name);
}

/* name, ns.name or a tuple of those. */
static void assign(jx_state *s, jx_scope *scope, const jx_node *target, jx_value v)
{
    if (target->kind == JX_E_NAME) {
        var_set(s, scope, target->name, v);
    } else if (target->kind == JX_E_ATTR) {
        jx_value ns = eval(s, scope, target->a);
        if (ns.kind != JX_NAMESPACE)
            jx_fail(s, CF_EFORMAT, "\"%.60s\" is %s: only a namespace's attributes can be set",
                    target->a->name, jx_kind_name(ns));
        jx_dict_put(s, ns.dict, jx_str(target->name, strlen(target->name)), v);
    } else if (target->kind == JX_E_TUPLE) {
        jx_list *list = jx_iterate(s, v);
        if (list->n != target->n)
            jx_fail(s, CF_EFORMAT, "%u values for %u names", list->n, target->n);
        for (uint32_t i = 0; i < target->n; i++)
            assign(s, scope, target->kids[i], list->items[i]);
    } else {
        jx_fail(s, CF_EFORMAT, "this cannot be assigned to");
    }
}

/* ---- calls ---- */

static jx_args args_eval(jx_state *s, jx_scope *scope, const jx_node *call)
{
    jx_args args = {.n = call->n, .n_named = call->n_named, .names = call->names};
    args.values = jx_alloc(s, call->n, sizeof *args.values);
    for (uint32_t i = 0; i < call->n; i++)
        args.values[i] = eval(s, scope, call->kids[i]);
    return args;
}

/* The text that a body prints. */
static jx_value collect(jx_state *s, jx_scope *scope, const jx_node *body)
{
    jx_buf buf = {.max = s->out->max}, *outer = s->out;
    s->out = &buf;
    exec(s, scope, body);
    s->out = outer;
    return jx_buf_str(&buf);
}

static void macro_check_names(jx_state *s, const jx_node *m, const jx_args *args)
{
    uint32_t positional = args->n - args->n_named;
    if (positional > m->n)
        jx_fail(s, CF_EFORMAT, "the macro \"%.60s\" takes %u arguments, not %u", m->name, m->n,
                positional);
    for (uint32_t k = 0; k < args->n_named; k++) {
        uint32_t i = 0;
        while (i < m->n && strcmp(m->names[i], args->names[k]) != 0)
            i++;
        if (i == m->n || i < positional)
            jx_fail(s, CF_EFORMAT, "the macro \"%.60s\" has no argument \"%.60s\" left", m->name,
                    args->names[k]);
    }
}

static jx_value macro_call(jx_state *s, const jx_macro *macro, const jx_args *args)
{
    const jx_node *m = macro->node;
    jx_scope *scope = scope_new(s, macro->scope);
    macro_check_names(s, m, args);
    for (uint32_t i = 0; i < m->n; i++) {
        const jx_value *given = jx_arg(args, i, m->names[i]);
        jx_value v = given        ? *given
                     : m->kids[i] ? eval(s, scope, m->kids[i])
                                  : jx_undef(m->names[i]);
        var_set(s, scope, m->names[i], v);
    }
    return collect(s, scope, m->b);
}

static jx_value call(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_value f = eval(s, scope, n->a);
    jx_args args = args_eval(s, scope, n);
    s->line = n->line;
    switch (f.kind) {
    case JX_FUNCTION:
        return jx_call_function(s, f, &args);
    case JX_METHOD:
        return jx_call_method(s, f.method, &args);
    case JX_MACRO:
        return macro_call(s, f.macro, &args);
    case JX_UNDEF:
        jx_fail(s, CF_EFORMAT, "\"%.*s\" is undefined", (int)(f.n < 80 ? f.n : 80), f.text);
    default:
        jx_fail(s, CF_EFORMAT, "%s cannot be called", jx_kind_name(f));
    }
}

/* ---- arithmetic ---- */

static bool is_int(jx_value v)
{
    return v.kind == JX_INT || v.kind == JX_BOOL;
}

static int64_t int_of(jx_value v)
{
    return v.kind == JX_BOOL ? v.b : v.i;
}

static double float_of(jx_value v)
{
    return v.kind == JX_FLOAT ? v.f : (double)int_of(v);
}

static jx_value join_two(jx_state *s, jx_value a, jx_value b)
{
    jx_buf buf = {.max = s->out->max};
    jx_buf_value(s, &buf, a);
    jx_buf_value(s, &buf, b);
    return jx_buf_str(&buf);
}

static jx_value lists_join(jx_state *s, jx_value a, jx_value b)
{
    jx_value out = jx_list_new(s, a.kind, 0);
    jx_step(s, ((uint64_t)a.list->n + b.list->n) / 8);
    for (uint32_t i = 0; i < a.list->n; i++)
        jx_list_add(s, out.list, a.list->items[i]);
    for (uint32_t i = 0; i < b.list->n; i++)
        jx_list_add(s, out.list, b.list->items[i]);
    return out;
}

static jx_value ints_combine(jx_state *s, jx_op op, int64_t a, int64_t b)
{
    int64_t r = 0;
    bool over = false;
    if ((op == JX_OP_DIV || op == JX_OP_FLOORDIV || op == JX_OP_MOD) && b == 0)
        jx_fail(s, CF_EFORMAT, "division by zero");
    if (op == JX_OP_ADD)
        over = __builtin_add_overflow(a, b, &r);
    else if (op == JX_OP_SUB)
        over = __builtin_sub_overflow(a, b, &r);
    else if (op == JX_OP_MUL)
        over = __builtin_mul_overflow(a, b, &r);
    else if (op == JX_OP_DIV)
        return jx_float((double)a / (double)b);
    else if (b == -1)
        over = op == JX_OP_FLOORDIV && __builtin_sub_overflow(0, a, &r);
    else if (op == JX_OP_FLOORDIV)
        r = a / b - (a % b != 0 && (a < 0) != (b < 0));
    else
        r = a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : 0);
    if (over)
        jx_fail(s, CF_ELIMIT, "a number does not fit 64 bits");
    return jx_int(r);
}

static jx_value floats_combine(jx_state *s, jx_op op, double a, double b)
{
    if ((op == JX_OP_DIV || op == JX_OP_FLOORDIV || op == JX_OP_MOD) && b == 0)
        jx_fail(s, CF_EFORMAT, "division by zero");
    switch (op) {
    case JX_OP_ADD:
        return jx_float(a + b);
    case JX_OP_SUB:
        return jx_float(a - b);
    case JX_OP_MUL:
        return jx_float(a * b);
    case JX_OP_DIV:
        return jx_float(a / b);
    case JX_OP_FLOORDIV:
        return jx_float(floor(a / b));
    default:
        return jx_float(a - floor(a / b) * b);
    }
}

static jx_value binary(jx_state *s, jx_scope *scope, const jx_node *n)
{
    static const char *const signs[] = {
        [JX_OP_ADD] = "+", [JX_OP_SUB] = "-",       [JX_OP_MUL] = "*",
        [JX_OP_DIV] = "/", [JX_OP_FLOORDIV] = "//", [JX_OP_MOD] = "%"};
    jx_value a = eval(s, scope, n->a), b = eval(s, scope, n->b);
    jx_op op = (jx_op)n->op;
    s->line = n->line;
    if (op == JX_OP_CONCAT)
        return join_two(s, a, b);
    if (op == JX_OP_ADD && a.kind == JX_STR && b.kind == JX_STR)
        return join_two(s, a, b);
    if (op == JX_OP_ADD && a.kind == b.kind && (a.kind == JX_LIST || a.kind == JX_TUPLE))
        return lists_join(s, a, b);
    if (is_int(a) && is_int(b))
        return ints_combine(s, op, int_of(a), int_of(b));
    if ((is_int(a) || a.kind == JX_FLOAT) && (is_int(b) || b.kind == JX_FLOAT))
        return floats_combine(s, op, float_of(a), float_of(b));
    jx_fail(s, CF_EFORMAT, "%s %s %s has no meaning", jx_kind_name(a), signs[op], jx_kind_name(b));
}

static jx_value negative(jx_state *s, jx_value v, bool minus)
{
    if (v.kind == JX_FLOAT)
        return jx_float(minus ? -v.f : v.f);
    if (!is_int(v))
        jx_fail(s, CF_EFORMAT, "%s has no sign", jx_kind_name(v));
    return minus ? ints_combine(s, JX_OP_SUB, 0, int_of(v)) : jx_int(int_of(v));
}

static bool compare_one(jx_state *s, jx_op op, jx_value a, jx_value b)
{
    switch (op) {
    case JX_OP_EQ:
        return jx_equal(s, a, b);
    case JX_OP_NE:
        return !jx_equal(s, a, b);
    case JX_OP_IN:
        return jx_contains(s, b, a);
    case JX_OP_NOT_IN:
        return !jx_contains(s, b, a);
    case JX_OP_LT:
        return jx_compare(s, a, b) < 0;
    case JX_OP_LE:
        return jx_compare(s, a, b) <= 0;
    case JX_OP_GT:
        return jx_compare(s, a, b) > 0;
    default:
        return jx_compare(s, a, b) >= 0;
    }
}

static jx_value compare(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_value a = eval(s, scope, n->a);
    for (uint32_t i = 0; i < n->n; i++) {
        jx_value b = eval(s, scope, n->kids[i]);
        s->line = n->line;
        if (!compare_one(s, (jx_op)n->ops[i], a, b))
            return jx_bool(false);
        a = b;
    }
    return jx_bool(true);
}

/* ---- slices ---- */

/* A bound as Python reads it: from the end when negative, and clipped. */
static int64_t bound(jx_state *s, jx_scope *scope, const jx_node *n, int64_t none, int64_t length,
                     bool back)
{
    jx_value v = n ? eval(s, scope, n) : jx_none();
    if (v.kind == JX_NONE)
        return none;
    if (!is_int(v))
        jx_fail(s, CF_EFORMAT, "a bound of a slice is %s, not an integer", jx_kind_name(v));
    int64_t i = int_of(v), low = back ? -1 : 0, high = back ? length - 1 : length;
    if (i < 0)
        i = i < -length ? low : i + length;
    return i < low ? low : i > high ? high : i;
}

static jx_value slice(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_value v = eval(s, scope, n->a);
    jx_value by = n->kids[2] ? eval(s, scope, n->kids[2]) : jx_none();
    int64_t step = by.kind == JX_NONE ? 1 : is_int(by) ? int_of(by) : 0;
    s->line = n->line;
    if (v.kind != JX_STR && v.kind != JX_LIST && v.kind != JX_TUPLE)
        jx_fail(s, CF_EFORMAT, "%s has no slices", jx_kind_name(v));
    if (step == 0)
        jx_fail(s, CF_EFORMAT, "the step of a slice is not a number other than 0");
    jx_list *items = jx_iterate(s, v);
    int64_t length = items->n;
    int64_t from = bound(s, scope, n->kids[0], step < 0 ? length - 1 : 0, length, step < 0);
    int64_t to = bound(s, scope, n->kids[1], step < 0 ? -1 : length, length, step < 0);
    step = step > length ? length + 1 : step < -length ? -length - 1 : step;
    jx_value out = jx_list_new(s, v.kind == JX_TUPLE ? JX_TUPLE : JX_LIST, 0);
    jx_buf buf = {0};
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step) {
        if (v.kind == JX_STR)
            jx_buf_value(s, &buf, items->items[i]);
        else
            jx_list_add(s, out.list, items->items[i]);
    }
    return v.kind == JX_STR ? jx_buf_str(&buf) : out;
}

/* ---- expressions ---- */

static jx_value collection(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_value out;
    if (n->kind == JX_E_DICT) {
        out = jx_dict_new(s, JX_DICT);
        for (uint32_t i = 0; i + 1 < n->n; i += 2) {
            jx_value key = eval(s, scope, n->kids[i]);
            jx_dict_put(s, out.dict, key, eval(s, scope, n->kids[i + 1]));
        }
        return out;
    }
    out = jx_list_new(s, n->kind == JX_E_LIST ? JX_LIST : JX_TUPLE, n->n);
    for (uint32_t i = 0; i < n->n; i++)
        jx_list_add(s, out.list, eval(s, scope, n->kids[i]));
    return out;
}

static jx_value filter_or_test(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_value v = eval(s, scope, n->a);
    jx_args args = args_eval(s, scope, n);
    s->line = n->line;
    if (n->kind == JX_E_FILTER)
        return jx_filter(s, n->name, v, &args);
    return jx_bool(jx_test(s, n->name, v, &args) != (n->op == 1));
}

static jx_value lookup(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_value v = eval(s, scope, n->a);
    jx_value key = n->kind == JX_E_ITEM ? eval(s, scope, n->b) : jx_none();
    s->line = n->line;
    return n->kind == JX_E_ITEM ? jx_item(s, v, key) : jx_attr(s, v, n->name);
}

static jx_value choice(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_value a = eval(s, scope, n->a);
    if (n->kind == JX_E_AND)
        return jx_truth(a) ? eval(s, scope, n->b) : a;
    if (n->kind == JX_E_OR)
        return jx_truth(a) ? a : eval(s, scope, n->b);
    if (jx_truth(a))
        return eval(s, scope, n->b);
    return n->c ? eval(s, scope, n->c) : jx_undef("the else of an inline if");
}

static jx_value eval_any(jx_state *s, jx_scope *scope, const jx_node *n)
{
    switch (n->kind) {
    case JX_E_CONST:
        return n->value;
    case JX_E_NAME:
        return var_get(s, scope, n->name);
    case JX_E_LIST:
    case JX_E_TUPLE:
    case JX_E_DICT:
        return collection(s, scope, n);
    case JX_E_ATTR:
    case JX_E_ITEM:
        return lookup(s, scope, n);
    case JX_E_SLICE:
        return slice(s, scope, n);
    case JX_E_CALL:
        return call(s, scope, n);
    case JX_E_FILTER:
    case JX_E_TEST:
        return filter_or_test(s, scope, n);
    case JX_E_NOT:
        return jx_bool(!jx_truth(eval(s, scope, n->a)));
    case JX_E_NEG:
    case JX_E_POS:
        return negative(s, eval(s, scope, n->a), n->kind == JX_E_NEG);
    case JX_E_BINARY:
        return binary(s, scope, n);
    case JX_E_COMPARE:
        return compare(s, scope, n);
    default:
        return choice(s, scope, n);
    }
}

static jx_value eval(jx_state *s, jx_scope *scope, const jx_node *n)
{
    s->line = n->line;
    jx_step(s, 1);
    jx_enter(s);
    jx_value v = eval_any(s, scope, n);
    jx_leave(s);
    return v;
}

/* ---- statements ---- */

static flow exec_if(jx_state *s, jx_scope *scope, const jx_node *n)
{
    for (uint32_t i = 0; i + 1 < n->n; i += 2)
        if (jx_truth(eval(s, scope, n->kids[i])))
            return exec(s, scope, n->kids[i + 1]);
    return n->c ? exec(s, scope, n->c) : GO_ON;
}

/* The items of a loop: those that its `if` lets through. */
static jx_list *loop_items(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_list *all = jx_iterate(s, eval(s, scope, n->b));
    if (!n->c)
        return all;
    jx_list *kept = jx_list_new(s, JX_LIST, 0).list;
    for (uint32_t i = 0; i < all->n; i++) {
        jx_scope *inner = scope_new(s, scope);
        assign(s, inner, n->a, all->items[i]);
        if (jx_truth(eval(s, inner, n->c)))
            jx_list_add(s, kept, all->items[i]);
    }
    return kept;
}

static flow exec_for(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_list *items = loop_items(s, scope, n);
    if (items->n == 0 && n->kids[1])
        return exec(s, scope, n->kids[1]);
    for (uint32_t i = 0; i < items->n; i++) {
        jx_scope *inner = scope_new(s, scope);
        jx_loop *loop = jx_alloc(s, 1, sizeof *loop);
        *loop = (jx_loop){items, i};
        assign(s, inner, n->a, items->items[i]);
        var_set(s, inner, "loop", (jx_value){.kind = JX_LOOP, .loop = loop});
        if (exec(s, inner, n->kids[0]) == BREAK)
            break;
    }
    return GO_ON;
}

static flow exec_block(jx_state *s, jx_scope *scope, const jx_node *n)
{
    flow f = GO_ON;
    for (uint32_t i = 0; i < n->n && f == GO_ON; i++)
        f = exec(s, scope, n->kids[i]);
    return f;
}

static void exec_macro(jx_state *s, jx_scope *scope, const jx_node *n)
{
    jx_macro *macro = jx_alloc(s, 1, sizeof *macro);
    *macro = (jx_macro){n, scope};
    var_set(s, scope, n->name, (jx_value){.kind = JX_MACRO, .macro = macro});
}

static flow exec_any(jx_state *s, jx_scope *scope, const jx_node *n)
{
    switch (n->kind) {
    case JX_S_TEXT:
        jx_buf_value(s, s->out, n->value);
        return GO_ON;
    case JX_S_PRINT: {
        jx_value v = eval(s, scope, n->a);
        s->line = n->line;
        jx_buf_value(s, s->out, v);
        return GO_ON;
    }
    case JX_S_IF:
        return exec_if(s, scope, n);
    case JX_S_FOR:
        return exec_for(s, scope, n);
    case JX_S_SET:
        assign(s, scope, n->a, eval(s, scope, n->b));
        return GO_ON;
    case JX_S_SETBLOCK:
        assign(s, scope, n->a, collect(s, scope, n->b));
        return GO_ON;
    case JX_S_MACRO:
        exec_macro(s, scope, n);
        return GO_ON;
    case JX_S_BREAK:
        return BREAK;
    case JX_S_CONTINUE:
        return CONTINUE;
    default:
        return exec_block(s, scope, n);
    }
}

static flow exec(jx_state *s, jx_scope *scope, const jx_node *n)
{
    s->line = n->line;
    jx_step(s, 1);
    jx_enter(s);
    flow f = exec_any(s, scope, n);
    jx_leave(s);
    return f;
}

void jx_run(jx_state *s, const jx_node *root)
{
    exec(s, s->globals, root);
}
