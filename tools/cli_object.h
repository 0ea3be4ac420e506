/* Objects as the command sees them: waiting for one, copying bytes, and writing new ones. */
#ifndef MOBULA_TOOLS_CLI_OBJECT_H
#define MOBULA_TOOLS_CLI_OBJECT_H

#include "tools/cli_mount.h"

/* Opens objects/ID for reading, waiting until it is ready or `deadline` passes (-ETIME). Shows
 * progress on a terminal. Returns the descriptor, or a negative errno and a sentence (SPEC.md 2,
 * errno table), which calls it as it was given. */
int cli_object_open(const struct cli_mount *mount, const struct mob_id *object, const char *given,
                    uint64_t deadline, struct mob_error *err);

/* Opens objects/ID without waiting: a descriptor that poll(2) reports ready when the object is. A
 * negative errno if it can't be opened, or has failed already. */
int cli_object_watch(const struct cli_mount *mount, const struct mob_id *object);

/* After poll(2) has reported a watched object: 0 if it is ready, -EAGAIN if it is still pending,
 * else the errno it failed with. Reads none of it. */
errint_t cli_object_state(int watch_fd);

/* The sentence for an object that can't be opened or read, `code` as open(2) gave it, beginning
 * with what it was called; returns `code`. */
errint_t cli_object_error(const struct cli_mount *mount, const struct mob_id *object,
                          const char *given, errint_t code, struct mob_error *err);

/* The exit status for such a code: a failed object is EX_UNAVAILABLE, where cli_status() would
 * blame the disk. */
int cli_object_status(errint_t code);

/* Copies all of `in` (from where it stands) to `out`, in the kernel where that works. *copied
 * counts as it goes (for progress; may be NULL). `progress` may be NULL. On an error, *reading
 * tells which side it was. */
MOB_MUST_CHECK errint_t cli_copy(int in, int out, uint64_t *copied, bool *reading,
                                 struct cli_progress *progress);

/* A file of staging/ or run/ while it is written. */
struct cli_staged {
    int fd;
    char path[PATH_MAX]; /* below the mount */
};

/* Makes DIRECTORY/.PREFIX-PID-RANDOM, which signals remove (cli_undo_arm). `mode` as in open(2). */
MOB_MUST_CHECK errint_t cli_stage_begin(const struct cli_mount *mount, const char *directory,
                                        const char *prefix, mode_t mode, struct cli_staged *out,
                                        struct mob_error *err);
/* The same under a name of the caller's, below the mount, without minding signals. */
MOB_MUST_CHECK errint_t cli_stage_begin_at(const struct cli_mount *mount, const char *path,
                                           mode_t mode, struct cli_staged *out,
                                           struct mob_error *err);
/* Closes it, which commits it, and gives the ID of what it has become: an object for "staging", a
 * job for "run". The name stays. On -EINVAL from close(2) in run/ (a spec was refused) *id is the
 * rejected job's. */
MOB_MUST_CHECK errint_t cli_stage_commit(const struct cli_mount *mount, struct cli_staged *staged,
                                         struct mob_id *id, struct mob_error *err);
/* Renames it, and signals leave it alone from then on. */
MOB_MUST_CHECK errint_t cli_stage_rename(const struct cli_mount *mount, struct cli_staged *staged,
                                         const char *new_path, struct mob_error *err);
/* The exit status for such a code: what is not there then is no input. */
int cli_name_status(errint_t code);
/* Closes and removes whatever is there. Any state; keeps errno. */
void cli_stage_abort(const struct cli_mount *mount, struct cli_staged *staged);

#endif
