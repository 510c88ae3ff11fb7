/* Replays a recorded routing through the cache's own decisions (residency.h) and policy, without a
 * file or a device: what a run with this policy and these sizes would have hit and missed.
 *
 * A run's own trace, replayed with its policy, slots and slabs, gives the run's hits, misses and
 * evictions. Guesses are not replayed (predict.h): of a run that made some the evictions are the
 * same, and its hits are the replay's and the guesses that were in time.
 * The cache begins empty and is kept from session to session. Sizes are replayed side by side over
 * one policy: what it learns does not depend on them.
 * cf_replay_min is Belady's MIN by a simulation of its own: of the records outside the group it
 * gives up the one whose next use is farthest. No policy misses less.
 * Thread-safety: any number of replays of one routing at a time. */
#ifndef CF_RUNTIME_REPLAY_H
#define CF_RUNTIME_REPLAY_H

#include "runtime/trace_read.h"

typedef struct cf_replay_counts {
    uint64_t lookups, vram_hits, ram_hits, misses, evictions; /* evictions: from slots */
} cf_replay_counts;

typedef struct cf_replay {
    uint32_t slots, slabs; /* asked for; at least 2 x top-k slots */
    cf_replay_counts phase[3], all;
    cf_replay_counts *layers; /* [3, n_moe] by phase */
} cf_replay;

/* The phase whose numbers count: decode where the trace has it, else teacher-forced text, else the
 * prompt. */
cf_phase cf_replay_headline(const cf_routing *routing);

/* list[i].slots and .slabs are set; the rest is filled in. On failure nothing is left to free. */
int cf_replay_run(const cf_routing *routing, const char *policy, cf_replay *list, uint32_t n,
                  cf_err *err);
/* One tier of slots + slabs records. */
int cf_replay_min(const cf_routing *routing, cf_replay *list, uint32_t n, cf_err *err);
/* Records used for the first time, by phase: what any cache misses. */
int cf_replay_first_uses(const cf_routing *routing, uint64_t uses[3], cf_err *err);
void cf_replay_finish(cf_replay *list, uint32_t n); /* accepts zeroed ones */

static inline uint32_t cf_replay_min_slots(const cf_routing *routing)
{
    return 2 * routing->header.top_k;
}

#endif
