/* Unit tests of spilling: the evictor, the fetcher, recovery of what is on disk. */
#include "tests/unit/store_fixture.h"

#include <fcntl.h>

enum { MIB = 1 << 20 };

struct spilling {
    struct fixture fixture;
    char disk_dir[96];
    const char *dirs[2];
};

static int setup(void **state)
{
    struct spilling *spilling = calloc(1, sizeof *spilling);
    fixture_init(&spilling->fixture);
    snprintf(spilling->disk_dir, sizeof spilling->disk_dir, "%s/spill",
             spilling->fixture.state_dir);
    spilling->dirs[0] = spilling->disk_dir;
    spilling->fixture.options.memory_bytes = 16 * MIB;
    spilling->fixture.options.spill_dirs = spilling->dirs;
    fixture_open(&spilling->fixture);
    store_collect(spilling->fixture.store);
    *state = spilling;
    return 0;
}

static int teardown(void **state)
{
    struct spilling *spilling = *state;
    if (spilling->fixture.store)
        fixture_close(&spilling->fixture);
    fixture_remove(&spilling->fixture);
    free(spilling);
    return 0;
}

/* Bytes that differ from file to file and from block to block. */
static void fill(char *buffer, size_t bytes, uint64_t seed, uint64_t offset)
{
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t word = (seed * 0x9e3779b97f4a7c15u) ^ ((offset + i) * 0xff51afd7ed558ccdu);
        memcpy(buffer + i, &word, 8);
    }
}

static struct object_info put(struct store *store, const char *name, uint64_t seed, size_t bytes)
{
    struct staged_info info;
    struct object_info object;
    struct mob_id id;
    struct mob_error err = {0};
    char *buffer = malloc(MIB);
    assert_int_equal(staged_create(store, NAMES_STAGING, name, 0644, 0, 0, 0, &info), 0);
    for (size_t done = 0; done < bytes; done += MIB) {
        size_t part = bytes - done < MIB ? bytes - done : MIB;
        fill(buffer, part, seed, done);
        assert_int_equal(staged_write(store, info.number, buffer, part, done), part);
    }
    free(buffer);
    assert_int_equal(staged_closed(store, info.number), 0);
    assert_int_equal(staged_commit(store, info.number, &id, NULL, &err), 0);
    assert_int_equal(store_find(store, &id, &object), 0);
    return object;
}

static void check(struct store *store, const struct mob_id *id, uint64_t seed, size_t bytes)
{
    char *content, *expected = malloc(bytes);
    size_t got;
    fill(expected, bytes, seed, 0);
    assert_int_equal(store_read_all(store, id, bytes, &content, &got), 0);
    assert_int_equal(got, bytes);
    assert_memory_equal(content, expected, bytes);
    free(content);
    free(expected);
}

/* Waits, for at most ten seconds, until so many objects are on disk. */
static void wait_for_disk(struct store *store, uint64_t count)
{
    struct store_usage usage;
    uint64_t deadline = mob_monotonic_ns() + UINT64_C(10000000000);
    do {
        store_usage(store, &usage);
        if (mob_monotonic_ns() > deadline)
            fail_msg("%llu of %llu objects are on disk", (unsigned long long)usage.objects_disk,
                     (unsigned long long)count);
        sched_yield();
    } while (usage.objects_disk < count);
}

static void objects_go_to_disk_when_memory_is_short(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = spilling->fixture.store;
    struct object_info objects[8];
    char name[16];
    for (unsigned i = 0; i < 7; i++) {
        snprintf(name, sizeof name, "o%u", i);
        objects[i] = put(store, name, i, 2 * MIB);
    }
    wait_for_disk(store, 2);
    struct store_usage usage;
    store_usage(store, &usage);
    assert_true(usage.memory_used_bytes <= 12 * MIB);
    for (unsigned i = 0; i < 7; i++)
        check(store, &objects[i].id, i, 2 * MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(objects_go_to_disk_when_memory_is_short, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
