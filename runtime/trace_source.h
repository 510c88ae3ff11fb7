/* Lines of a trace file, plain or zstd-compressed. For trace_read.c. */
#ifndef CF_RUNTIME_TRACE_SOURCE_H
#define CF_RUNTIME_TRACE_SOURCE_H

#include <stdint.h>

#include "runtime/base/err.h"

enum { CF_TRACE_MAX_LINE = 1 << 20 };

typedef struct cf_lines cf_lines;

/* path: opened; NULL: data of n bytes, borrowed. name: for messages, borrowed. */
int cf_lines_open(cf_lines **out, const char *name, const char *path, const void *data, size_t n,
                  cf_err *err);
void cf_lines_close(cf_lines **lines); /* accepts NULL; leaves NULL */
/* 1 and a line without its end, NUL-terminated, valid until the next call; 0 at the end. A line
 * longer than `most` (at most CF_TRACE_MAX_LINE) is refused. */
int cf_lines_next(cf_lines *lines, size_t most, char **line, size_t *n, cf_err *err);
uint64_t cf_lines_number(const cf_lines *lines); /* of the last line, from 1 */

#endif
