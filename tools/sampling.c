/* Sampling flags: see sampling.h. */
#include "tools/sampling.h"

int cf_sampling_option(cf_sampler_params *sampling, cf_args *args, int opt)
{
    double v;
    uint32_t k;
    int rc = 0;
    cf_common_note(args->common, opt);
    switch (opt) {
    case CF_OPT_TEMP:
        if ((rc = cf_args_double(args, 0, 1000, &v)) == 0)
            sampling->temperature = (float)v;
        return rc;
    case CF_OPT_TOP_P:
        if ((rc = cf_args_double(args, 0, 1, &v)) == 0)
            sampling->top_p = (float)v;
        if (rc == 0 && !(sampling->top_p > 0))
            return cf_args_usage(args, "--top-p must be above 0, not \"%.80s\"", args->value);
        return rc;
    case CF_OPT_MIN_P:
        if ((rc = cf_args_double(args, 0, 1, &v)) == 0)
            sampling->min_p = (float)v;
        if (rc == 0 && !(sampling->min_p < 1))
            return cf_args_usage(args, "--min-p must be below 1, not \"%.80s\"", args->value);
        return rc;
    case CF_OPT_TOP_K:
        if ((rc = cf_args_u32(args, 0, INT32_MAX, &k)) == 0)
            sampling->top_k = (int32_t)k;
        return rc;
    default:
        return cf_args_u64(args, 0, UINT64_MAX, &sampling->seed);
    }
}
