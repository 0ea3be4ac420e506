/* The end of a job: what it was, and one transaction that records it together with its outputs. */
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/wait.h>

#include "core/job/job_internal.h"
#include "core/job/launcher_client.h"

#define SENTENCE_BYTES 600

static void acknowledge(struct jobs *jobs, uint64_t number, uint32_t attempt)
{
    if (!jobs->launcher_gone && launcher_acknowledge(jobs->launcher_fd, number, attempt))
        jobs->launcher_gone = true;
}

static struct job_end *new_end(struct jobs *jobs, enum job_state state, errint_t failure,
                               int exit_code, const char *error, const char *cause)
{
    struct job_end *end = calloc(1, sizeof *end);
    if (!end)
        return NULL;
    end->state = state;
    end->failure = failure;
    end->exit_code = exit_code;
    end->ended_ns = jobs->clock.wall_ns(jobs->clock.context);
    end->error = error ? job_sentence(error) : NULL;
    end->cause = cause ? job_sentence(cause) : NULL;
    return end;
}

/* --- the transaction --- */

/* Adds a stream as an object of its own, unless it is empty, or large and what filled the disk.
 * Takes the descriptor. */
static errint_t add_stream(struct store_batch *batch, const struct job *job, int which,
                           struct collected *file, uint64_t bytes, bool no_room, bool *made)
{
    struct mob_id id =
        mob_id_with_index(&job->id, which == 1 ? MOB_INDEX_STDOUT : MOB_INDEX_STDERR);
    *made = false;
    if (file->fd < 0)
        return 0;
    if (bytes == 0 || (no_room && bytes > STORE_INLINE_DEFAULT_BYTES)) {
        mob_cleanup_fd(&file->fd);
        return 0;
    }
    errint_t error = store_batch_pending(batch, &id, job->uid, job->gid, job->umask, 0, NULL);
    if (!error)
        error = store_batch_ready_file(batch, &id, steal_fd(&file->fd), file->path, false);
    *made = !error;
    return error;
}

static errint_t add_failures(struct store_batch *batch, const struct job *job,
                             const struct job_end *end)
{
    const char *cause = end->cause ? end->cause : end->error ? end->error : "its job failed";
    for (uint32_t i = 0; i < job_object_count(job); i++) {
        struct mob_id id = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT + i);
        errint_t error = store_batch_fail(batch, &id, end->failure, cause);
        if (error)
            return error;
    }
    return 0;
}

/* Outputs that have been written. -EINVAL: one is not as it should be, with the sentence. */
static errint_t add_outputs(struct jobs *jobs, struct store_batch *batch, const struct job *job,
                            struct mob_error *err)
{
    for (uint32_t i = 0; i < job->output_count; i++) {
        struct mob_id id = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT + i);
        struct collected file;
        errint_t error = collect_output(jobs, job, job->outputs[i], &file, err);
        if (!error)
            error =
                store_batch_ready_file(batch, &id, steal_fd(&file.fd), file.path, file.executable);
        if (error)
            return error;
    }
    return 0;
}

static errint_t add_result(struct store_batch *batch, const struct job *job, struct collected *out,
                           uint64_t bytes)
{
    struct mob_id id = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT);
    if (bytes > 0)
        return store_batch_ready_file(batch, &id, steal_fd(&out->fd), out->path, false);
    mob_cleanup_fd(&out->fd);
    return store_batch_ready_bytes(batch, &id, "", 0);
}

/* `ran`: there are files of a run. */
static errint_t fill_batch(struct jobs *jobs, struct store_batch *batch, const struct job *job,
                           struct job_end *end, bool ran, struct mob_error *err)
{
    struct collected out = {.fd = -1}, errors = {.fd = -1};
    uint64_t out_bytes = 0, error_bytes = 0;
    errint_t error = 0;
    if (ran) {
        error = collect_stream(jobs, job, 1, &out, &out_bytes, err);
        if (!error)
            error = collect_stream(jobs, job, 2, &errors, &error_bytes, err);
    }
    if (!error && end->state != JOB_SUCCEEDED)
        error = add_failures(batch, job, end);
    else if (!error && job->output_count)
        error = add_outputs(jobs, batch, job, err);
    else if (!error)
        error = add_result(batch, job, &out, out_bytes);
    if (!error)
        error = add_stream(batch, job, 1, &out, out_bytes, end->no_room, &end->stdout_object);
    if (!error)
        error = add_stream(batch, job, 2, &errors, error_bytes, end->no_room, &end->stderr_object);
    if (!error)
        error = record_put(batch, job, end);
    if (error && err && !err->message[0])
        mob_error_set(err, error, "%s", strerror(-error));
    mob_cleanup_fd(&out.fd);
    mob_cleanup_fd(&errors.fd);
    return error;
}

static errint_t commit(struct jobs *jobs, struct job *job, struct job_end *end, bool ran,
                       struct mob_error *err)
{
    struct store_batch *batch;
    *err = (struct mob_error){0};
    errint_t error = store_batch_new(jobs->store, &batch);
    if (error)
        return mob_error_set(err, error, "no memory");
    error = fill_batch(jobs, batch, job, end, ran, err);
    if (error) {
        store_batch_abort(batch);
        return error;
    }
    pthread_mutex_lock(&jobs->lock);
    job->end = end;
    job->committing = true;
    pthread_mutex_unlock(&jobs->lock);
    error = store_batch_commit(batch, err);
    if (!error)
        return 0; /* it counts as ended already; settle() says so in its state */
    pthread_mutex_lock(&jobs->lock);
    job->committing = false;
    job->end = NULL;
    pthread_mutex_unlock(&jobs->lock);
    return error;
}

/* --- after it --- */

static void call_waiters(struct jobs *jobs, struct job *job)
{
    pthread_mutex_lock(&jobs->lock);
    struct job_waiter *waiters = job->waiters, *ordered = NULL;
    job->waiters = NULL;
    pthread_mutex_unlock(&jobs->lock);
    while (waiters) { /* pushed at the head: the first to wait is the first to be told */
        struct job_waiter *next = waiters->next;
        waiters->next = ordered;
        ordered = waiters;
        waiters = next;
    }
    while (ordered) {
        struct job_waiter *next = ordered->next;
        ordered->callback(ordered->argument, job->number, job->state);
        free(ordered);
        ordered = next;
    }
}

static void settle(struct jobs *jobs, struct job *job, bool ran)
{
    struct mob_id id = job->id;
    job_cancel_waits(jobs, job);
    queue_remove(jobs, job);
    job_set_state(jobs, job, job->end->state);
    call_waiters(jobs, job);
    if (ran) {
        running_remove(jobs, job);
        acknowledge(jobs, job->number, job->attempt);
        job_clean(jobs, job);
    }
    if (job->spec)
        job_drop_arguments(jobs, job);
    pthread_mutex_lock(&jobs->lock);
    spec_free(job->spec);
    job->spec = NULL;
    free(job->numbers);
    job->numbers = NULL;
    pthread_mutex_unlock(&jobs->lock);
    job_let_go(jobs, &id, 0, 0);
}

/* What could not be stored is said, and the job has failed. */
static void blame(const struct job *job, struct job_end *end, errint_t error, const char *reason)
{
    char digits[MOB_ID_STRING_BYTES], sentence[2 * SENTENCE_BYTES];
    if (end->state == JOB_SUCCEEDED) {
        snprintf(sentence, sizeof sentence, "job %s: %s%s", mob_id_format(&job->id, digits),
                 error == -EINVAL ? "" : "its output could not be stored: ", reason);
        end->state = JOB_FAILED;
        end->failure = -EIO;
        end->no_room = error == -ENOSPC;
    } else {
        snprintf(sentence, sizeof sentence, "%s; not all that it printed could be kept: %s",
                 end->error ? end->error : "failed", reason);
        end->no_room = true;
    }
    free(end->error);
    end->error = job_sentence(sentence);
}

/* Records the end. What can't be stored makes the job a failed one; if not even that can be
 * recorded, it is tried again every second, and the launcher keeps the end meanwhile. */
static void finish(struct jobs *jobs, struct job *job, struct job_end *end, bool ran)
{
    struct mob_error err;
    char digits[MOB_ID_STRING_BYTES];
    errint_t error = end ? commit(jobs, job, end, ran, &err) : -ENOMEM;
    if (error && end && (end->state == JOB_SUCCEEDED || (ran && !end->no_room))) {
        blame(job, end, error, err.message);
        error = commit(jobs, job, end, ran, &err);
    }
    if (error && error != -EINVAL && ran && end) { /* not even what is small has room */
        end->stdout_object = end->stderr_object = false;
        error = commit(jobs, job, end, false, &err);
    }
    if (!error) {
        settle(jobs, job, ran);
        return;
    }
    mob_log_error("job %s: its end can't be recorded yet: %s", mob_id_format(&job->id, digits),
                  strerror(-error));
    job->retrying = true;
    job->retry_end = end;
    job->retry_ran = ran;
    job->retry_next = jobs->retry;
    jobs->retry = job;
    loop_arm_timer(jobs);
}

void finish_retry(struct jobs *jobs)
{
    struct job *job = jobs->retry;
    jobs->retry = NULL;
    while (job) {
        struct job *next = job->retry_next;
        struct job_end *end = job->retry_end;
        job->retry_end = NULL;
        job->retrying = false;
        if (!end)
            end = new_end(jobs, JOB_FAILED, -EIO, EXIT_CODE_NEVER_RAN, "there was no memory", NULL);
        finish(jobs, job, end, job->retry_ran);
        job = next;
    }
}

void job_end_without_run(struct jobs *jobs, struct job *job, enum job_state state, errint_t failure,
                         const char *cause, const char *format, ...)
{
    char text[SENTENCE_BYTES], sentence[SENTENCE_BYTES + 64], digits[MOB_ID_STRING_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(sentence, sizeof sentence, "job %s %s", mob_id_format(&job->id, digits), text);
    job_cancel_waits(jobs, job);
    queue_remove(jobs, job);
    struct job_end *end = new_end(jobs, state, failure, EXIT_CODE_NEVER_RAN, sentence, cause);
    finish(jobs, job, end, false);
}

/* --- how a run ended --- */

static const char *program_of(const struct job *job)
{
    if (job->spec->script_bytes)
        return job->spec->interpreter;
    return job->spec->words[0].text ? job->spec->words[0].text : "the program";
}

static void describe_stage(const struct job *job, const struct launch_report *report, char *out)
{
    const char *program = program_of(job);
    const char *reason = strerror((int)report->stage_errno);
    switch (report->stage) {
    case LAUNCH_STAGE_USER:
        snprintf(out, SENTENCE_BYTES, "could not become user %u: %s", (unsigned)job->uid, reason);
        break;
    case LAUNCH_STAGE_STDIN:
        snprintf(out, SENTENCE_BYTES, "could not open its standard input: %s", reason);
        break;
    case LAUNCH_STAGE_DIRECTORY:
        snprintf(out, SENTENCE_BYTES, "could not enter its working directory %.300s: %s",
                 job->spec->cwd ? job->spec->cwd : "(its scratch directory)", reason);
        break;
    case LAUNCH_STAGE_NOT_FOUND:
        snprintf(out, SENTENCE_BYTES, "could not run %.400s: command not found", program);
        break;
    case LAUNCH_STAGE_INTERPRETER:
        snprintf(out, SENTENCE_BYTES, "could not run %.400s: its interpreter is not there",
                 program);
        break;
    case LAUNCH_STAGE_EXEC:
        snprintf(out, SENTENCE_BYTES, "could not run %.400s: %s", program, reason);
        break;
    default:
        snprintf(out, SENTENCE_BYTES, "could not be started: %s", reason);
    }
}

static void describe(const struct job *job, const struct launch_report *report, char *out)
{
    char duration[32];
    if (report->stop == LAUNCH_STOP_TIMEOUT)
        snprintf(out, SENTENCE_BYTES, "ran past its timeout of %s",
                 mob_format_duration(job->spec->timeout_ns, duration));
    else if (report->stop == LAUNCH_STOP_CANCEL)
        snprintf(out, SENTENCE_BYTES, "was cancelled");
    else if (report->stage != LAUNCH_STAGE_NONE)
        describe_stage(job, report, out);
    else if (WIFSIGNALED(report->status))
        snprintf(out, SENTENCE_BYTES, "was ended by signal %d (SIG%s)", WTERMSIG(report->status),
                 sigabbrev_np(WTERMSIG(report->status)) ? sigabbrev_np(WTERMSIG(report->status))
                                                        : "RT");
    else
        snprintf(out, SENTENCE_BYTES, "exited with status %d", WEXITSTATUS(report->status));
}

static int exit_code_of(const struct launch_report *report)
{
    if (report->stage == LAUNCH_STAGE_FORK)
        return EXIT_CODE_NEVER_RAN;
    return WIFSIGNALED(report->status) ? 128 + WTERMSIG(report->status)
                                       : WEXITSTATUS(report->status);
}

static struct job_end *end_of_run(struct jobs *jobs, const struct job *job,
                                  const struct launch_report *report)
{
    char text[SENTENCE_BYTES], sentence[SENTENCE_BYTES + 512], digits[MOB_ID_STRING_BYTES];
    enum job_state state = JOB_FAILED;
    errint_t failure = -EIO;
    if (report->stop == LAUNCH_STOP_CANCEL) {
        state = JOB_CANCELLED;
        failure = -ECANCELED;
    } else if (report->stop == LAUNCH_STOP_TIMEOUT) {
        state = JOB_TIMED_OUT;
        failure = -ETIMEDOUT;
    } else if (report->stage == LAUNCH_STAGE_NONE && report->status == 0) {
        state = JOB_SUCCEEDED;
        failure = 0;
    }
    const char *full = state == JOB_FAILED ? job_full_dir(jobs, job) : NULL;
    describe(job, report, text);
    snprintf(sentence, sizeof sentence, "job %s %s%s%.400s%s%s", mob_id_format(&job->id, digits),
             text, full ? "; " : "", full ? full : "", full ? " is full: " : "",
             full ? strerror(ENOSPC) : "");
    struct job_end *end = new_end(jobs, state, failure, exit_code_of(report),
                                  state == JOB_SUCCEEDED ? NULL : sentence, NULL);
    if (end) {
        end->wall_ns = report->wall_ns;
        end->user_us = report->user_us;
        end->system_us = report->system_us;
        end->max_resident_bytes = report->max_resident_bytes;
        end->no_room = full != NULL;
    }
    return end;
}

/* Back to the queue, on disk too, where the record must change. */
static void run_again(struct jobs *jobs, struct job *job, bool next_attempt, bool record)
{
    struct mob_error err;
    running_remove(jobs, job);
    uint32_t attempt = job->attempt;
    job_clean(jobs, job);
    pthread_mutex_lock(&jobs->lock);
    job->started_ns = 0;
    job->attempt += next_attempt;
    pthread_mutex_unlock(&jobs->lock);
    job->running_recorded = false;
    job_set_state(jobs, job, JOB_QUEUED);
    if (record && record_write(jobs, job, &err))
        mob_log_error("a job that runs again can't be recorded: %s", err.message);
    acknowledge(jobs, job->number, attempt);
    queue_add(jobs, job);
}

void job_run_ended(struct jobs *jobs, struct job *job, const struct launch_report *report)
{
    if (report->stop == LAUNCH_STOP_DOWN) {
        run_again(jobs, job, false, job->running_recorded);
        return;
    }
    bool failed = report->stop == LAUNCH_STOP_NONE &&
                  (report->stage != LAUNCH_STAGE_NONE || report->status != 0);
    if (failed && job->spec->retry_exit && report->stage == LAUNCH_STAGE_NONE &&
        job->exits < job->spec->retries) {
        job->exits++;
        run_again(jobs, job, true, true);
        return;
    }
    finish(jobs, job, end_of_run(jobs, job, report), true);
}

void job_run_lost(struct jobs *jobs, struct job *job)
{
    if (job->spec->retry_node && job->restarts <= job->spec->retries) {
        job->restarts++;
        run_again(jobs, job, true, true);
        return;
    }
    running_remove(jobs, job);
    job_clean(jobs, job);
    job_end_without_run(jobs, job, JOB_FAILED, -EIO, NULL,
                        "was running when its node stopped, and may not run again");
}
