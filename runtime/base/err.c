/* Errors: see err.h. */
#include "runtime/base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cf_err_set(cf_err *err, int code, const char *format, ...)
{
    if (err && !err->code) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->msg, sizeof err->msg, format, args);
        va_end(args);
        err->code = code;
    }
    return code;
}

const char *cf_err_name(int code)
{
    switch (code) {
    case CF_EFORMAT:
        return "malformed input";
    case CF_EDEVICE:
        return "device failure";
    case CF_ELIMIT:
        return "limit exceeded";
    case CF_ECHANGED:
        return "file changed while in use";
    default:
        return strerror(code < 0 ? -code : code);
    }
}

_Noreturn void cf_assert_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "catflap: internal error: %s does not hold (%s:%d)\n", what, file, line);
    abort();
}
