/* Unit tests of a store with a key: who has its disk but not the key reads nothing and changes
 * nothing without that being noticed; and writers find room in a full memory. */
#include "tests/unit/spill_fixture.h"

static char key_path[96];

static void write_key(const char *path, char with)
{
    char key[32];
    memset(key, with, sizeof key);
    key[0] = 1; /* no text */
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(mob_write_full(fd, key, sizeof key), 0);
    close(fd);
}

static int setup_closed(void **state)
{
    struct spilling *spilling = spilling_new();
    snprintf(key_path, sizeof key_path, "%s/key", spilling->fixture.memory_dir);
    write_key(key_path, 'k');
    spilling->fixture.options.spill_key = key_path;
    *state = spilling;
    return 0;
}

static int setup(void **state)
{
    setup_closed(state);
    spilling_open(*state);
    return 0;
}

static int teardown(void **state)
{
    unlink(key_path);
    return spilling_teardown(state);
}

/* --- keys --- */

static void check_refused(struct spilling *spilling, errint_t expected, const char *sentence)
{
    struct mob_error err = {0};
    struct store *store;
    assert_int_equal(store_open(&spilling->fixture.options, &store, &err), expected);
    if (!strstr(err.message, sentence))
        fail_msg("\"%s\" is not \"%s\"", err.message, sentence);
}

static void without_its_key_a_store_is_refused_and_stays_as_it_is(void **state)
{
    struct spilling *spilling = *state;
    struct store_options *options = &spilling->fixture.options;
    char other[120];
    snprintf(other, sizeof other, "%s-other", key_path);
    write_key(other, 'o');
    put_seven(spilling);
    fixture_close(&spilling->fixture);
    for (int i = 0; i < 2; i++) {
        options->spill_key = NULL;
        check_refused(spilling, -ENOKEY, "is encrypted: give its key");
        options->spill_key = other;
        check_refused(spilling, -EKEYREJECTED, "another key");
        options->spill_key = "/nonexistent/key";
        check_refused(spilling, -ENOENT, "/nonexistent/key");
        options->distrust_meta = true; /* the journal says the same */
    }
    options->distrust_meta = false;
    options->spill_key = key_path;
    spilling_open(spilling);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
    unlink(other);
}

static void a_spill_directory_with_a_key_is_refused_without(void **state)
{
    struct spilling *spilling = *state;
    struct store_options *options = &spilling->fixture.options;
    char path[96];
    fixture_close(&spilling->fixture);
    /* Another state of the same node, which never had a key. */
    snprintf(path, sizeof path, "%s/other", spilling->fixture.state_dir);
    assert_int_equal(mkdir(path, 0700), 0);
    options->state_dir = path;
    options->spill_key = NULL;
    check_refused(spilling, -ENOKEY, spilling->disk_dirs[0]);
    options->state_dir = spilling->fixture.state_dir;
}

static void a_key_without_a_spill_directory_is_refused(void **state)
{
    struct spilling *spilling = *state;
    spilling->fixture.options.spill_dirs = NULL;
    check_refused(spilling, -EINVAL, "--spill-key");
}

/* --- what is on disk --- */

static bool has_bytes(const char *path, const void *bytes, size_t count)
{
    cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t size = lseek(fd, 0, SEEK_END);
    cleanup_free char *content = malloc((size_t)size + 1);
    assert_true(fd >= 0);
    assert_int_equal(mob_pread_full(fd, content, (size_t)size, 0), size);
    return memmem(content, (size_t)size, bytes, count) != NULL;
}

static void what_is_spilled_is_encrypted_and_comes_back(void **state)
{
    struct spilling *spilling = *state;
    char *path;
    static char block[MIB];
    put_seven(spilling);
    assert_int_equal(store_place(store_of(spilling), spilling->objects[0].number, &path), 0);
    fill_bytes(block, MIB, 0, 0);
    assert_false(has_bytes(path, block + 4096, 64));
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, cipher_file_bytes(UNIT_MIB));
    free(path);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
    spilling_reopen(spilling);
    for (unsigned i = 0; i < 7; i++)
        check_object(spilling, i);
    drop_all(spilling);
    check_nothing_is_left(spilling);
}

/* A value of the database that was changed by somebody who knows its checksum. */
static void change_value(struct store *store, enum meta_table table, uint64_t number, size_t at)
{
    MDB_txn *txn;
    const void *value;
    size_t bytes;
    store_write_lock(store);
    assert_int_equal(meta_begin(&store->meta, 65536, &txn), 0);
    assert_int_equal(meta_get_number(&store->meta, txn, table, number, &value, &bytes), 0);
    cleanup_free char *copy = malloc(bytes);
    memcpy(copy, value, bytes);
    copy[at < bytes ? at : bytes - 1] ^= 1;
    if (table == META_OBJECTS) { /* it has a checksum of its own */
        struct object_record record;
        memcpy(&record, copy, sizeof record);
        record.content_sum = object_content_sum(copy + sizeof record, bytes - sizeof record);
        memcpy(copy, &record, sizeof record);
    }
    assert_int_equal(meta_put_number(&store->meta, txn, table, number, copy, bytes), 0);
    assert_int_equal(meta_commit(txn), 0);
    store_write_unlock(store);
}

static void small_objects_can_not_be_changed_without_the_key(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    static const size_t sizes[] = {0, 1, 1000, META_EMBEDDED_BYTES, META_EMBEDDED_BYTES + 1, 90000};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++) {
        char name[16], *content;
        size_t bytes;
        snprintf(name, sizeof name, "small%zu", i);
        struct object_info object = put(store, name, i, sizes[i]);
        bool embedded = sizes[i] <= META_EMBEDDED_BYTES;
        assert_int_equal(object.tier, TIER_INLINE);
        assert_int_equal(object.size, sizes[i]);
        assert_int_equal(store_read_all(store, &object.id, sizes[i], &content, &bytes), 0);
        assert_int_equal(bytes, sizes[i]);
        free(content);
        if (!sizes[i])
            continue;
        change_value(store, embedded ? META_OBJECTS : META_INLINE, object.number,
                     (embedded ? sizeof(struct object_record) : 0) + 60);
        assert_int_equal(store_read_all(store, &object.id, sizes[i], &content, &bytes), -EIO);
    }
}

static void sha256_sums_are_kept_encrypted(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    struct meta_reader *reader;
    char sum[65], again[65];
    const void *value;
    size_t bytes;
    struct object_info object = put(store, "summed", 1, 5000);
    assert_int_equal(store_opened(store, object.number), 0);
    assert_int_equal(store_sha256(store, object.number, sum), 0);
    assert_int_equal(meta_read_begin(&store->meta, &reader), 0);
    assert_int_equal(
        meta_get_number(&store->meta, reader->txn, META_SUMS, object.number, &value, &bytes), 0);
    assert_int_equal(bytes, 32 + CIPHER_VALUE_BYTES);
    meta_read_end(reader);
    assert_int_equal(store_sha256(store, object.number, again), 0);
    assert_string_equal(sum, again);
    change_value(store, META_SUMS, object.number, 80); /* then it is made anew */
    assert_int_equal(store_sha256(store, object.number, again), 0);
    assert_string_equal(sum, again);
    store_open_dropped(store, object.number);
}

static void a_file_on_disk_that_has_gone_is_an_error_with_a_sentence(void **state)
{
    struct spilling *spilling = *state;
    char *path, *sentence;
    put_seven(spilling);
    assert_int_equal(store_place(store_of(spilling), spilling->objects[0].number, &path), 0);
    assert_int_equal(unlink(path), 0);
    free(path);
    assert_int_equal(read_object(spilling, 0), -EIO);
    assert_int_equal(store_failure(store_of(spilling), spilling->objects[0].number, &sentence), 0);
    assert_non_null(strstr(sentence, "No such file"));
    free(sentence);
}

/* --- a full memory --- */

/* All of memory is taken by what can't go. */
static void fill_memory(struct spilling *spilling)
{
    put_some(spilling, 6);
    for (unsigned i = 0; i < 6; i++)
        open_object(spilling, i);
    while (usage_of(spilling).memory_used_bytes < 13 * MIB) {
        put_some(spilling, 1);
        open_object(spilling, spilling->count - 1);
    }
}

static void a_writer_gets_on_when_nothing_in_memory_can_go(void **state)
{
    struct spilling *spilling = *state;
    struct store *store = store_of(spilling);
    fill_memory(spilling);
    struct object_info object;
    assert_int_equal(try_put(store, "large", 99, 5 * MIB, &object), 0);
    assert_int_equal(object.tier, TIER_DISK);
    check_bytes(store, &object.id, 99, 5 * MIB);
    assert_int_equal(try_put(store, "small", 98, 3000, &object), 0);
    assert_int_equal(object.tier, TIER_INLINE);
    check_bytes(store, &object.id, 98, 3000);
    assert_true(usage_of(spilling).memory_used_bytes <= 16 * MIB);
    for (unsigned i = 0; i < spilling->count; i++)
        close_object(spilling, i);
}

static void what_is_encrypted_is_read_without_waiting_where_it_is_cached(void **state)
{
    put_seven(*state);
    check_reads_without_waiting(*state, 0);
}

int main(void)
{
#define OPENED(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
#define CLOSED(test) cmocka_unit_test_setup_teardown(test, setup_closed, teardown)
    const struct CMUnitTest tests[] = {
        OPENED(without_its_key_a_store_is_refused_and_stays_as_it_is),
        OPENED(a_spill_directory_with_a_key_is_refused_without),
        CLOSED(a_key_without_a_spill_directory_is_refused),
        OPENED(what_is_spilled_is_encrypted_and_comes_back),
        OPENED(small_objects_can_not_be_changed_without_the_key),
        OPENED(sha256_sums_are_kept_encrypted),
        OPENED(a_file_on_disk_that_has_gone_is_an_error_with_a_sentence),
        OPENED(a_writer_gets_on_when_nothing_in_memory_can_go),
        OPENED(what_is_encrypted_is_read_without_waiting_where_it_is_cached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
