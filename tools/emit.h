/* Generated text on its way out: whole UTF-8 characters, at once, up to a stop text.
 *
 * Text that may be the beginning of a stop is held back until it is decided. The first stop that
 * is completed ends the text (the longest, where several are completed by the same byte): what
 * comes out does not depend on where the borders of tokens lie. Bounded memory. One thread. */
#ifndef CF_TOOLS_EMIT_H
#define CF_TOOLS_EMIT_H

#include "runtime/tokenizer.h"

typedef struct cf_emit cf_emit;

enum { CF_MAX_STOPS = 32, CF_MAX_STOP_BYTES = 1024 };

/* stops: n texts of 1 to CF_MAX_STOP_BYTES bytes of valid UTF-8, borrowed. Output goes to fd. */
int cf_emit_create(cf_emit **out, int fd, const char *const *stops, uint32_t n, cf_err *err);
void cf_emit_destroy(cf_emit **emit); /* accepts NULL; leaves NULL */

/* Bytes of the next token. Returns 1 when a stop is complete (and nothing more comes out), 0, or
 * negative when the output cannot be written. */
int cf_emit_push(cf_emit *emit, const char *bytes, size_t n, cf_err *err);
/* The end of the text: what was held back. Same results. */
int cf_emit_finish(cf_emit *emit, cf_err *err);

#endif
