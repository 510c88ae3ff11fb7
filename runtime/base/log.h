/* Log lines on stderr, one sink for the process.
 *
 * Level 0 (quiet) prints nothing, 1 notices a user must see once (a setting that could not take
 * effect), 2 (-v) details, 3 debugging. Thread-safe: each line is one write. */
#ifndef CF_BASE_LOG_H
#define CF_BASE_LOG_H

enum { CF_LOG_QUIET, CF_LOG_NOTICE, CF_LOG_VERBOSE, CF_LOG_DEBUG };

void cf_log_level_set(int level);
int cf_log_level(void);
void cf_log(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define cf_notice(...)  cf_log(CF_LOG_NOTICE, __VA_ARGS__)
#define cf_verbose(...) cf_log(CF_LOG_VERBOSE, __VA_ARGS__)
#define cf_debug(...)   cf_log(CF_LOG_DEBUG, __VA_ARGS__)

#endif
