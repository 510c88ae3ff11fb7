/* Devices of a test: see devices.h. */
#include "tests/support/devices.h"

#include <stdio.h>
#include <string.h>

const char *devices_only(int argc, char **argv)
{
    return argc > 1 ? argv[1] : NULL;
}

bool devices_next(devices *d)
{
    if (d->next == 0)
        d->n = cf_gpu_list(d->infos, sizeof d->infos / sizeof *d->infos, NULL, 0);
    while (d->next < d->n) {
        const cf_gpu_info *info = &d->infos[d->next++];
        if (d->only && strcmp(d->only, info->backend) != 0)
            continue;
        snprintf(d->name, sizeof d->name, "%.15s:%d", info->backend, info->index);
        d->ref = strcmp(info->backend, "ref") == 0;
        return true;
    }
    return false;
}
