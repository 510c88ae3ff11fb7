/* The devices that a test runs on: those of the backend it was told, or all.
 *
 *     devices d = {.only = devices_only(argc, argv)};
 *     while (devices_next(&d))
 *         device_run(d.name, d.ref); */
#ifndef CF_TESTS_DEVICES_H
#define CF_TESTS_DEVICES_H

#include <stdbool.h>

#include "gpu/gpu.h"

typedef struct devices {
    const char *only; /* a backend; NULL: all */
    char name[32];    /* "vulkan:0", of the one at hand and, after the last, of that */
    bool ref;
    int next, n; /* private */
    cf_gpu_info infos[16];
} devices;

/* The program's first argument, or NULL. */
const char *devices_only(int argc, char **argv);
bool devices_next(devices *d);

#endif
