/* A cache with all that it needs, and a plain model of it beside: what is in VRAM, what in RAM, and
 * "the least worthy outside the group goes" (cache_model.c).
 *
 * The checkpoint has no meaning: records side by side, apart, across files, unaligned. Device work
 * copies every piece of every entry out, under the hazard tracker; the device says "done" only when
 * it is waited for, so that nothing is reused by luck. Numbers are expert_cache.c's invariants.
 *
 * One rig at a time, which belongs to the thread that opened it; helpers CHECK. */
#ifndef CF_TESTS_CACHE_RIG_H
#define CF_TESTS_CACHE_RIG_H

#include <stdatomic.h>

#include "gpu/backend.h"
#include "runtime/base/rng.h"
#include "runtime/expert_cache.h"
#include "tests/support/tmpfiles.h"

enum {
    LAYERS = 3,
    EXPERTS = 16, /* of the largest layer */
    TOP_K = 3,
    ROWS = 11,
    COLS = 37,
    MAX_RECORD = 3 * 2 * ROWS * COLS * LAYERS,
    FILES = 2,
    FILE_BYTES = 400 << 10
};

extern char rig_paths[FILES][300];
extern cf_extent rig_extents[LAYERS][EXPERTS][CF_EXPERT_PIECES];
extern cf_moe_def rig_moes[LAYERS];

/* The checkpoint, once a program: before any rig. */
void rig_files_make(const tmp_dir *dir);

typedef enum { IN_PLACE, DISCRETE, STAGED } memory_mode;

typedef struct setup {
    const char *name;
    memory_mode memory;
    uint32_t slots, slabs, tier, guess; /* guess: places for guesses */
    bool prefetch;
    const char *policy;
    cf_io_fault fault;
    enum { NEVER_FAILS, MAY_FAIL, FAILS } fails; /* for good, after the fetcher's retry */
} setup;

typedef enum { NOWHERE, VRAM, RAM } place;

typedef struct group {
    uint32_t moe, n, experts[EXPERTS];
    uint32_t hits, ram_hits;
    bool overflows;
    uint32_t order[EXPERTS]; /* entry -> expert, as the cache must process them */
    uint64_t read_bytes;     /* of those that are nowhere */
} group;

/* What the cache may make of guesses: the next group's records that are nowhere, and how often such
 * guesses were right, by layer. */
typedef struct guess_model {
    bool drawn; /* `next` is */
    group next;
    uint32_t moe, n, experts[EXPERTS];
    bool on;
    uint32_t made[LAYERS], right[LAYERS]; /* lately */
    uint64_t issued, used;
    uint64_t asked_bytes, wrong_bytes; /* of misses, and of wrong guesses at most */
} guess_model;

typedef struct rig {
    const setup *how;
    cf_gpu *gpu;
    cf_files files;
    cf_slots slots;
    cf_fetch *fetch;
    cf_policy *policy;
    cf_cache *cache;
    cf_gpu_buf *seen; /* [EXPERTS][CF_EXPERT_PIECES] copies of what the device saw */
    cf_rng plan, rng; /* what is asked for; and what may depend on timing */
    atomic_ullong read_bytes, all_read_bytes;
    atomic_int hazards, waits;
    atomic_bool closed; /* completions are withheld while set */
    /* The model. */
    place at[LAYERS][EXPERTS];
    uint32_t n_at[3];
    uint64_t evictions;
    guess_model guess;
    /* What happened, so that a run that tests nothing is seen. */
    uint32_t hits, ram_hits, misses, overflows, failures;
} rig;

/* CHECKs; where it returns false, rig_close is still due. */
bool rig_open(rig *r, const setup *how, uint64_t seed);
void rig_close(rig *r);
void rig_verify(rig *r); /* the cache's own account of its invariants */

/* What the engine does when it must wait (a rig *): reads that were withheld come. */
void rig_reads_released(void *user);

/* Bytes that a record's windows have. */
uint64_t rig_record_bytes(const rig *r, uint32_t moe, uint32_t expert);

/* Device work on entries: copies of all their pieces. */
void rig_use(rig *r, const group *g, const cf_cache_entry *entries, uint32_t n, cf_gpu_point *done);

/* Takes and uses entries until all are, an error comes, or `stop_after` were. */
int rig_serve(rig *r, const group *g, bool *taken, uint32_t stop_after, cf_err *err);

/* Invariant 1, as the device saw it. */
void rig_compare(const rig *r, const group *g, const bool *taken);

/* ---- the model: cache_model.c ---- */

bool rig_group_has(const group *g, uint32_t moe, uint32_t expert);

/* All decisions of a group (8): who goes, where to; entries give their slots up in turn. */
void rig_route(rig *r, group *g);

/* After a group that ended early only this much is promised: nothing appears that was not there or
 * in the group, what the group did not touch stays, and the cache knows what it holds. */
void rig_resync(rig *r, const group *g, place before[LAYERS][EXPERTS]);

#endif
