/* The statistics at the end of a run: the table of -v, and the file of --stats. */
#ifndef CF_TOOLS_STATS_TABLE_H
#define CF_TOOLS_STATS_TABLE_H

#include <stdio.h>

#include "tools/options.h"

/* generated: ids that came out. The engine counts decode steps, one less than that when the last
 * id was not fed back; rates are of steps. */
void cf_stats_print(const cf_engine *engine, uint64_t generated, FILE *out);

/* What closes every run, done or not: the table with -v, the file of --stats, the ends of
 * --trace and --timeline.
 * 0 or negative, the first failure in err. */
int cf_stats_close_run(cf_engine *engine, const cf_common *common, uint64_t generated, cf_err *err);

/* What begins one, once the engine is open: --trace and --timeline. */
int cf_stats_begin_run(cf_engine *engine, const cf_common *common, cf_err *err);

/* What opens one: refuses outputs that cannot be written. Before the engine is opened. */
int cf_stats_check_outputs(const cf_common *common, cf_err *err);

#endif
