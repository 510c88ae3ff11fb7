/* pack: values of the source as float32, and float32 as the bytes of the pack.
 *
 * The one place that knows how a matrix may lie in a source: plain, every so-many-th row,
 * transposed, with outer scales. Pure functions. */
#ifndef CF_TOOLS_PACK_SOURCE_H
#define CF_TOOLS_PACK_SOURCE_H

#include "runtime/model.h"

enum { CF_PACK_TILE_ROWS = 32 };

/* A matrix in the source's bytes, described as an expert's piece (extents are not looked at). */
typedef struct cf_pack_source {
    cf_piece_def def;
    const uint8_t *bytes, *scales; /* scales: where def has some */
    const char *name; /* for messages */
} cf_pack_source;

/* Whether `format` has the values of such a matrix, and its bytes need only be put in order. */
bool cf_pack_repacks(const cf_piece_def *def, cf_format format);

/* Rows [first, first + n) in `format`, to `out`; where the source has them so already, its bytes
 * themselves. `tile` has room for CF_PACK_TILE_ROWS rows of floats. Fails with a sentence for
 * values that the format cannot hold. */
int cf_pack_convert(const cf_pack_source *source, uint64_t first, uint64_t n, cf_format format,
                    float *tile, uint8_t *out, cf_err *err);

#endif
