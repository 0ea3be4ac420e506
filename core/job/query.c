/* Reading jobs: for those who list, show, wait for and count them. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/job/job_internal.h"

const char *job_state_name(enum job_state state)
{
    static const char *const names[] = {
        [JOB_QUEUED] = "queued",       [JOB_FETCHING] = "fetching", [JOB_RUNNING] = "running",
        [JOB_SUCCEEDED] = "succeeded", [JOB_FAILED] = "failed",     [JOB_CANCELLED] = "cancelled",
        [JOB_TIMED_OUT] = "timed-out", [JOB_LOST] = "lost",         [JOB_REJECTED] = "rejected",
    };
    return (size_t)state < MOB_ARRAY_LENGTH(names) ? names[state] : "lost";
}

static void fill_info(struct jobs *jobs, const struct job *job, struct job_info *out)
{
    *out = (struct job_info){
        .id = job->id,
        .number = job->number,
        .state = job_visible_state(jobs, job),
        .uid = job->uid,
        .gid = job->gid,
        .umask = job->umask,
        .outputs = job->output_count,
        .names = job->names,
        .submitted_ns = job->submitted_ns,
        .started_ns = job->started_ns,
    };
    out->has_result = out->state != JOB_REJECTED;
    if (out->has_result)
        out->result = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT);
    if (job_state_is_end(out->state))
        out->ended_ns = job->end->ended_ns;
}

errint_t jobs_find(struct jobs *jobs, const struct mob_id *id, struct job_info *out)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&jobs->lock);
    const struct job *job = table_find(jobs, id);
    if (!job)
        return -ENOENT;
    fill_info(jobs, job, out);
    return 0;
}

errint_t jobs_info(struct jobs *jobs, uint64_t number, struct job_info *out)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&jobs->lock);
    const struct job *job = table_number(jobs, number);
    if (!job)
        return -ENOENT;
    fill_info(jobs, job, out);
    return 0;
}

/* The cursor is the number after which to go on. */
size_t jobs_list(struct jobs *jobs, uint64_t cursor, struct job_info *out, uint64_t *cursors,
                 size_t count)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&jobs->lock);
    size_t filled = 0;
    if (cursor >= STORE_NUMBER_LIMIT)
        return 0;
    for (size_t i = table_place(jobs, cursor + 1); i < jobs->order_count && filled < count; i++) {
        if (!jobs->order[i].job)
            continue;
        fill_info(jobs, jobs->order[i].job, &out[filled]);
        cursors[filled++] = jobs->order[i].job->number;
    }
    return filled;
}

errint_t jobs_output(struct jobs *jobs, uint64_t number, unsigned place, char name[256],
                     struct mob_id *object)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&jobs->lock);
    const struct job *job = table_number(jobs, number);
    if (!job || place >= job->output_count)
        return -ENOENT;
    snprintf(name, 256, "%s", job->outputs[place]);
    *object = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT + place);
    return 0;
}

errint_t jobs_find_output(struct jobs *jobs, uint64_t number, const char *name, unsigned *place,
                          struct mob_id *object)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&jobs->lock);
    const struct job *job = table_number(jobs, number);
    for (uint32_t i = 0; job && i < job->output_count; i++) {
        if (strcmp(job->outputs[i], name) != 0)
            continue;
        *place = i;
        *object = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT + i);
        return 0;
    }
    return -ENOENT;
}

/* --- texts --- */

static char *usage_text(const struct job_end *end)
{
    char *text;
    if (asprintf(&text,
                 "wall_seconds %.6f\nuser_seconds %.6f\nsystem_seconds %.6f\n"
                 "max_resident_bytes %llu\n",
                 (double)end->wall_ns / 1e9, (double)end->user_us / 1e6,
                 (double)end->system_us / 1e6, (unsigned long long)end->max_resident_bytes) < 0)
        return NULL;
    return text;
}

static char *line(const char *text)
{
    char *out;
    return asprintf(&out, "%s\n", text) < 0 ? NULL : out;
}

/* Lock held. *again: not before the end. */
static char *text_of(struct jobs *jobs, const struct job *job, enum job_file file, bool *again)
{
    char number[32];
    bool ended = job_has_ended(jobs, job);
    *again = false;
    switch (file) {
    case JOB_FILE_STATE:
        return line(job_state_name(job_visible_state(jobs, job)));
    case JOB_FILE_NODE:
        return job->started_ns ? line(jobs->node_name) : strdup("");
    case JOB_FILE_ERROR:
        return ended && job->end->error ? line(job->end->error) : strdup("");
    case JOB_FILE_EXIT_CODE:
    case JOB_FILE_USAGE:
        *again = !ended;
        if (!ended)
            return NULL;
        snprintf(number, sizeof number, "%d", job->end->exit_code);
        return file == JOB_FILE_USAGE ? usage_text(job->end) : line(number);
    default:
        return NULL;
    }
}

static errint_t spec_text(struct jobs *jobs, uint64_t number, char **text, size_t *bytes)
{
    struct record_key key = record_key(number);
    cleanup_free void *value = NULL;
    errint_t error =
        store_table_get(jobs->store, STORE_TABLE_JOB_DATA, key.bytes, sizeof key, &value, bytes);
    if (error)
        return error;
    *text = malloc(*bytes + 1);
    if (!*text)
        return -ENOMEM;
    memcpy(*text, value, *bytes);
    (*text)[*bytes] = '\0';
    return 0;
}

errint_t jobs_text(struct jobs *jobs, uint64_t number, enum job_file file, char **text,
                   size_t *bytes)
{
    bool again = false;
    pthread_mutex_lock(&jobs->lock);
    const struct job *job = table_number(jobs, number);
    bool found = job != NULL;
    char *out = found && file != JOB_FILE_SPEC ? text_of(jobs, job, file, &again) : NULL;
    pthread_mutex_unlock(&jobs->lock);
    if (!found)
        return -ENOENT;
    if (file == JOB_FILE_SPEC)
        return spec_text(jobs, number, text, bytes);
    if (!out)
        return again ? -EAGAIN : -ENOMEM;
    *text = out;
    *bytes = strlen(out);
    return 0;
}

/* --- streams --- */

/* Which object the stream has become. False: none, because nothing was written. */
static bool stream_object(const struct job *job, int which, struct mob_id *object)
{
    bool is_result = which == 1 && job->end->state == JOB_SUCCEEDED && !job->output_count;
    bool made = is_result || (which == 1 ? job->end->stdout_object : job->end->stderr_object);
    uint32_t index = is_result    ? MOB_INDEX_FIRST_OUTPUT
                     : which == 1 ? MOB_INDEX_STDOUT
                                  : MOB_INDEX_STDERR;
    if (made)
        *object = mob_id_with_index(&job->id, index);
    return made;
}

static int reopen_empty(struct jobs *jobs)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", jobs->empty_fd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int jobs_stream(struct jobs *jobs, uint64_t number, int which, struct mob_id *object)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&jobs->lock);
    const struct job *job = table_number(jobs, number);
    if (!job)
        return -ENOENT;
    if (!job_has_ended(jobs, job) && job->state == JOB_RUNNING) {
        char name[WORK_NAME_BYTES];
        enum work_file file = which == 1 ? WORK_STDOUT : WORK_STDERR;
        int fd = openat(work_of(jobs, job, file)->fd, work_name(job, file, name),
                        O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd >= 0)
            return fd;
        if (errno != ENOENT)
            return -errno;
    }
    /* Its end may be under way: the file has moved already, the object isn't shown yet. */
    if (job->end && stream_object(job, which, object))
        return -EXDEV;
    return reopen_empty(jobs);
}

errint_t jobs_stream_size(struct jobs *jobs, uint64_t number, int which, uint64_t *bytes,
                          uint64_t *mtime_ns)
{
    struct mob_id id;
    struct object_info info;
    struct stat st;
    cleanup_fd int fd = jobs_stream(jobs, number, which, &id);
    if (fd == -EXDEV) {
        errint_t error = store_find(jobs->store, &id, &info);
        *bytes = error ? 0 : info.size;
        *mtime_ns = error ? 0 : info.mtime_ns;
        return error == -ENOENT ? 0 : error; /* not shown yet, or lost */
    }
    if (fd < 0)
        return fd;
    if (fstat(fd, &st))
        return -errno;
    *bytes = (uint64_t)st.st_size;
    *mtime_ns = (uint64_t)st.st_mtim.tv_sec * SECOND_NS + (uint64_t)st.st_mtim.tv_nsec;
    return 0;
}

/* --- waiting, names, holders, counts --- */

errint_t jobs_wait(struct jobs *jobs, uint64_t number, jobs_waiter *callback, void *argument,
                   uint64_t *token)
{
    struct job_waiter *waiter = malloc(sizeof *waiter);
    if (!waiter)
        return -ENOMEM;
    pthread_mutex_lock(&jobs->lock);
    struct job *job = table_number(jobs, number);
    enum job_state state = job ? job_visible_state(jobs, job) : JOB_LOST;
    *token = ++jobs->next_token;
    if (job && !job_state_is_end(state)) {
        *waiter = (struct job_waiter){job->waiters, *token, callback, argument};
        job->waiters = waiter;
        waiter = NULL;
    }
    pthread_mutex_unlock(&jobs->lock);
    if (waiter)
        callback(argument, number, state);
    free(waiter);
    return 0;
}

bool jobs_wait_cancel(struct jobs *jobs, uint64_t number, uint64_t token)
{
    struct job_waiter *found = NULL;
    pthread_mutex_lock(&jobs->lock);
    struct job *job = table_number(jobs, number);
    if (job) {
        struct job_waiter **link = &job->waiters;
        while (*link && (*link)->token != token)
            link = &(*link)->next;
        found = *link;
        if (found)
            *link = found->next;
    }
    pthread_mutex_unlock(&jobs->lock);
    free(found);
    return found != NULL;
}

void jobs_name_added(struct jobs *jobs, const struct mob_id *id)
{
    job_let_go(jobs, id, 1, 0);
}

void jobs_name_dropped(struct jobs *jobs, const struct mob_id *id)
{
    job_let_go(jobs, id, -1, 0);
}

static bool has_argument(const struct job *job, const struct mob_id *object)
{
    const struct job_spec *spec = job->holding ? job->spec : NULL;
    if (!spec)
        return false;
    for (size_t i = 0; i < spec->word_count; i++)
        if ((spec->words[i].kind == SPEC_WORD_OBJECT || spec->words[i].kind == SPEC_WORD_REF) &&
            mob_id_equal(&spec->words[i].id, object))
            return true;
    for (size_t i = 0; i < spec->refs.count; i++)
        if (mob_id_equal(&spec->refs.ids[i], object))
            return true;
    return spec->stdin_kind == SPEC_STDIN_OBJECT && mob_id_equal(&spec->stdin_object, object);
}

static bool has_output(const struct job *job, const struct mob_id *object)
{
    uint32_t index = mob_id_index(object);
    struct mob_id as_job = mob_id_with_index(object, MOB_INDEX_JOB);
    if (!mob_id_equal(&as_job, &job->id) || index == MOB_INDEX_JOB)
        return false;
    if (index <= job_object_count(job))
        return true;
    return job->end && ((index == MOB_INDEX_STDOUT && job->end->stdout_object) ||
                        (index == MOB_INDEX_STDERR && job->end->stderr_object));
}

errint_t jobs_holders(struct jobs *jobs, const struct mob_id *object, char **text)
{
    char *buffer = NULL, digits[MOB_ID_STRING_BYTES];
    size_t bytes = 0;
    FILE *out = open_memstream(&buffer, &bytes);
    if (!out)
        return -ENOMEM;
    fputs(*text ? *text : "", out);
    pthread_mutex_lock(&jobs->lock);
    for (size_t i = 0; i < jobs->order_count; i++) {
        const struct job *job = jobs->order[i].job;
        if (job && has_argument(job, object))
            fprintf(out, "job %s argument\n", mob_id_format(&job->id, digits));
        if (job && has_output(job, object))
            fprintf(out, "job %s output\n", mob_id_format(&job->id, digits));
    }
    pthread_mutex_unlock(&jobs->lock);
    if (fclose(out)) {
        free(buffer);
        return -ENOMEM;
    }
    free(*text);
    *text = buffer;
    return 0;
}

void jobs_usage(struct jobs *jobs, struct jobs_usage *out)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&jobs->lock);
    const uint64_t *counts = jobs->state_counts;
    *out = (struct jobs_usage){
        .queued = counts[JOB_QUEUED] + counts[JOB_FETCHING],
        .running = counts[JOB_RUNNING],
        .succeeded = counts[JOB_SUCCEEDED],
        .failed = counts[JOB_FAILED],
        .cancelled = counts[JOB_CANCELLED],
        .timed_out = counts[JOB_TIMED_OUT],
        .lost = counts[JOB_LOST],
        .rejected = counts[JOB_REJECTED],
        .cpus = jobs->milli_cpus / 1000.0,
        .cpus_used = atomic_load(&jobs->milli_cpus_used) / 1000.0,
        .started = jobs->started,
    };
}
