/* The memory plan of a model on a device, for people and programs: what the engine would allocate
 * for these options, before it does. */
#ifndef CF_TOOLS_INFO_MEMORY_H
#define CF_TOOLS_INFO_MEMORY_H

#include <jansson.h>
#include <stdio.h>

#include "runtime/budget.h"

typedef struct cf_info_memory {
    cf_memory_plan plan;
    bool prefetch;
    char no_text[sizeof((cf_err *)0)->msg]; /* why the tokenizer cannot encode; empty: it can */
    cf_gpu_info device;
    bool activations_q8; /* asked for; 0 steps: changes nothing */
    uint32_t q8_steps;
} cf_info_memory;

/* Opens the device and the tokenizer, to ask for their sizes, and closes them. Refuses budgets
 * that do not suffice, as the engine would. */
int cf_info_memory_make(cf_info_memory *out, const cf_model *model, const cf_options *options,
                        cf_err *err);
void cf_info_memory_print(const cf_info_memory *memory, const cf_model *model, FILE *out);
json_t *cf_info_memory_json(const cf_info_memory *memory, const cf_model *model);

#endif
