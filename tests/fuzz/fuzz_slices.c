/* Catches: headers of ranks that make the catalogue of slices crash or leak, or hold a slice that
 * is not in its file or not like the others.
 *
 * Input: three headers with a zero byte between two: what is common, rank 0, rank 1. */
#include <stdlib.h>
#include <string.h>

#include "storage/safetensors.h"
#include "storage/safetensors_slices.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DATA_OFF = 4096, FILE_BYTES = 8192 };

static void check(bool ok)
{
    if (!ok)
        abort();
}

/* Up to the next zero byte, which is left behind. NULL: not a header. */
static cf_catalogue *header_take(const uint8_t **data, size_t *size)
{
    size_t n = strnlen((const char *)*data, *size);
    cf_catalogue *cat = NULL;
    cf_err err = {0};
    (void)cf_safetensors_parse(&cat, 0, "fuzz", (const char *)*data, n, DATA_OFF, FILE_BYTES, &err);
    *data += n < *size ? n + 1 : n;
    *size -= n < *size ? n + 1 : n;
    return cat;
}

static void slices_check(const cf_catalogue *cat, const cf_tensor *t, cf_catalogue *const *ranks)
{
    const cf_extent *list;
    uint32_t n = cf_tensor_extents(t, &list);
    check(n == (t->n_slices ? t->n_slices : 1));
    check(memcmp(&list[0], &t->extent, sizeof *list) == 0);
    for (uint32_t k = 0; k < n; k++) {
        check(list[k].file < cf_catalogue_file_count(cat) && list[k].off >= DATA_OFF);
        check(list[k].bytes == t->extent.bytes && list[k].bytes <= FILE_BYTES - list[k].off);
    }
    for (uint32_t k = 0; k < 2 && t->n_slices; k++) {
        int64_t at = cf_catalogue_find(ranks[k], t->name);
        check(at >= 0 && cf_catalogue_at(ranks[k], (uint32_t)at)->extent.off == list[k].off);
        check(cf_catalogue_at(ranks[k], (uint32_t)at)->format == t->format);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cf_catalogue *common = header_take(&data, &size), *ranks[2], *cat = NULL;
    cf_err err = {0};
    ranks[0] = header_take(&data, &size);
    ranks[1] = header_take(&data, &size);
    if (ranks[0]) {
        uint32_t n = ranks[1] ? 2 : 1;
        int rc = cf_safetensors_slices_join(&cat, ranks, n, common, &err);
        check((rc < 0) == (cat == NULL) && (rc < 0) == (err.msg[0] != 0));
        for (uint32_t i = 0; cat && i < cf_catalogue_count(cat); i++)
            slices_check(cat, cf_catalogue_at(cat, i), ranks);
    }
    cf_catalogue_close(&cat);
    cf_catalogue_close(&common);
    cf_catalogue_close(&ranks[0]);
    cf_catalogue_close(&ranks[1]);
    return 0;
}
