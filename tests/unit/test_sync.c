/* What fsync(2) and sync(1) ask for: copies, notes, settling, and what a crash leaves of them. A
 * crash is a copy of the state directory, opened with an empty memory. */
#include "core/store/journal_internal.h"
#include "tests/unit/spill_fixture.h"

#include <sys/wait.h>

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_fsync(int fd);
int __wrap_fsync(int fd);

static atomic_int flush_failures; /* so many flushes fail yet */
static atomic_int flushes;

static bool flush_fails(void)
{
    atomic_fetch_add(&flushes, 1);
    if (atomic_load(&flush_failures) <= 0)
        return false;
    atomic_fetch_sub(&flush_failures, 1);
    errno = EIO;
    return true;
}

int __wrap_fdatasync(int fd)
{
    return flush_fails() ? -1 : __real_fdatasync(fd);
}

int __wrap_fsync(int fd)
{
    return flush_fails() ? -1 : __real_fsync(fd);
}

enum { LARGE = 3 * MIB + 5000, SMALL = 2000 };

static char *content_of(size_t bytes, uint64_t seed)
{
    char *content = calloc(1, bytes + 8);
    fill_bytes(content, bytes, seed, 0);
    return content;
}

/* Makes a file that is still open. */
static uint64_t make_open(struct store *store, const char *name, size_t bytes, uint64_t seed)
{
    struct staged_info info;
    cleanup_free char *content = content_of(bytes, seed);
    assert_int_equal(staged_create(store, NAMES_STAGING, name, 0644, 1000, 1000, 0, &info), 0);
    assert_int_equal(staged_write(store, info.number, content, bytes, 0), bytes);
    return info.number;
}

static uint64_t close_and_commit(struct store *store, uint64_t number, struct mob_id *id)
{
    uint64_t object;
    struct mob_error err = {0};
    assert_int_equal(staged_closed(store, number), 0);
    if (staged_commit(store, number, id, &object, &err))
        fail_msg("%s", err.message);
    return object;
}

static bool has_note(struct store *store, uint64_t number)
{
    struct meta_reader *reader;
    const void *value;
    size_t bytes;
    assert_int_equal(meta_read_begin(&store->meta, &reader), 0);
    errint_t error =
        meta_get_number(&store->meta, reader->txn, META_SYNCED, number, &value, &bytes);
    meta_read_end(reader);
    return !error;
}

static size_t files_on_disk(const char *spill_dir)
{
    char path[160];
    size_t count = 0;
    const struct dirent *entry;
    snprintf(path, sizeof path, "%s/objects", spill_dir);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir)))
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

/* The state as it is now, and no memory. */
static struct spilling *crash(struct spilling *spilling)
{
    struct spilling *after = spilling_new();
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s' && cp -a --sparse=always '%s' '%s'",
             after->fixture.state_dir, spilling->fixture.state_dir, after->fixture.state_dir);
    assert_int_equal(system(command), 0);
    spilling_open(after);
    return after;
}

static void end_crash(struct spilling *after)
{
    void *state = after;
    spilling_teardown(&state);
}

/* What recovery took up of files that were never closed is committed by who has the mount. */
static void commit_recovered(void *argument, const struct staged_info *info)
{
    struct mob_id id;
    assert_true(info->closed);
    assert_int_equal(staged_commit(argument, info->number, &id, NULL, NULL), 0);
}

static void assert_content(struct store *store, const char *name, size_t bytes, uint64_t seed)
{
    struct name_info info;
    struct object_info object;
    cleanup_free char *expected = content_of(bytes, seed), *got = NULL;
    size_t got_bytes;
    staged_each(store, commit_recovered, store);
    assert_int_equal(names_find(store, NAMES_STAGING, name, &info), 0);
    assert_int_equal(info.type, NAME_OBJECT);
    assert_int_equal(store_info(store, info.number, &object), 0);
    assert_int_equal(store_opened(store, info.number), 0);
    if (object.tier == TIER_DISK)
        assert_int_equal(store_verify(store, info.number), 0);
    assert_int_equal(store_read_all(store, &info.target, bytes + 1, &got, &got_bytes), 0);
    assert_int_equal(got_bytes, bytes);
    assert_memory_equal(got, expected, bytes);
    store_open_dropped(store, info.number);
}

static void assert_no_name(struct store *store, const char *name)
{
    struct name_info info;
    staged_each(store, commit_recovered, store);
    assert_int_equal(names_find(store, NAMES_STAGING, name, &info), -ENOENT);
}

/* --- fsync before close --- */

static void an_open_file_is_there_after_a_crash_as_it_was_when_it_was_synced(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    uint64_t small = make_open(store, "small", SMALL, 1),
             large = make_open(store, "large", LARGE, 2);
    make_open(store, "unsynced", SMALL, 3);
    assert_int_equal(staged_sync(store, small, NULL), 0);
    assert_int_equal(staged_sync(store, large, NULL), 0);
    assert_int_equal(staged_write(store, small, "more", 4, SMALL), 4);
    assert_int_equal(staged_write(store, large, "more", 4, LARGE), 4);
    struct spilling *after = crash(spilling);
    assert_content(store_of(after), "small", SMALL, 1);
    assert_content(store_of(after), "large", LARGE, 2);
    assert_no_name(store_of(after), "unsynced");
    spilling_reopen(after);
    assert_content(store_of(after), "small", SMALL, 1);
    assert_content(store_of(after), "large", LARGE, 2);
    end_crash(after);
}

static void a_second_sync_replaces_the_first_copy(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    uint64_t number = make_open(store, "file", LARGE, 1);
    cleanup_free char *content = content_of(LARGE, 9);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    assert_int_equal(staged_write(store, number, content, LARGE, 0), LARGE);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    disk_settle(store);
    WAIT_UNTIL(files_on_disk(spilling->disk_dirs[0]) == 1);
    struct spilling *after = crash(spilling);
    assert_content(store_of(after), "file", LARGE, 9);
    end_crash(after);
}

static void a_file_that_did_not_change_since_is_not_copied_again(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct mob_id id;
    struct store_usage usage;
    uint64_t number = make_open(store, "file", LARGE, 1);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    uint64_t object = close_and_commit(store, number, &id);
    WAIT_UNTIL(!has_note(store, number));
    WAIT_UNTIL(files_on_disk(spilling->disk_dirs[0]) == 1);
    pthread_mutex_lock(&store->spill.sync_lock); /* what settles is done with it */
    pthread_mutex_unlock(&store->spill.sync_lock);
    store_usage(store, &usage);
    assert_int_equal(usage.spilled_bytes, 0);
    assert_true(usage.disk_used_bytes >= LARGE && usage.disk_used_bytes < LARGE + 2 * 4096);
    struct spilling *after = crash(spilling);
    struct object_info info;
    assert_int_equal(store_find(store_of(after), &id, &info), 0);
    assert_int_equal(info.number, object);
    assert_content(store_of(after), "file", LARGE, 1);
    end_crash(after);
}

static void a_file_that_changed_since_gets_a_copy_of_its_own(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct mob_id id;
    cleanup_free char *content = content_of(LARGE, 7);
    uint64_t number = make_open(store, "file", LARGE, 1);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    assert_int_equal(staged_write(store, number, content, LARGE, 0), LARGE);
    close_and_commit(store, number, &id);
    WAIT_UNTIL(!has_note(store, number));
    WAIT_UNTIL(files_on_disk(spilling->disk_dirs[0]) == 1);
    struct spilling *after = crash(spilling);
    assert_true(fixture_exists(store_of(after), &id));
    assert_content(store_of(after), "file", LARGE, 7);
    end_crash(after);
}

/* With sync_lock nothing settles: the crash comes between the commit and that. */
static void a_crash_after_the_commit_and_before_settling_has_what_was_synced(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct mob_id id;
    uint64_t number = make_open(store, "file", LARGE, 1),
             other = make_open(store, "grown", SMALL, 2);
    cleanup_free char *content = content_of(LARGE, 3);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    assert_int_equal(staged_sync(store, other, NULL), 0);
    assert_int_equal(staged_write(store, other, content, LARGE, 0), LARGE);
    pthread_mutex_lock(&store->spill.sync_lock);
    close_and_commit(store, number, &id);
    close_and_commit(store, other, &id);
    struct spilling *after = crash(spilling);
    pthread_mutex_unlock(&store->spill.sync_lock);
    assert_content(store_of(after), "file", LARGE, 1);
    assert_content(store_of(after), "grown", SMALL, 2);
    end_crash(after);
}

static void a_restart_settles_what_was_not(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct mob_id id;
    uint64_t number = make_open(store, "file", LARGE, 1);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    pthread_mutex_lock(&store->spill.sync_lock);
    close_and_commit(store, number, &id);
    pthread_mutex_lock(&store->settler.lock);
    store->settler.count = 0; /* as if it had been killed */
    pthread_mutex_unlock(&store->settler.lock);
    pthread_mutex_unlock(&store->spill.sync_lock);
    spilling_reopen(spilling);
    WAIT_UNTIL(!has_note(store_of(spilling), number));
    WAIT_UNTIL(files_on_disk(spilling->disk_dirs[0]) == 1);
    assert_content(store_of(spilling), "file", LARGE, 1);
}

static void a_discarded_file_takes_its_copy_with_it(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct store_usage usage;
    uint64_t number = make_open(store, "file", LARGE, 1);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "file", NULL, NULL), 0);
    assert_int_equal(staged_closed(store, number), 0);
    assert_false(has_note(store, number));
    disk_settle(store);
    store_usage(store, &usage);
    assert_int_equal(usage.disk_used_bytes, 0);
    assert_int_equal(files_on_disk(spilling->disk_dirs[0]), 0);
    assert_int_equal(store_sync_names(store), 0);
    struct spilling *after = crash(spilling);
    assert_no_name(store_of(after), "file");
    end_crash(after);
}

static void what_was_synced_is_committed_when_the_mount_died_with_it_open(void **state)
{
    struct spilling *spilling = *state;
    uint64_t number = make_open(store_of(spilling), "file", LARGE, 1);
    make_open(store_of(spilling), "other", LARGE, 2);
    assert_int_equal(staged_sync(store_of(spilling), number, NULL), 0);
    spilling_reopen(spilling);
    store_discard_unopened(store_of(spilling));
    assert_content(store_of(spilling), "file", LARGE, 1);
    assert_no_name(store_of(spilling), "other");
}

/* --- objects and everything --- */

static void an_object_that_is_synced_survives_with_its_id(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct mob_id small, large, lost;
    struct object_info info;
    uint64_t objects[2];
    objects[0] = close_and_commit(store, make_open(store, "small", SMALL, 1), &small);
    objects[1] = close_and_commit(store, make_open(store, "large", LARGE, 2), &large);
    close_and_commit(store, make_open(store, "lost", LARGE, 3), &lost);
    for (int i = 0; i < 2; i++)
        assert_int_equal(store_sync_object(store, objects[i]), 0);
    struct spilling *after = crash(spilling);
    assert_int_equal(store_find(store_of(after), &small, &info), 0);
    assert_int_equal(store_find(store_of(after), &large, &info), 0);
    assert_int_equal(store_find(store_of(after), &lost, &info), -ENOENT);
    assert_content(store_of(after), "small", SMALL, 1);
    assert_content(store_of(after), "large", LARGE, 2);
    assert_no_name(store_of(after), "lost");
    end_crash(after);
}

static void everything_is_synced_at_once(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct mob_id id;
    char name[16];
    for (unsigned i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "large-%u", i);
        close_and_commit(store, make_open(store, name, LARGE, 10 + i), &id);
    }
    make_open(store, "open", LARGE, 1);
    assert_int_equal(store_sync_all(store), 0);
    struct spilling *after = crash(spilling);
    for (unsigned i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "large-%u", i);
        assert_content(store_of(after), name, LARGE, 10 + i);
    }
    assert_content(store_of(after), "open", LARGE, 1);
    end_crash(after);
}

static void without_a_spill_directory_only_small_objects_can_be_durable(void **state)
{
    struct spilling *spilling = *state;
    struct mob_error err = {0};
    struct mob_id id;
    spilling->fixture.options.spill_dirs = NULL;
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    uint64_t small = make_open(store, "small", SMALL, 1),
             large = make_open(store, "large", LARGE, 2);
    assert_int_equal(staged_sync(store, small, &err), 0);
    assert_int_equal(staged_sync(store, large, &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.message, "spill directory"));
    uint64_t object = close_and_commit(store, large, &id);
    assert_int_equal(store_sync_object(store, object), -EOPNOTSUPP);
    assert_int_equal(store_sync_all(store), -EOPNOTSUPP);
}

/* --- failures --- */

/* No snapshot is being written, or about to be: its flushes would be counted. */
static bool journal_rests(struct journal *journal)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    return !journal->wanted && !journal->urgent && !journal->attempting && journal->old_fd < 0;
}

static void a_failed_flush_is_never_called_durable(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    uint64_t number = make_open(store, "file", LARGE, 1);
    struct mob_id id;
    uint64_t object = close_and_commit(store, make_open(store, "object", LARGE, 2), &id);
    assert_int_equal(store_sync_names(store), 0);
    WAIT_UNTIL(journal_rests(store->journal));
    /* First the copy's own flush, then its directory's; then the journal's, and what is tried
     * instead. */
    for (int at = 0; at < 2; at++) {
        atomic_store(&flush_failures, 1);
        if (at) { /* let the first one pass */
            atomic_store(&flush_failures, 0);
            atomic_store(&flushes, 0);
        }
        errint_t error = staged_sync(store, number, NULL);
        assert_int_equal(error, at ? 0 : -EIO);
        assert_int_equal(has_note(store, number), at);
    }
    atomic_store(&flush_failures, 1000);
    assert_int_equal(staged_sync(store, number, NULL), -EIO);
    assert_int_equal(store_sync_object(store, object), -EIO);
    assert_int_equal(store_sync_names(store), -EIO);
    atomic_store(&flush_failures, 0);
    assert_int_equal(store_sync_object(store, object), 0);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    struct spilling *after = crash(spilling);
    assert_content(store_of(after), "file", LARGE, 1);
    assert_content(store_of(after), "object", LARGE, 2);
    end_crash(after);
}

static void a_full_disk_fails_the_fsync_and_leaves_nothing(void **state)
{
    struct spilling *spilling = *state;
    struct store_usage usage;
    spilling->fixture.options.disk_bytes = 2 * MIB;
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    uint64_t number = make_open(store, "file", LARGE, 1);
    assert_int_equal(staged_sync(store, number, NULL), -ENOSPC);
    assert_false(has_note(store, number));
    assert_int_equal(files_on_disk(spilling->disk_dirs[0]), 0);
    store_usage(store, &usage);
    assert_int_equal(usage.disk_used_bytes, 0);
}

static void notes_that_are_not_well_formed_are_left_out(void **state)
{
    struct synced_view view;
    char value[sizeof(struct synced_record) + 100];
    struct synced_record good = {.version = 1, .name_bytes = 4, .parent = 1, .size = 96};
    (void)state;
    memset(value, 'x', sizeof value);
    memcpy(value, &good, sizeof good);
    assert_true(synced_decode(1, value, sizeof value, &view));
    assert_int_equal(view.record.size, 96);
    for (size_t bytes = 0; bytes < sizeof value; bytes += 13)
        assert_false(synced_decode(1, value, bytes, &view));
    struct synced_record bad[8];
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++)
        bad[i] = good;
    bad[0].version = 2;
    bad[1].name_bytes = 0;
    bad[2].size = UINT64_MAX;
    bad[3].parent = STORE_NUMBER_LIMIT;
    bad[4].xattrs_bytes = UINT32_MAX;
    bad[5].file = 7; /* then checksums must follow */
    bad[6].object = STORE_NUMBER_LIMIT;
    bad[7].size = 95;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++) {
        memcpy(value, &bad[i], sizeof bad[i]);
        assert_false(synced_decode(1, value, sizeof value, &view));
    }
    memcpy(value, &good, sizeof good);
    value[sizeof good + 1] = '/';
    assert_false(synced_decode(1, value, sizeof value, &view));
}

static void a_copy_that_is_damaged_is_never_read(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct name_info info;
    char command[300];
    uint64_t number = make_open(store, "file", LARGE, 1);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    snprintf(command, sizeof command,
             "for f in '%s'/objects/*; do printf X | dd of=$f bs=1 seek=2000000 conv=notrunc "
             "status=none; done",
             spilling->disk_dirs[0]);
    assert_int_equal(system(command), 0);
    struct spilling *after = crash(spilling);
    staged_each(store_of(after), commit_recovered, store_of(after));
    assert_int_equal(names_find(store_of(after), NAMES_STAGING, "file", &info), 0);
    assert_int_equal(store_opened(store_of(after), info.number), 0);
    assert_int_equal(store_verify(store_of(after), info.number), -EIO);
    store_open_dropped(store_of(after), info.number);
    end_crash(after);
}

/* Many who wait share a flush. */
static void *sync_one(void *argument)
{
    return (void *)(intptr_t)store_sync_names(argument);
}

static void those_who_wait_at_a_time_share_a_flush(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    enum { THREADS = 16 };
    pthread_t threads[THREADS];
    void *error;
    struct journal_usage before, after;
    assert_int_equal(store_sync_names(store), 0);
    journal_usage(store->journal, &before);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, sync_one, store), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], &error);
        assert_null(error);
    }
    journal_usage(store->journal, &after);
    assert_int_equal(after.syncs, before.syncs); /* nothing was written since */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, spilling_setup, spilling_teardown)
#define TEST_CLOSED(name)                                                                          \
    cmocka_unit_test_setup_teardown(name, spilling_setup_closed, spilling_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_open_file_is_there_after_a_crash_as_it_was_when_it_was_synced),
        TEST(a_second_sync_replaces_the_first_copy),
        TEST(a_file_that_did_not_change_since_is_not_copied_again),
        TEST(a_file_that_changed_since_gets_a_copy_of_its_own),
        TEST(a_crash_after_the_commit_and_before_settling_has_what_was_synced),
        TEST(a_restart_settles_what_was_not),
        TEST(a_discarded_file_takes_its_copy_with_it),
        TEST(what_was_synced_is_committed_when_the_mount_died_with_it_open),
        TEST(an_object_that_is_synced_survives_with_its_id),
        TEST(everything_is_synced_at_once),
        TEST_CLOSED(without_a_spill_directory_only_small_objects_can_be_durable),
        TEST(a_failed_flush_is_never_called_durable),
        TEST_CLOSED(a_full_disk_fails_the_fsync_and_leaves_nothing),
        cmocka_unit_test(notes_that_are_not_well_formed_are_left_out),
        TEST(a_copy_that_is_damaged_is_never_read),
        TEST(those_who_wait_at_a_time_share_a_flush),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
