/* Jinja's lexer: a template's text to tokens, white space control included.
 *
 * As the reference does with trim_blocks and lstrip_blocks: the first newline behind a block or a
 * comment goes, blanks before one go where nothing else is before it on its line, '-' takes all
 * white space on its side, '+' switches both off. One trailing newline of the template goes. */
#include "runtime/jinja_internal.h"

#include <math.h>
#include <stdlib.h>

typedef struct lexer {
    jx_state *s;
    const char *text;
    size_t n, at;
    uint32_t line;
    bool line_starting; /* what came before ended in a newline */
    jx_token *tokens;
    uint32_t n_tokens, size;
} lexer;

static jx_token *token_add(lexer *x, jx_token_kind kind)
{
    if (x->n_tokens == x->size)
        x->tokens = jx_grow(x->s, x->tokens, x->n_tokens, &x->size, sizeof *x->tokens);
    jx_token *t = &x->tokens[x->n_tokens++];
    *t = (jx_token){.kind = kind, .line = x->line};
    x->s->line = x->line;
    return t;
}

static void advance(lexer *x, size_t to)
{
    for (; x->at < to; x->at++)
        x->line += x->text[x->at] == '\n';
}

static bool starts(const lexer *x, size_t at, const char *what)
{
    size_t n = strlen(what);
    return at + n <= x->n && memcmp(x->text + at, what, n) == 0;
}

static size_t space_end(const lexer *x, size_t at)
{
    size_t bytes;
    while (at < x->n && jx_is_space(jx_char_at(x->text, x->n, at, &bytes)))
        at += bytes;
    return at;
}

/* Text up to a tag at `end`, shortened as the tag asks. */
static void text_add(lexer *x, size_t end, char sign, bool print)
{
    jx_value text = jx_str(x->text + x->at, end - x->at);
    if (sign == '-') {
        text = jx_strip(x->s, text, NULL, false, true);
    } else if (sign != '+' && !print) {
        size_t line = text.n;
        while (line > 0 && text.text[line - 1] != '\n')
            line--;
        if (line > 0 || x->line_starting) {
            size_t from = x->at + line;
            if (space_end(x, from) >= end)
                text.n = (uint32_t)line;
        }
    }
    if (text.n) {
        jx_token *t = token_add(x, JX_T_TEXT);
        t->text = text.text;
        t->n = text.n;
    }
    advance(x, end);
}

/* The end of a tag at x->at, or 0: its length with the white space that goes with it. */
static size_t tag_end(const lexer *x, const char *close, bool block)
{
    size_t at = x->at;
    char sign = x->text[at];
    if (sign == '-' && starts(x, at + 1, close))
        return space_end(x, at + 3) - at;
    if (block && sign == '+' && starts(x, at + 1, close))
        return 3;
    if (!starts(x, at, close))
        return 0;
    return block && at + 2 < x->n && x->text[at + 2] == '\n' ? 3 : 2;
}

static void tag_leave(lexer *x, size_t n)
{
    x->line_starting = x->text[x->at + n - 1] == '\n';
    advance(x, x->at + n);
}

static void comment_skip(lexer *x)
{
    uint32_t line = x->line;
    for (; x->at < x->n; advance(x, x->at + 1)) {
        size_t n = tag_end(x, "#}", true);
        if (n) {
            tag_leave(x, n);
            return;
        }
    }
    x->s->line = line;
    jx_fail(x->s, CF_EFORMAT, "a comment is not closed");
}

/* ---- inside a tag ---- */

static bool is_name_byte(char c, bool first)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (!first && c >= '0' && c <= '9');
}

static void name_lex(lexer *x)
{
    size_t end = x->at;
    while (end < x->n && is_name_byte(x->text[end], false))
        end++;
    jx_token *t = token_add(x, JX_T_NAME);
    t->n = (uint32_t)(end - x->at);
    t->text = jx_text_copy(x->s, x->text + x->at, end - x->at);
    x->at = end;
}

static bool is_digit(const lexer *x, size_t at)
{
    return at < x->n && x->text[at] >= '0' && x->text[at] <= '9';
}

static void number_lex(lexer *x)
{
    char digits[64];
    size_t n = 0, at = x->at;
    bool real = false;
    for (; at < x->n; at++) {
        char c = x->text[at];
        if (c == '_' && is_digit(x, at + 1))
            continue;
        bool point = c == '.' && !real && is_digit(x, at + 1);
        bool exponent =
            (c == 'e' || c == 'E') &&
            (is_digit(x, at + 1) ||
             ((starts(x, at + 1, "+") || starts(x, at + 1, "-")) && is_digit(x, at + 2)));
        bool sign =
            (c == '+' || c == '-') && n > 0 && (digits[n - 1] == 'e' || digits[n - 1] == 'E');
        if (!is_digit(x, at) && !point && !exponent && !sign)
            break;
        real |= point || exponent;
        if (n + 1 >= sizeof digits)
            jx_fail(x->s, CF_EFORMAT, "a number has more than %zu digits", sizeof digits - 1);
        digits[n++] = c;
    }
    digits[n] = 0;
    jx_token *t = token_add(x, real ? JX_T_FLOAT : JX_T_INT);
    errno = 0;
    if (real)
        t->f = strtod(digits, NULL);
    else
        t->i = strtoll(digits, NULL, 10);
    if (!real && errno)
        jx_fail(x->s, CF_EFORMAT, "the number %s does not fit 64 bits", digits);
    if (real && !isfinite(t->f))
        jx_fail(x->s, CF_EFORMAT, "the number %s is too large", digits);
    x->at = at;
}

static size_t utf8_put(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | (c >> 6));
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | (c >> 12));
        out[1] = (char)(0x80 | ((c >> 6) & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | (c >> 18));
    out[1] = (char)(0x80 | ((c >> 12) & 63));
    out[2] = (char)(0x80 | ((c >> 6) & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

static uint32_t hex_read(lexer *x, size_t at, uint32_t digits)
{
    uint32_t c = 0;
    for (uint32_t i = 0; i < digits; i++) {
        char d = at + i < x->n ? x->text[at + i] : 0;
        uint32_t v = d >= '0' && d <= '9'   ? (uint32_t)(d - '0')
                     : d >= 'a' && d <= 'f' ? (uint32_t)(d - 'a') + 10
                     : d >= 'A' && d <= 'F' ? (uint32_t)(d - 'A') + 10
                                            : 16;
        if (v == 16)
            jx_fail(x->s, CF_EFORMAT, "an escape in a string needs %u hexadecimal digits", digits);
        c = c * 16 + v;
    }
    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        jx_fail(x->s, CF_EFORMAT, "the escape U+%04X in a string is not a character", c);
    return c;
}

/* The escape at `at` (behind the backslash): bytes it takes; its text to out. */
static size_t escape_read(lexer *x, size_t at, char *out, size_t *n_out)
{
    static const char from[] = "ntr\\'\"abfv", to[] = "\n\t\r\\'\"\a\b\f\v";
    char c = x->text[at];
    const char *known = c ? strchr(from, c) : NULL;
    *n_out = 0;
    if (known) {
        out[(*n_out)++] = to[known - from];
        return 1;
    }
    if (c == '\n')
        return 1;
    if (c == 'x' || c == 'u' || c == 'U') {
        uint32_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        *n_out = utf8_put(out, hex_read(x, at + 1, digits));
        return 1 + digits;
    }
    if (c >= '0' && c <= '7') {
        uint32_t v = 0, i = 0;
        for (; i < 3 && at + i < x->n && x->text[at + i] >= '0' && x->text[at + i] <= '7'; i++)
            v = v * 8 + (uint32_t)(x->text[at + i] - '0');
        *n_out = utf8_put(out, v);
        return i;
    }
    out[(*n_out)++] = '\\';
    return 0;
}

static void string_lex(lexer *x)
{
    char quote = x->text[x->at];
    size_t end = x->at + 1, n = 0;
    while (end < x->n && x->text[end] != quote)
        end += x->text[end] == '\\' ? 2 : 1;
    x->s->line = x->line;
    if (end >= x->n)
        jx_fail(x->s, CF_EFORMAT, "a string is not closed");
    /* No escape is longer than what it stands for, but for \ooo up to two bytes for two. */
    char *out = jx_alloc(x->s, end - x->at + 8, 1);
    for (size_t at = x->at + 1; at < end;) {
        if (x->text[at] != '\\') {
            out[n++] = x->text[at++];
            continue;
        }
        size_t n_out;
        at += 1 + escape_read(x, at + 1, out + n, &n_out);
        n += n_out;
    }
    jx_token *t = token_add(x, JX_T_STR);
    t->text = out;
    t->n = (uint32_t)n;
    advance(x, end + 1);
}

static void op_lex(lexer *x)
{
    static const struct {
        const char *text;
        jx_op op;
    } ops[] = {
        {"//", JX_OP_FLOORDIV}, {"==", JX_OP_EQ},      {"!=", JX_OP_NE},    {"<=", JX_OP_LE},
        {">=", JX_OP_GE},       {"+", JX_OP_ADD},      {"-", JX_OP_SUB},    {"*", JX_OP_MUL},
        {"/", JX_OP_DIV},       {"%", JX_OP_MOD},      {"~", JX_OP_CONCAT}, {"<", JX_OP_LT},
        {">", JX_OP_GT},        {"=", JX_OP_ASSIGN},   {"(", JX_OP_LPAREN}, {")", JX_OP_RPAREN},
        {"[", JX_OP_LBRACKET},  {"]", JX_OP_RBRACKET}, {"{", JX_OP_LBRACE}, {"}", JX_OP_RBRACE},
        {".", JX_OP_DOT},       {",", JX_OP_COMMA},    {":", JX_OP_COLON},  {"|", JX_OP_PIPE}};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++)
        if (starts(x, x->at, ops[i].text)) {
            token_add(x, JX_T_OP)->op = ops[i].op;
            x->at += strlen(ops[i].text);
            return;
        }
    x->s->line = x->line;
    jx_fail(x->s, CF_EFORMAT, "unexpected character 0x%02x in a tag",
            (unsigned)(unsigned char)x->text[x->at]);
}

static void tag_lex(lexer *x, bool block)
{
    uint32_t line = x->line, braces = 0;
    token_add(x, block ? JX_T_BLOCK_BEGIN : JX_T_PRINT_BEGIN);
    while (x->at < x->n) {
        char c = x->text[x->at];
        size_t n = braces ? 0 : tag_end(x, block ? "%}" : "}}", block);
        if (n) {
            token_add(x, block ? JX_T_BLOCK_END : JX_T_PRINT_END);
            tag_leave(x, n);
            return;
        }
        if (c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f' || c == '\v') {
            advance(x, x->at + 1);
        } else if (is_name_byte(c, true)) {
            name_lex(x);
        } else if (is_digit(x, x->at)) {
            number_lex(x);
        } else if (c == '"' || c == '\'') {
            string_lex(x);
        } else {
            braces += strchr("([{", c) != NULL && c;
            braces -= strchr(")]}", c) != NULL && c && braces;
            op_lex(x);
        }
    }
    x->s->line = line;
    jx_fail(x->s, CF_EFORMAT, "a tag is not closed");
}

/* CR LF and CR to LF, and without one last newline. */
static void newlines_normalise(lexer *x, const char *text, size_t n)
{
    char *out = jx_alloc(x->s, n + 1, 1);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        out[kept++] = text[i] == '\r' ? '\n' : text[i];
        if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n')
            i++;
    }
    if (kept && out[kept - 1] == '\n')
        kept--;
    out[kept] = 0;
    x->text = out;
    x->n = kept;
}

jx_token *jx_lex(jx_state *s, const char *text, size_t n)
{
    lexer x = {.s = s, .line = 1, .line_starting = true};
    newlines_normalise(&x, text, n);
    while (x.at < x.n) {
        size_t tag = x.at;
        while (tag < x.n && !(x.text[tag] == '{' && tag + 1 < x.n &&
                              strchr("{%#", x.text[tag + 1]) && x.text[tag + 1]))
            tag++;
        if (tag == x.n) {
            text_add(&x, tag, '+', true);
            break;
        }
        char kind = x.text[tag + 1], sign = tag + 2 < x.n ? x.text[tag + 2] : 0;
        bool signed_tag = sign == '-' || sign == '+';
        text_add(&x, tag, signed_tag ? sign : 0, kind == '{');
        advance(&x, tag + 2 + signed_tag);
        if (kind == '#')
            comment_skip(&x);
        else
            tag_lex(&x, kind == '%');
    }
    token_add(&x, JX_T_END);
    return x.tokens;
}
