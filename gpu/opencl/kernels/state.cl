// Attention with a state of fixed size: conv, state_gates, attn_state and gate. A run of a batch is
// first_row, n_rows, from, to.
#define NO_STATE 0xffffffffu

INLINE float silu_of(float v)
{
    return v / (1.0f + exp(-v));
}

// Input `at` of a channel, counted from the run's first row; negative: from before it.
INLINE float conv_input(bytes_in x, bytes_out state, const __global uint *run,
                        const ocl_conv_params *p, uint channel, long at)
{
    long past = (long)p->n_taps - 1;
    if (at >= 0)
        return FLOATS(x, p->x)[(run[0] + (ulong)at) * p->x_stride +
                               (ulong)(channel / p->width) * p->x_head_stride + channel % p->width];
    if (run[2] == NO_STATE)
        return 0.0f;
    return FLOATS(state, p->state)[(ulong)(run[2] * past + past + at) * p->state_stride + channel];
}

// A unit is a row of a run: its outputs, and a row of the state that the run leaves.
KERNEL conv(bytes_in w, bytes_in x, bytes_out y, bytes_out state, bytes_in runs,
            const ocl_conv_params p)
{
    long past = (long)p.n_taps - 1;
    for (GROUP_UNITS(u, p.units)) {
        const __global uint *run = UINTS(runs, p.runs) + 4 * (u / p.run_units);
        long row = (long)(u % p.run_units);
        for (uint c = ITEM; c < p.n_channels; c += WG) {
            if (row < run[1]) {
                float sum = 0.0f;
                for (long j = 0; j <= past; j++)
                    sum = MULTIPLY_ADD(vector_element(w, p.w, (ulong)c * p.n_taps + j),
                                       conv_input(x, state, run, &p, c, row - past + j), sum);
                FLOATS_OUT(y, p.y)[(run[0] + row) * p.y_stride + c] = p.silu ? silu_of(sum) : sum;
            }
            if (row < past)
                FLOATS_OUT(state, p.state)[(run[3] * past + row) * p.state_stride + c] =
                    conv_input(x, state, run, &p, c, run[1] - past + row);
        }
    }
}

// A unit is a row.
KERNEL state_gates(bytes_in a_log, bytes_in dt_bias, bytes_in a, bytes_in b, bytes_out decay,
                   bytes_out beta, const ocl_state_gates_params p)
{
    for (GROUP_UNITS(u, p.units))
        for (uint h = ITEM; h < p.n_heads; h += WG) {
            ulong at = u * p.stride + (ulong)(h / p.group) * p.group_stride + h % p.group;
            float v = FLOATS(a, p.a)[at] + vector_element(dt_bias, p.dt_bias, h);
            float soft = fmax(v, 0.0f) + log1p(exp(-fabs(v)));
            FLOATS_OUT(decay, p.decay)
            [u * p.n_heads + h] = exp(-exp(vector_element(a_log, p.a_log, h)) * soft);
            FLOATS_OUT(beta, p.beta)
            [u * p.n_heads + h] = 1.0f / (1.0f + exp(-FLOATS(b, p.b)[at]));
        }
}

// One row of a run on LANES columns of a head's state: `old` is what the row before left, or NULL.
INLINE void state_row(const ocl_attn_state_params *p, const __global float *q,
                      const __global float *k, const __global float *v, float decay, float beta,
                      const __global float *old, __global float *s, __global float *y, uint n)
{
    vec sum = 0.0f, u = vec_load_n(v, n);
    for (uint i = 0; old && p->delta && i < p->d_k; i++)
        sum = MULTIPLY_ADD(vec_load_n(old + (ulong)i * p->d_v, n) * decay, (vec)k[i], sum);
    if (p->delta)
        u = beta * (u - sum);
    sum = 0.0f;
    for (uint i = 0; i < p->d_k; i++) {
        vec was = 0.0f;
        if (old)
            was = vec_load_n(old + (ulong)i * p->d_v, n) * decay;
        was = MULTIPLY_ADD((vec)k[i], u, was);
        vec_store_n(was, s + (ulong)i * p->d_v, n);
        sum = MULTIPLY_ADD(was, (vec)q[i], sum);
    }
    vec_store_n(sum, y, n);
}

// A unit is a head of a run; an item takes LANES columns of its state at a time through all rows.
KERNEL attn_state(bytes_in q, bytes_in k, bytes_in v, bytes_in decay, bytes_in beta, bytes_out y,
                  bytes_out state, bytes_in runs, const ocl_attn_state_params p)
{
    for (GROUP_UNITS(unit, p.units)) {
        const __global uint *run = UINTS(runs, p.runs) + 4 * (unit / p.n_heads);
        uint h = (uint)(unit % p.n_heads);
        ulong head = (ulong)p.d_k * p.d_v;
        ulong key_at = (ulong)(h / p.per_k_head % p.n_k_heads) * p.k_head_stride;
        __global float *to = FLOATS_OUT(state, p.state) + ((ulong)run[3] * p.n_heads + h) * head;
        const __global float *from = NULL;
        if (run[2] != NO_STATE)
            from = FLOATS(state, p.state) + ((ulong)run[2] * p.n_heads + h) * head;
        for (uint j = ITEM * LANES; j < p.d_v; j += WG * LANES)
            for (ulong r = run[0]; r < (ulong)run[0] + run[1]; r++) {
                const __global float *old = r > run[0] ? to + j : from ? from + j : NULL;
                state_row(&p, FLOATS(q, p.q) + r * p.stride + key_at,
                          FLOATS(k, p.k) + r * p.stride + key_at,
                          FLOATS(v, p.v) + r * p.stride + (ulong)h * p.v_head_stride + j,
                          FLOATS(decay, p.decay)[r * p.decay_stride + h],
                          p.delta ? FLOATS(beta, p.beta)[r * p.n_heads + h] : 0.0f, old, to + j,
                          FLOATS_OUT(y, p.y) + (r * p.n_heads + h) * p.d_v + j, p.d_v - j);
            }
    }
}

// y = y * sigmoid(g), or y * silu(g). A unit is a head of a row.
KERNEL gate(bytes_in g, bytes_out y, const ocl_gate_params p)
{
    for (GROUP_UNITS(u, p.units)) {
        ulong r = u / p.n_heads, h = u % p.n_heads;
        const __global float *gs = FLOATS(g, p.g) + r * p.g_stride + h * p.g_head_stride;
        __global float *ys = FLOATS_OUT(y, p.y) + r * p.y_stride + h * p.y_head_stride;
        for (uint i = ITEM * LANES; i < p.width; i += WG * LANES) {
            vec e = vec_load_n(gs + i, p.width - i), f = 1.0f / (1.0f + exp(-e));
            vec_store_n(vec_load_n(ys + i, p.width - i) * (p.silu ? e * f : f), ys + i,
                        p.width - i);
        }
    }
}

// By bits, of the order of the values: NaN as -infinity, -0 as 0.
INLINE uint order_key(float v)
{
    uint u = as_uint(v == 0.0f ? 0.0f : v);
    u = is_nan(v) ? 0xff800000u : u;
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// The k cells with the largest scores, ascending, ties to the lower. A unit is a row. The k-th key is
// found byte by byte, each pass counting the keys that begin like it.
KERNEL index_select(bytes_in scores, bytes_in rows, bytes_out cells, const ocl_index_select_params p)
{
    SHARED uint counts[256];
#if WG > 1
    __local uint part[WG];
#endif
    for (GROUP_UNITS(u, p.units)) {
        const __global float *s = FLOATS(scores, p.scores) + u * p.score_stride;
        __global uint *out = UINTS_OUT(cells, p.cells) + u * p.k;
        uint first = UINTS(rows, p.rows)[4 * u + 1], n = UINTS(rows, p.rows)[4 * u + 2];
        uint least = 0, mask = 0, ties = p.k, above = 0, equal = 0;
        if (n <= p.k) {
            for (uint i = ITEM; i < n; i += WG)
                out[i] = first + i;
            continue;
        }
        for (int shift = 24; shift >= 0; shift -= 8) {
            uint byte = 255;
            SYNC();
            for (uint i = ITEM; i < 256; i += WG)
                counts[i] = 0;
            SYNC();
            for (uint i = ITEM; i < n; i += WG) {
                uint key = order_key(s[i]);
                if ((key & mask) == least) {
#if WG > 1
                    atomic_inc(&counts[key >> shift & 255u]);
#else
                    counts[key >> shift & 255u]++;
#endif
                }
            }
            SYNC();
            for (; counts[byte] < ties; byte--)
                ties -= counts[byte];
            least |= byte << shift;
            mask |= 255u << shift;
        }
        for (uint base = 0; base < n; base += WG) {
            uint i = base + ITEM, key = order_key(s[min(i, n - 1)]);
            bool is_above = i < n && key > least, is_equal = i < n && key == least;
            uint at_above = above, at_equal = equal;
#if WG > 1
            SYNC();
            part[ITEM] = is_above ? 0x10000u : is_equal ? 1u : 0u;
            SYNC();
            for (uint j = 0; j < WG; j++) {
                at_above += j < ITEM ? part[j] >> 16 : 0;
                at_equal += j < ITEM ? part[j] & 0xffffu : 0;
                above += part[j] >> 16;
                equal += part[j] & 0xffffu;
            }
#else
            above += is_above;
            equal += is_equal;
#endif
            if (is_above || (is_equal && at_equal < ties))
                out[at_above + min(at_equal, ties)] = first + i;
        }
    }
}
