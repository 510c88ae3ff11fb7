/* A pack: a GGUF file that `catflap pack` wrote, with checksums and perhaps compressed records.
 *
 * It is a valid GGUF of version 3 and alignment 4096, in this order:
 *   tensors that are resident or read by rows, under the names of the source
 *   records: the pieces of an expert side by side, each a tensor blk.L.ffn_{gate,up,down}.E.weight,
 *            after them biases, if it has any, .bias; or, compressed, one I8 tensor
 * blk.L.ffn_record.E.zstd, a single zstd frame CF_PACK_SUMS, an I64 tensor: a sum for each record,
 * then for each page of the tensors before and these keys: catflap.pack.version u32, header_bytes
 * u64, header_xxh3 u64 (of the bytes before the data, this value as zero), sums_xxh3 u64 (of
 * CF_PACK_SUMS), first_record u64 (index of a tensor), record_tensors u32; catflap.config (the
 * config as JSON), catflap.file.NAME (a file that belongs to the model: tokenizer.json ...),
 * catflap.names (strings: a tensor's name here, its name in the source, ...; for names that are too
 * long for GGUF readers); compressed: catflap.records.{layer,experts} u32, .bytes u64 (of a record
 * once unpacked), for each layer with experts, and .{type,rows,cols} u32, .off u64 for each of
 * their six pieces (three matrices, three biases; rows 0: there is none);
 *   catflap.rope.{n_rot,layout} u32, .inv_freq f32: the rotations as the source has them, which
 * need not be what the config says. All of it is untrusted and checked. Thread-safety: immutable
 * once open. */
#ifndef CF_STORAGE_PACK_H
#define CF_STORAGE_PACK_H

#include "storage/gguf.h"
#include "storage/sums.h"

enum { CF_PACK_VERSION = 1, CF_PACK_ALIGN = 4096, CF_PACK_PIECES = 6, CF_PACK_PIECE_ALIGN = 256 };
#define CF_PACK_SUMS     "catflap.xxh3"
#define CF_PACK_FILE_KEY "catflap.file."

/* The compressed records of one layer, once unpacked. */
typedef struct cf_pack_layer {
    uint32_t layer, experts;
    uint64_t bytes;
    struct {
        cf_format format;
        uint32_t rows, cols; /* 0: there is none */
        uint64_t off;        /* a multiple of CF_PACK_PIECE_ALIGN */
    } pieces[CF_PACK_PIECES];
} cf_pack_layer;

typedef struct cf_pack {
    cf_gguf *meta;
    cf_sums sums;
    cf_pack_layer *layers; /* NULL: records are not compressed */
    uint32_t n_layers;
    uint64_t record_tensors, stored_record_bytes;
} cf_pack;

/* Says of an opened GGUF file that it is a pack. */
bool cf_pack_is(const cf_gguf *meta);
/* Takes *meta and *cat over (also on failure) and leaves in *cat a catalogue under the names of the
 * source, without CF_PACK_SUMS. Reads and checks header and sums. */
int cf_pack_open(cf_pack **out, cf_gguf **meta, cf_catalogue **cat, cf_err *err);
void cf_pack_close(cf_pack **pack); /* accepts NULL; leaves NULL */
uint64_t cf_pack_memory(const cf_pack *pack);

/* Names of tensors; into buf (CF_GGUF_NAME_MAX + 1 bytes suffice), which is returned. */
const char *cf_pack_piece_name(char *buf, size_t size, uint32_t layer, uint32_t piece,
                               uint32_t expert);
const char *cf_pack_record_name(char *buf, size_t size, uint32_t layer, uint32_t expert);

/* Reads every byte that has a sum and checks it; `progress` may be NULL. */
int cf_pack_verify(const cf_pack *pack, const char *path,
                   void (*progress)(void *user, uint64_t done_bytes), void *user, cf_err *err);
uint64_t cf_pack_summed_bytes(const cf_pack *pack);

#endif
