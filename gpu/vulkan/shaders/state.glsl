// What the shaders over a state share: the runs of a batch (ops_state.h), sigmoid and silu.
#ifndef STATE_GLSL
#define STATE_GLSL
#include "vector.glsl"

const uint NO_STATE = 0xffffffffu;

struct Run {
    uint first_row, n_rows, from, to;
};

Run run_at(uint64_t runs, uint i)
{
    U32s r = U32s(runs + uint64_t(i) * 16ul);
    return Run(r.v[0], r.v[1], r.v[2], r.v[3]);
}

float sigmoid(float v)
{
    return 1.0 / (1.0 + exp(-v));
}

float silu(float v)
{
    return v / (1.0 + exp(-v));
}
#endif
