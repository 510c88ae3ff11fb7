/* What shaders need beside the weights themselves: vectors stored in blocks, as F32, and the
 * codebooks of the IQ formats. Both lie behind the attention's part of the stream's scratch.
 *
 * Vectors are small: one in a block format is decoded before the op, with barriers around. The
 * codebooks are written by the first op that needs them. Threads: those of recording. */
#include "gpu/vulkan/vk_ops.h"

#include "gpu/ref/ref_grids.inc"

/* ---- codebooks ---- */

#define GRID_OF(format, grid)                                                                      \
    {                                                                                              \
        format, grid, sizeof(grid)                                                                 \
    }
static const struct {
    cf_format format;
    const uint16_t *data;
    uint32_t bytes;
} grids[] = {
    GRID_OF(CF_IQ2_XXS, grid_iq2_xxs), GRID_OF(CF_IQ2_XS, grid_iq2_xs),
    GRID_OF(CF_IQ2_S, grid_iq2_s),     GRID_OF(CF_IQ3_XXS, grid_iq3_xxs),
    GRID_OF(CF_IQ3_S, grid_iq3_s),     GRID_OF(CF_IQ1_S, grid_iq1),
    GRID_OF(CF_IQ1_M, grid_iq1), /* the same once more */
};
#undef GRID_OF
enum { GRIDS = sizeof grids / sizeof *grids, GRIDS_BYTES = 16384 };
_Static_assert(sizeof grid_iq2_xxs + sizeof grid_iq2_xs + sizeof grid_iq2_s + sizeof grid_iq3_xxs +
                       sizeof grid_iq3_s + 2 * sizeof grid_iq1 <=
                   GRIDS_BYTES,
               "the codebooks fit their part of the scratch");

uint64_t vk_vectors_bytes(const cf_gpu_info *info)
{
    return info->cpu ? 128 << 10 : 1 << 20;
}

uint64_t vk_scratch_all_bytes(const cf_gpu_info *info)
{
    return vk_scratch_bytes(info) + vk_vectors_bytes(info) + GRIDS_BYTES;
}

VkDeviceAddress vk_grid(vk_gpu *vk, cf_stream stream, cf_format format)
{
    uint64_t at = vk_scratch_bytes(&vk->base.info) + vk_vectors_bytes(&vk->base.info), mine = 0;
    int found = -1;
    for (int i = 0; i < GRIDS; i++)
        if (grids[i].format == format)
            found = i;
    if (found < 0)
        return 0;
    VkCommandBuffer cmd = vk_stream_cmd(vk, stream);
    for (int i = 0; i < GRIDS; i++) {
        mine = i == found ? at : mine;
        if (cmd && !vk->grids_written)
            vk->fn.vkCmdUpdateBuffer(cmd, vk_stream_scratch_buffer(vk, stream), at, grids[i].bytes,
                                     grids[i].data);
        at += grids[i].bytes;
    }
    if (cmd && !vk->grids_written)
        vk_barrier(&vk->base, stream);
    vk->grids_written = vk->grids_written || cmd;
    return vk_stream_scratch(vk, stream) + mine;
}

/* ---- vectors ---- */

bool vk_vector_in_blocks(const cf_weight *w)
{
    return w->span.buf && cf_formats[w->dtype].block_values > 1;
}

vk_vector vk_vector_plain(vk_decoded *d, const cf_weight *w)
{
    vk_gpu *vk = vk_of(d->gpu);
    if (!vk_vector_in_blocks(w))
        return vector_of_elements(w);
    uint64_t bytes = cf_align_up((uint64_t)w->cols * 4, 16);
    uint64_t room = vk_vectors_bytes(&vk->base.info);
    if (bytes > room - d->used) {
        cf_err cause = {0};
        CF_FAIL(&cause, CF_ELIMIT,
                "a vector of %u values in %s needs %llu bytes of scratch, %llu are free", w->cols,
                cf_format_name(w->dtype), (unsigned long long)bytes,
                (unsigned long long)(room - d->used));
        vk_fail(vk, &cause);
        return (vk_vector){0};
    }
    if (d->used == 0)
        vk_barrier(d->gpu, d->stream); /* an earlier op may still read there */
    VkDeviceAddress at =
        vk_stream_scratch(vk, d->stream) + vk_scratch_bytes(&vk->base.info) + d->used;
    vk_rows_decode(d->gpu, d->stream, w, at);
    d->used += bytes;
    return (vk_vector){at, CF_F32, 1};
}

void vk_vectors_ready(const vk_decoded *d)
{
    if (d->used)
        vk_barrier(d->gpu, d->stream);
}
