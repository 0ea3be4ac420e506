/* The daemon behind a mount, from outside: who it is, where its program and files are, ending it.
 */
#ifndef MOBULA_TOOLS_CLI_DAEMON_H
#define MOBULA_TOOLS_CLI_DAEMON_H

#include <limits.h>
#include <sys/types.h>

#include "tools/cli_mount.h"

struct cli_daemon {
    pid_t server_pid;
    pid_t keeper_pid;
    char node[256]; /* directory of this node in nodes/ */
};

/* Reads nodes/ID/daemon of the node that serves this mount. -ENOTCONN, -EIO: the mount does not
 * answer; -ENOENT: it does, but says nothing of a daemon. */
MOB_MUST_CHECK errint_t cli_daemon_read(const char *mount_path, struct cli_daemon *out,
                                        struct mob_error *err);

/* True if `pid` is a process of mobulad; for a `mount_path` other than NULL, one that was started
 * with it as an argument. */
bool cli_daemon_is_process(pid_t pid, const char *mount_path);

/* The keeper of a mount that doesn't answer: the mobulad process with that argument whose parent is
 * none. 0 if there is no such process. */
pid_t cli_daemon_search(const char *mount_path);

/* The parent of a process; 0 if there is no such process. */
pid_t cli_parent_of(pid_t pid);

/* Unmounts lazily: umount2(2), else fusermount3. */
MOB_MUST_CHECK errint_t cli_unmount_lazily(const char *mount_path, struct mob_error *err);

/* Where the program of the daemon is: beside this one, else where it was installed, else $PATH.
 * False: nowhere. */
bool cli_daemon_program(char path[PATH_MAX]);

/* The state directory of a node of this name if --state doesn't say. */
void cli_default_state(const char *name, char path[PATH_MAX]);

/* Finds a program in $PATH and the folders for administrators. */
bool cli_find_program(const char *name, char path[PATH_MAX]);

#endif
