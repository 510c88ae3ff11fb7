/* NFC: canonical decomposition, ordering and composition (Unicode Standard Annex 15).
 *
 * A text is cut into runs at characters that neither change nor combine (below U+0300, and the
 * unified Han of U+3400 to U+9FFF); only what lies between, with the character before it, is
 * worked on. Tables: tokenizer_nfc.inc. Ordering a run of marks is a stable counting sort, so that
 * a million marks on one letter stay linear. */
#include "runtime/tokenizer_normal.h"

#include "runtime/tokenizer_nfc.inc"

enum {
    HANGUL_S = 0xac00,
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11a7,
    HANGUL_N_L = 19,
    HANGUL_N_V = 21,
    HANGUL_N_T = 28,
    HANGUL_N_S = HANGUL_N_L * HANGUL_N_V * HANGUL_N_T,
    CHAR_MASK = 0x1fffff,
    CLASS_SHIFT = 24
};

static bool char_inert(uint32_t c)
{
    return c < 0x300 || (c >= 0x3400 && c < 0xa000);
}

static uint32_t class_of(uint32_t c)
{
    size_t low = 0, high = sizeof nfc_classes / sizeof *nfc_classes;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (c > nfc_classes[mid][1])
            low = mid + 1;
        else if (c < nfc_classes[mid][0])
            high = mid;
        else
            return nfc_classes[mid][2];
    }
    return 0;
}

static const uint32_t *pair_of(uint32_t c)
{
    size_t low = 0, high = sizeof nfc_pairs / sizeof *nfc_pairs;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (c > nfc_pairs[mid][0])
            low = mid + 1;
        else if (c < nfc_pairs[mid][0])
            high = mid;
        else
            return nfc_pairs[mid];
    }
    return NULL;
}

/* The composite of two characters, or 0. */
static uint32_t composite_of(uint32_t a, uint32_t b)
{
    if (a - HANGUL_L < HANGUL_N_L && b - HANGUL_V < HANGUL_N_V)
        return HANGUL_S + ((a - HANGUL_L) * HANGUL_N_V + (b - HANGUL_V)) * HANGUL_N_T;
    if (a - HANGUL_S < HANGUL_N_S && (a - HANGUL_S) % HANGUL_N_T == 0 && b > HANGUL_T &&
        b < HANGUL_T + HANGUL_N_T)
        return a + (b - HANGUL_T);
    size_t low = 0, high = sizeof nfc_compose / sizeof *nfc_compose;
    while (low < high) {
        size_t mid = (low + high) / 2;
        const uint32_t *pair = nfc_pairs[nfc_compose[mid]];
        if (a > pair[1] || (a == pair[1] && b > pair[2]))
            low = mid + 1;
        else if (a == pair[1] && b == pair[2])
            return pair[0];
        else
            high = mid;
    }
    return 0;
}

static int chars_add(tok_normal_work *w, uint32_t c, cf_err *err)
{
    if (w->n_chars == w->size_chars) {
        size_t size = w->size_chars ? w->size_chars * 2 : 256;
        uint32_t *chars = realloc(w->chars, size * sizeof *chars);
        if (!chars)
            return CF_FAIL(err, -ENOMEM, "tokenizer: no memory to normalise %zu characters", size);
        w->chars = chars;
        w->size_chars = size;
    }
    w->chars[w->n_chars++] = c | class_of(c) << CLASS_SHIFT;
    return 0;
}

/* Appends the full decomposition of a character. A pair's first part may decompose again, its
 * second never does. */
static int char_decompose(tok_normal_work *w, uint32_t c, cf_err *err)
{
    uint32_t rest[8], n_rest = 0; /* the deepest chain of the table has 3 */
    int rc = 0;
    if (c - HANGUL_S < HANGUL_N_S) {
        uint32_t s = c - HANGUL_S, t = s % HANGUL_N_T;
        CF_TRY(chars_add(w, HANGUL_L + s / (HANGUL_N_V * HANGUL_N_T), err));
        CF_TRY(chars_add(w, HANGUL_V + s % (HANGUL_N_V * HANGUL_N_T) / HANGUL_N_T, err));
        return t ? chars_add(w, HANGUL_T + t, err) : 0;
    }
    for (const uint32_t *pair; (pair = pair_of(c)) != NULL; c = pair[1]) {
        cf_assert(n_rest < sizeof rest / sizeof *rest);
        if (pair[2])
            rest[n_rest++] = pair[2];
    }
    CF_TRY(chars_add(w, c, err));
    while (n_rest > 0)
        CF_TRY(chars_add(w, rest[--n_rest], err));
fail:
    return rc;
}

/* Stable, by class, for the marks [from, to) of the work array. */
static int marks_sort(tok_normal_work *w, size_t from, size_t to, cf_err *err)
{
    size_t n = to - from, start[257] = {0};
    if (n <= 16) {
        for (size_t i = from + 1; i < to; i++) {
            uint32_t moving = w->chars[i];
            size_t k = i;
            for (; k > from && w->chars[k - 1] >> CLASS_SHIFT > moving >> CLASS_SHIFT; k--)
                w->chars[k] = w->chars[k - 1];
            w->chars[k] = moving;
        }
        return 0;
    }
    if (n > w->size_sorted) {
        uint32_t *sorted = realloc(w->sorted, n * sizeof *sorted);
        if (!sorted)
            return CF_FAIL(err, -ENOMEM, "tokenizer: no memory to order %zu marks", n);
        w->sorted = sorted;
        w->size_sorted = n;
    }
    for (size_t i = from; i < to; i++)
        start[(w->chars[i] >> CLASS_SHIFT) + 1]++;
    for (size_t k = 1; k < 257; k++)
        start[k] += start[k - 1];
    for (size_t i = from; i < to; i++)
        w->sorted[start[w->chars[i] >> CLASS_SHIFT]++] = w->chars[i];
    memcpy(w->chars + from, w->sorted, n * sizeof *w->sorted);
    return 0;
}

/* Composes the ordered characters in place (UAX 15, the composition algorithm). */
static void chars_compose(tok_normal_work *w)
{
    size_t n = 0, starter = SIZE_MAX;
    int64_t last_class = -1; /* of what stands between the starter and here; -1: nothing */
    for (size_t i = 0; i < w->n_chars; i++) {
        uint32_t c = w->chars[i] & CHAR_MASK;
        int64_t k = w->chars[i] >> CLASS_SHIFT;
        if (starter != SIZE_MAX && last_class < k) {
            uint32_t whole = composite_of(w->chars[starter] & CHAR_MASK, c);
            if (whole) {
                w->chars[starter] = whole;
                continue;
            }
        }
        if (k == 0) {
            starter = n;
            last_class = -1;
        } else {
            last_class = k;
        }
        w->chars[n++] = w->chars[i];
    }
    w->n_chars = n;
}

static int run_normalise(tok_normal_work *w, const char *text, size_t bytes, tok_buf *out,
                         cf_err *err)
{
    int rc = 0;
    w->n_chars = 0;
    for (size_t i = 0, step; i < bytes; i += step)
        CF_TRY(char_decompose(w, tok_char(text + i, &step), err));
    for (size_t i = 0; i < w->n_chars;) {
        size_t from = i;
        while (i < w->n_chars && w->chars[i] >> CLASS_SHIFT)
            i++;
        if (i - from > 1)
            CF_TRY(marks_sort(w, from, i, err));
        i += i == from;
    }
    chars_compose(w);
    CF_TRY(tok_buf_reserve(out, 4 * w->n_chars, err));
    for (size_t i = 0; i < w->n_chars; i++)
        out->n += tok_char_put(w->chars[i] & CHAR_MASK, out->data + out->n);
fail:
    return rc;
}

int tok_nfc_run(tok_normal_work *work, const char *text, size_t bytes, tok_buf *out, bool *changed,
                cf_err *err)
{
    size_t i = 0, done = 0, before = 0, step;
    int rc = 0;
    *changed = false;
    while (i < bytes && (unsigned char)text[i] < 0xcc) /* U+0300 begins with CC */
        i++;
    if (i == bytes)
        return 0;
    *changed = true;
    for (i = 0; i < bytes;) {
        size_t run = i;
        if (char_inert(tok_char(text + i, &step))) {
            before = i;
            i += step;
            continue;
        }
        while (i < bytes && !char_inert(tok_char(text + i, &step)))
            i += step;
        /* The inert character before the run may take its first mark. */
        if (run > done)
            run = before;
        CF_TRY(tok_buf_add(out, text + done, run - done, err));
        CF_TRY(run_normalise(work, text + run, i - run, out, err));
        done = before = i;
    }
    CF_TRY(tok_buf_add(out, text + done, bytes - done, err));
fail:
    return rc;
}
