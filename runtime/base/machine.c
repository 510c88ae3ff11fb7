/* What the machine has to offer: see machine.h. */
#include "runtime/base/machine.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 1024 };

/* The names of one version's files. */
typedef struct layout {
    int version;
    const char *controller; /* in /proc/self/cgroup; v2 has none */
    const char *mount, *limits[2], *used, *idle;
} layout;

static const layout layouts[] = {
    {1,
     "memory",
     "/sys/fs/cgroup/memory",
     {"memory.limit_in_bytes", NULL},
     "memory.usage_in_bytes",
     "total_inactive_file"},
    {2, "", "/sys/fs/cgroup", {"memory.max", "memory.high"}, "memory.current", "inactive_file"},
};

/* The number that a file consists of; UINT64_MAX when it does not ("max": no limit). */
static uint64_t file_number(const char *dir, const char *name)
{
    char path[PATH_BYTES + 64];
    unsigned long long v;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "r");
    if (!f)
        return UINT64_MAX;
    int n = fscanf(f, "%llu", &v);
    fclose(f);
    return n == 1 ? v : UINT64_MAX;
}

/* The number after `name` in a file of lines "name number"; 0 when there is none. */
static uint64_t file_entry(const char *path, const char *name)
{
    FILE *f = fopen(path, "r");
    char line[256];
    unsigned long long v = 0;
    size_t n = strlen(name);
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f))
        found = strncmp(line, name, n) == 0 && (line[n] == ' ' || line[n] == ':') &&
                sscanf(line + n + 1, "%llu", &v) == 1;
    if (f)
        fclose(f);
    return found ? v : 0;
}

/* Whether a comma-separated list has this name. */
static bool list_has(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, n) == 0 && (at[n] == ',' || at[n] == 0))
            return true;
    }
    return false;
}

/* This process's group of a controller ("" for v2): "" for the root group. */
static bool group_path(const char *root, const char *controller, char *out, size_t size)
{
    char path[PATH_BYTES], line[PATH_BYTES];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "r");
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) {
        char *first = strchr(line, ':'); /* number:controllers:/path */
        char *second = first ? strchr(first + 1, ':') : NULL;
        if (!second || second[1] != '/')
            continue;
        *second = 0;
        second[1 + strcspn(second + 1, "\n")] = 0;
        found = *controller ? list_has(first + 1, controller) : first[1] == 0;
        if (found)
            snprintf(out, size, "%s", second[2] ? second + 1 : "");
    }
    if (f)
        fclose(f);
    return found;
}

/* What one group leaves; UINT64_MAX when it has no limit, or no such files. */
static uint64_t group_left(const layout *l, const char *dir, const char **limit_name)
{
    uint64_t limit = UINT64_MAX, used = file_number(dir, l->used);
    char stat[PATH_BYTES + 64];
    for (int i = 0; i < 2 && l->limits[i]; i++) {
        uint64_t v = file_number(dir, l->limits[i]);
        if (v < limit) {
            limit = v;
            *limit_name = l->limits[i];
        }
    }
    if (limit == UINT64_MAX || used == UINT64_MAX)
        return UINT64_MAX;
    snprintf(stat, sizeof stat, "%s/memory.stat", dir);
    uint64_t idle = file_entry(stat, l->idle);
    used -= idle < used ? idle : used;
    return limit > used ? limit - used : 0;
}

/* The group and all above it. A path from outside of a container is not there inside: its lowest
 * groups are skipped, and the container's own is the mount. */
static void groups_look(cf_machine *m, const layout *l, const char *root)
{
    char group[PATH_BYTES / 2], dir[PATH_BYTES];
    if (!group_path(root, l->controller, group, sizeof group))
        return;
    for (;;) {
        const char *name = "";
        int n = snprintf(dir, sizeof dir, "%s%s%s", root, l->mount, group);
        uint64_t left = n > 0 && (size_t)n < sizeof dir ? group_left(l, dir, &name) : UINT64_MAX;
        if (left < m->cgroup_left) {
            m->cgroup_left = left;
            m->cgroup_version = l->version;
            if (left < m->available) {
                m->available = left;
                snprintf(m->from, sizeof m->from, "%s of the cgroup %.180s", name,
                         group[0] ? group : "/");
            }
        }
        char *last = strrchr(group, '/');
        if (!last)
            return;
        *last = 0;
    }
}

void cf_machine_look(cf_machine *out, const char *root)
{
    char path[PATH_BYTES];
    *out = (cf_machine){.cgroup_left = UINT64_MAX};
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    out->mem_available = file_entry(path, "MemAvailable") * 1024;
    out->available = out->mem_available ? out->mem_available : UINT64_MAX;
    snprintf(out->from, sizeof out->from, "MemAvailable");
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
        groups_look(out, &layouts[i], root);
    if (out->available == UINT64_MAX)
        out->available = 0;
}

/* ---- processors ---- */

/* Time in a period that one group may use, in processors; 0 without a limit. */
static uint64_t group_processors(const char *dir, bool v2)
{
    char path[PATH_BYTES + 64];
    unsigned long long quota = 0, period = 0;
    if (v2) {
        snprintf(path, sizeof path, "%s/cpu.max", dir);
        FILE *f = fopen(path, "r");
        int n = f ? fscanf(f, "%llu %llu", &quota, &period) : 0; /* "max": no number */
        if (f)
            fclose(f);
        if (n != 2)
            return 0;
    } else {
        quota = file_number(dir, "cpu.cfs_quota_us"); /* -1: none */
        period = file_number(dir, "cpu.cfs_period_us");
    }
    if (quota == 0 || quota > INT64_MAX || period == 0 || period > INT64_MAX)
        return 0;
    return quota / period + (quota % period != 0);
}

int cf_machine_processors(const char *root)
{
    static const char *const controllers[] = {"cpu", ""}, *const mounts[] = {"/sys/fs/cgroup/cpu",
                                                                            "/sys/fs/cgroup"};
    cpu_set_t set;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t least = online > 0 ? (uint64_t)online : 1;
    /* Fails where there are more processors than the mask has bits. */
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        least = (uint64_t)CPU_COUNT(&set);
    for (int v = 0; v < 2; v++) {
        char group[PATH_BYTES / 2], dir[PATH_BYTES], *last;
        if (!group_path(root, controllers[v], group, sizeof group))
            continue;
        do {
            int n = snprintf(dir, sizeof dir, "%s%s%s", root, mounts[v], group);
            uint64_t p = n > 0 && (size_t)n < sizeof dir ? group_processors(dir, v == 1) : 0;
            if (p && p < least)
                least = p;
            last = strrchr(group, '/');
            if (last)
                *last = 0;
        } while (last);
    }
    return least ? (int)least : 1;
}
