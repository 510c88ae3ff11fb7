#version 460
// A causal convolution of each channel. One invocation for a channel and a row of a run (z): the
// row's output, and row `row` of the state that the run leaves.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool SILU = false;
#include "state.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t x, y, state, runs;
    Vector w;
    uint n_channels, n_items, width, n_taps, x_stride, x_head_stride, y_stride, state_stride;
} p;

// Input `at` of the channel, counted from the run's first row; negative: from before it.
float conv_input(Run run, uint channel, int at)
{
    int past = int(p.n_taps) - 1;
    if (at >= 0) {
        uint64_t i = uint64_t(run.first_row + at) * p.x_stride +
                     uint64_t(channel / p.width) * p.x_head_stride + channel % p.width;
        return F32s(p.x + i * 4ul).v[0];
    }
    if (run.from == NO_STATE)
        return 0.0;
    uint64_t i = (uint64_t(run.from) * past + (past + at)) * p.state_stride + channel;
    return F32s(p.state + i * 4ul).v[0];
}

void main()
{
    uint i = flat_index(), channel = i % p.n_channels;
    int row = int(i / p.n_channels), past = int(p.n_taps) - 1;
    Run run = run_at(p.runs, gl_WorkGroupID.z);
    if (i >= p.n_items)
        return;
    if (row < run.n_rows) {
        float sum = 0.0;
        for (int j = 0; j <= past; j++)
            sum = fma(vector_element(p.w, channel * p.n_taps + j),
                      conv_input(run, channel, row - past + j), sum);
        uint64_t at = uint64_t(run.first_row + row) * p.y_stride + channel;
        F32s(p.y + at * 4ul).v[0] = SILU ? silu(sum) : sum;
    }
    if (row < past) {
        uint64_t at = (uint64_t(run.to) * past + row) * p.state_stride + channel;
        F32s(p.state + at * 4ul).v[0] = conv_input(run, channel, int(run.n_rows) - past + row);
    }
}
