/* GGUF metadata: lookups by key, conversions. See gguf.h; filled and checked by gguf.c, so that
 * nothing here meets a length or a type that has not been checked. */
#include "storage/gguf_meta.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/catalogue_build.h"

static const struct {
    const char *name;
    uint32_t bytes;
} types[CF_GGUF_TYPE_COUNT] = {
    [CF_GGUF_U8] = {"u8", 1},         [CF_GGUF_I8] = {"i8", 1},     [CF_GGUF_U16] = {"u16", 2},
    [CF_GGUF_I16] = {"i16", 2},       [CF_GGUF_U32] = {"u32", 4},   [CF_GGUF_I32] = {"i32", 4},
    [CF_GGUF_F32] = {"f32", 4},       [CF_GGUF_BOOL] = {"bool", 1}, [CF_GGUF_U64] = {"u64", 8},
    [CF_GGUF_I64] = {"i64", 8},       [CF_GGUF_F64] = {"f64", 8},   [CF_GGUF_ARRAY] = {"array", 0},
    [CF_GGUF_STRING] = {"string", 0},
};

const char *cf_gguf_type_name(cf_gguf_type t)
{
    return (unsigned)t < CF_GGUF_TYPE_COUNT ? types[t].name : "?";
}

uint32_t cf_gguf_type_bytes(cf_gguf_type t)
{
    return types[t].bytes;
}

uint64_t cf_gguf_read(const uint8_t *p, uint32_t bytes)
{
    uint64_t v = 0;
    for (uint32_t i = bytes; i--;)
        v = v << 8 | p[i];
    return v;
}

bool cf_text_is(cf_text text, const char *word)
{
    return text.bytes == strlen(word) && memcmp(text.at, word, text.bytes) == 0;
}

void cf_gguf_close(cf_gguf **meta)
{
    cf_gguf *g = *meta;
    if (!g)
        return;
    for (uint32_t i = 0; i < g->count; i++)
        free(g->pairs[i].offsets);
    free(g->pairs);
    free(g->sorted);
    free(g->data);
    free(g->path);
    free(g);
    *meta = NULL;
}

uint64_t cf_gguf_memory(const cf_gguf *g)
{
    uint64_t sum = sizeof *g + g->data_bytes + strlen(g->path) + 1;
    for (uint32_t i = 0; i < g->count; i++)
        sum += sizeof *g->pairs + sizeof *g->sorted +
               (g->pairs[i].offsets ? g->pairs[i].count * sizeof(uint32_t) : 0);
    return sum;
}

uint32_t cf_gguf_count(const cf_gguf *g)
{
    return g->count;
}

static cf_text key_of(const cf_gguf *g, uint32_t i)
{
    return (cf_text){(const char *)g->data + g->pairs[i].key_off, g->pairs[i].key_bytes};
}

cf_gguf_entry cf_gguf_at(const cf_gguf *g, uint32_t index)
{
    cf_assert(index < g->count);
    const struct cf_gguf_pair *p = &g->pairs[index];
    return (cf_gguf_entry){key_of(g, index), p->type, g->data + p->value_off, p->value_bytes};
}

/* ---- keys ---- */

static int text_order(cf_text a, cf_text b)
{
    int order = memcmp(a.at, b.at, a.bytes < b.bytes ? a.bytes : b.bytes);
    return order ? order : a.bytes < b.bytes ? -1 : a.bytes > b.bytes;
}

static int sorted_order(const void *a, const void *b, void *meta)
{
    const cf_gguf *g = meta;
    return text_order(key_of(g, *(const uint32_t *)a), key_of(g, *(const uint32_t *)b));
}

int cf_gguf_sort(cf_gguf *g, cf_err *err)
{
    g->sorted = malloc((g->count ? g->count : 1) * sizeof *g->sorted);
    if (!g->sorted)
        return CF_FAIL(err, -ENOMEM, "%s: out of memory for %u keys", g->path, g->count);
    for (uint32_t i = 0; i < g->count; i++)
        g->sorted[i] = i;
    qsort_r(g->sorted, g->count, sizeof *g->sorted, sorted_order, g);
    for (uint32_t i = 1; i < g->count; i++) {
        cf_text key = key_of(g, g->sorted[i]);
        if (text_order(key_of(g, g->sorted[i - 1]), key) == 0)
            return CF_FAIL(err, CF_EFORMAT, "%s: key \"%.*s\" occurs twice", g->path,
                           key.bytes < 100 ? (int)key.bytes : 100, key.at);
    }
    return 0;
}

static const struct cf_gguf_pair *pair_find(const cf_gguf *g, const char *key)
{
    cf_text want = {key, strlen(key)};
    uint32_t low = 0, high = g->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = text_order(key_of(g, g->sorted[middle]), want);
        if (order == 0)
            return &g->pairs[g->sorted[middle]];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static int type_fail(const cf_gguf *g, const char *key, cf_gguf_type type, const char *wanted,
                     cf_err *err)
{
    return CF_FAIL(err, CF_EFORMAT, "%s: key \"%s\" has type %s, expected %s", g->path, key,
                   cf_gguf_type_name(type), wanted);
}

/* ---- values ---- */

/* An integer of any type as 64 bits and its sign; false for other types. */
static bool integer_read(const uint8_t *p, cf_gguf_type type, uint64_t *bits, bool *negative)
{
    bool is_signed = false;
    switch (type) {
    case CF_GGUF_I8:
    case CF_GGUF_I16:
    case CF_GGUF_I32:
    case CF_GGUF_I64:
        is_signed = true;
        break;
    case CF_GGUF_U8:
    case CF_GGUF_U16:
    case CF_GGUF_U32:
    case CF_GGUF_U64:
        break;
    default:
        return false;
    }
    uint32_t bytes = types[type].bytes;
    uint64_t v = cf_gguf_read(p, bytes), top = (uint64_t)1 << (8 * bytes - 1);
    *negative = is_signed && (v & top);
    *bits = *negative ? v | ~(top | (top - 1)) : v; /* sign-extended */
    return true;
}

static bool float_read(const uint8_t *p, cf_gguf_type type, float *out)
{
    if (type == CF_GGUF_F32) {
        uint32_t bits = (uint32_t)cf_gguf_read(p, 4);
        memcpy(out, &bits, sizeof bits);
        return true;
    }
    if (type != CF_GGUF_F64)
        return false;
    uint64_t bits = cf_gguf_read(p, 8);
    double v;
    memcpy(&v, &bits, sizeof bits);
    *out = (float)v; /* beyond float32: infinite */
    return true;
}

/* An integer between low (at most 0) and high. */
static int integer_get(const cf_gguf *g, const char *key, int64_t low, uint64_t high, uint64_t *out,
                       cf_err *err)
{
    const struct cf_gguf_pair *p = pair_find(g, key);
    bool negative;
    uint64_t v;
    if (!p)
        return 0;
    if (!integer_read(g->data + p->value_off, p->type, &v, &negative))
        return type_fail(g, key, p->type, "an integer", err);
    if (negative && (int64_t)v < low)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: key \"%s\" is %" PRId64 ", the least allowed is %" PRId64, g->path, key,
                       (int64_t)v, low);
    if (!negative && v > high)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: key \"%s\" is %" PRIu64 ", the most allowed is %" PRIu64, g->path, key,
                       v, high);
    *out = v;
    return 1;
}

int cf_gguf_u32(const cf_gguf *g, const char *key, uint32_t *out, cf_err *err)
{
    uint64_t v;
    int rc = integer_get(g, key, 0, UINT32_MAX, &v, err);
    if (rc == 1)
        *out = (uint32_t)v;
    return rc;
}

int cf_gguf_i32(const cf_gguf *g, const char *key, int32_t *out, cf_err *err)
{
    uint64_t v;
    int rc = integer_get(g, key, INT32_MIN, INT32_MAX, &v, err);
    if (rc == 1)
        *out = (int32_t)(int64_t)v;
    return rc;
}

int cf_gguf_u64(const cf_gguf *g, const char *key, uint64_t *out, cf_err *err)
{
    return integer_get(g, key, 0, UINT64_MAX, out, err);
}

int cf_gguf_f32(const cf_gguf *g, const char *key, float *out, cf_err *err)
{
    const struct cf_gguf_pair *p = pair_find(g, key);
    if (!p)
        return 0;
    if (!float_read(g->data + p->value_off, p->type, out))
        return type_fail(g, key, p->type, "f32", err);
    return 1;
}

int cf_gguf_bool(const cf_gguf *g, const char *key, bool *out, cf_err *err)
{
    const struct cf_gguf_pair *p = pair_find(g, key);
    if (!p)
        return 0;
    if (p->type != CF_GGUF_BOOL)
        return type_fail(g, key, p->type, "bool", err);
    *out = g->data[p->value_off] != 0;
    return 1;
}

int cf_gguf_string(const cf_gguf *g, const char *key, cf_text *out, cf_err *err)
{
    const struct cf_gguf_pair *p = pair_find(g, key);
    if (!p)
        return 0;
    if (p->type != CF_GGUF_STRING)
        return type_fail(g, key, p->type, "string", err);
    *out = (cf_text){(const char *)g->data + p->value_off + 8, p->value_bytes - 8};
    return 1;
}

int cf_gguf_get_array(const cf_gguf *g, const char *key, cf_gguf_array *out, cf_err *err)
{
    const struct cf_gguf_pair *p = pair_find(g, key);
    if (!p)
        return 0;
    if (p->type != CF_GGUF_ARRAY)
        return type_fail(g, key, p->type, "array", err);
    *out = (cf_gguf_array){.type = p->element,
                           .count = p->count,
                           .data = g->data + p->value_off + CF_GGUF_ARRAY_HEAD,
                           .offsets = p->offsets};
    return 1;
}

static const uint8_t *element(const cf_gguf_array *a, uint64_t i)
{
    cf_assert(i < a->count);
    return a->data + i * types[a->type].bytes;
}

bool cf_gguf_array_u64(const cf_gguf_array *a, uint64_t i, uint64_t *out)
{
    bool negative;
    uint64_t v;
    if (!integer_read(element(a, i), a->type, &v, &negative) || negative)
        return false;
    *out = v;
    return true;
}

bool cf_gguf_array_i64(const cf_gguf_array *a, uint64_t i, int64_t *out)
{
    bool negative;
    uint64_t v;
    if (!integer_read(element(a, i), a->type, &v, &negative) || (!negative && v > INT64_MAX))
        return false;
    *out = (int64_t)v;
    return true;
}

bool cf_gguf_array_f32(const cf_gguf_array *a, uint64_t i, float *out)
{
    return float_read(element(a, i), a->type, out);
}

bool cf_gguf_array_bool(const cf_gguf_array *a, uint64_t i, bool *out)
{
    if (a->type != CF_GGUF_BOOL)
        return false;
    *out = *element(a, i) != 0;
    return true;
}

bool cf_gguf_array_string(const cf_gguf_array *a, uint64_t i, cf_text *out)
{
    cf_assert(i < a->count);
    if (a->type != CF_GGUF_STRING)
        return false;
    const uint8_t *p = a->data + a->offsets[i];
    *out = (cf_text){(const char *)p + 8, cf_gguf_read(p, 8)};
    return true;
}
