/* How a record (a list of extents) is read into one slab: aligned windows, adjacent extents
 * merged, and where each piece ends up.
 *
 * A run is one contiguous aligned window of one file: [file_off, file_off + bytes), both multiples
 * of the alignment, clipped to align_up(file size); it is read to slab + slab_off (a multiple of
 * the alignment). Extents whose windows touch or overlap in the file, in the order given or not,
 * share a run, so no byte is read twice. Piece i is at slab + piece[i].read_off after the reads and
 * belongs at slab + piece[i].off, a multiple of CF_PIECE_ALIGN; cf_layout_settle moves those that
 * lie elsewhere (memmove inside the slab; nothing to do for aligned files).
 * Pure functions; no allocation. */
#ifndef CF_STORAGE_LAYOUT_H
#define CF_STORAGE_LAYOUT_H

#include "storage/catalogue.h"
#include "storage/slices.h"

enum { CF_PIECE_ALIGN = 16, CF_MAX_PIECES = 16, CF_MAX_RUNS = 24 };

typedef struct cf_run {
    uint32_t file;
    uint32_t head; /* of a slice: bytes of the window before it */
    uint64_t file_off, bytes, slab_off;
} cf_run;

typedef struct cf_piece {
    uint64_t read_off, off, bytes;
} cf_piece;

typedef struct cf_layout {
    uint32_t n_runs, n_pieces;
    uint64_t bytes; /* of the slab: a multiple of the alignment; enough before and after settling */
    cf_run runs[CF_MAX_RUNS];
    cf_piece pieces[CF_MAX_PIECES]; /* in the order of the extents */
    /* A compressed record: what the one run brings, and the bytes from the slab's beginning on that
     * it becomes; packed_bytes 0: it is not compressed. */
    uint64_t packed_off, packed_bytes, unpacked_bytes;
    const cf_slices *slices; /* of a record in slices, a run for each; NULL: it is none */
} cf_layout;

/* n <= CF_MAX_PIECES extents, each of at least one byte; align a power of two >= 512. */
void cf_layout_plan(cf_layout *out, const cf_extent *extents, uint32_t n, uint32_t align);

/* A record that is one compressed extent and, once unpacked, has n pieces at these offsets
 * (multiples of CF_PIECE_ALIGN, inside unpacked_bytes). The run lies so far behind that unpacking
 * to the slab's beginning never overtakes what it reads: nothing else needs memory. */
void cf_layout_plan_packed(cf_layout *out, const cf_extent *extent, uint64_t unpacked_bytes,
                           const cf_piece *pieces, uint32_t n, uint32_t align);

/* A record of slices->n_cuts pieces in slices: n extents for each piece, in order, at most
 * CF_MAX_RUNS. Every slice has a run of its own (of neighbours in a file one page may be read
 * twice), so that none belongs behind where it was read; cf_layout_join makes the pieces whole at
 * these offsets, multiples of CF_PIECE_ALIGN, one behind the other. *slices outlives the layout. */
void cf_layout_plan_slices(cf_layout *out, const cf_extent *extents, const cf_slices *slices,
                           const cf_piece *pieces, uint32_t align);
/* After the reads; scratch: cf_slices_scratch bytes. */
void cf_layout_join(const cf_layout *layout, uint8_t *slab, uint8_t *scratch);

/* True when a piece lies elsewhere than it belongs. */
bool cf_layout_unsettled(const cf_layout *layout);
void cf_layout_settle(const cf_layout *layout, uint8_t *slab);

#endif
