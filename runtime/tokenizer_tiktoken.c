/* Reads a rank file (tiktoken.model, *.tiktoken): a line for each token, its bytes in base64 and
 * its rank, which is its id. Two tokens side by side merge where what they make is a token, the
 * lowest rank first. How texts are split is not in the file: a rule says it. Special tokens are
 * those of tokenizer_config.json. */
#include "runtime/tokenizer_parts.h"

#include "runtime/tokenizer_base64.h"

static int bad_line(const char *path, size_t line, const char *why, cf_err *err)
{
    return CF_FAIL(err, CF_EFORMAT, "%s: line %zu %s", path, line, why);
}

static int line_read(cf_tokenizer *tok, const char *line, size_t n, size_t number, tok_buf *bytes,
                     const char *path, cf_err *err)
{
    const char *space = memchr(line, ' ', n);
    size_t n_text = space ? (size_t)(space - line) : n, bad;
    int64_t rank = -1;
    int rc = 0;
    for (size_t i = n_text + 1; i < n; i++) {
        if (line[i] < '0' || line[i] > '9' || rank >= TOK_VOCAB_MAX)
            return bad_line(path, number, "does not end in a rank", err);
        rank = (rank < 0 ? 0 : rank) * 10 + (line[i] - '0');
    }
    if (rank < 0 || rank >= TOK_VOCAB_MAX)
        return bad_line(path, number, "is not base64, a space and a rank below 2097152", err);
    bytes->n = 0;
    CF_TRY(tok_base64_decode(line, n_text, bytes, &bad, err));
    if (rc > 0 || bytes->n == 0)
        return bad_line(path, number, "does not begin with a token in base64", err);
    if (rank < tok->vocab.n && (tok->vocab.tokens[rank].flags & TOK_USED))
        return bad_line(path, number, "has a rank that another line has", err);
    CF_TRY(tok_vocab_set(&tok->vocab, (int32_t)rank, bytes->data, bytes->n, 0, err));
fail:
    return rc;
}

int tok_ranks_finish(cf_tokenizer *tok, const cf_tokenizer_rule *rule, const char *path,
                     cf_err *err)
{
    int rc = 0;
    uint32_t *ranks = NULL;
    if (tok->vocab.n == 0)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s has no token", path));
    CF_TRY(tok_vocab_index(&tok->vocab, err));
    ranks = malloc((size_t)tok->vocab.n * sizeof *ranks);
    if (!ranks)
        CF_TRY(CF_FAIL(err, -ENOMEM, "%s: no memory for %d tokens", path, tok->vocab.n));
    for (int32_t id = 0; id < tok->vocab.n; id++)
        ranks[id] = (uint32_t)id;
    CF_TRY(tok_bpe_init_ranked(&tok->bpe, &tok->vocab, ranks, false, err));
    tok->bpe.ignore_merges = true;
    CF_TRY(tok_rule_apply(tok, rule, path, err));
fail:
    free(ranks);
    return rc;
}

int tok_tiktoken_read(cf_tokenizer *tok, const char *text, size_t n, const cf_tokenizer_rule *rule,
                      const char *path, cf_err *err)
{
    tok_buf bytes = {0};
    size_t line = 0;
    int rc = 0;
    for (size_t at = 0, end; at < n; at = end + 1) {
        const char *newline = memchr(text + at, '\n', n - at);
        end = newline ? (size_t)(newline - text) : n;
        size_t length = end - at;
        if (length > 0 && text[at + length - 1] == '\r')
            length--;
        line++;
        if (length > 0)
            CF_TRY(line_read(tok, text + at, length, line, &bytes, path, err));
    }
    CF_TRY(tok_ranks_finish(tok, rule, path, err));
fail:
    tok_buf_finish(&bytes);
    return rc;
}
