/* Unit tests of core/store: objects, references, waiting, batches, recovery. */
#include "tests/unit/store_fixture.h"

#include <fcntl.h>
#include <lmdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

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

/* --- listing --- */

static void listing_returns_each_ready_object_once(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    enum { COUNT = 3000 };
    static struct object_info infos[7];
    uint64_t cursors[7], cursor = 0;
    struct store_batch *batch;
    struct mob_id pending = {{1}};
    size_t got, seen = 0;
    char name[16];
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "%d", i);
        fixture_put(store, NAMES_STAGING, name, &i, sizeof i);
    }
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_pending(batch, &pending, 0, 0, 022, 0, NULL), 0);
    assert_int_equal(store_batch_commit(batch, NULL), 0);
    bool *found = calloc(1 << 20, sizeof *found);
    while ((got = store_list_cursors(store, cursor, infos, cursors, 7))) {
        for (size_t i = 0; i < got; i++) {
            assert_true(cursors[i] > cursor);
            cursor = cursors[i];
            assert_false(found[infos[i].number & 0xfffff]);
            found[infos[i].number & 0xfffff] = true;
            seen++;
        }
        /* Others come and go meanwhile; what stays is told once. */
        snprintf(name, sizeof name, "t%zu", seen);
        fixture_put(store, NAMES_STAGING, name, "", 0);
        assert_int_equal(names_unlink(store, NAMES_STAGING, name, NULL, NULL), 0);
    }
    assert_int_equal(seen, COUNT);
    cursor = 0, seen = 0;
    while ((got = store_list(store, &cursor, infos, 7)))
        seen += got;
    assert_int_equal(seen, COUNT);
    free(found);
}

/* --- pending objects, waiting, batches --- */

struct heard {
    int calls;
    enum object_state state;
};

static void hear(void *argument, uint64_t number, enum object_state state)
{
    struct heard *heard = argument;
    (void)number;
    heard->calls++;
    heard->state = state;
}

static uint64_t make_pending(struct store *store, const struct mob_id *id, uint64_t preset)
{
    struct store_batch *batch;
    uint64_t number;
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_pending(batch, id, 7, 8, 027, preset, &number), 0);
    assert_int_equal(store_batch_commit(batch, NULL), 0);
    return number;
}

static errint_t make_ready(struct store *store, const struct mob_id *id, const char *text)
{
    struct store_batch *batch;
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_ready_bytes(batch, id, text, strlen(text)), 0);
    return store_batch_commit(batch, NULL);
}

static errint_t make_failed(struct store *store, const struct mob_id *id, errint_t code)
{
    struct store_batch *batch;
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_fail(batch, id, code, "it broke"), 0);
    return store_batch_commit(batch, NULL);
}

static void a_pending_object_becomes_ready_and_wakes_its_waiters(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct mob_id id = {{1, 2, 3}};
    struct heard heard[3] = {{0}};
    struct object_info info;
    uint64_t tokens[3], number = make_pending(store, &id, 0);
    char *content, buffer[8];
    size_t bytes;
    assert_int_equal(store_info(store, number, &info), 0);
    assert_int_equal(info.state, OBJECT_PENDING);
    assert_int_equal(info.mode, S_IFREG | 0440);
    assert_int_equal(info.links, 1);
    assert_int_equal(store_read_all(store, &id, 10, &content, &bytes), -EAGAIN);
    assert_int_equal(store_read_inline(store, number, buffer, 8, 0), -EINVAL);
    for (int i = 0; i < 3; i++)
        assert_int_equal(store_wait(store, number, hear, &heard[i], &tokens[i]), 0);
    assert_true(store_wait_cancel(store, number, tokens[1]));
    assert_false(store_wait_cancel(store, number, tokens[1]));
    assert_int_equal(make_ready(store, &id, "done"), 0);
    assert_int_equal(heard[0].calls, 1);
    assert_int_equal(heard[1].calls, 0);
    assert_int_equal(heard[2].calls, 1);
    assert_int_equal(heard[2].state, OBJECT_READY);
    assert_false(store_wait_cancel(store, number, tokens[0]));
    assert_int_equal(store_wait(store, number, hear, &heard[1], &tokens[1]), 0);
    assert_int_equal(heard[1].calls, 1);
    assert_int_equal(store_wait(store, 4711, hear, &heard[1], &tokens[1]), -ENOENT);
    assert_int_equal(store_read_inline(store, number, buffer, 8, 1), 3);
    assert_memory_equal(buffer, "one", 3);
    assert_int_equal(make_ready(store, &id, "again"), -ENOENT);
    store_drop(store, &id);
    assert_false(fixture_exists(store, &id));
}

static void a_failed_object_keeps_its_sentence_and_a_dropped_one_ends_its_waiters(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct mob_id id = {{1}}, other = {{2}};
    struct heard heard = {0};
    char *sentence, *content;
    size_t bytes;
    uint64_t token, number = make_pending(store, &id, 0), dropped = make_pending(store, &other, 0);
    assert_int_equal(store_failure(store, number, &sentence), -ENOENT);
    assert_int_equal(store_wait(store, number, hear, &heard, &token), 0);
    assert_int_equal(make_failed(store, &id, -ETIMEDOUT), 0);
    assert_int_equal(heard.state, OBJECT_FAILED);
    assert_int_equal(store_failure(store, number, &sentence), 0);
    assert_string_equal(sentence, "it broke");
    free(sentence);
    assert_int_equal(store_read_all(store, &id, 10, &content, &bytes), -ETIMEDOUT);
    heard = (struct heard){0, OBJECT_READY};
    assert_int_equal(store_wait(store, dropped, hear, &heard, &token), 0);
    store_drop(store, &other);
    assert_int_equal(heard.calls, 1);
    assert_int_equal(heard.state, OBJECT_PENDING);
    assert_int_equal(make_failed(store, &other, -EIO), -ENOENT);
    assert_int_equal(store_hold(store, &id), 0);
    store_drop(store, &id);
    assert_true(fixture_exists(store, &id));
    store_drop(store, &id);
    assert_false(fixture_exists(store, &id));
    assert_int_equal(store_hold(store, &id), -ENOENT);
}

static void a_file_of_a_job_is_moved_in_without_a_copy(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct mob_id id = {{1}}, small = {{2}};
    struct object_info info;
    struct stat before, after;
    char path[2][128], *content;
    size_t bytes;
    memset(big, 'q', sizeof big);
    struct store_batch *batch;
    make_pending(store, &id, 0);
    make_pending(store, &small, 0);
    assert_int_equal(store_batch_new(store, &batch), 0);
    for (int i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "%s/out%d", fixture->memory_dir, i);
        int fd = open(path[i], O_RDWR | O_CREAT, 0666);
        assert_int_equal(mob_write_full(fd, big, i ? 1000 : sizeof big), 0);
        if (!i)
            assert_int_equal(fstat(fd, &before), 0);
        assert_int_equal(store_batch_ready_file(batch, i ? &small : &id, fd, path[i], i), 0);
    }
    assert_int_equal(store_batch_commit(batch, NULL), 0);
    assert_int_equal(access(path[0], F_OK), -1);
    assert_int_equal(access(path[1], F_OK), -1);
    assert_int_equal(store_find(store, &id, &info), 0);
    assert_int_equal(info.tier, TIER_MEMORY);
    assert_int_equal(info.size, sizeof big);
    struct store_file file;
    assert_int_equal(store_open_file(store, info.number, &file), 0);
    assert_int_equal(fstat(file.fd, &after), 0);
    close(file.fd);
    assert_int_equal(after.st_ino, before.st_ino);
    assert_int_equal(after.st_mode & 07777, 0600);
    assert_int_equal(store_find(store, &small, &info), 0);
    assert_int_equal(info.mode, S_IFREG | 0550);
    assert_int_equal(store_read_all(store, &small, 1000, &content, &bytes), 0);
    assert_int_equal(bytes, 1000);
    free(content);
    struct store_usage usage;
    store_usage(store, &usage);
    assert_int_equal(usage.memory_used_bytes, (uint64_t)after.st_blocks * 512);
    store_drop(store, &id);
    store_usage(store, &usage);
    assert_int_equal(usage.memory_used_bytes, 0);
}

static void a_batch_that_fails_changes_nothing(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct mob_id id = {{1}}, missing = {{2}}, fresh = {{3}};
    struct mob_error err = {0};
    struct store_usage before, after;
    void *value;
    size_t bytes, files;
    char path[128];
    make_pending(store, &id, 0);
    snprintf(path, sizeof path, "%s/out", fixture->memory_dir);
    int fd = open(path, O_RDWR | O_CREAT, 0666);
    assert_int_equal(mob_write_full(fd, big, sizeof big), 0);
    files = fixture_data_files(fixture);
    store_usage(store, &before);
    struct store_batch *batch;
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_put(batch, STORE_TABLE_JOBS, "k", 1, "v", 1), 0);
    assert_int_equal(store_batch_pending(batch, &fresh, 0, 0, 0, 0, NULL), 0);
    assert_int_equal(store_batch_ready_file(batch, &id, fd, path, false), 0);
    assert_int_equal(store_batch_fail(batch, &missing, -EIO, "x"), 0);
    assert_int_equal(store_batch_commit(batch, &err), -ENOENT);
    assert_true(err.message[0]);
    store_usage(store, &after);
    assert_same_usage(&before, &after);
    assert_int_equal(fixture_data_files(fixture), files);
    assert_int_equal(access(path, F_OK), 0);
    assert_false(fixture_exists(store, &fresh));
    assert_int_equal(store_table_get(store, STORE_TABLE_JOBS, "k", 1, &value, &bytes), -ENOENT);
    assert_int_equal(make_ready(store, &id, "x"), 0);
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_pending(batch, &id, 0, 0, 0, 0, NULL), 0);
    assert_int_equal(store_batch_commit(batch, NULL), -EEXIST);
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_put(batch, STORE_TABLE_JOBS, "", 0, "v", 1), -EINVAL);
    assert_int_equal(store_batch_put(batch, STORE_TABLE_COUNT, "k", 1, "v", 1), -EINVAL);
    store_batch_abort(batch);
    unlink(path);
}

static void made_pending_and_ready_in_one_batch(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct mob_id id = {{1}};
    struct store_batch *batch;
    char *content;
    size_t bytes;
    assert_int_equal(store_batch_new(store, &batch), 0);
    assert_int_equal(store_batch_pending(batch, &id, 0, 0, 0, 0, NULL), 0);
    assert_int_equal(store_batch_ready_bytes(batch, &id, "x", 1), 0);
    assert_int_equal(store_batch_commit(batch, NULL), 0);
    assert_int_equal(store_read_all(store, &id, 1, &content, &bytes), 0);
    free(content);
    store_drop(store, &id);
    struct store_usage usage;
    store_usage(store, &usage);
    assert_int_equal(usage.objects_ready + usage.objects_pending, 0);
}

static int add_up(void *argument, const void *key, size_t key_bytes, const void *value,
                  size_t value_bytes)
{
    char *text = argument;
    strncat(text, key, key_bytes);
    strncat(text, value, value_bytes);
    return strlen(text) > 6;
}

static void tables_are_kept_and_walked_in_order(void **state)
{
    struct fixture *fixture = *state;
    struct store_batch *batch;
    char text[64] = "";
    void *value;
    size_t bytes;
    assert_int_equal(store_batch_new(fixture->store, &batch), 0);
    assert_int_equal(store_batch_put(batch, STORE_TABLE_JOB_DATA, "b", 1, "2", 1), 0);
    assert_int_equal(store_batch_put(batch, STORE_TABLE_JOB_DATA, "a", 1, "1", 1), 0);
    assert_int_equal(store_batch_put(batch, STORE_TABLE_JOB_DATA, "c", 1, "3", 1), 0);
    assert_int_equal(store_batch_delete(batch, STORE_TABLE_JOB_DATA, "b", 1), 0);
    assert_int_equal(store_batch_put(batch, STORE_TABLE_JOB_DATA, "d", 1, "4444", 4), 0);
    assert_int_equal(store_batch_put(batch, STORE_TABLE_JOB_DATA, "e", 1, "5", 1), 0);
    assert_int_equal(store_batch_commit(batch, NULL), 0);
    assert_int_equal(store_sync_names(fixture->store), 0);
    fixture_reopen(fixture);
    assert_int_equal(store_table_each(fixture->store, STORE_TABLE_JOB_DATA, add_up, text), 1);
    assert_string_equal(text, "a1c3d4444");
    assert_int_equal(store_table_get(fixture->store, STORE_TABLE_JOB_DATA, "d", 1, &value, &bytes),
                     0);
    assert_int_equal(bytes, 4);
    free(value);
}

/* --- references --- */

static struct mob_id put_holding(struct store *store, const char *name, const struct mob_id *held)
{
    struct staged_info info;
    struct mob_id id;
    char text[MOB_ID_STRING_BYTES];
    struct mob_error err;
    assert_int_equal(staged_create(store, NAMES_STAGING, name, 0644, 0, 0, 0, &info), 0);
    assert_int_equal(staged_xattr_set(store, info.number, "user.mobula.refs",
                                      mob_id_format(held, text), 40, 0, &err),
                     0);
    staged_closed(store, info.number);
    assert_int_equal(staged_commit(store, info.number, &id, NULL, &err), 0);
    return id;
}

static void a_long_chain_is_freed_without_recursion(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    enum { LENGTH = 5000 };
    struct store_usage usage;
    struct mob_id at = fixture_put(store, NAMES_STAGING, "0", "", 0);
    for (int i = 1; i < LENGTH; i++) {
        char name[16], old[16];
        snprintf(name, sizeof name, "%d", i);
        snprintf(old, sizeof old, "%d", i - 1);
        at = put_holding(store, name, &at);
        assert_int_equal(names_unlink(store, NAMES_STAGING, old, NULL, NULL), 0);
    }
    fixture_reopen(fixture);
    store = fixture->store;
    store_collect(store);
    store_usage(store, &usage);
    assert_int_equal(usage.objects_ready, LENGTH);
    char name[16];
    snprintf(name, sizeof name, "%d", LENGTH - 1);
    assert_int_equal(names_unlink(store, NAMES_STAGING, name, NULL, NULL), 0);
    store_usage(store, &usage);
    assert_int_equal(usage.objects_ready, 0);
    assert_int_equal(usage.freed, LENGTH);
    fixture_reopen(fixture);
    store_usage(fixture->store, &usage);
    assert_int_equal(usage.objects_ready, 0);
}

static void every_holder_is_listed(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct mob_id id = fixture_put(store, NAMES_STAGING, "a", "x", 1);
    struct name_info info;
    struct object_info object;
    char *text, expected[256], holder[MOB_ID_STRING_BYTES];
    assert_int_equal(names_make_directory(store, NAMES_STAGING, "d", 0755, 0, 0, &info), 0);
    assert_int_equal(names_link_object(store, info.number, "b", &id, 0, 0, &info), 0);
    struct mob_id container = put_holding(store, "c", &id);
    assert_int_equal(store_hold(store, &id), 0);
    assert_int_equal(store_find(store, &id, &object), 0);
    assert_int_equal(store_opened(store, object.number), 0);
    assert_int_equal(store_holders(store, object.number, &text), 0);
    snprintf(expected, sizeof expected,
             "name staging/a\nname staging/d/b\nobject %s\njobs 1\nopen files 1\n",
             mob_id_format(&container, holder));
    assert_int_equal(strlen(text), strlen(expected));
    for (const char *line = expected; *line; line = strchr(line, '\n') + 1) {
        char one[128];
        snprintf(one, sizeof one, "%.*s", (int)(strchr(line, '\n') - line + 1), line);
        assert_non_null(strstr(text, one));
    }
    free(text);
    store_open_dropped(store, object.number);
    assert_int_equal(store_holders(store, 4711, &text), -ENOENT);
}

static void the_sum_is_computed_once_and_kept(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = fixture_put(fixture->store, NAMES_STAGING, "a", "abc", 3);
    struct object_info info;
    char sum[65];
    memset(big, 0, sizeof big);
    struct mob_id large = fixture_put(fixture->store, NAMES_STAGING, "b", big, sizeof big);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(store_find(fixture->store, &id, &info), 0);
        assert_int_equal(store_sha256(fixture->store, info.number, sum), 0);
        assert_string_equal(sum,
                            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_int_equal(store_find(fixture->store, &large, &info), 0);
        assert_int_equal(store_sha256(fixture->store, info.number, sum), 0);
        assert_string_equal(sum,
                            "886715e4051e827f4fe215df3053af3f85ad0d352db2c829c7487af6d78efe30");
        fixture_reopen(fixture);
        store_collect(fixture->store);
    }
    assert_int_equal(store_sha256(fixture->store, 4711, sum), -ENOENT);
}

/* --- opening --- */

static void the_wrong_state_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct store *second;
    struct mob_error err = {0};
    assert_int_equal(store_open(&fixture->options, &second, &err), -EBUSY);
    assert_true(err.message[0]);
    fixture_close(fixture);
    fixture->options.owner[0] = 99;
    assert_int_equal(store_open(&fixture->options, &second, &err), -EINVAL);
    fixture->options.owner[0] = 1;
    fixture->options.state_dir = "/nonexistent";
    assert_int_equal(store_open(&fixture->options, &second, &err), -ENOENT);
    fixture->options.state_dir = fixture->state_dir;
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        struct store *store;
        if (store_open(&fixture->options, &store, &err) == 0 && write(ready[1], "x", 1) == 1)
            pause();
        _exit(1);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    errint_t error = store_open(&fixture->options, &second, &err);
    assert_int_equal(error, -EBUSY);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    fixture_open(fixture);
}

static void objects_whose_memory_was_lost_go_with_their_names(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id small = fixture_put(fixture->store, NAMES_STAGING, "small", "x", 1);
    struct mob_id large = fixture_put(fixture->store, NAMES_STAGING, "large", big, sizeof big);
    struct object_info info;
    struct staged_info staged;
    struct name_info name;
    char path[128];
    assert_int_equal(store_find(fixture->store, &large, &info), 0);
    assert_int_equal(staged_create(fixture->store, NAMES_STAGING, "staged", 0644, 0, 0, 0, &staged),
                     0);
    fixture_close(fixture);
    snprintf(path, sizeof path, "%s/data/%016llx", fixture->memory_dir,
             (unsigned long long)info.file);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/data/%016llx", fixture->memory_dir,
             (unsigned long long)staged.file);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/data/%016llx", fixture->memory_dir, 0xffffffull);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "x", 1), 1);
    close(fd);
    fixture_open(fixture);
    assert_int_equal(access(path, F_OK), -1);
    assert_true(fixture_exists(fixture->store, &small));
    assert_false(fixture_exists(fixture->store, &large));
    assert_int_equal(names_find(fixture->store, NAMES_STAGING, "large", &name), -ENOENT);
    assert_int_equal(names_find(fixture->store, NAMES_STAGING, "staged", &name), -ENOENT);
    assert_int_equal(names_directory(fixture->store, NAMES_STAGING, &name), 0);
    assert_int_equal(name.entries, 1);
}

static void names_of_pending_objects_wait_for_the_job_to_make_them_again(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = {{1}}, gone = {{2}};
    struct name_info name;
    struct object_info info;
    uint64_t number = make_pending(fixture->store, &id, 0);
    make_pending(fixture->store, &gone, 0);
    assert_int_equal(names_link_object(fixture->store, NAMES_STAGING, "a", &id, 0, 0, &name), 0);
    assert_int_equal(names_link_object(fixture->store, NAMES_STAGING, "b", &gone, 0, 0, &name), 0);
    put_holding(fixture->store, "c", &id);
    fixture_reopen(fixture);
    struct store *store = fixture->store;
    assert_int_equal(names_find(store, NAMES_STAGING, "b", &name), 0);
    assert_int_equal(make_pending(store, &id, number), number);
    store_collect(store);
    assert_int_equal(store_find(store, &id, &info), 0);
    assert_int_equal(info.links, 3);
    assert_int_equal(names_find(store, NAMES_STAGING, "b", &name), -ENOENT);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "a", NULL, NULL), 0);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "c", NULL, NULL), 0);
    assert_true(fixture_exists(store, &id));
    store_drop(store, &id);
    assert_false(fixture_exists(store, &id));
}

static void nothing_is_freed_before_collecting(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = fixture_put(fixture->store, NAMES_STAGING, "a", "x", 1);
    assert_int_equal(store_hold(fixture->store, &id), 0);
    assert_int_equal(names_unlink(fixture->store, NAMES_STAGING, "a", NULL, NULL), 0);
    fixture_reopen(fixture);
    assert_true(fixture_exists(fixture->store, &id));
    assert_int_equal(store_hold(fixture->store, &id), 0);
    store_collect(fixture->store);
    assert_true(fixture_exists(fixture->store, &id));
    fixture_reopen(fixture);
    store_collect(fixture->store);
    assert_false(fixture_exists(fixture->store, &id));
}

static void numbers_are_never_reused(void **state)
{
    struct fixture *fixture = *state;
    uint64_t last = 0, number;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 70000; i++) {
            assert_int_equal(store_new_number(fixture->store, &number), 0);
            assert_true(number > last);
            last = number;
        }
        fixture_reopen(fixture);
    }
}

/* --- damage --- */

/* Every record kind, cut short, grown or with bytes changed: opening and reading fail in an orderly
 * way. */
static void damaged_records_do_no_harm(void **state)
{
    struct fixture *fixture = *state;
    unsigned seed = 1;
    for (int i = 0; i < 40; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%d", i);
        struct mob_id id = fixture_put(fixture->store, NAMES_STAGING, name, big, (size_t)i * 60);
        struct name_info info;
        snprintf(name, sizeof name, "d%d", i);
        assert_int_equal(
            names_make_directory(fixture->store, NAMES_STAGING, name, 0755, 0, 0, &info), 0);
        assert_int_equal(names_make_symlink(fixture->store, info.number, "l", "x", 0, 0, &info), 0);
        snprintf(name, sizeof name, "r%d", i);
        put_holding(fixture->store, name, &id);
    }
    fixture_close(fixture);
    char path[128];
    int quiet = open("/dev/null", O_WRONLY), standard_error = dup(2);
    if (!getenv("MOBULA_TEST_LOUD"))
        dup2(quiet, 2); /* thousands of complaints */
    MDB_env *env;
    MDB_txn *txn;
    snprintf(path, sizeof path, "%s/meta", fixture->state_dir);
    for (int round = 0; round < 12; round++) {
        const char *const tables[] = {"objects", "inline", "names", "symlinks", "refs"};
        assert_int_equal(mdb_env_create(&env), 0);
        mdb_env_set_mapsize(env, 1 << 28);
        mdb_env_set_maxdbs(env, 16);
        assert_int_equal(mdb_env_open(env, path, MDB_NOSYNC, 0600), 0);
        assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
        for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
            MDB_dbi table;
            MDB_cursor *cursor;
            MDB_val key, value;
            assert_int_equal(mdb_dbi_open(txn, tables[t], 0, &table), 0);
            assert_int_equal(mdb_cursor_open(txn, table, &cursor), 0);
            while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
                unsigned char copy[5000], own_key[512];
                if (rand_r(&seed) % 4 || value.mv_size > sizeof copy - 8)
                    continue;
                memcpy(copy, value.mv_data, value.mv_size);
                memcpy(own_key, key.mv_data, key.mv_size);
                key.mv_data = own_key;
                int how = rand_r(&seed) % (value.mv_size ? 3 : 2);
                if (how == 0)
                    value.mv_size = (unsigned)rand_r(&seed) % (value.mv_size + 1);
                else if (how == 1)
                    memset(copy + value.mv_size, 'x', 7), value.mv_size += 7;
                else
                    copy[(unsigned)rand_r(&seed) % value.mv_size] ^= (unsigned char)rand_r(&seed);
                value.mv_data = copy;
                assert_int_equal(mdb_cursor_put(cursor, &key, &value, MDB_CURRENT), 0);
            }
            mdb_cursor_close(cursor);
        }
        assert_int_equal(mdb_txn_commit(txn), 0);
        mdb_env_close(env);
        struct mob_error err = {0};
        errint_t error = store_open(&fixture->options, &fixture->store, &err);
        if (error) {
            assert_true(err.message[0]);
            continue;
        }
        struct store *store = fixture->store;
        store_collect(store);
        struct object_info infos[50];
        struct name_entry *entries = calloc(200, sizeof *entries);
        uint64_t cursor = 0;
        for (size_t count = store_list(store, &cursor, infos, 50); count--;) {
            char *text;
            size_t bytes;
            if (store_read_all(store, &infos[count].id, sizeof big, &text, &bytes) == 0)
                free(text);
            if (store_refs(store, infos[count].number, &text, &bytes) == 0)
                free(text);
            if (store_holders(store, infos[count].number, &text) == 0)
                free(text);
        }
        ssize_t count = names_list(store, NAMES_STAGING, 0, entries, 200);
        while (count-- > 0)
            if (entries[count].info.type != NAME_DIRECTORY)
                (void)!names_unlink(store, NAMES_STAGING, entries[count].name, NULL, NULL);
            else
                (void)!names_remove_directory(store, NAMES_STAGING, entries[count].name);
        free(entries);
        fixture_close(fixture);
    }
    dup2(standard_error, 2);
    close(standard_error);
    close(quiet);
}

/* --- many threads --- */

struct worker {
    struct store *store;
    pthread_t thread;
    unsigned seed;
    uint64_t directory;
};

static void *work(void *argument)
{
    struct worker *worker = argument;
    struct store *store = worker->store;
    char name[16], other[16], buffer[2000] = "";
    struct name_entry entries[8];
    struct object_info infos[8];
    for (int i = 0; i < 400; i++) {
        struct name_info info;
        struct staged_info staged;
        struct mob_id id;
        uint64_t cursor = (uint64_t)(rand_r(&worker->seed) % 200) << 24;
        snprintf(name, sizeof name, "%d", rand_r(&worker->seed) % 20);
        snprintf(other, sizeof other, "%d", rand_r(&worker->seed) % 20);
        if (staged_create(store, worker->directory, name, 0644, 0, 0, 0, &staged) == 0) {
            (void)!staged_write(store, staged.number, buffer, sizeof buffer, 0);
            (void)!staged_xattr_set(store, staged.number, "user.x", "1", 1, 0, NULL);
            (void)!staged_set(store, staged.number, NAMES_SET_MODE, 0600, 0, 0, 0);
            if (i % 7 == 0)
                (void)!names_rename(store, worker->directory, name, worker->directory, other, 0,
                                    NULL, NULL);
            if (staged_closed(store, staged.number) == 0)
                (void)!staged_commit(store, staged.number, &id, NULL, NULL);
        }
        if (names_find(store, worker->directory, other, &info) == 0 && info.type == NAME_OBJECT &&
            store_opened(store, info.number) == 0) {
            (void)!store_read_inline(store, info.number, buffer, sizeof buffer, 0);
            (void)!store_hold(store, &info.target);
            (void)!names_link_object(store, worker->directory, "link", &info.target, 0, 0, &info);
            store_drop(store, &info.target);
            store_open_dropped(store, info.number);
        }
        (void)!names_list(store, worker->directory, 0, entries, 8);
        store_list(store, &cursor, infos, 8);
        (void)!names_rename(store, worker->directory, other, worker->directory, name, 0, NULL,
                            NULL);
        (void)!names_unlink(store, worker->directory, i % 2 ? name : "link", NULL, NULL);
        struct store_usage usage;
        store_usage(store, &usage);
    }
    return NULL;
}

static void four_threads_leave_consistent_counts(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct worker workers[4];
    struct store_usage before, after;
    struct name_info directory, again;
    assert_int_equal(names_make_directory(store, NAMES_STAGING, "d", 0755, 0, 0, &directory), 0);
    for (int i = 0; i < 4; i++) {
        workers[i] =
            (struct worker){.store = store, .seed = (unsigned)i + 1, .directory = directory.number};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(workers[i].thread, NULL);
    store_usage(store, &before);
    assert_int_equal(names_directory(store, directory.number, &directory), 0);
    assert_int_equal(before.staged, 0);
    assert_int_equal(before.names, directory.entries + 1);
    fixture_reopen(fixture);
    store = fixture->store;
    store_collect(store);
    store_usage(store, &after);
    after.commits = before.commits;
    after.freed = before.freed;
    assert_same_usage(&before, &after);
    assert_int_equal(names_directory(store, directory.number, &again), 0);
    assert_int_equal(again.entries, directory.entries);
}

/* --- a server that is killed --- */

enum { SLOTS = 64 };

/* What the killed one had been told was done; in shared memory. */
struct diary {
    atomic_int slot, step; /* being worked on: 0 nothing, 1 put, 2 rename, 3 unlink */
    struct {
        atomic_int state; /* 0 not there, 1 under its own name, 2 renamed */
        atomic_uint size, value;
    } slots[SLOTS];
};

static void keep_working(struct store *store, struct diary *diary, unsigned seed)
{
    static char buffer[200000];
    for (;;) {
        int slot = rand_r(&seed) % SLOTS, state = atomic_load(&diary->slots[slot].state);
        char name[2][16];
        struct staged_info info;
        struct mob_id id;
        snprintf(name[0], sizeof name[0], "a%d", slot);
        snprintf(name[1], sizeof name[1], "b%d", slot);
        atomic_store(&diary->slot, slot);
        atomic_store(&diary->step, 1 + state);
        if (state == 0) {
            unsigned size = (unsigned)rand_r(&seed) % (seed % 5 ? 3000 : sizeof buffer);
            unsigned value = (unsigned)rand_r(&seed) % 256;
            memset(buffer, (int)value, size);
            atomic_store(&diary->slots[slot].size, size);
            atomic_store(&diary->slots[slot].value, value);
            if (staged_create(store, NAMES_STAGING, name[0], 0644, 0, 0, 0, &info) ||
                staged_write(store, info.number, buffer, size, 0) != (ssize_t)size ||
                staged_closed(store, info.number) ||
                staged_commit(store, info.number, &id, NULL, NULL))
                _exit(3);
            atomic_store(&diary->slots[slot].state, 1);
        } else if (state == 1) {
            if (names_rename(store, NAMES_STAGING, name[0], NAMES_STAGING, name[1], 0, NULL, NULL))
                _exit(4);
            atomic_store(&diary->slots[slot].state, 2);
        } else {
            if (names_unlink(store, NAMES_STAGING, name[1], NULL, NULL))
                _exit(5);
            atomic_store(&diary->slots[slot].state, 0);
        }
        atomic_store(&diary->step, 0);
    }
}

static void check_content(struct store *store, const struct mob_id *id, unsigned size,
                          unsigned value)
{
    char *content;
    size_t bytes;
    assert_int_equal(store_read_all(store, id, sizeof big, &content, &bytes), 0);
    assert_int_equal(bytes, size);
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal((unsigned char)content[i], value);
    free(content);
}

/* Everything acknowledged is there; what was under way is done or not, as a whole. */
static void check_diary(struct fixture *fixture, struct diary *diary)
{
    struct store *store = fixture->store;
    size_t names = 0;
    for (int slot = 0; slot < SLOTS; slot++) {
        char name[2][16];
        struct name_info info;
        bool there[2];
        struct mob_id id = {{0}};
        snprintf(name[0], sizeof name[0], "a%d", slot);
        snprintf(name[1], sizeof name[1], "b%d", slot);
        for (int i = 0; i < 2; i++) {
            errint_t error = names_find(store, NAMES_STAGING, name[i], &info);
            assert_true(error == 0 || error == -ENOENT);
            there[i] = error == 0;
            assert_true(error || info.type == NAME_OBJECT);
            id = error ? id : info.target;
            names += there[i];
        }
        assert_false(there[0] && there[1]);
        int now = there[0] ? 1 : there[1] ? 2 : 0, told = atomic_load(&diary->slots[slot].state);
        if (atomic_load(&diary->step) && atomic_load(&diary->slot) == slot)
            assert_true(now == told || now == (told + 1) % 3);
        else
            assert_int_equal(now, told);
        if (now)
            check_content(store, &id, atomic_load(&diary->slots[slot].size),
                          atomic_load(&diary->slots[slot].value));
        atomic_store(&diary->slots[slot].state, now);
    }
    atomic_store(&diary->step, 0);
    struct store_usage usage;
    store_usage(store, &usage);
    assert_int_equal(usage.names, names);
    assert_int_equal(usage.objects_ready, names);
    assert_int_equal(usage.staged, 0);
    assert_true(fixture_data_files(fixture) <= usage.objects_memory + 64);
}

static void what_a_killed_server_acknowledged_is_there(void **state)
{
    struct fixture *fixture = *state;
    fixture_close(fixture);
    struct diary *diary =
        mmap(NULL, sizeof *diary, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned seed = (unsigned)time(NULL);
    const char *chosen = getenv("MOBULA_TEST_SEED"), *rounds = getenv("MOBULA_TEST_KILLS");
    if (chosen)
        seed = (unsigned)strtoul(chosen, NULL, 10);
    print_message("seed %u\n", seed);
    for (int round = 0, last = rounds ? atoi(rounds) : 30; round < last; round++) {
        pid_t child = fork();
        if (child == 0) {
            if (store_open(&fixture->options, &fixture->store, NULL))
                _exit(2);
            store_discard_unopened(fixture->store);
            store_collect(fixture->store);
            keep_working(fixture->store, diary, (unsigned)rand_r(&seed));
        }
        usleep((unsigned)rand_r(&seed) % 40000);
        int status;
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status))
            fail_msg("the server ended by itself with %d", WEXITSTATUS(status));
        fixture_open(fixture);
        store_discard_unopened(fixture->store);
        store_collect(fixture->store);
        check_diary(fixture, diary);
        fixture_close(fixture);
    }
    munmap(diary, sizeof *diary);
}

/* More than a shard's first chunk, so that what the table gives back is used again. */
static void many_objects_come_and_go_twice(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    enum { COUNT = 40000 };
    struct mob_id *ids = calloc(COUNT, sizeof *ids);
    struct store_usage before, after;
    char name[16];
    store_usage(store, &before);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < COUNT; i++) {
            snprintf(name, sizeof name, "o%d", i);
            ids[i] = fixture_put(store, NAMES_STAGING, name, name, strlen(name));
        }
        for (int i = 0; i < COUNT; i++) {
            snprintf(name, sizeof name, "o%d", i);
            assert_true(fixture_exists(store, &ids[i]));
            assert_int_equal(names_unlink(store, NAMES_STAGING, name, NULL, NULL), 0);
            assert_false(fixture_exists(store, &ids[i]));
        }
        store_usage(store, &after);
        assert_int_equal(after.objects_ready, before.objects_ready);
        assert_int_equal(after.memory_used_bytes, before.memory_used_bytes);
    }
    free(ids);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(many_objects_come_and_go_twice),
        TEST(an_object_is_found_by_id_and_number_and_reads_back),
        TEST(an_object_without_references_goes_with_its_file),
        TEST(objects_and_names_survive_a_restart),
        TEST(listing_returns_each_ready_object_once),
        TEST(a_pending_object_becomes_ready_and_wakes_its_waiters),
        TEST(a_failed_object_keeps_its_sentence_and_a_dropped_one_ends_its_waiters),
        TEST(a_file_of_a_job_is_moved_in_without_a_copy),
        TEST(a_batch_that_fails_changes_nothing),
        TEST(made_pending_and_ready_in_one_batch),
        TEST(tables_are_kept_and_walked_in_order),
        TEST(a_long_chain_is_freed_without_recursion),
        TEST(every_holder_is_listed),
        TEST(the_sum_is_computed_once_and_kept),
        TEST(the_wrong_state_is_refused),
        TEST(objects_whose_memory_was_lost_go_with_their_names),
        TEST(names_of_pending_objects_wait_for_the_job_to_make_them_again),
        TEST(nothing_is_freed_before_collecting),
        TEST(numbers_are_never_reused),
        TEST(damaged_records_do_no_harm),
        TEST(four_threads_leave_consistent_counts),
        cmocka_unit_test_setup_teardown(four_threads_leave_consistent_counts,
                                        fixture_setup_passthrough, fixture_teardown),
        TEST(what_a_killed_server_acknowledged_is_there),
        cmocka_unit_test_setup_teardown(what_a_killed_server_acknowledged_is_there,
                                        fixture_setup_passthrough, fixture_teardown),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
