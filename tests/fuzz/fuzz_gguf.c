/* Catches: any bytes that make the GGUF parser or its lookups crash, leak, overflow, read outside
 * the file or accept a tensor outside it.
 *
 * Input: one byte of slack (file size beyond the bytes, times 16), then the start of the file. */
#include <stdlib.h>
#include <string.h>

#include "storage/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

/* Reads what an array holds; returns some function of it, so that the reads happen. */
static uint64_t array_read(const cf_gguf_array *a)
{
    uint64_t sum = 0, u;
    int64_t i;
    float f;
    bool b;
    cf_text t;
    for (uint64_t k = 0; k < a->count; k++) {
        if (cf_gguf_array_u64(a, k, &u))
            sum += u;
        if (cf_gguf_array_i64(a, k, &i))
            sum += (uint64_t)i;
        if (cf_gguf_array_f32(a, k, &f))
            sum += f > 0;
        if (cf_gguf_array_bool(a, k, &b))
            sum += b;
        if (cf_gguf_array_string(a, k, &t))
            for (uint64_t c = 0; c < t.bytes; c++)
                sum += (uint8_t)t.at[c];
    }
    return sum;
}

static uint64_t meta_read(const cf_gguf *meta)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < cf_gguf_count(meta); i++) {
        cf_gguf_entry e = cf_gguf_at(meta, i);
        char *key = malloc(e.key.bytes + 1);
        check(key != NULL);
        memcpy(key, e.key.at, e.key.bytes);
        key[e.key.bytes] = 0;
        uint32_t u;
        int32_t s;
        uint64_t v;
        float f;
        bool b;
        cf_text t;
        cf_gguf_array a;
        int found = cf_gguf_string(meta, key, &t, NULL) == 1;
        if (found)
            sum += t.bytes ? (uint8_t)t.at[t.bytes - 1] : 0;
        if (cf_gguf_get_array(meta, key, &a, NULL) == 1) {
            sum += array_read(&a);
            found++;
        }
        found += cf_gguf_u64(meta, key, &v, NULL) == 1 || cf_gguf_i32(meta, key, &s, NULL) == 1;
        found += cf_gguf_f32(meta, key, &f, NULL) == 1;
        found += cf_gguf_bool(meta, key, &b, NULL) == 1;
        check(found == 1 || (found == 0 && e.type == CF_GGUF_I64)); /* below 32 bits: no getter */
        check(cf_gguf_u32(meta, key, &u, NULL) != 0);               /* found, or refused */
        for (uint64_t c = 0; c < e.value_bytes; c++)
            sum += e.value[c];
        free(key);
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    uint64_t file_bytes = size - 1 + data[0] * 16u;
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_err err = {0};
    int rc = cf_gguf_parse(&cat, &meta, 0, "fuzz", data + 1, size - 1, file_bytes, &err);
    check((rc < 0) == (err.code != 0) && (rc < 0) == (cat == NULL) && (rc < 0) == (meta == NULL));
    if (rc < 0) {
        check(strncmp(err.msg, "fuzz", 4) == 0 || strncmp(err.msg, "tensor", 6) == 0);
        return 0;
    }
    check(meta_read(meta) != UINT64_MAX); /* a sum of bytes: uses them */
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++) {
        const cf_tensor *t = cf_catalogue_at(cat, i);
        uint64_t bytes = 0;
        check(cf_tensor_bytes(t, &bytes) && bytes == t->extent.bytes);
        check(t->extent.off <= file_bytes && t->extent.bytes <= file_bytes - t->extent.off);
        check(cf_catalogue_find(cat, t->name) == (int64_t)i);
    }
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
    return 0;
}
