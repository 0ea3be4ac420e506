/* The object store of one node: objects, their references and tiers, and what of it is on disk.
 *
 * It knows neither jobs nor FUSE nor the network. Everything that a completed call changed is in
 * LMDB and in the journal when the call returns, so that a server killed at any moment loses
 * nothing acknowledged; on disk for sure, whatever happens to the machine, is what was synced
 * (store_sync_object() and its like). The object table is in memory and is loaded from LMDB by
 * store_open().
 *
 * Numbers. Every object, name, staged file and job has a number: 64 bits, never reused in the life
 * of a state directory, below 2^48. fs/ derives inode numbers from them, so they mean the same to
 * every server that works on the state.
 *
 * Threads. Every call may come from any thread unless it says otherwise. Callbacks are called
 * without any lock of the store held, and may call the store.
 *
 * Blocking. No call waits for anything but the disk cache and locks that are held for microseconds,
 * unless it says so. */
#ifndef MOBULA_CORE_STORE_STORE_H
#define MOBULA_CORE_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "core/base/util.h"

struct store;

#define STORE_INLINE_DEFAULT_BYTES (100u * 1024u)
#define STORE_NUMBER_LIMIT (UINT64_C(1) << 48)
/* So often store_fetch() is worth it while store_readable() says -EAGAIN. */
#define STORE_FETCH_TRIES 4

/* What the store tells its user about. Each may be NULL. `file_gone` may also be called during
 * store_open(), for what a dead server left, and store_close(). */
struct store_hooks {
    void *context;
    /* An object is gone: ID and number answer ENOENT from now on. */
    void (*object_freed)(void *context, uint64_t number, const struct mob_id *id);
    /* The number of links (names, jobs, containing objects) of an object changed, or its state. */
    void (*object_changed)(void *context, uint64_t number);
    /* The data file `file` is about to be removed: drop what was registered for it. */
    void (*file_gone)(void *context, uint64_t file);
};

struct growing_pipes;

/* In memory_dir: it is a store's that has a key. Who has none leaves it there. */
#define STORE_ENCRYPTED_NAME "encrypted"

struct store_options {
    const char *state_dir; /* LMDB in state_dir/meta; exists, belongs to the daemon */
    /* A tmpfs (or a folder of one), exists; data files are memory_dir/data/HEX. */
    const char *memory_dir;
    uint64_t memory_bytes; /* budget of memory_dir */
    /* Spill directories, ending with NULL; made if they aren't there. NULL: nothing is spilled, and
     * -ENOSPC when memory is full. */
    const char *const *spill_dirs;
    /* Paths of spill directories, ending with NULL, that the store had and that are not there any
     * more: their objects are given up, and are reported lost. May be NULL. */
    const char *const *forget_spill_dirs;
    uint64_t disk_bytes;   /* budget of all of them; 0 = what their filesystems have */
    /* A file with a key (cipher.h): what goes to disk from now on is encrypted, and so is the content
     * of inline objects. A store that had one must get it again. NULL: none. It needs a spill
     * directory. */
    const char *spill_key;
    uint32_t inline_bytes; /* objects up to this size are kept in LMDB; 0 = default */
    uint8_t owner[MOB_ID_OWNER_BYTES];
    /* True: other processes may have a data file open for writing (FUSE passthrough), so a commit
     * first asks the kernel whether any still has (staged_commit). */
    bool passthrough;
    /* Write LMDB's pages through its map (MDB_WRITEMAP) instead of by pwrite(2): commits cost less,
     * removals a third, at the price that a stray store of this process could damage the metadata.
     * Either way the blocks behind the pages are allocated before each transaction, so that a full
     * disk is -ENOSPC, never SIGBUS, and can be tidied. */
    bool map_writes;
    /* Made by growing_pipes_open() in a process that outlives this one; with passthrough a file
     * that is larger than memory survives this process only with them. NULL: the store makes its
     * own. */
    struct growing_pipes *pipes;
    bool distrust_meta; /* LMDB's file may be damaged: it is made anew from the journal */
    uint64_t journal_bytes;        /* of a log, before a snapshot replaces it; 0 = default */
    uint64_t writeback_ns;         /* until a file's writeback is asked about; 0 = default */
    unsigned spare_files;          /* empty data files kept ready for staged_create; 0 = default */
    const struct mob_clock *clock; /* NULL = system */
    struct store_hooks hooks;
};

/* Opens or makes the store: LMDB, object table, names; takes up staged files that a killed server
 * left (staged_each()); removes data files that nothing names. Time is proportional to the
 * metadata. Nothing is freed for want of references until store_collect() has been called, so that
 * jobs and open files can be held again first. -EINVAL: made by another version or for another
 * owner; -ENOKEY, -EKEYREJECTED: it has a key, and that was not given; -ENOENT: a spill directory is missing that has objects, then nothing has changed; -EBUSY:
 * another server has it open (fcntl lock on state_dir/lock); -ENOMEM, -ENOSPC, -EIO. `err` has a
 * sentence. */
MOB_MUST_CHECK errint_t store_open(const struct store_options *options, struct store **out,
                                   struct mob_error *err);
void store_close(struct store *store);

/* Frees every object that nothing refers to, and from now on each one as its last reference goes.
 */
void store_collect(struct store *store);

/* Discards staged files that no one holds open (fs has called staged_opened() for those it knows),
 * but not those that are to be committed by what staged_mark_closed() noted. */
void store_discard_unopened(struct store *store);

/* A new number. -EIO or -ENOSPC when the counter can't be written. */
MOB_MUST_CHECK errint_t store_new_number(struct store *store, uint64_t *number);

/* --- objects --- */

enum object_state { OBJECT_PENDING, OBJECT_READY, OBJECT_FAILED };
enum object_tier { TIER_NONE, TIER_INLINE, TIER_MEMORY, TIER_DISK };

struct object_info {
    struct mob_id id;
    uint64_t number;
    uint64_t size;
    uint64_t mtime_ns; /* commit time, CLOCK_REALTIME; creation time while pending */
    uint64_t file;     /* data file (memory and disk tiers), else 0 */
    uint64_t staged;   /* number of the staged file it was committed from; 0: a job's output */
    uint32_t links;    /* names + jobs + containing objects */
    uint32_t opens;
    uid_t uid;
    gid_t gid;
    mode_t mode; /* S_IFREG | 0444 or 0555, less the umask */
    enum object_state state;
    enum object_tier tier;
    errint_t failure; /* OBJECT_FAILED: -EIO, -ECANCELED, -ETIMEDOUT: what open gives */
};

/* -ENOENT: no such object. */
MOB_MUST_CHECK errint_t store_find(struct store *store, const struct mob_id *id,
                                   struct object_info *out);
MOB_MUST_CHECK errint_t store_info(struct store *store, uint64_t number, struct object_info *out);

/* Up to `count` ready objects (pending and failed ones are left out) from `cursor` (0 at the start;
 * opaque, goes up). *cursor is where to go on. Returns how many; 0 = end. Copies nothing else and
 * holds no lock between calls. An object that exists throughout the iteration is returned exactly
 * once. */
size_t store_list(struct store *store, uint64_t *cursor, struct object_info *out, size_t count);
/* As store_list(), with each entry's own cursor (where to go on after it) in cursors[i]. */
size_t store_list_cursors(struct store *store, uint64_t cursor, struct object_info *out,
                          uint64_t *cursors, size_t count);

/* Counts one open file, which keeps the object. fs must call store_open_dropped() for each. After a
 * restart fs calls it again for the handles that live on (before store_collect()). -ENOENT. */
MOB_MUST_CHECK errint_t store_opened(struct store *store, uint64_t number);
void store_open_dropped(struct store *store, uint64_t number);

/* Counts one link by a job, in memory only: jobs hold again what they need after a restart. */
MOB_MUST_CHECK errint_t store_hold(struct store *store, const struct mob_id *id);
void store_drop(struct store *store, const struct mob_id *id);

/* Copies up to `bytes` of an inline object from `offset`. Returns the count (0 at the end), or
 * -ENOENT, -EINVAL (not inline), -EIO (also, logged, if its content does not have its checksum:
 * store_failure() then says so). */
ssize_t store_read_inline(struct store *store, uint64_t number, void *buffer, size_t bytes,
                          uint64_t offset);

/* The data file of an object, opened. */
enum store_form { STORE_IN_MEMORY, STORE_ON_DISK, STORE_ENCRYPTED };
struct store_file {
    int fd;
    enum store_form form; /* STORE_ENCRYPTED: it does not have the content as it is */
};

/* Opens the data file of an object of the memory or disk tier, read-only. The object must be counted
 * as open and store_readable(). The caller closes out->fd. Blocks for the disk. */
MOB_MUST_CHECK errint_t store_open_file(struct store *store, uint64_t number,
                                        struct store_file *out);
/* The same without waiting for the disk: -EAGAIN. */
MOB_MUST_CHECK errint_t store_open_file_now(struct store *store, uint64_t number,
                                            struct store_file *out);

/* As pread(2) of the content of the object whose file it is. What is encrypted is verified first:
 * -EIO (logged, store_failure() then says which block) if it isn't what was written; -ENOENT.
 * Blocks for the disk. */
ssize_t store_read_file(struct store *store, uint64_t number, const struct store_file *file,
                        void *buffer, size_t bytes, uint64_t offset);
/* The same without waiting for the disk: -EAGAIN if it is to be asked for something. */
ssize_t store_read_file_now(struct store *store, uint64_t number, const struct store_file *file,
                            void *buffer, size_t bytes, uint64_t offset);

/* Whether staged files may be given to the kernel (passthrough). Not where they could then go to
 * disk as they are, and are to be encrypted. */
bool store_staged_passthrough(const struct store *store);

/* Whether the bytes of a ready object may be read as they are: 0; -EAGAIN: they are on disk and
 * were not verified yet, store_fetch() does it; -EIO: they don't have their checksums
 * (store_failure() says which block). The object must be counted as open. Looks at the file: blocks
 * for the disk if the kernel has forgotten it. */
MOB_MUST_CHECK errint_t store_readable(struct store *store, uint64_t number);
/* The same without waiting for the disk: also -EAGAIN if that would have to be asked. */
MOB_MUST_CHECK errint_t store_readable_now(struct store *store, uint64_t number);
/* Blocks until the bytes of a ready object can be read: 0, or -EIO as store_readable(). Not from
 * the store's own threads. The object must be counted as open. */
MOB_MUST_CHECK errint_t store_verify(struct store *store, uint64_t number);

/* "DIR/objects/HEX" of an object on disk, or of its data file in memory, as a new string the caller
 * frees. -ENOENT: it has no file. */
MOB_MUST_CHECK errint_t store_place(struct store *store, uint64_t number, char **path);

/* An argument of a job that runs is spilled last. Counted, in memory only; it does not keep the
 * object. -ENOENT; -EMLINK: it has 65535. */
MOB_MUST_CHECK errint_t store_pin(struct store *store, const struct mob_id *id);
void store_unpin(struct store *store, const struct mob_id *id);

/* A directory on the filesystem of a spill directory, for files that may be larger than memory and
 * are to become objects (store_batch_ready_file()). Others than the store's owner can pass through
 * it where their way to it is open, and list nothing. What is in it is the caller's, to remove as
 * well. NULL: nothing is spilled. Valid until store_close(). */
const char *store_work_dir(struct store *store);
/* Is there so much memory that another file may begin there, of a size nobody knows? Always true
 * where nothing is spilled. */
bool store_memory_is_plenty(struct store *store);
/* May more be written to the spill directories: within the budget and less the reserve? False
 * where nothing is spilled. */
bool store_disk_has_room(struct store *store);

/* --- durability: what survives a power cut. All of these block for the disk --- */

/* A ready object, its attributes, and its names. It must be counted as open. -EOPNOTSUPP: it is in
 * memory and there is no spill directory; -ENOSPC, -EIO (also if it is damaged), -EAGAIN
 * (pending). */
MOB_MUST_CHECK errint_t store_sync_object(struct store *store, uint64_t number);
/* All names, jobs, attributes and small objects; not the bytes of large objects. */
MOB_MUST_CHECK errint_t store_sync_names(struct store *store);
/* Everything, and what staged files have by now. The first error; the rest is synced nevertheless.
 */
MOB_MUST_CHECK errint_t store_sync_all(struct store *store);

/* Before store_close(): copies to disk what is in memory only, and removes it from memory, so that
 * that can be taken away. Nothing but store_close() may follow. Blocks for as long as
 * writing it takes. -ENOSPC, -EIO: what could not be copied is still in memory; -EOPNOTSUPP: there
 * is no spill directory. */
MOB_MUST_CHECK errint_t store_spill_all(struct store *store);

/* Reads a whole ready object of at most `limit` bytes into a new, terminated buffer. -EFBIG,
 * -EAGAIN (pending), the failure code of a failed one. */
MOB_MUST_CHECK errint_t store_read_all(struct store *store, const struct mob_id *id, size_t limit,
                                       char **content, size_t *bytes);

/* Why a failed object failed, or what of a ready one was found damaged, as a new string the
 * caller frees. -ENOENT: neither. */
MOB_MUST_CHECK errint_t store_failure(struct store *store, uint64_t number, char **sentence);

/* Extended attributes kept with an object: those set on the staged file, except mobula's own.
 * xattr_get: the value's size, copied if it fits in `bytes` (0 = ask for the size); -ENODATA,
 * -ERANGE. xattr_list: names separated by NUL, the same way. */
ssize_t store_xattr_get(struct store *store, uint64_t number, const char *name, void *value,
                        size_t bytes);
ssize_t store_xattr_list(struct store *store, uint64_t number, char *list, size_t bytes);

/* SHA-256 of the content as 64 digits and a terminator; computed at the first call (blocks for as
 * long as reading the object takes), then kept in LMDB. */
MOB_MUST_CHECK errint_t store_sha256(struct store *store, uint64_t number, char out[65]);

/* IDs that the object holds (user.mobula.refs), as text, one a line, terminated; caller frees.
 * -EIO: the list is damaged or gone. */
MOB_MUST_CHECK errint_t store_refs(struct store *store, uint64_t number, char **text,
                                   size_t *bytes);

/* Who holds the object, for people: a line each ("name staging/a/b", "object ID", "staged file N",
 * "jobs 2", "open files 3"). The store knows only how many links jobs have; they know which. Walks
 * names and lists of IDs: for inspection only. Caller frees *text. */
MOB_MUST_CHECK errint_t store_holders(struct store *store, uint64_t number, char **text);

/* --- waiting --- */

/* Called once, from the thread that made the object ready or failed, or from store_wait() itself if
 * it already was; or, with state OBJECT_PENDING, when the object went away. */
typedef void store_waiter(void *argument, uint64_t number, enum object_state state);

/* Registers interest. *token can be given to store_wait_cancel(). Memory only, no thread. -ENOENT.
 */
MOB_MUST_CHECK errint_t store_wait(struct store *store, uint64_t number, store_waiter *waiter,
                                   void *argument, uint64_t *token);
/* As store_wait(), but a ready object whose bytes are on disk is verified first: the waiter is then
 * called from a thread of the store, with OBJECT_READY; store_readable() tells how it went. The
 * object must be counted as open. */
MOB_MUST_CHECK errint_t store_fetch(struct store *store, uint64_t number, store_waiter *waiter,
                                    void *argument, uint64_t *token);
/* True: removed, the waiter will not be called. False: it was called, or is being called now. */
bool store_wait_cancel(struct store *store, uint64_t number, uint64_t token);

/* --- batches: several changes that are on disk together or not at all --- */

struct store_batch;

/* Tables of a user of the store, kept in the same LMDB environment. */
enum store_table { STORE_TABLE_JOBS, STORE_TABLE_JOB_DATA, STORE_TABLE_COUNT };

MOB_MUST_CHECK errint_t store_batch_new(struct store *store, struct store_batch **out);

/* Any key up to 500 bytes, any value. Copied. */
MOB_MUST_CHECK errint_t store_batch_put(struct store_batch *batch, enum store_table table,
                                        const void *key, size_t key_bytes, const void *value,
                                        size_t value_bytes);
MOB_MUST_CHECK errint_t store_batch_delete(struct store_batch *batch, enum store_table table,
                                           const void *key, size_t key_bytes);

/* A pending object `id`, owned by uid:gid, of mode 0444 less `umask`, held by its job (one link, as
 * by store_hold(), to be dropped by store_drop()). Pending objects are not on disk: jobs make them
 * again after a restart. `*number` may be NULL. `preset_number`: 0, or the number it had before the
 * restart. */
MOB_MUST_CHECK errint_t store_batch_pending(struct store_batch *batch, const struct mob_id *id,
                                            uid_t uid, gid_t gid, mode_t umask,
                                            uint64_t preset_number, uint64_t *number);

/* Makes a pending object ready, with the content of the regular file `fd`, which must be at `path`
 * on memory_dir's filesystem, or in or below store_work_dir() or else on a spill directory's
 * filesystem (it is moved from there, into memory or onto the disk; small ones are copied inline
 * and the file removed). Executable: mode 0555. Takes the descriptor in every case. The commit
 * fails with -EXDEV if it is on another filesystem, with -ENOSPC if it is on disk and larger than
 * what the budget has left. */
MOB_MUST_CHECK errint_t store_batch_ready_file(struct store_batch *batch, const struct mob_id *id,
                                               int fd, const char *path, bool executable);
/* The same, with content from memory, copied. */
MOB_MUST_CHECK errint_t store_batch_ready_bytes(struct store_batch *batch, const struct mob_id *id,
                                                const void *content, size_t bytes);
/* Makes a pending object failed. Kept in memory only (the job's record has the reason). */
MOB_MUST_CHECK errint_t store_batch_fail(struct store_batch *batch, const struct mob_id *id,
                                         errint_t failure, const char *sentence);

/* Turns the staged file `staged` (see staged.h) into a link to the job `job` in the same
 * transaction. The name then holds the job: names_each_job() finds it again. One a batch (-EINVAL
 * for a second). If the staged file has been unlinked meanwhile, no name is made and *linked (may
 * be NULL) is false after the commit. */
MOB_MUST_CHECK errint_t store_batch_link_job(struct store_batch *batch, uint64_t staged,
                                             const struct mob_id *job, bool *linked);

/* Carries it out: LMDB first, then memory, then waiters are called. On failure nothing has changed
 * (-ENOSPC, -EIO, -EXDEV, -ENOENT: an object to be made ready or failed is not pending); `err` has
 * a sentence, which for -ENOSPC says what is full. Frees the batch in every case. Other changes
 * wait meanwhile: keep batches to a few thousand changes. */
MOB_MUST_CHECK errint_t store_batch_commit(struct store_batch *batch, struct mob_error *err);
void store_batch_abort(struct store_batch *batch);

/* Reads a table, less what is damaged, which is logged. `each` is called in key order with pointers
 * valid only during the call; a non-zero return ends the walk and is returned. Not from within
 * another walk's callback on the same thread. */
errint_t store_table_each(struct store *store, enum store_table table,
                          int (*each)(void *argument, const void *key, size_t key_bytes,
                                      const void *value, size_t value_bytes),
                          void *argument);
/* A copy of one value; the caller frees. -ENOENT; -EIO: it is damaged. */
MOB_MUST_CHECK errint_t store_table_get(struct store *store, enum store_table table,
                                        const void *key, size_t key_bytes, void **value,
                                        size_t *value_bytes);

/* --- the whole --- */

struct store_usage {
    uint64_t memory_bytes;      /* budget */
    uint64_t memory_used_bytes; /* data files, as the filesystem counts them */
    uint64_t inline_bytes;
    uint64_t disk_bytes; /* what the spill directories can hold; 0: there is none */
    uint64_t disk_used_bytes;
    uint64_t disk_free_bytes; /* what may still be written there */
    uint64_t spilling_bytes;  /* being written to disk, or waiting for it */
    uint64_t spilled_bytes, restored_bytes, spill_errors; /* since the server began */
    uint64_t damaged;                                     /* objects that are known to be, now */
    uint64_t journal_bytes, journal_syncs, journal_snapshots, journal_errors;
    bool durable;      /* fsync has what it needs: false after the journal's disk has failed */
    char spill_io[96]; /* how: "io_uring", "pread and pwrite (...)", "none" */
    char spill_key[33]; /* the name of the key (cipher_key_name()), or "none" */
    uint64_t objects_ready, objects_inline, objects_memory, objects_disk;
    uint64_t objects_pending, objects_failed;
    uint64_t object_bytes; /* sum of sizes of ready objects */
    uint64_t names, staged;
    uint64_t commits, freed; /* since the server began */
};
void store_usage(struct store *store, struct store_usage *out);

#endif
