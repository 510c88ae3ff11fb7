/* What a device copies: the ceilings that `bench MODEL` compares with. */
#ifndef CF_TOOLS_BENCH_DEVICE_H
#define CF_TOOLS_BENCH_DEVICE_H

#include "runtime/catflap.h"

/* GB/s (10^9), medians of three. */
typedef struct cf_bench_device {
    double upload; /* host-visible to device memory, bytes copied */
    double memory; /* device to device memory, bytes read and written */
} cf_bench_device;

/* Opens the device of these options for itself and closes it again. 0.5 s and 192 MiB at most. */
int cf_bench_device_measure(cf_bench_device *out, const cf_options *options, cf_err *err);

#endif
