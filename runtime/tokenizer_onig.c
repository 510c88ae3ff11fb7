/* Rewrites an Oniguruma pattern (Ruby syntax, UTF-8) for PCRE2 (UTF, UCP, MULTILINE).
 *
 * What differs, and is rewritten:
 *   \s        White_Space exactly (PCRE2's has U+180E); \h a hexadecimal digit; \w and \d likewise
 *   \p{X}     the class of Unicode 16.0, whatever PCRE2's tables are (tokenizer_classes.inc);
 *             a script by its Script property (PCRE2 would take Script_Extensions)
 *   [a[bc]]   a set in a set is a union; [a&&b] is an intersection; both become lookaheads before
 *             one character where plain classes do not do
 *   $ ^       at every line, hence MULTILINE
 *   {,n}      {0,n}
 * One more rewriting is for speed only: `\s+$` alone would be tried from each blank of a run.
 * Beside that, callouts count the steps of a match (tokenizer_regex.h): behind each repeat (but for
 * the first few `?` of an alternative), where a group or an alternative in one begins, behind many
 * plain characters. What a match can do between two of them has a bound.
 * Anything else that could mean something else (\b, {n,m}+, (?m), back references, POSIX sets) is
 * refused by name. Known difference: (?i) does not match one letter for two (ss, sharp s).
 * Sets nest at most SET_DEPTH deep; there is no recursion. */
#include "runtime/tokenizer_regex.h"

#include <stdio.h>

#include "runtime/tokenizer_classes.inc"

enum {
    SET_DEPTH = 8,
    GROUP_DEPTH = 100,
    REPEAT_MAX = 1000,
    /* Not counted one by one: each costs time in every text, and these alone cannot cost much. */
    OPTIONS_FREE = 3,
    ALTERNATIVES_FREE = 16,
    PARTS_FREE = 64,
    /* Characters in the ranges of a pattern that ignores case: PCRE2 looks at each of them. */
    CASELESS_MAX = 4 * 0x110000
};

#define WHITE_SPACE                                                                                \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"    \
    "\\x{205F}\\x{3000}"
#define DECIMAL "\\p{Nd}" CLASS_NEW_ND
#define WORD                                                                                       \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}\\x{24B6}-\\x{24E9}"     \
    "\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}" CLASS_NEW_L CLASS_NEW_M      \
        CLASS_NEW_ND

/* Names as they are compared: lower case, without blanks, '_' and '-'. */
static const struct {
    const char *name, *items;
} properties[] = {
    {"l", "\\p{L}" CLASS_NEW_L},
    {"letter", "\\p{L}" CLASS_NEW_L},
    {"lu", "\\p{Lu}" CLASS_NEW_LU},
    {"uppercaseletter", "\\p{Lu}" CLASS_NEW_LU},
    {"ll", "\\p{Ll}" CLASS_NEW_LL},
    {"lowercaseletter", "\\p{Ll}" CLASS_NEW_LL},
    {"lt", "\\p{Lt}" CLASS_NEW_LT},
    {"titlecaseletter", "\\p{Lt}" CLASS_NEW_LT},
    {"lm", "\\p{Lm}" CLASS_NEW_LM},
    {"modifierletter", "\\p{Lm}" CLASS_NEW_LM},
    {"lo", "\\p{Lo}" CLASS_NEW_LO},
    {"otherletter", "\\p{Lo}" CLASS_NEW_LO},
    {"m", "\\p{M}" CLASS_NEW_M},
    {"mark", "\\p{M}" CLASS_NEW_M},
    {"n", "\\p{N}" CLASS_NEW_N},
    {"number", "\\p{N}" CLASS_NEW_N},
    {"nd", DECIMAL},
    {"decimalnumber", DECIMAL},
    {"p", "\\p{P}" CLASS_NEW_P},
    {"punctuation", "\\p{P}" CLASS_NEW_P},
    {"s", "\\p{S}" CLASS_NEW_S},
    {"symbol", "\\p{S}" CLASS_NEW_S},
    {"han", "\\p{sc:Han}" CLASS_NEW_HAN},
    {"hiragana", "\\p{sc:Hiragana}"},
    {"katakana", "\\p{sc:Katakana}"},
    {"hangul", "\\p{sc:Hangul}"},
    {"latin", "\\p{sc:Latin}"},
    {"greek", "\\p{sc:Greek}"},
    {"cyrillic", "\\p{sc:Cyrillic}"},
    {"arabic", "\\p{sc:Arabic}"},
    {"hebrew", "\\p{sc:Hebrew}"},
    {"thai", "\\p{sc:Thai}"},
    {"devanagari", "\\p{sc:Devanagari}"},
    {"mn", "\\p{Mn}"},
    {"mc", "\\p{Mc}"},
    {"me", "\\p{Me}"},
    {"nl", "\\p{Nl}"},
    {"no", "\\p{No}"},
    {"pc", "\\p{Pc}"},
    {"pd", "\\p{Pd}"},
    {"ps", "\\p{Ps}"},
    {"pe", "\\p{Pe}"},
    {"pi", "\\p{Pi}"},
    {"pf", "\\p{Pf}"},
    {"po", "\\p{Po}"},
    {"sm", "\\p{Sm}"},
    {"sc", "\\p{Sc}"},
    {"sk", "\\p{Sk}"},
    {"so", "\\p{So}"},
    {"z", "\\p{Z}"},
    {"zs", "\\p{Zs}"},
    {"zl", "\\p{Zl}"},
    {"zp", "\\p{Zp}"},
    {"cc", "\\p{Cc}"},
    {"cf", "\\p{Cf}"},
    {"space", WHITE_SPACE},
};

/* A set being read. `terms` collects what precedes each &&; `items` and `sets` the current one:
 * plain items, and alternatives that are no plain items. */
typedef struct set_level {
    bool negated;
    tok_buf items, sets, terms;
    uint32_t n_terms;
} set_level;

typedef struct onig {
    const char *p;
    size_t n, at;
    const char *what;
    tok_buf *out;
    uint32_t depth; /* groups open */
    uint32_t n_options, n_alternatives, n_parts; /* since a callout, or of an alternative */
    bool caseless;                               /* (?i was there */
    uint64_t n_ranged;
    set_level levels[SET_DEPTH];
    uint32_t n_levels;
    cf_err *err;
} onig;

/* One class escape, or one character. */
typedef struct escape {
    const char *items; /* NULL: the character `c` */
    bool negated;
    uint32_t c;
} escape;

static int add(onig *o, tok_buf *b, const char *text)
{
    return tok_buf_add(b, text, strlen(text), o->err);
}

static int refuse(onig *o, size_t from, size_t bytes, const char *why)
{
    char quoted[TOK_QUOTE_SIZE];
    if (bytes > o->n - from)
        bytes = o->n - from;
    return CF_FAIL(o->err, CF_EFORMAT, "%s: \"%s\" at byte %zu of the pattern %s", o->what,
                   tok_quote(o->p + from, bytes, quoted), from, why);
}

static bool next_is(const onig *o, const char *text)
{
    size_t n = strlen(text);
    return o->n - o->at >= n && memcmp(o->p + o->at, text, n) == 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* \p{Name}, \p{^Name}, \P{Name}; `at` is behind the p. */
static int property_read(onig *o, size_t from, bool negated, escape *e)
{
    char name[32];
    size_t n = 0;
    if (!next_is(o, "{"))
        return refuse(o, from, 2, "lacks its {name}");
    o->at++;
    if (next_is(o, "^")) {
        negated = !negated;
        o->at++;
    }
    while (o->at < o->n && o->p[o->at] != '}') {
        char c = o->p[o->at++];
        if (c == ' ' || c == '_' || c == '-')
            continue;
        if (n == sizeof name - 1)
            return refuse(o, from, o->at - from, "is no property that is known");
        name[n++] = (char)(c >= 'A' && c <= 'Z' ? c | 0x20 : c);
    }
    name[n] = 0;
    if (o->at == o->n)
        return refuse(o, from, o->at - from, "is not closed");
    o->at++;
    for (size_t i = 0; i < sizeof properties / sizeof *properties; i++)
        if (strcmp(properties[i].name, name) == 0) {
            *e = (escape){.items = properties[i].items, .negated = negated};
            return 0;
        }
    return refuse(o, from, o->at - from, "is no property that is known");
}

/* \xHH (ASCII), \x{H...}, \uHHHH; `at` is behind the x or u. */
static int number_read(onig *o, size_t from, char kind, escape *e)
{
    bool braces = kind == 'x' && next_is(o, "{");
    uint32_t max = braces ? 8 : kind == 'u' ? 4 : 2, digits = 0;
    uint64_t value = 0;
    o->at += braces;
    while (digits < max && o->at < o->n && hex_value(o->p[o->at]) >= 0) {
        value = value << 4 | (uint32_t)hex_value(o->p[o->at++]);
        digits++;
    }
    bool whole = braces ? digits > 0 && next_is(o, "}") : digits == max;
    o->at += braces && whole;
    if (!whole || value > 0x10ffff || (value >= 0xd800 && value < 0xe000) ||
        (kind == 'x' && !braces && value > 0x7f))
        return refuse(o, from, o->at - from, "is no character");
    *e = (escape){.c = (uint32_t)value};
    return 0;
}

/* Reads an escape that means the same in and out of a set; `at` is on the backslash. */
static int escape_read(onig *o, escape *e)
{
    static const char controls[] = "t\tn\nr\rf\fv\va\ae\x1b";
    size_t from = o->at++, bytes;
    if (o->at == o->n)
        return refuse(o, from, 1, "ends the pattern");
    char c = o->p[o->at];
    if ((unsigned char)c >= 0x80) {
        *e = (escape){.c = tok_char(o->p + o->at, &bytes)};
        o->at += bytes;
        return 0;
    }
    o->at++;
    for (size_t i = 0; controls[i]; i += 2)
        if (c == controls[i]) {
            *e = (escape){.c = (unsigned char)controls[i + 1]};
            return 0;
        }
    switch (c) {
    case 's':
    case 'S':
        *e = (escape){.items = WHITE_SPACE, .negated = c == 'S'};
        return 0;
    case 'd':
    case 'D':
        *e = (escape){.items = DECIMAL, .negated = c == 'D'};
        return 0;
    case 'w':
    case 'W':
        *e = (escape){.items = WORD, .negated = c == 'W'};
        return 0;
    case 'h':
    case 'H':
        *e = (escape){.items = "0-9A-Fa-f", .negated = c == 'H'};
        return 0;
    case 'p':
    case 'P':
        return property_read(o, from, c == 'P', e);
    case 'x':
    case 'u':
        return number_read(o, from, c, e);
    default:
        break;
    }
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return refuse(o, from, 2, "is no escape that is known");
    *e = (escape){.c = (unsigned char)c};
    return 0;
}

static int char_add(onig *o, tok_buf *b, uint32_t c)
{
    char text[16];
    snprintf(text, sizeof text, "\\x{%X}", c);
    return add(o, b, text);
}

/* --- sets ------------------------------------------------------------------------------------ */

static int set_open(onig *o)
{
    if (o->n_levels == SET_DEPTH)
        return refuse(o, o->at, 1, "opens a set too deep in other sets");
    set_level *s = &o->levels[o->n_levels++];
    s->negated = false;
    s->items.n = s->sets.n = s->terms.n = 0;
    s->n_terms = 0;
    o->at++;
    if (next_is(o, "^")) {
        s->negated = true;
        o->at++;
    }
    if (next_is(o, "]")) { /* the first ] is a character */
        o->at++;
        return char_add(o, &s->items, ']');
    }
    return 0;
}

/* The current union of a level: [items], (?:set|set) or both. Appended to `b`. */
static int union_put(onig *o, set_level *s, tok_buf *b)
{
    int rc = 0;
    if (s->items.n == 0 && s->sets.n == 0)
        return refuse(o, o->at, 1, "ends an empty set");
    if (s->sets.n > 0)
        CF_TRY(add(o, b, "(?:"));
    if (s->items.n > 0) {
        CF_TRY(add(o, b, "["));
        CF_TRY(tok_buf_add(b, s->items.data, s->items.n, o->err));
        CF_TRY(add(o, b, "]"));
    }
    if (s->sets.n > 0) {
        /* Each alternative in `sets` begins with its '|'. */
        size_t skip = s->items.n > 0 ? 0 : 1;
        CF_TRY(tok_buf_add(b, s->sets.data + skip, s->sets.n - skip, o->err));
        CF_TRY(add(o, b, ")"));
    }
fail:
    return rc;
}

/* What stands before && becomes one lookahead. */
static int set_and(onig *o)
{
    set_level *s = &o->levels[o->n_levels - 1];
    int rc = 0;
    CF_TRY(add(o, &s->terms, "(?="));
    CF_TRY(union_put(o, s, &s->terms));
    CF_TRY(add(o, &s->terms, ")"));
    s->items.n = s->sets.n = 0;
    s->n_terms++;
    o->at += 2;
fail:
    return rc;
}

/* The whole set as one PCRE2 item that takes one character, appended to `b`. */
static int set_put(onig *o, set_level *s, tok_buf *b)
{
    int rc = 0;
    bool plain = s->n_terms == 0 && s->sets.n == 0 && s->items.n > 0;
    if (plain) {
        CF_TRY(add(o, b, s->negated ? "[^" : "["));
        CF_TRY(tok_buf_add(b, s->items.data, s->items.n, o->err));
        CF_TRY(add(o, b, "]"));
        return 0;
    }
    CF_TRY(add(o, b, s->negated ? "(?:(?!" : "(?:"));
    if (s->n_terms > 0)
        CF_TRY(tok_buf_add(b, s->terms.data, s->terms.n, o->err));
    CF_TRY(union_put(o, s, b));
    CF_TRY(add(o, b, s->negated ? ")(?s:.))" : ")"));
fail:
    return rc;
}

static int set_close(onig *o)
{
    set_level *s = &o->levels[--o->n_levels];
    int rc = 0;
    if (o->n_levels == 0) {
        CF_TRY(set_put(o, s, o->out));
    } else {
        set_level *outer = &o->levels[o->n_levels - 1];
        if (!s->negated && s->n_terms == 0 && s->sets.n == 0 && s->items.n > 0) {
            CF_TRY(tok_buf_add(&outer->items, s->items.data, s->items.n, o->err));
        } else {
            CF_TRY(add(o, &outer->sets, "|"));
            CF_TRY(set_put(o, s, &outer->sets));
        }
    }
    o->at++;
fail:
    return rc;
}

/* One end of a range, or a class; `at` is on its first byte. */
static int set_item_read(onig *o, escape *e)
{
    if (o->p[o->at] == '\\')
        return escape_read(o, e);
    size_t bytes;
    *e = (escape){.c = tok_char(o->p + o->at, &bytes)};
    o->at += bytes;
    return 0;
}

static int set_item(onig *o)
{
    set_level *s = &o->levels[o->n_levels - 1];
    size_t from = o->at;
    escape e, last;
    int rc = 0;
    CF_TRY(set_item_read(o, &e));
    bool range = next_is(o, "-") && o->at + 1 < o->n && o->p[o->at + 1] != ']';
    if (e.items) {
        if (range)
            return refuse(o, from, o->at + 1 - from, "is a class at the end of a range");
        if (!e.negated)
            return add(o, &s->items, e.items);
        CF_TRY(add(o, &s->sets, "|[^"));
        CF_TRY(add(o, &s->sets, e.items));
        return add(o, &s->sets, "]");
    }
    CF_TRY(char_add(o, &s->items, e.c));
    if (!range)
        return 0;
    o->at++;
    if (o->p[o->at] == '[' || next_is(o, "&&"))
        return refuse(o, from, o->at + 1 - from, "is a range without an end");
    CF_TRY(set_item_read(o, &last));
    if (last.items || last.c < e.c)
        return refuse(o, from, o->at - from, "is a range that ends before it begins");
    o->n_ranged += last.c - e.c;
    if (o->caseless && o->n_ranged > CASELESS_MAX)
        return CF_FAIL(o->err, CF_ELIMIT,
                       "%s: the sets of a pattern that ignores case have ranges of more than %d "
                       "characters",
                       o->what, CASELESS_MAX);
    CF_TRY(add(o, &s->items, "-"));
    CF_TRY(char_add(o, &s->items, last.c));
fail:
    return rc;
}

static int set_read(onig *o)
{
    size_t from = o->at;
    int rc = set_open(o);
    while (rc == 0 && o->n_levels > 0) {
        if (o->at >= o->n)
            rc = refuse(o, from, o->n - from, "is a set that is not closed");
        else if (next_is(o, "]"))
            rc = set_close(o);
        else if (next_is(o, "[:"))
            rc = refuse(o, o->at, 8, "is a POSIX set, which is not known");
        else if (next_is(o, "["))
            rc = set_open(o);
        else if (next_is(o, "&&"))
            rc = set_and(o);
        else
            rc = set_item(o);
    }
    return rc;
}

/* --- the rest -------------------------------------------------------------------------------- */

/* A repeat {n}, {n,}, {,m}, {n,m}: 1 when `at` is on one (with its end), 0 when { is a character.
 */
static int repeat_read(const onig *o, uint32_t *low, uint32_t *high, bool *range, size_t *end)
{
    size_t i = o->at + 1, digits[2] = {0, 0};
    uint32_t value[2] = {0, 0};
    int side = 0;
    for (; i < o->n && o->p[i] != '}'; i++) {
        char c = o->p[i];
        if (c == ',' && side == 0) {
            side = 1;
        } else if (c >= '0' && c <= '9') {
            digits[side]++;
            if (value[side] <= REPEAT_MAX)
                value[side] = value[side] * 10 + (uint32_t)(c - '0');
        } else {
            return 0;
        }
    }
    if (i >= o->n || (digits[0] == 0 && digits[1] == 0))
        return 0;
    *low = value[0];
    *high = side == 0 ? value[0] : digits[1] ? value[1] : UINT32_MAX;
    *range = side == 1;
    *end = i + 1;
    return 1;
}

/* A step is counted here. Not before a repeat, which would then repeat the callout. */
static int callout_put(onig *o)
{
    o->n_parts = 0;
    if (o->at < o->n && memchr("*+?{", o->p[o->at], 4))
        return 0;
    return add(o, o->out, "(?C)");
}

/* What makes a repeat lazy or possessive belongs to it. */
static int repeat_end(onig *o)
{
    int rc = 0;
    if (next_is(o, "?") || next_is(o, "+"))
        CF_TRY(tok_buf_add(o->out, o->p + o->at++, 1, o->err));
    CF_TRY(callout_put(o));
fail:
    return rc;
}

static int repeat_put(onig *o)
{
    uint32_t low, high;
    bool range;
    size_t end, from = o->at;
    char text[40];
    if (!repeat_read(o, &low, &high, &range, &end)) {
        o->at++;
        return add(o, o->out, "\\{");
    }
    if (low > REPEAT_MAX || (high != UINT32_MAX && (high > REPEAT_MAX || high < low)))
        return refuse(o, from, end - from, "is a repeat out of range");
    o->at = end;
    /* In Ruby's syntax {n,m}+ is a repeated repeat and {n}? an optional one. */
    if (next_is(o, "+") || (!range && next_is(o, "?")))
        return refuse(o, from, end + 1 - from, "is a repeat of a repeat, which is not known");
    if (high == UINT32_MAX)
        snprintf(text, sizeof text, "{%u,}", low);
    else
        snprintf(text, sizeof text, "{%u,%u}", low, high);
    int rc = add(o, o->out, text);
    return rc < 0 ? rc : repeat_end(o);
}

/* *, + or ?. */
static int sign_put(onig *o)
{
    bool counted = o->p[o->at] != '?' || o->n_options++ >= OPTIONS_FREE;
    int rc = tok_buf_add(o->out, o->p + o->at++, 1, o->err);
    return rc < 0 || !counted ? rc : repeat_end(o);
}

static int group_open(onig *o)
{
    static const char *const openers[] = {"(?:",  "(?=",  "(?!",  "(?>",
                                          "(?<=", "(?<!", "(?i:", "(?-i:"};
    size_t bytes = 1;
    if (o->depth++ == GROUP_DEPTH)
        return refuse(o, o->at, 1, "opens a group too deep in other groups");
    if (next_is(o, "(*"))
        return refuse(o, o->at, 2, "is no group that is known");
    if (next_is(o, "(?")) {
        bytes = 0;
        for (size_t i = 0; i < sizeof openers / sizeof *openers; i++)
            if (next_is(o, openers[i]))
                bytes = strlen(openers[i]);
        if (bytes == 0 && next_is(o, "(?i)") && o->at == 0) {
            bytes = 4; /* at the front only: elsewhere the two differ on what it covers */
            o->depth--;
        }
        if (bytes == 0)
            return refuse(o, o->at, 4, "is no group that is known");
    }
    o->caseless |= next_is(o, "(?i");
    int rc = tok_buf_add(o->out, o->p + o->at, bytes, o->err);
    bool opened = !next_is(o, "(?i)");
    o->at += bytes;
    return rc < 0 || !opened ? rc : callout_put(o);
}

static int escape_put(onig *o)
{
    escape e;
    int rc = 0;
    char next = o->at + 1 < o->n ? o->p[o->at + 1] : 0;
    if (next == 'A' || next == 'z' || next == 'Z') {
        rc = tok_buf_add(o->out, o->p + o->at, 2, o->err);
        o->at += 2;
        return rc;
    }
    CF_TRY(escape_read(o, &e));
    if (!e.items)
        return char_add(o, o->out, e.c);
    CF_TRY(add(o, o->out, e.negated ? "[^" : "["));
    CF_TRY(add(o, o->out, e.items));
    CF_TRY(add(o, o->out, "]"));
fail:
    return rc;
}

static int part_put(onig *o)
{
    char c = o->p[o->at];
    int rc = 0;
    switch (c) {
    case '\\':
        return escape_put(o);
    case '[':
        return set_read(o);
    case '(':
        return group_open(o);
    case '{':
        return repeat_put(o);
    case ']':
    case '}':
        o->at++;
        return char_add(o, o->out, (unsigned char)c);
    case '*':
    case '+':
    case '?':
        return sign_put(o);
    case '|':
        o->at++;
        CF_TRY(add(o, o->out, "|"));
        if (o->depth > 0 || ++o->n_alternatives >= ALTERNATIVES_FREE)
            return callout_put(o);
        o->n_options = 0;
        return 0;
    case ')':
        if (o->depth > 0)
            o->depth--;
        break;
    default:
        break;
    }
    o->at++;
    CF_TRY(tok_buf_add(o->out, &c, 1, o->err));
fail:
    return rc;
}

int tok_onig_translate(const char *pattern, size_t bytes, const char *what, tok_buf *out,
                       cf_err *err)
{
    onig o = {.p = pattern, .n = bytes, .what = what, .out = out, .err = err};
    int rc = 0;
    out->n = 0;
    /* If the blanks of a run do not reach an end of line from the first of them, they do not from
     * any other, nor behind a match, which takes the last end of line there is: try the first
     * only, or the search is quadratic. */
    if (bytes == 4 && memcmp(pattern, "\\s+$", 4) == 0)
        return add(&o, out, "(?<![" WHITE_SPACE "])[" WHITE_SPACE "]+$");
    while (rc == 0 && o.at < o.n) {
        rc = part_put(&o);
        if (rc == 0 && ++o.n_parts >= PARTS_FREE)
            rc = callout_put(&o);
    }
    for (uint32_t i = 0; i < SET_DEPTH; i++) {
        tok_buf_finish(&o.levels[i].items);
        tok_buf_finish(&o.levels[i].sets);
        tok_buf_finish(&o.levels[i].terms);
    }
    return rc;
}
