/* A model as the runtime sees it: what its files hold by role, and the plan that computes it.
 *
 * A family (models/) fills a cf_model from a checkpoint's config and catalogue; the engine runs
 * it without knowing the family. Everything here is plain data, immutable after the build, owned
 * by the cf_model. Thread-safety: read-only. */
#ifndef CF_RUNTIME_MODEL_H
#define CF_RUNTIME_MODEL_H

#include "gpu/ops.h"
#include "runtime/tokenizer.h"
#include "storage/catalogue.h"
#include "storage/layout.h"
#include "storage/pack.h"

/* ---- hyperparameters that every family has ---- */

enum { CF_MAX_EOS = 8 };

typedef struct cf_spec {
    char name[64];         /* for people: the directory's name */
    char family[32];       /* the registered family */
    char architecture[64]; /* as the config spells it */
    uint32_t layers, hidden, vocab, ctx_max;
    char ctx_why[160]; /* why ctx_max is below the checkpoint's own; empty where it is not */
    uint32_t heads;
    uint32_t experts, zero_experts, top_k; /* per MoE layer */
    int32_t bos;                           /* -1 = none */
    int32_t eos[CF_MAX_EOS];
    uint32_t n_eos;
    int32_t decoder_start; /* what a decoder's text begins with; -1 = there is no encoder */
} cf_spec;

/* ---- weights by role ---- */

typedef uint32_t cf_wid; /* index into cf_model.weights */
enum { CF_NO_WEIGHT = 0xffffffff };

/* Outer scales of a matrix, stored apart from it: one for each rows x cols of its values (gpu/ops.h,
 * cf_weight). rows 0: none. */
typedef struct cf_scale_def {
    cf_format format;
    uint32_t rows, cols;
} cf_scale_def;

/* A dense matrix or vector (rows 1): resident, or streamed on its known schedule. */
typedef struct cf_weight_def {
    const char *name; /* the tensor's, for messages */
    cf_extent extent;
    cf_format dtype;
    uint32_t rows, cols;
    cf_scale_def scale;
    cf_extent scale_extent;
    bool must_be_finite; /* router weights: checked when loaded */
} cf_weight_def;

/* One matrix, or vector (rows 1), of every expert of a layer: which extent of the record holds it,
 * and how it lies there. Two may share an extent (gate and up in one tensor). cols 0: there is none.
 */
typedef struct cf_piece_def {
    cf_format dtype;
    uint32_t rows, cols;
    uint32_t extent;
    bool transposed;
    uint32_t row_first, row_step, stride; /* as in cf_weight */
    cf_scale_def scale;
    uint32_t scale_extent;
} cf_piece_def;

enum { CF_GATE, CF_UP, CF_DOWN, CF_EXPERT_PIECES };
enum { CF_RECORD_EXTENTS = 9 }; /* most of a record: codes, scales and bias of each piece */

/* The routed experts of one MoE layer. */
typedef struct cf_moe_def {
    uint32_t layer; /* the model's own layer index */
    uint32_t experts, zero_experts, top_k, hidden, ffn;
    cf_piece_def pieces[CF_EXPERT_PIECES], biases[CF_EXPERT_PIECES];
    uint32_t n_extents; /* of a record; at most CF_RECORD_EXTENTS, unless in slices */
    cf_extent *extents; /* [experts][n_extents] */
    /* > 0: a record is not stored as it is computed with: compressed, as one extent (n_extents 1),
     * or in slices. Unpacked it has so many bytes, and its extents, which the pieces name, lie
     * there. */
    uint64_t unpacked_bytes;
    uint32_t n_unpacked;
    cf_piece unpacked[CF_RECORD_EXTENTS];
    cf_slices slices; /* n > 0: of each unpacked piece in turn n extents, CF_MAX_RUNS at most */
} cf_moe_def;

/* How a record is read. */
void cf_moe_layout(const cf_moe_def *moe, uint32_t expert, uint32_t align, cf_layout *out);

/* A table of which a few rows are read per token. */
typedef enum {
    CF_ROWS_TOKEN, /* row = the token's id */
    CF_ROWS_NGRAM  /* row = hash of the token and its predecessors, see cf_table_row */
} cf_rows_key;

enum { CF_MAX_NGRAM = 8 };

typedef struct cf_table_def {
    const char *name;
    cf_extent extent;
    cf_format dtype;
    uint64_t rows;
    uint32_t cols;
    cf_rows_key key;
    uint32_t n;                     /* NGRAM: tokens looked at, itself included */
    uint64_t power[CF_MAX_NGRAM];   /* NGRAM: vocab^d mod rows */
    int32_t stop;                   /* NGRAM: look-back ends before this id (-1: never) */
} cf_table_def;

/* The row that the last of `n_ids` ids (a session's history) selects.
 *   NGRAM: (sum_{d < n} ids[last - d] * power[d]) mod rows, ending at the beginning and at the
 *   first predecessor equal to `stop`. 64-bit arithmetic. */
uint64_t cf_table_row(const cf_table_def *table, const int32_t *ids, uint32_t n_ids);

/* Rotary embedding: angle_i(pos) = pos * inv_freq[i]; cos and sin times amplitude. */
enum { CF_MAX_ROT = 512 };

typedef struct cf_rope_def {
    uint32_t n_rot; /* rotated floats, even */
    cf_rope_layout layout;
    float amplitude;
    float inv_freq[CF_MAX_ROT / 2];
    /* Engines with a context beyond `near_ctx` use far_* instead, from the first position on, so
     * that what is in the cache stays valid; 0: there is one set for all. */
    uint32_t near_ctx;
    float far_amplitude;
    float far_inv_freq[CF_MAX_ROT / 2];
} cf_rope_def;

/* ---- the plan ---- */

typedef uint16_t cf_bufid; /* an activation buffer [rows, width] of float32 */

typedef struct cf_buf_def {
    const char *name;
    uint32_t width;
} cf_buf_def;

typedef enum {
    CF_STEP_EMBED,       /* dst = rows of a table by token id, or of a resident matrix */
    CF_STEP_ROWS,        /* dst = rows of several tables side by side */
    CF_STEP_LINEAR,      /* dst (+)= W src[:, col..] * scale */
    CF_STEP_NORM,        /* dst = norm of src */
    CF_STEP_ATTN_LATENT, /* dst = multi-head latent attention of src, absorbed form */
    CF_STEP_ATTN,        /* dst = grouped-query attention of src */
    CF_STEP_ATTN_DELTA,  /* dst = gated delta-rule attention of src, over a recurrent state */
    CF_STEP_ATTN_DECAY,  /* dst = linear attention of src with a fixed decay, likewise */
    CF_STEP_ATTN_BIAS,   /* dst = attention of src with a bias by distance */
    CF_STEP_CROSS_KV,    /* keys and values of src, the encoder's output, into the cache */
    CF_STEP_ATTN_CROSS,  /* dst = attention of src over the encoder's keys and values */
    CF_STEP_DENSE,       /* dst = down(act(gate src) * up src), or without up */
    CF_STEP_GATE,        /* dst = dst * sigmoid(W src), one W row for all of dst */
    CF_STEP_ROUTE,       /* choose experts from src: ids go to the host, reads may start */
    CF_STEP_EXPERTS,     /* dst = sum of the chosen experts of src (src is ROUTE's) */
    CF_STEP_ADD,         /* dst = dst + scale * src */
    CF_STEP_SCALE,       /* dst = dst * scale */
    CF_STEP_TAP,         /* src leaves a checkpoint layer: for whoever wants hidden states */
    CF_STEP_HEAD         /* logits of the wanted rows: LINEAR of src; the last step */
} cf_step_kind;

/* Which cells latent attention looks at (arXiv 2512.02556): each position has a small key of its own in
 * the cache, and the select_k that weigh most for a row are seen, by sum_h w_h max(q_h . key, 0). */
typedef struct cf_index_def {
    cf_wid q, k, k_norm, k_norm_bias, weights; /* q: of the normed query latent; the others of src */
    uint32_t heads, head;
    uint32_t rope_def; /* rotates the first part of each head */
    uint32_t slot;     /* among the cache's index slots */
    float norm_eps;
    cf_bufid q_buf, k_buf, w_buf;
} cf_index_def;

typedef struct cf_attn_latent_def {
    cf_wid q_a, q_a_norm, q_b; /* q_a CF_NO_WEIGHT: q_b applies to src itself */
    cf_wid kv_a, kv_a_norm, kv_b, out;
    cf_wid k_b, v_b; /* kv_b CF_NO_WEIGHT: k_b [heads * rank_kv, nope], v_b [heads * v, rank_kv] */
    uint32_t heads, rank_q, rank_kv, nope, rope, v;
    float q_norm_scale, kv_norm_scale; /* multiply the normed latents */
    float norm_eps, scale;             /* scale: of the scores */
    uint32_t rope_def, kv_slot;
    cf_bufid q_lat, q, q_abs, kv, o_lat, o; /* scratch */
    uint32_t select_k; /* cells that a row sees at most; 0: all. As `selected` names them: */
    cf_bufid selected; /* uint32 [rows, select_k] */
    bool indexed;      /* this layer chooses; else the choice of the last that did stands */
    cf_index_def index;
} cf_attn_latent_def;

/* What happens to queries and keys between projection and scores. */
typedef enum {
    CF_QK_PLAIN,
    CF_QK_NORM_HEAD,  /* rms norm of each head, then rotated */
    CF_QK_NORM_WHOLE, /* rms norm of the whole projection, then rotated */
    CF_QK_ROTATE_NORM /* rotated, then weightless rms norm of each head */
} cf_qk;

enum { CF_NO_ROPE = 0xffffffff };

typedef struct cf_attn_def {
    cf_wid q, k, v, out;
    cf_wid q_bias, k_bias, v_bias, out_bias; /* CF_NO_WEIGHT: none */
    cf_wid q_norm, k_norm, sinks;            /* CF_NO_WEIGHT: none */
    cf_qk qk;
    uint32_t heads, kv_heads, head;
    float norm_eps, scale, cap; /* cap 0: none */
    float clip;                 /* q, k and v are clamped to it; 0: not */
    uint32_t rope_def;          /* CF_NO_ROPE: positions do not matter */
    uint32_t window, chunk;     /* 0: none */
    uint32_t tune_floor;        /* > 0: q *= 1 + tune_scale * ln(1 + floor((pos + 1) / floor)) */
    float tune_scale;
    uint32_t sharp_from; /* > 0: scores beyond this position *= log2(position) / log2(sharp_from) */
    uint32_t k_slot, v_slot; /* of the KV cache */
    bool qk_unit_offset;     /* the norms of q and k scale by 1 + w */
    bool gated;              /* q's rows are, head by head, queries, then gates of the output */
    cf_bufid q_buf, k_buf, v_buf, o_buf;
    cf_bufid gate_buf; /* gated only: queries and gates as projected */
} cf_attn_def;

/* Gated delta-rule attention (arXiv 2412.06464): projections, a short convolution, l2-normed queries
 * and keys, the state, and a norm of each head whose result a projection of src gates by silu. */
typedef struct cf_attn_delta_def {
    cf_wid in;    /* key head by key head: q, k, values, gates; with `z`: all q, all k, all values */
    cf_wid z;     /* all gates; CF_NO_WEIGHT: they are in `in` */
    cf_wid gates; /* key head by key head: beta, decay; with `a`: all beta */
    cf_wid a;     /* all decay; CF_NO_WEIGHT: it is in `gates` */
    cf_wid conv, a_log, dt_bias, norm, out; /* conv: channels q, then k, then v */
    uint32_t a_log_at; /* a_log CF_NO_WEIGHT: of the model's constants, one for each head */
    uint32_t k_heads, heads, d_k, d_v, taps;
    bool k_tiled; /* head h has the keys of head h % k_heads, not of h / (heads / k_heads) */
    float norm_eps, l2_eps;
    uint32_t conv_state, state; /* of the model's states */
    cf_bufid in_buf, gates_buf, conv_buf, decay_buf, beta_buf, o_buf;
    cf_bufid z_buf, a_buf; /* with z, with a */
} cf_attn_delta_def;

/* Linear attention with one decay per head (arXiv 2401.04658): silu of a projection, the state, a
 * norm over all heads, gated by the sigmoid of a projection of src. */
typedef struct cf_attn_decay_def {
    cf_wid qkv; /* head by head: q, k, v */
    cf_wid gate, norm, out;
    uint32_t heads, head;
    float norm_eps;
    uint32_t decay; /* of the model's constants: one for each head */
    uint32_t state; /* of the model's states */
    cf_bufid qkv_buf, gate_buf, o_buf;
} cf_attn_decay_def;

/* Every head has its own keys and values; scores are not scaled but biased by distance, the same in all
 * layers of a stack (arXiv 1910.10683). */
typedef struct cf_attn_bias_def {
    cf_wid q, k, v, out, bias; /* bias: [buckets, heads] */
    uint32_t heads, head, k_slot, v_slot;
    uint32_t buckets, n_buckets, zero; /* of the model's constants: rows of bias, by distance */
    cf_bufid q_buf, k_buf, v_buf, o_buf;
} cf_attn_bias_def;

typedef struct cf_attn_cross_def {
    cf_wid q, out;
    uint32_t heads, head, k_slot, v_slot;
    cf_bufid q_buf, o_buf;
} cf_attn_cross_def;

/* Who chooses. All but CF_PICK_TOP on the host (runtime/router.h), call by call and session by session:
 * what they choose depends on how a text is cut into chunks. */
typedef enum {
    CF_PICK_TOP,            /* each row its top_k experts */
    CF_PICK_HASH,           /* a hash of the row's token; no classifier */
    CF_PICK_EXPERTS_CHOOSE, /* each expert its rows; top_k = experts */
    CF_PICK_BALANCED        /* the best assignment of equal shares; top_k = 1 */
} cf_pick;

typedef struct cf_route_def {
    cf_wid classifier, bias; /* bias: of the selection; CF_NO_WEIGHT: none */
    cf_wid logit_bias;       /* CF_NO_WEIGHT: none */
    cf_score score;
    uint32_t n_groups, top_groups;
    cf_group_score group_score;
    bool renormalise;
    float scale;
    float jitter, cap; /* of SPARSEMIXER; of the logits, 0: none */
    cf_pick pick;
    uint32_t capacity; /* TOP: rows of a session and call that an expert serves, the first ones; 0: all */
    float capacity_factor; /* EXPERTS_CHOOSE: times rows / experts, rounded up: rows of each expert */
    uint32_t seed;         /* HASH */
    uint32_t moe;      /* index into cf_model.moe */
    cf_bufid logits;   /* scratch */
} cf_route_def;

typedef struct cf_step {
    cf_step_kind kind;
    uint32_t layer; /* the checkpoint's layer, for people */
    cf_bufid src, dst;
    union {
        struct { uint32_t table; cf_wid resident; float scale; } embed; /* resident wins */
        struct { uint32_t first_table, n_tables; } rows;
        struct { cf_wid w; uint32_t src_col; float scale; bool accumulate; } linear;
        struct { cf_wid w, bias; cf_norm_kind kind; float eps; bool unit_offset; } norm;
        cf_attn_latent_def latent;
        cf_attn_def attn;
        cf_attn_delta_def delta;
        cf_attn_decay_def decay;
        cf_attn_bias_def bias;
        cf_attn_cross_def cross;
        struct { cf_wid k, v; uint32_t k_slot, v_slot; cf_bufid k_buf, v_buf; } cross_kv;
        struct { cf_wid gate, up, down; cf_bufid g, u; uint32_t ffn; cf_act_params act; } dense;
        struct { cf_wid w; cf_bufid g; } gate;
        cf_route_def route;
        struct { uint32_t moe; cf_act_params act; bool weight_on_input; } experts;
        struct { float scale; } add;
        struct { float scale; } scale;
        struct { cf_wid w, bias; float scale, cap; } head; /* cap 0: none */
    } u;
} cf_step;

/* The KV cache: `slots` independent caches of `width` values per position, and beside them the small
 * keys of indexes. */
typedef struct cf_kv_def {
    uint32_t slots, width;
    uint32_t index_slots, index_width;
    bool latent; /* f32 by default: an f16 latent is known to hurt */
} cf_kv_def;

/* What a session carries from batch to batch in place of a cache: `rows` rows of `width` floats. It
 * cannot be taken back by positions: a session with states rewinds to its beginning only. */
typedef struct cf_state_def {
    uint32_t rows, width;
} cf_state_def;

typedef struct cf_model {
    cf_spec spec;
    char *dir;    /* of its files */
    char *file;   /* the one that was opened, where a file is the model; NULL: dir is */
    char *config; /* as JSON */
    cf_catalogue *cat;
    struct cf_gguf *gguf; /* metadata (storage/gguf.h), where that is what the files are */
    cf_pack *pack;        /* the file is a pack, which owns gguf; NULL: it is none */
    const cf_tokenizer_rules *tokenizer_rules;
    cf_weight_def *weights;
    uint32_t n_weights;
    cf_moe_def *moe;
    uint32_t n_moe;
    cf_table_def *tables;
    uint32_t n_tables;
    cf_rope_def *ropes;
    uint32_t n_ropes;
    cf_buf_def *bufs;
    uint32_t n_bufs;
    cf_step *steps;
    uint32_t n_steps;
    uint32_t n_encoder_steps; /* the first steps are a plan of their own: a session's input, once */
    cf_kv_def kv;
    cf_state_def *states;
    uint32_t n_states;
    uint32_t *constants; /* words that steps need on the device and no tensor holds */
    uint32_t n_constants;
    /* Recognised and left out: e.g. a multi-token-prediction module. */
    uint32_t n_skipped;
    uint64_t skipped_bytes;
    char skipped_what[96];
} cf_model;

void cf_model_free(cf_model **model); /* accepts NULL; leaves NULL */
const char *cf_model_path(const cf_model *model); /* what was opened, for messages */
/* Where its tokenizer may be; valid as long as the model. */
cf_tokenizer_place cf_model_tokenizer_place(const cf_model *model);

const char *cf_step_name(cf_step_kind kind);
/* The dense weights that a step reads, its matrices in the order of their use (dense.h streams them
 * in it); returns how many. */
enum { CF_STEP_WEIGHTS = 16 };
uint32_t cf_step_weights(const cf_step *step, cf_wid out[CF_STEP_WEIGHTS]);
/* Weight bytes that a step reads for one row (EXPERTS: top_k records). */
uint64_t cf_step_bytes(const cf_model *model, const cf_step *step);
uint64_t cf_weight_code_bytes(const cf_weight_def *w); /* without its scales */
uint64_t cf_weight_def_bytes(const cf_weight_def *w);  /* with them */
/* Scales of a matrix [rows, cols]; 0 where it has none. */
uint64_t cf_scale_def_bytes(const cf_scale_def *s, uint64_t rows, uint64_t cols);
/* Whether activations may be rounded to 8 bits before they meet this matrix (gpu/ops.h, x_q8): its own
 * values have 8 bits or less. What they meet in routers, indexes, one-row gates and the head (which
 * decide, by small differences) stays as it is, as do norms and attention itself. */
static inline bool cf_matrix_takes_q8(cf_format format, uint32_t rows)
{
    return format > CF_BF16 && rows > 1;
}
/* Steps of the plan that have such a matrix. */
uint32_t cf_model_q8_steps(const cf_model *model);
uint64_t cf_model_resident_bytes(const cf_model *model); /* stored bytes, unaligned */
uint64_t cf_state_bytes(const cf_state_def *state); /* of one session, once */
uint64_t cf_moe_record_bytes(const cf_moe_def *moe); /* all of it, unpacked */
uint64_t cf_moe_stored_bytes(const cf_moe_def *moe); /* of all records, in the files */

#endif
