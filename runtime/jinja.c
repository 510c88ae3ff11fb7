/* Jinja: the API, the arena and the way out on failure. See jinja.h and jinja_internal.h. */
#include "runtime/jinja_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "runtime/tokenizer.h" /* cf_utf8_invalid */

enum { BLOCK_BYTES = 1 << 16 };
static const uint64_t compile_memory_max = 256ull << 20, render_memory_max = 512ull << 20,
                      output_max = 64ull << 20, steps_max = 20000000;

void jx_arena_finish(jx_arena *arena)
{
    while (arena->blocks) {
        jx_block *next = arena->blocks->next;
        free(arena->blocks);
        arena->blocks = next;
    }
    arena->bytes = 0;
}

void jx_fail(jx_state *s, int code, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    s->rc = CF_FAIL(s->err, code, "the chat template, line %u: %s", s->line, text);
    longjmp(s->exit, 1);
}

void *jx_alloc(jx_state *s, size_t n, size_t size)
{
    jx_arena *a = &s->arena;
    if (size && n > SIZE_MAX / 2 / size)
        jx_fail(s, CF_ELIMIT, "a value is too large");
    size_t bytes = (n * size + 15) & ~(size_t)15;
    jx_block *b = a->blocks;
    if (!b || b->size - b->used < bytes) {
        size_t block = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        if (block > a->max_bytes - a->bytes)
            jx_fail(s, CF_ELIMIT, "more than %llu bytes of memory are needed",
                    (unsigned long long)a->max_bytes);
        b = malloc(sizeof *b + block);
        if (!b)
            jx_fail(s, -ENOMEM, "out of memory for %zu bytes", block);
        *b = (jx_block){.next = a->blocks, .size = block};
        a->blocks = b;
        a->bytes += block;
    }
    void *p = b->data + b->used;
    b->used += bytes;
    return p;
}

void *jx_grow(jx_state *s, void *items, uint32_t n, uint32_t *size, size_t item_bytes)
{
    if (*size > UINT32_MAX / 2)
        jx_fail(s, CF_ELIMIT, "a list of more than %u items", *size);
    uint32_t larger = *size ? *size * 2 : 4;
    void *copy = jx_alloc(s, larger, item_bytes);
    if (n)
        memcpy(copy, items, n * item_bytes);
    *size = larger;
    return copy;
}

char *jx_text_copy(jx_state *s, const char *text, size_t n)
{
    char *copy = jx_alloc(s, n + 1, 1);
    memcpy(copy, text, n);
    copy[n] = 0;
    return copy;
}

void jx_step(jx_state *s, uint64_t n)
{
    if (n > s->max_steps - s->steps)
        jx_fail(s, CF_ELIMIT, "more than %llu steps", (unsigned long long)s->max_steps);
    s->steps += n;
}

void jx_enter(jx_state *s)
{
    uint32_t max = s->input ? JX_DEPTH_MAX : JX_PARSE_DEPTH_MAX;
    if (++s->depth > max)
        jx_fail(s, CF_ELIMIT, "nesting is deeper than %u levels", max);
}

/* ---- compiling ---- */

int cf_jinja_compile(const char *text, size_t bytes, cf_jinja_template **out, cf_err *err)
{
    *out = NULL;
    if (bytes > CF_JINJA_TEMPLATE_BYTES_MAX)
        return CF_FAIL(err, CF_ELIMIT, "the chat template has %zu bytes, the limit is %d", bytes,
                       CF_JINJA_TEMPLATE_BYTES_MAX);
    size_t bad = cf_utf8_invalid(text, bytes);
    if (bad < bytes)
        return CF_FAIL(err, CF_EFORMAT, "the chat template is not valid UTF-8 at byte %zu", bad);
    cf_jinja_template *t = calloc(1, sizeof *t);
    jx_state *s = calloc(1, sizeof *s);
    if (!t || !s) {
        free(t);
        free(s);
        return CF_FAIL(err, -ENOMEM, "out of memory for a chat template");
    }
    s->err = err;
    s->max_steps = steps_max;
    s->arena.max_bytes = compile_memory_max;
    if (setjmp(s->exit) == 0)
        t->root = jx_parse(s, jx_lex(s, text, bytes));
    int rc = s->rc;
    t->arena = s->arena;
    free(s);
    if (rc < 0)
        cf_jinja_close(&t);
    *out = t;
    return rc;
}

void cf_jinja_close(cf_jinja_template **tmpl)
{
    if (!*tmpl)
        return;
    jx_arena_finish(&(*tmpl)->arena);
    free(*tmpl);
    *tmpl = NULL;
}

/* ---- rendering ---- */

static void variables_add(jx_state *s, const json_t *object, uint8_t mark, cf_jinja_mark how)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        jx_scope *g = s->globals;
        if (g->n == g->size)
            g->vars = jx_grow(s, g->vars, g->n, &g->size, sizeof *g->vars);
        uint8_t own = mark && how ? how(object, key, value, mark) : mark;
        g->vars[g->n++] =
            (jx_var){jx_text_copy(s, key, strlen(key)), jx_from_json(s, value, own, how)};
    }
}

static void render(jx_state *s, const cf_jinja_template *tmpl)
{
    s->line = 0;
    s->globals = jx_alloc(s, 1, sizeof *s->globals);
    *s->globals = (jx_scope){0};
    s->out = jx_alloc(s, 1, sizeof *s->out);
    *s->out = (jx_buf){.max = s->input->output_bytes ? s->input->output_bytes : output_max};
    variables_add(s, s->input->trusted, 0, NULL);
    variables_add(s, s->input->vars, 1, s->input->mark);
    jx_run(s, tmpl->root);
}

static int text_take(const jx_buf *buf, cf_jinja_text *out, cf_err *err)
{
    out->text = malloc(buf->n + 1);
    out->marks = malloc(buf->n + 1);
    if (!out->text || !out->marks) {
        cf_jinja_text_finish(out);
        return CF_FAIL(err, -ENOMEM, "out of memory for %zu bytes of a conversation", buf->n);
    }
    if (buf->n) {
        memcpy(out->text, buf->text, buf->n);
        memcpy(out->marks, buf->marks, buf->n);
    }
    out->text[buf->n] = 0;
    out->bytes = buf->n;
    return 0;
}

int cf_jinja_render(const cf_jinja_template *tmpl, const cf_jinja_input *input, cf_jinja_text *out,
                    cf_err *err)
{
    *out = (cf_jinja_text){0};
    jx_state *s = calloc(1, sizeof *s);
    if (!s)
        return CF_FAIL(err, -ENOMEM, "out of memory for a rendering");
    s->err = err;
    s->input = input;
    s->max_steps = input->steps ? input->steps : steps_max;
    s->arena.max_bytes = input->memory_bytes ? input->memory_bytes : render_memory_max;
    if (setjmp(s->exit) == 0)
        render(s, tmpl);
    int rc = s->rc;
    if (rc == 0)
        rc = text_take(s->out, out, err);
    json_decref(s->held);
    jx_arena_finish(&s->arena);
    free(s);
    return rc;
}

void cf_jinja_text_finish(cf_jinja_text *text)
{
    free(text->text);
    free(text->marks);
    *text = (cf_jinja_text){0};
}
