/* JSON that somebody else wrote, with a bound on what building it takes.
 *
 * Three bytes of a file ("[],") become more than a hundred in memory, so a limit on the file is
 * none: values are counted first, without building anything. */
#ifndef CF_BASE_JSON_H
#define CF_BASE_JSON_H

#include <jansson.h>
#include <stdint.h>

#include "runtime/base/err.h"

/* Nesting and number of values, those as commas and brackets. Text that is not JSON is left to the
 * parser, which stops at the same byte at which the two would begin to disagree. `path` is for
 * sentences, here and below. */
int cf_json_check_bounds(const char *path, const char *text, size_t bytes, uint32_t max_depth,
                         uint32_t max_values, cf_err *err);

/* Any value, or NULL with a sentence. flags: jansson's. */
json_t *cf_json_parse(const char *path, const char *text, size_t bytes, size_t flags,
                      uint32_t max_values, cf_err *err);
/* An object out of a regular file of at most max_bytes. */
json_t *cf_json_load(const char *path, size_t max_bytes, uint32_t max_values, cf_err *err);

#endif
