// Sums and maxima over the work-group, as a tree over shared memory: one order on every device.
#ifndef REDUCE_GLSL
#define REDUCE_GLSL
#include "common.glsl"

shared float reduce_f[WG];

float group_sum(float v)
{
    uint lid = gl_LocalInvocationID.x;
    barrier(); // an earlier result may still be being read
    reduce_f[lid] = v;
    for (uint half_wg = WG / 2; half_wg > 0; half_wg /= 2) {
        barrier();
        if (lid < half_wg)
            reduce_f[lid] += reduce_f[lid + half_wg];
    }
    barrier();
    return reduce_f[0];
}

float group_max(float v)
{
    uint lid = gl_LocalInvocationID.x;
    barrier();
    reduce_f[lid] = v;
    for (uint half_wg = WG / 2; half_wg > 0; half_wg /= 2) {
        barrier();
        if (lid < half_wg)
            reduce_f[lid] = max(reduce_f[lid], reduce_f[lid + half_wg]);
    }
    barrier();
    return reduce_f[0];
}
#endif
