/* Reads by worker threads and pread(2): where there is no io_uring (containers, old kernels).
 *
 * Owns the workers and two rings of `depth` entries: what is to be read and what has been. Staged
 * reads belong to the I/O thread; everything else is guarded by one lock, which also orders a
 * worker's stores into the destination before the completion is seen.
 *
 * Invariant: staged + todo + being read + done == in_flight <= depth, so neither ring overflows. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/threads.h"
#include "storage/io_impl.h"

enum { WORKERS_MAX = 16, WORKER_STACK_BYTES = 128 << 10 };

typedef struct pread_io {
    cf_io io; /* first: the seam's pointer is ours */
    const cf_files *files;
    uint32_t depth;
    /* The I/O thread's. */
    cf_io_read *staged;
    uint32_t n_staged, in_flight;
    /* Guarded by lock. */
    pthread_mutex_t lock;
    pthread_cond_t work, ready;
    cf_io_read *todo;
    cf_io_done *done;
    uint32_t todo_head, n_todo, done_head, n_done;
    bool woken, stop;
    pthread_t workers[WORKERS_MAX];
    uint32_t n_workers;
} pread_io;

static int64_t read_once(const cf_files *files, const cf_io_read *r)
{
    for (;;) {
        ssize_t n = pread(files->list[r->file].fd, r->dst, r->bytes, (off_t)r->off);
        if (n >= 0)
            return n;
        if (errno != EINTR)
            return -errno;
    }
}

static void *worker_main(void *arg)
{
    pread_io *p = arg;
    cf_thread_name("cf-pread");
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        if (!p->n_todo) {
            pthread_cond_wait(&p->work, &p->lock);
            continue;
        }
        cf_io_read r = p->todo[p->todo_head];
        p->todo_head = (p->todo_head + 1) % p->depth;
        p->n_todo--;
        pthread_mutex_unlock(&p->lock);
        int64_t result = read_once(p->files, &r);
        pthread_mutex_lock(&p->lock);
        p->done[(p->done_head + p->n_done) % p->depth] =
            (cf_io_done){.user = r.user, .result = result};
        if (p->n_done++ == 0)
            pthread_cond_signal(&p->ready);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static int pread_queue(cf_io *io, const cf_io_read *reads, int n)
{
    pread_io *p = (pread_io *)io;
    int taken = 0;
    for (; taken < n && p->in_flight < p->depth; taken++, p->in_flight++)
        p->staged[p->n_staged++] = reads[taken];
    return taken;
}

static int pread_submit(cf_io *io)
{
    pread_io *p = (pread_io *)io;
    if (!p->n_staged)
        return 0;
    pthread_mutex_lock(&p->lock);
    for (uint32_t i = 0; i < p->n_staged; i++)
        p->todo[(p->todo_head + p->n_todo++) % p->depth] = p->staged[i];
    if (p->n_staged == 1)
        pthread_cond_signal(&p->work);
    else
        pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    p->n_staged = 0;
    return 0;
}

static int pread_reap(cf_io *io, cf_io_done *out, int max, bool block)
{
    pread_io *p = (pread_io *)io;
    int n = 0;
    pread_submit(io);
    pthread_mutex_lock(&p->lock);
    while (block && !p->n_done && !p->woken)
        pthread_cond_wait(&p->ready, &p->lock);
    if (block)
        p->woken = false;
    for (; n < max && p->n_done; n++, p->n_done--) {
        out[n] = p->done[p->done_head];
        p->done_head = (p->done_head + 1) % p->depth;
    }
    pthread_mutex_unlock(&p->lock);
    p->in_flight -= (uint32_t)n;
    return n;
}

static void pread_wake(cf_io *io)
{
    pread_io *p = (pread_io *)io;
    pthread_mutex_lock(&p->lock);
    p->woken = true;
    pthread_cond_signal(&p->ready);
    pthread_mutex_unlock(&p->lock);
}

static void pread_close(cf_io *io)
{
    pread_io *p = (pread_io *)io;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->n_workers; i++)
        pthread_join(p->workers[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->ready);
    free(p->staged);
    free(p->todo);
    free(p->done);
    free(p);
}

static const struct cf_io_fns pread_fns = {
    .queue = pread_queue,
    .submit = pread_submit,
    .reap = pread_reap,
    .wake = pread_wake,
    .close = pread_close,
};

static int workers_start(pread_io *p, cf_err *err)
{
    uint32_t want = p->depth < WORKERS_MAX ? p->depth : WORKERS_MAX;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, WORKER_STACK_BYTES); /* refused where too small: default */
    int e = 0;
    for (; e == 0 && p->n_workers < want; p->n_workers += e == 0)
        e = pthread_create(&p->workers[p->n_workers], &attr, worker_main, p);
    pthread_attr_destroy(&attr);
    if (!p->n_workers)
        return CF_FAIL(err, -e, "cannot start a reading thread: %s", strerror(e));
    return 0; /* fewer than wanted still read everything */
}

int cf_io_pread_open(cf_io **out, const cf_files *files, const cf_io_options *options, cf_err *err)
{
    pread_io *p = calloc(1, sizeof *p);
    if (!p)
        return CF_FAIL(err, -ENOMEM, "out of memory for the pread engine");
    p->io = (cf_io){.fns = &pread_fns, .info = {.engine = "pread"}};
    p->files = files;
    p->depth = options->depth;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->ready, NULL);
    p->staged = calloc(p->depth, sizeof *p->staged);
    p->todo = calloc(p->depth, sizeof *p->todo);
    p->done = calloc(p->depth, sizeof *p->done);
    int rc = p->staged && p->todo && p->done
                 ? workers_start(p, err)
                 : CF_FAIL(err, -ENOMEM, "out of memory for %u reads", p->depth);
    if (rc < 0) {
        pread_close(&p->io);
        return rc;
    }
    *out = &p->io;
    return 0;
}
