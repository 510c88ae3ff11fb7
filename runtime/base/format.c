/* The table of storage formats: see format.h. Facts of GGUF and safetensors, nothing computed. */
#include "runtime/base/format.h"

#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/err.h"

const cf_format_info cf_formats[CF_FORMAT_COUNT] = {
    [CF_F32] = {"F32", 0, 1, 4},
    [CF_F16] = {"F16", 1, 1, 2},
    [CF_BF16] = {"BF16", 30, 1, 2},
    [CF_Q4_0] = {"Q4_0", 2, 32, 18},
    [CF_Q4_1] = {"Q4_1", 3, 32, 20},
    [CF_Q5_0] = {"Q5_0", 6, 32, 22},
    [CF_Q5_1] = {"Q5_1", 7, 32, 24},
    [CF_Q8_0] = {"Q8_0", 8, 32, 34},
    [CF_Q2_K] = {"Q2_K", 10, 256, 84},
    [CF_Q3_K] = {"Q3_K", 11, 256, 110},
    [CF_Q4_K] = {"Q4_K", 12, 256, 144},
    [CF_Q5_K] = {"Q5_K", 13, 256, 176},
    [CF_Q6_K] = {"Q6_K", 14, 256, 210},
    [CF_IQ1_S] = {"IQ1_S", 19, 256, 50},
    [CF_IQ1_M] = {"IQ1_M", 29, 256, 56},
    [CF_IQ2_XXS] = {"IQ2_XXS", 16, 256, 66},
    [CF_IQ2_XS] = {"IQ2_XS", 17, 256, 74},
    [CF_IQ2_S] = {"IQ2_S", 22, 256, 82},
    [CF_IQ3_XXS] = {"IQ3_XXS", 18, 256, 98},
    [CF_IQ3_S] = {"IQ3_S", 21, 256, 110},
    [CF_IQ4_NL] = {"IQ4_NL", 20, 32, 18},
    [CF_IQ4_XS] = {"IQ4_XS", 23, 256, 136},
    [CF_MXFP4] = {"MXFP4", 39, 32, 17},
    [CF_NVFP4] = {"NVFP4", 40, 64, 36},
    [CF_F4_E2M1] = {"F4_E2M1", -1, 2, 1},
    [CF_I4] = {"I4", -1, 2, 1},
    [CF_F8_E4M3] = {"F8_E4M3", -1, 1, 1},
    [CF_F8_E5M2] = {"F8_E5M2", -1, 1, 1},
    [CF_F8_E8M0] = {"F8_E8M0", -1, 1, 1},
    [CF_F64] = {"F64", 28, 1, 8},
    [CF_I64] = {"I64", 27, 1, 8},
    [CF_I32] = {"I32", 26, 1, 4},
    [CF_I16] = {"I16", 25, 1, 2},
    [CF_I8] = {"I8", 24, 1, 1},
    [CF_U64] = {"U64", -1, 1, 8},
    [CF_U32] = {"U32", -1, 1, 4},
    [CF_U16] = {"U16", -1, 1, 2},
    [CF_U8] = {"U8", -1, 1, 1},
    [CF_BOOL] = {"BOOL", -1, 1, 1},
};

const int8_t cf_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
const int8_t cf_e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

const char *cf_format_name(cf_format f)
{
    return (unsigned)f < CF_FORMAT_COUNT ? cf_formats[f].name : "?";
}

bool cf_format_find(const char *name, cf_format *out)
{
    for (int i = 0; i < CF_FORMAT_COUNT; i++)
        if (strcmp(name, cf_formats[i].name) == 0) {
            *out = (cf_format)i;
            return true;
        }
    return false;
}

bool cf_format_find_gguf(uint32_t id, cf_format *out)
{
    for (int i = 0; i < CF_FORMAT_COUNT; i++)
        if (cf_formats[i].gguf >= 0 && (uint32_t)cf_formats[i].gguf == id) {
            *out = (cf_format)i;
            return true;
        }
    return false;
}

bool cf_format_computable(cf_format f)
{
    return (unsigned)f < CF_FORMAT_COMPUTABLE;
}

uint32_t cf_format_value_bytes(cf_format f)
{
    cf_assert((unsigned)f < CF_FORMAT_COUNT && cf_formats[f].block_values == 1);
    return cf_formats[f].block_bytes;
}

uint64_t cf_format_row_bytes(cf_format f, uint64_t cols)
{
    uint64_t bytes = 0;
    cf_assert((unsigned)f < CF_FORMAT_COUNT && cols % cf_formats[f].block_values == 0);
    cf_assert(cf_mul_u64(cols / cf_formats[f].block_values, cf_formats[f].block_bytes, &bytes));
    return bytes;
}
