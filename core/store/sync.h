/* Durable on request: what fsync(2) and sync(1) ask for.
 *
 * Names, attributes and small objects are durable when the journal is synced up to their
 * transaction. Large objects need a copy on disk with its checksums noted, and that synced before.
 *
 * A file that is still being written is no object yet. fsync(2) on it copies what it has to disk
 * and notes that copy in LMDB (`synced`, by the file's number): name, mode, attributes, and the
 * content or its checksums. If the machine crashes before the file was closed, or before its object
 * is durable, recovery makes the object from that. The file on disk that a note names is never
 * changed, unless the file is being written there. When the object has a durable copy of its own,
 * which may be the same file, the note goes: that is called settling, and a thread does it after
 * the commit.
 *
 * All functions may block for the disk. One thing is made durable at a time (spill.sync_lock), but
 * all who wait for the journal wait together. */
#ifndef MOBULA_CORE_STORE_SYNC_H
#define MOBULA_CORE_STORE_SYNC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/store/meta.h"

struct store;
struct staged;
struct spill_sum;

enum { SYNCED_ENCRYPTED = 1 }; /* its file on disk is, or the content */

struct synced_record {
    uint8_t version, name_bytes, flags, zero;
    uint32_t mode, uid, gid;
    uint64_t parent, size, mtime_ns;
    uint64_t file;   /* with a copy on disk; 0: the content follows */
    uint64_t object; /* it has become this object; 0: not yet */
    uint32_t xattrs_bytes, zero2;
};

/* A record that was checked. `name`, `xattrs`, and what follows them point into the value. */
struct synced_view {
    struct synced_record record;
    const char *name;
    const void *xattrs;
    const void *content;          /* `size` bytes (encrypted: and CIPHER_VALUE_BYTES), or NULL */
    const struct spill_sum *sums; /* of the blocks of the file, or NULL */
};

/* False (and logged): it is not well-formed. */
bool synced_decode(uint64_t number, const void *value, size_t value_bytes, struct synced_view *out);

/* What its note takes at most, with what its object's transaction changes of it. */
uint64_t synced_bytes(const struct staged *staged);

/* In the transaction that makes a staged file an object: its note goes if the object is in LMDB
 * (`settled`), else it says what the file has become. */
MOB_MUST_CHECK errint_t synced_commit(struct store *store, MDB_txn *txn, struct staged *staged,
                                      uint64_t object, bool settled);
/* After it, without locks but the staged file's: removes the copy, or settles it later. */
void synced_committed(struct store *store, struct staged *staged, bool settled);
/* The staged file is gone, and was not committed. */
void synced_drop(struct store *store, struct staged *staged);

/* The thread that settles. */
struct settler {
    pthread_mutex_t lock; /* a leaf */
    pthread_cond_t wake;
    pthread_t thread;
    bool may_run, runs, stop;
    uint64_t *numbers;
    size_t count, capacity;
};
/* Settles the note of a staged file that has become an object; from settler_start() on. */
void settler_add(struct store *store, uint64_t number);
void settler_start(struct store *store);
void settler_close(struct store *store);

#endif
