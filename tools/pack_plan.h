/* pack: what goes into a pack, in which format and order, before a byte is read.
 *
 * A tensor of the model that is resident or read by rows keeps its name and shape; vectors, norms
 * and routers are F32. A record is an expert's matrices, each plain, however the source has them.
 * Outer scales (models/stored.h) are applied: what `keep` keeps of such a matrix are its values, in
 * F32; of MXFP4, whose scales are powers of two for 32 values of a row, also its form.
 * Where the wanted format's blocks do not divide a row, another one is taken, and counted.
 * Thread-safety: read-only once made. */
#ifndef CF_TOOLS_PACK_PLAN_H
#define CF_TOOLS_PACK_PLAN_H

#include "runtime/model.h"
#include "storage/gguf_write.h"

/* `keep`: the source's own format, or one that loses nothing of it. */
typedef struct cf_pack_type {
    bool keep;
    cf_format format;
} cf_pack_type;

/* The types that --experts and --resident name; the sentence lists them otherwise. */
bool cf_pack_type_parse(const char *text, cf_pack_type *out);
extern const char cf_pack_types[];

typedef struct cf_pack_options {
    cf_pack_type experts, resident;
    bool zstd;
    int level;
} cf_pack_options;

typedef struct cf_pack_tensor {
    const cf_tensor *from, *scales; /* scales NULL: none */
    cf_piece_def def;               /* how the source has its rows; .rows is not looked at */
    char *name;                     /* without what says how it was stored */
    uint32_t n_dims;
    uint64_t shape[CF_MAX_DIMS];
    cf_format format;
    uint64_t rows, cols, bytes;
    bool table;
} cf_pack_tensor;

uint64_t cf_pack_tensor_source_bytes(const cf_pack_tensor *t);

/* The records of one layer: their pieces in an image, padded to its end. */
typedef struct cf_pack_records {
    const cf_moe_def *moe;
    cf_format formats[CF_PACK_PIECES];
    uint64_t offs[CF_PACK_PIECES], bytes[CF_PACK_PIECES]; /* bytes 0: no such piece */
    uint64_t image_bytes;
} cf_pack_records;

typedef struct cf_pack_plan {
    cf_model *model; /* borrowed */
    cf_pack_options options;
    cf_pack_tensor *tensors;
    uint32_t n_tensors;
    cf_pack_records *layers; /* [model->n_moe] */
    uint64_t n_records, n_sums, first_page_sum;
    uint32_t record_tensors; /* pieces of a record */
    uint64_t source_bytes;   /* read in all */
    uint64_t out_bytes;      /* written at most */
    uint32_t n_fallbacks;    /* tensors that got another format than was asked for */
    char fallback[160];      /* an example */
    uint64_t n_scaled;       /* matrices of which only the values were kept, in F32 */
} cf_pack_plan;

/* Piece p (storage/pack.h) of a layer's experts in the source, or NULL. */
const cf_piece_def *cf_pack_piece(const cf_moe_def *moe, uint32_t p);
int cf_pack_plan_make(cf_pack_plan *out, cf_model *model, const cf_pack_options *options,
                      cf_err *err);
void cf_pack_plan_finish(cf_pack_plan *plan); /* accepts a zeroed struct */

/* All keys and tensors of the pack. */
int cf_pack_declare(const cf_pack_plan *plan, cf_gguf_writer *w, cf_err *err);

#endif
