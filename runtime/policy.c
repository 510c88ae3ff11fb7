/* Cache policies: see policy.h. Here are the counting ones and the names. */
#include "runtime/policy.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/history.h"
#include "runtime/policy_echo.h"

struct cf_policy {
    cf_policy_view view;
    bool counts; /* lfu, phase */
    bool echoes;
    double decay;
    /* A choice at token t adds decay^-t instead of all counts shrinking by decay each token: the
     * order is the same, and `unit` is brought back before it overflows. */
    double unit; /* of the chunk's last row; a row d before it adds unit * decay^d */
    uint32_t chunk_rows;
    uint64_t now;
    double *value;     /* [layers, experts] */
    uint64_t *last;    /* [layers, experts]; 0 = never */
    uint64_t *version; /* [layers] */
    cf_echo *echo;
};

const char cf_policy_default[] = "echo";

#define KNOWN "lru, lfu[:D], phase[:D], echo"

/* "NAME" or "NAME:D". 1 when it is this one, 0 when not, negative for a bad D. */
static int name_match(cf_policy *p, const char *text, const char *name, double decay, cf_err *err)
{
    size_t n = strlen(name);
    if (strncmp(text, name, n) != 0 || (text[n] && text[n] != ':'))
        return 0;
    p->counts = true;
    p->decay = decay;
    if (!text[n])
        return 1;
    char *end;
    const char *number = text + n + 1;
    p->decay = strtod(number, &end);
    bool digits = *number == '.' || (*number >= '0' && *number <= '9');
    if (!digits || *end || !(p->decay > 0 && p->decay <= 1))
        return CF_FAIL(err, -EINVAL, "policy \"%s\": the decay must be above 0 and at most 1",
                       text);
    return 1;
}

static int name_parse(cf_policy *p, const char *name, cf_err *err)
{
    p->decay = 1;
    if (strcmp(name, "lru") == 0)
        return 0;
    p->echoes = p->view.cyclic = strcmp(name, "echo") == 0;
    if (p->echoes)
        return 0;
    int rc = name_match(p, name, "lfu", 0.98, err);
    if (rc)
        return rc < 0 ? rc : 0;
    rc = name_match(p, name, "phase", 0.9, err);
    p->view.cyclic = rc > 0;
    if (rc == 0)
        rc = CF_FAIL(err, -EINVAL, "policy \"%s\" is unknown; known: " KNOWN, name);
    return rc < 0 ? rc : 0;
}

uint64_t cf_policy_memory(uint32_t layers, uint32_t experts, uint32_t top_k)
{
    uint64_t each = sizeof(double) + sizeof(uint64_t);
    return sizeof(cf_policy) + layers * (experts * each + sizeof(uint64_t)) +
           cf_echo_memory(layers, experts, top_k);
}

int cf_policy_create(cf_policy **out, const char *name, uint32_t layers, uint32_t experts,
                     uint32_t top_k, cf_err *err)
{
    cf_policy *p = calloc(1, sizeof *p);
    if (!p)
        return CF_FAIL(err, -ENOMEM, "out of memory for the cache policy");
    int rc;
    CF_TRY(name_parse(p, name, err));
    p->unit = 1;
    p->now = 1;
    size_t n = (size_t)layers * experts;
    p->value = calloc(n + 1, sizeof *p->value);
    p->last = calloc(n + 1, sizeof *p->last);
    p->version = calloc((size_t)layers + 1, sizeof *p->version);
    if (!p->value || !p->last || !p->version)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for the cache policy's %zu experts", n));
    if (p->echoes)
        CF_TRY(cf_echo_create(&p->echo, layers, experts, top_k, p->value, err));
    p->view = (cf_policy_view){.layers = layers,
                               .experts = experts,
                               .cyclic = p->view.cyclic,
                               .value = p->value,
                               .last = p->last,
                               .version = p->version};
    *out = p;
    return 0;
fail:
    cf_policy_destroy(&p);
    return rc;
}

void cf_policy_destroy(cf_policy **policy)
{
    cf_policy *p = *policy;
    if (!p)
        return;
    cf_echo_destroy(&p->echo);
    free(p->value);
    free(p->last);
    free(p->version);
    free(p);
    *policy = NULL;
}

const cf_policy_view *cf_policy_get_view(const cf_policy *p)
{
    return &p->view;
}

static void versions_advance(cf_policy *p)
{
    for (uint32_t l = 0; l < p->view.layers; l++)
        p->version[l]++;
}

static void unit_advance(cf_policy *p, uint32_t n_rows)
{
    for (uint32_t i = 0; i < n_rows; i++) {
        p->unit /= p->decay;
        if (p->unit > 1e100) {
            size_t n = (size_t)p->view.layers * p->view.experts;
            for (size_t j = 0; j < n; j++)
                p->value[j] /= p->unit;
            p->unit = 1;
            versions_advance(p);
        }
    }
}

/* By products: libm's powers are not the same everywhere. */
static double power(double x, uint32_t n)
{
    double r = 1;
    for (; n; n >>= 1, x *= x)
        if (n & 1)
            r *= x;
    return r;
}

void cf_policy_chunk(cf_policy *p, uint32_t n_rows)
{
    if (p->echo && cf_echo_chunk(p->echo, n_rows))
        versions_advance(p);
    if (p->counts)
        unit_advance(p, n_rows);
    p->chunk_rows = n_rows;
}

void cf_policy_choice(cf_policy *p, uint32_t layer, uint32_t row, const uint32_t *experts,
                      uint32_t k, const float *weights)
{
    cf_assert(layer < p->view.layers && row < p->chunk_rows);
    size_t first = (size_t)layer * p->view.experts;
    for (uint32_t i = 0; i < k; i++)
        p->last[first + experts[i]] = p->now++;
    if (p->counts) {
        /* May vanish for a long chunk's oldest rows: then `last` alone ranks them, which is near.
         */
        double unit = p->unit * power(p->decay, p->chunk_rows - 1 - row);
        for (uint32_t i = 0; i < k; i++)
            p->value[first + experts[i]] += unit;
    }
    if (p->echo)
        cf_echo_choice(p->echo, layer, row, experts, k, weights);
    p->version[layer]++;
}

cf_worth cf_policy_worth(const cf_policy *p, uint32_t now, uint32_t layer, uint32_t expert)
{
    size_t at = (size_t)layer * p->view.experts + expert;
    uint32_t d = p->view.cyclic ? cf_policy_distance(p->view.layers, now, layer) : 1;
    return (cf_worth){p->value[at] / d, p->last[at]};
}

bool cf_policy_history(cf_policy *p, cf_history *h)
{
    bool sound = true;
    size_t n = (size_t)p->view.layers * p->view.experts;
    cf_history_u64(h, &p->now);
    sound = p->now >= 1 && p->now < UINT64_MAX / 2;
    for (size_t i = 0; i < n; i++) {
        cf_history_u64(h, &p->last[i]);
        sound = sound && p->last[i] < p->now;
        if (!p->counts)
            continue;
        float count = (float)(p->value[i] / p->unit);
        cf_history_f32(h, &count);
        sound = sound && count >= 0 && count <= FLT_MAX; /* no NaN */
        if (cf_history_reading(h))
            p->value[i] = (double)count * p->unit;
    }
    if (p->echo)
        sound = cf_echo_history(p->echo, h) && sound;
    versions_advance(p);
    return sound;
}
