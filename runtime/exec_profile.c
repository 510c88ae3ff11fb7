/* Step times of the executor: each step of the plan by itself (exec.h, cf_exec_profile).
 *
 * A step ends when the device has done its work. What the engine waited for reads and copies on the
 * way is counted beside it; a copy that the device would have waited for is waited for here first,
 * so that it is not taken for computing. Values stay the same: only waits are added. Threads: the
 * engine thread. */
#include "runtime/base/clock.h"
#include "runtime/exec_internal.h"

typedef struct waits {
    uint64_t read_ns, copy_ns;
} waits;

static waits waits_of(const cf_exec *x)
{
    cf_cache_stats cache;
    cf_dense_stats dense = {0};
    cf_cache_get_stats(x->e->cache, &cache);
    if (x->e->dense)
        cf_dense_get_stats(x->e->dense, &dense);
    return (waits){cache.io_stall_ns + x->e->counters.rows_stall_ns + dense.stall_ns,
                   cache.copy_stall_ns + dense.copy_ns + x->profile_copy_ns};
}

void cf_exec_profile(cf_exec *x, cf_step_time *times)
{
    x->times = times;
}

int exec_profile_copies(cf_exec *x, cf_gpu_point point, cf_err *err)
{
    uint64_t begin = cf_clock_ns();
    int rc = cf_gpu_wait(x->gpu, point, err);
    x->profile_copy_ns += cf_clock_ns() - begin;
    return rc;
}

int exec_profile_step(cf_exec *x, const cf_step *s, cf_err *err)
{
    waits before = waits_of(x);
    uint64_t begin = cf_clock_ns();
    int rc = exec_step(x, s, err);
    if (rc >= 0 && (x->open || x->recorded))
        rc = exec_finish(x, err);
    uint64_t ns = cf_clock_ns() - begin;
    waits after = waits_of(x);
    uint64_t read_ns = after.read_ns - before.read_ns, copy_ns = after.copy_ns - before.copy_ns;
    cf_step_time *t = &x->times[s - x->model->steps];
    t->ns += ns - cf_min_u64(ns, read_ns + copy_ns);
    t->read_ns += read_ns;
    t->copy_ns += copy_ns;
    return rc;
}
