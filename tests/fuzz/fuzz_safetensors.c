/* Catches: any header text that makes the safetensors parser crash, leak, overflow or accept a
 * tensor outside its file.
 *
 * Input: one byte of slack (file size beyond the header, times 16), then the header text. */
#include <stdlib.h>
#include <string.h>

#include "storage/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    uint64_t data_off = 8 + (size - 1), file_bytes = data_off + data[0] * 16u;
    cf_catalogue *cat = NULL;
    cf_err err = {0};
    int rc = cf_safetensors_parse(&cat, 0, "fuzz", (const char *)data + 1, size - 1, data_off,
                                  file_bytes, &err);
    check((rc < 0) == (err.code != 0) && (rc < 0) == (cat == NULL));
    if (rc < 0) {
        check(strncmp(err.msg, "fuzz", 4) == 0 || strncmp(err.msg, "tensor", 6) == 0);
        return 0;
    }
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++) {
        const cf_tensor *t = cf_catalogue_at(cat, i);
        uint64_t bytes = cf_formats[t->format].block_bytes;
        for (uint32_t k = 0; k < t->n_dims; k++)
            bytes = t->shape[k] == 0 ? 0 : bytes * t->shape[k];
        for (uint32_t k = 0; k < t->n_dims; k++)
            bytes = t->shape[k] == 0 ? 0 : bytes;
        check(t->extent.off >= data_off && t->extent.bytes <= file_bytes - t->extent.off);
        check(t->extent.bytes == bytes && cf_catalogue_find(cat, t->name) == (int64_t)i);
    }
    cf_catalogue_close(&cat);
    return 0;
}
