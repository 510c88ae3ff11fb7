/* Files at the command line's edge: prompts, lists of token ids, and outputs.
 *
 * What is read is bounded (CF_TEXT_MAX_BYTES) and checked; what is written is checked before the
 * work begins, so that an hour of computing does not end in "permission denied". */
#ifndef CF_TOOLS_TEXT_IO_H
#define CF_TOOLS_TEXT_IO_H

#include <jansson.h>
#include <stdio.h>

#include "runtime/base/err.h"

#include <stdint.h>

enum { CF_TEXT_MAX_BYTES = 1 << 30 };

/* A whole file ("-": standard input), NUL-terminated. The caller frees. */
int cf_text_read(const char *path, char **text, size_t *bytes, cf_err *err);

/* Whitespace-separated decimal token ids. Refuses anything else with its line number; whether an
 * id exists is the model's to say (cf_ids_check). The caller frees. */
int cf_ids_read(const char *path, int32_t **ids, uint64_t *n, cf_err *err);
int cf_ids_check(const int32_t *ids, uint64_t n, uint32_t vocab, cf_err *err);

/* Refuses a path that cannot be written, and a file of tensors that is there.
 * Leaves no file behind that was not there. */
int cf_output_check(const char *path, cf_err *err);
int cf_output_write(const char *path, const char *text, size_t bytes, cf_err *err);

/* All bytes to a descriptor, at once, through signals and full pipes; 0 or -errno. */
int cf_write_all(int fd, const void *data, size_t bytes);

/* All bytes from `off` of the file `path`, open as fd; CF_ECHANGED where it ends before. */
int cf_read_at(int fd, const char *path, uint64_t off, void *dst, uint64_t bytes, cf_err *err);

/* Indented, with a newline, to stdout; frees `value`. Returns an exit code. */
int cf_json_print(json_t *value);

/* What makes a noun of `n` things: "" or "s". */
const char *cf_plural(uint64_t n);

#endif
