/* Jobs on a real store, with a real launcher: what they become, for their users and for each other. */
#include "job_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "core/base/util.h"
#include "core/job/job.h"
#include "core/job/job_internal.h"
#include "core/job/launcher.h"
#include "core/job/scratch.h"
#include "core/store/names.h"
#include "core/store/staged.h"

#define LIMIT_NS (60 * UINT64_C(1000000000))
/* The last part is the mount's: there is none here, but a path of its shape serves where only the child opens it. */
#define MOUNT "/nowhere/mount"

static const uint8_t owner[MOB_ID_OWNER_BYTES] = {1, 2, 3, 4, 5, 6, 7, 8};

struct fixture {
    char root[64], state[80], memory[80], work[96];
    int launcher_fd;
    pid_t launcher;
    double cpus;
    struct store *store;
    struct jobs *jobs;
    unsigned names;
};

static void open_server(struct fixture *fixture)
{
    struct mob_error err = {0};
    struct store_options store = {.state_dir = fixture->state,
                                  .memory_dir = fixture->memory,
                                  .memory_bytes = 1 << 28,
                                  .spare_files = 4};
    memcpy(store.owner, owner, sizeof owner);
    if (store_open(&store, &fixture->store, &err))
        fail_msg("store_open: %s", err.message);
    struct jobs_options options = {.store = fixture->store,
                                   .mount_path = MOUNT,
                                   .work_dir = fixture->work,
                                   .launcher_fd = fixture->launcher_fd,
                                   .cpus = fixture->cpus,
                                   .node_name = "here"};
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
    strcpy(fixture->root, "/dev/shm/test_job.XXXXXX");
    assert_non_null(mkdtemp(fixture->root));
    assert_int_equal(chmod(fixture->root, 0711), 0);
    snprintf(fixture->state, sizeof fixture->state, "%s/state", fixture->root);
    snprintf(fixture->memory, sizeof fixture->memory, "%s/memory", fixture->root);
    snprintf(fixture->work, sizeof fixture->work, "%s/work", fixture->memory);
    assert_int_equal(mkdir(fixture->state, 0700), 0);
    assert_int_equal(mkdir(fixture->memory, 0711), 0);
    assert_int_equal(chmod(fixture->memory, 0711), 0);
    fixture->cpus = 2;
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

static int tear_down(void **state)
{
    struct fixture *fixture = *state;
    char command[128];
    if (fixture->jobs)
        close_server(fixture, true);
    close(fixture->launcher_fd);
    if (fixture->launcher > 0)
        waitpid(fixture->launcher, NULL, 0);
    snprintf(command, sizeof command, "rm -rf %s", fixture->root);
    assert_int_equal(system(command), 0);
    free(fixture);
    return 0;
}

/* --- dropping and waiting --- */

static errint_t drop_as(struct fixture *fixture, uid_t uid, const char *spec, struct mob_id *id,
                        struct mob_error *err)
{
    struct staged_info staged;
    struct job_credentials credentials = {uid, uid, 022};
    char name[32];
    snprintf(name, sizeof name, "job%u", fixture->names++);
    assert_int_equal(
        staged_create(fixture->store, NAMES_RUN, name, 0600, uid, uid, 0, &staged), 0);
    assert_int_equal(staged_write(fixture->store, staged.number, spec, strlen(spec), 0),
                     strlen(spec));
    errint_t error =
        jobs_submit(fixture->jobs, &credentials, staged.number, spec, strlen(spec), id, err);
    staged_closed(fixture->store, staged.number);
    return error;
}

static struct mob_id drop(struct fixture *fixture, const char *format, ...) MOB_PRINTF(2, 3);
static struct mob_id drop(struct fixture *fixture, const char *format, ...)
{
    char *spec;
    struct mob_id id;
    struct mob_error err = {0};
    va_list args;
    va_start(args, format);
    assert_true(vasprintf(&spec, format, args) >= 0);
    va_end(args);
    if (drop_as(fixture, getuid(), spec, &id, &err))
        fail_msg("%s: line %u, column %u: %s: %s", spec, err.line, err.column, err.field,
                 err.message);
    free(spec);
    return id;
}

/* A job of a shell command. */
static struct mob_id drop_shell(struct fixture *fixture, const char *command)
{
    return drop(fixture, "{\"command\": [\"sh\", \"-c\", \"%s\"]}", command);
}

struct ending {
    pthread_mutex_t lock;
    pthread_cond_t come;
    bool ended;
    enum job_state state;
};

static void note_end(void *argument, uint64_t number, enum job_state state)
{
    struct ending *ending = argument;
    (void)number;
    pthread_mutex_lock(&ending->lock);
    ending->ended = true;
    ending->state = state;
    pthread_cond_signal(&ending->come);
    pthread_mutex_unlock(&ending->lock);
}

static struct job_info info_of(struct fixture *fixture, const struct mob_id *id)
{
    struct job_info info;
    assert_int_equal(jobs_find(fixture->jobs, id, &info), 0);
    return info;
}

static enum job_state wait_end(struct fixture *fixture, const struct mob_id *id)
{
    struct ending ending = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, 0};
    struct job_info info = info_of(fixture, id);
    struct timespec limit;
    uint64_t token;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += (time_t)(LIMIT_NS / 1000000000u);
    assert_int_equal(jobs_wait(fixture->jobs, info.number, note_end, &ending, &token), 0);
    pthread_mutex_lock(&ending.lock);
    while (!ending.ended)
        assert_int_equal(pthread_cond_timedwait(&ending.come, &ending.lock, &limit), 0);
    pthread_mutex_unlock(&ending.lock);
    return ending.state;
}

static void wait_running(struct fixture *fixture, const struct mob_id *id)
{
    for (int i = 0; info_of(fixture, id).state != JOB_RUNNING; i++) {
        assert_true(i < 3000);
        usleep(10000);
    }
}

/* Until the job has written something, so that it is known to be at work. */
static void wait_output(struct fixture *fixture, const struct mob_id *id)
{
    struct job_info info = info_of(fixture, id);
    uint64_t bytes = 0, mtime;
    for (int i = 0; bytes == 0; i++) {
        assert_true(i < 3000);
        assert_int_equal(jobs_stream_size(fixture->jobs, info.number, 1, &bytes, &mtime), 0);
        usleep(10000);
    }
}

static void assert_text(struct fixture *fixture, const struct mob_id *id, enum job_file file,
                        const char *expected)
{
    char *text;
    size_t bytes;
    assert_int_equal(
        jobs_text(fixture->jobs, info_of(fixture, id).number, file, &text, &bytes), 0);
    assert_string_equal(text, expected);
    assert_int_equal(strlen(text), bytes);
    free(text);
}

/* "job ID " + what */
static void assert_error(struct fixture *fixture, const struct mob_id *id, const char *what)
{
    char digits[MOB_ID_STRING_BYTES], expected[1024];
    snprintf(expected, sizeof expected, "job %s %s\n", mob_id_format(id, digits), what);
    assert_text(fixture, id, JOB_FILE_ERROR, expected);
}

static void assert_object(struct fixture *fixture, const struct mob_id *id, const char *expected)
{
    char *content;
    size_t bytes;
    assert_int_equal(store_read_all(fixture->store, id, 1 << 20, &content, &bytes), 0);
    assert_string_equal(content, expected);
    free(content);
}

static void assert_failed_object(struct fixture *fixture, const struct mob_id *id, errint_t code,
                                 const char *expected)
{
    struct object_info info;
    char *sentence;
    assert_int_equal(store_find(fixture->store, id, &info), 0);
    assert_int_equal(info.state, OBJECT_FAILED);
    assert_int_equal(info.failure, code);
    assert_int_equal(store_failure(fixture->store, info.number, &sentence), 0);
    assert_string_equal(sentence, expected);
    free(sentence);
}

static void assert_stream(struct fixture *fixture, const struct mob_id *id, int which,
                          const char *expected)
{
    char buffer[4096];
    struct mob_id object;
    cleanup_fd int fd =
        jobs_stream(fixture->jobs, info_of(fixture, id).number, which, &object);
    if (fd == -EXDEV) {
        assert_object(fixture, &object, expected);
        return;
    }
    assert_true(fd >= 0);
    ssize_t got = mob_pread_full(fd, buffer, sizeof buffer - 1, 0);
    buffer[got] = '\0';
    assert_string_equal(buffer, expected);
}

static struct mob_id put(struct fixture *fixture, const char *content)
{
    struct staged_info staged;
    struct mob_id id;
    char name[32];
    snprintf(name, sizeof name, "object%u", fixture->names++);
    assert_int_equal(
        staged_create(fixture->store, NAMES_STAGING, name, 0644, 0, 0, 0, &staged), 0);
    assert_int_equal(staged_write(fixture->store, staged.number, content, strlen(content), 0),
                     strlen(content));
    assert_int_equal(staged_commit(fixture->store, staged.number, &id, NULL, NULL), 0);
    staged_closed(fixture->store, staged.number);
    return id;
}

static struct mob_id result_of(const struct mob_id *job)
{
    return mob_id_with_index(job, MOB_INDEX_FIRST_OUTPUT);
}

static bool work_dir_is_empty(struct fixture *fixture)
{
    char command[256];
    snprintf(command, sizeof command, "test \"$(ls -A %s)\" = empty", fixture->work);
    for (int i = 0; i < 300; i++) {
        if (system(command) == 0)
            return true;
        usleep(10000);
    }
    return false;
}

/* --- what a job becomes --- */

static void standard_output_is_the_result(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop_shell(fixture, "echo out; echo err >&2; pwd > /dev/stderr");
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED);
    struct job_info info = info_of(fixture, &id);
    struct mob_id result = result_of(&id);
    assert_true(info.has_result && mob_id_equal(&info.result, &result));
    assert_object(fixture, &info.result, "out\n");
    assert_stream(fixture, &id, 1, "out\n");
    assert_text(fixture, &id, JOB_FILE_STATE, "succeeded\n");
    assert_text(fixture, &id, JOB_FILE_EXIT_CODE, "0\n");
    assert_text(fixture, &id, JOB_FILE_ERROR, "");
    assert_text(fixture, &id, JOB_FILE_NODE, "here\n");
    assert_true(info.started_ns >= info.submitted_ns && info.ended_ns >= info.started_ns);
    assert_true(work_dir_is_empty(fixture));
}

static void named_outputs_are_objects_and_stdout_stays_readable(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id =
        drop(fixture, "{\"command\": [\"sh\", \"-c\", "
                      "\"echo a > $0; echo b > b; chmod 755 b; head -c 300000 /dev/zero > large; "
                      "echo printed\", {\"output\": \"a\"}], \"outputs\": [\"b\", \"large\"]}");
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED);
    struct job_info info = info_of(fixture, &id);
    struct mob_id object;
    struct object_info found;
    unsigned place;
    char name[256];
    assert_int_equal(info.outputs, 3);
    assert_int_equal(jobs_output(fixture->jobs, info.number, 0, name, &object), 0);
    assert_string_equal(name, "b");
    assert_object(fixture, &object, "b\n");
    assert_int_equal(store_find(fixture->store, &object, &found), 0);
    assert_int_equal(found.mode & 0777, 0555);
    assert_int_equal(jobs_find_output(fixture->jobs, info.number, "a", &place, &object), 0);
    assert_int_equal(place, 2);
    assert_object(fixture, &object, "a\n");
    assert_int_equal(jobs_find_output(fixture->jobs, info.number, "large", &place, &object), 0);
    assert_int_equal(store_find(fixture->store, &object, &found), 0);
    assert_int_equal(found.size, 300000);
    assert_int_equal(found.tier, TIER_MEMORY); /* moved, not copied */
    assert_stream(fixture, &id, 1, "printed\n");
    assert_int_equal(jobs_output(fixture->jobs, info.number, 3, name, &object), -ENOENT);
    assert_true(work_dir_is_empty(fixture));
}

static void a_failed_job_commits_none_of_its_outputs(void **state)
{
    struct fixture *fixture = *state;
    char digits[MOB_ID_STRING_BYTES], sentence[128];
    struct mob_id id = drop(fixture, "{\"command\": [\"sh\", \"-c\", \"echo a > a; echo out; "
                                     "echo err >&2; exit 3\"], \"outputs\": [\"a\"]}");
    assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
    struct mob_id result = result_of(&id);
    snprintf(sentence, sizeof sentence, "job %s exited with status 3", mob_id_format(&id, digits));
    assert_failed_object(fixture, &result, -EIO, sentence);
    assert_error(fixture, &id, "exited with status 3");
    assert_text(fixture, &id, JOB_FILE_EXIT_CODE, "3\n");
    assert_stream(fixture, &id, 1, "out\n");
    assert_stream(fixture, &id, 2, "err\n");
    id = drop_shell(fixture, "kill -KILL $$");
    assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
    assert_error(fixture, &id, "was ended by signal 9 (SIGKILL)");
    assert_text(fixture, &id, JOB_FILE_EXIT_CODE, "137\n");
    assert_stream(fixture, &id, 1, "");
}

static void what_is_wrong_with_an_output_is_said(void **state)
{
    struct fixture *fixture = *state;
    const struct {
        const char *command, *error;
    } cases[] = {
        {"true", ": output x was not written"},
        {"ln -s /etc/passwd x", ": output x is not a regular file"},
        {"mkdir x", ": output x is not a regular file"},
        {"mkfifo x", ": output x is not a regular file"},
        {"rmdir $PWD", ": output x was not written"},
    };
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(cases); i++) {
        char digits[MOB_ID_STRING_BYTES], expected[128];
        struct mob_id id =
            drop(fixture, "{\"command\": [\"sh\", \"-c\", \"%s\"], \"outputs\": [\"x\"]}",
                 cases[i].command);
        assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
        snprintf(expected, sizeof expected, "job %s%s\n", mob_id_format(&id, digits),
                 cases[i].error);
        assert_text(fixture, &id, JOB_FILE_ERROR, expected);
    }
    struct mob_id id = drop(fixture, "{\"command\": [\"sh\", \"-c\", \"echo 1 > x; ln x y; "
                                     "chmod 0 x .\"], \"outputs\": [\"x\", \"y\"]}");
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED); /* two names: copied */
    struct mob_id result = result_of(&id);
    assert_object(fixture, &result, "1\n");
    assert_true(work_dir_is_empty(fixture));
}

static void no_leftover_can_write_to_an_output(void **state)
{
    struct fixture *fixture = *state;
    /* This very process keeps the file open for writing: it is not of the job's tree. */
    char path[256];
    snprintf(path, sizeof path, "%s/keep", fixture->root);
    assert_int_equal(mkfifo(path, 0666), 0);
    struct mob_id id = drop(fixture,
                            "{\"command\": [\"sh\", \"-c\", \"head -c 300000 /dev/zero > x; "
                            "echo $PWD > %s; cat %s\"], \"outputs\": [\"x\"]}",
                            path, path);
    char directory[256] = "", file[512];
    cleanup_file FILE *in = fopen(path, "r");
    assert_non_null(fgets(directory, sizeof directory, in));
    directory[strcspn(directory, "\n")] = '\0';
    snprintf(file, sizeof file, "%s/x", directory);
    cleanup_fd int writer = open(file, O_WRONLY | O_CLOEXEC);
    assert_true(writer >= 0);
    mob_cleanup_file(&in); /* else opening it below would not wait for the job's cat */
    cleanup_fd int out = open(path, O_WRONLY | O_CLOEXEC);
    mob_cleanup_fd(&out);
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED);
    assert_int_equal(pwrite(writer, "changed", 7, 0), 7);
    struct mob_id result = result_of(&id);
    char *content;
    size_t bytes;
    assert_int_equal(store_read_all(fixture->store, &result, 1 << 20, &content, &bytes), 0);
    assert_int_equal(bytes, 300000);
    assert_int_equal(content[0], 0);
    free(content);
}

static void a_script_runs_as_it_is(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop(fixture, "#!/bin/sh -e\n"
                                     "#MOBULA outputs = a\n"
                                     "#MOBULA env.WHO = world\n"
                                     "#MOBULA stdin = given\n"
                                     "read line || true\n"
                                     "echo \"$line $WHO $MOBULA $#\" > a\n");
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED);
    struct mob_id result = result_of(&id);
    assert_object(fixture, &result, "given world " MOUNT " 0\n");
    assert_true(work_dir_is_empty(fixture));
}

static void arguments_become_paths_and_environment_is_sane(void **state)
{
    struct fixture *fixture = *state;
    char digits[MOB_ID_STRING_BYTES], expected[512], job[MOB_ID_STRING_BYTES];
    struct mob_id object = put(fixture, "content");
    mob_id_format(&object, digits);
    struct mob_id id = drop(fixture,
                            "{\"command\": [\"sh\", \"-c\", \"echo $0 $1; echo $MOBULA_JOB $X $HOME "
                            "$LANG\", {\"object\": \"%s\"}, {\"ref\": \"%s\"}],"
                            "\"env\": {\"X\": \"y\", \"HOME\": \"/h\"}, \"cwd\": \"/usr\"}",
                            digits, digits);
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED);
    struct mob_id result = result_of(&id);
    snprintf(expected, sizeof expected, MOUNT "/objects/%s " MOUNT "/objects/%s\n%s y /h %s\n",
             digits, digits, mob_id_format(&id, job),
             getenv("LANG") && *getenv("LANG") ? getenv("LANG") : "C.UTF-8");
    assert_object(fixture, &result, expected);
}

static void a_job_belongs_to_its_user(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id;
    struct mob_error err = {0};
    const char *spec = "{\"command\": [\"sh\", \"-c\", \"id -u; id -un; echo x > x; stat -c %u .; "
                       "echo again > /dev/stdout\"], \"outputs\": [\"x\"]}";
    if (getuid() != 0) {
        assert_int_equal(drop_as(fixture, getuid() + 1, spec, &id, &err), -EINVAL);
        return;
    }
    assert_int_equal(drop_as(fixture, 65534, spec, &id, &err), 0);
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED);
    struct mob_id result = result_of(&id);
    assert_object(fixture, &result, "x\n");
    assert_stream(fixture, &id, 1, "again\n"); /* opened anew: cut to nothing, as for any file */
}

static void what_cannot_start_is_told(void **state)
{
    struct fixture *fixture = *state;
    const struct {
        const char *spec, *error, *exit_code;
    } cases[] = {
        {"{\"command\": [\"no-such-program\"]}", "could not run no-such-program: command not found", "127\n"},
        {"{\"command\": [\"/etc/passwd\"]}", "could not run /etc/passwd: Permission denied", "126\n"},
        {"{\"command\": [\"true\"], \"cwd\": \"/no/where\"}",
         "could not enter its working directory /no/where: No such file or directory", "126\n"},
        {"#!/no/interpreter\n", "could not run /no/interpreter: command not found", "127\n"},
    };
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(cases); i++) {
        struct mob_id id = drop(fixture, "%s", cases[i].spec);
        assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
        assert_error(fixture, &id, cases[i].error);
        assert_text(fixture, &id, JOB_FILE_EXIT_CODE, cases[i].exit_code);
    }
}

static void a_bad_spec_is_rejected_where_it_can_be_read(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id;
    struct mob_error err;
    const struct {
        const char *spec, *error;
    } cases[] = {
        {"{\"command\": [\"true\"],\n  \"tmeout\": 1}", "line 2, column 3: tmeout: unknown field"},
        {"{\"command\": [\"true\", {\"object\": \"00112233445566778899aabbccddeeff00000001\"}]}",
         "line 1, column 22: command[1]: there is no object 0011"},
        {"{\"command\": [\"true\"],\n\"after\": [\"00112233445566778899aabbccddeeff00000000\"]}",
         "line 2, column 11: after[0]: there is no job 0011"},
        {"{\"command\": [\"true\"], \"resources\": {\"cpu\": 3}}",
         "line 1, column 36: resources.cpu: asks for 3 CPUs; this node has 2"},
    };
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(cases); i++) {
        char *text;
        size_t bytes;
        assert_int_equal(drop_as(fixture, getuid(), cases[i].spec, &id, &err), -EINVAL);
        struct job_info info = info_of(fixture, &id);
        assert_int_equal(info.state, JOB_REJECTED);
        assert_false(info.has_result);
        assert_int_equal(
            jobs_text(fixture->jobs, info.number, JOB_FILE_ERROR, &text, &bytes), 0);
        if (strncmp(text, cases[i].error, strlen(cases[i].error)) != 0)
            fail_msg("'%s' is not '%s'", text, cases[i].error);
        free(text);
        assert_text(fixture, &id, JOB_FILE_SPEC, cases[i].spec);
    }
}

/* --- waiting for each other --- */

#define CHAIN 300

static void a_chain_dropped_at_once_ends_in_either_way(void **state)
{
    struct fixture *fixture = *state;
    for (int fails = 0; fails < 2; fails++) {
        struct mob_id ids[CHAIN];
        char first[MOB_ID_STRING_BYTES], digits[MOB_ID_STRING_BYTES], cause[128], error[256];
        ids[0] = drop_shell(fixture, fails ? "sleep 0.3; exit 3" : "sleep 0.3");
        for (int i = 1; i < CHAIN; i++) {
            struct mob_id needed = result_of(&ids[i - 1]);
            ids[i] = drop(fixture, "{\"command\": [\"true\", {\"object\": \"%s\"}]}",
                          mob_id_format(&needed, digits));
        }
        enum job_state last = wait_end(fixture, &ids[CHAIN - 1]);
        assert_int_equal(last, fails ? JOB_FAILED : JOB_SUCCEEDED);
        if (!fails)
            continue;
        struct mob_id result = result_of(&ids[CHAIN - 1]), needed = result_of(&ids[CHAIN - 2]);
        snprintf(cause, sizeof cause, "job %s exited with status 3", mob_id_format(&ids[0], first));
        assert_failed_object(fixture, &result, -EIO, cause);
        snprintf(error, sizeof error, "needs %s, whose cause is: %s",
                 mob_id_format(&needed, digits), cause);
        assert_error(fixture, &ids[CHAIN - 1], error);
        assert_text(fixture, &ids[CHAIN - 1], JOB_FILE_EXIT_CODE, "125\n");
    }
}

static void a_failing_chain_of_a_hundred_thousand_needs_no_stack(void **state)
{
    struct fixture *fixture = *state;
    enum { LENGTH = 100000 };
    char digits[MOB_ID_STRING_BYTES], spec[128];
    struct job_credentials credentials = {getuid(), getgid(), 022};
    struct mob_id first = drop_shell(fixture, "echo begun; sleep 60; exit 3"), id = first;
    for (int i = 0; i < LENGTH; i++) {
        struct mob_id needed = result_of(&id);
        int bytes = snprintf(spec, sizeof spec, "{\"command\": [\"true\", {\"object\": \"%s\"}]}",
                             mob_id_format(&needed, digits));
        assert_int_equal(
            jobs_submit(fixture->jobs, &credentials, 0, spec, (size_t)bytes, &id, NULL), 0);
    }
    struct job_info info = info_of(fixture, &first);
    wait_output(fixture, &first);
    assert_int_equal(jobs_control(fixture->jobs, info.number, getuid(), "kill -KILL\n", 11, NULL), 0);
    assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
    char cause[128];
    struct mob_id result = result_of(&id);
    snprintf(cause, sizeof cause, "job %s was ended by signal 9 (SIGKILL)",
             mob_id_format(&first, digits));
    assert_failed_object(fixture, &result, -EIO, cause);
}

static void after_waits_for_success(void **state)
{
    struct fixture *fixture = *state;
    char digits[MOB_ID_STRING_BYTES], error[256];
    for (int fails = 0; fails < 2; fails++) {
        struct mob_id first = drop_shell(fixture, fails ? "exit 1" : "sleep 0.2");
        struct mob_id second = drop(fixture, "{\"command\": [\"true\"], \"after\": [\"%s\"]}",
                                    mob_id_format(&first, digits));
        assert_int_equal(wait_end(fixture, &second), fails ? JOB_FAILED : JOB_SUCCEEDED);
        assert_int_equal(wait_end(fixture, &first), fails ? JOB_FAILED : JOB_SUCCEEDED);
        if (!fails)
            continue;
        snprintf(error, sizeof error, "is after %s, whose cause is: job %s exited with status 1",
                 digits, digits);
        assert_error(fixture, &second, error);
    }
}

static void an_argument_is_held_until_the_job_ends(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id object = put(fixture, "content");
    struct object_info info;
    char digits[MOB_ID_STRING_BYTES], *text = NULL, name[32];
    struct mob_id id = drop(fixture, "{\"command\": [\"sleep\", \"60\"], \"refs\": [\"%s\"]}",
                            mob_id_format(&object, digits));
    snprintf(name, sizeof name, "object%u", fixture->names - 2);
    assert_int_equal(names_unlink(fixture->store, NAMES_STAGING, name, NULL, NULL), 0);
    assert_int_equal(store_find(fixture->store, &object, &info), 0);
    assert_int_equal(info.links, 1);
    assert_int_equal(jobs_holders(fixture->jobs, &object, &text), 0);
    assert_non_null(strstr(text, " argument\n"));
    free(text);
    wait_running(fixture, &id);
    assert_int_equal(
        jobs_control(fixture->jobs, info_of(fixture, &id).number, getuid(), "cancel", 6, NULL), 0);
    assert_int_equal(wait_end(fixture, &id), JOB_CANCELLED);
    for (int i = 0; store_find(fixture->store, &object, &info) == 0; i++) {
        assert_true(i < 500);
        usleep(10000);
    }
}

/* --- control, time, retries --- */

static void cancel_ends_what_runs_and_what_waits(void **state)
{
    struct fixture *fixture = *state;
    char digits[MOB_ID_STRING_BYTES], cause[128];
    struct mob_error err;
    struct mob_id running = drop_shell(fixture, "echo begun; trap '' TERM; setsid sleep 60; sleep 60");
    struct mob_id needed = result_of(&running);
    struct mob_id waiting = drop(fixture, "{\"command\": [\"cat\"], \"stdin\": {\"object\": \"%s\"}}",
                                 mob_id_format(&needed, digits));
    struct mob_id other = drop(fixture, "{\"command\": [\"cat\"], \"stdin\": {\"object\": \"%s\"}}",
                               digits);
    uint64_t number = info_of(fixture, &waiting).number;
    assert_int_equal(jobs_control(fixture->jobs, number, getuid() + 1, "cancel", 6, &err),
                     getuid() + 1 == 0 ? 0 : -EPERM);
    assert_int_equal(jobs_control(fixture->jobs, number, getuid(), "stop", 4, &err), -EINVAL);
    assert_int_equal(jobs_control(fixture->jobs, number, getuid(), "kill -NOPE", 10, &err), -EINVAL);
    assert_int_equal(jobs_control(fixture->jobs, number, getuid(), "kill -9", 7, &err), -ESRCH);
    assert_int_equal(jobs_control(fixture->jobs, number, getuid(), "cancel\n", 7, &err), 0);
    assert_int_equal(wait_end(fixture, &waiting), JOB_CANCELLED);
    assert_error(fixture, &waiting, "was cancelled");
    assert_int_equal(jobs_control(fixture->jobs, number, getuid(), "cancel\n", 7, &err), -ESRCH);
    assert_int_equal(jobs_control(fixture->jobs, UINT64_C(1) << 40, 0, "cancel", 6, &err), -ENOENT);
    wait_output(fixture, &running);
    assert_int_equal(
        jobs_control(fixture->jobs, info_of(fixture, &running).number, 0, "cancel", 6, &err), 0);
    assert_int_equal(wait_end(fixture, &running), JOB_CANCELLED);
    snprintf(cause, sizeof cause, "job %s was cancelled", mob_id_format(&running, digits));
    assert_failed_object(fixture, &needed, -ECANCELED, cause);
    assert_stream(fixture, &running, 1, "begun\n");
    assert_int_equal(wait_end(fixture, &other), JOB_FAILED);
}

static void a_timeout_ends_a_job(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop(fixture, "{\"command\": [\"sleep\", \"60\"], \"timeout\": \"300ms\"}");
    assert_int_equal(wait_end(fixture, &id), JOB_TIMED_OUT);
    struct object_info info;
    struct mob_id result = result_of(&id);
    assert_int_equal(store_find(fixture->store, &result, &info), 0);
    assert_int_equal(info.failure, -ETIMEDOUT);
    assert_error(fixture, &id, "ran past its timeout of 300 ms");
    assert_text(fixture, &id, JOB_FILE_STATE, "timed-out\n");
}

static void a_failed_run_is_tried_again_where_the_spec_says_so(void **state)
{
    struct fixture *fixture = *state;
    char digits[256];
    snprintf(digits, sizeof digits, "%s/tries", fixture->root);
    struct mob_id id = drop(fixture,
                            "{\"command\": [\"sh\", \"-c\", \"echo x >> %s; wc -l < %s; "
                            "[ $(wc -l < %s) = 3 ]\"], \"retries\": 2, \"retry_on\": [\"exit\"]}",
                            digits, digits, digits);
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED);
    struct mob_id result = result_of(&id);
    assert_object(fixture, &result, "3\n"); /* only the last try's output */
    id = drop(fixture, "{\"command\": [\"false\"], \"retries\": 2}");
    assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
}

static void cpus_bound_what_runs_and_a_big_job_is_not_starved(void **state)
{
    struct fixture *fixture = *state;
    struct jobs_usage usage;
    struct mob_id ids[20], big = {{0}};
    for (size_t i = 0; i < 20; i++) {
        ids[i] = drop_shell(fixture, "sleep 0.05");
        if (i == 5)
            big = drop(fixture, "{\"command\": [\"true\"], \"resources\": {\"cpu\": 2}}");
    }
    while (info_of(fixture, &ids[19]).state == JOB_QUEUED) {
        jobs_usage(fixture->jobs, &usage);
        assert_true(usage.running <= 2 && usage.cpus_used <= 2);
        usleep(1000);
    }
    for (size_t i = 0; i < 20; i++)
        assert_int_equal(wait_end(fixture, &ids[i]), JOB_SUCCEEDED);
    assert_int_equal(wait_end(fixture, &big), JOB_SUCCEEDED);
    assert_true(info_of(fixture, &big).started_ns < info_of(fixture, &ids[7]).started_ns);
    /* Priorities: what is more urgent passes what waits. */
    struct mob_id blocker = drop(fixture, "{\"command\": [\"sleep\", \"0.3\"], \"resources\": {\"cpu\": 2}}");
    struct mob_id late = drop(fixture, "{\"command\": [\"true\"], \"resources\": {\"cpu\": 2}, \"priority\": 19}");
    struct mob_id early = drop(fixture, "{\"command\": [\"true\"], \"resources\": {\"cpu\": 2}, \"priority\": -20}");
    assert_int_equal(wait_end(fixture, &late), JOB_SUCCEEDED);
    assert_int_equal(wait_end(fixture, &blocker), JOB_SUCCEEDED);
    assert_true(info_of(fixture, &early).started_ns < info_of(fixture, &late).started_ns);
}

static void a_job_without_names_goes_when_it_has_ended(void **state)
{
    struct fixture *fixture = *state;
    struct job_info info;
    struct object_info object;
    struct mob_id id = drop_shell(fixture, "sleep 0.3; echo x"), job;
    struct mob_id result = result_of(&id);
    bool was_job;
    char name[32];
    snprintf(name, sizeof name, "job%u", fixture->names - 1);
    assert_int_equal(names_unlink(fixture->store, NAMES_RUN, name, &was_job, &job), 0);
    assert_true(was_job && mob_id_equal(&job, &id));
    jobs_name_dropped(fixture->jobs, &job);
    assert_int_equal(jobs_find(fixture->jobs, &id, &info), 0); /* it ends all the same */
    for (int i = 0; jobs_find(fixture->jobs, &id, &info) == 0; i++) {
        assert_true(i < 1000);
        usleep(10000);
    }
    assert_int_equal(store_find(fixture->store, &result, &object), -ENOENT);
    /* One with another name stays. */
    id = drop_shell(fixture, "echo x");
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED);
    jobs_name_added(fixture->jobs, &id);
    jobs_name_dropped(fixture->jobs, &id);
    assert_int_equal(jobs_find(fixture->jobs, &id, &info), 0);
    jobs_name_dropped(fixture->jobs, &id);
    assert_int_equal(jobs_find(fixture->jobs, &id, &info), -ENOENT);
}

static void jobs_are_listed_once_each(void **state)
{
    struct fixture *fixture = *state;
    enum { COUNT = 50 };
    struct job_info infos[7];
    uint64_t cursors[7], cursor = 0;
    size_t seen = 0, got;
    for (int i = 0; i < COUNT; i++)
        drop_shell(fixture, "true");
    while ((got = jobs_list(fixture->jobs, cursor, infos, cursors, 7)) > 0) {
        seen += got;
        cursor = cursors[got - 1];
    }
    assert_int_equal(seen, COUNT);
}

/* --- servers die, and come again --- */

static void a_killed_server_loses_nothing(void **state)
{
    struct fixture *fixture = make_fixture(state);
    int pipes[2];
    struct mob_id ids[6];
    assert_int_equal(pipe(pipes), 0);
    pid_t server = fork();
    if (server == 0) { /* the server that will be killed */
        char digits[MOB_ID_STRING_BYTES];
        open_server(fixture);
        ids[0] = drop_shell(fixture, "echo begun; sleep 1; echo adopted");
        ids[1] = drop_shell(fixture, "echo begun; echo short; sleep 0.3");
        struct mob_id needed = result_of(&ids[0]);
        ids[2] = drop(fixture, "{\"command\": [\"true\", {\"object\": \"%s\"}]}",
                      mob_id_format(&needed, digits));
        ids[3] = drop_shell(fixture, "exit 5");
        ids[4] = drop(fixture, "{\"command\": [\"sh\", \"-c\", \"echo o > o\"], \"outputs\": [\"o\"],"
                               "\"after\": [\"%s\"]}",
                      mob_id_format(&ids[1], digits));
        ids[5] = drop(fixture, "{\"command\": [\"true\"], \"after\": [\"%s\"]}",
                      mob_id_format(&ids[3], digits));
        wait_output(fixture, &ids[0]);
        wait_output(fixture, &ids[1]);
        if (write(pipes[1], ids, sizeof ids) != sizeof ids)
            _exit(1);
        pause();
    }
    assert_int_equal(mob_read_full(pipes[0], ids, sizeof ids), sizeof ids);
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
    close(pipes[0]);
    close(pipes[1]);
    struct object_info before, after;
    usleep(500000); /* the short one ends while nobody is there */
    open_server(fixture);
    struct mob_id result = result_of(&ids[0]);
    assert_int_equal(store_find(fixture->store, &result, &before), 0);
    assert_int_equal(wait_end(fixture, &ids[0]), JOB_SUCCEEDED);
    assert_int_equal(store_find(fixture->store, &result, &after), 0);
    assert_int_equal(before.number, after.number);
    assert_object(fixture, &result, "begun\nadopted\n");
    result = result_of(&ids[1]);
    assert_int_equal(wait_end(fixture, &ids[1]), JOB_SUCCEEDED);
    assert_object(fixture, &result, "begun\nshort\n");
    assert_int_equal(wait_end(fixture, &ids[2]), JOB_SUCCEEDED);
    assert_int_equal(wait_end(fixture, &ids[3]), JOB_FAILED);
    assert_int_equal(wait_end(fixture, &ids[4]), JOB_SUCCEEDED);
    result = result_of(&ids[4]);
    assert_object(fixture, &result, "o\n");
    assert_int_equal(wait_end(fixture, &ids[5]), JOB_FAILED);
    /* And once more, now that all have ended. */
    close_server(fixture, false);
    open_server(fixture);
    char cause[128], digits[MOB_ID_STRING_BYTES];
    assert_object(fixture, &result, "o\n");
    assert_text(fixture, &ids[0], JOB_FILE_STATE, "succeeded\n");
    assert_error(fixture, &ids[3], "exited with status 5");
    assert_text(fixture, &ids[3], JOB_FILE_EXIT_CODE, "5\n");
    snprintf(cause, sizeof cause, "job %s exited with status 5", mob_id_format(&ids[3], digits));
    result = result_of(&ids[5]);
    assert_failed_object(fixture, &result, -EIO, cause);
    assert_true(work_dir_is_empty(fixture));
}

static void an_orderly_down_runs_jobs_again_at_the_next_up(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop_shell(fixture, "echo begun; sleep 1; echo done");
    wait_output(fixture, &id);
    close_server(fixture, true);
    close(fixture->launcher_fd);
    waitpid(fixture->launcher, NULL, 0);
    fixture->launcher = fork_launcher(&fixture->launcher_fd);
    open_server(fixture);
    assert_int_equal(wait_end(fixture, &id), JOB_SUCCEEDED);
    struct mob_id result = result_of(&id);
    assert_object(fixture, &result, "begun\ndone\n");
}

static void a_run_lost_with_its_launcher_is_run_again_once(void **state)
{
    struct fixture *fixture = *state;
    struct mob_id id = drop_shell(fixture, "echo begun; sleep 60");
    struct mob_id never = drop(fixture, "{\"command\": [\"sh\", \"-c\", \"echo begun; sleep 60\"],"
                                        "\"retry_on\": []}");
    for (int round = 0; round < 2; round++) {
        wait_output(fixture, &id);
        if (round == 0)
            wait_output(fixture, &never);
        if (round == 1)
            usleep(2200000); /* long enough to be on disk as running */
        close_server(fixture, false);
        kill(fixture->launcher, SIGKILL);
        close(fixture->launcher_fd);
        waitpid(fixture->launcher, NULL, 0);
        fixture->launcher = fork_launcher(&fixture->launcher_fd);
        open_server(fixture);
        assert_int_equal(wait_end(fixture, &never), JOB_FAILED);
    }
    assert_error(fixture, &never, "was running when its node stopped, and may not run again");
    assert_int_equal(wait_end(fixture, &id), JOB_FAILED);
    assert_error(fixture, &id, "was running when its node stopped, and may not run again");
}

static void records_are_checked_before_they_are_believed(void **state)
{
    (void)state;
    struct job job = {.number = 77, .state = JOB_FAILED, .umask = 022, .output_count = 2};
    struct job_end end = {.state = JOB_FAILED, .failure = -EIO, .error = "an error", .exit_code = 3};
    char *names[] = {"one", "two"};
    job.outputs = names;
    uint8_t *data;
    size_t bytes;
    struct job *read;
    assert_int_equal(record_encode(&job, &end, &data, &bytes), 0);
    assert_int_equal(record_decode(data, bytes, 77, &read), 0);
    assert_string_equal(read->outputs[1], "two");
    assert_string_equal(read->end->error, "an error");
    assert_int_equal(read->end->exit_code, 3);
    job_free(read);
    assert_int_equal(record_decode(data, bytes, 78, &read), -EBADMSG);
    for (size_t i = 0; i < bytes; i++)
        for (int bit = 0; bit < 8; bit++) {
            data[i] ^= (uint8_t)(1 << bit);
            assert_int_equal(record_decode(data, bytes, 77, &read), -EBADMSG);
            data[i] ^= (uint8_t)(1 << bit);
        }
    for (size_t cut = 0; cut < bytes; cut++)
        assert_int_equal(record_decode(data, cut, 77, &read), -EBADMSG);
    free(data);
}

static void removal_follows_no_link_and_needs_no_depth(void **state)
{
    struct fixture *fixture = *state;
    char command[512];
    snprintf(command, sizeof command,
             "cd %s && mkdir outside tree && echo kept > outside/file && ln -s ../outside tree/link "
             "&& ln -s /etc tree/etc && mkdir -p tree/a/b/c && touch tree/a/b/c/f && chmod 0 tree/a/b "
             "&& cd tree && i=0 && while [ $i -lt 2000 ]; do mkdir d && cd d && i=$((i+1)) || exit 1;"
             " done; touch bottom",
             fixture->root);
    assert_int_equal(system(command), 0);
    cleanup_fd int fd = open(fixture->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(scratch_remove(fd, "tree"), 0);
    assert_int_equal(faccessat(fd, "tree", F_OK, AT_SYMLINK_NOFOLLOW), -1);
    assert_int_equal(faccessat(fd, "outside/file", F_OK, 0), 0);
    assert_int_equal(scratch_remove(fd, "no-such-tree"), 0);
    snprintf(command, sizeof command, "test -z \"$(ls -A %s | grep removed)\"", fixture->root);
    assert_int_equal(system(command), 0);
}

#define JOB_TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        JOB_TEST(standard_output_is_the_result),
        JOB_TEST(named_outputs_are_objects_and_stdout_stays_readable),
        JOB_TEST(a_failed_job_commits_none_of_its_outputs),
        JOB_TEST(what_is_wrong_with_an_output_is_said),
        JOB_TEST(no_leftover_can_write_to_an_output),
        JOB_TEST(a_script_runs_as_it_is),
        JOB_TEST(arguments_become_paths_and_environment_is_sane),
        JOB_TEST(a_job_belongs_to_its_user),
        JOB_TEST(what_cannot_start_is_told),
        JOB_TEST(a_bad_spec_is_rejected_where_it_can_be_read),
        JOB_TEST(a_chain_dropped_at_once_ends_in_either_way),
        JOB_TEST(a_failing_chain_of_a_hundred_thousand_needs_no_stack),
        JOB_TEST(after_waits_for_success),
        JOB_TEST(an_argument_is_held_until_the_job_ends),
        JOB_TEST(cancel_ends_what_runs_and_what_waits),
        JOB_TEST(a_timeout_ends_a_job),
        JOB_TEST(a_failed_run_is_tried_again_where_the_spec_says_so),
        JOB_TEST(cpus_bound_what_runs_and_a_big_job_is_not_starved),
        JOB_TEST(a_job_without_names_goes_when_it_has_ended),
        JOB_TEST(jobs_are_listed_once_each),
        cmocka_unit_test_teardown(a_killed_server_loses_nothing, tear_down),
        JOB_TEST(an_orderly_down_runs_jobs_again_at_the_next_up),
        JOB_TEST(a_run_lost_with_its_launcher_is_run_again_once),
        cmocka_unit_test(records_are_checked_before_they_are_believed),
        JOB_TEST(removal_follows_no_link_and_needs_no_depth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
