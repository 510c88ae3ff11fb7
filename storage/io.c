/* Which engine: see io.h. AUTO steps down from the ring to threads and says so. */
#include "storage/io.h"

#include <stdio.h>

#include "storage/io_impl.h"

/* The ring if it can be had; else threads, with the reason as the notice. */
static int auto_open(cf_io **out, const cf_files *files, const cf_io_options *options, cf_err *err)
{
    cf_err refused = {0};
    if (cf_io_uring_open(out, files, options, &refused) == 0)
        return 0;
    int rc = cf_io_pread_open(out, files, options, err);
    if (rc == 0)
        snprintf((*out)->info.notice, sizeof(*out)->info.notice, "%.180s: reading with threads",
                 refused.msg);
    return rc;
}

int cf_io_open(cf_io **out, const cf_files *files, const cf_io_options *options, cf_err *err)
{
    cf_io_options o = *options;
    cf_io *io = NULL;
    int rc = 0;
    if (!o.depth)
        o.depth = CF_IO_DEPTH_DEFAULT;
    if (o.depth > CF_IO_DEPTH_MAX)
        return CF_FAIL(err, -EINVAL, "an I/O depth of %u, at most %d are allowed", o.depth,
                       (int)CF_IO_DEPTH_MAX);
    if (o.kind == CF_IO_URING)
        CF_TRY(cf_io_uring_open(&io, files, &o, err));
    else if (o.kind == CF_IO_PREAD)
        CF_TRY(cf_io_pread_open(&io, files, &o, err));
    else
        CF_TRY(auto_open(&io, files, &o, err));
    if (o.fault)
        CF_TRY(cf_io_fault_wrap(&io, &o, err));
    *out = io;
    return 0;
fail:
    cf_io_close(&io);
    return rc;
}

void cf_io_close(cf_io **io)
{
    if (!*io)
        return;
    (*io)->fns->close(*io);
    *io = NULL;
}
