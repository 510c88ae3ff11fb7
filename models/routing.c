/* Routers other than a row's best experts, for any decoder: the config key "routing", as generated
 * checkpoints have it.
 *
 *     {"kind": "capacity", "capacity": N}                each expert serves its first N rows of a
 * call
 *     {"kind": "hash", "seed": S}                        by the token; there is no classifier
 *     {"kind": "experts_choose", "capacity_factor": F}   each expert takes its F * rows / experts
 * best rows
 *     {"kind": "balanced"}                               the best assignment of equal shares
 *
 * Absent: the family's own. */
#include <string.h>

#include "models/decoder.h"
#include "runtime/router.h"

static int kind_read(cf_build *sub, cf_decoder *d, const char *kind, cf_err *err)
{
    int rc = 0;
    double factor;
    cf_route_def *r = &d->router;
    if (strcmp(kind, "capacity") == 0)
        return cf_config_u32(sub, "capacity", 1, 1u << 20, &r->capacity, err);
    if (strcmp(kind, "hash") == 0) {
        r->pick = CF_PICK_HASH;
        return cf_config_u32_or(sub, "seed", 0, UINT32_MAX, 0, &r->seed, err);
    }
    if (strcmp(kind, "experts_choose") == 0) {
        r->pick = CF_PICK_EXPERTS_CHOOSE;
        CF_TRY(cf_config_f64_or(sub, "capacity_factor", 1e-3, 1e3, 2, &factor, err));
        r->capacity_factor = (float)factor;
        d->top_k = d->experts; /* a row may be chosen by all */
        if (d->experts > CF_ROUTE_MAX_K)
            return CF_FAIL(err, CF_ELIMIT,
                           "%s: %u experts that choose their rows, at most %d are known", sub->path,
                           d->experts, (int)CF_ROUTE_MAX_K);
        return 0;
    }
    if (strcmp(kind, "balanced") == 0) {
        r->pick = CF_PICK_BALANCED;
        if (d->experts > CF_ROUTER_BALANCED_EXPERTS || d->top_k != 1)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: balanced routing to %u of %u experts; known: 1 of at most %d",
                           sub->path, d->top_k, d->experts, (int)CF_ROUTER_BALANCED_EXPERTS);
        return 0;
    }
    char clean[100];
    return CF_FAIL(err, CF_EFORMAT,
                   "%s: routing kind \"%s\" is unknown; known: capacity, hash, experts_choose, "
                   "balanced",
                   sub->path, cf_text_clean(kind, clean, sizeof clean));
fail:
    return rc;
}

int cf_decoder_read_routing(cf_build *b, cf_decoder *d, cf_err *err)
{
    const json_t *routing = json_object_get(b->config, "routing");
    if (!routing || json_is_null(routing))
        return 0;
    const char *kind = json_string_value(json_object_get(routing, "kind"));
    if (!kind)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"routing\" names no \"kind\"", b->path);
    cf_build sub = *b; /* a view of the config whose keys are the routing's */
    sub.config = routing;
    return kind_read(&sub, d, kind, err);
}
