/* The steps of a normaliser: see tokenizer_normal.h. Each reads one text and writes the next. */
#include "runtime/tokenizer_normal.h"

#include "runtime/tokenizer_vocab.h"

tok_step *tok_normal_add(tok_normal *normal, tok_step_kind kind, const char *what, cf_err *err)
{
    if (normal->n == TOK_STEPS_MAX) {
        CF_FAIL(err, CF_ELIMIT, "%s: more than %d normalisers", what, TOK_STEPS_MAX);
        return NULL;
    }
    tok_step *step = &normal->steps[normal->n];
    *step = (tok_step){.kind = kind};
    if (kind == TOK_STEP_CLUSTERS &&
        tok_regex_compile(&step->regex, TOK_REGEX_CLUSTER, "", 0, what, err) < 0)
        return NULL;
    normal->n++;
    return step;
}

void tok_normal_finish(tok_normal *normal)
{
    for (uint32_t i = 0; i < normal->n; i++) {
        tok_regex_finish(&normal->steps[i].regex);
        tok_buf_finish(&normal->steps[i].text);
    }
    tok_charsmap_finish(&normal->map);
    *normal = (tok_normal){0};
}

uint64_t tok_normal_memory(const tok_normal *normal)
{
    uint64_t bytes =
        (uint64_t)normal->map.n_units * sizeof *normal->map.units + normal->map.text_bytes;
    for (uint32_t i = 0; i < normal->n; i++)
        bytes += normal->steps[i].regex.memory_bytes + normal->steps[i].text.size;
    return bytes;
}

void tok_normal_work_finish(tok_normal_work *work)
{
    free(work->chars);
    free(work->sorted);
    tok_buf_finish(&work->other);
    tok_scan_finish(&work->scan);
    *work = (tok_normal_work){0};
}

/* --- the steps ------------------------------------------------------------------------------- */

/* Adds to what a step writes, which has a limit: sixteen steps that each double a text would not. */
static int out_add(const tok_normal_work *work, tok_buf *out, const char *text, size_t n,
                   cf_err *err)
{
    if (n > work->end - out->n)
        return CF_FAIL(err, CF_ELIMIT,
                       "the normalizer makes more than %d times a text of %zu bytes, or more than "
                       "%d bytes",
                       TOK_GROWTH_MAX, work->given, TOK_NORMAL_BYTES_MAX);
    return tok_buf_add(out, text, n, err);
}

static int replace_run(const tok_step *step, tok_normal_work *work, const char *text, size_t bytes,
                       tok_buf *out, bool *changed, cf_err *err)
{
    tok_find find = {.text = text, .bytes = bytes};
    size_t begin, end, done = 0;
    int rc;
    while ((rc = tok_regex_next(&step->regex, &work->scan, &find, &begin, &end, err)) > 0) {
        CF_TRY(out_add(work, out, text + done, begin - done, err));
        CF_TRY(out_add(work, out, step->text.data, step->text.n, err));
        done = end;
        *changed = true;
    }
    if (rc == 0 && *changed)
        rc = out_add(work, out, text + done, bytes - done, err);
fail:
    return rc;
}

static int strip_run(const tok_step *step, const tok_normal_work *work, const char *text,
                     size_t bytes, tok_buf *out, bool *changed, cf_err *err)
{
    size_t from = 0, to = bytes, n;
    while (step->left && from < to && tok_char_is_space(tok_char(text + from, &n)))
        from += n;
    while (step->right && to > from) {
        size_t at = to - 1;
        while (at > from && ((unsigned char)text[at] & 0xc0) == 0x80)
            at--;
        if (!tok_char_is_space(tok_char(text + at, &n)))
            break;
        to = at;
    }
    *changed = to - from != bytes;
    return *changed ? out_add(work, out, text + from, to - from, err) : 0;
}

/* Characters that are clusters of their own beside each other: ASCII, most of Latin, Greek and
 * Cyrillic, kana and Han. */
static bool char_apart(uint32_t c)
{
    return (c >= 0x20 && c < 0x7f) || (c >= 0xae && c < 0x300) || (c >= 0x370 && c < 0x483) ||
           (c >= 0x48a && c < 0x591) || (c >= 0x3041 && c < 0x3097) ||
           (c >= 0x30a1 && c < 0x3100) || (c >= 0x3400 && c < 0xa000);
}

/* One cluster: whole where it is short and begins with a sequence of the table (the rest of it is
 * lost: so does the reference), else character by character. */
static int cluster_map(const tok_charsmap *map, const tok_normal_work *work, const char *text,
                       size_t bytes, tok_buf *out, cf_err *err)
{
    size_t used, step;
    int rc = 0;
    const char *whole = NULL, *to;
    if (bytes < 6)
        CF_TRY(tok_charsmap_find(map, text, bytes, false, &whole, &used, err));
    if (whole)
        return out_add(work, out, whole, strlen(whole), err);
    for (size_t i = 0; i < bytes; i += step) {
        tok_char(text + i, &step);
        CF_TRY(tok_charsmap_find(map, text + i, step, false, &to, &used, err));
        CF_TRY(to ? out_add(work, out, to, strlen(to), err)
                  : out_add(work, out, text + i, step, err));
    }
fail:
    return rc;
}

static int clusters_run(const tok_step *step, const tok_charsmap *map, tok_normal_work *work,
                        const char *text, size_t bytes, tok_buf *out, cf_err *err)
{
    int rc = 0;
    size_t n, n_next, begin, end;
    const char *to;
    for (size_t i = 0; i < bytes; i += n) {
        bool apart = char_apart(tok_char(text + i, &n));
        if (!apart || (i + n < bytes && !char_apart(tok_char(text + i + n, &n_next)))) {
            /* What is before does not matter, and PCRE2 would count all flags that end there. */
            tok_find find = {.text = text + i, .bytes = bytes - i};
            CF_TRY(tok_regex_next(&step->regex, &work->scan, &find, &begin, &end, err));
            if (rc > 0 && begin == 0 && end > 0)
                n = end;
        } else if (n == 1) {
            CF_TRY(tok_charsmap_find(map, text + i, 1, false, &to, &end, err));
            CF_TRY(to ? out_add(work, out, to, strlen(to), err)
                      : out_add(work, out, text + i, 1, err));
            continue;
        }
        CF_TRY(cluster_map(map, work, text + i, n, out, err));
    }
fail:
    return rc;
}

/* SentencePiece's own: the longest sequence of the table at each place; with `spaces_apart` none at
 * either end and one between words. A U+2581 of the text counts as a space at the end only. */
static int spaces_run(const tok_step *step, const tok_charsmap *map, const tok_normal_work *work,
                      const char *text, size_t bytes, tok_buf *out, cf_err *err)
{
    const char *to;
    size_t first = out->n, used = 0;
    bool begun = false, after_space = step->spaces_apart;
    int rc = 0;
    for (size_t i = 0; i < bytes; i += used) {
        CF_TRY(tok_charsmap_find(map, text + i, bytes - i, true, &to, &used, err));
        size_t n = to ? strlen(to) : 0;
        if (!to) {
            tok_char(text + i, &used);
            to = text + i;
            n = used;
        }
        if (!begun && step->spaces_apart && n == 1 && *to == ' ')
            continue; /* before anything else */
        if (!begun && step->space_first)
            CF_TRY(out_add(work, out, " ", 1, err));
        begun = true;
        while (after_space && n > 0 && *to == ' ') {
            to++;
            n--;
        }
        CF_TRY(out_add(work, out, to, n, err));
        if (n > 0)
            after_space = step->spaces_apart && to[n - 1] == ' ';
    }
    while (step->spaces_apart && out->n > first) {
        if (out->data[out->n - 1] == ' ')
            out->n--;
        else if (out->n - first >= TOK_META_BYTES &&
                 memcmp(out->data + out->n - TOK_META_BYTES, TOK_META, TOK_META_BYTES) == 0)
            out->n -= TOK_META_BYTES;
        else
            break;
    }
fail:
    return rc;
}

static int step_run(const tok_normal *normal, const tok_step *step, tok_normal_work *work,
                    const char *text, size_t bytes, tok_buf *out, bool *changed, cf_err *err)
{
    int rc = 0;
    *changed = false;
    if (step->regex.code) {
        if (!work->scan.data)
            CF_TRY(tok_scan_init(&work->scan, err));
        tok_scan_grant(&work->scan, bytes);
    }
    switch (step->kind) {
    case TOK_STEP_NFC:
        return tok_nfc_run(work, text, bytes, out, changed, err);
    case TOK_STEP_PREPEND:
        *changed = bytes > 0;
        if (bytes == 0)
            return 0;
        CF_TRY(out_add(work, out, step->text.data, step->text.n, err));
        return out_add(work, out, text, bytes, err);
    case TOK_STEP_REPLACE:
        return replace_run(step, work, text, bytes, out, changed, err);
    case TOK_STEP_STRIP:
        return strip_run(step, work, text, bytes, out, changed, err);
    case TOK_STEP_CLUSTERS:
        *changed = true;
        return clusters_run(step, &normal->map, work, text, bytes, out, err);
    case TOK_STEP_SPACES:
        *changed = true;
        return spaces_run(step, &normal->map, work, text, bytes, out, err);
    }
fail:
    return rc;
}

int tok_normal_run(const tok_normal *normal, tok_normal_work *work, const char *text, size_t bytes,
                   tok_buf *out, bool *changed, cf_err *err)
{
    size_t first = out->n, limit = bytes * TOK_GROWTH_MAX + TOK_GROWTH_FREE;
    int rc = 0;
    bool now;
    *changed = false;
    work->given = bytes;
    for (uint32_t i = 0; i < normal->n; i++) {
        /* What a step reads is the text given, or what the one before wrote, moved aside. */
        const char *from = text;
        size_t n = bytes;
        if (*changed) {
            work->other.n = 0;
            CF_TRY(tok_buf_add(&work->other, out->data + first, out->n - first, err));
            from = work->other.data ? work->other.data : "";
            n = work->other.n;
        }
        size_t keep = out->n;
        if (*changed)
            out->n = first;
        work->end = out->n + (limit < TOK_NORMAL_BYTES_MAX ? limit : TOK_NORMAL_BYTES_MAX);
        CF_TRY(step_run(normal, &normal->steps[i], work, from, n, out, &now, err));
        if (!now && *changed)
            out->n = keep;
        *changed |= now;
    }
fail:
    return rc;
}
