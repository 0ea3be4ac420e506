/* Recovery that is itself killed, or ended by a crash of the machine, at each of its steps: begun
 * again, it has the same result. What was synced is there, with its attributes; while memory is as
 * it was, so is everything else; and nothing stays behind on the disk. */
#include "tests/unit/spill_fixture.h"

#include <signal.h>
#include <sys/wait.h>

/* A sanitizer's program takes minutes for all of them. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { STEP = 7 };
#else
enum { STEP = 1 };
#endif

/* --- steps --- */

static atomic_int steps, kill_at; /* the server is killed before this step; 0: never */

static void step(void)
{
    if (atomic_load(&kill_at) && atomic_fetch_add(&steps, 1) + 1 == atomic_load(&kill_at))
        kill(getpid(), SIGKILL);
}

/* Each is a step; with and without large files, whichever the C library's headers choose. */
#define WRAP(type, name, parameters, arguments)                                                    \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters                                                                  \
    {                                                                                              \
        step();                                                                                    \
        return __real_##name arguments;                                                            \
    }

WRAP(int, unlinkat, (int dir, const char *path, int flags), (dir, path, flags))
WRAP(int, renameat, (int from_dir, const char *from, int to_dir, const char *to),
     (from_dir, from, to_dir, to))
WRAP(int, linkat, (int from_dir, const char *from, int to_dir, const char *to, int flags),
     (from_dir, from, to_dir, to, flags))
WRAP(ssize_t, pwrite, (int fd, const void *from, size_t bytes, off_t offset),
     (fd, from, bytes, offset))
WRAP(ssize_t, pwrite64, (int fd, const void *from, size_t bytes, off_t offset),
     (fd, from, bytes, offset))
WRAP(int, ftruncate, (int fd, off_t bytes), (fd, bytes))
WRAP(int, ftruncate64, (int fd, off_t bytes), (fd, bytes))
WRAP(int, mdb_txn_commit, (MDB_txn * txn), (txn))
WRAP(errint_t, records_write, (struct staged_records * records, struct staged *staged),
     (records, staged))

int __wrap_fsync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_syncfs(int fd);
int __wrap_fsync(int fd)
{
    (void)fd;
    step();
    return 0;
}
int __wrap_fdatasync(int fd)
{
    (void)fd;
    step();
    return 0;
}
int __wrap_syncfs(int fd)
{
    (void)fd;
    step();
    return 0;
}

/* A ring's buffers take longer than all the rest. */
int __wrap_io_uring_queue_init(unsigned entries, void *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, void *ring, unsigned flags)
{
    (void)entries, (void)ring, (void)flags;
    return -ENOSYS;
}

/* --- what there was, and how it ended --- */

#define KEY "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
enum { LARGE = 200000, SMALL = 2000 };

static const struct scene {
    const char *name;
    bool closed;      /* in order, with files open; else it was killed */
    bool memory_lost; /* as when a container starts again, or the state was taken down */
    bool reboot;      /* the machine crashed */
    bool distrust;    /* LMDB is made anew by the first to recover */
    bool damaged;     /* and has to be */
    bool key;
} scenes[] = {
    {.name = "a crash of the machine", .memory_lost = true, .reboot = true},
    {.name = "a crash of the machine, with a key",
     .memory_lost = true,
     .reboot = true,
     .key = true},
    {.name = "a kill"},
    {.name = "a kill, with a key", .key = true},
    {.name = "a loss of memory alone", .memory_lost = true},
    {.name = "an orderly end, which leaves no memory", .closed = true, .memory_lost = true},
    {.name = "an orderly end, with a key", .closed = true, .memory_lost = true, .key = true},
    {.name = "damaged metadata", .distrust = true},
    {.name = "damaged metadata after an orderly end", .closed = true, .damaged = true},
};

static char *content_of(size_t bytes, uint64_t seed)
{
    char *content = calloc(1, bytes + 8);
    assert_non_null(content);
    fill_bytes(content, bytes, seed, 0);
    return content;
}

static uint64_t make_open(struct store *store, uint64_t parent, const char *name, size_t bytes,
                          uint64_t seed)
{
    struct staged_info info;
    cleanup_free char *content = content_of(bytes, seed);
    assert_int_equal(staged_create(store, parent, name, 0644, 1000, 1000, 0, &info), 0);
    assert_int_equal(staged_write(store, info.number, content, bytes, 0), bytes);
    return info.number;
}

static uint64_t make_synced(struct store *store, uint64_t parent, const char *name, size_t bytes,
                            uint64_t seed)
{
    uint64_t number = make_open(store, parent, name, bytes, seed);
    assert_int_equal(staged_xattr_set(store, number, "user.seed", name, strlen(name), 0, NULL), 0);
    assert_int_equal(staged_sync(store, number, NULL), 0);
    return number;
}

static uint64_t commit(struct store *store, uint64_t number)
{
    uint64_t object;
    struct mob_id id;
    assert_int_equal(staged_closed(store, number), 0);
    assert_int_equal(staged_commit(store, number, &id, &object, NULL), 0);
    return object;
}

/* In a process of its own. What holds sync_lock is never settled. */
static void live(struct spilling *spilling, const struct scene *scene)
{
    struct name_info directory;
    spilling_open(spilling);
    struct store *store = store_of(spilling);
    assert_int_equal(
        names_make_directory(store, NAMES_STAGING, "directory", 0755, 0, 0, &directory), 0);
    assert_int_equal(store_sync_object(
                         store, commit(store, make_open(store, NAMES_STAGING, "object", LARGE, 1))),
                     0);
    make_synced(store, NAMES_STAGING, "small", SMALL, 2);
    make_synced(store, directory.number, "large", LARGE, 3);
    uint64_t unsettled = make_synced(store, NAMES_STAGING, "unsettled", LARGE, 4);
    commit(store, make_open(store, NAMES_STAGING, "memory", LARGE, 5));
    make_open(store, NAMES_STAGING, "open", SMALL, 6);
    if (!scene->closed)
        pthread_mutex_lock(&store->spill.sync_lock);
    commit(store, unsettled);
    if (scene->closed)
        fixture_close(&spilling->fixture);
    else
        assert_int_equal(journal_sync(store->journal, journal_written(store->journal)), 0);
}

/* --- lives and deaths --- */

static pid_t test_pid;

/* A child whose assertion fails runs no other test. */
static int end_child(void **state)
{
    (void)state;
    if (getpid() != test_pid)
        _exit(1);
    return 0;
}

static bool run(void (*what)(struct spilling *, const struct scene *), struct spilling *spilling,
                const struct scene *scene, int at)
{
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(60);
        atomic_store(&kill_at, at);
        what(spilling, scene);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

static void lose_memory(const struct spilling *spilling)
{
    const char *path = spilling->fixture.memory_dir;
    nftw(path, fixture_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    assert_int_equal(mkdir(path, 0700), 0);
}

/* Where a server that was killed has left a word, it is of another boot. */
static void reboot(const struct spilling *spilling)
{
    char path[128], text[200] = "";
    snprintf(path, sizeof path, "%s/running", spilling->fixture.state_dir);
    lose_memory(spilling);
    cleanup_fd int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    assert_true(read(fd, text, sizeof text - 1) > 40);
    char *boot = strchr(text, '-') - 1; /* the boot's identity is a UUID */
    *boot = *boot == '0' ? '1' : '0';
    assert_int_equal(pwrite(fd, text, strlen(text), 0), strlen(text));
}

static void damage(const struct spilling *spilling)
{
    char path[128], byte;
    snprintf(path, sizeof path, "%s/meta/data.mdb", spilling->fixture.state_dir);
    cleanup_fd int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(pread(fd, &byte, 1, 4 * 4096 + 100), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, 4 * 4096 + 100), 1);
}

static void write_key(struct spilling *spilling, char path[128])
{
    snprintf(path, 128, "%s/key", spilling->fixture.state_dir);
    cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(mob_write_full(fd, KEY, sizeof KEY - 1), 0);
    spilling->fixture.options.spill_key = path;
}

static struct spilling *begin(const struct scene *scene, char key_path[128])
{
    struct spilling *spilling = spilling_new();
    if (scene->key)
        write_key(spilling, key_path);
    assert_false(run(live, spilling, scene, 0));
    if (scene->damaged)
        damage(spilling);
    if (scene->reboot)
        reboot(spilling);
    else if (scene->memory_lost)
        lose_memory(spilling);
    return spilling;
}

/* As who has the mount does it: what was closed is committed. */
static void commit_closed(void *argument, const struct staged_info *info)
{
    struct mob_id id;
    if (info->closed)
        assert_int_equal(staged_commit(argument, info->number, &id, NULL, NULL), 0);
}

static void recover(struct spilling *spilling, const struct scene *scene)
{
    spilling->fixture.options.distrust_meta = scene->distrust;
    spilling_open(spilling);
    staged_each(store_of(spilling), commit_closed, store_of(spilling));
    assert_int_equal(store_sync_names(store_of(spilling)), 0);
}

/* --- what there must be --- */

/* An object, or a file that is still open. NULL: neither. */
static char *read_all(struct store *store, uint64_t parent, const char *name, size_t *bytes,
                      char seed[16])
{
    struct name_info info;
    char *content = NULL;
    ssize_t seed_bytes;
    if (names_find(store, parent, name, &info))
        return NULL;
    if (info.type == NAME_STAGED) {
        content = calloc(1, LARGE + 1);
        assert_non_null(content);
        *bytes = (size_t)staged_read(store, info.number, content, LARGE + 1, 0);
        seed_bytes = staged_xattr_get(store, info.number, "user.seed", seed, 15);
    } else {
        assert_int_equal(store_opened(store, info.number), 0);
        assert_int_equal(store_read_all(store, &info.target, LARGE + 1, &content, bytes), 0);
        seed_bytes = store_xattr_get(store, info.number, "user.seed", seed, 15);
        store_open_dropped(store, info.number);
    }
    seed[seed_bytes > 0 ? seed_bytes : 0] = '\0';
    return content;
}

static const char *context; /* said when something is wrong */

static void assert_there(struct store *store, uint64_t parent, const char *name, size_t bytes,
                         uint64_t seed)
{
    size_t got_bytes;
    char attribute[16];
    cleanup_free char *expected = content_of(bytes, seed);
    cleanup_free char *got = read_all(store, parent, name, &got_bytes, attribute);
    if (!got)
        fail_msg("%s: %s is not there", context, name);
    if (got_bytes != bytes || memcmp(got, expected, bytes) != 0)
        fail_msg("%s: %s has other bytes", context, name);
    if (seed >= 2 && seed <= 4 && strcmp(attribute, name) != 0)
        fail_msg("%s: %s has lost its attribute", context, name);
}

static size_t notes(struct store *store)
{
    struct meta_reader *reader;
    MDB_stat stat;
    assert_int_equal(meta_read_begin(&store->meta, &reader), 0);
    assert_int_equal(mdb_stat(reader->txn, store->meta.tables[META_SYNCED], &stat), 0);
    meta_read_end(reader);
    return stat.ms_entries;
}

static void check(struct spilling *spilling, bool memory_lost)
{
    struct store *store = store_of(spilling);
    struct name_info directory, info;
    assert_int_equal(names_find(store, NAMES_STAGING, "directory", &directory), 0);
    assert_there(store, NAMES_STAGING, "object", LARGE, 1);
    assert_there(store, NAMES_STAGING, "small", SMALL, 2);
    assert_there(store, directory.number, "large", LARGE, 3);
    assert_there(store, NAMES_STAGING, "unsettled", LARGE, 4);
    if (memory_lost)
        assert_int_equal(names_find(store, NAMES_STAGING, "memory", &info), -ENOENT);
    else {
        assert_there(store, NAMES_STAGING, "memory", LARGE, 5);
        assert_there(store, NAMES_STAGING, "open", SMALL, 6);
    }
}

/* Each large one has one copy on disk, and nothing else is there. */
static void check_disk(struct spilling *spilling, bool memory_lost)
{
    struct store *store = store_of(spilling);
    if (!memory_lost)
        store_discard_unopened(store);
    staged_each(store, commit_closed, store);
    assert_int_equal(store_sync_all(store), 0);
    WAIT_UNTIL(!notes(store));
    /* What nothing names stays for another start, if the journal could not be synced at this one.
     */
    unsigned expected = memory_lost ? 3 : 4;
    if (files_in(spilling->disk_dirs[0]) != expected)
        spilling_reopen(spilling);
    WAIT_UNTIL(files_in(spilling->disk_dirs[0]) == expected);
}

static void verify(struct spilling *spilling, bool memory_lost)
{
    spilling->fixture.options.distrust_meta = false;
    spilling_open(spilling);
    if (memory_lost)
        staged_each(store_of(spilling), commit_closed, store_of(spilling));
    check(spilling, memory_lost);
    check_disk(spilling, memory_lost);
    void *state = spilling;
    spilling_teardown(&state);
}

/* What was decrypted into memory is marked, or who ends the mount would copy it to the disk. */
static void check_mark(const struct spilling *spilling)
{
    char path[96], name[400];
    struct stat info;
    const struct dirent *entry;
    bool any = false;
    snprintf(path, sizeof path, "%s/data", spilling->fixture.memory_dir);
    DIR *dir = opendir(path);
    while (dir && (entry = readdir(dir))) {
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        any = any || (stat(name, &info) == 0 && S_ISREG(info.st_mode) && info.st_size);
    }
    if (dir)
        closedir(dir);
    snprintf(path, sizeof path, "%s/%s", spilling->fixture.memory_dir, STORE_ENCRYPTED_NAME);
    if (any && access(path, F_OK) < 0)
        fail_msg("%s: decrypted files are not marked", context);
}

/* --- the tests --- */

/* With what then comes: nothing, the same again, or a crash of the machine. */
enum then { NOTHING, AGAIN, CRASH, THENS };

static bool play(const struct scene *scene, int at, enum then then)
{
    static const char *const said[] = {"", ", twice", ", then a crash of the machine"};
    char text[160], key_path[128];
    struct spilling *spilling = begin(scene, key_path);
    bool killed = run(recover, spilling, scene, at);
    snprintf(text, sizeof text, "after %s, killed before step %d%s", scene->name, at, said[then]);
    context = text;
    if (scene->key)
        check_mark(spilling);
    if (then == AGAIN)
        run(recover, spilling, &(struct scene){0}, at);
    if (then == CRASH)
        reboot(spilling);
    verify(spilling, scene->memory_lost || then == CRASH);
    return killed;
}

/* Each step with one of these; with which, another scene tries the others. */
static void killed_and_begun_again_recovery_gives_the_same(void **state)
{
    const struct scene *scene = *state;
    int at = 1;
    for (int scene_index = (int)(scene - scenes);; at += STEP)
        if (!play(scene, at, (at + scene_index) % THENS))
            break;
    assert_true(at > 10);
}

int main(void)
{
    test_pid = getpid();
    struct CMUnitTest tests[MOB_ARRAY_LENGTH(scenes)];
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(scenes); i++)
        tests[i] = (struct CMUnitTest){.name = scenes[i].name,
                                       .test_func = killed_and_begun_again_recovery_gives_the_same,
                                       .teardown_func = end_child,
                                       .initial_state = (void *)&scenes[i]};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
