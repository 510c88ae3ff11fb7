/* info: how a model is stored: formats, checksums, and whether compression pays on this drive. */
#ifndef CF_TOOLS_INFO_PACK_H
#define CF_TOOLS_INFO_PACK_H

#include <jansson.h>

#include "runtime/model.h"
#include "tools/table.h"

typedef struct cf_info_pack {
    char experts[160], others[160]; /* formats, the one of most bytes first */
    uint64_t n_sums, n_records;     /* checksums; of records. 0: there are none */
    uint32_t slices;                /* that each expert's matrix is in; 0: it is whole */
    bool zstd;
    double ratio;             /* stored bytes, padding included, by bytes once unpacked */
    double drive, unpack, unpack_one; /* measured, bytes per second; by all threads and by one */
    double plain, compressed; /* records of a layer per second, in bytes once unpacked, at best */
    uint32_t threads, n_group; /* records that a token of decode may miss in one layer */
    char why[256]; /* of a drive that could not be measured */
} cf_info_pack;

/* Reads records and unpacks some, for about a second, when they are compressed. */
int cf_info_pack_make(cf_info_pack *out, const cf_model *model, cf_err *err);
/* Rows of two cells. */
void cf_info_pack_rows(const cf_info_pack *info, cf_table *table);
json_t *cf_info_pack_json(const cf_info_pack *info);

#endif
