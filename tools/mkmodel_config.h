/* The config.json of a checkpoint to be written: from a named shape or a file, with overrides. */
#ifndef CF_TOOLS_MKMODEL_CONFIG_H
#define CF_TOOLS_MKMODEL_CONFIG_H

#include <jansson.h>
#include <stdio.h>

#include "storage/catalogue.h"

/* The config of a named shape (a new object), or NULL with a sentence that lists the names. */
json_t *cf_shape_config(const char *name, cf_err *err);
/* One line a shape, for --help. */
void cf_shape_list(FILE *out);

/* Sets a dimension by its flag's name ("layers"): under whichever key the config has for it.
 * -EINVAL with a sentence when it has none. */
int cf_config_override(json_t *config, const char *dimension, json_t *value, cf_err *err);
/* "KEY=VALUE", VALUE as JSON. */
int cf_config_assign(json_t *config, const char *text, cf_err *err);

/* torch_dtype (or dtype) as an element type. Unknown or absent: BF16. */
cf_format cf_config_elem(const json_t *config);
int cf_config_elem_set(json_t *config, cf_format format);

#endif
