/* Cases of the routed experts: route, expert_glu, expert_down and combine. */
#include <stdio.h>
#include <string.h>

#include "runtime/base/f16.h"
#include "tests/support/op_build.h"

typedef enum { LOGITS_SPREAD, LOGITS_TIES, LOGITS_NAN, LOGITS_ALL_NAN } logits_kind;

struct route_size {
    uint32_t n, k;
    cf_score score;
    bool bias, renormalise;
    logits_kind logits;
    uint32_t n_groups, top_groups;
    cf_group_score group_score;
    float jitter;
};
static const struct route_size route_sizes[] = {
    {1, 1, CF_SCORE_SOFTMAX, false, false, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0},
    {7, 7, CF_SCORE_SOFTMAX, false, true, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0},
    {33, 2, CF_SCORE_SIGMOID, false, true, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0},
    {72, 8, CF_SCORE_SOFTMAX, true, false, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0},
    {203, 12, CF_SCORE_SIGMOID, true, true, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0},
    {768, 12, CF_SCORE_SOFTMAX, true, false, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0},
    {1000, 12, CF_SCORE_SOFTMAX, false, true, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0},
    {4096, 64, CF_SCORE_SIGMOID, false, false, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0},
    {33, 12, CF_SCORE_SOFTMAX, false, false, LOGITS_TIES, 0, 0, CF_GROUP_MAX, 0},
    {203, 8, CF_SCORE_SIGMOID, true, true, LOGITS_TIES, 0, 0, CF_GROUP_MAX, 0},
    {72, 12, CF_SCORE_SOFTMAX, false, true, LOGITS_NAN, 0, 0, CF_GROUP_MAX, 0},
    {16, 12, CF_SCORE_SIGMOID, true, false, LOGITS_NAN, 0, 0, CF_GROUP_MAX, 0},
    {33, 5, CF_SCORE_SOFTMAX, false, true, LOGITS_ALL_NAN, 0, 0, CF_GROUP_MAX, 0},
    {160, 6, CF_SCORE_SOFTMAX, false, false, LOGITS_SPREAD, 8, 3, CF_GROUP_MAX, 0},
    {64, 8, CF_SCORE_SIGMOID, true, true, LOGITS_SPREAD, 8, 4, CF_GROUP_TOP2, 0},
    {256, 8, CF_SCORE_SIGMOID, false, true, LOGITS_SPREAD, 64, 20, CF_GROUP_TOP2, 0},
    {4096, 64, CF_SCORE_SOFTMAX, false, false, LOGITS_SPREAD, 64, 1, CF_GROUP_MAX, 0},
    {7, 3, CF_SCORE_SIGMOID, false, false, LOGITS_SPREAD, 7, 3, CF_GROUP_MAX, 0},
    {203, 12, CF_SCORE_SOFTMAX, false, true, LOGITS_SPREAD, 1, 1, CF_GROUP_MAX, 0},
    {33, 5, CF_SCORE_SOFTMAX, false, true, LOGITS_TIES, 11, 4, CF_GROUP_MAX, 0},
    {72, 6, CF_SCORE_SIGMOID, false, true, LOGITS_TIES, 18, 5, CF_GROUP_TOP2, 0},
    {64, 30, CF_SCORE_SIGMOID, true, true, LOGITS_NAN, 8, 4, CF_GROUP_TOP2, 0},
    {33, 3, CF_SCORE_SOFTMAX, false, true, LOGITS_ALL_NAN, 3, 1, CF_GROUP_MAX, 0},
    {16, 2, CF_SCORE_SPARSEMIXER, false, false, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0.137f},
    {203, 5, CF_SCORE_SPARSEMIXER, false, false, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0.0137f},
    {33, 33, CF_SCORE_SPARSEMIXER, false, false, LOGITS_SPREAD, 0, 0, CF_GROUP_MAX, 0.313f},
    {72, 7, CF_SCORE_SPARSEMIXER, false, false, LOGITS_TIES, 0, 0, CF_GROUP_MAX, 0.137f},
    {16, 12, CF_SCORE_SPARSEMIXER, false, false, LOGITS_NAN, 0, 0, CF_GROUP_MAX, 0.217f},
    {33, 4, CF_SCORE_SPARSEMIXER, false, false, LOGITS_ALL_NAN, 0, 0, CF_GROUP_MAX, 0.137f},
};
const int op_route_count = (int)(sizeof route_sizes / sizeof route_sizes[0]) * OP_ROW_COUNTS;

/* Evenly spaced and shuffled, so that no two differ by a rounding only: ids must agree. */
static void logits_fill(cf_rng *rng, float *logits, uint32_t n, logits_kind kind)
{
    for (uint32_t i = 0; i < n; i++)
        logits[i] = 6.0f * ((float)i / (float)n) - 3.0f;
    for (uint32_t i = n; i-- > 1;) {
        uint32_t j = (uint32_t)cf_rng_below(rng, i + 1);
        float v = logits[i];
        logits[i] = logits[j];
        logits[j] = v;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (kind == LOGITS_TIES)
            logits[i] = (float)cf_rng_below(rng, 3);
        else if (kind == LOGITS_ALL_NAN || (kind == LOGITS_NAN && i % 2))
            logits[i] = cf_f32_from_bits(0x7fc00000u);
    }
}

void op_build_route(op_case *c, int i)
{
    const struct route_size *s = &route_sizes[i / OP_ROW_COUNTS];
    cf_op_route *op = &c->op.route;
    op->n_rows = op_row_counts[i % OP_ROW_COUNTS];
    op->n = s->n;
    op->k = s->k;
    op->score = s->score;
    op->n_groups = s->n_groups;
    op->top_groups = s->top_groups;
    op->group_score = s->group_score;
    op->renormalise = s->renormalise;
    op->scale = 1.5f;
    op->jitter = s->jitter;
    float *logits = op_rows_add(c, &op->logits, op->n_rows, s->n, s->n);
    for (uint32_t r = 0; r < op->n_rows; r++)
        logits_fill(&c->rng, logits + (uint64_t)r * s->n, s->n, s->logits);
    if (s->bias) { /* coarse steps: p + bias stays apart unless the logits tie */
        float *bias = op_rows_add(c, &op->bias, 1, s->n, s->n);
        for (uint32_t j = 0; j < s->n; j++)
            bias[j] = (float)cf_rng_below(&c->rng, 4) * 0.03125f;
    }
    op_out_add(c, &op->ids, (uint64_t)op->n_rows * s->k, OP_U32, OP_OUT);
    op_out_add(c, &op->weights, (uint64_t)op->n_rows * s->k, OP_F32, OP_OUT);
    op_out_add(c, &op->host_ids, (uint64_t)op->n_rows * s->k, OP_U32, OP_OUT_READBACK);
    op_out_add(c, &op->host_weights, (uint64_t)op->n_rows * s->k, OP_F32, OP_OUT_READBACK);
    static const char *const scores[] = {"softmax", "sigmoid", "sparsemixer"};
    static const char *const kinds[] = {"", " ties", " NaN", " all NaN"};
    snprintf(c->name, sizeof c->name, "route %s n %u k %u groups %u of %u by %s rows %u%s%s%s",
             scores[s->score], s->n, s->k, s->top_groups,
             s->n_groups, s->group_score == CF_GROUP_MAX ? "max" : "top2", op->n_rows,
             s->bias ? " bias" : "", s->renormalise ? " renormalise" : "", kinds[s->logits]);
}

/* Layouts of gate, up, down and of their biases. */
enum { GATE, UP, DOWN, GATE_BIAS, UP_BIAS, DOWN_BIAS, PIECES };
typedef enum {
    BARE,
    PAIRED,
    FUSED,
    WOVEN,
    MIXED,
    UNGATED,
    UNGATED_TRANSPOSED,
    HALF_BIASED
} expert_form;
static const op_layout expert_forms[][PIECES] = {
    [BARE] = {OP_LAY_PLAIN, OP_LAY_PLAIN, OP_LAY_PLAIN, OP_LAY_NONE, OP_LAY_NONE, OP_LAY_NONE},
    /* gate and up interleaved, and so are their biases */
    [PAIRED] = {OP_LAY_EVEN, OP_LAY_ODD, OP_LAY_PLAIN, OP_LAY_EVEN, OP_LAY_ODD, OP_LAY_PLAIN},
    /* side by side in transposed matrices */
    [FUSED] = {OP_LAY_TRANSPOSED, OP_LAY_TRANSPOSED_PART, OP_LAY_TRANSPOSED, OP_LAY_NONE,
               OP_LAY_NONE, OP_LAY_NONE},
    /* interleaved in transposed matrices */
    [WOVEN] = {OP_LAY_TRANSPOSED_EVEN, OP_LAY_TRANSPOSED_ODD, OP_LAY_TRANSPOSED_ODD, OP_LAY_EVEN,
               OP_LAY_ODD, OP_LAY_PLAIN},
    [MIXED] = {OP_LAY_LATER, OP_LAY_TRANSPOSED, OP_LAY_TRANSPOSED_PART, OP_LAY_PLAIN, OP_LAY_PLAIN,
               OP_LAY_LATER},
    [UNGATED] = {OP_LAY_PLAIN, OP_LAY_NONE, OP_LAY_ODD, OP_LAY_PLAIN, OP_LAY_NONE, OP_LAY_ODD},
    [UNGATED_TRANSPOSED] = {OP_LAY_TRANSPOSED_PART, OP_LAY_NONE, OP_LAY_EVEN, OP_LAY_NONE,
                            OP_LAY_NONE, OP_LAY_TRANSPOSED_PART},
    [HALF_BIASED] = {OP_LAY_PLAIN, OP_LAY_PLAIN, OP_LAY_PLAIN, OP_LAY_NONE, OP_LAY_PLAIN,
                     OP_LAY_EVEN},
};

struct expert_size {
    uint32_t n_experts, k, hidden, ffn;
    cf_format gate, up, down, bias;
    expert_form form;
    cf_act act;
    bool on_input; /* the router's weights are applied to the experts' inputs */
};
static const struct expert_size expert_sizes[] = {
    {1, 1, 1, 1, CF_F32, CF_F32, CF_F32, CF_F32, BARE, CF_ACT_SILU, false},
    {1, 1, 33, 7, CF_F16, CF_F16, CF_F16, CF_F32, BARE, CF_ACT_SILU, false},
    {3, 2, 72, 203, CF_BF16, CF_BF16, CF_BF16, CF_F32, BARE, CF_ACT_SILU, false},
    {8, 12, 64, 33, CF_F32, CF_F32, CF_F32, CF_F32, BARE, CF_ACT_SILU, true},
    {8, 12, 203, 130, CF_BF16, CF_BF16, CF_F16, CF_F32, BARE, CF_ACT_SILU, false},
    {5, 3, 1000, 72, CF_F16, CF_F16, CF_F32, CF_F32, BARE, CF_ACT_SILU, false},
    {4, 4, 72, 33, CF_BF16, CF_BF16, CF_BF16, CF_BF16, PAIRED, CF_ACT_SWIGLU_CLAMPED, false},
    {3, 2, 203, 16, CF_F32, CF_F32, CF_F32, CF_F32, PAIRED, CF_ACT_SWIGLU_CLAMPED, false},
    {4, 1, 64, 40, CF_F16, CF_F16, CF_F16, CF_F32, FUSED, CF_ACT_SILU, true},
    {3, 3, 300, 21, CF_BF16, CF_BF16, CF_BF16, CF_F32, FUSED, CF_ACT_SILU, false},
    {4, 3, 300, 24, CF_BF16, CF_BF16, CF_BF16, CF_BF16, WOVEN, CF_ACT_SWIGLU_CLAMPED, false},
    {2, 2, 72, 33, CF_F16, CF_F16, CF_F32, CF_F32, WOVEN, CF_ACT_SILU, true},
    {3, 2, 203, 17, CF_F32, CF_BF16, CF_F32, CF_F16, MIXED, CF_ACT_GELU_TANH, true},
    {8, 5, 33, 65, CF_F32, CF_F32, CF_BF16, CF_F32, UNGATED, CF_ACT_RELU, false},
    {2, 2, 300, 7, CF_BF16, CF_BF16, CF_F16, CF_BF16, UNGATED_TRANSPOSED, CF_ACT_GELU_TANH, true},
    {3, 3, 31, 29, CF_F16, CF_F32, CF_F16, CF_F16, HALF_BIASED, CF_ACT_RELU, false},
};
const int op_expert_count = (int)(sizeof expert_sizes / sizeof expert_sizes[0]) * OP_ROW_COUNTS;

uint32_t op_pairs_deal(op_case *c, uint32_t n_pairs, uint32_t n, uint32_t *pairs)
{
    uint32_t owner[17 * 12], used = 0, listed = 0;
    cf_assert(n_pairs <= sizeof owner / sizeof owner[0]);
    for (uint32_t p = 0; p < n_pairs; p++)
        owner[p] = p ? (uint32_t)cf_rng_below(&c->rng, n + 1) : 0;
    for (uint32_t e = n + 1; e-- > 0;) {
        uint32_t begin = used;
        for (uint32_t p = n_pairs; p-- > 0;)
            if (owner[p] == e)
                pairs[used++] = p;
        if (e < n && used > begin) {
            c->experts[listed].pair_begin = begin;
            c->experts[listed++].pair_count = used - begin;
        }
    }
    return listed;
}

void op_build_expert_glu(op_case *c, int i)
{
    const struct expert_size *s = &expert_sizes[i / OP_ROW_COUNTS];
    const op_layout *form = expert_forms[s->form];
    cf_op_expert_glu *op = &c->op.expert_glu;
    op->n_rows = op_row_counts[i % OP_ROW_COUNTS];
    op->k = s->k;
    op->hidden = s->hidden;
    op->ffn = s->ffn;
    op->act = (cf_act_params){s->act, 1.5f, 1.702f};
    uint32_t n_pairs = op->n_rows * s->k;
    op_rows_add(c, &op->x, op->n_rows, s->hidden, s->hidden);
    uint32_t *pairs = (uint32_t *)(void *)op_array_add(c, &op->pairs, n_pairs * 4, 4, OP_IN);
    op->n_experts = op_pairs_deal(c, n_pairs, s->n_experts, pairs);
    for (uint32_t e = 0; e < op->n_experts; e++) {
        cf_expert_work *w = &c->experts[e];
        op_weight_add_as(c, &w->gate, s->gate, s->ffn, s->hidden, form[GATE]);
        if (form[UP] != OP_LAY_NONE)
            op_weight_add_as(c, &w->up, s->up, s->ffn, s->hidden, form[UP]);
        op_vector_add(c, &w->gate_bias, s->bias, s->ffn, form[GATE_BIAS]);
        op_vector_add(c, &w->up_bias, s->bias, s->ffn, form[UP_BIAS]);
    }
    if (s->on_input)
        op_rows_add(c, &op->weights, 1, n_pairs, n_pairs);
    op_out_add(c, &op->h, (uint64_t)n_pairs * s->ffn, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "expert_glu %s %s%s and%s experts %u k %u %u->%u%s rows %u",
             op_act_names[s->act], cf_format_name(s->gate), op_layout_names[form[GATE]],
             op_layout_names[form[UP]], op->n_experts, s->k, s->hidden, s->ffn,
             s->on_input ? " weighted" : "", op->n_rows);
}

void op_build_expert_down(op_case *c, int i)
{
    const struct expert_size *s = &expert_sizes[i / OP_ROW_COUNTS];
    const op_layout *form = expert_forms[s->form];
    cf_op_expert_down *op = &c->op.expert_down;
    op->n_rows = op_row_counts[i % OP_ROW_COUNTS];
    op->k = s->k;
    op->hidden = s->hidden;
    op->ffn = s->ffn;
    uint32_t n_pairs = op->n_rows * s->k;
    op_rows_add(c, &op->h, n_pairs, s->ffn, s->ffn);
    if (!s->on_input)
        op_rows_add(c, &op->weights, 1, n_pairs, n_pairs);
    uint32_t *pairs = (uint32_t *)(void *)op_array_add(c, &op->pairs, n_pairs * 4, 4, OP_IN);
    op->n_experts = op_pairs_deal(c, n_pairs, s->n_experts, pairs);
    for (uint32_t e = 0; e < op->n_experts; e++) {
        op_weight_add_as(c, &c->experts[e].down, s->down, s->hidden, s->ffn, form[DOWN]);
        op_vector_add(c, &c->experts[e].down_bias, s->bias, s->hidden, form[DOWN_BIAS]);
    }
    op_out_add(c, &op->out, (uint64_t)n_pairs * s->hidden, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "expert_down %s%s bias%s experts %u k %u %u->%u rows %u",
             cf_format_name(s->down), op_layout_names[form[DOWN]], op_layout_names[form[DOWN_BIAS]],
             op->n_experts, s->k, s->ffn, s->hidden, op->n_rows);
}

static const uint32_t combine_sizes[][2] = {{1, 1}, {2, 33}, {3, 7}, {12, 1000}, {8, 203}};
const int op_combine_count = (int)(sizeof combine_sizes / sizeof combine_sizes[0]) * OP_ROW_COUNTS;

void op_build_combine(op_case *c, int i)
{
    cf_op_combine *op = &c->op.combine;
    op->n_rows = op_row_counts[i % OP_ROW_COUNTS];
    op->k = combine_sizes[i / OP_ROW_COUNTS][0];
    op->hidden = combine_sizes[i / OP_ROW_COUNTS][1];
    op->n_routed = 100;
    uint32_t n_pairs = op->n_rows * op->k;
    uint32_t *ids = (uint32_t *)(void *)op_array_add(c, &op->ids, n_pairs * 4, 8, OP_IN);
    float *out = op_rows_add(c, &op->out, n_pairs, op->hidden, op->hidden);
    op_rows_add(c, &op->weights, 1, n_pairs, n_pairs);
    op_rows_add(c, &op->x, op->n_rows, op->hidden, op->hidden);
    for (uint32_t p = 0; p < n_pairs; p++) {
        ids[p] = (uint32_t)cf_rng_below(&c->rng, 150); /* a third are identity experts: */
        if (ids[p] >= op->n_routed)                    /* nobody wrote their rows */
            memset(out + (uint64_t)p * op->hidden, OP_GUARD, op->hidden * 4);
    }
    op_out_add(c, &op->y, (uint64_t)op->n_rows * op->hidden, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "combine k %u hidden %u rows %u", op->k, op->hidden,
             op->n_rows);
}
