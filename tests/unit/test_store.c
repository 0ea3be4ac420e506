/* Unit tests of core/store: objects, references, waiting, batches, recovery. */
#include "tests/unit/store_fixture.h"

#include <fcntl.h>
#include <pthread.h>

static char big[300000];

static void an_object_is_found_by_id_and_number_and_reads_back(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    const size_t sizes[] = {0, 1, 1024, 1536, 1537, 5000, 100 * 1024, 100 * 1024 + 1, sizeof big};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char name[32], *content;
        size_t bytes;
        struct object_info info, again;
        snprintf(name, sizeof name, "n%zu", i);
        memset(big, 'a' + (int)i, sizeof big);
        struct mob_id id = fixture_put(store, NAMES_STAGING, name, big, sizes[i]);
        assert_int_equal(store_find(store, &id, &info), 0);
        assert_int_equal(info.state, OBJECT_READY);
        assert_int_equal(info.size, sizes[i]);
        assert_int_equal(info.mode, S_IFREG | 0444);
        assert_int_equal(info.links, 1);
        assert_int_equal(info.tier, sizes[i] <= 100 * 1024 ? TIER_INLINE : TIER_MEMORY);
        assert_int_equal(store_info(store, info.number, &again), 0);
        assert_memory_equal(&again.id, &id, sizeof id);
        assert_int_equal(store_read_all(store, &id, sizeof big, &content, &bytes), 0);
        assert_int_equal(bytes, sizes[i]);
        assert_memory_equal(content, big, bytes);
        free(content);
        if (bytes)
            assert_int_equal(store_read_all(store, &id, bytes - 1, &content, &bytes), -EFBIG);
    }
}

static void an_object_without_references_goes_with_its_file(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct store_usage usage;
    size_t files = fixture_data_files(fixture);
    struct mob_id id = fixture_put(store, NAMES_STAGING, "x", big, sizeof big);
    struct object_info info;
    struct name_info link;
    assert_int_equal(store_find(store, &id, &info), 0);
    assert_int_equal(names_link_object(store, NAMES_STAGING, "y", &id, 0, 0, &link), 0);
    assert_int_equal(link.number, info.number);
    assert_int_equal(store_opened(store, info.number), 0);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "x", NULL, NULL), 0);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "y", NULL, NULL), 0);
    assert_true(fixture_exists(store, &id));
    store_usage(store, &usage);
    assert_true(usage.memory_used_bytes >= sizeof big);
    store_open_dropped(store, info.number);
    assert_false(fixture_exists(store, &id));
    assert_int_equal(store_opened(store, info.number), -ENOENT);
    store_usage(store, &usage);
    assert_int_equal(usage.memory_used_bytes, 0);
    assert_int_equal(usage.objects_ready, 0);
    assert_true(fixture_data_files(fixture) <= files);
}

static void objects_and_names_survive_a_restart(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id small = fixture_put(fixture->store, NAMES_STAGING, "small", "hello", 5);
    memset(big, 'z', sizeof big);
    struct mob_id large = fixture_put(fixture->store, NAMES_STAGING, "large", big, sizeof big);
    fixture_reopen(fixture);
    struct store *store = fixture->store;
    store_collect(store);
    char *content;
    size_t bytes;
    struct name_info name;
    assert_int_equal(store_read_all(store, &small, 100, &content, &bytes), 0);
    assert_string_equal(content, "hello");
    free(content);
    assert_int_equal(store_read_all(store, &large, sizeof big, &content, &bytes), 0);
    assert_memory_equal(content, big, sizeof big);
    free(content);
    assert_int_equal(names_find(store, NAMES_STAGING, "large", &name), 0);
    assert_int_equal(name.type, NAME_OBJECT);
    assert_memory_equal(&name.target, &large, sizeof large);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "large", NULL, NULL), 0);
    assert_false(fixture_exists(store, &large));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_object_is_found_by_id_and_number_and_reads_back,
                                        fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(an_object_without_references_goes_with_its_file,
                                        fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(objects_and_names_survive_a_restart, fixture_setup,
                                        fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
