/* An engine with exactly so many expert slots: budgets found by asking the memory plan, which is
 * what a user who knows the numbers would type. Prints why and returns NULL when it fails. */
#ifndef CF_TESTS_SIZED_H
#define CF_TESTS_SIZED_H

#include "runtime/engine.h"

typedef struct sized_model {
    cf_model *model;
    uint32_t align;     /* of its files */
    uint64_t tokenizer; /* bytes of its tokenizer in memory */
    uint32_t min_slots, all_slots;
} sized_model;

bool sized_model_open(sized_model *m, const char *dir);
/* The same without ever opening an engine on it (its files are only looked at): for large models
 * without a tokenizer. */
bool sized_plan_open(sized_model *m, const char *dir);
void sized_model_close(sized_model *m);

/* The memory plan of these options; the device is the one that options->device names. */
int sized_plan(const sized_model *m, const cf_options *options, cf_memory_plan *plan, cf_err *err);

/* Sets vram_bytes so that the plan has exactly `slots` slots. ram_bytes stays when it is not 0;
 * else it is set to the least that carries them (tight) or to plenty. */
bool sized_budgets(const sized_model *m, cf_options *options, uint32_t slots, bool tight);
/* The least number of slots from `slots` on that some --vram gives: where choices are foreseen, places
 * for guesses come out of the slots, and the last but one number may be skipped. */
uint32_t sized_slots_from(const sized_model *m, const cf_options *options, uint32_t slots);
cf_engine *sized_open(const sized_model *m, const cf_options *options, uint32_t slots, bool tight);

#endif
