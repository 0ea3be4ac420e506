/* A journal and LMDB in fresh directories, without a store, for its unit tests. */
#ifndef MOBULA_TESTS_JOURNAL_FIXTURE_H
#define MOBULA_TESTS_JOURNAL_FIXTURE_H

#include "unit.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/journal_internal.h"
#include "core/store/meta.h"

struct life {
    char state_dir[64];
    struct meta meta;
    struct journal *journal;
    struct mob_error err;
    bool damaged;
    uint64_t log_bytes;
};

static pthread_mutex_t writer = PTHREAD_MUTEX_INITIALIZER;
static uint8_t owner[MOB_ID_OWNER_BYTES] = {1, 2, 3, 4, 5, 6, 7, 8};

static inline void make_state_dir(struct life *life)
{
    memset(life, 0, sizeof *life);
    snprintf(life->state_dir, sizeof life->state_dir, "/dev/shm/mobula-journal-XXXXXX");
    assert_non_null(mkdtemp(life->state_dir));
}

static inline int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info, (void)type, (void)walk;
    return remove(path);
}

static inline void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline char *path_in(const struct life *life, const char *name, char out[128])
{
    snprintf(out, 128, "%s/%s", life->state_dir, name);
    return out;
}

static inline char *file_of(const struct life *life, uint64_t base, const char *suffix,
                            char out[128])
{
    snprintf(out, 128, "%s/journal/%016llx.%s", life->state_dir, (unsigned long long)base, suffix);
    return out;
}

static inline bool exists(const struct life *life, uint64_t base, const char *suffix)
{
    char path[128];
    return access(file_of(life, base, suffix, path), F_OK) == 0;
}

/* Opens LMDB and the journal; not yet resumed or replayed. */
static inline void life_open(struct life *life)
{
    char path[128];
    struct journal_options options = {
        .state_dir = life->state_dir, .writer = &writer, .log_bytes = life->log_bytes};
    memcpy(options.owner, owner, sizeof owner);
    mkdir(path_in(life, "meta", path), 0700);
    assert_int_equal(meta_open(&life->meta, path, false, &life->err), 0);
    if (journal_open(&options, &life->journal, &life->err))
        fail_msg("journal_open: %s", life->err.message);
}

static inline void life_end(struct life *life)
{
    journal_close(life->journal);
    meta_close(&life->meta);
    life->journal = NULL;
}

static inline void life_remove(struct life *life)
{
    if (life->journal)
        life_end(life);
    remove_tree(life->state_dir);
}

static inline void life_resume(struct life *life)
{
    life_open(life);
    if (journal_resume(life->journal, meta_last_txn(&life->meta), &life->err))
        fail_msg("journal_resume: %s", life->err.message);
    life->meta.journal = life->journal;
}

static inline void remove_meta(const struct life *life)
{
    char path[128];
    unlink(path_in(life, "meta/data.mdb", path));
    unlink(path_in(life, "meta/lock.mdb", path));
}

/* As after a power cut: LMDB is made anew. */
static inline errint_t life_try_replay(struct life *life)
{
    remove_meta(life);
    life_open(life);
    errint_t error = journal_replay(life->journal, &life->meta, &life->damaged, &life->err);
    if (!error)
        life->meta.journal = life->journal;
    return error;
}

static inline void life_replay(struct life *life)
{
    if (life_try_replay(life))
        fail_msg("journal_replay: %s", life->err.message);
}

static inline void life_start(struct life *life)
{
    assert_int_equal(journal_start(life->journal, &life->meta), 0);
}

static inline errint_t life_sync(struct life *life)
{
    return journal_sync(life->journal, journal_written(life->journal));
}

/* Makes a snapshot, and returns when it is done. */
static inline void life_snapshot(struct life *life)
{
    struct journal *journal = life->journal;
    pthread_mutex_lock(&journal->lock);
    uint64_t until = journal->attempts + 1 + journal->attempting;
    journal->wanted = journal->urgent = true;
    pthread_cond_broadcast(&journal->changed);
    while (journal->attempts < until)
        pthread_cond_wait(&journal->changed, &journal->lock);
    pthread_mutex_unlock(&journal->lock);
}

/* A new state directory, resumed, with its first snapshot. */
static inline void life_begin(struct life *life)
{
    make_state_dir(life);
    life_resume(life);
    life_start(life);
    pthread_mutex_lock(&life->journal->lock);
    while (!life->journal->attempts)
        pthread_cond_wait(&life->journal->changed, &life->journal->lock);
    pthread_mutex_unlock(&life->journal->lock);
}

/* One transaction that sets a key to a value and counts. */
static inline errint_t put_one(struct life *life, const char *key, const void *value, size_t bytes)
{
    MDB_txn *txn;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&writer);
    errint_t error = meta_begin(&life->meta, bytes + 1024, &txn);
    if (error)
        return error;
    error = meta_put(&life->meta, txn, META_STATE, key, strlen(key), value, bytes);
    return meta_end(txn, error);
}

static inline void put_number(struct life *life, const char *key, uint64_t value)
{
    assert_int_equal(put_one(life, key, &value, sizeof value), 0);
}

/* 0: it isn't there. */
static inline uint64_t get_number(struct life *life, const char *key)
{
    struct meta_reader *reader;
    const void *value;
    size_t bytes;
    uint64_t number = 0;
    assert_int_equal(meta_read_begin(&life->meta, &reader), 0);
    if (meta_get(&life->meta, reader->txn, META_STATE, key, strlen(key), &value, &bytes) == 0) {
        assert_int_equal(bytes, sizeof number);
        memcpy(&number, value, sizeof number);
    }
    meta_read_end(reader);
    return number;
}

/* Of all tables. */
static inline uint64_t sum_of_tables(struct life *life)
{
    MDB_txn *txn;
    MDB_val key, value;
    uint64_t sum = 0;
    assert_int_equal(mdb_txn_begin(life->meta.env, NULL, MDB_RDONLY, &txn), 0);
    for (unsigned table = 0; table < META_TABLE_COUNT; table++) {
        MDB_cursor *cursor;
        assert_int_equal(mdb_cursor_open(txn, life->meta.tables[table], &cursor), 0);
        while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
            sum = XXH3_64bits_withSeed(key.mv_data, key.mv_size, sum + table + 1);
            sum = XXH3_64bits_withSeed(value.mv_data, value.mv_size, sum);
        }
        mdb_cursor_close(cursor);
    }
    mdb_txn_abort(txn);
    return sum;
}

static inline char *read_whole(const char *path, size_t *bytes)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &info) == 0);
    *bytes = (size_t)info.st_size;
    char *content = calloc(1, *bytes + 1);
    assert_true(content && mob_pread_full(fd, content, *bytes, 0) == (ssize_t)*bytes);
    close(fd);
    return content;
}

static inline void write_whole(const char *path, const void *content, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(mob_pwrite_full(fd, content, bytes, 0), 0);
    close(fd);
}

#endif
