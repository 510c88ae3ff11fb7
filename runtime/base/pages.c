/* Page-aligned memory: see pages.h. */
#include "runtime/base/pages.h"

#include <string.h>
#include <sys/mman.h>

#include "runtime/base/align.h"

enum { SMALL_PAGE = 4096, HUGE_PAGE = 2 << 20 };

int cf_pages_init(cf_pages *pages, uint64_t bytes, cf_ledger *ledger, cf_pool pool,
                  const char *name, cf_err *err)
{
    *pages = (cf_pages){0};
    if (!bytes || bytes > UINT64_MAX / 2)
        return CF_FAIL(err, -EINVAL, "%s: cannot allocate %llu bytes", name,
                       (unsigned long long)bytes);
    uint64_t size = cf_align_up(bytes, SMALL_PAGE);
    /* Reserve one huge page more, to align, and give the ends back. Memory, and the system's
     * promise of it, is taken for the aligned part alone. */
    bool huge = size >= HUGE_PAGE;
    uint64_t map_bytes = huge ? size + HUGE_PAGE : size;
    int access = huge ? PROT_NONE : PROT_READ | PROT_WRITE;
    int rc = cf_ledger_charge(ledger, pool, name, size, err);
    if (rc < 0)
        return rc;
    uint8_t *map = mmap(NULL, map_bytes, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        rc = CF_FAIL(err, -errno, "%s: cannot map %llu bytes: %s", name,
                     (unsigned long long)map_bytes, strerror(errno));
        cf_ledger_refund(ledger, pool, size);
        return rc;
    }
    uint8_t *data = map;
    if (huge) {
        data = (uint8_t *)cf_align_up((uint64_t)(uintptr_t)map, HUGE_PAGE);
        uint64_t head = (uint64_t)(data - map), tail = map_bytes - head - size;
        if (head)
            munmap(map, head);
        if (tail)
            munmap(data + size, tail);
        if (mprotect(data, size, PROT_READ | PROT_WRITE) != 0) {
            rc = CF_FAIL(err, -errno, "%s: cannot get %llu bytes: %s", name,
                         (unsigned long long)size, strerror(errno));
            munmap(data, size);
            cf_ledger_refund(ledger, pool, size);
            return rc;
        }
        madvise(data, size, MADV_HUGEPAGE); /* advice: a kernel without it still works */
    }
    *pages = (cf_pages){.data = data, .bytes = size, .ledger = ledger, .pool = pool};
    return 0;
}

void cf_pages_finish(cf_pages *pages)
{
    if (!pages->data)
        return;
    munmap(pages->data, pages->bytes);
    cf_ledger_refund(pages->ledger, pages->pool, pages->bytes);
    *pages = (cf_pages){0};
}
