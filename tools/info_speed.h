/* The tokens per second that the drive allows: the bytes that a token reads under a memory plan,
 * over what the drive gives. What computing and copying take is not in it. */
#ifndef CF_TOOLS_INFO_SPEED_H
#define CF_TOOLS_INFO_SPEED_H

#include <jansson.h>
#include <stdio.h>

#include "tools/info_memory.h"

enum { CF_SPEED_CASES = 4 };

typedef struct cf_speed_case {
    double hit_rate;  /* of expert lookups, in either tier */
    uint64_t bytes;   /* that a token reads, at most */
    double tok_per_s; /* 0: not known, or nothing is read */
} cf_speed_case;

typedef struct cf_info_speed {
    double drive_rate; /* bytes per second; 0: not known */
    bool measured;
    char why[400];         /* why it is not known */
    uint64_t dense_bytes;  /* of streamed dense weights that RAM does not hold, for each token */
    uint64_t expert_bytes; /* of its experts, when none is kept */
    uint64_t row_bytes;    /* of rows of tables */
    bool zero_experts;
    double uniform;                      /* hit rate if all experts were chosen equally often */
    cf_speed_case cases[CF_SPEED_CASES]; /* ascending hit rates: none, uniform, 50 %, 90 % */
    uint32_t n_cases;                    /* 1 when every expert is kept */
} cf_info_speed;

/* drive_rate 0: it is measured, which takes half a second. */
int cf_info_speed_make(cf_info_speed *out, const cf_info_memory *memory, const cf_model *model,
                       double drive_rate, cf_err *err);
void cf_info_speed_print(const cf_info_speed *speed, FILE *out);
json_t *cf_info_speed_json(const cf_info_speed *speed);

#endif
