/* Spilling: memory is a tier, not a limit. Two threads of the store do it.
 *
 * The evictor (evict.c) copies large objects from memory to disk when memory is short, the least
 * recently used first, and takes them out of memory. The fetcher (fetch.c) reads what is on disk
 * before it is opened: it verifies the checksums of each block, makes those that are not there yet,
 * and brings objects back to memory that are opened again and again.
 *
 * An object's bytes may be in memory, on disk, or both; its record says whether there is a whole
 * copy on disk (RECORD_ON_DISK), and that there is one in memory is seen by the file being there:
 * a file gets its name in memory_dir/data only when it is whole. So a server that is killed at any
 * moment leaves nothing that could be mistaken: a copy on disk that no record names is removed.
 *
 * Who opens an object keeps the copy in memory: only objects that nobody has open are evicted. */
#ifndef MOBULA_CORE_STORE_SPILL_H
#define MOBULA_CORE_STORE_SPILL_H

#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "core/store/growing.h"
#include "core/store/hold.h"
#include "core/store/spill_io.h"

struct store;
struct waiter;

/* Objects in memory by the time of their last use: a heap of (time, number) whose times may be
 * older than the object's own; then the entry is put back with the newer one when it comes up. */
struct lru_entry {
    uint32_t used;
    uint64_t number;
};
struct lru {
    struct lru_entry *entries;
    size_t count, capacity;
};
/* -ENOMEM. */
MOB_MUST_CHECK errint_t lru_push(struct lru *lru, uint64_t number, uint32_t used);
/* False: empty. */
bool lru_pop(struct lru *lru, struct lru_entry *out);
void lru_free(struct lru *lru);

enum fetch_kind {
    FETCH_VERIFY,  /* unless that was done meanwhile */
    FETCH_RESTORE, /* bring it to memory, if there is room */
    FETCH_SEAL,    /* make its checksums: it was written on disk */
};

/* In memory_dir/data: what is being brought back, until it is whole. */
#define SPILL_RESTORE_NAME "restore"

struct fetch {
    struct fetch *next;
    uint64_t number;
    enum fetch_kind kind;
    struct waiter *waiters; /* called when it can be read, or can't */
};

struct damage {
    struct damage *next;
    uint64_t number;
    char sentence[];
};

/* Files that outgrow memory while they are written: staged_grow.c. */
struct grow {
    pthread_t thread;
    bool runs;
    struct growing_pipes *pipes; /* with passthrough: the keeper's, or own_pipes */
    struct growing_pipes own_pipes;
    struct growing_mover mover;
    pthread_mutex_t mover_lock; /* after a staged file's lock */
    struct hold *hold;          /* NULL: writers can't be stopped here */
    pthread_cond_t wake;        /* with spill->lock */
    bool wanted;
    atomic_uint_fast64_t vain_until_ns; /* writers don't wait for others' memory before */
    bool has_shared; /* a file was found again that is not in exclusive mode */
};

struct spill {
    pthread_mutex_t lock; /* a leaf */
    bool stop;

    /* The evictor. */
    pthread_t evictor;
    pthread_cond_t evictor_wake;
    bool evictor_runs;
    atomic_bool evictor_awake; /* it looks again by itself, no need to wake it */
    struct lru lru;
    atomic_uint clock;           /* goes on with every use of a large object */
    struct spill_io *evictor_io; /* spill_engine() */
    char described[96];          /* what it says of itself; "starting" in the first milliseconds */
    unsigned idle_looks;         /* the evictor's own */
    uint64_t
        full_until_ns; /* the disk had no room: not tried again before, unless something goes */
    uint64_t rooms;    /* how often something went */

    /* The fetcher. */
    pthread_t fetcher;
    pthread_cond_t fetcher_wake;
    bool fetcher_runs;
    struct fetch *fetches, *current;
    struct damage *damages;
    struct spill_io *fetcher_io;

    /* Who makes objects durable, one at a time: sync.c. */
    pthread_mutex_t sync_lock; /* before any other lock of the store */
    struct spill_io *syncer_io;
    pthread_cond_t settled; /* objects that were busy no longer are; with `lock` */

    atomic_uint_fast64_t spilled_bytes, restored_bytes, errors;
    atomic_int_fast64_t spilling_bytes, damaged;
};

/* After recovery: starts the threads if there is a spill directory. */
MOB_MUST_CHECK errint_t spill_open(struct store *store, struct mob_error *err);
/* Ends them; what they are at is broken off. */
void spill_close(struct store *store);

/* A large object that is ready has gone from one tier to the other: their counts. */
void spill_count_tier(struct store *store, bool to_memory);
/* Evictor or fetcher are done with the object, if it is still there. */
void spill_clear_busy(struct store *store, uint64_t number);
/* Some objects are no longer busy: wakes who waits for that. No lock held but a shard's. */
void spill_settled(struct store *store);
/* Waits until an object may have been settled, or for 100 ms. */
void spill_wait_settled(struct store *store);
/* Gives the calling thread priority over users' programs, where that is allowed: -5 for the
 * evictor, which fills a core and is to get on beside programs that do; -15 for the mover, which
 * does little and must do it in time: while memory is written at full speed, a few milliseconds are
 * all there is. */
void spill_hurry(int nice);
/* The engine of the calling thread, evictor or fetcher, made at its first use: its 16 MiB take
 * milliseconds, which nothing that starts should wait for. NULL: no memory, and that was logged. */
struct spill_io *spill_engine(struct store *store, struct spill_io **place);
/* Takes over what the evictor's engine says of itself; on the thread that uses it. */
void spill_describe(struct store *store);

/* --- evict.c --- */

/* What memory_dir's files take, counted by the filesystem where it is ours alone. */
uint64_t spill_memory_used(struct store *store);
/* Is there so much memory that another file may begin there? */
bool spill_memory_is_plenty(struct store *store);
/* Memory was taken, or may soon be: the evictor looks, in a moment at the latest. Any lock may be
 * held but spill->lock. */
void spill_nudge(struct store *store);
/* Of the memory budget, what its use is compared with. */
#define SPILL_HIGH_WATERMARK 0.80
#define SPILL_LOW_WATERMARK 0.70
uint64_t spill_mark(const struct store *store, double share);
/* Something on disk was freed: there may be room again. */
void spill_room_came(struct store *store);
/* The store is being closed. */
bool spill_is_stopping(struct store *store);
/* A large object is in memory from now on, and was last used then (spill_now()). */
void spill_add(struct store *store, uint64_t number, uint32_t used);
/* Now, as struct object's `used` has it. */
uint32_t spill_now(struct store *store);
/* Copies all objects that are in memory only to disk (an orderly end). Blocks. */
MOB_MUST_CHECK errint_t spill_all(struct store *store);
/* Copies an object that is in memory only to disk, or all of them; they stay in memory. What is
 * busy is left out. With sync_lock. -ENOSPC, -EIO, -ENOMEM, -ECANCELED. Blocks. */
MOB_MUST_CHECK errint_t spill_copy(struct store *store, uint64_t number);
MOB_MUST_CHECK errint_t spill_copy_all(struct store *store);
/* In a transaction: the object's record says that a copy is on disk. */
MOB_MUST_CHECK errint_t spill_note_on_disk(struct store *store, MDB_txn *txn, uint64_t number,
                                           bool encrypted);

MOB_MUST_CHECK errint_t evictor_start(struct store *store);

/* --- staged_grow.c --- */

/* From so much memory in use on, files that are being written give some back. */
uint64_t grow_mark(const struct store *store);
/* Wakes its thread if files that are being written must give memory. */
void grow_look(struct store *store);

/* --- fetch.c --- */

MOB_MUST_CHECK errint_t fetcher_start(struct store *store);
/* An object on disk was opened once more: it comes to memory if there is room. No lock held. */
void fetch_reopened(struct store *store, uint64_t number);
/* Notes (and logs) that the object's bytes are damaged, until fetch_forget(); an older sentence
 * goes. Without memory it is only logged. Any thread, no shard's lock held. */
void damage_note(struct store *store, uint64_t number, const struct mob_id *id,
                 const char *sentence);
/* What is damaged, as a new string the caller frees. -ENOENT: nothing is known to be. */
MOB_MUST_CHECK errint_t damage_sentence(struct store *store, uint64_t number, char **sentence);

/* Notes what reading an object's file on disk has shown: damage_note() with its block. */
void fetch_note_damage(struct store *store, uint64_t number, errint_t error, uint64_t block);

/* Queues a large object that was written on disk: its checksums are made. */
void fetch_seal(struct store *store, uint64_t number);
/* Queues it to be verified, or to come back to memory. */
void fetch_verify(struct store *store, uint64_t number);
/* Are the checksums of a data file of `size` bytes in LMDB? */
bool fetch_has_sums(struct store *store, uint64_t file, uint64_t size);
/* Makes them, if need be, and waits for it. As store_verify(); -ENOSPC: there is no room for
 * them. */
MOB_MUST_CHECK errint_t fetch_seal_and_wait(struct store *store, uint64_t number);
/* The time of a file's last change. */
struct stat;
uint64_t fetch_changed_ns(const struct stat *info);
/* An object on disk is as it should be, as long as its file has that time. */
void fetch_set_verified(struct store *store, uint64_t number, uint64_t verified_ns);
/* Takes a waiter out that waits for a fetch; NULL: not there any more. */
struct waiter *fetch_cancel(struct store *store, uint64_t number, uint64_t token);
/* Forgets what is known of an object's damage. */
void fetch_forget(struct store *store, uint64_t number);

#endif
