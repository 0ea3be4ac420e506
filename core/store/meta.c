/* The LMDB environment: opening, transactions, and access by key. */
#include "core/store/meta.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/journal.h"

static const char *const table_names[META_TABLE_COUNT] = {
    "state",  "objects", "inline", "names",    "symlinks", "refs",
    "xattrs", "sums",    "jobs",   "job_data", "blocks",   "synced",
};

const char *meta_table_name(enum meta_table table)
{
    return table_names[table];
}

static atomic_bool damage_seen;

void meta_note_damage(void)
{
    atomic_store(&damage_seen, true);
}

bool meta_take_damage_seen(void)
{
    return atomic_exchange(&damage_seen, false);
}

errint_t meta_error(int code, const char *what)
{
    switch (code) {
    case 0:
        return 0;
    case MDB_NOTFOUND:
        return -ENOENT;
    case MDB_MAP_FULL:
    case MDB_TXN_FULL:
    case ENOSPC:
    case EDQUOT:
        return -ENOSPC;
    case ENOMEM:
        return -ENOMEM;
    default:
        if (code < 0) /* LMDB's own */
            meta_note_damage();
        mob_log_error("store: %s: %s", what, mdb_strerror(code));
        return -EIO;
    }
}

/* 64 GiB of addresses cost nothing, but a limit on them (ulimit -v, valgrind) may leave less. */
static int open_env(struct meta *meta, const char *path)
{
    static const size_t sizes[] = {(size_t)64 << 30, (size_t)16 << 30, (size_t)4 << 30,
                                   (size_t)1 << 30};
    /* Reading ahead at a fault would clear pages that are about to be written. */
    unsigned flags = MDB_NOSYNC | MDB_NOTLS | (meta->map_writes ? MDB_WRITEMAP | MDB_NORDAHEAD : 0);
    int code = ENOMEM;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes) && code == ENOMEM; i++) {
        code = mdb_env_create(&meta->env);
        if (code)
            return code;
        mdb_env_set_userctx(meta->env, meta);
        code = mdb_env_set_mapsize(meta->env, sizes[i]);
        if (!code)
            code = mdb_env_set_maxdbs(meta->env, META_TABLE_COUNT + 4);
        if (!code)
            code = mdb_env_set_maxreaders(meta->env, 256);
        if (!code)
            code = mdb_env_open(meta->env, path, flags, 0600);
        if (code) {
            mdb_env_close(meta->env);
            meta->env = NULL;
        }
    }
    return code;
}

static int open_tables_in(struct meta *meta, unsigned txn_flags, unsigned table_flags)
{
    MDB_txn *txn;
    int code = mdb_txn_begin(meta->env, NULL, txn_flags, &txn);
    if (code)
        return code;
    for (int i = 0; i < META_TABLE_COUNT && !code; i++)
        code = mdb_dbi_open(txn, table_names[i], table_flags, &meta->tables[i]);
    if (code) {
        mdb_txn_abort(txn);
        return code;
    }
    return mdb_txn_commit(txn);
}

/* Writes only if there is something to make: the journal knows every other transaction. */
static int open_tables(struct meta *meta)
{
    int code = open_tables_in(meta, MDB_RDONLY, 0);
    return code == MDB_NOTFOUND ? open_tables_in(meta, 0, MDB_CREATE) : code;
}

/* --- room on the disk ---
 *
 * The blocks behind every page that a transaction may add are allocated before it begins. With
 * MDB_WRITEMAP, LMDB stores into mapped pages, and one that the disk has no room for would be
 * SIGBUS; without it, a commit would fail half-way, as an I/O error, and so would every removal
 * that could have made room. All pages up to last_pgno have their blocks.
 *
 * A transaction copies the pages on the paths to what it changes: some dozens. What only removes
 * may use the last of the reserve. What adds may use more of it only if there are free pages inside
 * the file, which LMDB takes first. */
enum {
    STEP_BYTES = 16 << 20,
    ADD_RESERVE_BYTES = 3 << 20,
    REUSE_RESERVE_BYTES = 2 << 20,
    REMOVE_RESERVE_BYTES = 1 << 20,
};

static errint_t allocate_to(struct meta *meta, uint64_t bytes, uint64_t limit_bytes)
{
    if (bytes > limit_bytes)
        return -ENOSPC;
    if (fallocate(meta->data_fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) == 0) {
        meta->allocated_bytes = bytes;
        return 0;
    }
    if (errno == EOPNOTSUPP && !meta->map_writes) {
        meta->allocated_bytes = UINT64_MAX; /* the filesystem can't promise anything */
        return 0;
    }
    return errno == ENOSPC || errno == EDQUOT ? -ENOSPC : meta_error(errno, "fallocate");
}

/* Bytes of pages inside the file that LMDB can use again. Its list of them is table 0: by
 * transaction, a count followed by so many page numbers. */
static uint64_t free_bytes(struct meta *meta)
{
    struct meta_reader *reader;
    MDB_cursor *cursor;
    MDB_val key, value;
    uint64_t pages = 0;
    if (meta_read_begin(meta, &reader))
        return 0;
    if (mdb_cursor_open(reader->txn, 0, &cursor) == 0) {
        while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0)
            if (value.mv_size >= sizeof(size_t))
                pages += *(const size_t *)value.mv_data;
        mdb_cursor_close(cursor);
    }
    meta_read_end(reader);
    return pages * meta->page_bytes;
}

static errint_t allocate_ahead(struct meta *meta, uint64_t new_bytes)
{
    MDB_envinfo info;
    int code = mdb_env_info(meta->env, &info);
    if (code)
        return meta_error(code, "env_info");
    uint64_t used = ((uint64_t)info.me_last_pgno + 1) * meta->page_bytes;
    uint64_t add = new_bytes + new_bytes / 4;
    uint64_t need = used + add + (new_bytes ? ADD_RESERVE_BYTES : REMOVE_RESERVE_BYTES);
    if (need <= meta->allocated_bytes)
        return 0;
    errint_t error = allocate_to(meta, (need / STEP_BYTES + 1) * STEP_BYTES, info.me_mapsize);
    if (error == -ENOSPC)
        error = allocate_to(meta, need, info.me_mapsize);
    if (error == -ENOSPC && used + add + REUSE_RESERVE_BYTES <= meta->allocated_bytes &&
        free_bytes(meta) >= 2 * add + ADD_RESERVE_BYTES)
        error = 0;
    return error;
}

bool meta_has_room(struct meta *meta, uint64_t new_bytes)
{
    MDB_envinfo info;
    struct statvfs disk;
    if (mdb_env_info(meta->env, &info))
        return true; /* the commit will tell */
    uint64_t used = ((uint64_t)info.me_last_pgno + 1) * meta->page_bytes;
    uint64_t add = new_bytes + new_bytes / 4, need = used + add + ADD_RESERVE_BYTES;
    uint64_t allocated = atomic_load(&meta->allocated_bytes);
    if (need <= allocated)
        return true;
    if (fstatvfs(meta->data_fd, &disk) == 0 && disk.f_bavail * disk.f_frsize > need - allocated)
        return true;
    return used + add + REUSE_RESERVE_BYTES <= allocated &&
           free_bytes(meta) >= 2 * add + ADD_RESERVE_BYTES;
}

/* What the disk holds for the file when it is opened, less what the filesystem itself needs for it.
 */
static uint64_t allocated_now(int fd)
{
    const uint64_t slack = UINT64_C(1) << 16;
    struct stat info;
    if (fstat(fd, &info) < 0 || (uint64_t)info.st_blocks * 512 < slack)
        return 0;
    return (uint64_t)info.st_blocks * 512 - slack;
}

/* A short write is an I/O error to LMDB, whatever the reason. */
static bool disk_is_full(int fd)
{
    struct statvfs info;
    return fstatvfs(fd, &info) == 0 && info.f_bavail < 64;
}

errint_t meta_begin(struct meta *meta, uint64_t new_bytes, MDB_txn **txn)
{
    errint_t error = allocate_ahead(meta, new_bytes);
    if (!error && meta->journal)
        error = journal_begin(meta->journal, new_bytes);
    return error ? error : meta_error(mdb_txn_begin(meta->env, NULL, 0, txn), "begin");
}

/* The journal has it first: what LMDB then hasn't, when the server is killed in between, is cut off
 * at the next start. */
errint_t meta_commit(MDB_txn *txn)
{
    struct meta *meta = mdb_env_get_userctx(mdb_txn_env(txn));
    errint_t error = meta->journal ? journal_append(meta->journal, mdb_txn_id(txn)) : 0;
    if (error) {
        mdb_txn_abort(txn);
        return error;
    }
    int code = mdb_txn_commit(txn);
    if (code && meta->journal)
        journal_take_back(meta->journal);
    return meta_error(code == EIO && disk_is_full(meta->data_fd) ? ENOSPC : code, "commit");
}

errint_t meta_end(MDB_txn *txn, errint_t error)
{
    if (!error)
        return meta_commit(txn);
    mdb_txn_abort(txn);
    return error;
}

/* --- opening --- */

static errint_t read_sizes(struct meta *meta)
{
    MDB_stat stat;
    int code = mdb_env_get_fd(meta->env, &meta->data_fd);
    if (!code)
        code = mdb_env_stat(meta->env, &stat);
    if (code)
        return meta_error(code, "stat");
    meta->page_bytes = stat.ms_psize;
    meta->allocated_bytes = allocated_now(meta->data_fd);
    return 0;
}

errint_t meta_open(struct meta *meta, const char *path, bool map_writes, struct mob_error *err)
{
    memset(meta, 0, sizeof *meta);
    meta->map_writes = map_writes;
    meta->data_fd = -1;
    int code = open_env(meta, path);
    int dead = 0;
    if (!code)
        code = mdb_reader_check(meta->env, &dead);
    if (!code && dead)
        mob_log_info("store: cleared %d readers that a dead server left", dead);
    errint_t error = meta_error(code, path);
    if (!error)
        error = read_sizes(meta);
    if (!error)
        error = allocate_ahead(meta, 0);
    if (!error)
        error = meta_error(open_tables(meta), path);
    if (!error)
        return 0;
    meta_close(meta);
    return mob_error_set(err, error, "can't open the metadata in %s: %s", path,
                         code ? mdb_strerror(code) : strerror(-error));
}

uint64_t meta_last_txn(struct meta *meta)
{
    MDB_envinfo info;
    return mdb_env_info(meta->env, &info) ? 0 : info.me_last_txnid;
}

uint64_t meta_used_bytes(struct meta *meta)
{
    MDB_envinfo info;
    return mdb_env_info(meta->env, &info) ? 0
                                          : ((uint64_t)info.me_last_pgno + 1) * meta->page_bytes;
}

void meta_close(struct meta *meta)
{
    for (int i = 0; i < META_READERS; i++) {
        struct meta_reader *reader = &meta->readers[i];
        if (reader->names)
            mdb_cursor_close(reader->names);
        if (reader->txn)
            mdb_txn_abort(reader->txn);
        reader->names = NULL;
        reader->txn = NULL;
    }
    if (meta->env)
        mdb_env_close(meta->env);
    meta->env = NULL;
}

static int reader_renew(struct meta *meta, struct meta_reader *reader)
{
    int code;
    if (reader->txn)
        code = mdb_txn_renew(reader->txn);
    else
        code = mdb_txn_begin(meta->env, NULL, MDB_RDONLY, &reader->txn);
    if (code)
        return code;
    if (reader->names)
        code = mdb_cursor_renew(reader->txn, reader->names);
    else
        code = mdb_cursor_open(reader->txn, meta->tables[META_NAMES], &reader->names);
    if (code)
        mdb_txn_reset(reader->txn);
    return code;
}

errint_t meta_read_begin(struct meta *meta, struct meta_reader **out)
{
    static _Thread_local unsigned last;
    for (unsigned tries = 0;; tries++) {
        unsigned i = (last + tries) % META_READERS;
        struct meta_reader *reader = &meta->readers[i];
        bool free = false;
        if (!atomic_compare_exchange_strong_explicit(&reader->busy, &free, true,
                                                     memory_order_acquire, memory_order_relaxed)) {
            if (tries % META_READERS == META_READERS - 1)
                sched_yield();
            continue;
        }
        last = i;
        int code = reader_renew(meta, reader);
        if (code) {
            atomic_store_explicit(&reader->busy, false, memory_order_release);
            return meta_error(code, "read");
        }
        *out = reader;
        return 0;
    }
}

void meta_read_end(struct meta_reader *reader)
{
    mdb_txn_reset(reader->txn);
    atomic_store_explicit(&reader->busy, false, memory_order_release);
}

/* --- values and their checksums --- */

/* LMDB's pages come one by one, each when it is touched. A value of several that isn't in memory is
 * fetched at once, and its neighbours with it: what was put together is often read together. */
static void read_ahead(const MDB_val *value)
{
    enum { PAGE_BYTES = 4096, AHEAD_BYTES = 256 << 10 };
    unsigned char there = 1;
    if (value->mv_size <= PAGE_BYTES)
        return;
    uintptr_t first = (uintptr_t)value->mv_data & ~(uintptr_t)(PAGE_BYTES - 1);
    if (mincore((void *)first, 1, &there) || there & 1)
        return;
    uintptr_t from = first & ~(uintptr_t)(AHEAD_BYTES - 1);
    (void)madvise((void *)from, AHEAD_BYTES, MADV_WILLNEED);
}

enum { SUM_BYTES = sizeof(uint64_t) };

static uint64_t value_sum(enum meta_table table, const MDB_val *key, const void *value,
                          size_t bytes)
{
    if (table == META_OBJECTS && bytes > sizeof(struct object_record))
        bytes = sizeof(struct object_record);
    uint64_t seed = XXH3_64bits_withSeed(key->mv_data, key->mv_size, (uint64_t)table + 1);
    return XXH3_64bits_withSeed(value, bytes, seed);
}

static void seal(enum meta_table table, const MDB_val *key, void *place, size_t value_bytes)
{
    uint64_t sum = value_sum(table, key, place, value_bytes);
    memcpy((char *)place + value_bytes, &sum, sizeof sum);
}

void meta_seal(enum meta_table table, uint64_t number, void *place, size_t value_bytes)
{
    uint8_t bytes[8];
    meta_store_be(bytes, number);
    seal(table, &(MDB_val){sizeof bytes, bytes}, place, value_bytes);
}

static void log_damage(enum meta_table table, const MDB_val *key)
{
    const char *name = table_names[table];
    if (key->mv_size == 8 && table != META_STATE)
        mob_log_error("store: %s: the value of %llu is damaged", name,
                      (unsigned long long)meta_load_be(key->mv_data));
    else if (table == META_NAMES && key->mv_size == sizeof(struct name_key))
        mob_log_error("store: names: a name in directory %llu is damaged (key %llx)",
                      (unsigned long long)meta_load_be(key->mv_data),
                      (unsigned long long)meta_load_be((const uint8_t *)key->mv_data + 8));
    else
        mob_log_error("store: %s: a value is damaged", name);
}

bool meta_unseal(enum meta_table table, const MDB_val *key, MDB_val *value)
{
    uint64_t sum;
    size_t bytes = value->mv_size - SUM_BYTES;
    if (value->mv_size >= SUM_BYTES) {
        read_ahead(value);
        memcpy(&sum, (const char *)value->mv_data + bytes, sizeof sum);
        if (sum == value_sum(table, key, value->mv_data, bytes)) {
            value->mv_size = bytes;
            return true;
        }
    }
    log_damage(table, key);
    return false;
}

errint_t meta_put(struct meta *meta, MDB_txn *txn, enum meta_table table, const void *key,
                  size_t key_bytes, const void *value, size_t value_bytes)
{
    MDB_val k = {key_bytes, (void *)key}, v = {value_bytes + SUM_BYTES, NULL};
    if (meta->journal) {
        journal_fill(meta->journal);
        errint_t error = journal_put(meta->journal, table, key, key_bytes, value, value_bytes);
        if (error)
            return error;
    }
    int code = mdb_put(txn, meta->tables[table], &k, &v, MDB_RESERVE);
    if (code)
        return meta_error(code, "put");
    if (value_bytes)
        memcpy(v.mv_data, value, value_bytes);
    seal(table, &k, v.mv_data, value_bytes);
    return 0;
}

errint_t meta_reserve(struct meta *meta, MDB_txn *txn, enum meta_table table, uint64_t number,
                      size_t value_bytes, void **place)
{
    uint8_t bytes[8];
    meta_store_be(bytes, number);
    MDB_val k = {sizeof bytes, bytes}, v = {value_bytes + SUM_BYTES, NULL};
    if (meta->journal)
        journal_fill(meta->journal);
    /* Numbers mostly ascend; told so, LMDB fills its pages instead of leaving them half empty. */
    int code = mdb_put(txn, meta->tables[table], &k, &v, MDB_RESERVE | MDB_APPEND);
    if (code == MDB_KEYEXIST) {
        v.mv_size = value_bytes + SUM_BYTES;
        code = mdb_put(txn, meta->tables[table], &k, &v, MDB_RESERVE);
    }
    *place = v.mv_data;
    errint_t error = meta_error(code, "put");
    if (!error && meta->journal)
        error = journal_put_later(meta->journal, table, bytes, sizeof bytes, *place, value_bytes);
    return error;
}

errint_t meta_get(struct meta *meta, MDB_txn *txn, enum meta_table table, const void *key,
                  size_t key_bytes, const void **value, size_t *value_bytes)
{
    MDB_val k = {key_bytes, (void *)key}, v;
    int code = mdb_get(txn, meta->tables[table], &k, &v);
    if (code)
        return meta_error(code, "get");
    if (!meta_unseal(table, &k, &v))
        return -EIO;
    *value = v.mv_data;
    *value_bytes = v.mv_size;
    return 0;
}

errint_t meta_delete(struct meta *meta, MDB_txn *txn, enum meta_table table, const void *key,
                     size_t key_bytes)
{
    MDB_val k = {key_bytes, (void *)key};
    if (meta->journal)
        journal_fill(meta->journal);
    int code = mdb_del(txn, meta->tables[table], &k, NULL);
    if (code == MDB_NOTFOUND)
        return 0;
    errint_t error = meta_error(code, "delete");
    if (!error && meta->journal)
        error = journal_delete(meta->journal, table, key, key_bytes);
    return error;
}

errint_t meta_put_number(struct meta *meta, MDB_txn *txn, enum meta_table table, uint64_t number,
                         const void *value, size_t value_bytes)
{
    uint8_t key[8];
    meta_store_be(key, number);
    return meta_put(meta, txn, table, key, sizeof key, value, value_bytes);
}

errint_t meta_get_number(struct meta *meta, MDB_txn *txn, enum meta_table table, uint64_t number,
                         const void **value, size_t *value_bytes)
{
    uint8_t key[8];
    meta_store_be(key, number);
    return meta_get(meta, txn, table, key, sizeof key, value, value_bytes);
}

errint_t meta_delete_number(struct meta *meta, MDB_txn *txn, enum meta_table table, uint64_t number)
{
    uint8_t key[8];
    meta_store_be(key, number);
    return meta_delete(meta, txn, table, key, sizeof key);
}
