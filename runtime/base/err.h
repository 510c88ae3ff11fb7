/* Errors: one code and one sentence, the first cause wins.
 *
 * Every function that can fail returns int: 0, or a negative code (-errno, or one of the
 * CF_E* below). Functions at a boundary (open, load, create, step) also take `cf_err *err`
 * last and leave there one sentence that names the thing and the number. Later failures, while
 * unwinding, never overwrite the first. `err` may be NULL.
 *
 * Thread-safety: a cf_err belongs to one thread at a time. */
#ifndef CF_BASE_ERR_H
#define CF_BASE_ERR_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

enum {
    CF_EFORMAT = -5001, /* a file or message breaks its format */
    CF_EDEVICE = -5002, /* a compute device is missing, refused or lost */
    CF_ELIMIT = -5003,  /* a budget, a bound or a capacity does not suffice */
    CF_ECHANGED = -5004 /* a model file changed or disappeared while in use */
};

typedef struct cf_err {
    int code; /* 0 while nothing failed */
    char msg[504];
} cf_err;

/* Records the sentence unless an earlier one stands; returns `code` in every case. */
int cf_err_set(cf_err *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The text of a code: strerror for errno values, our own words for CF_E*. Static storage. */
const char *cf_err_name(int code);

#define CF_FAIL(err, code, ...) cf_err_set((err), (code), __VA_ARGS__)

/* For functions with a single exit label `fail:` and a local `int rc`. */
#define CF_TRY(expr)                                                                               \
    do {                                                                                           \
        rc = (expr);                                                                               \
        if (rc < 0)                                                                                \
            goto fail;                                                                             \
    } while (0)

/* Our own arguments and invariants. Kept in release builds; never for untrusted input. */
#define cf_assert(cond) ((cond) ? (void)0 : cf_assert_failed(#cond, __FILE__, __LINE__))
_Noreturn void cf_assert_failed(const char *what, const char *file, int line);

#endif
