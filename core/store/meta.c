/* The LMDB environment: opening, transactions, and access by key. */
#include "core/store/meta.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/log.h"
#include "core/base/util.h"

static const char *const table_names[META_TABLE_COUNT] = {
    "state", "objects", "inline", "names", "symlinks", "refs", "xattrs", "sums", "jobs", "job_data",
};

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
        mob_log_error("store: %s: %s", what, mdb_strerror(code));
        return -EIO;
    }
}

/* 64 GiB of addresses cost nothing, but a limit on them (ulimit -v, valgrind) may leave less. */
static int open_env(struct meta *meta, const char *path)
{
    static const size_t sizes[] = {(size_t)64 << 30, (size_t)16 << 30, (size_t)4 << 30,
                                   (size_t)1 << 30};
    unsigned flags = MDB_NOSYNC | MDB_NOTLS | (meta->map_writes ? MDB_WRITEMAP : 0);
    int code = ENOMEM;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes) && code == ENOMEM; i++) {
        code = mdb_env_create(&meta->env);
        if (code)
            return code;
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

static int open_tables(struct meta *meta)
{
    MDB_txn *txn;
    int code = mdb_txn_begin(meta->env, NULL, 0, &txn);
    if (code)
        return code;
    for (int i = 0; i < META_TABLE_COUNT && !code; i++)
        code = mdb_dbi_open(txn, table_names[i], MDB_CREATE, &meta->tables[i]);
    if (code) {
        mdb_txn_abort(txn);
        return code;
    }
    return mdb_txn_commit(txn);
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
    if (!code && map_writes)
        code = mdb_env_get_fd(meta->env, &meta->data_fd);
    MDB_stat stat;
    if (!code)
        code = mdb_env_stat(meta->env, &stat);
    if (!code)
        meta->page_bytes = stat.ms_psize;
    if (!code)
        code = open_tables(meta);
    if (!code)
        return 0;
    meta_close(meta);
    return mob_error_set(err, meta_error(code, path), "can't open the metadata in %s: %s", path,
                         mdb_strerror(code));
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

/* With MDB_WRITEMAP, LMDB stores into mapped pages, and one that the disk has no room for would be
 * SIGBUS. So the blocks behind every page a transaction may add are allocated before it begins,
 * where a full disk is an error like any other. A transaction adds at most the largest inline
 * value, a batch's, and the changed pages of some paths; batches reserve for themselves by their
 * size. */
static errint_t allocate_ahead(struct meta *meta)
{
    const uint64_t step = UINT64_C(64) << 20, margin = UINT64_C(32) << 20;
    MDB_envinfo info;
    int code = mdb_env_info(meta->env, &info);
    if (code)
        return meta_error(code, "env_info");
    uint64_t used = ((uint64_t)info.me_last_pgno + 1) * meta->page_bytes;
    if (used + margin <= meta->allocated_bytes)
        return 0;
    uint64_t want = (used + margin + step - 1) / step * step;
    if (want > info.me_mapsize)
        want = info.me_mapsize;
    if (want < used + (margin >> 1))
        return -ENOSPC;
    if (fallocate(meta->data_fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)want) < 0)
        return errno == ENOSPC || errno == EDQUOT ? -ENOSPC : -EIO;
    meta->allocated_bytes = want;
    return 0;
}

errint_t meta_begin(struct meta *meta, MDB_txn **txn)
{
    errint_t error = meta->map_writes ? allocate_ahead(meta) : 0;
    if (error)
        return error;
    return meta_error(mdb_txn_begin(meta->env, NULL, 0, txn), "begin");
}

errint_t meta_commit(MDB_txn *txn)
{
    return meta_error(mdb_txn_commit(txn), "commit");
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

errint_t meta_put(struct meta *meta, MDB_txn *txn, enum meta_table table, const void *key,
                  size_t key_bytes, const void *value, size_t value_bytes)
{
    MDB_val k = {key_bytes, (void *)key}, v = {value_bytes, (void *)value};
    return meta_error(mdb_put(txn, meta->tables[table], &k, &v, 0), "put");
}

errint_t meta_reserve(struct meta *meta, MDB_txn *txn, enum meta_table table, uint64_t number,
                      size_t value_bytes, void **place)
{
    uint8_t bytes[8];
    meta_store_be(bytes, number);
    MDB_val k = {sizeof bytes, bytes}, v = {value_bytes, NULL};
    /* Numbers mostly ascend; told so, LMDB fills its pages instead of leaving them half empty. */
    int code = mdb_put(txn, meta->tables[table], &k, &v, MDB_RESERVE | MDB_APPEND);
    if (code == MDB_KEYEXIST) {
        v.mv_size = value_bytes;
        code = mdb_put(txn, meta->tables[table], &k, &v, MDB_RESERVE);
    }
    *place = v.mv_data;
    return meta_error(code, "put");
}

errint_t meta_get(struct meta *meta, MDB_txn *txn, enum meta_table table, const void *key,
                  size_t key_bytes, const void **value, size_t *value_bytes)
{
    MDB_val k = {key_bytes, (void *)key}, v;
    int code = mdb_get(txn, meta->tables[table], &k, &v);
    if (code)
        return meta_error(code, "get");
    *value = v.mv_data;
    *value_bytes = v.mv_size;
    return 0;
}

errint_t meta_delete(struct meta *meta, MDB_txn *txn, enum meta_table table, const void *key,
                     size_t key_bytes)
{
    MDB_val k = {key_bytes, (void *)key};
    int code = mdb_del(txn, meta->tables[table], &k, NULL);
    return code == MDB_NOTFOUND ? 0 : meta_error(code, "delete");
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
