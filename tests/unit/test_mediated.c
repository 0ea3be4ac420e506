/* Staged files whose writes come through us: which do, though the store has passthrough, and which
 * writes don't wait. */
#include "tests/unit/spill_fixture.h"

static struct staged_info make(struct store *store, const char *name, int access)
{
    struct staged_info info;
    assert_int_equal(staged_create_for(store, NAMES_STAGING, name, 0644, 0, 0, 0, access, &info),
                     0);
    return info;
}

static void write_mib(struct store *store, const struct staged_info *info, uint64_t first,
                      uint64_t end)
{
    cleanup_free char *buffer = malloc(MIB);
    for (uint64_t i = first; i < end; i++) {
        fill_bytes(buffer, MIB, info->number, i * MIB);
        assert_int_equal(staged_write(store, info->number, buffer, MIB, i * MIB), MIB);
    }
}

static void check_mib(struct store *store, const struct staged_info *info, uint64_t count)
{
    cleanup_free char *buffer = malloc(MIB), *expected = malloc(MIB);
    for (uint64_t i = 0; i < count; i++) {
        fill_bytes(expected, MIB, info->number, i * MIB);
        assert_int_equal(staged_read(store, info->number, buffer, MIB, i * MIB), MIB);
        assert_memory_equal(buffer, expected, MIB);
    }
}

/* Writes 1 MiB pieces until one would have to wait; returns their number. */
static uint64_t write_until_it_waits(struct store *store, const struct staged_info *info)
{
    cleanup_free char *buffer = malloc(MIB);
    uint64_t count = 0;
    ssize_t put;
    fill_bytes(buffer, MIB, 1, 0);
    while ((put = staged_write_now(store, info->number, buffer, MIB, count * MIB)) == MIB)
        count++;
    assert_int_equal(put, -EAGAIN);
    return count;
}

static void end(struct store *store, const struct staged_info *info)
{
    assert_int_equal(staged_closed(store, info->number), 0);
    staged_discard(store, info->number);
}

/* --- who is mediated --- */

static struct store *open_passthrough(struct spilling *spilling, uint64_t disk_bytes)
{
    spilling->fixture.options.passthrough = true;
    spilling->fixture.options.disk_bytes = disk_bytes;
    spilling_open(spilling);
    return store_of(spilling);
}

static void in_a_small_memory_a_file_begins_on_disk_or_is_written_through_us(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = open_passthrough(spilling, 256 * MIB);
    struct staged_info on_disk = make(store, "a", O_WRONLY);
    assert_true(on_disk.on_disk);
    assert_false(on_disk.mediated);
    end(store, &on_disk);
    fixture_close(&spilling->fixture);

    store = open_passthrough(spilling, 40 * MIB); /* too little room to begin there */
    struct staged_info info = make(store, "b", O_WRONLY);
    assert_false(info.on_disk);
    assert_true(info.mediated);
    write_mib(store, &info, 0, 30);
    assert_true(usage_of(spilling).memory_used_bytes <= 16 * MIB);
    assert_int_equal(staged_peek(store, info.number, &info), 0);
    assert_true(info.split);
    check_mib(store, &info, 30);
    assert_true(staged_mark_write_only(store, info.number, false)); /* all reads come to us */
    end(store, &info);
}

static void a_file_that_is_read_as_well_is_written_through_us_if_the_disk_has_no_room(void **state)
{
    struct store *store = open_passthrough(*state, 40 * MIB);
    struct staged_info info = make(store, "a", O_RDWR);
    assert_true(info.mediated);
    write_mib(store, &info, 0, 30);
    check_mib(store, &info, 30);
    end(store, &info);
}

static void what_is_mediated_stays_so_for_a_successor(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = open_passthrough(spilling, 40 * MIB);
    struct staged_info memory = make(store, "memory", O_WRONLY);
    struct staged_info split = make(store, "split", O_WRONLY);
    write_mib(store, &memory, 0, 1);
    write_mib(store, &split, 0, 20);
    spilling_reopen(spilling);
    store = store_of(spilling);
    assert_int_equal(staged_peek(store, memory.number, &memory), 0);
    assert_int_equal(staged_peek(store, split.number, &split), 0);
    assert_true(memory.mediated && !memory.split);
    assert_true(split.mediated && split.split);
    assert_int_equal(staged_opened(store, memory.number), 0);
    assert_int_equal(staged_opened(store, split.number), 0);
    write_mib(store, &memory, 1, 3);
    write_mib(store, &split, 20, 24);
    check_mib(store, &memory, 3);
    check_mib(store, &split, 24);
    end(store, &memory);
    end(store, &split);
}

/* --- what doesn't wait --- */

static void a_write_now_is_made_where_nothing_is_waited_for(void **state)
{
    struct store *store = store_of(*state);
    struct staged_info info = make(store, "a", O_WRONLY);
    char bytes[5] = "five", got[5];
    assert_int_equal(staged_write_now(store, info.number, bytes, 5, 0), 5);
    struct staged *staged = staged_get(store, info.number);
    pthread_mutex_lock(&staged->lock); /* as who moves it to disk has */
    assert_int_equal(staged_write_now(store, info.number, "other", 5, 0), -EAGAIN);
    pthread_mutex_unlock(&staged->lock);
    staged_put(store, staged);
    assert_int_equal(staged_read(store, info.number, got, 5, 0), 5);
    assert_memory_equal(got, bytes, 5);
    assert_int_equal(staged_write_now(store, info.number, bytes, 5, INT64_MAX), -EFBIG);
    assert_int_equal(staged_write_now(store, info.number + 1, bytes, 5, 0), -ENOENT);
    end(store, &info);
}

static void a_write_now_never_makes_room(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct staged_info info = make(store, "a", O_WRONLY);
    uint64_t count = write_until_it_waits(store, &info);
    assert_int_equal(staged_peek(store, info.number, &info), 0);
    assert_false(info.split);
    write_mib(store, &info, 0, count + 1); /* now a part of it has gone to disk */
    assert_int_equal(staged_peek(store, info.number, &info), 0);
    assert_true(info.split);
    char byte = 0;
    assert_int_equal(staged_write_now(store, info.number, &byte, 1, 0), -EAGAIN);
    assert_int_equal(staged_write_now(store, info.number, &byte, 1, (count + 1) * MIB), 1);
    check_mib(store, &info, count + 1);
    end(store, &info);
}

static void the_last_sixteenth_of_memory_is_for_small_files(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct staged_info large = make(store, "large", O_WRONLY);
    struct staged_info small = make(store, "small", O_WRONLY);
    assert_int_equal(write_until_it_waits(store, &large), 15);
    cleanup_free char *buffer = calloc(1, 128 << 10);
    assert_int_equal(staged_write_now(store, small.number, buffer, 128 << 10, 0), 128 << 10);
    assert_int_equal(staged_write_now(store, small.number, buffer, 1, 128 << 10), -EAGAIN);
    assert_true(usage_of(spilling).memory_used_bytes <= 16 * MIB);
    end(store, &large);
    end(store, &small);
}

int main(void)
{
#define CLOSED(test) cmocka_unit_test_setup_teardown(test, spilling_setup_closed, spilling_teardown)
#define OPENED(test) cmocka_unit_test_setup_teardown(test, spilling_setup, spilling_teardown)
    const struct CMUnitTest tests[] = {
        CLOSED(in_a_small_memory_a_file_begins_on_disk_or_is_written_through_us),
        CLOSED(a_file_that_is_read_as_well_is_written_through_us_if_the_disk_has_no_room),
        CLOSED(what_is_mediated_stays_so_for_a_successor),
        OPENED(a_write_now_is_made_where_nothing_is_waited_for),
        OPENED(a_write_now_never_makes_room),
        OPENED(the_last_sixteenth_of_memory_is_for_small_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
