/* The compiled table of a SentencePiece normaliser: byte sequences to what they become.
 *
 * As in the file: the size of the trie in bytes, its units, then the replacements. A unit holds a
 * label and the offset to its children; of a sequence that ends there the child by no byte holds
 * the place of its replacement. The table is untrusted: a step outside of it ends the search, a
 * replacement outside of the texts counts as none, and where units lead back to one another a
 * search ends at a length that no sequence has. */
#include "runtime/tokenizer_normal.h"

#include "runtime/tokenizer.h" /* cf_utf8_invalid */

enum { SEQUENCE_BYTES_MAX = 256 };

int tok_charsmap_parse(tok_charsmap *m, const uint8_t *data, size_t bytes, const char *what,
                       cf_err *err)
{
    uint32_t size = 0;
    *m = (tok_charsmap){0};
    if (bytes >= 4)
        size = data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
    if (bytes < 4 || size < 4 || size % 4 || size > bytes - 4)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: a trie of %u bytes does not fit its table of %zu bytes", what, size,
                       bytes);
    m->n_units = size / 4;
    m->text_bytes = (uint32_t)(bytes - 4 - size < UINT32_MAX - 1 ? bytes - 4 - size : 0) + 1;
    m->units = malloc(size);
    m->texts = calloc(m->text_bytes, 1);
    if (!m->units || !m->texts) {
        tok_charsmap_finish(m);
        return CF_FAIL(err, -ENOMEM, "%s: no memory for a table of %zu bytes", what, bytes);
    }
    for (uint32_t i = 0; i < m->n_units; i++) {
        const uint8_t *p = data + 4 + 4 * (size_t)i;
        m->units[i] = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    }
    memcpy(m->texts, data + 4 + size, m->text_bytes - 1);
    /* A replacement that is not UTF-8 would make text that is not. */
    size_t invalid = cf_utf8_invalid(m->texts, m->text_bytes);
    if (invalid < m->text_bytes) {
        tok_charsmap_finish(m);
        return CF_FAIL(err, CF_EFORMAT, "%s: the replacements are not UTF-8 at byte %zu", what,
                       invalid);
    }
    return 0;
}

void tok_charsmap_finish(tok_charsmap *m)
{
    free(m->units);
    free(m->texts);
    *m = (tok_charsmap){0};
}

static uint32_t unit_offset(uint32_t unit)
{
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}

int tok_charsmap_find(const tok_charsmap *m, const char *text, size_t bytes, bool longest,
                      const char **to, size_t *used, cf_err *err)
{
    *to = NULL;
    if (m->n_units == 0)
        return 0;
    uint32_t at = unit_offset(m->units[0]);
    for (size_t i = 0; i < bytes && text[i]; i++) {
        unsigned char byte = (unsigned char)text[i];
        at ^= byte;
        if (at >= m->n_units || (m->units[at] & 0x800000ffu) != byte)
            break;
        if (i == SEQUENCE_BYTES_MAX)
            return CF_FAIL(err, CF_ELIMIT,
                           "the precompiled_charsmap has a sequence of more than %d bytes",
                           SEQUENCE_BYTES_MAX);
        uint32_t unit = m->units[at];
        at ^= unit_offset(unit);
        if (!(unit >> 8 & 1))
            continue;
        if (at >= m->n_units)
            break;
        uint32_t place = m->units[at] & 0x7fffffffu;
        /* It begins where a character does, and what it stands for ends where one ends. */
        if (place >= m->text_bytes || ((unsigned char)m->texts[place] & 0xc0) == 0x80 ||
            (i + 1 < bytes && ((unsigned char)text[i + 1] & 0xc0) == 0x80))
            continue;
        *to = m->texts + place;
        *used = i + 1;
        if (!longest)
            break;
    }
    return 0;
}
