/* Unit tests of core/store/staged.h: writing, budget, attributes, commits, writers, restarts, and
 * failures of the disk at every commit. */
#include "tests/unit/store_fixture.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <lmdb.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sys/xattr.h>

/* --- failures to order: these stand before the libraries' own --- */

static enum { LIVE, DIE_BEFORE_COMMIT, DIE_AFTER_COMMIT } death; /* at the next transaction */
static int commit_failure;                                       /* of the next transaction */
static _Thread_local int pwrite_failure;  /* of the next pwrite that the store itself makes */
static _Thread_local size_t pwrite_limit; /* non-zero: the next one is short */

int mdb_txn_commit(MDB_txn *txn)
{
    static int (*real)(MDB_txn * txn);
    if (!real)
        real = (int (*)(MDB_txn *))dlsym(RTLD_NEXT, "mdb_txn_commit");
    if (death == DIE_BEFORE_COMMIT)
        raise(SIGKILL);
    if (death == DIE_AFTER_COMMIT) {
        real(txn);
        raise(SIGKILL);
    }
    if (!commit_failure)
        return real(txn);
    int code = commit_failure;
    commit_failure = 0;
    mdb_txn_abort(txn);
    return code;
}

ssize_t pwrite(int fd, const void *buffer, size_t bytes, off_t offset)
{
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real)
        real = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    if (pwrite_failure) {
        errno = pwrite_failure;
        pwrite_failure = 0;
        return -1;
    }
    if (pwrite_limit && bytes > pwrite_limit)
        bytes = pwrite_limit;
    pwrite_limit = 0;
    return real(fd, buffer, bytes, offset);
}

static uint64_t stage(struct store *store, const char *name)
{
    struct staged_info info;
    assert_int_equal(staged_create(store, NAMES_STAGING, name, 0644, 5, 6, 0, &info), 0);
    return info.number;
}

static struct staged_info info_of(struct store *store, uint64_t number)
{
    struct staged_info info;
    assert_int_equal(staged_info(store, number, &info), 0);
    return info;
}

static uint64_t used(struct store *store)
{
    struct store_usage usage;
    store_usage(store, &usage);
    return usage.memory_used_bytes;
}

/* --- writing --- */

static void data_is_written_read_truncated_and_punched(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    char buffer[16] = "";
    uint64_t f = stage(store, "f");
    assert_int_equal(staged_write(store, f, "hello", 5, 3), 5);
    assert_int_equal(staged_read(store, f, buffer, 16, 0), 8);
    assert_memory_equal(buffer, "\0\0\0hello", 8);
    assert_int_equal(info_of(store, f).size, 8);
    assert_int_equal(staged_truncate(store, f, 5), 0);
    assert_int_equal(staged_read(store, f, buffer, 16, 4), 1);
    assert_int_equal(staged_allocate(store, f, FALLOC_FL_KEEP_SIZE, 0, 100000), 0);
    assert_true(info_of(store, f).blocks * 512 >= 100000);
    assert_int_equal(info_of(store, f).size, 5);
    assert_int_equal(staged_allocate(store, f, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 4096),
                     0);
    assert_int_equal(staged_allocate(store, f, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), -EOPNOTSUPP);
    assert_int_equal(staged_write(store, f, "x", 1, UINT64_MAX), -EFBIG);
    assert_int_equal(staged_truncate(store, f, UINT64_MAX), -EFBIG);
    assert_int_equal(staged_write(store, 4711, "x", 1, 0), -ENOENT);
    assert_int_equal(staged_read(store, 4711, buffer, 1, 0), -ENOENT);
    assert_int_equal(staged_read_now(store, 4711, buffer, 1, 0), -ENOENT);
    assert_int_equal(staged_read_now(store, f, buffer, 16, 4), 1);
    pwrite_limit = 2;
    assert_int_equal(staged_write(store, f, "hello", 5, 0), 5);
    assert_int_equal(staged_read(store, f, buffer, 16, 0), 5);
    assert_memory_equal(buffer, "hello", 5);
    pwrite_failure = EIO;
    assert_int_equal(staged_write(store, f, "hello", 5, 0), -EIO);
}

static void attributes_of_the_file_are_set_and_the_object_gets_them(void **state)
{
    struct fixture *fixture = *state;
    uint64_t f = stage(fixture->store, "f"), before = mob_realtime_ns();
    assert_true(info_of(fixture->store, f).mtime_ns + 1000000000u > before);
    assert_int_equal(staged_set(fixture->store, f, NAMES_SET_MODE | NAMES_SET_GID | NAMES_SET_MTIME,
                                0755, 0, 99, 1000000000u),
                     0);
    assert_int_equal(info_of(fixture->store, f).mtime_ns, 1000000000u);
    fixture_reopen(fixture);
    assert_int_equal(info_of(fixture->store, f).mode, S_IFREG | 0755);
    assert_int_equal(info_of(fixture->store, f).uid, 5);
    assert_int_equal(info_of(fixture->store, f).gid, 99);
    struct mob_id id;
    struct object_info object;
    assert_int_equal(staged_commit(fixture->store, f, &id, NULL, NULL), 0);
    assert_int_equal(store_find(fixture->store, &id, &object), 0);
    assert_int_equal(object.mode, S_IFREG | 0555);
    assert_int_equal(object.gid, 99);
    assert_true(object.mtime_ns >= before);
}

static void a_write_past_the_budget_is_enospc_and_an_overwrite_is_not(void **state)
{
    struct fixture *fixture = *state;
    fixture_close(fixture);
    fixture->options.memory_bytes = 1u << 20;
    fixture_open(fixture);
    struct store *store = fixture->store;
    store_collect(store);
    static char block[1 << 18];
    uint64_t f = stage(store, "f");
    for (int i = 0; i < 4; i++)
        assert_int_equal(staged_write(store, f, block, sizeof block, (uint64_t)i * sizeof block),
                         sizeof block);
    assert_int_equal(used(store), 1 << 20);
    assert_int_equal(staged_write(store, f, block, 1, 1 << 20), -ENOSPC);
    assert_int_equal(staged_allocate(store, f, 0, 1 << 20, 4096), -ENOSPC);
    assert_int_equal(staged_write(store, f, block, sizeof block, 0), sizeof block);
    assert_int_equal(staged_truncate(store, f, sizeof block), 0);
    assert_int_equal(used(store), sizeof block);
    assert_int_equal(staged_write(store, f, block, sizeof block, sizeof block), sizeof block);
    struct mob_id id;
    assert_int_equal(staged_closed(store, f), 0);
    assert_int_equal(staged_commit(store, f, &id, NULL, NULL), 0);
    assert_int_equal(used(store), 2 * sizeof block);
    fixture_reopen(fixture);
    store = fixture->store;
    store_collect(store);
    assert_int_equal(used(store), 2 * sizeof block);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "f", NULL, NULL), 0);
    assert_int_equal(used(store), 0);
}

/* --- life --- */

static void a_name_can_be_staged_once_and_a_repeated_request_gets_the_same_file(void **state)
{
    struct fixture *fixture = *state;
    struct staged_info first, again;
    assert_int_equal(staged_create(fixture->store, NAMES_STAGING, "f", 0644, 0, 0, 77, &first), 0);
    assert_int_equal(first.opens, 1);
    assert_int_equal(staged_create(fixture->store, NAMES_STAGING, "f", 0644, 0, 0, 78, &again),
                     -EEXIST);
    assert_int_equal(staged_create(fixture->store, NAMES_STAGING, "f", 0644, 0, 0, 0, &again),
                     -EEXIST);
    fixture_reopen(fixture);
    assert_int_equal(info_of(fixture->store, first.number).opens, 0);
    assert_int_equal(staged_create(fixture->store, NAMES_STAGING, "f", 0644, 0, 0, 77, &again), 0);
    assert_int_equal(again.number, first.number);
    assert_int_equal(again.opens, 1);
    fixture_put(fixture->store, NAMES_STAGING, "o", "", 0);
    assert_int_equal(staged_create(fixture->store, NAMES_STAGING, "o", 0644, 0, 0, 79, &again),
                     -EEXIST);
    assert_int_equal(staged_create(fixture->store, 99, "o", 0644, 0, 0, 79, &again), -ENOENT);
}

static void an_unlinked_file_lives_until_its_last_close(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    char buffer[4];
    struct mob_id id;
    struct staged_info info;
    uint64_t f = stage(store, "f");
    assert_int_equal(staged_opened(store, f), 0);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "f", NULL, NULL), 0);
    uint64_t other = stage(store, "f");
    assert_int_equal(staged_write(store, f, "abc", 3, 0), 3);
    assert_int_equal(staged_read(store, f, buffer, 4, 0), 3);
    assert_int_equal(staged_commit(store, f, &id, NULL, NULL), -ENOENT);
    assert_true(info_of(store, f).unlinked);
    assert_int_equal(staged_closed(store, f), 1);
    assert_int_equal(staged_closed(store, f), 0);
    assert_int_equal(staged_info(store, f, &info), -ENOENT);
    assert_int_equal(used(store), 0);
    assert_int_equal(info_of(store, other).opens, 1);
    staged_discard(store, other);
    assert_int_equal(staged_write(store, other, "x", 1, 0), -ENOENT);
    assert_int_equal(staged_opened(store, other), -ENOENT);
    assert_true(staged_fd(store, other) < 0);
    assert_int_equal(staged_closed(store, other), 0);
}

static void a_commit_with_handles_left_can_be_repeated(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id, again;
    uint64_t object, object_again, f = stage(fixture->store, "f");
    assert_int_equal(staged_write(fixture->store, f, "abc", 3, 0), 3);
    assert_int_equal(staged_commit(fixture->store, f, &id, &object, NULL), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(staged_commit(fixture->store, f, &again, &object_again, NULL), 0);
        assert_memory_equal(&id, &again, sizeof id);
        assert_int_equal(object, object_again);
        assert_true(info_of(fixture->store, f).committed);
        assert_int_equal(staged_write(fixture->store, f, "abc", 3, 0), -EPERM);
        assert_int_equal(staged_truncate(fixture->store, f, 0), -EPERM);
        assert_int_equal(staged_xattr_set(fixture->store, f, "user.a", "1", 1, 0, NULL), -EPERM);
        fixture_reopen(fixture);
        assert_int_equal(staged_opened(fixture->store, f), 0);
        store_discard_unopened(fixture->store);
        store_collect(fixture->store);
    }
    assert_int_equal(staged_closed(fixture->store, f), 0);
    assert_int_equal(staged_commit(fixture->store, f, &again, NULL, NULL), -ENOENT);
    assert_true(fixture_exists(fixture->store, &id));
}

static void after_a_restart_files_nobody_has_open_are_discarded(void **state)
{
    struct fixture *fixture = *state;
    uint64_t kept = stage(fixture->store, "kept"), lost = stage(fixture->store, "lost");
    uint64_t unlinked = stage(fixture->store, "unlinked");
    struct staged_info info;
    struct name_info name;
    assert_int_equal(staged_write(fixture->store, kept, "abc", 3, 0), 3);
    assert_int_equal(staged_xattr_set(fixture->store, lost, "user.x", "1", 1, 0, NULL), 0);
    assert_int_equal(names_unlink(fixture->store, NAMES_STAGING, "unlinked", NULL, NULL), 0);
    fixture_reopen(fixture);
    struct store *store = fixture->store;
    assert_int_equal(staged_opened(store, kept), 0);
    assert_int_equal(staged_opened(store, unlinked), 0);
    store_discard_unopened(store);
    store_collect(store);
    assert_int_equal(names_find(store, NAMES_STAGING, "lost", &name), -ENOENT);
    assert_int_equal(staged_info(store, lost, &info), -ENOENT);
    assert_true(info_of(store, unlinked).unlinked);
    assert_int_equal(names_find(store, NAMES_STAGING, "unlinked", &name), -ENOENT);
    assert_int_equal(staged_closed(store, unlinked), 0);
    assert_int_equal(info_of(store, kept).size, 3);
    assert_int_equal(staged_closed(store, kept), 0);
    struct mob_id id;
    assert_int_equal(staged_commit(store, kept, &id, NULL, NULL), 0);
    char *content;
    size_t bytes;
    assert_int_equal(store_read_all(store, &id, 10, &content, &bytes), 0);
    assert_string_equal(content, "abc");
    free(content);
}

static void damaged_records_are_left_out(void **state)
{
    struct fixture *fixture = *state;
    char path[128];
    struct staged_info info;
    uint64_t numbers[8];
    for (int i = 0; i < 8; i++) {
        char name[8];
        snprintf(name, sizeof name, "%d", i);
        numbers[i] = stage(fixture->store, name);
    }
    fixture_close(fixture);
    snprintf(path, sizeof path, "%s/staged", fixture->memory_dir);
    int fd = open(path, O_RDWR), found = 0;
    assert_true(fd >= 0);
    unsigned char record[512];
    for (off_t at = 0; found < 8 && at < 512 * 512; at += 512) {
        assert_int_equal(pread(fd, record, 512, at), 512);
        uint32_t valid;
        memcpy(&valid, record, 4);
        if (!valid)
            continue;
        if (found++ % 2 == 0) {
            record[16 + found * 50] ^= 0x10;
            assert_int_equal(pwrite(fd, record, 512, at), 512);
        }
    }
    close(fd);
    assert_int_equal(found, 8);
    fixture_open(fixture);
    int left = 0;
    for (int i = 0; i < 8; i++)
        left += staged_info(fixture->store, numbers[i], &info) == 0;
    assert_int_equal(left, 4);
}

/* --- attributes --- */

static void extended_attributes_go_with_the_object(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct mob_error err;
    char value[64], list[64];
    uint64_t f = stage(store, "f");
    assert_int_equal(staged_xattr_set(store, f, "trusted.x", "1", 1, 0, &err), -EOPNOTSUPP);
    assert_int_equal(staged_xattr_set(store, f, "user.mobula.tier", "1", 1, 0, &err), -EPERM);
    assert_int_equal(staged_xattr_set(store, f, "user.a", "1", 1, XATTR_REPLACE, &err), -ENODATA);
    assert_int_equal(staged_xattr_set(store, f, "user.a", "one", 3, XATTR_CREATE, &err), 0);
    assert_int_equal(staged_xattr_set(store, f, "user.a", "1", 1, XATTR_CREATE, &err), -EEXIST);
    assert_int_equal(staged_xattr_set(store, f, "user.b", "", 0, 0, &err), 0);
    assert_int_equal(staged_xattr_set(store, f, "user.c", "3", 1, 0, &err), 0);
    assert_int_equal(staged_xattr_remove(store, f, "user.c"), 0);
    assert_int_equal(staged_xattr_remove(store, f, "user.c"), -ENODATA);
    assert_int_equal(staged_xattr_get(store, f, "user.a", value, 2), -ERANGE);
    assert_int_equal(staged_xattr_get(store, f, "user.a", NULL, 0), 3);
    char *big = calloc(1, 70000);
    assert_int_equal(staged_xattr_set(store, f, "user.big", big, 65537, 0, &err), -E2BIG);
    assert_int_equal(staged_xattr_set(store, f, "user.big", big, 65536, 0, &err), 0);
    assert_int_equal(staged_xattr_remove(store, f, "user.big"), 0);
    free(big);
    fixture_reopen(fixture);
    store = fixture->store;
    assert_int_equal(staged_xattr_list(store, f, list, sizeof list), 14);
    assert_memory_equal(list, "user.a\0user.b\0", 14);
    struct mob_id id;
    uint64_t object;
    assert_int_equal(staged_commit(store, f, &id, &object, NULL), 0);
    fixture_reopen(fixture);
    store = fixture->store;
    assert_int_equal(store_xattr_get(store, object, "user.a", value, sizeof value), 3);
    assert_memory_equal(value, "one", 3);
    assert_int_equal(store_xattr_list(store, object, NULL, 0), 14);
    assert_int_equal(store_xattr_get(store, object, "user.none", value, 1), -ENODATA);
    uint64_t g = stage(store, "g");
    for (int i = 0; i < 129; i++) {
        char name[16];
        snprintf(name, sizeof name, "user.%d", i);
        assert_int_equal(staged_xattr_set(store, g, name, "", 0, 0, &err), i < 128 ? 0 : -ENOSPC);
    }
}

static unsigned changes;

static void on_change(void *context, uint64_t number)
{
    (void)context, (void)number;
    changes++;
}

static void listed_objects_are_held_from_the_setting_on(void **state)
{
    struct fixture *fixture = *state;
    struct mob_error err = {0};
    char text[128], *refs, id_text[MOB_ID_STRING_BYTES];
    size_t bytes;
    fixture_close(fixture);
    fixture->options.hooks.object_changed = on_change;
    fixture_open(fixture);
    struct store *store = fixture->store;
    store_collect(store);
    struct mob_id held = fixture_put(store, NAMES_STAGING, "held", "x", 1), id;
    mob_id_format(&held, id_text);
    uint64_t f = stage(store, "f"), object;
    assert_int_equal(staged_xattr_set(store, f, "user.mobula.refs", "nonsense", 8, 0, &err),
                     -EINVAL);
    assert_true(err.message[0]);
    memset(text, 'a', 40);
    assert_int_equal(staged_xattr_set(store, f, "user.mobula.refs", text, 40, 0, &err), -EINVAL);
    int length = snprintf(text, sizeof text, " %s\n%s ", id_text, id_text);
    changes = 0;
    assert_int_equal(staged_xattr_set(store, f, "user.mobula.refs", text, (size_t)length, 0, &err),
                     0);
    assert_int_equal(changes, 1);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "held", NULL, NULL), 0);
    assert_true(fixture_exists(store, &held));
    fixture_reopen(fixture);
    store = fixture->store;
    assert_int_equal(staged_opened(store, f), 0);
    store_collect(store);
    assert_true(fixture_exists(store, &held));
    char *holders;
    struct object_info info;
    assert_int_equal(store_find(store, &held, &info), 0);
    assert_int_equal(info.links, 1);
    assert_int_equal(store_holders(store, info.number, &holders), 0);
    assert_memory_equal(holders, "staged file ", 12);
    free(holders);
    assert_int_equal(staged_closed(store, f), 0);
    assert_int_equal(staged_commit(store, f, &id, &object, &err), 0);
    assert_int_equal(store_xattr_list(store, object, NULL, 0), 0);
    fixture_reopen(fixture);
    store = fixture->store;
    store_collect(store);
    assert_int_equal(store_refs(store, object, &refs, &bytes), 0);
    assert_int_equal(bytes, 41);
    assert_memory_equal(refs, id_text, 40);
    free(refs);
    assert_true(fixture_exists(store, &held));
    assert_int_equal(names_unlink(store, NAMES_STAGING, "f", NULL, NULL), 0);
    assert_false(fixture_exists(store, &held));
    assert_false(fixture_exists(store, &id));
    /* Dropped with the attribute, or with the file. */
    held = fixture_put(store, NAMES_STAGING, "held", "x", 1);
    f = stage(store, "g");
    mob_id_format(&held, text);
    assert_int_equal(staged_xattr_set(store, f, "user.mobula.refs", text, 40, 0, &err), 0);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "held", NULL, NULL), 0);
    assert_true(fixture_exists(store, &held));
    staged_discard(store, f);
    assert_false(fixture_exists(store, &held));
}

static void a_list_of_any_length_is_read_from_the_content(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    enum { COUNT = 2000 };
    struct mob_error err = {0};
    struct mob_id ids[COUNT], id;
    char *text = malloc(COUNT * 41 + 1), *refs;
    size_t bytes;
    for (int i = 0; i < COUNT; i++) {
        char name[16];
        snprintf(name, sizeof name, "o%d", i);
        ids[i] = fixture_put(store, NAMES_STAGING, name, "", 0);
        mob_id_format(&ids[i], text + i * 41);
        text[i * 41 + 40] = '\n';
    }
    uint64_t f = stage(store, "list"), object;
    assert_int_equal(staged_xattr_set(store, f, "user.mobula.refs", "content", 7, 0, &err), 0);
    assert_int_equal(staged_write(store, f, text, COUNT * 41, 0), COUNT * 41);
    assert_int_equal(staged_write(store, f, "zz\n", 3, COUNT * 41), 3);
    assert_int_equal(staged_check(store, f, &err), -EINVAL);
    assert_int_equal(staged_commit(store, f, &id, &object, &err), -EINVAL);
    assert_int_equal(staged_truncate(store, f, COUNT * 41), 0);
    assert_int_equal(staged_check(store, f, &err), 0);
    assert_int_equal(staged_commit(store, f, &id, &object, &err), 0);
    for (int i = 0; i < COUNT; i++) {
        char name[16];
        struct object_info info;
        snprintf(name, sizeof name, "o%d", i);
        assert_int_equal(names_unlink(store, NAMES_STAGING, name, NULL, NULL), 0);
        assert_int_equal(store_find(store, &ids[i], &info), 0);
        assert_int_equal(info.links, 1);
    }
    assert_int_equal(store_refs(store, object, &refs, &bytes), 0);
    assert_int_equal(bytes, COUNT * 41);
    assert_memory_equal(refs, text, bytes);
    free(refs);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "list", NULL, NULL), 0);
    assert_int_equal(staged_closed(store, f), 0);
    for (int i = 0; i < COUNT; i++)
        assert_false(fixture_exists(store, &ids[i]));
    free(text);
}

/* --- writers behind the store's back --- */

static void a_file_with_writers_or_writable_mappings_is_busy(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct mob_id id;
    char path[128];
    uint64_t f = stage(store, "f");
    snprintf(path, sizeof path, "%s/data/%016llx", fixture->memory_dir,
             (unsigned long long)info_of(store, f).file);
    assert_int_equal(staged_has_writers(store, f), 0);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(staged_has_writers(store, f), 1);
    assert_int_equal(staged_commit(store, f, &id, NULL, NULL), -EBUSY);
    assert_int_equal(ftruncate(fd, 4096), 0);
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(map != MAP_FAILED);
    close(fd);
    assert_int_equal(staged_has_writers(store, f), 1);
    map[0] = 'x';
    munmap(map, 4096);
    assert_int_equal(staged_has_writers(store, f), 0);
    assert_int_equal(staged_closed(store, f), 0);
    assert_int_equal(staged_commit(store, f, &id, NULL, NULL), 0);
}

static atomic_int told;

static void on_unwritten(void *argument, uint64_t number)
{
    struct store *store = argument;
    struct mob_id id;
    if (staged_closed(store, number) == 0 && staged_commit(store, number, &id, NULL, NULL) == 0)
        atomic_fetch_add(&told, 1);
}

static bool told_within_ms(int ms)
{
    while (!atomic_load(&told) && ms-- > 0)
        usleep(1000);
    return atomic_load(&told) == 1;
}

static void the_last_writer_s_close_is_told_once(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    char path[128];
    for (int way = 0; way < 3; way++) {
        char name[8];
        snprintf(name, sizeof name, "f%d", way);
        uint64_t f = stage(store, name);
        snprintf(path, sizeof path, "%s/data/%016llx", fixture->memory_dir,
                 (unsigned long long)info_of(store, f).file);
        int fd = open(path, O_RDWR);
        assert_true(fd >= 0 && ftruncate(fd, 4096) == 0);
        void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        atomic_store(&told, 0);
        if (way == 0)
            close(fd), munmap(map, 4096);
        if (way) /* replaced before it could be called */
            assert_int_equal(staged_when_unwritten(store, f, on_unwritten, NULL), 0);
        assert_int_equal(staged_when_unwritten(store, f, on_unwritten, store), 0);
        if (way == 1)
            munmap(map, 4096), usleep(3000), assert_int_equal(told, 0), close(fd);
        if (way == 2)
            close(fd), usleep(3000), assert_int_equal(told, 0), munmap(map, 4096);
        assert_true(told_within_ms(10000));
    }
    assert_int_equal(staged_when_unwritten(store, 4711, on_unwritten, store), -ENOENT);
    uint64_t f = stage(store, "g");
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_int_equal(staged_when_unwritten(store, f, on_unwritten, store), 0);
    staged_discard(store, f);
    close(fd);
}

static void a_file_that_is_still_mapped_does_not_serve_the_next_put(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    char path[128];
    uint64_t f = stage(store, "f");
    struct staged_info info = info_of(store, f);
    snprintf(path, sizeof path, "%s/data/%016llx", fixture->memory_dir,
             (unsigned long long)info.file);
    int fd = open(path, O_RDONLY);
    struct mob_id id;
    assert_int_equal(staged_write(store, f, "secret", 6, 0), 6);
    assert_int_equal(staged_closed(store, f), 0);
    assert_int_equal(staged_commit(store, f, &id, NULL, NULL), 0);
    assert_int_equal(access(path, F_OK), -1);
    char buffer[8];
    assert_int_equal(read(fd, buffer, 8), 6);
    close(fd);
    f = stage(store, "g");
    info = info_of(store, f);
    assert_int_equal(staged_closed(store, f), 0);
    assert_int_equal(staged_commit(store, f, &id, NULL, NULL), 0);
    assert_int_equal(info_of(store, stage(store, "h")).file, info.file);
}

/* --- failures --- */

static void a_failed_transaction_changes_nothing(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    struct mob_error err = {0};
    struct mob_id id;
    struct name_info name;
    struct store_usage before, after;
    struct mob_id held = fixture_put(store, NAMES_STAGING, "held", "x", 1);
    struct object_info info;
    static char large[200000];
    const int codes[][2] = {{ENOSPC, -ENOSPC}, {EIO, -EIO}, {MDB_MAP_FULL, -ENOSPC}};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(codes); i++) {
        for (size_t bytes = 5; bytes <= sizeof large; bytes += sizeof large - 5) {
            char text[41];
            uint64_t f = stage(store, "f");
            assert_int_equal(staged_write(store, f, large, bytes, 0), bytes);
            assert_int_equal(staged_xattr_set(store, f, "user.mobula.refs",
                                              mob_id_format(&held, text), 40, 0, &err),
                             0);
            store_usage(store, &before);
            commit_failure = codes[i][0];
            assert_int_equal(staged_commit(store, f, &id, NULL, &err), codes[i][1]);
            assert_true(err.message[0]);
            store_usage(store, &after);
            assert_same_usage(&before, &after);
            assert_int_equal(names_find(store, NAMES_STAGING, "f", &name), 0);
            assert_int_equal(name.type, NAME_STAGED);
            assert_int_equal(staged_closed(store, f), 0);
            assert_int_equal(staged_commit(store, f, &id, NULL, &err), 0);
            assert_int_equal(store_find(store, &held, &info), 0);
            assert_int_equal(info.links, 2);
            commit_failure = codes[i][0];
            assert_int_equal(names_unlink(store, NAMES_STAGING, "f", NULL, NULL), codes[i][1]);
            assert_int_equal(names_find(store, NAMES_STAGING, "f", &name), 0);
            assert_int_equal(names_unlink(store, NAMES_STAGING, "f", NULL, NULL), 0);
            assert_false(fixture_exists(store, &id));
            assert_int_equal(store_find(store, &held, &info), 0);
            assert_int_equal(info.links, 1);
        }
    }
    commit_failure = ENOSPC;
    assert_int_equal(names_make_directory(store, NAMES_STAGING, "d", 0755, 0, 0, &name), -ENOSPC);
    commit_failure = ENOSPC;
    assert_int_equal(names_link_object(store, NAMES_STAGING, "l", &held, 0, 0, &name), -ENOSPC);
    assert_int_equal(store_find(store, &held, &info), 0);
    assert_int_equal(info.links, 1);
    assert_int_equal(names_directory(store, NAMES_STAGING, &name), 0);
    assert_int_equal(name.entries, 1);
}

static void a_failed_rename_changes_nothing(void **state)
{
    struct store *store = ((struct fixture *)*state)->store;
    struct name_info name;
    fixture_put(store, NAMES_STAGING, "o", "x", 1);
    uint64_t f = stage(store, "f");
    commit_failure = ENOSPC;
    assert_int_equal(names_rename(store, NAMES_STAGING, "f", NAMES_STAGING, "o", 0, NULL, NULL),
                     -ENOSPC);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(names_find(store, NAMES_STAGING, "f", &name), 0);
        assert_int_equal(name.number, f);
        assert_int_equal(names_find(store, NAMES_STAGING, "o", &name), 0);
        assert_int_equal(name.type, NAME_OBJECT);
        assert_int_equal(names_directory(store, NAMES_STAGING, &name), 0);
        assert_int_equal(name.entries, 2);
        commit_failure = ENOSPC;
        assert_int_equal(names_rename(store, NAMES_STAGING, "o", NAMES_STAGING, "f", 0, NULL, NULL),
                         -ENOSPC);
    }
    assert_false(info_of(store, f).unlinked);
    assert_int_equal(names_rename(store, NAMES_STAGING, "f", NAMES_STAGING, "o", 0, NULL, NULL), 0);
}

static void what_cannot_be_freed_on_disk_is_tried_again(void **state)
{
    struct fixture *fixture = *state;
    struct store *store = fixture->store;
    static char large[200000];
    struct mob_id id = fixture_put(store, NAMES_STAGING, "o", large, sizeof large);
    struct object_info info;
    assert_int_equal(store_find(store, &id, &info), 0);
    assert_int_equal(store_opened(store, info.number), 0);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "o", NULL, NULL), 0);
    commit_failure = ENOSPC;
    store_open_dropped(store, info.number);
    assert_int_equal(commit_failure, 0);
    assert_false(fixture_exists(store, &id));
    assert_true(used(store) > 0);
    fixture_put(store, NAMES_STAGING, "p", "x", 1);
    assert_int_equal(names_unlink(store, NAMES_STAGING, "p", NULL, NULL), 0);
    assert_int_equal(used(store), 0);
    fixture_reopen(fixture);
    store_collect(fixture->store);
    assert_int_equal(used(fixture->store), 0);
}

/* --- a server that dies at a given place --- */

/* What each does runs in a server of its own, which is killed at its last transaction. */
static void in_a_dying_server(struct fixture *fixture, int when, void (*act)(struct store *store))
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        if (store_open(&fixture->options, &fixture->store, NULL))
            _exit(2);
        store_discard_unopened(fixture->store);
        store_collect(fixture->store);
        fixture_put(fixture->store, NAMES_STAGING, "old", "old", 3);
        uint64_t f = stage(fixture->store, "f");
        if (staged_write(fixture->store, f, "new", 3, 0) != 3 ||
            staged_xattr_set(fixture->store, f, "user.x", "1", 1, 0, NULL))
            _exit(3);
        death = when;
        act(fixture->store);
        _exit(4);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    fixture_open(fixture);
}

static uint64_t number_of(struct store *store, const char *name)
{
    struct name_info info;
    return names_find(store, NAMES_STAGING, name, &info) ? 0 : info.number;
}

static void act_commit(struct store *store)
{
    struct mob_id id;
    (void)!staged_commit(store, number_of(store, "f"), &id, NULL, NULL);
}

static void act_rename_over_old(struct store *store)
{
    (void)!names_rename(store, NAMES_STAGING, "f", NAMES_STAGING, "old", 0, NULL, NULL);
}

static void act_rename_old_over(struct store *store)
{
    (void)!names_rename(store, NAMES_STAGING, "old", NAMES_STAGING, "f", 0, NULL, NULL);
}

static uint64_t only_staged;

static void note_staged(void *argument, const struct staged_info *info)
{
    (void)argument;
    only_staged = info->number;
}

static void check_text(struct store *store, const struct mob_id *id, const char *expected)
{
    char *content;
    size_t bytes;
    assert_int_equal(store_read_all(store, id, 10, &content, &bytes), 0);
    assert_string_equal(content, expected);
    free(content);
}

static void a_commit_cut_off_before_its_record_is_taken_for_done(void **state)
{
    struct fixture *fixture = *state;
    fixture_close(fixture);
    for (int open = 0; open < 2; open++) {
        struct name_info name;
        struct mob_id id;
        uint64_t object;
        char value[2];
        in_a_dying_server(fixture, DIE_AFTER_COMMIT, act_commit);
        struct store *store = fixture->store;
        only_staged = 0;
        staged_each(store, note_staged, NULL);
        assert_int_not_equal(only_staged, 0);
        if (open)
            assert_int_equal(staged_opened(store, only_staged), 0);
        store_discard_unopened(store);
        store_collect(store);
        assert_int_equal(names_find(store, NAMES_STAGING, "f", &name), 0);
        assert_int_equal(name.type, NAME_OBJECT);
        check_text(store, &name.target, "new");
        assert_int_equal(store_xattr_get(store, name.number, "user.x", value, 2), 1);
        if (open) {
            assert_int_equal(staged_commit(store, only_staged, &id, &object, NULL), 0);
            assert_memory_equal(&id, &name.target, sizeof id);
            assert_int_equal(object, name.number);
            assert_int_equal(staged_closed(store, only_staged), 0);
        }
        assert_int_equal(names_directory(store, NAMES_STAGING, &name), 0);
        assert_int_equal(name.entries, 2);
        assert_int_equal(names_unlink(store, NAMES_STAGING, "f", NULL, NULL), 0);
        assert_int_equal(names_unlink(store, NAMES_STAGING, "old", NULL, NULL), 0);
        fixture_close(fixture);
    }
}

static void act_close_and_commit(struct store *store)
{
    staged_mark_closed(store, number_of(store, "f"), true);
    act_commit(store);
}

static void a_closed_file_waits_for_its_commit_but_a_committed_one_for_nothing(void **state)
{
    struct fixture *fixture = *state;
    struct store_usage usage;
    struct mob_id id;
    fixture_close(fixture);
    in_a_dying_server(fixture, DIE_BEFORE_COMMIT, act_close_and_commit);
    uint64_t f = number_of(fixture->store, "f");
    assert_true(info_of(fixture->store, f).closed);
    store_discard_unopened(fixture->store);
    assert_int_equal(staged_commit(fixture->store, f, &id, NULL, NULL), 0);
    store_collect(fixture->store);
    check_text(fixture->store, &id, "new");
    assert_int_equal(names_unlink(fixture->store, NAMES_STAGING, "f", NULL, NULL), 0);
    assert_int_equal(names_unlink(fixture->store, NAMES_STAGING, "old", NULL, NULL), 0);
    fixture_close(fixture);
    in_a_dying_server(fixture, DIE_AFTER_COMMIT, act_close_and_commit);
    store_discard_unopened(fixture->store);
    store_usage(fixture->store, &usage);
    assert_int_equal(usage.staged, 0);
    assert_int_equal(usage.memory_used_bytes, 0);
    assert_int_equal(usage.objects_ready, 2);
}

static void a_commit_cut_off_before_its_transaction_has_not_happened(void **state)
{
    struct fixture *fixture = *state;
    fixture_close(fixture);
    in_a_dying_server(fixture, DIE_BEFORE_COMMIT, act_commit);
    struct store *store = fixture->store;
    uint64_t f = number_of(store, "f");
    struct mob_id id;
    assert_int_equal(staged_opened(store, f), 0);
    store_discard_unopened(store);
    store_collect(store);
    assert_int_equal(staged_closed(store, f), 0);
    assert_int_equal(staged_commit(store, f, &id, NULL, NULL), 0);
    check_text(store, &id, "new");
}

static void a_rename_of_a_staged_file_that_is_cut_off_is_completed(void **state)
{
    struct fixture *fixture = *state;
    fixture_close(fixture);
    for (int when = DIE_BEFORE_COMMIT; when <= DIE_AFTER_COMMIT; when++) {
        struct name_info name;
        struct store_usage usage;
        struct mob_id id;
        in_a_dying_server(fixture, when, act_rename_over_old);
        struct store *store = fixture->store;
        assert_int_equal(number_of(store, "f"), 0);
        assert_int_equal(names_find(store, NAMES_STAGING, "old", &name), 0);
        assert_int_equal(name.type, NAME_STAGED);
        assert_int_equal(staged_opened(store, name.number), 0);
        store_discard_unopened(store);
        store_collect(store);
        assert_int_equal(staged_closed(store, name.number), 0);
        assert_int_equal(staged_commit(store, name.number, &id, NULL, NULL), 0);
        check_text(store, &id, "new");
        store_usage(store, &usage);
        assert_int_equal(usage.objects_ready, 1);
        assert_int_equal(usage.names, 1);
        assert_int_equal(names_directory(store, NAMES_STAGING, &name), 0);
        assert_int_equal(name.entries, 1);
        assert_int_equal(names_unlink(store, NAMES_STAGING, "old", NULL, NULL), 0);
        fixture_close(fixture);
    }
}

static void a_rename_over_a_staged_file_that_is_cut_off_loses_no_object(void **state)
{
    struct fixture *fixture = *state;
    fixture_close(fixture);
    for (int when = DIE_BEFORE_COMMIT; when <= DIE_AFTER_COMMIT; when++) {
        const char *left = when == DIE_BEFORE_COMMIT ? "old" : "f";
        struct name_info name;
        in_a_dying_server(fixture, when, act_rename_old_over);
        struct store *store = fixture->store;
        store_discard_unopened(store);
        store_collect(store);
        assert_int_equal(names_find(store, NAMES_STAGING, left, &name), 0);
        assert_int_equal(name.type, NAME_OBJECT);
        check_text(store, &name.target, "old");
        assert_int_equal(names_directory(store, NAMES_STAGING, &name), 0);
        assert_int_equal(name.entries, 1);
        assert_int_equal(names_unlink(store, NAMES_STAGING, left, NULL, NULL), 0);
        fixture_close(fixture);
    }
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, fixture_setup, fixture_teardown)
#define TEST_PASSTHROUGH(function)                                                                 \
    cmocka_unit_test_setup_teardown(function, fixture_setup_passthrough, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(data_is_written_read_truncated_and_punched),
        TEST_PASSTHROUGH(data_is_written_read_truncated_and_punched),
        TEST(attributes_of_the_file_are_set_and_the_object_gets_them),
        TEST(a_write_past_the_budget_is_enospc_and_an_overwrite_is_not),
        TEST(a_name_can_be_staged_once_and_a_repeated_request_gets_the_same_file),
        TEST(an_unlinked_file_lives_until_its_last_close),
        TEST_PASSTHROUGH(an_unlinked_file_lives_until_its_last_close),
        TEST(a_commit_with_handles_left_can_be_repeated),
        TEST_PASSTHROUGH(a_commit_with_handles_left_can_be_repeated),
        TEST(after_a_restart_files_nobody_has_open_are_discarded),
        TEST(damaged_records_are_left_out),
        TEST(extended_attributes_go_with_the_object),
        TEST(listed_objects_are_held_from_the_setting_on),
        TEST(a_list_of_any_length_is_read_from_the_content),
        TEST_PASSTHROUGH(a_file_with_writers_or_writable_mappings_is_busy),
        TEST_PASSTHROUGH(the_last_writer_s_close_is_told_once),
        TEST_PASSTHROUGH(a_file_that_is_still_mapped_does_not_serve_the_next_put),
        TEST(a_failed_transaction_changes_nothing),
        TEST(a_failed_rename_changes_nothing),
        TEST(what_cannot_be_freed_on_disk_is_tried_again),
        TEST(a_commit_cut_off_before_its_record_is_taken_for_done),
        TEST_PASSTHROUGH(a_commit_cut_off_before_its_record_is_taken_for_done),
        TEST(a_commit_cut_off_before_its_transaction_has_not_happened),
        TEST(a_closed_file_waits_for_its_commit_but_a_committed_one_for_nothing),
        TEST(a_rename_of_a_staged_file_that_is_cut_off_is_completed),
        TEST(a_rename_over_a_staged_file_that_is_cut_off_loses_no_object),
    };
    return cmocka_run_group_tests_name("staged", tests, NULL, NULL);
}
