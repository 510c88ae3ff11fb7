/* Tokenizer: opening the files, and text to ids through the parts (tokenizer_parts.h).
 *
 * Encoding: added tokens are cut out of the text; what is between is normalised; added tokens that
 * ask for it are cut out of that; the rest is split into pieces, and each piece merged. A text is
 * bounded (TOK_TEXT_BYTES_MAX), every step is linear or n log n in it but for patterns that
 * backtrack, which have a limit.
 * Threads: a tokenizer is never written after load; each call has its own working memory. */
#include "runtime/tokenizer_parts.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- opening --------------------------------------------------------------------------------- */

/* The whole of a regular file; 1 when it does not exist and that is allowed. */
static int file_read(const char *path, bool optional, tok_buf *out, cf_err *err)
{
    struct stat st;
    int rc = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        if (optional && errno == ENOENT)
            return 1;
        return CF_FAIL(err, -errno, "%s: %s", path, strerror(errno));
    }
    if (fstat(fd, &st) != 0) {
        rc = CF_FAIL(err, -errno, "%s: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) {
        rc = CF_FAIL(err, CF_EFORMAT, "%s is not a file", path);
        goto fail;
    }
    if (st.st_size > TOK_FILE_BYTES_MAX) {
        rc = CF_FAIL(err, CF_ELIMIT, "%s: %lld bytes, the limit for a tokenizer is %d", path,
                     (long long)st.st_size, TOK_FILE_BYTES_MAX);
        goto fail;
    }
    CF_TRY(tok_buf_reserve(out, (size_t)st.st_size + 1, err));
    while (out->n < (size_t)st.st_size) {
        ssize_t n = read(fd, out->data + out->n, (size_t)st.st_size - out->n);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = CF_FAIL(err, -errno, "%s: %s", path, strerror(errno));
            goto fail;
        }
        if (n == 0)
            break; /* shorter than it was: what is there decides */
        out->n += (size_t)n;
    }
fail:
    close(fd);
    return rc;
}

static json_t *json_parse(const char *text, size_t bytes, const char *path, cf_err *err)
{
    json_error_t e;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!root)
        CF_FAIL(err, CF_EFORMAT, "%s: line %d, column %d: %s", path, e.line, e.column, e.text);
    return root;
}

int cf_tokenizer_parse(const char *json, size_t json_bytes, const char *path, cf_tokenizer **out,
                       cf_err *err)
{
    *out = NULL;
    if (json_bytes > TOK_FILE_BYTES_MAX)
        return CF_FAIL(err, CF_ELIMIT, "%s: %zu bytes, the limit for a tokenizer is %d", path,
                       json_bytes, TOK_FILE_BYTES_MAX);
    json_t *root = json_parse(json, json_bytes, path, err);
    if (!root)
        return CF_EFORMAT;
    cf_tokenizer *tok = calloc(1, sizeof *tok);
    int rc = tok ? tok_json_read(tok, root, path, err)
                 : CF_FAIL(err, -ENOMEM, "%s: no memory for a tokenizer", path);
    json_decref(root);
    if (rc < 0)
        cf_tokenizer_close(&tok);
    else
        *out = tok;
    return rc;
}

/* tokenizer_config.json beside the file, where there is one. */
static int config_load(cf_tokenizer *tok, const char *path, cf_err *err)
{
    static const char name[] = "tokenizer_config.json";
    char config[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
    tok_buf text = {0};
    if (folder + sizeof name > sizeof config)
        return CF_FAIL(err, -ENAMETOOLONG, "%s: the path is too long", path);
    memcpy(config, path, folder);
    memcpy(config + folder, name, sizeof name);
    int rc = file_read(config, true, &text, err);
    if (rc == 0) {
        json_t *root = json_parse(text.data, text.n, config, err);
        rc = root ? tok_json_read_config(tok, root, config, err) : CF_EFORMAT;
        json_decref(root);
    }
    tok_buf_finish(&text);
    return rc < 0 ? rc : 0;
}

int cf_tokenizer_load(const char *path, cf_tokenizer **out, cf_err *err)
{
    tok_buf text = {0};
    *out = NULL;
    int rc = file_read(path, false, &text, err);
    if (rc == 0)
        rc = cf_tokenizer_parse(text.data, text.n, path, out, err);
    tok_buf_finish(&text);
    if (rc == 0)
        rc = config_load(*out, path, err);
    if (rc < 0)
        cf_tokenizer_close(out);
    return rc;
}

void cf_tokenizer_close(cf_tokenizer **tok)
{
    cf_tokenizer *t = *tok;
    if (!t)
        return;
    tok_vocab_finish(&t->vocab);
    tok_bpe_finish(&t->bpe);
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

bool cf_tokenizer_adds_bos(const cf_tokenizer *tok)
{
    return tok->n_prefix > 0;
}

uint64_t cf_tokenizer_memory(const cf_tokenizer *tok)
{
    return sizeof *tok + tok_vocab_memory(&tok->vocab) +
           ((uint64_t)tok->bpe.mask + 1) * sizeof *tok->bpe.slots +
           tok_pretok_memory(&tok->pretok) +
           (uint64_t)(tok->added.size + tok->added_normalized.size) * sizeof(tok_node) +
           tok->added.word.memory_bytes + tok->added_normalized.word.memory_bytes;
}

const char *cf_tokenizer_piece(const cf_tokenizer *tok, int32_t id, size_t *bytes)
{
    *bytes = 0;
    if (id < 0 || id >= tok->vocab.n || !(tok->vocab.tokens[id].flags & TOK_USED))
        return "";
    return tok_vocab_bytes(&tok->vocab, id, bytes);
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
    tok_normal_work normal;
    tok_buf normalised;
    cf_err *err;
} encoder;

/* A text without added tokens, normalised. */
static int text_encode(encoder *e, const char *text, size_t bytes)
{
    const cf_tokenizer *t = e->tok;
    int rc = 0;
    CF_TRY(tok_pretok_run(&t->pretok, &e->scan, &e->pretok, text, bytes, e->err));
    for (size_t i = 0; i < e->pretok.pieces.n; i++) {
        tok_piece p = e->pretok.pieces.v[i];
        CF_TRY(tok_bpe_encode(&t->bpe, &t->vocab, &e->bpe, e->pretok.text + p.off, p.bytes, &e->out,
                              e->err));
    }
fail:
    return rc;
}

static bool any_marked(const uint8_t *marks, size_t n)
{
    for (size_t i = 0; marks && i < n; i++)
        if (marks[i])
            return true;
    return false;
}

/* A text between added tokens: normalised, and cut at those that are looked for now. Marks do not
 * survive a change of the text: then one anywhere in it hides the special tokens of all of it. */
static int part_encode(encoder *e, const char *text, size_t bytes, const uint8_t *marks)
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
    tok_cut cut = {.text = changed ? e->normalised.data : text,
                   .bytes = changed ? e->normalised.n : bytes,
                   .skip_special = e->skip_special || (changed && any_marked(marks, bytes)),
                   .marks = changed ? NULL : marks};
    while ((rc = tok_added_next(&t->added_normalized, &e->scan, &cut, &begin, &n, &id, e->err)) >
           0) {
        CF_TRY(text_encode(e, cut.text + begin, n));
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
            CF_TRY(part_encode(e, text + begin, n, e->marks ? e->marks + begin : NULL));
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
    if (text_bytes > TOK_TEXT_BYTES_MAX)
        return CF_FAIL(err, CF_ELIMIT, "a text of %zu bytes is above the limit of %d", text_bytes,
                       TOK_TEXT_BYTES_MAX);
    size_t invalid = cf_utf8_invalid(text, text_bytes);
    if (invalid < text_bytes)
        return CF_FAIL(err, CF_EFORMAT, "the text is not UTF-8: byte 0x%02x at offset %zu",
                       (unsigned char)text[invalid], invalid);
    int rc = tok_scan_init(&e.scan, err);
    if (rc == 0)
        rc = whole_encode(&e, text, text_bytes, flags);
    tok_scan_finish(&e.scan);
    tok_pretok_work_finish(&e.pretok);
    tok_bpe_work_finish(&e.bpe);
    tok_normal_work_finish(&e.normal);
    tok_buf_finish(&e.normalised);
    if (rc == 0)
        *n = e.out.n;
    return rc;
}
