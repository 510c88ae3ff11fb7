/* Weights that do not stay, as the executor sees them: there when exec_weight returns, leased until
 * the work that reads them is done.
 *
 * An op has at most one such weight, and is recorded before the next is asked for. */
#include "runtime/exec_internal.h"

/* Puts everything recorded so far to work, which is how segments come free; then waits, if the
 * bytes are not there. */
static int streamed_turn(cf_exec *x, bool await)
{
    cf_gpu_point window;
    int rc = 0;
    if (x->open)
        rc = exec_submit(x, (cf_gpu_point){CF_STREAM_TRANSFER, 0}, &window, x->err);
    if (rc >= 0 && await)
        return cf_dense_wait(x->e->dense, x->err);
    cf_dense_collect(x->e->dense);
    return rc < 0 ? rc : 0;
}

cf_weight exec_streamed(cf_exec *x, cf_wid w)
{
    cf_dense *d = x->e->dense;
    cf_weight weight = x->e->weights.list[w];
    cf_gpu_point ready;
    /* After a failure the step is recorded to its end, over bytes that mean nothing. */
    cf_dense_state state = cf_dense_seek(d, w);
    if (state != CF_DENSE_THERE && x->dense_rc == 0)
        x->dense_rc = streamed_turn(x, state == CF_DENSE_AWAITED);
    weight.span = cf_dense_use(d, &ready);
    if (ready.value > x->dense_ready.value)
        x->dense_ready = ready;
    return weight;
}
