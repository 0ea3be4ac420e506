/* A store with spill directories, for the unit tests of spilling. Memory is a folder of /dev/shm,
 * so that what it takes is counted by the store: 16 MiB, of which 12.8 are too much. */
#ifndef MOBULA_TESTS_SPILL_FIXTURE_H
#define MOBULA_TESTS_SPILL_FIXTURE_H

#include "core/store/store_internal.h"
#include "tests/unit/log_fixture.h"
#include "tests/unit/store_fixture.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

enum { MIB = 1 << 20, UNIT_MIB = 2 * MIB, SPILL_OBJECTS = 16 };

struct spilling {
    struct fixture fixture;
    char disk_dirs[2][96];
    const char *dirs[3];
    bool mounted;
    struct object_info objects[SPILL_OBJECTS];
    unsigned count;
};

/* Waits until a condition holds, for ten seconds at most. */
#define WAIT_UNTIL(condition)                                                                      \
    do {                                                                                           \
        uint64_t wait_deadline = mob_monotonic_ns() + UINT64_C(10000000000);                       \
        while (!(condition)) {                                                                     \
            if (mob_monotonic_ns() > wait_deadline)                                                \
                fail_msg("it did not come: %s", #condition);                                       \
            wait_a_little();                                                                       \
        }                                                                                          \
    } while (0)

static inline void wait_a_little(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

static inline struct store *store_of(struct spilling *spilling)
{
    return spilling->fixture.store;
}

static inline struct spilling *spilling_new(void)
{
    struct spilling *spilling = calloc(1, sizeof *spilling);
    fixture_init(&spilling->fixture);
    for (int i = 0; i < 2; i++)
        snprintf(spilling->disk_dirs[i], sizeof spilling->disk_dirs[i], "%s/spill%d",
                 spilling->fixture.state_dir, i);
    spilling->dirs[0] = spilling->disk_dirs[0];
    spilling->fixture.options.memory_bytes = 16 * MIB;
    spilling->fixture.options.spill_dirs = spilling->dirs;
    return spilling;
}

static inline void spilling_open(struct spilling *spilling)
{
    fixture_open(&spilling->fixture);
    store_collect(spilling->fixture.store);
}

static inline void spilling_reopen(struct spilling *spilling)
{
    fixture_close(&spilling->fixture);
    spilling_open(spilling);
}

static inline int spilling_setup(void **state)
{
    struct spilling *spilling = spilling_new();
    spilling_open(spilling);
    *state = spilling;
    return 0;
}

/* The test opens it, with options of its own. */
static inline int spilling_setup_closed(void **state)
{
    *state = spilling_new();
    return 0;
}

static inline int spilling_teardown(void **state)
{
    struct spilling *spilling = *state;
    if (spilling->fixture.store)
        fixture_close(&spilling->fixture);
    if (spilling->mounted)
        umount2(spilling->disk_dirs[0], MNT_DETACH);
    fixture_remove(&spilling->fixture);
    free(spilling);
    return 0;
}

/* Makes the first spill directory a small filesystem. False: not allowed here. */
static inline bool spilling_mount(struct spilling *spilling, const char *size)
{
    char options[64];
    snprintf(options, sizeof options, "size=%s,mode=700", size);
    if (mkdir(spilling->disk_dirs[0], 0700) < 0 ||
        mount("spill", spilling->disk_dirs[0], "tmpfs", 0, options) < 0)
        return false;
    spilling->mounted = true;
    return true;
}

/* --- objects --- */

/* Bytes that differ from file to file and from block to block. */
static inline void fill_bytes(char *buffer, size_t bytes, uint64_t seed, uint64_t offset)
{
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t word = (seed * 0x9e3779b97f4a7c15u) ^ ((offset + i) * 0xff51afd7ed558ccdu);
        memcpy(buffer + i, &word, 8);
    }
}

/* As a create, writes and a release do. -ENOSPC leaves no name. */
static inline errint_t try_put(struct store *store, const char *name, uint64_t seed, size_t bytes,
                               struct object_info *out)
{
    struct staged_info info;
    struct mob_id id;
    struct mob_error err = {0};
    cleanup_free char *buffer = malloc(MIB);
    errint_t error = staged_create(store, NAMES_STAGING, name, 0644, 0, 0, 0, &info);
    if (error)
        return error;
    for (size_t done = 0; done < bytes && !error; done += MIB) {
        size_t part = bytes - done < MIB ? bytes - done : MIB;
        fill_bytes(buffer, part, seed, done);
        ssize_t put = staged_write(store, info.number, buffer, part, done);
        error = put < 0 ? (errint_t)put : 0;
    }
    assert_int_equal(staged_closed(store, info.number), 0);
    if (!error)
        error = staged_commit(store, info.number, &id, NULL, &err);
    if (error)
        staged_discard(store, info.number);
    else
        assert_int_equal(store_find(store, &id, out), 0);
    return error;
}

static inline struct object_info put(struct store *store, const char *name, uint64_t seed,
                                     size_t bytes)
{
    struct object_info object = {0};
    assert_int_equal(try_put(store, name, seed, bytes, &object), 0);
    return object;
}

static inline void name_of(unsigned index, char name[16])
{
    snprintf(name, 16, "o%u", index);
}

/* Puts so many objects of 2 MiB more, named o0, o1, ... */
static inline void put_some(struct spilling *spilling, unsigned count)
{
    for (char name[16]; count--; spilling->count++) {
        name_of(spilling->count, name);
        spilling->objects[spilling->count] =
            put(store_of(spilling), name, spilling->count, UNIT_MIB);
    }
}

static inline void drop(struct spilling *spilling, unsigned index)
{
    char name[16];
    name_of(index, name);
    assert_int_equal(names_unlink(store_of(spilling), NAMES_STAGING, name, NULL, NULL), 0);
}

static inline void drop_all(struct spilling *spilling)
{
    for (unsigned i = 0; i < spilling->count; i++)
        drop(spilling, i);
}

static inline void check_bytes(struct store *store, const struct mob_id *id, uint64_t seed,
                               size_t bytes)
{
    cleanup_free char *content = NULL, *expected = malloc(bytes);
    size_t got;
    fill_bytes(expected, bytes, seed, 0);
    assert_int_equal(store_read_all(store, id, bytes, &content, &got), 0);
    assert_int_equal(got, bytes);
    assert_memory_equal(content, expected, bytes);
}

static inline void check_object(struct spilling *spilling, unsigned index)
{
    check_bytes(store_of(spilling), &spilling->objects[index].id, index, UNIT_MIB);
}

static inline errint_t read_object(struct spilling *spilling, unsigned index)
{
    cleanup_free char *content = NULL;
    size_t bytes;
    return store_read_all(store_of(spilling), &spilling->objects[index].id, UNIT_MIB, &content,
                          &bytes);
}

/* Of an object on disk, what is in the page cache is read at once, and the rest is not. */
static inline void check_reads_without_waiting(struct spilling *spilling, unsigned index)
{
    enum { BYTES = 8192, NEAR_END = UNIT_MIB - BYTES / 2 };
    struct store *store = store_of(spilling);
    uint64_t number = spilling->objects[index].number;
    char expected[BYTES], end[BYTES], got[BYTES];
    struct store_file file;
    fill_bytes(expected, BYTES, index, 0);
    fill_bytes(end, BYTES / 2, index, NEAR_END);
    assert_int_equal(store_opened(store, number), 0);
    assert_int_equal(store_verify(store, number), 0);
    assert_int_equal(store_readable_now(store, number), 0); /* it was just looked at */
    assert_int_equal(store_open_file_now(store, number, &file), 0);
    assert_int_not_equal(file.form, STORE_IN_MEMORY);
    assert_int_equal(posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    assert_int_equal(store_read_file_now(store, number, &file, got, BYTES, 0), -EAGAIN);
    assert_int_equal(store_read_file_now(store, number, &file, got, BYTES, NEAR_END), -EAGAIN);
    assert_int_equal(store_read_file(store, number, &file, got, BYTES, 0), BYTES);
    assert_int_equal(store_read_file(store, number, &file, got, BYTES, NEAR_END), BYTES / 2);
    memset(got, 0, BYTES);
    assert_int_equal(store_read_file_now(store, number, &file, got, BYTES, 0), BYTES);
    assert_memory_equal(got, expected, BYTES);
    assert_int_equal(store_read_file_now(store, number, &file, got, BYTES, NEAR_END), BYTES / 2);
    assert_memory_equal(got, end, BYTES / 2);
    assert_int_equal(store_read_file_now(store, number, &file, got, BYTES, UNIT_MIB), 0);
    close(file.fd);
    store_open_dropped(store, number);
}

/* TIER_NONE: it isn't there. */
static inline enum object_tier tier_of(struct spilling *spilling, unsigned index)
{
    struct object_info info;
    return store_info(store_of(spilling), spilling->objects[index].number, &info) ? TIER_NONE
                                                                                  : info.tier;
}

static inline struct store_usage usage_of(struct spilling *spilling)
{
    struct store_usage usage;
    store_usage(store_of(spilling), &usage);
    return usage;
}

/* The evictor has done its work: it has come below the low mark, or it sleeps, which it does not
 * while a file is staged. */
static inline bool memory_is_settled(struct spilling *spilling)
{
    struct store *store = store_of(spilling);
    uint64_t used = usage_of(spilling).memory_used_bytes;
    return used <= spill_mark(store, SPILL_LOW_WATERMARK) ||
           (used <= spill_mark(store, SPILL_HIGH_WATERMARK) &&
            !atomic_load(&store->spill.evictor_awake));
}

static inline void open_object(struct spilling *spilling, unsigned index)
{
    assert_int_equal(store_opened(store_of(spilling), spilling->objects[index].number), 0);
}

static inline void close_object(struct spilling *spilling, unsigned index)
{
    store_open_dropped(store_of(spilling), spilling->objects[index].number);
}

/* Puts seven, of which some stay in memory and others go to disk; 0 is among the latter. */
static inline void put_seven(struct spilling *spilling)
{
    put_some(spilling, 7);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK && memory_is_settled(spilling));
}

/* Fifteen objects, in memory and in both directories. */
static inline void put_striped(struct spilling *spilling)
{
    spilling->dirs[1] = spilling->disk_dirs[1];
    spilling_open(spilling);
    for (unsigned i = 0; i < 15; i++) {
        put_some(spilling, 1);
        WAIT_UNTIL(memory_is_settled(spilling));
    }
}

static inline bool has_name(struct spilling *spilling, unsigned index)
{
    char name[16];
    struct name_info info;
    name_of(index, name);
    return names_find(store_of(spilling), NAMES_STAGING, name, &info) == 0;
}

/* --- what is behind it --- */

static inline size_t files_in(const char *dir)
{
    char path[128];
    size_t count = 0;
    const struct dirent *entry;
    snprintf(path, sizeof path, "%s/objects", dir);
    DIR *listed = opendir(path);
    while (listed && (entry = readdir(listed)))
        count += entry->d_name[0] != '.';
    if (listed)
        closedir(listed);
    return count;
}

static inline size_t block_records(struct store *store)
{
    struct meta_reader *reader;
    MDB_stat stat;
    assert_int_equal(meta_read_begin(&store->meta, &reader), 0);
    assert_int_equal(mdb_stat(reader->txn, store->meta.tables[META_BLOCKS], &stat), 0);
    meta_read_end(reader);
    return stat.ms_entries;
}

/* Another `blocks` record for a data file; NULL: none. */
static inline void set_block_record(struct store *store, uint64_t file, const void *value,
                                    size_t bytes)
{
    MDB_txn *txn;
    store_write_lock(store);
    assert_int_equal(meta_begin(&store->meta, bytes, &txn), 0);
    if (value)
        assert_int_equal(meta_put_number(&store->meta, txn, META_BLOCKS, file, value, bytes), 0);
    else
        assert_int_equal(meta_delete_number(&store->meta, txn, META_BLOCKS, file), 0);
    assert_int_equal(meta_commit(txn), 0);
    store_write_unlock(store);
}

static inline bool has_block_record(struct store *store, uint64_t file)
{
    struct meta_reader *reader;
    const void *value;
    size_t bytes;
    assert_int_equal(meta_read_begin(&store->meta, &reader), 0);
    errint_t error = meta_get_number(&store->meta, reader->txn, META_BLOCKS, file, &value, &bytes);
    meta_read_end(reader);
    return error == 0;
}

/* Nothing of any object is left, in memory, on disk, or in LMDB. */
static inline void check_nothing_is_left(struct spilling *spilling)
{
    WAIT_UNTIL(!usage_of(spilling).disk_used_bytes && !files_in(spilling->disk_dirs[0]) &&
               !files_in(spilling->disk_dirs[1]));
    WAIT_UNTIL(!block_records(store_of(spilling)));
    assert_int_equal(usage_of(spilling).objects_ready, 0);
    assert_int_equal(usage_of(spilling).memory_used_bytes, 0);
    assert_int_equal(usage_of(spilling).spilling_bytes, 0);
}

#endif
