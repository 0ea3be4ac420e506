/* Unit tests of spilling: directories that are missing, moved, given up; headers of their files. */
#include "tests/unit/spill_fixture.h"

#include <sys/xattr.h>

/* fsetxattr(2) fails with this. */
static atomic_int refuse_set;
/* Transactions that add something find no room. */
static atomic_bool without_room;

int __real_fsetxattr(int fd, const char *name, const void *value, size_t bytes, int flags);
int __wrap_fsetxattr(int fd, const char *name, const void *value, size_t bytes, int flags);
int __wrap_fsetxattr(int fd, const char *name, const void *value, size_t bytes, int flags)
{
    int refusal = atomic_load(&refuse_set);
    if (!refusal)
        return __real_fsetxattr(fd, name, value, bytes, flags);
    errno = refusal;
    return -1;
}

errint_t __real_meta_begin(struct meta *meta, uint64_t new_bytes, MDB_txn **txn);
errint_t __wrap_meta_begin(struct meta *meta, uint64_t new_bytes, MDB_txn **txn);
errint_t __wrap_meta_begin(struct meta *meta, uint64_t new_bytes, MDB_txn **txn)
{
    return atomic_load(&without_room) && new_bytes ? -ENOSPC
                                                   : __real_meta_begin(meta, new_bytes, txn);
}

static int teardown(void **state)
{
    atomic_store(&refuse_set, 0);
    atomic_store(&without_room, false);
    return spilling_teardown(state);
}

/* --- directories --- */

static void aside_of(struct spilling *spilling, unsigned index, char out[128])
{
    snprintf(out, 128, "%s-aside", spilling->disk_dirs[index]);
}

static void take_away(struct spilling *spilling, unsigned index)
{
    char aside[128];
    aside_of(spilling, index, aside);
    assert_int_equal(rename(spilling->disk_dirs[index], aside), 0);
}

static void bring_back(struct spilling *spilling, unsigned index)
{
    char aside[128];
    aside_of(spilling, index, aside);
    rmdir(spilling->disk_dirs[index]); /* if a test made it */
    assert_int_equal(rename(aside, spilling->disk_dirs[index]), 0);
}

static bool is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

static void check_refused(struct spilling *spilling, errint_t error, const char *const words[])
{
    struct mob_error err = {0};
    assert_int_equal(store_open(&spilling->fixture.options, &spilling->fixture.store, &err), error);
    assert_null(spilling->fixture.store);
    for (; *words; words++)
        if (!strstr(err.message, *words))
            fail_msg("\"%s\" does not say \"%s\"", err.message, *words);
}

#define CHECK_REFUSED(spilling, error, ...)                                                        \
    check_refused(spilling, error, (const char *const[]){__VA_ARGS__, NULL})

static void check_all(struct spilling *spilling)
{
    for (unsigned i = 0; i < spilling->count; i++)
        check_object(spilling, i);
}

static void identity_of(struct spilling *spilling, unsigned index, char out[200])
{
    char path[128];
    snprintf(path, sizeof path, "%s/mobula-spill", spilling->disk_dirs[index]);
    int fd = open(path, O_RDONLY);
    ssize_t got = read(fd, out, 199);
    assert_true(got > 0);
    out[got] = '\0';
    close(fd);
}

static void a_missing_directory_with_objects_is_refused_by_its_path_and_nothing_changes(
    void **state)
{
    struct spilling *spilling = *state;
    char number[32];
    put_striped(spilling);
    snprintf(number, sizeof number, "%zu objects are in", files_in(spilling->disk_dirs[1]));
    fixture_close(&spilling->fixture);
    take_away(spilling, 1);
    for (int i = 0; i < 2; i++) {
        CHECK_REFUSED(spilling, -ENOENT, number, spilling->disk_dirs[1], "not there", "mount its",
                      "--forget-spill");
        assert_false(is_there(spilling->disk_dirs[1])); /* not made at the mount point */
    }
    bring_back(spilling, 1);
    spilling_open(spilling);
    check_all(spilling);
    drop_all(spilling);
    check_nothing_is_left(spilling);
}

static void an_empty_directory_or_another_in_its_place_is_refused_and_stays_as_it_is(void **state)
{
    struct spilling *spilling = *state;
    char path[128], text[200];
    put_striped(spilling);
    fixture_close(&spilling->fixture);
    take_away(spilling, 1);
    assert_int_equal(mkdir(spilling->disk_dirs[1], 0700), 0);
    CHECK_REFUSED(spilling, -ENOENT, spilling->disk_dirs[1], "in its place");
    assert_int_equal(rmdir(spilling->disk_dirs[1]), 0); /* it is empty still */
    /* Another one of the same node, as after a start without the disk. */
    assert_int_equal(mkdir(spilling->disk_dirs[1], 0700), 0);
    snprintf(path, sizeof path, "%s/mobula-spill", spilling->disk_dirs[1]);
    identity_of(spilling, 0, text);
    memset(strstr(text, "\ndirectory ") + 11, '0', 32);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    CHECK_REFUSED(spilling, -ENOENT, spilling->disk_dirs[1], "another directory is in its place");
    assert_int_equal(unlink(path), 0);
    bring_back(spilling, 1);
    spilling_open(spilling);
    check_all(spilling);
}

static void a_directory_with_objects_that_is_not_given_any_more_is_refused(void **state)
{
    struct spilling *spilling = *state;
    put_striped(spilling);
    fixture_close(&spilling->fixture);
    spilling->dirs[1] = NULL;
    CHECK_REFUSED(spilling, -ENOENT, spilling->disk_dirs[1], "add it to those of --spill");
    spilling->dirs[0] = NULL; /* none at all */
    CHECK_REFUSED(spilling, -ENOENT, spilling->disk_dirs[0], "1 more");
    spilling->dirs[0] = spilling->disk_dirs[0];
    spilling->dirs[1] = spilling->disk_dirs[1];
    spilling_open(spilling);
    check_all(spilling);
}

static void a_directory_is_recognised_under_another_path(void **state)
{
    struct spilling *spilling = *state;
    char aside[128];
    put_striped(spilling);
    fixture_close(&spilling->fixture);
    take_away(spilling, 1);
    aside_of(spilling, 1, aside);
    spilling->dirs[1] = aside;
    spilling_open(spilling);
    check_all(spilling);
    /* From now on it is missed there. */
    fixture_close(&spilling->fixture);
    bring_back(spilling, 1);
    CHECK_REFUSED(spilling, -ENOENT, aside, "not there");
    spilling->dirs[1] = spilling->disk_dirs[1];
    spilling_open(spilling);
    check_all(spilling);
}

static void an_empty_directory_may_be_dropped_or_go(void **state)
{
    struct spilling *spilling = *state;
    spilling->dirs[1] = spilling->disk_dirs[1];
    spilling_open(spilling);
    put_some(spilling, 3); /* all in memory */
    fixture_close(&spilling->fixture);
    take_away(spilling, 1);
    spilling_open(spilling); /* is made again */
    assert_true(is_there(spilling->disk_dirs[1]));
    fixture_close(&spilling->fixture);
    spilling->dirs[1] = NULL;
    spilling_open(spilling);
    check_all(spilling);
    fixture_close(&spilling->fixture);
    spilling->dirs[0] = NULL;
    spilling_open(spilling);
    check_all(spilling);
}

static void what_is_lost_with_memory_is_sought_in_no_directory(void **state)
{
    struct spilling *spilling = *state;
    char name[DATA_NAME_BYTES];
    int kept = -1;
    spilling->dirs[1] = spilling->disk_dirs[1];
    spilling_open(spilling);
    put_some(spilling, 2); /* in memory */
    data_name(spilling->objects[0].file, name);
    assert_int_equal(unlinkat(store_of(spilling)->data_fd, name, 0), 0);
    fixture_close(&spilling->fixture);
    spilling->dirs[1] = NULL;
    log_caught(&kept);
    spilling_open(spilling);
    cleanup_free char *log = log_caught(&kept);
    assert_non_null(strstr(log, "lost: staging/o0"));
    assert_null(strstr(log, "is missing"));
    check_object(spilling, 1);
}

static void a_file_that_is_open_still_though_its_object_has_gone_is_not_missed(void **state)
{
    struct spilling *spilling = *state;
    struct staged_info info;
    struct mob_id id;
    struct mob_error err = {0};
    cleanup_free char *buffer = calloc(1, UNIT_MIB);
    spilling->dirs[1] = spilling->disk_dirs[1];
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    assert_int_equal(staged_create(store, NAMES_STAGING, "a", 0644, 0, 0, 0, &info), 0);
    assert_int_equal(staged_write(store, info.number, buffer, UNIT_MIB, 0), UNIT_MIB);
    assert_int_equal(staged_commit(store, info.number, &id, NULL, &err), 0);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "a", NULL, NULL), 0);
    assert_false(fixture_exists(store, &id));
    fixture_close(&spilling->fixture);
    spilling->dirs[1] = NULL;
    spilling_open(spilling);
}

static void a_directory_may_go_that_has_copies_only_of_what_is_in_memory(void **state)
{
    struct spilling *spilling = *state;
    spilling_open(spilling);
    put_some(spilling, 3);
    for (unsigned i = 0; i < 3; i++)
        open_object(spilling, i);
    assert_int_equal(store_spill_all(store_of(spilling)), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(tier_of(spilling, i), TIER_MEMORY);
    /* As a killed server leaves it: with the files in memory. */
    char name[DATA_NAME_BYTES], path[160], kept[160];
    for (unsigned i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/objects/%s", spilling->disk_dirs[0],
                 data_name(spilling->objects[i].file, name));
        snprintf(kept, sizeof kept, "%s/%s", spilling->fixture.state_dir, name);
        assert_int_equal(rename(path, kept), 0);
    }
    for (unsigned i = 0; i < 3; i++)
        close_object(spilling, i);
    fixture_close(&spilling->fixture);
    for (unsigned i = 0; i < 3; i++) {
        snprintf(kept, sizeof kept, "%s/%s", spilling->fixture.state_dir,
                 data_name(spilling->objects[i].file, name));
        snprintf(path, sizeof path, "%s/data/%s", spilling->fixture.memory_dir, name);
        int from = open(kept, O_RDONLY), to = open(path, O_RDWR | O_CREAT, 0600);
        cleanup_free char *bytes = malloc(UNIT_MIB);
        assert_int_equal(read(from, bytes, UNIT_MIB), UNIT_MIB);
        assert_int_equal(write(to, bytes, UNIT_MIB), UNIT_MIB);
        close(from);
        close(to);
    }
    take_away(spilling, 0);
    spilling_open(spilling);
    check_all(spilling);
}

static void giving_up_one_of_two_missing_directories_is_not_enough(void **state)
{
    struct spilling *spilling = *state;
    const char *forgotten[3] = {spilling->disk_dirs[1]};
    int kept = -1;
    put_striped(spilling);
    fixture_close(&spilling->fixture);
    take_away(spilling, 0);
    take_away(spilling, 1);
    CHECK_REFUSED(spilling, -ENOENT, spilling->disk_dirs[0], "1 more");
    spilling->fixture.options.forget_spill_dirs = forgotten;
    CHECK_REFUSED(spilling, -ENOENT, spilling->disk_dirs[0]);
    forgotten[1] = spilling->disk_dirs[0];
    log_caught(&kept);
    spilling_open(spilling);
    cleanup_free char *log = log_caught(&kept);
    for (unsigned d = 0; d < 2; d++)
        assert_non_null(strstr(log, spilling->disk_dirs[d]));
    assert_non_null(strstr(log, "lost: staging/"));
    /* With them given up, the next start misses nothing. */
    fixture_close(&spilling->fixture);
    spilling->fixture.options.forget_spill_dirs = NULL;
    spilling_open(spilling);
}

static void what_is_in_use_or_unknown_can_not_be_given_up(void **state)
{
    struct spilling *spilling = *state;
    const char *forgotten[] = {spilling->disk_dirs[0], "/no/such/place", NULL};
    put_seven(spilling);
    fixture_close(&spilling->fixture);
    spilling->fixture.options.forget_spill_dirs = forgotten;
    CHECK_REFUSED(spilling, -EINVAL, spilling->disk_dirs[0], "in use");
    spilling->fixture.options.forget_spill_dirs = forgotten + 1;
    spilling_open(spilling);
    check_all(spilling);
}

static void a_directory_of_an_older_version_gets_an_identity_once(void **state)
{
    struct spilling *spilling = *state;
    static const char old[] = "mobula spill directory\nversion 1\nowner 0102030405060708\n";
    char path[128], text[200], again[200];
    put_seven(spilling);
    fixture_close(&spilling->fixture);
    snprintf(path, sizeof path, "%s/mobula-spill", spilling->disk_dirs[0]);
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_int_equal(write(fd, old, strlen(old)), strlen(old));
    close(fd);
    spilling_open(spilling);
    check_all(spilling);
    identity_of(spilling, 0, text);
    assert_memory_equal(text, old, strlen(old));
    assert_int_equal(strlen(text), strlen(old) + 43);
    spilling_reopen(spilling);
    identity_of(spilling, 0, again);
    assert_string_equal(text, again);
    fixture_close(&spilling->fixture);
    take_away(spilling, 0);
    CHECK_REFUSED(spilling, -ENOENT, spilling->disk_dirs[0]);
}

static void an_unfinished_file_in_a_missing_directory_is_missed_too(void **state)
{
    struct spilling *spilling = *state;
    struct staged_info info, again;
    spilling->fixture.options.passthrough = true;
    spilling_open(spilling);
    assert_int_equal(
        staged_create_for(store_of(spilling), NAMES_STAGING, "a", 0644, 0, 0, 0, O_RDWR, &info), 0);
    assert_true(info.on_disk);
    fixture_close(&spilling->fixture);
    take_away(spilling, 0);
    CHECK_REFUSED(spilling, -ENOENT, "1 unfinished files", spilling->disk_dirs[0]);
    CHECK_REFUSED(spilling, -ENOENT, "1 unfinished files", spilling->disk_dirs[0]);
    bring_back(spilling, 0);
    fixture_open(&spilling->fixture);
    assert_int_equal(staged_info(store_of(spilling), info.number, &again), 0);
    assert_int_equal(again.file, info.file);
}

static void set_known(struct spilling *spilling, const void *value, size_t bytes)
{
    struct store *store = store_of(spilling);
    MDB_txn *txn;
    store_write_lock(store);
    assert_int_equal(meta_begin(&store->meta, bytes, &txn), 0);
    assert_int_equal(meta_put(&store->meta, txn, META_STATE, "spill_dirs", 10, value, bytes), 0);
    assert_int_equal(meta_commit(txn), 0);
    store_write_unlock(store);
}

static void a_damaged_record_of_the_directories_hinders_nothing_and_is_mended(void **state)
{
    struct spilling *spilling = *state;
    static const struct {
        const char *value;
        size_t bytes;
    } wrong[] = {{"x", 1},
                 {"0123456789abcdef0123456789abcdef /a", 35}, /* no end */
                 {"0123456789abcdef0123456789abcdef ", 34},   /* no path */
                 {"0123456789abcdef0123456789abcdeX /a", 36},
                 {"0123456789abcdef0123456789abcdef/a", 35},
                 {"\0\0\0\0", 4}};
    int kept = -1;
    put_seven(spilling);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(wrong); i++) {
        set_known(spilling, wrong[i].value, wrong[i].bytes);
        fixture_close(&spilling->fixture);
        log_caught(&kept);
        spilling_open(spilling);
        cleanup_free char *log = log_caught(&kept);
        kept = -1;
        assert_non_null(strstr(log, "record of its spill directories is damaged"));
        check_all(spilling);
    }
    fixture_close(&spilling->fixture);
    take_away(spilling, 0);
    CHECK_REFUSED(spilling, -ENOENT, spilling->disk_dirs[0]);
}

static void without_room_to_note_a_directory_the_store_opens(void **state)
{
    struct spilling *spilling = *state;
    spilling_open(spilling);
    put_some(spilling, 2);
    fixture_close(&spilling->fixture);
    spilling->dirs[1] = spilling->disk_dirs[1];
    atomic_store(&without_room, true);
    fixture_open(&spilling->fixture);
    atomic_store(&without_room, false);
    check_all(spilling);
}

/* --- headers --- */

static bool has_header(struct spilling *spilling, const struct object_info *object,
                       struct disk_header *out)
{
    unsigned dir;
    struct stat info;
    struct disk_header header;
    uint64_t read_bytes;
    cleanup_fd int fd = disk_find_file(&store_of(spilling)->disk, object->file, O_RDONLY, &dir);
    if (fd < 0 || disk_header_read(fd, &header))
        return false;
    assert_int_equal(fstat(fd, &info), 0);
    assert_memory_equal(&header.id, &object->id, sizeof header.id);
    assert_true(header.file == object->file && header.size == object->size);
    assert_true(header.mtime_ns == object->mtime_ns);
    assert_int_equal(header.mode, object->mode & 07777);
    assert_true(header.uid == object->uid && header.gid == object->gid);
    if (header.sealed)
        assert_int_equal(disk_header_verify(fd, &header, &read_bytes), 0);
    *out = header;
    return true;
}

static bool has_sealed_header(struct spilling *spilling, const struct object_info *object)
{
    struct disk_header header;
    return has_header(spilling, object, &header) && header.sealed;
}

static bool have_attributes(struct spilling *spilling)
{
    return setxattr(spilling->disk_dirs[0], "user.test", "", 0, 0) == 0;
}

static void what_is_spilled_says_which_object_it_is(void **state)
{
    struct spilling *spilling = *state;
    spilling_open(spilling);
    if (!have_attributes(spilling))
        skip();
    put_seven(spilling);
    for (unsigned i = 0; i < 7; i++)
        if (tier_of(spilling, i) == TIER_DISK)
            assert_true(has_sealed_header(spilling, &spilling->objects[i]));
    assert_int_equal(store_spill_all(store_of(spilling)), 0);
    for (unsigned i = 0; i < 7; i++)
        assert_true(has_sealed_header(spilling, &spilling->objects[i]));
}

/* Objects of a job: 3 MiB that it has written to the work directory. */
static struct object_info adopt(struct spilling *spilling, const char *forged)
{
    struct store *store = store_of(spilling);
    struct mob_id id;
    struct mob_error err = {0};
    struct object_info object;
    struct store_batch *batch;
    char path[160];
    cleanup_free char *bytes = malloc(3 * MIB);
    assert_int_equal(mob_id_new(store->owner, 1, &id), 0);
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_pending(batch, &id, 1000, 1001, 022, 0, NULL), 0);
    assert_int_equal(store_batch_commit(batch, &err), 0);
    snprintf(path, sizeof path, "%s/out", store_work_dir(store));
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    fill_bytes(bytes, 3 * MIB, 9, 0);
    assert_int_equal(mob_write_full(fd, bytes, 3 * MIB), 0);
    if (forged)
        assert_int_equal(__real_fsetxattr(fd, DISK_HEADER_NAME, forged, strlen(forged), 0), 0);
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_ready_file(batch, &id, fd, path, true), 0);
    assert_int_equal(store_batch_commit(batch, &err), 0);
    assert_int_equal(store_find(store, &id, &object), 0);
    assert_int_equal(object.tier, TIER_DISK);
    return object;
}

static void what_a_job_has_written_on_disk_says_it_at_once_and_is_sealed_after(void **state)
{
    struct spilling *spilling = *state;
    struct disk_header header;
    spilling_open(spilling);
    if (!have_attributes(spilling))
        skip();
    struct object_info object = adopt(spilling, "what the job says");
    assert_true(has_header(spilling, &object, &header));
    WAIT_UNTIL(has_sealed_header(spilling, &object));
    WAIT_UNTIL(!store_readable(store_of(spilling), object.number));
    check_bytes(store_of(spilling), &object.id, 9, 3 * MIB);
}

static void what_was_written_on_disk_is_sealed_and_needs_no_second_look(void **state)
{
    struct spilling *spilling = *state;
    struct staged_info info;
    struct object_info object;
    struct mob_id id;
    struct mob_error err = {0};
    struct disk_header header;
    cleanup_free char *bytes = malloc(3 * MIB);
    spilling->fixture.options.passthrough = true;
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    if (!have_attributes(spilling))
        skip();
    assert_int_equal(
        staged_create_for(store, NAMES_STAGING, "a", 0755, 1000, 1000, 0, O_RDWR, &info), 0);
    assert_true(info.on_disk);
    unsigned dir;
    cleanup_fd int fd = disk_find_file(&store->disk, info.file, O_RDWR, &dir);
    fill_bytes(bytes, 3 * MIB, 5, 0);
    assert_int_equal(mob_pwrite_full(fd, bytes, 3 * MIB, 0), 0);
    mob_cleanup_fd(&fd);
    assert_int_equal(staged_closed(store, info.number), 0);
    assert_int_equal(staged_commit(store, info.number, &id, NULL, &err), 0);
    assert_int_equal(store_find(store, &id, &object), 0);
    assert_int_equal(object.tier, TIER_DISK);
    assert_true(has_header(spilling, &object, &header));
    WAIT_UNTIL(has_sealed_header(spilling, &object) && !store_readable(store, object.number));
    for (int i = 0; i < 100; i++)
        assert_int_equal(store_readable(store, object.number), 0);
    check_bytes(store, &id, 5, 3 * MIB);
}

static void headers_that_are_missing_come_when_the_object_is_verified(void **state)
{
    struct spilling *spilling = *state;
    unsigned dir;
    spilling_open(spilling);
    if (!have_attributes(spilling))
        skip();
    put_seven(spilling);
    int fd = disk_find_file(&store_of(spilling)->disk, spilling->objects[0].file, O_RDONLY, &dir);
    assert_int_equal(fremovexattr(fd, DISK_HEADER_NAME), 0);
    close(fd);
    assert_false(has_sealed_header(spilling, &spilling->objects[0]));
    open_object(spilling, 0);
    check_object(spilling, 0);
    assert_true(has_sealed_header(spilling, &spilling->objects[0]));
    assert_int_equal(store_readable(store_of(spilling), spilling->objects[0].number), 0);
    close_object(spilling, 0);
}

static unsigned times_in(const char *text, const char *words)
{
    unsigned times = 0;
    while ((text = strstr(text, words))) {
        text += strlen(words);
        times++;
    }
    return times;
}

static void a_filesystem_that_takes_no_headers_is_no_error_and_is_said_once(void **state)
{
    struct spilling *spilling = *state;
    static const int refusals[] = {EOPNOTSUPP, ENOSPC, EDQUOT};
    int kept = -1;
    spilling_open(spilling);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(refusals); i++) {
        atomic_store(&refuse_set, refusals[i]);
        log_caught(&kept);
        put_seven(spilling);
        for (unsigned o = 0; o < 7; o++)
            check_object(spilling, o);
        struct object_info object = adopt(spilling, NULL);
        check_bytes(store_of(spilling), &object.id, 9, 3 * MIB);
        cleanup_free char *log = log_caught(&kept);
        kept = -1;
        assert_int_equal(times_in(log, "which object"), 1);
        assert_int_equal(usage_of(spilling).spill_errors, 0);
        assert_int_equal(usage_of(spilling).damaged, 0);
        drop_all(spilling);
        spilling->count = 0;
        fixture_close(&spilling->fixture);
        spilling_open(spilling);
    }
}

int main(void)
{
#define CLOSED(test) cmocka_unit_test_setup_teardown(test, spilling_setup_closed, teardown)
#define OPENED(test) cmocka_unit_test_setup_teardown(test, spilling_setup, teardown)
    const struct CMUnitTest tests[] = {
        CLOSED(a_missing_directory_with_objects_is_refused_by_its_path_and_nothing_changes),
        CLOSED(an_empty_directory_or_another_in_its_place_is_refused_and_stays_as_it_is),
        CLOSED(a_directory_with_objects_that_is_not_given_any_more_is_refused),
        CLOSED(a_directory_is_recognised_under_another_path),
        CLOSED(an_empty_directory_may_be_dropped_or_go),
        CLOSED(what_is_lost_with_memory_is_sought_in_no_directory),
        CLOSED(a_file_that_is_open_still_though_its_object_has_gone_is_not_missed),
        CLOSED(a_directory_may_go_that_has_copies_only_of_what_is_in_memory),
        CLOSED(giving_up_one_of_two_missing_directories_is_not_enough),
        OPENED(what_is_in_use_or_unknown_can_not_be_given_up),
        OPENED(a_directory_of_an_older_version_gets_an_identity_once),
        CLOSED(an_unfinished_file_in_a_missing_directory_is_missed_too),
        OPENED(a_damaged_record_of_the_directories_hinders_nothing_and_is_mended),
        CLOSED(without_room_to_note_a_directory_the_store_opens),
        CLOSED(what_is_spilled_says_which_object_it_is),
        CLOSED(what_a_job_has_written_on_disk_says_it_at_once_and_is_sealed_after),
        CLOSED(what_was_written_on_disk_is_sealed_and_needs_no_second_look),
        CLOSED(headers_that_are_missing_come_when_the_object_is_verified),
        CLOSED(a_filesystem_that_takes_no_headers_is_no_error_and_is_said_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
