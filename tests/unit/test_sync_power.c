/* What was synced stays on the disk until what has replaced or removed it is as durable: a power
 * cut in between must find the one or the other.
 *
 * The journal can't be synced from some moment on. A power cut leaves it as it was when it was
 * synced last; of everything else the disk has all, as filesystems are quick to write metadata. */
#include "tests/unit/spill_fixture.h"

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_fsync(int fd);
int __wrap_fsync(int fd);

static char journal_dir[160], durable_dir[160]; /* "": nothing is noted yet */
static pthread_mutex_t copying = PTHREAD_MUTEX_INITIALIZER;
static bool journal_fails; /* under `copying` */

static bool run(const char *format, const char *a, const char *b, const char *c)
{
    char command[600];
    snprintf(command, sizeof command, format, a, b, c);
    return system(command) == 0;
}

/* Again, if a file has been renamed meanwhile. */
static bool copy(const char *from, const char *to)
{
    for (int tries = 0; tries < 20; tries++)
        if (run("rm -rf '%s' && cp -a --sparse=always '%s' '%s' 2>/dev/null", to, from, to))
            return true;
    return false;
}

/* A copy that was under way has been made. */
static void let_journal_fail(bool fails)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&copying);
    journal_fails = fails;
}

static bool is_in_journal(int fd)
{
    char link[40], path[200] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return *journal_dir && readlink(link, path, sizeof path - 1) > 0 &&
           !strncmp(path, journal_dir, strlen(journal_dir));
}

static int sync_one(int fd, int (*real)(int fd))
{
    if (!is_in_journal(fd))
        return real(fd);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&copying);
    if (!journal_fails && copy(journal_dir, durable_dir))
        return 0;
    errno = EIO;
    return -1;
}

int __wrap_fdatasync(int fd)
{
    return sync_one(fd, __real_fdatasync);
}

int __wrap_fsync(int fd)
{
    return sync_one(fd, __real_fsync);
}

enum { LARGE = 300000 };

static int setup(void **state)
{
    struct spilling *spilling = spilling_new();
    let_journal_fail(false);
    snprintf(journal_dir, sizeof journal_dir, "%s/journal", spilling->fixture.state_dir);
    snprintf(durable_dir, sizeof durable_dir, "%s/durable", spilling->fixture.memory_dir);
    spilling_open(spilling);
    /* The first snapshot: from then on only logs are synced. */
    assert_int_equal(store_sync_names(store_of(spilling)), 0);
    *state = spilling;
    return 0;
}

static int teardown(void **state)
{
    int failed = spilling_teardown(state); /* now no thread looks at it any more */
    *journal_dir = '\0';
    return failed;
}

static void fill(struct store *store, uint64_t number, uint64_t seed)
{
    cleanup_free char *content = malloc(LARGE);
    fill_bytes(content, LARGE, seed, 0);
    assert_int_equal(staged_write(store, number, content, LARGE, 0), LARGE);
}

static uint64_t make(struct store *store, const char *name, uint64_t seed)
{
    struct staged_info info;
    assert_int_equal(staged_create(store, NAMES_STAGING, name, 0644, 0, 0, 0, &info), 0);
    fill(store, info.number, seed);
    return info.number;
}

static uint64_t commit(struct store *store, uint64_t number)
{
    uint64_t object;
    struct mob_id id;
    assert_int_equal(staged_closed(store, number), 0);
    assert_int_equal(staged_commit(store, number, &id, &object, NULL), 0);
    return object;
}

/* All that would be removed by now has been. */
static void let_disk_settle(struct store *store)
{
    objects_flush(store);
    disk_settle(store);
    pthread_mutex_lock(&store->spill.sync_lock);
    pthread_mutex_unlock(&store->spill.sync_lock);
    disk_settle(store);
}

static void commit_recovered(void *argument, const struct staged_info *info)
{
    struct mob_id id;
    assert_int_equal(staged_commit(argument, info->number, &id, NULL, NULL), 0);
}

/* After a power cut, the name has the content of `seed`. */
static void assert_survives(struct spilling *spilling, const char *name, uint64_t seed)
{
    struct spilling *after = spilling_new();
    struct name_info info;
    let_disk_settle(store_of(spilling));
    char journal[160];
    snprintf(journal, sizeof journal, "%s/journal", after->fixture.state_dir);
    pthread_mutex_lock(&copying); /* a snapshot may just be under way */
    bool copied =
        copy(spilling->fixture.state_dir, after->fixture.state_dir) && copy(durable_dir, journal);
    pthread_mutex_unlock(&copying);
    assert_true(copied);
    spilling_open(after);
    staged_each(store_of(after), commit_recovered, store_of(after));
    assert_int_equal(names_find(store_of(after), NAMES_STAGING, name, &info), 0);
    check_bytes(store_of(after), &info.target, seed, LARGE);
    void *state = after;
    spilling_teardown(&state);
}

static void the_first_copy_of_a_file_stays_until_the_second_is_durable(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    uint64_t number = make(store, "file", 1);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    fill(store, number, 2);
    let_journal_fail(true);
    assert_int_equal(staged_sync(store, number, NULL), -EIO);
    assert_survives(spilling, "file", 1);
    let_journal_fail(false);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    assert_survives(spilling, "file", 2);
    WAIT_UNTIL(files_in(spilling->disk_dirs[0]) == 1);
}

static void a_copy_stays_until_its_object_is_durable(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    uint64_t number = make(store, "file", 1);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    let_journal_fail(true);
    uint64_t object = commit(store, number);
    struct object_info info;
    WAIT_UNTIL(store_info(store, object, &info) == 0 && files_in(spilling->disk_dirs[0]) == 2);
    assert_survives(spilling, "file", 1);
    let_journal_fail(false);
    assert_int_equal(store_sync_names(store), 0);
    WAIT_UNTIL(files_in(spilling->disk_dirs[0]) == 1);
    assert_survives(spilling, "file", 1);
}

static void an_object_stays_until_what_takes_its_name_is_durable(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    assert_int_equal(store_sync_object(store, commit(store, make(store, "file", 1))), 0);
    let_journal_fail(true);
    commit(store, make(store, "new", 2));
    assert_int_equal(
        names_rename(store, NAMES_STAGING, "new", NAMES_STAGING, "file", 0, NULL, NULL), 0);
    assert_survives(spilling, "file", 1);
    let_journal_fail(false);
    assert_int_equal(store_sync_names(store), 0);
    WAIT_UNTIL(files_in(spilling->disk_dirs[0]) == 0);
}

/* In memory the new version is whole: the tables name its copy, and the old one's no more. */
static void a_restart_removes_nothing_that_is_durable(void **state)
{
    struct spilling *spilling = *state;
    uint64_t number = make(store_of(spilling), "file", 1);
    assert_int_equal(staged_sync(store_of(spilling), number, NULL), 0);
    fill(store_of(spilling), number, 2);
    let_journal_fail(true);
    assert_int_equal(staged_sync(store_of(spilling), number, NULL), -EIO);
    spilling_reopen(spilling);
    assert_survives(spilling, "file", 1);
    let_journal_fail(false);
    assert_int_equal(store_sync_names(store_of(spilling)), 0);
    assert_survives(spilling, "file", 2);
    spilling_reopen(spilling);
    assert_int_equal(files_in(spilling->disk_dirs[0]), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_first_copy_of_a_file_stays_until_the_second_is_durable),
        TEST(a_copy_stays_until_its_object_is_durable),
        TEST(an_object_stays_until_what_takes_its_name_is_durable),
        TEST(a_restart_removes_nothing_that_is_durable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
