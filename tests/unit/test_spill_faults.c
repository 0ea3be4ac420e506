/* Unit tests of spilling: a disk that is taken away, and servers that are killed while objects are
 * open. */
#include "tests/unit/spill_fixture.h"

#include <ftw.h>

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info, (void)type, (void)where;
    return remove(path);
}

static void remove_objects(struct spilling *spilling)
{
    char path[128];
    snprintf(path, sizeof path, "%s/objects", spilling->disk_dirs[0]);
    assert_int_equal(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

static bool evictor_has_looked(struct spilling *spilling)
{
    return strcmp(usage_of(spilling).spill_io, "starting") != 0;
}

static void what_is_open_since_the_last_server_is_not_spilled_before_it_is_counted(void **state)
{
    struct spilling *spilling = *state;
    for (unsigned i = 0; i < 7; i++) { /* too much, but what is open stays */
        put_some(spilling, 1);
        open_object(spilling, i);
    }
    fixture_close(&spilling->fixture);
    fixture_open(&spilling->fixture);
    WAIT_UNTIL(evictor_has_looked(spilling));
    for (unsigned looks = 0; looks < 200; looks++, wait_a_little()) /* what it began would end */
        for (unsigned i = 0; i < 7; i++)
            assert_int_equal(tier_of(spilling, i), TIER_MEMORY);
    for (unsigned i = 0; i < 7; i++)
        open_object(spilling, i);
    store_collect(store_of(spilling));
    close_object(spilling, 3);
    WAIT_UNTIL(tier_of(spilling, 3) == TIER_DISK);
    for (unsigned i = 0; i < 7; i++) {
        assert_int_equal(tier_of(spilling, i), i == 3 ? TIER_DISK : TIER_MEMORY);
        check_object(spilling, i);
    }
}

static void objects_that_somebody_removes_give_eio_and_others_are_spilled_again(void **state)
{
    struct spilling *spilling = *state;
    put_seven(spilling);
    remove_objects(spilling);
    for (unsigned i = 0; i < 7; i++) {
        if (tier_of(spilling, i) == TIER_MEMORY)
            check_object(spilling, i);
        else
            assert_int_equal(read_object(spilling, i), -EIO);
    }
    assert_true(usage_of(spilling).damaged > 0);
    drop_all(spilling);
    WAIT_UNTIL(!usage_of(spilling).memory_used_bytes && !usage_of(spilling).disk_used_bytes);
    spilling->count = 0;
    put_seven(spilling);
    spilling_reopen(spilling);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
}

/* Its own directories above objects/ are gone as well. */
static void a_spill_directory_that_is_removed_is_made_again(void **state)
{
    struct spilling *spilling = *state;
    put_seven(spilling);
    assert_int_equal(nftw(spilling->disk_dirs[0], remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
    drop_all(spilling);
    WAIT_UNTIL(!usage_of(spilling).memory_used_bytes && !usage_of(spilling).disk_used_bytes);
    spilling->count = 0;
    put_seven(spilling);
    assert_true(files_in(spilling->disk_dirs[0]) > 0);
    spilling_reopen(spilling);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
}

/* A spare file whose name is gone would take a put's bytes with it. */
static void a_spare_file_that_somebody_removed_is_not_used(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct data_file file, other;
    assert_int_equal(data_take(store, true, &file), 0);
    uint64_t first = file.file;
    data_give_back(store, &file, true);
    disk_settle(store);
    remove_objects(spilling);
    assert_int_equal(data_take(store, true, &other), 0);
    assert_int_not_equal(other.file, first);
    assert_int_equal(files_in(spilling->disk_dirs[0]), 1);
    data_give_back(store, &other, true);
}

static void a_file_that_is_written_when_somebody_removes_it_is_not_committed(void **state)
{
    struct spilling *spilling = *state;
    struct staged_info info, small;
    struct mob_id id;
    struct mob_error err = {0};
    cleanup_free char *buffer = calloc(1, UNIT_MIB);
    spilling->fixture.options.passthrough = true; /* what is opened O_RDWR begins on disk */
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    assert_int_equal(staged_create_for(store, NAMES_STAGING, "a", 0644, 0, 0, 0, O_RDWR, &info), 0);
    assert_int_equal(staged_create_for(store, NAMES_STAGING, "b", 0644, 0, 0, 0, O_RDWR, &small),
                     0);
    assert_true(info.on_disk && small.on_disk);
    assert_int_equal(staged_write(store, info.number, buffer, UNIT_MIB, 0), UNIT_MIB);
    assert_int_equal(staged_write(store, small.number, "small", 5, 0), 5);
    assert_int_equal(staged_check(store, info.number, &err), 0);
    remove_objects(spilling);
    assert_int_equal(staged_check(store, info.number, &err), -EIO);
    assert_non_null(strstr(err.message, "was removed from the spill directory"));
    assert_int_equal(staged_commit(store, info.number, &id, NULL, &err), -EIO);
    assert_int_equal(staged_check(store, small.number, &err), 0);
    assert_int_equal(staged_commit(store, small.number, &id, NULL, &err), 0);
    staged_closed(store, info.number);
    staged_closed(store, small.number);
}

#define OPENED(test) cmocka_unit_test_setup_teardown(test, spilling_setup, spilling_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        OPENED(what_is_open_since_the_last_server_is_not_spilled_before_it_is_counted),
        OPENED(objects_that_somebody_removes_give_eio_and_others_are_spilled_again),
        OPENED(a_spill_directory_that_is_removed_is_made_again),
        OPENED(a_spare_file_that_somebody_removed_is_not_used),
        cmocka_unit_test_setup_teardown(
            a_file_that_is_written_when_somebody_removes_it_is_not_committed, spilling_setup_closed,
            spilling_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
