/* Which experts the next MoE layer will choose, foreseen: its router applied to this layer's hidden
 * state. What of the plan that takes is found in the plan itself, for any family.
 *
 * A ROUTE can foresee the next ROUTE of the plan when that one's input is a NORM of a buffer that
 * every layer adds to (so that it already holds this layer's hidden state), and when that one's own
 * window holds no attention: where it does, reads start early enough without a guess.
 * Pure functions of the plan. */
#ifndef CF_RUNTIME_PREDICT_H
#define CF_RUNTIME_PREDICT_H

#include "runtime/model.h"

enum { CF_PREDICT_ROWS = 32 }; /* of a batch, at most: its last ones */

typedef struct cf_predict {
    const cf_step *norm, *route; /* of the next MoE layer; NULL: it is not foreseen */
} cf_predict;

/* What the ROUTE at `step` foresees. */
cf_predict cf_predict_find(const cf_model *model, uint32_t step);
/* Whether any ROUTE of the plan foresees another. */
bool cf_predict_any(const cf_model *model);

#endif
