/* Jobs as the command sees them: making a spec, dropping it, following its output, its end. */
#ifndef MOBULA_TOOLS_CLI_JOB_H
#define MOBULA_TOOLS_CLI_JOB_H

#include <jansson.h>

#include "tools/cli_object.h"
#include "tools/cli_target.h"

/* --- specs --- */

/* {"object": ID} */
json_t *cli_spec_object(const struct mob_id *id);
/* A string, or NULL if it is not UTF-8 (or no memory). */
json_t *cli_spec_text(const char *text);
/* Sets resources.cpu (0 = leave it) and timeout (0 = none). */
void cli_spec_limits(json_t *spec, double cpus, uint64_t timeout_ns);

/* Drops `spec` at `path` (a name below the mount in run/; nothing may be there) and gives the job's
 * ID. A refused spec: -EINVAL with the sentence of jobs/ID/error, and the name is removed. */
MOB_MUST_CHECK errint_t cli_job_drop(const struct cli_mount *mount, const char *path,
                                     const json_t *spec, struct mob_id *job, struct mob_error *err);

/* Fills `err` with jobs/ID/error ("line 3, column 7: command: expected a list" is taken apart) and
 * returns `code`. */
errint_t cli_job_error(const struct cli_mount *mount, const struct mob_id *job, errint_t code,
                       struct mob_error *err);

/* Writes to jobs/ID/ctl. 0 or a negative errno; -ESRCH: it has ended. */
MOB_MUST_CHECK errint_t cli_job_control(const struct cli_mount *mount, const struct mob_id *job,
                                        const char *text);

/* --- the end --- */

/* jobs/ID/exit_code, opened so that poll(2) reports POLLIN at the job's end. A descriptor, or a
 * negative errno. */
int cli_job_watch(const struct cli_mount *mount, const struct mob_id *job);

struct cli_job_end {
    bool over; /* false: it goes on, and the rest means nothing */
    bool succeeded;
    bool has_code;
    int code;           /* as a shell's $?, if has_code */
    char state[32];     /* "succeeded", "failed", ... */
    char sentence[400]; /* jobs/ID/error; "" */
};
/* How a watched job stands, without waiting. */
void cli_job_end(const struct cli_mount *mount, const struct mob_id *job, int watch_fd,
                 struct cli_job_end *out);
/* What a command that ran this job exits with: its exit code; 124 for timed-out; else 1, or
 * EX_UNAVAILABLE for lost ones. */
int cli_job_exit(const struct cli_job_end *end);
/* True if exit code and output alone do not tell what happened, so that the sentence should be
 * shown. */
bool cli_job_needs_words(const struct cli_job_end *end);

/* --- output --- */

/* One of a job's streams and how far it has been passed on. */
struct cli_stream {
    int in; /* -1 = not open */
    int out;
    off_t offset;
    char path[64]; /* jobs/ID/stdout */
};
void cli_stream_init(struct cli_stream *stream, const struct mob_id *job, const char *name,
                     int out);
/* Passes on what has come. *moved says whether anything did. At the end of the job call it once
 * more with `last`: the file is opened anew, as it has become an object. Negative errno; *reading
 * as in cli_copy(). */
MOB_MUST_CHECK errint_t cli_stream_pump(const struct cli_mount *mount, struct cli_stream *stream,
                                        bool last, bool *moved, bool *reading);
void cli_stream_close(struct cli_stream *stream);

/* Passes on both streams until the job ends or a signal arrives (`wake_fd`, from
 * cli_catch_signals(), or -1): then, if `cancel`, the job is cancelled and followed to its end.
 * Fills *end; end->over is false if it returned for a signal. */
MOB_MUST_CHECK errint_t cli_job_follow(const struct cli_mount *mount, const struct mob_id *job,
                                       int wake_fd, bool cancel, struct cli_job_end *end,
                                       struct mob_error *err);

#endif
