/* Reads by io_uring: registered files, registered buffers, one ring that one thread owns.
 *
 * Owns the ring and an eventfd. Only wake may come from another thread, and the eventfd is only a
 * doorbell: what there is to do travels under the caller's own lock. `asleep` saves the doorbell's
 * system call while the owner is busy: wake stores `woken` and then looks at `asleep`, the owner
 * stores `asleep` and then looks at `woken`, so at least one of them sees the other.
 *
 * Memory is registered as a prefix of all regions, taken in order, in iovecs of at most 1 GiB; a
 * read that crosses from one iovec into the next goes unregistered.
 *
 * Invariants: 1. queued + submitted - reaped == in_flight <= depth. 2. The ring has room for depth
 * reads and one poll, so a submission entry can always be had. */
#include <liburing.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "storage/io_impl.h"

enum {
    IOVEC_MAX_BYTES = 1 << 30, /* the kernel's limit: EFAULT beyond */
    IOVECS_MAX = 1 << 14,
    REGISTER_MIN_BYTES = 256 << 10,
    HUGE_PAGE = 2 << 20
};

struct region {
    const uint8_t *data;
    uint64_t bytes, registered; /* of `bytes`, from the start */
    uint32_t first_iovec;
};

typedef struct uring_io {
    cf_io io; /* first: the seam's pointer is ours */
    struct io_uring ring;
    bool ring_open, files_registered, multishot, poll_armed;
    const cf_files *files;
    uint32_t depth, in_flight;
    struct region *regions;
    uint32_t n_regions;
    int failed; /* sticky -errno */
    int event_fd;
    atomic_bool asleep, woken;
} uring_io;

/* Adds a sentence to the notice. */
static void notice_add(uring_io *u, const char *text)
{
    size_t n = strlen(u->io.info.notice);
    snprintf(u->io.info.notice + n, sizeof u->io.info.notice - n, "%s%s", n ? "; " : "", text);
}

/* The iovec that holds all of a read, or -1. */
static int read_iovec(const uring_io *u, const cf_io_read *r)
{
    if (r->region < 0 || (uint32_t)r->region >= u->n_regions)
        return -1;
    const struct region *g = &u->regions[r->region];
    uintptr_t dst = (uintptr_t)r->dst, data = (uintptr_t)g->data;
    if (dst < data || dst - data >= g->registered || r->bytes > g->registered - (dst - data))
        return -1;
    uint64_t first = (dst - data) / IOVEC_MAX_BYTES;
    uint64_t last = (dst - data + r->bytes - 1) / IOVEC_MAX_BYTES;
    return first == last ? (int)(g->first_iovec + first) : -1;
}

static int uring_queue(cf_io *io, const cf_io_read *reads, int n)
{
    uring_io *u = (uring_io *)io;
    int taken = 0;
    for (; taken < n && u->in_flight < u->depth; taken++, u->in_flight++) {
        const cf_io_read *r = &reads[taken];
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
        if (!sqe)
            break;
        int fd = u->files_registered ? (int)r->file : u->files->list[r->file].fd;
        int iovec = r->bytes ? read_iovec(u, r) : -1;
        if (iovec >= 0)
            io_uring_prep_read_fixed(sqe, fd, r->dst, r->bytes, r->off, iovec);
        else
            io_uring_prep_read(sqe, fd, r->dst, r->bytes, r->off);
        if (u->files_registered)
            io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
        io_uring_sqe_set_data(sqe, r->user);
    }
    return taken;
}

/* What entering the kernel returned: transient refusals leave the entries queued for the next
 * time, everything else is sticky. */
static int enter_check(uring_io *u, int rc)
{
    if (rc >= 0 || rc == -EINTR)
        return 0;
    if (rc == -EAGAIN || rc == -EBUSY) {
        usleep(1000); /* the kernel is short of memory: do not spin on it */
        return 0;
    }
    u->failed = rc;
    return rc;
}

static int uring_submit(cf_io *io)
{
    uring_io *u = (uring_io *)io;
    if (u->failed || !io_uring_sq_ready(&u->ring))
        return u->failed;
    return enter_check(u, io_uring_submit(&u->ring));
}

/* The doorbell's poll, in the ring; before 5.13 it reports once and is armed again. */
static void poll_arm(uring_io *u)
{
    struct io_uring_sqe *sqe = u->poll_armed ? NULL : io_uring_get_sqe(&u->ring);
    if (!sqe)
        return;
    if (u->multishot)
        io_uring_prep_poll_multishot(sqe, u->event_fd, POLLIN);
    else
        io_uring_prep_poll_add(sqe, u->event_fd, POLLIN);
    io_uring_sqe_set_data(sqe, &u->event_fd);
    u->poll_armed = true;
}

static void poll_completed(uring_io *u, const struct io_uring_cqe *cqe)
{
    uint64_t rung;
    if (cqe->res == -EINVAL && u->multishot)
        u->multishot = false;
    while (read(u->event_fd, &rung, sizeof rung) < 0 && errno == EINTR)
        continue;
    if (!(cqe->flags & IORING_CQE_F_MORE))
        u->poll_armed = false;
}

/* Takes up to max completions of reads that are there already. */
static int cqes_take(uring_io *u, cf_io_done *out, int max)
{
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    int n = 0;
    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        if (n == max)
            break;
        seen++;
        void *user = io_uring_cqe_get_data(cqe);
        if (user == (void *)&u->event_fd)
            poll_completed(u, cqe);
        else
            out[n++] = (cf_io_done){.user = user, .result = cqe->res};
    }
    io_uring_cq_advance(&u->ring, seen);
    u->in_flight -= (uint32_t)n;
    return n;
}

static int uring_reap(cf_io *io, cf_io_done *out, int max, bool block)
{
    uring_io *u = (uring_io *)io;
    if (u->failed)
        return u->failed;
    poll_arm(u);
    int n = 0;
    if (!io_uring_sq_ready(&u->ring))
        n = cqes_take(u, out, max);
    if (n == 0) { /* submit, and run what the kernel deferred to us */
        if (enter_check(u, io_uring_submit_and_get_events(&u->ring)) < 0)
            return u->failed;
        n = cqes_take(u, out, max);
    }
    if (n || !block)
        return n;
    atomic_store(&u->asleep, true);
    if (!atomic_load(&u->woken)) {
        poll_arm(u);
        if (enter_check(u, io_uring_submit_and_wait(&u->ring, 1)) < 0)
            return u->failed;
        n = cqes_take(u, out, max);
    }
    atomic_store(&u->asleep, false);
    atomic_store(&u->woken, false);
    return n;
}

static void uring_wake(cf_io *io)
{
    uring_io *u = (uring_io *)io;
    atomic_store(&u->woken, true);
    if (!atomic_exchange(&u->asleep, false))
        return;
    uint64_t one = 1;
    while (write(u->event_fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

static void uring_close(cf_io *io)
{
    uring_io *u = (uring_io *)io;
    if (u->ring_open) {
        if (u->io.info.registered_bytes) /* the ring's own teardown unpins later than this */
            io_uring_unregister_buffers(&u->ring);
        io_uring_queue_exit(&u->ring);
    }
    if (u->event_fd >= 0)
        close(u->event_fd);
    free(u->regions);
    free(u);
}

static const struct cf_io_fns uring_fns = {
    .queue = uring_queue,
    .submit = uring_submit,
    .reap = uring_reap,
    .wake = uring_wake,
    .close = uring_close,
};

/* From the best set-up to the plainest; older kernels refuse unknown flags with EINVAL. */
static int ring_setup(uring_io *u, cf_err *err)
{
    static const struct {
        unsigned flags;
        const char *notice;
    } ladder[] = {
        {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, NULL},
        {IORING_SETUP_COOP_TASKRUN, "io_uring without DEFER_TASKRUN (kernel before 6.1)"},
        {0, "io_uring without COOP_TASKRUN (kernel before 5.19)"},
    };
    int rc = -EINVAL;
    for (size_t i = 0; i < sizeof ladder / sizeof *ladder && rc == -EINVAL; i++) {
        rc = io_uring_queue_init(u->depth + 1, &u->ring, ladder[i].flags);
        if (rc == 0 && ladder[i].notice)
            notice_add(u, ladder[i].notice);
    }
    if (rc < 0)
        return CF_FAIL(err, rc, "io_uring refused: %s", strerror(-rc));
    u->ring_open = true;
    struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);
    bool reads = probe && io_uring_opcode_supported(probe, IORING_OP_READ);
    io_uring_free_probe(probe);
    if (!reads)
        return CF_FAIL(err, -ENOSYS, "io_uring refused: this kernel's has no READ (before 5.6)");
    return 0;
}

static void files_register(uring_io *u)
{
    char text[96];
    int *fds = calloc(u->files->count ? u->files->count : 1, sizeof *fds);
    int rc = fds ? 0 : -ENOMEM;
    for (uint32_t i = 0; fds && i < u->files->count; i++)
        fds[i] = u->files->list[i].fd;
    if (fds && u->files->count)
        rc = io_uring_register_files(&u->ring, fds, u->files->count);
    free(fds);
    u->files_registered = rc == 0 && u->files->count > 0;
    if (rc < 0) {
        snprintf(text, sizeof text, "files not registered: %s", strerror(-rc));
        notice_add(u, text);
    }
}

/* Registers the first `bytes` of all regions together; -errno leaves nothing registered. */
static int prefix_register(uring_io *u, struct iovec *iov, uint64_t bytes)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < u->n_regions; i++) {
        struct region *g = &u->regions[i];
        uint64_t left = cf_min_u64(g->bytes, bytes);
        bytes -= left;
        g->first_iovec = n;
        g->registered = 0;
        for (; left && n < IOVECS_MAX; n++) {
            uint64_t part = cf_min_u64(left, IOVEC_MAX_BYTES);
            iov[n] = (struct iovec){.iov_base = (void *)(uintptr_t)(g->data + g->registered),
                                    .iov_len = part};
            g->registered += part;
            left -= part;
        }
    }
    int rc = n ? io_uring_register_buffers(&u->ring, iov, n) : 0;
    for (uint32_t i = 0; rc < 0 && i < u->n_regions; i++)
        u->regions[i].registered = 0;
    return rc;
}

/* The soft limit on locked memory, raised to the hard one. */
static uint64_t memlock_raise(void)
{
    struct rlimit lim;
    if (getrlimit(RLIMIT_MEMLOCK, &lim) < 0)
        return 0;
    if (lim.rlim_cur < lim.rlim_max) {
        struct rlimit raised = {.rlim_cur = lim.rlim_max, .rlim_max = lim.rlim_max};
        if (setrlimit(RLIMIT_MEMLOCK, &raised) == 0)
            lim = raised;
    }
    return lim.rlim_cur;
}

/* Registers all regions, or as much from their start as the limit allows. The limit counts per
 * user over all processes, so what fits is found by trying: smaller only, never larger again,
 * because a registration that was given back is unpinned with a delay. */
static void regions_register(uring_io *u)
{
    uint64_t total = 0, limit = memlock_raise();
    for (uint32_t i = 0; i < u->n_regions; i++)
        total += u->regions[i].bytes;
    struct iovec *iov = calloc(IOVECS_MAX, sizeof *iov);
    int rc = iov ? prefix_register(u, iov, total) : -ENOMEM;
    uint64_t tried = total;
    for (uint64_t next = limit; iov && rc == -ENOMEM; next = tried / 8 * 7) {
        if (next >= tried)
            next = tried / 8 * 7;
        tried = cf_align_down(next, next > 2 * HUGE_PAGE ? HUGE_PAGE : 64 << 10);
        if (tried < REGISTER_MIN_BYTES)
            break;
        rc = prefix_register(u, iov, tried);
    }
    free(iov);
    u->io.info.registered_bytes = 0;
    for (uint32_t i = 0; rc == 0 && i < u->n_regions; i++)
        u->io.info.registered_bytes += u->regions[i].registered;
    if (u->io.info.registered_bytes < total) {
        char text[160];
        snprintf(text, sizeof text, "%llu of %llu MiB registered (%s; MEMLOCK limit %llu KiB)",
                 (unsigned long long)(u->io.info.registered_bytes >> 20),
                 (unsigned long long)(total >> 20),
                 rc < 0 ? strerror(-rc) : "the rest is read unregistered",
                 (unsigned long long)(limit >> 10));
        notice_add(u, text);
    }
}

int cf_io_uring_open(cf_io **out, const cf_files *files, const cf_io_options *options, cf_err *err)
{
    int rc = 0;
    uring_io *u = calloc(1, sizeof *u);
    if (!u)
        return CF_FAIL(err, -ENOMEM, "out of memory for the uring engine");
    u->io = (cf_io){.fns = &uring_fns, .info = {.engine = "uring"}};
    u->files = files;
    u->depth = options->depth;
    u->multishot = true;
    u->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (u->event_fd < 0)
        CF_TRY(CF_FAIL(err, -errno, "cannot make an eventfd: %s", strerror(errno)));
    CF_TRY(ring_setup(u, err));
    files_register(u);
    if (!options->no_register && options->n_regions) {
        u->regions = calloc(options->n_regions, sizeof *u->regions);
        if (!u->regions)
            CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for %u regions", options->n_regions));
        u->n_regions = options->n_regions;
        for (uint32_t i = 0; i < u->n_regions; i++)
            u->regions[i] = (struct region){.data = options->regions[i].data,
                                            .bytes = options->regions[i].bytes};
        regions_register(u);
    }
    *out = &u->io;
    return 0;
fail:
    uring_close(&u->io);
    return rc;
}
