// What attention and the merge of its parts share. A row's visible cells, counted from the first of
// them, are cut into spans of SPAN, one work-group each. A row of one span gets its result at once;
// else each span leaves a part for attn_merge: (maximum, total, sums of D_V values) per
// (row, head, span).
#ifndef ATTN_GLSL
#define ATTN_GLSL
#include "common.glsl"
#include "vector.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t q, k, v, rows, y, parts, sharpness; // sharpness 0: 1
    Vector sinks;
    uint n_heads, n_kv_heads, kv_first, kv_count; // this dispatch: kv_count of them from kv_first on
    uint q_stride, window, chunk, span, n_spans;
    float scale, cap;
} p;

// First visible cell, and how many: the last of the row's cells and those just before it.
uvec2 visible_cells(uint64_t r)
{
    U32s info = U32s(p.rows + r * 16ul);
    uint end = info.v[1] + info.v[2], position = info.v[3], n = info.v[2];
    if (p.window > 0)
        n = min(n, p.window);
    if (p.chunk > 0)
        n = min(n, position % p.chunk + 1);
    return uvec2(end - n, n);
}

// h counts from the first head of this dispatch.
F32s attn_part(uint64_t r, uint h, uint span, uint d_v)
{
    uint64_t heads = p.n_heads / p.n_kv_heads * p.kv_count;
    return F32s(p.parts + ((r * heads + h) * p.n_spans + span) * (d_v + 2) * 4ul);
}
#endif
