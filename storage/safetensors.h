/* Safetensors: a directory of one or many shards -> catalogue.
 *
 * Format: 8 bytes little-endian header length N (N <= 100 MB, N <= file size - 8), N bytes of JSON
 * { name: {dtype, shape, data_offsets: [begin, end]} , "__metadata__": {...} }, then the data.
 * Checked: the JSON and its types, known dtypes, shape product x element size == end - begin,
 * offsets inside the file, no two tensors overlapping, no name twice (over all shards), at most
 * CF_MAX_DIMS dimensions and 2^20 tensors a file. With model.safetensors.index.json: every shard
 * that weight_map names exists and holds the tensors said to be in it; shard names must be plain
 * file names. Without it: model.safetensors, or slices (storage/safetensors_slices.h), or the only
 * *.safetensors there is. An index that names files of slices gives way to them: it has one place
 * for a name, slices have several.
 * Errors name the file and the number. Reads headers only (buffered pread). */
#ifndef CF_STORAGE_SAFETENSORS_H
#define CF_STORAGE_SAFETENSORS_H

#include "storage/catalogue.h"

int cf_safetensors_open(const char *dir, cf_catalogue **out, cf_err *err);

/* The header of one file, as number `file` of the catalogue; else as cf_safetensors_parse. */
int cf_safetensors_load(cf_catalogue **cat, uint32_t file, const char *path, cf_err *err);

/* The header parser alone, for the fuzzer and tests: `json` is the header text (json_bytes), the
 * data section begins at data_off of a file of file_bytes; `path` is for messages. Appends to *cat
 * (created when NULL) as file number `file`. After a failure a catalogue that was given can only
 * be closed; one that was not stays NULL. */
int cf_safetensors_parse(cf_catalogue **cat, uint32_t file, const char *path, const char *json,
                         size_t json_bytes, uint64_t data_off, uint64_t file_bytes, cf_err *err);

#endif
