/* The storage formats of tensors: one table for files, the catalogue, weights and kernels.
 *
 * A format is blocks of `block_values` values in `block_bytes` bytes; a plain element type is a
 * block of one. The innermost dimension of a tensor is a whole number of blocks.
 * The first three are F32, F16 and BF16, the formats of activations, caches and element weights;
 * up to CF_F8_E4M3 a format can be computed with (a kernel of the reference decodes it), the rest
 * only names bytes.
 * F8_E4M3, F4_E2M1, I4 and NVFP4 are decoded as they are: their outer scales are tensors of their
 * own. F4_E2M1 and I4 hold two values in a byte, the first in its low bits; a code c of I4 is c - 8.
 * Thread-safety: constants. */
#ifndef CF_BASE_FORMAT_H
#define CF_BASE_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

typedef enum cf_format {
    CF_F32, CF_F16, CF_BF16,
    CF_Q4_0, CF_Q4_1, CF_Q5_0, CF_Q5_1, CF_Q8_0,
    CF_Q2_K, CF_Q3_K, CF_Q4_K, CF_Q5_K, CF_Q6_K,
    CF_IQ1_S, CF_IQ1_M, CF_IQ2_XXS, CF_IQ2_XS, CF_IQ2_S, CF_IQ3_XXS, CF_IQ3_S, CF_IQ4_NL, CF_IQ4_XS,
    CF_MXFP4, CF_NVFP4, CF_F4_E2M1, CF_I4, CF_F8_E4M3,
    CF_F8_E5M2, CF_F8_E8M0, CF_F64, CF_I64, CF_I32, CF_I16, CF_I8, CF_U64, CF_U32, CF_U16, CF_U8,
    CF_BOOL,
    CF_FORMAT_COUNT
} cf_format;

enum {
    CF_FORMAT_PLAIN = CF_BF16 + 1,         /* how many of them are F32, F16, BF16 */
    CF_FORMAT_COMPUTABLE = CF_F8_E4M3 + 1, /* how many can be computed with */
    CF_FORMAT_MAX_BLOCK = 256,             /* most values in a block; block sizes divide it */
    CF_FORMAT_MAX_BLOCK_BYTES = 256        /* no block takes more */
};

typedef struct cf_format_info {
    const char *name; /* "BF16", "Q4_K": as GGUF and safetensors spell it */
    int32_t gguf;     /* type id in GGUF, or -1 */
    uint16_t block_values, block_bytes;
} cf_format_info;

extern const cf_format_info cf_formats[CF_FORMAT_COUNT];

/* The name, "?" for a value that is no format. */
const char *cf_format_name(cf_format f);
/* True, and the format in *out, when a format has this name, or this GGUF type id. */
bool cf_format_find(const char *name, cf_format *out);
bool cf_format_find_gguf(uint32_t id, cf_format *out);
bool cf_format_computable(cf_format f);
/* Bytes of one value of a format whose blocks hold one: asserted. */
uint32_t cf_format_value_bytes(cf_format f);
/* Bytes of a row of `cols` values: a whole number of blocks, asserted, as is that it fits. */
uint64_t cf_format_row_bytes(cf_format f, uint64_t cols);

/* Values of 4-bit codes: IQ4_NL and IQ4_XS; E2M1 (MXFP4, NVFP4), doubled so as to be integers. */
extern const int8_t cf_iq4_values[16];
extern const int8_t cf_e2m1_doubled[16];

#endif
