/* Reads a SentencePiece model (tokenizer.model): a protocol buffer with the pieces, how they were
 * trained (which model) and how texts are normalised.
 *
 * Ids and order are those of the sentencepiece library: pieces merge, or are summed up, by score;
 * user-defined pieces are cut out of the normalised text; control pieces only come from what the
 * caller calls special. The file is untrusted: lengths are checked against what is left, numbers
 * against their range; fields that are not known are passed over, as the format has it. */
#include "runtime/tokenizer_parts.h"

#include <math.h>
#include <stdio.h>

enum {
    PIECE_NORMAL = 1,
    PIECE_UNKNOWN,
    PIECE_CONTROL,
    PIECE_USER,
    PIECE_UNUSED,
    PIECE_BYTE,
    MODEL_UNIGRAM = 1,
    MODEL_BPE = 2
};

/* --- the wire -------------------------------------------------------------------------------- */

typedef struct wire {
    const uint8_t *at, *end;
} wire;

typedef struct field {
    uint32_t number;
    uint32_t kind;  /* 0: number; 1: 8 bytes; 2: bytes; 5: 4 bytes */
    uint64_t value; /* 0, 1, 5 */
    wire bytes;     /* 2 */
} field;

static bool varint_read(wire *w, uint64_t *out)
{
    *out = 0;
    for (uint32_t shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        uint8_t byte = *w->at++;
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

static bool fixed_read(wire *w, uint32_t bytes, uint64_t *out)
{
    *out = 0;
    if ((size_t)(w->end - w->at) < bytes)
        return false;
    for (uint32_t i = 0; i < bytes; i++)
        *out |= (uint64_t)*w->at++ << (8 * i);
    return true;
}

/* 1 with the next field, 0 at the end, -1 where the bytes are no field. */
static int field_next(wire *w, field *f)
{
    uint64_t tag, n;
    if (w->at == w->end)
        return 0;
    if (!varint_read(w, &tag) || tag >> 3 == 0 || tag >> 3 > UINT32_MAX)
        return -1;
    *f = (field){.number = (uint32_t)(tag >> 3), .kind = (uint32_t)(tag & 7)};
    switch (f->kind) {
    case 0:
        return varint_read(w, &f->value) ? 1 : -1;
    case 1:
        return fixed_read(w, 8, &f->value) ? 1 : -1;
    case 5:
        return fixed_read(w, 4, &f->value) ? 1 : -1;
    case 2:
        if (!varint_read(w, &n) || n > (uint64_t)(w->end - w->at))
            return -1;
        f->bytes = (wire){.at = w->at, .end = w->at + n};
        w->at += n;
        return 1;
    default:
        return -1;
    }
}

static float float_of(uint64_t bits)
{
    uint32_t low = (uint32_t)bits;
    float value;
    memcpy(&value, &low, sizeof value);
    return value;
}

/* --- the model ------------------------------------------------------------------------------- */

typedef struct spm {
    cf_tokenizer *tok;
    const char *path;
    cf_err *err;
    const uint8_t *data;
    float *scores;
    uint8_t *types;
    int32_t n, size;
    uint64_t model;
    int64_t unk_id, bos_id;
    bool has_bytes;
    tok_fallback bytes;
    bool space_first, spaces_apart, escaped;
    wire map;
} spm;

static int bad(const spm *s, const uint8_t *at, const char *what)
{
    return CF_FAIL(s->err, CF_EFORMAT, "%s: %s at byte %zu is cut off or damaged", s->path, what,
                   (size_t)(at - s->data));
}

static int pieces_room(spm *s)
{
    if (s->n < s->size)
        return 0;
    if (s->n == TOK_VOCAB_MAX)
        return CF_FAIL(s->err, CF_ELIMIT, "%s: more than %d pieces", s->path, TOK_VOCAB_MAX);
    int32_t size = s->size ? s->size * 2 : 4096;
    float *scores = realloc(s->scores, (size_t)size * sizeof *scores);
    if (scores)
        s->scores = scores;
    uint8_t *types = realloc(s->types, (size_t)size);
    if (types)
        s->types = types;
    if (!scores || !types)
        return CF_FAIL(s->err, -ENOMEM, "%s: no memory for %d pieces", s->path, size);
    s->size = size;
    return 0;
}

static int piece_read(spm *s, wire w)
{
    const uint8_t *begin = w.at;
    wire text = {.at = w.at, .end = w.at};
    uint64_t type = PIECE_NORMAL;
    float score = 0;
    field f;
    int rc;
    while ((rc = field_next(&w, &f)) > 0) {
        if (f.number == 1 && f.kind == 2)
            text = f.bytes;
        else if (f.number == 2 && f.kind == 5)
            score = float_of(f.value);
        else if (f.number == 3 && f.kind == 0)
            type = f.value;
    }
    if (rc < 0)
        return bad(s, begin, "the piece");
    if (type < PIECE_NORMAL || type > PIECE_BYTE)
        return CF_FAIL(s->err, CF_EFORMAT, "%s: piece %d is of type %llu, which is not known",
                       s->path, s->n, (unsigned long long)type);
    if (!isfinite(score))
        return CF_FAIL(s->err, CF_EFORMAT, "%s: the score of piece %d is not a number", s->path,
                       s->n);
    CF_TRY(pieces_room(s));
    int32_t id = s->n++;
    s->scores[id] = score;
    s->types[id] = (uint8_t)type;
    CF_TRY(tok_piece_define(s->tok, (const char *)text.at, (size_t)(text.end - text.at), id,
                            type == PIECE_BYTE, &s->bytes, s->err));
    if (type == PIECE_UNUSED)
        s->tok->vocab.tokens[id].flags |= TOK_UNUSED;
fail:
    return rc;
}

static int trainer_read(spm *s, wire w)
{
    const uint8_t *begin = w.at;
    field f;
    int rc;
    while ((rc = field_next(&w, &f)) > 0) {
        if (f.kind != 0)
            continue;
        if (f.number == 3)
            s->model = f.value;
        else if (f.number == 40)
            s->unk_id = (int32_t)f.value;
        else if (f.number == 41)
            s->bos_id = (int32_t)f.value;
        else if (f.number == 24 && f.value)
            return CF_FAIL(s->err, CF_EFORMAT,
                           "%s: white space as a suffix (trainer_spec field 24) is not supported",
                           s->path);
    }
    return rc < 0 ? bad(s, begin, "the trainer_spec") : 0;
}

static int normalizer_read(spm *s, wire w)
{
    const uint8_t *begin = w.at;
    field f;
    int rc;
    while ((rc = field_next(&w, &f)) > 0) {
        if (f.number == 2 && f.kind == 2)
            s->map = f.bytes;
        else if (f.number == 3 && f.kind == 0)
            s->space_first = f.value != 0;
        else if (f.number == 4 && f.kind == 0)
            s->spaces_apart = f.value != 0;
        else if (f.number == 5 && f.kind == 0)
            s->escaped = f.value != 0;
    }
    return rc < 0 ? bad(s, begin, "the normalizer_spec") : 0;
}

static int parts_read(spm *s, wire w)
{
    field f;
    int rc;
    const uint8_t *begin = w.at;
    while ((rc = field_next(&w, &f)) > 0) {
        if (f.kind == 2 && f.number == 1)
            CF_TRY(piece_read(s, f.bytes));
        else if (f.kind == 2 && f.number == 2)
            CF_TRY(trainer_read(s, f.bytes));
        else if (f.kind == 2 && f.number == 3)
            CF_TRY(normalizer_read(s, f.bytes));
        begin = w.at;
    }
    if (rc < 0)
        return bad(s, begin, "the field");
    if (s->n == 0)
        return CF_FAIL(s->err, CF_EFORMAT, "%s is not a SentencePiece model: it has no pieces",
                       s->path);
    if (s->model != MODEL_UNIGRAM && s->model != MODEL_BPE)
        return CF_FAIL(s->err, CF_EFORMAT,
                       "%s: a model of type %llu is not supported (supported: 1 unigram, 2 bpe)",
                       s->path, (unsigned long long)s->model);
    if (!s->escaped)
        return CF_FAIL(s->err, CF_EFORMAT, "%s: a model that keeps spaces is not supported",
                       s->path);
    if (s->unk_id >= s->n || s->bos_id >= s->n)
        return CF_FAIL(s->err, CF_EFORMAT, "%s: unk_id %lld or bos_id %lld is not one of %d pieces",
                       s->path, (long long)s->unk_id, (long long)s->bos_id, s->n);
fail:
    return rc;
}

static int added_set(spm *s)
{
    tok_buf text = {0};
    size_t n;
    int rc = 0;
    for (int32_t id = 0; id < s->n; id++) {
        bool user = s->types[id] == PIECE_USER;
        if (!user && s->types[id] != PIECE_CONTROL && s->types[id] != PIECE_UNKNOWN)
            continue;
        const char *piece = tok_vocab_bytes(&s->tok->vocab, id, &n);
        if (n == 0 || n > TOK_ADDED_BYTES_MAX / 4)
            CF_TRY(CF_FAIL(s->err, CF_ELIMIT, "%s: piece %d has %zu bytes, not 1 to %d", s->path,
                           id, n, TOK_ADDED_BYTES_MAX / 4));
        text.n = 0;
        CF_TRY(tok_buf_add(&text, piece, n, s->err));
        /* A user's piece is looked for as it is in the normalised text. */
        CF_TRY(tok_vocab_set(&s->tok->vocab, id, text.data, n,
                             (uint8_t)(TOK_ADDED | (user ? 0 : TOK_SPECIAL)), s->err));
        CF_TRY(tok_added_put(user ? &s->tok->added_normalized : &s->tok->added, text.data, n, id,
                             user ? 0 : TOK_IS_SPECIAL, s->err));
    }
fail:
    tok_buf_finish(&text);
    return rc;
}

static int model_set(spm *s)
{
    cf_tokenizer *t = s->tok;
    int rc = 0;
    CF_TRY(added_set(s));
    CF_TRY(tok_vocab_index(&t->vocab, s->err));
    if (s->model == MODEL_UNIGRAM) {
        float *scores = s->scores;
        s->scores = NULL;
        t->is_unigram = true;
        t->unigram.bytes = s->bytes;
        return tok_unigram_init(&t->unigram, &t->vocab, scores, s->n, (int32_t)s->unk_id, s->err);
    }
    CF_TRY(
        tok_bpe_by_score(t, s->scores, s->unk_id < 0 ? -1 : (int32_t)s->unk_id, &s->bytes, s->err));
    if (s->bos_id >= 0) {
        t->prefix[0] = (int32_t)s->bos_id;
        t->n_prefix = 1;
    }
fail:
    return rc;
}

int tok_spm_read(cf_tokenizer *tok, const uint8_t *data, size_t bytes, const char *path,
                 cf_err *err)
{
    spm s = {.tok = tok,
             .path = path,
             .err = err,
             .data = data,
             .model = MODEL_UNIGRAM, /* the defaults of the format */
             .unk_id = 0,
             .bos_id = 1,
             .space_first = true,
             .spaces_apart = true,
             .escaped = true};
    int rc = 0;
    CF_TRY(parts_read(&s, (wire){.at = data, .end = data + bytes}));
    CF_TRY(tok_spaces_set(tok, s.map.at, (size_t)(s.map.end - s.map.at), s.space_first,
                          s.spaces_apart, path, err));
    CF_TRY(model_set(&s));
fail:
    free(s.scores);
    free(s.types);
    return rc;
}
