/* Unit tests of core/store/names.h: finding, making, listing, renaming, removing, and restarts. */
#include "tests/unit/store_fixture.h"

#include <fcntl.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE 2
#endif

static uint64_t make_dir(struct store *store, uint64_t parent, const char *name)
{
    struct name_info info;
    assert_int_equal(names_make_directory(store, parent, name, 0755, 1, 2, &info), 0);
    return info.number;
}

static uint64_t stage(struct store *store, uint64_t parent, const char *name)
{
    struct staged_info info;
    assert_int_equal(staged_create(store, parent, name, 0644, 0, 0, 0, &info), 0);
    return info.number;
}

static errint_t rename_plain(struct store *store, uint64_t parent, const char *name,
                             uint64_t new_parent, const char *new_name)
{
    return names_rename(store, parent, name, new_parent, new_name, 0, NULL, NULL);
}

static int type_of(struct store *store, uint64_t parent, const char *name)
{
    struct name_info info;
    errint_t error = names_find(store, parent, name, &info);
    return error ? error : (int)info.type;
}

static void bad_names_are_refused(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct name_info info;
    struct staged_info staged;
    char name[258];
    memset(name, 'x', sizeof name - 1);
    name[257] = '\0';
    assert_int_equal(names_find(store, NAMES_STAGING, name, &info), -ENAMETOOLONG);
    assert_int_equal(names_make_directory(store, NAMES_STAGING, name, 0755, 0, 0, &info),
                     -ENAMETOOLONG);
    assert_int_equal(staged_create(store, NAMES_STAGING, name, 0644, 0, 0, 0, &staged),
                     -ENAMETOOLONG);
    name[255] = '\0';
    assert_int_equal(names_make_directory(store, NAMES_STAGING, name, 0755, 0, 0, &info), 0);
    const char *bad[] = {"", ".", "..", "a/b"};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++) {
        assert_int_equal(names_make_directory(store, NAMES_STAGING, bad[i], 0755, 0, 0, &info),
                         -EINVAL);
        assert_int_equal(names_find(store, NAMES_STAGING, bad[i], &info), -ENOENT);
    }
    assert_int_equal(names_find(store, 12345, "a", &info), -ENOENT);
    assert_int_equal(names_find(store, 0, "staging", &info), -ENOENT);
}

static void directories_count_their_entries_and_depth(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct name_info info;
    uint64_t a = make_dir(store, NAMES_STAGING, "a"), b = make_dir(store, a, "b");
    fixture_put(store, a, "x", "1", 1);
    stage(store, a, "y");
    for (int restarted = 0; restarted < 2; restarted++) {
        assert_int_equal(names_directory(store, a, &info), 0);
        assert_int_equal(info.entries, 3);
        assert_int_equal(info.links, 3);
        assert_int_equal(info.depth, 1);
        assert_int_equal(info.parent, NAMES_STAGING);
        assert_int_equal(info.mode, S_IFDIR | 0755);
        assert_int_equal(info.uid, 1);
        assert_int_equal(info.gid, 2);
        assert_int_equal(names_find(store, a, "x", &info), 0);
        assert_int_equal(info.depth, 2);
        assert_int_equal(names_find(store, a, "b", &info), 0);
        assert_int_equal(info.number, b);
        assert_int_equal(names_directory(store, NAMES_STAGING, &info), 0);
        assert_int_equal(info.depth, 0);
        assert_int_equal(info.entries, 1);
        assert_int_equal(info.links, 3);
        assert_int_equal(names_remove_directory(store, NAMES_STAGING, "a"), -ENOTEMPTY);
        fixture_reopen(fixture);
        store = fixture->store;
    }
    char *path;
    assert_int_equal(names_path(store, b, "q", &path), 0);
    assert_string_equal(path, "staging/a/b/q");
    free(path);
    assert_int_equal(names_path(store, NAMES_RUN, NULL, &path), 0);
    assert_string_equal(path, "run");
    free(path);
}

static void a_directory_with_a_staged_file_in_it_stays(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    uint64_t a = make_dir(store, NAMES_STAGING, "a"), staged = stage(store, a, "f");
    assert_int_equal(names_remove_directory(store, NAMES_STAGING, "a"), -ENOTEMPTY);
    assert_int_equal(names_unlink(store, a, "f", NULL, NULL), 0);
    assert_int_equal(names_remove_directory(store, NAMES_STAGING, "a"), 0);
    assert_int_equal(names_remove_directory(store, NAMES_STAGING, "a"), -ENOENT);
    assert_int_equal(staged_closed(store, staged), 0);
    assert_int_equal(names_remove_directory(store, 0, "staging"), -EBUSY);
    fixture_put(store, NAMES_STAGING, "f", "", 0);
    assert_int_equal(names_remove_directory(store, NAMES_STAGING, "f"), -ENOTDIR);
}

static void depth_is_limited(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    uint64_t at = NAMES_STAGING, top = 0;
    struct name_info info;
    unsigned depth = 0;
    errint_t error;
    while ((error = names_make_directory(store, at, "d", 0755, 0, 0, &info)) == 0) {
        at = info.number;
        if (++depth == 1)
            top = at;
        assert_true(depth < 1000);
    }
    assert_int_equal(error, -EMLINK);
    uint64_t other = make_dir(store, NAMES_STAGING, "other");
    assert_int_equal(rename_plain(store, NAMES_STAGING, "d", other, "d"), -EMLINK);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "d", at, "d"), -EINVAL);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "d", top, "d2"), -EINVAL);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "d", NAMES_STAGING, "e"), 0);
    char *path;
    assert_int_equal(names_path(store, at, NULL, &path), 0);
    assert_memory_equal(path, "staging/e/d/d/", 14);
    free(path);
}

struct seen {
    char names[4000][8];
    size_t count;
};

static void list_all(struct store *store, uint64_t directory, size_t step, struct seen *seen)
{
    struct name_entry *entries = calloc(step, sizeof *entries);
    uint64_t cursor = 0;
    ssize_t got;
    seen->count = 0;
    while ((got = names_list(store, directory, cursor, entries, step)) > 0) {
        for (ssize_t i = 0; i < got; i++) {
            assert_true(entries[i].cursor > cursor);
            assert_true(entries[i].cursor < UINT64_C(1) << 62);
            cursor = entries[i].cursor;
            snprintf(seen->names[seen->count++], 8, "%s", entries[i].name);
        }
    }
    assert_int_equal(got, 0);
    free(entries);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

static void listing_returns_each_entry_once_whatever_the_step(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    static struct seen seen;
    uint64_t directory = make_dir(store, NAMES_STAGING, "d");
    char name[16];
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "%04d", i);
        if (i % 3 == 0)
            stage(store, directory, name);
        else if (i % 3 == 1)
            fixture_put(store, directory, name, "", 0);
        else
            make_dir(store, directory, name);
    }
    for (size_t step = 1; step < 400; step += 37) {
        list_all(store, directory, step, &seen);
        assert_int_equal(seen.count, 300);
        qsort(seen.names, seen.count, sizeof *seen.names, compare_names);
        for (int i = 0; i < 300; i++) {
            snprintf(name, sizeof name, "%04d", i);
            assert_string_equal(seen.names[i], name);
        }
    }
    struct name_entry entry;
    assert_int_equal(names_list(store, 999999, 0, &entry, 1), -ENOENT);
    assert_int_equal(names_list(store, NAMES_RUN, 0, &entry, 1), 0);
}

static void a_file_committed_during_a_listing_is_listed_once(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct name_entry entry;
    uint64_t numbers[50], cursor = 0;
    char name[16];
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "%d", i);
        numbers[i] = stage(store, NAMES_STAGING, name);
    }
    int seen = 0;
    while (names_list(store, NAMES_STAGING, cursor, &entry, 1) == 1) {
        struct mob_id id;
        cursor = entry.cursor;
        if (seen < 50) {
            assert_int_equal(staged_closed(store, numbers[seen]), 0);
            assert_int_equal(staged_commit(store, numbers[seen], &id, NULL, NULL), 0);
        }
        seen++;
    }
    assert_int_equal(seen, 50);
}

static void rename_follows_posix(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    uint64_t a = make_dir(store, NAMES_STAGING, "a");
    make_dir(store, NAMES_STAGING, "full");
    struct name_info full;
    assert_int_equal(names_find(store, NAMES_STAGING, "full", &full), 0);
    fixture_put(store, full.number, "x", "", 0);
    struct mob_id one = fixture_put(store, NAMES_STAGING, "one", "1", 1);
    struct mob_id two = fixture_put(store, NAMES_STAGING, "two", "2", 1);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "none", a, "x"), -ENOENT);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "one", NAMES_STAGING, "a"), -EISDIR);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "a", NAMES_STAGING, "one"), -ENOTDIR);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "a", NAMES_STAGING, "full"), -ENOTEMPTY);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "one", NAMES_RUN, "one"), -EXDEV);
    assert_int_equal(names_rename(store, NAMES_STAGING, "one", NAMES_STAGING, "two",
                                  RENAME_NOREPLACE, NULL, NULL),
                     -EEXIST);
    assert_int_equal(names_rename(store, NAMES_STAGING, "one", NAMES_STAGING, "three",
                                  RENAME_EXCHANGE, NULL, NULL),
                     -ENOENT);
    assert_int_equal(names_rename(store, NAMES_STAGING, "one", NAMES_STAGING, "two", 8, NULL, NULL),
                     -EINVAL);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "one", NAMES_STAGING, "one"), 0);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "one", NAMES_STAGING, "two"), 0);
    assert_true(fixture_exists(store, &one));
    assert_false(fixture_exists(store, &two));
    assert_int_equal(type_of(store, NAMES_STAGING, "one"), -ENOENT);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "full", NAMES_STAGING, "a"), 0);
    assert_int_equal(type_of(store, NAMES_STAGING, "full"), -ENOENT);
    struct name_info info;
    assert_int_equal(names_find(store, NAMES_STAGING, "a", &info), 0);
    assert_int_equal(info.number, full.number);
    assert_int_equal(names_directory(store, a, &info), -ENOENT);
    assert_int_equal(names_directory(store, NAMES_STAGING, &info), 0);
    assert_int_equal(info.entries, 2);
    assert_int_equal(info.links, 3);
}

static void exchange_swaps_links_and_directories(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    uint64_t a = make_dir(store, NAMES_STAGING, "a"), b = make_dir(store, a, "b");
    struct mob_id one = fixture_put(store, NAMES_STAGING, "one", "1", 1);
    struct name_info info;
    assert_int_equal(names_rename(store, NAMES_STAGING, "one", a, "b", RENAME_EXCHANGE, NULL, NULL),
                     0);
    for (int restarted = 0; restarted < 2; restarted++) {
        assert_int_equal(names_find(store, NAMES_STAGING, "one", &info), 0);
        assert_int_equal(info.type, NAME_DIRECTORY);
        assert_int_equal(info.number, b);
        assert_int_equal(names_find(store, a, "b", &info), 0);
        assert_int_equal(info.type, NAME_OBJECT);
        assert_memory_equal(&info.target, &one, sizeof one);
        assert_int_equal(names_directory(store, a, &info), 0);
        assert_int_equal(info.links, 2);
        assert_int_equal(info.entries, 1);
        fixture_reopen(fixture);
        store = fixture->store;
    }
    assert_int_equal(
        names_rename(store, NAMES_STAGING, "a", NAMES_STAGING, "one", RENAME_EXCHANGE, NULL, NULL),
        0);
    assert_int_equal(names_rename(store, NAMES_STAGING, "one", b, "x", 0, NULL, NULL), 0);
    assert_int_equal(names_rename(store, b, "x", NAMES_STAGING, "a", RENAME_EXCHANGE, NULL, NULL),
                     -EINVAL);
}

static void staged_files_are_renamed_over_anything_but_directories(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct mob_id old = fixture_put(store, NAMES_STAGING, "target", "old", 3), id;
    uint64_t staged = stage(store, NAMES_STAGING, "tmp");
    assert_int_equal(staged_write(store, staged, "new", 3, 0), 3);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "tmp", NAMES_STAGING, "target"), 0);
    assert_int_equal(type_of(store, NAMES_STAGING, "target"), NAME_STAGED);
    assert_int_equal(type_of(store, NAMES_STAGING, "tmp"), -ENOENT);
    assert_false(fixture_exists(store, &old));
    struct name_info info;
    assert_int_equal(names_directory(store, NAMES_STAGING, &info), 0);
    assert_int_equal(info.entries, 1);
    assert_int_equal(staged_closed(store, staged), 0);
    assert_int_equal(staged_commit(store, staged, &id, NULL, NULL), 0);
    assert_int_equal(type_of(store, NAMES_STAGING, "target"), NAME_OBJECT);

    /* A link over a staged file unlinks that: it lives until its close. */
    uint64_t victim = stage(store, NAMES_STAGING, "victim");
    struct staged_info staged_now;
    assert_int_equal(rename_plain(store, NAMES_STAGING, "target", NAMES_STAGING, "victim"), 0);
    assert_int_equal(type_of(store, NAMES_STAGING, "victim"), NAME_OBJECT);
    assert_int_equal(staged_info(store, victim, &staged_now), 0);
    assert_true(staged_now.unlinked);
    assert_int_equal(staged_commit(store, victim, &id, NULL, NULL), -ENOENT);
    assert_int_equal(staged_closed(store, victim), 0);
    assert_int_equal(staged_info(store, victim, &staged_now), -ENOENT);

    /* A staged file over another, and two exchanged. */
    uint64_t p = stage(store, NAMES_STAGING, "p"), q = stage(store, NAMES_STAGING, "q");
    assert_int_equal(
        names_rename(store, NAMES_STAGING, "p", NAMES_STAGING, "q", RENAME_EXCHANGE, NULL, NULL),
        0);
    assert_int_equal(names_find(store, NAMES_STAGING, "q", &info), 0);
    assert_int_equal(info.number, p);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "q", NAMES_STAGING, "p"), 0);
    assert_int_equal(names_find(store, NAMES_STAGING, "p", &info), 0);
    assert_int_equal(info.number, p);
    assert_int_equal(staged_info(store, q, &staged_now), 0);
    assert_true(staged_now.unlinked);
    assert_int_equal(names_rename(store, NAMES_STAGING, "p", NAMES_STAGING, "victim",
                                  RENAME_EXCHANGE, NULL, NULL),
                     -EBUSY);
    make_dir(store, NAMES_STAGING, "dir");
    assert_int_equal(rename_plain(store, NAMES_STAGING, "p", NAMES_STAGING, "dir"), -EISDIR);
    assert_int_equal(names_directory(store, NAMES_STAGING, &info), 0);
    assert_int_equal(info.entries, 3);
    fixture_reopen(fixture);
    assert_int_equal(names_find(fixture->store, NAMES_STAGING, "p", &info), 0);
    assert_int_equal(info.number, p);
    assert_int_equal(info.type, NAME_STAGED);
    assert_int_equal(names_directory(fixture->store, NAMES_STAGING, &info), 0);
    assert_int_equal(info.entries, 3);
}

static void symbolic_links_keep_their_text_or_hold_an_object(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct name_info info;
    char *text, link[64], id_text[MOB_ID_STRING_BYTES];
    assert_int_equal(names_make_symlink(store, NAMES_STAGING, "l", "../any/where", 0, 0, &info), 0);
    assert_int_equal(info.type, NAME_SYMLINK);
    assert_int_equal(rename_plain(store, NAMES_STAGING, "l", NAMES_STAGING, "m"), 0);
    fixture_reopen(fixture);
    store = fixture->store;
    store_collect(store);
    assert_int_equal(names_find(store, NAMES_STAGING, "m", &info), 0);
    assert_int_equal(names_symlink_text(store, info.number, &text), 0);
    assert_string_equal(text, "../any/where");
    free(text);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "m", NULL, NULL), 0);
    assert_int_equal(names_symlink_text(store, info.number, &text), -ENOENT);

    struct mob_id id = fixture_put(store, NAMES_STAGING, "o", "x", 1);
    snprintf(link, sizeof link, "../objects/%s", mob_id_format(&id, id_text));
    assert_int_equal(names_make_symlink(store, NAMES_STAGING, "p", link, 0, 0, &info), 0);
    assert_int_equal(info.type, NAME_OBJECT);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "o", NULL, NULL), 0);
    assert_true(fixture_exists(store, &id));
    assert_int_equal(names_unlink(store, NAMES_STAGING, "p", NULL, NULL), 0);
    assert_false(fixture_exists(store, &id));
    assert_int_equal(names_make_symlink(store, NAMES_STAGING, "p", link, 0, 0, &info), 0);
    assert_int_equal(info.type, NAME_SYMLINK);
    assert_int_equal(names_make_symlink(store, NAMES_STAGING, "p", "x", 0, 0, &info), -EEXIST);
    assert_int_equal(names_link_object(store, NAMES_STAGING, "r", &id, 0, 0, &info), -ENOENT);
}

static void unlinking_obeys_types(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    make_dir(store, NAMES_STAGING, "d");
    assert_int_equal(names_unlink(store, NAMES_STAGING, "d", NULL, NULL), -EISDIR);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "none", NULL, NULL), -ENOENT);
    assert_int_equal(names_unlink(store, 4711, "none", NULL, NULL), -ENOENT);
}

static void attributes_of_directories_are_kept(void **state)
{
    struct fixture *fixture = *state;
    uint64_t a = make_dir(fixture->store, NAMES_STAGING, "a");
    struct name_info info;
    assert_int_equal(names_set_directory(fixture->store, a,
                                         NAMES_SET_MODE | NAMES_SET_UID | NAMES_SET_MTIME, 02700,
                                         77, 0, 123456789000u, &info),
                     0);
    assert_int_equal(info.mtime_ns, 123456789000u);
    assert_int_equal(
        names_set_directory(fixture->store, NAMES_RUN, NAMES_SET_MODE, 0711, 0, 0, 0, &info), 0);
    fixture_reopen(fixture);
    assert_int_equal(names_directory(fixture->store, a, &info), 0);
    assert_int_equal(info.mode, S_IFDIR | 02700);
    assert_int_equal(info.uid, 77);
    assert_int_equal(info.gid, 2);
    assert_int_equal(info.mtime_ns, 123456789000u);
    assert_int_equal(names_directory(fixture->store, NAMES_RUN, &info), 0);
    assert_int_equal(info.mode, S_IFDIR | 0711);
    uint64_t before = mob_realtime_ns();
    fixture_put(fixture->store, a, "x", "", 0);
    fixture_reopen(fixture);
    assert_int_equal(names_directory(fixture->store, a, &info), 0);
    assert_true(info.mtime_ns >= before);
    assert_int_equal(names_set_directory(fixture->store, 999, 0, 0, 0, 0, 0, &info), -ENOENT);
}

static int count_job(void *argument, const struct mob_id *job)
{
    (void)job;
    return ++*(int *)argument < 0;
}

static void job_links_are_found_again_and_reported_when_they_go(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct mob_id job = {{9}}, gone;
    struct store_batch *batch;
    bool linked = false, was_job = false;
    for (int i = 0; i < 2; i++) {
        uint64_t staged = stage(store, NAMES_RUN, i ? "k" : "j");
        assert_int_equal(store_batch_new(store, &batch), 0);
        assert_int_equal(store_batch_link_job(batch, staged, &job, &linked), 0);
        assert_int_equal(store_batch_commit(batch, NULL), 0);
        assert_true(linked);
        assert_int_equal(staged_closed(store, staged), 0);
    }
    fixture_reopen(fixture);
    store = fixture->store;
    store_collect(store);
    int count = 0;
    assert_int_equal(names_each_job(store, count_job, &count), 0);
    assert_int_equal(count, 2);
    assert_int_equal(names_rename(store, NAMES_RUN, "j", NAMES_RUN, "k", 0, &was_job, &gone), 0);
    assert_true(was_job);
    assert_memory_equal(&gone, &job, sizeof job);
    was_job = false;
    assert_int_equal(names_unlink(store, NAMES_RUN, "k", &was_job, &gone), 0);
    assert_true(was_job);
    count = 0;
    assert_int_equal(names_each_job(store, count_job, &count), 0);
    assert_int_equal(count, 0);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bad_names_are_refused),
        TEST(directories_count_their_entries_and_depth),
        TEST(a_directory_with_a_staged_file_in_it_stays),
        TEST(depth_is_limited),
        TEST(listing_returns_each_entry_once_whatever_the_step),
        TEST(a_file_committed_during_a_listing_is_listed_once),
        TEST(rename_follows_posix),
        TEST(exchange_swaps_links_and_directories),
        TEST(staged_files_are_renamed_over_anything_but_directories),
        TEST(symbolic_links_keep_their_text_or_hold_an_object),
        TEST(unlinking_obeys_types),
        TEST(attributes_of_directories_are_kept),
        TEST(job_links_are_found_again_and_reported_when_they_go),
    };
    return cmocka_run_group_tests_name("names", tests, NULL, NULL);
}
