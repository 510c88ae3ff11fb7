/* A policy's history in a file: see history.h. */
#include "runtime/history.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NAME_BYTES = 64, SAMPLE_BYTES = 4096, PATH_BYTES = 4096 };

static const char magic[] = "CFHIST1\n";
static const uint64_t fnv_basis = 0xcbf29ce484222325u;

struct cf_history {
    FILE *file;
    bool reading, failed; /* failed: cut off, or not written */
    uint64_t sum;
};

static uint64_t fnv(uint64_t sum, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        sum = (sum ^ p[i]) * 0x100000001b3u;
    return sum;
}

/* ---- numbers ---- */

static void bytes_pass(cf_history *h, void *data, size_t n)
{
    size_t got = 0;
    if (!h->failed)
        got = h->reading ? fread(data, 1, n, h->file) : fwrite(data, 1, n, h->file);
    if (got < n) {
        h->failed = true;
        if (h->reading)
            memset(data, 0, n);
    }
    h->sum = fnv(h->sum, data, n);
}

static uint64_t number_pass(cf_history *h, uint64_t v, size_t n)
{
    uint8_t b[8];
    for (size_t i = 0; i < n; i++)
        b[i] = (uint8_t)(v >> (8 * i));
    bytes_pass(h, b, n);
    v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)b[i] << (8 * i);
    return v;
}

bool cf_history_reading(const cf_history *h)
{
    return h->reading;
}

void cf_history_u16(cf_history *h, uint16_t *v)
{
    *v = (uint16_t)number_pass(h, *v, sizeof *v);
}

void cf_history_u32(cf_history *h, uint32_t *v)
{
    *v = (uint32_t)number_pass(h, *v, sizeof *v);
}

void cf_history_u64(cf_history *h, uint64_t *v)
{
    *v = number_pass(h, *v, sizeof *v);
}

void cf_history_f32(cf_history *h, float *v)
{
    uint32_t bits;
    memcpy(&bits, v, sizeof bits);
    cf_history_u32(h, &bits);
    memcpy(v, &bits, sizeof bits);
}

/* ---- whose history it is ---- */

static uint64_t fnv_u64(uint64_t sum, uint64_t v)
{
    uint8_t b[8];
    for (int i = 0; i < 8; i++)
        b[i] = (uint8_t)(v >> (8 * i));
    return fnv(sum, b, sizeof b);
}

/* The first bytes of a tensor: tells one training of an architecture from another. */
static int sample_add(const cf_model *m, const cf_weight_def *w, uint64_t *sum, cf_err *err)
{
    uint8_t data[SAMPLE_BYTES];
    uint64_t n = w->extent.bytes < sizeof data ? w->extent.bytes : sizeof data;
    const char *path = cf_catalogue_path(m->cat, w->extent.file);
    FILE *f = fopen(path, "rb");
    if (!f)
        return CF_FAIL(err, -errno, "cannot open %s: %s", path, strerror(errno));
    bool ok = fseeko(f, (off_t)w->extent.off, SEEK_SET) == 0 && fread(data, 1, n, f) == n;
    fclose(f);
    if (!ok)
        return CF_FAIL(err, -EIO, "cannot read %llu bytes of %s from %s", (unsigned long long)n,
                       w->name, path);
    *sum = fnv(*sum, data, n);
    return 0;
}

int cf_history_identity(const cf_model *m, uint64_t *out, cf_err *err)
{
    uint64_t sum = fnv(fnv_basis, m->spec.architecture, strlen(m->spec.architecture));
    sum = fnv_u64(sum, m->spec.layers);
    sum = fnv_u64(sum, m->spec.hidden);
    sum = fnv_u64(sum, m->spec.vocab);
    for (uint32_t i = 0; i < m->n_moe; i++) {
        const cf_moe_def *d = &m->moe[i];
        const uint32_t sizes[] = {d->layer, d->experts, d->zero_experts, d->top_k, d->ffn};
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
            sum = fnv_u64(sum, sizes[k]);
        for (uint32_t k = 0; k < CF_EXPERT_PIECES; k++)
            sum = fnv_u64(sum, d->pieces[k].dtype);
    }
    for (uint32_t i = 0; i < m->n_steps; i++) {
        const cf_route_def *route = &m->steps[i].u.route;
        if (m->steps[i].kind != CF_STEP_ROUTE)
            continue;
        sum = fnv_u64(fnv_u64(sum, route->pick), route->seed);
        if (route->classifier == CF_NO_WEIGHT) /* the token's hash is all there is */
            continue;
        int rc = sample_add(m, &m->weights[route->classifier], &sum, err);
        if (rc < 0)
            return rc;
    }
    *out = sum;
    return 0;
}

/* ---- the file ---- */

/* What stands before the policy's numbers; reading, it must be as given. */
static int head_pass(cf_history *h, const char *path, uint64_t identity, const char *policy_name,
                     const cf_policy *policy, cf_err *err)
{
    const cf_policy_view *v = cf_policy_get_view(policy);
    char tag[sizeof magic - 1], name[NAME_BYTES] = {0};
    uint64_t whose = identity;
    uint32_t layers = v->layers, experts = v->experts;
    memcpy(tag, magic, sizeof tag);
    snprintf(name, sizeof name, "%s", policy_name);
    bytes_pass(h, tag, sizeof tag);
    if (memcmp(tag, magic, sizeof tag) != 0)
        return CF_FAIL(err, CF_EFORMAT, "%s is not a policy history", path);
    cf_history_u64(h, &whose);
    cf_history_u32(h, &layers);
    cf_history_u32(h, &experts);
    bytes_pass(h, name, sizeof name);
    if (h->failed)
        return 0; /* told by whoever looks at `failed` */
    if (whose != identity || layers != v->layers || experts != v->experts)
        return CF_FAIL(err, CF_EFORMAT,
                       "history %s is of another model (%u MoE layers of %u experts, this one has "
                       "%u of %u)",
                       path, layers, experts, v->layers, v->experts);
    if (strncmp(name, policy_name, sizeof name - 1) != 0) {
        char clean[NAME_BYTES];
        name[sizeof name - 1] = 0;
        return CF_FAIL(err, CF_EFORMAT, "history %s is of policy \"%s\", this run has \"%s\"", path,
                       cf_text_clean(name, clean, sizeof clean), policy_name);
    }
    return 0;
}

static int file_pass(cf_history *h, const char *path, uint64_t identity, const char *policy_name,
                     cf_policy *policy, cf_err *err)
{
    int rc = head_pass(h, path, identity, policy_name, policy, err);
    if (rc < 0)
        return rc;
    bool sound = cf_policy_history(policy, h);
    uint64_t sum = h->sum, stored = sum;
    cf_history_u64(h, &stored);
    if (h->failed && h->reading)
        return CF_FAIL(err, CF_EFORMAT, "history %s is cut off", path);
    if (h->failed)
        return CF_FAIL(err, errno ? -errno : -EIO, "cannot write history %s: %s", path,
                       strerror(errno ? errno : EIO));
    if (stored != sum || !sound)
        return CF_FAIL(err, CF_EFORMAT, "history %s is damaged: its checksum %s", path,
                       stored != sum ? "is wrong" : "is right, its numbers are not");
    if (h->reading && fgetc(h->file) != EOF)
        return CF_FAIL(err, CF_EFORMAT, "history %s is longer than it should be", path);
    return 0;
}

int cf_history_load(const char *path, uint64_t identity, const char *policy_name, cf_policy *policy,
                    cf_err *err)
{
    cf_history h = {.reading = true, .sum = fnv_basis};
    h.file = fopen(path, "rb");
    if (!h.file && errno == ENOENT)
        return 1;
    if (!h.file)
        return CF_FAIL(err, -errno, "cannot open history %s: %s", path, strerror(errno));
    int rc = file_pass(&h, path, identity, policy_name, policy, err);
    fclose(h.file);
    return rc;
}

int cf_history_save(const char *path, uint64_t identity, const char *policy_name, cf_policy *policy,
                    cf_err *err)
{
    int rc;
    char temp[PATH_BYTES];
    cf_history h = {.sum = fnv_basis};
    int n = snprintf(temp, sizeof temp, "%s.%ld.tmp", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof temp)
        return CF_FAIL(err, -ENAMETOOLONG, "the name of history %.200s... is too long", path);
    h.file = fopen(temp, "wb");
    if (!h.file)
        return CF_FAIL(err, -errno, "cannot write history %s: %s", temp, strerror(errno));
    CF_TRY(file_pass(&h, path, identity, policy_name, policy, err));
    if (fflush(h.file) != 0 || fsync(fileno(h.file)) != 0)
        CF_TRY(CF_FAIL(err, -errno, "cannot write history %s: %s", temp, strerror(errno)));
    rc = fclose(h.file);
    h.file = NULL;
    if (rc != 0 || rename(temp, path) != 0)
        CF_TRY(CF_FAIL(err, -errno, "cannot write history %s: %s", path, strerror(errno)));
    return 0;
fail:
    if (h.file)
        fclose(h.file);
    unlink(temp);
    return rc;
}
