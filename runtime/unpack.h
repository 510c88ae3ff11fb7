/* Records become what kernels read: worker threads that hold a record of a pack against its
 * checksum, decode it inside its slab, where it is compressed, and join it there, where it is in
 * slices.
 *
 * A job's slab holds what its layout's runs brought; of a compressed record the frame lies where
 * the layout says (storage/layout.h, packed_off), slices lie where their runs do, and afterwards
 * the record lies there from the beginning on. A sum that does not hold, or a frame that does not
 * decode to exactly the record's length, fails with a sentence. Jobs end in any order.
 * Threads: push from any thread; done is called on a worker, without locks held. */
#ifndef CF_RUNTIME_UNPACK_H
#define CF_RUNTIME_UNPACK_H

#include "runtime/base/err.h"
#include "storage/files.h"
#include "storage/layout.h"
#include "storage/sums.h"

typedef struct cf_unpack cf_unpack;
typedef struct cf_unpack_job cf_unpack_job;

struct cf_unpack_job {
    const cf_layout *layout;
    uint8_t *slab;
    const cf_sums *sums; /* NULL: not checked */
    const cf_files *files;
    void (*done)(cf_unpack_job *job, void *user);
    void *user;
    int status; /* valid in done */
    cf_err err;
    cf_unpack_job *next; /* private */
};

/* threads 0: one for each processor that the process may use; at most 16. scratch_bytes: the most
 * that joining a record takes (storage/slices.h); 0: none is in slices. */
int cf_unpack_create(cf_unpack **out, uint32_t threads, uint64_t scratch_bytes, cf_err *err);
void cf_unpack_destroy(cf_unpack **unpack); /* finishes what was pushed; accepts NULL */
void cf_unpack_push(cf_unpack *unpack, cf_unpack_job *job);
uint64_t cf_unpack_memory(uint32_t threads, uint64_t scratch_bytes); /* host bytes, by estimate */

#endif
