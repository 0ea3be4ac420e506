/* What is written to jobs/ID/ctl. */
#include <ctype.h>
#include <signal.h>
#include <string.h>

#include "core/job/job_internal.h"
#include "core/job/launcher_client.h"

#define CONTROL_LIMIT 64

/* "-TERM", "-SIGTERM", "-15"; 0 if it is none. */
static int parse_signal(const char *text)
{
    if (*text != '-' || !text[1])
        return 0;
    text++;
    if (isdigit((unsigned char)*text)) {
        char *end;
        long number = strtol(text, &end, 10);
        return *end || number < 1 || number >= NSIG ? 0 : (int)number;
    }
    if (!strncasecmp(text, "SIG", 3))
        text += 3;
    for (int number = 1; number < NSIG; number++) {
        const char *name = sigabbrev_np(number);
        if (name && !strcasecmp(name, text))
            return number;
    }
    return 0;
}

/* 0: cancel, above: a signal, below: neither. */
static int parse(const char *text, size_t bytes)
{
    char copy[CONTROL_LIMIT + 1];
    while (bytes > 0 && isspace((unsigned char)text[bytes - 1]))
        bytes--;
    if (bytes > CONTROL_LIMIT || memchr(text, 0, bytes))
        return -1;
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    if (!strcmp(copy, "cancel"))
        return 0;
    if (strncmp(copy, "kill", 4) != 0 || !isblank((unsigned char)copy[4]))
        return -1;
    int signal = parse_signal(copy + 4 + strspn(copy + 4, " \t"));
    return signal ? signal : -1;
}

errint_t jobs_control(struct jobs *jobs, uint64_t number, uid_t uid, const char *text, size_t bytes,
                      struct mob_error *err)
{
    int signal = parse(text, bytes);
    pthread_mutex_lock(&jobs->lock);
    struct job *job = table_number(jobs, number);
    bool found = job != NULL;
    bool allowed = found && (uid == 0 || uid == job->uid);
    enum job_state state = found ? job_visible_state(jobs, job) : JOB_LOST;
    pthread_mutex_unlock(&jobs->lock);
    if (!found)
        return mob_error_set(err, -ENOENT, "there is no such job");
    if (!allowed)
        return mob_error_set(err, -EPERM, "only the job's user and root may do that");
    if (signal < 0)
        return mob_error_set(err, -EINVAL,
                             "expected \"cancel\" or \"kill -SIGNAL\", such as kill -TERM");
    if (job_state_is_end(state))
        return mob_error_set(err, -ESRCH, "the job has ended");
    if (signal > 0 && state != JOB_RUNNING)
        return mob_error_set(err, -ESRCH, "the job has not begun to run");
    struct control *control = calloc(1, sizeof *control);
    if (!control)
        return mob_error_set(err, -ENOMEM, "no memory");
    control->number = number;
    control->signal = signal;
    mailbox_post(jobs, &control->post, POST_CONTROL);
    return 0;
}

void control_carry_out(struct jobs *jobs, struct control *control)
{
    pthread_mutex_lock(&jobs->lock);
    struct job *job = table_number(jobs, control->number);
    pthread_mutex_unlock(&jobs->lock);
    errint_t error = 0;
    if (!job || job_state_is_end(job->state) || job->retrying)
        ; /* it has ended meanwhile */
    else if (job->state == JOB_RUNNING && control->signal)
        error = launcher_signal(jobs->launcher_fd, job->number, job->attempt, control->signal);
    else if (job->state == JOB_RUNNING)
        error = launcher_stop(jobs->launcher_fd, job->number, job->attempt, LAUNCH_STOP_CANCEL);
    else if (!control->signal)
        job_end_without_run(jobs, job, JOB_CANCELLED, -ECANCELED, NULL, "was cancelled");
    if (error)
        mob_log_error("the launcher can't be told: %s", strerror(-error));
    free(control);
}
