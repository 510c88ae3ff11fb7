/* Shared by expert_cache.c and expert_guess.c: the cache's tables, and the transitions that both
 * perform. */
#ifndef CF_RUNTIME_EXPERT_CACHE_INTERNAL_H
#define CF_RUNTIME_EXPERT_CACHE_INTERNAL_H

#include <pthread.h>

#include "runtime/copier.h"
#include "runtime/expert_cache.h"
#include "runtime/unpack.h"

enum { NONE = CF_NO_PLACE };

typedef enum { EMPTY, READING, COPYING, READY } slot_state;

struct slot {
    slot_state state;
    uint32_t moe, expert; /* the key, unless EMPTY */
    uint32_t pins;
    uint32_t entry;                        /* of the group that awaits it, or NONE */
    uint32_t landing;                      /* where it is read to, or NONE */
    uint32_t copies;                       /* jobs that the copy thread has not finished */
    uint64_t piece_off[CF_RECORD_EXTENTS]; /* of each extent of the record */
    cf_gpu_point ready;
    cf_layout layout;
    cf_fetch_req req;
    cf_copy_job fill, save;
    cf_unpack_job unpack;
    bool usable;        /* by work that waits for `ready` */
    bool guessed;       /* its read was asked for as a guess */
    bool guess_landing; /* ... and counts among guesses' landing places */
    bool out;           /* nobody wants its bytes: free for a guess once nothing is on its way */
    cf_cache *cache;
    struct slot *next; /* in the arrival list or the list that waits for a landing place */
};

/* One expert of the current group, in order of processing. */
struct entry {
    bool started, taken, used;
    struct slot *guess; /* holds its record, or is being filled with it; or NULL */
    cf_gpu_point done;  /* of the work that used it */
};

struct list {
    struct slot *head, **tail;
};

/* A record that the next layer is guessed to choose. */
struct guess {
    uint32_t expert;
    struct slot *place; /* NULL: not asked for yet */
};

/* How often guesses of a layer were right, of late. */
struct guess_share {
    uint32_t made, right;
};

/* Of the engine thread; places, landings, n_started and the list's places by the lock. */
struct guesses {
    uint32_t max, moe, n, n_started;
    bool on;                   /* else they are only counted */
    struct guess *list;        /* [max] best first */
    struct guess_share *share; /* [n_moe] */
    struct slot **free;        /* [max] */
    uint32_t n_free, n_landings, most_landings;
};

struct cf_cache {
    cf_cache_options o;
    uint32_t n_slots, n_moe, experts;
    struct slot *slots; /* [n_slots + guesses.max] places */
    struct slot **at;   /* [n_slots] of the directory's slots */
    cf_residency *residency;
    cf_copier *copier;
    cf_unpack *unpack; /* NULL: records have no checksums, are not compressed and not in slices */

    /* The group, of the engine thread. */
    uint32_t moe, n_entries, n_hits, n_taken, n_started;
    cf_placing *placing;   /* [experts] decisions, in order of processing */
    struct entry *entries; /* [experts] likewise */
    uint32_t *order;       /* [experts] of route's list -> entry */

    struct guesses guesses;

    pthread_mutex_t lock;
    pthread_cond_t arrival;
    struct list arrived; /* usable (or failed), not yet taken by the engine */
    struct list waiting; /* reads that wait for a landing place */
    uint32_t *free_landings, n_free_landings;
    uint32_t in_flight; /* reads and copies */
    cf_cache_stats stats;
};

/* ---- expert_cache.c; the lock is held ---- */

/* Names the record that an EMPTY slot is to hold: where its pieces are read to, and where they
 * belong. */
void slot_key(cf_cache *c, struct slot *s, uint32_t moe, uint32_t expert);
/* Hands a read to the fetcher. */
void cache_read_submit(cf_cache *c, struct slot *s, uint32_t landing, cf_fetch_class cls);
/* The slot's landing place is free for the next read. */
void cache_landing_free(cf_cache *c, struct slot *s);
/* The slot is usable, or failed: its entry, if it has one, is told. */
void cache_arrive(cf_cache *c, struct slot *s);

/* ---- expert_guess.c; the lock is held but for init, finish and verify ---- */

int guesses_init(cf_cache *c, uint32_t max, cf_err *err);
void guesses_finish(cf_cache *c);
/* Asks for guesses that have not been, as far as there is room for them. */
void guesses_start(cf_cache *c);
/* The group was placed: right guesses go to its entries, wrong ones go. Returns how many entries
 * are READY thereby. */
uint32_t guesses_resolve(cf_cache *c);
/* Gives up all guesses, and those that entries of the group have not taken over. */
void guesses_drop(cf_cache *c);
/* Entry `index`, whose slot is EMPTY, takes over the place of its guess. False: the guess failed,
 * and the entry is to be read like any other. */
bool guess_adopt(cf_cache *c, uint32_t index);
void slot_retire_when_idle(cf_cache *c, struct slot *s);
const char *guesses_verify(const cf_cache *c);

#endif
