// y[r, h, i] = g[i] * (x[i] - mean) / sqrt(mean (x - mean)^2 + eps) * scale + bias[i], the mean
// being 0 unless `layer`. A unit is a head of a row. y may be x: an item reads, and then writes,
// its own elements only.
#if WG > 1
#define ROW_PARTS(name) __local float name[WG];
typedef __local float *row_parts;
#else
#define ROW_PARTS(name) float name[1];
typedef float *row_parts;
#endif

// The parts of all items, added in order, for every item.
INLINE float row_sum(float part, row_parts parts)
{
#if WG > 1
    SYNC(); // whoever still reads the last sum's
    parts[ITEM] = part;
    SYNC();
    part = 0.0f;
    for (uint i = 0; i < WG; i++)
        part += parts[i];
#endif
    return part;
}

// The first n floats at p less `about`, then zeros.
INLINE vec load_about(const __global float *p, ulong n, float about)
{
    float v[LANES];
    if (n >= LANES)
        return VEC_LOAD(p) - about;
    for (uint i = 0; i < LANES; i++)
        v[i] = i < n ? p[i] - about : 0.0f;
    return VEC_LOAD(v);
}

KERNEL norm(bytes_in w, bytes_in bias, bytes_in x, bytes_out y, const ocl_norm_params p)
{
    ROW_PARTS(parts)
    for (GROUP_UNITS(u, p.units)) {
        ulong r = u / p.n_heads, h = u % p.n_heads;
        const __global float *in = FLOATS(x, p.x) + r * p.x_stride + h * p.x_head_stride;
        __global float *out = FLOATS_OUT(y, p.y) + r * p.y_stride + h * p.y_head_stride;
        ulong w_at = h * p.w_head_step, bias_at = h * p.bias_head_step;
        float mean = 0.0f;
        vec sum = 0.0f, squares = 0.0f;
        if (p.layer) {
            for (uint k = ITEM * LANES; k < p.width; k += WG * LANES)
                sum += vec_load_n(in + k, p.width - k);
            mean = row_sum(vec_sum(sum), parts) / (float)p.width;
        }
        for (uint k = ITEM * LANES; k < p.width; k += WG * LANES) {
            vec v = load_about(in + k, p.width - k, mean);
            squares = MULTIPLY_ADD(v, v, squares);
        }
        float square = row_sum(vec_sum(squares), parts) / (float)p.width;
        float factor = p.scale / sqrt(square + p.eps);
        for (uint k = ITEM * LANES; k < p.width; k += WG * LANES) {
            vec v = load_about(in + k, p.width - k, mean);
            if (vector_is(p.w))
                v *= vector_vec(w, p.w, w_at + k, w_at + p.width) + p.offset;
            v *= factor;
            if (vector_is(p.bias))
                v += vector_vec(bias, p.bias, bias_at + k, bias_at + p.width);
            vec_store_n(v, out + k, p.width - k);
        }
    }
}
