/* The ledger: every allocation of size is charged here under a name, against two promises.
 *
 * CF_POOL_DEVICE is what --vram promises, CF_POOL_HOST what --ram promises. A charge that would
 * pass the limit is refused, so the peak can never exceed it. On a device whose memory is the
 * host's, imported pages are charged once, to the pool of their user.
 *
 * Thread-safety: every function may be called from any thread. */
#ifndef CF_BASE_LEDGER_H
#define CF_BASE_LEDGER_H

#include <stdint.h>

#include "runtime/base/err.h"

typedef enum { CF_POOL_DEVICE, CF_POOL_HOST, CF_POOL_COUNT } cf_pool;

typedef struct cf_ledger cf_ledger;

/* limit 0: unlimited. */
int cf_ledger_create(cf_ledger **out, uint64_t device_limit_bytes, uint64_t host_limit_bytes,
                     cf_err *err);
/* A limit that becomes known later; not below what is in use. */
void cf_ledger_limit_set(cf_ledger *ledger, cf_pool pool, uint64_t limit_bytes);
void cf_ledger_destroy(cf_ledger **ledger); /* accepts NULL; leaves NULL */

/* Returns 0, or CF_ELIMIT with a sentence that names the use, its bytes and the limit.
 * A NULL ledger accepts everything. */
int cf_ledger_charge(cf_ledger *ledger, cf_pool pool, const char *name, uint64_t bytes,
                     cf_err *err);
void cf_ledger_refund(cf_ledger *ledger, cf_pool pool, uint64_t bytes);

uint64_t cf_ledger_used(const cf_ledger *ledger, cf_pool pool);
uint64_t cf_ledger_peak(const cf_ledger *ledger, cf_pool pool);
uint64_t cf_ledger_limit(const cf_ledger *ledger, cf_pool pool);

#endif
