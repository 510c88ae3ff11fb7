/* GGUF files for tests: see gguf_write.h. */
#include "tests/support/gguf_write.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/tmpfiles.h"

enum { TYPE_U32 = 4, TYPE_F32 = 6, TYPE_BOOL = 7, TYPE_STRING = 8, TYPE_ARRAY = 9, ALIGN = 32 };

void put(gguf_bytes *b, const void *data, size_t n)
{
    if (b->n + n > b->room) {
        b->room = 2 * (b->n + n);
        b->at = realloc(b->at, b->room);
        if (!b->at)
            exit(1);
    }
    if (n)
        memcpy(b->at + b->n, data, n);
    b->n += n;
}

void put_u(gguf_bytes *b, uint64_t v, size_t n)
{
    put(b, &v, n);
}

void put_text(gguf_bytes *b, const char *text)
{
    put_u(b, strlen(text), 8);
    put(b, text, strlen(text));
}

static void pad(gguf_bytes *b)
{
    while (b->n % ALIGN)
        put_u(b, 0, 1);
}

static void key_begin(gguf_out *g, const char *key, uint32_t type)
{
    put_text(&g->keys, key);
    put_u(&g->keys, type, 4);
    g->n_keys++;
}

void gguf_put_u32(gguf_out *g, const char *key, uint32_t v)
{
    key_begin(g, key, TYPE_U32);
    put_u(&g->keys, v, 4);
}

void gguf_put_f32(gguf_out *g, const char *key, float v)
{
    key_begin(g, key, TYPE_F32);
    put(&g->keys, &v, 4);
}

void gguf_put_bool(gguf_out *g, const char *key, int v)
{
    key_begin(g, key, TYPE_BOOL);
    put_u(&g->keys, v != 0, 1);
}

void gguf_put_string(gguf_out *g, const char *key, const char *text)
{
    key_begin(g, key, TYPE_STRING);
    put_text(&g->keys, text);
}

void gguf_put_strings(gguf_out *g, const char *key, const char *const *texts, uint32_t n)
{
    key_begin(g, key, TYPE_ARRAY);
    put_u(&g->keys, TYPE_STRING, 4);
    put_u(&g->keys, n, 8);
    for (uint32_t i = 0; i < n; i++)
        put_text(&g->keys, texts[i]);
}

void gguf_put_tensor(gguf_out *g, const char *name, cf_format f, uint32_t n_dims,
                     const uint64_t *shape, const void *data, size_t n)
{
    pad(&g->data);
    put_text(&g->infos, name);
    put_u(&g->infos, n_dims, 4);
    for (uint32_t i = n_dims; i-- > 0;)
        put_u(&g->infos, shape[i], 8);
    put_u(&g->infos, (uint64_t)cf_formats[f].gguf, 4);
    put_u(&g->infos, g->data.n, 8);
    put(&g->data, data, n);
    g->n_tensors++;
}

void gguf_write(gguf_out *g, const char *path)
{
    gguf_bytes all = {0};
    put(&all, "GGUF", 4);
    put_u(&all, 3, 4);
    put_u(&all, g->n_tensors, 8);
    put_u(&all, g->n_keys, 8);
    put(&all, g->keys.at, g->keys.n);
    put(&all, g->infos.at, g->infos.n);
    pad(&all);
    put(&all, g->data.at, g->data.n);
    tmp_write(path, all.at, all.n);
    free(all.at);
    free(g->keys.at);
    free(g->infos.at);
    free(g->data.at);
    *g = (gguf_out){0};
}
