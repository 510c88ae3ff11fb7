/* Routers, experts and their activations: gpu/ops.h in double precision. */
#include "tests/support/op_define_parts.h"

/* act(g) * u of sums that are off by roundings of their terms. No activation is steeper than 1.2;
 * far left of 0 a device may flush to it. */
static struct sum activated(const cf_act_params *p, struct sum g, struct sum u)
{
    double a = g.value, room = 0, limit = (double)p->limit;
    switch (p->act) {
    case CF_ACT_SILU:
        a = a / (1 + exp(-a));
        break;
    case CF_ACT_GELU_TANH: /* 1 + tanh(..) cancels left of 0 */
        room = 0.1 * fabs(a);
        a = 0.5 * a * (1 + tanh(sqrt(2 / acos(-1)) * (a + 0.044715 * a * a * a)));
        break;
    case CF_ACT_RELU:
        a = fmax(a, 0);
        break;
    case CF_ACT_SWIGLU_CLAMPED:
        a = fmin(a, limit);
        a = a / (1 + exp(-(double)p->alpha * a));
        u.value = fmax(-limit, fmin(limit, u.value)) + 1;
        u.mag += 1;
    }
    struct sum s = {a * u.value, 0};
    s.mag = (room + 1.2 * g.mag) * fabs(u.value) + fabs(a) * u.mag + 1e-25;
    return s;
}

void define_glu(const op_case *c, op_expect *e)
{
    const cf_op_glu *op = &c->op.glu;
    const float *g = def_floats(c, &op->g), *u = def_floats(c, &op->u);
    e->tolerance = TOLERANCE_EXP;
    for (uint64_t i = 0; i < op->n; i++) {
        double vg = (double)g[i], vu = u ? (double)u[i] : 1;
        struct sum s = activated(&op->act, (struct sum){vg, 0}, (struct sum){vu, fabs(vu)});
        def_put(e, c, &op->y, i, s.value, s.mag);
    }
}

/* p and the key of one row. */
static void define_scores(const cf_op_route *op, const float *logits, const float *bias, double *p,
                          double *key)
{
    double total = 0;
    for (uint32_t i = 0; i < op->n; i++) {
        double v = (double)logits[i];
        p[i] = isnan(v) ? 0 : op->score == CF_SCORE_SIGMOID ? 1 / (1 + exp(-v)) : exp(v);
        total += p[i];
    }
    for (uint32_t i = 0; i < op->n; i++) {
        if (op->score == CF_SCORE_SOFTMAX && total > 0)
            p[i] /= total;
        key[i] = isnan(logits[i]) ? -INFINITY : p[i] + (bias ? (double)bias[i] : 0);
    }
}

/* i is chosen when fewer than k are ahead of it; a difference that rounding may undo is a mistake.
 */
static uint32_t ahead_of(const double *key, uint32_t n, uint32_t i, bool *ambiguous)
{
    uint32_t ahead = 0;
    for (uint32_t j = 0; j < n; j++) {
        ahead += key[j] > key[i] || (j < i && key[j] >= key[i]);
        *ambiguous |= key[j] != key[i] && fabs(key[j] - key[i]) < 1e-6 * fabs(key[i]);
    }
    return ahead;
}

/* Leaves the experts of the best groups, in order, and their keys; returns how many. */
static uint32_t define_groups(const cf_op_route *op, double *key, uint32_t *id, bool *ambiguous)
{
    uint32_t groups = op->n_groups > 1 ? op->n_groups : 1, size = op->n / groups, left = 0;
    double score[CF_ROUTE_MAX_GROUPS];
    for (uint32_t g = 0; g < groups; g++) {
        const double *k = key + g * size;
        score[g] = -INFINITY;
        for (uint32_t i = 0; i < size; i++)
            if (op->group_score == CF_GROUP_MAX)
                score[g] = fmax(score[g], k[i]);
            else
                for (uint32_t j = 0; j < i; j++)
                    score[g] = fmax(score[g], k[i] + k[j]);
    }
    for (uint32_t g = 0; g < groups; g++)
        if (groups == 1 || ahead_of(score, groups, g, ambiguous) < op->top_groups)
            for (uint32_t i = g * size; i < (g + 1) * size; i++) {
                id[left] = i;
                key[left++] = key[i];
            }
    return left;
}

/* Sparsemixer: p of those that are chosen, and the keys by which they are. */
static void define_mix(const cf_op_route *op, const float *logits, double *p, double *key,
                       bool *ambiguous)
{
    for (uint32_t i = 0; i < op->n; i++)
        key[i] = isnan(logits[i]) ? -INFINITY : (double)logits[i];
    for (uint32_t i = 0; i < op->n; i++) {
        double sum = 0, m = key[i];
        for (uint32_t j = 0; j < op->n && m > -INFINITY; j++) {
            bool left = key[j] < m || (j >= i && key[j] <= m);
            double far = m - key[j] - 2 * (double)op->jitter * fmax(fabs(key[j]), m);
            *ambiguous |= left && key[j] < m && fabs(far) < 1e-6;
            sum += left && far <= 0 ? exp(key[j] - m) : 0;
        }
        p[i] = sum > 0 ? 1 / sum : 0;
    }
}

void define_route(const op_case *c, op_expect *e)
{
    const cf_op_route *op = &c->op.route;
    const float *bias = def_floats(c, &op->bias);
    static double p[CF_ROUTE_MAX_EXPERTS], key[CF_ROUTE_MAX_EXPERTS];
    static uint32_t id[CF_ROUTE_MAX_EXPERTS];
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++) {
        const float *logits = def_floats(c, &op->logits) + (uint64_t)r * op->n;
        if (op->score == CF_SCORE_SPARSEMIXER)
            define_mix(op, logits, p, key, &e->ambiguous);
        else
            define_scores(op, logits, bias, p, key);
        uint32_t rank[CF_ROUTE_MAX_K], chosen = 0, left = define_groups(op, key, id, &e->ambiguous);
        double total = 0;
        for (uint32_t i = 0; i < left; i++)
            if (ahead_of(key, left, i, &e->ambiguous) < op->k) {
                rank[chosen++] = id[i];
                total += p[id[i]];
            }
        for (uint32_t j = 0; j < op->k; j++) {
            uint64_t at = (uint64_t)r * op->k + j;
            double v = p[rank[j]] * (double)op->scale;
            if (op->renormalise)
                v = total > 0 ? v / total : 0;
            def_put(e, c, &op->ids, at, rank[j], 0);
            def_put(e, c, &op->host_ids, at, rank[j], 0);
            def_put(e, c, &op->weights, at, v, fabs(v));
            def_put(e, c, &op->host_weights, at, v, fabs(v));
        }
    }
}

/* weight * sum + bias */
static struct sum weighed(struct sum s, double weight, double bias)
{
    return (struct sum){weight * s.value + bias, fabs(weight) * s.mag + fabs(bias)};
}

void define_expert_glu(const op_case *c, op_expect *e)
{
    const cf_op_expert_glu *op = &c->op.expert_glu;
    const uint32_t *pairs = def_uints(c, &op->pairs);
    const float *weights = def_floats(c, &op->weights);
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t i = 0; i < op->n_experts; i++) {
        const cf_expert_work *w = &c->experts[i];
        struct matrix gate = def_matrix(c, &w->gate), gate_bias = def_matrix(c, &w->gate_bias);
        struct matrix up = def_matrix(c, &w->up), up_bias = def_matrix(c, &w->up_bias);
        for (uint32_t p = w->pair_begin; p < w->pair_begin + w->pair_count; p++) {
            float *x =
                def_activations(def_floats(c, &op->x) + (uint64_t)(pairs[p] / op->k) * op->hidden,
                                op->hidden, op->x_q8);
            for (uint32_t j = 0; j < op->ffn; j++) {
                double weight = weights ? (double)weights[pairs[p]] : 1;
                struct sum u = {1, 1}, g = weighed(def_matrix_dot(&gate, j, x), weight,
                                                   def_vector_at(&gate_bias, j, 0));
                if (up.values)
                    u = weighed(def_matrix_dot(&up, j, x), weight, def_vector_at(&up_bias, j, 0));
                struct sum s = activated(&op->act, g, u);
                def_put(e, c, &op->h, (uint64_t)p * op->ffn + j, s.value, s.mag);
            }
            free(x);
        }
        free(gate.values);
        free(gate_bias.values);
        free(up.values);
        free(up_bias.values);
    }
}

void define_expert_down(const op_case *c, op_expect *e)
{
    const cf_op_expert_down *op = &c->op.expert_down;
    const uint32_t *pairs = def_uints(c, &op->pairs);
    const float *weights = def_floats(c, &op->weights), *h = def_floats(c, &op->h);
    for (uint32_t i = 0; i < op->n_experts; i++) {
        const cf_expert_work *w = &c->experts[i];
        struct matrix down = def_matrix(c, &w->down), bias = def_matrix(c, &w->down_bias);
        for (uint32_t p = w->pair_begin; p < w->pair_begin + w->pair_count; p++) {
            float *x = def_activations(h + (uint64_t)p * op->ffn, op->ffn, op->x_q8);
            for (uint32_t o = 0; o < op->hidden; o++) {
                struct sum s = weighed(def_matrix_dot(&down, o, x), 1, def_vector_at(&bias, o, 0));
                double weight = weights ? (double)weights[pairs[p]] : 1;
                s = weighed(s, weight, 0);
                def_put(e, c, &op->out, (uint64_t)pairs[p] * op->hidden + o, s.value, s.mag);
            }
            free(x);
        }
        free(down.values);
        free(bias.values);
    }
}

void define_combine(const op_case *c, op_expect *e)
{
    const cf_op_combine *op = &c->op.combine;
    const uint32_t *ids = def_uints(c, &op->ids);
    const float *out = def_floats(c, &op->out), *weights = def_floats(c, &op->weights);
    const float *x = def_floats(c, &op->x);
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t i = 0; i < op->hidden; i++) {
            struct sum s = {0, 0};
            for (uint32_t j = 0; j < op->k; j++) {
                uint64_t pair = (uint64_t)r * op->k + j;
                double v = ids[pair] < op->n_routed
                               ? (double)out[pair * op->hidden + i]
                               : (double)weights[pair] * (double)x[(uint64_t)r * op->hidden + i];
                s.value += v;
                s.mag += fabs(v);
            }
            def_put(e, c, &op->y, (uint64_t)r * op->hidden + i, s.value, s.mag);
        }
}
