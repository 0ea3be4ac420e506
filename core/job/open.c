/* Begin and end of the module: jobs come from their records, are held together again, and meet the
 * launcher. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#include "core/job/job_internal.h"
#include "core/job/launcher_client.h"
#include "core/store/names.h"

#define JOBS_PER_BATCH 1000

void users_free(struct jobs *jobs);

/* --- the module's own things --- */

static errint_t open_work_dir(struct work_dir *work, const char *path, struct mob_error *err)
{
    /* Users' processes go through it to their own scratch directories, and list nothing. */
    if (mkdir(path, 0711) && errno != EEXIST)
        return mob_error_set(err, -errno, "%s can't be made: %s", path, strerror(errno));
    work->path = realpath(path, NULL);
    work->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (!work->path || work->fd < 0 || fchmod(work->fd, 0711))
        return mob_error_set(err, -errno, "%s can't be used: %s", path, strerror(errno));
    return 0;
}

/* Whether everybody can pass through the directories above it. */
static bool is_open_to_all(const char *path)
{
    char above[PATH_MAX];
    struct stat st;
    if (snprintf(above, sizeof above, "%s", path) >= (int)sizeof above)
        return false;
    for (char *slash = strrchr(above, '/'); slash && slash != above; slash = strrchr(above, '/')) {
        *slash = '\0';
        if (stat(above, &st) || !(st.st_mode & S_IXOTH))
            return false;
    }
    return true;
}

static errint_t open_work_dirs(struct jobs *jobs, const struct jobs_options *options,
                               struct mob_error *err)
{
    struct work_dir *memory = &jobs->work[WORK_IN_MEMORY], *disk = &jobs->work[WORK_ON_DISK];
    errint_t error = open_work_dir(memory, options->work_dir, err);
    if (error)
        return error;
    jobs->empty_fd = openat(memory->fd, "empty", O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0400);
    if (jobs->empty_fd < 0)
        return mob_error_set(err, -errno, "%s can't be written: %s", memory->path, strerror(errno));
    if (!options->disk_work_dir)
        return 0;
    error = open_work_dir(disk, options->disk_work_dir, err);
    if (error)
        return error;
    jobs->disk_is_open = is_open_to_all(disk->path);
    if (jobs->uid == 0 && !jobs->disk_is_open)
        mob_log_warning("jobs: users can't reach %s: their scratch directories stay in memory",
                        disk->path);
    return 0;
}

static errint_t watch(struct jobs *jobs, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(jobs->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static errint_t open_descriptors(struct jobs *jobs, struct mob_error *err)
{
    jobs->mailbox_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    jobs->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    jobs->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (jobs->mailbox_fd < 0 || jobs->timer_fd < 0 || jobs->epoll_fd < 0)
        return mob_error_set(err, -errno, "no descriptors left: %s", strerror(errno));
    errint_t error = watch(jobs, jobs->mailbox_fd);
    if (!error)
        error = watch(jobs, jobs->timer_fd);
    if (!error)
        error = watch(jobs, jobs->launcher_fd);
    return error ? mob_error_set(err, error, "the launcher can't be watched: %s", strerror(-error))
                 : 0;
}

static errint_t set_up(struct jobs *jobs, const struct jobs_options *options, struct mob_error *err)
{
    jobs->store = options->store;
    jobs->launcher_fd = options->launcher_fd;
    jobs->milli_cpus = (uint32_t)lround(fmin(fmax(options->cpus, 0.001), 1e6) * 1000);
    memcpy(jobs->owner, options->owner, sizeof jobs->owner);
    jobs->clock = options->clock ? *options->clock : mob_system_clock;
    jobs->hooks = options->hooks;
    jobs->uid = geteuid();
    jobs->mount_path = strdup(options->mount_path);
    jobs->node_name = strdup(options->node_name ? options->node_name : "node");
    if (!jobs->mount_path || !jobs->node_name)
        return mob_error_set(err, -ENOMEM, "no memory");
    errint_t error = open_work_dirs(jobs, options, err);
    if (!error)
        error = open_descriptors(jobs, err);
    /* A broken lease (collect.c) is told by SIGIO, which would end the process. */
    struct sigaction action;
    if (!sigaction(SIGIO, NULL, &action) && action.sa_handler == SIG_DFL) {
        action.sa_handler = SIG_IGN;
        sigaction(SIGIO, &action, NULL);
    }
    return error;
}

static void tear_down(struct jobs *jobs)
{
    for (size_t i = 0; i < jobs->order_count; i++)
        if (jobs->order[i].job)
            job_cancel_waits(jobs, jobs->order[i].job);
    jobs->stop = true;
    if (jobs->mailbox_fd >= 0)
        loop_read_mailbox(jobs);
    cleaner_stop(&jobs->cleaner);
    for (size_t i = 0; i < jobs->order_count; i++) {
        struct job *job = jobs->order[i].job;
        if (!job)
            continue;
        job_end_free(job->retry_end);
        while (job->waiters) {
            struct job_waiter *waiter = job->waiters;
            job->waiters = waiter->next;
            free(waiter);
        }
        job_free(job);
    }
    users_free(jobs);
    for (size_t i = 0; i < WORK_PLACES; i++) {
        mob_cleanup_fd(&jobs->work[i].fd);
        free(jobs->work[i].path);
    }
    mob_cleanup_fd(&jobs->empty_fd);
    mob_cleanup_fd(&jobs->mailbox_fd);
    mob_cleanup_fd(&jobs->timer_fd);
    mob_cleanup_fd(&jobs->epoll_fd);
    pthread_mutex_destroy(&jobs->lock);
    pthread_mutex_destroy(&jobs->mailbox_lock);
    free(jobs->buckets);
    free(jobs->order);
    free(jobs->heap);
    free(jobs->mount_path);
    free(jobs->node_name);
    free(jobs);
}

/* --- loading --- */

struct loading {
    struct jobs *jobs;
    struct store_batch *batch;
    size_t in_batch;
    errint_t error;
};

/* A transaction that has grown enough is carried out, and another begun as it is needed. */
static errint_t next_batch(struct loading *loading, bool last)
{
    if (loading->batch && (last || ++loading->in_batch >= JOBS_PER_BATCH)) {
        struct store_batch *batch = loading->batch;
        loading->batch = NULL;
        loading->in_batch = 0;
        errint_t error = store_batch_commit(batch, NULL);
        if (error)
            return error;
    }
    return loading->batch || last ? 0 : store_batch_new(loading->jobs->store, &loading->batch);
}

static int load_record(void *argument, const void *key, size_t key_bytes, const void *value,
                       size_t value_bytes)
{
    struct loading *loading = argument;
    const uint8_t *bytes = key;
    struct job *job = NULL;
    uint64_t number = 0;
    for (size_t i = 0; i < key_bytes && i < 8; i++)
        number = number << 8 | bytes[i];
    errint_t error = key_bytes == 8 ? record_decode(value, value_bytes, number, &job) : -EBADMSG;
    if (!error && memcmp(job->id.bytes, loading->jobs->owner, MOB_ID_OWNER_BYTES) != 0)
        error = -EBADMSG;
    if (!error)
        error = table_add(loading->jobs, job);
    if (!error)
        return 0;
    job_free(job);
    if (error == -ENOMEM)
        return -ENOMEM;
    mob_log_error("jobs: the record of job number %llu is damaged, it is left out",
                  (unsigned long long)number);
    return 0;
}

static int count_name(void *argument, const struct mob_id *id)
{
    struct jobs *jobs = argument;
    struct job *job = table_find(jobs, id);
    if (job)
        job->names++;
    return 0;
}

static errint_t load_spec(struct jobs *jobs, struct job *job)
{
    struct record_key key = record_key(job->number);
    struct mob_error why;
    cleanup_free void *text = NULL;
    size_t bytes;
    errint_t error =
        store_table_get(jobs->store, STORE_TABLE_JOB_DATA, key.bytes, sizeof key, &text, &bytes);
    if (!error)
        error = spec_parse(text, bytes, &job->spec, &why);
    /* The outputs' names are in the record; the spec must still say the same. */
    if (!error && job->spec->output_count != job->output_count)
        error = -EINVAL;
    return error;
}

static errint_t make_pending(struct store_batch *batch, const struct job *job, bool failed)
{
    const struct job_end *end = job->end;
    for (uint32_t i = 0; i < job_object_count(job); i++) {
        struct mob_id id = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT + i);
        errint_t error = store_batch_pending(batch, &id, job->uid, job->gid, job->umask,
                                             job->numbers ? job->numbers[i] : 0, NULL);
        if (!error && failed)
            error = store_batch_fail(batch, &id, end->failure,
                                     end->cause   ? end->cause
                                     : end->error ? end->error
                                                  : "its job failed");
        if (error)
            return error;
    }
    return 0;
}

/* One that was lost stays the job's: reading it is an error. */
static errint_t hold_streams(struct jobs *jobs, const struct job *job)
{
    const uint32_t indexes[] = {MOB_INDEX_STDOUT, MOB_INDEX_STDERR};
    const bool there[] = {job->end->stdout_object, job->end->stderr_object};
    errint_t error = 0;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(indexes) && !error; i++) {
        struct mob_id id = mob_id_with_index(&job->id, indexes[i]);
        error = there[i] ? store_hold(jobs->store, &id) : 0;
        error = error == -ENOENT ? 0 : error;
    }
    return error;
}

static errint_t restore_ended(struct loading *loading, struct job *job)
{
    struct jobs *jobs = loading->jobs;
    errint_t error = hold_streams(jobs, job);
    if (error)
        return error;
    if (job->end->state == JOB_SUCCEEDED) {
        for (uint32_t i = 0; i < job_object_count(job); i++) {
            struct mob_id id = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT + i);
            error = store_hold(jobs->store, &id);
            if (error && error != -ENOENT)
                return error;
        }
        return 0;
    }
    if (job->end->state == JOB_REJECTED)
        return 0;
    error = next_batch(loading, false);
    return error ? error : make_pending(loading->batch, job, true);
}

/* Outputs are pending again before anything that may need them is held. */
static errint_t restore_waiting(struct loading *loading, struct job *job)
{
    if (load_spec(loading->jobs, job)) {
        spec_free(job->spec);
        job->spec = NULL;
        job->broken = strdup("has a spec that is damaged");
    }
    errint_t error = next_batch(loading, false);
    return error ? error : make_pending(loading->batch, job, false);
}

static void hold_again(struct jobs *jobs, struct job *job)
{
    struct mob_error why;
    if (job->spec && job_hold_arguments(jobs, job, NULL, 0, &why) &&
        asprintf(&job->broken, "needs what is lost: %s", why.message) < 0)
        job->broken = NULL;
}

/* The first job after a number: jobs may go, and places move, while others are looked at. */
static struct job *next_job(struct jobs *jobs, uint64_t number)
{
    size_t place = table_place(jobs, number + 1);
    while (place < jobs->order_count && !jobs->order[place].job)
        place++;
    return place < jobs->order_count ? jobs->order[place].job : NULL;
}

static errint_t load_jobs(struct jobs *jobs, struct mob_error *err)
{
    struct loading loading = {.jobs = jobs};
    uint64_t number = 0;
    errint_t error = store_table_each(jobs->store, STORE_TABLE_JOBS, load_record, &loading);
    if (!error)
        error = names_each_job(jobs->store, count_name, jobs);
    for (size_t i = 0; !error && i < jobs->order_count; i++) {
        struct job *job = jobs->order[i].job;
        error = job->end ? restore_ended(&loading, job) : restore_waiting(&loading, job);
    }
    if (!error)
        error = next_batch(&loading, true);
    else if (loading.batch)
        store_batch_abort(loading.batch);
    for (size_t i = 0; !error && i < jobs->order_count; i++)
        if (!jobs->order[i].job->end)
            hold_again(jobs, jobs->order[i].job);
    if (error)
        return mob_error_set(err, error, "the jobs can't be loaded: %s", strerror(-error));
    for (struct job *job; (job = next_job(jobs, number));) {
        struct mob_id id = job->id;
        number = job->number;
        if (job->end)
            job_let_go(jobs, &id, 0, 0);
    }
    return 0;
}

errint_t jobs_open(const struct jobs_options *options, struct jobs **out, struct mob_error *err)
{
    struct jobs *jobs = calloc(1, sizeof *jobs);
    if (!jobs)
        return mob_error_set(err, -ENOMEM, "no memory");
    jobs->work[WORK_IN_MEMORY].fd = jobs->work[WORK_ON_DISK].fd = -1;
    jobs->empty_fd = jobs->mailbox_fd = jobs->timer_fd = jobs->epoll_fd = -1;
    pthread_mutex_init(&jobs->lock, NULL);
    pthread_mutex_init(&jobs->mailbox_lock, NULL);
    jobs->mailbox_last = &jobs->mailbox_first;
    errint_t error = set_up(jobs, options, err);
    if (!error)
        error = load_jobs(jobs, err);
    if (error) {
        tear_down(jobs);
        return error;
    }
    *out = jobs;
    return 0;
}

/* --- starting --- */

struct known {
    struct jobs *jobs;
    struct launch_report *ended;
    size_t ended_count, ended_capacity;
    errint_t error;
};

static void keep_report(struct known *known, const struct launch_report *report)
{
    if (known->ended_count == known->ended_capacity) {
        size_t capacity = known->ended_capacity ? known->ended_capacity * 2 : 16;
        struct launch_report *larger = reallocarray(known->ended, capacity, sizeof *larger);
        if (!larger) {
            known->error = -ENOMEM;
            return;
        }
        known->ended = larger;
        known->ended_capacity = capacity;
    }
    known->ended[known->ended_count++] = *report;
}

/* A run that the launcher knows: the job is running, for now, also if the run has ended already. */
static void adopt(void *argument, const struct launch_report *report)
{
    struct known *known = argument;
    struct jobs *jobs = known->jobs;
    struct job *job = table_number(jobs, report->number);
    bool ours = job && !job->end && !job->broken && report->attempt >= job->attempt;
    if (!ours && report->type == LAUNCHED_RUNNING) {
        if (launcher_stop(jobs->launcher_fd, report->number, report->attempt, LAUNCH_STOP_DOWN))
            known->error = -EPIPE;
        return;
    }
    if (!ours) {
        if (launcher_acknowledge(jobs->launcher_fd, report->number, report->attempt))
            known->error = -EPIPE;
        return;
    }
    job->running_recorded = job->state == JOB_RUNNING;
    job->attempt = report->attempt;
    job->started_ns = report->started_ns;
    job->adopted = true;
    job_find_files(jobs, job);
    running_add(jobs, job);
    job_set_state(jobs, job, JOB_RUNNING);
    if (report->type == LAUNCHED_ENDED)
        keep_report(known, report);
}

/* Runs that were begun and of which the launcher knows nothing: the record says so, or the files
 * that are there. */
static void find_lost(struct jobs *jobs)
{
    for (size_t i = 0; i < jobs->order_count; i++) {
        struct job *job = jobs->order[i].job;
        if (!job || job->end || job->adopted)
            continue;
        bool has_files = job_find_files(jobs, job);
        job->run_lost = job->state == JOB_RUNNING || has_files;
        if (job->state == JOB_RUNNING)
            job_set_state(jobs, job, JOB_QUEUED);
    }
}

static void begin(struct jobs *jobs, struct job *job)
{
    if (job->broken) {
        job_end_without_run(jobs, job, JOB_FAILED, -EIO, NULL, "%s", job->broken);
    } else if (job->run_lost) {
        running_add(jobs, job);
        job_run_lost(jobs, job);
    } else {
        job_begin_waiting(jobs, job);
    }
}

/* What no run of now uses is left over from servers that have died. */
static void sweep_work_dir(struct jobs *jobs, int work_fd)
{
    int fd = work_fd < 0 ? -1 : openat(work_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        char *end, name[WORK_NAME_BYTES];
        if (entry->d_name[0] == '.' && strncmp(entry->d_name, ".removed-", 9) != 0)
            continue;
        if (!strcmp(entry->d_name, "empty"))
            continue;
        struct job *job = table_number(jobs, strtoull(entry->d_name, &end, 16));
        if (job && job->adopted && job->state == JOB_RUNNING) {
            size_t length = strlen(work_name(job, WORK_SCRATCH, name));
            if (!strncmp(entry->d_name, name, length) &&
                (!entry->d_name[length] || entry->d_name[length] == '.'))
                continue;
        }
        cleaner_remove(&jobs->cleaner, work_fd, entry->d_name);
    }
    if (directory)
        closedir(directory);
}

errint_t jobs_start(struct jobs *jobs, struct mob_error *err)
{
    struct known known = {.jobs = jobs};
    errint_t error = launcher_sync(jobs->launcher_fd, adopt, &known, err);
    if (!error && known.error)
        error = mob_error_set(err, known.error, "%s", strerror(-known.error));
    if (!error && (error = cleaner_start(&jobs->cleaner)))
        mob_error_set(err, error, "no thread can be started: %s", strerror(-error));
    if (error) {
        free(known.ended);
        return error;
    }
    find_lost(jobs);
    for (size_t i = 0; i < WORK_PLACES; i++)
        sweep_work_dir(jobs, jobs->work[i].fd);
    for (size_t i = 0; i < known.ended_count; i++)
        job_run_ended(jobs, table_number(jobs, known.ended[i].number), &known.ended[i]);
    free(known.ended);
    uint64_t number = 0;
    for (struct job *job; (job = next_job(jobs, number));) {
        number = job->number;
        if (!job->end && !job->adopted && !job->retrying)
            begin(jobs, job);
    }
    error = -pthread_create(&jobs->loop_thread, NULL, loop_main, jobs);
    if (error)
        return mob_error_set(err, error, "no thread can be started: %s", strerror(-error));
    jobs->loop_runs = true;
    return 0;
}

void jobs_close(struct jobs *jobs, bool kill_running)
{
    if (!jobs)
        return;
    if (jobs->loop_runs) {
        jobs->kill_running = kill_running;
        mailbox_post(jobs, &jobs->stop_post, POST_STOP);
        pthread_join(jobs->loop_thread, NULL);
    }
    tear_down(jobs);
}
