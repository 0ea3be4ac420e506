/* What an argument of a command names: an object, a job, or a file that is still being written. */
#ifndef MOBULA_TOOLS_CLI_TARGET_H
#define MOBULA_TOOLS_CLI_TARGET_H

#include "tools/cli_mount.h"

enum cli_target_kind { CLI_TARGET_OBJECT, CLI_TARGET_JOB, CLI_TARGET_STAGED };

struct cli_target {
    enum cli_target_kind kind;
    struct mob_id id; /* not of a staged file */
    char id_text[MOB_ID_STRING_BYTES];
    char path[PATH_MAX]; /* below the mount: objects/ID, jobs/ID, staging/NAME */
};

/* Takes `text` as: 40 digits; a path if it begins with '/' or '.'; a name in staging/; a name in
 * run/; a path below the mount; any other path. -ENOENT and a sentence if it is none of them. Opens
 * nothing, so it never waits. */
MOB_MUST_CHECK errint_t cli_target_find(const struct cli_mount *mount, const char *text,
                                        struct cli_target *out, struct mob_error *err);

/* The same, but the result where it is a job, and -EBUSY where it is still being written. */
MOB_MUST_CHECK errint_t cli_target_object(const struct cli_mount *mount, const char *text,
                                          struct cli_target *out, struct mob_error *err);

/* The same, and -EINVAL unless it is a job. */
MOB_MUST_CHECK errint_t cli_target_job(const struct cli_mount *mount, const char *text,
                                       struct cli_target *out, struct mob_error *err);

/* The result object of a job, which may be pending. -ENODATA: it has none, with the job's error. */
MOB_MUST_CHECK errint_t cli_job_result(const struct cli_mount *mount, const struct mob_id *job,
                                       struct mob_id *result, struct mob_error *err);

/* Reads the link at `path` below the mount and takes the ID at the end of its text. -EINVAL if it
 * is no link to objects/ID or jobs/ID (`directory` says which is wanted). */
MOB_MUST_CHECK errint_t cli_read_link(const struct cli_mount *mount, const char *path,
                                      const char *directory, struct mob_id *out);

#endif
