/* Shared by the files of `catflap bench`. */
#ifndef CF_TOOLS_BENCH_H
#define CF_TOOLS_BENCH_H

#include "tools/options.h"

typedef enum { CF_BENCH_TABLE, CF_BENCH_JSON, CF_BENCH_CSV } cf_bench_form;

int cf_bench_io_main(int argc, char **argv); /* argv[0] is "io" */

/* "64K,1M": 1 to `max` values separated by commas, from `low` to `high`, in the order given.
 * `parse` reads one. 0, or CF_ARGS_STOP after reporting. */
int cf_bench_list(cf_args *args, bool (*parse)(const char *text, uint64_t *out), uint64_t low,
                  uint64_t high, uint64_t *out, uint32_t max, uint32_t *n);

/* --json or --csv, of which a run has one. As above. */
int cf_bench_form_set(cf_bench_form *form, cf_bench_form given, cf_args *args);

#endif
