/* A model's plain data: sizes, names, disposal. See model.h. */
#include "runtime/model.h"

#include <stdlib.h>

#include "runtime/base/align.h"
#include "storage/gguf.h"

void cf_model_free(cf_model **model)
{
    cf_model *m = *model;
    if (!m)
        return;
    for (uint32_t i = 0; i < m->n_moe; i++)
        free(m->moe[i].extents);
    cf_catalogue_close(&m->cat);
    if (m->pack)
        m->gguf = NULL; /* the pack's */
    cf_pack_close(&m->pack);
    cf_gguf_close(&m->gguf);
    free(m->config);
    free(m->moe);
    free(m->weights);
    free(m->tables);
    free(m->ropes);
    free(m->bufs);
    free(m->steps);
    free(m->states);
    free(m->constants);
    free(m->dir);
    free(m->file);
    free(m);
    *model = NULL;
}

const char *cf_model_path(const cf_model *model)
{
    return model->file ? model->file : model->dir;
}

cf_tokenizer_place cf_model_tokenizer_place(const cf_model *model)
{
    return (cf_tokenizer_place){.dir = model->dir,
                                .gguf = model->gguf,
                                .gguf_path = cf_model_path(model),
                                .rules = model->tokenizer_rules};
}

uint64_t cf_table_row(const cf_table_def *table, const int32_t *ids, uint32_t n_ids)
{
    uint64_t last = (uint64_t)ids[n_ids - 1];
    if (table->key == CF_ROWS_TOKEN)
        return last;
    uint64_t sum = last;
    for (uint32_t d = 1; d < table->n && d < n_ids; d++) {
        int32_t id = ids[n_ids - 1 - d];
        if (id == table->stop)
            break;
        /* ids < 2^24, powers < rows < 2^40: no overflow over CF_MAX_NGRAM terms. */
        sum += (uint64_t)id * table->power[d] % table->rows;
    }
    return sum % table->rows;
}

const char *cf_step_name(cf_step_kind kind)
{
    static const char *const names[] = {
        [CF_STEP_EMBED] = "EMBED",      [CF_STEP_ROWS] = "ROWS",
        [CF_STEP_LINEAR] = "LINEAR",    [CF_STEP_NORM] = "NORM",
        [CF_STEP_ATTN_LATENT] = "ATTN", [CF_STEP_ATTN] = "ATTN",
        [CF_STEP_ATTN_DELTA] = "ATTN",  [CF_STEP_ATTN_DECAY] = "ATTN",
        [CF_STEP_ATTN_BIAS] = "ATTN",   [CF_STEP_CROSS_KV] = "CROSSKV",
        [CF_STEP_ATTN_CROSS] = "CROSS", [CF_STEP_DENSE] = "DENSE",
        [CF_STEP_GATE] = "GATE",        [CF_STEP_ROUTE] = "ROUTE",
        [CF_STEP_EXPERTS] = "EXPERTS",  [CF_STEP_ADD] = "ADD",
        [CF_STEP_SCALE] = "SCALE",      [CF_STEP_TAP] = "TAP",
        [CF_STEP_HEAD] = "HEAD"};
    return names[kind];
}

uint64_t cf_scale_def_bytes(const cf_scale_def *s, uint64_t rows, uint64_t cols)
{
    if (!s->rows)
        return 0;
    return cf_ceil_div(rows, s->rows) * cf_format_row_bytes(s->format, cf_ceil_div(cols, s->cols));
}

uint64_t cf_weight_code_bytes(const cf_weight_def *w)
{
    return w->rows * cf_format_row_bytes(w->dtype, w->cols);
}

uint64_t cf_weight_def_bytes(const cf_weight_def *w)
{
    return cf_weight_code_bytes(w) + cf_scale_def_bytes(&w->scale, w->rows, w->cols);
}

uint64_t cf_model_resident_bytes(const cf_model *model)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < model->n_weights; i++)
        sum += cf_weight_def_bytes(&model->weights[i]);
    return sum;
}

uint64_t cf_state_bytes(const cf_state_def *state)
{
    return (uint64_t)state->rows * state->width * sizeof(float);
}

uint64_t cf_moe_record_bytes(const cf_moe_def *moe)
{
    uint64_t sum = 0;
    if (moe->unpacked_bytes)
        for (uint32_t i = 0; i < moe->n_unpacked; i++)
            sum += moe->unpacked[i].bytes;
    else
        for (uint32_t i = 0; i < moe->n_extents; i++)
            sum += moe->extents[i].bytes;
    return sum;
}

uint64_t cf_moe_stored_bytes(const cf_moe_def *moe)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < (uint64_t)moe->experts * moe->n_extents; i++)
        sum += moe->extents[i].bytes;
    return sum;
}

void cf_moe_layout(const cf_moe_def *moe, uint32_t expert, uint32_t align, cf_layout *out)
{
    const cf_extent *extents = &moe->extents[(size_t)expert * moe->n_extents];
    if (moe->slices.n)
        cf_layout_plan_slices(out, extents, &moe->slices, moe->unpacked, align);
    else if (moe->unpacked_bytes)
        cf_layout_plan_packed(out, extents, moe->unpacked_bytes, moe->unpacked, moe->n_unpacked,
                              align);
    else
        cf_layout_plan(out, extents, moe->n_extents, align);
}

uint32_t cf_step_weights(const cf_step *s, cf_wid out[CF_STEP_WEIGHTS])
{
    cf_wid all[CF_STEP_WEIGHTS];
    uint32_t n = 0, kept = 0;
#define ADD(w) all[n++] = (w)
    switch (s->kind) {
    case CF_STEP_EMBED:
        ADD(s->u.embed.resident);
        break;
    case CF_STEP_LINEAR:
        ADD(s->u.linear.w);
        break;
    case CF_STEP_NORM:
        ADD(s->u.norm.w), ADD(s->u.norm.bias);
        break;
    case CF_STEP_ATTN_LATENT:
        ADD(s->u.latent.q_a), ADD(s->u.latent.kv_a), ADD(s->u.latent.q_a_norm);
        ADD(s->u.latent.kv_a_norm), ADD(s->u.latent.q_b);
        if (s->u.latent.indexed) {
            const cf_index_def *d = &s->u.latent.index;
            ADD(d->k), ADD(d->q), ADD(d->weights), ADD(d->k_norm), ADD(d->k_norm_bias);
        }
        ADD(s->u.latent.kv_b), ADD(s->u.latent.k_b), ADD(s->u.latent.v_b), ADD(s->u.latent.out);
        break;
    case CF_STEP_ATTN:
        ADD(s->u.attn.q), ADD(s->u.attn.k), ADD(s->u.attn.v), ADD(s->u.attn.out);
        ADD(s->u.attn.q_bias), ADD(s->u.attn.k_bias), ADD(s->u.attn.v_bias);
        ADD(s->u.attn.out_bias), ADD(s->u.attn.q_norm), ADD(s->u.attn.k_norm);
        ADD(s->u.attn.sinks);
        break;
    case CF_STEP_ATTN_DELTA:
        ADD(s->u.delta.in), ADD(s->u.delta.z), ADD(s->u.delta.gates), ADD(s->u.delta.a);
        ADD(s->u.delta.conv), ADD(s->u.delta.a_log), ADD(s->u.delta.dt_bias), ADD(s->u.delta.norm);
        ADD(s->u.delta.out);
        break;
    case CF_STEP_ATTN_DECAY:
        ADD(s->u.decay.qkv), ADD(s->u.decay.gate), ADD(s->u.decay.norm), ADD(s->u.decay.out);
        break;
    case CF_STEP_ATTN_BIAS:
        ADD(s->u.bias.q), ADD(s->u.bias.k), ADD(s->u.bias.v), ADD(s->u.bias.bias);
        ADD(s->u.bias.out);
        break;
    case CF_STEP_CROSS_KV:
        ADD(s->u.cross_kv.k), ADD(s->u.cross_kv.v);
        break;
    case CF_STEP_ATTN_CROSS:
        ADD(s->u.cross.q), ADD(s->u.cross.out);
        break;
    case CF_STEP_DENSE:
        ADD(s->u.dense.gate), ADD(s->u.dense.up), ADD(s->u.dense.down);
        break;
    case CF_STEP_GATE:
        ADD(s->u.gate.w);
        break;
    case CF_STEP_ROUTE:
        ADD(s->u.route.classifier), ADD(s->u.route.bias), ADD(s->u.route.logit_bias);
        break;
    case CF_STEP_HEAD:
        ADD(s->u.head.w), ADD(s->u.head.bias);
        break;
    case CF_STEP_ROWS:
    case CF_STEP_EXPERTS:
    case CF_STEP_ADD:
    case CF_STEP_SCALE:
    case CF_STEP_TAP:
        break;
    }
#undef ADD
    for (uint32_t i = 0; i < n; i++)
        if (all[i] != CF_NO_WEIGHT)
            out[kept++] = all[i];
    return kept;
}

static uint64_t table_row_bytes(const cf_model *model, uint32_t table)
{
    return cf_format_row_bytes(model->tables[table].dtype, model->tables[table].cols);
}

static bool step_takes_q8(const cf_model *m, const cf_step *s)
{
    cf_wid list[CF_STEP_WEIGHTS];
    bool takes = false;
    uint32_t n = 0;
    switch (s->kind) {
    case CF_STEP_EMBED:
    case CF_STEP_ROWS:
    case CF_STEP_GATE:
    case CF_STEP_ROUTE:
    case CF_STEP_HEAD:
        break;
    case CF_STEP_EXPERTS:
        for (int p = 0; p < CF_EXPERT_PIECES; p++) {
            const cf_piece_def *d = &m->moe[s->u.experts.moe].pieces[p];
            takes = takes || (d->cols && cf_matrix_takes_q8(d->dtype, d->rows));
        }
        break;
    default:
        n = cf_step_weights(s, list);
    }
    for (uint32_t i = 0; i < n; i++)
        takes = takes || (list[i] != CF_NO_WEIGHT &&
                          cf_matrix_takes_q8(m->weights[list[i]].dtype, m->weights[list[i]].rows));
    return takes;
}

uint32_t cf_model_q8_steps(const cf_model *model)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < model->n_steps; i++)
        n += step_takes_q8(model, &model->steps[i]);
    return n;
}

uint64_t cf_step_bytes(const cf_model *model, const cf_step *step)
{
    cf_wid weights[CF_STEP_WEIGHTS];
    uint64_t sum = 0;
    if (step->kind == CF_STEP_EMBED) {
        if (step->u.embed.resident == CF_NO_WEIGHT)
            return table_row_bytes(model, step->u.embed.table);
        const cf_weight_def *w = &model->weights[step->u.embed.resident];
        return cf_format_row_bytes(w->dtype, w->cols); /* one row of the matrix */
    }
    if (step->kind == CF_STEP_EXPERTS) {
        const cf_moe_def *moe = &model->moe[step->u.experts.moe];
        return moe->top_k * cf_moe_record_bytes(moe);
    }
    if (step->kind == CF_STEP_ROWS)
        for (uint32_t i = 0; i < step->u.rows.n_tables; i++)
            sum += table_row_bytes(model, step->u.rows.first_table + i);
    uint32_t n = cf_step_weights(step, weights);
    for (uint32_t i = 0; i < n; i++)
        sum += cf_weight_def_bytes(&model->weights[weights[i]]);
    return sum;
}
