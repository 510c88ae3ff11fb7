/* The expert ops: as vk_ops.c. Each op is one dispatch over a table of its experts; biases in block
 * formats are decoded first, for as many experts at a time as there is room for. */
#include "gpu/vulkan/vk_ops.h"

static uint32_t most_pairs(const cf_expert_work *experts, uint32_t n)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = experts[i].pair_count > most ? experts[i].pair_count : most;
    return most;
}

/* What a tile is chosen by: the most pairs of an expert, unless most experts have few. */
static uint32_t pairs_of_tile(const cf_expert_work *experts, uint32_t n, uint32_t most)
{
    uint64_t all = 0;
    for (uint32_t i = 0; i < n; i++)
        all += experts[i].pair_count;
    return cf_ceil_div(all, n) >= MANY_ROWS / 2 ? most : (uint32_t)cf_min_u64(most, MANY_ROWS / 2);
}

/* MODE of expert_glu.comp. */
typedef enum { GLU_BOTH, GLU_ALONE, GLU_FIRST, GLU_SECOND } glu_mode;

/* As ops.h has it, all experts of an op are laid out as the first. */
static void glu_dispatch(cf_gpu *gpu, cf_stream stream, const cf_op_expert_glu *op, glu_mode mode)
{
    struct {
        uint64_t gate, up, gate_bias, up_bias;
        uint32_t pair_begin, pair_count;
    } table[CF_EXPERTS_PER_OP + CF_EXPERTS_PER_OP / 2]; /* the addresses of scales after them */
    vk_gpu *vk = vk_of(gpu);
    vk_decoded vectors = {gpu, stream, 0};
    bool up_only = mode == GLU_FIRST;
    const cf_expert_work *first = &op->experts[0];
    const cf_weight *gate = up_only ? &first->up : &first->gate, *up = &first->up;
    vk_scales scales = outer_scales(gate);
    struct {
        uint64_t table, scales, x, pairs, h, weights, grid;
        uint32_t k, hidden, ffn, gate_step, up_step, gate_gap, up_gap;
        uint32_t scale_rows, scale_cols, gate_first, up_first;
        uint32_t gate_bias_dtype, gate_bias_step, up_bias_dtype, up_bias_step;
        float limit, alpha;
        uint32_t unused;
    } push = {.x = span_address(op->x),
              .pairs = span_address(op->pairs),
              .h = span_address(op->h),
              .weights = span_address(op->weights),
              .grid = vk_grid(vk, stream, gate->dtype),
              .k = op->k,
              .hidden = op->hidden,
              .ffn = op->ffn,
              .gate_step = matrix_step(gate),
              .up_step = matrix_step(up),
              .gate_gap = matrix_gap(gate),
              .up_gap = matrix_gap(up),
              .scale_rows = scales.rows,
              .scale_cols = scales.cols,
              .gate_first = scales.first,
              .up_first = up->row_first,
              .limit = op->act.limit,
              .alpha = op->act.alpha};
    uint32_t aligned = 1;
    uint64_t *scale_table = (uint64_t *)(void *)&table[op->n_experts];
    for (uint32_t i = 0; i < op->n_experts; i++) {
        const cf_expert_work *e = &op->experts[i];
        const cf_weight *w = up_only ? &e->up : &e->gate;
        vk_vector gate_bias = vk_vector_plain(&vectors, up_only ? &e->up_bias : &e->gate_bias);
        vk_vector up_bias = {0};
        if (mode == GLU_BOTH)
            up_bias = vk_vector_plain(&vectors, &e->up_bias);
        table[i].gate = weight_address(w);
        table[i].up = weight_address(&e->up);
        scale_table[2 * i] = outer_scales(w).at;
        scale_table[2 * i + 1] = outer_scales(&e->up).at;
        table[i].gate_bias = gate_bias.at;
        table[i].up_bias = up_bias.at;
        table[i].pair_begin = e->pair_begin;
        table[i].pair_count = e->pair_count;
        push.gate_bias_dtype = gate_bias.dtype;
        push.gate_bias_step = gate_bias.step;
        push.up_bias_dtype = up_bias.dtype;
        push.up_bias_step = up_bias.step;
        aligned = aligned && aligned_rows(w, push.x, op->hidden, 0, op->x_q8) &&
                  (mode != GLU_BOTH || aligned_matrix(&e->up));
    }
    uint64_t bytes = op->n_experts * (uint64_t)sizeof table[0];
    uint64_t scale_bytes = gate->scale_rows ? op->n_experts * (uint64_t)16 : 0;
    push.table = vk_stream_upload(vk, stream, table, bytes + scale_bytes);
    if (push.table == 0)
        return;
    push.scales = push.table + bytes;
    vk_vectors_ready(&vectors);
    uint32_t most = most_pairs(op->experts, op->n_experts);
    vk_tile t = tile_of(vk, gate, pairs_of_tile(op->experts, op->n_experts, most));
    uint32_t spec[VK_MAX_SPEC] = {tile_class(vk)->group,
                                  aligned,
                                  t.outputs,
                                  t.rows,
                                  gate->transposed,
                                  t.parts,
                                  scales_kind(gate),
                                  op->x_q8,
                                  matrix_gap(gate) > 1 || (mode == GLU_BOTH && matrix_gap(up) > 1),
                                  mode,
                                  op->act.act,
                                  t.many};
    enum vk_shader shader =
        vk_dot_shader(vk, VK_SHADER_expert_glu, VK_SHADER_expert_glu_i8, gate, op->x_q8);
    vk_dispatch(vk, stream, shader, gate->dtype, spec, &push, sizeof push,
                tiles(op->ffn, mode == GLU_BOTH ? t.outputs / 2 : t.outputs), op->n_experts,
                tiles(most, t.rows));
}

/* One shader reads both. */
static bool alike(const cf_weight *a, const cf_weight *b)
{
    return a->dtype == b->dtype && a->transposed == b->transposed &&
           a->scale_rows == b->scale_rows &&
           (!a->scale_rows ||
            (a->scale_cols == b->scale_cols && a->scale_format == b->scale_format));
}

/* Gate and up together where one shader reads both; else up goes through h. */
static void glu_run(cf_gpu *gpu, cf_stream stream, const cf_op_expert_glu *op)
{
    const cf_weight *gate = &op->experts[0].gate, *up = &op->experts[0].up;
    if (!up->span.buf) {
        glu_dispatch(gpu, stream, op, GLU_ALONE);
    } else if (alike(gate, up)) {
        glu_dispatch(gpu, stream, op, GLU_BOTH);
    } else {
        glu_dispatch(gpu, stream, op, GLU_FIRST);
        vk_barrier(gpu, stream);
        glu_dispatch(gpu, stream, op, GLU_SECOND);
    }
}

/* How many experts' biases there is room for. */
static uint32_t experts_at_once(const vk_gpu *vk, const cf_weight *a, const cf_weight *b)
{
    uint64_t bytes = 0;
    if (vk_vector_in_blocks(a))
        bytes += cf_align_up((uint64_t)a->cols * 4, 16);
    if (b && vk_vector_in_blocks(b))
        bytes += cf_align_up((uint64_t)b->cols * 4, 16);
    uint64_t fit = bytes ? vk_vectors_bytes(&vk->base.info) / bytes : CF_EXPERTS_PER_OP;
    return fit ? (uint32_t)cf_min_u64(fit, CF_EXPERTS_PER_OP) : 1;
}

void vk_op_expert_glu(cf_gpu *gpu, cf_stream stream, const cf_op_expert_glu *op)
{
    if (op->n_experts == 0)
        return;
    uint32_t step = experts_at_once(vk_of(gpu), &op->experts[0].gate_bias, &op->experts[0].up_bias);
    for (uint32_t i = 0; i < op->n_experts; i += step) {
        cf_op_expert_glu part = *op;
        part.experts += i;
        part.n_experts = op->n_experts - i < step ? op->n_experts - i : step;
        glu_run(gpu, stream, &part);
    }
}

static void down_dispatch(cf_gpu *gpu, cf_stream stream, const cf_op_expert_down *op)
{
    struct {
        uint64_t down, bias;
        uint32_t pair_begin, pair_count;
    } table[CF_EXPERTS_PER_OP + CF_EXPERTS_PER_OP / 2]; /* the addresses of scales after them */
    vk_gpu *vk = vk_of(gpu);
    vk_decoded vectors = {gpu, stream, 0};
    const cf_weight *down = &op->experts[0].down;
    vk_scales scales = outer_scales(down);
    struct {
        uint64_t table, scales, h, pairs, weights, y, grid;
        uint32_t hidden, ffn, down_step, down_gap, bias_dtype, bias_step;
        uint32_t scale_rows, scale_cols, down_first, unused;
    } push = {.h = span_address(op->h),
              .pairs = span_address(op->pairs),
              .weights = span_address(op->weights),
              .y = span_address(op->out),
              .grid = vk_grid(vk, stream, down->dtype),
              .hidden = op->hidden,
              .ffn = op->ffn,
              .down_step = matrix_step(down),
              .down_gap = matrix_gap(down),
              .scale_rows = scales.rows,
              .scale_cols = scales.cols,
              .down_first = scales.first};
    uint32_t aligned = 1;
    uint64_t *scale_table = (uint64_t *)(void *)&table[op->n_experts];
    for (uint32_t i = 0; i < op->n_experts; i++) {
        const cf_expert_work *e = &op->experts[i];
        vk_vector bias = vk_vector_plain(&vectors, &e->down_bias);
        table[i].down = weight_address(&e->down);
        scale_table[i] = outer_scales(&e->down).at;
        table[i].bias = bias.at;
        table[i].pair_begin = e->pair_begin;
        table[i].pair_count = e->pair_count;
        push.bias_dtype = bias.dtype;
        push.bias_step = bias.step;
        aligned = aligned && aligned_rows(&e->down, push.h, op->ffn, 0, op->x_q8);
    }
    uint64_t bytes = op->n_experts * (uint64_t)sizeof table[0];
    uint64_t scale_bytes = down->scale_rows ? op->n_experts * (uint64_t)8 : 0;
    push.table = vk_stream_upload(vk, stream, table, bytes + scale_bytes);
    if (push.table == 0)
        return;
    push.scales = push.table + bytes;
    vk_vectors_ready(&vectors);
    uint32_t most = most_pairs(op->experts, op->n_experts);
    vk_tile t = tile_of(vk, down, pairs_of_tile(op->experts, op->n_experts, most));
    uint32_t spec[VK_MAX_SPEC] = {tile_class(vk)->group, aligned, t.outputs,         t.rows,
                                  down->transposed,      t.parts, scales_kind(down), op->x_q8,
                                  matrix_gap(down) > 1,  0,       0,                 t.many};
    enum vk_shader shader =
        vk_dot_shader(vk, VK_SHADER_expert_down, VK_SHADER_expert_down_i8, down, op->x_q8);
    vk_dispatch(vk, stream, shader, down->dtype, spec, &push, sizeof push,
                tiles(op->hidden, t.outputs), op->n_experts, tiles(most, t.rows));
}

void vk_op_expert_down(cf_gpu *gpu, cf_stream stream, const cf_op_expert_down *op)
{
    if (op->n_experts == 0)
        return;
    uint32_t step = experts_at_once(vk_of(gpu), &op->experts[0].down_bias, NULL);
    for (uint32_t i = 0; i < op->n_experts; i += step) {
        cf_op_expert_down part = *op;
        part.experts += i;
        part.n_experts = op->n_experts - i < step ? op->n_experts - i : step;
        down_dispatch(gpu, stream, &part);
    }
}
