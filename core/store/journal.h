/* The journal: every change of the metadata, so that what was asked to be durable is there after a
 * power cut, and LMDB can be made anew.
 *
 * LMDB is not synced after each transaction, nor could it be cheaply: it survives a killed server,
 * but after a crash of the machine its file may be anything. So each transaction is also appended
 * to a log, as one frame that has a checksum: the tables' puts and deletes, inline objects' bytes
 * with them. Durable means that fdatasync(2) has returned for the log; many who wait share one.
 * From time to time the tables are written whole, as a snapshot, and older logs go.
 *
 *   STATE/journal/HEX.log       frames of transactions with sequence numbers above HEX
 *   STATE/journal/HEX.snapshot  the tables as transaction HEX left them; whole, or not there
 *
 * Both are a header and then frames. The newest snapshot and the one before it are kept, with all
 * logs from that on: a damaged snapshot costs nothing, and who copies the directory while it is in
 * use has a set that belongs together. The principle is that of ARIES' redo log with fuzzy
 * checkpoints (Mohan et al., 1992), or of Redis' AOF; only whole transactions are in it, so there
 * is nothing to undo.
 *
 * Threads. What says "writer" is called with the store's writer lock held, everything else by any
 * thread. */
#ifndef MOBULA_CORE_STORE_JOURNAL_H
#define MOBULA_CORE_STORE_JOURNAL_H

#include <lmdb.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/base/id.h"

struct journal;
struct meta;

#define JOURNAL_LOG_DEFAULT_BYTES (UINT64_C(64) << 20)

struct journal_options {
    const char *state_dir;
    uint8_t owner[MOB_ID_OWNER_BYTES];
    pthread_mutex_t *writer;
    /* A log is ended by a new snapshot when it is as long as this, and twice as long as the last
     * snapshot; 0: 64 MiB. */
    uint64_t log_bytes;
};

/* Makes the directory, and finds the files in it. Reads nothing else. -ENOMEM, or what the
 * filesystem says, with a sentence. The caller closes it. */
MOB_MUST_CHECK errint_t journal_open(const struct journal_options *options, struct journal **out,
                                     struct mob_error *err);
/* Ends the thread; syncs nothing. NULL is allowed. */
void journal_close(struct journal *journal);

/* Is there a snapshot, so that the tables could be made from it? Before the next two calls. */
bool journal_has_snapshot(const struct journal *journal);
/* Or a log at least? */
bool journal_has_logs(const struct journal *journal);

/* Takes the journal up where LMDB's transaction `last_txn` left it: what was logged after that was
 * not carried out, and is cut off. A journal that doesn't belong to it, or has a gap, or none,
 * begins anew, and nothing is durable before the first snapshot is. -EINVAL with a sentence: of
 * another version or owner. */
MOB_MUST_CHECK errint_t journal_resume(struct journal *journal, uint64_t last_txn,
                                       struct mob_error *err);

/* Makes the tables of an empty `meta` from the newest good snapshot and the logs, and begins anew
 * after them. What was not durable ends where the first of it is missing. Where something is
 * missing that was durable, it is logged, and what can be read behind it is taken. *damaged: there
 * was some. -EINVAL: of another version or owner; -EIO: no snapshot can
 * be read; -ENOSPC, -ENOMEM. */
MOB_MUST_CHECK errint_t journal_replay(struct journal *journal, struct meta *meta, bool *damaged,
                                       struct mob_error *err);

/* Starts the thread that makes snapshots of the tables of `meta`. */
MOB_MUST_CHECK errint_t journal_start(struct journal *journal, struct meta *meta);

/* --- a transaction; writer --- */

/* Begins one, and makes sure that there is room for it: -ENOSPC. What only removes (`new_bytes` is
 * 0) may use the last of it. */
MOB_MUST_CHECK errint_t journal_begin(struct journal *journal, uint64_t new_bytes);
/* Notes a change. -ENOMEM. */
MOB_MUST_CHECK errint_t journal_put(struct journal *journal, unsigned table, const void *key,
                                    size_t key_bytes, const void *value, size_t value_bytes);
MOB_MUST_CHECK errint_t journal_delete(struct journal *journal, unsigned table, const void *key,
                                       size_t key_bytes);
/* The same for a value that is still to be written to `place`: it is read there at journal_fill().
 */
MOB_MUST_CHECK errint_t journal_put_later(struct journal *journal, unsigned table, const void *key,
                                          size_t key_bytes, const void *place, size_t value_bytes);
/* Before anything else is changed in the transaction: `place` may then be elsewhere. */
void journal_fill(struct journal *journal);
/* Appends it, before LMDB commits it as `txn`. -ENOSPC, -EIO: it is not there. */
MOB_MUST_CHECK errint_t journal_append(struct journal *journal, uint64_t txn);
/* LMDB has not committed what was appended last. */
void journal_take_back(struct journal *journal);

/* --- durability --- */

/* The sequence number of the last transaction: what journal_sync() is given. They ascend, but not
 * every number is used. */
uint64_t journal_written(struct journal *journal);
/* Returns when everything up to `sequence` survives a power cut. Blocks for the disk. After a
 * failed fdatasync(2) nothing is durable until a new snapshot was written: this waits for it.
 * -EIO, -ENOSPC, or what else the disk says. */
MOB_MUST_CHECK errint_t journal_sync(struct journal *journal, uint64_t sequence);

struct journal_usage {
    uint64_t bytes; /* of the log and the newest snapshot */
    uint64_t syncs, snapshots, errors;
    bool durable; /* false: there is no snapshot yet, or the disk has failed */
};
void journal_usage(struct journal *journal, struct journal_usage *out);

#endif
