/* New checksums for a changed pack: see reseal.h. */
#include "tests/support/reseal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/pack.h"

/* Where the value of a u64 key lies in the file, or 0. Keys are found as bytes: the file may be no
 * GGUF file any more. */
static uint64_t value_find(const uint8_t *file, uint64_t bytes, const char *key)
{
    uint64_t n = strlen(key);
    for (uint64_t at = 0; at + n + 12 <= bytes; at++)
        if (memcmp(file + at, key, n) == 0)
            return at + n + 4;
    return 0;
}

bool reseal_header(uint8_t *file, uint64_t bytes)
{
    uint64_t sum_at = value_find(file, bytes, "catflap.pack.header_xxh3");
    uint64_t bytes_at = value_find(file, bytes, "catflap.pack.header_bytes"), header;
    if (!sum_at || !bytes_at)
        return false;
    memcpy(&header, file + bytes_at, sizeof header);
    if (header > bytes || header < sum_at + 8)
        return false;
    memset(file + sum_at, 0, 8);
    uint64_t sum = cf_sum_of(file, header);
    memcpy(file + sum_at, &sum, sizeof sum);
    return true;
}

static void sums_make(const cf_pack *pack, uint8_t *file, uint64_t sums_off, uint64_t sum_of_sums)
{
    for (uint64_t i = 0; i < pack->sums.n_regions; i++) {
        const cf_sum_region *r = &pack->sums.regions[i];
        uint64_t step = r->pages ? CF_SUM_PAGE : r->bytes;
        for (uint64_t off = 0, k = r->first; off < r->bytes; off += step, k++) {
            uint64_t sum = cf_sum_of(file + r->off + off, step);
            memcpy(file + sums_off + k * 8, &sum, sizeof sum);
        }
    }
    uint64_t sum = cf_sum_of(file + sums_off, pack->sums.n_list * 8);
    memcpy(file + sum_of_sums, &sum, sizeof sum);
}

bool reseal_pack(const char *path)
{
    cf_catalogue *cat = NULL, *restored = NULL;
    cf_gguf *meta = NULL;
    cf_pack *pack = NULL;
    bool ok = cf_gguf_open(path, &cat, &meta, NULL) == 0;
    if (!ok)
        return false;
    uint64_t bytes = cf_catalogue_file_bytes(cat, 0);
    uint64_t sums_off =
        cf_catalogue_at(cat, (uint32_t)cf_catalogue_find(cat, CF_PACK_SUMS))->extent.off;
    restored = cat;
    ok = cf_pack_open(&pack, &meta, &restored, NULL) == 0;
    FILE *f = fopen(path, "r+b");
    uint8_t *file = malloc(bytes);
    ok = ok && f && file && fread(file, 1, bytes, f) == bytes;
    uint64_t at = ok ? value_find(file, bytes, "catflap.pack.sums_xxh3") : 0;
    if (ok && at) {
        sums_make(pack, file, sums_off, at);
        ok = reseal_header(file, bytes) && fseek(f, 0, SEEK_SET) == 0 &&
             fwrite(file, 1, bytes, f) == bytes;
    }
    if (f)
        fclose(f);
    free(file);
    cf_pack_close(&pack);
    cf_catalogue_close(&restored);
    return ok && at;
}
