/* Random weights: see mkmodel_fill.h. */
#include "tools/mkmodel_fill.h"

#include <math.h>
#include <string.h>

#include "runtime/base/f16.h"

static const uint64_t gamma64 = 0x9e3779b97f4a7c15u;

/* The output function of splitmix64 (runtime/base/rng.h), as a function of a counter. */
static inline uint64_t mix64(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* FNV-1a, 64 bits. */
static uint64_t name_hash(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

cf_fill cf_fill_of(const cf_expected *tensor, cf_format format, uint64_t seed)
{
    cf_fill f = {.key = mix64(name_hash(tensor->name) + mix64(seed + gamma64)), .format = format};
    uint64_t fan_in = tensor->shape[tensor->n_dims - 1];
    double deviation = 1 / sqrt((double)fan_in);
    if (tensor->norm) {
        f.mean = 1;
        deviation = 0.05;
    } else if (tensor->bias) {
        deviation = 0.1 / (double)tensor->shape[0]; /* scores average 1 / experts */
    } else if (strstr(tensor->name, "embed_tokens") || strstr(tensor->name, "embedders")) {
        deviation = 1; /* rows are looked up, not multiplied with */
    }
    /* Four 16-bit uniforms together deviate by 65536 / sqrt(3). */
    f.scale = (float)(deviation * sqrt(3.0) / 65536);
    return f;
}

static inline float value_of(const cf_fill *f, uint64_t index)
{
    uint64_t z = mix64(f->key + (index + 1) * gamma64);
    int32_t sum = (int32_t)(z & 0xffff) + (int32_t)(z >> 16 & 0xffff) +
                  (int32_t)(z >> 32 & 0xffff) + (int32_t)(z >> 48);
    return f->mean + (float)(sum - 131070) * f->scale;
}

void cf_fill_run(const cf_fill *fill, uint64_t first, uint64_t n, void *dst)
{
    uint8_t *out = dst;
    const cf_fill f = *fill;
    if (f.format == CF_F32) {
        for (uint64_t i = 0; i < n; i++) {
            float v = value_of(&f, first + i);
            memcpy(out + i * sizeof v, &v, sizeof v);
        }
    } else if (f.format == CF_F16) {
        for (uint64_t i = 0; i < n; i++) {
            uint16_t h = cf_f32_to_f16(value_of(&f, first + i));
            memcpy(out + i * sizeof h, &h, sizeof h);
        }
    } else {
        for (uint64_t i = 0; i < n; i++) {
            uint16_t h = cf_f32_to_bf16(value_of(&f, first + i));
            memcpy(out + i * sizeof h, &h, sizeof h);
        }
    }
}
