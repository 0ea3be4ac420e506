/* What a job waits for: objects that its argument list names by value, and the ends of other jobs.
 * Each wait is a callback at the store or at the other job; it only posts, so a chain of failures
 * is walked by the loop, not by the stack. */
#include <string.h>

#include "core/job/job_internal.h"

static void object_came(void *argument, uint64_t number, enum object_state state)
{
    struct job_wait *wait = argument;
    (void)number;
    wait->failed = state != OBJECT_READY;
    mailbox_post(wait->jobs, &wait->post, POST_READY);
}

static void job_came(void *argument, uint64_t number, enum job_state state)
{
    struct job_wait *wait = argument;
    (void)number;
    wait->failed = state != JOB_SUCCEEDED;
    mailbox_post(wait->jobs, &wait->post, POST_READY);
}

static void object_failed(struct jobs *jobs, struct job *job, const struct mob_id *id)
{
    char digits[MOB_ID_STRING_BYTES];
    struct object_info info;
    cleanup_free char *cause = NULL;
    mob_id_format(id, digits);
    if (store_find(jobs->store, id, &info) || store_failure(jobs->store, info.number, &cause)) {
        job_end_without_run(jobs, job, JOB_FAILED, -EIO, NULL, "needs %s, which is gone", digits);
        return;
    }
    job_end_without_run(jobs, job, JOB_FAILED, -EIO, cause, "needs %s, whose cause is: %s", digits,
                        cause);
}

static void dependency_failed(struct jobs *jobs, struct job *job, const struct mob_id *id)
{
    char digits[MOB_ID_STRING_BYTES];
    cleanup_free char *cause = NULL;
    pthread_mutex_lock(&jobs->lock);
    const struct job *other = table_find(jobs, id);
    const char *sentence = NULL;
    if (other && other->end)
        sentence = other->end->cause ? other->end->cause : other->end->error;
    if (sentence)
        cause = strdup(sentence);
    pthread_mutex_unlock(&jobs->lock);
    job_end_without_run(jobs, job, JOB_FAILED, -EIO, cause, "is after %s, whose cause is: %s",
                        mob_id_format(id, digits), cause ? cause : "it did not succeed");
}

static void failed(struct jobs *jobs, struct job *job, bool is_job, const struct mob_id *id)
{
    if (is_job)
        dependency_failed(jobs, job, id);
    else
        object_failed(jobs, job, id);
}

/* Whether it is there already: 1, or has failed: -1, or must be waited for: 0. */
static int state_now(struct jobs *jobs, bool is_job, const struct mob_id *id, uint64_t *number)
{
    if (!is_job) {
        struct object_info info;
        if (store_find(jobs->store, id, &info))
            return -1;
        *number = info.number;
        return info.state == OBJECT_READY ? 1 : info.state == OBJECT_FAILED ? -1 : 0;
    }
    pthread_mutex_lock(&jobs->lock);
    const struct job *other = table_find(jobs, id);
    enum job_state state = other ? other->state : JOB_LOST;
    *number = other ? other->number : 0;
    pthread_mutex_unlock(&jobs->lock);
    return state == JOB_SUCCEEDED ? 1 : job_state_is_end(state) ? -1 : 0;
}

/* False: it has failed, and the job with it. */
static bool wait_for(struct jobs *jobs, struct job *job, bool is_job, const struct mob_id *id)
{
    uint64_t number = 0;
    int state = state_now(jobs, is_job, id, &number);
    if (state > 0)
        return true;
    if (state < 0) {
        failed(jobs, job, is_job, id);
        return false;
    }
    struct job_wait *wait = calloc(1, sizeof *wait);
    errint_t error = wait ? 0 : -ENOMEM;
    if (!error) {
        *wait = (struct job_wait){
            .jobs = jobs, .job = job, .is_job = is_job, .id = *id, .number = number};
        wait->next = job->waits;
        job->waits = wait;
        job->waiting++;
        error = is_job ? jobs_wait(jobs, number, job_came, wait, &wait->token)
                       : store_wait(jobs->store, number, object_came, wait, &wait->token);
    }
    if (!error)
        return true;
    if (wait) {
        job->waits = wait->next;
        job->waiting--;
        free(wait);
    }
    job_end_without_run(jobs, job, JOB_FAILED, -EIO, NULL, "can't wait for its arguments: %s",
                        strerror(-error));
    return false;
}

void job_begin_waiting(struct jobs *jobs, struct job *job)
{
    const struct job_spec *spec = job->spec;
    for (size_t i = 0; i < spec->word_count; i++)
        if (spec->words[i].kind == SPEC_WORD_OBJECT &&
            !wait_for(jobs, job, false, &spec->words[i].id))
            return;
    if (spec->stdin_kind == SPEC_STDIN_OBJECT && !wait_for(jobs, job, false, &spec->stdin_object))
        return;
    for (size_t i = 0; i < spec->after.count; i++)
        if (!wait_for(jobs, job, true, &spec->after.ids[i]))
            return;
    if (job->waiting == 0)
        queue_add(jobs, job);
}

void job_wait_came(struct jobs *jobs, struct job_wait *wait)
{
    struct job *job = wait->job;
    if (!job) {
        free(wait);
        return;
    }
    wait->done = true;
    job->waiting--;
    if (wait->failed)
        failed(jobs, job, wait->is_job, &wait->id);
    else if (job->waiting == 0) {
        job_cancel_waits(jobs, job);
        queue_add(jobs, job);
    }
}

void job_cancel_waits(struct jobs *jobs, struct job *job)
{
    while (job->waits) {
        struct job_wait *wait = job->waits;
        job->waits = wait->next;
        bool ours = wait->done ||
                    (wait->is_job ? jobs_wait_cancel(jobs, wait->number, wait->token)
                                  : store_wait_cancel(jobs->store, wait->number, wait->token));
        if (ours)
            free(wait);
        else
            wait->job = NULL; /* its post is on the way: freed then */
    }
    job->waiting = 0;
}
