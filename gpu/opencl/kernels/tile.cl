// DOT_R cells of a cache against up to DOT_T rows of activations. A block of a cell is decoded once
// for all of the rows; on a GPU the items take turns over the blocks. Callers clamp row pointers at
// the edge, so that every tile runs the same loop, and skip the store instead.
#define DOT_R   ((uint)OCL_TILE_ROWS)
#define DOT_T   4u

// On a CPU a sum is LANES sums, lane by lane; on a GPU a group already is WG sums.
#if WG == 1
typedef vec dot_acc;
INLINE dot_acc dot_add(vec w, vec x, dot_acc acc)
{
    return MULTIPLY_ADD(w, x, acc);
}
#define DOT_SUMS(name)  float name[DOT_R * DOT_T];
#define DOT_SUM(sums, i) sums[i]
typedef float *dot_sums;
#else
typedef float dot_acc;
INLINE dot_acc dot_add(vec w, vec x, dot_acc acc)
{
    acc = fma(w.s0, x.s0, acc);
    acc = fma(w.s1, x.s1, acc);
    acc = fma(w.s2, x.s2, acc);
    acc = fma(w.s3, x.s3, acc);
    acc = fma(w.s4, x.s4, acc);
    acc = fma(w.s5, x.s5, acc);
    acc = fma(w.s6, x.s6, acc);
    return fma(w.s7, x.s7, acc);
}
#define DOT_SUMS(name)  __local float name[DOT_R * DOT_T * (WG + 1)];
#define DOT_SUM(sums, i) sums[(i) * (WG + 1)]
typedef __local float *dot_sums;
#endif

// acc[r * t + i] += row r of w . row i of x, in the order of the columns.
INLINE void dot_tile(const uint t, const bytes_in *w, const __global float *const *x, uint cols,
                     dot_acc *acc)
{
    uint full = cols / W_BLOCK;
    for (uint b = ITEM; b < full; b += WG) {
#pragma unroll
        for (uint r = 0; r < DOT_R; r++) {
            vec e[W_VECS];
            weight_block(w[r], b, e);
            if (t == 1) // the rows of the next tile: short ones end before a prefetcher starts
                PREFETCH(w[r] + b * weight_bytes(W_BLOCK) + DOT_R * weight_bytes(cols));
#pragma unroll
            for (uint i = 0; i < t; i++)
#pragma unroll
                for (uint v = 0; v < W_VECS; v++)
                    acc[r * t + i] =
                        dot_add(e[v], VEC_LOAD(x[i] + b * W_BLOCK + v * LANES), acc[r * t + i]);
        }
    }
    if (cols % W_BLOCK == 0 || ITEM != full % WG)
        return;
    for (uint r = 0; r < DOT_R; r++) {
        vec e[W_VECS];
        weight_tail(w[r], full, cols, e);
        for (uint v = 0; v < W_VECS; v++) {
            uint k = full * W_BLOCK + v * LANES;
            for (uint i = 0; i < t && k < cols; i++)
                acc[r * t + i] = dot_add(e[v], vec_load_n(x[i] + k, cols - k), acc[r * t + i]);
        }
    }
}

// The group's n sums: afterwards DOT_SUM(sums, i) is the i-th for every item.
INLINE void dot_finish(const uint n, const dot_acc *acc, dot_sums sums)
{
#if WG == 1
#pragma unroll
    for (uint i = 0; i < n; i++)
        sums[i] = vec_sum(acc[i]);
#else
    SYNC(); // whoever still reads the last tile's
#pragma unroll
    for (uint i = 0; i < n; i++)
        sums[i * (WG + 1) + ITEM] = acc[i];
    SYNC();
    for (uint i = ITEM; i < n; i += WG) {
        float sum = 0.0f;
        for (uint j = 0; j < WG; j++)
            sum += sums[i * (WG + 1) + j];
        sums[i * (WG + 1)] = sum;
    }
    SYNC();
#endif
}
