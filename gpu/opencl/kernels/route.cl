// The k largest of p + bias per row, of the best groups, ids ascending, ties to the lower id;
// weights from p. A unit is a row. Every item of a group holds the same view of what was chosen so
// far.
#define ROUTE_MAX_EXPERTS 4096
#define ROUTE_MAX_K       64
#define ROUTE_MAX_GROUPS  64

// p of one logit before the division by the sum of a softmax.
INLINE float route_score(float logit, float most, uint sigmoid)
{
    if (is_nan(logit) || logit == -INFINITY)
        return 0.0f;
    return sigmoid ? 1.0f / (1.0f + exp(-logit)) : exp(logit - most);
}

// Marks as chosen (NaN) the keys of all but the best groups: of those whose largest key, or sum of
// the two largest, is largest; ties to the lower. All items are at the same point before and after.
INLINE void route_groups(const ocl_route_params *p, SHARED float *key, SHARED float *score)
{
    uint size = p->n / p->n_groups;
    for (uint g = ITEM; g < p->n_groups; g += WG) {
        float first = -INFINITY, second = -INFINITY;
        for (uint i = g * size; i < (g + 1) * size; i++)
            if (key[i] > first) {
                second = first;
                first = key[i];
            } else if (key[i] > second) {
                second = key[i];
            }
        score[g] = p->top_two ? first + second : first;
    }
    SYNC();
    ulong kept = 0;
    for (uint j = 0; j < p->top_groups; j++) {
        uint best = p->n_groups;
        for (uint g = 0; g < p->n_groups; g++)
            if (!(kept >> g & 1) && (best == p->n_groups || score[g] > score[best]))
                best = g;
        kept |= 1ul << best;
    }
    for (uint i = ITEM; i < p->n; i += WG)
        if (!(kept >> (i / size) & 1))
            key[i] = NAN;
    SYNC();
}

// Sparsemixer: p of the logit m, the largest of those left (a NaN marks what is chosen).
INLINE float route_mix(const ocl_route_params *p, SHARED const float *key, float m)
{
    float sum = 0.0f;
    if (m == -INFINITY)
        return 0.0f;
    for (uint i = 0; i < p->n; i++)
        if (!is_nan(key[i]) && key[i] != -INFINITY &&
            m - key[i] <= p->tolerance * fmax(fabs(key[i]), m))
            sum += exp(key[i] - m);
    return 1.0f / sum;
}

KERNEL route(bytes_in logits, bytes_in bias, bytes_out ids, bytes_out weights, bytes_out host_ids,
             bytes_out host_weights, const ocl_route_params p)
{
    SHARED float key[ROUTE_MAX_EXPERTS];
    SHARED float score[ROUTE_MAX_GROUPS];
#if WG > 1
    __local float part[WG];
    __local uint part_id[WG];
#endif
    for (GROUP_UNITS(u, p.units)) {
        const __global float *logit = FLOATS(logits, p.logits) + u * p.n;
        float most = -INFINITY, sum = 0.0f;
        for (uint i = ITEM; i < p.n; i += WG)
            if (logit[i] > most)
                most = logit[i];
#if WG > 1
        part[ITEM] = most;
        SYNC();
        for (uint i = 0; i < WG; i++)
            most = part[i] > most ? part[i] : most;
        SYNC();
#endif
        for (uint i = ITEM; i < p.n; i += WG) {
            key[i] = route_score(logit[i], most, p.sigmoid);
            sum += key[i];
        }
#if WG > 1
        part[ITEM] = sum;
        SYNC();
        sum = 0.0f;
        for (uint i = 0; i < WG; i++)
            sum += part[i];
#endif
        float divisor = !p.sigmoid && sum > 0.0f ? sum : 1.0f;
        for (uint i = ITEM; i < p.n; i += WG) {
            float v = key[i] / divisor;
            if (p.has_bias)
                v += FLOATS(bias, p.bias)[i];
            if (p.mixer)
                v = logit[i];
            key[i] = is_nan(logit[i]) || is_nan(v) ? -INFINITY : v;
        }
        SYNC();
        if (p.n_groups > 1)
            route_groups(&p, key, score);
        uint chosen[ROUTE_MAX_K];
        float mixed[ROUTE_MAX_K];
        for (uint j = 0; j < p.k; j++) {
            // The best of what is not chosen (a NaN marks what is), the lower id among equals.
            uint best = p.n;
            for (uint i = ITEM; i < p.n; i += WG)
                if (!is_nan(key[i]) && (best == p.n || key[i] > key[best]))
                    best = i;
#if WG > 1
            part_id[ITEM] = best;
            SYNC();
            for (uint i = 0; i < WG; i++) {
                uint other = part_id[i];
                if (other < p.n && (best == p.n || key[other] > key[best] ||
                                    (key[other] == key[best] && other < best)))
                    best = other;
            }
            SYNC();
            float share = p.mixer ? route_mix(&p, key, key[best]) : 0.0f;
            SYNC();
            if (ITEM == 0)
                key[best] = NAN;
            SYNC();
#else
            float share = p.mixer ? route_mix(&p, key, key[best]) : 0.0f;
            key[best] = NAN;
#endif
            uint at = j;
            for (; at > 0 && chosen[at - 1] > best; at--) {
                chosen[at] = chosen[at - 1];
                mixed[at] = mixed[at - 1];
            }
            chosen[at] = best;
            mixed[at] = share;
        }
        float total = 0.0f;
        for (uint j = 0; j < p.k; j++)
            total += route_score(logit[chosen[j]], most, p.sigmoid) / divisor;
        float factor = p.renormalise ? (total > 0.0f ? p.scale / total : 0.0f) : p.scale;
        for (uint j = ITEM; j < p.k; j += WG) {
            uint id = chosen[j];
            float score = route_score(logit[id], most, p.sigmoid) / divisor;
            float weight = (p.mixer ? mixed[j] : score) * factor;
            ulong at = u * p.k + j;
            UINTS_OUT(ids, p.ids)[at] = id;
            UINTS_OUT(host_ids, p.host_ids)[at] = id;
            FLOATS_OUT(weights, p.weights)[at] = weight;
            FLOATS_OUT(host_weights, p.host_weights)[at] = weight;
        }
        SYNC();
    }
}
