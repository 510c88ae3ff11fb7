/* Catches: a policy's history that makes reading it crash, read outside its tables or hang; numbers
 * that are taken and then make the policy rank by NaN or choose out of bounds.
 *
 * Input: a byte that picks the policy, then what a file has between its head and its checksum, both
 * of which are made here, or nothing would be reached. */
#include <math.h>
#include <string.h>

#include "runtime/history.h"
#include "runtime/policy.h"
#include "tests/fuzz/memory_file.h"

enum { LAYERS = 3, EXPERTS = 20, K = 3, IDENTITY = 77 };

static void put(uint8_t **at, const void *data, size_t n)
{
    memcpy(*at, data, n);
    *at += n;
}

static size_t file_make(uint8_t *file, const char *name, const uint8_t *body, size_t n)
{
    uint8_t *at = file;
    char policy[64] = {0};
    uint64_t whose = IDENTITY, sum = 0xcbf29ce484222325u;
    uint32_t layers = LAYERS, experts = EXPERTS;
    snprintf(policy, sizeof policy, "%s", name);
    put(&at, "CFHIST1\n", 8);
    put(&at, &whose, sizeof whose);
    put(&at, &layers, sizeof layers);
    put(&at, &experts, sizeof experts);
    put(&at, policy, sizeof policy);
    put(&at, body, n);
    for (const uint8_t *p = file; p < at; p++)
        sum = (sum ^ *p) * 0x100000001b3u;
    put(&at, &sum, sizeof sum);
    return (size_t)(at - file);
}

static void policy_use(cf_policy *p)
{
    static const float weights[K] = {0.5f, 0.3f, 0.2f};
    for (uint32_t t = 0; t < 4; t++) {
        cf_policy_chunk(p, 1);
        for (uint32_t l = 0; l < LAYERS; l++) {
            const uint32_t ids[K] = {t, t + 5, t + 11};
            cf_policy_choice(p, l, 0, ids, K, weights);
            for (uint32_t e = 0; e < EXPERTS; e++)
                check(cf_policy_worth(p, l, (l + t) % LAYERS, e).score >= 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const policies[] = {"lru", "lfu:0.9", "phase", "echo"};
    cf_policy *p = NULL;
    cf_err err = {0};
    if (!size)
        return 0;
    const char *name = policies[data[0] % 4];
    uint8_t *file = malloc(size + 128);
    check(file != NULL);
    memory_file f = memory_file_make(file, file_make(file, name, data + 1, size - 1));
    check(cf_policy_create(&p, name, LAYERS, EXPERTS, K, NULL) == 0);
    int rc = cf_history_load(f.path, IDENTITY, name, p, &err);
    sentence_check(rc, err.msg);
    if (rc == 0)
        policy_use(p);
    cf_policy_destroy(&p);
    close(f.fd);
    free(file);
    return 0;
}
