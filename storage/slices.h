/* Matrices that are stored in slices, and how they become whole in memory.
 *
 * A matrix is cut into n slices of equal shape, each contiguous in a file. Read one after the other
 * to one place, slices of rows are the matrix already. Slices of columns are n narrow matrices, one
 * below the other, and have to be turned: row r of slice s becomes the s-th part of row r. That is
 * a permutation of n x rows blocks, each of which moves once, along its cycles.
 *
 * Pure functions; scratch is the caller's. */
#ifndef CF_STORAGE_SLICES_H
#define CF_STORAGE_SLICES_H

#include <stdint.h>

enum { CF_MAX_CUTS = 8 };

/* How one matrix is cut. */
typedef struct cf_cut {
    uint64_t bytes; /* of a slice */
    uint32_t rows;  /* of a slice, where slices lie side by side; 0: one below the other */
} cf_cut;

/* How all matrices of a record are cut: into n slices each. */
typedef struct cf_slices {
    uint32_t n, n_cuts;
    cf_cut cuts[CF_MAX_CUTS];
} cf_slices;

/* Bytes of scratch that turning any of the matrices takes; 0: none has to be turned. */
uint64_t cf_slices_scratch(const cf_slices *slices);

/* n narrow matrices of cut->rows rows, one below the other at `matrix`, become one with all their
 * columns. Nothing to do for slices of rows. */
void cf_slices_turn(const cf_cut *cut, uint32_t n, uint8_t *matrix, uint8_t *scratch);

#endif
