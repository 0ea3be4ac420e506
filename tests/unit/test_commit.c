/* Unit tests of commits: several in one transaction, and lists of references read from the content.
 */
#include "tests/unit/store_fixture.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <lmdb.h>

/* Stands before the library's own: failures of the next transactions, to order. */
static int commit_failure, transactions;

int mdb_txn_commit(MDB_txn *txn)
{
    static int (*real)(MDB_txn * txn);
    if (!real)
        real = (int (*)(MDB_txn *))dlsym(RTLD_NEXT, "mdb_txn_commit");
    transactions++;
    if (!commit_failure)
        return real(txn);
    mdb_txn_abort(txn);
    return commit_failure;
}

static uint64_t stage_in(struct store *store, uint64_t parent, const char *name, const char *text)
{
    struct staged_info info;
    size_t bytes = strlen(text);
    assert_int_equal(staged_create(store, parent, name, 0644, 5, 6, 0, &info), 0);
    assert_int_equal(staged_write(store, info.number, text, bytes, 0), bytes);
    return info.number;
}

static uint64_t stage(struct store *store, const char *name)
{
    return stage_in(store, NAMES_STAGING, name, "");
}

static void check_object(struct store *store, const char *name, const char *expected)
{
    struct name_info info;
    char *content;
    size_t bytes;
    assert_int_equal(names_find(store, NAMES_STAGING, name, &info), 0);
    assert_int_equal(info.type, NAME_OBJECT);
    assert_int_equal(store_read_all(store, &info.target, 100, &content, &bytes), 0);
    assert_string_equal(content, expected);
    free(content);
}

static void many_are_committed_in_one_transaction(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    uint64_t numbers[STAGED_COMMIT_MANY];
    errint_t results[STAGED_COMMIT_MANY];
    char name[16];
    for (size_t i = 0; i < STAGED_COMMIT_MANY; i++) {
        snprintf(name, sizeof name, "f%zu", i);
        numbers[i] = stage_in(store, NAMES_STAGING, name, name);
        assert_int_equal(staged_closed(store, numbers[i]), 0);
    }
    transactions = 0;
    staged_commit_many(store, numbers, STAGED_COMMIT_MANY, results);
    assert_int_equal(transactions, 1);
    for (int reopened = 0; reopened < 2; reopened++) {
        for (size_t i = 0; i < STAGED_COMMIT_MANY; i++) {
            snprintf(name, sizeof name, "f%zu", i);
            assert_int_equal(results[i], 0);
            check_object(store, name, name);
        }
        fixture_reopen(fixture);
        store = fixture->store;
        store_collect(store);
    }
}

static void what_cannot_be_committed_hinders_no_other(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct mob_error err = {0};
    struct mob_id id;
    uint64_t numbers[6];
    errint_t results[6];
    numbers[0] = stage_in(store, NAMES_STAGING, "first", "1");
    numbers[1] = stage_in(store, NAMES_RUN, "spec", "{}");
    numbers[2] = stage_in(store, NAMES_STAGING, "unlinked", "2");
    assert_int_equal(names_unlink(store, NAMES_STAGING, "unlinked", NULL, NULL), 0);
    numbers[3] = stage_in(store, NAMES_STAGING, "list", "no IDs");
    assert_int_equal(staged_xattr_set(store, numbers[3], "user.mobula.refs", "content", 7, 0, &err),
                     0);
    numbers[4] = stage_in(store, NAMES_STAGING, "already", "4");
    assert_int_equal(staged_commit(store, numbers[4], &id, NULL, &err), 0);
    numbers[5] = stage_in(store, NAMES_STAGING, "last", "5");
    staged_commit_many(store, numbers, 6, results);
    const errint_t expected[] = {0, -EINVAL, -ENOENT, -EINVAL, 0, 0};
    assert_memory_equal(results, expected, sizeof expected);
    check_object(store, "first", "1");
    check_object(store, "already", "4");
    check_object(store, "last", "5");
    staged_commit_many(store, &(uint64_t){12345678}, 1, results);
    assert_int_equal(results[0], -ENOENT);
    staged_commit_many(store, NULL, 0, NULL);
}

static void when_there_is_no_room_none_is_committed(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct store_usage before, after;
    struct name_info info;
    uint64_t numbers[2] = {stage_in(store, NAMES_STAGING, "a", "1"),
                           stage_in(store, NAMES_STAGING, "b", "2")};
    errint_t results[2];
    store_usage(store, &before);
    commit_failure = ENOSPC;
    staged_commit_many(store, numbers, 2, results);
    commit_failure = 0;
    store_usage(store, &after);
    assert_same_usage(&before, &after);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(results[i], -ENOSPC);
        assert_int_equal(names_find(store, NAMES_STAGING, i ? "b" : "a", &info), 0);
        assert_int_equal(info.type, NAME_STAGED);
    }
    staged_commit_many(store, numbers, 2, results);
    check_object(store, "a", "1");
    check_object(store, "b", "2");
}

static void what_a_list_names_at_its_commit_counts(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct mob_error err = {0};
    struct mob_id first = fixture_put(store, NAMES_STAGING, "first", "1", 1);
    struct mob_id second = fixture_put(store, NAMES_STAGING, "second", "2", 1), id;
    char text[MOB_ID_STRING_BYTES], *refs;
    size_t bytes;
    uint64_t f = stage(store, "list"), object;
    assert_int_equal(staged_xattr_set(store, f, "user.mobula.refs", "content", 7, 0, &err), 0);
    assert_int_equal(staged_write(store, f, mob_id_format(&first, text), 40, 0), 40);
    assert_int_equal(staged_check(store, f, &err), 0);
    /* From here on the file holds it. */
    assert_int_equal(names_unlink(store, NAMES_STAGING, "first", NULL, NULL), 0);
    assert_true(fixture_exists(store, &first));
    /* The same again, twice the same ID, and another ID of the same length. */
    assert_int_equal(staged_check(store, f, &err), 0);
    assert_int_equal(staged_write(store, f, mob_id_format(&second, text), 40, 0), 40);
    assert_int_equal(staged_write(store, f, " ", 1, 40), 1);
    assert_int_equal(staged_write(store, f, text, 40, 41), 40);
    assert_int_equal(staged_commit(store, f, &id, &object, &err), 0);
    assert_false(fixture_exists(store, &first));
    assert_int_equal(store_refs(store, object, &refs, &bytes), 0);
    assert_int_equal(bytes, 41);
    assert_memory_equal(refs, text, 40);
    free(refs);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "second", NULL, NULL), 0);
    assert_true(fixture_exists(store, &second));
    assert_int_equal(staged_closed(store, f), 0);
}

/* The kernel may take pages of a hole away again that a mapping reader had it allocate. */
static void what_was_counted_for_an_object_is_given_back(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct store_usage before, after;
    struct object_info info;
    static char large[300000];
    char path[40];
    store_usage(store, &before);
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (char)i;
    struct mob_id id = fixture_put(store, NAMES_STAGING, "large", large, sizeof large);
    assert_int_equal(store_find(store, &id, &info), 0);
    struct store_file file;
    assert_int_equal(store_open_file(store, info.number, &file), 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file.fd);
    int writable = open(path, O_RDWR);
    assert_true(writable >= 0);
    assert_int_equal(fallocate(writable, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 8192),
                     0);
    close(writable);
    close(file.fd);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "large", NULL, NULL), 0);
    store_usage(store, &after);
    assert_int_equal(after.memory_used_bytes, before.memory_used_bytes);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(many_are_committed_in_one_transaction),
        TEST(what_cannot_be_committed_hinders_no_other),
        TEST(when_there_is_no_room_none_is_committed),
        TEST(what_a_list_names_at_its_commit_counts),
        TEST(what_was_counted_for_an_object_is_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
