/* Jinja's parser: tokens to a tree, by recursive descent in the reference's order of precedence.
 *
 * What the interpreter does not know is refused here, by name and line, and not when a rendering
 * happens to come by. Nesting is bounded; long chains (a + b + c, elif) are loops. */
#include "runtime/jinja_internal.h"

typedef struct parser {
    jx_state *s;
    const jx_token *t; /* the current token */
    uint32_t loops;    /* loops around, for break and continue */
    bool no_cond;      /* `if` does not belong to the expression (a for's filter) */
} parser;

typedef struct node_list {
    jx_node **items;
    uint32_t n, size;
} node_list;

static jx_node *expression(parser *p);
static jx_node *unary(parser *p, bool with_filter);
static jx_node *block(parser *p, const char *const *ends);

static jx_node *node_new(parser *p, jx_node_kind kind)
{
    jx_node *n = jx_alloc(p->s, 1, sizeof *n);
    *n = (jx_node){.kind = kind, .line = p->t->line};
    return n;
}

static void list_add(parser *p, node_list *list, jx_node *node)
{
    if (list->n == list->size)
        list->items = jx_grow(p->s, list->items, list->n, &list->size, sizeof *list->items);
    list->items[list->n++] = node;
}

static void list_to_kids(const node_list *list, jx_node *node)
{
    node->kids = list->items;
    node->n = list->n;
}

static void next(parser *p)
{
    if (p->t->kind != JX_T_END)
        p->t++;
    p->s->line = p->t->line;
}

_Noreturn static void unexpected(parser *p, const char *wanted)
{
    static const char *const kinds[] = {[JX_T_END] = "the end of the template",
                                        [JX_T_TEXT] = "text",
                                        [JX_T_PRINT_BEGIN] = "{{",
                                        [JX_T_PRINT_END] = "}}",
                                        [JX_T_BLOCK_BEGIN] = "{%",
                                        [JX_T_BLOCK_END] = "%}",
                                        [JX_T_NAME] = "a name",
                                        [JX_T_STR] = "a string",
                                        [JX_T_INT] = "a number",
                                        [JX_T_FLOAT] = "a number",
                                        [JX_T_OP] = "an operator"};
    if (p->t->kind == JX_T_NAME)
        jx_fail(p->s, CF_EFORMAT, "\"%.60s\" stands where %s is expected", p->t->text, wanted);
    jx_fail(p->s, CF_EFORMAT, "%s stands where %s is expected", kinds[p->t->kind], wanted);
}

static bool is_op(const parser *p, jx_op op)
{
    return p->t->kind == JX_T_OP && p->t->op == op;
}

static bool is_word(const parser *p, const char *word)
{
    return p->t->kind == JX_T_NAME && !strcmp(p->t->text, word);
}

static bool take_op(parser *p, jx_op op)
{
    bool yes = is_op(p, op);
    if (yes)
        next(p);
    return yes;
}

static bool take_word(parser *p, const char *word)
{
    bool yes = is_word(p, word);
    if (yes)
        next(p);
    return yes;
}

static void expect_op(parser *p, jx_op op, const char *what)
{
    if (!take_op(p, op))
        unexpected(p, what);
}

static const char *expect_name(parser *p)
{
    const char *name = p->t->text;
    if (p->t->kind != JX_T_NAME)
        unexpected(p, "a name");
    next(p);
    return name;
}

static void expect_block_end(parser *p)
{
    if (p->t->kind != JX_T_BLOCK_END)
        unexpected(p, "%}");
    next(p);
}

/* ---- expressions ---- */

static jx_node *const_new(parser *p, jx_value v)
{
    jx_node *n = node_new(p, JX_E_CONST);
    n->value = v;
    return n;
}

static jx_node *name_or_constant(parser *p)
{
    static const struct {
        const char *name;
        int value; /* 2: none */
    } constants[] = {{"true", 1},  {"True", 1}, {"false", 0},
                     {"False", 0}, {"none", 2}, {"None", 2}};
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++)
        if (is_word(p, constants[i].name)) {
            jx_node *n = const_new(p, constants[i].value == 2 ? jx_none()
                                                              : jx_bool(constants[i].value == 1));
            next(p);
            return n;
        }
    jx_node *n = node_new(p, JX_E_NAME);
    n->name = expect_name(p);
    return n;
}

/* Strings that stand beside one another are one. */
static jx_node *string(parser *p)
{
    size_t total = 0, at = 0;
    for (const jx_token *t = p->t; t->kind == JX_T_STR; t++)
        total += t->n;
    char *text = jx_alloc(p->s, total + 1, 1);
    jx_node *n = const_new(p, jx_str(text, total));
    for (; p->t->kind == JX_T_STR; next(p)) {
        memcpy(text + at, p->t->text, p->t->n);
        at += p->t->n;
    }
    return n;
}

/* Expressions up to `end`, a comma behind each but perhaps the last. */
static void items(parser *p, node_list *list, jx_op end, const char *end_text)
{
    while (!is_op(p, end)) {
        list_add(p, list, expression(p));
        if (!take_op(p, JX_OP_COMMA))
            break;
    }
    expect_op(p, end, end_text);
}

static jx_node *parenthesised(parser *p)
{
    jx_node *tuple = node_new(p, JX_E_TUPLE);
    node_list list = {0};
    next(p);
    if (!is_op(p, JX_OP_RPAREN)) {
        jx_node *first = expression(p);
        if (take_op(p, JX_OP_RPAREN))
            return first;
        expect_op(p, JX_OP_COMMA, ")");
        list_add(p, &list, first);
    }
    items(p, &list, JX_OP_RPAREN, ")");
    list_to_kids(&list, tuple);
    return tuple;
}

static jx_node *dict(parser *p)
{
    jx_node *n = node_new(p, JX_E_DICT);
    node_list list = {0};
    next(p);
    while (!is_op(p, JX_OP_RBRACE)) {
        list_add(p, &list, expression(p));
        expect_op(p, JX_OP_COLON, ":");
        list_add(p, &list, expression(p));
        if (!take_op(p, JX_OP_COMMA))
            break;
    }
    expect_op(p, JX_OP_RBRACE, "}");
    list_to_kids(&list, n);
    return n;
}

static jx_node *primary(parser *p)
{
    jx_node *n;
    node_list list = {0};
    bool no_cond = p->no_cond;
    jx_enter(p->s);
    p->no_cond = false; /* inside brackets `if` is the expression's own */
    if (p->t->kind == JX_T_NAME) {
        n = name_or_constant(p);
    } else if (p->t->kind == JX_T_STR) {
        n = string(p);
    } else if (p->t->kind == JX_T_INT || p->t->kind == JX_T_FLOAT) {
        n = const_new(p, p->t->kind == JX_T_INT ? jx_int(p->t->i) : jx_float(p->t->f));
        next(p);
    } else if (is_op(p, JX_OP_LPAREN)) {
        n = parenthesised(p);
    } else if (is_op(p, JX_OP_LBRACKET)) {
        n = node_new(p, JX_E_LIST);
        next(p);
        items(p, &list, JX_OP_RBRACKET, "]");
        list_to_kids(&list, n);
    } else if (is_op(p, JX_OP_LBRACE)) {
        n = dict(p);
    } else {
        unexpected(p, "a value");
    }
    p->no_cond = no_cond;
    jx_leave(p->s);
    return n;
}

/* ( args ), the parenthesis being current. */
static void call_args(parser *p, jx_node *call)
{
    node_list list = {0};
    uint32_t size = 0;
    bool no_cond = p->no_cond;
    next(p);
    p->no_cond = false;
    while (!is_op(p, JX_OP_RPAREN)) {
        const jx_token *ahead = p->t + 1;
        if (p->t->kind == JX_T_NAME && ahead->kind == JX_T_OP && ahead->op == JX_OP_ASSIGN) {
            if (call->n_named == size)
                call->names = jx_grow(p->s, call->names, size, &size, sizeof *call->names);
            call->names[call->n_named++] = p->t->text;
            next(p);
            next(p);
        } else if (call->n_named) {
            unexpected(p, "an argument with a name");
        }
        list_add(p, &list, expression(p));
        if (!take_op(p, JX_OP_COMMA))
            break;
    }
    expect_op(p, JX_OP_RPAREN, ")");
    p->no_cond = no_cond;
    list_to_kids(&list, call);
}

static jx_node *subscript(parser *p, jx_node *a)
{
    jx_node *n = node_new(p, JX_E_ITEM), *parts[3] = {0};
    uint32_t colons = 0;
    bool no_cond = p->no_cond;
    p->no_cond = false;
    next(p);
    while (!is_op(p, JX_OP_RBRACKET)) {
        if (take_op(p, JX_OP_COLON)) {
            if (++colons > 2)
                unexpected(p, "]");
        } else if (parts[colons]) {
            unexpected(p, "]");
        } else {
            parts[colons] = expression(p);
        }
    }
    next(p);
    p->no_cond = no_cond;
    n->a = a;
    n->b = parts[0];
    if (colons) {
        n->kind = JX_E_SLICE;
        n->kids = jx_alloc(p->s, 3, sizeof *n->kids);
        memcpy(n->kids, parts, sizeof parts);
    } else if (!parts[0]) {
        jx_fail(p->s, CF_EFORMAT, "[] lacks what to look up");
    }
    return n;
}

static jx_node *attribute(parser *p, jx_node *a)
{
    jx_node *n = node_new(p, JX_E_ATTR);
    next(p);
    n->a = a;
    if (p->t->kind == JX_T_INT) {
        n->kind = JX_E_ITEM;
        n->b = const_new(p, jx_int(p->t->i));
        next(p);
    } else {
        n->name = expect_name(p);
    }
    return n;
}

static jx_node *call(parser *p, jx_node *a)
{
    jx_node *n = node_new(p, JX_E_CALL);
    n->a = a;
    call_args(p, n);
    return n;
}

static jx_node *postfix(parser *p, jx_node *n)
{
    for (;;) {
        if (is_op(p, JX_OP_DOT))
            n = attribute(p, n);
        else if (is_op(p, JX_OP_LBRACKET))
            n = subscript(p, n);
        else if (is_op(p, JX_OP_LPAREN))
            n = call(p, n);
        else
            return n;
    }
}

static bool known(const char *const *names, const char *name)
{
    for (; *names; names++)
        if (!strcmp(*names, name))
            return true;
    return false;
}

static const char *const filters[] = {
    "capitalize", "count",  "d",          "default", "dictsort", "first",  "float",
    "from_json",  "int",    "items",      "join",    "last",     "length", "list",
    "lower",      "map",    "rejectattr", "replace", "reverse",  "safe",   "selectattr",
    "string",     "tojson", "trim",       "upper",   NULL};
static const char *const tests[] = {
    "boolean", "defined", "eq",   "equalto", "false",    "float",  "in",   "integer",   "iterable",
    "mapping", "ne",      "none", "number",  "sequence", "string", "true", "undefined", NULL};

static jx_node *filter(parser *p, jx_node *a)
{
    jx_node *n = node_new(p, JX_E_FILTER);
    next(p);
    n->a = a;
    n->name = expect_name(p);
    if (!known(filters, n->name))
        jx_fail(p->s, CF_EFORMAT, "the filter \"%.60s\" is not supported", n->name);
    if (is_op(p, JX_OP_LPAREN))
        call_args(p, n);
    return n;
}

/* Something that can be the argument of a test without parentheses. */
static bool begins_argument(const parser *p)
{
    static const char *const no[] = {"else", "or", "and", "is", "if", "in", "not", NULL};
    if (p->t->kind == JX_T_NAME)
        return !known(no, p->t->text);
    return p->t->kind == JX_T_STR || p->t->kind == JX_T_INT || p->t->kind == JX_T_FLOAT ||
           is_op(p, JX_OP_LBRACKET) || is_op(p, JX_OP_LBRACE);
}

static jx_node *test(parser *p, jx_node *a)
{
    jx_node *n = node_new(p, JX_E_TEST);
    node_list list = {0};
    next(p);
    n->a = a;
    n->op = take_word(p, "not");
    n->name = expect_name(p);
    if (!known(tests, n->name))
        jx_fail(p->s, CF_EFORMAT, "the test \"%.60s\" is not supported", n->name);
    if (is_op(p, JX_OP_LPAREN)) {
        call_args(p, n);
    } else if (begins_argument(p)) {
        list_add(p, &list, postfix(p, primary(p)));
        list_to_kids(&list, n);
    }
    return n;
}

static jx_node *unary(parser *p, bool with_filter)
{
    jx_node *n;
    jx_enter(p->s);
    if (is_op(p, JX_OP_SUB) || is_op(p, JX_OP_ADD)) {
        n = node_new(p, is_op(p, JX_OP_SUB) ? JX_E_NEG : JX_E_POS);
        next(p);
        n->a = unary(p, false);
    } else {
        n = primary(p);
    }
    n = postfix(p, n);
    while (with_filter) {
        if (is_op(p, JX_OP_PIPE))
            n = filter(p, n);
        else if (is_word(p, "is"))
            n = test(p, n);
        else if (is_op(p, JX_OP_LPAREN))
            n = call(p, n);
        else
            break;
    }
    jx_leave(p->s);
    return n;
}

static jx_node *binary_new(parser *p, jx_node_kind kind, jx_node *a)
{
    jx_node *n = node_new(p, kind);
    n->op = (uint8_t)p->t->op;
    n->a = a;
    next(p);
    return n;
}

static jx_node *product(parser *p)
{
    jx_node *a = unary(p, true);
    while (p->t->kind == JX_T_OP && p->t->op >= JX_OP_MUL && p->t->op <= JX_OP_MOD) {
        a = binary_new(p, JX_E_BINARY, a);
        a->b = unary(p, true);
    }
    return a;
}

static jx_node *concatenation(parser *p)
{
    jx_node *a = product(p);
    while (is_op(p, JX_OP_CONCAT)) {
        a = binary_new(p, JX_E_BINARY, a);
        a->b = product(p);
    }
    return a;
}

static jx_node *sum(parser *p)
{
    jx_node *a = concatenation(p);
    while (is_op(p, JX_OP_ADD) || is_op(p, JX_OP_SUB)) {
        a = binary_new(p, JX_E_BINARY, a);
        a->b = concatenation(p);
    }
    return a;
}

/* The comparison that begins here, taken; JX_OP_NONE when there is none. */
static jx_op take_comparison(parser *p)
{
    jx_op op = p->t->op;
    if (p->t->kind == JX_T_OP && op >= JX_OP_EQ && op <= JX_OP_GE) {
        next(p);
        return op;
    }
    if (take_word(p, "in"))
        return JX_OP_IN;
    if (is_word(p, "not") && p->t[1].kind == JX_T_NAME && !strcmp(p->t[1].text, "in")) {
        next(p);
        next(p);
        return JX_OP_NOT_IN;
    }
    return JX_OP_NONE;
}

static jx_node *comparison(parser *p)
{
    jx_node *a = sum(p), *n = NULL;
    node_list list = {0};
    uint32_t size = 0;
    jx_op op;
    while ((op = take_comparison(p)) != JX_OP_NONE) {
        if (!n) {
            n = node_new(p, JX_E_COMPARE);
            n->a = a;
        }
        if (list.n == size)
            n->ops = jx_grow(p->s, n->ops, list.n, &size, 1);
        n->ops[list.n] = (uint8_t)op;
        list_add(p, &list, sum(p));
    }
    if (!n)
        return a;
    list_to_kids(&list, n);
    return n;
}

static jx_node *negation(parser *p)
{
    if (!is_word(p, "not"))
        return comparison(p);
    jx_enter(p->s);
    jx_node *n = binary_new(p, JX_E_NOT, NULL);
    n->a = negation(p);
    jx_leave(p->s);
    return n;
}

static jx_node *conjunction(parser *p)
{
    jx_node *a = negation(p);
    while (is_word(p, "and")) {
        a = binary_new(p, JX_E_AND, a);
        a->b = negation(p);
    }
    return a;
}

static jx_node *disjunction(parser *p)
{
    jx_node *a = conjunction(p);
    while (is_word(p, "or")) {
        a = binary_new(p, JX_E_OR, a);
        a->b = conjunction(p);
    }
    return a;
}

static jx_node *expression(parser *p)
{
    jx_enter(p->s);
    jx_node *a = disjunction(p);
    while (!p->no_cond && is_word(p, "if")) {
        jx_node *n = node_new(p, JX_E_COND);
        next(p);
        n->b = a;
        n->a = disjunction(p);
        if (take_word(p, "else"))
            n->c = expression(p);
        a = n;
    }
    jx_leave(p->s);
    return a;
}

/* An expression, or several with commas between, which are a tuple. */
static jx_node *tuple_or_expression(parser *p)
{
    jx_node *a = expression(p);
    if (!is_op(p, JX_OP_COMMA))
        return a;
    jx_node *n = node_new(p, JX_E_TUPLE);
    node_list list = {0};
    list_add(p, &list, a);
    while (take_op(p, JX_OP_COMMA) && p->t->kind != JX_T_BLOCK_END && p->t->kind != JX_T_PRINT_END)
        list_add(p, &list, expression(p));
    list_to_kids(&list, n);
    return n;
}

/* ---- statements ---- */

static jx_node *target_name(parser *p, bool with_attribute)
{
    jx_node *n = name_or_constant(p);
    if (n->kind != JX_E_NAME)
        jx_fail(p->s, CF_EFORMAT, "a constant cannot be assigned to");
    return with_attribute && is_op(p, JX_OP_DOT) ? attribute(p, n) : n;
}

/* name, ns.name, or names with commas between, perhaps in parentheses. */
static jx_node *target(parser *p, bool with_attribute)
{
    bool parentheses = take_op(p, JX_OP_LPAREN);
    jx_node *n = target_name(p, with_attribute);
    if (is_op(p, JX_OP_COMMA)) {
        jx_node *tuple = node_new(p, JX_E_TUPLE);
        node_list list = {0};
        list_add(p, &list, n);
        while (take_op(p, JX_OP_COMMA) && p->t->kind == JX_T_NAME && !is_word(p, "in"))
            list_add(p, &list, target_name(p, with_attribute));
        list_to_kids(&list, tuple);
        n = tuple;
    }
    if (parentheses)
        expect_op(p, JX_OP_RPAREN, ")");
    return n;
}

/* The tag that closes a body: its name is current; steps behind its %}. */
static void close_tag(parser *p)
{
    next(p);
    expect_block_end(p);
}

static jx_node *if_statement(parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const last[] = {"endif", NULL};
    jx_node *n = node_new(p, JX_S_IF);
    node_list list = {0};
    do {
        next(p); /* if, elif */
        list_add(p, &list, tuple_or_expression(p));
        expect_block_end(p);
        list_add(p, &list, block(p, ends));
    } while (is_word(p, "elif"));
    if (is_word(p, "else")) {
        close_tag(p);
        n->c = block(p, last);
    }
    close_tag(p);
    list_to_kids(&list, n);
    return n;
}

static jx_node *for_statement(parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    static const char *const last[] = {"endfor", NULL};
    jx_node *n = node_new(p, JX_S_FOR);
    next(p);
    n->kids = jx_alloc(p->s, 2, sizeof *n->kids);
    n->kids[0] = n->kids[1] = NULL;
    n->a = target(p, false);
    if (!take_word(p, "in"))
        unexpected(p, "\"in\"");
    p->no_cond = true;
    n->b = tuple_or_expression(p);
    p->no_cond = false;
    if (take_word(p, "if"))
        n->c = expression(p);
    if (is_word(p, "recursive"))
        jx_fail(p->s, CF_EFORMAT, "recursive loops are not supported");
    expect_block_end(p);
    p->loops++;
    n->kids[0] = block(p, ends);
    p->loops--;
    if (is_word(p, "else")) {
        close_tag(p);
        n->kids[1] = block(p, last);
    }
    close_tag(p);
    return n;
}

static jx_node *set_statement(parser *p)
{
    static const char *const ends[] = {"endset", NULL};
    jx_node *n = node_new(p, JX_S_SET);
    next(p);
    n->a = target(p, true);
    if (take_op(p, JX_OP_ASSIGN)) {
        n->b = tuple_or_expression(p);
        expect_block_end(p);
        return n;
    }
    n->kind = JX_S_SETBLOCK;
    if (n->a->kind == JX_E_TUPLE)
        unexpected(p, "=");
    expect_block_end(p);
    uint32_t loops = p->loops;
    p->loops = 0; /* break does not leave a text that is being collected */
    n->b = block(p, ends);
    p->loops = loops;
    close_tag(p);
    return n;
}

static jx_node *macro_statement(parser *p)
{
    static const char *const ends[] = {"endmacro", NULL};
    jx_node *n = node_new(p, JX_S_MACRO);
    node_list defaults = {0};
    uint32_t size = 0;
    next(p);
    n->name = expect_name(p);
    expect_op(p, JX_OP_LPAREN, "(");
    while (!is_op(p, JX_OP_RPAREN)) {
        if (defaults.n == size)
            n->names = jx_grow(p->s, n->names, defaults.n, &size, sizeof *n->names);
        n->names[defaults.n] = expect_name(p);
        bool has_default = take_op(p, JX_OP_ASSIGN);
        if (!has_default && defaults.n && defaults.items[defaults.n - 1])
            jx_fail(p->s, CF_EFORMAT, "a parameter without a default follows one with");
        list_add(p, &defaults, has_default ? expression(p) : NULL);
        if (!take_op(p, JX_OP_COMMA))
            break;
    }
    expect_op(p, JX_OP_RPAREN, ")");
    expect_block_end(p);
    uint32_t loops = p->loops;
    p->loops = 0;
    n->b = block(p, ends);
    p->loops = loops;
    close_tag(p);
    list_to_kids(&defaults, n);
    return n;
}

static jx_node *jump_statement(parser *p)
{
    jx_node *n = node_new(p, is_word(p, "break") ? JX_S_BREAK : JX_S_CONTINUE);
    if (p->loops == 0)
        jx_fail(p->s, CF_EFORMAT, "\"%s\" outside of a loop", p->t->text);
    next(p);
    expect_block_end(p);
    return n;
}

/* What training tools mark; here just its body. */
static jx_node *generation_statement(parser *p)
{
    static const char *const ends[] = {"endgeneration", NULL};
    close_tag(p);
    jx_node *n = block(p, ends);
    close_tag(p);
    return n;
}

static jx_node *statement(parser *p)
{
    static const struct {
        const char *name;
        jx_node *(*parse)(parser *);
    } statements[] = {{"if", if_statement},
                      {"for", for_statement},
                      {"set", set_statement},
                      {"macro", macro_statement},
                      {"break", jump_statement},
                      {"continue", jump_statement},
                      {"generation", generation_statement}};
    for (size_t i = 0; i < sizeof statements / sizeof statements[0]; i++)
        if (is_word(p, statements[i].name))
            return statements[i].parse(p);
    if (p->t->kind == JX_T_NAME)
        jx_fail(p->s, CF_EFORMAT, "the statement \"%.60s\" is not supported or stands alone",
                p->t->text);
    unexpected(p, "a statement");
}

static jx_node *print(parser *p)
{
    jx_node *n = node_new(p, JX_S_PRINT);
    next(p);
    n->a = tuple_or_expression(p);
    if (p->t->kind != JX_T_PRINT_END)
        unexpected(p, "}}");
    next(p);
    return n;
}

/* Up to a tag of one of these names, which is then current; NULL: up to the end. */
static jx_node *block(parser *p, const char *const *ends)
{
    jx_node *n = node_new(p, JX_S_BLOCK);
    node_list list = {0};
    uint32_t line = p->t->line;
    jx_enter(p->s);
    for (;;) {
        if (p->t->kind == JX_T_END) {
            if (!ends)
                break;
            p->s->line = line;
            jx_fail(p->s, CF_EFORMAT, "a block is not closed: %s is missing",
                    ends[1] ? ends[ends[2] ? 2 : 1] : ends[0]);
        } else if (p->t->kind == JX_T_TEXT) {
            jx_node *text = node_new(p, JX_S_TEXT);
            text->value = jx_str(p->t->text, p->t->n);
            list_add(p, &list, text);
            next(p);
        } else if (p->t->kind == JX_T_PRINT_BEGIN) {
            list_add(p, &list, print(p));
        } else {
            next(p); /* {% */
            if (ends && p->t->kind == JX_T_NAME && known(ends, p->t->text))
                break;
            list_add(p, &list, statement(p));
        }
    }
    jx_leave(p->s);
    list_to_kids(&list, n);
    return n;
}

jx_node *jx_parse(jx_state *s, const jx_token *tokens)
{
    parser p = {.s = s, .t = tokens};
    return block(&p, NULL);
}
