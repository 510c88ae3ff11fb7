/* The memory plan: what a model, a device and a budget in bytes come to, before anything is
 * allocated. `info` prints it; the engine allocates by it; the ledger holds it to its promises.
 * Pure functions of their arguments (and of the machine's free memory for absent budgets). */
#ifndef CF_RUNTIME_BUDGET_H
#define CF_RUNTIME_BUDGET_H

#include "gpu/gpu.h"
#include "runtime/base/align.h"
#include "runtime/catflap.h"
#include "runtime/dense_hold.h"
#include "runtime/dense_plan.h"
#include "runtime/model.h"
#include "runtime/slots.h"

/* Device buffers of the executor; sizes are in the plan. */
typedef enum {
    CF_XB_IDS,          /* chosen ids [rows, k] */
    CF_XB_CHOICE,       /* combine weights [rows, k] */
    CF_XB_HOST_IDS,     /* the same, readable */
    CF_XB_HOST_CHOICE,
    CF_XB_PAIRS,        /* (row, rank) by expert [rows * k] */
    CF_XB_EXPERT_H,     /* [rows * k, ffn] */
    CF_XB_EXPERT_OUT,   /* [rows * k, hidden] */
    CF_XB_LOGITS,       /* [CF_HEAD_ROWS, vocab], readable */
    CF_XB_HIDDEN,       /* [CF_HEAD_ROWS, hidden], readable: final or layer states */
    CF_XB_ROW_INFO,     /* cf_row_info [rows] */
    CF_XB_TOKENS,       /* ids [rows], for a resident embedding */
    CF_XB_RAW_ROWS,     /* rows of tables as stored: a part for each step that reads some */
    CF_XB_COS_SIN,      /* per rope [rows, n_rot / 2, 2] */
    CF_XB_ROW_SCALE,    /* a factor a row, for queries sharpened with the position */
    CF_XB_RUNS,         /* cf_state_run [rows] */
    CF_XB_CONSTANTS,    /* the model's */
    CF_XB_PICKED_IDS,   /* as CF_XB_IDS, where the host had a say in them */
    CF_XB_PICKED_CHOICE,
    CF_XB_HOST_LOGITS,  /* [rows, experts], readable, where the host chooses by them */
    CF_XB_CROSS_INFO,   /* cf_row_info [rows]: the encoder's cells */
    CF_XB_SCORES,       /* of cells [index rows, ctx], where attention chooses them */
    CF_XB_PREDICT,      /* the next layer's choice, foreseen: its parts side by side */
    CF_XB_HOST_PREDICT, /* ids and weights of it, readable */
    CF_XB_COUNT
} cf_exec_buf;

enum {
    CF_HEAD_ROWS = 16, /* logits are computed for this many rows at a time */
    CF_RAW_ALIGN = 256 /* of a step's part of CF_XB_RAW_ROWS */
};

/* What a part of CF_XB_PREDICT and CF_XB_HOST_PREDICT takes. */
static inline uint64_t cf_predict_part(uint64_t bytes)
{
    return cf_align_up(bytes, 256);
}

typedef struct cf_mem_item {
    const char *name;
    uint64_t bytes;
} cf_mem_item;

enum { CF_MEM_ITEMS = 16 };

typedef struct cf_memory_plan {
    /* Settings as resolved. */
    uint32_t ctx, chunk, sessions, align;
    cf_format kv_dtype;
    uint64_t vram_budget, ram_budget;
    bool vram_chosen, ram_chosen; /* by us, not by the user */
    char vram_from[320], ram_from[320]; /* why they are what they are, for people */
    /* The device's share: items, then slots. */
    cf_mem_item vram[CF_MEM_ITEMS], ram[CF_MEM_ITEMS];
    uint32_t n_vram, n_ram;
    uint64_t vram_fixed, ram_fixed; /* sums of the items, slots and windows not included */
    cf_dense_plan dense; /* which dense weights are resident, which streamed */
    cf_hold_plan hold;   /* which of the streamed ones wait in RAM */
    cf_slots_shape shape;
    uint32_t row_entries;
    uint64_t row_window_bytes;
    uint64_t exec_bytes[CF_XB_COUNT], kv_slot_bytes, index_slot_bytes;
    uint64_t router_bytes; /* host scratch of routers that look at whole batches; 0: there are none */
    uint32_t index_rows; /* rows whose cells are scored at a time; 0: none ever */
    uint64_t total_records, mean_record_bytes;
    uint64_t vram_min, ram_min; /* the smallest budgets that work with these settings */
    uint64_t vram_dense;        /* the smallest with which all dense weights are resident */
    uint64_t ram_dense;         /* one with which all that are streamed are held; 0: there is none */
    cf_wid widest;              /* the largest matrix streamed at vram_min, or CF_NO_WEIGHT */
    uint64_t vram_all;          /* with every expert in its slot */
} cf_memory_plan;

/* Of a cache's format, as --kv has it. */
static inline const char *cf_kv_name(cf_format f)
{
    return f == CF_F32 ? "f32" : f == CF_F16 ? "f16" : "q8";
}

uint64_t cf_kv_bytes(const cf_memory_plan *plan, const cf_model *model); /* of the whole cache */
/* Device bytes of one of the model's states: two slots a session, what it has and what it gets. */
uint64_t cf_state_slots_bytes(const cf_memory_plan *plan, const cf_state_def *state);

/* align: of the model's files. tokenizer_bytes: host memory of the tokenizer. Refuses with the
 * smallest budget that would do. */
int cf_memory_plan_make(cf_memory_plan *out, const cf_model *model, const cf_gpu_info *device,
                        const cf_options *options, uint32_t align, uint64_t tokenizer_bytes,
                        cf_err *err);

#endif
