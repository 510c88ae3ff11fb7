/* The copy thread: see copier.h.
 *
 * Jobs wait in a list; the thread takes all of them, records one batch, submits it, and only then
 * looks at older batches: a new arrival never waits for an old copy to finish. */
#include "runtime/copier.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/threads.h"

struct cf_copier {
    cf_gpu *gpu;
    const cf_slots *slots;
    cf_copier_fns fns;
    cf_timeline *timeline;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
    cf_copy_job *waiting, **waiting_end; /* guarded by lock */
    cf_copy_job *flying, **flying_end;   /* of the copy thread */
    bool recorded;                       /* copies of records since the stream was last idle */
    uint64_t busy_ns;                    /* guarded by lock */
};

uint64_t cf_copy_place(const cf_layout *layout, uint64_t *piece_off)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < layout->n_pieces; i++) {
        piece_off[i] = at;
        at = cf_align_up(at + layout->pieces[i].bytes, CF_COPY_ALIGN);
    }
    return at;
}

/* Before the job is reported: it may be reused from then on. */
static void job_show(cf_copier *c, const cf_copy_job *job)
{
    static const char *const names[] = {[CF_COPY_SETTLE] = "settle", [CF_COPY_FILL] = "fill",
                                        [CF_COPY_RAISE] = "raise", [CF_COPY_SAVE] = "save",
                                        [CF_COPY_MOVE] = "dense settle"};
    const char *name = job->kind == CF_COPY_SPAN ? job->name : names[job->kind];
    cf_timeline_mark(c->timeline, CF_TRACK_COPIES, name, job->layer, job->expert, job->begin_ns);
}

static const cf_copier_fns *job_fns(const cf_copier *c, const cf_copy_job *job)
{
    return job->fns ? job->fns : &c->fns;
}

/* Done by the host alone: there is no batch to wait for. */
static bool job_is_hosts(const cf_copy_job *job)
{
    return job->kind == CF_COPY_SETTLE || job->kind == CF_COPY_MOVE;
}

static void job_record(cf_copier *c, const cf_copy_job *job)
{
    if (job->kind == CF_COPY_SPAN) {
        if (job->source)
            memcpy(cf_gpu_host_write(job->from), job->source, job->from.bytes);
        cf_gpu_copy(c->gpu, CF_STREAM_TRANSFER, job->to, job->from);
        return;
    }
    cf_span slot = cf_slots_span(c->slots, job->slot);
    if (job->kind == CF_COPY_RAISE || job->kind == CF_COPY_SAVE) {
        cf_span place = cf_slots_tier_span(c->slots, job->other);
        bool save = job->kind == CF_COPY_SAVE;
        cf_gpu_copy(c->gpu, CF_STREAM_TRANSFER, save ? place : slot, save ? slot : place);
        return;
    }
    cf_span from = cf_landing_span(c->slots, job->other);
    for (uint32_t i = 0; i < job->layout->n_pieces; i++) {
        const cf_piece *p = &job->layout->pieces[i];
        cf_landing_publish(c->slots, job->other, p->read_off, p->bytes);
        cf_gpu_copy(c->gpu, CF_STREAM_TRANSFER, cf_span_sub(slot, job->piece_off[i], p->bytes),
                    cf_span_sub(from, p->read_off, p->bytes));
    }
}

/* A slot is saved before it is filled, a place raised before it is saved to: with two tiers, copies
 * of records may depend on those before them. */
static void jobs_record(cf_copier *c, const cf_copy_job *list)
{
    bool tiers = c->slots->shape.n_tier > 0;
    for (const cf_copy_job *job = list; job; job = job->next) {
        bool of_record = job->kind != CF_COPY_SPAN;
        if (tiers && of_record && c->recorded)
            cf_gpu_barrier(c->gpu, CF_STREAM_TRANSFER);
        c->recorded |= of_record;
        job_record(c, job);
    }
}

/* Hands a list of jobs to the device; SETTLE and MOVE jobs need none. */
static void jobs_start(cf_copier *c, cf_copy_job *list)
{
    while (list && job_is_hosts(list)) {
        cf_copy_job *job = list;
        list = job->next; /* the job may be reused once it is submitted */
        job->begin_ns = cf_timeline_now(c->timeline);
        if (job->kind == CF_COPY_SETTLE)
            cf_layout_settle(job->layout, cf_landing_host(c->slots, job->other));
        else
            memmove(job->dest, job->source, job->bytes);
        job_show(c, job);
        const cf_copier_fns *fns = job_fns(c, job);
        fns->submitted(fns->user, job, (cf_gpu_point){CF_STREAM_TRANSFER, 0});
    }
    if (!list)
        return;
    uint64_t begin = cf_timeline_now(c->timeline);
    jobs_record(c, list);
    cf_gpu_point point = {.stream = CF_STREAM_TRANSFER};
    /* A failure is sticky in the device: whoever computes on the slot learns of it. */
    if (cf_gpu_submit(c->gpu, CF_STREAM_TRANSFER, NULL, 0, &point.value, NULL) < 0)
        point.value = 0;
    while (list) {
        cf_copy_job *job = list;
        list = job->next;
        job->point = point;
        job->begin_ns = begin;
        job->next = NULL;
        *c->flying_end = job;
        c->flying_end = &job->next;
        const cf_copier_fns *fns = job_fns(c, job);
        fns->submitted(fns->user, job, point);
    }
}

static void oldest_finish(cf_copier *c)
{
    cf_copy_job *job = c->flying;
    cf_gpu_wait(c->gpu, job->point, NULL); /* a failure is sticky, and learned of elsewhere */
    job_show(c, job);
    c->flying = job->next;
    if (!c->flying) {
        c->flying_end = &c->flying;
        c->recorded = false;
    }
    const cf_copier_fns *fns = job_fns(c, job);
    fns->finished(fns->user, job);
}

static void *copier_main(void *arg)
{
    cf_copier *c = arg;
    cf_thread_name("cf-copy");
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (!c->waiting && !c->flying && !c->stop)
            pthread_cond_wait(&c->wake, &c->lock);
        if (!c->waiting && !c->flying)
            break;
        cf_copy_job *list = c->waiting;
        c->waiting = NULL;
        c->waiting_end = &c->waiting;
        pthread_mutex_unlock(&c->lock);
        uint64_t begin = cf_clock_ns();
        if (list)
            jobs_start(c, list);
        else
            oldest_finish(c);
        uint64_t ns = cf_clock_ns() - begin;
        pthread_mutex_lock(&c->lock);
        c->busy_ns += ns;
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

int cf_copier_create(cf_copier **out, cf_gpu *gpu, const cf_slots *slots, const cf_copier_fns *fns,
                     cf_timeline *timeline, cf_err *err)
{
    cf_copier *c = calloc(1, sizeof *c);
    if (!c)
        return CF_FAIL(err, -ENOMEM, "out of memory for the copy thread");
    c->gpu = gpu;
    c->slots = slots;
    c->fns = *fns;
    c->timeline = timeline;
    c->waiting_end = &c->waiting;
    c->flying_end = &c->flying;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wake, NULL);
    int e = pthread_create(&c->thread, NULL, copier_main, c);
    if (e) {
        pthread_cond_destroy(&c->wake);
        pthread_mutex_destroy(&c->lock);
        free(c);
        return CF_FAIL(err, -e, "cannot start the copy thread: %s", cf_err_name(-e));
    }
    *out = c;
    return 0;
}

void cf_copier_destroy(cf_copier **copier)
{
    cf_copier *c = *copier;
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    pthread_cond_destroy(&c->wake);
    pthread_mutex_destroy(&c->lock);
    free(c);
    *copier = NULL;
}

void cf_copier_push(cf_copier *copier, cf_copy_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&copier->lock);
    *copier->waiting_end = job;
    copier->waiting_end = &job->next;
    pthread_cond_signal(&copier->wake);
    pthread_mutex_unlock(&copier->lock);
}

uint64_t cf_copier_busy_ns(cf_copier *copier)
{
    pthread_mutex_lock(&copier->lock);
    uint64_t ns = copier->busy_ns;
    pthread_mutex_unlock(&copier->lock);
    return ns;
}
