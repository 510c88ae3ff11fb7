/* The same checkpoint at other file offsets: every shard's header is padded with spaces, which the
 * format allows, so that its data section begins at a chosen offset modulo 16. */
#ifndef CF_TESTS_REOFFSET_H
#define CF_TESTS_REOFFSET_H

#include "tests/support/tmpfiles.h"

/* Copies the directory `from` (config, index, shards, tokenizer; not the reference results) to
 * the new directory `to`. Ends the program when the disk fails it. */
void reoffset_copy(const char *from, const char *to, unsigned data_offset_mod_16);
/* A plain copy. */
void model_copy(const char *from, const char *to);

#endif
