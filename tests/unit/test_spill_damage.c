/* Unit tests of spilling: damage on disk. It gives an error that names the block, never wrong
 * bytes. */
#include "tests/unit/spill_fixture.h"

/* --- a kernel that could not write back what it had --- */

static struct writing {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const char *fails_in; /* threads of this name get EIO, once they may go on */
    bool held;
    unsigned waiting;
} writing = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

int __real_sync_file_range(int fd, off_t offset, off_t bytes, unsigned flags);
int __wrap_sync_file_range(int fd, off_t offset, off_t bytes, unsigned flags);
int __wrap_sync_file_range(int fd, off_t offset, off_t bytes, unsigned flags)
{
    char name[16] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&writing.lock);
    if (!writing.fails_in || strcmp(name, writing.fails_in) != 0)
        return __real_sync_file_range(fd, offset, bytes, flags);
    writing.waiting++;
    while (writing.held)
        pthread_cond_wait(&writing.changed, &writing.lock);
    writing.waiting--;
    if (!writing.fails_in)
        return 0;
    writing.fails_in = strcmp(name, "writeback") == 0 ? NULL : writing.fails_in; /* said once */
    errno = EIO;
    return -1;
}

static void writing_fails(const char *thread, bool held)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&writing.lock);
    writing.fails_in = thread;
    writing.held = held;
    pthread_cond_broadcast(&writing.changed);
}

static unsigned writing_waits(void)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&writing.lock);
    return writing.waiting;
}

static int writing_teardown(void **state)
{
    writing_fails(NULL, false);
    return spilling_teardown(state);
}

/* --- the tests --- */

static void path_of(struct spilling *spilling, unsigned index, char path[160])
{
    char name[DATA_NAME_BYTES];
    data_name(spilling->objects[index].file, name);
    for (int i = 0; i < 2; i++) {
        snprintf(path, 160, "%s/objects/%s", spilling->disk_dirs[i], name);
        if (access(path, F_OK) == 0)
            return;
    }
    fail_msg("object %u is not on disk", index);
}

static void flip_bit(const char *path, off_t offset)
{
    char byte;
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, offset), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
}

static void check_damaged(struct spilling *spilling, unsigned index, const char *what)
{
    cleanup_free char *sentence = NULL;
    char id[MOB_ID_STRING_BYTES];
    for (int i = 0; i < 2; i++) /* also when it is known */
        assert_int_equal(read_object(spilling, index), -EIO);
    open_object(spilling, index);
    assert_int_equal(store_readable(store_of(spilling), spilling->objects[index].number), -EIO);
    close_object(spilling, index);
    assert_int_equal(store_failure(store_of(spilling), spilling->objects[index].number, &sentence),
                     0);
    if (!strstr(sentence, what))
        fail_msg("%s: \"%s\"", mob_id_format(&spilling->objects[index].id, id), sentence);
    assert_int_equal(usage_of(spilling).damaged, 1);
}

static void check_right_again(struct spilling *spilling, unsigned index)
{
    char *sentence;
    check_object(spilling, index);
    assert_int_equal(store_failure(store_of(spilling), spilling->objects[index].number, &sentence),
                     -ENOENT);
    assert_int_equal(usage_of(spilling).damaged, 0);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
}

static void a_flipped_bit_gives_eio_names_the_block_and_can_be_put_right(void **state)
{
    struct spilling *spilling = *state;
    char path[160];
    put_seven(spilling);
    path_of(spilling, 0, path);
    check_object(spilling, 0); /* verified: the change is noticed nevertheless */
    flip_bit(path, MIB + 4711);
    check_damaged(spilling, 0, "block 1 ");
    check_object(spilling, 6);
    flip_bit(path, MIB + 4711);
    check_right_again(spilling, 0);
}

static void a_bit_flipped_while_nobody_was_there_gives_eio(void **state)
{
    struct spilling *spilling = *state;
    char path[160];
    put_seven(spilling);
    path_of(spilling, 0, path);
    fixture_close(&spilling->fixture);
    flip_bit(path, 0);
    spilling_open(spilling);
    check_damaged(spilling, 0, "block 0 ");
    flip_bit(path, 0);
    check_right_again(spilling, 0);
}

static bool is_readable(struct spilling *spilling, unsigned index)
{
    return store_readable(store_of(spilling), spilling->objects[index].number) == 0;
}

/* The kernel dropped a page that it could not write, and reads what the disk has: the file's ctime
 * says nothing of it. */
static void what_was_not_written_back_is_noticed(void **state)
{
    struct spilling *spilling = *state;
    char path[160];
    struct stat info;
    spilling->fixture.options.writeback_ns = 1;
    spilling_open(spilling);
    writing_fails("writeback", true);
    put_seven(spilling);
    path_of(spilling, 0, path);
    open_object(spilling, 0);
    check_object(spilling, 0);
    WAIT_UNTIL(writing_waits() == 1);
    flip_bit(path, MIB + 4711);
    assert_int_equal(stat(path, &info), 0);
    fetch_set_verified(store_of(spilling), spilling->objects[0].number, fetch_changed_ns(&info));
    assert_true(is_readable(spilling, 0));
    writing_fails("writeback", false);
    WAIT_UNTIL(!is_readable(spilling, 0));
    check_damaged(spilling, 0, "block 1 ");
    assert_int_equal(usage_of(spilling).spill_errors, 1);
    close_object(spilling, 0);
    check_object(spilling, 1);
}

static void a_copy_that_was_not_written_back_leaves_its_object_in_memory(void **state)
{
    struct spilling *spilling = *state;
    writing_fails("evictor", false);
    put_some(spilling, 7);
    WAIT_UNTIL(usage_of(spilling).spill_errors > 1);
    for (unsigned i = 0; i < 7; i++) {
        assert_int_equal(tier_of(spilling, i), TIER_MEMORY);
        check_object(spilling, i);
    }
    writing_fails(NULL, false);
    WAIT_UNTIL(memory_is_settled(spilling));
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
}

static void a_file_cut_short_gives_eio_and_can_be_put_right(void **state)
{
    struct spilling *spilling = *state;
    char path[160], *end = malloc(MIB);
    put_seven(spilling);
    path_of(spilling, 0, path);
    assert_int_equal(truncate(path, MIB + 10), 0);
    check_damaged(spilling, 0, "block 1 ");
    spilling_reopen(spilling);
    check_damaged(spilling, 0, "is cut off");
    int fd = open(path, O_RDWR);
    fill_bytes(end, MIB, 0, MIB);
    assert_int_equal(pwrite(fd, end, MIB, MIB), MIB);
    close(fd);
    free(end);
    check_right_again(spilling, 0);
}

static void a_file_that_is_longer_gives_eio(void **state)
{
    struct spilling *spilling = *state;
    char path[160];
    put_seven(spilling);
    path_of(spilling, 0, path);
    assert_int_equal(truncate(path, UNIT_MIB + 1), 0);
    check_damaged(spilling, 0, "");
    assert_int_equal(truncate(path, UNIT_MIB), 0);
    check_right_again(spilling, 0);
}

static void a_file_that_is_gone_gives_eio_and_a_sentence(void **state)
{
    struct spilling *spilling = *state;
    char path[160], aside[200];
    put_seven(spilling);
    path_of(spilling, 0, path);
    snprintf(aside, sizeof aside, "%s-aside", path);
    assert_int_equal(rename(path, aside), 0);
    check_damaged(spilling, 0, "No such file or directory");
    assert_int_equal(rename(aside, path), 0);
    check_right_again(spilling, 0);
}

static void a_damaged_object_that_is_freed_is_forgotten(void **state)
{
    struct spilling *spilling = *state;
    char path[160];
    put_seven(spilling);
    path_of(spilling, 0, path);
    flip_bit(path, 1);
    check_damaged(spilling, 0, "block 0 ");
    drop_all(spilling);
    check_nothing_is_left(spilling);
    assert_int_equal(usage_of(spilling).damaged, 0);
}

static void get_sums(struct store *store, uint64_t file, struct spill_sum sums[2])
{
    struct meta_reader *reader;
    const void *value;
    size_t bytes;
    assert_int_equal(meta_read_begin(&store->meta, &reader), 0);
    assert_int_equal(meta_get_number(&store->meta, reader->txn, META_BLOCKS, file, &value, &bytes),
                     0);
    assert_int_equal(bytes, sizeof(struct blocks_header) + 2 * sizeof *sums);
    memcpy(sums, (const char *)value + sizeof(struct blocks_header), 2 * sizeof *sums);
    meta_read_end(reader);
}

static void a_record_of_checksums_that_is_damaged_gives_eio(void **state)
{
    struct spilling *spilling = *state;
    struct {
        struct blocks_header header;
        struct spill_sum sums[3];
    } bad = {.header = {1, SPILL_BLOCK_BYTES, UNIT_MIB}};
    put_seven(spilling);
    struct store *store = store_of(spilling);
    uint64_t file = spilling->objects[0].file;
    get_sums(store, file, bad.sums);
    struct {
        const char *what;
        struct blocks_header header;
        size_t bytes;
    } records[] = {
        {"too short for its header", {1, SPILL_BLOCK_BYTES, UNIT_MIB}, sizeof bad.header - 1},
        {"empty", {0, 0, 0}, 0},
        {"no sums", {1, SPILL_BLOCK_BYTES, UNIT_MIB}, sizeof bad.header},
        {"a sum cut off", {1, SPILL_BLOCK_BYTES, UNIT_MIB}, sizeof bad.header + 31},
        {"a sum missing", {1, SPILL_BLOCK_BYTES, UNIT_MIB}, sizeof bad.header + 16},
        {"a sum too many", {1, SPILL_BLOCK_BYTES, UNIT_MIB}, sizeof bad},
        {"another size", {1, SPILL_BLOCK_BYTES, UNIT_MIB - 1}, sizeof bad.header + 32},
        {"another version", {2, SPILL_BLOCK_BYTES, UNIT_MIB}, sizeof bad.header + 32},
        {"other blocks", {1, SPILL_BLOCK_BYTES * 2, UNIT_MIB}, sizeof bad.header + 32},
        {"wrong sums", {1, SPILL_BLOCK_BYTES, UNIT_MIB}, sizeof bad.header + 32},
    };
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(records); i++) {
        bad.header = records[i].header;
        bad.sums[0].bytes[3] ^= i == MOB_ARRAY_LENGTH(records) - 1;
        set_block_record(store, file, &bad, records[i].bytes);
        spilling_reopen(spilling);
        store = store_of(spilling);
        if (read_object(spilling, 0) != -EIO)
            fail_msg("it was read with a record that has %s", records[i].what);
        check_object(spilling, 6);
    }
    check_damaged(spilling, 0, "block 0 ");
    drop_all(spilling);
    check_nothing_is_left(spilling);
}

int main(void)
{
#define OPENED(test) cmocka_unit_test_setup_teardown(test, spilling_setup, spilling_teardown)
#define CLOSED(test) cmocka_unit_test_setup_teardown(test, spilling_setup_closed, spilling_teardown)
    const struct CMUnitTest tests[] = {
        OPENED(a_flipped_bit_gives_eio_names_the_block_and_can_be_put_right),
        OPENED(a_bit_flipped_while_nobody_was_there_gives_eio),
        cmocka_unit_test_setup_teardown(what_was_not_written_back_is_noticed, spilling_setup_closed,
                                        writing_teardown),
        cmocka_unit_test_setup_teardown(
            a_copy_that_was_not_written_back_leaves_its_object_in_memory, spilling_setup,
            writing_teardown),
        OPENED(a_file_cut_short_gives_eio_and_can_be_put_right),
        OPENED(a_file_that_is_longer_gives_eio),
        OPENED(a_file_that_is_gone_gives_eio_and_a_sentence),
        OPENED(a_damaged_object_that_is_freed_is_forgotten),
        OPENED(a_record_of_checksums_that_is_damaged_gives_eio),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
