/* Jobs that end on other threads: see gather.h. */
#include "tools/gather.h"

void cf_gather_init(cf_gather *g)
{
    *g = (cf_gather){0};
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->idle, NULL);
}

void cf_gather_finish(cf_gather *g)
{
    pthread_cond_destroy(&g->idle);
    pthread_mutex_destroy(&g->lock);
}

void cf_gather_expect(cf_gather *g, uint32_t jobs)
{
    g->pending = jobs;
}

void cf_gather_done(cf_gather *g, int status, const cf_err *err)
{
    pthread_mutex_lock(&g->lock);
    if (status < 0 && g->status == 0) {
        g->status = status;
        g->err = *err;
    }
    if (--g->pending == 0)
        pthread_cond_signal(&g->idle);
    pthread_mutex_unlock(&g->lock);
}

int cf_gather_wait(cf_gather *g)
{
    pthread_mutex_lock(&g->lock);
    while (g->pending)
        pthread_cond_wait(&g->idle, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return g->status;
}
