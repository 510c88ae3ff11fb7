/* Git LFS pointers: see lfs.h. */
#include "runtime/base/lfs.h"

#include <inttypes.h>
#include <string.h>

int cf_lfs_refuse(const char *path, const void *begin, size_t n, uint64_t bytes, cf_err *err)
{
    static const char first[] = "version https://git-lfs.github.com/spec/";
    enum { POINTER_MAX_BYTES = 1024 }; /* by its specification */
    _Static_assert(sizeof first - 1 <= CF_LFS_BEGIN_BYTES, "begin");
    if (bytes > POINTER_MAX_BYTES || n < sizeof first - 1 ||
        memcmp(begin, first, sizeof first - 1) != 0)
        return 0;
    return CF_FAIL(err, CF_EFORMAT,
                   "%s is a Git LFS pointer of %" PRIu64
                   " bytes, not the file it stands for: `git lfs pull` in its folder fetches that",
                   path, bytes);
}
