/* A policy's history in a file: what a run has learned about its model's routing, for the next one.
 *
 *     "CFHIST1\n"  u64 model identity  u32 layers, experts, top_k  64 bytes policy name
 *     the policy's numbers  u64 FNV-1a of all before it;   little-endian throughout
 *
 * Files are untrusted: a file of another model, policy or shape, a damaged one and one that is cut
 * off or too long are refused with a sentence, and each number is checked by the policy. Written to
 * a temporary name beside it and renamed: a killed run leaves the old file.
 * Threads: one. */
#ifndef CF_RUNTIME_HISTORY_H
#define CF_RUNTIME_HISTORY_H

#include "runtime/model.h"
#include "runtime/policy.h"

/* A number that goes into the file, or comes out of it. */
typedef struct cf_history cf_history;
bool cf_history_reading(const cf_history *h);
void cf_history_u16(cf_history *h, uint16_t *v);
void cf_history_u32(cf_history *h, uint32_t *v);
void cf_history_u64(cf_history *h, uint64_t *v);
void cf_history_f32(cf_history *h, float *v);

/* By what a history is told to be of this model: layers, experts and sizes, where its records lie,
 * and the beginning of its routers' bytes. */
int cf_history_identity(const cf_model *model, uint64_t *out, cf_err *err);

/* No file: 1, and the policy stays as it is. */
int cf_history_load(const char *path, uint64_t identity, const char *policy_name, cf_policy *policy,
                    cf_err *err);
int cf_history_save(const char *path, uint64_t identity, const char *policy_name, cf_policy *policy,
                    cf_err *err);

#endif
