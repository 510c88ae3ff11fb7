/* The memory plan of a model on a device: see info_memory.h. */
#include "tools/info_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/expert_cache.h"
#include "runtime/predict.h"
#include "runtime/rows.h"
#include "storage/files.h"
#include "tools/info_plan.h"
#include "tools/table.h"

/* ---- making it ---- */

static int files_align(const cf_model *model, bool direct, uint32_t *align, cf_err *err)
{
    cf_files files = {0};
    uint32_t n = cf_catalogue_file_count(model->cat);
    const char **paths = calloc(n + 1, sizeof *paths);
    if (!paths)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u file names", n);
    for (uint32_t i = 0; i < n; i++)
        paths[i] = cf_catalogue_path(model->cat, i);
    int rc = cf_files_open(&files, paths, n, direct, err);
    *align = files.align;
    cf_files_close(&files);
    free(paths);
    return rc;
}

static int tokenizer_ask(const cf_model *model, uint64_t *bytes, cf_info_memory *out, cf_err *err)
{
    const cf_tokenizer_place place = cf_model_tokenizer_place(model);
    cf_tokenizer *tok = NULL;
    *bytes = 0;
    int rc = cf_tokenizer_open(&place, &tok, NULL, err);
    out->no_text[0] = 0;
    if (rc == 0 && tok) {
        const char *why = cf_tokenizer_refusal(tok);
        *bytes = cf_tokenizer_memory(tok);
        snprintf(out->no_text, sizeof out->no_text, "%s", why ? why : "");
    }
    cf_tokenizer_close(&tok);
    return rc;
}

int cf_info_memory_make(cf_info_memory *out, const cf_model *model, const cf_options *options,
                        cf_err *err)
{
    int rc;
    uint32_t align = 0;
    uint64_t tokenizer = 0;
    cf_gpu *gpu = NULL;
    const cf_gpu_options gpu_options = {.threads = options->threads};
    CF_TRY(files_align(model, options->direct, &align, err));
    CF_TRY(tokenizer_ask(model, &tokenizer, out, err));
    CF_TRY(cf_gpu_open(&gpu, options->device, &gpu_options, err));
    out->device = *cf_gpu_get_info(gpu);
    out->activations_q8 = options->activations && !strcmp(options->activations, "q8");
    out->q8_steps = cf_model_q8_steps(model);
    out->prefetch = options->prefetch;
    CF_TRY(cf_memory_plan_make(&out->plan, model, &out->device, options, align, tokenizer, err));
fail:
    cf_gpu_close(&gpu);
    return rc;
}

/* ---- what is in it ---- */

typedef struct share {
    char name[80];
    uint64_t bytes;
} share;

enum { MAX_SHARES = CF_MEM_ITEMS + 6 };

static void share_add(share *list, uint32_t *n, uint64_t bytes, const char *name, uint64_t count,
                      uint64_t each)
{
    char text[32];
    if (!bytes)
        return;
    share *s = &list[(*n)++];
    s->bytes = bytes;
    if (count)
        snprintf(s->name, sizeof s->name, "%" PRIu64 " %s of %s", count, name,
                 cf_bytes_text(each, text, sizeof text));
    else
        snprintf(s->name, sizeof s->name, "%s", name);
}

static uint32_t vram_shares(const cf_memory_plan *p, share *list)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_vram; i++)
        share_add(list, &n, p->vram[i].bytes, p->vram[i].name, 0, 0);
    share_add(list, &n, p->shape.n_slots * p->shape.slot_bytes, "expert slots", p->shape.n_slots,
              p->shape.slot_bytes);
    if (p->shape.n_guess)
        share_add(list, &n, p->shape.n_guess * p->shape.slot_bytes,
                  p->shape.n_guess == 1 ? "place for a guess" : "places for guesses",
                  p->shape.n_guess, p->shape.slot_bytes);
    if (p->shape.staged)
        share_add(list, &n, p->shape.n_slabs * p->shape.slab_bytes, "staging buffers",
                  p->shape.n_slabs, p->shape.slab_bytes);
    return n;
}

static uint32_t ram_shares(const cf_memory_plan *p, const cf_model *model, share *list)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_ram; i++)
        share_add(list, &n, p->ram[i].bytes, p->ram[i].name, 0, 0);
    share_add(list, &n,
              cf_cache_memory(model, p->shape.n_slots + p->shape.n_guess, p->shape.n_tier),
              "tables of the expert cache", 0, 0);
    if (!p->shape.in_place)
        share_add(list, &n, p->shape.n_slabs * p->shape.slab_bytes, "slabs", p->shape.n_slabs,
                  p->shape.slab_bytes);
    share_add(list, &n, p->dense.host_bytes, "stages of streamed weights", 0, 0);
    share_add(list, &n, p->hold.memory_bytes, "streamed weights held", 0, 0);
    if (p->shape.n_tier)
        share_add(list, &n, p->shape.n_tier * p->shape.slot_bytes, "places of the RAM tier",
                  p->shape.n_tier, p->shape.slot_bytes);
    if (p->row_entries)
        share_add(list, &n, cf_rows_memory(p->row_window_bytes, p->row_entries),
                  "windows of table rows", p->row_entries, p->row_window_bytes);
    return n;
}

static uint64_t chunk_token_bytes(const cf_model *m)
{
    return (uint64_t)m->spec.top_k * m->spec.hidden * sizeof(float);
}

/* ---- for people ---- */

/* Which streamed weights wait in RAM, and why those. */
static void hold_print(const cf_memory_plan *p, FILE *out)
{
    const cf_hold_plan *h = &p->hold;
    char a[32], b[32];
    uint64_t rest = p->dense.streamed_bytes - h->bytes;
    if (!h->all_bytes)
        return;
    if (!rest)
        fprintf(out,
                "  All that is streamed is held in RAM: once read, it is copied from there.\n");
    else if (h->bytes)
        fprintf(
            out,
            "  Of what is streamed, %s are held in RAM and copied from there, the same share of "
            "each\n  matrix, so that copies and reads run side by side; the drive brings %s.\n",
            cf_bytes_text(h->bytes, a, sizeof a), cf_bytes_text(rest, b, sizeof b));
    else
        fprintf(out, "  None of what is streamed is held in RAM: --ram leaves no room.\n");
    if (p->total_records)
        fprintf(
            out,
            "  RAM goes to it first, beside %u slabs to read experts through: a byte held saves a "
            "byte of each\n  token's reads, a byte of an expert's place only when that is "
            "chosen.\n",
            p->shape.n_slabs);
    if (rest && p->ram_dense)
        fprintf(out, "  All of it would be held with --ram %" PRIu64 " (%s).\n", p->ram_dense,
                cf_bytes_text(p->ram_dense, a, sizeof a));
}

/* Which dense weights stay, and why not all. */
static void dense_print(const cf_memory_plan *p, FILE *out)
{
    const cf_dense_plan *d = &p->dense;
    char a[32], b[32];
    if (!d->n_streamed)
        return;
    fprintf(out,
            "\n  Dense weights are streamed: %u matrices, %s, are %s again for each token (of a "
            "prompt:\n  for each chunk). They pass through %u segment%s of %s:\n  ",
            d->n_streamed, cf_bytes_text(d->streamed_bytes, a, sizeof a),
            p->hold.bytes ? "brought" : "read", d->n_segments,
            d->n_segments == 1 ? "" : "s", cf_bytes_text(d->segment_bytes, b, sizeof b));
    fprintf(out, d->n_segments == 1 ? "too few to fill one while another is computed on.\n"
                                    : "one is filled while the other is computed on.\n");
    fprintf(out,
            "  %s of them stay, all that fits beside the fewest expert slots: a dense byte that "
            "stays saves\n  a byte of each token's reads, a byte of an expert slot only a share of "
            "one.\n  All dense weights would stay with --vram %" PRIu64 " (%s).\n",
            cf_bytes_text(d->resident_bytes, a, sizeof a), p->vram_dense,
            cf_bytes_text(p->vram_dense, b, sizeof b));
    hold_print(p, out);
}

/* What hides the reads of experts, where any are streamed. */
static void ahead_print(const cf_memory_plan *p, const cf_model *model, bool prefetch, FILE *out)
{
    char a[32];
    uint32_t steps;
    uint64_t bytes;
    if (p->shape.n_slots >= p->total_records) {
        if (p->total_records)
            fprintf(out,
                    "  Each is read when it is first needed; nothing is streamed after that.\n");
        return;
    }
    cf_info_least_window(model, &steps, &bytes);
    if (!prefetch)
        fprintf(out, "  Reads start when the experts are needed (--prefetch off).\n");
    else if (steps)
        fprintf(out,
                "  Reads start when the router has chosen, %u step%s (%s of weights) before the "
                "experts are\n  needed, or more: the window.\n",
                steps, steps == 1 ? "" : "s", cf_bytes_text(bytes, a, sizeof a));
    else
        fprintf(out, "  Reads start when the router has chosen; no step lies between that and the "
                     "experts.\n");
    if (p->shape.n_guess)
        fprintf(out,
                "  Choices are foreseen a layer ahead (--plan says which); what is not kept is "
                "read to the places for\n  guesses while the drive is idle.\n");
    else if (prefetch && cf_predict_any(model))
        fprintf(out, "  Choices could be foreseen a layer ahead, but --vram leaves no place for "
                     "guesses.\n");
}

static void shares_print(cf_table *t, const char *pool, const share *list, uint32_t n,
                         uint64_t budget, bool chosen)
{
    char text[32];
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        cf_table_cell(t, "%s", i ? "" : pool);
        cf_table_cell(t, "%s", list[i].name);
        cf_table_cell(t, "%s", cf_bytes_text(list[i].bytes, text, sizeof text));
        cf_table_end_row(t);
        sum += list[i].bytes;
    }
    cf_table_cell(t, "%s", "");
    cf_table_cell(t, "together");
    cf_table_cell(t, "%s", cf_bytes_text(sum, text, sizeof text));
    cf_table_end_row(t);
    cf_table_cell(t, "%s", "");
    cf_table_cell(t, "budget, %s", chosen ? "chosen from the machine" : "as given");
    cf_table_cell(t, "%s", cf_bytes_text(budget, text, sizeof text));
    cf_table_end_row(t);
}

void cf_info_memory_print(const cf_info_memory *memory, const cf_model *model, FILE *out)
{
    const cf_memory_plan *p = &memory->plan;
    const cf_gpu_info *d = &memory->device;
    share list[MAX_SHARES];
    char a[32], b[32], c[32];
    fprintf(out, "\nMemory on %s:%d (%s), context %u, chunk %u, KV %s:\n\n", d->backend, d->index,
            d->name, p->ctx, p->chunk, cf_kv_name(p->kv_dtype));
    if (memory->activations_q8 && memory->q8_steps)
        fprintf(out, "  Activations are rounded to 8 bits in %u of %u steps.\n\n", memory->q8_steps,
                model->n_steps);
    else if (memory->activations_q8)
        fprintf(out,
                "  --activations q8 changes nothing: no weights are stored in 8 bits or less.\n\n");
    cf_table *t = cf_table_create("llr");
    shares_print(t, "VRAM", list, vram_shares(p, list), p->vram_budget, p->vram_chosen);
    cf_table_end_row(t);
    shares_print(t, "RAM", list, ram_shares(p, model, list), p->ram_budget, p->ram_chosen);
    cf_table_print(t, out, 2);
    cf_table_destroy(&t);
    dense_print(p, out);
    if (p->total_records)
        fprintf(out, "\n  %u of %" PRIu64 " expert records fit in VRAM (%.1f %%).\n",
                p->shape.n_slots, p->total_records,
                100.0 * (double)cf_min_u64(p->shape.n_slots, p->total_records) /
                    (double)p->total_records);
    ahead_print(p, model, memory->prefetch, out);
    fprintf(out,
            "  The least that works with these settings: --vram %" PRIu64 " (%s), --ram %" PRIu64
            " (%s).\n  With every expert in VRAM: --vram %" PRIu64 " (%s).\n",
            p->vram_min, cf_bytes_text(p->vram_min, a, sizeof a), p->ram_min,
            cf_bytes_text(p->ram_min, b, sizeof b), p->vram_all,
            cf_bytes_text(p->vram_all, c, sizeof c));
    if (p->vram_chosen)
        fprintf(out, "  --vram is %s.\n", p->vram_from);
    if (p->ram_chosen)
        fprintf(out, "  --ram is %s.\n", p->ram_from);
    fprintf(out, "  Each token of a chunk takes %s for its experts' outputs alone.\n",
            cf_bytes_text(chunk_token_bytes(model), a, sizeof a));
    if (d->unified || d->cpu)
        fprintf(out, "  The device computes in the host's memory: --vram is the budget of all that "
                     "it uses,\n  --ram of the rest, and nothing is counted twice.\n");
    else if (!d->imports)
        fprintf(out, "  The device cannot read host pages: reads are copied once more on their way "
                     "to it.\n");
}

/* ---- for programs ---- */

static json_t *shares_json(const share *list, uint32_t n, uint64_t budget, bool chosen,
                           const char *from, uint64_t least)
{
    json_t *items = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(items, json_pack("{s:s, s:I}", "name", list[i].name, "bytes",
                                               (json_int_t)list[i].bytes));
    return json_pack("{s:I, s:b, s:s, s:I, s:o}", "budget", (json_int_t)budget, "chosen", chosen,
                     "from", from, "least", (json_int_t)least, "items", items);
}

json_t *cf_info_memory_json(const cf_info_memory *memory, const cf_model *model)
{
    const cf_memory_plan *p = &memory->plan;
    share list[MAX_SHARES];
    uint32_t n = vram_shares(p, list);
    json_t *vram = shares_json(list, n, p->vram_budget, p->vram_chosen, p->vram_from, p->vram_min);
    n = ram_shares(p, model, list);
    json_t *ram = shares_json(list, n, p->ram_budget, p->ram_chosen, p->ram_from, p->ram_min);
    json_t *dense = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "streamed_matrices",
        (json_int_t)p->dense.n_streamed,
        "streamed_bytes", (json_int_t)p->dense.streamed_bytes, "resident_bytes",
        (json_int_t)p->dense.resident_bytes, "segments", (json_int_t)p->dense.n_segments,
        "segment_bytes", (json_int_t)p->dense.segment_bytes, "vram_all_dense",
        (json_int_t)p->vram_dense, "held_bytes", (json_int_t)p->hold.bytes, "ram_all_dense",
        (json_int_t)p->ram_dense);
    return json_pack(
        "{s:o, s:s, s:i, s:i, s:s, s:s, s:I, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
        "device", json_sprintf("%s:%d", memory->device.backend, memory->device.index),
        "device_name", memory->device.name, "ctx", (int)p->ctx, "chunk", (int)p->chunk, "kv",
        cf_kv_name(p->kv_dtype), "activations",
        memory->activations_q8 && memory->q8_steps ? "q8" : "f32", "q8_steps",
        (json_int_t)(memory->activations_q8 ? memory->q8_steps : 0), "vram", vram, "ram", ram,
        "dense", dense, "slots", (json_int_t)p->shape.n_slots, "slot_bytes",
        (json_int_t)p->shape.slot_bytes, "guess_slots", (json_int_t)p->shape.n_guess, "slabs",
        (json_int_t)(p->shape.n_slabs + p->shape.n_tier), "records", (json_int_t)p->total_records,
        "vram_all_experts", (json_int_t)p->vram_all, "bytes_per_chunk_token",
        (json_int_t)chunk_token_bytes(model));
}
