/* Joints: see tokenizer_joints.h. */
#include "runtime/tokenizer_joints.h"

int tok_joints_init(tok_joints *j, size_t n, cf_err *err)
{
    uint32_t log2 = 18; /* 32 KiB: beside the vocabulary in a core's nearest cache */
    while (log2 < 24 && ((size_t)1 << (log2 - 2)) < n)
        log2++;
    size_t words = (size_t)1 << (log2 - 6);
    j->shift = 32 - log2;
    j->bits = calloc(words, sizeof *j->bits);
    return j->bits ? 0 : CF_FAIL(err, -ENOMEM, "tokenizer: no memory for %zu words", words);
}

void tok_joints_finish(tok_joints *j)
{
    free(j->bits);
    *j = (tok_joints){0};
}

uint64_t tok_joints_memory(const tok_joints *j)
{
    return j->bits ? ((uint64_t)1 << (32 - j->shift)) / 8 : 0;
}

void tok_joints_add_text(tok_joints *j, const char *text, size_t bytes)
{
    uint32_t left = 0;
    for (size_t i = 0, step; i < bytes; i += step) {
        uint32_t right = tok_char(text + i, &step);
        if (i > 0)
            tok_joint_add(j, left, right);
        left = right;
    }
}

size_t tok_joints_end(const tok_joints *j, const char *text, size_t bytes, size_t begin)
{
    size_t step, i = begin;
    uint32_t left = tok_char(text + i, &step);
    for (i += step; i < bytes; i += step) {
        uint32_t right = tok_char(text + i, &step);
        uint32_t h = tok_joint_hash(j, left, right);
        if (!(j->bits[h >> 6] >> (h & 63) & 1))
            return i;
        left = right;
    }
    return bytes;
}
