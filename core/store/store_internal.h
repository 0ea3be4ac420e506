/* What the files of core/store share. Nothing outside this folder includes it.
 *
 * Lock order, outermost first; a lock is only taken while holding those before it:
 *
 *   staged->lock      the data of one staged file: writes, attributes, its commit
 *   store->names_lock names that are added, moved or taken away, by users: by all but commits,
 *                     which only turn a staged file's name into an object's
 *   store->writer     every change of LMDB, and of what the names' tree says; LMDB transactions
 *   store->tree_lock  directories, staged files by name and number, their records, unresolved IDs
 *   table ID shard    then
 *   table shard       objects
 *   leaf locks        spare files, dead objects, the watcher, spilling, the disk's hands
 *
 * A thread with names_lock and `writer` may read the tree without tree_lock, since changing it
 * takes that and one of these. A staged file is made with names_lock and tree_lock alone: creates
 * would wait for every commit's transaction otherwise. Hooks, waiters and callbacks are called with
 * none of them held. */
#ifndef MOBULA_CORE_STORE_INTERNAL_H
#define MOBULA_CORE_STORE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/cipher.h"
#include "core/store/disk.h"
#include "core/store/disk_hand.h"
#include "core/store/disk_header.h"
#include "core/store/growing.h"
#include "core/store/hash.h"
#include "core/store/journal.h"
#include "core/store/meta.h"
#include "core/store/names.h"
#include "core/store/spill.h"
#include "core/store/staged.h"
#include "core/store/store.h"
#include "core/store/sync.h"
#include "core/store/trust.h"
#include "core/store/writeback.h"

/* --- table.c: objects in memory --- */

struct waiter {
    struct waiter *next;
    uint64_t token;
    store_waiter *callback;
    void *argument;
};

struct failure {
    errint_t code;
    char sentence[];
};

enum {
    OBJECT_USED = 1,
    OBJECT_HIDDEN = 2, /* made, but its transaction isn't committed: nobody finds it */
    OBJECT_HAS_REFS = 4,
    OBJECT_HAS_XATTRS = 8,
    OBJECT_EMBEDDED = 16,
    OBJECT_HAS_SUM = 32,
    OBJECT_ON_DISK = 64,     /* all of it is in a spill directory, too or only */
    OBJECT_DURABLE = 128,    /* its copy on disk may have been asked for, by fsync and the like */
    OBJECT_BUSY = 256,       /* evictor or fetcher are at it */
    OBJECT_REOPENED = 512,   /* opened again while it was on disk */
    OBJECT_ENCRYPTED = 1024, /* its copy on disk is, or its inline content */
};

struct object {
    uint64_t number, size, mtime_ns, file;
    uint64_t staged; /* the staged file it was committed from, or 0 */
    union {
        struct waiter *waiters;  /* pending */
        struct failure *failure; /* failed */
        uint64_t verified_ns;    /* ready, on disk: ctime of the file whose blocks were verified */
        uint32_t next_free;      /* an unused slot */
    };
    struct mob_id id;
    uint32_t links, opens;
    uid_t uid;
    gid_t gid;
    uint32_t
        pages; /* of its data file, as they were counted: the kernel may drop some of a hole's */
    uint32_t used; /* when it was last opened: spill_now() */
    uint16_t mode; /* permission bits */
    uint16_t flags;
    uint16_t pins; /* running jobs that have it as an argument */
    uint8_t state, tier;
    uint8_t disk; /* spill directory of its copy, if there is one */
};

enum { STORE_PAGE_BYTES = 4096 };
static inline uint64_t object_memory(const struct object *object)
{
    return (uint64_t)object->pages * STORE_PAGE_BYTES;
}
/* What a file on disk with `size` bytes of content is counted as. */
static inline uint64_t object_disk_bytes(uint64_t size, bool encrypted)
{
    if (encrypted)
        size = cipher_file_bytes(size);
    return (size + STORE_PAGE_BYTES - 1) / STORE_PAGE_BYTES * STORE_PAGE_BYTES;
}

enum { TABLE_SHARDS = 256, TABLE_CHUNKS = 20, TABLE_FIRST_CHUNK = 64 };

struct table_index {
    uint32_t *slots;                /* handle + 1; 0 = empty, UINT32_MAX = deleted */
    uint32_t capacity, count, used; /* used counts deleted ones as well */
};

struct table_shard {
    pthread_mutex_t lock;
    struct table_index numbers;
    uint32_t slot_count, free_slot; /* free_slot: slot + 1 */
    struct object *_Atomic chunks[TABLE_CHUNKS];
};

struct table_id_shard {
    pthread_mutex_t lock;
    struct table_index ids;
};

struct table {
    struct table_shard shards[TABLE_SHARDS];
    struct table_id_shard id_shards[TABLE_SHARDS];
    atomic_uint freed_slots; /* since table_trim() */
};

MOB_MUST_CHECK errint_t table_init(struct table *table);
/* Gives the system what many objects took that are gone. Takes milliseconds, seldom; no lock held.
 */
void table_trim(struct table *table);
void table_destroy(struct table *table); /* frees waiters and failures, too */
/* Adds a copy of `object`. -EEXIST (its ID or number is there), -ENOMEM. */
MOB_MUST_CHECK errint_t table_insert(struct table *table, const struct object *object);
/* Shows an object that was inserted hidden. */
void table_reveal(struct table *table, uint64_t number);
/* Finds one and locks its shard; table_unlock() ends that. NULL: none (or hidden). */
struct object *table_lock_number(struct table *table, uint64_t number, struct table_shard **shard);
struct object *table_lock_hidden(struct table *table, uint64_t number, struct table_shard **shard);
struct object *table_lock_id(struct table *table, const struct mob_id *id,
                             struct table_shard **shard);
struct object *table_lock_id_hidden(struct table *table, const struct mob_id *id,
                                    struct table_shard **shard);
static inline void table_unlock(struct table_shard *shard)
{
    pthread_mutex_unlock(&shard->lock);
}
/* Takes an object out, if `unused_only` only when nothing refers to it. False: there was none. */
bool table_take(struct table *table, uint64_t number, bool unused_only, struct object *out);
/* Calls `each` for objects from slot `*cursor` on, a shard's lock held, until it returns false.
 * *cursor goes on after the last one it was called for. */
void table_walk(struct table *table, uint64_t *cursor,
                bool (*each)(void *argument, const struct object *object, uint64_t next),
                void *argument);

/* --- staged files --- */

struct staged_record;

struct data_file {
    uint64_t file;
    int fd;
    uint8_t dir;    /* spill directory; DISK_NO_DIR: it is in memory */
    bool encrypted; /* cipher.h */
};

/* What fsync(2) has made durable of a file that is still written: sync.h. */
struct synced_copy {
    bool any;
    bool own; /* it has a file of its own, of `counted` bytes; else it is in LMDB or in place */
    uint8_t dir;
    uint64_t file, counted, note_bytes;
};

struct staged {
    struct store *store;
    struct hash_node by_number, by_name;
    struct staged *next_gone;
    atomic_uint users; /* the table's one and one a call that works with it */
    atomic_bool torn;  /* moving more of it has failed for that: see growing.h */
    pthread_mutex_t lock;

    /* Constant. */
    uint64_t number, root, request;
    struct data_file data;
    bool mediated; /* all writes come to us, though the store has passthrough */

    /* Under tree_lock. */
    uint64_t parent, key;
    char *name;
    uint8_t name_bytes;
    bool named; /* in the table by name */
    bool unlinked, committed, gone;
    bool closed;     /* as staged_mark_closed() says */
    bool write_only; /* as staged_mark_write_only() says */
    bool grows;      /* counted in memory_files */
    bool split;      /* a part of it is on disk, though it began in memory: see staged_grow.c */
    struct growing_state grown_state; /* as its record has it */
    bool grown_alone; /* in exclusive mode: all writes came to us when it began to grow */
    mode_t mode;
    uid_t uid;
    gid_t gid;
    uint32_t opens;
    uint32_t slot; /* of its record */
    uint64_t version;
    struct mob_id id; /* what it has become */
    uint64_t object_number;

    /* Under lock; set once. */
    struct growing *growing; /* NULL: all of it is in `data` */
    struct data_file grown;  /* where its older part goes; the object's file in the end */
    uint64_t grown_bytes;    /* what `grown` is counted as */

    /* Under lock. */
    struct synced_copy synced;
    struct spill_sum *sums; /* of a file that was recovered from what was synced; else NULL */
    bool keeps_file; /* the data file belongs to it and goes with it; false: the object has it */
    uint64_t charged_bytes;
    atomic_uint_fast64_t
        made_ns; /* a spare file's own time is older than this; 0: the file's time counts */
    char *xattrs;
    size_t xattrs_bytes;
    struct mob_id *refs; /* each of them is held */
    size_t ref_count;
    bool refs_from_content;
    bool refs_content_known; /* refs are those of the content with this checksum */
    XXH128_hash_t refs_content_sum;
};

/* Whether the kernel may write and read its data file by itself. */
bool staged_is_direct(const struct staged *staged);

/* A reference to work with; NULL: there is none. */
struct staged *staged_get(struct store *store, uint64_t number);
void staged_put(struct store *store, struct staged *staged);
/* With writer held. Takes it out of the directory it is in; its record says unlinked. */
void staged_unlink_locked(struct store *store, struct staged *staged);
/* Its record only: the name is about to be replaced (or, false, was not after all). */
MOB_MUST_CHECK errint_t staged_mark_unlinked_locked(struct store *store, struct staged *staged,
                                                    bool unlinked);
/* With writer held: gives it another name, in place of another staged file if that has it (else
 * NULL). */
MOB_MUST_CHECK errint_t staged_rename_locked(struct store *store, struct staged *staged,
                                             uint64_t parent, uint64_t key, const char *name,
                                             size_t name_bytes, struct staged *replaced);
MOB_MUST_CHECK errint_t staged_exchange_locked(struct store *store, struct staged *a,
                                               struct staged *b);
/* With writer held, after its transaction: the name is in LMDB now. Discarded when nobody has it
 * open. */
void staged_committed_locked(struct store *store, struct staged *staged, const struct mob_id *id,
                             uint64_t object_number);
/* With writer held: it leaves the tables; what it had goes in objects_settle(). */
void staged_forget_locked(struct store *store, struct staged *staged);
/* The staged file at a place of a directory; tree_lock or writer is held. */
struct staged *staged_at(struct store *store, uint64_t parent, uint64_t key);
/* Into the tables; tree_lock held. */
void staged_insert(struct store *store, struct staged *staged);
struct staged *staged_new(const char *name, size_t name_bytes);
void staged_free(struct staged *staged);                        /* one that was never inserted */
void staged_settle(struct store *store, struct staged *staged); /* counts its memory anew */
void staged_charge(struct store *store, struct staged *staged, const struct stat *info);
void staged_uncharge(struct store *store, struct staged *staged); /* it takes nothing any more */
void staged_finish_gone(struct store *store);
void staged_set_info(const struct staged *staged, struct name_info *out);

/* --- staged_grow.c: files that outgrow memory --- */

/* Ready for growing_resume() and all else. After recovery, before the threads start. */
MOB_MUST_CHECK errint_t grow_open(struct store *store, struct mob_error *err);
void grow_close(struct store *store);
/* Whether the file can be moved to disk by whoever writes it: without passthrough only. */
bool grow_is_possible(const struct store *store, const struct staged *staged);
/* Lock held, if it is possible: moves what it can of the file to disk, in the calling thread; not
 * the unit that is being written. -EAGAIN: that is nothing. -ENOSPC, -EIO and others. */
MOB_MUST_CHECK errint_t grow_make_room(struct store *store, struct staged *staged);
/* Lock held: all that it has, and what will be written up to `end`, is on disk. As the former. */
MOB_MUST_CHECK errint_t grow_claim(struct store *store, struct staged *staged, uint64_t end);
/* Lock held, nobody writes: all of it goes to `grown`. -ENOSPC, -EIO with a sentence. */
MOB_MUST_CHECK errint_t grow_assemble(struct store *store, struct staged *staged,
                                      struct mob_error *err);
/* Recovery: takes up what the record says. 1: its part on disk is gone. */
MOB_MUST_CHECK errint_t grow_adopt(struct store *store, struct staged *staged,
                                   const struct staged_record *record, unsigned dir);
/* It ends; what it had on disk is removed unless it is the object's by now. */
void grow_end(struct store *store, struct staged *staged);
/* The file that has all of it, once it was assembled. */
static inline const struct data_file *staged_whole(const struct staged *staged)
{
    return staged->growing ? &staged->grown : &staged->data;
}
/* How long the content is that a data file has, of which `info` tells. */
uint64_t data_bytes(const struct data_file *data, const struct stat *info);
/* Reads its bytes, wherever they are. */
ssize_t staged_pread(struct staged *staged, void *buffer, size_t bytes, uint64_t offset);

/* --- staged_record.c: the file of records, mapped shared --- */

enum {
    RECORD_UNLINKED = 1,
    RECORD_COMMITTED = 2,
    RECORD_CLOSED = 4,
    RECORD_DATA_ENCRYPTED = 8, /* its data file is, which is what was synced of it */
    RECORD_MEDIATED = 16,
};

struct staged_record {
    atomic_uint state;
    uint32_t checksum;
    uint64_t number, version, parent, key, root, file, request, object_number;
    uint32_t mode, uid, gid;
    uint8_t flags, name_bytes;
    uint8_t zero[2];
    uint8_t id[MOB_ID_BYTES];
    uint8_t zero2[4];
    char name[256];
    uint64_t grown_file, grown_moved, grown_intent; /* staged_grow.c */
    uint8_t grown_head_moved, grown_torn, grown_encrypted, grown_alone;
    uint8_t zero3[4];
    uint64_t grown_filled, grown_redo;
    uint8_t rest[96];
};
_Static_assert(sizeof(struct staged_record) == 512, "slots are 512 bytes");

enum { RECORD_SLOTS = 65536 };

struct staged_records {
    int fd;
    struct staged_record *slots;
    uint32_t backed;  /* so many slots have pages behind them */
    uint64_t version; /* of the newest record: a higher one was written later, whichever file's */
    uint32_t *free;
    uint32_t free_count;
    bool anew; /* there were none: not even of files that the notes of what was synced know */
};

MOB_MUST_CHECK errint_t records_open(struct staged_records *records, int dir_fd,
                                     struct mob_error *err);
/* Recovery is done. Before that, the next records_open() finds none, if this one found none. */
MOB_MUST_CHECK errint_t records_complete(const struct staged_records *records, int dir_fd);
void records_close(struct staged_records *records);
/* Instead of opening them: removes what is there. */
MOB_MUST_CHECK errint_t records_discard(int dir_fd);
/* Writes the record of a staged file as it is now into a new slot, then frees the old one (unless
 * staged->slot is RECORD_SLOTS: it has none yet). tree_lock held. -ENOSPC. */
MOB_MUST_CHECK errint_t records_write(struct staged_records *records, struct staged *staged);
void records_erase(struct staged_records *records, struct staged *staged);
/* After records_open(): calls `each` with the newest good record of every number, once. */
MOB_MUST_CHECK errint_t records_recover(struct staged_records *records,
                                        errint_t (*each)(void *argument,
                                                         const struct staged_record *record,
                                                         uint32_t slot),
                                        void *argument);

/* --- spare.c: data files --- */

struct spare_files {
    pthread_mutex_t lock;
    struct data_file *files;
    unsigned count, capacity;
};

/* A new or spare empty data file in memory or on disk, opened as staged files have it. -ENOSPC. */
MOB_MUST_CHECK errint_t data_take(struct store *store, bool on_disk, struct data_file *out);
/* The same, always a new one; one on disk in the calling thread. */
MOB_MUST_CHECK errint_t data_make(struct store *store, bool on_disk, struct data_file *out);
/* Gives one back that nothing uses: kept as a spare file if it can be, else removed. Takes `fd`. */
void data_give_back(struct store *store, struct data_file *file, bool unread);
/* Removes a data file from memory, telling the user first. */
void data_remove(struct store *store, uint64_t file);
/* Removes all that are in memory. */
MOB_MUST_CHECK errint_t data_clear(struct store *store);
/* Opens one in memory. */
int data_open(struct store *store, uint64_t file, int flags);
/* Opens one where it is. */
int data_open_at(struct store *store, unsigned dir, uint64_t file, int flags);
/* False: there is none. */
bool spare_take(struct spare_files *spare, struct data_file *out);
/* Keeps an empty one, with its `fd`. False: there are enough. */
bool spare_push(struct store *store, const struct data_file *file);
/* Empties one, given as staged files have it. */
MOB_MUST_CHECK errint_t spare_empty(const struct store *store, int fd);
errint_t spare_open(struct store *store);
void spare_close(struct store *store);
/* At recovery: keeps an empty leftover as a spare file. False: the caller removes it. */
bool spare_adopt(struct store *store, uint64_t file);
/* Whether nobody else has the file open for writing, or (`alone`) at all. Asks for a lease. */
bool data_has_writers(int fd);
bool data_is_alone(int fd);

/* --- adopt.c: files that others have written --- */

/* With writer held: gives the file another name as a data file, where it is, and the object (its
 * size is known) what says so: file, tier, pages, disk, flags; counts it. -ENOSPC, -EXDEV, -EINVAL
 * (`path` is another file's); then nothing has changed, and `err` has a sentence unless it
 * is the state directory that has no room. */
MOB_MUST_CHECK errint_t data_adopt(struct store *store, int fd, const char *path,
                                   struct object *object, struct mob_error *err);
/* Takes that back: the object was not recorded. */
void data_adopt_undo(struct store *store, const struct object *object);

/* --- disk_describe.c: what files on disk say of themselves --- */

/* Gives the file of a ready object in spill directory `dir`, open as `fd`, its header, unless it
 * has it; it is `encrypted`, or not; `sums` are those of all its blocks, NULL: not made yet. It may
 * change the file's ctime. That a filesystem doesn't take headers is no error: it is logged, once a
 * directory. Blocks for the disk's metadata; no lock of the table may be held. */
void object_describe(struct store *store, const struct object *object, unsigned dir, int fd,
                     const struct spill_sum *sums, bool encrypted);
/* The same for the object as the table has it; nothing if it is gone. */
void object_describe_number(struct store *store, uint64_t number, unsigned dir, int fd,
                            const struct spill_sum *sums, bool encrypted);

/* --- disk_known.c: the spill directories that the store had --- */

/* After recovery has found that `objects` and `unfinished` files are in no directory that is there,
 * and before it says so: -ENOENT with a sentence if a directory is missing that may have them and
 * is not given up (store_options.forget_spill_dirs). -EINVAL: one that is to be given up is in use.
 * Changes nothing. Numbers may be 0. */
MOB_MUST_CHECK errint_t disk_check_known(struct store *store, uint64_t objects, uint64_t unfinished,
                                         struct mob_error *err);
/* Notes the present directories in place of those that the store had. After disk_make(). That
 * there is no room for it is logged only. */
MOB_MUST_CHECK errint_t disk_note_known(struct store *store, struct mob_error *err);

/* --- watcher: staged_writers.c --- */

struct watch {
    struct watch *next;
    int descriptor;
    uint64_t number;
    staged_unwritten *callback;
    void *argument;
    uint64_t due_ns; /* looks again then, whatever inotify says */
    uint64_t pause_ns;
};

struct watcher {
    pthread_mutex_t lock;
    pthread_t thread;
    bool running, stop;
    int inotify_fd, event_fd;
    struct watch *watches;
};
void watcher_close(struct store *store);
void watcher_forget(struct store *store, uint64_t number);

/* --- names --- */

struct directory {
    struct hash_node by_number;
    uint64_t number, parent, key;
    uint64_t mtime_ns, set_ns;
    uint64_t entries;
    uint32_t subdirectories;
    uid_t uid;
    gid_t gid;
    uint16_t mode;
    bool known; /* recovery: its own record has been seen */
    struct directory *first_child, *next_sibling, *previous_sibling;
    uint8_t name_bytes;
    char *name;
};

/* Where a name is, or would be. */
struct name_place {
    uint64_t parent, hash;
    uint64_t key; /* its key if it exists, else a free one */
    bool exists, full;
    struct staged *staged;     /* it is this staged file */
    struct name_record record; /* else this; points into the transaction's memory */
    const char *name;
    size_t name_bytes;
};

MOB_MUST_CHECK errint_t name_check(const char *name, size_t *name_bytes);
uint64_t name_hash(const struct store *store, const char *name, size_t name_bytes);
/* Finds a name; names_lock is held, and writer or tree_lock; `cursor` is one of META_NAMES. */
MOB_MUST_CHECK errint_t name_look(struct store *store, MDB_cursor *cursor, uint64_t parent,
                                  const char *name, struct name_place *out);
/* Deletes a name that is in LMDB, and its text. */
MOB_MUST_CHECK errint_t name_delete(struct store *store, MDB_txn *txn,
                                    const struct name_place *place);
/* Put or delete one name in a transaction of its own; writer held. `text`: of a symbolic link. */
MOB_MUST_CHECK errint_t name_put_alone(struct store *store, uint64_t parent, uint64_t key,
                                       const struct name_record *record, const char *text);
MOB_MUST_CHECK errint_t name_delete_alone(struct store *store, const struct name_place *place);
struct directory *directory_get(struct store *store, uint64_t number); /* tree_lock or writer */
unsigned directory_depth(struct store *store, const struct directory *directory);
uint64_t directory_root(struct store *store, const struct directory *directory);
struct directory *directory_new(uint64_t number, uint64_t parent, uint64_t key, const char *name,
                                size_t name_bytes);
/* Into and out of the tree; tree_lock held. `entries` of the parent are counted by the caller. */
void directory_attach(struct store *store, struct directory *directory);
void directory_detach(struct store *store, struct directory *directory);
/* An entry came (+1) or went (-1): count and time of the directory. tree_lock held. */
void directory_count(struct store *store, uint64_t number, int change, uint64_t now_ns);
void directory_record(const struct directory *directory, struct name_record *out);
void directory_set_info(struct store *store, const struct directory *directory,
                        struct name_info *out);
void directory_free(struct directory *directory);
void tree_destroy(struct store *store);
/* Only among what is in LMDB; tree_lock not needed. */
MOB_MUST_CHECK errint_t name_look_stored(MDB_cursor *cursor, struct name_place *place,
                                         unsigned *taken);
void name_record_info(struct store *store, uint64_t parent, const struct name_record *record,
                      struct name_info *out);

/* --- references --- */

struct dead {
    struct dead *next;
    bool refs_dropped;
    struct object object;
};

struct unresolved {
    struct hash_node node;
    struct mob_id id;
    uint32_t count;
};

/* One link more, by ID. -ENOENT. */
MOB_MUST_CHECK errint_t object_link(struct store *store, const struct mob_id *id, uint64_t *number);
/* The same at recovery, where the object may be one that a job makes again later. */
MOB_MUST_CHECK errint_t object_link_or_note(struct store *store, const struct mob_id *id);
/* One link less. If it was the last, the object goes; call objects_settle() later, without locks.
 */
void object_unlink(struct store *store, const struct mob_id *id);
/* Takes an object out if nothing refers to it. */
void object_release(struct store *store, uint64_t number);
/* Tells the user about objects that have gone or whose links changed, and frees what the former
 * had: no lock may be held. */
void objects_settle(struct store *store);
/* Carries out what is left to be freed on disk. */
void objects_flush(struct store *store);
/* The user is to be told, by objects_settle(). */
void object_note_change(struct store *store, uint64_t number);
void object_to_info(const struct object *object, struct object_info *out);
/* Takes the count of links to an ID that was not there, when it comes. tree_lock held. */
uint32_t unresolved_take(struct store *store, const struct mob_id *id);
/* Reads "ID ID ..." with any white space; *ids (caller frees) has each only once. -EINVAL. */
MOB_MUST_CHECK errint_t refs_parse(const char *text, size_t bytes, struct mob_id **ids,
                                   size_t *count, struct mob_error *err);
/* Holds each, or none. -EINVAL: one does not exist. */
MOB_MUST_CHECK errint_t refs_hold(struct store *store, const struct mob_id *ids, size_t count,
                                  struct mob_error *err);
void refs_drop(struct store *store, const struct mob_id *ids, size_t count);
/* Gives the file `ids` (held, from malloc()) for those it had, which are dropped. Its lock held. */
void staged_set_refs(struct store *store, struct staged *staged, struct mob_id *ids, size_t count);
void waiters_call(struct waiter *waiters, uint64_t number, enum object_state state);
/* A new one, with its token; NULL = no memory. */
struct waiter *waiter_new(struct store *store, store_waiter *callback, void *argument,
                          uint64_t *token);

/* --- attributes: xattr.c --- */

#define XATTR_REFS "user.mobula.refs"
#define XATTR_OWN "user.mobula."

/* The next attribute of a checked or unchecked list; false: the end, or it is damaged. */
bool xattr_next(const char *list, size_t list_bytes, size_t *offset, const char **name,
                size_t *name_bytes, const char **value, size_t *value_bytes);
/* A copy of a list without mobula's own attributes. NULL with *out_bytes 0: nothing is left. */
MOB_MUST_CHECK errint_t xattr_without_own(const char *list, size_t list_bytes, char **out,
                                          size_t *out_bytes);
MOB_MUST_CHECK errint_t staged_xattrs_load(struct store *store, struct staged *staged);
errint_t staged_content_of(struct staged *staged, size_t limit, char **content, size_t *bytes);

/* --- the store --- */

enum { STORE_READ_ENDS = 256 };

struct store {
    char *state_dir, *memory_dir;
    uint64_t memory_bytes;
    uint32_t inline_bytes;
    uint8_t owner[MOB_ID_OWNER_BYTES];
    bool passthrough;       /* of staged files */
    struct cipher_key *key; /* NULL: nothing is encrypted */
    bool key_is_new;        /* the database doesn't name it yet */
    unsigned spare_target;
    struct mob_clock clock;
    struct store_hooks hooks;
    uint8_t secret[META_SECRET_BYTES];

    int lock_fd, state_fd, memory_fd, data_fd;
    struct trust trust;  /* in what a server before left */
    bool has_spare_meta; /* if LMDB's file is damaged, it can be made anew from the journal */
    bool registered;     /* in the process's list of open stores */
    dev_t state_dev;
    ino_t state_ino;
    struct store *next_open;

    struct meta meta;
    struct journal *journal;
    bool opened; /* store_open() came to its end: what is there is whole */
    pthread_mutex_t names_lock;
    pthread_mutex_t writer;
    atomic_uint_fast64_t next_number, number_limit;

    struct table table;
    atomic_uint_fast64_t next_token;
    atomic_bool collecting;

    pthread_mutex_t tree_lock;
    struct hash_table directories, staged_numbers, staged_names, unresolved;
    struct staged_records records;

    struct spare_files spare, spare_on_disk;
    struct disk_hand disk_makes, disk_removes;
    struct watcher watcher;
    struct disk disk;
    const char *const *forget_spill_dirs; /* during store_open(): as its options have it */
    struct spill spill;
    struct settler settler;
    struct writeback writeback;
    struct grow grow;
    atomic_int memory_files; /* staged files in memory that somebody writes */
    bool memory_is_own;      /* memory_dir is a filesystem of its own: it counts what it holds */

    pthread_mutex_t dead_lock;
    struct staged *staged_gone;
    uint64_t *changed; /* objects whose links changed: the user is told in objects_settle() */
    size_t changed_count, changed_capacity;
    struct dead *dead_new, **dead_new_end; /* the user has not been told */
    struct dead *dead;                     /* still on disk */
    size_t dead_count;
    uint64_t dead_weight; /* how urgently: bytes on disk, or a lot for a data file */
    atomic_bool dead_any; /* one of these lists isn't empty: looked at without the lock */

    atomic_uint_fast64_t read_ends[STORE_READ_ENDS]; /* of encrypted files: objects.c */
    atomic_int_fast64_t memory_used;                 /* bytes of data files */
    atomic_int_fast64_t inline_used, object_bytes;
    atomic_int_fast64_t ready_inline, ready_memory, ready_disk, pending, failed, names, staged;
    atomic_uint_fast64_t commits, freed;
};

void store_write_lock(struct store *store);
static inline void store_write_unlock(struct store *store)
{
    pthread_mutex_unlock(&store->writer);
}
/* names_lock and writer. */
static inline void store_names_lock(struct store *store)
{
    pthread_mutex_lock(&store->names_lock);
    store_write_lock(store);
}
static inline void store_names_unlock(struct store *store)
{
    store_write_unlock(store);
    pthread_mutex_unlock(&store->names_lock);
}
/* As store_new_number(), with writer held and no transaction begun. */
MOB_MUST_CHECK errint_t store_new_number_locked(struct store *store, uint64_t *number);
/* Numbers seen in records stay below the counter even if that was lost. */
static inline uint64_t store_wall_ns(const struct store *store)
{
    return store->clock.wall_ns(store->clock.context);
}
void store_count_object(struct store *store, const struct object *object, int change);

/* --- recover.c --- */

MOB_MUST_CHECK errint_t store_recover(struct store *store, struct mob_error *err);
/* Removes names whose object did not come back. */
void store_drop_unresolved(struct store *store);

/* --- commit.c --- */

/* What a ready object needs in LMDB; `content` or `fd` has the bytes of an inline one. */
struct object_write {
    const struct object *object;
    const struct spill_sum *sums; /* of its file on disk, where they are known */
    const void *content;
    int fd;
    const struct mob_id *refs;
    size_t ref_count;
    const char *xattrs;
    size_t xattrs_bytes;
};
MOB_MUST_CHECK errint_t object_write(struct store *store, MDB_txn *txn,
                                     const struct object_write *write);

#endif
