/* Opening packs: see pack.h. */
#include "storage/pack.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "storage/catalogue_build.h"
#include "storage/gguf_meta.h"

enum { VERIFY_BYTES = 1 << 20, RECORD_TENSORS_MAX = 16 };

#define KEY "catflap.pack."

bool cf_pack_is(const cf_gguf *meta)
{
    uint32_t version;
    return cf_gguf_u32(meta, KEY "version", &version, NULL) != 0;
}

const char *cf_pack_piece_name(char *buf, size_t size, uint32_t layer, uint32_t piece,
                               uint32_t expert)
{
    static const char *const names[] = {"gate", "up", "down"};
    cf_assert(piece < CF_PACK_PIECES);
    snprintf(buf, size, "blk.%u.ffn_%s.%u.%s", layer, names[piece % 3], expert,
             piece < 3 ? "weight" : "bias");
    return buf;
}

const char *cf_pack_record_name(char *buf, size_t size, uint32_t layer, uint32_t expert)
{
    snprintf(buf, size, "blk.%u.ffn_record.%u.zstd", layer, expert);
    return buf;
}

/* ---- keys that must be there ---- */

static int key_u64(const cf_gguf *g, const char *key, uint64_t *out, cf_err *err)
{
    int rc = cf_gguf_u64(g, key, out, err);
    if (rc == 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: the key %s is missing", g->path, key);
    return rc < 0 ? rc : 0;
}

static int key_array(const cf_gguf *g, const char *key, uint64_t count, cf_gguf_array *out,
                     cf_err *err)
{
    int rc = cf_gguf_get_array(g, key, out, err);
    if (rc == 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: the key %s is missing", g->path, key);
    if (rc < 0)
        return rc;
    uint64_t v;
    if (out->count != count || (count && !cf_gguf_array_u64(out, 0, &v)))
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: the key %s has %" PRIu64 " elements of type %s, %" PRIu64
                       " integers are expected",
                       g->path, key, out->count, cf_gguf_type_name(out->type), count);
    return 0;
}

/* ---- the header's own sum ---- */

static int header_check(const cf_gguf *g, cf_err *err)
{
    static const char key[] = KEY "header_xxh3";
    uint64_t want = 0, bytes = 0, file_bytes = 0;
    uint8_t *header = NULL;
    int fd = -1, rc = 0;
    CF_TRY(key_u64(g, key, &want, err));
    CF_TRY(key_u64(g, KEY "header_bytes", &bytes, err));
    CF_TRY(fd = cf_header_open(g->path, &file_bytes, err));
    if (bytes < g->data_bytes || bytes > file_bytes || bytes > UINT32_MAX)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: a header of %" PRIu64 " bytes in a file of %" PRIu64,
                       g->path, bytes, file_bytes));
    header = malloc(bytes);
    if (!header)
        CF_TRY(CF_FAIL(err, -ENOMEM, "%s: out of memory for a header of %" PRIu64 " bytes", g->path,
                       bytes));
    CF_TRY(cf_header_read(fd, g->path, 0, header, bytes, err));
    for (uint32_t i = 0; i < g->count; i++)
        if (g->pairs[i].key_bytes == sizeof key - 1 &&
            memcmp(g->data + g->pairs[i].key_off, key, sizeof key - 1) == 0)
            memset(header + g->pairs[i].value_off, 0, g->pairs[i].value_bytes);
    if (cf_sum_of(header, bytes) != want)
        rc = CF_FAIL(err, CF_ECHANGED,
                     "%s is damaged: its header (%" PRIu64
                     " bytes) does not have the checksum it was written with",
                     g->path, bytes);
fail:
    if (fd >= 0)
        close(fd);
    free(header);
    return rc;
}

/* ---- names ---- */

/* The source's name of a tensor: its own, unless it is the next in the list, which has the order of
 * the tensors. */
static int name_restore(const cf_gguf *g, const cf_gguf_array *names, uint64_t *next,
                        const char *name, char *buf, size_t size, cf_err *err)
{
    cf_text here, there;
    snprintf(buf, size, "%s", name);
    if (*next + 1 >= names->count)
        return 0;
    if (!cf_gguf_array_string(names, *next, &here) ||
        !cf_gguf_array_string(names, *next + 1, &there))
        return CF_FAIL(err, CF_EFORMAT, "%s: catflap.names does not hold texts", g->path);
    if (!cf_text_is(here, name))
        return 0;
    if (there.bytes >= size || memchr(there.at, 0, there.bytes))
        return CF_FAIL(err, CF_EFORMAT, "%s: the source's name of %s is no name", g->path, name);
    memcpy(buf, there.at, there.bytes);
    buf[there.bytes] = 0;
    *next += 2;
    return 0;
}

/* A catalogue under the source's names, without the sums. */
static int catalogue_restore(const cf_gguf *g, const cf_catalogue *from, cf_catalogue **out,
                             cf_err *err)
{
    cf_gguf_array names = {0};
    char name[CF_MAX_NAME_BYTES + 1];
    cf_catalogue *cat = NULL;
    uint64_t next = 0;
    int rc = 0;
    CF_TRY(cf_gguf_get_array(g, "catflap.names", &names, err));
    CF_TRY(cf_catalogue_create(&cat, err));
    CF_TRY(cf_catalogue_add_file(cat, cf_catalogue_path(from, 0), cf_catalogue_file_bytes(from, 0),
                                 err));
    for (uint32_t i = 0; i < cf_catalogue_count(from); i++) {
        cf_tensor t = *cf_catalogue_at(from, i);
        if (strcmp(t.name, CF_PACK_SUMS) == 0)
            continue;
        CF_TRY(name_restore(g, &names, &next, t.name, name, sizeof name, err));
        t.name = name;
        CF_TRY(cf_catalogue_add(cat, &t, err));
    }
    cf_catalogue_trim(cat);
    *out = cat;
    return 0;
fail:
    cf_catalogue_close(&cat);
    return rc;
}

/* ---- compressed records ---- */

/* v: type, rows, columns and offset of a piece; what it is lies in [*free_off, bytes). */
static bool piece_read(cf_pack_layer *l, uint32_t p, const uint64_t v[4], uint64_t *free_off)
{
    cf_tensor t = {.n_dims = 2};
    uint64_t end;
    if (!v[1] && !v[2])
        return true;
    if (v[0] > UINT32_MAX || !cf_format_find_gguf((uint32_t)v[0], &t.format) || !v[1] || !v[2] ||
        v[1] > UINT32_MAX || v[2] > UINT32_MAX)
        return false;
    t.shape[0] = v[1];
    t.shape[1] = v[2];
    if (!cf_tensor_bytes(&t, &t.extent.bytes) || v[3] % CF_PACK_PIECE_ALIGN || v[3] < *free_off ||
        !cf_add_u64(v[3], t.extent.bytes, &end) || end > l->bytes)
        return false;
    l->pieces[p].format = t.format;
    l->pieces[p].rows = (uint32_t)v[1];
    l->pieces[p].cols = (uint32_t)v[2];
    l->pieces[p].off = v[3];
    *free_off = end;
    return true;
}

static int layer_read(const cf_gguf *g, cf_pack_layer *l, uint32_t index,
                      const cf_gguf_array list[7], cf_err *err)
{
    uint64_t v[4], free_off = 0;
    for (int i = 0; i < 3; i++)
        if (!cf_gguf_array_u64(&list[i], index, &v[i]) || v[i] > (i < 2 ? UINT32_MAX : INT64_MAX))
            return CF_FAIL(err, CF_EFORMAT, "%s: catflap.records of layer %u is out of range",
                           g->path, index);
    *l = (cf_pack_layer){.layer = (uint32_t)v[0], .experts = (uint32_t)v[1], .bytes = v[2]};
    for (uint32_t p = 0; p < CF_PACK_PIECES; p++) {
        bool good = true;
        for (int i = 0; i < 4; i++)
            good = good && cf_gguf_array_u64(&list[3 + i], index * CF_PACK_PIECES + p, &v[i]);
        if (!good || !piece_read(l, p, v, &free_off))
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: piece %u of the records of layer %u does not fit them", g->path, p,
                           l->layer);
    }
    return 0;
}

static int layers_read(cf_pack *pack, cf_err *err)
{
    static const char *const keys[7] = {"catflap.records.layer", "catflap.records.experts",
                                        "catflap.records.bytes", "catflap.records.type",
                                        "catflap.records.rows",  "catflap.records.cols",
                                        "catflap.records.off"};
    cf_gguf_array list[7];
    int rc = cf_gguf_get_array(pack->meta, keys[0], &list[0], err);
    if (rc <= 0)
        return rc;
    if (list[0].count == 0 || list[0].count > UINT16_MAX)
        return CF_FAIL(err, CF_EFORMAT, "%s: %" PRIu64 " layers with records", pack->meta->path,
                       list[0].count);
    uint32_t n = (uint32_t)list[0].count;
    for (int i = 0; i < 7; i++)
        if ((rc = key_array(pack->meta, keys[i], i < 3 ? n : n * CF_PACK_PIECES, &list[i], err)) <
            0)
            return rc;
    pack->layers = calloc(n, sizeof *pack->layers);
    if (!pack->layers)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u layers", n);
    pack->n_layers = n;
    rc = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = layer_read(pack->meta, &pack->layers[i], i, list, err);
    return rc;
}

/* ---- sums ---- */

/* The region of the tensors [first, first + n), which lie side by side. */
static int region_add(cf_pack *pack, const cf_catalogue *cat, uint32_t first, uint32_t n,
                      bool pages, cf_err *err)
{
    cf_sums *s = &pack->sums;
    const cf_tensor *a = cf_catalogue_at(cat, first), *b = cf_catalogue_at(cat, first + n - 1);
    const cf_sum_region *last = s->n_regions ? &s->regions[s->n_regions - 1] : NULL;
    uint64_t end = cf_align_up(b->extent.off + b->extent.bytes, CF_SUM_PAGE);
    if (a->extent.off % CF_SUM_PAGE || end <= a->extent.off ||
        (last && a->extent.off < last->off + last->bytes) ||
        end > cf_align_up(cf_catalogue_file_bytes(cat, 0), CF_SUM_PAGE))
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s is not where a pack has it",
                       pack->meta->path, a->name);
    cf_sum_region r = {.off = a->extent.off,
                       .bytes = end - a->extent.off,
                       .first = s->n_list,
                       .pages = pages,
                       .name = a->name};
    if (pages) {
        s->n_list += r.bytes / CF_SUM_PAGE;
    } else {
        s->n_records++;
        pack->stored_record_bytes += r.bytes;
    }
    s->regions[s->n_regions++] = r;
    return 0;
}

/* Regions from the catalogue; their sums are numbered from the records' end on. */
static int regions_make(cf_pack *pack, const cf_catalogue *cat, uint64_t first, uint64_t each,
                        cf_err *err)
{
    uint32_t n = cf_catalogue_count(cat);
    uint64_t records = (n - first) / each;
    int rc = 0;
    pack->sums.regions = calloc(first + records + 1, sizeof *pack->sums.regions);
    if (!pack->sums.regions)
        return CF_FAIL(err, -ENOMEM, "out of memory for %" PRIu64 " checksums", first + records);
    pack->sums.n_list = records;
    for (uint32_t i = 0; i < first && rc == 0; i++)
        rc = region_add(pack, cat, i, 1, true, err);
    for (uint64_t i = 0; i < records && rc == 0; i++) {
        rc = region_add(pack, cat, (uint32_t)(first + i * each), (uint32_t)each, false, err);
        if (rc == 0)
            pack->sums.regions[pack->sums.n_regions - 1].first = i;
    }
    return rc;
}

static int sums_load(cf_pack *pack, const cf_tensor *t, const char *path, cf_err *err)
{
    uint64_t want = 0, file_bytes, bytes = pack->sums.n_list * sizeof(uint64_t);
    int rc = key_u64(pack->meta, KEY "sums_xxh3", &want, err);
    if (rc < 0)
        return rc;
    if (t->format != CF_I64 || t->extent.bytes != bytes)
        return CF_FAIL(err, CF_EFORMAT, "%s: %s has %" PRIu64 " bytes, its tensors need %" PRIu64,
                       path, t->name, t->extent.bytes, bytes);
    pack->sums.list = malloc(bytes + 1);
    if (!pack->sums.list)
        return CF_FAIL(err, -ENOMEM, "out of memory for %" PRIu64 " checksums", pack->sums.n_list);
    int fd = cf_header_open(path, &file_bytes, err);
    if (fd < 0)
        return fd;
    rc = cf_header_read(fd, path, t->extent.off, pack->sums.list, bytes, err);
    close(fd);
    if (rc == 0 && cf_sum_of(pack->sums.list, bytes) != want)
        rc = CF_FAIL(err, CF_ECHANGED,
                     "%s is damaged: its checksums (%" PRIu64 " bytes at offset %" PRIu64
                     ") are not as they were written",
                     path, bytes, t->extent.off);
    return rc;
}

static int sums_read(cf_pack *pack, const cf_catalogue *whole, const cf_catalogue *cat, cf_err *err)
{
    uint64_t first = 0, each = 0;
    int rc = 0;
    const char *path = pack->meta->path;
    CF_TRY(key_u64(pack->meta, KEY "first_record", &first, err));
    CF_TRY(key_u64(pack->meta, KEY "record_tensors", &each, err));
    uint32_t n = cf_catalogue_count(cat);
    int64_t at = cf_catalogue_find(whole, CF_PACK_SUMS);
    if (at < 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s is missing", path, CF_PACK_SUMS);
    if (first > n || each == 0 || each > RECORD_TENSORS_MAX || (n - first) % each)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: records of %" PRIu64 " tensors from tensor %" PRIu64
                       " on, of %u tensors",
                       path, each, first, n);
    pack->record_tensors = each;
    CF_TRY(regions_make(pack, cat, first, each, err));
    CF_TRY(sums_load(pack, cf_catalogue_at(whole, (uint32_t)at), path, err));
fail:
    return rc;
}

/* ---- opening ---- */

int cf_pack_open(cf_pack **out, cf_gguf **meta, cf_catalogue **cat, cf_err *err)
{
    uint64_t version = 0;
    int rc = 0;
    cf_catalogue *restored = NULL;
    cf_pack *pack = calloc(1, sizeof *pack);
    if (!pack) {
        cf_gguf_close(meta);
        cf_catalogue_close(cat);
        return CF_FAIL(err, -ENOMEM, "out of memory for a pack");
    }
    pack->meta = *meta;
    *meta = NULL;
    const char *path = pack->meta->path;
    CF_TRY(header_check(pack->meta, err));
    CF_TRY(key_u64(pack->meta, KEY "version", &version, err));
    if (version != CF_PACK_VERSION)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s is a pack of version %" PRIu64 "; %d is read", path,
                       version, (int)CF_PACK_VERSION));
    if (cf_catalogue_file_count(*cat) != 1)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: a pack is one file", path));
    CF_TRY(catalogue_restore(pack->meta, *cat, &restored, err));
    CF_TRY(sums_read(pack, *cat, restored, err));
    CF_TRY(layers_read(pack, err));
    if (pack->layers && pack->record_tensors != 1)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: compressed records of %" PRIu64 " tensors", path,
                       pack->record_tensors));
    cf_catalogue_close(cat);
    *cat = restored;
    *out = pack;
    return 0;
fail:
    cf_catalogue_close(&restored);
    cf_catalogue_close(cat);
    cf_pack_close(&pack);
    return rc;
}

void cf_pack_close(cf_pack **pack)
{
    cf_pack *p = *pack;
    if (!p)
        return;
    cf_gguf_close(&p->meta);
    cf_sums_finish(&p->sums);
    free(p->layers);
    free(p);
    *pack = NULL;
}

uint64_t cf_pack_memory(const cf_pack *p)
{
    return sizeof *p + cf_gguf_memory(p->meta) + cf_sums_memory(&p->sums) +
           p->n_layers * sizeof *p->layers;
}

/* ---- checking all of it ---- */

uint64_t cf_pack_summed_bytes(const cf_pack *pack)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < pack->sums.n_regions; i++)
        sum += pack->sums.regions[i].bytes;
    return sum;
}

int cf_pack_verify(const cf_pack *pack, const char *path,
                   void (*progress)(void *user, uint64_t done_bytes), void *user, cf_err *err)
{
    uint64_t most = VERIFY_BYTES, file_bytes, done = 0;
    for (uint64_t i = 0; i < pack->sums.n_regions; i++)
        if (!pack->sums.regions[i].pages)
            most = cf_max_u64(most, pack->sums.regions[i].bytes);
    uint8_t *buf = malloc(most);
    if (!buf)
        return CF_FAIL(err, -ENOMEM, "out of memory for %" PRIu64 " bytes", most);
    int fd = cf_header_open(path, &file_bytes, err), rc = fd < 0 ? fd : 0;
    for (uint64_t i = 0; i < pack->sums.n_regions && rc == 0; i++) {
        const cf_sum_region *r = &pack->sums.regions[i];
        uint64_t step = r->pages ? VERIFY_BYTES : r->bytes;
        for (uint64_t off = 0; off < r->bytes && rc == 0; off += step) {
            uint64_t n = cf_min_u64(step, r->bytes - off);
            rc = cf_header_read(fd, path, r->off + off, buf, n, err);
            if (rc == 0)
                rc = cf_sums_check(&pack->sums, pack->sums.file, path, r->off + off, buf, n, true,
                                   err);
            done += n;
            if (progress)
                progress(user, done);
        }
    }
    if (fd >= 0)
        close(fd);
    free(buf);
    return rc;
}
