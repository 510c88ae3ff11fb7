/* Monotonic time. Measurements only: nothing the engine decides may depend on it. */
#ifndef CF_BASE_CLOCK_H
#define CF_BASE_CLOCK_H

#include <stdint.h>

uint64_t cf_clock_ns(void);

static inline double cf_seconds(uint64_t ns)
{
    return (double)ns * 1e-9;
}

#endif
