/* The workers that check, decode and join records: see unpack.h.
 *
 * Decoding in place is what zstd offers for one frame and one call, given the margin that
 * storage/layout.c leaves; whatever the bytes are, it writes to the record's length at most. */
#include "runtime/unpack.h"

#include <pthread.h>
#include <stdlib.h>
#include <zstd.h>

#include "runtime/base/machine.h"
#include "runtime/base/threads.h"

enum { THREADS_MAX = 16, CONTEXT_BYTES = 160 << 10 };

struct worker {
    struct cf_unpack *owner;
    pthread_t thread;
    ZSTD_DCtx *context;
    uint8_t *scratch;
};

struct cf_unpack {
    struct worker workers[THREADS_MAX];
    uint32_t n_workers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
    cf_unpack_job *head, **tail;
};

static uint32_t threads_resolve(uint32_t threads)
{
    uint32_t n = threads ? threads : (uint32_t)cf_machine_processors("");
    return n < THREADS_MAX ? n : THREADS_MAX;
}

uint64_t cf_unpack_memory(uint32_t threads, uint64_t scratch_bytes)
{
    return sizeof(cf_unpack) + threads_resolve(threads) * (CONTEXT_BYTES + scratch_bytes);
}

static int job_check(const cf_unpack_job *job, cf_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; job->sums && i < job->layout->n_runs && rc == 0; i++) {
        const cf_run *r = &job->layout->runs[i];
        rc = cf_sums_check(job->sums, r->file, job->files->list[r->file].path, r->file_off,
                           job->slab + r->slab_off, r->bytes, true, err);
    }
    return rc;
}

static int job_decode(ZSTD_DCtx *context, const cf_unpack_job *job, cf_err *err)
{
    const cf_layout *l = job->layout;
    if (!l->packed_bytes)
        return 0;
    size_t n = ZSTD_decompressDCtx(context, job->slab, l->unpacked_bytes,
                                   job->slab + l->packed_off, l->packed_bytes);
    if (ZSTD_isError(n))
        return CF_FAIL(err, CF_EFORMAT,
                       "a compressed record of %llu bytes at offset %llu does not unpack: %s",
                       (unsigned long long)l->packed_bytes,
                       (unsigned long long)l->runs[0].file_off, ZSTD_getErrorName(n));
    if (n != l->unpacked_bytes)
        return CF_FAIL(err, CF_EFORMAT,
                       "the compressed record at offset %llu has %zu bytes, its layer's have %llu",
                       (unsigned long long)l->runs[0].file_off, n,
                       (unsigned long long)l->unpacked_bytes);
    return 0;
}

static void job_run(const struct worker *w, cf_unpack_job *job)
{
    job->status = job_check(job, &job->err);
    if (job->status == 0 && job->layout->slices)
        cf_layout_join(job->layout, job->slab, w->scratch);
    else if (job->status == 0)
        job->status = job_decode(w->context, job, &job->err);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    cf_unpack *u = w->owner;
    cf_thread_name("cf-unpack");
    pthread_mutex_lock(&u->lock);
    for (;;) {
        while (!u->head && !u->stop)
            pthread_cond_wait(&u->wake, &u->lock);
        cf_unpack_job *job = u->head;
        if (!job)
            break;
        u->head = job->next;
        if (!u->head)
            u->tail = &u->head;
        pthread_mutex_unlock(&u->lock);
        job_run(w, job);
        job->done(job, job->user); /* the job may be pushed again from here on */
        pthread_mutex_lock(&u->lock);
    }
    pthread_mutex_unlock(&u->lock);
    return NULL;
}

static int worker_start(struct worker *w, uint64_t scratch_bytes)
{
    w->context = ZSTD_createDCtx();
    w->scratch = scratch_bytes ? malloc(scratch_bytes) : NULL;
    int e = w->context && (w->scratch || !scratch_bytes)
                ? pthread_create(&w->thread, NULL, worker_main, w)
                : ENOMEM;
    if (e) {
        ZSTD_freeDCtx(w->context);
        free(w->scratch);
    }
    return e;
}

int cf_unpack_create(cf_unpack **out, uint32_t threads, uint64_t scratch_bytes, cf_err *err)
{
    int rc = 0;
    cf_unpack *u = calloc(1, sizeof *u);
    if (!u)
        return CF_FAIL(err, -ENOMEM, "out of memory for unpacking");
    pthread_mutex_init(&u->lock, NULL);
    pthread_cond_init(&u->wake, NULL);
    u->tail = &u->head;
    uint32_t n = threads_resolve(threads);
    for (uint32_t i = 0; i < n; i++) {
        u->workers[i].owner = u;
        int e = worker_start(&u->workers[i], scratch_bytes);
        if (e)
            CF_TRY(
                CF_FAIL(err, -e, "cannot start %u threads for unpacking: %s", n, cf_err_name(-e)));
        u->n_workers++;
    }
    *out = u;
    return 0;
fail:
    cf_unpack_destroy(&u);
    return rc;
}

void cf_unpack_destroy(cf_unpack **unpack)
{
    cf_unpack *u = *unpack;
    if (!u)
        return;
    pthread_mutex_lock(&u->lock);
    u->stop = true;
    pthread_cond_broadcast(&u->wake);
    pthread_mutex_unlock(&u->lock);
    for (uint32_t i = 0; i < u->n_workers; i++) {
        pthread_join(u->workers[i].thread, NULL);
        ZSTD_freeDCtx(u->workers[i].context);
        free(u->workers[i].scratch);
    }
    pthread_cond_destroy(&u->wake);
    pthread_mutex_destroy(&u->lock);
    free(u);
    *unpack = NULL;
}

void cf_unpack_push(cf_unpack *u, cf_unpack_job *job)
{
    job->next = NULL;
    job->err = (cf_err){0};
    pthread_mutex_lock(&u->lock);
    *u->tail = job;
    u->tail = &job->next;
    pthread_cond_signal(&u->wake);
    pthread_mutex_unlock(&u->lock);
}
