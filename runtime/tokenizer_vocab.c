/* Vocabulary: see tokenizer_vocab.h. Untrusted sizes are bounded by the caller (file size,
 * TOK_VOCAB_MAX); the text of all tokens stays below the file's 256 MiB. */
#include "runtime/tokenizer_vocab.h"

#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t tok_seed(void)
{
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) < 0)
        seed = (uint64_t)(uintptr_t)&seed; /* early boot: an address must do */
    return seed;
}

void tok_vocab_finish(tok_vocab *v)
{
    tok_buf_finish(&v->text);
    free(v->tokens);
    free(v->slots);
    *v = (tok_vocab){0};
}

static int vocab_room(tok_vocab *v, int32_t n, cf_err *err)
{
    if (n > v->size) {
        int32_t size = v->size ? v->size : 1024;
        while (size < n)
            size *= 2;
        tok_token *tokens = realloc(v->tokens, (size_t)size * sizeof *tokens);
        if (!tokens)
            return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for %d tokens", size);
        v->tokens = tokens;
        v->size = size;
    }
    if (n > v->n) {
        memset(v->tokens + v->n, 0, (size_t)(n - v->n) * sizeof *v->tokens);
        v->n = n;
    }
    return 0;
}

int tok_vocab_set(tok_vocab *v, int32_t id, const char *bytes, size_t n, uint8_t flags, cf_err *err)
{
    int rc = 0;
    cf_assert(id >= 0 && id < TOK_VOCAB_MAX);
    CF_TRY(vocab_room(v, id + 1, err));
    size_t off = v->text.n;
    if (off + n > UINT32_MAX)
        return CF_FAIL(err, CF_ELIMIT, "tokenizer: tokens of more than 4 GiB");
    CF_TRY(tok_buf_reserve(&v->text, n ? n : 1, err));
    CF_TRY(tok_buf_add(&v->text, bytes, n, err));
    v->tokens[id] = (tok_token){
        .off = (uint32_t)off, .bytes = (uint32_t)n, .flags = (uint8_t)(flags | TOK_USED)};
fail:
    return rc;
}

static uint32_t bytes_hash(const tok_vocab *v, const char *bytes, size_t n)
{
    return (uint32_t)XXH3_64bits_withSeed(bytes, n, v->seed);
}

static void slot_put(tok_vocab *v, int32_t id)
{
    size_t n, other_n;
    const char *bytes = tok_vocab_bytes(v, id, &n);
    for (uint32_t at = bytes_hash(v, bytes, n);; at++) {
        int32_t *slot = &v->slots[at & v->mask];
        if (*slot < 0) {
            *slot = id;
            return;
        }
        const char *other = tok_vocab_bytes(v, *slot, &other_n);
        if (other_n == n && memcmp(other, bytes, n) == 0)
            return; /* the lower id, and byte-level before raw, keeps the bytes */
    }
}

int tok_vocab_index(tok_vocab *v, cf_err *err)
{
    uint32_t n_slots = 1024;
    while (n_slots < 2 * (uint32_t)v->n)
        n_slots *= 2;
    v->slots = malloc(n_slots * sizeof *v->slots);
    if (!v->slots)
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory to index %d tokens", v->n);
    memset(v->slots, 0xff, n_slots * sizeof *v->slots);
    v->mask = n_slots - 1;
    v->seed = tok_seed();
    for (uint8_t raw = 0; raw <= TOK_RAW; raw = (uint8_t)(raw + TOK_RAW))
        for (int32_t id = 0; id < v->n; id++)
            if ((v->tokens[id].flags &
                 (TOK_USED | TOK_RAW | TOK_BYTE | TOK_ADDED | TOK_SPECIAL)) == (TOK_USED | raw))
                slot_put(v, id);
    return 0;
}

int32_t tok_vocab_find(const tok_vocab *v, const char *bytes, size_t n)
{
    size_t other_n;
    if (!v->slots)
        return -1;
    for (uint32_t at = bytes_hash(v, bytes, n);; at++) {
        int32_t id = v->slots[at & v->mask];
        if (id < 0)
            return -1;
        const char *other = tok_vocab_bytes(v, id, &other_n);
        if (other_n == n && memcmp(other, bytes, n) == 0)
            return id;
    }
}

uint64_t tok_vocab_memory(const tok_vocab *v)
{
    return v->text.size + (uint64_t)v->size * sizeof *v->tokens +
           (v->slots ? ((uint64_t)v->mask + 1) * sizeof *v->slots : 0);
}

/* The byte of a byte-level character, or -1: printable Latin-1 is itself, the 68 others are
 * U+0100 and on, in order. */
static int byte_of(uint32_t c)
{
    if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff))
        return (int)c;
    if (c < 0x100 || c >= 0x100 + 68)
        return -1;
    uint32_t k = c - 0x100;
    if (k < 33)
        return (int)k; /* 00 to 20 */
    if (k < 67)
        return (int)(k - 33 + 0x7f); /* 7f to a0 */
    return 0xad;
}

bool tok_byte_level_decode(const char *text, size_t n, char *out, size_t *out_bytes)
{
    size_t at = 0;
    for (size_t i = 0, step; i < n; i += step) {
        int byte = byte_of(tok_char(text + i, &step));
        if (byte < 0)
            return false;
        out[at++] = (char)byte;
    }
    *out_bytes = at;
    return true;
}

int tok_meta_add(tok_buf *out, const char *text, size_t n, cf_err *err)
{
    int rc = 0;
    while (n > 0) {
        const char *meta = memmem(text, n, TOK_META, TOK_META_BYTES);
        size_t plain = meta ? (size_t)(meta - text) : n;
        CF_TRY(tok_buf_add(out, text, plain, err));
        if (!meta)
            break;
        CF_TRY(tok_buf_add(out, " ", 1, err));
        text += plain + TOK_META_BYTES;
        n -= plain + TOK_META_BYTES;
    }
fail:
    return rc;
}

int tok_byte_token(const char *text, size_t n)
{
    int value = 0;
    if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        char c = text[i];
        if (c >= '0' && c <= '9')
            value = value * 16 + (c - '0');
        else if (c >= 'A' && c <= 'F')
            value = value * 16 + (c - 'A' + 10);
        else
            return -1;
    }
    return value;
}
