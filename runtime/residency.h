/* Residency: which expert record is in which slot or slab, decided as a pure function of the plan.
 *
 * Two tiers of fixed places: VRAM slots, and RAM slabs below them (none on unified memory). A
 * record is in at most one place. The router's choices come in plan order, one group (the distinct
 * experts of one MoE layer) at a time; every decision of a group, up to the last victim, is made
 * when the group comes, by the policy's worth alone. The expert cache carries the decisions out;
 * a replay of recorded choices makes the same ones, without a file or a device.
 *
 * Rules. Order of processing: VRAM residents, then RAM residents, then the rest, each by ascending
 * id. A record that needs a slot takes an empty one (lowest first), else the least worthy outside
 * the group; when the group holds every slot, the group's own entries give theirs up in order of
 * processing, once used. A record that loses its slot moves to a slab if one is empty or holds a
 * less worthy record (which is dropped); else it is dropped. So what leaves both tiers is the least
 * worthy of both, as in one tier of their size.
 * The least worthy of a tier is the least, by distance too, of its layers' least worthy; those are
 * remembered until the layer's order or residents change, so a victim costs a look at each layer
 * and a scan of one.
 * Thread-safety: one thread. No allocation after create. */
#ifndef CF_RUNTIME_RESIDENCY_H
#define CF_RUNTIME_RESIDENCY_H

#include "runtime/policy.h"

enum { CF_NO_PLACE = 0xffffffff };

typedef struct cf_residency cf_residency;

typedef enum { CF_FROM_VRAM, CF_FROM_RAM, CF_FROM_DRIVE } cf_source;

/* One entry of a group, in order of processing. */
typedef struct cf_placing {
    uint32_t expert;
    cf_source source;
    uint32_t slot;  /* where it is, or is to be */
    uint32_t slab;  /* FROM_RAM: the slab it leaves */
    uint32_t after; /* entry whose use must end before the slot may be written, or CF_NO_PLACE */
    /* What the slot held before: moved to demote_slab, or dropped (CF_NO_PLACE). evicted_moe is
     * CF_NO_PLACE when the slot was empty, or when source is FROM_VRAM. */
    uint32_t evicted_moe, evicted_expert, demote_slab;
} cf_placing;

int cf_residency_create(cf_residency **out, uint32_t n_moe, uint32_t experts, uint32_t n_slots,
                        uint32_t n_slabs, cf_err *err);
void cf_residency_destroy(cf_residency **r); /* accepts NULL; leaves NULL */
uint64_t cf_residency_memory(uint32_t n_moe, uint32_t experts, uint32_t n_slots, uint32_t n_slabs);

/* Places n distinct experts (ascending) of MoE layer `moe`. out: [n], in order of processing.
 * order (may be NULL): order[i] = where experts[i] is in out. The group's records keep their slots
 * until the next group. */
void cf_residency_route(cf_residency *r, const cf_policy *policy, uint32_t moe,
                        const uint32_t *experts, uint32_t n, cf_placing *out, uint32_t *order);

/* The record is nowhere any more (its read failed). */
void cf_residency_drop(cf_residency *r, uint32_t moe, uint32_t expert);

/* CF_NO_PLACE when it is not there. */
uint32_t cf_residency_slot(const cf_residency *r, uint32_t moe, uint32_t expert);
uint32_t cf_residency_slab(const cf_residency *r, uint32_t moe, uint32_t expert);
uint64_t cf_residency_evictions(const cf_residency *r); /* from slots */

/* The invariants, over all places: NULL, or a sentence. For tests. */
const char *cf_residency_verify(const cf_residency *r);

#endif
