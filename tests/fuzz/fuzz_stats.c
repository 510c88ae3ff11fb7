/* Catches: a run's statistics, as tune reads them beside a trace, that crash it, leak, or are taken
 * for those of a run that they cannot be of. */
#include <string.h>

#include "tests/fuzz/memory_file.h"
#include "tools/tune.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char trace[] =
        "#{\"n_layers\":1,\"n_experts\":4,\"top_k\":2,\"slots\":2,\"slabs\":1,\"policy\":\"lru\"}\n"
        "session,token,phase,layer,experts,weights\n0,0,D,0,0 1,\n0,1,D,0,1 2,\n0,2,D,0,2 3,\n";
    static cf_routing *t;
    cf_tune_own own;
    cf_err err = {0};
    if (!t)
        check(cf_trace_parse(&t, "trace", (const uint8_t *)trace, strlen(trace), NULL) == 0);
    memory_file f = memory_file_make(data, size);
    int rc = cf_tune_own_make(&own, t, "trace", f.path, &err);
    sentence_check(rc, err.msg);
    if (rc == 0)
        check(own.run.lookups == own.replay.lookups && own.given);
    close(f.fd);
    return 0;
}
