/* Split patterns: compiling and matching with PCRE2; see tokenizer_regex.h.
 *
 * Bounds: pattern length, compiled size, PCRE2's match limit for each place a match is tried at, the
 * steps of all of a text's matches together (a pattern may be quadratic well below that limit), and
 * a JIT stack that grows to 256 MiB of address space, so that a letter repeated a million times is
 * no error. Literals need none: memmem is linear. Texts are checked to be UTF-8 before they come
 * here and pieces end between characters, hence NO_UTF_CHECK. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>

#include "runtime/tokenizer_regex.h"

enum {
    PATTERN_BYTES_MAX = 64 * 1024, /* as compiled, after translation */
    CODE_BYTES_MAX = 1024 * 1024,
    MATCH_LIMIT = 50 * 1000 * 1000,
    JIT_STACK_FIRST = 64 * 1024,
    JIT_STACK_MAX = 256 * 1024 * 1024,
    STEPS_FIRST = 64 * 1024 * 1024,
    STEPS_A_BYTE = 256 /* patterns that are known take 1 to 7 */
};

static int compile_failed(const char *what, int code, size_t off, cf_err *err)
{
    char reason[160];
    if (pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason) < 0)
        snprintf(reason, sizeof reason, "error %d", code);
    return CF_FAIL(err, CF_EFORMAT,
                   "%s: the pattern does not compile: %s (at byte %zu as rewritten)", what, reason,
                   off);
}

int tok_regex_compile(tok_regex *re, int syntax, const char *pattern, size_t bytes,
                      const char *what, cf_err *err)
{
    int rc = 0, code = 0;
    PCRE2_SIZE off = 0;
    size_t size = 0, jit_size = 0;
    uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK;
    tok_buf text = {0};
    *re = (tok_regex){0};
    if (bytes > PATTERN_BYTES_MAX)
        return CF_FAIL(err, CF_ELIMIT, "%s: a pattern of %zu bytes is above the limit of %d", what,
                       bytes, PATTERN_BYTES_MAX);
    if (syntax == TOK_REGEX_LITERAL) {
        re->memory_bytes = bytes;
        CF_TRY(tok_buf_reserve(&re->literal, bytes + 1, err));
        CF_TRY(tok_buf_add(&re->literal, pattern, bytes, err));
        return 0;
    }
    if (syntax == TOK_REGEX_CLUSTER) {
        CF_TRY(tok_buf_add(&text, "\\X", 2, err));
    } else {
        options |= PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
        CF_TRY(tok_onig_translate(pattern, bytes, what, &text, err));
    }
    if (text.n > PATTERN_BYTES_MAX) {
        rc =
            CF_FAIL(err, CF_ELIMIT, "%s: the pattern takes %zu bytes as rewritten, the limit is %d",
                    what, text.n, PATTERN_BYTES_MAX);
        goto fail;
    }
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) {
        rc = CF_FAIL(err, -ENOMEM, "%s: no memory to compile the pattern", what);
        goto fail;
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    re->code =
        pcre2_compile((PCRE2_SPTR)(text.n ? text.data : ""), text.n, options, &code, &off, context);
    pcre2_compile_context_free(context);
    if (!re->code) {
        rc = compile_failed(what, code, off, err);
        goto fail;
    }
    pcre2_pattern_info(re->code, PCRE2_INFO_SIZE, &size);
    if (size > CODE_BYTES_MAX) {
        rc = CF_FAIL(err, CF_ELIMIT, "%s: the compiled pattern takes %zu bytes, the limit is %d",
                     what, size, CODE_BYTES_MAX);
        goto fail;
    }
    /* Without JIT in the library, or memory it may execute, the interpreter does the same. */
    re->jit = pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE) == 0;
    if (re->jit)
        pcre2_pattern_info(re->code, PCRE2_INFO_JITSIZE, &jit_size);
    re->memory_bytes = size + jit_size;
    tok_buf_finish(&text);
    return 0;
fail:
    tok_buf_finish(&text);
    tok_regex_finish(re);
    return rc;
}

void tok_regex_finish(tok_regex *re)
{
    pcre2_code_free(re->code);
    tok_buf_finish(&re->literal);
    *re = (tok_regex){0};
}

/* Called where the translation of a pattern has put it. */
static int step_count(pcre2_callout_block *block, void *of)
{
    tok_steps *s = of;
    size_t now = block->current_position;
    if (s->start != block->start_match)
        s->at = s->start = block->start_match;
    /* Further back than before: given back, or in a lookbehind. */
    uint64_t steps = now > s->at ? 1 + (now - s->at) : 1;
    s->at = now;
    if (steps > s->left)
        return PCRE2_ERROR_CALLOUT;
    s->left -= steps;
    return 0;
}

void tok_scan_grant(tok_scan *scan, size_t bytes)
{
    scan->steps.left += (uint64_t)bytes * STEPS_A_BYTE;
    scan->steps.granted += (uint64_t)bytes * STEPS_A_BYTE;
}

int tok_scan_init(tok_scan *scan, cf_err *err)
{
    *scan = (tok_scan){.steps = {.left = STEPS_FIRST, .granted = STEPS_FIRST}};
    scan->data = pcre2_match_data_create(1, NULL); /* the bounds of the whole match */
    scan->context = pcre2_match_context_create(NULL);
    if (!scan->data || !scan->context) {
        tok_scan_finish(scan);
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory to match patterns");
    }
    pcre2_set_match_limit(scan->context, MATCH_LIMIT);
    pcre2_set_callout(scan->context, step_count, &scan->steps);
    return 0;
}

void tok_scan_finish(tok_scan *scan)
{
    pcre2_match_data_free(scan->data);
    pcre2_match_context_free(scan->context);
    pcre2_jit_stack_free(scan->stack);
    *scan = (tok_scan){0};
}

static int match_failed(const tok_scan *scan, const tok_find *find, int code, cf_err *err)
{
    if (code == PCRE2_ERROR_CALLOUT)
        return CF_FAIL(err, CF_ELIMIT,
                       "a split pattern gives up at byte %zu of a text of %zu bytes: its matches "
                       "take more than %llu steps",
                       find->at, find->bytes, (unsigned long long)scan->steps.granted);
    return CF_FAIL(err, CF_ELIMIT,
                   "a split pattern gives up at byte %zu of a text of %zu bytes (PCRE2 error %d)",
                   find->at, find->bytes, code);
}

/* The next match in what is left: as pcre2_match returns, with its bounds. */
static int find_once(const tok_regex *re, tok_scan *scan, const tok_find *find, size_t *begin,
                     size_t *end)
{
    PCRE2_SPTR text = (PCRE2_SPTR)find->text;
    scan->steps.start = SIZE_MAX;
    int n = re->jit ? pcre2_jit_match(re->code, text, find->bytes, find->at, 0, scan->data,
                                      scan->context)
                    : pcre2_match(re->code, text, find->bytes, find->at, PCRE2_NO_UTF_CHECK,
                                  scan->data, scan->context);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT && !scan->stack) {
        scan->stack = pcre2_jit_stack_create(JIT_STACK_FIRST, JIT_STACK_MAX, NULL);
        if (scan->stack) {
            pcre2_jit_stack_assign(scan->context, NULL, scan->stack);
            n = pcre2_jit_match(re->code, text, find->bytes, find->at, 0, scan->data,
                                scan->context);
        }
    }
    if (n < 0)
        return n;
    const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(scan->data);
    *begin = bounds[0];
    *end = bounds[1];
    return n;
}

static int literal_once(const tok_regex *re, const tok_find *find, size_t *begin, size_t *end)
{
    const char *from = find->text + find->at;
    const char *found = memmem(from, find->bytes - find->at, re->literal.data, re->literal.n);
    if (!found)
        return PCRE2_ERROR_NOMATCH;
    *begin = (size_t)(found - find->text);
    *end = *begin + re->literal.n;
    return 1;
}

int tok_regex_next(const tok_regex *re, tok_scan *scan, tok_find *find, size_t *begin, size_t *end,
                   cf_err *err)
{
    while (find->at <= find->bytes) {
        int n = re->code ? find_once(re, scan, find, begin, end)
                         : literal_once(re, find, begin, end);
        if (n == PCRE2_ERROR_NOMATCH)
            return 0;
        if (n < 0)
            return match_failed(scan, find, n, err);
        if (*begin == *end && find->matched && find->last_end == *end) {
            size_t step = 1;
            if (find->at < find->bytes)
                tok_char(find->text + find->at, &step);
            find->at += step;
            continue;
        }
        find->at = find->last_end = *end;
        find->matched = true;
        return 1;
    }
    return 0;
}
