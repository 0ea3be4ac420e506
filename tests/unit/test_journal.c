/* core/store/journal: what it says is durable is there when the tables are made anew, whatever
 * happened to the files; and where a call fails, nobody is told that it didn't. */
#include "journal_fixture.h"
#include "log_fixture.h"

#include <stdatomic.h>

/* --- what is injected: -Wl,--wrap=... --- */

static atomic_int sync_error, syncs, sync_delay_us; /* of fdatasync and fsync */
static atomic_int fail_once;                        /* the next sync only */
static atomic_int write_error, truncate_error, allocate_error, rename_error;
static atomic_size_t write_at_most;   /* of one call */
static atomic_int bad_sector_at = -1; /* can't be read */
static atomic_bool hold_renames;      /* until it is false */

static int fails(atomic_int *injected)
{
    int error = atomic_load(injected);
    errno = error;
    return error ? -1 : 0;
}

static int sync_step(void)
{
    int once = atomic_exchange(&fail_once, 0);
    atomic_fetch_add(&syncs, 1);
    if (sync_delay_us)
        usleep((useconds_t)atomic_load(&sync_delay_us));
    if (once) {
        errno = once;
        return -1;
    }
    return fails(&sync_error);
}

int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    (void)fd;
    return sync_step();
}

int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    (void)fd;
    return fails(&sync_error);
}

ssize_t __real_pwrite64(int fd, const void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buffer, size_t bytes, off_t offset)
{
    size_t most = atomic_load(&write_at_most);
    if (most && bytes > most)
        bytes = most;
    else if (fails(&write_error))
        return -1; /* a short write came first */
    return __real_pwrite64(fd, buffer, bytes, offset);
}

ssize_t __real_pread64(int fd, void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pread64(int fd, void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pread64(int fd, void *buffer, size_t bytes, off_t offset)
{
    int bad = atomic_load(&bad_sector_at);
    if (bad >= 0 && offset < bad + 512 && offset + (off_t)bytes > bad) {
        errno = EIO;
        return -1;
    }
    return __real_pread64(fd, buffer, bytes, offset);
}

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes)
{
    (void)fd, (void)mode, (void)offset, (void)bytes;
    return fails(&allocate_error);
}

int __real_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size)
{
    return fails(&truncate_error) ? -1 : __real_ftruncate64(fd, size);
}

int __real_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to);
int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    while (strstr(to, ".snapshot") && atomic_load(&hold_renames))
        usleep(200);
    return fails(&rename_error) ? -1 : __real_renameat(from_dir, from, to_dir, to);
}

static atomic_bool no_memory;
void *__real_realloc(void *old, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes)
{
    return atomic_load(&no_memory) ? NULL : __real_realloc(old, bytes);
}

static int calm(void **state)
{
    (void)state;
    sync_error = fail_once = write_error = truncate_error = allocate_error = rename_error = 0;
    write_at_most = 0;
    sync_delay_us = 0;
    bad_sector_at = -1;
    hold_renames = no_memory = false;
    return 0;
}

/* --- what is often done --- */

enum { FRAMES = 20 };
static uint64_t sums[FRAMES + 1];

static void put_numbered(struct life *life, uint64_t i)
{
    char key[32];
    uint8_t value[64];
    memset(value, (int)i, sizeof value);
    snprintf(key, sizeof key, "key%llu", (unsigned long long)i);
    assert_int_equal(put_one(life, key, value, i % sizeof value), 0);
}

/* Twenty transactions in one log behind the snapshot; sums[i]: after i of them. `synced` from the
 * start, or never. Returns the log's base. */
static uint64_t make_twenty(struct life *life, bool synced)
{
    life_begin(life);
    uint64_t base = life->journal->base;
    sums[0] = sum_of_tables(life);
    for (unsigned i = 1; i <= FRAMES; i++) {
        put_numbered(life, i);
        sums[i] = sum_of_tables(life);
        if (synced)
            assert_int_equal(life_sync(life), 0);
    }
    return base;
}

static int which_sum(struct life *life)
{
    uint64_t sum = sum_of_tables(life);
    for (int i = FRAMES; i >= 0; i--)
        if (sums[i] == sum)
            return i;
    return -1;
}

/* How many of the twenty there are; and none has another value. */
static unsigned count_present(struct life *life)
{
    unsigned count = 0;
    struct meta_reader *reader;
    assert_int_equal(meta_read_begin(&life->meta, &reader), 0);
    for (unsigned i = 1; i <= FRAMES; i++) {
        char key[32];
        const uint8_t *value;
        size_t bytes;
        snprintf(key, sizeof key, "key%u", i);
        if (meta_get(&life->meta, reader->txn, META_STATE, key, strlen(key), (const void **)&value,
                     &bytes))
            continue;
        assert_int_equal(bytes, i % 64);
        for (size_t k = 0; k < bytes; k++)
            assert_int_equal(value[k], i);
        count++;
    }
    meta_read_end(reader);
    return count;
}

/* The files of `life`'s journal, to be changed one by one and replayed in another place. */
static void copy_journal(const struct life *life, struct life *copy)
{
    char command[256];
    make_state_dir(copy);
    copy->log_bytes = life->log_bytes;
    snprintf(command, sizeof command, "cp -a %s/journal %s/", life->state_dir, copy->state_dir);
    assert_int_equal(system(command), 0);
}

static uint64_t frame_start(struct life *life, uint64_t base, unsigned number)
{
    struct journal_source source;
    struct journal_frame frame;
    const uint8_t *operations;
    uint64_t offset = sizeof(struct journal_file_header);
    assert_int_equal(journal_source_open(life->journal, base, "log", &source, &life->err), 0);
    for (unsigned i = 1; i < number; i++)
        assert_int_equal(journal_next(&source, &offset, &frame, &operations), 1);
    journal_source_close(&source);
    return offset;
}

/* --- tests --- */

static void what_was_synced_is_there_after_a_replay(void **state)
{
    struct life life;
    (void)state;
    uint64_t base = make_twenty(&life, false);
    assert_int_equal(life_sync(&life), 0);
    life_end(&life);
    assert_true(exists(&life, base, "log"));
    life_replay(&life);
    assert_int_equal(which_sum(&life), FRAMES);
    assert_false(life.damaged);
    life_remove(&life);
}

static void a_value_that_was_written_into_its_place_is_replayed(void **state)
{
    struct life life;
    MDB_txn *txn;
    void *place;
    (void)state;
    life_begin(&life);
    assert_int_equal(meta_begin(&life.meta, 8192, &txn), 0);
    assert_int_equal(meta_reserve(&life.meta, txn, META_INLINE, 5, 3000, &place), 0);
    memset(place, 'a', 3000);
    meta_seal(META_INLINE, 5, place, 3000);
    assert_int_equal(meta_reserve(&life.meta, txn, META_INLINE, 6, 10, &place), 0);
    memset(place, 'b', 10);
    meta_seal(META_INLINE, 6, place, 10);
    assert_int_equal(meta_delete_number(&life.meta, txn, META_INLINE, 7), 0);
    assert_int_equal(meta_reserve(&life.meta, txn, META_INLINE, 8, 0, &place), 0);
    meta_seal(META_INLINE, 8, place, 0);
    assert_int_equal(meta_commit(txn), 0);
    uint64_t sum = sum_of_tables(&life);
    life_end(&life);
    life_replay(&life);
    assert_true(sum_of_tables(&life) == sum);
    life_remove(&life);
}

static void a_torn_end_loses_only_what_is_behind_it(void **state)
{
    struct life life, copy;
    char path[128];
    size_t bytes;
    (void)state;
    uint64_t base = make_twenty(&life, false);
    uint64_t last = frame_start(&life, base, FRAMES), third = frame_start(&life, base, FRAMES - 2);
    char *whole = read_whole(file_of(&life, base, "log", path), &bytes);
    copy_journal(&life, &copy);
    for (size_t cut = bytes; cut-- > third;) {
        write_whole(file_of(&copy, base, "log", path), whole, cut);
        life_replay(&copy);
        int expected = cut >= last ? FRAMES - 1 : cut == third ? FRAMES - 3 : -1;
        int found = which_sum(&copy);
        assert_true(expected < 0 ? found >= FRAMES - 3 && found < FRAMES - 1 : found == expected);
        assert_false(copy.damaged);
        life_end(&copy);
    }
    free(whole);
    life_remove(&copy);
    life_remove(&life);
}

/* It may have been synced: who asked for that must be able to learn of it. */
static void a_last_transaction_that_is_damaged_is_told_in_the_log(void **state)
{
    struct life life;
    char path[128];
    size_t bytes;
    int kept = -1;
    (void)state;
    uint64_t base = make_twenty(&life, true);
    uint64_t last = frame_start(&life, base, FRAMES);
    life_end(&life);
    char *whole = read_whole(file_of(&life, base, "log", path), &bytes);
    whole[last + sizeof(struct journal_frame)] ^= 1;
    write_whole(path, whole, bytes);
    free(whole);
    log_caught(&kept);
    life_replay(&life);
    cleanup_free char *log = log_caught(&kept);
    assert_int_equal(which_sum(&life), FRAMES - 1);
    assert_non_null(strstr(log, "bytes are no whole transaction"));
    life_remove(&life);
}

/* Flips a bit at every third byte. `synced`: all frames were. */
static void flip_bits(bool synced)
{
    struct life life, copy;
    char path[128], name[128];
    size_t bytes;
    uint64_t base = make_twenty(&life, synced), last = frame_start(&life, base, FRAMES);
    char *whole = read_whole(file_of(&life, base, "log", path), &bytes);
    copy_journal(&life, &copy);
    file_of(&copy, base, "log", name);
    for (size_t at = 0; at < bytes; at += 3) {
        whole[at] ^= (char)(1 << at % 8);
        write_whole(name, whole, bytes);
        life_replay(&copy);
        unsigned there = count_present(&copy);
        if (at < sizeof(struct journal_file_header))
            assert_true(there == FRAMES && copy.damaged);
        else if (synced && at < last)
            assert_true(there == FRAMES - 1 && copy.damaged);
        else
            assert_true(which_sum(&copy) >= 0 && there < FRAMES && !copy.damaged);
        whole[at] ^= (char)(1 << at % 8);
        life_end(&copy);
        for (uint64_t extra = base + 1; extra < base + 2 * FRAMES; extra++)
            unlink(file_of(&copy, extra, "log", path)); /* that replays have begun */
    }
    free(whole);
    life_remove(&copy);
    life_remove(&life);
}

static void a_flipped_bit_in_what_was_synced_loses_one_transaction_and_is_noticed(void **state)
{
    (void)state;
    flip_bits(true);
}

static void a_flipped_bit_in_what_was_not_synced_loses_what_is_behind_it(void **state)
{
    (void)state;
    flip_bits(false);
}

static void a_sector_that_cannot_be_read_loses_only_what_is_in_it(void **state)
{
    struct life life;
    (void)state;
    make_twenty(&life, true);
    life_end(&life);
    atomic_store(&bad_sector_at, 1024);
    life_replay(&life);
    atomic_store(&bad_sector_at, -1);
    unsigned there = count_present(&life);
    assert_true(life.damaged && there < FRAMES && there >= FRAMES - 8);
    life_remove(&life);
}

static void a_damaged_snapshot_falls_back_to_the_one_before_with_the_same_outcome(void **state)
{
    struct life life;
    char path[128];
    size_t bytes;
    (void)state;
    make_twenty(&life, true);
    uint64_t first = life.journal->snapshot;
    life_snapshot(&life);
    uint64_t newest = life.journal->snapshot;
    assert_true(newest > first && exists(&life, first, "snapshot"));
    put_number(&life, "after", 7);
    uint64_t sum = sum_of_tables(&life);
    life_end(&life);
    char *whole = read_whole(file_of(&life, newest, "snapshot", path), &bytes);
    for (size_t at = 0; at < bytes; at += bytes / 20) {
        whole[at] ^= 4;
        write_whole(path, whole, bytes);
        whole[at] ^= 4;
        life_replay(&life);
        assert_true(sum_of_tables(&life) == sum);
        assert_false(life.damaged);
        assert_true(life.journal->snapshot == first);
        life_end(&life);
    }
    write_whole(path, whole, bytes - 1);
    life_replay(&life);
    assert_true(sum_of_tables(&life) == sum);
    free(whole);
    life_remove(&life);
}

static void of_the_only_snapshot_what_can_be_read_is_taken(void **state)
{
    struct life life;
    char path[128];
    size_t bytes;
    (void)state;
    life_begin(&life);
    char *large = calloc(1, 600000);
    for (int i = 0; i < 6; i++)
        assert_int_equal(put_one(&life, (char[]){'k', (char)('0' + i), 0}, large, 600000), 0);
    life_snapshot(&life);
    life_snapshot(&life);
    uint64_t newest = life.journal->snapshot, before = life.journal->previous;
    life_end(&life);
    unlink(file_of(&life, before, "snapshot", path));
    char *whole = read_whole(file_of(&life, newest, "snapshot", path), &bytes);
    whole[0] ^= 1;         /* its header */
    whole[bytes / 2] ^= 1; /* and one frame */
    write_whole(path, whole, bytes);
    life_replay(&life);
    assert_true(life.damaged);
    MDB_stat stat;
    MDB_txn *txn;
    assert_int_equal(mdb_txn_begin(life.meta.env, NULL, MDB_RDONLY, &txn), 0);
    assert_int_equal(mdb_stat(txn, life.meta.tables[META_STATE], &stat), 0);
    mdb_txn_abort(txn);
    assert_int_equal(stat.ms_entries, 5);
    free(whole);
    free(large);
    life_remove(&life);
}

static void a_missing_log_is_damage_and_what_follows_it_is_taken(void **state)
{
    struct life life;
    char path[128];
    (void)state;
    life_begin(&life);
    put_number(&life, "one", 1);
    uint64_t base = life.journal->base;
    life_snapshot(&life);
    uint64_t snapshot = life.journal->snapshot;
    put_number(&life, "two", 2);
    assert_int_equal(life_sync(&life), 0);
    put_number(&life, "three", 3);
    life_end(&life);
    unlink(file_of(&life, snapshot, "snapshot", path));
    unlink(file_of(&life, base, "log", path));
    life_replay(&life);
    assert_true(life.damaged);
    assert_int_equal(get_number(&life, "one"), 0);
    assert_int_equal(get_number(&life, "two"), 2);
    assert_int_equal(get_number(&life, "three"), 3);
    life_remove(&life);
}

static void a_frame_that_lmdb_did_not_commit_is_cut_at_the_next_start(void **state)
{
    struct life life;
    MDB_txn *txn;
    struct stat before, after;
    char path[128];
    (void)state;
    uint64_t base = make_twenty(&life, true);
    stat(file_of(&life, base, "log", path), &before);
    for (unsigned i = 0; i < 2; i++) { /* the second one is torn besides */
        assert_int_equal(meta_begin(&life.meta, 1000, &txn), 0);
        assert_int_equal(meta_put(&life.meta, txn, META_STATE, "never", 5, "1", 1), 0);
        assert_int_equal(journal_append(life.journal, mdb_txn_id(txn)), 0);
        mdb_txn_abort(txn);
        life_end(&life);
        if (i) {
            stat(path, &after);
            assert_int_equal(truncate(path, after.st_size - 3), 0);
        }
        life_resume(&life);
        stat(path, &after);
        assert_int_equal(after.st_size, before.st_size);
        assert_true(life.journal->covered);
    }
    assert_int_equal(life_sync(&life), 0);
    life_end(&life);
    life_replay(&life);
    assert_int_equal(which_sum(&life), FRAMES);
    life_remove(&life);
}

/* What is durable then is what was before; until there is a snapshot. */
static void expect_begun_anew(struct life *life, uint64_t written)
{
    life_resume(life);
    assert_false(life->journal->covered);
    assert_true(life->journal->written > written);
    assert_int_equal(life_sync(life), -EIO); /* nobody makes a snapshot */
    put_number(life, "later", 5);
    life_end(life);
    life_resume(life);
    assert_false(life->journal->covered); /* nor after another kill */
    life_start(life);
    assert_int_equal(life_sync(life), 0);
    uint64_t sum = sum_of_tables(life);
    life_end(life);
    life_replay(life);
    assert_true(sum_of_tables(life) == sum);
    assert_false(life->damaged);
    assert_int_equal(get_number(life, "later"), 5);
}

static void a_journal_that_is_behind_lmdb_begins_anew(void **state)
{
    struct life life;
    (void)state;
    make_twenty(&life, true);
    uint64_t written = journal_written(life.journal);
    life.meta.journal = NULL;
    put_number(&life, "unknown", 1);
    life_end(&life);
    expect_begun_anew(&life, written);
    assert_int_equal(get_number(&life, "unknown"), 1);
    life_remove(&life);
}

static void a_journal_without_logs_or_with_a_damaged_one_begins_anew(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct life life;
        char path[128];
        uint64_t base = make_twenty(&life, true), written = journal_written(life.journal);
        life_end(&life);
        file_of(&life, base, i == 2 ? "snapshot" : "log", path);
        if (i != 1)
            unlink(path);
        else
            write_whole(path, "short", 5);
        expect_begun_anew(&life, i == 2 ? written : base);
        life_remove(&life);
    }
}

static void what_was_not_durable_when_the_journal_began_anew_does_not_follow_what_was(void **state)
{
    struct life life;
    (void)state;
    make_twenty(&life, true);
    life.meta.journal = NULL;
    put_number(&life, "unknown", 1);
    life_end(&life);
    life_resume(&life);
    put_number(&life, "later", 5);
    life_end(&life);
    life_replay(&life); /* a power cut before the first snapshot */
    assert_int_equal(which_sum(&life), FRAMES);
    life_remove(&life);
}

static void what_is_taken_back_is_not_replayed_and_not_waited_for(void **state)
{
    struct life life;
    MDB_txn *txn;
    (void)state;
    life_begin(&life);
    put_number(&life, "one", 1);
    assert_int_equal(meta_begin(&life.meta, 1000, &txn), 0);
    assert_int_equal(meta_put(&life.meta, txn, META_STATE, "never", 5, "1", 1), 0);
    assert_int_equal(journal_append(life.journal, mdb_txn_id(txn)), 0);
    uint64_t written = journal_written(life.journal);
    mdb_txn_abort(txn);
    journal_take_back(life.journal);
    assert_true(journal_written(life.journal) < written);
    assert_int_equal(life.journal->allocated, 0); /* which the cut has given up */
    assert_int_equal(journal_sync(life.journal, written), 0);
    put_number(&life, "two", 2);
    assert_true(journal_written(life.journal) > written);
    uint64_t sum = sum_of_tables(&life);
    life_end(&life);
    life_replay(&life);
    assert_true(sum_of_tables(&life) == sum);
    assert_false(life.damaged);
    life_remove(&life);
}

static void what_cannot_be_taken_back_is_covered_by_a_new_snapshot(void **state)
{
    struct life life;
    MDB_txn *txn;
    (void)state;
    life_begin(&life);
    put_number(&life, "one", 1);
    assert_int_equal(meta_begin(&life.meta, 1000, &txn), 0);
    assert_int_equal(meta_put(&life.meta, txn, META_STATE, "never", 5, "1", 1), 0);
    assert_int_equal(journal_append(life.journal, mdb_txn_id(txn)), 0);
    mdb_txn_abort(txn);
    pthread_mutex_lock(&writer);
    atomic_store(&truncate_error, EIO);
    journal_take_back(life.journal);
    atomic_store(&truncate_error, 0);
    assert_int_equal(journal_begin(life.journal, 0), -EIO);
    pthread_mutex_unlock(&writer);
    assert_int_equal(life_sync(&life), 0);
    put_number(&life, "two", 2);
    uint64_t sum = sum_of_tables(&life);
    life_end(&life);
    life_replay(&life);
    assert_true(sum_of_tables(&life) == sum);
    life_remove(&life);
}

static void a_write_that_fails_half_way_leaves_nothing(void **state)
{
    struct life life;
    (void)state;
    life_begin(&life);
    put_number(&life, "one", 1);
    atomic_store(&write_at_most, 50);
    put_number(&life, "short", 1); /* writes that are short are gone on with */
    static const int errors[] = {ENOSPC, EIO};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(errors); i++) {
        atomic_store(&write_error, errors[i]);
        assert_int_equal(put_one(&life, "never", "1", 1), -errors[i]);
        atomic_store(&write_error, 0);
    }
    put_number(&life, "two", 2);
    assert_int_equal(life_sync(&life), 0);
    uint64_t sum = sum_of_tables(&life);
    life_end(&life);
    life_replay(&life);
    assert_true(sum_of_tables(&life) == sum);
    assert_int_equal(get_number(&life, "two"), 2);
    life_remove(&life);
}

static void a_log_that_cannot_be_cut_is_replaced(void **state)
{
    struct life life;
    (void)state;
    life_begin(&life);
    put_number(&life, "one", 1);
    pthread_mutex_lock(&life.journal->lock);
    uint64_t attempts = life.journal->attempts;
    pthread_mutex_unlock(&life.journal->lock);
    atomic_store(&truncate_error, EIO);
    atomic_store(&write_error, ENOSPC);
    assert_int_equal(put_one(&life, "never", "1", 1), -ENOSPC);
    atomic_store(&write_error, 0);
    pthread_mutex_lock(&life.journal->lock);
    while (life.journal->attempts == attempts) /* nobody has asked for it */
        pthread_cond_wait(&life.journal->changed, &life.journal->lock);
    pthread_mutex_unlock(&life.journal->lock);
    atomic_store(&truncate_error, 0);
    if (put_one(&life, "two", &(uint64_t){2}, 8)) { /* that attempt may have met the errors */
        life_snapshot(&life);
        put_number(&life, "two", 2);
    }
    life_end(&life);
    life_replay(&life);
    assert_int_equal(get_number(&life, "two"), 2);
    life_remove(&life);
}

static void a_full_disk_is_told_before_a_transaction_begins(void **state)
{
    struct life life;
    (void)state;
    life_begin(&life);
    atomic_store(&allocate_error, ENOSPC);
    assert_int_equal(journal_begin(life.journal, 1 << 20), -ENOSPC);
    atomic_store(&allocate_error, EDQUOT);
    assert_int_equal(journal_begin(life.journal, 0), -ENOSPC);
    atomic_store(&allocate_error, EOPNOTSUPP);
    assert_int_equal(journal_begin(life.journal, 1 << 20), 0);
    life_remove(&life);
}

static void on_a_full_disk_the_log_is_not_changed_for_one_that_has_no_room(void **state)
{
    struct life life;
    (void)state;
    life_begin(&life);
    put_number(&life, "one", 1);
    uint64_t base = life.journal->base;
    atomic_store(&allocate_error, ENOSPC);
    life_snapshot(&life);
    atomic_store(&allocate_error, 0);
    assert_true(life.journal->base == base);
    assert_true(life.journal->covered);
    put_number(&life, "two", 2);
    life_end(&life);
    life_replay(&life);
    assert_int_equal(get_number(&life, "two"), 2);
    life_remove(&life);
}

static void a_snapshot_that_fails_leaves_what_there_was(void **state)
{
    struct life life;
    (void)state;
    atomic_int *const injected[] = {&rename_error, &sync_error, &write_error};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(injected); i++) {
        life_begin(&life);
        put_number(&life, "one", 1);
        atomic_store(injected[i], ENOSPC);
        life_snapshot(&life);
        atomic_store(injected[i], 0);
        put_number(&life, "two", 2);
        assert_int_equal(life_sync(&life), 0);
        uint64_t sum = sum_of_tables(&life);
        life_end(&life);
        life_replay(&life);
        assert_true(sum_of_tables(&life) == sum);
        assert_false(life.damaged);
        life_remove(&life);
    }
}

static void a_failed_fdatasync_is_not_success_before_there_is_a_new_snapshot(void **state)
{
    struct life life;
    char path[128];
    (void)state;
    life_begin(&life);
    uint64_t snapshot = life.journal->snapshot;
    put_number(&life, "one", 1);
    atomic_store(&fail_once, EIO); /* the next one would say yes */
    assert_int_equal(life_sync(&life), 0);
    assert_true(life.journal->snapshot > snapshot);
    put_number(&life, "two", 2);
    atomic_store(&sync_error, EIO);
    assert_int_equal(life_sync(&life), -EIO);
    assert_int_equal(life_sync(&life), -EIO);
    struct journal_usage usage;
    journal_usage(life.journal, &usage);
    assert_false(usage.durable);
    life_end(&life);
    assert_int_equal(access(path_in(&life, "journal/failed", path), F_OK), 0);
    atomic_store(&sync_error, 0);
    life_resume(&life); /* a new server doesn't believe the kernel either */
    assert_false(life.journal->covered);
    life_start(&life);
    assert_int_equal(life_sync(&life), 0);
    assert_int_equal(access(path, F_OK), -1);
    life_remove(&life);
}

static void *sync_thread(void *argument)
{
    struct life *life = argument;
    return (void *)(intptr_t)life_sync(life);
}

static void a_snapshot_begun_before_a_failed_fdatasync_does_not_make_good_for_it(void **state)
{
    struct life life;
    pthread_t thread;
    void *result;
    (void)state;
    life_begin(&life);
    put_number(&life, "one", 1);
    atomic_store(&hold_renames, true);
    pthread_mutex_lock(&life.journal->lock);
    life.journal->wanted = true;
    pthread_cond_broadcast(&life.journal->changed);
    uint64_t base = life.journal->base;
    pthread_mutex_unlock(&life.journal->lock);
    for (uint64_t now = base; now == base;) {
        pthread_mutex_lock(&life.journal->lock);
        now = life.journal->old_fd < 0 ? life.journal->base : base;
        pthread_mutex_unlock(&life.journal->lock);
        usleep(100);
    }
    put_number(&life, "two", 2); /* in the new log, not in the snapshot */
    atomic_store(&fail_once, EIO);
    pthread_create(&thread, NULL, sync_thread, &life);
    usleep(2000);
    atomic_store(&hold_renames, false);
    pthread_join(thread, &result);
    assert_int_equal((intptr_t)result, 0);
    assert_true(life.journal->snapshot == journal_written(life.journal));
    life_remove(&life);
}

static void many_who_wait_share_one_fdatasync(void **state)
{
    struct life life;
    pthread_t threads[16];
    (void)state;
    life_begin(&life);
    for (int i = 0; i < 3; i++)
        put_numbered(&life, 1);
    atomic_store(&sync_delay_us, 20000);
    int before = atomic_load(&syncs);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(threads); i++)
        pthread_create(&threads[i], NULL, sync_thread, &life);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(threads); i++)
        pthread_join(threads[i], NULL);
    assert_true(atomic_load(&syncs) - before <= 4);
    before = atomic_load(&syncs);
    assert_int_equal(life_sync(&life), 0); /* and nobody waits for what is durable */
    assert_int_equal(atomic_load(&syncs), before);
    life_remove(&life);
}

/* --- threads --- */

static atomic_bool quit;

static void *write_and_sync(void *argument)
{
    struct life *life = argument;
    for (uint64_t i = 1; !atomic_load(&quit); i++) {
        char key[32];
        snprintf(key, sizeof key, "%llx-%llu", (unsigned long long)pthread_self(),
                 (unsigned long long)i % 50);
        put_number(life, key, i);
        if (i % 7 == 0)
            assert_int_equal(life_sync(life), 0);
    }
    return NULL;
}

static void snapshots_during_transactions_replay_to_the_same_tables(void **state)
{
    struct life life;
    pthread_t threads[3];
    (void)state;
    life_begin(&life);
    atomic_store(&quit, false);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(threads); i++)
        pthread_create(&threads[i], NULL, write_and_sync, &life);
    for (int i = 0; i < 20; i++)
        life_snapshot(&life);
    atomic_store(&quit, true);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(threads); i++)
        pthread_join(threads[i], NULL);
    uint64_t sum = sum_of_tables(&life);
    life_end(&life);
    life_replay(&life);
    assert_true(sum_of_tables(&life) == sum);
    assert_false(life.damaged);
    life_remove(&life);
}

static void older_files_are_removed_and_two_generations_stay(void **state)
{
    struct life life;
    (void)state;
    make_state_dir(&life);
    life.log_bytes = 2000;
    life_resume(&life);
    life_start(&life);
    for (uint64_t i = 0; i < 400; i++) {
        put_numbered(&life, i % FRAMES);
        if (i % 40 == 0)
            life_snapshot(&life);
    }
    life_snapshot(&life);
    uint64_t newest = life.journal->snapshot, before = life.journal->previous;
    life_end(&life);
    unsigned snapshots = 0, logs = 0;
    for (uint64_t base = 0; base <= newest; base++) {
        snapshots += exists(&life, base, "snapshot");
        logs += exists(&life, base, "log");
        assert_false(base < before &&
                     (exists(&life, base, "log") || exists(&life, base, "snapshot")));
    }
    assert_int_equal(snapshots, 2);
    assert_true(logs >= 2 && exists(&life, newest, "log") && exists(&life, before, "log"));
    life_remove(&life);
}

static void logs_of_attempts_that_failed_are_removed_too(void **state)
{
    struct life life;
    (void)state;
    life_begin(&life);
    for (uint64_t i = 0; i < 4; i++) {
        put_numbered(&life, i);
        atomic_store(&sync_error, ENOSPC);
        life_snapshot(&life);
        atomic_store(&sync_error, 0);
    }
    for (uint64_t i = 0; i < 2; i++) {
        put_numbered(&life, i);
        life_snapshot(&life);
    }
    uint64_t before = life.journal->previous, newest = life.journal->snapshot;
    for (uint64_t base = 0; base <= newest; base++)
        assert_int_equal(exists(&life, base, "log"), base == before || base == newest);
    life_remove(&life);
}

/* --- other's files --- */

static void expect_refused(void (*change)(struct journal_file_header *), const char *expected)
{
    struct life life;
    char path[128];
    size_t bytes;
    struct journal_file_header header;
    uint64_t base = make_twenty(&life, true), snapshot = life.journal->snapshot;
    life_end(&life);
    char *whole = read_whole(file_of(&life, base, "log", path), &bytes);
    memcpy(&header, whole, sizeof header);
    change(&header);
    header.sum = XXH3_64bits(&header, offsetof(struct journal_file_header, sum));
    memcpy(whole, &header, sizeof header);
    write_whole(path, whole, bytes);
    life_open(&life);
    assert_int_equal(journal_resume(life.journal, meta_last_txn(&life.meta), &life.err), -EINVAL);
    assert_non_null(strstr(life.err.message, expected));
    life_end(&life);
    assert_int_equal(life_try_replay(&life), -EINVAL);
    assert_non_null(strstr(life.err.message, expected));
    life_end(&life);
    unlink(path);
    free(whole);
    whole = read_whole(file_of(&life, snapshot, "snapshot", path), &bytes);
    memcpy(whole, &header, sizeof header);
    write_whole(path, whole, bytes);
    assert_int_equal(life_try_replay(&life), -EINVAL);
    assert_non_null(strstr(life.err.message, expected));
    free(whole);
    life_remove(&life);
}

static void set_version(struct journal_file_header *header)
{
    header->version = 7;
}
static void set_owner(struct journal_file_header *header)
{
    header->owner[3] ^= 1;
}
static void set_order(struct journal_file_header *header)
{
    header->version = __builtin_bswap32(header->version);
    header->byte_order = __builtin_bswap32(header->byte_order);
}

static void files_of_another_version_owner_or_byte_order_are_refused_with_a_sentence(void **state)
{
    (void)state;
    expect_refused(set_version, "of another version: 7");
    expect_refused(set_owner, "belongs to another node");
    expect_refused(set_order, "another byte order");
}

static void names_that_are_not_sequence_numbers_are_left_alone(void **state)
{
    struct life life;
    char path[128];
    (void)state;
    make_twenty(&life, true);
    life_end(&life);
    write_whole(path_in(&life, "journal/ffffffffffffffff.log", path), "", 0);
    write_whole(path_in(&life, "journal/notes", path), "", 0);
    write_whole(path_in(&life, "journal/0000000000000001.new", path), "", 0);
    life_replay(&life);
    assert_int_equal(which_sum(&life), FRAMES);
    assert_int_equal(access(path, F_OK), -1);
    life_remove(&life);
}

static void no_memory_for_a_change_fails_the_transaction(void **state)
{
    struct life life;
    (void)state;
    life_begin(&life);
    char *large = calloc(1, 1 << 20);
    atomic_store(&no_memory, true);
    assert_int_equal(put_one(&life, "large", large, 1 << 20), -ENOMEM);
    atomic_store(&no_memory, false);
    put_number(&life, "one", 1);
    life_end(&life);
    life_replay(&life);
    assert_int_equal(get_number(&life, "one"), 1);
    free(large);
    life_remove(&life);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup(name, calm)
        TEST(what_was_synced_is_there_after_a_replay),
        TEST(a_value_that_was_written_into_its_place_is_replayed),
        TEST(a_torn_end_loses_only_what_is_behind_it),
        TEST(a_last_transaction_that_is_damaged_is_told_in_the_log),
        TEST(a_flipped_bit_in_what_was_synced_loses_one_transaction_and_is_noticed),
        TEST(a_flipped_bit_in_what_was_not_synced_loses_what_is_behind_it),
        TEST(a_sector_that_cannot_be_read_loses_only_what_is_in_it),
        TEST(a_damaged_snapshot_falls_back_to_the_one_before_with_the_same_outcome),
        TEST(of_the_only_snapshot_what_can_be_read_is_taken),
        TEST(a_missing_log_is_damage_and_what_follows_it_is_taken),
        TEST(a_frame_that_lmdb_did_not_commit_is_cut_at_the_next_start),
        TEST(a_journal_that_is_behind_lmdb_begins_anew),
        TEST(a_journal_without_logs_or_with_a_damaged_one_begins_anew),
        TEST(what_was_not_durable_when_the_journal_began_anew_does_not_follow_what_was),
        TEST(what_is_taken_back_is_not_replayed_and_not_waited_for),
        TEST(what_cannot_be_taken_back_is_covered_by_a_new_snapshot),
        TEST(a_write_that_fails_half_way_leaves_nothing),
        TEST(a_log_that_cannot_be_cut_is_replaced),
        TEST(a_full_disk_is_told_before_a_transaction_begins),
        TEST(on_a_full_disk_the_log_is_not_changed_for_one_that_has_no_room),
        TEST(a_snapshot_that_fails_leaves_what_there_was),
        TEST(a_failed_fdatasync_is_not_success_before_there_is_a_new_snapshot),
        TEST(a_snapshot_begun_before_a_failed_fdatasync_does_not_make_good_for_it),
        TEST(many_who_wait_share_one_fdatasync),
        TEST(snapshots_during_transactions_replay_to_the_same_tables),
        TEST(older_files_are_removed_and_two_generations_stay),
        TEST(logs_of_attempts_that_failed_are_removed_too),
        TEST(files_of_another_version_owner_or_byte_order_are_refused_with_a_sentence),
        TEST(names_that_are_not_sequence_numbers_are_left_alone),
        TEST(no_memory_for_a_change_fails_the_transaction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
