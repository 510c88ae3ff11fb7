/* A fixed pool of worker threads: see threads.h.
 *
 * Workers sleep on one condition variable between loops. A loop is published under the lock as a
 * generation number; parts are claimed under the same lock (parts are large, claims are few). */
#include "runtime/base/threads.h"

#include <pthread.h>
#include <stdlib.h>

#include "runtime/base/machine.h"

struct cf_threads {
    int count; /* including the caller */
    pthread_t *workers;
    pthread_mutex_t lock;
    pthread_cond_t start, finished;
    bool stop;
    /* The current loop, guarded by lock. */
    cf_threads_fn *fn;
    void *arg;
    uint64_t next, end, part;
    int busy; /* parts being run */
};

void cf_thread_name(const char *name)
{
    pthread_setname_np(pthread_self(), name);
}

static bool part_claim(cf_threads *t, uint64_t *begin, uint64_t *end)
{
    if (t->next >= t->end)
        return false;
    *begin = t->next;
    *end = t->end - t->next > t->part ? t->next + t->part : t->end;
    t->next = *end;
    t->busy++;
    return true;
}

/* Runs parts until none is left. Called and left with the lock held. */
static void parts_run(cf_threads *t)
{
    uint64_t begin, end;
    while (part_claim(t, &begin, &end)) {
        cf_threads_fn *fn = t->fn;
        void *arg = t->arg;
        pthread_mutex_unlock(&t->lock);
        fn(arg, begin, end);
        pthread_mutex_lock(&t->lock);
        if (--t->busy == 0 && t->next >= t->end)
            pthread_cond_signal(&t->finished);
    }
}

static void *worker_main(void *p)
{
    cf_threads *t = p;
    cf_thread_name("cf-compute");
    pthread_mutex_lock(&t->lock);
    while (!t->stop) {
        parts_run(t);
        if (!t->stop)
            pthread_cond_wait(&t->start, &t->lock);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

int cf_threads_create(cf_threads **out, int count, cf_err *err)
{
    if (count <= 0)
        count = cf_machine_processors("");
    cf_threads *t = calloc(1, sizeof *t);
    if (!t || !(t->workers = calloc((size_t)count, sizeof *t->workers))) {
        free(t);
        return CF_FAIL(err, -ENOMEM, "out of memory for %d worker threads", count);
    }
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->start, NULL);
    pthread_cond_init(&t->finished, NULL);
    t->count = 1;
    for (int i = 1; i < count; i++) {
        int e = pthread_create(&t->workers[i], NULL, worker_main, t);
        if (e) {
            CF_FAIL(err, -e, "cannot start worker thread %d of %d: %s", i, count, cf_err_name(-e));
            cf_threads_destroy(&t);
            return -e;
        }
        t->count++;
    }
    *out = t;
    return 0;
}

void cf_threads_destroy(cf_threads **threads)
{
    cf_threads *t = *threads;
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->start);
    pthread_mutex_unlock(&t->lock);
    for (int i = 1; i < t->count; i++)
        pthread_join(t->workers[i], NULL);
    pthread_cond_destroy(&t->finished);
    pthread_cond_destroy(&t->start);
    pthread_mutex_destroy(&t->lock);
    free(t->workers);
    free(t);
    *threads = NULL;
}

int cf_threads_count(const cf_threads *threads)
{
    return threads ? threads->count : 1;
}

void cf_threads_run(cf_threads *threads, uint64_t n, uint64_t grain, cf_threads_fn *fn, void *arg)
{
    if (!n)
        return;
    uint64_t workers = (uint64_t)cf_threads_count(threads);
    uint64_t part = (n + workers - 1) / workers;
    if (part < grain)
        part = grain;
    if (workers == 1 || part >= n) {
        fn(arg, 0, n);
        return;
    }
    cf_threads *t = threads;
    pthread_mutex_lock(&t->lock);
    t->fn = fn;
    t->arg = arg;
    t->next = 0;
    t->end = n;
    t->part = part;
    pthread_cond_broadcast(&t->start);
    parts_run(t);
    while (t->busy)
        pthread_cond_wait(&t->finished, &t->lock);
    pthread_mutex_unlock(&t->lock);
}
