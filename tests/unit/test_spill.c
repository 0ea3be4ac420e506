/* Unit tests of spilling: the evictor. What comes back and how it is read is in test_spill_fetch.c,
 * restarts and losses in test_spill_recovery.c, damage in test_spill_damage.c. */
#include "tests/unit/spill_gate.h"

/* --- eviction --- */

static void objects_go_to_disk_when_memory_is_short(void **state)
{
    struct spilling *spilling = *state;
    put_some(spilling, 7);
    WAIT_UNTIL(usage_of(spilling).objects_disk >= 1 && memory_is_settled(spilling));
    assert_true(usage_of(spilling).memory_used_bytes <= 12 * MIB);
    assert_int_equal(usage_of(spilling).spilled_bytes, usage_of(spilling).objects_disk * UNIT_MIB);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
}

static void the_least_recently_used_go_first_and_an_open_is_a_use(void **state)
{
    struct spilling *spilling = *state;
    put_some(spilling, 6);
    open_object(spilling, 0);
    close_object(spilling, 0);
    open_object(spilling, 1);
    close_object(spilling, 1);
    put_some(spilling, 1);
    WAIT_UNTIL(tier_of(spilling, 2) == TIER_DISK && memory_is_settled(spilling));
    assert_int_equal(tier_of(spilling, 0), TIER_MEMORY);
    assert_int_equal(tier_of(spilling, 1), TIER_MEMORY);
    assert_int_equal(tier_of(spilling, 5), TIER_MEMORY);
    assert_int_equal(tier_of(spilling, 6), TIER_MEMORY);
}

static void an_object_that_is_open_stays_in_memory_until_it_is_closed(void **state)
{
    struct spilling *spilling = *state;
    put_some(spilling, 6);
    for (unsigned i = 1; i < 6; i++)
        open_object(spilling, i);
    put_some(spilling, 1);
    open_object(spilling, 6);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK);
    put_some(spilling, 1);
    WAIT_UNTIL(tier_of(spilling, 7) == TIER_DISK);
    for (unsigned i = 1; i < 6; i++)
        assert_int_equal(tier_of(spilling, i), TIER_MEMORY);
    close_object(spilling, 4);
    put_some(spilling, 1);
    WAIT_UNTIL(tier_of(spilling, 4) == TIER_DISK || tier_of(spilling, 8) == TIER_DISK);
    assert_int_equal(tier_of(spilling, 3), TIER_MEMORY);
}

static void a_pinned_object_goes_after_all_others_but_it_goes(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    put_some(spilling, 6);
    const struct mob_id *pinned = &spilling->objects[0].id;
    struct mob_id unknown = *pinned;
    unknown.bytes[MOB_ID_OWNER_BYTES] ^= 1;
    assert_int_equal(store_pin(store, &unknown), -ENOENT);
    store_unpin(store, &unknown);
    assert_int_equal(store_pin(store, pinned), 0);
    assert_int_equal(store_pin(store, pinned), 0);
    store_unpin(store, pinned); /* one is left */
    put_some(spilling, 1);
    WAIT_UNTIL(tier_of(spilling, 1) == TIER_DISK && memory_is_settled(spilling));
    assert_int_equal(tier_of(spilling, 0), TIER_MEMORY);
    for (unsigned i = 2; i < 7; i++)
        open_object(spilling, i);
    /* What is being written takes the memory now, and can't go itself. */
    struct staged_info info;
    cleanup_free char *zeros = calloc(1, UNIT_MIB);
    assert_int_equal(staged_create(store, NAMES_STAGING, "s", 0644, 0, 0, 0, &info), 0);
    for (uint64_t at = 0; usage_of(spilling).memory_used_bytes < 13 * MIB; at += UNIT_MIB)
        assert_int_equal(staged_write(store, info.number, zeros, UNIT_MIB, at), UNIT_MIB);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK);
    staged_closed(store, info.number);
    staged_discard(store, info.number);
}

static void an_object_that_is_pinned_no_more_goes_in_its_turn(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    put_some(spilling, 6);
    assert_int_equal(store_pin(store, &spilling->objects[0].id), 0);
    store_unpin(store, &spilling->objects[0].id);
    store_unpin(store, &spilling->objects[0].id); /* one too many is none */
    put_some(spilling, 1);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK);
    assert_int_equal(tier_of(spilling, 6), TIER_MEMORY);
}

static void pins_past_65535_do_not_go_round(void **state)
{
    struct spilling *spilling = *state;
    put_some(spilling, 6);
    for (unsigned i = 0; i <= UINT16_MAX; i++)
        assert_int_equal(store_pin(store_of(spilling), &spilling->objects[0].id), 0);
    put_some(spilling, 1);
    WAIT_UNTIL(tier_of(spilling, 1) == TIER_DISK && memory_is_settled(spilling));
    assert_int_equal(tier_of(spilling, 0), TIER_MEMORY);
}

/* --- freed --- */

static void objects_freed_on_disk_leave_nothing(void **state)
{
    struct spilling *spilling = *state;
    put_some(spilling, 9);
    WAIT_UNTIL(usage_of(spilling).objects_disk >= 2 && memory_is_settled(spilling));
    assert_true(files_in(spilling->disk_dirs[0]) >= 2);
    assert_true(block_records(store_of(spilling)) >= 2);
    assert_true(usage_of(spilling).disk_used_bytes >= 2 * UNIT_MIB);
    drop_all(spilling);
    check_nothing_is_left(spilling);
}

static void objects_freed_while_they_are_copied_leave_nothing(void **state)
{
    struct spilling *spilling = *state;
    gate_close(true);
    put_some(spilling, 7);
    WAIT_UNTIL(gate_waiting(EVICTOR) == 1 && files_in(spilling->disk_dirs[0]));
    assert_true(usage_of(spilling).spilling_bytes >= UNIT_MIB);
    drop_all(spilling);
    assert_int_equal(usage_of(spilling).objects_ready, 0);
    gate_close(false);
    check_nothing_is_left(spilling);
    assert_int_equal(usage_of(spilling).spill_errors, 0);
}

static void an_object_freed_while_it_is_copied_does_not_keep_another_from_going(void **state)
{
    struct spilling *spilling = *state;
    char name[16];
    gate_close(true);
    for (unsigned i = 0; i < 13; i++) { /* as many as make it take two at once */
        snprintf(name, sizeof name, "m%u", i);
        put(store_of(spilling), name, i, MIB);
    }
    WAIT_UNTIL(gate_waiting(EVICTOR) == 1);
    assert_int_equal(files_in(spilling->disk_dirs[0]), 2);
    assert_int_equal(names_unlink(store_of(spilling), NAMES_STAGING, "m0", NULL, NULL), 0);
    gate_close(false);
    WAIT_UNTIL(memory_is_settled(spilling));
    assert_int_equal(usage_of(spilling).objects_disk, 1);
    assert_int_equal(files_in(spilling->disk_dirs[0]), 1);
    assert_int_equal(usage_of(spilling).spill_errors, 0);
}

static void an_object_freed_while_it_waits_to_be_verified_leaves_nothing(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct object_info *objects = spilling->objects;
    put_some(spilling, 9);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK && tier_of(spilling, 1) == TIER_DISK &&
               memory_is_settled(spilling));
    gate_close(true);
    fetch_seal(store, objects[0].number); /* is being read */
    WAIT_UNTIL(gate_waiting(FETCHER) == 1);
    fetch_seal(store, objects[1].number); /* waits */
    drop_all(spilling);
    gate_close(false);
    check_nothing_is_left(spilling);
    assert_int_equal(usage_of(spilling).damaged, 0);
}

/* --- opened --- */

static void an_object_opened_while_it_is_copied_stays_and_the_copy_serves_later(void **state)
{
    struct spilling *spilling = *state;
    gate_close(true);
    put_some(spilling, 7);
    WAIT_UNTIL(gate_waiting(EVICTOR) == 1);
    for (unsigned i = 0; i < 7; i++)
        open_object(spilling, i);
    gate_close(false);
    WAIT_UNTIL(usage_of(spilling).spilled_bytes >= UNIT_MIB && gate_waiting(EVICTOR) == 0);
    WAIT_UNTIL(!usage_of(spilling).spilling_bytes);
    for (unsigned i = 0; i < 7; i++) {
        assert_int_equal(tier_of(spilling, i), TIER_MEMORY);
        check_object(spilling, i);
    }
    uint64_t spilled = usage_of(spilling).spilled_bytes;
    close_object(spilling, 0);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK);
    assert_int_equal(usage_of(spilling).spilled_bytes, spilled);
    check_object(spilling, 0);
}

struct reading {
    struct spilling *spilling;
    atomic_bool stop;
    atomic_uint reads, wrong;
    unsigned first;
};

static void *read_on_and_on(void *argument)
{
    struct reading *reading = argument;
    struct store *store = store_of(reading->spilling);
    char *expected = malloc(UNIT_MIB);
    for (unsigned i = reading->first; !atomic_load(&reading->stop); i++) {
        unsigned which = i % 6;
        char *content = NULL;
        size_t bytes = 0;
        fill_bytes(expected, UNIT_MIB, which, 0);
        if (store_read_all(store, &reading->spilling->objects[which].id, UNIT_MIB, &content,
                           &bytes) ||
            bytes != UNIT_MIB || memcmp(content, expected, UNIT_MIB) != 0)
            atomic_fetch_add(&reading->wrong, 1);
        free(content);
        atomic_fetch_add(&reading->reads, 1);
    }
    free(expected);
    return NULL;
}

static void objects_that_are_pushed_out_and_brought_back_read_right_throughout(void **state)
{
    struct spilling *spilling = *state;
    struct reading reading[2] = {{.spilling = spilling}, {.spilling = spilling, .first = 3}};
    pthread_t threads[2];
    put_some(spilling, 6);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_on_and_on, &reading[i]), 0);
    uint64_t end_ns = mob_monotonic_ns() + UINT64_C(700000000);
    for (unsigned i = 0; mob_monotonic_ns() < end_ns; i++) {
        struct object_info other = put(store_of(spilling), "other", 100 + i, 3 * MIB);
        if (i % 4 == 0)
            check_bytes(store_of(spilling), &other.id, 100 + i, 3 * MIB);
        assert_int_equal(names_unlink(store_of(spilling), NAMES_STAGING, "other", NULL, NULL), 0);
    }
    for (int i = 0; i < 2; i++)
        atomic_store(&reading[i].stop, true);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(reading[i].wrong, 0);
        assert_true(reading[i].reads > 0);
    }
    drop_all(spilling);
    check_nothing_is_left(spilling);
}

/* --- the disk full --- */

static uint64_t evictor_cpu_ns(struct store *store)
{
    clockid_t clock;
    struct timespec time;
    assert_int_equal(pthread_getcpuclockid(store->spill.evictor, &clock), 0);
    assert_int_equal(clock_gettime(clock, &time), 0);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Puts until there is no room, which must come. */
static void put_until_full(struct spilling *spilling)
{
    errint_t error = 0;
    while (!error) {
        char name[16];
        assert_true(spilling->count < SPILL_OBJECTS);
        name_of(spilling->count, name);
        error = try_put(store_of(spilling), name, spilling->count, UNIT_MIB,
                        &spilling->objects[spilling->count]);
        spilling->count += !error;
        /* As fast as it can go on, and no faster: only then is no room the last word. */
        if (!error && usage_of(spilling).disk_free_bytes >= UNIT_MIB)
            WAIT_UNTIL(memory_is_settled(spilling));
    }
    assert_int_equal(error, -ENOSPC);
}

static bool can_put(struct spilling *spilling)
{
    char name[16];
    name_of(spilling->count, name);
    errint_t error = try_put(store_of(spilling), name, spilling->count, UNIT_MIB,
                             &spilling->objects[spilling->count]);
    assert_true(!error || error == -ENOSPC);
    spilling->count += !error;
    return !error;
}

static void fill_and_free(struct spilling *spilling)
{
    put_until_full(spilling);
    assert_true(spilling->count >= 9); /* more than memory has */
    WAIT_UNTIL(usage_of(spilling).spill_errors > 0);
    for (unsigned i = 0; i < spilling->count; i++)
        check_object(spilling, i);
    struct store *store = store_of(spilling);
    uint64_t cpu_ns = evictor_cpu_ns(store), errors = usage_of(spilling).spill_errors;
    uint64_t begin_ns = mob_monotonic_ns();
    while (mob_monotonic_ns() - begin_ns < 200000000)
        wait_a_little();
    assert_true(evictor_cpu_ns(store) - cpu_ns < 100000000);
    /* Tries again once a second. */
    assert_true(usage_of(spilling).spill_errors <=
                errors + 2 + (mob_monotonic_ns() - begin_ns) / 1000000000);
    for (unsigned i = 0; i < 3; i++)
        drop(spilling, i);
    WAIT_UNTIL(can_put(spilling));
    for (unsigned i = 3; i < spilling->count; i++)
        check_object(spilling, i);
}

static void puts_end_with_the_disk_budget_and_go_on_when_objects_are_freed(void **state)
{
    struct spilling *spilling = *state;
    spilling->fixture.options.disk_bytes = 7 * MIB;
    spilling_open(spilling);
    fill_and_free(spilling);
    assert_true(usage_of(spilling).disk_used_bytes <= 8 * MIB);
}

static void puts_end_with_a_full_filesystem_and_go_on_when_objects_are_freed(void **state)
{
    struct spilling *spilling = *state;
    if (!spilling_mount(spilling, "9M"))
        skip();
    spilling_open(spilling);
    fill_and_free(spilling);
}

static void an_object_that_does_not_fit_on_disk_does_not_keep_others_from_going(void **state)
{
    struct spilling *spilling = *state;
    spilling->fixture.options.disk_bytes = 6 * MIB;
    spilling_open(spilling);
    struct object_info large = put(store_of(spilling), "large", 99, 8 * MIB);
    put_some(spilling, 3);
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK && memory_is_settled(spilling));
    assert_int_equal(usage_of(spilling).spill_errors, 0);
    assert_int_equal(store_info(store_of(spilling), large.number, &large), 0);
    assert_int_equal(large.tier, TIER_MEMORY);
    check_bytes(store_of(spilling), &large.id, 99, 8 * MIB);
}

static void an_object_that_cannot_be_copied_does_not_keep_others_from_going(void **state)
{
    struct spilling *spilling = *state;
    char name[DATA_NAME_BYTES];
    struct object_info large = put(store_of(spilling), "large", 99, 4 * MIB);
    /* Somebody has removed its file. */
    assert_int_equal(unlinkat(store_of(spilling)->data_fd, data_name(large.file, name), 0), 0);
    put_some(spilling, 5);
    WAIT_UNTIL(usage_of(spilling).spill_errors >= 1);
    spill_room_came(store_of(spilling)); /* it does not wait for its next try */
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK);
    assert_int_equal(store_info(store_of(spilling), large.number, &large), 0);
    assert_int_equal(large.tier, TIER_MEMORY);
}

static size_t noted_objects(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->spill.lock);
    return store->spill.lru.count;
}

static void what_is_noted_of_objects_does_not_outlive_them(void **state)
{
    struct spilling *spilling = *state;
    struct object_info object;
    spilling->fixture.options.inline_bytes = 1;
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    put_some(spilling, 2);
    for (unsigned i = 0; i < 3000; i++) {
        object = put(store, "a", i, 4096);
        assert_int_equal(names_unlink(store, NAMES_STAGING, "a", NULL, NULL), 0);
    }
    put(store, "b", 1, 4096);
    WAIT_UNTIL(noted_objects(store) <= 1100);
    assert_int_equal(store_info(store, object.number, &object), -ENOENT);
    put_some(spilling, 5); /* those that live are known still */
    WAIT_UNTIL(tier_of(spilling, 0) == TIER_DISK);
}

static void a_writer_gets_the_room_that_is_left_even_if_it_is_little(void **state)
{
    struct spilling *spilling = *state;
    spilling->fixture.options.disk_bytes = 24 * MIB;
    spilling_open(spilling);
    put_some(spilling, 6);
    for (unsigned i = 0; i < 6; i++)
        open_object(spilling, i); /* nothing can go: what is written must itself */
    struct object_info object = put(store_of(spilling), "large", 99, 12 * MIB);
    assert_int_equal(object.tier, TIER_DISK);
    check_bytes(store_of(spilling), &object.id, 99, 12 * MIB);
}

static void a_file_goes_to_disk_when_memory_is_full_of_what_is_not_ours(void **state)
{
    struct spilling *spilling = *state;
    const char *memory = spilling->fixture.memory_dir;
    if (mount("memory", memory, "tmpfs", 0, "size=8m,mode=700") < 0)
        skip();
    spilling_open(spilling);
    umount2(memory, MNT_DETACH);
    struct object_info object = put(store_of(spilling), "large", 99, 11 * MIB);
    assert_int_equal(object.tier, TIER_DISK);
    check_bytes(store_of(spilling), &object.id, 99, 11 * MIB);
}

static void a_small_file_that_had_to_go_to_an_encrypted_disk_reads_right(void **state)
{
    enum { FILES = 69, BYTES = 60000 }; /* one more than memory holds */
    struct spilling *spilling = *state;
    struct staged_info files[FILES];
    struct mob_id id;
    char path[96], name[16], content[BYTES];
    snprintf(path, sizeof path, "%s/key", spilling->fixture.state_dir);
    cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    memset(content, '1', 64);
    assert_int_equal(write(fd, content, 64), 64);
    spilling->fixture.options.spill_key = path;
    spilling->fixture.options.memory_bytes = 4 * MIB;
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    for (unsigned i = 0; i < FILES; i++) {
        name_of(i, name);
        fill_bytes(content, BYTES, i, 0);
        assert_int_equal(staged_create(store, NAMES_STAGING, name, 0644, 0, 0, 0, &files[i]), 0);
        assert_int_equal(staged_write(store, files[i].number, content, BYTES, 0), BYTES);
    }
    assert_true(usage_of(spilling).spilled_bytes > 0);
    for (unsigned i = 0; i < FILES; i++) {
        assert_int_equal(staged_closed(store, files[i].number), 0);
        assert_int_equal(staged_commit(store, files[i].number, &id, NULL, NULL), 0);
        check_bytes(store, &id, i, BYTES);
    }
    assert_int_equal(usage_of(spilling).objects_inline, FILES);
    assert_int_equal(files_in(spilling->disk_dirs[0]), 0);
}

/* --- no memory for ourselves --- */

static void without_memory_for_checksums_objects_stay_and_go_later(void **state)
{
    struct spilling *spilling = *state;
    atomic_store(&starved, "evictor");
    put_some(spilling, 7);
    WAIT_UNTIL(usage_of(spilling).spill_errors > 0);
    assert_int_equal(usage_of(spilling).objects_disk, 0);
    assert_int_equal(files_in(spilling->disk_dirs[0]), 0);
    assert_int_equal(usage_of(spilling).disk_used_bytes, 0);
    atomic_store(&starved, NULL);
    spill_room_came(store_of(spilling)); /* it does not wait for its next try */
    WAIT_UNTIL(usage_of(spilling).objects_disk >= 1 && memory_is_settled(spilling));
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
}

int main(void)
{
#define OPENED(test) cmocka_unit_test_setup_teardown(test, spilling_setup, gate_teardown)
#define CLOSED(test) cmocka_unit_test_setup_teardown(test, spilling_setup_closed, gate_teardown)
    const struct CMUnitTest tests[] = {
        OPENED(objects_go_to_disk_when_memory_is_short),
        OPENED(the_least_recently_used_go_first_and_an_open_is_a_use),
        OPENED(an_object_that_is_open_stays_in_memory_until_it_is_closed),
        OPENED(a_pinned_object_goes_after_all_others_but_it_goes),
        OPENED(an_object_that_is_pinned_no_more_goes_in_its_turn),
        OPENED(pins_past_65535_do_not_go_round),
        OPENED(objects_freed_on_disk_leave_nothing),
        OPENED(objects_freed_while_they_are_copied_leave_nothing),
        OPENED(an_object_freed_while_it_is_copied_does_not_keep_another_from_going),
        OPENED(an_object_freed_while_it_waits_to_be_verified_leaves_nothing),
        OPENED(an_object_opened_while_it_is_copied_stays_and_the_copy_serves_later),
        OPENED(objects_that_are_pushed_out_and_brought_back_read_right_throughout),
        CLOSED(puts_end_with_the_disk_budget_and_go_on_when_objects_are_freed),
        CLOSED(puts_end_with_a_full_filesystem_and_go_on_when_objects_are_freed),
        CLOSED(an_object_that_does_not_fit_on_disk_does_not_keep_others_from_going),
        OPENED(an_object_that_cannot_be_copied_does_not_keep_others_from_going),
        CLOSED(what_is_noted_of_objects_does_not_outlive_them),
        CLOSED(a_writer_gets_the_room_that_is_left_even_if_it_is_little),
        CLOSED(a_file_goes_to_disk_when_memory_is_full_of_what_is_not_ours),
        CLOSED(a_small_file_that_had_to_go_to_an_encrypted_disk_reads_right),
        OPENED(without_memory_for_checksums_objects_stay_and_go_later),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
