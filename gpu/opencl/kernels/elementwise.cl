// rope, glu, map, add and combine.

// Rotates pairs in place. A unit is a head of a row.
KERNEL rope(bytes_out x, bytes_in cos_sin, const ocl_rope_params p)
{
    for (GROUP_UNITS(u, p.units)) {
        ulong r = u / p.n_heads, h = u % p.n_heads;
        const __global float *t = FLOATS(cos_sin, p.cos_sin) + r * p.n_pairs * 2;
        __global float *v = FLOATS_OUT(x, p.x) + r * p.stride + h * p.head_stride;
        for (uint i = ITEM; i < p.n_pairs; i += WG) {
            uint ia = p.half_apart ? i : 2 * i, ib = p.half_apart ? i + p.n_pairs : 2 * i + 1;
            float a = v[ia], b = v[ib], co = t[2 * i], si = t[2 * i + 1];
            v[ia] = a * co - b * si;
            v[ib] = b * co + a * si;
        }
    }
}

// k: the first element of each vector of unit u of n elements that is this item's.
#define CHUNK_VECS(k, u, n)                                                                        \
    ulong k = (u)*CHUNK + ITEM * LANES;                                                            \
    k < min((n), ((u) + 1) * CHUNK);                                                               \
    k += WG * LANES

// y = act(g) * u, or act(g). y may be g.
KERNEL glu(bytes_in g, bytes_in u, bytes_out y, const ocl_glu_params p)
{
    const __global float *gs = FLOATS(g, p.g), *us = FLOATS(u, p.u);
    __global float *ys = FLOATS_OUT(y, p.y);
    for (GROUP_UNITS(unit, p.units))
        for (CHUNK_VECS(k, unit, p.n)) {
            vec v = 1.0f;
            if (p.has_u)
                v = vec_load_n(us + k, p.n - k);
            v = activate_vec(p.act, vec_load_n(gs + k, p.n - k), v, p.limit, p.alpha);
            vec_store_n(v, ys + k, p.n - k);
        }
}

INLINE vec map_values(const ocl_map_params *p, vec a, vec b)
{
    if (p->kind == OCL_MAP_CLAMP) { // a NaN stays one
        vec low = a < p->p ? (vec)p->p : a;
        return low > p->q ? (vec)p->q : low;
    }
    if (p->kind == OCL_MAP_SOFTCAP)
        return p->p * tanh(a / p->p);
    if (p->kind == OCL_MAP_MUL_SIGMOID)
        b = 1.0f / (1.0f + exp(-b));
    return a * b;
}

// y[r, i] = map(a[r, i], b[r, i or 0]). A unit is a chunk of a row. y may be a.
KERNEL map(bytes_in a, bytes_in b, bytes_out y, const ocl_map_params p)
{
    ulong width = p.width, units = (width + CHUNK - 1) / CHUNK;
    bool two = p.kind > OCL_MAP_SOFTCAP;
    for (GROUP_UNITS(u, p.units)) {
        ulong r = u / units;
        const __global float *as = FLOATS(a, p.a) + r * p.a_stride;
        const __global float *bs = FLOATS(b, p.b) + r * p.b_stride;
        __global float *ys = FLOATS_OUT(y, p.y) + r * p.y_stride;
        for (CHUNK_VECS(k, u % units, width)) {
            vec v = 0.0f;
            if (two)
                v = p.b_step ? vec_load_n(bs + k, width - k) : (vec)bs[0];
            vec_store_n(map_values(&p, vec_load_n(as + k, width - k), v), ys + k, width - k);
        }
    }
}

// y = alpha * a + beta * b, or alpha * a. y may be a.
KERNEL add(bytes_in a, bytes_in b, bytes_out y, const ocl_add_params p)
{
    const __global float *as = FLOATS(a, p.a), *bs = FLOATS(b, p.b);
    __global float *ys = FLOATS_OUT(y, p.y);
    for (GROUP_UNITS(unit, p.units))
        for (CHUNK_VECS(k, unit, p.n)) {
            vec v = p.alpha * vec_load_n(as + k, p.n - k);
            if (p.has_b)
                v += p.beta * vec_load_n(bs + k, p.n - k);
            vec_store_n(v, ys + k, p.n - k);
        }
}

// y[r, i] = sum over rank, ascending, of out[r * k + rank, i] or, for an identity expert,
// weights[r, rank] * x[r, i]. A unit is a chunk of a row.
KERNEL combine(bytes_in outs, bytes_in ids, bytes_in weights, bytes_in x, bytes_out y,
               const ocl_combine_params p)
{
    ulong width = p.hidden, units = (width + CHUNK - 1) / CHUNK;
    for (GROUP_UNITS(u, p.units)) {
        ulong r = u / units, pair = r * p.k;
        const __global float *from = FLOATS(outs, p.outs) + pair * width;
        const __global float *xs = FLOATS(x, p.x) + r * width;
        const __global float *weight = FLOATS(weights, p.weights) + pair;
        const __global uint *id = UINTS(ids, p.ids) + pair;
        for (CHUNK_VECS(k, u % units, width)) {
            vec sum = 0.0f;
            for (uint j = 0; j < p.k; j++)
                if (id[j] < p.n_routed)
                    sum += vec_load_n(from + j * width + k, width - k);
                else
                    sum += weight[j] * vec_load_n(xs + k, width - k);
            vec_store_n(sum, FLOATS_OUT(y, p.y) + r * width + k, width - k);
        }
    }
}
