/* Finding the mount, and the few reads of it that several subcommands need. */
#ifndef MOBULA_TOOLS_CLI_MOUNT_H
#define MOBULA_TOOLS_CLI_MOUNT_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "tools/cli_common.h"

struct cli_mount {
    char path[PATH_MAX]; /* absolute, without links */
    int fd;              /* O_PATH of its root */
};

/* From --mount, then $MOBULA, then the directory we stand in, then the only mobula mount there is.
 * Checks that it answers. Errors: -ENOENT (none, several, or not a mount; the sentence lists what
 * there is), -ENOTCONN (its daemon is dead). */
MOB_MUST_CHECK errint_t cli_mount_find(const struct cli *cli, struct cli_mount *out,
                                       struct mob_error *err);
void cli_mount_close(struct cli_mount *mount);
#define cleanup_mount MOB_CLEANUP(cli_mount_close)
#define CLI_MOUNT_NONE                                                                             \
    {                                                                                              \
        .fd = -1                                                                                   \
    }

/* As cli_mount_find(), but only the path, and without asking the daemon (which may be dead):
 * `argument` (may be NULL) goes before --mount. The path is that of a mount. */
MOB_MUST_CHECK errint_t cli_mount_locate(const struct cli *cli, const char *argument,
                                         char path[PATH_MAX], struct mob_error *err);

/* Calls `each` for every mount of type fuse.mobula in /proc/self/mountinfo, until it returns false.
 */
void cli_mount_each(bool (*each)(void *context, const char *path), void *context);
/* True if `path` (absolute, without links) is one of them. */
bool cli_mount_is_mounted(const char *path);

/* Where things are. `out` has PATH_MAX bytes and is returned. */
char *cli_mount_path(const struct cli_mount *mount, char *out, const char *format, ...)
    MOB_PRINTF(3, 4);

/* A small text file of the mount without its last newline; NULL if it can't be read (errno says
 * why). Never waits: opens with O_NONBLOCK. Caller frees. */
char *cli_mount_read(const struct cli_mount *mount, const char *path);

/* Extended attribute NAME (without "user.mobula.") of an object as text; NULL if there is none.
 * Caller frees. */
char *cli_mount_xattr(const struct cli_mount *mount, const struct mob_id *object, const char *name);
/* The same of the file `path` below a directory. */
char *cli_xattr_at(int dir_fd, const char *path, const char *name);

/* "key value" lines as a JSON object: whole numbers and fractions become numbers, yes and no
 * booleans, all else, and any "version", stays text. Text that is not UTF-8 is left out. NULL
 * without memory. */
json_t *cli_parse_key_values(const char *text);

#endif
