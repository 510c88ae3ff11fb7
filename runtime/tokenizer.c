/* Tokenizer: text to ids through the parts (tokenizer_parts.h), ids to bytes.
 *
 * Encoding: added tokens are cut out of the text; what is between is normalised; added tokens that
 * ask for it are cut out of that; the rest is split into pieces, and each piece merged. A text is
 * bounded (TOK_TEXT_BYTES_MAX), every step is linear or n log n in it but for patterns that
 * backtrack, which have a limit.
 * Threads: a tokenizer is never written after load; each call has its own working memory. */
#include "runtime/tokenizer_parts.h"

void cf_tokenizer_close(cf_tokenizer **tok)
{
    cf_tokenizer *t = *tok;
    if (!t)
        return;
    tok_vocab_finish(&t->vocab);
    tok_bpe_finish(&t->bpe);
    tok_unigram_finish(&t->unigram);
    tok_normal_finish(&t->normal);
    tok_pretok_finish(&t->pretok);
    tok_added_finish(&t->added);
    tok_added_finish(&t->added_normalized);
    free(t);
    *tok = NULL;
}

/* --- what it knows --------------------------------------------------------------------------- */

int32_t cf_tokenizer_vocab_size(const cf_tokenizer *tok)
{
    return tok->vocab.n;
}

const char *cf_tokenizer_refusal(const cf_tokenizer *tok)
{
    return tok->refusal.code ? tok->refusal.msg : NULL;
}

bool cf_tokenizer_adds_bos(const cf_tokenizer *tok)
{
    return tok->n_prefix > 0;
}

uint64_t cf_tokenizer_memory(const cf_tokenizer *tok)
{
    return sizeof *tok + tok_vocab_memory(&tok->vocab) +
           tok_bpe_memory(&tok->bpe) + tok_unigram_memory(&tok->unigram) +
           tok_normal_memory(&tok->normal) + tok_pretok_memory(&tok->pretok) +
           tok_added_memory(&tok->added) + tok_added_memory(&tok->added_normalized);
}

const char *cf_tokenizer_piece(const cf_tokenizer *tok, int32_t id, size_t *bytes)
{
    *bytes = 0;
    if (id < 0 || id >= tok->vocab.n || !(tok->vocab.tokens[id].flags & TOK_USED))
        return "";
    return tok_vocab_bytes(&tok->vocab, id, bytes);
}

const char *cf_tokenizer_piece_first(const cf_tokenizer *tok, int32_t id, size_t *bytes)
{
    const char *piece = cf_tokenizer_piece(tok, id, bytes);
    if (tok->lead == TOK_LEAD_KEEP || *bytes == 0 ||
        (tok->vocab.tokens[id].flags & (TOK_ADDED | TOK_BYTE)))
        return piece;
    do {
        if (*piece != ' ')
            break;
        piece++;
        (*bytes)--;
    } while (tok->lead == TOK_LEAD_ALL && *bytes > 0);
    return piece;
}

cf_utf8_stream cf_tokenizer_stream(const cf_tokenizer *tok)
{
    return (cf_utf8_stream){.each_byte = tok->each_byte};
}

bool cf_tokenizer_is_special(const cf_tokenizer *tok, int32_t id)
{
    return id >= 0 && id < tok->vocab.n && (tok->vocab.tokens[id].flags & TOK_SPECIAL);
}

int32_t cf_tokenizer_find(const cf_tokenizer *tok, const char *content)
{
    size_t n = strlen(content), other_n;
    /* Added tokens are few and this is asked for a handful of names. */
    for (int32_t id = tok->vocab.n - 1; id >= 0; id--) {
        if (!(tok->vocab.tokens[id].flags & TOK_ADDED))
            continue;
        const char *other = tok_vocab_bytes(&tok->vocab, id, &other_n);
        if (other_n == n && memcmp(other, content, n) == 0)
            return id;
    }
    return tok_vocab_find(&tok->vocab, content, n);
}

/* --- encoding -------------------------------------------------------------------------------- */

typedef struct encoder {
    const cf_tokenizer *tok;
    bool skip_special;
    const uint8_t *marks; /* [bytes of the text] or NULL */
    tok_ids out;
    tok_scan scan;
    tok_pretok_work pretok;
    tok_bpe_work bpe;
    tok_unigram_work unigram;
    tok_normal_work normal;
    tok_buf normalised;
    cf_err *err;
} encoder;

/* A text without added tokens, normalised. */
static int text_encode(encoder *e, const char *text, size_t bytes, bool inside)
{
    const cf_tokenizer *t = e->tok;
    int rc = 0;
    e->pretok.inside = inside;
    CF_TRY(tok_pretok_run(&t->pretok, &e->scan, &e->pretok, text, bytes, e->err));
    for (size_t i = 0; i < e->pretok.pieces.n; i++) {
        tok_piece p = e->pretok.pieces.v[i];
        const char *piece = e->pretok.text + p.off;
        CF_TRY(t->is_unigram
                   ? tok_unigram_encode(&t->unigram, &e->unigram, piece, p.bytes, &e->out, e->err)
                   : tok_bpe_encode(&t->bpe, &t->vocab, &e->bpe, piece, p.bytes, &e->out, e->err));
    }
fail:
    return rc;
}

static uint8_t highest_mark(const uint8_t *marks, size_t n)
{
    uint8_t mark = 0;
    for (size_t i = 0; marks && i < n; i++)
        if (marks[i] > mark)
            mark = marks[i];
    return mark;
}

/* A text between added tokens: normalised, and cut at those that are looked for now. Marks do not
 * survive a change of the text: then the highest anywhere in it counts for all of it. */
static int part_encode(encoder *e, const char *text, size_t bytes, const uint8_t *marks,
                       bool inside)
{
    const cf_tokenizer *t = e->tok;
    size_t begin, n;
    int32_t id;
    bool changed;
    int rc;
    e->normalised.n = 0;
    rc = tok_normal_run(&t->normal, &e->normal, text, bytes, &e->normalised, &changed, e->err);
    if (rc < 0)
        return rc;
    const char *now = e->normalised.data ? e->normalised.data : "";
    tok_cut cut = {.text = changed ? now : text,
                   .bytes = changed ? e->normalised.n : bytes,
                   .skip_special = e->skip_special,
                   .mark = changed ? highest_mark(marks, bytes) : 0,
                   .marks = changed ? NULL : marks};
    while ((rc = tok_added_next(&t->added_normalized, &e->scan, &cut, &begin, &n, &id, e->err)) >
           0) {
        CF_TRY(text_encode(e, cut.text + begin, n, inside || begin > 0));
        if (id >= 0)
            tok_ids_add(&e->out, id);
    }
fail:
    return rc;
}

static int whole_encode(encoder *e, const char *text, size_t bytes, int flags)
{
    const cf_tokenizer *t = e->tok;
    size_t begin, n;
    int32_t id;
    int rc;
    if (flags & CF_TOK_ADD_PREFIX)
        for (uint32_t i = 0; i < t->n_prefix; i++)
            tok_ids_add(&e->out, t->prefix[i]);
    tok_cut cut = {
        .text = text, .bytes = bytes, .skip_special = e->skip_special, .marks = e->marks};
    while ((rc = tok_added_next(&t->added, &e->scan, &cut, &begin, &n, &id, e->err)) > 0) {
        if (n > 0)
            CF_TRY(part_encode(e, text + begin, n, e->marks ? e->marks + begin : NULL, begin > 0));
        if (id >= 0)
            tok_ids_add(&e->out, id);
    }
fail:
    return rc;
}

int cf_tokenizer_encode(const cf_tokenizer *tok, const char *text, size_t text_bytes, int flags,
                        int32_t *ids, size_t max, size_t *n, cf_err *err)
{
    return cf_tokenizer_encode_marked(tok, text, text_bytes, NULL, flags, ids, max, n, err);
}

int cf_tokenizer_encode_marked(const cf_tokenizer *tok, const char *text, size_t text_bytes,
                               const uint8_t *marks, int flags, int32_t *ids, size_t max, size_t *n,
                               cf_err *err)
{
    encoder e = {.tok = tok,
                 .marks = marks,
                 .skip_special = !(flags & CF_TOK_PARSE_SPECIAL),
                 .out = {.ids = ids, .max = max},
                 .err = err};
    *n = 0;
    if (tok->refusal.code)
        return CF_FAIL(err, tok->refusal.code, "%s", tok->refusal.msg);
    if (text_bytes > TOK_TEXT_BYTES_MAX)
        return CF_FAIL(err, CF_ELIMIT, "a text of %zu bytes is above the limit of %d", text_bytes,
                       TOK_TEXT_BYTES_MAX);
    size_t invalid = cf_utf8_invalid(text, text_bytes);
    if (invalid < text_bytes)
        return CF_FAIL(err, CF_EFORMAT, "the text is not UTF-8: byte 0x%02x at offset %zu",
                       (unsigned char)text[invalid], invalid);
    int rc = tok_scan_init(&e.scan, err);
    tok_scan_grant(&e.scan, text_bytes);
    if (rc == 0)
        rc = whole_encode(&e, text, text_bytes, flags);
    tok_scan_finish(&e.scan);
    tok_pretok_work_finish(&e.pretok);
    tok_bpe_work_finish(&e.bpe);
    tok_unigram_work_finish(&e.unigram);
    tok_normal_work_finish(&e.normal);
    tok_buf_finish(&e.normalised);
    if (rc == 0)
        *n = e.out.n;
    return rc;
}
