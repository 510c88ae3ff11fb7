/* The memory plan: see budget.h.
 *
 * Order of claims on the device: KV cache, activations and scratch for one chunk, 2 x top-k expert
 * slots; then dense weights, and slots with all that is left, up to one per record. A dense weight
 * is read for each token when it is not resident, an expert only when it is chosen and was not kept:
 * no slot beyond the fewest is worth a byte of them. What does not fit is streamed (dense_plan.h).
 *
 * On the host, beside what must be: slabs, half of what is left at most; tables of slots; rows of a
 * chunk. Where memory is discrete, streamed dense weights come next (dense_hold.h) and the RAM tier
 * of experts last, for the same reason: a byte that is held saves a byte read per batch, a byte of
 * the tier only as often as its expert is chosen and not in a slot. Slabs save nothing: beside held
 * weights there are only as many as keep the drive at work.
 *
 * Below the fewest the plan refuses: it never shrinks the chunk or the context behind the user's
 * back. */
#include "runtime/budget.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/machine.h"
#include "runtime/copier.h"
#include "runtime/dense.h"
#include "runtime/exec.h"
#include "runtime/expert_cache.h"
#include "runtime/predict.h"
#include "runtime/router.h"
#include "runtime/rows.h"
#include "runtime/weights.h"
#include "storage/gguf.h"

enum {
    DEFAULT_CTX = 4096,
    DEFAULT_CHUNK = 256,
    MAX_CHUNK = 65536,
    PAGE = 4096,
    MIN_SLABS = CF_MIN_SLABS,
    MOST_SLABS = 64,
    STAGING_BYTES = 64 << 20, /* in slabs: twice what the ring has under way (64 reads of 512 KiB),
                                 for what is read and what is still being copied */
    UNPACK_SLABS = 8,         /* one for each record that workers check, decode or join meanwhile */
    GUESS_SHARE = 16, /* one place for a guess in so many, at most */
    ROW_CACHE_BYTES = 64 << 20, /* at most, unless a chunk needs more to be one batch */
    ENGINE_BYTES = 512 << 10,   /* rings, reads in flight, command lists: whatever the model */
    FILE_BYTES = 1024,          /* a file's path, descriptor and identity */
    SCORE_BYTES = 32 << 20,     /* of scores of cells, unless one row needs more */
    ROOM_BYTES = 64 << 20,      /* left free on the machine when a budget is chosen */
    DEVICE_ROOM_BYTES = 256 << 20 /* likewise on a device with memory of its own, at least */
};

static void item_add(cf_mem_item *items, uint32_t *n, uint64_t *sum, const char *name,
                     uint64_t bytes)
{
    cf_assert(*n < CF_MEM_ITEMS);
    items[(*n)++] = (cf_mem_item){name, bytes};
    *sum += bytes;
}

/* Blocks of 32 values, and the part of each head is whole blocks. */
static int kv_blocks_check(const cf_model *m, uint32_t width, const char *what, cf_err *err)
{
    uint32_t block = cf_formats[CF_Q8_0].block_values;
    if (width % block == 0)
        return 0;
    return CF_FAIL(err, CF_ELIMIT,
                   "--kv q8 keeps blocks of %u values, and %s of %s are %u wide: --kv f16 would do",
                   block, what, m->spec.name, width);
}

static int kv_q8_check(const cf_model *m, const cf_gpu_info *device, cf_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; i < m->n_steps; i++) {
        const cf_step *s = &m->steps[i];
        if (s->kind == CF_STEP_ATTN)
            CF_TRY(kv_blocks_check(m, s->u.attn.head, "the heads", err));
        if (s->kind == CF_STEP_ATTN_BIAS)
            CF_TRY(kv_blocks_check(m, s->u.bias.head, "the heads", err));
        if (s->kind == CF_STEP_ATTN_CROSS)
            CF_TRY(kv_blocks_check(m, s->u.cross.head, "the heads", err));
        if (s->kind != CF_STEP_ATTN_LATENT)
            continue;
        CF_TRY(kv_blocks_check(m, s->u.latent.rank_kv, "the latents", err));
        CF_TRY(kv_blocks_check(m, s->u.latent.rope, "the rotated keys", err));
        if (s->u.latent.indexed)
            CF_TRY(kv_blocks_check(m, s->u.latent.index.head, "the keys of the index", err));
    }
    if (!device->kv_q8 && m->kv.slots)
        return CF_FAIL(
            err, CF_EDEVICE,
            "device %s:%d (%s) has no cache of keys and values in q8; ref can, or --kv f16 "
            "would do",
            device->backend, device->index, device->name);
fail:
    return rc;
}

static int kv_choose(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                     const char *kv, cf_err *err)
{
    static const cf_format formats[] = {CF_F16, CF_F32, CF_Q8_0};
    if (!kv || strcmp(kv, "auto") == 0) {
        p->kv_dtype = model->kv.latent ? CF_F32 : CF_F16;
        return 0;
    }
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcmp(kv, cf_kv_name(formats[i])) == 0) {
            p->kv_dtype = formats[i];
            return p->kv_dtype == CF_Q8_0 ? kv_q8_check(model, device, err) : 0;
        }
    return CF_FAIL(err, -EINVAL, "kv format \"%s\" is unknown; known: f16, f32, q8", kv);
}

static int settings_resolve(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                            const cf_options *o, cf_err *err)
{
    p->sessions = o->sessions ? o->sessions : 1;
    p->ctx = o->ctx ? o->ctx : (uint32_t)cf_min_u64(model->spec.ctx_max, DEFAULT_CTX);
    if (p->ctx > model->spec.ctx_max)
        return CF_FAIL(err, CF_ELIMIT, "--ctx %u exceeds the model's %u positions%s%s", p->ctx,
                       model->spec.ctx_max, model->spec.ctx_why[0] ? ": " : "",
                       model->spec.ctx_why);
    if (o->chunk > MAX_CHUNK)
        return CF_FAIL(err, CF_ELIMIT, "--chunk %u exceeds %d tokens", o->chunk, MAX_CHUNK);
    p->chunk = o->chunk ? o->chunk : DEFAULT_CHUNK;
    p->chunk = (uint32_t)cf_min_u64(p->chunk, p->ctx);
    if ((uint64_t)p->sessions * p->ctx > UINT32_MAX)
        return CF_FAIL(err, CF_ELIMIT, "%u sessions of %u positions exceed 2^32 cells", p->sessions,
                       p->ctx);
    return kv_choose(p, model, device, o->kv, err);
}

/* The most cells that a row of this model chooses; 0: it sees all. */
static uint32_t most_selected(const cf_model *model)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < model->n_steps; i++)
        if (model->steps[i].kind == CF_STEP_ATTN_LATENT && model->steps[i].u.latent.select_k > most)
            most = model->steps[i].u.latent.select_k;
    return most;
}

/* What the host needs to have a say in a choice. */
static void router_sizes(cf_memory_plan *p, const cf_model *model, const cf_route_def *d)
{
    uint32_t experts = model->moe[d->moe].experts;
    bool by_logits = d->pick == CF_PICK_EXPERTS_CHOOSE || d->pick == CF_PICK_BALANCED;
    uint64_t *logits = &p->exec_bytes[CF_XB_HOST_LOGITS];
    if (d->pick == CF_PICK_TOP && !d->capacity)
        return;
    p->router_bytes = cf_max_u64(
        p->router_bytes, cf_router_scratch(p->chunk, experts, d->pick == CF_PICK_BALANCED) +
                             (p->chunk + 1) * sizeof(int32_t));
    if (by_logits)
        *logits = cf_max_u64(*logits, (uint64_t)p->chunk * experts * sizeof(float));
}

/* Scratch for the largest choice that the plan foresees; none where it foresees none. */
static void predict_sizes(cf_memory_plan *p, const cf_model *model)
{
    uint64_t rows = cf_min_u64(p->chunk, CF_PREDICT_ROWS), device = 0, host = 0;
    for (uint32_t i = 0; i < model->n_steps; i++) {
        const cf_step *s = &model->steps[i];
        cf_predict f = {0};
        if (s->kind == CF_STEP_ROUTE)
            f = cf_predict_find(model, i);
        if (!f.route)
            continue;
        const cf_moe_def *moe = &model->moe[f.route->u.route.moe];
        uint64_t chosen = cf_predict_part(rows * moe->top_k * 4);
        uint64_t total = (uint64_t)moe->experts + moe->zero_experts;
        device = cf_max_u64(device, cf_predict_part(rows * moe->hidden * 4) +
                                        cf_predict_part(rows * total * 4) + 2 * chosen);
        host = cf_max_u64(host, 2 * chosen);
    }
    p->exec_bytes[CF_XB_PREDICT] = device;
    p->exec_bytes[CF_XB_HOST_PREDICT] = host;
}

static void exec_sizes(cf_memory_plan *p, const cf_model *model)
{
    uint64_t rows = p->chunk, k = 0, ffn = 0, raw = 0, rot = 0;
    const cf_spec *s = &model->spec;
    for (uint32_t i = 0; i < model->n_moe; i++) {
        k = cf_max_u64(k, model->moe[i].top_k);
        ffn = cf_max_u64(ffn, model->moe[i].ffn);
    }
    for (uint32_t i = 0; i < model->n_steps; i++) {
        const cf_step *step = &model->steps[i];
        /* Each such step of a batch has its own part: no wait lies between them. */
        if (step->kind == CF_STEP_ROWS || step->kind == CF_STEP_EMBED)
            raw += cf_align_up(rows * cf_step_bytes(model, step), CF_RAW_ALIGN);
    }
    for (uint32_t i = 0; i < model->n_ropes; i++)
        rot += model->ropes[i].n_rot;
    uint64_t head = cf_min_u64(rows, CF_HEAD_ROWS);
    uint64_t *b = p->exec_bytes;
    b[CF_XB_IDS] = b[CF_XB_CHOICE] = b[CF_XB_HOST_IDS] = b[CF_XB_HOST_CHOICE] = rows * k * 4;
    b[CF_XB_PAIRS] = rows * k * 4;
    b[CF_XB_EXPERT_H] = rows * k * ffn * 4;
    b[CF_XB_EXPERT_OUT] = rows * k * s->hidden * 4;
    b[CF_XB_LOGITS] = head * s->vocab * 4;
    uint32_t selected = most_selected(model);
    p->index_rows = 0;
    if (selected && selected < p->ctx)
        p->index_rows =
            (uint32_t)cf_max_u64(1, cf_min_u64(rows, SCORE_BYTES / ((uint64_t)p->ctx * 4)));
    b[CF_XB_SCORES] = (uint64_t)p->index_rows * p->ctx * 4;
    b[CF_XB_HIDDEN] = cf_max_u64(head * s->hidden, selected) * 4;
    b[CF_XB_ROW_INFO] = rows * sizeof(cf_row_info);
    b[CF_XB_TOKENS] = rows * 4;
    b[CF_XB_RAW_ROWS] = raw;
    b[CF_XB_COS_SIN] = rows * rot * 4;
    b[CF_XB_ROW_SCALE] = rows * 4;
    b[CF_XB_RUNS] = rows * sizeof(cf_state_run);
    for (uint32_t i = 0; i < model->n_steps; i++)
        if (model->steps[i].kind == CF_STEP_ROUTE)
            router_sizes(p, model, &model->steps[i].u.route);
    b[CF_XB_PICKED_IDS] = b[CF_XB_PICKED_CHOICE] = p->router_bytes ? rows * k * 4 : 0;
    b[CF_XB_CROSS_INFO] = model->n_encoder_steps ? rows * sizeof(cf_row_info) : 0;
    b[CF_XB_CONSTANTS] = (uint64_t)model->n_constants * sizeof(float);
    predict_sizes(p, model);
    for (int i = 0; i < CF_XB_COUNT; i++)
        b[i] = cf_align_up(b[i] ? b[i] : 1, PAGE);
    uint64_t cells = (uint64_t)p->sessions * p->ctx;
    p->kv_slot_bytes =
        cf_align_up(cells * cf_format_row_bytes(p->kv_dtype, model->kv.width), PAGE);
    p->index_slot_bytes =
        cf_align_up(cells * cf_format_row_bytes(p->kv_dtype, model->kv.index_width), PAGE);
}

uint64_t cf_kv_bytes(const cf_memory_plan *p, const cf_model *model)
{
    return model->kv.slots * p->kv_slot_bytes + model->kv.index_slots * p->index_slot_bytes;
}

uint64_t cf_state_slots_bytes(const cf_memory_plan *p, const cf_state_def *state)
{
    return cf_align_up(2 * (uint64_t)p->sessions * cf_state_bytes(state), PAGE);
}

/* Slot and slab sizes: the largest record after alignment. */
static void shape_sizes(cf_memory_plan *p, const cf_model *model)
{
    uint64_t slab = 2 * p->align, slot = CF_COPY_ALIGN, sum = 0;
    for (uint32_t m = 0; m < model->n_moe; m++) {
        const cf_moe_def *d = &model->moe[m];
        for (uint32_t e = 0; e < d->experts; e++) {
            cf_layout layout;
            uint64_t place[CF_MAX_PIECES];
            cf_moe_layout(d, e, p->align, &layout);
            slab = cf_max_u64(slab, layout.bytes);
            slot = cf_max_u64(slot, cf_copy_place(&layout, place));
        }
        p->total_records += d->experts;
        sum += d->experts * cf_moe_record_bytes(d);
    }
    p->mean_record_bytes = p->total_records ? sum / p->total_records : 0;
    p->shape.slab_bytes = slab;
    p->shape.slot_bytes = p->shape.in_place ? slab : slot;
}

/* Without the dense weights. */
static void vram_items(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device)
{
    uint64_t acts = 0, scratch = 0, states = 0;
    for (uint32_t i = 0; i < model->n_bufs; i++)
        acts += cf_align_up((uint64_t)p->chunk * model->bufs[i].width * 4, PAGE);
    for (int i = 0; i < CF_XB_COUNT; i++)
        scratch += p->exec_bytes[i];
    for (uint32_t i = 0; i < model->n_states; i++)
        states += cf_state_slots_bytes(p, &model->states[i]);
    item_add(p->vram, &p->n_vram, &p->vram_fixed, "resident weights", 0); /* see dense_fill */
    item_add(p->vram, &p->n_vram, &p->vram_fixed, "passage of streamed weights", 0);
    item_add(p->vram, &p->n_vram, &p->vram_fixed, "KV cache", cf_kv_bytes(p, model));
    if (states)
        item_add(p->vram, &p->n_vram, &p->vram_fixed, "recurrent state", states);
    item_add(p->vram, &p->n_vram, &p->vram_fixed, "activations of a chunk", acts);
    item_add(p->vram, &p->n_vram, &p->vram_fixed, "expert rows and buffers of a chunk",
             scratch + device->overhead_bytes);
}

static void ram_items(cf_memory_plan *p, const cf_model *model, uint64_t tokenizer_bytes)
{
    uint64_t experts = 0, k = 0, extents = 0;
    for (uint32_t i = 0; i < model->n_moe; i++) {
        extents += (uint64_t)model->moe[i].experts * model->moe[i].n_extents;
        experts = cf_max_u64(experts, model->moe[i].experts);
        k = cf_max_u64(k, model->moe[i].top_k);
    }
    /* Lists that grew by doubling. */
    uint64_t lists = model->n_weights * sizeof *model->weights +
                     model->n_steps * sizeof *model->steps + model->n_bufs * sizeof *model->bufs +
                     model->n_tables * sizeof *model->tables + model->n_moe * sizeof *model->moe +
                     model->n_ropes * sizeof *model->ropes +
                     model->n_states * sizeof *model->states +
                     model->n_constants * sizeof *model->constants;
    uint64_t defs = sizeof *model + 2 * lists + model->n_weights * 2 * sizeof(cf_weight) +
                    extents * sizeof(cf_extent);
    uint64_t row = k * (sizeof(uint32_t) + sizeof(float)) +
                   (model->n_tables + 1) * sizeof(uint64_t) + sizeof(cf_row);
    uint64_t tables = cf_policy_memory(model->n_moe, (uint32_t)experts, (uint32_t)k) +
                      experts * 5 * sizeof(uint32_t) +
                      model->n_moe * (sizeof(cf_expert_counts) + sizeof(cf_predict)) +
                      p->chunk * row + p->router_bytes +
                      (uint64_t)p->sessions * (p->ctx * sizeof(int32_t) + PAGE);
    uint64_t engine = CF_EXPERTS_PER_OP * (sizeof(cf_cache_entry) + sizeof(cf_expert_work)) +
                      cf_catalogue_file_count(model->cat) * (uint64_t)FILE_BYTES + ENGINE_BYTES;
    item_add(p->ram, &p->n_ram, &p->ram_fixed, "tokenizer", tokenizer_bytes);
    item_add(p->ram, &p->n_ram, &p->ram_fixed, "catalogue and plan",
             cf_catalogue_memory(model->cat) + defs +
                 (model->pack   ? cf_pack_memory(model->pack)
                  : model->gguf ? cf_gguf_memory(model->gguf)
                                : 0) +
                 (model->config ? strlen(model->config) + 1 : 0));
    item_add(p->ram, &p->n_ram, &p->ram_fixed, "policy and batch tables", tables);
    item_add(p->ram, &p->n_ram, &p->ram_fixed, "rings, reads and commands", engine);
    item_add(p->ram, &p->n_ram, &p->ram_fixed, "schedule of streamed weights",
             cf_dense_memory(&p->dense));
}

/* What slots and slabs take of either pool. */
static void shape_memory(const cf_memory_plan *p, const cf_gpu_info *device, uint64_t n_slots,
                         uint32_t n_slabs, uint64_t *vram, uint64_t *ram)
{
    cf_slots_shape shape = p->shape;
    shape.n_slots = (uint32_t)n_slots;
    shape.n_slabs = n_slabs;
    cf_slots_memory(&shape, device->max_alloc_bytes, vram, ram);
}

static uint32_t min_slots(const cf_model *model)
{
    uint32_t k = 1;
    for (uint32_t i = 0; i < model->n_moe; i++)
        k = model->moe[i].top_k > k ? model->moe[i].top_k : k;
    return 2 * k;
}

/* The least of either budget, before and after the dense weights are settled. */
static int vram_minima(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                       cf_err *err)
{
    uint32_t slots = min_slots(model);
    uint64_t vram, unused, all, least;
    shape_memory(p, device, slots, MIN_SLABS, &vram, &unused);
    int rc = cf_dense_bounds(model, &p->shape, p->align, device->max_alloc_bytes, &all, &least,
                             &p->widest, err);
    if (rc < 0)
        return rc;
    p->vram_min = p->vram_fixed + vram + least;
    p->vram_dense = p->vram_fixed + vram + all;
    shape_memory(p, device, cf_max_u64(p->total_records, slots), MIN_SLABS, &vram, &unused);
    p->vram_all = p->vram_fixed + vram + all;
    return 0;
}

static void ram_minimum(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device)
{
    uint32_t slots = min_slots(model);
    uint64_t unused, ram;
    shape_memory(p, device, slots, MIN_SLABS, &unused, &ram);
    p->ram_min = p->ram_fixed + p->dense.host_bytes + ram + cf_cache_memory(model, slots, 0) +
                 cf_rows_memory(p->row_window_bytes, cf_rows_min_entries(model));
}

/* Streamed dense weights in RAM: as much as `left` holds. None in place, where there is one tier. */
static int hold_choose(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                       uint64_t left, cf_err *err)
{
    int rc = 0;
    p->hold = (cf_hold_plan){0};
    if (p->shape.in_place || !p->dense.n_streamed)
        return 0;
    uint8_t *streamed = calloc(model->n_weights + 1, 1);
    uint64_t *held = calloc(model->n_weights + 1, sizeof *held);
    if (streamed && held) {
        cf_dense_choose(model, p->dense.largest, p->dense.allowance, streamed);
        cf_hold_choose(model, streamed, p->align, device->max_alloc_bytes, left, held, &p->hold);
    } else {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for a plan of %u weights", model->n_weights);
    }
    free(streamed);
    free(held);
    return rc;
}

/* Dense weights: all that the budget holds beside the fewest slots. */
static int dense_fill(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                      cf_err *err)
{
    uint64_t slots, unused;
    shape_memory(p, device, min_slots(model), MIN_SLABS, &slots, &unused);
    int rc = cf_dense_plan_make(&p->dense, model, &p->shape, p->align, device->max_alloc_bytes,
                                p->vram_budget - p->vram_fixed - slots, err);
    if (rc < 0)
        return rc;
    p->vram[0].bytes = p->dense.resident_bytes;
    p->vram[1].bytes = p->dense.device_bytes;
    p->vram_fixed += p->dense.resident_bytes + p->dense.device_bytes;
    return hold_choose(p, model, device, 0, err);
}

/* Host bytes of a RAM tier of n places, with their tables. */
static uint64_t tier_bytes(const cf_memory_plan *p, const cf_model *model,
                           const cf_gpu_info *device, uint64_t n)
{
    uint64_t unused, ram;
    cf_slots_shape shape = {.n_tier = (uint32_t)n, .slot_bytes = p->shape.slot_bytes,
                            .slab_bytes = p->shape.slab_bytes};
    cf_slots_memory(&shape, device->max_alloc_bytes, &unused, &ram);
    return ram + cf_cache_memory(model, 0, (uint32_t)n) - cf_cache_memory(model, 0, 0);
}

/* What the machine has left, less some room. */
static uint64_t machine_bytes(cf_machine *m)
{
    cf_machine_look(m, "");
    return m->available > ROOM_BYTES ? m->available - ROOM_BYTES : m->available;
}

/* The most that the device should be asked for when nobody says how much; where from in `from`. */
static uint64_t device_bytes(const cf_gpu_info *device, char *from, size_t size)
{
    cf_machine machine;
    const double mib = 1 << 20;
    if (device->unified || device->cpu) {
        uint64_t half = machine_bytes(&machine) / 2;
        snprintf(from, size, "half of the %.0f MiB of host memory left (%s)",
                 (double)machine.available / mib, machine.from);
        return half;
    }
    if (device->free_bytes) {
        uint64_t room = cf_max_u64(device->free_bytes / 16, DEVICE_ROOM_BYTES);
        snprintf(from, size, "%.0f MiB that the driver says are free on the device, less room of "
                 "%.0f MiB", (double)device->free_bytes / mib, (double)room / mib);
        return device->free_bytes > room ? device->free_bytes - room : 0;
    }
    snprintf(from, size, "7/8 of the device's %.0f MiB: its driver does not say what is free",
             (double)device->heap_bytes / mib);
    return device->heap_bytes - device->heap_bytes / 8;
}

static void vram_choose(cf_memory_plan *p, const cf_gpu_info *device, const cf_options *o)
{
    p->vram_budget = o->vram_bytes;
    p->vram_chosen = !o->vram_bytes;
    snprintf(p->vram_from, sizeof p->vram_from, "as given");
    if (!p->vram_chosen)
        return;
    p->vram_budget = device_bytes(device, p->vram_from, sizeof p->vram_from);
    if (p->vram_budget < p->vram_all)
        return;
    p->vram_budget = p->vram_all;
    snprintf(p->vram_from, sizeof p->vram_from, "all that this model can use");
}

static void ram_choose(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                       const cf_options *o)
{
    p->ram_budget = o->ram_bytes;
    p->ram_chosen = !o->ram_bytes;
    snprintf(p->ram_from, sizeof p->ram_from, "as given");
    if (!p->ram_chosen)
        return;
    cf_machine machine;
    uint64_t available = machine_bytes(&machine), unused, slabs;
    bool shared = device->unified || device->cpu;
    uint64_t left = shared && available > p->vram_budget ? available - p->vram_budget : available;
    shape_memory(p, device, 0, MOST_SLABS, &unused, &slabs);
    uint64_t want = p->ram_min + slabs + ROW_CACHE_BYTES +
                    2 * cf_cache_memory(model, (uint32_t)p->total_records, 0) +
                    p->hold.all_bytes;
    if (!p->shape.in_place && !p->shape.staged)
        want += tier_bytes(p, model, device, p->total_records);
    p->ram_budget = cf_max_u64(cf_min_u64(left / 2, want), p->ram_min);
    if (p->ram_budget == want)
        snprintf(p->ram_from, sizeof p->ram_from, "all that this model can use");
    else if (p->ram_budget == p->ram_min)
        snprintf(p->ram_from, sizeof p->ram_from, "the least that works");
    else
        snprintf(p->ram_from, sizeof p->ram_from, "half of the %.0f MiB of host memory left%s (%s)",
                 (double)left / (1 << 20), shared ? " beside --vram" : "", machine.from);
}

/* As many slabs as are of use; with bytes in RAM that save reads at stake, no more than two sets of a
 * layer's choice or than keep the drive (and what unpacks records) at work. */
static uint32_t slabs_most(const cf_memory_plan *p, const cf_model *model)
{
    if (!p->hold.all_bytes)
        return MOST_SLABS;
    uint64_t busy = MIN_SLABS + cf_ceil_div(STAGING_BYTES, p->shape.slab_bytes) +
                    (cf_cache_unpacks(model) ? UNPACK_SLABS : 0);
    return (uint32_t)cf_min_u64(cf_min_u64(busy, min_slots(model)), MOST_SLABS);
}

/* Slabs: as many as are of use and fit half of what --ram leaves and, where each needs a staging
 * buffer of the device, a quarter of what --vram leaves. Returns the bytes of RAM beyond the fewest. */
static uint64_t slabs_choose(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                             uint64_t left)
{
    uint32_t slots = min_slots(model), most = slabs_most(p, model);
    uint64_t vram_few, ram_few, vram, ram, taken = 0;
    p->shape.n_slabs = p->shape.in_place ? 0 : MIN_SLABS;
    shape_memory(p, device, slots, MIN_SLABS, &vram_few, &ram_few);
    uint64_t vram_left = p->vram_budget - p->vram_fixed - vram_few;
    for (uint32_t n = MIN_SLABS + 1; n <= most && !p->shape.in_place; n++) {
        shape_memory(p, device, slots, n, &vram, &ram);
        if (ram - ram_few > left / 2 || vram - vram_few > vram_left / 4)
            break;
        p->shape.n_slabs = n;
        taken = ram - ram_few;
    }
    return taken;
}

/* Slots: as many as --vram holds, of at most `most`. The fewest are known to fit. */
static void slots_choose(cf_memory_plan *p, const cf_gpu_info *device, uint32_t fewest,
                         uint64_t most)
{
    uint64_t low = fewest, high = cf_max_u64(most, fewest), vram, unused;
    while (low < high) {
        uint64_t mid = low + (high - low + 1) / 2;
        shape_memory(p, device, mid, p->shape.n_slabs, &vram, &unused);
        if (vram <= p->vram_budget - p->vram_fixed)
            low = mid;
        else
            high = mid - 1;
    }
    p->shape.n_slots = (uint32_t)low;
}

/* Places for guesses come out of the slots: two sets' worth, so that wrong ones on their way do not
 * keep the next out, but no more than a share of the slots, which keep theirs anyway. None where
 * nothing is foreseen, or nothing missed. */
static void guesses_choose(cf_memory_plan *p, const cf_model *model, uint32_t fewest)
{
    uint32_t n = p->shape.n_slots;
    if (n <= fewest || n >= p->total_records || !cf_predict_any(model))
        return;
    uint32_t share = (uint32_t)cf_ceil_div(n, GUESS_SHARE);
    uint64_t most = cf_min_u64(n - fewest, p->total_records - n);
    p->shape.n_guess = (uint32_t)cf_min_u64(cf_min_u64(fewest, share), most);
    p->shape.n_slots -= p->shape.n_guess;
}

/* The RAM tier: what --ram leaves, of at most one place for each record without a slot. Where host
 * pages cannot be imported there is none: every copy would be made twice. */
static void tier_choose(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                        uint64_t left)
{
    p->shape.n_tier = 0;
    if (p->shape.in_place || p->shape.staged || p->total_records <= p->shape.n_slots)
        return;
    uint64_t low = 0, high = p->total_records - p->shape.n_slots;
    while (low < high) {
        uint64_t mid = low + (high - low + 1) / 2;
        if (tier_bytes(p, model, device, mid) <= left)
            low = mid;
        else
            high = mid - 1;
    }
    p->shape.n_tier = (uint32_t)low;
}

static int vram_refuse(const cf_memory_plan *p, const cf_model *model, cf_err *err)
{
    char dense[200] = "all dense weights";
    if (p->widest != CF_NO_WEIGHT)
        snprintf(dense, sizeof dense,
                 "what must stay of the dense weights, the passage of the others (the largest, "
                 "%.80s, takes %llu)",
                 model->weights[p->widest].name,
                 (unsigned long long)cf_weight_code_bytes(&model->weights[p->widest]));
    return CF_FAIL(err, CF_ELIMIT,
                   "--vram %llu is too small: %llu bytes are needed for %s, a context of %u, a "
                   "chunk of %u and %u expert slots; a smaller --chunk or --ctx needs less",
                   (unsigned long long)p->vram_budget, (unsigned long long)p->vram_min, dense,
                   p->ctx, p->chunk, min_slots(model));
}

/* Windows of rows: those beyond a chunk's are worth less than what could be in RAM instead.
 * Returns the bytes of RAM beyond the fewest. */
static uint64_t rows_choose(cf_memory_plan *p, const cf_model *model, uint64_t left)
{
    p->row_entries = cf_rows_min_entries(model);
    if (!p->row_window_bytes)
        return 0;
    uint64_t each = cf_rows_memory(p->row_window_bytes, 1);
    uint64_t batch = (uint64_t)p->chunk * p->row_entries;
    uint64_t most = cf_max_u64(batch, ROW_CACHE_BYTES / each);
    uint64_t beyond = left - cf_min_u64(left, p->hold.all_bytes);
    if (p->hold.all_bytes) /* a row of a chunk is used once as well, but by no token of decode */
        batch = cf_min_u64(batch, left / 8 / each);
    if (p->hold.all_bytes || (!p->shape.in_place && !p->shape.staged))
        most = cf_min_u64(most, cf_max_u64(batch, beyond / 8 / each));
    uint64_t rows = cf_min_u64(left / each, most);
    p->row_entries += (uint32_t)rows;
    return rows * each;
}

/* Half of what --ram leaves may go to slabs, half of the rest to the slots' tables; then come rows,
 * streamed dense weights, and the RAM tier takes what is left. */
static int shares_fill(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                       const cf_options *options, cf_err *err)
{
    uint32_t fewest = min_slots(model);
    if (p->ram_budget < p->ram_min)
        return CF_FAIL(err, CF_ELIMIT, "--ram %llu is too small: %llu bytes are needed",
                       (unsigned long long)p->ram_budget, (unsigned long long)p->ram_min);
    uint64_t left = p->ram_budget - p->ram_min;
    left -= slabs_choose(p, model, device, left);
    uint64_t per_slot = cf_cache_memory(model, 1, 0) - cf_cache_memory(model, 0, 0);
    slots_choose(p, device, fewest, cf_min_u64(p->total_records, fewest + left / 2 / per_slot));
    left -= (p->shape.n_slots - fewest) * per_slot;
    if (options->prefetch)
        guesses_choose(p, model, fewest);
    left -= rows_choose(p, model, left);
    int rc = hold_choose(p, model, device, left, err);
    if (rc < 0)
        return rc;
    left -= p->hold.memory_bytes;
    if (!options->no_tier)
        tier_choose(p, model, device, left);
    return 0;
}

/* A budget that holds all streamed dense weights, found by asking. */
static int ram_dense_find(cf_memory_plan *p, const cf_model *model, const cf_gpu_info *device,
                          const cf_options *options, cf_err *err)
{
    if (!p->hold.all_bytes || p->hold.bytes == p->dense.streamed_bytes) {
        p->ram_dense = p->hold.all_bytes ? p->ram_budget : 0;
        return 0;
    }
    /* More than enough: of much, each takes no more than it can use. */
    uint64_t rows = cf_rows_memory(p->row_window_bytes, p->chunk * cf_rows_min_entries(model));
    uint64_t tables = cf_cache_memory(model, (uint32_t)p->total_records, 0);
    uint64_t low = p->ram_budget;
    uint64_t slabs = STAGING_BYTES + (UNPACK_SLABS + 1) * p->shape.slab_bytes;
    uint64_t high = low + 2 * (p->hold.all_bytes + rows + tables + slabs);
    p->ram_dense = 0;
    while (high - low > PAGE) {
        cf_memory_plan with = *p;
        with.ram_budget = low + (high - low) / 2;
        int rc = shares_fill(&with, model, device, options, err);
        if (rc < 0)
            return rc;
        bool all = with.hold.bytes == p->dense.streamed_bytes;
        *(all ? &high : &low) = with.ram_budget;
        if (all)
            p->ram_dense = cf_align_up(with.ram_budget, PAGE);
    }
    return 0;
}

int cf_memory_plan_make(cf_memory_plan *out, const cf_model *model, const cf_gpu_info *device,
                        const cf_options *options, uint32_t align, uint64_t tokenizer_bytes,
                        cf_err *err)
{
    cf_memory_plan *p = out;
    *p = (cf_memory_plan){.align = align};
    int rc = settings_resolve(p, model, device, options, err);
    if (rc < 0)
        return rc;
    bool discrete = options->memory && strcmp(options->memory, "discrete") == 0;
    if (options->memory && !discrete && strcmp(options->memory, "auto") != 0)
        return CF_FAIL(err, -EINVAL, "memory mode \"%s\" is unknown; known: auto, discrete",
                       options->memory);
    p->shape.in_place = device->unified && device->imports && !discrete && align >= 512 &&
                        device->import_align <= 4096;
    p->shape.staged = !p->shape.in_place && !device->imports;
    p->row_window_bytes = cf_rows_window_bytes(model, align);
    exec_sizes(p, model);
    shape_sizes(p, model);
    vram_items(p, model, device);
    if ((rc = vram_minima(p, model, device, err)) < 0)
        return rc;
    vram_choose(p, device, options);
    if (p->vram_budget < p->vram_min)
        return vram_refuse(p, model, err);
    if ((rc = dense_fill(p, model, device, err)) < 0)
        return rc;
    ram_items(p, model, tokenizer_bytes);
    ram_minimum(p, model, device);
    ram_choose(p, model, device, options);
    if ((rc = shares_fill(p, model, device, options, err)) < 0)
        return rc;
    return ram_dense_find(p, model, device, options, err);
}
