/* What the parts of the Jinja interpreter share: values, the arena, the syntax tree.
 *
 * Failure: jx_fail leaves by longjmp to the one setjmp of the API call (jinja.c). That is safe
 * because nothing below it owns anything: all memory is the arena's, and the one foreign object (a
 * parsed JSON text) hangs on the state. Nothing outside these files sees it.
 * Recursion is counted (jx_enter), so the depth of the C stack is bounded. */
#ifndef CF_RUNTIME_JINJA_INTERNAL_H
#define CF_RUNTIME_JINJA_INTERNAL_H

#include <setjmp.h>
#include <string.h>

#include "runtime/jinja.h"

enum { JX_PARSE_DEPTH_MAX = 100, JX_DEPTH_MAX = 1000, JX_JSON_DEPTH_MAX = 100 };

/* ---- memory ---- */

typedef struct jx_block {
    struct jx_block *next;
    size_t used, size;
    _Alignas(16) char data[];
} jx_block;

typedef struct jx_arena {
    jx_block *blocks;
    uint64_t bytes, max_bytes;
} jx_arena;

void jx_arena_finish(jx_arena *arena);

/* ---- values ---- */

typedef enum {
    JX_UNDEF, /* text: what is undefined */
    JX_NONE,
    JX_BOOL,
    JX_INT,
    JX_FLOAT,
    JX_STR,
    JX_LIST,
    JX_TUPLE,
    JX_DICT,
    JX_NAMESPACE,
    JX_MACRO,
    JX_METHOD,
    JX_FUNCTION, /* text: its name */
    JX_LOOP
} jx_kind;

typedef struct jx_value {
    jx_kind kind;
    uint32_t n;           /* bytes of a string */
    const uint8_t *marks; /* of a string; NULL = all 0 */
    union {
        bool b;
        int64_t i;
        double f;
        const char *text; /* not NUL-terminated */
        struct jx_list *list;
        struct jx_dict *dict;
        struct jx_macro *macro;
        struct jx_method *method;
        struct jx_loop *loop;
    };
} jx_value;

typedef struct jx_list {
    jx_value *items;
    uint32_t n, size;
} jx_list;

typedef struct jx_pair {
    jx_value key, value; /* keys are strings */
} jx_pair;

typedef struct jx_dict {
    jx_pair *pairs;
    uint32_t n, size;
} jx_dict;

typedef struct jx_method {
    jx_value self;
    const char *name;
} jx_method;

typedef struct jx_loop {
    const jx_list *items;
    uint32_t index;
} jx_loop;

/* ---- the syntax tree ---- */

typedef enum {
    /* expressions */
    JX_E_CONST,   /* value */
    JX_E_NAME,    /* name */
    JX_E_LIST,    /* kids */
    JX_E_TUPLE,   /* kids */
    JX_E_DICT,    /* kids: key, value, key, value ... */
    JX_E_ATTR,    /* a . name */
    JX_E_ITEM,    /* a [ b ] */
    JX_E_SLICE,   /* a [ kids[0] : kids[1] : kids[2] ], each may be NULL */
    JX_E_CALL,    /* a ( args ) */
    JX_E_FILTER,  /* a | name ( args ) */
    JX_E_TEST,    /* a is name ( args ); op 1: is not */
    JX_E_NOT,     /* a */
    JX_E_NEG,     /* a */
    JX_E_POS,     /* a */
    JX_E_BINARY,  /* a op b */
    JX_E_AND,     /* a, b */
    JX_E_OR,      /* a, b */
    JX_E_COMPARE, /* a ops[0] kids[0] ops[1] kids[1] ... */
    JX_E_COND,    /* b if a else c (c may be NULL) */
    /* statements */
    JX_S_TEXT,     /* value */
    JX_S_PRINT,    /* a */
    JX_S_IF,       /* kids: condition, body, condition, body ...; c: else body or NULL */
    JX_S_FOR,      /* for a in b if c: kids[0] else: kids[1] (c, kids[1] may be NULL) */
    JX_S_SET,      /* a = b */
    JX_S_SETBLOCK, /* a = the text of b */
    JX_S_MACRO,    /* name(names[i] = kids[i] or none): b */
    JX_S_BREAK,
    JX_S_CONTINUE,
    JX_S_BLOCK /* kids */
} jx_node_kind;

/* Operators, in tokens and in nodes. */
typedef enum {
    JX_OP_NONE,
    JX_OP_ADD,
    JX_OP_SUB,
    JX_OP_MUL,
    JX_OP_DIV,
    JX_OP_FLOORDIV,
    JX_OP_MOD,
    JX_OP_CONCAT,
    JX_OP_EQ,
    JX_OP_NE,
    JX_OP_LT,
    JX_OP_LE,
    JX_OP_GT,
    JX_OP_GE,
    JX_OP_IN,
    JX_OP_NOT_IN,
    JX_OP_ASSIGN,
    JX_OP_LPAREN,
    JX_OP_RPAREN,
    JX_OP_LBRACKET,
    JX_OP_RBRACKET,
    JX_OP_LBRACE,
    JX_OP_RBRACE,
    JX_OP_DOT,
    JX_OP_COMMA,
    JX_OP_COLON,
    JX_OP_PIPE
} jx_op;

typedef struct jx_node {
    jx_node_kind kind;
    uint32_t line, n; /* n: kids; of a call's args, those with a name are the last n_named */
    uint32_t n_named;
    uint8_t op;
    uint8_t *ops;
    const char *name;
    const char **names; /* of the named args, or of a macro's parameters */
    struct jx_node *a, *b, *c, **kids;
    jx_value value;
} jx_node;

typedef struct jx_var {
    const char *name;
    jx_value value;
} jx_var;

typedef struct jx_scope {
    struct jx_scope *parent;
    jx_var *vars;
    uint32_t n, size;
} jx_scope;

typedef struct jx_macro {
    const jx_node *node;
    jx_scope *scope; /* where it was defined */
} jx_macro;

/* ---- tokens ---- */

typedef enum {
    JX_T_END,
    JX_T_TEXT,
    JX_T_PRINT_BEGIN,
    JX_T_PRINT_END,
    JX_T_BLOCK_BEGIN,
    JX_T_BLOCK_END,
    JX_T_NAME,
    JX_T_STR,
    JX_T_INT,
    JX_T_FLOAT,
    JX_T_OP
} jx_token_kind;

typedef struct jx_token {
    jx_token_kind kind;
    jx_op op;
    uint32_t line, n;
    const char *text; /* text, name (NUL-terminated) or string value */
    int64_t i;
    double f;
} jx_token;

/* ---- the state of a call of the API ---- */

typedef struct jx_buf {
    char *text;
    uint8_t *marks;
    size_t n, size, max;
} jx_buf;

typedef struct jx_state {
    jx_arena arena;
    jmp_buf exit;
    int rc;
    cf_err *err;
    uint32_t line, depth;
    uint64_t steps, max_steps;
    /* Rendering. */
    const cf_jinja_input *input;
    jx_buf *out;
    jx_scope *globals;
    json_t *held; /* released by the API call */
} jx_state;

struct cf_jinja_template {
    jx_arena arena;
    jx_node *root;
};

typedef struct jx_args {
    jx_value *values; /* the positional ones, then the named ones */
    uint32_t n, n_named;
    const char **names; /* [n_named] */
} jx_args;

_Noreturn void jx_fail(jx_state *s, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void *jx_alloc(jx_state *s, size_t n, size_t size);
/* A larger copy of an array that is full; sizes double. */
void *jx_grow(jx_state *s, void *items, uint32_t n, uint32_t *size, size_t item_bytes);
char *jx_text_copy(jx_state *s, const char *text, size_t n); /* NUL-terminated */
void jx_step(jx_state *s, uint64_t n);
void jx_enter(jx_state *s); /* one level of recursion; jx_leave after it */
static inline void jx_leave(jx_state *s)
{
    s->depth--;
}

/* jinja_lex.c, jinja_parse.c */
jx_token *jx_lex(jx_state *s, const char *text, size_t n);
jx_node *jx_parse(jx_state *s, const jx_token *tokens);

/* jinja_value.c: constructors, and what Python does with any value */
static inline jx_value jx_none(void)
{
    return (jx_value){.kind = JX_NONE};
}
static inline jx_value jx_bool(bool b)
{
    return (jx_value){.kind = JX_BOOL, .b = b};
}
static inline jx_value jx_int(int64_t i)
{
    return (jx_value){.kind = JX_INT, .i = i};
}
static inline jx_value jx_float(double f)
{
    return (jx_value){.kind = JX_FLOAT, .f = f};
}
static inline jx_value jx_str(const char *text, size_t n)
{
    return (jx_value){.kind = JX_STR, .text = text, .n = (uint32_t)n};
}
jx_value jx_undef(const char *name);
jx_value jx_slice_bytes(jx_value str, size_t begin, size_t end);
jx_value jx_list_new(jx_state *s, jx_kind kind, uint32_t size);
void jx_list_add(jx_state *s, jx_list *list, jx_value v);
jx_value jx_dict_new(jx_state *s, jx_kind kind);
void jx_dict_put(jx_state *s, jx_dict *dict, jx_value key, jx_value v);
const jx_value *jx_dict_get(jx_state *s, const jx_dict *dict, const char *key, size_t n);
jx_value jx_from_json(jx_state *s, const json_t *json, uint8_t mark, cf_jinja_mark how);
bool jx_truth(jx_value v);
bool jx_equal(jx_state *s, jx_value a, jx_value b);
int jx_compare(jx_state *s, jx_value a, jx_value b); /* <0, 0, >0; fails for other types */
bool jx_contains(jx_state *s, jx_value where, jx_value what);
/* A value as a list of what iterating over it gives; fails for what cannot be iterated. */
jx_list *jx_iterate(jx_state *s, jx_value v);
uint32_t jx_chars(jx_value str);
bool jx_is(jx_value str, const char *text);
const char *jx_kind_name(jx_value v);

/* jinja_text.c: values as text */
void jx_buf_add(jx_state *s, jx_buf *buf, const char *text, const uint8_t *marks, size_t n);
void jx_buf_value(jx_state *s, jx_buf *buf, jx_value v); /* str(v) */
jx_value jx_buf_str(const jx_buf *buf);
jx_value jx_to_str(jx_state *s, jx_value v);
typedef struct jx_json_style {
    bool ascii, sort_keys;
    int64_t indent; /* -1 = on one line */
    jx_value item, colon;
} jx_json_style;
void jx_buf_json(jx_state *s, jx_buf *buf, jx_value v, const jx_json_style *style);

/* jinja_string.c: methods of strings */
bool jx_is_space(uint32_t c);
uint32_t jx_char_at(const char *text, size_t n, size_t at, size_t *bytes);
jx_value jx_strip(jx_state *s, jx_value str, const jx_value *chars, bool left, bool right);
jx_value jx_replace(jx_state *s, jx_value str, jx_value from, jx_value to, int64_t max);
jx_value jx_case(jx_state *s, jx_value str, const char *how);
bool jx_str_has_method(const char *name);
jx_value jx_str_method(jx_state *s, jx_value str, const char *name, const jx_args *args);

/* jinja_builtin.c: filters, tests, functions, methods of lists and dicts, attributes */
jx_value jx_filter(jx_state *s, const char *name, jx_value v, const jx_args *args);
bool jx_test(jx_state *s, const char *name, jx_value v, const jx_args *args);
jx_value jx_call_function(jx_state *s, jx_value f, const jx_args *args);
jx_value jx_call_method(jx_state *s, const jx_method *m, const jx_args *args);
jx_value jx_attr(jx_state *s, jx_value v, const char *name);
jx_value jx_item(jx_state *s, jx_value v, jx_value key);
bool jx_function_exists(const char *name);
/* The argument number i, or the one called `name`, or NULL. */
const jx_value *jx_arg(const jx_args *args, uint32_t i, const char *name);

/* jinja_eval.c */
void jx_run(jx_state *s, const jx_node *root);

#endif
