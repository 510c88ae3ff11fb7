/* A small GGUF model: see gguf_small.h. */
#include "tests/support/gguf_small.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { LAYERS = 2, HIDDEN = 64, FFN = 64, HEADS = 2, HEAD = 32 };

#define ARCH "qwen3moe"

void gguf_small_values(cf_rng *rng, float *out, uint64_t n, uint64_t cols)
{
    for (uint64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int k = 0; k < 12; k++)
            sum += cf_rng_unit(rng);
        out[i] = (float)((sum - 6) / sqrt((double)cols));
    }
}

static void floats_put(gguf_small *g, const char *name, uint32_t n_dims, const uint64_t *shape)
{
    char full[128];
    uint64_t n = 1;
    for (uint32_t i = 0; i < n_dims; i++)
        n *= shape[i];
    float *v = malloc(n * sizeof *v);
    if (!v)
        exit(1);
    gguf_small_values(&g->rng, v, n, shape[n_dims - 1]);
    for (uint64_t i = 0; i < n && n_dims == 1; i++)
        v[i] = 1 + 0.1f * v[i]; /* norms */
    snprintf(full, sizeof full, "%s.weight", name);
    gguf_put_tensor(&g->out, full, CF_F32, n_dims, shape, v, n * sizeof *v);
    free(v);
}

static void add(gguf_small *g, const char *name, uint64_t experts, uint64_t rows, uint64_t cols)
{
    const uint64_t cube[3] = {experts, rows, cols};
    const uint64_t *shape = experts ? cube : rows ? cube + 1 : cube + 2;
    uint32_t n_dims = experts ? 3 : rows ? 2 : 1;
    if (n_dims > 1 && g->matrix)
        g->matrix(g, name, n_dims, shape);
    else
        floats_put(g, name, n_dims, shape);
}

static void keys_put(gguf_out *g)
{
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {{ARCH ".block_count", LAYERS},          {ARCH ".context_length", 64},
                {ARCH ".embedding_length", HIDDEN},     {ARCH ".attention.head_count", HEADS},
                {ARCH ".attention.head_count_kv", 1},   {ARCH ".attention.key_length", HEAD},
                {ARCH ".attention.value_length", HEAD}, {ARCH ".expert_count", GGUF_SMALL_EXPERTS},
                {ARCH ".expert_used_count", 2},         {ARCH ".expert_feed_forward_length", FFN},
                {ARCH ".vocab_size", GGUF_SMALL_VOCAB}};
    gguf_put_string(g, "general.architecture", ARCH);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        gguf_put_u32(g, keys[i].key, keys[i].value);
    gguf_put_f32(g, ARCH ".attention.layer_norm_rms_epsilon", 1e-6f);
    gguf_put_f32(g, ARCH ".rope.freq_base", 10000);
}

static const struct {
    const char *name;
    enum { ALWAYS, APART, FUSED } when; /* gate and up: how they lie */
    uint64_t experts, rows, cols;
} tensors[] = {{"attn_norm", ALWAYS, 0, 0, HIDDEN},
               {"attn_q", ALWAYS, 0, HEADS *HEAD, HIDDEN},
               {"attn_k", ALWAYS, 0, HEAD, HIDDEN},
               {"attn_v", ALWAYS, 0, HEAD, HIDDEN},
               {"attn_output", ALWAYS, 0, HIDDEN, HEADS *HEAD},
               {"attn_q_norm", ALWAYS, 0, 0, HEAD},
               {"attn_k_norm", ALWAYS, 0, 0, HEAD},
               {"ffn_norm", ALWAYS, 0, 0, HIDDEN},
               {"ffn_gate_inp", ALWAYS, 0, GGUF_SMALL_EXPERTS, HIDDEN},
               {"ffn_gate_exps", APART, GGUF_SMALL_EXPERTS, FFN, HIDDEN},
               {"ffn_up_exps", APART, GGUF_SMALL_EXPERTS, FFN, HIDDEN},
               {"ffn_gate_up_exps", FUSED, GGUF_SMALL_EXPERTS, 2 * FFN, HIDDEN},
               {"ffn_down_exps", ALWAYS, GGUF_SMALL_EXPERTS, HIDDEN, FFN}};

void gguf_small_put(gguf_small *g)
{
    char name[64];
    keys_put(&g->out);
    add(g, "token_embd", 0, GGUF_SMALL_VOCAB, HIDDEN);
    add(g, "output", 0, GGUF_SMALL_VOCAB, HIDDEN);
    add(g, "output_norm", 0, 0, HIDDEN);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
            if (tensors[i].when == (g->fused ? APART : FUSED))
                continue;
            snprintf(name, sizeof name, "blk.%u.%s", layer, tensors[i].name);
            add(g, name, tensors[i].experts, tensors[i].rows, tensors[i].cols);
        }
}
