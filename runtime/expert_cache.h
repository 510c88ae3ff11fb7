/* Expert cache: a fixed number of slots that hold expert records, filled from the drive.
 *
 * The engine asks for the experts of one MoE layer as a *group*:
 *     cf_cache_route   hits are pinned, misses get slots, in plan order; reads may start
 *     cf_cache_start   reads start, if they have not
 *     cf_cache_take    entries whose bytes the device may use, hits first, then as they arrive
 *     cf_cache_used    the device work that reads an entry is submitted
 *     cf_cache_end     all entries were used; the pins fall with that work
 * Between route and the next route, cf_cache_guess may name records to be read ahead of it.
 * A group larger than the cache is served in one pass: an entry that was used gives its slot to
 * the next miss of the group.
 *
 * Decisions are a function of the plan, never of the clock: see expert_cache.c.
 *
 * Threads: all of this on the engine thread; completions arrive on the I/O and copy threads. No
 * lock is held over I/O or a device wait. */
#ifndef CF_RUNTIME_EXPERT_CACHE_H
#define CF_RUNTIME_EXPERT_CACHE_H

#include "runtime/model.h"
#include "runtime/policy.h"
#include "runtime/residency.h"
#include "runtime/slots.h"
#include "runtime/timeline.h"
#include "storage/fetch.h"

typedef struct cf_cache cf_cache;

typedef struct cf_cache_options {
    cf_gpu *gpu;          /* all borrowed */
    cf_fetch *fetch;
    const cf_files *files;
    const cf_model *model;
    const cf_slots *slots;
    cf_policy *policy;
    bool prefetch; /* reads start in route; guesses are made */
    uint32_t unpack_threads; /* see cf_unpack_create */
    cf_timeline *timeline;       /* may be NULL */
    void (*on_wait)(void *user); /* the engine thread is about to wait for a read; may be NULL */
    void *on_wait_user;
} cf_cache_options;

/* An entry of the current group that may be computed on by work that waits for `ready`. */
typedef struct cf_cache_entry {
    uint32_t index; /* in the group: 0 .. n - 1, the order of processing */
    uint32_t expert;
    cf_weight pieces[CF_EXPERT_PIECES], biases[CF_EXPERT_PIECES]; /* no bias: a zeroed one */
    cf_gpu_point ready;
} cf_cache_entry;

typedef struct cf_group_counts {
    uint32_t lookups, hits, ram_hits, misses; /* hits: of VRAM, guesses that are READY included */
    uint32_t evictions;
} cf_group_counts;

typedef struct cf_cache_stats {
    uint64_t io_stall_ns, copy_stall_ns, evictions;
    uint64_t copy_busy_ns; /* of the copy thread */
    /* made = used + wasted + cancelled, but for those that are open. used: what came to be chosen;
     * late: of these, not READY by then; cancelled: nothing was read. */
    uint64_t guesses_made, guesses_used, guesses_late, guesses_wasted, guesses_cancelled;
} cf_cache_stats;

int cf_cache_create(cf_cache **out, const cf_cache_options *options, cf_err *err);
void cf_cache_destroy(cf_cache **cache); /* waits for reads in flight; accepts NULL */
/* Records are more than read: workers check, decode or join them (unpack.h). */
bool cf_cache_unpacks(const cf_model *model);
/* Host bytes of its tables. */
uint64_t cf_cache_memory(const cf_model *model, uint32_t n_slots, uint32_t n_tier);

/* Opens a group: n distinct experts (ascending) of MoE layer `moe`. All device work of earlier
 * groups must have been waited for. Every expert of this layer is found in `order`: its index in
 * the group. */
void cf_cache_route(cf_cache *c, uint32_t moe, const uint32_t *experts, uint32_t n,
                    cf_group_counts *counts);
/* The group of MoE layer `moe`, expected next, will probably choose these (distinct, likeliest
 * first): those that are in no tier are read while the drive is idle, at most guesses_max of them.
 * After cf_cache_route of the group before it; the next route resolves them. */
void cf_cache_guess(cf_cache *c, uint32_t moe, const uint32_t *experts, uint32_t n);
uint32_t cf_cache_guesses_max(const cf_cache *c);
/* Index in the group of the i-th expert given to route. */
uint32_t cf_cache_order(const cf_cache *c, uint32_t i);
void cf_cache_start(cf_cache *c);

/* At least one and at most max entries, each handed out once; 0 when all were. Blocks for the next
 * arrival. After an error the group is over (nothing is pinned, nothing in flight). */
int cf_cache_take(cf_cache *c, cf_cache_entry *out, uint32_t max, cf_err *err);
void cf_cache_used(cf_cache *c, const cf_cache_entry *entries, uint32_t n, cf_gpu_point point);
void cf_cache_end(cf_cache *c);
/* Gives a group up: waits for its reads, drops its pins. For errors between route and end. */
void cf_cache_abort(cf_cache *c);

void cf_cache_get_stats(const cf_cache *c, cf_cache_stats *out);
/* The copy thread, for whoever else reads weights. */
struct cf_copier *cf_cache_copier(cf_cache *c);

/* ---- for tests: the invariants, checked over all slots; a sentence or NULL ---- */
const char *cf_cache_verify(cf_cache *c);
/* Resident and READY (of VRAM). */
bool cf_cache_holds(const cf_cache *c, uint32_t moe, uint32_t expert);
bool cf_cache_holds_ram(const cf_cache *c, uint32_t moe, uint32_t expert); /* in the RAM tier */

#endif
