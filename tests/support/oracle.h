/* Reference results of a small checkpoint, as its expected.json and .f32 files give them, and one
 * run of an engine to hold against them. */
#ifndef CF_TESTS_ORACLE_H
#define CF_TESTS_ORACLE_H

#include "runtime/catflap.h"

typedef struct oracle {
    uint32_t n_prompt, n_greedy, vocab, hidden, layers, n_moe, k;
    int32_t *prompt, *greedy;
    float *logits;       /* [n_prompt, vocab] */
    float *hidden_state; /* [layers, n_prompt, hidden] */
    double logits_std;
    uint32_t *moe_layer; /* [n_moe] the model's own layer of each */
    uint32_t *experts;   /* [n_moe, n_prompt, k] ascending; NULL when not given */
    float *weights;    /* likewise */
    uint32_t n_select;      /* layers that choose the positions they look at */
    uint32_t *select_layer; /* [n_select] */
    uint8_t *selected;      /* [n_select, n_prompt, n_prompt]: whether row t looks at position p */
} oracle;

/* dir: of config.json; results beside it, or in oracle/. Returns NULL and prints why. */
oracle *oracle_load(const char *dir);
/* The same from STEM.json, STEM.logits.f32 and STEM.hidden.f32. */
oracle *oracle_load_stem(const char *stem);
void oracle_free(oracle *o);

/* What an engine computed for the oracle's prompt. */
typedef struct oracle_run {
    float *logits, *hidden_state; /* shapes as in oracle */
    uint32_t *experts;
    float *weights;
    uint8_t *selected;
    const oracle *o;
} oracle_run;

oracle_run *oracle_run_new(const oracle *o);
void oracle_run_free(oracle_run *r);

/* Extends the session by the prompt, `step` tokens at a time, and collects everything. */
int oracle_run_prompt(oracle_run *r, cf_session *s, uint32_t step, cf_err *err);
/* Greedy continuation; returns how many ids equal the oracle's before the first difference. */
uint32_t oracle_run_greedy(const oracle *o, cf_session *s, uint32_t vocab, cf_err *err);

/* Largest absolute error of the logits in units of their standard deviation. */
double oracle_logits_error(const oracle *o, const oracle_run *r);
/* Largest error of a layer's hidden state in units of its own standard deviation. */
double oracle_hidden_error(const oracle *o, const oracle_run *r);
/* (layer, position) pairs whose expert sets differ. */
uint32_t oracle_expert_differences(const oracle *o, const oracle_run *r);
/* (layer, position) pairs that look at other positions. */
uint32_t oracle_selection_differences(const oracle *o, const oracle_run *r);

#endif
