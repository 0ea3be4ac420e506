/* Jobs on a store that spills: what they write may be larger than memory. */
#include "job_fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "core/base/util.h"
#include "core/job/job.h"
#include "core/job/launcher.h"
#include "core/store/names.h"
#include "core/store/staged.h"
#include "core/store/store_internal.h"

enum { MIB = 1 << 20, MEMORY_BYTES = 16 * MIB, LIMIT_SECONDS = 60 };
/* There is no mount here. */
#define MOUNT "/nowhere/mount"
/* Lines of 16 bytes, so many as make up 64 MiB. */
#define LARGE_BYTES (UINT64_C(64) * MIB)
#define LARGE "yes 0123456789abcde | head -c 67108864"

static const uint8_t owner[MOB_ID_OWNER_BYTES] = {1, 2, 3, 4, 5, 6, 7, 8};

/* --- what is injected --- */

static bool die_after_link;
static _Thread_local int commits_that_fail; /* of this thread */

int __real_linkat(int from_fd, const char *from, int to_fd, const char *to, int flags);
int __wrap_linkat(int from_fd, const char *from, int to_fd, const char *to, int flags);
int __wrap_linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    int result = __real_linkat(from_fd, from, to_fd, to, flags);
    if (die_after_link)
        raise(SIGKILL);
    return result;
}

int __real_mdb_txn_commit(MDB_txn *txn);
int __wrap_mdb_txn_commit(MDB_txn *txn);
int __wrap_mdb_txn_commit(MDB_txn *txn)
{
    if (commits_that_fail == 0)
        return __real_mdb_txn_commit(txn);
    commits_that_fail--;
    mdb_txn_abort(txn);
    return ENOSPC;
}

/* --- a server --- */

struct fixture {
    char memory_root[64], disk_root[64];
    char state[96], memory[96], work[128], spill[96];
    const char *spill_dirs[2];
    uint64_t disk_bytes;
    bool mounted;
    int launcher_fd;
    pid_t launcher;
    struct store *store;
    struct jobs *jobs;
    unsigned names;
};

static void open_server(struct fixture *fixture)
{
    struct mob_error err = {0};
    struct store_options store = {
        .state_dir = fixture->state,
        .memory_dir = fixture->memory,
        .memory_bytes = MEMORY_BYTES,
        .spill_dirs = fixture->spill_dirs,
        .disk_bytes = fixture->disk_bytes,
        .spare_files = 4,
    };
    memcpy(store.owner, owner, sizeof owner);
    if (store_open(&store, &fixture->store, &err))
        fail_msg("store_open: %s", err.message);
    struct jobs_options options = {
        .store = fixture->store,
        .mount_path = MOUNT,
        .work_dir = fixture->work,
        .disk_work_dir = store_work_dir(fixture->store),
        .launcher_fd = fixture->launcher_fd,
        .cpus = 2,
        .node_name = "here",
    };
    memcpy(options.owner, owner, sizeof owner);
    if (jobs_open(&options, &fixture->jobs, &err))
        fail_msg("jobs_open: %s", err.message);
    store_collect(fixture->store);
    if (jobs_start(fixture->jobs, &err))
        fail_msg("jobs_start: %s", err.message);
}

static void close_server(struct fixture *fixture, bool kill_running)
{
    close_jobs_and_store(&fixture->jobs, &fixture->store, kill_running);
}

static struct fixture *make_fixture(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    strcpy(fixture->memory_root, "/dev/shm/test_job_disk.XXXXXX");
    strcpy(fixture->disk_root, "/tmp/test_job_disk.XXXXXX");
    assert_non_null(mkdtemp(fixture->memory_root));
    assert_non_null(mkdtemp(fixture->disk_root));
    assert_int_equal(chmod(fixture->memory_root, 0711), 0);
    assert_int_equal(chmod(fixture->disk_root, 0711), 0);
    snprintf(fixture->state, sizeof fixture->state, "%s/state", fixture->disk_root);
    snprintf(fixture->spill, sizeof fixture->spill, "%s/spill", fixture->disk_root);
    snprintf(fixture->memory, sizeof fixture->memory, "%s/memory", fixture->memory_root);
    snprintf(fixture->work, sizeof fixture->work, "%s/work", fixture->memory);
    assert_int_equal(mkdir(fixture->state, 0700), 0);
    assert_int_equal(mkdir(fixture->memory, 0711), 0);
    fixture->spill_dirs[0] = fixture->spill;
    setenv("MOBULA_GRACE_MS", "300", 1);
    fixture->launcher = fork_launcher(&fixture->launcher_fd);
    *state = fixture;
    return fixture;
}

static int set_up(void **state)
{
    open_server(make_fixture(state));
    return 0;
}

static int set_up_closed(void **state)
{
    make_fixture(state);
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;
    char command[256];
    commits_that_fail = 0;
    if (fixture->jobs)
        close_server(fixture, true);
    close(fixture->launcher_fd);
    if (fixture->launcher > 0)
        waitpid(fixture->launcher, NULL, 0);
    if (fixture->mounted)
        assert_int_equal(umount2(fixture->spill, MNT_DETACH), 0);
    snprintf(command, sizeof command, "rm -rf %s %s", fixture->memory_root, fixture->disk_root);
    assert_int_equal(system(command), 0);
    free(fixture);
    return 0;
}

/* --- jobs and objects --- */

static struct mob_id drop_as(struct fixture *fixture, uid_t uid, const char *spec)
{
    struct staged_info staged;
    struct job_credentials credentials = {uid, uid, 022};
    struct mob_error err = {0};
    struct mob_id id;
    char name[32];
    snprintf(name, sizeof name, "job%u", fixture->names++);
    assert_int_equal(staged_create(fixture->store, NAMES_RUN, name, 0600, uid, uid, 0, &staged), 0);
    assert_int_equal(staged_write(fixture->store, staged.number, spec, strlen(spec), 0),
                     strlen(spec));
    if (jobs_submit(fixture->jobs, &credentials, staged.number, spec, strlen(spec), &id, &err))
        fail_msg("%s: %s", spec, err.message);
    staged_closed(fixture->store, staged.number);
    return id;
}

static struct mob_id drop(struct fixture *fixture, const char *spec)
{
    return drop_as(fixture, getuid(), spec);
}

/* `outputs`: a list of JSON strings. */
static struct mob_id drop_shell(struct fixture *fixture, const char *command, const char *outputs)
{
    char spec[1024];
    snprintf(spec, sizeof spec, "{\"command\": [\"sh\", \"-c\", \"%s\"], \"outputs\": [%s]}",
             command, outputs);
    return drop(fixture, spec);
}

static enum job_state wait_end(struct fixture *fixture, const struct mob_id *id)
{
    uint64_t deadline = mob_monotonic_ns() + LIMIT_SECONDS * UINT64_C(1000000000);
    struct job_info info;
    do {
        assert_true(mob_monotonic_ns() < deadline);
        usleep(5000);
        assert_int_equal(jobs_find(fixture->jobs, id, &info), 0);
    } while (!job_state_is_end(info.state));
    return info.state;
}

static void wait_running(struct fixture *fixture, const struct mob_id *id)
{
    struct job_info info;
    for (int i = 0;; i++) {
        assert_true(i < 6000);
        assert_int_equal(jobs_find(fixture->jobs, id, &info), 0);
        if (info.state == JOB_RUNNING)
            return;
        usleep(5000);
    }
}

static void assert_succeeds(struct fixture *fixture, const struct mob_id *id)
{
    struct job_info info;
    char *text;
    size_t bytes;
    if (wait_end(fixture, id) == JOB_SUCCEEDED)
        return;
    assert_int_equal(jobs_find(fixture->jobs, id, &info), 0);
    assert_int_equal(jobs_text(fixture->jobs, info.number, JOB_FILE_ERROR, &text, &bytes), 0);
    fail_msg("%s", text);
}

/* The job fails, and says these two things. */
static void assert_fails(struct fixture *fixture, const struct mob_id *id, const char *first,
                         const char *second)
{
    struct job_info info;
    char *text;
    size_t bytes;
    assert_int_equal(wait_end(fixture, id), JOB_FAILED);
    assert_int_equal(jobs_find(fixture->jobs, id, &info), 0);
    assert_int_equal(jobs_text(fixture->jobs, info.number, JOB_FILE_ERROR, &text, &bytes), 0);
    if (!strstr(text, first) || !strstr(text, second))
        fail_msg("%s: neither \"%s\" nor \"%s\"", text, first, second);
    free(text);
}

static struct object_info object_of(struct fixture *fixture, const struct mob_id *job,
                                    uint32_t index)
{
    struct mob_id id = mob_id_with_index(job, index);
    struct object_info info;
    uint64_t end = mob_monotonic_ns() + UINT64_C(10000000000);
    assert_int_equal(store_find(fixture->store, &id, &info), 0);
    /* A job's state goes ahead of its objects' by a moment, so that it never lags behind. */
    while (info.state == OBJECT_PENDING && mob_monotonic_ns() < end) {
        usleep(200);
        assert_int_equal(store_find(fixture->store, &id, &info), 0);
    }
    return info;
}

static void assert_content(struct fixture *fixture, const struct object_info *object,
                           const char *expected)
{
    char *content;
    size_t bytes;
    assert_int_equal(store_read_all(fixture->store, &object->id, MIB, &content, &bytes), 0);
    assert_string_equal(content, expected);
    free(content);
}

/* What LARGE prints, in a file of the spill directory's objects. */
static void assert_large(struct fixture *fixture, const struct object_info *object)
{
    char *path, *content;
    size_t bytes;
    assert_int_equal(object->state, OBJECT_READY);
    assert_int_equal(object->size, LARGE_BYTES);
    assert_int_equal(object->tier, TIER_DISK);
    assert_int_equal(store_place(fixture->store, object->number, &path), 0);
    assert_int_equal(strncmp(path, fixture->spill, strlen(fixture->spill)), 0);
    assert_string_equal(strrchr(path, '/') - 8, strstr(path, "/objects/"));
    assert_int_equal(access(path, R_OK), 0);
    free(path);
    assert_int_equal(store_read_all(fixture->store, &object->id, LARGE_BYTES, &content, &bytes), 0);
    assert_int_equal(bytes, LARGE_BYTES);
    for (size_t i = 0; i < bytes; i += 16)
        if (memcmp(content + i, "0123456789abcde\n", 16) != 0)
            fail_msg("wrong bytes at %zu", i);
    free(content);
}

static size_t entries(const char *path)
{
    const struct dirent *entry;
    size_t count = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir)))
        count += strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") &&
                 strcmp(entry->d_name, "empty");
    closedir(dir);
    return count;
}

static void assert_nothing_left(struct fixture *fixture)
{
    for (int i = 0; entries(fixture->work) || entries(store_work_dir(fixture->store)); i++) {
        assert_true(i < 300);
        usleep(10000);
    }
}

static size_t files_on_disk(struct fixture *fixture)
{
    char path[128];
    snprintf(path, sizeof path, "%s/objects", fixture->spill);
    return entries(path);
}

static struct store_usage usage_of(struct fixture *fixture)
{
    struct store_usage usage;
    store_usage(fixture->store, &usage);
    return usage;
}

static struct object_info put(struct fixture *fixture, size_t bytes)
{
    struct staged_info staged;
    struct object_info info;
    struct mob_id id;
    char name[32];
    char *content = calloc(1, bytes);
    snprintf(name, sizeof name, "object%u", fixture->names++);
    assert_int_equal(staged_create(fixture->store, NAMES_STAGING, name, 0644, 0, 0, 0, &staged), 0);
    assert_int_equal(staged_write(fixture->store, staged.number, content, bytes, 0), bytes);
    assert_int_equal(staged_commit(fixture->store, staged.number, &id, NULL, NULL), 0);
    staged_closed(fixture->store, staged.number);
    assert_int_equal(store_find(fixture->store, &id, &info), 0);
    free(content);
    return info;
}

/* Objects that are open can't leave memory. */
static void make_memory_short(struct fixture *fixture)
{
    for (int i = 0; i < 7 && store_memory_is_plenty(fixture->store); i++) {
        struct object_info object = put(fixture, 2 * MIB - 4096);
        assert_int_equal(object.tier, TIER_MEMORY);
        assert_int_equal(store_opened(fixture->store, object.number), 0);
    }
    assert_false(store_memory_is_plenty(fixture->store));
}

/* --- larger than memory --- */

static void a_stdout_larger_than_memory_is_an_object_on_disk(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop_shell(fixture, LARGE, "");
    assert_succeeds(fixture, &id);
    struct object_info object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_int_equal(store_opened(fixture->store, object.number), 0);
    assert_int_equal(store_readable(fixture->store, object.number), 0);
    assert_large(fixture, &object);
    struct store_usage usage = usage_of(fixture);
    assert_int_equal(usage.memory_used_bytes, 0);
    assert_int_equal(usage.disk_used_bytes, LARGE_BYTES);
    assert_int_equal(usage.objects_disk, 1);
    assert_nothing_left(fixture);
    store_open_dropped(fixture->store, object.number);
    close_server(fixture, false);
    open_server(fixture);
    object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_large(fixture, &object);
    assert_int_equal(usage_of(fixture).disk_used_bytes, LARGE_BYTES);
}

static void memory_and_disk_may_be_one_filesystem(void **state)
{
    struct fixture *fixture = *state;
    snprintf(fixture->spill, sizeof fixture->spill, "%s/spill", fixture->memory_root);
    open_server(fixture);
    struct mob_id id = drop_shell(fixture, LARGE "; head -c 1000000 /dev/zero > a", "\"a\"");
    assert_succeeds(fixture, &id);
    struct object_info object = object_of(fixture, &id, MOB_INDEX_STDOUT);
    assert_large(fixture, &object);
    object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_int_equal(object.tier, TIER_MEMORY);
}

static void its_checksums_are_made_and_notice_a_changed_byte(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop_shell(fixture, LARGE, "");
    char *path;
    assert_succeeds(fixture, &id);
    struct object_info object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_int_equal(store_place(fixture->store, object.number, &path), 0);
    usleep(1000000); /* they are made in the background */
    close_server(fixture, false);
    cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "x", 1, 5 * MIB), 1);
    mob_cleanup_fd(&fd);
    free(path);
    open_server(fixture);
    char *content;
    size_t bytes;
    assert_int_equal(store_read_all(fixture->store, &object.id, LARGE_BYTES, &content, &bytes),
                     -EIO);
}

static void small_outputs_are_inline_and_leave_nothing_on_disk(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop_shell(fixture, "echo out; echo err >&2", "");
    assert_succeeds(fixture, &id);
    struct object_info object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_int_equal(object.tier, TIER_INLINE);
    assert_content(fixture, &object, "out\n");
    object = object_of(fixture, &id, MOB_INDEX_STDERR);
    assert_content(fixture, &object, "err\n");
    assert_int_equal(files_on_disk(fixture), 0);
    assert_nothing_left(fixture);
}

static void a_running_job_can_be_read(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop_shell(fixture, "echo begun; sleep 60", ""), object;
    struct job_info info;
    uint64_t bytes = 0, mtime;
    char buffer[16] = "";
    wait_running(fixture, &id);
    assert_int_equal(jobs_find(fixture->jobs, &id, &info), 0);
    for (int i = 0; bytes == 0; i++) {
        assert_true(i < 3000);
        usleep(10000);
        assert_int_equal(jobs_stream_size(fixture->jobs, info.number, 1, &bytes, &mtime), 0);
    }
    cleanup_fd int fd = jobs_stream(fixture->jobs, info.number, 1, &object);
    assert_int_equal(read(fd, buffer, sizeof buffer), 6);
    assert_string_equal(buffer, "begun\n");
    assert_int_equal(entries(store_work_dir(fixture->store)), 2);
}

static void scratch_is_in_memory_while_there_is_plenty(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop_shell(fixture, "pwd; head -c 300000 /dev/zero > a", "\"a\"");
    char *printed;
    size_t bytes;
    assert_succeeds(fixture, &id);
    struct object_info object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_int_equal(object.tier, TIER_MEMORY); /* moved, not copied */
    object = object_of(fixture, &id, MOB_INDEX_STDOUT);
    assert_int_equal(store_read_all(fixture->store, &object.id, 4096, &printed, &bytes), 0);
    assert_int_equal(strncmp(printed, fixture->work, strlen(fixture->work)), 0);
    free(printed);
    assert_nothing_left(fixture);
}

static void scratch_is_on_disk_when_memory_is_short(void **state)
{
    struct fixture *fixture = *state;
    make_memory_short(fixture);
    struct mob_id id =
        drop_shell(fixture, "pwd; " LARGE " > a; head -c 300000 /dev/zero > b; ln b c; chmod 755 b",
                   "\"a\", \"b\", \"c\"");
    assert_succeeds(fixture, &id);
    struct object_info object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_large(fixture, &object);
    for (uint32_t i = 1; i < 3; i++) { /* two names of one file: copied, on disk too */
        object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT + i);
        assert_int_equal(object.size, 300000);
        assert_int_equal(object.tier, TIER_DISK);
        assert_int_equal(object.mode & 0777, 0555);
    }
    char *printed;
    size_t bytes;
    object = object_of(fixture, &id, MOB_INDEX_STDOUT);
    assert_int_equal(store_read_all(fixture->store, &object.id, 4096, &printed, &bytes), 0);
    assert_int_equal(
        strncmp(printed, store_work_dir(fixture->store), strlen(store_work_dir(fixture->store))),
        0);
    free(printed);
    id = drop(fixture, "#!/bin/sh\necho \"$0\"\n");
    assert_succeeds(fixture, &id);
    object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_int_equal(store_read_all(fixture->store, &object.id, 4096, &printed, &bytes), 0);
    assert_int_equal(
        strncmp(printed, store_work_dir(fixture->store), strlen(store_work_dir(fixture->store))),
        0);
    free(printed);
    assert_nothing_left(fixture);
}

static void every_user_s_jobs_run_when_memory_is_short(void **state)
{
    struct fixture *fixture = *state;
    const char *spec = "{\"command\": [\"sh\", \"-c\", \"pwd; echo x > x\"], \"outputs\": [\"x\"]}";
    struct stat st;
    char path[128];
    if (getuid() != 0)
        skip();
    snprintf(path, sizeof path, "%s/objects", fixture->spill);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(stat(store_work_dir(fixture->store), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0711);
    for (int closed = 0; closed < 2; closed++) {
        make_memory_short(fixture);
        struct mob_id id = drop_as(fixture, 65534, spec);
        assert_succeeds(fixture, &id);
        struct object_info object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
        assert_content(fixture, &object, "x\n");
        char *printed;
        size_t bytes;
        object = object_of(fixture, &id, MOB_INDEX_STDOUT);
        assert_int_equal(store_read_all(fixture->store, &object.id, 4096, &printed, &bytes), 0);
        const char *expected = closed ? fixture->work : store_work_dir(fixture->store);
        assert_int_equal(strncmp(printed, expected, strlen(expected)), 0);
        free(printed);
        close_server(fixture, false);
        if (!closed) /* now nobody else can get there */
            assert_int_equal(chmod(fixture->disk_root, 0700), 0);
        open_server(fixture);
    }
}

/* --- servers die --- */

static void serve_until_killed(struct fixture *fixture, const char *command, int out)
{
    open_server(fixture);
    struct mob_id id = drop_shell(fixture, command, "");
    wait_running(fixture, &id);
    if (write(out, &id, sizeof id) != sizeof id)
        _exit(1);
    pause();
}

static struct mob_id killed_server(struct fixture *fixture, const char *command, bool after_link)
{
    int ends[2], status;
    struct mob_id id;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t server = fork();
    if (server == 0) {
        die_after_link = after_link;
        serve_until_killed(fixture, command, ends[1]);
    }
    assert_int_equal(mob_read_full(ends[0], &id, sizeof id), sizeof id);
    if (!after_link)
        kill(server, SIGKILL);
    assert_int_equal(waitpid(server, &status, 0), server);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    close(ends[0]);
    close(ends[1]);
    return id;
}

static void a_job_killed_with_its_server_goes_on_and_its_stdout_is_whole(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = killed_server(fixture, "sleep 0.5; " LARGE, false);
    open_server(fixture);
    assert_succeeds(fixture, &id);
    struct object_info object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_large(fixture, &object);
    assert_nothing_left(fixture);
}

static void a_server_killed_between_link_and_commit_leaves_one_object(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = killed_server(fixture, LARGE, true);
    assert_int_equal(files_on_disk(fixture), 1);
    open_server(fixture);
    assert_succeeds(fixture, &id);
    struct object_info object = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
    assert_large(fixture, &object);
    assert_int_equal(files_on_disk(fixture), 1);
    assert_int_equal(usage_of(fixture).disk_used_bytes, LARGE_BYTES);
    assert_nothing_left(fixture);
}

static void leftovers_on_disk_are_swept_at_the_start(void **state)
{
    struct fixture *fixture = *state;
    char command[512];
    close_server(fixture, false);
    snprintf(command, sizeof command,
             "cd %s/work && mkdir -p 7-1/a/b && touch 7-1.out 7-1.err 7-1/a/b/c 7-1.script",
             fixture->spill);
    assert_int_equal(system(command), 0);
    open_server(fixture);
    assert_nothing_left(fixture);
}

/* --- no room --- */

static void a_job_that_fills_the_disk_fails_and_says_so(void **state)
{
    struct fixture *fixture = *state;
    assert_int_equal(mkdir(fixture->spill, 0711), 0);
    if (mount("none", fixture->spill, "tmpfs", 0, "size=24m,mode=711"))
        skip();
    fixture->mounted = true;
    open_server(fixture);
    struct mob_id kept = drop_shell(fixture, "yes kept | head -c 1000000", "");
    assert_succeeds(fixture, &kept);
    for (int i = 0; i < 3; i++) {
        struct mob_id id = drop_shell(fixture, "yes | head -c 67108864", "");
        assert_fails(fixture, &id, "No space left on device", store_work_dir(fixture->store));
        struct object_info result = object_of(fixture, &id, MOB_INDEX_FIRST_OUTPUT);
        assert_int_equal(result.state, OBJECT_FAILED);
        struct object_info said;
        struct mob_id printed = mob_id_with_index(&id, MOB_INDEX_STDOUT);
        assert_int_equal(store_find(fixture->store, &printed, &said), -ENOENT);
        assert_nothing_left(fixture);
        assert_int_equal(files_on_disk(fixture), 1);
        id = drop_shell(fixture, "yes | head -c 1000000", "");
        assert_succeeds(fixture, &id);
        assert_int_equal(files_on_disk(fixture), 2);
        char name[32];
        snprintf(name, sizeof name, "job%u", fixture->names - 1);
        assert_int_equal(names_unlink(fixture->store, NAMES_RUN, name, NULL, NULL), 0);
        jobs_name_dropped(fixture->jobs, &id);
        for (int wait = 0; files_on_disk(fixture) > 1; wait++) {
            assert_true(wait < 300);
            usleep(10000);
        }
    }
    struct object_info object = object_of(fixture, &kept, MOB_INDEX_FIRST_OUTPUT);
    char *content;
    size_t bytes;
    assert_int_equal(store_read_all(fixture->store, &object.id, MIB, &content, &bytes), 0);
    assert_int_equal(strncmp(content, "kept\nkept\n", 10), 0);
    free(content);
}

static void a_job_past_the_disk_budget_fails_and_says_so(void **state)
{
    struct fixture *fixture = *state;
    fixture->disk_bytes = 8 * MIB;
    open_server(fixture);
    struct mob_id id = drop_shell(fixture, LARGE "; echo said >&2", "");
    assert_fails(fixture, &id, "budget", "No space left on device");
    struct object_info said = object_of(fixture, &id, MOB_INDEX_STDERR);
    assert_content(fixture, &said, "said\n");
    assert_nothing_left(fixture);
    assert_int_equal(files_on_disk(fixture), 0);
    assert_int_equal(usage_of(fixture).disk_used_bytes, 0);
    id = drop_shell(fixture, "yes | head -c 1000000", "");
    assert_succeeds(fixture, &id);
}

static void a_failed_job_says_that_what_it_printed_had_no_room(void **state)
{
    struct fixture *fixture = *state;
    fixture->disk_bytes = 8 * MIB;
    open_server(fixture);
    struct mob_id id = drop_shell(fixture, "{ " LARGE "; } >&2; echo said; exit 3", "");
    assert_fails(fixture, &id, "exited with status 3; not all that it printed could be kept: ",
                 "No space left on device");
    struct object_info said = object_of(fixture, &id, MOB_INDEX_STDOUT);
    assert_content(fixture, &said, "said\n");
    id = drop_shell(fixture, LARGE "; echo said >&2; exit 3", "");
    assert_fails(fixture, &id, "exited with status 3; not all that it printed could be kept: ",
                 "No space left on device");
    said = object_of(fixture, &id, MOB_INDEX_STDERR);
    assert_content(fixture, &said, "said\n");
    assert_nothing_left(fixture);
    assert_int_equal(usage_of(fixture).disk_used_bytes, 0);
}

/* --- the store's side --- */

static struct mob_id pending(struct fixture *fixture)
{
    struct store_batch *batch;
    struct mob_id id;
    assert_int_equal(mob_id_new(owner, 1, &id), 0);
    assert_int_equal(store_batch_new(fixture->store, &batch), 0);
    assert_int_equal(store_batch_pending(batch, &id, 0, 0, 022, 0, NULL), 0);
    assert_int_equal(store_batch_commit(batch, NULL), 0);
    return id;
}

static errint_t make_ready(struct fixture *fixture, const struct mob_id *id, const char *path,
                           struct mob_error *err)
{
    struct store_batch *batch;
    *err = (struct mob_error){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(store_batch_new(fixture->store, &batch), 0);
    assert_int_equal(store_batch_ready_file(batch, id, fd, path, false), 0);
    return store_batch_commit(batch, err);
}

static void write_file(const char *path, size_t bytes)
{
    cleanup_free char *content = calloc(1, bytes);
    assert_int_equal(mob_write_file(AT_FDCWD, path, content, bytes, 0600), 0);
}

static void a_commit_that_fails_leaves_the_file_where_it_was(void **state)
{
    struct fixture *fixture = *state;
    struct mob_error err;
    char path[256];
    const char *dirs[] = {store_work_dir(fixture->store), fixture->work};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(dirs); i++) {
        struct store_usage before = usage_of(fixture);
        size_t files = files_on_disk(fixture);
        struct mob_id id = pending(fixture);
        struct object_info info;
        snprintf(path, sizeof path, "%s/mine", dirs[i]);
        write_file(path, MIB);
        commits_that_fail = 1;
        assert_int_equal(make_ready(fixture, &id, path, &err), -ENOSPC);
        assert_non_null(strstr(err.message, fixture->state));
        assert_int_equal(access(path, F_OK), 0);
        assert_int_equal(files_on_disk(fixture), files);
        assert_int_equal(usage_of(fixture).disk_used_bytes, before.disk_used_bytes);
        assert_int_equal(usage_of(fixture).memory_used_bytes, before.memory_used_bytes);
        assert_int_equal(store_find(fixture->store, &id, &info), 0);
        assert_int_equal(info.state, OBJECT_PENDING);
        assert_int_equal(make_ready(fixture, &id, path, &err), 0);
        assert_int_equal(access(path, F_OK), -1);
        assert_int_equal(store_find(fixture->store, &id, &info), 0);
        assert_int_equal(info.tier, i == 0 ? TIER_DISK : TIER_MEMORY);
        assert_int_equal(files_on_disk(fixture), files + (i == 0));
        store_drop(fixture->store, &id);
        store_drop(fixture->store, &id);
        put(fixture, MIB);
    }
}

static void a_file_of_another_filesystem_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct mob_error err;
    char path[256];
    fixture->spill_dirs[0] = NULL;
    open_server(fixture);
    assert_null(store_work_dir(fixture->store));
    assert_true(store_memory_is_plenty(fixture->store));
    assert_false(store_disk_has_room(fixture->store));
    struct mob_id id = pending(fixture);
    snprintf(path, sizeof path, "%s/mine", fixture->disk_root);
    write_file(path, MIB);
    assert_int_equal(make_ready(fixture, &id, path, &err), -EXDEV);
    assert_non_null(strstr(err.message, "another filesystem"));
    assert_int_equal(access(path, F_OK), 0);
}

/* --- pins --- */

static unsigned pins_of(struct fixture *fixture, const struct mob_id *id)
{
    struct table_shard *shard;
    const struct object *object = table_lock_id(&fixture->store->table, id, &shard);
    assert_non_null(object);
    unsigned pins = object->pins;
    table_unlock(shard);
    return pins;
}

static void arguments_are_pinned_while_the_job_runs(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id object = put(fixture, MIB).id, other = put(fixture, MIB).id;
    char spec[1024], digits[MOB_ID_STRING_BYTES], more[MOB_ID_STRING_BYTES];
    snprintf(
        spec, sizeof spec,
        "{\"command\": [\"sh\", \"-c\", \"sleep 1\", {\"object\": \"%s\"}, {\"object\": \"%s\"}, "
        "{\"ref\": \"%s\"}]}",
        mob_id_format(&object, digits), digits, mob_id_format(&other, more));
    struct mob_id id = drop(fixture, spec);
    wait_running(fixture, &id);
    assert_int_equal(pins_of(fixture, &object), 2);
    assert_int_equal(pins_of(fixture, &other), 0); /* not by value */
    close_server(fixture, false);
    open_server(fixture);
    assert_int_equal(pins_of(fixture, &object), 2); /* it runs on, and is adopted */
    assert_succeeds(fixture, &id);
    assert_int_equal(pins_of(fixture, &object), 0);
    /* Tried again; ended by its input, which nobody can open here; ended with the launcher. */
    snprintf(spec, sizeof spec,
             "{\"command\": [\"false\", {\"object\": \"%s\"}], \"retry_on\": [\"exit\"], "
             "\"retries\": 2}",
             digits);
    id = drop(fixture, spec);
    assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
    snprintf(spec, sizeof spec, "{\"command\": [\"cat\"], \"stdin\": {\"object\": \"%s\"}}",
             digits);
    id = drop(fixture, spec);
    assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
    assert_int_equal(pins_of(fixture, &object), 0);
    snprintf(
        spec, sizeof spec,
        "{\"command\": [\"sh\", \"-c\", \"sleep 60\", {\"object\": \"%s\"}], \"retry_on\": []}",
        digits);
    id = drop(fixture, spec);
    wait_running(fixture, &id);
    kill(fixture->launcher, SIGKILL);
    assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
    assert_int_equal(pins_of(fixture, &object), 0);
}

static void pins_neither_wrap_nor_go_below_nothing(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id object = put(fixture, MIB).id, nobody;
    assert_int_equal(mob_id_new(owner, 1, &nobody), 0);
    assert_int_equal(store_pin(fixture->store, &nobody), -ENOENT);
    store_unpin(fixture->store, &nobody);
    store_unpin(fixture->store, &object);
    assert_int_equal(pins_of(fixture, &object), 0);
    for (unsigned i = 0; i < UINT16_MAX + 10u; i++)
        assert_int_equal(store_pin(fixture->store, &object), 0);
    assert_int_equal(pins_of(fixture, &object), UINT16_MAX);
}

#define JOB_TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
#define CLOSED_TEST(test) cmocka_unit_test_setup_teardown(test, set_up_closed, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        JOB_TEST(a_stdout_larger_than_memory_is_an_object_on_disk),
        CLOSED_TEST(memory_and_disk_may_be_one_filesystem),
        JOB_TEST(its_checksums_are_made_and_notice_a_changed_byte),
        JOB_TEST(small_outputs_are_inline_and_leave_nothing_on_disk),
        JOB_TEST(a_running_job_can_be_read),
        JOB_TEST(scratch_is_in_memory_while_there_is_plenty),
        JOB_TEST(scratch_is_on_disk_when_memory_is_short),
        JOB_TEST(every_user_s_jobs_run_when_memory_is_short),
        CLOSED_TEST(a_job_killed_with_its_server_goes_on_and_its_stdout_is_whole),
        CLOSED_TEST(a_server_killed_between_link_and_commit_leaves_one_object),
        JOB_TEST(leftovers_on_disk_are_swept_at_the_start),
        CLOSED_TEST(a_job_that_fills_the_disk_fails_and_says_so),
        CLOSED_TEST(a_job_past_the_disk_budget_fails_and_says_so),
        CLOSED_TEST(a_failed_job_says_that_what_it_printed_had_no_room),
        JOB_TEST(a_commit_that_fails_leaves_the_file_where_it_was),
        CLOSED_TEST(a_file_of_another_filesystem_is_refused),
        JOB_TEST(arguments_are_pinned_while_the_job_runs),
        JOB_TEST(pins_neither_wrap_nor_go_below_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
