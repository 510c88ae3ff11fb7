/* What the machine has to offer: memory that may still be taken and processors, within cgroup limits.
 *
 * Reads /proc/meminfo, /proc/self/cgroup and the files of the cgroup (v1 or v2) and of all groups
 * above it, whose limits hold as well. What a group uses is counted without the file pages that
 * the kernel would give back first. Thread-safety: pure functions of those files. */
#ifndef CF_BASE_MACHINE_H
#define CF_BASE_MACHINE_H

#include <stdint.h>

typedef struct cf_machine {
    uint64_t mem_available; /* of /proc/meminfo; 0 when unknown */
    uint64_t cgroup_left;   /* the least that a group leaves; UINT64_MAX without a limit */
    int cgroup_version;     /* 1 or 2 where there is a limit, else 0 */
    uint64_t available;     /* the less of both; 0 when neither is known */
    char from[256];         /* where that number was read, for people */
} cf_machine;

/* root: put before every path; "" but in tests. */
void cf_machine_look(cf_machine *out, const char *root);

/* Processors that this process may use, at least 1: of its affinity mask, no more than the cgroups'
 * quotas of time come to (rounded up). More threads than that would take turns on them. */
int cf_machine_processors(const char *root);

#endif
