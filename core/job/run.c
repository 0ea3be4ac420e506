/* Starting a run: its files in the work directories, its arguments and environment, the request to
 * the launcher. Nothing here opens a path under the mount: this process serves it, and would wait
 * for itself. */
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "core/job/job_internal.h"
#include "core/job/launcher_client.h"
#include "core/job/users.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

char *work_name(const struct job *job, enum work_file file, char out[WORK_NAME_BYTES])
{
    static const char *const ends[] = {"", ".out", ".err", ".script"};
    snprintf(out, WORK_NAME_BYTES, "%llx-%u%s", (unsigned long long)job->number, job->attempt,
             ends[file]);
    return out;
}

void job_clean(struct jobs *jobs, const struct job *job)
{
    char name[WORK_NAME_BYTES];
    int streams = work_of(jobs, job, WORK_STDOUT)->fd,
        scratch = work_of(jobs, job, WORK_SCRATCH)->fd;
    unlinkat(streams, work_name(job, WORK_STDOUT, name), 0);
    unlinkat(streams, work_name(job, WORK_STDERR, name), 0);
    if (job->spec && job->spec->script_bytes)
        unlinkat(scratch, work_name(job, WORK_SCRIPT, name), 0);
    cleaner_remove(&jobs->cleaner, scratch, work_name(job, WORK_SCRATCH, name));
}

/* --- where a run's files are --- */

/* The streams may become as large as the disk; the rest goes where it is fastest, as long as memory
 * is not short. A disk without room takes only what memory can't. */
static void choose_places(struct jobs *jobs, struct job *job)
{
    bool is_there = jobs->work[WORK_ON_DISK].fd >= 0;
    bool plenty = !is_there || store_memory_is_plenty(jobs->store);
    bool room = is_there && store_disk_has_room(jobs->store);
    bool reachable = jobs->disk_is_open || job->uid == jobs->uid;
    job->stream_place = is_there && (room || !plenty) ? WORK_ON_DISK : WORK_IN_MEMORY;
    job->scratch_place = room && !plenty && reachable ? WORK_ON_DISK : WORK_IN_MEMORY;
}

static bool find_file(struct jobs *jobs, const struct job *job, enum work_file file, uint8_t *place)
{
    char name[WORK_NAME_BYTES];
    work_name(job, file, name);
    for (uint8_t i = 0; i < WORK_PLACES; i++) {
        if (jobs->work[i].fd < 0 || faccessat(jobs->work[i].fd, name, F_OK, AT_SYMLINK_NOFOLLOW))
            continue;
        *place = i;
        return true;
    }
    return false;
}

bool job_find_files(struct jobs *jobs, struct job *job)
{
    /* A user may have removed the scratch directory; the script is beside it. */
    if (!find_file(jobs, job, WORK_SCRATCH, &job->scratch_place))
        find_file(jobs, job, WORK_SCRIPT, &job->scratch_place);
    return find_file(jobs, job, WORK_STDOUT, &job->stream_place);
}

const char *job_full_dir(struct jobs *jobs, const struct job *job)
{
    /* Who writes in pieces of this size may have met the end before the last byte was taken. */
    enum { NEARLY_NOTHING = 1 << 20 };
    const struct work_dir *dirs[] = {work_of(jobs, job, WORK_STDOUT),
                                     work_of(jobs, job, WORK_SCRATCH)};
    struct statvfs info;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(dirs); i++)
        if (fstatvfs(dirs[i]->fd, &info) == 0 && info.f_blocks &&
            (uint64_t)info.f_bavail * info.f_frsize < NEARLY_NOTHING)
            return dirs[i]->path;
    return NULL;
}

/* --- strings --- */

struct strings {
    char **list; /* terminated by NULL */
    size_t count, capacity;
    bool failed;
};

static void strings_take(struct strings *strings, char *text)
{
    if (text && strings->count + 1 >= strings->capacity) {
        size_t capacity = strings->capacity ? strings->capacity * 2 : 32;
        char **larger = reallocarray(strings->list, capacity, sizeof *larger);
        if (larger) {
            strings->list = larger;
            strings->capacity = capacity;
        }
    }
    if (!text || strings->count + 1 >= strings->capacity) {
        strings->failed = true;
        free(text);
        return;
    }
    strings->list[strings->count++] = text;
    strings->list[strings->count] = NULL;
}

static void strings_add(struct strings *strings, const char *format, ...) MOB_PRINTF(2, 3);
static void strings_add(struct strings *strings, const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    va_end(args);
    strings_take(strings, text);
}

static void strings_free(struct strings *strings)
{
    for (size_t i = 0; i < strings->count; i++)
        free(strings->list[i]);
    free(strings->list);
}

static void add_environment(struct jobs *jobs, const struct job *job, const struct user *user,
                            struct strings *out)
{
    const char *language = getenv("LANG");
    const char *names[] = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG"};
    const char *values[] = {DEFAULT_PATH, user->home,
                            user->name,   user->name,
                            user->shell,  language && *language ? language : "C.UTF-8"};
    char digits[MOB_ID_STRING_BYTES];
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(names); i++) {
        size_t length = strlen(names[i]), set = 0;
        while (set < job->spec->env_count && (strncmp(job->spec->env[set], names[i], length) ||
                                              job->spec->env[set][length] != '='))
            set++;
        if (set == job->spec->env_count)
            strings_add(out, "%s=%s", names[i], values[i]);
    }
    for (size_t i = 0; i < job->spec->env_count; i++)
        strings_add(out, "%s", job->spec->env[i]);
    strings_add(out, "MOBULA=%s", jobs->mount_path);
    strings_add(out, "MOBULA_JOB=%s", mob_id_format(&job->id, digits));
}

static void add_arguments(struct jobs *jobs, const struct job *job, struct strings *out)
{
    const struct job_spec *spec = job->spec;
    char digits[MOB_ID_STRING_BYTES], name[WORK_NAME_BYTES];
    if (spec->script_bytes) { /* as the kernel would run it, but also where files can't be executed
                               */
        strings_add(out, "%s", spec->interpreter);
        if (spec->interpreter_argument)
            strings_add(out, "%s", spec->interpreter_argument);
        strings_add(out, "%s/%s", work_of(jobs, job, WORK_SCRIPT)->path,
                    work_name(job, WORK_SCRIPT, name));
        return;
    }
    for (size_t i = 0; i < spec->word_count; i++) {
        const struct spec_word *word = &spec->words[i];
        if (word->kind == SPEC_WORD_TEXT)
            strings_add(out, "%s", word->text);
        else if (word->kind == SPEC_WORD_OUTPUT)
            strings_add(out, "%s/%s/%s", work_of(jobs, job, WORK_SCRATCH)->path,
                        work_name(job, WORK_SCRATCH, name), job->outputs[word->output]);
        else
            strings_add(out, "%s/objects/%s", jobs->mount_path, mob_id_format(&word->id, digits));
    }
}

/* Programs of the system can be begun by vfork(2): opening them does not wait for a server such as
 * this one. Nor does a scratch directory in memory, while one on a disk may wait for that. */
static bool is_system_path(struct jobs *jobs, const char *path)
{
    static const char *const places[] = {"/usr/", "/bin/", "/sbin/"};
    size_t mount = strlen(jobs->mount_path);
    if (!strncmp(path, jobs->mount_path, mount) || strstr(path, "/../"))
        return false;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(places); i++)
        if (!strncmp(path, places[i], strlen(places[i])) &&
            strncmp(jobs->mount_path, places[i], strlen(places[i])) != 0)
            return true;
    return false;
}

static bool has_plain_paths(struct jobs *jobs, const struct job *job, const char *program)
{
    if (job->spec->cwd || job->spec->stdin_kind == SPEC_STDIN_OBJECT ||
        job->scratch_place == WORK_ON_DISK)
        return false;
    if (strchr(program, '/'))
        return is_system_path(jobs, program);
    for (size_t i = 0; i < job->spec->env_count; i++)
        if (!strncmp(job->spec->env[i], "PATH=", 5))
            return false;
    return true;
}

/* --- files --- */

/* The user's own, so that /dev/stdout can be opened anew; taken back before it becomes an object.
 */
static int make_file(struct jobs *jobs, const struct job *job, enum work_file file, mode_t mode)
{
    char name[WORK_NAME_BYTES];
    int fd = openat(work_of(jobs, job, file)->fd, work_name(job, file, name),
                    O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return -errno;
    if (jobs->uid == 0 && fchown(fd, job->uid, job->gid)) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

static errint_t make_scratch(struct jobs *jobs, const struct job *job)
{
    char name[WORK_NAME_BYTES];
    int work_fd = work_of(jobs, job, WORK_SCRATCH)->fd;
    work_name(job, WORK_SCRATCH, name);
    if (mkdirat(work_fd, name, 0700))
        return -errno;
    if (jobs->uid == 0 && job->uid != 0 &&
        fchownat(work_fd, name, job->uid, job->gid, AT_SYMLINK_NOFOLLOW))
        return -errno;
    return 0;
}

static errint_t make_script(struct jobs *jobs, const struct job *job)
{
    struct record_key key = record_key(job->number);
    cleanup_free void *text = NULL;
    size_t bytes;
    errint_t error =
        store_table_get(jobs->store, STORE_TABLE_JOB_DATA, key.bytes, sizeof key, &text, &bytes);
    if (error)
        return error;
    cleanup_fd int fd = make_file(jobs, job, WORK_SCRIPT, 0500);
    return fd < 0 ? fd : mob_write_full(fd, text, bytes);
}

static errint_t make_files(struct jobs *jobs, const struct job *job, int *stdout_fd, int *stderr_fd,
                           struct mob_error *err)
{
    enum work_file at = WORK_SCRATCH;
    errint_t error = 0;
    if (!job->spec->cwd || job->output_count)
        error = make_scratch(jobs, job);
    if (!error && job->spec->script_bytes)
        error = make_script(jobs, job);
    if (!error) {
        at = WORK_STDOUT;
        *stdout_fd = make_file(jobs, job, WORK_STDOUT, 0600);
        error = *stdout_fd < 0 ? *stdout_fd : 0;
    }
    if (!error) {
        *stderr_fd = make_file(jobs, job, WORK_STDERR, 0600);
        error = *stderr_fd < 0 ? *stderr_fd : 0;
    }
    return error ? mob_error_set(err, error, "its files can't be made in %s: %s",
                                 work_of(jobs, job, at)->path, strerror(-error))
                 : 0;
}

static errint_t send_request(struct jobs *jobs, const struct job *job, const struct user *user,
                             int stdout_fd, int stderr_fd)
{
    const struct job_spec *spec = job->spec;
    struct strings arguments = {0}, environment = {0};
    char digits[MOB_ID_STRING_BYTES], name[WORK_NAME_BYTES], directory[8192], input[8192] = "";
    add_arguments(jobs, job, &arguments);
    add_environment(jobs, job, user, &environment);
    if (spec->cwd)
        snprintf(directory, sizeof directory, "%s", spec->cwd);
    else
        snprintf(directory, sizeof directory, "%s/%s", work_of(jobs, job, WORK_SCRATCH)->path,
                 work_name(job, WORK_SCRATCH, name));
    if (spec->stdin_kind == SPEC_STDIN_OBJECT)
        snprintf(input, sizeof input, "%s/objects/%s", jobs->mount_path,
                 mob_id_format(&spec->stdin_object, digits));
    errint_t error = arguments.failed || environment.failed ? -ENOMEM : 0;
    if (!error) {
        struct launch_request request = {
            .uid = job->uid,
            .gid = job->gid,
            .umask = job->umask,
            .groups = user->groups,
            .group_count = user->group_count,
            .plain_paths = has_plain_paths(jobs, job, arguments.list[0]),
            .job = mob_id_format(&job->id, digits),
            .directory = directory,
            .stdin_path = input,
            .stdin_text = spec->stdin_kind == SPEC_STDIN_TEXT ? spec->stdin_text : NULL,
            .stdin_bytes = spec->stdin_bytes,
            .arguments = arguments.list,
            .environment = environment.list,
        };
        error = launcher_start(jobs->launcher_fd, job->number, job->attempt, spec->timeout_ns,
                               &request, stdout_fd, stderr_fd);
    }
    strings_free(&arguments);
    strings_free(&environment);
    return error;
}

errint_t job_start(struct jobs *jobs, struct job *job, struct mob_error *err)
{
    const struct user *user;
    cleanup_fd int stdout_fd = -1;
    cleanup_fd int stderr_fd = -1;
    errint_t error = user_find(jobs, job->uid, job->gid, &user);
    if (error)
        return mob_error_set(err, error, "user %u can't be looked up: %s", (unsigned)job->uid,
                             strerror(-error));
    choose_places(jobs, job);
    error = make_files(jobs, job, &stdout_fd, &stderr_fd, err);
    if (error == -EEXIST) { /* left by a server that died before it could send the request */
        mob_cleanup_fd(&stdout_fd);
        job_clean(jobs, job);
        job->attempt++;
        error = make_files(jobs, job, &stdout_fd, &stderr_fd, err);
    }
    if (!error && (error = send_request(jobs, job, user, stdout_fd, stderr_fd)))
        mob_error_set(err, error, "%s", strerror(-error));
    if (error) {
        job_clean(jobs, job);
        return error;
    }
    pthread_mutex_lock(&jobs->lock);
    job->started_ns = jobs->clock.wall_ns(jobs->clock.context);
    jobs->started++;
    pthread_mutex_unlock(&jobs->lock);
    running_add(jobs, job);
    job_set_state(jobs, job, JOB_RUNNING);
    return 0;
}
