/* route: scores, the groups that remain, the k best, their weights. */
#include <math.h>
#include <string.h>

#include "gpu/ref/ref_ops.h"

/* p[i], and key[i] = p[i] + bias[i] by which experts are chosen. A NaN is -infinity: as a logit
 * its p is 0, and a key that comes from one, or is one, loses against every other. */
static void row_scores(const cf_op_route *op, const float *logits, const float *bias, float *p,
                       float *key)
{
    float max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < op->n; i++)
        if (logits[i] > max)
            max = logits[i];
    for (uint32_t i = 0; i < op->n; i++) {
        if (isnan(logits[i]) || logits[i] == -INFINITY)
            p[i] = 0;
        else if (op->score == CF_SCORE_SIGMOID)
            p[i] = 1.0f / (1.0f + expf(-logits[i]));
        else
            p[i] = expf(logits[i] - max);
        sum += p[i];
    }
    for (uint32_t i = 0; i < op->n; i++) {
        if (op->score == CF_SCORE_SOFTMAX && sum > 0)
            p[i] /= sum;
        key[i] = bias ? p[i] + bias[i] : p[i];
        if (isnan(logits[i]) || isnan(key[i]))
            key[i] = -INFINITY;
    }
}

/* The k largest keys of those allowed (NULL: all), ties to the lower id; marks them in `chosen`. */
static void row_choose(const float *key, uint32_t n, uint32_t k, const bool *allowed, bool *chosen)
{
    memset(chosen, 0, n * sizeof *chosen);
    for (uint32_t j = 0; j < k; j++) {
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++)
            if (!chosen[i] && (!allowed || allowed[i]) && (best == n || key[i] > key[best]))
                best = i;
        chosen[best] = true;
    }
}

/* Marks the experts of the best groups. */
static void row_groups(const cf_op_route *op, const float *key, bool *allowed)
{
    uint32_t size = op->n / op->n_groups;
    float score[CF_ROUTE_MAX_GROUPS];
    bool chosen[CF_ROUTE_MAX_GROUPS];
    for (uint32_t g = 0; g < op->n_groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (uint32_t i = g * size; i < (g + 1) * size; i++)
            if (key[i] > first) {
                second = first;
                first = key[i];
            } else if (key[i] > second) {
                second = key[i];
            }
        score[g] = op->group_score == CF_GROUP_TOP2 ? first + second : first;
    }
    row_choose(score, op->n_groups, op->top_groups, NULL, chosen);
    for (uint32_t i = 0; i < op->n; i++)
        allowed[i] = chosen[i / size];
}

/* Sparsemixer: the choice, and p of the chosen. */
static void row_mix(const cf_op_route *op, const float *logits, float *p, float *key, bool *chosen)
{
    memset(chosen, 0, op->n * sizeof *chosen);
    for (uint32_t i = 0; i < op->n; i++)
        key[i] = isnan(logits[i]) ? -INFINITY : logits[i];
    for (uint32_t j = 0; j < op->k; j++) {
        uint32_t best = op->n;
        float sum = 0;
        for (uint32_t i = 0; i < op->n; i++)
            if (!chosen[i] && (best == op->n || key[i] > key[best]))
                best = i;
        float m = key[best];
        for (uint32_t i = 0; i < op->n; i++)
            if (!chosen[i] && key[i] > -INFINITY &&
                m - key[i] <= 2.0f * op->jitter * fmaxf(fabsf(key[i]), m))
                sum += expf(key[i] - m);
        p[best] = sum > 0 ? 1.0f / sum : 0;
        chosen[best] = true;
    }
}

/* Index: row. */
static void route_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_route *op = arg;
    float p[CF_ROUTE_MAX_EXPERTS], key[CF_ROUTE_MAX_EXPERTS];
    bool chosen[CF_ROUTE_MAX_EXPERTS], allowed[CF_ROUTE_MAX_EXPERTS], groups = op->n_groups > 1;
    for (uint64_t r = begin; r < end; r++) {
        uint32_t *ids = (uint32_t *)cf_ref_at(op->ids) + r * op->k;
        float *weights = (float *)cf_ref_at(op->weights) + r * op->k;
        const float *logits = (const float *)cf_ref_at(op->logits) + r * op->n;
        if (op->score == CF_SCORE_SPARSEMIXER) {
            row_mix(op, logits, p, key, chosen);
        } else {
            row_scores(op, logits, op->bias.buf ? cf_ref_at(op->bias) : NULL, p, key);
            if (groups)
                row_groups(op, key, allowed);
            row_choose(key, op->n, op->k, groups ? allowed : NULL, chosen);
        }
        uint32_t count = 0;
        float sum = 0;
        for (uint32_t i = 0; i < op->n; i++)
            if (chosen[i]) {
                ids[count++] = i;
                sum += p[i];
            }
        float factor = op->renormalise ? (sum > 0 ? op->scale / sum : 0) : op->scale;
        for (uint32_t j = 0; j < op->k; j++)
            weights[j] = p[ids[j]] * factor;
        memcpy((uint32_t *)cf_ref_at(op->host_ids) + r * op->k, ids, op->k * sizeof *ids);
        memcpy((float *)cf_ref_at(op->host_weights) + r * op->k, weights, op->k * sizeof *weights);
    }
}

void cf_ref_route(cf_threads *pool, const cf_op_route *op)
{
    cf_op_route copy = *op;
    cf_threads_run(pool, op->n_rows, 1, route_part, &copy);
}
