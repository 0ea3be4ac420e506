/* Unit tests of spilling: the fetcher, who waits for it, and what begins on disk. */
#include "tests/unit/spill_gate.h"

/* --- bringing back --- */

static bool fetcher_is_idle(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->spill.lock);
    return !store->spill.fetches && !store->spill.current;
}

static bool restored_after_opens(struct spilling *spilling, unsigned index)
{
    check_object(spilling, index);
    return tier_of(spilling, index) == TIER_MEMORY;
}

static void what_is_opened_again_and_again_comes_back_if_there_is_room(void **state)
{
    struct spilling *spilling = *state;
    char path[128], name[DATA_NAME_BYTES];
    put_some(spilling, 7);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK && memory_is_settled(spilling));
    for (unsigned i = 3; i < 7; i++)
        drop(spilling, i);
    snprintf(path, sizeof path, "%s/data/%s", spilling->fixture.memory_dir,
             data_name(spilling->objects[0].file, name));
    assert_int_equal(access(path, F_OK), -1);
    WAIT_UNTIL(restored_after_opens(spilling, 0));
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(usage_of(spilling).restored_bytes, UNIT_MIB);
    check_object(spilling, 0);
    struct stat before, after;
    snprintf(path, sizeof path, "%s/objects/%s", spilling->disk_dirs[0], name);
    assert_int_equal(stat(path, &before), 0);
    spilling->count = 3;
    while (tier_of(spilling, 0) != TIER_DISK) { /* pushed out again, without being written again */
        assert_true(spilling->count < SPILL_OBJECTS);
        put_some(spilling, 1);
        WAIT_UNTIL(memory_is_settled(spilling));
    }
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(after.st_ino, before.st_ino);
    assert_int_equal(fetch_changed_ns(&after), fetch_changed_ns(&before));
    check_object(spilling, 0);
    drop_all(spilling);
    check_nothing_is_left(spilling);
}

static void what_is_opened_again_and_again_stays_on_disk_without_room(void **state)
{
    struct spilling *spilling = *state;
    put_some(spilling, 7);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK && memory_is_settled(spilling));
    check_object(spilling, 0); /* verified */
    unsigned runs = fetcher_runs();
    for (unsigned i = 0; i < 50; i++)
        check_object(spilling, 0);
    assert_int_equal(tier_of(spilling, 0), TIER_DISK);
    assert_int_equal(fetcher_runs(), runs);
    assert_int_equal(usage_of(spilling).restored_bytes, 0);
}

static void a_copy_that_fails_its_checksum_does_not_come_back(void **state)
{
    struct spilling *spilling = *state;
    struct {
        struct blocks_header header;
        struct spill_sum sums[2];
    } wrong = {.header = {1, SPILL_BLOCK_BYTES, UNIT_MIB}};
    put_some(spilling, 7);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK && memory_is_settled(spilling));
    check_object(spilling, 0);
    set_block_record(store_of(spilling), spilling->objects[0].file, &wrong, sizeof wrong);
    for (unsigned i = 1; i < 5; i++)
        drop(spilling, i);
    unsigned runs = fetcher_runs();
    open_object(spilling, 0);
    WAIT_UNTIL(fetcher_runs() > runs && fetcher_is_idle(store_of(spilling)));
    assert_int_equal(tier_of(spilling, 0), TIER_DISK);
    check_object(spilling, 0);
    close_object(spilling, 0);
    WAIT_UNTIL(fetcher_is_idle(store_of(spilling)));
    assert_int_equal(tier_of(spilling, 0), TIER_DISK);
    assert_int_equal(usage_of(spilling).restored_bytes, 0);
    assert_int_equal(faccessat(store_of(spilling)->data_fd, SPILL_RESTORE_NAME, F_OK, 0), -1);
}

static void what_is_on_disk_is_read_without_waiting_where_it_is_cached(void **state)
{
    struct spilling *spilling = *state;
    put_some(spilling, 7);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK && memory_is_settled(spilling));
    check_reads_without_waiting(spilling, 0);
}

/* --- written on disk --- */

static struct staged_info create_to_read(struct store *store, const char *name)
{
    struct staged_info info;
    assert_int_equal(staged_create_for(store, NAMES_STAGING, name, 0644, 0, 0, 0, O_RDWR, &info),
                     0);
    return info;
}

static void write_staged(struct store *store, uint64_t number, uint64_t seed, size_t bytes)
{
    cleanup_free char *buffer = malloc(bytes);
    fill_bytes(buffer, bytes, seed, 0);
    assert_int_equal(staged_write(store, number, buffer, bytes, 0), bytes);
}

static struct mob_id commit_staged(struct store *store, uint64_t number)
{
    struct mob_id id;
    struct mob_error err = {0};
    assert_int_equal(staged_closed(store, number), 0);
    assert_int_equal(staged_commit(store, number, &id, NULL, &err), 0);
    return id;
}

static void what_is_read_while_it_is_written_begins_on_disk_and_is_sealed(void **state)
{
    struct spilling *spilling = *state;
    struct object_info object;
    spilling->fixture.options.passthrough = true;
    spilling->fixture.options.memory_bytes = 1024u * MIB;
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    struct staged_info info = create_to_read(store, "a");
    assert_true(info.on_disk);
    write_staged(store, info.number, 5, 3 * MIB);
    assert_true(usage_of(spilling).disk_used_bytes >= 3 * MIB);
    assert_int_equal(usage_of(spilling).memory_used_bytes, 0);
    struct mob_id id = commit_staged(store, info.number);
    assert_int_equal(store_find(store, &id, &object), 0);
    assert_int_equal(object.tier, TIER_DISK);
    assert_int_equal(usage_of(spilling).disk_used_bytes, 3 * MIB);
    WAIT_UNTIL(has_block_record(store, object.file) && !store_readable(store, object.number));
    check_bytes(store, &id, 5, 3 * MIB);
    assert_int_equal(staged_create(store, NAMES_STAGING, "b", 0644, 0, 0, 0, &info), 0);
    assert_false(info.on_disk); /* only written: memory is plenty */
    staged_closed(store, info.number);
    staged_discard(store, info.number);
    struct staged_info sparse = create_to_read(store, "sparse");
    assert_int_equal(staged_truncate(store, sparse.number, 5 * MIB), 0);
    (void)commit_staged(store, sparse.number);
    assert_int_equal(usage_of(spilling).disk_used_bytes, 8 * MIB);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "sparse", NULL, NULL), 0);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "a", NULL, NULL), 0);
    check_nothing_is_left(spilling);
}

static void a_small_file_begun_on_disk_goes_inline_and_its_file_serves_again(void **state)
{
    struct spilling *spilling = *state;
    struct object_info object;
    spilling->fixture.options.passthrough = true;
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    struct staged_info first = create_to_read(store, "a");
    assert_true(first.on_disk);
    write_staged(store, first.number, 5, 4096);
    struct mob_id id = commit_staged(store, first.number);
    assert_int_equal(store_find(store, &id, &object), 0);
    assert_int_equal(object.tier, TIER_INLINE);
    check_bytes(store, &id, 5, 4096);
    assert_int_equal(usage_of(spilling).disk_used_bytes, 0);
    disk_settle(store); /* it is emptied by another thread */
    struct staged_info second = create_to_read(store, "b");
    assert_int_equal(second.file, first.file);
    assert_int_equal(second.size, 0);
    write_staged(store, second.number, 6, UNIT_MIB);
    struct mob_id other = commit_staged(store, second.number);
    check_bytes(store, &other, 6, UNIT_MIB);
    check_bytes(store, &id, 5, 4096);
}

/* --- waiting --- */

struct called {
    atomic_uint times;
};

static void note_call(void *argument, uint64_t number, enum object_state object_state)
{
    struct called *called = argument;
    (void)number;
    if (object_state == OBJECT_READY)
        atomic_fetch_add(&called->times, 1);
}

/* Object 0 and 1 are on disk, unverified. */
static void put_two_on_disk(struct spilling *spilling)
{
    put_some(spilling, 8);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK && tier_of(spilling, 1) == TIER_DISK &&
               memory_is_settled(spilling));
    open_object(spilling, 0);
    open_object(spilling, 1);
}

static void who_waits_for_a_fetch_is_called_once_unless_it_cancels(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct called first = {0}, second = {0}, third = {0}, other = {0}, gone = {0};
    uint64_t tokens[5];
    put_two_on_disk(spilling);
    uint64_t a = spilling->objects[0].number, b = spilling->objects[1].number;
    assert_int_equal(store_readable(store, a), -EAGAIN);
    gate_close(true);
    assert_int_equal(store_fetch(store, a, note_call, &first, &tokens[0]), 0);
    WAIT_UNTIL(gate_waiting(FETCHER) == 1); /* it is being read for the first one */
    assert_int_equal(store_fetch(store, a, note_call, &second, &tokens[1]), 0);
    assert_int_equal(store_fetch(store, a, note_call, &third, &tokens[2]), 0);
    assert_int_equal(store_fetch(store, b, note_call, &other, &tokens[3]), 0);
    assert_int_equal(store_fetch(store, b, note_call, &gone, &tokens[4]), 0);
    assert_true(store_wait_cancel(store, a, tokens[0])); /* though others wait behind it */
    assert_false(store_wait_cancel(store, a, tokens[0]));
    assert_true(store_wait_cancel(store, a, tokens[2]));
    assert_true(store_wait_cancel(store, b, tokens[4]));
    gate_close(false);
    WAIT_UNTIL(atomic_load(&second.times) && atomic_load(&other.times));
    assert_int_equal(store_readable(store, a), 0);
    assert_int_equal(store_readable(store, b), 0);
    assert_int_equal(store_fetch(store, a, note_call, &second, &tokens[1]), 0);
    assert_int_equal(second.times, 2); /* readable: from the call itself */
    assert_false(store_wait_cancel(store, a, tokens[1]));
    assert_int_equal(first.times + third.times + gone.times, 0);
    assert_int_equal(other.times, 1);
}

static void who_waits_for_a_fetch_can_cancel_when_the_object_has_gone(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct called first = {0}, second = {0};
    uint64_t tokens[2];
    put_two_on_disk(spilling);
    gate_close(true);
    assert_int_equal(store_fetch(store, spilling->objects[0].number, note_call, &first, &tokens[0]),
                     0);
    WAIT_UNTIL(gate_waiting(FETCHER) == 1);
    assert_int_equal(
        store_fetch(store, spilling->objects[1].number, note_call, &second, &tokens[1]), 0);
    close_object(spilling, 0);
    close_object(spilling, 1);
    drop(spilling, 0);
    drop(spilling, 1);
    assert_true(store_wait_cancel(store, spilling->objects[0].number, tokens[0]));
    assert_true(store_wait_cancel(store, spilling->objects[1].number, tokens[1]));
    gate_close(false);
    WAIT_UNTIL(files_in(spilling->disk_dirs[0]) == usage_of(spilling).objects_disk);
    assert_int_equal(first.times + second.times, 0);
}

static void *open_when_stopping(void *argument)
{
    struct store *store = argument;
    while (!spill_is_stopping(store))
        wait_a_little();
    gate_close(false);
    return NULL;
}

static void who_waits_when_the_store_is_closed_is_called_once(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct called first = {0}, second = {0};
    uint64_t tokens[2];
    pthread_t thread;
    put_two_on_disk(spilling);
    gate_close(true);
    assert_int_equal(store_fetch(store, spilling->objects[0].number, note_call, &first, &tokens[0]),
                     0);
    WAIT_UNTIL(gate_waiting(FETCHER) == 1);
    assert_int_equal(
        store_fetch(store, spilling->objects[1].number, note_call, &second, &tokens[1]), 0);
    assert_int_equal(pthread_create(&thread, NULL, open_when_stopping, store), 0);
    fixture_close(&spilling->fixture);
    pthread_join(thread, NULL);
    assert_int_equal(first.times, 1);
    assert_int_equal(second.times, 1);
}

/* --- no memory for ourselves --- */

static void without_memory_to_verify_a_read_fails_and_the_next_one_does_not(void **state)
{
    struct spilling *spilling = *state;
    put_two_on_disk(spilling);
    atomic_store(&starved, "fetcher");
    assert_int_equal(read_object(spilling, 0), -EIO);
    assert_int_equal(usage_of(spilling).damaged, 0);
    atomic_store(&starved, "test_spill"); /* store_fetch() itself */
    pthread_setname_np(pthread_self(), "test_spill");
    assert_int_equal(read_object(spilling, 0), -ENOMEM);
    atomic_store(&starved, NULL);
    check_object(spilling, 0);
}

int main(void)
{
#define OPENED(test) cmocka_unit_test_setup_teardown(test, spilling_setup, gate_teardown)
#define CLOSED(test) cmocka_unit_test_setup_teardown(test, spilling_setup_closed, gate_teardown)
    const struct CMUnitTest tests[] = {
        OPENED(what_is_opened_again_and_again_comes_back_if_there_is_room),
        OPENED(what_is_opened_again_and_again_stays_on_disk_without_room),
        OPENED(a_copy_that_fails_its_checksum_does_not_come_back),
        OPENED(what_is_on_disk_is_read_without_waiting_where_it_is_cached),
        CLOSED(what_is_read_while_it_is_written_begins_on_disk_and_is_sealed),
        CLOSED(a_small_file_begun_on_disk_goes_inline_and_its_file_serves_again),
        OPENED(who_waits_for_a_fetch_is_called_once_unless_it_cancels),
        OPENED(who_waits_for_a_fetch_can_cancel_when_the_object_has_gone),
        OPENED(who_waits_when_the_store_is_closed_is_called_once),
        OPENED(without_memory_to_verify_a_read_fails_and_the_next_one_does_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
