/* A release that is cut for the machines it ran on: a directory of safetensors whose names end in
 * "-TP-000.safetensors", "-TP-001.safetensors" and so on, and in "-TP-common.safetensors".
 *
 * What the common files hold is whole. The files of a rank hold slices: the same names, dtypes and
 * shapes in every rank, in the order of the ranks. Whether slices are rows or columns the files do
 * not say; whoever knows the matrix's shape sees it. The tensors of one rank alone are whole.
 * Refused, with the file's name: a rank without files, a tensor that a rank lacks, slices that
 * differ, other *.safetensors beside them. One thread; headers only. */
#ifndef CF_STORAGE_SAFETENSORS_SLICES_H
#define CF_STORAGE_SAFETENSORS_SLICES_H

#include "storage/catalogue.h"

/* The rank that a file's name ends in; -1: common to all; -2: it is no such name. */
int cf_safetensors_rank(const char *name);
/* A catalogue of all ranks together. */
int cf_safetensors_slices_open(cf_catalogue **out, const char *dir, cf_err *err);
/* The same from the catalogues of the ranks and of what is common (or NULL), which stay the
 * caller's. For the fuzzer. */
int cf_safetensors_slices_join(cf_catalogue **out, cf_catalogue *const *ranks, uint32_t n_ranks,
                               cf_catalogue *common, cf_err *err);

#endif
