/* Timeline: what each thread did when, in Chrome's trace format (Perfetto opens it).
 *
 * A fixed buffer of events, filled by the engine, I/O and copy threads and written out when the
 * recording ends; what does not fit is dropped and counted in the file ("otherData"). Tracks:
 *     steps         the engine thread: each batch, and inside it each step of the plan, from the
 *                   beginning of its recording to the end of its submission and waits
 *     device waits  the engine thread waits for the device
 *     stalls        the engine thread waits for reads, copies or rows
 *     reads         a record or row, from its first read's submission to its last one's completion
 *     copies        a copy, from its recording to its completion
 * Overlapping reads and copies get lanes of their own ("reads 2", ...).
 *
 * Off, a hook costs one relaxed load. On, recording takes no lock: an atomic index and a counter
 * of writers. The buffer (40 bytes an event, 2^20 of them) is outside the memory budgets, and
 * touched only as it fills.
 *
 * Threads: add from any thread at any time; begin, end and destroy from the owner's. */
#ifndef CF_RUNTIME_TIMELINE_H
#define CF_RUNTIME_TIMELINE_H

#include <stdatomic.h>
#include <stdint.h>

#include "runtime/base/clock.h"
#include "runtime/base/err.h"

typedef struct cf_timeline cf_timeline;

typedef enum {
    CF_TRACK_STEPS,
    CF_TRACK_DEVICE_WAITS,
    CF_TRACK_STALLS,
    CF_TRACK_READS,
    CF_TRACK_COPIES,
    CF_TRACK_COUNT
} cf_track;

enum { CF_TIMELINE_EVENTS = 1 << 20, CF_TIMELINE_NONE = 0xffff };

typedef struct cf_timeline_event {
    uint64_t begin_ns, end_ns; /* cf_clock_ns */
    const char *name;          /* a literal; letters, digits and blanks */
    uint64_t bytes;            /* 0: not said */
    uint32_t expert;           /* CF_TIMELINE_NONE: not said; rows of a batch */
    uint16_t layer;            /* likewise */
    uint16_t track;            /* cf_track */
} cf_timeline_event;

int cf_timeline_create(cf_timeline **out, cf_err *err); /* off */
void cf_timeline_destroy(cf_timeline **timeline);       /* writers are gone; accepts NULL */

/* Opens the file and begins to record; at most `capacity` events are kept. Not while it is on. */
int cf_timeline_begin(cf_timeline *t, const char *path, uint32_t capacity, cf_err *err);
/* Stops and writes the file; 0 when it is off. It is off in every case. */
int cf_timeline_end(cf_timeline *t, cf_err *err);

/* ---- hooks; t may be NULL ---- */

struct cf_timeline_switch { /* the first member of cf_timeline */
    atomic_bool on;
};

static inline bool cf_timeline_on(cf_timeline *t)
{
    return t && atomic_load_explicit(&((struct cf_timeline_switch *)t)->on, memory_order_relaxed);
}

/* The time, or 0 when nothing is recorded. */
static inline uint64_t cf_timeline_now(cf_timeline *t)
{
    return cf_timeline_on(t) ? cf_clock_ns() : 0;
}

/* Does nothing when off, or when the event began while it was (begin_ns is 0, or earlier than the
 * recording). */
void cf_timeline_add(cf_timeline *t, const cf_timeline_event *event);

/* An event without bytes that ends now. */
static inline void cf_timeline_mark(cf_timeline *t, cf_track track, const char *name,
                                    uint32_t layer, uint32_t expert, uint64_t begin_ns)
{
    if (begin_ns && cf_timeline_on(t))
        cf_timeline_add(t, &(cf_timeline_event){.begin_ns = begin_ns,
                                                .end_ns = cf_clock_ns(),
                                                .name = name,
                                                .expert = expert,
                                                .layer = (uint16_t)layer,
                                                .track = (uint16_t)track});
}

#endif
