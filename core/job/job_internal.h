/* What the files of core/job share. Nothing outside this folder includes it.
 *
 * Threads. One loop thread owns the life of jobs: it alone changes a job's state, its waits, the
 * queue and what runs. Other threads submit (which only inserts), count names, and read; they and
 * the loop's changes meet under `lock`, which is held for no longer than it takes to copy a few
 * fields. The loop reads its own fields without it. Others tell the loop something by a post in the
 * mailbox.
 *
 * Lock order: jobs->lock, then the store's own; mailbox_lock and cleaner lock are leaves. Hooks and
 * waiters are called with none. */
#ifndef MOBULA_CORE_JOB_JOB_INTERNAL_H
#define MOBULA_CORE_JOB_JOB_INTERNAL_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "core/base/log.h"
#include "core/job/job.h"
#include "core/job/launch_protocol.h"
#include "core/job/scratch.h"
#include "core/job/spec.h"

#define SECOND_NS UINT64_C(1000000000)

/* --- the mailbox: messages carry their own link, so that telling the loop something can't fail ---
 */

enum post_kind {
    POST_SUBMITTED, /* in struct job */
    POST_GONE,      /* in struct job: it has left the table; free it */
    POST_READY,     /* in struct job_wait: what a job waits for has come, or failed */
    POST_CONTROL,   /* struct control */
    POST_STOP,      /* in struct jobs: jobs_close() */
};

struct post {
    struct post *next;
    enum post_kind kind;
};

/* --- jobs --- */

/* One thing that a job waits for: an object, or another job's end. */
struct job_wait {
    struct post post; /* first */
    struct job_wait *next;
    struct jobs *jobs;
    struct job *job; /* NULL: nobody waits any more; freed when its post comes */
    bool is_job;     /* `id` is a job's */
    bool failed, done;
    struct mob_id id;
    uint64_t number, token;
};

struct job_waiter {
    struct job_waiter *next;
    uint64_t token;
    jobs_waiter *callback;
    void *argument;
};

/* How a job ended. Immutable once visible. */
struct job_end {
    enum job_state state;
    errint_t failure; /* what opening its outputs gives; 0 if it succeeded */
    int exit_code;
    uint64_t ended_ns;
    uint64_t wall_ns, user_us, system_us, max_resident_bytes;
    bool stdout_object, stderr_object; /* there are such objects (MOB_INDEX_STDOUT, _STDERR) */
    char *error;                       /* one sentence, or NULL */
    char *cause;  /* what a job that needed it says; NULL: the same as `error` */
    bool no_room; /* there was no room, and `error` says so: of its streams only small ones stay */
};

#define EXIT_CODE_NEVER_RAN 125

struct job {
    struct post submitted_post, gone_post;
    struct job *hash_next;
    struct mob_id id;
    uint64_t number;
    enum job_state state;
    uid_t uid;
    gid_t gid;
    mode_t umask;
    unsigned names;
    unsigned dependents; /* jobs that have it in `after` and haven't ended */
    bool kept;           /* submitted without a name, and has had none: stays without one */
    uint64_t submitted_ns, started_ns;
    uint32_t attempt;  /* which run this is */
    uint32_t restarts; /* runs lost with their node */
    uint32_t output_count;
    char **outputs;        /* names; NULL where standard output is the result */
    uint64_t *numbers;     /* of the output objects, until the end */
    struct job_spec *spec; /* until the end */
    char *broken;          /* why it can't go on after a restart, or NULL */
    struct job_end *end;   /* set before the end is committed; visible by job_has_ended() */
    bool committing;       /* that end, until the state says so */
    bool running_recorded; /* the record says that it runs */
    bool cancelled;        /* asked for, and passed on to the launcher */
    bool holding;          /* has its arguments held */
    struct job_wait *waits;
    size_t waiting;    /* how many of them haven't come */
    size_t heap_place; /* in the queue, from 1; 0 = not in it */
    struct job_waiter *waiters;
    struct job *running_previous, *running_next;
    uint32_t exits;         /* runs that failed and were tried again */
    struct job *retry_next; /* its end could not be recorded yet: */
    struct job_end *retry_end;
    bool retrying, retry_ran;
    bool run_lost; /* it was running, and the launcher did not know it */
    bool adopted;  /* the launcher knew it when this server began */
    /* Where its run's files are (enum work_place); set before it is running. */
    uint8_t stream_place, scratch_place;
};

static inline unsigned job_object_count(const struct job *job)
{
    if (job->end && job->end->state == JOB_REJECTED)
        return 0;
    return job->output_count ? job->output_count : 1;
}

/* What a run has in a work directory. */
enum work_file { WORK_SCRATCH, WORK_STDOUT, WORK_STDERR, WORK_SCRIPT };
#define WORK_NAME_BYTES 48
char *work_name(const struct job *job, enum work_file file, char out[WORK_NAME_BYTES]);

/* The work directories: on memory's filesystem, and, where objects are spilled, on the disk's. */
enum work_place { WORK_IN_MEMORY, WORK_ON_DISK, WORK_PLACES };
struct work_dir {
    char *path; /* without symbolic links */
    int fd;     /* -1: there is no such directory */
};

/* --- the module --- */

struct user {
    uid_t uid;
    gid_t gid;
    uint64_t read_ns;
    char *name, *home, *shell;
    uint32_t *groups;
    uint32_t group_count;
};
#define USER_CACHE 32

/* The number stays when the job has gone, so that the order can be searched. */
struct job_place {
    uint64_t number;
    struct job *job; /* NULL: gone */
};

struct jobs {
    struct store *store;
    char *mount_path, *node_name;
    struct work_dir work[WORK_PLACES];
    bool disk_is_open; /* every user can pass through to the work directory on disk */
    int launcher_fd, empty_fd;
    uint32_t milli_cpus;
    uint8_t owner[MOB_ID_OWNER_BYTES];
    struct mob_clock clock;
    struct jobs_hooks hooks;
    uid_t uid; /* of this process */

    pthread_mutex_t lock;
    struct job **buckets; /* by the random part of the ID */
    size_t bucket_count, count;
    struct job_place *order; /* by number */
    size_t order_count, order_capacity, order_holes;
    uint64_t next_token;
    uint64_t state_counts[JOB_REJECTED + 1];
    uint64_t started;
    pthread_t loop_thread;
    bool loop_runs;

    pthread_mutex_t mailbox_lock;
    struct post stop_post;
    struct post *mailbox_first, **mailbox_last;
    int mailbox_fd;

    /* The loop's own. */
    int epoll_fd, timer_fd;
    bool stop, kill_running, launcher_gone;
    uint64_t stop_deadline_ns;
    struct job **heap;
    size_t heap_count, heap_capacity;
    atomic_uint milli_cpus_used;
    struct job *running; /* all that the launcher has */
    struct job *retry;   /* whose end could not be recorded: linked by retry_next */
    bool timer_armed;
    struct user users[USER_CACHE];
    struct cleaner cleaner;
};

/* Where a file of its run is made, or was. */
static inline const struct work_dir *work_of(const struct jobs *jobs, const struct job *job,
                                             enum work_file file)
{
    bool stream = file == WORK_STDOUT || file == WORK_STDERR;
    return &jobs->work[stream ? job->stream_place : job->scratch_place];
}

/* --- table.c --- */
errint_t table_add(struct jobs *jobs, struct job *job); /* lock held; -ENOMEM, -EEXIST */
void table_remove(struct jobs *jobs, struct job *job);  /* lock held */
struct job *table_find(struct jobs *jobs, const struct mob_id *id); /* lock held */
struct job *table_number(struct jobs *jobs, uint64_t number);       /* lock held */
/* The place in `order` of the first job with a number of at least this. */
size_t table_place(struct jobs *jobs, uint64_t number);
void job_free(struct job *job);
void job_end_free(struct job_end *end);
/* Changes how many names and dependents the job has (0: not), and takes it out of the table if it
 * has ended and nothing keeps it: then its holds are dropped, hooks called, and the loop frees it.
 * Without the lock. */
void job_let_go(struct jobs *jobs, const struct mob_id *id, int names, int dependents);
/* Whether a reader may see the end: it is on disk. Lock held. */
bool job_has_ended(struct jobs *jobs, const struct job *job);
static inline enum job_state job_visible_state(struct jobs *jobs, const struct job *job)
{
    return job_has_ended(jobs, job) ? job->end->state : job->state;
}
void job_set_state(struct jobs *jobs, struct job *job,
                   enum job_state state); /* takes the lock, calls the hook */

/* --- record.c --- */
/* The job as bytes for STORE_TABLE_JOBS; `end` may be NULL. The caller frees. */
MOB_MUST_CHECK errint_t record_encode(const struct job *job, const struct job_end *end,
                                      uint8_t **data, size_t *bytes);
/* Checks and reads. -EBADMSG, -ENOMEM. */
MOB_MUST_CHECK errint_t record_decode(const void *data, size_t bytes, uint64_t number,
                                      struct job **out);
struct record_key {
    uint8_t bytes[8];
};
struct record_key record_key(uint64_t number); /* sorts by number */
MOB_MUST_CHECK errint_t record_put(struct store_batch *batch, const struct job *job,
                                   const struct job_end *end);
/* The record alone, in a transaction of its own. */
MOB_MUST_CHECK errint_t record_write(struct jobs *jobs, const struct job *job,
                                     struct mob_error *err);

/* --- submit.c --- */
/* Holds the arguments (objects) and dependencies (jobs) of job->spec. -EINVAL: `text` (may be NULL)
 * is used for the place. */
MOB_MUST_CHECK errint_t job_hold_arguments(struct jobs *jobs, struct job *job, const char *text,
                                           size_t bytes, struct mob_error *err);
void job_drop_arguments(struct jobs *jobs, struct job *job);
/* Arguments by value of a job that is in the list of running ones: kept in memory if possible.
 * They are held. */
void job_pin_arguments(struct jobs *jobs, const struct job *job);
void job_unpin_arguments(struct jobs *jobs, const struct job *job);

/* --- loop.c --- */
void mailbox_post(struct jobs *jobs, struct post *post, enum post_kind kind);
void *loop_main(void *argument);
void loop_arm_timer(struct jobs *jobs);
/* Handles what is in the mailbox now. */
void loop_read_mailbox(struct jobs *jobs);

/* --- waits.c: what a job waits for --- */
void job_begin_waiting(struct jobs *jobs, struct job *job);
void job_wait_came(struct jobs *jobs, struct job_wait *wait);
void job_cancel_waits(struct jobs *jobs, struct job *job);

/* --- schedule.c: the queue --- */
void queue_add(struct jobs *jobs, struct job *job);
void queue_remove(struct jobs *jobs, struct job *job);
/* Starts what fits. */
void queue_run(struct jobs *jobs);
void running_add(struct jobs *jobs, struct job *job);
void running_remove(struct jobs *jobs, struct job *job);

/* --- run.c --- */
/* Makes the run's files and hands it to the launcher. On failure nothing is left. */
MOB_MUST_CHECK errint_t job_start(struct jobs *jobs, struct job *job, struct mob_error *err);
void job_clean(struct jobs *jobs, const struct job *job); /* removes the run's files */
/* After a restart: looks where its run's files are. False: there are no streams. */
bool job_find_files(struct jobs *jobs, struct job *job);
/* Which directory of the run is on a filesystem with no room left; NULL: none. */
const char *job_full_dir(struct jobs *jobs, const struct job *job);
void users_free(struct jobs *jobs);

/* --- finish.c --- */
/* The launcher says that a run has ended. */
void job_run_ended(struct jobs *jobs, struct job *job, const struct launch_report *report);
/* Ends a job that isn't running. `cause` NULL: the same as `error`. */
void job_end_without_run(struct jobs *jobs, struct job *job, enum job_state state, errint_t failure,
                         const char *cause, const char *format, ...) MOB_PRINTF(6, 7);
/* Tries again to record ends that could not be. */
void finish_retry(struct jobs *jobs);
/* Runs of a launcher that has died. */
void job_run_lost(struct jobs *jobs, struct job *job);

/* --- collect.c: files that a run has written become objects --- */
struct collected {
    int fd; /* -1: none */
    bool executable;
    char path[4096];
};
/* -EINVAL with a sentence for a person: what is wrong with the output; other codes for what is
 * wrong here. */
MOB_MUST_CHECK errint_t collect_output(struct jobs *jobs, const struct job *job, const char *name,
                                       struct collected *out, struct mob_error *err);
/* stdout (1) or stderr (2); *bytes is its length. */
MOB_MUST_CHECK errint_t collect_stream(struct jobs *jobs, const struct job *job, int which,
                                       struct collected *out, uint64_t *bytes,
                                       struct mob_error *err);

/* --- control.c --- */
struct control {
    struct post post; /* first */
    uint64_t number;
    int signal; /* 0: cancel */
};
void control_carry_out(struct jobs *jobs, struct control *control);

/* A copy of the sentence, printable; NULL: no memory (then there is no sentence). */
char *job_sentence(const char *text);

#endif
