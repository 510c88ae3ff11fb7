#version 460
// Chooses k of N experts, one row per work-group. Scores become integers of the same order, with
// 0 for "taken", as all experts of the groups that lose are from the start; the largest is found k times, by a tree over shared memory in which the lower id
// wins a tie; then the chosen are written in ascending order of id. What is not finite is decided
// by bits: a driver may assume that no such value occurs.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const uint N = 64;
layout(constant_id = 2) const bool SIGMOID = false;
layout(constant_id = 3) const bool SPARSEMIXER = false;
#include "common.glsl"
#include "reduce.glsl"
#include "order.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t logits, bias, ids, weights, host_ids, host_weights;
    uint n_rows, k, renormalise, n_groups, top_groups, top_two;
    float scale, tolerance;
} p;

const uint MAX_K = 64, MAX_GROUPS = 64;
shared uint key[N];
shared uint group_key[MAX_GROUPS];
shared uint best_key[WG];
shared uint best_id[WG];
shared uint chosen[MAX_K];
shared float mixed[MAX_K]; // SPARSEMIXER: p of each

// Marks the experts of all but the best groups as taken. All of `key` is written, by invocations
// that then meet in a barrier here.
void drop_groups()
{
    uint size = N / p.n_groups;
    barrier();
    for (uint g = gl_LocalInvocationID.x; g < p.n_groups; g += WG) {
        uint first = 0, second = 0;
        for (uint i = g * size; i < (g + 1) * size; i++) {
            second = max(second, min(first, key[i]));
            first = max(first, key[i]);
        }
        if (p.top_two != 0)
            first = second > ORDER_LEAST ? order_key(order_value(first) + order_value(second))
                                         : ORDER_LEAST;
        group_key[g] = first;
    }
    barrier();
    for (uint g = gl_LocalInvocationID.x; g < p.n_groups; g += WG) {
        uint better = 0;
        for (uint i = 0; i < p.n_groups; i++)
            better += group_key[i] > group_key[g] || (group_key[i] == group_key[g] && i < g) ? 1 : 0;
        for (uint i = g * size; i < (g + 1) * size && better >= p.top_groups; i++)
            key[i] = 0;
    }
}

float top, total;

// Before the division by the total. NaN and -infinity are left out.
float share(float logit)
{
    if (is_nan(logit) || floatBitsToUint(logit) == MINUS_INFINITY)
        return 0.0;
    return SIGMOID ? 1.0 / (1.0 + exp(-logit)) : exp(logit - top);
}

float probability(float logit)
{
    float p = share(logit);
    return !SIGMOID && total > 0.0 ? p / total : p;
}

// Sparsemixer: p of the logit of key `best`, the largest of those left.
float mix(uint best)
{
    float m = order_value(best), sum = 0.0;
    for (uint i = gl_LocalInvocationID.x; i < N; i += WG) {
        float v = order_value(key[i]);
        if (key[i] > ORDER_LEAST && m - v <= p.tolerance * max(abs(v), m))
            sum += exp(v - m);
    }
    sum = group_sum(sum);
    return best > ORDER_LEAST ? 1.0 / sum : 0.0;
}

void main()
{
    uint lid = gl_LocalInvocationID.x;
    uint r = group_index();
    if (r >= p.n_rows)
        return;
    F32s logits = F32s(p.logits + uint64_t(r) * N * 4ul);
    if (!SIGMOID && !SPARSEMIXER) {
        float m = uintBitsToFloat(MINUS_INFINITY);
        for (uint i = lid; i < N; i += WG)
            m = !is_nan(logits.v[i]) && logits.v[i] > m ? logits.v[i] : m;
        top = group_max(m);
        float sum = 0.0;
        for (uint i = lid; i < N; i += WG)
            sum += share(logits.v[i]);
        total = group_sum(sum);
    }
    for (uint i = lid; i < N; i += WG) {
        float v = SPARSEMIXER ? logits.v[i] : probability(logits.v[i]);
        if (p.bias != 0ul)
            v += F32s(p.bias).v[i];
        key[i] = order_key(is_nan(logits.v[i]) ? uintBitsToFloat(MINUS_INFINITY) : v);
    }
    if (p.n_groups > 1)
        drop_groups();
    for (uint n = 0; n < p.k; n++) {
        barrier();
        uint top_key = 0, top_id = 0;
        for (uint i = lid; i < N; i += WG)
            if (key[i] > top_key) {
                top_key = key[i];
                top_id = i;
            }
        best_key[lid] = top_key;
        best_id[lid] = top_id;
        for (uint half_wg = WG / 2; half_wg > 0; half_wg /= 2) {
            barrier();
            uint a = best_key[lid], b = lid < half_wg ? best_key[lid + half_wg] : 0;
            if (lid < half_wg && (b > a || (b == a && best_id[lid + half_wg] < best_id[lid]))) {
                best_key[lid] = b;
                best_id[lid] = best_id[lid + half_wg];
            }
        }
        barrier();
        float share_of_best = SPARSEMIXER ? mix(best_key[0]) : 0.0;
        if (lid == 0) {
            mixed[n] = share_of_best;
            chosen[n] = best_id[0];
            key[best_id[0]] = 0;
        }
    }
    barrier();
    float factor = p.scale;
    if (p.renormalise != 0) {
        float sum = 0.0;
        for (uint j = 0; j < p.k; j++)
            sum += probability(logits.v[chosen[j]]);
        factor = sum > 0.0 ? p.scale / sum : 0.0;
    }
    for (uint j = lid; j < p.k; j += WG) {
        uint id = chosen[j], rank = 0;
        for (uint i = 0; i < p.k; i++)
            rank += chosen[i] < id ? 1 : 0;
        float w = (SPARSEMIXER ? mixed[j] : probability(logits.v[id])) * factor;
        uint64_t at = (uint64_t(r) * p.k + rank) * 4ul;
        U32s(p.ids + at).v[0] = id;
        F32s(p.weights + at).v[0] = w;
        U32s(p.host_ids + at).v[0] = id;
        F32s(p.host_weights + at).v[0] = w;
    }
}
