/* Engines of a given size: see sized.h. */
#include "tests/support/sized.h"

#include <stdio.h>
#include <string.h>

#include "models/family.h"

static const uint64_t plenty = 1ull << 36;

bool sized_model_open(sized_model *m, const char *dir)
{
    cf_err err = {0};
    *m = (sized_model){0};
    cf_options o;
    cf_options_init(&o);
    o.device = "ref";
    o.ctx = o.chunk = 1;
    o.vram_bytes = o.ram_bytes = 1u << 30;
    cf_engine *e = NULL;
    if (cf_engine_open(&e, dir, &o, &err) < 0 || cf_model_open(&m->model, dir, &err) < 0) {
        printf("    %s\n", err.msg);
        cf_engine_close(&e);
        return false;
    }
    m->align = e->files.align;
    m->tokenizer = e->tokenizer ? cf_tokenizer_memory(e->tokenizer) : 0;
    m->all_slots = (uint32_t)e->plan.total_records;
    m->min_slots = 2 * e->model->spec.top_k;
    cf_engine_close(&e);
    return true;
}

bool sized_plan_open(sized_model *m, const char *dir)
{
    cf_err err = {0};
    cf_files files = {0};
    *m = (sized_model){0};
    int rc = cf_model_open(&m->model, dir, &err);
    if (rc == 0) {
        const char *path = cf_catalogue_path(m->model->cat, 0);
        rc = cf_files_open(&files, &path, 1, true, &err);
    }
    if (rc < 0) {
        printf("    %s\n", err.msg);
        return false;
    }
    m->align = files.align;
    cf_files_close(&files);
    for (uint32_t i = 0; i < m->model->n_moe; i++)
        m->all_slots += m->model->moe[i].experts;
    m->min_slots = 2 * m->model->spec.top_k;
    return true;
}

void sized_model_close(sized_model *m)
{
    cf_model_free(&m->model);
}

/* Found among the listed ones, so that no device is opened for it. */
static const cf_gpu_info *device_info(const char *name)
{
    static cf_gpu_info infos[16];
    static int n = -1;
    if (n < 0)
        n = cf_gpu_list(infos, 16, NULL, 0);
    for (int i = 0; i < n; i++) {
        char full[40];
        snprintf(full, sizeof full, "%.15s:%d", infos[i].backend, infos[i].index);
        if (strncmp(full, name, strlen(name)) == 0)
            return &infos[i];
    }
    return NULL;
}

int sized_plan(const sized_model *m, const cf_options *options, cf_memory_plan *plan, cf_err *err)
{
    const cf_gpu_info *found = device_info(options->device);
    if (!found)
        return CF_FAIL(err, CF_EDEVICE, "there is no device %s", options->device);
    cf_gpu_info info = *found;
    info.imports = info.imports && !options->no_import;
    return cf_memory_plan_make(plan, m->model, &info, options, m->align, m->tokenizer, err);
}

static uint32_t slots_with(const sized_model *m, cf_options o, uint64_t vram, uint64_t ram)
{
    cf_memory_plan plan;
    o.vram_bytes = vram;
    o.ram_bytes = ram;
    /* With all dense weights resident: tests of streamed ones have budgets of their own. */
    int rc = sized_plan(m, &o, &plan, NULL);
    return rc < 0 || plan.dense.n_streamed ? 0 : plan.shape.n_slots;
}

/* The least of one budget with which there are `slots`, the other one as given. */
static uint64_t least(const sized_model *m, const cf_options *o, uint32_t slots, uint64_t other,
                      bool of_ram)
{
    uint64_t low = 0, high = plenty;
    while (high - low > 1) {
        uint64_t mid = low + (high - low) / 2;
        uint32_t n = of_ram ? slots_with(m, *o, other, mid) : slots_with(m, *o, mid, other);
        *(n >= slots ? &high : &low) = mid;
    }
    return high;
}

bool sized_budgets(const sized_model *m, cf_options *options, uint32_t slots, bool tight)
{
    if (!options->ram_bytes)
        options->ram_bytes = tight ? least(m, options, slots, plenty, true) : 64u << 20;
    options->vram_bytes = least(m, options, slots, options->ram_bytes, false);
    if (slots_with(m, *options, options->vram_bytes, options->ram_bytes) == slots)
        return true;
    printf("    no budget gives %u slots\n", slots);
    return false;
}

uint32_t sized_slots_from(const sized_model *m, const cf_options *options, uint32_t slots)
{
    uint64_t vram = least(m, options, slots, plenty, false);
    return slots_with(m, *options, vram, plenty);
}

cf_engine *sized_open(const sized_model *m, const cf_options *options, uint32_t slots, bool tight)
{
    cf_options o = *options;
    cf_engine *e = NULL;
    cf_err err = {0};
    if (!sized_budgets(m, &o, slots, tight))
        return NULL;
    if (cf_engine_open(&e, cf_model_path(m->model), &o, &err) < 0) {
        printf("    %s\n", err.msg);
        return NULL;
    }
    if (e->plan.shape.n_slots != slots) {
        printf("    asked for %u slots, the engine has %u\n", slots, e->plan.shape.n_slots);
        cf_engine_close(&e);
    }
    return e;
}
