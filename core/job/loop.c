/* The loop: what others post, what the launcher reports, one timer. */
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "core/job/job_internal.h"
#include "core/job/launcher_client.h"

#define RECORD_AFTER_NS SECOND_NS
#define STOP_LIMIT_NS (15 * SECOND_NS)
#define DELETE_AT_ONCE 1000

void mailbox_post(struct jobs *jobs, struct post *post, enum post_kind kind)
{
    post->kind = kind;
    post->next = NULL;
    pthread_mutex_lock(&jobs->mailbox_lock);
    bool wake = jobs->mailbox_first == NULL;
    *jobs->mailbox_last = post;
    jobs->mailbox_last = &post->next;
    pthread_mutex_unlock(&jobs->mailbox_lock);
    if (wake && eventfd_write(jobs->mailbox_fd, 1))
        mob_log_error("jobs: eventfd: %s", strerror(errno));
}

static struct post *take_mail(struct jobs *jobs)
{
    pthread_mutex_lock(&jobs->mailbox_lock);
    struct post *first = jobs->mailbox_first;
    jobs->mailbox_first = NULL;
    jobs->mailbox_last = &jobs->mailbox_first;
    pthread_mutex_unlock(&jobs->mailbox_lock);
    return first;
}

#define JOB_OF_POST(post, member)                                                                  \
    ((struct job *)((char *)(post) - __builtin_offsetof(struct job, member)))

/* Their records go together: rm of a hundred thousand names must not be as many transactions. */
static void delete_jobs(struct jobs *jobs, struct post *gone)
{
    while (gone) {
        struct store_batch *batch = NULL;
        errint_t error = store_batch_new(jobs->store, &batch);
        for (int i = 0; gone && i < DELETE_AT_ONCE; i++) {
            struct job *job = JOB_OF_POST(gone, gone_post);
            struct record_key key = record_key(job->number);
            gone = gone->next;
            if (!error)
                error = store_batch_delete(batch, STORE_TABLE_JOBS, key.bytes, sizeof key);
            if (!error)
                error = store_batch_delete(batch, STORE_TABLE_JOB_DATA, key.bytes, sizeof key);
            job_free(job);
        }
        if (!error)
            error = store_batch_commit(batch, NULL);
        else if (batch)
            store_batch_abort(batch);
        if (error) /* the next start drops jobs that have ended and have no names */
            mob_log_warning("jobs: records can't be removed: %s", strerror(-error));
    }
}

static void stop_loop(struct jobs *jobs)
{
    jobs->stop = true;
    jobs->stop_deadline_ns = mob_monotonic_ns() + STOP_LIMIT_NS;
    for (struct job *job = jobs->kill_running ? jobs->running : NULL; job; job = job->running_next)
        if (!jobs->launcher_gone &&
            launcher_stop(jobs->launcher_fd, job->number, job->attempt, LAUNCH_STOP_DOWN))
            jobs->launcher_gone = true;
}

void loop_read_mailbox(struct jobs *jobs)
{
    struct post *gone = NULL, **gone_last = &gone, *post;
    while ((post = take_mail(jobs)))
        while (post) {
            struct post *next = post->next;
            switch (post->kind) {
            case POST_SUBMITTED:
                job_begin_waiting(jobs, JOB_OF_POST(post, submitted_post));
                break;
            case POST_READY:
                job_wait_came(jobs, (struct job_wait *)post);
                break;
            case POST_CONTROL:
                control_carry_out(jobs, (struct control *)post);
                break;
            case POST_STOP:
                stop_loop(jobs);
                break;
            case POST_GONE: /* last, because an earlier post may be about it */
                post->next = NULL;
                *gone_last = post;
                gone_last = &post->next;
                break;
            }
            post = next;
        }
    delete_jobs(jobs, gone);
}

/* --- the launcher --- */

static void launcher_died(struct jobs *jobs)
{
    mob_log_error("jobs: the launcher is gone: nothing can run until mobula is started anew");
    jobs->launcher_gone = true;
    epoll_ctl(jobs->epoll_fd, EPOLL_CTL_DEL, jobs->launcher_fd, NULL);
    while (jobs->running)
        job_run_lost(jobs, jobs->running);
}

static void on_launcher(struct jobs *jobs)
{
    struct launch_report report;
    errint_t error;
    while (!(error = launcher_next(jobs->launcher_fd, &report))) {
        if (report.type != LAUNCHED_ENDED)
            continue;
        pthread_mutex_lock(&jobs->lock);
        struct job *job = table_number(jobs, report.number);
        pthread_mutex_unlock(&jobs->lock);
        if (job && job->state == JOB_RUNNING && job->attempt == report.attempt && !job->retrying)
            job_run_ended(jobs, job, &report);
        else if (!job || job->attempt != report.attempt || !job->retrying)
            error = launcher_acknowledge(jobs->launcher_fd, report.number, report.attempt);
    }
    if (error == -EPIPE)
        launcher_died(jobs);
}

/* --- the timer --- */

void loop_arm_timer(struct jobs *jobs)
{
    if (jobs->timer_armed)
        return;
    struct itimerspec when = {.it_value = {.tv_sec = 1}};
    jobs->timer_armed = timerfd_settime(jobs->timer_fd, 0, &when, NULL) == 0;
}

/* That a job runs is put on disk only when it has run for a second: shorter ones would pay a
 * transaction more for nothing, since only the death of the whole node makes use of it. */
static bool record_running(struct jobs *jobs)
{
    uint64_t now = jobs->clock.wall_ns(jobs->clock.context);
    struct store_batch *batch = NULL;
    errint_t error = 0;
    bool more = false;
    for (struct job *job = jobs->running; job && !error; job = job->running_next) {
        if (job->running_recorded || job->retrying)
            continue;
        if (now < job->started_ns + RECORD_AFTER_NS) {
            more = true;
            continue;
        }
        if (!batch)
            error = store_batch_new(jobs->store, &batch);
        if (!error)
            error = record_put(batch, job, NULL);
        job->running_recorded = !error;
    }
    if (batch && !error)
        error = store_batch_commit(batch, NULL);
    else if (batch)
        store_batch_abort(batch);
    if (!error)
        return more;
    mob_log_warning("jobs: running jobs can't be recorded: %s", strerror(-error));
    for (struct job *job = jobs->running; job; job = job->running_next)
        job->running_recorded = false; /* all of them once more */
    return true;
}

static void on_timer(struct jobs *jobs)
{
    uint64_t ticks;
    if (read(jobs->timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
        mob_log_error("jobs: timer: %s", strerror(errno));
    jobs->timer_armed = false;
    bool more = record_running(jobs);
    finish_retry(jobs);
    if (more || jobs->retry || jobs->stop)
        loop_arm_timer(jobs);
}

/* --- the thread --- */

static bool may_leave(struct jobs *jobs)
{
    if (!jobs->stop)
        return false;
    return !jobs->kill_running || !jobs->running || jobs->launcher_gone ||
           mob_monotonic_ns() > jobs->stop_deadline_ns;
}

void *loop_main(void *argument)
{
    struct jobs *jobs = argument;
    struct epoll_event events[8];
    eventfd_t count;
    loop_read_mailbox(jobs);
    queue_run(jobs);
    while (!may_leave(jobs)) {
        int ready = epoll_wait(jobs->epoll_fd, events, MOB_ARRAY_LENGTH(events), -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == jobs->launcher_fd)
                on_launcher(jobs);
            else if (events[i].data.fd == jobs->timer_fd)
                on_timer(jobs);
            else
                eventfd_read(jobs->mailbox_fd, &count);
        }
        loop_read_mailbox(jobs);
        queue_run(jobs);
        /* What was started may have failed at once, and what waited for it posts. */
        if (jobs->stop)
            loop_arm_timer(jobs);
    }
    return NULL;
}
