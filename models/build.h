/* Building a cf_model: what a family file calls.
 *
 * Config readers check presence, type and range, and name the key and the number. Tensor binders
 * check name, dtype and shape against the catalogue, or, when there is none, list what is
 * expected. Each tensor of the catalogue must be bound or skipped by the end: what is left over is
 * an error. All functions return 0 or negative with a sentence in err. One thread. */
#ifndef CF_MODELS_BUILD_H
#define CF_MODELS_BUILD_H

#include "models/family.h"

/* What "quantization_config" says of outer scales (models/stored.h): one for rows x cols values. */
typedef struct cf_quant {
    uint32_t rows, cols; /* 0: none */
    bool packed;         /* 4-bit integers in words; else FP8 */
} cf_quant;

struct cf_build {
    const json_t *config; /* borrowed */
    const char *path;     /* of the config, for messages */
    const char *prefix;   /* of every tensor's name; NULL: none */
    const char *inner;    /* behind the "model." that a tensor's name begins with; NULL: nothing */
    cf_quant quant;
    cf_model *model;      /* being filled; model->cat is NULL when listing */
    uint8_t *bound;       /* per catalogue tensor */
    cf_expected *expected; /* when listing */
    uint64_t n_expected;
};

/* ---- config ---- */

int cf_config_u32(const cf_build *b, const char *key, uint32_t min, uint32_t max, uint32_t *out,
                  cf_err *err);
/* The same, with a value for an absent or null key. */
int cf_config_u32_or(const cf_build *b, const char *key, uint32_t min, uint32_t max,
                     uint32_t absent, uint32_t *out, cf_err *err);
int cf_config_f64(const cf_build *b, const char *key, double min, double max, double *out,
                  cf_err *err);
int cf_config_f64_or(const cf_build *b, const char *key, double min, double max, double absent,
                     double *out, cf_err *err);
int cf_config_bool_or(const cf_build *b, const char *key, bool absent, bool *out, cf_err *err);
/* The key is absent, null, or this very text or truth value: for what only one value of is built. */
int cf_config_only_text(const cf_build *b, const char *key, const char *value, cf_err *err);
int cf_config_only_bool(const cf_build *b, const char *key, bool value, cf_err *err);
/* bos_token_id and eos_token_id (a number or a list) into the spec; cf_config_tokens reads
 * max_position_embeddings too. */
int cf_config_ends(cf_build *b, cf_err *err);
int cf_config_tokens(cf_build *b, cf_err *err);

/* RoPE frequencies from rope_theta (theta_absent when it is missing; 0: it must be there) and
 * rope_scaling (or transformers-5 style rope_parameters): none, linear, yarn, deepseek_yarn (YaRN: arXiv
 * 2309.00071), llama3, longrope. *score_scale is what the attention scale is to be multiplied by.
 * Appends to model->ropes; *index says where. */
int cf_config_rope(cf_build *b, uint32_t n_rot, cf_rope_layout layout, double theta_absent,
                   uint32_t *index, float *score_scale, cf_err *err);

/* ---- tensors ----
 *
 * A matrix is bound by its plain name in whatever form it is stored (models/stored.h), its outer
 * scales with it. */

enum {
    CF_BIND_F32 = 1,    /* listed as float32 (routers) */
    CF_BIND_FINITE = 2, /* checked for NaN and infinity when loaded */
    CF_BIND_NORM = 4,
    CF_BIND_BIAS = 8,
    CF_BIND_CONV = 16 /* a depthwise convolution: stored as [rows, 1, cols], single values */
};

/* Whether the catalogue has a tensor: for what some files store in another form. */
bool cf_bind_has(const cf_build *b, const char *name_format, ...)
    __attribute__((format(printf, 2, 3)));
/* The n values of a float32 vector, read now: for what becomes a constant of the model. */
int cf_bind_values(cf_build *b, float *out, uint32_t n, cf_err *err, const char *name_format, ...)
    __attribute__((format(printf, 5, 6)));
/* A resident matrix [rows, cols], or a vector [cols] when rows is 0. */
int cf_bind_weight(cf_build *b, cf_wid *out, int flags, uint32_t rows, uint32_t cols, cf_err *err,
                   const char *name_format, ...) __attribute__((format(printf, 7, 8)));
/* A table [rows, cols]; the caller fills key, n, power, stop. */
int cf_bind_table(cf_build *b, cf_table_def **out, uint64_t rows, uint32_t cols, cf_err *err,
                  const char *name_format, ...) __attribute__((format(printf, 6, 7)));
/* A vector of one row or the rows [first, first + rows) of a matrix [total, cols]: weights that are
 * fused in one tensor. Each part is bound by a call of its own; rows 0: a vector [cols]. */
int cf_bind_rows(cf_build *b, cf_wid *out, int flags, uint32_t first, uint32_t rows, uint32_t total,
                 uint32_t cols, cf_err *err, const char *name_format, ...)
    __attribute__((format(printf, 9, 10)));
/* One piece of one expert of model->moe[moe], alone in a tensor [rows, cols] that may be in slices
 * (models/slices.h); experts are bound from 0 on, and all must agree in dtype. The record has
 * extents of its own for each piece. */
int cf_bind_piece(cf_build *b, uint32_t moe, uint32_t expert, uint32_t piece, uint32_t rows,
                  uint32_t cols, cf_err *err, const char *name_format, ...)
    __attribute__((format(printf, 8, 9)));
/* One part of every expert, fused in one tensor [experts, rows, cols] or (flat) [experts * rows,
 * cols]: rows [first, first + n) of each expert's part, in extents of its own. *out is that matrix
 * [n, cols] as a plain piece, from which the caller makes the pieces that lie in it. */
typedef struct cf_fused {
    uint32_t rows, cols, first, n;
    bool flat;
    bool transposed; /* a piece in it is: element formats only */
} cf_fused;
int cf_bind_fused(cf_build *b, uint32_t moe, const cf_fused *part, cf_piece_def *out, cf_err *err,
                  const char *name_format, ...) __attribute__((format(printf, 6, 7)));
/* The tensor is there as name_blocks: rows of outputs, whatever its plain form has. */
bool cf_bind_in_blocks(const cf_build *b, const char *name);
/* Formats that a weight may have without outer scales. */
bool cf_build_can_bind(cf_format f);
/* Marks every unbound tensor for which `match` returns true as left out; it gets the name without
 * b->prefix. */
void cf_skip_tensors(cf_build *b, bool (*match)(const cf_build *b, const char *name),
                     const char *what);

/* A text model within another: `build` gets its "text_config" as the config, and its tensors' names
 * begin with "language_model."; the vision tower is left out. */
int cf_build_wrapped(cf_build *b, int (*build)(cf_build *b, cf_err *err), cf_err *err);
/* The same where those of the text model begin with "model.language_model." instead of "model.". */
int cf_build_inside(cf_build *b, int (*build)(cf_build *b, cf_err *err), cf_err *err);

/* ---- plan ---- */

int cf_build_moe(cf_build *b, uint32_t layer, uint32_t experts, uint32_t zero_experts,
                 uint32_t top_k, uint32_t hidden, uint32_t ffn, uint32_t *index, cf_err *err);
/* `more` extents for every record of a layer, behind those it has; *first: of them. */
int cf_build_extents(cf_moe_def *d, uint32_t more, uint32_t *first, cf_err *err);
int cf_build_buf(cf_build *b, const char *name, uint32_t width, cf_bufid *out, cf_err *err);
/* A recurrent state of rows x width floats a session. */
int cf_build_state(cf_build *b, uint32_t rows, uint32_t width, uint32_t *out, cf_err *err);
/* n words (float32 or uint32) that no tensor holds; *out: of the first. */
int cf_build_constants(cf_build *b, const void *words, uint32_t n, uint32_t *out, cf_err *err);
/* Appends a step; the caller fills its union through *out before the next append. Optional weights
 * start absent, scales at 1. */
int cf_build_step(cf_build *b, cf_step_kind kind, uint32_t layer, cf_bufid src, cf_bufid dst,
                  cf_step **out, cf_err *err);

#endif
