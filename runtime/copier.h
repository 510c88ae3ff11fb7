/* The copy thread: what has been read becomes what the device computes on, and records move
 * between the slots and the RAM tier.
 *
 * The only thread that records and submits on the transfer stream once the engine is open. Jobs
 * take effect in the order they were pushed.
 *     SETTLE   in place: moves the pieces of a record that are not aligned; no device work
 *     FILL     pieces of a landing place -> slot, at multiples of 256
 *     RAISE    a place of the RAM tier -> slot
 *     SAVE     slot -> a place of the RAM tier
 *     SPAN     any host-visible bytes -> any device bytes (dense.c)
 *     MOVE     host bytes -> where they belong, a little below; no device work (dense.c, in place)
 *
 * Threads: push from any thread; the callbacks run on the copy thread, without locks held. */
#ifndef CF_RUNTIME_COPIER_H
#define CF_RUNTIME_COPIER_H

#include "runtime/slots.h"
#include "runtime/timeline.h"
#include "storage/layout.h"

enum { CF_COPY_ALIGN = 256 };

typedef struct cf_copier cf_copier;

typedef enum {
    CF_COPY_SETTLE,
    CF_COPY_FILL,
    CF_COPY_RAISE,
    CF_COPY_SAVE,
    CF_COPY_SPAN,
    CF_COPY_MOVE
} cf_copy_kind;

struct cf_copier_fns;

typedef struct cf_copy_job {
    cf_copy_kind kind;
    uint32_t slot;
    uint32_t other;            /* SETTLE, FILL: landing place; RAISE, SAVE: place of the RAM tier */
    const cf_layout *layout;   /* SETTLE, FILL */
    const uint64_t *piece_off; /* FILL: in the slot */
    uint32_t layer, expert;    /* whose record, for the timeline */
    cf_span from, to;          /* SPAN */
    const uint8_t *source;     /* SPAN: what to bring to `from` first, or NULL; MOVE: from where */
    uint8_t *dest;             /* MOVE */
    uint64_t bytes;            /* MOVE */
    const char *name;          /* SPAN: for the timeline; lives as long as the program */
    const struct cf_copier_fns *fns; /* who learns of it; NULL: whoever created the copier */
    struct cf_copy_job *next;  /* private, like the rest */
    cf_gpu_point point;
    uint64_t begin_ns;
} cf_copy_job;

typedef struct cf_copier_fns {
    /* The copy is on its way: device work that waits for `point` sees it. For SETTLE and MOVE it is
     * done. */
    void (*submitted)(void *user, cf_copy_job *job, cf_gpu_point point);
    /* The copy is done and what it read from is free. Not called for SETTLE and MOVE. */
    void (*finished)(void *user, cf_copy_job *job);
    void *user;
} cf_copier_fns;

/* timeline may be NULL. */
int cf_copier_create(cf_copier **out, cf_gpu *gpu, const cf_slots *slots, const cf_copier_fns *fns,
                     cf_timeline *timeline, cf_err *err);
void cf_copier_destroy(cf_copier **copier); /* finishes what was pushed; accepts NULL */
void cf_copier_push(cf_copier *copier, cf_copy_job *job);
uint64_t cf_copier_busy_ns(cf_copier *copier);

/* Where the pieces of a layout lie in a slot that is copied into; returns the bytes needed. */
uint64_t cf_copy_place(const cf_layout *layout, uint64_t *piece_off);

#endif
