/* An engine that misbehaves on purpose, around one that does not: see cf_io_fault in io.h.
 *
 * Owns the engine below and one entry per read in flight. Decisions are drawn from the seed in the
 * order in which reads are queued, so a run repeats. A completion of the engine below is `held`
 * until its time has come; what a short read did not deliver is overwritten, so that a reader who
 * trusts it fails. A read that is to fail never reaches the engine below.
 *
 * Runs on the I/O thread, all but wake. Invariant: free + below + held == depth. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/base/clock.h"
#include "runtime/base/rng.h"
#include "storage/io_impl.h"

enum { MILLION = 1000000, NAP_NS = 200 * 1000, BATCH = 32, SCRIBBLE = 0xee };

struct entry {
    cf_io_read read; /* as the caller asked */
    bool make_short, delay, corrupt;
    uint64_t fate; /* more random bits for the above */
    uint64_t throttled_ns, due_ns;
    int64_t result;
};

typedef struct fault_io {
    cf_io io; /* first: the seam's pointer is ours */
    cf_io *below;
    cf_io_fault how;
    char name[32];
    cf_rng rng, order_rng;
    struct entry *entries;
    struct entry **free, **held; /* stack; list in order of arrival */
    uint32_t depth, n_free, n_held, n_below;
    uint64_t throttle_ns; /* when the throttled drive will be through with all so far */
    atomic_bool woken;
} fault_io;

static bool draw(fault_io *f, uint32_t per_million)
{
    return cf_rng_below(&f->rng, MILLION) < per_million;
}

/* Whether the read is chosen to fail; uses up one of eio_times. */
static bool eio_hit(fault_io *f, const cf_io_read *r)
{
    bool by_chance = draw(f, f->how.eio_per_million);
    if (f->how.eio_times != 0 && f->how.eio_file == (int64_t)r->file &&
        f->how.eio_off >= (int64_t)r->off && f->how.eio_off - (int64_t)r->off < (int64_t)r->bytes) {
        if (f->how.eio_times > 0)
            f->how.eio_times--;
        return true;
    }
    return by_chance;
}

/* A completion arrives: decides what the caller will see of it, and when. */
static void entry_arrive(fault_io *f, struct entry *e, int64_t result)
{
    cf_rng rng = {e->fate};
    uint8_t *dst = e->read.dst;
    uint64_t now = cf_clock_ns();
    if (e->make_short && result > 1) {
        int64_t kept = 1 + (int64_t)cf_rng_below(&rng, (uint64_t)result - 1);
        memset(dst + kept, SCRIBBLE, e->read.bytes - (uint64_t)kept);
        result = kept;
    }
    if (e->corrupt && result > 0)
        dst[cf_rng_below(&rng, (uint64_t)result)] ^= (uint8_t)(1u << cf_rng_below(&rng, 8));
    e->result = result;
    now += e->delay ? (uint64_t)f->how.delay_us * 1000 : 0;
    e->due_ns = now > e->throttled_ns ? now : e->throttled_ns;
    f->held[f->n_held++] = e;
}

/* When a drive of the given speed, which takes reads one after the other, would be through with this
 * one. Counted from when it is asked for: the time the real drive takes passes meanwhile. */
static uint64_t throttled_until(fault_io *f, uint32_t bytes)
{
    if (!f->how.bytes_per_second)
        return 0;
    uint64_t now = cf_clock_ns();
    double ns = (double)bytes * 1e9 / (double)f->how.bytes_per_second;
    f->throttle_ns = (f->throttle_ns > now ? f->throttle_ns : now) + (uint64_t)ns;
    return f->throttle_ns;
}

static int fault_queue(cf_io *io, const cf_io_read *reads, int n)
{
    fault_io *f = (fault_io *)io;
    int taken = 0;
    for (; taken < n && f->n_free; taken++) {
        struct entry *e = f->free[f->n_free - 1];
        *e = (struct entry){.read = reads[taken]};
        cf_rng before = f->rng;
        int32_t times_before = f->how.eio_times;
        bool fail = eio_hit(f, &e->read);
        e->make_short = draw(f, f->how.short_per_million);
        e->delay = draw(f, f->how.delay_per_million);
        e->corrupt = draw(f, f->how.corrupt_per_million);
        e->fate = cf_rng_u64(&f->rng);
        cf_io_read r = e->read;
        r.user = e;
        if (!fail && f->below->fns->queue(f->below, &r, 1) != 1) {
            f->rng = before; /* BUSY: the read comes again, with the same luck */
            f->how.eio_times = times_before;
            break;
        }
        f->n_free--;
        e->throttled_ns = throttled_until(f, r.bytes);
        if (f->how.on_submit)
            f->how.on_submit(f->how.on_submit_user, r.file, r.off, r.bytes);
        if (fail)
            entry_arrive(f, e, -EIO);
        else
            f->n_below++;
    }
    return taken;
}

static int fault_submit(cf_io *io)
{
    fault_io *f = (fault_io *)io;
    return f->below->fns->submit(f->below);
}

/* Takes completions from below into `held`; returns how many, or -errno. */
static int below_reap(fault_io *f, bool block)
{
    cf_io_done done[BATCH];
    int n = f->below->fns->reap(f->below, done, BATCH, block);
    for (int i = 0; i < n; i++) {
        f->n_below--;
        entry_arrive(f, done[i].user, done[i].result);
    }
    return n;
}

/* Delivers what is due. *nap_ns is the time until the next one is; 0: nothing to wait for here. */
static int held_deliver(fault_io *f, cf_io_done *out, int max, uint64_t *nap_ns)
{
    int n = 0;
    *nap_ns = 0;
    if (f->how.withhold && f->n_held && f->how.withhold(f->how.withhold_user))
        return 0;
    if (f->how.reorder && f->n_below) /* shuffle all that is in flight, so wait for it */
        return 0;
    uint64_t now = cf_clock_ns();
    uint32_t i = f->how.reorder && f->n_held ? (uint32_t)cf_rng_below(&f->order_rng, f->n_held) : 0;
    for (uint32_t looked = f->n_held; looked > 0 && n < max; looked--) {
        struct entry *e = f->held[i];
        if (e->due_ns > now) {
            uint64_t left = e->due_ns - now;
            *nap_ns = !*nap_ns || left < *nap_ns ? left : *nap_ns;
            i = (i + 1) % f->n_held;
            continue;
        }
        out[n++] = (cf_io_done){.user = e->read.user, .result = e->result};
        f->free[f->n_free++] = e;
        memmove(&f->held[i], &f->held[i + 1], (--f->n_held - i) * sizeof *f->held);
        if (f->how.reorder && f->n_held)
            i = (uint32_t)cf_rng_below(&f->order_rng, f->n_held);
        else if (i == f->n_held)
            i = 0;
    }
    return n;
}

static int fault_reap(cf_io *io, cf_io_done *out, int max, bool block)
{
    fault_io *f = (fault_io *)io;
    for (;;) {
        int n;
        do
            n = below_reap(f, false);
        while (n == BATCH);
        if (n < 0)
            return n;
        uint64_t nap_ns;
        n = held_deliver(f, out, max, &nap_ns);
        if (n || !block || atomic_exchange(&f->woken, false))
            return n;
        if (nap_ns) { /* short naps, so that wake and the engine below are looked at */
            struct timespec t = {.tv_nsec = nap_ns < NAP_NS ? (long)nap_ns : NAP_NS};
            nanosleep(&t, NULL);
        } else if ((n = below_reap(f, true)) <= 0) {
            atomic_store(&f->woken, false);
            return n;
        }
    }
}

static void fault_wake(cf_io *io)
{
    fault_io *f = (fault_io *)io;
    atomic_store(&f->woken, true);
    f->below->fns->wake(f->below);
}

static void fault_close(cf_io *io)
{
    fault_io *f = (fault_io *)io;
    cf_io_close(&f->below);
    free(f->entries);
    free(f->free);
    free(f->held);
    free(f);
}

static const struct cf_io_fns fault_fns = {
    .queue = fault_queue,
    .submit = fault_submit,
    .reap = fault_reap,
    .wake = fault_wake,
    .close = fault_close,
};

int cf_io_fault_wrap(cf_io **io, const cf_io_options *options, cf_err *err)
{
    fault_io *f = calloc(1, sizeof *f);
    if (!f)
        return CF_FAIL(err, -ENOMEM, "out of memory for the fault engine");
    f->depth = options->depth;
    f->entries = calloc(f->depth, sizeof *f->entries);
    f->free = calloc(f->depth, sizeof(struct entry *));
    f->held = calloc(f->depth, sizeof(struct entry *));
    if (!f->entries || !f->free || !f->held) {
        fault_close(&f->io);
        return CF_FAIL(err, -ENOMEM, "out of memory for %u faulty reads", options->depth);
    }
    for (uint32_t i = 0; i < f->depth; i++)
        f->free[f->n_free++] = &f->entries[f->depth - 1 - i];
    f->how = *options->fault;
    f->rng.state = f->how.seed;
    f->order_rng.state = ~f->how.seed;
    f->below = *io;
    f->io = (cf_io){.fns = &fault_fns, .info = f->below->info};
    snprintf(f->name, sizeof f->name, "fault+%s", f->below->info.engine);
    f->io.info.engine = f->name;
    *io = &f->io;
    return 0;
}
