/* The engines behind the seam, for storage/io.c only. `options` is normalised: depth >= 1. */
#ifndef CF_STORAGE_IO_IMPL_H
#define CF_STORAGE_IO_IMPL_H

#include "storage/io.h"

int cf_io_uring_open(cf_io **out, const cf_files *files, const cf_io_options *options, cf_err *err);
int cf_io_pread_open(cf_io **out, const cf_files *files, const cf_io_options *options, cf_err *err);
/* Takes over *io and puts an engine around it in its place; on failure *io is as it was. */
int cf_io_fault_wrap(cf_io **io, const cf_io_options *options, cf_err *err);

#endif
