/* Shared by the executor's files (exec.c, exec_attn.c, exec_latent.c, exec_moe.c, exec_rows.c,
 * exec_state.c, exec_index.c, exec_cross.c, exec_pick.c, exec_predict.c, exec_profile.c). */
#ifndef CF_RUNTIME_EXEC_INTERNAL_H
#define CF_RUNTIME_EXEC_INTERNAL_H

#include "runtime/engine.h"
#include "runtime/predict.h"

struct cf_exec {
    cf_engine *e;
    cf_gpu *gpu;
    const cf_model *model;
    cf_gpu_buf **acts;             /* [n_bufs], each [chunk, width] */
    cf_gpu_buf *xb[CF_XB_COUNT];
    cf_gpu_buf **kv;               /* [kv.slots], each [sessions * ctx, width]; then the indexes' */
    cf_gpu_buf **states;           /* [n_states], each [2 * sessions] slots */

    /* The batch being run. */
    const cf_batch *batch;
    uint32_t n_rows;
    uint32_t n_runs; /* sessions in it */
    uint32_t most_cells; /* that one of its rows sees */
    bool recorded; /* work was recorded since the last barrier or wait */
    bool open;     /* ... since the last submit */
    uint64_t raw_off; /* used part of CF_XB_RAW_ROWS */
    uint32_t moe;     /* of the ROUTE whose EXPERTS is to come */
    bool picked;      /* its choice is in CF_XB_PICKED_IDS and _CHOICE */
    uint32_t tune_floor; /* 0: queries are not sharpened with the position */
    float tune_scale;
    uint32_t sharp_from; /* 0: neither are scores; at most one of the two */
    const float *logits;
    cf_gpu_point dense_ready; /* streamed weights of recorded work are on the device from then on */
    int dense_rc;             /* of this batch; negative: a streamed weight did not come */
    cf_err *err;              /* where its sentence goes */
    cf_step_time *times;      /* NULL, or each step is run and timed by itself */
    uint64_t profile_copy_ns; /* waited for copies because of that */

    /* Host tables of one MoE layer. */
    uint32_t *chosen;      /* [chunk, k] ids, as ROUTE left them */
    float *weights;        /* [chunk, k] */
    uint32_t *expert_list; /* [experts] the distinct routed ones, ascending */
    uint32_t n_experts;
    uint32_t *expert_rows; /* [experts] how many (row, rank) chose it */
    uint32_t *pair_begin;  /* [experts] of each expert, in order of processing */
    cf_cache_entry *taken; /* [CF_EXPERTS_PER_OP] */
    cf_expert_work *work;  /* [CF_EXPERTS_PER_OP] */
    uint64_t *row_ids;     /* [chunk, tables of one step] */
    int32_t *router_tokens; /* [chunk], and behind it */
    void *router_scratch;   /* of routers that look at whole batches; NULL: there are none */
    cf_predict *predicts;  /* [n_moe] what each layer's ROUTE foresees */
    float *wants;          /* [experts] of the next layer, foreseen */
    uint32_t *guessed;     /* [experts] those that are wanted, most first */
};

static inline cf_span exec_act(const cf_exec *x, cf_bufid buf)
{
    return cf_span_of(x->acts[buf]);
}

/* A weight that does not stay, brought in; may submit what is open and wait (exec_dense.c). */
cf_weight exec_streamed(cf_exec *x, cf_wid w);

/* What an op recorded right after this may read. CF_NO_WEIGHT gives none, for ops that allow it. */
static inline cf_weight exec_weight(cf_exec *x, cf_wid w)
{
    if (w == CF_NO_WEIGHT)
        return (cf_weight){0};
    const cf_weight *weight = &x->e->weights.list[w];
    return weight->span.buf ? *weight : exec_streamed(x, w);
}

/* Whether what meets this matrix is rounded to 8 bits. */
static inline bool exec_q8(const cf_exec *x, const cf_weight *w)
{
    return x->e->activations_q8 && cf_matrix_takes_q8(w->dtype, w->rows);
}

static inline cf_span exec_row_info(const cf_exec *x)
{
    return cf_span_sub(cf_span_of(x->xb[CF_XB_ROW_INFO]), 0, x->n_rows * sizeof(cf_row_info));
}

static inline uint32_t exec_width(const cf_exec *x, cf_bufid buf)
{
    return x->model->bufs[buf].width;
}

/* [n_rows, k] words of one of the buffers of choices. */
static inline cf_span exec_ids_span(const cf_exec *x, cf_exec_buf buf, uint32_t k)
{
    return cf_span_sub(cf_span_of(x->xb[buf]), 0, (uint64_t)x->n_rows * k * sizeof(uint32_t));
}

/* Orders what follows after what was recorded; nothing to do when nothing was. */
void exec_barrier(cf_exec *x);
/* Notes that work was recorded. */
static inline void exec_recorded(cf_exec *x)
{
    x->recorded = x->open = true;
}

/* Submits the open batch, after `wait` (value 0: none). */
int exec_submit(cf_exec *x, cf_gpu_point wait, cf_gpu_point *point, cf_err *err);
/* Submits, and waits until the device has done everything. */
int exec_finish(cf_exec *x, cf_err *err);

/* dst [n_rows, w.rows] (+)= scale * w src[:, src_col ..]. */
void exec_linear(cf_exec *x, cf_wid w, cf_span src, uint32_t src_stride, cf_span dst,
                 uint32_t dst_stride, float scale, bool accumulate);

/* The same with src as it is, whatever was asked for activations. */
void exec_linear_exact(cf_exec *x, cf_wid w, cf_span src, uint32_t src_stride, cf_span dst,
                       uint32_t dst_stride, float scale, bool accumulate);

/* Rotates the rotary part of each of `heads` heads, `skip` floats into a head. */
void exec_rotate(cf_exec *x, uint32_t rope_def, cf_span span, uint32_t skip, uint32_t heads,
                 uint32_t stride, uint32_t head_stride);

/* Any step, by its kind. */
int exec_step(cf_exec *x, const cf_step *s, cf_err *err);
/* exec_profile.c: the same, waited for and timed; waiting for copies that the device would wait for. */
int exec_profile_step(cf_exec *x, const cf_step *s, cf_err *err);
int exec_profile_copies(cf_exec *x, cf_gpu_point point, cf_err *err);

int exec_attn(cf_exec *x, const cf_step *s, cf_err *err);
int exec_attn_latent(cf_exec *x, const cf_step *s, cf_err *err);
/* exec_index.c: the keys of an index into the cache and, where a row has more than k cells, those that
 * it is to look at into `selected`. src and q_lat are as attention has them. */
int exec_index(cf_exec *x, const cf_attn_latent_def *a, uint32_t layer, cf_span src, uint32_t width,
               cf_err *err);
/* src [n_rows, width] into a slot of the cache. */
void exec_kv_store(cf_exec *x, cf_span src, uint32_t slot, uint32_t width);
int exec_attn_bias(cf_exec *x, const cf_step *s, cf_err *err);
int exec_cross_kv(cf_exec *x, const cf_step *s, cf_err *err);
int exec_attn_cross(cf_exec *x, const cf_step *s, cf_err *err);
int exec_attn_delta(cf_exec *x, const cf_step *s, cf_err *err);
int exec_attn_decay(cf_exec *x, const cf_step *s, cf_err *err);
/* exec_state.c: the states' buffers and the constants at create, the runs of each batch. */
int exec_states_create(cf_exec *x, cf_err *err);
void exec_states_destroy(cf_exec *x);
void exec_runs_upload(cf_exec *x);
int exec_embed(cf_exec *x, const cf_step *s, cf_err *err);
int exec_rows(cf_exec *x, const cf_step *s, cf_err *err);
int exec_route(cf_exec *x, const cf_step *s, cf_err *err);
/* exec_pick.c: a choice in which the host has a say. exec_pick chooses alone, exec_pick_limit takes from
 * what the device chose; both leave it in x->chosen and x->weights and hand it to the device. */
int exec_pick(cf_exec *x, const cf_route_def *d, cf_span src, uint32_t width, cf_err *err);
void exec_pick_limit(cf_exec *x, const cf_route_def *d);
/* Parts of ROUTE: logits of rows [n_rows, stride] of x; then the choice, `op` less what d says. */
void exec_classify(cf_exec *x, const cf_route_def *d, cf_span src, uint32_t stride, cf_span logits,
                   uint32_t n_rows);
void exec_choose(cf_exec *x, const cf_route_def *d, cf_op_route *op);
/* PREDICT beside the ROUTE of MoE layer `moe`, part by part: norm and classify may run beside
 * ROUTE's own ops of the same barrier; guess reads the result. All do nothing where it foresees
 * nothing. */
void exec_predict_norm(cf_exec *x, uint32_t moe);
void exec_predict_classify(cf_exec *x, uint32_t moe);
void exec_predict_choose(cf_exec *x, uint32_t moe);
void exec_predict_guess(cf_exec *x, uint32_t moe);
int exec_experts(cf_exec *x, const cf_step *s, cf_err *err);

#endif
