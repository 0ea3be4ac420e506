/* The LMDB environment of a store and its records.
 *
 * Tables (keys big-endian, so that they sort as numbers):
 *   state     text            what the store is: version, owner, secret, number counter, spill dirs
 *   objects   number          struct object_record, followed by the content of very small objects
 *   inline    number          content of the other inline objects
 *   names     directory, key  struct name_record, then the name
 *   symlinks  number          text of a plain symbolic link
 *   refs      number          IDs that an object holds
 *   xattrs    number          attributes of an object or of a staged file
 *   sums      number          SHA-256 of an object
 *   blocks    data file       checksums of an object's blocks on disk: struct blocks_header, sums
 *   synced    staged file       what fsync(2) has made durable of one that is still written: synced.c
 *   jobs, job_data            belong to the user of the store
 *
 * Every value ends with a checksum: XXH3-64 of the value, seeded with its table and key, so that a
 * flipped bit, or a value that is found under another key, does not pass for data. meta_put() adds
 * it, meta_get() checks it and takes it off; what writes into reserved room calls meta_seal(), what
 * reads with a cursor meta_unseal(). In `objects` it is the checksum of the record alone, which has
 * one of the content: damaged content must not cost the object.
 *
 * Whatever is read is then checked by the one decode function of its kind before anything else sees
 * it.
 *
 * One write transaction at a time, begun with the store's write lock held. Read transactions are
 * pooled: a renewed one costs well under a microsecond. */
#ifndef MOBULA_CORE_STORE_META_H
#define MOBULA_CORE_STORE_META_H

#include <lmdb.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "core/store/names.h"

enum meta_table {
    META_STATE,
    META_OBJECTS,
    META_INLINE,
    META_NAMES,
    META_SYMLINKS,
    META_REFS,
    META_XATTRS,
    META_SUMS,
    META_JOBS,
    META_JOB_DATA,
    META_BLOCKS,
    META_SYNCED,
    META_TABLE_COUNT
};

enum { META_READERS = 96, META_SECRET_BYTES = 192 };

struct journal;

struct meta_reader {
    atomic_bool busy;
    MDB_txn *txn;
    MDB_cursor *names;
};

struct meta {
    MDB_env *env;
    MDB_dbi tables[META_TABLE_COUNT];
    struct meta_reader readers[META_READERS];
    bool map_writes;
    int data_fd; /* of data.mdb */
    uint64_t page_bytes;
    atomic_uint_fast64_t allocated_bytes; /* of data.mdb are sure to be there */
    struct journal *journal;              /* what every transaction goes to as well; NULL: none */
};

/* Opens or makes the environment in the directory `path`. */
MOB_MUST_CHECK errint_t meta_open(struct meta *meta, const char *path, bool map_writes,
                                  struct mob_error *err);
void meta_close(struct meta *meta);

/* The number of the last transaction that was committed. */
uint64_t meta_last_txn(struct meta *meta);
/* So many bytes of data.mdb are in use. */
uint64_t meta_used_bytes(struct meta *meta);

/* LMDB's code as a negative errno. Damage and unexpected codes become -EIO and are logged with
 * `what`. */
errint_t meta_error(int code, const char *what);
const char *meta_table_name(enum meta_table table);
/* What makes the database useless was found to be damaged. LMDB's own errors note it, too. */
void meta_note_damage(void);
/* Whether that has been noted since the last call. */
bool meta_take_damage_seen(void);

/* Begins the write transaction; the store's write lock is held. `new_bytes`: how much it will put
 * at most, 0 if it only removes. */
MOB_MUST_CHECK errint_t meta_begin(struct meta *meta, uint64_t new_bytes, MDB_txn **txn);
/* Whether a transaction that puts `new_bytes` would find room. Any thread; a guess, for an early
 * answer. */
bool meta_has_room(struct meta *meta, uint64_t new_bytes);
/* Commits, or aborts on failure: either way the transaction is gone. */
MOB_MUST_CHECK errint_t meta_commit(MDB_txn *txn);
/* What every change ends with: commits if nothing failed so far (`error` is 0), else aborts and
 * returns `error`. */
MOB_MUST_CHECK errint_t meta_end(MDB_txn *txn, errint_t error);

MOB_MUST_CHECK errint_t meta_read_begin(struct meta *meta, struct meta_reader **reader);
void meta_read_end(struct meta_reader *reader);

MOB_MUST_CHECK errint_t meta_put(struct meta *meta, MDB_txn *txn, enum meta_table table,
                                 const void *key, size_t key_bytes, const void *value,
                                 size_t value_bytes);
/* Makes room for a value and gives the place to write it; valid until the next change in `txn`,
 * before which meta_seal() must be called. */
MOB_MUST_CHECK errint_t meta_reserve(struct meta *meta, MDB_txn *txn, enum meta_table table,
                                     uint64_t number, size_t value_bytes, void **place);
/* All `value_bytes` at a reserved place are written: adds the checksum. */
void meta_seal(enum meta_table table, uint64_t number, void *place, size_t value_bytes);
/* Takes the checksum off a value that a cursor gave. False (and logged): this value was not put
 * under this key; *value has not changed. */
MOB_MUST_CHECK bool meta_unseal(enum meta_table table, const MDB_val *key, MDB_val *value);
/* -ENOENT (not logged) where there is none, -EIO (logged) where it is damaged. */
MOB_MUST_CHECK errint_t meta_get(struct meta *meta, MDB_txn *txn, enum meta_table table,
                                 const void *key, size_t key_bytes, const void **value,
                                 size_t *value_bytes);
/* 0 as well if there was none. */
MOB_MUST_CHECK errint_t meta_delete(struct meta *meta, MDB_txn *txn, enum meta_table table,
                                    const void *key, size_t key_bytes);
MOB_MUST_CHECK errint_t meta_put_number(struct meta *meta, MDB_txn *txn, enum meta_table table,
                                        uint64_t number, const void *value, size_t value_bytes);
MOB_MUST_CHECK errint_t meta_get_number(struct meta *meta, MDB_txn *txn, enum meta_table table,
                                        uint64_t number, const void **value, size_t *value_bytes);
MOB_MUST_CHECK errint_t meta_delete_number(struct meta *meta, MDB_txn *txn, enum meta_table table,
                                           uint64_t number);

/* --- objects --- */

enum {
    RECORD_HAS_REFS = 1,
    RECORD_HAS_XATTRS = 2,
    RECORD_EMBEDDED = 4,
    RECORD_ON_DISK = 8,
    RECORD_ENCRYPTED = 16, /* the copy on disk is, or the inline content */
};
/* Inline objects up to this size share the page of their record: one B-tree less to change. */
#define META_EMBEDDED_BYTES 1536u

enum { OBJECT_RECORD_VERSION = 2 };

struct object_record {
    uint8_t version, tier, flags, zero;
    uint32_t mode;
    uint8_t id[MOB_ID_BYTES];
    uint32_t uid, gid, zero2;
    uint64_t size, mtime_ns, file;
    uint64_t content_sum; /* of embedded content, else 0 */
};

uint64_t object_content_sum(const void *content, size_t bytes);

/* False (and logged) for a record that is not well-formed. *content: the embedded content, which
 * may be damaged (see content_sum), or NULL. */
bool object_record_decode(const MDB_val *key, const MDB_val *value, uint64_t *number,
                          struct object_record *record, const void **content);

/* --- blocks --- */

struct blocks_header {
    uint32_t version, block_bytes;
    uint64_t size; /* of the object */
};
struct spill_sum;
/* Notes the checksums of an object's file on disk. */
MOB_MUST_CHECK errint_t blocks_put(struct meta *meta, MDB_txn *txn, uint64_t file, uint64_t size,
                                   const struct spill_sum *sums);
/* The checksums of an object of `size` bytes; false (and logged) if `value` is not that. */
bool blocks_decode(uint64_t file, uint64_t size, const void *value, size_t value_bytes,
                   const struct spill_sum **sums);

/* --- names --- */

struct name_key {
    uint8_t parent[8], key[8];
};
/* Keys are 61 bits of a hash, plus a little for names whose hashes are the same. */
enum { NAME_HASH_BITS = 61, NAME_PROBES = 4 };

struct name_record {
    enum name_type type; /* never NAME_STAGED */
    mode_t mode;
    uid_t uid;
    gid_t gid;
    uint64_t number;
    uint64_t mtime_ns;
    uint64_t set_ns; /* directories: when mtime_ns was set by hand, else 0 */
    uint64_t staged; /* the staged file it has come from, or 0 */
    struct mob_id target;
    const char *name;
    size_t name_bytes;
};

struct name_key name_key_make(uint64_t parent, uint64_t key);
MOB_MUST_CHECK errint_t name_record_put(struct meta *meta, MDB_txn *txn, uint64_t parent,
                                        uint64_t key, const struct name_record *record);
/* `record` points into the transaction's memory. */
bool name_record_decode(const MDB_val *key, const MDB_val *value, uint64_t *parent,
                        uint64_t *position, struct name_record *record);

/* --- lists of IDs --- */

/* False (and logged) if `value` isn't a list of whole IDs. */
bool refs_decode(uint64_t number, const void *value, size_t value_bytes, const struct mob_id **ids,
                 size_t *count);

static inline uint64_t meta_load_be(const uint8_t bytes[8])
{
    uint64_t value;
    __builtin_memcpy(&value, bytes, 8);
    return __builtin_bswap64(value);
}
static inline void meta_store_be(uint8_t bytes[8], uint64_t value)
{
    value = __builtin_bswap64(value);
    __builtin_memcpy(bytes, &value, 8);
}

#endif
