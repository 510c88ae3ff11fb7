/* What the machine has to offer: memory that may still be taken, within cgroup limits. */
#ifndef CF_BASE_MACHINE_H
#define CF_BASE_MACHINE_H

#include <stdint.h>

/* MemAvailable, or what the cgroup (v1 or v2) leaves if that is less. 0 when unknown. */
uint64_t cf_machine_available_bytes(void);

#endif
