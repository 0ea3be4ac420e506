/* Jobs of one node: a spec becomes a job, waits for its arguments and for CPUs, runs, and its
 * outputs become objects. It knows the store, not FUSE; paths it hands to processes begin with
 * `mount_path`.
 *
 * Durable: a job is in LMDB (store table JOBS) when jobs_submit() returns, its end before anybody
 * is told of it. Processes are children of the launcher (launcher.h), so they outlive a killed
 * server, and their ends are kept there until a server has recorded them.
 *
 * Threads: any, unless said. One event-loop thread of its own; callbacks and hooks come from it or
 * from the calling thread, without locks held. */
#ifndef MOBULA_CORE_JOB_JOB_H
#define MOBULA_CORE_JOB_JOB_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "core/base/util.h"
#include "core/store/store.h"

struct jobs;

struct jobs_hooks {
    void *context;
    /* State, or a file's length that the kernel may have cached, changed. */
    void (*job_changed)(void *context, uint64_t number);
    /* The job is gone: jobs/ID answers ENOENT. */
    void (*job_gone)(void *context, uint64_t number, const struct mob_id *id);
};

struct jobs_options {
    struct store *store;
    const char *mount_path; /* absolute; an argument {"object": ID} becomes mount_path/objects/ID */
    const char *work_dir;   /* on memory_dir's filesystem; what runs write is made in it */
    /* store_work_dir(): stdout and stderr, whose size nobody knows, are made in it, and scratch
     * directories while memory is short. NULL: there is none. */
    const char *disk_work_dir;
    int launcher_fd; /* the server's end of the launcher's socket; the caller keeps it open */
    double cpus;     /* what jobs may use at once */
    uint8_t owner[MOB_ID_OWNER_BYTES];
    const char *node_name;
    const struct mob_clock *clock;
    struct jobs_hooks hooks;
};

/* Loads the jobs, makes the outputs of those that haven't ended pending again, fails again what had
 * failed, holds arguments, counts names (names_each_job). Starts nothing yet. */
MOB_MUST_CHECK errint_t jobs_open(const struct jobs_options *options, struct jobs **out,
                                  struct mob_error *err);
/* Asks the launcher what still runs and what has ended, adopts it, and begins to run what waits. A
 * job that the table says was running and the launcher doesn't know (the launcher died too) is run
 * again if it may be retried (retry_on node, the default: at most `retries`+1 such restarts in
 * all), else failed with the reason. */
MOB_MUST_CHECK errint_t jobs_start(struct jobs *jobs, struct mob_error *err);
/* Stops the loop. Running processes go on (a successor adopts them) unless `kill_running`: then
 * they are ended (SIGTERM, after 2 s SIGKILL) and stay recorded as `queued`, to run again at the
 * next up. Blocks. */
void jobs_close(struct jobs *jobs, bool kill_running);

/* Parses a spec and checks it, without submitting: 0, or -EINVAL with line, column, field and what
 * was expected. `text` needs no terminator. Never trusts it. */
MOB_MUST_CHECK errint_t jobs_check(const char *text, size_t bytes, struct mob_error *err);

struct job_credentials {
    uid_t uid;
    gid_t gid;
    mode_t umask;
};

/* As jobs_check(), and whether this node could take it now: its arguments exist, it asks for no
 * more than there is, the user may run here. Submits nothing. On success *hold keeps the arguments
 * until jobs_hold_drop(), so that what was accepted at close is still there when it is submitted.
 */
struct job_hold;
MOB_MUST_CHECK errint_t jobs_check_here(struct jobs *jobs,
                                        const struct job_credentials *credentials, const char *text,
                                        size_t bytes, struct job_hold **hold,
                                        struct mob_error *err);
void jobs_hold_drop(struct jobs *jobs, struct job_hold *hold); /* NULL is fine */

/* Accepts a spec. In one transaction: the job, its pending outputs, and (if `staged` != 0) the
 * staged file's name becomes a link to it. A spec that is bad gives a job too, in state `rejected`,
 * so that its `error` can be read, and returns -EINVAL with *id set; any other error (-ENOSPC,
 * -EIO, -ENOMEM) makes nothing. Arguments that don't exist: rejected. Result IDs follow from *id:
 * mob_id_with_index. A job without names (staged == 0) is kept until jobs_name_dropped() brings it
 * to none after an jobs_name_added(). */
MOB_MUST_CHECK errint_t jobs_submit(struct jobs *jobs, const struct job_credentials *credentials,
                                    uint64_t staged, const char *text, size_t bytes,
                                    struct mob_id *id, struct mob_error *err);

enum job_state {
    JOB_QUEUED,
    JOB_FETCHING,
    JOB_RUNNING,
    JOB_SUCCEEDED,
    JOB_FAILED,
    JOB_CANCELLED,
    JOB_TIMED_OUT,
    JOB_LOST,
    JOB_REJECTED,
};
const char *job_state_name(enum job_state state); /* "timed-out" */
static inline bool job_state_is_end(enum job_state state)
{
    return state >= JOB_SUCCEEDED;
}

struct job_info {
    struct mob_id id;
    uint64_t number;
    enum job_state state;
    uid_t uid;
    gid_t gid;
    mode_t umask;         /* what its file denied others, its texts do as well */
    unsigned outputs;     /* named outputs; 0: standard output is the result */
    bool has_result;      /* there is a result object (not for rejected ones) */
    struct mob_id result; /* index 1: standard output, or the first named output */
    unsigned names;
    uint64_t submitted_ns, started_ns, ended_ns; /* CLOCK_REALTIME; 0 = not yet */
};

/* -ENOENT. */
MOB_MUST_CHECK errint_t jobs_find(struct jobs *jobs, const struct mob_id *id, struct job_info *out);
MOB_MUST_CHECK errint_t jobs_info(struct jobs *jobs, uint64_t number, struct job_info *out);
/* As store_list(). cursors[i] is where to go on after entry i. */
size_t jobs_list(struct jobs *jobs, uint64_t cursor, struct job_info *out, uint64_t *cursors,
                 size_t count);

/* Named outputs, `place` from 0. -ENOENT past the end. `name` up to 255 bytes. */
MOB_MUST_CHECK errint_t jobs_output(struct jobs *jobs, uint64_t number, unsigned place,
                                    char name[256], struct mob_id *object);
/* By name. */
MOB_MUST_CHECK errint_t jobs_find_output(struct jobs *jobs, uint64_t number, const char *name,
                                         unsigned *place, struct mob_id *object);

enum job_file {
    JOB_FILE_SPEC,
    JOB_FILE_STATE,
    JOB_FILE_NODE,
    JOB_FILE_EXIT_CODE,
    JOB_FILE_ERROR,
    JOB_FILE_USAGE
};

/* The text of one of these files as it is now, a new buffer the caller frees. state, node,
 * exit_code end in a newline; node is empty until it has run; error is empty while there is none;
 * exit_code is "0\n", for a signal "128+n\n" as shells have it; it and usage (lines
 * "wall_seconds 1.25", "user_seconds", "system_seconds", "max_resident_bytes") are -EAGAIN until
 * the end. */
MOB_MUST_CHECK errint_t jobs_text(struct jobs *jobs, uint64_t number, enum job_file file,
                                  char **text, size_t *bytes);

/* stdout (1) or stderr (2), as they are now: a read-only descriptor that the caller closes (it
 * grows while the job runs), or, once it has become an object, *object set and -EXDEV. -ENOENT: no
 * such job; a job that has not begun gives an empty file. */
int jobs_stream(struct jobs *jobs, uint64_t number, int which, struct mob_id *object);
/* Its length and modification time now. */
MOB_MUST_CHECK errint_t jobs_stream_size(struct jobs *jobs, uint64_t number, int which,
                                         uint64_t *bytes, uint64_t *mtime_ns);

/* Called once at the end of the job (or at once if it has ended, or with JOB_LOST if it went away).
 */
typedef void jobs_waiter(void *argument, uint64_t number, enum job_state state);
MOB_MUST_CHECK errint_t jobs_wait(struct jobs *jobs, uint64_t number, jobs_waiter *waiter,
                                  void *argument, uint64_t *token);
bool jobs_wait_cancel(struct jobs *jobs, uint64_t number, uint64_t token);

/* What is written to jobs/ID/ctl: "cancel", "kill -SIGNAL" (name or number), with or without a
 * newline. -EINVAL with what was expected, -EPERM (not the job's user and not root), -ESRCH (has
 * ended), -ENOENT. */
MOB_MUST_CHECK errint_t jobs_control(struct jobs *jobs, uint64_t number, uid_t uid,
                                     const char *text, size_t bytes, struct mob_error *err);

/* Names of a job come (ln) and go (rm, what names_unlink() reported). The last one gone lets the
 * job go when it has ended, with its holds on its outputs. */
void jobs_name_added(struct jobs *jobs, const struct mob_id *id);
void jobs_name_dropped(struct jobs *jobs, const struct mob_id *id);

/* Which jobs have the object as an argument or an output: lines "job ID argument" / "job ID output"
 * appended to *text (a malloc'd string, replaced; may be NULL at first). For inspection: walks. */
MOB_MUST_CHECK errint_t jobs_holders(struct jobs *jobs, const struct mob_id *object, char **text);

struct jobs_usage {
    uint64_t queued, running, succeeded, failed, cancelled, timed_out, lost, rejected;
    double cpus, cpus_used;
    uint64_t started; /* since the server began */
};
void jobs_usage(struct jobs *jobs, struct jobs_usage *out);

#endif
