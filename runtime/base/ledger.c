/* The ledger: see ledger.h. */
#include "runtime/base/ledger.h"

#include <pthread.h>
#include <stdlib.h>

struct pool {
    uint64_t limit, used, peak;
};

struct cf_ledger {
    pthread_mutex_t lock;
    struct pool pools[CF_POOL_COUNT];
};

static const char *const pool_flag[CF_POOL_COUNT] = {"--vram", "--ram"};

int cf_ledger_create(cf_ledger **out, uint64_t device_limit_bytes, uint64_t host_limit_bytes,
                     cf_err *err)
{
    cf_ledger *l = calloc(1, sizeof *l);
    if (!l)
        return CF_FAIL(err, -ENOMEM, "out of memory for the ledger");
    pthread_mutex_init(&l->lock, NULL);
    l->pools[CF_POOL_DEVICE].limit = device_limit_bytes;
    l->pools[CF_POOL_HOST].limit = host_limit_bytes;
    *out = l;
    return 0;
}

void cf_ledger_limit_set(cf_ledger *ledger, cf_pool pool, uint64_t limit_bytes)
{
    pthread_mutex_lock(&ledger->lock);
    cf_assert(!limit_bytes || ledger->pools[pool].used <= limit_bytes);
    ledger->pools[pool].limit = limit_bytes;
    pthread_mutex_unlock(&ledger->lock);
}

void cf_ledger_destroy(cf_ledger **ledger)
{
    if (!*ledger)
        return;
    pthread_mutex_destroy(&(*ledger)->lock);
    free(*ledger);
    *ledger = NULL;
}

int cf_ledger_charge(cf_ledger *ledger, cf_pool pool, const char *name, uint64_t bytes,
                     cf_err *err)
{
    if (!ledger)
        return 0;
    pthread_mutex_lock(&ledger->lock);
    struct pool *p = &ledger->pools[pool];
    uint64_t used = p->used, limit = p->limit;
    bool fits = !limit || (bytes <= limit && used <= limit - bytes);
    if (fits) {
        p->used += bytes;
        if (p->used > p->peak)
            p->peak = p->used;
    }
    pthread_mutex_unlock(&ledger->lock);
    if (fits)
        return 0;
    return CF_FAIL(err, CF_ELIMIT,
                   "%s needs %llu bytes, but %llu of the %llu of %s are in use", name,
                   (unsigned long long)bytes, (unsigned long long)used, (unsigned long long)limit,
                   pool_flag[pool]);
}

void cf_ledger_refund(cf_ledger *ledger, cf_pool pool, uint64_t bytes)
{
    if (!ledger)
        return;
    pthread_mutex_lock(&ledger->lock);
    cf_assert(ledger->pools[pool].used >= bytes);
    ledger->pools[pool].used -= bytes;
    pthread_mutex_unlock(&ledger->lock);
}

static uint64_t pool_read(const cf_ledger *ledger, const uint64_t *field)
{
    if (!ledger)
        return 0;
    pthread_mutex_t *lock = (pthread_mutex_t *)&ledger->lock;
    pthread_mutex_lock(lock);
    uint64_t v = *field;
    pthread_mutex_unlock(lock);
    return v;
}

uint64_t cf_ledger_used(const cf_ledger *ledger, cf_pool pool)
{
    return pool_read(ledger, &ledger->pools[pool].used);
}

uint64_t cf_ledger_peak(const cf_ledger *ledger, cf_pool pool)
{
    return pool_read(ledger, &ledger->pools[pool].peak);
}

uint64_t cf_ledger_limit(const cf_ledger *ledger, cf_pool pool)
{
    return pool_read(ledger, &ledger->pools[pool].limit);
}
