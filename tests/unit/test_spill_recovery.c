/* Unit tests of spilling: restarts, loss of memory or of a disk, spill directories. */
#include "tests/unit/spill_fixture.h"

/* Transactions that add something find no room in the threads of this name. */
static _Atomic(const char *) without_room;

errint_t __real_meta_begin(struct meta *meta, uint64_t new_bytes, MDB_txn **txn);
errint_t __wrap_meta_begin(struct meta *meta, uint64_t new_bytes, MDB_txn **txn);
errint_t __wrap_meta_begin(struct meta *meta, uint64_t new_bytes, MDB_txn **txn)
{
    char name[16] = "";
    const char *whose = atomic_load(&without_room);
    if (whose && new_bytes && pthread_getname_np(pthread_self(), name, sizeof name) == 0 &&
        !strcmp(name, whose))
        return -ENOSPC;
    return __real_meta_begin(meta, new_bytes, txn);
}

static int teardown(void **state)
{
    atomic_store(&without_room, NULL);
    return spilling_teardown(state);
}

/* --- what is done to the files --- */

static void lose_memory(struct spilling *spilling)
{
    char path[96], name[400];
    const struct dirent *entry;
    snprintf(path, sizeof path, "%s/data", spilling->fixture.memory_dir);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        assert_int_equal(unlink(name), 0);
    }
    closedir(dir);
}

static void close_and_lose_memory(struct spilling *spilling)
{
    fixture_close(&spilling->fixture);
    lose_memory(spilling);
}

static void tiers_of(struct spilling *spilling, enum object_tier tiers[SPILL_OBJECTS])
{
    for (unsigned i = 0; i < spilling->count; i++)
        tiers[i] = tier_of(spilling, i);
}

/* --- restarts --- */

static void after_a_restart_objects_on_disk_are_verified_before_they_are_read(void **state)
{
    struct spilling *spilling = *state;
    enum object_tier tiers[SPILL_OBJECTS];
    put_seven(spilling);
    check_object(spilling, 0);
    tiers_of(spilling, tiers);
    uint64_t used = usage_of(spilling).memory_used_bytes;
    uint64_t disk_used = usage_of(spilling).disk_used_bytes;
    spilling_reopen(spilling);
    assert_int_equal(usage_of(spilling).memory_used_bytes, used);
    assert_int_equal(usage_of(spilling).disk_used_bytes, disk_used);
    for (unsigned i = 0; i < 7; i++) {
        assert_int_equal(tier_of(spilling, i), tiers[i]);
        open_object(spilling, i);
        assert_int_equal(store_readable(store_of(spilling), spilling->objects[i].number),
                         tiers[i] == TIER_DISK ? -EAGAIN : 0);
        check_object(spilling, i);
        assert_int_equal(store_readable(store_of(spilling), spilling->objects[i].number), 0);
        close_object(spilling, i);
    }
    drop_all(spilling);
    check_nothing_is_left(spilling);
}

static void what_was_in_memory_only_is_reported_lost_with_it_and_its_name_goes(void **state)
{
    struct spilling *spilling = *state;
    enum object_tier tiers[SPILL_OBJECTS];
    char line[100], id[MOB_ID_STRING_BYTES], name[16];
    int kept = -1;
    put_seven(spilling);
    tiers_of(spilling, tiers);
    size_t records = block_records(store_of(spilling));
    close_and_lose_memory(spilling);
    log_caught(&kept);
    spilling_open(spilling);
    cleanup_free char *log = log_caught(&kept);
    assert_int_equal(usage_of(spilling).memory_used_bytes, 0);
    for (unsigned i = 0; i < 7; i++) {
        name_of(i, name);
        snprintf(line, sizeof line, "lost: staging/%s (%s)", name,
                 mob_id_format(&spilling->objects[i].id, id));
        if (tiers[i] == TIER_DISK) {
            check_object(spilling, i);
            assert_true(has_name(spilling, i));
            assert_null(strstr(log, line));
        } else {
            assert_int_equal(read_object(spilling, i), -ENOENT);
            assert_false(has_name(spilling, i));
            if (!strstr(log, line))
                fail_msg("no \"%s\" in: %s", line, log);
        }
    }
    assert_int_equal(block_records(store_of(spilling)), records);
}

static void objects_in_memory_with_a_copy_on_disk_outlive_the_memory(void **state)
{
    struct spilling *spilling = *state;
    put_some(spilling, 6);
    for (unsigned i = 0; i < 6; i++)
        open_object(spilling, i);
    assert_int_equal(store_spill_all(store_of(spilling)), 0);
    assert_int_equal(usage_of(spilling).disk_used_bytes, 6 * UNIT_MIB);
    assert_int_equal(usage_of(spilling).spilled_bytes, 6 * UNIT_MIB);
    for (unsigned i = 0; i < 6; i++)
        close_object(spilling, i);
    close_and_lose_memory(spilling);
    spilling_open(spilling);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(tier_of(spilling, i), TIER_DISK);
        check_object(spilling, i);
    }
    drop_all(spilling);
    check_nothing_is_left(spilling);
}

static void spilling_all_without_room_for_all_copies_what_it_can(void **state)
{
    struct spilling *spilling = *state;
    unsigned readable = 0;
    spilling->fixture.options.disk_bytes = 7 * MIB;
    spilling_open(spilling);
    put_some(spilling, 6);
    assert_int_equal(store_spill_all(store_of(spilling)), -ENOSPC);
    for (unsigned i = 0; i < 6; i++)
        check_object(spilling, i);
    close_and_lose_memory(spilling);
    spilling_open(spilling);
    for (unsigned i = 0; i < 6; i++)
        readable += read_object(spilling, i) == 0;
    assert_int_equal(readable, 3);
}

static void spilling_all_goes_on_after_one_that_cannot_be_copied(void **state)
{
    struct spilling *spilling = *state;
    enum { MANY = 50 }; /* of more than one round */
    struct object_info objects[MANY];
    char name[DATA_NAME_BYTES];
    spilling->fixture.options.inline_bytes = 1;
    spilling_open(spilling);
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "n%u", i);
        objects[i] = put(store_of(spilling), name, i, 8192);
    }
    assert_int_equal(unlinkat(store_of(spilling)->data_fd, data_name(objects[7].file, name), 0), 0);
    assert_int_equal(store_spill_all(store_of(spilling)), -ENOENT);
    close_and_lose_memory(spilling);
    spilling_open(spilling);
    for (unsigned i = 0; i < MANY; i++)
        if (i != 7)
            check_bytes(store_of(spilling), &objects[i].id, i, 8192);
}

static void without_spill_directories_nothing_can_be_spilled(void **state)
{
    struct spilling *spilling = *state;
    spilling->dirs[0] = NULL;
    spilling_open(spilling);
    put_some(spilling, 1);
    assert_int_equal(store_spill_all(store_of(spilling)), -EOPNOTSUPP);
    check_object(spilling, 0);
    assert_string_equal(usage_of(spilling).spill_io, "none");
}

static void a_copy_that_has_no_checksums_yet_gets_them_at_its_first_read(void **state)
{
    struct spilling *spilling = *state;
    put_seven(spilling);
    set_block_record(store_of(spilling), spilling->objects[0].file, NULL, 0);
    spilling_reopen(spilling);
    check_object(spilling, 0);
    assert_true(has_block_record(store_of(spilling), spilling->objects[0].file));
}

static void without_room_for_checksums_what_has_none_is_readable(void **state)
{
    struct spilling *spilling = *state;
    put_seven(spilling);
    set_block_record(store_of(spilling), spilling->objects[0].file, NULL, 0);
    spilling_reopen(spilling);
    atomic_store(&without_room, "fetcher");
    check_object(spilling, 0);
    assert_false(has_block_record(store_of(spilling), spilling->objects[0].file));
    assert_int_equal(usage_of(spilling).damaged, 0);
}

static void without_room_for_the_record_a_copy_is_taken_back(void **state)
{
    struct spilling *spilling = *state;
    atomic_store(&without_room, "evictor");
    put_some(spilling, 7);
    WAIT_UNTIL(usage_of(spilling).spill_errors > 0);
    atomic_store(&without_room, NULL);
    spill_room_came(store_of(spilling));
    WAIT_UNTIL(usage_of(spilling).objects_disk >= 1 && memory_is_settled(spilling));
    assert_int_equal(usage_of(spilling).disk_used_bytes,
                     files_in(spilling->disk_dirs[0]) * UNIT_MIB);
    spilling_reopen(spilling);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
}

static void a_committed_file_that_is_open_is_found_again_when_its_object_is_on_disk(void **state)
{
    struct spilling *spilling = *state;
    struct staged_info info, again;
    struct object_info object;
    struct mob_id id, same;
    struct mob_error err = {0};
    cleanup_free char *buffer = malloc(UNIT_MIB);
    assert_int_equal(staged_create(store_of(spilling), NAMES_STAGING, "a", 0644, 0, 0, 0, &info),
                     0);
    fill_bytes(buffer, UNIT_MIB, 77, 0);
    assert_int_equal(staged_write(store_of(spilling), info.number, buffer, UNIT_MIB, 0), UNIT_MIB);
    assert_int_equal(staged_commit(store_of(spilling), info.number, &id, NULL, &err), 0);
    put_some(spilling, 7);
    WAIT_UNTIL(store_find(store_of(spilling), &id, &object) == 0 && object.tier == TIER_DISK);
    fixture_close(&spilling->fixture);
    fixture_open(&spilling->fixture);
    assert_int_equal(staged_opened(store_of(spilling), info.number), 0);
    store_collect(store_of(spilling));
    assert_int_equal(staged_info(store_of(spilling), info.number, &again), 0);
    assert_true(again.committed);
    assert_int_equal(again.size, UNIT_MIB);
    assert_int_equal(staged_commit(store_of(spilling), info.number, &same, NULL, &err), 0);
    assert_memory_equal(&same, &id, sizeof id);
    uint64_t used = usage_of(spilling).disk_used_bytes;
    assert_int_equal(staged_closed(store_of(spilling), info.number), 0);
    assert_int_equal(usage_of(spilling).disk_used_bytes, used);
    check_bytes(store_of(spilling), &id, 77, UNIT_MIB);
}

/* --- what nobody names --- */

static void touch(const char *format, const char *dir, const char *name)
{
    char path[160];
    snprintf(path, sizeof path, format, dir, name);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "left", 4), 4);
    close(fd);
}

static void leftovers_are_swept_and_what_is_foreign_stays(void **state)
{
    struct spilling *spilling = *state;
    put_seven(spilling);
    size_t before = files_in(spilling->disk_dirs[0]);
    fixture_close(&spilling->fixture);
    touch("%s/objects/%s", spilling->disk_dirs[0], "000000000000abcd");
    touch("%s/objects/%s", spilling->disk_dirs[0], "letter");
    touch("%s/data/%s", spilling->fixture.memory_dir, SPILL_RESTORE_NAME);
    spilling_open(spilling);
    assert_int_equal(files_in(spilling->disk_dirs[0]), before + 1);
    assert_int_equal(faccessat(store_of(spilling)->data_fd, SPILL_RESTORE_NAME, F_OK, 0), -1);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
}

/* --- spill directories --- */

static void check_refused(struct spilling *spilling, const char *why)
{
    struct mob_error err = {0};
    assert_int_equal(store_open(&spilling->fixture.options, &spilling->fixture.store, &err),
                     -EINVAL);
    if (!strstr(err.message, why))
        fail_msg("\"%s\" does not say that it %s", err.message, why);
    assert_null(spilling->fixture.store);
}

static void write_identity(struct spilling *spilling, const char *text, size_t bytes)
{
    char path[128];
    snprintf(path, sizeof path, "%s/mobula-spill", spilling->disk_dirs[0]);
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_int_equal(write(fd, text, bytes), bytes);
    close(fd);
}

static void a_spill_directory_of_another_node_or_version_is_refused(void **state)
{
    struct spilling *spilling = *state;
    static const char other[] = "mobula spill directory\nversion 1\nowner 0807060504030201\n";
    static const char newer[] = "mobula spill directory\nversion 2\nowner 0102030405060708\n";
    static const char right[] = "mobula spill directory\nversion 1\nowner 0102030405060708\n";
    char much[1000];
    memset(much, 'x', sizeof much);
    put_seven(spilling);
    size_t files = files_in(spilling->disk_dirs[0]);
    fixture_close(&spilling->fixture);
    write_identity(spilling, other, strlen(other));
    check_refused(spilling, "belongs to another node");
    write_identity(spilling, newer, strlen(newer));
    check_refused(spilling, "another version");
    write_identity(spilling, "", 0);
    check_refused(spilling, "another version");
    write_identity(spilling, much, sizeof much);
    check_refused(spilling, "another version");
    assert_int_equal(files_in(spilling->disk_dirs[0]), files);
    write_identity(spilling, right, strlen(right));
    spilling_open(spilling);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
}

static void one_spill_directory_given_twice_is_refused_and_keeps_its_files(void **state)
{
    struct spilling *spilling = *state;
    put_seven(spilling);
    size_t files = files_in(spilling->disk_dirs[0]);
    fixture_close(&spilling->fixture);
    assert_int_equal(symlink(spilling->disk_dirs[0], spilling->disk_dirs[1]), 0);
    spilling->dirs[1] = spilling->disk_dirs[1];
    check_refused(spilling, "are the same spill directory");
    assert_int_equal(files_in(spilling->disk_dirs[0]), files);
    assert_int_equal(unlink(spilling->disk_dirs[1]), 0);
    spilling->dirs[1] = NULL;
    spilling_open(spilling);
    check_object(spilling, 0);
}

static void objects_are_striped_and_found_when_directories_change_places(void **state)
{
    struct spilling *spilling = *state;
    enum object_tier tiers[SPILL_OBJECTS];
    put_striped(spilling);
    size_t files[2] = {files_in(spilling->disk_dirs[0]), files_in(spilling->disk_dirs[1])};
    assert_true(files[0] >= 4 && files[1] >= 4);
    tiers_of(spilling, tiers);
    fixture_close(&spilling->fixture);
    spilling->dirs[0] = spilling->disk_dirs[1];
    spilling->dirs[1] = spilling->disk_dirs[0];
    spilling_open(spilling);
    for (unsigned i = 0; i < 15; i++) {
        assert_int_equal(tier_of(spilling, i), tiers[i]);
        check_object(spilling, i);
    }
    drop_all(spilling);
    check_nothing_is_left(spilling);
}

static void with_a_directory_given_up_what_was_there_is_reported_lost(void **state)
{
    struct spilling *spilling = *state;
    int kept = -1;
    unsigned lost = 0;
    char aside[128], expected[64];
    put_striped(spilling);
    size_t gone = files_in(spilling->disk_dirs[1]);
    size_t records = block_records(store_of(spilling));
    fixture_close(&spilling->fixture);
    snprintf(aside, sizeof aside, "%s-aside", spilling->disk_dirs[1]);
    assert_int_equal(rename(spilling->disk_dirs[1], aside), 0);
    const char *forgotten[] = {spilling->disk_dirs[1], NULL};
    spilling->fixture.options.forget_spill_dirs = forgotten;
    log_caught(&kept);
    spilling_open(spilling);
    cleanup_free char *log = log_caught(&kept);
    for (unsigned i = 0; i < 15; i++) {
        errint_t error = read_object(spilling, i);
        assert_true(!error || error == -ENOENT);
        lost += error == -ENOENT;
        assert_int_equal(has_name(spilling, i), !error);
        if (!error)
            check_object(spilling, i);
    }
    assert_int_equal(lost, gone);
    snprintf(expected, sizeof expected, "%u objects were lost", lost);
    assert_non_null(strstr(log, expected));
    assert_int_equal(block_records(store_of(spilling)), records - gone);
    /* What it had is of no use when it comes again. */
    fixture_close(&spilling->fixture);
    spilling->fixture.options.forget_spill_dirs = NULL;
    nftw(spilling->disk_dirs[1], fixture_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    assert_int_equal(rename(aside, spilling->disk_dirs[1]), 0);
    spilling_open(spilling);
    for (unsigned i = 0; i < 15; i++)
        if (has_name(spilling, i))
            drop(spilling, i);
    check_nothing_is_left(spilling);
}

static void a_directory_that_takes_nothing_leaves_it_to_the_other(void **state)
{
    struct spilling *spilling = *state;
    if (!spilling_mount(spilling, "200M"))
        skip();
    spilling->dirs[1] = spilling->disk_dirs[1];
    spilling_open(spilling);
    assert_int_equal(mount(NULL, spilling->disk_dirs[0], NULL, MS_REMOUNT | MS_RDONLY, NULL), 0);
    for (unsigned i = 0; i < 12; i++) {
        put_some(spilling, 1);
        WAIT_UNTIL(memory_is_settled(spilling));
    }
    assert_int_equal(usage_of(spilling).spill_errors, 0);
    assert_int_equal(files_in(spilling->disk_dirs[0]), 0);
    assert_true(files_in(spilling->disk_dirs[1]) >= 4);
    for (unsigned i = 0; i < 12; i++)
        check_object(spilling, i);
}

static void what_is_left_of_a_copy_in_one_directory_is_never_read_for_the_other(void **state)
{
    struct spilling *spilling = *state;
    char name[DATA_NAME_BYTES];
    spilling->dirs[1] = spilling->disk_dirs[1];
    spilling_open(spilling);
    put_some(spilling, 6);
    for (unsigned d = 0; d < 2; d++) /* as if its copies had failed, and not been removed */
        touch("%s/objects/%s", spilling->disk_dirs[d], data_name(spilling->objects[0].file, name));
    put_some(spilling, 1);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK && memory_is_settled(spilling));
    assert_int_equal(files_in(spilling->disk_dirs[0]) + files_in(spilling->disk_dirs[1]),
                     usage_of(spilling).objects_disk);
    assert_int_equal(usage_of(spilling).spill_errors, 0);
    check_object(spilling, 0);
    spilling_reopen(spilling);
    check_object(spilling, 0);
}

static void a_file_begins_in_memory_when_no_directory_takes_it(void **state)
{
    struct spilling *spilling = *state;
    struct staged_info info;
    if (!spilling_mount(spilling, "200M"))
        skip();
    spilling->fixture.options.passthrough = true;
    spilling_open(spilling);
    assert_int_equal(mount(NULL, spilling->disk_dirs[0], NULL, MS_REMOUNT | MS_RDONLY, NULL), 0);
    assert_int_equal(
        staged_create_for(store_of(spilling), NAMES_STAGING, "a", 0644, 0, 0, 0, O_RDWR, &info), 0);
    assert_false(info.on_disk);
}

int main(void)
{
#define OPENED(test) cmocka_unit_test_setup_teardown(test, spilling_setup, teardown)
#define CLOSED(test) cmocka_unit_test_setup_teardown(test, spilling_setup_closed, teardown)
    const struct CMUnitTest tests[] = {
        OPENED(after_a_restart_objects_on_disk_are_verified_before_they_are_read),
        OPENED(what_was_in_memory_only_is_reported_lost_with_it_and_its_name_goes),
        OPENED(objects_in_memory_with_a_copy_on_disk_outlive_the_memory),
        CLOSED(spilling_all_without_room_for_all_copies_what_it_can),
        CLOSED(spilling_all_goes_on_after_one_that_cannot_be_copied),
        CLOSED(without_spill_directories_nothing_can_be_spilled),
        OPENED(a_copy_that_has_no_checksums_yet_gets_them_at_its_first_read),
        OPENED(without_room_for_checksums_what_has_none_is_readable),
        OPENED(without_room_for_the_record_a_copy_is_taken_back),
        OPENED(a_committed_file_that_is_open_is_found_again_when_its_object_is_on_disk),
        OPENED(leftovers_are_swept_and_what_is_foreign_stays),
        OPENED(a_spill_directory_of_another_node_or_version_is_refused),
        OPENED(one_spill_directory_given_twice_is_refused_and_keeps_its_files),
        CLOSED(objects_are_striped_and_found_when_directories_change_places),
        CLOSED(with_a_directory_given_up_what_was_there_is_reported_lost),
        CLOSED(a_directory_that_takes_nothing_leaves_it_to_the_other),
        CLOSED(what_is_left_of_a_copy_in_one_directory_is_never_read_for_the_other),
        CLOSED(a_file_begins_in_memory_when_no_directory_takes_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
