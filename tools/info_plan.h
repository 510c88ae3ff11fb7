/* The plan of a model for people and programs: its steps, their weights, and the windows in which
 * expert reads hide. */
#ifndef CF_TOOLS_INFO_PLAN_H
#define CF_TOOLS_INFO_PLAN_H

#include <jansson.h>
#include <stdio.h>

#include "runtime/model.h"

void cf_info_plan_print(const cf_model *model, FILE *out);
/* NULL when memory runs out. */
/* Of all MoE layers' windows the smallest: its steps, and the bytes of weights it touches. */
void cf_info_least_window(const cf_model *model, uint32_t *steps, uint64_t *weight_bytes);
json_t *cf_info_plan_json(const cf_model *model);

#endif
