/* What the machine has to offer: see machine.h. */
#include "runtime/base/machine.h"

#include <stdio.h>
#include <string.h>

static uint64_t file_number(const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f)
        return UINT64_MAX;
    unsigned long long v;
    int n = fscanf(f, "%llu", &v); /* "max" does not scan: no limit */
    fclose(f);
    return n == 1 ? v : UINT64_MAX;
}

static uint64_t mem_available(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    if (!f)
        return 0;
    char line[256];
    unsigned long long kib = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    fclose(f);
    return (uint64_t)kib * 1024;
}

/* The path of this process below a cgroup controller's mount; "" names v2. */
static int cgroup_path(const char *controller, char *out, size_t size)
{
    FILE *f = fopen("/proc/self/cgroup", "r");
    if (!f)
        return 0;
    char line[1024];
    int found = 0;
    while (!found && fgets(line, sizeof line, f)) {
        char *first = strchr(line, ':');
        char *second = first ? strchr(first + 1, ':') : NULL;
        if (!second)
            continue;
        *second = 0;
        second[1 + strcspn(second + 1, "\n")] = 0;
        if (strcmp(first + 1, controller) == 0) {
            snprintf(out, size, "%s", strcmp(second + 1, "/") == 0 ? "" : second + 1);
            found = 1;
        }
    }
    fclose(f);
    return found;
}

static uint64_t cgroup_left(void)
{
    char group[900], path[1100];
    uint64_t limit = UINT64_MAX, used = 0;
    if (cgroup_path("memory", group, sizeof group)) {
        snprintf(path, sizeof path, "/sys/fs/cgroup/memory%s/memory.limit_in_bytes", group);
        limit = file_number(path);
        snprintf(path, sizeof path, "/sys/fs/cgroup/memory%s/memory.usage_in_bytes", group);
        used = file_number(path);
    } else if (cgroup_path("", group, sizeof group)) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group);
        limit = file_number(path);
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.current", group);
        used = file_number(path);
    }
    if (limit == UINT64_MAX || used == UINT64_MAX)
        return UINT64_MAX;
    return limit > used ? limit - used : 0;
}

uint64_t cf_machine_available_bytes(void)
{
    uint64_t available = mem_available(), left = cgroup_left();
    return available && left < available ? left : available;
}
