/* How checkpoints store a matrix: plain; FP8 with a scale per block of values; MXFP4 as blocks and
 * scales; 4-bit integers packed in words; any of GGUF's formats with one scale for all of it (NVFP4
 * has one). Codes and outer scales are separate tensors; whoever
 * binds a matrix by its name gets both, and need not know which form it is.
 *
 *     name                    plain, or F8_E4M3 beside name_scale_inv [rows / r, cols / c]
 *     name_blocks             U8 [.., rows, cols / 32, 16], name_scales U8 [.., rows, cols / 32]
 *     name_packed             I32 [rows, cols / 8], name_scale [rows, cols / c], name_shape
 *     name                    of a GGUF file, beside name_scale_2 F32 [1]
 *
 * r and c come from the config's "quantization_config". Untrusted; one thread. */
#ifndef CF_MODELS_STORED_H
#define CF_MODELS_STORED_H

#include "models/build.h"

typedef struct cf_stored {
    const cf_tensor *codes, *scales; /* scales NULL: none */
    cf_format dtype;                 /* of the codes, as they are computed with */
    cf_scale_def scale;
    uint64_t rows, cols; /* of one matrix; the tensor may hold several */
} cf_stored;

/* Reads "quantization_config" of b->config into b->quant; a method that is not known is refused. */
int cf_quant_read(cf_build *b, cf_err *err);

/* Finds a tensor [.., rows, cols] (or [cols]) in whatever form it is stored, checks shapes and
 * formats, marks its tensors bound. `again`: parts of it may be bound before. */
int cf_stored_bind(cf_build *b, const char *name, const uint64_t *shape, uint32_t n_dims,
                   bool again, cf_stored *out, cf_err *err);

/* The tensor is stored as name_blocks. */
bool cf_stored_in_blocks(const cf_build *b, const char *name);

/* Where rows [first, first + n) of its matrix-th matrix lie; *scales is set where it has some. Rows
 * of which only some share their outer scales with rows before them are refused. */
int cf_stored_part(const cf_build *b, const cf_stored *s, uint64_t matrix, uint64_t first,
                   uint64_t n, cf_extent *codes, cf_extent *scales, cf_err *err);

/* The values of a float32 tensor, each finite; `out` has room for all. */
int cf_stored_values(const cf_catalogue *cat, const cf_tensor *t, float *out, cf_err *err);

#endif
