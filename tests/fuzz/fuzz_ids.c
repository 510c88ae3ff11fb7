/* Catches: a file of token ids (--ids) that makes reading it crash or leak, an id out of range that
 * is given out, a sentence that carries the file's control characters to a terminal. */
#include "tests/fuzz/memory_file.h"
#include "tools/text_io.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    memory_file f = memory_file_make(data, size);
    int32_t *ids = NULL;
    uint64_t n = 0;
    cf_err err = {0};
    int rc = cf_ids_read(f.path, &ids, &n, &err);
    sentence_check(rc, err.msg);
    check((rc < 0) == (ids == NULL) && n <= size / 2 + 1);
    for (uint64_t i = 0; i < n; i++)
        check(ids[i] >= 0);
    free(ids);
    close(f.fd);
    return 0;
}
