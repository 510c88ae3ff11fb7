#version 460
// The k cells with the largest scores of each row, ascending, ties to the lower: one work-group a row.
// Scores become integers of the same order; the k-th largest is found byte by byte, each pass counting
// the keys that begin like it; then all keys above it, and the first of those that equal it, are
// written in order.
#extension GL_GOOGLE_include_directive : require
#include "order.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t scores, rows, cells;
    uint n_rows, k, score_stride;
    uint unused;
} p;

shared uint counts[256];
shared uint found, left; // of the k-th key so far, and how many of the k begin like it
shared uint before[WG];

void main()
{
    uint lid = gl_LocalInvocationID.x, r = group_index();
    if (r >= p.n_rows)
        return;
    U32s info = U32s(p.rows + uint64_t(r) * 16ul);
    F32s scores = F32s(p.scores + uint64_t(r) * p.score_stride * 4ul);
    U32s cells = U32s(p.cells + uint64_t(r) * p.k * 4ul);
    uint first = info.v[1], n = info.v[2], mask = 0;
    if (n <= p.k) {
        for (uint i = lid; i < n; i += WG)
            cells.v[i] = first + i;
        return;
    }
    if (lid == 0) {
        found = 0;
        left = p.k;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint i = lid; i < 256; i += WG)
            counts[i] = 0;
        barrier();
        for (uint i = lid; i < n; i += WG) {
            uint key = order_key(scores.v[i]);
            if ((key & mask) == found)
                atomicAdd(counts[key >> shift & 255u], 1);
        }
        barrier();
        if (lid == 0) {
            uint byte = 255;
            for (; counts[byte] < left; byte--)
                left -= counts[byte];
            found |= byte << shift;
        }
        mask |= 255u << shift;
        barrier();
    }
    // Those above in the upper half, those equal in the lower half of a word: at most WG each.
    uint least = found, ties = left, above = 0, equal = 0;
    for (uint base = 0; base < n; base += WG) {
        uint i = base + lid, key = order_key(scores.v[min(i, n - 1)]);
        uint mine = i >= n ? 0 : key > least ? 0x10000u : key == least ? 1u : 0u;
        before[lid] = mine;
        for (uint step = 1; step < WG; step *= 2) {
            barrier();
            uint sum = before[lid] + (lid >= step ? before[lid - step] : 0);
            barrier();
            before[lid] = sum;
        }
        barrier();
        uint past = before[lid] - mine, all = before[WG - 1];
        uint at_above = above + (past >> 16), at_equal = equal + (past & 0xffffu);
        if (mine == 0x10000u || (mine == 1u && at_equal < ties))
            cells.v[at_above + min(at_equal, ties)] = first + i;
        above += all >> 16;
        equal += all & 0xffffu;
        barrier();
    }
}
