/* echo: see policy_echo.h.
 *
 * State of L layers and E experts, k chosen a token, p0 = k / E; T = tokens seen at a layer:
 *   fast, slow [L, E]   frequencies of use, rates max(0.10, 1 / (T + 2)) and max(0.01, ...)
 *   since [L, E]        tokens since the last use;   gate [L, E]  its weight then, in quarters of
 * 1/k rec [16 * 16]       how often an expert of that recency and gate was used next sim [W]
 * similarity of the token d before this one, over layers and tokens ring [L, W + 1, k]  the last
 * tokens' choices After the choice S at layer l of token t: sim[d] = 0.85 sim[d] + |S intersect
 * ring[t - d]|      w[d] = exp((2 / k) (sim[d] - max sim)) vote[e] = (2 slow[e] + sum of w[d] where
 * e in ring[t + 1 - d]) / (2 + sum of w) value[e] = sigmoid(0.2 logit fast - 0.2 logit slow + 0.3
 * logit rec[ctx] + 0.8 logit vote) */
#include "runtime/policy_echo.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/history.h"

enum {
    W = CF_ECHO_HISTORY,
    RING = W + 1,
    CONTEXTS = 256, /* 16 of recency, 16 of gate */
    MAX_SEEN = 1000,
    SINCE_MAX = 1024, /* bucket 15 from here on; also "never" */
    /* 0.85^128 < 1e-9: what sim owes to more than 128 layers ago is below its precision. */
    SIM_STEPS = 128,
    LANES = 8,
    MAX_K = 64
};

struct cf_echo {
    uint32_t layers, experts, k;
    uint64_t tokens;     /* before the current chunk */
    uint32_t chunk_rows; /* of the current chunk */
    double *value;       /* borrowed */
    float *fast, *slow;  /* [layers, experts] */
    uint16_t *since;     /* [layers, experts], saturating */
    uint8_t *gate;       /* [layers, experts] 0 .. 15 */
    uint8_t *context;    /* [layers, experts] of the token before */
    uint32_t *seen;      /* [layers] tokens, saturating */
    uint16_t *ring;      /* [layers, RING, k]; `experts` where fewer were chosen */
    float rec[CONTEXTS], rec_rate[MAX_SEEN + 1];
    uint32_t rec_seen[CONTEXTS];
    float sim[W], weight[W]; /* of the lags 1 .. W */
    uint8_t bucket[SINCE_MAX + 1];
    float *vote, *chance; /* [experts + 1] scratch; the last of vote is where fillers go */
    uint8_t *mark;        /* [experts + 1] 1 for the current choice; the last stays 0 */
};

/* ---- small functions that vectorise: 1e-6 of the value, and the same everywhere ---- */

/* x finite and normal. */
static inline float log_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    /* x = m * 2^n with m in [sqrt(1/2), sqrt(2)) */
    uint32_t shifted = bits - 0x3f3504f3u;
    int32_t n = (int32_t)shifted >> 23;
    bits = (shifted & 0x007fffffu) + 0x3f3504f3u;
    float m;
    memcpy(&m, &bits, sizeof m);
    float r = m - 1, z = r * r;
    float p = 7.0376836292e-2f;
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    return p * r * z - 0.5f * z + r + (float)n * 0.69314718056f;
}

/* |x| <= 80. */
static inline float exp_of(float x)
{
    float y = x * 1.44269504089f;
    int32_t n = (int32_t)(y + 127.5f) - 127; /* round to nearest: y + 127.5 is positive */
    float r = x - (float)n * 0.693359375f + (float)n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1;
    uint32_t bits = (uint32_t)(n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

static inline float clamp(float p)
{
    p = p < 1e-4f ? 1e-4f : p;
    return p > 1 - 1e-4f ? 1 - 1e-4f : p;
}

static inline float logit(float p)
{
    p = clamp(p);
    return log_of(p / (1 - p));
}

/* ---- life ---- */

uint64_t cf_echo_memory(uint32_t layers, uint32_t experts, uint32_t top_k)
{
    uint64_t n = (uint64_t)layers * experts;
    return sizeof(cf_echo) + n * (2 * sizeof(float) + sizeof(uint16_t) + 2) +
           (uint64_t)layers * (RING * (uint64_t)top_k * sizeof(uint16_t) + sizeof(uint32_t)) +
           experts * (2 * sizeof(float) + 1);
}

static void state_init(cf_echo *e)
{
    size_t n = (size_t)e->layers * e->experts;
    float p0 = (float)e->k / (float)e->experts;
    for (size_t i = 0; i < n; i++) {
        e->fast[i] = e->slow[i] = p0;
        e->since[i] = SINCE_MAX;
        e->value[i] = (double)p0;
    }
    for (size_t i = 0; i < (size_t)e->layers * RING * e->k; i++)
        e->ring[i] = (uint16_t)e->experts;
    for (int i = 0; i < CONTEXTS; i++)
        e->rec[i] = p0;
    for (int i = 0; i <= MAX_SEEN; i++)
        e->rec_rate[i] = 1 / ((float)i + 1.5f);
    for (int i = 0, b = 8; i <= SINCE_MAX; i++) {
        if (i >= 16 << (b - 8) && b < 15)
            b++;
        e->bucket[i] = (uint8_t)(i < 8 ? i : b);
    }
}

int cf_echo_create(cf_echo **out, uint32_t layers, uint32_t experts, uint32_t top_k, double *value,
                   cf_err *err)
{
    if (!experts || experts >= UINT16_MAX || !top_k || top_k > MAX_K)
        return CF_FAIL(err, CF_ELIMIT,
                       "policy echo: %u experts a layer, %u chosen; at most "
                       "%d experts and %d chosen",
                       experts, top_k, UINT16_MAX - 1, MAX_K);
    cf_echo *e = calloc(1, sizeof *e);
    if (!e)
        return CF_FAIL(err, -ENOMEM, "out of memory for policy echo");
    size_t n = (size_t)layers * experts + 1; /* a model may have no such layer */
    e->layers = layers;
    e->experts = experts;
    e->k = top_k < experts ? top_k : experts;
    e->value = value;
    e->fast = malloc(n * sizeof *e->fast);
    e->slow = malloc(n * sizeof *e->slow);
    e->since = malloc(n * sizeof *e->since);
    e->gate = calloc(n, 1);
    e->context = calloc(n, 1);
    e->seen = calloc((size_t)layers + 1, sizeof *e->seen);
    e->ring = malloc(((size_t)layers * RING * e->k + 1) * sizeof *e->ring);
    e->vote = malloc((experts + 1) * sizeof *e->vote);
    e->chance = malloc((experts + 1) * sizeof *e->chance);
    e->mark = calloc(experts + 1, 1);
    if (!e->fast || !e->slow || !e->since || !e->gate || !e->context || !e->seen || !e->ring ||
        !e->vote || !e->chance || !e->mark) {
        cf_echo_destroy(&e);
        return CF_FAIL(err, -ENOMEM, "out of memory for policy echo's %zu experts", n);
    }
    state_init(e);
    *out = e;
    return 0;
}

void cf_echo_destroy(cf_echo **echo)
{
    cf_echo *e = *echo;
    if (!e)
        return;
    free(e->fast);
    free(e->slow);
    free(e->since);
    free(e->gate);
    free(e->context);
    free(e->seen);
    free(e->ring);
    free(e->vote);
    free(e->chance);
    free(e->mark);
    free(e);
    *echo = NULL;
}

/* ---- learning within a layer ---- */

static void frequencies_learn(cf_echo *e, uint32_t layer, const uint8_t *mark)
{
    size_t first = (size_t)layer * e->experts;
    float first_rate = 1 / ((float)e->seen[layer] + 2);
    float fast_rate = first_rate > 0.10f ? first_rate : 0.10f;
    float slow_rate = first_rate > 0.01f ? first_rate : 0.01f;
    float *restrict fast = e->fast + first, *restrict slow = e->slow + first;
    for (uint32_t i = 0; i < e->experts; i++) {
        float y = (float)mark[i];
        fast[i] += (y - fast[i]) * fast_rate;
        slow[i] += (y - slow[i]) * slow_rate;
    }
}

static void recency_learn(cf_echo *e, uint32_t layer, const uint8_t *mark)
{
    const uint8_t *context = e->context + (size_t)layer * e->experts;
    for (uint32_t i = 0; i < e->experts; i++) {
        uint8_t c = context[i];
        uint32_t n = e->rec_seen[c] < MAX_SEEN ? ++e->rec_seen[c] : MAX_SEEN;
        e->rec[c] += ((float)mark[i] - e->rec[c]) * e->rec_rate[n];
    }
}

/* A chosen expert's weight, in quarters of the mean one. Weights that sum to more than 1 (scaled
 * ones) are taken as shares of their sum. */
static uint8_t gate_of(const cf_echo *e, float weight, float sum)
{
    float gate = 4 * (float)e->k * weight / (sum > 1 ? sum : 1);
    return !(gate > 0) ? 0 : gate >= 15 ? 15 : (uint8_t)gate;
}

static void contexts_update(cf_echo *e, uint32_t layer, const uint32_t *experts, uint32_t k,
                            const float *weights)
{
    size_t first = (size_t)layer * e->experts;
    uint16_t *restrict since = e->since + first;
    uint8_t *restrict gate = e->gate + first, *restrict context = e->context + first;
    float sum = 0;
    for (uint32_t i = 0; weights && i < k; i++)
        sum += weights[i];
    for (uint32_t i = 0; i < e->experts; i++)
        since[i] = (uint16_t)(since[i] + (since[i] < SINCE_MAX));
    for (uint32_t i = 0; i < k; i++) {
        since[experts[i]] = 0;
        gate[experts[i]] = weights ? gate_of(e, weights[i], sum) : 0;
    }
    for (uint32_t i = 0; i < e->experts; i++)
        context[i] = (uint8_t)(e->bucket[since[i]] * 16 + gate[i]);
}

static uint16_t *ring_at(const cf_echo *e, uint32_t layer, uint64_t token)
{
    return e->ring + ((size_t)layer * RING + token % RING) * e->k;
}

/* ---- similarity and votes ---- */

/* One step of sim for the choice of `token` at `layer`, over at most `most` lags. */
static void sim_step(cf_echo *e, uint32_t layer, uint64_t token, uint32_t most)
{
    uint32_t k = e->k, lags = token < most ? (uint32_t)token : most;
    const uint16_t *base = ring_at(e, layer, 0), *set = ring_at(e, layer, token), *at = set;
    for (uint32_t i = 0; i < k; i++)
        e->mark[set[i]] = 1;
    e->mark[e->experts] = 0;
    for (uint32_t d = 0; d < lags; d++) {
        at = at == base ? base + (size_t)W * k : at - k;
        uint32_t common = 0;
        for (uint32_t i = 0; i < k; i++)
            common += e->mark[at[i]];
        e->sim[d] = 0.85f * e->sim[d] + (float)common;
    }
    for (uint32_t i = 0; i < k; i++)
        e->mark[set[i]] = 0;
}

/* The weights of the lags; returns their sum. In lanes, so that the order of additions is fixed
 * and still vectorises. */
static float lags_weigh(cf_echo *e, uint32_t lags)
{
    float most[LANES] = {0}, sums[LANES] = {0}, max = 0, sum = 0, scale = 2 / (float)e->k;
    const float *restrict sim = e->sim;
    float *restrict weight = e->weight;
    for (int i = 0; i < W; i += LANES)
        for (int j = 0; j < LANES; j++)
            most[j] = sim[i + j] > most[j] ? sim[i + j] : most[j];
    for (int j = 0; j < LANES; j++)
        max = most[j] > max ? most[j] : max;
    for (int i = 0; i < W; i++) {
        float x = scale * (sim[i] - max);
        float w = exp_of(x < -6 ? -6 : x);
        weight[i] = x < -6 ? 0 : w;
    }
    for (uint32_t i = lags; i < W; i++)
        weight[i] = 0;
    for (int i = 0; i < W; i += LANES)
        for (int j = 0; j < LANES; j++)
            sums[j] += weight[i + j];
    for (int j = 0; j < LANES; j++)
        sum += sums[j];
    return sum;
}

/* What came next at this layer, back then: the token after the one d before this. */
static void votes_count(cf_echo *e, uint32_t layer, uint64_t token)
{
    uint32_t k = e->k, lags = token < W ? (uint32_t)token : W;
    const uint16_t *base = ring_at(e, layer, 0), *at = ring_at(e, layer, token);
    const float *slow = e->slow + (size_t)layer * e->experts;
    float total = 2 + lags_weigh(e, lags);
    for (uint32_t i = 0; i < e->experts; i++)
        e->vote[i] = 2 * slow[i];
    e->vote[e->experts] = 0;
    for (uint32_t d = 0; d < lags; d++) {
        float w = e->weight[d];
        if (w > 0)
            for (uint32_t i = 0; i < k; i++)
                e->vote[at[i]] += w;
        at = at == base ? base + (size_t)W * k : at - k;
    }
    float scale = 1 / total;
    for (uint32_t i = 0; i < e->experts; i++)
        e->vote[i] *= scale;
}

static void values_update(cf_echo *e, uint32_t layer)
{
    size_t first = (size_t)layer * e->experts;
    const float *restrict fast = e->fast + first, *restrict slow = e->slow + first;
    const float *restrict vote = e->vote;
    const uint8_t *context = e->context + first;
    float *restrict chance = e->chance;
    double *restrict value = e->value + first;
    float by_context[CONTEXTS];
    for (int i = 0; i < CONTEXTS; i++)
        by_context[i] = 0.3f * logit(e->rec[i]);
    for (uint32_t i = 0; i < e->experts; i++)
        chance[i] = by_context[context[i]];
    for (uint32_t i = 0; i < e->experts; i++) {
        float f = clamp(fast[i]), s = clamp(slow[i]);
        float z = 0.2f * log_of(f * (1 - s) / ((1 - f) * s)) + chance[i] + 0.8f * logit(vote[i]);
        chance[i] = 1 / (1 + exp_of(-z));
    }
    for (uint32_t i = 0; i < e->experts; i++)
        value[i] = (double)chance[i];
}

/* ---- choices in plan order ---- */

/* All layers of the last chunk are known: similarity anew, over its last tokens in their order. */
static bool chunk_settle(cf_echo *e)
{
    uint64_t end = e->tokens + e->chunk_rows;
    if (e->chunk_rows < 2 || !e->layers)
        return false;
    uint64_t back = SIM_STEPS / e->layers + 2;
    uint64_t first = end > back ? end - back : 0;
    memset(e->sim, 0, sizeof e->sim);
    for (uint64_t token = first; token < end; token++)
        for (uint32_t l = 0; l < e->layers; l++) {
            sim_step(e, l, token, W - (uint32_t)(end - 1 - token)); /* older ones are gone */
            if (token + 1 == end) {
                votes_count(e, l, token);
                values_update(e, l);
            }
        }
    return true;
}

bool cf_echo_chunk(cf_echo *e, uint32_t n_rows)
{
    bool changed = chunk_settle(e);
    e->tokens += e->chunk_rows;
    e->chunk_rows = n_rows;
    /* Layers that say nothing of a token keep an empty set. */
    uint32_t rows = n_rows < RING ? n_rows : RING;
    for (uint32_t l = 0; l < e->layers; l++)
        for (uint32_t r = 0; r < rows; r++) {
            uint16_t *set = ring_at(e, l, e->tokens + n_rows - 1 - r);
            for (uint32_t i = 0; i < e->k; i++)
                set[i] = (uint16_t)e->experts;
        }
    if (n_rows > 1)
        memset(e->sim, 0, sizeof e->sim);
    return changed;
}

void cf_echo_choice(cf_echo *e, uint32_t layer, uint32_t row, const uint32_t *experts, uint32_t k,
                    const float *weights)
{
    cf_assert(k <= e->k && row < e->chunk_rows);
    if (e->chunk_rows - row > W)
        return;
    uint64_t token = e->tokens + row;
    uint16_t *set = ring_at(e, layer, token);
    for (uint32_t i = 0; i < k; i++) {
        set[i] = (uint16_t)experts[i];
        e->mark[experts[i]] = 1;
    }
    if (e->seen[layer])
        recency_learn(e, layer, e->mark);
    frequencies_learn(e, layer, e->mark);
    for (uint32_t i = 0; i < k; i++)
        e->mark[experts[i]] = 0;
    contexts_update(e, layer, experts, k, weights);
    e->seen[layer] += e->seen[layer] < UINT32_MAX;
    if (row + 1 == e->chunk_rows) {
        sim_step(e, layer, token, W);
        votes_count(e, layer, token);
        values_update(e, layer);
    }
}

/* ---- from run to run ---- */

static bool is_chance(float x)
{
    return x >= 0 && x <= 1; /* and not NaN */
}

/* What follows from slow: chances before the first token, as if nothing was used lately. */
static void state_settle(cf_echo *e)
{
    size_t n = (size_t)e->layers * e->experts;
    for (size_t i = 0; i < n; i++) {
        e->fast[i] = e->slow[i];
        e->value[i] = (double)e->slow[i];
        e->since[i] = SINCE_MAX;
        e->gate[i] = 0;
        e->context[i] = (uint8_t)(e->bucket[SINCE_MAX] * 16);
    }
    memset(e->sim, 0, sizeof e->sim);
}

static bool ring_history(cf_echo *e, cf_history *h, uint64_t end)
{
    bool sound = true;
    uint32_t n = end < W ? (uint32_t)end : W;
    cf_history_u32(h, &n);
    if (n > W)
        return false;
    if (cf_history_reading(h)) {
        e->tokens = end = n;
        e->chunk_rows = 0;
    }
    for (uint64_t token = end - n; token < end; token++)
        for (uint32_t l = 0; l < e->layers; l++) {
            uint16_t *set = ring_at(e, l, token);
            for (uint32_t i = 0; i < e->k; i++) {
                cf_history_u16(h, &set[i]);
                if (set[i] > e->experts) { /* equal: fewer were chosen */
                    set[i] = (uint16_t)e->experts;
                    sound = false;
                }
            }
        }
    return sound;
}

bool cf_echo_history(cf_echo *e, cf_history *h)
{
    bool sound = true;
    uint32_t k = e->k;
    size_t n = (size_t)e->layers * e->experts;
    cf_history_u32(h, &k);
    sound = k == e->k;
    for (size_t i = 0; i < n; i++) {
        cf_history_f32(h, &e->slow[i]);
        sound = sound && is_chance(e->slow[i]);
    }
    for (uint32_t l = 0; l < e->layers; l++)
        cf_history_u32(h, &e->seen[l]);
    for (int c = 0; c < CONTEXTS; c++) {
        cf_history_f32(h, &e->rec[c]);
        cf_history_u32(h, &e->rec_seen[c]);
        sound = sound && is_chance(e->rec[c]) && e->rec_seen[c] <= MAX_SEEN;
    }
    sound = sound && ring_history(e, h, e->tokens + e->chunk_rows);
    if (cf_history_reading(h))
        state_settle(e);
    return sound;
}
