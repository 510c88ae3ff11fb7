/* Catches: the header of a GGUF file that makes opening it as a model crash, overflow, run for
 * minutes, list parts outside the file's tensors, or fail without a sentence.
 *
 * Input: two bytes of slack (file size beyond the header, times 1024), then the start of the file.
 * Its tensors are not there, so rope_freqs cannot be read: that ends in a sentence, too. */
#include <stdlib.h>
#include <string.h>

#include "models/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void extent_check(const cf_extent *e, uint64_t file_bytes)
{
    check(e->file == 0 && e->off <= file_bytes && e->bytes <= file_bytes - e->off);
}

static void model_check(const cf_model *m, uint64_t file_bytes)
{
    for (uint32_t i = 0; i < m->n_weights; i++) {
        extent_check(&m->weights[i].extent, file_bytes);
        extent_check(&m->weights[i].scale_extent, file_bytes);
    }
    for (uint32_t i = 0; i < m->n_tables; i++)
        extent_check(&m->tables[i].extent, file_bytes);
    for (uint32_t i = 0; i < m->n_moe; i++)
        for (uint64_t k = 0; k < (uint64_t)m->moe[i].experts * m->moe[i].n_extents; k++)
            extent_check(&m->moe[i].extents[k], file_bytes);
    for (uint32_t i = 0; i < m->n_steps; i++) {
        cf_wid weights[CF_STEP_WEIGHTS];
        uint32_t n = cf_step_weights(&m->steps[i], weights);
        for (uint32_t k = 0; k < n; k++)
            check(weights[k] < m->n_weights);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    uint64_t file_bytes = size - 2 + (data[0] + 256u * data[1]) * 1024u;
    cf_catalogue *cat = NULL;
    cf_err err = {0};
    cf_model *m = calloc(1, sizeof *m);
    check(m != NULL);
    if (cf_gguf_parse(&cat, &m->gguf, 0, "fuzz", data + 2, size - 2, file_bytes, &err) == 0) {
        int rc = cf_gguf_model_make(m, cat, "fuzz", &err);
        check((rc < 0) == (err.code != 0));
        if (rc == 0) {
            model_check(m, file_bytes);
        } else {
            check(strstr(err.msg, "fuzz") != NULL);
            for (const char *c = err.msg; *c; c++)
                check((unsigned char)*c >= ' ' && *c != 0x7f);
        }
    }
    cf_catalogue_close(&cat);
    cf_model_free(&m);
    return 0;
}
