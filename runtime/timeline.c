/* Timeline: see timeline.h.
 *
 * Invariants
 *  1. `events` and `origin_ns` change only while `on` is false and `writers` is 0; a writer raises
 *     `writers` before it looks at `on`, so that one of the two sees the other.
 *  2. Each index below the capacity is given out once between begin and end. */
#include "runtime/timeline.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cf_timeline {
    struct cf_timeline_switch on; /* first: see cf_timeline_on */
    atomic_uint writers;
    atomic_uint_fast64_t next; /* events asked to be kept */
    cf_timeline_event *events;
    uint32_t capacity;
    uint64_t origin_ns;
    FILE *file;
    char path[1024];
};

int cf_timeline_create(cf_timeline **out, cf_err *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? 0 : CF_FAIL(err, -ENOMEM, "out of memory for a timeline");
}

void cf_timeline_destroy(cf_timeline **timeline)
{
    if (*timeline)
        cf_timeline_end(*timeline, NULL);
    free(*timeline);
    *timeline = NULL;
}

int cf_timeline_begin(cf_timeline *t, const char *path, uint32_t capacity, cf_err *err)
{
    cf_assert(!cf_timeline_on(t) && !t->file);
    snprintf(t->path, sizeof t->path, "%s", path);
    t->file = fopen(path, "wb");
    if (!t->file)
        return CF_FAIL(err, -errno, "cannot write timeline %s: %s", path, strerror(errno));
    /* Untouched pages of a large calloc take no memory. */
    t->events = calloc(capacity, sizeof *t->events);
    if (!t->events) {
        fclose(t->file);
        t->file = NULL;
        return CF_FAIL(err, -ENOMEM, "out of memory for a timeline of %u events", capacity);
    }
    t->capacity = capacity;
    t->origin_ns = cf_clock_ns();
    atomic_store(&t->next, 0);
    atomic_store(&t->on.on, true);
    return 0;
}

void cf_timeline_add(cf_timeline *t, const cf_timeline_event *event)
{
    if (!event->begin_ns || !cf_timeline_on(t))
        return;
    atomic_fetch_add(&t->writers, 1);
    if (atomic_load(&t->on.on) && event->begin_ns >= t->origin_ns) {
        uint64_t i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (i < t->capacity)
            t->events[i] = *event;
    }
    atomic_fetch_sub(&t->writers, 1);
}

/* ---- writing ---- */

/* By track, then by beginning; of two that begin together the longer one first, so that they
 * nest. */
static int event_compare(const void *a, const void *b)
{
    const cf_timeline_event *x = a, *y = b;
    if (x->track != y->track)
        return x->track < y->track ? -1 : 1;
    if (x->begin_ns != y->begin_ns)
        return x->begin_ns < y->begin_ns ? -1 : 1;
    return x->end_ns == y->end_ns ? 0 : x->end_ns > y->end_ns ? -1 : 1;
}

enum { MAX_LANES = 128, TRACK_TIDS = 1000 };

typedef struct lanes {
    uint32_t n;
    uint64_t end_ns[MAX_LANES];
} lanes;

/* The lowest lane that is free at the event's beginning; when all are taken, the last one. */
static uint32_t lane_take(lanes *l, const cf_timeline_event *e)
{
    uint32_t i = 0;
    while (i < l->n && l->end_ns[i] > e->begin_ns)
        i++;
    if (i == MAX_LANES)
        i--;
    if (i == l->n)
        l->n++;
    if (e->end_ns > l->end_ns[i])
        l->end_ns[i] = e->end_ns;
    return i;
}

static void event_write(FILE *f, const cf_timeline_event *e, uint32_t tid, uint64_t origin_ns)
{
    /* Microseconds with the nanoseconds as decimals: exact. */
    uint64_t at = e->begin_ns - origin_ns, length = e->end_ns - e->begin_ns;
    fprintf(f,
            ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":%u,\"name\":\"%s\",\"ts\":%" PRIu64 ".%03" PRIu64
            ",\"dur\":%" PRIu64 ".%03" PRIu64 ",\"args\":{",
            tid, e->name, at / 1000, at % 1000, length / 1000, length % 1000);
    const char *joint = "";
    if (e->layer != CF_TIMELINE_NONE) {
        fprintf(f, "\"layer\":%u", e->layer);
        joint = ",";
    }
    if (e->expert != CF_TIMELINE_NONE) {
        bool wide = e->track == CF_TRACK_STEPS;
        fprintf(f, "%s\"%s\":%u", joint, wide ? "rows" : "expert", e->expert);
        joint = ",";
    }
    if (e->bytes)
        fprintf(f, "%s\"bytes\":%" PRIu64, joint, e->bytes);
    fputs("}}", f);
}

static void track_write(FILE *f, const cf_timeline_event *events, uint32_t n, uint32_t track,
                        uint64_t origin_ns)
{
    static const char *const names[CF_TRACK_COUNT] = {[CF_TRACK_STEPS] = "steps",
                                                      [CF_TRACK_DEVICE_WAITS] = "device waits",
                                                      [CF_TRACK_STALLS] = "stalls",
                                                      [CF_TRACK_READS] = "reads",
                                                      [CF_TRACK_COPIES] = "copies"};
    uint32_t first = track * TRACK_TIDS + 1;
    bool laned = track == CF_TRACK_READS || track == CF_TRACK_COPIES;
    lanes l = {0};
    for (uint32_t i = 0; i < n; i++)
        event_write(f, &events[i], first + (laned ? lane_take(&l, &events[i]) : 0), origin_ns);
    for (uint32_t i = 0; i < (l.n ? l.n : 1); i++) {
        char number[16] = "";
        if (i)
            snprintf(number, sizeof number, " %u", i + 1);
        fprintf(f,
                ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":%u,\"name\":\"thread_name\",\"args\":{\"name\":"
                "\"%s%s\"}},\n{\"ph\":\"M\",\"pid\":1,\"tid\":%u,\"name\":\"thread_sort_index\","
                "\"args\":{\"sort_index\":%u}}",
                first + i, names[track], number, first + i, first + i);
    }
}

static void file_write(cf_timeline *t, uint64_t asked)
{
    uint32_t n = asked < t->capacity ? (uint32_t)asked : t->capacity;
    qsort(t->events, n, sizeof *t->events, event_compare);
    fprintf(t->file,
            "{\"displayTimeUnit\":\"ms\",\n\"otherData\":{\"events\":%u,\"dropped\":%" PRIu64
            "},\n\"traceEvents\":[\n"
            "{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\",\"args\":{\"name\":\"catflap\"}}",
            n, asked - n);
    uint32_t at = 0;
    for (uint32_t track = 0; track < CF_TRACK_COUNT; track++) {
        uint32_t end = at;
        while (end < n && t->events[end].track == track)
            end++;
        track_write(t->file, t->events + at, end - at, track, t->origin_ns);
        at = end;
    }
    fputs("\n]}\n", t->file);
}

int cf_timeline_end(cf_timeline *t, cf_err *err)
{
    if (!t->file)
        return 0;
    atomic_store(&t->on.on, false);
    while (atomic_load(&t->writers))
        sched_yield();
    file_write(t, atomic_load(&t->next));
    int rc = 0;
    bool lost = ferror(t->file) != 0;
    if ((fclose(t->file) != 0 || lost))
        rc = CF_FAIL(err, -EIO, "cannot write timeline %s: %s", t->path, strerror(errno));
    t->file = NULL;
    free(t->events);
    t->events = NULL;
    return rc;
}
