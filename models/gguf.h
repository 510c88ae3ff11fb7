/* GGUF models: metadata and tensors of a file, seen as the published checkpoint would be.
 *
 * A family (models/<family>.c) reads a config and binds tensors by their published names. For a
 * GGUF file both are made here: the config from the metadata's keys, and a catalogue of aliases
 * whose entries are parts of the file's tensors: whole ones, rows of fused ones, single experts.
 * Nothing is read or repacked. What differs beyond names and places is small and explicit: q and k
 * may be permuted (the rotation then takes neighbours), the two halves of kv_b may lie apart, and
 * rope_freqs divides frequencies.
 *
 * What an architecture is called, which keys and tensors it has, is a table (gguf_archs.c). Files
 * are untrusted: each key has a type and a range, each tensor a role. One thread; all of it is over
 * when the model is open, the metadata excepted, which the model keeps. */
#ifndef CF_MODELS_GGUF_H
#define CF_MODELS_GGUF_H

#include "models/family.h"
#include "storage/gguf.h"

/* ---- the tables ---- */

typedef enum {
    CF_KEY_U32, /* a whole number, or an array of equal ones */
    CF_KEY_F64,
    CF_KEY_BOOL,
    CF_KEY_LAYERS, /* the model's layers, whatever the key counts */
    CF_KEY_HAS,    /* true when block 0, or the file beside its blocks, has this tensor */
    CF_KEY_TRUE,   /* true: no key says it */
    CF_KEY_FALSE,
    CF_KEY_ALIAS /* set by code: `gguf` is only for messages */
} cf_key_kind;

/* One key of the config. "a.b" is b in the object a. Rows are tried in order, the first that finds
 * its key sets `to`; a value of 0 counts as absent with `zero_absent`. */
typedef struct cf_gguf_key {
    const char *to, *from; /* from: without the architecture and its dot */
    cf_key_kind kind;
    bool zero_absent;
    double absent; /* not 0: the value when there is no key */
} cf_gguf_key;

typedef enum {
    CF_NAME_WHOLE,   /* `to` without suffix: ".weight" or ".bias" comes along */
    CF_NAME_FULL,    /* `to` is the whole name */
    CF_NAME_ROW,     /* likewise; a vector that the family knows as a matrix of one row */
    CF_NAME_EXPERTS, /* [experts, rows, cols]: a tensor for each; their biases: one for all */
    CF_NAME_GATE_UP, /* [experts, gate's rows and then up's, cols]: by their rows of the table */
    CF_NAME_HEADS,   /* [heads, rows, cols] as [heads * rows, cols] */
    CF_NAME_TAPS,    /* [channels, taps] as [channels, 1, taps] */
    CF_NAME_TABLES,  /* n-gram tables below each other */
    CF_NAME_TABLE,   /* one of them: a number follows the name */
    CF_NAME_DIVISORS, /* of the rotary frequencies */
    CF_NAME_READ /* what the config was made of has been read */
} cf_name_kind;

/* One tensor, or all experts of a layer. `from` has no suffix; "blk." is that of a block. In `to`
 * the first %u is the layer, the second the expert, or the sub-layer of a paired architecture. */
typedef struct cf_gguf_name {
    const char *from, *to;
    cf_name_kind kind;
} cf_gguf_name;

/* What follows the published name of a matrix whose scale is a tensor of its own. */
#define CF_GGUF_SCALE ".weight_scale_2"

typedef struct cf_gguf_source cf_gguf_source;

enum { CF_GGUF_SETS = 7 };

typedef struct cf_gguf_arch cf_gguf_arch;
struct cf_gguf_arch {
    const char *name;         /* general.architecture */
    const char *architecture; /* the published class, as families list it; NULL: `finish` says */
    const cf_gguf_key *keys[CF_GGUF_SETS];
    const cf_gguf_name *names[CF_GGUF_SETS]; /* the first that matches counts */
    const char *root;    /* the object that the config's keys are in; NULL: it is the config */
    const char *rope;    /* the object of rope_theta; NULL: root */
    bool adjacent;       /* q and k are permuted: neighbours are rotated together */
    bool yarn_exact;     /* the published scaling does not round YaRN's range; no key says so */
    bool never_yarn;     /* converters write YaRN where the release has frequencies as they are */
    bool paired;         /* two blocks make a layer */
    bool partial_rotary; /* rope.dimension_count may be less than a head */
    bool latent;         /* key_length is not that of a head */
    bool spare_expert;   /* expert tensors may have one slice beyond the last expert */
    int (*finish)(cf_gguf_source *s, cf_err *err); /* what tables cannot say */
    /* Another of this name, by whether block 0 has this tensor. */
    const char *variant_has;
    const cf_gguf_arch *variant;
};

extern const cf_gguf_arch cf_gguf_archs[];
extern const uint32_t cf_gguf_arch_count;

/* ---- one file being opened ---- */

struct cf_gguf_source {
    const char *path; /* for messages */
    const cf_gguf *meta;
    const cf_catalogue *cat; /* as in the file */
    const cf_gguf_arch *arch;
    uint32_t blocks, main_blocks, layers, experts;
    uint32_t n_tables; /* of n-grams */
    json_t *config, *root;
    int64_t divisors;            /* rope_freqs: its index in cat, or -1 */
    /* Left out: of blocks beyond the model; what is there twice; scales of 8-bit activations. */
    uint32_t n_beyond, n_copies, n_inputs;
    uint64_t skipped_bytes;
};

/* Values of "ARCH.key": 1 found, 0 absent (*out unchanged), negative with a sentence. Integers may
 * be arrays whose elements are equal. */
int cf_source_u32(const cf_gguf_source *s, const char *key, uint32_t *out, cf_err *err);
int cf_source_f64(const cf_gguf_source *s, const char *key, double *out, cf_err *err);
/* "ARCH.key" */
enum { CF_GGUF_MAX_KEY = 160 };
const char *cf_source_key(const cf_gguf_source *s, const char *key, char out[CF_GGUF_MAX_KEY]);
/* The tensor of block `block`, or -1. */
int64_t cf_source_tensor(const cf_gguf_source *s, uint32_t block, const char *name);
/* Sets a key of the config ("a.b": in the object a); takes the value. */
int cf_source_set(cf_gguf_source *s, const char *to, json_t *value, cf_err *err);

/* Architecture and sizes of a file; config and root are made. */
int cf_gguf_source_begin(cf_gguf_source *s, cf_err *err);
/* The config of the file. */
int cf_gguf_config(cf_gguf_source *s, cf_err *err);
/* Its parts: rope_theta and rope_scaling; that heads are as wide as is known. */
int cf_gguf_rope(cf_gguf_source *s, cf_err *err);
int cf_gguf_heads_check(const cf_gguf_source *s, cf_err *err);
/* The catalogue of aliases. */
int cf_gguf_view(cf_gguf_source *s, cf_catalogue **out, cf_err *err);
/* Puts the file's own words into a sentence that names a key or a tensor by its published one. */
void cf_gguf_err_translate(const cf_gguf_source *s, cf_err *err);

/* Opens a file, or part 1 of a split one; a pack too (open_pack.h). */
int cf_gguf_model_open(cf_model **out, const char *path, cf_err *err);
/* The same from what has been parsed: m has gguf, cat holds the file's tensors. */
int cf_gguf_model_make(cf_model *m, const cf_catalogue *cat, const char *path, cf_err *err);
/* m->dir is where m->file lies: a tokenizer.json beside it counts. */
int cf_gguf_folder_set(cf_model *m, cf_err *err);

#endif
