/* The I/O seam: open, submit reads, reap completions; BUSY when full.
 *
 * Implementations: io_uring.c, io_pread.c (worker threads), io_fault.c (wraps another one).
 * An engine belongs to one thread, the I/O thread, which calls everything here except wake. Reads
 * are whole aligned windows; a completion says how many bytes arrived or -errno. The seam neither
 * retries nor checks lengths: that is fetch.c. */
#ifndef CF_STORAGE_IO_H
#define CF_STORAGE_IO_H

#include "storage/files.h"

typedef struct cf_io cf_io;

enum { CF_IO_DEPTH_DEFAULT = 64, CF_IO_DEPTH_MAX = 4096 };

typedef struct cf_io_read {
    uint32_t file;
    uint32_t bytes;
    uint64_t off;
    void *dst;
    int32_t region; /* registered region that holds dst, or -1 */
    void *user;     /* handed back with the completion */
} cf_io_read;

typedef struct cf_io_done {
    void *user;
    int64_t result; /* bytes, or -errno */
} cf_io_done;

/* Memory that reads will go to, offered for registration. */
typedef struct cf_io_region {
    void *data;
    uint64_t bytes;
} cf_io_region;

typedef struct cf_io_info {
    const char *engine; /* "uring", "pread", "fault+..." as the statistics name it */
    uint64_t registered_bytes;
    char notice[256]; /* what could not be had (registration, setup flags), or empty */
} cf_io_info;

struct cf_io_fns {
    /* Queues up to n reads; returns how many (0 = BUSY). They start at the next submit or reap. */
    int (*queue)(cf_io *io, const cf_io_read *reads, int n);
    /* Starts what is queued. Returns 0 or -errno (sticky: the engine is then unusable). */
    int (*submit)(cf_io *io);
    /* Takes up to max completions. With `block`, waits until there is one or wake was called.
     * Returns the count (0 after a wake), or -errno. */
    int (*reap)(cf_io *io, cf_io_done *out, int max, bool block);
    /* From any thread: makes a blocked (or the next) blocking reap return. */
    void (*wake)(cf_io *io);
    void (*close)(cf_io *io); /* all reads have completed */
};

struct cf_io {
    const struct cf_io_fns *fns;
    cf_io_info info;
};

typedef enum { CF_IO_AUTO, CF_IO_URING, CF_IO_PREAD } cf_io_kind;

/* What the fault engine does to the engine below it; all zero = nothing. Seeded, so that a run
 * repeats. For tests and benches. */
typedef struct cf_io_fault {
    uint64_t seed;
    uint32_t short_per_million, eio_per_million, delay_per_million, corrupt_per_million;
    uint32_t delay_us;
    bool reorder;             /* completions in random order within what is in flight */
    int64_t eio_file, eio_off; /* eio_file >= 0: fail every read that covers this byte ... */
    int32_t eio_times;         /* ... this many times (-1: always) */
    uint64_t bytes_per_second; /* no faster than this, one read after the other; 0 = none */
    /* When set, completions are withheld while it returns true; wake() makes it be asked again.
     * Called on the I/O thread. */
    bool (*withhold)(void *user);
    void *withhold_user;
    /* Called for each read as it is submitted, on the I/O thread. May be NULL. */
    void (*on_submit)(void *user, uint32_t file, uint64_t off, uint32_t bytes);
    void *on_submit_user;
} cf_io_fault;

typedef struct cf_io_options {
    cf_io_kind kind; /* AUTO: uring where it can be had, else pread, with a notice */
    uint32_t depth;  /* reads in flight, at most; 0 = CF_IO_DEPTH_DEFAULT */
    bool no_register; /* do not register regions */
    const cf_io_fault *fault; /* NULL = none; copied */
    const cf_io_region *regions; /* copied; the memory outlives the engine */
    uint32_t n_regions;
} cf_io_options;

/* Opens in the calling thread (the ring belongs to it). uring asked for by name and refused is an
 * error that says why. Every region larger than 1 GiB is registered as several iovecs; when
 * RLIMIT_MEMLOCK (raised to its hard limit first) does not suffice, what fits is registered and
 * info.notice says so: always a prefix, the regions taken in order. */
int cf_io_open(cf_io **out, const cf_files *files, const cf_io_options *options, cf_err *err);
void cf_io_close(cf_io **io); /* accepts NULL; leaves NULL */

#endif
