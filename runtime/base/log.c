/* Log lines on stderr: see log.h. */
#include "runtime/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

static atomic_int log_level = CF_LOG_NOTICE;

void cf_log_level_set(int level)
{
    atomic_store(&log_level, level);
}

int cf_log_level(void)
{
    return atomic_load(&log_level);
}

void cf_log(int level, const char *format, ...)
{
    if (level > cf_log_level())
        return;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fprintf(stderr, "catflap: %s\n", line);
}
