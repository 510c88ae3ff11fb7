/* Turning slices of columns: see slices.h. */
#include "storage/slices.h"

#include <string.h>

#include "runtime/base/align.h"

/* A bit for each block. */
static uint64_t marks_bytes(const cf_cut *cut, uint32_t n)
{
    return cf_ceil_div((uint64_t)n * cut->rows, 8);
}

uint64_t cf_slices_scratch(const cf_slices *s)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < s->n_cuts; i++)
        if (s->cuts[i].rows)
            most = cf_max_u64(most,
                              marks_bytes(&s->cuts[i], s->n) + s->cuts[i].bytes / s->cuts[i].rows);
    return most;
}

void cf_slices_turn(const cf_cut *cut, uint32_t n, uint8_t *matrix, uint8_t *scratch)
{
    if (!cut->rows || n < 2)
        return;
    const uint64_t rows = cut->rows, blocks = n * rows;
    const size_t block = cut->bytes / rows;
    uint8_t *marks = scratch, *held = scratch + marks_bytes(cut, n);
    memset(marks, 0, marks_bytes(cut, n));
    /* What belongs at block `at` lies at (at % n) * rows + at / n; the first and last stay. */
    for (uint64_t first = 1; first + 1 < blocks; first++) {
        if (marks[first / 8] >> first % 8 & 1)
            continue;
        uint64_t at = first, from = first % n * rows + first / n;
        if (from == first)
            continue;
        memcpy(held, matrix + first * block, block);
        for (; from != first; at = from, from = at % n * rows + at / n) {
            memcpy(matrix + at * block, matrix + from * block, block);
            marks[from / 8] |= (uint8_t)(1u << from % 8);
        }
        memcpy(matrix + at * block, held, block);
    }
}
