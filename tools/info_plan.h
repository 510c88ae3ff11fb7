/* The plan of a model for people and programs: its steps, their weights, and the windows in which
 * expert reads hide. */
#ifndef CF_TOOLS_INFO_PLAN_H
#define CF_TOOLS_INFO_PLAN_H

#include <jansson.h>
#include <stdio.h>

#include "runtime/model.h"

void cf_info_plan_print(const cf_model *model, FILE *out);
/* NULL when memory runs out. */
json_t *cf_info_plan_json(const cf_model *model);

#endif
