/* A release that is cut for the machines it ran on: a directory of safetensors whose names end in
 * "-TP-000.safetensors", "-TP-001.safetensors" and so on, a rank each, and "-TP-common.safetensors".
 *
 * What a file of all ranks holds is whole. What the files of a rank hold is a slice of each of its tensors:
 * the same names, dtypes and shapes in every rank, in the order of the ranks. Whether slices are rows or
 * columns the files do not say; whoever knows the matrix's shape sees it. One rank alone: whole tensors.
 * Refused, with the file's name: a rank without files, a tensor that a rank lacks, slices that differ, other
 * *.safetensors beside them. One thread; headers only. */
#ifndef CF_STORAGE_SAFETENSORS_SLICES_H
#define CF_STORAGE_SAFETENSORS_SLICES_H

#include "storage/catalogue.h"

/* The rank that a file's name ends in; -1: common to all; -2: it is no such name. */
int cf_safetensors_rank(const char *name);
int cf_safetensors_slices_open(cf_catalogue **out, const char *dir, cf_err *err);

#endif
