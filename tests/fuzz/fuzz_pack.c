/* Catches: a pack whose header, sums, names or records make opening crash, leak, read outside the
 * file or hang; a layout of records that does not fit its slab.
 *
 * Input: a file. Its header gets the checksum that it has, or little would be reached. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "models/family.h"
#include "tests/support/reseal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void records_walk(const cf_model *m)
{
    for (uint32_t i = 0; i < m->n_moe; i++)
        for (uint32_t e = 0; e < m->moe[i].experts; e++) {
            cf_layout l;
            cf_moe_layout(&m->moe[i], e, 4096, &l);
            for (uint32_t p = 0; p < l.n_pieces; p++)
                check(l.pieces[p].off + l.pieces[p].bytes <= l.bytes);
            for (uint32_t r = 0; r < l.n_runs; r++)
                check(l.runs[r].slab_off + l.runs[r].bytes <= l.bytes);
            check(l.packed_bytes == 0 || (l.packed_off + l.packed_bytes <= l.bytes &&
                                          l.unpacked_bytes <= l.packed_off + l.packed_bytes));
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    cf_err err = {0};
    cf_model *m = NULL;
    uint8_t *file = malloc(size + 1);
    int fd = memfd_create("pack", MFD_CLOEXEC);
    check(file && fd >= 0);
    if (size)
        memcpy(file, data, size);
    reseal_header(file, size);
    check(write(fd, file, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int rc = cf_model_open(&m, path, &err);
    check((rc < 0) == (m == NULL) && (rc < 0) == (err.msg[0] != 0));
    if (m && m->pack) {
        records_walk(m);
        cf_pack_verify(m->pack, path, NULL, NULL, NULL);
    }
    cf_model_free(&m);
    close(fd);
    free(file);
    return 0;
}
