/* Catches: an engine that returns wrong bytes, loses or doubles a completion, misses a wake-up,
 * takes more than its depth, or steps down (direct, ring, set-up flags, registration) in silence.
 *
 * Refusals come from a seccomp filter or another user id in a child, or from the interposed
 * liburing calls below: the program's definitions come before the shared library's. */
#include <dlfcn.h>
#include <fcntl.h>
#include <grp.h>
#include <liburing.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/pages.h"
#include "runtime/base/rng.h"
#include "storage/io.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

enum { FILE_BYTES = (1 << 20) + 1234, SLAB_BYTES = 4 << 20, PAGE = 4096 };

static tmp_dir dir;
static const char *path_a, *path_b;
static char path_a_text[512], path_b_text[512];

/* ---- interposed ---- */

static unsigned refused_flags;               /* queue_init: EINVAL for any of these */
static uint64_t register_limit = UINT64_MAX; /* register_buffers: ENOMEM beyond */
static unsigned flags_seen;

int io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    struct io_uring_params p = {.flags = flags};
    if (flags & refused_flags)
        return -EINVAL;
    flags_seen = flags;
    return io_uring_queue_init_params(entries, ring, &p);
}

int io_uring_register_buffers(struct io_uring *ring, const struct iovec *iovecs, unsigned n)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < n; i++)
        bytes += iovecs[i].iov_len;
    if (bytes > register_limit)
        return -ENOMEM;
    long rc = syscall(__NR_io_uring_register, ring->ring_fd, IORING_REGISTER_BUFFERS, iovecs, n);
    return rc < 0 ? -errno : 0;
}

static int reads_fixed, reads_plain; /* submitted since the counters were cleared */

static void reads_count(const struct io_uring *ring)
{
    for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++) {
        unsigned opcode = ring->sq.sqes[i & *ring->sq.kring_mask].opcode;
        reads_fixed += opcode == IORING_OP_READ_FIXED;
        reads_plain += opcode == IORING_OP_READ;
    }
}

int io_uring_submit(struct io_uring *ring)
{
    int (*real)(struct io_uring *);
    *(void **)&real = dlsym(RTLD_NEXT, "io_uring_submit");
    reads_count(ring);
    return real(ring);
}

int io_uring_submit_and_get_events(struct io_uring *ring)
{
    int (*real)(struct io_uring *);
    *(void **)&real = dlsym(RTLD_NEXT, "io_uring_submit_and_get_events");
    reads_count(ring);
    return real(ring);
}

/* ---- helpers ---- */

static bool uring_here(void)
{
    struct io_uring ring;
    static int known = -1;
    if (known < 0) {
        known = io_uring_queue_init(2, &ring, 0) == 0;
        if (known)
            io_uring_queue_exit(&ring);
    }
    return known;
}

#define NEED_URING()                                                                               \
    if (!uring_here())                                                                             \
    SKIP("io_uring cannot be had here")

static int files_open(cf_files *files, bool direct, cf_err *err)
{
    const char *paths[] = {path_a, path_b};
    return cf_files_open(files, paths, 2, direct, err);
}

/* Reaps exactly n completions, checks that each `user` (an index) comes once. */
static void reap_all(cf_io *io, int n, int64_t *results)
{
    cf_io_done done[8];
    for (int left = n; left > 0;) {
        int got = io->fns->reap(io, done, 8, true);
        if (got < 0) {
            CHECK_INT(got, 0);
            return;
        }
        for (int i = 0; i < got; i++) {
            intptr_t k = (intptr_t)done[i].user - 1;
            CHECK(k >= 0 && k < n && results[k] == INT64_MIN);
            results[k] = done[i].result;
        }
        left -= got;
    }
}

/* ---- every engine, every mode ---- */

struct mode {
    const char *name;
    cf_io_kind kind;
    bool direct, registered, fault;
};

static const struct mode modes[] = {
    {"uring_direct_registered", CF_IO_URING, true, true, false},
    {"uring_direct", CF_IO_URING, true, false, false},
    {"uring_buffered_registered", CF_IO_URING, false, true, false},
    {"uring_buffered", CF_IO_URING, false, false, false},
    {"pread_direct", CF_IO_PREAD, true, false, false},
    {"pread_buffered", CF_IO_PREAD, false, false, false},
    {"fault_uring_direct", CF_IO_URING, true, true, true},
    {"fault_pread_buffered", CF_IO_PREAD, false, false, true},
};

static void mode_reads(const struct mode *m)
{
    enum { N = 300, DEPTH = 16, CELL = 64 << 10 };
    if (m->kind == CF_IO_URING)
        NEED_URING();
    static const cf_io_fault none;
    cf_err err = {0};
    cf_files files;
    cf_pages slab;
    cf_io *io = NULL;
    REQUIRE(files_open(&files, m->direct, &err) == 0);
    REQUIRE(cf_pages_init(&slab, SLAB_BYTES, NULL, CF_POOL_HOST, "slab", &err) == 0);
    const cf_io_region region[] = {{slab.data, PAGE}, {slab.data + PAGE, slab.bytes - PAGE}};
    cf_io_options o = {.kind = m->kind,
                       .depth = DEPTH,
                       .no_register = !m->registered,
                       .fault = m->fault ? &none : NULL,
                       .regions = region,
                       .n_regions = 2};
    CHECK_INT(cf_io_open(&io, &files, &o, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(io);
    CHECK_STR(io->info.engine, m->kind == CF_IO_PREAD ? (m->fault ? "fault+pread" : "pread")
                                                      : (m->fault ? "fault+uring" : "uring"));
    CHECK_STR(io->info.notice, "");
    CHECK_INT(io->info.registered_bytes, m->registered ? slab.bytes : 0);
    cf_rng rng = {3};
    int fixed = 0;
    reads_fixed = reads_plain = 0;
    for (int round = 0; round < N / DEPTH; round++) {
        cf_io_read reads[DEPTH];
        int64_t results[DEPTH];
        uint64_t limit = cf_align_up(FILE_BYTES, PAGE);
        for (int i = 0; i < DEPTH; i++) {
            uint64_t off = cf_rng_below(&rng, limit / PAGE) * PAGE;
            uint64_t bytes = (1 + cf_rng_below(&rng, CELL / PAGE)) * PAGE;
            reads[i] = (cf_io_read){.file = (uint32_t)cf_rng_below(&rng, 2),
                                    .off = off,
                                    .bytes = (uint32_t)cf_min_u64(bytes, limit - off),
                                    .dst = slab.data + PAGE + i * CELL,
                                    .region = cf_rng_below(&rng, 3) ? 1 : -1,
                                    .user = (void *)(intptr_t)(i + 1)};
            results[i] = INT64_MIN;
            fixed += m->registered && reads[i].region == 1;
        }
        CHECK_INT(io->fns->queue(io, reads, DEPTH), DEPTH);
        CHECK_INT(io->fns->submit(io), 0);
        reap_all(io, DEPTH, results);
        for (int i = 0; i < DEPTH; i++) {
            const cf_io_read *r = &reads[i];
            uint64_t want = cf_min_u64(r->bytes, FILE_BYTES - r->off);
            CHECK_INT(results[i], want);
            CHECK_INT(tmp_pattern_differs(r->dst, want, r->file, r->off), -1);
        }
    }
    CHECK_INT(reads_fixed, fixed);
    CHECK_INT(reads_fixed + reads_plain, m->kind == CF_IO_URING ? N / DEPTH * DEPTH : 0);
    cf_io_close(&io);
    CHECK(!io);
    cf_pages_finish(&slab);
    cf_files_close(&files);
}

static cf_io *engine_open(const cf_files *files, cf_io_kind kind, uint32_t depth,
                          const cf_io_fault *fault)
{
    cf_io *io = NULL;
    cf_err err = {0};
    cf_io_options o = {.kind = kind, .depth = depth, .fault = fault};
    if (cf_io_open(&io, files, &o, &err) < 0)
        printf("    %s\n", err.msg);
    return io;
}

static void busy_when_full(cf_io_kind kind, const cf_io_fault *fault)
{
    static uint8_t data[6][PAGE] __attribute__((aligned(PAGE)));
    cf_files files;
    cf_io_done done[8];
    cf_io_read reads[6];
    REQUIRE(files_open(&files, false, NULL) == 0);
    cf_io *io = engine_open(&files, kind, 4, fault);
    REQUIRE(io);
    for (int i = 0; i < 6; i++)
        reads[i] = (cf_io_read){.bytes = PAGE, .dst = data[i], .region = -1};
    for (int round = 0; round < 100; round++) {
        CHECK_INT(io->fns->queue(io, reads, 6), 4);
        CHECK_INT(io->fns->queue(io, reads, 1), 0);
        int got = 0; /* reap starts what was queued, without a submit */
        while (got < 4) {
            int n = io->fns->reap(io, done, 3, true);
            REQUIRE(n >= 0 && n <= 3);
            got += n;
        }
        CHECK_INT(got, 4);
        CHECK_INT(io->fns->reap(io, done, 8, false), 0);
    }
    cf_io_close(&io);
    cf_files_close(&files);
}

static void busy_pread(void)
{
    busy_when_full(CF_IO_PREAD, NULL);
}

static void busy_uring(void)
{
    NEED_URING();
    busy_when_full(CF_IO_URING, NULL);
}

static void busy_fault(void)
{
    static const cf_io_fault slow = {.delay_per_million = 300000, .delay_us = 100, .reorder = true};
    busy_when_full(CF_IO_PREAD, &slow);
}

static void *wake_main(void *arg)
{
    cf_io *io = arg;
    for (int i = 0; i < 50; i++) {
        usleep(1000);
        io->fns->wake(io);
    }
    return NULL;
}

/* Fifty wake-ups end at least one blocking reap each way, and one given before is not lost. */
static void wake_works(cf_io_kind kind, const cf_io_fault *fault)
{
    cf_files files;
    cf_io_done done[1];
    pthread_t thread;
    REQUIRE(files_open(&files, false, NULL) == 0);
    cf_io *io = engine_open(&files, kind, 4, fault);
    REQUIRE(io);
    for (int i = 0; i < 100; i++) {
        io->fns->wake(io);
        CHECK_INT(io->fns->reap(io, done, 1, true), 0);
    }
    CHECK_INT(pthread_create(&thread, NULL, wake_main, io), 0);
    uint64_t begin = cf_clock_ns();
    for (int i = 0; i < 10; i++)
        CHECK_INT(io->fns->reap(io, done, 1, true), 0);
    CHECK(cf_clock_ns() - begin > 1000000); /* it slept for most of them */
    pthread_join(thread, NULL);
    cf_io_close(&io);
    cf_files_close(&files);
}

static void wake_pread(void)
{
    wake_works(CF_IO_PREAD, NULL);
}

static void wake_uring(void)
{
    NEED_URING();
    wake_works(CF_IO_URING, NULL);
}

static void wake_fault(void)
{
    static const cf_io_fault none;
    wake_works(CF_IO_PREAD, &none);
}

/* ---- files ---- */

static void direct_refused(void)
{
    cf_err err = {0};
    cf_files files;
    /* A regular file on which no kernel allows O_DIRECT. */
    const char *paths[] = {path_a, "/proc/version"};
    int probe = open(paths[1], O_RDONLY | O_DIRECT);
    if (probe >= 0)
        close(probe);
    if (probe >= 0 || errno != EINVAL)
        SKIP("/proc/version does not refuse O_DIRECT");
    CHECK_INT(cf_files_open(&files, paths, 2, true, &err), 0);
    CHECK(!files.direct && files.count == 2 && files.align == PAGE);
    CHECK_STR(files.direct_why, "/proc/version: O_DIRECT refused: Invalid argument");
    for (uint32_t i = 0; i < 2; i++)
        CHECK_INT(fcntl(files.list[i].fd, F_GETFL) & O_DIRECT, 0);
    cf_files_close(&files);
    CHECK_INT(cf_files_open(&files, paths, 2, false, &err), 0);
    CHECK_STR(files.direct_why, "");
    cf_files_close(&files);
    CHECK_INT(cf_files_open(&files, paths, 1, true, &err), 0);
    CHECK(files.direct == !!(fcntl(files.list[0].fd, F_GETFL) & O_DIRECT));
    CHECK(files.direct == !files.direct_why[0]);
    CHECK(files.align >= PAGE && (files.align & (files.align - 1)) == 0);
    cf_files_close(&files);
    cf_files_close(&files); /* zeroed: accepted */
}

static void files_bad(void)
{
    cf_err err = {0};
    cf_files files;
    const char *missing[] = {path_a, tmp_path(&dir, "missing")};
    CHECK_INT(cf_files_open(&files, missing, 2, true, &err), -ENOENT);
    CHECK_HAS(err.msg, "missing: No such file");
    CHECK(!files.list && !files.count);
    err = (cf_err){0};
    const char *folder[] = {dir.path};
    CHECK_INT(cf_files_open(&files, folder, 1, false, &err), CF_EFORMAT);
    CHECK_HAS(err.msg, "is not a regular file");
    err = (cf_err){0};
    const char *pipe_path[] = {tmp_path(&dir, "pipe")};
    CHECK_INT(mkfifo(pipe_path[0], 0600), 0);
    CHECK_INT(cf_files_open(&files, pipe_path, 1, false, &err), CF_EFORMAT); /* and no hang */
}

static void identity(void)
{
    char path[512], other[512];
    const char *paths[] = {path};
    snprintf(path, sizeof path, "%s", tmp_path(&dir, "identity"));
    snprintf(other, sizeof other, "%s", tmp_path(&dir, "other"));
    for (int how = 0; how < 6; how++) {
        static const char *const want[] = {"",
                                           "100 bytes when opened, now 50",
                                           "was replaced",
                                           "disappeared",
                                           "was rewritten",
                                           "now 200"};
        cf_err err = {0};
        cf_files files;
        tmp_write_pattern(path, 100, 0);
        struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
        CHECK_INT(utimensat(AT_FDCWD, path, old, 0), 0);
        CHECK_INT(cf_files_open(&files, paths, 1, false, &err), 0);
        if (how == 1)
            CHECK_INT(truncate(path, 50), 0);
        if (how == 2) {
            tmp_write_pattern(other, 100, 0);
            CHECK_INT(rename(other, path), 0);
        }
        if (how == 3)
            CHECK_INT(unlink(path), 0);
        if (how == 4)
            tmp_write_pattern(path, 100, 1);
        if (how == 5)
            CHECK_INT(truncate(path, 200), 0);
        CHECK_INT(cf_files_check(&files, 0, &err), how ? CF_ECHANGED : 0);
        CHECK_HAS(err.msg, want[how]);
        CHECK(how == 0 || strstr(err.msg, path));
        cf_files_close(&files);
    }
}

/* ---- stepping down ---- */

static void setup_ladder(void)
{
    NEED_URING();
    static const struct {
        unsigned refuse, get;
        const char *notice;
    } rungs[] = {
        {0, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, ""},
        {IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_COOP_TASKRUN, "without DEFER_TASKRUN"},
        {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN, 0, "without COOP_TASKRUN"},
    };
    for (int i = 0; i < 3; i++) {
        refused_flags = rungs[i].refuse;
        cf_files files;
        REQUIRE(files_open(&files, false, NULL) == 0);
        cf_io *io = engine_open(&files, CF_IO_URING, 4, NULL);
        refused_flags = 0;
        REQUIRE(io);
        if (i > 0 || !io->info.notice[0]) /* an old kernel steps down by itself */
            CHECK_INT(flags_seen, rungs[i].get);
        CHECK_HAS(io->info.notice, rungs[i].notice);
        static uint8_t data[PAGE] __attribute__((aligned(PAGE)));
        cf_io_read r = {.bytes = PAGE, .dst = data, .region = -1, .user = (void *)1};
        int64_t result = INT64_MIN;
        CHECK_INT(io->fns->queue(io, &r, 1), 1);
        reap_all(io, 1, &result);
        CHECK_INT(result, PAGE);
        CHECK_INT(tmp_pattern_differs(data, PAGE, 0, 0), -1);
        cf_io_close(&io);
        cf_files_close(&files);
    }
}

/* Runs a check in a child; its failures print there and come back as a failure here. */
static void in_child(void (*fn)(void))
{
    fflush(stdout);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        alarm(60);
        fn();
        fflush(stdout);
        _exit(check_case_failed ? 1 : check_case_skipped ? 77 : 0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        check_case_skipped = true;
    else
        CHECK_INT(status, 0);
}

/* As in a container: the system call answers EPERM. */
static void uring_forbidden_child(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {.len = sizeof code / sizeof *code, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
        SKIP("no seccomp filters here");
    cf_files files;
    cf_err err = {0};
    cf_io *io = NULL;
    REQUIRE(files_open(&files, true, NULL) == 0);
    cf_io_options o = {.kind = CF_IO_URING};
    CHECK_INT(cf_io_open(&io, &files, &o, &err), -EPERM);
    CHECK_STR(err.msg, "io_uring refused: Operation not permitted");
    CHECK(!io);
    o.kind = CF_IO_AUTO;
    CHECK_INT(cf_io_open(&io, &files, &o, NULL), 0);
    REQUIRE(io);
    CHECK_STR(io->info.engine, "pread");
    CHECK_STR(io->info.notice, "io_uring refused: Operation not permitted: reading with threads");
    cf_io_close(&io);
    cf_files_close(&files);
}

static void uring_forbidden(void)
{
    in_child(uring_forbidden_child);
}

/* Opens with 64 MiB of regions of which not all can be registered, and reads into all of it. */
static void partly_registered(uint64_t at_most)
{
    cf_files files;
    cf_pages slab;
    cf_io *io = NULL;
    cf_err err = {0};
    const uint64_t bytes = 64 << 20, half = bytes / 2;
    REQUIRE(files_open(&files, true, &err) == 0);
    REQUIRE(cf_pages_init(&slab, bytes, NULL, CF_POOL_HOST, "slab", &err) == 0);
    const cf_io_region regions[] = {{slab.data, half}, {slab.data + half, half}};
    cf_io_options o = {.kind = CF_IO_URING, .depth = 8, .regions = regions, .n_regions = 2};
    CHECK_INT(cf_io_open(&io, &files, &o, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(io);
    CHECK(io->info.registered_bytes <= at_most);
    CHECK_HAS(io->info.notice, "of 64 MiB registered");
    CHECK_HAS(io->info.notice, "MEMLOCK limit");
    /* 260 KiB each, so that one of them crosses the end of what is registered. */
    const uint32_t cell = 260 << 10;
    int fixed = 0;
    reads_fixed = reads_plain = 0;
    for (uint64_t at = 0; at + cell <= bytes; at += cell) {
        int64_t result = INT64_MIN;
        bool second = at + cell > half;
        at = second && at < half ? half : at;
        cf_io_read r = {.bytes = cell,
                        .dst = slab.data + at,
                        .off = at / 4096 % 100 * 4096,
                        .region = second,
                        .user = (void *)1};
        fixed += at + cell <= io->info.registered_bytes;
        CHECK_INT(io->fns->queue(io, &r, 1), 1);
        reap_all(io, 1, &result);
        CHECK_INT(result, cell);
        CHECK_INT(tmp_pattern_differs(r.dst, cell, 0, r.off), -1);
    }
    CHECK_INT(reads_fixed, fixed);
    CHECK_INT(reads_fixed + reads_plain, bytes / cell);
    cf_io_close(&io);
    cf_pages_finish(&slab);
    cf_files_close(&files);
}

static void registers_what_fits(void)
{
    NEED_URING();
    register_limit = (40 << 20) + 5;
    partly_registered(40 << 20);
    register_limit = 0;
    partly_registered(0);
    register_limit = UINT64_MAX;
}

/* A region beyond 1 GiB takes two iovecs; a read across their border goes unregistered. The memory
 * is 2 MiB, mapped over and over. */
static void iovec_border(void)
{
    NEED_URING();
    const uint64_t piece = 2 << 20, border = 1 << 30, bytes = border + piece;
    int fd = memfd_create("slab", MFD_CLOEXEC);
    REQUIRE(fd >= 0 && ftruncate(fd, (off_t)piece) == 0);
    uint8_t *data = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(data != MAP_FAILED);
    for (uint64_t at = 0; at < bytes; at += piece)
        REQUIRE(mmap(data + at, piece, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) !=
                MAP_FAILED);
    close(fd);
    cf_files files;
    cf_io *io = NULL;
    cf_err err = {0};
    const cf_io_region region = {data, bytes};
    cf_io_options o = {.kind = CF_IO_URING, .depth = 4, .regions = &region, .n_regions = 1};
    REQUIRE(files_open(&files, true, NULL) == 0);
    CHECK_INT(cf_io_open(&io, &files, &o, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(io);
    bool all = io->info.registered_bytes == bytes;
    static const int at_page[] = {-2, -1, 0}; /* of two pages each, from the border */
    reads_fixed = reads_plain = 0;
    for (int i = 0; all && i < 3; i++) {
        int64_t result = INT64_MIN;
        cf_io_read r = {.bytes = 2 * PAGE,
                        .off = (uint64_t)i * PAGE,
                        .dst = data + border + at_page[i] * PAGE,
                        .user = (void *)1};
        CHECK_INT(io->fns->queue(io, &r, 1), 1);
        reap_all(io, 1, &result);
        CHECK_INT(result, 2 * PAGE);
        CHECK_INT(tmp_pattern_differs(r.dst, 2 * PAGE, 0, r.off), -1);
    }
    if (all)
        CHECK(reads_fixed == 2 && reads_plain == 1);
    cf_io_close(&io);
    cf_files_close(&files);
    munmap(data, bytes);
    if (!all)
        SKIP("1 GiB cannot be registered here");
}

static void unprivileged_child(void)
{
    /* The soft limit is lower still: it has to be raised to the hard one. */
    struct rlimit lim = {.rlim_cur = 64 << 10, .rlim_max = 8 << 20};
    /* The limit counts over all processes of a user: be one that nobody else is. */
    uid_t user = 2000000 + (uid_t)getpid() % 1000000;
    if (setrlimit(RLIMIT_MEMLOCK, &lim) || setgroups(0, NULL) || setresgid(user, user, user) ||
        setresuid(user, user, user))
        SKIP("cannot become another user");
    int probe = open(path_a, O_RDONLY);
    if (probe < 0)
        SKIP("another user cannot reach %s", path_a);
    close(probe);
    struct io_uring ring;
    if (io_uring_queue_init(2, &ring, 0) < 0)
        SKIP("another user has no io_uring here");
    io_uring_queue_exit(&ring);
    partly_registered(8 << 20);
    getrlimit(RLIMIT_MEMLOCK, &lim);
    CHECK_INT(lim.rlim_cur, 8 << 20);
}

static void unprivileged_memlock(void)
{
    if (geteuid() != 0)
        SKIP("only root can become another user");
    in_child(unprivileged_child);
}

/* ---- the fault engine ---- */

enum { FAULT_READS = 64 };

struct fault_run {
    int64_t results[FAULT_READS];
    int order[FAULT_READS];
    int submitted;
    uint64_t ns;
};

static uint8_t fault_data[FAULT_READS][2 * PAGE] __attribute__((aligned(PAGE)));

static void submit_count(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    struct fault_run *run = user;
    CHECK(file == 1 && off == (uint64_t)run->submitted * 2 * PAGE && bytes == 2 * PAGE);
    run->submitted++;
}

/* 64 reads of two pages at depth 64, over pread: results by read, and the order of completion. */
static void fault_run_make(cf_io_fault how, struct fault_run *run)
{
    cf_files files;
    cf_io_done done[FAULT_READS];
    *run = (struct fault_run){.submitted = 0};
    how.on_submit = submit_count;
    how.on_submit_user = run;
    REQUIRE(files_open(&files, false, NULL) == 0);
    cf_io *io = engine_open(&files, CF_IO_PREAD, FAULT_READS, &how);
    REQUIRE(io);
    uint64_t begin = cf_clock_ns();
    for (int i = 0; i < FAULT_READS; i++) {
        cf_io_read r = {.file = 1,
                        .bytes = 2 * PAGE,
                        .dst = fault_data[i],
                        .off = (uint64_t)i * 2 * PAGE,
                        .region = -1,
                        .user = (void *)(intptr_t)i};
        CHECK_INT(io->fns->queue(io, &r, 1), 1);
    }
    for (int got = 0; got < FAULT_READS;) {
        int n = io->fns->reap(io, done, FAULT_READS, true);
        REQUIRE(n >= 0);
        for (int i = 0; i < n; i++) {
            run->results[(intptr_t)done[i].user] = done[i].result;
            run->order[got++] = (int)(intptr_t)done[i].user;
        }
    }
    run->ns = cf_clock_ns() - begin;
    CHECK_INT(run->submitted, FAULT_READS);
    cf_io_close(&io);
    cf_files_close(&files);
}

static int64_t read_differs(int i, uint64_t bytes)
{
    return tmp_pattern_differs(fault_data[i], bytes, 1, (uint64_t)i * 2 * PAGE);
}

static void fault_short(void)
{
    struct fault_run run, again;
    int shorter = 0;
    fault_run_make((cf_io_fault){.seed = 5, .short_per_million = 400000, .eio_file = -1}, &run);
    for (int i = 0; i < FAULT_READS; i++) {
        uint64_t n = (uint64_t)run.results[i];
        REQUIRE(n >= 1 && n <= 2 * PAGE);
        shorter += n < 2 * PAGE;
        CHECK_INT(read_differs(i, n), -1);
        CHECK(n == 2 * PAGE || fault_data[i][2 * PAGE - 1] == 0xee);
    }
    CHECK(shorter > 10 && shorter < 45);
    fault_run_make((cf_io_fault){.seed = 5, .short_per_million = 400000, .eio_file = -1}, &again);
    CHECK(memcmp(run.results, again.results, sizeof run.results) == 0);
    fault_run_make((cf_io_fault){.seed = 6, .short_per_million = 400000, .eio_file = -1}, &again);
    CHECK(memcmp(run.results, again.results, sizeof run.results) != 0);
}

static void fault_eio(void)
{
    struct fault_run run;
    int failed = 0;
    fault_run_make((cf_io_fault){.seed = 1, .eio_per_million = 250000}, &run);
    for (int i = 0; i < FAULT_READS; i++) {
        failed += run.results[i] == -EIO;
        CHECK(run.results[i] == -EIO || run.results[i] == 2 * PAGE);
    }
    CHECK(failed > 4 && failed < 35);
    /* By place: the read that covers byte 3 * 8192 - 1 is the third. */
    fault_run_make((cf_io_fault){.eio_file = 1, .eio_off = 3 * 2 * PAGE - 1, .eio_times = 1}, &run);
    for (int i = 0; i < FAULT_READS; i++)
        CHECK_INT(run.results[i], i == 2 ? -EIO : 2 * PAGE);
    fault_run_make((cf_io_fault){.eio_file = 1, .eio_off = 3 * 2 * PAGE - 1}, &run);
    CHECK_INT(run.results[2], 2 * PAGE); /* no times: nothing */
}

static void fault_corrupt(void)
{
    struct fault_run run;
    int wrong = 0;
    fault_run_make((cf_io_fault){.corrupt_per_million = 300000}, &run);
    for (int i = 0; i < FAULT_READS; i++) {
        int64_t at = read_differs(i, 2 * PAGE);
        wrong += at >= 0;
        if (at < 0)
            continue;
        uint8_t bits = fault_data[i][at] ^ tmp_pattern(1, (uint64_t)i * 2 * PAGE + (uint64_t)at);
        CHECK((bits & (bits - 1)) == 0);
        fault_data[i][at] ^= bits;
        CHECK_INT(read_differs(i, 2 * PAGE), -1); /* one bit, no more */
    }
    CHECK(wrong > 5 && wrong < 40);
}

static void fault_order_and_time(void)
{
    struct fault_run run, again;
    int moved = 0;
    fault_run_make((cf_io_fault){.seed = 2, .reorder = true}, &run);
    for (int i = 0; i < FAULT_READS; i++)
        moved += run.order[i] != i;
    CHECK(moved > FAULT_READS / 2);
    /* 64 x 8 KiB at 5 MiB/s are 100 ms. */
    fault_run_make((cf_io_fault){.bytes_per_second = 5 << 20}, &again);
    CHECK(again.ns >= 99 * 1000000ull);
    for (int i = 0; i < FAULT_READS; i++)
        CHECK_INT(again.results[i], 2 * PAGE);
    fault_run_make((cf_io_fault){.delay_per_million = 1000000, .delay_us = 30000}, &again);
    CHECK(again.ns >= 30 * 1000000ull);
}

static bool withhold_asked(void *user)
{
    return ++*(int *)user < 3;
}

static void fault_withhold(void)
{
    static uint8_t data[PAGE] __attribute__((aligned(PAGE)));
    int asked = 0;
    cf_io_fault how = {.withhold = withhold_asked, .withhold_user = &asked};
    cf_files files;
    cf_io_done done;
    REQUIRE(files_open(&files, false, NULL) == 0);
    cf_io *io = engine_open(&files, CF_IO_PREAD, 4, &how);
    REQUIRE(io);
    cf_io_read r = {.bytes = PAGE, .dst = data, .region = -1};
    CHECK_INT(io->fns->queue(io, &r, 1), 1);
    int n = 0;
    for (int rounds = 0; n == 0 && rounds < 20000; rounds++) {
        usleep(100); /* until the read has come */
        io->fns->wake(io);
        n = io->fns->reap(io, &done, 1, true);
    }
    CHECK_INT(n, 1);
    CHECK_INT(asked, 3);
    cf_io_close(&io);
    cf_files_close(&files);
}

static void options_bad(void)
{
    cf_files files;
    cf_io *io = NULL;
    cf_err err = {0};
    REQUIRE(files_open(&files, false, NULL) == 0);
    cf_io_options o = {.kind = CF_IO_PREAD, .depth = CF_IO_DEPTH_MAX + 1};
    CHECK_INT(cf_io_open(&io, &files, &o, &err), -EINVAL);
    CHECK_HAS(err.msg, "4097");
    cf_io_close(&io); /* NULL: accepted */
    cf_files_close(&files);
}

int main(void)
{
    tmp_dir_init(&dir);
    chmod(dir.path, 0755); /* another user reads from it */
    snprintf(path_a_text, sizeof path_a_text, "%s", tmp_path(&dir, "a"));
    snprintf(path_b_text, sizeof path_b_text, "%s", tmp_path(&dir, "b"));
    path_a = path_a_text;
    path_b = path_b_text;
    tmp_write_pattern(path_a, FILE_BYTES, 0);
    tmp_write_pattern(path_b, FILE_BYTES, 1);
    RUN(uring_forbidden); /* children first: no threads yet */
    RUN(unprivileged_memlock);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        RUN_NAMED(modes[i].name, mode_reads(&modes[i]));
    RUN(busy_pread);
    RUN(busy_uring);
    RUN(busy_fault);
    RUN(wake_pread);
    RUN(wake_uring);
    RUN(wake_fault);
    RUN(direct_refused);
    RUN(files_bad);
    RUN(identity);
    RUN(setup_ladder);
    RUN(registers_what_fits);
    RUN(iovec_border);
    RUN(fault_short);
    RUN(fault_eio);
    RUN(fault_corrupt);
    RUN(fault_order_and_time);
    RUN(fault_withhold);
    RUN(options_bad);
    tmp_dir_finish(&dir);
    return check_done();
}
