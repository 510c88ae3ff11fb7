/* Catches: a config.json that makes a family crash, overflow, run for minutes, list gigabytes of
 * tensors, or fail without a sentence that names the file. Input: the JSON text. */
#include <stdlib.h>
#include <string.h>

#include "models/family.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *config = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    cf_expected *list = NULL;
    uint64_t n = 0;
    cf_err err = {0};
    if (!json_is_object(config)) { /* refused before a family sees it */
        json_decref(config);
        return 0;
    }
    int rc = cf_model_expected(config, "fuzz", &list, &n, &err);
    check((rc < 0) == (err.code != 0) && (rc < 0) == (n == 0));
    if (rc < 0) {
        check(strncmp(err.msg, "fuzz", 4) == 0);
        for (const char *c = err.msg; *c; c++)
            check((unsigned char)*c >= ' ' && *c != 0x7f);
    }
    for (uint64_t i = 0; i < n; i++) {
        const cf_expected *e = &list[i];
        check(e->name[0] && strlen(e->name) < 512 && e->n_dims >= 1 && e->n_dims <= 3);
        for (uint32_t k = 0; k < e->n_dims; k++)
            check(e->shape[k] > 0 && e->shape[k] < (uint64_t)1 << 40);
    }
    cf_expected_free(list, n);
    json_decref(config);
    return 0;
}
