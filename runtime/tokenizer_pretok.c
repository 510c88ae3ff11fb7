/* Pre-tokeniser: see tokenizer_pretok.h. Empty pieces are dropped wherever they arise. */
#include "runtime/tokenizer_pretok.h"

#include "runtime/tokenizer_vocab.h"

/* The pattern of the byte-level step, as GPT-2 published it. */
static const char byte_level_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

int tok_pretok_add(tok_pretok *pre, int syntax, const char *pattern, size_t bytes,
                   tok_split_behavior behavior, bool invert, const char *what, cf_err *err)
{
    if (pre->n_splits >= TOK_SPLITS_MAX)
        return CF_FAIL(err, CF_ELIMIT, "%s: more than %d split patterns", what, TOK_SPLITS_MAX);
    tok_split *split = &pre->splits[pre->n_splits];
    int rc = tok_regex_compile(&split->regex, syntax, pattern, bytes, what, err);
    if (rc < 0)
        return rc;
    split->behavior = behavior;
    split->invert = invert;
    pre->n_splits++;
    return 0;
}

int tok_pretok_byte_level(tok_pretok *pre, bool add_prefix_space, bool use_regex, cf_err *err)
{
    pre->add_prefix_space = add_prefix_space;
    pre->byte_level_split = use_regex;
    if (!use_regex)
        return 0;
    tok_split *split = &pre->splits[pre->n_splits];
    int rc = tok_regex_compile(&split->regex, TOK_REGEX_ONIG, byte_level_pattern,
                               sizeof byte_level_pattern - 1, "the byte-level pattern", err);
    if (rc == 0)
        pre->n_splits++;
    return rc;
}

void tok_pretok_finish(tok_pretok *pre)
{
    for (uint32_t i = 0; i < pre->n_splits; i++)
        tok_regex_finish(&pre->splits[i].regex);
    *pre = (tok_pretok){0};
}

uint64_t tok_pretok_memory(const tok_pretok *pre)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < pre->n_splits; i++)
        bytes += pre->splits[i].regex.memory_bytes;
    return bytes;
}

void tok_pretok_work_finish(tok_pretok_work *work)
{
    tok_pieces_finish(&work->pieces);
    tok_pieces_finish(&work->other);
    tok_buf_finish(&work->spaced);
}

/* Segments of one piece, matching or not, on their way to a list of pieces. */
typedef struct joiner {
    tok_split_behavior behavior;
    tok_pieces *out;
    size_t begin, end; /* held back: may still grow */
    bool holding, held_match;
} joiner;

static int joiner_flush(joiner *j, cf_err *err)
{
    bool keep = j->holding && j->end > j->begin;
    j->holding = false;
    return keep ? tok_pieces_add(j->out, j->begin, j->end - j->begin, err) : 0;
}

/* The next segment [begin, end) either widens the one held back or pushes it out. */
static int joiner_put(joiner *j, size_t begin, size_t end, bool match, cf_err *err)
{
    bool join = false;
    int rc = 0;
    switch (j->behavior) {
    case TOK_SPLIT_ISOLATED:
        break;
    case TOK_SPLIT_REMOVED:
        if (match)
            return 0;
        break;
    case TOK_SPLIT_WITH_PREVIOUS:
        join = j->holding && match && !j->held_match;
        break;
    case TOK_SPLIT_WITH_NEXT:
        join = j->holding && !match && j->held_match;
        break;
    case TOK_SPLIT_CONTIGUOUS:
        join = j->holding && match == j->held_match;
        break;
    }
    if (!join) {
        CF_TRY(joiner_flush(j, err));
        j->begin = begin;
    }
    j->end = end;
    j->holding = true;
    j->held_match = match;
fail:
    return rc;
}

static int piece_split(const tok_split *split, tok_scan *scan, const char *text, tok_piece piece,
                       tok_pieces *out, cf_err *err)
{
    joiner j = {.behavior = split->behavior, .out = out};
    tok_find find = {.text = text + piece.off, .bytes = piece.bytes};
    size_t begin, end, done = 0;
    int rc;
    while ((rc = tok_regex_next(&split->regex, scan, &find, &begin, &end, err)) > 0) {
        if (begin > done)
            CF_TRY(joiner_put(&j, piece.off + done, piece.off + begin, split->invert, err));
        CF_TRY(joiner_put(&j, piece.off + begin, piece.off + end, !split->invert, err));
        done = end;
    }
    CF_TRY(rc);
    if (done < piece.bytes)
        CF_TRY(joiner_put(&j, piece.off + done, piece.off + piece.bytes, split->invert, err));
    CF_TRY(joiner_flush(&j, err));
fail:
    return rc < 0 ? rc : 0;
}

static int split_run(const tok_split *split, tok_scan *scan, tok_pretok_work *w, cf_err *err)
{
    int rc = 0;
    w->other.n = 0;
    for (size_t i = 0; i < w->pieces.n; i++)
        CF_TRY(piece_split(split, scan, w->text, w->pieces.v[i], &w->other, err));
    tok_pieces swap = w->pieces;
    w->pieces = w->other;
    w->other = swap;
fail:
    return rc;
}

/* A space before every piece that does not begin with one. */
static int spaces_add(tok_pretok_work *w, cf_err *err)
{
    int rc = 0;
    w->spaced.n = 0;
    for (size_t i = 0; i < w->pieces.n; i++) {
        tok_piece *p = &w->pieces.v[i];
        size_t off = w->spaced.n;
        if (w->text[p->off] != ' ')
            CF_TRY(tok_buf_add(&w->spaced, " ", 1, err));
        CF_TRY(tok_buf_add(&w->spaced, w->text + p->off, p->bytes, err));
        *p = (tok_piece){.off = (uint32_t)off, .bytes = (uint32_t)(w->spaced.n - off)};
    }
    w->text = w->spaced.data;
fail:
    return rc;
}

/* One piece in the letters of a SentencePiece vocabulary, behind `spaced`. */
static int meta_add(const tok_pretok *pre, tok_pretok_work *w, tok_piece p, cf_err *err)
{
    size_t off = w->spaced.n;
    bool wanted = pre->meta == TOK_META_ALWAYS ||
                  (pre->meta == TOK_META_FIRST && !w->inside && p.off == 0);
    int rc = 0;
    CF_TRY(tok_buf_reserve(&w->spaced, (size_t)p.bytes + 1, err));
    CF_TRY(tok_meta_add(&w->spaced, w->text + p.off, p.bytes, err));
    if (wanted && w->spaced.data[off] != ' ') {
        memmove(w->spaced.data + off + 1, w->spaced.data + off, w->spaced.n - off);
        w->spaced.data[off] = ' ';
        w->spaced.n++;
    }
    while (pre->meta_split && off < w->spaced.n) {
        const char *next = memchr(w->spaced.data + off + 1, ' ', w->spaced.n - off - 1);
        if (!next)
            break;
        size_t end = (size_t)(next - w->spaced.data);
        CF_TRY(tok_pieces_add(&w->other, off, end - off, err));
        off = end;
    }
    if (w->spaced.n > off)
        CF_TRY(tok_pieces_add(&w->other, off, w->spaced.n - off, err));
fail:
    return rc;
}

static int meta_run(const tok_pretok *pre, tok_pretok_work *w, cf_err *err)
{
    int rc = 0;
    w->spaced.n = 0;
    w->other.n = 0;
    for (size_t i = 0; i < w->pieces.n; i++)
        CF_TRY(meta_add(pre, w, w->pieces.v[i], err));
    tok_pieces swap = w->pieces;
    w->pieces = w->other;
    w->other = swap;
    w->text = w->spaced.data ? w->spaced.data : "";
fail:
    return rc;
}

int tok_pretok_run(const tok_pretok *pre, tok_scan *scan, tok_pretok_work *work, const char *text,
                   size_t bytes, cf_err *err)
{
    int rc = 0;
    uint32_t n_first = pre->n_splits - pre->byte_level_split;
    work->text = text;
    work->pieces.n = 0;
    if (bytes == 0)
        return 0;
    CF_TRY(tok_pieces_add(&work->pieces, 0, bytes, err));
    for (uint32_t i = 0; i < n_first; i++)
        CF_TRY(split_run(&pre->splits[i], scan, work, err));
    if (pre->add_prefix_space && work->pieces.n > 0)
        CF_TRY(spaces_add(work, err));
    if (pre->byte_level_split)
        CF_TRY(split_run(&pre->splits[n_first], scan, work, err));
    if (pre->meta != TOK_META_NONE)
        CF_TRY(meta_run(pre, work, err));
fail:
    return rc;
}
