/* Foreseeing the next choice: see predict.h. */
#include "runtime/predict.h"

static bool is_attention(const cf_step *s)
{
    switch (s->kind) {
    case CF_STEP_ATTN_LATENT:
    case CF_STEP_ATTN:
    case CF_STEP_ATTN_DELTA:
    case CF_STEP_ATTN_DECAY:
    case CF_STEP_ATTN_BIAS:
    case CF_STEP_ATTN_CROSS:
        return true;
    default:
        return false;
    }
}

static bool writes(const cf_step *s, cf_bufid buf)
{
    bool none = s->kind == CF_STEP_ROUTE || s->kind == CF_STEP_TAP || s->kind == CF_STEP_HEAD;
    return !none && s->dst == buf;
}

/* Attention lies between the ROUTE at `step` and its EXPERTS. */
static bool window_has_attention(const cf_model *m, uint32_t step)
{
    uint32_t moe = m->steps[step].u.route.moe;
    for (uint32_t i = step + 1; i < m->n_steps; i++) {
        if (m->steps[i].kind == CF_STEP_EXPERTS && m->steps[i].u.experts.moe == moe)
            return false;
        if (is_attention(&m->steps[i]))
            return true;
    }
    return false;
}

/* Routing that the device decides, row by row: what can be foreseen. */
static bool by_own_scores(const cf_step *s)
{
    return s->u.route.pick == CF_PICK_TOP && !s->u.route.capacity;
}

cf_predict cf_predict_find(const cf_model *m, uint32_t step)
{
    cf_predict none = {0}, found = {0};
    uint32_t next = step + 1, from;
    while (next < m->n_steps && m->steps[next].kind != CF_STEP_ROUTE)
        next++;
    if (next >= m->n_steps || window_has_attention(m, next))
        return none;
    if ((step < m->n_encoder_steps) != (next < m->n_encoder_steps)) /* another plan */
        return none;
    found.route = &m->steps[next];
    if (!by_own_scores(&m->steps[step]) || !by_own_scores(found.route))
        return none;
    for (from = next; from-- > step + 1 && !writes(&m->steps[from], found.route->src);)
        ;
    found.norm = &m->steps[from];
    if (from == step || found.norm->kind != CF_STEP_NORM)
        return none;
    cf_bufid stream = found.norm->src;
    bool written = false;
    for (uint32_t i = 0; i < step; i++)
        written = written || writes(&m->steps[i], stream);
    return written && stream != found.route->src ? found : none;
}

bool cf_predict_any(const cf_model *m)
{
    for (uint32_t i = 0; i < m->n_steps; i++)
        if (m->steps[i].kind == CF_STEP_ROUTE && cf_predict_find(m, i).route)
            return true;
    return false;
}
